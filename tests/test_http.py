"""HTTP/1.1 over a real socket: what a client sees, and what it cannot do.

What waitress's functional tests say of an HTTP server is in `tests/test_wsgi.py`, with what differs and why.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from hardserve.edge.connection import BUSY, CLOSED, READ_BYTES, Connection
from hardserve.edge.parsing import Request
from tests.support import PATIENCE_S, Client, Running, edge_context, serving

pytestmark = pytest.mark.usefixtures("transport")

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with what was asked: method, path and body."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode("latin-1") + body]


def eventually(true: Callable[[], object], within: float = PATIENCE_S) -> None:
    """Wait for a state that nothing announces; fails if it does not come."""
    until = time.monotonic() + within
    while not true():
        assert time.monotonic() < until, "it never came"
        threading.Event().wait(0.002)


def connections(running: Running) -> list[Connection]:
    return list(running.server._loop.connections)


def read_rest(client: Client) -> bytes:
    """Return what comes until the connection ends, however it ends."""
    with contextlib.suppress(ConnectionError):
        return client.receive_all()
    taken = bytes(client._buffer)
    client._buffer.clear()
    return taken


@pytest.fixture(scope="module")
def echoing(transport: str) -> Iterator[Running]:
    with serving(echo) as running:
        yield running


# --- keep-alive and pipelining ---


def test_a_connection_serves_request_after_request(echoing: Running) -> None:
    with echoing.connect() as client:
        for number in range(50):
            response = client.get(f"/{number}", body=b"x" * number, method="POST")
            assert response.body == b"POST /%d " % number + b"x" * number
            assert response.header("Connection") is None
            assert response.header("Content-Length") == str(len(response.body))


@pytest.mark.parametrize("threads", [1, 4])
def test_500_requests_in_one_send_are_answered_in_order(threads: int) -> None:
    with serving(echo, threads=threads) as running, running.connect() as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(500)))
        for number in range(500):
            assert client.response().body == b"GET /%d " % number


def test_a_pipeline_deeper_than_may_be_read_ahead_is_answered_in_order() -> None:
    with serving(echo, limits_pipeline=1024) as running, running.connect() as client:
        requests = [b"GET /%d HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (n, b"y" * (n % 900)) for n in range(600)]
        sender = threading.Thread(target=client.send, args=(b"".join(requests),))
        sender.start()
        for number in range(600):
            assert client.response().body == b"GET /%d " % number
        sender.join()


def test_pipelined_requests_byte_by_byte(echoing: Running) -> None:
    with echoing.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = GET + b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" + GET
        for start in range(len(data)):
            client.send(data[start : start + 1])
        assert [client.response().body for _ in range(3)] == [b"GET / ", b"POST /b hi", b"GET / "]


def test_pipelined_requests_with_bodies_of_every_kind(echoing: Running) -> None:
    with echoing.connect() as client:
        one = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
        other = b"PUT /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nX: y\r\n\r\n"
        bodies = [b"GET / HTTP/1.1\r\n\r\n" * (number + 1) for number in range(40)]
        client.send(b"".join((other if n % 2 else one) % (n, len(body), body) for n, body in enumerate(bodies)))
        for number, body in enumerate(bodies):
            assert client.response().body == b"%b /%d %b" % (b"PUT" if number % 2 else b"POST", number, body)


@pytest.mark.parametrize("cut", range(0, 96, 5))
def test_two_pipelined_chunked_requests_cut_anywhere(echoing: Running, cut: int) -> None:
    data = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nb;x\r\n, the world\r\n0\r\n\r\n"
    )
    with echoing.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(data + data[:cut])
        assert client.response().body == b"POST / hello, the world"
        client.send(data[cut:])
        assert client.response().body == b"POST / hello, the world"


def test_what_is_pipelined_behind_a_slow_response_waits_for_it() -> None:
    order: list[str] = []
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        order.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/slow":
            assert release.wait(PATIENCE_S)
            order.append("/slow is done")
        return echo(environ, start_response)

    with serving(app) as running, running.connect() as client, running.connect() as other:
        client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: order)
        client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
        eventually(lambda: any(connection.ahead for connection in connections(running)))
        assert other.get("/other").body == b"GET /other "
        release.set()
        assert [client.response().body for _ in range(3)] == [b"GET /slow ", b"GET /1 ", b"POST /2 x"]
        assert order == ["/slow", "/other", "/slow is done", "/1", "/2"]


def test_nothing_is_served_after_a_request_that_closes(echoing: Running) -> None:
    with echoing.connect() as client:
        client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
        response = client.response()
        assert response.header("Connection") == "close"
        assert client.receive_all() == b""


def test_what_precedes_a_malformed_request_is_answered(echoing: Running) -> None:
    with echoing.connect() as client:
        client.send(GET + b"what\r\n\r\n" + GET)
        assert client.response().status == 200
        assert client.response().status == 400
        assert client.receive_all() == b""


# --- Expect: 100-continue ---

EXPECT = b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"


def test_a_client_that_waits_is_told_to_continue(echoing: Running) -> None:
    with echoing.connect() as client:
        for framing, body in (
            (b"Content-Length: 5\r\n\r\n", b"hello"),
            (b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
        ):
            client.send(EXPECT + framing)
            assert client.receive_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(body)
            assert client.response().body == b"POST /e hello"


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 0\r\n"], ids=["no body", "a length of 0"])
def test_nobody_is_told_to_continue_with_no_body(echoing: Running, framing: bytes) -> None:
    with echoing.connect() as client:
        client.send(EXPECT + framing + b"\r\n")
        assert client.response().body == b"POST /e "
        assert client.get("/next").body == b"GET /next "


def test_a_client_that_did_not_wait_is_answered_once(echoing: Running) -> None:
    with echoing.connect() as client:
        client.send(EXPECT + b"Content-Length: 5\r\n\r\nhello")
        assert client.response().body == b"POST /e hello"
        assert client.get("/next").body == b"GET /next "


def test_a_1_0_client_is_never_told_to_continue(echoing: Running) -> None:
    with echoing.connect() as client:
        client.send(b"POST /e HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        client.send(b"hello")
        assert client.response().body == b"POST /e hello"


@pytest.mark.parametrize(
    ("fields", "status"),
    [(b"Content-Length: 101", 413), (b"Content-Length: x", 400), (b"Expect: tea\r\nContent-Length: 1", 417)],
)
def test_a_refusal_takes_the_place_of_100(fields: bytes, status: int) -> None:
    with serving(echo, limits_body=100) as running, running.connect() as client:
        client.send(EXPECT + fields + b"\r\n\r\n")
        response = client.response()
        assert (response.status, response.header("Connection")) == (status, "close")
        assert client.receive_all() == b""


def test_100_waits_for_its_turn_in_a_pipeline() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert environ["REQUEST_METHOD"] == "POST" or release.wait(PATIENCE_S)
        return echo(environ, start_response)

    with serving(app) as running, running.connect() as client:
        client.send(GET + EXPECT + b"Content-Length: 2\r\n\r\n")
        eventually(lambda: any(connection.ahead for connection in connections(running)))
        release.set()
        assert client.response().body == b"GET / "
        assert client.response().status == 100
        client.send(b"hi")
        assert client.response().body == b"POST /e hi"


# --- HEAD, bodiless responses, 1.0, framing ---


def answering(status: str, headers: list[tuple[str, str]], blocks: Callable[[], Any]) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/next":
            return echo(environ, start_response)
        start_response(status, headers)
        return blocks()

    return app


def generated(*blocks: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter(blocks)


BODILESS = {
    "HEAD of one block": ("HEAD", "200 OK", [], lambda: [b"body"], None),
    "HEAD with a length": ("HEAD", "200 OK", [("Content-Length", "4")], lambda: [b"body"], "4"),
    "HEAD of a stream": ("HEAD", "200 OK", [], generated(b"bo", b"dy"), None),
    "HEAD of nothing": ("HEAD", "200 OK", [], list, None),
    "HEAD with a length and no block": ("HEAD", "200 OK", [("Content-Length", "4")], list, "4"),
    "204": ("GET", "204 No Content", [], list, None),
    "204 with a body all the same": ("GET", "204 No Content", [("Content-Length", "4")], lambda: [b"body"], None),
    "304": ("GET", "304 Not Modified", [("ETag", '"x"')], list, None),
    "304 with the length of what it stands for": ("GET", "304 Not Modified", [("Content-Length", "4")], list, "4"),
    "304 of a stream": ("GET", "304 Not Modified", [], generated(b"bo", b"dy"), None),
}


@pytest.mark.parametrize(("method", "status", "headers", "blocks", "length"), BODILESS.values(), ids=BODILESS)
def test_has_no_body_and_keeps_the_connection(
    method: str, status: str, headers: Any, blocks: Any, length: str | None
) -> None:
    with serving(answering(status, headers, blocks)) as running, running.connect() as client:
        for _ in range(2):
            response = client.get("/", method=method)
            assert response.status == int(status[:3])
            assert response.header("Content-Length") == length
            assert response.header("Transfer-Encoding") is None
            assert response.header("Connection") is None
            assert client.get("/next").body == b"GET /next "


FRAMED = {
    "one block": ([], lambda: [b"body"], "length"),
    "no block": ([], list, "length"),
    "a length, two blocks": ([("Content-Length", "4")], generated(b"bo", b"dy"), "length"),
    "a length of 0": ([("Content-Length", "0")], generated(), "length"),
    "two blocks": ([], lambda: [b"bo", b"dy"], "chunked"),
    "a generator": ([], generated(b"bo", b"dy"), "chunked"),
    "a generator with empty blocks": ([], generated(b"", b"bo", b"", b"dy", b""), "chunked"),
}


@pytest.mark.parametrize(("headers", "blocks", "framing"), FRAMED.values(), ids=FRAMED)
@pytest.mark.parametrize("version", ["1.1", "1.0", "1.0 keep-alive"])
def test_the_end_of_a_body_is_marked(version: str, headers: Any, blocks: Any, framing: str) -> None:
    number, _, keep_alive = version.partition(" ")
    extra = [f"Connection: {keep_alive}"] if keep_alive else []
    expected = b"".join(blocks())
    with serving(answering("200 OK", headers, blocks)) as running, running.connect() as client:
        response = client.get("/", *extra, version=number)
        assert response.body == expected
        lives = version == "1.1" or (keep_alive and framing == "length")
        assert response.header("Transfer-Encoding") == ("chunked" if framing == "chunked" and number == "1.1" else None)
        assert response.header("Content-Length") == (str(len(expected)) if framing == "length" else None)
        assert response.header("Connection") == (("keep-alive" if keep_alive else None) if lives else "close")
        if lives:
            assert client.get("/next").body == b"GET /next "
        else:
            assert client.receive_all() == b""


def test_a_response_says_1_1_and_when_it_was_made(echoing: Running) -> None:
    for version in ("1.0", "1.1"):
        head, _, _ = echoing.exchange(f"GET / HTTP/{version}\r\nHost: a\r\n\r\n".encode()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert re.search(rb"\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", head)
        assert b"\r\nServer:" not in head


# --- request bodies ---


def deleted_files() -> set[str]:
    """Return the descriptors of this process that are files without a name."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target.endswith("(deleted)") and target.startswith("/"):
                found.add(f"{link.name} {target}")
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "filed"), [(1024, 0), (65536, 0), (65537, 1), (900_000, 1)])
def test_a_large_body_is_in_a_file_without_a_name_and_a_small_one_is_not(size: int, filed: int, chunked: bool) -> None:
    before = deleted_files()
    during: list[set[str]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        during.append(deleted_files() - before)
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [hashlib.sha256(body).hexdigest().encode()]

    body = os.urandom(size)
    with serving(app, limits_body_memory="64KiB") as running, running.connect() as client:
        if chunked:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body))
            response = client.response()
        else:
            response = client.get("/", method="POST", body=body)
        assert response.body == hashlib.sha256(body).hexdigest().encode()
        assert [len(files) for files in during] == [filed]
        eventually(lambda: deleted_files() <= before)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_the_file_of_a_body_that_never_ends_is_let_go_with_its_client() -> None:
    before = deleted_files()
    with serving(echo, limits_body_memory="1KiB") as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000)
        eventually(lambda: deleted_files() - before)
        client.reset()
        eventually(lambda: not deleted_files() - before)
        assert [(entry.status, entry.refusal) for entry in running.log.entries] == [(499, "client_disconnected")]


