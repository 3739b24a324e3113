"""The command from start to exit: real processes, real signals, real limits."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartCommand
from tests.support import Client, can_bind_ipv6

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 20.0

APP = """
import os, resource


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/gated":  # waits until the test has opened and closed the other end
        with open(os.environ["GATE"], "rb") as gate:
            gate.read()
    body = b"hello"
    if path == "/cpu":
        used = resource.getrusage(resource.RUSAGE_SELF)
        body = b"%f" % (used.ru_utime + used.ru_stime)
    elif path == "/descriptors":
        body = b"%d" % len(os.listdir("/proc/self/fd"))
    elif path == "/lower":  # as many as are open now, and this many more
        used = len(os.listdir("/proc/self/fd")) - 1
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + int(environ["QUERY_STRING"]), hard))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""


class Process:
    """`python -m hardserve served:app` in a directory of its own."""

    def __init__(self, directory: Path, *arguments: str, binds: tuple[str, ...] = ("127.0.0.1:0",), **popen: Any):
        (directory / "served.py").write_text(APP)
        self.directory = directory
        self.gate = directory / "gate"
        os.mkfifo(self.gate)
        self.said = ""
        self._said_more = threading.Condition()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HARDSERVE_")}
        bind = [part for each in binds for part in ("--bind", each)]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "hardserve", "served:app", *bind, "--log-access", "access.log", *arguments],
            cwd=directory,
            env=environ | {"PYTHONPATH": str(REPOSITORY), "GATE": str(self.gate)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self._said_more:
                self.said += line
                self._said_more.notify_all()
        with self._said_more:
            self._said_more.notify_all()

    def await_said(self, *texts: str) -> str:
        """Return what was said on standard error once all of `texts` were."""
        with self._said_more:
            assert self._said_more.wait_for(lambda: all(text in self.said for text in texts), PATIENCE_S), self.said
            return self.said

    def urls(self) -> list[str]:
        words = self.await_said("SIGTERM").split()  # the banner's last line
        return [word for word in words if word.startswith(("http://", "unix:"))]

    @property
    def port(self) -> int:
        return int(self.urls()[0].rpartition(":")[2])

    def connect(self, url: str | None = None) -> Client:
        url = self.urls()[0] if url is None else url
        if url.startswith("unix:"):
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(PATIENCE_S)
            connected.connect(url.removeprefix("unix:"))
            return Client(connected)
        host, _, port = url.removeprefix("http://").rpartition(":")
        return Client(socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S))

    def get(self, path: str = "/", url: str | None = None) -> bytes:
        with self.connect(url) as client:
            response = client.get(path, "Connection: close")
            assert response.status == 200
            return response.body

    @contextlib.contextmanager
    def gated_request(self) -> Iterator[tuple[Client, Callable[[], None]]]:
        """Give a client whose request the app is busy with, and what lets the app answer it."""
        with self.connect() as client:
            client.send(b"GET /gated?secret=1 HTTP/1.1\r\nHost: test\r\n\r\n")
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    gate = os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK)  # fails until the app has opened it
                    break
                except OSError:
                    assert time.monotonic() < until
                    time.sleep(0.002)
            closed = False

            def let_answer() -> None:
                nonlocal closed
                closed = True
                os.close(gate)

            try:
                yield client, let_answer
            finally:
                if not closed:
                    os.close(gate)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        code = self.popen.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def await_drain(self) -> None:
        """Return when it takes no connection any more."""
        port = self.port
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with contextlib.closing(socket.socket()) as probe:
                probe.settimeout(0.05)  # while it drains its last connections, a SYN may get no answer at all
                try:
                    probe.connect(("127.0.0.1", port))
                except ConnectionRefusedError:
                    return
                except TimeoutError:
                    continue
            time.sleep(0.002)
        pytest.fail("it does not drain")

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.popen.stderr is not None
        self.popen.stderr.close()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start_one(*arguments: str, **options: Any) -> Process:
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(Process(directory, *arguments, **options))
        return started[-1]

    try:
        yield start_one
    finally:
        for process in started:
            process.close()


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_drains_and_ends_with_0(start: Start, number: int) -> None:
    process = start()
    with process.gated_request() as (client, let_answer):
        process.signal(number)
        process.await_drain()
        assert process.popen.poll() is None
        let_answer()
        response = client.response()
        assert (response.body, response.header("Connection")) == (b"hello", "close")
    assert process.wait() == 0
    assert "Traceback" not in process.said
    assert "GET /gated" in (process.directory / "access.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_leaves_at_once(start: Start, number: int) -> None:
    process = start()
    with process.gated_request():
        process.signal(signal.SIGTERM)
        process.await_drain()
        before = time.monotonic()
        process.signal(number)
        assert process.wait() == 1
        assert time.monotonic() - before < 10  # a drain takes 30 s
    assert "cut" in process.said
    assert "Traceback" not in process.said


def test_what_outlasts_the_drain_is_cut_and_named_and_the_exit_is_0(start: Start) -> None:
    process = start("--drain", "100ms")
    with process.gated_request() as (client, _):
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        with contextlib.suppress(ConnectionError):
            assert client.receive_all() == b""
    assert "cut" in process.said
    assert "GET '/gated" in process.said
    assert "Traceback" not in process.said


def test_an_idle_connection_does_not_hold_up_the_exit_for_long(start: Start) -> None:
    process = start()
    with process.connect() as client:
        client.get("/")
        before = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - before < 10  # 1.25 s, and the time that Python takes to exit; a drain takes 30 s


def test_sighup_reopens_the_logs_and_serves_on(start: Start) -> None:
    process = start("--log-error", "error.log")
    log = process.directory / "access.log"
    error_log = process.directory / "error.log"
    with process.connect() as client:
        client.get("/before")
        await_text(log, "/before")
        log.rename(process.directory / "access.log.1")
        error_log.rename(process.directory / "error.log.1")
        process.signal(signal.SIGHUP)
        until = time.monotonic() + PATIENCE_S
        while not (log.exists() and error_log.exists()):
            assert time.monotonic() < until
            time.sleep(0.005)
        client.get("/after")
        await_text(log, "/after")
    assert "/before" not in log.read_text()
    assert "/after" not in (process.directory / "access.log.1").read_text()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def await_text(path: Path, text: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while text not in path.read_text():
        assert time.monotonic() < until, path.read_text()
        time.sleep(0.005)


def test_sigusr1_tells_what_every_thread_does_and_what_every_worker_serves(start: Start) -> None:
    process = start("--threads", "2")
    with process.gated_request() as (client, let_answer):
        process.signal(signal.SIGUSR1)
        said = process.await_said("hardserve-worker-2", "thread MainThread", "served.py", "in app")
        assert "GET '/gated" in said
        assert "127.0.0.1" in said
        let_answer()
        assert client.response().body == b"hello"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_signals_in_a_row_while_it_serves_do_no_harm(start: Start) -> None:
    process = start()
    with process.connect() as client:
        for number in range(40):
            process.signal(signal.SIGHUP if number % 2 else signal.SIGUSR1)
            assert client.get("/").body == b"hello"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "Traceback" not in process.said


def test_a_thread_of_the_app_that_does_not_end_is_not_waited_for_for_ever(
    start_command: StartCommand, tmp_path: Path
) -> None:
    (tmp_path / "scheduled.py").write_text(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, name='scheduler').start()\n"
        "def app(environ, start_response): ...\n"
    )
    with start_command("scheduled:app", directory=tmp_path) as command:
        assert command.stop() == 0
    assert "ended without threads of the app that go on and are no daemons: scheduler\n" in command.output


# --- addresses ---


def test_a_port_in_use_is_named_and_the_exit_is_1(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start(binds=(f"127.0.0.1:{port}",))
        assert process.wait() == 1
    assert f"port {port} is in use" in process.said
    assert "Traceback" not in process.said


def test_a_unix_socket_in_use_is_named_and_the_exit_is_1(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        process = start(binds=(f"unix:{path}",))
        assert process.wait() == 1
    assert str(path) in process.said
    assert "in use" in process.said
    assert "Traceback" not in process.said


def test_a_unix_socket_from_start_to_exit(start: Start, tmp_path: Path) -> None:
    """A stale one is replaced; mode and owner are right; it is gone at the end."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    process = start(binds=(f"unix:{path}?mode=660&owner={os.getuid()}:{os.getgid()}",))
    assert process.get() == b"hello"
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, os.getuid(), os.getgid())
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not path.exists()


def test_a_unix_socket_is_gone_after_a_second_signal_too(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    process = start(binds=("127.0.0.1:0", f"unix:{path}"))
    with process.gated_request():
        process.signal(signal.SIGTERM)
        process.await_drain()
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
    assert not path.exists()


def test_an_inherited_socket_outlives_the_server(start: Start) -> None:
    """As under systemd: who connects between two servers waits, and is served by the second."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        bind = f"fd:{theirs.fileno()}"
        first = start(binds=(bind,), pass_fds=(theirs.fileno(),))
        assert first.get() == b"hello"
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        with contextlib.closing(socket.create_connection(theirs.getsockname(), PATIENCE_S)) as between:
            between.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            second = start(binds=(bind,), pass_fds=(theirs.fileno(),))
            assert Client(between).response().body == b"hello"
        second.signal(signal.SIGTERM)
        assert second.wait() == 0


def test_several_addresses_are_served_at_once(start: Start, tmp_path: Path) -> None:
    binds = ["127.0.0.1:0", "127.0.0.2:0", f"unix:{tmp_path}/socket"]
    if can_bind_ipv6():
        binds.append("[::1]:0")
    process = start(binds=tuple(binds))
    urls = process.urls()
    assert len(urls) == len(binds)
    assert [process.get(url=url) for url in urls] == [b"hello"] * len(binds)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_one_bad_address_of_several_leaves_no_unix_socket_behind(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = start(binds=(f"unix:{tmp_path}/socket", f"127.0.0.1:{other.getsockname()[1]}"))
        assert process.wait() == 1
    assert not (tmp_path / "socket").exists()


# --- descriptors ---


def limit_descriptors(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_descriptors_are_told_and_fewer_connections_taken(start: Start) -> None:
    process = start(preexec_fn=limit_descriptors(64, 64))
    said = process.await_said("SIGTERM", "limits.connections is 16384")
    assert "64 descriptors: 32 connections" in said
    assert "ulimit -Hn" in said
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(process.connect()) for _ in range(32)]
        for client in clients:
            assert client.get("/").body == b"hello"
        # From here on the one that has been idle for longest makes room for each newcomer.
        clients += [stack.enter_context(process.connect()) for _ in range(18)]
        for client in clients[32:]:
            assert client.get("/").body == b"hello"
        for client in clients[:18]:
            assert client.receive_all() == b""
        for client in clients[18:]:
            assert client.get("/").body == b"hello"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "cannot accept" not in process.said


def test_the_soft_limit_is_raised_without_a_word_where_that_is_allowed(start: Start) -> None:
    process = start("--limits-connections", "100", preexec_fn=limit_descriptors(64, 1000))
    process.urls()
    limits = Path(f"/proc/{process.popen.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert int(line.split()[3]) >= 100
    assert "limits.connections is" not in process.said


def cpu_s(process: Process) -> float:
    fields = Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_running_out_of_descriptors_is_survived_without_a_busy_loop(start: Start) -> None:
    process = start("--limits-client-connection-rate", "0", preexec_fn=limit_descriptors(512, 512))
    assert process.get("/lower?12") == b"hello"
    with contextlib.ExitStack() as stack:
        # While there are idle ones, they make room: everybody is served.
        for _ in range(40):
            assert stack.enter_context(process.connect()).get("/").body == b"hello"
        process.await_said("cannot accept: [Errno 24]", "LimitNOFILE=")
        # Those in the middle of a request do not.
        began: list[Client] = []
        refused: list[Client] = []
        while len(refused) < 40:
            client = stack.enter_context(process.connect())
            client.send(b"GET / HTTP/1.1\r\n")
            (refused if select.select([client.socket], [], [], 0.05)[0] else began).append(client)
            assert len(began) < 40
        for client in refused:
            assert read_quietly(client).startswith(b"HTTP/1.1 503 ")
        before, started = cpu_s(process), time.monotonic()
        select.select([], [], [], 0.5)
        assert cpu_s(process) - before < 0.3 * (time.monotonic() - started)
        for client in began:
            client.send(b"Host: test\r\nConnection: close\r\n\r\n")
            assert client.response().body == b"hello"
    assert process.get() == b"hello"
    assert process.said.count("cannot accept") == 1, "it is said at most every ten seconds"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "Traceback" not in process.said


def read_quietly(client: Client) -> bytes:
    """Return what comes until the connection ends or is reset: it was refused before it had sent everything."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := client.socket.recv(65536):
            received += data
    return received


def test_requests_leave_no_descriptors_behind(start: Start) -> None:
    process = start()
    first = int(process.get("/descriptors"))
    for number in range(30):
        with process.connect() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 700000\r\n\r\n" + b"x" * 700_000)
            client.response()
            if number % 2:
                client.reset()
    until = time.monotonic() + PATIENCE_S
    while int(process.get("/descriptors")) > first:
        assert time.monotonic() < until
        time.sleep(0.01)
