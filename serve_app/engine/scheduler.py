"""Which operation the engine does next: iteration-level scheduling by playout slack.

The unit is one operation of the engine (begin, one denoising step, decode, advance), so a newcomer
waits for a step and not for a chunk. ``schedule`` only decides; it reads a clock value and measured
costs and changes nothing. ``EngineLoop`` does what it says.

A chunk's slack is its playout deadline less now and less the time its work takes. Chunks are ordered by
the slack they had before their work began: what a chunk has left shrinks as it is worked on, so by its
slack of the moment two chunks of equal urgency would take turns step by step and both end late. With
one cost for all this is earliest deadline first, which meets every deadline that can be met. Work that
nobody waits for has no deadline: it comes after all that has one, in order of arrival.

A stream far ahead of its player still goes on: its chunks count as due ``MOST_SLACK_S`` after they were asked
for, so that streams that catch up after a loss are made first only until they have about that much in hand.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_SLACK_S = 2.0
"""Seconds. Chunks that could wait longer go in order of arrival, and one that has waited so long goes before
all that are due later. About two chunks' playout time: an engine that makes a chunk of each of its streams
in less never comes to it."""


class Stage(enum.Enum):
    """The engine's operations on a chunk, in order."""

    BEGIN = "begin"
    DENOISE = "denoise"
    DECODE = "decode"
    ADVANCE = "advance"


@dataclass(frozen=True, slots=True)
class Job:
    """A chunk as the scheduler sees it.

    Attributes:
        key: whose it is; unique among the jobs.
        order: of arrival.
        stage: its next operation.
        steps, steps_left: denoising steps in all, and still to do.
        asked_s: when the chunk was asked for, on the same clock as its deadline.
        deadline_s: when its frames are due, on the clock of ``now_s``; ``None`` if nobody waits.
        period_s: playout time of its frames. Advancing is due with the next chunk's frames.
    """

    key: int
    order: int
    stage: Stage
    steps: int
    steps_left: int
    asked_s: float
    deadline_s: float | None = None
    period_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One operation on the chunks of ``keys``; several only where the operation is ``DENOISE``."""

    stage: Stage
    keys: tuple[int, ...]


class StepCosts:
    """Measured seconds of each operation: exponential moving averages, 0 before the first one."""

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._seconds: dict[tuple[Stage, int], float] = {}

    def observe(self, stage: Stage, rows: int, seconds: float) -> None:
        """Take one measurement in, as twice what is known at most: a pause is not a slower device."""
        known = self._seconds.get((stage, rows), seconds)
        self._seconds[stage, rows] = known + self._weight * (min(seconds, 2 * known) - known)

    def seconds(self, stage: Stage, rows: int = 1) -> float:
        """What ``stage`` takes with ``rows`` rows; in proportion to the nearest number measured where
        this one never was."""
        measured = [count for known, count in self._seconds if known is stage]
        if not measured:
            return 0.0
        nearest = min(measured, key=lambda count: abs(count - rows))
        return self._seconds[stage, nearest] * rows / nearest

    def chunk(self, steps: int) -> float:
        """From begin to frames, alone."""
        ends = self.seconds(Stage.BEGIN) + self.seconds(Stage.DECODE)
        return ends + steps * self.seconds(Stage.DENOISE)

    @property
    def complete(self) -> bool:
        """Whether every stage has been measured."""
        return {stage for stage, _ in self._seconds} == set(Stage)

    def whole_chunk(self, steps: int, rows: int) -> float:
        """One chunk's share of the engine's time, from begin to advance, with ``rows`` in each step."""
        ends = self.seconds(Stage.BEGIN) + self.seconds(Stage.DECODE) + self.seconds(Stage.ADVANCE)
        return ends + steps * self.seconds(Stage.DENOISE, rows) / rows


def remaining_s(job: Job, costs: StepCosts) -> float:
    """Work until the frames next due of the job's session are out."""
    if job.stage is Stage.ADVANCE:
        return costs.seconds(Stage.ADVANCE) + costs.chunk(job.steps)
    begin = costs.seconds(Stage.BEGIN) if job.stage is Stage.BEGIN else 0.0
    return begin + job.steps_left * costs.seconds(Stage.DENOISE) + costs.seconds(Stage.DECODE)


def slack_s(job: Job, now_s: float, costs: StepCosts) -> float:
    """How long the job's work could wait and its frames still be in time; infinite where nobody waits."""
    return _due_s(job) - now_s - remaining_s(job, costs)


def schedule(now_s: float, jobs: Sequence[Job], costs: StepCosts, max_rows: int = 1) -> StepPlan | None:
    """The next operation, ``None`` if there is nothing to do.

    The most urgent job decides it. Where that is to be denoised, others join it in order of urgency, up
    to ``max_rows``; those nobody waits for only while that makes no other late. Who could join but is
    still to begin, or to advance past its last chunk, does that first: otherwise rows are hardly ever
    ready together (simulated at equal cost of all operations: three sessions held instead of six).
    """
    ordered = sorted(jobs, key=lambda job: _urgency(job, costs))
    if not ordered:
        return None
    first = ordered[0]
    if first.stage is not Stage.DENOISE:
        return StepPlan(first.stage, (first.key,))
    batch = [first]
    for job in ordered[1:]:
        if len(batch) == max_rows:
            break
        if job.stage is not Stage.DECODE and _may_join(job, batch, now_s, costs):
            if job.stage is not Stage.DENOISE:
                return StepPlan(job.stage, (job.key,))
            batch.append(job)
    return StepPlan(Stage.DENOISE, tuple(job.key for job in batch))


def _may_join(job: Job, batch: Sequence[Job], now_s: float, costs: StepCosts) -> bool:
    """Whether the batch can carry one more row."""
    if job.deadline_s is not None:
        return True
    rows = len(batch)
    added = costs.seconds(Stage.DENOISE, rows + 1) - costs.seconds(Stage.DENOISE, 1)
    return all(slack_s(other, now_s, costs) >= added * other.steps_left for other in batch)


def _urgency(job: Job, costs: StepCosts) -> tuple[float, int]:
    """Orders like the slack before the work began, whatever the time is."""
    work = costs.chunk(job.steps)
    if job.stage is Stage.ADVANCE:
        work += costs.seconds(Stage.ADVANCE)
    return min(_due_s(job), _bound_s(job)) - work, job.order


def _bound_s(job: Job) -> float:
    """When the job counts as due however far its stream is ahead."""
    return math.inf if job.deadline_s is None else job.asked_s + MOST_SLACK_S


def _due_s(job: Job) -> float:
    if job.deadline_s is None:
        return math.inf
    return job.deadline_s + (job.period_s if job.stage is Stage.ADVANCE else 0.0)