def test_no_app_runs_before_the_last_byte_of_the_body_is_in() -> None:
    called = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            called.set()
        return echo(environ, start_response)

    with serving(app, threads=1) as running, running.connect() as slow, running.connect() as other:
        slow.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123456789")
        eventually(lambda: any(connection.phase.value == "body" for connection in connections(running)))
        assert other.get("/").status == 200  # one worker, and it is free
        assert not called.is_set()
        slow.send(b"0")
        assert slow.response().body == b"POST / 1234567890"


# --- streaming ---


@pytest.mark.parametrize("how", ["chunked", "length", "close-delimited", "write"])
def test_each_block_leaves_before_the_next_is_asked_for(how: str) -> None:
    received = [threading.Event() for _ in range(5)]

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", [("Content-Length", "10")] if how == "length" else [])
        if how == "write":
            for number, event in enumerate(received):
                write(b"%d!" % number)
                assert event.wait(PATIENCE_S)
            return iter([])

        def blocks() -> Iterator[bytes]:
            for number, event in enumerate(received):
                yield b"%d!" % number
                assert event.wait(PATIENCE_S), "the client did not see the block"

        return blocks()

    with serving(app) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n" if how == "close-delimited" else GET)
        client.receive_until(b"\r\n\r\n")
        for number, event in enumerate(received):
            expected = b"%d!" % number
            if how in ("chunked", "write"):
                expected = b"2\r\n" + expected + b"\r\n"
            assert client.receive_exactly(len(expected)) == expected
            event.set()
        if how in ("chunked", "write"):
            assert client.receive_exactly(5) == b"0\r\n\r\n"
        assert running.log.wait_for(1)[0].refusal == ""


