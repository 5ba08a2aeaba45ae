"""The fleet simulation: what goes in comes out, and known answers to simple questions."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve_app.config import ScalingSettings
from serve_app.deployments.scaling_policy import Fleet, ReplicaReport

from benchmarks import fleet as command
from benchmarks.simulation.costs import FIGURES, GPU_TYPES
from benchmarks.simulation.load import HOUR_S, Day, arrivals, flat
from benchmarks.simulation.policies import OngoingRequests, StreamScaling, fixed
from benchmarks.simulation.report import bill, lateness
from benchmarks.simulation.run import FleetRun, FleetSettings
from benchmarks.simulation.scenarios import Options, places_for, refused_share, simulate, streams_for
from benchmarks.simulation.validate import chunk_by_chunk

GPU = GPU_TYPES["4090"]
DOCS = Path(__file__).parents[2] / "docs" / "fleet.md"
LOSSY = {"mtbf_h": 5.0, "zone_loss_h": 3.0}


def options(gpus: int, hours: float = 6.0, seed: int = 0, capacity: int = 4, **settings: object) -> Options:
    whole = FleetSettings(GPU, capacity, 1, gpus, mtbf_h=math.inf)
    return Options(replace(whole, **settings), ScalingSettings(), hours, seed, 0.48, 180.0, 0.4)


def scaled(chosen: Options, peak: float, keep_history: bool = False) -> FleetRun:
    return simulate(chosen, StreamScaling(chosen.scaling), Day(peak, step_h=2.0), keep_history)


def test_places_are_the_admissions() -> None:
    """0.9 of 0.96 s of time for chunks of 250 ms: three, and 3.5 would fill it."""
    settings = options(1).fleet
    assert settings.places == 3
    assert settings.occupancy[2] == pytest.approx(2 * 0.25 / (0.9 * 0.96))


def test_refusals_are_those_of_queueing_theory() -> None:
    """Poisson streams on a fixed fleet: Erlang B, whatever the lengths' distribution."""
    chosen = options(10, hours=200.0)
    run = simulate(chosen, fixed, flat(24.0))
    assert run.refused / (run.opened + run.refused) == pytest.approx(refused_share(24.0, 30), rel=0.08)


def test_sizing_inverts_the_share() -> None:
    assert refused_share(1.0, 1) == pytest.approx(0.5)
    assert refused_share(streams_for(30), 30) == pytest.approx(0.001, rel=1e-3)
    assert places_for(streams_for(30) - 0.01) == 30


def test_every_stream_is_accounted_for() -> None:
    run = scaled(options(20, **LOSSY), 120.0)
    assert run.losses > 5 and run.interrupted > 5 and run.moved > 0 and run.refused > 0
    assert run.opened == run.ended + run.given_up + run.running
    sampled_h = np.mean([sample.streams for sample in run.samples]) * 6.0
    assert run.stream_s / HOUR_S == pytest.approx(sampled_h, rel=0.01)


def test_no_replica_holds_more_than_its_places() -> None:
    """An overloaded fleet, stream by stream: never a fourth one on a GPU."""
    run = simulate(options(5, hours=2.0), fixed, flat(20.0), keep_history=True)
    times = [(event.time_s, 1, event.gpu) for event in run.history]
    times += [(event.time_s + event.chunks * 0.96 + GPU.frames_s, -1, event.gpu) for event in run.history]
    crowd: Counter[int] = Counter()
    most = 0
    for _, change, gpu in sorted(times):
        crowd[gpu] += change
        most = max(most, crowd[gpu])
    assert run.refused > 100
    assert most == 3


def test_places_kept_for_streams_in_need_are_used_by_them_alone() -> None:
    lossy, lossless = (simulate(options(5, **kind), fixed, flat(14.0)) for kind in (LOSSY, {}))
    assert lossy.crowd_s[4] + sum(one.stream_s for one in lossy.behind) > 0
    assert lossless.crowd_s[4] == 0.0 and not lossless.behind


def test_without_losses_nobody_is_past_the_places_or_late() -> None:
    chosen = options(10)
    run = scaled(chosen, 20.0)
    assert run.opened > 500
    assert run.crowd_s[4] == 0.0 and not run.behind and not run.way_back_s
    late = lateness(run, 0.48)
    assert (late.late, late.max_s, late.played) == (0.0, 0.0, 1.0)


def test_same_seed_same_numbers() -> None:
    one, same, other = (scaled(options(10, seed=seed, **LOSSY), 25.0) for seed in (3, 3, 4))
    assert (one.samples, one.gpu_s, one.crowd_s) == (same.samples, same.gpu_s, same.crowd_s)
    assert lateness(one, 0.2) == lateness(same, 0.2)
    assert one.samples != other.samples


