"""What both kinds of thread share that has no test of its own elsewhere."""

from __future__ import annotations

from hardserve.protocol import Seldom


def test_what_could_be_logged_all_the_time_is_once_in_so_many_seconds() -> None:
    seldom = Seldom(60.0)
    assert [now for now in (5.0, 5.0, 6.0, 64.9, 65.0, 66.0, 124.9, 125.0) if seldom.is_due(now)] == [5.0, 65.0, 125.0]


def test_none_of_it_is_held_back_without_an_interval() -> None:
    assert [Seldom(0.0).is_due(1.0) for _ in range(3)] == [True, True, True]
