"""Who decides how many GPUs a fleet has: nobody, Serve's count of requests, or the graph's own policy."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from serve_app.config import ScalingSettings
from serve_app.deployments.scaling_policy import Fleet, Peaks, decide

Policy = Callable[[Fleet], int]


def fixed(fleet: Fleet) -> int:
    """As many as may be, always."""
    return fleet.max_replicas


class StreamScaling:
    """The graph's own policy, with its memory."""

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
        self._peaks: Peaks | None = None

    def __call__(self, fleet: Fleet) -> int:
        wanted, self._peaks = decide(fleet, self._peaks, self._settings)
        return wanted


class OngoingRequests:
    """What Serve does with ``target_ongoing_requests`` and its default delays, if each stream is one request:
    the mean over the look-back by the target, followed once it has pointed one way for the delay."""

    def __init__(
        self,
        target: float,
        upscale_delay_s: float = 30.0,
        downscale_delay_s: float = 600.0,
        look_back_s: float = 30.0,
    ) -> None:
        self._target = target
        self._delays_s = {1: upscale_delay_s, -1: downscale_delay_s}
        self._look_back_s = look_back_s
        self._seen: deque[tuple[float, float]] = deque()
        self._since: tuple[int, float] = (0, 0.0)

    def __call__(self, fleet: Fleet) -> int:
        wanted = min(max(self._wanted(fleet), fleet.min_replicas), fleet.max_replicas)
        direction = (wanted > fleet.target) - (wanted < fleet.target)
        if direction != self._since[0]:
            self._since = (direction, fleet.now_s)
        waited = fleet.now_s - self._since[1] >= self._delays_s.get(direction, 0.0)
        return wanted if waited else fleet.target

    def _wanted(self, fleet: Fleet) -> int:
        streams = sum(report.streams + report.batch for report in fleet.reports) + fleet.waiting
        self._seen.append((fleet.now_s, streams))
        while self._seen[0][0] < fleet.now_s - self._look_back_s:
            self._seen.popleft()
        mean = sum(count for _, count in self._seen) / len(self._seen)
        return math.ceil(mean / self._target)
