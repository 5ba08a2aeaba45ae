"""The server's process, whoever started it."""

from __future__ import annotations

import signal
import subprocess
import sys

from serve_app.client.server import heed_interrupts

WAIT = "import time; print('started', flush=True); time.sleep(60)"


def test_it_can_be_interrupted_where_interrupts_are_ignored() -> None:
    """A shell's background job ignores SIGINT, and what it starts would inherit that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", WAIT],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=heed_interrupts,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
