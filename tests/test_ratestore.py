"""What the bounded store of rate limits admits, when it says to come back, what it forgets; and as a storage."""

from __future__ import annotations

import gc
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.errors import ConfigurationError
from limits.storage import storage_from_string
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from hardserve.edge.keytable import LOGGED, PLAIN, KeyTable
from hardserve.edge.limitsstorage import BoundedStorage
from hardserve.edge.ratestore import MAX_MOMENTS, MOMENTS_PER_KEY, STRATEGIES, Limit

START = 1200.0  # where windows of 60 s begin
ALICE, BOB, CAROL = "192.0.2.1", "192.0.2.2", "2001:db8::/64"
# What a float may be off by, in seconds: nobody can come that much too early on purpose.
NOTHING_S = 1e-6


def admits(storage: BoundedStorage, limit: Limit, count: int, now: float, key: str = ALICE) -> int:
    """Return how many of `count` hits at the same moment are admitted."""
    return sum(storage.hit(key, limit, 1, now) == 0.0 for _ in range(count))


def sound(storage: BoundedStorage) -> bool:
    """Look through all of a table: every key is in one ring and one chain, and found by its name."""
    table = storage._table
    linked = Counter(slot for ring in (LOGGED, PLAIN) for slot in ring_of(table, ring))
    chained = Counter(slot for first in table._chains.values() for slot in chain_of(table, first))
    named = Counter(slot for shard in table._shards for slot in shard.values())
    names = {block * 256 + index: name for block, names in enumerate(table._names) for index, name in names.items()}
    logs = [log for logs in table._logs for log in logs.values()]
    assert linked == chained == named == Counter(names.keys())
    assert all(table.find(name) == slot for slot, name in names.items())
    assert len(table) == len(names) <= storage._max_keys
    assert table.log_bytes == sum(map(len, logs)) <= storage._max_log_bytes
    assert sorted(table._dues) == sorted(table._chains)
    assert all(table.expires[slot] <= table._due[slot] for slot in names)
    return True


def ring_of(table: KeyTable, ring: int) -> Iterator[int]:
    slot = table._next[ring]
    while slot != ring:
        assert table._before[table._next[slot]] == slot
        yield slot
        slot = table._next[slot]


def chain_of(table: KeyTable, slot: int) -> Iterator[int]:
    while slot >= 0:
        yield slot
        slot = table._chain_next[slot]


# --- what is admitted: the plainest thing that does the same, in exact numbers ---


@dataclass
class FixedWindow:
    limit: Limit
    end: Fraction = Fraction(-1)
    count: int = 0

    def admits(self, cost: int, now: Fraction) -> bool:
        return (self.count if now < self.end else 0) + cost <= self.limit.amount

    def add(self, cost: int, now: Fraction) -> None:
        if now >= self.end:
            self.end, self.count = now + self.limit.period, 0
        self.count += cost


@dataclass
class MovingWindow:
    limit: Limit
    hits: list[tuple[Fraction, int]] = field(default_factory=list)

    def admits(self, cost: int, now: Fraction) -> bool:
        return sum(cost for at, cost in self.hits if now - at < self.limit.period) + cost <= self.limit.amount

    def add(self, cost: int, now: Fraction) -> None:
        self.hits.append((now, cost))


