"""Scaling by streams on a real Ray instance, with an engine that takes its time and computes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from ray import serve

from serve_app.app import generator_name

from benchmarks.null_graph import null_fleet
from graph.live import deploy, kill, replicas

CHUNK_MS = 300
PLACES = 2
"""Live streams a replica makes in real time at ``CHUNK_MS`` for 960 ms of video, with head-room."""
GENERATOR = generator_name(str(CHUNK_MS))
SCALING = {"head_room": 0, "spare_replicas": 0, "scale_down_after_s": 3}
LONG_S, SHORT_S = 40.0, 3.0


@contextmanager
def fleet(url: str, fewest: int, most: int) -> Iterator[None]:
    """The null graph between so many replicas."""
    deploy(null_fleet(CHUNK_MS, (fewest, most), SCALING), url)
    try:
        yield
    finally:
        serve.delete("flashhead")


def test_ready_follows_the_replicas(url: str) -> None:
    with fleet(url, 1, 1):
        assert httpx.get(f"{url}/ready").status_code == 200
        [replica] = replicas(GENERATOR)
        kill(replica)
        seen = set()
        deadline = time.monotonic() + 60
        while seen != {200, 503} or httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < deadline, seen
            seen.add(httpx.get(f"{url}/ready").status_code)
            time.sleep(0.05)
