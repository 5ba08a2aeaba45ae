"""The Ingress deployment: the FastAPI application over Serve handles."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from serve_app.api.app import create_app
from serve_app.config import AppSettings
from serve_app.deployments.handles import ServeEncoder, ServeGenerator, answered, ray_errors
from serve_app.deployments.logs import join_serve_logging
from serve_app.deployments.metrics import ServeRecorder
from serve_app.deployments.presence import Presence
from serve_app.deployments.reader import ReaderCredit, ReaderLedger
from serve_app.deployments.replica_sets import running_replicas
from serve_app.deployments.served_model import ServedModel
from serve_app.media.uploads import UploadDecoder
from serve_app.session.animation import Stage
from serve_app.session.clock import MonotonicClock
from serve_app.types import ModelCard


class ServeBackend:
    """``Backend`` over the graph's handles: one generator deployment a model, one of each encoder."""

    def __init__(
        self,
        settings: AppSettings,
        generators: Mapping[str, DeploymentHandle],
        audio_encoder: DeploymentHandle,
        encoder: DeploymentHandle,
    ) -> None:
        self.limits = settings.limits
        self.recorder = ServeRecorder()
        self._generators = {model: ServeGenerator(handle) for model, handle in generators.items()}
        self._encoder = encoder
        self._decoder = UploadDecoder(settings.limits)
        self._clock = MonotonicClock()
        encoders = tuple(self._presence(each, "ready") for each in (audio_encoder, encoder))
        self._models: dict[str, ServedModel] = {}
        self._presences = list(encoders)
        for model in settings.models:
            generator = self._presence(generators[model.name], "describe")
            self._presences.append(generator)
            self._models[model.name] = ServedModel(
                model.name, generator, encoders, model.may_sleep, settings.limits
            )

    @property
    def served(self) -> tuple[str, ...]:
        """See ``Backend``."""
        return tuple(self._models)

    def cards(self) -> Mapping[str, ModelCard]:
        """See ``Backend``."""
        return {name: model.card for name, model in self._models.items() if model.card is not None}

    def ready(self, model: str) -> bool:
        """See ``Backend``."""
        return self._models[model].ready

    async def stage(self, model: str) -> Stage:
        """See ``Backend``."""
        card = await self._models[model].awake()
        return Stage(
            card=card,
            generator=self._generators[model],
            encoder=ServeEncoder(self._encoder, card.geometry, self.limits.resume_timeout_s),
            decoder=self._decoder,
            clock=self._clock,
            limits=self.limits,
            recorder=self.recorder,
        )

    async def start(self) -> None:
        """Start the decode workers and ask every deployment whether it is there."""
        await self._decoder.start()
        for presence in self._presences:
            presence.wake()

    async def aclose(self) -> None:
        """Stop asking and end the decode workers."""
        await asyncio.gather(*(presence.aclose() for presence in self._presences))
        await self._decoder.aclose()

    def _presence(self, handle: DeploymentHandle, method: str) -> Presence[Any]:
        deployment = handle.deployment_id

        async def ask() -> Any:
            with ray_errors():
                return await answered(getattr(handle, method).remote())

        return Presence(deployment.name, ask, partial(running_replicas, deployment), self._clock)


class Ingress:
    """Builds the application where its replica runs, over the handles it was bound with."""

    def __init__(
        self,
        settings: AppSettings,
        generators: dict[str, DeploymentHandle],
        audio_encoder: DeploymentHandle,
        encoder: DeploymentHandle,
    ) -> None:
        join_serve_logging()
        self._settings = settings
        self._backend = ServeBackend(settings, generators, audio_encoder, encoder)
        self._readers = ReaderLedger()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica is constructed."""
        app = create_app(self._backend, self._settings.keys, self._settings.cors)
        app.add_middleware(ReaderCredit, ledger=self._readers)
        return app

    def passed(self, request_id: str, bodies: int) -> None:
        """Called from the proxy: what it has passed on to a client so far."""
        self._readers.passed(request_id, bodies)
