"""How fast the bare engine is: stage times, frames per second, TFLOP/s, memory, time to first frame.

    python benchmarks/engine.py --model tiny|lite|pro [--rows 1] [--chunks 10] [--precision auto]

No graph, no video encoding. ``tiny`` runs the embedded checkpoint; Lite and Pro run at full size with
random weights made on the device, so no checkpoint is needed. Prints one markdown section with where the
numbers come from. Stage times are medians with the device waited for after each stage; frames per second
are of whole chunks, waited for once.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_app.config import ModelSettings
from serve_app.engine import audio_cache
from serve_app.engine.engine import Engine
from serve_app.engine.precision import Execution, choose_execution, compile_blocks
from serve_app.engine.reference import Reference
from serve_app.engine.row import ChunkRow
from serve_app.engine.state import SessionState
from serve_app.model.presets import Preset, preset
from serve_app.types import FPS, AudioSlice, AudioWindow, ChunkCall, SessionSpec

from benchmarks.networks import Networks, Tflop, count_tflop, embedded, full_size

WARM_UP_CHUNKS = 3


@dataclass
class Session:
    """One of the sessions that are played side by side."""

    spec: SessionSpec
    speech: np.ndarray
    state: SessionState
    reference: Reference


class Bench:
    """An engine with its networks, and sessions to play on it."""

    def __init__(self, row: Preset, nets: Networks, rows: int) -> None:
        self.row = row
        self.nets = nets
        self.geometry = nets.geometry
        self.engine = Engine(nets.dit, nets.vae, row, nets.geometry, max_rows=rows)
        self.sessions = [self._session(seed) for seed in range(rows)]
        self.features: list[np.ndarray] = []

    def _session(self, seed: int) -> Session:
        random = np.random.default_rng(seed)
        shape = (self.geometry.height, self.geometry.width, 3)
        portrait = random.integers(0, 256, shape, dtype=np.uint8)
        speech = (random.standard_normal(self.geometry.slice_samples) * 0.1).astype(np.float32)
        spec = SessionSpec(f"bench-{seed}", self.row.name, portrait, seed, self.row.steps, "stream")
        return Session(spec, speech, *self.engine.open(spec))

    def call(self, session: Session) -> ChunkCall:
        """The session's next whole chunk."""
        return ChunkCall(
            session_id=session.spec.session_id,
            epoch=0,
            index=session.state.index,
            audio=AudioSlice(session.speech),
            next_audio=None,
            first_frame=self.geometry.motion_frames,
            frame_count=self.geometry.slice_frames,
            final=False,
        )

    def window(self, session: Session) -> AudioWindow:
        """What AudioEncoder would be asked for it."""
        audio = AudioSlice(session.speech)
        return audio_cache.window(session.state.audio_cache, audio, self.geometry)[0]

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds of ``work``, the device waited for."""
        self.engine.synchronise()
        started = time.perf_counter()
        work()
        self.engine.synchronise()
        return time.perf_counter() - started

    def chunk_stages(self) -> dict[str, float]:
        """Play one chunk of every session; seconds of each stage for all rows together."""
        features = [self.nets.audio.rows(self.window(one)) for one in self.sessions]
        seconds = {"audio features (8 s window)": self.timed(self._encode_speech)}
        rows: list[ChunkRow] = []
        seconds["audio context"] = self.timed(
            lambda: rows.extend(
                self.engine.begin(one.state, one.reference, made, self.call(one))
                for one, made in zip(self.sessions, features, strict=True)
            )
        )
        steps = [self.timed(lambda: self.engine.denoise(rows)) for _ in range(self.row.steps)]
        seconds["DiT step"] = statistics.median(steps)
        seconds["VAE decode"] = self.timed(lambda: [self._decode(row.x) for row in rows])
        seconds["VAE decode, colour, yuv, to the host"] = self.timed(
            lambda: [self.engine.decode(row) for row in rows]
        )
        seconds["motion encode"] = self.timed(lambda: self._advance(rows))
        return seconds

    def chunk(self) -> None:
        """Play one chunk of every session as a replica does, speech apart."""
        states = [one.state for one in self.sessions]
        references = [one.reference for one in self.sessions]
        calls = [self.call(one) for one in self.sessions]
        answers = self.engine.step(states, references, self.features, calls)
        for one, (_, following) in zip(self.sessions, answers, strict=True):
            assert following is not None
            one.state = following

    def prepare_features(self) -> None:
        """Encode the sessions' speech, as AudioEncoder does meanwhile."""
        self.features = [self.nets.audio.rows(self.window(one)) for one in self.sessions]

    def first_frame(self, seed: int) -> None:
        """From a portrait never seen to the first chunk's frames."""
        session = self._session(seed)
        features = self.nets.audio.rows(self.window(session))
        row = self.engine.begin(session.state, session.reference, features, self.call(session))
        while row.steps_left:
            self.engine.denoise([row])
        self.engine.decode(row)

    def _encode_speech(self) -> None:
        for one in self.sessions:
            self.nets.audio.rows(self.window(one))

    @torch.inference_mode()
    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.nets.vae.decode(latent)

    def _advance(self, rows: list[ChunkRow]) -> None:
        for one, row in zip(self.sessions, rows, strict=True):
            one.state = self.engine.advance(row)


