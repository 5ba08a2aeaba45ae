"""The shipped Serve configs have nothing wrong; whatever is planted into one is found at its line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from ray.serve._private.build_app import build_app as build_with_serve
from ray.serve.config import AutoscalingConfig

from serve_app.app import build_app, deployment_names, generator_name
from serve_app.check.report import Report, check_config
from serve_app.cli import main
from serve_app.config import AppSettings
from serve_app.deployments.autoscaling import StreamScaling

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LITE = yaml.safe_load(next(path for path in CONFIGS if path.name == "serve.4090.yaml").read_text())
GENERATOR = 2
"""The generator's place among the deployments of ``LITE``."""

Plant = Callable[[dict[str, Any]], Any]


@pytest.fixture(params=CONFIGS, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_a_shipped_config_has_nothing_wrong(path: Path) -> None:
    report = check_config(path.read_text())
    assert report.findings == ()


def test_it_configures_each_deployment_of_the_graph(path: Path) -> None:
    [application] = yaml.safe_load(path.read_text())["applications"]
    settings = AppSettings.model_validate(application["args"])
    named = [deployment["name"] for deployment in application["deployments"]]
    built = build_with_serve(build_app(application["args"]), name="flashhead")
    assert sorted(named) == sorted(deployment_names(settings))
    assert sorted(named) == sorted(deployment.name for deployment in built.deployments)
    for deployment in application["deployments"]:
        assert ("num_replicas" in deployment) != ("autoscaling_config" in deployment)
        assert "num_cpus" in deployment["ray_actor_options"]


def test_generators_scale_by_their_streams(path: Path) -> None:
    [application] = yaml.safe_load(path.read_text())["applications"]
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


def planted(plant: Plant) -> Report:
    """The findings in the Lite config after ``plant`` has changed it."""
    config = copy.deepcopy(LITE)
    plant(config)
    return check_config(yaml.safe_dump(config, sort_keys=False))


def app(config: dict[str, Any]) -> dict[str, Any]:
    return config["applications"][0]


def generator(config: dict[str, Any]) -> dict[str, Any]:
    return app(config)["deployments"][GENERATOR]


ERRORS: dict[str, tuple[Plant, str, str]] = {
    "top-level key": (
        lambda c: c.update(http_option={}),
        "http_option",
        "did you mean 'http_options'?",
    ),
    "http option": (
        lambda c: c["http_options"].update(request_timeout=5),
        "http_options.request_timeout",
        "did you mean 'request_timeout_s'?",
    ),
    "deployment option": (
        lambda c: generator(c).update(max_ongoing_requezts=5),
        "applications[0].deployments[2].max_ongoing_requezts",
        "did you mean 'max_ongoing_requests'?",
    ),
    "autoscaling key": (
        lambda c: generator(c).update(autoscaling_config={"max_replicaz": 2}),
        "applications[0].deployments[2].autoscaling_config.max_replicaz",
        "did you mean 'max_replicas'?",
    ),
    "policy key": (
        lambda c: generator(c).update(autoscaling_config={"policy": {"policy_func": "a:b"}}),
        "applications[0].deployments[2].autoscaling_config.policy.policy_func",
        "did you mean 'policy_function'?",
    ),
    "router key": (
        lambda c: generator(c).update(request_router_config={"initial_backof_s": 1}),
        "applications[0].deployments[2].request_router_config.initial_backof_s",
        "did you mean 'initial_backoff_s'?",
    ),
    "actor option": (
        lambda c: generator(c)["ray_actor_options"].update(num_gpu=1),
        "applications[0].deployments[2].ray_actor_options.num_gpu",
        "did you mean 'num_gpus'?",
    ),
    "logging key": (
        lambda c: c["logging_config"].update(log_levl="INFO"),
        "logging_config.log_levl",
        "did you mean 'log_level'?",
    ),
    "setting": (
        lambda c: app(c)["args"].update(modelz=[]),
        "applications[0].args.modelz",
        "did you mean 'models'?",
    ),
    "setting of a model": (
        lambda c: app(c)["args"]["models"][0].update(max_session=1),
        "applications[0].args.models[0].max_session",
        "did you mean 'max_sessions'?",
    ),
    "value of a setting": (
        lambda c: app(c)["args"]["models"][0].update(max_rows=0),
        "applications[0].args.models[0].max_rows",
        "greater than or equal to 1",
    ),
    "key settings": (
        lambda c: app(c)["args"].update(keys={"required": True}),
        "applications[0].args.keys",
        "required=true needs file",
    ),
    "value of an option": (
        lambda c: generator(c).update(health_check_period_s="soon"),
        "applications[0].deployments[2].health_check_period_s",
        "valid number",
    ),
    "replica bounds": (
        lambda c: generator(c).update(autoscaling_config={"min_replicas": 3, "max_replicas": 2}),
        "applications[0].deployments[2].autoscaling_config",
        "max_replicas (2) must be greater",
    ),
    "policy module": (
        lambda c: generator(c).update(autoscaling_config={"policy": {"policy_function": "nowhere:f"}}),
        "applications[0].deployments[2].autoscaling_config",
        "No module named 'nowhere'",
    ),
    "policy class": (
        lambda c: generator(c).update(
            autoscaling_config={"policy": {"policy_function": "serve_app.deployments.autoscaling:Stream"}}
        ),
        "applications[0].deployments[2].autoscaling_config",
        "has no attribute 'Stream'",
    ),
    "policy setting": (
        lambda c: generator(c).update(
            autoscaling_config={
                "policy": {
                    "policy_function": "serve_app.deployments.autoscaling:StreamScaling",
                    "policy_kwargs": {"head_rom": 0.1},
                }
            }
        ),
        "applications[0].deployments[2].autoscaling_config.policy.policy_kwargs.head_rom",
        "Extra inputs are not permitted",
    ),
    "deployment name": (
        lambda c: generator(c).update(name="FlashHeadGenerator-pro"),
        "applications[0].deployments[2].name",
        "did you mean 'FlashHeadGenerator-lite'?",
    ),
    "deployment twice": (
        lambda c: app(c)["deployments"].append({"name": "Encoder"}),
        "applications[0].deployments[4].name",
        "Encoder is configured twice",
    ),
    "import path": (
        lambda c: app(c).update(import_path="serve_app.ap:build_app"),
        "applications[0].import_path",
        "accepted: serve_app.app:build_app",
    ),
    "share of GPUs": (
        lambda c: generator(c)["ray_actor_options"].update(num_gpus=1.5),
        "applications[0].deployments[2].ray_actor_options.num_gpus",
        "a fraction up to 1, or a whole number",
    ),
    "request timeout": (
        lambda c: c["http_options"].update(request_timeout_s=30),
        "http_options.request_timeout_s",
        "30 s cuts streams short",
    ),
    "public without keys": (
        lambda c: app(c)["args"].pop("keys"),
        "applications[0].args.keys",
        "no keys on 0.0.0.0",
    ),
    "public by default": (
        lambda c: (app(c)["args"].pop("keys"), c.pop("http_options")),
        "applications[0].args.keys",
        "no keys on 0.0.0.0",
    ),
    "sleep": (
        lambda c: generator(c)["autoscaling_config"].update(min_replicas=0),
        "applications[0].deployments[2].autoscaling_config",
        "may_sleep",
    ),
    "an encoder's sleep": (
        lambda c: app(c)["deployments"][1].update(autoscaling_config={"min_replicas": 0}),
        "applications[0].deployments[1].autoscaling_config",
        "may_sleep: true of model lite",
    ),
    "fallback strategy": (
        lambda c: app(c)["deployments"][0]["ray_actor_options"].update(
            fallback_strategy=[{"label_selectors": {}}]
        ),
        "applications[0].deployments[0].ray_actor_options",
        "'label_selectors'",
    ),
    "label selector": (
        lambda c: generator(c)["ray_actor_options"].update(label_selector={"a b": "c"}),
        "applications[0].deployments[2].ray_actor_options",
        "Invalid label key name `a b`",
    ),
    "runtime environment": (
        lambda c: generator(c)["ray_actor_options"].update(runtime_env={"env_var": {}}),
        "applications[0].deployments[2].ray_actor_options.runtime_env.env_var",
        "did you mean 'env_vars'?",
    ),
    "the application's runtime environment": (
        lambda c: app(c).update(runtime_env={"env_var": {}}),
        "applications[0].runtime_env.env_var",
        "did you mean 'env_vars'?",
    ),
    "route": (
        lambda c: app(c).update(route_prefix="flash"),
        "applications[0].route_prefix",
        "must start with a forward slash",
    ),
    "model": (
        lambda c: app(c)["args"]["models"][0].update(name="lyte"),
        "applications[0].args.models[0].name",
        "did you mean 'lite'?",
    ),
    "device": (
        lambda c: app(c)["args"]["models"][0].update(device="gpu"),
        "applications[0].args.models[0].device",
        "should match pattern",
    ),
    "no applications": (lambda c: c.pop("applications"), "applications", "Field required"),
}

WARNINGS: dict[str, tuple[Plant, str, str]] = {
    "open to anybody": (
        lambda c: app(c)["args"].update(keys={"required": False}),
        "applications[0].args.keys",
        "anybody",
    ),
    "another application": (
        lambda c: app(c).update(import_path="other:app", args={}),
        "applications[0].import_path",
        "only Serve's schema is checked",
    ),
    "deployment not listed": (
        lambda c: app(c)["deployments"].pop(GENERATOR),
        "applications[0].deployments",
        "FlashHeadGenerator-lite is not listed",
    ),
    "hidden GPU": (
        lambda c: generator(c)["ray_actor_options"].pop("num_gpus"),
        "applications[0].deployments[2].ray_actor_options",
        "without num_gpus",
    ),
    "wasted GPU": (
        lambda c: app(c)["args"]["models"][0].update(device="cpu"),
        "applications[0].deployments[2].ray_actor_options.num_gpus",
        "does not use the GPU",
    ),
    "hasty shutdown": (
        lambda c: generator(c).update(graceful_shutdown_timeout_s=1),
        "applications[0].deployments[2].graceful_shutdown_timeout_s",
        "too short",
    ),
    "an Ingress that cuts its streams": (
        lambda c: app(c)["deployments"][0].pop("graceful_shutdown_timeout_s"),
        "applications[0].deployments[0].graceful_shutdown_timeout_s",
        "20 s cuts streams short",
    ),
    "deprecated option": (
        lambda c: generator(c).update(autoscaling_config={"look_back_period_s": 1}),
        "applications[0].deployments[2].autoscaling_config",
        "look_back_period_s",
    ),
}


@pytest.mark.parametrize("plant", ERRORS.values(), ids=ERRORS)
def test_an_error_is_found_where_it_is(plant: tuple[Plant, str, str]) -> None:
    change, where, message = plant
    report = planted(change)
    assert report.fails(strict=False)
    assert f": error: {where}: " in report.to_text("c") and message in report.to_text("c")


@pytest.mark.parametrize("plant", WARNINGS.values(), ids=WARNINGS)
def test_a_warning_fails_only_if_it_is_to(plant: tuple[Plant, str, str]) -> None:
    change, where, message = plant
    report = planted(change)
    assert not report.fails(strict=False) and report.fails(strict=True)
    assert f": warning: {where}: " in report.to_text("c") and message in report.to_text("c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n  - b\n c: d\n", "c:3: error: config: not YAML"),
        ("applications: [\n\n", "c:3: error: config: not YAML"),
        ("a: 1\n---\nb: 2\n", "c:2: error: config: not YAML"),
        ("", "c:1: error: config: not a Serve config"),
        ("- a\n", "c:1: error: config: not a Serve config"),
        ("a: &a [*a]\napplications: []\n", "c:1: error: a: unknown name 'a'"),
        (
            "applications: []\n\napplications: []\n",
            "c:3: error: applications: given twice",
        ),
        ("applications:\n  - name: x\n", "c:2: error: applications[0].import_path: Field required"),
        ("applications: [1]\n", "c:1: error: applications[0]"),
        ("http_options: 5\napplications: {a: 1}\n", "c:2: error: applications: "),
    ],
)
def test_a_text_that_is_no_config_is_an_error_at_its_line(text: str, said: str) -> None:
    assert said in check_config(text).to_text("c")


