"""The chunk timeline of a session: which speech, frames and sound belong to chunk ``k``.

The listener's 48 kHz copy decides how long the video is, ``ceil(samples / 1920)`` frames; the model's
16 kHz copy is fitted to it. Nothing is lost and nothing padded is delivered (FlashHead spec section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve_app.errors import MalformedInput
from serve_app.media.pcm import job_pcm
from serve_app.types import (
    FRAME_MS,
    LISTENER_SAMPLES_PER_FRAME,
    MODEL_SAMPLES_PER_FRAME,
    AudioEncodeMode,
    AudioSlice,
    ContainerFormat,
    EncodeJob,
    Geometry,
)

ONCE_WINDOW_FRAMES = 800
"""Longest piece of a clip (32 s) that ``once`` mode encodes at a time. A shorter clip is encoded
whole; of a longer one each chunk sees the 32 s around it, which bounds memory for any length."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """One chunk: what conditions it, which of its frames are delivered, where it lies in time.

    ``pcm48`` is what an ``EncodeJob`` carries; ``valid_samples`` of the chunk's 48 kHz samples are
    speech, the rest silence up to the frame's end.
    """

    index: int
    audio: AudioSlice
    first_frame: int
    frame_count: int
    start_ms: int
    pcm48: np.ndarray
    valid_samples: int
    final: bool

    @property
    def end_ms(self) -> int:
        """Where the next chunk starts."""
        return self.start_ms + FRAME_MS * self.frame_count

    def encode_job(self, container: ContainerFormat) -> EncodeJob:
        """The chunk's work for Encoder."""
        return EncodeJob(
            start_ms=self.start_ms,
            frame_count=self.frame_count,
            pcm48=self.pcm48,
            valid_samples=self.valid_samples,
            final=self.final,
            container=container,
        )


class Timeline(Protocol):
    """Where a conductor's chunks come from: a clip known whole, or speech that is still arriving."""

    async def plan(self, index: int) -> ChunkPlan | None:
        """Chunk ``index`` once it is known, ``None`` past the last."""
        ...

    def audio(self, index: int) -> AudioSlice | None:
        """The speech of chunk ``index`` if it is known now."""
        ...


class ClipTimeline:
    """The timeline of an uploaded clip.

    Args:
        pcm16: ``[n16]`` float32 at 16 kHz in [-1, 1], what the model hears.
        pcm48: ``[n48]`` float32 at 48 kHz, what the listener hears; same start, same length in time.
        geometry: the model's chunk sizes.
        mode: ``stream`` slides the 8 s audio cache, ``once`` encodes the clip as a whole.

    Raises:
        MalformedInput: the clip holds no samples.
    """

    def __init__(
        self, pcm16: np.ndarray, pcm48: np.ndarray, geometry: Geometry, mode: AudioEncodeMode
    ) -> None:
        self.frame_count = -(-len(pcm48) // LISTENER_SAMPLES_PER_FRAME)
        if self.frame_count == 0:
            raise MalformedInput(
                "the audio holds no samples; at least one is needed", code="empty_audio", value=0
            )
        self._geometry = geometry
        self._mode = mode
        self._pcm48 = pcm48
        self._bounds = _chunk_bounds(self.frame_count, geometry, mode)
        self._pcm16 = _fit(pcm16, self._model_frames() * MODEL_SAMPLES_PER_FRAME)
        self._statistics = (
            (float(self._pcm16.mean(dtype=np.float64)), float(self._pcm16.var(dtype=np.float64)))
            if mode == "once"
            else None
        )

    def __len__(self) -> int:
        """Chunks in all."""
        return len(self._bounds) - 1

    def frames_before(self, index: int) -> int:
        """Frames delivered by the chunks before chunk ``index``."""
        return self._bounds[index]

    def _model_frames(self) -> int:
        """Frames of speech the model is given: ``once`` mode pads the clip to whole chunks."""
        if self._mode == "stream":
            return self.frame_count
        return self._geometry.frames + (len(self) - 1) * self._geometry.slice_frames

    async def plan(self, index: int) -> ChunkPlan | None:
        """See ``Timeline``."""
        return self.peek(index)

    def peek(self, index: int) -> ChunkPlan | None:
        """``plan`` without waiting: every chunk of a clip is known from the start."""
        if index >= len(self):
            return None
        start, end = self._bounds[index], self._bounds[index + 1]
        first_sample = start * LISTENER_SAMPLES_PER_FRAME
        whole = self._mode == "once" and index == 0
        return ChunkPlan(
            index=index,
            audio=self._audio(index),
            first_frame=0 if whole else self._geometry.motion_frames,
            frame_count=end - start,
            start_ms=start * FRAME_MS,
            pcm48=job_pcm(self._pcm48, first_sample, end - start),
            valid_samples=min(len(self._pcm48), end * LISTENER_SAMPLES_PER_FRAME) - first_sample,
            final=index == len(self) - 1,
        )

    def audio(self, index: int) -> AudioSlice | None:
        """See ``Timeline``."""
        return self._audio(index) if index < len(self) else None

    def _audio(self, index: int) -> AudioSlice:
        if self._mode == "stream":
            start, end = self._bounds[index], self._bounds[index + 1]
            return AudioSlice(self._pcm16[start * MODEL_SAMPLES_PER_FRAME : end * MODEL_SAMPLES_PER_FRAME])
        clip_frames = len(self._pcm16) // MODEL_SAMPLES_PER_FRAME
        row = index * self._geometry.slice_frames
        first = _window_start(row + self._geometry.frames // 2, clip_frames)
        last = min(first + ONCE_WINDOW_FRAMES, clip_frames)
        return AudioSlice(
            self._pcm16[first * MODEL_SAMPLES_PER_FRAME : last * MODEL_SAMPLES_PER_FRAME],
            rows=(row - first, row - first + self._geometry.frames),
            statistics=self._statistics,
        )


def _chunk_bounds(frame_count: int, geometry: Geometry, mode: AudioEncodeMode) -> list[int]:
    """Delivered frame indices at which chunks begin, and the end: in ``once`` mode the first chunk
    delivers all its frames, everywhere else a chunk delivers those it does not carry over."""
    first = geometry.frames if mode == "once" else geometry.slice_frames
    return [0, *range(first, frame_count, geometry.slice_frames), frame_count]


def _window_start(centre: int, clip_frames: int) -> int:
    return max(0, min(centre - ONCE_WINDOW_FRAMES // 2, clip_frames - ONCE_WINDOW_FRAMES))


def _fit(pcm: np.ndarray, samples: int) -> np.ndarray:
    if len(pcm) >= samples:
        return pcm[:samples]
    return np.concatenate([pcm, np.zeros(samples - len(pcm), dtype=pcm.dtype)])
