"""What the routers need of the graph behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from serve_app.api.caller import Caller
from serve_app.config import Limits
from serve_app.errors import Forbidden, OutOfRange
from serve_app.metrics import Recorder
from serve_app.session.animation import Stage
from serve_app.types import ModelCard


class Backend(Protocol):
    """The graph, as the ingress sees it."""

    limits: Limits

    @property
    def recorder(self) -> Recorder:
        """Takes what is measured of requests."""
        ...

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the configured models; the first is the default."""
        ...

    def cards(self) -> Mapping[str, ModelCard]:
        """The models that have been loaded and warm at least once."""
        ...

    def ready(self, model: str) -> bool:
        """Whether all that makes a model has a replica, or sleeps as it may."""
        ...

    async def stage(self, model: str) -> Stage:
        """What plays an animation with a served model; a sleeping one is woken and waited for.

        Raises:
            Unavailable: the model is not loaded yet, or takes longer to wake up than a request may wait.
        """
        ...

    async def start(self) -> None:
        """Start what the backend owns."""
        ...

    async def aclose(self) -> None:
        """Stop what ``start`` started."""
        ...


def chosen_model(backend: Backend, caller: Caller, wanted: str | None) -> str:
    """The served model a request names; without a name the first that is open to the caller.

    Raises:
        OutOfRange: the name is not served.
        Forbidden: the caller's key is for other models.
    """
    usable = caller.usable(backend.served)
    if wanted in usable:
        return wanted
    if wanted is None and usable:
        return usable[0]
    if caller.models is not None:
        raise Forbidden(
            f"key {caller.name} does not open model={wanted!r}; accepted: {list(usable)}",
            code="model_forbidden",
            value=wanted and wanted[:100],
            accepted=list(usable),
        )
    assert wanted is not None
    raise OutOfRange(
        f"model={wanted!r} is not served here; accepted: {list(usable)}",
        code="unknown_model",
        value=wanted[:100],
        accepted=list(usable),
    )
