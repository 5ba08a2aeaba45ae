"""Every error a user can meet, as one tree.

FlashHeadError
├── MalformedInput        400  the bytes are not what they claim to be
├── Unauthorized          401  no API key, or none that is known
├── Forbidden             403  a key that does not open what was asked for
├── TooLarge              413  more bytes, pixels or seconds than configured
├── UnsupportedMedia      415  not an image or not audio of a kind that is read
├── OutOfRange            422  a parameter outside its accepted values
├── AtCapacity            429  every place is taken; come back after ``retry_after_s``
├── RateLimited           429  a key's own limits are used up; come back after ``retry_after_s``
├── Unavailable           503  not ready, or what serves the stream stayed away too long
├── SlowClient            --   the reader did not read; its stream was closed
├── ClientGone            --   the reader closed its connection
├── ReplicaLost           --   what served a call is gone; the caller resumes elsewhere
├── FramesLost            --   frames that died with their node before they were encoded
├── StaleCall             --   a call of an earlier opening of the session
├── SnapshotError         500  a session snapshot that cannot be restored
├── ConfigError           500  settings or a key file that cannot be used
├── CheckpointError       500  weights missing, truncated or of the wrong shape
└── InternalError         500  a defect of ours, reported without its inside

Each leaf has one meaning, one HTTP status, one WebSocket close code and says whether trying again
can help. ``value`` and ``accepted`` name the offending value and what would have been taken.
"""

from __future__ import annotations

from typing import Any


class FlashHeadError(Exception):
    """Base of all errors with a meaning to the caller.

    ``code`` is stable across releases; ``message`` is for people. Instances survive pickling with
    all their fields, since most of them cross a process boundary.
    """

    status = 500
    ws_code = 1011
    retryable = False
    title = "Error"
    default_code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        value: Any = None,
        accepted: Any = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.value = value
        self.accepted = accepted
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.message, self.code, self.value, self.accepted, self.retry_after_s)
        return _rebuild, (type(self), *fields)

    def problem(self) -> dict[str, Any]:
        """The body of an ``application/problem+json`` answer (RFC 9457)."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.message,
            "code": self.code,
        }
        if self.value is not None:
            body["value"] = self.value
        if self.accepted is not None:
            body["accepted"] = self.accepted
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        return body


def _rebuild(
    kind: type[FlashHeadError],
    message: str,
    code: str,
    value: Any,
    accepted: Any,
    retry_after_s: int | None,
) -> FlashHeadError:
    return kind(message, code=code, value=value, accepted=accepted, retry_after_s=retry_after_s)


class MalformedInput(FlashHeadError):
    """The bytes are not what they claim to be, or are cut short."""

    status, ws_code, title, default_code = 400, 1007, "Malformed input", "malformed_input"


class Unauthorized(FlashHeadError):
    """No API key, or none that is known here."""

    status, ws_code, title, default_code = 401, 1008, "Unauthorized", "invalid_key"


class Forbidden(FlashHeadError):
    """A key that does not open what was asked for."""

    status, ws_code, title, default_code = 403, 1008, "Forbidden", "forbidden"


class TooLarge(FlashHeadError):
    """More bytes, pixels or seconds than this server is configured to take."""

    status, ws_code, title, default_code = 413, 1009, "Too large", "too_large"


class UnsupportedMedia(FlashHeadError):
    """Not an image, or not audio, of a kind that is read."""

    status, ws_code, title, default_code = 415, 1003, "Unsupported media", "unsupported_media"


class OutOfRange(FlashHeadError):
    """A parameter outside its accepted values."""

    status, ws_code, title, default_code = 422, 1008, "Out of range", "out_of_range"


class AtCapacity(FlashHeadError):
    """Every place is taken."""

    status, ws_code, title, default_code = 429, 1013, "At capacity", "at_capacity"
    retryable = True


class RateLimited(FlashHeadError):
    """A key's own limits are used up."""

    status, ws_code, title, default_code = 429, 1013, "Rate limited", "rate_limited"
    retryable = True


class Unavailable(FlashHeadError):
    """Not ready yet, or what serves the stream stayed away past the configured wait."""

    status, ws_code, title, default_code = 503, 1013, "Unavailable", "unavailable"
    retryable = True


class SlowClient(FlashHeadError):
    """The reader did not take its clusters in time; nothing piles up behind it."""

    ws_code, title, default_code = 1008, "Slow client", "slow_client"


class ClientGone(FlashHeadError):
    """The reader closed its connection."""

    status, ws_code, title, default_code = 499, 1001, "Client gone", "client_gone"


class ReplicaLost(FlashHeadError):
    """What served a call died or was taken away; the call may be made again elsewhere."""

    status, title, default_code = 503, "Replica lost", "replica_lost"
    retryable = True


class FramesLost(FlashHeadError):
    """Frames that cannot be read any more; they are computed again from the snapshot before them."""

    status, title, default_code = 503, "Frames lost", "frames_lost"
    retryable = True


class StaleCall(FlashHeadError):
    """A call of an earlier opening of the session, or out of its order."""

    title, default_code = "Stale call", "stale_call"


class SnapshotError(FlashHeadError):
    """A session snapshot that cannot be restored: wrong version, missing or extra fields."""

    title, default_code = "Bad snapshot", "bad_snapshot"


class ConfigError(FlashHeadError):
    """Settings or a key file that cannot be used."""

    title, default_code = "Bad configuration", "bad_config"


class CheckpointError(FlashHeadError):
    """Weights missing, truncated, misnamed or of the wrong shape."""

    title, default_code = "Bad checkpoint", "bad_checkpoint"


class InternalError(FlashHeadError):
    """A defect of this server; the log has its inside, the answer has not."""

    title, default_code = "Internal error", "internal_error"
