"""Serve's autoscaling policy for generators: ``policy_function`` of a config's ``autoscaling_config``.

Serve asks about ten times a second. What replicas report reaches it every ``metrics_interval_s``; the last
value counts, not a mean over the look-back. The policy waits by itself before it shrinks a fleet, so
``downscale_delay_s`` and ``upscale_delay_s``, which Serve would add, are 0 in the shipped configs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

from serve_app.config import ScalingSettings
from serve_app.deployments.scaling_policy import REPORTED, Fleet, ReplicaReport, decide

PEAKS, LOOKED = "peaks", "looked_s"
"""Where Serve keeps the policy's memory between calls."""
UNSEEN_S = 5.0
"""After so long without a call the memory is void: while a deployment with demand has no replica, Serve
decides by itself."""


class StreamScaling:
    """Scales a generator deployment by its live streams; ``policy_kwargs`` are ``ScalingSettings``.

    Raises:
        pydantic.ValidationError: an unknown setting or one out of its range.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = ScalingSettings(**settings)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas to run, and the memory for the next call."""
        now_s, memory = time.monotonic(), context.policy_state
        fleet = Fleet(
            now_s=now_s,
            target=context.target_num_replicas,
            running=context.current_num_replicas,
            reports=last_reports(context.raw_metrics or {}),
            waiting=context.total_queued_requests,
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
        )
        known = memory[PEAKS] if now_s - memory.get(LOOKED, -math.inf) < UNSEEN_S else None
        wanted, peaks = decide(fleet, known, self._settings)
        return wanted, {PEAKS: peaks, LOOKED: now_s}


def last_reports(metrics: Mapping[str, Mapping[Any, Any]]) -> list[ReplicaReport]:
    """The last report of each replica, from Serve's time series by metric and replica."""
    series = [metrics.get(name, {}) for name in REPORTED]
    reported = [replica for replica in series[0] if all(values.get(replica) for values in series)]
    return [ReplicaReport(*(float(values[replica][-1].value) for values in series)) for replica in reported]
