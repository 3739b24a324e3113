"""What is known of paths, kept in bounded memory. I/O thread only.

What is not asked for goes first: an entry that was used since it was last considered is passed over once (the clock
algorithm), so that a use costs an assignment, and a crawler that asks for everything once does not push out what
everybody asks for.
"""

from __future__ import annotations

from collections import OrderedDict

from hardserve.files.entries import Entry

# So many are passed over for one that is put there, so that the I/O thread does not go through all of them at once.
SECOND_CHANCES = 64


class Cache:
    """Entries by path, with at most `max_bytes` of content and of what it takes to keep it."""

    __slots__ = ("_bytes", "_costs", "_entries", "_max_bytes", "get")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        # A plain dict finds its first key past all that were deleted before it, each time anew.
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._costs: dict[str, int] = {}
        self.get = self._entries.get  # every request for a file asks, and spares a call

    def __repr__(self) -> str:
        return f"<Cache {len(self._entries)} entries, {self._bytes}/{self._max_bytes} bytes>"

    def put(self, path: str, entry: Entry) -> None:
        """Keep `entry`, which may have grown since it was put there, and have others go for it."""
        self.discard(path)
        cost = entry.cost + 2 * len(path)
        if cost > self._max_bytes:
            return
        self._bytes += cost
        self._entries[path] = entry
        self._costs[path] = cost
        chances = SECOND_CHANCES
        while self._bytes > self._max_bytes:
            oldest, candidate = self._entries.popitem(last=False)
            if candidate.used and chances:
                chances -= 1
                candidate.used = False
                self._entries[oldest] = candidate
            else:
                self._bytes -= self._costs.pop(oldest)

    def discard(self, path: str) -> None:
        """Forget a path, if it is known."""
        if self._entries.pop(path, None) is not None:
            self._bytes -= self._costs.pop(path)
