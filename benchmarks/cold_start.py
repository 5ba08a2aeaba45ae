"""How long a generator replica takes from nothing to warm, phase by phase.

    python benchmarks/cold_start.py [--model tiny] [--checkpoint DIR] [--compile] [--runs 3]
    python benchmarks/cold_start.py --synthetic DIR --weights-only --precision bf16 [--readers 1]

Each run is a process of its own that does what a replica's constructor does, Ray apart. Columns: the
checkpoint's files put out of the page cache before, or left in it; with ``--compile`` the second pair
starts from the kernels that the first pair kept. Medians of the runs, one markdown section with where the
numbers come from. ``--synthetic`` writes Lite's DiT and VAE at full size with arbitrary weights (7.8 GB)
where there are none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_app.config import ModelSettings

from benchmarks.engine import commit, device_name

ROOT = Path(__file__).parents[1]
CHILD = """
import json, sys
from serve_app import IMPORTED_S
from serve_app.config import ModelSettings
from serve_app.deployments.flashhead_generator import FlashHeadGenerator
from serve_app.engine.startup import StartPhases
from serve_app.model import weight_files
settings, readers, weights_only = json.loads(sys.argv[1])
weight_files.READERS = readers or weight_files.READERS
phases = StartPhases(settings["name"], IMPORTED_S)
phases.since_began("imports")
engine = FlashHeadGenerator.load_engine(ModelSettings(**settings), phases)
chunk_s = None if weights_only else engine.warm_up()
total_s = phases.ready()
seconds = {phase.name: phase.seconds for phase in phases.phases}
print(json.dumps({"began_s": IMPORTED_S, "seconds": seconds, "chunk_s": chunk_s}))
"""


@dataclass(frozen=True)
class Start:
    """One start: seconds of each phase, and of a warm chunk."""

    seconds: Mapping[str, float]
    chunk_s: float | None


def start(settings: ModelSettings, readers: int | None, weights_only: bool, folder: Path) -> Start:
    """Start an engine in a new process, whose compiler keeps nothing but in ``folder``."""
    asked = json.dumps([settings.model_dump(), readers, weights_only])
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    spawned_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, asked], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(ended.stdout.splitlines()[-1])
    seconds = {"interpreter": told["began_s"] - spawned_s, **told["seconds"]}
    seconds["total"] += seconds["interpreter"]
    return Start(seconds, told["chunk_s"])


def forget_pages(root: Path) -> None:
    """Put a checkpoint's files out of the page cache."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def columns(args: argparse.Namespace, root: Path, kernels: Path) -> dict[str, list[Start]]:
    """The starts of each column by its heading."""
    made: dict[str, list[Start]] = {}

    def column(heading: str, cold_pages: bool, compiled: str) -> None:
        starts = made.setdefault(heading, [])
        for _ in range(args.runs):
            if compiled == "anew":
                for kept in kernels.glob("*"):
                    kept.unlink()
            if cold_pages:
                forget_pages(root)
            with tempfile.TemporaryDirectory(prefix="cold-start-") as folder:
                settings = model_settings(args, root, kernels)
                starts.append(start(settings, args.readers, args.weights_only, Path(folder)))

    states = (("anew", ", compiled anew"), ("kept", ", kernels kept"))
    for compiled, suffix in states if args.compile else (("", ""),):
        column(f"pages cold{suffix}", True, compiled)
        column(f"pages warm{suffix}", False, compiled)
    return made


def model_settings(args: argparse.Namespace, root: Path, kernels: Path) -> ModelSettings:
    return ModelSettings(
        name="lite" if args.synthetic else args.model,
        checkpoint=str(root),
        device=args.device,
        precision=args.precision,
        threads=args.threads,
        max_rows=args.rows,
        compile=args.compile,
        compile_cache=str(kernels),
    )


def table(made: Mapping[str, Sequence[Start]]) -> list[str]:
    """Phases down, columns across; medians."""
    phases = list(next(iter(made.values()))[0].seconds)
    lines = ["| s | " + " | ".join(made) + " |", "|---|" + "---|" * len(made)]
    for phase in phases:
        cells = [f"{statistics.median(one.seconds[phase] for one in starts):.2f}" for starts in made.values()]
        name = f"**{phase}**" if phase == "total" else phase
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    chunks = [[one.chunk_s for one in starts if one.chunk_s] for starts in made.values()]
    if all(chunks):
        cells = [f"{statistics.median(taken):.3f}" for taken in chunks]
        lines.append("| a warm chunk | " + " | ".join(cells) + " |")
    return lines


def write_synthetic(root: Path) -> None:
    """Lite's DiT and VAE at ``root``, in the released names, shapes and precision; nothing is held in
    memory."""
    import torch
    from diffusers import AutoencoderKLLTXVideo

    from serve_app.model.dit import DiT, DiTConfig
    from serve_app.model.presets import preset

    from benchmarks.networks import RELEASED_DIT, RELEASED_LATENTS

    row = preset("lite")
    config: dict[str, Any] = {**RELEASED_DIT, **RELEASED_LATENTS[row.family]}
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo()
        networks = {row.dit_dir: (DiT(DiTConfig.from_dict(config)), config)}
        networks[row.vae_path] = (vae, {key: value for key, value in vae.config.items() if key[0] != "_"})
    for folder, (network, described) in networks.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "config.json").write_text(json.dumps(described))
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        _write_safetensors(root / folder / "diffusion_pytorch_model.safetensors", shapes)


def _write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A float32 file of arbitrary small values, written block by block."""
    import numpy as np

    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    block = np.random.default_rng(0).normal(0, 0.02, 1 << 24).astype(np.float32).tobytes()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for begin in range(0, end, len(block)):
            file.write(block[: end - begin])


def provenance(args: argparse.Namespace, load: float) -> list[str]:
    """Where the numbers come from."""
    import torch

    from serve_app.engine.precision import choose_device

    python = ".".join(map(str, sys.version_info[:3]))
    return [
        f"- device: {device_name(choose_device(args.device))}; torch {torch.__version__}, CPython {python}",
        f"- {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, load average at start {load:.2f}, "
        f"medians of {args.runs}",
        f"- `{' '.join(['python', *sys.argv])}`",
    ]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=["tiny", "lite", "pro"], default="tiny")
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--synthetic", type=Path, metavar="DIR", help="write Lite at full size there, use it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of the engine")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the DiT's blocks")
    parser.add_argument("--readers", type=int, default=None, help="threads that read one file")
    parser.add_argument("--weights-only", action="store_true", help="stop when the weights are loaded")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    load = os.getloadavg()[0]
    from serve_app.model.presets import checkpoint_root

    root = args.synthetic or checkpoint_root(args.checkpoint)
    if args.synthetic and not any(root.rglob("*.safetensors")):
        write_synthetic(root)
    with tempfile.TemporaryDirectory(prefix="cold-start-kernels-") as kernels:
        made = columns(args, root, Path(kernels))
    name = "lite, arbitrary weights" if args.synthetic else args.model
    lines = [f"### Cold start of {name}", "", *provenance(args, load), "", *table(made)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
