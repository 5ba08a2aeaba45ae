"""An ingress that streams as fast as its reader reads, and says how far it got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.responses import StreamingResponse

from serve_app.deployments.reader import ReaderCredit, ReaderLedger

PIECE = b"x" * 250_000


class Fountain:
    """``/flow?pieces=N`` streams N pieces of 250 kB; ``/made`` says how many were made so far."""

    def __init__(self) -> None:
        self._readers = ReaderLedger()
        self._made = 0

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI()

        @app.get("/flow")
        async def flow(pieces: int) -> StreamingResponse:
            self._made = 0
            return StreamingResponse(self._flow(pieces), media_type="application/octet-stream")

        @app.get("/made")
        async def made() -> int:
            return self._made

        app.add_middleware(ReaderCredit, ledger=self._readers)
        return app

    async def _flow(self, pieces: int) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield PIECE
            self._made += 1
            await asyncio.sleep(0.001)

    def passed(self, request_id: str, bodies: int) -> None:
        self._readers.passed(request_id, bodies)
