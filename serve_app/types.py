"""Values that cross layers and processes. numpy only: neither torch, ray nor av is imported here.

Time is integer everywhere: frame ``i`` starts at ``40 * i`` ms, a model frame is 640 samples at
16 kHz, a listener frame 1920 samples at 48 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

FPS = 25
FRAME_MS = 40
MODEL_RATE_HZ = 16_000
LISTENER_RATE_HZ = 48_000
MODEL_SAMPLES_PER_FRAME = MODEL_RATE_HZ // FPS
LISTENER_SAMPLES_PER_FRAME = LISTENER_RATE_HZ // FPS
ENCODER_CONTEXT_SAMPLES = LISTENER_RATE_HZ // 10
"""Listener samples (100 ms) an encode job carries before its first frame, so that a fresh Opus
encoder has settled when the chunk begins."""

AudioEncodeMode = Literal["stream", "once"]
ContainerFormat = Literal["webm", "mp4"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one model's chunks: pixels, frames generated, frames carried over."""

    height: int
    width: int
    frames: int
    motion_frames: int

    @property
    def slice_frames(self) -> int:
        """Frames delivered by a full chunk in stream mode: those that are not carried over."""
        return self.frames - self.motion_frames

    @property
    def slice_samples(self) -> int:
        """16 kHz samples of speech behind one full chunk."""
        return self.slice_frames * MODEL_SAMPLES_PER_FRAME


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the graph says of a model it serves.

    ``reproducible`` is true when the same input, seed and model give the same bytes: one row per
    step, a fixed number of steps, a kernel choice frozen at start.
    """

    name: str
    geometry: Geometry
    steps: int
    allowed_steps: tuple[int, ...]
    reproducible: bool
    description: str


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session is opened with; nothing in it changes while the session lives.

    ``portrait`` is ``[height, width, 3]`` uint8 RGB, already at the model's geometry. ``live`` says that
    somebody watches while the video is made, so that it must be made in real time.
    """

    session_id: str
    model: str
    portrait: np.ndarray
    seed: int
    steps: int
    audio_encode: AudioEncodeMode
    live: bool = True


@dataclass(frozen=True, slots=True)
class AudioSlice:
    """The 16 kHz speech that conditions one chunk.

    In ``stream`` mode ``samples`` is the new speech, ``[<= slice_samples]`` float32 in [-1, 1]; it
    joins the session's 8 s audio cache. In ``once`` mode it is the part of the padded clip to
    encode, ``rows`` the feature rows within it that belong to the chunk's frames
    (``[start, start + frames)``) and ``statistics`` the mean and population variance of the whole
    padded clip, by which it is normalised.
    """

    samples: np.ndarray
    rows: tuple[int, int] | None = None
    statistics: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class AudioWindow:
    """What AudioEncoder encodes: ``samples`` ``[n]`` float32 at 16 kHz, not yet normalised, and the
    feature rows ``[first_row, end_row)`` of it that are wanted back.

    ``statistics`` (mean, variance) replace those of ``samples`` where given.
    """

    samples: np.ndarray
    first_row: int
    end_row: int
    statistics: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ChunkCall:
    """One call of a session to its generator.

    Of the ``frames`` generated, ``[first_frame, first_frame + frame_count)`` are delivered. The
    slice of the next chunk travels along where it is known, so that it is encoded meanwhile.
    ``epoch`` counts the session's openings: a call of an earlier one is refused. ``slack_s`` is the
    playout time left before the chunk is late, ``None`` where nobody is watching yet. After a
    ``final`` chunk the session's state is no longer advanced.
    """

    session_id: str
    epoch: int
    index: int
    audio: AudioSlice
    next_audio: AudioSlice | None
    first_frame: int
    frame_count: int
    final: bool
    slack_s: float | None = None


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """What Encoder needs beside a chunk's frames; a pure function of both gives the same bytes.

    ``pcm48`` is ``[ENCODER_CONTEXT_SAMPLES + 1920 * frame_count]`` float32 at 48 kHz: the left
    context (zeros before t = 0), then the chunk, zero-padded past ``valid_samples``. ``frame_count``
    is 0 for the audio-only cluster that closes a stream whose end came after a full chunk.
    """

    start_ms: int
    frame_count: int
    pcm48: np.ndarray
    valid_samples: int
    final: bool
    container: ContainerFormat = "webm"
