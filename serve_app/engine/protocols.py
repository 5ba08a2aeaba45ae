"""What the step loop and the session table need of an engine and of a clock.

``Engine`` is the one that computes; a null engine for measuring the graph and the tests' engines are
ordinary implementations too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from serve_app.engine.reference import Reference
from serve_app.engine.state import SessionState
from serve_app.types import ChunkCall, ModelCard, SessionSpec


class Row(Protocol):
    """A chunk in the making."""

    step: int
    """Denoising steps done."""

    @property
    def steps_left(self) -> int: ...


class ChunkEngine(Protocol):
    """Makes chunks in four operations; see ``Engine`` for what each returns and raises."""

    @property
    def card(self) -> ModelCard: ...

    def open(self, spec: SessionSpec, epoch: int = 0) -> tuple[SessionState, Reference]: ...

    def restore(
        self, spec: SessionSpec, snapshot: bytes, epoch: int | None = None
    ) -> tuple[SessionState, Reference]: ...

    def begin(
        self, state: SessionState, reference: Reference, features: np.ndarray, call: ChunkCall
    ) -> Any: ...

    def denoise(self, rows: Sequence[Any]) -> None: ...

    def decode(self, row: Any) -> np.ndarray: ...

    def advance(self, row: Any) -> SessionState: ...

    def synchronise(self) -> None: ...

    def memory_bytes(self) -> Mapping[str, int]:
        """Memory on its GPU: ``allocated``, ``reserved``, and the ``peak`` of allocated; nothing on a CPU."""
        ...

    def warm_up(self) -> float: ...


class Clock(Protocol):
    """Monotonic seconds."""

    def now(self) -> float: ...
