"""The phases of a replica's start, each with its time: logged, recorded and summed up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.metrics import START_PHASE, NullRecorder, Recorder
from serve_app.types import FPS, Geometry

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase: when it began, in seconds since the start did, and how long it took."""

    name: str
    began_s: float
    seconds: float


class StartPhases:
    """What one start spends its time on. Phases may overlap; several threads may measure.

    Args:
        model: whose start it is.
        began_s: when it began, on the clock of ``now``; at once where absent.
        recorder: is told each phase too.
        now: monotonic seconds.
    """

    def __init__(
        self,
        model: str,
        began_s: float | None = None,
        recorder: Recorder | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phases: list[Phase] = []
        self._model = model
        self._recorder = recorder or NullRecorder()
        self._now = now
        self._began_s = now() if began_s is None else began_s
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """A phase that lasts as long as the context; none where it is left by an error."""
        began_s = self._now()
        yield
        self._add(name, began_s)

    def since_began(self, name: str) -> None:
        """A phase from the start's beginning until now."""
        self._add(name, self._began_s)

    def ready(self) -> float:
        """The start is over; its seconds in all."""
        self._add("total", self._began_s)
        *parts, total = self.phases
        told = ", ".join(f"{part.name} {part.seconds:.3f}" for part in parts)
        fields = {
            "model": self._model,
            "phases_s": {part.name: round(part.seconds, 3) for part in self.phases},
        }
        logger.info("%s started in %.3f s (%s)", self._model, total.seconds, told, extra=fields)
        return total.seconds

    def _add(self, name: str, began_s: float) -> None:
        phase = Phase(name, began_s - self._began_s, self._now() - began_s)
        with self._lock:
            self.phases.append(phase)
        self._recorder.record(START_PHASE, phase.seconds, model=self._model, phase=name)
        if name != "total":
            fields = {"model": self._model, "phase": name, "seconds": round(phase.seconds, 3)}
            logger.info("%s start: %s took %.3f s", self._model, name, phase.seconds, extra=fields)


def report_real_time(model: str, geometry: Geometry, chunk_s: float) -> None:
    """Log whether one stream can be held in real time by a replica that takes ``chunk_s`` for a chunk."""
    video_s = geometry.slice_frames / FPS
    fields = {"model": model, "chunk_s": round(chunk_s, 4), "video_s": video_s}
    message = "%s makes a chunk of %.2f s of video in %.3f s, %.2f times real time"
    level = logging.INFO
    if chunk_s > video_s:
        level = logging.WARNING
        message += ": too slow for streaming, every stream will stall"
    logger.log(level, message, model, video_s, chunk_s, video_s / chunk_s, extra=fields)
