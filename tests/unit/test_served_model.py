"""A model's presence at the ingress: loading, readiness, sleep and waking up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve_app.config import Limits
from serve_app.deployments import presence
from serve_app.deployments.presence import Presence
from serve_app.deployments.served_model import ServedModel
from serve_app.engine.protocols import Clock
from serve_app.errors import Unavailable
from serve_app.types import Geometry, ModelCard

CARD = ModelCard("lite", Geometry(32, 32, 33, 9), 4, (4,), True, "")


class Deployment:
    """A deployment without Ray: ``start`` gives it a replica, which answers who waits."""

    def __init__(self, clock: Clock, answer: object) -> None:
        self.replicas = 0
        self.asked = 0
        self.failures: list[BaseException] = []
        self.presence: Presence[Any] = Presence("d", self._ask, lambda: self.replicas, clock)
        self._answer = answer
        self._up = asyncio.Event()

    async def _ask(self) -> object:
        self.asked += 1
        await self._up.wait()
        if self.failures:
            raise self.failures.pop()
        return self._answer

    def start(self) -> None:
        self.replicas = 1
        self._up.set()

    def stop(self) -> None:
        self.replicas = 0
        self._up.clear()


class Fleet:
    """A model's deployments, and the time."""

    def __init__(self, may_sleep: bool = True, wake_wait_s: float = 0.02) -> None:
        self.time = 0.0
        self.generator = Deployment(self, CARD)
        self.audio = Deployment(self, None)
        self.video = Deployment(self, None)
        self.all = self.generator, self.audio, self.video
        encoders = self.audio.presence, self.video.presence
        limits = Limits(wake_wait_s=wake_wait_s)
        self.model = ServedModel("lite", self.generator.presence, encoders, may_sleep, limits)

    @property
    def asked(self) -> list[int]:
        return [each.asked for each in self.all]

    def now(self) -> float:
        return self.time

    def wake(self) -> list[asyncio.Task[None]]:
        return [each.presence.wake() for each in self.all]

    def start(self, after_s: float = 0.0) -> None:
        self.time += after_s
        for each in self.all:
            each.start()

    def stop(self) -> None:
        for each in self.all:
            each.stop()

    async def has_slept(self, start_s: float) -> None:
        """Loaded once, taking that long, and asleep again."""
        waking = self.wake()
        await asyncio.sleep(0)
        self.start(start_s)
        await asyncio.gather(*waking)
        self.stop()

    async def aclose(self) -> None:
        await asyncio.gather(*(each.presence.aclose() for each in self.all))


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_not_ready_before_a_replica_has_answered() -> None:
    async def work() -> None:
        fleet = Fleet(may_sleep=False)
        waking = fleet.wake()
        assert not fleet.model.ready
        with pytest.raises(Unavailable) as error:
            await fleet.model.awake()
        assert error.value.code == "not_ready"
        fleet.start()
        await asyncio.gather(*waking)
        assert fleet.model.ready
        assert await fleet.model.awake() == CARD

    run(work)


def test_ready_follows_the_replicas_of_a_model_that_must_be_awake() -> None:
    async def work() -> None:
        fleet = Fleet(may_sleep=False)
        await fleet.has_slept(start_s=5)
        assert not fleet.model.ready
        assert await fleet.model.awake() == CARD
        fleet.start()
        assert fleet.model.ready
        assert fleet.asked == [1, 1, 1]
        fleet.audio.stop()
        assert not fleet.model.ready

    run(work)


def test_a_sleeping_model_is_ready_and_woken_by_the_first_request() -> None:
    async def work() -> None:
        fleet = Fleet(wake_wait_s=30)
        await fleet.has_slept(start_s=5)
        assert fleet.model.ready and fleet.asked == [1, 1, 1]
        requests = [asyncio.create_task(fleet.model.awake()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(request.done() for request in requests)
        fleet.start(after_s=7)
        assert await asyncio.gather(*requests) == [CARD] * 3
        assert fleet.asked == [2, 2, 2]
        assert [each.presence.start_s for each in fleet.all] == [7, 7, 7]

    run(work)


def test_one_that_sleeps_alone_is_waited_for() -> None:
    """Its own start is what is told, and neither what is awake is asked again nor its start forgotten."""

    async def work() -> None:
        fleet = Fleet(wake_wait_s=0)
        waking = fleet.wake()
        await asyncio.sleep(0)
        fleet.time += 20
        fleet.audio.start()
        await fleet.audio.presence.wake()
        fleet.start(after_s=70)
        await asyncio.gather(*waking)
        fleet.audio.stop()
        assert fleet.model.ready
        with pytest.raises(Unavailable) as error:
            await fleet.model.awake()
        await asyncio.sleep(0)
        assert (error.value.retry_after_s, fleet.asked) == (20, [1, 2, 1])
        fleet.stop()
        fleet.time += 5
        with pytest.raises(Unavailable) as error:
            await fleet.model.awake()
        await asyncio.sleep(0)
        assert (error.value.retry_after_s, fleet.asked) == (90, [2, 2, 2])
        await fleet.aclose()

    run(work)


@pytest.mark.parametrize(("passed_s", "left_s"), [(0, 90), (60, 30), (89.5, 1), (200, 1)])
def test_a_long_wait_is_told_instead_of_waited(passed_s: float, left_s: int) -> None:
    async def work() -> None:
        fleet = Fleet(wake_wait_s=0.01)
        await fleet.has_slept(start_s=90)
        fleet.wake()
        fleet.time += passed_s
        with pytest.raises(Unavailable) as error:
            await fleet.model.awake()
        assert (error.value.code, error.value.retry_after_s) == ("waking_up", left_s)
        await fleet.aclose()

    run(work)


def test_a_load_beside_living_replicas_says_nothing_of_a_start() -> None:
    async def work() -> None:
        fleet = Fleet(wake_wait_s=0.01)
        fleet.start()
        await asyncio.gather(*fleet.wake())
        assert fleet.generator.presence.start_s is None
        fleet.stop()
        with pytest.raises(Unavailable) as error:
            await fleet.model.awake()
        assert error.value.retry_after_s is None
        await fleet.aclose()

    run(work)


def test_a_replica_that_fails_to_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "RETRY_PAUSE_S", 0.0)

    async def work() -> None:
        fleet = Fleet()
        fleet.generator.failures = [RuntimeError("planted"), asyncio.CancelledError()]
        fleet.start()
        await asyncio.gather(*fleet.wake())
        assert fleet.model.card == CARD and fleet.asked == [3, 1, 1]

    run(work)
