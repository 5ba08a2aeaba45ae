"""Which audio format bytes are in, told by their first bytes alone, and whether they were cut short.

Only what is named here ever reaches a demuxer; playlists, session descriptions and other text do not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import MalformedInput
from serve_app.media import ebml

MIN_HELD = 0.9
"""Part of its claimed length that a file must hold; less is a truncated file or a lying header."""
STREAMED_SIZE = 0xFFFFFFFF
"""What a WAV that was written to a pipe says of its size: not known."""
MP3_SYNC, MP3_LAYER = 0xE0, 0x02
"""The three sync bits and the layer III bit pattern in the second byte of an MPEG audio frame."""

XING_WITHIN, XING_FRAMES, XING_BYTES = 64, 1, 2
"""How far into the first frame its Xing header may begin, and the flags of two of its fields."""

Claim = Callable[[bytes], float]
"""The part of its claimed bytes that a file holds; 1 where it makes no claim."""


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """A format by the name FFmpeg gives its demuxer; ``soundfile`` says whether libsndfile is asked first.

    It is not for MP3: of one without a Xing header it reads only as far as the first frame's bit rate lets
    it guess, which cuts a clip of varying bit rate short.
    """

    demuxer: str
    soundfile: bool
    held: Claim


def sniff_audio(data: bytes) -> AudioFormat | None:
    """The format ``data`` begins like, ``None`` if like none that is read."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return AudioFormat("wav", soundfile=True, held=_wav_held)
    if data[:4] == b"OggS":
        return AudioFormat("ogg", soundfile=True, held=_ogg_held)
    if data[:4] == b"fLaC":
        return AudioFormat("flac", soundfile=True, held=_no_claim)
    if data[:3] == b"ID3" or _is_mp3_frame(data):
        return AudioFormat("mp3", soundfile=False, held=_mp3_held)
    if data[:4] == ebml.identity_bytes(ebml.EBML_HEAD):
        return AudioFormat("matroska", soundfile=False, held=_matroska_held)
    if data[4:8] == b"ftyp":
        return AudioFormat("mp4", soundfile=False, held=_mp4_held)
    return None


def _is_mp3_frame(data: bytes) -> bool:
    return len(data) > 1 and data[0] == 0xFF and data[1] & (MP3_SYNC | 0x06) == MP3_SYNC | MP3_LAYER


def _no_claim(data: bytes) -> float:
    """FLAC claims samples, not bytes; those are compared after decoding."""
    return 1.0


def _mp3_held(data: bytes) -> float:
    """By the byte count of the Xing or Info header in the first frame, where there is one."""
    start = _after_id3(data)
    at = max(data.find(tag, start, start + XING_WITHIN) for tag in (b"Xing", b"Info"))
    if at < 0 or at + 16 > len(data):
        return 1.0
    flags, first, second = struct.unpack_from(">III", data, at + 4)
    size = (second if flags & XING_FRAMES else first) if flags & XING_BYTES else 0
    return (len(data) - start) / size if size else 1.0


def _after_id3(data: bytes) -> int:
    """Where the tag in front of an MP3 ends; its size is written in seven bits a byte."""
    if data[:3] != b"ID3":
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _wav_held(data: bytes) -> float:
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"data":
            return 1.0 if size in (0, STREAMED_SIZE) else (len(data) - at - 8) / size
        at += 8 + size + size % 2
    return 1.0


def _ogg_held(data: bytes) -> float:
    """An Ogg file makes no claim in all; but one whose last page is not whole was cut."""
    at = data.rfind(b"OggS")
    segments = data[at + 27 : at + 27 + data[at + 26]] if at + 26 < len(data) else b""
    whole = at + 26 < len(data) and at + 27 + data[at + 26] + sum(segments) <= len(data)
    return 1.0 if whole else 0.0


def _matroska_held(data: bytes) -> float:
    try:
        head = ebml.element_at(data, 0)
        segment = ebml.element_at(data, head[2]) if head is not None else None
    except MalformedInput:
        return 0.0
    if segment is None:
        return 0.0
    identity, start, end = segment
    unknown = end - start in (2 ** (7 * length) - 1 for length in range(1, 9))
    return 1.0 if identity != ebml.SEGMENT or unknown or end == start else (len(data) - start) / (end - start)


def _mp4_held(data: bytes) -> float:
    """By where the last of its top boxes would end."""
    at = 0
    while at + 16 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            break  # 0: to the end of the file; less is no box
        at += size
    return len(data) / at if at > len(data) else 1.0
