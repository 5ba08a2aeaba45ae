"""The questions a fleet's operator has, each as a table of runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from serve_app.config import ScalingSettings

from benchmarks.simulation.costs import COMPILED_START_S, EAGER_START_S, GPU_TYPES, NEW_NODE_START_S
from benchmarks.simulation.fleet import FleetSimulation
from benchmarks.simulation.held import streams_held
from benchmarks.simulation.load import HOUR_S, Day, arrivals, flat
from benchmarks.simulation.policies import OngoingRequests, Policy, StreamScaling, fixed
from benchmarks.simulation.report import bill, lateness
from benchmarks.simulation.run import FleetRun, FleetSettings
from benchmarks.simulation.validate import chunk_by_chunk

Row = dict[str, str]
REFUSED = 0.001
"""Share of streams that may be refused at the peak: what a fleet is sized by."""
PREROLLS_S = (0.0, 0.2, 0.48)
HELD_S = 4 * HOUR_S
ZONE_LOSS_H = 18.0
RESERVES = ((0.0, 0.0), (0.1, 1.0), (0.25, 1.0), (0.4, 1.0))
"""Head-room and spare replicas that ``starts`` compares."""


@dataclass(frozen=True)
class Options:
    """What the command line says; ``peak`` is ``None`` for as many as the fleet is sized for."""

    fleet: FleetSettings
    scaling: ScalingSettings
    hours: float
    seed: int
    preroll_s: float
    stream_mean_s: float
    price: float
    peak: float | None = None

    def with_gpus(self, gpus: int) -> Options:
        """The same with a fleet of up to that many."""
        return replace(self, fleet=replace(self.fleet, max_gpus=gpus))

    def with_reserve(self, head_room: float, spare_replicas: float) -> Options:
        """The same with another reserve, and no losses."""
        reserve = {"head_room": head_room, "spare_replicas": spare_replicas}
        whole = replace(self.fleet, mtbf_h=math.inf, zone_loss_h=None)
        return replace(self, fleet=whole, scaling=self.scaling.model_copy(update=reserve))

    def with_start(self, start_s: float) -> Options:
        """The same with replicas that take so long to start."""
        return replace(self, fleet=replace(self.fleet, start_s=start_s))

    def day(self) -> Day:
        """The load of 24 hours."""
        return Day(self.peak or streams_for(self.fleet.max_gpus * self.fleet.places))


def refused_share(streams: float, places: int) -> float:
    """Of streams that come at random, the share that finds all places taken (Erlang B)."""
    share = 1.0
    for place in range(1, places + 1):
        share = streams * share / (place + streams * share)
    return share


def streams_for(places: int, refused: float = REFUSED) -> float:
    """Streams at a time, on average, that may be offered to ``places`` with that share refused."""
    low, high = 0.0, float(places)
    while high - low > 1e-6 * places:
        middle = (low + high) / 2
        low, high = (middle, high) if refused_share(middle, places) < refused else (low, middle)
    return low


def places_for(streams: float, refused: float = REFUSED) -> int:
    """The fewest places that refuse no greater share of so many streams."""
    places = max(1, int(streams))
    while refused_share(streams, places) > refused:
        places += 1
    return places


def simulate(options: Options, policy: Policy, day: Day, keep_history: bool = False) -> FleetRun:
    """One run. Fixed fleets start whole, others with what their first load takes."""
    settings = options.fleet
    first = math.ceil(float(day.offered(np.array(0.0))) / settings.places / (1 - options.scaling.head_room))
    initial = settings.max_gpus if policy is fixed else first + math.ceil(options.scaling.spare_replicas)
    simulation = FleetSimulation(settings, policy, options.seed, initial, keep_history)
    coming = arrivals(day, options.hours * HOUR_S, options.seed, options.stream_mean_s)
    return simulation.run(coming, options.hours * HOUR_S)


def row(options: Options, run: FleetRun) -> Row:
    """A run's figures."""
    late, cost = lateness(run, options.preroll_s), bill(run, options.price)
    came = run.opened + run.refused
    return {
        "streams": f"{came}",
        "held at most": f"{max(sample.streams for sample in run.samples)}",
        "refused": percent(run.refused / came),
        "late chunks": percent(late.late),
        "late p50 / p99 / max, s": f"{late.p50_s:.2f} / {late.p99_s:.2f} / {late.max_s:.1f}",
        "played": f"{100 * late.played:.3f} %",
        "first frame p50 / p99, s": f"{late.first_p50_s:.2f} / {late.first_p99_s:.2f}",
        "GPU-hours": f"{cost.gpu_hours:.0f}",
        "places used": f"{100 * cost.used:.0f} %",
        "$ per stream-hour": f"{cost.per_stream_hour:.3f}",
    }


def percent(share: float) -> str:
    """In hundredths, to a hundredth of one."""
    return f"{100 * share:.2f} %"


