"""Makes the shipped example: draws portrait.png, and has espeak-ng speak speech.wav.

Run it in the project's environment: ``python examples/make_examples.py``. Nobody is portrayed; the face
is drawn below, curve by curve. The speech is 24 kHz mono 16-bit, as F5-TTS gives it.
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageDraw, ImageFilter

HERE = Path(__file__).parent
SIDE = 512
OVERSAMPLING = 3
SPEECH_RATE_HZ = 24_000
TEXT = (
    "Hello! I am a portrait that has learned to speak. FlashHead hears my voice, a second at a time, "
    "and draws a face to match."
)

Point = tuple[float, float]
Colour = tuple[int, int, int]

SKIN, SKIN_SHADE, SKIN_LIGHT = (236, 188, 160), (176, 112, 88), (255, 224, 200)
HAIR, HAIR_SHADE, HAIR_LIGHT = (74, 46, 34), (38, 22, 18), (132, 88, 60)
LIP, LIP_SHADE, LIP_LIGHT = (196, 92, 92), (132, 52, 58), (232, 142, 138)
SWEATER, SWEATER_SHADE, SWEATER_LIGHT = (52, 116, 128), (28, 72, 84), (96, 164, 172)
IRIS, IRIS_DARK = (98, 72, 44), (48, 32, 22)


class Canvas:
    """A picture painted in soft layers; coordinates are pixels of the finished 512x512."""

    def __init__(self) -> None:
        rows = np.linspace(0, 1, SIDE * OVERSAMPLING)[:, np.newaxis, np.newaxis]
        top, bottom = np.array((206, 214, 222.0)), np.array((150, 160, 172.0))
        self.pixels = np.broadcast_to(top + (bottom - top) * rows, (len(rows), len(rows), 3)).copy()

    def paint(
        self,
        mask: np.ndarray,
        colour: Colour,
        opacity: float = 1.0,
    ) -> None:
        """Lay ``colour`` over the picture where ``mask`` ``[side, side]`` in [0, 1] says."""
        weight = (mask * opacity)[..., np.newaxis]
        self.pixels += weight * (np.array(colour, float) - self.pixels)

    def image(self) -> Image.Image:
        """The finished picture."""
        full = Image.fromarray(np.clip(self.pixels, 0, 255).round().astype(np.uint8))
        return full.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def blob(points: Sequence[Point], blur: float = 0.6) -> np.ndarray:
    """The inside of a smooth closed curve through ``points``, its edge ``blur`` pixels soft."""
    return _filled(_closed_curve(points), blur)


def ellipse(centre: Point, radii: Point, blur: float = 0.6) -> np.ndarray:
    """The inside of an ellipse."""
    turns = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return _filled(np.array(centre) + np.array(radii) * np.stack([np.cos(turns), np.sin(turns)], 1), blur)


def stroke(points: Sequence[Point], widths: Sequence[float], blur: float = 0.6) -> np.ndarray:
    """A brush drawn along ``points``, as wide at each as ``widths`` says."""
    path, width = np.array(points, float), np.array(widths, float)
    steps = np.linspace(0, len(path) - 1, 24 * len(path))
    x, y, w = (_smooth(values, steps) for values in (path[:, 0], path[:, 1], width))
    normal = np.stack([-np.gradient(y), np.gradient(x)], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    line, offset = np.stack([x, y], 1), normal * w[:, np.newaxis] / 2
    return _filled(np.concatenate([line + offset, (line - offset)[::-1]]), blur)


def mirrored(points: Sequence[Point], axis: float = 256.0) -> list[Point]:
    """The same on the other side of the face."""
    return [(2 * axis - x, y) for x, y in points]


def _filled(outline: np.ndarray, blur: float) -> np.ndarray:
    layer = Image.new("L", (SIDE * OVERSAMPLING,) * 2)
    ImageDraw.Draw(layer).polygon([tuple(point) for point in outline * OVERSAMPLING], fill=255)
    softened = layer.filter(ImageFilter.GaussianBlur(blur * OVERSAMPLING))
    return np.asarray(softened, float) / 255


def _closed_curve(points: Sequence[Point]) -> np.ndarray:
    corners = np.array([points[-1], *points, points[0], points[1]], float)
    steps = np.linspace(1, len(points) + 1, 24 * len(points), endpoint=False)
    return np.stack([_smooth(corners[:, 0], steps), _smooth(corners[:, 1], steps)], 1)


def _smooth(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A Catmull-Rom spline through ``values`` at 0, 1, 2, ..."""
    index = np.clip(steps.astype(int), 0, len(values) - 2)
    t = steps - index
    before, here, after, beyond = (values[np.clip(index + i, 0, len(values) - 1)] for i in (-1, 0, 1, 2))
    return 0.5 * (
        2 * here
        + (after - before) * t
        + (2 * before - 5 * here + 4 * after - beyond) * t**2
        + (3 * here - before - 3 * after + beyond) * t**3
    )


