"""The rules of rate limiting: whom they let in and when, what they tell the others, and no way past them."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.edge import ratelimit, ratepressure, raterules
from hardserve.edge.limitsstorage import BoundedStorage
from hardserve.edge.networks import prefix_key
from hardserve.edge.parsing import ParserRules
from hardserve.edge.parsing import Request as ParsedRequest
from hardserve.edge.ratelimit import Hit, Question, RateLimiter, RateRefusal
from hardserve.settings import LimitSettings, RateLimitingSettings, RateLimitSettings
from hardserve.values import parse_rates
from tests.support import switching_often

HOME = "192.0.2.1"
OTHER = "198.51.100.7"
# Not a round number: where windows begin must not matter.
START = 100_000_003.0


@dataclass(slots=True)
class Request:
    path: str = "/"
    command: str = "GET"
    address: str = HOME
    user: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    client: str = ""
    rate_slots: Any = None

    def __post_init__(self) -> None:
        if self.address != "unix:":
            self.client = self.client or prefix_key(self.address, 32, 64)


def with_key(value: str, address: str = HOME) -> Request:
    return Request(headers={"HTTP_X_API_KEY": value}, address=address)


def rule(limit: str, **more: Any) -> RateLimitSettings:
    return RateLimitSettings(limit=limit, **more)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Limited:
    """A limiter, its clock, and what it reported; `ask` makes a request as the server does."""

    def __init__(
        self,
        *rules: RateLimitSettings,
        default: str = "off",
        failures: str = "off",
        ipv6_prefix: int = 64,
        shared: bool = False,
        storage: BoundedStorage | None = None,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.reported: list[tuple[str, str]] = []
        self.limiter = RateLimiter(
            rules,
            RateLimitingSettings(default=default, **options),
            failures=failures,
            ipv6_prefix=ipv6_prefix,
            shared=shared,
            dry_run=lambda name, client: self.reported.append((name, client)),
            storage=storage,
            clock=self.clock,
        )

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def ask(self, request: Request, status: int = 200) -> RateRefusal | None:
        """Return why the request is refused; else it has been answered with `status`."""
        for check in (self.limiter.check, self.limiter.check_user):
            refusal = check(request, self.clock.now)
            assert not isinstance(refusal, Question)
            if refusal is not None:
                assert request.rate_slots is None
                return refusal
        self.limiter.responded(request.rate_slots, status)
        return None

    def admits(self, request: Request, status: int = 200) -> bool:
        return self.ask(request, status) is None


# --- every setting ---

# What is set, and requests with whether they are let in, one after the other, 1 ms apart.
SETTINGS: dict[str, tuple[RateLimitSettings, list[tuple[Request, bool]]]] = {
    "limit: so many, and no more": (rule("2/hour"), [(Request(), True), (Request(), True), (Request(), False)]),
    "limit: the shorter of two windows": (
        rule("2/second; 3/hour"),
        [(Request(), True), (Request(), True), (Request(), False), (Request(), False)],
    ),
    "path: another one is free": (
        rule("1/hour", path="/login"),
        [(Request("/login"), True), (Request("/loginx"), True), (Request("/Login"), True), (Request("/login"), False)],
    ),
    "path: a glob is one count for all of it": (
        rule("1/hour", path="/api/*"),
        [(Request("/api/a"), True), (Request("/api/b"), False), (Request("/api"), False), (Request("/apis"), True)],
    ),
    "methods: others are free": (
        rule("1/hour", methods=("POST",)),
        [(Request(command="POST"), True), (Request(command="GET"), True), (Request(command="POST"), False)],
    ),
    "methods: HEAD does not pass a rule for GET": (
        rule("1/hour", methods=("GET",)),
        [(Request(command="GET"), True), (Request(command="HEAD"), False), (Request(command="POST"), True)],
    ),
    "methods: a rule for HEAD is not one for GET": (
        rule("1/hour", methods=("HEAD",)),
        [(Request(command="HEAD"), True), (Request(command="GET"), True), (Request(command="HEAD"), False)],
    ),
    "key client: each address has its own": (
        rule("1/hour"),
        [(Request(), True), (Request(address=OTHER), True), (Request("/other"), False)],
    ),
    "key client: a /64 is one": (
        rule("1/hour"),
        [
            (Request(address="2001:db8::1"), True),
            (Request(address="2001:db8::ffff:2"), False),
            (Request(address="2001:db8:0:1::1"), True),
        ],
    ),
    "key client: all of a Unix socket is one": (
        rule("1/hour"),
        [(Request(address="unix:"), True), (Request("/other", address="unix:"), False), (Request(), True)],
    ),
    "key client+path: each path has its own": (
        rule("1/hour", key="client+path"),
        [(Request("/a"), True), (Request("/b"), True), (Request("/a"), False), (Request("/a", address=OTHER), True)],
    ),
    "key client+path: spellings of a path are one": (
        rule("1/hour", key="client+path"),
        [(Request("/a"), True), (Request("//a"), False), (Request("/a/"), False), (Request("/x/../a/."), False)],
    ),
    "key client+path: the root, however it is written": (
        rule("1/hour", key="client+path"),
        [(Request("/"), True), (Request(""), False), (Request("//"), False)],
    ),
    "key header: each value has its own, from wherever": (
        rule("1/hour", key="header:X-Api-Key"),
        [(with_key("a"), True), (with_key("b"), True), (with_key("a", OTHER), False)],
    ),
    "key header: leaving it out, or empty, counts for the client": (
        rule("1/hour", key="header:x-api-key"),
        [(Request(), True), (with_key(""), False), (Request(address=OTHER), True), (with_key("a"), True)],
    ),
    "key header: one that WSGI names otherwise": (
        rule("1/hour", key="header:Content-Type"),
        [
            (Request(headers={"CONTENT_TYPE": "a"}), True),
            (Request(headers={"CONTENT_TYPE": "b"}), True),
            (Request(headers={"CONTENT_TYPE": "a"}), False),
        ],
    ),
    "key user: from wherever": (
        rule("1/hour", key="user"),
        [(Request(user="ann"), True), (Request(user="bob"), True), (Request(user="ann", address=OTHER), False)],
    ),
    "key user: nobody counts for the client": (
        rule("1/hour", key="user"),
        [(Request(), True), (Request(), False), (Request(address=OTHER), True), (Request(user="ann"), True)],
    ),
    "key global: all together": (rule("1/hour", key="global"), [(Request(), True), (Request(address=OTHER), False)]),
    "burst: that many besides the first": (
        rule("1/hour", burst=2),
        [(Request(), True), (Request(), True), (Request(), True), (Request(), False)],
    ),
    "burst 0: one at a time": (rule("60/hour", burst=0), [(Request(), True), (Request(), False)]),
    "cost: fewer fit": (rule("5/hour", cost=2), [(Request(), True), (Request(), True), (Request(), False)]),
    "cost: more than there is": (rule("5/hour", cost=6), [(Request(), False)]),
    "exempt: by address, whatever its key": (
        rule("1/hour", exempt=("192.0.2.0/24",)),
        [(Request(), True), (Request(), True), (Request(address=OTHER), True), (Request(address=OTHER), False)],
    ),
    "exempt: a Unix socket": (
        rule("1/hour", exempt=("unix",)),
        [(Request(address="unix:"), True), (Request(address="unix:"), True)],
    ),
    "dry_run: refuses nobody": (rule("1/hour", dry_run="on"), [(Request(), True), (Request(), True)]),
}


@pytest.mark.parametrize(("setting", "requests"), SETTINGS.values(), ids=SETTINGS)
def test_each_setting(setting: RateLimitSettings, requests: list[tuple[Request, bool]]) -> None:
    limited = Limited(setting)
    for number, (request, admitted) in enumerate(requests):
        again = Request(**{name: getattr(request, name) for name in ("path", "command", "address", "user", "headers")})
        assert limited.admits(again) is admitted, f"request {number}"
        limited.wait(0.001)


@pytest.mark.parametrize(
    ("strategy", "at_most_s"), [("fixed-window", 60), ("moving-window", 60), ("sliding-window-counter", 120)]
)
def test_each_strategy_says_when_to_come_back_and_keeps_its_word(strategy: str, at_most_s: int) -> None:
    limited = Limited(rule("3/minute", strategy=strategy))
    assert all(limited.admits(Request()) for _ in range(3))
    refusal = limited.ask(Request())
    assert refusal
    assert 1 <= refusal.retry_after_s <= at_most_s
    limited.wait(refusal.retry_after_s - 1.0)
    assert not limited.admits(Request())
    limited.wait(1.0)
    assert limited.admits(Request())


@pytest.mark.parametrize("shared", [False, True], ids=["in memory", "shared"])
def test_the_default_rule_is_a_burst_for_each_client_in_memory(shared: bool) -> None:
    limited = Limited(default="10/second", default_burst=3, shared=shared)
    assert [limited.admits(Request()) for _ in range(5)] == [True] * 4 + [False]
    assert limited.admits(Request(address=OTHER))
    limited.wait(0.1)
    assert [limited.admits(Request("/anything")) for _ in range(2)] == [True, False]


def test_without_rules_nobody_is_refused() -> None:
    limited = Limited()
    assert all(limited.admits(Request()) for _ in range(1000))
    assert limited.limiter.may_try_password(Request(), START) is None


@pytest.mark.parametrize("shared", [False, True], ids=["in memory", "shared"])
def test_it_is_known_whether_there_are_rules_by_user(shared: bool) -> None:
    assert Limited(rule("1/hour"), rule("1/hour", key="user"), shared=shared).limiter.by_user
    assert not Limited(rule("1/hour"), default="1/hour", shared=shared).limiter.by_user


# --- spellings of one path ---

SPELLINGS = {
    "as it is": b"GET /login",
    "two slashes": b"GET //login",
    "a dot segment": b"GET /./login",
    "an encoded letter": b"GET /%6cogin",
    "an encoded dot segment": b"GET /%2e/login",
    "up and down": b"GET /a/../login",
    "above the root": b"GET /../login",
    "a slash at the end": b"GET /login/",
    "slashes at the end": b"GET /login//",
    "a dot segment at the end": b"GET /login/.",
    "with a query": b"GET /login?next=/",
    "absolute": b"GET http://test/login",
    "HEAD": b"HEAD /login",
    "HEAD, with two slashes": b"HEAD //login",
}


def parsed(request_line: bytes) -> Request:
    """Return what the server would be asked, read by its own parser."""
    request = ParsedRequest(ParserRules(LimitSettings()), 0.0)
    request.feed(request_line + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert request.refusal is None
    return Request(request.path, request.command)


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("key", ["client", "client+path", "user"])
def test_no_spelling_of_a_path_gets_past_its_rule(spelling: bytes, key: str) -> None:
    limited = Limited(rule("1/hour", path="/login", methods=("GET",), key=key))
    assert limited.admits(parsed(b"GET /login"))
    assert not limited.admits(parsed(spelling))


# --- several rules ---


def test_each_rule_must_let_a_request_in() -> None:
    limited = Limited(rule("3/hour"), rule("1/hour", path="/login"), default="1/day", default_burst=9)
    assert limited.admits(Request("/login"))
    refusal = limited.ask(Request("/login"))
    assert refusal
    assert refusal.rule == "rate_limit[1]"
    assert [limited.admits(Request("/")) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("key", ["client", "user"])
def test_what_one_rule_refuses_costs_the_others_of_its_kind_nothing(key: str) -> None:
    limited = Limited(rule("5/hour", key=key), rule("1/hour", path="/login", key=key), rule("3/hour", key=key))
    assert limited.admits(Request("/login"))
    assert not any(limited.admits(Request("/login")) for _ in range(10))
    assert [limited.admits(Request("/")) for _ in range(3)] == [True, True, False]


def test_a_window_that_refuses_costs_the_others_nothing() -> None:
    limited = Limited(rule("2/second; 4/hour", strategy="moving-window"))
    assert [limited.admits(Request()) for _ in range(10)] == [True, True] + [False] * 8
    limited.wait(1.0)
    assert [limited.admits(Request()) for _ in range(3)] == [True, True, False]
    limited.wait(1.0)
    assert not limited.admits(Request())


def test_the_default_rule_is_asked_first_and_then_in_order() -> None:
    limited = Limited(rule("1/hour"), rule("2/hour"), default="1/hour", default_burst=0)
    assert limited.admits(Request())
    refused = limited.ask(Request())
    assert refused
    assert refused.rule == "default"


def test_the_same_rule_twice_counts_once_each() -> None:
    limited = Limited(rule("2/hour"), rule("2/hour"))
    assert [limited.admits(Request()) for _ in range(3)] == [True, True, False]


# --- a plain model of all of it ---


class ModelWindow:
    """One window by the book, in exact numbers."""

    def __init__(self, amount: int, period: int, strategy: str, burst: int | None) -> None:
        self.amount, self.period, self.strategy, self.burst = amount, period, strategy, burst
        self.taken: list[tuple[int, int]] = []  # moment, cost

    def admits(self, cost: int, now: int) -> bool:
        if self.burst is not None:
            level, at = Fraction(0), self.taken[0][0] if self.taken else now
            for moment, taken in self.taken:
                level = max(Fraction(0), level - Fraction((moment - at) * self.amount, self.period)) + taken
                at = moment
            level = max(Fraction(0), level - Fraction((now - at) * self.amount, self.period))
            return level + cost <= self.burst + 1
        return self.counted(now) + cost <= self.amount

    def counted(self, now: int) -> int:
        if self.strategy == "moving-window":
            return sum(cost for moment, cost in self.taken if moment > now - self.period)
        if self.strategy == "fixed-window":
            begun, count = -math.inf, 0
            for moment, cost in self.taken:
                begun, count = (moment, cost) if moment >= begun + self.period else (begun, count + cost)
            return count if now < begun + self.period else 0
        number = now // self.period
        previous = sum(cost for moment, cost in self.taken if moment // self.period == number - 1)
        current = sum(cost for moment, cost in self.taken if moment // self.period == number)
        return math.floor(Fraction(previous * ((number + 1) * self.period - now), self.period)) + current

    def take(self, cost: int, now: int) -> None:
        self.taken.append((now, cost))


class Model:
    """Rules by the book: a window for each key, all asked, then all taken."""

    def __init__(self, rules: Sequence[RateLimitSettings]) -> None:
        self.rules = rules
        self.windows: dict[tuple[int, str], list[ModelWindow]] = {}
        self.reported: list[str] = []

    def admits(self, request: Request, status: int, now: int) -> bool:  # noqa: C901  # one loop, as in a book
        late = []
        for by_user in (False, True):
            admitting = []
            for number, one in enumerate(self.rules):
                if (one.key == "user") is not by_user or not self.fits(one, request):
                    continue
                windows = self.windows.setdefault(
                    (number, self.key(one, request)),
                    [ModelWindow(*rate, one.strategy, one.burst) for rate in parse_rates(one.limit)],
                )
                if all(window.admits(one.cost, now) for window in windows):
                    admitting.append((one, windows))
                elif one.dry_run == "off":
                    return False
                else:
                    self.reported.append(f"rate_limit[{number}]")
            for one, windows in admitting:
                if not one.status:
                    for window in windows:
                        window.take(one.cost, now)
                elif status in one.status:
                    late += [(window, one.cost) for window in windows]
        for window, cost in late:  # of a request that was refused, no response has this status
            window.take(cost, now)
        return True

    def fits(self, one: RateLimitSettings, request: Request) -> bool:
        return one.path in ("*", request.path) and (not one.methods or request.command in one.methods)

    def key(self, one: RateLimitSettings, request: Request) -> str:
        return {
            "client": request.address,
            "client+path": f"{request.address} {request.path}",
            "header:X-Api-Key": request.headers.get("HTTP_X_API_KEY") or f"of {request.address}",
            "user": request.user or f"of {request.address}",
            "global": "",
        }[one.key]


LIMITS = [
    "1/second",
    "3/2 seconds",
    "4/5 seconds",
    "5/10 seconds",
    "2/second; 4/5 seconds",
    "3/2 seconds; 5/10 seconds",
]
RULES = st.builds(
    RateLimitSettings,
    limit=st.sampled_from(LIMITS),
    path=st.sampled_from(["*", "*", "/a"]),
    methods=st.sampled_from([(), ("POST",)]),
    key=st.sampled_from(["client", "client", "client+path", "header:X-Api-Key", "user", "global"]),
    strategy=st.sampled_from(["fixed-window", "moving-window", "sliding-window-counter"]),
    burst=st.sampled_from([None, None, 0, 2]),
    cost=st.sampled_from([1, 1, 1, 2, 6]),
    status=st.sampled_from([(), (), (404,)]),
    dry_run=st.sampled_from(["off", "off", "on"]),
)
REQUESTS = st.builds(
    Request,
    path=st.sampled_from(["/a", "/b"]),
    command=st.sampled_from(["GET", "POST"]),
    address=st.sampled_from([HOME, OTHER]),
    user=st.sampled_from(["", "ann"]),
    headers=st.sampled_from([{}, {"HTTP_X_API_KEY": "1"}]),
)


@settings(deadline=None, max_examples=200)
@given(
    rules=st.lists(RULES, min_size=1, max_size=4),
    asked=st.lists(
        st.tuples(st.sampled_from([0, 0, 0, 1, 1, 2, 5]), REQUESTS, st.sampled_from([200, 404])), max_size=40
    ),
)
def test_never_more_and_never_fewer_than_by_the_book(
    rules: list[RateLimitSettings], asked: list[tuple[int, Request, int]]
) -> None:
    limited, model = Limited(*rules), Model(rules)
    for pause, request, status in asked:
        limited.wait(pause)
        request.rate_slots = None
        expected = model.admits(request, status, int(limited.clock.now))
        assert limited.admits(request, status) is expected
    assert [name for name, _ in limited.reported] == model.reported


# --- what a key may be made of ---

FORGERIES = [
    "192.0.2.1",
    "=",
    "*",
    "",
    "192.0.2.1=x",
    "=192.0.2.1",
    ":",
    "a:b",
    "\xff" * 8,
    " ",
    "2001:db8::/64",
    "x" * 9000,
]


def test_no_value_of_a_header_is_the_key_of_another_or_of_a_client() -> None:
    limited = Limited(rule("1/hour", key="header:X-Api-Key"))
    asked = [Request(), *(with_key(value, OTHER) for value in FORGERIES)]
    assert [limited.admits(request) for request in asked] == [True] * len(asked)
    assert not any(limited.admits(request) for request in asked)


def test_users_and_clients_are_told_apart() -> None:
    limited = Limited(rule("1/hour", key="user"))
    asked = [Request(address="203.0.113.9"), Request(), *(Request(user=value) for value in FORGERIES if value)]
    assert [limited.admits(request) for request in asked] == [True] * len(asked)


@pytest.mark.parametrize("key", ["client", "client+path", "header:X-Api-Key", "user", "global"])
def test_keys_are_short_and_plain_whatever_a_client_sends(key: str) -> None:
    limited = Limited(rule("1/hour; 2/day", key=key), shared=True)
    request = Request("/\xff \n" * 3000, headers={"HTTP_X_API_KEY": "secret \xfe" * 900}, user="\u00e4 \ud800" * 999)
    request.address, request.client = "2001:db8:1111:2222:3333::", "2001:db8:1111:2222::/64"
    check = limited.limiter.check_user if key == "user" else limited.limiter.check
    question = check(request, START)
    assert isinstance(question, Question)
    for hit in question.hits:
        assert re.fullmatch(r"[!-~]{1,100}", hit.key)
        assert "secret" not in hit.key


def test_windows_and_rules_have_keys_of_their_own() -> None:
    rules = [
        rule("5/minute"),
        rule("5/minute"),
        rule("5/minute", burst=1),
        rule("5/minute", strategy="fixed-window"),
        rule("5/minute", path="/"),
        rule("5/minute; 9/hour"),
        rule("5/minute", status=(200,)),
    ]
    question = Limited(*rules, shared=True).limiter.check(Request(), START)
    assert isinstance(question, Question)
    assert len(question.hits) == len(rules) + 1 == len({hit.key for hit in question.hits})


def test_a_rule_has_the_same_keys_wherever_it_stands() -> None:
    """Processes that share a store are not restarted all at once."""

    def keys(*rules: RateLimitSettings) -> list[str]:
        question = Limited(*rules, shared=True).limiter.check(Request(), START)
        assert isinstance(question, Question)
        return [hit.key for hit in question.hits]

    some, others = rule("5/minute", path="/*"), rule("9/minute")
    assert keys(some, others) == keys(others, some)[::-1]
    assert keys(some) == keys(some, others)[:1]
    assert keys(some) != keys(rule("5/minute", path="/*", cost=2))


# --- dry run ---


def test_a_dry_run_reports_whom_it_would_refuse_and_counts_as_if_it_had() -> None:
    limited = Limited(rule("1/10 seconds", strategy="moving-window", dry_run="on"), rule("4/hour"))
    assert [limited.admits(Request(address="2001:db8::1")) for _ in range(3)] == [True] * 3
    assert limited.reported == [("rate_limit[0]", "2001:db8::/64")] * 2
    limited.wait(10.0)
    assert limited.admits(Request(address="2001:db8::1"))
    assert len(limited.reported) == 2, "what it had refused was counted"
    assert not limited.admits(Request(address="2001:db8::1")), "the other rule did count what the dry run let in"


# --- status ---


def test_only_responses_with_the_statuses_count() -> None:
    limited = Limited(rule("2/hour", status=(401, 403)))
    assert [limited.admits(Request(), status) for status in (200, 401, 404, 500, 403)] == [True] * 5
    assert not limited.admits(Request(), 200)
    assert limited.admits(Request(address=OTHER), 200)


def test_a_response_counts_for_the_next_request_and_at_the_time_when_it_left() -> None:
    limited = Limited(rule("1/10 seconds", status=(401,), strategy="moving-window"))
    request = Request()
    assert limited.limiter.check(request, START) is None
    limited.wait(5.0)
    limited.limiter.responded(request.rate_slots, 401)
    assert not limited.admits(Request())
    limited.wait(9.5)
    assert not limited.admits(Request())
    limited.wait(0.5)
    assert limited.admits(Request())


def test_on_a_quiet_server_a_late_count_is_not_new() -> None:
    limited = Limited(rule("1/10 seconds", status=(401,), strategy="moving-window"))
    assert limited.admits(Request(), 401)
    limited.wait(10.0)
    assert limited.admits(Request(), 200)


def test_requests_in_progress_at_once_are_what_overshoots() -> None:
    limited = Limited(rule("2/hour", status=(401,)))
    in_progress = [Request() for _ in range(5)]
    assert all(limited.limiter.check(request, START) is None for request in in_progress)
    for request in in_progress:
        limited.limiter.responded(request.rate_slots, 401)
    assert not limited.admits(Request())


def test_a_request_that_is_refused_counts_no_response() -> None:
    limited = Limited(rule("2/hour", status=(429,)), rule("1/hour", path="/a"), rule("1/hour", path="/b", key="user"))
    for path in ("/a", "/b"):
        assert limited.admits(Request(path), 200)
        for _ in range(5):
            refused = Request(path)
            assert not limited.admits(refused)
            limited.limiter.responded(refused.rate_slots, 429)
    assert [limited.admits(Request(), 429) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("slots", [None, ()], ids=["nothing hung on it", "no rule by status"])
def test_a_response_without_slots_counts_nothing(slots: Any) -> None:
    limited = Limited(rule("1/hour", status=(200,)))
    limited.limiter.responded(slots, 200)
    assert limited.admits(Request())


@pytest.mark.parametrize("spare", [0, 1], ids=["all of the limit", "one less"])
def test_no_response_of_any_thread_is_lost_or_counted_twice(spare: int) -> None:
    threads, each = 4, 100
    limited = Limited(rule(f"{threads * each + spare}/hour", status=(404,), strategy="fixed-window"))
    limiter = limited.limiter
    requests = [[Request() for _ in range(2 * each)] for _ in range(threads)]
    for mine in requests:
        for request in mine:
            assert limiter.check(request, START) is None

    def answer(mine: list[Request]) -> None:
        for number, request in enumerate(mine):
            limiter.responded(request.rate_slots, 404 if number % 2 else 200)

    workers = [threading.Thread(target=answer, args=(mine,)) for mine in requests]
    with switching_often():
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            limiter.check(Request(address=OTHER), START)
        for worker in workers:
            worker.join()
    assert limited.admits(Request()) is bool(spare)


def test_responses_are_handed_to_the_shared_store_once_while_threads_add_more() -> None:
    threads, each = 4, 200
    limited = Limited(rule("9/hour", status=(404,)), shared=True)
    question = limited.limiter.check(Request(), START)
    assert isinstance(question, Question)
    assert limited.limiter.answered(question, [0.0], START) is None
    slots = question.asked.rate_slots

    def answer() -> None:
        for _ in range(each):
            limited.limiter.responded(slots, 404)

    workers = [threading.Thread(target=answer) for _ in range(threads)]
    drained = 0
    with switching_often():
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            drained += len(limited.limiter.drain_shared())
        for worker in workers:
            worker.join()
    assert drained + len(limited.limiter.drain_shared()) == threads * each


# --- passwords ---


def test_wrong_passwords_are_counted_by_client_and_only_those() -> None:
    limited = Limited(failures="3/minute")
    limiter = limited.limiter
    for _ in range(3):
        assert limiter.may_try_password(Request(), START) is None
        assert limiter.may_try_password(Request(), START) is None, "asking counts nothing"
        limiter.password_failed(Request(), START)
    refusal = limiter.may_try_password(Request(), START)
    assert refusal
    assert refusal.rule == "auth"
    assert limiter.may_try_password(Request(address=OTHER), START) is None
    assert limiter.check(Request(), START) is None, "it is no limit for requests"
    assert limiter.may_try_password(Request(), START + refusal.retry_after_s) is None


def test_without_a_limit_of_failures_any_number_may_be_tried() -> None:
    limiter = Limited(failures="off").limiter
    for _ in range(100):
        limiter.password_failed(Request(), START)
    assert limiter.may_try_password(Request(), START) is None


# --- what a refusal says ---

SF_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
SF_KEY = r"[a-z*][a-z0-9_\-.*]*"
SF_INTEGER = r"-?[0-9]{1,15}"
SF_ITEM = re.compile(rf"({SF_STRING})((?:;{SF_KEY}={SF_INTEGER})+)")


def structured(value: str) -> list[tuple[str, dict[str, int]]]:
    """Read a list of strings with parameters that are integers (RFC 9651), and nothing else."""
    members = []
    for member in re.split(r", ?", value):
        match = SF_ITEM.fullmatch(member)
        assert match, f"not an item: {member}"
        pairs = [part.split("=") for part in match[2].split(";")[1:]]
        assert len({name for name, _ in pairs}) == len(pairs)
        members.append((match[1][1:-1], {name: int(number) for name, number in pairs}))
    return members


def fields_of(refusal: RateRefusal | Question | None) -> dict[str, str]:
    assert isinstance(refusal, RateRefusal)
    assert refusal.fields.endswith(b"\r\n")
    lines = refusal.fields.decode("ascii").removesuffix("\r\n").split("\r\n")
    fields = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z-]+): ([!-~](?:[ -~]*[!-~])?)", line)
        assert match, line
        fields[match[1]] = match[2]
    assert len(fields) == len(lines)
    assert fields["Retry-After"] == str(refusal.retry_after_s)
    return fields


# What is set, how many requests come at once, and the policy, the limit that binds, and X-RateLimit-Limit.
SAID: dict[str, tuple[RateLimitSettings, int, str, str, int]] = {
    "one window": (
        rule("3/minute", strategy="moving-window"),
        3,
        '"rate_limit[0]";q=3;w=60',
        '"rate_limit[0]";r=0;t=60',
        3,
    ),
    "the shorter of two": (
        rule("1/10 seconds; 3/minute", strategy="moving-window"),
        1,
        '"rate_limit[0]:10s";q=1;w=10, "rate_limit[0]:60s";q=3;w=60',
        '"rate_limit[0]:10s";r=0;t=10',
        1,
    ),
    "a cost: in requests": (
        rule("14/minute", strategy="moving-window", cost=5),
        2,
        '"rate_limit[0]";q=2;w=60',
        '"rate_limit[0]";r=0;t=60',
        2,
    ),
    "a cost that never fits": (rule("3/minute", cost=4), 0, '"rate_limit[0]";q=0;w=60', '"rate_limit[0]";r=0;t=60', 0),
    "a burst: all of it, and when it is back": (
        rule("50/second", burst=500),
        501,
        '"rate_limit[0]";q=501;w=11',
        '"rate_limit[0]";r=0;t=1',
        501,
    ),
    "no burst": (rule("2/minute", burst=0), 1, '"rate_limit[0]";q=1;w=30', '"rate_limit[0]";r=0;t=30', 1),
    "a burst with a cost": (
        rule("1/second", burst=9, cost=4),
        2,
        '"rate_limit[0]";q=2;w=8',
        '"rate_limit[0]";r=0;t=2',
        2,
    ),
}


@pytest.mark.parametrize("legacy", ["on", "off"])
@pytest.mark.parametrize(("setting", "taken", "policy", "limit", "quota"), SAID.values(), ids=SAID)
def test_a_refusal_says_what_the_limit_is_and_when_to_come_back(
    setting: RateLimitSettings, taken: int, policy: str, limit: str, quota: int, legacy: str
) -> None:
    limited = Limited(setting, legacy_headers=legacy)
    assert all(limited.admits(Request()) for _ in range(taken))
    refusal = limited.ask(Request())
    fields = fields_of(refusal)
    assert (fields.pop("RateLimit-Policy"), fields.pop("RateLimit")) == (policy, limit)
    ((name, parameters),) = structured(limit)
    assert name in {name for name, _ in structured(policy)}
    assert fields.pop("Retry-After") == str(parameters["t"])
    older = {"X-RateLimit-Limit": str(quota), "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(parameters["t"])}
    assert fields == (older if legacy == "on" else {})


def test_of_the_windows_that_refuse_the_one_that_lasts_binds() -> None:
    limited = Limited(rule("2/10 seconds; 3/minute", strategy="moving-window"))
    assert limited.admits(Request())
    limited.wait(10.0)
    assert [limited.admits(Request()) for _ in range(2)] == [True, True]
    fields = fields_of(limited.ask(Request()))
    assert fields["RateLimit"] == '"rate_limit[0]:60s";r=0;t=50'


@pytest.mark.parametrize(
    "setting",
    [rule("3/2 seconds", burst=4), rule("7/minute", burst=0), rule("50/second", burst=20, cost=3)],
    ids=lambda setting: f"{setting.limit} burst {setting.burst} cost {setting.cost}",
)
def test_a_client_that_keeps_to_the_policy_of_a_burst_is_never_refused(setting: RateLimitSettings) -> None:
    probe = Limited(setting)
    refusal = None
    while refusal is None:
        refusal = probe.ask(Request())
    ((_, policy),) = structured(fields_of(refusal)["RateLimit-Policy"])
    limited = Limited(setting)
    for _ in range(20):
        assert all(limited.admits(Request()) for _ in range(policy["q"]))
        limited.wait(policy["w"])


def test_retry_after_is_whole_seconds_rounded_up_and_at_least_one() -> None:
    limited = Limited(rule("1/10 seconds", strategy="moving-window"))
    assert limited.admits(Request())
    waits = []
    for pause in (0.0, 0.25, 8.5, 1.0, 0.2):
        limited.wait(pause)
        waits.append(fields_of(limited.ask(Request()))["Retry-After"])
    assert waits == ["10", "10", "2", "1", "1"]


def test_refusals_kept_for_reuse_are_bounded() -> None:
    limited = Limited(rule("1/day", strategy="moving-window"))
    assert limited.admits(Request())
    windows = limited.limiter._before.here[0].windows
    for _ in range(3 * raterules.MAX_REFUSALS_KEPT):
        limited.wait(1.0)
        assert limited.ask(Request())
        assert len(windows[0]._refusals) <= raterules.MAX_REFUSALS_KEPT
    first = limited.ask(Request())
    assert first is limited.ask(Request(address=HOME))


def test_names_are_what_the_operator_wrote() -> None:
    limited = Limited(rule("1/hour", path='/a"\u00e9'), rule("1/hour", path="/b"), default="1/day", default_burst=9)
    assert limited.admits(Request("/b"))
    refusal = limited.ask(Request("/b"))
    assert refusal
    assert refusal.rule == "rate_limit[1]"
    fields_of(refusal)


# --- a store that is shared ---


class SharedStore:
    """What several limiters ask: each hit after the other, until one is refused."""

    def __init__(self) -> None:
        self.store = BoundedStorage(max_keys=1000)

    def ask(self, hits: Sequence[Hit], now: float) -> list[float]:
        waits: list[float] = []
        for hit in hits:
            waits.append((self.store.hit if hit.take else self.store.wait)(hit.key, hit.limit, hit.cost, now))
            if waits[-1]:
                break
        return waits

    def admits(self, limited: Limited, request: Request, status: int = 200) -> bool:
        now = limited.clock.now
        for check in (limited.limiter.check, limited.limiter.check_user):
            refusal = check(request, now)
            if isinstance(refusal, Question):
                refusal = limited.limiter.answered(refusal, self.ask(refusal.hits, now), now)
            if refusal is not None:
                fields_of(refusal)
                return False
        limited.limiter.responded(request.rate_slots, status)
        for hit in limited.limiter.drain_shared():
            self.store.add(hit.key, hit.limit, hit.cost, now)
        return True


def admits_alone(limited: Limited, request: Request, status: int = 200) -> bool:
    """Make a request while the shared store is gone."""
    now = limited.clock.now
    for check in (limited.limiter.check, limited.limiter.check_user):
        refusal = check(request, now)
        if isinstance(refusal, Question):
            refusal = limited.limiter.decide(refusal, now)
        if refusal is not None:
            return False
    limited.limiter.responded(request.rate_slots, status)
    return True


@pytest.mark.parametrize("key", ["client", "client+path", "header:X-Api-Key", "user", "global"])
@pytest.mark.parametrize("status", [(), (404,)], ids=["requests", "responses"])
def test_a_shared_limit_is_one_for_all_processes(key: str, status: tuple[int, ...]) -> None:
    shared, rules = SharedStore(), [rule("3/hour", key=key, status=status)]
    one, other = Limited(*rules, shared=True), Limited(*rules, shared=True)
    assert [shared.admits(each, Request(), 404) for each in (one, other, one, other, one)] == [True] * 3 + [False] * 2


def test_what_does_not_concern_the_shared_store_is_no_question() -> None:
    limited = Limited(rule("1/hour", path="/login"), rule("1/hour", key="user"), default="1/second", shared=True)
    assert limited.limiter.check(Request("/"), START) is None
    assert isinstance(limited.limiter.check(Request("/login"), START), Question)
    question = limited.limiter.check_user(Request("/"), START)
    assert isinstance(question, Question)
    assert repr(question) == "<Question rate_limit[1] for 192.0.2.1>"


def test_local_rules_are_asked_first_and_refuse_without_a_question() -> None:
    limited = Limited(rule("9/hour"), default="1/hour", default_burst=0, shared=True)
    assert isinstance(limited.limiter.check(Request(), START), Question)
    refusal = limited.limiter.check(Request(), START)
    assert isinstance(refusal, RateRefusal)
    assert refusal.rule == "default"


def test_a_question_looks_first_and_ends_with_what_is_dry() -> None:
    rules = [
        rule("1/second", dry_run="on"),
        rule("9/minute; 99/day"),
        rule("9/second", cost=2),
        rule("9/hour", status=(404,)),
    ]
    question = Limited(*rules, shared=True).limiter.check(Request(), START)
    assert isinstance(question, Question)
    asked = [(hit.limit.period, hit.cost, hit.take) for hit in question.hits]
    assert asked == [(3600, 1, False), (1, 2, True), (60, 1, True), (86400, 1, True), (1, 1, True)]


def test_a_store_that_goes_away_leaves_no_second_allowance() -> None:
    shared, limited = SharedStore(), Limited(rule("3/hour"), rule("2/hour", status=(404,)), shared=True)
    assert [shared.admits(limited, Request(), 404) for _ in range(2)] == [True, True]
    assert not admits_alone(limited, Request()), "both responses were counted here, too"
    assert [shared.admits(limited, Request(address=OTHER)) for _ in range(3)] == [True, True, True]
    assert not admits_alone(limited, Request(address=OTHER))
    assert [admits_alone(limited, Request(address="203.0.113.1")) for _ in range(4)] == [True] * 3 + [False]


def test_what_the_shared_store_refuses_is_not_counted_here() -> None:
    shared, rules = SharedStore(), [rule("3/hour")]
    limited = Limited(*rules, shared=True)
    assert all(shared.admits(Limited(*rules, shared=True), Request()) for _ in range(3))
    assert not any(shared.admits(limited, Request()) for _ in range(10))
    assert [admits_alone(limited, Request()) for _ in range(4)] == [True] * 3 + [False]


def test_a_shared_refusal_is_of_the_rule_that_refused() -> None:
    limited = Limited(rule("9/minute"), rule("1/second; 5/hour"), shared=True)
    question = limited.limiter.check(Request(), START)
    assert isinstance(question, Question)
    refusal = limited.limiter.answered(question, [0.0, 0.0, 1200.5], START)
    fields = fields_of(refusal)
    assert fields["RateLimit"] == '"rate_limit[1]:3600s";r=0;t=1201'
    assert [name for name, _ in structured(fields["RateLimit-Policy"])] == ["rate_limit[1]:1s", "rate_limit[1]:3600s"]


def test_a_shared_dry_run_reports_and_refuses_nobody() -> None:
    shared, limited = SharedStore(), Limited(rule("1/hour", dry_run="on"), rule("3/hour"), shared=True)
    assert [shared.admits(limited, Request()) for _ in range(4)] == [True] * 3 + [False]
    assert limited.reported == [("rate_limit[0]", HOME)] * 2
    assert [admits_alone(limited, Request(address=OTHER)) for _ in range(4)] == [True] * 3 + [False]
    assert limited.reported[2:] == [("rate_limit[0]", OTHER)] * 3


def test_responses_for_the_shared_store_are_handed_out_once_and_bounded() -> None:
    limited = Limited(rule("9/hour", status=(404,)), shared=True)
    question = limited.limiter.check(Request(), START)
    assert isinstance(question, Question)
    assert [hit.take for hit in question.hits] == [False]
    assert limited.limiter.answered(question, [0.0], START) is None
    slots = question.asked.rate_slots
    limited.limiter.responded(slots, 200)
    assert limited.limiter.drain_shared() == []
    limited.limiter.responded(slots, 404)
    assert limited.limiter.drain_shared() == [question.hits[0]._replace(take=True)]
    assert limited.limiter.drain_shared() == []
    for _ in range(ratelimit.MAX_WAITING_FOR_SHARED + 5):
        limited.limiter.responded(slots, 404)
    assert len(limited.limiter.drain_shared()) == ratelimit.MAX_WAITING_FOR_SHARED


# --- pressure ---

MAX_KEYS = 5000
SHARE = int(MAX_KEYS * ratepressure.SHARE)


def test_a_flood_from_a_network_gets_nobody_past_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    """300,000 addresses of a /32, and one of them over its limit all the while; others go on as before."""
    amount, seconds, rate = 5, 30, 10_000
    limited = Limited(rule(f"{amount}/hour"), max_keys=MAX_KEYS)
    limiter = limited.limiter
    persistent = Request(address="2001:db8:aaaa:aaaa::1")
    assert [limited.admits(persistent) for _ in range(amount + 1)] == [True] * amount + [False]
    bystanders = [Request(address=f"192.0.2.{number}") for number in range(20)]
    bystanders.append(Request(address="2001:abc:1:2::3"))
    visits = dict.fromkeys((request.client for request in bystanders), 0)
    over = Request(address="198.51.100.9")
    assert [limited.admits(over) for _ in range(amount + 1)] == [True] * amount + [False]

    again = flooded = late = 0
    flood = Request(address="2001:db8::")
    for number in range(seconds * rate):
        # Each of a /64 of its own, and neighbours far apart: the worst for coarser keys.
        high, low = number * 40_503 & 0xFFFF, number >> 4
        flood.address, flood.client = f"2001:db8:{high:x}:{low:x}::1", f"2001:db8:{high:x}:{low:x}::/64"
        now = START + number / rate
        admitted = limiter.check(flood, now) is None
        flooded += admitted
        late += admitted and number > rate * 5
        if number % 100 == 0:
            again += limiter.check(persistent, now) is None
            assert limiter.check(over, now), "nobody of its network came"
        if number % (rate * seconds // amount) == 0:
            for request in bystanders:
                visits[request.client] += limiter.check(request, now) is None

    level = limiter._pressure.level
    assert level == 2
    assert again <= amount * level, "more than each step of coarser keys may have allowed its network once"
    assert late == 0, "by then all of the network is one client, over its limit"
    assert flooded <= MAX_KEYS + level * SHARE + amount * level
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * level
    assert visits == dict.fromkeys(visits, amount), "each had all of its own limit"


def test_a_client_that_varies_what_it_is_counted_by_is_counted_as_one_client(caplog: pytest.LogCaptureFixture) -> None:
    rules = [rule("5/hour", key="client+path"), rule("5/hour", key="header:X-Api-Key")]
    limited = Limited(*rules, max_keys=MAX_KEYS)
    admitted = [
        limited.admits(Request(f"/{number}", headers={"HTTP_X_API_KEY": str(number)})) for number in range(4000)
    ]
    assert limited.limiter._pressure.folded
    assert sum(admitted) <= MAX_KEYS / 2 + SHARE / 2 + 6
    assert not any(admitted[-1000:])
    assert limited.admits(Request("/", address=OTHER)), "others are counted apart"
    assert len(caplog.records) == 1
    assert "header" in caplog.text


def test_wrong_passwords_are_counted_by_coarser_keys_too() -> None:
    limited = Limited(failures="3/hour", max_keys=MAX_KEYS)
    limited.limiter._pressure.observe(SHARE, START)
    for number in range(3):
        request = Request(address=f"2001:db8:1:{number}::1")
        assert limited.limiter.may_try_password(request, START) is None
        limited.limiter.password_failed(request, START)
    assert limited.limiter.may_try_password(Request(address="2001:db8:1:99::1"), START)
    assert limited.limiter.may_try_password(Request(address="2001:db8:2::1"), START) is None


def test_what_is_known_of_them_fits_on_a_line() -> None:
    limited = Limited(rule("1/hour"), default="1/second", shared=True)
    assert re.fullmatch(
        r"<RateLimiter 1 rules here, 1 shared, <Pressure level 0 of 4, 0 evicted, .*>, <RateStore 0 of .*>>",
        repr(limited.limiter),
    )