class Stream:
    """An app that yields `blocks`, then waits for events that never come; tells when its iterable was closed."""

    def __init__(self, blocks: list[bytes], headers: list[tuple[str, str]] | None = None) -> None:
        self.blocks, self.headers = blocks, headers or []
        self.waiting = threading.Event()
        self.closed = threading.Event()
        self.closes = 0
        self.enough = False
        self.disconnected: Callable[[], bool] = bool

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/next":
            return echo(environ, start_response)
        self.disconnected = environ["hardserve.client_disconnected"]
        start_response("200 OK", self.headers)
        return self

    def __iter__(self) -> Iterator[bytes]:
        yield from self.blocks
        self.waiting.set()
        while not self.enough:
            threading.Event().wait(0.01)

    def close(self) -> None:
        self.closes += 1
        self.closed.set()


@contextlib.contextmanager
def abandoned(stream: Stream, **settings: Any) -> Iterator[tuple[Running, Client]]:
    settings.setdefault("timeouts_abandoned", "0.1s")
    try:
        with serving(stream, threads=1, **settings) as running, running.connect() as client:
            client.send(GET)
            yield running, client
    finally:
        stream.enough = True


# Of a known length, a client whose stream has merely ended is still served what it was promised.
@pytest.mark.parametrize(
    ("headers", "gone"),
    [([], "reset"), ([], "closed"), ([("Content-Length", "100")], "reset")],
    ids=["chunked, reset", "chunked, closed", "length, reset"],
)
def test_a_stream_that_waits_between_events_is_closed_when_its_client_goes(gone: str, headers: Any) -> None:
    stream = Stream([b"first"], headers)
    with abandoned(stream) as (running, client):
        client.receive_until(b"first")
        assert stream.waiting.wait(PATIENCE_S)
        assert not stream.disconnected()
        if gone == "reset":
            client.reset()
        else:
            client.socket.close()
        assert stream.closed.wait(PATIENCE_S)
        assert stream.disconnected()
        assert [entry.refusal for entry in running.log.wait_for(1)] == ["client_disconnected"]
        with running.connect() as other:
            assert other.get("/next").status == 200  # its worker is free again
        assert stream.closes == 1


