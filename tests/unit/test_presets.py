"""The table of models, and the sizes a checkpoint resolves them to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.errors import CheckpointError, OutOfRange
from serve_app.model.presets import PRESETS, checkpoint_root, preset, resolved_geometry
from serve_app.types import Geometry


def test_rows_are_known_by_their_own_names() -> None:
    assert list(PRESETS) == ["tiny", "lite", "pro", "pretrained"]
    assert all(row.name == name for name, row in PRESETS.items())


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OutOfRange, match=r"'large'.*tiny, lite, pro, pretrained") as raised:
        preset("large")
    assert raised.value.accepted == list(PRESETS)


@pytest.mark.parametrize(("name", "motion", "delivered"), [("lite", 9, 24), ("pro", 5, 28)])
def test_chunk_sizes_of_the_released_models(tmp_path: Path, name: str, motion: int, delivered: int) -> None:
    _write_dit_config(tmp_path, name, {})
    geometry = resolved_geometry(tmp_path, preset(name))
    assert geometry == Geometry(height=512, width=512, frames=33, motion_frames=motion)
    assert geometry.slice_frames == delivered


def test_pretrained_says_why_it_is_unavailable() -> None:
    row = preset("pretrained")
    assert (row.steps, row.solver, row.audio_guidance) == (20, "euler", 3.0)
    assert row.unavailable_reason is not None
    assert "never released" in row.unavailable_reason


def test_config_sets_height_and_width(tmp_path: Path) -> None:
    _write_dit_config(tmp_path, "tiny", {"height": 192, "width": 256})
    geometry = resolved_geometry(tmp_path, preset("tiny"))
    assert (geometry.height, geometry.width) == (192, 256)


@pytest.mark.parametrize("height", [0, -32, 100, 512.0, "512", True])
def test_height_off_the_latent_grid_is_refused(tmp_path: Path, height: object) -> None:
    _write_dit_config(tmp_path, "lite", {"height": height})
    with pytest.raises(CheckpointError, match=r"config\.json: height .* multiple of 32"):
        resolved_geometry(tmp_path, preset("lite"))


def test_absent_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Model_Lite/config\.json: missing"):
        resolved_geometry(tmp_path, preset("lite"))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_config_that_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    _write_dit_config(tmp_path, "lite", {}).write_text(text)
    with pytest.raises(CheckpointError, match=r"Model_Lite/config\.json: not (JSON|a JSON object)"):
        resolved_geometry(tmp_path, preset("lite"))


def test_checkpoint_root() -> None:
    assert (checkpoint_root("embedded") / preset("tiny").dit_dir / "config.json").is_file()
    assert checkpoint_root("/models") == Path("/models")
    assert checkpoint_root("~/models") == Path.home() / "models"


def test_table_needs_no_torch() -> None:
    code = "import sys, serve_app.model.presets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _write_dit_config(root: Path, name: str, config: dict[str, object]) -> Path:
    folder = root / preset(name).dit_dir
    folder.mkdir(parents=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path
