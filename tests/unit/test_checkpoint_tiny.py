"""The checkpoint that ships with the package: its size, its origin, its use."""

from __future__ import annotations

import json

import pytest
import torch

from serve_app.model.audio_features import select_windows
from serve_app.model.checkpoint import load_audio_features, load_dit, load_vae
from serve_app.model.presets import checkpoint_root, preset, resolved_geometry

from training.autoencoder import LTX
from training.checkpoint import RECORD
from training.generator import DIT
from training.speech_encoder import WAV2VEC2
from training.stages import STAGES

EMBEDDED = checkpoint_root("embedded")
TINY = preset("tiny")
CPU = torch.device("cpu")


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED.rglob("*") if file.is_file()) < 20e6


def test_it_has_the_sizes_that_training_makes() -> None:
    for folder, config in ((TINY.dit_dir, DIT), (TINY.vae_path, LTX), (TINY.wav2vec2_dir, WAV2VEC2)):
        assert json.loads((EMBEDDED / folder / "config.json").read_text()) == config


def test_it_tells_how_it_was_trained() -> None:
    record = json.loads((EMBEDDED / RECORD).read_text())
    assert {"torch", "settings", "phases", "stages", "held out"} <= set(record)
    assert all(phase["on"] and phase["seconds"] > 0 for phase in record["phases"].values())
    for name in STAGES:
        assert record["stages"][name]["step"] > 0
        assert record["stages"][name]["seconds"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_chunks_stay_of_order_one(dtype: torch.dtype) -> None:
    """Three chunks by hand, the motion latents of one fed to the next."""
    dit = load_dit(EMBEDDED, TINY, CPU, dtype)
    vae = load_vae(EMBEDDED, TINY, CPU, dtype)
    speech = load_audio_features(EMBEDDED, TINY, CPU)
    geometry = resolved_geometry(EMBEDDED, TINY)
    shape = (1, *vae.latent_shape(geometry.frames, geometry.height, geometry.width))
    generator = torch.Generator().manual_seed(7)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    windows = select_windows(speech.encode(0.1 * noise(128_000)), 167, 200)
    context = dit.project_audio(windows)
    portrait = noise(1, 3, 1, geometry.height, geometry.width).tanh()
    y = vae.sample(*vae.reference_moments(portrait), noise(*shape))
    motion = y[:, :, :1]
    for _ in range(3):
        x = noise(*shape)
        x[:, :, : motion.shape[2]] = motion
        velocity = dit(x.to(dtype), y.to(dtype), torch.tensor([1000.0]), context)
        video = vae.decode(x - velocity)
        motion = vae.encode(video[:, :, -geometry.motion_frames :])
        assert video.shape == (1, 3, geometry.frames, geometry.height, geometry.width)
        assert video.abs().max() < 5
        assert 0.2 < motion.std() < 3
