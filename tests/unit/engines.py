"""Engines for tests: the miniature checkpoint's, with its own or recorded noise, and one without
networks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from serve_app.engine import audio_cache
from serve_app.engine.colour import ColourStatistics
from serve_app.engine.engine import Engine
from serve_app.engine.noise import NoiseSource
from serve_app.engine.reference import Reference
from serve_app.engine.state import SessionState, spec_digest
from serve_app.model.audio_features import AudioFeatures
from serve_app.model.checkpoint import load_audio_features, load_dit, load_vae
from serve_app.model.dit import DiT
from serve_app.model.presets import Preset, preset
from serve_app.model.vae import VideoVAE
from serve_app.types import (
    MODEL_SAMPLES_PER_FRAME,
    AudioEncodeMode,
    AudioSlice,
    ChunkCall,
    Geometry,
    ModelCard,
    SessionSpec,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "ckpt"
CPU = torch.device("cpu")
SIZES = {"lite": (64, 32), "pro": (32, 48), "pretrained": (32, 48)}


def golden_preset(name: str) -> Preset:
    """The preset as the golden numbers were made: float32 timesteps."""
    row = replace(preset(name), bf16_timesteps=False)
    if name == "pretrained":
        return replace(
            row, dit_dir=preset("pro").dit_dir, unavailable_reason=None, steps=3, allowed_steps=(3,)
        )
    return row


@cache
def _networks(name: str, dtype: torch.dtype) -> tuple[DiT, VideoVAE]:
    row = golden_preset(name)
    return load_dit(CHECKPOINT, row, CPU, dtype), load_vae(CHECKPOINT, row, CPU, dtype)


@cache
def speech_encoder() -> AudioFeatures:
    return load_audio_features(CHECKPOINT, preset("lite"), CPU)


def engine(
    name: str,
    noise: NoiseSource | None = None,
    max_rows: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Engine:
    """The miniature ``lite`` or ``pro``; ``pretrained`` borrows pro's weights."""
    row = golden_preset(name)
    geometry = Geometry(*SIZES[name], row.frames, row.motion_frames)
    return Engine(*_networks(name, dtype), row, geometry, max_rows=max_rows, noise=noise)


def spec(
    name: str,
    session_id: str = "s",
    seed: int = 42,
    steps: int | None = None,
    mode: AudioEncodeMode = "stream",
    portrait: np.ndarray | None = None,
) -> SessionSpec:
    if portrait is None:
        portrait = random_portrait(name, seed=0)
    return SessionSpec(session_id, name, portrait, seed, steps or golden_preset(name).steps, mode)


def random_portrait(name: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZES[name], 3), dtype=np.uint8)


def speech(frames: int, seed: int = 0) -> np.ndarray:
    """``[frames * 640]`` float32 noise with an envelope."""
    samples = frames * MODEL_SAMPLES_PER_FRAME
    noise = np.random.default_rng(seed).standard_normal(samples) * 0.2
    return (noise * np.abs(np.sin(np.arange(samples) / 4000))).astype(np.float32)


def stream_calls(pcm: np.ndarray, geometry: Geometry, session_id: str = "s") -> list[ChunkCall]:
    """The calls of a stream, as its conductor makes them."""
    slices = [
        AudioSlice(pcm[start : start + geometry.slice_samples])
        for start in range(0, len(pcm), geometry.slice_samples)
    ]
    return [
        ChunkCall(
            session_id=session_id,
            epoch=0,
            index=index,
            audio=audio,
            next_audio=slices[index + 1] if index + 1 < len(slices) else None,
            first_frame=geometry.motion_frames,
            frame_count=audio_cache.speech_frames(audio.samples),
            final=index == len(slices) - 1,
        )
        for index, audio in enumerate(slices)
    ]


def features_of(state: SessionState, call: ChunkCall, geometry: Geometry) -> np.ndarray:
    window, _ = audio_cache.window(state.audio_cache, call.audio, geometry)
    return speech_encoder().rows(window)


def play(
    engine: Engine,
    spec: SessionSpec,
    calls: Sequence[ChunkCall],
    between: Callable[[SessionState, Reference], tuple[SessionState, Reference]] = lambda *held: held,
) -> tuple[list[np.ndarray], list[SessionState]]:
    """Frames of every chunk and the state after each; ``between`` sees state and reference before each."""
    held = engine.open(spec)
    frames, states = [], []
    for call in calls:
        state, reference = between(*held)
        features = features_of(state, call, engine.geometry)
        [(made, following)] = engine.step([state], [reference], [features], [call])
        frames.append(made)
        if following is not None:
            held = following, reference
            states.append(following)
    return frames, states


