"""What operators see of the shipped graph on a real Ray instance: metrics, log lines and spans."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from serve_app.metrics import ACTIVE_STREAMS, ALL, GPU_MEMORY, STAGE_TIME, START_PHASE, Metric

from benchmarks.null_graph import null_fleet
from graph.collector import Spans, collecting
from graph.gpu_memory import MEMORY
from graph.live import animate, deploy, form, hasty_config, kill, replicas, wait_for_sessions, with_replicas
from graph.test_graph import speech

FRAMES = 125
SERIES_USED = Path(__file__).parent / "ray_serve_series.txt"
"""Serve's own series that the dashboard and the alerts use."""
GAUGES_FORGOTTEN_S = 35
"""Ray exports what was set within 10 s and keeps it for 20."""
Samples = dict[str, list[tuple[dict[str, str], float]]]


class Watched:
    """A graph with JSON logs in ``logs`` and all its spans sent to ``spans``."""

    def __init__(self, url: str, logs: Path, spans: Spans) -> None:
        self.url, self.logs, self.spans = url, logs, spans

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """Log lines of every replica that have these fields."""
        files = self.logs.rglob("*.log")
        records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [record for record in records if fields.items() <= record.items()]

    def scrape(self) -> Samples:
        """Every series, without those of other graphs' replicas: Ray goes on exporting the last values of
        replicas that are gone."""
        ours = {file.stem.rpartition("_")[2] for file in self.logs.rglob("replica_*.log")}
        return {
            name: kept
            for name, samples in scraped().items()
            if (kept := [one for one in samples if one[0].get("replica") in {None, *ours}])
        }


def scraped() -> Samples:
    """Every series of the node's metrics endpoint."""
    [node] = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


