"""One client connection: what it is doing, who may touch it, and the only two ways bytes leave it.

Theory of operation
-------------------
The I/O thread reads, parses and judges. When a request is complete it calls `EdgeContext.dispatch`, and the
connection is BUSY: from then on one worker, and no other, answers through `write` and `finish`. `finish` hands the
connection back. It is BUSY, too, while a check thread finds out what the gate could not tell at once; then `decided`
goes on with it, on the I/O thread. Nor does a request for a file need a worker: `EdgeContext.serve_file` is asked
first, and answers through `answer`, at once or when a file thread has opened the file.

What is read and decided is here; what leaves, whoever makes it, is in the half that is edge.sending.

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
that would keep too many workers. A part of a response that is a file waits in `outbox`, too, but not in memory: the
kernel sends it, a slice in each turn. What the kernel would have to wait for is read by a file thread first, and while
it is, nothing leaves, no socket is watched for room, and the client's time does not run (edge.fileparts).

A worker that does not come back in time loses its connection: `expire` answers in its place and takes the connection
out of BUSY, and whatever the worker does after that finds that it is not its own any more, and is dropped.

A client that has gone shows as an error on send, or as the end of its stream. The latter may also be a client that
has only finished *sending* (RFC 9112 9.6), so what the app produces is still sent, and fails soon if nobody is there.
Only when an answer of no known length says nothing for `timeouts.abandoned` after that is its app interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from hardserve import refusals
from hardserve.edge import bodies
from hardserve.edge.context import (
    BODY,
    BUSY,
    CLOSED,
    DRAIN_IDLE_S,
    HANDSHAKE,
    HEAD,
    IDLE,
    LINGER,
    EdgeContext,
    Phase,
    Poller,
    new_request_id,
)
from hardserve.edge.gate import PENDING
from hardserve.edge.handshake import HandshakeError, PlainHttpError
from hardserve.edge.parsing import Request
from hardserve.edge.proxyprotocol import ProxyHeader
from hardserve.edge.sending import Sending
from hardserve.edge.tls import TlsTransport
from hardserve.edge.tlsfacts import Facts
from hardserve.protocol import CONTINUE
from hardserve.refusals import Cut, Refusal

if TYPE_CHECKING:
    from hardserve.edge.listener import Listener
    from hardserve.edge.outbox import Report
    from hardserve.edge.transport import Transport
    from hardserve.protocol import FilePart

__all__ = ["BODY", "BUSY", "CLOSED", "HEAD", "IDLE", "LINGER", "Connection", "EdgeContext", "Phase", "Poller"]

READ_BYTES = 65536
# Small chunks take longer to take apart than anything else a client can send, ten milliseconds for the size above. In
# parts, so that a dozen such clients do not hold up the others.
CHUNKED_READ_BYTES = 8192
# Requests of one connection that are refused in one turn, so that a pipeline of them does not hold up the others.
REFUSALS_PER_TURN = 16


class Connection(Sending):
    """See the module's head for which thread may call what."""

    __slots__ = (
        "_ahead_counted", "_deciding", "_proxy_header", "_reading", "_served", "_steps", "client", "linger_until",
        "lingered",
        "listener", "opened", "peer", "refused", "secure", "slot", "trusted",
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
        super().__init__(ctx, transport)
        # For its lifetime.
        self.peer = peer  # host and port; ("unix:", 0) on a Unix socket
        self.client = client  # by whom it is counted; "" is nobody in particular
        self.trusted = trusted  # the peer is a proxy whose word for who the client is counts
        self.secure = False  # the client speaks TLS with the proxy in front, which says so in its PROXY header
        self.opened = now
        self.listener = listener
        self.slot: int | None = None
        self._reading = True
        self._served = 0  # requests
        self.refused = False  # the last of them
        # For one request.
        self._deciding = False  # BUSY, and no worker knows of it
        self._ahead_counted = 0
        self.read_deadline = now + min(ctx.settings.timeouts.first_byte, ctx.idle_s())
        self._steps = 0  # of the handshake
        if isinstance(transport, TlsTransport):
            self._expect_handshake(now)
        self._proxy_header: ProxyHeader | None = None  # while it is awaited
        if proxy_protocol:
            self._proxy_header = ProxyHeader()
            self.read_deadline = min(self.read_deadline, now + ctx.settings.timeouts.header)
        self.lingered = 0  # bytes
        self.linger_until = math.inf

    def __repr__(self) -> str:
        return (
            f"<Connection {self.peer[0]}:{self.peer[1]} {self.phase.value} ahead={len(self.ahead)} "
            f"unsent={self.outbox!r}{' eof' if self.eof else ''}>"
        )

    @property
    def tls(self) -> Facts | None:
        """What the connection is secured with here, None if it is plain. Any thread."""
        transport = self.transport
        return transport.facts if isinstance(transport, TlsTransport) else None

    @property
    def awaits_proxy_header(self) -> bool:
        """Whether its peer is still to say whom the connection is of. I/O thread."""
        return self._proxy_header is not None

    @property
    def idle_since(self) -> float | None:
        """Since when nothing has been asked here, None when something is in progress. I/O thread."""
        if self.phase is HANDSHAKE:
            return self.opened  # so that a crowd that never ends it keeps nobody out
        if self.phase is not IDLE or self.outbox is not None:
            return None
        return self.read_deadline - self._ctx.settings.timeouts.keep_alive if self._served else self.opened

    # --- I/O thread: reading ---

    def on_readable(self, now: float) -> bool:
        """Take what has arrived and do what follows from it; return whether anything had. I/O thread."""
        if self.phase is HANDSHAKE:
            self._shake_hands(now)
            return True
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
        if self._reading and self.transport.pending():
            self._ctx.poller.read_again(self)
        return True

    def on_unread(self, now: float) -> None:
        """Go on with what is inside the transport, unless reading is paused. I/O thread."""
        if self._reading:
            self.on_readable(now)

    # --- I/O thread: the handshake ---

    def _expect_handshake(self, now: float) -> None:
        self.phase = HANDSHAKE
        self.secure = True
        self.read_deadline = now + self._ctx.settings.timeouts.handshake

    def _shake_hands(self, now: float) -> None:
        """Go on with the handshake as far as what has arrived allows. A helper thread computes (edge.handshaker)."""
        transport = self.transport
        assert isinstance(transport, TlsTransport)
        if transport.computing:
            self._update_interest(read=False, write=False)  # its client cannot wait
            return
        try:
            need = transport.advance()
        except PlainHttpError:
            self.secure = False
            self.transport = transport.as_plain()
            self._turn_away(refusals.PLAIN_ON_TLS_PORT, now)
            self._ctx.log_turned_away(refusals.PLAIN_ON_TLS_PORT, self.client, self.peer[0])
            return
        except OSError as error:
            self._ctx.log_handshake(
                self, error.reason if isinstance(error, HandshakeError) else f"{error.strerror or error}"
            )
            self.cut(refusals.HANDSHAKE_FAILED, now)
            return
        if need == "compute":
            self._steps += 1
            if not self._ctx.compute(
                self.client, transport.compute, self._shake_hands, self._shakes_hands, now, self._steps > 1
            ):
                self.cut(refusals.HANDSHAKES_FULL, now)
            return
        reading, writing = need != "write", need == "write"
        if (reading, writing) != (self._reading, self._writing):
            self._update_interest(read=reading, write=writing)
        if need == "done" and transport.facts is not None and transport.facts.alpn == "acme-tls/1":
            self.close()  # the certificate was all that was asked for (RFC 8737 3)
        elif need == "done":
            self.phase = IDLE
            self.read_deadline = now + min(self._ctx.settings.timeouts.first_byte, self._ctx.idle_s())
            self._watch(now)
            if transport.pending():
                self._ctx.poller.read_again(self)

    def _shakes_hands(self) -> bool:
        return self.phase is HANDSHAKE

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
                self._wake()  # the rest in the next turn: others have asked, too
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
            if self._ctx.secure is not None and self.listener.tls and trouble is None:
                first, self.ahead = self.ahead, b""
                self.transport = self._ctx.secure(self.transport, first)  # type: ignore[arg-type]
                self._expect_handshake(now)
                self._shake_hands(now)
            elif isinstance(trouble, Refusal) and not self.listener.tls:
                self._turn_away(trouble, now)
            elif isinstance(trouble, Refusal):
                self.close()  # an answer in plain text would not be understood
            elif trouble is not None:
                self.cut(trouble, now)

    def _turn_away(self, refusal: Refusal, now: float) -> None:
        """End a connection that should not have been let in, with an answer to the request that is to come."""
        self.phase = LINGER
        if self._send(self._ctx.pages.turned_away(refusal, self._ctx.date.text()), now) and self.outbox is None:
            self._linger(now)

    def _await_decision(self, now: float, deadline: float = math.inf) -> None:
        """Wait, as for a worker, for what cannot be told without something that may block."""
        self.read_deadline = deadline
        if self.phase is not IDLE or deadline < math.inf:
            self._watch(now)
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

    def await_file(self, now: float) -> None:
        """Wait for a file thread to find out how the request is answered: `EdgeContext.serve_file` calls this.

        It is followed by `answer`, `pass_on` or, with a refusal, `decided`, unless that takes longer than an app may
        (`timeouts.app`) and the client is told so. I/O thread.
        """
        self._await_decision(now, now + (self._ctx.settings.timeouts.app or math.inf))

    def awaits(self, request: Request) -> bool:
        """Return whether `request`, which `await_file` was called for, is still to be answered. I/O thread."""
        return self.phase is BUSY and self.request is request

    def pass_on(self, request: Request, now: float) -> None:
        """Have the app answer a request for which there is no file after all. I/O thread."""
        if self.phase is not BUSY or self.request is not request:
            return  # its client has gone
        self._deciding = False
        self.read_deadline = math.inf
        self._watch(now)
        refusal = self._ctx.dispatch(self, request, now)
        if refusal is not None:
            self.refuse(refusal, now)
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
            self._await(BODY, bodies.deadline(request, self._ctx.settings, now), now)

    def _receive_on(self, request: Request, now: float) -> None:
        refusal = self._hold(request)
        if refusal is not None:
            self.refuse(refusal, now)
        elif request.completed:
            self._dispatch(request, now)
        elif request.headers_finished:
            self._await(BODY, bodies.deadline(request, self._ctx.settings, now), now)
        elif self.phase is not HEAD and request.head:
            self._await(HEAD, now + self._ctx.settings.timeouts.header, now)

    def _hold(self, request: Request) -> Refusal | None:
        """Count what is kept of a request that is more than a head in one piece."""
        # Behind a proxy, whose request it is shows in its head.
        return bodies.hold(request, request.client or self.client, self._ctx.budget)

    def _dispatch(self, request: Request, now: float) -> None:
        self.read_deadline = math.inf
        if self.phase is not IDLE:
            # It is filed for a deadline that may be later than the one `finish` will set.
            self._watch(now)
        if request.holding is not None and request.body_rcv is None:
            request.holding.release()
        self.refused = False
        ctx = self._ctx
        settings = ctx.settings
        if self._served >= settings.limits.connection_requests or now - self.opened >= settings.timeouts.connection:
            request.keep_alive = False
            ctx.log_cut(self, None, refusals.CONNECTION_WORN)
        if ctx.serve_file is not None and (taken := ctx.serve_file(self, request, now)) is not False:
            if taken is not True:
                self.refuse(taken, now)
            return
        self.phase = BUSY
        refusal = ctx.dispatch(self, request, now)
        if refusal is not None:
            self.refuse(refusal, now)

    def _await(self, phase: Phase, deadline: float, now: float) -> None:
        self.phase = phase
        self.read_deadline = deadline
        self._watch(now)

    # --- I/O thread: answering, refusing, ending ---

    def will_close(self, request: Request) -> bool:
        """Return whether the connection ends with the answer to a request that is complete. I/O thread."""
        return not (request.completed and request.keep_alive and self.may_keep_alive())

    def answer(
        self,
        request: Request,
        data: bytes,
        *,
        keep_alive: bool,
        flushed: Report,
        file: Sequence[bytes | FilePart] = (),
        now: float,
    ) -> bool:
        """Answer a request without a worker: with `data`, and then the parts of `file`. I/O thread.

        Called by `EdgeContext.serve_file`, or after `await_file`. `keep_alive` is what `will_close` allows and `data`
        says. `flushed` is called as by `finish`, perhaps at once. Return False, and do nothing, if the request is no
        more: its client has gone, or was told that it takes too long. The connection holds the files for itself; the
        caller lets go of them in any case.
        """
        if self.request is not request:
            return False
        waited, self._deciding = self._deciding, False
        self._end_request()
        if keep_alive:
            self.phase = IDLE
            self.read_deadline = now + self._ctx.idle_s()
        else:
            self.phase = LINGER
            self.ahead = b""
        if self._send_response(data, file, flushed, now) and not keep_alive and self.outbox is None:
            self._linger(now)
        if waited:
            self.settle(now)
        return True

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
        fields = request.refusal_fields
        if self._ctx.tls_fields and self.tls is not None:
            fields += self._ctx.tls_fields
        answer = self._ctx.pages.response(
            refusal,
            accept=request.headers.get("HTTP_ACCEPT", ""),
            request_id=request.request_id,
            date=self._ctx.date.text(),
            head_only=request.command == "HEAD",
            close=close,
            fields=fields,
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

    def settle(self, now: float) -> None:
        """Do what follows from what a worker, or the client, has done to this connection. I/O thread."""
        with self.lock:
            # No worker is inside `finish` now, so that these belong together.
            phase, aborted, outbox = self.phase, self._aborted, self.outbox
            sendable = outbox is not None and outbox.sendable
        if phase is HANDSHAKE:
            return
        if phase is CLOSED:
            if self.abandon is not None:
                self._begin_abandoning(now)  # the stream began after its client had gone
            return
        if aborted:
            self.close(reset=aborted == "reset")
            return
        if outbox is not None:
            self._see_to_unsent(outbox, now, sendable=sendable)
            return
        if self._writing and not self.transport.wants_write:
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
                self.read_deadline = bodies.deadline(self.request, self._ctx.settings, now)
            else:
                self.read_deadline = now + self._ctx.idle_s()
        if phase is BUSY and self.eof and self.open_ended:
            self._begin_abandoning(now)
        self._advance(now)
        if self.eof and self._is_over():
            self.close()
        elif self.phase is not CLOSED:
            self._watch(now)

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
        if self.transport.wants_write and not self._writing:
            self._update_interest(write=True)  # close_notify; `on_writable` brings it on its way
        if self.ahead or self._ahead_counted:
            self.ahead = b""  # it will not be answered
            self._bound_ahead()
        timeouts = self._ctx.settings.timeouts
        self.linger_until = now + timeouts.linger_total
        self.read_deadline = min(now + timeouts.linger, self.linger_until)
        if not self._reading:
            self._update_interest(read=True)
        self._watch(now)

    def on_deadline(self, now: float) -> None:
        """End what has run out of time. I/O thread."""
        if self.phase is CLOSED:
            # Cut in this turn by something else that was due; or its app is to be told, and may have come back itself.
            if (abandon := self.abandon) is not None and self.read_deadline <= now:
                self._abandon(abandon, now)
            return
        if self.deadline() <= now and self.phase is HANDSHAKE:
            self.cut(refusals.HANDSHAKE_DEADLINE, now)
        elif self.deadline() <= now:
            self._end_for_time(now)
        if self.phase is not CLOSED:
            self._watch(now)  # it has been given more time, by this or by a worker

    def _end_for_time(self, now: float) -> None:
        outbox = self.outbox
        if outbox is not None:
            self._look_at_unsent(outbox, now)
        elif (abandon := self.abandon) is not None and self.client_gone():
            self._abandon(abandon, now)
        elif self.phase is HEAD:
            self.refuse(refusals.HEADER_DEADLINE, now)
        elif self.phase is BODY and self.request is not None:
            self.refuse(bodies.why_late(self.request, self._ctx.settings, now), now)
        elif self.phase is LINGER:
            self.cut(refusals.LINGER_DEADLINE, now)
        elif self._deciding and self.request is not None:
            self.decided(self.request, refusals.FILES_SLOW, now)
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
            silent = isinstance(self.transport, TlsTransport) and not self.transport.begun
            if (self.phase is IDLE and self.outbox is None) or (self.phase is HANDSHAKE and silent):
                self.read_deadline = min(self.read_deadline, now + DRAIN_IDLE_S)
        # A busy one will be given a shorter deadline by `finish` than the one it is filed under.
        self._watch(now)

    def close(self, *, reset: bool = False, why: Cut = refusals.CLIENT_LEFT) -> None:
        """Close the socket; a worker that still answers gets ClientDisconnectedError. I/O thread."""
        if self.phase is CLOSED:
            return
        self._ctx.poller.closed(self)
        self._ctx.readers.discard(self)
        self._ctx.downloads.discard(self)
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

    # --- what it asks of the loop ---

    def _wake(self) -> None:
        self._ctx.poller.wake(self)

    def _watch(self, now: float) -> None:
        self._ctx.poller.watch(self, now)

    def _update_interest(self, *, read: bool | None = None, write: bool | None = None) -> None:
        self._reading = self._reading if read is None else read
        self._writing = self._writing if write is None else write
        self._ctx.poller.set_interest(self, read=self._reading, write=self._writing)
        if read and self.transport.pending():
            self._ctx.poller.read_again(self)

    # --- worker thread ---
