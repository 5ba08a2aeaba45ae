"""The application over fakes of the graph: no codecs, no networks, no Ray."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import uvicorn

from serve_app.api.app import create_app
from serve_app.config import CorsSettings, KeySettings, Limits
from serve_app.errors import Unavailable
from serve_app.media.uploads import Upload
from serve_app.session.animation import Stage
from serve_app.session.clock import MonotonicClock
from serve_app.types import ModelCard

from session.fakes import GEOMETRY, ChainGenerator, ListRecorder, TextEncoder, speech

NO_KEYS, NO_CORS = KeySettings(), CorsSettings()
CARD = ModelCard("null", GEOMETRY, 4, (2, 4), True, "no networks")


class FakeDecoder:
    """The audio's bytes say how many seconds it is long."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.pause_s = 0.0

    async def decode(self, image: bytes, audio: bytes, *, height: int, width: int, face_crop: bool) -> Upload:
        await asyncio.sleep(self.pause_s)
        if self.error is not None:
            raise self.error
        portrait = np.zeros((height, width, 3), np.uint8)
        warnings = ("no face found; the portrait is not cropped",) if face_crop else ()
        return Upload(portrait, *speech(float(audio)), warnings)


@dataclass
class FakeBackend:
    """Two models configured, the first of them loaded."""

    limits: Limits = field(default_factory=Limits)
    generator: ChainGenerator = field(default_factory=ChainGenerator)
    encoder: TextEncoder = field(default_factory=TextEncoder)
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    recorder: ListRecorder = field(default_factory=ListRecorder)
    served: tuple[str, ...] = ("null", "late")
    loaded: tuple[str, ...] = ("null",)
    wake_s: float = 0.0

    def cards(self) -> Mapping[str, ModelCard]:
        return {name: replace(CARD, name=name) for name in self.loaded}

    def ready(self, model: str) -> bool:
        return model in self.loaded

    async def stage(self, model: str) -> Stage:
        if model not in self.loaded:
            raise Unavailable(f"model {model} is still loading", code="not_ready", value=model)
        await asyncio.sleep(self.wake_s)
        card = self.cards()[model]
        return Stage(
            card, self.generator, self.encoder, self.decoder, MonotonicClock(), self.limits, self.recorder
        )  # type: ignore[arg-type]

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


@contextmanager
def serving(backend: FakeBackend, keys: KeySettings = NO_KEYS, cors: CorsSettings = NO_CORS) -> Iterator[str]:
    """The URL of a real server over the application."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        app = create_app(backend, keys, cors)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()
