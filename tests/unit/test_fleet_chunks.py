"""The fleet simulation chunk by chunk: the real scheduler on made-up GPUs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.simulation.chunks import ChunkFleet, Event, Played, What
from benchmarks.simulation.costs import GPU_TYPES, PERIOD_S
from benchmarks.simulation.fleet import way_back_s
from benchmarks.simulation.held import closed_population, exponential, profile, streams_held

GPU = GPU_TYPES["4090"]
PREROLL_S = 0.48


def opened(stream: int, time_s: float, chunks: int = 20, gpu: int = 0) -> Event:
    return Event(time_s, What.OPEN, stream, gpu, chunks)


def play(*events: Event) -> list[Played]:
    return ChunkFleet(GPU).run(events)


def test_a_stream_alone_is_never_late_and_starts_with_its_first_chunk() -> None:
    (played,) = play(opened(1, 5.0))
    assert len(played.overdue_s) == 20
    assert max(played.overdue_s) <= 1e-9
    assert played.first_s == pytest.approx(GPU.frames_s)


def test_what_a_chunk_costs() -> None:
    """A batch of ``b`` takes ``fixed + row * b``, as the table of GPUs has it."""
    for gpu in GPU_TYPES.values():
        costs = gpu.step_costs()
        assert costs.complete
        share_s = costs.whole_chunk(4, gpu.max_rows)
        assert share_s * gpu.max_rows == pytest.approx(gpu.fixed_s + gpu.row_s * gpu.max_rows)


def test_the_engine_never_idles_while_a_chunk_waits() -> None:
    """Five streams of a GPU for 3.8: it works from the first chunk's speech on without a pause."""
    lengths = [100, 120, 90, 110, 100]
    played = play(*(opened(stream, 0.0, chunks) for stream, chunks in enumerate(lengths)))
    ends_s = [one.first_s + PERIOD_S * len(one.overdue_s) + one.overdue_s[-1] for one in played]
    work_s = sum(lengths) * GPU.chunk_s
    final_advances_s = len(lengths) * (GPU.chunk_s - GPU.frames_s)
    assert max(ends_s) == pytest.approx(PERIOD_S + work_s - final_advances_s, abs=GPU.chunk_s)


@pytest.mark.parametrize(("name", "count"), [("4090", 3), ("4090-exact", 4), ("4090-fp8", 6)])
def test_streams_held_with_half_a_chunk_of_preroll(name: str, count: int) -> None:
    """As the vendor says of the 4090, and as an independent simulation found for the others."""
    assert streams_held(GPU_TYPES[name], [PREROLL_S], 600.0) == [count]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("h200", 20), ("h200-fp8", 27)])
def test_streams_held_where_rows_share_steps(name: str, count: int) -> None:
    """As that simulation found, and no more; without pre-roll not even three."""
    most, over, few = (profile(GPU_TYPES[name], streams, 300.0) for streams in (count, count + 1, 3))
    assert np.quantile(most.lateness_s(PREROLL_S), 0.99) == 0.0
    assert np.quantile(over.lateness_s(PREROLL_S), 0.99) > 0.1
    assert np.quantile(few.lateness_s(0.0), 0.99) > 0.0


def test_preroll_is_what_lets_streams_share_a_gpu() -> None:
    """Without any, two streams whose chunks coincide are late; with 0.2 s two are as good as in time."""
    two = profile(GPU, 2, 3600.0)
    assert (two.lateness_s(0.0) > 0).mean() > 0.1
    assert (two.lateness_s(0.2) > 0).mean() < 0.03
    assert two.lateness_s(PREROLL_S).max() == 0.0
    assert two.stalled(0.0) > two.stalled(0.2) > two.stalled(PREROLL_S) == 0.0


def test_a_slower_gpu_holds_no_more() -> None:
    counts = [streams_held(replace(GPU, row_s=s), [PREROLL_S], 200.0)[0] for s in (0.2, 0.4, 0.9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1


def test_same_seed_same_history() -> None:
    one, same, other = (closed_population(3, 600.0, exponential, seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize("lost_s", [3.0, 3.1, 3.3, 3.6, 3.8])
def test_a_lost_gpu_is_caught_up_with_as_reckoned(lost_s: float) -> None:
    """Loss at any moment of a chunk: every chunk comes once, late ones as ``way_back_s`` says, but for one
    that is made again though it was delivered."""
    resumed_s = lost_s + 3.4
    move = Event(resumed_s, What.MOVE, 1, gpu=7)
    (played,) = play(opened(1, 0.0), Event(lost_s, What.LOSE, 1), move)
    assert len(played.overdue_s) == 20
    reckoned = way_back_s(GPU, 0.0, lost_s, resumed_s)
    late = [overdue for overdue in played.overdue_s if overdue > 1e-9]
    assert late[0] == pytest.approx(reckoned[0], abs=GPU.chunk_s)
    assert np.diff(late) == pytest.approx(np.full(len(late) - 1, GPU.chunk_s - PERIOD_S))
    assert len(late) == pytest.approx(len(reckoned), abs=1)
    assert played.overdue_s[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_move_takes_nothing_from_a_stream() -> None:
    """In the middle of a chunk: that is finished where it is, the next is made on the other GPU."""
    (played,) = play(opened(1, 0.0), Event(3.0, What.MOVE, 1, gpu=7))
    assert len(played.overdue_s) == 20
    assert max(played.overdue_s) <= 1e-9


def test_a_stream_given_up_plays_no_further() -> None:
    (played,) = play(opened(1, 0.0), Event(3.0, What.LOSE, 1), Event(9.0, What.GIVE_UP, 1))
    assert 0 < len(played.overdue_s) < 20