def test_a_misspelt_model_casts_no_doubt_on_its_deployment() -> None:
    text = planted(lambda c: app(c)["args"]["models"][0].update(name="lyte")).to_text("c")
    assert "1 errors, 0 warnings" in text


def test_one_mistake_does_not_hide_another() -> None:
    def several(config: dict[str, Any]) -> None:
        app(config)["args"]["models"][0].update(max_session=1, max_rows=0)
        app(config)["args"].pop("keys")
        generator(config).update(name="FlashHeadGenerator-pro")
        config["http_options"].update(request_timeout_s=30)

    text = planted(several).to_text("c")
    for where in ("max_session", "max_rows", "args.keys", "deployments[2].name", "request_timeout_s"):
        assert f"{where}: " in text
    assert "5 errors" in text


def test_a_line_is_that_of_the_mistake(path: Path) -> None:
    lines = path.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if "graceful_shutdown_timeout_s" in line)
    lines[at] = lines[at].replace("graceful_shutdown_timeout_s", "graceful_shutdown_timeout")
    report = check_config("\n".join(lines))
    assert f"c:{at + 1}: error: " in report.to_text("c")


def test_shares_are_packed_onto_gpus() -> None:
    assert planted(lambda c: None).gpus == 1

    def third(config: dict[str, Any]) -> None:
        app(config)["deployments"][1]["ray_actor_options"]["num_gpus"] = 0.2

    def three(config: dict[str, Any]) -> None:
        generator(config).pop("autoscaling_config")
        generator(config).update(num_replicas=3)

    assert planted(third).gpus == 2
    assert planted(three).gpus == 3
    report = check_config(yaml.safe_dump(LITE | {}), gpus=0)
    assert "need 1 GPUs; there are 0" in report.to_text("c") and report.fails(strict=False)


def test_a_key_file_that_is_here_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    assert planted(lambda c: app(c)["args"]["keys"].update(file=str(file))).findings == ()
    file.write_text("keys: [{}]")
    report = planted(lambda c: app(c)["args"]["keys"].update(file=str(file)))
    assert "args.keys.file: " in report.to_text("c") and "keys.0.name" in report.to_text("c")


def test_the_command_says_so_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", str(CONFIGS[0]), "--strict"]) == 0
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(LITE | {"proxy": 1}))
    assert main(["check-config", str(broken)]) == 1
    output = capsys.readouterr().out
    assert f"{broken}:" in output and "1 errors, 0 warnings" in output
    assert main(["check-config", str(tmp_path / "nowhere.yaml")]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


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
