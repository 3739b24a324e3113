"""Holds the pool to its deadlines: who has waited too long for a worker, and which worker has been gone too long.

I/O thread, from a timer that is set only while there is anything in the pool. It decides; what a decision does to a
client is the business of the functions that it is given.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from hardserve.wsgi.workers import Worker, Workers

logger = logging.getLogger("hardserve.wsgi")

JobT = TypeVar("JobT")

# How long a job waits before it matters that no worker gets on.
MINDED_S = 2.0
LOOK_S = 0.1  # at the latest in the next slot of the wheel, and with this, in each


@contextlib.contextmanager
def _contained(job: object) -> Iterator[None]:
    """Keep what fails with one job from the others: they have left the queue, and nobody else tells their clients."""
    try:
        yield
    except Exception:
        logger.exception("internal error on %r", job)


@dataclass(slots=True)
class PoolContext(Generic[JobT]):
    """What a Watch asks about a job, and has done to it. All on the I/O thread.

    `app_since` returns since when the app owes a part of its answer (monotonic seconds, `math.inf`: it does not).
    `expired` refuses a job that no worker has taken. `late` answers for a worker; it may find that nothing is left to
    answer. `interrupt` raises an exception in the app. `unhealthy` is told whether too many workers hang, each time
    that changes.
    """

    app_since: Callable[[JobT], float]
    expired: Callable[[JobT, float], None]
    late: Callable[[JobT, float], object]
    interrupt: Callable[[JobT], None]
    unhealthy: Callable[[bool], None]
    describe: Callable[[JobT], str] = repr  # for the log


class Watch(Generic[JobT]):
    """Looks at a pool every quarter second. `app_s` and `interrupt_s` 0 are never."""

    def __init__(
        self, workers: Workers[JobT], ctx: PoolContext[JobT], *, queue_s: float, app_s: float, interrupt_s: float
    ) -> None:
        self._workers = workers
        self._ctx = ctx
        self._queue_s = queue_s
        self._app_s = app_s or math.inf
        self._interrupt_s = interrupt_s or math.inf
        self._late: dict[Worker[JobT], JobT] = {}  # on which jobs workers hang; each is dealt with once
        self._interrupted: set[Worker[JobT]] = set()
        self.healthy = True

    def __repr__(self) -> str:
        return f"<Watch {len(self._late)} late, {'healthy' if self.healthy else 'unhealthy'}>"

    def look(self, now: float) -> float | None:
        """End what is late; return when to look again (monotonic seconds), None when there is nothing to watch."""
        for waiting in self._workers.expire(now - self._queue_s):
            with _contained(waiting):
                self._ctx.expired(waiting, now)
        for worker in self._workers.busy():
            job = worker.job
            if job is not None and self._late.get(worker) is not job and now - self._ctx.app_since(job) >= self._app_s:
                self._end(worker, job, now)
        for worker, late in list(self._late.items()):
            if worker.job is not late:
                del self._late[worker]
                self._interrupted.discard(worker)
                logger.warning("%s has come back: %s", worker.thread.name, self._ctx.describe(late))
                continue
            if self._workers.replace(worker, late):
                # When it was found there were too many of them, or the system had no thread to give.
                logger.warning("%s is replaced now: %s", worker.thread.name, self._ctx.describe(late))
            if worker not in self._interrupted and now - self._ctx.app_since(late) >= self._app_s + self._interrupt_s:
                self._interrupted.add(worker)
                with _contained(late):
                    self._ctx.interrupt(late)
        self._judge()
        # Not `busy`: a worker that has taken a job and not said so yet has one all the same.
        return now + LOOK_S if self._late or self._workers.in_pool or self._workers.stuck else None

    def stalled_s(self, now: float) -> float:
        """Return for how long no worker has got on, if a job waits for that; 0 when one is free, or none waits.

        Getting on is taking a job or giving a part of its answer; who sends what the app gave does not hang. A job has
        to wait for a while: long requests that nobody minds are no hang.
        """
        if self._workers.waiting_s(now) < min(MINDED_S, self._queue_s / 2):
            return 0.0
        since = [self._ctx.app_since(job) for worker in self._workers.workers if (job := worker.job) is not None]
        if len(since) < len(self._workers.workers):
            return 0.0
        return max(0.0, now - max(since))

    def _end(self, worker: Worker[JobT], job: JobT, now: float) -> None:
        late_s = now - self._ctx.app_since(job)
        self._late[worker] = job
        with _contained(job):
            self._report(worker, job, late_s)  # before the answer: afterwards the client may act on it
        with _contained(job):
            self._ctx.late(job, now)

    def _report(self, worker: Worker[JobT], job: JobT, late_s: float) -> None:
        """Replace a worker that hangs, and log where it is."""
        frame = sys._current_frames().get(worker.thread.ident or 0)  # noqa: SLF001  # documented, despite its name
        stack = "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "  (it has just ended)"
        replaced = self._workers.replace(worker, job)
        logger.error(
            "the app has not come back for %.1f s (timeouts.app is %g s) from %s; %s, which is %s, is at\n%s",
            late_s,
            self._app_s,
            self._ctx.describe(job),
            worker.thread.name,
            "replaced" if replaced else "not replaced",
            stack,
        )

    def _judge(self) -> None:
        """Say so when too many workers hang, and when they do no more."""
        stuck = len(self._workers.stuck)
        healthy = stuck < self._workers.max_stuck
        if healthy == self.healthy:
            return
        self.healthy = healthy
        if healthy:
            logger.warning("healthy again: %d of at most %d threads hang in the app", stuck, self._workers.max_stuck)
        else:
            logger.critical(
                "unhealthy: threads that hang in the app: %d, which is all of server.max_stuck; threads in all: %d",
                stuck,
                threading.active_count(),
            )
        self._ctx.unhealthy(not healthy)
