"""Streams that are running while a test takes something away from them."""

from __future__ import annotations

from functools import cache

from benchmarks.host_cluster import HostCluster
from benchmarks.viewer import Viewer, watch_all
from graph.live import animate, form
from graph.test_graph import speech

SECONDS = 20.0
REQUESTS = [form(audio=speech(SECONDS, seed)) for seed in range(2)]
UNNOTICED_S = 15.0
"""Serve takes 30 s to find that a replica does not answer, and a stream must not wait for that, however busy
the machine. What is promised of a quiet one, a chunk and 5 s, `benchmarks/node_loss.py` measures."""


@cache
def undisturbed(url: str) -> tuple[bytes, ...]:
    """The videos of ``REQUESTS``, each made alone while nothing happened."""
    return tuple(animate(url, request).content for request in REQUESTS)


def running_streams(cluster: HostCluster) -> tuple[list[Viewer], list[bytes]]:
    """Streams that have begun, at least one on each generator, and what each must come to."""
    alone = undisturbed(cluster.url)
    viewers = watch_all(cluster, REQUESTS)
    return viewers, [alone[index % len(alone)] for index in range(len(viewers))]


def assert_whole(viewers: list[Viewer], expected: list[bytes]) -> None:
    """The streams ran on to their ends, and no byte is another."""
    assert all(viewer.is_alive() for viewer in viewers), "a stream ended before anything was taken away"
    assert [viewer.watched() for viewer in viewers] == expected
