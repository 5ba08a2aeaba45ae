"""Binds the graph: ``serve run configs/serve.yaml`` calls ``build_app`` with the config's ``args``.

Replica counts, autoscaling and resources of each deployment are set in the config's ``deployments``
section, by the names below.
"""

from __future__ import annotations

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from serve_app.config import AppSettings
from serve_app.deployments.audio_encoder import AudioEncoder
from serve_app.deployments.encoder import Encoder
from serve_app.deployments.flashhead_generator import FlashHeadGenerator
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.reader import IngressRouter
from serve_app.deployments.router import PinnedRouter

ROUTING_STATS_PERIOD_S = 1.0


def generator_name(model: str) -> str:
    """The deployment name of a model's generator."""
    return f"FlashHeadGenerator-{model}"


def build_app(args: AppSettings) -> Application:
    """The application: Ingress over one FlashHeadGenerator a model, AudioEncoder and Encoder."""
    audio_encoder = serve.deployment(AudioEncoder, name="AudioEncoder", max_ongoing_requests=64).bind(
        args.models
    )
    routing = RequestRouterConfig(
        request_router_class=PinnedRouter, request_routing_stats_period_s=ROUTING_STATS_PERIOD_S
    )
    generators = {
        model.name: serve.deployment(
            FlashHeadGenerator,
            name=generator_name(model.name),
            max_ongoing_requests=256,
            request_router_config=routing,
        ).bind(model, args.limits, audio_encoder)
        for model in args.models
    }
    encoder = serve.deployment(Encoder, name="Encoder", max_ongoing_requests=64).bind(args.video)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        max_ongoing_requests=256,
        request_router_config=RequestRouterConfig(request_router_class=IngressRouter),
    )
    return ingress.bind(args.limits, generators, encoder)
