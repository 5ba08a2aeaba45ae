"""Loading from the released layout: what is loaded, and every fault a checkpoint can have."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.errors import CheckpointError
from serve_app.model import checkpoint
from serve_app.model.checkpoint import load_audio_features, load_dit, load_vae
from serve_app.model.dit import UNUSED_PARAMETERS
from serve_app.model.presets import preset
from serve_app.model.weight_files import READERS, read_tensors

CPU = torch.device("cpu")
LITE, PRO = preset("lite"), preset("pro")
DIT = f"{LITE.dit_dir}/diffusion_pytorch_model.safetensors"
DIT_CONFIG = f"{LITE.dit_dir}/config.json"
LTX = f"{LITE.vae_path}/diffusion_pytorch_model.safetensors"
LTX_CONFIG = f"{LITE.vae_path}/config.json"
WAN = PRO.vae_path
SPEECH = f"{LITE.wav2vec2_dir}/model.safetensors"
SPEECH_CONFIG = f"{LITE.wav2vec2_dir}/config.json"

LOADERS: dict[str, Callable[[Path], Any]] = {
    DIT: lambda root: load_dit(root, LITE, CPU, torch.float32),
    LTX: lambda root: load_vae(root, LITE, CPU, torch.float32),
    WAN: lambda root: load_vae(root, PRO, CPU, torch.float32),
    SPEECH: lambda root: load_audio_features(root, LITE, CPU),
}
CONFIGS = {DIT: DIT_CONFIG, LTX: LTX_CONFIG, SPEECH: SPEECH_CONFIG}
SOME_TENSOR = {
    DIT: "blocks.1.ffn.0.weight",
    LTX: "decoder.conv_in.conv.weight",
    WAN: "decoder.conv1.weight",
    SPEECH: "wav2vec2.encoder.layers.2.attention.k_proj.weight",
}
"""By file: a tensor it has. The messages name it as the file does, or as diffusers does for Wan's."""
SOME_NAME_LOADED = {
    **SOME_TENSOR,
    WAN: "decoder.conv_in.weight",
    SPEECH: "encoder.layers.2.attention.k_proj.weight",
}


