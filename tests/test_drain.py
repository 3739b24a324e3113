"""Stopping loses nothing: whoever had sent all of a request gets all of its answer.

A client counts a request as lost if it had sent all of it and got no complete response. Being refused a connection is
no loss: nothing was sent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE_S, Client, Response, Running, serving, spoken, tls_flags

pytestmark = pytest.mark.usefixtures("transport")

REPOSITORY = Path(__file__).parent.parent
STOPS = 200
AT_ONCE = 8  # servers side by side: a stop is mostly waiting
SIGNAL_STOPS = 5

Environ = dict[str, Any]


def hello(environ: Environ, start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello " + environ["QUERY_STRING"].encode() + body]


# --- clients in a closed loop ---


@dataclass
class Tally:
    answered: int = 0
    after_close: int = 0  # requests on a connection that was said to close
    lost: list[str] = field(default_factory=list)


class ClosedLoop:
    """One client that asks again as soon as it is answered, until it is refused a connection."""

    def __init__(self, connect: Callable[[], socket.socket], *, name: str, keep_alive: bool) -> None:
        self._connect = connect
        self._name = name
        self._keep_alive = keep_alive
        self.tally = Tally()
        self.warm = threading.Event()  # it is in full swing
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while self._one_connection():
                pass
        except Exception as error:  # told by the thread that checks
            self.tally.lost.append(f"{self._name}: {error!r}")
        self.warm.set()

    def _one_connection(self) -> bool:
        """Return whether to go on with another one."""
        try:
            connected = self._connect()
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except TimeoutError:
            return False  # not taken while the server stopped: nothing was sent
        with Client(connected) as client:
            while True:
                unique = f"{self._name}-{self.tally.answered}"
                extra = "" if self._keep_alive else "Connection: close\r\n"
                try:
                    client.send(f"GET /?{unique} HTTP/1.1\r\nHost: test\r\n{extra}\r\n".encode())
                    response = client.response()
                except (OSError, EOFError) as error:
                    self.tally.lost.append(f"{unique}: {error!r}")
                    return True
                if response.body != f"hello {unique}".encode():
                    self.tally.lost.append(f"{unique}: {response}")
                self.tally.answered += 1
                if self.tally.answered == 5:
                    self.warm.set()
                if response.header("Connection") == "close":
                    return True


def tcp(port: int, *, wait: bool = True) -> Callable[[], socket.socket]:
    return lambda: spoken(socket.create_connection(("127.0.0.1", port), PATIENCE_S), wait=wait)


def unix(path: Path, *, wait: bool = True) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(PATIENCE_S)
        try:
            connected.connect(str(path))
        except BaseException:
            connected.close()
            raise
        return spoken(connected, wait=wait)

    return connect


def crowd(connect: Callable[[], socket.socket], count: int) -> list[ClosedLoop]:
    loops = [ClosedLoop(connect, name=f"c{number}", keep_alive=number % 2 == 0) for number in range(count)]
    for loop in loops:
        assert loop.warm.wait(PATIENCE_S)
    return loops


def lost(loops: list[ClosedLoop]) -> list[str]:
    for loop in loops:
        loop.thread.join(PATIENCE_S)
        assert not loop.thread.is_alive()
    return [text for loop in loops for text in loop.tally.lost]


def one_stop(_number: int) -> list[str]:
    with serving(hello, threads=2) as running:
        loops = crowd(tcp(running.port), 4)
        assert running.stop() == 0
        return lost(loops)


def test_two_hundred_stops_under_closed_loop_clients_lose_no_request(transport: str) -> None:
    count = STOPS if transport == "plain" else STOPS // 5  # the handshakes of their clients take longer than the stops
    with ThreadPoolExecutor(AT_ONCE) as stops:
        assert [text for texts in stops.map(one_stop, range(count)) for text in texts] == []


def one_unix_stop(path: Path) -> list[str]:
    with serving(hello, threads=2, bind=f"unix:{path}") as running:
        loops = crowd(unix(path), 4)
        assert running.stop() == 0
        return lost(loops)


@pytest.mark.plain_only("of how a Unix socket is left; TLS on one is what it is on another")
def test_stops_on_a_unix_socket_lose_no_request(tmp_path: Path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as stops:
        results = stops.map(one_unix_stop, [tmp_path / f"{number}.sock" for number in range(40)])
        assert [text for texts in results for text in texts] == []


APP = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello " + environ["QUERY_STRING"].encode()]
"""


