"""System programs the tests compare with, and the mark that skips a test where one is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip with the reason where a program is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(*command: str | Path) -> subprocess.CompletedProcess[bytes]:
    """The finished command; its output is captured."""
    return subprocess.run([str(part) for part in command], capture_output=True, timeout=120)


def ffmpeg_samples(path: Path) -> np.ndarray:
    """The file's sound as ffmpeg's command decodes it: ``[n]`` float32 at 48 kHz."""
    done = run("ffmpeg", "-v", "warning", "-i", path, "-map", "0:a", "-ac", "1", "-f", "f32le", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    return np.frombuffer(done.stdout, np.float32)


def ffmpeg_frames(path: Path, height: int, width: int, pixel_format: str = "gray") -> np.ndarray:
    """The file's pictures as ffmpeg's command decodes them: ``[n, height, width(, 3)]`` uint8."""
    done = run(
        *("ffmpeg", "-v", "warning", "-i", path, "-map", "0:v", "-fps_mode", "passthrough"),
        *("-f", "rawvideo", "-pix_fmt", pixel_format, "-"),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    shape = (-1, height, width, 3) if pixel_format == "rgb24" else (-1, height, width)
    return np.frombuffer(done.stdout, np.uint8).reshape(shape)
