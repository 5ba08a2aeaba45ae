"""The piece of a clip's sound that belongs to one chunk."""

from __future__ import annotations

import numpy as np

from serve_app.types import ENCODER_CONTEXT_SAMPLES, LISTENER_SAMPLES_PER_FRAME


def job_pcm(pcm48: np.ndarray, start_sample: int, frame_count: int) -> np.ndarray:
    """``[4800 + 1920 * frame_count]`` float32: the 100 ms before ``start_sample``, then the chunk.

    Silence stands in for what lies before the clip's start or past its end.
    """
    first = start_sample - ENCODER_CONTEXT_SAMPLES
    piece = np.zeros(ENCODER_CONTEXT_SAMPLES + LISTENER_SAMPLES_PER_FRAME * frame_count, np.float32)
    inside = pcm48[max(first, 0) : first + len(piece)]
    offset = max(-first, 0)
    piece[offset : offset + len(inside)] = inside
    return piece
