"""Serve handles as the conductor's protocols, and what Ray's failures mean to it.

Every call made here is awaited by its caller and cancelled with it; ``aclose`` of a chunk's answers
cancels the call. Calls are made outside any Serve request context (see ``Ingress``), so that each has
an id of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import numpy as np
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayError, RayTaskError
from ray.experimental.locations import get_local_object_locations
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.deployments.router import any_but, pinned
from serve_app.errors import AtCapacity, FlashHeadError, FramesLost, ReplicaLost
from serve_app.session.protocols import Frames
from serve_app.types import ChunkCall, EncodeJob, Geometry, SessionSpec

T = TypeVar("T")
CLOSE_TIMEOUT_S = 5.0
RETRY_PAUSE_S = 0.05
INLINE_BYTES = 100 * 1024
"""Ray's ``max_direct_call_object_size``: smaller objects never reach the object store."""


@contextmanager
def ray_errors() -> Iterator[None]:
    """Turn Ray's failures into the error tree: the error the replica raised, or ``ReplicaLost``."""
    try:
        yield
    except RayTaskError as error:
        cause = _root_cause(error)
        if isinstance(cause, FlashHeadError):
            raise cause from None
        if isinstance(cause, ActorDiedError | ActorUnavailableError):
            raise ReplicaLost(str(cause)) from error
        raise
    except (ActorDiedError, ActorUnavailableError) as error:
        raise ReplicaLost(str(error)) from error


def _root_cause(error: BaseException) -> BaseException:
    """What a chain of task errors began with."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


async def call_again_while_lost(call: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """The answer of a stateless call, made again while its replica is lost, for at most ``patience_s``.

    Raises:
        ReplicaLost: still lost after that time.
    """
    deadline = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            with ray_errors():
                return await call()
        except ReplicaLost:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(RETRY_PAUSE_S)


class ServeGenerator:
    """``Generator`` over a FlashHeadGenerator handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> ServeGeneratorSession:
        """Ask replicas, the least loaded first, until one has a place.

        Raises:
            AtCapacity: none has.
            ReplicaLost: the one asked went away.
        """
        full: set[str] = set()
        while True:
            handle = self._handle.options(session_id=any_but(full))
            try:
                with ray_errors():
                    uid = await handle.open.remote(spec, epoch, snapshot)
            except AtCapacity as error:
                if not error.value or error.value in full:
                    raise
                full.add(error.value)
            else:
                return ServeGeneratorSession(self._handle.options(session_id=pinned(uid)), spec.session_id)


class ServeGeneratorSession:
    """``GeneratorSession`` over a handle pinned to the replica that holds the session."""

    def __init__(self, handle: DeploymentHandle, session_id: str) -> None:
        self._handle = handle
        self._session_id = session_id

    async def chunk(self, call: ChunkCall) -> AsyncGenerator[Frames | bytes, None]:
        """The frames' object reference, then the snapshot itself."""
        response = cast(DeploymentResponseGenerator, self._handle.options(stream=True).chunk.remote(call))
        try:
            with ray_errors():
                answers = await response._to_object_ref_gen()
                yield await _produced(answers)
                yield await (await anext(answers))
        finally:
            response.cancel()

    async def close(self) -> None:
        """Forget the session on its replica; one that cannot be told forgets it when it has been idle."""
        try:
            with ray_errors():
                await asyncio.wait_for(self._handle.close.remote(self._session_id), CLOSE_TIMEOUT_S)
        except (ReplicaLost, TimeoutError):
            return


async def _produced(answers: ray.ObjectRefGenerator) -> ray.ObjectRef:
    """The next answer's reference; raises where the answer is an error.

    An error comes as a reference like any other. Ray keeps what is smaller than ``INLINE_BYTES`` in the
    memory of the caller, so reading a small answer to see whether it is one costs nothing; larger ones
    are frames and stay where they are.
    """
    reference = await anext(answers)
    size = get_local_object_locations([reference])[reference]["object_size"]
    if size is None or size < INLINE_BYTES:
        await reference
    return reference


class ServeEncoder:
    """``Encoder`` over an Encoder handle, for one model's frame size."""

    def __init__(self, handle: DeploymentHandle, geometry: Geometry, patience_s: float) -> None:
        self._handle = handle
        self._size = (geometry.height, geometry.width)
        self._patience_s = patience_s

    async def encode(self, frames: Frames | None, job: EncodeJob) -> bytes:
        """See ``Encoder``."""
        with _frame_errors(), ray_errors():
            return await self._handle.encode.remote(frames, job, *self._size)

    async def finalise_mp4(self, chunks: Sequence[bytes], pcm48: np.ndarray) -> bytes:
        """See ``Encoder``."""

        async def call() -> bytes:
            return await self._handle.finalise_mp4.remote(chunks, pcm48, *self._size)

        return await call_again_while_lost(call, self._patience_s)


@contextmanager
def _frame_errors() -> Iterator[None]:
    """Failures of the frames an encode call was given, as opposed to failures of the encoder."""
    try:
        yield
    except (ObjectLostError, RayServeException) as error:
        raise FramesLost(f"the chunk's frames cannot be read: {error}") from error
    except RayTaskError as error:
        if isinstance(_root_cause(error), RayError):
            raise FramesLost(f"the chunk's frames cannot be read: {error}") from error
        raise
