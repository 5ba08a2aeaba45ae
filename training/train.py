"""Trains the embedded ``tiny`` checkpoint.

    python -m training.train [--work out/training] [--scale cpu|gpu] [--minutes 9] [--only vae,speech]

A run takes up where the last one stopped, and stops after ``--minutes``; it exits with 0 once everything
is done and the checkpoint written to ``<work>/checkpoint``, with 75 while there is more to do. See
training/README.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.autoencoder import fitted_autoencoder
from training.checkpoint import write_checkpoint
from training.chunks import FRAMES, Chunks, TalkEncoder
from training.evaluation import evaluate
from training.loop import Run
from training.pictures import Clips
from training.rollouts import roll_out
from training.stages import (
    SCALES,
    SEED,
    STAGES,
    Workplace,
    correction_stage,
    finished,
    generator_stage,
    trained_speech,
    trained_vae,
)

VAE_CLIPS = 160
MORE_TO_DO = 75
"""Exit status (EX_TEMPFAIL): call again."""

Phase = Callable[[Workplace, float], bool]
"""Works until a time of ``time.monotonic()``; whether it is done."""


def run_stage(name: str, place: Workplace, until_s: float) -> bool:
    """One stage's optimisation."""
    run = Run(STAGES[name](place), place.folder)
    if not run.done:
        run.train(until_s)
    return run.done


def fit_vae(place: Workplace, until_s: float) -> bool:
    """The VAE, in closed form; a few minutes, not to be interrupted."""
    if not place.vae.is_file():
        data = Clips(SEED + 7, frames=FRAMES)
        items = [data[index] for index in range(VAE_CLIPS)]
        network = fitted_autoencoder(
            [item["clip"] for item in items], [item["clip_weight"] for item in items]
        )
        torch.save(network.state_dict(), place.vae)
    return True


def encode_talks(place: Workplace, until_s: float) -> bool:
    """The talks the generator learns from."""
    encoder = TalkEncoder(trained_vae(place), trained_speech(place), place.talks, SEED + 6, place.workers)
    return encoder.encode(place.scale.talks, until_s)


def make_rollouts(place: Workplace, until_s: float) -> bool:
    """What the generator hands on to itself."""
    dit = finished(generator_stage(place), place).requires_grad_(False)
    chunks = Chunks(place.talks, SEED + 2)
    vae = normalised_vae(place, chunks)
    return roll_out(dit, vae, chunks, place.scale.rollouts, place.rollouts, until_s)


def write(place: Workplace, until_s: float) -> bool:
    """The checkpoint and its record."""
    chunks = Chunks(place.talks, SEED + 2)
    vae, speech = normalised_vae(place, chunks), trained_speech(place)
    dit = finished(correction_stage(place), place)
    record = training_record(place) | {"held out": evaluate(vae, speech)}
    write_checkpoint(place.folder / "checkpoint", dit, vae.network, speech.network, record)
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


def training_record(place: Workplace) -> dict[str, Any]:
    """On what it was trained, for how long, and how far each stage came."""
    stages = {}
    for name in STAGES:
        state = torch.load(place.folder / f"{name}.pt", map_location="cpu", weights_only=True)
        stages[name] = state["progress"]
    device = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else platform.processor()
    return {
        "command": " ".join(["python -m training.train", *sys.argv[1:]]),
        "device": device or platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "seed": SEED,
        "stages": stages,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("out/training"), help="where everything is kept")
    parser.add_argument("--scale", choices=list(SCALES), default=None, help="gpu where there is one")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so long")
    parser.add_argument("--only", default=",".join(PHASES), help="these phases, in this order")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of the networks")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    until_s = time.monotonic() + 60 * args.minutes
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    workers = max(1, (os.cpu_count() or 2) - 1)
    scale = SCALES[args.scale or ("gpu" if kind == "cuda" else "cpu")]
    place = Workplace(args.work, torch.device(kind), workers, scale)
    place.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        done = PHASES[name](place, until_s)
        print(f"{name}: {'done' if done else 'to be continued'}", flush=True)
        if not done:
            return MORE_TO_DO
    return 0


if __name__ == "__main__":
    sys.exit(main())
