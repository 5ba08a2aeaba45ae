"""Draws a face that talks: one frame from who is portrayed and what the face is doing.

Everything is a filled shape in the face's own coordinates (x to the right, y down, the unit half the
face's width, the origin between the eyes), turned by the pose as if it lay on a rounded head. Drawn at
twice the size, then halved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from training.faces import Colour, Face

_SOFTNESS = 1 / 128
"""Standard deviation of a blur over the picture, in sides. The VAE makes 112 numbers of 24576: of lines as
sharp as pixels it keeps 5 dB less."""
_OVERSAMPLING = 2
_SUBPIXEL_BITS = 4
MOUTH_Y = 0.62
"""Where the lips meet, in half-widths below the eyes."""
DROP = 0.36
"""How far the lower lip goes down from a closed to a wide open mouth, in half-widths."""
INSIDE: Colour = (52, 16, 22)
"""The dark of an open mouth, whatever the face."""


@dataclass(frozen=True, slots=True)
class Expression:
    """What a face does in one frame.

    Attributes:
        opening: of the mouth in [0, 1].
        width: of the mouth in [-1, 1], 1 is spread.
        rounding: of the lips in [0, 1].
        blink: closedness of the eyes in [0, 1].
        brows: how far they are raised in [-1, 1].
        roll, yaw, pitch: of the head in radians, added to the portrait's.
        shift: of the head (x, y) in half-widths.
    """

    opening: float = 0.0
    width: float = 0.0
    rounding: float = 0.0
    blink: float = 0.0
    brows: float = 0.0
    roll: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)


class Artist:
    """Draws one face at one size; what never moves is drawn once.

    Args:
        face: who is portrayed.
        side: pixels of the square picture.
    """

    def __init__(self, face: Face, side: int) -> None:
        self._face = face
        self._side = side
        self._drawn = side * _OVERSAMPLING
        self._background = self._draw_background()
        self._shading = self._draw_shading()

    def draw(self, expression: Expression) -> np.ndarray:
        """``[side, side, 3]`` uint8 RGB."""
        sketch = Sketch(self._background.copy(), self._face, expression)
        for part in _PARTS:
            part(sketch)
        small = cv2.resize(sketch.pixels, (self._side, self._side), interpolation=cv2.INTER_AREA)
        lit = cv2.multiply(small, self._shading, dtype=cv2.CV_8U)
        return cv2.GaussianBlur(lit, (0, 0), _SOFTNESS * self._side)

    def features(self, expression: Expression) -> np.ndarray:
        """``[3, 2]`` pixels (x, y): the middle of the mouth, the left and the right eye."""
        gap = self._face.eye_gap
        points = np.array([(0.0, MOUTH_Y + 0.5 * DROP * expression.opening), (-gap, 0.0), (gap, 0.0)])
        return Sketch(self._background, self._face, expression).place(points, 0.1) / _OVERSAMPLING

    def _draw_background(self) -> np.ndarray:
        """Smooth, so drawn small and enlarged."""
        side, face = self._drawn // 8, self._face
        ramp = np.linspace(0, 1, side)[:, np.newaxis, np.newaxis]
        top, bottom = (np.array(colour) for colour in face.backdrop)
        pixels = np.broadcast_to(top + (bottom - top) * ramp, (side, side, 3))
        y, x = np.mgrid[:side, :side] / side
        for spot_x, spot_y, radius, colour in face.spots:
            weight = 0.7 * np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / radius**2)[..., np.newaxis]
            pixels = pixels + weight * (np.array(colour) - pixels)
        enlarged = cv2.resize(pixels, (self._drawn, self._drawn), interpolation=cv2.INTER_LINEAR)
        return np.clip(enlarged, 0, 255).astype(np.uint8)

    def _draw_shading(self) -> np.ndarray:
        """``[side, side, 3]`` float32 around 1: the light over the whole picture."""
        x, y, strength = self._face.light
        rows, columns = np.mgrid[-1 : 1 : self._side * 1j, -1 : 1 : self._side * 1j]
        light = 1 + strength * 0.4 * (x * columns + y * rows)
        return np.repeat(light[..., np.newaxis], 3, axis=2).astype(np.float32)


class Sketch:
    """A frame being drawn.

    Args:
        pixels: ``[drawn side, drawn side, 3]`` uint8, painted over.
        face, expression: what to draw.
    """

    def __init__(self, pixels: np.ndarray, face: Face, expression: Expression) -> None:
        self.pixels = pixels
        self.face = face
        self.now = expression
        side = len(pixels)
        self._unit = face.half_width_share * side
        self._centre = np.array(face.centre_share) * side + np.array(expression.shift) * self._unit
        roll = face.roll + expression.roll
        self._turn = np.array([(np.cos(roll), np.sin(roll)), (-np.sin(roll), np.cos(roll))])
        self._yaw = face.yaw + expression.yaw
        self._pitch = face.pitch + expression.pitch

    def place(self, points: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Pixels ``[n, 2]`` of points on the head; ``lift`` brings them nearer than its surface."""
        x, y = points[:, 0], points[:, 1]
        depth = 0.75 * np.sqrt(np.clip(1 - 0.8 * x**2 - 0.3 * (y - 0.1) ** 2, 0, 1)) + lift
        turned = np.stack(
            [x * np.cos(self._yaw) + depth * np.sin(self._yaw), y + depth * np.sin(self._pitch)], 1
        )
        return (turned @ self._turn) * self._unit + self._centre

    def fill(self, points: np.ndarray, colour: Colour, lift: float = 0.0, contour: bool = False) -> None:
        """Paint the inside of a polygon on the head."""
        self.fill_placed(self.place(points, lift), colour)
        if contour and self.face.outline:
            self.line(
                np.vstack([points, points[:1]]), _darker(colour, 1 - 0.75 * self.face.outline), 0.03, lift
            )

    def fill_placed(self, pixels: np.ndarray, colour: Colour) -> None:
        """Paint the inside of a polygon given in pixels."""
        corners = np.round(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(self.pixels, [corners], colour, cv2.LINE_AA, _SUBPIXEL_BITS)

    def line(self, points: np.ndarray, colour: Colour, width: float, lift: float = 0.0) -> None:
        """Draw along points on the head, ``width`` half-widths wide."""
        corners = np.round(self.place(points, lift) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        thickness = max(1, round(width * self._unit))
        cv2.polylines(self.pixels, [corners], False, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


_TURNS = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURNS), np.sin(_TURNS)], 1)


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    return _CIRCLE * (half_width, half_height) + (x, y)


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return min(red * factor, 255), min(green * factor, 255), min(blue * factor, 255)