def test_a_stream_that_waits_for_its_first_event_is_closed_when_its_client_goes() -> None:
    stream = Stream([])
    with abandoned(stream) as (_, client):
        assert stream.waiting.wait(PATIENCE_S)
        client.reset()
        assert stream.closed.wait(2.0), "the worker is held until there is an event"


def test_a_stream_that_goes_on_is_closed_when_its_client_goes() -> None:
    stream = Stream([])
    stream.blocks = (b"x" * 1000 for _ in iter(lambda: stream.enough, True))  # type: ignore[assignment]
    with abandoned(stream, timeouts_abandoned="0s") as (running, client):
        client.receive_until(b"x" * 1000)
        client.reset()
        assert stream.closed.wait(PATIENCE_S)
        assert running.log.wait_for(1)[0].refusal == "client_disconnected"
        assert stream.closes == 1


def test_an_abandoned_generator_may_clean_up() -> None:
    seen: list[str] = []
    done = threading.Event()
    waiting = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"first"
            waiting.set()
            while True:
                threading.Event().wait(0.01)
        except GeneratorExit:
            seen.append("GeneratorExit")
            raise
        finally:
            seen.append("finally")
            done.set()

    with serving(app, timeouts_abandoned="0.1s") as running, running.connect() as client:
        client.send(GET)
        client.receive_until(b"first")
        assert waiting.wait(PATIENCE_S)
        client.socket.close()
        assert done.wait(PATIENCE_S)
        assert seen == ["GeneratorExit", "finally"]
        running.log.wait_for(1)


def test_a_client_that_only_finished_sending_gets_its_answers() -> None:
    noticed = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert noticed.wait(PATIENCE_S)
        return echo(environ, start_response)

    with serving(app) as running, running.connect() as client:
        client.send(GET + GET + GET)
        client.shutdown_write()
        eventually(lambda: [connection for connection in connections(running) if connection.eof])
        noticed.set()
        assert [client.response().body for _ in range(3)] == [b"GET / "] * 3
        assert client.receive_all() == b""


def test_a_drain_answers_all_that_was_pipelined() -> None:
    stopped = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert stopped.wait(PATIENCE_S)
        return echo(environ, start_response)

    with serving(app, timeouts_linger="0.1s") as running, running.connect() as client:
        client.send(GET + GET + GET)
        eventually(lambda: [connection for connection in connections(running) if connection.ahead])
        running.server.stop()
        eventually(lambda: running.server._loop._ctx.draining)
        stopped.set()
        responses = [client.response() for _ in range(3)]
        assert [response.body for response in responses] == [b"GET / "] * 3
        assert responses[-1].header("Connection") == "close"
        assert client.receive_all() == b""
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


def test_a_client_that_only_finished_sending_gets_a_whole_stream() -> None:
    gates = [threading.Event() for _ in range(4)]

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number, gate in enumerate(gates):
            assert gate.wait(PATIENCE_S)
            yield b"%d" % number

    with serving(app, timeouts_abandoned="5s") as running, running.connect() as client:
        client.send(GET)
        client.shutdown_write()
        gates[0].set()
        client.receive_until(b"1\r\n0\r\n")
        eventually(lambda: connections(running)[0].eof)
        for number, gate in enumerate(gates[1:], 1):
            gate.set()
            assert client.receive_exactly(6) == b"1\r\n%d\r\n" % number
        assert client.receive_all() == b"0\r\n\r\n"
        assert running.log.wait_for(1)[0].refusal == ""


# --- slow readers ---

BLOCK = bytes(range(256)) * 256
MANY = 800  # blocks: 50 MiB


