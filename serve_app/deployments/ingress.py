"""The Ingress deployment: the FastAPI application over Serve handles."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Mapping

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from serve_app.api.app import create_app
from serve_app.config import CorsSettings, KeySettings, Limits
from serve_app.deployments.handles import ServeEncoder, ServeGenerator
from serve_app.deployments.logs import join_serve_logging
from serve_app.deployments.metrics import ServeRecorder
from serve_app.deployments.reader import ReaderCredit, ReaderLedger
from serve_app.errors import Unavailable
from serve_app.media.uploads import UploadDecoder
from serve_app.session.animation import Stage
from serve_app.session.clock import MonotonicClock
from serve_app.types import ModelCard

logger = logging.getLogger(__name__)

LOADING_POLL_S = 0.5


class ServeBackend:
    """``Backend`` over the graph's handles: one generator deployment a model, one encoder deployment."""

    def __init__(
        self, limits: Limits, generators: Mapping[str, DeploymentHandle], encoder: DeploymentHandle
    ) -> None:
        self.limits = limits
        self.recorder = ServeRecorder()
        self._handles = generators
        self._generators = {model: ServeGenerator(handle) for model, handle in generators.items()}
        self._encoder = encoder
        self._decoder = UploadDecoder(limits)
        self._cards: dict[str, ModelCard] = {}
        self._loading: list[asyncio.Task[None]] = []

    @property
    def served(self) -> tuple[str, ...]:
        """See ``Backend``."""
        return tuple(self._handles)

    def cards(self) -> Mapping[str, ModelCard]:
        """See ``Backend``."""
        return self._cards

    def stage(self, model: str) -> Stage:
        """See ``Backend``."""
        card = self._cards.get(model)
        if card is None:
            raise Unavailable(f"model {model} is still loading", code="not_ready", value=model)
        return Stage(
            card=card,
            generator=self._generators[model],
            encoder=ServeEncoder(self._encoder, card.geometry, self.limits.resume_timeout_s),
            decoder=self._decoder,
            clock=MonotonicClock(),
            limits=self.limits,
            recorder=self.recorder,
        )

    async def start(self) -> None:
        """Start the decode workers and ask each model's generator what it is."""
        await self._decoder.start()
        for model, handle in self._handles.items():
            task = asyncio.create_task(self._load(model, handle), context=contextvars.Context())
            self._loading.append(task)

    async def aclose(self) -> None:
        """Stop asking and end the decode workers."""
        for task in self._loading:
            task.cancel()
        await asyncio.gather(*self._loading, return_exceptions=True)
        await self._decoder.aclose()

    async def _load(self, model: str, handle: DeploymentHandle) -> None:
        """Wait for a loaded and warm replica; Serve itself reports one that cannot be started."""
        while model not in self._cards:
            try:
                self._cards[model] = await handle.describe.remote()
            except Exception:
                logger.warning("model %s does not answer yet", model, exc_info=True)
                await asyncio.sleep(LOADING_POLL_S)
        logger.info("model %s is ready", model)


class Ingress:
    """Builds the application where its replica runs, over the handles it was bound with."""

    def __init__(
        self,
        limits: Limits,
        keys: KeySettings,
        cors: CorsSettings,
        generators: dict[str, DeploymentHandle],
        encoder: DeploymentHandle,
    ) -> None:
        join_serve_logging()
        self._keys = keys
        self._cors = cors
        self._backend = ServeBackend(limits, generators, encoder)
        self._readers = ReaderLedger()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica is constructed."""
        app = create_app(self._backend, self._keys, self._cors)
        app.add_middleware(ReaderCredit, ledger=self._readers)
        return app

    def passed(self, request_id: str, bodies: int) -> None:
        """Called from the proxy: what it has passed on to a client so far."""
        self._readers.passed(request_id, bodies)
