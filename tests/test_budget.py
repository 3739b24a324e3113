"""The sum of what is kept is right, whoever counts, and no client has more than its half."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.edge.budget import NEWS_S, Budget, Holding
from tests.support import PATIENCE_S, switching_often

MEMORY, FILES = 1000, 4000


def kept(budget: Budget) -> tuple[int, int]:
    return budget.memory, budget.files


# What all keep already, what the client does of that, and what it wants more.
ALLOWED = {
    "nothing is kept": ((0, 0), (0, 0), (500, 2000), True),
    "the last byte of both": ((500, 2000), (0, 0), (500, 2000), True),
    "a byte too many in memory": ((501, 0), (0, 0), (500, 0), False),
    "a byte too many in files": ((0, 2001), (0, 0), (0, 2000), False),
    "memory is over its limit, and only a file is to grow": ((5000, 0), (0, 0), (0, 100), True),
    "files are over their limit, and only memory is to grow": ((0, 9000), (0, 0), (100, 0), True),
    "memory is over its limit, and what is there moves to a file": ((5000, 0), (300, 0), (-300, 300), True),
    "a client that has half of memory": ((500, 0), (500, 0), (1, 0), False),
    "a client that has half of memory may use files": ((500, 0), (500, 0), (0, 2000), True),
    "a client that has half of all files": ((0, 2000), (0, 2000), (0, 1), False),
    "a client that wants more than half at once": ((0, 0), (0, 0), (501, 0), False),
    "giving back, whatever the others do": ((9000, 9000), (500, 500), (-1, -1), True),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_client_may_keep(case: str) -> None:
    (memory, files), (own_memory, own_files), (more_memory, more_files), allowed = ALLOWED[case]
    budget = Budget(MEMORY, FILES)
    budget.add("others", memory - own_memory, files - own_files)
    budget.add("client", own_memory, own_files)
    assert budget.allows("client", more_memory, more_files) is allowed


@pytest.mark.parametrize(("memory", "files", "allowed"), [(1000, 0, True), (1001, 0, False), (0, 4000, True)])
def test_nobody_in_particular_may_have_all_of_it(memory: int, files: int, allowed: bool) -> None:
    assert Budget(MEMORY, FILES).allows("", memory, files) is allowed


@pytest.mark.parametrize(("memory", "short"), [(999, False), (1000, True), (1001, True)])
def test_memory_is_short_when_all_of_it_is_used(memory: int, short: bool) -> None:
    budget = Budget(MEMORY, FILES)
    budget.add("", memory, 0)
    assert budget.memory_short is short


def test_a_client_that_keeps_nothing_is_forgotten() -> None:
    budget = Budget(MEMORY, FILES)
    one, other = Holding(budget, "a"), Holding(budget, "a")
    one.update(10, 0)
    other.update(0, 10)
    one.release()
    assert list(budget._by_client) == ["a"]
    other.release()
    other.release()
    assert not budget._by_client
    assert kept(budget) == (0, 0)


def test_what_may_not_be_kept_is_counted_until_it_is_released() -> None:
    budget = Budget(MEMORY, FILES)
    holding = Holding(budget, "a")
    assert holding.update(500, 0)
    assert not holding.update(600, 0)
    assert kept(budget) == (600, 0), "it is there, whether it may be or not"
    assert holding.update(600, 0), "it asks for no more"
    assert holding.update(0, 600), "what goes to a file is no longer in memory"
    holding.release()
    assert kept(budget) == (0, 0)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 600), st.integers(0, 3000) | st.just(0), st.booleans()), max_size=40
    )
)
def test_holdings_against_their_sum(steps: list[tuple[int, int, int, bool]]) -> None:
    budget = Budget(MEMORY, FILES)
    holdings = [Holding(budget, "abc"[number // 2]) for number in range(6)]  # two of each client
    model = [(0, 0)] * 6
    for number, memory, files, release in steps:
        before = model[number]
        if release:
            holdings[number].release()
            model[number] = (0, 0)
        else:
            fits = holdings[number].update(memory, files)
            model[number] = (memory, files)
            own = [sum(each[kind] for each in model[number // 2 * 2 :][:2]) for kind in (0, 1)]
            grown = [model[number][kind] > before[kind] for kind in (0, 1)]
            limits = (MEMORY, FILES)
            assert fits == all(
                not grown[kind]
                or (sum(each[kind] for each in model) <= limits[kind] and own[kind] <= limits[kind] // 2)
                for kind in (0, 1)
            )
        assert kept(budget) == (sum(each[0] for each in model), sum(each[1] for each in model))
    for holding in holdings:
        holding.release()
    assert kept(budget) == (0, 0)
    assert not budget._by_client


def test_many_threads_count_to_zero() -> None:
    budget = Budget(1 << 30, 1 << 30)
    most: list[int] = []

    def work(client: str) -> None:
        for step in range(400):
            holding = Holding(budget, client)
            holding.update(step, 7)
            budget.add("", 3, 1)
            holding.update(7, step)
            most.append(budget.memory)
            budget.add("", -3, -1)
            holding.release()

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in "aabb"]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert max(most) <= 4 * 402
    assert kept(budget) == (0, 0)
    assert not budget._by_client


def test_a_disk_that_fails_all_the_time_is_news_once_a_minute() -> None:
    budget = Budget(MEMORY, FILES)
    news = [now for now in range(0, 200, 5) if budget.is_news(1000.0 + now)]
    assert news == [0, NEWS_S, 2 * NEWS_S, 3 * NEWS_S]


def test_reprs_say_how_much_is_kept() -> None:
    budget = Budget(MEMORY, FILES)
    holding = Holding(budget, "a")
    holding.update(1, 2)
    assert repr(budget) == "<Budget memory=1/1000 files=2/4000>"
    assert repr(holding) == "<Holding memory=1 files=2>"
