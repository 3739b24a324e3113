"""The client that means no harm: a steady rate of small requests, each with a timestamp and an outcome.

It sends when a request is due, whether or not the one before has been answered, so a server that stops for a moment is
seen by all requests of that moment and not by one. A thread of its own beside one that only waits; far from saturation.
Must not know which server it is, nor whether anybody attacks it.
"""

from __future__ import annotations

import errno
import math
import random
import re
import select
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

ADDRESS = "127.0.0.99"
RATE = 100
# Of so many requests one comes on a connection of its own, as from somebody who has just arrived.
FRESH_EVERY = 8
PATIENCE_S = 5.0

_POOL = 16
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)\r\n")
_CLOSE = re.compile(rb"(?i)\r\nconnection:[ \t]*close\r\n")
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. `problem` is "" when it was answered with 200."""

    issued: float
    took_s: float
    fresh: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Felt:
    """What the client saw over some time. Percentiles are of the requests that were answered, infinite if none was."""

    requests: int
    problems: dict[str, int]
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def unanswered(self) -> int:
        return sum(self.problems.values())

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Felt:
        took_ms = sorted(outcome.took_s * 1000 for outcome in outcomes if not outcome.problem)
        problems = Counter(outcome.problem for outcome in outcomes if outcome.problem)
        return cls(
            len(outcomes),
            dict(problems),
            percentile(took_ms, 0.5),
            percentile(took_ms, 0.99),
            took_ms[-1] if took_ms else math.inf,
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all are no greater than (nearest rank); infinite of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.inf


class _Wanted:
    """A request that is due or on its way."""

    __slots__ = ("connection", "fresh", "issued", "outcome", "retried")

    def __init__(self, issued: float, *, fresh: bool) -> None:
        self.issued = issued
        self.fresh = fresh
        self.retried = False
        self.connection: _Connection | None = None
        self.outcome: Outcome | None = None


class _Connection:
    __slots__ = ("answer", "connected", "ready", "reused", "socket", "wanted")

    def __init__(self, connecting: socket.socket, wanted: _Wanted) -> None:
        self.socket = connecting
        self.wanted: _Wanted | None = wanted
        self.connected = False
        self.ready = False  # for a request: it has shaken hands, if it has to
        self.reused = False
        self.answer = b""


class NormalClient:
    """Asks 127.0.0.1:`port` for `path` from an address of its own, `rate` times a second, while a `with` block runs.

    Over TLS if there is a context for it; what is answered must fit into one record then.
    """

    def __init__(self, port: int, *, rate: float = RATE, path: str = "/", tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        head = f"GET {path} HTTP/1.1\r\nHost: normal\r\n".encode()
        self._request, self._last_request = head + b"\r\n", head + b"Connection: close\r\n\r\n"
        self._interval_s = 1 / rate
        self._random = random.Random(7)
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, _Connection] = {}
        self._free: list[_Connection] = []
        self._waiting: deque[_Wanted] = deque()
        self._wanted: list[_Wanted] = []
        self._oldest_open = 0
        self._kept = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="normal client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join(2 * PATIENCE_S)

    def felt(self, since: float, until: float) -> Felt:
        """What became of the requests that were due between two monotonic times; waits until that is known of each."""
        limit = until + 2 * PATIENCE_S
        while True:
            asked = [wanted for wanted in list(self._wanted) if since <= wanted.issued < until]
            outcomes = [wanted.outcome for wanted in asked if wanted.outcome]
            if len(outcomes) == len(asked) or time.monotonic() > limit:
                break
            time.sleep(0.05)
        return Felt.of(outcomes + [Outcome(0.0, math.inf, False, "unknown")] * (len(asked) - len(outcomes)))

    def _run(self) -> None:
        due = now = time.monotonic()
        while not self._stopping:
            while now >= due:
                self._issue(now)
                due += self._interval_s * self._random.uniform(0.5, 1.5)
            self._give_up_on_late(now)
            for descriptor, events in self._epoll.poll(max(0.0, due - now)):
                connection = self._by_descriptor.get(descriptor)
                if connection is not None:
                    self._on_event(connection, events, time.monotonic())
            now = time.monotonic()
            self._take_waiting(now)
        for connection in list(self._by_descriptor.values()):
            self._drop(connection)
        self._epoll.close()

    def _issue(self, now: float) -> None:
        wanted = _Wanted(now, fresh=len(self._wanted) % FRESH_EVERY == 0)
        self._wanted.append(wanted)
        self._start(wanted, now)

    def _start(self, wanted: _Wanted, now: float) -> None:
        if wanted.fresh:
            self._connect(wanted, now)
        elif self._free:
            connection = self._free.pop()
            connection.wanted, wanted.connection, connection.reused = wanted, connection, True
            self._send(connection, now)
        elif self._kept < _POOL:
            self._connect(wanted, now)
        else:
            self._waiting.append(wanted)

    def _connect(self, wanted: _Wanted, now: float) -> None:
        connecting = socket.socket()
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connecting.bind((ADDRESS, 0))
        connection = wanted.connection = _Connection(connecting, wanted)
        self._kept += not wanted.fresh
        self._by_descriptor[connecting.fileno()] = connection
        problem = connecting.connect_ex(("127.0.0.1", self._port))
        self._epoll.register(connecting.fileno(), select.EPOLLOUT)
        if problem not in (0, errno.EINPROGRESS):
            self._fail(connection, "cannot connect", now)

    def _send(self, connection: _Connection, now: float) -> None:
        assert connection.wanted is not None
        connection.answer = b""
        try:
            connection.socket.send(self._last_request if connection.wanted.fresh else self._request)
        except OSError:
            self._fail(connection, "reset", now)

    def _on_event(self, connection: _Connection, events: int, now: float) -> None:
        if not connection.connected:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._fail(connection, "cannot connect", now)
                return
            connection.connected = True
            if self._tls is not None:
                connection.socket = self._tls.wrap_socket(connection.socket, do_handshake_on_connect=False)
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        if not connection.ready:
            self._make_ready(connection, now)
            return
        try:
            data = connection.socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            self._fail(connection, "reset", now)
            return
        connection.answer += data
        if connection.wanted is None:
            self._drop(connection)  # an idle connection that the server ends; nothing was asked on it
        elif self._is_whole(connection, ended=not data):
            self._finish(connection, now)
        elif not data:
            self._fail(connection, "cut", now)

    def _make_ready(self, connection: _Connection, now: float) -> None:
        try:
            if isinstance(connection.socket, ssl.SSLSocket):
                connection.socket.do_handshake()
        except ssl.SSLWantReadError:
            return
        except OSError:
            self._fail(connection, "no handshake", now)
            return
        connection.ready = True
        self._send(connection, now)

    def _is_whole(self, connection: _Connection, *, ended: bool) -> bool:
        head, mark, body = connection.answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        return bool(mark) and (ended if length is None else len(body) >= int(length[1]))

    def _finish(self, connection: _Connection, now: float) -> None:
        wanted = connection.wanted
        assert wanted is not None
        status = connection.answer[9:12]
        self._conclude(wanted, now, "" if status == b"200" else f"status {status.decode('latin-1')}")
        if wanted.fresh or _CLOSE.search(connection.answer.partition(b"\r\n\r\n")[0] + b"\r\n"):
            self._drop(connection)
        else:
            connection.wanted = None
            self._free.append(connection)

    def _take_waiting(self, now: float) -> None:
        while self._waiting and (self._free or self._kept < _POOL):
            wanted = self._waiting.popleft()
            if wanted.outcome is None:
                self._start(wanted, now)

    def _fail(self, connection: _Connection, problem: str, now: float) -> None:
        wanted = connection.wanted
        stale = connection.reused and not connection.answer
        self._drop(connection)
        if wanted is not None:
            if stale and not wanted.retried:
                # RFC 9110 9.2.2: a kept connection may end just as it is used again, and a client tries once more.
                wanted.retried = True
                self._connect(wanted, now)
            else:
                self._conclude(wanted, now, problem)

    def _drop(self, connection: _Connection) -> None:
        del self._by_descriptor[connection.socket.fileno()]
        connection.socket.close()
        if connection in self._free:
            self._free.remove(connection)
        wanted = connection.wanted
        self._kept -= not (wanted is not None and wanted.fresh)

    def _conclude(self, wanted: _Wanted, now: float, problem: str) -> None:
        wanted.connection = None
        wanted.outcome = Outcome(wanted.issued, now - wanted.issued, wanted.fresh, problem)

    def _give_up_on_late(self, now: float) -> None:
        while self._oldest_open < len(self._wanted):
            wanted = self._wanted[self._oldest_open]
            if wanted.outcome is None:
                if now < wanted.issued + PATIENCE_S:
                    return
                if wanted.connection is not None:
                    connected = wanted.connection.connected
                    self._drop(wanted.connection)
                    self._conclude(wanted, now, "no answer" if connected else "no connection")
                else:
                    self._conclude(wanted, now, "no connection")  # all of its own wait already
            self._oldest_open += 1
