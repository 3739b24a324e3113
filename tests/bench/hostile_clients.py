"""The clients that mean harm: a process of its own that holds thousands of them with one epoll.

`python -m tests.bench.hostile_clients PORT --addresses 500 head=1000 reader=500` opens the connections within
`--ramp` seconds, keeps them at strength until its standard input ends, and then says, as one line of JSON, what became
of them. It says `ready` when each of them has been tried once. A connection that the server ends comes again soon.
With `--tls` they do the same over TLS, and are no less harmless in their handshakes than anybody else.

Must not know which server it is.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import heapq
import json
import os
import random
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from .process import helper

OPEN_LIMIT_S = 30
HOLD_LIMIT_S = 300
ONE_ADDRESS = "127.0.0.66"

_BIND_ADDRESS_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT of linux/in.h: the port is chosen by connect, for that pair only
_WATCHED = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_ACTIONS_PER_TURN = 256
_SAMPLE_S = 0.5
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")

_HEAD = b"GET / HTTP/1.1\r\nHost: hostile\r\n"
_UPLOAD = b"POST /upload HTTP/1.1\r\nHost: hostile\r\n"
_LENGTH = _UPLOAD + b"Content-Length: 16000000\r\n\r\n"
_CHUNKED = _UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n"
_WHOLE = _HEAD + b"\r\n"
_MALFORMED = (
    b"GET / HTTP/1.1\r\nHost : hostile\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\nHost: hostile\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: hostile\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"NONSENSE\r\n\r\n",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of doing harm.

    A connection begins with one of `opening`, by turns (b"" says nothing), and then says the next of `drip` every
    `every_s` seconds for ever, or `pour` again and again as fast as it is taken. It reads all that comes, or only
    `sips` bytes every `every_s`. When the server has ended it, it comes again after `again_s`.
    """

    opening: tuple[bytes, ...]
    drip: tuple[bytes, ...] = ()
    pour: bytes = b""
    every_s: float = 3.0
    sips: int = 0
    again_s: float = 1.0


KINDS: Mapping[str, Kind] = {
    "head": Kind((_HEAD,), (b"X", b"-Slow: 1\r\n", b"X-Slow: 2\r\n")),
    "body": Kind((_LENGTH, _CHUNKED), (b"1\r\na\r\n",)),
    # Coming again costs a reader a request, as it does the server: it takes a moment longer.
    "reader": Kind(
        (b"GET /big HTTP/1.1\r\nHost: hostile\r\n\r\n", b"GET /block HTTP/1.1\r\nHost: hostile\r\n\r\n"),
        every_s=1.0,
        sips=16,
        again_s=5.0,
    ),
    "idle": Kind((b"", _WHOLE)),
    "half-head": Kind((_HEAD,)),
    "half-body": Kind((_LENGTH, _CHUNKED)),
    "pour-block": Kind((_LENGTH,), pour=b"a" * 65536, again_s=0.05),
    "pour-crumbs": Kind((_CHUNKED,), pour=b"1\r\na\r\n" * 10_000, again_s=0.05),
    "malformed": Kind(_MALFORMED, again_s=0.0),
    "malformed-pipeline": Kind((_WHOLE + _MALFORMED[0] * 50, _MALFORMED[1] * 500), again_s=0.0),
}


@dataclass(slots=True)
class Fate:
    """What became of the connections of one kind. `strength` is how many were open at a time, on average.

    `answers` counts connections by what the server said last before it ended them ("cut" is nothing), and
    `lived_s` is how long they lived, the middle one. `failed` counts attempts that did not connect.
    """

    wanted: int
    strength: float = 0.0
    connected: int = 0
    failed: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    lived_s: float | None = None


# --- the process as the benchmark sees it ---


class HostileClients:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def close(self) -> Mapping[str, Fate]:
        """End the attack; returns what became of each kind."""
        said, _ = self._process.communicate("", timeout=30)
        return {name: Fate(**fate) for name, fate in json.loads(said).items()}


@contextlib.contextmanager
def hostile_clients(
    port: int, counts: Mapping[str, int], repository: Path, *, addresses: int, ramp_s: float = 2.0, tls: bool = False
) -> Iterator[HostileClients]:
    """Attack `port` of 127.0.0.1 while the block runs; begins when each connection has been tried once.

    Raises RuntimeError when the process does not get so far.
    """
    arguments = [str(port), f"--addresses={addresses}", f"--ramp={ramp_s}"]
    arguments += ["--tls"] * tls
    arguments += [f"{name}={count}" for name, count in counts.items()]
    name = f"{__package__}.hostile_clients"
    with helper(name, *arguments, repository=repository, what="hostile clients") as process:
        yield HostileClients(process)


