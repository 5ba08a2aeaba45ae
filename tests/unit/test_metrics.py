"""Every metric is named, tagged and bucketed as its kind needs."""

from __future__ import annotations

import re

import pytest

from serve_app import metrics
from serve_app.metrics import ALL, Metric

LOW_CARDINALITY = {"model", "kind", "stage", "state", "since", "code", "outcome", "reason", "phase"}


def test_all_holds_every_metric_once() -> None:
    defined = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(metric.name for metric in defined) == sorted({metric.name for metric in ALL})
    assert len(defined) == len(ALL)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metric_is_well_formed(metric: Metric) -> None:
    total = "_total" if metric.kind == "counter" else ""
    assert re.fullmatch(rf"flashhead_[a-z_]*{metric.unit}{total}", metric.name)
    assert set(metric.tags) <= LOW_CARDINALITY
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert all(bound > 0 for bound in metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))
