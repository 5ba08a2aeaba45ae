"""Fixtures shared by all tests, and the environment of every Ray instance they start."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

GoldenTensors = Callable[[str], "dict[str, torch.Tensor]"]

_TOKEN = Path(tempfile.mkdtemp(prefix="flashhead-tests-")) / "token"
_TOKEN.write_text(secrets.token_hex(32))
# Ray reads its authentication mode when it is imported, so this cannot wait for a fixture.
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN_PATH=str(_TOKEN),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    PYTHONPATH=os.pathsep.join([*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")]),
)


def pytest_unconfigure() -> None:
    shutil.rmtree(_TOKEN.parent, ignore_errors=True)


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
