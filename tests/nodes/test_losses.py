"""What else may be lost under streams: a node that falls silent, frames, encoders, the GCS, the controller,
proxies. The loss of the head node is none of these: it takes GCS fault tolerance over machines."""

from __future__ import annotations

import signal

import psutil
import pytest

from serve_app.media.webm_reader import ClusterReader

from benchmarks.host_cluster import (
    GENERATOR,
    GPU_NODE,
    HostCluster,
    processes,
    replicas,
    signal_all,
    wait_until,
)
from benchmarks.viewer import Viewer
from graph.live import animate, form
from graph.live import processes as named_processes
from graph.test_graph import speech

pytestmark = [pytest.mark.slow]
SECONDS = 40.0


def watching(fleet: HostCluster, count: int = 2) -> tuple[list[Viewer], list[bytes]]:
    """Streams that have begun, one on each generator, and what each is when nothing happens."""
    files = [form(audio=speech(SECONDS, seed)) for seed in range(count)]
    undisturbed = [animate(fleet.url, each).content for each in files]
    viewers = [Viewer(fleet.url, each) for each in files]
    wait_until(lambda: all(len(viewer.arrivals) >= 3 for viewer in viewers), "three clusters each")
    assert all(report["sessions"] == 1 for report in fleet.sessions().values())
    return viewers, undisturbed


def test_a_node_that_falls_silent_changes_no_byte_and_does_not_come_back(fleet: HostCluster) -> None:
    viewers, undisturbed = watching(fleet)
    silent = processes(fleet.nodes["gpu-1"])
    fleet.silence("gpu-1")
    assert all(viewer.is_alive() for viewer in viewers)
    assert [viewer.watched() for viewer in viewers] == undisturbed
    fleet.wait_until_given_up("gpu-1")
    signal_all(silent, signal.SIGCONT)
    wait_until(lambda: not any(alive(process) for process in silent), "the node that was given up ends")
    fleet.kill("gpu-1")


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_frames_that_die_before_they_are_encoded_are_generated_again(fleet: HostCluster) -> None:
    files = form(audio=speech(SECONDS))
    undisturbed = animate(fleet.url, files).content
    chunks = len(clusters(undisturbed))
    before = {name: report["chunks"] for name, report in fleet.sessions().items()}

    def made() -> dict[str, int]:
        return {name: report["chunks"] - before[name] for name, report in fleet.sessions().items()}

    encoders = [psutil.Process(replica["pid"]) for replica in replicas("Encoder")]
    signal_all(encoders, signal.SIGSTOP)
    try:
        viewer = Viewer(fleet.url, files)
        wait_until(lambda: max(made().values()) >= 3, "three chunks that nobody encodes")
        [holder] = [name for name, count in made().items() if count]
        fleet.kill(holder)
    finally:
        signal_all(encoders, signal.SIGCONT)
    assert viewer.watched() == undisturbed
    [remade] = [made()[name] for name in made() if name in before]
    assert remade >= chunks


def clusters(video: bytes) -> list[bytes]:
    reader = ClusterReader()
    reader.feed(video)
    return reader.clusters


def test_a_node_with_an_encoder_dies(fleet: HostCluster) -> None:
    viewers, undisturbed = watching(fleet)
    [ingress] = fleet.where("Ingress")
    [other] = {"cpu-0", "cpu-1"} - {ingress}
    fleet.kill(other)
    assert all(viewer.is_alive() for viewer in viewers)
    assert [viewer.watched() for viewer in viewers] == undisturbed


def test_the_gcs_is_restarted_under_streams(fleet: HostCluster) -> None:
    viewers, undisturbed = watching(fleet)
    fleet.restart_gcs()
    assert all(viewer.is_alive() for viewer in viewers)
    assert [viewer.watched() for viewer in viewers] == undisturbed
    fleet.kill("gpu-1")
    fleet.add("gpu-1", **GPU_NODE)
    fleet.wait_for(GENERATOR, ["gpu-0", "gpu-1"])
    assert animate(fleet.url, form(audio=speech(SECONDS, 0))).content == undisturbed[0]


def test_the_controller_is_killed_under_streams(fleet: HostCluster) -> None:
    viewers, undisturbed = watching(fleet)
    [controller] = named_processes("ray::ServeController")
    controller.kill()
    assert all(viewer.is_alive() for viewer in viewers)
    assert [viewer.watched() for viewer in viewers] == undisturbed
    wait_until(lambda: bool(named_processes("ray::ServeController")), "a new controller")
    fleet.wait_for(GENERATOR, ["gpu-0", "gpu-1"])


def test_another_nodes_proxy_is_killed_under_streams(fleet: HostCluster) -> None:
    viewers, undisturbed = watching(fleet)
    elsewhere = [process for name in fleet.nodes for process in processes(fleet.nodes[name])]
    proxies = [process for process in elsewhere if "ray::ProxyActor" in " ".join(process.cmdline())]
    assert proxies
    signal_all(proxies, signal.SIGKILL)
    assert all(viewer.is_alive() for viewer in viewers)
    assert [viewer.watched() for viewer in viewers] == undisturbed
