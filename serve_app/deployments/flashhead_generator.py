"""The FlashHeadGenerator deployment: DiT and VAE of one model, and the sessions open on this replica."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app import IMPORTED_S
from serve_app.config import Limits, ModelSettings
from serve_app.deployments.handles import AUDIO_ATTEMPT_S, MADE, call_until_answered
from serve_app.deployments.logs import join_serve_logging
from serve_app.deployments.metrics import ServeRecorder
from serve_app.engine.admission import Admission
from serve_app.engine.engine import Engine
from serve_app.engine.generator import GeneratorService
from serve_app.engine.loop import EngineLoop
from serve_app.engine.protocols import ChunkEngine
from serve_app.engine.startup import StartPhases, report_real_time
from serve_app.errors import AtCapacity
from serve_app.metrics import BUSY, OCCUPANCY, PLACES, SESSIONS
from serve_app.session.clock import MonotonicClock
from serve_app.types import AudioWindow, ChunkCall, ModelCard, SessionSpec


class FlashHeadGenerator:
    """A replica of one model.

    Args:
        model: which model, where its weights are, how it runs.
        limits: how long an AudioEncoder that answers is looked for, and what a refused client is told.
        audio_encoder: handle of the AudioEncoder deployment.

    Raises:
        CheckpointError: weights missing or damaged.
    """

    def __init__(self, model: ModelSettings, limits: Limits, audio_encoder: DeploymentHandle) -> None:
        join_serve_logging()
        self._recorder = ServeRecorder()
        self._model = model
        self._limits = limits
        self._audio_encoder = audio_encoder
        phases = StartPhases(model.name, IMPORTED_S, self._recorder)
        phases.since_began("imports")
        self._engine = self.load_engine(model, phases)
        self._chunk_s = self._engine.warm_up()
        report_real_time(model.name, self._engine.card.geometry, self._chunk_s)
        phases.ready()
        self._running: GeneratorService | None = None
        self._chunks = 0

    @staticmethod
    def load_engine(model: ModelSettings, phases: StartPhases) -> ChunkEngine:
        """A loaded engine; another kind of engine is served by overriding this."""
        return Engine.load(model, phases)

    @property
    def _service(self) -> GeneratorService:
        """The session table; made on first use, because its tasks belong to the replica's event loop."""
        if self._running is None:
            clock = MonotonicClock()
            loop = EngineLoop(self._engine, self._model.max_rows, clock, self._recorder)
            admission = Admission(
                self._model,
                self._engine.card,
                loop.costs,
                clock,
                chunk_s=self._chunk_s,
                retry_after_s=self._limits.retry_after_s,
            )
            self._running = GeneratorService(
                loop,
                self._encode_audio,
                admission,
                idle_s=self._model.idle_session_s,
                clock=clock,
            )
        return self._running

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> str:
        """Open a session here, new or from a snapshot; the replica's id, for pinning.

        Raises:
            AtCapacity: every place of this replica is taken; ``value`` is the replica's id.
            StaleCall: a later opening of the session is known.
            SnapshotError: the snapshot does not fit the session.
        """
        uid = str(serve.get_replica_context().replica_id.unique_id)
        try:
            await self._service.open(spec, epoch, snapshot)
        except AtCapacity as error:
            raise AtCapacity(error.message, value=uid) from error
        return uid

    async def chunk(self, call: ChunkCall) -> AsyncGenerator[np.ndarray | bytes, None]:
        """``MADE``, frames ``[frame_count, height * 3 // 2, width]`` uint8 yuv420p, then the snapshot."""
        async with aclosing(self._service.chunk(call)) as answers:
            frames = await anext(answers)
            self._chunks += 1
            yield MADE
            yield frames
            yield await anext(answers)

    async def close(self, session_id: str, epoch: int) -> None:
        """Forget a session, unless it was opened again after ``epoch``."""
        await self._service.close(session_id, epoch)

    def describe(self) -> ModelCard:
        """What this replica serves; an answer means it is loaded and warm."""
        return self._engine.card

    async def record_routing_stats(self) -> dict[str, float]:
        """What ``PinnedRouter`` places sessions by, and chunks whose frames were made."""
        report = self._service.report()
        self._tell(report)
        return report | {"chunks": self._chunks}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What ``StreamScaling`` decides by."""
        return self._service.report()

    def _tell(self, report: dict[str, float]) -> None:
        """Show operators what the router sees, as often as it does."""
        model = self._model.name
        self._recorder.record(SESSIONS, report["streams"], model=model, kind="live")
        self._recorder.record(SESSIONS, report["batch"], model=model, kind="batch")
        self._recorder.record(PLACES, report["places"], model=model)
        self._recorder.record(OCCUPANCY, report["occupancy"], model=model)
        self._recorder.record(BUSY, report["busy"], model=model)

    def check_health(self) -> None:
        """Raise when the engine's thread is dead, so that Serve replaces the replica."""
        if self._running is not None:
            self._running.check_health()

    async def _encode_audio(self, window: AudioWindow) -> np.ndarray:
        rows: np.ndarray = await call_until_answered(
            lambda: self._audio_encoder.rows.remote(self._model.name, window),
            AUDIO_ATTEMPT_S,
            self._limits.resume_timeout_s,
            "AudioEncoder",
        )
        return rows
