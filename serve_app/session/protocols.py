"""What the conductor needs of a generator, an encoder and a clock.

The ingress gives it Serve handles, the command line objects in its own process, the tests a fake
clock and a null engine; all are ordinary implementations of these protocols.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

import numpy as np

from serve_app.types import ChunkCall, EncodeJob, SessionSpec

Frames = Any
"""One chunk's frames as the generator hands them out: ``[frame_count, height * 3 // 2, width]`` uint8
yuv420p, or a reference to such an array. The conductor passes it on unread."""


class GeneratorSession(Protocol):
    """A session open on one generator replica. Never called concurrently."""

    def chunk(self, call: ChunkCall) -> AsyncGenerator[Frames | bytes, None]:
        """Yield exactly two items: the chunk's frames, then the snapshot (bytes, empty after a
        final chunk).

        Raises:
            ReplicaLost: the replica is gone; open the session again from the last snapshot.
        """
        ...

    async def close(self) -> None:
        """Forget the session, unless it has been opened there again since. Ends within seconds, and never
        raises for a replica that is gone."""
        ...


class Generator(Protocol):
    """Opens sessions, new or from a snapshot."""

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> GeneratorSession:
        """Place the session on a replica.

        Raises:
            AtCapacity: no replica has a place.
            ReplicaLost: the replica chosen went away; try again.
        """
        ...


class Encoder(Protocol):
    """Turns one chunk's frames and sound into the bytes sent to the reader; stateless."""

    async def encode(self, frames: Frames | None, job: EncodeJob) -> bytes:
        """The chunk's WebM cluster (or MP4 samples), the same bytes every time.

        Raises:
            ReplicaLost: try again.
            FramesLost: the frames cannot be read; generate them again.
        """
        ...

    async def finalise_mp4(self, chunks: Sequence[bytes], pcm48: np.ndarray) -> bytes:
        """A whole MP4 file from the chunks' samples and the clip's sound, ``[n]`` float32 at 48 kHz."""
        ...


class Clock(Protocol):
    """Monotonic seconds and a sleep that follows them."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...
