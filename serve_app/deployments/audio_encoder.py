"""The AudioEncoder deployment: wav2vec2 features of an audio window. Stateless."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from serve_app import IMPORTED_S
from serve_app.config import ModelSettings
from serve_app.deployments.logs import join_serve_logging
from serve_app.deployments.metrics import ServeRecorder
from serve_app.engine.precision import choose_device
from serve_app.engine.startup import StartPhases
from serve_app.engine.warm_up import until_steady
from serve_app.model.audio_features import AudioFeatures
from serve_app.model.checkpoint import load_audio_features
from serve_app.model.presets import checkpoint_root, preset
from serve_app.tracing import observed
from serve_app.types import MODEL_RATE_HZ, AudioWindow

WARM_UP_WINDOW = AudioWindow(np.zeros(8 * MODEL_RATE_HZ, np.float32), first_row=165, end_row=200)


class AudioEncoder:
    """Encodes windows for every served model; models that share a wav2vec2 checkpoint share one copy.

    Args:
        models: the served models.

    Raises:
        CheckpointError: wav2vec2 files missing or damaged.
    """

    def __init__(self, models: tuple[ModelSettings, ...]) -> None:
        join_serve_logging()
        self._recorder = ServeRecorder()
        phases = StartPhases("wav2vec2", IMPORTED_S, self._recorder)
        phases.since_began("imports")
        loaded: dict[tuple[str, str, str], AudioFeatures] = {}
        self._features: dict[str, AudioFeatures] = {}
        for model in models:
            row = preset(model.name)
            key = (str(checkpoint_root(model.checkpoint)), row.wav2vec2_dir, model.device)
            if key not in loaded:
                with phases.measure("weights"):
                    device = choose_device(model.device)
                    loaded[key] = load_audio_features(checkpoint_root(model.checkpoint), row, device)
                with phases.measure("warm_up"):
                    until_steady(partial(loaded[key].rows, WARM_UP_WINDOW))
            self._features[model.name] = loaded[key]
        phases.ready()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wav2vec2")

    async def ready(self) -> None:
        """Answered by a replica that is loaded and warm."""

    async def rows(self, model: str, window: AudioWindow) -> np.ndarray:
        """The feature rows a window asks for: ``[end_row - first_row, blocks, channels]`` float32."""
        in_trace = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, in_trace, self._rows, model, window
        )

    def _rows(self, model: str, window: AudioWindow) -> np.ndarray:
        with observed(self._recorder, "audio_encode"):
            return self._features[model].rows(window)
