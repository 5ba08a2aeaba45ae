"""Writes the trained networks in the released layout, and the record of their training beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.model.presets import PRESETS

from training.autoencoder import LTX
from training.generator import DIT
from training.speech_encoder import WAV2VEC2

RECORD = "training.json"


def write_checkpoint(
    root: Path, dit: nn.Module, vae: Any, wav2vec2: nn.Module, record: dict[str, Any]
) -> None:
    """Weights are stored as fp16, the latent statistics as fp32."""
    tiny = PRESETS["tiny"]
    speech = {_released_name(name): tensor for name, tensor in wav2vec2.state_dict().items()}
    weights = "diffusion_pytorch_model.safetensors"
    _save(root / tiny.dit_dir, DIT, dict(dit.state_dict()), weights)
    _save(root / tiny.vae_path, LTX, dict(vae.state_dict()), weights)
    _save(root / tiny.wav2vec2_dir, WAV2VEC2, speech, "model.safetensors")
    (root / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _released_name(name: str) -> str:
    """wav2vec2's names before torch had parametrizations, as the released file has them."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return "wav2vec2." + name.replace("parametrizations.weight.original1", "weight_v")


def _save(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    stored = {key: _stored(key, tensor.cpu()) for key, tensor in tensors.items()}
    save_file(stored, folder / name, metadata={"format": "pt"})


def _stored(name: str, tensor: Tensor) -> Tensor:
    dtype = torch.float32 if name.startswith("latents_") else torch.float16
    return tensor.to(dtype).contiguous()
