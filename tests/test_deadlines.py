"""The wheel finds what is late, in time, and looks at nothing else."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hardserve.edge.deadlines import SLOT_S, Deadlines

START = 1000.0


class Item:
    """Has a deadline, and counts how often it is asked for it."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.slot: int | None = None
        self.asked = 0

    def __repr__(self) -> str:
        return f"<Item {self.at} slot={self.slot}>"

    def deadline(self) -> float:
        self.asked += 1
        return self.at


def filed(deadlines: Deadlines) -> int:
    return sum(map(len, deadlines._slots.values()))


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.25, 0.5, 10.0, 3600.0, 0.3, 7.77])
def test_an_item_is_reported_after_its_deadline_and_within_one_slot(after_s: float) -> None:
    deadlines, item = Deadlines(), Item(START + after_s)
    deadlines.watch(item, START)
    assert deadlines.due(math.nextafter(item.at, -math.inf)) == []
    assert deadlines.due(item.at + SLOT_S) == [item]
    assert item.slot is None
    assert deadlines.due(item.at + 100) == []


@pytest.mark.parametrize("turn_s", [0.01, 0.25, 0.4, 3.0])
def test_turning_when_told_to_reports_everything_in_time(turn_s: float) -> None:
    """As the loop does: wait as long as the wheel allows, or a little less because something else happened."""
    deadlines = Deadlines()
    items = [Item(START + number * 0.037) for number in range(100)]
    for item in items:
        deadlines.watch(item, START)
    now, seen = START, []
    while (wait_s := deadlines.wait_s(now)) is not None:
        now += min(wait_s, turn_s)
        for item in deadlines.due(now):
            assert item.at <= now <= item.at + SLOT_S
            seen.append(item)
    assert len(seen) == len(items)


def test_nothing_is_awaited_when_nothing_is_watched() -> None:
    assert Deadlines().wait_s(START) is None


def test_a_turn_that_comes_late_is_not_told_to_wait_a_negative_time() -> None:
    deadlines = Deadlines()
    deadlines.watch(Item(START), START)
    assert deadlines.wait_s(START + 5) == 0.0


def test_moving_a_deadline_later_costs_nothing() -> None:
    deadlines, item = Deadlines(), Item(START + 10)
    deadlines.watch(item, START)
    item.asked = 0
    item.at = START + 60
    assert deadlines.due(START + 10) == []
    assert item.asked == 0, "nobody looked before its slot came up"
    assert deadlines.due(START + 10.25) == []
    assert item.asked <= 2
    assert deadlines.due(START + 60) == []
    assert deadlines.due(START + 60.25) == [item]


def test_a_deadline_that_moves_all_the_time_is_looked_at_once_in_its_length() -> None:
    """A busy keep-alive connection: a thousand requests in a second."""
    deadlines, item = Deadlines(), Item(START + 60)
    deadlines.watch(item, START)
    for request in range(1000):
        now = START + request / 1000
        item.at = now + 60
        deadlines.watch(item, now)
        assert deadlines.due(now) == []
    assert len(deadlines._heap) == 1


def test_moving_a_deadline_earlier_needs_a_watch_and_gets_its_time() -> None:
    deadlines, item = Deadlines(), Item(START + 60)
    deadlines.watch(item, START)
    item.at = START + 1
    deadlines.watch(item, START)
    assert filed(deadlines) == 1
    assert deadlines.due(START + 1.25) == [item]
    assert deadlines.due(START + 100) == []


def test_a_busy_item_is_looked_at_in_every_slot() -> None:
    deadlines, item = Deadlines(), Item(math.inf)
    deadlines.watch(item, START)
    for turn in range(1, 20):
        assert deadlines.due(START + turn * SLOT_S) == []
        assert item.slot is not None
        wait_s = deadlines.wait_s(START + turn * SLOT_S)
        assert wait_s is not None
        assert 0 < wait_s <= SLOT_S
    # Another thread gives it a deadline and tells nobody.
    item.at = START + 20 * SLOT_S
    assert deadlines.due(START + 21 * SLOT_S) == [item]


