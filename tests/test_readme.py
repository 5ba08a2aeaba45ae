"""Every command of the README but the test command itself, run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.client.remote import wait_until_ready
from serve_app.client.server import heed_interrupts

ROOT = Path(__file__).parents[1]
URL = "http://127.0.0.1:8000"
SERVERS = {"make serve", ".venv/bin/serve run configs/serve.yaml"}
"""Commands that run until they are interrupted."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
    pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="needs the .venv that make installs"),
]


def commands() -> list[str]:
    """The commands of all ``sh`` blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+", " ", line.split("#")[0]).strip() for line in lines]
    return [line for line in found if line and line != "make test"]


def environment() -> dict[str, str]:
    """As a user's shell: nothing of the tests' own Ray instance."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with running("make serve"):
        yield


class running:
    """A server of the README, ready, and interrupted at the end."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __enter__(self) -> None:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{URL}/health")
        self._process = subprocess.Popen(
            self._command,
            shell=True,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        wait_until_ready(URL, 180, alive=lambda: self._process.poll() is None)

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait(60)


def outputs(command: str) -> list[Path]:
    return [ROOT / name for name in re.findall(r"out/[\w.]+", command)]


def test_the_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make run" in text and "make test" in text
    assert set(commands()) >= SERVERS | {"make run"}


def test_make_run_writes_the_demo() -> None:
    demo = ROOT / "out" / "demo.webm"
    demo.unlink(missing_ok=True)
    result = run("make run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "out/demo.webm" in result.stdout and "real time" in result.stdout
    assert demo.stat().st_size > 10_000


@pytest.mark.parametrize("command", sorted(SERVERS - {"make serve"}))
def test_server_starts(command: str) -> None:
    with running(command):
        assert httpx.get(f"{URL}/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("command", [c for c in commands() if c not in SERVERS and c != "make run"])
def test_command_does_what_it_says(server: None, command: str) -> None:
    for output in outputs(command):
        output.unlink(missing_ok=True)
    result = run(command)
    assert result.returncode == 0, result.stdout + result.stderr
    for output in outputs(command):
        assert output.stat().st_size > 10_000, result.stdout + result.stderr
