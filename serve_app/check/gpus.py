"""How many GPUs the deployments of a config need at least."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.check.findings import Finding, error
from serve_app.check.schema import deployments

UNITS_PER_GPU = 10_000
"""Ray counts resources to the fourth decimal."""


def check_shares(config: Mapping[str, Any]) -> Iterator[Finding]:
    """GPU counts that Ray refuses."""
    for path, deployment in deployments(config):
        if (share := gpu_share(deployment)) > 1 and share != int(share):
            where = (*path, "ray_actor_options", "num_gpus")
            yield error(where, f"{share:g} GPUs; accepted: a fraction up to 1, or a whole number")


def check_fit(config: Mapping[str, Any], gpus: int) -> Iterator[Finding]:
    """Whether the fewest replicas fit on so many GPUs."""
    if (needed := fewest_gpus(config)) > gpus:
        yield error(("applications",), f"the fewest replicas need {needed} GPUs; there are {gpus}")


def fewest_gpus(config: Mapping[str, Any]) -> int:
    """GPUs that hold the fewest replicas of every deployment, each replica's share on one of them: the
    largest first, where it fits first."""
    shares = sorted(
        (
            gpu_share(deployment)
            for _, deployment in deployments(config)
            for _ in range(fewest_replicas(deployment))
        ),
        reverse=True,
    )
    whole = sum(int(share) for share in shares if share >= 1)
    free: list[int] = []
    for units in (round(share * UNITS_PER_GPU) for share in shares if 0 < share < 1):
        index = next((index for index, left in enumerate(free) if left >= units), None)
        if index is None:
            free.append(UNITS_PER_GPU - units)
        else:
            free[index] -= units
    return whole + len(free)


def gpu_share(deployment: Mapping[str, Any]) -> float:
    """GPUs a replica of a deployment takes."""
    options = deployment.get("ray_actor_options")
    share = options.get("num_gpus") if isinstance(options, Mapping) else None
    return share if isinstance(share, int | float) else 0


def fewest_replicas(deployment: Mapping[str, Any]) -> int:
    """Replicas a deployment always has."""
    scaling = deployment.get("autoscaling_config")
    count = scaling.get("min_replicas") if isinstance(scaling, Mapping) else deployment.get("num_replicas")
    return count if isinstance(count, int) else 1
