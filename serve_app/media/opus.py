"""Opus packets on the 20 ms grid, from a fresh encoder per chunk.

96 kb/s at a constant rate in CELT-only mode: with 100 ms of pre-roll encoded and dropped, a fresh
encoder's packets decode like those of one that never stopped (boundary error below -65 dBFS; lower
rates switch to SILK, whose state is longer, and click).
"""

from __future__ import annotations

import struct

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext

from serve_app.types import ENCODER_CONTEXT_SAMPLES, FRAME_MS, LISTENER_RATE_HZ, EncodeJob

PACKET_MS = 20
PACKET_SAMPLES = LISTENER_RATE_HZ * PACKET_MS // 1000
PACKETS_PER_FRAME = FRAME_MS // PACKET_MS
PRE_SKIP_SAMPLES = 120
"""The encoder's delay in low-delay mode: packet ``j`` decodes to samples ``960 j - 120`` onward."""
BIT_RATE = 96_000
OPTIONS = {"vbr": "off", "application": "lowdelay", "frame_duration": "20", "compression_level": "10"}


def opus_head() -> bytes:
    """The identification header players are given (RFC 7845 section 5.1): mono, 48 kHz, no gain."""
    return b"OpusHead" + struct.pack("<BBHIhB", 1, 1, PRE_SKIP_SAMPLES, LISTENER_RATE_HZ, 0, 0)


def encode_chunk(job: EncodeJob) -> tuple[list[bytes], int]:
    """The packets of a job's chunk, and how many samples at the end of the last are padding.

    A chunk in mid-stream gives two packets a frame. The final one gives as many as the codec's delay
    needs to bring out the last valid sample: fewer, or one past the chunk's end.
    """
    start_packet = job.start_ms // PACKET_MS
    packets = PACKETS_PER_FRAME * job.frame_count
    discard = 0
    if job.final:
        end = (job.start_ms * LISTENER_RATE_HZ) // 1000 + job.valid_samples + PRE_SKIP_SAMPLES
        packets = -(-end // PACKET_SAMPLES) - start_packet
        discard = (start_packet + packets) * PACKET_SAMPLES - end
    pre_roll = min(start_packet, ENCODER_CONTEXT_SAMPLES // PACKET_SAMPLES)
    first = ENCODER_CONTEXT_SAMPLES - pre_roll * PACKET_SAMPLES
    samples = _fitted(job.pcm48[first:], (pre_roll + packets) * PACKET_SAMPLES)
    return _encode(samples)[pre_roll:], discard


def _fitted(pcm: np.ndarray, samples: int) -> np.ndarray:
    if len(pcm) >= samples:
        return pcm[:samples]
    return np.concatenate([pcm, np.zeros(samples - len(pcm), np.float32)])


def _encode(pcm: np.ndarray) -> list[bytes]:
    """One packet for each 960 samples; never flushed, since that would add a packet of padding."""
    context = _context()
    return [
        bytes(packet)
        for start in range(0, len(pcm), PACKET_SAMPLES)
        for packet in context.encode(_audio_frame(pcm[start : start + PACKET_SAMPLES], start))
    ]


def _context() -> AudioCodecContext:
    context = av.CodecContext.create("libopus", "w")
    assert isinstance(context, AudioCodecContext)
    context.sample_rate = LISTENER_RATE_HZ
    context.format = "flt"
    context.layout = "mono"
    context.bit_rate = BIT_RATE
    context.options = OPTIONS
    return context


def _audio_frame(samples: np.ndarray, pts: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="flt", layout="mono")
    frame.sample_rate = LISTENER_RATE_HZ
    frame.pts = pts
    return frame
