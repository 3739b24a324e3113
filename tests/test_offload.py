"""What may block is asked on check threads: who is told what, once, and when nobody waits any more.

The limiter, the breaker and the threads are real, and so is the order of things; the store is one that answers when the
test says so, and the loop is the test's: it turns when it is told to, and no time passes otherwise.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from hardserve.checks import offload
from hardserve.checks.offload import Offload
from hardserve.checks.sharedrates import SharedRates
from hardserve.edge.ratelimit import Question, RateLimiter
from hardserve.settings import RateLimitingSettings, RateLimitSettings
from tests.support import PATIENCE_S, switching_often

TIMEOUT_S = 0.05


class Turns:
    """The loop: what was posted and planned is done when the test says so."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self._posted: SimpleQueue[Callable[[float], None]] = SimpleQueue()
        self._planned: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self.post = self._posted.put

    def plan(self, at: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._planned, (at, next(self._numbers), action))

    def take_posted(self, count: int = 1) -> None:
        """Do the next `count` actions that are posted, waiting for them."""
        for _ in range(count):
            self._posted.get(timeout=PATIENCE_S)(self.now)

    @property
    def quiet(self) -> bool:
        return self._posted.empty()

    def pass_time(self, seconds: float) -> None:
        """Do what was planned for the next `seconds`. What is planned by real time is a little later than `now`."""
        until = max(self.now, time.monotonic()) + seconds
        while self._planned and self._planned[0][0] <= until:
            at, _, action = heapq.heappop(self._planned)
            self.now = max(self.now, at)
            action(self.now)
        self.now = until


