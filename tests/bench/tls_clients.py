"""The clients of the benchmark of TLS, each a process of its own: `python -m tests.bench.tls_clients KIND PORT ...`.

    idle COUNT PATH tls|plain    keeps connections open on which one request was answered
    drip COUNT SECONDS           ClientHellos, a byte at a time
    normal RATE                  two that mean no harm: on kept connections, and on a new one for each request
    hammer KEPT FRESH            ask again and again, and tell of each request that failed and each connection lost

They say "ready", go on until their standard input ends, and then say what they found, one line of JSON. None of them
resumes a session or looks at whose certificate it gets. Must not know which server it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterator, Mapping
from functools import partial
from typing import Any

from tests.certs import client_context

from .hostile_normal import PATIENCE_S
from .peers import REPOSITORY
from .process import helper

ADDRESSES = 250

_HOLD_LIMIT_S = 300


class Client:
    """Such a process as the benchmark sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def cpu_s(self) -> float:
        """Processor time so far."""
        return time.clock_gettime((~self._process.pid << 3) | 2)  # as in hostile

    def close(self) -> dict[str, Any]:
        said, _ = self._process.communicate("", timeout=30)
        found: dict[str, Any] = json.loads(said)
        return found


@contextlib.contextmanager
def client(kind: str, port: int, *arguments: object) -> Iterator[Client]:
    """Have a client of this kind run while the block does. Raises RuntimeError when it does not get ready."""
    words = (kind, str(port), *map(str, arguments))
    with helper(__name__, *words, repository=REPOSITORY, what=f"client {kind}") as process:
        yield Client(process)


def main(kind: str, port: str, *arguments: str) -> None:
    signal.alarm(_HOLD_LIMIT_S)  # ends this process, so that nothing waits for it for ever
    try:
        if kind == "idle":
            count, path, way = arguments
            told: Mapping[str, object] = hold_idle(int(port), int(count), path, tls=way == "tls")
        elif kind == "drip":
            count, over_s = arguments
            told = drip(int(port), int(count), float(over_s))
        elif kind == "normal":
            told = asyncio.run(ask_when_due(int(port), float(arguments[0])))
        else:
            kept, fresh = map(int, arguments)
            told = asyncio.run(hammer(int(port), kept, fresh))
    except OSError as error:
        print(f"{error!r}", flush=True)
        return
    print(json.dumps(told))


def hold_idle(port: int, count: int, path: str, *, tls: bool) -> Mapping[str, object]:
    """Keep connections open on which one request was answered; tell how many the server has left open."""
    context = client_context()
    kept = []
    for number in range(count):
        make = partial(http.client.HTTPSConnection, context=context) if tls else http.client.HTTPConnection
        connection = make("127.0.0.1", port, timeout=10, source_address=(f"127.0.1.{number % ADDRESSES + 1}", 0))
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise OSError(f"answered with {answer.status}")
        kept.append(connection.sock)
    print("ready", flush=True)
    sys.stdin.read()
    ended = select.poll()
    for each in kept:
        ended.register(each, select.POLLIN)
    return {"open": count - len(ended.poll(0))}


# --- handshakes that take their time ---


class _Dripper:
    """A ClientHello, a byte at a time."""

    def __init__(self, port: int, number: int, hello: bytes) -> None:
        self._address = ("127.0.0.1", port)
        self._source = (f"127.0.2.{number % ADDRESSES + 1}", 0)
        self._hello = hello
        self.lived: list[float] = []
        self._connect()

    def _connect(self) -> None:
        self._said = 0
        self._since = time.monotonic()
        self._socket = socket.create_connection(self._address, timeout=PATIENCE_S, source_address=self._source)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)

    def drip(self) -> None:
        """Say one more byte, or come again if the server has said anything or gone, or all is said."""
        if self._said < len(self._hello):
            try:
                self._socket.send(self._hello[self._said : self._said + 1])
                self._said += 1
                self._socket.recv(1)
            except BlockingIOError:
                return
            except OSError:
                pass
        self.lived.append(time.monotonic() - self._since)
        self._socket.close()
        self._connect()


