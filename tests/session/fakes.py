"""A generator, an encoder and a clock without networks, codecs or waiting; ordinary implementations of
the conductor's protocols, with faults that happen where a test says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serve_app.errors import AtCapacity, FramesLost, ReplicaLost
from serve_app.metrics import Metric
from serve_app.types import ChunkCall, EncodeJob, Geometry, SessionSpec

GEOMETRY = Geometry(height=32, width=32, frames=33, motion_frames=9)


def speech(seconds: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise as (16 kHz, 48 kHz) copies of the same length in time."""
    samples = int(seconds * 16_000)
    rng = np.random.default_rng(seed)
    pcm16 = rng.standard_normal(samples).astype(np.float32) * 0.1
    return pcm16, np.repeat(pcm16, 3)


def spec(session_id: str = "s", seed: int = 42) -> SessionSpec:
    portrait = np.zeros((GEOMETRY.height, GEOMETRY.width, 3), np.uint8)
    return SessionSpec(session_id, "null", portrait, seed, 4, "stream")


class FakeClock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


@dataclass
class ListRecorder:
    """Keeps what it is given, and refuses what a metrics library would."""

    taken: list[tuple[Metric, float, dict[str, str]]] = field(default_factory=list)

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        assert set(tags) == set(metric.tags), f"{metric.name} recorded with {sorted(tags)}"
        assert all(isinstance(tag, str) for tag in tags.values())
        assert value > 0 or metric.kind != "counter"
        self.taken.append((metric, value, tags))

    def values(self, metric: Metric, **tags: str) -> list[float]:
        """What was recorded of a metric with (at least) these tags, in order."""
        return [
            value for taken, value, given in self.taken if taken is metric and tags.items() <= given.items()
        ]


@dataclass
class ChainGenerator:
    """Its state is a hash chained over the speech, so any lost, doubled or reordered chunk changes every
    frame after it. ``faults`` maps (opening, chunk index, item) to an error raised there."""

    faults: dict[tuple[int, int, int], BaseException] = field(default_factory=dict)
    open_faults: list[BaseException | None] = field(default_factory=list)
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    opened: list[tuple[str, int, bytes | None]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    closed_openings: list[int] = field(default_factory=list)
    close_s: float = 0.0
    slacks: list[float | None] = field(default_factory=list)
    before_frames: Callable[[ChunkCall], object] | None = None
    opens: bool = True
    """Whether ``open`` is ever answered."""
    chunk_s: float = 0.0
    stalls: set[tuple[int, int]] = field(default_factory=set)
    """(opening, chunk index) of calls that are never answered."""

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> ChainSession:
        if not self.opens:
            await asyncio.Event().wait()
        if self.open_faults and (fault := self.open_faults.pop(0)) is not None:
            raise fault
        self.opened.append((spec.session_id, epoch, snapshot))
        return ChainSession(self, spec, len(self.opened), snapshot or f"{spec.seed}".encode())


class ChainSession:
    def __init__(self, generator: ChainGenerator, spec: SessionSpec, opening: int, state: bytes) -> None:
        self._generator, self._spec, self._opening, self._state = generator, spec, opening, state

    async def chunk(self, call: ChunkCall) -> AsyncGenerator[np.ndarray | bytes, None]:
        generator = self._generator
        generator.calls.append((call.session_id, call.epoch, call.index))
        generator.slacks.append(call.slack_s)
        state = hashlib.sha256(self._state + call.audio.samples.tobytes()).digest()
        self._fail(call, 0)
        if (self._opening, call.index) in generator.stalls:
            await asyncio.Event().wait()
        if generator.chunk_s:
            await asyncio.sleep(generator.chunk_s)
        if generator.before_frames is not None:
            generator.before_frames(call)
        yield np.frombuffer(state * call.frame_count, np.uint8)
        self._fail(call, 1)
        self._state = state
        yield b"" if call.final else state

    def _fail(self, call: ChunkCall, item: int) -> None:
        if (fault := self._generator.faults.pop((self._opening, call.index, item), None)) is not None:
            raise fault

    async def close(self) -> None:
        await asyncio.sleep(self._generator.close_s)
        self._generator.closed.append(self._spec.session_id)
        self._generator.closed_openings.append(self._opening)


@dataclass
class TextEncoder:
    """A cluster is a line of text about its chunk; ``faults`` are raised by successive calls."""

    faults: dict[int, list[BaseException]] = field(default_factory=dict)
    pause_s: float = 0.0
    stalls: set[int] = field(default_factory=set)
    """``start_ms`` of chunks whose first call is never answered."""
    done: list[int] = field(default_factory=list)

    async def encode(self, frames: np.ndarray | None, job: EncodeJob) -> bytes:
        await asyncio.sleep(self.pause_s)
        if job.start_ms in self.stalls:
            self.stalls.remove(job.start_ms)
            await asyncio.Event().wait()
        if waiting := self.faults.get(job.start_ms):
            raise waiting.pop(0)
        digest = hashlib.sha256(frames.tobytes() if frames is not None else b"").hexdigest()[:8]
        self.done.append(job.start_ms)
        return f"{job.start_ms} {job.frame_count} {job.valid_samples} {job.final} {digest}\n".encode()

    async def finalise_mp4(self, chunks: Sequence[bytes], pcm48: np.ndarray) -> bytes:
        return b"mp4" + b"".join(chunks)


LOST = ReplicaLost("planted")
FRAMES_LOST = FramesLost("planted")
FULL = AtCapacity("planted", value="replica")
CANCELLED = asyncio.CancelledError()
"""A call that was cancelled, though its caller was not."""
