"""What a fleet is made of, and what came of a run of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from serve_app.config import Limits, ModelSettings
from serve_app.engine.admission import Admission
from serve_app.session.clock import MonotonicClock
from serve_app.types import Geometry, ModelCard

from benchmarks.simulation.chunks import Event
from benchmarks.simulation.costs import (
    DETECTION_S,
    EAGER_START_S,
    LITE_SLICE_FRAMES,
    MTBF_H,
    REPAIR_S,
    STEPS,
    GpuType,
)

GEOMETRY = Geometry(height=512, width=512, frames=33, motion_frames=33 - LITE_SLICE_FRAMES)
LIMITS = Limits()


@dataclass(frozen=True)
class FleetSettings:
    """What a fleet is made of.

    Attributes:
        gpu: its GPUs, one replica on each.
        capacity: sessions a replica takes at most (``max_sessions``); past its places those that lost theirs.
        min_gpus, max_gpus: bounds of the policy.
        start_s: from asking for a GPU to its replica taking streams.
        detection_s: from a loss to everybody knowing of it.
        repair_s: what a replacement of a lost node takes longer than any other GPU.
        mtbf_h: mean time between losses of one GPU; infinite for none.
        zones: GPUs are dealt out to them in turn.
        zone_loss_h: when zone 0 is lost with all its GPUs, if ever.
        patience_s: how long a stream without a replica looks for one.
        retry_after_s: how long a refused stream counts as demand.
        tick_s: between two looks of the policy.
    """

    gpu: GpuType
    capacity: int
    min_gpus: int
    max_gpus: int
    start_s: float = EAGER_START_S
    detection_s: float = DETECTION_S
    repair_s: float = REPAIR_S
    mtbf_h: float = MTBF_H
    zones: int = 3
    zone_loss_h: float | None = None
    patience_s: float = LIMITS.resume_timeout_s
    retry_after_s: float = LIMITS.retry_after_s
    tick_s: float = 10.0

    @property
    def held(self) -> int:
        """Streams a GPU makes in real time at most."""
        return min(self.capacity, int(1 / self.gpu.share))

    @cached_property
    def admission(self) -> Admission:
        """The replicas' own rule, with the GPU's costs as measured."""
        model = ModelSettings(name="lite", max_sessions=self.capacity, max_rows=self.gpu.max_rows)
        card = ModelCard("lite", GEOMETRY, STEPS, (STEPS,), True, self.gpu.label)
        return Admission(model, card, self.gpu.step_costs(), MonotonicClock())

    @cached_property
    def places(self) -> int:
        """Live streams a replica takes."""
        return self.admission.places()

    @cached_property
    def occupancy(self) -> list[float]:
        """Work owed to 0, 1, ... ``capacity`` streams, as a share of what a replica may promise."""
        return [self.admission.occupancy([STEPS] * n) for n in range(self.capacity + 1)]


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at a moment."""

    time_s: float
    streams: int
    ready: int
    asked: int
    refused: int


@dataclass(frozen=True, slots=True)
class Behind:
    """A while in which a replica with ``streams`` was behind with their chunks: by how much engine time at
    its start and at its end, and how long it was."""

    start_s: float
    end_s: float
    streams: int
    seconds: float

    @property
    def stream_s(self) -> float:
        """Stream-seconds played meanwhile."""
        return self.streams * self.seconds


@dataclass
class FleetRun:
    """What came of it.

    Attributes:
        settings: of the fleet.
        opened: streams admitted; with ``refused``, all that came.
        ended, given_up, running: what became of the admitted.
        crowd_s: stream-seconds spent ``n`` to a GPU that kept up, by ``n``.
        behind: the times GPUs did not keep up.
        way_back_s: for each stream that lost its replica, how long after they were due the chunks came that
            it then caught up with.
        moved: streams moved by a shrinking fleet.
        losses, interrupted: GPUs lost, and the streams they had.
        gpu_s: GPU-seconds, asked for to given back.
    """

    settings: FleetSettings
    opened: int = 0
    refused: int = 0
    ended: int = 0
    given_up: int = 0
    moved: int = 0
    losses: int = 0
    interrupted: int = 0
    gpu_s: float = 0.0
    running: int = 0
    crowd_s: list[float] = field(default_factory=list)
    behind: list[Behind] = field(default_factory=list)
    way_back_s: list[np.ndarray] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    history: list[Event] = field(default_factory=list)

    @property
    def stream_s(self) -> float:
        """Time played by all streams."""
        return sum(self.crowd_s) + sum(one.stream_s for one in self.behind)
