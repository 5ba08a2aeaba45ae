"""A day of a fleet as a picture. Imports matplotlib, which nothing else here needs (extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from benchmarks.simulation.load import HOUR_S
from benchmarks.simulation.policies import OngoingRequests, Policy, StreamScaling, fixed
from benchmarks.simulation.report import bill
from benchmarks.simulation.run import FleetRun, Sample
from benchmarks.simulation.scenarios import RESERVES, Options, simulate

BLUE, ORANGE, GREEN, GREY, RED = "#1f5fa8", "#d9822b", "#2e8b57", "#8a8a8a", "#c0392b"
COLOURS = (GREY, GREEN, BLUE)
"""Of the policies."""
BIN_H = 0.5
STARTS_S = (0.0, 14.0, 30.0, 60.0, 139.0, 300.0, 600.0)


def draw(options: Options, path: Path) -> None:
    """Draw a day of the fleet under its policy, what policies pay, and what start times cost, into ``path``
    (its suffix says the format)."""
    matplotlib.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(11, 10.5), layout="constrained")
    rows = figure.subplot_mosaic(
        [["places", "places"], ["refused", "refused"], ["hours", "starts"]], height_ratios=[1.6, 0.6, 1.1]
    )
    policies: dict[str, Policy] = {
        "fixed": fixed,
        "ongoing requests": OngoingRequests(max(1, options.fleet.places - 1)),
        "live streams": StreamScaling(options.scaling),
    }
    runs = {name: simulate(options, policy, options.day()) for name, policy in policies.items()}
    fleet = options.fleet
    figure.suptitle(
        f"A day of up to {fleet.max_gpus} GPUs: {fleet.gpu.label}, {fleet.places} live streams each,"
        f" replicas start in {fleet.start_s:.0f} s",
        fontsize=12.5,
    )
    _places(rows["places"], options, runs["live streams"])
    _refused(rows["refused"], options, runs)
    _hours(rows["hours"], options, runs)
    _starts(rows["starts"], options)
    figure.savefig(path, dpi=110)


def _hours_of(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.time_s for sample in samples]) / HOUR_S


def _day(axes: Axes, options: Options) -> None:
    axes.set_xlim(0, options.hours)
    axes.set_xticks(np.arange(0, options.hours + 0.1, 2))
    axes.grid(axis="y", alpha=0.3)
    if options.fleet.zone_loss_h is not None:
        axes.axvline(options.fleet.zone_loss_h, color=RED, linestyle=":", linewidth=1.2)


def _places(axes: Axes, options: Options, run: FleetRun) -> None:
    """Places asked for, places ready, streams."""
    hours, each = _hours_of(run.samples), options.fleet.places
    asked, ready, streams = (
        np.array([getattr(sample, name) for sample in run.samples]) for name in ("asked", "ready", "streams")
    )
    axes.fill_between(hours, each * asked, color=ORANGE, alpha=0.25, label="places asked for", linewidth=0)
    axes.plot(hours, each * ready, color=ORANGE, linewidth=1.3, label="places ready")
    axes.plot(hours, streams, color=BLUE, linewidth=1.1, label="live streams")
    axes.plot(
        hours,
        options.day().offered(hours * HOUR_S),
        color="black",
        linewidth=1,
        linestyle="--",
        label="offered",
    )
    axes.set(ylabel="streams", ylim=(0, each * options.fleet.max_gpus * 1.05))
    axes.set_title("Places follow the live streams", loc="left", fontsize=11)
    _day(axes, options)
    if options.fleet.zone_loss_h is not None:
        axes.annotate(
            "a zone is lost",
            (options.fleet.zone_loss_h, 0.06 * each * options.fleet.max_gpus),
            xytext=(6, 0),
            textcoords="offset points",
            color=RED,
        )
    axes.legend(loc="upper left", ncols=2, frameon=False)


def _refused(axes: Axes, options: Options, runs: dict[str, FleetRun]) -> None:
    """Streams refused in each half hour."""
    edges = np.arange(0, options.hours + BIN_H, BIN_H)
    for place, ((name, run), colour) in enumerate(zip(runs.items(), COLOURS, strict=True)):
        refused = np.interp(edges, _hours_of(run.samples), [sample.refused for sample in run.samples])
        left = edges[:-1] + BIN_H * (0.05 + 0.3 * place)
        axes.bar(left, np.diff(refused), 0.3 * BIN_H, align="edge", color=colour, label=name)
    axes.set(xlabel="hour of the day", ylabel="refused\nin 30 minutes")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 2 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_title("Streams refused", loc="left", fontsize=11)
    _day(axes, options)
    axes.legend(loc="upper left", ncols=3, frameon=False)


def _hours(axes: Axes, options: Options, runs: dict[str, FleetRun]) -> None:
    """GPU-hours by policy, and what a stream-hour comes to."""
    bills = [bill(run, options.price) for run in runs.values()]
    bars = axes.bar(list(runs), [one.gpu_hours for one in bills], color=COLOURS, width=0.6)
    labels = [f"{one.gpu_hours:,.0f} h\n${one.per_stream_hour:.3f} per\nstream-hour" for one in bills]
    axes.bar_label(bars, labels, padding=3, fontsize=9)
    axes.set(ylabel="GPU-hours a day")
    axes.margins(y=0.25)
    axes.set_title("What policies pay", loc="left", fontsize=11)


def _starts(axes: Axes, options: Options) -> None:
    """Refusals by start time, for several reserves, on a day without losses."""
    for (head_room, spare), colour in zip(RESERVES, (RED, BLUE, GREEN, GREY), strict=True):
        shares = []
        for start_s in STARTS_S:
            chosen = options.with_reserve(head_room, spare).with_start(start_s)
            run = simulate(chosen, StreamScaling(chosen.scaling), chosen.day())
            shares.append(100 * run.refused / (run.opened + run.refused))
        label = f"{100 * head_room:.0f} % head-room, {spare:g} spare"
        axes.plot(shares, color=colour, marker="o", markersize=4, label=label)
    axes.set(xlabel="start of a replica, s", ylabel="streams refused, %")
    axes.set_xticks(range(len(STARTS_S)), [f"{start_s:g}" for start_s in STARTS_S])
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.set_title("What a slow start costs", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
