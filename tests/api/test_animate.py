"""``POST /animate`` and the status routes, over real sockets and fakes of the graph."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

import httpx
import pytest

from serve_app.config import Limits
from serve_app.errors import InternalError, MalformedInput, TooLarge, UnsupportedMedia
from serve_app.media.webm import webm_header
from serve_app.metrics import TIME_TO_FIRST_FRAME

from api.conftest import FakeBackend, serving
from session.fakes import FULL, LOST, ChainGenerator, TextEncoder

PROBLEM = "application/problem+json"


def files(seconds: float = 3.0) -> dict[str, Any]:
    return {"image": ("p.png", b"png"), "audio": ("s.wav", str(seconds).encode())}


def animate(url: str, seconds: float = 3.0, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/animate", files=files(seconds), data=fields, timeout=20)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert body["status"] == status and body["code"] == code and body["detail"] and body["title"]
    return body


def idle(backend: FakeBackend) -> bool:
    """Whether sessions were opened and every one was closed again, soon."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        opened = sorted(name for name, _, _ in backend.generator.opened)
        if opened and opened == sorted(backend.generator.closed):
            return True
        time.sleep(0.01)
    return False


def test_a_stream_is_the_header_and_every_cluster_in_order(backend: FakeBackend) -> None:
    with serving(backend) as url:
        answer = animate(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("video/webm")
    assert answer.headers["x-flashhead-frames"] == "75"
    assert answer.headers["x-flashhead-reproducible"] == "true"
    assert "content-length" not in answer.headers
    header = webm_header(32, 32)
    assert answer.content.startswith(header)
    lines = answer.content[len(header) :].decode().splitlines()
    assert [int(line.split()[0]) for line in lines] == [0, 960, 1920, 2880]
    assert idle(backend)


def test_the_first_cluster_arrives_while_the_rest_is_made() -> None:
    backend = FakeBackend(generator=ChainGenerator(chunk_s=0.3))
    with serving(backend) as url, httpx.stream("POST", f"{url}/animate", files=files(10.0)) as answer:
        next(answer.iter_raw())
        assert len(backend.generator.calls) <= 2


def test_same_seed_same_bytes_other_seed_other_bytes(backend: FakeBackend) -> None:
    with serving(backend) as url:
        one, same, other = animate(url, seed=7), animate(url, seed=7), animate(url, seed=8)
    assert one.content == same.content != other.content


def test_mp4_comes_whole_with_its_length(backend: FakeBackend) -> None:
    with serving(backend) as url:
        answer = animate(url, stream="false", format="mp4")
    assert answer.headers["content-type"].startswith("video/mp4")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.content.startswith(b"mp4")


def test_a_warning_of_the_decoder_is_a_header(backend: FakeBackend) -> None:
    with serving(backend) as url:
        answer = animate(url, face_crop="true")
    assert "no face found" in answer.headers["x-flashhead-warnings"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"format": "mp4"}, "format_not_streamable"),
        ({"format": "avi"}, "format_out_of_range"),
        ({"seed": "-1"}, "seed_out_of_range"),
        ({"seed": str(2**63)}, "seed_out_of_range"),
        ({"seed": "many"}, "seed_out_of_range"),
        ({"steps": "3"}, "steps_out_of_range"),
        ({"model": "huge"}, "unknown_model"),
        ({"audio_encode": "twice"}, "audio_encode_out_of_range"),
        ({"stream": "perhaps"}, "stream_out_of_range"),
    ],
)
def test_a_parameter_out_of_range_is_named(backend: FakeBackend, fields: dict[str, str], code: str) -> None:
    with serving(backend) as url:
        body = assert_problem(animate(url, **fields), 422, code)
    assert body["value"] is not None and body["accepted"]


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7"])
def test_a_value_no_answer_could_carry_is_refused_all_the_same(backend: FakeBackend, charset: str) -> None:
    value = {"unicode_escape": "\\ud800", "utf-7": "+2AA-"}[charset]
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{content}\r\n'
        for name, extra, content in (
            ("model", "", value),
            ("image", '; filename="p.png"', "png"),
            ("audio", '; filename="s.wav"', "1.0"),
        )
    )
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    with serving(backend) as url:
        answer = httpx.post(f"{url}/animate", content=f"{parts}--x--\r\n".encode(), headers=headers)
    assert_problem(answer, 422, "unknown_model")


@pytest.mark.parametrize("missing", ["image", "audio"])
def test_a_missing_file_is_named(backend: FakeBackend, missing: str) -> None:
    parts = {name: part for name, part in files().items() if name != missing}
    with serving(backend) as url:
        body = assert_problem(httpx.post(f"{url}/animate", files=parts), 400, "missing_field")
    assert body["value"] == missing


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MalformedInput("planted", code="a"), 400),
        (TooLarge("planted", code="a"), 413),
        (UnsupportedMedia("planted", code="a"), 415),
        (InternalError("planted", code="a"), 500),
    ],
)
@pytest.mark.parametrize("stream", ["true", "false"])
def test_an_error_of_the_decoder_keeps_its_status(
    backend: FakeBackend, error: Exception, status: int, stream: str
) -> None:
    backend.decoder.error = error
    with serving(backend) as url:
        assert_problem(animate(url, stream=stream), status, "a")


def test_a_defect_shows_nothing_of_its_inside(backend: FakeBackend) -> None:
    backend.decoder.error = RuntimeError("secret")
    with serving(backend) as url:
        answer = animate(url)
    assert_problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


