"""A session in which nothing is said: what an engine warms up on."""

from __future__ import annotations

import numpy as np

from serve_app.types import AudioSlice, ChunkCall, Geometry, ModelCard, SessionSpec

SESSION_ID = "silence"


def silent_spec(card: ModelCard) -> SessionSpec:
    """A grey portrait in ``stream`` mode."""
    portrait = np.full((card.geometry.height, card.geometry.width, 3), 128, np.uint8)
    return SessionSpec(SESSION_ID, card.name, portrait, seed=0, steps=card.steps, audio_encode="stream")


def silent_call(geometry: Geometry, index: int) -> ChunkCall:
    """The session's chunk ``index``: a whole slice of silence."""
    return ChunkCall(
        session_id=SESSION_ID,
        epoch=0,
        index=index,
        audio=AudioSlice(np.zeros(geometry.slice_samples, np.float32)),
        next_audio=None,
        first_frame=geometry.motion_frames,
        frame_count=geometry.slice_frames,
        final=False,
    )