def drip(port: int, count: int, over_s: float) -> Mapping[str, object]:
    """Keep so many handshakes going, each of which would take so long."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    every_s = over_s / len(hello)
    drippers = deque(_Dripper(port, number, hello) for number in range(count))
    print("ready", flush=True)
    began = due = time.monotonic()
    said = 0
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        for _ in range(min(count, 10)):
            drippers[0].drip()
            drippers.rotate(-1)
            said += 1
            due += every_s / count
        due = max(due, time.monotonic() - 0.1)  # so that they do not hurry after a pause
    took_s = time.monotonic() - began
    lived = sorted(age for one in drippers for age in one.lived)
    # That a server has cut one is noticed with its next byte.
    gone = len(lived) * every_s / 2
    return {
        "open": count - gone / took_s,
        "cut": len(lived),
        "lived s": lived[len(lived) // 2] if lived else 0.0,
        "bytes/s": said / took_s,
        "of its bytes": said / took_s * every_s / count,
    }


# --- requests ---

_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_LAST_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)\r\n")

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ProblemError(Exception):
    """A request was not answered with 200. The message is few words, the same for the same problem."""


async def _connect(port: int, context: ssl.SSLContext, source: str) -> Ends:
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(source, 0))


async def _ask(ends: Ends, request: bytes) -> None:
    reader, writer = ends
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise ProblemError(f"status {head[9:12].decode('latin-1')}")
    await reader.readexactly(int(length[1]))


async def _ask_anew(port: int, context: ssl.SSLContext, source: str) -> Ends:
    ends = await _connect(port, context, source)
    try:
        await _ask(ends, _LAST_REQUEST)
    finally:
        ends[1].transport.abort()
    return ends


async def _outcome_of(asking: Coroutine[Any, Any, object]) -> str:
    """Return "" if it was answered, else a few words."""
    try:
        await asyncio.wait_for(asking, PATIENCE_S)
    except ProblemError as problem:
        return str(problem)
    except (OSError, EOFError, TimeoutError) as problem:
        return type(problem).__name__
    return ""


def _until_told() -> asyncio.Event:
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)
    print("ready", flush=True)
    return over


async def ask_when_due(port: int, rate: float) -> Mapping[str, object]:
    """Two clients that mean no harm, one on kept connections and one on a new one each time, each at this rate."""
    context = client_context()
    free: list[Ends] = []
    outcomes: dict[str, list[tuple[float, float, bool, str]]] = {"kept": [], "fresh": []}

    async def on_kept() -> None:
        ends = free.pop() if free else await _connect(port, context, "127.0.0.99")
        await _ask(ends, _REQUEST)
        free.append(ends)

    async def note(kind: str, due: float) -> None:
        fresh = kind == "fresh"
        problem = await _outcome_of(_ask_anew(port, context, "127.0.0.98") if fresh else on_kept())
        outcomes[kind].append((due, time.monotonic() - due, fresh, problem))

    over = _until_told()
    asked: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    number = 0
    while not over.is_set():
        while (now := time.monotonic()) < due:
            await asyncio.sleep(due - now)
        task = asyncio.create_task(note("fresh" if number % 2 else "kept", due))
        asked.add(task)
        task.add_done_callback(asked.discard)
        due += 1 / rate / 2
        number += 1
    await asyncio.gather(*asked)
    return outcomes


async def hammer(port: int, kept: int, fresh: int) -> Mapping[str, object]:
    """Clients that ask again and again, and tell of every request that was not answered and every connection lost."""
    context = client_context()
    told: Counter[str] = Counter()
    met: set[bytes] = set()
    over = _until_told()

    async def hold() -> None:
        ends: Ends | None = None
        while not over.is_set():
            if ends is None:
                ends = await _connect(port, context, "127.0.0.99")
            if problem := await _outcome_of(_ask(ends, _REQUEST)):
                told[f"failed: kept, {problem}"] += 1
                ends = None
            told["kept"] += 1

    async def come_and_go() -> None:
        async def ask() -> None:
            _, writer = await _ask_anew(port, context, "127.0.0.98")
            met.add(hashlib.sha256(writer.get_extra_info("ssl_object").getpeercert(True)).digest())

        while not over.is_set():
            if problem := await _outcome_of(ask()):
                told[f"failed: fresh, {problem}"] += 1
            told["fresh"] += 1

    await asyncio.gather(*(hold() for _ in range(kept)), *(come_and_go() for _ in range(fresh)))
    return {"kept": 0, "fresh": 0, "certificates": len(met), **told}


if __name__ == "__main__":
    main(*sys.argv[1:])
