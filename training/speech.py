"""Speech with the times of its phonemes, spoken by espeak-ng.

Its library is called, by a process of its own, because the program prints no times for its own voices.
espeak-ng 1.51 is the Debian package ``espeak-ng``; it is GPL-3.0-or-later and not shipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr

RATE_HZ = 16_000


@dataclass(frozen=True, slots=True)
class Phoneme:
    """``name`` in IPA, empty for a pause; from ``start_s`` to ``end_s``."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Speech:
    """``samples`` ``[n]`` float32 in [-1, 1] at 16 kHz, and what is said when, in order."""

    samples: np.ndarray
    phonemes: tuple[Phoneme, ...]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / RATE_HZ


def speak(text: str, voice: str, words_per_minute: int = 170, pitch: int = 50) -> Speech:
    """``text`` in an espeak-ng ``voice`` such as ``en-us+f3``, ``pitch`` in [0, 100]; always the same.

    Raises:
        OSError: libespeak-ng is not installed.
        ValueError: espeak-ng has no such voice.
    """
    return _speaker(os.getpid()).speak(text, voice, words_per_minute, pitch)


class _Speaker:
    """The process that speaks; it ends when this one does, at the end of its input."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("espeak_process.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._turn = threading.Lock()

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> Speech:
        request = {"text": text, "voice": voice, "words_per_minute": words_per_minute, "pitch": pitch}
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        with self._turn:
            questions.write(json.dumps(request).encode() + b"\n")
            questions.flush()
            line = answers.readline()
            if not line:
                raise OSError("libespeak-ng.so.1 cannot be used: is the package espeak-ng installed?")
            head = json.loads(line)
            samples = np.frombuffer(answers.read(2 * head["count"]), np.int16)
        if "error" in head:
            raise ValueError(head["error"])
        return _heard(samples, head["starts"], head["rate_hz"])


def _heard(samples: np.ndarray, starts: list[tuple[int, str]], rate_hz: int) -> Speech:
    bounds = [*(start for start, _ in starts), len(samples)]
    phonemes = (
        Phoneme(name, start / rate_hz, end / rate_hz)
        for (start, name), end in zip(starts, bounds[1:], strict=True)
        if end > start and not name.startswith("(")  # "(en)" announces a change of language
    )
    heard = soxr.resample(samples.astype(np.float32) / 32768, rate_hz, RATE_HZ)
    return Speech(np.asarray(heard, np.float32), tuple(phonemes))


@cache
def _speaker(pid: int) -> _Speaker:
    """One for every process ``pid``: a forked one must not share its parent's pipes."""
    return _Speaker()
