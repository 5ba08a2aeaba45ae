"""The FlashHead DiT: a noisy latent, the reference latent, a timestep and speech give a velocity.

Parameter names are those of the released files. Notation: B rows, C latent channels, T/h/w latent
frames, rows and columns, N tokens, D width. Maths: FlashHead spec section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.model.attention import Attention, sdpa
from serve_app.model.audio_projector import AudioProjector
from serve_app.model.dit_config import DiTConfig
from serve_app.model.rope import Rope, apply_rope, rope_tables

__all__ = ["UNUSED_PARAMETERS", "AudioContext", "DiT", "DiTConfig"]

UNUSED_PARAMETERS = (
    "text_embedding.0.weight",
    "text_embedding.0.bias",
    "text_embedding.2.weight",
    "text_embedding.2.bias",
    "audio_emb.proj.0.weight",
    "audio_emb.proj.0.bias",
    "audio_emb.proj.1.weight",
    "audio_emb.proj.1.bias",
    "audio_emb.proj.3.weight",
    "audio_emb.proj.3.bias",
    "audio_emb.proj.4.weight",
    "audio_emb.proj.4.bias",
)
"""Tensors of the released files that inference never reads; they are skipped when loading."""


@dataclass(frozen=True)
class AudioContext:
    """The audio tokens of some rows as every block's cross-attention sees them.

    ``keys`` and ``values`` are ``[layers, B, T, tokens, heads, head_dim]`` in the model's dtype: 29 MB
    per row for Lite in bfloat16. They do not depend on the timestep, so a chunk computes them once.
    """

    keys: Tensor
    values: Tensor

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @classmethod
    def cat(cls, contexts: Sequence[AudioContext]) -> AudioContext:
        """The rows of all ``contexts``, in order; without a copy where there is only one."""
        if len(contexts) == 1:
            return contexts[0]
        keys = torch.cat([context.keys for context in contexts], dim=1)
        return cls(keys, torch.cat([context.values for context in contexts], dim=1))

    def rows(self, index: slice) -> AudioContext:
        """A view of some rows."""
        return AudioContext(self.keys[:, index], self.values[:, index])


class RMSNorm(nn.Module):
    """RMS norm over the full width, before heads are split: float32 inside, rounded to the model's
    dtype, then scaled."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight


