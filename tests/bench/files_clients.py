"""Who downloads: curl, one file after the other on one connection, and many at a rate in a process of their own.

`python -m tests.bench.files_clients PORT COUNT RATE PATH` opens COUNT connections from 250 addresses, asks on each for
PATH, in which `{}` stands for the number of the connection, and reads RATE bytes of it a second, in one piece; what
ends is asked for again. It says `ready` when each has had its head, and when its standard input ends, what it has
read. Must not know which server it is.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .process import helper

ADDRESSES = 250
RECEIVE_BUFFER_BYTES = 64 * 1024
OPEN_LIMIT_S = 60
HOLD_LIMIT_S = 120

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)\r\n")


# --- one fast download after the other ---


@dataclass(frozen=True, slots=True)
class Downloaded:
    bytes: int
    took_s: float


def download(url: str, times: int, size: int) -> Downloaded:
    """Have curl load `url` on one connection. Raises RuntimeError unless each answer is a 200 of `size` bytes."""
    wanted = "%{http_code} %{size_download} %{num_connects} %{time_total}\\n"
    command = ["curl", "-sS", "--max-time", "60", "-o", "/dev/null", "-w", wanted, f"{url}?[1-{times}]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, start_new_session=True, check=False)
    rows = [line.split() for line in done.stdout.splitlines()]
    if done.returncode or len(rows) != times or any(row[:2] != ["200", str(size)] for row in rows):
        raise RuntimeError(f"curl: {done.returncode} {done.stderr.strip()} {rows[:1]}")
    if (connections := sum(int(row[2]) for row in rows)) != 1:
        raise RuntimeError(f"curl needed {connections} connections for {times} downloads")
    return Downloaded(times * size, sum(float(row[3]) for row in rows))


# --- many at a rate ---


@dataclass(frozen=True, slots=True)
class Fates:
    """What became of them. `slowest` is the fewest bytes that one of them got; `cpu_share` what they took of a core."""

    open: int
    bytes: int
    slowest: int
    took_s: float
    cpu_share: float


class Downloaders:
    """The client process as the benchmark sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def close(self) -> Fates:
        said, _ = self._process.communicate("", timeout=30)
        return Fates(**json.loads(said))


@contextlib.contextmanager
def downloaders(port: int, count: int, rate: int, path: str, repository: Path) -> Iterator[Downloaders]:
    """Keep so many clients loading while the block runs. Raises RuntimeError when they do not all get a 200."""
    arguments = (str(port), str(count), str(rate), path)
    with helper(__name__, *arguments, repository=repository, what="downloads") as process:
        yield Downloaders(process)


class _Download:
    """One connection, and how much of its body is still to come."""

    def __init__(self, port: int, number: int, path: str) -> None:
        self.open = True
        self.got = 0
        self._left = 0
        self._request = f"GET {path.format(number)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        self.socket = socket.socket()
        # A slow client's kernel must not take in megabytes on its own.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.socket.settimeout(OPEN_LIMIT_S)
        self.socket.bind((f"127.0.2.{number % ADDRESSES + 1}", 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(self._request)

    def read_head(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.socket.recv(4096)
            if not received:
                raise OSError(f"closed after {head[:80]!r}")
            head += received
        head, _, body = head.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if length is None or not head.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"answered with {head[:80]!r}")
        self._left = int(length[1]) - len(body)
        self.got += len(body)

    def read(self, buffer: memoryview) -> None:
        """Take what is there, as much as the buffer holds, and wait for nothing but a second head."""
        self.socket.setblocking(False)
        room = len(buffer)
        try:
            while room and (received := self.socket.recv_into(buffer, min(room, self._left))):
                room -= received
                self.got += received
                self._left -= received
                if not self._left:
                    self.socket.settimeout(OPEN_LIMIT_S)
                    self.socket.sendall(self._request)
                    self.read_head()
                    return
            self.open = room == 0
        except BlockingIOError:
            pass
        except OSError:
            self.open = False


def main(port: int, count: int, rate: int, path: str) -> None:
    signal.alarm(OPEN_LIMIT_S)  # ends this process, so that nothing waits for it for ever
    try:
        downloads = [_Download(port, number, path) for number in range(count)]
        for one in downloads:
            one.read_head()
    except OSError as error:
        print(f"{error!r}", flush=True)
        return
    signal.alarm(HOLD_LIMIT_S)
    began, used_s = time.monotonic(), time.process_time()
    print("ready", flush=True)
    # Fast ones take their share in more pieces, as it comes.
    pieces = max(1, rate // (1 << 20))
    buffer = memoryview(bytearray(rate // pieces))
    every_s = 1 / pieces
    due = [(began + every_s * number / count, number) for number in range(count)]
    while not select.select([sys.stdin], [], [], max(0.0, due[0][0] - time.monotonic()))[0]:
        at, number = due[0]
        if at <= time.monotonic():
            if downloads[number].open:
                downloads[number].read(buffer)
            heapq.heapreplace(due, (at + every_s, number))
    took_s = time.monotonic() - began
    print(
        json.dumps(
            {
                "open": sum(one.open for one in downloads),
                "bytes": sum(one.got for one in downloads),
                "slowest": min(one.got for one in downloads),
                "took_s": took_s,
                "cpu_share": (time.process_time() - used_s) / took_s,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
