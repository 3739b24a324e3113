"""A bounded table of keys: found by name, forgotten by age, the expired first and then the least recently hit.

Whichever thread holds the lock of its owner, edge/ratestore.py; pure: time is passed in as monotonic seconds. It knows
no limit and no strategy: what `count`, `previous`, `mark` and the logs hold is its owner's business.

A key has a slot, a number that indexes the columns (arrays). Slots are linked into rings by when they were last hit,
and into chains by when they expire; all of that is numbers in columns. Names are found in many small dicts. So nothing
grows by copying it all, and the garbage collector tracks none of it (CPython to 3.13): one object for each key would
make every full collection look at each, which takes milliseconds for 100,000 of them.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from heapq import heappop, heappush

NONE = -1
# The first two slots are no keys but where the rings begin: of the keys that have a log, and of all others.
LOGGED, PLAIN = range(2)
# A longer name is replaced by its digest: names are made of what clients send.
MAX_NAME_CHARS = 128

_BLOCK = 256  # entries of a small dict: integers below 257 cost no memory
_REAPED_AT_ONCE = 2  # expired keys dropped for each new one, so that the table shrinks faster than it grows
_GRAINS = 64  # steps to the span of a key in which it is found that it has expired


class KeyTable:
    """At most `max_keys` keys. A slot is valid until the next `keep` or `evict`, or `forget` of its key.

    `evicted` counts the keys that had to go before they had expired. `log_bytes` is what all logs hold: whoever changes
    the length of one keeps it right.
    """

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._size = 0
        self._turn = 0
        self.evicted = 0
        self.log_bytes = 0
        # Each of these dicts is small enough to be resized in microseconds.
        shards = 1 << max(0, (max_keys // _BLOCK).bit_length())
        self._shards: list[dict[str, int]] = [{} for _ in range(shards)]
        self._mask = shards - 1
        # All columns are as long as they ever get: to grow one copies it, which takes up to a millisecond for all.
        slots = max_keys + 2
        self._names: list[dict[int, str]] = [{} for _ in range(0, slots, _BLOCK)]  # by slot // _BLOCK and slot % _BLOCK
        self._logs: list[dict[int, bytearray]] = [{} for _ in range(0, slots, _BLOCK)]
        self.count = array("q", bytes(8 * slots))
        self.previous = array("q", bytes(8 * slots))
        self.mark = array("d", bytes(8 * slots))
        self.expires = array("d", bytes(8 * slots))
        # Rings by last hit: the oldest is next to the ring's own slot. Free slots are chained by `_next`.
        self._next = array("i", range(1, slots + 1))
        self._before = array("i", range(slots))
        self._hit_at = array("q", bytes(8 * slots))
        # Keys that are due at the same time are a chain; the heap has the moments of all chains, also of empty ones.
        self._due = array("d", bytes(8 * slots))
        self._chain_next = array("i", bytes(4 * slots))
        self._chain_before = array("i", bytes(4 * slots))
        self._chains: dict[float, int] = {}
        self._dues: list[float] = []
        for ring in (LOGGED, PLAIN):
            self._next[ring] = ring
        self._free = 2

    def __repr__(self) -> str:
        return (
            f"<KeyTable {self._size} of {self._max_keys} keys, {self.log_bytes} bytes of logs, {self.evicted} evicted>"
        )

    def __len__(self) -> int:
        """Return how many keys are kept, expired ones that are not in the way yet included."""
        return self._size

    def log(self, slot: int) -> bytearray:
        """Return the log of a slot, a new one if it has none."""
        logs, index = self._logs[slot // _BLOCK], slot % _BLOCK
        log = logs.get(index)
        if log is None:
            log = logs[index] = bytearray()
        return log

    def evict(self, ring: int, now: float) -> None:
        """Forget the key of a ring that was least recently hit."""
        self._evict(self._next[ring], now)

    def find(self, name: str) -> int:
        """Return the slot of a key, or NONE. What has expired may still be there: look at `expires`."""
        if len(name) > MAX_NAME_CHARS:
            name = _shortened(name)
        return self._shards[hash(name) & self._mask].get(name, NONE)

    def keep(self, name: str, slot: int, expires: float, span: float, now: float, ring: int) -> int:
        """Return the slot of the key, which is the last one hit now and expires at `expires`.

        `slot` is what `find` returned for `name`, `span` about how long keys like this one live in seconds, which says
        how exactly expired ones have to be found. A new key has counts of 0, and is in `ring` for good.
        """
        if slot == NONE:
            slot = self._make(name, now)
            self.expires[slot] = expires
            self._chain(slot, expires, span)
            self._link(slot, ring)
            return slot
        self.touch(slot, ring)
        self.expires[slot] = expires
        if expires > self._due[slot]:
            self._unchain(slot)
            self._chain(slot, expires, span)
        return slot

    def _make(self, name: str, now: float) -> int:
        for _ in range(_REAPED_AT_ONCE):
            expired = self._first_expired(now)
            if expired == NONE:
                break
            self._drop(expired)
        if self._size == self._max_keys:
            self._evict(self._least_recent(), now)
        slot = self._free
        self._free = self._next[slot]
        if len(name) > MAX_NAME_CHARS:
            name = _shortened(name)
        self._shards[hash(name) & self._mask][name] = slot
        self._names[slot // _BLOCK][slot % _BLOCK] = name
        self.count[slot] = self.previous[slot] = 0
        self._size += 1
        return slot

    def forget(self, name: str) -> None:
        """Drop a key, if it is there."""
        slot = self.find(name)
        if slot != NONE:
            self._drop(slot)

    def _evict(self, slot: int, now: float) -> None:
        if self.expires[slot] > now:
            self.evicted += 1
        self._drop(slot)

    def _drop(self, slot: int) -> None:
        name = self._names[slot // _BLOCK].pop(slot % _BLOCK)
        del self._shards[hash(name) & self._mask][name]
        log = self._logs[slot // _BLOCK].pop(slot % _BLOCK, None)
        if log is not None:
            self.log_bytes -= len(log)
        self._unlink(slot)
        self._unchain(slot)
        self._next[slot] = self._free
        self._free = slot
        self._size -= 1

    # --- who was hit last ---

    def _link(self, slot: int, ring: int) -> None:
        last = self._before[ring]
        self._next[last] = self._before[ring] = slot
        self._before[slot] = last
        self._next[slot] = ring
        self._turn += 1
        self._hit_at[slot] = self._turn

    def _unlink(self, slot: int) -> None:
        before, after = self._before[slot], self._next[slot]
        self._next[before] = after
        self._before[after] = before

    def touch(self, slot: int, ring: int) -> None:
        """Note that a key was hit, or asked for, just now."""
        if self._next[slot] != ring:
            self._unlink(slot)
            self._link(slot, ring)
        else:
            self._turn += 1
            self._hit_at[slot] = self._turn

    def _least_recent(self) -> int:
        moving, other = self._next[LOGGED], self._next[PLAIN]
        if moving == LOGGED:
            return other
        if other == PLAIN or self._hit_at[moving] < self._hit_at[other]:
            return moving
        return other

    # --- who expires first ---

    def _chain(self, slot: int, expires: float, span: float) -> None:
        # A power of two of seconds: limits of like spans share their chains, and the sums are exact.
        grain = math.ldexp(1.0, math.frexp(span / _GRAINS)[1] - 1)
        due = math.ceil(expires / grain) * grain
        first = self._chains.get(due)
        if first is None:
            heappush(self._dues, due)
            first = NONE
        self._chains[due] = slot
        self._due[slot] = due
        self._chain_next[slot] = first
        self._chain_before[slot] = NONE
        if first != NONE:
            self._chain_before[first] = slot

    def _unchain(self, slot: int) -> None:
        before, after = self._chain_before[slot], self._chain_next[slot]
        if before == NONE:
            self._chains[self._due[slot]] = after
        else:
            self._chain_next[before] = after
        if after != NONE:
            self._chain_before[after] = before

    def _first_expired(self, now: float) -> int:
        dues = self._dues
        while dues and dues[0] <= now:
            slot = self._chains[dues[0]]
            if slot != NONE:
                return slot
            del self._chains[heappop(dues)]
        return NONE


def _shortened(name: str) -> str:
    return name[0] + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
