"""What clients see when a GPU node is lost under their streams.

    python benchmarks/node_loss.py [--losses 5] [--seconds 30]

The graph of `configs/serve.fleet.yaml` on a head, a CPU node and two GPU nodes, all on this host, with the
embedded model. Two streams run, one on each GPU node; then one node is lost, killed or silent, and later
replaced. Printed is the longest time from cluster to cluster of each stream that lost its node and of each
that did not, and how long a player in real time would have stood still. The same numbers of undisturbed
streams say what of it is not the loss.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.host_cluster import (
    GENERATOR,
    HostCluster,
    host_cluster,
    shipped,
    wait_until,
)
from benchmarks.viewer import Viewer

PORTRAIT = Path(__file__).parents[1] / "examples" / "portrait.png"
BEGUN = 3
"""Clusters every stream has got before the node is lost."""
GOAL_S = 5.0
"""A loss may cost a chunk and this long."""


def files(seconds: float, seed: int) -> dict[str, Any]:
    """A request for a video of noise as long as that."""
    sound = io.BytesIO()
    noise = np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.05
    soundfile.write(sound, noise, 16_000, format="WAV", subtype="PCM_16")
    return {"image": ("portrait.png", PORTRAIT.read_bytes()), "audio": ("speech.wav", sound.getvalue())}


def fleet_config() -> dict[str, Any]:
    """The fleet's config with one replica of what runs on GPU nodes for each of them, and one of the rest."""
    config = shipped("serve.fleet.yaml")
    for deployment in config["applications"][0]["deployments"]:
        deployment.pop("autoscaling_config", None)
        deployment["num_replicas"] = 2 if "num_gpus" in deployment["ray_actor_options"] else 1
    return config


def two_streams(cluster: HostCluster, seconds: float) -> tuple[str, list[Viewer]]:
    """Two streams that have begun, on a GPU node each; the first one's node."""
    first = Viewer(cluster.url, files(seconds, seed=0))
    wait_until(lambda: bool(busy(cluster)), "the first stream is placed")
    [node] = busy(cluster)
    viewers = [first, Viewer(cluster.url, files(seconds, seed=1))]
    wait_until(lambda: all(len(viewer.arrivals) >= BEGUN for viewer in viewers), "both streams have begun")
    if len(busy(cluster)) != 2:
        raise RuntimeError(f"the streams are on {busy(cluster)}, not on two nodes")
    return node, viewers


def busy(cluster: HostCluster) -> list[str]:
    """Nodes whose generator holds a session."""
    return [name for name, sessions in cluster.sessions().items() if sessions]


def lose(cluster: HostCluster, how: str, seconds: float) -> list[Viewer]:
    """Two streams through the loss of the first one's node, which is replaced once they have ended."""
    node, viewers = two_streams(cluster, seconds)
    lost_id = cluster.nodes[node].node_id
    {"killed": cluster.kill, "silent": cluster.silence}[how](node)
    if not all(viewer.is_alive() for viewer in viewers):
        raise RuntimeError("a stream had ended before the node was lost; take longer --seconds")
    for viewer in viewers:
        viewer.watched()
    if node in cluster.nodes:
        cluster.wait_until_given_up(node)
        cluster.kill(node)
    cluster.ensure(node)
    cluster.wait_for(GENERATOR, ["gpu-0", "gpu-1"])
    print(
        f"{how} {node} ({lost_id[:8]}): {[round(viewer.longest_gap_s(), 2) for viewer in viewers]} s",
        flush=True,
    )
    return viewers


def row(what: str, viewers: list[Viewer]) -> str:
    """A line of the table: streams, median and longest gap, longest stall."""
    gaps = [viewer.longest_gap_s() for viewer in viewers]
    stalls = [viewer.longest_stall_s() for viewer in viewers]
    return f"| {what} | {len(gaps)} | {statistics.median(gaps):.2f} | {max(gaps):.2f} | {max(stalls):.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--losses", type=int, default=5, help="losses of each kind")
    parser.add_argument("--seconds", type=float, default=30.0, help="of video in each stream")
    options = parser.parse_args()
    with host_cluster() as cluster:
        cluster.ensure("cpu-0", "gpu-0", "gpu-1")
        cluster.deploy(fleet_config())
        cluster.wait_for(GENERATOR, ["gpu-0", "gpu-1"])
        undisturbed = []
        for _ in range(options.losses):
            undisturbed += two_streams(cluster, options.seconds)[1]
            for viewer in undisturbed[-2:]:
                viewer.watched()
        lost = {
            how: [lose(cluster, how, options.seconds) for _ in range(options.losses)]
            for how in ("killed", "silent")
        }
    print(
        f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}, ray {version('ray')}; embedded model, {options.losses} losses of each"
        f" kind, streams of {options.seconds:g} s\n"
    )
    print("| | streams | longest gap, median, s | longest gap, worst, s | longest stall, worst, s |")
    print("|---|---|---|---|---|")
    print(row("nothing is lost", undisturbed))
    for how, pairs in lost.items():
        print(row(f"its GPU node {how}", [pair[0] for pair in pairs]))
        print(row(f"the other GPU node {how}", [pair[1] for pair in pairs]))
    chunk_s = max(viewer.longest_gap_s() for viewer in undisturbed)
    print(f"\ngoal: a chunk ({chunk_s:.2f} s) and {GOAL_S:g} s, {chunk_s + GOAL_S:.2f} s in all")


if __name__ == "__main__":
    main()
