"""Files that are cut short, lie, or want something else than to be decoded."""

from __future__ import annotations

import io
import struct
import zlib

import av
import numpy as np
import soundfile
from PIL import Image

from serve_app.media.webm import AUDIO_TRACK, Block, webm_cluster, webm_header

from media.sounds import KINDS, encoded, speech_like, wav

SDP = b"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=stream
c=IN IP4 127.0.0.1
t=0 0
m=audio 5004 RTP/AVP 0
"""
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
DASH = b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>file:///</BaseURL></MPD>'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
TEXT = b"This is no audio, and no picture either. " * 100
ZEROS = bytes(10_000)
NOISE = np.random.default_rng(0).bytes(20_000)


def picture(kind: str = "PNG", size: tuple[int, int] = (200, 160), mode: str = "RGB") -> bytes:
    """A gradient."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def sound(name: str = "wav") -> bytes:
    """A second and a half of speech-like sound."""
    return encoded(KINDS[name], speech_like(48_000), 48_000)


def cut(data: bytes, part: float) -> bytes:
    """The first ``part`` of a file."""
    return data[: int(len(data) * part)]


def not_finite(value: float) -> bytes:
    """A float WAV with one sample that is no number."""
    samples = np.zeros(24_000, np.float32)
    samples[12_000] = value
    return wav(samples=samples.tobytes(), bits=32, code=3)


def png_bomb(side: int) -> bytes:
    """A PNG of ``side`` x ``side`` black pixels, one bit each, in a few kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-side // 8))
    rows = b"".join(packer.compress(row * 64) for _ in range(side // 64)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _png_chunk(name, body) for name, body in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    )


def png_text_bomb() -> bytes:
    """A small picture with a text of 64 MB packed into it."""
    plain = picture()
    text = _png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9))
    return plain[:33] + text + plain[33:]


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def webm_bomb(seconds: int) -> bytes:
    """WebM that says no length; each packet of 3 bytes decodes to 20 ms of silence."""
    silence = b"\xf8\xff\xfe"
    clusters = (
        webm_cluster(
            1000 * second,
            [Block(AUDIO_TRACK, 1000 * second + 20 * i, silence, key=True) for i in range(50)],
        )
        for second in range(seconds)
    )
    return webm_header(64, 64) + b"".join(clusters)


def flac_bomb(seconds: int) -> bytes:
    """Silence, which FLAC packs into next to nothing."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8_000 * seconds, np.int16), 8_000, format="FLAC")
    return file.getvalue()


def webm_without_sound() -> bytes:
    """A second of grey."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as muxer:
        stream = muxer.add_stream("libvpx-vp9", rate=25, width=64, height=64, pix_fmt="yuv420p")
        grey = av.VideoFrame.from_ndarray(np.full((96, 64), 128, np.uint8), "yuv420p")
        for frame in (grey, None):
            muxer.mux(stream.encode(frame))
    return file.getvalue()


def mutations(data: bytes, count: int, seed: int) -> list[bytes]:
    """The file with some bytes changed, mostly near its start, where its structure is."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 12))):
            reach = len(data) if rng.random() < 0.3 else min(len(data), 300)
            changed[int(rng.integers(4, reach))] = int(rng.integers(256))
        made.append(bytes(changed))
    return made
