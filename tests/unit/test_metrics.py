"""Every metric is named, tagged and bucketed as its kind needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serve_app import metrics
from serve_app.metrics import ALL, Metric

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
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


def test_the_documentation_lists_every_metric_as_it_is() -> None:
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(m.tags)} | {m.description} |" for m in ALL]
    table = "\n".join(["| name | kind | tags | |", "|---|---|---|---|", *rows])
    _, documented, _ = re.split(r"<!-- metrics: (?:begin|end) -->", OPERATIONS.read_text())
    assert documented.strip() == table
