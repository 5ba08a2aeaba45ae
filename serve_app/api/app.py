"""The FastAPI application: every public protocol's router, the guard before them, one way to fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from serve_app import __version__
from serve_app.api.animate import PATH, animate_router
from serve_app.api.backend import Backend
from serve_app.api.guard import UploadGuard
from serve_app.api.problems import add_handlers
from serve_app.api.status import status_router


def create_app(backend: Backend) -> FastAPI:
    """The application over ``backend``, which it starts and closes with its own life."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await backend.start()
        try:
            yield
        finally:
            await backend.aclose()

    app = FastAPI(
        title="FlashHead Serve",
        version=__version__,
        description="A portrait and speech in, a lip-synced talking head out, streamed while it is made.",
        lifespan=life,
    )
    app.include_router(status_router(backend))
    app.include_router(animate_router(backend))
    app.add_middleware(UploadGuard, limits=backend.limits, paths=frozenset({PATH}))
    add_handlers(app, backend.limits.retry_after_s)
    return app
