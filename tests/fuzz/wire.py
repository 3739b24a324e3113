"""A server, and clients that send a case each and behave as clients do: they dawdle, half-close, stop reading, reset.

A round is one server and some dozens of clients at once, each from an address of its own, by which the app tells who
sent what. What a client does is drawn from a seed; how the two sides interleave is not, so a round that has failed may
have to be run a few times to fail again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random
from typing import Any

from hardserve.edge.connection import Connection
from hardserve.settings import LimitSettings, Settings
from tests.fuzz.answers import Answer, read_answers
from tests.fuzz.grammar import Case, case, content_of, split
from tests.fuzz.memory import SHARED, kept_bytes
from tests.fuzz.oracle import Asked, Reading, Tail, Violation, read
from tests.fuzz.pure import compare
from tests.support import Running, serving, switching_often

KIB = 1024
# Whatever a client does, its connection is over by then: every deadline of every variant is far below.
PATIENCE_S = 10.0
LARGE = 100 * KIB
CAPS = {
    "limits_request_line": 256, "limits_header_line": 300, "limits_header": 1024, "limits_header_count": 12,
    "limits_body": 3000, "limits_body_memory": 500, "limits_chunk_line": 64, "limits_chunk_extensions": 60,
    "limits_trailer": 200,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """How the server of a round is set up. `ample`: every request is answered unless its client prevents it."""

    settings: dict[str, Any]
    ample: bool = True


# A worker that waits for a client may cost that client its connection. So where all are to be answered, what is not
# read has to fit into memory, or into a file.
VARIANTS = {
    "four threads": Variant({"threads": 4}),
    "one thread, bodies in files": Variant({"threads": 1, "limits_body_memory": 0}),
    "little is kept": Variant(
        {
            "threads": 3, "limits_pipeline": KIB, "limits_response_buffer": 64 * KIB,
            "limits_response_file": 10 * LARGE,
        }
    ),
    "hardly enough of anything": Variant(
        {
            "threads": 2, "queue": 1, "limits_connections": 20, "limits_response_buffer": 64 * KIB,
            "limits_pipeline": KIB, "limits_buffered_memory": 1024 * KIB, "timeouts_first_byte": 0.2,
            "timeouts_header": 0.2, "timeouts_body": 0.2, "timeouts_queue": 0.2, "timeouts_response": 0.3,
            "timeouts_keep_alive": 0.2, "timeouts_linger": 0.2,
        },
        ample=False,
    ),
}  # fmt: skip


# --- the app ---


def plan(asked: Asked) -> tuple[str, bytes]:
    """Return how the app answers, and with what: both follow from what it was asked."""
    how = _how(asked.method, asked.target, len(asked.body))
    unit = sha256(repr((asked.target, asked.headers, asked.body)).encode()).hexdigest().encode()
    size = {"nothing": 0, "large": LARGE, "large chunks": 5 * LARGE}.get(how, 300)
    return how, (unit * (size // len(unit) + 1))[:size]


def _how(method: str, target: str, body_size: int) -> str:
    hows = ("block", "block", "chunks", "length", "write", "large", "large chunks", "nothing")
    return hows[zlib.crc32(f"{method} {target} {body_size}".encode()) % len(hows)]


class App:
    """Notes what it is asked, by address, and answers as planned."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Asked]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        asked = Asked(
            environ["REQUEST_METHOD"],
            environ["REQUEST_URI"],
            environ["PATH_INFO"],
            environ["QUERY_STRING"],
            environ["SERVER_PROTOCOL"].removeprefix("HTTP/"),
            {
                key: value
                for key, value in environ.items()
                if key.startswith("HTTP_") or key in ("CONTENT_LENGTH", "CONTENT_TYPE")
            },
            environ["wsgi.input"].read(),
            keep_alive=True,
        )
        asked = as_noted(asked)
        self.seen.setdefault(environ["REMOTE_ADDR"], []).append(asked)
        how, body = plan(asked)
        if how == "nothing":
            start_response("204 No Content", [])
            return []
        length = [("Content-Length", str(len(body)))] if how == "length" else []
        write = start_response("200 OK", length)
        if how == "write":
            write(body[:100])
            write(body[100:])
            return []
        if how in ("block", "large"):
            return [body]
        return iter([body[start : start + 16 * KIB] for start in range(0, len(body), 16 * KIB)])


