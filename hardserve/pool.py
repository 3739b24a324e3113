"""A few threads that do what may block, so that neither the I/O thread nor a worker waits: check and file threads.

A password's hash takes a tenth of a second, a cold file on an SD card as long, and a store on another machine may not
answer at all. Jobs are taken first come, first served. None of them is ever interrupted: whoever submits one has a
deadline of its own, goes on without the result when that passes, and says so through `wanted`, so that what nobody
waits for is not begun. A job that hangs keeps its thread, and the others go on; the threads are daemons and keep no
process alive.

What a job does, and what its result means, is not known here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import TypeVar

logger = logging.getLogger("hardserve.pool")

ResultT = TypeVar("ResultT")


def _always() -> bool:
    return True


class Pool:
    """`count` threads named after `name`, and at most `max_waiting` jobs that none of them has taken yet.

    No thread exists before it is needed: each of the first jobs starts one. `submit` and `stop` are for one thread,
    the I/O thread; `repr` and `waiting` for any.
    """

    def __init__(self, name: str, count: int, max_waiting: int) -> None:
        self._name = name
        self._count = count
        self._max_waiting = max_waiting
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []  # the I/O thread's
        self._busy: set[threading.Thread] = set()  # each thread adds and takes out itself, in one step
        self._stopping = False

    def __repr__(self) -> str:
        stopping = ", stopping" if self._stopping else ""
        return (
            f"<Pool {self._name} {len(self._threads)} of {self._count} threads, {len(self._busy)} busy, "
            f"{self.waiting()} waiting{stopping}>"
        )

    def waiting(self) -> int:
        """Return how many jobs no thread has taken yet, those that are not wanted any more among them. Any thread."""
        return self._jobs.qsize()

    def submit(
        self,
        job: Callable[[], ResultT],
        done: Callable[[ResultT | BaseException], None],
        wanted: Callable[[], bool] = _always,
    ) -> bool:
        """Have `job` run by one of the threads, and `done` called there with what it returned or raised. I/O thread.

        `wanted` is asked on that thread just before; if it says no, neither is called. Return False, and call
        nothing, if `max_waiting` jobs wait already, after `stop`, and if the system gives no thread at all.
        """
        if self._stopping or self._jobs.qsize() >= self._max_waiting:
            return False
        if len(self._threads) < self._count and not self._start_thread():
            return False

        def run() -> None:
            if not wanted():
                return
            try:
                result: ResultT | BaseException = job()
            except BaseException as error:
                result = error
            done(result)

        self._jobs.put(run)
        return True

    def _start_thread(self) -> bool:
        """Start one more; return whether there is any."""
        name = f"hardserve-{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # Out of threads or memory. With at least one there is only less done at once.
            logger.warning("cannot start a %s thread (%s); there are %d", self._name, error, len(self._threads))
        else:
            self._threads.append(thread)
        return bool(self._threads)

    def stop(self, until: float) -> bool:
        """Drop what has not begun and let the threads end; return whether all had by `until` (monotonic seconds).

        A dropped job's `done` is not called. Can be called again. I/O thread, after its loop.
        """
        if not self._stopping:
            self._stopping = True
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        thread = threading.current_thread()
        while (run := self._jobs.get()) is not None:
            if self._stopping:
                continue
            self._busy.add(thread)
            try:
                run()
            except BaseException:
                # `wanted` and `done` are ours: this is a bug, and must not cost a thread.
                logger.exception("internal error in a %s thread", self._name)
            self._busy.discard(thread)
            del run  # what it holds must not stay until the next job comes
