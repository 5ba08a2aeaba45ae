"""The shipped Serve configs: valid, nothing misspelt, and about the graph that is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from serve_app.app import build_app, generator_name
from serve_app.config import AppSettings
from serve_app.deployments.autoscaling import StreamScaling

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.name)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text())


def unknown_keys(given: Any, understood: Any, where: str = "") -> list[str]:
    """Keys of ``given`` that a model, dumped as ``understood``, did not take."""
    if isinstance(given, dict) and isinstance(understood, dict):
        found = [f"{where}.{key}" for key in given if key not in understood]
        return found + [
            name
            for key in given
            if key in understood
            for name in unknown_keys(given[key], understood[key], f"{where}.{key}")
        ]
    if isinstance(given, list) and isinstance(understood, list):
        pairs = zip(given, understood, strict=True)
        return [name for g, u in pairs for name in unknown_keys(g, u, where)]
    return []


def test_serve_takes_every_key(config: dict[str, Any]) -> None:
    schema = ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, schema.model_dump(warnings=False)) == []


def test_a_misspelt_key_would_be_found(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][0]["max_ongoing_requezts"] = 5
    schema = ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, schema.model_dump(warnings=False)) == [
        ".applications.deployments.max_ongoing_requezts"
    ]


def test_it_configures_each_deployment_of_the_graph(config: dict[str, Any]) -> None:
    [application] = config["applications"]
    settings = AppSettings.model_validate(application["args"])
    generators = {generator_name(model.name) for model in settings.models}
    named = [deployment["name"] for deployment in application["deployments"]]
    assert sorted(named) == sorted({"Ingress", "AudioEncoder", "Encoder", *generators})
    for deployment in application["deployments"]:
        assert ("num_replicas" in deployment) != ("autoscaling_config" in deployment)
        assert "num_cpus" in deployment["ray_actor_options"]


def test_generators_scale_by_their_streams(config: dict[str, Any]) -> None:
    [application] = config["applications"]
    deployments = {deployment["name"]: deployment for deployment in application["deployments"]}
    for model in AppSettings.model_validate(application["args"]).models:
        scaling = AutoscalingConfig.model_validate(
            deployments[generator_name(model.name)]["autoscaling_config"]
        )
        policy = scaling.policy.get_policy()
        assert policy.__name__ == StreamScaling.__name__
        assert policy(**scaling.policy.policy_kwargs)
        assert scaling.upscale_delay_s == scaling.downscale_delay_s == 0
        assert model.may_sleep == (scaling.min_replicas == 0)


def test_the_graph_builds_from_its_args(config: dict[str, Any]) -> None:
    assert build_app(config["applications"][0]["args"]) is not None


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"modelz": []}, "modelz"),
        ({"models": []}, "models"),
        ({"models": [{"name": "tiny"}, {"name": "tiny"}]}, "twice"),
        ({"models": [{"name": "tiny", "max_rows": 0}]}, "max_rows"),
        ({"limits": {"max_streamz": 1}}, "max_streamz"),
        ({"video": {"crf": 64}}, "crf"),
    ],
)
def test_args_that_mean_nothing_are_refused(args: dict[str, Any], named: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=named):
        build_app(args)
