"""Admission, on made-up chunk times."""

from __future__ import annotations

import logging
import random

import pytest

from serve_app.config import ModelSettings
from serve_app.engine import admission
from serve_app.engine.admission import Admission
from serve_app.engine.busy import WINDOW_S, BusyShare
from serve_app.engine.scheduler import Stage, StepCosts
from serve_app.errors import AtCapacity
from serve_app.types import Geometry, ModelCard

CARD = ModelCard("lite", Geometry(512, 512, 33, 9), 4, (2, 3, 4), True, "")
PERIOD_S = 0.96


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


def measure(costs: StepCosts, chunk_s: float, rows: int = 1, gain: float = 1.0) -> None:
    """A chunk of 4 steps takes that long; ``rows`` share a step that takes ``rows / gain`` times as long."""
    for stage, share in [(Stage.BEGIN, 0.01), (Stage.DECODE, 0.3), (Stage.ADVANCE, 0.09)]:
        costs.observe(stage, 1, chunk_s * share)
    costs.observe(Stage.DENOISE, rows, chunk_s * 0.15 * rows / gain)


def rated(
    chunk_s: float | None = None, warm_s: float = 0.0, clock: Clock | None = None, **settings: float
) -> tuple[Admission, StepCosts]:
    costs = StepCosts()
    if chunk_s is not None:
        measure(costs, chunk_s)
    model = ModelSettings.model_validate({"name": "lite", "max_sessions": 8} | settings)
    return Admission(model, CARD, costs, clock or Clock(), chunk_s=warm_s, retry_after_s=5), costs


@pytest.mark.parametrize(
    ("chunk_s", "places"),
    [(0.25, 3), (0.216, 4), (0.2, 4), (0.1, 8), (0.01, 8), (0.5, 1), (0.9, 1), (3.0, 1)],
)
def test_places_are_the_chunks_that_fit_into_the_promised_time(chunk_s: float, places: int) -> None:
    by_loop, _ = rated(chunk_s)
    by_warm_up, _ = rated(warm_s=chunk_s)
    assert by_loop.places() == by_warm_up.places() == places


def test_what_the_loop_measures_replaces_the_warm_up() -> None:
    door, costs = rated(warm_s=0.1)
    costs.observe(Stage.DENOISE, 1, 9.0)
    assert door.places() == 8
    measure(costs, 0.25)
    assert door.places() == 1


def test_nothing_measured_leaves_the_bound_of_sessions() -> None:
    assert rated()[0].places() == 8


def test_the_promise_is_a_setting() -> None:
    assert rated(0.25, max_utilisation=0.6)[0].places() == 2
    assert rated(0.25, max_utilisation=100)[0].places() == 8


def test_rows_that_share_a_step_make_room() -> None:
    door, costs = rated(0.25, max_rows=4)
    assert door.places() == 3
    for _ in range(40):
        measure(costs, 0.25, rows=4, gain=3.0)
    assert door.places() == 5


def test_a_slow_device_serves_one_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    door, _ = rated(1.5)
    with caplog.at_level(logging.INFO, admission.__name__):
        assert [door.places() for _ in range(3)] == [1, 1, 1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "960 ms of video take 1500 ms" in caplog.text
    door.admit("a", 4, [], taken=0)
    with pytest.raises(AtCapacity):
        door.admit("b", 4, [4], taken=1)


def test_chunk_times_around_a_boundary_do_not_swing_the_places() -> None:
    noise = random.Random(0)
    door, costs = rated(0.216)
    seen = [door.places()]
    for _ in range(2000):
        measure(costs, 0.216 * noise.uniform(0.92, 1.08))
        seen.append(door.places())
    assert set(seen) == {4}


def test_one_pause_takes_no_place_away() -> None:
    door, costs = rated(0.2)
    assert door.places() == 4
    costs.observe(Stage.DECODE, 1, 5.0)
    assert door.places() == 4


def test_a_device_that_became_slower_is_believed_soon() -> None:
    door, costs = rated(0.2)
    assert door.places() == 4
    for _ in range(20):
        measure(costs, 0.4)
    assert door.places() == 2


def test_streams_with_fewer_steps_take_less_room() -> None:
    door, _ = rated(0.25)
    door.admit("a", 4, [4, 4], taken=2)
    with pytest.raises(AtCapacity) as refusal:
        door.admit("b", 4, [4, 4, 4], taken=3)
    assert (refusal.value.value, refusal.value.accepted, refusal.value.retry_after_s) == (3, 3, 5)
    door.admit("b", 2, [2, 2, 2], taken=3)
    assert door.occupancy([2, 2]) < door.occupancy([4, 4]) == pytest.approx(2 * 0.25 / (0.9 * PERIOD_S))


@pytest.mark.parametrize("steps", [4, None])
def test_who_resumes_is_bounded_by_sessions_alone(steps: int | None) -> None:
    door, _ = rated(0.25)
    door.admit("again", steps, [4] * 7, taken=7, resumed=True)
    door.admit("again", steps, [], taken=7, resumed=True)
    with pytest.raises(AtCapacity, match="all 8"):
        door.admit("again", steps, [4] * 8, taken=8, resumed=True)


@pytest.mark.parametrize("streams", range(3))
def test_videos_nobody_watches_leave_every_free_place(streams: int) -> None:
    """Eight sessions, three places: five such videos, and every live stream that has a place gets it."""
    door, _ = rated(0.25)
    live = [4] * streams
    for batch in range(5):
        door.admit("video", None, live, taken=streams + batch)
    with pytest.raises(AtCapacity, match="nobody watches") as refusal:
        door.admit("video", None, live, taken=streams + 5)
    assert (refusal.value.value, refusal.value.accepted) == (5, 5)
    while len(live) < door.places():
        door.admit("viewer", 4, live, taken=len(live) + 5)
        live.append(4)


def test_a_table_no_larger_than_the_places_makes_one_video_nobody_watches() -> None:
    door, _ = rated(0.1)
    assert door.places() == 8
    door.admit("video", None, [4] * 7, taken=7)
    with pytest.raises(AtCapacity, match="nobody watches"):
        door.admit("video", None, [], taken=1)


def test_refused_sessions_count_once_while_they_may_come_back() -> None:
    clock = Clock()
    door, _ = rated(0.9, clock=clock)
    for session, when in [("a", 0.0), ("b", 1.0), ("a", 2.0)]:
        clock.time = when
        with pytest.raises(AtCapacity):
            door.admit(session, 4, [4], taken=1)
    assert door.refused() == 2
    door.admit("a", 4, [], taken=0)
    assert door.refused() == 1
    clock.time = 6.0
    assert door.refused() == 0


def test_memory_of_refusals_is_bounded() -> None:
    door, _ = rated(0.9)
    for index in range(2 * admission.MAX_REFUSED):
        with pytest.raises(AtCapacity):
            door.admit(str(index), 4, [4], taken=1)
    assert door.refused() == admission.MAX_REFUSED


def test_busy_is_of_the_last_while() -> None:
    clock, worked = Clock(), 0.0
    share = BusyShare(lambda: worked, clock)
    assert share.now() == 0.0
    for second in range(1, 61):
        clock.time, worked = float(second), 0.5 * second
        assert share.now() == pytest.approx(0.5)
    for second in range(61, 61 + int(WINDOW_S)):
        clock.time = float(second)
        share.now()
    assert share.now() == pytest.approx(0.0, abs=0.06)
