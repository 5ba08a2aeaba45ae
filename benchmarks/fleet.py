"""What a fleet needs, from 1 to 1000 GPUs: streams held, lateness, GPU-hours, under daily load, losses and
start times. Nothing runs but a simulation; same options and seed, same numbers.

    python benchmarks/fleet.py [held] [sizes] [days] [starts] [losses] [checks] [figures] [--plot FILE]

`held` streams on one GPU by pre-roll, `sizes` streams and GPUs at a peak, `days` 24 hours under each policy,
`starts` start times and reserves, `losses` of a zone, `checks` of the simulation against itself chunk by
chunk, `figures` what it reckons with. Without a name: `days`. Who decides is the graph's own code: its
scheduler, its admission and its scaling policy.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_app.config import ScalingSettings

from benchmarks.simulation import scenarios
from benchmarks.simulation.costs import (
    DETECTION_S,
    EAGER_START_S,
    FIGURES,
    GPU_TYPES,
    MTBF_H,
    REPAIR_S,
    STREAM_MEAN_S,
)
from benchmarks.simulation.run import FleetSettings
from benchmarks.simulation.scenarios import Options, Row

CONFIG = Path(__file__).parents[1] / "configs" / "serve.fleet.yaml"
TABLES = ("held", "sizes", "days", "starts", "losses", "checks", "figures")


def shipped_scaling() -> ScalingSettings:
    """The policy's settings in the fleet's Serve config."""
    [application] = yaml.safe_load(CONFIG.read_text())["applications"]
    generators = [
        each for each in application["deployments"] if each["name"].startswith("FlashHeadGenerator")
    ]
    return ScalingSettings(**generators[0]["autoscaling_config"]["policy"]["policy_kwargs"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    scaling = shipped_scaling()
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = words.add_argument
    add("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default days")
    add("--gpu", choices=GPU_TYPES, default="4090", help="default %(default)s")
    add("--gpus", type=int, nargs="+", default=[1, 10, 100, 1000], help="default 1 10 100 1000")
    add(
        "--max-sessions",
        type=int,
        help="of a replica; default twice what it makes in real time",
    )
    add("--peak", type=float, help="streams at the top of the day; default what refuses 0.1 %% at that load")
    add("--hours", type=float, default=24.0, help="default %(default)g")
    add("--seed", type=int, default=0)
    add(
        "--preroll-s",
        type=float,
        default=0.48,
        help="of players; default %(default)g",
    )
    add("--start-s", type=float, default=EAGER_START_S, help="of a replica; default %(default)g")
    add(
        "--mtbf-h",
        type=float,
        default=MTBF_H,
        help="of a GPU, inf for no loss; default %(default)g",
    )
    add("--zone-loss-h", type=float, default=scenarios.ZONE_LOSS_H, help="hour, inf for never; default 18")
    add("--detection-s", type=float, default=DETECTION_S, help="of a loss; default %(default)g")
    add("--repair-s", type=float, default=REPAIR_S, help="of a lost node; default %(default)g")
    add("--stream-mean-s", type=float, default=STREAM_MEAN_S, help="default %(default)g")
    add("--head-room", type=float, default=scaling.head_room, help="of the policy; default %(default)g")
    add("--spare", type=float, default=scaling.spare_replicas, help="GPUs of the policy; default %(default)g")
    add("--scale-down-after-s", type=float, default=scaling.scale_down_after_s, help="default %(default)g")
    add("--price", type=float, help="of a GPU-hour; default the GPU's, see `figures`")
    add("--plot", type=Path, help="draw a day of the largest fleet into this file (needs matplotlib)")
    return words


def options_of(said: argparse.Namespace) -> Options:
    """What the command line asks for."""
    gpu = GPU_TYPES[said.gpu]
    fleet = FleetSettings(
        gpu,
        capacity=said.max_sessions or 2 * int(1 / gpu.share),
        min_gpus=1,
        max_gpus=max(said.gpus),
        start_s=said.start_s,
        detection_s=said.detection_s,
        repair_s=said.repair_s,
        mtbf_h=said.mtbf_h,
        zone_loss_h=said.zone_loss_h if math.isfinite(said.zone_loss_h) else None,
    )
    scaling = ScalingSettings(
        head_room=said.head_room, spare_replicas=said.spare, scale_down_after_s=said.scale_down_after_s
    )
    price = gpu.price_per_hour if said.price is None else said.price
    return Options(
        fleet, scaling, said.hours, said.seed, said.preroll_s, said.stream_mean_s, price, said.peak
    )


def rows_of(table: str, options: Options, gpus: list[int]) -> Iterable[Row]:
    """One table's rows, as they are computed."""
    if table == "figures":
        return map(asdict, FIGURES)
    if table in ("held", "checks"):
        return getattr(scenarios, table)(options)
    return getattr(scenarios, table)(options, max(gpus) if table == "starts" else gpus)


def show(rows: Iterable[Row]) -> None:
    """As a Markdown table, row by row."""
    for index, row in enumerate(rows):
        if index == 0:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        print("| " + " | ".join(row.values()) + " |", flush=True)


def main() -> None:
    """Print the tables that are asked for."""
    words = parser()
    said = words.parse_args()
    for unknown in set(said.tables) - set(TABLES):
        words.error(f"no table {unknown!r}; there are {', '.join(TABLES)}")
    options = options_of(said)
    for table in said.tables or ([] if said.plot else ["days"]):
        print(f"\n{table}: {options.fleet.gpu.label}, {options.fleet.places} places, seed {options.seed}\n")
        show(rows_of(table, options, said.gpus))
    if said.plot:
        from benchmarks.simulation.plot import draw

        draw(options, said.plot)


if __name__ == "__main__":
    main()
