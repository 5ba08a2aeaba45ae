"""Whether the embedded model talks: through the whole graph, HTTP in and WebM out, decoded and measured.

    python benchmarks/lipsync.py [--talks 6] [--seconds 12] [--long 60] [--config configs/serve.yaml]
                                 [--recording FILE] [--frames out/lipsync]

Faces, voices and texts are those held out from training (``training.talks.held_out_talk``), spoken by
espeak-ng with known phonemes, so the true opening of the mouth is known. The opening, the head's movement and
the likeness to the portrait are measured in the decoded frames (``benchmarks/faces.py``). Prints a table
against what is required and wished; exits with 1 where something required is missed. Server and client share
two CPU cores, however many there are. ``--recording`` says as well how the mouth follows the loudness of real
speech, whose phonemes nobody knows, and ``--frames`` keeps pictures of what was seen.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_app.client.remote import animate
from serve_app.client.server import Overrides, running_server
from serve_app.types import FPS

from benchmarks.faces import Look, Observer, best_lag, seam_ratio
from training.pictures import SIDE
from training.speech import RATE_HZ
from training.talks import SAMPLES_PER_FRAME, Talk, held_out_talk

CORES = 2
"""That real time is asked of."""
SLICE_FRAMES = 24
START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 600.0
FRAMES_PER_SECOND = " frames/s"
RECORDED_FACES = (0, 5)
RECORDED_FRAMES = 200
_QUIET = 1e-3
SETTLED_FRAMES = 5
"""At the beginning: the first frames continue a portrait that is still."""


@dataclass(frozen=True)
class Watched:
    """One talk as it came back."""

    talk: Talk
    frames: np.ndarray
    looks: list[Look]
    seconds: float

    @property
    def opening(self) -> np.ndarray:
        return np.array([look.opening for look in self.looks])

    @property
    def psnr_db(self) -> np.ndarray:
        return np.array([look.psnr_db for look in self.looks])

    @property
    def swing_px(self) -> float:
        """How far the head goes: the larger side of the box that holds nine tenths of its shifts."""
        shifts = np.array([look.shift for look in self.looks])
        return float(np.ptp(np.quantile(shifts, (0.05, 0.95), axis=0), axis=0).max())


@dataclass(frozen=True)
class Row:
    """A line of the table; ``holds(value, limit)`` says whether a limit is kept."""

    name: str
    value: float
    required: float
    goal: float
    holds: Callable[[float, float], bool]
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.holds(self.value, self.required)

    def __str__(self) -> str:
        verdict = "goal" if self.holds(self.value, self.goal) else "required" if self.passed else "MISSED"
        return (
            f"| {self.name} | {self.value:.3g}{self.unit} | {self.required:g} | {self.goal:g} | {verdict} |"
        )


def at_least(value: float, limit: float) -> bool:
    return value >= limit


def at_most(value: float, limit: float) -> bool:
    return value <= limit


def watch(url: str, talk: Talk) -> Watched:
    """Have the server animate the talk's portrait with its speech, and look at every frame."""
    observer = Observer(talk.face, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        portrait, speech = Path(folder) / "portrait.png", Path(folder) / "speech.wav"
        cv2.imwrite(str(portrait), cv2.cvtColor(observer.portrait, cv2.COLOR_RGB2BGR))
        soundfile.write(speech, talk.samples, RATE_HZ, subtype="PCM_16")
        started = time.monotonic()
        video = animate(url, portrait, speech, {"seed": 1}, lambda done, total: None, ANSWER_TIMEOUT_S)
        seconds = time.monotonic() - started
    frames = decoded(video)
    return Watched(talk, frames, [observer.look(frame) for frame in frames], seconds)


def decoded(video: bytes) -> np.ndarray:
    """``[n, H, W, 3]`` uint8 of a WebM file."""
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def silent(talk: Talk) -> Talk:
    """The same face with nothing to say."""
    return Talk(talk.face, np.zeros_like(talk.samples), np.zeros_like(talk.track), talk.expressions)


def recorded_talk(path: Path, number: int) -> Talk:
    """A held-out face that says what is in a file; what its mouth should do is not known."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    heard = soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ)[: RECORDED_FRAMES * SAMPLES_PER_FRAME]
    talk = held_out_talk(number, len(heard) // SAMPLES_PER_FRAME)
    return replace(talk, samples=heard[: talk.frames * SAMPLES_PER_FRAME])


def loudness(talk: Talk) -> np.ndarray:
    """``[frames]``: logarithm of the level, over three frames."""
    frames = talk.samples.reshape(-1, SAMPLES_PER_FRAME)
    level = np.convolve(np.sqrt((frames**2).mean(axis=1)), np.ones(3) / 3, "same")
    return np.asarray(np.log(level + _QUIET))


def rows(spoken: Sequence[Watched], hushed: Watched, long: Watched) -> list[Row]:
    """The table."""
    lags, correlations = zip(*(_sync(one) for one in spoken), strict=True)
    speaking = float(np.quantile(np.concatenate([one.opening for one in spoken]), 0.99))
    second = slice(2 * FPS, 3 * FPS)
    drift = float(np.mean(long.psnr_db[second]) - np.mean(long.psnr_db[-FPS:]))
    seams = [seam_ratio(one.frames, range(SLICE_FRAMES, len(one.frames), SLICE_FRAMES)) for one in spoken]
    identity = float(np.mean([one.psnr_db[SETTLED_FRAMES:].mean() for one in spoken]))
    silence = float(hushed.opening.mean()) / speaking
    rate = len(long.frames) / long.seconds
    return [
        Row("opening, correlation with the truth", float(np.mean(correlations)), 0.7, 0.85, at_least),
        Row("best lag, frames, the furthest", float(max(map(abs, lags))), 1, 1, at_most),
        Row("opening in silence / speaking maximum", silence, 0.15, 0.1, at_most),
        Row("likeness to the portrait", identity, 24, 28, at_least, " dB"),
        Row("likeness lost from 2 s to the end of the long talk", drift, 1, 1, at_most, " dB"),
        Row("swing of the head, the least", min(one.swing_px for one in spoken), 1, 1, at_least, " px"),
        Row("change at seams / elsewhere, the worst", max(seams), 2, 1.5, at_most),
        Row("the long talk", rate, 25, 25, at_least, FRAMES_PER_SECOND),
    ]


def _sync(one: Watched) -> tuple[int, float]:
    true = one.talk.track[: len(one.opening), 0]
    return best_lag(one.opening[SETTLED_FRAMES:], true[SETTLED_FRAMES:])


def keep_frames(watched: Sequence[Watched], folder: Path) -> None:
    """One strip a talk: what was to be seen above what was seen."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(watched):
        chosen = range(0, min(len(one.frames), 120), 10)
        true = np.hstack([one.talk.video(index, 1)[0] for index in chosen])
        strip = np.vstack([true, np.hstack([one.frames[index] for index in chosen])])
        cv2.imwrite(str(folder / f"talk-{number}.png"), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--talks", type=int, default=6, help="held-out talks")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each")
    parser.add_argument("--long", type=float, default=60.0, help="seconds of the talk that drift is seen in")
    parser.add_argument("--config", type=Path, default=Path("configs/serve.yaml"))
    parser.add_argument("--port", type=int, default=8131)
    parser.add_argument("--recording", type=Path, default=None, help="a file of speech, 8 s at least")
    parser.add_argument("--frames", type=Path, default=None, help="a folder for pictures")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    talks = [held_out_talk(number, round(args.seconds * FPS)) for number in range(args.talks)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with running_server(args.config, Overrides(port=args.port), START_TIMEOUT_S, log) as url:
            spoken = [watch(url, talk) for talk in talks]
            hushed = watch(url, silent(held_out_talk(0, 4 * FPS)))
            long = watch(url, held_out_talk(1, round(args.long * FPS)))
            faces = RECORDED_FACES if args.recording else ()
            recorded = [watch(url, recorded_talk(args.recording, number)) for number in faces]
    if args.frames is not None:
        keep_frames([*spoken, hushed, long], args.frames)
    table = rows(spoken, hushed, long)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load average at start {load:.2f}\n")
    print("| | measured | required | goal | |\n|---|---|---|---|---|")
    print("\n".join(map(str, table)))
    for number, one in zip(faces, recorded, strict=True):
        lag, correlation = best_lag(one.opening[SETTLED_FRAMES:], loudness(one.talk)[SETTLED_FRAMES:])
        print(f"\n{args.recording.name}, face {number}: opening and loudness, {correlation:.2f} at lag {lag}")
    return 0 if all(row.passed for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
