"""The dashboard and the alerts ask for series that are exported, by tags they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.metrics import ALL, Metric

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "base" / "monitoring"
SERVE_SERIES = set((ROOT / "tests" / "graph" / "ray_serve_series.txt").read_text().split())
SERVE_TAGS = {"application", "deployment", "replica"}
ENDINGS = {"histogram": ("_bucket", "_sum", "_count")}
EXPORTED = {f"ray_{metric.name}{end}": metric for metric in ALL for end in ENDINGS.get(metric.kind, ("",))}
SERIES = re.compile(r"\b(ray_\w+)(?:\{([^}]*)\})?")


def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "dashboard.json").read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
    return group["rules"]


def expressions() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]
    yield from (rule["expr"] for rule in rules())


def problems(expression: str) -> list[str]:
    """What is wrong with the series of an expression."""
    found = []
    for name, selector in SERIES.findall(expression):
        metric = EXPORTED.get(name)
        if metric is not None:
            found += _wrong_tags(metric, expression, selector)
        elif name not in SERVE_SERIES:
            found.append(f"{name} is not exported")
    return found


def _wrong_tags(metric: Metric, expression: str, selector: str) -> list[str]:
    asked = dict(re.findall(r'(\w+)=~?"([^"]*)"', selector))
    grouped = {tag.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for tag in by.split(",")}
    wrong = (set(asked) | grouped) - {*metric.tags, *SERVE_TAGS, "le"}
    bucket = asked.get("le")
    if bucket is not None and float(bucket) not in metric.buckets:
        return [f"{metric.name} has no bucket {bucket}"]
    return [f"{metric.name} has no tag {tag}" for tag in wrong]


@pytest.mark.parametrize("expression", list(expressions()))
def test_series_exist(expression: str) -> None:
    assert SERIES.search(expression)
    assert not problems(expression)


@pytest.mark.parametrize(
    ("planted", "problem"),
    [
        ("rate(ray_flashhead_chunk_latenes_seconds_count[5m])", "is not exported"),
        ("ray_flashhead_chunk_lateness_seconds", "is not exported"),
        ("rate(ray_flashhead_ended_streams[5m])", "is not exported"),
        ("ray_serve_invented_total", "is not exported"),
        ('ray_flashhead_active_streams{stage="lost"}', "has no tag stage"),
        ("sum by (session) (ray_flashhead_active_streams)", "has no tag session"),
        ('ray_flashhead_chunk_lateness_seconds_bucket{le="0.05"}', "has no bucket 0.05"),
    ],
)
def test_a_planted_mistake_is_caught(planted: str, problem: str) -> None:
    [found] = problems(planted)
    assert problem in found


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name, _ in SERIES.findall(target["expr"])
    }
    assert {EXPORTED[name] for name in shown if name in EXPORTED} == set(ALL)


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert board["title"] and board["uid"] and board["schemaVersion"] >= 39
    assert "__inputs" not in board and board.get("id") is None
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24 and place["h"] > 0
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    used = set(re.findall(r"\$(?!__)\{?(\w+)", json.dumps(board["panels"])))
    assert used == {variable["name"] for variable in board["templating"]["list"]}


def test_alerts_say_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]
        named = re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])
        assert all(re.search(rf"by \([^)]*\b{tag}\b", rule["expr"]) for tag in named)
