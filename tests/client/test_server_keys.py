"""Where a server may start without keys, and what the command line says where it may not."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.api.keys import digest, read_keys
from serve_app.cli import main
from serve_app.client import server
from serve_app.client.address import APPLICATION, address, is_public, local_url
from serve_app.client.server import Overrides, overridden

from api.conftest import FakeBackend, serving
from api.test_access import STUDIO, write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.3", True),
        ("host.example", True),
        ("", True),
    ],
)
def test_only_loopback_is_private(host: str, public: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_public(host) is public
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert is_public(host)


def test_without_an_address_serve_listens_on_all() -> None:
    assert address({}) == ("0.0.0.0", "8000")
    assert local_url(*address({"http_options": {"host": "::", "port": 1}})) == "http://[::1]:1"
    assert local_url("localhost", "8000") == "http://localhost:8000"


def config(file: Path, host: str | None, keys: dict[str, Any] | None = None) -> Path:
    """A Serve config that listens there."""
    arguments = {} if keys is None else {"keys": keys}
    content: dict[str, Any] = {"applications": [{"import_path": APPLICATION, "args": arguments}]}
    if host is not None:
        content["http_options"] = {"host": host}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command in Serve's place that keeps the config it is started with."""
    kept = tmp_path / "kept.yaml"
    command = tmp_path / "serve"
    command.write_text(f'#!/bin/sh\ncp "$2" {kept}\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(server.sys, "executable", str(tmp_path / "python"))
    return kept


@pytest.mark.parametrize(
    ("host", "keys", "more"),
    [
        ("127.0.0.1", None, []),
        ("0.0.0.0", None, ["--host", "127.0.0.1"]),
        ("0.0.0.0", {"file": "/keys.yaml"}, []),
        ("0.0.0.0", {"required": False}, []),
        ("0.0.0.0", None, ["--insecure-no-keys"]),
        ("127.0.0.1", None, ["--insecure-no-keys", "--host", "0.0.0.0"]),
    ],
)
def test_a_server_starts_on_loopback_or_with_keys_or_if_told_so(
    tmp_path: Path, started: Path, host: str, keys: dict[str, Any] | None, more: list[str]
) -> None:
    file = config(tmp_path / "config.yaml", host, keys)
    assert main(["serve", "--config", str(file), *more]) == 0
    args = yaml.safe_load(started.read_text())["applications"][0].get("args", {})
    assert args.get("keys") == ({"required": False} if "--insecure-no-keys" in more else keys)


@pytest.mark.parametrize(
    ("host", "keys", "more"),
    [
        ("0.0.0.0", None, []),
        (None, None, []),
        ("0.0.0.0", {}, []),
        ("0.0.0.0", {"reload_s": 1}, []),
        ("127.0.0.1", None, ["--host", "0.0.0.0"]),
        ("127.0.0.1", None, ["--host", "::"]),
    ],
)
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_server_does_not_start_in_public_without_keys(
    tmp_path: Path,
    started: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    host: str | None,
    keys: dict[str, Any] | None,
    more: list[str],
) -> None:
    file = config(tmp_path / "config.yaml", host, keys)
    files = ["--image", "p.png", "--audio", "s.wav", "--out", str(tmp_path / "o.webm")]
    assert main([command, "--config", str(file), *more, *(files if command == "demo" else [])]) == 1
    error = capsys.readouterr().err
    assert "--keys FILE" in error and "--insecure-no-keys" in error
    assert not started.exists()


def test_a_key_file_on_the_command_line_is_read_first(
    tmp_path: Path, started: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path / "config.yaml", "0.0.0.0")
    assert main(["serve", "--config", str(file), "--keys", str(tmp_path / "nowhere.yaml")]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err and not started.exists()
    write(tmp_path / "keys.yaml", {"name": "studio", "key": STUDIO})
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--config", str(file), "--keys", "keys.yaml"]) == 0
    [application] = yaml.safe_load(started.read_text())["applications"]
    assert application["args"]["keys"] == {"file": str(tmp_path / "keys.yaml")}


def test_other_applications_are_left_as_they_are() -> None:
    other = {"import_path": "other:app"}
    changed = overridden({"applications": [other]}, Overrides(port=1, open=True))
    assert changed == {"applications": [other], "http_options": {"port": 1}}


def test_a_new_key_and_its_entry_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-key", "studio"]) == 0
    output = capsys.readouterr()
    key = output.err.split()[-1]
    file = tmp_path / "keys.yaml"
    file.write_text(output.out)
    [entry] = read_keys(file)
    assert (entry.name, entry.key) == ("studio", digest(key))
    assert key not in output.out
    assert main(["new-key", "no name"]) == 1
    assert "no name" in capsys.readouterr().err


def test_the_command_line_shows_the_key_of_its_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("portrait", "speech"):
        (tmp_path / name).write_text("1.0")
    keys = write(tmp_path / "keys.yaml", {"name": "studio", "key": STUDIO})
    monkeypatch.delenv("FLASHHEAD_API_KEY", raising=False)
    with serving(FakeBackend(), keys) as url:
        files = ["--image", str(tmp_path / "portrait"), "--audio", str(tmp_path / "speech")]
        command = ["animate", *files, "--out", str(tmp_path / "video.mp4"), "--url", url]
        assert main(command) == 1
        assert "401 missing_key" in capsys.readouterr().err
        monkeypatch.setenv("FLASHHEAD_API_KEY", STUDIO)
        assert main(command) == 0
    assert os.path.getsize(tmp_path / "video.mp4")
