"""Every deadline ends what it is for, over a socket, close to its time, and says so in the log."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

from hardserve.edge.connection import BODY
from hardserve.edge.deadlines import SLOT_S
from tests.support import PATIENCE_S, Client, Running, serving
from tests.test_http import GET, connections, echo, eventually, read_digest

pytestmark = pytest.mark.usefixtures("transport")

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
BLOCK = b"x" * 65536
# A slot of the wheel, and what a busy machine adds: every deadline that is not set here takes ten seconds or more.
LATE_S = SLOT_S + 3.0


class Clock:
    """Says how long the block took."""

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.took = time.monotonic() - self.started


def summaries(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
    return [line for line in said if name in line]


# What a client sends before it says no more, what ends it after 0.3 s, and what it reads then.
ENDED = {
    "no first byte": ({"timeouts_first_byte": "0.3s"}, b"", "first_byte_deadline", 0),
    "half a head": ({"timeouts_header": "0.3s"}, GET[:20], "header_deadline", 408),
    "half a body": ({"timeouts_body": "0.3s"}, POST + b"x", "body_deadline", 408),
    "a body that takes too long in all": ({"timeouts_body_total": "0.3s"}, POST + b"x", "body_total_deadline", 408),
    "a body that comes too slowly": (
        {"timeouts_rate_grace": "0.2s", "limits_body_rate": 1000},
        POST + b"x" * 100,
        "body_too_slow",
        408,
    ),
}


def fall_silent(case: str) -> None:
    settings, said, reason, status = ENDED[case]
    with serving(echo, **settings) as running, running.connect() as client:
        with Clock() as clock:
            client.send(said)
            assert client.response().status == status if status else client.receive_all() == b"", case
        assert 0.29 <= clock.took < 0.3 + LATE_S, case
        if status:
            assert running.log.wait_for(1)[0].refusal == reason, case


def test_a_client_that_falls_silent_is_ended_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """Each by a server of its own, all at once: it is all waiting."""
    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(len(ENDED)) as clients:
        list(clients.map(fall_silent, ENDED))
    for _, _, reason, _ in ENDED.values():
        assert len(summaries(caplog, reason)) == 1, reason


def test_an_idle_connection_that_was_used_ends_without_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(echo, timeouts_keep_alive="0.2s") as running, running.connect() as client:
        assert client.get("/").status == 200
        assert client.receive_all() == b""
    assert not summaries(caplog, "deadline")


def drip(client: Client, data: bytes, pause_s: float) -> None:
    """Send a byte at a time, until it is all sent or the server has had enough."""
    with contextlib.suppress(OSError):
        for at in range(len(data)):
            client.send(data[at : at + 1])
            threading.Event().wait(pause_s)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"limits_body_rate": 1000, "timeouts_rate_grace": "0.2s"}, "body_too_slow"),
        ({"timeouts_body_total": "0.5s"}, "body_total_deadline"),
    ],
    ids=["the rate", "the ceiling"],
)
def test_a_body_that_drips_is_never_idle_and_is_ended_all_the_same(settings: dict[str, Any], reason: str) -> None:
    with serving(echo, timeouts_body="10s", **settings) as running, running.connect() as client:
        client.send(POST)
        dripping = threading.Thread(target=drip, args=(client, b"x" * 900, 0.02), daemon=True)
        dripping.start()
        assert client.response().status == 408
        assert running.log.wait_for(1)[0].refusal == reason
        client.socket.close()
        dripping.join(PATIENCE_S)


def test_a_body_that_keeps_to_the_rate_may_take_longer_than_the_grace() -> None:
    settings: dict[str, Any] = {"timeouts_rate_grace": "0.1s", "limits_body_rate": 200}
    with serving(echo, **settings) as running, running.connect() as client:
        client.send(POST + b"x" * 999)  # five seconds' worth
        eventually(lambda: [each for each in connections(running) if each.phase is BODY])
        threading.Event().wait(0.5)
        client.send(b"x")
        assert client.response().status == 200


@pytest.mark.plain_only("of apps and their threads")
def test_a_request_that_no_worker_takes_in_time_is_told_to_come_back_and_its_connection_is_kept() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/wait":
            release.wait(PATIENCE_S)
        return echo(environ, start_response)

    with serving(app, threads=1, timeouts_queue="0.3s") as running, running.connect() as first:
        first.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(running.server._workers.busy)
        with running.connect() as second:
            with Clock() as clock:
                response = second.get("/")
            assert (response.status, response.header("Retry-After")) == (503, "1")
            assert 0.29 <= clock.took < 0.3 + LATE_S
            release.set()
            assert second.get("/").status == 200
        assert first.response().status == 200
        assert running.log.wait_for(1)[0].refusal == "queue_deadline"


# --- the app's deadline ---


class Hanging:
    """Hangs on /hang until `release`, before or after its first block, and counts what ended."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.ended = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        try:
            if path == "/hang":
                self.release.wait(PATIENCE_S)
            elif path == "/midway":
                return self._stream(start_response)
            elif path == "/loop":
                until = time.monotonic() + PATIENCE_S
                while time.monotonic() < until:
                    time.sleep(0.01)
            return echo(environ, start_response)
        finally:
            self.ended.release()

    def _stream(self, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        self.release.wait(PATIENCE_S)
        yield b"second"


def stacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "has not come back" in record.getMessage()]


