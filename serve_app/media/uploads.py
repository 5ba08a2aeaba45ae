"""Decodes what strangers upload, outside this process: a hostile file costs at most its own request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from serve_app.config import Limits
from serve_app.errors import (
    FlashHeadError,
    InternalError,
    MalformedInput,
    OutOfRange,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from serve_app.media.decode_process import DecodeProcess
from serve_app.media.pipe import BrokenPipe

logger = logging.getLogger(__name__)

T = TypeVar("T")

START_TIMEOUT_S = 60.0
RESTART_PAUSE_S = 1.0
REFUSALS: dict[str, type[FlashHeadError]] = {
    kind.__name__: kind for kind in (MalformedInput, TooLarge, UnsupportedMedia, OutOfRange)
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A decoded request: ``portrait`` ``[height, width, 3]`` uint8 RGB, speech as ``DecodedAudio`` has it,
    and what the caller should be told."""

    portrait: np.ndarray
    pcm16: np.ndarray
    pcm48: np.ndarray
    warnings: tuple[str, ...]


class UploadDecoder:
    """``limits.decode_workers`` worker processes; as many uploads are decoded at a time, others wait.

    A worker that dies, takes longer than ``limits.decode_timeout_s`` or whose caller is cancelled is
    killed and replaced; the next upload never meets it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle: asyncio.Queue[DecodeProcess | None] = asyncio.Queue()
        self._processes: set[DecodeProcess] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2 * limits.decode_workers, thread_name_prefix="decode")
        self._closed = False

    async def start(self) -> None:
        """Start the workers; return when all are ready.

        Raises:
            InternalError, OSError: one cannot be started.
        """
        try:
            for process in await asyncio.gather(
                *(self._start_process() for _ in range(self._limits.decode_workers))
            ):
                self._idle.put_nowait(process)
        except BaseException:
            await self.aclose()
            raise

    async def decode(self, image: bytes, audio: bytes, *, height: int, width: int, face_crop: bool) -> Upload:
        """The portrait at ``height`` x ``width`` and both copies of the speech.

        Raises:
            MalformedInput, UnsupportedMedia, TooLarge, OutOfRange: what is wrong with the files.
            Unavailable: no worker became free within ``limits.upload_timeout_s``, or this is closing.
        """
        header = {"height": height, "width": width, "face_crop": face_crop}
        process = await self._idle_process()
        try:
            return await self._ask(process, header, image, audio)
        finally:
            self._release(process)

    async def aclose(self) -> None:
        """Kill the workers and wait until they, their threads and their replacements are gone."""
        self._closed = True
        self._idle.put_nowait(None)
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        for process in tuple(self._processes):
            await asyncio.to_thread(self._discard, process)
        await asyncio.to_thread(self._threads.shutdown)

    async def _idle_process(self) -> DecodeProcess:
        try:
            async with asyncio.timeout(self._limits.upload_timeout_s):
                while (process := await self._idle.get()) is not None and not process.alive:
                    self._release(process)
        except TimeoutError:
            raise Unavailable(
                f"no decoder became free within {self._limits.upload_timeout_s:g} s",
                code="decoders_busy",
                retry_after_s=self._limits.retry_after_s,
            ) from None
        if process is None:
            self._idle.put_nowait(None)
            raise Unavailable("the upload decoder is closed", code="shutting_down")
        return process

    async def _ask(
        self, process: DecodeProcess, header: dict[str, Any], image: bytes, audio: bytes
    ) -> Upload:
        try:
            async with asyncio.timeout(self._limits.decode_timeout_s):
                answer, buffers = await self._run(lambda: process.call(header, image, audio))
        except TimeoutError:
            process.kill()
            raise self._timed_out() from None
        except asyncio.CancelledError:
            process.kill()
            raise
        except BrokenPipe as error:
            process.kill()
            raise self._died() from error
        return _upload(answer, buffers)

    def _timed_out(self) -> MalformedInput:
        limit = self._limits.decode_timeout_s
        return MalformedInput(f"decoding took longer than {limit:g} s", code="decode_timeout", accepted=limit)

    def _died(self) -> FlashHeadError:
        if self._closed:
            return Unavailable("the upload decoder is closed", code="shutting_down")
        return MalformedInput("the decoder died over these files", code="decode_failed")

    def _release(self, process: DecodeProcess) -> None:
        if self._closed:
            return
        if process.alive:
            self._idle.put_nowait(process)
            return
        task = asyncio.create_task(self._replace(process))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, dead: DecodeProcess) -> None:
        await self._run(lambda: self._discard(dead))
        while True:
            try:
                self._idle.put_nowait(await self._start_process())
                return
            except (InternalError, OSError):
                logger.exception("a decode worker cannot be started; trying again")
                await asyncio.sleep(RESTART_PAUSE_S)

    async def _start_process(self) -> DecodeProcess:
        process = DecodeProcess(self._limits)
        self._processes.add(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._run(process.wait_ready)
        except (BrokenPipe, TimeoutError) as error:
            await self._run(lambda: self._discard(process))
            raise InternalError(f"a decode worker did not start: {error}", code="no_decoder") from error
        return process

    def _discard(self, process: DecodeProcess) -> None:
        process.close()
        self._processes.discard(process)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _upload(answer: dict[str, Any], buffers: list[np.ndarray]) -> Upload:
    if (trace := answer.get("trace")) is not None:
        logger.warning("a decoder failed in a way it has no name for:\n%s", trace)
    if (error := answer.get("error")) is not None:
        kind = REFUSALS[error["kind"]]
        raise kind(error["message"], code=error["code"], value=error["value"], accepted=error["accepted"])
    pixels, pcm16, pcm48 = buffers
    return Upload(
        portrait=pixels.reshape(answer["shape"]),
        pcm16=pcm16.view(np.float32),
        pcm48=pcm48.view(np.float32),
        warnings=tuple(answer["warnings"]),
    )
