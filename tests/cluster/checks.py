"""What must be true of an overlay. Each check gives a line for every problem it finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import kubernetes_validate

from serve_app.check.report import check_config
from serve_app.config import AppSettings

from cluster import network
from cluster.manifests import (
    Document,
    Pod,
    locked,
    of_kind,
    pods,
    quantity,
    ray_cluster,
    schema,
    selects,
    serve_config,
    the,
)

KUBERNETES = "1.34"
CUSTOM = {"RayService": "rayservice", "PodMonitor": "podmonitor", "PrometheusRule": "prometheusrule"}
"""Kinds that are not Kubernetes' own, and their schemas."""

MADE_BY_USER = {
    "flashhead-ray-token": "auth_token",
    "flashhead-redis": "password",
    "flashhead-keys": "keys.yaml",
    "flashhead-tls": "tls.crt",
    "flashhead-registry": ".dockerconfigjson",
    "flashhead-hub": "token",
}
"""Secrets, and what they must hold: cluster/README.md says how to make them."""

MADE_BY_KUBERAY = {"Service": {"flashhead-serve-svc"}}
MADE_BY_CERT_MANAGER = Pod(
    "cert-manager's solver",
    {"acme.cert-manager.io/http01-solver": "true"},
    {"containers": [{"ports": [{"name": "http", "containerPort": 8089}]}]},
)
"""Its pod for an HTTP-01 challenge, which no overlay describes."""

AGENT_PORT = 52365
"""Ray's agent on every node (``--dashboard-agent-listen-port``): it knows whether the node is well."""
ASKING = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle")

THIRD_PARTY = re.compile(r"valkey/valkey:\d+\.\d+")
DRAIN_START_S = 20
"""How long the drain command itself may take before the wait begins."""


def invalid(documents: list[Document]) -> Iterator[str]:
    """Objects that their schema refuses."""
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] in CUSTOM:
            validator = jsonschema.Draft202012Validator(schema(CUSTOM[document["kind"]]))
            yield from (f"{name}: {e.json_path}: {e.message}" for e in validator.iter_errors(document))
            continue
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {error.message}"


def unfilled(documents: list[Document]) -> Iterator[str]:
    """Parameters that no overlay filled in."""
    for path, value in _leaves(documents):
        if isinstance(value, str) and re.fullmatch(r"[A-Z]+_?[A-Z]+", value) and value not in KEYWORDS:
            yield f"{path}: {value} is a parameter without a value"


KEYWORDS = {"ALL", "TCP", "UDP", "MODELS", "HUB_ENDPOINT", "HF_TOKEN", "REDISCLI_AUTH", "HOME"}


def undefined(documents: list[Document]) -> Iterator[str]:
    """Names of secrets, claims, config maps, accounts and services that nothing defines."""
    for kind, name, where in _references(documents):
        defined = {document["metadata"]["name"] for document in of_kind(documents, kind)}
        known = MADE_BY_USER if kind == "Secret" else MADE_BY_KUBERAY.get(kind, ())
        if name not in defined and name not in known:
            yield f"{where}: {kind} {name} is not defined"
    for path, value in _nodes(documents):
        if path.endswith(".secretKeyRef") and value["key"] != MADE_BY_USER.get(value["name"], value["key"]):
            yield f"{path}: Secret {value['name']} holds {MADE_BY_USER[value['name']]}, not {value['key']}"


