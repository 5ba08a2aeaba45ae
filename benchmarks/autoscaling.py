"""How a fleet of generators follows a step of load, on a real Ray instance.

    python benchmarks/autoscaling.py [--streams 9] [--seconds 45] [--chunk-ms 250] [--max-replicas 5]
        [--head-room 0.1] [--spare-replicas 0] [--scale-down-after 10]

The engine sleeps instead of computing, so that replicas on one machine do not slow each other down. The
load goes from none to ``--streams`` clients at once, each with a live stream of ``--seconds``; who is
refused comes back when the answer says. Printed are reaction times since the step, refusals, chunks that
came after their playout time, replicas beyond the need, and streams that were lost (the goal is none).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_app.app import generator_name
from serve_app.config import ModelSettings
from serve_app.media.webm import webm_header

from benchmarks.graph_overhead import portrait, speech
from benchmarks.null_graph import CLUSTER_BYTES, GEOMETRY, null_fleet

ROOT = Path(__file__).parents[1]
PERIOD_S = GEOMETRY.slice_frames / 25
PORT = 8124
URL = f"http://127.0.0.1:{PORT}"
POLL_S = 0.1


@dataclass
class Viewer:
    """One client: when its clusters were there, how often it was refused, whether it got all of them."""

    refusals: int = 0
    arrivals: list[float] = field(default_factory=list)
    complete: bool = False

    async def watch(self, client: httpx.AsyncClient, files: dict, chunks: int) -> None:
        """Ask until there is a place, then take the stream."""
        while (retry_after_s := await self._stream(client, files, chunks)) is not None:
            self.refusals += 1
            await asyncio.sleep(retry_after_s)

    async def _stream(self, client: httpx.AsyncClient, files: dict, chunks: int) -> float | None:
        """Take the stream, or be told when to come back."""
        async with client.stream("POST", f"{URL}/animate", files=files) as answer:
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
                return float(answer.headers["Retry-After"])
            answer.raise_for_status()
            taken = -len(webm_header(GEOMETRY.height, GEOMETRY.width))
            async for piece in answer.aiter_raw():
                taken += len(piece)
                while len(self.arrivals) < taken // CLUSTER_BYTES:
                    self.arrivals.append(time.monotonic())
        self.complete = len(self.arrivals) == chunks
        return None

    def lateness_s(self) -> list[float]:
        """How late each cluster came for a player that started with the first one."""
        return [max(0.0, at - self.arrivals[0] - index * PERIOD_S) for index, at in enumerate(self.arrivals)]


async def watch_replicas(deployment: str, counts: list[tuple[float, int, int]]) -> None:
    """Note running and asked-for replicas whenever they change."""
    from ray import serve

    while True:
        application = (await asyncio.to_thread(serve.status)).applications["flashhead"]
        status = application.deployments[deployment]
        seen = (status.replica_states.get("RUNNING", 0), sum(status.replica_states.values()))
        if not counts or counts[-1][1:] != seen:
            counts.append((time.monotonic(), *seen))
        await asyncio.sleep(POLL_S)


async def step(options: argparse.Namespace, deployment: str) -> dict[str, str]:
    """Apply the load, wait until the fleet is small again, and sum up."""
    chunks = round(options.seconds / PERIOD_S)
    files = {"image": ("p.png", portrait()), "audio": ("s.wav", speech(chunks))}
    viewers = [Viewer() for _ in range(options.streams)]
    counts: list[tuple[float, int, int]] = []
    watching = asyncio.create_task(watch_replicas(deployment, counts))
    await asyncio.sleep(2)
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        began = time.monotonic()
        results = await asyncio.gather(
            *(viewer.watch(client, files, chunks) for viewer in viewers), return_exceptions=True
        )
    ended = time.monotonic()
    for _ in range(round((options.scale_down_after + 60) / POLL_S)):
        if counts[-1][2] == 1:
            break
        await asyncio.sleep(POLL_S)
    watching.cancel()
    lost = sum(not viewer.complete for viewer in viewers)
    for result in results:
        if isinstance(result, BaseException):
            print(f"a stream failed: {result!r}", file=sys.stderr)
    return summary(options, viewers, counts, began, ended) | {"streams lost": f"{lost} of {len(viewers)}"}


def summary(
    options: argparse.Namespace,
    viewers: list[Viewer],
    counts: list[tuple[float, int, int]],
    began: float,
    ended: float,
) -> dict[str, str]:
    """The table's rows."""
    utilisation = ModelSettings(name="any").max_utilisation
    places = max(1, int(utilisation * PERIOD_S * 1000 / options.chunk_ms))
    needed = math.ceil(options.streams / places)
    running = [count for _, count, _ in counts]
    late = sorted(value for viewer in viewers for value in viewer.lateness_s())
    first = [viewer.arrivals[0] - began for viewer in viewers if viewer.arrivals]

    def since_step(enough: int, column: int) -> str:
        times = [entry[0] - began for entry in counts if entry[0] >= began and entry[column] >= enough]
        return f"{times[0]:.1f} s" if times else "never"

    peak = running.index(max(running))
    tail = sum(after > before for before, after in zip(running[peak:], running[peak + 1 :], strict=False))
    shrunk = [at - ended for at, count, _ in counts if at > began and count == running[0]]
    return {
        "replicas needed for the load": f"{needed} ({places} streams each)",
        "more replicas asked for after": since_step(running[0] + 1, 2),
        "enough replicas running after": since_step(needed, 1),
        "first cluster at the first / last viewer after": f"{min(first):.1f} / {max(first):.1f} s",
        "refusals before everybody was in": str(sum(viewer.refusals for viewer in viewers)),
        "most replicas running": f"{max(running)} ({max(running) - needed:+d} over need)",
        "back at the smallest after the last stream": f"{shrunk[-1]:.1f} s" if shrunk else "never",
        "times the count rose again after its peak": str(tail),
        "late clusters": f"{sum(value > 0.04 for value in late)} of {len(late)}, worst {late[-1]:.2f} s",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--chunk-ms", type=int, default=250)
    parser.add_argument("--max-replicas", type=int, default=5)
    parser.add_argument("--head-room", type=float, default=0.1)
    parser.add_argument("--spare-replicas", type=float, default=0.0)
    parser.add_argument("--scale-down-after", type=float, default=10.0)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    scaling = {
        "head_room": options.head_room,
        "spare_replicas": options.spare_replicas,
        "scale_down_after_s": options.scale_down_after,
    }
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    config = null_fleet(options.chunk_ms, (1, options.max_replicas), scaling)
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)
    while httpx.get(f"{URL}/ready").status_code != httpx.codes.OK:
        time.sleep(0.2)
    # A fleet does not shrink before it has been looked at for this long; nor is it worth looking at before.
    time.sleep(options.scale_down_after)
    rows = asyncio.run(step(options, generator_name(str(options.chunk_ms))))
    serve.shutdown()
    ray.shutdown()

    print(
        f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}, ray {version('ray')}; null engine at {options.chunk_ms} ms a chunk;"
        f" {options.streams} streams of {options.seconds:g} s at once; {scaling}\n"
    )
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
