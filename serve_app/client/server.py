"""Starting the graph as a process of its own, by Serve's command line."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.api.keys import read_keys
from serve_app.client.address import APPLICATION, address, is_public, local_url
from serve_app.client.remote import is_answering, wait_until_ready
from serve_app.errors import ConfigError, Unavailable

STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Overrides:
    """What the command line sets in place of the config.

    Attributes:
        keys: the key file.
        open: whether anybody may call, on any address.
    """

    host: str | None = None
    port: int | None = None
    keys: Path | None = None
    open: bool = False


def run_server(config: Path, overrides: Overrides) -> int:
    """Serve until interrupted or terminated; the exit status of Serve.

    Raises:
        ConfigError: the config or the key file cannot be used, or it would let anybody in from other
            machines without saying so.
    """
    with _config_file(config, overrides) as (file, url):
        print(f"starting the graph of {config} on {url}", flush=True)
        with _server(file) as process:
            return process.wait()


@contextmanager
def running_server(config: Path, overrides: Overrides, start_timeout_s: float, log: Path) -> Iterator[str]:
    """The URL of a graph started for the time of the context, ready to animate; its output is in ``log``.

    Raises:
        ConfigError: see ``run_server``.
        Unavailable: the port is taken, or the graph was not ready within ``start_timeout_s``.
    """
    with _config_file(config, overrides) as (file, url), log.open("wb") as output:
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
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=heed_interrupts, **options
    )
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


def heed_interrupts() -> None:
    """For a new process: be stopped by SIGINT even where this one ignores it, as background jobs of a shell
    do. Serve stops its replicas on no other signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _config_file(config: Path, overrides: Overrides) -> Iterator[tuple[Path, str]]:
    """The config with ``overrides`` in place of its own, and the URL it listens on."""
    settings = overridden(_read(config), overrides)
    host, port = address(settings)
    if is_public(host):
        _check_keys(config, settings, host)
    with tempfile.TemporaryDirectory(prefix="flashhead-serve-") as folder:
        file = Path(folder) / config.name
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        yield file, local_url(host, port)


def overridden(config: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A Serve config with what the command line sets in it."""
    changed = copy.deepcopy(dict(config))
    listen = {"host": overrides.host, "port": overrides.port}
    http = dict(changed.get("http_options") or {})
    changed["http_options"] = http | {key: value for key, value in listen.items() if value is not None}
    for application in _applications(changed):
        if overrides.keys is not None:
            read_keys(overrides.keys)
            _arguments(application)["keys"] = {"file": str(overrides.keys.absolute())}
        elif overrides.open:
            _arguments(application)["keys"] = {"required": False}
    return changed


def _check_keys(name: Path, config: Mapping[str, Any], host: str) -> None:
    for application in _applications(config):
        given = _arguments(application).get("keys")
        keys = given if isinstance(given, Mapping) else {}
        if keys.get("file") is None and keys.get("required") is not False:
            raise ConfigError(
                f"{name} listens on {host}, where others reach it, without keys: give --keys FILE"
                " (flashhead-serve new-key makes one), or --insecure-no-keys to let anybody in"
            )


def _applications(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The config's applications that are this project's."""
    applications = config.get("applications")
    found = applications if isinstance(applications, list) else []
    return [app for app in found if isinstance(app, dict) and app.get("import_path") == APPLICATION]


def _arguments(application: dict[str, Any]) -> dict[str, Any]:
    """The settings in an application's section, which then has some."""
    if not isinstance(arguments := application.setdefault("args", {}), dict):
        raise ConfigError(f"args of the config: {arguments!r} is no mapping of settings")
    return arguments


def _read(config: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(config.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {config}: {error}") from error
    if not isinstance(settings, Mapping):
        raise ConfigError(f"--config {config}: not a Serve config (a mapping is expected)")
    return dict(settings)