# --- inside the process ---


def source_address(number: int, addresses: int) -> str:
    """One of `addresses` distinct ones from 127.1.0.1 on; the one address if there is to be only one."""
    if addresses == 1:
        return ONE_ADDRESS
    high, low = divmod(number % addresses, 250)
    return f"127.{1 + high // 250}.{high % 250}.{low + 1}"


class Hostile:
    """One place in the attack, which has a connection most of the time."""

    __slots__ = ("begun", "kind", "life", "name", "opened", "poured", "said", "socket", "source", "step")

    def __init__(self, name: str, number: int, source: str) -> None:
        self.name = name
        self.kind = KINDS[name]
        self.source = source
        self.step = number  # so that the openings are spread from the start
        self.life = 0  # what was planned for an earlier life of it is void
        self.opened = 0.0
        self.poured = 0  # of what it pours, in this round of it
        self.begun = False
        self.said = b""
        self.socket: socket.socket | None = None


class Attack:
    """Holds all of them. `run` returns when standard input ends, or when time is up."""

    def __init__(
        self, port: int, counts: Mapping[str, int], addresses: int, ramp_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._port = port
        self._tls = tls
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Hostile] = {}
        self._due: list[tuple[float, int, Hostile, int]] = []
        self._planned = 0
        self._random = random.Random(3)
        self._lived: dict[str, list[float]] = {name: [] for name in counts}
        self.fates = {name: Fate(count) for name, count in counts.items()}
        places = [(name, number) for name, count in counts.items() for number in range(count)]
        self._random.shuffle(places)
        self._untried = len(places)
        now = time.monotonic()
        for index, (name, number) in enumerate(places):
            place = Hostile(name, number, source_address(index, addresses))
            self._plan(place, now + ramp_s * index / len(places))

    def run(self) -> None:
        began = now = time.monotonic()
        sampled_at, samples, ready = now, 0, False
        stdin = sys.stdin.fileno()
        self._epoll.register(stdin, select.EPOLLIN | select.EPOLLHUP)
        while now < began + HOLD_LIMIT_S:
            self._act(now)
            if not ready and (not self._untried or now > began + OPEN_LIMIT_S):
                ready = True
                print("ready", flush=True)
            if ready and now >= sampled_at + _SAMPLE_S:
                sampled_at, samples = now, samples + 1
                self._sample(samples)
            wait_s = min(_SAMPLE_S, self._due[0][0] - now) if self._due else _SAMPLE_S
            ended = False
            for descriptor, events in self._epoll.poll(max(0.0, wait_s)):
                if descriptor == stdin:
                    ended = True
                else:
                    self._on_event(self._by_descriptor[descriptor], events, time.monotonic())
            if ended:
                break
            now = time.monotonic()
        for name, lived in self._lived.items():
            self.fates[name].lived_s = median(lived) if lived else None

    def _sample(self, samples: int) -> None:
        open_now = Counter(place.name for place in self._by_descriptor.values() if place.begun)
        for name, fate in self.fates.items():
            fate.strength += (open_now[name] - fate.strength) / samples

    def _plan(self, place: Hostile, at: float) -> None:
        self._planned += 1  # breaks ties, because places have no order
        heapq.heappush(self._due, (at, self._planned, place, place.life))

    def _plan_step(self, place: Hostile, now: float) -> None:
        if place.kind.drip or place.kind.sips:
            self._plan(place, now + place.kind.every_s * self._random.uniform(0.7, 1.3))

    def _act(self, now: float) -> None:
        for _ in range(_ACTIONS_PER_TURN):
            if not self._due or self._due[0][0] > now:
                return
            _, _, place, life = heapq.heappop(self._due)
            if life != place.life:
                continue
            if place.socket is None:
                self._connect(place, now)
            else:
                self._harm(place, now)

    def _connect(self, place: Hostile, now: float) -> None:
        if not place.opened:
            self._untried -= 1
        place.opened, place.begun, place.said, place.poured = now, False, b"", 0
        place.socket = connection = socket.socket()
        connection.setblocking(False)
        if place.kind.sips:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        try:
            connection.bind((place.source, 0))
            problem = connection.connect_ex(("127.0.0.1", self._port))
        except OSError as error:
            problem = error.errno or errno.EIO
        self._by_descriptor[connection.fileno()] = place
        self._epoll.register(connection.fileno(), select.EPOLLOUT | _WATCHED)
        if problem not in (0, errno.EINPROGRESS):
            self._again(place, now)

    def _on_event(self, place: Hostile, events: int, now: float) -> None:
        if not place.begun and not events & (select.EPOLLHUP | select.EPOLLERR):
            if self._tls is None or self._has_shaken_hands(place, self._tls, now):
                self._begin(place, now)
            return
        if events & (select.EPOLLIN | _GONE) and (not place.kind.sips or events & _GONE):
            self._read(place, 65536)
        if events & _GONE:
            self._again(place, now)
        elif events & select.EPOLLOUT:
            self._pour(place)

    def _has_shaken_hands(self, place: Hostile, tls: ssl.SSLContext, now: float) -> bool:
        if not isinstance(place.socket, ssl.SSLSocket):
            assert place.socket is not None
            place.socket = tls.wrap_socket(place.socket, do_handshake_on_connect=False)
            self._epoll.modify(place.socket.fileno(), _WATCHED)
        try:
            place.socket.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except OSError:
            self._again(place, now)
            return False
        return True

    def _begin(self, place: Hostile, now: float) -> None:
        assert place.socket is not None
        place.begun = True
        self.fates[place.name].connected += 1
        # A slow reader is told of the end only, because to it the socket is always readable.
        watched = select.EPOLLRDHUP if place.kind.sips else _WATCHED
        self._epoll.modify(place.socket.fileno(), watched | (select.EPOLLOUT if place.kind.pour else 0))
        opening = place.kind.opening[place.step % len(place.kind.opening)]
        place.step += 1
        if opening:
            with contextlib.suppress(OSError):  # that it has ended is an event
                place.socket.send(opening)
        self._plan_step(place, now)

    def _harm(self, place: Hostile, now: float) -> None:
        if place.begun:
            assert place.socket is not None
            if place.kind.sips:
                self._read(place, place.kind.sips)
            else:
                piece = place.kind.drip[place.step % len(place.kind.drip)]
                place.step += 1
                with contextlib.suppress(OSError):
                    place.socket.send(piece)
        self._plan_step(place, now)

    def _pour(self, place: Hostile) -> None:
        assert place.socket is not None
        with contextlib.suppress(OSError):
            sent = place.socket.send(memoryview(place.kind.pour)[place.poured :])
            place.poured = (place.poured + sent) % len(place.kind.pour)

    def _read(self, place: Hostile, count: int) -> None:
        assert place.socket is not None
        with contextlib.suppress(OSError):
            while True:
                data = place.socket.recv(count)
                # A reader sips the status line too; of anybody else the last answer counts.
                place.said = (place.said + data)[:64] if place.kind.sips else data or place.said
                if not data or place.kind.sips or not isinstance(place.socket, ssl.SSLSocket):
                    break  # and of TLS the last record

    def _again(self, place: Hostile, now: float) -> None:
        """The server, or the kernel, has ended it."""
        assert place.socket is not None
        fate = self.fates[place.name]
        if place.begun:
            status = _STATUS.findall(place.said)
            answer = status[-1].decode() if status else "cut"
            fate.answers[answer] = fate.answers.get(answer, 0) + 1
            self._lived[place.name].append(now - place.opened)
        else:
            fate.failed += 1
        del self._by_descriptor[place.socket.fileno()]
        place.socket.close()
        place.socket = None
        place.life += 1
        self._plan(place, now + place.kind.again_s * self._random.uniform(0.7, 1.3))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--addresses", type=int, default=500)
    parser.add_argument("--ramp", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--tls", action="store_true", help="take whatever certificate is shown")
    parser.add_argument("counts", nargs="+", metavar="KIND=COUNT", help=f"of {', '.join(KINDS)}")
    options = parser.parse_args(arguments)
    counts = {name: int(count) for name, _, count in (text.partition("=") for text in options.counts)}
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if options.tls else None
    if tls is not None:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    attack = Attack(options.port, counts, options.addresses, options.ramp, tls)
    attack.run()
    print(json.dumps({name: asdict(fate) for name, fate in attack.fates.items()}), flush=True)
    os._exit(0)  # thousands of sockets are closed by the kernel, and nothing else is left to do


if __name__ == "__main__":
    main()
