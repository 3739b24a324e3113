"""What one rate limit decision costs, and what a million clients do to the store that makes it.

    python -m tests.bench.bench_ratestore

First table: one decision among 100,000 keys, in microseconds of wall-clock time and the longest also in CPU time, for
each strategy: `hit` as the I/O thread calls it, the same store behind the interface of `limits`, and the memory store
of `limits`, whose timer thread is at work. Second table: 1,000,000 clients, each of them new, pass through a store of
50,000 keys: what a step takes (in wall-clock time others have the processor, too), the longest garbage collection, and
how much the process grew.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

from limits.storage import MemoryStorage

from hardserve.edge.limitsstorage import BoundedStorage
from hardserve.edge.ratestore import Limit

KEYS = 100_000
DECISIONS = 200_000
CLIENTS = 1_000_000
LIMITS = [
    Limit(300, 60, "fixed-window"),
    Limit(300, 60, "moving-window"),
    Limit(300, 60, "sliding-window-counter"),
    Limit(300, 60, "burst", 100),
]
LIBRARY = {
    "fixed-window": lambda storage: lambda key: storage.incr(key, 60),
    "moving-window": lambda storage: lambda key: storage.acquire_entry(key, 300, 60),
    "sliding-window-counter": lambda storage: lambda key: storage.acquire_sliding_window_entry(key, 300, 60),
}
Decide = Callable[[str], object]


def own(storage: BoundedStorage, limit: Limit) -> Decide:
    return lambda key: storage.hit(key, limit, 1, time.monotonic())


def client(number: int) -> str:
    return f"default 60 2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64"


def cost_us(decide: Decide) -> tuple[float, float, float, float]:
    """Return median, 99.9th percentile and maximum of a decision for one of KEYS keys, and the most CPU time."""
    for number in range(KEYS):
        decide(client(number))
    choose = random.Random(1).randrange
    nothing = min(timed(lambda key: None, client(number)) for number in range(1000))
    costs = sorted(timed(decide, client(choose(KEYS))) - nothing for _ in range(DECISIONS))
    most_cpu = max(cpu_time(decide, client(choose(KEYS))) for _ in range(DECISIONS))
    return costs[DECISIONS // 2] / 1e3, costs[DECISIONS * 999 // 1000] / 1e3, costs[-1] / 1e3, most_cpu / 1e3


def timed(decide: Decide, key: str) -> int:
    began = time.perf_counter_ns()
    decide(key)
    return time.perf_counter_ns() - began


def cpu_time(decide: Decide, key: str) -> int:
    began = time.thread_time_ns()
    decide(key)
    return time.thread_time_ns() - began


def one_decision() -> None:
    print(f"{'one decision of 100,000 keys, µs':48}{'median':>10}{'99.9%':>10}{'longest':>10}{'CPU':>10}")
    for limit in LIMITS:
        bounded = BoundedStorage(max_keys=KEYS + 50_000)
        line(f"{limit.strategy}, hit", cost_us(own(bounded, limit)))
        if of_limits := LIBRARY.get(limit.strategy):
            bounded.reset()
            line("    by the interface of limits", cost_us(of_limits(bounded)))
            memory = MemoryStorage()
            line("    limits' memory store", cost_us(of_limits(memory)))
            memory.reset()


def line(name: str, figures: tuple[float, ...]) -> None:
    print(f"{name:48}" + "".join(f"{figure:10.1f}" for figure in figures), flush=True)


def flood(limit: Limit) -> None:
    """Print what CLIENTS new clients do to a store, in a process that has done nothing else."""
    before = most = resident()
    storage = BoundedStorage()
    pauses: list[int] = [0]
    began = 0

    def on_gc(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.thread_time_ns()
        else:
            pauses[0] = max(pauses[0], time.thread_time_ns() - began)

    gc.callbacks.append(on_gc)
    longest_wall = longest_cpu = long_steps = total = 0
    for number in range(CLIENTS):
        key = client(number)
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        storage.hit(key, limit, 1, wall / 1e9)
        cpu = time.thread_time_ns() - cpu
        wall = time.perf_counter_ns() - wall
        total += cpu
        longest_wall, longest_cpu = max(longest_wall, wall), max(longest_cpu, cpu)
        long_steps += wall > 1_000_000
        if not number % 10_000:
            most = max(most, resident())
    most = max(most, resident())
    figures = (total / CLIENTS, longest_cpu, longest_wall, float(long_steps * 1000), pauses[0])
    line(limit.strategy, (*(figure / 1e3 for figure in figures), (most - before) / 2**20, storage.size / 1e3))


def resident() -> int:
    with open("/proc/self/statm") as memory:
        return int(memory.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def million_clients() -> None:
    titles = ("mean µs", "CPU µs", "wall µs", "over 1 ms", "gc µs", "MiB", "1000 keys")
    print(f"{'1,000,000 new clients, the longest step':48}" + "".join(f"{title:>10}" for title in titles), flush=True)
    for limit in LIMITS:
        subprocess.run([sys.executable, "-m", "tests.bench.bench_ratestore", limit.strategy], check=True)


def main() -> None:
    if sys.argv[1:]:
        flood(next(limit for limit in LIMITS if limit.strategy == sys.argv[1]))
        return
    one_decision()
    million_clients()


if __name__ == "__main__":
    main()
