"""Who calls: every request shows its key before anything of its body is read."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from serve_app.api.caller import Caller
from serve_app.api.keys import KeyEntry, KeyRing
from serve_app.api.problems import Problems
from serve_app.api.quota import Quotas
from serve_app.errors import FlashHeadError, Unauthorized

OPEN_PATHS = frozenset({"/health", "/ready"})
"""They need no key."""
DENIAL = "websocket.http.response"
"""The ASGI extension that answers a WebSocket handshake with an ordinary HTTP response."""


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
        self, app: ASGIApp, ring: KeyRing, quotas: Quotas, stream_paths: frozenset[str], problems: Problems
    ) -> None:
        self._app = app
        self._ring = ring
        self._quotas = quotas
        self._stream_paths = stream_paths
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and route_path(scope) in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"connections of type {scope['type']!r} are not served")
        try:
            entry = self._admit(scope)
        except FlashHeadError as refusal:
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
        answer = self._problems.answer(HTTPConnection(scope), refusal)
        if scope["type"] == "http" or DENIAL in scope.get("extensions", {}):
            await answer(scope, receive, send)
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
