"""Who may connect: accepts connections, makes room for them where it can, and turns away those that are one too many.

I/O thread only. It hands accepted sockets on, and knows neither what is said on them nor what a refusal looks like on
the wire.

A client that is banned is dropped without a word. A newcomer is asked next whether its client has too many connections,
or too many of late (clients.py), so that no client that is over its limits costs another one its connection; a trusted
proxy is nobody in particular, and has as many as it likes. Then there must be a place: at the cap, the connection
that has been idle for longest is closed, and only if none is idle the newcomer is turned away.

Running out of file descriptors is that same cap, found by `accept` and not by counting. One descriptor is kept in
reserve for it. When it is let go of, the next in line can be accepted, and asked like everybody else; the connection
that is closed for it, or its own end, gives the reserve back. Anything else in the process may be quicker and take that
descriptor, or may have left nothing to close: then the kernel's queue holds the newcomers for `PAUSE_S`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import selectors
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from hardserve.edge.clients import Clients
from hardserve.edge.listener import Listener
from hardserve.edge.networks import Networks, prefix_key
from hardserve.refusals import BANNED, CONNECTIONS_FULL, NO_DESCRIPTORS, PEER_NOT_TRUSTED, Refusal

logger = logging.getLogger("hardserve.edge")

# Newcomers taken from one listener in one turn, so that a flood of them does not hold up those who are in.
ACCEPTS_PER_TURN = 64
# How many of those are told that there is no descriptor for them; the others wait.
NO_DESCRIPTORS_PER_TURN = 16
# Idle connections closed at once to get the reserve back, if something else takes each descriptor first.
ROOM_FOR_RESERVE = 8
# With nothing to be done, accept fails at once and the socket stays ready: look away for so long.
PAUSE_S = 0.1
COMPLAINT_INTERVAL_S = 10.0
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
# For the handshakes that are under way when a server stops: to close before their end would reset who has then asked.
HANDSHAKE_S = 0.1

# The end of one connection before it was taken (accept(2)). The next one has nothing to do with it.
BROKEN = frozenset(
    {
        errno.ECONNABORTED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH,
        errno.EHOSTDOWN, errno.EHOSTUNREACH,
    }
)  # fmt: skip
READ_BYTES = 65536
_MAPPED = "::ffff:"

# Closing with this sends a reset, and leaves nothing of the connection in the kernel (socket(7)).
_LINGER_NOT = struct.pack("ii", 1, 0)

Peer = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Peers:
    """What is known of a peer by its address: whose connections it makes, and whether it is let in at all.

    `trusted` are the proxies whose word for who the client is counts; `ipv6_prefix` is by how many bits of an IPv6
    address its client is counted; `banned(client, address, now)` is whether a client at an address is to be dropped.
    """

    trusted: Networks = field(default_factory=lambda: Networks(()))
    ipv6_prefix: int = 64
    banned: Callable[[str, str, float], bool] = lambda _client, _address, _now: False

    def is_trusted(self, peer: Peer) -> bool:
        return bool(self.trusted) and self.trusted.contains(peer[0])

    def client(self, peer: Peer) -> str:
        """Return by whom a peer's connections are counted: "" is nobody in particular, as a trusted proxy is."""
        return "" if self.is_trusted(peer) else prefix_key(peer[0], 32, self.ipv6_prefix)


@dataclass(frozen=True, slots=True)
class AdmissionContext:
    """What the acceptor asks of the server, all on the I/O thread.

    `open_connections()` is how many there are. `admitted(socket, peer, client, listener, now)` takes over a
    non-blocking socket, and owes `Clients.left(client)` when it ends. `make_room(now)` closes a connection that is
    idle, and returns whether there was one. `answer(refusal)` is a whole response. `refused(refusal, client, peer)` is
    told of every newcomer that was turned away; nothing else is logged of it.
    """

    open_connections: Callable[[], int]
    admitted: Callable[[socket.socket, Peer, str, Listener, float], None]
    make_room: Callable[[float], bool]
    answer: Callable[[Refusal], bytes]
    refused: Callable[[Refusal, str, Peer], None]


def turn_away(accepted: socket.socket, answer: bytes) -> None:
    """Send `answer` if it fits at once, and close. Never waits, never raises.

    What has already arrived is read, because closing with unread bytes resets the connection, and with it, on many
    clients, an answer that they have not read yet (RFC 9112 9.6). Deliberately no more than that: somebody who is
    turned away is not given the descriptor and the time that a lingering close takes.
    """
    with contextlib.suppress(OSError):
        accepted.send(answer, socket.MSG_DONTWAIT)
        accepted.shutdown(socket.SHUT_WR)
        accepted.recv(READ_BYTES, socket.MSG_DONTWAIT)
    with contextlib.suppress(OSError):
        accepted.close()


