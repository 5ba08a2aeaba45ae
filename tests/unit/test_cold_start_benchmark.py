"""The cold start benchmark: its stand-in for Lite's files, and one real start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serve_app.config import ModelSettings
from serve_app.model.weight_files import inspect

from benchmarks.cold_start import Start, _write_safetensors, start, table


def test_files_written_block_by_block_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    shapes = {"a": (3000, 5000), "b": (7,), "c": (600, 1000, 4)}
    _write_safetensors(path, shapes)
    assert inspect(path).state == "sound" and inspect(path).shapes == shapes
    tensors = load_file(path)
    assert all(tensor.dtype == torch.float32 and tensor.abs().max() < 1 for tensor in tensors.values())
    assert tensors["c"].std() > 0.01


def test_the_table_has_medians() -> None:
    starts = [Start({"imports": seconds, "total": 2 * seconds}, 0.1) for seconds in (9.0, 1.0, 2.0)]
    lines = table({"pages cold": starts, "pages warm": starts[1:]})
    assert lines[2:] == [
        "| imports | 2.00 | 1.50 |",
        "| **total** | 4.00 | 3.00 |",
        "| a warm chunk | 0.100 | 0.100 |",
    ]


@pytest.mark.slow
def test_a_start_is_told_phase_by_phase(tmp_path: Path) -> None:
    made = start(ModelSettings(name="tiny", device="cpu", threads=1), None, False, tmp_path)
    *phases, total = made.seconds
    assert phases[:2] == ["interpreter", "imports"] and total == "total"
    assert {"weights_dit", "weights_vae", "first_chunk", "warm_up"} <= set(phases)
    assert made.chunk_s is not None and 0 < made.chunk_s < made.seconds["total"]
    assert made.seconds["imports"] + made.seconds["first_chunk"] < made.seconds["total"]
