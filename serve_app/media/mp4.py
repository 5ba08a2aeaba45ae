"""MP4 with H.264 and AAC: the samples of a chunk, and the faststart file made of all of them.

A chunk's samples travel as ``u32`` index of the first frame, then for each sample ``u32`` length and the
access unit, all big-endian. The first sample of a chunk is its only key frame; frame ``i`` is shown at
``40 i`` ms.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from serve_app.media.video_codecs import configure_h264
from serve_app.types import FPS, LISTENER_RATE_HZ

AAC_BIT_RATE = 96_000
AAC_FRAME_SAMPLES = 1024
MUXER_OPTIONS = {"movflags": "faststart", "fflags": "bitexact", "movie_timescale": str(LISTENER_RATE_HZ)}
"""The index in front of the samples; no version or date in the file; edit lists, by which players drop
the AAC encoder's priming, exact to the sample."""


def pack_samples(first_frame: int, samples: Sequence[bytes]) -> bytes:
    """One chunk's H.264 samples as bytes."""
    framed = (struct.pack(">I", len(sample)) + sample for sample in samples)
    return struct.pack(">I", first_frame) + b"".join(framed)


def unpack_samples(chunk: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """(frame index, sample, whether it is a key frame) of what ``pack_samples`` made."""
    (index,) = struct.unpack_from(">I", chunk)
    at, key = 4, True
    while at < len(chunk):
        (length,) = struct.unpack_from(">I", chunk, at)
        yield index, chunk[at + 4 : at + 4 + length], key
        at, index, key = at + 4 + length, index + 1, False


def finalise_mp4(height: int, width: int, chunks: Sequence[bytes], pcm48: np.ndarray) -> bytes:
    """The whole file of a clip, index first: the chunks' pictures and ``pcm48`` ``[n]`` float32 as AAC.

    Raises:
        ValueError: there is no picture.
    """
    samples = [sample for chunk in chunks for sample in unpack_samples(chunk)]
    if not samples:
        raise ValueError("chunks hold no picture: a file holds at least one")
    file = io.BytesIO()
    with _open_muxer(file) as muxer:
        video = muxer.add_stream("libx264", rate=FPS)
        configure_h264(video.codec_context, height, width)
        audio = muxer.add_stream("aac", rate=LISTENER_RATE_HZ, layout="mono", bit_rate=AAC_BIT_RATE)
        muxer.start_encoding()
        muxer.mux([_video_packet(video, *sample) for sample in samples])
        for frame in (*_audio_frames(pcm48), None):
            muxer.mux(audio.encode(frame))
    return file.getvalue()


def _open_muxer(file: io.BytesIO) -> OutputContainer:
    """The muxer writes the samples first and moves them back when it knows the index; for that it opens
    the file a second time, to read."""

    def reopen(url: str, flags: int, options: dict[str, str]) -> io.BytesIO:
        return io.BytesIO(file.getvalue())

    return av.open(file, "w", format="mp4", container_options=MUXER_OPTIONS, io_open=reopen)


def _video_packet(stream: VideoStream, index: int, sample: bytes, key: bool) -> av.Packet:
    packet = av.Packet(sample)
    packet.stream = stream
    packet.time_base = Fraction(1, FPS)
    packet.pts = packet.dts = index
    packet.duration = 1
    packet.is_keyframe = key
    return packet


def _audio_frames(pcm: np.ndarray) -> Iterator[av.AudioFrame]:
    for start in range(0, len(pcm), AAC_FRAME_SAMPLES):
        samples = pcm[np.newaxis, start : start + AAC_FRAME_SAMPLES]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = LISTENER_RATE_HZ
        frame.time_base = Fraction(1, LISTENER_RATE_HZ)
        frame.pts = start
        yield frame
