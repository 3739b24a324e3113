"""Who is already connected, and how often of late: connections counted per client, against a cap and a rate.

Pure: time is passed in as monotonic seconds. I/O thread only. It knows no socket and closes nothing; it only says
whether one more connection is too many.
"""

from __future__ import annotations

from collections import OrderedDict

from hardserve.refusals import CLIENT_CONNECTION_RATE, CLIENT_CONNECTIONS, Refusal

# Clients that are remembered at once: with long IPv6 addresses about 20 MB, and nothing until they come.
MAX_CLIENTS = 65_536
# The rate may be saved up for so long: a browser that opens a page opens several connections at once.
BURST_S = 2.0
# Of the time between two connections at the full rate: what adding up floats may be off by.
TOLERANCE = 0.01
# Looked at for each that is added, so that the table shrinks faster than it grows.
FORGOTTEN_AT_ONCE = 2


class Clients:
    """Counts connections by client: an address, or a network (`networks.prefix_key`); "" is nobody, without a limit.

    Each one that is admitted or counted must be followed by one `left`.

    `max_connections` may be open from one client at once, and `rate` may begin in a second, or twice as many at once
    after a pause (a token bucket); 0 is no limit. As in nginx, a connection that is refused counts against neither: a
    client that goes on trying still gets the connections it is allowed.

    What is forgotten, and when. A client with an open connection never is; the cap on all connections bounds those. One
    without, whose bucket is full again, is as good as unknown and goes when others come, two for each. When there are
    more than `max_clients`, the one goes whose last connection ended first; its bucket is then full too early, which
    is all the harm in it.
    """

    __slots__ = ("_burst_s", "_full_at", "_interval_s", "_max_clients", "_max_connections", "_open", "_resting")

    def __init__(self, max_connections: int, rate: int, *, max_clients: int = MAX_CLIENTS) -> None:
        self._max_clients = max_clients
        self.limit(max_connections, rate)
        self._open: dict[str, int] = {}
        self._full_at: dict[str, float] = {}  # of those who have a connection
        # Of those who have none, by when the last one ended. A plain dict would look through the gaps that its first
        # entries have left whenever it is asked for the first of them.
        self._resting: OrderedDict[str, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Clients {len(self._open)} connected, {len(self._resting)} remembered>"

    def __len__(self) -> int:
        """Return how many clients are known."""
        return len(self._open) + len(self._resting)

    def limit(self, max_connections: int, rate: int) -> None:
        """Hold clients to other limits from now on. Who has more connections keeps them."""
        self._max_connections = max_connections
        # The bucket is kept as the moment when it will be full again: each connection moves that by one interval.
        self._interval_s = 1.0 / rate if rate else 0.0
        self._burst_s = BURST_S - self._interval_s * (1.0 - TOLERANCE)

    def connections(self, client: str) -> int:
        """Return how many connections of `client` are counted."""
        return self._open.get(client, 0)

    def admit(self, client: str, now: float) -> Refusal | None:
        """Count one more connection of `client`, unless it is one too many."""
        if not client:
            return None
        count = self._open.get(client, 0)
        if count and count >= self._max_connections > 0:
            return CLIENT_CONNECTIONS
        full_at = self._full_at[client] if count else self._resting.get(client, now)
        if self._interval_s:
            if full_at - now > self._burst_s:
                return CLIENT_CONNECTION_RATE
            full_at = max(full_at, now) + self._interval_s
        self._add(client, count, full_at, now)
        return None

    def count(self, client: str, now: float) -> None:
        """Count one more connection of `client`, whatever its limits."""
        if client:
            count = self._open.get(client, 0)
            self._add(client, count, self._full_at[client] if count else self._resting.get(client, now), now)

    def _add(self, client: str, count: int, full_at: float, now: float) -> None:
        self._open[client] = count + 1
        self._full_at[client] = full_at
        if not count:
            self._resting.pop(client, None)
            self._forget(now)

    def left(self, client: str) -> None:
        """Take back one connection that was counted."""
        count = self._open.get(client, 0)
        if count > 1:
            self._open[client] = count - 1
        elif count:
            del self._open[client]
            full_at = self._full_at.pop(client)
            if self._interval_s and len(self) < self._max_clients:  # else all the others are connected
                self._resting[client] = full_at

    def _forget(self, now: float) -> None:
        for _ in range(FORGOTTEN_AT_ONCE):
            client = next(iter(self._resting), None)
            if client is None or (self._resting[client] > now and len(self) <= self._max_clients):
                return
            del self._resting[client]
