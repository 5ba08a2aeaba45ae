"""The video VAE: diffusers' LTX network at small width, and how it is taught.

At first, of an unstrided convolution's three taps in time only the one that looks at the frame itself is
used, the others stay at zero: frames of a latent come and go through the network's own down- and upsamplers.
So most is taught through plain 2D convolutions, at a third of the work; the decoder's other taps come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d
from torch import Tensor

LTX: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTXVideo",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 112,
    "block_out_channels": [112, 112, 112, 112],
    "layers_per_block": [0, 0, 0, 0, 0],
    "spatio_temporal_scaling": [True, True, True, False],
    "decoder_block_out_channels": [64, 64, 128],
    "decoder_layers_per_block": [1, 1, 1, 0],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [False, False, False, False],
    "upsample_residual": [False, False, False],
    "upsample_factor": [2, 1, 2],
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
}

_KL_WEIGHT = 1e-5
_LOGVAR = -8.0
"""Of the posterior at first: narrow, so that motion latents keep what they carry."""


def new_autoencoder() -> Any:
    """A network that passes on what it can linearly: residual branches start at zero, and so do the taps
    that look at other frames."""
    network = AutoencoderKLLTXVideo.from_config(LTX)
    for module in network.modules():
        if isinstance(module, LTXVideoCausalConv3d):
            own = own_tap(module)
            with torch.no_grad():
                kept = module.conv.weight[:, :, own].clone() * module.kernel_size[0] ** 0.5
                module.conv.weight.zero_()
                module.conv.weight[:, :, own] = kept
        if hasattr(module, "conv2"):
            torch.nn.init.zeros_(module.conv2.conv.weight)
            torch.nn.init.zeros_(module.conv2.conv.bias)
    with torch.no_grad():
        network.encoder.conv_out.conv.bias[-1] = _LOGVAR
    return network


@contextmanager
def in_two_dimensions(network: Any) -> Iterator[None]:
    """Within, every unstrided convolution of ``network`` is the 2D one of its own tap: the same result while
    the other taps are zero, and those learn nothing."""
    every = [module for module in network.modules() if isinstance(module, LTXVideoCausalConv3d)]
    convolutions = [module for module in every if module.conv.stride == (1, 1, 1)]
    for module in convolutions:
        module.forward = partial(_convolution_2d, module)
    try:
        yield
    finally:
        for module in convolutions:
            del module.forward


def reconstruction_losses(
    network: Any, video: Tensor, weight: Tensor, disturbance: float = 0.0
) -> dict[str, Tensor]:
    """Of ``video [B, 3, T, H, W]`` in [-1, 1], with ``weight [B, 1, T, H, W]`` on what matters most.

    The latents are disturbed by up to ``disturbance`` beyond the posterior's own spread: what a generator
    makes is never quite what the encoder would have.
    """
    posterior = network.encode(video).latent_dist
    z, std = posterior.mean.float(), posterior.std.float()
    spread = disturbance * torch.rand(len(z), 1, 1, 1, 1, device=z.device) + std
    made = network.decode((z + spread * torch.randn_like(z)).to(video.dtype)).sample.float()
    error = made - video
    squares = error.square()
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (-1, -2))
    if video.shape[2] > 1:
        edges = edges + 2 * (weight[:, :, 1:] * error.diff(dim=2).abs()).mean()
    kl = 0.5 * (z.square() + std.square() - 1 - 2 * std.log()).mean()
    loss = (weight * (4 * squares + 0.5 * error.abs())).mean() + edges + _KL_WEIGHT * kl
    return {"loss": loss, "psnr": -10 * torch.log10(squares.mean() / 4), "kl": kl, "size": z.std()}


def _convolution_2d(module: LTXVideoCausalConv3d, x: Tensor) -> Tensor:
    weight = module.conv.weight[:, :, own_tap(module)]
    frames = x.transpose(1, 2).flatten(0, 1)
    made = F.conv2d(frames, weight, module.conv.bias, padding=module.conv.padding[1:])
    return made.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def own_tap(module: LTXVideoCausalConv3d) -> int:
    """The tap that looks at the frame it makes."""
    size = module.kernel_size[0]
    return size - 1 if module.is_causal else size // 2
