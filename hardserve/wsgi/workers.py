"""The threads that run the app, and the queue in front of them.

The queue is `queue.SimpleQueue`: put and get are one call into C each, where waitress's dispatcher is
Python code under a condition variable. Waking as few workers as possible instead, because threads that all want the
interpreter lock slow each other down, was tried and measured: with system calls that keep that lock
(edge.transport.HeldCalls) it bought nothing, and its bookkeeping cost a twentieth of all requests a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Generic, TypeVar

logger = logging.getLogger("hardserve.wsgi")

JobT = TypeVar("JobT")


class Worker(Generic[JobT]):
    """One thread. `job` is what it is on, None while it waits; `since` is when it took it (monotonic seconds).

    Both are written by its own thread and may be read by any, at any moment: read `job` once.
    """

    def __init__(self, pool: Workers[JobT], number: int) -> None:
        self._pool = pool
        self.job: JobT | None = None
        self.since = 0.0
        self.thread = threading.Thread(target=self._run, name=f"hardserve-worker-{number}", daemon=True)

    def __repr__(self) -> str:
        return f"<Worker {self.thread.name} {'idle' if self.job is None else self.job!r}>"

    def _run(self) -> None:
        take, serve = self._pool.take, self._pool.serve
        while True:
            job = take()
            if job is None:
                return
            self.since = monotonic()
            self.job = job
            try:
                serve(job)
            except BaseException:
                # The task answers for the app; this is a bug of ours, and must not cost a worker.
                logger.exception("worker failed")
            self.job = None
            del job  # its request may hold a temporary file


class Workers(Generic[JobT]):
    """A fixed number of workers on a bounded queue."""

    def __init__(self, count: int, max_waiting: int, serve: Callable[[JobT], None]) -> None:
        self.serve = serve
        self._max_waiting = max_waiting
        self._waiting: SimpleQueue[JobT | None] = SimpleQueue()
        self.take = self._waiting.get
        self.workers = [Worker(self, number) for number in range(1, count + 1)]

    def __repr__(self) -> str:
        return f"<Workers {len(self.workers)} threads, {len(self.busy())} busy, {self._waiting.qsize()} waiting>"

    def start(self) -> None:
        for worker in self.workers:
            worker.thread.start()

    def submit(self, job: JobT) -> bool:
        """Queue `job`; return False if the queue is full. I/O thread."""
        if self._waiting.qsize() >= self._max_waiting:
            return False
        self._waiting.put(job)
        return True

    def busy(self) -> list[Worker[JobT]]:
        """Return the workers that are on a request. Any thread."""
        return [worker for worker in self.workers if worker.job is not None]

    def discard(self) -> int:
        """Drop what no worker has taken yet; return how much that was. Any thread."""
        dropped = 0
        while True:
            try:
                self._waiting.get_nowait()
            except Empty:
                return dropped
            dropped += 1

    def stop(self, until: float) -> bool:
        """Let the workers finish what is queued and end; return whether all had by `until` (monotonic seconds).

        They are daemon threads: one that is stuck in the app does not keep the process alive.
        """
        for _ in self.workers:
            self._waiting.put(None)
        for worker in self.workers:
            worker.thread.join(max(0.0, until - monotonic()))
        return not any(worker.thread.is_alive() for worker in self.workers)
