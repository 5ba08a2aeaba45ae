"""``POST /animate``: a portrait and speech in, a talking head out, streamed while it is made or whole."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.backend import Backend, chosen_model
from serve_app.api.caller import caller, request_id
from serve_app.errors import ClientGone, FlashHeadError, OutOfRange, TooLarge
from serve_app.session.animation import MAX_SEED, Animation, AnimationRequest
from serve_app.tracing import trace_alone
from serve_app.types import AudioEncodeMode, ContainerFormat, ModelCard

T = TypeVar("T")

PATH = "/animate"
CONTENT_TYPES: dict[ContainerFormat, str] = {
    "webm": 'video/webm; codecs="vp9,opus"',
    "mp4": 'video/mp4; codecs="avc1,mp4a.40.2"',
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/problem+json": {}}}
    for status, what in {
        400: "Malformed, empty or truncated file, or a missing field",
        401: "No API key that is known, where one is needed",
        403: "A model the key does not open",
        413: "Too many bytes, pixels or seconds",
        415: "Not an image or not audio of a kind that is read",
        422: "A parameter outside its accepted values",
        429: "Every place is taken, or the key's own limits are used up; see Retry-After",
        503: "Not ready; see Retry-After",
    }.items()
}
VIDEO_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The video", "content": {"video/webm": {}, "video/mp4": {}}}
}


def animate_router(backend: Backend) -> APIRouter:
    """The route that animates."""
    router = APIRouter(tags=["animate"])
    attendance = Attendance()

    @router.post(
        PATH,
        response_class=Response,
        responses=VIDEO_RESPONSE | PROBLEM_RESPONSES,
        summary="Animate a portrait with speech",
    )
    async def animate(
        request: Request,
        image: Annotated[UploadFile, File(description="Portrait: PNG, JPEG or WebP")],
        audio: Annotated[UploadFile, File(description="Speech: WAV, MP3, FLAC, OGG, Opus, M4A or WebM")],
        model: Annotated[str | None, Form(description="A served model; the first one if absent")] = None,
        seed: Annotated[int, Form(ge=0, le=MAX_SEED)] = 42,
        steps: Annotated[int | None, Form(description="Denoising steps; the model's own if absent")] = None,
        stream: Annotated[bool, Form(description="Send clusters while they are made")] = True,
        format: Annotated[ContainerFormat, Form(description="mp4 needs stream=false")] = "webm",
        audio_encode: Annotated[AudioEncodeMode, Form(description="once looks ahead in the clip")] = "stream",
        face_crop: Annotated[bool, Form(description="Crop the portrait around its largest face")] = False,
    ) -> Response:
        if stream and format == "mp4":
            raise OutOfRange(
                "format=mp4 cannot be streamed; accepted: format=mp4 with stream=false, or format=webm",
                code="format_not_streamable",
                value="format=mp4&stream=true",
                accepted=["format=mp4&stream=false", "format=webm&stream=true", "format=webm&stream=false"],
            )
        limits = backend.limits
        now = asyncio.get_running_loop().time
        asked_s = now()
        served = chosen_model(backend, caller(request), model)
        stage = await attendance.until_gone(request, backend.stage(served))
        wanted = AnimationRequest(
            session_id=uuid.uuid4().hex,
            image=await _file(image, "image", limits.max_image_bytes),
            audio=await _file(audio, "audio", limits.max_audio_bytes),
            seed=seed,
            steps=steps,
            container=format,
            audio_encode=audio_encode,
            face_crop=face_crop,
            live=stream,
            waited_s=now() - asked_s,
            request_id=request_id(request),
            caller=caller(request).name,
        )
        animation = await attendance.until_gone(request, Animation.prepare(wanted, stage))
        headers = _headers(wanted, stage.card, animation)
        if stream:
            return StreamedVideo(animation, headers, attendance)
        video = await attendance.until_gone(request, animation.render())
        return Response(video, headers=headers, media_type=CONTENT_TYPES[format])

    return router


class StreamedVideo(Response):
    """A response whose body is made while it is sent.

    Status and headers leave with the first cluster, so an error before it is still an ordinary error
    answer. One after it cuts the body short, which every HTTP client sees.
    """

    def __init__(self, animation: Animation, headers: dict[str, str], attendance: Attendance) -> None:
        super().__init__(headers=headers, media_type=CONTENT_TYPES["webm"])
        del self.headers["content-length"]
        self._animation = animation
        self._attendance = attendance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def deliver(cluster: bytes) -> None:
            nonlocal started
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": cluster, "more_body": True})

        try:
            await self._attendance.until_gone(Request(scope, receive), self._animation.stream(deliver))
        except ClientGone:
            return
        except FlashHeadError as error:
            if not started:
                raise
            raise StreamCut(str(error)) from error
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class StreamCut(Exception):
    """A stream that ends before its end; the server closes the connection without a closing chunk."""


class Attendance:
    """Work done while its client is there."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def until_gone(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, cancelled as soon as the client disconnects or the request is cancelled.

        ``work`` runs in a context of its own, which has but the trace in common with the request's: calls
        made from it into the graph then each carry their own request id, on which Serve's routers rely. It
        is given the time to close what it opened even where the request is cancelled twice, as Serve does.

        Raises:
            ClientGone: the client closed its connection first.
        """
        task = self._owned(work, trace_alone())
        gone = self._owned(_disconnected(request), contextvars.copy_context())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone("the client closed its connection")
            return task.result()
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.wait({task, gone})

    def _owned(self, work: Coroutine[Any, Any, T], context: contextvars.Context) -> asyncio.Task[T]:
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _file(upload: UploadFile, field: str, max_bytes: int) -> bytes:
    if upload.size is not None and upload.size > max_bytes:
        raise TooLarge(
            f"{field} has {upload.size} bytes; at most {max_bytes} are taken",
            code=f"{field}_too_large",
            value=upload.size,
            accepted=max_bytes,
        )
    return await upload.read()


def _headers(wanted: AnimationRequest, card: ModelCard, animation: Animation) -> dict[str, str]:
    headers = {
        "X-Session-Id": wanted.session_id,
        "X-FlashHead-Model": card.name,
        "X-FlashHead-Reproducible": str(card.reproducible).lower(),
        "X-FlashHead-Frames": str(animation.timeline.frame_count),
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }
    if animation.warnings:
        headers["X-FlashHead-Warnings"] = "; ".join(animation.warnings)
    return headers
