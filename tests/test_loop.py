"""A bug of ours ends what it meets and nothing else: in the acceptor, in what was posted, in a timer.

The loop is the real one, in a thread, with real clients; what fails is what it was given.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hardserve.edge import admission
from hardserve.edge.clients import Clients
from hardserve.edge.connection import Connection, EdgeContext
from hardserve.edge.listener import open_listeners
from hardserve.edge.loop import Loop
from hardserve.edge.parsing import Request
from tests.support import PATIENCE_S, Client, edge_context, serving
from tests.test_http import echo, eventually

PAUSE_S = 0.02
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class FaultyListenerSocket(socket.socket):
    """Fails in the method `fails_in` until `fails_until` (monotonic seconds), and counts how often."""

    fails_in = ""
    fails_until = 0.0
    failures = 0

    def fail_for(self, seconds: float, method: str) -> None:
        self.fails_in, self.fails_until = method, time.monotonic() + seconds

    def _may_fail(self, method: str) -> None:
        if method == self.fails_in and time.monotonic() < self.fails_until:
            self.failures += 1
            raise MemoryError(method)

    def accept(self) -> tuple[socket.socket, Any]:
        self._may_fail("accept")
        return super().accept()

    def fileno(self) -> int:
        self._may_fail("fileno")
        return super().fileno()


class FaultyContext(EdgeContext):
    """Cannot say how long a connection may be idle, which each new one asks, while it has `faults`."""

    faults = 0

    def idle_s(self) -> float:
        if self.faults:
            self.faults -= 1
            raise MemoryError("idle_s")
        return super().idle_s()


class Edge:
    """A loop in a thread that answers each request by itself."""

    def __init__(self, *, client_connections: int = 0) -> None:
        (listener,) = open_listeners("127.0.0.1:0", 64)
        self.port = int(listener.port)
        self.listening = FaultyListenerSocket(fileno=listener.socket.detach())
        self.listening.setblocking(False)
        listener.socket = self.listening
        self.loop = Loop([listener], 100, Clients(client_connections, 0), admission.Peers())
        self.ctx = edge_context(self.loop, self._answer, FaultyContext)
        self.thread = threading.Thread(target=self.loop.run, args=(self.ctx,), daemon=True)

    def _answer(self, connection: Connection, request: Request, now: float) -> None:
        connection.finish(ANSWER, keep_alive=connection.may_keep_alive(), flushed=lambda _unsent, _why: None)

    def connect(self) -> Client:
        return Client(socket.create_connection(("127.0.0.1", self.port), PATIENCE_S))

    @contextlib.contextmanager
    def turning(self) -> Iterator[None]:
        self.thread.start()
        try:
            yield
        finally:
            self.loop.stop()
            self.thread.join(PATIENCE_S)
            self.loop.close()


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PAUSE_S", PAUSE_S)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the exceptions that were logged with their tracebacks."""
    return [str(record.exc_info[1]) for record in caplog.records if record.exc_info]


# --- what was posted ---


def test_a_posted_action_that_fails_ends_nothing_and_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_now: float) -> None:
        raise MemoryError("posted")

    done = threading.Event()
    with serving(echo) as running, running.connect() as client:
        assert client.get("/").status == 200
        running.server._loop.post(fail)
        running.server._loop.post(lambda _now: done.set())
        assert done.wait(PATIENCE_S), "what is posted behind it is done"
        assert client.get("/").status == 200
    assert running.exit_codes == [1], "it was stopped at once, and ended in no other way"
    assert errors(caplog) == ["posted"]


