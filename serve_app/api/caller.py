"""Who a request is from, and what it is called in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import HTTPConnection

MAX_REQUEST_ID = 128
"""Longest part of a client's own request id that is kept, in characters."""


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


def request_id(connection: HTTPConnection) -> str:
    """The client's ``x-request-id``, or the one Serve gave the request; Serve sends it back. Empty where
    neither did."""
    return connection.headers.get("x-request-id", "")[:MAX_REQUEST_ID]
