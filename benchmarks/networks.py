"""The networks a benchmark runs: the embedded ones with their weights, Lite and Pro at full size with
random ones, built straight on the device. What is measured does not depend on the weights' values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2Model

from serve_app.engine import audio_cache
from serve_app.model.attention import Attention, sdpa
from serve_app.model.audio_features import AudioFeatures
from serve_app.model.checkpoint import load_audio_features, load_dit, load_vae
from serve_app.model.dit import DiT, DiTConfig
from serve_app.model.parts import wrapped_vae
from serve_app.model.presets import Preset, checkpoint_root, resolved_geometry
from serve_app.model.vae import VideoVAE
from serve_app.types import Geometry

META = torch.device("meta")
RELEASED_DIT: dict[str, Any] = {
    "dim": 1536,
    "eps": 1e-6,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "num_heads": 12,
    "num_layers": 30,
}
RELEASED_LATENTS: dict[str, dict[str, Any]] = {
    "ltx": {"in_dim": 256, "out_dim": 128, "patch_size": [1, 1, 1], "vae_stride": [8, 32, 32]},
    "wan": {"in_dim": 32, "out_dim": 16, "patch_size": [1, 2, 2], "vae_stride": [4, 8, 8]},
}
_FULL_SIZE_VAES: dict[str, Callable[[], Any]] = {"ltx": AutoencoderKLLTXVideo, "wan": AutoencoderKLWan}
"""diffusers' defaults are the released sizes."""


@dataclass(frozen=True)
class Networks:
    """A model's three networks and its chunk sizes."""

    dit: DiT
    vae: VideoVAE
    audio: AudioFeatures
    geometry: Geometry
    weights: str


@dataclass(frozen=True)
class Tflop:
    """Work of one chunk's stages, 1 multiply-add = 2; each for one row."""

    audio: float
    begin: float
    denoise: float
    decode: float
    advance: float

    def chunk(self, steps: int) -> float:
        """A whole chunk, its speech included."""
        return self.audio + self.begin + steps * self.denoise + self.decode + self.advance


def embedded(preset: Preset, device: torch.device, dtype: torch.dtype, attention: Attention) -> Networks:
    """The checkpoint in the package."""
    root = checkpoint_root("embedded")
    return Networks(
        load_dit(root, preset, device, dtype, attention),
        load_vae(root, preset, device, dtype),
        load_audio_features(root, preset, device),
        resolved_geometry(root, preset),
        "embedded checkpoint",
    )


def full_size(preset: Preset, device: torch.device, dtype: torch.dtype, attention: Attention) -> Networks:
    """Lite or Pro as released, with the random weights of torch's own initialisation."""
    with device, _default_dtype(dtype):
        dit = DiT(DiTConfig.from_dict({**RELEASED_DIT, **RELEASED_LATENTS[preset.family]}), attention)
        vae: torch.nn.Module = _FULL_SIZE_VAES[preset.family]()
    with device:
        audio = AudioFeatures(Wav2Vec2Model(Wav2Vec2Config(mask_time_prob=0.0)))
    geometry = Geometry(preset.height, preset.width, preset.frames, preset.motion_frames)
    wrapped = wrapped_vae(preset.family, vae).to(device)
    for part in (dit, wrapped, audio):
        part.requires_grad_(False).eval()
    return Networks(dit, wrapped, audio, geometry, "random weights, full size")


def without_memory(preset: Preset) -> Networks:
    """The same on the meta device, for counting."""
    if preset.name != "tiny":
        return full_size(preset, META, torch.float32, sdpa)
    nets = embedded(preset, torch.device("cpu"), torch.float32, sdpa)
    return replace(nets, dit=nets.dit.to(META), vae=nets.vae.to(META), audio=nets.audio.to(META))


@torch.inference_mode()
def count_tflop(preset: Preset) -> Tflop:
    """What one chunk's stages compute, counted by torch on the meta device: matrix products,
    convolutions and attention, nothing else."""
    nets = without_memory(preset)
    geometry, config = nets.geometry, nets.dit.config
    shape = (1, *nets.vae.latent_shape(geometry.frames, geometry.height, geometry.width))
    x = torch.zeros(shape, device=META)
    windows = (1, geometry.frames, 5, config.audio_blocks, config.audio_channels)
    carried = (1, 3, geometry.motion_frames, geometry.height, geometry.width)
    context = nets.dit.project_audio(torch.zeros(windows, device=META))
    return Tflop(
        audio=_counted(lambda: nets.audio.encode(torch.zeros(audio_cache.CACHE_SAMPLES, device=META))),
        begin=_counted(lambda: nets.dit.project_audio(torch.zeros(windows, device=META))),
        denoise=_counted(lambda: nets.dit(x, x, torch.zeros(1, device=META), context)),
        decode=_counted(lambda: nets.vae.decode(x)),
        advance=_counted(lambda: nets.vae.encode(torch.zeros(carried, device=META))),
    )


def _counted(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
