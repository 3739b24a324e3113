"""Who is cut when workers wait for clients, or memory is short, and who is not. Time is turned by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hardserve import refusals
from hardserve.edge.budget import Budget
from hardserve.edge.deadlines import SLOT_S, Deadlines, Timer
from hardserve.edge.readers import FAST, JUDGED_S, LOOK_S, PATIENCE_S, Readers
from hardserve.refusals import Cut

START = 1000.0


class Client:
    """One with something unsent: `rate` is how fast it reads."""

    def __init__(self, rig: Rig, name: str, rate: float, *, waits: bool = True, memory: int = 0) -> None:
        self.rig = rig
        self.name = name
        self.rate = rate
        self.unsent_since = rig.now
        self.waited_since = rig.now if waits else math.inf
        self.unsent_memory = memory
        rig.budget.keep_response(memory)
        rig.readers.add(self, rig.now)

    def __repr__(self) -> str:
        return f"<Client {self.name}>"

    def reading_rate(self, since: float, now: float) -> float:
        assert since in (self.unsent_since, self.waited_since)
        return self.rate

    def cut(self, why: Cut, now: float) -> None:
        assert now == self.rig.now
        assert why is refusals.SLOWEST_READER
        self.rig.cut.append(self.name)
        self.leave()

    def leave(self) -> None:
        """Be done, in whatever way."""
        self.rig.readers.discard(self)
        self.rig.budget.keep_response(-self.unsent_memory)
        self.unsent_memory = 0
        self.waited_since = self.unsent_since = math.inf


class Rig:
    """Readers on a wheel of their own; `wanted` is how many requests find no worker."""

    def __init__(self, max_waiting: int = 2, memory: int = 1000, wanted: int = 0) -> None:
        self.now = START
        self.wheel = Deadlines()
        self.budget = Budget(memory, 0)
        self.wanted = wanted
        self.readers = Readers(max_waiting, self.budget, lambda: self.wanted, self.wheel)
        self.cut: list[str] = []

    def passes(self, seconds: float) -> None:
        """Let time pass as the loop does: turn by turn, each when the wheel wants it."""
        until = self.now + seconds
        while (wait_s := self.wheel.wait_s(self.now)) is not None and self.now + wait_s <= until:
            self.now += wait_s
            for item in self.wheel.due(self.now):
                item.on_deadline(self.now)
        self.now = until

    @property
    def looking(self) -> bool:
        return self.wheel.wait_s(self.now) is not None


SOON = PATIENCE_S + LOOK_S + 2 * SLOT_S

# --- workers ---

# How fast each client reads that a worker waits for, and who of them is cut when nobody wants a worker.
WAITING = {
    "as many as may": ({"a": 10, "b": 20}, []),
    "one too many: the slowest": ({"a": 30, "b": 10, "c": 20}, ["b"]),
    "three too many: the slowest three": ({"a": 30, "b": 10, "c": 20, "d": 5, "e": 40}, ["d", "b", "c"]),
}


@pytest.mark.parametrize("case", WAITING)
def test_who_is_cut_when_workers_wait_for_long(case: str) -> None:
    rates, cut = WAITING[case]
    rig = Rig(max_waiting=2)
    for name, rate in rates.items():
        Client(rig, name, rate)
    rig.passes(PATIENCE_S)
    assert rig.cut == [], "nobody has waited for long"
    rig.passes(SOON - PATIENCE_S)
    assert rig.cut == cut
    rig.passes(10)
    assert rig.cut == cut, "those who are left may take their time"


# How fast each reads, since when (seconds), how many requests want a worker, and who is cut at once.
WANTED = {
    "nobody wants one": ({"a": (1, 5), "b": (1, 5), "c": (1, 5)}, 0, []),
    "half of the workers only wait": ({"a": (1, 5), "b": (1, 5)}, 9, []),
    "one is wanted: the slowest": ({"a": (3, 5), "b": (1, 5), "c": (2, 5)}, 1, ["b"]),
    "as many as are wanted": ({"a": (3, 5), "b": (1, 5), "c": (2, 5), "d": (4, 5)}, 2, ["b", "c"]),
    "never more than down to half": ({"a": (3, 5), "b": (1, 5), "c": (2, 5)}, 9, ["b"]),
    "who has just begun goes last": ({"a": (0, 0), "b": (9, 5), "c": (10, 5)}, 1, ["b"]),
    "of those the oldest": ({"a": (0, 0.001), "b": (0, 0.002), "c": (0, 0.003)}, 1, ["c"]),
    "who reads fast is spared": ({"a": (FAST, 0.9), "b": (FAST, 0.9), "c": (FAST + 1, 0.9)}, 9, []),
}


@pytest.mark.parametrize("case", WANTED)
def test_who_gives_way_to_a_request(case: str) -> None:
    clients, wanted, cut = WANTED[case]
    rig = Rig(max_waiting=2)
    for name, (rate, ago) in sorted(clients.items(), key=lambda item: -item[1][1]):
        rig.now = START - ago
        Client(rig, name, rate)
    rig.now = START
    rig.wanted = wanted
    rig.readers.make_way(START)
    assert rig.cut == cut
    assert all(ago < JUDGED_S or ago > PATIENCE_S or clients[name][0] >= FAST for name, (_, ago) in clients.items())


def test_a_worker_that_begins_to_wait_while_requests_want_one_is_freed_at_once() -> None:
    rig = Rig(max_waiting=1, wanted=1)
    Client(rig, "a", 1)
    rig.now += 1
    Client(rig, "b", 1)
    assert rig.cut == ["a"]


def test_waits_for_a_moment_count_for_nothing() -> None:
    """A hundred clients, each of which takes half a second for a piece and then has a worker wait for the next."""
    rig = Rig(max_waiting=1)
    clients = [Client(rig, str(number), 1.0) for number in range(100)]
    for _ in range(20):
        rig.passes(0.5)
        for client in clients:
            client.waited_since = rig.now
    assert rig.cut == []


def test_a_client_for_whom_nobody_waits_is_left_alone() -> None:
    rig = Rig(max_waiting=1, wanted=9)
    for number in range(10):
        Client(rig, str(number), 0.0, waits=False)
    assert not rig.looking, "and costs nothing"
    rig.passes(60)
    assert rig.cut == []


def test_a_worker_that_begins_to_wait_later_is_seen() -> None:
    rig = Rig(max_waiting=1)
    fast, slow = Client(rig, "fast", 100, waits=False), Client(rig, "slow", 1, waits=False)
    rig.passes(5)
    for client in (fast, slow):
        client.waited_since = rig.now
        rig.readers.add(client, rig.now)
    rig.passes(SOON)
    assert rig.cut == ["slow"]


def test_nothing_is_looked_at_when_nobody_waits_any_more() -> None:
    rig = Rig(max_waiting=1)
    client = Client(rig, "a", 1)
    rig.passes(3)
    client.leave()
    rig.passes(2 * LOOK_S + 2 * SLOT_S)
    assert not rig.looking
    assert "looking=False" in repr(rig.readers)


def test_a_client_that_has_read_everything_is_not_cut() -> None:
    rig = Rig(max_waiting=1)
    gone, left = Client(rig, "gone", 1), Client(rig, "left", 2)
    rig.passes(PATIENCE_S / 2)
    gone.leave()
    rig.passes(10)
    assert rig.cut == []
    assert left.waited_since < math.inf


# --- memory ---

# How much is kept for each client of a limit of 1,000, how fast it reads, since when; who is cut when the last comes.
SHORT = {
    "it fits": ({"a": (400, 1, 5), "b": (350, 2, 5)}, []),
    "past three quarters: the slowest, down to half": ({"a": (300, 9, 5), "b": (300, 1, 5), "c": (200, 5, 5)}, ["b"]),
    "the slowest is not enough": ({"a": (400, 9, 5), "b": (50, 1, 5), "c": (950, 5, 5)}, ["b", "c"]),
    "who has just begun is spared": ({"a": (500, 9, 5), "b": (400, 1, 0)}, ["a"]),
    "but not past the whole": ({"a": (450, 9, 0.001), "b": (500, 1, 0), "c": (200, 5, 0)}, ["b"]),
    "who reads fast is spared": ({"a": (500, FAST, 5), "b": (600, FAST, 5)}, []),
    "one who is spared has more than the others could free": ({"a": (9000, FAST, 5), "b": (700, 1, 5)}, []),
    "also one who has just begun": ({"a": (9000, 1, 0), "b": (500, 1, 5), "c": (200, 2, 5)}, []),
    "the others have their own bounds": (
        {"a": (9000, FAST, 5), "b": (300, 9, 5), "c": (300, 1, 5), "d": (200, 5, 5)},
        ["c"],
    ),
    "and none of them is alone": ({"a": (9000, FAST, 5), "b": (800, 1, 5)}, ["b"]),
    "also where a slow one has even more": ({"a": (700, 10, 5), "b": (600, FAST, 5), "c": (40, 1, 5)}, []),
    "one is spared so, and the others judged with what is left": (
        {"a": (9000, 1, 0), "b": (600, 2, 0), "c": (500, 3, 0)},
        ["b"],
    ),
    "half and no more is counted": ({"a": (500, FAST, 5), "b": (300, 1, 5)}, ["b"]),
    "who has nothing in memory would free none": ({"a": (0, 0, 5), "b": (500, 9, 5), "c": (400, 10, 5)}, ["b"]),
    "one alone, however large": ({"a": (5000, 1, 5)}, []),
    "one alone beside a file": ({"a": (0, 0, 5), "b": (5000, 1, 5)}, []),
}


@pytest.mark.parametrize("case", SHORT)
def test_who_is_cut_when_memory_is_short(case: str) -> None:
    kept, cut = SHORT[case]
    rig = Rig(max_waiting=1)
    for name, (memory, rate, ago) in sorted(kept.items(), key=lambda item: -item[1][2]):
        rig.now = START - ago
        client = Client(rig, name, rate, waits=False)
        client.unsent_memory = memory
        rig.budget.keep_response(memory)
    rig.now = START
    rig.readers.add(client, START)
    assert rig.cut == cut


def test_memory_that_stays_short_is_looked_at_again() -> None:
    rig = Rig()
    clients = [Client(rig, name, FAST, waits=False, memory=450) for name in "ab"]
    rig.passes(5)
    assert rig.cut == []
    clients[1].rate = 7.0
    rig.passes(LOOK_S + 2 * SLOT_S)
    assert rig.cut == ["b"]
    rig.passes(LOOK_S + 2 * SLOT_S)
    assert not rig.looking


class ReadersMachine(RuleBasedStateMachine):
    """Clients come, wait, read and go as they like; what must hold does after every look."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(max_waiting=2, memory=1000)
        self.clients: list[Client] = []

    @rule(rate=st.integers(0, 50), waits=st.booleans(), memory=st.integers(1, 400), wanted=st.integers(0, 3))
    def comes(self, rate: int, waits: bool, memory: int, wanted: int) -> None:
        self.rig.wanted = wanted
        self.clients.append(Client(self.rig, str(len(self.clients)), rate, waits=waits, memory=memory))

    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        if self.clients:
            data.draw(st.sampled_from(self.clients)).leave()

    @rule()
    def time_passes(self) -> None:
        waiting = sum(client.waited_since < math.inf for client in self.clients)
        short = self.rig.budget.responses > self.rig.budget.response_limit
        cut_before = len(self.rig.cut)
        self.rig.passes(SOON)
        left = [client for client in self.clients if client.unsent_since < math.inf]
        assert sum(client.waited_since < math.inf for client in left) <= 2, "too many have a worker wait"
        assert self.rig.budget.responses <= self.rig.budget.response_limit or len(left) == 1, "memory stays short"
        if not short and waiting <= 2:
            assert len(self.rig.cut) == cut_before, "there was no need"

    @invariant()
    def nobody_is_cut_twice(self) -> None:
        assert len(set(self.rig.cut)) == len(self.rig.cut)


ReadersMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestReaders = ReadersMachine.TestCase


# --- the timer that it looks by ---


def turn(wheel: Deadlines, now: float) -> None:
    for item in wheel.due(now):
        item.on_deadline(now)


def test_a_timer_is_called_once_at_its_time() -> None:
    wheel, calls = Deadlines(), list[float]()
    timer = Timer(calls.append)
    assert not timer.is_set
    timer.set(START + 1.1, START, wheel)
    assert timer.is_set
    turn(wheel, START + 1.0)
    assert calls == []
    turn(wheel, START + 1.1 + SLOT_S)
    assert calls == [START + 1.1 + SLOT_S]
    assert not timer.is_set
    turn(wheel, START + 100)
    assert len(calls) == 1
    assert wheel.wait_s(START + 100) is None, "it is not looked at for nothing"


@pytest.mark.parametrize(("first", "second", "called"), [(1, 5, 1), (5, 1, 1), (3, 3, 3)])
def test_a_timer_that_is_set_twice_is_called_at_the_earlier_time(first: int, second: int, called: int) -> None:
    wheel, calls = Deadlines(), list[float]()
    timer = Timer(calls.append)
    timer.set(START + first, START, wheel)
    timer.set(START + second, START, wheel)
    for quarter in range(40):
        turn(wheel, START + quarter / 4)
    assert len(calls) == 1
    assert START + called <= calls[0] <= START + called + SLOT_S


def test_a_timer_may_set_itself_again() -> None:
    wheel, calls = Deadlines(), list[float]()

    def action(now: float) -> None:
        calls.append(now)
        assert not timer.is_set
        if len(calls) < 3:
            timer.set(now + 1, now, wheel)

    timer = Timer(action)
    timer.set(START + 1, START, wheel)
    for quarter in range(40):
        turn(wheel, START + quarter / 4)
    assert len(calls) == 3
    assert wheel.wait_s(START + 100) is None


def test_a_timer_that_was_set_while_it_was_due_is_called_for_that() -> None:
    """Something that ends in the same turn may want it sooner: it is due already, and is not called twice."""
    wheel, calls = Deadlines(), list[float]()
    timer = Timer(calls.append)
    timer.set(START, START, wheel)
    (late,) = wheel.due(START + 1)
    timer.set(START + 1.5, START + 1, wheel)
    late.on_deadline(START + 1)
    for quarter in range(4, 40):
        turn(wheel, START + quarter / 4)
    assert calls == [START + 1]
    assert wheel.wait_s(START + 100) is None
