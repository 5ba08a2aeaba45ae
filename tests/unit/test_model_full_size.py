"""The released models at full size on the meta device: every name, every shape, every byte of a file.

The trees are written out here from the model's description, independently of the modules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from transformers import Wav2Vec2Config, Wav2Vec2Model

from serve_app.model.dit import UNUSED_PARAMETERS, DiT, DiTConfig
from serve_app.model.parts import dit_part
from serve_app.model.presets import preset
from serve_app.model.released_files import RELEASED_BYTES
from serve_app.model.weight_report import check_weights

Tree = dict[str, tuple[int, ...]]

COMMON_CONFIG = {
    "_class_name": "WanModelAudioProject",
    "_diffusers_version": "0.36.0",
    "dim": 1536,
    "eps": 1e-6,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "has_image_input": False,
    "num_heads": 12,
    "num_layers": 30,
    "text_dim": 4096,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "lite": {
        **COMMON_CONFIG,
        "in_dim": 256,
        "out_dim": 128,
        "patch_size": [1, 1, 1],
        "vae_stride": [8, 32, 32],
    },
    "pro": {**COMMON_CONFIG, "in_dim": 32, "out_dim": 16, "patch_size": [1, 2, 2], "vae_stride": [4, 8, 8]},
}
PARAMETERS = {"lite": 1_526_864_256, "pro": 1_507_694_912}
FILE_BYTES = {"lite": 6_107_542_048, "pro": 6_030_864_656}
PRO_CONFIG_SHA256 = "94b480d3af70e73989371ed0c106656c2c887201286b1210e835cd09e71e32b1"


def linear(name: str, inputs: int, outputs: int) -> Tree:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def layer_norm(name: str, dim: int) -> Tree:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def block_tree(name: str) -> Tree:
    tree: Tree = {f"{name}.modulation": (1, 6, 1536), **layer_norm(f"{name}.norm3", 1536)}
    for attention in (f"{name}.self_attn", f"{name}.cross_attn"):
        for projection in "qkvo":
            tree |= linear(f"{attention}.{projection}", 1536, 1536)
        tree |= {f"{attention}.norm_q.weight": (1536,), f"{attention}.norm_k.weight": (1536,)}
    return tree | linear(f"{name}.ffn.0", 1536, 8960) | linear(f"{name}.ffn.2", 8960, 1536)


def unused_tree() -> Tree:
    return {
        **linear("text_embedding.0", 4096, 1536),
        **linear("text_embedding.2", 1536, 1536),
        **layer_norm("audio_emb.proj.0", 768),
        **linear("audio_emb.proj.1", 768, 768),
        **linear("audio_emb.proj.3", 768, 1536),
        **layer_norm("audio_emb.proj.4", 1536),
    }


def dit_tree(name: str) -> Tree:
    """All 843 tensors of a released DiT file."""
    patch = {"lite": (256, 1, 1, 1), "pro": (32, 1, 2, 2)}[name]
    head = {"lite": 128, "pro": 64}[name]
    later_frames = {"lite": 110_592, "pro": 73_728}[name]
    tree: Tree = {
        "patch_embedding.weight": (1536, *patch),
        "patch_embedding.bias": (1536,),
        "head.modulation": (1, 2, 1536),
        **unused_tree(),
        **linear("head.head", 1536, head),
        **linear("time_embedding.0", 256, 1536),
        **linear("time_embedding.2", 1536, 1536),
        **linear("time_projection.1", 1536, 9216),
        **linear("audio_proj.proj1", 46_080, 512),
        **linear("audio_proj.proj1_vf", later_frames, 512),
        **linear("audio_proj.proj2", 512, 512),
        **linear("audio_proj.proj3", 512, 49_152),
        **layer_norm("audio_proj.norm", 1536),
    }
    for index in range(30):
        tree |= block_tree(f"blocks.{index}")
    return tree


def safetensors_header(tree: Mapping[str, tuple[int, ...]]) -> bytes:
    """The first bytes of a float32 file as safetensors writes it: sorted names, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tree):
        start, end = end, end + 4 * prod(tree[name])
        entries[name] = {"dtype": "F32", "shape": list(tree[name]), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tree: Tree) -> int:
    return 4 * sum(prod(shape) for shape in tree.values())


