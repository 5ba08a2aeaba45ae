"""Loading weights from the released layout (signatures; the loaders follow)."""

from __future__ import annotations

from pathlib import Path

import torch

from serve_app.model.attention import Attention, sdpa
from serve_app.model.audio_features import AudioFeatures
from serve_app.model.dit import DiT
from serve_app.model.presets import Preset, resolved_geometry
from serve_app.model.vae import VideoVAE

__all__ = ["load_audio_features", "load_dit", "load_vae", "resolved_geometry"]


def load_dit(
    root: Path, preset: Preset, device: torch.device, dtype: torch.dtype, attention: Attention = sdpa
) -> DiT: ...


def load_vae(root: Path, preset: Preset, device: torch.device, dtype: torch.dtype) -> VideoVAE: ...


def load_audio_features(root: Path, preset: Preset, device: torch.device) -> AudioFeatures:
    """Always float32."""
