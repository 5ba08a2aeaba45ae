"""A start's phases: timed, logged with fields, recorded, summed up; and the verdict on real time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from serve_app.config import ModelSettings
from serve_app.engine.engine import Engine
from serve_app.engine.startup import Phase, StartPhases, report_real_time
from serve_app.errors import CheckpointError
from serve_app.metrics import START_PHASE, Metric
from serve_app.types import Geometry

LITE = Geometry(512, 512, 33, 9)


class Recording:
    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        assert metric is START_PHASE and set(tags) == set(metric.tags)
        self.values[tags["model"], tags["phase"]] = value


class Clock:
    time_s = 100.0

    def now(self) -> float:
        return self.time_s


def test_phases_are_timed_from_the_start(caplog: pytest.LogCaptureFixture) -> None:
    clock, recorder = Clock(), Recording()
    phases = StartPhases("lite", began_s=96.5, recorder=recorder, now=clock.now)
    with caplog.at_level(logging.INFO, logger="serve_app"):
        phases.since_began("imports")
        with phases.measure("weights_dit"):
            clock.time_s += 2
            with phases.measure("weights_vae"):
                clock.time_s += 0.25
        assert phases.ready() == 5.75
    assert phases.phases == [
        Phase("imports", 0.0, 3.5),
        Phase("weights_vae", 5.5, 0.25),
        Phase("weights_dit", 3.5, 2.25),
        Phase("total", 0.0, 5.75),
    ]
    assert recorder.values == {("lite", phase.name): phase.seconds for phase in phases.phases}
    one, *_, summary = caplog.records
    assert one.getMessage() == "lite start: imports took 3.500 s"
    assert (one.__dict__["model"], one.__dict__["phase"], one.__dict__["seconds"]) == ("lite", "imports", 3.5)
    told = "lite started in 5.750 s (imports 3.500, weights_vae 0.250, weights_dit 2.250)"
    assert summary.getMessage() == told
    assert summary.__dict__["phases_s"]["total"] == 5.75


def test_a_phase_that_failed_is_none() -> None:
    phases = StartPhases("lite")
    with pytest.raises(ZeroDivisionError), phases.measure("weights_dit"):
        1 / 0  # noqa: B018
    assert phases.phases == []


@pytest.mark.parametrize(
    ("chunk_s", "level", "words"),
    [
        (0.24, logging.INFO, "0.96 s of video in 0.240 s, 4.00 times real time"),
        (1.92, logging.WARNING, "0.50 times real time: too slow for streaming"),
    ],
)
def test_real_time_is_told_and_its_lack_is_a_warning(
    caplog: pytest.LogCaptureFixture, chunk_s: float, level: int, words: str
) -> None:
    with caplog.at_level(logging.INFO, logger="serve_app"):
        report_real_time("lite", LITE, chunk_s)
    [record] = caplog.records
    assert record.levelno == level and words in record.getMessage()
    assert record.__dict__["chunk_s"] == chunk_s


def test_an_engine_tells_the_phases_of_its_start() -> None:
    phases = StartPhases("tiny")
    engine = Engine.load(ModelSettings(name="tiny", device="cpu"), phases)
    chunk_s = engine.warm_up()
    taken = {phase.name: phase.seconds for phase in phases.phases}
    assert set(taken) == {"device", "weights_dit", "weights_vae", "first_chunk", "warm_up"}
    assert 0 < 2 * chunk_s <= taken["warm_up"] + 1e-3, "at least two chunks, none faster than what it says"


def test_a_fault_of_either_network_stops_the_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        Engine.load(ModelSettings(name="lite", checkpoint=str(tmp_path), device="cpu"))