def _references(documents: list[Document]) -> Iterator[tuple[str, str, str]]:
    keys = {
        "secretKeyRef": ("Secret", "name"),
        "secret": ("Secret", "secretName"),
        "authOptions": ("Secret", "secretName"),
        "configMapRef": ("ConfigMap", "name"),
        "configMapKeyRef": ("ConfigMap", "name"),
        "configMap": ("ConfigMap", "name"),
        "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
    }
    for path, value in _nodes(documents):
        key = path.rsplit(".", 1)[-1]
        if key in keys and isinstance(value, dict):
            kind, field = keys[key]
            yield kind, value[field], path
        elif key == "imagePullSecrets":
            yield from (("Secret", item["name"], path) for item in value)
        elif key == "serviceAccountName":
            yield "ServiceAccount", value, path
        elif key == "redisAddress":
            yield "Service", value.split(":")[0], path
    for ingress in of_kind(documents, "Ingress"):
        for tls in ingress["spec"]["tls"]:
            yield "Secret", tls["secretName"], "Ingress"
        for rule in ingress["spec"]["rules"]:
            for http in rule["http"]["paths"]:
                yield "Service", http["backend"]["service"]["name"], "Ingress"


def wrong_versions(documents: list[Document]) -> Iterator[str]:
    """Images that are not ours and not pinned, and a Ray version that is not the image's."""
    version = ray_cluster(documents)["rayVersion"]
    if version != locked("ray"):
        yield f"rayVersion {version} is not requirements.lock's {locked('ray')}"
    ours = ray_cluster(documents)["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    if not re.fullmatch(r"(\S+/)?flashhead-serve(:[\w.-]+|@sha256:[0-9a-f]{64})", ours):
        yield f"image {ours} is not flashhead-serve with a tag or digest"
    for pod in pods(documents):
        for container in pod.containers:
            image = container["image"]
            if (image != ours and not THIRD_PARTY.match(image)) or image.endswith(":latest"):
                yield f"{pod.owner}: image {image} is neither {ours} nor a pinned one"


def unmatched(documents: list[Document]) -> Iterator[str]:
    """Selectors that take no pod."""
    every = [*pods(documents), MADE_BY_CERT_MANAGER]
    for where, selector in _selectors(documents):
        if selector and not any(selects(selector, pod.labels) for pod in every):
            yield f"{where}: no pod has the labels {selector}"
    for pod in every:
        if "app.kubernetes.io/name" in pod.labels:
            yield f"{pod.owner}: app.kubernetes.io/name is KubeRay's: its services select it"


def _selectors(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        spec = document.get("spec", {})
        if document["kind"] in ("PodDisruptionBudget", "PodMonitor", "StatefulSet"):
            yield where, spec["selector"]
        elif document["kind"] == "Service":
            yield where, {"matchLabels": spec["selector"]}
        elif document["kind"] == "NetworkPolicy":
            yield where, spec["podSelector"]
            for rule in spec.get("ingress", []) + spec.get("egress", []):
                for peer in rule.get("from", []) + rule.get("to", []):
                    if "namespaceSelector" not in peer and "podSelector" in peer:
                        yield where, peer["podSelector"]
    for path, value in _nodes([the(documents, "RayService")]):
        if path.endswith(".labelSelector"):
            yield path, value


def unknown_ports(documents: list[Document]) -> Iterator[str]:
    """Ports that are asked for and that no selected container has, and probes of ports nobody listens on."""
    every = [*pods(documents), MADE_BY_CERT_MANAGER]
    for policy in of_kind(documents, "NetworkPolicy"):
        selected = [pod for pod in every if selects(policy["spec"]["podSelector"], pod.labels)]
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if not any(port["port"] in _ports(pod).values() for pod in selected):
                    yield f"NetworkPolicy {policy['metadata']['name']}: nothing listens on {port['port']}"
    for monitor in of_kind(documents, "PodMonitor"):
        for pod in every:
            if selects(monitor["spec"]["selector"], pod.labels):
                for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                    if endpoint["port"] not in _ports(pod):
                        yield f"PodMonitor: {pod.owner} has no port {endpoint['port']}"
    listening = serve_config(documents)["http_options"]["port"]
    for pod in every:
        if "serve" in _ports(pod) and _ports(pod)["serve"] != listening:
            yield f"{pod.owner}: port serve is {_ports(pod)['serve']}, Serve listens on {listening}"
        for port in _probed(pod) - set(_ports(pod).values()) - {AGENT_PORT}:
            yield f"{pod.owner}: a probe asks port {port}, on which nothing listens"
    [rule] = the(documents, "Ingress")["spec"]["rules"]
    asked = rule["http"]["paths"][0]["backend"]["service"]["port"].get("name")
    if asked not in _ports(next(pod for pod in every if pod.component == "head")):
        yield f"Ingress: KubeRay's service takes its ports from the head, which has none named {asked}"


def _ports(pod: Pod) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for c in pod.containers for port in c.get("ports", [])}


def _probed(pod: Pod) -> set[int]:
    """Ports that the kubelet's probes and hooks ask, those in commands too."""
    probes = [container.get(name, {}) for container in pod.containers for name in ASKING]
    called = {value for _, value in _nodes(probes) if isinstance(value, str)}
    named = {value["port"] for _, value in _nodes(probes) if isinstance(value, dict) and "port" in value}
    return named | {int(port) for text in called for port in re.findall(r"localhost:(\d+)", text)}


def cut_off(documents: list[Document]) -> Iterator[str]:
    """Traffic that is needed and that a policy stops."""
    yield from network.cut_off(documents, list(pods(documents)))


def unconfined(documents: list[Document]) -> Iterator[str]:
    """Containers with more rights than they need, or without bounds."""
    for pod in pods(documents):
        whole = pod.spec.get("securityContext", {})
        if not whole.get("runAsNonRoot") or whole.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.owner}: may run as root, or without seccomp"
        if pod.component != "head" and pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: carries a token of the Kubernetes API"
        containers = [(f"{pod.owner}, {container['name']}", container) for container in pod.containers]
        if pod.component == "head":
            containers.append(("autoscaler", ray_cluster(documents)["autoscalerOptions"]))
        for name, container in containers:
            yield from (f"{name}: {problem}" for problem in _liberties(container))


