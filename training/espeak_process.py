"""The process that speaks: it forks for every request, and a child says one thing and ends.

espeak-ng remembers what it said (phases, its random numbers), so the same text sounds a little different the
second time. A child that starts the library anew always says it the same way. The parent has one thread and
never starts the library itself. Requests are lines of JSON on stdin; an answer is a line of JSON, and the
samples it counts as int16.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_END_OF_EVENTS, _PHONEME_EVENT = 0, 7
_RETRIEVAL, _PHONEME_EVENTS_IN_IPA = 1, 3
_RATE, _PITCH = 1, 3
_CHARACTERS, _UTF8 = 1, 1


class _Answer:
    """What the library gives while it speaks."""

    def __init__(self) -> None:
        self.samples = bytearray()
        self.starts: list[tuple[int, str]] = []

    def receive(self, samples: Any, count: int, events: Any) -> int:
        if count:
            self.samples += ctypes.string_at(samples, 2 * count)
        index = 0
        while events[index].type != _END_OF_EVENTS:
            if events[index].type == _PHONEME_EVENT:
                name = bytes(events[index].id.string).decode("utf-8", "ignore")
                self.starts.append((events[index].sample, name))
            index += 1
        return 0


def _speak(library: ctypes.CDLL, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    rate_hz = library.espeak_Initialize(_RETRIEVAL, 0, None, _PHONEME_EVENTS_IN_IPA)
    if library.espeak_SetVoiceByName(request["voice"].encode()):
        return {"error": f"espeak-ng has no voice {request['voice']!r}", "count": 0}, b""
    library.espeak_SetParameter(_RATE, request["words_per_minute"], 0)
    library.espeak_SetParameter(_PITCH, request["pitch"], 0)
    answer = _Answer()
    callback = _CALLBACK(answer.receive)
    library.espeak_SetSynthCallback(callback)
    text = request["text"].encode() + b"\0"
    library.espeak_Synth(text, len(text), 0, _CHARACTERS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    count = len(answer.samples) // 2
    return {"rate_hz": rate_hz, "starts": answer.starts, "count": count}, bytes(answer.samples)


def main() -> None:
    library = ctypes.CDLL("libespeak-ng.so.1")
    for line in sys.stdin:
        answer, told = os.pipe()
        child = os.fork()
        if child == 0:
            head, samples = _speak(library, json.loads(line))
            with os.fdopen(told, "wb") as pipe:
                pipe.write(json.dumps(head).encode() + b"\n" + samples)
            os._exit(0)
        os.close(told)
        with os.fdopen(answer, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            failed = f"espeak-ng failed with {os.waitstatus_to_exitcode(status)} at {line.strip()}"
            said = json.dumps({"error": failed, "count": 0}).encode() + b"\n"
        sys.stdout.buffer.write(said)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
