"""The Encoder deployment: one chunk's frames and sound to the bytes sent to the reader. Stateless."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import ray
from ray.exceptions import RayError

from serve_app.config import VideoSettings
from serve_app.deployments.logs import join_serve_logging
from serve_app.deployments.metrics import ServeRecorder
from serve_app.errors import FramesLost
from serve_app.media.chunk_encoder import ChunkEncoder, finalise_mp4
from serve_app.tracing import observed
from serve_app.types import EncodeJob

logger = logging.getLogger(__name__)
T = TypeVar("T")


async def fetched(frames: Sequence[ray.ObjectRef]) -> np.ndarray | None:
    """A chunk's frames, brought to this node.

    They come as a reference in a sequence, which Ray does not look into: an argument that cannot be read
    would fail the call before it is accepted, and where its maker is unreachable Serve's router takes that
    for an unreachable Encoder and tries for ever (Ray 2.60).

    Raises:
        FramesLost: they died with their node, or with what was making them.
    """
    for reference in frames:
        try:
            pixels: np.ndarray = await reference
        except RayError as error:
            logger.warning("a chunk's frames are lost: %s", error)
            raise FramesLost("the chunk's frames cannot be read any more") from None
        return pixels
    return None


class Encoder:
    """Compresses chunks. Codecs release the GIL, so ``threads`` chunks are encoded at a time."""

    def __init__(self, video: VideoSettings, threads: int = 1) -> None:
        join_serve_logging()
        self._recorder = ServeRecorder()
        self._video = video
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="encode")

    async def ready(self) -> None:
        """Answered by a replica that takes jobs."""

    async def encode(self, frames: Sequence[ray.ObjectRef], job: EncodeJob, height: int, width: int) -> bytes:
        """One chunk's WebM cluster or MP4 samples.

        ``frames`` refers to ``[frame_count, height * 3 // 2, width]`` uint8 yuv420p; it is empty for a
        closing cluster that holds sound alone.

        Raises:
            FramesLost: the frames cannot be read.
        """
        pixels = await fetched(frames)

        def encoded() -> bytes:
            with observed(self._recorder, "encode"):
                return ChunkEncoder(self._video, height, width).encode(pixels, job)

        return await self._run(encoded)

    async def finalise_mp4(
        self, chunks: Sequence[bytes], pcm48: np.ndarray, height: int, width: int
    ) -> bytes:
        """A whole MP4 file from its chunks' samples and the clip's sound ``[n]`` float32 at 48 kHz."""
        return await self._run(lambda: finalise_mp4(height, width, chunks, pcm48))

    async def _run(self, work: Callable[[], T]) -> T:
        in_trace = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._threads, in_trace, work)
