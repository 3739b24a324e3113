"""One client connection: what it is doing, who may touch it, and the only two ways bytes leave it.

Theory of operation
-------------------
The I/O thread reads, parses and judges. When a request is complete it calls `EdgeContext.dispatch`, and the
connection is BUSY: from then on one worker, and no other, answers through `write` and `finish`. `finish` hands the
connection back.

Which thread owns what:

* `phase`, `request`, `ahead`, the wheel and the selector: the I/O thread, with one exception. A worker that holds the
  lock moves `phase` from BUSY to IDLE in `finish`.
* sending, `unsent`, closing the descriptor: whoever holds `lock`, which is never held over anything that blocks. The
  lock is what keeps a descriptor from being closed, and its number from being reused, inside another thread's `send`.
* everything else is written by the I/O thread, and read anywhere.

`finish` makes the connection IDLE *before* it sends. The client may answer the very moment the bytes leave, while the
worker still waits for the interpreter lock; the I/O thread then takes the next request at once, and need not be woken
for it. Order is kept by the lock: should the socket not take all of it, the rest is in `unsent` before anybody else
can send, and what comes after is queued behind. So an IDLE or LINGER that is read without the lock means "answered",
not "sent", which is enough to take the next request (`_advance`) and not enough to end anything: whatever closes,
half-closes or waits looks at `phase` and `unsent` together under the lock (`settle`).

Two threads look at the same thing from two sides: the worker goes IDLE and then looks whether anything was read
ahead; the I/O thread reads ahead and then looks whether it is IDLE. One of them sees the other's mark, whichever way
they interleave, and `settle` does no harm when called twice.

What the socket does not take at once is kept in `unsent` and sent by the I/O thread when the socket is writable. Past
`limits.response_buffer` the worker waits in `write`; the client's deadline for taking it is `timeouts.response`.

A client that has gone shows as an error on send, or as the end of its stream. The latter may also be a client that
has only finished *sending* (RFC 9112 9.6), so what the app produces is still sent, and fails soon if nobody is there.
Only when an answer of no known length says nothing for `timeouts.abandoned` after that is its app interrupted.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from hardserve import refusals
from hardserve.edge.parsing import ParserRules, Request
from hardserve.protocol import CONTINUE, ClientDisconnectedError, DateClock, refusal_response

if TYPE_CHECKING:
    from hardserve.edge.listener import Listener
    from hardserve.edge.transport import Transport
    from hardserve.refusals import Refusal
    from hardserve.settings import Settings

READ_BYTES = 65536
# What a refused client may still send while it reads its answer, before it is cut off.
LINGER_BYTES = 64 << 20
# How long a drain leaves an idle connection open: whoever is about to send a request on it gets an answer and is told
# to close, where closing at once would lose a request that is already on its way.
DRAIN_IDLE_S = 1.0


class Phase(Enum):
    """What a connection is doing."""

    IDLE = "idle"  # no byte of a next request has come
    HEAD = "head"  # some of a request head has come
    BODY = "body"  # the head was admitted, some of the body is missing
    BUSY = "busy"  # a complete request is waiting for a worker or with one
    LINGER = "linger"  # the last answer is out or on its way; what still arrives is discarded
    CLOSED = "closed"


IDLE, HEAD, BODY, BUSY, LINGER, CLOSED = Phase


class Poller(Protocol):
    """What a connection asks of the loop it lives on. I/O thread, but for `wake`, which any thread may call."""

    def set_interest(self, connection: Connection, *, read: bool, write: bool) -> None: ...
    def watch(self, connection: Connection, now: float) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def wake(self, connection: Connection) -> None:
        """Have the I/O thread call `connection.settle` soon."""


@dataclass(slots=True)
class EdgeContext:
    """What all connections of a server share. The functions are called on the I/O thread."""

    settings: Settings
    rules: ParserRules
    date: DateClock
    poller: Poller
    admit: Callable[[Request], Refusal | None]
    dispatch: Callable[[Connection, Request], Refusal | None]
    log_refusal: Callable[[Connection, Request, Refusal, int], None]
    draining: bool = False

    def idle_s(self) -> float:
        """Return how long a connection may stay idle. Any thread."""
        return DRAIN_IDLE_S if self.draining else self.settings.timeouts.keep_alive


Report = Callable[[int], None]  # called once with how many bytes of a response never left


def new_request_id() -> str:
    """Return an id to find a request by: unlikely to repeat, but no secret, and no system call."""
    return f"{random.getrandbits(64):016x}"


class Connection:
    """See the module's head for which thread may call what."""

    __slots__ = (
        "_ctx", "_cut", "_reading", "_writing", "abandon", "ahead", "drained", "eof", "lingered",
        "listener", "lock", "open_ended", "peer", "phase", "read_deadline", "request", "slot", "transport", "unsent",
        "unsent_bytes", "write_deadline",
    )  # fmt: skip

    def __init__(
        self, ctx: EdgeContext, transport: Transport, peer: tuple[str, int], listener: Listener, now: float
    ) -> None:
        # For its lifetime.
        self._ctx = ctx
        self.transport = transport
        self.peer = peer  # host and port; ("unix:", 0) on a Unix socket
        self.listener = listener
        self.lock = threading.Lock()
        self.phase: Phase = IDLE
        self.slot: int | None = None
        self._reading = True
        self._writing = False
        self.eof = False
        # For one request.
        self.request: Request | None = None
        self.ahead = b""  # arrived, not parsed yet
        self.read_deadline = now + ctx.idle_s()
        self.lingered = 0
        # For one response.
        self.write_deadline = math.inf
        self.unsent: deque[memoryview | Report] | None = None  # each response's last bytes are followed by its report
        self.unsent_bytes = 0
        self.drained: threading.Condition | None = None  # where a worker waits for `unsent` to shrink
        self.open_ended = False  # a response whose end only the app knows
        self.abandon: Callable[[], bool] | None = None  # interrupts the app's wait between two chunks
        self._cut: str = ""  # what was sent of a response is all there will be: "end" or "reset" the connection

    def __repr__(self) -> str:
        return (
            f"<Connection {self.peer[0]}:{self.peer[1]} {self.phase.value} ahead={len(self.ahead)} "
            f"unsent={self.unsent_bytes}{' eof' if self.eof else ''}>"
        )

    def deadline(self) -> float:
        # While something is unsent the client is held to taking it, and to nothing else.
        return self.write_deadline if self.unsent else min(self.read_deadline, self.write_deadline)

    # --- I/O thread: reading ---

    def on_readable(self, now: float) -> bool:
        """Take what has arrived and do what follows from it; return whether anything had. I/O thread."""
        room = READ_BYTES
        if self.phase is BUSY or (self.unsent and self.phase is not LINGER):
            room = max(1, min(room, self._ctx.settings.limits.pipeline - len(self.ahead)))
        try:
            data = self.transport.receive(room)
        except OSError:
            self.close()
            return True
        if data is None:
            return False
        if not data:
            # The client sends no more, but may still read (RFC 9112 9.6). Level-triggered: it would stay readable.
            self.eof = True
            self._update_interest(read=False)
            self.settle(now)
        elif self.phase is LINGER:
            self.lingered += len(data)
            if self.lingered > LINGER_BYTES:
                self.close()
        else:
            self.ahead = self.ahead + data if self.ahead else data
            if len(self.ahead) >= self._ctx.settings.limits.pipeline and (self.phase is BUSY or self.unsent):
                self._update_interest(read=False)
            self._advance(now)
        return True

    def _advance(self, now: float) -> None:
        """Parse what has arrived, as far as it may be answered now; harmless when there is nothing.

        `phase` is read without the lock: a worker that is still sending has gone IDLE before, and what the next
        request is answered queues behind it.
        """
        while self.ahead and self.phase is not BUSY and not self.unsent:
            if self.phase is LINGER or self.phase is CLOSED:
                self.ahead = b""
                return
            self._parse_ahead(now)
        if not self._reading and not self.eof and self.phase is not CLOSED:
            waits = self.phase is BUSY or bool(self.unsent)
            if not waits or len(self.ahead) < self._ctx.settings.limits.pipeline:
                self._update_interest(read=True)

    def _parse_ahead(self, now: float) -> None:
        request = self.request
        if request is None:
            request = self.request = Request(self._ctx.rules, now)
        data = self.ahead
        had_head = request.headers_finished
        consumed = request.feed(data)
        self.ahead = data[consumed:] if consumed < len(data) else b""
        if request.refusal is None and request.headers_finished and not had_head:
            if not request.request_id:
                request.request_id = new_request_id()
            request.refusal = self._ctx.admit(request)
        if request.refusal is not None:
            self.refuse(request.refusal, now)
        elif request.completed:
            self._dispatch(request, now)
        elif request.headers_finished:
            if request.expect_continue and not had_head and not self.ahead and not self._send(CONTINUE, now):
                return
            self._await(BODY, now + self._ctx.settings.timeouts.body, now)
        elif self.phase is not HEAD and request.head:
            self._await(HEAD, now + self._ctx.settings.timeouts.header, now)

    def _dispatch(self, request: Request, now: float) -> None:
        self.read_deadline = math.inf
        if self.phase is not IDLE:
            # It is filed for a deadline that may be later than the one `finish` will set.
            self._ctx.poller.watch(self, now)
        self.phase = BUSY
        refusal = self._ctx.dispatch(self, request)
        if refusal is not None:
            self.refuse(refusal, now)

    def _await(self, phase: Phase, deadline: float, now: float) -> None:
        self.phase = phase
        self.read_deadline = deadline
        self._ctx.poller.watch(self, now)

    # --- I/O thread: refusing, flushing, ending ---

    def refuse(self, refusal: Refusal, now: float) -> None:
        """Answer without the app, and end the connection if the refusal or the request asks for it. I/O thread."""
        request = self.request
        assert request is not None  # there is one from the first byte on
        request.request_id = request.request_id or new_request_id()
        close = refusal.close or self._ctx.draining or not (request.completed and request.keep_alive)
        answer = refusal_response(
            refusal,
            request_id=request.request_id,
            date=self._ctx.date.text(),
            head_only=request.command == "HEAD",
            close=close,
        )
        self._end_request()
        if close:
            self.phase = LINGER
            self.ahead = b""
        else:
            self.phase = IDLE
            self.read_deadline = now + self._ctx.idle_s()
        alive = self._send(answer, now)
        self._ctx.log_refusal(self, request, refusal, len(answer))
        if alive and close and not self.unsent:
            self._linger(now)

    def _end_request(self) -> None:
        if self.request is not None:
            self.request.close()
            self.request = None

    def _send(self, data: bytes, now: float) -> bool:
        """Send from the I/O thread, never waiting; return whether the connection is still there."""
        try:
            with self.lock:
                self._send_or_keep(data)
        except OSError:
            self.close()
            return False
        if self.unsent:
            self._await_writable(now)
        return True

    def _await_writable(self, now: float) -> None:
        self.write_deadline = now + self._ctx.settings.timeouts.response
        self._update_interest(write=True)
        self._ctx.poller.watch(self, now)

    def on_writable(self, now: float) -> None:
        """Send what the socket takes of what is unsent. I/O thread."""
        reports: list[Report] = []
        progress = 0
        try:
            with self.lock:
                progress = self._flush(reports)
        except OSError:
            self.close()
        for report in reports:
            report(0)
        if progress:
            self.write_deadline = now + self._ctx.settings.timeouts.response
        self.settle(now)

    def _flush(self, reports: list[Report]) -> int:
        """Send from the front of `unsent` and return how many bytes; add the reports that are due to `reports`.

        The caller holds the lock. Raises OSError.
        """
        before = self.unsent_bytes
        while self.unsent:
            item = self.unsent[0]
            if isinstance(item, memoryview):
                sent = self.transport.send(item)
                self.unsent_bytes -= sent
                if sent < len(item):
                    self.unsent[0] = item[sent:]
                    break
            else:
                reports.append(item)
            self.unsent.popleft()
        if self.drained is not None and self.unsent_bytes <= self._ctx.settings.limits.response_buffer // 2:
            self.drained.notify()
        return before - self.unsent_bytes

    def settle(self, now: float) -> None:
        """Do what follows from what a worker, or the client, has done to this connection. I/O thread."""
        with self.lock:
            # No worker is inside `finish` now, so that these belong together.
            phase, unsent, cut = self.phase, bool(self.unsent), self._cut
        if phase is CLOSED:
            if self.abandon is not None:
                self._begin_abandoning(now)  # the stream began after its client had gone
            return
        if cut:
            self.close(reset=cut == "reset")
            return
        if unsent:
            if not self._writing:
                self._await_writable(now)
            return
        if self._writing:
            self.write_deadline = math.inf
            self._update_interest(write=False)
        if phase is LINGER:
            self._linger(now)
        else:
            self._read_on(phase, now)

    def _read_on(self, phase: Phase, now: float) -> None:
        if self.read_deadline == math.inf and phase is not BUSY:
            # Its client has just read the last of a response, and may have begun with the next request meanwhile.
            timeouts = self._ctx.settings.timeouts
            self.read_deadline = now + {HEAD: timeouts.header, BODY: timeouts.body}.get(phase, self._ctx.idle_s())
        if phase is BUSY and self.eof and self.open_ended:
            self._begin_abandoning(now)
        self._advance(now)
        if self.eof and self._is_over():
            self.close()
        elif self.phase is not CLOSED:
            self._ctx.poller.watch(self, now)

    def _is_over(self) -> bool:
        """Return whether a client that sends no more has been answered all that it asked."""
        with self.lock:
            return not self.ahead and self.phase not in (BUSY, LINGER, CLOSED) and not self.unsent

    def _linger(self, now: float) -> None:
        """Let the client read the last answer: closing with unread bytes would reset it (RFC 9112 9.6)."""
        if self.eof:
            self.close()
            return
        self.transport.shutdown_write()
        self.read_deadline = now + self._ctx.settings.timeouts.linger
        if not self._reading:
            self._update_interest(read=True)
        self._ctx.poller.watch(self, now)

    def on_deadline(self, now: float) -> None:
        """End what has run out of time. I/O thread."""
        if self.deadline() > now:
            self._ctx.poller.watch(self, now)  # a worker has just moved it
            return
        if self.unsent:
            self.close()
        elif (abandon := self.abandon) is not None and self.client_gone():
            self._abandon(abandon, now)
        elif self.phase is HEAD:
            self.refuse(refusals.HEADER_DEADLINE, now)
        elif self.phase is BODY:
            self.refuse(refusals.BODY_DEADLINE, now)
        elif self.phase is not IDLE or not self.on_readable(now):  # what came since this turn began is not late
            self.close()
        if self.phase is not CLOSED:
            self._ctx.poller.watch(self, now)

    def begin_drain(self, now: float) -> None:
        """Close soon if idle, but not at once: a request may be on its way, and is answered. I/O thread."""
        with self.lock:
            if self.phase is IDLE and not self.unsent:
                self.read_deadline = min(self.read_deadline, now + DRAIN_IDLE_S)
        # A busy one will be given a shorter deadline by `finish` than the one it is filed under.
        self._ctx.poller.watch(self, now)

    def _begin_abandoning(self, now: float) -> None:
        """Nobody is left to read: give the app a while to notice by itself, at its next block."""
        patience_s = self._ctx.settings.timeouts.abandoned
        if patience_s and self.read_deadline == math.inf:
            self.read_deadline = now + patience_s
            self._ctx.poller.watch(self, now)

    def _abandon(self, abandon: Callable[[], bool], now: float) -> None:
        self.read_deadline = math.inf
        if not abandon():
            # The app was between two blocks. If it waits again, and again for so long, it is told then.
            self._begin_abandoning(now)

    def close(self, *, reset: bool = False) -> None:
        """Close the socket; a worker that still answers gets ClientDisconnectedError. I/O thread."""
        if self.phase is CLOSED:
            return
        self._ctx.poller.closed(self)
        with self.lock:
            busy = self.phase is BUSY
            # Half a response must not look like a whole one, and its end may be all that marks it as such.
            halfway = bool(self.unsent) or (busy and self.abandon is not None)
            self.phase = CLOSED
            self.transport.close(reset=reset or halfway)
            unsent, self.unsent = self.unsent, None
            if self.drained is not None:
                self.drained.notify()
        self._report_unsent(unsent or ())
        self.ahead = b""
        self.write_deadline = math.inf
        if not busy:
            self._end_request()  # of a busy one the worker still reads the body
            return
        self.read_deadline = math.inf
        if self.abandon is not None:
            self._begin_abandoning(monotonic())

    def _report_unsent(self, unsent: Iterable[memoryview | Report]) -> None:
        count = 0
        for item in unsent:
            if isinstance(item, memoryview):
                count += len(item)
            else:
                item(count)
                count = 0

    def _update_interest(self, *, read: bool | None = None, write: bool | None = None) -> None:
        self._reading = self._reading if read is None else read
        self._writing = self._writing if write is None else write
        self._ctx.poller.set_interest(self, read=self._reading, write=self._writing)

    # --- worker thread ---

    def _send_or_keep(self, data: bytes) -> None:
        """Send what the socket takes and keep the rest. The caller holds the lock; raises OSError."""
        sent = 0
        if not self.unsent:
            sent = self.transport.send(data)
            if sent == len(data):
                return
            if self.unsent is None:
                self.unsent = deque()
        # A view, because a rest that shrinks by what the client reads would else be copied each time.
        self.unsent.append(memoryview(data)[sent:])
        self.unsent_bytes += len(data) - sent

    def client_gone(self) -> bool:
        """Return whether nobody seems to be left to read the response. Any thread."""
        return self.phase is CLOSED or bool(self._cut) or (self.eof and self.open_ended)

    def write(self, data: bytes) -> None:
        """Send a part of a response, waiting while the client has too much of it unread. Worker thread.

        Raises ClientDisconnectedError when the client has gone.
        """
        with self.lock:
            if self.phase is CLOSED:
                raise ClientDisconnectedError
            if self.eof and self.read_deadline != math.inf:
                self.read_deadline = monotonic() + self._ctx.settings.timeouts.abandoned  # the app is not stuck
            try:
                self._send_or_keep(data)
            except OSError as error:
                raise ClientDisconnectedError from error
            if not self.unsent:
                return
        self._ctx.poller.wake(self)
        if self.unsent_bytes > self._ctx.settings.limits.response_buffer:
            self._wait_until_drained()

    def _wait_until_drained(self) -> None:
        limit = self._ctx.settings.limits.response_buffer // 2
        with self.lock:
            self.drained = threading.Condition(self.lock)
            # Ends by itself: `timeouts.response` closes a connection that takes nothing, and closing notifies.
            while self.phase is not CLOSED and self.unsent_bytes > limit:
                self.drained.wait()
            self.drained = None
        if self.phase is CLOSED:
            raise ClientDisconnectedError

    def finish(self, data: bytes, *, keep_alive: bool, flushed: Report) -> None:
        """Send the last bytes of a response and hand the connection back to the I/O thread. Worker thread.

        `flushed` is called with the number of bytes that never left, by this thread if all of them fit, else by the
        I/O thread when they are sent or the connection is closed. Nothing of this connection may be touched after.
        """
        with self.lock:
            self._forget_request()
            if self.phase is CLOSED:
                unsent = len(data)
            else:
                self.read_deadline = monotonic() + self._ctx.idle_s()
                self.phase = IDLE if keep_alive else LINGER  # before sending: see the module's head
                unsent = 0
                if data:
                    try:
                        self._send_or_keep(data)
                    except OSError:
                        unsent, self._cut = len(data), "end"
                if self.unsent:
                    self.read_deadline = math.inf  # being idle begins when the client has it all
                    self.unsent.append(flushed)
                    self._ctx.poller.wake(self)
                    return
        flushed(unsent)
        if self.phase is not IDLE or self.ahead or self.eof or unsent:
            self._ctx.poller.wake(self)

    def may_keep_alive(self) -> bool:
        """Return whether the client may be told that the connection stays open. Any thread."""
        return not self._ctx.draining or bool(self.ahead)

    def begin_stream(self, *, open_ended: bool, abandon: Callable[[], bool]) -> None:
        """Say that a response comes in parts. Worker thread, before the first `write`.

        `open_ended` is one without a known length. `abandon` is called by the I/O thread when nobody has been left to
        read it for `timeouts.abandoned`, and may be called once more after `finish` began; it returns whether it hit.
        """
        self.abandon = abandon
        self.open_ended = open_ended
        if self.phase is CLOSED or (open_ended and self.eof):
            self._ctx.poller.wake(self)

    def abort(self, *, reset: bool) -> None:
        """Cut the connection, because what was sent of the response is not all of it. Worker thread.

        With `reset` the client sees an error even where only the end of the connection marks the end of a response.
        Closing itself is left to the I/O thread, which has the descriptor in its selector.
        """
        with self.lock:
            self._forget_request()
            if self.phase is CLOSED:
                return
            unsent, self.unsent = self.unsent, None
            self._cut = "reset" if reset else "end"
            self.phase = LINGER
        self._report_unsent(unsent or ())
        self._ctx.poller.wake(self)

    def _forget_request(self) -> None:
        """Let go of what belongs to the response that ends here, also when the connection is closed already.

        The caller is the worker and holds the lock.
        """
        self.request = None
        self.open_ended = False
        self.abandon = None