class Store:
    """One that answers each question when `let` says what."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[Any] = SimpleQueue()
        self.taken: list[Any] = []
        self._answers: SimpleQueue[float | Exception] = SimpleQueue()
        self.ready = False  # to say 0.0 by itself, at once
        self.away = False  # when it is looked for
        self.touches: SimpleQueue[None] = SimpleQueue()

    def let(self, *answers: float | Exception) -> None:
        for each in answers:
            self._answers.put(each)

    def wait(self, hit: Any) -> float:
        self.taken.append(hit)
        self.asked.put(hit)
        if self.ready:
            return 0.0
        answer = self._answers.get(timeout=PATIENCE_S)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def await_asked(self, count: int = 1) -> None:
        for _ in range(count):
            self.asked.get(timeout=PATIENCE_S)

    def touch(self) -> None:
        self.touches.put(None)
        if self.away:
            raise ConnectionError("away")

    def close(self) -> None: ...


@dataclass
class Asked:
    """A request, and the connection that waits for it."""

    client: str = "192.0.2.1"
    command: str = "GET"
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)
    user: str = ""
    rate_slots: Any = None
    store_spent_s: float = 0.0
    closed: bool = False

    def close(self, *, reset: bool = False) -> None:
        self.closed = True

    @property
    def address(self) -> str:
        return self.client

    @property
    def request(self) -> object:
        return self


class Hashing:
    """An authenticator that takes as long as the test says."""

    def __init__(self) -> None:
        self.began: SimpleQueue[str] = SimpleQueue()
        self.answers: SimpleQueue[str | Exception | None] = SimpleQueue()

    def verify(self, authorization: str, client: str) -> str | None:
        self.began.put(authorization)
        answer = self.answers.get(timeout=PATIENCE_S)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Rig:
    """An Offload with everything around it."""

    def __init__(self, *rules: RateLimitSettings) -> None:
        self.loop = Turns()
        self.store = Store()
        self.hashing = Hashing()
        self.shared = SharedRates("redis://192.0.2.9/0", TIMEOUT_S, clock=lambda: self.loop.now)
        self.shared._store = self.store  # type: ignore[assignment]  # what would talk to a server
        self.limiter = RateLimiter(
            rules or [RateLimitSettings(limit="5/day", strategy="fixed-window")],
            RateLimitingSettings(default="off"),
            failures="off",
            ipv6_prefix=64,
            shared=True,
            dry_run=lambda _rule, _client: None,
            clock=lambda: self.loop.now,
        )
        self.offload = Offload(
            post=self.loop.post,
            plan=self.loop.plan,
            limiter=self.limiter,
            authenticator=self.hashing,  # type: ignore[arg-type]
            shared=self.shared,
            store_timeout_s=TIMEOUT_S,
        )
        self.told: list[bool] = []  # of each that was decided, in order: whether it was let in
        self.offload.start()
        self.loop.pass_time(0.0)
        self.store.touches.get(timeout=PATIENCE_S)
        self.loop.take_posted()

    def question(self, client: str = "192.0.2.1") -> Question:
        question = self.limiter.check(Asked(client), self.loop.now)
        assert isinstance(question, Question)
        return question

    def ask(self, client: str = "192.0.2.1") -> bool:
        asked = Asked(client)
        return self.offload.rates(
            asked, asked, self.question(client), lambda refusal, _now: self.told.append(refusal is None)
        )

    def lose_the_store(self) -> None:
        assert self.ask("192.0.2.99")
        self.store.let(ConnectionError("gone"))
        self.loop.take_posted()
        assert self.told.pop()
        self.store.await_asked()
        assert not self.shared.available


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    close(rig)


def close(rig: Rig) -> None:
    rig.store.ready = True
    rig.store.let(*[0.0] * 50)
    for _ in range(20):
        rig.hashing.answers.put(None)
    rig.offload.stop(time.monotonic() + PATIENCE_S)


# --- one question ---


@pytest.mark.parametrize(("wait_s", "admitted"), [(0.0, True), (30.0, False)], ids=["admitted", "refused"])
def test_an_answer_in_time_is_what_counts(rig: Rig, wait_s: float, admitted: bool) -> None:
    assert rig.ask()
    rig.store.let(wait_s)
    rig.loop.take_posted()
    assert rig.told == [admitted]
    rig.loop.pass_time(10.0)
    assert rig.told == [admitted], "its time limit has nothing to say any more"


def test_when_time_is_up_memory_decides_and_the_answer_comes_too_late(rig: Rig) -> None:
    assert rig.ask()
    rig.loop.pass_time(TIMEOUT_S)
    assert rig.told == [True]
    rig.store.let(30.0)
    rig.loop.take_posted()
    assert rig.told == [True], "nobody is told twice"
    assert rig.shared.available, "one that is late is no reason to leave the store alone"


def test_a_bug_of_ours_in_what_follows_ends_the_connection_that_waits(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_refusal: object, _now: float) -> None:
        raise ValueError("a bug")

    asked = Asked()
    assert rig.offload.rates(asked, asked, rig.question(), fail)
    rig.store.let(0.0)
    rig.loop.take_posted()
    assert asked.closed
    assert "internal error" in caplog.text


def test_a_request_that_asks_twice_has_one_time_limit(rig: Rig) -> None:
    asked = Asked()
    asked.store_spent_s = TIMEOUT_S
    assert not rig.offload.rates(asked, asked, rig.question(), lambda *_: None), "memory decides at once"


def test_an_answer_that_has_been_posted_is_in_time_however_late_the_loop_is(rig: Rig) -> None:
    assert rig.ask()
    rig.store.let(30.0)
    while rig.loop.quiet:
        time.sleep(0.001)
    rig.loop.take_posted()  # as in a turn of the loop: before what was planned
    rig.loop.pass_time(1.0)
    assert rig.told == [False]


def test_while_the_store_says_nothing_no_more_get_in_than_the_local_limit(rig: Rig) -> None:
    for _ in range(9):
        assert rig.ask()
    rig.loop.pass_time(TIMEOUT_S)
    assert sorted(rig.told) == [False] * 4 + [True] * 5


def test_what_the_store_admitted_counts_here_when_it_goes(rig: Rig) -> None:
    for _ in range(3):
        assert rig.ask()
        rig.store.let(0.0)
        rig.loop.take_posted()
    rig.lose_the_store()
    decided = []
    for _ in range(4):
        assert not rig.ask(), "the gate decides from memory at once"
        decided.append(rig.limiter.decide(rig.question(), rig.loop.now) is None)
    assert rig.told + decided == [True] * 5 + [False] * 2


# --- a store that fails ---


def test_one_that_fails_is_left_alone_at_once_and_taken_back(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.lose_the_store()
    for _ in range(20):
        assert not rig.ask()
    assert rig.store.asked.empty()
    rig.loop.pass_time(0.5)
    assert rig.store.touches.empty(), "it is looked for after a second, by one probe"
    rig.loop.pass_time(0.6)
    rig.store.touches.get(timeout=PATIENCE_S)
    rig.loop.take_posted()
    assert rig.store.touches.empty()
    assert rig.ask("192.0.2.2")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2, "gone, and back"


def test_those_that_wait_when_it_fails_are_all_decided_once(rig: Rig) -> None:
    count = offload.STORE_THREADS + 20
    for number in range(count):
        assert rig.ask(f"192.0.2.{number}")
    rig.store.await_asked(offload.STORE_THREADS)
    rig.store.let(*[TimeoutError("silent")] * offload.STORE_THREADS)
    rig.loop.take_posted(count)
    assert rig.told == [True] * count
    assert rig.store.asked.empty(), "what waited for a thread does not ask, too"
    rig.loop.pass_time(TIMEOUT_S)
    assert len(rig.told) == count


def test_one_that_fails_at_a_count_that_nobody_waits_for_is_looked_for_again() -> None:
    rig = Rig(RateLimitSettings(limit="5/day", strategy="fixed-window", status=(401,)))
    try:
        assert rig.ask()
        rig.store.let(0.0, ConnectionError("gone"))
        rig.loop.take_posted()
        respond(rig, 1)
        rig.loop.pass_time(offload.COUNT_AFTER_S)
        rig.loop.take_posted()
        assert not rig.shared.available
        rig.loop.pass_time(1.1)
        rig.store.touches.get(timeout=PATIENCE_S)
        rig.loop.take_posted()
        assert rig.shared.available, "without a request that would have it looked for"
    finally:
        close(rig)


# --- questions that are late ---


@pytest.mark.parametrize(
    ("each", "in_time", "left_alone"),
    [(1, 9, False), (1, 4, False), (1, 1, True), (1, 0, True)],
    ids=["a tenth", "a fifth", "a half", "all"],
)
def test_when_many_questions_are_late_no_more_are_asked(rig: Rig, each: int, in_time: int, left_alone: bool) -> None:
    """Each late one has waited for the whole time limit, for nothing."""
    for round_ in range(40):
        for number in range(each + in_time):
            if not rig.ask(f"198.51.100.{round_}"):
                break
            if number < each:
                rig.loop.pass_time(TIMEOUT_S)
                rig.store.let(0.0)
                rig.loop.take_posted()
            else:
                rig.store.let(0.0)
                rig.loop.take_posted()
    assert rig.shared.available != left_alone


def test_after_a_break_lateness_counts_anew(rig: Rig) -> None:
    late = int(offload.MOST_LATE) - 1

    def be_late() -> None:
        for number in range(late):
            assert rig.ask(f"198.51.100.{number}")
            rig.loop.pass_time(TIMEOUT_S)
            rig.store.let(0.0)
            rig.loop.take_posted()

    be_late()
    rig.lose_the_store()
    assert not rig.ask()
    rig.loop.pass_time(1.1)
    rig.loop.take_posted()
    be_late()
    assert rig.shared.available


def test_time_that_is_up_between_two_limits_is_not_the_stores_fault() -> None:
    """A thread that did not get the interpreter is late, too; what counts is whether many are."""
    rig = Rig(RateLimitSettings(limit="5/minute; 9/hour"))
    try:
        assert rig.ask()
        rig.store.await_asked()
        rig.loop.now += 2 * TIMEOUT_S
        rig.store.let(0.0)
        rig.loop.take_posted()
        assert rig.told == [True]
        assert rig.store.asked.empty(), "nobody waits for the second limit"
        assert rig.shared.available
    finally:
        close(rig)


# --- more than can wait ---


def test_with_the_queue_full_memory_decides_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.offload._questions, "_max_waiting", 6)
    for _ in range(offload.STORE_THREADS):
        assert rig.ask()
    rig.store.await_asked(offload.STORE_THREADS)
    answers = [rig.ask(f"192.0.2.{number}") for number in range(10)]
    assert answers == [True] * 6 + [False] * 4
    rig.store.let(*[0.0] * (offload.STORE_THREADS + 6))
    rig.loop.take_posted(offload.STORE_THREADS + 6)
    assert rig.told == [True] * (offload.STORE_THREADS + 6)
    assert rig.ask(), "and then there is room again"


def test_passwords_do_not_hold_up_the_store(rig: Rig) -> None:
    for number in range(offload.PASSWORD_THREADS + 5):
        assert rig.offload.password(*[Asked(f"192.0.2.{number}")] * 2, lambda *_: None)
    for _ in range(offload.PASSWORD_THREADS):
        rig.hashing.began.get(timeout=PATIENCE_S)
    assert rig.ask()
    rig.store.let(0.0)
    rig.loop.take_posted()
    assert rig.told == [True]


# --- responses that are counted ---


def respond(rig: Rig, count: int) -> None:
    """Have `count` requests be answered with 401."""
    for number in range(count):
        asked = Asked(f"198.51.{number // 250}.{number % 250}")
        question = rig.limiter.check(asked, rig.loop.now)
        assert isinstance(question, Question)
        assert rig.limiter.answered(question, [0.0], rig.loop.now) is None
        rig.limiter.responded(asked.rate_slots, 401)


@pytest.fixture
def by_status() -> Iterator[Rig]:
    rig = Rig(RateLimitSettings(limit="5/day", strategy="fixed-window", status=(401,)))
    yield rig
    close(rig)


def test_responses_are_counted_with_the_next_question_and_then_by_the_second(by_status: Rig) -> None:
    rig = by_status
    rig.store.ready = True
    respond(rig, 20)
    assert rig.ask()
    rig.loop.take_posted()
    taken = [hit.take for hit in rig.store.taken]
    assert taken == [True] * offload.COUNTED_WITH_A_QUESTION + [False]
    rig.loop.pass_time(1.0)
    rig.loop.take_posted()
    rig.loop.pass_time(1.0)
    rig.loop.take_posted()
    keys = [hit.key for hit in rig.store.taken if hit.take]
    assert len(keys) == len(set(keys)) == 20, "each once"
    rig.loop.pass_time(5.0)
    assert rig.loop.quiet, "with nothing to count nothing is planned"


def test_what_is_counted_while_the_store_is_away_is_not_brought_to_it_later(by_status: Rig) -> None:
    rig = by_status
    rig.store.away = True
    rig.lose_the_store()
    assert not rig.ask()
    rig.loop.pass_time(1.1)
    rig.loop.take_posted()
    respond(rig, 30)
    assert not rig.ask()
    rig.store.away, rig.store.ready = False, True
    rig.loop.pass_time(2.1)
    rig.loop.take_posted()
    assert rig.shared.available
    rig.store.taken.clear()
    assert rig.ask()
    rig.loop.take_posted()
    rig.loop.pass_time(3.0)
    assert [hit.take for hit in rig.store.taken] == [False]


def test_what_waits_to_be_counted_is_bounded(by_status: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = by_status
    rig.store.ready = True
    for _ in range(12):
        respond(rig, 1000)
        assert rig.ask()
        rig.loop.take_posted()
    assert len(rig.offload._uncounted) == offload.MOST_UNCOUNTED - offload.COUNTED_WITH_A_QUESTION


# --- passwords ---


def test_the_user_is_told_on_the_loop(rig: Rig) -> None:
    told: list[object] = []
    request = Asked(headers={"HTTP_AUTHORIZATION": "Basic x"})
    assert rig.offload.password(request, request, lambda user, _now: told.append(user))
    assert rig.hashing.began.get(timeout=PATIENCE_S) == "Basic x"
    rig.hashing.answers.put("ada")
    rig.loop.take_posted()
    assert told == ["ada"]


def test_so_many_of_one_client_at_once_and_no_more_until_one_is_done(rig: Rig) -> None:
    def guess(client: str) -> bool:
        request = Asked(client)
        return rig.offload.password(request, request, lambda *_: None)

    assert [guess("192.0.2.1") for _ in range(9)] == [True] * offload.PASSWORDS_OF_A_CLIENT + [False]
    assert guess("192.0.2.2"), "others can"
    rig.hashing.answers.put(None)
    rig.loop.take_posted()
    assert [guess("192.0.2.1") for _ in range(2)] == [True, False]
    for _ in range(9):
        rig.hashing.answers.put(MemoryError())
    rig.loop.take_posted(9)
    assert rig.offload._trying == {}, "nothing is remembered of who is done, however that went"


def test_a_client_that_has_gone_is_not_checked_and_not_told(rig: Rig) -> None:
    class Gone:
        request = None

    for _ in range(offload.PASSWORD_THREADS):
        assert rig.offload.password(*[Asked()] * 2, lambda *_: None)
    told: list[object] = []
    assert rig.offload.password(Gone(), Asked("192.0.2.2"), lambda user, _now: told.append(user))
    for _ in range(offload.PASSWORD_THREADS):
        rig.hashing.began.get(timeout=PATIENCE_S)
        rig.hashing.answers.put(None)
    rig.loop.take_posted(offload.PASSWORD_THREADS + 1)
    assert rig.hashing.began.empty()
    assert told == []
    assert rig.offload._trying == {}


# --- the end ---


def test_a_stop_does_not_wait_for_a_store_that_is_silent(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(offload.STORE_THREADS + 3):
        assert rig.ask()
    rig.store.await_asked(offload.STORE_THREADS)
    begun = time.monotonic()
    rig.offload.stop(begun)
    assert time.monotonic() - begun < 5
    rig.store.let(*[ConnectionError("closed")] * offload.STORE_THREADS)
    rig.loop.take_posted(offload.STORE_THREADS)  # or never, when the loop is gone
    assert not rig.ask()
    rig.loop.pass_time(30.0)
    assert rig.store.asked.empty(), "what had not begun is not asked, and the store not looked for"
    assert caplog.records == []


def test_each_is_decided_once_whoever_is_first() -> None:
    """Answers, failures and time limits, in any order and as threads like to take turns."""
    rig = Rig(RateLimitSettings(limit="100000/day", strategy="fixed-window"))
    chance, decided, asked = random.Random(4), [], 0
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            try:
                rig.store.asked.get(timeout=0.01)
            except Empty:
                continue
            rig.store.let(chance.choice([0.0, 0.0, 0.0, 9.0]))

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        with switching_often():
            for number in range(60_000):
                if number >= 600 and asked > 10:
                    break  # while the store is taken to be down, nobody asks it
                question = rig.question(f"198.51.100.{number % 200}")
                then = lambda _refusal, _now, number=number: decided.append(number)  # noqa: E731
                if rig.offload.rates(Asked(), Asked(), question, then):
                    asked += 1
                if number % 3 == 0:
                    rig.loop.pass_time(chance.choice([0.0, TIMEOUT_S / 2]))
                while not rig.loop.quiet:
                    rig.loop.take_posted()
        rig.loop.pass_time(TIMEOUT_S)
        assert asked > 10
        assert len(decided) == len(set(decided)) == asked
    finally:
        ended.set()
        answering.join(PATIENCE_S)
        close(rig)
