"""The threads that run the app, and how work reaches them.

A request goes into a deque; that is all a busy worker needs to find it. What costs is waking a sleeping one. Threads
that all want the interpreter lock make each other slower: with a 50 µs app, four workers that wake for every request
answer 10% fewer requests than one that never sleeps. So a worker is woken only

* when none is awake, at once;
* when nothing has been taken for `STALL_S` although something waits, because whoever is awake is then doing something
  long (a query, a template, a sleep). The longer that lasts the more are woken: 1, 2, 4, all.

An app that sleeps therefore gets all its workers within a few milliseconds, and one that computes is not slowed down by
threads it cannot use. `nudge` decides that, on the I/O thread, once a turn.

Who owns what: both deques are appended to and popped from without a lock, each operation being atomic. A worker with
nothing to do puts itself into `_idle` and *then* looks at `_waiting` again; the I/O thread appends to `_waiting` and
*then* looks at `_idle`. One of them sees the other. Whoever takes a worker out of `_idle` owes it one release.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

logger = logging.getLogger("hardserve.wsgi")

JobT = TypeVar("JobT")

# Longer than nearly every request of an app that only computes, and short against any wait for another machine.
STALL_S = 0.00025
# What the selector can wait at the least.
NUDGE_INTERVAL_S = 0.001


class Worker(Generic[JobT]):
    """One thread. `job` is what it is on, None while it waits; `since` is when it took it (monotonic seconds)."""

    def __init__(self, pool: Workers[JobT], number: int) -> None:
        self._pool = pool
        self._wakened = threading.Lock()
        self._wakened.acquire()
        self.job: JobT | None = None
        self.since = 0.0
        self.thread = threading.Thread(target=self._run, name=f"hardserve-worker-{number}", daemon=True)

    def __repr__(self) -> str:
        return f"<Worker {self.thread.name} {'idle' if self.job is None else self.job!r}>"

    def wake(self) -> None:
        self._wakened.release()

    def _run(self) -> None:
        pool, wakened = self._pool, self._wakened
        while True:
            try:
                job = pool.take()
            except IndexError:
                if pool.stopping:
                    return
                pool.rest(self)
                wakened.acquire()
                continue
            self.since = pool.last_taken = monotonic()
            self.job = job
            try:
                pool.serve(job)
            except BaseException:
                # The task answers for the app; this is a bug of ours, and must not cost a worker.
                logger.exception("worker failed")
            self.job = None
            del job


class Workers(Generic[JobT]):
    """A fixed number of workers on a bounded queue."""

    def __init__(self, count: int, max_waiting: int, serve: Callable[[JobT], None]) -> None:
        self.serve = serve
        self.stopping = False
        self.last_taken = 0.0
        self._max_waiting = max_waiting
        self._waiting: deque[JobT] = deque()
        self._idle: deque[Worker[JobT]] = deque()
        self._stalls = 0
        self.workers = [Worker(self, number) for number in range(1, count + 1)]
        self.take = self._waiting.popleft

    def __repr__(self) -> str:
        return f"<Workers {len(self.workers)} threads, {len(self._idle)} idle, {len(self._waiting)} waiting>"

    def start(self) -> None:
        for worker in self.workers:
            worker.thread.start()

    def submit(self, job: JobT) -> bool:
        """Queue `job`; return False if the queue is full. I/O thread; call `nudge` before the thread next waits."""
        if len(self._waiting) >= self._max_waiting:
            return False
        self._waiting.append(job)
        return True

    def nudge(self, now: float) -> float | None:
        """Wake workers if what waits needs them; return in how many seconds to ask again. I/O thread."""
        if not self._waiting or not self._idle:
            self._stalls = 0
            return None
        if len(self._idle) == len(self.workers):
            self._wake(1)
            self._stalls = 0
        elif now - self.last_taken >= STALL_S:
            self._wake(1 << self._stalls)
            self._stalls += 1
        return NUDGE_INTERVAL_S

    def rest(self, worker: Worker[JobT]) -> None:
        """Note that `worker` is about to wait for its lock. Worker thread."""
        self._idle.append(worker)
        if self._waiting or self.stopping:
            # Something came in between; perhaps nobody saw this worker idle.
            try:
                self._idle.remove(worker)
            except ValueError:
                return  # somebody did, and has released its lock or is about to
            worker.wake()

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            try:
                worker = self._idle.pop()  # the one that ran last has the warmest caches
            except IndexError:
                return
            worker.wake()

    def busy(self) -> list[Worker[JobT]]:
        """Return the workers that are on a request. Any thread."""
        return [worker for worker in self.workers if worker.job is not None]

    def discard(self) -> int:
        """Drop what no worker has taken yet; return how much that was. Any thread."""
        dropped = 0
        while True:
            try:
                self.take()
            except IndexError:
                return dropped
            dropped += 1

    def stop(self, until: float) -> bool:
        """Let the workers finish what is queued and end; return whether all had by `until` (monotonic seconds).

        They are daemon threads: one that is stuck in the app does not keep the process alive.
        """
        self.stopping = True
        while True:
            try:
                self._idle.pop().wake()
            except IndexError:
                break
        for worker in self.workers:
            worker.thread.join(max(0.0, until - monotonic()))
        return not any(worker.thread.is_alive() for worker in self.workers)