@dataclass
class SlidingWindowCounter:
    limit: Limit
    windows: Counter[int] = field(default_factory=Counter)

    def admits(self, cost: int, now: Fraction) -> bool:
        window, elapsed = divmod(now, self.limit.period)
        weighted = self.windows[window - 1] * (1 - elapsed / self.limit.period) + self.windows[window]
        return math.floor(weighted) + cost <= self.limit.amount

    def add(self, cost: int, now: Fraction) -> None:
        self.windows[now // self.limit.period] += cost


@dataclass
class Burst:
    """A bucket that leaks one every period/amount seconds and overflows above burst + 1."""

    limit: Limit
    level: Fraction = Fraction(0)
    at: Fraction = Fraction(0)

    def leaked(self, now: Fraction) -> Fraction:
        return max(Fraction(0), self.level - (now - self.at) * self.limit.amount / self.limit.period)

    def admits(self, cost: int, now: Fraction) -> bool:
        return self.leaked(now) + cost <= self.limit.burst + 1

    def add(self, cost: int, now: Fraction) -> None:
        self.level, self.at = self.leaked(now) + cost, now


Model = FixedWindow | MovingWindow | SlidingWindowCounter | Burst
MODELS: dict[str, Callable[[Limit], Model]] = {
    "fixed-window": FixedWindow,
    "moving-window": MovingWindow,
    "sliding-window-counter": SlidingWindowCounter,
    "burst": Burst,
}
assert set(MODELS) == STRATEGIES

each_strategy = pytest.mark.parametrize("strategy", sorted(MODELS))
# Sums and multiples of 1/64 s are exact, so that the boundaries are met exactly, and often.
pauses = st.one_of(
    st.just(Fraction(0)), st.integers(0, 200).map(lambda n: Fraction(n, 64)), st.integers(0, 9).map(Fraction)
)
hits = st.tuples(
    pauses, st.sampled_from([ALICE, BOB]), st.sampled_from(["hit", "hit", "hit", "wait", "add"]), st.integers(1, 5)
)


def limits_of(strategy: str) -> st.SearchStrategy[Limit]:
    burst = st.integers(0, 4) if strategy == "burst" else st.just(0)
    return st.builds(Limit, st.integers(1, 7), st.sampled_from([1, 2, 3, 7]), st.just(strategy), burst)


@each_strategy
@given(st.data())
def test_it_admits_no_more_and_no_less_than_the_model(strategy: str, data: st.DataObject) -> None:
    limit = data.draw(limits_of(strategy))
    start = data.draw(st.sampled_from([Fraction(0), Fraction(1000), Fraction(10_000_000) + Fraction(1, 64)]))
    storage, now = BoundedStorage(max_keys=10), start
    models = {key: MODELS[strategy](limit) for key in (ALICE, BOB)}
    for pause, key, action, cost in data.draw(st.lists(hits, min_size=1, max_size=40)):
        now += pause
        model = models[key]
        admitted = model.admits(cost, now)
        if action == "add":
            storage.add(key, limit, cost, float(now))
            model.add(cost, now)
            continue
        waited = getattr(storage, action)(key, limit, cost, float(now))
        assert (waited == 0.0) == admitted, (action, key, cost, float(now - start))
        if admitted and action == "hit":
            model.add(cost, now)
        if not admitted:
            at = now + Fraction(waited) if waited < math.inf else now + 1_000_000
            assert model.admits(cost, at + Fraction(NOTHING_S)) == (waited < math.inf), "and then it is"
            assert not model.admits(cost, max(now, at - Fraction(NOTHING_S))), "not before"
    assert sound(storage)


@each_strategy
@given(st.data())
def test_who_comes_back_when_told_to_is_admitted_and_not_earlier(strategy: str, data: st.DataObject) -> None:
    """At any time, however floats fall: the moment it names is one that it keeps itself to, to the last bit."""
    limit = data.draw(
        st.builds(
            Limit,
            st.integers(1, 2000),
            st.integers(1, 100_000),
            st.just(strategy),
            st.integers(0, 1000) if strategy == "burst" else st.just(0),
        )
    )
    now = data.draw(st.floats(0.0, 1e7))
    storage = BoundedStorage(max_keys=10)
    most = limit.burst + 1 if strategy == "burst" else limit.amount
    for cost, pause in data.draw(
        st.lists(st.tuples(st.integers(1, most * 2), st.floats(0.0, limit.period * 1.2)), max_size=8)
    ):
        storage.add(ALICE, limit, cost, now)
        now += pause
    cost = data.draw(st.integers(1, most))
    wait = storage.wait(ALICE, limit, cost, now)
    assert 0.0 <= wait < math.inf
    assert storage.wait(ALICE, limit, cost, now) == wait, "asking changes nothing"
    if wait > 2 * NOTHING_S:
        assert storage.wait(ALICE, limit, cost, now + wait - NOTHING_S) > 0.0
    assert storage.wait(ALICE, limit, cost, now + wait) == 0.0
    assert storage.wait(ALICE, limit, cost, now) == wait, "not even asking about the future"
    assert storage.hit(ALICE, limit, cost, now + wait) == 0.0
    assert storage.wait(ALICE, limit, most + 1, now + wait) == math.inf


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        pytest.param(Limit(10, 1, "burst"), lambda seconds: 1 + seconds * 10, id="ten a second, no burst"),
        pytest.param(Limit(3, 1, "burst", 4), lambda seconds: 5 + seconds * 3, id="thirds of a second"),
        pytest.param(Limit(7, 60, "burst", 1), lambda seconds: 2 + seconds * 7 / 60, id="seven a minute"),
        pytest.param(Limit(10, 1, "moving-window"), lambda seconds: 10 + seconds * 10, id="a moving window"),
        pytest.param(Limit(10, 1, "fixed-window"), lambda seconds: 10 + seconds * 10, id="a fixed window"),
    ],
)
def test_who_comes_back_as_early_as_possible_for_hours_gains_nothing_by_rounding(
    limit: Limit, most: Callable[[float], float]
) -> None:
    storage, now, admitted = BoundedStorage(max_keys=10), START + 0.1, 0
    while admitted < 5000:
        wait = storage.hit(ALICE, limit, 1, now)
        admitted += wait == 0.0
        now += wait
    elapsed = now - START - 0.1
    assert most(elapsed) - 1 - limit.amount <= admitted <= most(elapsed) + 1e-3


