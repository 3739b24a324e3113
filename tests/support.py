"""What tests share: a server in this process on a free port, and a client that says exactly the bytes it is given."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hardserve.edge.budget import Budget
from hardserve.edge.connection import EdgeContext
from hardserve.edge.gate import Gate, Pending
from hardserve.edge.networks import Networks
from hardserve.edge.parsing import ParserRules, Request
from hardserve.edge.ratelimit import RateLimiter
from hardserve.edge.readers import Readers
from hardserve.ops.accesslog import AccessEntry, AccessLog
from hardserve.options import from_keywords
from hardserve.pages import ErrorPages
from hardserve.protocol import DateClock
from hardserve.refusals import Refusal
from hardserve.server import Server
from hardserve.settings import Settings
from hardserve.tls.policy import PairFiles
from tests.certs import client_context, self_signed

# Everything here ends by itself; a test that waits longer than this has failed.
PATIENCE_S = 10.0
# The table of counts is made as large as it gets, which for the default's 50,000 takes longer than a server's start.
FEW_KEYS = 1000


class RecordingAccessLog(AccessLog):
    """Keeps entries instead of writing them; `wait_for` returns when so many requests have been logged."""

    def __init__(self) -> None:
        self.entries: list[AccessEntry] = []
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<RecordingAccessLog {len(self.entries)} entries>"

    def start(self) -> None: ...

    def write(self, entry: AccessEntry) -> None:
        with self._changed:
            self.entries.append(entry)
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        return True

    def wait_for(self, count: int) -> list[AccessEntry]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.entries) >= count, PATIENCE_S), self.entries
            return list(self.entries)


@dataclass
class Running:
    """A server in a thread of this process."""

    server: Server
    log: RecordingAccessLog
    thread: threading.Thread
    exit_codes: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.urls[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def connect(self, source: str | None = None, *, wait: bool = True) -> Client:
        """Without `wait`, no answer to a handshake is waited for: `Client.shake_hands` does that."""
        connected = socket.create_connection(
            ("127.0.0.1", self.port), PATIENCE_S, source_address=(source, 0) if source else None
        )
        # What is sent in two pieces would leave the second 40 ms later, when the first has been acknowledged.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.url.startswith("https:"):
            return Client(connected)
        return Client(TlsSocket(connected, wait=wait))

    def exchange(self, data: bytes) -> bytes:
        """Send `data` on a connection of its own and return everything that comes back."""
        with self.connect() as client:
            client.send(data)
            client.shutdown_write()
            return client.receive_all()

    def stop(self) -> int:
        """Drain, and return the exit code."""
        self.server.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), self.server
        return self.exit_codes[0]


class TlsSocket:
    """A client's end of TLS that can do what a socket can: be half closed, and be used by two threads.

    By default it takes whatever certificate it is shown.
    """

    def __init__(
        self,
        raw: socket.socket,
        context: ssl.SSLContext | None = None,
        name: str | None = None,
        *,
        wait: bool = True,
    ) -> None:
        self.raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or client_context()).wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._lock = threading.Lock()
        if wait:
            self.shake_hands()
        else:
            self._shakes_hands()

    def shake_hands(self) -> None:
        try:
            while not self._shakes_hands():
                if not self._take(65536):
                    raise ConnectionError("closed during the handshake")  # noqa: TRY301
        except BaseException:
            self.raw.close()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def _shakes_hands(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._leave()
        return True

    def _leave(self) -> None:
        if data := self._outgoing.read():
            self.raw.sendall(data)

    def _take(self, count: int) -> bool:
        data = self.raw.recv(count)
        with self._lock:
            if data:
                self._incoming.write(data)
        return bool(data)

    def sendall(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), 65536):  # as the server reads it, a client that writes may have to be read
            with self._lock:
                self.tls.write(view[start : start + 65536])
                leaving = self._outgoing.read()
            self.raw.sendall(leaving)

    def send(self, data: bytes | memoryview) -> int:
        self.sendall(data)
        return len(data)

    def recv(self, count: int, flags: int = 0) -> bytes:
        while True:
            try:
                with self._lock:
                    return self.tls.read(count)
            except ssl.SSLWantReadError:
                # Not more than is asked for, so that a slow reader is one.
                if not self._take(max(count, 64)):
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def recv_into(self, buffer: bytearray, count: int = 0) -> int:
        data = self.recv(count or len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        with self._lock, contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()  # says close_notify, and would then wait for the server's
        with contextlib.suppress(OSError):
            self._leave()
        self.raw.shutdown(how)


@functools.cache
def own_pair() -> PairFiles:
    """Return a certificate for this machine that is as good for every test as for the next."""
    directory = Path(tempfile.mkdtemp(prefix="hardserve-test-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return self_signed("localhost", "127.0.0.1").write(directory)


class _Transport:
    """What `serving` speaks unless a test says otherwise."""

    tls = os.environ.get("HARDSERVE_TEST_TRANSPORT") == "tls"


def spoken(connected: socket.socket, *, wait: bool = True) -> Any:
    """Return a connected socket as `serving` speaks on it."""
    return TlsSocket(connected, wait=wait) if _Transport.tls else connected


def speaks_tls() -> bool:
    return _Transport.tls


def tls_flags() -> tuple[str, ...]:
    """Return what has the command speak as `serving` does."""
    if not _Transport.tls:
        return ()
    return ("--tls-certificate", str(own_pair().certificate), "--tls-key", str(own_pair().key))


@contextlib.contextmanager
def over(transport: str) -> Iterator[None]:
    """Have `serving` speak "plain" or "tls" while the block runs."""
    before, _Transport.tls = _Transport.tls, transport == "tls"
    try:
        yield
    finally:
        _Transport.tls = before


@contextlib.contextmanager
def serving(app: Callable[..., Any], **settings: Any) -> Iterator[Running]:
    """Serve `app` on a free port of 127.0.0.1 while the block runs; `settings` as for `hardserve.serve`."""
    settings.setdefault("bind", "127.0.0.1:0")
    settings.setdefault("threads", 4)
    # Every client here comes from one address, unless a test says otherwise.
    if "rate_limiting_default" not in settings:
        settings["rate_limiting_default"] = "off"
        settings.setdefault("rate_limiting_max_keys", FEW_KEYS)
    settings.setdefault("limits_client_connections", 0)
    settings.setdefault("limits_client_connection_rate", 0)
    settings.setdefault("max_client_workers", settings["threads"])
    if _Transport.tls and "tls" not in settings and "certificate" not in settings:
        settings.setdefault("tls_certificate", str(own_pair().certificate))
        settings.setdefault("tls_key", str(own_pair().key))
    log = RecordingAccessLog()
    server = Server(app, from_keywords(**settings), log)
    server.bind()
    server._loop._acceptor.handshake_s = 0.0  # nobody here is far away, and there are thousands of stops
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(server.run()), name="edge", daemon=True)
    running = Running(server, log, thread, codes)
    thread.start()
    try:
        yield running
    finally:
        if thread.is_alive():
            server.stop()
            server.stop()  # at once: what a test has not finished is not its subject
            thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"the server did not stop: {server!r}"


class NoChecks:
    """Nothing that may block is there to be asked."""

    def password(self, *_: object) -> bool:
        return False

    def rates(self, *_: object) -> bool:
        return False


def limiter_of(settings: Settings, dry_run: Callable[[str, str], None] = lambda _rule, _client: None) -> RateLimiter:
    """Return the limiter of a server that shares its counts with nobody."""
    return RateLimiter(
        settings.rate_limit,
        settings.rate_limiting,
        failures=settings.auth.failures,
        ipv6_prefix=settings.limits.ipv6_prefix,
        shared=False,
        dry_run=dry_run,
    )


def plain_gate(settings: Settings) -> Gate:
    """Return the gate of a server without a users file and a shared store, which bans nobody."""
    return Gate(
        settings,
        trusted=Networks(settings.proxy.trusted),
        hosts=settings.access.hosts,
        limiter=limiter_of(settings),
        banned=lambda _client, _address, _now: False,
        ban_left_s=lambda _client, _now: 0.0,
        auth=None,
        checks=NoChecks(),
    )


class Somebody:
    """A connection from an address that is nobody's proxy."""

    peer = ("192.0.2.1", 40_000)
    client = "192.0.2.1"
    trusted = False
    request: Request | None = None

    def decided(self, request: Request, refusal: Refusal | None, now: float) -> None:
        raise AssertionError("nothing has to be waited for here")

    def close(self, *, reset: bool = False) -> None:
        raise AssertionError("nothing goes wrong here")


