"""A DiT config is taken whole or refused with every fault in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import CheckpointError
from serve_app.model.dit import DiTConfig
from serve_app.model.presets import preset


@pytest.fixture
def config(golden: Path) -> dict[str, Any]:
    path = golden / "ckpt" / preset("lite").dit_dir / "config.json"
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_released_files_have_no_audio_keys(config: dict[str, Any]) -> None:
    released = {key: value for key, value in config.items() if not key.startswith("audio_")}
    result = DiTConfig.from_dict(released)
    audio = (result.audio_blocks, result.audio_channels)
    assert audio == (12, 768)
    assert (result.audio_intermediate_dim, result.audio_context_tokens) == (512, 32)


def test_values_are_taken_from_the_file(config: dict[str, Any]) -> None:
    result = DiTConfig.from_dict({**config, "height": 64})
    assert (result.dim, result.eps, result.vae_stride, result.audio_blocks) == (64, 1e-4, (8, 32, 32), 3)


def test_every_fault_is_named_at_once(config: dict[str, Any]) -> None:
    del config["ffn_dim"]
    faulty = {**config, "dim": "64", "patch_size": [1, 1], "has_image_input": True}
    with pytest.raises(CheckpointError) as raised:
        DiTConfig.from_dict(faulty)
    for fault in ("ffn_dim is missing", "dim is '64'", "patch_size is [1, 1]", "has_image_input is True"):
        assert fault in raised.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "dim 64 is not a multiple of num_heads 3"),
        ({"num_heads": 32}, r"head size 2 splits into \(2, 0, 0\)"),
        ({"dim": 60, "num_heads": 6}, r"head size 10 splits into \(4, 3, 3\)"),
        ({"in_dim": 48}, "in_dim 48 is not twice out_dim 16"),
        ({"freq_dim": 31}, "freq_dim 31 is odd"),
        ({"patch_size": [2, 1, 1]}, "patch_size .* spans 2 latent frames"),
        ({"vae_stride": [1, 8, 8]}, "vae_stride .* at least 2"),
        ({"eps": 0}, "eps is 0, expected a positive number"),
        ({"num_layers": True}, "num_layers is True, expected a positive integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_sizes_that_do_not_fit_together(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DiTConfig.from_dict({**config, **change})