def read_digest(client: Client, size: int) -> str:
    """Read `size` bytes and return their digest, without keeping them."""
    digest = hashlib.sha256(client._buffer)
    size -= len(client._buffer)
    client._buffer.clear()
    into = bytearray(1 << 20)
    while size:
        count = client.socket.recv_into(into, min(size, len(into)))
        assert count, f"cut {size} bytes before the end"
        digest.update(memoryview(into)[:count])
        size -= count
    return digest.hexdigest()


@pytest.mark.parametrize("how", ["stream", "one block"])
def test_a_slow_reader_of_50_mb_gets_all_of_it_and_holds_up_nobody(how: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] != "/big":
            return echo(environ, start_response)
        start_response("200 OK", [("Content-Length", str(len(BLOCK) * MANY))])
        return (BLOCK for _ in range(MANY)) if how == "stream" else [BLOCK * MANY]

    with serving(app, threads=2) as running, running.connect() as slow, running.connect() as other:
        slow.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        slow.receive_until(b"\r\n\r\n")
        held = [connection for connection in connections(running) if connection.phase is not CLOSED]
        for number in range(50):
            assert other.get(f"/{number}").body == b"GET /%d " % number
            if how == "stream":
                unsent = [len(outbox) for connection in held if (outbox := connection.outbox) is not None]
                assert max(unsent, default=0) <= (1 << 20) + len(BLOCK)
        expected = hashlib.sha256()
        for _ in range(MANY):
            expected.update(BLOCK)
        assert read_digest(slow, len(BLOCK) * MANY) == expected.hexdigest()
        assert slow.get("/next").body == b"GET /next "


def test_a_response_that_is_still_being_read_outlives_the_keep_alive_time() -> None:
    big = BLOCK * 320  # 20 MiB, more than the socket's buffers take
    app = answering("200 OK", [], lambda: [big])
    with serving(app, timeouts_keep_alive="0.1s") as running:  # noqa: SIM117
        with running.connect() as slow:
            slow.send(GET)
            slow.receive_until(b"\r\n\r\n")
            for _ in range(2):
                with running.connect() as idle:  # opened after the response, so its time is up later
                    assert idle.receive_all() == b""
            assert read_digest(slow, len(big)) == hashlib.sha256(big).hexdigest()
            assert running.log.wait_for(1)[0].refusal == ""


def test_a_client_that_does_not_read_is_not_read_ahead_of_either() -> None:
    big = BLOCK * 320
    app = answering("200 OK", [], lambda: [big])
    with serving(app, limits_pipeline="64KiB") as running:  # noqa: SIM117
        with running.connect() as client:
            client.send(GET)
            client.receive_until(b"\r\n\r\n")
            connection = connections(running)[0]
            eventually(lambda: connection.outbox)
            client.socket.setblocking(False)
            sent, data = 0, GET * 2000
            while sent < 40_000_000 and select.select([], [client.socket], [], 0.2)[1]:
                with contextlib.suppress(BlockingIOError):
                    sent += client.socket.send(data)
                assert len(connection.ahead) <= 65536 + READ_BYTES, "read ahead without bound"


# --- when the app fails ---


def failing(headers: list[tuple[str, str]], first: bytes, go: threading.Event) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", headers)
        yield first
        assert go.wait(PATIENCE_S)
        raise RuntimeError("midway")

    return app


def test_an_exception_before_the_head_is_a_500_with_the_requests_id(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/":
            raise RuntimeError("a secret")
        return echo(environ, start_response)

    with serving(app) as running, running.connect() as client:
        response = client.get("/", "X-Request-ID: find-me")
        assert response.status == 500
        assert response.header("X-Request-ID") == "find-me"
        assert b"find-me" in response.body
        assert b"secret" not in response.body
        assert client.get("/next").body == b"GET /next "  # the connection is not to blame
        entry = running.log.wait_for(1)[0]
        assert (entry.status, entry.refusal, entry.request_id) == (500, "app_failed", "find-me")
    assert "RuntimeError: a secret" in caplog.text


def test_a_chunked_response_that_fails_midway_never_gets_its_end() -> None:
    go = threading.Event()
    with serving(failing([], b"half", go)) as running, running.connect() as client:
        client.send(GET)
        client.receive_until(b"half\r\n")
        go.set()
        assert client.receive_all() == b""
        assert running.log.wait_for(1)[0].refusal == "app_failed_midway"


def test_a_response_with_a_length_that_fails_midway_stays_short() -> None:
    go = threading.Event()
    with serving(failing([("Content-Length", "9")], b"half", go)) as running, running.connect() as client:
        client.send(GET)
        client.receive_until(b"half")
        go.set()
        assert client.receive_all() == b""
        assert running.log.wait_for(1)[0].refusal == "app_failed_midway"


def test_a_close_delimited_response_that_fails_midway_is_reset() -> None:
    go = threading.Event()
    with serving(failing([], b"half", go)) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        client.receive_until(b"half")
        go.set()
        with pytest.raises(ConnectionResetError):
            client.receive_all()


# --- the request's id ---


def ids(client: Client, *fields: str) -> tuple[str, str]:
    response = client.get("/", *fields)
    return response.header("X-Request-ID") or "", response.body.decode()


def test_the_requests_id_is_passed_on_or_made_and_is_everywhere() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["HTTP_X_REQUEST_ID"].encode()]

    with serving(app) as running, running.connect() as client:
        assert ids(client, "X-Request-ID: given-1") == ("given-1", "given-1")
        made, seen = ids(client)
        assert made == seen
        assert re.fullmatch(r"[0-9a-f]{16}", made)
        replaced, seen = ids(client, 'X-Request-ID: "><script>')
        assert replaced == seen
        assert re.fullmatch(r"[0-9a-f]{16}", replaced)
        twice, seen = ids(client, "X-Request-ID: a", "X-Request-ID: b")
        assert re.fullmatch(r"[0-9a-f]{16}", twice)
        assert [entry.request_id for entry in running.log.wait_for(4)] == ["given-1", made, replaced, twice]
        assert len({made, replaced, twice}) == 3


