"""Device, dtype, attention kernel and compilation: chosen once, in this place, and logged with why."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from serve_app.config import ModelSettings
from serve_app.errors import OutOfRange
from serve_app.model.attention import Attention, select_attention
from serve_app.model.dit import DiT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model runs."""

    device: torch.device
    dtype: torch.dtype
    attention: Attention


def choose_execution(settings: ModelSettings) -> Execution:
    """What ``settings`` ask for, or the best this machine has where they say ``auto``.

    Raises:
        OutOfRange: a device, precision or kernel asked for by name that cannot be had here.
    """
    device = choose_device(settings.device)
    dtype, precision_reason = choose_dtype(settings.precision, device)
    attention, attention_reason = select_attention(settings.attention, device, dtype)
    logger.info(
        "model %s on %s (%s), %s; attention %s",
        settings.name,
        device,
        _named(device),
        precision_reason,
        attention_reason,
    )
    return Execution(device, dtype, attention)


def choose_device(requested: str) -> torch.device:
    """``auto`` (the first CUDA device if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        OutOfRange: no such device here.
    """
    count = torch.cuda.device_count()
    if requested == "auto":
        return torch.device("cuda:0" if count else "cpu")
    known = {"cpu": "cpu", **({"cuda": "cuda:0"} if count else {})}
    known |= {f"cuda:{index}": f"cuda:{index}" for index in range(count)}
    if requested not in known:
        accepted = ["auto", *known]
        message = f"device {requested!r} cannot be used here; accepted: {', '.join(accepted)}"
        raise OutOfRange(message, value=requested, accepted=accepted)
    return torch.device(known[requested])


def choose_dtype(requested: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of DiT and VAE, and why. Speech features, statistics and colour are float32 always.

    Raises:
        OutOfRange: bf16 on a device that has no such arithmetic.
    """
    if requested == "fp32":
        return torch.float32, "fp32: as configured"
    capable = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    if requested == "bf16":
        if not capable:
            message = f"precision 'bf16' needs compute capability 8.0 or newer, {device} is older"
            raise OutOfRange(message, value="bf16", accepted=["auto", "fp32"])
        return torch.bfloat16, "bf16: as configured"
    if device.type == "cpu":
        return torch.float32, "fp32: CPU"
    return (torch.bfloat16, "bf16: CUDA") if capable else (torch.float32, "fp32: no bf16 on this GPU")


def compile_blocks(dit: DiT) -> None:
    """Compile the DiT's blocks in place: they are alike, so one graph per batch size serves all."""
    for block in dit.blocks:
        block.compile(fullgraph=True, dynamic=False)
    logger.info("DiT blocks are compiled at first use, one graph per batch size")


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"
