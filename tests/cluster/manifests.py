"""Overlays built by kubectl, and the pods they describe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / "cluster" / "overlays"
CONFIGS = {
    "single-4090": "serve.4090.yaml",
    "fleet": "serve.fleet.yaml",
    "cpu-demo": "serve.cpu.yaml",
}
"""Each overlay and its serve config in configs/."""

Document = dict[str, Any]


@cache
def _built(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(OVERLAYS / overlay)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def build(overlay: str) -> list[Document]:
    """Every object of an overlay, as `kubectl apply -k` would send it."""
    return list(yaml.safe_load_all(_built(overlay)))


def kubectl_missing() -> bool:
    """Whether overlays cannot be built here."""
    return shutil.which("kubectl") is None


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    """The objects of one kind."""
    return [document for document in documents if document["kind"] == kind]


def the(documents: list[Document], kind: str) -> Document:
    """The one object of its kind."""
    [document] = of_kind(documents, kind)
    return document


def locked(package: str) -> str:
    """A package's version in requirements.lock."""
    [version] = re.findall(rf"(?m)^{package}==(\S+)$", (ROOT / "requirements.lock").read_text())
    return str(version)


@dataclass(frozen=True)
class Pod:
    """A pod template: where it stands, its labels and its spec."""

    owner: str
    labels: dict[str, str]
    spec: Document

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Document]:
        return self.spec.get("initContainers", []) + self.spec["containers"]


def ray_cluster(documents: list[Document]) -> Document:
    """The RayCluster spec of the RayService."""
    return the(documents, "RayService")["spec"]["rayClusterConfig"]


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Every pod template."""
    for document in documents:
        if document["kind"] in ("Job", "StatefulSet", "Deployment"):
            yield _pod(f"{document['kind']} {document['metadata']['name']}", document["spec"]["template"])
    cluster = ray_cluster(documents)
    yield _pod("RayService head", cluster["headGroupSpec"]["template"])
    for group in cluster["workerGroupSpecs"]:
        yield _pod(f"RayService {group['groupName']}", group["template"])


def _pod(owner: str, template: Document) -> Pod:
    return Pod(owner, template["metadata"]["labels"], template["spec"])


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    matched = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return matched and all(_holds(rule, labels) for rule in selector.get("matchExpressions", []))


def _holds(rule: Document, labels: dict[str, str]) -> bool:
    value = labels.get(rule["key"])
    return {
        "In": lambda: value in rule["values"],
        "NotIn": lambda: value not in rule["values"],
        "Exists": lambda: value is not None,
        "DoesNotExist": lambda: value is None,
    }[rule["operator"]]()


def serve_config(documents: list[Document]) -> Document:
    """The RayService's serve config."""
    return yaml.safe_load(the(documents, "RayService")["spec"]["serveConfigV2"])


def schema(name: str) -> Document:
    """A JSON schema of tests/cluster/schemas."""
    return json.loads((Path(__file__).parent / "schemas" / f"{name}.schema.json").read_text())


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity: cores, or bytes."""
    match = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi|k|M|G)?", str(text))
    assert match, f"{text!r} is no quantity"
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9, None: 1}
    return float(match[1]) * units[match[2]]
