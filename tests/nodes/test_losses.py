"""What else may be lost under streams: a node that falls silent, frames, encoders, the GCS, the controller,
proxies. The loss of the head node is none of these: it takes GCS fault tolerance over machines."""

from __future__ import annotations

import signal

import psutil
import pytest

from serve_app.media.webm_reader import ClusterReader

from benchmarks.host_cluster import GENERATOR, HostCluster, processes, replicas, signal_all, wait_until
from benchmarks.viewer import Viewer
from graph.live import processes as named_processes
from graph.live import title
from nodes.streams import REQUESTS, UNNOTICED_S, assert_whole, running_streams, undisturbed

pytestmark = [pytest.mark.slow]


def test_a_node_that_falls_silent_changes_no_byte(fleet: HostCluster) -> None:
    viewers, expected = running_streams(fleet)
    fleet.silence("gpu-1")
    try:
        assert_whole(viewers, expected)
        assert max(viewer.longest_gap_s() for viewer in viewers) < UNNOTICED_S
        fleet.wait_until_given_up("gpu-1")
    finally:
        fleet.kill("gpu-1")


def test_an_audio_encoder_that_falls_silent_holds_no_stream_up(fleet: HostCluster) -> None:
    viewers, expected = running_streams(fleet)
    there = [replica for replica in replicas("AudioEncoder") if fleet.name_of(replica["node_id"]) == "gpu-1"]
    silent = [psutil.Process(replica["pid"]) for replica in there]
    signal_all(silent, signal.SIGSTOP)
    try:
        assert_whole(viewers, expected)
    finally:
        signal_all(silent, signal.SIGCONT)
    assert max(viewer.longest_gap_s() for viewer in viewers) < UNNOTICED_S


def test_frames_that_die_before_they_are_encoded_are_generated_again(fleet: HostCluster) -> None:
    expected = undisturbed(fleet.url)[0]
    reader = ClusterReader()
    reader.feed(expected)
    chunks = len(reader.clusters)
    before = fleet.chunks()

    def made() -> dict[str, int]:
        """Chunks since; a generator that was started meanwhile is left out."""
        return {name: count - before[name] for name, count in fleet.chunks().items() if name in before}

    encoders = [psutil.Process(replica["pid"]) for replica in replicas("Encoder")]
    signal_all(encoders, signal.SIGSTOP)
    try:
        viewer = Viewer(fleet.url, REQUESTS[0])
        wait_until(lambda: max(made().values()) >= 3, "three chunks that nobody encodes")
        [holder] = [name for name, count in made().items() if count]
        fleet.kill(holder)
    finally:
        signal_all(encoders, signal.SIGCONT)
    assert_whole([viewer], [expected])
    [survivor] = before.keys() - {holder}
    fleet.wait_for(GENERATOR, [survivor])
    assert made()[survivor] >= chunks


def test_a_node_with_an_encoder_dies(fleet: HostCluster) -> None:
    viewers, expected = running_streams(fleet)
    [ingress] = fleet.where("Ingress")
    [other] = {"cpu-0", "cpu-1"} - {ingress}
    fleet.kill(other)
    assert_whole(viewers, expected)


def test_the_gcs_is_restarted_under_streams(fleet: HostCluster) -> None:
    viewers, expected = running_streams(fleet)
    fleet.restart_gcs()
    assert_whole(viewers, expected)
    fleet.kill("gpu-1")
    fleet.ensure("gpu-1")
    fleet.wait_for(GENERATOR, ["gpu-0", "gpu-1"])
    assert_whole(*running_streams(fleet))


def test_the_controller_is_killed_under_streams(fleet: HostCluster) -> None:
    viewers, expected = running_streams(fleet)
    [controller] = named_processes("ray::ServeController")
    controller.kill()
    assert_whole(viewers, expected)
    wait_until(lambda: bool(named_processes("ray::ServeController")), "a new controller")
    fleet.wait_for(GENERATOR, ["gpu-0", "gpu-1"])


def test_another_nodes_proxy_is_killed_under_streams(fleet: HostCluster) -> None:
    viewers, expected = running_streams(fleet)
    elsewhere = [process for name in fleet.nodes for process in processes(fleet.nodes[name])]
    proxies = [process for process in elsewhere if title(process).startswith("ray::ProxyActor")]
    assert proxies
    signal_all(proxies, signal.SIGKILL)
    assert_whole(viewers, expected)
