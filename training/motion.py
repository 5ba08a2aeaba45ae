"""What a head does besides speaking: it bows and sways with the voice, lifts its brows, blinks in pauses.

Everything follows from the mouth's track, each movement a slower one of it. So a generator can hear what the
head does; what it could not hear it would learn to leave out, since the mean of all movements is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.drawing import Expression
from training.visemes import FPS

_BLINK = (0.5, 1.0, 1.0, 0.6, 0.2)
"""Closedness of the eyes, frame by frame."""
_PAUSE_FRAMES = 4
"""How long the mouth is shut before the eyes blink."""
_SHUT = 0.05


@dataclass(frozen=True, slots=True)
class Sway:
    """How far the head goes while the mouth is held open, spread or rounded: shifts in half-widths of the
    face, angles in radians; and the seconds it takes.

    The head hardly turns: a picture cannot be aligned rigidly with one of a turned head, and so its likeness
    could not be measured.
    """

    down: float = 0.22
    across: float = 0.12
    roll: float = 0.03
    brows: float = 0.4
    bow_s: float = 1.0
    lean_s: float = 1.5


def expressions(track: np.ndarray) -> list[Expression]:
    """The face in every frame; it comes from the portrait's pose and goes back to it in silence.

    Args:
        track: ``[frames, 3]`` opening, width and rounding of the mouth.
    """
    sway = Sway()
    bow = _slower(track[:, 0], sway.bow_s)
    lean = _slower(track[:, 2] - 0.6 * track[:, 1], sway.lean_s)
    blink = _blinks(track[:, 0])
    return [
        Expression(
            *track[i],
            blink=blink[i],
            brows=float(np.clip(sway.brows * bow[i], 0, 1)),
            roll=sway.roll * lean[i],
            shift=(sway.across * lean[i], sway.down * bow[i]),
        )
        for i in range(len(track))
    ]


def _slower(signal: np.ndarray, seconds: float) -> np.ndarray:
    """The signal through two equal lags, 0 at the start: it begins and ends to move softly."""
    share = 1 - np.exp(-2 / (seconds * FPS))
    slow, first, second = np.zeros(len(signal)), 0.0, 0.0
    for index, value in enumerate(signal):
        first += share * (float(value) - first)
        second += share * (first - second)
        slow[index] = second
    return slow


def _blinks(opening: np.ndarray) -> np.ndarray:
    """``[frames]`` closedness of the eyes: one blink in every pause."""
    closed = np.zeros(len(opening) + len(_BLINK))
    shut_for = _PAUSE_FRAMES
    for index, value in enumerate(opening):
        shut_for = shut_for + 1 if value < _SHUT else 0
        if shut_for == _PAUSE_FRAMES:
            closed[index : index + len(_BLINK)] = _BLINK
    return closed[: len(opening)]
