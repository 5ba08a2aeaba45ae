"""Clients that watch streams: what they got, and when."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from serve_app.media.webm_reader import ClusterReader
from serve_app.types import FRAME_MS

from benchmarks.host_cluster import HostCluster, wait_until

BEGUN = 3
"""Clusters of a stream that has begun."""


class Viewer(threading.Thread):
    """Reads one ``POST /animate`` as fast as it comes.

    ``arrivals`` are monotonic seconds at which clusters were whole; ``video`` is all that came so far.
    """

    def __init__(self, url: str, files: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.arrivals: list[float] = []
        self.frames: list[int] = []
        """Frames got in all with each arrival."""
        self.video = b""
        self.error: Exception | None = None
        self.node = ""
        """Where it was generated first, see ``watch_all``."""
        self._url = url
        self._files = files
        self.start()

    def run(self) -> None:
        """Read to the end; an error is kept for ``watched``."""
        reader = ClusterReader()
        try:
            with httpx.stream("POST", f"{self._url}/animate", files=self._files, timeout=120) as answer:
                if answer.is_error:
                    raise RuntimeError(f"{answer.status_code}: {answer.read()!r}")
                for piece in answer.iter_raw():
                    self.video += piece
                    reader.feed(piece)
                    new = len(reader.clusters) - len(self.arrivals)
                    self.arrivals += [time.monotonic()] * new
                    self.frames += [reader.frame_count] * new
        except (httpx.HTTPError, RuntimeError) as error:
            self.error = error

    def watched(self, timeout_s: float = 120) -> bytes:
        """The whole video.

        Raises:
            Exception: what ended the stream before its end.
        """
        self.join(timeout_s)
        if self.is_alive():
            raise TimeoutError(f"the stream had not ended after {timeout_s:g} s")
        if self.error is not None:
            raise self.error
        return self.video

    def longest_gap_s(self) -> float:
        """The longest time from one cluster to the next."""
        return max(self._gaps_s())

    def longest_stall_s(self) -> float:
        """How late the latest cluster was for the player."""
        return max(0.0, *self._lateness_s())

    def _gaps_s(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.arrivals)]

    def _lateness_s(self) -> list[float]:
        """How long after its time each cluster but the first came, for a player that begins with the first
        and plays in real time; below 0 for one that came early."""
        begun = self.arrivals[0]
        played_s = [frames * FRAME_MS / 1000 for frames in self.frames]
        return [
            arrival - begun - before for arrival, before in zip(self.arrivals[1:], played_s, strict=False)
        ]


def watch_all(cluster: HostCluster, requests: Sequence[dict[str, Any]]) -> list[Viewer]:
    """Streams that have begun, opened one after another, of ``requests`` in turn, until every generator
    has one; they go on."""
    viewers: list[Viewer] = []
    placed = cluster.sessions()
    while not all(placed.values()):
        viewer = Viewer(cluster.url, requests[len(viewers) % len(requests)])
        viewer.node = _node_of(viewer, cluster, placed)
        placed[viewer.node] += 1
        viewers.append(viewer)
    wait_until(lambda: all(len(viewer.arrivals) >= BEGUN for viewer in viewers), "all streams have begun")
    return viewers


def _node_of(viewer: Viewer, cluster: HostCluster, placed: Mapping[str, int]) -> str:
    """The node a new stream is generated on; ``placed`` are the sessions there were before."""

    def grown() -> list[str]:
        return [name for name, count in cluster.sessions().items() if count > placed[name]]

    wait_until(lambda: viewer.error is not None or bool(grown()), "the stream is placed")
    if viewer.error is not None:
        raise viewer.error
    [node] = grown()
    return node
