"""Keys on the real graph: through Serve's proxy, with a file that changes while a stream runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from serve_app.media.webm_reader import ClusterReader

from api.test_access import PARTNER, STUDIO, bearer, write
from graph.live import deploy, form, open_sessions, shipped_config
from graph.test_graph import SECONDS, speech


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.yaml"


@pytest.fixture(scope="module")
def keyed(url: str, file: Path) -> Iterator[str]:
    """The URL of the shipped graph, which requires keys and has none yet."""
    from ray import serve

    config = shipped_config()
    config["applications"][0]["args"]["keys"] = {"file": str(file), "reload_s": 0.1}
    deploy(config, url)
    yield url
    serve.delete("flashhead")


def status(url: str, key: str) -> int:
    return httpx.get(f"{url}/v1/models", headers=bearer(key)).status_code


def wait_for_status(url: str, key: str, wanted: int) -> None:
    deadline = time.monotonic() + 20
    while status(url, key) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_keys_come_and_go_under_a_running_stream(keyed: str, file: Path) -> None:
    assert httpx.get(f"{keyed}/ready").json() == {"status": "ready"}
    refused = httpx.post(f"{keyed}/animate", files=form(), headers=bearer(STUDIO))
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_key")
    assert refused.headers["www-authenticate"] == 'Bearer realm="flashhead"'
    write(file, {"name": "studio", "key": STUDIO, "max_streams": 1})
    wait_for_status(keyed, STUDIO, 200)

    request = {"files": form(audio=speech(SECONDS)), "headers": bearer(STUDIO), "timeout": 60}
    with httpx.stream("POST", f"{keyed}/animate", **request) as stream:
        assert stream.status_code == 200
        reader, pieces = ClusterReader(), stream.iter_raw()
        reader.feed(next(pieces))
        assert httpx.post(f"{keyed}/animate", **request).json()["code"] == "too_many_streams"
        write(file, {"name": "partner", "key": PARTNER})
        wait_for_status(keyed, STUDIO, 401)
        assert status(keyed, PARTNER) == 200
        assert open_sessions() == 1, "the stream was over before its key was"
        for piece in pieces:
            reader.feed(piece)
        assert reader.frame_count == int(stream.headers["x-flashhead-frames"])


def test_a_websocket_without_a_key_is_refused_in_the_handshake(keyed: str) -> None:
    with (
        pytest.raises(websockets.exceptions.InvalidStatus) as refused,
        connect(f"{keyed.replace('http', 'ws', 1)}/v1/anything"),
    ):
        pass
    assert refused.value.response.status_code == 401
    assert b"missing_key" in (refused.value.response.body or b"")
