"""``Recorder`` over ``ray.serve.metrics``: Ray exports every metric as ``ray_<name>`` on each node's metrics
port, with tags for application, deployment and replica."""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ray.serve import metrics

from serve_app.metrics import Metric

REPEAT_S = 5.0
"""Ray 2.60 exports a gauge's value once, with its next report (every 10 s), and forgets it after another 20:
a value that stands for longer has to be set again."""

Tags = dict[str, str]


class ServeRecorder:
    """The metrics of one replica's process; threads may share it. Made within a replica's constructor or
    later, because the tags of the replica are taken then. A thread repeats what its gauges say, as long as
    it lives."""

    def __init__(self) -> None:
        self._instruments: dict[str, Callable[[float, Tags], None]] = {}
        self._gauges: list[_Gauge] = []
        threading.Thread(target=_repeat, args=(weakref.ref(self),), name="gauges", daemon=True).start()

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        """See ``Recorder``."""
        instrument = self._instruments.get(metric.name)
        if instrument is None:
            instrument = self._instruments.setdefault(metric.name, self._instrument(metric))
        instrument(value, tags)

    def repeat(self) -> None:
        """Set every gauge to what it was set to last."""
        for gauge in list(self._gauges):
            gauge.repeat()

    def _instrument(self, metric: Metric) -> Callable[[float, Tags], None]:
        """What takes a value of ``metric`` with its tags."""
        tag_keys: Any = metric.tags  # annotated by Serve as a tuple of one
        if metric.kind == "histogram":
            buckets = list(metric.buckets)
            return metrics.Histogram(metric.name, metric.description, buckets, tag_keys).observe
        if metric.kind == "counter":
            return metrics.Counter(metric.name, metric.description, tag_keys).inc
        gauge = _Gauge(metrics.Gauge(metric.name, metric.description, tag_keys).set)
        self._gauges.append(gauge)
        return gauge.become if metric.kind == "gauge" else gauge.change


class _Gauge:
    """The value of each set of tags, shown whenever it changes or is repeated."""

    def __init__(self, show: Callable[[float, Tags], None]) -> None:
        self._show = show
        self._values: defaultdict[tuple[tuple[str, str], ...], float] = defaultdict(float)
        self._lock = threading.Lock()

    def become(self, value: float, tags: Tags) -> None:
        with self._lock:
            self._values[tuple(sorted(tags.items()))] = value
            self._show(value, tags)

    def change(self, value: float, tags: Tags) -> None:
        with self._lock:
            key = tuple(sorted(tags.items()))
            self._values[key] += value
            self._show(self._values[key], tags)

    def repeat(self) -> None:
        with self._lock:
            for key, value in self._values.items():
                self._show(value, dict(key))


def _repeat(recorder: weakref.ref[ServeRecorder]) -> None:
    while (alive := recorder()) is not None:
        alive.repeat()
        del alive
        time.sleep(REPEAT_S)
