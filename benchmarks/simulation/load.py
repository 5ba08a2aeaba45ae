"""Streams that want to be served: how many over a day, when each opens, how long it lasts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.costs import PERIOD_S, STREAM_MEAN_S, STREAM_SIGMA

HOUR_S = 3600.0
LEAD_IN_S = 2 * HOUR_S
"""How long before the start streams may have opened that still run then."""


@dataclass(frozen=True)
class Day:
    """Streams offered at a time: a cosine over 24 h with a step on it.

    Attributes:
        peak: at the top of the curve, at ``top_h``; the step keeps below it by default.
        trough: at the bottom, as a share of ``peak``.
        step: what comes at once at ``step_h`` and goes ``step_length_h`` later, as a share of ``peak``.
    """

    peak: float
    trough: float = 0.25
    top_h: float = 17.0
    step: float = 0.3
    step_h: float = 11.0
    step_length_h: float = 1.0

    def offered(self, time_s: np.ndarray) -> np.ndarray:
        """Streams at a time on average, were all served."""
        hours = np.asarray(time_s) / HOUR_S
        wave = (1 + np.cos(2 * np.pi * (hours - self.top_h) / 24)) / 2
        stepped = (hours >= self.step_h) & (hours < self.step_h + self.step_length_h)
        return self.peak * (self.trough + (1 - self.trough) * wave + self.step * stepped)


def flat(streams: float) -> Day:
    """The same load at all times."""
    return Day(streams, trough=1.0, step=0.0)


@dataclass(frozen=True)
class Arrivals:
    """Streams in order of opening: ``opened_s`` float64 and ``chunks`` int64, both ``[n]``."""

    opened_s: np.ndarray
    chunks: np.ndarray

    def __len__(self) -> int:
        return len(self.opened_s)


def lengths_s(rng: np.random.Generator, size: int, mean_s: float = STREAM_MEAN_S) -> np.ndarray:
    """Seconds ``[size]`` streams last: lognormal."""
    return rng.lognormal(np.log(mean_s) - STREAM_SIGMA**2 / 2, STREAM_SIGMA, size)


def arrivals(day: Day, duration_s: float, seed: int, mean_s: float = STREAM_MEAN_S) -> Arrivals:
    """A Poisson process that follows ``day``, with lengths of whole chunks. Streams that run at
    time 0 open within the first period for what is left of them."""
    rng = np.random.default_rng(seed)
    ceiling = day.peak * (1 + day.step)
    count = rng.poisson(ceiling / mean_s * (LEAD_IN_S + duration_s))
    times = np.sort(rng.uniform(-LEAD_IN_S, duration_s, count))
    times = times[rng.uniform(0.0, ceiling, count) < day.offered(np.maximum(times, 0.0))]
    lengths = lengths_s(rng, len(times), mean_s)
    running = times + lengths > 0.0
    times, lengths = times[running], lengths[running]
    before = times < 0.0
    lengths[before] += times[before]
    times[before] = rng.uniform(0.0, PERIOD_S, int(before.sum()))
    order = np.argsort(times, kind="stable")
    chunks = np.maximum(1, np.ceil(lengths[order] / PERIOD_S)).astype(np.int64)
    return Arrivals(times[order], chunks)
