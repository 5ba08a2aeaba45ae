"""The DiT: flow matching on encoded chunks, with the motion latents held as they are in sampling.

Source: the paper's streaming-aware recipe at small scale. A chunk is seen with its two motion latents nine
times in ten, with its first latent alone otherwise; three in four noise levels are those of sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serve_app.engine.sampler import schedule
from serve_app.model.dit import DiT
from serve_app.model.presets import preset

DIT: dict[str, Any] = {
    "_class_name": "WanModelAudioProject",
    "dim": 224,
    "ffn_dim": 448,
    "num_heads": 7,
    "num_layers": 4,
    "freq_dim": 64,
    "text_dim": 16,
    "eps": 1e-6,
    "has_image_input": False,
    "in_dim": 224,
    "out_dim": 112,
    "patch_size": [1, 1, 1],
    "vae_stride": [8, 32, 32],
    "audio_blocks": 4,
    "audio_channels": 96,
    "audio_intermediate_dim": 96,
    "audio_context_tokens": 4,
    "height": 128,
    "width": 128,
}
_MOTION_PROBABILITY = 0.9
_MOTION_NOISE = 0.15
_SHIFT = 5.0


def flow_losses(network: DiT, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a batch of ``Chunks``."""
    latent, noise = batch["latent"], torch.randn_like(batch["latent"])
    sigma = noise_levels(len(latent), latent.device)
    x = (1 - sigma) * latent + sigma * noise
    x, made = hold_motion(x, batch)
    y = batch["reference"].expand_as(latent)
    context = network.project_audio(batch["windows"])
    velocity = network(x, y, 1000 * sigma.flatten(), context)
    weight = made * batch["weight"]
    squares = (velocity.float() - (noise - latent)).square() * weight
    values = weight.sum() * latent.shape[1]
    return {"loss": squares.sum() / values, "clean": (sigma.square() * squares).sum() / values}


def noise_levels(count: int, device: torch.device) -> Tensor:
    """``[count, 1, 1, 1, 1]``: three in four as they are sampled at, the others anywhere."""
    used = torch.tensor(schedule(preset("tiny"), preset("tiny").steps).sigmas[:-1], device=device)
    level = torch.rand(count, device=device)
    anywhere = _SHIFT * level / (1 + (_SHIFT - 1) * level)
    sampled = used[torch.randint(len(used), (count,), device=device)]
    return torch.where(torch.rand(count, device=device) < 0.75, sampled, anywhere).view(-1, 1, 1, 1, 1)


def hold_motion(x: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """``x`` with its first one or two latents in place, a little disturbed, and ``[B, 1, T, 1, 1]``: 1 for
    latents to be made. A talk's first chunk begins with the portrait."""
    count = len(x)
    opening = batch["opening"].view(-1, 1, 1, 1, 1)
    both = (torch.rand_like(opening) < _MOTION_PROBABILITY).float() * (1 - opening)
    motion = batch["motion"] + _MOTION_NOISE * torch.rand_like(opening) * torch.randn_like(batch["motion"])
    first = torch.where(opening > 0, batch["reference"], motion[:, :, :1])
    held = torch.zeros(count, 1, x.shape[2], 1, 1, device=x.device)
    held[:, :, 0] = 1
    held[:, :, 1:2] = both
    known = torch.cat((first, motion[:, :, 1:], torch.zeros_like(x[:, :, 2:])), dim=2)
    return torch.where(held > 0, known, x), 1 - held
