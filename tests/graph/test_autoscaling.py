"""Scaling by streams on a real Ray instance, with an engine that takes its time and computes nothing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from ray import serve

from serve_app.app import ENCODERS, generator_name

from benchmarks.null_graph import null_fleet
from graph.live import animate, deploy, form, kill, replicas
from graph.slow_start import START_S
from graph.test_graph import speech

CHUNK_MS = 300
PLACES = 2
"""Live streams a replica makes in real time at ``CHUNK_MS`` for 960 ms of video, with head-room."""
GENERATOR = generator_name(str(CHUNK_MS))
MAKERS = (GENERATOR, *ENCODERS)
SCALING = {"head_room": 0, "spare_replicas": 0, "scale_down_after_s": 3}
LONG_S, SHORT_S = 40.0, 3.0
AWAKE_S = 30.0
"""What is awake stays so while others still start."""


@contextmanager
def fleet(url: str, fewest: int, most: int) -> Iterator[None]:
    """The null graph between so many replicas."""
    deploy(null_fleet(CHUNK_MS, (fewest, most), SCALING), url)
    try:
        yield
    finally:
        serve.delete("flashhead")


def running(name: str = GENERATOR) -> int:
    """Replicas that take calls."""
    deployment = serve.status().applications["flashhead"].deployments[name]
    return deployment.replica_states.get("RUNNING", 0)


def wait_for_running(count: int, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while running() != count:
        assert time.monotonic() < deadline, f"{running()} replicas run, not {count}"
        time.sleep(0.1)


@contextmanager
def recorded_counts() -> Iterator[list[int]]:
    """How many replicas ran, from change to change."""
    counts: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            count = running()
            if not counts or counts[-1] != count:
                counts.append(count)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


def animate_patiently(url: str, seconds: float) -> tuple[bytes, int]:
    """The video, and how often there was none at first; who is refused comes back when told."""
    for refusals in itertools.count():
        answer = animate(url, form(audio=speech(seconds)))
        if answer.status_code == 200:
            return answer.content, refusals
        assert answer.status_code in (429, 503), answer.text
        time.sleep(int(answer.headers["Retry-After"]))
    raise AssertionError


def test_ready_follows_the_replicas(url: str) -> None:
    with fleet(url, 1, 1):
        assert httpx.get(f"{url}/ready").status_code == 200
        for deployment in (GENERATOR, "AudioEncoder", "Encoder"):
            [replica] = replicas(deployment)
            kill(replica)
            seen = set()
            deadline = time.monotonic() + 60
            while seen != {200, 503} or httpx.get(f"{url}/ready").status_code != 200:
                assert time.monotonic() < deadline, (deployment, seen)
                seen.add(httpx.get(f"{url}/ready").status_code)
                time.sleep(0.05)


@pytest.mark.slow
def test_all_that_makes_a_model_wakes_at_once(url: str) -> None:
    """Every deployment but the ingress sleeps. A first client is told to come back after the longest of
    their starts, AudioEncoder's, and by then all of them are there."""
    with all_asleep(url):
        animate_patiently(url, SHORT_S)
        wait_for_sleep()
        assert httpx.get(f"{url}/ready").status_code == 200
        refused = animate(url, form(audio=speech(SHORT_S)))
        assert (refused.status_code, refused.json()["code"]) == (503, "waking_up")
        assert int(refused.headers["Retry-After"]) >= START_S
        deadline = time.monotonic() + 120
        while animate(url, form(audio=speech(SHORT_S))).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert all(running(name) for name in MAKERS)


@contextmanager
def all_asleep(url: str) -> Iterator[None]:
    """The null graph with a slow AudioEncoder, everything but the ingress between none and one replica."""
    config = null_fleet(CHUNK_MS, (0, 1), SCALING | {"scale_down_after_s": AWAKE_S})
    [application] = config["applications"]
    application["import_path"] = "graph.slow_start:build"
    application["args"]["limits"]["wake_wait_s"] = 0
    scaling = {
        "min_replicas": 0,
        "max_replicas": 1,
        "metrics_interval_s": 1,
        "look_back_period_s": 5,
        "downscale_delay_s": AWAKE_S,
    }
    for deployment in application["deployments"]:
        if deployment["name"] in ENCODERS:
            deployment["autoscaling_config"] = scaling
    deploy(config, url)
    try:
        yield
    finally:
        serve.delete("flashhead")


def wait_for_sleep(timeout_s: float = 120) -> None:
    """Until nothing that makes videos has a process."""
    deadline = time.monotonic() + timeout_s
    while awake := [name for name in MAKERS if replicas(name)]:
        assert time.monotonic() < deadline, awake
        time.sleep(0.1)


@pytest.mark.slow
def test_load_comes_and_goes(url: str) -> None:
    """From nothing to several replicas and back to nothing: no stream is lost or changed by a byte, refused
    clients get in, and the count goes up once and down once."""
    with fleet(url, 0, 4):
        undisturbed = {
            seconds: animate(url, form(audio=speech(seconds))).content for seconds in (LONG_S, SHORT_S)
        }
        wait_for_running(0)
        assert httpx.get(f"{url}/ready").status_code == 200
        with recorded_counts() as counts, ThreadPoolExecutor() as pool:
            lengths = [LONG_S] * (2 * PLACES) + [SHORT_S]
            streams = [pool.submit(animate_patiently, url, seconds) for seconds in lengths]
            streams[-1].result()
            first_drop = _wait_for_drop(counts)
            still_running = [stream for stream in streams if not stream.done()]
            videos = [stream.result() for stream in streams]
            wait_for_running(0)
        assert still_running, f"replicas went only when nothing ran: {counts} at {first_drop}"
        assert [video for video, _ in videos] == [undisturbed[seconds] for seconds in lengths]
        assert sum(refusals for _, refusals in videos) > 0
        top = counts.index(max(counts))
        # Two for the long streams; a third where it starts before the short one has found its place.
        assert max(counts) in (2, 3)
        assert counts[: top + 1] == sorted(counts[: top + 1])
        assert counts[top:] == sorted(counts[top:], reverse=True)
        assert animate(url, form(audio=speech(SHORT_S))).content == undisturbed[SHORT_S]


def _wait_for_drop(counts: list[int], timeout_s: float = 60) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while len(counts) < 2 or counts[-1] >= counts[-2]:
        assert time.monotonic() < deadline, counts
        time.sleep(0.05)
    return list(counts)
