"""How many live streams an engine makes in real time, and who is let in.

A stream owes one chunk per playout time of a chunk. A replica promises ``max_utilisation`` of its time, so
it has as many *places* as chunks fit into that; a stream with more denoising steps than usual takes more of
them. What a chunk takes is measured: by the warm-up at first, then by the loop while it works. ``places``
follows that with a tolerance, so that a chunk time between two numbers does not swing it back and forth.

A new live stream needs a place, unless it is the first, so that a device slower than real time still serves
somebody. A session nobody watches needs none, since the scheduler puts its work behind all that has a
deadline; it leaves room in the table for every place that is free. One such session is let in whatever the
places are, so that a table no larger than they makes videos too. A session that resumes only needs room in
the table, because late is better than lost. The table holds ``max_sessions``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from serve_app.config import ModelSettings
from serve_app.engine.protocols import Clock
from serve_app.engine.scheduler import StepCosts
from serve_app.errors import AtCapacity
from serve_app.types import FRAME_MS, ModelCard

logger = logging.getLogger(__name__)

TOLERANCE = 0.05
"""How much slower than rated chunks may be before a place is taken away."""
ROUNDING = 1e-9
MAX_REFUSED = 1000


class Admission:
    """Decides about new sessions.

    Args:
        model: bounds: ``max_sessions``, ``max_utilisation``, ``max_rows``.
        card: geometry and usual number of steps.
        costs: what the loop measures.
        clock: monotonic seconds.
        chunk_s: seconds of a whole chunk alone, measured before the loop's first one; 0 where it was not:
            then the first chunks are not rated.
        retry_after_s: what a refused client is told, and so how long its session counts as refused.
    """

    def __init__(
        self,
        model: ModelSettings,
        card: ModelCard,
        costs: StepCosts,
        clock: Clock,
        chunk_s: float = 0.0,
        retry_after_s: int = 5,
    ) -> None:
        self._model = model
        self._steps = card.steps
        self._period_s = card.geometry.slice_frames * FRAME_MS / 1000
        self._costs = costs
        self._clock = clock
        self._chunk_s = chunk_s
        self._retry_after_s = retry_after_s
        self._places = 0
        self._refused: dict[str, float] = {}

    @property
    def capacity(self) -> int:
        """Sessions of any kind."""
        return self._model.max_sessions

    def chunk_s(self, steps: int) -> float:
        """Seconds of engine time a chunk of ``steps`` takes when as many rows as allowed share its steps."""
        if not self._costs.complete:
            return self._chunk_s
        return self._costs.whole_chunk(steps, self._model.max_rows)

    def places(self) -> int:
        """Live streams of the usual number of steps that are held in real time; at least 1."""
        limit = self._model.max_sessions
        chunk_s = self.chunk_s(self._steps)
        exact = min(self._model.max_utilisation * self._period_s / chunk_s, limit) if chunk_s else limit
        kept = self._places and self._places * (1 - TOLERANCE) <= exact < self._places + 1
        if not kept:
            rated = max(1, int(exact + ROUNDING))
            if rated != self._places:
                self._tell(rated, chunk_s)
            self._places = rated
        return self._places

    def occupancy(self, streams: Sequence[int]) -> float:
        """Work owed to live streams with these numbers of steps, as a share of what may be promised."""
        owed_s = math.fsum(map(self.chunk_s, streams))
        return owed_s / (self._model.max_utilisation * self._period_s)

    def admit(
        self, session_id: str, steps: int | None, streams: Sequence[int], taken: int, resumed: bool = False
    ) -> None:
        """Let a session in, or not.

        Args:
            session_id: of the newcomer.
            steps: of a live stream, ``None`` for a session nobody watches.
            streams: steps of the live streams open.
            taken: sessions open, live or not.
            resumed: whether it was open before, here or elsewhere.

        Raises:
            AtCapacity: ``value`` sessions of the kind are open, of ``accepted``.
        """
        batch, limit = taken - len(streams), self._model.max_sessions
        batch_limit = max(1, limit - max(self.places(), len(streams)))
        if taken >= limit:
            message = f"all {limit} places for sessions are taken"
        elif not resumed and steps is None and batch >= batch_limit:
            taken, limit = batch, batch_limit
            message = f"{batch} videos nobody watches are being made; what else is free is for live streams"
        elif not resumed and steps is not None and streams and not self._has_place(steps, streams):
            taken, limit = len(streams), self.places()
            message = f"{taken} live streams are open; {limit} are made in real time"
        else:
            self._refused.pop(session_id, None)
            return
        self._note_refusal(session_id)
        raise AtCapacity(message, value=taken, accepted=limit, retry_after_s=self._retry_after_s)

    def refused(self) -> int:
        """Sessions turned away within ``retry_after_s``. One that asked several times counts once; a client
        that tries again does so with a new session, and counts again."""
        limit = self._clock.now() - self._retry_after_s
        self._refused = {who: when for who, when in self._refused.items() if when > limit}
        return len(self._refused)

    def _note_refusal(self, session_id: str) -> None:
        self._refused.pop(session_id, None)
        if len(self._refused) == MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[session_id] = self._clock.now()

    def _has_place(self, steps: int, streams: Sequence[int]) -> bool:
        usual = self.chunk_s(self._steps) or 1.0
        load = math.fsum((self.chunk_s(each) or 1.0) / usual for each in (*streams, steps))
        return load <= self.places() + ROUNDING

    def _tell(self, rated: int, chunk_s: float) -> None:
        took = (1000 * self._period_s, 1000 * chunk_s)
        if chunk_s > self._period_s:
            logger.warning("slower than real time: %.0f ms of video take %.0f ms; serving one stream", *took)
        elif chunk_s:
            logger.info("%d live streams at once: %.0f ms of video take %.0f ms", rated, *took)
