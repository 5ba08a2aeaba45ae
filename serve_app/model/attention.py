"""The attention kernel, chosen in one place: flash-attn where installed and fit, else torch's SDPA."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.errors import OutOfRange

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attention(q, k, v)``: q ``[batch, tokens, heads, head_dim]``, k and v with their own token count;
full softmax attention with scale ``head_dim ** -0.5``; the answer has q's shape."""

AttentionChoice = Literal["auto", "sdpa", "flash"]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's scaled dot product attention, any device and dtype."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def select_attention(
    requested: AttentionChoice, device: torch.device, dtype: torch.dtype
) -> tuple[Attention, str]:
    """The kernel to build a DiT with, and why it was chosen (for the log).

    Raises:
        OutOfRange: ``flash`` was asked for by name and cannot run here.
    """
    if requested == "sdpa":
        return sdpa, "SDPA: as configured"
    obstacle = _flash_obstacle(device, dtype)
    if obstacle is None:
        from flash_attn import flash_attn_func

        return flash_attn_func, "flash-attn: installed, and the device and dtype allow it"
    if requested == "flash":
        raise OutOfRange(
            f"attention 'flash' cannot run here: {obstacle}", value="flash", accepted=["auto", "sdpa"]
        )
    return sdpa, f"SDPA: {obstacle}"


def _flash_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps flash-attn 2 from running on ``device`` in ``dtype``, ``None`` if nothing does."""
    if device.type != "cuda":
        return f"flash-attn needs a CUDA device, this is {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn needs fp16 or bf16, this is {dtype}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "flash-attn needs compute capability 8.0 or newer"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    return None