FACE = [(256, 84), (312, 94), (346, 134), (354, 190), (349, 240), (332, 288), (302, 326), (256, 344)]
FACE += mirrored(FACE[1:-1])[::-1]


def draw_portrait() -> Image.Image:
    """A friendly face, frontal, head and shoulders."""
    canvas = Canvas()
    _hair_behind(canvas)
    _body(canvas)
    _head(canvas)
    for side in (1, -1):
        _eye(canvas, side)
        _eyebrow(canvas, side)
    _nose(canvas)
    _mouth(canvas)
    _fringe(canvas)
    return canvas.image()


def _x(side: int, distance: float) -> float:
    """An x on the left (-1) or right (1) of the face's axis."""
    return 256 + side * distance


def _hair_behind(canvas: Canvas) -> None:
    canvas.paint(ellipse((256, 250), (190, 230), 40), (240, 242, 244), 0.5)
    outline = [(256, 34), (322, 44), (374, 92), (392, 170), (394, 250), (402, 316), (394, 366), (362, 392)]
    outline += [(322, 380), (296, 352)]
    hair = blob(outline + mirrored(outline[1:])[::-1], 1.2)
    canvas.paint(hair, HAIR)
    canvas.paint(hair * ellipse((256, 330), (106, 110), 26), HAIR_SHADE, 0.9)
    for side in (1, -1):
        for index in range(7):
            x, y = 88 + 8 * index, 384 - 4 * abs(index - 3)
            line = [(_x(side, x), 130), (_x(side, x + 6), 230), (_x(side, x + 9), 310), (_x(side, x - 6), y)]
            tone = HAIR_SHADE if index % 2 else HAIR_LIGHT
            canvas.paint(hair * stroke(line, (1, 5, 6, 1), 2), tone, 0.4)


def _body(canvas: Canvas) -> None:
    neck = blob([(212, 290), (300, 290), (304, 390), (330, 420), (256, 470), (182, 420), (208, 390)], 1)
    canvas.paint(neck, SKIN)
    canvas.paint(neck * ellipse((256, 340), (70, 44), 12), SKIN_SHADE, 0.75)
    canvas.paint(neck * ellipse((300, 400), (26, 60), 14), SKIN_SHADE, 0.35)
    shoulders = [(256, 452), (306, 432), (338, 408), (404, 428), (456, 462), (488, 540), (256, 560)]
    sweater = blob(shoulders + mirrored(shoulders[1:-1])[::-1], 1)
    canvas.paint(sweater, SWEATER)
    canvas.paint(sweater * ellipse((160, 470), (80, 40), 24), SWEATER_LIGHT, 0.6)
    canvas.paint(sweater * ellipse((400, 530), (120, 60), 30), SWEATER_SHADE, 0.8)
    collar = [(176, 414), (206, 446), (256, 462), (306, 446), (336, 414)]
    canvas.paint(stroke(collar, (10, 13, 14, 13, 10), 1), SWEATER_SHADE, 0.9)
    canvas.paint(stroke([(x, y - 3) for x, y in collar], (5, 6, 7, 6, 5), 1), SWEATER_LIGHT, 0.7)


