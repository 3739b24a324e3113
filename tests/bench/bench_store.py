"""What a store of rate limits that several share costs a request, and what it counts, against its bars.

    python -m tests.bench.bench_store

Two hardserve, one Redis or Valkey with config/valkey.conf, everything on this machine, which must be quiet: the time
limit of the store is the default, 50 ms. Ends with 1 if a bar was not met.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.boxes import Box, Redis

TOML = """
[server]
bind = "127.0.0.1:PORT"
[limits]
client_connection_rate = 0
connection_requests = 1000000000
[rate_limiting]
default = "off"
storage = "STORE"
[ban]
after = 0
[log]
access = "off"
[[rate_limit]]
path = "/open"
limit = "1000000/day"
[[rate_limit]]
path = "/compute"
limit = "1000000/day"
[[rate_limit]]
path = "/limited"
limit = "500/day"
strategy = "fixed-window"
[[rate_limit]]
path = "/windows"
limit = "WINDOW/2 seconds"
strategy = "fixed-window"
"""

ROUNDS = 5
PAUSED_S = 3.0
COMPUTE_S = 5.0
DELAY_S = 0.060
# Of the two together; in a window of two seconds so many are let in.
OFFERED_PER_S = 1000
WINDOW_S = 2
WINDOW = 500
WINDOWS = 10
CLIENTS = 8  # threads that offer requests, half of them to each


@contextlib.contextmanager
def boxes() -> Iterator[tuple[Redis, Sequence[Box]]]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(Redis(directory / "redis"))
        redis.start()
        toml = TOML.replace("STORE", redis.url).replace("WINDOW", str(WINDOW))
        both = [stack.enter_context(Box(directory / name, toml)) for name in "ab"]
        for box in both:
            box.launch()
        for box in both:
            box.await_serving()
        yield redis, both


class Asker:
    """A client of as little work as can be, so that what it measures is the server."""

    def __init__(self, port: int, path: str, source: str = "127.0.0.2") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10.0, source_address=(source, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        self.asked = 0

    def ask(self) -> int:
        """Return the status."""
        self.asked += 1
        self._socket.sendall(self._request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if b"content-length" in fields:
            while len(body) < int(fields[b"content-length"]):
                body += self._more()
        else:
            while not body.endswith(b"0\r\n\r\n"):
                body += self._more()
        return int(head[9:12])

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise EOFError("the server closed")
        return data

    def close(self) -> None:
        self._socket.close()


def in_threads(targets: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def paused(redis: Redis, both: Sequence[Box], number: int) -> tuple[list[float], list[int]]:
    """Pause the store under load; return how long each request took, and how many each box has let in."""
    took: list[float] = []
    admitted = [0] * len(both)
    ended = time.monotonic() + PAUSED_S + 0.5

    def steady(box: Box, source: str) -> None:
        asker = Asker(box.port, "/open", source)
        while time.monotonic() < ended:
            begun = time.monotonic()
            assert asker.ask() == 200
            took.append(time.monotonic() - begun)
            time.sleep(0.005)
        asker.close()

    def limited(index: int) -> None:
        asker = Asker(both[index].port, "/limited", f"127.0.1.{number}")
        while time.monotonic() < ended:
            begun = time.monotonic()
            admitted[index] += asker.ask() == 200
            took.append(time.monotonic() - begun)
            time.sleep(0.002)
        asker.close()

    def pause() -> None:
        time.sleep(0.5)
        redis.signal(signal.SIGSTOP)

    in_threads(
        [
            pause,
            *(partial(steady, box, f"127.0.2.{last}") for box in both for last in (1, 2)),
            *(partial(limited, index) for index in range(len(both))),
        ]
    )
    redis.signal(signal.SIGCONT)
    for box in both:
        box.await_told("gone", "back")
    return took, admitted


def offered(both: Sequence[Box]) -> tuple[int, int, float]:
    """Offer requests at a steady rate; return how many were offered and let in, and the seconds from the first on."""
    askers = [Asker(both[number % len(both)].port, "/windows", "127.0.0.9") for number in range(CLIENTS)]
    admitted = [0] * CLIENTS
    # A window begins with its first request, and the next with the first after its end.
    total_s = WINDOW_S * WINDOWS
    begun = time.monotonic() + 0.1

    def offer(number: int) -> None:
        interval_s = CLIENTS / OFFERED_PER_S
        at = begun + number / OFFERED_PER_S
        while at < begun + total_s:
            time.sleep(max(0.0, at - time.monotonic()))
            admitted[number] += askers[number].ask() == 200
            at += interval_s

    in_threads([partial(offer, number) for number in range(CLIENTS)])
    took_s = time.monotonic() - begun
    for asker in askers:
        asker.close()
    return sum(asker.asked for asker in askers), sum(admitted), took_s


def computing(both: Sequence[Box]) -> int:
    """Have the apps compute; return how often a store that is there was taken for one that is gone."""
    ended = time.monotonic() + COMPUTE_S

    def ask(box: Box, path: str, source: str, pause_s: float) -> None:
        asker = Asker(box.port, path, source)
        while time.monotonic() < ended:
            assert asker.ask() == 200
            time.sleep(pause_s)
        asker.close()

    in_threads(
        [
            *(partial(ask, box, "/compute", f"127.0.3.{last}", 0.0) for box in both for last in (1, 2)),
            *(partial(ask, box, "/open", "127.0.3.9", 0.005) for box in both),
        ]
    )
    return sum(box.about_the_store.count("gone") for box in both)


def verdict(met: bool, text: str) -> bool:
    print(f"{'PASS' if met else 'FAIL'}  {text}")
    return met


def main() -> int:
    met = []
    with boxes() as (redis, both):
        count, admitted, took_s = offered(both)
        expected = WINDOW * WINDOWS
        print(f"offered {count} in {took_s:.1f} s, {count / took_s:.0f} a second")
        for line in [line for box in both for line in box.lines("limits by itself")]:
            print(f"  disturbed, for the store had to answer within 50 ms: {line}")
        met.append(
            verdict(
                abs(admitted - expected) <= expected / 100 and count / took_s >= OFFERED_PER_S * 0.95,
                f"two processes, one Redis: {admitted} admitted in {WINDOWS} windows, within 1% of {expected}",
            )
        )
    with boxes() as (_, both):
        gone = computing(both)
        met.append(verdict(gone == 0, f"two requests that compute in each: store taken for gone {gone} times"))
    slowest, most = 0.0, 0
    for number in range(1, ROUNDS + 1):
        with boxes() as (redis, both):
            took, counts = paused(redis, both, number)
            took.sort()
            slowest, most = max(slowest, took[-1]), max(most, *counts)
            print(
                f"round {number}: {len(took)} requests, median {took[len(took) // 2] * 1000:.1f} ms, "
                f"slowest {took[-1] * 1000:.1f} ms, {sum(each > 0.04 for each in took)} waited; admitted {counts}"
            )
    met.append(verdict(slowest <= DELAY_S, f"Redis paused: slowest {slowest * 1000:.1f} ms, at most 60 ms"))
    met.append(verdict(most <= 500, f"Redis paused: {most} admitted by one, at most its own limit of 500"))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
