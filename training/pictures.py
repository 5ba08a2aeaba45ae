"""Pictures and short clips of talking faces, to teach the video VAE on."""

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


class Pictures(Dataset[dict[str, Tensor]]):
    """Picture ``i``: a face of its own in any expression.

    Items: ``video [3, 1, side, side]`` in [-1, 1] and ``weight [1, 1, side, side]``.
    """

    def __init__(self, seed: int, side: int = SIDE) -> None:
        self._seed = seed
        self._side = side

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self._seed, index))
        artist = Artist(sample_face(random), self._side)
        expression = _any_expression(random)
        pixels = artist.draw(expression)
        weight = emphasis(artist.features(expression), self._side)
        return {"video": as_video(pixels[np.newaxis]), "weight": torch.from_numpy(weight)[None, None]}


class Clips(Dataset[dict[str, Tensor]]):
    """Clip ``i``: part of a face that moves its mouth as if it talked.

    Items: ``clip [3, frames, crop, crop]`` in [-1, 1] and ``clip_weight [1, frames, crop, crop]``, and a
    picture as ``Pictures`` has them, so that what was learnt of whole pictures stays.
    """

    def __init__(self, seed: int, frames: int = 17, crop: int = SIDE // 2) -> None:
        self._pictures = Pictures(seed)
        self._seed = seed
        self._frames = frames
        self._crop = crop

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self._seed, index, 3))
        artist = Artist(sample_face(random), SIDE)
        moves = _moves(random, 2 * FPS + self._frames)[-self._frames :]
        middle = artist.features(moves[0])[0] if random.random() < 0.6 else random.uniform(0, SIDE, 2)
        corner = middle - self._crop / 2 + random.normal(0, 6, 2)
        left, top = np.clip(np.round(corner), 0, SIDE - self._crop).astype(int)
        part = np.s_[top : top + self._crop, left : left + self._crop]
        clip = as_video(np.stack([artist.draw(move)[part] for move in moves]))
        weight = np.stack([emphasis(artist.features(move), SIDE)[part] for move in moves])
        picture = self._pictures[index]
        return {"clip": clip, "clip_weight": torch.from_numpy(weight)[None], **picture}


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


def _any_expression(random: np.random.Generator) -> Expression:
    silent = random.random() < 0.25
    return Expression(
        opening=0.0 if silent else float(random.beta(1.0, 1.5)),
        width=float(random.uniform(-1, 1)),
        rounding=float(random.beta(0.6, 1.2)),
        blink=float(np.clip(random.uniform(-1.5, 1.3), 0, 1)),
        brows=float(random.uniform(-1, 1)),
        roll=float(random.normal(0, 0.05)),
        yaw=float(random.normal(0, 0.08)),
        pitch=float(random.normal(0, 0.06)),
        shift=(float(random.normal(0, 0.07)), float(random.normal(0, 0.05))),
    )