def test_a_body_that_is_no_form_is_malformed(backend: FakeBackend) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    with serving(backend) as url:
        answer = httpx.post(f"{url}/animate", content=b"no form", headers=headers)
        assert answer.status_code == 400 and answer.headers["content-type"] == PROBLEM
        assert_problem(httpx.get(f"{url}/nowhere"), 404, "not_found")
        assert_problem(httpx.get(f"{url}/animate"), 405, "method_not_allowed")


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_too_large_is_refused(declared: bool) -> None:
    backend = FakeBackend(limits=Limits(max_form_bytes=10_000))
    body = b"x" * 20_000
    headers = {"content-type": "multipart/form-data; boundary=x"}
    with serving(backend) as url:
        answer = httpx.post(f"{url}/animate", content=body if declared else iter([body]), headers=headers)
        assert_problem(answer, 413, "body_too_large")


@pytest.mark.parametrize("field", ["image", "audio"])
def test_a_file_too_large_is_named(field: str) -> None:
    backend = FakeBackend(limits=Limits(max_image_bytes=2, max_audio_bytes=2))
    parts = {**{name: (name, b"1") for name in ("image", "audio")}, field: (field, b"123")}
    with serving(backend) as url:
        body = assert_problem(httpx.post(f"{url}/animate", files=parts), 413, f"{field}_too_large")
    assert (body["value"], body["accepted"]) == (3, 2)


def test_an_upload_that_never_ends_is_cut() -> None:
    backend = FakeBackend(limits=Limits(upload_timeout_s=0.3))
    with serving(backend) as url:
        host, port = httpx.URL(url).host, httpx.URL(url).port
        with socket.create_connection((host, port), timeout=10) as client:
            client.sendall(
                b"POST /animate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            assert b"400 Bad Request" in client.recv(200)


def test_the_first_frame_is_waited_for_from_the_request_on(backend: FakeBackend) -> None:
    backend.wake_s = 0.3
    with serving(backend) as url:
        assert animate(url, stream="true").status_code == 200
        assert animate(url, stream="false", format="mp4").status_code == 200
    [since_request] = backend.recorder.values(TIME_TO_FIRST_FRAME, since="request")
    [since_speech] = backend.recorder.values(TIME_TO_FIRST_FRAME, since="speech")
    assert since_request >= since_speech + 0.3


def test_the_last_place_is_the_last() -> None:
    backend = FakeBackend(limits=Limits(max_streams=1), generator=ChainGenerator(chunk_s=0.2))
    with serving(backend) as url:
        with httpx.stream("POST", f"{url}/animate", files=files(10.0)) as first:
            pieces = first.iter_raw()
            next(pieces)
            refused = animate(url)
            assert_problem(refused, 429, "at_capacity")
            assert int(refused.headers["retry-after"]) >= 1
        assert idle(backend)
        assert animate(url, 1.0).status_code == 200


def test_a_full_graph_is_a_429_before_the_stream_begins(backend: FakeBackend) -> None:
    backend.generator.open_faults = [FULL, FULL]
    with serving(backend) as url:
        for stream in ("true", "false"):
            answer = animate(url, stream=stream)
            assert_problem(answer, 429, "at_capacity")
            assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_vanishes_ends_its_session(stream: str) -> None:
    backend = FakeBackend(generator=ChainGenerator(chunk_s=0.1))
    with serving(backend) as url:
        with contextlib.suppress(httpx.ReadTimeout):
            request = {"files": files(60.0), "data": {"stream": stream}, "timeout": 0.5}
            with httpx.stream("POST", f"{url}/animate", **request) as answer:
                next(answer.iter_raw())
        assert idle(backend)
        made = len(backend.generator.calls)
        time.sleep(0.5)
        assert len(backend.generator.calls) == made < 15


def test_a_reader_that_does_not_read_is_closed() -> None:
    encoder = BulkyEncoder()
    backend = FakeBackend(encoder=encoder, limits=Limits(client_stall_s=0.5))
    with serving(backend) as url:
        host, port = httpx.URL(url).host, httpx.URL(url).port
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, port))
            request = httpx.Request("POST", f"{url}/animate", files=files(300.0))
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            client.sendall(f"POST /animate HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            assert idle(backend)
    assert len(backend.generator.calls) < 100


class BulkyEncoder(TextEncoder):
    """Clusters of a megabyte, so that a few fill every buffer on the way."""

    async def encode(self, frames: Any, job: Any) -> bytes:
        return await super().encode(frames, job) + b"x" * 1_000_000


def test_a_stream_that_fails_midway_is_cut_not_ended() -> None:
    backend = FakeBackend(generator=ChainGenerator(faults={(1, 2, 0): InternalError("planted")}))
    with serving(backend) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            animate(url)
        assert animate(url).status_code == 200
    assert idle(backend)


def test_a_lost_replica_is_not_seen_by_the_client(backend: FakeBackend) -> None:
    with serving(backend) as url:
        undisturbed = animate(url, 10.0)
        backend.generator.faults[(2, 3, 1)] = LOST
        assert animate(url, 10.0).content == undisturbed.content
    assert len(backend.generator.opened) == 3


def test_health_readiness_and_models(backend: FakeBackend) -> None:
    with serving(backend) as url:
        assert httpx.get(f"{url}/health").json() == {"status": "alive"}
        unready = httpx.get(f"{url}/ready")
        assert_problem(unready, 503, "not_ready")
        assert "late" not in unready.text
        assert_problem(animate(url, model="late"), 503, "not_ready")
        first, second = httpx.get(f"{url}/v1/models").json()["models"]
        assert first["name"] == "null" and first["ready"] and first["allowed_steps"] == [2, 4]
        assert second == {"name": "late", "ready": False}
        backend.loaded = ("null", "late")
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        assert "/animate" in httpx.get(f"{url}/openapi.json").json()["paths"]
        assert httpx.get(f"{url}/docs").status_code == 200
