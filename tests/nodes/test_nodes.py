"""The shipped configs on several nodes: what runs where, and the loss of a GPU node."""

from __future__ import annotations

import os

import ray

from benchmarks.host_cluster import GENERATOR, HostCluster, replicas, shipped
from graph.live import animate, form, with_replicas
from graph.test_graph import speech
from nodes.streams import UNNOTICED_S, assert_whole, running_streams


def gpus_seen(deployment: str) -> set[str | None]:
    """``CUDA_VISIBLE_DEVICES`` in each replica of a deployment."""
    actors = [ray.get_actor(replica["actor_name"], namespace="serve") for replica in replicas(deployment)]
    seen = [actor.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES")) for actor in actors]
    return set(ray.get(seen, timeout=30))


def kinds(nodes: list[str]) -> set[str]:
    return {name.split("-")[0] for name in nodes}


def test_the_4090_graph_schedules_on_a_gpu_and_a_cpu_node(cluster: HostCluster) -> None:
    cluster.ensure("cpu-0", "gpu-0")
    cluster.deploy(shipped("serve.4090.yaml"))
    assert kinds(cluster.where(GENERATOR)) == kinds(cluster.where("AudioEncoder")) == {"gpu"}
    assert kinds(cluster.where("Ingress")) == kinds(cluster.where("Encoder")) == {"cpu"}
    assert gpus_seen(GENERATOR) == gpus_seen("AudioEncoder") == {"0"}
    assert animate(cluster.url, form(audio=speech(1.0))).status_code == 200


def test_a_gpu_node_dies_and_a_new_one_takes_new_streams(cluster: HostCluster) -> None:
    cluster.ensure("cpu-0", "gpu-0", "gpu-1")
    cluster.deploy(with_replicas(shipped("serve.4090.yaml"), FlashHeadGenerator=2))
    cluster.wait_for(GENERATOR, ["gpu-0", "gpu-1"])
    viewers, expected = running_streams(cluster)
    assert {viewer.node for viewer in viewers} == {"gpu-0", "gpu-1"}
    cluster.kill("gpu-1")
    assert_whole(viewers, expected)
    assert max(viewer.longest_gap_s() for viewer in viewers) < UNNOTICED_S

    cluster.ensure("gpu-2")
    cluster.wait_for(GENERATOR, ["gpu-0", "gpu-2"])
    viewers, expected = running_streams(cluster)
    assert {viewer.node for viewer in viewers} == {"gpu-0", "gpu-2"}
    assert_whole(viewers, expected)
    assert cluster.sessions() == {"gpu-0": 0, "gpu-2": 0}
