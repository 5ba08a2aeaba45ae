"""Many requests through the shipped graph: memory stays flat, nothing is left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from graph.live import animate, form, processes, replicas
from graph.test_graph import speech

WARM_UP, REQUESTS = 120, 200
ALLOWED_GROWTH = 0.05
DEPLOYMENTS = ["Ingress", "AudioEncoder", "FlashHeadGenerator-tiny", "Encoder"]


def memory_mb(process: psutil.Process) -> float:
    """Private memory: what a leak would grow, without Ray's shared object store."""
    return process.memory_full_info().uss / 1e6


def measure() -> dict[str, float]:
    """Private megabytes of the proxy, and of each deployment's replicas with their decode workers."""
    proxies = processes("ray::ProxyActor")
    assert proxies
    return {"proxy": sum(memory_mb(proxy) for proxy in proxies)} | {
        name: sum(memory_mb(p) for replica in replicas(name) for p in [replica, *replica.children()])
        for name in DEPLOYMENTS
    }


def animate_many(url: str, count: int) -> None:
    files = form(audio=speech(1.5))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda seed: animate(url, files, seed=seed).status_code, range(count)))
    assert answers == [200] * count


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_flat_over_many_requests(graph: str) -> None:
    animate_many(graph, WARM_UP)
    before = measure()
    descriptors = {name: sum(p.num_fds() for p in replicas(name)) for name in DEPLOYMENTS}
    animate_many(graph, REQUESTS)
    after = measure()
    print({name: (round(before[name]), round(after[name])) for name in before})
    for name in before:
        assert after[name] < before[name] * (1 + ALLOWED_GROWTH) + 10, (name, before[name], after[name])
    for name in DEPLOYMENTS:
        assert sum(p.num_fds() for p in replicas(name)) <= descriptors[name] + 20
