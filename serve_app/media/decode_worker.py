"""The process in which strangers' files are decoded: ``python -m serve_app.media.decode_worker LIMITS``.

It reads requests from standard input and writes replies to standard output (``pipe``), holds no secret,
and is bounded in memory and processor time; its parent bounds its time by the clock and replaces it
when it dies. It ends when standard input does.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback
from typing import IO, Any

import numpy as np

from serve_app.config import Limits
from serve_app.errors import FlashHeadError, MalformedInput, TooLarge
from serve_app.media.audio_decode import decode_audio
from serve_app.media.pipe import BrokenPipe, read_message, write_message
from serve_app.media.portrait import decode_portrait

CPU_GRACE_S = 5
"""Processor seconds past the timeout at which the kernel ends a worker whose parent did not."""

Reply = tuple[dict[str, Any], tuple[np.ndarray, ...]]


def main(limits: Limits) -> None:
    """Serve requests until standard input ends."""
    requests, replies = _take_standard_streams()
    resource.setrlimit(resource.RLIMIT_AS, (limits.decode_memory_bytes, limits.decode_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write_message(replies, {"ready": True})
    _silence()
    while True:
        try:
            header, (image, audio) = read_message(requests, limits.max_image_bytes + limits.max_audio_bytes)
        except BrokenPipe:
            return
        _allow_cpu(limits)
        answer, buffers = _reply(header, image.tobytes(), audio.tobytes(), limits)
        write_message(replies, answer, *buffers)


def _reply(header: dict[str, Any], image: bytes, audio: bytes, limits: Limits) -> Reply:
    try:
        return _decode(header, image, audio, limits)
    except FlashHeadError as error:
        return _refusal(error), ()
    except MemoryError:
        return _refusal(
            TooLarge(
                f"decoding needs more than {limits.decode_memory_bytes} bytes of memory",
                code="decode_too_much_memory",
                accepted=limits.decode_memory_bytes,
            )
        ), ()
    except Exception:
        failure = MalformedInput("the files cannot be decoded", code="decode_failed")
        return {**_refusal(failure), "trace": traceback.format_exc()}, ()


def _decode(header: dict[str, Any], image: bytes, audio: bytes, limits: Limits) -> Reply:
    portrait = decode_portrait(image, header["height"], header["width"], header["face_crop"], limits)
    speech = decode_audio(audio, limits)
    answer = {"shape": portrait.pixels.shape, "warnings": portrait.warnings}
    return answer, (np.ascontiguousarray(portrait.pixels), speech.pcm16, speech.pcm48)


def _refusal(error: FlashHeadError) -> dict[str, Any]:
    fields = {"code": error.code, "value": error.value, "accepted": error.accepted}
    return {"error": {"kind": type(error).__name__, "message": error.message, **fields}}


def _take_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Requests and replies; what a library prints goes to standard error and not among the replies."""
    requests, replies = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb")


def _silence() -> None:
    """Libraries complain of every damaged file; a stranger must not be able to fill the log."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


def _allow_cpu(limits: Limits) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + limits.decode_timeout_s) + CPU_GRACE_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(Limits.model_validate_json(sys.argv[1]))
