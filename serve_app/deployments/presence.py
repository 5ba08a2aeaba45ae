"""Whether a deployment has replicas that take calls, and its waking up where it sleeps.

A sleeping deployment has scaled to zero. A call that asks a replica whether it is there waits in Serve's
queue, which Serve takes for demand. How long that lasts is measured each time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from serve_app.engine.protocols import Clock
from serve_app.session.cancellation import cancelled_call_is_lost

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

RETRY_PAUSE_S = 0.5


class Presence(Generic[Answer]):
    """One deployment's.

    Args:
        name: of the deployment.
        ask: calls a replica; waits where there is none.
        replicas: how many take calls.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[], Awaitable[Answer]],
        replicas: Callable[[], int],
        clock: Clock,
    ) -> None:
        self.answer: Answer | None = None
        """The last one; absent until a replica has given one."""
        self.start_s: float | None = None
        """How long it took to wake, the last time it had to."""
        self._name = name
        self._ask = ask
        self._replicas = replicas
        self._clock = clock
        self._waking: asyncio.Task[None] | None = None
        self._waking_since_s = 0.0

    @property
    def there(self) -> bool:
        """Whether a replica takes calls."""
        return self._replicas() > 0

    @property
    def left_s(self) -> float | None:
        """Until what wakes up should be awake, going by the last time; 0 where that has passed."""
        if self.start_s is None:
            return None
        return max(0.0, self.start_s - (self._clock.now() - self._waking_since_s))

    def wake(self) -> asyncio.Task[None]:
        """Ask until a replica answers; the task ends with its answer."""
        if self._waking is None or self._waking.done():
            self._waking_since_s = self._clock.now()
            # Outside any request's context, see ``handles``.
            self._waking = asyncio.create_task(self._wake(), context=contextvars.Context())
        return self._waking

    async def aclose(self) -> None:
        """Stop asking."""
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.gather(self._waking, return_exceptions=True)

    async def _wake(self) -> None:
        """Wait for a loaded and warm replica; Serve itself reports one that cannot be started."""
        asleep = not self.there
        while True:
            try:
                with cancelled_call_is_lost():
                    self.answer = await self._ask()
                break
            except Exception:
                logger.warning("%s does not answer yet", self._name, exc_info=True)
                await asyncio.sleep(RETRY_PAUSE_S)
        took_s = self._clock.now() - self._waking_since_s
        if asleep:
            self.start_s = took_s
        logger.info("%s is ready after %.1f s", self._name, took_s)
