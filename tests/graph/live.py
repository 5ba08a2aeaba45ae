"""The shipped graph on the tests' Ray instance, and its processes."""

from __future__ import annotations

import copy
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from serve_app.client.remote import wait_until_ready

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def shipped_config() -> dict[str, Any]:
    """``configs/serve.yaml`` as it is."""
    return yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text())


def hasty_config() -> dict[str, Any]:
    """The shipped config with little patience for a reader that does not read, and room for as many streams
    as sessions however slow the machine that runs the tests."""
    config = shipped_config()
    args = config["applications"][0]["args"]
    args["limits"]["client_stall_s"] = 3
    args["models"][0]["max_utilisation"] = 1000
    return config


def with_replicas(config: dict[str, Any], **counts: int) -> dict[str, Any]:
    """The config with a fixed number of replicas for deployments whose name begins so."""
    changed = copy.deepcopy(config)
    for deployment in changed["applications"][0]["deployments"]:
        count = counts.get(deployment["name"].split("-")[0])
        if count is not None:
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = count
    return changed


def deploy(config: dict[str, Any], url: str) -> None:
    """Deploy as ``serve run`` and ``serve deploy`` do, and wait until it is ready."""
    schema = ServeDeploySchema.model_validate(config | {"proxy_location": "HeadOnly"})
    _get_global_client().deploy_apps(schema, _blocking=True)
    wait_until_ready(url, 120)


def replicas(deployment: str) -> list[psutil.Process]:
    """Processes of a deployment's replicas, the oldest first; names as in the config."""
    beginning = f"ray::ServeReplica:flashhead:{deployment}"
    return sorted(processes(beginning), key=lambda process: process.create_time())


def processes(beginning: str) -> list[psutil.Process]:
    """Processes of the tests' own Ray instance whose title begins so."""
    return [p for p in psutil.Process().children(recursive=True) if title(p).startswith(beginning)]


def title(process: psutil.Process) -> str:
    """A process's command line, as Ray sets it; empty for one that is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(process: psutil.Process) -> None:
    """SIGKILL, and wait until it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


def generator_stats() -> list[dict[str, float]]:
    """What each generator replica reports of its sessions, and how many chunks it made."""
    handle = serve.get_deployment_handle("FlashHeadGenerator-tiny", "flashhead")
    return handle.broadcast("record_routing_stats").results(timeout_s=10)


def open_sessions() -> int:
    """Sessions open on all generator replicas."""
    return int(sum(stats["streams"] + stats["batch"] for stats in generator_stats()))


def wait_for_sessions(count: int, timeout_s: float = 30) -> None:
    """Until that many sessions are open."""
    deadline = time.monotonic() + timeout_s
    while open_sessions() != count:
        assert time.monotonic() < deadline, f"{open_sessions()} sessions, not {count}"
        time.sleep(0.05)


def wait_for_replicas(deployment: str, count: int, timeout_s: float = 60) -> None:
    """Until that many processes of a deployment exist."""
    deadline = time.monotonic() + timeout_s
    while len(replicas(deployment)) != count:
        assert time.monotonic() < deadline, f"{deployment}: {len(replicas(deployment))} replicas, not {count}"
        time.sleep(0.2)


def form(image: bytes | None = None, audio: bytes | None = None) -> dict[str, Any]:
    """The files of a request; the shipped examples where none are given."""
    image = (EXAMPLES / "portrait.png").read_bytes() if image is None else image
    audio = (EXAMPLES / "speech.wav").read_bytes() if audio is None else audio
    return {"image": ("portrait.png", image), "audio": ("speech.wav", audio)}


def animate(url: str, files: dict[str, Any], **fields: Any) -> httpx.Response:
    """``POST /animate``, answered in full."""
    return httpx.post(f"{url}/animate", files=files, data=fields, timeout=120)
