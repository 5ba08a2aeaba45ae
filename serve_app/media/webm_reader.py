"""Reads back the WebM streams this project writes, as they arrive: clusters of known size after a header.

It is no general demuxer; a client uses it to count frames while they come and to make the file seekable
at the end.
"""

from __future__ import annotations

from serve_app.media import ebml
from serve_app.media.opus import PACKET_SAMPLES
from serve_app.media.webm import AUDIO_TRACK, NS_PER_S, VIDEO_TRACK
from serve_app.types import LISTENER_RATE_HZ


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
        return max(0, self._packets * PACKET_SAMPLES - trimmed)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the stream.

        Raises:
            MalformedInput: they are not such a stream.
        """
        self._buffer += piece
        while (element := ebml.element_at(self._buffer, 0)) is not None:
            identity, start, end = element
            if identity == ebml.SEGMENT:
                end = start
            elif end > len(self._buffer):
                return
            self._take(identity, self._buffer[:end], start)
            self._buffer = self._buffer[end:]

    def _take(self, identity: int, whole: bytes, start: int) -> None:
        if identity == ebml.CLUSTER:
            self.clusters.append(whole)
            for child, first, last in ebml.children(whole, start, len(whole)):
                self._count(child, whole, first, last)
        elif identity == ebml.TRACKS:
            self._read_tracks(whole, start)

    def _count(self, identity: int, whole: bytes, start: int, end: int) -> None:
        if identity == ebml.BLOCK_GROUP:
            for child, first, last in ebml.children(whole, start, end):
                self._count(child, whole, first, last)
        elif identity == ebml.DISCARD_PADDING:
            self._trimmed_ns += int.from_bytes(whole[start:end], "big", signed=True)
        elif identity in (ebml.SIMPLE_BLOCK, ebml.BLOCK):
            track = whole[start] & 0x7F
            self.frame_count += track == VIDEO_TRACK
            self._packets += track == AUDIO_TRACK

    def _read_tracks(self, whole: bytes, start: int) -> None:
        for entry, first, last in ebml.children(whole, start, len(whole)):
            if entry != ebml.TRACK_ENTRY:
                continue
            for child, begin, finish in ebml.children(whole, first, last):
                if child == ebml.CODEC_DELAY:
                    self._trimmed_ns += int.from_bytes(whole[begin:finish], "big")
                elif child == ebml.VIDEO:
                    sizes = {
                        c: int.from_bytes(whole[b:f], "big")
                        for c, b, f in ebml.children(whole, begin, finish)
                    }
                    self.width, self.height = sizes[ebml.PIXEL_WIDTH], sizes[ebml.PIXEL_HEIGHT]
