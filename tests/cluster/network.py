"""Which traffic the NetworkPolicies of an overlay let through, against what its pods need."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.manifests import Document, Pod, of_kind, selects

OUTSIDE = None
"""What no overlay describes: DNS, the Kubernetes API, the model hub; the ingress controller, Prometheus and
KubeRay's operator."""

RAY = ("head", "cpu-worker", "gpu-worker")
RANDOM_PORT = 30_000
"""Ray picks its workers' ports."""

Flow = tuple[str | None, str | None, str, int]
"""From a component, to a component, protocol, port."""

NEEDED: tuple[Flow, ...] = (
    *((component, OUTSIDE, way, 53) for component in (*RAY, "redis", "models") for way in ("UDP", "TCP")),
    *((source, to, "TCP", port) for source in RAY for to in RAY for port in (6379, RANDOM_PORT)),
    ("head", "redis", "TCP", 6379),
    ("head", OUTSIDE, "TCP", 443),
    ("head", OUTSIDE, "TCP", 6443),
    ("models", OUTSIDE, "TCP", 443),
    (OUTSIDE, "head", "TCP", 8265),
    (OUTSIDE, "cpu-worker", "TCP", 8000),
    (OUTSIDE, "gpu-worker", "TCP", 8000),
    *((OUTSIDE, component, "TCP", 8080) for component in RAY),
)


def cut_off(documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    """Traffic that is needed and that a policy stops."""
    by_component = {pod.component: pod for pod in pods}
    policies = of_kind(documents, "NetworkPolicy")
    for source, to, protocol, port in NEEDED:
        if {source, to} - {OUTSIDE} <= by_component.keys():
            from_pod, to_pod = (by_component[name] if name else None for name in (source, to))
            leaves = from_pod is None or _passes(policies, "Egress", from_pod, to_pod, protocol, port)
            enters = to_pod is None or _passes(policies, "Ingress", to_pod, from_pod, protocol, port)
            if not (leaves and enters):
                flow = f"{source or 'outside'} to {to or 'outside'}"
                yield f"{flow}: no NetworkPolicy lets {protocol} {port} {'in' if leaves else 'out'}"


def _passes(
    policies: list[Document], direction: str, pod: Pod, peer: Pod | None, protocol: str, port: int
) -> bool:
    rules = (
        rule
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], pod.labels)
        for rule in policy["spec"].get(direction.lower(), [])
    )
    return any(_names(rule, protocol, port) and _meets(rule, direction, peer) for rule in rules)


def _names(rule: Document, protocol: str, port: int) -> bool:
    wanted = {"protocol": protocol, "port": port}
    return "ports" not in rule or wanted in rule["ports"]


def _meets(rule: Document, direction: str, peer: Pod | None) -> bool:
    peers = rule.get("to" if direction == "Egress" else "from")
    if peers is None:
        return True
    if peer is None:
        return any("namespaceSelector" in each or "ipBlock" in each for each in peers)
    return any(
        "namespaceSelector" not in each and selects(each.get("podSelector", {}), peer.labels)
        for each in peers
        if "ipBlock" not in each
    )
