"""One decode worker as its parent sees it: started, asked, killed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import numpy as np

from serve_app.config import Limits
from serve_app.media.pipe import read_message, write_message
from serve_app.types import LISTENER_RATE_HZ, MODEL_RATE_HZ

WORKER = "serve_app.media.decode_worker"
KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "HOME", "TMPDIR")
"""A worker gets no more of its parent's environment: it must hold no secret."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class DecodeProcess:
    """A worker process, started at once. Methods block and are meant for threads; ``kill`` does not.

    It is a program of its own and not a fork: where it is started from, modules with threads and a
    ``__main__`` of somebody else's are loaded.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._killed = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, limits.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout

    @property
    def alive(self) -> bool:
        """Whether it runs and nobody has killed it."""
        return not self._killed and self._process.poll() is None

    def wait_ready(self) -> None:
        """Return once it has loaded its decoders.

        Raises:
            BrokenPipe: it ended before.
        """
        read_message(self._replies, max_bytes=0)

    def call(
        self, header: dict[str, Any], image: bytes, audio: bytes
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Its reply to one request.

        Raises:
            BrokenPipe: it died over it.
        """
        write_message(self._requests, header, image, audio)
        return read_message(self._replies, self._max_reply_bytes(header))

    def _max_reply_bytes(self, header: dict[str, Any]) -> int:
        seconds = int(self._limits.max_audio_s) + 1
        return header["height"] * header["width"] * 3 + seconds * 4 * (MODEL_RATE_HZ + LISTENER_RATE_HZ)

    def kill(self) -> None:
        """End it now; a thread that waits for its reply gets ``BrokenPipe``."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End it, collect its exit status, close the pipes."""
        self.kill()
        self._process.wait()
        self._replies.close()
        with suppress(BrokenPipeError):  # what it did not live to read was still buffered
            self._requests.close()


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    return {**kept, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
