"""cluster/README.md: everything it names exists. Its commands need a cluster and are not run."""

from __future__ import annotations

import math
import re
import shlex
import subprocess

import pytest
import yaml

from serve_app.cli import _parser
from serve_app.config import AppSettings, ScalingSettings
from serve_app.deployments.scaling_policy import ReplicaReport, needed_replicas

from cluster.checks import MADE_BY_USER
from cluster.manifests import CONFIGS, ROOT, build, kubectl_missing, of_kind

README = (ROOT / "cluster" / "README.md").read_text()


def commands(program: str) -> list[list[str]]:
    """Each command of that program, in blocks and in the text, as words."""
    found = re.findall(rf"(?m)(?:^ *|`|&& )({program} [^`\n]+)", README)
    return [shlex.split(command.split(" > ")[0].replace("<", "").replace(">", "")) for command in found]


def test_paths_exist() -> None:
    named = set(re.findall(r"\b((?:configs|cluster|overlays|base|tests|examples)/[\w./-]*[\w-])", README))
    assert len(named) > 8
    missing = {path for path in named if not ((ROOT / path).exists() or (ROOT / "cluster" / path).exists())}
    assert missing == set()


def test_overlays_are_listed_with_their_configs() -> None:
    rows = re.findall(r"\| `overlays/([\w-]+)` \|.*\| `configs/([\w.]+)` \|", README)
    assert dict(rows) == CONFIGS


def test_secrets_to_make_are_listed() -> None:
    rows = re.findall(r"(?m)^ *\| `(flashhead-[a-z-]+)` \| `([\w.]+)`", README)
    assert dict(rows) == MADE_BY_USER | {"flashhead-registry": ".dockerconfigjson"}


def test_commands_of_ours_parse() -> None:
    ours = commands("flashhead-serve")
    assert {words[1] for words in ours} >= {"check-config", "new-key"}
    for words in ours:
        if words[1] != "--version":
            assert _parser().parse_args(words[1:]).command


def test_make_knows_its_targets() -> None:
    targets = {word for words in commands("make") for word in words[1:] if "=" not in word}
    assert targets == {"image", "push", "manifests"}
    for target in targets:
        result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.skipif(kubectl_missing(), reason="kubectl, which builds the overlays, is not installed")
def test_objects_it_looks_at_exist() -> None:
    documents = build("single-4090")
    jobs = {document["metadata"]["name"] for document in of_kind(documents, "Job")}
    assert set(re.findall(r"job[/ ](flashhead-[a-z]+)", README)) == jobs
    [job] = of_kind(documents, "Job")
    pod = job["spec"]["template"]["spec"]
    containers = {container["name"] for container in pod["initContainers"] + pod["containers"]}
    assert set(re.findall(r"job/flashhead-models -c (\w+)", README)) == containers


def test_capacity_table_follows_its_formula() -> None:
    def row(name: str) -> list[int]:
        [cells] = re.findall(rf"(?m)^\| {re.escape(name)} \|(.+)\|$", README)
        return [int(cell) for cell in cells.split("|")]

    [application] = yaml.safe_load((ROOT / "configs" / "serve.fleet.yaml").read_text())["applications"]
    [model] = AppSettings.model_validate(application["args"]).models
    [generator] = [each for each in application["deployments"] if each["name"].startswith("FlashHead")]
    scaling = ScalingSettings(**generator["autoscaling_config"]["policy"]["policy_kwargs"])
    per_gpu = math.floor(0.96 * model.max_utilisation / 0.25)

    def asked_for(streams: int) -> int:
        full = [per_gpu] * (streams // per_gpu) + [streams % per_gpu] * (streams % per_gpu > 0)
        reports = [ReplicaReport(held, 0, per_gpu, model.max_sessions, 0, 0) for held in full]
        return needed_replicas(reports, scaling)

    streams = row("streams at peak")
    assert row("GPUs full to the last place") == [math.ceil(n / per_gpu) for n in streams]
    assert row("GPUs the autoscaler asks for") == [asked_for(n) for n in streams]
    assert row("GPUs where one node may be lost") == [asked_for(n) + 1 for n in streams]
    cores = [math.ceil(n / 12) + math.ceil(n / 16) for n in streams]
    assert row("cores for Encoder and Ingress") == cores
