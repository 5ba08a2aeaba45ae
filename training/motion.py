"""What a head does besides speaking: it sways with the voice, blinks, and raises its brows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.drawing import Expression
from training.speech import RATE_HZ
from training.visemes import FPS

_SAMPLES_PER_FRAME = RATE_HZ // FPS
_SETTLE_S = 0.5
"""How long the head takes to begin swaying, and to calm down."""


@dataclass(frozen=True, slots=True)
class Sway:
    """Largest swing of each movement: angles in radians, the shift in half-widths of the face.

    The head turns and nods little: a picture cannot be aligned rigidly with one of a turned head, and so
    its likeness could not be measured. Of these talks' true frames it is 30 dB (24.7 to 36.2 for five faces).
    """

    roll: float = 0.05
    yaw: float = 0.03
    pitch: float = 0.03
    across: float = 0.07
    down: float = 0.05


def expressions(track: np.ndarray, samples: np.ndarray, random: np.random.Generator) -> list[Expression]:
    """The face in every frame; in the first it is as in the portrait.

    Args:
        track: ``[frames, 3]`` opening, width and rounding.
        samples: ``[frames * 640]`` the speech, which drives the sway.
    """
    frames, sway = len(track), Sway()
    active = _activity(samples, frames)
    beats = 0.35 * (active - np.convolve(active, np.ones(FPS) / FPS)[:frames])
    limits = (sway.roll, sway.yaw, sway.pitch, sway.across, sway.down)
    roll, yaw, pitch, across, down = (limit * _wander(active, random) for limit in limits)
    pitch = pitch + sway.pitch * beats
    blink = _blinks(frames, random)
    brows = np.clip(0.6 * _wander(active, random) + beats, -1, 1)
    return [
        Expression(*track[i], blink[i], brows[i], roll[i], yaw[i], pitch[i], (across[i], down[i]))
        for i in range(frames)
    ]


def _activity(samples: np.ndarray, frames: int) -> np.ndarray:
    """``[frames]`` in [0, 1]: how much the voice was heard lately, 0 at the start."""
    power = (samples[: frames * _SAMPLES_PER_FRAME].reshape(frames, -1) ** 2).mean(axis=1)
    loudness = np.sqrt(power / (power.max() + 1e-9))
    decay = np.exp(-1 / (_SETTLE_S * FPS))
    active, level = np.zeros(frames), 0.0
    for index in range(frames):
        active[index] = level
        level = decay * level + (1 - decay) * min(1.0, 2.5 * float(loudness[index]))
    return active


def _wander(active: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """``[frames]`` about [-1, 1]: slow waves whose clock runs on while there is voice, 0 at the start."""
    clock = np.cumsum(0.15 + 0.85 * active) / FPS
    rates = random.uniform(0.12, 0.55, 3)
    phases = random.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * rates * clock[:, np.newaxis] + phases) - np.sin(phases)
    return waves.mean(axis=1) * np.minimum(1, clock / _SETTLE_S)


def _blinks(frames: int, random: np.random.Generator) -> np.ndarray:
    """``[frames]`` closedness of the eyes: about one blink in three seconds, of five frames."""
    closed = np.zeros(frames + 5)
    at = int(random.uniform(0.6, 3.0) * FPS)
    while at < frames:
        closed[at : at + 5] = (0.5, 1.0, 1.0, 0.6, 0.2)
        at += int(random.uniform(1.6, 4.5) * FPS)
    return closed[:frames]