def test_a_busy_item_that_becomes_idle_for_long_is_left_alone_again() -> None:
    deadlines, item = Deadlines(), Item(math.inf)
    deadlines.watch(item, START)
    item.at = START + 60
    deadlines.due(START + SLOT_S)
    assert deadlines.wait_s(START + SLOT_S) == pytest.approx(60 - SLOT_S, abs=SLOT_S)


def test_a_forgotten_item_is_not_reported_and_not_kept_alive() -> None:
    deadlines, item = Deadlines(), Item(START + 1)
    deadlines.watch(item, START)
    deadlines.forget(item)
    deadlines.forget(item)
    assert item.slot is None
    gone = weakref.ref(item)
    del item
    gc.collect()
    assert gone() is None
    assert deadlines.due(START + 10) == []


def test_a_reported_item_is_not_kept_alive() -> None:
    deadlines, item = Deadlines(), Item(START + 1)
    deadlines.watch(item, START)
    assert deadlines.due(START + 2) == [item]
    gone = weakref.ref(item)
    del item
    gc.collect()
    assert gone() is None


def test_a_forgotten_item_can_be_watched_again() -> None:
    deadlines, item = Deadlines(), Item(START + 1)
    deadlines.watch(item, START)
    deadlines.forget(item)
    deadlines.watch(item, START)
    assert deadlines.due(START + 1.25) == [item]


def test_slots_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(1000):
        item = Item(START + number / 10)
        deadlines.watch(item, START)
        deadlines.forget(item)
    deadlines.due(START + 200)
    assert deadlines._slots == {}
    assert deadlines._heap == []


class WheelMachine(RuleBasedStateMachine):
    """The wheel against the obvious: look at every item at every turn."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.deadlines = Deadlines()
        self.items: list[Item] = []

    @rule(after_s=st.one_of(st.floats(0, 30), st.just(math.inf)))
    def watch_a_new_item(self, after_s: float) -> None:
        item = Item(self.now + after_s)
        self.items.append(item)
        self.deadlines.watch(item, self.now)

    @precondition(lambda self: self.items)
    @rule(data=st.data(), by_s=st.floats(0, 30))
    def move_later_without_telling(self, data: st.DataObject, by_s: float) -> None:
        data.draw(st.sampled_from(self.items)).at += by_s

    @precondition(lambda self: any(item.at == math.inf for item in self.items))
    @rule(data=st.data(), after_s=st.floats(0, 30))
    def hand_back_without_telling(self, data: st.DataObject, after_s: float) -> None:
        item = data.draw(st.sampled_from([item for item in self.items if item.at == math.inf]))
        item.at = self.now + after_s

    @precondition(lambda self: self.items)
    @rule(data=st.data(), after_s=st.one_of(st.floats(0, 30), st.just(math.inf)))
    def move_anywhere_and_watch(self, data: st.DataObject, after_s: float) -> None:
        item = data.draw(st.sampled_from(self.items))
        item.at = self.now + after_s
        self.deadlines.watch(item, self.now)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.items))
        self.items.remove(item)
        self.deadlines.forget(item)

    @rule(seconds=st.floats(0, 2))
    def turn(self, seconds: float) -> None:
        wait_s = self.deadlines.wait_s(self.now)
        self.now += seconds if wait_s is None else min(seconds, wait_s)  # no turn is later than it asked for
        late = self.deadlines.due(self.now)
        assert len(set(late)) == len(late)
        for item in late:
            assert item.at <= self.now, "reported early"
            self.items.remove(item)

    @invariant()
    def nobody_is_overdue_by_more_than_a_slot(self) -> None:
        assert all(item.at + SLOT_S >= self.now - 1e-9 for item in self.items)

    @invariant()
    def everybody_is_filed_once(self) -> None:
        assert filed(self.deadlines) == len(self.items)
        assert all(item in self.deadlines._slots[item.slot] for item in self.items if item.slot is not None)
        assert all(item.slot is not None for item in self.items)


WheelMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestWheel = WheelMachine.TestCase
