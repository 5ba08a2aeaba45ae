"""A chunk in the making: one row of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from serve_app.engine.noise import NoiseStreams
from serve_app.engine.reference import Reference
from serve_app.engine.sampler import Schedule
from serve_app.engine.state import SessionState
from serve_app.model.dit import AudioContext
from serve_app.types import ChunkCall, Geometry


@dataclass(eq=False, slots=True)
class ChunkRow:
    """What the engine keeps of a chunk between its operations.

    Attributes:
        state, reference, call: what it began from; never changed.
        heard: the session's audio cache once the chunk is done.
        context: its speech as the DiT's cross-attention sees it.
        schedule: timesteps and noise levels.
        noise: the session's random streams, moving on with every draw.
        motion: ``[1, C, 1 or 2, h, w]`` in the DiT's dtype, held at the start of ``x``.
        x: ``[1, C, T, h, w]`` in the DiT's dtype, the latent being denoised.
        step: denoising steps done.
        video: ``[1, 3, n, H, W]`` float32, colour matched and unquantised; the last are the delivered
            frames, with what the motion latents need before them.
    """

    state: SessionState
    reference: Reference
    call: ChunkCall
    heard: np.ndarray
    context: AudioContext
    schedule: Schedule
    noise: NoiseStreams
    motion: Tensor
    x: Tensor
    step: int = 0
    video: Tensor | None = None

    @property
    def steps_left(self) -> int:
        """Denoising steps still to do."""
        return self.schedule.steps - self.step

    @property
    def timestep(self) -> float:
        """What the next step's forward is told."""
        return self.schedule.timesteps[self.step]

    def hold_motion(self) -> None:
        """Put the motion latents back over what denoising made of their place."""
        self.x[:, :, : self.motion.shape[2]] = self.motion


def delivered_end(call: ChunkCall) -> int:
    """The generated frame after the last delivered one."""
    return call.first_frame + call.frame_count


def first_coloured(call: ChunkCall, geometry: Geometry) -> int:
    """The first generated frame that is delivered or carried over.

    The same whether or not the chunk is final, so that a chunk made again gives the same frames.
    """
    return max(0, min(call.first_frame, delivered_end(call) - geometry.motion_frames))
