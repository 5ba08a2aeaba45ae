"""The Temporal Audio Context Cache: which speech is encoded for a chunk, and what stays for the next.

In ``stream`` mode a session keeps its last 8 s of speech, silence at first; a chunk appends its slice,
the whole 8 s are encoded and the last rows condition the chunk. Silence that pads a short slice is
seen by the model and then forgotten. In ``once`` mode a slice brings all it needs and nothing is kept.
Pure functions over numpy arrays. Source: FlashHead spec sections 4 and 7.
"""

from __future__ import annotations

import numpy as np

from serve_app.errors import OutOfRange
from serve_app.types import (
    MODEL_RATE_HZ,
    MODEL_SAMPLES_PER_FRAME,
    AudioEncodeMode,
    AudioSlice,
    AudioWindow,
    Geometry,
)

CACHE_SAMPLES = 8 * MODEL_RATE_HZ
CONTEXT_ROWS = 2
"""Feature rows a frame's window has on either side of the frame's own."""


def empty_cache(mode: AudioEncodeMode) -> np.ndarray:
    """What a new session holds: ``[128000]`` float32 of silence, or ``[0]`` in ``once`` mode."""
    return np.zeros(CACHE_SAMPLES if mode == "stream" else 0, dtype=np.float32)


def append(cache: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """``samples`` joined to the end of ``cache``, the oldest dropped; the cache's own length."""
    return np.concatenate([cache, samples])[len(samples) :]


def speech_frames(samples: np.ndarray) -> int:
    """Whole frames that cover ``samples``."""
    return -(-len(samples) // MODEL_SAMPLES_PER_FRAME)


def window(cache: np.ndarray, audio: AudioSlice, geometry: Geometry) -> tuple[AudioWindow, np.ndarray]:
    """What to encode for a chunk with ``audio``, and the cache after it.

    Raises:
        OutOfRange: a slice that is empty, longer than a chunk, or whose rows do not fit its samples.
    """
    _check(audio, geometry)
    start, end, available = frame_rows(audio, geometry)
    first, last = max(0, start - CONTEXT_ROWS), min(end + CONTEXT_ROWS, available)
    if audio.rows is not None:
        return AudioWindow(audio.samples, first, last, audio.statistics), cache
    heard = append(cache, _padded(audio.samples, geometry.slice_samples))
    frames = speech_frames(audio.samples)
    kept = append(cache, _padded(audio.samples, frames * MODEL_SAMPLES_PER_FRAME))
    return AudioWindow(heard, first, last), kept


def frame_rows(audio: AudioSlice, geometry: Geometry) -> tuple[int, int, int]:
    """``(start, end, available)``: the feature rows ``[start, end)`` of the chunk's frames among those
    that its window gives."""
    if audio.rows is not None:
        return *audio.rows, len(audio.samples) // MODEL_SAMPLES_PER_FRAME
    available = CACHE_SAMPLES // MODEL_SAMPLES_PER_FRAME
    return available - geometry.frames, available, available


def _padded(samples: np.ndarray, length: int) -> np.ndarray:
    padded = np.zeros(length, dtype=np.float32)
    padded[: len(samples)] = samples
    return padded


def _check(audio: AudioSlice, geometry: Geometry) -> None:
    samples = audio.samples
    if samples.ndim != 1 or samples.dtype != np.float32:
        _refuse(f"audio slice is {samples.dtype}{list(samples.shape)}", samples.shape, "[n] float32")
    if not np.isfinite(samples).all():
        _refuse("audio slice holds NaN or infinity", "not finite", "finite samples")
    if audio.rows is None:
        if not 1 <= len(samples) <= geometry.slice_samples:
            accepted = f"1 to {geometry.slice_samples} samples"
            _refuse(f"audio slice of {len(samples)} samples", len(samples), accepted)
        return
    start, end, available = frame_rows(audio, geometry)
    if end - start != geometry.frames or start < 0 or end > available:
        accepted = f"{geometry.frames} rows within [0, {available}]"
        _refuse(f"rows {audio.rows} of an audio slice", audio.rows, accepted)


def _refuse(what: str, value: object, accepted: str) -> None:
    raise OutOfRange(f"{what}, expected {accepted}", value=value, accepted=accepted)
