"""Serve handles as the conductor's protocols, and what Ray's failures mean to it.

Every call made here is awaited by its caller and cancelled with it; an opening whose caller is cancelled
is closed again once it is answered. Calls are made outside any Serve request context (see ``Attendance``),
so that each has an id of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    ObjectRefStreamEndOfStreamError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)
from ray.experimental.locations import get_local_object_locations
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.deployments.router import any_but, pinned
from serve_app.errors import AtCapacity, FlashHeadError, ReplicaLost, Unavailable
from serve_app.session.cancellation import cancelled_call_is_lost
from serve_app.session.protocols import Frames
from serve_app.types import ChunkCall, EncodeJob, Geometry, SessionSpec

logger = logging.getLogger(__name__)
CLOSE_TIMEOUT_S = 5.0
ABANDONED_OPENING_S = 60.0
RETRY_PAUSE_S = 0.05
AUDIO_ATTEMPT_S = 1.0
"""How long AudioEncoder may take for a window before another replica is asked; tens of milliseconds are
usual. Well below the seconds in which Ray notices that a node is silent."""
MP4_ATTEMPT_S = 30.0
"""How long Encoder may take to write an MP4 file before it is asked again. Nobody watches one grow."""
MAX_ASKED = 16
"""Replicas that are asked for a place before all count as full: those that had the most room a second ago."""
INLINE_BYTES = 100 * 1024
"""Ray's ``max_direct_call_object_size``: smaller objects never reach the object store."""
MADE = b""
"""What a generator replica answers before a chunk's frames: that the next answer is them."""
ARRIVAL_PAUSE_S = 0.002
"""Between two looks for frames that are announced; putting them into the object store takes a few ms."""


UNREACHABLE = (DeploymentUnavailableError, ReplicaUnavailableError)
"""Serve's own words for nobody being there to take a call at present; they are no ``RayError``."""


@contextmanager
def ray_errors(*lost: type[RayError]) -> Iterator[None]:
    """Turn Ray's failures into the error tree: the error the replica raised, or ``ReplicaLost`` for a
    replica that died or cannot be reached, for a deployment that has none or failed to deploy, for a call
    that was cancelled though its caller was not, and for the ``lost`` kinds. Serve's refusal of a call for
    its queue's length passes. Ray's own words go to the log; they name processes and addresses.

    A cancelled call has many faces (Ray 2.60): ``asyncio.CancelledError`` out of a response,
    ``TaskCancelledError`` out of a reference, and, where it was cancelled by its replica, the end of a
    stream that still owes an answer.
    """
    gone = (
        ActorDiedError,
        ActorUnavailableError,
        TaskCancelledError,
        ObjectRefStreamEndOfStreamError,
        *UNREACHABLE,
        *lost,
    )
    try:
        with cancelled_call_is_lost():
            yield
    except (RayError, *UNREACHABLE) as error:
        cause = _root_cause(error)
        if isinstance(cause, FlashHeadError):
            raise cause from None
        if isinstance(cause, gone):
            logger.warning("a call was lost: %s", cause)
            raise ReplicaLost(f"what served the call is gone ({type(cause).__name__})") from error
        raise


def _root_cause(error: BaseException) -> BaseException:
    """What a chain of task errors began with."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


async def answered(response: Any) -> Any:
    """The answer of a call; the call is cancelled with its caller."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


async def call_until_answered(call: Callable[[], Any], attempt_s: float, patience_s: float, who: str) -> Any:
    """The answer of a stateless call, made again while what serves it is lost or silent, for ``patience_s``
    in all.

    The first attempt may take ``attempt_s``, each after it twice as long as the one before, so that what is
    slow gets its time. There is one at a time: what took too long is cancelled before it is tried again.

    Raises:
        Unavailable: no answer in that time.
    """
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    async with asyncio.timeout(attempt_s):
                        with ray_errors(ObjectLostError):
                            return await answered(call())
                except ReplicaLost:
                    await asyncio.sleep(RETRY_PAUSE_S)
                except TimeoutError:
                    logger.warning("%s gave no answer within %g s and is asked again", who, attempt_s)
                    attempt_s *= 2
    except TimeoutError:
        raise Unavailable(f"{who} gave no answer within {patience_s:g} s", value=patience_s) from None


