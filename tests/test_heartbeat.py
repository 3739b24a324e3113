"""When the watchdog is kept quiet, by a clock that the tests turn; and in a server whose threads hang."""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from hardserve.ops.heartbeat import Heartbeat
from tests.boxes import await_
from tests.support import PATIENCE_S, serving


class Told:
    """A notifier that remembers."""

    def __init__(self, watchdog_s: float) -> None:
        self.watchdog_s = watchdog_s
        self.said: list[str] = []

    def alive(self) -> None:
        self.said.append("alive")

    def hangs(self) -> None:
        self.said.append("hangs")

    def status(self, text: str) -> None:
        self.said.append(text)

    def extend(self, seconds: float) -> None:
        self.said.append(f"extend {seconds:g}")


class Clock:
    """The I/O thread's plans, done when the time comes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.plans: list[tuple[float, int, Callable[[float], None]]] = []

    def plan(self, at: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self.plans, (at, len(self.plans), action))

    def until(self, now: float) -> None:
        while self.plans and self.plans[0][0] <= now:
            self.now, _, action = heapq.heappop(self.plans)
            action(self.now)


def beating(
    watchdog_s: float,
    *,
    stalled_since: float | None = None,
    left_s: float | None = None,
) -> tuple[Told, Clock, Heartbeat]:
    told, clock = Told(watchdog_s), Clock()
    heartbeat = Heartbeat(
        told,
        clock.plan,
        stalled_s=lambda now: 0.0 if stalled_since is None else max(0.0, now - stalled_since),
        left_s=lambda _now: left_s,
        figures=lambda: "well",
    )
    heartbeat.begin(0.0)
    return told, clock, heartbeat


def test_without_a_watchdog_only_figures_are_told() -> None:
    told, clock, _ = beating(0.0, stalled_since=0.0)
    clock.until(3.0)
    assert told.said == ["well"] * 4


@pytest.mark.parametrize(("watchdog_s", "beats"), [(30.0, 11), (2.0, 21), (1.0, 41)])
def test_it_is_kept_quiet_each_second_or_more_often(watchdog_s: float, beats: int) -> None:
    told, clock, _ = beating(watchdog_s)
    clock.until(10.0)
    assert told.said.count("alive") == beats


def test_a_pool_that_hangs_is_not_kept_quiet_and_reported_when_it_is_time(caplog: pytest.LogCaptureFixture) -> None:
    told, clock, _ = beating(10.0, stalled_since=5.0)
    clock.until(14.9)
    assert told.said.count("alive") == 6  # at 0 to 5 s
    assert "hangs" not in told.said
    with caplog.at_level(logging.CRITICAL, "hardserve.ops"):
        clock.until(25.0)
    assert told.said.count("hangs") == 1
    assert told.said.count("alive") == 6
    assert "all threads have been on their requests for 10.0 s" in caplog.text


def test_a_drain_is_given_the_time_it_needs() -> None:
    told, clock, _ = beating(0.0, left_s=300.0)
    clock.until(1.0)
    assert told.said == ["extend 310", "well"] * 2


def test_an_end_is_the_end() -> None:
    told, clock, heartbeat = beating(10.0)
    heartbeat.end(0.0)
    clock.until(10.0)
    assert told.said == ["well", "alive"]


# --- in a server ---


class Hanging:
    """An app whose requests to anything but / wait until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.inside = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] != "/":
            self.inside.release()
            self.go.wait(PATIENCE_S)
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]


def test_a_server_hangs_when_all_threads_do_and_somebody_waits() -> None:
    app = Hanging()
    with (
        serving(app, threads=2) as running,
        running.connect() as one,
        running.connect() as two,
        running.connect() as other,
    ):
        server = running.server
        stalled_s = server._watch.stalled_s
        try:
            one.send(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
            assert app.inside.acquire(timeout=PATIENCE_S)
            assert stalled_s(monotonic() + 1e6) == 0.0  # one thread is free
            two.send(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
            assert app.inside.acquire(timeout=PATIENCE_S)
            assert stalled_s(monotonic() + 1e6) == 0.0  # nobody waits
            other.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await_("it waits", lambda: server._workers.waiting() == 1)
            came = monotonic()
            since = max(request.app_since for _, request in jobs_of(server))
            assert stalled_s(monotonic() + 1.0) == 0.0  # not for long
            assert stalled_s(came + 100.0) == pytest.approx(came + 100.0 - since)
        finally:
            app.go.set()
        assert other.response().body == b"hello"
        assert stalled_s(came + 1e6) == 0.0


def jobs_of(server: Any) -> list[Any]:
    return [worker.job for worker in server._workers.workers]
