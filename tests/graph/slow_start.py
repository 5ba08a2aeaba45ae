"""The null graph with an AudioEncoder that takes its time to start."""

from __future__ import annotations

import time
from typing import Any

from ray.serve import Application

from serve_app.app import bind_graph
from serve_app.config import AppSettings, ModelSettings

from benchmarks.null_graph import NullAudioEncoder, NullEncoder, NullGenerator

START_S = 4.0


class SlowAudioEncoder(NullAudioEncoder):
    """There after ``START_S``."""

    def __init__(self, models: tuple[ModelSettings, ...]) -> None:
        time.sleep(START_S)
        super().__init__(models)


def build(args: dict[str, Any]) -> Application:
    """The graph for a Serve config."""
    return bind_graph(AppSettings.model_validate(args), SlowAudioEncoder, NullGenerator, NullEncoder)
