"""Every chunk of a fleet: each GPU does what ``serve_app.engine.scheduler.schedule`` says, operation by
operation.

Speech is spoken live: slice ``k`` is complete ``k + 1`` periods after the stream's opening. Playout starts
with the first cluster, as the conductor has it, and chunk ``k`` is due ``k`` periods later; a player's
pre-roll comes on top and changes no decision, so one run answers for every pre-roll.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serve_app.engine.scheduler import Job, Stage, StepPlan, schedule

from benchmarks.simulation.costs import PERIOD_S, STEPS, GpuType

FOLLOWING = {Stage.BEGIN: Stage.DENOISE, Stage.DECODE: Stage.ADVANCE}


class What(enum.Enum):
    """What happens to a stream: it opens on a GPU, moves to another at its next chunk (at once where it has
    none), loses the one it is on, is given up."""

    OPEN = "open"
    MOVE = "move"
    LOSE = "lose"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a fleet's history. ``chunks`` is the stream's length, given when it opens."""

    time_s: float
    what: What
    stream: int
    gpu: int = -1
    chunks: int = 0


@dataclass(slots=True)
class Played:
    """How a stream's chunks came out.

    ``overdue_s`` is when each was delivered after it was due; negative for one that was early. ``first_s`` is
    the time from the first slice's end to the first cluster.
    """

    chunks: int
    first_s: float = 0.0
    overdue_s: list[float] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Stream:
    """A stream between two operations.

    ``index`` is of the chunk in the making, which is due at ``due_s`` by the conductor's clock: at once until
    the first cluster is out. ``wanted`` is the GPU it moves to at its next chunk.
    """

    opened_s: float
    played: Played
    gpu: _Gpu | None
    wanted: _Gpu | None = None
    stage: Stage = Stage.BEGIN
    steps_left: int = STEPS
    index: int = 0
    order: int = 0
    released_s: float = 0.0
    due_s: float = 0.0
    playout_start_s: float | None = None


@dataclass(eq=False, slots=True)
class _Gpu:
    """A GPU: its streams and whether it computes."""

    streams: dict[int, _Stream] = field(default_factory=dict)
    busy: bool = False


class ChunkFleet:
    """GPUs of one type and the streams of a history on them."""

    def __init__(self, gpu_type: GpuType) -> None:
        self._max_rows = gpu_type.max_rows
        self._costs = gpu_type.step_costs()
        self._now = 0.0
        self._count = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._gpus: dict[int, _Gpu] = {}
        self._streams: dict[int, _Stream] = {}
        self._played: list[Played] = []

    def run(self, history: Iterable[Event]) -> list[Played]:
        """Play the history to the end of its last stream; what became of each, in order of opening."""
        for event in history:
            self._until(event.time_s)
            self._happen(event)
        self._until(float("inf"))
        return self._played

    def _until(self, time_s: float) -> None:
        while self._agenda and self._agenda[0][0] <= time_s:
            self._now, _, action = heapq.heappop(self._agenda)
            action()
        self._now = max(self._now, time_s) if time_s < float("inf") else self._now

    def _at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time_s, next(self._count), action))

    def _happen(self, event: Event) -> None:
        if event.what is What.OPEN:
            self._open(event)
        elif (stream := self._streams.get(event.stream)) is None:
            return
        elif event.what is What.MOVE:
            stream.wanted = self._gpus.setdefault(event.gpu, _Gpu())
            if stream.gpu is None or stream.stage is Stage.BEGIN:
                self._move(event.stream, stream)
        else:
            self._leave(event.stream, stream)
            if event.what is What.GIVE_UP:
                del self._streams[event.stream]

    def _open(self, event: Event) -> None:
        gpu = self._gpus.setdefault(event.gpu, _Gpu())
        stream = self._streams[event.stream] = _Stream(self._now, Played(event.chunks), gpu)
        gpu.streams[event.stream] = stream
        self._played.append(stream.played)
        self._release(stream)

    def _leave(self, key: int, stream: _Stream) -> None:
        """Off its GPU. A chunk in the making is made again from its beginning, for its snapshot alone where
        it was delivered."""
        if stream.gpu is not None:
            del stream.gpu.streams[key]
        stream.gpu = None
        stream.stage, stream.steps_left = Stage.BEGIN, STEPS

    def _move(self, key: int, stream: _Stream) -> None:
        self._leave(key, stream)
        assert stream.wanted is not None
        stream.gpu, stream.wanted = stream.wanted, None
        stream.gpu.streams[key] = stream
        self._release(stream)

    def _release(self, stream: _Stream) -> None:
        """The stream's next chunk: its slice may still be being spoken."""
        gpu = stream.gpu
        assert gpu is not None
        stream.order = next(self._count)
        stream.released_s = max(self._now, stream.opened_s + (stream.index + 1) * PERIOD_S)
        start_s = stream.playout_start_s
        stream.due_s = stream.released_s if start_s is None else start_s + stream.index * PERIOD_S
        self._at(stream.released_s, lambda: self._start(gpu))

    def _start(self, gpu: _Gpu) -> None:
        if gpu.busy:
            return
        jobs = [
            Job(
                key,
                stream.order,
                stream.stage,
                STEPS,
                stream.steps_left,
                stream.released_s,
                stream.due_s,
                PERIOD_S,
            )
            for key, stream in gpu.streams.items()
            if stream.released_s <= self._now
        ]
        plan = schedule(self._now, jobs, self._costs, self._max_rows)
        if plan is not None:
            gpu.busy = True
            seconds = self._costs.seconds(plan.stage, len(plan.keys))
            self._at(self._now + seconds, lambda: self._finish(gpu, plan))

    def _finish(self, gpu: _Gpu, plan: StepPlan) -> None:
        gpu.busy = False
        for key in plan.keys:
            if key in gpu.streams:
                self._settle(key, gpu.streams[key])
        self._start(gpu)

    def _settle(self, key: int, stream: _Stream) -> None:
        if stream.stage is Stage.ADVANCE:
            stream.stage, stream.steps_left = Stage.BEGIN, STEPS
            stream.index += 1
            self._release(stream) if stream.wanted is None else self._move(key, stream)
            return
        if stream.stage is Stage.DECODE and self._deliver(stream) == stream.played.chunks:
            self._leave(key, stream)
            del self._streams[key]
            return
        stream.steps_left -= stream.stage is Stage.DENOISE
        following = Stage.DENOISE if stream.steps_left else Stage.DECODE
        stream.stage = FOLLOWING.get(stream.stage, following)

    def _deliver(self, stream: _Stream) -> int:
        """Hand a chunk over unless it was before; how many have been."""
        overdue = stream.played.overdue_s
        if stream.playout_start_s is None:
            stream.playout_start_s = stream.due_s = self._now
            stream.played.first_s = self._now - (stream.opened_s + PERIOD_S)
        if len(overdue) == stream.index:
            overdue.append(self._now - stream.due_s)
        return len(overdue)
