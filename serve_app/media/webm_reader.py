"""Reads back the WebM streams this project writes, as they arrive: clusters of known size after a header.

It is no general demuxer; a client uses it to count frames while they come and to make the file seekable
at the end.
"""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.errors import MalformedInput
from serve_app.types import LISTENER_RATE_HZ

SEGMENT, TRACKS, CLUSTER = 0x18538067, 0x1654AE6B, 0x1F43B675
TRACK_ENTRY, VIDEO, PIXEL_WIDTH, PIXEL_HEIGHT, CODEC_DELAY = 0xAE, 0xE0, 0xB0, 0xBA, 0x56AA
SIMPLE_BLOCK, BLOCK_GROUP, BLOCK, DISCARD_PADDING = 0xA3, 0xA0, 0xA1, 0x75A2
VIDEO_TRACK, AUDIO_TRACK = 1, 2
SAMPLES_PER_PACKET = LISTENER_RATE_HZ // 50
NS_PER_S = 1_000_000_000


class ClusterReader:
    """Takes a stream piece by piece; ``clusters`` are those complete so far.

    ``frame_count`` and ``valid_samples`` (48 kHz, without codec delay and end padding) count what they
    hold; ``height`` and ``width`` are known once the header is.
    """

    def __init__(self) -> None:
        self.clusters: list[bytes] = []
        self.frame_count = 0
        self.height = 0
        self.width = 0
        self._buffer = b""
        self._packets = 0
        self._trimmed_ns = 0

    @property
    def valid_samples(self) -> int:
        """Samples a player hears."""
        trimmed = (self._trimmed_ns * LISTENER_RATE_HZ + NS_PER_S // 2) // NS_PER_S
        return max(0, self._packets * SAMPLES_PER_PACKET - trimmed)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the stream.

        Raises:
            MalformedInput: they are not such a stream.
        """
        self._buffer += piece
        while (element := _element(self._buffer, 0)) is not None:
            identity, start, end = element
            if identity == SEGMENT:
                end = start
            elif end > len(self._buffer):
                return
            self._take(identity, self._buffer[:end], start)
            self._buffer = self._buffer[end:]

    def _take(self, identity: int, whole: bytes, start: int) -> None:
        if identity == CLUSTER:
            self.clusters.append(whole)
            for child, first, last in _children(whole, start, len(whole)):
                self._count(child, whole, first, last)
        elif identity == TRACKS:
            self._read_tracks(whole, start)

    def _count(self, identity: int, whole: bytes, start: int, end: int) -> None:
        if identity == BLOCK_GROUP:
            for child, first, last in _children(whole, start, end):
                self._count(child, whole, first, last)
        elif identity == DISCARD_PADDING:
            self._trimmed_ns += int.from_bytes(whole[start:end], "big", signed=True)
        elif identity in (SIMPLE_BLOCK, BLOCK):
            track = whole[start] & 0x7F
            self.frame_count += track == VIDEO_TRACK
            self._packets += track == AUDIO_TRACK

    def _read_tracks(self, whole: bytes, start: int) -> None:
        for entry, first, last in _children(whole, start, len(whole)):
            if entry != TRACK_ENTRY:
                continue
            for child, begin, finish in _children(whole, first, last):
                if child == CODEC_DELAY:
                    self._trimmed_ns += int.from_bytes(whole[begin:finish], "big")
                elif child == VIDEO:
                    sizes = {
                        c: int.from_bytes(whole[b:f], "big") for c, b, f in _children(whole, begin, finish)
                    }
                    self.width, self.height = sizes[PIXEL_WIDTH], sizes[PIXEL_HEIGHT]


def _children(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(identity, start, end) of each element inside ``data[start:end]``."""
    while start < end:
        element = _element(data, start)
        if element is None or element[2] > end:
            raise MalformedInput(
                "an element of the WebM stream reaches past its parent", code="malformed_webm"
            )
        yield element
        start = element[2]


def _element(data: bytes, start: int) -> tuple[int, int, int] | None:
    """(identity, start, end) of the element whose head is at ``start``; ``None`` if its head is not all here.

    An unknown size (all ones) gives ``end == start`` of its body plus 2**56 - 1 and is only used for Segment.
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
