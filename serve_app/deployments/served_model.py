"""One model behind the ingress: what it is, whether anything makes it now, and its waking up.

A model that may sleep has a deployment that scales to zero. The first request for it wakes it: the call
that asks a replica what it is waits in Serve's queue, which Serve takes for demand. How long that lasts is
measured each time, so that a client who would have to wait too long is told when to come back.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Awaitable, Callable

from serve_app.config import Limits
from serve_app.engine.protocols import Clock
from serve_app.errors import Unavailable
from serve_app.session.cancellation import cancelled_call_is_lost
from serve_app.types import ModelCard

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.5


class ServedModel:
    """A model's presence.

    Args:
        name: what requests call it.
        describe: asks a replica what it serves; waits where there is none.
        replicas: how many take calls.
        may_sleep: whether none is as it should be.
        limits: how long a request waits for it to wake up.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        describe: Callable[[], Awaitable[ModelCard]],
        replicas: Callable[[], int],
        may_sleep: bool,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.card: ModelCard | None = None
        """What it is; absent until a replica has said so once."""
        self.start_s: float | None = None
        """How long it took to wake, the last time it had to."""
        self._name = name
        self._describe = describe
        self._replicas = replicas
        self._may_sleep = may_sleep
        self._limits = limits
        self._clock = clock
        self._waking: asyncio.Task[None] | None = None
        self._waking_since_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether a request would be served: a replica is there, or none has to be."""
        return self.card is not None and (self._may_sleep or self._replicas() > 0)

    def wake(self) -> asyncio.Task[None]:
        """Ask until a replica answers; the task ends with its answer."""
        if self._waking is None or self._waking.done():
            self._waking_since_s = self._clock.now()
            # Outside any request's context, see ``handles``.
            self._waking = asyncio.create_task(self._wake(), context=contextvars.Context())
        return self._waking

    async def awake(self) -> ModelCard:
        """Its card, once a replica is there that may be called.

        Raises:
            Unavailable: it was never there, or sleeps and takes longer than ``wake_wait_s`` to wake up;
                ``retry_after_s`` is when it should be awake.
        """
        if self.card is None:
            raise Unavailable(f"model {self._name} is still loading", code="not_ready", value=self._name)
        if self._may_sleep and not self._replicas():
            await self._until_awake()
        return self.card

    async def aclose(self) -> None:
        """Stop asking."""
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.gather(self._waking, return_exceptions=True)

    async def _until_awake(self) -> None:
        waking = self.wake()
        patience_s = self._limits.wake_wait_s
        if (self._left_s() or 0.0) <= patience_s:
            await asyncio.wait({waking}, timeout=patience_s)
        if not waking.done():
            left_s = self._left_s()
            raise Unavailable(
                f"model {self._name} is waking up",
                code="waking_up",
                value=self._name,
                retry_after_s=None if left_s is None else max(1, math.ceil(left_s)),
            )

    def _left_s(self) -> float | None:
        """Until it should be awake, going by the last time; 0 where that has passed."""
        if self.start_s is None:
            return None
        return max(0.0, self.start_s - (self._clock.now() - self._waking_since_s))

    async def _wake(self) -> None:
        """Wait for a loaded and warm replica; Serve itself reports one that cannot be started."""
        asleep = not self._replicas()
        while True:
            try:
                with cancelled_call_is_lost():
                    self.card = await self._describe()
                break
            except Exception:
                logger.warning("model %s does not answer yet", self._name, exc_info=True)
                await asyncio.sleep(RETRY_PAUSE_S)
        took_s = self._clock.now() - self._waking_since_s
        if asleep:
            self.start_s = took_s
        logger.info("model %s is ready after %.1f s", self._name, took_s)
