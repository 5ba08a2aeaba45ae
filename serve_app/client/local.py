"""The graph in one process, without Ray: the same engine, encoder and conductor behind direct calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np

from serve_app.config import Limits, ModelSettings, VideoSettings
from serve_app.engine.admission import Admission
from serve_app.engine.engine import Engine
from serve_app.engine.generator import GeneratorService
from serve_app.engine.loop import EngineLoop
from serve_app.engine.precision import choose_device
from serve_app.media.chunk_encoder import ChunkEncoder, finalise_mp4
from serve_app.media.uploads import UploadDecoder
from serve_app.model.audio_features import AudioFeatures
from serve_app.model.checkpoint import load_audio_features
from serve_app.model.presets import checkpoint_root, preset
from serve_app.session.animation import Stage
from serve_app.session.clock import MonotonicClock
from serve_app.session.protocols import Frames
from serve_app.types import AudioWindow, ChunkCall, EncodeJob, Geometry, SessionSpec

T = TypeVar("T")


class LocalGenerator:
    """``Generator`` over a session table in this process."""

    def __init__(self, service: GeneratorService) -> None:
        self._service = service

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> LocalGeneratorSession:
        """See ``Generator``."""
        await self._service.open(spec, epoch, snapshot)
        return LocalGeneratorSession(self._service, spec.session_id, epoch)


class LocalGeneratorSession:
    """``GeneratorSession`` over the same table."""

    def __init__(self, service: GeneratorService, session_id: str, epoch: int) -> None:
        self._service = service
        self._session_id = session_id
        self._epoch = epoch

    def chunk(self, call: ChunkCall) -> AsyncGenerator[Frames | bytes, None]:
        """See ``GeneratorSession``."""
        return self._service.chunk(call)

    async def close(self) -> None:
        """See ``GeneratorSession``."""
        await self._service.close(self._session_id, self._epoch)


class LocalEncoder:
    """``Encoder`` in a thread of this process."""

    def __init__(self, video: VideoSettings, geometry: Geometry) -> None:
        self._size = (geometry.height, geometry.width)
        self._chunks = ChunkEncoder(video, *self._size)

    async def encode(self, frames: Frames | None, job: EncodeJob) -> bytes:
        """See ``Encoder``."""
        return await asyncio.to_thread(self._chunks.encode, frames, job)

    async def finalise_mp4(self, chunks: Sequence[bytes], pcm48: np.ndarray) -> bytes:
        """See ``Encoder``."""
        return await asyncio.to_thread(finalise_mp4, *self._size, chunks, pcm48)


@asynccontextmanager
async def local_stage(model: ModelSettings, limits: Limits, video: VideoSettings) -> AsyncIterator[Stage]:
    """A stage whose every part runs in this process; closed on leaving.

    Raises:
        CheckpointError: weights missing or damaged.
    """
    engine, features = await asyncio.to_thread(_load, model)
    clock = MonotonicClock()

    async def encode_audio(window: AudioWindow) -> np.ndarray:
        return await asyncio.to_thread(features.rows, window)

    loop = EngineLoop(engine, max_rows=model.max_rows, clock=clock)
    service = GeneratorService(
        loop,
        encode_audio,
        Admission(model, engine.card, loop.costs, clock),
        idle_s=model.idle_session_s,
        clock=clock,
    )
    decoder = UploadDecoder(limits)
    await decoder.start()
    try:
        geometry = engine.card.geometry
        yield Stage(
            engine.card, LocalGenerator(service), LocalEncoder(video, geometry), decoder, clock, limits
        )
    finally:
        await decoder.aclose()
        await service.aclose()


def _load(model: ModelSettings) -> tuple[Engine, AudioFeatures]:
    engine = Engine.load(model)
    device = choose_device(model.device)
    return engine, load_audio_features(checkpoint_root(model.checkpoint), preset(model.name), device)
