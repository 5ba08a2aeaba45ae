"""The session table: what a FlashHeadGenerator replica, or the command line, makes chunks with.

One call of a session at a time; a call of an earlier opening, or out of order, is refused. While a chunk
is made, the speech of the next one is encoded, where it came along. A session lives here only for
speed: its caller has its snapshot and can go on anywhere. So whatever is unknown here is answered with
``ReplicaLost``, and a session nobody has called for ``idle_s`` is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np

from serve_app.engine import audio_cache
from serve_app.engine.admission import Admission
from serve_app.engine.busy import BusyShare
from serve_app.engine.loop import ChunkJob, EngineLoop
from serve_app.engine.protocols import Clock
from serve_app.engine.reference import Reference
from serve_app.engine.state import SessionState
from serve_app.errors import ReplicaLost, StaleCall
from serve_app.types import AudioSlice, AudioWindow, ChunkCall, SessionSpec

logger = logging.getLogger(__name__)

EncodeAudio = Callable[[AudioWindow], Awaitable[np.ndarray]]


@dataclass(frozen=True, slots=True)
class _Encoding:
    """A slice of speech on its way to feature rows."""

    audio: AudioSlice
    features: asyncio.Task[np.ndarray]

    def serves(self, audio: AudioSlice) -> bool:
        """Whether these are, or will be, the features of ``audio``."""
        task = self.features
        failed = task.done() and (task.cancelled() or task.exception() is not None)
        return not failed and _same_slice(self.audio, audio)


@dataclass(eq=False, slots=True)
class _Session:
    """An open session.

    Attributes:
        epoch: of its opening.
        live_steps: denoising steps of a live stream's chunks, ``None`` for a session nobody watches.
        last_used_s: when its last call ended.
        held: its state and reference; absent while it is being opened.
        call: what is being answered.
        job: that call's work in the loop.
        encoding: of the call's speech, then of the slice after it.
        ended: closed, replaced or forgotten.
    """

    epoch: int
    live_steps: int | None
    last_used_s: float
    held: tuple[SessionState, Reference] | None = None
    call: ChunkCall | None = None
    job: ChunkJob | None = None
    encoding: _Encoding | None = None
    ended: bool = False


class GeneratorService:
    """Sessions on one engine.

    Args:
        loop: runs their chunks.
        encode_audio: turns a window of speech into feature rows, see ``AudioWindow``.
        admission: who is let in.
        idle_s: after that long without a call a session is forgotten.
        clock: monotonic seconds.
    """

    def __init__(
        self, loop: EngineLoop, encode_audio: EncodeAudio, admission: Admission, idle_s: float, clock: Clock
    ) -> None:
        self._loop = loop
        self._geometry = loop.engine.card.geometry
        self._encode_audio = encode_audio
        self._admission = admission
        self._idle_s = idle_s
        self._clock = clock
        self._table: dict[str, _Session] = {}
        self._busy = BusyShare(lambda: loop.busy_s, clock)

    @property
    def sessions(self) -> int:
        """Sessions open."""
        self._forget_idle()
        return len(self._table)

    def report(self) -> dict[str, float]:
        """What a router and an autoscaling policy decide by.

        ``streams`` live and ``batch`` other sessions open, of ``capacity`` in all; ``places`` for live
        streams in real time; ``occupancy``, the work owed to them as a share of what is promised;
        ``busy``, the share of the last while the engine worked; ``refused`` newcomers a moment ago.
        """
        sessions, streams = self.sessions, self._streams()
        return {
            "streams": len(streams),
            "batch": sessions - len(streams),
            "places": self._admission.places(),
            "capacity": self._admission.capacity,
            "occupancy": self._admission.occupancy(streams),
            "busy": self._busy.now(),
            "refused": self._admission.refused(),
        }

    async def open(self, spec: SessionSpec, epoch: int, snapshot: bytes | None) -> None:
        """Give a session a place, new or from a snapshot. An earlier opening of it ends.

        Raises:
            AtCapacity: there is none for it, see ``Admission``.
            StaleCall: a later opening is known.
            SnapshotError: the snapshot does not fit the session.
            OutOfRange: the spec does not fit the model.
        """
        session = self._take_place(spec, epoch, resumed=snapshot is not None or epoch > 1)
        engine = self._loop.engine
        try:
            if snapshot is None:
                held = await self._loop.call(partial(engine.open, spec, epoch))
            else:
                held = await self._loop.call(partial(engine.restore, spec, snapshot, epoch))
        except BaseException:
            self._end(spec.session_id, session)
            raise
        if session.ended:
            raise _superseded(spec.session_id, epoch)
        session.held = held
        session.last_used_s = self._clock.now()
        origin = "new" if snapshot is None else f"from a snapshot before chunk {held[0].index}"
        ids = {"session_id": spec.session_id, "epoch": epoch, "chunk": held[0].index}
        logger.info("session %s: open here, %s", spec.session_id, origin, extra=ids)

    async def chunk(self, call: ChunkCall) -> AsyncGenerator[np.ndarray | bytes, None]:
        """Yield two items: frames ``[frame_count, H * 3 // 2, W]`` uint8 yuv420p, then the snapshot
        after them, empty after a final chunk.

        Raises:
            ReplicaLost: the session, or its opening, is not here; open it again from its snapshot.
            StaleCall: a call of an earlier opening, out of order, or beside another one.
            OutOfRange: the call does not fit the session.
        """
        session, state, reference = self._claim(call)
        try:
            features = await self._features(session, state, call)
            job = session.job = ChunkJob(state, reference, features, call)
            async with aclosing(self._loop.run(job)) as answers:
                frames = await anext(answers)
                assert isinstance(frames, np.ndarray)
                yield frames
                del frames
                following = await anext(answers)
            assert not isinstance(following, np.ndarray)
            if following is not None and not session.ended:
                session.held = following, reference
            # The next call may arrive before this generator is resumed after its last item.
            self._release(session, call)
            yield following.to_bytes() if following is not None else b""
        finally:
            self._release(session, call)

    async def close(self, session_id: str, epoch: int) -> None:
        """Forget a session of that opening or an earlier one; what is being made for it stops. A later
        opening stays: the call may have been long on its way."""
        session = self._table.get(session_id)
        if session is not None and session.epoch <= epoch:
            self._end(session_id, session)

    async def aclose(self) -> None:
        """Forget all sessions and close the loop."""
        encodings = [session.encoding for session in self._table.values() if session.encoding]
        for session_id, session in list(self._table.items()):
            self._end(session_id, session)
        await asyncio.gather(*(encoding.features for encoding in encodings), return_exceptions=True)
        await self._loop.aclose()

    def check_health(self) -> None:
        """Raise ``ReplicaLost`` where no chunk can be made here any more."""
        self._loop.check_health()

    def _take_place(self, spec: SessionSpec, epoch: int, resumed: bool) -> _Session:
        self._forget_idle()
        known = self._table.get(spec.session_id)
        live_steps = spec.steps if spec.live else None
        if known is not None:
            if epoch < known.epoch:
                raise _superseded(spec.session_id, epoch)
            self._end(spec.session_id, known)
        else:
            self._admission.admit(spec.session_id, live_steps, self._streams(), len(self._table), resumed)
        session = self._table[spec.session_id] = _Session(epoch, live_steps, self._clock.now())
        return session

    def _streams(self) -> list[int]:
        """Denoising steps of each live stream open."""
        return [session.live_steps for session in self._table.values() if session.live_steps is not None]

    def _claim(self, call: ChunkCall) -> tuple[_Session, SessionState, Reference]:
        """The session a call is for, now busy with it."""
        session = self._table.get(call.session_id)
        if session is None or session.held is None or call.epoch > session.epoch:
            message = f"session {call.session_id}, opening {call.epoch}, is not here"
            raise ReplicaLost(message, value=call.session_id)
        if call.epoch < session.epoch:
            raise _superseded(call.session_id, call.epoch)
        if session.call is not None:
            message = f"session {call.session_id} is still making chunk {session.call.index}"
            raise StaleCall(message, value=call.index)
        state, reference = session.held
        if call.index != state.index:
            message = f"chunk {call.index} of session {call.session_id}, its next one is {state.index}"
            raise StaleCall(message, value=call.index, accepted=state.index)
        session.call = call
        return session, state, reference

    def _release(self, session: _Session, call: ChunkCall) -> None:
        """The session is free for its next call; a call already released changes nothing."""
        if session.call is call:
            session.call = session.job = None
            session.last_used_s = self._clock.now()

    async def _features(self, session: _Session, state: SessionState, call: ChunkCall) -> np.ndarray:
        """The call's feature rows; the encoding of the slice after it is on its way then."""
        window, heard = audio_cache.window(state.audio_cache, call.audio, self._geometry)
        encoding = session.encoding
        if encoding is None or not encoding.serves(call.audio):
            self._cancel_encoding(session)
            encoding = session.encoding = self._start_encoding(call.audio, window)
        try:
            features = await encoding.features
        except asyncio.CancelledError:
            if session.ended:
                raise _superseded(call.session_id, call.epoch) from None
            raise
        if session.ended:
            raise _superseded(call.session_id, call.epoch)
        session.encoding = None
        if call.next_audio is not None and not call.final:
            following, _ = audio_cache.window(heard, call.next_audio, self._geometry)
            session.encoding = self._start_encoding(call.next_audio, following)
        return features

    def _start_encoding(self, audio: AudioSlice, window: AudioWindow) -> _Encoding:
        async def encode() -> np.ndarray:
            return await self._encode_audio(window)

        task = asyncio.create_task(encode())
        task.add_done_callback(_retrieve)
        return _Encoding(audio, task)

    def _cancel_encoding(self, session: _Session) -> None:
        if session.encoding is not None:
            session.encoding.features.cancel()
            session.encoding = None

    def _end(self, session_id: str, session: _Session) -> None:
        """Take a session out of the table and stop its work."""
        session.ended = True
        if self._table.get(session_id) is session:
            del self._table[session_id]
        if session.job is not None:
            self._loop.drop(session.job, _superseded(session_id, session.epoch))
        self._cancel_encoding(session)

    def _forget_idle(self) -> None:
        limit = self._clock.now() - self._idle_s
        for session_id, session in list(self._table.items()):
            waiting = session.held is not None and session.call is None
            if waiting and session.last_used_s < limit:
                self._end(session_id, session)
                ids = {"session_id": session_id, "epoch": session.epoch}
                logger.warning("session %s: forgotten, idle for %g s", session_id, self._idle_s, extra=ids)


def _superseded(session_id: str, epoch: int) -> StaleCall:
    return StaleCall(f"opening {epoch} of session {session_id} has ended", value=epoch)


def _same_slice(one: AudioSlice, other: AudioSlice) -> bool:
    alike = one.rows == other.rows and one.statistics == other.statistics
    return alike and np.array_equal(one.samples, other.samples)


def _retrieve(task: asyncio.Task[np.ndarray]) -> None:
    """Look at the outcome of an encoding nobody may await any more; who awaits it gets it all the same."""
    if not task.cancelled():
        task.exception()
