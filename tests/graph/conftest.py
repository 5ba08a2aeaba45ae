"""A real Ray instance of the tests' own: no dashboard, a token of its own, gone at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


_TOKEN = Path(tempfile.mkdtemp(prefix="flashhead-tests-")) / "token"
_TOKEN.write_text(secrets.token_hex(32))
# Ray reads its authentication mode when it is imported, so this cannot wait for a fixture.
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN_PATH=str(_TOKEN),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    PYTHONPATH=os.pathsep.join([*map(str, Path(__file__).parents[1:3]), os.environ.get("PYTHONPATH", "")]),
)


@pytest.fixture(scope="session")
def serve_port() -> Iterator[int]:
    """The HTTP port of Serve on a Ray instance that lives as long as the test session."""
    import ray
    from ray import serve

    port = free_port()
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()
    shutil.rmtree(_TOKEN.parent)


@pytest.fixture(scope="session")
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