@pytest.fixture
def root(golden: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own to damage."""
    return Path(shutil.copytree(golden / "ckpt", tmp_path / "ckpt"))


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    if path.suffix == ".pth":
        tensors = torch.load(path, weights_only=True)
        change(tensors)
        torch.save(tensors, path)
    else:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})


def fault(root: Path, file: str) -> str:
    with pytest.raises(CheckpointError) as raised:
        LOADERS[file](root)
    return raised.value.message


@pytest.mark.parametrize("file", LOADERS)
def test_a_sound_checkpoint_loads_silently(
    root: Path, file: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = LOADERS[file](root)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert not network.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in network.parameters())
    assert not any(buffer.is_meta for buffer in network.buffers())


@pytest.mark.parametrize("file", LOADERS)
def test_missing_tensor(root: Path, file: str) -> None:
    edit(root / file, lambda tensors: tensors.pop(SOME_TENSOR[file]))
    message = fault(root, file)
    assert message == f"{root / file}: does not fit: missing tensors {SOME_NAME_LOADED[file]}"


@pytest.mark.parametrize("file", LOADERS)
def test_unexpected_tensor(root: Path, file: str) -> None:
    edit(root / file, lambda tensors: tensors.update(stray=torch.zeros(1)))
    assert fault(root, file) == f"{root / file}: does not fit: unexpected tensors stray"


@pytest.mark.parametrize("file", LOADERS)
def test_wrong_shape(root: Path, file: str) -> None:
    name = SOME_TENSOR[file]
    expected: list[int] = []

    def widen(tensors: dict[str, Tensor]) -> None:
        expected.extend(tensors[name].shape)
        tensors[name] = torch.zeros(3, 7)

    edit(root / file, widen)
    assert (
        fault(root, file) == f"{root / file}: does not fit: wrong shapes {name} [3, 7] (expected {expected})"
    )


def test_all_faults_of_a_file_are_in_one_error(root: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["head.head.bias"], tensors["blocks.0.modulation"]
        tensors.update(stray=torch.zeros(1), patch_embedding_bias=torch.zeros(1))
        tensors["audio_proj.norm.bias"] = torch.zeros(1)

    edit(root / DIT, spoil)
    message = fault(root, DIT)
    assert "missing tensors blocks.0.modulation, head.head.bias;" in message
    assert "unexpected tensors patch_embedding_bias, stray;" in message
    assert "wrong shapes audio_proj.norm.bias [1] (expected [64])" in message


def test_weights_of_another_size_are_named_up_to_a_bound(root: Path) -> None:
    config = json.loads((root / DIT_CONFIG).read_text())
    (root / DIT_CONFIG).write_text(json.dumps({**config, "dim": 128, "num_heads": 4}))
    message = fault(root, DIT)
    assert "wrong shapes audio_proj.norm.bias [64] (expected [128])" in message
    assert message.endswith("more")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
@pytest.mark.parametrize("file", [DIT, LTX, SPEECH])
def test_truncated_safetensors(root: Path, file: str, kept: int) -> None:
    whole = (root / file).read_bytes()
    (root / file).write_bytes(whole[:kept])
    found = len(whole[:kept])
    detail = f"{found:,} of the {len(whole):,} bytes its header promises"
    if found <= 100:
        detail = f"{found:,} bytes end within the header"
    assert fault(root, file) == f"{root / file}: truncated: {detail}"


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_truncated_pth(root: Path, kept: int) -> None:
    whole = (root / WAN).read_bytes()
    (root / WAN).write_bytes(whole[:kept])
    found = f"{len(whole[:kept]):,} bytes"
    assert fault(root, WAN) == (
        f"{root / WAN}: truncated: {found}, and not the zip directory that a .pth file ends with"
    )


def test_file_longer_than_its_header_promises(root: Path) -> None:
    size = (root / DIT).stat().st_size
    with (root / DIT).open("ab") as file:
        file.write(b"tail")
    assert fault(root, DIT).endswith(f"unreadable: {size + 4:,} bytes, its header promises {size:,}")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x02" + bytes(7) + b"{}" * 4, bytes(64)])
def test_something_else_under_the_files_name(root: Path, content: bytes) -> None:
    (root / DIT).write_bytes(content)
    assert f"{root / DIT}: unreadable: " in fault(root, DIT)


def test_pth_with_more_than_tensors_is_refused(root: Path) -> None:
    torch.save({"encoder.conv1.weight": Path("/")}, root / WAN)
    assert f"{root / WAN}: unreadable: not a state dict of tensors: " in fault(root, WAN)
    torch.save([torch.zeros(1)], root / WAN)
    assert "something else than named tensors" in fault(root, WAN)


@pytest.mark.parametrize("file", LOADERS)
def test_absent_files_are_all_named(root: Path, file: str) -> None:
    files = [CONFIGS[file], file] if file in CONFIGS else [file]
    for name in files:
        (root / name).unlink()
    assert fault(root, file) == "; ".join(f"{root / name}: missing" for name in files)


@pytest.mark.parametrize("file", CONFIGS)
@pytest.mark.parametrize(("text", "detail"), [("{", "unreadable: not JSON"), ("[1]", "not a JSON object")])
def test_unreadable_config(root: Path, file: str, text: str, detail: str) -> None:
    (root / CONFIGS[file]).write_text(text)
    message = fault(root, file)
    assert message.startswith(f"{root / CONFIGS[file]}: unreadable: ")
    assert detail in message


@pytest.mark.parametrize(
    ("file", "change", "detail"),
    [
        (DIT, {"num_heads": 5}, "DiT config: dim 64 is not a multiple of num_heads 5"),
        (LTX, {"layers_per_block": [1]}, "index out of range"),
        (SPEECH, {"hidden_size": "wide"}, "expected int, got str"),
        (SPEECH, {"do_stable_layer_norm": True}, "do_stable_layer_norm is true, expected false"),
    ],
)
def test_config_that_makes_no_network(root: Path, file: str, change: dict[str, Any], detail: str) -> None:
    config = json.loads((root / CONFIGS[file]).read_text())
    (root / CONFIGS[file]).write_text(json.dumps({**config, **change}))
    message = fault(root, file)
    assert message.startswith(f"{root / CONFIGS[file]}: does not fit: ")
    assert detail in message


def test_unavailable_weights_say_why(root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model 'pretrained': .* never released"):
        load_dit(root, preset("pretrained"), CPU, torch.float32)


def test_a_checkpoint_without_the_unused_tensors_loads_the_same(root: Path) -> None:
    full = load_dit(root, LITE, CPU, torch.float32).state_dict()
    edit(root / DIT, lambda tensors: [tensors.pop(name) for name in UNUSED_PARAMETERS])
    bare = load_dit(root, LITE, CPU, torch.float32).state_dict()
    assert bare.keys() == full.keys()
    assert all(torch.equal(bare[name], full[name]) for name in full)


def test_speech_encoder_without_prefix_and_head_loads_the_same(root: Path) -> None:
    def as_saved_alone(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            if not name.startswith("lm_head."):
                tensors[name.removeprefix("wav2vec2.")] = tensor
        tensors["masked_spec_embed"] = torch.zeros(24)

    samples = torch.randn(6400, generator=torch.Generator().manual_seed(6))
    expected = load_audio_features(root, LITE, CPU).encode(samples)
    edit(root / SPEECH, as_saved_alone)
    assert torch.equal(load_audio_features(root, LITE, CPU).encode(samples), expected)


@pytest.mark.parametrize("file", [DIT, LTX, WAN])
def test_never_two_copies_of_the_weights(root: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tensors as read, no more than one per reading thread are alive at any time."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0
    lock = threading.Lock()

    def watched(
        path: Path,
        device: torch.device,
        names: Collection[str],
        place: Callable[[str, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        def place_copy(name: str, tensor: Tensor) -> Tensor:
            nonlocal most
            copy = tensor.double()
            with lock:
                alive.add(copy)
                most = max(most, len(alive))
            return place(name, copy)

        return read_tensors(path, device, names, place_copy)

    monkeypatch.setattr(checkpoint, "read_tensors", watched)
    network = LOADERS[file](root)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert 1 <= most <= READERS
    assert len(alive) == 0
