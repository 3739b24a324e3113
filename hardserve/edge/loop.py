"""The I/O thread: one selector, every connection, and nothing that blocks.

A turn costs what is ready in it, not what is connected: the selector names the ready sockets, the wheel names the late
connections, workers name those they are done with. Everything runs on the thread that calls `run`, except `wake`,
`post`, `stop` and `drain`, which any thread and any signal handler may call.

A bug of ours ends what it meets, a connection, a timer or a posted action, and nothing else: everybody is served on.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence

from hardserve.edge.admission import COMPLAINT_INTERVAL_S, Acceptor, AdmissionContext, Peer, Peers
from hardserve.edge.clients import Clients
from hardserve.edge.connection import CLOSED, IDLE, Connection, EdgeContext
from hardserve.edge.context import HANDSHAKE
from hardserve.edge.deadlines import Deadlines, Timed
from hardserve.edge.handshake import Choose
from hardserve.edge.idle import IdleFinder
from hardserve.edge.listener import Listener
from hardserve.edge.tls import TlsTransport
from hardserve.edge.transport import HeldCalls, PlainTransport, Transport
from hardserve.refusals import BANNED_NOW, MADE_ROOM, Cut, Refusal

logger = logging.getLogger("hardserve.edge")

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

# Connections whose last request was refused that have a turn together. The others have the next ones, so that whoever
# was not refused does not wait for all of a flood: the selector says again that they are ready.
REFUSED_PER_TURN = 16

# When a turn has taken so long, whoever is left has the next one, which begins with a look at who else is ready: a
# hundred clients with long pipelines are a second of work.
TURN_S = 0.01


class Loop:
    """Runs connections until told to stop."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        max_connections: int,
        clients: Clients,
        peers: Peers,
        tls: Callable[[], ssl.SSLContext] | None = None,
        choose: Choose | None = None,
    ) -> None:
        self.connections: set[Connection] = set()
        self._selector = selectors.DefaultSelector()
        self._deadlines = Deadlines()
        self._held_calls = HeldCalls()
        self._tls = tls or _no_tls  # the context of the next connection: it is replaced with its certificates
        self._choose = choose  # another one for a ClientHello
        self._clients = clients
        self._peers = peers
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
            peers=peers,
        )
        self._woken: deque[Connection] = deque()
        self._unread: set[Connection] = set()  # more is inside their transports
        self._posted: deque[Callable[[float], None]] = deque()
        self._planned: list[tuple[float, int, Callable[[float], None]]] = []  # a heap; the number keeps their order
        self._plans = 0
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._wake_sent = False
        self._first = 0  # whose turn is the first
        self._drain_until: float | None = None
        self._stopping = False
        self._complained_at = -math.inf  # of the acceptor
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
                try:
                    self._acceptor.finish(now)
                except Exception:
                    self._pause_accepting(now)
                self._ctx.draining = True
                for connection in list(self.connections):
                    try:
                        connection.begin_drain(now)
                    except Exception:
                        self._give_up(connection)

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
        """Turn until stopped or drained; the caller then looks at `connections` and calls `close`.

        What was posted before is a part of starting: an exception in that is raised. Any later one is only logged.
        """
        self._ctx = ctx
        self._selector.register(self._wake_receiver, READ, self._clear_wake)
        now = time.monotonic()
        self._start(now)
        while not self._stopping:
            try:
                self._acceptor.resume(now)
            except Exception:
                self._pause_accepting(now)
            if self._drain_until is not None and (
                now >= self._drain_until or (self._acceptor.finished and not self.connections)
            ):
                return
            ready = self._selector.select(self._wait_s(now))
            now = time.monotonic()
            unread, self._unread = self._unread, set()
            self._do_ready(ready, now)
            if unread:
                self._read_on(unread, now)
            self._do_posted(now)
            self._end_late(now)
            self._do_planned(now)

    def _do_ready(self, ready: list[tuple[selectors.SelectorKey, int]], now: float) -> None:
        refused = 0
        for key, events in self._in_time(ready, now) if len(ready) > REFUSED_PER_TURN else ready:
            target = key.data
            if type(target) is not Connection:
                try:
                    target(now)
                except Exception:
                    self._pause_accepting(now)
                continue
            if target.refused:
                refused += 1
                if refused > REFUSED_PER_TURN:
                    continue
            try:
                if events & READ:
                    target.on_readable(now)
                if events & WRITE and target.phase is not CLOSED:
                    target.on_writable(now)
            except Exception:
                self._give_up(target)
        if refused:
            self._ctx.give_way()

    def _read_on(self, unread: set[Connection], now: float) -> None:
        """Have those read on whose transports have more inside than a selector tells of, as far as there is time."""
        while unread:
            connection = unread.pop()
            # A reading that was paused is taken up by `set_interest`.
            try:
                if connection.phase is not CLOSED and connection.transport.pending():
                    connection.on_unread(now)
            except Exception:
                self._give_up(connection)
            if time.monotonic() - now > TURN_S:
                self._unread |= unread
                return

    def _in_time(
        self, ready: list[tuple[selectors.SelectorKey, int]], now: float
    ) -> Iterator[tuple[selectors.SelectorKey, int]]:
        """Yield of many that are ready those for which there is time in this turn."""
        for each in self._rotated(ready):
            yield each
            if time.monotonic() - now > TURN_S:
                return

    def _rotated(self, ready: list[tuple[selectors.SelectorKey, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """Have another one be the first in each turn: the selector may name them in the same order every time."""
        self._first = first = (self._first + REFUSED_PER_TURN) % len(ready)
        return ready[first:] + ready[:first]

    def _start(self, now: float) -> None:
        for _ in range(len(self._posted)):
            self._posted.popleft()(now)
        self._do_posted(now)  # what came meanwhile, a drain perhaps, goes before what is ready

    def _do_posted(self, now: float) -> None:
        for _ in range(len(self._woken)):
            if time.monotonic() - now > TURN_S:
                break
            connection = self._woken.popleft()
            try:
                connection.settle(now)
            except Exception:
                self._give_up(connection)
        while self._posted:
            action = self._posted.popleft()
            try:
                action(now)
            except Exception:
                logger.exception("internal error in %r", action)

    @property
    def is_draining(self) -> bool:
        return self._drain_until is not None

    def drain_left_s(self, now: float) -> float | None:
        """Return for how long a drain may go on, None while there is none. I/O thread."""
        return None if self._drain_until is None else max(0.0, self._drain_until - now)

    def plan(self, at: float, action: Callable[[float], None]) -> None:
        """Have `action(now)` called at `at`: to the millisecond, not to a quarter second as a Timer. I/O thread."""
        self._plans += 1
        heapq.heappush(self._planned, (at, self._plans, action))

    def _do_planned(self, now: float) -> None:
        while self._planned and self._planned[0][0] <= now:
            action = heapq.heappop(self._planned)[2]
            try:
                action(now)
            except Exception:
                logger.exception("internal error in %r", action)

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

    def _pause_accepting(self, now: float) -> None:
        """A bug of ours met the acceptor: look away for a while, for whoever waits there is ready at every turn."""
        if now - self._complained_at >= COMPLAINT_INTERVAL_S:
            self._complained_at = now
            logger.exception("internal error in %r", self._acceptor)  # noqa: LOG004  # called from handlers only
        self._acceptor.pause(now)

    def _wait_s(self, now: float) -> float | None:
        if self._woken or self._posted or self._unread:
            return 0.0
        wait_s = self._deadlines.wait_s(now)
        if self._planned:
            planned_s = max(0.0, self._planned[0][0] - now)
            wait_s = planned_s if wait_s is None else min(wait_s, planned_s)
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
                shaking = idle.phase is HANDSHAKE  # who asks for nothing yet is not looked at once more
            try:
                # A request may have come since this turn began.
                if shaking or (quiet and not idle.on_readable(now)):
                    idle.cut(MADE_ROOM, now)
            except Exception:
                self._give_up(idle)
            if idle.phase is CLOSED:
                return True
        return False

    def _turned_away(self, refusal: Refusal, client: str, peer: Peer) -> None:
        self._ctx.log_turned_away(refusal, client, peer[0])

    def _answer_newcomer(self, refusal: Refusal) -> bytes:
        return self._ctx.pages.turned_away(refusal, self._ctx.date.text())

    def _admit(self, accepted: socket.socket, peer: Peer, client: str, listener: Listener, now: float) -> None:
        try:
            plain = PlainTransport(accepted, self._held_calls)
            now_tls = listener.tls and not listener.proxy_protocol  # else after the header, if at all
            transport: Transport = self.secure(plain, b"") if now_tls else plain
            connection = Connection(
                self._ctx,
                transport,
                peer,
                client,
                listener,
                now,
                trusted=self._peers.is_trusted(peer),
                proxy_protocol=listener.proxy_protocol,
            )
            self._selector.register(accepted.fileno(), READ, connection)
        except Exception:
            accepted.close()
            self._clients.left(client)  # else it could soon not connect any more
            raise
        self.connections.add(connection)
        self._deadlines.watch(connection, now)

    def secure(self, plain: PlainTransport, first: bytes) -> TlsTransport:
        """Return TLS over what was a plain transport until now."""
        return TlsTransport(plain, self._tls(), first=first, choose=self._choose)

    def identify(self, connection: Connection, peer: Peer, now: float) -> Refusal | Cut | None:
        """Have a connection count as one of `peer`, which a trusted proxy says it is of; return why it may not be."""
        client = self._peers.client(peer)
        connection.peer = peer
        connection.trusted = self._peers.is_trusted(peer)
        if self._peers.banned(client, peer[0], now):
            return BANNED_NOW
        refusal = self._clients.admit(client, now)
        if refusal is None:
            self._clients.left(connection.client)
            connection.client = client
        else:
            self._ctx.log_turned_away(refusal, client, peer[0])
        return refusal

    def use_peers(self, peers: Peers, now: float) -> None:
        """Trust other proxies from now on, also on the connections that are there. I/O thread."""
        self._peers = peers
        self._acceptor.peers = peers
        for connection in list(self.connections):
            if peers.is_trusted(connection.peer) == connection.trusted:
                continue
            if connection.awaits_proxy_header:
                connection.close()  # what it says of others does not count any more
                continue
            connection.trusted = not connection.trusted
            self._clients.left(connection.client)
            connection.client = peers.client(connection.peer)
            self._clients.count(connection.client, now)

    def limit_clients(self, max_connections: int, rate: int) -> None:
        """Hold clients to other limits from now on. I/O thread."""
        self._clients.limit(max_connections, rate)

    def close_banned(self, clients: Container[str]) -> None:
        """Cut the connections of clients that have just been banned, whatever they are doing."""
        now = time.monotonic()
        for connection in [each for each in self.connections if each.client in clients]:
            if self._peers.banned(connection.client, connection.peer[0], now):
                connection.cut(BANNED_NOW, now)

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

    def read_again(self, connection: Connection) -> None:
        self._unread.add(connection)

    def watch(self, item: Timed, now: float) -> None:
        """Have `item.on_deadline` called when its deadline has passed."""
        self._deadlines.watch(item, now)

    def closed(self, connection: Connection) -> None:
        self.set_interest(connection, read=False, write=False)
        self._deadlines.forget(connection)
        self._unread.discard(connection)
        self.connections.discard(connection)
        self._clients.left(connection.client)


def _no_tls() -> ssl.SSLContext:
    raise LookupError("a listener has TLS, and the server has no certificate")