def _head(canvas: Canvas) -> None:
    for side in (1, -1):
        ear = ellipse((_x(side, 98), 218), (14, 28), 1)
        canvas.paint(ear, SKIN)
        canvas.paint(ear * ellipse((_x(side, 96), 222), (7, 18), 3), SKIN_SHADE, 0.6)
    face = blob(FACE, 0.8)
    canvas.paint(face, SKIN)
    rim = face * (1 - blob([(256 + 0.86 * (x - 256), 214 + 0.9 * (y - 214)) for x, y in FACE], 16))
    canvas.paint(rim, SKIN_SHADE, 0.55)
    canvas.paint(face * ellipse((326, 236), (38, 100), 22), SKIN_SHADE, 0.28)
    canvas.paint(face * ellipse((238, 136), (56, 30), 20), SKIN_LIGHT, 0.65)
    canvas.paint(face * ellipse((256, 326), (26, 12), 8), SKIN_LIGHT, 0.4)
    for side in (1, -1):
        canvas.paint(face * ellipse((_x(side, 56), 246), (24, 17), 12), (228, 120, 108), 0.34)
        canvas.paint(face * ellipse((_x(side, 54), 228), (20, 9), 8), SKIN_LIGHT, 0.4)
        canvas.paint(face * ellipse((_x(side, 44), 190), (30, 17), 9), SKIN_SHADE, 0.34)


def _eye(canvas: Canvas, side: int) -> None:
    corners = [(21, 202), (31, 191), (46, 186), (61, 190), (71, 200), (59, 208), (46, 210.5), (32, 208)]
    white = blob([(_x(side, x), y) for x, y in corners], 0.6)
    canvas.paint(white, (244, 240, 236))
    centre = (_x(side, 45.5), 198)
    canvas.paint(white * ellipse(centre, (12.5, 12.5), 0.7), IRIS_DARK)
    canvas.paint(white * ellipse((centre[0], centre[1] + 1.5), (10.5, 10), 1.2), IRIS)
    canvas.paint(white * ellipse((centre[0], centre[1] + 4), (6.5, 4.5), 2), (152, 112, 66), 0.8)
    canvas.paint(white * ellipse(centre, (5, 5), 0.5), (14, 10, 10))
    lid = [(_x(side, x), y) for x, y in corners[:5]]
    canvas.paint(white * stroke([(x, y + 3) for x, y in lid], (4, 7, 8, 7, 4), 2), (90, 70, 70), 0.55)
    canvas.paint(ellipse((centre[0] - 3.5, centre[1] - 4), (2.4, 2.4), 0.5), (255, 255, 255), 0.95)
    canvas.paint(stroke(lid, (1.5, 3, 3.8, 4.2, 2.6), 0.6), (40, 24, 22))
    canvas.paint(stroke([lid[-2], lid[-1], (_x(side, 76), 195)], (3, 3.4, 0.8), 0.6), (40, 24, 22))
    crease = [(_x(side, 26), 190), (_x(side, 46), 179), (_x(side, 69), 188)]
    canvas.paint(stroke(crease, (0.8, 2.2, 0.8), 0.9), SKIN_SHADE, 0.8)
    under = [(_x(side, 28), 208), (_x(side, 46), 213), (_x(side, 66), 206)]
    canvas.paint(stroke(under, (0.6, 1.8, 0.6), 1), SKIN_SHADE, 0.6)


def _eyebrow(canvas: Canvas, side: int) -> None:
    line = [(_x(side, 20), 166), (_x(side, 38), 158), (_x(side, 60), 157), (_x(side, 80), 168)]
    canvas.paint(stroke(line, (5.5, 7.5, 6, 1.5), 1.5), HAIR, 0.85)
    canvas.paint(stroke([(x, y + 1) for x, y in line], (3, 4, 3, 1), 1.2), HAIR_SHADE, 0.35)


def _nose(canvas: Canvas) -> None:
    canvas.paint(stroke([(255, 178), (254, 210), (254, 240)], (7, 8, 12), 4), SKIN_LIGHT, 0.7)
    canvas.paint(stroke([(270, 182), (268, 214), (274, 242)], (5, 7, 8), 4), SKIN_SHADE, 0.42)
    canvas.paint(stroke([(243, 186), (245, 214), (238, 242)], (3, 4, 5), 4), SKIN_SHADE, 0.25)
    canvas.paint(ellipse((256, 254), (24, 9), 4.5), SKIN_SHADE, 0.4)
    canvas.paint(ellipse((254, 244), (10, 8), 4), SKIN_LIGHT, 0.75)
    for side in (1, -1):
        wing = [(_x(side, 17), 238), (_x(side, 22), 247), (_x(side, 17), 255)]
        canvas.paint(stroke(wing, (1, 2.6, 1), 1.2), SKIN_SHADE, 0.7)
        canvas.paint(ellipse((_x(side, 9.5), 255.5), (5.4, 2.6), 0.9), (96, 48, 40), 0.85)
    canvas.paint(ellipse((256, 270), (5, 6), 3), SKIN_SHADE, 0.35)


