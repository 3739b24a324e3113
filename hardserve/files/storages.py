"""The file threads: for each mount some of its own, so that a storage that hangs holds up nobody but its own files.

A thread that waits for a disk that does not answer cannot be interrupted, and a network share that is away takes every
thread that asks it. Threads exist once they are needed, and not before. I/O thread, but for what the threads run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hardserve.pool import Pool

ResultT = TypeVar("ResultT")


def _always() -> bool:
    return True


class Storages:
    """A pool of `readers` threads for each storage, named as a mount is, with `max_waiting` jobs that wait in each."""

    def __init__(self, readers: int, max_waiting: int) -> None:
        self._readers = readers
        self._max_waiting = max_waiting
        self._pools: dict[str, Pool] = {}

    def __repr__(self) -> str:
        return f"<Storages {' '.join(f'{name}: {pool!r}' for name, pool in self._pools.items())}>"

    def submit(
        self,
        storage: str,
        job: Callable[[], ResultT],
        done: Callable[[ResultT | BaseException], None],
        wanted: Callable[[], bool] = _always,
    ) -> bool:
        """Have `job` done by a thread of `storage`, as `Pool.submit` does."""
        return self.pool(storage).submit(job, done, wanted)

    def pool(self, storage: str) -> Pool:
        pool = self._pools.get(storage)
        if pool is None:
            pool = self._pools[storage] = Pool("file", self._readers, self._max_waiting)
        return pool

    def stop(self, until: float) -> bool:
        """Let all threads end; return whether they had by `until` (monotonic seconds)."""
        stopped = [pool.stop(until) for pool in self._pools.values()]
        return all(stopped)
