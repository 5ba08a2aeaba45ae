"""A config against the graph it is for: its settings, its deployments and what they are given."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as File
from typing import Any

from serve_app.api.keys import read_keys
from serve_app.app import ENCODERS, deployment_names, generator_name
from serve_app.check.findings import Finding, Path, error, unknown, warning
from serve_app.check.gpus import fewest_replicas, gpu_share
from serve_app.check.schema import applications, attempt, mappings, unknown_keys
from serve_app.client.address import APPLICATION, address, is_public
from serve_app.config import AppSettings
from serve_app.errors import ConfigError
from serve_app.model.presets import PRESETS

HAND_OVER_S = 10.0
"""What a replica that goes away needs at least to finish its chunks in progress."""

SERVE_GRACE_S = 20.0
"""What Serve gives a replica that goes away where the config says nothing."""


def check_graph(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Every application of this project in a config."""
    for path, application in applications(config):
        imported = application.get("import_path")
        if imported == APPLICATION:
            yield from _check_application(config, application, path)
        elif isinstance(imported, str) and imported.startswith("serve_app"):
            yield error((*path, "import_path"), f"{imported!r} is not there; accepted: {APPLICATION}")
        else:
            yield warning((*path, "import_path"), "another application; only Serve's schema is checked")


def _check_application(
    config: Mapping[str, Any], application: Mapping[str, Any], path: Path
) -> Iterator[Finding]:
    given = application.get("args", {})
    where = (*path, "args")
    settings, findings = attempt(lambda: AppSettings.model_validate(given), given, where)
    yield from unknown_keys(given, AppSettings, where)
    yield from findings
    if settings is None:
        # Go on with what can be understood, so that one mistake does not hide the others.
        left = without(given, [finding.path[len(where) :] for finding in findings])
        settings, _ = attempt(lambda: AppSettings.model_validate(left), left, where)
    if settings is None:
        return
    models = list(_check_models(settings, where))
    yield from models
    if not models:
        yield from _check_names(settings, application, path)
    yield from _check_streams(config, settings, application, path)
    yield from _check_generators(settings, application, path)
    yield from _check_keys(config, settings, path)


def without(content: Any, paths: Sequence[Path]) -> Any:
    """A copy of ``content`` without the keys at ``paths``; what is no key stays."""
    changed = copy.deepcopy(content)
    for path in sorted(filter(None, paths), key=len, reverse=True):
        holder = functools.reduce(operator.getitem, path[:-1], changed)
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
    return changed


def _check_models(settings: AppSettings, path: Path) -> Iterator[Finding]:
    for index, model in enumerate(settings.models):
        if model.name not in PRESETS:
            yield error((*path, "models", index, "name"), unknown(model.name, PRESETS))


def _check_names(settings: AppSettings, application: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    expected = deployment_names(settings)
    seen: set[str] = set()
    for where, deployment in _sections(application, path):
        name = str(deployment.get("name"))
        if name not in expected:
            yield error((*where, "name"), unknown(name, expected))
        elif name in seen:
            yield error((*where, "name"), f"{name} is configured twice")
        seen.add(name)
    for name in sorted(set(expected) - seen):
        yield warning(
            (*path, "deployments"), f"{name} is not listed: it gets one replica, one CPU and no GPU"
        )


def _check_streams(
    config: Mapping[str, Any], settings: AppSettings, application: Mapping[str, Any], path: Path
) -> Iterator[Finding]:
    http = config.get("http_options")
    timeout_s = http.get("request_timeout_s") if isinstance(http, Mapping) else None
    longest_s = settings.limits.max_audio_s
    if isinstance(timeout_s, int | float) and timeout_s < longest_s:
        message = f"{timeout_s:g} s cuts streams short; accepted: null, or max_audio_s={longest_s:g} at least"
        yield error(("http_options", "request_timeout_s"), message)
    for where, deployment in _sections(application, path):
        grace_s = deployment.get("graceful_shutdown_timeout_s")
        if isinstance(grace_s, int | float) and grace_s < HAND_OVER_S:
            message = f"{grace_s:g} s is too short to hand streams over; {HAND_OVER_S:g} s at least"
            yield warning((*where, "graceful_shutdown_timeout_s"), message)
        elif deployment.get("name") == "Ingress" and is_public(address(config)[0]):
            grace_s = SERVE_GRACE_S if grace_s is None else grace_s
            if isinstance(grace_s, int | float) and grace_s < longest_s:
                message = (
                    f"{grace_s:g} s cuts streams short that come in here; max_audio_s={longest_s:g} at least"
                )
                yield warning((*where, "graceful_shutdown_timeout_s"), message)


def _check_generators(settings: AppSettings, application: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    models = {generator_name(model.name): model for model in settings.models}
    for where, deployment in _sections(application, path):
        name = str(deployment.get("name"))
        served = [models[name]] if name in models else settings.models if name in ENCODERS else ()
        awake = [model.name for model in served if not model.may_sleep]
        if awake and fewest_replicas(deployment) == 0:
            message = f"min_replicas=0 needs may_sleep: true of model {awake[0]}, or it is often not ready"
            yield error((*where, "autoscaling_config"), message)
        if name not in models:
            continue
        device, share = models[name].device, gpu_share(deployment)
        if device.startswith("cuda") and not share:
            yield warning(
                (*where, "ray_actor_options"), f"device={device} without num_gpus: Ray may hide all GPUs"
            )
        if device == "cpu" and share:
            yield warning(
                (*where, "ray_actor_options", "num_gpus"), "device=cpu does not use the GPU it takes"
            )


def _check_keys(config: Mapping[str, Any], settings: AppSettings, path: Path) -> Iterator[Finding]:
    where = (*path, "args", "keys")
    host, _ = address(config)
    if settings.keys.file is not None and File(settings.keys.file).exists():
        try:
            read_keys(File(settings.keys.file))
        except ConfigError as broken:
            yield error((*where, "file"), broken.message)
    if settings.keys.file is not None or not is_public(host):
        return
    if settings.keys.required is None:
        yield error(where, f"no keys on {host}, which others reach; set keys.file, or keys.required: false")
    else:
        yield warning(where, f"anybody who reaches {host} may use the server")


def _sections(application: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    return mappings(application.get("deployments"), (*path, "deployments"))