@pytest.mark.parametrize("strategy", ["fixed-window", "moving-window", "sliding-window-counter"])
def test_right_after_the_system_started_rounding_makes_nobody_come_too_early(strategy: str) -> None:
    """When less time has passed than a period, differences of floats are not exact."""
    storage, choose = BoundedStorage(), random.Random(1)
    for number in range(2000):
        key, limit = str(number), Limit(choose.randint(1, 9), choose.randint(10, 3600), strategy)
        storage.add(key, limit, choose.randint(limit.amount, 20), choose.uniform(0, 10))
        now = choose.choice([choose.uniform(10, 20), choose.uniform(0, 1.5) * limit.period + 10])
        assert storage.wait(key, limit, 1, now) >= 0.0
        assert storage.hit(key, limit, 1, now + storage.wait(key, limit, 1, now)) == 0.0


def test_a_wait_is_more_than_nothing_even_if_it_is_less_than_floats_can_tell() -> None:
    storage, limit = BoundedStorage(), Limit(14, 763, "sliding-window-counter")
    storage.add(ALICE, limit, 1, 1.689607036922915)
    storage.add(ALICE, limit, 14, 3.37921407384583)
    now = 64.06882111076874
    now += storage.wait(ALICE, limit, 1, now)
    assert storage.hit(ALICE, limit, 1, now) == 0.0


@each_strategy
def test_what_happened_earlier_may_be_told_later(strategy: str) -> None:
    """A response is counted as of its request; what has been counted in the meantime stays counted."""
    storage, limit = BoundedStorage(), Limit(4, 60, strategy, 3 if strategy == "burst" else 0)
    assert admits(storage, limit, 3, START + 130) == 3
    storage.add(ALICE, limit, 1, START)
    assert sound(storage)
    assert 0 <= admits(storage, limit, 9, START + 130) <= 1
    assert storage.wait(ALICE, limit, 1, START + 130) > 0


def test_after_a_pause_a_burst_limit_admits_the_burst_at_once_and_then_one_each_interval() -> None:
    storage, limit = BoundedStorage(), Limit(10, 1, "burst", 5)
    assert admits(storage, limit, 20, START) == 6
    assert storage.wait(ALICE, limit, 1, START) == pytest.approx(0.1)
    assert admits(storage, limit, 20, START + 0.0999) == 0
    assert admits(storage, limit, 20, START + 0.1001) == 1
    assert admits(storage, limit, 20, START + 100) == 6


def test_a_fixed_window_begins_with_the_first_hit() -> None:
    storage, limit = BoundedStorage(), Limit(3, 60, "fixed-window")
    assert admits(storage, limit, 5, START + 59) == 3
    assert storage.wait(ALICE, limit, 1, START + 60) == 59
    assert admits(storage, limit, 5, START + 118.9) == 0
    assert admits(storage, limit, 5, START + 119) == 3


def test_a_sliding_window_counts_the_window_before_by_what_is_left_of_it() -> None:
    storage, limit = BoundedStorage(), Limit(10, 60, "sliding-window-counter")
    assert admits(storage, limit, 20, START + 59) == 10
    assert admits(storage, limit, 20, START + 60) == 0
    assert admits(storage, limit, 20, START + 60.1) == 1, "less than ten are nine"
    assert admits(storage, limit, 20, START + 66.0) == 0
    assert admits(storage, limit, 20, START + 66.1) == 1
    assert admits(storage, limit, 20, START + 90.1) == 4
    assert storage.wait(ALICE, limit, 10, START + 90.1) == pytest.approx(29.9 + 60 - 10), "a sixth of six is one"
    assert storage.hit(BOB, limit, 11, START) == math.inf


def test_a_moving_window_counts_each_hit_for_just_the_period() -> None:
    storage, limit = BoundedStorage(), Limit(3, 60, "moving-window")
    for second in (0, 10, 20):
        assert admits(storage, limit, 1, START + second) == 1
    assert storage.wait(ALICE, limit, 2, START + 30) == 40
    assert admits(storage, limit, 3, START + 59.9) == 0
    assert admits(storage, limit, 3, START + 60) == 1


@each_strategy
def test_a_limit_can_be_exceeded_by_what_is_counted_afterwards(strategy: str) -> None:
    storage, limit = BoundedStorage(), Limit(2, 60, strategy, 1 if strategy == "burst" else 0)
    for _ in range(5):
        storage.add(ALICE, limit, 1, START)
    wait = storage.wait(ALICE, limit, 1, START)
    assert 0 < wait < 200
    assert storage.hit(ALICE, limit, 1, START + wait) == 0.0