def _blend(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def _chin(sketch: Sketch) -> float:
    """The chin's y: a face's height below the eyes, lower while the jaw is open."""
    return sketch.face.height - 0.2 + 0.3 * DROP * sketch.now.opening


def _outline(sketch: Sketch) -> np.ndarray:
    """The face from the crown round the chin."""
    face, chin = sketch.face, _chin(sketch)
    right = [(0.0, -1.0), (0.5, -0.92), (0.86, -0.55), (1.0, -0.05), (0.96, 0.3)]
    right += [
        (face.jaw, 0.72 * chin),
        (0.62 * face.jaw, 0.92 * chin),
        (0.26 * face.jaw, chin),
        (0.0, 1.02 * chin),
    ]
    return _mirrored(np.array(right))


def _mirrored(right: np.ndarray) -> np.ndarray:
    """A closed, smoothed curve of its right half, given from top to bottom."""
    left = right[-2:0:-1] * (-1, 1)
    return _smooth(np.vstack([right, left]))


def _smooth(corners: np.ndarray) -> np.ndarray:
    """Chaikin's corner cutting, twice."""
    for _ in range(2):
        after = np.roll(corners, -1, axis=0)
        corners = np.stack([0.75 * corners + 0.25 * after, 0.25 * corners + 0.75 * after], 1).reshape(-1, 2)
    return corners


def _hair_behind(sketch: Sketch) -> None:
    face = sketch.face
    dark = _darker(face.hair, 0.72)
    if face.hair_style in ("bob", "long"):
        end = 1.15 if face.hair_style == "bob" else 2.3
        right = [
            (0.0, -1.3),
            (0.7, -1.2),
            (1.18, -0.7),
            (1.28, 0.0),
            (1.3, 0.6 * end),
            (1.22, end),
            (0.6, end),
        ]
        sketch.fill(_mirrored(np.array([*right, (0.0, 0.8)])), dark, -0.3, contour=True)
    elif face.hair_style == "curly":
        for angle in np.linspace(0.75 * np.pi, 2.25 * np.pi, 11):
            sketch.fill(_ellipse(1.12 * np.cos(angle), -0.2 + 1.02 * np.sin(angle), 0.36, 0.36), dark, -0.3)
    elif face.hair_style == "bun":
        sketch.fill(_ellipse(0, -1.35, 0.4, 0.34), dark, -0.3, contour=True)


def _body(sketch: Sketch) -> None:
    """Neck and shoulders: they follow the head a little, and do not turn."""
    face, side = sketch.face, len(sketch.pixels)
    unit = face.half_width_share * side
    head_x, head_y = np.array(face.centre_share) * side
    sway = 0.4 * np.array(sketch.now.shift) * unit
    base_y = head_y + (face.height + 0.25) * unit

    def at(points: Sequence[tuple[float, float]]) -> np.ndarray:
        return np.array(points) * unit + (head_x + sway[0], base_y + sway[1])

    neck_top = sketch.place(np.array([(0.55 * face.jaw + 0.08, 0.55), (-0.55 * face.jaw - 0.08, 0.55)]), -0.3)
    shade = _darker(face.skin, 0.82)
    sketch.fill_placed(np.vstack([neck_top, at([(-0.62, 0.35), (0.62, 0.35)])]), shade)
    sketch.fill_placed(_smooth(at([(-0.6, 0.2), (0.6, 0.2), (0.3, 0.62), (-0.3, 0.62)])), shade)
    shoulders = [(-0.52, 0.12), (-0.3, 0.5), (0.3, 0.5), (0.52, 0.12), (1.5, 0.5), (2.05, 1.2), (2.1, 4.0)]
    outline = at([*shoulders, (-2.1, 4.0), (-2.05, 1.2), (-1.5, 0.5)])
    sketch.fill_placed(outline, face.clothes)


def _head(sketch: Sketch) -> None:
    face = sketch.face
    for side in (-1, 1):
        sketch.fill(_ellipse(side * 1.02, 0.14, 0.13, 0.22), _darker(face.skin, 0.9), -0.35, contour=True)
    outline = _outline(sketch)
    sketch.fill(outline, _darker(face.skin, 1 - 0.13 * face.softness), contour=True)
    for step in (0.3, 0.65, 1.0):
        inner = outline * (1 - 0.16 * step) + (-0.06 * step * face.light[0], 0.02)
        sketch.fill(inner, _darker(face.skin, 1 - 0.13 * face.softness * (1 - step)))
    flush = _blend(face.skin, face.lips, 0.16 * face.softness)
    for side in (-1, 1):
        sketch.fill(_ellipse(side * 0.55, 0.42, 0.2, 0.15), flush)


def _nose(sketch: Sketch) -> None:
    face = sketch.face
    length, width = face.nose_length, face.nose_width
    shade = _darker(face.skin, 0.86)
    sketch.fill(
        np.array([(-0.05, 0.0), (0.05, 0.0), (width, length), (-width, length)]),
        _darker(face.skin, 0.96),
        0.1,
    )
    sketch.fill(_ellipse(0, length, width, 0.075), shade, 0.2)
    sketch.fill(_ellipse(0, length - 0.06, 0.7 * width, 0.08), _darker(face.skin, 1.05), 0.25)
    for side in (-1, 1):
        sketch.fill(_ellipse(side * 0.55 * width, length + 0.02, 0.04, 0.028), _darker(face.skin, 0.5), 0.18)


def _beard(sketch: Sketch) -> None:
    face = sketch.face
    if not face.beard:
        return
    chin, colour = _chin(sketch), _blend(face.skin, face.hair, face.beard)
    right = [
        (0.0, 0.46),
        (0.5, 0.5),
        (0.95 * face.jaw, 0.55),
        (0.9 * face.jaw, 0.75 * chin),
        (0.5 * face.jaw, chin),
    ]
    sketch.fill(_mirrored(np.array([*right, (0.0, 1.04 * chin)])), colour)


def _mouth(sketch: Sketch) -> None:
    """Lips around an opening with teeth and tongue."""
    face, now = sketch.face, sketch.now
    half = face.mouth_width * (1 + 0.16 * now.width - 0.42 * now.rounding)
    full = face.lip_fullness * (1 + 0.35 * now.rounding)
    drop = DROP * now.opening
    lift = 0.1 + 0.06 * now.rounding
    top, corner = MOUTH_Y - 0.12 * drop, MOUTH_Y + 0.25 * drop
    upper = [
        (-half, corner),
        (-0.55 * half, top - 0.75 * full),
        (-0.15 * half, top - full),
        (0, top - 0.8 * full),
    ]
    upper += [(-x, y) for x, y in upper[-2::-1]]
    lower = [(0.55 * half, MOUTH_Y + drop + 0.85 * full), (0, MOUTH_Y + drop + 1.15 * full)]
    lower += [(-0.55 * half, MOUTH_Y + drop + 0.85 * full)]
    sketch.fill(_smooth(np.array(upper + lower)), face.lips, lift, contour=True)
    inner = 0.86 * half
    above = np.array([(-inner, corner), (-0.5 * inner, top), (0.5 * inner, top), (inner, corner)])
    below = np.array(
        [(0.6 * inner, MOUTH_Y + 0.9 * drop), (0, MOUTH_Y + drop), (-0.6 * inner, MOUTH_Y + 0.9 * drop)]
    )
    sketch.line(above, _darker(face.lips, 0.55), 0.025, lift)
    if drop < 0.015:
        return
    sketch.fill(np.vstack([above, below]), INSIDE, lift)
    if now.opening > 0.3:
        tongue = _ellipse(0, MOUTH_Y + 0.82 * drop, 0.55 * inner, 0.2 * drop)
        sketch.fill(tongue, (150, 62, 70), lift - 0.02)
    if now.rounding < 0.6:
        height = min(0.3 * drop, 0.07)
        teeth = np.array(
            [
                (-0.62 * inner, top),
                (0.62 * inner, top),
                (0.5 * inner, top + height),
                (-0.5 * inner, top + height),
            ]
        )
        sketch.fill(teeth, (228, 222, 214), lift)


def _eyes(sketch: Sketch) -> None:
    face, now = sketch.face, sketch.now
    open_half = 0.56 * face.eye_size * (1 - now.blink)
    for side in (-1, 1):
        x = side * face.eye_gap
        sketch.fill(
            _ellipse(x, -0.02, 1.25 * face.eye_size, 0.8 * face.eye_size), _darker(face.skin, 0.93), 0.02
        )
        if open_half > 0.012:
            sketch.fill(_ellipse(x, 0.0, face.eye_size, open_half), (240, 240, 238), 0.02)
            iris = min(0.5 * face.eye_size, 1.05 * open_half)
            sketch.fill(_ellipse(x, 0.0, 0.5 * face.eye_size, iris), face.iris, 0.02)
            sketch.fill(
                _ellipse(x, 0.0, 0.24 * face.eye_size, min(0.24 * face.eye_size, iris)), (18, 14, 14), 0.02
            )
        lid = np.stack(
            [x + face.eye_size * np.linspace(-1.05, 1.05, 7), -open_half * np.sin(np.linspace(0, np.pi, 7))],
            1,
        )
        sketch.line(lid, _darker(face.brow, 0.7), 0.045, 0.02)
        height = -face.brow_lift - 0.07 * now.brows
        arch = np.stack(
            [x + side * np.linspace(-0.25, 0.25, 6), height - 0.06 * np.sin(np.linspace(0.3, np.pi, 6))], 1
        )
        sketch.line(arch, face.brow, 0.085, 0.05)


def _hair_before(sketch: Sketch) -> None:
    face = sketch.face
    if face.hair_style == "bald":
        return
    line = -0.95 + 0.5 * face.fringe
    sides = 0.25 if face.hair_style in ("bob", "long") else -0.15
    crown = [(0.0, -1.32), (0.62, -1.22), (1.06, -0.75), (1.12, -0.3), (1.06, sides)]
    parting = 0.5 if face.fringe < 0.5 else 0.0
    inner = [
        (0.92, min(sides, -0.1)),
        (0.85, -0.5),
        (0.5 + 0.2 * parting, line),
        (parting * 0.5, line - 0.06),
    ]
    right = np.array(crown + inner)
    left = right[::-1] * (-1, 1)
    shape = _smooth(np.vstack([right, left[:-1]]))
    sketch.fill(shape, face.hair, -0.05, contour=True)
    shine = np.array([(-0.7, -1.0), (-0.2, -1.17), (0.35, -1.15), (0.3, -1.08), (-0.2, -1.1), (-0.62, -0.94)])
    sketch.fill(_smooth(shine), _darker(face.hair, 1 + 0.35 * face.softness), -0.05)


def _glasses(sketch: Sketch) -> None:
    face = sketch.face
    if not face.glasses:
        return
    frame = (36, 30, 34)
    for side in (-1, 1):
        ring = _ellipse(side * face.eye_gap, 0.03, 0.3, 0.24)
        sketch.line(np.vstack([ring, ring[:1]]), frame, 0.05, 0.12)
    bridge = face.eye_gap - 0.3
    sketch.line(np.array([(-bridge, 0.0), (bridge, 0.0)]), frame, 0.05, 0.15)


_PARTS = (_hair_behind, _body, _head, _nose, _beard, _mouth, _eyes, _hair_before, _glasses)
"""From back to front."""
