"""Who calls: every request shows its key before anything of its body is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from serve_app.api.keys import KeyEntry, KeyRing
from serve_app.api.problems import problem
from serve_app.api.quota import Quotas
from serve_app.errors import FlashHeadError, Unauthorized

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready"})
"""They need no key."""
DENIAL = "websocket.http.response"
"""The ASGI extension that answers a WebSocket handshake with an ordinary HTTP response."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request is from.

    Attributes:
        name: the key's, never the key; for logs and metrics.
        models: those the key may use; None for any.
    """

    name: str
    models: tuple[str, ...] | None = None

    def usable(self, served: Sequence[str]) -> tuple[str, ...]:
        """The served models that are open to the caller, the default first."""
        return tuple(name for name in served if self.models is None or name in self.models)


ANONYMOUS = Caller("anonymous")
"""Anybody, where no keys are required."""


def caller(connection: HTTPConnection) -> Caller:
    """Who a request or a WebSocket is from."""
    found = getattr(connection.state, "caller", ANONYMOUS)
    assert isinstance(found, Caller)
    return found


def route_path(scope: Scope) -> str:
    """A request's path within the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class KeyGuard:
    """ASGI middleware that lets in who has a key: 401 without one, 429 past the key's limits.

    A WebSocket is refused before it is accepted, and is a stream while it is open, as is a POST to one of
    ``stream_paths``. A stream that runs goes on when its key is taken away.
    """

    def __init__(
        self, app: ASGIApp, ring: KeyRing, quotas: Quotas, stream_paths: frozenset[str], retry_after_s: int
    ) -> None:
        self._app = app
        self._ring = ring
        self._quotas = quotas
        self._stream_paths = stream_paths
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and route_path(scope) in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"connections of type {scope['type']!r} are not served")
        try:
            entry = self._admit(scope)
        except FlashHeadError as refusal:
            logger.info("%s: %d %s: %s", route_path(scope), refusal.status, refusal.code, refusal)
            await self._refuse(refusal, scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "caller": Caller(entry.name, entry.models)}
        if not self._is_stream(scope):
            await self._app(scope, receive, send)
            return
        self._quotas.begin_stream(entry.name)
        try:
            await self._app(scope, receive, send)
        finally:
            self._quotas.end_stream(entry.name)

    def _admit(self, scope: Scope) -> KeyEntry:
        entry = self._ring.identify(presented_key(scope))
        if entry is None:
            raise Unauthorized("the API key is not known here")
        self._quotas.spend_request(entry)
        if self._is_stream(scope):
            self._quotas.check_streams(entry)
        return entry

    def _is_stream(self, scope: Scope) -> bool:
        if scope["type"] == "websocket":
            return True
        return scope["method"] == "POST" and route_path(scope) in self._stream_paths

    async def _refuse(self, refusal: FlashHeadError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" or DENIAL in scope.get("extensions", {}):
            await problem(refusal, self._retry_after_s)(scope, receive, send)
        else:
            await WebSocketClose(refusal.ws_code, refusal.code)(scope, receive, send)


def presented_key(scope: Scope) -> str:
    """The one key a request shows, in ``Authorization: Bearer`` or ``x-api-key``.

    Raises:
        Unauthorized: there is none, or the headers leave open which one is meant.
    """
    bearers = _values(scope, b"authorization")
    keys = _values(scope, b"x-api-key")
    if not bearers and not keys:
        raise Unauthorized(
            "an API key is needed, as Authorization: Bearer KEY or x-api-key: KEY", code="missing_key"
        )
    shown = set(keys)
    for value in bearers:
        scheme, _, key = value.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("Authorization must be: Bearer KEY", code="malformed_credentials")
        shown.add(key.strip())
    if len(bearers) > 1 or len(keys) > 1 or len(shown) > 1:
        raise Unauthorized("the request shows more than one API key", code="malformed_credentials")
    return shown.pop()


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]
