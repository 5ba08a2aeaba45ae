"""``/health``, ``/ready`` and ``/v1/models``."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request

from serve_app.api.backend import Backend
from serve_app.api.caller import caller
from serve_app.errors import Unavailable
from serve_app.types import FPS, ModelCard

logger = logging.getLogger(__name__)


def status_router(backend: Backend) -> APIRouter:
    """The routes that say how the server is."""
    router = APIRouter(tags=["status"])

    @router.get("/health", summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/ready", summary="Every model has warm replicas, or sleeps as it may; 503 otherwise")
    async def ready() -> dict[str, str]:
        if missing := [name for name in backend.served if not backend.ready(name)]:
            logger.info("not ready: a replica is missing for %s", ", ".join(missing))
            raise Unavailable("not ready", code="not_ready")
        return {"status": "ready"}

    @router.get("/v1/models", summary="The models open to the caller, the default first")
    async def models(request: Request) -> dict[str, Any]:
        cards = backend.cards()
        usable = caller(request).usable(backend.served)
        return {"models": [_entry(name, cards.get(name), backend.ready(name)) for name in usable]}

    return router


def _entry(name: str, card: ModelCard | None, ready: bool) -> dict[str, Any]:
    if card is None:
        return {"name": name, "ready": False}
    geometry = card.geometry
    return {
        "name": name,
        "ready": ready,
        "description": card.description,
        "width": geometry.width,
        "height": geometry.height,
        "fps": FPS,
        "frames_per_chunk": geometry.slice_frames,
        "steps": card.steps,
        "allowed_steps": list(card.allowed_steps),
        "reproducible": card.reproducible,
    }
