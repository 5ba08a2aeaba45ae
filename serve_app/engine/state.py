"""A session between two chunks, as a value: what it needs to go on here, or on any other replica.

Container: one safetensors file. Tensors under their field names; everything else as one JSON object in
the metadata, so that equal states are equal bytes. No pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from serve_app.engine.audio_cache import CACHE_SAMPLES
from serve_app.errors import SnapshotError
from serve_app.types import SessionSpec

VERSION = 1
_METADATA_KEY = "flashhead-session"


@dataclass(frozen=True, slots=True)
class SessionState:
    """Where a session stands before chunk ``index``.

    Attributes:
        model: name of the model it runs on.
        spec_digest: of what it was opened with, see ``spec_digest``.
        index: chunks done.
        epoch: the opening it belongs to.
        steps: denoising steps of each of its chunks.
        device: kind of device whose generators ``noise`` and ``posterior`` are states of.
        motion: ``[C, 1 or 2, h, w]`` float32, latents of the frames carried over.
        audio_cache: ``[128000]`` float32, the last 8 s of speech; ``[0]`` in ``once`` mode.
        noise, posterior: uint8 vectors on the CPU, where the session's random streams stand.
    """

    model: str
    spec_digest: str
    index: int
    epoch: int
    steps: int
    device: str
    motion: Tensor
    audio_cache: np.ndarray
    noise: Tensor
    posterior: Tensor

    def to_bytes(self) -> bytes:
        """The snapshot: 0.8 MB for Lite, 1.1 MB for Pro at 512 x 512."""
        values = {name: getattr(self, name) for name in _VALUE_KINDS}
        metadata = json.dumps({"version": VERSION, **values}, sort_keys=True)
        tensors = {
            "motion": self.motion.cpu().contiguous(),
            "audio_cache": torch.from_numpy(self.audio_cache),
            "noise": self.noise,
            "posterior": self.posterior,
        }
        return save(tensors, {_METADATA_KEY: metadata})

    @staticmethod
    def from_bytes(data: bytes) -> SessionState:
        """The state a snapshot holds, on the CPU.

        Raises:
            SnapshotError: not a snapshot, another version, fields missing, unknown or of the wrong kind;
                the message names them.
        """
        values = _read_values(data)
        tensors = load(data)
        _require_fields("tensors", tensors, _TENSOR_KINDS)
        for name, (dtype, rank) in _TENSOR_KINDS.items():
            _check_tensor(name, tensors[name], dtype, rank)
        samples = len(tensors["audio_cache"])
        if samples not in (0, CACHE_SAMPLES):
            _refuse(f"audio_cache holds {samples} samples, expected 0 or {CACHE_SAMPLES}", samples)
        fields: dict[str, Any] = {**values, **tensors, "audio_cache": tensors["audio_cache"].numpy()}
        return SessionState(**fields)


_VALUE_KINDS: dict[str, type] = {
    "model": str,
    "spec_digest": str,
    "index": int,
    "epoch": int,
    "steps": int,
    "device": str,
}
_TENSOR_KINDS = {
    "motion": (torch.float32, 4),
    "audio_cache": (torch.float32, 1),
    "noise": (torch.uint8, 1),
    "posterior": (torch.uint8, 1),
}


def spec_digest(spec: SessionSpec) -> str:
    """SHA-256 of what a session's frames follow from besides its speech: model, portrait, seed, steps
    and audio encoding. The session's id is not part of it."""
    values = [spec.model, spec.seed, spec.steps, spec.audio_encode, portrait_digest(spec.portrait)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def portrait_digest(portrait: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels."""
    return hashlib.sha256(str(portrait.shape).encode() + portrait.tobytes()).hexdigest()


def _read_values(data: bytes) -> dict[str, Any]:
    values = _metadata(data)
    version = values.pop("version", None)
    if version != VERSION:
        _refuse(f"version {version!r}, this engine reads {VERSION}", value=version, accepted=VERSION)
    _require_fields("values", values, _VALUE_KINDS)
    for name, kind in _VALUE_KINDS.items():
        if type(values[name]) is not kind or (kind is int and values[name] < 0):
            _refuse(f"{name} is {values[name]!r}, expected {kind.__name__}", value=values[name])
    return values


def _metadata(data: bytes) -> dict[str, Any]:
    """The JSON object in the header; the whole file is checked first."""
    try:
        load(data)
        length = int.from_bytes(data[:8], "little")
        values = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA_KEY])
        return dict(values)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise SnapshotError(f"snapshot of {len(data)} bytes is not one of a session: {error!r}") from error


def _require_fields(what: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        _refuse(f"{what} missing {missing}, unknown {unknown}", missing + unknown, sorted(expected))


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, rank: int) -> None:
    if tensor.dtype != dtype or tensor.dim() != rank:
        _refuse(f"{name} is {tensor.dtype}{list(tensor.shape)}, expected {dtype} of {rank} dimensions")


def _refuse(what: str, value: Any = None, accepted: Any = None) -> NoReturn:
    raise SnapshotError(f"snapshot refused: {what}", value=value, accepted=accepted)
