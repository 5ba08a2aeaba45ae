"""Back-pressure through Serve's own proxy, over real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

from serve_app.deployments.reader import IngressRouter

from graph.fountain import PIECE, Fountain

PIECES = 400
"""100 MB in all; what sockets and proxy hold is a few MB."""


@pytest.fixture(scope="module")
def url(serve_port: int) -> Iterator[str]:
    app = serve.deployment(
        serve.ingress()(Fountain),
        name="Fountain",
        max_ongoing_requests=16,
        request_router_config=RequestRouterConfig(request_router_class=IngressRouter),
    ).bind()
    serve.run(app, name="fountain", route_prefix="/fountain")
    yield f"http://127.0.0.1:{serve_port}/fountain"
    serve.delete("fountain")


def made(url: str) -> int:
    return int(httpx.get(f"{url}/made", timeout=10).text)


def unread(url: str) -> socket.socket:
    """A connection that asked for the stream and reads nothing of it."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, port))
    client.sendall(f"GET /fountain/flow?pieces={PIECES} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return client


def test_a_reader_that_reads_gets_everything(url: str) -> None:
    received = 0
    with httpx.stream("GET", f"{url}/flow?pieces={PIECES}", timeout=30) as answer:
        for piece in answer.iter_raw():
            received += len(piece)
    assert received == PIECES * len(PIECE)
    assert made(url) == PIECES


def test_a_reader_that_does_not_read_stops_the_stream(url: str) -> None:
    with unread(url):
        time.sleep(3)
        before = made(url)
        time.sleep(3)
        assert 0 < before == made(url) < PIECES / 4


def test_a_reader_that_goes_on_reading_gets_the_rest(url: str) -> None:
    with unread(url) as client:
        time.sleep(2)
        client.settimeout(30)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            piece = client.recv(1 << 20)
            assert piece
            received = (received + piece)[-64:]
    assert made(url) == PIECES
