"""The step loop: order, cancellation, failures, closing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from engines import NULL_GEOMETRY, NullEngine, spec, speech, stream_calls, until

from serve_app.engine.job import ChunkJob, Entry
from serve_app.engine.loop import EngineLoop
from serve_app.engine.scheduler import Stage
from serve_app.engine.state import SessionState
from serve_app.errors import InternalError, OutOfRange, ReplicaLost, StaleCall
from serve_app.metrics import BATCH_SIZE, CHUNK_STEPS, GPU_MEMORY, STAGE_TIME, Recorder

from session.fakes import ListRecorder

Item = np.ndarray | SessionState | None


class StoppedClock:
    def now(self) -> float:
        return 0.0


def job(engine: NullEngine, session_id: str, slack_s: float | None = None, final: bool = False) -> ChunkJob:
    state, reference = NullEngine(steps=engine.steps).open(spec("lite", session_id))
    [call] = stream_calls(speech(24), NULL_GEOMETRY, session_id)
    call = replace(call, slack_s=slack_s, final=final)
    return ChunkJob(state, reference, np.zeros((35, 3, 24), np.float32), call)


async def collect(loop: EngineLoop, job: ChunkJob) -> list[Item]:
    return [item async for item in loop.run(job)]


def with_loop(
    work: Callable[[EngineLoop], Awaitable[None]],
    engine: NullEngine,
    max_rows: int = 1,
    recorder: Recorder | None = None,
) -> EngineLoop:
    """Run ``work`` on a loop and close it; nothing may be left running."""
    loop = EngineLoop(engine, max_rows, StoppedClock(), recorder)

    async def main() -> None:
        try:
            await work(loop)
        finally:
            await loop.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others
        assert not loop._entries

    asyncio.run(main())
    return loop


def test_a_chunk_is_frames_then_state() -> None:
    engine = NullEngine(steps=2)

    async def work(loop: EngineLoop) -> None:
        frames, state = await collect(loop, job(engine, "a"))
        assert isinstance(frames, np.ndarray)
        assert frames.shape == (24, 3, 2)
        assert isinstance(state, SessionState)
        assert state.index == 1

    loop = with_loop(work, engine)
    assert [operation for operation, _ in engine.log] == ["begin", "denoise", "denoise", "decode", "advance"]
    assert loop.busy_s > 0


def test_a_final_chunk_is_not_advanced() -> None:
    engine = NullEngine()

    async def work(loop: EngineLoop) -> None:
        items = await collect(loop, job(engine, "a", final=True))
        assert items[1] is None
        assert len(items) == 2

    with_loop(work, engine)
    assert "advance" not in [operation for operation, _ in engine.log]


def test_frames_are_out_before_the_motion_encode() -> None:
    engine = NullEngine()

    async def work(loop: EngineLoop) -> None:
        async with aclosing(loop.run(job(engine, "a"))) as items:
            await anext(items)
            assert engine.log[-1][0] == "decode"
            await anext(items)
            assert engine.log[-1][0] == "advance"

    with_loop(work, engine)


def test_the_motion_encode_does_not_wait_for_its_reader() -> None:
    engine = NullEngine()

    async def work(loop: EngineLoop) -> None:
        async with aclosing(loop.run(job(engine, "a"))) as items:
            await anext(items)
            await until(lambda: engine.log[-1][0] == "advance")

    with_loop(work, engine)
    assert [operation for operation, _ in engine.log][-2:] == ["decode", "advance"]


def test_urgent_sessions_first_and_batch_after() -> None:
    engine = NullEngine(steps=1)

    async def work(loop: EngineLoop) -> None:
        order = ("batch", None), ("relaxed", 1.5), ("urgent", 1.0)
        await asyncio.gather(*(collect(loop, job(engine, name, slack)) for name, slack in order))

    with_loop(work, engine)
    decoded = [sessions[0] for operation, sessions in engine.log if operation == "decode"]
    assert decoded == ["urgent", "relaxed", "batch"]


def test_who_is_far_ahead_does_not_wait_until_all_others_are_as_far() -> None:
    """Its reader would get nothing for as long as they take."""
    engine = NullEngine(steps=1)
    catching_up = [(f"late-{chunk}", 0.96 * chunk) for chunk in range(12)]

    async def work(loop: EngineLoop) -> None:
        order = ("ahead", 60.0), *catching_up
        await asyncio.gather(*(collect(loop, job(engine, name, slack)) for name, slack in order))

    with_loop(work, engine)
    decoded = [sessions[0] for operation, sessions in engine.log if operation == "decode"]
    assert decoded[:5] == ["late-0", "late-1", "late-2", "ahead", "late-3"]


def test_a_newcomer_joins_the_next_step() -> None:
    engine = NullEngine(operation_s=0.005)

    async def work(loop: EngineLoop) -> None:
        first = asyncio.create_task(collect(loop, job(engine, "first", 1.0)))
        await until(lambda: ("denoise", ["first"]) in engine.log)
        await asyncio.gather(first, collect(loop, job(engine, "second", 1.0)))

    with_loop(work, engine, max_rows=2)
    assert ("denoise", ["first", "second"]) in engine.log
    assert ("denoise", ["second"]) in engine.log


def test_rows_of_a_step_are_bounded() -> None:
    engine = NullEngine()

    async def work(loop: EngineLoop) -> None:
        await asyncio.gather(*(collect(loop, job(engine, name, 1.0)) for name in "abcde"))

    with_loop(work, engine, max_rows=3)
    sizes = {len(sessions) for operation, sessions in engine.log if operation == "denoise"}
    assert max(sizes) == 3


def test_a_consumer_that_goes_stops_its_row_within_a_step() -> None:
    engine = NullEngine(steps=1000, operation_s=0.002)

    async def work(loop: EngineLoop) -> None:
        task = asyncio.create_task(collect(loop, job(engine, "a")))
        await until(lambda: len(engine.log) >= 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        made = len(engine.log)
        await asyncio.sleep(0.05)
        assert len(engine.log) <= made + 1
        engine.steps = 2
        assert len(await collect(loop, job(engine, "b", final=True))) == 2

    with_loop(work, engine)


@pytest.mark.parametrize("stage", [Stage.DECODE, Stage.ADVANCE])
def test_a_consumer_cancelled_as_its_answer_comes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its future is cancelled at once, its job leaves the loop a moment later."""
    engine = NullEngine()

    async def work(loop: EngineLoop) -> None:
        task = asyncio.create_task(collect(loop, job(engine, "a")))
        settle = loop._settle

        def cancel_then_settle(entry: Entry, outcome: object) -> None:
            if entry.stage is stage:
                task.cancel()
            settle(entry, outcome)

        monkeypatch.setattr(loop, "_settle", cancel_then_settle)
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.setattr(loop, "_settle", settle)
        assert len(await collect(loop, job(engine, "b"))) == 2

    with_loop(work, engine)


