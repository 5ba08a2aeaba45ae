"""Synthetic clips and their clusters: a moving pattern, a sweep, flashes and clicks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from serve_app.config import VideoSettings
from serve_app.media.chunk_encoder import ChunkEncoder
from serve_app.media.pcm import job_pcm
from serve_app.types import (
    FRAME_MS,
    LISTENER_RATE_HZ,
    LISTENER_SAMPLES_PER_FRAME,
    ContainerFormat,
    EncodeJob,
)

CHUNK_FRAMES = 24
Picture = Callable[[int], np.ndarray]
"""The luma of frame ``i``, ``[height, width]`` uint8."""


def speech48() -> np.ndarray:
    """The shipped example speech, ``[n]`` float32 at 48 kHz."""
    path = Path(__file__).parents[2] / "examples" / "speech.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    return np.asarray(soxr.resample(samples, rate, LISTENER_RATE_HZ))


def sweep(samples: int) -> np.ndarray:
    """A tone that rises from 200 Hz, ``[samples]`` float32 at 48 kHz."""
    seconds = np.arange(samples) / LISTENER_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * (200 + 50 * seconds) * seconds)).astype(np.float32)


def moving_pattern(height: int, width: int) -> Picture:
    """Waves that travel."""
    rows, columns = np.mgrid[:height, :width]
    return lambda index: (
        128 + 80 * np.sin(columns / 20 + index / 9) * np.cos(rows / 30 - index / 25)
    ).astype(np.uint8)


def flat(height: int, width: int, level: Callable[[int], int]) -> Picture:
    """Frames of one grey level each."""
    return lambda index: np.full((height, width), level(index), np.uint8)


def yuv_frames(picture: Picture, first: int, count: int) -> np.ndarray:
    """``[count, height * 3 // 2, width]`` uint8 yuv420p, grey."""
    luma = np.stack([picture(first + index) for index in range(count)])
    chroma = np.full((count, luma.shape[1] // 2, luma.shape[2]), 128, np.uint8)
    return np.concatenate([luma, chroma], axis=1)


def jobs(
    pcm48: np.ndarray, chunk_frames: int = CHUNK_FRAMES, container: ContainerFormat = "webm"
) -> Iterator[EncodeJob]:
    """The encode jobs of a clip whose length is known from the start."""
    frame_count = -(-len(pcm48) // LISTENER_SAMPLES_PER_FRAME)
    for first in range(0, frame_count, chunk_frames):
        count = min(chunk_frames, frame_count - first)
        start = first * LISTENER_SAMPLES_PER_FRAME
        yield EncodeJob(
            start_ms=first * FRAME_MS,
            frame_count=count,
            pcm48=job_pcm(pcm48, start, count),
            valid_samples=min(len(pcm48) - start, count * LISTENER_SAMPLES_PER_FRAME),
            final=first + count == frame_count,
            container=container,
        )


def closing_job(pcm48: np.ndarray) -> EncodeJob:
    """The job that ends a stream whose last chunk was already sent as one in mid-stream."""
    start_ms = len(pcm48) * 1000 // LISTENER_RATE_HZ
    return EncodeJob(start_ms, 0, job_pcm(pcm48, len(pcm48), 0), valid_samples=0, final=True)


def encode_clip(
    pcm48: np.ndarray,
    picture: Picture,
    chunk_frames: int = CHUNK_FRAMES,
    container: ContainerFormat = "webm",
    video: VideoSettings | None = None,
) -> list[bytes]:
    """Every chunk of a clip, encoded."""
    encoder = ChunkEncoder(video or VideoSettings(), *picture(0).shape)
    return [
        encoder.encode(yuv_frames(picture, job.start_ms // FRAME_MS, job.frame_count), job)
        for job in jobs(pcm48, chunk_frames, container)
    ]
