"""Keys and origins: who is let in, who is refused how, and what nobody has to show a key for."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.exceptions
import yaml
from starlette.types import Message, Receive, Scope, Send
from websockets.sync.client import connect

from serve_app.api.access import KeyGuard
from serve_app.api.caller import ANONYMOUS, Caller, caller
from serve_app.api.keys import KeyRing
from serve_app.api.problems import Problems
from serve_app.api.quota import Quotas
from serve_app.config import CorsSettings, KeySettings
from serve_app.metrics import NullRecorder

from api.conftest import FakeBackend, serving
from api.test_animate import assert_problem, files
from session.fakes import ChainGenerator

STUDIO, PARTNER, UNKNOWN = "fh_" + "studio." * 6, "fh_" + "partner." * 5, "fh_" + "unknown." * 5
RELOAD_S = 0.05


def write(file: Path, *entries: dict[str, Any]) -> KeySettings:
    """A key file, in place at once, and the settings that name it."""
    draft = file.with_suffix(".draft")
    draft.write_text(yaml.safe_dump({"keys": list(entries)}))
    draft.rename(file)
    return KeySettings(file=str(file), reload_s=RELOAD_S)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def keys(file: Path) -> KeySettings:
    return write(
        file, {"name": "studio", "key": STUDIO}, {"name": "partner", "key": PARTNER, "models": ["late"]}
    )


@pytest.fixture
def url(backend: FakeBackend, keys: KeySettings) -> Iterator[str]:
    with serving(backend, keys) as url:
        yield url


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def animate(url: str, key: str, seconds: float = 3.0, **fields: str) -> httpx.Response:
    return httpx.post(f"{url}/animate", files=files(seconds), data=fields, headers=bearer(key), timeout=20)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "headers", [bearer(STUDIO), {"authorization": f"bearer  {STUDIO}"}, {"X-API-Key": STUDIO}]
)
def test_a_known_key_opens_everything(url: str, headers: dict[str, str]) -> None:
    assert httpx.post(f"{url}/animate", files=files(), headers=headers).status_code == 200
    for path in ("/v1/models", "/docs", "/openapi.json"):
        assert httpx.get(f"{url}{path}", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/docs", "/openapi.json", "/animate", "/nowhere", "/health/"])
def test_without_a_key_there_is_nothing_but_health_and_readiness(url: str, path: str) -> None:
    answer = httpx.get(f"{url}{path}")
    assert_problem(answer, 401, "missing_key")
    assert answer.headers["www-authenticate"] == 'Bearer realm="flashhead"'
    assert httpx.get(f"{url}/health").json() == {"status": "alive"}
    assert httpx.get(f"{url}/ready").json() == {
        "type": "about:blank",
        "title": "Unavailable",
        "status": 503,
        "detail": "not ready",
        "code": "not_ready",
    }


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([("Authorization", f"Bearer {UNKNOWN}")], "invalid_key"),
        ([("Authorization", "Bearer")], "invalid_key"),
        ([("Authorization", "Bearer é".encode("latin-1"))], "invalid_key"),
        ([("Authorization", STUDIO)], "malformed_credentials"),
        ([("Authorization", f"Basic {STUDIO}")], "malformed_credentials"),
        ([("X-API-Key", "")], "invalid_key"),
        ([("X-API-Key", STUDIO[:-1])], "invalid_key"),
        ([("X-API-Key", f"{UNKNOWN}, {STUDIO}")], "invalid_key"),
        ([("X-API-Key", STUDIO), ("X-API-Key", STUDIO)], "malformed_credentials"),
        (
            [("Authorization", f"Bearer {STUDIO}"), ("Authorization", f"Bearer {STUDIO}")],
            "malformed_credentials",
        ),
        ([("Authorization", f"Bearer {STUDIO}"), ("X-API-Key", PARTNER)], "malformed_credentials"),
        ([("Authorization", f"Bearer {STUDIO}"), ("X-API-Key", "")], "malformed_credentials"),
        ([("Authorization", "Basic dTpw"), ("X-API-Key", STUDIO)], "malformed_credentials"),
        ([("Cookie", f"key={STUDIO}")], "missing_key"),
    ],
)
def test_credentials_that_are_not_one_known_key_are_refused(
    url: str, headers: list[tuple[str, Any]], code: str
) -> None:
    answer = httpx.get(f"{url}/v1/models", headers=headers)
    assert_problem(answer, 401, code)
    assert STUDIO not in answer.text


def test_one_key_in_both_headers_is_one_key(url: str) -> None:
    headers = {**bearer(STUDIO), "X-API-Key": STUDIO}
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200


def test_a_key_in_the_address_is_not_looked_at(url: str) -> None:
    answer = httpx.get(f"{url}/v1/models", params={"key": STUDIO, "api_key": STUDIO, "x-api-key": STUDIO})
    assert_problem(answer, 401, "missing_key")


def test_a_refusal_does_not_wait_for_the_body(url: str) -> None:
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(
            b"POST /animate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 401")


def test_a_key_opens_its_models_alone(backend: FakeBackend, url: str) -> None:
    body = assert_problem(animate(url, PARTNER, model="null"), 403, "model_forbidden")
    assert body["accepted"] == ["late"]
    assert_problem(animate(url, PARTNER, model="huge"), 403, "model_forbidden")
    assert_problem(animate(url, STUDIO, model="huge"), 422, "unknown_model")
    backend.loaded = ("null", "late")
    assert animate(url, PARTNER).headers["x-flashhead-model"] == "late"
    assert animate(url, STUDIO).headers["x-flashhead-model"] == "null"
    models = httpx.get(f"{url}/v1/models", headers=bearer(PARTNER)).json()["models"]
    assert [model["name"] for model in models] == ["late"]


def test_a_key_for_no_served_model_animates_nothing(backend: FakeBackend, file: Path) -> None:
    keys = write(file, {"name": "studio", "key": STUDIO, "models": ["pro"]})
    with serving(backend, keys) as url:
        assert_problem(animate(url, STUDIO), 403, "model_forbidden")


def test_the_rate_of_a_key_is_its_own(backend: FakeBackend, file: Path) -> None:
    keys = write(
        file,
        {"name": "studio", "key": STUDIO, "requests_per_minute": 0.1, "burst": 2},
        {"name": "partner", "key": PARTNER},
    )
    with serving(backend, keys) as url:

        def ask(key: str) -> httpx.Response:
            return httpx.get(f"{url}/v1/models", headers=bearer(key))

        assert [ask(STUDIO).status_code for _ in range(2)] == [200, 200]
        refused = ask(STUDIO)
        assert_problem(refused, 429, "rate_limited")
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        assert ask(PARTNER).status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_key_runs_as_many_streams_as_it_may(file: Path) -> None:
    backend = FakeBackend(generator=ChainGenerator(chunk_s=0.3))
    keys = write(
        file, {"name": "studio", "key": STUDIO, "max_streams": 1}, {"name": "partner", "key": PARTNER}
    )
    with serving(backend, keys) as url, ThreadPoolExecutor() as clients:
        running = clients.submit(animate, url, STUDIO)
        until(lambda: len(backend.generator.opened) == 1)
        refused = animate(url, STUDIO)
        assert_problem(refused, 429, "too_many_streams")
        assert refused.headers["retry-after"] == "5"
        assert httpx.get(f"{url}/v1/models", headers=bearer(STUDIO)).status_code == 200
        assert animate(url, PARTNER).status_code == 200
        assert running.result().status_code == 200
        assert animate(url, STUDIO).status_code == 200


def test_a_key_taken_away_ends_no_stream_and_begins_none(file: Path, keys: KeySettings) -> None:
    backend = FakeBackend(generator=ChainGenerator(chunk_s=0.3))
    with serving(backend, keys) as url, ThreadPoolExecutor() as clients:
        running = clients.submit(animate, url, STUDIO, 5.0)
        until(lambda: len(backend.generator.opened) == 1)
        write(file, {"name": "studio", "key": UNKNOWN})
        until(lambda: httpx.get(f"{url}/v1/models", headers=bearer(STUDIO)).status_code == 401)
        assert not running.done()
        assert httpx.get(f"{url}/v1/models", headers=bearer(UNKNOWN)).status_code == 200
        video = running.result()
        assert video.status_code == 200 and video.headers["x-flashhead-frames"] == "125"


@pytest.mark.parametrize("content", [None, "", "keys: [", "keys: []"])
def test_while_there_are_no_keys_everything_is_refused(
    backend: FakeBackend, file: Path, content: str | None
) -> None:
    if content is not None:
        file.write_text(content)
    with serving(backend, KeySettings(file=str(file), reload_s=RELOAD_S)) as url:
        assert_problem(animate(url, STUDIO), 401, "invalid_key")
        assert_problem(httpx.get(f"{url}/v1/models"), 401, "missing_key")
        assert httpx.get(f"{url}/health").status_code == 200
        write(file, {"name": "studio", "key": STUDIO})
        until(lambda: httpx.get(f"{url}/v1/models", headers=bearer(STUDIO)).status_code == 200)


def test_no_key_is_ever_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="serve_app")
    animate(url, STUDIO)
    animate(url, UNKNOWN)
    animate(url, PARTNER, model="null")
    assert "401 invalid_key" in caplog.text and "403 model_forbidden" in caplog.text
    assert not any(key in caplog.text for key in (STUDIO, PARTNER, UNKNOWN))


def guarded(app: Any, file: Path, **entry: Any) -> KeyGuard:
    """A guard over ``app`` that knows the studio's key."""
    ring = KeyRing(Path(str(write(file, {"name": "studio", "key": STUDIO, **entry}).file)), RELOAD_S)
    ring.load()
    return KeyGuard(app, ring, Quotas(time.monotonic), frozenset({"/animate"}), Problems(NullRecorder(), 5))


