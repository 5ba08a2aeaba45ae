"""The real clock: monotonic seconds."""

from __future__ import annotations

import asyncio
import time


class MonotonicClock:
    """``Clock`` of a running server."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep that long."""
        await asyncio.sleep(seconds)
