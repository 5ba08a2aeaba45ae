"""The scaling policy on made-up histories."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace

import pydantic
import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingContext

from serve_app.config import ScalingSettings
from serve_app.deployments.autoscaling import StreamScaling, last_reports
from serve_app.deployments.scaling_policy import (
    REPORTED,
    Fleet,
    Peaks,
    ReplicaReport,
    decide,
    needed_replicas,
)

BARE = ScalingSettings(head_room=0, spare_replicas=0, scale_down_after_s=100)
PLACES = 3.0
IDLE = ReplicaReport(streams=0, batch=0, places=PLACES, capacity=6, occupancy=0, refused=0)


def busy(streams: float, **changes: float) -> ReplicaReport:
    """A replica that makes ``streams`` live streams of three."""
    return replace(IDLE, streams=streams, occupancy=streams / PLACES, **changes)


def fleet(now_s: float, *reports: ReplicaReport, **changes: float) -> Fleet:
    count = len(reports)
    return replace(Fleet(now_s, count, count, reports, 0, 1, 100), **changes)


def spread(streams: float, replicas: int) -> list[ReplicaReport]:
    return [busy(streams / replicas) for _ in range(replicas)]


def play(
    loads: Iterable[float], settings: ScalingSettings, step_s: float = 10, limit: int = 100
) -> list[int]:
    """Replica counts of a fleet whose replicas start at once, under a load given every ``step_s``."""
    counts, peaks, target = [], None, 1
    for index, load in enumerate(loads):
        asked = fleet(index * step_s, *spread(load, max(target, 1)), target=target, max_replicas=limit)
        target, peaks = decide(asked, peaks, settings)
        counts.append(target)
    return counts


@pytest.mark.parametrize(
    ("streams", "needed"), [(0, 0), (0.1, 1), (1, 1), (3, 1), (4, 2), (6, 2), (3000, 1000)]
)
def test_streams_fill_places(streams: float, needed: int) -> None:
    assert needed_replicas(spread(streams, 7), BARE) == needed


def test_head_room_and_spare_are_kept_free() -> None:
    settings = BARE.model_copy(update={"head_room": 0.25})
    assert needed_replicas(spread(9, 4), settings) == 4
    assert needed_replicas(spread(9.1, 4), settings) == 5
    spare = settings.model_copy(update={"spare_replicas": 1.0})
    assert needed_replicas(spread(9, 4), spare) == 5
    assert needed_replicas([IDLE], spare) == 0


def test_work_owed_counts_where_streams_are_heavier_than_usual() -> None:
    assert needed_replicas([replace(busy(2), occupancy=1.5)], BARE) == 2


def test_a_device_slower_than_real_time_asks_for_one_replica_a_stream() -> None:
    slow = replace(IDLE, places=1, streams=1, occupancy=2.5)
    assert needed_replicas([slow] * 4, BARE) == 4


def test_batch_takes_sessions_but_no_real_time() -> None:
    assert needed_replicas([replace(IDLE, batch=6)], BARE) == 1
    assert needed_replicas([replace(IDLE, batch=6), busy(1)], BARE) == 2


def test_refused_streams_are_load_counted_once() -> None:
    full = [busy(3, refused=4)] * 2
    assert needed_replicas(full, BARE) == 4
    assert needed_replicas([busy(3, refused=1), busy(0)], BARE) == 2


@pytest.mark.parametrize("replicas", [1, 2, 10])
def test_a_client_that_tries_again_and_again_asks_for_no_more_than_twice_the_fleet(replicas: int) -> None:
    """Five tries a second for as long as they count, at a full fleet: 25 refusals of one client."""
    stormed = [busy(3, refused=25)] * replicas
    peaks = None
    for tick in range(50):
        wanted, peaks = decide(fleet(tick / 10, *stormed), peaks, BARE)
        assert wanted == min(2 * replicas, replicas + math.ceil(25 / PLACES))


@pytest.mark.parametrize(("first", "clients"), [(0, 3), (0, 30), (0, 90), (1, 30), (1, 3000), (7, 90)])
def test_clients_that_are_all_refused_are_served_after_a_few_starts(first: int, clients: int) -> None:
    needed = math.ceil(clients / PLACES)
    target, peaks = decide(fleet(0, target=first, waiting=clients, min_replicas=0), None, BARE)
    starts = 0
    while target < needed:
        starts += 1
        now_s = 10.0 * starts
        full = [busy(PLACES, refused=clients - target * PLACES)] * target
        wanted, peaks = decide(fleet(now_s, *full, max_replicas=2000), peaks, BARE)
        assert target < wanted <= needed
        target = wanted
    assert starts == math.ceil(math.log2(needed / max(first, 1)))


def test_growth_is_immediate_and_bounded() -> None:
    assert decide(fleet(0, *spread(30, 1)), None, BARE)[0] == 10
    assert decide(fleet(0, *spread(30, 1), max_replicas=4), None, BARE)[0] == 4


def test_replicas_on_their_way_are_not_asked_for_twice() -> None:
    assert decide(fleet(0, *spread(30, 1), target=10), None, BARE)[0] == 10


def test_shrinking_waits_until_the_need_has_been_lower_for_long_enough() -> None:
    counts = play([30] * 5 + [6] * 20, BARE)
    assert counts[:5] == [10] * 5
    last_high_s = 40
    dropped_s = 10 * counts.index(2)
    assert dropped_s == last_high_s + BARE.scale_down_after_s + 10
    assert counts == sorted(counts, reverse=True)


def test_a_dip_at_the_end_of_the_wait_does_not_decide() -> None:
    """Ten minutes a bit below, then one moment far below: what was needed meanwhile stays."""
    counts = play([30] + [27] * 15 + [3], BARE)
    assert counts[-1] == 9


def test_load_that_goes_up_and_down_changes_the_count_once() -> None:
    counts = play([12 if index % 4 < 2 else 3 for index in range(200)], BARE)
    assert [count for count, _ in itertools.groupby(counts)] == [4]


def test_a_day_goes_up_once_and_down_once() -> None:
    day = [30 - abs(index - 60) / 2 for index in range(121)]
    levels = [count for count, _ in itertools.groupby(play(day, BARE, step_s=60))]
    top = levels.index(max(levels))
    assert levels[: top + 1] == sorted(levels[: top + 1]) and levels[top:] == sorted(
        levels[top:], reverse=True
    )


def test_nothing_shrinks_before_it_has_been_looked_at() -> None:
    """As after a restart of the controller: a quiet moment says nothing of the minutes before."""
    wanted, peaks = decide(fleet(1000, *spread(3, 5)), None, BARE)
    assert wanted == 5
    assert decide(fleet(1099, *spread(3, 5)), peaks, BARE)[0] == 5
    assert decide(fleet(1100, *spread(3, 5)), peaks, BARE)[0] == 1


def test_a_silent_replica_keeps_the_fleet_from_shrinking() -> None:
    peaks = Peaks(since_s=0)
    assert decide(fleet(500, *spread(3, 4), running=5, target=5), peaks, BARE)[0] == 5
    assert decide(fleet(500, running=5, target=5), peaks, BARE)[0] == 5
    assert decide(fleet(500, *spread(30, 4), running=5, target=5), peaks, BARE)[0] == 10


def test_asleep_until_somebody_waits() -> None:
    assert decide(fleet(0, min_replicas=0), None, BARE)[0] == 0
    assert decide(fleet(0, min_replicas=0, waiting=3), None, BARE)[0] == 1
    assert decide(fleet(0, min_replicas=0, target=2), None, BARE)[0] == 2


def test_a_fleet_that_was_just_woken_is_looked_at_anew() -> None:
    """It slept for long, and its first report is older than its first stream."""
    _, peaks = decide(fleet(500, min_replicas=0), Peaks(since_s=0), BARE)
    wanted, peaks = decide(fleet(510, min_replicas=0, target=1, running=1), peaks, BARE)
    assert wanted == 1
    wanted, peaks = decide(fleet(511, IDLE, min_replicas=0), peaks, BARE)
    assert wanted == 1
    assert decide(fleet(610, IDLE, min_replicas=0), peaks, BARE)[0] == 1
    assert decide(fleet(612, IDLE, min_replicas=0), peaks, BARE)[0] == 0


def test_memory_from_before_a_time_serve_decided_alone_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1000.0, 1030.0, 1033.0, 1037.0, 1041.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    policy = StreamScaling(head_room=0, spare_replicas=0, scale_down_after_s=10)
    idle = series({"a": [IDLE]})
    asleep = {"capacity_adjusted_min_replicas": 0}
    _, state = policy(context(idle, running=1, **asleep))
    wanted, state = policy(context(idle, running=1, policy_state=state, **asleep))
    assert wanted == 1
    for _ in range(3):
        wanted, state = policy(context(idle, running=1, policy_state=state, **asleep))
    assert wanted == 0


def test_an_idle_fleet_goes_to_its_minimum() -> None:
    peaks = Peaks(since_s=0)
    assert decide(fleet(500, IDLE, min_replicas=0), peaks, BARE)[0] == 0
    assert decide(fleet(500, IDLE, IDLE, min_replicas=2), peaks, BARE)[0] == 2


def test_memory_is_bounded() -> None:
    peaks = None
    for index in range(10_000):
        _, peaks = decide(fleet(index / 10, *spread(30 - index % 30, 1)), peaks, BARE)
    assert len(peaks.seen) <= 11


def context(metrics: dict, running: int, **changes: object) -> AutoscalingContext:
    given = dict(
        deployment_id=DeploymentID("generator", "app"),
        deployment_name="generator",
        app_name="app",
        current_num_replicas=running,
        target_num_replicas=running,
        running_replicas=list(metrics.get("streams", {})),
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=None,
        raw_metrics=lambda: metrics,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=None,
    )
    return AutoscalingContext(**(given | changes))


def series(reports: dict[str, list[ReplicaReport]]) -> dict:
    """Serve's time series of these reports by replica."""
    return {
        name: {
            ReplicaID(uid, DeploymentID("generator", "app")): [
                TimeStampedValue(when, getattr(report, name)) for when, report in enumerate(given)
            ]
            for uid, given in reports.items()
        }
        for name in REPORTED
    }


def test_serve_is_answered_from_the_last_report_of_each_replica() -> None:
    metrics = series({"a": [IDLE, busy(3)], "b": [busy(3), busy(2)]})
    assert sorted(report.streams for report in last_reports(metrics)) == [2, 3]
    policy = StreamScaling(head_room=0, spare_replicas=1)
    wanted, state = policy(context(metrics, running=2))
    assert wanted == 3
    assert policy(context(series({"a": [IDLE], "b": [IDLE]}), running=2, policy_state=state))[0] == 3


def test_a_replica_that_reports_in_part_counts_as_silent() -> None:
    metrics = series({"a": [busy(3)], "b": [busy(3)]})
    del metrics["occupancy"][ReplicaID("b", DeploymentID("generator", "app"))]
    assert last_reports(metrics) == [busy(3)]
    assert last_reports({}) == []


@pytest.mark.parametrize("given", [{"head_rom": 0.1}, {"head_room": 1.0}, {"scale_down_after_s": -1}])
def test_settings_that_mean_nothing_are_refused(given: dict) -> None:
    with pytest.raises(pydantic.ValidationError):
        StreamScaling(**given)
