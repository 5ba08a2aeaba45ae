"""Which generator replica a call goes to: a session's calls to the replica that holds it, a new
session to the replica with the most room.

Serve's hashing and multiplexing routers ignore load and move sessions when membership changes, and
any router that matches replies to requests by request id hangs when one request makes several calls
at once (measured with Ray 2.60). This one chooses in the caller's own coroutine, as Serve's capacity
queue router does, through ``RequestRouter._choose_replica_for_request``, which is private: ray is
pinned and a test holds the contract.

``session_id`` of the handle carries the wish: see ``pinned`` and ``any_but``. Without one any replica
will do.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.request_router import RequestRouter

from serve_app.deployments.replica_sets import note_router
from serve_app.errors import AtCapacity, ReplicaLost

PIN, EXCLUDE = "=", "!"
PLACED_MEMORY_S = 3.0
"""How long a placement counts on top of a replica's report: longer than the report takes to include it,
short enough that what ended unseen between two reports is forgotten."""
REJECTED_PAUSE_S = 0.02
"""Pause before a replica that refused a call for its ``max_ongoing_requests`` is asked again."""


def pinned(replica_uid: str) -> str:
    """The ``session_id`` that reaches one replica."""
    return PIN + replica_uid


def any_but(replica_uids: Iterable[str]) -> str:
    """The ``session_id`` that reaches the replica with the most room outside ``replica_uids``."""
    uids = ",".join(sorted(replica_uids))
    return EXCLUDE + uids if uids else ""


def free_places(report: Mapping[str, float]) -> float:
    """What a replica's report leaves free; 0 for one without a report."""
    if not report:
        return 0.0
    streams = report["streams"]
    return min(report["places"] - streams, report["capacity"] - streams - report["batch"])


class PinnedRouter(RequestRouter):
    """Routes by session.

    A replica's room is what it last reported (``record_routing_stats``) less the sessions placed on it
    from here since, so that a burst of openings spreads before the next report. It is a hint: the
    replica itself decides whether it has a place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        note_router(self._deployment_id, self)
        self._placed: defaultdict[str, list[float]] = defaultdict(list)
        self._reports: dict[str, dict[str, Any]] = {}

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """The replica the call's ``session_id`` asks for.

        Raises:
            ReplicaLost: the replica it is pinned to is gone or draining.
            AtCapacity: every replica is excluded.
        """
        if is_retry:
            await asyncio.sleep(REJECTED_PAUSE_S)
        wish = pending_request.metadata.session_id
        if wish.startswith(PIN):
            return self._pinned(wish.removeprefix(PIN))
        await self._some_replica()
        replica = self._roomiest(set(wish.removeprefix(EXCLUDE).split(",")))
        if pending_request.metadata.call_method == "open":
            self._placed[replica.replica_id.unique_id].append(time.monotonic())
        return replica

    def _pinned(self, uid: str) -> RunningReplica:
        replica = self._by_uid().get(uid)
        if replica is None:
            message = "the replica that holds the session takes no more calls"
            raise ReplicaLost(message, code="replica_removed", value=uid)
        return replica

    async def _some_replica(self) -> None:
        while not self.curr_replicas:
            self._replicas_updated_event.clear()
            await self._replicas_updated_event.wait()

    def _roomiest(self, excluded: set[str]) -> RunningReplica:
        candidates = {uid: replica for uid, replica in self._by_uid().items() if uid not in excluded}
        if not candidates:
            raise AtCapacity(f"all {len(self.curr_replicas)} generator replicas are full")
        return candidates[min(candidates, key=lambda uid: (-self._room(uid, candidates[uid]), uid))]

    def _room(self, uid: str, replica: RunningReplica) -> float:
        """Free places, for live streams and for sessions at all, whichever are fewer; below 0 where
        streams resumed past the places. A replica that has not reported counts as full."""
        report = replica.routing_stats
        if report != self._reports.get(uid):
            self._reports[uid] = report
            self._placed[uid] = []
        recent = time.monotonic() - PLACED_MEMORY_S
        self._placed[uid] = [placed for placed in self._placed[uid] if placed > recent]
        return free_places(report) - len(self._placed[uid])

    def _by_uid(self) -> dict[str, RunningReplica]:
        return {replica_id.unique_id: replica for replica_id, replica in self.curr_replicas.items()}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget what was counted for replicas that left."""
        super().update_replicas(replicas)
        for uid in set(self._placed) - set(self._by_uid()):
            del self._placed[uid]
            self._reports.pop(uid, None)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica found dead before the controller said so."""
        super().on_replica_actor_died(replica_id)
        self._placed.pop(replica_id.unique_id, None)
        self._reports.pop(replica_id.unique_id, None)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Required by the base class; routing never gets here, see ``_choose_replica_for_request``."""
        return [candidate_replicas]
