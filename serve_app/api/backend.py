"""What the routers need of the graph behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from serve_app.config import Limits
from serve_app.errors import OutOfRange
from serve_app.session.animation import Stage
from serve_app.types import ModelCard


class Backend(Protocol):
    """The graph, as the ingress sees it."""

    limits: Limits

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the configured models; the first is the default."""
        ...

    def cards(self) -> Mapping[str, ModelCard]:
        """The models that are loaded and warm."""
        ...

    def stage(self, model: str) -> Stage:
        """What plays an animation with a served model.

        Raises:
            Unavailable: the model is not loaded yet.
        """
        ...

    async def start(self) -> None:
        """Start what the backend owns."""
        ...

    async def aclose(self) -> None:
        """Stop what ``start`` started."""
        ...


def chosen_model(backend: Backend, wanted: str | None) -> str:
    """The served model a request names, the default for none.

    Raises:
        OutOfRange: the name is not served.
    """
    if wanted is None:
        return backend.served[0]
    if wanted not in backend.served:
        raise OutOfRange(
            f"model={wanted!r} is not served here; accepted: {list(backend.served)}",
            code="unknown_model",
            value=wanted[:100],
            accepted=list(backend.served),
        )
    return wanted
