"""Colour match: each frame's Lab statistics are moved to those of the reference image, in float32.

Pixels are ``[frames, 3, positions]``. Source: FlashHead spec section 6 (the formulas and constants of
CIE Lab under D65 with sRGB's transfer curve).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
XYZ_TO_RGB = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)
WHITE = (0.95047, 1.0, 1.08883)
EPSILON, KAPPA = 0.008856, 903.3
"""Where Lab's cube root gives way to a line, and that line's slope."""


@dataclass(frozen=True, slots=True)
class ColourStatistics:
    """Mean and population standard deviation of L, a and b, each ``[frames, 3, 1]`` float32."""

    mean: Tensor
    std: Tensor


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Lab of sRGB in [0, 1] (beyond is clipped in XYZ), ``[frames, 3, positions]``."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = [plane / white for plane, white in zip(_mixed(linear, RGB_TO_XYZ), WHITE, strict=True)]
    ratio = torch.stack(xyz, dim=1).clamp(1e-8, 1.0)
    x, y, z = torch.where(ratio > EPSILON, ratio ** (1 / 3), (KAPPA * ratio + 16) / 116).unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """sRGB in [0, 1] of Lab, ``[frames, 3, positions]``."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    x, z = a / 500 + y, y - b / 200
    ratios = (
        _uncubed(x),
        torch.where(lightness > KAPPA * EPSILON, y**3, lightness / KAPPA),
        _uncubed(z),
    )
    xyz = torch.stack([ratio * white for ratio, white in zip(ratios, WHITE, strict=True)], dim=1)
    linear = torch.stack(_mixed(xyz, XYZ_TO_RGB), dim=1)
    # The root of a negative value, in the branch not taken, would only be discarded.
    curve = 1.055 * linear.clamp_min(0) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curve, 12.92 * linear).clamp(0.0, 1.0)


def lab_statistics(lab: Tensor) -> ColourStatistics:
    """Per frame and channel."""
    std, mean = torch.std_mean(lab, dim=2, correction=0, keepdim=True)
    return ColourStatistics(mean, std)


def reference_statistics(image: Tensor) -> ColourStatistics:
    """Of the portrait ``[3, H, W]`` in [-1, 1]; constant for a session."""
    return lab_statistics(rgb_to_lab(_unit(image.float()).flatten(1)[None]))


def match_colour(video: Tensor, reference: ColourStatistics, strength: float) -> Tensor:
    """``video`` with the colours of ``reference``, float32 and not quantised.

    Args:
        video: ``[1, 3, frames, H, W]`` around [-1, 1], any float dtype.
        reference: of one image.
        strength: 1 replaces the colours, 0 returns ``video`` as it is.
    """
    if strength == 0:
        return video.float()
    source = _unit(video[0].float()).transpose(0, 1)
    lab = rgb_to_lab(source.flatten(2))
    own = lab_statistics(lab)
    std = torch.where(own.std < 1e-8, 1.0, own.std)
    corrected = lab_to_rgb((lab - own.mean) * (reference.std / std) + reference.mean).view_as(source)
    blended = corrected if strength == 1 else (1 - strength) * source + strength * corrected
    return (blended * 2 - 1).transpose(0, 1)[None]


def _unit(video: Tensor) -> Tensor:
    return (video + 1) / 2


def _mixed(planes: Tensor, matrix: tuple[tuple[float, float, float], ...]) -> list[Tensor]:
    """A 3 x 3 matrix applied to the channels; spelled out because a matmul may run in TF32."""
    first, second, third = planes.unbind(1)
    return [first * row[0] + second * row[1] + third * row[2] for row in matrix]


def _uncubed(root: Tensor) -> Tensor:
    cube = root**3
    return torch.where(cube > EPSILON, cube, (116 * root - 16) / KAPPA)
