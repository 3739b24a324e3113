"""The bounded store of rates as a storage of the `limits` library.

Any thread. What `limits` calls takes the time from `clock`, and only what it reports (the moment of a reset) is
wall-clock time, reckoned when it is asked for: a wall clock that steps changes nothing that is admitted. Both
interfaces use the same entries, so `incr` and `hit` of one key see each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

from limits.errors import ConfigurationError
from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage

from hardserve.edge.keytable import NONE, KeyTable
from hardserve.edge.ratestore import ADD, MOMENT, TAKE, RateStore


class BoundedStorage(RateStore, Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """A RateStore with the interface of `limits`, for `storage_from_string("hardserve://?max_keys=1000")`, too.

    `reset` is the one step whose length grows with the number of keys. Raises limits.errors.ConfigurationError for a
    number of keys that is none.
    """

    STORAGE_SCHEME = ["hardserve"]  # noqa: RUF012 (what limits' metaclass looks for)

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        *,
        max_keys: int | str = 50_000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        **options: float | str | bool,
    ) -> None:
        RateStore.__init__(self, _key_count(uri, max_keys))
        Storage.__init__(self, uri, wrap_exceptions, **options)
        self._clock = clock
        self._wall_clock = wall_clock

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """Return what its methods may raise: nothing but what wrong arguments make Python raise."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count `amount` in the fixed window of `key`, a new one of `expiry` seconds if none is; return the count."""
        with self._lock:
            self._fixed(key, 0, expiry, 0, amount, self._clock(), ADD)
            return self._table.count[self._table.find("f" + key)]

    def get(self, key: str) -> int:
        """Return the count of the fixed window of `key`."""
        with self._lock:
            slot = self._table.find("f" + key)
            return self._table.count[slot] if slot != NONE and self._table.expires[slot] > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        """Return when the fixed window of `key` ends, as wall-clock time; now, if there is none."""
        with self._lock:
            slot = self._table.find("f" + key)
            left = self._table.expires[slot] - self._clock() if slot != NONE else 0.0
        return self._wall_clock() + max(0.0, left)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` in the moving window of `key` and return True, unless it is too much."""
        with self._lock:
            return self._moving(key, limit, expiry, 0, amount, self._clock(), TAKE) == 0.0

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002
        """Return the wall-clock time of the oldest hit in the moving window of `key` (now, if none), and the count."""
        with self._lock:
            now = self._clock()
            slot = self._table.find("m" + key)
            count, age = 0, 0.0
            if slot != NONE:
                log = self._table.log(slot)
                self._trim(slot, log, now)
                count = self._table.count[slot]
                age = now - (MOMENT.unpack_from(log)[0] - expiry) if log else 0.0
        return self._wall_clock() - age, count

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` in the sliding window of `key` and return True, unless it is too much."""
        with self._lock:
            return self._sliding(key, limit, expiry, 0, amount, self._clock(), TAKE) == 0.0

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return count and remaining seconds of the previous and of the current window of `key`."""
        with self._lock:
            now = self._clock()
            slot = self._table.find(f"s{expiry}/{key}")
            window, previous, count = self._windows(slot, now, expiry)
            left = min((window + 1.0) * expiry - now, expiry)
        return previous, left if previous else 0.0, count, left + expiry

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget the sliding window of `key`."""
        with self._lock:
            self._table.forget(f"s{expiry}/{key}")

    def clear(self, key: str) -> None:
        """Forget all windows of `key`. (Before 5.2 `limits` clears sliding windows in this way, too.)"""
        with self._lock:
            for name in ("f" + key, "m" + key, "b" + key, *(f"s{period}/{key}" for period in self._periods)):
                self._table.forget(name)

    def check(self) -> bool:
        """Return True: it is always there."""
        return True

    def reset(self) -> int:
        """Forget all keys; return how many there were."""
        with self._lock:
            forgotten, self._table = self._table, KeyTable(self._max_keys)
            self._table.evicted = forgotten.evicted
        return len(forgotten)


def _key_count(uri: str | None, max_keys: int | str) -> int:
    for name, value in parse_qsl(urlsplit(uri or "").query, keep_blank_values=True):
        if name != "max_keys":
            raise ConfigurationError(f"{uri}: unknown parameter {name!r}, expected max_keys")
        max_keys = value
    try:
        number = int(max_keys)
    except ValueError:
        number = 0
    if not 1 <= number < 2**31 - 2:
        raise ConfigurationError(f"max_keys = {max_keys!r}: expected a number of keys, such as 50000")
    return number
