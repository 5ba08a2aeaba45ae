"""Two GPU nodes and two CPU nodes on this host, and the fleet's graph on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.host_cluster import GENERATOR, HostCluster, host_cluster, shipped
from graph.live import with_replicas


@pytest.fixture(scope="package")
def cluster() -> Iterator[HostCluster]:
    """A head node without work."""
    with host_cluster() as running:
        yield running


@pytest.fixture
def fleet(cluster: HostCluster) -> HostCluster:
    """``serve.fleet.yaml`` on two nodes of each kind, those an earlier test lost replaced.

    Numbers of replicas are fixed, so that the autoscaler changes nothing while a test looks, and encoders
    keep to one a node, so that a test can tell where they are.
    """
    cluster.ensure("cpu-0", "cpu-1", "gpu-0", "gpu-1")
    counts = {"Ingress": 1, "AudioEncoder": 2, "FlashHeadGenerator": 2, "Encoder": 2}
    config = with_replicas(shipped("serve.fleet.yaml"), **counts)
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Encoder":
            deployment["max_replicas_per_node"] = 1
    cluster.deploy(config)
    cluster.wait_for(GENERATOR, ["gpu-0", "gpu-1"])
    cluster.wait_for("AudioEncoder", ["gpu-0", "gpu-1"])
    cluster.wait_for("Encoder", ["cpu-0", "cpu-1"])
    return cluster
