"""Every overlay: built by kubectl, valid, consistent, and about the serve config it says it is about."""

from __future__ import annotations

import json

import pytest
import yaml

from cluster.checks import problems
from cluster.manifests import (
    CONFIGS,
    OVERLAYS,
    ROOT,
    build,
    kubectl_missing,
    of_kind,
    pods,
    ray_cluster,
    the,
)

pytestmark = pytest.mark.skipif(
    kubectl_missing(), reason="kubectl, which builds the overlays, is not installed"
)


@pytest.fixture(params=CONFIGS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_nothing_is_wrong(overlay: str) -> None:
    assert problems(build(overlay)) == []


def test_its_serve_config_is_the_file_in_configs(overlay: str) -> None:
    file = (ROOT / "configs" / CONFIGS[overlay]).read_text()
    copied = (OVERLAYS / overlay / "serve.yaml").read_text()
    applied = the(build(overlay), "RayService")["spec"]["serveConfigV2"]
    assert copied == file, "copy it again: make manifests"
    assert applied == file
    assert yaml.safe_load(applied) == yaml.safe_load(file)


def test_every_overlay_is_checked() -> None:
    assert {path.name for path in OVERLAYS.iterdir()} == set(CONFIGS)


def test_parameters_reach_their_places() -> None:
    parameters = dict(
        line.split("=", 1)
        for line in (OVERLAYS / "fleet" / "params.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    text = yaml.safe_dump_all(build("fleet"))
    assert {name for name, value in parameters.items() if value not in text} == set()


def test_local_parameters_are_not_applied(overlay: str) -> None:
    names = {document["metadata"]["name"] for document in of_kind(build(overlay), "ConfigMap")}
    assert not names & {"parameters", "serve-config"}


def test_many_gpu_nodes_mount_one_volume() -> None:
    assert the(build("fleet"), "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert the(build("single-4090"), "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_gpu_workers_are_where_the_gpus_are() -> None:
    for overlay in ("single-4090", "fleet"):
        [gpu] = [g for g in ray_cluster(build(overlay))["workerGroupSpecs"] if g["groupName"] == "gpu-worker"]
        pod = gpu["template"]["spec"]
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-4090"}
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in yaml.safe_dump_all(build("cpu-demo"))


def test_one_gpu_node_holds_the_workers_and_the_job() -> None:
    every = {pod.component: pod.spec for pod in pods(build("single-4090"))}
    for component in ("models", "cpu-worker", "gpu-worker"):
        assert every[component]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-4090"}
    for pod in every.values():
        assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_the_certificate_solver_is_reached_from_the_ingress_controller_alone(overlay: str) -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind(build(overlay), "NetworkPolicy")}
    [solver] = policies["certificate-solver"]["ingress"]
    [clients] = policies["clients"]["ingress"]
    assert solver["from"] == clients["from"]


def test_prometheus_takes_the_monitor_and_the_rules() -> None:
    for overlay in ("single-4090", "fleet"):
        for kind in ("PodMonitor", "PrometheusRule"):
            labels = the(build(overlay), kind)["metadata"]["labels"]
            assert labels == {"release": "kube-prometheus-stack"}


def test_grafana_finds_the_dashboard() -> None:
    file = (ROOT / "cluster" / "base" / "monitoring" / "dashboard.json").read_text()
    for overlay in ("single-4090", "fleet"):
        [dashboard] = [m for m in of_kind(build(overlay), "ConfigMap") if "dashboard.json" in m["data"]]
        assert json.loads(dashboard["data"]["dashboard.json"]) == json.loads(file)
        assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert of_kind(build("cpu-demo"), "PodMonitor") == []
