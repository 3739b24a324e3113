"""A trusted proxy gone mad: each of its requests is forwarded for another address, and it does not wait for answers.

`python -m tests.bench.limits_forged PORT COUNT` sends COUNT requests from SOURCE, a few at once on each of a few kept
connections, and says as one line of JSON how often each status was the answer. Half of the addresses are IPv4, half are
/64 networks of one IPv6 /32. What a connection did not answer before the server ended it is sent again on the next.

Must not know what the server's limits are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

SOURCE = "127.0.0.66"
CONNECTIONS = 16
AT_ONCE = 8
TIME_LIMIT_S = 180.0

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")


def start_forging(port: int, count: int, repository: Path) -> subprocess.Popen[str]:
    """Start the process. Its output is what `main` prints; kill it if it is not waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.limits_forged", str(port), str(count)],
        cwd=repository,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def forged_address(number: int) -> str:
    """One of 2**31 distinct addresses that belong to nobody here, in an order that no prefix follows."""
    mixed = number * 0x9E3779B1 & 0xFFFFFFFF
    if number % 2:
        return f"2001:db8:{mixed >> 16:x}:{mixed & 0xFFFF:x}::1"
    return f"{11 + (mixed >> 24) % 89}.{mixed >> 16 & 255}.{mixed >> 8 & 255}.{mixed & 255}"


class _Connection:
    __slots__ = ("answer", "pending", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(SOURCE, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        self.pending: list[int] = []


class Forger:
    """Sends what is left to be sent, `AT_ONCE` requests on each connection, and counts `statuses`."""

    def __init__(self, port: int, count: int) -> None:
        self.statuses: Counter[str] = Counter()
        self._port = port
        self._left = list(range(count, 0, -1))
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        limit = time.monotonic() + TIME_LIMIT_S
        for _ in range(CONNECTIONS):
            self._connect()
        while self._selector.get_map() and time.monotonic() < limit:
            for key, _events in self._selector.select(1.0):
                self._read(key.data)
        for key in list(self._selector.get_map().values()):
            self._end(key.data)
        self.statuses["none"] += len(self._left)

    def _connect(self) -> None:
        if self._left:
            connection = _Connection(self._port)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._send(connection)

    def _send(self, connection: _Connection) -> None:
        connection.pending = [self._left.pop() for _ in range(min(AT_ONCE, len(self._left)))]
        connection.pending.reverse()  # the next answer is for the last of them
        requests = "".join(
            f"GET / HTTP/1.1\r\nHost: forged\r\nX-Forwarded-For: {forged_address(number)}\r\n\r\n"
            for number in reversed(connection.pending)
        )
        with contextlib.suppress(OSError):  # that it has ended is seen by reading
            connection.socket.sendall(requests.encode())

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except OSError:
            data = b""
        connection.answer += data
        self._count_answers(connection)
        if not data:
            self._end(connection)
            self._connect()
        elif not connection.pending:
            if self._left:
                self._send(connection)
            else:
                self._end(connection)

    def _count_answers(self, connection: _Connection) -> None:
        while connection.pending:
            head, mark, rest = connection.answer.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body_bytes = int(length[1]) if length else 0
            if not mark or len(rest) < body_bytes:
                return
            self.statuses[head[9:12].decode("latin-1")] += 1
            connection.pending.pop()
            connection.answer = rest[body_bytes:]

    def _end(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._left += connection.pending
        connection.pending = []


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    options = parser.parse_args(arguments)
    forger = Forger(options.port, options.count)
    forger.run()
    print(json.dumps(forger.statuses), flush=True)


if __name__ == "__main__":
    main()
