"""A graph around an engine that computes nothing: it takes its time, has payloads of real size, and leaves
the cores to what is measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray.serve import Application

from serve_app.app import bind_graph, generator_name
from serve_app.config import AppSettings, ModelSettings
from serve_app.deployments.encoder import Encoder, fetched
from serve_app.deployments.flashhead_generator import FlashHeadGenerator
from serve_app.engine import audio_cache
from serve_app.engine.colour import ColourStatistics
from serve_app.engine.reference import Reference
from serve_app.engine.startup import StartPhases
from serve_app.engine.state import SessionState, spec_digest
from serve_app.engine.yuv import yuv420p
from serve_app.types import AudioWindow, ChunkCall, Geometry, ModelCard, SessionSpec

PORTRAIT = Path(__file__).parents[1] / "examples" / "portrait.png"
GEOMETRY = Geometry(height=512, width=512, frames=33, motion_frames=9)
MOTION_SHAPE = (128, 2, 16, 16)
FEATURE_SHAPE = (12, 768)
STEPS = 4
SHARES = {"begin": 0.01, "denoise": 0.59 / STEPS, "decode": 0.31, "advance": 0.09}
"""How a Lite chunk's time divides over the operations (FLOP counts: DiT 59 %, decode 32 %, encode 9 %)."""


@dataclass
class NullRow:
    """A chunk in the making."""

    state: SessionState
    call: ChunkCall
    steps_left: int


class NullEngine:
    """``ChunkEngine`` that sleeps for ``chunk_s`` a chunk, with Lite's frames, snapshots and features."""

    def __init__(self, chunk_s: float) -> None:
        self.chunk_s = chunk_s
        self._footage = _swaying_portrait(48)

    @property
    def card(self) -> ModelCard:
        """A stand-in for Lite."""
        return ModelCard("null", GEOMETRY, STEPS, (STEPS,), True, f"sleeps {self.chunk_s:g} s a chunk")

    def open(self, spec: SessionSpec, epoch: int = 0) -> tuple[SessionState, Reference]:
        """A state of Lite's size."""
        state = SessionState(
            model=spec.model,
            spec_digest=spec_digest(spec),
            index=0,
            epoch=epoch,
            steps=STEPS,
            device="cpu",
            motion=torch.zeros(MOTION_SHAPE),
            audio_cache=audio_cache.empty_cache(spec.audio_encode),
            noise=torch.zeros(16, dtype=torch.uint8),
            posterior=torch.zeros(16, dtype=torch.uint8),
        )
        return state, Reference(torch.zeros(1), ColourStatistics(torch.zeros(1), torch.ones(1)))

    def restore(
        self, spec: SessionSpec, snapshot: bytes, epoch: int | None = None
    ) -> tuple[SessionState, Reference]:
        """The state a snapshot holds."""
        state = SessionState.from_bytes(snapshot)
        _, reference = self.open(spec)
        return replace(state, epoch=state.epoch if epoch is None else epoch), reference

    def begin(
        self, state: SessionState, reference: Reference, features: np.ndarray, call: ChunkCall
    ) -> NullRow:
        """Start a chunk."""
        self._take("begin")
        return NullRow(state, call, STEPS)

    def denoise(self, rows: Sequence[NullRow]) -> None:
        """One step of each row; a batch takes as long as its rows one by one."""
        for row in rows:
            self._take("denoise")
            row.steps_left -= 1

    def decode(self, row: NullRow) -> np.ndarray:
        """``[frame_count, 768, 512]`` uint8: a texture that moves."""
        self._take("decode")
        first = row.call.index % (len(self._footage) - row.call.frame_count)
        return self._footage[first : first + row.call.frame_count].copy()

    def advance(self, row: NullRow) -> SessionState:
        """The state after the chunk."""
        self._take("advance")
        _, heard = audio_cache.window(row.state.audio_cache, row.call.audio, GEOMETRY)
        return replace(row.state, index=row.state.index + 1, audio_cache=heard)

    def synchronise(self) -> None:
        """Nothing runs behind its back."""

    def warm_up(self) -> float:
        """It is as fast at once as ever."""
        return self.chunk_s

    def memory_bytes(self) -> Mapping[str, int]:
        """It has no GPU."""
        return {}

    def _take(self, operation: str) -> None:
        time.sleep(self.chunk_s * SHARES[operation])


