"""One client connection: what it is doing, who may touch it, and the only two ways bytes leave it.

Theory of operation
-------------------
The I/O thread reads, parses and judges. When a request is complete it calls `EdgeContext.dispatch`, and the
connection is BUSY: from then on one worker, and no other, answers through `write` and `finish`. `finish` hands the
connection back. It is BUSY, too, while a check thread finds out what the gate could not tell at once; then `decided`
goes on with it, on the I/O thread.

Which thread owns what:

* `phase`, `request`, `ahead`, the wheel and the selector: the I/O thread, with one exception. A worker that holds the
  lock moves `phase` from BUSY to IDLE in `finish`.
* sending, `outbox`, closing the descriptor: whoever holds `lock`, which is never held over anything that blocks. The
  lock is what keeps a descriptor from being closed, and its number from being reused, inside another thread's `send`.
* everything else is written by the I/O thread, and read anywhere.

`finish` makes the connection IDLE *before* it sends. The client may answer the very moment the bytes leave, while the
worker still waits for the interpreter lock; the I/O thread then takes the next request at once, and need not be woken
for it. Order is kept by the lock: should the socket not take all of it, the rest is in `outbox` before anybody else
can send, and what comes after is queued behind. So an IDLE or LINGER that is read without the lock means "answered",
not "sent", which is enough to take the next request (`_advance`) and not enough to end anything: whatever closes,
half-closes or waits looks at `phase` and `outbox` together under the lock (`settle`).

Two threads look at the same thing from two sides: the worker goes IDLE and then looks whether anything was read
ahead; the I/O thread reads ahead and then looks whether it is IDLE. One of them sees the other's mark, whichever way
they interleave, and `settle` does no harm when called twice.

What the socket does not take at once is kept in `outbox`, which exists only while there is something in it, and is
sent by the I/O thread when the socket is writable. Past `limits.response_buffer` the worker waits in `write`. The
client must take something every `timeouts.response` and keep to `limits.response_rate`, and edge.readers ends those
that would keep too many workers.

A worker that does not come back in time loses its connection: `expire` answers in its place and takes the connection
out of BUSY, and whatever the worker does after that finds that it is not its own any more, and is dropped.

A client that has gone shows as an error on send, or as the end of its stream. The latter may also be a client that
has only finished *sending* (RFC 9112 9.6), so what the app produces is still sent, and fails soon if nobody is there.
Only when an answer of no known length says nothing for `timeouts.abandoned` after that is its app interrupted.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from hardserve import refusals
from hardserve.edge.budget import Budget, Holding
from hardserve.edge.gate import PENDING, Verdict
from hardserve.edge.outbox import Outbox, Report
from hardserve.edge.parsing import ParserRules, Request
from hardserve.edge.proxyprotocol import ProxyHeader
from hardserve.edge.readers import JUDGED_S, Readers
from hardserve.pages import ErrorPages
from hardserve.protocol import CONTINUE, ClientDisconnectedError, DateClock
from hardserve.refusals import Cut, Refusal

if TYPE_CHECKING:
    from hardserve.edge.listener import Listener
    from hardserve.edge.transport import Transport
    from hardserve.settings import Settings

READ_BYTES = 65536
# Small chunks take longer to take apart than anything else a client can send, ten milliseconds for the size above. In
# parts, so that a dozen such clients do not hold up the others.
CHUNKED_READ_BYTES = 8192
# How long a drain leaves an idle connection open: whoever is about to send a request on it gets an answer and is told
# to close, where closing at once would lose a request that is already on its way.
DRAIN_IDLE_S = 1.0
# Requests of one connection that are refused in one turn, so that a pipeline of them does not hold up the others.
REFUSALS_PER_TURN = 16
# How often a slow reader is looked at: at the latest in the next slot of the wheel, and with this, in each.
LOOK_S = 0.1


class Phase(Enum):
    """What a connection is doing."""

    IDLE = "idle"  # no byte of a next request has come
    HEAD = "head"  # some of a request head has come
    BODY = "body"  # the head was admitted, some of the body is missing
    BUSY = "busy"  # a complete request is waiting for a worker or with one, or a head for the gate's decision
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
    budget: Budget
    readers: Readers
    pages: ErrorPages
    admit: Callable[[Connection, Request, float], Verdict]
    identify: Callable[[Connection, tuple[str, int], float], Refusal | Cut | None]  # once a PROXY header names the peer
    dispatch: Callable[[Connection, Request, float], Refusal | None]
    withdraw: Callable[[Connection, Request], bool]  # what was dispatched and no worker has taken; whether it was so
    responded: Callable[[Any, int], None]  # what the limiter hung on a request, and the status of its response
    log_refusal: Callable[[Connection, Request, Refusal, int], None]  # with the bytes that were answered
    log_cut: Callable[[Connection, Request | None, Cut], None]  # the request that is not answered because of it
    log_turned_away: Callable[[Refusal, str, str], None]  # a client that was refused before it could ask, its address
    give_way: Callable[[], None] = lambda: None  # lets go of the interpreter lock, if a worker is waiting for it
    draining: bool = False

    def idle_s(self) -> float:
        """Return how long a connection may stay idle. Any thread."""
        return DRAIN_IDLE_S if self.draining else self.settings.timeouts.keep_alive


def new_request_id() -> str:
    """Return an id to find a request by: unlikely to repeat, but no secret, and no system call."""
    return f"{random.getrandbits(64):016x}"


class Connection:
    """See the module's head for which thread may call what."""

    __slots__ = (
        "_aborted", "_ahead_counted", "_ctx", "_deciding", "_drained", "_ended_by", "_proxy_header", "_reading",
        "_served", "_writing", "abandon", "ahead", "begun", "client", "eof", "linger_until", "lingered", "listener",
        "lock", "open_ended", "opened", "outbox", "peer", "phase", "read_deadline", "refused", "request", "secure",
        "slot", "transport", "trusted", "waited_since", "write_deadline",
    )  # fmt: skip

    def __init__(
        self,
        ctx: EdgeContext,
        transport: Transport,
        peer: tuple[str, int],
        client: str,
        listener: Listener,
        now: float,
        *,
        trusted: bool = False,
        proxy_protocol: bool = False,
    ) -> None:
        # For its lifetime.
        self._ctx = ctx
        self.transport = transport
        self.peer = peer  # host and port; ("unix:", 0) on a Unix socket
        self.client = client  # by whom it is counted; "" is nobody in particular
        self.trusted = trusted  # the peer is a proxy whose word for who the client is counts
        self.secure = False  # the client speaks TLS with the proxy in front, which says so in its PROXY header
        self.opened = now
        self.listener = listener
        self.lock = threading.Lock()
        self.phase: Phase = IDLE
        self.slot: int | None = None
        self._reading = True
        self._writing = False
        self.eof = False
        self._served = 0  # requests
        self.refused = False  # the last of them
        self._ended_by: Cut = refusals.CLIENT_LEFT
        # For one request.
        self.request: Request | None = None
        self._deciding = False  # BUSY, and no worker knows of it
        self.ahead = b""  # arrived, not parsed yet
        self._ahead_counted = 0
        self.read_deadline = now + min(ctx.settings.timeouts.first_byte, ctx.idle_s())
        self._proxy_header: ProxyHeader | None = None  # while it is awaited
        if proxy_protocol:
            self._proxy_header = ProxyHeader()
            self.read_deadline = min(self.read_deadline, now + ctx.settings.timeouts.header)
        self.lingered = 0  # bytes
        self.linger_until = math.inf
        # For one response.
        self.write_deadline = math.inf
        self.outbox: Outbox | None = None  # each response's last bytes are followed by its report
        self._drained: threading.Condition | None = None  # where a worker waits for `outbox` to shrink
        self.waited_since = math.inf  # monotonic seconds, while a worker does
        self.begun = False  # some of a response in parts may have left
        self.open_ended = False  # a response whose end only the app knows
        self.abandon: Callable[[], bool] | None = None  # interrupts the app's wait between two chunks
        self._aborted: str = ""  # what was sent of a response is all there will be: "end" or "reset" the connection

    def __repr__(self) -> str:
        return (
            f"<Connection {self.peer[0]}:{self.peer[1]} {self.phase.value} ahead={len(self.ahead)} "
            f"unsent={self.outbox!r}{' eof' if self.eof else ''}>"
        )

    def deadline(self) -> float:
        # While something is unsent the client is held to taking it, and to nothing else.
        return self.write_deadline if self.outbox is not None else self.read_deadline

    @property
    def idle_since(self) -> float | None:
        """Since when nothing has been asked here, None when something is in progress. I/O thread."""
        if self.phase is not IDLE or self.outbox is not None:
            return None
        return self.read_deadline - self._ctx.settings.timeouts.keep_alive if self._served else self.opened

    # --- I/O thread: reading ---

    def on_readable(self, now: float) -> bool:
        """Take what has arrived and do what follows from it; return whether anything had. I/O thread."""
        room = READ_BYTES if self.phase is IDLE and self.outbox is None and not self.ahead else self._room()
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
            if self.lingered > self._ctx.settings.limits.linger:
                self.cut(refusals.LINGER_DEADLINE, now)
            elif self.read_deadline < math.inf:  # else its answer has not left yet
                self.read_deadline = min(now + self._ctx.settings.timeouts.linger, self.linger_until)
        else:
            self.ahead = self.ahead + data if self.ahead else data
            self._advance(now)
        return True

    def _room(self) -> int:
        """Return how much to read at once."""
        if self.phase is BODY and self.outbox is None and self.request is not None and self.request.chunked:
            return CHUNKED_READ_BYTES
        if self.phase is LINGER:
            return READ_BYTES
        if self.ahead or self.phase is BUSY or self.outbox is not None:
            # Not none where memory is short: an end of the stream is to be seen. What comes stops the reading.
            if self._ctx.budget.memory_short:
                return 1
            return max(1, min(READ_BYTES, self._ctx.settings.limits.pipeline - len(self.ahead)))
        return READ_BYTES

    def _advance(self, now: float) -> None:
        """Parse what has arrived, as far as it may be answered now; harmless when there is nothing.

        `phase` is read without the lock: a worker that is still sending has gone IDLE before, and what the next
        request is answered queues behind it.
        """
        refused = self._served
        while self.ahead and self.phase is not BUSY and self.outbox is None:
            if self.phase is LINGER or self.phase is CLOSED:
                self.ahead = b""
            elif self._served - refused >= REFUSALS_PER_TURN:
                self._ctx.poller.wake(self)  # the rest in the next turn: others have asked, too
                break
            else:
                self._parse_ahead(now)
        if self.ahead or self._ahead_counted or not self._reading:
            self._bound_ahead()

    def _bound_ahead(self) -> None:
        """Read on only while what cannot be parsed yet is within its bounds."""
        self._ctx.budget.add("", len(self.ahead) - self._ahead_counted, 0)
        self._ahead_counted = len(self.ahead)
        if self.eof or self.phase is CLOSED:
            return
        full = len(self.ahead) >= self._ctx.settings.limits.pipeline or self._ctx.budget.memory_short
        reading = not (self.ahead and full)
        if reading != self._reading:
            self._update_interest(read=reading)

    def _parse_ahead(self, now: float) -> None:
        if self._proxy_header is not None:
            self._read_proxy_header(self._proxy_header, now)
            return
        request = self.request
        if request is None:
            request = self.request = Request(self._ctx.rules, now)
        data = self.ahead
        had_head = request.headers_finished
        consumed = request.feed(data)
        self.ahead = data[consumed:] if consumed < len(data) else b""
        if request.refusal is not None:
            self.refuse(request.refusal, now)
        elif had_head or not request.headers_finished:
            self._receive_on(request, now)
        else:
            self._served += 1
            if not request.request_id:
                request.request_id = new_request_id()
            verdict = self._ctx.admit(self, request, now)
            if verdict is None:
                self._let_in(request, now)
            elif verdict is PENDING:
                self._await_decision(now)
            else:
                self.refuse(verdict, now)

    def _read_proxy_header(self, header: ProxyHeader, now: float) -> None:
        """Take the PROXY protocol's header off the front, and know the peer by what it says."""
        self.ahead = self.ahead[header.feed(self.ahead) :]
        if header.malformed:
            self.cut(refusals.BAD_PROXY_HEADER, now)
        elif header.complete:
            self._proxy_header = None
            self.secure = header.secure
            trouble = None if header.source is None else self._ctx.identify(self, header.source, now)
            if isinstance(trouble, Refusal):
                self._turn_away(trouble, now)
            elif trouble is not None:
                self.cut(trouble, now)

    def _turn_away(self, refusal: Refusal, now: float) -> None:
        """End a connection that should not have been let in, with an answer to the request that is to come."""
        self.phase = LINGER
        if self._send(self._ctx.pages.turned_away(refusal, self._ctx.date.text()), now) and self.outbox is None:
            self._linger(now)

    def _await_decision(self, now: float) -> None:
        """Wait, as for a worker, for what the gate cannot tell without something that may block."""
        self.read_deadline = math.inf
        if self.phase is not IDLE:
            self._ctx.poller.watch(self, now)
        self.phase = BUSY
        self._deciding = True

    def decided(self, request: Request, refusal: Refusal | None, now: float) -> None:
        """Go on with a request of which the gate could not tell at once whether it may come in. I/O thread."""
        if self.phase is not BUSY or self.request is not request:
            return  # its client has gone
        self._deciding = False
        if refusal is not None:
            self.refuse(refusal, now)
        else:
            self.phase = HEAD
            self._let_in(request, now)
        self.settle(now)

    def _let_in(self, request: Request, now: float) -> None:
        """The gate has admitted `request`: take its body, or have it served."""
        if request.completed:
            # An ordinary one: no body, its head came in one piece, and nothing of it is kept.
            self._dispatch(request, now)
            return
        refusal = self._hold(request)
        if refusal is not None:
            self.refuse(refusal, now)
            return
        request.body_since = now
        if not request.expect_continue or self.ahead or self._send(CONTINUE, now):
            self._await(BODY, self._body_deadline(request, now), now)

    def _receive_on(self, request: Request, now: float) -> None:
        refusal = self._hold(request)
        if refusal is not None:
            self.refuse(refusal, now)
        elif request.completed:
            self._dispatch(request, now)
        elif request.headers_finished:
            self._await(BODY, self._body_deadline(request, now), now)
        elif self.phase is not HEAD and request.head:
            self._await(HEAD, now + self._ctx.settings.timeouts.header, now)

    def _hold(self, request: Request) -> Refusal | None:
        """Count what is kept of a request that is more than a head in one piece."""
        # Behind a proxy, whose request it is shows in its head.
        client = request.client or self.client
        if request.holding is None or request.holding.client != client:
            if request.holding is not None:
                request.holding.release()
            request.holding = Holding(self._ctx.budget, client)
        try:
            if self._ctx.budget.memory_short and request.headers_finished:
                request.to_file()
            memory, files = request.buffered()
            fits = request.holding.update(memory, files)
            if not fits and memory > files and request.headers_finished:
                request.to_file()  # a disk may still have the room that memory has not
                fits = request.holding.update(*request.buffered())
        except OSError:
            return refusals.BODY_NOT_STORED
        return None if fits else refusals.BUFFERS_FULL

    def _body_deadline(self, request: Request, now: float) -> float:
        """Return when a body is late whose client sends nothing from now on: an idle limit, a rate, a ceiling."""
        return min(now + self._ctx.settings.timeouts.body, *self._body_ends(request))

    def _body_ends(self, request: Request) -> tuple[float, float]:
        """Return when a body is too slow with what has come of it, and when it has taken too long in all."""
        timeouts, rate = self._ctx.settings.timeouts, self._ctx.settings.limits.body_rate
        received = 0 if request.body_rcv is None else len(request.body_rcv)
        slow = request.body_since + timeouts.rate_grace + received / rate if rate else math.inf
        return slow, request.body_since + timeouts.body_total if timeouts.body_total else math.inf

    def _why_late(self, request: Request, now: float) -> Refusal:
        slow, total = self._body_ends(request)
        if now >= total:
            return refusals.BODY_TOTAL_DEADLINE
        return refusals.BODY_TOO_SLOW if now >= slow else refusals.BODY_DEADLINE

    def _dispatch(self, request: Request, now: float) -> None:
        self.read_deadline = math.inf
        if self.phase is not IDLE:
            # It is filed for a deadline that may be later than the one `finish` will set.
            self._ctx.poller.watch(self, now)
        if request.holding is not None and request.body_rcv is None:
            request.holding.release()
        self.phase = BUSY
        self.refused = False
        settings = self._ctx.settings
        if self._served >= settings.limits.connection_requests or now - self.opened >= settings.timeouts.connection:
            request.keep_alive = False
            self._ctx.log_cut(self, None, refusals.CONNECTION_WORN)
        refusal = self._ctx.dispatch(self, request, now)
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
        self.refused = True
        close = refusal.close or self._ctx.draining or not (request.completed and request.keep_alive)
        if not close and self._served >= self._ctx.settings.limits.connection_requests:
            self._ctx.log_cut(self, None, refusals.CONNECTION_WORN)
            close = True
        self._end_request()
        if close:
            self.phase = LINGER
            self.ahead = b""
        else:
            self.phase = IDLE
            self.read_deadline = now + self._ctx.idle_s()
        self._answer(request, refusal, now, close=close)

    def _answer(self, request: Request, refusal: Refusal, now: float, *, close: bool) -> None:
        request.request_id = request.request_id or new_request_id()
        if request.rate_slots is not None:
            self._ctx.responded(request.rate_slots, refusal.status)
        answer = self._ctx.pages.response(
            refusal,
            accept=request.headers.get("HTTP_ACCEPT", ""),
            request_id=request.request_id,
            date=self._ctx.date.text(),
            head_only=request.command == "HEAD",
            close=close,
            fields=request.refusal_fields,
        )
        alive = self._send(answer, now)
        self._ctx.log_refusal(self, request, refusal, len(answer))
        if alive and close and self.outbox is None:
            self._linger(now)

    def refuse_waiting(self, refusal: Refusal, now: float) -> None:
        """Refuse a request that was dispatched and that no worker has taken or will take. I/O thread."""
        if self.phase is BUSY:
            self.refuse(refusal, now)
            self.settle(now)
        elif self.request is not None:  # its client did not wait either
            self._ctx.log_cut(self, self.request, self._ended_by)
            self._end_request()

    def expire(self, request: Request, now: float) -> bool:
        """Answer in the place of a worker that takes too long; return whether there was anything to answer.

        From here on, what the worker does about this request is dropped. I/O thread.
        """
        with self.lock:
            if self.phase is not BUSY or self.request is not request:
                return False  # it was answered, or its client has gone
            begun, abandon = self.begun, self.abandon
            request.expired = True
            self._forget_request()
            if begun:
                self.abandon = abandon  # nobody reads on: what it waits for, it waits for in vain
            self.phase = LINGER
            self._ended_by = refusals.APP_DEADLINE_MIDWAY
        self.ahead = b""
        if begun:
            self._ctx.log_cut(self, request, refusals.APP_DEADLINE_MIDWAY)
            self.close(reset=True, why=refusals.APP_DEADLINE_MIDWAY)
            self.read_deadline = math.inf
            if self.abandon is not None:
                self._begin_abandoning(now)
        else:
            self._answer(request, refusals.APP_DEADLINE, now, close=True)
        return True

    def cut(self, why: Cut, now: float) -> None:  # noqa: ARG002  # Reader's contract
        """End the connection at once and without a word. I/O thread."""
        self._ctx.log_cut(self, None, why)
        self.close(why=why)

    def _end_request(self) -> None:
        request = self.request
        if request is not None:
            if request.body_rcv is not None or request.holding is not None:
                request.close()
            self.request = None

    def _send(self, data: bytes, now: float) -> bool:
        """Send from the I/O thread, never waiting; return whether the connection is still there."""
        try:
            with self.lock:
                self._send_or_keep(data)
        except OSError:
            self.close()
            return False
        if self.outbox is not None:
            self._await_writable(now)
        return self.phase is not CLOSED

    def _await_writable(self, now: float) -> None:
        """Have the rest sent when the socket takes it; it may be cut at once, if memory is short."""
        self.write_deadline = now + min(LOOK_S, self._ctx.settings.timeouts.response)
        self._update_interest(write=True)
        self._ctx.poller.watch(self, now)
        self._ctx.readers.add(self, now)

    def on_writable(self, now: float) -> None:
        """Send what the socket takes of what is unsent. I/O thread."""
        reports: list[Report] = []
        try:
            with self.lock:
                reports = self._flush()
        except OSError:
            self.close()
        for report in reports:
            report(0, "")
        self.settle(now)

    def _flush(self) -> list[Report]:
        """Send from the outbox, and let go of it when it is empty; return the reports that are due.

        The caller holds the lock. Raises OSError.
        """
        outbox = self.outbox
        if outbox is None:
            return []
        reports = outbox.send(self.transport.send)
        if self._drained is not None and outbox.memory <= self._ctx.settings.limits.response_buffer // 2:
            self._drained.notify()
        if not outbox:
            outbox.close()
            self.outbox = None
        return reports

    def _look_at_reader(self, outbox: Outbox, now: float) -> None:
        """Hold the client to taking its response: an idle limit, and a rate. I/O thread."""
        settings = self._ctx.settings
        timeouts, rate = settings.timeouts, settings.limits.response_rate
        # What the kernel took is not what the client took: its buffer may hold megabytes, and then stay full for
        # minutes while a slow but honest client reads.
        taken = outbox.acknowledged(self.transport.unacknowledged())
        if taken > outbox.seen:
            outbox.seen, outbox.seen_at = taken, now
        idle = outbox.seen_at + timeouts.response
        slow = outbox.since + timeouts.rate_grace + taken / rate if rate else math.inf
        if now >= idle:
            self.cut(refusals.RESPONSE_DEADLINE, now)
        elif now >= slow:
            self.cut(refusals.RESPONSE_TOO_SLOW, now)
        else:
            self.write_deadline = min(idle, slow, now + LOOK_S)

    @property
    def unsent_since(self) -> float:
        """Since when something has been unsent, `math.inf` if nothing is. I/O thread."""
        outbox = self.outbox
        return math.inf if outbox is None else outbox.since

    @property
    def unsent_memory(self) -> int:
        """Bytes of a response that are kept in memory. I/O thread."""
        outbox = self.outbox
        return 0 if outbox is None else outbox.memory

    def reading_rate(self, since: float, now: float) -> float:
        """Return the bytes a second at which the client has taken its response.

        `since` is `waited_since` or `unsent_since`. I/O thread.
        """
        outbox = self.outbox
        if outbox is None:
            return math.inf
        taken = outbox.acknowledged(self.transport.unacknowledged())
        if since == self.waited_since:
            # Before that, its kernel took megabytes of which the client itself need not have read any.
            taken -= outbox.taken_before_wait
        return taken / max(JUDGED_S, now - since)

    def settle(self, now: float) -> None:
        """Do what follows from what a worker, or the client, has done to this connection. I/O thread."""
        with self.lock:
            # No worker is inside `finish` now, so that these belong together.
            phase, aborted, outbox = self.phase, self._aborted, self.outbox
            sendable = outbox is not None and outbox.sendable
        if phase is CLOSED:
            if self.abandon is not None:
                self._begin_abandoning(now)  # the stream began after its client had gone
            return
        if aborted:
            self.close(reset=aborted == "reset")
            return
        if outbox is not None:
            if sendable and not self._writing:
                self._await_writable(now)
            elif self._writing and not sendable:
                self._update_interest(write=False)  # the worker is still writing to the file, and will wake this
            if self.waited_since < math.inf and self.phase is not CLOSED:
                self._ctx.readers.add(self, now)
            return
        if self._writing:
            self.write_deadline = math.inf
            self._update_interest(write=False)
            self._ctx.readers.discard(self)
        if phase is LINGER:
            self._linger(now)
        else:
            self._read_on(phase, now)

    def _read_on(self, phase: Phase, now: float) -> None:
        if self.read_deadline == math.inf and phase is not BUSY:
            # Its client has just read the last of a response, and may have begun with the next request meanwhile.
            if phase is HEAD:
                self.read_deadline = now + self._ctx.settings.timeouts.header
            elif phase is BODY and self.request is not None:
                self.request.body_since = now  # nothing was read meanwhile
                self.read_deadline = self._body_deadline(self.request, now)
            else:
                self.read_deadline = now + self._ctx.idle_s()
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
            return not self.ahead and self.phase not in (BUSY, LINGER, CLOSED) and self.outbox is None

    def _linger(self, now: float) -> None:
        """Let the client read the last answer: closing with unread bytes would reset it (RFC 9112 9.6)."""
        if self.eof:
            self.close()
            return
        self.transport.shutdown_write()
        if self.ahead or self._ahead_counted:
            self.ahead = b""  # it will not be answered
            self._bound_ahead()
        timeouts = self._ctx.settings.timeouts
        self.linger_until = now + timeouts.linger_total
        self.read_deadline = min(now + timeouts.linger, self.linger_until)
        if not self._reading:
            self._update_interest(read=True)
        self._ctx.poller.watch(self, now)

    def on_deadline(self, now: float) -> None:
        """End what has run out of time. I/O thread."""
        if self.phase is CLOSED:
            # Cut in this turn by something else that was due; or its app is to be told, and may have come back itself.
            if (abandon := self.abandon) is not None and self.read_deadline <= now:
                self._abandon(abandon, now)
            return
        if self.deadline() <= now:
            self._end_for_time(now)
        if self.phase is not CLOSED:
            self._ctx.poller.watch(self, now)  # it has been given more time, by this or by a worker

    def _end_for_time(self, now: float) -> None:
        outbox = self.outbox
        if outbox is not None:
            self._look_at_reader(outbox, now)
        elif (abandon := self.abandon) is not None and self.client_gone():
            self._abandon(abandon, now)
        elif self.phase is HEAD:
            self.refuse(refusals.HEADER_DEADLINE, now)
        elif self.phase is BODY and self.request is not None:
            self.refuse(self._why_late(self.request, now), now)
        elif self.phase is LINGER:
            self.cut(refusals.LINGER_DEADLINE, now)
        elif self.phase is BUSY:
            return  # a worker is just letting go of it, and has given it more time
        elif self.phase is not IDLE or not self.on_readable(now):  # what came since this turn began is not late
            if self._ctx.draining:
                self.cut(refusals.DRAINED, now)
            else:
                self.cut(refusals.KEEP_ALIVE_DEADLINE if self._served else refusals.FIRST_BYTE_DEADLINE, now)

    def begin_drain(self, now: float) -> None:
        """Close soon if idle, but not at once: a request may be on its way, and is answered. I/O thread."""
        with self.lock:
            if self.phase is IDLE and self.outbox is None:
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

    def close(self, *, reset: bool = False, why: Cut = refusals.CLIENT_LEFT) -> None:
        """Close the socket; a worker that still answers gets ClientDisconnectedError. I/O thread."""
        if self.phase is CLOSED:
            return
        self._ctx.poller.closed(self)
        self._ctx.readers.discard(self)
        reports: list[tuple[Report, int]] = []
        with self.lock:
            phase = self.phase
            # Half a response must not look like a whole one, and its end may be all that marks it as such.
            halfway = self.outbox is not None or (phase is BUSY and self.begun)
            self.phase = CLOSED
            self._ended_by = why
            self.transport.close(reset=reset or halfway)
            if self.outbox is not None:
                reports = self.outbox.close()
                self.outbox = None
            if self._drained is not None:
                self._drained.notify()
        for report, unsent in reports:
            report(unsent, why.name)
        self.ahead = b""
        if self._ahead_counted:
            self._bound_ahead()
        self.write_deadline = math.inf
        if phase is BODY and self.request is not None:
            self._ctx.log_cut(self, self.request, why)
        if (
            phase is BUSY
            and (request := self.request) is not None
            and (self._deciding or self._ctx.withdraw(self, request))
        ):
            # Nobody waits for it, and in the queue it would take the place of somebody who does.
            self._ctx.log_cut(self, request, why)
            phase = CLOSED
        if phase is not BUSY:
            self._end_request()  # of a busy one the worker still reads the body
            return
        self.read_deadline = math.inf
        if self.abandon is not None:
            self._begin_abandoning(monotonic())

    def _update_interest(self, *, read: bool | None = None, write: bool | None = None) -> None:
        self._reading = self._reading if read is None else read
        self._writing = self._writing if write is None else write
        self._ctx.poller.set_interest(self, read=self._reading, write=self._writing)

    # --- worker thread ---

    def _send_or_keep(self, data: bytes) -> None:
        """Send what the socket takes and keep the rest in memory. The caller holds the lock; raises OSError."""
        rest = self._offer(data)
        if rest is not None:
            self._keep_in().put(rest)

    def _offer(self, data: bytes) -> memoryview | None:
        """Send what the socket takes, if it is due, and return the rest, None if that is nothing."""
        sent = 0
        if self.outbox is None:
            sent = self.transport.send(data)
            if sent == len(data):
                return None
        return memoryview(data)[sent:]

    def _keep_in(self) -> Outbox:
        if self.outbox is None:
            self.outbox = Outbox(self._ctx.budget, monotonic(), self.transport.unacknowledged())
        return self.outbox

    def client_gone(self) -> bool:
        """Return whether nobody seems to be left to read the response. Any thread."""
        return self.phase in (LINGER, CLOSED) or (self.eof and self.open_ended)

    def write(self, data: bytes) -> None:
        """Send a part of a response, waiting while the client has too much of it unread. Worker thread.

        Raises ClientDisconnectedError when the client has gone, or was cut: its text is the reason.
        """
        limits = self._ctx.settings.limits
        with self.lock:
            self._check_mine()
            self.begun = True
            if self.eof and self.read_deadline != math.inf:
                self.read_deadline = monotonic() + self._ctx.settings.timeouts.abandoned  # the app is not stuck
            try:
                rest = self._offer(data)
            except OSError as error:
                raise ClientDisconnectedError(refusals.CLIENT_LEFT.name) from error
            if rest is None:
                return
            outbox = self._keep_in()
            store = outbox.memory + len(rest) > limits.response_buffer and outbox.may_store(
                len(rest), limits.response_file
            )
            if store:
                outbox.begin_storing()
            else:
                outbox.put(rest)
        if store:
            stretch = None
            try:
                stretch = outbox.store(rest)
            finally:
                with self.lock:
                    outbox.end_storing(rest, stretch)
        if outbox.memory > limits.response_buffer:
            self._wait_until_drained(outbox)
        else:
            self._ctx.poller.wake(self)

    def _check_mine(self) -> None:
        if self.phase is not BUSY:
            raise ClientDisconnectedError(self._ended_by.name)

    def _wait_until_drained(self, outbox: Outbox) -> None:
        limit = self._ctx.settings.limits.response_buffer // 2
        with self.lock:
            self._check_mine()
            self._drained = threading.Condition(self.lock)
            outbox.taken_before_wait = outbox.acknowledged(self.transport.unacknowledged())
            self.waited_since = monotonic()
            self._ctx.poller.wake(self)
            # Ends by itself: a client that takes nothing, or too little, is cut, and that notifies.
            while self.phase is BUSY and outbox.memory > limit:
                self._drained.wait()
            self._drained = None
            self.waited_since = math.inf
            self._check_mine()

    def finish(self, data: bytes, *, keep_alive: bool, flushed: Report) -> None:
        """Send the last bytes of a response and hand the connection back to the I/O thread. Worker thread.

        `flushed` is called with the number of bytes that never left and the reason, by this thread if all of them
        fit, else by the I/O thread when they are sent or the connection is closed. Nothing of this connection may be
        touched after.
        """
        with self.lock:
            self._forget_request()
            if self.phase is not BUSY:
                unsent = len(data)
            else:
                self.read_deadline = monotonic() + self._ctx.idle_s()
                self.phase = IDLE if keep_alive else LINGER  # before sending: see the module's head
                unsent = 0
                if data:
                    try:
                        self._send_or_keep(data)
                    except OSError:
                        unsent, self._aborted = len(data), "end"
                if self.outbox is not None:
                    self.read_deadline = math.inf  # being idle begins when the client has it all
                    self.outbox.report_when_sent(flushed)
                    self._ctx.poller.wake(self)
                    return
        flushed(unsent, self._ended_by.name if unsent else "")
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
        with self.lock:
            if self.phase not in (BUSY, CLOSED):
                return  # it was taken from this worker
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
            if self.phase is not BUSY:
                return
            self._aborted = "reset" if reset else "end"
            self.phase = LINGER
            reports = []
            if self.outbox is not None:
                reports = self.outbox.close()
                self.outbox = None
        for report, unsent in reports:
            report(unsent, self._ended_by.name)
        self._ctx.poller.wake(self)

    def _forget_request(self) -> None:
        """Let go of what belongs to the response that ends here, also when the connection is closed already.

        The caller is the worker and holds the lock.
        """
        self.request = None
        self.begun = False
        self.open_ended = False
        self.abandon = None
