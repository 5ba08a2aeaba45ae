"""Binds the graph: ``serve run configs/serve.yaml`` calls ``build_app`` with the config's ``args``.

Replica counts, autoscaling and resources of each deployment are set in the config's ``deployments``
section, by the names below.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.config import AppSettings
from serve_app.deployments.audio_encoder import AudioEncoder
from serve_app.deployments.encoder import Encoder
from serve_app.deployments.flashhead_generator import FlashHeadGenerator
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.near_router import NearRouter
from serve_app.deployments.noted_router import NotedRouter
from serve_app.deployments.reader import IngressRouter
from serve_app.deployments.router import PinnedRouter

ROUTING_STATS_PERIOD_S = 1.0
ENCODERS = ("AudioEncoder", "Encoder")
"""Deployments that all models share."""
MAX_ONGOING_REQUESTS = 256
"""Calls a replica may hold. What bounds the work is ``max_streams`` and each generator's places; a call
refused here would only be tried again."""


def generator_name(model: str) -> str:
    """The deployment name of a model's generator."""
    return f"FlashHeadGenerator-{model}"


def deployment_names(settings: AppSettings) -> tuple[str, ...]:
    """The names of all deployments of the graph."""
    return ("Ingress", *ENCODERS, *(generator_name(model.name) for model in settings.models))


def build_app(args: dict[str, Any]) -> Application:
    """The application: Ingress over one FlashHeadGenerator a model, AudioEncoder and Encoder.

    Raises:
        pydantic.ValidationError: ``args`` hold an unknown key or a value out of its range.
    """
    return bind_graph(AppSettings.model_validate(args), AudioEncoder, FlashHeadGenerator, Encoder)


def bind_graph(settings: AppSettings, audio_encoder: type, generator: type, encoder: type) -> Application:
    """The graph over deployment classes with the constructors and methods of ``build_app``'s."""
    audio = _bound(
        audio_encoder,
        "AudioEncoder",
        settings.models,
        request_router_config={"request_router_class": NearRouter},
    )
    video = _bound(
        encoder, "Encoder", settings.video, request_router_config={"request_router_class": NotedRouter}
    )
    pinned = {
        "request_router_class": PinnedRouter,
        "request_routing_stats_period_s": ROUTING_STATS_PERIOD_S,
    }
    generators = {
        model.name: _bound(
            generator,
            generator_name(model.name),
            model,
            settings.limits,
            audio,
            request_router_config=pinned,
        )
        for model in settings.models
    }
    return _bound(
        serve.ingress()(Ingress),
        "Ingress",
        settings,
        generators,
        audio,
        video,
        request_router_config={"request_router_class": IngressRouter},
    )


def _bound(kind: Any, name: str, *arguments: Any, **options: Any) -> Application:
    deployment = serve.deployment(name=name, max_ongoing_requests=MAX_ONGOING_REQUESTS, **options)(kind)
    return deployment.bind(*arguments)