def test_an_app_that_does_not_answer_costs_its_client_a_504_and_nobody_else_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Hanging()
    with serving(app, threads=1, timeouts_app="0.3s") as running, running.connect() as client:
        with Clock() as clock:
            response = client.get("/hang", "X-Request-ID: mine")
        assert (response.status, response.header("Connection")) == (504, "close")
        assert 0.29 <= clock.took < 0.3 + 2 * LATE_S  # the pool is looked at every quarter second, too
        assert client.receive_all() == b""
        with running.connect() as other:
            assert other.get("/").status == 200, "the only worker hangs, and was not replaced"
        assert len(running.server._workers.stuck) == 1
        app.release.set()
        eventually(lambda: not running.server._workers.stuck)
        entries = running.log.wait_for(2)
        assert [(entry.status, entry.refusal) for entry in entries] == [(504, "app_deadline"), (200, "")]
        (stack,) = stacks(caplog)
        assert "mine GET '/hang'" in stack
        assert "self.release.wait(PATIENCE_S)" in stack
    assert len(running.log.entries) == 2, "the late answer was logged as well"


def test_a_stream_that_stops_midway_is_cut_so_that_nobody_takes_it_for_whole() -> None:
    app = Hanging()
    with serving(app, timeouts_app="0.3s") as running, running.connect() as client:
        client.send(b"GET /midway HTTP/1.1\r\nHost: a\r\n\r\n")
        client.receive_until(b"first\r\n")
        with pytest.raises(ConnectionResetError):
            client.receive_all()
        entry = running.log.wait_for(1)[0]
        assert (entry.status, entry.refusal) == (200, "app_deadline_midway")
        assert entry.bytes_sent > 0
        app.release.set()
        assert app.ended.acquire(timeout=PATIENCE_S)


@pytest.mark.plain_only("of apps and their threads")
def test_a_stream_that_says_something_now_and_then_may_go_on_past_the_deadline() -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number in range(6):
            time.sleep(0.2)  # the app's own time, far from the deadline also on a busy machine
            yield b"%d" % number

    with serving(app, timeouts_app="1s") as running, running.connect() as client:
        assert client.get("/").body == b"012345"


def test_a_client_that_reads_slowly_is_no_fault_of_the_app(caplog: pytest.LogCaptureFixture) -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", str(400 * len(BLOCK)))])
        return (BLOCK for _ in range(400))

    with serving(app, timeouts_app="0.3s") as running, running.connect() as client:
        client.send(GET)
        client.receive_until(b"\r\n\r\n")
        eventually(lambda: [each for each in connections(running) if each.waited_since < float("inf")])
        threading.Event().wait(0.8)
        read_digest(client, 400 * 65536)
        assert not running.log.entries or not running.log.entries[0].refusal
    assert not stacks(caplog)


