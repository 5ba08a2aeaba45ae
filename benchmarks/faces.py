"""Measures a talking face in decoded frames: how wide its mouth is, where its head is, who it is.

The face is a drawn one that is known (``training.faces``): its portrait, where its mouth and eyes are in it,
and how it looks with its mouth at any opening. Frames and portraits are ``[H, W, 3]`` uint8 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from training.drawing import Artist, Expression
from training.faces import Face

_OPENINGS = np.linspace(0, 1, 21)
_SHAPES = tuple(product((-0.4, 0.5), (0.0, 0.8)))
"""Widths and roundings a mouth is compared with at every opening."""
_SEARCH_PX = 2
_SOFTNESS_PX = 1.8
_ALIGNMENT = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-5)


@dataclass(frozen=True, slots=True)
class Look:
    """What one frame shows.

    Attributes:
        opening: of the mouth in [0, 1].
        shift: of the head against the portrait, pixels (x, y).
        turn: of the head against the portrait, radians.
        psnr_db: of the head against the portrait once aligned, without mouth and eyes.
    """

    opening: float
    shift: tuple[float, float]
    turn: float
    psnr_db: float


class Observer:
    """Looks at frames of one face.

    Args:
        face: who is portrayed.
        side: pixels of the square frames.
    """

    def __init__(self, face: Face, side: int) -> None:
        self._artist = Artist(face, side)
        self.portrait = self._artist.draw(Expression())
        self._unit = face.half_width_share * side
        self._mouth, *eyes = self._artist.features(Expression(opening=0.4))
        self._head = self._ellipse(np.add(np.mean(eyes, axis=0), (0, 0.15 * self._unit)), 1.25, 1.45)
        self._still = self._head.copy()
        for centre, radius in ((self._mouth, 0.6), *((eye, 0.38) for eye in eyes)):
            self._still &= ~self._ellipse(centre, radius, radius)
        self._templates = self._draw_templates()

    def look(self, frame: np.ndarray) -> Look:
        """Align the head with the portrait's and measure."""
        warp = self._alignment(frame)
        size = frame.shape[1::-1]
        aligned = cv2.warpAffine(
            frame, warp, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
        error = (aligned.astype(float) - self.portrait)[self._still]
        middle = warp @ (*np.argwhere(self._head).mean(axis=0)[::-1], 1.0)
        shift = middle - np.argwhere(self._head).mean(axis=0)[::-1]
        psnr = 10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9))
        turn = float(np.arctan2(warp[1, 0], warp[0, 0]))
        return Look(self._opening(aligned), (float(shift[0]), float(shift[1])), turn, psnr)

    def _alignment(self, frame: np.ndarray) -> np.ndarray:
        """The rigid movement ``[2, 3]`` from the portrait to ``frame`` that fits best; none where nothing
        fits, so that such a frame is as unlike the portrait as it is."""
        portrait, grey = (
            cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in (self.portrait, frame)
        )
        warp = np.eye(2, 3, dtype=np.float32)
        mask = self._still.astype(np.uint8)
        try:
            _, warp = cv2.findTransformECC(portrait, grey, warp, cv2.MOTION_EUCLIDEAN, _ALIGNMENT, mask, 5)
        except cv2.error as error:
            if error.code != cv2.Error.StsNoConv:
                raise
            return np.eye(2, 3)
        return np.asarray(warp, float)

    def _opening(self, aligned: np.ndarray) -> float:
        """The opening of the drawn mouth that is nearest to what is seen, a little to any side."""
        best = np.inf
        opening = 0.0
        soft = _softened(aligned)
        for dx, dy in product(range(-_SEARCH_PX, _SEARCH_PX + 1), repeat=2):
            seen = self._mouth_part(soft, dx, dy)
            distances = ((self._templates - seen) ** 2).mean(axis=(2, 3, 4)).min(axis=1)
            if distances.min() < best:
                best, opening = float(distances.min()), _finest(distances)
        return opening

    def _draw_templates(self) -> np.ndarray:
        """``[openings, shapes, h, w, 3]`` float32."""
        drawn = [
            [self._artist.draw(Expression(opening, width, rounding)) for width, rounding in _SHAPES]
            for opening in _OPENINGS
        ]
        return np.stack([[self._mouth_part(_softened(frame)) for frame in row] for row in drawn])

    def _mouth_part(self, frame: np.ndarray, dx: int = 0, dy: int = 0) -> np.ndarray:
        x, y = np.add(np.round(self._mouth).astype(int), (dx, dy))
        radius = round(0.62 * self._unit)
        return frame[y - radius : y + radius, x - radius : x + radius]

    def _ellipse(self, centre: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
        side = len(self.portrait)
        y, x = np.mgrid[:side, :side]
        across, down = (x - centre[0]) / half_width, (y - centre[1]) / half_height
        return across**2 + down**2 <= self._unit**2


def _softened(frame: np.ndarray) -> np.ndarray:
    """Float32, so smooth that a sharper or softer picture of the same mouth is much the same."""
    return cv2.GaussianBlur(frame.astype(np.float32), (0, 0), _SOFTNESS_PX)


def _finest(distances: np.ndarray) -> float:
    """Where a parabola through the least of ``distances`` and its neighbours is lowest."""
    at = int(np.argmin(distances))
    if not 0 < at < len(distances) - 1:
        return float(_OPENINGS[at])
    before, here, after = distances[at - 1 : at + 2]
    bend = before - 2 * here + after
    offset = 0.0 if bend <= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))
    return float(_OPENINGS[at] + offset * (_OPENINGS[1] - _OPENINGS[0]))


def best_lag(seen: np.ndarray, true: np.ndarray, most: int = 5) -> tuple[int, float]:
    """The lag in frames by which ``seen`` follows ``true`` best, and the correlation without lag, 0 for a
    mouth that never moves."""

    def correlation(lag: int) -> float:
        first, last = max(lag, 0), len(seen) + min(lag, 0)
        pair = np.stack([seen[first:last], true[first - lag : last - lag]])
        return float(np.corrcoef(pair)[0, 1]) if pair.std(axis=1).all() else 0.0

    lags = range(-most, most + 1)
    return max(lags, key=correlation), correlation(0)


def seam_ratio(frames: np.ndarray, seams: range) -> float:
    """Mean difference of the frames at ``seams`` to those before, over the median of all others. In the
    drawings themselves it is 0.8 to 1.3 (six of them, 12 s each); a single frame, in which somebody blinks or
    a mouth opens, reaches 4 there, seam or not."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    at_seams = np.zeros(len(change), bool)
    at_seams[[seam - 1 for seam in seams if 0 < seam <= len(change)]] = True
    return float(np.mean(change[at_seams]) / max(float(np.median(change[~at_seams])), 1e-9))
