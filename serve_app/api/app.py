"""The FastAPI application: every public protocol's router, the guard before them, one way to fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from serve_app import __version__
from serve_app.api.access import KeyGuard
from serve_app.api.animate import PATH, animate_router
from serve_app.api.backend import Backend
from serve_app.api.guard import UploadGuard
from serve_app.api.keys import KeyRing
from serve_app.api.problems import Problems, add_handlers
from serve_app.api.quota import Quotas
from serve_app.api.status import status_router
from serve_app.config import CorsSettings, KeySettings

TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own is off: its span would begin a trace beside Serve's, which has one of each request."""
STREAM_PATHS = frozenset({PATH})
"""A POST to one of them is a stream."""
EXPOSED_HEADERS = (
    "Retry-After",
    "X-Session-Id",
    "X-FlashHead-Model",
    "X-FlashHead-Reproducible",
    "X-FlashHead-Frames",
    "X-FlashHead-Warnings",
    "X-Request-Id",
)
"""What a page of another origin may read of an answer."""


def create_app(backend: Backend, keys: KeySettings, cors: CorsSettings) -> FastAPI:
    """The application over ``backend``, which it starts and closes with its own life."""
    problems = Problems(backend.recorder, backend.limits.retry_after_s)
    ring = KeyRing(Path(keys.file), keys.reload_s) if keys.file is not None else None

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with ring.watched() if ring is not None else nullcontext():
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
        telemetry=TELEMETRY,
    )
    app.include_router(status_router(backend))
    app.include_router(animate_router(backend))
    # The last added is the first to see a request: a browser's preflight has no key, and a page must be
    # able to read a refusal.
    app.add_middleware(UploadGuard, limits=backend.limits, paths=STREAM_PATHS, problems=problems)
    if ring is not None:
        app.add_middleware(
            KeyGuard,
            ring=ring,
            quotas=Quotas(time.monotonic),
            stream_paths=STREAM_PATHS,
            problems=problems,
        )
    if cors.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key"],
            expose_headers=EXPOSED_HEADERS,
        )
    add_handlers(app, problems)
    return app
