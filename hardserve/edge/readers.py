"""Clients that read their responses slowly: who must go when workers, or memory, run short.

A response that its client does not read is kept up to `limits.response_buffer`, then perhaps in a file, and then the
worker waits. Any one of them may: a large download to a phone is no attack. But at most half of the workers (one, where
there is one) may be kept waiting for longer than `PATIENCE_S` at a stretch, and all that is kept must fit into
`limits.buffered_memory`; past either, the slowest reader is cut. A broadband client never waits so long: half a buffer
of 1 MiB in a second is 4 Mbit/s.

I/O thread only. It costs nothing while no worker waits and memory is not short.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from hardserve import refusals
from hardserve.edge.deadlines import Timer

if TYPE_CHECKING:
    from hardserve.edge.budget import Budget
    from hardserve.edge.deadlines import Watcher
    from hardserve.refusals import Cut

PATIENCE_S = 1.0
LOOK_S = 0.25


class Reader(Protocol):
    """A connection with something unsent."""

    @property
    def waited_since(self) -> float:
        """Since when a worker waits for this client (monotonic seconds), `math.inf` if none does."""

    def reading_rate(self, now: float) -> float | None:
        """Return the bytes a second at which it has been read, None before that can be told."""

    def cut(self, why: Cut, now: float) -> None: ...


class Readers:
    """All connections with something unsent. `deadlines` is where it is filed to look again."""

    def __init__(self, max_waiting: int, budget: Budget, deadlines: Watcher) -> None:
        self._max_waiting = max_waiting
        self._budget = budget
        self._deadlines = deadlines
        self._readers: set[Reader] = set()
        self._timer = Timer(self._look)

    def __repr__(self) -> str:
        return f"<Readers {len(self._readers)}, looking={self._timer.is_set}>"

    def add(self, reader: Reader, now: float) -> None:
        """Know of a client with something unsent. Called again when a worker has begun to wait for it."""
        self._readers.add(reader)
        if not self._timer.is_set and (reader.waited_since < math.inf or self._budget.memory_short):
            self._timer.set(now + LOOK_S, now, self._deadlines)

    def discard(self, reader: Reader) -> None:
        self._readers.discard(reader)

    def _look(self, now: float) -> None:
        """Cut who must be cut, and look again soon if that may be needed."""
        waited_for = [reader for reader in self._readers if reader.waited_since < math.inf]
        # Those that wait for a moment only count for nothing: they are on their way.
        long = [reader for reader in waited_for if now - reader.waited_since > PATIENCE_S]
        for reader in _slowest(long, now)[: max(0, len(long) - self._max_waiting)]:
            reader.cut(refusals.SLOWEST_READER, now)
        if self._budget.memory_short:
            for reader in _slowest(self._readers, now):
                if not self._budget.memory_short:
                    break
                reader.cut(refusals.SLOWEST_READER, now)
        if self._readers and (waited_for or self._budget.memory_short):
            self._timer.set(now + LOOK_S, now, self._deadlines)


def _slowest(readers: Iterable[Reader], now: float) -> list[Reader]:
    """Return those whose rate can be told, slowest first."""
    rates = {reader: rate for reader in readers if (rate := reader.reading_rate(now)) is not None}
    return sorted(rates, key=rates.__getitem__)
