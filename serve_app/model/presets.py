"""The models this project serves, as rows of one table. Nothing branches on a preset's name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serve_app.errors import CheckpointError, OutOfRange
from serve_app.types import Geometry

Family = Literal["ltx", "wan"]
Solver = Literal["renoise", "euler"]
Uint8Rule = Literal["truncate", "round"]

SPATIAL_STRIDE: dict[Family, int] = {"ltx": 32, "wan": 16}
"""Pixels per side behind one DiT token; heights and widths are multiples of it."""

RELEASE_DIR = "SoulX-FlashHead-1_3B"
WAV2VEC2_DIR = "wav2vec2-base-960h"


@dataclass(frozen=True, slots=True)
class Preset:
    """One served model: where its files lie below a checkpoint root, and how it is sampled.

    Attributes:
        name: what a request selects it by.
        family: which video VAE it has: LTX (Lite) or Wan 2.1 (Pro).
        description: one sentence for people.
        dit_dir: folder of the DiT's ``config.json`` and ``diffusion_pytorch_model.safetensors``.
        vae_path: folder of the LTX VAE, or the Wan VAE's ``.pth`` file.
        wav2vec2_dir: folder of the speech encoder.
        motion_frames: frames carried over from one chunk to the next.
        steps: denoising steps of a chunk.
        allowed_steps: what a request may ask for instead.
        solver: ``renoise`` predicts the clean latent and adds fresh noise at every step (the
            distilled models); ``euler`` integrates the velocity.
        height, width: pixels, where the DiT's ``config.json`` has no ``height`` and ``width``.
        frames: frames generated per chunk.
        audio_guidance: scale of classifier-free guidance on the audio, ``None`` for one forward.
        shift: schedule shift s in ``sigma = s u / (1 + (s - 1) u)``.
        bf16_timesteps: round timesteps and sigmas to bfloat16 whatever the precision, as the
            released inference does (937.5 becomes 936).
        colour_strength: blend of the colour match, 0 leaves frames as decoded.
        uint8_rule: how [0, 255] becomes uint8.
        unavailable_reason: why the weights cannot be had, ``None`` where they can.
    """

    name: str
    family: Family
    description: str
    dit_dir: str
    vae_path: str
    motion_frames: int
    steps: int
    allowed_steps: tuple[int, ...]
    solver: Solver = "renoise"
    wav2vec2_dir: str = WAV2VEC2_DIR
    height: int = 512
    width: int = 512
    frames: int = 33
    audio_guidance: float | None = None
    shift: float = 5.0
    bf16_timesteps: bool = True
    colour_strength: float = 1.0
    uint8_rule: Uint8Rule = "truncate"
    unavailable_reason: str | None = None


_ROWS = (
    Preset(
        name="tiny",
        family="ltx",
        description="A scaled-down FlashHead Lite that ships with the package and runs on a CPU.",
        dit_dir=f"{RELEASE_DIR}/Model_Lite",
        vae_path=f"{RELEASE_DIR}/VAE_LTX",
        motion_frames=9,
        steps=4,
        allowed_steps=(2, 3, 4),
        height=128,
        width=128,
        bf16_timesteps=False,
    ),
    Preset(
        name="lite",
        family="ltx",
        description="SoulX-FlashHead 1.3B Lite: 24 new frames per chunk, for real time on one GPU.",
        dit_dir=f"{RELEASE_DIR}/Model_Lite",
        vae_path=f"{RELEASE_DIR}/VAE_LTX",
        motion_frames=9,
        steps=4,
        allowed_steps=(2, 3, 4),
    ),
    Preset(
        name="pro",
        family="wan",
        description="SoulX-FlashHead 1.3B Pro: 28 new frames per chunk, finer and eight times the work.",
        dit_dir=f"{RELEASE_DIR}/Model_Pro",
        vae_path=f"{RELEASE_DIR}/VAE_Wan/Wan2.1_VAE.pth",
        motion_frames=5,
        steps=4,
        allowed_steps=(2, 3, 4),
    ),
    Preset(
        name="pretrained",
        family="wan",
        description="The teacher Pro was distilled from: 20 steps with audio guidance.",
        dit_dir=f"{RELEASE_DIR}/teacher",
        vae_path=f"{RELEASE_DIR}/VAE_Wan/Wan2.1_VAE.pth",
        motion_frames=5,
        steps=20,
        allowed_steps=(20,),
        solver="euler",
        audio_guidance=3.0,
        unavailable_reason="the weights of SoulX-FlashHead's teacher were never released",
    ),
)

PRESETS: dict[str, Preset] = {row.name: row for row in _ROWS}


def preset(name: str) -> Preset:
    """The row called ``name``.

    Raises:
        OutOfRange: no preset has that name.
    """
    if name not in PRESETS:
        known = list(PRESETS)
        raise OutOfRange(
            f"model {name!r} is not known; known: {', '.join(known)}", value=name, accepted=known
        )
    return PRESETS[name]


def checkpoint_root(checkpoint: str) -> Path:
    """The checkpoint directory a model setting means: a path, or ``embedded`` for the package's own."""
    if checkpoint == "embedded":
        return Path(__file__).resolve().parent.parent / "checkpoints" / "tiny"
    return Path(checkpoint).expanduser()


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: the file is missing, or is not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing", value=str(path)) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}", value=str(path)) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object but a {type(config).__name__}", value=str(path))
    return config


def resolved_geometry(root: Path, preset: Preset) -> Geometry:
    """The chunk sizes of ``preset`` with the checkpoint at ``root``, whose DiT config may set
    ``height`` and ``width``.

    Raises:
        CheckpointError: the config is absent or unreadable, or a size is no multiple of the
            family's stride.
    """
    path = root / preset.dit_dir / "config.json"
    config = read_config(path)
    stride = SPATIAL_STRIDE[preset.family]
    sides = {"height": config.get("height", preset.height), "width": config.get("width", preset.width)}
    for side, pixels in sides.items():
        if type(pixels) is not int or pixels < stride or pixels % stride:
            message = f"{path}: {side} {pixels!r} is not a positive multiple of {stride}"
            raise CheckpointError(message, value=pixels, accepted=f"multiples of {stride}")
    return Geometry(sides["height"], sides["width"], preset.frames, preset.motion_frames)
