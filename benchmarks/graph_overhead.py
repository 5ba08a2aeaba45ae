"""What the graph costs over the bare engine, in one run.

    python benchmarks/graph_overhead.py [--chunk-ms 250] [--sessions 4] [--chunks 24] [--encoder null|real]

The engine sleeps instead of computing and has Lite's payloads: 9.4 MB of 512x512 yuv420p a chunk, 0.8 MB
snapshots, 1.3 MB of features. Bare, its chunks run one after another in this process; through the graph,
clients stream over HTTP. Printed are chunks per second with all sessions in flight, and for one session
alone the time from cluster to cluster; the graph's less the bare engine's is what it adds to a chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import soundfile
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_app.session.timeline import ClipTimeline
from serve_app.types import ChunkCall, SessionSpec

from benchmarks.null_graph import GEOMETRY, STEPS, NullEngine, build_null_app

GOALS = {"throughput lost": "at most 3 %", "added per chunk, p50": "at most 30 ms"}


def bare_chunk_s(chunk_s: float, chunks: int) -> list[float]:
    """Seconds of each chunk on the engine alone, motion encode included."""
    engine = NullEngine(chunk_s)
    spec = SessionSpec("bare", "null", np.zeros((512, 512, 3), np.uint8), 0, STEPS, "stream")
    state, reference = engine.open(spec)
    features = np.zeros((35, 12, 768), np.float32)
    timeline = ClipTimeline(*_silence(chunks), GEOMETRY, "stream")
    seconds = []
    for index in range(chunks):
        plan = timeline.peek(index)
        assert plan is not None
        call = ChunkCall("bare", 0, index, plan.audio, None, plan.first_frame, plan.frame_count, False)
        started = time.perf_counter()
        row = engine.begin(state, reference, features, call)
        for _ in range(STEPS):
            engine.denoise([row])
        engine.decode(row)
        state = engine.advance(row)
        seconds.append(time.perf_counter() - started)
    return seconds


async def stream(client: httpx.AsyncClient, url: str, files: dict, reader: list[float]) -> None:
    """Animate once; the times at which clusters arrived."""
    async with client.stream("POST", f"{url}/animate", files=files) as answer:
        answer.raise_for_status()
        async for piece in answer.aiter_raw():
            if len(piece) > 1000:
                reader.append(time.perf_counter())


async def play(url: str, sessions: int, chunks: int) -> tuple[list[list[float]], float]:
    """Arrival times of each session's clusters, and the seconds from the first to the last of all."""
    files = {"image": ("p.png", portrait()), "audio": ("s.wav", speech(chunks))}
    arrivals: list[list[float]] = [[] for _ in range(sessions)]
    async with httpx.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(stream(client, url, files, times) for times in arrivals))
    return arrivals, max(times[-1] for times in arrivals) - min(times[0] for times in arrivals)


def _silence(chunks: int) -> tuple[np.ndarray, np.ndarray]:
    samples = chunks * GEOMETRY.slice_samples
    return np.zeros(samples, np.float32), np.zeros(samples * 3, np.float32)


def speech(chunks: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).standard_normal(chunks * GEOMETRY.slice_samples) * 0.05
    soundfile.write(file, noise, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def portrait() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (512, 512), (180, 150, 140)).save(file, "PNG")
    return file.getvalue()


def _gaps_ms(times: list[float]) -> list[float]:
    """Milliseconds from cluster to cluster; a cluster that arrived in pieces counts at its first."""
    firsts = [times[0]] + [b for a, b in itertools.pairwise(times) if b - a > 0.02]
    return [1000 * (b - a) for a, b in itertools.pairwise(firsts)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chunk-ms", type=int, default=250)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--encoder", choices=["null", "real"], default="real")
    options = parser.parse_args()

    import ray
    from ray import serve

    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 8123})
    chunk_s = options.chunk_ms / 1000
    serve.run(build_null_app(chunk_s, options.encoder == "real"), name="overhead")
    url = "http://127.0.0.1:8123"
    while httpx.get(f"{url}/ready").status_code != httpx.codes.OK:
        time.sleep(0.2)
    asyncio.run(play(url, 1, 3))

    bare = bare_chunk_s(chunk_s, options.chunks)
    alone, _ = asyncio.run(play(url, 1, options.chunks))
    _, span = asyncio.run(play(url, options.sessions, options.chunks))
    serve.shutdown()
    ray.shutdown()

    bare_rate = 1 / statistics.mean(bare)
    rate = (options.sessions * options.chunks - 1) / span
    gaps = _gaps_ms(alone[0])
    added = [gap - 1000 * statistics.median(bare) for gap in gaps]
    print(
        f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}, ray {version('ray')}; null engine at {options.chunk_ms} ms a chunk,"
        f" 512x512, {options.sessions} sessions x {options.chunks} chunks, {options.encoder} encoder\n"
    )
    print("| | bare engine | graph | difference | goal |")
    print("|---|---|---|---|---|")
    print(
        f"| chunks/s, {options.sessions} sessions | {bare_rate:.3f} | {rate:.3f} |"
        f" {100 * (1 - rate / bare_rate):.1f} % lost | {GOALS['throughput lost']} |"
    )
    print(
        f"| chunk to chunk, one session, p50 | {1000 * statistics.median(bare):.1f} ms |"
        f" {statistics.median(gaps):.1f} ms | {statistics.median(added):.1f} ms added |"
        f" {GOALS['added per chunk, p50']} |"
    )
    worst = sorted(added)[int(0.99 * len(added))]
    print(f"| the same, p99 | | {worst + 1000 * statistics.median(bare):.1f} ms | {worst:.1f} ms added | |")


if __name__ == "__main__":
    main()
