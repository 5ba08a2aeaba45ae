"""How busy something was lately, from a counter of the seconds it worked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from serve_app.engine.protocols import Clock

WINDOW_S = 10.0


class BusyShare:
    """The share of the last ``WINDOW_S`` that ``busy_s`` grew in; looked at about once a second.

    Args:
        busy_s: seconds worked so far.
        clock: monotonic seconds.
    """

    def __init__(self, busy_s: Callable[[], float], clock: Clock) -> None:
        self._busy_s = busy_s
        self._clock = clock
        self._samples = deque([(clock.now(), busy_s())])

    def now(self) -> float:
        """The share since the last sample that is older than the window, or since the first."""
        now_s, busy_s = self._clock.now(), self._busy_s()
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - WINDOW_S:
            self._samples.popleft()
        since_s, before_s = self._samples[0]
        if now_s == since_s:
            return 0.0
        self._samples.append((now_s, busy_s))
        return (busy_s - before_s) / (now_s - since_s)