def held(options: Options) -> Iterator[Row]:
    """Streams one GPU holds with the 99th percentile of lateness at zero, by pre-roll."""
    for gpu in GPU_TYPES.values():
        counts = streams_held(gpu, PREROLLS_S, HELD_S / gpu.chunks_per_s, seed=options.seed)
        settings = FleetSettings(gpu, capacity=1000, min_gpus=1, max_gpus=1)
        most = {f"pre-roll {1000 * pre:.0f} ms": f"{n}" for pre, n in zip(PREROLLS_S, counts, strict=True)}
        yield {"GPU": gpu.label, "chunk time": gpu.kind, **most, "admitted": f"{settings.places}"}


def sizes(options: Options, gpus: list[int]) -> Iterator[Row]:
    """Streams a fleet of each size may be offered at its peak; and the other way round."""
    each = options.fleet.places
    for count in gpus:
        streams = streams_for(count * each)
        yield {"GPUs": f"{count}", "places": f"{count * each}", "streams at the peak": f"{streams:.1f}"}
    for streams in (10, 100, 1000, 3000):
        places = each * math.ceil(places_for(streams) / each)
        yield {"GPUs": f"{places // each}", "places": f"{places}", "streams at the peak": f"{streams}"}


def days(options: Options, gpus: list[int]) -> Iterator[Row]:
    """A day with losses of single GPUs and of a zone, under each policy."""
    for count in gpus:
        sized = options.with_gpus(count)
        policies: dict[str, Policy] = {
            "fixed": fixed,
            "ongoing requests": OngoingRequests(max(1, sized.fleet.places - 1)),
            "live streams": StreamScaling(options.scaling),
        }
        for name, policy in policies.items():
            run = simulate(sized, policy, sized.day())
            yield {"GPUs": f"{count}", "policy": name, "lost": f"{run.losses}", **row(sized, run)}


def starts(options: Options, gpus: int) -> Iterator[Row]:
    """The same day for start times and reserves, without losses."""
    for head_room, spare in RESERVES:
        for start_s in (EAGER_START_S, COMPILED_START_S, NEW_NODE_START_S):
            chosen = options.with_gpus(gpus).with_reserve(head_room, spare).with_start(start_s)
            figures = row(chosen, simulate(chosen, StreamScaling(chosen.scaling), chosen.day()))
            yield {
                "head-room": f"{100 * head_room:.0f} %",
                "spare GPUs": f"{spare:g}",
                "start, s": f"{start_s:g}",
                **{name: figures[name] for name in ("refused", "GPU-hours", "$ per stream-hour")},
            }


def losses(options: Options, gpus: list[int]) -> Iterator[Row]:
    """A zone of a fixed fleet dies an hour into its peak, and with it a third of all GPUs."""
    for count in gpus:
        for share in (1.0, 0.6):
            sized = replace(options.with_gpus(count), hours=2.0)
            settings = replace(sized.fleet, mtbf_h=math.inf, zone_loss_h=1.0)
            peak = share * (options.peak or sized.day().peak)
            run = simulate(replace(sized, fleet=settings), fixed, flat(peak))
            late = lateness(run, options.preroll_s)
            gaps_s = [max(0.0, way[0] - options.preroll_s) for way in run.way_back_s] or [0.0]
            yield {
                "GPUs": f"{count}",
                "lost": f"{run.losses}",
                "load": f"{peak:.1f}",
                "interrupted": f"{run.interrupted}",
                "stood still p50 / max, s": f"{np.median(gaps_s):.1f} / {max(gaps_s):.1f}",
                "given up": f"{run.given_up}",
                "refused": f"{run.refused}",
                "late chunks": percent(late.late),
                "late max, s": f"{late.max_s:.1f}",
            }


def checks(options: Options) -> Iterator[Row]:
    """The fleet's lateness beside every chunk of the same history, for ten GPUs near their peak that are
    often lost."""
    sized = replace(options.with_gpus(10), hours=1.0)
    settings = replace(sized.fleet, mtbf_h=5.0, zone_loss_h=0.5)
    run = simulate(replace(sized, fleet=settings), fixed, flat(sized.day().peak), keep_history=True)
    for preroll_s in PREROLLS_S:
        for name, late in (
            ("by streams per GPU", lateness(run, preroll_s)),
            ("chunk by chunk", chunk_by_chunk(run, preroll_s)),
        ):
            yield {
                "pre-roll, s": f"{preroll_s:g}",
                "lateness": name,
                "late chunks": percent(late.late),
                "p99 / max, s": f"{late.p99_s:.3f} / {late.max_s:.2f}",
                "played": f"{100 * late.played:.3f} %",
                "first frame p50 / p99, s": f"{late.first_p50_s:.3f} / {late.first_p99_s:.3f}",
            }