def _swaying_portrait(frames: int) -> np.ndarray:
    """``[frames, 768, 512]`` uint8 yuv420p: the example portrait, swaying by a few pixels with some grain."""
    pixels = np.asarray(Image.open(PORTRAIT).convert("RGB").resize((512, 512)))
    grain = np.random.default_rng(0).integers(-1, 2, (frames, 512, 512, 1))
    offsets = np.rint(4 * np.sin(np.arange(frames) / 8)).astype(int)
    moved = np.stack([np.roll(pixels, offset, axis=1) for offset in offsets]) + grain
    return yuv420p(torch.from_numpy(moved.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)).numpy()


CLUSTER_BYTES = 60_000
OTHERS = ("Ingress", "AudioEncoder", "Encoder")


class NullGenerator(FlashHeadGenerator):
    """FlashHeadGenerator around a ``NullEngine``; ``model.name`` is the chunk's milliseconds."""

    @staticmethod
    def load_engine(model: ModelSettings, phases: StartPhases) -> NullEngine:
        """An engine that takes ``model.name`` milliseconds a chunk."""
        return NullEngine(int(model.name) / 1000)


class NullAudioEncoder:
    """Features of real size and no meaning."""

    def __init__(self, models: tuple[ModelSettings, ...]) -> None:
        self._models = models

    async def ready(self) -> None:
        """At once."""

    async def rows(self, model: str, window: AudioWindow) -> np.ndarray:
        """``[rows, 12, 768]`` float32."""
        return np.zeros((window.end_row - window.first_row, *FEATURE_SHAPE), np.float32)


class NullEncoder(Encoder):
    """Reads the frames and answers with a cluster of a usual size, without compressing anything."""

    async def encode(self, frames: Sequence[ray.ObjectRef], job: object, height: int, width: int) -> bytes:
        """60 kB that depend on the frames."""
        pixels = await fetched(frames)
        assert pixels is not None
        return bytes([int(pixels[:, ::64].sum()) % 256]) * CLUSTER_BYTES


def build_null_app(chunk_s: float, real_encoder: bool) -> Application:
    """The graph around a null engine, with the real or the null video encoder."""
    model = ModelSettings(name=str(round(chunk_s * 1000)), max_sessions=16, max_utilisation=1000)
    encoder = Encoder if real_encoder else NullEncoder
    return bind_graph(AppSettings(models=(model,)), NullAudioEncoder, NullGenerator, encoder)


def build(args: dict[str, Any]) -> Application:
    """The graph around a null engine for a Serve config; ``args`` are the application's settings."""
    return bind_graph(AppSettings.model_validate(args), NullAudioEncoder, NullGenerator, NullEncoder)


def null_fleet(
    chunk_ms: int, replicas: tuple[int, int], scaling: dict[str, float], retry_after_s: int = 1
) -> dict[str, Any]:
    """A Serve config of the null graph that scales between the ``replicas``; ``scaling`` are
    ``ScalingSettings``. Everything but the policy's delays is as in the shipped configs."""
    fewest, most = replicas
    policy = {
        "policy_function": "serve_app.deployments.autoscaling:StreamScaling",
        "policy_kwargs": scaling,
    }
    autoscaling = {
        "min_replicas": fewest,
        "max_replicas": most,
        "policy": policy,
        "metrics_interval_s": 1,
        "look_back_period_s": 5,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
    }
    model = {"name": str(chunk_ms), "max_sessions": 16, "may_sleep": fewest == 0}
    light = {"ray_actor_options": {"num_cpus": 0.1}}
    generator = {
        "name": generator_name(model["name"]),
        "autoscaling_config": autoscaling,
        "graceful_shutdown_timeout_s": 30,
    }
    application = {
        "name": "flashhead",
        "route_prefix": "/",
        "import_path": "benchmarks.null_graph:build",
        "args": {"models": [model], "limits": {"max_streams": 256, "retry_after_s": retry_after_s}},
        "deployments": [{**generator, **light}, *({"name": name, **light} for name in OTHERS)],
    }
    return {"applications": [application], "logging_config": {"enable_access_log": False}}
