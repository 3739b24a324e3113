"""How often each key was hit of late: one bounded table for all rate limits, with the strategies of `limits`.

Any thread, under one lock; meant for the I/O thread, which passes the time in as monotonic seconds. It knows no client,
no rule and no request, only keys. edge/limitsstorage.py makes a storage of the `limits` library of it; that library is
not imported here, because a server without a shared store needs nothing of it, and it takes 4 MB.

What is forgotten, and when. There are never more than `max_keys` keys. Each new key makes room by dropping what has
expired, and when there is nothing of that, the key goes that was least recently hit. The client behind an evicted key
starts afresh: whoever can bring up that many keys can evict their own and so get past a limit. `evicted` counts the
keys that went while they still mattered; edge/ratelimit.py watches it and counts by coarser keys while it grows.
A moving window keeps a moment for each hit in it, so these are bounded too: about MAX_MOMENTS for a key, and
MOMENTS_PER_KEY times `max_keys` in all. Above that the moving windows that were least recently hit go, as many as it
takes; keys of the other strategies do not pay for them.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from struct import Struct

from hardserve.edge.keytable import LOGGED, NONE, PLAIN, KeyTable

# Moments that one moving window keeps. A limit of more a period is kept in so many steps: a hit then counts for longer
# than the period, by at most this part of it, and never for less.
MAX_MOMENTS = 1024
MOMENTS_PER_KEY = 8

FIXED, MOVING, SLIDING, BURST = "fixed-window", "moving-window", "sliding-window-counter", "burst"
STRATEGIES = frozenset({FIXED, MOVING, SLIDING, BURST})

LOOK, TAKE, ADD = range(3)
_CEILING = 2**52  # of any count: what a float and a column hold exactly
MOMENT = Struct("dq")  # until when, how many
# Conservative by far less than one hit: what rounding may take from a weighted count is given back.
_ROUNDED_UP = 1.0 + 2.0**-50
# Of the time since the clock began: by so much a hit may be early, for what rounding may take. It does not add up.
_EARLY = 2.0**-49


@dataclass(frozen=True, slots=True)
class Limit:
    """How much is allowed: `amount` a `period` of seconds, by one of STRATEGIES.

    "fixed-window": the window begins with a key's first hit. "moving-window": never more in any period.
    "sliding-window-counter": windows begin at multiples of the period, and the one before counts by the part of it that
    is less than a period ago. "burst": one every period/amount seconds, and after a pause `burst` more at once.
    Raises ValueError for what is no limit.
    """

    amount: int
    period: int
    strategy: str
    burst: int = 0

    def __post_init__(self) -> None:
        if self.amount < 1 or self.period < 1 or self.burst < 0 or self.strategy not in STRATEGIES:
            raise ValueError(f"not a rate limit: {self}")


class RateStore:
    """Counts hits by key, in at most `max_keys` keys. A key must always be used with the same limit.

    A cost may be more than is left only for `add`.
    """

    def __init__(self, max_keys: int = 50_000) -> None:
        self._max_keys = max_keys
        self._max_log_bytes = max(MOMENTS_PER_KEY * max_keys, 2 * MAX_MOMENTS) * MOMENT.size
        self._lock = threading.Lock()
        self._decide = {FIXED: self._fixed, MOVING: self._moving, SLIDING: self._sliding, BURST: self._burst}
        # The mark of a key is the number of its sliding window, or the moment, counted in hits, when a burst limit has
        # all of its burst again. The count of a moving window is of all moments in its log, which has the oldest first.
        self._table = KeyTable(self._max_keys)
        self._periods: set[int] = set()  # of sliding windows: as many as there are in the rules

    def __repr__(self) -> str:
        moments = self._table.log_bytes // MOMENT.size
        return (
            f"<{type(self).__name__} {self.size} of {self._max_keys} keys, {moments} moments, {self.evicted} evicted>"
        )

    @property
    def size(self) -> int:
        """Return how many keys are kept, expired ones that are not in the way yet included."""
        return len(self._table)

    @property
    def evicted(self) -> int:
        """Return how many keys were forgotten so far that had not expired."""
        return self._table.evicted

    def wait(self, key: str, limit: Limit, cost: int, now: float) -> float:
        """Return in how many seconds `cost` will be admitted: 0.0 is now, and infinity is never."""
        with self._lock:
            return self._decide[limit.strategy](key, limit.amount, limit.period, limit.burst, cost, now, LOOK)

    def hit(self, key: str, limit: Limit, cost: int, now: float) -> float:
        """Return what `wait` would, and count `cost` if that is 0.0."""
        with self._lock:
            return self._decide[limit.strategy](key, limit.amount, limit.period, limit.burst, cost, now, TAKE)

    def add(self, key: str, limit: Limit, cost: int, now: float) -> None:
        """Count `cost`, whether it is over the limit or not."""
        with self._lock:
            self._decide[limit.strategy](key, limit.amount, limit.period, limit.burst, cost, now, ADD)

    # --- the strategies: all return how long to wait, and count if they are asked to ---

    def _fixed(self, key: str, amount: int, period: float, _: int, cost: int, now: float, mode: int) -> float:
        name = "f" + key
        table = self._table
        slot = table.find(name)
        expires = table.expires[slot] if slot != NONE else now
        begun = expires > now
        count = table.count[slot] if begun else 0
        if mode != ADD and count + cost > amount:
            if slot != NONE:
                table.touch(slot, PLAIN)
            return _until(expires, now) if cost <= amount else math.inf
        if mode != LOOK:
            expires = expires if begun else now + period
            slot = table.keep(name, slot, expires, period, now, PLAIN)
            table.count[slot] = min(count + cost, _CEILING)
        elif slot != NONE:
            table.touch(slot, PLAIN)
        return 0.0

    def _sliding(self, key: str, amount: int, period: int, _: int, cost: int, now: float, mode: int) -> float:
        name = f"s{period}/{key}"
        table = self._table
        slot = table.find(name)
        window, previous, count = self._windows(slot, now, period)
        if mode != ADD:
            end = (window + 1.0) * period
            # As `limits` rounds: a part of a hit is none.
            weighted = math.floor(previous * min(end - now, period) / period * _ROUNDED_UP) if previous else 0
            if weighted + count + cost > amount:
                if slot != NONE:
                    table.touch(slot, PLAIN)
                return _sliding_wait(previous, count, amount - cost + 1, period, end, now)
        if mode != LOOK:
            if slot == NONE:
                self._periods.add(period)
            slot = table.keep(name, slot, (window + 2.0) * period, period, now, PLAIN)
            table.mark[slot] = window
            table.previous[slot] = previous
            table.count[slot] = min(count + cost, _CEILING)
        elif slot != NONE:
            table.touch(slot, PLAIN)
        return 0.0

    def _windows(self, slot: int, now: float, period: int) -> tuple[float, int, int]:
        """Return the number of the current window, the count of the one before it, and its own."""
        table = self._table
        window = now // period
        if slot != NONE:
            begun = table.mark[slot]
            if begun >= window:  # later only when another thread read the clock earlier, and got here later
                return begun, table.previous[slot], table.count[slot]
            if begun == window - 1.0:
                return window, table.count[slot], 0
        return window, 0, 0

    def _moving(self, key: str, amount: int, period: int, _: int, cost: int, now: float, mode: int) -> float:
        name = "m" + key
        table = self._table
        slot = table.find(name)
        count, gone, log = 0, 0, None
        if slot != NONE:
            log = table.log(slot)
            if mode == LOOK:
                gone, _ = _gone(log, now)
            else:
                self._trim(slot, log, now)
            count = table.count[slot]
        if mode != ADD and count - gone + cost > amount:
            if log is None or cost > amount:
                return math.inf
            table.touch(slot, LOGGED)
            return _until(_when_gone(log, count + cost - amount), now)
        if mode != LOOK:
            until = now + period
            if amount > MAX_MOMENTS:
                grain = period / MAX_MOMENTS
                until = max(until, math.ceil(until / grain) * grain)
            if log:
                until = max(until, table.expires[slot])  # earlier only by another thread's clock
            slot = table.keep(name, slot, until, period, now, LOGGED)
            self._log(slot, table.log(slot), until, min(cost, _CEILING), amount)
            while table.log_bytes > self._max_log_bytes:
                table.evict(LOGGED, now)
        elif slot != NONE:
            table.touch(slot, LOGGED)
        return 0.0

    def _trim(self, slot: int, log: bytearray, now: float) -> None:
        gone, length = _gone(log, now)
        if length:
            del log[:length]
            self._table.count[slot] -= gone
            self._table.log_bytes -= length

    def _log(self, slot: int, log: bytearray, until: float, cost: int, amount: int) -> None:
        """Append a moment, and leave out what no longer matters because of it: all but the last `amount` hits."""
        table = self._table
        table.log_bytes -= len(log)
        if log:
            last, count = MOMENT.unpack_from(log, len(log) - MOMENT.size)
            if last == until:
                del log[-MOMENT.size :]
                cost += count
                table.count[slot] -= count
        log += MOMENT.pack(until, cost)
        table.count[slot] += cost
        excess = table.count[slot] - amount
        while excess > 0:
            until, count = MOMENT.unpack_from(log)
            if count > excess:
                MOMENT.pack_into(log, 0, until, count - excess)
                count = excess
            else:
                del log[: MOMENT.size]
            table.count[slot] -= count
            excess -= count
        table.log_bytes += len(log)

    def _burst(self, key: str, amount: int, period: int, burst: int, cost: int, now: float, mode: int) -> float:
        name = "b" + key
        table = self._table
        slot = table.find(name)
        # Time is counted in hits, so that the schedule moves by whole numbers and sums of fractions cannot drift.
        tick = now * amount / period
        full = max(table.mark[slot], tick) if slot != NONE else tick
        if mode != ADD and full - tick + cost > burst + 1 + full * _EARLY:
            if slot != NONE:
                table.touch(slot, PLAIN)
            if cost > burst + 1:
                return math.inf
            return _until((full + cost - burst - 1) * period / amount, now)
        if mode != LOOK:
            full += min(cost, _CEILING)
            span = (burst + 1) * period / amount
            slot = table.keep(name, slot, full * period / amount, span, now, PLAIN)
            table.mark[slot] = full
        elif slot != NONE:
            table.touch(slot, PLAIN)
        return 0.0


def _until(moment: float, now: float) -> float:
    """Return how long it is until `moment`: more than nothing, and `now` plus that is never before it."""
    wait = max(moment - now, math.ulp(now))
    return wait if now + wait >= moment else wait + math.ulp(moment)


def _sliding_wait(previous: int, count: int, room: int, period: int, end: float, now: float) -> float:
    """Return how long until less than `room` is counted: before this window is over at `end`, or in the next one."""
    if room < 1:
        return math.inf
    if count >= room:
        previous, count, end = count, 0, end + period
    moment = end - min(1.0, (room - count) / previous) * period
    # At that very moment it is still a whole hit too much, and it is only as exact as what it is reckoned from.
    return _until(moment + 16.0 * math.ulp(end), now)


def _gone(log: bytearray, now: float) -> tuple[int, int]:
    """Return how many hits have left a moving window, and how many bytes of its log they are."""
    gone = at = 0
    while at < len(log):
        until, count = MOMENT.unpack_from(log, at)
        if until > now:
            break
        gone += count
        at += MOMENT.size
    return gone, at


def _when_gone(log: bytearray, count: int) -> float:
    """Return when the oldest `count` hits of a moving window will have left it."""
    gone = 0.0
    for until, number in MOMENT.iter_unpack(log):
        gone = until
        count -= number
        if count <= 0:
            break
    return gone
