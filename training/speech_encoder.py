"""The speech encoder: a small wav2vec2, taught to tell from speech what the mouth does.

Its hidden states are what the generator hears by, so they are made to carry the mouth's track; the linear
reading of the last layer is used in training only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from serve_app.model.audio_features import AudioFeatures

WAV2VEC2: dict[str, Any] = {
    "model_type": "wav2vec2",
    "architectures": ["Wav2Vec2Model"],
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "conv_dim": [32, 48, 64, 64, 64, 64, 64],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
_CHUNK_ROWS = 35
"""The rows at the end of the window that a chunk is made from; they count more."""
_CHUNK_WEIGHT = 4.0


class MouthReader(nn.Module):
    """Speech ``[B, 128000]`` to the mouth's track ``[B, 200, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Wav2Vec2Model(Wav2Vec2Config.from_dict(WAV2VEC2))
        self.readings = nn.ModuleList(nn.Linear(WAV2VEC2["hidden_size"], 3) for _ in range(2))

    def forward(self, samples: Tensor) -> list[Tensor]:
        """Read from the last layer, and from the middle one, so that it carries the track too."""
        speech = AudioFeatures(self.network)
        hidden = torch.stack([speech.encode(row) for row in samples])
        middle = hidden.shape[2] // 2 - 1
        return [read(hidden[:, :, layer]) for read, layer in zip(self.readings, (-1, middle), strict=True)]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        wanted = batch["track"]
        weight = torch.ones(wanted.shape[1], 1, device=wanted.device)
        weight[-_CHUNK_ROWS:] = _CHUNK_WEIGHT
        last, middle = (weight * (read - wanted).square() for read in self.forward(batch["samples"]))
        return {"loss": last.mean() + 0.3 * middle.mean(), "opening": last[..., 0].mean()}
