"""``Recorder`` over ``ray.serve.metrics``: Ray exports every metric as ``ray_<name>`` on each node's metrics
port, with tags for application, deployment and replica."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ray.serve import metrics

from serve_app.metrics import Metric

Tags = dict[str, str]


class ServeRecorder:
    """The metrics of one replica's process; threads may share it. Made within a replica's constructor or
    later, because the tags of the replica are taken then."""

    def __init__(self) -> None:
        self._instruments: dict[str, Callable[[float, Tags], None]] = {}

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        """See ``Recorder``."""
        instrument = self._instruments.get(metric.name)
        if instrument is None:
            instrument = self._instruments.setdefault(metric.name, _instrument(metric))
        instrument(value, tags)


def _instrument(metric: Metric) -> Callable[[float, Tags], None]:
    """What takes a value of ``metric`` with its tags."""
    tag_keys: Any = metric.tags  # annotated by Serve as a tuple of one
    if metric.kind == "histogram":
        buckets = list(metric.buckets)
        return metrics.Histogram(metric.name, metric.description, buckets, tag_keys).observe
    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.description, tag_keys).inc
    gauge = metrics.Gauge(metric.name, metric.description, tag_keys)
    return gauge.set if metric.kind == "gauge" else _Level(gauge.set).change


class _Level:
    """Sums the changes recorded of each set of tags."""

    def __init__(self, show: Callable[[float, Tags], None]) -> None:
        self._show = show
        self._values: defaultdict[tuple[tuple[str, str], ...], float] = defaultdict(float)
        self._lock = threading.Lock()

    def change(self, value: float, tags: Tags) -> None:
        with self._lock:
            key = tuple(sorted(tags.items()))
            self._values[key] += value
            self._show(self._values[key], tags)
