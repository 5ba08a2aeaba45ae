"""Where a new session goes: the replica with the most room, by what replicas report."""

from __future__ import annotations

import pytest

from serve_app.deployments.router import any_but, free_places, pinned

REPORT = {"streams": 0, "batch": 0, "places": 3, "capacity": 6}


@pytest.mark.parametrize(
    ("report", "free"),
    [
        (REPORT, 3),
        (REPORT | {"streams": 2}, 1),
        (REPORT | {"streams": 2, "batch": 3}, 1),
        (REPORT | {"streams": 1, "batch": 5}, 0),
        (REPORT | {"streams": 5}, -2),
        ({}, 0),
    ],
)
def test_free_places_are_those_in_real_time_and_in_the_session_table(report: dict, free: int) -> None:
    assert free_places(report) == free


def test_wishes_name_a_replica_or_those_that_were_full() -> None:
    assert pinned("r1") != any_but({"r1"})
    assert any_but({"b", "a"}) == any_but(["a", "b"])
    assert any_but(()) == ""
