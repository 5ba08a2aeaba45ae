"""EBML, the notation WebM is written in: elements of an identity, a size and a body (RFC 8794, RFC 9559).

Every number here is an integer but Duration, for which the format has nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from serve_app.errors import MalformedInput

EBML_HEAD, SEGMENT = 0x1A45DFA3, 0x18538067
EBML_VERSION, EBML_READ_VERSION, EBML_MAX_ID_LENGTH, EBML_MAX_SIZE_LENGTH = 0x4286, 0x42F7, 0x42F2, 0x42F3
DOC_TYPE, DOC_TYPE_VERSION, DOC_TYPE_READ_VERSION = 0x4282, 0x4287, 0x4285
SEEK_HEAD, SEEK, SEEK_ID, SEEK_POSITION = 0x114D9B74, 0x4DBB, 0x53AB, 0x53AC
INFO, TIMECODE_SCALE, DURATION, MUXING_APP, WRITING_APP = 0x1549A966, 0x2AD7B1, 0x4489, 0x4D80, 0x5741
TRACKS, TRACK_ENTRY, TRACK_NUMBER, TRACK_UID, TRACK_TYPE = 0x1654AE6B, 0xAE, 0xD7, 0x73C5, 0x83
FLAG_LACING, DEFAULT_DURATION, CODEC_ID, CODEC_PRIVATE = 0x9C, 0x23E383, 0x86, 0x63A2
CODEC_DELAY, SEEK_PRE_ROLL = 0x56AA, 0x56BB
VIDEO, PIXEL_WIDTH, PIXEL_HEIGHT = 0xE0, 0xB0, 0xBA
COLOUR, MATRIX, RANGE, TRANSFER, PRIMARIES = 0x55B0, 0x55B1, 0x55B9, 0x55BA, 0x55BB
AUDIO, SAMPLING_FREQUENCY, CHANNELS = 0xE1, 0xB5, 0x9F
CUES, CUE_POINT, CUE_TIME, CUE_TRACK_POSITIONS = 0x1C53BB6B, 0xBB, 0xB3, 0xB7
CUE_TRACK, CUE_CLUSTER_POSITION = 0xF7, 0xF1
CLUSTER, TIMECODE, SIMPLE_BLOCK = 0x1F43B675, 0xE7, 0xA3
BLOCK_GROUP, BLOCK, DISCARD_PADDING = 0xA0, 0xA1, 0x75A2

UNKNOWN_SIZE = b"\x01" + b"\xff" * 7
"""The size of a Segment that is still being written."""


def element(identity: int, *body: bytes) -> bytes:
    """One element around its body."""
    return identity_bytes(identity) + size_bytes(sum(map(len, body))) + b"".join(body)


def unsigned(identity: int, value: int, width: int | None = None) -> bytes:
    """An unsigned integer element, in ``width`` bytes where its size must not depend on its value."""
    return element(identity, value.to_bytes(width or max(1, (value.bit_length() + 7) // 8), "big"))


def signed(identity: int, value: int) -> bytes:
    """A signed integer element."""
    return element(identity, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def double(identity: int, value: float) -> bytes:
    """A 64-bit float element."""
    return element(identity, struct.pack(">d", value))


def text(identity: int, value: str) -> bytes:
    """An ASCII string element."""
    return element(identity, value.encode("ascii"))


def identity_bytes(identity: int) -> bytes:
    """An identity as written; its length marker is part of it."""
    return identity.to_bytes((identity.bit_length() + 7) // 8, "big")


def size_bytes(size: int) -> bytes:
    """A size in as few bytes as hold it; all ones is kept for "unknown"."""
    length = -(-(size + 1).bit_length() // 7)
    return (size | 1 << 7 * length).to_bytes(length, "big")


def children(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(identity, start, end) of each element inside ``data[start:end]``.

    Raises:
        MalformedInput: one of them reaches past ``end``.
    """
    while start < end:
        found = element_at(data, start)
        if found is None or found[2] > end:
            raise MalformedInput(
                "an element of the WebM stream reaches past its parent", code="malformed_webm"
            )
        yield found
        start = found[2]


def element_at(data: bytes, start: int) -> tuple[int, int, int] | None:
    """(identity, start, end) of the element whose head is at ``start``; ``None`` if its head is not all here.

    An unknown size (all ones) gives ``end == start`` of its body plus 2**56 - 1 and is only used for Segment.

    Raises:
        MalformedInput: no element begins at ``start``.
    """
    identity_length = _vint_length(data, start)
    if identity_length is None:
        return None
    size_at = start + identity_length
    size_length = _vint_length(data, size_at)
    if size_length is None:
        return None
    body = size_at + size_length
    identity = int.from_bytes(data[start:size_at], "big")
    size = int.from_bytes(data[size_at:body], "big") & ((1 << 7 * size_length) - 1)
    return identity, body, body + size


def _vint_length(data: bytes, at: int) -> int | None:
    """Bytes of the variable-length number at ``at``; ``None`` if they are not all here."""
    if at >= len(data):
        return None
    length = 9 - data[at].bit_length()
    if length > 8:
        raise MalformedInput(f"byte {at} of the WebM stream begins no element", code="malformed_webm")
    return length if at + length <= len(data) else None
