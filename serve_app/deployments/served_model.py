"""One model behind the ingress: what it is, whether all that makes it is there, and its waking up.

The deployments of a model that may sleep scale to zero, each by itself. A request wakes all of them at once,
so that what it waits for, or is told to wait for, is the whole way to the first frame.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from serve_app.config import Limits
from serve_app.deployments.presence import Presence
from serve_app.errors import Unavailable
from serve_app.types import ModelCard


class ServedModel:
    """A model's presence.

    Args:
        name: what requests call it.
        generator: of its replicas, which say what they serve.
        encoders: what else makes its videos.
        may_sleep: whether no replica is as it should be.
        limits: how long a request waits for it to wake up.
    """

    def __init__(
        self,
        name: str,
        generator: Presence[ModelCard],
        encoders: tuple[Presence[Any], ...],
        may_sleep: bool,
        limits: Limits,
    ) -> None:
        self._name = name
        self._generator = generator
        self._parts = generator, *encoders
        self._may_sleep = may_sleep
        self._limits = limits

    @property
    def card(self) -> ModelCard | None:
        """What it is; absent until a replica has said so once."""
        return self._generator.answer

    @property
    def ready(self) -> bool:
        """Whether a request would be served: replicas are there, or none have to be."""
        return self.card is not None and (self._may_sleep or all(part.there for part in self._parts))

    async def awake(self) -> ModelCard:
        """Its card, once replicas are there that may be called.

        Raises:
            Unavailable: it was never there, or sleeps and takes longer than ``wake_wait_s`` to wake up;
                ``retry_after_s`` is when it should be awake.
        """
        if self.card is None:
            raise Unavailable(f"model {self._name} is still loading", code="not_ready", value=self._name)
        if self._may_sleep:
            await self._until_awake([part for part in self._parts if not part.there])
        return self.card

    async def _until_awake(self, sleeping: list[Presence[Any]]) -> None:
        waking = [part.wake() for part in sleeping]
        patience_s = self._limits.wake_wait_s
        if waking and (_longest_s(sleeping) or 0.0) <= patience_s:
            await asyncio.wait(waking, timeout=patience_s)
        if left := [part for part, task in zip(sleeping, waking, strict=True) if not task.done()]:
            left_s = _longest_s(left)
            raise Unavailable(
                f"model {self._name} is waking up",
                code="waking_up",
                value=self._name,
                retry_after_s=None if left_s is None else max(1, math.ceil(left_s)),
            )


def _longest_s(waking: list[Presence[Any]]) -> float | None:
    """Until all should be awake; unknown where it is of one."""
    left_s = [part.left_s for part in waking]
    return None if None in left_s else max(s for s in left_s if s is not None)
