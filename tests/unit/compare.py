"""How golden numbers are compared."""

from __future__ import annotations

from torch import Tensor


def deviation(value: Tensor, expected: Tensor) -> float:
    """max|value - expected| / max|expected|; shapes must be equal."""
    assert value.shape == expected.shape
    return float((value.float() - expected.float()).abs().max() / expected.float().abs().max())