@each_strategy
def test_what_costs_more_than_there_ever_is_is_never_admitted(strategy: str) -> None:
    storage, limit = BoundedStorage(), Limit(5, 60, strategy, 4 if strategy == "burst" else 0)
    assert storage.hit(ALICE, limit, 6, START) == math.inf
    assert storage.size == 0
    assert storage.hit(ALICE, limit, 5, START) == 0.0
    assert storage.hit(ALICE, limit, 6, START) == math.inf


@each_strategy
def test_what_is_refused_is_not_counted(strategy: str) -> None:
    storage, limit = BoundedStorage(), Limit(2, 60, strategy, 1 if strategy == "burst" else 0)
    assert admits(storage, limit, 2, START) == 2
    wait = storage.wait(ALICE, limit, 1, START)
    assert admits(storage, limit, 100, START) == 0
    assert storage.wait(ALICE, limit, 1, START) == wait


@each_strategy
def test_absurd_costs_are_counted_without_overflowing(strategy: str) -> None:
    storage, limit = BoundedStorage(), Limit(5, 60, strategy)
    for _ in range(3):
        storage.add(ALICE, limit, 10**30, START)
    assert storage.wait(ALICE, limit, 1, START) > 0
    assert sound(storage)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((0, 60, "fixed-window"), id="nothing"),
        pytest.param((1, 0, "fixed-window"), id="no period"),
        pytest.param((1, 60, "leaky"), id="an unknown strategy"),
        pytest.param((1, 60, "burst", -1), id="less than no burst"),
    ],
)
def test_what_is_no_limit(arguments: tuple[int, int, str]) -> None:
    with pytest.raises(ValueError, match="not a rate limit"):
        Limit(*arguments)


# --- what is forgotten ---


def kept(storage: BoundedStorage, keys: str) -> str:
    return "".join(key for key in keys if storage._table.find("f" + key) >= 0)


def test_the_least_recently_hit_goes_first() -> None:
    storage, limit = BoundedStorage(max_keys=3), Limit(5, 60, "fixed-window")
    for key in "abcabad":  # by last hit: c, b, a, d
        storage.hit(key, limit, 1, START)
    assert kept(storage, "abcd") == "abd"
    assert storage.evicted == 1
    assert admits(storage, limit, 9, START, "c") == 5, "it starts afresh"


@each_strategy
@pytest.mark.parametrize("ask", [BoundedStorage.hit, BoundedStorage.wait])
@pytest.mark.parametrize("cost", [pytest.param(1, id="and is admitted"), pytest.param(2, id="and is refused")])
def test_who_asks_counts_as_hit(
    strategy: str, ask: Callable[[BoundedStorage, str, Limit, int, float], float], cost: int
) -> None:
    """Else a client over its limit would only have to go on until it is forgotten."""
    storage, limit = BoundedStorage(max_keys=2), Limit(2, 60, strategy, 1 if strategy == "burst" else 0)
    for key in "ab":
        storage.hit(key, limit, 1, START)
    assert (ask(storage, "a", limit, cost, START) > 0) == (cost == 2)
    storage.hit("c", limit, 1, START)
    assert storage.wait("a", limit, 2, START) > 0
    assert storage.wait("b", limit, 2, START) == 0


def test_it_is_the_least_recently_hit_of_all_strategies() -> None:
    storage = BoundedStorage(max_keys=2)
    storage.hit(ALICE, Limit(5, 60, "moving-window"), 1, START)
    storage.hit(BOB, Limit(5, 60, "fixed-window"), 1, START)
    storage.hit(ALICE, Limit(5, 60, "moving-window"), 1, START)
    storage.hit(CAROL, Limit(5, 60, "fixed-window"), 1, START)
    assert storage.wait(ALICE, Limit(5, 60, "moving-window"), 4, START) == 60
    assert storage.wait(BOB, Limit(5, 60, "fixed-window"), 5, START) == 0


@pytest.mark.parametrize(
    ("strategy", "matters_s"),
    [("fixed-window", 60), ("moving-window", 60), ("sliding-window-counter", 120), ("burst", 30)],
)
def test_only_what_still_matters_is_counted_as_evicted(strategy: str, matters_s: int) -> None:
    for age, evicted in ((matters_s - 0.1, 1), (matters_s + 0.05, 0)):
        storage = BoundedStorage(max_keys=1)
        storage.hit(ALICE, Limit(2, 60, strategy), 1, START)
        storage.hit(BOB, Limit(2, 60, strategy), 1, START + age)
        assert storage.evicted == evicted, age


def test_what_has_just_expired_is_not_missed_even_if_it_was_not_found_for_that() -> None:
    storage, limit = BoundedStorage(max_keys=1), Limit(2, 60, "fixed-window")
    storage.hit(ALICE, limit, 1, START + 0.1)
    storage.hit(BOB, limit, 1, START + 60.1 + 0.01)
    assert storage.evicted == 0


