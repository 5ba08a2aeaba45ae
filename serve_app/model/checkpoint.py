"""Loading networks from a checkpoint in the released layout, straight to the device in the precision
they run in.

A network is built without memory (on the meta device), its file's header compared with it, and then
the tensors read to the device and cast, a few at a time, so that there are never two copies of the
weights. Every fault of a network's files is in one CheckpointError.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import Wav2Vec2Model

from serve_app.errors import CheckpointError
from serve_app.model.attention import Attention, sdpa
from serve_app.model.audio_features import AudioFeatures
from serve_app.model.dit import DiT
from serve_app.model.parts import Part, dit_part, vae_part, wav2vec2_part, wrapped_vae
from serve_app.model.presets import Preset, resolved_geometry
from serve_app.model.vae import VideoVAE
from serve_app.model.weight_files import read_tensors

__all__ = ["load_audio_features", "load_dit", "load_vae", "resolved_geometry"]

_KEPT_FP32 = frozenset({"latents_mean", "latents_std"})
"""Statistics of the LTX latents: 1 KB that every latent passes through."""


def load_dit(
    root: Path, preset: Preset, device: torch.device, dtype: torch.dtype, attention: Attention = sdpa
) -> DiT:
    """The preset's DiT, for inference.

    Raises:
        CheckpointError: the weights cannot be had, or files are absent, truncated or do not fit.
    """
    if preset.unavailable_reason:
        raise CheckpointError(f"model {preset.name!r}: {preset.unavailable_reason}", value=preset.name)
    network = _load(dit_part(root, preset, attention), device, dtype)
    assert isinstance(network, DiT)
    return network


def load_vae(root: Path, preset: Preset, device: torch.device, dtype: torch.dtype) -> VideoVAE:
    """The preset's video VAE, for inference; its latent statistics stay float32.

    Raises:
        CheckpointError: files are absent, truncated or do not fit.
    """
    vae = wrapped_vae(preset.family, _load(vae_part(root, preset), device, dtype))
    return vae.to(device).eval()


def load_audio_features(root: Path, preset: Preset, device: torch.device) -> AudioFeatures:
    """The preset's speech encoder, for inference, in float32.

    Raises:
        CheckpointError: files are absent, truncated or do not fit.
    """
    network = _load(wav2vec2_part(root, preset), device, torch.float32)
    assert isinstance(network, Wav2Vec2Model)
    # Computes the positional convolution's weight once instead of in every call.
    parametrize.remove_parametrizations(network.encoder.pos_conv_embed.conv, "weight")
    return AudioFeatures(network.requires_grad_(False)).eval()


def _load(part: Part, device: torch.device, dtype: torch.dtype) -> nn.Module:
    examination = part.examine()
    if examination.network is None:
        faults = [str(fault) for fault in examination.faults]
        raise CheckpointError("; ".join(faults), value=faults)
    names = examination.names

    def place(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(device, torch.float32 if name in _KEPT_FP32 else dtype)

    placed = read_tensors(part.weights, device, names.keys(), place)
    state = {names[name]: tensor for name, tensor in placed.items()}
    examination.network.load_state_dict(state, assign=True)
    return examination.network.requires_grad_(False).eval()
