"""VP9 and H.264 from yuv420p frames: a fresh encoder per chunk, so that a chunk begins with its only key
frame and depends on nothing but its own frames.

Constant quality: any bit rate target makes the first frames of a fresh encoder pulse visibly.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from serve_app.types import FPS

PIXEL_FORMAT = "yuv420p"
MATRIX_SMPTE170M, PRIMARIES_BT709, TRANSFER_BT709, LIMITED_RANGE = 6, 1, 1, 1
"""The tags under which players get the colours back to within a level; swscale and Chromium take the
601 matrix even where they ignore tags."""
ONE_KEY_FRAME = 1_000_000
H264_CRF = 20


def encode_vp9(frames: np.ndarray, crf: int, cpu_used: int) -> list[bytes]:
    """One VP9 frame for each of ``frames`` ``[n, height * 3 // 2, width]`` uint8, the first a key frame."""
    context = _encoder("libvpx-vp9")
    _configure(context, *_size(frames))
    context.options = {
        "deadline": "realtime",
        "cpu-used": str(cpu_used),
        "lag-in-frames": "0",
        "row-mt": "1",
        "crf": str(crf),
        "b": "0",
    }
    return _encode(context, frames)


def encode_h264(frames: np.ndarray) -> list[bytes]:
    """One H.264 access unit for each frame, without B-frames and without parameter sets."""
    context = _encoder("libx264")
    configure_h264(context, *_size(frames))
    return _encode(context, frames)


def configure_h264(context: VideoCodecContext, height: int, width: int) -> None:
    """Make ``context`` the encoder of every chunk of this size: equal settings, equal parameter sets."""
    _configure(context, height, width)
    context.flags |= Flags.global_header
    context.options = {"preset": "veryfast", "crf": str(H264_CRF), "bf": "0", "sc_threshold": "0"}


def _encoder(name: str) -> VideoCodecContext:
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)
    return context


def _configure(context: VideoCodecContext, height: int, width: int) -> None:
    """25 fps, one thread, colours tagged, no key frame but the first."""
    context.height, context.width, context.pix_fmt = height, width, PIXEL_FORMAT
    context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
    context.bit_rate = 0
    context.gop_size = ONE_KEY_FRAME
    context.thread_count = 1
    context.colorspace, context.color_range = MATRIX_SMPTE170M, LIMITED_RANGE
    context.color_primaries, context.color_trc = PRIMARIES_BT709, TRANSFER_BT709


def _size(frames: np.ndarray) -> tuple[int, int]:
    return frames.shape[1] * 2 // 3, frames.shape[2]


def _encode(context: VideoCodecContext, frames: np.ndarray) -> list[bytes]:
    packets = [
        packet for pts, frame in enumerate(frames) for packet in context.encode(_video_frame(frame, pts))
    ]
    packets += context.encode(None)
    return [bytes(packet) for packet in packets]


def _video_frame(pixels: np.ndarray, pts: int) -> av.VideoFrame:
    """Without a copy; read-only arrays, as the object store hands them out, are taken."""
    frame = av.VideoFrame.from_numpy_buffer(pixels, PIXEL_FORMAT)
    frame.pts = pts
    frame.time_base = Fraction(1, FPS)
    return frame
