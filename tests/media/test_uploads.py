"""Uploads are decoded in processes of their own: whatever happens to one, the next upload works."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

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
from serve_app.media import decode_process, decode_worker, uploads
from serve_app.media.audio_decode import decode_audio
from serve_app.media.portrait import NO_FACE_WARNING, decode_portrait
from serve_app.media.uploads import Upload, UploadDecoder

from media.hostile import NOISE, cut, flac_bomb, mutations, picture, png_bomb, sound, webm_bomb
from media.sounds import KINDS, encoded, speech_like, wav

PICTURE, SPEECH = picture(), wav()
EXAMPLES = Path(__file__).parents[2] / "examples"


@asynccontextmanager
async def decoder(**limits: float) -> AsyncIterator[UploadDecoder]:
    """A started decoder; at the end nothing of it is left."""
    before = set(workers())
    made = UploadDecoder(Limits.model_validate(limits))
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()
        assert set(workers()) == before


def workers() -> list[int]:
    """Process ids of this process's decode workers, zombies included."""
    return [child.pid for child in psutil.Process().children() if is_worker(child)]


def is_worker(child: psutil.Process) -> bool:
    try:
        return child.status() == psutil.STATUS_ZOMBIE or any(
            "decode_worker" in part for part in child.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


def wait_until_dead(pid: int) -> None:
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


async def decode(made: UploadDecoder, image: bytes = PICTURE, audio: bytes = SPEECH) -> Upload:
    return await made.decode(image, audio, height=64, width=96, face_crop=False)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())


def test_the_same_as_decoding_here() -> None:
    async def scenario() -> None:
        image, audio = ((EXAMPLES / name).read_bytes() for name in ("portrait.png", "speech.wav"))
        async with decoder() as made:
            upload = await made.decode(image, audio, height=64, width=96, face_crop=True)
        portrait, speech = decode_portrait(image, 64, 96, True, Limits()), decode_audio(audio, Limits())
        assert np.array_equal(upload.portrait, portrait.pixels)
        assert np.array_equal(upload.pcm16, speech.pcm16) and upload.pcm16.dtype == np.float32
        assert np.array_equal(upload.pcm48, speech.pcm48) and upload.pcm48.dtype == np.float32
        assert upload.warnings == ()

    run(scenario)


def test_warnings_come_along() -> None:
    async def scenario() -> None:
        async with decoder() as made:
            upload = await made.decode(PICTURE, SPEECH, height=64, width=64, face_crop=True)
            assert upload.warnings == (NO_FACE_WARNING,)

    run(scenario)


@pytest.mark.parametrize(
    ("image", "audio", "kind", "code"),
    [
        (PICTURE, b"", MalformedInput, "empty_audio"),
        (b"", SPEECH, MalformedInput, "empty_image"),
        (SPEECH, PICTURE, UnsupportedMedia, "not_image"),
        (PICTURE, PICTURE, UnsupportedMedia, "not_audio"),
        (PICTURE, wav(channels=9), OutOfRange, "audio_channels_out_of_range"),
        (png_bomb(8_000), SPEECH, TooLarge, "image_too_many_pixels"),
    ],
)
def test_errors_cross_whole(image: bytes, audio: bytes, kind: type[FlashHeadError], code: str) -> None:
    with pytest.raises(kind) as here:
        decode_portrait(image, 64, 96, False, Limits())
        decode_audio(audio, Limits())

    async def scenario() -> None:
        async with decoder() as made:
            with pytest.raises(kind) as there:
                await decode(made, image, audio)
            assert type(there.value) is kind and there.value.code == code
            assert there.value.problem() == here.value.problem()
            assert (await decode(made)).pcm48.size

    run(scenario)


def test_a_refusal_costs_no_worker() -> None:
    async def scenario() -> None:
        async with decoder() as made:
            before = workers()
            for audio in (b"", NOISE, PICTURE, cut(sound(), 0.5)):
                with pytest.raises((MalformedInput, UnsupportedMedia)):
                    await decode(made, audio=audio)
            assert workers() == before

    run(scenario)


