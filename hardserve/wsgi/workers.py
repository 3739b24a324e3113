"""The threads that run the app, and the queue in front of them.

No client has more than `max_client` jobs in the pool, waiting for a thread or with one: the others are held back, in
their order, until one of them ends, so that whoever asks next finds a thread and not a crowd. What is in the pool is
taken first come, first served; both together are bounded in number, and by age through `expire`.

Threads wait on a `queue.SimpleQueue` of tokens: put and get are one call into C each, where a condition variable is
Python code. A token says "look", and the jobs are in a deque beside it, where the I/O thread can look at the oldest;
one token too many does no harm. Waking as few workers as possible instead, because threads that all want the
interpreter lock slow each other down, was tried and measured: with system calls that keep that lock
(edge.transport.HeldCalls) it bought nothing, and its bookkeeping cost a twentieth of all requests a second.

A worker that hangs cannot be ended, so it is replaced: `replace` starts another thread in its place, up to
`max_stuck` of them, and the old one ends by itself when its job does.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
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
        self.client = ""
        self.since = 0.0
        self.replaced = False  # written by the I/O thread, with the pool's lock
        self.thread = threading.Thread(target=self._run, name=f"hardserve-worker-{number}", daemon=True)

    def __repr__(self) -> str:
        state = "idle" if self.job is None else repr(self.job)
        return f"<Worker {self.thread.name} {'replaced, ' if self.replaced else ''}{state}>"

    def _run(self) -> None:
        pool = self._pool
        entry = pool.take()
        while entry is not None:
            self.since = monotonic()
            self.client = entry[1]
            self.job = entry[0]
            del entry  # its request may hold a temporary file
            try:
                pool.serve(self.job)
            except BaseException:
                # The task answers for the app; this is a bug of ours, and must not cost a worker.
                logger.exception("worker failed")
            entry = pool.next(self)


class Workers(Generic[JobT]):
    """A number of workers on a bounded queue. `max_client` 0 is all of them but one."""

    def __init__(
        self, count: int, max_waiting: int, serve: Callable[[JobT], None], *, max_client: int = 0, max_stuck: int = 0
    ) -> None:
        self.serve = serve
        self.max_stuck = max_stuck or count
        self._max_client = max_client or max(1, count - 1)
        self._max_waiting = max_waiting
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._add_token = self._tokens.put
        # A job, whom it counts for ("" is nobody), and when it came. A tuple, because each request makes one.
        self._ready: deque[tuple[JobT, str, float]] = deque()
        # The lock is for what follows, and never held over anything that waits for a job.
        self._lock = threading.Lock()
        self._in_pool: dict[str, int] = {}  # jobs of each client, but for those of workers that were replaced
        self._held_back: dict[str, deque[tuple[JobT, str, float]]] = {}
        self._held = 0  # all of those
        self._stopping = False
        self._started = count
        self.workers = [Worker(self, number) for number in range(1, count + 1)]
        self.stuck: list[Worker[JobT]] = []  # replaced, and still on their last job

    def __repr__(self) -> str:
        stuck = f", {len(self.stuck)} stuck" if self.stuck else ""
        return f"<Workers {len(self.workers)} threads, {len(self.busy())} busy, {self.waiting()} waiting{stuck}>"

    def start(self) -> None:
        for worker in self.workers:
            worker.thread.start()

    def waiting(self) -> int:
        """Return how many jobs no worker has taken yet. Any thread."""
        return len(self._ready) + self._held

    def waiting_s(self, now: float) -> float:
        """Return for how long the job has waited that has waited longest, 0 if none does. Any thread."""
        with self._lock:
            came = [held[0][2] for held in self._held_back.values()]
        with contextlib.suppress(IndexError):
            came.append(self._ready[0][2])
        return now - min(came, default=now)

    @property
    def in_pool(self) -> int:
        """How many jobs wait for a thread or are with one, but for those of workers that were replaced. Any thread."""
        return sum(self._in_pool.values())

    def wanted(self) -> int:
        """Return how many jobs have no worker that is free for them. Any thread."""
        return len(self._ready) - sum(worker.job is None for worker in self.workers)

    def submit(self, job: JobT, client: str, now: float) -> bool:
        """Queue `job`; return False if the queue is full. I/O thread."""
        entry = (job, client, now)
        with self._lock:
            if len(self._ready) + self._held >= self._max_waiting:
                return False
            count = self._in_pool.get(client, 0)
            if count >= self._max_client and client:
                self._held_back.setdefault(client, deque()).append(entry)
                self._held += 1
                return True
            self._in_pool[client] = count + 1
        self._ready.append(entry)
        self._add_token(None)
        return True

    def expire(self, before: float) -> list[JobT]:
        """Take out and return the jobs that came before `before` and that no worker has taken. I/O thread."""
        expired = []
        # Not from the front only: what was held back stands behind what came later.
        for entry in [entry for entry in list(self._ready) if entry[2] < before]:
            with contextlib.suppress(ValueError):  # a worker was faster
                self._ready.remove(entry)
                expired.append(entry)
        left = [client for _, client, _ in expired]
        with self._lock:
            # First those that are held back: one of them that is late must not be let in.
            for client, held in list(self._held_back.items()):
                while held and held[0][2] < before:
                    expired.append(held.popleft())
                    self._held -= 1
                if not held:
                    del self._held_back[client]
            for each in left:
                if self._leave(each):
                    self._tokens.put(None)
        return [job for job, _, _ in expired]

    def withdraw(self, job: JobT, client: str) -> bool:
        """Take out a job of `client`, if no worker has taken it; return whether that was done. I/O thread."""
        with self._lock:
            held = self._held_back.get(client, ())
            for place, (each, _, _) in enumerate(held):
                if each == job:
                    del self._held_back[client][place]
                    self._held -= 1
                    if not held:
                        del self._held_back[client]
                    return True
        for entry in list(self._ready):
            if entry[0] == job:
                with contextlib.suppress(ValueError):  # a worker was faster
                    self._ready.remove(entry)
                    with self._lock:
                        if self._leave(client):
                            self._tokens.put(None)
                    return True
        return False

    def _leave(self, client: str) -> bool:
        """Count a job of `client` no more, and let its next one in; return whether there was one.

        The caller holds the lock, and sees to it that a worker looks for that one.
        """
        if self._held and client in self._held_back:
            held = self._held_back[client]
            self._ready.append(held.popleft())
            self._held -= 1
            if not held:
                del self._held_back[client]
            return True
        count = self._in_pool[client] - 1
        if count:
            self._in_pool[client] = count
        else:
            del self._in_pool[client]
        return False

    # --- worker threads ---

    def take(self) -> tuple[JobT, str, float] | None:
        """Wait for a job; None means that there will be no more. Worker thread."""
        while True:
            self._tokens.get()
            try:
                return self._ready.popleft()
            except IndexError:
                if self._stopping:
                    return None

    def next(self, worker: Worker[JobT]) -> tuple[JobT, str, float] | None:
        """Say that a worker's job has ended, and wait for its next one, as `take`. None, too, if it was replaced."""
        worker.job = None
        with self._lock:
            if worker.replaced:
                self.stuck.remove(worker)
                return None
            let_in = self._leave(worker.client)
        if let_in:
            # One came in without a token, so one is taken without. A token would wake a worker that sleeps, where this
            # one is awake: with one busy client, that is a thread woken for each request, and a tenth of them lost.
            try:
                return self._ready.popleft()
            except IndexError:
                self._tokens.put(None)  # somebody has spent theirs on it
        return self.take()

    # --- I/O thread ---

    def busy(self) -> list[Worker[JobT]]:
        """Return the workers that are on a job. Any thread."""
        return [worker for worker in self.workers if worker.job is not None]

    def replace(self, worker: Worker[JobT], job: JobT) -> bool:
        """Start another worker in the place of one that hangs on `job`; return whether that was done.

        It is not when the job has just ended, when `max_stuck` are hanging already, or when the system has no thread
        to give.
        """
        with self._lock:
            if worker.job is not job or worker.replaced or len(self.stuck) >= self.max_stuck:
                return False
            other = Worker(self, self._started + 1)
            try:
                other.thread.start()
            except RuntimeError:
                return False
            self._started += 1
            self.workers[self.workers.index(worker)] = other
            worker.replaced = True
            self.stuck.append(worker)
            if self._leave(worker.client):
                self._tokens.put(None)
        return True

    def discard(self) -> int:
        """Drop what no worker has taken yet; return how much that was. I/O thread, at the end."""
        with self._lock:
            dropped = self._held
            self._held = 0
            self._held_back.clear()
        while True:
            try:
                self._ready.popleft()
            except IndexError:
                return dropped
            dropped += 1

    def stop(self, until: float) -> bool:
        """Let the workers finish what is queued and end; return whether all had by `until` (monotonic seconds).

        They are daemon threads: one that is stuck in the app does not keep the process alive, and one that was
        replaced is not waited for.
        """
        self._stopping = True
        for _ in self.workers:
            self._tokens.put(None)
        for worker in self.workers:
            worker.thread.join(max(0.0, until - monotonic()))
        return not any(worker.thread.is_alive() for worker in self.workers)
