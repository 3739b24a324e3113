"""Who may connect: accepts connections up to a cap, and backs off when the process has no descriptor left.

I/O thread only. It hands accepted sockets on and knows nothing of what is said on them.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
from collections.abc import Callable, Sequence
from functools import partial

from hardserve.edge.listener import Listener

logger = logging.getLogger("hardserve.edge")

# New connections taken in one turn, so that a flood of them does not hold up those that are established.
ACCEPTS_PER_TURN = 64
# With no descriptor left, accept fails at once and the socket stays ready: look away for so long.
PAUSE_S = 0.1
COMPLAINT_INTERVAL_S = 10.0
NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Peer = tuple[str, int]


class Acceptor:
    """Takes connections from the listeners and calls `admitted(socket, peer, listener, now)` for each.

    `open_connections` returns how many there are; at `max_connections` the rest wait in the kernel's queue.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        selector: selectors.BaseSelector,
        *,
        max_connections: int,
        open_connections: Callable[[], int],
        admitted: Callable[[socket.socket, Peer, Listener, float], None],
    ) -> None:
        self._listeners = list(listeners)
        self._selector = selector
        self._max_connections = max_connections
        self._open_connections = open_connections
        self._admitted = admitted
        self._accepting = False
        self._finishing = False
        self._again_at = 0.0
        self._complained_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Acceptor {len(self._listeners)} listeners, accepting={self._accepting}>"

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until `resume` is worth calling, None when only a closed connection can help."""
        return self._again_at - now if self._listeners and not self._accepting and self._again_at > now else None

    def resume(self, now: float) -> None:
        """Accept again, if whatever stopped it is over. Called every turn."""
        if self._finishing:
            self._take_the_rest(now)
            return
        if self._accepting or not self._listeners or now < self._again_at:
            return
        if self._open_connections() >= self._max_connections:
            return
        self._accepting = True
        for listener in self._listeners:
            self._selector.register(listener.socket, selectors.EVENT_READ, partial(self._accept, listener))

    def _pause(self, until: float) -> None:
        self._again_at = until
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._selector.unregister(listener.socket)

    def _accept(self, listener: Listener, now: float) -> None:
        self._accept_up_to(ACCEPTS_PER_TURN, listener, now)

    def _accept_up_to(self, count: int, listener: Listener, now: float) -> bool:
        """Accept at most `count` connections; return whether no more of them wait."""
        for _ in range(count):
            if self._open_connections() >= self._max_connections:
                self._pause(0.0)
                return False
            try:
                accepted, address = listener.socket.accept()
                accepted.setblocking(False)
                if accepted.family == socket.AF_UNIX:
                    peer = ("unix:", 0)
                else:
                    peer = (address[0], address[1])
                    # A response leaves when it is sent, not when the client acknowledges the one before.
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError as error:
                if error.errno in NO_RESOURCES:
                    self._pause(now + PAUSE_S)
                    if now - self._complained_at >= COMPLAINT_INTERVAL_S:
                        self._complained_at = now
                        logger.error("cannot accept: %s; %d are open", error, self._open_connections())  # noqa: TRY400  # no bug
                    return False
                continue  # this one broke before it was taken (ECONNABORTED and its like)
            self._admitted(accepted, peer, listener, now)
        return False

    @property
    def finished(self) -> bool:
        """Whether `finish` was called, and nothing waits in the kernel's queue any more."""
        return self._finishing and not self._listeners

    def finish(self, now: float) -> None:
        """Let no new connection in, but take those that wait already; as others end, where the cap is reached."""
        self._pause(0.0)
        self._finishing = True
        for listener in self._listeners:
            listener.quiesce()
        self._take_the_rest(now)

    def _take_the_rest(self, now: float) -> None:
        for listener in list(self._listeners):
            if self._accept_up_to(self._max_connections, listener, now):
                listener.close()
                self._listeners.remove(listener)

    def close(self) -> None:
        """Close the listeners, whoever waits. For good."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._finishing = True