class Acceptor:
    """Takes connections from the listeners: up to `max_connections` in all, and what `clients` allows each client."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        selector: selectors.BaseSelector,
        *,
        max_connections: int,
        clients: Clients,
        ctx: AdmissionContext,
        peers: Peers,
    ) -> None:
        self._listeners = list(listeners)
        self._selector = selector
        self._max_connections = max_connections
        self._clients = clients
        self._ctx = ctx
        self.peers = peers  # others, when proxy.trusted changes
        self._accepting = False
        self._finishing = False
        self.handshake_s = HANDSHAKE_S
        self._rest_until = float("-inf")
        self._again_at = 0.0
        self._complained_at = float("-inf")
        self._reserve: int | None = None  # an open descriptor, of nothing

    def __repr__(self) -> str:
        reserve = "" if self._reserve is not None else ", no reserve"
        return f"<Acceptor {len(self._listeners)} listeners, accepting={self._accepting}{reserve}, {self._clients!r}>"

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until `resume` is worth calling, None when only a connection that ends can help."""
        return self._again_at - now if self._listeners and not self._accepting and self._again_at > now else None

    def resume(self, now: float) -> None:
        """Accept again, if a pause is over. Called every turn."""
        if self._accepting or not self._listeners or now < self._again_at:
            return
        if self._finishing:
            self._take_the_rest(now)
            return
        self._take_reserve()
        self._accepting = True
        for listener in self._listeners:
            self._selector.register(listener.socket, selectors.EVENT_READ, partial(self._accept, listener))

    def _look_away(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                with contextlib.suppress(Exception):  # a bug of ours may have met it before all were registered
                    self._selector.unregister(listener.socket)

    def pause(self, now: float) -> None:
        """Leave those who wait in the kernel's queue for `PAUSE_S`."""
        self._again_at = now + PAUSE_S
        self._look_away()

    # --- accepting ---

    def _accept(self, listener: Listener, now: float) -> None:
        """Take those who wait at `listener`, as many as one turn allows."""
        if self._reserve is None:
            self._regain_reserve(now)
        without_descriptor = 0
        for _ in range(ACCEPTS_PER_TURN):
            try:
                arrival, short = self._next_at_any_price(listener, now)
            except OSError as error:
                self._complain(error, now)
                self.pause(now)
                return
            if arrival is None:
                return
            try:
                refusal = self._judge(*arrival, listener, now, short=short)
            except Exception:
                arrival[0].close()  # a bug of ours; it is not to cost a descriptor, too
                raise
            if short:
                self._take_reserve()
            if refusal is NO_DESCRIPTORS:
                without_descriptor += 1
                if without_descriptor == NO_DESCRIPTORS_PER_TURN:
                    self.pause(now)
                    return

    def _next_at_any_price(self, listener: Listener, now: float) -> tuple[tuple[socket.socket, Peer] | None, bool]:
        """Return what `_next` does, and whether that took the reserve. Raises OSError when that does not help."""
        try:
            return self._next(listener), False
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS or self._reserve is None:
                raise
            self._complain(error, now)
        self._drop_reserve()
        arrival = self._next(listener)
        if arrival is None:
            self._take_reserve()
        return arrival, True

    def _next(self, listener: Listener) -> tuple[socket.socket, Peer] | None:
        """Accept the next in line, None if nobody waits. Raises OSError when none can be accepted at the moment."""
        tries = 0
        while True:
            try:
                accepted, address = listener.socket.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                tries += 1
                if error.errno not in BROKEN or tries == ACCEPTS_PER_TURN:
                    raise
                continue
            if not isinstance(address, tuple):
                return accepted, ("unix:", 0)
            # An IPv4 client of a socket that takes both, which systemd makes: it is the same one (RFC 4291 2.5.5.2).
            host = address[0]
            return accepted, (host.removeprefix(_MAPPED) if "." in host else host, address[1])

    def _judge(
        self, accepted: socket.socket, peer: Peer, listener: Listener, now: float, *, short: bool
    ) -> Refusal | None:
        """Hand a newcomer on, or turn it away and return why. `short` is that it took the last descriptor."""
        client = self.peers.client(peer)
        if self.peers.banned(client, peer[0], now):
            self._drop(accepted, client, peer)
            return BANNED
        if listener.proxy_protocol and not self.peers.is_trusted(peer):
            refusal: Refusal | None = PEER_NOT_TRUSTED
        else:
            refusal = self._admit(client, now, short=short)
        if refusal is None:
            self._hand_on(accepted, peer, client, listener, now)
        else:
            # Without TLS, an answer would not be understood, and with it, nobody is turned away cheaply.
            turn_away(accepted, b"" if listener.tls else self._ctx.answer(refusal))
            self._ctx.refused(refusal, client, peer)
        return refusal

    def _admit(self, client: str, now: float, *, short: bool) -> Refusal | None:
        """Count one more connection of `client`, and make room for it where there is none."""
        refusal = self._clients.admit(client, now)
        if refusal is None and (short or self._ctx.open_connections() >= self._max_connections):
            if self._ctx.make_room(now):
                return None
            self._clients.left(client)
            refusal = NO_DESCRIPTORS if short else CONNECTIONS_FULL
        return refusal

    def _drop(self, accepted: socket.socket, client: str, peer: Peer) -> None:
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        with contextlib.suppress(OSError):
            accepted.close()
        self._ctx.refused(BANNED, client, peer)

    def _hand_on(self, accepted: socket.socket, peer: Peer, client: str, listener: Listener, now: float) -> None:
        accepted.setblocking(False)
        self._ctx.admitted(accepted, peer, client, listener, now)

    # --- descriptors ---

    def _take_reserve(self) -> bool:
        """Have a descriptor in reserve, if there is one to be had; return whether there was."""
        if self._reserve is None:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY)
            except OSError as error:
                # Where there is no such file, it works without a reserve: newcomers wait instead of being told.
                return error.errno not in OUT_OF_DESCRIPTORS
        return True

    def _drop_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _regain_reserve(self, now: float) -> None:
        """Close idle connections until there is a reserve again, but not for ever: the app may take each descriptor."""
        for _ in range(ROOM_FOR_RESERVE):
            if self._take_reserve() or not self._ctx.make_room(now):
                return
        self._take_reserve()

    def _complain(self, error: OSError, now: float) -> None:
        if now - self._complained_at < COMPLAINT_INTERVAL_S:
            return
        self._complained_at = now
        if error.errno in OUT_OF_DESCRIPTORS:
            advice = (
                "; idle ones are closed to make room, and newcomers turned away where none is idle: raise the limit "
                "(ulimit -n, or LimitNOFILE= in a systemd unit), lower limits.connections, or see what else is open"
            )
        else:
            advice = ""
        logger.error("cannot accept: %s; %d connections are open%s", error, self._ctx.open_connections(), advice)

    # --- the end ---

    @property
    def finished(self) -> bool:
        """Whether `finish` was called, and nothing waits in the kernel's queue any more."""
        return self._finishing and not self._listeners

    def finish(self, now: float) -> None:
        """Let no new connection in, but take those that wait already; as others end, where the cap is reached.

        Nobody is turned away any more: they came in time, and idle connections end by themselves now.
        """
        self._look_away()
        self._finishing = True
        self._again_at = 0.0
        self._drop_reserve()  # one more can be taken at a time, whatever the app holds
        for listener in self._listeners:
            if listener.quiesce():
                self._rest_until = now + self.handshake_s
        self._take_the_rest(now)

    def _take_the_rest(self, now: float) -> None:
        for listener in list(self._listeners):
            try:
                nobody_waits = self._empty(listener, now)
            except OSError as error:
                self._complain(error, now)
                self._again_at = now + PAUSE_S
                return
            if nobody_waits and now < self._rest_until:
                self._again_at = self._rest_until
            elif nobody_waits:
                listener.close()
                self._listeners.remove(listener)

    def _empty(self, listener: Listener, now: float) -> bool:
        """Take those who wait at `listener` up to the cap; return whether that was all. Raises OSError as `_next`."""
        while self._ctx.open_connections() < self._max_connections:
            arrival = self._next(listener)
            if arrival is None:
                return True
            accepted, peer = arrival
            client = self.peers.client(peer)
            if self.peers.banned(client, peer[0], now):
                self._drop(accepted, client, peer)
            else:
                self._clients.count(client, now)
                self._hand_on(accepted, peer, client, listener, now)
        # Who is served is not to be waited for on behalf of nobody: the end may come when the last of them leaves.
        waiting = select.poll()
        waiting.register(listener.socket, select.POLLIN)
        return not waiting.poll(0)

    def close(self) -> None:
        """Close the listeners, whoever waits. For good."""
        self._drop_reserve()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._finishing = True
