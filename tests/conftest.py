"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

GoldenTensors = Callable[[str], "dict[str, torch.Tensor]"]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The directory of golden numbers; its README lists tensors and tolerances."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_tensors(golden: Path) -> GoldenTensors:
    """``golden_tensors("audio")``: every tensor of golden/audio.safetensors, 16-bit floats as float32."""

    from safetensors.torch import load_file

    def load(name: str) -> dict[str, torch.Tensor]:
        tensors = load_file(golden / f"{name}.safetensors")
        return {key: _widened(tensor) for key, tensor in tensors.items()}

    return load


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
