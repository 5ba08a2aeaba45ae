"""Talks cut into the chunks a generator makes, encoded once: latents, speech features, the portrait.

A talk gives consecutive chunks, some from its very beginning. They are written in shards, so that a stopped
run goes on where it was.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from serve_app.engine.audio_cache import CONTEXT_ROWS
from serve_app.model.audio_features import AudioFeatures, window_index
from serve_app.model.vae import LTXVideoVAE

from training.drawing import Artist, Expression
from training.loop import save_whole
from training.pictures import SIDE, as_video, emphasis
from training.talks import WINDOW_FRAMES, sample_talk

FRAMES, MOTION_FRAMES = 33, 9
SLICE_FRAMES = FRAMES - MOTION_FRAMES
CHUNKS_PER_TALK = 3
TALKS_PER_SHARD = 10
_LATEST_FIRST_CHUNK = 8

Shard = dict[str, Tensor]
"""``latents [talks, chunks, C, T, h, w]``, ``reference [talks, C, 1, h, w]``, both as the encoder's means,
``features [talks, chunks, 35, blocks, channels]``, ``first [talks]`` index of the first chunk,
``portrait [talks, side, side, 3]`` uint8 and ``weight [talks, 1, 1, h, w]``, larger at mouth and eyes."""


def shard_paths(folder: Path, talks: int) -> list[Path]:
    """Where the shards of so many talks are."""
    return [folder / f"{shard:05}.pt" for shard in range(talks // TALKS_PER_SHARD)]


class Footage(Dataset[Shard]):
    """Talk ``i`` as it is filmed and recorded.

    Items: ``video [chunks, 33, side, side, 3]`` and ``portrait [side, side, 3]`` uint8, ``windows [chunks,
    128000]`` float32 of speech, ``first`` index of the first chunk, ``weight [side, side]``.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __getitem__(self, number: int) -> Shard:
        random = np.random.default_rng((self._seed, number, 2))
        first = 0 if random.random() < 0.25 else int(random.integers(1, _LATEST_FIRST_CHUNK + 1))
        talk = sample_talk((self._seed, number), SLICE_FRAMES * (first + CHUNKS_PER_TALK))
        chunks = range(first, first + CHUNKS_PER_TALK)
        features = Artist(talk.face, SIDE).features(Expression(opening=0.4))
        return {
            "video": torch.from_numpy(np.stack([talk.video(*_span(chunk)) for chunk in chunks])),
            "portrait": torch.from_numpy(talk.video(-1, 1)[0]),
            "windows": torch.from_numpy(np.stack([talk.window((k + 1) * SLICE_FRAMES) for k in chunks])),
            "first": torch.tensor(first),
            "weight": torch.from_numpy(emphasis(features, SIDE)),
        }