def test_a_job_dropped_tells_its_consumer() -> None:
    engine = NullEngine(steps=1000, operation_s=0.002)

    async def work(loop: EngineLoop) -> None:
        dropped = job(engine, "a")
        task = asyncio.create_task(collect(loop, dropped))
        await until(lambda: len(engine.log) >= 3)
        loop.drop(job(engine, "a"), StaleCall("another job"))
        loop.drop(dropped, StaleCall("replaced"))
        with pytest.raises(StaleCall, match="replaced"):
            await task

    with_loop(work, engine)


@pytest.mark.parametrize("operation", ["begin", "denoise", "decode", "advance"])
def test_a_failing_row_fails_alone(operation: str) -> None:
    def fails(doing: str, sessions: list[str]) -> Exception | None:
        return RuntimeError("numbers fell out") if doing == operation and "bad" in sessions else None

    engine = NullEngine(fails=fails)

    async def work(loop: EngineLoop) -> None:
        names = ("good", "bad", "fine")
        results = await asyncio.gather(
            *(collect(loop, job(engine, name, 1.0)) for name in names), return_exceptions=True
        )
        assert isinstance(results[1], InternalError)
        assert "numbers" not in results[1].message
        assert isinstance(results[1].__cause__, RuntimeError)
        assert [len(result) for result in (results[0], results[2])] == [2, 2]
        loop.check_health()

    with_loop(work, engine, max_rows=3)
    denoised = [sessions for doing, sessions in engine.log if doing == "denoise"]
    if operation == "denoise":
        assert ["good", "bad", "fine"] in denoised
        assert ["good", "fine"] in denoised
    for name in ("good", "fine"):
        assert (
            sum(name in sessions for sessions in denoised if "bad" not in sessions or operation != "denoise")
            == 4
        )


