"""A graph without networks for tests of the handles: its state is a hash chained over the speech, so any
lost, doubled or reordered chunk changes every cluster after it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import Limits
from serve_app.deployments.encoder import fetched
from serve_app.deployments.handles import (
    AUDIO_ATTEMPT_S,
    MADE,
    ServeEncoder,
    ServeGenerator,
    call_until_answered,
)
from serve_app.deployments.router import pinned
from serve_app.errors import AtCapacity, FramesLost, OutOfRange, ReplicaLost
from serve_app.session.clock import MonotonicClock
from serve_app.session.conductor import Conductor
from serve_app.session.timeline import ClipTimeline
from serve_app.types import ChunkCall, EncodeJob, SessionSpec

from session.fakes import GEOMETRY, spec, speech

CHUNK_S = 0.1
PLACES = 3
CANCELLED_CALLS = ((1, 0), (3, 1))
"""In sessions whose name begins with ``cancelled``: (chunk, answers given) at which a replica forgets the
session and cancels its own call, once."""
CANCELLED_MS = -1
"""``start_ms`` of an encode call that its replica cancels."""


class ChainReplica:
    """Generates frames from a hash chained over the speech; its state moves by snapshot alone."""

    def __init__(self) -> None:
        self._states: dict[str, bytes] = {}
        self._epochs: dict[str, int] = {}
        self._cancelled: set[tuple[int, int]] = set()

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> str:
        uid = str(serve.get_replica_context().replica_id.unique_id)
        if len(self._states) >= PLACES:
            raise AtCapacity("full", value=uid)
        self._states[spec.session_id] = snapshot or b"new"
        self._epochs[spec.session_id] = epoch
        return uid

    async def chunk(self, call: ChunkCall) -> AsyncGenerator[np.ndarray | bytes, None]:
        if call.index == 1000:
            raise OutOfRange("planted", value=call.index)
        state = hashlib.sha256(self._states[call.session_id] + call.audio.samples.tobytes()).digest()
        await asyncio.sleep(CHUNK_S / 2)
        self._cancel(call, 0)
        yield MADE
        yield np.frombuffer(state * 32_000, np.uint8)
        await asyncio.sleep(CHUNK_S / 2)
        self._cancel(call, 1)
        self._states[call.session_id] = state
        yield state

    def _cancel(self, call: ChunkCall, answers: int) -> None:
        here = call.index, answers
        if not call.session_id.startswith("cancelled") or here in self._cancelled:
            return
        if here in CANCELLED_CALLS:
            self._cancelled.add(here)
            del self._states[call.session_id]
            raise asyncio.CancelledError

    async def close(self, session_id: str, epoch: int) -> None:
        if self._epochs.get(session_id, epoch) <= epoch:
            self._states.pop(session_id, None)

    def sessions(self) -> tuple[int, int]:
        return os.getpid(), len(self._states)

    def record_routing_stats(self) -> dict[str, int]:
        return {"streams": len(self._states), "batch": 0, "places": PLACES, "capacity": PLACES}


class HashReplica:
    """An encoder whose cluster is a digest of what it was given."""

    async def encode(self, frames: list[ray.ObjectRef], job: EncodeJob, height: int, width: int) -> bytes:
        if job.start_ms == CANCELLED_MS:
            raise asyncio.CancelledError
        pixels = await fetched(frames)
        assert pixels is not None
        return hashlib.sha256(pixels.tobytes()).hexdigest().encode() + f" {job.start_ms}".encode()


class PidReplica:
    """Answers which process it is."""

    async def pid(self) -> int:
        return os.getpid()


class Front:
    """Runs conductors and single calls inside a replica, where handles are used in production."""

    def __init__(
        self, generator: DeploymentHandle, encoder: DeploymentHandle, stateless: DeploymentHandle
    ) -> None:
        self._handle = generator
        self._stateless = stateless
        self._generator = ServeGenerator(generator)
        self._encoder = ServeEncoder(encoder, GEOMETRY, patience_s=30)

    async def play(self, name: str, seconds: float) -> tuple[list[bytes], int, float]:
        timeline = ClipTimeline(*speech(seconds, seed=len(name)), GEOMETRY, "stream")
        running = Conductor(
            spec(name),
            timeline,
            self._generator,
            self._encoder,
            MonotonicClock(),
            Limits(resume_timeout_s=60),
        )
        clusters: list[bytes] = []
        gaps = [asyncio.get_running_loop().time()]

        async def deliver(cluster: bytes) -> None:
            clusters.append(cluster)
            gaps.append(asyncio.get_running_loop().time())

        await running.run(deliver)
        return clusters, running.resumptions, float(np.diff(gaps).max())

    async def burst(self, count: int) -> list[int]:
        """Open ``count`` sessions at once; the pid each landed on. All are closed again."""
        openings = (self._generator.open(spec(f"burst{index}"), 1, None) for index in range(count))
        sessions = await asyncio.gather(*openings, return_exceptions=True)
        pids = []
        for session in sessions:
            if not isinstance(session, BaseException):
                pids.append((await session._handle.sessions.remote())[0])
                await session.close()
        for session in sessions:
            if isinstance(session, BaseException):
                raise session
        return pids

    async def error_of(self, index: int) -> str:
        session = await self._generator.open(spec("error"), 1, None)
        plan = ClipTimeline(*speech(1.0), GEOMETRY, "stream").peek(0)
        assert plan is not None
        call = ChunkCall("error", 1, index, plan.audio, None, 9, 24, False)
        try:
            async with aclosing(session.chunk(call)) as answers:
                await anext(answers)
        except OutOfRange as error:
            return f"OutOfRange {error.value}"
        finally:
            await session.close()
        return "none"

    async def lost_frames(self) -> str:
        """What an encode call says whose frames died with their producer."""
        producer = ray.remote(_Producer).options(num_cpus=0).remote()
        frames = producer.frames.remote()
        await producer.die.remote()
        job = EncodeJob(0, 24, np.zeros(1, np.float32), 1, False)
        try:
            await asyncio.wait_for(self._encoder.encode(frames, job), 20)
        except FramesLost as error:
            return str(error)
        return "none"

    async def encoder_defect(self) -> str:
        """What an encode call says that fails in the encoder itself."""
        job = EncodeJob(0, 24, np.zeros(1, np.float32), 1, False)
        try:
            await self._encoder.encode(None, job)
        except AssertionError as error:
            return type(error).__name__
        return "none"

    async def cancelled_encode(self) -> str:
        """What an encode call says that its replica cancelled."""
        job = EncodeJob(CANCELLED_MS, 24, np.zeros(1, np.float32), 1, False)
        try:
            await self._encoder.encode(None, job)
        except ReplicaLost as error:
            return str(error)
        return "none"

    async def answered_by(self, calls: int) -> list[int]:
        """Which process answered each of so many calls, made one after another."""
        patience_s = 30 * AUDIO_ATTEMPT_S
        return [
            await call_until_answered(self._stateless.pid.remote, AUDIO_ATTEMPT_S, patience_s, "Pid")
            for _ in range(calls)
        ]

    async def lost(self) -> str:
        try:
            await self._handle.options(session_id=pinned("gone")).sessions.remote()
        except ReplicaLost as error:
            return str(error.value)
        return "none"


class _Producer:
    """Dies before its frames are made."""

    async def frames(self) -> np.ndarray:
        await asyncio.sleep(60)
        return np.zeros(1_000_000, np.uint8)

    async def die(self) -> None:
        asyncio.get_running_loop().call_later(0.1, os._exit, 1)
