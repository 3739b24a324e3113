"""What one connection may cost the others: their places in the queue, memory, turns of the I/O thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from hardserve.edge.connection import BUSY, LINGER, READ_BYTES, Connection
from hardserve.edge.outbox import FILE_READ_BYTES, FILE_TURN_BYTES
from tests.support import PATIENCE_S, serving
from tests.test_http import connections, echo, eventually
from tests.test_races import GET, Rig, meanwhile, settle

ALICE, BOB = "127.0.0.2", "127.0.0.3"


class Holding:
    """An app that keeps each request for /hold until it is released, and notes what it was asked for."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self.asked.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/hold":
            assert self.release.wait(PATIENCE_S)
        return echo(environ, start_response)


def request(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


# --- who leaves the queue ---


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("max_client", [1, 2], ids=["held back", "waiting for a thread"])
def test_clients_that_leave_while_they_wait_leave_their_places_to_others(max_client: int) -> None:
    app = Holding()
    settings: dict[str, Any] = {"threads": 2, "max_client_workers": max_client, "queue": 3}
    with serving(app, **settings) as running, contextlib.ExitStack() as stack:
        for _ in range(max_client):
            stack.enter_context(running.connect(ALICE)).send(request("/hold"))
        eventually(lambda: len(running.server._workers.busy()) == max_client)
        gone = [running.connect(ALICE) for _ in range(3)]
        for client in gone:
            client.send(request("/gone"))
        eventually(lambda: running.server._workers.waiting() == 3)
        for client in gone:
            client.reset()
        eventually(lambda: len(connections(running)) == max_client and not running.server._workers.waiting())
        with running.connect(ALICE) as other:
            other.send(request("/other"))
            # It is told at once if the queue is full, and else waits in it.
            eventually(lambda: running.server._workers.waiting() == 1 or len(running.log.entries) > 3)
            app.release.set()
            assert other.response().status == 200
        left = running.log.wait_for(3)[:3]
    assert [(entry.status, entry.refusal) for entry in left] == [(499, "client_disconnected")] * 3
    assert "/gone" not in app.asked, "nobody waits for its answer"


@pytest.mark.usefixtures("transport")
def test_a_request_that_leaves_the_queue_lets_the_next_of_its_client_in() -> None:
    app = Holding()
    with serving(app, threads=1) as running, running.connect(BOB) as holding, running.connect(ALICE) as next_one:
        holding.send(request("/hold"))
        eventually(running.server._workers.busy)
        first = running.connect(ALICE)
        first.send(request("/gone"))
        eventually(lambda: running.server._workers.waiting() == 1)
        next_one.send(request("/next"))
        eventually(lambda: running.server._workers.waiting() == 2)
        first.reset()
        eventually(lambda: len(connections(running)) == 2 and running.server._workers.waiting() == 1)
        app.release.set()
        assert next_one.response().status == 200
    assert app.asked == ["/hold", "/next"]


# --- who sends more than is taken ---


@pytest.mark.usefixtures("transport")
def test_a_client_that_sends_on_behind_its_last_request_is_not_read_byte_by_byte() -> None:
    """What was read ahead is as much as may be; after the answer, what comes is only thrown away."""
    app = Holding()
    with serving(app) as running, running.connect() as client:
        client.send(request("/hold", "Connection: close"))
        eventually(running.server._workers.busy)
        client.send(b"x" * 200_000)
        (connection,) = connections(running)
        eventually(lambda: len(connection.ahead) >= running.server.settings.limits.pipeline)
        app.release.set()
        assert client.response().status == 200
        client.send(b"x" * 8_000_000)
        client.shutdown_write()
        assert client.receive_all() == b""


@pytest.mark.usefixtures("transport")
def test_many_who_send_ahead_keep_no_more_than_all_may_where_memory_is_short() -> None:
    limit, count = 1 << 20, 40
    app = Holding()
    settings: dict[str, Any] = {"limits_buffered_memory": limit, "queue": count}
    with serving(app, **settings) as running, contextlib.ExitStack() as stack:
        stack.callback(app.release.set)
        clients = [stack.enter_context(running.connect()) for _ in range(count)]
        for client in clients:
            client.send(request("/hold"))
        eventually(lambda: [each.phase for each in connections(running)] == [BUSY] * count)
        for client in clients:
            client.send(b"x" * READ_BYTES)
        # One byte of each at least: the end of its stream would be seen.
        eventually(lambda: all(each.ahead for each in connections(running)))
        for _ in range(10):
            assert b" 400 " in running.exchange(b"turn\r\n\r\n")
        # The last one that was read while there was room may have gone past it by one read.
        assert limit <= running.server._budget.memory <= limit + READ_BYTES + count


# --- who takes what is stored as fast as it is read ---


def test_a_response_from_a_file_leaves_the_turn_to_others() -> None:
    rig = Rig(limits_response_buffer="64KiB", limits_response_file="8MiB")
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=False, abandon=lambda: False)
    rig.transport.room = 0
    whole = b"a" * 60_000 + b"b" * (5 << 20) + b"end"
    rig.connection.write(whole[:60_000])
    rig.connection.write(whole[60_000:-3])
    rig.finish(whole[-3:], keep_alive=False)
    rig.resumes()
    rig.transport.room = 1 << 30
    turns = 0
    while rig.connection.outbox is not None:
        before = len(rig.transport.sent)
        assert rig.wheel.interest[1], "the rest has its turn, too"
        rig.connection.on_writable(rig.now)
        turns += 1
        assert 0 < len(rig.transport.sent) - before <= FILE_TURN_BYTES + FILE_READ_BYTES
    assert turns >= 3
    assert rig.transport.sent == whole
    rig.connection.close()


# --- a deadline that passes as a worker lets go ---


def test_a_stream_that_ends_in_the_moment_its_patience_does_is_not_cut() -> None:
    """Its client sends no more and is waited for; its worker has begun to finish when the I/O thread looks."""
    rig = Rig(timeouts_abandoned=1)
    cuts: list[str] = []
    rig.ctx.log_cut = lambda _connection, _request, cut: cuts.append(cut.name)
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=True, abandon=lambda: False)
    rig.connection.write(b"first.")
    rig.arrives(b"")
    rig.now += 2
    (late,) = rig.wheel.deadlines.due(rig.now)
    assert late is rig.connection
    rig.ctx.in_idle_s = meanwhile(lambda: cast(Connection, late).on_deadline(rig.now))
    rig.transport.room = 2
    rig.finish(b"last.", keep_alive=False)
    settle()
    assert rig.connection.phase is LINGER
    rig.flush()
    assert cuts == []
    assert rig.transport.sent == b"first.last."
    assert rig.transport.ends == ["end"]
