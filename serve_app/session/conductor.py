"""The one chunk loop: it takes a session from its timeline to its reader.

Chunk ``k`` is generated, its frames go to the encoder as a reference nobody here reads, its snapshot
is kept, chunk ``k + 1`` follows while ``k`` is still being encoded, and clusters are delivered in
order. There is one call of a session at a time, always.

What serves the session may die at any moment. Kept for that: the last snapshot, the portrait and the
speech. A lost generator is replaced by opening the session elsewhere from the snapshot; a chunk whose
frames were handed over is computed again for its snapshot alone. A lost encoder is called again.
Frames that died with their node are computed again in a session of their own, from the snapshot before
them. Each of these gives the bytes an undisturbed run gives.

Nothing piles up: at most ``max_waiting_clusters`` chunks are made ahead of the reader, and a reader
that takes nothing for ``client_stall_s`` ends the session with ``SlowClient``.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from serve_app.config import Limits
from serve_app.errors import AtCapacity, FlashHeadError, FramesLost, ReplicaLost, SlowClient, Unavailable
from serve_app.session.cancellation import cancelled_call_is_lost
from serve_app.session.log import SessionLog
from serve_app.session.protocols import Clock, Encoder, Frames, Generator, GeneratorSession
from serve_app.session.timeline import ChunkPlan, Timeline
from serve_app.tracing import observed, tracer
from serve_app.types import ChunkCall, ContainerFormat, SessionSpec

T = TypeVar("T")
Deliver = Callable[[bytes], Awaitable[None]]
Waiting = asyncio.Queue["tuple[ChunkPlan, asyncio.Task[bytes]] | Exception | None"]
"""Chunks being encoded, in order; at the end ``None`` or the error that stopped their making."""

RETRY_PAUSE_S = 0.1
"""Pause before a call is made again; a dead replica is known to its routers within tens of ms."""


class Phase(enum.Enum):
    """Where a session stands. ``LOST`` is between losing a replica and opening on the next."""

    OPENING = "opening"
    RUNNING = "running"
    LOST = "lost"
    ENDED = "ended"


class Conductor:
    """Runs one session.

    Args:
        spec: what the session is opened with.
        timeline: its chunks.
        generator, encoder: what makes and what compresses them.
        clock: monotonic time, for playout slack and for giving up.
        limits: bounds on waiting clusters, on a stalled reader and on the search for a replica.
        container: what ``deliver`` is given: WebM clusters or MP4 samples, one item per chunk.
        log: what operators are told; nobody is, where absent.

    Chunks of a live session carry the playout time they have left; others wait their turn.
    """

    def __init__(
        self,
        spec: SessionSpec,
        timeline: Timeline,
        generator: Generator,
        encoder: Encoder,
        clock: Clock,
        limits: Limits,
        container: ContainerFormat = "webm",
        log: SessionLog | None = None,
    ) -> None:
        self.phase = Phase.OPENING
        self.resumptions = 0
        """How often the session was opened again after losing its replica."""
        self._spec = spec
        self._timeline = timeline
        self._generator = generator
        self._encoder = encoder
        self._clock = clock
        self._limits = limits
        self._container: ContainerFormat = container
        self._log = log or SessionLog({"session_id": spec.session_id, "model": spec.model}, clock)
        self._lost_by = ""
        self._session: GeneratorSession | None = None
        self._snapshot: bytes | None = None
        self._epoch = 0
        self._playout_start_s: float | None = None
        self._encodes: set[asyncio.Task[bytes]] = set()
        self._closings: set[asyncio.Task[None]] = set()

    async def run(self, deliver: Deliver) -> None:
        """Make every chunk and give each to ``deliver`` in order; return after the last.

        Cancelling this cancels all work of the session and closes it on its replica.

        Raises:
            AtCapacity: no place when the session was first opened.
            Unavailable: nothing took the session's work for ``resume_timeout_s`` after a loss, or one
                chunk lost its replica ``max_losses_per_chunk`` times.
            SlowClient: ``deliver`` took longer than ``client_stall_s``.
        """
        with self._log.running():
            self._enter(Phase.OPENING)
            await self._conduct(deliver)

    async def _conduct(self, deliver: Deliver) -> None:
        waiting: Waiting = asyncio.Queue(self._limits.max_waiting_clusters)
        producer = asyncio.create_task(self._produce(waiting))
        try:
            while (item := await waiting.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                plan, encoding = item
                await self._deliver(deliver, plan, await encoding)
        finally:
            self.phase = Phase.ENDED
            await _cancel_all({producer, *self._encodes})
            self._part()
            await asyncio.gather(*self._closings)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._log.state(phase.value)

    async def _deliver(self, deliver: Deliver, plan: ChunkPlan, cluster: bytes) -> None:
        slack_s = self._slack_s(plan)
        with observed(self._log.recorder, "deliver"):
            await self._hand_over(deliver, cluster)
        # Nobody plays what has not arrived: a reader that got a cluster late, or took it late, plays what
        # follows that much later.
        start_s = self._clock.now() - plan.start_ms / 1000
        known_s = self._playout_start_s
        self._playout_start_s = start_s if known_s is None else max(known_s, start_s)
        self._log.delivered(plan, None if slack_s is None else max(0.0, -slack_s))

    async def _hand_over(self, deliver: Deliver, cluster: bytes) -> None:
        try:
            async with asyncio.timeout(self._limits.client_stall_s):
                await deliver(cluster)
        except TimeoutError:
            raise SlowClient(
                f"the reader took nothing for {self._limits.client_stall_s:g} s; its stream is closed",
                value=self._limits.client_stall_s,
            ) from None

    async def _produce(self, waiting: Waiting) -> None:
        """Put every chunk, then the end, of which the reader always hears unless this task is cancelled."""
        end: Exception | None = None
        try:
            with cancelled_call_is_lost():
                await self._make_chunks(waiting)
        except Exception as error:
            end = error
        await waiting.put(end)

    async def _make_chunks(self, waiting: Waiting) -> None:
        index = 0
        while (plan := await self._timeline.plan(index)) is not None:
            with tracer.start_as_current_span("chunk", attributes={"chunk": index}):
                await self._make_chunk(plan, waiting)
            index += 1

    async def _make_chunk(self, plan: ChunkPlan, waiting: Waiting) -> None:
        """Generate one chunk, hand its frames over exactly once, keep its snapshot."""
        before = self._snapshot
        handed_over = False
        losses = 0
        while True:
            session = await self._opened(plan)
            called_s = self._clock.now()
            try:
                async with aclosing(session.chunk(self._call(plan, self._epoch))) as answers:
                    frames = await self._answer(anext(answers))
                    making_s = self._clock.now() - called_s
                    if not handed_over:
                        handed_over = True
                        await waiting.put((plan, self._start_encoding(plan, frames, before)))
                    del frames
                    advancing_s = self._clock.now()
                    self._snapshot = await self._answer(anext(answers))
                self._log.made(plan, making_s + self._clock.now() - advancing_s)
                return
            except ReplicaLost as error:
                losses += 1
                self._lose(plan, losses, error)

    def _lose(self, plan: ChunkPlan, losses: int, error: ReplicaLost) -> None:
        self._log.lost(plan.index, error)
        self._lost_by = error.code
        self._part()
        self._enter(Phase.LOST)
        if losses >= self._limits.max_losses_per_chunk:
            raise Unavailable(
                f"chunk {plan.index} lost its replica {losses} times, the last time by: {error}",
                code="chunk_lost",
                value=losses,
                retry_after_s=self._limits.retry_after_s,
            ) from error

    def _part(self) -> None:
        """Start to close the session where it is open. One that is lost may be on a replica that lives, and
        would keep a place there; nothing waits for it before the end."""
        if self._session is not None:
            closing = asyncio.create_task(self._session.close())
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)
            self._session = None

    async def _answer(self, answer: Awaitable[T], timeout_s: float | None = None) -> T:
        """What is awaited, within ``call_timeout_s`` or ``timeout_s``; past it, what was to answer counts as
        lost. So does what was cancelled by anyone but this task's owner."""
        timeout_s = timeout_s or self._limits.call_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                with cancelled_call_is_lost():
                    return await answer
        except TimeoutError:
            raise ReplicaLost(f"no answer within {timeout_s:g} s", code="no_answer") from None

    def _call(self, plan: ChunkPlan, epoch: int) -> ChunkCall:
        return ChunkCall(
            session_id=self._spec.session_id,
            epoch=epoch,
            index=plan.index,
            audio=plan.audio,
            next_audio=self._timeline.audio(plan.index + 1),
            first_frame=plan.first_frame,
            frame_count=plan.frame_count,
            final=plan.final,
            slack_s=self._slack_s(plan),
        )

    def _slack_s(self, plan: ChunkPlan) -> float | None:
        """Playout time left until the chunk is due; 0 before the first cluster is out."""
        if not self._spec.live:
            return None
        if self._playout_start_s is None:
            return 0.0
        return self._playout_start_s + plan.start_ms / 1000 - self._clock.now()

    async def _opened(self, plan: ChunkPlan) -> GeneratorSession:
        if self._session is None:
            self._epoch += 1
            lost = self.phase is Phase.LOST
            self._session = await self._open(self._spec, self._epoch, self._snapshot, patient=lost)
            if lost:
                self.resumptions += 1
                self._log.resumed(plan.index, self._lost_by)
            self._enter(Phase.RUNNING)
        return self._session

    async def _open(
        self, spec: SessionSpec, epoch: int, snapshot: bytes | None, patient: bool
    ) -> GeneratorSession:
        """Place a session; a ``patient`` one waits for a place, a new one is told there is none."""
        patience = _Patience(self._clock, self._limits)
        while True:
            try:
                with tracer.start_as_current_span("open", attributes={"epoch": epoch}):
                    opening = self._generator.open(spec, epoch, snapshot)
                    return await self._answer(opening, self._limits.resume_timeout_s)
            except (ReplicaLost, AtCapacity) as error:
                if isinstance(error, AtCapacity) and not patient:
                    raise
                await patience.wait(error)

    def _start_encoding(self, plan: ChunkPlan, frames: Frames, before: bytes | None) -> asyncio.Task[bytes]:
        task = asyncio.create_task(self._encode(plan, frames, before))
        self._encodes.add(task)
        task.add_done_callback(self._encodes.discard)
        return task

    async def _encode(self, plan: ChunkPlan, frames: Frames, before: bytes | None) -> bytes:
        job = plan.encode_job(self._container)
        patience = _Patience(self._clock, self._limits)
        while True:
            try:
                return await self._answer(self._encoder.encode(frames, job))
            except ReplicaLost as error:
                await patience.wait(error)
            except FramesLost as error:
                await patience.wait(error)
                frames = await self._generate_again(plan, before)

    async def _generate_again(self, plan: ChunkPlan, before: bytes | None) -> Frames:
        """The frames of a chunk handed over earlier, from a session opened for them alone.

        Its epoch is one the stream has not reached: no snapshot is ahead of it, and even where there is none
        yet the session counts as one that resumes. The call is heard to its end: one cut short may take its
        frames back.
        """
        # Not live: its one chunk is owed to the stream that has a place already.
        spec = replace(self._spec, session_id=f"{self._spec.session_id}.again{plan.index}", live=False)
        patience = _Patience(self._clock, self._limits)
        while True:
            epoch = self._epoch + 1
            session = await self._open(spec, epoch, before, patient=True)
            call = replace(self._call(plan, epoch), session_id=spec.session_id, next_audio=None, final=True)
            try:
                async with aclosing(session.chunk(call)) as answers:
                    frames = await self._answer(anext(answers))
                    await self._answer(anext(answers))
                self._log.resumed(plan.index, FramesLost.default_code)
                return frames
            except ReplicaLost as error:
                await patience.wait(error)
            finally:
                await session.close()


class _Patience:
    """Pauses between tries until ``resume_timeout_s`` have passed, then gives up."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self._clock = clock
        self._limits = limits
        self._deadline = clock.now() + limits.resume_timeout_s

    async def wait(self, error: FlashHeadError) -> None:
        """Pause once.

        Raises:
            Unavailable: the time is up; ``error`` is its cause.
        """
        if self._clock.now() >= self._deadline:
            raise Unavailable(
                f"nothing could go on with the session for {self._limits.resume_timeout_s:g} s: {error}",
                value=self._limits.resume_timeout_s,
                retry_after_s=self._limits.retry_after_s,
            ) from error
        await self._clock.sleep(RETRY_PAUSE_S)


async def _cancel_all(tasks: set[asyncio.Task[bytes] | asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