def test_more_gpus_refuse_no_more() -> None:
    refused = [simulate(options(gpus), fixed, flat(24.0)).refused for gpus in (6, 8, 10, 12, 16)]
    assert refused == sorted(refused, reverse=True)
    assert refused[0] > 100 and refused[-1] == 0


def test_a_fixed_fleet_pays_for_every_hour() -> None:
    run = simulate(options(10), fixed, flat(20.0))
    cost = bill(run, 0.4)
    assert cost.gpu_hours == pytest.approx(60.0)
    assert cost.per_stream_hour == pytest.approx(24.0 / cost.stream_hours)
    assert 0 < cost.used < 1


def test_scaling_by_live_streams_saves_hours_and_refuses_hardly_anyone() -> None:
    chosen = options(40, hours=24.0)
    day = Day(90.0, step=0.1)
    whole, ours = simulate(chosen, fixed, day), simulate(chosen, StreamScaling(chosen.scaling), day)
    assert ours.gpu_s < 0.8 * whole.gpu_s
    assert ours.refused <= 0.002 * ours.opened
    assert ours.given_up == 0


def test_a_slow_start_is_paid_for_in_refusals() -> None:
    refused = [scaled(options(40, start_s=start_s), 90.0).refused for start_s in (0.0, 60.0, 600.0)]
    assert refused == sorted(refused)
    assert refused[-1] > 5 * max(1, refused[0])


def test_streams_of_a_lost_gpu_go_on_where_there_is_another() -> None:
    """Alone, they are given up: a new node takes longer than they wait."""
    pair, alone = (simulate(options(gpus, hours=2.0, zone_loss_h=1.0), fixed, flat(4.0)) for gpus in (2, 1))
    assert pair.losses == alone.losses == 1
    assert pair.interrupted > 0 and pair.given_up == 0
    assert alone.interrupted > 0 and alone.given_up == alone.interrupted
    assert all(way[0] < 3.4 + 0.96 + 0.25 for way in pair.way_back_s)


def test_lateness_by_streams_per_gpu_is_that_of_every_chunk() -> None:
    """GPUs near their places, one lost on average every few minutes: the fast model against the scheduler."""
    chosen = options(6, hours=0.4, mtbf_h=2.0)
    run = simulate(chosen, fixed, flat(12.0), keep_history=True)
    assert run.interrupted > 0
    for preroll_s, off in ((0.2, 0.03), (0.48, 0.002)):
        fast, exact = lateness(run, preroll_s), chunk_by_chunk(run, preroll_s)
        assert fast.late == pytest.approx(exact.late, abs=off)
        assert fast.played == pytest.approx(exact.played, abs=0.0005)
        assert fast.max_s == pytest.approx(exact.max_s, abs=1.5)


def test_a_day_has_its_top_its_bottom_and_its_step() -> None:
    day = Day(100.0)
    top, bottom, before, within = day.offered(np.array([17.0, 5.0, 10.999, 11.5]) * HOUR_S)
    assert (top, bottom) == (pytest.approx(100.0), pytest.approx(25.0))
    assert within - before == pytest.approx(30.0, abs=6.0)


def test_arrivals_follow_the_load_from_the_first_moment() -> None:
    coming = arrivals(flat(500.0), 10 * HOUR_S, 0)
    assert np.all(np.diff(coming.opened_s) >= 0) and coming.chunks.min() >= 1
    ends_s = coming.opened_s + coming.chunks * 0.96
    for at_s in (10.0, HOUR_S, 9 * HOUR_S):
        running = int(((coming.opened_s <= at_s) & (ends_s > at_s)).sum())
        assert running == pytest.approx(500, abs=4 * math.sqrt(500))


def fleet_of(now_s: float, replicas: int, streams: float) -> Fleet:
    report = ReplicaReport(streams, 0.0, 3.0, 4.0, streams / 3, 0.0)
    return Fleet(now_s, replicas, replicas, [report] * replicas, 0.0, 1, 100)


def test_ongoing_requests_wait_before_they_scale() -> None:
    policy = OngoingRequests(target=2.0)
    assert [policy(fleet_of(now_s, 4, 3.0)) for now_s in (0.0, 10.0, 20.0)] == [4, 4, 4]
    assert policy(fleet_of(30.0, 4, 3.0)) == 6
    assert policy(fleet_of(100.0, 6, 1.0)) == 6
    assert policy(fleet_of(700.0, 6, 1.0)) == 3


def test_the_command_prints_the_rows_of_the_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fleet.py", "sizes", "figures"])
    command.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 8 + 2 + len(FIGURES)
    missing = [line for line in rows if line not in DOCS.read_text()]
    assert not missing


def test_an_unknown_table_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fleet.py", "weeks"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no table 'weeks'; there are held" in capsys.readouterr().err
