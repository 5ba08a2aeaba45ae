"""Trains the embedded ``tiny`` checkpoint.

    python -m training.train [--work out/training] [--scale cpu|gpu] [--minutes 9] [--only vae,speech]

A run takes up where the last one stopped, and stops after ``--minutes``; it exits with 0 once everything
is done and the checkpoint written to ``<work>/checkpoint``, with 75 while there is more to do. A folder is
for one scale: another is refused. See training/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.autoencoder import fitted_autoencoder
from training.checkpoint import write_checkpoint
from training.chunks import FRAMES, Chunks, TalkEncoder
from training.evaluation import evaluate
from training.loop import Run, save_whole
from training.pictures import Clips
from training.rollouts import roll_out
from training.stages import (
    SCALES,
    SEED,
    STAGES,
    Workplace,
    correction_stage,
    encoded_chunks,
    finished,
    generator_stage,
    trained_reader,
    trained_speech,
    trained_vae,
)

SETTINGS = "settings.json"
JOURNAL = "phases.jsonl"
MORE_TO_DO = 75
"""Exit status (EX_TEMPFAIL): call again."""

Phase = Callable[[Workplace, float], bool]
"""Works until a time of ``time.monotonic()``; whether it is done."""


def run_stage(name: str, place: Workplace, until_s: float) -> bool:
    """One stage's optimisation."""
    if steps_done(name, place) >= getattr(place.scale, name).steps:
        return True
    run = Run(STAGES[name](place), place.folder)
    run.train(until_s)
    return run.done


def fit_vae(place: Workplace, until_s: float) -> bool:
    """The VAE, in closed form; a few minutes, not to be interrupted."""
    if not place.vae.is_file():
        data = Clips(SEED + 7, frames=FRAMES)
        items = [data[index] for index in range(place.scale.clips)]
        network = fitted_autoencoder(
            [item["clip"] for item in items], [item["clip_weight"] for item in items]
        )
        save_whole(network.state_dict(), place.vae)
    return True


def encode_talks(place: Workplace, until_s: float) -> bool:
    """The talks the generator learns from."""
    encoder = TalkEncoder(trained_vae(place), trained_speech(place), place.talks, SEED + 6, place.workers)
    return encoder.encode(place.scale.talks, until_s)


def make_rollouts(place: Workplace, until_s: float) -> bool:
    """What the generator hands on to itself."""
    dit = finished(generator_stage(place), place).requires_grad_(False)
    chunks = encoded_chunks(place, 2)
    vae = normalised_vae(place, chunks)
    return roll_out(dit, vae, chunks, place.scale.rollouts, place.rollouts, until_s)


def write(place: Workplace, until_s: float) -> bool:
    """The checkpoint and its record."""
    vae, reader = normalised_vae(place, encoded_chunks(place, 2)), trained_reader(place)
    dit = finished(correction_stage(place), place)
    record = training_record(place) | {"held out": evaluate(vae, reader)}
    write_checkpoint(place.folder / "checkpoint", dit, vae.network, reader.network, record)
    return True


PHASES: dict[str, Phase] = {
    "vae": fit_vae,
    "speech": partial(run_stage, "speech"),
    "talks": encode_talks,
    "generator": partial(run_stage, "generator"),
    "rollouts": make_rollouts,
    "correction": partial(run_stage, "correction"),
    "write": write,
}


def normalised_vae(place: Workplace, chunks: Chunks) -> Any:
    """The trained VAE with the statistics of the latents it encoded."""
    vae = trained_vae(place)
    vae.network.latents_mean.copy_(chunks.mean.flatten())
    vae.network.latents_std.copy_(chunks.std.flatten())
    return vae


def steps_done(name: str, place: Workplace) -> int:
    """How far a stage has come."""
    path = place.folder / f"{name}.pt"
    if not path.is_file():
        return 0
    return int(torch.load(path, map_location="meta", weights_only=True)["progress"]["step"])


def training_record(place: Workplace) -> dict[str, Any]:
    """What was trained, on what and for how long, and how far each stage came."""
    runs = [json.loads(line) for line in (place.folder / JOURNAL).read_text().splitlines()]
    states = {name: torch.load(place.folder / f"{name}.pt", "meta", weights_only=True) for name in STAGES}
    return {
        "torch": torch.__version__,
        "settings": settings(place),
        "phases": {
            name: {
                "seconds": round(sum(run["seconds"] for run in runs if run["phase"] == name)),
                "on": sorted({run["on"] for run in runs if run["phase"] == name}),
            }
            for name in dict.fromkeys(run["phase"] for run in runs)
        },
        "stages": {name: state["progress"] for name, state in states.items()},
    }


def settings(place: Workplace) -> dict[str, Any]:
    """What a run follows from."""
    return {"seed": SEED, "scale": asdict(place.scale)}


def check_settings(place: Workplace) -> None:
    """Raises ``SystemExit`` where the folder holds another run's work."""
    path = place.folder / SETTINGS
    wanted = settings(place)
    if not path.is_file():
        path.write_text(json.dumps(wanted) + "\n")
    elif (begun := json.loads(path.read_text())) != wanted:
        raise SystemExit(f"{place.folder} was begun with {begun}, not with {wanted}: give another --work")


def work(place: Workplace, phases: Sequence[str], until_s: float) -> bool:
    """Go on with these phases until a time of ``time.monotonic()``; whether all are done. What they took is
    noted in the journal."""
    place.folder.mkdir(parents=True, exist_ok=True)
    check_settings(place)
    for name in phases:
        began_s = time.monotonic()
        done = PHASES[name](place, until_s)
        line = {"phase": name, "seconds": time.monotonic() - began_s, "on": processor(place)}
        with (place.folder / JOURNAL).open("a") as journal:
            journal.write(json.dumps(line) + "\n")
        print(f"{name}: {'done' if done else 'to be continued'}", flush=True)
        if not done:
            return False
    return True


def processor(place: Workplace) -> str:
    """What the networks run on."""
    if place.device.type == "cuda":
        return torch.cuda.get_device_name(place.device)
    info = Path("/proc/cpuinfo").read_text()
    [*names] = re.findall(r"(?m)^model name\s*: (.*)$", info)
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("out/training"), help="where everything is kept")
    parser.add_argument(
        "--scale", choices=list(SCALES), default=None, help="and device; gpu where there is one"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so long")
    parser.add_argument("--only", default=",".join(PHASES), help="these phases, in this order")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of the networks")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    until_s = time.monotonic() + 60 * args.minutes
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    scale = args.scale or ("gpu" if torch.cuda.is_available() else "cpu")
    device = torch.device("cuda" if scale == "gpu" else "cpu")
    workers = max(1, (os.cpu_count() or 2) - 1)
    place = Workplace(args.work, device, workers, SCALES[scale])
    return 0 if work(place, args.only.split(","), until_s) else MORE_TO_DO


if __name__ == "__main__":
    sys.exit(main())
