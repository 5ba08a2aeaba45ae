"""The FlashHead DiT (signatures; the network follows)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.model.attention import Attention, sdpa


@dataclass(frozen=True)
class DiTConfig:
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int
    in_dim: int
    out_dim: int
    patch_size: tuple[int, int, int]
    vae_stride: tuple[int, int, int]
    eps: float
    text_dim: int = 4096
    audio_blocks: int = 12
    audio_channels: int = 768
    audio_intermediate_dim: int = 512
    audio_context_tokens: int = 32

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DiTConfig: ...


@dataclass(frozen=True)
class AudioContext:
    """Cross-attention keys and values of every block: ``[layers, B, T, tokens, heads, head_dim]``."""

    keys: Tensor
    values: Tensor

    @classmethod
    def cat(cls, contexts: Sequence[AudioContext]) -> AudioContext: ...

    def rows(self, index: slice) -> AudioContext: ...


class DiT(nn.Module):
    config: DiTConfig

    def __init__(self, config: DiTConfig, attention: Attention = sdpa) -> None: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def project_audio(self, windows: Tensor) -> AudioContext:
        """windows [B, frames, 5, audio_blocks, audio_channels], any float dtype."""

    def forward(self, x: Tensor, y: Tensor, t: Tensor, context: AudioContext) -> Tensor:
        """x, y [B, C, T, h, w] in the model dtype; t [B] float32, already rounded by the sampler."""