def test_an_app_may_answer_with_an_id_of_its_own() -> None:
    app = answering("200 OK", [("X-Request-ID", "mine")], list)
    with serving(app) as running, running.connect() as client:
        assert client.get("/").header("X-Request-ID") == "mine"


def test_a_log_entry_says_what_happened(echoing: Running) -> None:
    already = len(echoing.log.entries)
    with echoing.connect() as client:
        client.send(b"POST /x?y HTTP/1.1\r\nHost: a\r\nUser-Agent: t/1\r\nReferer: r\r\nContent-Length: 1\r\n\r\nz")
        head = client.receive_until(b"\r\n\r\n")
        body = client.receive_exactly(9)
        entry = echoing.log.wait_for(already + 1)[already]
        assert entry[1:5] == ("127.0.0.1", "POST", "/x?y", "1.1")
        assert (entry.status, entry.bytes_sent) == (200, len(head + body))
        assert (entry.refusal, entry.referer, entry.user_agent, entry.user) == ("", "r", "t/1", "")
        assert 0 <= entry.duration_s < PATIENCE_S
        assert abs(entry.time - time.time()) < PATIENCE_S


# --- deadlines ---


def test_a_head_that_does_not_end_is_refused_in_time_even_when_it_drips() -> None:
    with serving(echo, timeouts_header="0.1s") as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(200):
            if select.select([client.socket], [], [], 0.02)[0]:
                break
            client.send(b"y")
        response = client.response()
        assert (response.status, response.header("Connection")) == (408, "close")
        assert client.receive_all() == b""
        assert running.log.wait_for(1)[0].refusal == "header_deadline"


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nhell", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe"])
def test_a_body_that_stops_is_refused_in_time(framing: bytes) -> None:
    with serving(echo, timeouts_body="0.1s") as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing)
        assert client.response().status == 408
        assert client.receive_all() == b""
        assert running.log.wait_for(1)[0].refusal == "body_deadline"


def test_an_idle_connection_is_closed_without_a_word() -> None:
    with serving(echo, timeouts_keep_alive="0.1s") as running, running.connect() as fresh, running.connect() as used:
        assert used.get("/").status == 200
        assert used.receive_all() == b""
        assert fresh.receive_all() == b""
        assert len(running.log.entries) == 1


def test_a_client_that_takes_nothing_of_its_response_is_cut_off() -> None:
    closed = threading.Event()

    def blocks() -> Iterator[bytes]:
        try:
            while True:
                yield BLOCK
        finally:
            closed.set()

    with serving(answering("200 OK", [], blocks), timeouts_response="0.2s") as running:  # noqa: SIM117
        with running.connect() as client:
            client.send(GET)
            assert closed.wait(PATIENCE_S)
            assert running.log.wait_for(1)[0].refusal == "response_deadline"


def test_a_refused_client_that_goes_on_is_cut_off_after_the_linger_time() -> None:
    with serving(echo, timeouts_linger="0.1s") as running, running.connect() as client:
        client.send(b"what\r\n")
        assert client.response().status == 400
        assert client.receive_all() == b""  # told at once that nothing follows
        eventually(lambda: not connections(running))


def test_a_busy_connection_has_no_deadline_but_the_apps() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert release.wait(PATIENCE_S)
        return echo(environ, start_response)

    short = dict.fromkeys(("timeouts_header", "timeouts_body", "timeouts_response", "timeouts_keep_alive"), "0.1s")
    with serving(app, threads=1, **short) as running, running.connect() as client:
        client.send(GET)
        eventually(lambda: any(connection.phase is BUSY for connection in connections(running)))
        for _ in range(2):
            with running.connect() as idle:
                assert idle.receive_all() == b""
        release.set()
        assert client.response().body == b"GET / "


# --- limits ---


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_a_body_at_the_cap_is_served_and_one_past_it_is_not(size: int, status: int, chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" if chunked else b"Content-Length: %d\r\n\r\n"
    with serving(echo, limits_body=1000) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing % size + b"x" * size + b"\r\n0\r\n\r\n" * chunked)
        response = client.response()
        assert response.status == status
        if status == 413:
            assert client.receive_all() == b""


