"""A config against Serve's own schema, and the keys Serve would pass over in silence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve._private.config import ReplicaConfig
from ray.serve._private.utils import validate_route_prefix
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import RayActorOptionsSchema, ServeDeploySchema

from serve_app.check.findings import Finding, Path, error, unknown, validation_errors, warning

T = TypeVar("T")


def check_schema(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Unknown keys anywhere, and what Serve refuses when it is deployed."""
    yield from unknown_keys(config, ServeDeploySchema, ())
    _, findings = attempt(lambda: ServeDeploySchema.model_validate(config), config, ())
    yield from (finding for finding in findings if finding.severity == "error")
    for path, application in applications(config):
        if isinstance(prefix := application.get("route_prefix"), str):
            yield from attempt(partial(validate_route_prefix, prefix), prefix, (*path, "route_prefix"))[1]
        yield from _runtime_env(application, path)
    for path, deployment in deployments(config):
        scaling = deployment.get("autoscaling_config")
        if isinstance(scaling, Mapping):
            yield from _scaling(scaling, (*path, "autoscaling_config"))
        options = deployment.get("ray_actor_options")
        if isinstance(options, Mapping):
            yield from _actor_options(options, (*path, "ray_actor_options"))


def applications(config: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The config's applications as far as they are mappings, each with its place."""
    yield from mappings(config.get("applications"), ("applications",))


def deployments(config: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The deployments of all applications, each with its place."""
    for path, application in applications(config):
        yield from mappings(application.get("deployments"), (*path, "deployments"))


def mappings(items: Any, path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The mappings in a list, each with its place."""
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, Mapping):
            yield (*path, index), item


def unknown_keys(given: Any, kind: Any, path: Path) -> Iterator[Finding]:
    """Keys of ``given`` that the pydantic model in the annotation ``kind`` does not have.

    The model's fields are followed by their types, since pydantic takes a mapping as it is where a field may
    be a model or a mapping.
    """
    if isinstance(given, list):
        for index, item in enumerate(given):
            yield from unknown_keys(item, kind, (*path, index))
    model = _model(kind)
    if isinstance(given, Mapping) and model is not None:
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        for key, value in given.items():
            if key in fields:
                yield from unknown_keys(value, fields[key], (*path, key))
            else:
                yield error((*path, str(key)), unknown(key, fields))


def _model(kind: Any) -> type[BaseModel] | None:
    """The first pydantic model in an annotation."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((model for inner in get_args(kind) if (model := _model(inner)) is not None), None)


def _scaling(given: Mapping[str, Any], path: Path) -> list[Finding]:
    """What Serve finds out about an autoscaling section only once it deploys: its policy, too."""
    scaling, findings = attempt(lambda: AutoscalingConfig.model_validate(dict(given)), given, path)
    if scaling is None or not isinstance(policy := scaling.policy.get_policy(), type):
        return findings
    kwargs = scaling.policy.policy_kwargs
    return findings + attempt(lambda: policy(**kwargs), kwargs, (*path, "policy", "policy_kwargs"))[1]


def _actor_options(given: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    """What Ray refuses of a replica's options only once it is to start."""
    known = {
        key: copy.deepcopy(value) for key, value in given.items() if key in RayActorOptionsSchema.model_fields
    }
    yield from attempt(lambda: ReplicaConfig.create("replica", ray_actor_options=known), given, path)[1]
    yield from _runtime_env(given, path)


def _runtime_env(holder: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    """Keys of a runtime environment that Ray would pass over, taking them for a plugin's."""
    given = holder.get("runtime_env")
    known = {field for field in RuntimeEnv.known_fields if not field.startswith("_")}
    for key in given if isinstance(given, Mapping) else ():
        if key not in known:
            yield error((*path, "runtime_env", str(key)), unknown(key, known))


def attempt(make: Callable[[], T], given: Any, path: Path) -> tuple[T | None, list[Finding]]:
    """What ``make`` makes of ``given``, unless it refuses; and what it refuses now or will one day."""
    made, findings = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FutureWarning)
        try:
            made = make()
        except ValidationError as refused:
            findings = validation_errors(refused, given, path)
        except Exception as refused:  # a policy is imported while its section is read: it may raise anything
            findings = [error(path, f"{type(refused).__name__}: {refused}")]
    return made, findings + [warning(path, str(message.message)) for message in caught]
