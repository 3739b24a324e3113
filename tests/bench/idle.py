"""The client that holds idle connections: a process of its own, so that its memory is not the server's.

`python -m tests.bench.idle PORT COUNT` opens COUNT connections from 250 addresses of 127.0.1.0/24, so few
from each that a server which limits them per client takes them all, makes one request on each and reads
its answer. It says `ready`, keeps them all open until its standard input ends, and then says how many the
server has left open.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .process import helper

ADDRESSES = 250
OPEN_LIMIT_S = 90
HOLD_LIMIT_S = 300

_BATCH = 50
_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_END = b"Hello, World!"


class IdleClients:
    """The client process as the benchmark sees it."""

    def __init__(self, process: subprocess.Popen[str], count: int) -> None:
        self._process = process
        self.count = count

    def close(self) -> int:
        """Close them all; returns how many the server had kept open until now."""
        open_until_now, _ = self._process.communicate("", timeout=30)
        return int(open_until_now)


@contextlib.contextmanager
def idle_clients(port: int, count: int, repository: Path) -> Iterator[IdleClients]:
    """Hold `count` idle connections to `port`. Raises RuntimeError when they cannot all be opened."""
    name = f"{__package__}.idle"
    with helper(name, str(port), str(count), repository=repository, what="idle connections") as process:
        yield IdleClients(process, count)


def main(port: int, count: int) -> None:
    connections: list[socket.socket] = []
    signal.alarm(OPEN_LIMIT_S)  # ends this process, so that nothing waits for it for ever
    try:
        for start in range(0, count, _BATCH):
            batch = [_connect(port, start + number) for number in range(min(_BATCH, count - start))]
            for connection in batch:
                connection.sendall(_REQUEST)
            for connection in batch:
                _read_answer(connection)
            connections += batch
    except OSError as error:
        print(f"after {len(connections)} of {count}: {error!r}", flush=True)
        return
    signal.alarm(HOLD_LIMIT_S)
    print("ready", flush=True)
    sys.stdin.read()
    print(sum(map(_is_open, connections)))


def _connect(port: int, number: int) -> socket.socket:
    source = f"127.0.1.{number % ADDRESSES + 1}"
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))


def _read_answer(connection: socket.socket) -> None:
    answer = b""
    while not answer.endswith(_END):
        received = connection.recv(65536)
        if not received:
            raise OSError(f"closed after {answer[:80]!r}")
        answer += received


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
