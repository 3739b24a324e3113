"""Limits that processes have in common: real Redis and Memcached that work, stop, hang, fill up and come back.

The MongoDB client is only tested without a server: Debian has none.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import logging
import math
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardserve.checks import ratestores, sharedrates
from hardserve.checks.ratestores import STORAGES, Store, wait_in_sliding_window
from hardserve.checks.sharedrates import Breaker, SharedRates, StoreError, check_settings
from hardserve.settings import RateLimitSettings
from tests.support import PATIENCE_S, switching_often

HOUR = 3600
STRATEGIES = ("fixed-window", "moving-window", "sliding-window-counter", "burst")
TIMEOUT_S = 0.05
# For a machine whose cores are all busy: what is asked must be answered.
NO_HURRY_S = 5.0
# What a thread is held for, at most: a step that times out, and what a busy machine adds.
HELD_S = 4.0


def limit(amount: int, period: int = HOUR, strategy: str = "fixed-window", burst: int = 0) -> Any:
    if strategy == "burst" and not burst:
        burst = amount - 1
    return SimpleNamespace(amount=amount, period=period, strategy=strategy, burst=burst)


def hit(key: str, limit: Any, cost: int = 1, *, take: bool = True) -> Any:
    return SimpleNamespace(key=key, limit=limit, cost=cost, take=take)


# --- real stores ---


class Peer:
    """A program that answers on `address` some time after it was started, in a process of its own."""

    def __init__(self, arguments: list[str], address: str | tuple[str, int], directory: Path, url: str) -> None:
        self.url = url
        self._arguments = arguments
        self._address = address
        self._directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._directory / "output.log").open("ab") as output:
            self.process = subprocess.Popen(
                self._arguments,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        limit = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.stop()
                raise OSError((self._directory / "output.log").read_text(errors="replace"))
            time.sleep(0.005)

    def _answers(self) -> bool:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        with socket.socket(family) as client, contextlib.suppress(OSError):
            client.settimeout(PATIENCE_S)
            client.connect(self._address)
            client.sendall(b"version\r\n")  # Memcached knows it, and Redis says that it does not
            return b"rror" in (said := client.recv(100)) or said.startswith((b"-ERR", b"VERSION"))
        return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(PATIENCE_S)
            self.process = None

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Have it accept connections, as the kernel does for it, and say nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)


def redis_server(directory: Path, *options: str) -> Peer:
    pytest.importorskip("redis", reason="needs the package redis")
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("needs redis-server")
    path = directory / "redis.sock"
    arguments = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", *options]
    return Peer(arguments, str(path), directory, f"redis+unix://{path}")


def memcached_server(directory: Path) -> Peer:
    pytest.importorskip("pymemcache", reason="needs the package pymemcache")
    program = shutil.which("memcached")
    if program is None:
        pytest.skip("needs memcached")
    path = directory / "memcached.sock"
    return Peer(
        [program, "-u", getpass.getuser(), "-s", str(path), "-a", "777"], str(path), directory, f"memcached://{path}"
    )


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Return one that is there all the time; keys do not meet."""
    peer = redis_server(tmp_path_factory.mktemp("redis"))
    try:
        peer.start()
        yield peer
    finally:
        peer.stop()


MAKERS = [pytest.param(redis_server, id="redis"), pytest.param(memcached_server, id="memcached")]


@pytest.fixture(params=MAKERS)
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    """Return a store of each kind, for a test to stop and to start again."""
    tmp_path.chmod(0o777)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    peer = request.param(tmp_path)
    try:
        peer.start()
        yield peer
    finally:
        peer.stop()


@pytest.fixture
def make() -> Iterator[Callable[..., SharedRates]]:
    """Return what makes a SharedRates that ends with the test."""
    made: list[SharedRates] = []

    def shared(url: str, timeout_s: float = NO_HURRY_S, **options: Any) -> SharedRates:
        made.append(SharedRates(url, timeout_s, **options))
        return made[-1]

    yield shared
    for rates in made:
        rates.close()


_numbers = itertools.count()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name} {next(_numbers)}"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return ["gone" if "limits by itself" in record.getMessage() else "back" for record in caplog.records]


# --- limits that hold ---


