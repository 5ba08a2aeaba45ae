"""Rotary position embedding over the (frame, row, column) grid of latent tokens, in real arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, each ``[tokens, 1, head_dim / 2]`` float32."""

THETA = 10_000.0


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that encode frame, row and column: 44, 42, 42 of 128. Only even sizes work."""
    third = head_dim // 3
    return head_dim - 2 * third, third, third


def rope_tables(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Rope:
    """The tables for a ``grid`` of (frames, rows, columns) tokens, the column fastest.

    Positions start at 0 in every chunk. float32 instead of the reference's complex float64 changes a
    bfloat16 result by at most one unit in the last place, in 1 of 80,000 values (FlashHead spec
    section 3).
    """
    angles = [
        _axis_angles(length, channels, device).view(*_along(axis), channels // 2).expand(*grid, -1)
        for axis, (length, channels) in enumerate(zip(grid, axis_sizes(head_dim), strict=True))
    ]
    flat = torch.cat(angles, dim=-1).flatten(0, 2).unsqueeze(1)
    return flat.cos(), flat.sin()


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """``x [batch, tokens, heads, head_dim]`` with channel pairs (2j, 2j + 1) rotated; same dtype.

    The rotation itself is float32.
    """
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def _axis_angles(length: int, channels: int, device: torch.device) -> Tensor:
    """``[length, channels / 2]``: position times frequency ``THETA ** (-2j / channels)``."""
    exponents = torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels
    positions = torch.arange(length, device=device, dtype=torch.float32)
    return positions[:, None] * THETA**-exponents


def _along(axis: int) -> tuple[int, ...]:
    """The view that puts a vector along one of three axes."""
    return tuple(-1 if i == axis else 1 for i in range(3))
