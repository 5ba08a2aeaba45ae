"""What operators are told of one session: its metrics, and log lines that carry its ids.

The lines are accepted, first frame, lost, resumed and ended; their numbers are fields of the record too, for
logs encoded as JSON.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.errors import ClientGone, FlashHeadError, InternalError
from serve_app.metrics import (
    ACTIVE_STREAMS,
    CHUNK_LATENESS,
    DELIVERED_FRAMES,
    ENDED_STREAMS,
    REAL_TIME_FACTOR,
    RESUMPTIONS,
    TIME_TO_FIRST_FRAME,
    NullRecorder,
    Recorder,
)
from serve_app.session.cancellation import told_to_end
from serve_app.session.protocols import Clock
from serve_app.session.timeline import ChunkPlan
from serve_app.tracing import tracer
from serve_app.types import FRAME_MS

logger = logging.getLogger(__name__)


class SessionLog:
    """The account of one session, from the moment its request was there.

    Args:
        ids: what its lines and its span carry, ``session_id`` and ``model`` among them.
        clock: monotonic seconds.
        recorder: takes its metrics.
        live: somebody watches while it is made. How soon and how fast the chunks of others come is not
            recorded: they wait for all live work, and would tell of viewers who do not exist.
        waited_s: how long ago the request was there.
    """

    def __init__(
        self,
        ids: dict[str, str],
        clock: Clock,
        recorder: Recorder | None = None,
        *,
        live: bool = True,
        waited_s: float = 0.0,
    ) -> None:
        self.recorder = recorder or NullRecorder()
        self._ids = ids
        self._model = ids["model"]
        self._clock = clock
        self._live = live
        self._speech_s = clock.now()
        self._asked_s = self._speech_s - waited_s
        self._state: str | None = None
        self._frames = 0
        self._late_s = 0.0
        self._making_s = 0.0
        self._made_s = 0.0

    def accepted(self, frame_count: int) -> None:
        """The upload is decoded: a video of that many frames will be made."""
        self._speech_s = self._clock.now()
        self._line(logging.INFO, f"accepted, {frame_count} frames", frames=frame_count)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The session runs within; how it ends is its outcome."""
        outcome = "completed"
        try:
            with tracer.start_as_current_span("session", attributes=self._ids):
                yield
        except BaseException as error:
            outcome = _outcome(error)
            raise
        finally:
            self._ended(outcome)

    def state(self, state: str | None) -> None:
        """The session is ``opening``, ``running`` or ``lost`` from now on; ``None`` once it has ended."""
        if self._state is not None:
            self.recorder.record(ACTIVE_STREAMS, -1, model=self._model, state=self._state)
        if state is not None:
            self.recorder.record(ACTIVE_STREAMS, 1, model=self._model, state=state)
        self._state = state

    def made(self, plan: ChunkPlan, seconds: float) -> None:
        """A chunk took that long from its call to its snapshot. One that fills only part of its frames
        costs as much as a whole one, so only those before the last count."""
        if not plan.final:
            playout_s = plan.frame_count * FRAME_MS / 1000
            self._making_s += seconds
            self._made_s += playout_s
            if self._live:
                self.recorder.record(REAL_TIME_FACTOR, seconds / playout_s, model=self._model)

    def delivered(self, plan: ChunkPlan, late_s: float | None) -> None:
        """A cluster was delivered, ``late_s`` after it was due; ``None`` where nobody waits for it."""
        if self._frames == 0:
            self._first_frame()
        self._frames += plan.frame_count
        if plan.frame_count:
            self.recorder.record(DELIVERED_FRAMES, plan.frame_count, model=self._model)
        if late_s is not None:
            self._late_s += late_s
            self.recorder.record(CHUNK_LATENESS, late_s, model=self._model)

    def lost(self, chunk: int, error: FlashHeadError) -> None:
        """What made a chunk is gone."""
        self._line(logging.WARNING, f"lost its replica in chunk {chunk}: {error}", chunk=chunk)

    def resumed(self, chunk: int, reason: str) -> None:
        """The session goes on elsewhere, or makes a chunk again there, having lost ``reason``."""
        self.recorder.record(RESUMPTIONS, 1, model=self._model, reason=reason)
        self._line(logging.INFO, f"resumed at chunk {chunk} after {reason}", chunk=chunk, reason=reason)

    def _first_frame(self) -> None:
        now = self._clock.now()
        if self._live:
            for since, began_s in (("request", self._asked_s), ("speech", self._speech_s)):
                self.recorder.record(TIME_TO_FIRST_FRAME, now - began_s, model=self._model, since=since)
        seconds = round(now - self._asked_s, 3)
        self._line(logging.INFO, f"first frame after {seconds:.2f} s", seconds=seconds)

    def _ended(self, outcome: str) -> None:
        self.state(None)
        self.recorder.record(ENDED_STREAMS, 1, model=self._model, outcome=outcome)
        seconds = self._clock.now() - self._asked_s
        factor = self._making_s / self._made_s if self._made_s else None
        self._line(
            logging.INFO,
            f"{outcome}, {self._frames} frames in {seconds:.2f} s, late by {self._late_s:.2f} s in all"
            + (f", real-time factor {factor:.2f}" if factor is not None else ""),
            outcome=outcome,
            frames=self._frames,
            seconds=round(seconds, 3),
            lateness_s=round(self._late_s, 3),
            real_time_factor=round(factor, 3) if factor is not None else None,
        )

    def _line(self, level: int, what: str, **fields: Any) -> None:
        logger.log(level, "session %s: %s", self._ids["session_id"], what, extra=self._ids | fields)


def _outcome(error: BaseException) -> str:
    """What a session ended with. It is cancelled when its client goes; a cancellation that nobody asked of
    its task comes out of a call it made, and is an error like any other."""
    if isinstance(error, FlashHeadError):
        return error.code
    if isinstance(error, asyncio.CancelledError) and told_to_end():
        return ClientGone.default_code
    return InternalError.default_code