class websocket_server:
    """A guarded application that takes WebSockets and says who called, on a real socket."""

    def __init__(self, file: Path, **entry: Any) -> None:
        import uvicorn

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": scope["state"]["caller"].name})
            while (await receive())["type"] != "websocket.disconnect":
                pass

        config = uvicorn.Config(
            guarded(app, file, **entry), log_level="critical", lifespan="off", ws="websockets-sansio"
        )
        self._server = uvicorn.Server(config)

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        run = {"sockets": [self._listener]}
        self._thread = threading.Thread(target=self._server.run, kwargs=run)
        self._thread.start()
        return f"ws://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def test_a_websocket_shows_its_key_before_it_is_accepted(file: Path) -> None:
    with websocket_server(file, max_streams=1) as url:
        for path in ("/", "/health", f"/?key={STUDIO}"):
            with pytest.raises(websockets.exceptions.InvalidStatus) as refused, connect(f"{url}{path}"):
                pass
            assert refused.value.response.status_code == 401
        with connect(url, additional_headers=bearer(STUDIO)) as first:
            assert first.recv() == "studio"
            with (
                pytest.raises(websockets.exceptions.InvalidStatus) as refused,
                connect(url, additional_headers=bearer(STUDIO)),
            ):
                pass
            assert refused.value.response.status_code == 429
            assert b"too_many_streams" in (refused.value.response.body or b"")


