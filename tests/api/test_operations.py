"""What operators are told of requests: metrics, and lines with request ids."""

from __future__ import annotations

import logging
import threading
import time

import httpx
import pytest

from serve_app.metrics import (
    ACTIVE_STREAMS,
    ENDED_STREAMS,
    REFUSED_REQUESTS,
    STAGE_TIME,
    TIME_TO_FIRST_FRAME,
)

from api.conftest import FakeBackend, serving
from api.test_animate import files


def lines(caplog: pytest.LogCaptureFixture, request_id: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if vars(record).get("request_id") == request_id]


def test_a_stream_is_measured_and_its_lines_carry_its_ids(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    with serving(backend) as url:
        answer = httpx.post(f"{url}/animate", files=files(), headers={"X-Request-Id": "mine"})
    assert answer.status_code == 200
    told = lines(caplog, "mine")
    assert [line.getMessage().split(": ")[1].split()[0].strip(",") for line in told] == [
        "accepted",
        "first",
        "completed",
    ]
    assert {vars(line)["session_id"] for line in told} == {answer.headers["x-session-id"]}
    assert {vars(line)["caller"] for line in told} == {"anonymous"}
    recorder = backend.recorder
    assert recorder.values(ENDED_STREAMS, model="null", outcome="completed") == [1]
    assert len(recorder.values(TIME_TO_FIRST_FRAME, since="request")) == 1
    assert len(recorder.values(STAGE_TIME, stage="decode_upload")) == 1
    assert sum(recorder.values(ACTIVE_STREAMS)) == 0


def test_every_refusal_is_counted_and_logged_once(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    long_id = "i" * 1000
    with serving(backend) as url:
        asked = [
            httpx.post(f"{url}/animate", files=files(), data={"model": "no"}, headers={"X-Request-Id": "a"}),
            httpx.post(f"{url}/animate", headers={"X-Request-Id": "b"}),
            httpx.get(f"{url}/nowhere", headers={"X-Request-Id": "c"}),
            httpx.get(f"{url}/ready", headers={"X-Request-Id": long_id}),
        ]
    codes = [answer.json()["code"] for answer in asked]
    assert codes == ["unknown_model", "missing_field", "not_found", "not_ready"]
    assert [backend.recorder.values(REFUSED_REQUESTS, code=code) for code in codes] == [[1]] * 4
    for request_id, code in zip(("a", "b", "c", long_id[:128]), codes, strict=True):
        refused = [line for line in lines(caplog, request_id) if line.getMessage().startswith("refused")]
        assert [vars(line)["code"] for line in refused] == [code]
    assert not lines(caplog, long_id)


def test_a_defect_is_an_error_with_its_trace(backend: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    backend.decoder.error = ValueError("planted")
    with serving(backend) as url:
        httpx.post(f"{url}/animate", files=files(), headers={"X-Request-Id": "mine"})
    [line] = [line for line in lines(caplog, "mine") if line.levelno == logging.ERROR]
    assert line.exc_info and "planted" in caplog.text
    assert backend.recorder.values(REFUSED_REQUESTS, code="internal_error") == [1]


def test_a_client_that_goes_is_an_outcome(backend: FakeBackend) -> None:
    backend.encoder.pause_s = 1.0
    with serving(backend) as url, httpx.stream("POST", f"{url}/animate", files=files(30.0)) as answer:
        # Kept: httpx closes the connection with an iterator that is dropped.
        pieces = answer.iter_raw()
        next(pieces)
        assert backend.recorder.values(ACTIVE_STREAMS, state="running") == [1]
        answer.close()
        deadline = time.monotonic() + 10
        while not backend.recorder.values(ENDED_STREAMS) and time.monotonic() < deadline:
            threading.Event().wait(0.01)
    assert backend.recorder.values(ENDED_STREAMS, outcome="client_gone") == [1]
    assert sum(backend.recorder.values(ACTIVE_STREAMS)) == 0
