"""The architecture of a DiT, as its ``config.json`` states it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from math import prod
from typing import Any

from serve_app.errors import CheckpointError
from serve_app.model.rope import axis_sizes

_FALSE_ONLY = "has_image_input"


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """Sizes of the network. The released files have no ``audio_*`` keys: the defaults are theirs.

    Attributes:
        in_dim: latent channels of the noisy and the reference latent together.
        out_dim: latent channels of one.
        patch_size: latent frames, rows and columns per token; one frame per token only.
        vae_stride: video frames, rows and columns per latent position.
        eps: of the layer and RMS norms; the audio projector's own is 1e-5 always.
        text_dim: width of a text encoder the checkpoint has weights for and nothing uses.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int
    in_dim: int
    out_dim: int
    patch_size: tuple[int, int, int]
    vae_stride: tuple[int, int, int]
    eps: float
    text_dim: int = 4096
    audio_blocks: int = 12
    audio_channels: int = 768
    audio_intermediate_dim: int = 512
    audio_context_tokens: int = 32

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DiTConfig:
        """The checked architecture; keys that do not describe it are left alone.

        Raises:
            CheckpointError: keys are missing, or values are of the wrong kind or do not fit together;
                the message names them all.
        """
        problems = list(_kind_problems(cls, config))
        if problems:
            raise CheckpointError("DiT config: " + "; ".join(problems), value=problems)
        known = {field.name for field in fields(cls)}
        values = {key: _plain(value) for key, value in config.items() if key in known}
        result = cls(**values)
        problems = list(_fit_problems(result))
        if problems:
            raise CheckpointError("DiT config: " + "; ".join(problems), value=problems)
        return result

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def patch_values(self) -> int:
        """Values the head puts out per token."""
        return self.out_dim * prod(self.patch_size)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kind_problems(cls: type[DiTConfig], config: Mapping[str, Any]) -> Iterator[str]:
    if config.get(_FALSE_ONLY, False) is not False:
        yield f"{_FALSE_ONLY} is {config[_FALSE_ONLY]!r}, only false is supported"
    for field in fields(cls):
        if field.name not in config:
            if field.default is MISSING:
                yield f"{field.name} is missing"
        elif not _is_kind(str(field.type), config[field.name]):
            yield f"{field.name} is {config[field.name]!r}, expected {_KINDS[str(field.type)]}"


_KINDS = {
    "int": "a positive integer",
    "float": "a positive number",
    "tuple[int, int, int]": "three positive integers",
}


def _is_kind(kind: str, value: Any) -> bool:
    if kind == "int":
        return type(value) is int and value > 0
    if kind == "float":
        return type(value) in (int, float) and value > 0
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(_is_kind("int", v) for v in value)


def _fit_problems(config: DiTConfig) -> Iterator[str]:
    if config.dim % config.num_heads:
        yield f"dim {config.dim} is not a multiple of num_heads {config.num_heads}"
    elif any(size % 2 or not size for size in axis_sizes(config.head_dim)):
        sizes = axis_sizes(config.head_dim)
        yield f"head size {config.head_dim} splits into {sizes} for frame, row and column: even sizes only"
    if config.in_dim != 2 * config.out_dim:
        yield f"in_dim {config.in_dim} is not twice out_dim {config.out_dim}"
    if config.freq_dim % 2:
        yield f"freq_dim {config.freq_dim} is odd"
    if config.patch_size[0] != 1:
        yield f"patch_size {config.patch_size} spans {config.patch_size[0]} latent frames, only 1 can be"
    if config.vae_stride[0] < 2:
        yield f"vae_stride {config.vae_stride} has {config.vae_stride[0]} frames per latent frame, at least 2"
