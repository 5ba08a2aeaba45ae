"""The contract with Ray's private router and reference APIs, on real processes: pinning, placement,
what a killed replica looks like to the conductor."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.near_router import NearRouter
from serve_app.deployments.router import PinnedRouter

from graph.chain_graph import CANCELLED_CALLS, PLACES, ChainReplica, Front, HashReplica, PidReplica


@pytest.fixture(scope="module")
def front(serve_port: int) -> Iterator[DeploymentHandle]:
    routing = RequestRouterConfig(request_router_class=PinnedRouter, request_routing_stats_period_s=0.5)
    generator = serve.deployment(
        ChainReplica, name="Chain", num_replicas=2, request_router_config=routing, max_ongoing_requests=64
    ).bind()
    encoder = serve.deployment(HashReplica, name="Hash", max_ongoing_requests=64).bind()
    near = RequestRouterConfig(request_router_class=NearRouter)
    stateless = serve.deployment(
        PidReplica, name="Pid", num_replicas=2, request_router_config=near, health_check_period_s=120
    ).bind()
    app = serve.deployment(Front, name="Front", max_ongoing_requests=64).bind(generator, encoder, stateless)
    yield serve.run(app, name="handles", route_prefix=None)
    serve.delete("handles")


def test_a_burst_spreads_and_a_full_graph_says_so(front: DeploymentHandle) -> None:
    pids = front.burst.remote(2 * PLACES).result(timeout_s=30)
    assert sorted(pids.count(pid) for pid in set(pids)) == [PLACES, PLACES]
    with pytest.raises(ray.exceptions.RayTaskError, match="taken"):
        front.burst.remote(2 * PLACES + 1).result(timeout_s=30)


def test_a_replicas_own_error_reaches_the_caller(front: DeploymentHandle) -> None:
    assert front.error_of.remote(1000).result(timeout_s=30) == "OutOfRange 1000"


def test_a_call_pinned_to_a_replica_that_left_is_lost(front: DeploymentHandle) -> None:
    assert front.lost.remote().result(timeout_s=30) == "gone"


def test_frames_that_died_are_told_from_a_dead_encoder(front: DeploymentHandle) -> None:
    assert "cannot be read" in front.lost_frames.remote().result(timeout_s=30)


def test_a_defect_of_the_encoder_is_not_taken_for_lost_frames(front: DeploymentHandle) -> None:
    assert front.encoder_defect.remote().result(timeout_s=30) == "RayTaskError(AssertionError)"


def test_a_chunk_that_its_replica_cancelled_is_made_again(front: DeploymentHandle) -> None:
    alone, _, _ = front.play.remote("undisturbed", 5.0).result(timeout_s=60)
    clusters, resumptions, _ = front.play.remote("cancelled!!", 5.0).result(timeout_s=60)
    assert clusters == alone
    assert resumptions >= len(CANCELLED_CALLS)


def test_an_encoding_that_its_replica_cancelled_is_lost(front: DeploymentHandle) -> None:
    assert "is gone" in front.cancelled_encode.remote().result(timeout_s=30)


def test_a_silent_replica_is_passed_over_until_it_answers(front: DeploymentHandle) -> None:
    both = set(front.answered_by.remote(20).result(timeout_s=30))
    silent, other = both
    os.kill(silent, signal.SIGSTOP)
    try:
        assert set(front.answered_by.remote(20).result(timeout_s=30)) == {other}
    finally:
        os.kill(silent, signal.SIGCONT)
    answering: set[int] = set()
    deadline = time.monotonic() + 30
    while answering != both:
        assert time.monotonic() < deadline, "the replica that answers again is not asked again"
        answering |= set(front.answered_by.remote(20).result(timeout_s=30))


def test_concurrent_sessions_keep_to_their_replicas(front: DeploymentHandle) -> None:
    names = ["a", "bb", "ccc", "dddd"]
    alone = [front.play.remote(name, 5.0).result(timeout_s=60)[0] for name in names]
    together = [front.play.remote(name, 5.0) for name in names]
    results = [playing.result(timeout_s=60) for playing in together]
    assert [clusters for clusters, _, _ in results] == alone
    assert [resumptions for _, resumptions, _ in results] == [0, 0, 0, 0]


def test_a_killed_replica_loses_nothing(front: DeploymentHandle) -> None:
    names = ["a", "bb", "ccc", "dddd"]
    alone = [front.play.remote(name, 10.0).result(timeout_s=60)[0] for name in names]
    together = [front.play.remote(name, 10.0) for name in names]
    victim = asyncio.run(_busy_replica(front))
    os.kill(victim, signal.SIGKILL)
    results = [playing.result(timeout_s=120) for playing in together]
    assert [clusters for clusters, _, _ in results] == alone
    assert sum(resumptions for _, resumptions, _ in results) >= 1


async def _busy_replica(front: DeploymentHandle) -> int:
    handle = serve.get_deployment_handle("Chain", "handles")
    for _ in range(100):
        pid, sessions = await handle.sessions.remote()
        if sessions:
            return int(pid)
        await asyncio.sleep(0.05)
    raise AssertionError("no replica holds a session")
