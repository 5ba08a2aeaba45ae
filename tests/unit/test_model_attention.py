"""One place chooses the attention kernel and says why."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from serve_app.errors import OutOfRange
from serve_app.model.attention import sdpa, select_attention

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_sdpa_is_plain_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, tokens, 3, 8, generator=generator) for tokens in (5, 7, 7))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(8**0.5).softmax(-1)
    torch.testing.assert_close(sdpa(q, k, v), torch.einsum("bhqk,bkhd->bqhd", weights, v))


def test_as_configured() -> None:
    assert select_attention("sdpa", CUDA, torch.bfloat16) == (sdpa, "SDPA: as configured")


def test_auto_on_cpu_says_why() -> None:
    kernel, reason = select_attention("auto", CPU, torch.float32)
    assert kernel is sdpa
    assert "needs a CUDA device, this is cpu" in reason


def test_flash_by_name_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(OutOfRange, match=r"'flash' cannot run here: .* needs a CUDA device, this is cpu"):
        select_attention("flash", CPU, torch.bfloat16)


def test_flash_needs_half_precision() -> None:
    with pytest.raises(OutOfRange, match=r"needs fp16 or bf16, this is torch\.float32"):
        select_attention("flash", CUDA, torch.float32)


def test_flash_needs_a_recent_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(OutOfRange, match=r"compute capability 8\.0"):
        select_attention("flash", CUDA, torch.bfloat16)


def test_flash_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    kernel, reason = select_attention("auto", CUDA, torch.bfloat16)
    assert (kernel, reason) == (sdpa, "SDPA: flash-attn is not installed")


def test_flash_is_taken_where_installed_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("flash_attn")
    package.flash_attn_func = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    kernel, reason = select_attention("auto", CUDA, torch.bfloat16)
    assert kernel is package.flash_attn_func
    assert reason.startswith("flash-attn: installed")