def test_what_has_expired_goes_before_the_least_recently_hit() -> None:
    storage = BoundedStorage(max_keys=3)
    storage.hit("a", Limit(5, 60, "fixed-window"), 1, START)
    storage.hit("b", Limit(5, 1, "fixed-window"), 1, START)
    storage.hit("c", Limit(5, 60, "fixed-window"), 1, START)
    storage.wait("b", Limit(5, 1, "fixed-window"), 1, START + 0.9)
    storage.hit("d", Limit(5, 60, "fixed-window"), 1, START + 1.1)
    assert kept(storage, "abcd") == "acd"
    assert storage.evicted == 0, "nobody misses it"


@each_strategy
def test_all_that_has_expired_is_gone_after_half_as_many_new_keys(strategy: str) -> None:
    storage, limit = BoundedStorage(max_keys=100), Limit(10, 60, strategy)
    for number in range(40):
        storage.hit(f"old{number}", limit, 1, START)
    later = START + 121
    for number in range(20):
        storage.hit(f"new{number}", limit, 1, later)
    assert storage.size == 20
    assert storage.evicted == 0
    assert sound(storage)


LIMITS = {
    key: Limit(4, period, strategy, 3 if strategy == "burst" else 0)
    for key, (strategy, period) in zip(
        "abcdefghijkl",
        [(strategy, period) for strategy in sorted(MODELS) for period in (1, 8, 60)],
        strict=True,
    )
}
NAMES = {"fixed-window": "f{}", "moving-window": "m{}", "sliding-window-counter": "s{1}/{0}", "burst": "b{}"}


@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(pauses, st.sampled_from([*LIMITS]), st.sampled_from(["hit", "wait", "add", "clear"])), max_size=60
    ),
)
def test_it_never_forgets_what_matters_while_there_is_something_that_does_not(
    max_keys: int, actions: list[tuple[Fraction, str, str]]
) -> None:
    storage, now = BoundedStorage(max_keys=max_keys, clock=lambda: now), START
    expires: dict[str, float] = {}  # of the keys that are there, the least recently hit first
    evicted = 0
    for pause, key, action in actions:
        now += float(pause)
        limit = LIMITS[key]
        if action == "clear":
            storage.clear_sliding_window(key, limit.period)
            storage.clear(key)
            expires.pop(key, None)
            continue
        getattr(storage, action)(key, limit, 1, now)
        table = storage._table
        slots = {key: table.find(NAMES[LIMITS[key].strategy].format(key, LIMITS[key].period)) for key in LIMITS}
        there = {key for key, slot in slots.items() if slot >= 0}
        gone = expires.keys() - there
        # Those that expired less than a sixty-fourth of their span ago may have been overlooked.
        late = {other for other in there - {key} if expires[other] <= now - LIMITS[other].period / 32}
        live = {other for other in gone if expires[other] > now}
        assert len(live) <= 1
        if live:
            assert not late, "these had expired"
            others = [other for other in expires if other in there | live and expires[other] > now and other != key]
            assert others[:1] == [*live], "this was the least recently hit"
        evicted += len(live)
        assert storage.evicted == evicted
        expires = {other: at for other, at in expires.items() if other in there and other != key}
        if key in there:
            expires[key] = table.expires[slots[key]]
        assert sound(storage)
        assert storage.size <= max_keys


def test_there_are_never_more_keys_than_it_may_keep() -> None:
    storage, limit = BoundedStorage(max_keys=1000), Limit(300, 60, "sliding-window-counter")
    for number in range(5000):
        storage.hit(str(number), limit, 1, START)
        assert storage.size <= 1000
    assert storage.evicted == 4000
    assert sound(storage)


def test_no_dict_of_it_gets_large() -> None:
    storage, limit = BoundedStorage(max_keys=20_000), Limit(1, 60, "fixed-window")
    for number in range(20_000):
        storage.hit(str(number), limit, 1, START)
    assert max(map(len, [*storage._table._shards, *storage._table._names])) < 1024


def test_a_key_may_be_longer_than_anything_that_is_kept() -> None:
    storage, limit = BoundedStorage(), Limit(2, 60, "fixed-window")
    long, other = "x" * 1_000_000 + "1", "x" * 1_000_000 + "2\udcff"
    assert admits(storage, limit, 3, START, long) == 2
    assert admits(storage, limit, 3, START, other) == 2
    assert max(len(name) for names in storage._table._names for name in names.values()) < 200


# --- moving windows: how much they keep ---


