"""The conductor: order, resumption, back-pressure, and that it leaves nothing running."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from serve_app.config import Limits
from serve_app.errors import AtCapacity, FlashHeadError, InternalError, ReplicaLost, SlowClient, Unavailable
from serve_app.session.conductor import Conductor, Phase
from serve_app.session.timeline import ChunkPlan, ClipTimeline

from session.fakes import (
    CANCELLED,
    FRAMES_LOST,
    FULL,
    GEOMETRY,
    LOST,
    ChainGenerator,
    FakeClock,
    TextEncoder,
    spec,
    speech,
)

PLAYED_WITHIN_S = 20.0
"""A session that is not over by then waits for something that never comes."""
HASTY = {"call_timeout_s": 0.5, "resume_timeout_s": 0.4}


def conductor(
    generator: ChainGenerator,
    encoder: TextEncoder,
    seconds: float = 5.0,
    live: bool = True,
    **limits: float,
) -> Conductor:
    timeline = ClipTimeline(*speech(seconds), GEOMETRY, "stream")
    settings = Limits.model_validate({"resume_timeout_s": 5.0, **limits})
    return Conductor(replace(spec(), live=live), timeline, generator, encoder, FakeClock(), settings)


class Breaking(ClipTimeline):
    """Its third chunk never comes: what it comes from was cancelled."""

    async def plan(self, index: int) -> ChunkPlan | None:
        if index == 2:
            raise CANCELLED
        return self.peek(index)


async def played(running: Conductor) -> list[bytes]:
    clusters: list[bytes] = []

    async def deliver(cluster: bytes) -> None:
        clusters.append(cluster)

    async with asyncio.timeout(PLAYED_WITHIN_S):
        await running.run(deliver)
    return clusters


def undisturbed() -> list[bytes]:
    return asyncio.run(played(conductor(ChainGenerator(), TextEncoder())))


def leftovers() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_delivers_every_chunk_once_and_in_order() -> None:
    generator, encoder = ChainGenerator(), TextEncoder()
    running = conductor(generator, encoder)
    clusters = asyncio.run(played(running))
    assert [int(cluster.split()[0]) for cluster in clusters] == [960 * k for k in range(6)]
    assert clusters[-1].split()[3] == b"True"
    assert generator.calls == [("s", 1, k) for k in range(6)]
    assert generator.closed == ["s"]
    assert running.phase is Phase.ENDED and running.resumptions == 0


def test_the_first_cluster_leaves_before_the_second_chunk_is_generated() -> None:
    events: list[str] = []
    generator = ChainGenerator(
        before_frames=lambda call: events.append(f"generated {call.index}"), chunk_s=0.02
    )

    async def deliver(cluster: bytes) -> None:
        events.append("delivered")

    asyncio.run(conductor(generator, TextEncoder()).run(deliver))
    assert events[:3] == ["generated 0", "delivered", "generated 1"]


@pytest.mark.parametrize("chunk", range(6))
@pytest.mark.parametrize("item", [0, 1])
def test_a_lost_generator_loses_no_chunk_and_doubles_none(chunk: int, item: int) -> None:
    generator = ChainGenerator(faults={(1, chunk, item): LOST})
    running = conductor(generator, TextEncoder())
    assert asyncio.run(played(running)) == undisturbed()
    assert running.resumptions == 1
    assert [epoch for _, epoch, _ in generator.opened] == [1, 2]
    assert [index for _, _, index in generator.calls].count(chunk) == 2


@pytest.mark.parametrize("chunk", [0, 2, 5])
@pytest.mark.parametrize("item", [0, 1])
def test_a_chunk_whose_call_was_cancelled_is_made_again(chunk: int, item: int) -> None:
    generator = ChainGenerator(faults={(1, chunk, item): CANCELLED})
    running = conductor(generator, TextEncoder())
    assert asyncio.run(played(running)) == undisturbed()
    assert running.resumptions == 1


def test_an_opening_that_was_cancelled_is_made_again() -> None:
    generator = ChainGenerator(faults={(1, 2, 0): LOST}, open_faults=[CANCELLED, None, CANCELLED, None])
    assert asyncio.run(played(conductor(generator, TextEncoder()))) == undisturbed()


@pytest.mark.parametrize("start_ms", [0, 960, 4800])
def test_an_encoding_that_was_cancelled_is_made_again(start_ms: int) -> None:
    encoder = TextEncoder(faults={start_ms: [CANCELLED, CANCELLED]})
    assert asyncio.run(played(conductor(ChainGenerator(), encoder))) == undisturbed()


def test_frames_whose_second_making_was_cancelled_are_made_again() -> None:
    generator = ChainGenerator(faults={(2, 1, 0): CANCELLED, (3, 1, 1): CANCELLED})
    encoder = TextEncoder(faults={960: [FRAMES_LOST]})
    assert asyncio.run(played(conductor(generator, encoder))) == undisturbed()


def test_speech_that_stops_coming_ends_its_session() -> None:
    clusters: list[bytes] = []

    async def deliver(cluster: bytes) -> None:
        clusters.append(cluster)

    async def scenario() -> None:
        generator = ChainGenerator()
        timeline = Breaking(*speech(5.0), GEOMETRY, "stream")
        running = Conductor(spec(), timeline, generator, TextEncoder(), FakeClock(), Limits())
        with pytest.raises(ReplicaLost, match="cancelled"):
            await asyncio.wait_for(running.run(deliver), PLAYED_WITHIN_S)
        assert not leftovers() and generator.closed == ["s"]

    asyncio.run(scenario())
    assert clusters == undisturbed()[:2]


def test_losing_every_replica_it_opens_on_still_ends_right() -> None:
    faults = {(opening, opening - 1, opening % 2): LOST for opening in range(1, 7)}
    generator = ChainGenerator(faults=faults, open_faults=[None, LOST, FULL, None])
    assert asyncio.run(played(conductor(generator, TextEncoder()))) == undisturbed()


@pytest.mark.parametrize("start_ms", [0, 960, 4800])
def test_a_lost_encoder_is_called_again(start_ms: int) -> None:
    encoder = TextEncoder(faults={start_ms: [LOST, LOST]})
    assert asyncio.run(played(conductor(ChainGenerator(), encoder))) == undisturbed()
    assert sorted(encoder.done) == [960 * k for k in range(6)]


@pytest.mark.parametrize("start_ms", [0, 960, 4800])
def test_frames_lost_with_their_node_are_generated_again(start_ms: int) -> None:
    generator, encoder = ChainGenerator(), TextEncoder(faults={start_ms: [FRAMES_LOST]})
    assert asyncio.run(played(conductor(generator, encoder))) == undisturbed()
    again = [name for name, _, _ in generator.opened if ".again" in name]
    assert again == [f"s.again{start_ms // 960}"]
    assert [epoch for name, epoch, _ in generator.opened if name in again] == [2]
    assert sorted(generator.closed) == sorted({"s", *again})


def test_frames_lost_after_a_resumption_are_generated_from_its_snapshot() -> None:
    generator, encoder = (
        ChainGenerator(faults={(1, 2, 0): LOST}),
        TextEncoder(faults={960 * 4: [FRAMES_LOST]}),
    )
    assert asyncio.run(played(conductor(generator, encoder))) == undisturbed()
    assert [(name, epoch) for name, epoch, _ in generator.opened] == [("s", 1), ("s", 2), ("s.again4", 3)]


def test_a_new_session_is_told_there_is_no_place() -> None:
    generator = ChainGenerator(open_faults=[FULL])
    with pytest.raises(AtCapacity):
        asyncio.run(played(conductor(generator, TextEncoder())))


def test_a_session_gives_up_when_nothing_takes_it() -> None:
    generator = ChainGenerator(faults={(1, 2, 0): LOST}, open_faults=[None, *[LOST] * 1000])
    clusters: list[bytes] = []

    async def deliver(cluster: bytes) -> None:
        clusters.append(cluster)

    with pytest.raises(Unavailable, match="5 s"):
        asyncio.run(conductor(generator, TextEncoder()).run(deliver))
    assert clusters == undisturbed()[:2]


def test_a_chunk_that_kills_every_replica_ends_its_session() -> None:
    generator = ChainGenerator(faults={(opening, 2, 0): LOST for opening in range(1, 100)})
    with pytest.raises(Unavailable, match="chunk 2 lost its replica 3 times"):
        asyncio.run(played(conductor(generator, TextEncoder(), max_losses_per_chunk=3)))
    assert [index for _, _, index in generator.calls].count(2) == 3


def test_a_generator_that_does_not_answer_is_left() -> None:
    generator = ChainGenerator(stalls={(1, 2)})
    running = conductor(generator, TextEncoder(), **HASTY)
    assert asyncio.run(played(running)) == undisturbed()
    assert running.resumptions == 1


@pytest.mark.parametrize("faults", [{(1, 2, 0): LOST}, {(1, 2, 1): CANCELLED}])
def test_a_lost_session_is_closed_where_it_was(faults: dict) -> None:
    """Its replica may live, and would keep its place for it."""
    closed_before: dict[int, list[int]] = {}
    generator = ChainGenerator(
        faults=dict(faults),
        chunk_s=0.005,
        before_frames=lambda call: closed_before.setdefault(call.index, list(generator.closed_openings)),
    )

    async def scenario() -> None:
        await played(conductor(generator, TextEncoder()))
        assert not leftovers()

    asyncio.run(scenario())
    assert closed_before[5] == [1]
    assert generator.closed_openings == [1, 2]


def test_nothing_waits_for_the_closing_of_a_lost_session_but_the_end() -> None:
    generator = ChainGenerator(faults={(1, 2, 0): LOST}, close_s=0.05)
    closed_at_delivery: list[int] = []

    async def deliver(cluster: bytes) -> None:
        closed_at_delivery.append(len(generator.closed_openings))

    async def scenario() -> None:
        await conductor(generator, TextEncoder()).run(deliver)
        assert not leftovers()

    asyncio.run(scenario())
    assert closed_at_delivery == [0] * 6
    assert sorted(generator.closed_openings) == [1, 2]


def test_cancelling_twice_gives_up_the_closings_too() -> None:
    generator = ChainGenerator(faults={(1, 2, 0): LOST}, stalls={(2, 2)}, close_s=60.0)

    async def scenario() -> None:
        task = asyncio.create_task(played(conductor(generator, TextEncoder())))
        for _ in range(2):
            await asyncio.sleep(0.02)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert not leftovers()

    asyncio.run(scenario())


def test_an_encoder_that_does_not_answer_is_called_again() -> None:
    encoder = TextEncoder(stalls={960})
    assert asyncio.run(played(conductor(ChainGenerator(), encoder, **HASTY))) == undisturbed()


def test_a_graph_without_replicas_is_given_up() -> None:
    generator = ChainGenerator(opens=False)
    with pytest.raises(Unavailable):
        asyncio.run(played(conductor(generator, TextEncoder(), **HASTY)))


def test_an_error_arrives_after_the_clusters_made_before_it() -> None:
    generator = ChainGenerator(faults={(1, 3, 0): InternalError("planted")})
    clusters: list[bytes] = []

    async def deliver(cluster: bytes) -> None:
        clusters.append(cluster)

    async def scenario() -> None:
        with pytest.raises(FlashHeadError, match="planted"):
            await conductor(generator, TextEncoder()).run(deliver)
        assert not leftovers()

    asyncio.run(scenario())
    assert clusters == undisturbed()[:3]
    assert generator.closed == ["s"]


def test_generation_waits_for_a_reader_that_pauses() -> None:
    generator = ChainGenerator()
    gate = asyncio.Event()
    made_while_paused: list[int] = []

    async def deliver(cluster: bytes) -> None:
        if not gate.is_set():
            for _ in range(200):
                await asyncio.sleep(0)
            made_while_paused.append(len(generator.calls))
            gate.set()

    asyncio.run(conductor(generator, TextEncoder(), seconds=30, max_waiting_clusters=2).run(deliver))
    assert made_while_paused[0] <= 1 + 2 + 1
    assert len(generator.calls) == 32


def test_a_reader_that_does_not_read_is_closed() -> None:
    generator = ChainGenerator()

    async def deliver(cluster: bytes) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        with pytest.raises(SlowClient, match=r"0\.05 s"):
            await conductor(generator, TextEncoder(), client_stall_s=0.05).run(deliver)
        assert not leftovers()

    asyncio.run(scenario())
    assert generator.closed == ["s"]


@pytest.mark.parametrize(
    ("generator", "encoder"),
    [
        (ChainGenerator(opens=False), TextEncoder()),
        (ChainGenerator(stalls={(1, 0)}), TextEncoder()),
        (ChainGenerator(chunk_s=0.015), TextEncoder()),
        (ChainGenerator(), TextEncoder(pause_s=10)),
    ],
    ids=["opening", "generating", "between chunks", "encoding"],
)
def test_cancelling_leaves_nothing_running(generator: ChainGenerator, encoder: TextEncoder) -> None:
    async def scenario() -> None:
        task = asyncio.create_task(played(conductor(generator, encoder)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not leftovers()

    asyncio.run(scenario())
    assert generator.closed == ["s"] * len(generator.opened)
    assert len(generator.opened) <= 1


def test_live_chunks_carry_the_playout_time_they_have_left() -> None:
    generator = ChainGenerator()
    asyncio.run(played(conductor(generator, TextEncoder(), max_waiting_clusters=1)))
    assert generator.slacks[0] == 0.0
    assert generator.slacks[-1] == pytest.approx(4.8)


def test_batch_chunks_are_in_no_hurry() -> None:
    generator = ChainGenerator()
    asyncio.run(played(conductor(generator, TextEncoder(), live=False)))
    assert generator.slacks == [None] * 6
