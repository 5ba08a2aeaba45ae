"""How long an engine is warmed up: until its chunks take the same time again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

STEADY_WITHIN = 0.1
"""Two chunks in a row agree if the slower one takes at most this much longer, relative to the faster."""
MAX_CHUNKS = 12
"""More are not made: on a machine that others use too, times may never agree."""


def until_steady(chunk: Callable[[], object], now: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each of the chunks made until two in a row agreed, two at least.

    Args:
        chunk: makes one chunk and waits for the device.
        now: monotonic seconds.
    """
    seconds: list[float] = []
    while not agree(seconds[-2:]):
        if len(seconds) == MAX_CHUNKS:
            spread = ", ".join(f"{1000 * one:.0f}" for one in seconds)
            logger.warning("chunk times are not steady after %d chunks: %s ms", MAX_CHUNKS, spread)
            break
        started = now()
        chunk()
        seconds.append(now() - started)
    return seconds


def agree(pair: list[float]) -> bool:
    """Whether two chunks took the same time."""
    return len(pair) == 2 and max(pair) <= min(pair) * (1 + STEADY_WITHIN)
