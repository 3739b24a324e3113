"""The I/O thread: one selector, every connection, and nothing that blocks.

A turn costs what is ready in it, not what is connected: the selector names the ready sockets, the wheel names the late
connections, workers name those they are done with. Everything runs on the thread that calls `run`, except `wake`,
`post`, `stop` and `drain`, which any thread and any signal handler may call.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

from hardserve.edge.admission import Acceptor, AdmissionContext, Peer
from hardserve.edge.clients import Clients
from hardserve.edge.connection import CLOSED, IDLE, Connection, EdgeContext
from hardserve.edge.deadlines import Deadlines, Timed
from hardserve.edge.idle import IdleFinder
from hardserve.edge.listener import Listener
from hardserve.edge.transport import HeldCalls, PlainTransport
from hardserve.refusals import MADE_ROOM, Refusal

logger = logging.getLogger("hardserve.edge")

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Loop:
    """Runs connections until told to stop."""

    def __init__(self, listeners: Sequence[Listener], max_connections: int, clients: Clients) -> None:
        self.connections: set[Connection] = set()
        self._selector = selectors.DefaultSelector()
        self._deadlines = Deadlines()
        self._held_calls = HeldCalls()
        self._clients = clients
        self._idle = IdleFinder(self.connections)
        self._acceptor = Acceptor(
            listeners,
            self._selector,
            max_connections=max_connections,
            clients=self._clients,
            ctx=AdmissionContext(
                open_connections=self.connections.__len__,
                admitted=self._admit,
                make_room=self._make_room,
                answer=self._answer_newcomer,
                refused=self._turned_away,
            ),
        )
        self._woken: deque[Connection] = deque()
        self._posted: deque[Callable[[float], None]] = deque()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._wake_sent = False
        self._drain_until: float | None = None
        self._stopping = False
        self._ctx: EdgeContext

    def __repr__(self) -> str:
        return f"<Loop {len(self.connections)} connections, draining={self._drain_until is not None}>"

    # --- any thread, and signal handlers ---

    def wake(self, connection: Connection) -> None:
        """Have the I/O thread call `connection.settle` soon."""
        self._woken.append(connection)
        self._interrupt_wait()

    def post(self, action: Callable[[float], None]) -> None:
        """Have the I/O thread call `action(now)` soon."""
        self._posted.append(action)
        self._interrupt_wait()

    def stop(self) -> None:
        """Have `run` return after this turn, whatever is connected."""

        def stop(_now: float) -> None:
            self._stopping = True

        self.post(stop)

    def drain(self, limit_s: float) -> None:
        """Accept nothing more, answer what has come in, and have `run` return when that is done, or after `limit_s`.

        Connections that wait in the kernel's queue are still taken, and idle ones are told to close with their next
        answer.
        """

        def drain(now: float) -> None:
            if self._drain_until is None:
                self._drain_until = now + limit_s
                self._acceptor.finish(now)
                self._ctx.draining = True
                for connection in self.connections:
                    connection.begin_drain(now)

        self.post(drain)

    def _interrupt_wait(self) -> None:
        # The flag saves a system call where several threads wake one turn. It is cleared before the queues are read,
        # so whoever finds it set has queued in time.
        if not self._wake_sent:
            self._wake_sent = True
            with contextlib.suppress(OSError):  # full is readable already, and closed is a loop that is over
                self._wake_sender.send(b"w")

    # --- I/O thread ---

    def run(self, ctx: EdgeContext) -> None:
        """Turn until stopped or drained; the caller then looks at `connections` and calls `close`."""
        self._ctx = ctx
        self._selector.register(self._wake_receiver, READ, self._clear_wake)
        now = time.monotonic()
        while not self._stopping:
            self._acceptor.resume(now)
            ready = self._selector.select(self._wait_s(now))
            now = time.monotonic()
            for key, events in ready:
                target = key.data
                if type(target) is not Connection:
                    target(now)
                    continue
                try:
                    if events & READ:
                        target.on_readable(now)
                    if events & WRITE and target.phase is not CLOSED:
                        target.on_writable(now)
                except Exception:
                    self._give_up(target)
            self._do_posted(now)
            self._end_late(now)
            if self._drain_until is not None and (
                now >= self._drain_until or (self._acceptor.finished and not self.connections)
            ):
                return

    def _do_posted(self, now: float) -> None:
        while self._woken:
            connection = self._woken.popleft()
            try:
                connection.settle(now)
            except Exception:
                self._give_up(connection)
        while self._posted:
            self._posted.popleft()(now)

    def _end_late(self, now: float) -> None:
        for late in self._deadlines.due(now):
            try:
                late.on_deadline(now)
            except Exception:
                if type(late) is Connection:
                    self._give_up(late)
                else:
                    logger.exception("internal error in %r", late)

    def _give_up(self, connection: Connection) -> None:
        """A bug of ours met this connection: it ends, everybody else is served on."""
        logger.exception("internal error on %r, %r", connection, connection.request)  # noqa: LOG004  # called from handlers only
        try:
            connection.close()
        except Exception:
            # Out of the way, at least: it must not come back at every turn.
            logger.exception("cannot even close it")
            if connection in self.connections:
                self.connections.discard(connection)
                self._clients.left(connection.client)

    def _wait_s(self, now: float) -> float | None:
        if self._woken or self._posted:
            return 0.0
        wait_s = self._deadlines.wait_s(now)
        accept_s = self._acceptor.wait_s(now)
        if accept_s is not None and (wait_s is None or accept_s < wait_s):
            wait_s = accept_s
        if self._drain_until is not None:
            drain_s = max(0.0, self._drain_until - now)
            wait_s = drain_s if wait_s is None else min(wait_s, drain_s)
        return wait_s

    def _clear_wake(self, _now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(4096)
        self._wake_sent = False

    def _make_room(self, now: float) -> bool:
        """Close the connection that has been idle for longest; return whether there was one."""
        while (idle := self._idle.take(now)) is not None:
            with idle.lock:
                # A worker goes IDLE before it sends, and what is left unsent is known when it lets go of the lock.
                quiet = idle.phase is IDLE and idle.outbox is None
            try:
                if quiet and not idle.on_readable(now):  # a request may have come since this turn began
                    idle.cut(MADE_ROOM, now)
            except Exception:
                self._give_up(idle)
            if idle.phase is CLOSED:
                return True
        return False

    def _turned_away(self, refusal: Refusal, client: str, _now: float) -> None:
        self._ctx.log_turned_away(refusal, client)

    def _answer_newcomer(self, refusal: Refusal) -> bytes:
        return self._ctx.pages.turned_away(refusal, self._ctx.date.text())

    def _admit(self, accepted: socket.socket, peer: Peer, client: str, listener: Listener, now: float) -> None:
        connection = Connection(self._ctx, PlainTransport(accepted, self._held_calls), peer, client, listener, now)
        self.connections.add(connection)
        self._selector.register(accepted.fileno(), READ, connection)
        self._deadlines.watch(connection, now)

    def close(self) -> None:
        """Close every connection and everything else the loop holds. After `run`."""
        self._acceptor.close()
        for connection in list(self.connections):
            connection.close()
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    # --- what connections ask for (edge.connection.Poller) ---

    def set_interest(self, connection: Connection, *, read: bool, write: bool) -> None:
        descriptor = connection.transport.fileno()
        events = (READ if read else 0) | (WRITE if write else 0)
        if descriptor not in self._selector.get_map():
            if events:
                self._selector.register(descriptor, events, connection)
        elif events:
            self._selector.modify(descriptor, events, connection)
        else:
            self._selector.unregister(descriptor)

    def watch(self, item: Timed, now: float) -> None:
        """Have `item.on_deadline` called when its deadline has passed."""
        self._deadlines.watch(item, now)

    def closed(self, connection: Connection) -> None:
        self.set_interest(connection, read=False, write=False)
        self._deadlines.forget(connection)
        self.connections.discard(connection)
        self._clients.left(connection.client)