def measure(bench: Bench, chunks: int) -> tuple[dict[str, float], float, float]:
    """Median seconds of each stage, of a whole chunk of all rows, and to a new session's first frame."""
    for _ in range(WARM_UP_CHUNKS):
        bench.chunk_stages()
    bench.first_frame(seed=1000)
    stages = [bench.chunk_stages() for _ in range(chunks)]
    whole = []
    for _ in range(chunks):
        bench.prepare_features()
        whole.append(bench.timed(bench.chunk))
    first = [bench.timed(partial(bench.first_frame, seed)) for seed in range(2000, 2003)]
    medians = {name: statistics.median(one[name] for one in stages) for name in stages[0]}
    return medians, statistics.median(whole), statistics.median(first)


def stage_table(stages: dict[str, float], work: Tflop, rows: int, steps: int) -> list[str]:
    """Stage, milliseconds for all rows, TFLOP and TFLOP/s where products are counted."""
    counted = {
        "audio features (8 s window)": work.audio,
        "audio context": work.begin,
        "DiT step": work.denoise,
        "VAE decode": work.decode,
        "motion encode": work.advance,
    }
    lines = ["| stage | ms | TFLOP | TFLOP/s |", "|---|---|---|---|"]
    for name, seconds in stages.items():
        label = f"{name} (x{steps})" if name == "DiT step" else name
        tflop = counted.get(name)
        rate = f"{rows * tflop:.4g} | {rows * tflop / seconds:.3g}" if tflop else "- | -"
        lines.append(f"| {label} | {1000 * seconds:.1f} | {rate} |")
    return lines


def summary_table(bench: Bench, work: Tflop, whole: float, first: float) -> list[str]:
    """What a session's owner asks for."""
    rows, frames = len(bench.sessions), bench.geometry.slice_frames
    fps = rows * frames / whole
    tflop = rows * (work.chunk(bench.row.steps) - work.audio)
    return [
        "| | |",
        "|---|---|",
        f"| chunk of {frames} frames, {rows} row(s), speech encoded apart | {1000 * whole:.1f} ms |",
        f"| delivered frames per second, all rows | {fps:.1f} |",
        f"| real-time sessions at {FPS} fps (throughput / {FPS}) | {fps / FPS:.2f} |",
        f"| TFLOP per delivered frame | {tflop / (rows * frames):.4g} |",
        f"| TFLOP/s over the chunk | {tflop / whole:.3g} |",
        f"| portrait never seen to first frames, speech included | {1000 * first:.1f} ms |",
        f"| peak memory | {peak_memory(bench.engine.device)} |",
    ]


def peak_memory(device: torch.device) -> str:
    """Of the device's allocator, or of the process."""
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(device) / 2**30
        return f"{allocated:.2f} GiB allocated on the device"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB resident"


def provenance(bench: Bench, how: Execution, compiled: bool, load: float) -> list[str]:
    """Where the numbers come from."""
    size = bench.geometry
    kernel = "flash-attn" if "flash" in how.attention.__name__ else "SDPA"
    blocks = "compiled blocks" if compiled else "eager"
    dtype = str(how.dtype).removeprefix("torch.")
    shapes = f"{size.height}x{size.width}, {size.frames} frames ({size.motion_frames} carried over)"
    return [
        f"- device: {device_name(how.device)}",
        f"- torch {torch.__version__}, {platform.python_implementation()} {platform.python_version()}",
        f"- {bench.row.name} ({bench.nets.weights}), {shapes}, {bench.row.steps} steps, "
        f"{len(bench.sessions)} row(s), {dtype}, {kernel}, {blocks}",
        f"- {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, load average at start {load:.2f}",
        f"- `{' '.join(['python', *sys.argv])}`",
    ]


def device_name(device: torch.device) -> str:
    """Model, and driver or threads."""
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        return f"{torch.cuda.get_device_name(device)}, driver {driver}, CUDA {torch.version.cuda}"
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def commit() -> str:
    """The checkout's, with a plus where it was changed."""
    root = Path(__file__).parents[1]
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=["tiny", "lite", "pro"], default="tiny")
    parser.add_argument("--rows", type=int, default=1, help="sessions played side by side")
    parser.add_argument("--chunks", type=int, default=10, help="chunks measured")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--attention", choices=["auto", "sdpa", "flash"], default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the DiT's blocks")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--size", type=int, default=None, help="pixels a side of Lite or Pro, 512 if absent")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    load = os.getloadavg()[0]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    row = preset(args.model)
    if args.size is not None:
        row = replace(row, height=args.size, width=args.size)
    settings = ModelSettings(
        name=args.model, device=args.device, precision=args.precision, attention=args.attention
    )
    how = choose_execution(settings)
    build = embedded if args.model == "tiny" else full_size
    nets = build(row, how.device, how.dtype, how.attention)
    if args.compile:
        compile_blocks(nets.dit)
    bench = Bench(row, nets, args.rows)
    stages, whole, first = measure(bench, args.chunks)
    work = count_tflop(row)
    lines = [f"### {row.name}, {args.rows} row(s), {how.device.type}", ""]
    lines += [*provenance(bench, how, args.compile, load), ""]
    lines += [*stage_table(stages, work, args.rows, row.steps), ""]
    lines += summary_table(bench, work, whole, first)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
