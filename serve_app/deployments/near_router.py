"""Which AudioEncoder replica a call goes to: one on the caller's own node, and one that answers.

What a node takes with it when it is lost should be its own streams alone, so a generator calls the replica
beside it. Where there is none, or too busy a one, Serve's power of two choices picks among all. Ray needs
seconds to notice a node that has fallen silent; until then Serve's own router would go on sending calls
there, repeated ones too.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica

from serve_app.deployments.noted_router import NotedRouter

SILENT_S = 0.5
"""A replica that owes answers and has given none for this long is passed over while there is another.
Shorter than a caller waits before it asks again (``handles.AUDIO_ATTEMPT_S``); far longer than a window
takes to encode, and where it is not, nothing is lost: replicas that are all slow are all chosen from."""


class NearRouter(NotedRouter):
    """Serve's own choice, from the node's own replica first and without those that are silent.

    A call that its caller gave up is still owed: Ray (2.60) reports its end only when the replica answers
    the cancellation, or is found dead.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"prefer_local_node_routing": True})
        self._owed: dict[ReplicaID, int] = {}
        """Calls sent to each replica that have not ended."""
        self._heard_s: dict[ReplicaID, float] = {}
        """When a call to it last ended, or began while it owed none: monotonic seconds."""

    def apply_locality_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """The replicas to choose from."""
        near: set[ReplicaID] = super().apply_locality_routing(pending_request)
        silent = self._silent()
        return near - silent or self._replica_id_set - silent or near

    def _silent(self) -> set[ReplicaID]:
        limit = time.monotonic() - SILENT_S
        return {replica for replica, owed in self._owed.items() if owed and self._heard_s[replica] < limit}

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A call was sent."""
        super().on_send_request(replica_id)
        owed = self._owed.get(replica_id, 0)
        if not owed:
            self._heard_s[replica_id] = time.monotonic()
        self._owed[replica_id] = owed + 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call has ended, whichever way."""
        super().on_request_completed(replica_id, internal_request_id)
        if self._owed.get(replica_id):
            self._owed[replica_id] -= 1
            self._heard_s[replica_id] = time.monotonic()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget what was known of replicas that left."""
        super().update_replicas(replicas)
        for gone in self._owed.keys() - self._replica_id_set:
            del self._owed[gone], self._heard_s[gone]
