"""A fleet of GPUs over days, stream by stream: who is placed where, who is refused, what a loss interrupts,
how many GPUs are there.

Chunks are not simulated here: a stream takes a place while it lasts, and how late chunks are follows from how
many streams share a GPU (``held.profile``), but for streams that lost theirs, whose way back is reckoned in
full. ``ChunkFleet`` plays the same history chunk by chunk, which tells how far that is off.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from serve_app.deployments.scaling_policy import Fleet, ReplicaReport

from benchmarks.simulation.chunks import Event, What
from benchmarks.simulation.costs import PERIOD_S, GpuType
from benchmarks.simulation.load import HOUR_S, Arrivals
from benchmarks.simulation.policies import Policy
from benchmarks.simulation.run import Behind, FleetRun, FleetSettings, Sample


@dataclass(eq=False, slots=True)
class Replica:
    """A GPU from being asked for to being given back, the streams on it since ``changed_s``, and the engine
    time it was behind with their chunks then."""

    key: int
    asked_s: float
    streams: dict[int, Stream] = field(default_factory=dict)
    changed_s: float = 0.0
    behind_s: float = 0.0


@dataclass(eq=False, slots=True)
class Stream:
    """A stream that was admitted. ``lost_s`` is when it lost its replica, while it has none."""

    key: int
    opened_s: float
    ends_s: float
    replica: Replica | None = None
    lost_s: float = 0.0


class FleetSimulation:
    """One run.

    Args:
        settings: the fleet.
        policy: how many GPUs it asks for.
        seed: of the losses.
        initial: GPUs ready at the start.
        keep_history: whether the run keeps what ``ChunkFleet`` needs to play it again.
    """

    def __init__(
        self, settings: FleetSettings, policy: Policy, seed: int, initial: int, keep_history: bool = False
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._rng = np.random.default_rng(seed)
        self._keep_history = keep_history
        self._now = 0.0
        self._count = itertools.count()
        self._keys = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._target = min(max(initial, settings.min_gpus), settings.max_gpus)
        self._starting: dict[int, Replica] = {}
        self._ready: dict[int, Replica] = {}
        self._by_load: list[dict[int, Replica]] = [{} for _ in range(settings.capacity + 1)]
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[int, Stream] = {}
        self._refused_s: deque[float] = deque()
        self._run = FleetRun(settings, crowd_s=[0.0] * (settings.capacity + 1))

    def run(self, coming: Arrivals, duration_s: float) -> FleetRun:
        """Serve the streams of ``coming`` for ``duration_s``."""
        for _ in range(self._target):
            self._get_ready(self._ask())
        self._tick()
        if self._settings.zone_loss_h is not None:
            self._at(self._settings.zone_loss_h * HOUR_S, self._lose_zone)
        lengths = coming.chunks.tolist()
        for key, opened_s in enumerate(coming.opened_s.tolist()):
            self._until(opened_s)
            self._open(key, lengths[key])
        self._until(duration_s)
        self._run.running = len(self._streams)
        for replica in [*self._starting.values(), *self._ready.values()]:
            self._remove(replica)
        return self._run

    def _at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time_s, next(self._count), action))

    def _until(self, time_s: float) -> None:
        while self._agenda and self._agenda[0][0] <= time_s:
            self._now, _, action = heapq.heappop(self._agenda)
            action()
        self._now = time_s

    def _note(self, what: What, stream: Stream, gpu: int = -1, chunks: int = 0) -> None:
        if self._keep_history:
            self._run.history.append(Event(self._now, what, stream.key, gpu, chunks))

    def _open(self, key: int, chunks: int) -> None:
        replica = self._least_loaded(self._settings.places)
        if replica is None:
            self._run.refused += 1
            self._refused_s.append(self._now)
            return
        self._run.opened += 1
        ends_s = self._now + chunks * PERIOD_S + self._settings.gpu.frames_s
        stream = self._streams[key] = Stream(key, self._now, ends_s)
        self._note(What.OPEN, stream, replica.key, chunks)
        self._put(stream, replica)
        self._at(ends_s, lambda: self._end(stream))

    def _end(self, stream: Stream) -> None:
        """Its last chunk is out, unless it has to catch up."""
        if stream.replica is None or self._now < stream.ends_s:
            return
        self._take(stream)
        del self._streams[stream.key]
        self._run.ended += 1
        self._resume(list(self._waiting.values()))

    def _least_loaded(self, limit: int) -> Replica | None:
        """The replica with the fewest streams, if that is below ``limit``."""
        for replicas in self._by_load[:limit]:
            if replicas:
                return next(iter(replicas.values()))
        return None

    def _refuge(self) -> Replica | None:
        """For a stream that would otherwise end: a free place, or what is kept beyond them."""
        return self._least_loaded(self._settings.places) or self._least_loaded(self._settings.capacity)

    def _put(self, stream: Stream, replica: Replica) -> None:
        self._account(replica)
        replica.streams[stream.key] = stream
        stream.replica = replica
        self._by_load[len(replica.streams)][replica.key] = replica

    def _take(self, stream: Stream) -> None:
        replica = stream.replica
        assert replica is not None
        self._account(replica)
        replica.behind_s *= 1 - 1 / len(replica.streams)
        del replica.streams[stream.key]
        stream.replica = None
        self._by_load[len(replica.streams)][replica.key] = replica

    def _account(self, replica: Replica) -> None:
        """Before a replica's streams change: count the time with those it has. More of them than it can make
        in real time put it ever further behind, fewer let it catch up."""
        streams, seconds = len(replica.streams), self._now - replica.changed_s
        growth = streams * self._settings.gpu.share - 1
        start_s = replica.behind_s
        replica.behind_s = max(0.0, start_s + growth * seconds)
        if start_s or replica.behind_s:
            behind_for_s = seconds if replica.behind_s else start_s / -growth
            self._run.behind.append(Behind(start_s, replica.behind_s, streams, behind_for_s))
            seconds -= behind_for_s
        self._run.crowd_s[streams] += streams * seconds
        replica.changed_s = self._now
        self._by_load[streams].pop(replica.key, None)

    def _resume(self, streams: Iterable[Stream]) -> None:
        """Open those without a replica on others; what finds none waits."""
        for stream in streams:
            replica = self._refuge()
            if replica is not None:
                self._waiting.pop(stream.key, None)
                self._note(What.MOVE, stream, replica.key)
                self._put(stream, replica)
                self._catch_up(stream)
            elif stream.key not in self._waiting:
                self._waiting[stream.key] = stream
                self._at(self._now + self._settings.patience_s, lambda stream=stream: self._give_up(stream))

    def _catch_up(self, stream: Stream) -> None:
        """The chunk it was making is made again; those spoken meanwhile follow one after the other."""
        late_s = way_back_s(self._settings.gpu, stream.opened_s, stream.lost_s, self._now)
        self._run.way_back_s.append(late_s)
        assert stream.replica is not None
        stream.replica.behind_s += max(0.0, late_s[0]) * self._settings.gpu.share
        caught_up_s = self._now + len(late_s) * self._settings.gpu.chunk_s
        if caught_up_s > stream.ends_s:
            stream.ends_s = caught_up_s
            self._at(caught_up_s, lambda: self._end(stream))

    def _give_up(self, stream: Stream) -> None:
        """It has waited from one patience ago at most: a stream waits again after another loss."""
        if stream.key in self._waiting and self._now - stream.lost_s >= self._settings.patience_s:
            del self._waiting[stream.key], self._streams[stream.key]
            self._note(What.GIVE_UP, stream)
            self._run.given_up += 1

    def _ask(self, delay_s: float = 0.0) -> Replica:
        """A GPU from ``delay_s`` on; its replica takes streams ``start_s`` later."""
        asked_s = self._now + delay_s
        key = next(self._keys)
        replica = self._starting[key] = Replica(key, asked_s)
        self._at(asked_s + self._settings.start_s, lambda: self._get_ready(replica))
        life_s = self._rng.exponential(self._settings.mtbf_h * HOUR_S)
        self._at(asked_s + life_s, lambda: self._lose([replica]))
        return replica

    def _get_ready(self, replica: Replica) -> None:
        if self._starting.pop(replica.key, None) is not None:
            self._ready[replica.key] = self._by_load[0][replica.key] = replica
            replica.changed_s = self._now
            self._resume(list(self._waiting.values()))

    def _remove(self, replica: Replica) -> list[Stream]:
        """Give it back; the streams that were on it."""
        self._account(replica)
        self._starting.pop(replica.key, None)
        self._ready.pop(replica.key, None)
        self._run.gpu_s += max(0.0, self._now - replica.asked_s)
        for stream in replica.streams.values():
            stream.replica, stream.lost_s = None, self._now
        return list(replica.streams.values())

    def _lose(self, replicas: list[Replica]) -> None:
        """GPUs die. After ``detection_s`` their streams look for others, and new GPUs are asked for."""
        lost = [one for one in replicas if one.key in self._ready or one.key in self._starting]
        streams = [stream for replica in lost for stream in self._remove(replica)]
        for stream in streams:
            self._note(What.LOSE, stream)
        for _ in lost:
            self._ask(self._settings.detection_s + self._settings.repair_s)
        self._run.losses += len(lost)
        self._run.interrupted += len(streams)
        self._at(self._now + self._settings.detection_s, lambda: self._resume(streams))

    def _lose_zone(self) -> None:
        everyone = [*self._starting.values(), *self._ready.values()]
        self._lose([replica for replica in everyone if replica.key % self._settings.zones == 0])

    def _shrink(self, count: int) -> None:
        """Serve's choice: those still starting, then the newest."""
        newest = [*sorted(self._starting, reverse=True), *sorted(self._ready, reverse=True)]
        for key in newest[:count]:
            self._move_all(self._remove(self._starting.get(key) or self._ready[key]))

    def _move_all(self, streams: list[Stream]) -> None:
        """Streams of a replica that goes move at their next chunk; what finds no place is lost for now."""
        self._run.moved += len(streams)
        for stream in streams:
            replica = self._refuge()
            if replica is None:
                self._note(What.LOSE, stream)
                self._resume([stream])
            else:
                self._note(What.MOVE, stream, replica.key)
                self._put(stream, replica)

    def _tick(self) -> None:
        """The policy looks and is followed."""
        while self._refused_s and self._refused_s[0] < self._now - self._settings.retry_after_s:
            self._refused_s.popleft()
        self._target = self._policy(self._view())
        missing = self._target - len(self._starting) - len(self._ready)
        for _ in range(missing):
            self._ask()
        self._shrink(max(0, -missing))
        ready, asked = len(self._ready), len(self._ready) + len(self._starting)
        self._run.samples.append(Sample(self._now, len(self._streams), ready, asked, self._run.refused))
        self._at(self._now + self._settings.tick_s, self._tick)

    def _view(self) -> Fleet:
        """What Serve tells its policy."""
        settings = self._settings
        reports = [
            ReplicaReport(n, 0.0, settings.places, settings.capacity, share, len(self._refused_s))
            for n, share in enumerate(settings.occupancy)
        ]
        return Fleet(
            now_s=self._now,
            target=self._target,
            running=len(self._ready),
            reports=[reports[len(replica.streams)] for replica in self._ready.values()],
            waiting=0.0 if self._ready else float(len(self._refused_s)),
            min_replicas=settings.min_gpus,
            max_replicas=settings.max_gpus,
        )


def way_back_s(gpu: GpuType, opened_s: float, lost_s: float, resumed_s: float) -> np.ndarray:
    """How long after they were due the chunks come that a stream makes one after the other until it has
    caught up, from the one it was making when it lost its replica."""
    start_s = opened_s + PERIOD_S + gpu.frames_s
    index = max(0, int(np.ceil((lost_s - start_s) / PERIOD_S)))
    first_s = resumed_s + gpu.frames_s - (start_s + index * PERIOD_S)
    gained_s = PERIOD_S - gpu.chunk_s
    return first_s - gained_s * np.arange(max(1, int(np.ceil(first_s / gained_s))))