def same_state(one: SessionState, other: SessionState) -> bool:
    return one.to_bytes() == other.to_bytes()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until ``condition`` holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (what is waited for happens on another thread)
            await asyncio.sleep(0.001)


NULL_GEOMETRY = Geometry(height=2, width=2, frames=33, motion_frames=9)


@dataclass
class NullRow:
    state: SessionState
    call: ChunkCall
    steps_left: int


@dataclass
class NullEngine:
    """An engine without networks: its frames tell session, chunk and steps; ``log`` says what was done."""

    steps: int = 4
    operation_s: float = 0.0
    log: list[tuple[str, list[str]]] = field(default_factory=list)
    fails: Callable[[str, list[str]], Exception | None] = lambda operation, sessions: None
    device_error: Exception | None = None
    memory: dict[str, int] = field(default_factory=dict)
    geometry: Geometry = NULL_GEOMETRY

    @property
    def card(self) -> ModelCard:
        return ModelCard("null", self.geometry, self.steps, (self.steps,), True, "no networks")

    def _do(self, operation: str, sessions: list[str]) -> None:
        self.log.append((operation, sessions))
        time.sleep(self.operation_s)
        error = self.fails(operation, sessions)
        if error is not None:
            raise error

    def open(self, spec: SessionSpec, epoch: int = 0) -> tuple[SessionState, Reference]:
        self._do("open", [spec.session_id])
        nothing = torch.zeros(0, dtype=torch.uint8)
        state = SessionState(
            model="null",
            spec_digest=spec_digest(spec),
            index=0,
            epoch=epoch,
            steps=self.steps,
            device="cpu",
            motion=torch.zeros(1, 1, 1, 1),
            audio_cache=audio_cache.empty_cache(spec.audio_encode),
            noise=nothing,
            posterior=nothing,
        )
        return state, Reference(torch.zeros(1), ColourStatistics(torch.zeros(1), torch.ones(1)))

    def restore(
        self, spec: SessionSpec, snapshot: bytes, epoch: int | None = None
    ) -> tuple[SessionState, Reference]:
        _, reference = self.open(spec)
        state = SessionState.from_bytes(snapshot)
        return replace(state, epoch=state.epoch if epoch is None else epoch), reference

    def begin(
        self, state: SessionState, reference: Reference, features: np.ndarray, call: ChunkCall
    ) -> NullRow:
        self._do("begin", [call.session_id])
        return NullRow(state, call, state.steps)

    def denoise(self, rows: Sequence[NullRow]) -> None:
        self._do("denoise", [row.call.session_id for row in rows])
        for row in rows:
            row.steps_left -= 1

    def decode(self, row: NullRow) -> np.ndarray:
        self._do("decode", [row.call.session_id])
        return np.full((row.call.frame_count, 3, 2), row.call.index, np.uint8)

    def advance(self, row: NullRow) -> SessionState:
        self._do("advance", [row.call.session_id])
        _, heard = audio_cache.window(row.state.audio_cache, row.call.audio, self.geometry)
        return replace(row.state, index=row.state.index + 1, audio_cache=heard)

    def warm_up(self) -> float:
        return (self.steps + 3) * self.operation_s

    def synchronise(self) -> None:
        if self.device_error is not None:
            raise self.device_error

    def memory_bytes(self) -> dict[str, int]:
        return self.memory


class RecordedNoise:
    """Plays recorded draws in order; a stream's state is how many were made."""

    def __init__(self, latent: Sequence[Tensor], posterior: Sequence[Tensor]) -> None:
        self._tapes = (latent, posterior)

    def seeded(self, seed: int) -> RecordedStreams:
        return RecordedStreams(self._tapes, [0, 0])

    def resumed(self, latent: Tensor, posterior: Tensor) -> RecordedStreams:
        return RecordedStreams(self._tapes, [int(latent), int(posterior)])


class RecordedStreams:
    def __init__(self, tapes: tuple[Sequence[Tensor], Sequence[Tensor]], played: list[int]) -> None:
        self._tapes = tapes
        self._played = played

    def _next(self, tape: int, shape: Sequence[int]) -> Tensor:
        draw = self._tapes[tape][self._played[tape]]
        self._played[tape] += 1
        assert tuple(draw.shape) == tuple(shape), "drawn in another order than recorded"
        return draw.clone()

    def latent(self, shape: Sequence[int]) -> Tensor:
        return self._next(0, shape)

    def posterior(self, shape: Sequence[int]) -> Tensor:
        return self._next(1, shape)

    def states(self) -> tuple[Tensor, Tensor]:
        latent, posterior = (torch.tensor([count], dtype=torch.uint8) for count in self._played)
        return latent, posterior
