"""What a weight file says of itself in its header, without reading its tensors."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

Shape = tuple[int, ...]
FileState = Literal["sound", "missing", "truncated", "unreadable"]

READERS = 4
"""Threads that read one file: one thread waits for each page of a mapped file in turn, several keep a
volume busy (measured, docs/benchmarks.md)."""

_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file on disk and what its header promises.

    Attributes:
        state: ``sound`` if its tensors can be read; else why not, with ``detail`` in words.
        size: bytes found.
        shapes: every tensor's shape by its name in the file; empty where the header cannot be read.
    """

    path: Path
    state: FileState = "sound"
    detail: str = ""
    size: int = 0
    shapes: dict[str, Shape] = field(default_factory=dict)


def inspect(path: Path) -> WeightFile:
    """What the header of ``path`` says: safetensors, or a zip-format ``.pth`` state dict."""
    if not path.is_file():
        return WeightFile(path, "missing")
    return _inspect_pth(path) if path.suffix == ".pth" else _inspect_safetensors(path)


def read_tensors(
    path: Path, device: torch.device, names: Collection[str], place: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """What ``place`` makes of the tensors called ``names`` in a file that ``inspect`` finds sound.

    ``READERS`` of them are read and placed at a time, in the order of the file, so that no more exist as
    they are in the file. From a safetensors file they come on ``device``; those of a ``.pth`` file, and of
    any file for the CPU, are mapped: then ``place`` is what reads them.
    """
    with _opened(path, device) as (stored, tensor), ThreadPoolExecutor(READERS, "weights") as readers:
        wanted = [name for name in stored if name in names]
        return dict(zip(wanted, readers.map(lambda name: place(name, tensor(name)), wanted), strict=True))


@contextmanager
def _opened(path: Path, device: torch.device) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """The tensors' names in the order of the file, and what gives a tensor by its name."""
    if path.suffix == ".pth":
        tensors = _load_pth(path)
        yield list(tensors), tensors.__getitem__
        return
    with safe_open(path, framework="pt", device=str(device)) as file:
        yield file.offset_keys(), file.get_tensor


def _inspect_safetensors(path: Path) -> WeightFile:
    """Layout: 8 bytes of header length, the header as JSON, the tensors' bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            return WeightFile(path, "unreadable", "not a safetensors file", size)
        header = file.read(length)
    if size < 8 + length or size < 8:
        return WeightFile(path, "truncated", f"{size:,} bytes end within the header", size)
    try:
        shapes, data_bytes = _parse_header(header)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return WeightFile(path, "unreadable", f"not a safetensors file: header gives {error!r}", size)
    state, detail = _length_state(size, promised=8 + length + data_bytes)
    return WeightFile(path, state, detail, size, shapes)


def _parse_header(header: bytes) -> tuple[dict[str, Shape], int]:
    """Shapes by name, and the bytes of all tensors together."""
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    return shapes, max((entry["data_offsets"][1] for entry in entries.values()), default=0)


def _length_state(size: int, promised: int) -> tuple[FileState, str]:
    if size < promised:
        return "truncated", f"{size:,} of the {promised:,} bytes its header promises"
    if size > promised:
        return "unreadable", f"{size:,} bytes, its header promises {promised:,}"
    return "sound", ""


def _inspect_pth(path: Path) -> WeightFile:
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        detail = f"{size:,} bytes, and not the zip directory that a .pth file ends with"
        return WeightFile(path, "truncated", detail, size)
    try:
        tensors = _load_pth(path)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        first_line = str(error).partition("\n")[0]
        return WeightFile(path, "unreadable", f"not a state dict of tensors: {first_line}", size)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return WeightFile(path, size=size, shapes=shapes)


def _load_pth(path: Path) -> dict[str, Tensor]:
    """The state dict, its tensors mapped from the file: none of their bytes are read yet."""
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise pickle.UnpicklingError("the file holds something else than named tensors")
    return loaded
