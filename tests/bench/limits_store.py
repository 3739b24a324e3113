"""The bars of rate limiting that need no server, each measured in a process that does nothing else.

    python -m tests.bench.limits_store hit|check|flooded-limiter|flooded-sliding-window-counter|...

says its figures as one line of JSON. `hit` is one decision of the bounded store, `check` the whole of a rule, both with
100,000 clients present; the filling is measured as well, because a table that grows does so in one step. The others
bring up a million clients, each of them new, within one minute of a clock that is passed in: to a limiter that has the
default rule and another, and to a bare store of each strategy, whose keys no pressure makes coarser.
"""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from hardserve.edge.limitsstorage import BoundedStorage
from hardserve.edge.networks import prefix_key
from hardserve.edge.ratelimit import RateLimiter
from hardserve.edge.ratestore import Limit
from hardserve.settings import RateLimitingSettings, RateLimitSettings

from .bench_ratelimit import Request
from .bench_ratestore import CLIENTS, DECISIONS, KEYS, LIMITS, Decide, client, own, resident
from .limits_forged import forged_address

MINUTE_RULE = RateLimitSettings(limit="300/minute")
_STEP_NS = 1_000_000  # a millisecond
_WITHIN_S = 60.0


def measure(what: str, repository: Path) -> Mapping[str, float]:
    """Return the figures of `what`, from a new process. Raises subprocess.SubprocessError."""
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.limits_store", what],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


class Steps:
    """Times calls in wall-clock and in processor time, less what timing nothing takes. In nanoseconds."""

    def __init__(self) -> None:
        self.walls: list[int] = []
        self.cpus: list[int] = []
        self._nothing_wall = self._nothing_cpu = 0
        for _ in range(2000):
            self.take(lambda key: None, "")
        self._nothing_wall, self._nothing_cpu = sorted(self.walls)[1000], sorted(self.cpus)[1000]
        self.forget()

    def forget(self) -> None:
        self.walls.clear()
        self.cpus.clear()

    def take(self, decide: Decide, key: str) -> None:
        # The processor's clock is a system call, and is left out of the wall-clock time.
        cpu = time.thread_time_ns()
        wall = time.perf_counter_ns()
        decide(key)
        wall = time.perf_counter_ns() - wall
        cpu = time.thread_time_ns() - cpu
        self.walls.append(wall - self._nothing_wall)
        self.cpus.append(cpu - self._nothing_cpu)

    def median_us(self) -> dict[str, float]:
        return {name: sorted(taken)[len(taken) // 2] / 1e3 for name, taken in self._both()}

    def longest(self, prefix: str = "") -> dict[str, float]:
        found = {prefix + "longest " + name: max(taken) / 1e3 for name, taken in self._both()}
        over = {prefix + "over 1 ms " + name: float(sum(map(_STEP_NS.__lt__, taken))) for name, taken in self._both()}
        return found | over

    def _both(self) -> list[tuple[str, list[int]]]:
        return [("wall", self.walls), ("CPU", self.cpus)]


def one_decision(decide: Decide) -> dict[str, float]:
    steps = Steps()
    for number in range(KEYS):
        steps.take(decide, client(number))
    filling = steps.longest("filling, ")
    steps.forget()
    choose = Random(1).randrange
    for _ in range(DECISIONS):
        steps.take(decide, client(choose(KEYS)))
    return {f"median {name}": value for name, value in steps.median_us().items()} | steps.longest() | filling


def sliding_window_hit() -> Decide:
    limit = next(limit for limit in LIMITS if limit.strategy == "sliding-window-counter")
    return own(BoundedStorage(max_keys=KEYS + 50_000), limit)


def sliding_window_rule() -> Decide:
    limiter = new_limiter(RateLimitingSettings(default="off", max_keys=KEYS + 50_000))
    request = Request("")

    def decide(key: str) -> None:
        request.client = key
        limiter.check(request, time.monotonic())

    return decide


def new_limiter(settings: RateLimitingSettings, storage: BoundedStorage | None = None) -> RateLimiter:
    return RateLimiter(
        [MINUTE_RULE],
        settings,
        failures="off",
        ipv6_prefix=64,
        shared=False,
        dry_run=lambda rule, client: None,
        storage=storage,
    )


def flooded_limiter() -> dict[str, float]:
    def begin() -> tuple[BoundedStorage, Callable[[int, float], None]]:
        settings = RateLimitingSettings()
        storage = BoundedStorage(max_keys=settings.max_keys)
        limiter = new_limiter(settings, storage)

        def check(number: int, now: float) -> None:
            address = forged_address(number)
            limiter.check(Request(prefix_key(address, 32, 64), address=address), now)

        return storage, check

    return flooded(begin)


def flooded_store(limit: Limit) -> dict[str, float]:
    def begin() -> tuple[BoundedStorage, Callable[[int, float], None]]:
        storage = BoundedStorage()
        return storage, lambda number, now: (storage.hit(client(number), limit, 1, now), None)[1]

    return flooded(begin)


def flooded(begin: Callable[[], tuple[BoundedStorage, Callable[[int, float], None]]]) -> dict[str, float]:
    gc.collect()
    before = most = resident()
    storage, decide = begin()
    most_keys = longest = over = total = 0
    for number in range(CLIENTS):
        now = 1000.0 + number * _WITHIN_S / CLIENTS
        cpu = time.thread_time_ns()
        decide(number, now)
        cpu = time.thread_time_ns() - cpu
        total += cpu
        longest = max(longest, cpu)
        over += cpu > _STEP_NS
        most_keys = max(most_keys, storage.size)
        if not number % 10_000:
            most = max(most, resident())
    return {
        "grown MB": (max(most, resident()) - before) / 1e6,
        "most keys": float(most_keys),
        "evicted": float(storage.evicted),
        "mean CPU": total / CLIENTS / 1e3,
        "longest CPU": longest / 1e3,
        "over 1 ms CPU": float(over),
    }


def main() -> None:
    logging.disable()
    (what,) = sys.argv[1:]
    if what == "hit":
        figures = one_decision(sliding_window_hit())
    elif what == "check":
        figures = one_decision(sliding_window_rule())
    elif what == "flooded-limiter":
        figures = flooded_limiter()
    else:
        figures = flooded_store(next(limit for limit in LIMITS if what == f"flooded-{limit.strategy}"))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
