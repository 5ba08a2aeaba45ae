"""The session table: fencing, order, places, prefetch, idleness."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from engines import NULL_GEOMETRY, NullEngine, engine, play, spec, speech, speech_encoder, stream_calls, until

from serve_app.config import ModelSettings
from serve_app.engine.admission import Admission
from serve_app.engine.generator import GeneratorService
from serve_app.engine.loop import EngineLoop
from serve_app.engine.protocols import ChunkEngine
from serve_app.engine.scheduler import Stage
from serve_app.engine.state import SessionState
from serve_app.errors import AtCapacity, InternalError, OutOfRange, ReplicaLost, SnapshotError, StaleCall
from serve_app.types import AudioSlice, AudioWindow, ChunkCall


class FakeClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


class Speech:
    """An audio encoder that remembers what it was asked; it answers the first ``free`` windows, the
    rest when ``gate`` opens, and raises what ``fails`` holds for each."""

    def __init__(self) -> None:
        self.windows: list[AudioWindow] = []
        self.cancelled = 0
        self.free = 1000
        self.gate = asyncio.Event()
        self.fails: list[Exception | None] = []

    async def __call__(self, window: AudioWindow) -> np.ndarray:
        self.windows.append(window)
        try:
            if len(self.windows) > self.free:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails and (failure := self.fails.pop(0)):
            raise failure
        return np.zeros((window.end_row - window.first_row, 3, 24), np.float32)


class Table:
    """A service over a null engine, with everything it is made of."""

    def __init__(self, engine: ChunkEngine, places: int = 2) -> None:
        self.engine = engine
        self.clock = FakeClock()
        self.speech = Speech()
        self.loop = EngineLoop(engine, 1, self.clock)
        model = ModelSettings(name="null", max_sessions=places)
        self.admission = Admission(model, engine.card, self.loop.costs, self.clock)
        self.service = GeneratorService(self.loop, self.speech, self.admission, 60.0, self.clock)


def with_table(
    work: Callable[[Table], Awaitable[None]], engine: NullEngine | None = None, places: int = 2
) -> None:
    async def main() -> None:
        table = Table(engine or NullEngine(), places)
        try:
            await work(table)
        finally:
            await table.service.aclose()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert table.service.sessions == 0

    asyncio.run(main())


def calls(session_id: str = "a", epoch: int = 1, frames: int = 72) -> list[ChunkCall]:
    made = stream_calls(speech(frames), NULL_GEOMETRY, session_id)
    return [replace(call, epoch=epoch) for call in made]


async def answer(table: Table, call: ChunkCall) -> list[np.ndarray | bytes]:
    return [item async for item in table.service.chunk(call)]


async def opened(table: Table, session_id: str = "a", epoch: int = 1, live: bool = True) -> None:
    await table.service.open(replace(spec("lite", session_id), live=live), epoch, None)


def test_a_chunk_is_frames_then_snapshot() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        for index, call in enumerate(calls()):
            frames, snapshot = await answer(table, call)
            assert isinstance(frames, np.ndarray)
            assert frames.shape == (24, 3, 2)
            assert isinstance(snapshot, bytes)
            if call.final:
                assert snapshot == b""
            else:
                assert SessionState.from_bytes(snapshot).index == index + 1
        assert table.service.sessions == 1
        await table.service.close("a", epoch=1)
        assert table.service.sessions == 0

    with_table(work)


def test_frames_are_out_before_the_motion_encode() -> None:
    machine = NullEngine()

    async def work(table: Table) -> None:
        await opened(table)
        async with aclosing(table.service.chunk(calls()[0])) as items:
            await anext(items)
            assert machine.log[-1][0] == "decode"
            await anext(items)
            assert machine.log[-1][0] == "advance"

    with_table(work, machine)


def test_a_session_resumes_elsewhere_from_its_snapshot() -> None:
    async def work(table: Table) -> None:
        first, second, _ = calls()
        await opened(table)
        _, snapshot = await answer(table, first)
        await table.service.close("a", epoch=1)
        with pytest.raises(ReplicaLost):
            await answer(table, second)
        await table.service.open(spec("lite", "a"), 2, bytes(snapshot))
        _, snapshot = await answer(table, replace(second, epoch=2))
        assert SessionState.from_bytes(snapshot).epoch == 2

    with_table(work)


def test_unknown_sessions_and_openings_are_elsewhere() -> None:
    async def work(table: Table) -> None:
        with pytest.raises(ReplicaLost):
            await answer(table, calls()[0])
        await opened(table)
        with pytest.raises(ReplicaLost, match="opening 2"):
            await answer(table, calls(epoch=2)[0])

    with_table(work)


def test_calls_of_an_earlier_opening_are_fenced() -> None:
    async def work(table: Table) -> None:
        await opened(table, epoch=3)
        with pytest.raises(StaleCall):
            await answer(table, calls(epoch=2)[0])
        with pytest.raises(StaleCall):
            await opened(table, epoch=2)
        assert len(await answer(table, calls(epoch=3)[0])) == 2

    with_table(work)


def test_chunks_come_in_order() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        first, second, third = calls()
        with pytest.raises(StaleCall, match="its next one is 0"):
            await answer(table, second)
        await answer(table, first)
        for call in (first, third):
            with pytest.raises(StaleCall, match="its next one is 1"):
                await answer(table, call)
        await answer(table, second)

    with_table(work)


def test_one_call_at_a_time() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        table.speech.free = 0
        running = asyncio.create_task(answer(table, calls()[0]))
        await until(lambda: bool(table.speech.windows))
        with pytest.raises(StaleCall, match="still making chunk 0"):
            await answer(table, calls()[0])
        table.speech.gate.set()
        assert len(await running) == 2

    with_table(work)


def test_the_next_call_may_come_before_the_last_is_read_to_its_end() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        first, second, _ = calls()
        unfinished = table.service.chunk(first)
        await anext(unfinished)
        await anext(unfinished)
        async with aclosing(table.service.chunk(second)) as items:
            await anext(items)
            await unfinished.aclose()
            with pytest.raises(StaleCall, match="still making"):
                await answer(table, second)
            await anext(items)

    with_table(work)


def test_a_later_opening_replaces_what_runs() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        running = asyncio.create_task(answer(table, calls()[0]))
        await until(lambda: len(table.engine.log) > 4)
        await opened(table, epoch=2)
        with pytest.raises(StaleCall, match="opening 1"):
            await running
        assert table.service.sessions == 1
        assert len(await answer(table, calls(epoch=2)[0])) == 2

    with_table(work, NullEngine(steps=40, operation_s=0.002))


def test_a_later_opening_replaces_a_call_that_waits_for_its_speech() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        table.speech.free = 0
        running = asyncio.create_task(answer(table, calls()[0]))
        await until(lambda: bool(table.speech.windows))
        await opened(table, epoch=2)
        with pytest.raises(StaleCall, match="opening 1"):
            await running
        assert table.speech.cancelled == 1

    with_table(work)


def test_a_session_closed_while_it_opens_is_gone() -> None:
    async def work(table: Table) -> None:
        opening = asyncio.create_task(opened(table))
        await until(lambda: table.service.sessions == 1)
        with pytest.raises(ReplicaLost):
            await answer(table, calls()[0])
        await table.service.close("a", epoch=1)
        with pytest.raises(StaleCall):
            await opening
        assert table.service.sessions == 0

    with_table(work, NullEngine(operation_s=0.02))


def test_closing_an_earlier_opening_leaves_the_later_one() -> None:
    async def work(table: Table) -> None:
        await opened(table, epoch=2)
        await table.service.close("a", epoch=1)
        assert table.service.sessions == 1
        assert len(await answer(table, calls(epoch=2)[0])) == 2
        await table.service.close("a", epoch=3)
        assert table.service.sessions == 0

    with_table(work)


def test_places_are_bounded_while_sessions_open() -> None:
    async def work(table: Table) -> None:
        results = await asyncio.gather(*(opened(table, name) for name in "abcd"), return_exceptions=True)
        refused = [result for result in results if result is not None]
        assert len(refused) == 2
        for refusal in refused:
            assert isinstance(refusal, AtCapacity)
            assert refusal.value == 2
            assert refusal.retry_after_s
        await opened(table, "a", epoch=2)
        await table.service.close("b", epoch=1)
        await opened(table, "c")
        assert table.service.sessions == 2

    with_table(work, places=2)


def slow(table: Table, chunk_s: float) -> None:
    """From now on a chunk takes that long."""
    for stage in Stage:
        table.loop.costs.observe(stage, 1, chunk_s / (len(Stage) - 1 + 4))


def test_a_stream_that_resumes_and_one_nobody_watches_need_no_place_in_real_time() -> None:
    async def work(table: Table) -> None:
        slow(table, 0.4)
        await opened(table, "a")
        await opened(table, "b")
        with pytest.raises(AtCapacity, match="2 are made in real time"):
            await opened(table, "c")
        await opened(table, "video", live=False)
        await opened(table, "resumed", epoch=2)
        with pytest.raises(AtCapacity, match="all 4 places"):
            await opened(table, "resumed too", epoch=2)
        assert table.service.report() == {
            "streams": 3,
            "batch": 1,
            "places": 2,
            "capacity": 4,
            "occupancy": pytest.approx(3 * 0.4 / (0.9 * 0.96)),
            "busy": 0.0,
            "refused": 2,
        }
        await table.service.close("a", epoch=1)
        with pytest.raises(AtCapacity):
            await opened(table, "c")
        await table.service.close("b", epoch=1)
        await opened(table, "c")

    with_table(work, places=4)


def test_videos_nobody_watches_leave_the_places_to_live_streams() -> None:
    async def work(table: Table) -> None:
        slow(table, 0.4)
        await opened(table, "video", live=False)
        await opened(table, "another video", live=False)
        with pytest.raises(AtCapacity, match="nobody watches"):
            await opened(table, "a third", live=False)
        await opened(table, "a")
        await opened(table, "b")
        await table.service.close("b", epoch=1)
        await opened(table, "a third", epoch=2, live=False)

    with_table(work, places=4)


def test_a_failed_opening_leaves_no_session() -> None:
    def fails(doing: str, _: list[str]) -> Exception | None:
        return OutOfRange("no such portrait") if doing == "open" else None

    async def work(table: Table) -> None:
        with pytest.raises(OutOfRange):
            await opened(table)
        assert table.service.sessions == 0

    with_table(work, NullEngine(fails=fails))


def test_a_bad_snapshot_leaves_no_session() -> None:
    async def work(table: Table) -> None:
        with pytest.raises(SnapshotError):
            await table.service.open(spec("lite", "a"), 1, b"nonsense")
        assert table.service.sessions == 0

    with_table(work)


def test_idle_sessions_are_forgotten_and_busy_ones_kept() -> None:
    async def work(table: Table) -> None:
        await opened(table, "a")
        await opened(table, "b")
        async with aclosing(table.service.chunk(calls("b")[0])) as items:
            await anext(items)
            table.clock.time = 61.0
            assert table.service.sessions == 1
            await anext(items)
        with pytest.raises(ReplicaLost):
            await answer(table, calls("a")[0])
        await answer(table, calls("b")[1])
        table.clock.time = 121.5
        assert table.service.sessions == 0

    with_table(work)


def test_idle_sessions_make_room() -> None:
    async def work(table: Table) -> None:
        await opened(table, "a")
        table.clock.time = 61.0
        await opened(table, "b")
        assert table.service.sessions == 1

    with_table(work, places=1)


class TestPrefetch:
    def test_the_next_slice_is_encoded_while_a_chunk_is_made(self) -> None:
        async def work(table: Table) -> None:
            await opened(table)
            first, second, third = calls()
            async with aclosing(table.service.chunk(first)) as items:
                await anext(items)
                assert len(table.speech.windows) == 2
                await anext(items)
            await answer(table, second)
            await answer(table, third)
            assert len(table.speech.windows) == 3
            spoken = np.concatenate([call.audio.samples for call in (first, second, third)])
            for count, window in enumerate(table.speech.windows, start=1):
                heard = spoken[: count * NULL_GEOMETRY.slice_samples]
                assert np.array_equal(window.samples[-len(heard) :], heard)
                assert (window.first_row, window.end_row) == (165, 200)

        with_table(work)

    def test_another_slice_than_announced_is_encoded_itself(self) -> None:
        async def work(table: Table) -> None:
            await opened(table)
            first, second, _ = calls()
            await answer(table, first)
            flush = AudioSlice(second.audio.samples[: 5 * 640])
            await answer(table, replace(second, audio=flush, next_audio=None, frame_count=5))
            assert len(table.speech.windows) == 3
            padded = np.zeros(NULL_GEOMETRY.slice_samples, np.float32)
            padded[: 5 * 640] = flush.samples
            assert np.array_equal(table.speech.windows[2].samples[-len(padded) :], padded)

        with_table(work)

    def test_nothing_is_encoded_after_a_final_chunk(self) -> None:
        async def work(table: Table) -> None:
            await opened(table)
            first = calls()[0]
            await answer(table, replace(first, final=True))
            assert len(table.speech.windows) == 1

        with_table(work)

    def test_closing_cancels_it(self) -> None:
        async def work(table: Table) -> None:
            table.speech.free = 1
            await opened(table)
            await answer(table, calls()[0])
            assert len(table.speech.windows) == 2
            await table.service.close("a", epoch=1)
            await until(lambda: table.speech.cancelled == 1)

        with_table(work)

    def test_one_that_failed_is_tried_again(self) -> None:
        async def work(table: Table) -> None:
            await opened(table)
            first, second, _ = calls()
            table.speech.fails = [None, ReplicaLost("the encoder went away")]
            await answer(table, first)
            assert not table.speech.fails
            assert len(await answer(table, second)) == 2

        with_table(work)


def test_speech_that_cannot_be_encoded_fails_the_call_and_nothing_else() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        table.speech.fails = [ReplicaLost("no encoder")]
        with pytest.raises(ReplicaLost, match="no encoder"):
            await answer(table, calls()[0])
        assert len(await answer(table, calls()[0])) == 2

    with_table(work)


def test_a_failed_chunk_can_be_made_again() -> None:
    failures = iter([RuntimeError("once")])

    def fails(doing: str, _: list[str]) -> Exception | None:
        return next(failures, None) if doing == "decode" else None

    async def work(table: Table) -> None:
        await opened(table)
        with pytest.raises(InternalError):
            await answer(table, calls()[0])
        assert len(await answer(table, calls()[0])) == 2

    with_table(work, NullEngine(fails=fails))


def test_a_consumer_that_goes_frees_the_session() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        task = asyncio.create_task(answer(table, calls()[0]))
        await until(lambda: len(table.engine.log) > 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await answer(table, calls()[0])) == 2

    with_table(work, NullEngine(steps=30, operation_s=0.002))


def test_health_is_the_loops() -> None:
    async def work(table: Table) -> None:
        await opened(table)
        table.service.check_health()
        table.engine.device_error = RuntimeError("lost")
        with pytest.raises(ReplicaLost):
            await answer(table, calls()[0])
        with pytest.raises(ReplicaLost, match="broken"):
            table.service.check_health()

    with_table(work)


def test_on_the_real_engine_it_makes_what_the_engine_makes() -> None:
    machine = engine("lite")
    pcm = speech(60)
    expected, _ = play(engine("lite"), spec("lite"), stream_calls(pcm, machine.geometry))

    async def main() -> list[np.ndarray]:
        async def encode(window: AudioWindow) -> np.ndarray:
            return await asyncio.to_thread(speech_encoder().rows, window)

        clock = FakeClock()
        loop = EngineLoop(machine, 1, clock)
        admission = Admission(ModelSettings(name="lite"), machine.card, loop.costs, clock)
        service = GeneratorService(loop, encode, admission, 60.0, clock)
        snapshot, found = None, []
        for epoch, call in enumerate(stream_calls(pcm, machine.geometry), start=1):
            await service.open(spec("lite"), epoch, snapshot)
            async for item in service.chunk(replace(call, epoch=epoch)):
                if isinstance(item, bytes):
                    snapshot = item
                else:
                    found.append(item)
        await service.aclose()
        return found

    found = asyncio.run(main())
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