@pytest.mark.parametrize(
    ("setting", "cap", "status", "request_of"),
    [
        ("limits_request_line", 300, 414, lambda n: b"GET /" + b"a" * (n - 14) + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("limits_header_line", 300, 431, lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (n - 3) + b"\r\n\r\n"),
        (
            "limits_header",
            2000,
            431,
            lambda n: b"GET / HTTP/1.1\r\nHost: a" + b"\r\nX: aaaa" * 100 + b"b" * (n - 923) + b"\r\n\r\n",
        ),
        ("limits_header_count", 20, 431, lambda n: b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * (n - 1) + b"\r\n"),
    ],
)
@pytest.mark.parametrize("dripped", [False, True])
def test_a_head_at_the_cap_is_served_and_one_past_it_is_not(
    setting: str, cap: int, status: int, request_of: Callable[[int], bytes], dripped: bool
) -> None:
    limits = {"limits_request_line": 1024, "limits_header_line": 2000, "limits_header_count": 200, setting: cap}
    with serving(echo, **limits) as running:
        for size, expected in ((cap, 200), (cap + 1, status)):
            with running.connect() as client:
                data = request_of(size)
                client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(data), 1 if dripped else len(data)):
                    client.send(data[start : start + (1 if dripped else len(data))])
                assert client.response().status == expected


def test_a_full_queue_says_503_and_keeps_the_connection() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert release.wait(PATIENCE_S)
        return echo(environ, start_response)

    with (
        serving(app, threads=1, queue=1) as running, running.connect() as busy, running.connect() as waiting,
        running.connect() as late,
    ):  # fmt: skip
        busy.send(GET)
        eventually(running.server._workers.busy)
        waiting.send(GET)
        eventually(lambda: running.server._workers.waiting() == 1)
        response = late.get("/")
        assert (response.status, response.header("Retry-After"), response.header("Connection")) == (503, "1", None)
        release.set()
        assert busy.response().body == waiting.response().body == b"GET / "
        assert late.get("/again").body == b"GET /again "


class FullDisk(io.RawIOBase):
    """A file that can be opened and not written."""

    def readable(self) -> bool:
        return True

    writable = seekable = readable

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("piece", [1000, 60_000])
def test_a_body_that_cannot_be_stored_is_a_503_whatever_pieces_it_comes_in(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_: io.BufferedRandom(FullDisk()))  # type: ignore[type-var]
    with serving(echo, limits_body_memory=4000) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1_000_000 // piece):
                client.send(b"x" * piece)
        assert client.response().status == 503
        assert running.log.wait_for(1)[0].refusal == "body_not_stored"


def test_413_can_be_read_while_the_client_still_sends_5_mb() -> None:
    with serving(echo, limits_body="1MiB") as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        client.send(b"x" * 5_000_000)
        assert client.response().status == 413
        assert client.receive_all() == b""


# --- interleavings of the two threads, made to happen ---


class Wire:
    """A transport that takes what `room` allows, and does `meanwhile` inside a send."""

    wants_write = False

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.sent = b""
        self.kernel_holds = 0
        self.copied = 0
        self.incoming: list[bytes] = []
        self.ended: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.other_thread = threading.Thread()
        self._last: object = None

    def fileno(self) -> int:
        return 99

    def receive(self, max_bytes: int) -> bytes | None:
        return self.incoming.pop(0) if self.incoming else None

    def keep_unsent(self, most: int) -> None: ...

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        raise AssertionError("nothing here is a file")

    def send(self, data: bytes) -> int:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        # As another thread would: if it needs the connection's lock, it gets it when this send is over.
        self.other_thread = threading.Thread(target=meanwhile, daemon=True)
        self.other_thread.start()
        self.other_thread.join(0.1)
        if self.ended:
            raise BrokenPipeError
        if not isinstance(data, memoryview) and data is not self._last:
            self.copied += len(data)
        self._last = data
        taken = min(self.room, len(data))
        self.room -= taken
        self.sent += bytes(data[:taken])
        return taken

    def pending(self) -> bool:
        return False

    def flush(self) -> None:
        raise AssertionError("nothing is left over")

    def unacknowledged(self) -> int:
        return self.kernel_holds

    def shutdown_write(self) -> None:
        self.ended.append("end")

    def close(self, *, reset: bool = False) -> None:
        self.ended.append("reset" if reset else "close")


class Board:
    """A poller that remembers, and does `meanwhile` once where a system call is made."""

    def __init__(self) -> None:
        self.woken: list[Connection] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def set_interest(self, connection: Connection, *, read: bool, write: bool) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()

    def watch(self, connection: Connection, now: float) -> None: ...
    def closed(self, connection: Connection) -> None: ...

    def wake(self, connection: Connection) -> None:
        self.woken.append(connection)


