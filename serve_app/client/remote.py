"""An animation made by a running server: upload, read the stream, put the clusters into a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from serve_app.errors import FlashHeadError, Unavailable
from serve_app.media.webm import finalise_webm
from serve_app.media.webm_reader import ClusterReader

Progress = Callable[[int, int], None]
"""Told the frames made so far and the frames in all."""

KEY_VARIABLE = "FLASHHEAD_API_KEY"
"""Environment variable with the API key to show; a command line would show it to everybody."""
READY_POLL_S = 0.25
READY_ANSWER_S = 5.0


class ServerError(FlashHeadError):
    """A server's problem document, as the client saw it."""

    default_code = "server_error"


def wait_until_ready(url: str, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Return once ``GET /ready`` says so.

    Raises:
        Unavailable: it did not within ``timeout_s``, or ``alive`` said that the server is gone.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not alive():
            raise Unavailable(f"the server of {url} ended before it was ready")
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready", timeout=READY_ANSWER_S).status_code == httpx.codes.OK:
                return
        time.sleep(READY_POLL_S)
    raise Unavailable(f"{url} was not ready within {timeout_s:g} s", value=timeout_s)


def is_answering(url: str) -> bool:
    """Whether any server listens at ``url``."""
    try:
        httpx.get(url, timeout=READY_ANSWER_S)
    except httpx.ConnectError:
        return False
    except httpx.TransportError:
        return True
    return True


def animate(
    url: str, image: Path, audio: Path, fields: Mapping[str, Any], progress: Progress, timeout_s: float
) -> bytes:
    """The finished video of ``image`` speaking ``audio``, made by the server at ``url``.

    ``fields`` are form fields of ``POST /animate``. A WebM is streamed, so that ``progress`` can be
    told, and made seekable here; an MP4 comes whole. The API key is that of ``FLASHHEAD_API_KEY``.

    Raises:
        ServerError: the server refused; its problem document's words.
        Unavailable: the server cannot be reached, or the stream ended before its end.
    """
    streamed = fields.get("format", "webm") == "webm"
    form = {**{key: str(value) for key, value in fields.items()}, "stream": str(streamed).lower()}
    with image.open("rb") as portrait, audio.open("rb") as speech:
        files = {"image": (image.name, portrait), "audio": (audio.name, speech)}
        request: dict[str, Any] = {
            "data": form,
            "files": files,
            "headers": _credentials(),
            "timeout": timeout_s,
        }
        try:
            with httpx.stream("POST", f"{url}/animate", **request) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _server_error(answer)
                return _collect(answer, progress) if streamed else answer.read()
        except httpx.TransportError as error:
            raise Unavailable(f"{url}: {error}") from error


def _credentials() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _collect(answer: httpx.Response, progress: Progress) -> bytes:
    total = int(answer.headers["x-flashhead-frames"])
    reader = ClusterReader()
    for piece in answer.iter_bytes():
        reader.feed(piece)
        progress(reader.frame_count, total)
    if reader.frame_count != total:
        raise Unavailable(f"the stream ended after {reader.frame_count} of {total} frames")
    return finalise_webm(reader.height, reader.width, reader.clusters, reader.valid_samples)


def _server_error(answer: httpx.Response) -> ServerError:
    answer.read()
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        body = answer.json()
        return ServerError(f"{body['status']} {body['code']}: {body['detail']}", code=body["code"])
    return ServerError(f"{answer.status_code}: {answer.text[:500]}")