def admitted(gate: Gate, request: Request, now: float = 0.0) -> Refusal | None:
    """Return what `gate` says of a request of somebody, of which it can tell at once."""
    told = gate.admit(Somebody(), request, now)
    assert not isinstance(told, Pending)
    return told


def edge_context(
    poller: Any, dispatch: Callable[..., Refusal | None], kind: type[EdgeContext] = EdgeContext, **settings: Any
) -> EdgeContext:
    """Return what a connection without a loop needs; what it has to say about refusals goes nowhere."""
    chosen = from_keywords(**{"rate_limiting_max_keys": FEW_KEYS} | settings)
    budget = Budget(chosen.limits.buffered_memory, chosen.limits.buffered_files)
    return kind(
        settings=chosen,
        rules=ParserRules(chosen.limits),
        date=DateClock(),
        poller=poller,
        budget=budget,
        readers=Readers(max(1, chosen.server.threads // 2), budget, lambda: 0, poller),
        pages=ErrorPages(),
        admit=plain_gate(chosen).admit,
        identify=lambda *_: None,
        dispatch=dispatch,
        withdraw=lambda *_: False,
        responded=lambda *_: None,
        log_refusal=lambda *_: None,
        log_cut=lambda *_: None,
        log_turned_away=lambda *_: None,
    )


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    """Have threads take turns at nearly every bytecode while the block runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def can_bind_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the values of a field, joined by a comma, None if it is absent."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None


class Client:
    """A blocking connection. Reading past what the server sent fails the test by its time limit."""

    def __init__(self, connected: socket.socket | TlsSocket) -> None:
        self.socket: Any = connected
        self._buffer = bytearray()  # what is large is received in many pieces, and is not to be copied for each

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def shake_hands(self) -> None:
        if isinstance(self.socket, TlsSocket):
            self.socket.shake_hands()

    def shutdown_write(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the server sees an error, not an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def receive_all(self) -> bytes:
        """Return what comes until the server closes. Raises ConnectionError if it resets instead."""
        while data := self.socket.recv(65536):
            self._buffer += data
        return self._take(len(self._buffer))

    def receive_until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._fill()
        return self._take(self._buffer.index(mark) + len(mark))

    def receive_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return taken

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the server closed after {bytes(self._buffer[-200:])!r}")
        self._buffer += data

    def response(self, *, head_only: bool = False) -> Response:
        """Read one response, framed by its length, its chunks, or the end of the connection."""
        status_line, *lines = self.receive_until(b"\r\n\r\n").decode("latin-1").split("\r\n")[:-2]
        headers = [(line.partition(":")[0], line.partition(":")[2].strip()) for line in lines]
        response = Response(int(status_line.split(" ")[1]), headers, b"")
        if head_only or response.status in (204, 304) or response.status < 200:
            return response
        if response.header("Transfer-Encoding") == "chunked":
            while size := int(self.receive_until(b"\r\n"), 16):
                response.body += self.receive_exactly(size)
                assert self.receive_exactly(2) == b"\r\n"
            assert self.receive_exactly(2) == b"\r\n"
        elif (length := response.header("Content-Length")) is not None:
            response.body = self.receive_exactly(int(length))
        else:
            response.body = self.receive_all()
        return response

    def get(self, target: str, *extra: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> Response:
        """Make one request and read its response."""
        lines = [f"{method} {target} HTTP/{version}", "Host: test", *extra]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return self.response(head_only=method == "HEAD")
