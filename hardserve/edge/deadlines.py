"""Which connections have run out of time, found without looking at those that have not.

A wheel of quarter-second slots, pure: time is passed in as monotonic seconds. I/O thread only, but for one thing: a
worker that hands a connection back moves its deadline to *later* by assigning an attribute. So a slot is only where
an item is looked at again, never the deadline itself: when the slot comes up the item is asked, and filed anew if it
has time left. Moving a deadline later therefore costs nothing here, and a busy keep-alive connection touches the
wheel once in a slot's time, however many requests it makes. Only moving one *earlier* needs `watch`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Protocol

SLOT_S = 0.25


class Timed(Protocol):
    """What can run out of time. `slot` belongs to the wheel."""

    slot: int | None

    def deadline(self) -> float:
        """Return the moment in monotonic seconds, or `math.inf` while nothing is awaited."""

    def on_deadline(self, now: float) -> None:
        """Do what is due. Called for what `due` returned; it may have been given more time since."""


class Timer:
    """Calls `action(now)` once each time it is set, no later than a slot after the moment it was set to."""

    __slots__ = ("_action", "_at", "is_set", "slot")

    def __init__(self, action: Callable[[float], None]) -> None:
        self._action = action
        self._at = math.inf
        self.is_set = False
        self.slot: int | None = None

    def __repr__(self) -> str:
        return f"<Timer at={self._at}>"

    def set(self, at: float, now: float, deadlines: Watcher) -> None:
        """Have it called at `at`, or earlier if it was set to that. `deadlines` has it filed."""
        if at < self._at:
            self._at = at
            self.is_set = True
            deadlines.watch(self, now)

    def deadline(self) -> float:
        return self._at

    def on_deadline(self, now: float) -> None:
        if self._at <= now:
            self._at = math.inf
            self.is_set = False
            self._action(now)


class Watcher(Protocol):
    """Whoever files what can run out of time."""

    def watch(self, item: Timed, now: float) -> None: ...


class Deadlines:
    """Everything that can run out of time. Each item is filed once; its owner calls `forget` when it ends."""

    __slots__ = ("_heap", "_slots")

    def __init__(self) -> None:
        self._slots: dict[int, set[Timed]] = {}
        self._heap: list[int] = []  # the keys of _slots, earliest first

    def __repr__(self) -> str:
        return f"<Deadlines {sum(map(len, self._slots.values()))} items in {len(self._slots)} slots>"

    def watch(self, item: Timed, now: float) -> None:
        """See to it that `item` is looked at no later than one slot after its deadline."""
        deadline = item.deadline()
        # An item that awaits nothing is busy, and another thread may give it a deadline at any moment without
        # telling: look again at the next slot. There are never more of those than requests in the server.
        slot = int((now if deadline == math.inf else deadline) / SLOT_S) + 1
        filed = item.slot
        if filed is not None:
            if filed <= slot:
                return
            self._slots[filed].discard(item)
        item.slot = slot
        bucket = self._slots.get(slot)
        if bucket is None:
            self._slots[slot] = {item}
            heapq.heappush(self._heap, slot)
        else:
            bucket.add(item)

    def forget(self, item: Timed) -> None:
        """Drop `item`, so that the wheel does not keep it alive."""
        if item.slot is not None:
            self._slots[item.slot].discard(item)
            item.slot = None

    def due(self, now: float) -> list[Timed]:
        """Take out and return the items whose deadline has passed; the caller ends them or watches them again."""
        late: list[Timed] = []
        while self._heap and self._heap[0] * SLOT_S <= now:
            for item in self._slots.pop(heapq.heappop(self._heap)):
                item.slot = None
                if item.deadline() <= now:
                    late.append(item)
                else:
                    self.watch(item, now)
        return late

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until `due` is worth calling, None while nothing is watched."""
        return max(0.0, self._heap[0] * SLOT_S - now) if self._heap else None