@pytest.fixture(scope="module")
def watched(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A graph after a stream, a stream that lost its generator, and a refusal."""
    logs = tmp_path_factory.mktemp("logs")
    with collecting() as spans:
        deploy(watched_config(logs, spans.url), url)
        graph = Watched(url, logs, spans)
        yield graph
        serve.delete("flashhead")


def watched_config(logs: Path, collector: str) -> dict[str, Any]:
    config = with_replicas(hasty_config(), AudioEncoder=1, FlashHeadGenerator=1)
    [encoder] = [each for each in config["applications"][0]["deployments"] if each["name"] == "Encoder"]
    encoder["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    config["logging_config"] |= {"encoding": "JSON", "logs_dir": str(logs)}
    config["tracing_config"] = {
        "enabled": True,
        "exporter_import_path": "serve_app.deployments.tracing:otlp_span_processors",
        "sampling_ratio": 1.0,
    }
    where = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    for deployment in config["applications"][0]["deployments"]:
        deployment["ray_actor_options"]["runtime_env"] = {"env_vars": where}
    return config


def until(holds: Callable[[], object], timeout_s: float = 30) -> None:
    """Until ``holds`` does, or has had its time: Ray exports metrics every 10 s."""
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.5)


def total(samples: Samples, series: str, **tags: str) -> float:
    return sum(value for labels, value in samples.get(series, []) if tags.items() <= labels.items())


def test_every_metric_is_exported_with_sensible_values(watched: Watched) -> None:
    assert animate(watched.url, form(audio=speech(5.0))).status_code == 200
    assert animate(watched.url, form(), model="none").status_code == 422
    lose_a_generator(watched.url)

    expected = {name for metric in ALL if metric is not GPU_MEMORY for name in series(metric)}
    expected |= set(SERIES_USED.read_text().split())
    until(lambda: total(watched.scrape(), "ray_flashhead_ended_streams_total", outcome="completed") == 2)
    until(lambda: expected <= set(watched.scrape()))
    samples = watched.scrape()
    assert expected <= set(samples)
    assert {name for name in samples if name.startswith("ray_flashhead_")} <= expected
    assert total(samples, "ray_flashhead_delivered_frames_total", model="tiny") == FRAMES + 15 * 25
    assert total(samples, "ray_flashhead_refused_requests_total", code="unknown_model") == 1
    assert total(samples, "ray_flashhead_session_resumptions_total", model="tiny") == 1
    assert total(samples, "ray_flashhead_active_streams") == 0
    assert total(samples, "ray_flashhead_time_to_first_frame_seconds_count", since="request") == 2
    assert total(samples, "ray_flashhead_chunk_lateness_seconds_count") == 6 + 16
    assert 0 < total(samples, "ray_flashhead_real_time_factor_ratio_sum") < 100
    # A killed replica takes along what it recorded since its last report.
    assert total(samples, "ray_flashhead_chunk_steps_count") >= 6
    assert total(samples, "ray_flashhead_stream_places", model="tiny") >= 1
    for deployment, stages in {
        "Ingress": ("decode_upload", "deliver"),
        "AudioEncoder": ("audio_encode",),
        "FlashHeadGenerator-tiny": ("begin", "denoise", "decode", "advance"),
        "Encoder": ("encode",),
    }.items():
        for stage in stages:
            tags = {"deployment": deployment, "application": "flashhead", "stage": stage}
            assert total(samples, f"ray_{STAGE_TIME.name}_count", **tags) >= 2, stage


def series(metric: Metric) -> list[str]:
    """Names a metric is exported under."""
    endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
    return [f"ray_{metric.name}{ending}" for ending in endings]


def lose_a_generator(url: str) -> None:
    """A stream whose generator is killed in the middle, whole all the same."""
    with httpx.stream("POST", f"{url}/animate", files=form(audio=speech(15.0)), timeout=120) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        [generator] = replicas("FlashHeadGenerator-tiny")
        kill(generator)
        assert b"".join(pieces)
    wait_for_sessions(0)


def test_log_lines_carry_ids_on_both_sides(watched: Watched) -> None:
    headers = {"X-Request-Id": "operator-1"}
    answer = httpx.post(f"{watched.url}/animate", files=form(audio=speech(2.0)), headers=headers, timeout=60)
    assert answer.headers["x-request-id"] == "operator-1"
    session_id = answer.headers["x-session-id"]
    until(lambda: watched.lines(session_id=session_id, outcome="completed"), 5)
    ours = watched.lines(request_id="operator-1", session_id=session_id, model="tiny")
    assert [line["message"].split(": ")[1].split()[0].strip(",") for line in ours] == [
        "accepted",
        "first",
        "completed",
    ]
    assert ours[-1]["frames"] == 50 and ours[-1]["seconds"] > 0
    assert {line["deployment"] for line in ours} == {"flashhead_Ingress"}
    there = watched.lines(session_id=session_id, deployment="flashhead_FlashHeadGenerator-tiny")
    assert ["open here, new" in line["message"] for line in there] == [True]
    assert there[0]["replica"]
    httpx.post(f"{watched.url}/animate", headers={"X-Request-Id": "operator-2"})
    until(lambda: watched.lines(request_id="operator-2", code="missing_field"), 5)
    assert watched.lines(request_id="operator-2", code="missing_field")


def test_one_request_is_one_trace_through_all_four_deployments(watched: Watched) -> None:
    answer = animate(watched.url, form(audio=speech(2.0)))
    session_id = answer.headers["x-session-id"]
    spans = watched.spans

    def session() -> list[Any]:
        return [
            span
            for span in spans.named("session")
            if any(tag.value.string_value == session_id for tag in span.attributes)
        ]

    until(session)
    [root] = session()

    def of_trace(name: str) -> list[Any]:
        return [span for span in spans.named(name) if span.trace_id == root.trace_id]

    expected = {"decode_upload": 1, "open": 1, "chunk": 3, "audio_encode": 3, "deliver": 3, "encode": 3}
    expected |= {"begin": 3, "denoise": 12, "decode": 4, "advance": 2}  # "decode" begins "decode_upload" too
    until(lambda: {name: len(of_trace(name)) for name in expected} == expected)
    assert {name: len(of_trace(name)) for name in expected} == expected
    request = "replica_handle_request Ingress"
    generator = "replica_handle_request FlashHeadGenerator-tiny chunk"
    for name, above in {
        "decode_upload": [request],
        "chunk": ["session", request],
        "deliver": ["session", request],
        "begin": [generator, "chunk", "session", request],
        "denoise": [generator, "chunk", "session", request],
        "advance": [generator, "chunk", "session", request],
        "audio_encode": ["replica_handle_request AudioEncoder rows", generator, "chunk", "session", request],
        "encode": ["replica_handle_request Encoder encode", "chunk", "session", request],
    }.items():
        for span in of_trace(name):
            names = [given for given in spans.ancestors(span) if not given.startswith("route_to_replica")]
            assert len(names) == len(above), names
            assert all(given.startswith(wanted) for given, wanted in zip(names, above, strict=True)), names
            assert span.start_time_unix_nano < span.end_time_unix_nano


@pytest.mark.slow
def test_gauges_stand_while_nothing_happens(watched: Watched) -> None:
    assert animate(watched.url, form(audio=speech(2.0))).status_code == 200
    time.sleep(GAUGES_FORGOTTEN_S)
    samples = watched.scrape()
    assert total(samples, f"ray_{START_PHASE.name}", model="tiny", phase="total") > 0
    states = {tags["state"] for tags, _ in samples[f"ray_{ACTIVE_STREAMS.name}"]}
    assert states >= {"opening", "running"}
    assert set(SERIES_USED.read_text().split()) <= set(samples)


@pytest.mark.slow
def test_memory_of_a_gpu_is_exported_where_there_is_one(watched: Watched, url: str) -> None:
    """The graph of ``watched`` is gone after this."""
    config = null_fleet(50, (1, 1), {})
    config["applications"][0]["import_path"] = "graph.gpu_memory:build"
    deploy(config, url)
    assert animate(url, form(audio=speech(2.0))).status_code == 200

    def exported() -> dict[str, float]:
        series = scraped().get(f"ray_{GPU_MEMORY.name}", [])
        return {tags["state"]: value for tags, value in series if tags["model"] == "null"}

    until(lambda: exported() == MEMORY)
    assert exported() == MEMORY
