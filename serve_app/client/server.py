"""Starting the graph as a process of its own, by Serve's command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from serve_app.client.remote import is_answering, wait_until_ready
from serve_app.errors import FlashHeadError, Unavailable

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
STOP_TIMEOUT_S = 60.0


def run_server(config: Path, host: str | None, port: int | None) -> int:
    """Serve until interrupted or terminated; the exit status of Serve."""
    with _config_file(config, host, port) as (file, url):
        print(f"starting the graph of {config} on {url}", flush=True)
        with _server(file) as process:
            return process.wait()


@contextmanager
def running_server(
    config: Path, host: str | None, port: int | None, start_timeout_s: float, log: Path
) -> Iterator[str]:
    """The URL of a graph started for the time of the context, ready to animate; its output is in ``log``.

    Raises:
        Unavailable: the port is taken, or the graph was not ready within ``start_timeout_s``.
    """
    with _config_file(config, host, port) as (file, url), log.open("wb") as output:
        if is_answering(url):
            raise Unavailable(f"{url} is taken by another server; choose another --port", value=url)
        with _server(file, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                wait_until_ready(url, start_timeout_s, alive=lambda: process.poll() is None)
            except Unavailable as error:
                raise Unavailable(f"{error}; its log is {log}") from error
            yield url


@contextmanager
def _server(config: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Serve running ``config``. It has a session of its own, so that an interrupt from the terminal comes
    from here alone, once, and it can shut its replicas down in order."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", **os.environ}
    command = [str(Path(sys.executable).with_name("serve")), "run", str(config)]
    process = subprocess.Popen(command, env=environment, start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _config_file(config: Path, host: str | None, port: int | None) -> Iterator[tuple[Path, str]]:
    """The config with ``host`` and ``port`` in place of its own, and the URL it listens on."""
    settings = _read(config)
    http: dict[str, Any] = dict(settings.get("http_options") or {})
    http.update({name: value for name, value in (("host", host), ("port", port)) if value is not None})
    settings["http_options"] = http
    address = http.get("host", DEFAULT_HOST)
    url = f"http://{'127.0.0.1' if address == '0.0.0.0' else address}:{http.get('port', DEFAULT_PORT)}"
    with tempfile.TemporaryDirectory(prefix="flashhead-serve-") as folder:
        file = Path(folder) / config.name
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        yield file, url


def _read(config: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise FlashHeadError(f"--config {config}: {error}") from error
    if not isinstance(settings, Mapping):
        raise FlashHeadError(f"--config {config}: not a Serve config (a mapping is expected)")
    return dict(settings)
