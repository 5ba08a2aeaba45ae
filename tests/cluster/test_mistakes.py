"""Mistakes planted into a good overlay: each is found by the check that is there for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import checks
from cluster.manifests import Document, build, kubectl_missing, of_kind, ray_cluster, the

pytestmark = pytest.mark.skipif(
    kubectl_missing(), reason="kubectl, which builds the overlays, is not installed"
)


def worker(documents: list[Document], index: int = 0) -> Document:
    return ray_cluster(documents)["workerGroupSpecs"][index]


def container(documents: list[Document], index: int = 0) -> Document:
    return worker(documents, index)["template"]["spec"]["containers"][0]


def policy(documents: list[Document], name: str) -> Document:
    [found] = [p for p in of_kind(documents, "NetworkPolicy") if p["metadata"]["name"] == name]
    return found


def edit_serve_config(documents: list[Document], old: str, new: str) -> None:
    spec = the(documents, "RayService")["spec"]
    assert old in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new, 1)


Check = Callable[[list[Document]], Iterator[str]]
Mistake = Callable[[list[Document]], Any]
MISTAKES: list[tuple[Check, str, Mistake]] = [
    (checks.invalid, "idleTimeoutSecondz", lambda d: worker(d).update(idleTimeoutSecondz=60)),
    (checks.invalid, "readinessProb", lambda d: container(d).update(readinessProb={})),
    (checks.invalid, "backofLimit", lambda d: the(d, "Job")["spec"].update(backofLimit=1)),
    (checks.invalid, "prot", lambda d: the(d, "PodMonitor")["spec"].update(prot="metrics")),
    (
        checks.invalid,
        "exprr",
        lambda d: the(d, "PrometheusRule")["spec"]["groups"][0]["rules"][0].update(exprr="up"),
    ),
    (checks.invalid, "minReplicas", lambda d: worker(d).update(minReplicas="one")),
    (checks.wrong_versions, "rayVersion 2.59.0", lambda d: ray_cluster(d).update(rayVersion="2.59.0")),
    (
        checks.wrong_versions,
        "image valkey/valkey:latest",
        lambda d: _redis(d).update(image="valkey/valkey:latest"),
    ),
    (checks.wrong_versions, "neither", lambda d: container(d).update(image="rayproject/ray:2.60.0")),
    (
        checks.wrong_versions,
        "tag or digest",
        lambda d: _set_images(d, "registry.example.com/flashhead-serve"),
    ),
    (
        checks.unfilled,
        "INGRESS_CLASS",
        lambda d: the(d, "Ingress")["spec"].update(ingressClassName="INGRESS_CLASS"),
    ),
    (checks.undefined, "Secret keys", lambda d: _volume(d, "keys")["secret"].update(secretName="keys")),
    (checks.undefined, "PersistentVolumeClaim weights", lambda d: _claim(d).update(claimName="weights")),
    (
        checks.undefined,
        "ConfigMap ray-env",
        lambda d: container(d)["envFrom"][0]["configMapRef"].update(name="ray-env"),
    ),
    (
        checks.undefined,
        "ServiceAccount robot",
        lambda d: worker(d)["template"]["spec"].update(serviceAccountName="robot"),
    ),
    (
        checks.undefined,
        "Service redis",
        lambda d: ray_cluster(d)["gcsFaultToleranceOptions"].update(redisAddress="redis:6379"),
    ),
    (
        checks.undefined,
        "holds password, not passwd",
        lambda d: ray_cluster(d)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"][
            "secretKeyRef"
        ].update(key="passwd"),
    ),
    (
        checks.unmatched,
        "no pod has the labels",
        lambda d: the(d, "StatefulSet")["spec"]["selector"]["matchLabels"].update({"a": "b"}),
    ),
    (
        checks.unmatched,
        "KubeRay's",
        lambda d: worker(d)["template"]["metadata"]["labels"].update({"app.kubernetes.io/name": "x"}),
    ),
    (
        checks.unknown_ports,
        "nothing listens on 8001",
        lambda d: policy(d, "clients")["spec"]["ingress"][0]["ports"][0].update(port=8001),
    ),
    (
        checks.unknown_ports,
        "nothing listens on 8088",
        lambda d: policy(d, "certificate-solver")["spec"]["ingress"][0]["ports"][0].update(port=8088),
    ),
    (
        checks.unknown_ports,
        "no port metrics",
        lambda d: container(d).update(ports=[{"name": "serve", "containerPort": 8000}]),
    ),
    (
        checks.unknown_ports,
        "Serve listens on 9000",
        lambda d: edit_serve_config(d, "port: 8000", "port: 9000"),
    ),
    (
        checks.unknown_ports,
        "a probe asks port 52366",
        lambda d: container(d)["livenessProbe"]["httpGet"].update(port=52366),
    ),
    (
        checks.unknown_ports,
        "a probe asks port 8001",
        lambda d: _replace(container(d)["readinessProbe"]["exec"]["command"], ":8000", ":8001"),
    ),
    (checks.cut_off, "UDP 53 out", lambda d: d.remove(policy(d, "dns"))),
    (checks.cut_off, "head to redis", lambda d: d.remove(policy(d, "head-to-redis"))),
    (checks.cut_off, "TCP 8000 in", lambda d: d.remove(policy(d, "clients"))),
    (
        checks.cut_off,
        "cpu-worker to gpu-worker: no NetworkPolicy lets TCP 30000 in",
        lambda d: policy(d, "between-ray-pods")["spec"]["ingress"][0].update(
            ports=[{"protocol": "TCP", "port": 6379}]
        ),
    ),
    (
        checks.unconfined,
        "root",
        lambda d: worker(d)["template"]["spec"]["securityContext"].update(runAsNonRoot=False),
    ),
    (checks.unconfined, "capabilities", lambda d: container(d)["securityContext"].pop("capabilities")),
    (
        checks.unconfined,
        "root file system",
        lambda d: container(d)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    (checks.unconfined, "no memory limit", lambda d: container(d)["resources"].pop("limits")),
    (
        checks.exposed,
        "open to the outside",
        lambda d: ray_cluster(d)["headGroupSpec"].update(serviceType="LoadBalancer"),
    ),
    (checks.exposed, "lets everybody in", lambda d: policy(d, "clients")["spec"]["ingress"][0].pop("from")),
    (checks.exposed, "denies", lambda d: d.remove(policy(d, "default-deny"))),
    (checks.exposed, "token authentication", lambda d: ray_cluster(d).pop("authOptions")),
    (
        checks.impatient,
        "must grow",
        lambda d: worker(d)["template"]["spec"].update(terminationGracePeriodSeconds=30),
    ),
    (
        checks.impatient,
        "must grow",
        lambda d: edit_serve_config(d, "graceful_shutdown_timeout_s: 6", "graceful_shutdown_timeout_s: 9"),
    ),
    (
        checks.impatient,
        "rayClusterDeletionDelaySeconds",
        lambda d: the(d, "RayService")["spec"].update(rayClusterDeletionDelaySeconds=60),
    ),
    (
        checks.impatient,
        "cuts videos",
        lambda d: _annotate(d, "nginx.ingress.kubernetes.io/proxy-read-timeout", "60"),
    ),
    (
        checks.impatient,
        "holds clusters back",
        lambda d: _annotate(d, "nginx.ingress.kubernetes.io/proxy-buffering", "on"),
    ),
    (
        checks.impatient,
        "refuses forms",
        lambda d: _annotate(d, "nginx.ingress.kubernetes.io/proxy-body-size", "1m"),
    ),
    (checks.too_small, "gpus", lambda d: worker(d, 1).update(maxReplicas=2)),
    (checks.too_small, "label", lambda d: worker(d).pop("labels")),
    (
        checks.too_small,
        "the head takes work",
        lambda d: ray_cluster(d)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
    ),
    (
        checks.scattered,
        "RayService gpu-worker",
        lambda d: the(d, "PersistentVolumeClaim")["spec"].update(accessModes=["ReadWriteOnce"]),
    ),
    (
        checks.repelled,
        "RayService gpu-worker",
        lambda d: worker(d, 1)["template"]["spec"].pop("tolerations"),
    ),
    (checks.uncountable, "flashhead-gpu-worker", lambda d: _use_max_unavailable(d)),
    (checks.unmounted, "keys.file", lambda d: edit_serve_config(d, "/etc/flashhead/keys/", "/etc/keys/")),
    (
        checks.unmounted,
        "/weights",
        lambda d: edit_serve_config(d, "checkpoint: /models", "checkpoint: /weights"),
    ),
    (
        checks.unmounted,
        "has pro, serves ['lite']",
        lambda d: the(d, "Job")["spec"]["template"]["spec"]["containers"][0]["env"][0].update(value="pro"),
    ),
    (
        checks.misconfigured,
        "max_ongoing_requezts",
        lambda d: edit_serve_config(d, "num_replicas: 6", "num_replicas: 6\n        max_ongoing_requezts: 5"),
    ),
]


def _replace(command: list[str], old: str, new: str) -> None:
    assert old in command[-1]
    command[-1] = command[-1].replace(old, new)


def _redis(documents: list[Document]) -> Document:
    return the(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]


def _volume(documents: list[Document], name: str) -> Document:
    [volume] = [v for v in worker(documents)["template"]["spec"]["volumes"] if v["name"] == name]
    return volume


def _claim(documents: list[Document]) -> Document:
    volumes = the(documents, "Job")["spec"]["template"]["spec"]["volumes"]
    return next(v["persistentVolumeClaim"] for v in volumes if "persistentVolumeClaim" in v)


def _use_max_unavailable(documents: list[Document]) -> None:
    for budget in of_kind(documents, "PodDisruptionBudget"):
        budget["spec"].pop("minAvailable", None)
        budget["spec"]["maxUnavailable"] = 1


def _set_images(documents: list[Document], image: str) -> None:
    ray_cluster(documents)["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = image


def _annotate(documents: list[Document], name: str, value: str) -> None:
    annotations = the(documents, "Ingress")["metadata"]["annotations"]
    assert name in annotations
    annotations[name] = value


@pytest.mark.parametrize(
    ("check", "said", "make"), MISTAKES, ids=[f"{check.__name__}-{said}" for check, said, _ in MISTAKES]
)
def test_a_mistake_is_found(check: Check, said: str, make: Mistake) -> None:
    documents = copy.deepcopy(build("fleet"))
    assert list(check(documents)) == []
    make(documents)
    found = list(check(documents))
    assert any(said in problem for problem in found), found


def test_every_check_catches_a_mistake() -> None:
    assert {check for check, _, _ in MISTAKES} == set(checks.CHECKS)