@pytest.mark.peer
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_instances_at_once_admit_exactly_the_limit(
    redis: Peer, make: Callable[..., SharedRates], key: str, strategy: str
) -> None:
    rule = limit(400, HOUR * 24, strategy)
    admitted: list[int] = []

    def offer(rates: SharedRates) -> None:
        admitted.append(sum(rates.ask([hit(key, rule)]) == [0.0] for _ in range(500)))

    threads = [threading.Thread(target=offer, args=(make(redis.url),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(admitted) == 2
    assert sum(admitted) == 400


@pytest.mark.peer
def test_one_instance_for_many_threads(redis: Peer, make: Callable[..., SharedRates], key: str) -> None:
    rates, rule, waits = make(redis.url), limit(100, HOUR, "moving-window"), []
    with switching_often():
        threads = [
            threading.Thread(target=lambda: waits.extend(rates.ask([hit(key, rule)])[0] for _ in range(40)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert len(waits) == 240
    assert waits.count(0.0) == 100
    assert rates.available


@pytest.mark.peer
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cost", [1, 3])
def test_what_costs_more_is_admitted_less_often(
    redis: Peer, make: Callable[..., SharedRates], key: str, strategy: str, cost: int
) -> None:
    rates, rule = make(redis.url), limit(9, HOUR, strategy)
    waits = [rates.ask([hit(key, rule, cost)])[0] for _ in range(12)]
    assert [wait == 0.0 for wait in waits] == [number < 9 // cost for number in range(12)]
    # Windows end, but for one, when the first hit is an hour old; a burst drains at a ninth of an hour for each.
    expected = {"burst": HOUR / 9 * cost, "sliding-window-counter": HOUR + HOUR / 9 * (cost - 1)}.get(strategy, HOUR)
    assert all(expected - 5 < wait <= expected + 0.01 for wait in waits if wait)


@pytest.mark.peer
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_asking_counts_nothing(redis: Peer, make: Callable[..., SharedRates], key: str, strategy: str) -> None:
    rates, rule = make(redis.url), limit(2, HOUR, strategy)
    for left in (2, 1, 0):
        assert [rates.ask([hit(key, rule, take=False)])[0] == 0.0 for _ in range(3)] == [left > 0] * 3
        assert (rates.ask([hit(key, rule, 2, take=False)])[0] == 0.0) == (left == 2)
        assert (rates.ask([hit(key, rule)])[0] == 0.0) == (left > 0)


@pytest.mark.peer
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_costs_more_than_there_can_be_never_gets_in(
    redis: Peer, make: Callable[..., SharedRates], key: str, strategy: str
) -> None:
    rates, rule = make(redis.url), limit(4, HOUR, strategy)
    assert rates.ask([hit(key, rule, 5)]) == [math.inf]
    assert rates.ask([hit(key, rule, 4)]) == [0.0]


@pytest.mark.peer
def test_the_first_that_refuses_ends_a_question(redis: Peer, make: Callable[..., SharedRates], key: str) -> None:
    rates = make(redis.url)
    short, long = hit(key, limit(1, 60)), hit(key, limit(3, HOUR))
    assert rates.ask([short, long]) == [0.0, 0.0]
    for _ in range(5):
        (wait_s,) = rates.ask([short, long])
        assert 50 < wait_s <= 60
    assert [rates.ask([long])[0] == 0.0 for _ in range(3)] == [True, True, False], "what was not asked was not counted"


@pytest.mark.peer
def test_counting_goes_on_past_what_is_full(redis: Peer, make: Callable[..., SharedRates], key: str) -> None:
    rates, rule = make(redis.url), limit(2)
    rates.count([*[hit(key, rule)] * 3, hit(f"another {key}", rule)])
    assert rates.ask([hit(key, rule, take=False)])[0] > 0.0
    assert [rates.ask([hit(f"another {key}", rule)])[0] == 0.0 for _ in range(2)] == [True, False]


@pytest.mark.peer
def test_a_limit_that_is_changed_counts_anew(redis: Peer, make: Callable[..., SharedRates], key: str) -> None:
    """While processes are restarted one by one, the two settings live side by side in one store."""
    rates = make(redis.url)
    changed = [limit(1, HOUR, strategy) for strategy in STRATEGIES[:3]] + [limit(2), limit(1, HOUR + 1)]
    changed += [limit(1, HOUR, "burst", 3), limit(1, HOUR, "burst", 4)]
    assert [rates.ask([hit(key, each)]) for each in changed] == [[0.0]] * 7


@pytest.mark.peer
def test_what_waits_as_long_as_it_is_told_to_gets_in(redis: Peer, make: Callable[..., SharedRates], key: str) -> None:
    rates = make(redis.url)
    for strategy, rule in {
        "burst": limit(50, 1, "burst", 1),
        "fixed-window": limit(2, 1),
        "sliding-window-counter": limit(10, 1, "sliding-window-counter"),
    }.items():
        while not (wait_s := rates.ask([hit(key, rule)])[0]):
            pass
        time.sleep(wait_s + 0.002)  # Redis counts milliseconds
        assert rates.ask([hit(key, rule)]) == [0.0], strategy


@pytest.mark.peer
def test_keys_of_any_length_and_in_any_letters(mortal: Peer, make: Callable[..., SharedRates]) -> None:
    rates, rule = make(mortal.url), limit(1)
    for key in ("", "header:X-Api-Key=" + "x" * 30_000, "with spaces\r\nand lines", "\x00\xff\u20ac{\ud800}"):
        assert [rates.ask([hit(key, rule)])[0] == 0.0 for _ in range(2)] == [True, False]
    assert rates.available


@pytest.mark.peer
def test_no_key_in_the_store_shows_what_it_is_of_and_each_expires(
    redis: Peer, make: Callable[..., SharedRates]
) -> None:
    client = pytest.importorskip("redis").Redis(unix_socket_path=redis.url.removeprefix("redis+unix://"))
    rates = make(redis.url)
    for strategy in STRATEGIES:
        rates.ask([hit("header:X-Api-Key=hunter2", limit(5, HOUR, strategy))])
    rates.probe()
    keys = client.keys()
    assert not [key for key in keys if b"hunter2" in key]
    assert all(key.startswith((b"hardserve:rate/", b"hardserve:{rate/")) for key in keys)
    assert all(client.ttl(key) >= 0 for key in keys)
    client.close()


@pytest.mark.peer
def test_over_tcp_with_a_password(tmp_path: Path, make: Callable[..., SharedRates], key: str) -> None:
    peer = None
    for _ in range(10):  # another may take the port before Redis does
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        peer = redis_server(tmp_path, "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "s/3cret#")
        with contextlib.suppress(OSError):
            peer.start()
            break
    assert peer is not None
    assert peer.process is not None
    try:
        rates = make(f"redis://:s%2F3cret%23@127.0.0.1:{port}/0")
        assert rates.ask([hit(key, limit(1))]) == [0.0]
        # Two databases are two stores.
        assert make(f"redis://:s%2F3cret%23@127.0.0.1:{port}/1").ask([hit(key, limit(1))]) == [0.0]
        assert rates.ask([hit(key, limit(1))])[0] > 0.0
    finally:
        peer.stop()


@pytest.mark.peer
@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window-counter"])
def test_memcached_counts_across_instances(
    tmp_path: Path, make: Callable[..., SharedRates], key: str, strategy: str
) -> None:
    tmp_path.chmod(0o777)
    peer = memcached_server(tmp_path)
    try:
        peer.start()
        one, other = make(peer.url), make(peer.url)
        rule = limit(20, HOUR * 24, strategy)
        waits = [rates.ask([hit(key, rule)])[0] for _ in range(15) for rates in (one, other)]
        assert [wait == 0.0 for wait in waits] == [True] * 20 + [False] * 10
    finally:
        peer.stop()


# --- burst and sliding window against models ---

STEPS = st.lists(
    st.tuples(
        st.integers(0, 3_000_000) | st.sampled_from([0, 1, 333_333, 333_334, 500_000]),  # microseconds since the last
        st.integers(1, 4),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.peer
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, amount=st.integers(1, 7), period=st.integers(1, 3), burst=st.integers(0, 5))
def test_a_burst_is_what_the_model_says(
    redis: Peer, steps: list[tuple[int, int, bool]], amount: int, period: int, burst: int
) -> None:
    """The model has a bucket of exact fractions; the script may differ by a millionth of a hit."""
    store, key = Store(redis.url, NO_HURRY_S), f"model {next(_numbers)}"
    rule = limit(amount, period, "burst", burst)
    rule.burst = burst
    filled, then, now = Fraction(0), 0, 10**15
    then = now
    for passed_us, cost, take in steps:
        now += passed_us
        level = max(Fraction(0), filled - Fraction((now - then) * amount, period * 10**6))
        over = level + cost - (burst + 1)
        wait_s = store.wait_in_burst(key, hit(key, rule, cost, take=take), str(now))
        if abs(over) > Fraction(1, 10**5):
            assert (wait_s == 0.0) == (over <= 0)
            assert wait_s == pytest.approx(max(0.001, float(over * period / amount)) if over > 0 else 0.0, abs=1e-4)
        if take and wait_s == 0.0:
            filled, then = level + cost, now
    store.close()


@pytest.mark.peer
def test_a_burst_with_a_clock_that_is_set_back(redis: Peer, key: str) -> None:
    store, rule, now = Store(redis.url, NO_HURRY_S), limit(10, 10, "burst", 1), 10**15
    assert [store.wait_in_burst(key, hit(key, rule), str(now)) for _ in range(3)] == [0.0, 0.0, 1.0]
    back = now - 10**9
    assert store.wait_in_burst(key, hit(key, rule), str(back)) == 1.0
    assert store.wait_in_burst(key, hit(key, rule), str(now + 10**6)) == 0.0
    assert store.wait_in_burst(key, hit(key, rule), str(back)) == 1.0, "nothing drains while it is back"
    store.close()


@pytest.mark.peer
def test_a_burst_takes_its_time_from_the_server(redis: Peer, make: Callable[..., SharedRates], key: str) -> None:
    rates, rule = make(redis.url), limit(200, 1, "burst", 10)
    begun = time.monotonic()
    admitted = sum(rates.ask([hit(key, rule)]) == [0.0] for _ in range(1000))
    assert 11 <= admitted <= 12 + 200 * (time.monotonic() - begun)


@pytest.mark.parametrize(
    ("most", "previous", "previous_s", "current", "current_s", "expected"),
    [
        pytest.param(9, 0, 0.0, 10, 20.0, 10.0, id="all in a window that has just begun: one leaves as it ends"),
        pytest.param(7, 0, 0.0, 10, 20.0, 12.0, id="room for three: two tenths of a window later"),
        pytest.param(9, 0, 0.0, 10, 14.0, 4.0, id="in a window that ends soon"),
        pytest.param(9, 10, 10.0, 0, 20.0, 0.0, id="of a window that has just ended one has left"),
        pytest.param(4, 10, 8.0, 0, 18.0, 3.0, id="of the window before, more must leave"),
        pytest.param(4, 10, 8.0, 4, 18.0, 7.0, id="and make room beside what came since"),
        pytest.param(0, 0, 0.0, 1, 20.0, 10.0, id="room for one, and one has come"),
    ],
)
def test_how_long_a_sliding_window_is_full(
    most: int, previous: int, previous_s: float, current: int, current_s: float, expected: float
) -> None:
    wait_s = wait_in_sliding_window(most, 10, previous, previous_s, current, current_s)
    assert wait_s == pytest.approx(expected, abs=0.002)


# --- stores that fail ---


@pytest.mark.peer
def test_a_store_that_stops_and_starts_again(
    mortal: Peer,
    make: Callable[..., SharedRates],
    key: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ratestores.MEMCACHED_IDLE_S < sharedrates.FIRST_PROBE_S
    monkeypatch.setattr(ratestores, "MEMCACHED_IDLE_S", 0.01)
    rates, rule = make(mortal.url, TIMEOUT_S), limit(5)
    rates.probe()
    assert rates.ask([hit(key, rule)]) == [0.0]
    mortal.stop()
    with pytest.raises(StoreError, match=r"^(redis\+unix|memcached)://"):
        rates.ask([hit(key, rule)])
    assert not rates.available
    with pytest.raises(StoreError, match="left alone"):
        rates.ask([hit(key, rule)])
    rates.failed("another was late")
    assert not rates.probe()
    mortal.start()
    assert not rates.available, "nothing is asked before a probe"
    time.sleep(0.02)  # what is pooled has been idle for too long by the time of the first probe
    assert rates.probe()
    assert rates.available
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(rates.ask([hit(key, rule)]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [[0.0]] * 4, "no dead connection is left for anybody"
    assert said(caplog) == ["gone", "back"]


@pytest.mark.peer
def test_a_store_that_hangs_and_goes_on(
    mortal: Peer, make: Callable[..., SharedRates], key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it answers in the end is the answer to nothing that is asked later."""
    rates = make(mortal.url, TIMEOUT_S)
    rules = {period: hit(key, limit(1, period)) for period in (1000, 2000, 3000)}
    for each in rules.values():
        assert rates.ask([each]) == [0.0]
    with mortal.hanging():
        for connection in range(3):  # the pooled one, and two that are made while it hangs
            begun = time.monotonic()
            with pytest.raises(StoreError):
                rates.ask([hit(f"{key} {connection}", limit(5))])
            assert TIMEOUT_S * 0.9 < time.monotonic() - begun < HELD_S
            assert not rates.available
            rates._breaker.closed = True
        rates._breaker.closed = False
        begun = time.monotonic()
        assert not rates.probe()
        assert time.monotonic() - begun < HELD_S
    rates._timeout_s = NO_HURRY_S
    limit_s = time.monotonic() + PATIENCE_S
    while not rates.probe():
        assert time.monotonic() < limit_s
    for _ in range(3):
        for period, each in rules.items():
            (wait_s,) = rates.ask([each])
            assert period - 30 < wait_s <= period
    assert said(caplog)[:2] == ["gone", "back"]


@pytest.fixture(params=["redis://", "memcached://", "mongodb://"])
def black_hole(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of what does not even answer a SYN: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"{request.param}127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.peer
def test_a_machine_that_is_gone(
    black_hole: str, make: Callable[..., SharedRates], key: str, caplog: pytest.LogCaptureFixture
) -> None:
    need_client_of(black_hole)
    rates = make(black_hole, TIMEOUT_S)
    assert rates.available
    for attempt in (lambda: rates.ask([hit(key, limit(5))]), rates.probe):
        begun = time.monotonic()
        with contextlib.suppress(StoreError):
            assert not attempt()
        assert time.monotonic() - begun < HELD_S + 1.0  # the client library is imported meanwhile
        assert not rates.available
    assert said(caplog) == ["gone"]


@pytest.mark.peer
@pytest.mark.parametrize("command", ["config set maxmemory 1", "replicaof 127.0.0.1 1"], ids=["full", "read-only"])
def test_a_store_that_answers_and_counts_nothing(
    tmp_path: Path, make: Callable[..., SharedRates], key: str, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    peer = redis_server(tmp_path)
    try:
        peer.start()
        with pytest.importorskip("redis").Redis(unix_socket_path=str(tmp_path / "redis.sock")) as client:
            client.execute_command(*command.split())
            assert client.ping()
        rates = make(peer.url, NO_HURRY_S)
        with pytest.raises(StoreError):
            rates.ask([hit(key, limit(5))])
        assert not rates.probe()
        assert not rates.available
        assert said(caplog) == ["gone"]
    finally:
        peer.stop()


@pytest.mark.peer
def test_a_store_that_is_down_at_start_is_found_so_by_the_first_probe(
    tmp_path: Path, make: Callable[..., SharedRates], caplog: pytest.LogCaptureFixture
) -> None:
    peer = redis_server(tmp_path)
    assert check_settings(peer.url, []) == []
    now = [100.0]
    rates = make(peer.url, NO_HURRY_S, clock=lambda: now[0])
    assert rates.probe_at == 100.0, "at once"
    assert rates.probe_due(100.0)
    assert not rates.probe_due(100.0), "whoever asks next need not"
    assert not rates.probe()
    assert (rates.available, rates.probe_at, rates.probe_due(100.9)) == (False, 101.0, False)
    try:
        peer.start()
        now[0] = 101.0
        assert rates.probe_due(101.0)
        assert rates.probe()
    finally:
        peer.stop()
    assert (rates.available, rates.probe_at, rates.probe_due(1e9)) == (True, math.inf, False)
    assert said(caplog) == ["gone", "back"]


@pytest.mark.peer
def test_what_failed_before_a_break_does_not_break_again(redis: Peer, make: Callable[..., SharedRates]) -> None:
    rates = make(redis.url)
    before = rates._breaker.breaks
    rates.failed("late")
    assert rates.probe()
    rates._failed("a question that was held since", before)
    assert rates.available


@pytest.mark.peer
def test_one_probe_at_a_time(redis: Peer, make: Callable[..., SharedRates]) -> None:
    rates = make(redis.url)
    rates.failed("late")
    results: list[bool] = []
    with redis.hanging():
        thread = threading.Thread(target=lambda: results.append(rates.probe()))
        thread.start()
        limit_s = time.monotonic() + PATIENCE_S
        while not rates._probing.locked():
            assert time.monotonic() < limit_s
        begun = time.monotonic()
        assert not rates.probe()
        assert time.monotonic() - begun < HELD_S
    thread.join(PATIENCE_S)
    assert results == [True]
    assert rates.available


@pytest.mark.peer
def test_what_is_closed_is_not_asked_and_says_nothing(
    redis: Peer, make: Callable[..., SharedRates], key: str, caplog: pytest.LogCaptureFixture
) -> None:
    rates = make(redis.url)
    assert rates.ask([hit(key, limit(5))]) == [0.0]
    rates.close()
    assert (rates.available, rates.probe_at, rates.probe_due(1e9)) == (False, math.inf, False)
    assert not rates.probe()
    rates.failed("late")
    with pytest.raises(StoreError):
        rates.ask([hit(key, limit(5))])
    assert caplog.records == []
    assert "ended" in repr(rates)


@pytest.mark.peer
@pytest.mark.parametrize(
    "url",
    [
        "redis://me:p%40ss@127.0.0.1:{port}/0",
        "redis://127.0.0.1:{port}/0?password=p%40ss",
        "redis+cluster://me:p%40ss@127.0.0.1:{port}",
        "redis+sentinel://me:p%40ss@127.0.0.1:{port}/service",
        "mongodb://me:p%40ss@127.0.0.1:{port}",
    ],
    ids=lambda url: url.partition("@")[0].partition("?")[0],
)
def test_no_password_is_written_down(
    url: str, make: Callable[..., SharedRates], key: str, caplog: pytest.LogCaptureFixture
) -> None:
    need_client_of(url)
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        rates = make(url.format(port=nobody.getsockname()[1]), TIMEOUT_S)
        with pytest.raises(StoreError) as caught:
            rates.ask([hit(key, limit(5))])
    rates._breaker.closed = True
    rates._breaker._said = False
    rates.failed("the text of a server, with p@ss in it")
    texts = [str(caught.value), repr(rates), *(record.getMessage() for record in caplog.records)]
    assert len(texts) >= 3
    assert all("127.0.0.1" in text for text in texts)
    assert not [text for text in texts if "p@ss" in text or "p%40ss" in text]
    assert not [text for text in texts if "\n" in text]


# --- the circuit breaker ---


def test_the_interval_between_probes_grows_and_the_log_has_one_line() -> None:
    breaker = Breaker(0.0)
    logged, probed, now = [breaker.failed(5.0)], [], 5.0
    for _ in range(7):
        probed.append(breaker.probe_at - now)
        now = breaker.probe_at
        logged.append(breaker.probe_failed(now))
    assert probed == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert logged == [True] + [False] * 7
    assert breaker.probe_answered(now + 10.0)
    assert breaker.closed


def test_a_store_that_was_well_for_a_minute_is_looked_for_at_once_again() -> None:
    breaker = Breaker(0.0)
    breaker.failed(0.0)
    for now in (1.0, 3.0, 7.0):
        breaker.probe_failed(now)
    breaker.probe_answered(15.0)
    breaker.failed(75.0)
    assert breaker.probe_at == 76.0


@pytest.mark.parametrize("well_s", [0.01, 2.0, 59.0])
def test_a_store_that_answers_probes_and_fails_questions(well_s: float) -> None:
    """It is asked ever more rarely, and the log has three pairs of lines, and then one a minute at most."""
    breaker, now = Breaker(0.0), 0.0
    logged: list[tuple[float, bool]] = []
    intervals = []
    while now < 3600.0:
        if breaker.failed(now):
            logged.append((now, True))
        intervals.append(breaker.probe_at - now)
        now = breaker.probe_at
        if breaker.probe_answered(now):
            logged.append((now, False))
        now += well_s
    gone = [at for at, is_gone in logged if is_gone]
    assert [is_gone for _, is_gone in logged] == [True, False] * len(gone)
    assert all(later - first >= 60.0 for first, later in zip(gone, gone[3:], strict=False))
    assert 30 < len(gone) <= 3 + 3600 / 60
    assert intervals[:4] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert set(map(round, intervals[4:])) == {10}


def test_a_store_that_goes_for_good_after_it_came_and_went_is_said_to_be_gone() -> None:
    breaker = Breaker(0.0)
    for now in (0.0, 0.1, 0.2):
        assert breaker.failed(now)
        assert breaker.probe_answered(now)
    assert not breaker.failed(2.0), "the fourth within a minute is not logged"
    logged = []
    while breaker.probe_at < 200.0:
        now = breaker.probe_at
        if breaker.probe_failed(now):
            logged.append(now)
    assert len(logged) == 1
    assert 60.0 <= logged[0] <= 70.0
    assert breaker.probe_answered(200.0), "and so it is said to be back"


# --- settings ---


def need_client_of(url: str) -> None:
    package = {"redis": "redis", "memcached": "pymemcache", "mongodb": "pymongo", "valkey": "valkey"}
    pytest.importorskip(package[STORAGES[url.partition("://")[0]]])


def rules(**fields: Any) -> list[RateLimitSettings]:
    return [RateLimitSettings(limit="5/minute"), RateLimitSettings(**{"limit": "20/second", "path": "/login"} | fields)]


@pytest.mark.peer
@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://valkey.internal",
        "redis://:p%23ss@[::1]:6379/15",
        "rediss://me:secret@10.0.0.1:6380",
        "redis+unix:///run/redis.sock?db=1",
        "redis+cluster://10.0.0.1:6379,10.0.0.2:6379",
        "redis+sentinel://10.0.0.1:26379/mymaster",
        "memcached://10.0.0.1:11211,10.0.0.2:11211",
        "memcached:///run/memcached.sock",
        "mongodb://me:secret@10.0.0.1,10.0.0.2/?replicaSet=x",
        "mongodb+srv://counts.internal/",
    ],
)
def test_urls_of_stores_are_taken_without_connecting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_client_of(url)

    def refuse(*_: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert check_settings(url, rules()) == []


@pytest.mark.peer
@pytest.mark.parametrize(
    "url",
    [
        "redis://:se#cret@127.0.0.1:6379/0",
        "redis://:se/cret@127.0.0.1:6379/0",
        "redis://:secret@127.0.0.1:port/0",
        "redis://:secret@127.0.0.1:6379/cache",
        "redis://[::1:6379/0",
        "redis+cluster://me:secret@127.0.0.1",
        "redis+sentinel://me:secret@127.0.0.1:26379",
        "memcached://127.0.0.1",
        "mongodb://me:se@cret@10.0.0.1",
        "mongodb://me:secret@10.0.0.1:port",
    ],
)
def test_what_is_not_the_url_of_a_store_is_refused_without_repeating_it(url: str) -> None:
    need_client_of(url)
    (problem,) = check_settings(url, rules())
    assert problem.startswith("rate_limiting.storage: not a URL of a store; expected one such as ")
    assert url.partition("://")[0] + "://" in problem
    assert "cret" not in problem


def test_a_store_that_is_not_known() -> None:
    (problem,) = check_settings("mysql://me:secret@db", rules())
    assert problem.startswith("rate_limiting.storage: mysql:// is none of redis, ")
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("url", "package", "expected"),
    [
        ("rediss://x", "redis", 'rediss:// needs the package redis: pip install "hardserve[redis]"'),
        (
            "valkey://x",
            "valkey",
            'valkey:// needs the package valkey: pip install "hardserve[valkey]"; redis:// can talk to Valkey, too',
        ),
        (
            "memcached://x:1",
            "pymemcache",
            'memcached:// needs the package pymemcache: pip install "hardserve[memcached]"',
        ),
        ("mongodb://x", "pymongo", 'mongodb:// needs the package pymongo: pip install "hardserve[mongodb]"'),
    ],
    ids=["redis", "valkey", "memcached", "mongodb"],
)
def test_a_client_library_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert check_settings(url, rules(burst=5)) == [f"rate_limiting.storage: {expected}"]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("url", "fields", "expected"),
    [
        pytest.param(
            "memcached://10.0.0.1:11211",
            {"strategy": "moving-window"},
            'memcached cannot do strategy = "moving-window"; redis, valkey, mongodb can',
            id="memcached has no moving window",
        ),
        pytest.param(
            "memcached://10.0.0.1:11211",
            {"burst": 5},
            "memcached cannot do burst; redis, valkey can",
            id="memcached has no burst",
        ),
        pytest.param(
            "mongodb://10.0.0.1",
            {"burst": 0},
            "mongodb cannot do burst; redis, valkey can",
            id="MongoDB has no burst, not even one of none",
        ),
        pytest.param(
            "memcached://10.0.0.1:11211",
            {"limit": "20/second; 300/16 days"},
            'memcached can do strategy = "sliding-window-counter" for at most 15 days',
            id="memcached would take twice the time for a date",
        ),
        pytest.param("memcached://10.0.0.1:11211", {"limit": "300/15 days"}, "", id="fifteen days it keeps"),
        pytest.param(
            "memcached://10.0.0.1:11211",
            {"limit": "9/30 days", "strategy": "fixed-window"},
            "",
            id="fixed, thirty days",
        ),
        pytest.param("mongodb://10.0.0.1", {"strategy": "moving-window"}, "", id="MongoDB has a moving window"),
        pytest.param("redis://10.0.0.1", {"strategy": "moving-window"}, "", id="Redis has a moving window"),
        pytest.param("redis://10.0.0.1", {"burst": 5}, "", id="Redis has a burst"),
    ],
)
def test_what_a_store_cannot_do(url: str, fields: dict[str, Any], expected: str) -> None:
    need_client_of(url)
    wanted = rules(**fields)
    problems = check_settings(url, wanted)
    assert problems == ([f"[[rate_limit]] number 2 ({wanted[1].limit} on /login): {expected}"] if expected else [])


# --- the configuration that is shipped ---

VALKEY = Path(__file__).parent.parent / "config" / "valkey.conf"


@pytest.mark.peer
def test_the_shipped_configuration_of_the_store(tmp_path: Path, make: Callable[..., SharedRates], key: str) -> None:
    """With the lines for the password taken in, hardserve can do all it wants to, and nothing more."""
    shipped = VALKEY.read_text()
    assert shipped.count("\n#user ") == 2
    path = tmp_path / "valkey.conf"
    path.write_text(shipped.replace("\n#user ", "\nuser "))
    peer = redis_server(tmp_path)
    peer._arguments[1:] = [str(path), *peer._arguments[1:5]]  # not its port, but a Unix socket
    try:
        peer.start()
        socket_path = peer.url.removeprefix("redis+unix://")
        rates = make(f"redis+unix://hardserve:A-LONG-RANDOM-PASSWORD@{socket_path}")
        for strategy in STRATEGIES:
            rule = limit(3, HOUR, strategy)
            assert [rates.ask([hit(key, rule)])[0] == 0.0 for _ in range(5)] == [True] * 3 + [False] * 2, strategy
            assert rates.ask([hit(key, rule, take=False)])[0] > 0.0
        assert rates.probe()
        errors = pytest.importorskip("redis").exceptions
        client = pytest.importorskip("redis").Redis(
            unix_socket_path=socket_path, username="hardserve", password="A-LONG-RANDOM-PASSWORD"
        )
        for command in ("FLUSHALL", "CONFIG GET maxmemory", "KEYS *", "SET other 1", "SHUTDOWN"):
            with pytest.raises(errors.NoPermissionError):
                client.execute_command(*command.split())
        client.close()
        with pytest.raises(StoreError, match="Authentication"):
            make(peer.url).ask([hit(key, limit(1))])
    finally:
        peer.stop()


@pytest.mark.peer
def test_the_shipped_configuration_limits_the_memory_of_the_store(tmp_path: Path) -> None:
    peer = redis_server(tmp_path)
    peer._arguments[1:] = [str(VALKEY), *peer._arguments[1:5]]
    try:
        peer.start()
        with pytest.importorskip("redis").Redis(unix_socket_path=str(tmp_path / "redis.sock")) as client:
            found = client.config_get("maxmemory*") | client.config_get("save") | client.config_get("appendonly")
    finally:
        peer.stop()
    assert (found["maxmemory"], found["maxmemory-policy"]) == (str(64 * 2**20), "allkeys-lfu")
    assert (found["save"], found["appendonly"]) == ("", "no")


@pytest.mark.peer
def test_the_shipped_configuration_of_haproxy_is_valid() -> None:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        pytest.skip("needs haproxy")
    done = subprocess.run(
        [program, "-c", "-V", "-f", str(VALKEY.with_name("haproxy.cfg"))],
        env={"HAPROXY_SERVER_A": "127.0.0.1:8001", "HAPROXY_SERVER_B": "127.0.0.1:8002", "HAPROXY_USER": "nobody"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "Configuration file is valid" in done.stdout
