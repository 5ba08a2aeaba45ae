"""``check_weights``: what a directory holds, from headers alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from serve_app.model.presets import checkpoint_root, preset
from serve_app.model.weight_report import PresetReport, check_weights

DIT = f"{preset('lite').dit_dir}/diffusion_pytorch_model.safetensors"


@pytest.fixture
def root(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "ckpt", tmp_path / "ckpt"))


def row(root: Path, name: str) -> PresetReport:
    return next(report for report in check_weights(root).presets if report.name == name)


def test_whole_tree(root: Path) -> None:
    report = check_weights(root)
    complete = {preset.name: preset.complete for preset in report.presets}
    assert complete == {"tiny": True, "lite": True, "pro": True, "pretrained": False}
    assert report.complete
    text = report.to_text()
    assert text.startswith(
        f"{root}\ntiny: complete\nlite: complete\n  complete      {preset('lite').dit_dir}"
    )
    assert "pretrained: unavailable, " in text


def test_a_truncated_file_spoils_the_presets_that_need_it(root: Path) -> None:
    size = (root / DIT).stat().st_size
    with (root / DIT).open("r+b") as file:
        file.truncate(size - 1000)
    assert [row(root, name).complete for name in ("tiny", "lite", "pro")] == [False, False, True]
    line = f"  truncated     {DIT}, {size - 1000:,} bytes: {size - 1000:,} of the {size:,} bytes"
    assert line in check_weights(root).to_text()


def test_a_missing_file_is_named_with_its_released_size(root: Path) -> None:
    (root / preset("pro").vae_path).unlink()
    assert row(root, "pro").verdict == "incomplete"
    line = "  missing       SoulX-FlashHead-1_3B/VAE_Wan/Wan2.1_VAE.pth, released size 507,609,880 bytes"
    assert line in check_weights(root).to_text()


def test_tensors_that_do_not_fit_are_named(root: Path) -> None:
    shutil.copy(root / preset("pro").dit_dir / "diffusion_pytorch_model.safetensors", root / DIT)
    (unfit,) = (file for file in row(root, "lite").files if file.state != "complete")
    assert (unfit.path, unfit.state) == (DIT, "does not fit")
    assert "wrong shapes audio_proj.proj1_vf.weight" in unfit.detail


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_directory_without_weights_is_incomplete(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    report = check_weights(tmp_path / name)
    assert not report.complete
    assert {file.state for row in report.presets for file in row.files} == {"missing"}


def test_nothing_is_read_but_headers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_data(*args: object, **kwargs: object) -> None:
        raise AssertionError("tensor data was read")

    monkeypatch.setattr("serve_app.model.weight_files.safe_open", no_data)
    monkeypatch.setattr(torch.Tensor, "to", no_data)
    assert check_weights(root).complete


def test_the_embedded_checkpoint_is_complete() -> None:
    assert row(checkpoint_root("embedded"), "tiny").complete