@pytest.mark.parametrize("name", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_that_dies_takes_one_upload_with_it(name: signal.Signals) -> None:
    async def scenario() -> None:
        async with decoder() as made:
            (pid,) = workers()
            os.kill(pid, signal.SIGSTOP)
            doomed = asyncio.create_task(decode(made))
            await asyncio.sleep(0.2)
            os.kill(pid, name)
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(MalformedInput) as refused:
                await doomed
            assert refused.value.code == "decode_failed"
            assert (await decode(made)).pcm48.size
            assert workers() != [pid]

    run(scenario)


def test_a_worker_that_died_idle_harms_nobody() -> None:
    async def scenario() -> None:
        async with decoder() as made:
            (pid,) = workers()
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(wait_until_dead, pid)
            assert (await decode(made)).pcm48.size

    run(scenario)


def test_a_worker_that_cannot_be_replaced_at_once_is_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "RESTART_PAUSE_S", 0.01)
    starting, refusals = decode_process.subprocess.Popen, 2

    def refused(*args: Any, **kwargs: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return starting(*args, **kwargs)

    async def scenario() -> None:
        async with decoder() as made:
            (pid,) = workers()
            monkeypatch.setattr(decode_process.subprocess, "Popen", refused)
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(wait_until_dead, pid)
            assert (await decode(made)).pcm48.size
        assert not refusals

    run(scenario)


def test_a_worker_that_hangs_is_replaced() -> None:
    async def scenario() -> None:
        async with decoder(decode_timeout_s=1.0) as made:
            (pid,) = workers()
            os.kill(pid, signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(MalformedInput) as refused:
                await decode(made)
            assert refused.value.code == "decode_timeout"
            assert time.monotonic() - started < 3
            assert (await decode(made)).pcm48.size
            assert pid not in workers()

    run(scenario)


def test_a_clip_that_needs_too_much_memory_is_too_large() -> None:
    async def scenario() -> None:
        async with decoder(decode_memory_bytes=1 << 30, max_audio_s=6000) as made:
            with pytest.raises(TooLarge) as refused:
                await decode(made, audio=flac_bomb(5000))
            assert refused.value.code == "decode_too_much_memory"
            assert (await decode(made)).pcm48.size

    run(scenario)


def test_the_kernel_bounds_memory_and_processor_time() -> None:
    """Of processor time each request may use its timeout's worth, however many came before."""

    async def scenario() -> None:
        async with decoder() as made:
            for _ in range(3):
                await decode(made)
            worker = psutil.Process(workers()[0])
            assert worker.rlimit(psutil.RLIMIT_AS) == (Limits().decode_memory_bytes,) * 2
            used = sum(worker.cpu_times()[:2])
            assert Limits().decode_timeout_s <= worker.rlimit(psutil.RLIMIT_CPU)[0] <= used + 40

    run(scenario)


def test_a_failure_without_a_name_is_reported_and_traced() -> None:
    answer, buffers = decode_worker._reply({}, PICTURE, SPEECH, Limits())
    assert answer["error"]["kind"] == "MalformedInput" and answer["error"]["code"] == "decode_failed"
    assert "KeyError" in answer["trace"] and buffers == ()


def test_a_cancelled_upload_gives_its_place_back() -> None:
    async def scenario() -> None:
        async with decoder() as made:
            (pid,) = workers()
            os.kill(pid, signal.SIGSTOP)
            gone = asyncio.create_task(decode(made))
            waiting = asyncio.create_task(decode(made))
            given_up = asyncio.create_task(decode(made))
            await asyncio.sleep(0.2)
            given_up.cancel()
            gone.cancel()
            results = await asyncio.gather(gone, waiting, given_up, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert isinstance(results[1], Upload)
            assert isinstance(results[2], asyncio.CancelledError)
            assert pid not in workers() and len(workers()) == 1

    run(scenario)


def test_only_as_many_at_a_time_as_there_are_workers() -> None:
    async def scenario() -> None:
        async with decoder(decode_workers=2) as made:
            assert len(workers()) == 2
            uploads = await asyncio.gather(*(decode(made) for _ in range(20)))
            assert len(uploads) == 20 and len(workers()) == 2

    run(scenario)


def test_waiting_for_a_worker_ends() -> None:
    async def scenario() -> None:
        async with decoder(upload_timeout_s=0.3, decode_timeout_s=3.0) as made:
            (pid,) = workers()
            os.kill(pid, signal.SIGSTOP)
            first = asyncio.create_task(decode(made))
            await asyncio.sleep(0.1)
            with pytest.raises(Unavailable) as refused:
                await decode(made)
            assert refused.value.code == "decoders_busy" and refused.value.retry_after_s
            os.kill(pid, signal.SIGCONT)
            assert (await first).pcm48.size

    run(scenario)


def test_closing_ends_what_is_under_way() -> None:
    async def scenario() -> None:
        async with decoder() as made:
            (pid,) = workers()
            os.kill(pid, signal.SIGSTOP)
            under_way, waiting = (asyncio.create_task(decode(made)) for _ in range(2))
            await asyncio.sleep(0.1)
            await made.aclose()
            for task in (under_way, waiting):
                with pytest.raises(Unavailable):
                    await task
            with pytest.raises(Unavailable):
                await decode(made)

    run(scenario)


def test_a_worker_that_cannot_start_is_no_fault_of_an_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_process, "WORKER", "serve_app.media.no_such_module")

    async def scenario() -> None:
        made = UploadDecoder(Limits())
        with pytest.raises(InternalError) as refused:
            await made.start()
        assert refused.value.code == "no_decoder"
        assert workers() == []

    run(scenario)


def test_a_worker_knows_no_secret_and_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    process = decode_process.DecodeProcess(Limits())
    process.wait_ready()
    (pid,) = workers()
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    process._requests.close()
    assert psutil.Process(pid).wait(timeout=10) == 0
    process.close()


@pytest.mark.parametrize("kind", ["wav", "mp3", "ogg", "opus", "flac", "m4a", "webm"])
def test_damaged_files_never_do_more_than_fail(kind: str) -> None:
    """Seeded damage to valid clips: a clean answer each time, from a decoder that still works."""
    clip = encoded(KINDS[kind], speech_like(16_000 if kind != "webm" else 48_000, 0.5), 48_000)

    async def scenario() -> None:
        async with decoder(decode_timeout_s=10.0) as made:
            for audio in mutations(clip, count=60, seed=len(kind)):
                await _fails_cleanly_or_works(made, PICTURE, audio)
            assert (await decode(made)).pcm48.size

    run(scenario)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_never_do_more_than_fail(kind: str) -> None:
    async def scenario() -> None:
        async with decoder(decode_timeout_s=10.0) as made:
            for image in mutations(picture(kind), count=60, seed=len(kind)):
                await _fails_cleanly_or_works(made, image, SPEECH)
            assert (await decode(made)).pcm48.size

    run(scenario)


async def _fails_cleanly_or_works(made: UploadDecoder, image: bytes, audio: bytes) -> None:
    try:
        upload = await decode(made, image, audio)
    except FlashHeadError as refused:
        assert refused.status in (400, 413, 415, 422), refused
    else:
        assert upload.portrait.shape == (64, 96, 3) and np.isfinite(upload.pcm48).all()


def test_a_worker_does_not_grow() -> None:
    async def scenario() -> None:
        async with decoder() as made:
            sizes = []
            for _ in range(3):
                for _ in range(40):
                    await decode(made)
                sizes.append(psutil.Process(workers()[0]).memory_info().rss)
            assert sizes[2] - sizes[1] < 4 << 20

    run(scenario)


def test_a_bomb_does_not_hold_others_up() -> None:
    async def scenario() -> None:
        async with decoder(decode_workers=2) as made:
            bomb = asyncio.create_task(decode(made, audio=webm_bomb(3600)))
            started = time.monotonic()
            await decode(made)
            assert time.monotonic() - started < 2
            with pytest.raises(TooLarge):
                await bomb

    run(scenario)