def _mouth(canvas: Canvas) -> None:
    """Closed and smiling: its corners lie higher than its middle."""
    top = [(256, 287), (265, 283), (281, 284), (300, 286)]
    upper = [*top, (280, 295), (256, 299), (232, 295), *mirrored(top[1:])[::-1]]
    lower = [(212, 286), (232, 294), (256, 298), (280, 294), (300, 286), (284, 305), (256, 314), (228, 305)]
    canvas.paint(ellipse((256, 320), (24, 6), 4), SKIN_SHADE, 0.5)
    canvas.paint(blob(lower, 0.8), LIP)
    canvas.paint(blob(lower, 0.8) * ellipse((252, 305), (22, 4), 2.5), LIP_LIGHT, 0.85)
    canvas.paint(blob(upper, 0.8), LIP)
    canvas.paint(blob(upper, 0.8) * ellipse((256, 293), (40, 5), 2.5), LIP_SHADE, 0.45)
    seam = [(205, 282), (214, 287), (233, 294.5), (256, 298), (279, 294.5), (298, 287), (307, 282)]
    canvas.paint(stroke(seam, (0.6, 1.6, 2, 2.2, 2, 1.6, 0.6), 0.6), (98, 34, 40))
    for side in (1, -1):
        canvas.paint(ellipse((_x(side, 53), 283), (4, 4.5), 2.2), SKIN_SHADE, 0.6)
        canvas.paint(ellipse((_x(side, 58), 262), (16, 14), 8), SKIN_LIGHT, 0.3)
        fold = [(_x(side, 27), 254), (_x(side, 50), 266), (_x(side, 62), 284)]
        canvas.paint(stroke(fold, (1, 3.4, 1), 2.2), SKIN_SHADE, 0.38)


def _fringe(canvas: Canvas) -> None:
    cap = [(256, 34), (322, 44), (372, 92), (380, 160), (366, 236), (352, 210), (344, 150)]
    cap += [(318, 116), (280, 104), (228, 96), (196, 118), (168, 152), (160, 208), (146, 236)]
    cap += [(132, 160), (140, 92), (190, 44)]
    shape = blob(cap, 1.2)
    canvas.paint(blob([(x, y + 7) for x, y in cap], 6) * blob(FACE, 2), SKIN_SHADE, 0.5)
    canvas.paint(shape, HAIR)
    canvas.paint(shape * ellipse((220, 70), (70, 20), 14), HAIR_LIGHT, 0.6)
    for index in range(9):
        left = [
            (226 - 2 * index, 48 + index),
            (186 - 5 * index, 84 + 3 * index),
            (158 - index, 160 + 4 * index),
        ]
        right = [
            (262 + 3 * index, 44 + index),
            (318 + 4 * index, 80 + 3 * index),
            (352 + index, 150 + 6 * index),
        ]
        tone = HAIR_LIGHT if index % 2 else HAIR_SHADE
        for line in (left, right):
            canvas.paint(shape * stroke(line, (0.8, 3, 0.8), 1.2), tone, 0.45)
    parting = [(236, 40), (240, 66), (246, 98)]
    canvas.paint(shape * stroke(parting, (1, 2, 1), 1), HAIR_SHADE, 0.8)


def speak() -> np.ndarray:
    """``[n]`` float32 at 24 kHz: the text, said by espeak-ng."""
    command = ["espeak-ng", "-v", "en-us+f3", "-s", "165", "-p", "48", "--stdout", TEXT]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
    pcm = soxr.resample(samples, rate, SPEECH_RATE_HZ, quality="HQ")
    return np.asarray(0.7 * pcm / np.abs(pcm).max(), np.float32)


if __name__ == "__main__":
    draw_portrait().save(HERE / "portrait.png", optimize=True)
    soundfile.write(HERE / "speech.wav", speak(), SPEECH_RATE_HZ, subtype="PCM_16")