class Bench:
    """One connection without a loop: the test is both threads."""

    def __init__(self, room: int = 1 << 40, **settings: Any) -> None:
        self.wire, self.board = Wire(room), Board()
        self.reports: list[int] = []
        self.dispatched: list[Request] = []

        def dispatch(_connection: Connection, request: Request, _now: float) -> None:
            self.dispatched.append(request)

        ctx = edge_context(self.board, dispatch, **settings)
        self.connection = Connection(ctx, self.wire, ("127.0.0.1", 1), "127.0.0.1", None, 0.0)  # type: ignore[arg-type]
        self.receive(GET)

    def receive(self, data: bytes) -> None:
        self.wire.incoming.append(data)
        self.connection.on_readable(0.0)

    def finish(self, data: bytes, *, keep_alive: bool) -> None:
        self.connection.finish(data, keep_alive=keep_alive, flushed=lambda unsent, _reason: self.reports.append(unsent))
        if self.wire.other_thread.ident is not None:
            self.wire.other_thread.join(PATIENCE_S)


def test_a_response_that_finishes_while_what_was_before_it_is_flushed_is_sent_whole() -> None:
    bench = Bench(room=10)
    bench.connection.write(b"a" * 20)
    bench.connection.settle(0.0)
    bench.wire.room = 10 + 5
    # The I/O thread has sent all there was, and is about to look elsewhere; the worker finishes now.
    bench.board.meanwhile = lambda: bench.finish(b"b" * 20, keep_alive=False)
    bench.connection.on_writable(0.0)
    assert bench.wire.ended == [], "the connection was ended with a part of the response unsent"
    assert bench.reports == [], "it was reported as over"
    bench.wire.room = 1000
    bench.connection.settle(0.0)
    bench.connection.on_writable(0.0)
    assert bench.wire.sent == b"a" * 20 + b"b" * 20
    assert bench.reports == [0]


def test_a_late_wake_does_not_end_a_connection_whose_last_response_is_being_sent() -> None:
    bench = Bench()
    bench.wire.meanwhile = lambda: bench.connection.settle(0.0)  # asked for by the request before
    bench.finish(b"answer", keep_alive=False)
    assert bench.wire.sent == b"answer"
    assert bench.reports == [0]


def test_the_end_of_the_clients_stream_does_not_cut_a_response_that_is_being_sent() -> None:
    bench = Bench(room=5)
    bench.wire.meanwhile = lambda: bench.receive(b"")
    bench.finish(b"0123456789", keep_alive=True)
    bench.wire.room = 100
    bench.connection.settle(0.0)
    bench.connection.on_writable(0.0)
    assert bench.wire.sent == b"0123456789"


def test_a_response_cut_by_reset_is_never_ended_in_order_first() -> None:
    bench = Bench(room=5)
    bench.connection.write(b"0123456789")
    bench.connection.settle(0.0)
    bench.connection.abort(reset=True)
    bench.wire.room = 100
    bench.connection.on_writable(0.0)  # the socket became writable in the turn that the worker cut it
    bench.connection.settle(0.0)
    assert bench.wire.ended == ["reset"]


def test_the_end_of_the_clients_stream_does_not_end_a_cut_response_in_order() -> None:
    bench = Bench()
    bench.connection.write(b"half")
    bench.connection.abort(reset=True)
    bench.receive(b"")
    bench.connection.settle(0.0)
    assert bench.wire.ended == ["reset"]


def test_the_cost_of_a_slow_reader_is_linear_in_what_it_reads() -> None:
    bench = Bench(room=0)
    size = 4 << 20
    bench.finish(b"x" * size, keep_alive=True)
    bench.connection.settle(0.0)
    while bench.connection.outbox is not None:
        bench.wire.room = 16384
        bench.wire.sent = b""
        bench.connection.on_writable(0.0)
    assert bench.wire.copied <= 4 * size


def look(bench: Bench, now: float) -> None:
    if bench.connection.deadline() <= now:
        bench.connection.on_deadline(now)


def test_a_client_that_takes_what_the_kernel_holds_makes_progress_although_the_socket_stays_full() -> None:
    bench = Bench(room=10, timeouts_response="10s", limits_response_rate=0)
    bench.wire.kernel_holds = 1000
    bench.connection.write(b"a" * 100)
    start = monotonic()
    bench.connection.settle(start)
    for second in range(1, 60):
        bench.wire.kernel_holds -= 10
        look(bench, start + second)
    assert bench.wire.ended == []
    for second in range(60, 75):
        look(bench, start + second)
    assert bench.wire.ended == ["reset"], "nothing was taken for 10 s"


def test_a_client_that_is_slower_than_the_rate_is_cut_however_often_it_reads() -> None:
    bench = Bench(room=10, limits_response_rate=1000, timeouts_rate_grace="5s")
    bench.wire.kernel_holds = 100_000
    bench.connection.write(b"a" * 100)
    start = monotonic()
    bench.connection.settle(start)
    ended = math.inf
    for quarter in range(1, 400):
        bench.wire.kernel_holds -= 125  # 500 bytes a second
        look(bench, start + quarter / 4)
        if bench.wire.ended:
            ended = min(ended, quarter / 4)
    assert 5 <= ended <= 20  # 5 s of grace are used up by half the rate after 10 s; it is looked at now and then
