"""Frames as they leave the engine: uint8 RGB, then planar yuv420p, made on the engine's device."""

from __future__ import annotations

import torch
from torch import Tensor

from serve_app.model.presets import Uint8Rule

_ROUNDING: dict[Uint8Rule, float] = {"truncate": 0.0, "round": 0.5}


def to_uint8(video: Tensor, rule: Uint8Rule) -> Tensor:
    """``[1, 3, frames, H, W]`` in [-1, 1] (beyond is clipped) as ``[frames, 3, H, W]`` uint8.

    ``truncate`` is what the released inference does; ``round`` does not darken by half a level.
    """
    levels = 255 * ((video[0] + 1) / 2).clamp(0.0, 1.0) + _ROUNDING[rule]
    return levels.to(torch.uint8).transpose(0, 1).contiguous()


def yuv420p(rgb: Tensor) -> Tensor:
    """BT.601 limited range (smpte170m) of ``[frames, 3, H, W]`` uint8, H and W even.

    Returns ``[frames, H * 3 // 2, W]`` uint8, contiguous: per frame the Y plane, then U, then V (I420).
    Chroma is the mean of 2 x 2 pixels. The arithmetic is exact in integers and rounded once, halves
    up, so every device gives the same bytes:

    Y = 16 + 219/255 (0.299 R + 0.587 G + 0.114 B), U = 128 + 224/255 (B - Y') / 1.772 and
    V = 128 + 224/255 (R - Y') / 1.402 with Y' the bracket of Y.

    Raises:
        ValueError: another dtype or shape.
    """
    frames, channels, height, width = rgb.shape
    if rgb.dtype != torch.uint8 or channels != 3 or height % 2 or width % 2:
        shape = list(rgb.shape)
        raise ValueError(f"frames are {rgb.dtype}{shape}, expected uint8 [frames, 3, even, even]")
    out = torch.empty(frames, height * 3 // 2, width, dtype=torch.uint8, device=rgb.device)
    chroma = out[:, height:].view(frames, 2, height // 2, width // 2)
    red, green, blue = rgb.int().unbind(1)
    out[:, :height] = 16 + _rounded(73 * (299 * red + 587 * green + 114 * blue), 85_000)
    red, green, blue = (_square_sums(plane) for plane in (red, green, blue))
    chroma[:, 0] = 128 + _rounded(14 * (886 * blue - 299 * red - 587 * green), 443 * 255)
    chroma[:, 1] = 128 + _rounded(28 * (701 * red - 587 * green - 114 * blue), 701 * 255)
    return out


def _rounded(numerator: Tensor, denominator: int) -> Tensor:
    """The nearest integer of a quotient, halves up."""
    return torch.div(2 * numerator + denominator, 2 * denominator, rounding_mode="floor")


def _square_sums(plane: Tensor) -> Tensor:
    """Sums of 2 x 2 pixels."""
    rows = plane[:, 0::2] + plane[:, 1::2]
    return rows[:, :, 0::2] + rows[:, :, 1::2]
