"""More than one box: real processes, a real Redis and a real HAProxy, with the configuration files that are shipped.

What the store and the breaker do by themselves is in test_sharedrates.py; here it is what a client and an operator
notice. The README promises it under "When one box is not enough". A test takes as long as these programs do: a store
that was lost is looked for after a second.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boxes import PATIENCE_S, REPOSITORY, Box, Client, HAProxy, Redis, await_, loading

pytestmark = pytest.mark.peer

# What a store may take to answer. The default is 50 ms, and tests/bench/bench_store.py holds it to that on a quiet
# machine; here others may have the cores for longer, and then a store that is there would look as if it were gone.
TIMEOUT_S = 0.2
# What a busy machine adds to a request, for which a client, a server and a store each wait for a core several times.
BUSY_S = 1.5

TOML = f"""
[server]
bind = "127.0.0.1:PORT"
[rate_limiting]
default = "off"
storage = "STORE"
storage_timeout = "{TIMEOUT_S}s"
[log]
access = "off"
[[rate_limit]]
path = "/open"
limit = "1000000/day"
[[rate_limit]]
path = "/fixed"
limit = "200/day"
strategy = "fixed-window"
[[rate_limit]]
path = "/sliding"
limit = "200/day"
strategy = "sliding-window-counter"
[[rate_limit]]
path = "/moving"
limit = "200/day"
strategy = "moving-window"
[[rate_limit]]
path = "/burst"
limit = "1/day"
burst = 199
[[rate_limit]]
path = "/guess"
limit = "5/day"
strategy = "fixed-window"
status = [401]
"""


@contextlib.contextmanager
def two_boxes(directory: Path, toml: str, *, code: int = 0) -> Iterator[tuple[Box, Box]]:
    """Have two serve while the block runs, and end as they should."""
    with Box(directory / "a", toml) as first, Box(directory / "b", toml) as second:
        for box in (first, second):
            box.launch()
        for box in (first, second):
            box.await_serving()
        yield first, second
        for box in (first, second):
            assert box.stop() == code, box.said
            assert "Traceback" not in box.said, box.said
            assert not box.lines("ERROR", "internal error"), box.said


@contextlib.contextmanager
def a_redis(directory: Path) -> Iterator[Redis]:
    with Redis(directory / "redis") as redis:
        redis.start()
        yield redis


# --- two and a store ---


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, Box]]:
    """Return two whose store is there all the time, and may take as long as it likes."""
    directory = tmp_path_factory.mktemp("shared")
    patient = TOML.replace(f'storage_timeout = "{TIMEOUT_S}s"', 'storage_timeout = "5s"')
    with a_redis(directory) as redis, two_boxes(directory, patient.replace("STORE", redis.url)) as boxes:
        yield boxes
        assert [box.about_the_store for box in boxes] == [[], []]


@pytest.mark.parametrize("path", ["/fixed", "/sliding", "/moving", "/burst"])
def test_a_burst_to_both_at_once_is_admitted_to_the_limit(shared: tuple[Box, Box], path: str) -> None:
    with loading() as load:
        for box in shared * 2:
            load.add(box.port, path, count=75)
        load.join()
    assert load.statuses == {200: 200, 429: 100}


def test_what_one_refuses_the_other_does_and_another_client_is_let_in(shared: tuple[Box, Box]) -> None:
    first, second = shared
    with Client(first.port, "127.0.0.3") as mine, Client(second.port, "127.0.0.3") as same:
        assert [mine.ask("/fixed").status for _ in range(201)] == [200] * 200 + [429]
        assert same.ask("/fixed").status == 429
    with Client(second.port, "127.0.0.4") as other:
        assert other.ask("/fixed").status == 200


def test_responses_that_one_counts_the_other_soon_knows_of(shared: tuple[Box, Box]) -> None:
    """Wrong guesses: the store is told with the next question of anybody, or a second later."""
    first, second = shared
    with Client(first.port, "127.0.0.5") as mine, Client(second.port, "127.0.0.5") as same:
        assert [mine.ask("/guess").status for _ in range(6)] == [401] * 5 + [429]
        await_("the other knows", lambda: same.ask("/guess").status == 429, 5.0)


# --- a store that goes and comes ---


@pytest.mark.parametrize("how", ["killed", "paused", "restarted"])
def test_a_store_that_goes_under_load_and_comes_back(
    tmp_path: Path, how: str, record_property: pytest.RecordProperty
) -> None:
    with (
        a_redis(tmp_path) as redis,
        two_boxes(tmp_path, TOML.replace("STORE", redis.url)) as boxes,
        loading() as steady,
    ):
        for box in boxes:
            steady.add(box.port, "/open", source="127.0.0.3", pause_s=0.002)
            steady.add(box.port, "/open", source="127.0.0.4", pause_s=0.002, method="POST")
        with loading() as burst:
            for box in boxes:
                burst.add(box.port, "/fixed", count=300)
            await_("the burst has begun", lambda: burst.total() >= 40)
            if how == "paused":
                redis.signal(signal.SIGSTOP)
            elif how == "killed":
                redis.end()
            else:
                assert redis.stop() == 0
                for box in boxes:  # a store that is back between two questions is not missed
                    box.await_("said that its store is gone", lambda box=box: "gone" in box.about_the_store)
                redis.start()
            burst.join()
        for box in boxes:
            box.await_("said that its store is gone", lambda box=box: "gone" in box.about_the_store)
        if how == "paused":
            redis.signal(signal.SIGCONT)
        elif how == "killed":
            redis.start()
        back_s = [box.await_told("gone", "back") for box in boxes]

        with loading() as again:
            for box in boxes:
                again.add(box.port, "/fixed", count=150, source="127.0.0.5")
            again.join()
        steady.stop()
        slowest_s = max(steady.slowest_s, burst.slowest_s, again.slowest_s)
        record_property("slowest_s", slowest_s)
        print(f"{how}: {steady.total()} asked, slowest {slowest_s * 1000:.0f} ms, back after {max(back_s):.1f} s")

        assert set(steady.statuses) == {200}, "nobody notices"
        assert steady.total() > 200
        assert slowest_s < TIMEOUT_S + BUSY_S
        took_s = sorted(steady.took_s + burst.took_s)
        assert took_s[len(took_s) * 95 // 100] < TIMEOUT_S, "few have waited for the store at all"
        assert set(burst.statuses) == {200, 429}
        # What each has let in counts there, too, from before the store went; one that came back empty begins anew.
        admitted = [burst.by_port[box.port][200] for box in boxes]
        assert max(admitted) <= 200 or how == "restarted", "each has a limit of its own meanwhile"
        assert sum(admitted) <= 400 + 200 * (how == "restarted")
        assert again.statuses == {200: 200, 429: 100}, "it holds for both together again"
        assert [box.about_the_store for box in boxes] == [["gone", "back"]] * 2, "and no other lines"


def test_a_store_that_is_down_at_start_is_taken_when_it_comes(tmp_path: Path) -> None:
    with Redis(tmp_path / "redis") as redis, two_boxes(tmp_path, TOML.replace("STORE", redis.url)) as boxes:
        for box in boxes:
            box.await_told("gone")
            with Client(box.port) as client:
                assert [client.ask("/fixed").status for _ in range(201)] == [200] * 200 + [429], "each by itself"
        redis.start()
        for box in boxes:
            box.await_told("gone", "back")
        with loading() as load:
            for box in boxes:
                load.add(box.port, "/fixed", count=150, source="127.0.0.3")
            load.join()
        assert load.statuses == {200: 200, 429: 100}
        assert [box.about_the_store for box in boxes] == [["gone", "back"]] * 2


def test_a_stop_while_a_question_is_open_answers_it_first(tmp_path: Path) -> None:
    """A drain waits for the store no longer than a request does."""
    with a_redis(tmp_path) as redis, two_boxes(tmp_path, TOML.replace("STORE", redis.url)) as boxes:
        redis.signal(signal.SIGSTOP)
        with loading() as load:
            for box in boxes:
                load.add(box.port, "/open", count=1)
            for box in boxes:
                box.signal(signal.SIGTERM)
            load.join()
            # Who came a moment too late was not let in; nobody was let in and not answered.
            assert set(load.statuses) <= {200, "ConnectionRefusedError"}
        assert [box.running.wait(PATIENCE_S) for box in boxes] == [0, 0]


# --- a balancer in front of two ---

BEHIND = """
[server]
bind = "127.0.0.1:PORT?proxy_protocol"
drain = "10s"
[proxy]
trusted = ["127.0.0.1"]
[limits]
client_connection_rate = 0
[rate_limiting]
default = "off"
storage = "STORE"
storage_timeout = "5s"
[ban]
after = 20
exempt = []
[log]
access = "access.log"
access_format = "json"
[[rate_limit]]
path = "/limited"
limit = "5/day"
[[rate_limit]]
path = "/once"
limit = "1/day"
"""


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HAProxy, Box, Box]]:
    directory = tmp_path_factory.mktemp("balanced")
    with (
        a_redis(directory) as redis,
        two_boxes(directory, BEHIND.replace("STORE", redis.url)) as (first, second),
        HAProxy(directory / "haproxy", first, second) as haproxy,
    ):
        haproxy.start()
        yield haproxy, first, second


def test_who_the_client_is_comes_through(balanced: tuple[HAProxy, Box, Box]) -> None:
    haproxy, *boxes = balanced
    seen = set()
    for source in ("127.0.0.2", "127.0.0.77") * 5:
        with Client(haproxy.port, source) as client:
            answer = client.ask("/", "POST", b"12345", **{"X-Forwarded-For": "192.0.2.1"})
        pid, length, *said = answer.text.split()
        seen.add(int(pid))
        assert (answer.status, length) == (200, "5")
        assert said == [source, "http", f"127.0.0.1:{haproxy.port}", "-"], "and what it says of itself does not count"
    assert seen == {box.running.pid for box in boxes}, "both are asked"


def test_limits_are_of_each_client_and_not_of_the_proxy(balanced: tuple[HAProxy, Box, Box]) -> None:
    haproxy, *_ = balanced
    for source in ("127.0.0.3", "127.0.0.4"):
        statuses = []
        for _ in range(7):
            with Client(haproxy.port, source) as client:
                statuses.append(client.ask("/limited").status)
        assert statuses == [200] * 5 + [429] * 2


def test_a_client_that_is_banned_by_one_is_refused_there_and_costs_nobody_else_a_server(
    balanced: tuple[HAProxy, Box, Box],
) -> None:
    haproxy, first, second = balanced

    def statuses(path: str, count: int, source: str) -> list[int]:
        found = []
        for _ in range(count):
            with Client(haproxy.port, source) as client:
                found.append(client.ask(path).status)
        return found

    haproxy.tell("set server hardserve/b state drain")
    # More than ban.after refusals; then the connection ends, of which HAProxy makes a 502.
    found = statuses("/once", 30, "127.0.0.9")
    assert found[:21] + found[22:] == [200] + [429] * 20 + [502] * 8, "the refusal that bans may be cut, too"
    assert statuses("/", 5, "127.0.0.10") == [200] * 5
    haproxy.tell("set server hardserve/b state ready")
    haproxy.tell("set server hardserve/a state drain")
    assert statuses("/once", 2, "127.0.0.9") == [429] * 2, "bans are each one's own, limits are not"
    assert statuses("/", 2, "127.0.0.9") == [200] * 2
    haproxy.tell("set server hardserve/a state ready")
    assert statuses("/", 20, "127.0.0.10") == [200] * 20
    assert haproxy.up() == ["a", "b"], haproxy.said
    assert [len(box.lines("is banned for")) for box in (first, second)] == [1, 0]


def test_a_rolling_restart_under_load_fails_no_request(balanced: tuple[HAProxy, Box, Box]) -> None:
    haproxy, *boxes = balanced
    before = {box.running.pid for box in boxes}
    with loading() as load:
        for method in ("GET", "POST"):
            for one_shot in (False, True):
                for source in ("127.0.0.11", "127.0.0.12"):
                    load.add(haproxy.port, method=method, one_shot=one_shot, source=source, pause_s=0.002)
        await_("the load has begun", lambda: load.total() >= 50)
        for box in boxes:
            assert box.stop() == 0, box.said
            box.launch()
            box.await_serving()
            # It may have come and gone before HAProxy looked; a request that finds it gone goes to the other.
            await_("HAProxy has noticed", lambda: haproxy.up() == ["a", "b"])
        asked = load.total()
        await_("it goes on after that", lambda: load.total() >= asked + 50)
        load.stop()
    print(f"restarted: {load.total()} asked meanwhile, slowest {load.slowest_s * 1000:.0f} ms")
    assert set(load.statuses) == {200}
    assert load.slowest_s < 0.3 * 3 + BUSY_S, "a connection that HAProxy does not get is tried at another server"
    after = set()
    for _ in range(10):
        with Client(haproxy.port) as client:
            after.add(int(client.ask().text.split()[0]))
    assert after == {box.running.pid for box in boxes}
    assert not after & before


def test_checks_are_nobodys_requests_and_nobodys_mistakes(balanced: tuple[HAProxy, Box, Box]) -> None:
    haproxy, *boxes = balanced
    for name in ("a", "b"):
        haproxy.tell(f"set server hardserve/{name} health down")
    assert haproxy.up() == []
    await_("two checks of each have found that it is up", lambda: haproxy.up() == ["a", "b"])
    for source in ("127.0.0.13", "127.0.0.14"):
        with Client(haproxy.port, source) as client:
            assert client.ask("/checked").status == 200
    logs = [box.directory / "access.log" for box in boxes]
    await_("what was asked is logged", lambda: sum(log.read_text().count("/checked") for log in logs) == 2)
    for box, log in zip(boxes, logs, strict=True):
        others = ("rate_limited", "banned", "stopping: ")  # of other tests
        assert [line for line in box.lines(" +0000 ") if not any(text in line for text in others)] == []
        clients = {json.loads(line)["client"] for line in log.read_text().splitlines()}
        assert all(client.startswith("127.0.0.") and client != "127.0.0.1" for client in clients), clients


# --- mistakes that show at start ---


@pytest.mark.parametrize(
    ("toml", "missing", "expected"),
    [
        pytest.param(
            """
            [rate_limiting]
            storage = "redis://me:secret@127.0.0.1:1/0"
            """,
            "redis",
            ['rate_limiting.storage: redis:// needs the package redis: pip install "hardserve[redis]"'],
            id="no client library",
        ),
        pytest.param(
            """
            [rate_limiting]
            storage = "memcached://127.0.0.1:1"
            [[rate_limit]]
            path = "/login"
            limit = "5/minute"
            strategy = "moving-window"
            [[rate_limit]]
            limit = "10/second"
            burst = 20
            [[rate_limit]]
            limit = "9/16 days"
            """,
            "",
            [
                '[[rate_limit]] number 1 (5/minute on /login): memcached cannot do strategy = "moving-window"; ',
                "[[rate_limit]] number 2 (10/second on *): memcached cannot do burst; redis, valkey can",
                '[[rate_limit]] number 3 (9/16 days on *): memcached can do strategy = "sliding-window-counter" for ',
            ],
            id="what Memcached cannot do",
        ),
    ],
)
def test_a_mistake_is_said_at_once_and_in_full(tmp_path: Path, toml: str, missing: str, expected: list[str]) -> None:
    if not missing:
        pytest.importorskip("pymemcache")
    (tmp_path / "hardserve.toml").write_text("[server]\nbind = '127.0.0.1:0'\n" + toml)
    (tmp_path / "app.py").write_text("def app(environ, start_response): ...")
    (tmp_path / "without").mkdir()
    hide = f"import sys; sys.modules[{missing!r}] = None" if missing else ""
    (tmp_path / "without" / "sitecustomize.py").write_text(hide)
    done = subprocess.run(
        [sys.executable, "-m", "hardserve", "--config", "hardserve.toml", "app:app"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path / 'without'}:{REPOSITORY}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 78, done
    lines = [line for line in done.stderr.splitlines() if "storage" in line or "rate_limit" in line]
    assert len(lines) == len(expected), done.stderr
    for line, text in zip(lines, expected, strict=True):
        assert text in line
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
