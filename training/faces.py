"""Who is portrayed: a drawn face, its clothes, light, pose and background, sampled from a seed.

Lengths within a face are in units of half its width; ``Face`` lengths named ``_share`` are parts of the
picture's side. Colours are RGB in [0, 255].
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]
HairStyle = Literal["bald", "short", "bob", "long", "bun", "curly"]
HAIR_STYLES: tuple[HairStyle, ...] = ("bald", "short", "bob", "long", "bun", "curly")


@dataclass(frozen=True, slots=True)
class Face:
    """What stays the same while a face talks.

    Attributes:
        skin, hair, lips, iris, clothes, brow: colours.
        backdrop: background colours at the top and at the bottom.
        spots: soft lights in the background: (x_share, y_share, radius_share, colour).
        half_width_share, centre_share, roll, yaw, pitch: the portrait's pose; angles in radians.
        height, jaw: of the face, in half-widths; ``jaw`` is its width at the mouth.
        eye_gap, eye_size, brow_lift, nose_length, nose_width, mouth_width, lip_fullness: features.
        hair_style, fringe, glasses, beard: what is worn; ``fringe`` and ``beard`` are in [0, 1].
        light: direction (x, y) and strength of the shading.
        outline: opacity of drawn contours in [0, 1].
        softness: of the shading, 0 is flat colours.
    """

    skin: Colour
    hair: Colour
    lips: Colour
    iris: Colour
    clothes: Colour
    brow: Colour
    backdrop: tuple[Colour, Colour]
    spots: tuple[tuple[float, float, float, Colour], ...]
    half_width_share: float
    centre_share: tuple[float, float]
    roll: float
    yaw: float
    pitch: float
    height: float
    jaw: float
    eye_gap: float
    eye_size: float
    brow_lift: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_fullness: float
    hair_style: HairStyle
    fringe: float
    glasses: bool
    beard: float
    light: tuple[float, float, float]
    outline: float
    softness: float


def sample_face(random: np.random.Generator) -> Face:
    """A face, the same for the same state of ``random``."""

    def between(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    skin, hair = _skin(random), _hair(random)
    return Face(
        skin=skin,
        hair=hair,
        lips=_mixed(skin, (between(150, 215), between(50, 95), between(60, 105)), between(0.45, 0.9)),
        iris=_hsv(between(0.05, 0.62), between(0.25, 0.7), between(0.25, 0.65)),
        clothes=_hsv(between(0, 1), between(0, 0.75), between(0.15, 0.97)),
        brow=_mixed(hair, (40, 28, 24), between(0.2, 0.8)),
        backdrop=_backdrop(random),
        spots=_spots(random),
        half_width_share=between(0.19, 0.24),
        centre_share=(0.5 + between(-0.03, 0.03), 0.44 + between(-0.03, 0.03)),
        roll=between(-0.07, 0.07),
        yaw=between(-0.15, 0.15),
        pitch=between(-0.08, 0.08),
        height=between(1.25, 1.45),
        jaw=between(0.66, 0.86),
        eye_gap=between(0.38, 0.47),
        eye_size=between(0.15, 0.21),
        brow_lift=between(0.24, 0.33),
        nose_length=between(0.42, 0.56),
        nose_width=between(0.13, 0.22),
        mouth_width=between(0.33, 0.46),
        lip_fullness=between(0.07, 0.13),
        hair_style=HAIR_STYLES[random.choice(6, p=(0.08, 0.24, 0.24, 0.22, 0.1, 0.12))],
        fringe=between(0, 1),
        glasses=bool(random.random() < 0.2),
        beard=between(0.3, 0.9) if random.random() < 0.15 else 0.0,
        light=(between(-1, 1), between(-1, 0.4), between(0.05, 0.4)),
        outline=between(0.3, 0.9) if random.random() < 0.25 else 0.0,
        softness=between(0.0, 1.0),
    )


def _skin(random: np.random.Generator) -> Colour:
    """Along the line from dark to light skin, a little to either side."""
    tones = np.array([(92, 58, 42), (146, 98, 70), (196, 146, 112), (232, 188, 158), (248, 216, 196)], float)
    place = random.uniform(0.3, len(tones) - 1.001)
    low = int(place)
    tone = tones[low] + (place - low) * (tones[low + 1] - tones[low]) + random.normal(0, 5, 3)
    return _colour(tone)


def _hair(random: np.random.Generator) -> Colour:
    tones = np.array(
        [
            (24, 20, 22),
            (58, 38, 28),
            (98, 62, 40),
            (150, 104, 58),
            (206, 170, 108),
            (150, 70, 36),
            (170, 168, 170),
        ],
        float,
    )
    if random.random() < 0.06:
        return _hsv(random.uniform(0, 1), 0.6, random.uniform(0.4, 0.8))
    return _colour(tones[random.integers(len(tones))] + random.normal(0, 8, 3))


def _backdrop(random: np.random.Generator) -> tuple[Colour, Colour]:
    hue, value = random.uniform(0, 1), random.uniform(0.2, 0.97)
    shift = random.uniform(-0.35, 0.35)
    top = _hsv(hue, random.uniform(0, 0.5), value)
    bottom = _hsv(
        hue + random.uniform(-0.08, 0.08), random.uniform(0, 0.5), min(max(value + shift, 0.1), 1.0)
    )
    return top, bottom


def _spots(random: np.random.Generator) -> tuple[tuple[float, float, float, Colour], ...]:
    count = int(random.choice(4, p=(0.4, 0.25, 0.2, 0.15)))
    return tuple(
        (
            float(random.uniform(0, 1)),
            float(random.uniform(0, 0.9)),
            float(random.uniform(0.08, 0.35)),
            _hsv(random.uniform(0, 1), random.uniform(0, 0.5), random.uniform(0.2, 1)),
        )
        for _ in range(count)
    )


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    return _colour(np.array(one) * (1 - share) + np.array(other) * share)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0, 255).tolist()
    return red, green, blue
