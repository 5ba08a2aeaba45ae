"""Timesteps, noise levels and the solvers that walk them.

Source: FlashHead spec section 6; rounding of timesteps section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.errors import OutOfRange
from serve_app.model.presets import Preset, Solver

DrawNoise = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the steps of a chunk run at.

    Attributes:
        timesteps: what the DiT is told at each step, in (0, 1000].
        sigmas: noise level before each step, and 0 after the last.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return len(self.timesteps)


def schedule(preset: Preset, steps: int) -> Schedule:
    """The schedule of ``preset`` in ``steps`` steps, rounded to bfloat16 where the preset says so.

    Raises:
        OutOfRange: the preset does not offer that many steps.
    """
    if steps not in preset.allowed_steps:
        accepted = list(preset.allowed_steps)
        message = f"steps={steps} is not offered by model {preset.name}; accepted: {accepted}"
        raise OutOfRange(message, code="steps_out_of_range", value=steps, accepted=accepted)
    levels = torch.tensor([*_LEVELS[preset.solver](steps), 0.0], dtype=torch.float64)
    sigmas = preset.shift * levels / (1 + (preset.shift - 1) * levels)
    kept = torch.bfloat16 if preset.bf16_timesteps else torch.float32
    timesteps = (1000 * sigmas[:-1]).to(kept)
    return Schedule(tuple(timesteps.tolist()), tuple(sigmas.to(kept).tolist()))


def _even_levels(steps: int) -> list[float]:
    """1, .75, .5, .25 for four steps."""
    return [1 - step / steps for step in range(steps)]


def _teacher_levels(steps: int) -> list[float]:
    """From 1 to 0.001, both included."""
    return torch.linspace(1, 0.001, steps, dtype=torch.float64).tolist()


_LEVELS: dict[Solver, Callable[[int], list[float]]] = {"renoise": _even_levels, "euler": _teacher_levels}


def renoise(x: Tensor, velocity: Tensor, sigma: float, next_sigma: float, draw: DrawNoise) -> Tensor:
    """Predict the clean latent and take it back to the next noise level with fresh noise.

    The last step's noise is drawn and not used, so that a seed gives the same values whoever counts.
    """
    clean = x - sigma * velocity
    noise = draw()
    return clean if next_sigma == 0 else (1 - next_sigma) * clean + next_sigma * noise


def euler(x: Tensor, velocity: Tensor, sigma: float, next_sigma: float, draw: DrawNoise) -> Tensor:
    """One Euler step of the flow; draws nothing."""
    return x - velocity * (sigma - next_sigma)


SOLVERS: dict[Solver, Callable[[Tensor, Tensor, float, float, DrawNoise], Tensor]] = {
    "renoise": renoise,
    "euler": euler,
}


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: the velocity pushed away from the one without speech."""
    return unconditional + scale * (conditional - unconditional)
