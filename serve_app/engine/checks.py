"""What the engine takes, checked where it enters: specs, snapshots, calls and features."""

from __future__ import annotations

from typing import Any, NoReturn, get_args

import numpy as np
import torch

from serve_app.engine import audio_cache
from serve_app.engine.row import delivered_end
from serve_app.engine.state import SessionState, spec_digest
from serve_app.errors import OutOfRange, SnapshotError
from serve_app.types import AudioEncodeMode, ChunkCall, Geometry, ModelCard, SessionSpec

SEED_LIMIT = 2**63


def check_spec(spec: SessionSpec, card: ModelCard) -> None:
    """Hold a session's spec to the model.

    Raises:
        OutOfRange: another model, portrait size, audio mode, seed or number of steps than it takes.
    """
    shape = (card.geometry.height, card.geometry.width, 3)
    if spec.model != card.name:
        _refuse(f"model {spec.model!r}", spec.model, card.name)
    if spec.portrait.shape != shape or spec.portrait.dtype != np.uint8:
        _refuse(f"portrait {spec.portrait.dtype}{list(spec.portrait.shape)}", spec.portrait.shape, shape)
    if spec.audio_encode not in get_args(AudioEncodeMode):
        _refuse(f"audio_encode {spec.audio_encode!r}", spec.audio_encode, list(get_args(AudioEncodeMode)))
    if not 0 <= spec.seed < SEED_LIMIT:
        _refuse(f"seed {spec.seed}", spec.seed, f"0 to {SEED_LIMIT - 1}")
    if spec.steps not in card.allowed_steps:
        _refuse(f"steps {spec.steps}", spec.steps, list(card.allowed_steps))


def check_state(
    state: SessionState, spec: SessionSpec, device: torch.device, motion_shape: tuple[int, ...]
) -> None:
    """Hold a restored state to the session and the engine it is restored on.

    Raises:
        SnapshotError: it belongs to another session, another kind of device or another size.
    """
    channels, frames, height, width = motion_shape
    expected = {
        "model": (state.model, spec.model),
        "spec_digest": (state.spec_digest, spec_digest(spec)),
        "steps": (state.steps, spec.steps),
        "device": (state.device, device.type),
        "motion": (tuple(state.motion.shape), (channels, frames if state.index else 1, height, width)),
        "audio_cache": (len(state.audio_cache), len(audio_cache.empty_cache(spec.audio_encode))),
    }
    wrong = {name: pair for name, pair in expected.items() if pair[0] != pair[1]}
    if wrong:
        told = ", ".join(
            f"{name} is {found!r}, expected {wanted!r}" for name, (found, wanted) in wrong.items()
        )
        raise SnapshotError(f"snapshot does not fit the session: {told}", value=sorted(wrong))


def check_features(features: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Hold speech features to ``shape`` ``[rows, blocks, channels]`` and float32.

    Raises:
        OutOfRange: they are something else.
    """
    if features.shape != shape or features.dtype != np.float32:
        _refuse(f"features {features.dtype}{list(features.shape)}", features.shape, f"float32{list(shape)}")


def check_call(state: SessionState, call: ChunkCall, geometry: Geometry) -> None:
    """Hold a call to the session it is made for.

    Raises:
        OutOfRange: it is not the session's next chunk, its speech is of the other audio mode, or its
            frames do not fit the chunk or the speech.
    """
    end = delivered_end(call)
    if call.index != state.index:
        _refuse(f"chunk index {call.index}", call.index, state.index)
    streamed = bool(len(state.audio_cache))
    if streamed != (call.audio.rows is None):
        _refuse(
            f"audio slice with rows {call.audio.rows}", call.audio.rows, "rows in once mode, and only then"
        )
    if not 0 <= call.first_frame < end <= geometry.frames:
        _refuse(f"frames [{call.first_frame}, {end})", end, f"within [0, {geometry.frames})")
    if not call.final and end < geometry.motion_frames:
        _refuse(f"a chunk that ends at frame {end}", end, f"at least {geometry.motion_frames}, or final")
    if streamed:
        _check_streamed(call, geometry)


def _check_streamed(call: ChunkCall, geometry: Geometry) -> None:
    speech = audio_cache.speech_frames(call.audio.samples)
    if call.first_frame != geometry.motion_frames:
        _refuse(f"first_frame {call.first_frame} in stream mode", call.first_frame, geometry.motion_frames)
    if call.frame_count != speech:
        samples = len(call.audio.samples)
        _refuse(f"frame_count {call.frame_count} with {samples} samples", call.frame_count, speech)


def _refuse(what: str, value: Any, accepted: Any) -> NoReturn:
    raise OutOfRange(f"{what} refused; accepted: {accepted}", value=value, accepted=accepted)
