"""Warming up ends when times agree, at the latest after a bounded number of rounds, and says so then."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from serve_app.engine.warm_up import MAX_ROUNDS, until_steady

from unit.engines import engine


class Stopwatch:
    """A clock that each chunk moves on by its time."""

    def __init__(self, chunks_s: Iterator[float]) -> None:
        self.time_s = 0.0
        self._chunks_s = chunks_s

    def now(self) -> float:
        return self.time_s

    def chunk(self) -> None:
        self.time_s += next(self._chunks_s)


def seconds(*chunks_s: float) -> list[float]:
    watch = Stopwatch(iter(chunks_s))
    return until_steady(watch.chunk, watch.now)


@pytest.mark.parametrize(
    ("chunks_s", "made"),
    [
        ((1.0, 1.0), 2),
        ((30.0, 1.0, 1.05), 3),
        ((30.0, 2.0, 1.2, 1.0, 1.09), 5),
        ((1.0, 2.0, 1.85), 3),
    ],
)
def test_chunks_are_made_until_two_agree(chunks_s: tuple[float, ...], made: int) -> None:
    taken = seconds(*chunks_s, 99.0)
    assert taken == pytest.approx(chunks_s[:made])


def test_it_is_bounded_and_says_that_times_never_agreed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="serve_app"):
        assert len(seconds(*[1.0, 2.0] * MAX_ROUNDS)) == MAX_ROUNDS
    assert "not steady after 12 rounds of warming up: 1000, 2000," in caplog.text


def test_an_engine_is_measured_alone_after_every_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = engine("lite", max_rows=3)
    step, made = machine.step, []

    def watched(states, *rest):
        made.append((len(states), states[0].index))
        return step(states, *rest)

    monkeypatch.setattr(machine, "step", watched)
    assert machine.warm_up() > 0
    assert made[:3] == [(3, 0), (2, 0), (1, 0)], "first whatever has to be compiled"
    assert made[3:5] == [(3, 1), (3, 2)], "then chunks that carry motion frames"
    assert [rows for rows, _ in made[3:]] == sorted([rows for rows, _ in made[3:]], reverse=True)
    assert made[-2][0] == made[-1][0] == 1
