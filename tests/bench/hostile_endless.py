"""Requests that never end: where each is cut, and what a byte of it costs the server.

Two ways to send. In steps, each of which waits for an answer, so that what was sent is what the server has read: that
shows where the cap is. And as fast as it goes, from several connections one after the other, while the server's
processor time is read: that shows whether twice as much costs twice as much.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KIB = 1024
MIB = 1024 * KIB
ADDRESS_FORMAT = "127.0.2.{}"

# Sent at once after all but one of them up to the cap.
STEP_BYTES = KIB
_STEPS = 8
_EARLY_WAIT_MS = 30
_STEP_WAIT_MS = 500
_LIMIT_S = 20.0
_GET = b"GET / HTTP/1.1\r\nHost: hostile\r\n"
_CHUNKED = b"POST /upload HTTP/1.1\r\nHost: hostile\r\nTransfer-Encoding: chunked\r\n\r\n"
_sources = itertools.cycle(range(1, 251))


@dataclass(frozen=True, slots=True)
class Endless:
    """Something that never ends: what comes before it, and what it repeats.

    `cap_bytes` is how much of what it repeats is taken by default settings.
    """

    opening: bytes
    repeated: bytes
    cap_bytes: int


_FIELD = b"X-Endless: " + b"a" * 51 + b"\r\n"
_LONG_FIELD = b"X-Endless: " + b"a" * 1011 + b"\r\n"
_EXTENDED_CHUNK = b"1;" + b"a" * 200 + b"\r\nb\r\n"
ENDLESS = {
    "empty lines": Endless(b"", b"\r\n", 64),
    "request line": Endless(b"GET /", b"a", 8 * KIB),
    "header line": Endless(_GET + b"X-Endless: ", b"a", 16 * KIB),
    "header": Endless(_GET, _LONG_FIELD, 64 * KIB),
    "number of fields": Endless(_GET, _FIELD, 100 * len(_FIELD)),
    "chunk size": Endless(_CHUNKED, b"0", 256),
    "chunk extension": Endless(_CHUNKED + b"1;", b"a", 256),
    "extension on each chunk": Endless(_CHUNKED, _EXTENDED_CHUNK, (16 * KIB // 200 + 1) * len(_EXTENDED_CHUNK)),
    "trailer line": Endless(_CHUNKED + b"0\r\nX-Endless: ", b"a", 8 * KIB),
    "trailer": Endless(_CHUNKED + b"0\r\n", _FIELD, 8 * KIB + len(_FIELD)),
}


@dataclass(frozen=True, slots=True)
class Growing:
    """Something to measure at several sizes, with the flags that let it grow so far.

    `piece_bytes` is how much is sent at once; small pieces are many reads, where joining them anew each time shows.
    """

    opening: bytes
    repeated: bytes
    sizes: tuple[int, ...]
    piece_bytes: int = 64 * KIB


_LONGER_FIELD = b"X-Endless: " + b"a" * 8179 + b"\r\n"
GROWING_FLAGS = (
    *("--limits-header=16MiB", "--limits-header-line=1MiB", "--limits-request-line=1MiB"),
    *("--limits-header-count=10000", "--limits-chunk-extensions=16MiB", "--limits-trailer=1MiB"),
    # The least memory, so that every size is kept in the same way: in a file.
    *("--limits-body=16MiB", "--limits-body-memory=0"),
)
_SMALL = 700
GROWING = {
    "header": Growing(_GET, _LONGER_FIELD, (4 * MIB, 8 * MIB, 15 * MIB)),
    "header in small pieces": Growing(_GET, _LONGER_FIELD, (MIB, 2 * MIB, 4 * MIB), _SMALL),
    "request line in small pieces": Growing(b"GET /", b"a", (256 * KIB, 512 * KIB, MIB - KIB), _SMALL),
    "extension on each chunk": Growing(_CHUNKED, _EXTENDED_CHUNK, (2 * MIB, 4 * MIB, 8 * MIB)),
    "chunks of one byte": Growing(_CHUNKED, b"1\r\nb\r\n", (2 * MIB, 4 * MIB, 8 * MIB)),
    "trailer in small pieces": Growing(_CHUNKED + b"0\r\n", _FIELD, (256 * KIB, 512 * KIB, MIB - KIB), _SMALL),
}


@dataclass(frozen=True, slots=True)
class CutAt:
    """Where the server has cut an endless thing: bytes of it that were sent until the answer was there."""

    sent_bytes: int
    answer: str


def find_cap(port: int, endless: Endless, speak: Callable[[socket.socket], Any] = lambda plain: plain) -> CutAt:
    """Send almost up to the cap at once, then in steps until the server answers or ends the connection.

    Gives up 8 KiB past the cap. `speak` may put something like TLS before a socket, of which nothing arrives by itself.
    """
    data = _stretch(endless.repeated, endless.cap_bytes + _STEPS * STEP_BYTES)
    sent = max(0, endless.cap_bytes - STEP_BYTES)
    with contextlib.closing(speak(_connect(port))) as connection:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        connection.sendall(endless.opening + data[:sent])
        wait_ms = _EARLY_WAIT_MS  # nothing is expected yet
        with contextlib.suppress(OSError):
            while not poll.poll(wait_ms) and sent < len(data):
                connection.sendall(data[sent : sent + STEP_BYTES])
                sent += STEP_BYTES
                wait_ms = _STEP_WAIT_MS
        return CutAt(sent, _answer(connection))


def rush(port: int, endless: Endless) -> CutAt:
    """Send as fast as it goes until the server ends the connection; what it still discards counts too."""
    block = _stretch(endless.repeated, MIB // len(endless.repeated) * len(endless.repeated))
    answer = b""
    sent = 0
    limit = time.monotonic() + _LIMIT_S
    with _connect(port) as connection:
        connection.sendall(endless.opening)
        connection.setblocking(False)
        poll = select.poll()
        poll.register(connection, select.POLLIN | select.POLLOUT)
        with contextlib.suppress(OSError):
            while time.monotonic() < limit:
                for _, events in poll.poll(1000):
                    if events & select.POLLOUT:
                        sent += connection.send(block)
                    if events & (select.POLLIN | select.POLLHUP):
                        data = connection.recv(65536)
                        answer += data
                        if not data:
                            poll.modify(connection, select.POLLOUT)
    return CutAt(sent, _status(answer))


def cost_per_byte_ns(
    port: int, growing: Growing, size: int, cpu_s: Callable[[], float], *, at_least_s: float = 0.15
) -> float:
    """Nanoseconds of the server's processor time for a byte of `growing` when it is `size` long.

    `cpu_s` returns the processor time that the server has used so far. Sends again and again until the server has
    worked for `at_least_s`.
    """
    data = growing.opening + _stretch(growing.repeated, size)
    pieces = [data[at : at + growing.piece_bytes] for at in range(0, len(data), growing.piece_bytes)]
    began, used, sent, limit = cpu_s(), 0.0, 0, time.monotonic() + _LIMIT_S
    while used < at_least_s and time.monotonic() < limit:
        with _connect(port) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                connection.sendall(piece)
            # The last of it is read before the end is seen; then the server ends the connection.
            connection.shutdown(socket.SHUT_WR)
            _answer(connection)
        sent += len(data)
        used = cpu_s() - began
    return used / sent * 1e9


def _connect(port: int) -> socket.socket:
    source = ADDRESS_FORMAT.format(next(_sources))
    return socket.create_connection(("127.0.0.1", port), timeout=_LIMIT_S, source_address=(source, 0))


def _stretch(repeated: bytes, size: int) -> bytes:
    return (repeated * (size // len(repeated) + 1))[:size]


def _answer(connection: socket.socket) -> str:
    answer = b""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            answer += data
    return _status(answer)


def _status(answer: bytes) -> str:
    return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "cut"
