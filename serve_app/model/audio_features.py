"""Speech features: the hidden states of wav2vec2 at 25 rows per second, and windows of them.

The networks are transformers' own parts. The stock forward cannot be used: the resampling to 25 Hz
sits between its convolutions and its projection (FlashHead spec section 4).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2Model

from serve_app.errors import OutOfRange
from serve_app.model.audio_projector import AUDIO_WINDOW
from serve_app.types import MODEL_SAMPLES_PER_FRAME, AudioWindow

MIN_SAMPLES = 400
"""Samples behind the first output of the convolutions."""

_VARIANCE_FLOOR = 1e-7


class AudioFeatures(nn.Module):
    """wav2vec2 in float32; stateless, so any number of calls may share it."""

    def __init__(self, network: Wav2Vec2Model) -> None:
        super().__init__()
        self.network = network

    @property
    def layers(self) -> int:
        """Transformer layers, each of which gives features (12 in the released model)."""
        return self.network.config.num_hidden_layers

    @property
    def channels(self) -> int:
        """Width of a layer's features (768 in the released model)."""
        return self.network.config.hidden_size

    def encode(self, samples: Tensor, statistics: tuple[float, float] | None = None) -> Tensor:
        """``[n // 640, layers, channels]`` float32: what layers 1.. put out for each video frame.

        Args:
            samples: ``[n]`` float32 at 16 kHz, n >= 400, not yet normalised.
            statistics: mean and variance to normalise by, those of ``samples`` where absent (zero
                padding counts).

        Raises:
            OutOfRange: fewer than 400 samples.
        """
        count = samples.shape[-1]
        if count < MIN_SAMPLES:
            message = f"{count} audio samples, at least {MIN_SAMPLES} are needed"
            raise OutOfRange(message, value=count, accepted=f">= {MIN_SAMPLES}")
        rows = count // MODEL_SAMPLES_PER_FRAME
        if rows == 0:
            return samples.new_empty(0, self.layers, self.channels)
        return self._transform(self._extract(normalised(samples, statistics), rows))

    @torch.inference_mode()
    def rows(self, window: AudioWindow) -> np.ndarray:
        """``[end_row - first_row, layers, channels]`` float32: the wanted rows of ``window``'s features.

        Raises:
            OutOfRange: fewer than 400 samples, or rows outside what the samples give.
        """
        available = len(window.samples) // MODEL_SAMPLES_PER_FRAME
        if not 0 <= window.first_row <= window.end_row <= available:
            wanted = (window.first_row, window.end_row)
            message = f"feature rows {wanted} of {len(window.samples)} samples, which give {available}"
            raise OutOfRange(message, value=wanted, accepted=f"within [0, {available}]")
        samples = torch.tensor(window.samples, dtype=torch.float32, device=self.network.device)
        features = self.encode(samples, window.statistics)
        return features[window.first_row : window.end_row].cpu().numpy()

    def _extract(self, samples: Tensor, rows: int) -> Tensor:
        """``[1, rows, conv channels]``: the convolutions' output (50 Hz) resampled to 25 Hz."""
        hidden = self.network.feature_extractor(samples[None])
        return F.interpolate(hidden, size=rows, mode="linear", align_corners=True).transpose(1, 2)

    def _transform(self, extracted: Tensor) -> Tensor:
        encoder = self.network.encoder
        hidden, _ = self.network.feature_projection(extracted)
        hidden = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
        outputs = []
        for layer in encoder.layers:
            hidden = layer(hidden)
            outputs.append(hidden[0])
        return torch.stack(outputs, dim=1)


def normalised(samples: Tensor, statistics: tuple[float, float] | None = None) -> Tensor:
    """``samples`` less their mean over their standard deviation, float32; silence stays 0."""
    if statistics is None:
        variance, mean = torch.var_mean(samples, correction=0)
        return (samples - mean) / torch.sqrt(variance + _VARIANCE_FLOOR)
    mean_value, variance_value = statistics
    return (samples - mean_value) / (variance_value + _VARIANCE_FLOOR) ** 0.5


def window_index(start: int, end: int) -> Tensor:
    """``[end - start, 5]`` int64: for each frame j of [start, end) the rows j-2..j+2, kept in [0, end-1]."""
    frames = torch.arange(start, end)[:, None]
    offsets = torch.arange(AUDIO_WINDOW) - AUDIO_WINDOW // 2
    return (frames + offsets).clamp(0, end - 1)


def select_windows(features: Tensor, start: int, end: int) -> Tensor:
    """``[1, end - start, 5, layers, channels]``: the windows of frames [start, end) of ``features``
    ``[rows, layers, channels]``. Rows from ``end`` on are not looked at."""
    return features[window_index(start, end).to(features.device)][None]
