"""The reference of a session: what its portrait contributes to every chunk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve_app.engine.colour import ColourStatistics
from serve_app.model.vae import Moments


@dataclass(frozen=True, slots=True)
class Reference:
    """Constant for a session, and a function of its portrait and seed alone.

    Attributes:
        latent: ``[1, C, T, h, w]`` in the DiT's dtype, the portrait repeated to a chunk's length.
        colour: Lab statistics of the portrait.
    """

    latent: Tensor
    colour: ColourStatistics


class MomentsCache:
    """VAE moments of the portraits seen last, so that resuming a session encodes nothing.

    Args:
        places: portraits kept; the one unused for longest makes room.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._kept: OrderedDict[str, Moments] = OrderedDict()

    def get(self, digest: str, encode: Callable[[], Moments]) -> Moments:
        """The moments kept under ``digest``, made by ``encode`` where there are none."""
        if digest not in self._kept:
            self._kept[digest] = encode()
        self._kept.move_to_end(digest)
        if len(self._kept) > self._places:
            self._kept.popitem(last=False)
        return self._kept[digest]

    def __len__(self) -> int:
        return len(self._kept)


def portrait_video(portrait: np.ndarray, device: torch.device) -> Tensor:
    """``[1, 3, 1, H, W]`` float32 in [-1, 1] of ``[H, W, 3]`` uint8."""
    pixels = torch.tensor(portrait, device=device).permute(2, 0, 1).float()
    return ((pixels / 255 - 0.5) * 2)[None, :, None]