def meta_dit(name: str) -> DiT:
    with torch.device("meta"):
        return DiT(DiTConfig.from_dict(CONFIGS[name]))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_every_name_and_shape_of_the_dit(name: str) -> None:
    tree = dit_tree(name)
    assert len(tree) == 843
    assert set(UNUSED_PARAMETERS) == set(unused_tree())
    used = {key: shape for key, shape in tree.items() if key not in UNUSED_PARAMETERS}
    built = {key: tuple(tensor.shape) for key, tensor in meta_dit(name).state_dict().items()}
    assert built == used


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_parameters_of_the_dit(name: str) -> None:
    unused = sum(prod(shape) for shape in unused_tree().values())
    assert unused == 8_653_824 + 1_776_384
    assert count(meta_dit(name)) + unused == PARAMETERS[name]


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_bytes_of_the_released_dit_file(name: str) -> None:
    tree = dit_tree(name)
    assert len(safetensors_header(tree)) + tensor_bytes(tree) == FILE_BYTES[name]
    assert RELEASED_BYTES[f"{preset(name).dit_dir}/diffusion_pytorch_model.safetensors"] == FILE_BYTES[name]


def test_text_of_the_released_configs() -> None:
    texts = {name: json.dumps(config, indent=2, sort_keys=True) + "\n" for name, config in CONFIGS.items()}
    sizes = {name: RELEASED_BYTES[f"{preset(name).dit_dir}/config.json"] for name in CONFIGS}
    assert {name: len(text) for name, text in texts.items()} == sizes
    assert hashlib.sha256(texts["pro"].encode()).hexdigest() == PRO_CONFIG_SHA256


@pytest.mark.parametrize("name", ["lite", "pro"])
def test_a_file_of_the_released_size_is_recognised(tmp_path: Path, name: str) -> None:
    """A sparse file: the real header, and holes where 6 GB of weights would be."""
    write_sparse_dit(tmp_path, name)
    report = next(row for row in check_weights(tmp_path).presets if row.name == name)
    lines = [file.to_text() for file in report.files if preset(name).dit_dir in file.path]
    assert [file.state for file in report.files][:2] == ["complete", "complete"]
    assert all("the released size" in line for line in lines)
    assert dit_part(tmp_path, preset(name)).examine().faults == ()


def test_a_download_cut_short_is_recognised(tmp_path: Path) -> None:
    with write_sparse_dit(tmp_path, "lite").open("r+b") as file:
        file.truncate(4_000_000_000)
    (fault,) = dit_part(tmp_path, preset("lite")).examine().faults
    assert fault.state == "truncated"
    assert fault.detail == "4,000,000,000 of the 6,107,542,048 bytes its header promises"


def test_full_size_ltx_vae() -> None:
    with torch.device("meta"):
        network = AutoencoderKLLTXVideo.from_config({"latent_channels": 128})
    tree = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(tree) == 190
    assert count(network) == 419_193_649
    assert [round(count(half) / 1e6, 1) for half in (network.encoder, network.decoder)] == [180.4, 238.8]
    expected = RELEASED_BYTES[f"{preset('lite').vae_path}/diffusion_pytorch_model.safetensors"]
    assert len(safetensors_header(tree)) + tensor_bytes(tree) == expected


def test_full_size_wan_vae() -> None:
    with torch.device("meta"):
        network = AutoencoderKLWan(base_dim=96)
    assert len(network.state_dict()) == 194
    assert count(network) == 126_892_531


def test_full_size_wav2vec2() -> None:
    """The released file has the head and the legacy names, and no mask embedding: 212 tensors."""
    config = Wav2Vec2Config(mask_time_prob=0.0)
    with torch.device("meta"):
        network = Wav2Vec2Model(config)
    legacy = {"original0": "weight_g", "original1": "weight_v"}
    tree: Tree = {"lm_head.weight": (32, 768), "lm_head.bias": (32,)}
    for name, tensor in network.state_dict().items():
        stem, _, last = name.rpartition(".parametrizations.weight.")
        tree["wav2vec2." + (f"{stem}.{legacy[last]}" if stem else name)] = tuple(tensor.shape)
    assert len(tree) == 212
    header = len(safetensors_header(tree).rstrip(b" "))
    assert header + tensor_bytes(tree) == RELEASED_BYTES["wav2vec2-base-960h/model.safetensors"]


def write_sparse_dit(root: Path, name: str) -> Path:
    folder = root / preset(name).dit_dir
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name], indent=2, sort_keys=True) + "\n")
    path = folder / "diffusion_pytorch_model.safetensors"
    tree = dit_tree(name)
    header = safetensors_header(tree)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + tensor_bytes(tree))
    return path
