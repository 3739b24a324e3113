"""Clients that read their responses slowly: who must go when workers, or memory, run short.

A response that its client does not read is kept up to `limits.response_buffer`, then perhaps in a file, and then the
worker waits. Any one of them may: a large download to a phone is no attack. But at most half of the workers (one, where
there is one) may be kept waiting once a request finds no worker free: then the slowest reader beyond that half is cut
at once, unless it reads faster than `FAST`, for then it will be done in a moment. Where nobody asks, those beyond the
half have `PATIENCE_S` at a stretch. A broadband client never waits so long: half a buffer of 1 MiB in a second is
4 Mbit/s.

And of `limits.buffered_memory` all responses together may have three quarters (edge.budget leaves the rest to requests
in any case): past it, the slowest readers are cut until they have half. Somebody who reads fast is spared, and so is,
up to the whole of the memory, whoever has only begun; one that is alone is always served, however large its response.
Where one of those who are spared has more than half for itself, nothing that the others have left would be enough: it
is not counted then, and they may have as much as they might without it.

I/O thread only. It costs nothing while no worker waits and memory is not short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from hardserve import refusals
from hardserve.edge.deadlines import Timer

if TYPE_CHECKING:
    from hardserve.edge.budget import Budget
    from hardserve.edge.deadlines import Watcher
    from hardserve.refusals import Cut

PATIENCE_S = 1.0
LOOK_S = 0.25
FAST = 1 << 20  # bytes a second
# Before so long, what was under way to the client may not have been acknowledged, and its rate says little.
JUDGED_S = 0.02


class Reader(Protocol):
    """A connection with something unsent."""

    @property
    def waited_since(self) -> float:
        """Since when a worker waits for this client (monotonic seconds), `math.inf` if none does."""

    @property
    def unsent_since(self) -> float:
        """Since when something has been unsent (monotonic seconds), `math.inf` if nothing is."""

    @property
    def unsent_memory(self) -> int:
        """Bytes that are kept in memory for this client."""

    def reading_rate(self, since: float, now: float) -> float:
        """Return the bytes a second at which the client has read since `waited_since` or `unsent_since`."""

    def cut(self, why: Cut, now: float) -> None: ...


class Readers:
    """All connections with something unsent.

    `wanted` returns how many requests find no worker free. `deadlines` is where it is filed to look again.
    """

    def __init__(self, max_waiting: int, budget: Budget, wanted: Callable[[], int], deadlines: Watcher) -> None:
        self._max_waiting = max_waiting
        self._budget = budget
        self._wanted = wanted
        self._deadlines = deadlines
        self._readers: set[Reader] = set()
        self.waited_for: set[Reader] = set()  # by workers; some of them not any more
        self._timer = Timer(self._look)

    def __repr__(self) -> str:
        return f"<Readers {len(self._readers)}, {len(self.waited_for)} waited for, looking={self._timer.is_set}>"

    def add(self, reader: Reader, now: float) -> None:
        """Know of a client with something unsent. Called again when a worker has begun to wait for it."""
        self._readers.add(reader)
        self._free_memory(now)
        if reader.waited_since < math.inf and reader in self._readers:
            self.waited_for.add(reader)
            self.make_way(now)
        if (self.waited_for or self._too_much) and not self._timer.is_set:
            self._timer.set(now + LOOK_S, now, self._deadlines)

    def discard(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self.waited_for.discard(reader)

    def make_way(self, now: float) -> None:
        """Free a worker for each request that finds none, but only of those that wait beyond their half."""
        if len(self.waited_for) <= self._max_waiting:
            return
        excess = self._excess()
        if excess > 0:
            excess = min(excess, self._wanted())
        if excess > 0:
            ranks = {reader: self._rank(reader, reader.waited_since, now) for reader in self.waited_for}
            for reader in sorted(ranks, key=ranks.__getitem__)[:excess]:
                fresh, rate, _ = ranks[reader]
                if fresh or rate < FAST:
                    reader.cut(refusals.SLOWEST_READER, now)

    @staticmethod
    def _rank(reader: Reader, since: float, now: float) -> tuple[bool, float, float]:
        """Return what sorts the slowest reader first, and last those of which it cannot be told yet."""
        return now - since < JUDGED_S, reader.reading_rate(since, now), since

    def _excess(self) -> int:
        self.waited_for = {reader for reader in self.waited_for if reader.waited_since < math.inf}
        return len(self.waited_for) - self._max_waiting

    def _look(self, now: float) -> None:
        """Cut those beyond the half who have kept a worker for too long, and look again while any worker waits."""
        self._excess()
        long = {
            reader: reader.reading_rate(reader.waited_since, now)
            for reader in self.waited_for
            if now - reader.waited_since > PATIENCE_S
        }
        for reader in sorted(long, key=long.__getitem__)[: max(0, len(long) - self._max_waiting)]:
            reader.cut(refusals.SLOWEST_READER, now)
        self._free_memory(now)
        if self.waited_for or self._too_much:
            self._timer.set(now + LOOK_S, now, self._deadlines)

    @property
    def _too_much(self) -> bool:
        return self._budget.responses > self._budget.response_limit

    def _free_memory(self, now: float) -> None:
        if not self._too_much:
            return
        ranks = {
            reader: self._rank(reader, reader.unsent_since, now) for reader in self._readers if reader.unsent_memory
        }
        spared = self._spare_largest(ranks)
        if self._budget.responses - spared <= self._budget.response_limit:
            return
        for reader in sorted(ranks, key=ranks.__getitem__):
            fresh, rate, _ = ranks[reader]
            enough = self._budget.memory_limit if fresh else self._budget.memory_limit // 2
            alone = len(ranks) == 1 and not spared
            if self._budget.responses - spared <= enough or alone:
                break
            if fresh or rate < FAST:
                del ranks[reader]
                reader.cut(refusals.SLOWEST_READER, now)

    def _spare_largest(self, ranks: dict[Reader, tuple[bool, float, float]]) -> int:
        """Take out of `ranks` the largest of those who are not to be cut, if it has more than half of the memory.

        Returns how much it has; 0 if there is none.
        """
        most, spared = self._budget.memory_limit // 2, None
        for reader, (fresh, rate, _) in ranks.items():
            if (fresh or rate >= FAST) and (memory := reader.unsent_memory) > most:
                most, spared = memory, reader
        if spared is None:
            return 0
        del ranks[spared]
        return most