def test_moments_are_bounded_by_forgetting_the_moving_windows_that_were_least_recently_hit() -> None:
    storage, moving, fixed = (
        BoundedStorage(max_keys=300),
        Limit(1000, 3600, "moving-window"),
        Limit(1, 60, "fixed-window"),
    )
    storage.hit("bystander", fixed, 1, START)
    for index, key in enumerate((ALICE, BOB, CAROL)):  # of 2,400 moments these need 3,000
        for number in range(1000):
            assert storage.hit(key, moving, 1, START + index + number / 1000) == 0.0
    assert sound(storage)
    assert storage._table.log_bytes <= 300 * MOMENTS_PER_KEY * 16
    assert storage.evicted == 1
    now = START + 4
    assert [storage.wait(key, moving, 1, now) > 0 for key in (ALICE, BOB, CAROL)] == [False, True, True]
    assert storage.wait("bystander", fixed, 1, now) == 56, "it does not pay for them"


def test_hits_of_one_moment_are_kept_as_one() -> None:
    storage, limit = BoundedStorage(), Limit(1000, 60, "moving-window")
    assert admits(storage, limit, 2000, START) == 1000
    assert storage._table.log_bytes == 16
    assert storage.wait(ALICE, limit, 1, START + 1) == 59


def test_what_is_over_a_moving_window_is_counted_and_not_kept() -> None:
    storage, limit = BoundedStorage(), Limit(3, 60, "moving-window")
    for number in range(100):
        storage.add(ALICE, limit, 1, START + number / 100)
    assert storage._table.log_bytes == 3 * 16
    assert storage.wait(ALICE, limit, 1, START + 1) == pytest.approx(59.97)
    assert sound(storage)


def test_a_moving_window_of_very_many_keeps_fewer_moments_and_still_never_admits_too_much() -> None:
    storage, amount, period = BoundedStorage(), 3000, 30
    limit = Limit(amount, period, "moving-window")
    admitted, now = [], START
    for number in range(3 * amount):
        now = START + number * period / amount * 0.9
        if storage.hit(ALICE, limit, 1, now) == 0.0:
            admitted.append(now)
    assert storage._table.log_bytes <= (MAX_MOMENTS + 2) * 16
    first = 0
    for index, moment in enumerate(admitted):
        while moment - admitted[first] >= period:
            first += 1
        assert index - first < amount
    slower = (now - START) / period * amount * MAX_MOMENTS / (MAX_MOMENTS + 1)
    assert len(admitted) >= slower - amount / MAX_MOMENTS - 1


# --- a storage of limits: with their strategies ---


class Clocks:
    """Time that passes when it is told to; the wall clock may be set besides."""

    def __init__(self) -> None:
        self.now = START
        self.wall_offset = 1_700_000_000.0 - START

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.wall_offset


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def storage(clocks: Clocks) -> BoundedStorage:
    return BoundedStorage(clock=clocks.monotonic, wall_clock=clocks.wall)


LIMITERS = [FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter]
each_limiter = pytest.mark.parametrize("limiter_of", LIMITERS)
LimiterOf = Callable[[BoundedStorage], RateLimiter]


@pytest.mark.parametrize(
    ("uri", "options", "max_keys"),
    [
        pytest.param("hardserve://", {}, 50_000, id="as it comes"),
        pytest.param("hardserve://?max_keys=1000", {}, 1000, id="with a cap"),
        pytest.param("hardserve://", {"max_keys": 1000}, 1000, id="with a cap as an option"),
        pytest.param("hardserve://", {"unknown": True}, 50_000, id="with an option of another storage"),
    ],
)
def test_limits_finds_it_by_its_scheme(uri: str, options: dict[str, int], max_keys: int) -> None:
    storage = storage_from_string(uri, **options)
    assert isinstance(storage, BoundedStorage)
    assert storage._max_keys == max_keys
    assert storage.check()
    assert repr(storage) == f"<BoundedStorage 0 of {max_keys} keys, 0 moments, 0 evicted>"


@pytest.mark.parametrize("query", ["max_keys=", "max_keys=many", "max_keys=0", "max_keys=-5", "max_keys=1e99", "max=5"])
def test_what_is_no_cap(query: str) -> None:
    with pytest.raises(ConfigurationError, match="max_keys"):
        storage_from_string(f"hardserve://?{query}")


@each_limiter
def test_it_admits_the_limit_and_then_no_more_until_it_is_cleared(
    limiter_of: LimiterOf, storage: BoundedStorage
) -> None:
    limiter, item = limiter_of(storage), RateLimitItemPerMinute(10)
    assert limiter.get_window_stats(item, ALICE).remaining == 10
    for left in range(9, -1, -1):
        assert limiter.test(item, ALICE)
        assert limiter.hit(item, ALICE)
        assert limiter.get_window_stats(item, ALICE).remaining == left
    assert not limiter.test(item, ALICE)
    assert not limiter.hit(item, ALICE)
    assert limiter.hit(item, BOB)
    assert limiter.hit(RateLimitItemPerHour(10), ALICE)
    limiter.clear(item, ALICE)
    assert limiter.get_window_stats(item, ALICE).remaining == 10
    assert limiter.hit(item, ALICE)