def _liberties(container: Document) -> Iterator[str]:
    rights = container.get("securityContext", {})
    if rights.get("allowPrivilegeEscalation") is not False or rights.get("privileged"):
        yield "may gain privileges"
    if rights.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if not rights.get("readOnlyRootFilesystem"):
        yield "may write to its root file system"
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
        yield "has no memory limit or no CPU request"
    for name, asked in resources.get("requests", {}).items():
        if name in resources.get("limits", {}) and quantity(asked) > quantity(resources["limits"][name]):
            yield f"asks for more {name} than its limit"


def exposed(documents: list[Document]) -> Iterator[str]:
    """Ways to Ray's control plane from outside."""
    cluster = ray_cluster(documents)
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "Ray's token authentication is off"
    if cluster["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
        yield "the head's service is open to the outside"
    nothing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if not any(policy["spec"] == nothing for policy in of_kind(documents, "NetworkPolicy")):
        yield "no NetworkPolicy denies what is not allowed"
    for policy in of_kind(documents, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from"):
                yield f"NetworkPolicy {policy['metadata']['name']}: lets everybody in"


def impatient(documents: list[Document]) -> Iterator[str]:
    """Times that cut streams, and sizes that refuse uploads the application takes."""
    [application] = serve_config(documents)["applications"]
    limits = AppSettings.model_validate(application["args"]).limits
    longest_s = limits.max_audio_s
    spec = the(documents, "RayService")["spec"]
    kept_s = spec.get("rayClusterDeletionDelaySeconds", 60)
    if spec["upgradeStrategy"]["type"] == "NewCluster" and kept_s < longest_s:
        yield f"rayClusterDeletionDelaySeconds {kept_s} cuts videos of {longest_s:g} s at an upgrade"
    graces = {d["name"]: d.get("graceful_shutdown_timeout_s", 20) for d in application["deployments"]}
    hand_over_s = max(graces.values())
    if graces["Ingress"] <= longest_s:
        yield f"Ingress: graceful_shutdown_timeout_s {graces['Ingress']} cuts videos of {longest_s:g} s"
    for pod in pods(documents):
        if pod.component in ("cpu-worker", "gpu-worker"):
            yield from _impatient_worker(pod, hand_over_s)
    annotations = the(documents, "Ingress")["metadata"]["annotations"]
    for name, value in annotations.items():
        if name.endswith("-timeout") and float(value.removesuffix("s")) <= longest_s:
            yield f"{name} {value} cuts videos of {longest_s:g} s"
        if name.endswith("body-size") and int(value.removesuffix("m")) * 2**20 <= limits.max_form_bytes:
            yield f"{name} {value} refuses forms of max_form_bytes={limits.max_form_bytes}"
        if name.endswith("buffering") and value not in ("off", "False"):
            yield f"{name} {value} holds clusters back"


def _impatient_worker(pod: Pod, hand_over_s: float) -> Iterator[str]:
    command = pod.spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    [deadline_s] = [int(s) for s in re.findall(r"--deadline-remaining-seconds (\d+)", command)]
    [wait_s] = [int(s) for s in re.findall(r"\{1\.\.(\d+)\}", command)]
    grace_s = pod.spec["terminationGracePeriodSeconds"]
    if not hand_over_s < min(deadline_s, wait_s) <= max(deadline_s, wait_s) + DRAIN_START_S < grace_s:
        yield (
            f"{pod.owner}: hand-over {hand_over_s:g} s, drain {deadline_s} s, wait {wait_s} s and"
            f" terminationGracePeriodSeconds {grace_s} must grow in this order"
        )


def too_small(documents: list[Document]) -> Iterator[str]:
    """Replicas that the worker groups could never hold."""
    groups = {group["groupName"]: group for group in ray_cluster(documents)["workerGroupSpecs"]}
    [application] = serve_config(documents)["applications"]
    deployments = application["deployments"]
    for bound in ("min", "max"):
        for what in ("cpu", "gpu"):
            asked = sum(
                _replicas(d, bound) * d["ray_actor_options"].get(f"num_{what}s", 0) for d in deployments
            )
            held = sum(group[f"{bound}Replicas"] * _offers(group, what) for group in groups.values())
            if asked > held:
                yield f"{bound} replicas ask for {asked:g} {what}s, {bound} workers have {held:g}"
    for deployment in deployments:
        wanted = deployment["ray_actor_options"].get("label_selector", {})
        if not any(wanted.items() <= group.get("labels", {}).items() for group in groups.values()):
            yield f"{deployment['name']}: no worker group has the labels {wanted}"
    for name, group in groups.items():
        container = group["template"]["spec"]["containers"][0]
        store = int(group["rayStartParams"]["object-store-memory"])
        if store * 2 > quantity(container["resources"]["limits"]["memory"]):
            yield f"{name}: the object store takes more than half of the memory limit"
    if ray_cluster(documents)["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes work"


def _replicas(deployment: Document, bound: str) -> int:
    return int(
        deployment.get("autoscaling_config", {}).get(f"{bound}_replicas", deployment.get("num_replicas"))
    )


def _offers(group: Document, what: str) -> float:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return quantity(limits.get("cpu" if what == "cpu" else "nvidia.com/gpu", 0))


def scattered(documents: list[Document]) -> Iterator[str]:
    """Claims that one node alone can mount, with pods that may be placed on several."""
    for claim in of_kind(documents, "PersistentVolumeClaim"):
        name = claim["metadata"]["name"]
        users = [pod for pod in pods(documents) if name in _claims(pod)]
        selected = {pod.owner: pod.spec.get("nodeSelector", {}) for pod in users}
        same = all(nodes and nodes == users[0].spec.get("nodeSelector") for nodes in selected.values())
        if "ReadWriteMany" not in claim["spec"]["accessModes"] and len(users) > 1 and not same:
            yield f"{name}: one node mounts it, and its pods select {selected}"


def _claims(pod: Pod) -> set[str]:
    volumes = pod.spec.get("volumes", [])
    return {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}


def repelled(documents: list[Document]) -> Iterator[str]:
    """Pods that select GPU nodes and do not tolerate the taint of such nodes."""
    for pod in pods(documents):
        tolerated = {toleration["key"] for toleration in pod.spec.get("tolerations", [])}
        if "nvidia.com/gpu.product" in pod.spec.get("nodeSelector", {}) and "nvidia.com/gpu" not in tolerated:
            yield f"{pod.owner}: selects GPU nodes and does not tolerate the taint nvidia.com/gpu"


def uncountable(documents: list[Document]) -> Iterator[str]:
    """Disruption budgets that need a scale subresource, which KubeRay's pods have none of."""
    rays = [pod for pod in pods(documents) if pod.owner.startswith("RayService")]
    for budget in of_kind(documents, "PodDisruptionBudget"):
        spec = budget["spec"]
        counted = isinstance(spec.get("minAvailable"), int)
        if not counted and any(selects(spec["selector"], pod.labels) for pod in rays):
            yield f"{budget['metadata']['name']}: refuses every eviction without an integer minAvailable"


def unmounted(documents: list[Document]) -> Iterator[str]:
    """Files of the serve config that the pods do not have."""
    [application] = serve_config(documents)["applications"]
    settings = AppSettings.model_validate(application["args"])
    workers = [pod for pod in pods(documents) if pod.component.endswith("worker")]
    for pod in workers:
        if not _holds_secret(pod, settings.keys.file, "flashhead-keys"):
            yield f"{pod.owner}: keys.file={settings.keys.file} is not in the secret flashhead-keys"
    generators = [pod for pod in workers if pod.component == "gpu-worker"] or workers
    for model in settings.models:
        for pod in generators:
            mounted = {mount["mountPath"] for mount in pod.spec["containers"][0]["volumeMounts"]}
            if model.checkpoint != "embedded" and model.checkpoint not in mounted:
                yield f"{pod.owner}: nothing is mounted at the checkpoint {model.checkpoint}"
    released = {model.name for model in settings.models if model.checkpoint != "embedded"}
    for pod in pods(documents):
        for container in pod.containers:
            given = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
            if "MODELS" in given and not released <= set(given["MODELS"].split(",")):
                yield f"{pod.owner}, {container['name']}: has {given['MODELS']}, serves {sorted(released)}"


def _holds_secret(pod: Pod, file: str | None, secret: str) -> bool:
    volumes = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in pod.spec["volumes"]}
    held = {
        f"{mount['mountPath']}/{MADE_BY_USER[secret]}"
        for mount in pod.spec["containers"][0]["volumeMounts"]
        if volumes[mount["name"]] == secret
    }
    return file in held


def misconfigured(documents: list[Document]) -> Iterator[str]:
    """What `flashhead-serve check-config --strict` says of the serve config, on the GPUs there always are."""
    groups = ray_cluster(documents)["workerGroupSpecs"]
    gpus = int(sum(group["minReplicas"] * _offers(group, "gpu") for group in groups))
    report = check_config(the(documents, "RayService")["spec"]["serveConfigV2"], gpus)
    if report.fails(strict=True):
        yield report.to_text("serveConfigV2")


CHECKS: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    invalid,
    unfilled,
    undefined,
    wrong_versions,
    unmatched,
    unknown_ports,
    cut_off,
    unconfined,
    exposed,
    impatient,
    too_small,
    scattered,
    repelled,
    uncountable,
    unmounted,
    misconfigured,
)


def problems(documents: list[Document]) -> list[str]:
    """Everything that is wrong with an overlay."""
    return [problem for check in CHECKS for problem in check(documents)]


def _nodes(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below this one, with its path."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield f"{path}.{key}", child
        yield from _nodes(child, f"{path}.{key}")


def _leaves(documents: list[Document]) -> Iterator[tuple[str, Any]]:
    return ((path, value) for path, value in _nodes(documents) if not isinstance(value, dict | list))
