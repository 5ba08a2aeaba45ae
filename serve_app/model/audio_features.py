"""wav2vec2 features and window selection (signatures; the module follows)."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from serve_app.types import AudioWindow


class AudioFeatures(nn.Module):
    def encode(self, samples: Tensor, statistics: tuple[float, float] | None = None) -> Tensor:
        """[n] float32 raw -> [n // 640, layers, channels] float32."""

    def rows(self, window: AudioWindow) -> np.ndarray:
        """[end_row - first_row, layers, channels] float32."""


def window_index(start: int, end: int) -> Tensor:
    """[end - start, 5] int64: rows j-2..j+2 clamped to [0, end-1]."""


def select_windows(features: Tensor, start: int, end: int) -> Tensor:
    """[S, L, C] -> [1, end - start, 5, L, C]."""