@contextlib.contextmanager
def command(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the real command until the block has stopped it; give its process and its port."""
    (directory / "served.py").write_text(APP)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HARDSERVE_")}
    arguments += tls_flags()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hardserve", "served:app", "--bind", "127.0.0.1:0", "--log-access", "off"),
            *("--rate-limiting-default", "off"),  # all come from one address
            *arguments,
        ],
        cwd=directory,
        env=environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "://127.0.0.1:" in line:
                yield process, int(line.rpartition(":")[2])
                break
        else:
            pytest.fail("it did not start")
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stderr.close()


def one_signal_stop(directory: Path, number: int) -> list[str]:
    directory.mkdir()
    with command(directory) as (process, port):
        loops = crowd(tcp(port), 8)
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        return lost(loops)


def test_stops_by_signal_lose_no_request(tmp_path: Path, transport: str) -> None:
    count = SIGNAL_STOPS if transport == "plain" else 2  # one with each signal
    with ThreadPoolExecutor(count) as stops:
        results = stops.map(lambda number: one_signal_stop(tmp_path / str(number), number), range(count))
        assert [text for texts in results for text in texts] == []


# --- one at a time ---


class Gated:
    """An app that tells when it was entered and answers when it is let."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.may_answer = threading.Event()

    def __call__(self, environ: Environ, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/gated":
            self.entered.release()
            assert self.may_answer.wait(PATIENCE_S)
        return hello(environ, start_response)


def await_drain(running: Running) -> None:
    """Return when the server takes no new connection and tells clients to close."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if running.server._loop._ctx.draining:
            return
        time.sleep(0.001)
    pytest.fail("it does not drain")


def stop(running: Running) -> None:
    running.server.stop()
    await_drain(running)


def test_a_request_in_progress_is_answered_and_told_to_close() -> None:
    app = Gated()
    with serving(app) as running, running.connect() as client:
        client.send(b"GET /gated?x HTTP/1.1\r\nHost: test\r\n\r\n")
        assert app.entered.acquire(timeout=PATIENCE_S)
        stop(running)
        app.may_answer.set()
        response = client.response()
        assert (response.status, response.body) == (200, b"hello x")
        assert response.header("Connection") == "close"
        client.socket.close()
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


def test_a_request_on_an_idle_connection_is_answered_and_told_to_close() -> None:
    with serving(hello) as running, running.connect() as client:
        assert client.get("/?one").header("Connection") is None
        stop(running)
        response = client.get("/?two")
        assert (response.body, response.header("Connection")) == (b"hello two", "close")


def test_a_body_that_is_on_its_way_is_received_and_answered() -> None:
    with serving(hello) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbo")
        until = time.monotonic() + PATIENCE_S
        while not any(each.phase.value == "body" for each in list(running.server._loop.connections)):
            assert time.monotonic() < until
            time.sleep(0.001)
        stop(running)
        client.send(b"dy")
        assert client.response().body == b"hello body"


def test_requests_that_wait_for_a_worker_are_answered() -> None:
    app = Gated()
    with serving(app, threads=1) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(running.connect()) for _ in range(5)]
        for number, client in enumerate(clients):
            client.send(f"GET /gated?{number} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert app.entered.acquire(timeout=PATIENCE_S)
        stop(running)
        app.may_answer.set()
        assert [client.response().body for client in clients] == [b"hello %d" % number for number in range(5)]


def test_pipelined_requests_that_were_received_are_all_answered() -> None:
    app = Gated()
    with serving(app) as running, running.connect() as client:
        paths = ["/gated?0", "/?1", "/?2"]
        client.send("".join(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n" for path in paths).encode())
        assert app.entered.acquire(timeout=PATIENCE_S)
        stop(running)
        app.may_answer.set()
        responses = [client.response() for _ in paths]
        assert [response.body for response in responses] == [b"hello 0", b"hello 1", b"hello 2"]
        assert responses[-1].header("Connection") == "close"


def test_pipelined_requests_of_a_client_that_then_half_closes_are_all_answered() -> None:
    """No drain, but the same promise: they had been received."""
    app = Gated()
    with serving(app) as running, running.connect() as client:
        paths = ["/gated?0", "/?1", "/?2"]
        client.send("".join(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n" for path in paths).encode())
        assert app.entered.acquire(timeout=PATIENCE_S)
        client.shutdown_write()
        until = time.monotonic() + PATIENCE_S
        while not any(each.eof for each in list(running.server._loop.connections)):
            assert time.monotonic() < until
            time.sleep(0.001)
        app.may_answer.set()
        assert [client.response().body for _ in paths] == [b"hello 0", b"hello 1", b"hello 2"]


def ask_of_each(clients: Sequence[Client], *fields: str) -> None:
    for number, client in enumerate(clients):
        client.shake_hands()
        client.send("\r\n".join([f"GET /?{number} HTTP/1.1", "Host: test", *fields, "", ""]).encode())


def hold_io_thread(running: Running) -> Callable[[], None]:
    """Keep the I/O thread in a posted function; return what lets it go."""
    held, release = threading.Event(), threading.Event()

    def hold(_now: float) -> None:
        held.set()
        assert release.wait(PATIENCE_S)

    running.server._loop.post(hold)
    assert held.wait(PATIENCE_S)
    return release.set


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_connections_that_the_kernel_holds_are_served(family: str, tmp_path: Path, transport: str) -> None:
    """With all of a request, or, of TLS, with a ClientHello: no request comes before that is answered."""
    path = tmp_path / "socket"
    bind = "127.0.0.1:0" if family == "tcp" else f"unix:{path}"
    with serving(hello, bind=bind, backlog=256) as running, contextlib.ExitStack() as stack:
        let_go = hold_io_thread(running)
        connect = tcp(running.port, wait=False) if family == "tcp" else unix(path, wait=False)
        count = 150 if transport == "plain" else 60  # no more of one client may wait for a handshake
        clients = [stack.enter_context(Client(connect())) for _ in range(count)]
        if transport == "plain":
            ask_of_each(clients)
        running.server.stop()
        let_go()
        if transport == "tls":
            ask_of_each(clients)
        for number, client in enumerate(clients):
            response = client.response()
            assert (response.body, response.header("Connection")) == (b"hello %d" % number, "close")
            client.socket.close()
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


@pytest.mark.plain_only("who waits for an answer to a ClientHello has sent no request that could be lost")
def test_connections_past_the_cap_that_the_kernel_holds_are_served_as_others_end() -> None:
    with serving(hello, limits_connections=2) as running, contextlib.ExitStack() as stack:
        let_go = hold_io_thread(running)
        clients = [stack.enter_context(running.connect()) for _ in range(6)]
        for number, client in enumerate(clients):
            client.send(f"GET /?{number} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        running.server.stop()
        let_go()
        for number, client in enumerate(clients):
            assert client.response().body == b"hello %d" % number
            client.socket.close()


def test_an_idle_connection_does_not_hold_up_the_exit() -> None:
    with serving(hello) as running, running.connect() as client, running.connect():
        client.get("/")
        before = time.monotonic()
        assert running.stop() == 0
        # A second for a request that is on its way, and what a busy machine adds; a drain may take 30 s.
        assert time.monotonic() - before < 5
        assert client.receive_all() == b""


def test_nothing_connected_is_nothing_to_wait_for() -> None:
    took_s = []
    for _ in range(3):  # a machine that is busy elsewhere makes some of them late, waiting would make all
        with serving(hello) as running:
            before = time.monotonic()
            assert running.stop() == 0
            took_s.append(time.monotonic() - before)
    assert min(took_s) < 0.3


def test_a_refusal_during_the_drain_is_told_to_close() -> None:
    with serving(hello) as running, running.connect() as client:
        client.get("/")
        stop(running)
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 99999999999\r\n\r\n")
        response = client.response()
        assert (response.status, response.header("Connection")) == (413, "close")


def test_a_stream_in_progress_is_finished() -> None:
    go_on = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first "
        assert go_on.wait(PATIENCE_S)
        yield b"last"

    with serving(app) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        head = client.receive_until(b"first \r\n")
        assert b"Connection: close" not in head  # it was said before the stop
        stop(running)
        go_on.set()
        assert client.receive_until(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"
        client.socket.close()
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept alive", "closing"])
def test_a_client_that_reads_slowly_gets_everything(keep_alive: bool) -> None:
    """Longer than the idle time of a drain: what is left is with the I/O thread, and the worker is done."""
    size = 900_000

    def large(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * size]

    with serving(large) as running:
        for listener in running.server._listeners:  # inherited by what it accepts: little fits
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        with contextlib.closing(socket.socket()) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            raw.settimeout(PATIENCE_S)
            raw.connect(("127.0.0.1", running.port))
            slow = spoken(raw)
            connection = b"" if keep_alive else b"Connection: close\r\n"
            slow.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n" + connection + b"\r\n")
            received = slow.recv(1000)
            stop(running)
            # Not to wait for something, but to be slow: the wheel must turn past the idle time of a drain.
            time.sleep(0.9)
            try:
                while len(received.partition(b"\r\n\r\n")[2]) < size and (data := slow.recv(65536)):
                    received += data
            except ConnectionError as error:
                pytest.fail(f"cut after {len(received):,} bytes: {error!r}")
        assert len(received.partition(b"\r\n\r\n")[2]) == size


# --- when it takes too long ---


def test_what_takes_longer_than_the_drain_is_cut_and_named(caplog: pytest.LogCaptureFixture) -> None:
    app = Gated()
    with caplog.at_level(logging.WARNING, "hardserve"), serving(app, threads=1, drain=0.1) as running:
        with running.connect() as client, running.connect() as waiting:
            client.send(b"GET /gated?secret HTTP/1.1\r\nHost: test\r\n\r\n")
            assert app.entered.acquire(timeout=PATIENCE_S)
            waiting.send(b"GET /waits HTTP/1.1\r\nHost: test\r\n\r\n")
            before = time.monotonic()
            assert running.stop() == 0
            assert 0.1 <= time.monotonic() - before < 5
            for each in (client, waiting):
                with contextlib.suppress(ConnectionError):
                    assert each.receive_all() == b""
        app.may_answer.set()
    text = caplog.text
    assert "GET '/gated" in text
    assert "127.0.0.1" in text
    assert "cut" in text
    assert "GET '/waits" in text
    assert sorted((entry.target, entry.refusal) for entry in running.log.entries) == [
        ("/gated?secret", "cut_at_stop"),
        ("/waits", "cut_at_stop"),
    ]


@pytest.mark.parametrize("how", ["drain time is over", "second stop"])
def test_half_a_response_that_only_ends_with_its_connection_is_not_taken_for_all(how: str) -> None:
    end = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"half"
        assert end.wait(PATIENCE_S)
        yield b" and half"

    with serving(app, drain=0.1 if how == "drain time is over" else 20) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        client.receive_until(b"half")
        running.server.stop()
        if how == "second stop":
            running.server.stop()
        with pytest.raises(ConnectionError):
            client.receive_all()
        end.set()


def test_a_response_cut_for_not_being_read_is_not_taken_for_all() -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(100):
            yield b"x" * 100_000

    with serving(app, timeouts_response=0.2) as running:
        for listener in running.server._listeners:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        with running.connect() as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            client.receive_until(b"\r\n\r\n")
            running.log.wait_for(1)
            with pytest.raises(ConnectionError):
                client.receive_all()


def test_a_second_stop_leaves_at_once() -> None:
    app = Gated()
    with serving(app) as running, running.connect() as client:
        client.send(b"GET /gated HTTP/1.1\r\nHost: test\r\n\r\n")
        assert app.entered.acquire(timeout=PATIENCE_S)
        stop(running)
        before = time.monotonic()
        assert running.stop() == 1
        assert time.monotonic() - before < 5, "it need not have waited for the app"
        app.may_answer.set()


def test_a_request_that_was_cut_before_it_was_begun_is_not_begun() -> None:
    """Its client was told that it failed, and may send it again elsewhere."""
    app = Gated()
    begun: list[str] = []

    def counting(environ: Environ, start_response: Any) -> list[bytes]:
        begun.append(environ["PATH_INFO"])
        return app(environ, start_response)

    with serving(counting, threads=1, drain=0.05) as running:
        with running.connect() as client, running.connect() as waiting:
            client.send(b"GET /gated HTTP/1.1\r\nHost: test\r\n\r\n")
            assert app.entered.acquire(timeout=PATIENCE_S)
            waiting.send(b"GET /second HTTP/1.1\r\nHost: test\r\n\r\n")
            assert running.stop() == 0
        app.may_answer.set()
        for worker in running.server._workers.workers:
            worker.thread.join(PATIENCE_S)
    assert begun == ["/gated"]


def test_a_worker_that_is_done_just_as_it_is_asked_what_it_does_is_no_error() -> None:
    """`Worker.job` is written by its own thread at any moment."""

    class JustDone:
        def __init__(self) -> None:
            self._reads = 0

        @property
        def job(self) -> Any:
            self._reads += 1
            return None if self._reads > 1 else (running.server._loop, None) if self._reads < 0 else job

    with serving(hello) as running:
        with running.connect() as client:
            client.get("/")
            (connection,) = running.server._loop.connections
        job = (connection, None)
        connection_phase = connection.phase
        assert connection_phase is not None
        running.server._workers.busy = lambda: [JustDone()]  # type: ignore[method-assign, list-item]
        assert running.stop() == 0


def test_a_response_during_the_drain_is_complete() -> None:
    app = Gated()
    with serving(app, threads=4) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(running.connect()) for _ in range(4)]
        for client in clients:
            client.send(b"GET /gated?y HTTP/1.1\r\nHost: test\r\n\r\n")
        for _ in clients:
            assert app.entered.acquire(timeout=PATIENCE_S)
        stop(running)
        app.may_answer.set()
        responses: list[Response] = [client.response() for client in clients]
        assert {response.header("Connection") for response in responses} == {"close"}
        assert [client.receive_all() for client in clients] == [b""] * 4