@pytest.mark.plain_only("of apps and their threads")
def test_an_app_that_is_late_is_interrupted_where_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    app = Hanging()
    with (
        serving(app, threads=1, timeouts_app="0.3s", timeouts_interrupt="0.1s") as running,
        running.connect() as client,
    ):
        assert client.get("/loop").status == 504
        assert app.ended.acquire(timeout=PATIENCE_S), "it was not interrupted"
        eventually(lambda: not running.server._workers.stuck)
        with running.connect() as other:
            assert other.get("/").status == 200
    assert len(stacks(caplog)) == 1


def hang(running: Running) -> None:
    with running.connect() as client:
        assert client.get("/hang").status == 504


@pytest.mark.plain_only("of apps and their threads")
def test_a_server_with_too_many_hanging_threads_says_so_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    app = Hanging()
    with serving(app, threads=2, timeouts_app="0.2s", max_stuck=2, exit_when_stuck="off") as running:
        hang(running)
        assert running.server.healthy
        hang(running)
        eventually(lambda: not running.server.healthy)
        with running.connect() as client:
            assert client.get("/").status == 200, "both were replaced"
        app.release.set()
        with running.connect() as client:
            eventually(lambda: client.get("/").status == 200 and running.server.healthy)
        assert running.stop() == 0
    said = [record.getMessage() for record in caplog.records if "healthy" in record.getMessage()]
    assert [line.partition(":")[0] for line in said] == ["unhealthy", "healthy again"]


@pytest.mark.plain_only("of apps and their threads")
def test_an_unhealthy_server_that_will_be_started_again_drains_and_fails() -> None:
    app = Hanging()
    with serving(app, threads=2, timeouts_app="0.2s", max_stuck=1, exit_when_stuck="on") as running:
        hang(running)
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [1]
        app.release.set()


# --- connections ---


def test_a_connection_ends_after_so_many_requests() -> None:
    with serving(echo, limits_connection_requests=3) as running, running.connect() as client:
        said = [client.get("/").header("Connection") for _ in range(3)]
        assert said == [None, None, "close"]
        assert client.receive_all() == b""


def test_a_connection_ends_when_it_is_old_with_the_answer_that_is_due_then() -> None:
    with serving(echo, timeouts_connection="1s") as running, running.connect() as client:
        assert client.get("/").header("Connection") is None
        threading.Event().wait(1.0)
        assert client.get("/").header("Connection") == "close"
        assert client.receive_all() == b""


def test_a_slow_reader_is_cut_by_the_rate_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings: dict[str, Any] = {"limits_response_rate": "64MiB", "timeouts_rate_grace": "0.3s"}

    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [BLOCK * 400]

    with serving(app, **settings) as running, running.connect() as client:
        client.send(GET)
        client.receive_until(b"\r\n\r\n")
        assert running.log.wait_for(1)[0].refusal == "response_too_slow"
    assert len(summaries(caplog, "response_too_slow")) == 1


def test_a_reader_that_stops_is_cut_in_time_also_after_some_progress() -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [BLOCK * 400]

    with serving(app, timeouts_response="1s") as running, running.connect() as client:
        client.send(GET)
        for _ in range(5):
            client.receive_exactly(1_000_000)
            threading.Event().wait(0.1)
        with Clock() as clock:
            client.receive_exactly(1_000_000)
            assert running.log.wait_for(1)[0].refusal == "response_deadline"
        assert 0.8 < clock.took < 1.0 + 2 * LATE_S


def test_a_refused_client_may_send_on_for_a_while_and_not_for_ever() -> None:
    settings: dict[str, Any] = {"limits_body": 10, "timeouts_linger": "0.5s", "timeouts_linger_total": "1s"}
    with serving(echo, **settings) as running, running.connect() as client:
        client.send(POST)
        assert client.response().status == 413
        with Clock() as clock:
            drip(client, b"x" * 60, 0.05)
        assert 0.9 < clock.took < 1.0 + 2 * LATE_S, "it was never idle for half a second"
