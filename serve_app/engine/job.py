"""A chunk that is asked for, and its place in the step loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
from opentelemetry import context

from serve_app.engine.reference import Reference
from serve_app.engine.scheduler import Job, Stage
from serve_app.engine.state import SessionState
from serve_app.types import FRAME_MS, ChunkCall


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """One chunk to make: the session's state and reference, its speech features, the call."""

    state: SessionState
    reference: Reference
    features: np.ndarray
    call: ChunkCall


class Entry:
    """A job in the loop. ``frames`` and ``state`` are what its consumer waits for; ``trace`` is the trace
    context of who asked for it."""

    def __init__(self, job: ChunkJob, key: int, now_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.job = job
        self.key = key
        self.trace = context.get_current()
        self.row: Any = None
        self.stage = Stage.BEGIN
        self.frames: asyncio.Future[np.ndarray] = loop.create_future()
        self.state: asyncio.Future[SessionState] = loop.create_future()
        self.frames_taken = False
        self._asked_s = now_s
        slack_s = job.call.slack_s
        self._deadline_s = None if slack_s is None else now_s + slack_s

    @property
    def ready(self) -> bool:
        """Frames go out before the motion encode, which would hold them up."""
        return self.stage is not Stage.ADVANCE or self.frames_taken

    def view(self) -> Job:
        """As the scheduler sees it."""
        steps = self.job.state.steps
        return Job(
            key=self.key,
            order=self.key,
            stage=self.stage,
            steps=steps,
            steps_left=steps if self.row is None else self.row.steps_left,
            asked_s=self._asked_s,
            deadline_s=self._deadline_s,
            period_s=self.job.call.frame_count * FRAME_MS / 1000,
        )

    def give_frames(self, frames: np.ndarray) -> None:
        """Give the consumer its frames; one that was cancelled while it waited takes none."""
        if not self.frames.done():
            self.frames.set_result(frames)

    def give_state(self, state: SessionState) -> None:
        """Give the consumer the next state, likewise."""
        if not self.state.done():
            self.state.set_result(state)

    def fail(self, error: Exception) -> None:
        """Give ``error`` to the consumer in place of what it waits for."""
        awaited = self.state if self.frames_taken else self.frames
        if not awaited.done():
            awaited.set_exception(error)
