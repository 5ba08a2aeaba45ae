"""The step loop: chunks of many sessions through one engine, one operation at a time.

The asyncio side knows the jobs and decides (``scheduler.schedule``); one worker thread does what was
decided. A job is dropped when its consumer goes, at the latest after the operation that is running.
What fails is one job's chunk, never the loop: rows of a failed forward are tried again one by one.

How many jobs there are is bounded by whoever calls ``run``: the session table has one per session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from serve_app.engine.job import ChunkJob, Entry
from serve_app.engine.protocols import ChunkEngine, Clock
from serve_app.engine.scheduler import Stage, StepCosts, StepPlan, schedule
from serve_app.engine.state import SessionState
from serve_app.errors import FlashHeadError, InternalError, ReplicaLost
from serve_app.metrics import BATCH_SIZE, CHUNK_STEPS, GPU_MEMORY, STAGE_TIME, NullRecorder, Recorder
from serve_app.tracing import past_span

logger = logging.getLogger(__name__)
T = TypeVar("T")


Outcome = np.ndarray | SessionState | Exception | None


class EngineLoop:
    """Runs chunks on an engine.

    Args:
        engine: used by this loop's thread alone from now on.
        max_rows: rows of a denoising step.
        clock: what deadlines are measured on.
        recorder: takes what its operations took.
    """

    def __init__(
        self, engine: ChunkEngine, max_rows: int, clock: Clock, recorder: Recorder | None = None
    ) -> None:
        self.engine = engine
        self.costs = StepCosts()
        self.busy_s = 0.0
        """Seconds the worker has worked since the loop was made."""
        self._max_rows = max_rows
        self._clock = clock
        self._recorder = recorder or NullRecorder()
        self._entries: dict[int, Entry] = {}
        self._arrivals = 0
        self._changed = asyncio.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._driver: asyncio.Task[None] | None = None
        self._broken: Exception | None = None
        self._closed = False

    async def run(self, job: ChunkJob) -> AsyncGenerator[np.ndarray | SessionState | None, None]:
        """Yield the job's frames, then the session's next state (``None`` after a final chunk).

        Closing the generator drops the job.

        Raises:
            FlashHeadError: what the engine refused, or ``InternalError`` for a chunk that failed.
            ReplicaLost: the engine is broken or closed.
        """
        entry = self._enter(job)
        try:
            frames = await entry.frames
            # No await between here and the consumer: it has the frames before the next operation starts.
            entry.frames_taken = True
            self._changed.set()
            yield frames
            yield None if job.call.final else await entry.state
        finally:
            self._entries.pop(entry.key, None)

    def drop(self, job: ChunkJob, error: FlashHeadError) -> None:
        """Stop a job that is in the loop, as its consumer's ``error``; any other is left alone."""
        for entry in [entry for entry in self._entries.values() if entry.job is job]:
            del self._entries[entry.key]
            entry.fail(error)

    async def call(self, work: Callable[[], T]) -> T:
        """Do ``work`` on the engine's thread, between two operations."""
        self.check_health()
        value, seconds = await asyncio.get_running_loop().run_in_executor(self._worker, _timed, work)
        self.busy_s += seconds
        return value

    def check_health(self) -> None:
        """Raise where the loop cannot work any more.

        Raises:
            ReplicaLost: the device failed, or the loop was closed.
        """
        if self._broken is not None:
            raise ReplicaLost(f"the engine is broken: {self._broken!r}") from self._broken
        if self._closed:
            raise ReplicaLost("the engine is closed")

    async def aclose(self) -> None:
        """Stop after the operation that is running; chunks in the making fail with ``ReplicaLost``."""
        self._closed = True
        self._changed.set()
        if self._driver is not None:
            await self._driver
        self._fail_all(ReplicaLost("the engine is closed"))
        self._worker.shutdown(wait=False)

    def _enter(self, job: ChunkJob) -> Entry:
        self.check_health()
        self._arrivals += 1
        entry = Entry(job, self._arrivals, self._clock.now())
        self._entries[entry.key] = entry
        self._changed.set()
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive(), name="engine-loop")
        return entry

    async def _drive(self) -> None:
        """Plan, perform, settle, until closed or broken."""
        try:
            while not self._closed and self._broken is None:
                self._changed.clear()
                views = [entry.view() for entry in self._entries.values() if entry.ready]
                plan = schedule(self._clock.now(), views, self.costs, self._max_rows)
                if plan is None:
                    await self._changed.wait()
                else:
                    await self._perform(plan)
        except Exception as error:
            logger.exception("the engine loop failed")
            self._broken = error
        if self._broken is not None:
            self._fail_all(ReplicaLost(f"the engine is broken: {self._broken!r}"))

    async def _perform(self, plan: StepPlan) -> None:
        entries = [self._entries[key] for key in plan.keys]
        loop = asyncio.get_running_loop()
        outcomes, seconds = await loop.run_in_executor(
            self._worker, _timed, lambda: self._operate(plan.stage, entries)
        )
        self.busy_s += seconds
        if not any(isinstance(outcome, Exception) for outcome in outcomes):
            self.costs.observe(plan.stage, len(entries), seconds)
            self._tell(plan.stage, entries, seconds)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.key in self._entries:
                self._settle(entry, outcome)

    def _tell(self, stage: Stage, entries: Sequence[Entry], seconds: float) -> None:
        """Record an operation that has just succeeded."""
        model = self.engine.card.name
        self._recorder.record(STAGE_TIME, seconds, stage=stage.value)
        if stage is Stage.DENOISE:
            self._recorder.record(BATCH_SIZE, len(entries), model=model)
        elif stage is Stage.DECODE:
            self._recorder.record(CHUNK_STEPS, entries[0].job.state.steps, model=model)
            for state, size in self.engine.memory_bytes().items():
                self._recorder.record(GPU_MEMORY, size, model=model, state=state)
        for entry in entries:
            past_span(stage.value, entry.trace, seconds, {"rows": len(entries)})

    def _settle(self, entry: Entry, outcome: Outcome) -> None:
        """Move a job on by what its operation gave."""
        if isinstance(outcome, Exception):
            if self._broken is None:
                del self._entries[entry.key]
                entry.fail(outcome)
        elif entry.stage is Stage.DECODE:
            assert isinstance(outcome, np.ndarray)
            entry.stage = Stage.ADVANCE
            if entry.job.call.final:
                del self._entries[entry.key]
            entry.give_frames(outcome)
        elif entry.stage is Stage.ADVANCE:
            assert isinstance(outcome, SessionState)
            del self._entries[entry.key]
            entry.give_state(outcome)
        else:
            entry.stage = Stage.DENOISE if entry.row.steps_left else Stage.DECODE

    def _fail_all(self, error: Exception) -> None:
        entries, self._entries = self._entries, {}
        for entry in entries.values():
            entry.fail(error)

    def _operate(self, stage: Stage, entries: Sequence[Entry]) -> list[Outcome]:
        """On the worker thread: an operation's outcome for each entry, errors among them."""
        if len(entries) == 1:
            return [self._outcome(stage, entries[0])]
        before = [entry.row.steps_left for entry in entries]
        try:
            self.engine.denoise([entry.row for entry in entries])
            self.engine.synchronise()
        except Exception:
            logger.exception("a step of %d rows failed; those left behind are tried alone", len(entries))
            self._probe()
        return [
            self._outcome(stage, entry) if entry.row.steps_left == left else None
            for entry, left in zip(entries, before, strict=True)
        ]

    def _outcome(self, stage: Stage, entry: Entry) -> Outcome:
        try:
            outcome = self._apply(stage, entry)
            self.engine.synchronise()
            return outcome
        except FlashHeadError as error:
            return error
        except Exception as error:
            call = entry.job.call
            ids = {"session_id": call.session_id, "chunk": call.index}
            logger.exception("session %s: %s failed", call.session_id, stage.value, extra=ids)
            self._probe()
            failure = InternalError("a chunk could not be made; the server's log says why")
            failure.__cause__ = error
            return failure

    def _apply(self, stage: Stage, entry: Entry) -> Outcome:
        job = entry.job
        if stage is Stage.BEGIN:
            entry.row = self.engine.begin(job.state, job.reference, job.features, job.call)
        elif stage is Stage.DENOISE:
            self.engine.denoise([entry.row])
        elif stage is Stage.DECODE:
            return self.engine.decode(entry.row)
        else:
            return self.engine.advance(entry.row)
        return None

    def _probe(self) -> None:
        """After a failure: whether the device itself still works."""
        try:
            self.engine.synchronise()
        except Exception as error:
            logger.exception("the device failed; this engine takes no more work")
            self._broken = error


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and how many seconds it took."""
    started = time.perf_counter()
    value = work()
    return value, time.perf_counter() - started
