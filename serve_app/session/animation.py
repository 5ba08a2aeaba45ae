"""One request from its bytes to its video: decode, plan, conduct, wrap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.config import Limits
from serve_app.errors import OutOfRange
from serve_app.media.uploads import Upload, UploadDecoder
from serve_app.media.webm import finalise_webm, webm_header
from serve_app.metrics import NullRecorder, Recorder
from serve_app.session.conductor import Conductor, Deliver
from serve_app.session.log import SessionLog
from serve_app.session.protocols import Clock, Encoder, Generator
from serve_app.session.timeline import ClipTimeline
from serve_app.tracing import observed
from serve_app.types import AudioEncodeMode, ContainerFormat, ModelCard, SessionSpec

MAX_SEED = 2**63 - 1
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AnimationRequest:
    """What is asked for: the two files as uploaded, and how to animate them.

    ``steps`` is ``None`` for the model's own number. ``live`` says that somebody watches while the
    video is made, ``waited_s`` how long it was waited for so far. ``request_id`` and the ``caller``'s
    name are what log lines carry, empty where there are none.
    """

    session_id: str
    image: bytes
    audio: bytes
    seed: int
    steps: int | None
    container: ContainerFormat
    audio_encode: AudioEncodeMode
    face_crop: bool
    live: bool
    waited_s: float = 0.0
    request_id: str = ""
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """What plays an animation: the model served, what generates, what encodes, what decodes uploads, and
    who is told how it goes."""

    card: ModelCard
    generator: Generator
    encoder: Encoder
    decoder: UploadDecoder
    clock: Clock
    limits: Limits
    recorder: Recorder = field(default_factory=NullRecorder)


class Animation:
    """A decoded request, ready to run once, either streamed or into a file."""

    def __init__(self, request: AnimationRequest, upload: Upload, stage: Stage, log: SessionLog) -> None:
        self._stage = stage
        self._container: ContainerFormat = request.container
        self._pcm48 = upload.pcm48
        self.warnings = upload.warnings
        self.timeline = ClipTimeline(upload.pcm16, upload.pcm48, stage.card.geometry, request.audio_encode)
        self._conductor = Conductor(
            _session_spec(request, upload, stage.card),
            self.timeline,
            stage.generator,
            stage.encoder,
            stage.clock,
            stage.limits,
            container=request.container,
            log=log,
        )
        log.accepted(self.timeline.frame_count)

    @staticmethod
    async def prepare(request: AnimationRequest, stage: Stage) -> Animation:
        """Decode the upload and plan its chunks.

        Raises:
            MalformedInput, TooLarge, UnsupportedMedia, OutOfRange: what is wrong with the request.
        """
        _check_steps(request.steps, stage.card)
        ids = {
            "session_id": request.session_id,
            "request_id": request.request_id,
            "caller": request.caller,
            "model": stage.card.name,
        }
        log = SessionLog(ids, stage.clock, stage.recorder, live=request.live, waited_s=request.waited_s)
        geometry = stage.card.geometry
        with observed(stage.recorder, "decode_upload"):
            upload = await stage.decoder.decode(
                request.image,
                request.audio,
                height=geometry.height,
                width=geometry.width,
                face_crop=request.face_crop,
            )
        return Animation(request, upload, stage, log)

    async def stream(self, deliver: Deliver) -> None:
        """Give ``deliver`` a live WebM: the header together with the first cluster, then cluster after
        cluster. Raises what ``Conductor.run`` raises."""
        geometry = self._stage.card.geometry
        head = webm_header(geometry.height, geometry.width)

        async def deliver_with_header(cluster: bytes) -> None:
            nonlocal head
            cluster, head = head + cluster, b""
            await deliver(cluster)

        await self._conductor.run(deliver_with_header)

    async def render(self, progress: Progress | None = None) -> bytes:
        """The whole file: seekable WebM, or MP4. ``progress`` is told the frames made and the frames
        in all."""
        chunks: list[bytes] = []

        async def collect(chunk: bytes) -> None:
            chunks.append(chunk)
            if progress is not None:
                progress(self.timeline.frames_before(len(chunks)), self.timeline.frame_count)

        await self._conductor.run(collect)
        if self._container == "mp4":
            return await self._stage.encoder.finalise_mp4(chunks, self._pcm48)
        geometry = self._stage.card.geometry
        return await asyncio.to_thread(
            finalise_webm, geometry.height, geometry.width, chunks, len(self._pcm48)
        )


def _session_spec(request: AnimationRequest, upload: Upload, card: ModelCard) -> SessionSpec:
    return SessionSpec(
        session_id=request.session_id,
        model=card.name,
        portrait=upload.portrait,
        seed=request.seed,
        steps=request.steps or card.steps,
        audio_encode=request.audio_encode,
        live=request.live,
    )


def _check_steps(steps: int | None, card: ModelCard) -> None:
    if steps is not None and steps not in card.allowed_steps:
        raise OutOfRange(
            f"steps={steps} is not offered by model {card.name}; accepted: {list(card.allowed_steps)}",
            code="steps_out_of_range",
            value=steps,
            accepted=list(card.allowed_steps),
        )
