"""The checkpoint that ships with the package: its size, its origin, its use."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serve_app.model.audio_features import select_windows
from serve_app.model.checkpoint import load_audio_features, load_dit, load_vae
from serve_app.model.presets import checkpoint_root, preset, resolved_geometry

SCRIPT = Path(__file__).parents[2] / "training" / "init_tiny.py"
EMBEDDED = checkpoint_root("embedded")
TINY = preset("tiny")
CPU = torch.device("cpu")


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED.rglob("*") if file.is_file()) < 8.5e6


def test_it_is_what_its_script_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("init_tiny", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with torch.random.fork_rng():
        script.write(tmp_path)
    shipped = sorted(path.relative_to(EMBEDDED) for path in EMBEDDED.rglob("*") if path.is_file())
    assert shipped == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for path in shipped:
        if path.suffix == ".json":
            assert (tmp_path / path).read_text() == (EMBEDDED / path).read_text()
        else:
            torch.testing.assert_close(load_file(tmp_path / path), load_file(EMBEDDED / path))


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
