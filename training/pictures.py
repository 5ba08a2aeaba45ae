"""Short clips of talking faces, to fit the video VAE to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.drawing import Artist, Expression
from training.faces import sample_face
from training.motion import expressions
from training.speech import Phoneme
from training.visemes import FPS, PHONEMES, track

SIDE = 128
_EMPHASIS = 4.0
"""Additional weight of an error in the middle of the mouth, half of it at the eyes."""
_EMPHASIS_RADIUS_PX = 13.0


class Clips(Dataset[dict[str, Tensor]]):
    """Clip ``i``: a face of its own that moves its mouth as if it talked.

    Items: ``clip [3, frames, side, side]`` in [-1, 1] and ``clip_weight [1, frames, side, side]``.
    """

    def __init__(self, seed: int, frames: int) -> None:
        self._seed = seed
        self._frames = frames

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self._seed, index, 3))
        artist = Artist(sample_face(random), SIDE)
        moves = _moves(random, 2 * FPS + self._frames)[-self._frames :]
        clip = as_video(np.stack([artist.draw(move) for move in moves]))
        weight = np.stack([emphasis(artist.features(move), SIDE) for move in moves])
        return {"clip": clip, "clip_weight": torch.from_numpy(weight)[None]}


def _moves(random: np.random.Generator, frames: int) -> list[Expression]:
    """A face saying random phonemes, faster and slower."""
    phonemes, at = [], 0.0
    while at < frames / FPS:
        length = float(random.gamma(3, 0.035))
        phonemes.append(Phoneme(str(random.choice(PHONEMES)), at, at + length))
        at += length
    mouth = track(phonemes, frames)
    return expressions(mouth)


def as_video(frames: np.ndarray) -> Tensor:
    """``[n, H, W, 3]`` uint8 as ``[3, n, H, W]`` float32 in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def emphasis(features: np.ndarray, side: int) -> np.ndarray:
    """``[side, side]`` float32: 1, and more round the mouth and the eyes at ``features`` ``[3, 2]``."""
    place = np.arange(side, dtype=np.float32)
    radius = _EMPHASIS_RADIUS_PX * side / SIDE
    # A Gaussian of two axes is the product of one of each.
    across, down = (np.exp(-(((place - features[:, axis, None]) / radius) ** 2)) for axis in (0, 1))
    strengths = _EMPHASIS * np.array((1.0, 0.5, 0.5), np.float32)
    return (1 + (down * strengths[:, None]).T @ across).astype(np.float32)