class TalkEncoder:
    """The trained encoders, and where what they encode is kept.

    Args:
        vae, speech: trained, on one device.
        folder: of the shards.
        seed: of the talks.
        workers: processes that film and record, 0 does it in this one.
    """

    def __init__(
        self, vae: LTXVideoVAE, speech: AudioFeatures, folder: Path, seed: int, workers: int = 0
    ) -> None:
        self._vae = vae
        self._speech = speech
        self._folder = folder
        self._footage = Footage(seed)
        self._workers = workers

    def encode(self, talks: int, until_s: float) -> bool:
        """Write the shards of ``talks`` talks that are not there; whether all are, when
        ``time.monotonic()`` passes ``until_s``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        paths = shard_paths(self._folder, talks)
        missing = [shard for shard, path in enumerate(paths) if not path.is_file()]
        numbers = [shard * TALKS_PER_SHARD + index for shard in missing for index in range(TALKS_PER_SHARD)]
        if not missing:
            return True
        footage = iter(DataLoader(self._footage, None, sampler=numbers, num_workers=self._workers))
        for shard in missing:
            if time.monotonic() >= until_s:
                return False
            parts = [self._encoded(next(footage)) for _ in range(TALKS_PER_SHARD)]
            save_whole({key: torch.stack([part[key] for part in parts]) for key in parts[0]}, paths[shard])
        return True

    @torch.inference_mode()
    def _encoded(self, footage: Shard) -> Shard:
        weight = F.avg_pool2d(footage["weight"][None, None], self._vae.stride[1])
        return {
            "latents": torch.cat([self._latent(frames.numpy()) for frames in footage["video"]]).half(),
            "reference": self._latent(footage["portrait"][None].numpy())[0].half(),
            "features": torch.stack([self._features(window) for window in footage["windows"]]).half(),
            "first": footage["first"],
            "portrait": footage["portrait"],
            "weight": weight.unsqueeze(2)[0],
        }

    def _latent(self, frames: np.ndarray) -> Tensor:
        video = as_video(frames)[None].to(self._vae.network.device)
        return self._vae.moments(video)[0].cpu()

    def _features(self, window: Tensor) -> Tensor:
        rows = self._speech.encode(window.to(self._speech.network.device))
        return rows[WINDOW_FRAMES - FRAMES - CONTEXT_ROWS :].cpu()


def _span(chunk: int) -> tuple[int, int]:
    """First frame of a chunk in its talk, and how many."""
    return chunk * SLICE_FRAMES - MOTION_FRAMES, FRAMES


class Chunks(Dataset[dict[str, Tensor]]):
    """Encoded chunks in random order; latents are normalised.

    Items: ``latent [C, T, h, w]``, ``reference [C, 1, h, w]``, ``windows [33, 5, blocks, channels]``,
    ``opening`` 1 for the first chunk of a talk, ``motion [C, 2, h, w]``, the latents carried over, and
    ``weight [1, 1, h, w]``, larger at mouth and eyes, and in talks in which all that moves is faint:
    otherwise little would be learnt of how a pale mouth opens.

    Args:
        folder: of the shards.
        talks: how many there are.
        seed: of the order.

    Raises:
        FileNotFoundError: there are other shards in the folder than those of the talks.
    """

    def __init__(self, folder: Path, talks: int, seed: int) -> None:
        paths = shard_paths(folder, talks)
        if sorted(folder.glob("*.pt")) != paths:
            raise FileNotFoundError(f"{folder} does not hold the {len(paths)} shards of {talks} talks")
        shards = [torch.load(path, weights_only=True) for path in paths]
        self.data: Any = {key: torch.cat([shard.pop(key) for shard in shards]) for key in tuple(shards[0])}
        self._seed = seed
        self.mean, self.std = _statistics(self.data["latents"].float())
        for key in ("latents", "reference"):
            self.data[key] = (self.data[key].float() - self.mean) / self.std
        self.data["weight"] = self.data["weight"] / _movement(self.data["latents"], self.data["weight"])
        self.data["motion"] = self.data["latents"][:, :, :, :2].clone()
        self._index = window_index(0, WINDOW_FRAMES)[-FRAMES:] - (WINDOW_FRAMES - FRAMES - CONTEXT_ROWS)

    def use_motion(self, motion: Tensor) -> None:
        """Every other item is of the talks that ``motion [talks, chunks, C, 2, h, w]`` is given for, the
        first ones, and carries it over instead of the true one."""
        self.data["own_motion"] = motion

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self._seed, index))
        chunks = self.data["latents"].shape[1]
        motion = "own_motion" if index % 2 and "own_motion" in self.data else "motion"
        talk, chunk = int(random.integers(len(self.data[motion]))), int(random.integers(chunks))
        return {
            "latent": self.data["latents"][talk, chunk],
            "reference": self.data["reference"][talk],
            "windows": self.data["features"][talk, chunk][self._index].float(),
            "motion": self.data[motion][talk, chunk],
            "weight": self.data["weight"][talk],
            "opening": ((self.data["first"][talk] + chunk) == 0).float(),
        }


def _movement(latents: Tensor, weight: Tensor) -> Tensor:
    """``[talks, 1, 1, 1, 1]``: how strongly each talk moves, head and all, as a share of what is usual; a
    half at least, so that silent ones do not count more than all others."""
    moving = latents - latents.mean(dim=(1, 3), keepdim=True)
    squares = (moving.square().mean(dim=(1, 2, 3))[:, None, None] * weight).mean(dim=(3, 4), keepdim=True)
    size = (squares / weight.mean(dim=(3, 4), keepdim=True)).sqrt()
    return (size / size.median()).clamp_min(0.5)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, ``[C, 1, 1, 1]``."""
    std, mean = torch.std_mean(latents, dim=(0, 1, 3, 4, 5))
    return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)
