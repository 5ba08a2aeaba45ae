"""What an animation request must get past before any of it is kept: a free place, a body of bounded
size, an upload that arrives in bounded time."""

from __future__ import annotations

import asyncio

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.access import route_path
from serve_app.api.problems import Problems
from serve_app.config import Limits
from serve_app.errors import AtCapacity, FlashHeadError, MalformedInput, TooLarge


class UploadGuard:
    """ASGI middleware around the paths that animate.

    It refuses with 429 when ``max_streams`` requests are running, with 413 a body over
    ``max_form_bytes`` (by its declared length at once, otherwise at the first byte too many) and with
    400 a body that is not complete within ``upload_timeout_s``.
    """

    def __init__(self, app: ASGIApp, limits: Limits, paths: frozenset[str], problems: Problems) -> None:
        self._app = app
        self._limits = limits
        self._problems = problems
        self._paths = paths
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._guarded(scope):
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await self._problems.answer(HTTPConnection(scope), refusal)(scope, receive, send)
            return
        self.running += 1
        try:
            await self._app(scope, _BoundedBody(receive, self._limits).receive, send)
        finally:
            self.running -= 1

    def _guarded(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "POST":
            return False
        return route_path(scope) in self._paths

    def _refusal(self, scope: Scope) -> FlashHeadError | None:
        if self.running >= self._limits.max_streams:
            return AtCapacity(
                f"all {self._limits.max_streams} places of this server are taken",
                value=self.running,
                accepted=self._limits.max_streams,
            )
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limits.max_form_bytes:
            return _too_large(int(declared), self._limits)
        return None


class _BoundedBody:
    """A request body that ends in an error when it is too large or too slow."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._deadline = asyncio.get_running_loop().time() + limits.upload_timeout_s
        self._bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise MalformedInput(
                f"the upload was not complete after {self._limits.upload_timeout_s:g} s",
                code="upload_timeout",
                value=self._bytes,
                accepted=f"complete within {self._limits.upload_timeout_s:g} s",
            ) from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.max_form_bytes:
            raise _too_large(self._bytes, self._limits)
        self._complete = not message.get("more_body", False)
        return message


def _too_large(size: int, limits: Limits) -> TooLarge:
    return TooLarge(
        f"the request body has {size} bytes or more; at most {limits.max_form_bytes} are taken",
        code="body_too_large",
        value=size,
        accepted=limits.max_form_bytes,
    )
