"""How many generator replicas a fleet of live streams needs: a pure function of what replicas report.

Load is counted in replicas that are full. A replica is full when it holds as many live streams as it can
make in real time (``places``), when the work it owes to them takes all the time it may promise
(``occupancy``), or when its session table is (``capacity``); whichever is nearest counts. Streams that were
refused a moment ago are load too: their clients come back. How many clients they are nobody knows, since one
that tries again is counted again; so refusals add no more than the replicas that report hold, and what is
full at most doubles between one start of replicas and the next. From ``n`` full replicas to the ``N`` that
everybody needs it takes ``log2(N / n)`` such starts, rounded up, or fewer; head-room only shortens that.

Up at once, down late: the fleet grows as soon as the load does, and shrinks to the highest need of the last
``scale_down_after_s``, so what goes away was idle for all that time and nothing is started again at once.
Whoever calls ``decide`` keeps ``Peaks`` between calls; Serve's policy (``autoscaling``) and the fleet
simulation are two such callers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import mean

from serve_app.config import ScalingSettings

ROUNDING = 1e-9
"""What floating point may add to a whole number of replicas."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a generator replica says of itself.

    Attributes:
        streams: live streams open.
        batch: sessions nobody watches.
        places: live streams it can hold in real time.
        capacity: sessions of any kind it can hold.
        occupancy: the engine's work owed to its live streams, as a share of what it may promise; 1 is full.
        refused: openings turned away within the last ``Retry-After``; a client that tries again counts again.
    """

    streams: float
    batch: float
    places: float
    capacity: float
    occupancy: float
    refused: float


REPORTED = tuple(field.name for field in fields(ReplicaReport))


@dataclass(frozen=True, slots=True)
class Fleet:
    """A deployment as its policy sees it.

    Attributes:
        now_s: monotonic seconds.
        target: replicas asked for.
        running: replicas that take calls.
        reports: the last one of each running replica that has given one.
        waiting: calls that wait for a first replica.
        min_replicas, max_replicas: bounds of the answer.
    """

    now_s: float
    target: int
    running: int
    reports: Sequence[ReplicaReport]
    waiting: float
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest needs of the last while: ``(last seen, replicas)``, newer ones lower. ``since_s`` is when
    the looking began."""

    since_s: float
    seen: tuple[tuple[float, int], ...] = ()

    def with_need(self, now_s: float, needed: int, window_s: float) -> Peaks:
        """These and one more, without what is past or lower."""
        kept = [(seen_s, peak) for seen_s, peak in self.seen if seen_s >= now_s - window_s and peak > needed]
        return Peaks(self.since_s, (*kept, (now_s, needed)))


def needed_replicas(reports: Sequence[ReplicaReport], settings: ScalingSettings) -> int:
    """Replicas that hold the reported load with head-room and spare; 0 where there is none.

    A stream uses one replica at most, so a device slower than real time does not ask for more of its kind.
    """
    places = mean(report.places for report in reports)
    # One client asks several replicas and each counts it, so the highest count is nearest to the clients.
    refused = min(max(report.refused for report in reports), places * len(reports))
    streams = sum(report.streams for report in reports) + refused
    sessions = streams + sum(report.batch for report in reports)
    occupancy = sum(min(report.occupancy, report.streams) for report in reports) + refused / places
    full = max(streams / places, sessions / mean(report.capacity for report in reports), occupancy)
    if full <= 0:
        return 0
    return math.ceil(full / (1 - settings.head_room) + settings.spare_replicas - ROUNDING)


def decide(fleet: Fleet, peaks: Peaks | None, settings: ScalingSettings) -> tuple[int, Peaks | None]:
    """The replicas to ask for, and what to bring to the next call; ``None`` at the first one.

    Where replicas are still silent the fleet does not shrink, and neither does it before it has been looked
    at for ``scale_down_after_s`` since its first replica ran: one that was just woken reports no streams yet.
    """
    wanted = fleet.target
    if not fleet.running:
        wanted = max(wanted, 1 if fleet.waiting else 0)
        peaks = None
    elif fleet.reports:
        peaks = peaks or Peaks(fleet.now_s)
        needed = needed_replicas(fleet.reports, settings)
        peaks = peaks.with_need(fleet.now_s, needed, settings.scale_down_after_s)
        highest = peaks.seen[0][1]
        complete = len(fleet.reports) == fleet.running
        long_enough = fleet.now_s - peaks.since_s >= settings.scale_down_after_s
        wanted = highest if complete and long_enough else max(wanted, highest)
    return min(max(wanted, fleet.min_replicas), fleet.max_replicas), peaks