class AttentionLayer(nn.Module):
    """The projections self- and cross-attention share."""

    def __init__(self, config: DiTConfig, attention: Attention) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.num_heads
        self.attention = attention
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = RMSNorm(dim, config.eps)
        self.norm_k = RMSNorm(dim, config.eps)

    def query(self, x: Tensor) -> Tensor:
        return self._split(self.norm_q(self.q(x)))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.norm_k(self.k(x))), self._split(self.v(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(AttentionLayer):
    """Every token attends to every token; positions enter by rotation of queries and keys."""

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        k, v = self.key_value(x)
        out = self.attention(apply_rope(self.query(x), rope), apply_rope(k, rope), v)
        return self.o(out.flatten(2))


class CrossAttention(AttentionLayer):
    """The tokens of a latent frame attend to the audio tokens of that frame and to no others."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``x [B, N, D]``; ``keys``, ``values`` ``[B, T, tokens, heads, head_dim]`` by ``key_value``."""
        frames = keys.shape[1]
        q = self.query(x).unflatten(1, (frames, -1)).flatten(0, 1)
        out = self.attention(q, keys.flatten(0, 1), values.flatten(0, 1))
        return self.o(out.flatten(2)).view_as(x)


class Block(nn.Module):
    def __init__(self, config: DiTConfig, attention: Attention) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config, attention)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(config, attention)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def forward(self, h: Tensor, m: Tensor, rope: Rope, keys: Tensor, values: Tensor) -> Tensor:
        """``h [B, N, D]`` and the timestep's modulation ``m [B, 6, D]`` to the next ``h``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + m).chunk(6, dim=1)
        h = h + gate1 * self.self_attn(self.norm1(h) * (1 + scale1) + shift1, rope)
        h = h + self.cross_attn(self.norm3(h), keys, values)
        return h + gate2 * self.ffn(self.norm2(h) * (1 + scale2) + shift2)


class Head(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, config.patch_values)

    def forward(self, h: Tensor, tau: Tensor) -> Tensor:
        """``h [B, N, D]`` and the time embedding ``tau [B, D]`` to ``[B, N, patch values]``."""
        shift, scale = (self.modulation + tau.unsqueeze(1)).chunk(2, dim=1)
        return self.head(self.norm(h) * (1 + scale) + shift)


class DiT(nn.Module):
    """``project_audio`` once per chunk, then ``forward`` once per denoising step.

    Rows of a batch are independent: each has its own timestep and audio.
    """

    def __init__(self, config: DiTConfig, attention: Attention = sdpa) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, config.patch_size)
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.num_layers))
        self.head = Head(config)
        self.audio_proj = AudioProjector(
            blocks=config.audio_blocks,
            channels=config.audio_channels,
            intermediate=config.audio_intermediate_dim,
            tokens=config.audio_context_tokens,
            dim=dim,
            stride=config.vae_stride[0],
        )

    @property
    def dtype(self) -> torch.dtype:
        """What ``x`` and ``y`` come in."""
        return self.patch_embedding.weight.dtype

    def project_audio(self, windows: Tensor) -> AudioContext:
        """The audio context of ``windows [B, 1 + stride * (T - 1), 5, blocks, channels]``, any floats."""
        tokens = self.audio_proj(windows.to(self.dtype))
        layers = (layer for layer in self.blocks.modules() if isinstance(layer, CrossAttention))
        pairs = [layer.key_value(tokens) for layer in layers]
        return AudioContext(torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs]))

    def forward(self, x: Tensor, y: Tensor, t: Tensor, context: AudioContext) -> Tensor:
        """Velocity ``[B, C, T, h, w]`` in the model's dtype.

        Args:
            x: noisy latent ``[B, C, T, h, w]`` in the model's dtype; h and w multiples of the patch.
            y: reference latent, like ``x``.
            t: timesteps ``[B]`` float32 in 0..1000, used as they are: whoever samples rounds them to
                bfloat16 first where the preset says so (``bf16_timesteps``). The released bfloat16
                inference feeds 936 for 937.5.
            context: ``project_audio`` of the same rows.
        """
        grid = self._grid(x)
        rope = rope_tables(grid, self.config.head_dim, x.device)
        tau, m = self._embed_time(t)
        h = self.patch_embedding(torch.cat((x, y), dim=1)).flatten(2).transpose(1, 2)
        for block, keys, values in zip(self.blocks, context.keys, context.values, strict=True):
            h = block(h, m, rope, keys, values)
        return self._unpatchify(self.head(h, tau), grid)

    def _embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding ``tau [B, D]`` and modulation ``m [B, 6, D]``.

        The sinusoid's arguments reach 1000, hence float64 for these ``freq_dim / 2`` values per row.
        """
        half = self.config.freq_dim // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float64) / half
        angles = t.double()[:, None] * 10_000.0**-exponents
        tau = self.time_embedding(torch.cat((angles.cos(), angles.sin()), dim=1).to(self.dtype))
        return tau, self.time_projection(tau).unflatten(1, (6, -1))

    def _grid(self, x: Tensor) -> tuple[int, int, int]:
        """Tokens along frame, row and column."""
        _, rows, columns = self.config.patch_size
        frames, height, width = x.shape[2:]
        return frames, height // rows, width // columns

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """``[B, N, (p_t, p_h, p_w, channel)]`` to ``[B, channel, T, h, w]``."""
        x = tokens.unflatten(2, (*self.config.patch_size, self.config.out_dim)).unflatten(1, grid)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
