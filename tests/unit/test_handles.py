"""Calls that are made again until they are answered, and what their failures mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectRefStreamEndOfStreamError, RayTaskError, TaskCancelledError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from serve_app.deployments.handles import ServeGeneratorSession, answered, call_until_answered, ray_errors
from serve_app.errors import ReplicaLost, Unavailable

ATTEMPT_S = 0.02
FOREVER_S = 60.0


class Call:
    """A deployment's response: an answer after ``takes_s``, or an error."""

    def __init__(self, takes_s: float, error: BaseException | None = None) -> None:
        self.cancelled = False
        self._takes_s = takes_s
        self._error = error

    def __await__(self) -> Generator[Any, None, str]:
        yield from asyncio.sleep(self._takes_s).__await__()
        if self._error is not None:
            raise self._error
        return "rows"

    def cancel(self) -> None:
        self.cancelled = True


def made_by(calls: list[Call]) -> Callable[[], Call]:
    """Makes the calls one after another; no call is made while an earlier one runs on."""
    waiting = iter(calls)
    running: list[Call] = []

    def call() -> Call:
        assert all(earlier.cancelled or earlier._error for earlier in running)
        running.append(next(waiting))
        return running[-1]

    return call


def answer(calls: list[Call], patience_s: float = 10.0) -> str:
    return asyncio.run(call_until_answered(made_by(calls), ATTEMPT_S, patience_s, "AudioEncoder"))


def test_a_silent_call_is_cancelled_and_made_again() -> None:
    calls = [Call(FOREVER_S), Call(0)]
    assert answer(calls) == "rows"
    assert [call.cancelled for call in calls] == [True, False]


def test_a_lost_call_is_made_again() -> None:
    assert answer([Call(0, ReplicaLost("gone")), Call(0)]) == "rows"


CANCELLED_ELSEWHERE = [
    asyncio.CancelledError(),
    TaskCancelledError(),
    RequestCancelledError("request"),
    ObjectRefStreamEndOfStreamError(),
    RayTaskError("rows", "", TaskCancelledError()),
]
cancelled_elsewhere = pytest.mark.parametrize(
    "error", CANCELLED_ELSEWHERE, ids=lambda error: type(error).__name__
)


@cancelled_elsewhere
def test_a_call_that_was_cancelled_elsewhere_is_lost(error: BaseException) -> None:
    async def work() -> None:
        with ray_errors():
            await answered(Call(0, error))

    with pytest.raises(ReplicaLost):
        asyncio.run(work())


@cancelled_elsewhere
def test_a_call_that_was_cancelled_elsewhere_is_made_again(error: BaseException) -> None:
    assert answer([Call(0, error), Call(0)]) == "rows"


UNAVAILABLE = DeploymentUnavailableError(DeploymentID("Encoder", "app"))
NOBODY_THERE = [
    UNAVAILABLE,
    ReplicaUnavailableError("replica"),
    RayTaskError("rows", "", UNAVAILABLE),
    RayTaskError("rows", "", UNAVAILABLE).as_instanceof_cause(),
]


@pytest.mark.parametrize("error", NOBODY_THERE, ids=lambda error: type(error).__name__)
def test_a_call_nobody_is_there_for_is_lost_and_made_again(error: Exception) -> None:
    with pytest.raises(ReplicaLost, match="Unavailable"), ray_errors():
        raise error
    assert answer([Call(0, error), Call(0)]) == "rows"


def test_a_call_refused_for_its_queue_is_not_lost() -> None:
    with pytest.raises(BackPressureError), ray_errors():
        raise BackPressureError(1, 1)


def test_closing_says_which_opening_it_means() -> None:
    told: list[tuple[str, int]] = []

    def remote(*given: Any) -> Call:
        told.append(given)
        return Call(0)

    handle = SimpleNamespace(close=SimpleNamespace(remote=remote))
    asyncio.run(ServeGeneratorSession(handle, "s", 3).close())
    assert told == [("s", 3)]


def test_a_cancelled_caller_cancels_its_call_and_ends() -> None:
    calls = [Call(FOREVER_S), Call(0)]

    async def work() -> None:
        task = asyncio.create_task(call_until_answered(made_by(calls), FOREVER_S, FOREVER_S, "AudioEncoder"))
        await asyncio.sleep(ATTEMPT_S)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(work())
    assert [call.cancelled for call in calls] == [True, False]


def test_what_is_slow_gets_its_time() -> None:
    calls = [Call(8 * ATTEMPT_S) for _ in range(10)]
    assert answer(calls) == "rows"
    assert sum(call.cancelled for call in calls) <= 4


def test_patience_ends() -> None:
    calls = [Call(FOREVER_S) for _ in range(10)]
    with pytest.raises(Unavailable, match="AudioEncoder"):
        answer(calls, patience_s=5 * ATTEMPT_S)
    assert [call.cancelled for call in calls[:2]] == [True, True]


def test_an_error_of_the_call_itself_is_raised() -> None:
    with pytest.raises(ValueError, match="planted"):
        answer([Call(0, ValueError("planted"))])