@each_limiter
@pytest.mark.parametrize("seconds", [1, 3, 86_400])
def test_two_periods_later_all_is_forgiven(
    limiter_of: LimiterOf, storage: BoundedStorage, clocks: Clocks, seconds: int
) -> None:
    limiter, item = limiter_of(storage), RateLimitItemPerSecond(5, seconds)
    assert sum(limiter.hit(item) for _ in range(9)) == 5
    clocks.now += 2 * seconds
    assert limiter.get_window_stats(item).remaining == 5
    assert sum(limiter.hit(item) for _ in range(9)) == 5


@each_limiter
def test_costs(limiter_of: LimiterOf, storage: BoundedStorage) -> None:
    limiter, item = limiter_of(storage), RateLimitItemPerMinute(10, 2)
    assert not limiter.hit(item, ALICE, cost=11)
    assert not limiter.test(item, BOB, cost=11)
    assert limiter.hit(item, BOB, cost=5)
    assert limiter.get_window_stats(item, BOB).remaining == 5
    assert not limiter.test(item, BOB, cost=6)
    assert limiter.test(item, BOB, cost=5)
    assert not limiter.hit(item, BOB, cost=6)
    limiter.clear(item, BOB)
    assert limiter.hit(item, BOB, cost=10)


@each_limiter
def test_a_million_at_once_is_one_step(limiter_of: LimiterOf, storage: BoundedStorage) -> None:
    limiter, item = limiter_of(storage), RateLimitItemPerMinute(1_000_000)
    assert limiter.hit(item, cost=1_000_000)
    assert not limiter.hit(item, cost=2)
    limiter.clear(item)
    assert limiter.hit(item)


def test_fixed_window_stats(storage: BoundedStorage, clocks: Clocks) -> None:
    limiter, item = FixedWindowRateLimiter(storage), RateLimitItemPerSecond(10, 2)
    assert limiter.get_window_stats(item) == (clocks.wall(), 10)
    began = clocks.wall()
    assert all(limiter.hit(item) for _ in range(10))
    clocks.now += 1
    assert not limiter.hit(item)
    assert limiter.get_window_stats(item) == (began + 2, 0)
    clocks.now += 1
    assert limiter.get_window_stats(item) == (clocks.wall(), 10)
    assert limiter.hit(item)


def test_moving_window_stats(storage: BoundedStorage, clocks: Clocks) -> None:
    limiter, item = MovingWindowRateLimiter(storage), RateLimitItemPerMinute(10)
    assert limiter.get_window_stats(item) == (clocks.wall() + 60, 10)
    began = clocks.wall()
    for hit in range(5):
        assert limiter.hit(item)
        assert limiter.hit(item)
        assert limiter.get_window_stats(item) == (began + 60, 8 - 2 * hit)
        clocks.now += 10
    assert not limiter.hit(item)
    clocks.now += 20
    assert limiter.get_window_stats(item) == (clocks.wall() + 60 - 50, 4), "those of 70 and 60 seconds ago have left"
    clocks.now += 40
    assert limiter.get_window_stats(item).remaining == 10


def test_sliding_window_stats(clocks: Clocks) -> None:
    # What their strategy adds the remaining seconds to is the real time.
    storage = BoundedStorage(clock=clocks.monotonic)
    limiter, item = SlidingWindowCounterRateLimiter(storage), RateLimitItemPerMinute(10)
    assert limiter.get_window_stats(item).reset_time == pytest.approx(time.time(), abs=5)
    clocks.now += 20
    assert limiter.hit(item, cost=4)
    assert storage.get_sliding_window(item.key_for(), 60) == (0, 0.0, 4, 100.0)
    assert limiter.get_window_stats(item).reset_time == pytest.approx(time.time() + 40, abs=5)
    clocks.now += 55
    assert limiter.hit(item, cost=1)
    assert storage.get_sliding_window(item.key_for(), 60) == (4, 45.0, 1, 105.0)
    assert limiter.get_window_stats(item).remaining == 6
    clocks.now += 50
    assert storage.get_sliding_window(item.key_for(), 60) == (1, 55.0, 0, 115.0)


def test_incr_counts_whatever_the_limit(storage: BoundedStorage, clocks: Clocks) -> None:
    assert storage.incr("key", 60) == 1
    assert storage.incr("key", 60, amount=10) == storage.get("key") == 11
    clocks.now += 60
    assert storage.get("key") == 0
    assert storage.get_expiry("key") == clocks.wall()
    assert storage.incr("key", 60) == 1


def test_what_is_acquired_in_another_window_is_none_of_the_fixed_one(storage: BoundedStorage) -> None:
    assert storage.acquire_entry("key", 2, 60)
    assert storage.acquire_sliding_window_entry("key", 2, 60)
    assert storage.get("key") == 0
    assert storage.incr("key", 60) == 1
    assert storage.get_moving_window("key", 2, 60)[1] == 1


