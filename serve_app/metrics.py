"""What the server measures of itself: every metric's name, unit, tags and buckets, in one place.

A name is ``flashhead_<what>_<unit>``, with ``_total`` behind a counter's. Whoever has something to record
is given a ``Recorder``; which one is decided where the process is put together. Tags have few values each:
never a session, a request or a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["counter", "gauge", "level", "histogram"]

SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Buckets of one stage of a chunk."""
LONG_S = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Buckets of what somebody waits for."""
LATENESS_S = (0.001, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
"""The first one holds what was in time; 0.04 is one frame."""
RATIO = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0)
COUNT = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        kind: what recording a value does: a ``counter`` grows by it, a ``gauge`` becomes it, a ``level``
            (exported as a gauge) rises or falls by it, a ``histogram`` counts it in its bucket.
        unit: of its values.
        tags: what every value is recorded with, each by its name.
        buckets: upper bounds of a histogram's buckets, in its unit.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Recorder(Protocol):
    """Takes measurements."""

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        """Take one value of ``metric``, with exactly its tags."""
        ...


class NullRecorder:
    """Takes measurements and forgets them."""

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        """See ``Recorder``."""


TIME_TO_FIRST_FRAME = Metric(
    "flashhead_time_to_first_frame_seconds",
    "histogram",
    "seconds",
    "Until a live stream's first cluster was delivered, since its request had arrived (since=request; waking"
    " a sleeping model counts) or since its speech was decoded (since=speech).",
    ("model", "since"),
    LONG_S,
)
CHUNK_LATENESS = Metric(
    "flashhead_chunk_lateness_seconds",
    "histogram",
    "seconds",
    "How long after its playout deadline a cluster of a live stream was delivered; 0 in time.",
    ("model",),
    LATENESS_S,
)
REAL_TIME_FACTOR = Metric(
    "flashhead_real_time_factor_ratio",
    "histogram",
    "ratio",
    "Time a live stream's chunk was in the making, waiting for other sessions' work included, over the"
    " playout time of its frames; above 1 the stream falls behind.",
    ("model",),
    RATIO,
)
ACTIVE_STREAMS = Metric(
    "flashhead_active_streams",
    "level",
    "streams",
    "Streams by state: opening, running, lost (between losing a replica and opening on the next).",
    ("model", "state"),
)
ENDED_STREAMS = Metric(
    "flashhead_ended_streams_total",
    "counter",
    "streams",
    "Streams that ended, by outcome: completed, or the code of what ended them.",
    ("model", "outcome"),
)
REFUSED_REQUESTS = Metric(
    "flashhead_refused_requests_total",
    "counter",
    "requests",
    "Requests answered with an error, by its code.",
    ("code",),
)
RESUMPTIONS = Metric(
    "flashhead_session_resumptions_total",
    "counter",
    "resumptions",
    "Sessions that went on elsewhere from their snapshot, by what they had lost.",
    ("model", "reason"),
)
DELIVERED_FRAMES = Metric(
    "flashhead_delivered_frames_total", "counter", "frames", "Frames given to readers.", ("model",)
)
STAGE_TIME = Metric(
    "flashhead_stage_seconds",
    "histogram",
    "seconds",
    "Time of one stage of a chunk: decode_upload (once a request), audio_encode, begin, denoise (one step,"
    " all its rows), decode (frames and yuv420p), advance (motion encode), encode (VP9 and Opus), deliver.",
    ("stage",),
    SHORT_S,
)
BATCH_SIZE = Metric(
    "flashhead_batch_rows", "histogram", "rows", "Rows of one denoising step.", ("model",), COUNT
)
CHUNK_STEPS = Metric(
    "flashhead_chunk_steps", "histogram", "steps", "Denoising steps used for a chunk.", ("model",), COUNT
)
SESSIONS = Metric(
    "flashhead_open_sessions",
    "gauge",
    "sessions",
    "Sessions open on a replica: live ones, and batch ones, for which nobody waits.",
    ("model", "kind"),
)
PLACES = Metric(
    "flashhead_stream_places", "gauge", "places", "Live streams a replica takes in real time.", ("model",)
)
OCCUPANCY = Metric(
    "flashhead_occupancy_ratio",
    "gauge",
    "ratio",
    "Work a replica owes its live streams over the work it may promise; full at 1.",
    ("model",),
)
BUSY = Metric(
    "flashhead_engine_busy_ratio",
    "gauge",
    "ratio",
    "Share of the time a replica's engine worked.",
    ("model",),
)
GPU_MEMORY = Metric(
    "flashhead_gpu_memory_bytes",
    "gauge",
    "bytes",
    "A replica's memory on its GPU, as its allocator counts it: allocated, reserved, peak (of allocated since"
    " the start). None on a CPU.",
    ("model", "state"),
)
START_PHASE = Metric(
    "flashhead_start_phase_seconds",
    "gauge",
    "seconds",
    "Time of one phase of a replica's start.",
    ("model", "phase"),
)

ALL = (
    TIME_TO_FIRST_FRAME,
    CHUNK_LATENESS,
    REAL_TIME_FACTOR,
    ACTIVE_STREAMS,
    ENDED_STREAMS,
    REFUSED_REQUESTS,
    RESUMPTIONS,
    DELIVERED_FRAMES,
    STAGE_TIME,
    BATCH_SIZE,
    CHUNK_STEPS,
    SESSIONS,
    PLACES,
    OCCUPANCY,
    BUSY,
    GPU_MEMORY,
    START_PHASE,
)
