"""Writes the embedded ``tiny`` checkpoint: a scaled-down FlashHead Lite in the released layout, freshly
initialised from a fixed seed.

    python training/init_tiny.py [--out DIR]

Weights are stored as fp16, the latent statistics as fp32; sizes are read from the configs it writes,
so a trained checkpoint of other widths takes the files' place as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from serve_app.model.dit import DiT, DiTConfig
from serve_app.model.presets import PRESETS, checkpoint_root

SEED = 20_260_415

DIT = {
    "_class_name": "WanModelAudioProject",
    "dim": 192,
    "ffn_dim": 384,
    "num_heads": 4,
    "num_layers": 4,
    "freq_dim": 64,
    "text_dim": 16,
    "eps": 1e-6,
    "has_image_input": False,
    "in_dim": 64,
    "out_dim": 32,
    "patch_size": [1, 1, 1],
    "vae_stride": [8, 32, 32],
    "audio_blocks": 4,
    "audio_channels": 96,
    "audio_intermediate_dim": 32,
    "audio_context_tokens": 8,
    "height": 128,
    "width": 128,
}
LTX = {
    "_class_name": "AutoencoderKLLTXVideo",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 32,
    "block_out_channels": [24, 32, 32, 32],
    "decoder_block_out_channels": [24, 32, 32, 32],
    "layers_per_block": [1, 1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1, 1],
    "spatio_temporal_scaling": [True, True, True, False],
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
}
WAV2VEC2 = {
    "model_type": "wav2vec2",
    "architectures": ["Wav2Vec2Model"],
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "conv_dim": [64] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "mask_time_prob": 0.0,
}

_POSTERIOR_LOGVAR = -8.0
"""Makes the posterior narrow (std 0.02), as a trained encoder's is: motion latents keep their content."""


def make_dit() -> dict[str, Tensor]:
    return dict(DiT(DiTConfig.from_dict(DIT)).state_dict())


def make_vae() -> dict[str, Tensor]:
    network = AutoencoderKLLTXVideo.from_config(LTX).eval().requires_grad_(False)
    channels = network.config.latent_channels
    out = network.encoder.conv_out.conv
    out.weight[channels:] = 0
    out.bias[channels:] = _POSTERIOR_LOGVAR
    latents = torch.cat([network.encode(clip).latent_dist.mean for clip in _clips()])
    network.latents_mean.copy_(latents.mean(dim=(0, 2, 3, 4)))
    network.latents_std.copy_(latents.std(dim=(0, 2, 3, 4)))
    return dict(network.state_dict())


def _clips() -> list[Tensor]:
    """Smooth coloured clips ``[1, 3, 33, 128, 128]`` in [-1, 1], still to noisy."""
    coarse = [torch.randn(1, 3, frames, side, side) for frames in (1, 4) for side in (2, 8, 32)]
    return [F.interpolate(clip, size=(33, 128, 128), mode="trilinear").tanh() for clip in coarse]


def make_wav2vec2() -> dict[str, Tensor]:
    network = Wav2Vec2Model(Wav2Vec2Config.from_dict(WAV2VEC2))
    return {_released_name(name): tensor for name, tensor in network.state_dict().items()}


def _released_name(name: str) -> str:
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return "wav2vec2." + name.replace("parametrizations.weight.original1", "weight_v")


def write(out: Path) -> None:
    """Writes the three networks below ``out``."""
    tiny = PRESETS["tiny"]
    torch.manual_seed(SEED)
    with torch.no_grad():
        _save(out / tiny.dit_dir, DIT, make_dit(), "diffusion_pytorch_model.safetensors")
        _save(out / tiny.vae_path, LTX, make_vae(), "diffusion_pytorch_model.safetensors")
        _save(out / tiny.wav2vec2_dir, WAV2VEC2, make_wav2vec2(), "model.safetensors")


def _save(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    stored = {key: _stored(key, tensor) for key, tensor in tensors.items()}
    save_file(stored, folder / name, metadata={"format": "pt"})


def _stored(name: str, tensor: Tensor) -> Tensor:
    return tensor.contiguous() if name.startswith("latents_") else tensor.half().contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=checkpoint_root("embedded"))
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
