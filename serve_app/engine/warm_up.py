"""How long networks are warmed up: until the same work takes the same time again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

STEADY_WITHIN = 0.1
"""Two rounds in a row agree if the slower one takes at most this much longer, relative to the faster."""
MAX_ROUNDS = 12
"""More are not made: on a machine that others use too, times may never agree."""


def until_steady(work: Callable[[], object], now: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each round of ``work`` until two in a row agreed, two at least.

    Args:
        work: makes one chunk, say, and waits for the device.
        now: monotonic seconds.
    """
    seconds: list[float] = []
    while not agree(seconds[-2:]):
        if len(seconds) == MAX_ROUNDS:
            spread = ", ".join(f"{1000 * one:.0f}" for one in seconds)
            logger.warning("times are not steady after %d rounds of warming up: %s ms", MAX_ROUNDS, spread)
            break
        started = now()
        work()
        seconds.append(now() - started)
    return seconds


def agree(pair: list[float]) -> bool:
    """Whether two rounds took the same time."""
    return len(pair) == 2 and max(pair) <= min(pair) * (1 + STEADY_WITHIN)
