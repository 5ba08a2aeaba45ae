"""Serve's own choice of a replica, by a router whose replicas this process can count."""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter

from serve_app.deployments.replica_sets import note_router


class NotedRouter(PowerOfTwoChoicesRequestRouter):
    """Power of two choices."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        note_router(self._deployment_id, self)