class ServeGenerator:
    """``Generator`` over a FlashHeadGenerator handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._abandoned: set[asyncio.Task[None]] = set()

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> ServeGeneratorSession:
        """Ask replicas, the one with the most room first, until one has a place.

        Raises:
            AtCapacity: none has, or none of ``MAX_ASKED``.
            ReplicaLost: the one asked went away.
        """
        opening = asyncio.create_task(self._open(spec, epoch, snapshot))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Cancelling a call does not undo what its replica has done or is about to do.
            task = asyncio.create_task(_close_once_open(opening))
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            raise

    async def _open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> ServeGeneratorSession:
        full: set[str] = set()
        while True:
            handle = self._handle.options(session_id=any_but(full))
            try:
                with ray_errors():
                    uid = await handle.open.remote(spec, epoch, snapshot)
            except AtCapacity as error:
                if not error.value or error.value in full or len(full) + 1 == MAX_ASKED:
                    raise AtCapacity("every place for a stream is taken") from error
                full.add(error.value)
            else:
                holder = self._handle.options(session_id=pinned(uid))
                return ServeGeneratorSession(holder, spec.session_id, epoch)


async def _close_once_open(opening: asyncio.Task[ServeGeneratorSession]) -> None:
    try:
        session = await asyncio.wait_for(opening, ABANDONED_OPENING_S)
    except (FlashHeadError, TimeoutError):
        return
    await session.close()


class ServeGeneratorSession:
    """``GeneratorSession`` over a handle pinned to the replica that holds the session."""

    def __init__(self, handle: DeploymentHandle, session_id: str, epoch: int) -> None:
        self._handle = handle
        self._session_id = session_id
        self._epoch = epoch

    async def chunk(self, call: ChunkCall) -> AsyncGenerator[Frames | bytes, None]:
        """The frames' object reference, then the snapshot itself."""
        response = cast(DeploymentResponseGenerator, self._handle.options(stream=True).chunk.remote(call))
        whole = False
        try:
            with ray_errors(ObjectLostError):
                answers = await response._to_object_ref_gen()
                yield await _produced(answers)
                snapshot: bytes = await (await anext(answers))
            whole = True
            yield snapshot
        finally:
            # Cancelling a call that has answered would take its answers back: frames not yet encoded too.
            if not whole:
                response.cancel()

    async def close(self) -> None:
        """Forget the session on its replica, within ``CLOSE_TIMEOUT_S``; one that cannot be told forgets it
        when it has been idle."""
        try:
            with ray_errors():
                closing = self._handle.close.remote(self._session_id, self._epoch)
                await asyncio.wait_for(closing, CLOSE_TIMEOUT_S)
        except (ReplicaLost, TimeoutError, RayError, RayServeException) as error:
            logger.info("session %s could not be closed: %s", self._session_id, error)


async def _produced(answers: ray.ObjectRefGenerator) -> ray.ObjectRef:
    """The reference of a chunk's frames, which stay on the node they were made on; raises where the answer
    is an error.

    A generator of references that is awaited brings an answer that is not ready yet to this node (Ray
    2.60). So what is awaited is ``MADE``, an answer of no size, and the frames behind it are looked for.
    An error comes as a reference like any other. Ray keeps what is smaller than ``INLINE_BYTES`` in the
    memory of the caller, so reading a small answer to see whether it is one costs nothing.
    """
    await (await anext(answers))
    while not answers.next_ready() and not answers.is_finished():  # noqa: ASYNC110
        await asyncio.sleep(ARRIVAL_PAUSE_S)
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
        references = [] if frames is None else [frames]
        with ray_errors(ObjectLostError):
            cluster: bytes = await answered(self._handle.encode.remote(references, job, *self._size))
            return cluster

    async def finalise_mp4(self, chunks: Sequence[bytes], pcm48: np.ndarray) -> bytes:
        """See ``Encoder``."""
        return await call_until_answered(
            lambda: self._handle.finalise_mp4.remote(chunks, pcm48, *self._size),
            MP4_ATTEMPT_S,
            self._patience_s,
            "Encoder",
        )
