"""How many streams one GPU holds, and how late its chunks are with any number of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.chunks import ChunkFleet, Event, Played, What
from benchmarks.simulation.costs import PERIOD_S, GpuType

Lengths = Callable[[np.random.Generator], float]
CHURN_MEAN_S = 90.0


def exponential(rng: np.random.Generator) -> float:
    """Seconds a stream lasts, ``CHURN_MEAN_S`` on average."""
    return rng.exponential(CHURN_MEAN_S)


@dataclass(frozen=True)
class Profile:
    """A GPU with a constant number of streams.

    Attributes:
        overdue_s: how long after it was due each chunk was delivered, before any pre-roll.
        worst_s: the largest of these of each stream.
        first_s: from the end of each stream's first slice of speech to its first cluster.
    """

    overdue_s: np.ndarray
    worst_s: np.ndarray
    first_s: np.ndarray

    def lateness_s(self, preroll_s: float) -> np.ndarray:
        """Of every chunk, for a player with that pre-roll; 0 when in time."""
        return np.maximum(self.overdue_s - preroll_s, 0.0).round(9)

    def stalled(self, preroll_s: float) -> float:
        """Seconds players stand still per second played: one stops until a late chunk comes and goes on from
        there, so in all it stands as long as its latest chunk was late."""
        return float(np.maximum(self.worst_s - preroll_s, 0.0).sum() / (PERIOD_S * len(self.overdue_s)))


def profile_of(played: Sequence[Played]) -> Profile:
    """What streams played, summed up."""
    lists = [np.asarray(one.overdue_s) for one in played if one.overdue_s]
    return Profile(
        overdue_s=np.concatenate(lists),
        worst_s=np.array([one.max() for one in lists]),
        first_s=np.array([one.first_s for one in played if one.overdue_s]),
    )


def closed_population(streams: int, duration_s: float, lengths: Lengths, seed: int) -> list[Event]:
    """A history in which every stream that ends is followed by another, at a phase of its own, on GPU 0."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for _ in range(streams):
        at = rng.uniform(0.0, PERIOD_S)
        while at < duration_s:
            chunks = max(1, round(lengths(rng) / PERIOD_S))
            events.append(Event(at, What.OPEN, len(events), 0, chunks))
            at += chunks * PERIOD_S + rng.uniform(0.0, PERIOD_S)
    return sorted(events, key=lambda event: event.time_s)


def profile(
    gpu: GpuType, streams: int, duration_s: float, lengths: Lengths = exponential, seed: int = 0
) -> Profile:
    """One GPU with ``streams`` streams at a time for ``duration_s``."""
    return profile_of(ChunkFleet(gpu).run(closed_population(streams, duration_s, lengths, seed)))


def streams_held(
    gpu: GpuType,
    prerolls_s: Sequence[float],
    duration_s: float,
    lengths: Lengths = exponential,
    seed: int = 0,
) -> list[int]:
    """The most streams at which the 99th percentile of lateness is zero, for each pre-roll."""
    most = int(gpu.chunks_per_s * PERIOD_S) + 1
    profiles = {n: profile(gpu, n, duration_s, lengths, seed) for n in range(1, most + 1)}
    return [
        max((n for n, one in profiles.items() if np.quantile(one.lateness_s(pre), 0.99) == 0.0), default=0)
        for pre in prerolls_s
    ]
