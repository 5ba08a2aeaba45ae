"""Talks: a drawn face that says something, and the data sets cut from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.drawing import Artist, Expression
from training.faces import Face, sample_face
from training.motion import expressions
from training.pictures import SIDE
from training.sound import recorded
from training.speech import RATE_HZ, speak
from training.texts import HELD_OUT_TEXTS, HELD_OUT_VOICES, babble, training_voice
from training.visemes import FPS, track

SAMPLES_PER_FRAME = RATE_HZ // FPS
WINDOW_FRAMES = 8 * FPS
"""Frames behind the 8 s of speech that are encoded for a chunk."""
_HELD_OUT_SEED = 7_000_000
"""No data set of training has this seed."""


@dataclass(frozen=True, slots=True)
class Talk:
    """A face and its speech.

    Attributes:
        face: who talks.
        samples: ``[frames * 640]`` float32 at 16 kHz.
        track: ``[frames, 3]`` float32: opening, width, rounding of the mouth.
        expressions: of every frame; the first is the portrait's.
    """

    face: Face
    samples: np.ndarray
    track: np.ndarray
    expressions: list[Expression]

    @property
    def frames(self) -> int:
        return len(self.track)

    def expression(self, frame: int) -> Expression:
        """In ``frame``; before the first the face is still."""
        return self.expressions[frame] if frame >= 0 else Expression()

    def window(self, end: int) -> np.ndarray:
        """``[128000]`` float32: the 8 s of sound that end with frame ``end``, silence before the talk."""
        heard = self.samples[max(0, end - WINDOW_FRAMES) * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME]
        return np.concatenate([np.zeros(WINDOW_FRAMES * SAMPLES_PER_FRAME - len(heard), np.float32), heard])

    def track_window(self, end: int) -> np.ndarray:
        """``[200, 3]`` float32: what the mouth does meanwhile."""
        seen = self.track[max(0, end - WINDOW_FRAMES) : end]
        return np.concatenate([np.zeros((WINDOW_FRAMES - len(seen), 3), np.float32), seen])

    def video(self, start: int, frames: int) -> np.ndarray:
        """``[frames, 128, 128, 3]`` uint8 from frame ``start`` on."""
        artist = Artist(self.face, SIDE)
        return np.stack([artist.draw(self.expression(start + index)) for index in range(frames)])


def sample_talk(seed: tuple[int, ...], frames: int) -> Talk:
    """A talk of ``frames`` by a face and a voice of training, a function of ``seed``."""
    random = np.random.default_rng(seed)
    face = sample_face(random)
    samples, mouth = _speech(random, frames)
    return Talk(face, recorded(samples, random), mouth, expressions(mouth))


def held_out_talk(number: int, frames: int) -> Talk:
    """A talk of a face, a voice and texts that training never sees, said again until ``frames`` are full;
    clean sound."""
    random = np.random.default_rng((_HELD_OUT_SEED, number))
    face = sample_face(random)
    voice = HELD_OUT_VOICES[number % len(HELD_OUT_VOICES)]
    samples = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    mouth = np.zeros((frames, 3), np.float32)
    start, sentence = 0, number
    while start < frames:
        text = HELD_OUT_TEXTS[sentence % len(HELD_OUT_TEXTS)]
        said = speak(text, voice, 150 + 10 * (number % 4), 40 + 5 * (number % 5))
        heard = said.samples[: (frames - start) * SAMPLES_PER_FRAME]
        samples[start * SAMPLES_PER_FRAME :][: len(heard)] = heard
        mouth[start:] = track(said.phonemes, frames - start)
        start, sentence = start + int(said.duration_s * FPS) + 8, sentence + 1
    return Talk(face, samples, mouth, expressions(mouth))


def _speech(random: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Clean sound ``[frames * 640]`` and the mouth's track; some talks say nothing."""
    samples = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    if random.random() < 0.04:
        return samples, np.zeros((frames, 3), np.float32)
    lead = int(random.choice((0.0, 0.1, 0.4, 1.2), p=(0.2, 0.3, 0.3, 0.2)) * RATE_HZ)
    speed = int(random.uniform(120, 230))
    words = 2 + int(len(samples) / RATE_HZ * speed / 75)
    said = speak(babble(random, words), training_voice(random), speed, int(random.uniform(15, 90)))
    heard = said.samples[: max(0, len(samples) - lead)]
    samples[lead : lead + len(heard)] = heard
    return samples, track(said.phonemes, frames, start_s=lead / RATE_HZ)


class Windows(Dataset[dict[str, Tensor]]):
    """Window ``i`` of speech, to teach the speech encoder what mouths do.

    Items: ``samples [128000]`` and ``track [200, 3]``, the mouth's. A third begins within the window, as
    streams do.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self._seed, index, 1))
        end = int(random.integers(24, WINDOW_FRAMES)) if random.random() < 0.33 else WINDOW_FRAMES
        talk = sample_talk((self._seed, index), end)
        return {
            "samples": torch.from_numpy(talk.window(end)),
            "track": torch.from_numpy(talk.track_window(end)),
        }
