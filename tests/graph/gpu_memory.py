"""The null graph with an engine that says what a GPU's allocator would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve import Application

from serve_app.app import bind_graph
from serve_app.config import AppSettings, ModelSettings
from serve_app.engine.startup import StartPhases

from benchmarks.null_graph import NullAudioEncoder, NullEncoder, NullEngine, NullGenerator

MEMORY = {"allocated": 7_000_000_000, "reserved": 8_000_000_000, "peak": 9_000_000_000}


class EngineOnGpu(NullEngine):
    """It holds ``MEMORY``."""

    def memory_bytes(self) -> Mapping[str, int]:
        """See ``ChunkEngine``."""
        return MEMORY


class GeneratorOnGpu(NullGenerator):
    """FlashHeadGenerator around it."""

    @staticmethod
    def load_engine(model: ModelSettings, phases: StartPhases) -> EngineOnGpu:
        """It takes ``model.name`` milliseconds a chunk."""
        return EngineOnGpu(int(model.name) / 1000)


def build(args: dict[str, Any]) -> Application:
    """The graph for a Serve config."""
    return bind_graph(AppSettings.model_validate(args), NullAudioEncoder, GeneratorOnGpu, NullEncoder)
