"""From phonemes to what the mouth does: opening, width and rounding at 25 frames per second."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from training.speech import Phoneme

FPS = 25
_FINE_HZ = 400
_BLUR_S = 0.028
"""Standard deviation of the Gaussian by which one position flows into the next."""

Position = tuple[float, float, float]
"""Opening in [0, 1], width in [-1, 1], rounding in [0, 1]."""

CLOSED: Position = (0.0, 0.0, 0.0)
_VOWELS: dict[str, Position] = {
    "a": (1.0, 0.2, 0.0), "ɑ": (1.0, 0.0, 0.1), "ɐ": (0.8, 0.1, 0.0), "æ": (0.9, 0.5, 0.0),
    "ʌ": (0.75, 0.1, 0.0), "ɒ": (0.9, -0.2, 0.4), "ɔ": (0.75, -0.3, 0.6), "o": (0.6, -0.4, 0.8),
    "ɤ": (0.55, 0.0, 0.1), "e": (0.5, 0.5, 0.0), "ɛ": (0.65, 0.4, 0.0), "ə": (0.45, 0.1, 0.0),
    "ε": (0.65, 0.4, 0.0), "ɫ": (0.3, 0.0, 0.1),
    "ɜ": (0.5, 0.0, 0.15), "ɚ": (0.4, 0.0, 0.25), "ɝ": (0.45, 0.0, 0.25), "ɵ": (0.4, -0.2, 0.5),
    "i": (0.3, 0.9, 0.0), "ɪ": (0.38, 0.6, 0.0), "ɨ": (0.3, 0.3, 0.0), "y": (0.25, -0.4, 0.9),
    "ʏ": (0.3, -0.3, 0.8), "ø": (0.45, -0.3, 0.8), "œ": (0.6, -0.2, 0.6), "u": (0.25, -0.6, 1.0),
    "ʊ": (0.35, -0.4, 0.8), "ɯ": (0.3, 0.2, 0.1), "ʉ": (0.28, -0.4, 0.9),
}  # fmt: skip
_CONSONANTS: dict[str, Position] = {
    "p": CLOSED, "b": CLOSED, "m": CLOSED, "f": (0.06, 0.1, 0.0), "v": (0.06, 0.1, 0.0),
    "θ": (0.2, 0.2, 0.0), "ð": (0.2, 0.2, 0.0), "t": (0.2, 0.2, 0.0), "d": (0.22, 0.2, 0.0),
    "n": (0.22, 0.2, 0.0), "l": (0.3, 0.2, 0.0), "s": (0.12, 0.4, 0.0), "z": (0.12, 0.4, 0.0),
    "ɾ": (0.25, 0.1, 0.0), "r": (0.28, 0.0, 0.1), "ɹ": (0.22, -0.2, 0.5), "ʁ": (0.3, 0.0, 0.0),
    "ʃ": (0.18, -0.3, 0.7), "ʒ": (0.18, -0.3, 0.7), "ɕ": (0.15, 0.3, 0.2), "ʑ": (0.15, 0.3, 0.2),
    "ʂ": (0.18, -0.2, 0.5), "j": (0.22, 0.6, 0.0), "ʎ": (0.25, 0.5, 0.0), "ɲ": (0.22, 0.4, 0.0),
    "k": (0.28, 0.0, 0.0), "ɡ": (0.28, 0.0, 0.0), "ŋ": (0.28, 0.0, 0.0), "x": (0.3, 0.0, 0.0),
    "ç": (0.22, 0.5, 0.0), "χ": (0.32, 0.0, 0.0), "h": (0.4, 0.0, 0.0), "w": (0.16, -0.6, 1.0),
    "ʋ": (0.1, 0.0, 0.0), "ʐ": (0.18, -0.2, 0.5),
    "β": (0.08, 0.0, 0.0), "ɣ": (0.3, 0.0, 0.0), "q": (0.3, 0.0, 0.0), "ɟ": (0.22, 0.3, 0.0),
    "c": (0.22, 0.3, 0.0), "ʔ": (0.25, 0.0, 0.0),
}  # fmt: skip
_POSITIONS = _VOWELS | _CONSONANTS
PHONEMES = ("", "", *_POSITIONS)
"""Signs with a position, and pauses."""
_NEUTRAL: Position = (0.3, 0.0, 0.0)
"""For a phoneme whose sign is not in the tables."""


def track(phonemes: Iterable[Phoneme], frames: int, start_s: float = 0.0) -> np.ndarray:
    """``[frames, 3]`` float32: opening, width and rounding in the middle of each video frame.

    Args:
        phonemes: in order; where nothing is said the mouth is closed.
        frames: how many, of 40 ms.
        start_s: when the first phoneme's time 0 is, after the first frame began.
    """
    margin = round(4 * _BLUR_S * _FINE_HZ)
    fine = np.zeros((round(frames * _FINE_HZ / FPS) + 2 * margin, 3))
    for position, begin_s, end_s in _positions(phonemes):
        first, last = (margin + round((start_s + at) * _FINE_HZ) for at in (begin_s, end_s))
        fine[max(first, 0) : max(last, 0)] = position
    offsets = np.arange(-margin, margin + 1) / _FINE_HZ
    kernel = np.exp(-0.5 * (offsets / _BLUR_S) ** 2)
    kernel /= kernel.sum()
    smooth = np.stack([np.convolve(column, kernel, mode="valid") for column in fine.T], 1)
    middles = np.floor((np.arange(frames) + 0.5) * _FINE_HZ / FPS).astype(int)
    return smooth[middles].astype(np.float32)


def _positions(phonemes: Iterable[Phoneme]) -> Iterator[tuple[Position, float, float]]:
    """Positions and when they are held; the signs of a diphthong or an affricate share its time."""
    for phoneme in phonemes:
        known = [_POSITIONS[sign] for sign in phoneme.name if sign in _POSITIONS]
        if not known and phoneme.name.strip():
            known = [_NEUTRAL]
        length_s = (phoneme.end_s - phoneme.start_s) / max(len(known), 1)
        for index, position in enumerate(known):
            begin_s = phoneme.start_s + index * length_s
            yield position, begin_s, begin_s + length_s
