"""The command line's progress bar: frames, real-time factor, time left."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from serve_app.types import FPS


class ProgressBar:
    """Counts frames of one animation. The real-time factor is seconds of video made per second."""

    def __init__(self) -> None:
        self._bar: tqdm[None] = tqdm(unit="frame", total=None, dynamic_ncols=True)
        self._started_s = time.monotonic()
        self._frames = 0
        self._elapsed_s = 0.0

    def update(self, frames: int, total: int) -> None:
        """``frames`` of ``total`` are made."""
        self._elapsed_s = time.monotonic() - self._started_s
        self._frames = frames
        self._bar.total = total
        self._bar.set_postfix_str(f"{self.realtime_factor:.2f}x real time", refresh=False)
        self._bar.update(frames - self._bar.n)

    @property
    def realtime_factor(self) -> float:
        """Seconds of video per second of work so far."""
        return self._frames / FPS / self._elapsed_s if self._elapsed_s else 0.0

    def summary(self) -> str:
        """The work in words: frames, seconds of video, how fast."""
        seconds = self._frames / FPS
        if not self._frames:
            return "done"
        return (
            f"{self._frames} frames ({seconds:.2f} s of video) in {self._elapsed_s:.1f} s, "
            f"{self._frames / self._elapsed_s:.1f} frames/s, {self.realtime_factor:.2f}x real time"
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