def test_a_reset_takes_back_no_eviction() -> None:
    storage = BoundedStorage(max_keys=1)
    for key in "ab":
        storage.incr(key, 60)
    storage.reset()
    assert storage.evicted == 1


def test_reset_says_how_many_keys_there_were(storage: BoundedStorage) -> None:
    for item in (RateLimitItemPerMinute(10), RateLimitItemPerMinute(10, namespace="OTHER")):
        for number in range(10):
            storage.incr(item.key_for(number), item.get_expiry())
    assert storage.reset() == 20
    assert storage.reset() == storage.size == 0
    assert sound(storage)


@each_limiter
@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
def test_setting_the_wall_clock_moves_what_is_reported_and_nothing_else(
    limiter_of: LimiterOf, storage: BoundedStorage, clocks: Clocks, step: float
) -> None:
    limiter, item = limiter_of(storage), RateLimitItemPerMinute(3)
    assert sum(limiter.hit(item) for _ in range(5)) == 3
    before = storage.get_expiry(item.key_for())
    clocks.wall_offset += step
    assert storage.get_expiry(item.key_for()) == before + step
    assert not limiter.hit(item)
    clocks.now += 59
    assert not limiter.hit(item)
    clocks.now += 61
    assert limiter.hit(item)


@pytest.mark.parametrize(
    ("strategy", "limiter_of"),
    [*zip(["fixed-window", "moving-window", "sliding-window-counter"], LIMITERS, strict=True)],
)
def test_both_interfaces_see_the_same_hits(
    strategy: str, limiter_of: LimiterOf, storage: BoundedStorage, clocks: Clocks
) -> None:
    limiter, item, limit = limiter_of(storage), RateLimitItemPerMinute(4), Limit(4, 60, strategy)
    assert limiter.hit(item, ALICE)
    assert storage.hit(item.key_for(ALICE), limit, 1, clocks.now) == 0.0
    storage.add(item.key_for(ALICE), limit, 1, clocks.now)
    assert limiter.get_window_stats(item, ALICE).remaining == 1
    assert limiter.hit(item, ALICE)
    assert storage.wait(item.key_for(ALICE), limit, 1, clocks.now) > 0.0
    assert not limiter.hit(item, ALICE)
    assert storage.size == 1


@each_limiter
def test_its_own_clocks_are_the_systems(limiter_of: LimiterOf) -> None:
    limiter, item = limiter_of(BoundedStorage()), RateLimitItemPerHour(2)
    assert limiter.hit(item)
    assert limiter.get_window_stats(item).remaining == 1
    assert time.time() - 5 <= limiter.get_window_stats(item).reset_time <= time.time() + 3605


# --- threads ---


@pytest.fixture
def restless_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(action: Callable[[int], None]) -> None:
    """Call `action` with 0 to 3 from a thread each, all at the same time."""
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait(10)
        try:
            action(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failures


@each_limiter
@pytest.mark.usefixtures("restless_threads")
def test_threads_together_get_no_more_than_the_limit(limiter_of: LimiterOf, storage: BoundedStorage) -> None:
    limiter, item = limiter_of(storage), RateLimitItemPerHour(100)
    admitted = [0] * 4

    def hit(number: int) -> None:
        for _ in range(100):
            admitted[number] += limiter.hit(item, ALICE)
            limiter.get_window_stats(item, ALICE)

    together(hit)
    assert sum(admitted) == 100
    assert sound(storage)


@pytest.mark.usefixtures("restless_threads")
def test_threads_that_evict_and_clear_each_others_keys_leave_it_sound() -> None:
    storage, item = BoundedStorage(max_keys=7), RateLimitItemPerHour(2)
    limiters: list[RateLimiter] = [limiter_of(storage) for limiter_of in LIMITERS]

    def churn(number: int) -> None:
        for turn in range(100):
            for limiter in limiters:
                key: RateLimitItem = item
                limiter.hit(key, (turn * 7 + number) % 11)
                limiter.clear(key, (turn * 5 + number) % 11)

    together(churn)
    assert storage.size <= 7
    assert sound(storage)


def test_it_starts_no_thread_and_gives_the_garbage_collector_nothing_to_look_at() -> None:
    threads = threading.active_count()
    storage = BoundedStorage(max_keys=5000)
    limits = [Limit(10, 60, strategy) for strategy in sorted(MODELS)]
    gc.collect()
    tracked = len(gc.get_objects())
    for number in range(8000):
        storage.hit(str(number), limits[number % 4], 1, START + number / 1000)
    assert threading.active_count() == threads
    if sys.version_info < (3, 14):  # which tracks all dicts
        assert len(gc.get_objects()) - tracked < 100