def ask(guard: KeyGuard, scope: Scope) -> list[Message]:
    """What the guard sends for a connection."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("a refusal reads nothing")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the guard let it through")


def test_a_server_that_cannot_answer_a_handshake_closes_it(file: Path) -> None:
    scope = {"type": "websocket", "path": "/", "headers": []}
    assert ask(guarded(unreachable, file), scope) == [
        {"type": "websocket.close", "code": 1008, "reason": "missing_key"}
    ]


def test_a_connection_of_an_unknown_kind_gets_nowhere(file: Path) -> None:
    with pytest.raises(ValueError, match="'webtransport'"):
        ask(guarded(unreachable, file), {"type": "webtransport", "path": "/health", "headers": []})


def test_the_open_paths_are_those_of_the_application(file: Path) -> None:
    opened: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        opened.append(scope["path"])

    guard = guarded(app, file)
    scope = {"type": "http", "method": "GET", "headers": []}
    ask(guard, scope | {"path": "/app/health", "root_path": "/app"})
    for path in ("/app/app/health", "/health/../animate", "//health", "/healthz"):
        [start, _] = ask(guard, scope | {"path": path, "root_path": "/app"})
        assert start["status"] == 401
    assert opened == ["/app/health"]


def test_whoever_calls_is_known_to_routers() -> None:
    from starlette.requests import Request

    scope = {"type": "http", "headers": []}
    assert caller(Request(scope)) is ANONYMOUS
    assert caller(Request(scope | {"state": {"caller": Caller("studio")}})).name == "studio"


PAGE = "https://page.example"


def preflight(url: str, origin: str = PAGE) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-api-key",
    }
    return httpx.options(f"{url}/animate", headers=headers)


def test_other_origins_are_shut_out_by_default(backend: FakeBackend) -> None:
    with serving(backend) as url:
        assert preflight(url).status_code == 405
        answer = httpx.get(f"{url}/v1/models", headers={"Origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_listed_origin_gets_through_with_a_key(backend: FakeBackend, keys: KeySettings) -> None:
    with serving(backend, keys, CorsSettings(allow_origins=(PAGE,))) as url:
        allowed = preflight(url)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "x-api-key" in allowed.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in allowed.headers
        assert preflight(url, "https://other.example").status_code == 400
        refused = httpx.get(f"{url}/v1/models", headers={"Origin": PAGE})
        assert_problem(refused, 401, "missing_key")
        assert refused.headers["access-control-allow-origin"] == PAGE
        answer = httpx.post(f"{url}/animate", files=files(), headers={"Origin": PAGE, **bearer(STUDIO)})
        assert answer.status_code == 200
        assert "X-FlashHead-Frames" in answer.headers["access-control-expose-headers"]


def test_any_origin_means_any_without_credentials(backend: FakeBackend) -> None:
    with serving(backend, cors=CorsSettings(allow_origins=("*",))) as url:
        allowed = preflight(url)
        assert allowed.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in allowed.headers


@pytest.mark.parametrize(
    "settings",
    [
        {"required": True},
        {"required": False, "file": "/keys.yaml"},
        {"file": "keys.yaml"},
        {"file": "/k", "reload_s": 0},
    ],
)
def test_key_settings_that_contradict_themselves_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"file|reload_s"):
        KeySettings(**settings)


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "https://*.example", "null", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        CorsSettings(allow_origins=(origin,))
