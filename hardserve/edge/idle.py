"""Which connection has been idle for longest, found without looking at all of them for each one that is wanted.

Pure: time is passed in as monotonic seconds. I/O thread only. It closes nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

# Found by one scan. Of more than 64 * 64 connections, a 64th of them: then one that is found costs as much as looking
# at 64, however many there are.
BATCH = 64
# A scan that is not paid for by what the one before has found waits for so long after it.
RESCAN_S = 0.25


class Idleness(Protocol):
    """What a connection says of itself."""

    @property
    def idle_since(self) -> float | None:
        """The monotonic second since when nothing has been asked on it.

        None while it is not idle: in a request, with anything of a response unsent, or closed. The next time that it
        becomes idle is a later one.
        """


C = TypeVar("C", bound=Idleness)


class IdleFinder(Generic[C]):
    """Hands out the connections of a collection that changes, longest idle first, to be closed in favour of others.

    Strictly by time: one that has never been used does not go before one that has. What was accepted a moment ago is
    the likeliest of all to have its request on the way, and what has been silent for longest the least likely.

    One scan yields a batch, which stays right for as long as it lasts: whatever was not among the longest idle then has
    a later time, or will have. Each is asked again when its turn comes, and left out if it has been used meanwhile. So
    that a flood of newcomers costs no scan for each, the next scan comes only when those found since the last one
    have paid for it, `BATCH` looks each, or `RESCAN_S` after it. Until then there is none to be had.
    """

    __slots__ = ("_batch", "_connections", "_found", "_scanned_at")

    def __init__(self, connections: Collection[C]) -> None:
        self._connections = connections
        self._batch: list[tuple[float, C]] = []  # the longest idle last
        self._found = 0  # since the last scan
        self._scanned_at = float("-inf")

    def __repr__(self) -> str:
        return f"<IdleFinder {len(self._batch)} of {len(self._connections)} at hand>"

    def take(self, now: float) -> C | None:
        """Return the connection that has been idle for longest, None if there is none.

        It is not returned again before it has been used.
        """
        found = self._next()
        if found is None and self._may_scan(now):
            self._scan(now)
            found = self._next()
        return found

    def _next(self) -> C | None:
        while self._batch:
            since, connection = self._batch.pop()
            if connection.idle_since == since:
                self._found += 1
                return connection
        return None

    def _may_scan(self, now: float) -> bool:
        return len(self._connections) <= BATCH * (self._found + 1) or now >= self._scanned_at + RESCAN_S

    def _scan(self, now: float) -> None:
        size = max(BATCH, len(self._connections) // BATCH)
        idle = [(since, each) for each in self._connections if (since := each.idle_since) is not None]
        self._batch = heapq.nsmallest(size, idle, key=itemgetter(0))
        self._batch.reverse()
        self._found = 0
        self._scanned_at = now
