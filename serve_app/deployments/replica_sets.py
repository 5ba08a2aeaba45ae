"""Which replicas this process's routers know, by deployment.

A module of its own because Serve sends a router's class by value: what stands beside the class is copied
with it, what it imports is not.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from ray.serve._private.common import DeploymentID
from ray.serve.request_router import RequestRouter

_routers: WeakValueDictionary[DeploymentID, RequestRouter] = WeakValueDictionary()


def note_router(deployment: DeploymentID, router: RequestRouter) -> None:
    """Called by a router when it is made; the last one of a deployment counts, and only while it lives."""
    _routers[deployment] = router


def running_replicas(deployment: DeploymentID) -> int:
    """Replicas that take calls; 0 before the deployment's first call from this process."""
    router = _routers.get(deployment)
    return len(router.curr_replicas) if router is not None else 0
