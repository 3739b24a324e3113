"""The longest idle connection is found, and the price of finding it is bounded."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hardserve.edge.idle import BATCH, RESCAN_S, IdleFinder

START = 1000.0


class Item:
    """Says since when it is idle."""

    def __init__(self, since: float | None) -> None:
        self.idle_since = since

    def __repr__(self) -> str:
        return f"<Item {self.idle_since}>"


class Watched(set[Item]):
    """A set that counts how many of it were looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Item]:
        for item in super().__iter__():
            self.looks += 1
            yield item


def test_none_is_found_where_there_is_none() -> None:
    assert IdleFinder[Item](Watched()).take(START) is None
    assert IdleFinder(Watched([Item(None)])).take(START) is None


def test_the_longest_idle_goes_first() -> None:
    items = Watched(Item(since) for since in (5.0, 1.0, None, 4.0, 2.0))
    finder = IdleFinder(items)
    found = []
    while (item := finder.take(START)) is not None:
        found.append(item.idle_since)
        items.discard(item)
    assert found == [1.0, 2.0, 4.0, 5.0]


def test_one_that_was_used_meanwhile_is_left_out() -> None:
    used, busy, other = Item(1.0), Item(2.0), Item(3.0)
    finder = IdleFinder(Watched([used, busy, other, Item(0.5)]))
    first = finder.take(START)
    assert first is not None
    first.idle_since = None
    used.idle_since = START - 1
    busy.idle_since = None
    assert finder.take(START) is other
    other.idle_since = None
    assert finder.take(START) is used, "it is idle again, and of all the others none is"


def test_many_are_found_in_order_whatever_the_batches() -> None:
    items = Watched(Item(float(number * 7919 % 1000)) for number in range(1000))
    finder = IdleFinder(items)
    found = []
    for _ in range(1000):
        item = finder.take(START)
        assert item is not None
        found.append(item.idle_since)
        items.discard(item)
    assert found == sorted(float(number) for number in range(1000))
    assert finder.take(START) is None


def test_one_that_is_found_costs_a_bounded_number_of_looks() -> None:
    items = Watched(Item(float(number)) for number in range(20_000))
    finder = IdleFinder(items)
    for _ in range(3000):
        item = finder.take(START)
        assert item is not None
        items.discard(item)
        newcomer = Item(START)  # as at the cap: one goes, one comes
        items.add(newcomer)
    assert items.looks <= 20_000 + 3000 * (BATCH + 1)


def test_a_flood_while_none_is_idle_costs_a_scan_in_a_quarter_of_a_second() -> None:
    items = Watched(Item(None) for _ in range(1000))
    finder = IdleFinder(items)
    for tick in range(1000):
        assert finder.take(START + tick / 1000) is None
    assert items.looks == 4 * 1000


def test_what_was_found_pays_for_one_scan_only() -> None:
    items = Watched(Item(START if number < BATCH else None) for number in range(1000))
    finder = IdleFinder(items)
    for _ in range(BATCH):
        item = finder.take(START)
        assert item is not None
        item.idle_since = None
    for _ in range(100):
        assert finder.take(START) is None
    assert items.looks == 2 * 1000


def test_a_flood_while_one_at_a_time_becomes_idle_costs_no_more() -> None:
    items = Watched(Item(None) for _ in range(1000))
    finder = IdleFinder(items)
    some = list(set.copy(items))[:200]
    items.looks = 0
    for tick, item in enumerate(some):
        now = START + tick / 100
        item.idle_since = now
        if finder.take(now) is item:
            item.idle_since = None
    assert items.looks <= (2.0 / RESCAN_S + 1) * 1000 + BATCH * len(some)


def test_batches_that_go_stale_cost_no_more() -> None:
    """Every connection is used between two newcomers."""
    items = Watched(Item(START) for _ in range(1000))
    finder = IdleFinder(items)
    for tick in range(100):
        now = START + tick / 1000
        finder.take(now)
        for item in set(items):
            item.idle_since = now
        items.looks -= len(items)
    assert items.looks <= 1000


def test_where_there_are_few_each_is_found_at_once() -> None:
    """With a low cap nobody is turned away for the sake of a scan that costs nothing."""
    items = Watched(Item(None) for _ in range(BATCH))
    finder = IdleFinder(items)
    assert finder.take(START) is None
    item = next(iter(items))
    item.idle_since = START
    assert finder.take(START) is item


def test_the_wait_for_a_scan_ends() -> None:
    items = Watched(Item(None) for _ in range(1000))
    finder = IdleFinder(items)
    assert finder.take(START) is None
    item = next(iter(items))
    item.idle_since = START
    assert finder.take(START + RESCAN_S - 0.01) is None
    assert finder.take(START + RESCAN_S) is item


def test_repr_says_how_many_are_at_hand() -> None:
    items = Watched(Item(float(number)) for number in range(10))
    finder = IdleFinder(items)
    finder.take(START)
    assert repr(finder) == "<IdleFinder 9 of 10 at hand>"


class FinderMachine(RuleBasedStateMachine):
    """Against the obvious: look at every one, every time. Few enough that a scan is always allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.items = Watched()
        self.in_order: list[Item] = []
        self.finder = IdleFinder(self.items)

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 5))
    def some_connect(self, count: int) -> None:
        if len(self.items) + count <= BATCH:
            newcomers = [Item(self.now) for _ in range(count)]
            self.items.update(newcomers)
            self.in_order += newcomers

    @rule(data=st.data(), idle=st.booleans())
    def one_is_used(self, data: st.DataObject, idle: bool) -> None:
        if self.items:
            item = data.draw(st.sampled_from(self.in_order))
            self.now += 1
            item.idle_since = self.now if idle else None

    @rule()
    def one_is_closed(self) -> None:
        waiting = [item.idle_since for item in self.items if item.idle_since is not None]
        found = self.finder.take(self.now)
        if found is None:
            assert not waiting
            return
        assert found in self.items
        assert found.idle_since is not None
        assert not waiting or found.idle_since <= min(waiting)
        self.items.discard(found)
        self.in_order.remove(found)
        found.idle_since = None

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        assert len(self.finder._batch) <= BATCH


FinderMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestFinder = FinderMachine.TestCase
