"""Which replicas a call to AudioEncoder may go to, by node and by what they owe."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest

from serve_app.deployments import near_router
from serve_app.deployments.near_router import NearRouter

DEPLOYMENT = DeploymentID("AudioEncoder", "flashhead")


@dataclass(frozen=True)
class Replica:
    """A replica on one of two nodes, as far as the choice among replicas looks at it."""

    node_id: str

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(f"on-{self.node_id}", DEPLOYMENT)

    availability_zone: str | None = None
    multiplexed_model_ids: frozenset[str] = frozenset()
    max_ongoing_requests: int = 8

    async def get_queue_len(self, deadline_s: float) -> int:
        return 0


HERE, THERE = Replica("here"), Replica("there")


def router_over(*replicas: Replica) -> NearRouter:
    router = NearRouter(
        deployment_id=DEPLOYMENT, handle_source=DeploymentHandleSource.REPLICA, self_node_id="here"
    )
    router.update_replicas(list(replicas))
    return router


async def candidates(router: NearRouter) -> set[Replica]:
    """What a new call is offered first."""
    call = PendingRequest([], {}, RequestMetadata("r", "r"))
    [chosen] = await router.choose_replicas(list(router.curr_replicas.values()), call)
    return set(chosen)


def test_a_call_stays_on_its_node() -> None:
    async def scene() -> None:
        assert await candidates(router_over(HERE, THERE)) == {HERE}
        assert await candidates(router_over(THERE)) == {THERE}

    asyncio.run(scene())


def test_who_owes_answers_and_gives_none_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        router = router_over(HERE, THERE)
        router.on_send_request(HERE.replica_id)
        assert await candidates(router) == {HERE}
        monkeypatch.setattr(near_router, "SILENT_S", -1.0)
        assert await candidates(router) == {THERE}
        router.on_send_request(THERE.replica_id)
        assert await candidates(router) == {HERE}, "all are silent"
        router.on_request_completed(HERE.replica_id, "r")
        assert await candidates(router) == {HERE}, "it owes nothing any more"

    asyncio.run(scene())


def test_any_answer_breaks_the_silence() -> None:
    async def scene() -> None:
        router = router_over(HERE, THERE)
        router.on_send_request(HERE.replica_id)
        router._heard_s[HERE.replica_id] -= 2 * near_router.SILENT_S
        assert await candidates(router) == {THERE}
        router.on_send_request(HERE.replica_id)
        assert await candidates(router) == {THERE}, "one more call is no sign of life"
        router.on_request_completed(HERE.replica_id, "r")
        assert await candidates(router) == {HERE}

    asyncio.run(scene())


def test_a_replica_that_left_is_forgotten() -> None:
    async def scene() -> None:
        router = router_over(HERE, THERE)
        router.on_send_request(HERE.replica_id)
        router.update_replicas([THERE])
        router.on_request_completed(HERE.replica_id, "r")
        assert not router._owed

    asyncio.run(scene())
