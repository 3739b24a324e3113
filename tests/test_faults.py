"""What breaks around the server, in the app, and on the wire, for real; and what must be true of it all the same.

After each fault it serves again by itself, nothing that was accepted is lost, and the log has one clear line.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import gc
import itertools
import logging
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import Client, Running, serving, spoken, switching_often, tls_flags

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 20.0
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
HOUR_S = 3600
# What a machine that is busy with something else may add to a deadline.
BUSY_MACHINE_S = 3.0

APP = """
import os, sys, threading, time

release = threading.Event()
held = []


def use_up_descriptors(until):
    while not os.path.exists(until):
        try:
            held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            time.sleep(0.002)
    while held:
        os.close(held.pop())


def ticks(count):
    for number in range(count):
        time.sleep(0.1)
        yield b"tick"


def fill(directory):
    with open(os.path.join(directory, "ballast"), "wb", buffering=0) as ballast:
        for size in (65536, 4096, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError:
                pass


class Untidy:
    def __del__(self):
        raise ValueError("raised in __del__")


def fail():
    raise ValueError("raised in a thread")


def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    body = b"hello"
    if path == "/upload":
        body = b"%d" % len(environ["wsgi.input"].read())
    elif path == "/large":
        body = b"x" * 3_000_000
    elif path == "/stream":
        start_response("200 OK", [])
        return (b"x" * 65536 for _ in range(50))
    elif path == "/wait":
        release.wait(15)
    elif path == "/release":
        release.set()
    elif path == "/hang":
        hang_here()
    elif path == "/hog":
        use_up_descriptors(query)
    elif path == "/ticks":
        start_response("200 OK", [])
        return ticks(int(query))
    elif path == "/fill":
        fill(query)
    elif path == "/free":
        os.unlink(os.path.join(query, "ballast"))
    elif path == "/untidy":
        Untidy()
    elif path == "/thread":
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    elif path == "/exit":
        sys.exit(3)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


def hang_here():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


class Process:
    """`python -m hardserve served:app`, started through `prefix`, in a directory of its own."""

    def __init__(
        self, directory: Path, *arguments: str, prefix: tuple[str, ...] = (), environ: dict[str, str], **popen: Any
    ) -> None:
        (directory / "served.py").write_text(APP)
        self.directory = directory
        self.said = ""
        self._silent = False  # and will say no more
        self._said_more = threading.Condition()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HARDSERVE_")}
        self.popen = subprocess.Popen(
            [
                *(*prefix, sys.executable, "-m", "hardserve", "served:app", "--bind", "127.0.0.1:0"),
                *("--log-access", "access.log", *tls_flags(), *arguments),
            ],
            cwd=directory,
            env=inherited | {"PYTHONPATH": str(REPOSITORY)} | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self._said_more:
                self.said += line
                self._said_more.notify_all()
        with self._said_more:
            self._silent = True
            self._said_more.notify_all()

    def await_said(self, *texts: str) -> str:
        def all_said() -> bool:
            return all(text in self.said for text in texts)

        with self._said_more:
            self._said_more.wait_for(lambda: self._silent or all_said(), PATIENCE_S)
            assert all_said(), self.said
            return self.said

    @functools.cached_property
    def port(self) -> int:
        said = self.await_said("SIGTERM")  # the banner's last line
        match = re.search(r"https?://127\.0\.0\.1:(\d+)", said)
        assert match, said
        return int(match[1])

    def connect(self, source: str = "127.0.0.1", *, wait: bool = True) -> Client:
        connected = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S, source_address=(source, 0))
        return Client(spoken(connected, wait=wait))

    def get(self, target: str = "/", source: str = "127.0.0.1") -> bytes:
        with self.connect(source) as client:
            response = client.get(target, "Connection: close")
            assert response.status == 200, (target, response)
            return response.body

    def upload(self, size: int) -> int:
        """Send a body and return the status of the answer."""
        with self.connect() as client:
            client.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size)
            with contextlib.suppress(OSError):  # refused while it is being sent
                client.send(b"x" * size)
            response = client.response()
            assert response.status != 200 or response.body == b"%d" % size
            return response.status

    def cpu_s(self) -> float:
        """Return what it has used of the processors, from proc(5)."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.popen.pid}/fd").iterdir()))

    def log_lines(self, text: str) -> list[str]:
        return [line for line in self.said.splitlines() if text in line]

    def lines_of(self, path: Path) -> list[str]:
        """Return the lines of a file that the process sees at `path`."""
        return Path(f"/proc/{self.popen.pid}/root{path}").read_text().splitlines()

    def open_files(self) -> list[str]:
        paths = []
        for descriptor in Path(f"/proc/{self.popen.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                paths.append(os.readlink(descriptor))
        return paths

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        code = self.popen.wait(PATIENCE_S)
        self._listener.join(PATIENCE_S)
        return code

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(PATIENCE_S)
        self._listener.join(PATIENCE_S)
        assert self.popen.stderr is not None
        self.popen.stderr.close()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as started:

        def start_one(*arguments: str, environ: dict[str, str] | None = None, **options: Any) -> Process:
            process = Process(tmp_path, *arguments, environ=environ or {}, **options)
            started.callback(process.close)
            return process

        yield start_one


def eventually(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


# --- no descriptors ---


def limit_descriptors(count: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def ask(client: Client) -> int:
    """Return the status of an answer, 0 if there is none: the server has closed."""
    try:
        client.shake_hands()
        return client.get("/", "Connection: close").status
    except (ConnectionError, EOFError):
        return 0


@pytest.mark.usefixtures("transport")
def test_64_descriptors_and_300_clients(start: Start) -> None:
    process = start("--threads", "4", preexec_fn=limit_descriptors(64))
    assert process.get() == b"hello"
    at_rest = process.descriptors()
    release = b"GET /release HTTP/1.1\r\nHost: test\r\n\r\n"
    with contextlib.ExitStack() as stack:
        accepted = [stack.enter_context(process.connect(f"127.0.1.{number}")) for number in range(1, 4)]
        for client in accepted:
            client.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        accepted.append(stack.enter_context(process.connect("127.0.1.9")))
        accepted[-1].send(release[:20])  # not idle: only who is has to make room
        for number in range(300):
            with contextlib.suppress(ConnectionError):  # turned away already
                stack.enter_context(process.connect(f"127.0.2.{number % 250 + 1}")).send(GET[:20])
        before = process.cpu_s()
        threading.Event().wait(0.4)  # nothing to wait for: what is measured is what it does when nothing can be done
        assert process.cpu_s() - before < 0.2
        accepted[-1].send(release[20:])
        # Who was in before is answered, whatever came after.
        assert [client.response().status for client in accepted] == [200, 200, 200, 200]
    assert process.get() == b"hello"
    eventually(lambda: process.descriptors() <= at_rest)
    assert process.stop() == 0
    assert "Traceback" not in process.said
    assert len(process.log_lines("may open 64 descriptors: 32 connections")) == 1
    assert len(process.log_lines("refused: connections_full")) in (1, 2), "one at once, and one that sums up"
    assert len(process.said.splitlines()) < 30, process.said


def test_an_app_that_takes_every_descriptor_and_gives_them_back(start: Start, transport: str) -> None:
    process = start("--limits-body-memory", "16KiB", preexec_fn=limit_descriptors(100))
    with process.connect() as hog, process.connect() as uploading, contextlib.ExitStack() as stack:
        uploading.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 50000\r\n\r\n" + b"x" * 1000)
        hog.send(b"GET /hog?enough HTTP/1.1\r\nHost: test\r\n\r\n")
        eventually(lambda: process.descriptors() == 100)
        uploading.send(b"x" * 49_000)
        assert uploading.response().status == 503, "there is no descriptor for its body's file"
        newcomers = [stack.enter_context(process.connect(f"127.0.2.{n + 1}", wait=False)) for n in range(60)]
        process.await_said("cannot accept")
        before = process.cpu_s()
        threading.Event().wait(0.5)  # nothing to wait for: what is measured is what it does when nothing can be done
        assert process.cpu_s() - before < 0.25
        (process.directory / "enough").touch()
        assert hog.response().body == b"hello", "who is in is answered"
        # Each is served, told, or has itself made room while it had not asked yet.
        answers = [ask(client) for client in newcomers]
        assert set(answers) <= {200, 503, 0}
        assert {"plain": 503, "tls": 0}[transport] in answers  # no handshake is begun to say so
    assert process.get() == b"hello"
    assert process.upload(50_000) == 200
    assert process.stop() == 0
    assert len(process.log_lines("cannot accept")) == 1
    assert len(process.log_lines("body_not_stored")) == 1
    assert len(process.log_lines("no_descriptors")) <= 2, "one at once, and one that sums up"
    assert "Traceback" not in process.said


# --- full disks ---


@dataclass
class Disk:
    """A small file system. A program that is started with `prefix` has it at `directory`."""

    directory: Path
    prefix: tuple[str, ...] = ()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk that may be filled to its last byte.

    Root, and where the kernel allows it everybody, may mount one where nobody else sees it. A container often forbids
    that to both, but has a /dev/shm of its own, of 64 MiB.
    """
    (directory := tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=1m,mode=1777 tmpfs '{directory}'"
    refused = "needs unshare(1), of util-linux"
    for options in ("-m", "-Urm") if shutil.which("unshare") else ():
        prefix = ("unshare", options, "sh", "-c", f'{mount} && exec "$@"', "sh")
        tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if tried.returncode == 0:
            yield Disk(directory, prefix)
            return
        refused = tried.stderr.strip()
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")
        if shared.f_blocks * shared.f_frsize <= 1 << 27:
            with tempfile.TemporaryDirectory(dir="/dev/shm") as directory_there:
                yield Disk(Path(directory_there))
            return
    pytest.skip(f"may not mount a file system, not even in a namespace of its own: {refused}")


@pytest.mark.peer
@pytest.mark.usefixtures("transport")
def test_a_full_temporary_directory(start: Start, disk: Disk) -> None:
    process = start(
        *("--limits-body-memory", "16KiB", "--limits-response-buffer", "64KiB", "--limits-response-file", "16MiB"),
        prefix=disk.prefix,
        environ={"TMPDIR": str(disk.directory)},
    )
    assert process.upload(400_000) == 200
    with process.connect() as begun, process.connect() as slow:
        # One body is half in a file when the disk becomes full.
        begun.send(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 400000\r\n\r\n" + b"x" * 200_000)
        eventually(lambda: [path for path in process.open_files() if path.startswith(str(disk.directory))])
        assert process.get(f"/fill?{disk.directory}") == b"hello"
        begun.send(b"x" * 200_000)
        assert begun.response().status == 503
        assert process.upload(400_000) == 503
        assert process.upload(10_000) == 200, "what fits into memory is served"
        # Nor can a response be kept for a client that reads it slowly: its worker waits, and it gets all of it.
        slow.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
        assert process.get() == b"hello"
        assert slow.response().body == b"x" * 65536 * 50
        assert process.get(f"/free?{disk.directory}") == b"hello"
    assert process.upload(400_000) == 200
    assert process.stop() == 0
    assert [line.partition(" WARNING ")[2] for line in process.log_lines("body_not_stored")] == [
        "hardserve: 1 request refused: body_not_stored, 127.0.0.1",  # one at once, and one that sums up
        "hardserve: 1 request refused: body_not_stored, 127.0.0.1, last 1 s",
    ]
    assert "Traceback" not in process.said


@pytest.mark.peer
def test_a_full_log_disk(start: Start, disk: Disk) -> None:
    access_log, error_log = disk.directory / "access.log", disk.directory / "error.log"
    process = start("--log-access", str(access_log), "--log-error", str(error_log), prefix=disk.prefix)
    assert process.get("/before") == b"hello"
    eventually(lambda: len(process.lines_of(access_log)) == 1)
    assert process.get(f"/fill?{disk.directory}") == b"hello"
    with process.connect() as client:
        for number in range(300):  # more than what is left of the last page of the file
            assert client.get(f"/during/{number}/{'x' * 200}").body == b"hello"
    process.await_said("error log", "No space left on device; lines wait in memory")
    assert process.get(f"/free?{disk.directory}") == b"hello"
    assert process.get("/after") == b"hello"
    eventually(lambda: len(process.lines_of(access_log)) == 304)
    logged = process.lines_of(access_log)
    assert [number for number in range(300) if sum(f"/during/{number}/" in line for line in logged) != 1] == []
    assert all(line.endswith(" refused=-") for line in logged), "a line was cut"
    eventually(
        lambda: [line for line in process.lines_of(error_log) if "access log" in line and "written again" in line]
    )
    said = process.lines_of(error_log)
    for log in ("access log", "error log"):
        assert [sum(log in line and text in line for line in said) for text in ("No space left", "written again")] == [
            1,
            1,
        ]
    assert process.stop() == 0
    assert "Traceback" not in process.said


def test_logs_that_can_never_be_written(start: Start) -> None:
    process = start("--log-access", "/dev/full", "--log-error", "/dev/full")
    with process.connect() as client:
        for _ in range(50):
            assert client.get("/").body == b"hello"
        assert client.get("/exit").status == 500
        assert client.get("/").status == 200
    assert process.stop() == 0
    assert "Traceback" not in process.said


# --- the clock ---


@pytest.mark.peer
def test_the_clock_is_set_back_an_hour_and_forward_again(start: Start, tmp_path: Path) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime, of Debian's package faketime")
    (offset := tmp_path / "offset").write_text("+0")

    def set_clock(text: str) -> None:
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").rename(offset)

    process = start(
        *("--timeouts-header", "0.7s", "--timeouts-body", "0.7s", "--timeouts-keep-alive", "1s"),
        environ={
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # its name before version 0.9.9
        },
    )

    def off_by_s(client: Client) -> float:
        date = email.utils.parsedate_to_datetime(str(client.get("/").header("Date")))
        return date.timestamp() - time.time()

    with process.connect() as head, process.connect() as body, process.connect() as idle, process.connect() as busy:
        assert abs(off_by_s(idle)) < 2
        busy.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        head.send(GET[:20])
        body.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nx")
        began = time.monotonic()
        set_clock("-1h")
        assert abs(off_by_s(idle) + HOUR_S) < 2, "the Date follows the clock"
        threading.Event().wait(0.2)
        set_clock("+1h")  # two hours at once: nothing that is under way is late because of it
        assert abs(off_by_s(idle) - HOUR_S) < 2
        idle_since = time.monotonic()
        for client in (head, body):
            assert client.response().status == 408
            assert 0.6 < time.monotonic() - began < 1.2 + BUSY_MACHINE_S, "a deadline keeps its length"
        assert idle.receive_all() == b""
        assert 0.9 < time.monotonic() - idle_since < 1.5 + BUSY_MACHINE_S
        process.get("/release")
        assert busy.response().body == b"hello"
    assert process.stop() == 0
    took = [
        float(line.partition(" took=")[2].split()[0]) for line in (tmp_path / "access.log").read_text().splitlines()
    ]
    assert len(took) == 7
    assert all(0 <= seconds < 5 for seconds in took), took
    assert "Traceback" not in process.said


# --- an app that does not come back, or whose exceptions go where nobody looks for them ---


def test_threads_that_hang_for_ever(start: Start) -> None:
    process = start("--threads", "2", "--timeouts-app", "0.3s", "--max-stuck", "2", "--exit-when-stuck", "on")
    with process.connect("127.0.0.9") as stream:
        for number in range(2):
            with process.connect() as client:
                began = time.monotonic()
                client.send(b"GET /hang?%d HTTP/1.1\r\nHost: test\r\nX-Request-ID: hung-%d\r\n\r\n" % (number, number))
                if number == 0:
                    assert process.get("/", "127.0.0.2") == b"hello", "the other thread serves"
                else:
                    stream.send(b"GET /ticks?8 HTTP/1.1\r\nHost: test\r\n\r\n")
                assert client.response().status == 504
                assert 0.3 <= time.monotonic() - began < 0.8 + BUSY_MACHINE_S
                assert client.receive_all() == b""
        process.await_said("unhealthy")
        assert stream.response().body == b"tick" * 8, "what is in progress is answered before it ends"
    assert process.wait() == 1, "who started it is to know"
    for number in range(2):
        (said,) = process.log_lines(f"hung-{number}")
        assert f"GET '/hang?{number}'" in said
        assert "timeouts.app" in said
    assert process.said.count("in hang_here") == 2, "one stack for each"
    assert len(process.log_lines("unhealthy")) == 1


def test_exceptions_that_are_raised_where_nobody_waits_for_them(start: Start) -> None:
    process = start("--threads", "1")
    for path, said in (("/untidy", "raised in __del__"), ("/thread", "raised in a thread")):
        assert process.get(path) == b"hello"
        process.await_said(said)
    with process.connect() as client:
        assert client.get("/exit").status == 500
        assert client.get("/").body == b"hello"
    assert process.stop() == 0
    assert process.said.count("ValueError: raised in __del__") == 1
    assert process.said.count("ValueError: raised in a thread") == 1
    assert process.said.count("SystemExit: 3") == 1


class CloseError(Exception):
    """What an iterable's `close` may raise."""


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1) + 1


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


LEAKED: dict[str, tuple[Callable[[], object], type[BaseException]]] = {
    "SystemExit": (lambda: sys.exit(1), SystemExit),
    "KeyboardInterrupt": (raises(KeyboardInterrupt()), KeyboardInterrupt),
    "GeneratorExit": (raises(GeneratorExit()), GeneratorExit),
    "StopIteration": (raises(StopIteration()), StopIteration),
    "MemoryError": (lambda: bytes(1 << 62), MemoryError),
    "RecursionError": (recurse, RecursionError),
    "BaseException": (raises(BaseException("x")), BaseException),
    "OSError": (raises(BrokenPipeError()), BrokenPipeError),
}


class Leaking:
    """Fails as the path says: /where/what. Two requests for /meet/ wait for each other, and so need two threads."""

    def __init__(self) -> None:
        self.meeting = threading.Barrier(2)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        _, where, what = environ["PATH_INFO"].split("/")
        fail = LEAKED[what][0] if what else lambda: None
        if where == "meet":
            self.meeting.wait(PATIENCE_S)
        if where == "call":
            fail()
        start_response("200 OK", [("Content-Length", "3")])
        return Blocks(where, fail)


class Blocks:
    def __init__(self, where: str, fail: Callable[[], object]) -> None:
        self._where = where
        self._fail = fail
        self._next = itertools.count()

    def __iter__(self) -> Blocks:
        if self._where == "iter":
            self._fail()
        return self

    def __next__(self) -> bytes:
        number = next(self._next)
        if self._where == "midway" and number == 1:
            self._fail()
        if number == 3:
            raise StopIteration
        return b"%d" % number

    def close(self) -> None:
        if self._where == "close":
            self._fail()


# What the client gets, and what the log says of it.
WHERE = {"call": (500, "before"), "iter": (500, "before"), "midway": (200, "midway"), "close": (200, "after")}


def test_whatever_an_app_raises_costs_one_request_and_one_entry_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Leaking(), threads=2) as running:
        workers = set(running.server._workers.workers)
        for where, what in itertools.product(WHERE, LEAKED):
            if (where, what) == ("midway", "StopIteration"):
                continue  # an end, and no failure
            caplog.clear()
            status, when = WHERE[where]
            with running.connect() as client:
                client.send(f"GET /{where}/{what} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
                head = client.receive_until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 %d " % status)
                if where == "midway":
                    assert client.receive_all() == b"0", "half a response must not look like a whole one"
            eventually(lambda: caplog.records)
            eventually(lambda: not running.server._workers.busy())
            (record,) = caplog.records
            assert record.levelno == logging.ERROR
            assert f"/{where}/{what}: the app failed {when}" in record.getMessage()
            assert record.exc_info is not None
            assert record.exc_info[0] is LEAKED[what][1]
        assert set(running.server._workers.workers) == workers
        with running.connect("127.0.0.2") as one, running.connect("127.0.0.3") as other:
            for client in (one, other):
                client.send(b"GET /meet/ HTTP/1.1\r\nHost: test\r\n\r\n")
            assert one.response().body == other.response().body == b"012"
        assert running.stop() == 0


# --- clients that reset ---


class Busy:
    """Takes its time, so that requests wait, and answers more than a socket takes."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        if path == "/slow":
            time.sleep(0.003)
        if path == "/large":
            return [b"x" * 600_000]
        if path == "/stream":
            return iter([b"x" * 60_000] * 10)
        return [b"%d" % len(body)]


def post(size: int, sent: int, *, chunked: bool = False) -> bytes:
    framing = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" if chunked else b"Content-Length: %d\r\n\r\n"
    return b"POST / HTTP/1.1\r\nHost: test\r\n" + framing % size + b"x" * sent


# What it has sent when it resets, and how much of an answer it waits for before.
RESETS: dict[str, tuple[bytes, int]] = {
    "before a byte": (b"", 0),
    "in a request line": (b"GET / HT", 0),
    "in a head": (GET[:-2], 0),
    "in a body": (post(1000, 500), 0),
    "in a body that is in a file": (post(200_000, 100_000), 0),
    "in a chunk": (post(1000, 500, chunked=True), 0),
    "in a chunk's size": (post(10, 10, chunked=True) + b"\r\n1", 0),
    "in a trailer": (post(10, 10, chunked=True) + b"\r\n0\r\nX: y\r\n", 0),
    "having been told to continue": (post(9, 0).replace(b"Host", b"Expect: 100-continue\r\nHost"), 10),
    "while it waits or the app runs": (GET.replace(b"/", b"/slow", 1), 0),
    "with more behind it": (GET.replace(b"/", b"/slow", 1) * 5 + GET[:9], 0),
    "in a response": (GET.replace(b"/", b"/large", 1), 1000),
    "in a stream": (GET.replace(b"/", b"/stream", 1), 1000),
    "in an answer that is not read at all": (GET.replace(b"/", b"/large", 1) * 2, 0),
    "between two requests": (GET, 80),
    "while its refusal lingers": (b"GET / HTTP/1.1\r\n\r\n", 100),
    "while it sends on after a refusal": (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100_000, 0),
}
TIMES = 40


def reset_all(running: Running, seed: int, count: int, problems: list[str]) -> None:
    """Reset in every way, in an order of one's own."""
    shuffled = random.Random(seed)
    whims = list(RESETS.values()) * count
    shuffled.shuffle(whims)
    for data, answer in whims:
        try:
            with running.connect(f"127.0.{seed + 10}.1") as client:
                with contextlib.suppress(ConnectionError):
                    client.send(data)
                    if answer:
                        client.receive_exactly(answer)
                if shuffled.random() < 0.3:
                    time.sleep(0.001)
                client.reset()
        except Exception as error:  # told by the thread that checks
            problems.append(f"{data[:60]!r}: {error!r}")


@pytest.mark.usefixtures("transport")
def test_clients_that_reset_in_the_middle_of_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gc.collect()
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    caplog.set_level(logging.WARNING, "hardserve")
    problems: list[str] = []
    with switching_often(), serving(Busy(), limits_body_memory=20_000, limits_response_buffer="64KiB") as running:
        server = running.server
        crowd = [
            threading.Thread(target=reset_all, args=(running, seed, TIMES // 4, problems), daemon=True)
            for seed in range(4)
        ]
        for thread in crowd:
            thread.start()
        served = 0
        with running.connect() as normal:
            while any(thread.is_alive() for thread in crowd):
                assert normal.get("/").status == 200
                served += 1
        assert served > 20
        eventually(lambda: not server._loop.connections)
        eventually(lambda: not server._workers.busy())
        assert server._workers.waiting() == 0
        assert (server._budget.memory, server._budget.files) == (0, 0)
        assert len(server._loop._selector.get_map()) == 2, "the listener, and what wakes the loop"
        assert running.stop() == 0
    assert problems == []
    assert [record.getMessage() for record in caplog.records] == []
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert set(threading.enumerate()) == threads
    assert list(tmp_path.iterdir()) == []
