"""A real Ray instance of these tests' own, without a dashboard. It ends with the last of them, since a
process drives one Ray instance at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="package")
def serve_port() -> Iterator[int]:
    """The HTTP port of Serve on a Ray instance of these tests."""
    import ray
    from ray import serve

    port = free_port()
    ray.init(
        address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, configure_logging=False
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="package")
def url(serve_port: int) -> str:
    """Where the graph is served."""
    return f"http://127.0.0.1:{serve_port}"


@pytest.fixture(scope="module")
def graph(url: str) -> Iterator[str]:
    """The URL of the shipped graph with two replicas of everything but the ingress."""
    from ray import serve

    from graph.live import deploy, hasty_config, with_replicas

    deploy(with_replicas(hasty_config(), AudioEncoder=2, FlashHeadGenerator=2, Encoder=2), url)
    yield url
    serve.delete("flashhead")
