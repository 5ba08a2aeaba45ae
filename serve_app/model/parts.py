"""The networks of a checkpoint in the released layout: which files each has, the module they describe,
and how names in the file become names in the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from serve_app.errors import CheckpointError
from serve_app.model.attention import Attention, sdpa
from serve_app.model.dit import UNUSED_PARAMETERS, DiT, DiTConfig
from serve_app.model.presets import Family, Preset, read_config
from serve_app.model.vae import LTXVideoVAE, VideoVAE, WanVideoVAE
from serve_app.model.weight_files import Shape, WeightFile, inspect

Config = dict[str, Any]
Build = Callable[[Config, dict[str, Shape]], Any]
Rename = Callable[[str], str | None]

_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a file cannot be used."""

    path: Path
    state: Literal["missing", "truncated", "unreadable", "does not fit"]
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.state}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Examination:
    """A part's network on the meta device with its name for each tensor to load, unless there are
    faults."""

    network: nn.Module | None
    names: dict[str, str]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint.

    Attributes:
        weights: its weight file.
        config: its config file, ``None`` for a network whose sizes follow from the weights' shapes.
        build: the network for a config and the shapes in the file; called on the meta device.
        rename: the network's name for a tensor of the file, ``None`` for one it does not use.
    """

    weights: Path
    config: Path | None
    build: Build
    rename: Rename

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.weights,) if self.config is None else (self.config, self.weights)

    def examine(self) -> Examination:
        """The network without memory, or every fault of its files, from their headers alone."""
        config, config_fault = self._read_config()
        file = inspect(self.weights)
        file_fault = None if file.state == "sound" else Fault(file.path, file.state, file.detail)
        if faults := tuple(fault for fault in (config_fault, file_fault) if fault):
            return Examination(None, {}, faults)
        return self._fit(config, file)

    def _read_config(self) -> tuple[Config, Fault | None]:
        if self.config is None:
            return {}, None
        if not self.config.is_file():
            return {}, Fault(self.config, "missing")
        try:
            return read_config(self.config), None
        except CheckpointError as error:
            return {}, Fault(self.config, "unreadable", error.message.removeprefix(f"{self.config}: "))

    def _fit(self, config: Config, file: WeightFile) -> Examination:
        try:
            with torch.device("meta"):
                network = self.build(config, file.shapes)
        except Exception as error:  # whatever diffusers and transformers raise at a config they cannot read
            return Examination(None, {}, (Fault(self.files[0], "does not fit", str(error)),))
        names = {name: new for name in file.shapes if (new := self.rename(name)) is not None}
        if problems := "; ".join(_fit_problems(network, file.shapes, names)):
            return Examination(None, {}, (Fault(file.path, "does not fit", problems),))
        return Examination(network, names, ())


def _fit_problems(network: nn.Module, shapes: dict[str, Shape], names: dict[str, str]) -> Iterator[str]:
    """What keeps the tensors of a file from being exactly those of ``network``."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if missing := sorted(expected.keys() - set(names.values())):
        yield f"missing tensors {_listed(missing)}"
    if unexpected := sorted(name for name, new in names.items() if new not in expected):
        yield f"unexpected tensors {_listed(unexpected)}"
    wrong = [
        f"{name} {list(shapes[name])} (expected {list(expected[new])})"
        for name, new in sorted(names.items())
        if new in expected and shapes[name] != expected[new]
    ]
    if wrong:
        yield f"wrong shapes {_listed(wrong)}"


def _listed(items: list[str]) -> str:
    more = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def dit_part(root: Path, preset: Preset, attention: Attention = sdpa) -> Part:
    """The DiT. Tensors that inference never reads are known and skipped."""

    def build(config: Config, shapes: dict[str, Shape]) -> DiT:
        return DiT(DiTConfig.from_dict(config), attention)

    folder = root / preset.dit_dir
    skip_unused = {name: None for name in UNUSED_PARAMETERS}
    return Part(
        folder / _DIFFUSERS_WEIGHTS, folder / "config.json", build, lambda name: skip_unused.get(name, name)
    )


def vae_part(root: Path, preset: Preset) -> Part:
    """The video VAE of the preset's family."""
    return _VAE_PARTS[preset.family](root / preset.vae_path)


def wrapped_vae(family: Family, network: nn.Module) -> VideoVAE:
    """The VAE interface around the network of ``vae_part``."""
    return _VAE_WRAPPERS[family](network)


def _ltx_part(folder: Path) -> Part:
    def build(config: Config, shapes: dict[str, Shape]) -> Any:
        return AutoencoderKLLTXVideo.from_config(config)

    return Part(folder / _DIFFUSERS_WEIGHTS, folder / "config.json", build, lambda name: name)


def _wan_part(file: Path) -> Part:
    """The original ``.pth``: its width is read from the first convolution, its names are Wan's own."""

    def build(config: Config, shapes: dict[str, Shape]) -> Any:
        if "encoder.conv1.weight" not in shapes:
            raise CheckpointError("missing tensor encoder.conv1.weight")
        return AutoencoderKLWan(base_dim=shapes["encoder.conv1.weight"][0])

    def rename(name: str) -> str:
        (new,) = convert_wan_vae_to_diffusers({name: None})
        return new

    return Part(file, None, build, rename)


_VAE_PARTS: dict[Family, Callable[[Path], Part]] = {"ltx": _ltx_part, "wan": _wan_part}
_VAE_WRAPPERS: dict[Family, Callable[[Any], VideoVAE]] = {"ltx": LTXVideoVAE, "wan": WanVideoVAE}


def wav2vec2_part(root: Path, preset: Preset) -> Part:
    """The speech encoder, from a wav2vec2 checkpoint with or without its CTC head."""

    def build(config: Config, shapes: dict[str, Shape]) -> Any:
        if config.get("do_stable_layer_norm"):
            raise CheckpointError("do_stable_layer_norm is true, expected false")
        # Masking is for training; without it the network has no mask embedding, nor has the release.
        inference = {**config, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
        return Wav2Vec2Model(Wav2Vec2Config.from_dict(inference))

    folder = root / preset.wav2vec2_dir
    return Part(folder / "model.safetensors", folder / "config.json", build, _wav2vec2_name)


def _wav2vec2_name(name: str) -> str | None:
    if name.startswith("lm_head.") or name.endswith("masked_spec_embed"):
        return None
    name = name.removeprefix("wav2vec2.")
    for legacy, current in _WEIGHT_NORM_NAMES.items():
        name = name.replace(legacy, current)
    return name


_WEIGHT_NORM_NAMES = {
    "pos_conv_embed.conv.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
}
