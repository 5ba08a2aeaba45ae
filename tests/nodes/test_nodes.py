"""The shipped configs on several nodes: what runs where, and the loss of a GPU node."""

from __future__ import annotations

import os

import ray

from benchmarks.host_cluster import CPU_NODE, GENERATOR, GPU_NODE, HostCluster, replicas, shipped, wait_until
from benchmarks.viewer import Viewer
from graph.live import animate, form
from graph.test_graph import speech

SECONDS = 40.0


def gpus_seen(deployment: str) -> set[str | None]:
    """``CUDA_VISIBLE_DEVICES`` in each replica of a deployment."""
    actors = [ray.get_actor(replica["actor_name"], namespace="serve") for replica in replicas(deployment)]
    seen = [actor.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES")) for actor in actors]
    return set(ray.get(seen, timeout=30))


def test_the_4090_graph_schedules_on_a_gpu_and_a_cpu_node(cluster: HostCluster) -> None:
    cluster.add("cpu-0", **CPU_NODE)
    cluster.add("gpu-0", **GPU_NODE)
    cluster.deploy(shipped("serve.4090.yaml"))
    assert {cluster.where(name)[0] for name in (GENERATOR, "AudioEncoder")} == {"gpu-0"}
    assert {cluster.where(name)[0] for name in ("Ingress", "Encoder")} == {"cpu-0"}
    assert gpus_seen(GENERATOR) == gpus_seen("AudioEncoder") == {"0"}
    assert animate(cluster.url, form()).status_code == 200


def test_a_gpu_node_dies_and_a_new_one_takes_new_streams(fleet: HostCluster) -> None:
    files = [form(audio=speech(SECONDS, seed)) for seed in range(2)]
    undisturbed = [animate(fleet.url, each).content for each in files]
    viewers = [Viewer(fleet.url, each) for each in files]
    wait_until(lambda: all(len(viewer.arrivals) >= 3 for viewer in viewers), "three clusters each")
    assert {name: report["sessions"] for name, report in fleet.sessions().items()} == {"gpu-0": 1, "gpu-1": 1}
    fleet.kill("gpu-1")
    assert all(viewer.is_alive() for viewer in viewers)
    assert [viewer.watched() for viewer in viewers] == undisturbed
    fleet.add("gpu-2", **GPU_NODE)
    fleet.wait_for(GENERATOR, ["gpu-0", "gpu-2"])
    viewers = [Viewer(fleet.url, each) for each in files]
    wait_until(lambda: all(viewer.arrivals for viewer in viewers), "a cluster each")
    assert {name: report["sessions"] for name, report in fleet.sessions().items()} == {"gpu-0": 1, "gpu-2": 1}
    assert [viewer.watched() for viewer in viewers] == undisturbed
    assert {name: report["sessions"] for name, report in fleet.sessions().items()} == {"gpu-0": 0, "gpu-2": 0}
    fleet.kill("gpu-2")
