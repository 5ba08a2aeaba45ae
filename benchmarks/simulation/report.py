"""What a run means for those who watch and those who pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.simulation.costs import PERIOD_S, GpuType
from benchmarks.simulation.held import Profile, profile
from benchmarks.simulation.load import HOUR_S, lengths_s
from benchmarks.simulation.run import FleetRun

PROFILE_STREAM_S = 4 * HOUR_S
"""Stream-seconds simulated for the lateness of each number of streams on a GPU."""
MOST_SAMPLES = 20_000


@dataclass(frozen=True)
class Lateness:
    """Of all chunks of a run.

    Attributes:
        late: share of chunks that came late.
        p50_s, p99_s, max_s: how late chunks were; 0 for one in time.
        played: time in which players played, as a share of that and the time they stood still.
        first_p50_s, first_p99_s: from the end of a stream's first slice of speech to its first cluster.
    """

    late: float
    p50_s: float
    p99_s: float
    max_s: float
    played: float
    first_p50_s: float
    first_p99_s: float


def one_length_s(rng: np.random.Generator) -> float:
    """Seconds one of the fleet's streams lasts."""
    return float(lengths_s(rng, 1)[0])


@cache
def profiles(gpu: GpuType, most: int) -> tuple[Profile, ...]:
    """A GPU with 1, 2, ... ``most`` streams."""
    return tuple(profile(gpu, n, PROFILE_STREAM_S / n, one_length_s) for n in range(1, most + 1))


def lateness(run: FleetRun, preroll_s: float) -> Lateness:
    """How late the run's chunks were for players with that pre-roll.

    Raises:
        ValueError: the run played nothing.
    """
    if not run.stream_s:
        raise ValueError("no stream was served: nothing was early or late")
    alone = profiles(run.settings.gpu, run.settings.held)
    crowds = [(one, seconds / PERIOD_S) for one, seconds in zip(alone, run.crowd_s[1:], strict=False)]
    usual_s = float(np.median(alone[-1].overdue_s)) - preroll_s
    # Each stream on its way back, or on a GPU that is behind, is late by what it is behind.
    ways = [np.maximum(way - preroll_s, 0.0) for way in run.way_back_s]
    behind = [np.maximum(np.linspace(one.start_s, one.end_s, 20) + usual_s, 0.0) for one in run.behind]
    parts = [(_thinned(one.lateness_s(preroll_s)), chunks) for one, chunks in crowds]
    parts += [(way, float(len(way))) for way in ways]
    parts += [(late, one.stream_s / PERIOD_S) for late, one in zip(behind, run.behind, strict=True)]
    late_s, weights = _merged(parts)
    first_s, first_weights = _merged([(one.first_s, chunks) for one, chunks in crowds])
    stalled_s = sum(one.stalled(preroll_s) * chunks * PERIOD_S for one, chunks in crowds)
    stalled_s += sum(float(way.max()) for way in ways)
    stalled_s += sum(one.streams * max(0.0, one.end_s - one.start_s) for one in run.behind)
    return Lateness(
        late=float(weights[late_s > 0].sum() / weights.sum()),
        p50_s=_quantile(late_s, weights, 0.5),
        p99_s=_quantile(late_s, weights, 0.99),
        max_s=float(late_s[weights > 0].max()),
        played=run.stream_s / (run.stream_s + stalled_s),
        first_p50_s=_quantile(first_s, first_weights, 0.5),
        first_p99_s=_quantile(first_s, first_weights, 0.99),
    )


def _thinned(samples: np.ndarray) -> np.ndarray:
    """Fewer samples of the same distribution, the largest among them."""
    return np.sort(samples)[:: -max(1, len(samples) // MOST_SAMPLES)]


def _merged(parts: Sequence[tuple[np.ndarray, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Samples in order, and the weight of each: what a part weighs is shared by its samples."""
    samples = np.concatenate([part for part, _ in parts])
    weights = np.concatenate([np.full(len(part), weight / len(part)) for part, weight in parts])
    order = np.argsort(samples, kind="stable")
    return samples[order], weights[order]


def _quantile(ordered: np.ndarray, weights: np.ndarray, share: float) -> float:
    return float(ordered[np.searchsorted(np.cumsum(weights), share * weights.sum())])


@dataclass(frozen=True)
class Bill:
    """What a run cost.

    Attributes:
        gpu_hours: from asking for each GPU to giving it back.
        stream_hours: played.
        per_stream_hour: price of the first by the second; infinite where nothing was played.
        used: streams held, as a share of the places paid for.
    """

    gpu_hours: float
    stream_hours: float
    per_stream_hour: float
    used: float


def bill(run: FleetRun, price_per_hour: float) -> Bill:
    """GPU-hours and what they come to."""
    gpu_hours, stream_hours = run.gpu_s / HOUR_S, run.stream_s / HOUR_S
    return Bill(
        gpu_hours=gpu_hours,
        stream_hours=stream_hours,
        per_stream_hour=gpu_hours * price_per_hour / stream_hours if stream_hours else float("inf"),
        used=stream_hours / (gpu_hours * run.settings.places),
    )