def as_noted(asked: Asked) -> Asked:
    """Leave out what the app cannot know, or is told otherwise."""
    headers = {key: value for key, value in asked.headers.items() if key != "HTTP_X_REQUEST_ID"}
    return replace(asked, keep_alive=True, headers=headers)


def as_answered(reading: Reading) -> Reading:
    """Return what the app is to see: no more than up to an answer that has to end with the connection.

    RFC 9112 6.3: a 1.0 client knows no chunks.
    """
    requests = [as_noted(asked) for asked in reading.requests]
    for number, asked in enumerate(requests):
        how, _ = plan(asked)
        if asked.version == "1.0" and asked.method != "HEAD" and how in ("chunks", "large chunks", "write"):
            return Reading(requests[: number + 1], Tail.CLOSED)
    return replace(reading, requests=requests)


# --- the clients ---

CONDUCTS = (
    "reads to the end", "reads to the end", "reads to the end", "reads to the end", "reads what it asked for",
    "half-closes midway", "drips", "reads slowly", "resets", "resets", "vanishes", "never reads",
)  # fmt: skip
# What these have sent may never arrive, and what is answered need not be read.
UNFAIR = ("resets", "vanishes", "never reads")


@dataclass
class Conversation:
    """One client, what it sent and what it was sent."""

    number: int
    case: Case
    conduct: str
    random: Random
    sent: bytes = b""
    received: bytes = b""
    ended: bool = False  # the server ended in order
    broken: str = ""
    hung: bool = False

    @property
    def address(self) -> str:
        """An address that no other client of this process has."""
        return f"127.{1 + (self.number >> 16) % 254}.{(self.number >> 8) & 255}.{self.number & 255}"

    def __str__(self) -> str:
        return (
            f"client {self.number} of {self.address}, which {self.conduct}, {'/'.join(self.case.mutations) or 'good'}"
        )

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            if self.conduct in ("reads slowly", "never reads"):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
            client.bind((self.address, 0))
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await loop.sock_connect(client, ("127.0.0.1", port))
                    await self._converse(client)
            except TimeoutError:
                self.hung = True
            except OSError as error:
                self.broken = repr(error)
            if self.conduct == "resets":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _converse(self, client: socket.socket) -> None:
        pieces = self.case.pieces
        if self.conduct in ("resets", "vanishes", "half-closes midway"):
            pieces = pieces[: self.random.randrange(len(pieces) + 1)]
        if self.conduct in UNFAIR:
            await self._send(client, pieces)
            await asyncio.sleep(self.random.choice((0, 0, 0.001, 0.02, 0.05)))
            return
        # Who sends all before reading anything, and a server that reads no more before it is read, wait for each other.
        async with asyncio.TaskGroup() as both:
            both.create_task(self._send_and_end(client, pieces))
            both.create_task(self._receive_all(client))

    async def _send(self, client: socket.socket, pieces: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        for piece in pieces:
            rest = piece
            while rest:
                try:
                    sent = client.send(rest)
                except BlockingIOError:
                    if self.conduct == "never reads":
                        return
                    await _writable(loop, client)
                    continue
                self.sent += rest[:sent]
                rest = rest[sent:]
            await asyncio.sleep(0.002 if self.conduct == "drips" else 0)

    async def _send_and_end(self, client: socket.socket, pieces: list[bytes]) -> None:
        try:
            await self._send(client, pieces)
            if self.conduct != "reads what it asked for" or self._is_satisfied():
                client.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.broken = repr(error)  # a reset is told to whoever looks first, and to nobody else

    async def _receive_all(self, client: socket.socket) -> None:
        try:
            await self._receive(client)
        except OSError as error:
            self.broken = repr(error)

    async def _receive(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        slow_reads = 40 if self.conduct == "reads slowly" else 0
        while data := await loop.sock_recv(client, 2000 if slow_reads else 65536):
            self.received += data
            if slow_reads:
                slow_reads -= 1
                await asyncio.sleep(0.002)
            if self.conduct == "reads what it asked for" and self._is_satisfied():
                return
        self.ended = True

    def _is_satisfied(self) -> bool:
        if self.sent != self.case.stream:
            return False
        expected = as_answered(read(self.sent, _LIMITS))
        due = len(expected.requests) + (expected.tail is Tail.REFUSED)
        with contextlib.suppress(Violation):
            answers = read_answers(self.received, [asked.method for asked in expected.requests], ended=False)
            return len(answers) >= due and all(answer.whole for answer in answers[:due])
        return False


async def _writable(loop: asyncio.AbstractEventLoop, client: socket.socket) -> None:
    ready = loop.create_future()
    loop.add_writer(client, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(client)


_LIMITS = LimitSettings(**{name.removeprefix("limits_"): value for name, value in CAPS.items()})


def flood(random: Random, how: str, before: bytes, size: int) -> Case:
    """Return more than may be read ahead: requests with bodies that are answered as `how`, behind `before`."""
    body = content_of(random, _LIMITS.body)
    targets = (f"/{number}" for number in itertools.count(random.randrange(1000)))
    target = next(target for target in targets if _how("POST", target, len(body)) == how)
    each = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    stream = before + each * (size // len(each))
    return Case(stream, split(random, stream), ("flood",))


FLOODS = (
    ("large", b"", 5 * LARGE, "never reads"),
    ("block", b"GET / HTTP/1.1\r\n\r\n", LARGE, "reads to the end"),
    ("block", b"", LARGE, "half-closes midway"),
)

# --- a round ---


@dataclass
class Watch:
    """What must not happen anywhere in the server's process while a round goes on."""

    problems: list[str] = field(default_factory=list)
    most_kept: int = 0

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Listen to the server's log and to threads that end by an exception, while the block runs."""
        handler = _Listener(self.problems)
        logger = logging.getLogger("hardserve")
        before, level = threading.excepthook, logger.level
        threading.excepthook = lambda args: self.problems.append(f"{args.thread} raised {args.exc_value!r}")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            threading.excepthook = before

    def weigh(self, running: Running, settings: Settings) -> None:
        """Have the I/O thread add up what each connection keeps."""
        limits = settings.limits
        # Head and fields, a body, what is read ahead, what is not taken of an answer, and the block that is more than
        # that. A next answer may be there already when the one before turns out to be too large for the socket.
        bound = 2 * limits.header + limits.body + limits.pipeline + 2 * (limits.response_buffer + LARGE)

        def weigh(_now: float) -> None:
            for connection in list(running.server._loop.connections):
                kept = kept_bytes(connection, _shared_by(connection))
                self.most_kept = max(self.most_kept, kept)
                if kept > bound:
                    self.problems.append(f"{connection} kept {kept:,} bytes, of at most {bound:,}")

        running.server._loop.post(weigh)


def _shared_by(connection: Connection) -> list[object]:
    """Return what a connection refers to and does not own."""
    shared: list[object] = []
    waiting: list[object] = [connection]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        name = type(each).__name__
        if str(type(each).__module__).startswith("hardserve") and name not in _OWN:
            shared.append(each)
        elif not isinstance(each, SHARED):
            waiting += gc.get_referents(each)
    return shared


_OWN = {"Connection", "Request", "StrictChunkedReceiver", "Outbox", "Holding"}


class _Listener(logging.Handler):
    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self._problems.append(f"{record.levelname} in the log: {self.format(record)}")


def run_round(seed: str, variant_name: str, *, clients: int, at_once: int = 24) -> list[Conversation]:
    """Serve `clients` cases, `at_once` at a time; raise Violation for whatever was not as it must be."""
    variant = VARIANTS[variant_name]
    random = Random(seed)
    first = zlib.crc32(seed.encode()) % (1 << 23)
    conversations = [
        Conversation(first + number, case(random, _LIMITS), CONDUCTS[number % len(CONDUCTS)], Random(random.random()))
        for number in range(clients)
    ]
    for conversation, (how, before, size, conduct) in zip(random.sample(conversations, 3), FLOODS, strict=True):
        conversation.case, conversation.conduct = flood(random, how, before, size), conduct
    app, watch = App(), Watch()
    gc.collect()
    descriptors, threads = _descriptors(), set(threading.enumerate())
    # A large answer must not fit into the kernel.
    with watch.on(), switching_often(), serving(app, **CAPS | variant.settings) as running:
        for listener in running.server._listeners:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * KIB)
        asyncio.run(_converse(conversations, running, at_once, watch))
        _await_no_connections(running, watch)
        if running.stop() != 0:
            watch.problems.append("it did not stop in order")
        if (budget := running.server._budget).memory or budget.files:
            watch.problems.append(f"counted, and kept by nobody: {budget}")
    logged = Counter(entry.client for entry in running.log.entries)
    gc.collect()
    if (left := set(threading.enumerate()) - threads) or _descriptors() > descriptors:
        watch.problems.append(f"left behind: {left}, {_descriptors() - descriptors} descriptors")
    for conversation in conversations:
        try:
            seen = app.seen.get(conversation.address, [])
            _judge(conversation, seen, logged[conversation.address], ample=variant.ample)
        except Violation as violation:
            watch.problems.append(f"{conversation}: {violation}; it sent {conversation.sent[:1000]!r}")
    if watch.problems:
        raise Violation("\n".join(watch.problems))
    return conversations


async def _converse(conversations: list[Conversation], running: Running, at_once: int, watch: Watch) -> None:
    room = asyncio.Semaphore(at_once)

    async def one(conversation: Conversation) -> None:
        async with room:
            await conversation.run(running.port)
        if conversation.number % 8 == 0:
            watch.weigh(running, running.server.settings)

    await asyncio.gather(*[one(conversation) for conversation in conversations])


def _await_no_connections(running: Running, watch: Watch) -> None:
    until = time.monotonic() + PATIENCE_S
    while running.server._loop.connections:
        if time.monotonic() > until:
            watch.problems.append(f"connections that nobody holds: {running.server._loop.connections}")
            return
        time.sleep(0.002)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _judge(conversation: Conversation, seen: list[Asked], logged: int, *, ample: bool) -> None:
    expected = read(conversation.sent, _LIMITS)
    # One that is refused because there is too much to do is not the last, whatever its answer would have been.
    expected = as_answered(expected) if ample else replace(expected, requests=list(map(as_noted, expected.requests)))
    if conversation.hung:
        raise Violation(f"hangs, having received {conversation.received[-300:]!r}")
    _judge_what_was_seen(expected.requests, seen, ample=ample)
    answers = read_answers(
        conversation.received, [asked.method for asked in expected.requests], ended=conversation.ended
    )
    _judge_answers(expected.requests, answers, ample=ample)
    if not ample:
        return
    # What was refused, or cut before it was whole, is logged besides, and is the last of its connection.
    if not len(seen) <= logged <= len(seen) + 1:
        raise Violation(f"{logged} lines in the access log for {len(seen)} requests")
    if conversation.conduct in UNFAIR:
        return
    if conversation.broken:
        raise Violation(f"was cut: {conversation.broken}, having received {conversation.received[-300:]!r}")
    # Every request was answered, and then it was refused what had to be.
    if len(answers) < len(seen):
        raise Violation(f"{len(answers)} answers to {len(seen)} requests")
    refused = len(answers) > len(seen)
    tail = Tail.REFUSED if refused else Tail.CLOSED if expected.tail is Tail.CLOSED else Tail.OPEN
    compare(expected, seen, tail, answers[-1].status if refused else 0)


def _judge_what_was_seen(requests: list[Asked], seen: list[Asked], *, ample: bool) -> None:
    """Nothing that was not sent, nothing twice, nothing out of order; and nothing left out but the end."""
    due = iter(requests)
    for number, asked in enumerate(seen):
        if ample and (number >= len(requests) or asked != requests[number]):
            raise Violation(f"the app saw {asked}, not {requests[number] if number < len(requests) else 'nothing'}")
        if asked not in due:  # takes from `due` what was refused before it
            raise Violation(f"the app saw {asked}, which was not sent, or not then")


def _judge_answers(requests: list[Asked], answers: list[Answer], *, ample: bool) -> None:
    for asked, answer in zip(requests, answers, strict=False):
        _, body = plan(asked)
        if answer.status in (408, 503) and not ample:
            continue
        if answer.status >= 400:
            return  # `compare` knows whether it is right
        if asked.method == "HEAD" or answer.status == 204:
            body = b""
        if not body.startswith(answer.body) or (answer.whole and answer.body != body):
            raise Violation(f"{asked} was answered with {answer.status} and {answer.body[:200]!r}")
    if len(answers) > len(requests) + 1:
        raise Violation(f"{len(answers)} answers to {len(requests)} requests: {answers[len(requests) :]}")
