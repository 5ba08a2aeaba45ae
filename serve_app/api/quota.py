"""What the owner of each key has used of its limits, in this ingress replica."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.api.keys import KeyEntry
from serve_app.errors import RateLimited


@dataclass
class _Bucket:
    """Tokens left, as of a moment of the clock."""

    tokens: float
    filled_at: float


class Quotas:
    """Rates and running streams by the name of a key, so that they outlast a change of the key itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._streams: Counter[str] = Counter()

    def spend_request(self, entry: KeyEntry) -> None:
        """Count one request.

        Raises:
            RateLimited: the rate is used up; ``retry_after_s`` says when there is room for one again.
        """
        if entry.requests_per_minute is None:
            return
        per_s = entry.requests_per_minute / 60
        burst = entry.burst or max(1.0, entry.requests_per_minute)
        now = self._clock()
        bucket = self._buckets.setdefault(entry.name, _Bucket(burst, now))
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.filled_at) * per_s)
        bucket.filled_at = now
        if bucket.tokens < 1:
            raise RateLimited(
                f"key {entry.name} may make {entry.requests_per_minute:g} requests a minute",
                accepted=entry.requests_per_minute,
                retry_after_s=math.ceil((1 - bucket.tokens) / per_s),
            )
        bucket.tokens -= 1

    def check_streams(self, entry: KeyEntry) -> None:
        """Raise unless there is room for one stream more.

        Raises:
            RateLimited: as many as the key may run are running.
        """
        running = self._streams[entry.name]
        if entry.max_streams is not None and running >= entry.max_streams:
            raise RateLimited(
                f"key {entry.name} may run {entry.max_streams} streams at once",
                code="too_many_streams",
                value=running,
                accepted=entry.max_streams,
            )

    def begin_stream(self, name: str) -> None:
        """A stream of the key of that name begins."""
        self._streams[name] += 1

    def end_stream(self, name: str) -> None:
        """A stream that began has ended."""
        self._streams[name] -= 1
