"""The scheduler's policy, on made-up clocks and costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from serve_app.engine.scheduler import Job, Stage, StepCosts, StepPlan, remaining_s, schedule, slack_s

STEPS = 4


def costs(
    begin: float = 0.01, denoise: float = 0.04, decode: float = 0.05, advance: float = 0.02
) -> StepCosts:
    measured = StepCosts()
    seconds = {Stage.BEGIN: begin, Stage.DENOISE: denoise, Stage.DECODE: decode, Stage.ADVANCE: advance}
    for stage, value in seconds.items():
        measured.observe(stage, 1, value)
    return measured


def job(key: int, deadline: float | None = None, stage: Stage = Stage.BEGIN, left: int = STEPS) -> Job:
    return Job(key, key, stage, STEPS, left, asked_s=deadline or 0.0, deadline_s=deadline, period_s=0.96)


def denoising(key: int, deadline: float | None = None, left: int = STEPS) -> Job:
    return job(key, deadline, Stage.DENOISE, left)


def test_nothing_to_do() -> None:
    assert schedule(0.0, [], costs()) is None


def test_the_least_slack_first() -> None:
    jobs = [job(1, 3.0), job(2, 1.0), job(3, 2.0)]
    assert schedule(0.0, jobs, costs()) == StepPlan(Stage.BEGIN, (2,))


def test_equal_slack_in_order_of_arrival() -> None:
    assert schedule(0.0, [job(2, 1.0), job(1, 1.0)], costs()) == StepPlan(Stage.BEGIN, (1,))


@pytest.mark.parametrize("stage", [Stage.BEGIN, Stage.ADVANCE])
def test_who_is_far_ahead_counts_as_due_two_seconds_after_it_asked(stage: Stage) -> None:
    ahead = replace(job(1, 60.0, stage), asked_s=0.0)
    before, after = (replace(job(2, due, stage), asked_s=1.0) for due in (0.9, 2.5))
    assert schedule(1.0, [ahead, before], costs()) == StepPlan(stage, (2,))
    assert schedule(1.0, [ahead, after], costs()) == StepPlan(stage, (1,))
    assert slack_s(ahead, 1.0, costs()) > 50


def test_who_needs_longer_is_more_urgent() -> None:
    short, long = replace(job(1, 1.0), steps=2, steps_left=2), job(2, 1.0)
    assert schedule(0.0, [short, long], costs()) == StepPlan(Stage.BEGIN, (2,))


def test_work_nobody_waits_for_comes_last_and_in_order() -> None:
    jobs = [job(1), denoising(2), job(3, 100.0)]
    assert schedule(0.0, jobs, costs()) == StepPlan(Stage.BEGIN, (3,))
    assert schedule(0.0, jobs[:2], costs()) == StepPlan(Stage.BEGIN, (1,))


def test_a_newcomer_takes_over_between_two_steps() -> None:
    running = denoising(1, 2.0, left=3)
    assert schedule(0.0, [running], costs()) == StepPlan(Stage.DENOISE, (1,))
    assert schedule(0.0, [running, job(2, 0.5)], costs()) == StepPlan(Stage.BEGIN, (2,))


@pytest.mark.parametrize("now", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("left", [4, 3, 2, 1])
def test_equals_do_not_take_turns(now: float, left: int) -> None:
    """By the slack of the moment the one not yet begun would overtake with every step made."""
    jobs = [denoising(1, 1.0, left=left), denoising(2, 1.0)]
    assert schedule(now, jobs, costs()) == StepPlan(Stage.DENOISE, (1,))


def test_advancing_is_due_with_the_next_chunk() -> None:
    advancing = job(1, 1.0, Stage.ADVANCE, left=0)
    assert schedule(0.0, [advancing, job(2, 1.5)], costs()) == StepPlan(Stage.BEGIN, (2,))
    assert schedule(0.0, [advancing, job(2, 3.0)], costs()) == StepPlan(Stage.ADVANCE, (1,))
    assert slack_s(advancing, 0.0, costs()) == pytest.approx(1.0 + 0.96 - 0.02 - 0.22)


def test_rows_at_different_steps_go_together_in_order_of_urgency() -> None:
    jobs = [denoising(1, 3.0, left=1), denoising(2, 1.0, left=4), denoising(3, 2.0, left=2)]
    assert schedule(0.0, jobs, costs(), max_rows=4) == StepPlan(Stage.DENOISE, (2, 3, 1))
    assert schedule(0.0, jobs, costs(), max_rows=2) == StepPlan(Stage.DENOISE, (2, 3))


def test_only_denoising_is_batched() -> None:
    jobs = [job(1, 1.0, Stage.DECODE, left=0), job(2, 1.0, Stage.DECODE, left=0), denoising(3, 2.0)]
    assert schedule(0.0, jobs, costs(), max_rows=4) == StepPlan(Stage.DECODE, (1,))


def test_who_is_to_join_is_begun_first() -> None:
    jobs = [denoising(1, 1.0, left=2), job(2, 2.0), denoising(3, 3.0)]
    assert schedule(0.0, jobs, costs(), max_rows=3) == StepPlan(Stage.BEGIN, (2,))
    assert schedule(0.0, jobs, costs(), max_rows=1) == StepPlan(Stage.DENOISE, (1,))
    advancing = job(2, 2.0, Stage.ADVANCE, left=0)
    assert schedule(0.0, [denoising(1, 1.0), advancing], costs(), max_rows=2) == StepPlan(Stage.ADVANCE, (2,))
    full = [denoising(1, 1.0), denoising(2, 2.0), job(3, 3.0)]
    assert schedule(0.0, full, costs(), max_rows=2) == StepPlan(Stage.DENOISE, (1, 2))


def test_batch_work_fills_rows_only_where_nobody_gets_late() -> None:
    filler = denoising(2)
    needed = 4 * 0.04 + 0.05
    roomy, tight = needed + 4.1 * 0.04, needed + 3.9 * 0.04
    measured = costs()
    assert schedule(0.0, [denoising(1, roomy), filler], measured, max_rows=2).keys == (1, 2)
    assert schedule(0.0, [denoising(1, tight), filler], measured, max_rows=2).keys == (1,)
    measured.observe(Stage.DENOISE, 2, 0.05)
    assert schedule(0.0, [denoising(1, tight), filler], measured, max_rows=2).keys == (1, 2)
    assert schedule(0.0, [denoising(1), filler], measured, max_rows=2).keys == (1, 2)


def test_urgent_rows_join_even_late() -> None:
    jobs = [denoising(1, 0.0), denoising(2, 0.0)]
    assert schedule(9.0, jobs, costs(), max_rows=2).keys == (1, 2)


def test_remaining_work() -> None:
    measured = costs()
    assert remaining_s(job(1), measured) == pytest.approx(0.01 + 4 * 0.04 + 0.05)
    assert remaining_s(denoising(1, left=2), measured) == pytest.approx(2 * 0.04 + 0.05)
    assert remaining_s(job(1, None, Stage.DECODE, left=0), measured) == pytest.approx(0.05)
    assert slack_s(job(1), 0.0, measured) == math.inf
    assert slack_s(denoising(1, 1.0, left=2), 0.5, measured) == pytest.approx(0.5 - 0.13)


def test_costs_follow_what_is_measured() -> None:
    measured = StepCosts(weight=0.5)
    assert measured.seconds(Stage.DENOISE) == 0.0
    measured.observe(Stage.DENOISE, 1, 0.1)
    assert measured.seconds(Stage.DENOISE) == pytest.approx(0.1)
    measured.observe(Stage.DENOISE, 1, 0.2)
    assert measured.seconds(Stage.DENOISE) == pytest.approx(0.15)
    assert measured.seconds(Stage.DENOISE, 3) == pytest.approx(0.45)
    measured.observe(Stage.DENOISE, 4, 0.2)
    assert measured.seconds(Stage.DENOISE, 3) == pytest.approx(0.15)


PERIOD = 0.96


def simulate(max_rows: int, sessions: int, step: float, chunks: int = 20) -> float:
    """Play live sessions whose speech arrives in turn, each chunk due a period after its speech; every
    operation takes ``step``. The worst lateness of any chunk in seconds."""
    measured = costs(begin=step, denoise=step, decode=step, advance=step)
    measured.observe(Stage.DENOISE, max_rows, step)
    now, worst = 0.0, -math.inf
    released = {key: key / sessions * PERIOD for key in range(sessions)}
    jobs = {key: job(key, at + PERIOD) for key, at in released.items()}
    while jobs:
        plan = schedule(now, [jobs[key] for key, at in released.items() if at <= now], measured, max_rows)
        now += step if plan else 0.001
        for key in plan.keys if plan else ():
            if jobs[key].stage is Stage.DECODE:
                worst = max(worst, now - (jobs[key].deadline_s or 0.0))
            if jobs[key].stage is not Stage.ADVANCE:
                jobs[key] = after(jobs[key])
            elif (at := released.pop(key) + PERIOD) < chunks * PERIOD:
                released[key], jobs[key] = at, job(key, at + PERIOD)
            else:
                del jobs[key]
    return worst


def after(one: Job) -> Job:
    """The job with its operation done."""
    left = one.steps_left - (one.stage is Stage.DENOISE)
    following = {Stage.BEGIN: Stage.DENOISE, Stage.DECODE: Stage.ADVANCE}
    last = Stage.DENOISE if left else Stage.DECODE
    return replace(one, steps_left=left, stage=following.get(one.stage, last))


@pytest.mark.parametrize("sessions", [1, 2, 3])
def test_no_chunk_is_late_while_the_work_fits(sessions: int) -> None:
    """A chunk is seven operations of 42 ms and lasts 0.96 s: three sessions fill 92 %."""
    assert simulate(1, sessions, step=0.042) <= 0.0


def test_more_rows_hold_more_sessions() -> None:
    assert simulate(1, 4, step=0.042) > 1.0
    assert simulate(6, 6, step=0.042) <= 0.0