def test_what_the_engine_refuses_is_told_as_it_is() -> None:
    engine = NullEngine(fails=lambda doing, _: OutOfRange("no such rows") if doing == "begin" else None)

    async def work(loop: EngineLoop) -> None:
        with pytest.raises(OutOfRange, match="no such rows"):
            await collect(loop, job(engine, "a"))

    with_loop(work, engine)


def test_a_broken_device_fails_everything_and_says_so() -> None:
    engine = NullEngine(steps=4)
    engine.device_error = RuntimeError("illegal memory access")

    async def work(loop: EngineLoop) -> None:
        results = await asyncio.gather(
            *(collect(loop, job(engine, name)) for name in "ab"), return_exceptions=True
        )
        assert all(isinstance(result, ReplicaLost) for result in results)
        with pytest.raises(ReplicaLost, match="illegal memory access"):
            loop.check_health()
        with pytest.raises(ReplicaLost):
            await collect(loop, job(engine, "c"))

    with_loop(work, engine)


def test_closing_ends_what_is_being_made() -> None:
    engine = NullEngine(steps=1000, operation_s=0.002)

    async def work(loop: EngineLoop) -> None:
        task = asyncio.create_task(collect(loop, job(engine, "a")))
        await until(lambda: len(engine.log) >= 3)
        await loop.aclose()
        with pytest.raises(ReplicaLost, match="closed"):
            await task
        with pytest.raises(ReplicaLost, match="closed"):
            await collect(loop, job(engine, "b"))

    with_loop(work, engine)


def test_other_work_runs_between_operations_on_the_same_thread() -> None:
    engine = NullEngine(operation_s=0.002)

    async def work(loop: EngineLoop) -> None:
        chunk = asyncio.create_task(collect(loop, job(engine, "a")))
        await until(lambda: len(engine.log) >= 2)
        assert await loop.call(lambda: engine.log.append(("other", [])) or 7) == 7
        await chunk

    with_loop(work, engine)
    operations = [operation for operation, _ in engine.log]
    assert "other" in operations[2:-1]


def test_what_is_recorded_of_a_chunk() -> None:
    recorder = ListRecorder()
    engine = NullEngine(steps=4, operation_s=0.002, memory={"allocated": 7, "reserved": 8, "peak": 9})

    async def work(loop: EngineLoop) -> None:
        await asyncio.gather(*(collect(loop, job(engine, name)) for name in "ab"))

    with_loop(work, engine, max_rows=2, recorder=recorder)
    stages = {stage.value: recorder.values(STAGE_TIME, stage=stage.value) for stage in Stage}
    assert {stage: len(seconds) for stage, seconds in stages.items()} == {
        "begin": 2,
        "denoise": 4,
        "decode": 2,
        "advance": 2,
    }
    assert all(second >= 0.002 for seconds in stages.values() for second in seconds)
    assert recorder.values(BATCH_SIZE, model="null") == [2, 2, 2, 2]
    assert recorder.values(CHUNK_STEPS, model="null") == [4, 4]
    assert recorder.values(GPU_MEMORY, model="null", state="peak") == [9, 9]


def test_a_failed_operation_is_no_measurement() -> None:
    recorder = ListRecorder()
    engine = NullEngine(fails=lambda operation, sessions: OutOfRange("no") if operation == "decode" else None)

    async def work(loop: EngineLoop) -> None:
        with pytest.raises(OutOfRange):
            await collect(loop, job(engine, "a"))

    with_loop(work, engine, recorder=recorder)
    assert recorder.values(STAGE_TIME, stage="denoise") and not recorder.values(STAGE_TIME, stage="decode")


def test_measured_costs() -> None:
    engine = NullEngine(operation_s=0.004)

    async def work(loop: EngineLoop) -> None:
        await collect(loop, job(engine, "a"))

    loop = with_loop(work, engine)
    assert 0.004 * 6 <= loop.costs.chunk(steps=4) < 0.4
    assert loop.busy_s >= 7 * 0.004