def test_an_action_that_was_posted_before_the_loop_ran_fails_as_starting_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    edge = Edge()
    edge.loop.post(lambda _now: 1 // 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        edge.loop.run(edge.ctx)
    edge.loop.close()
    assert errors(caplog) == []


# --- the acceptor ---


@pytest.mark.parametrize("method", ["accept", "fileno"], ids=["accepting fails", "beginning to accept fails"])
def test_an_acceptor_that_fails_looks_away_for_a_while_and_goes_on(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    edge = Edge()
    edge.listening.fail_for(5 * PAUSE_S, method)
    with edge.turning(), edge.connect() as client:
        assert client.get("/").body == b"hello"
    # To look away from what could not be looked at asks it once more.
    assert 1 <= edge.listening.failures <= 6 * (2 if method == "fileno" else 1), "it spins"
    assert errors(caplog) == [method], "once, however often it fails"


def test_those_who_are_connected_are_served_while_the_acceptor_fails(caplog: pytest.LogCaptureFixture) -> None:
    edge = Edge()
    with edge.turning(), edge.connect() as client:
        assert client.get("/").status == 200
        edge.listening.fail_for(PATIENCE_S, "accept")
        with edge.connect():
            eventually(lambda: edge.listening.failures)
            assert client.get("/").status == 200
    assert errors(caplog) == ["accept"]


def test_a_newcomer_that_cannot_be_taken_is_let_go_of_and_counts_no_more(caplog: pytest.LogCaptureFixture) -> None:
    edge = Edge(client_connections=1)
    edge.ctx.faults = 1
    with edge.turning():
        with edge.connect() as unlucky:
            assert unlucky.receive_all() == b""
        with edge.connect() as other:
            assert other.get("/").status == 200
        assert not edge.ctx.faults
    assert errors(caplog) == ["idle_s"]


def test_an_acceptor_that_fails_as_a_drain_begins_does_not_keep_it_from_ending(
    caplog: pytest.LogCaptureFixture,
) -> None:
    edge = Edge()
    with edge.turning(), edge.connect() as client:
        assert client.get("/").status == 200
        edge.listening.fail_for(2 * PAUSE_S, "accept")
        edge.loop.drain(limit_s=10 * PATIENCE_S)
        eventually(lambda: edge.ctx.draining)
        assert client.get("/").status == 200
        assert client.receive_all() == b"", "its connection ends with the answer"
        client.socket.close()
        edge.thread.join(PATIENCE_S)
        assert not edge.thread.is_alive()
    assert errors(caplog) == ["accept"]


def test_a_drain_ends_when_the_last_newcomer_could_be_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is connected any more: nothing but the end of the pause has the loop turn."""
    edge = Edge()
    with edge.turning():
        edge.listening.fail_for(2 * PAUSE_S, "accept")
        edge.loop.drain(limit_s=10 * PATIENCE_S)
        edge.thread.join(PATIENCE_S)
        assert not edge.thread.is_alive()
    assert errors(caplog) == ["accept"]


# --- timers ---


def test_a_look_at_the_pool_that_fails_is_not_the_last_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the queue full, no request would have it looked at again: whoever waits there would wait for ever."""
    release = threading.Event()
    current_frames = sys._current_frames
    failed: list[MemoryError] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/hang":
            release.wait(PATIENCE_S)
        return echo(environ, start_response)

    def fail_once() -> dict[int, Any]:
        if not failed:
            failed.append(MemoryError("stacks"))
            raise failed[0]
        return current_frames()

    monkeypatch.setattr(sys, "_current_frames", fail_once)
    caplog.set_level(logging.ERROR, "hardserve")
    settings: dict[str, Any] = {"threads": 1, "queue": 1, "timeouts_app": "0.1s"}
    with serving(app, **settings) as running, running.connect() as hanging, running.connect() as waiting:
        hanging.send(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(running.server._workers.busy)
        waiting.socket.settimeout(PATIENCE_S / 2)
        assert waiting.get("/").status == 200, "by the thread that takes the place of the one that hangs"
        release.set()
    assert errors(caplog) == ["stacks"]


def test_what_is_woken_again_and_again_leaves_the_turn_to_others() -> None:
    """A client with a long pipeline has itself woken for the rest of it: others come in between."""
    with serving(echo) as running, running.connect() as client:
        assert client.get("/").status == 200
        loop, turns, settled = running.server._loop, [0], []
        do_ready = loop._do_ready

        def counting(ready: Any, now: float) -> None:
            turns[0] += 1
            do_ready(ready, now)

        class Restless:
            def settle(self, now: float) -> None:
                settled.append(turns[0])
                if len(settled) < 100:
                    loop.wake(self)  # type: ignore[arg-type]

        loop._do_ready = counting  # type: ignore[method-assign]
        loop.wake(Restless())  # type: ignore[arg-type]
        eventually(lambda: len(settled) == 100)
        assert len(set(settled)) == 100, "a turn for each"
        assert client.get("/").status == 200
