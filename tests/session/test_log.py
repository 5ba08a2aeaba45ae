"""What operators are told of a session: metrics, and lines with its ids."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from serve_app.config import Limits
from serve_app.errors import FlashHeadError, OutOfRange
from serve_app.metrics import (
    ACTIVE_STREAMS,
    CHUNK_LATENESS,
    DELIVERED_FRAMES,
    ENDED_STREAMS,
    REAL_TIME_FACTOR,
    RESUMPTIONS,
    STAGE_TIME,
    TIME_TO_FIRST_FRAME,
)
from serve_app.session.conductor import Conductor
from serve_app.session.log import SessionLog
from serve_app.session.timeline import ClipTimeline
from serve_app.types import ChunkCall

from session.fakes import (
    CANCELLED,
    FRAMES_LOST,
    FULL,
    GEOMETRY,
    LOST,
    ChainGenerator,
    FakeClock,
    ListRecorder,
    TextEncoder,
    spec,
    speech,
)

IDS = {"session_id": "s", "request_id": "r", "model": "null"}


class Play:
    """A session of 5 s, six chunks, on a clock that tests move."""

    def __init__(
        self, generator: ChainGenerator, encoder: TextEncoder | None = None, live: bool = True
    ) -> None:
        self.recorder, self.clock = ListRecorder(), FakeClock()
        self.log = SessionLog(IDS, self.clock, self.recorder, live=live, waited_s=2.0)
        self.clock.time = 0.5
        self.log.accepted(125)
        self.taken: list[bytes] = []
        self._conductor = Conductor(
            replace(spec(), live=live),
            ClipTimeline(*speech(5.0), GEOMETRY, "stream"),
            generator,
            encoder or TextEncoder(),
            self.clock,
            Limits(max_waiting_clusters=1),
            log=self.log,
        )

    async def run(self) -> None:
        async def deliver(cluster: bytes) -> None:
            self.taken.append(cluster)

        await self._conductor.run(deliver)


def streams(recorder: ListRecorder) -> dict[str, float]:
    """Streams in each state that was ever entered."""
    states = {tags["state"] for metric, _, tags in recorder.taken if metric is ACTIVE_STREAMS}
    return {state: sum(recorder.values(ACTIVE_STREAMS, state=state)) for state in states}


def fields(records: list[logging.LogRecord], what: str) -> list[dict[str, object]]:
    return [vars(record) for record in records if f"session s: {what}" in record.getMessage()]


def test_an_undisturbed_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    generator = ChainGenerator()
    play = Play(generator)

    def chunk_takes_half_a_second(call: ChunkCall) -> None:
        play.clock.time += 0.5

    generator.before_frames = chunk_takes_half_a_second
    asyncio.run(play.run())
    recorder = play.recorder
    assert streams(recorder) == {"opening": 0, "running": 0}
    assert recorder.values(ENDED_STREAMS, model="null", outcome="completed") == [1]
    assert sum(recorder.values(DELIVERED_FRAMES)) == 125
    assert recorder.values(REAL_TIME_FACTOR) == [pytest.approx(0.5 / 0.96)] * 5
    assert recorder.values(CHUNK_LATENESS) == [0.0] * 6
    assert len(recorder.values(STAGE_TIME, stage="deliver")) == 6
    [since_request] = recorder.values(TIME_TO_FIRST_FRAME, since="request")
    [since_speech] = recorder.values(TIME_TO_FIRST_FRAME, since="speech")
    assert since_request == since_speech + 2.0 + 0.5 >= 3.0
    [accepted] = fields(caplog.records, "accepted")
    [first] = fields(caplog.records, "first frame")
    [ended] = fields(caplog.records, "completed")
    assert all(IDS.items() <= line.items() for line in (accepted, first, ended))
    assert accepted["frames"] == ended["frames"] == 125
    assert ended["real_time_factor"] == pytest.approx(0.5 / 0.96, abs=1e-3)
    assert ended["lateness_s"] == 0.0


def test_lateness_is_what_the_reader_had_to_wait() -> None:
    generator = ChainGenerator()
    play = Play(generator)

    def chunk_3_is_slow(call: ChunkCall) -> None:
        play.clock.time += 9.0 if call.index == 3 else 0.5

    generator.before_frames = chunk_3_is_slow
    asyncio.run(play.run())
    lateness = play.recorder.values(CHUNK_LATENESS)
    assert len([late for late in lateness if late > 0]) == 1
    assert 5.0 < max(lateness) < 9.0
    assert sum(play.recorder.values(REAL_TIME_FACTOR)) == pytest.approx((9.0 + 4 * 0.5) / 0.96)


def test_nobody_waits_for_a_batch_chunk() -> None:
    play = Play(ChainGenerator(), live=False)
    asyncio.run(play.run())
    for metric in (CHUNK_LATENESS, REAL_TIME_FACTOR, TIME_TO_FIRST_FRAME):
        assert not play.recorder.values(metric)
    assert play.recorder.values(ENDED_STREAMS, outcome="completed") == [1]


def test_a_lost_replica_is_a_resumption(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    play = Play(ChainGenerator(faults={(1, 2, 0): LOST}))
    asyncio.run(play.run())
    assert play.recorder.values(RESUMPTIONS, model="null", reason="replica_lost") == [1]
    assert streams(play.recorder) == {"opening": 0, "running": 0, "lost": 0}
    assert [line["chunk"] for line in fields(caplog.records, "lost its replica")] == [2]
    [resumed] = fields(caplog.records, "resumed")
    assert (resumed["chunk"], resumed["reason"], resumed["session_id"]) == (2, "replica_lost", "s")


def test_lost_frames_are_a_resumption() -> None:
    play = Play(ChainGenerator(), TextEncoder(faults={960: [FRAMES_LOST]}))
    asyncio.run(play.run())
    assert play.recorder.values(RESUMPTIONS, reason="frames_lost") == [1]


@pytest.mark.parametrize(
    ("generator", "outcome"),
    [
        (ChainGenerator(open_faults=[FULL]), "at_capacity"),
        (ChainGenerator(faults={(1, 2, 0): OutOfRange("planted")}), "out_of_range"),
        (ChainGenerator(faults={(1, 2, 0): ValueError("planted")}), "internal_error"),
    ],
    ids=["full", "refused", "defect"],
)
def test_what_ends_a_session_is_its_outcome(
    generator: ChainGenerator, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    play = Play(generator)
    with pytest.raises((FlashHeadError, ValueError)):
        asyncio.run(play.run())
    assert play.recorder.values(ENDED_STREAMS, outcome=outcome) == [1]
    assert set(streams(play.recorder).values()) == {0}
    assert [line["outcome"] for line in fields(caplog.records, outcome)] == [outcome]


def test_a_session_that_is_cancelled_lost_its_client() -> None:
    play = Play(ChainGenerator(opens=False))

    async def cancelled() -> None:
        task = asyncio.create_task(play.run())
        await asyncio.sleep(0.01)
        assert streams(play.recorder) == {"opening": 1}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert play.recorder.values(ENDED_STREAMS, outcome="client_gone") == [1]
    assert streams(play.recorder) == {"opening": 0}


def test_a_cancellation_that_nobody_asked_for_is_no_client_gone() -> None:
    recorder = ListRecorder()
    log = SessionLog(IDS, FakeClock(), recorder)

    async def session() -> None:
        with log.running():
            raise CANCELLED

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(session())
    assert recorder.values(ENDED_STREAMS, outcome="internal_error") == [1]


def test_a_call_that_was_cancelled_elsewhere_is_a_resumption() -> None:
    play = Play(ChainGenerator(faults={(1, 2, 1): CANCELLED}))
    asyncio.run(play.run())
    assert play.recorder.values(RESUMPTIONS, reason="call_cancelled") == [1]
    assert play.recorder.values(ENDED_STREAMS, outcome="completed") == [1]
