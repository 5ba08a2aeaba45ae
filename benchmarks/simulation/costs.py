"""What the simulation reckons with: every constant, its source, and whether somebody measured it.

Times of the released models on GPUs are the vendor's and other projects' until `benchmarks/engine.py` has run
on one; the rest of the simulation does not change with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serve_app.engine.scheduler import Stage, StepCosts
from serve_app.types import FRAME_MS

Kind = Literal["measured", "vendor", "published", "estimate", "assumption"]

LITE_SLICE_FRAMES = 24
STEPS = 4
PERIOD_S = LITE_SLICE_FRAMES * FRAME_MS / 1000
"""Playout time of a Lite chunk, 0.96 s."""

TFLOP = {Stage.DENOISE: 14.094, Stage.DECODE: 7.714, Stage.ADVANCE: 2.104}
"""Of a Lite chunk (docs/benchmarks.md, the bare engine)."""
SHARES = {stage: tflop / sum(TFLOP.values()) for stage, tflop in TFLOP.items()}
"""How a chunk's time per row divides over its operations."""


@dataclass(frozen=True)
class Figure:
    """One constant: what it is, where it comes from."""

    name: str
    value: str
    kind: Kind
    source: str


@dataclass(frozen=True)
class GpuType:
    """Lite on one kind of GPU.

    A batch of ``b`` rows takes ``fixed_s + row_s * b`` for a chunk of each; the fixed part is the denoising
    steps', the one operation rows share.
    """

    name: str
    label: str
    fixed_s: float
    row_s: float
    max_rows: int
    price_per_hour: float
    kind: Kind
    source: str

    @property
    def chunk_s(self) -> float:
        """A chunk alone, motion encode included."""
        return self.fixed_s + self.row_s

    @property
    def frames_s(self) -> float:
        """A chunk alone up to its frames."""
        return self.chunk_s - SHARES[Stage.ADVANCE] * self.row_s

    @property
    def chunks_per_s(self) -> float:
        """At the largest batch."""
        return self.max_rows / (self.fixed_s + self.row_s * self.max_rows)

    @property
    def share(self) -> float:
        """Of its time that one stream takes, at the largest batch."""
        return 1 / (self.chunks_per_s * PERIOD_S)

    def step_costs(self) -> StepCosts:
        """The scheduler's view of it, every batch size known."""
        costs = StepCosts()
        costs.observe(Stage.BEGIN, 1, 0.0)
        for rows in range(1, self.max_rows + 1):
            denoise = (self.fixed_s + self.row_s * SHARES[Stage.DENOISE] * rows) / STEPS
            costs.observe(Stage.DENOISE, rows, denoise)
        for stage in (Stage.DECODE, Stage.ADVANCE):
            costs.observe(stage, 1, self.row_s * SHARES[stage])
        return costs


GPU_TYPES = {
    gpu.name: gpu
    for gpu in (
        GpuType(
            "4090",
            "RTX 4090, bf16, as released",
            fixed_s=0.0,
            row_s=0.250,
            max_rows=1,
            price_per_hour=0.40,
            kind="vendor",
            source="96 frames/s, SoulX-FlashHead README: 24 frames / 96",
        ),
        GpuType(
            "4090-exact",
            "RTX 4090, bf16, redundant work removed",
            fixed_s=0.0,
            row_s=0.195,
            max_rows=1,
            price_per_hour=0.40,
            kind="estimate",
            source="the released chunk less the work it does more than once",
        ),
        GpuType(
            "4090-fp8",
            "RTX 4090, FP8 matrix products",
            fixed_s=0.010,
            row_s=0.145,
            max_rows=2,
            price_per_hour=0.40,
            kind="estimate",
            source="155 ms alone, 300 ms for two: GEMMs twice as fast",
        ),
        GpuType(
            "5090",
            "RTX 5090, bf16",
            fixed_s=0.0,
            row_s=0.220,
            max_rows=1,
            price_per_hour=0.70,
            kind="published",
            source="200-240 ms per 24 frames, a LiveKit worker's author; the middle",
        ),
        GpuType(
            "h200",
            "H200, bf16",
            fixed_s=0.030,
            row_s=0.040,
            max_rows=4,
            price_per_hour=3.00,
            kind="estimate",
            source="35 % of peak at one row, 51 % at four",
        ),
        GpuType(
            "h200-fp8",
            "H200, FP8 matrix products",
            fixed_s=0.030,
            row_s=0.032,
            max_rows=8,
            price_per_hour=3.00,
            kind="estimate",
            source="as above with GEMMs in FP8",
        ),
    )
}

EAGER_START_S, COMPILED_START_S, NEW_NODE_START_S = 14.0, 139.0, 300.0
DETECTION_S = 3.4
STREAM_MEAN_S = 180.0
STREAM_SIGMA = 1.0
MTBF_H = 1000.0
REPAIR_S = 300.0

FIGURES = (
    *(
        Figure(
            f"chunk of Lite on {gpu.name}, ms",
            f"{1000 * gpu.chunk_s:.0f}"
            if gpu.max_rows == 1
            else f"{1000 * gpu.fixed_s:.0f} + {1000 * gpu.row_s:.0f} b, b up to {gpu.max_rows}",
            gpu.kind,
            gpu.source,
        )
        for gpu in GPU_TYPES.values()
    ),
    Figure(
        "chunk's time over its operations",
        "DiT 59 %, decode 32 %, motion encode 9 %",
        "estimate",
        "TFLOP counted by torch, docs/benchmarks.md; that time follows them is assumed",
    ),
    Figure("start, eager, s", f"{EAGER_START_S:.0f}", "published", "Mynah, Lite on a 4090, node at hand"),
    Figure("start, compiled, s", f"{COMPILED_START_S:.0f}", "published", "the same, compile cache warm"),
    Figure("start on a new node, s", f"{NEW_NODE_START_S:.0f}", "assumption", "machine, image, model volume"),
    Figure(
        "node loss seen after, s",
        f"{DETECTION_S:g}",
        "measured",
        "longest of two nodes taken from a Ray 2.60 cluster under streams, two CPU cores",
    ),
    Figure(
        "opening on another replica, ms",
        "13",
        "measured",
        "Ray 2.60, two CPU cores; within a chunk's time, not counted",
    ),
    Figure(
        "stream length, s",
        f"lognormal, mean {STREAM_MEAN_S:.0f}, sigma {STREAM_SIGMA:g}",
        "assumption",
        "conversations of minutes with a long tail; `--stream-mean-s`",
    ),
    Figure("time between failures of a node, h", f"{MTBF_H:.0f}", "assumption", "`--mtbf-h`"),
    Figure("replacement of a lost node, s", f"{REPAIR_S:.0f}", "assumption", "before its own start"),
    Figure(
        "price of a GPU-hour, $",
        ", ".join(f"{gpu.name} {gpu.price_per_hour:.2f}" for gpu in GPU_TYPES.values()),
        "assumption",
        "rental; `--price`",
    ),
)
