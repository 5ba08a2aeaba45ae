"""Motion latents as the generator itself hands them on: what it learns to recover from.

The engine plays each talk from its true beginning, chunk after chunk; the motion latents it arrives with
take the place of the true ones in every other item of the last stage, while the target stays true.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.model.dit import DiT
from serve_app.model.presets import preset
from serve_app.model.vae import LTXVideoVAE
from serve_app.types import AudioSlice, ChunkCall, Geometry, SessionSpec

from training.chunks import FRAMES, MOTION_FRAMES, SLICE_FRAMES, Chunks
from training.loop import save_whole
from training.pictures import SIDE
from training.talks import SAMPLES_PER_FRAME

SAVE_EVERY_TALKS = 10


def roll_out(dit: DiT, vae: LTXVideoVAE, chunks: Chunks, talks: int, path: Path, until_s: float) -> bool:
    """Write ``motion [talks, chunks, C, 2, h, w]`` to ``path``; taken up where it is there.

    The motion of a talk's first chunk is the true one. Returns whether all ``talks`` are done when
    ``time.monotonic()`` passes ``until_s``.
    """
    engine = Engine(dit, vae, preset("tiny"), Geometry(SIDE, SIDE, FRAMES, MOTION_FRAMES))
    made = list(torch.load(path, weights_only=True)) if path.is_file() else []
    while len(made) < talks and time.monotonic() < until_s:
        made.append(_talk(engine, chunks, len(made)))
        if len(made) % SAVE_EVERY_TALKS == 0:
            save_whole(torch.stack(made), path)
    if made:
        save_whole(torch.stack(made), path)
    return len(made) >= talks


def _talk(engine: Engine, chunks: Chunks, talk: int) -> Tensor:
    data = chunks.data
    spec = SessionSpec(
        f"talk-{talk}", "tiny", data["portrait"][talk].numpy(), talk, preset("tiny").steps, "stream"
    )
    state, reference = engine.open(spec)
    first = int(data["first"][talk])
    motion = data["motion"][talk].clone()
    held = motion[0] if first else state.motion
    state = replace(state, index=first, motion=held.to(engine.device))
    for chunk in range(motion.shape[0]):
        if chunk:
            motion[chunk] = state.motion.cpu()
        call = ChunkCall(
            session_id=spec.session_id,
            epoch=0,
            index=state.index,
            audio=AudioSlice(torch.zeros(SLICE_FRAMES * SAMPLES_PER_FRAME).numpy()),
            next_audio=None,
            first_frame=MOTION_FRAMES,
            frame_count=SLICE_FRAMES,
            final=False,
        )
        features = data["features"][talk, chunk].float().numpy()
        [(_, following)] = engine.step([state], [reference], [features], [call])
        assert following is not None
        state = following
    return motion
