"""Boxes for tests of more than one: hardserve, Redis and HAProxy as an operator runs them, and clients that count.

Every program is a process of its own with the configuration that is shipped, and ends with the block that started it.
"""

from __future__ import annotations

import contextlib
import getpass
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import pytest

REPOSITORY = Path(__file__).parent.parent
# Everything here ends by itself; what takes longer than this has failed.
PATIENCE_S = 20.0
LOOK_S = 0.005

APP = """
import os, time

def app(environ, start_response):
    ends = time.thread_time() + 0.03
    while environ["PATH_INFO"] == "/compute" and time.thread_time() < ends:
        pass
    body = environ["wsgi.input"].read()
    names = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "HTTP_X_FORWARDED_FOR")
    said = [str(os.getpid()), str(len(body)), *(environ.get(name, "-") for name in names)]
    status = "401 Unauthorized" if environ["PATH_INFO"] == "/guess" else "200 OK"
    start_response(status, [("Content-Type", "text/plain")])
    return [" ".join(said).encode()]
"""


def free_port() -> int:
    """Return a port that the kernel gives to no client: a program that restarts must find its own free."""
    ports = iter(range(20_000 + os.getpid() % 5_000 + next(_ports) * 7, 32_000))
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


_ports = iter(range(1_000))


def await_(what: str, true: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Return how many seconds it took until `true()`."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < patience_s, f"not within {patience_s:g} s: {what}"
        time.sleep(LOOK_S)
    return time.monotonic() - begun


class Program:
    """A process, what it has written, and that it ends."""

    def __init__(self, name: str, directory: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self._log = directory / f"{name}.log"
        self._arguments = arguments
        # Only what a program needs: the settings of the person who tests must not leak in.
        kept = {each: os.environ[each] for each in ("PATH", "LANG", "LC_ALL", "TZ") if each in os.environ}
        self._environment = kept | {"HOME": str(directory)} | environment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def launch(self) -> None:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._arguments,
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def await_(self, what: str, true: Callable[[], bool]) -> float:
        def look() -> bool:
            assert self.running.poll() is None, f"ended with {self.running.returncode}: {self.said}"
            return true()

        return await_(f"{what}: {self.said}", look)

    def signal(self, number: signal.Signals) -> None:
        self.running.send_signal(number)

    def stop(self) -> int:
        """Have it end as an operator would, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.running.wait(PATIENCE_S)

    def end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)


class Box(Program):
    """One hardserve, with a hardserve.toml of its own on a port that it keeps."""

    def __init__(self, directory: Path, toml: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        directory.mkdir()
        (directory / "app.py").write_text(APP)
        (directory / "hardserve.toml").write_text(toml.replace("PORT", str(self.port)))
        arguments = [sys.executable, "-m", "hardserve", "--config", "hardserve.toml", "app:app"]
        # It cannot look up a module in its own directory, when the tests' own come first.
        paths = {"PYTHONPATH": str(REPOSITORY), "XDG_RUNTIME_DIR": str(directory)}
        super().__init__("hardserve", directory, arguments, paths | (environment or {}))
        self._served = 0

    def launch(self) -> None:
        self._served += 1
        super().launch()

    def await_serving(self) -> None:
        self.await_("serving", lambda: self.said.count(f":{self.port}") >= self._served)

    def lines(self, *words: str) -> list[str]:
        """Return the lines of its log in which one of `words` is."""
        return [line for line in self.said.splitlines() if any(word in line for word in words)]

    @property
    def about_the_store(self) -> list[str]:
        """Return "gone" and "back" for each line that says so, in order."""
        found = self.lines("limits by itself", "shared again")
        return ["gone" if "limits by itself" in line else "back" for line in found]

    def await_told(self, *expected: str) -> float:
        return self.await_(f"said {expected} of its store", lambda: self.about_the_store == list(expected))


class Redis(Program):
    """The store, with config/valkey.conf."""

    def __init__(self, directory: Path) -> None:
        pytest.importorskip("redis", reason="needs the package redis")
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program is None:
            pytest.skip("needs redis-server or valkey-server")
        self.port = free_port()
        directory.mkdir()
        shutil.copy(REPOSITORY / "config" / "valkey.conf", directory)
        super().__init__("redis", directory, [program, "valkey.conf", "--port", str(self.port)], {})

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.launch()
        self.await_("answering", self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as client:
            client.sendall(b"PING\r\n")
            return client.recv(100) == b"+PONG\r\n"
        return False


class HAProxy(Program):
    """The balancer in front of two boxes, with config/haproxy.cfg as it is."""

    def __init__(self, directory: Path, first: Box, second: Box) -> None:
        program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
        if program is None:
            pytest.skip("needs haproxy")
        self.port = free_port()
        directory.mkdir()
        # Relative to where it runs: the path of a socket has an upper limit.
        environment = {
            "HAPROXY_SERVER_A": f"127.0.0.1:{first.port}",
            "HAPROXY_SERVER_B": f"127.0.0.1:{second.port}",
            "HAPROXY_BIND": f"127.0.0.1:{self.port}",
            "HAPROXY_SOCKET": str(directory / "s"),
            "HAPROXY_MAXCONN": "400",
            "HAPROXY_USER": getpass.getuser(),
        }
        arguments = [program, "-W", "-f", str(REPOSITORY / "config" / "haproxy.cfg")]
        super().__init__("haproxy", directory, arguments, environment)

    def start(self) -> None:
        self.launch()
        self.await_("both up", lambda: self.up() == ["a", "b"])

    def up(self) -> list[str]:
        """Return the servers that it says are up, in the way of the README."""
        # name and state are the 4th and the 6th of the columns that it explains in its first lines
        with contextlib.suppress(OSError):
            rows = [line.split() for line in self.tell("show servers state hardserve").splitlines()]
            return [row[3] for row in rows if len(row) > 6 and row[1] == "hardserve" and row[5] == "2"]
        return []

    def tell(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.directory / "s"))
            client.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: client.recv(65536), b"")).decode()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()  # the master ends its worker, which would outlive a master that is killed
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE_S)
        super().end()


class Answer(NamedTuple):
    status: int
    text: str


class Client:
    """A connection that is kept from one request to the next, from an address of its own."""

    def __init__(self, port: int, source: str = "127.0.0.2") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, PATIENCE_S, source_address=(source, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, path: str = "/", method: str = "GET", body: bytes | None = None, **fields: str) -> Answer:
        self._connection.request(method, path, body, fields)
        response = self._connection.getresponse()
        return Answer(response.status, response.read().decode())


@dataclass
class Load:
    """Clients that ask, each on a thread of its own, and what became of that."""

    statuses: Counter[int | str] = field(default_factory=Counter)  # the name of an exception is what failed
    by_port: dict[int, Counter[int | str]] = field(default_factory=dict)
    took_s: list[float] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        port: int,
        path: str = "/",
        *,
        source: str = "127.0.0.2",
        count: int | None = None,
        method: str = "GET",
        one_shot: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        """Begin to ask for `path`, `count` times, or until `stop`."""
        body = b"x" * 1000 if method == "POST" else None

        def run() -> None:
            client = Client(port, source)
            left = count
            while left != 0 and not self._stopped.is_set():
                begun = time.monotonic()
                try:
                    status: int | str = client.ask(path, method, body).status
                except Exception as error:
                    status = type(error).__name__
                took_s = time.monotonic() - begun
                with self._lock:
                    self.statuses[status] += 1
                    self.by_port.setdefault(port, Counter())[status] += 1
                    self.took_s.append(took_s)
                if one_shot or isinstance(status, str):
                    client.__exit__()
                if left is not None:
                    left -= 1
                if pause_s:
                    self._stopped.wait(pause_s)
            client.__exit__()

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait until those with a `count` are done."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), self.statuses

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    @property
    def slowest_s(self) -> float:
        return max(self.took_s)

    def total(self) -> int:
        with self._lock:
            return self.statuses.total()


@contextlib.contextmanager
def loading() -> Iterator[Load]:
    load = Load()
    try:
        yield load
    finally:
        load.stop()
