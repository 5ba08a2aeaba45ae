"""The image: what the Dockerfile installs is what the lock file says, and its steps work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cluster.manifests import ROOT, build, kubectl_missing, locked, ray_cluster

DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
MODEL_FILES = ("*.safetensors", "*.pth", "*.ckpt", "*.bin")


def instructions(text: str) -> list[tuple[str, str]]:
    """(name, arguments) of each instruction, continued lines joined, comments dropped."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]  # type: ignore[misc]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions(DOCKERFILE) if instruction == name]


def defaults() -> dict[str, str]:
    return {name: value.strip('"') for name, value in (rest.split("=", 1) for rest in arguments("ARG"))}


def test_every_version_comes_from_the_lock_file() -> None:
    installs = [step for rest in arguments("RUN") for step in rest.split("&&") if "pip install" in step]
    assert len(installs) == 3
    for step in installs:
        assert "--constraint requirements.lock" in step or "requirements.lock" in step or "--no-deps" in step
    assert re.findall(r"[a-z]==\d", DOCKERFILE) == []
    assert locked("ray") and locked("torch")


def test_python_is_the_one_the_lock_was_tried_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert defaults()["PYTHON"] == project["tool"]["mypy"]["python_version"]
    assert arguments("FROM") == ["python:${PYTHON}-slim-bookworm"]


def test_torch_is_built_for_cuda_unless_told_otherwise() -> None:
    assert defaults()["TORCH_INDEX"] == ""
    assert defaults()["FLASH_ATTN"] == ""


@pytest.mark.skipif(kubectl_missing(), reason="kubectl, which builds the overlays, is not installed")
def test_it_runs_as_the_user_the_pods_run_as() -> None:
    user, group = arguments("USER")[-1].split(":")
    head = ray_cluster(build("fleet"))["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert (int(user), int(group)) == (head["runAsUser"], head["runAsGroup"])
    assert int(user) != 0


def test_no_released_model_is_copied() -> None:
    """The build context is a short list, and what is in it is the embedded checkpoint at most."""
    context = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {name for rest in arguments("COPY") for name in rest.split()[:-1]}
    assert copied == set(context)
    tracked = subprocess.run(
        ["git", "ls-files", *context], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    weights = [name for name in tracked if any(fnmatch(name, pattern) for pattern in MODEL_FILES)]
    assert weights and all(name.startswith("serve_app/checkpoints/tiny/") for name in weights)
    assert sum((ROOT / name).stat().st_size for name in weights) < 20e6


def test_layers_are_few() -> None:
    assert len(arguments("RUN")) <= 3 and len(arguments("COPY")) <= 3


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_its_install_steps_work(tmp_path: Path) -> None:
    """The Dockerfile's own pip steps in a fresh environment and a copy of its context. What a machine
    without containers changes: no apt packages, user or layers."""
    context = tmp_path / "context"
    context.mkdir()
    for rest in arguments("COPY"):
        *sources, target = rest.split()
        for source in sources:
            destination = context / (target if len(sources) == 1 else source)
            subprocess.run(["cp", "-r", ROOT / source, destination], check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_"))},
        "PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FLASH_ATTN": "",
        "TORCH_INDEX": "",
        "TMPDIR": str(tmp_path),
    }
    for step in arguments("RUN"):
        if "pip" in step:
            command = step.replace("/tmp/", f"{tmp_path}/")
            result = subprocess.run(
                ["bash", "-ec", command], cwd=context, env=environment, capture_output=True, text=True
            )
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    listed = subprocess.run(
        ["pip", "list", "--format", "json"], cwd=tmp_path, env=environment, capture_output=True, check=True
    ).stdout
    installed = {entry["name"]: entry["version"].split("+")[0] for entry in json.loads(listed)}
    assert {name: installed[name] for name in ("ray", "torch", "transformers", "diffusers", "av")} == {
        name: locked(name) for name in ("ray", "torch", "transformers", "diffusers", "av")
    }
    assert "pytest" not in installed
    probe = (
        "import serve_app.app; from serve_app.model.presets import checkpoint_root as r; print(r('embedded'))"
    )
    where = subprocess.run(
        ["python", "-c", probe], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert where.startswith(str(tmp_path / "venv"))
