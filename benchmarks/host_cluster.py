"""A Ray cluster of several nodes on this host, the graph on it, and the loss of a node.

The head offers no CPU, so that nothing is placed beside the GCS and the Serve controller, as in production.
GPUs are declared, not driven. A node is lost in one of two ways: killed, when its connections are reset at
once, or silent, when nothing says that it is gone, as after a power cut or a broken link.
"""

from __future__ import annotations

import copy
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray import serve
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from serve_app.client.remote import wait_until_ready

LOSS_DETECTION = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 600,
    "health_check_failure_threshold": 4,
}
"""Ray's settings by which the GCS gives a silent node up: each of four checks takes the period and, while
nothing answers, the time-out, 3.6 s in all; Ray's own values take tens of seconds. In production they are
environment variables of the head, ``RAY_health_check_period_ms`` and so on."""
APP = "flashhead"
DEPLOY_TIMEOUT_S = 180.0
GENERATOR = "FlashHeadGenerator-tiny"
NODES: dict[str, dict[str, Any]] = {
    "cpu": {"num_cpus": 8, "labels": {"flashhead.io/node": "cpu"}},
    "gpu": {"num_cpus": 4, "num_gpus": 1, "labels": {"flashhead.io/node": "gpu"}},
}
"""What ``ray start`` would be told of each kind of node."""
CONFIGS = Path(__file__).parents[1] / "configs"


class HostCluster:
    """Named Ray nodes on this host. Clients reach the graph at ``url``, through the head's proxy."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.nodes: dict[str, Node] = {}
        self._cluster = cluster
        self._port = port

    def ensure(self, *names: str) -> None:
        """Start those of the nodes that are not there; a name begins with what it is, ``cpu`` or ``gpu``."""
        for name in names:
            if name not in self.nodes:
                self.nodes[name] = self._cluster.add_node(**NODES[name.split("-")[0]])

    def kill(self, name: str) -> None:
        """End all processes of a node at once."""
        node = self.nodes.pop(name)
        signal_all(processes(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def silence(self, name: str) -> None:
        """Stop all processes of a node: its connections stay open and nothing answers."""
        signal_all(processes(self.nodes[name]), signal.SIGSTOP)

    def wait_until_given_up(self, name: str, timeout_s: float = 60) -> None:
        """Until Ray calls a node dead."""
        node_id = self.nodes[name].node_id

        def given_up() -> bool:
            return any(node["NodeID"] == node_id and not node["Alive"] for node in ray.nodes())

        wait_until(given_up, f"{name} is given up", timeout_s)

    def restart_gcs(self) -> None:
        """Kill the GCS process and start another on the same port over the same storage."""
        head = self._cluster.head_node
        head.kill_gcs_server()
        head.start_gcs_server()

    def deploy(self, config: dict[str, Any]) -> None:
        """Deploy a config on the embedded model and wait until it is ready."""
        changed = on_tiny(config)
        changed["http_options"].update(host="127.0.0.1", port=self._port)
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(changed), _blocking=False)
        wait_until(lambda: serve.status().applications[APP].status == "RUNNING", "deployed", DEPLOY_TIMEOUT_S)
        wait_until_ready(self.url, DEPLOY_TIMEOUT_S)

    def where(self, deployment: str) -> list[str]:
        """Names of the nodes a deployment's running replicas are on, sorted."""
        return sorted(self.name_of(replica["node_id"]) for replica in replicas(deployment))

    def wait_for(self, deployment: str, names: list[str], timeout_s: float = 120) -> None:
        """Until a deployment's running replicas are on these nodes, one for each name, and no others."""
        wait_until(lambda: self.where(deployment) == sorted(names), f"{deployment} on {names}", timeout_s)

    def sessions(self) -> dict[str, int]:
        """Sessions open on each node's generator."""
        return {name: int(report["streams"] + report["batch"]) for name, report in self._reports().items()}

    def chunks(self) -> dict[str, int]:
        """Chunks each node's generator has made since it started."""
        return {name: int(report["chunks"]) for name, report in self._reports().items()}

    def _reports(self) -> dict[str, dict[str, float]]:
        reports = {}
        for replica in replicas(GENERATOR):
            actor = ray.get_actor(replica["actor_name"], namespace="serve")
            report = actor.record_routing_stats.remote()
            reports[self.name_of(replica["node_id"])] = ray.get(report, timeout=10)
        return reports

    def name_of(self, node_id: str) -> str:
        """The name of a node; its id where it is none of ours."""
        return next((name for name, node in self.nodes.items() if node.node_id == node_id), node_id)


@contextmanager
def host_cluster() -> Iterator[HostCluster]:
    """A head node with Serve on it, up for the time of the context; the processes of every node end with it.

    The GCS keeps its state in RocksDB, so that it may be restarted. Proxies of all other nodes share a port
    of their own, so that clients of the head's are served by that one alone.
    """
    port, worker_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="flashhead-gcs-") as storage:
        environment = {
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(worker_port),
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": storage,
        }
        with _environment(environment):
            head = {"num_cpus": 0, "include_dashboard": False, "_system_config": LOSS_DETECTION}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
                http = {"host": "127.0.0.1", "port": port}
                serve.start(http_options=http, proxy_location="EveryNode")
                yield HostCluster(cluster, port)
                serve.shutdown()
            finally:
                ray.shutdown()
                left = [process for node in cluster.list_all_nodes() for process in processes(node)]
                signal_all(left, signal.SIGKILL)
                cluster.shutdown()


def shipped(name: str) -> dict[str, Any]:
    """A file of ``configs/`` as it is."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return config


def on_tiny(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the embedded model on the CPU in place of the one it serves, and without API keys:
    deployments, replicas, resources, labels and limits stay as they are."""
    changed = copy.deepcopy(config)
    application = changed["applications"][0]
    application["args"].pop("keys", None)
    [model] = application["args"]["models"]
    for deployment in application["deployments"]:
        deployment["name"] = deployment["name"].replace(f"-{model['name']}", "-tiny")
    model.update(name="tiny", checkpoint="embedded", device="cpu", precision="fp32", threads=1)
    return changed


def replicas(deployment: str) -> list[dict[str, Any]]:
    """A deployment's running replicas as the Serve controller knows them: ``node_id``, ``pid``,
    ``actor_name`` and more."""
    details = _get_global_client().get_serve_details()
    deployed = details["applications"][APP]["deployments"][deployment]["replicas"]
    return [replica for replica in deployed if replica["state"] == "RUNNING"]


def processes(node: Node) -> list[psutil.Process]:
    """A node's raylet and all that it started, its workers' children included; nothing for a dead node."""
    try:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]
    except (KeyError, psutil.NoSuchProcess):
        return []


def signal_all(targets: list[psutil.Process], number: int) -> None:
    """Send a signal to those processes that are still there."""
    for process in targets:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Return once ``condition`` holds.

    Raises:
        TimeoutError: it does not within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """The environment with ``values``, which processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
