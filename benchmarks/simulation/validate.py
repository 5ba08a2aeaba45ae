"""How far the fleet's lateness is off: the same history chunk by chunk."""

from __future__ import annotations

import numpy as np

from benchmarks.simulation.chunks import ChunkFleet
from benchmarks.simulation.costs import PERIOD_S
from benchmarks.simulation.held import profile_of
from benchmarks.simulation.report import Lateness
from benchmarks.simulation.run import FleetRun


def chunk_by_chunk(run: FleetRun, preroll_s: float) -> Lateness:
    """``report.lateness`` of a run with its history kept, from every chunk made by the real scheduler."""
    played = profile_of(ChunkFleet(run.settings.gpu).run(run.history))
    late_s = played.lateness_s(preroll_s)
    chunks = PERIOD_S * len(late_s)
    return Lateness(
        late=float((late_s > 0).mean()),
        p50_s=float(np.quantile(late_s, 0.5)),
        p99_s=float(np.quantile(late_s, 0.99)),
        max_s=float(late_s.max()),
        played=chunks / (chunks * (1 + played.stalled(preroll_s))),
        first_p50_s=float(np.quantile(played.first_s, 0.5)),
        first_p99_s=float(np.quantile(played.first_s, 0.99)),
    )
