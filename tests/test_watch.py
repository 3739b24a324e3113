"""Who has waited too long, which thread has been gone too long, and what follows: real threads, and time by hand."""

from __future__ import annotations

import contextlib
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardserve.edge.deadlines import Deadlines, Timer
from hardserve.wsgi import workers as workers_module
from hardserve.wsgi.watch import LOOK_S, PoolContext, Watch
from hardserve.wsgi.workers import Workers
from tests.support import PATIENCE_S, switching_often

REPOSITORY = Path(__file__).parent.parent
START = 1000.0
QUEUE_S, APP_S = 10.0, 60.0


class Job:
    """Keeps its thread until it is released."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.app_since = math.inf
        self.released = threading.Event()

    def __repr__(self) -> str:
        return f"<Job {self.name}>"


class Rig:
    """A pool, its watch, and what that has decided."""

    def __init__(self, threads: int, *, max_stuck: int = 0, interrupt_s: float = 0.0, app_s: float = APP_S) -> None:
        self.now = START
        self.workers: Workers[Job] = Workers(threads, 1000, self._serve, max_client=threads, max_stuck=max_stuck)
        self.expired: list[str] = []
        self.late: list[str] = []
        self.interrupted: list[str] = []
        self.unhealthy: list[bool] = []
        self.jobs: list[Job] = []
        self.failing: set[str] = set()
        self.on_asked: Callable[[Job], None] | None = None
        ctx = PoolContext[Job](
            app_since=self._app_since,
            expired=lambda job, now: self._note(self.expired, job, now),
            late=lambda job, now: self._note(self.late, job, now),
            interrupt=lambda job: self._note(self.interrupted, job, self.now),
            unhealthy=self.unhealthy.append,
        )
        self.watch = Watch(self.workers, ctx, queue_s=QUEUE_S, app_s=app_s, interrupt_s=interrupt_s)

    def _serve(self, job: Job) -> None:
        job.app_since = self.now
        self._in_the_app(job)

    def _in_the_app(self, job: Job) -> None:
        job.released.wait(PATIENCE_S)

    def _app_since(self, job: Job) -> float:
        if self.on_asked is not None:
            self.on_asked(job)
        return job.app_since

    def _note(self, where: list[str], job: Job, now: float) -> None:
        assert now == self.now
        where.append(job.name)
        if job.name in self.failing:
            raise LookupError(f"a bug of ours, with {job.name}")

    def submit(self, *names: str) -> list[Job]:
        jobs = [Job(name) for name in names]
        self.jobs += jobs
        for job in jobs:
            assert self.workers.submit(job, "", self.now)
        return jobs

    def hang(self, *names: str) -> list[Job]:
        """Submit jobs, and return when each has a thread."""
        jobs = self.submit(*names)
        until(lambda: all(job.app_since < math.inf for job in jobs))
        return jobs

    def release(self, *jobs: Job) -> None:
        """Have jobs end, and return when their threads have said so."""
        for job in jobs:
            job.released.set()
        until(lambda: all(worker.job not in jobs for worker in (*self.workers.workers, *self.workers.stuck)))
        until(lambda: not any(worker.job is None for worker in self.workers.stuck))

    def after(self, seconds: float) -> float | None:
        """Look after so many seconds; return when the watch wants to look again."""
        self.now += seconds
        return self.watch.look(self.now)


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.0005)


@contextlib.contextmanager
def watching(threads: int, **options: Any) -> Iterator[Rig]:
    rig = Rig(threads, **options)
    rig.workers.start()
    try:
        yield rig
    finally:
        for job in rig.jobs:
            job.released.set()
        assert rig.workers.stop(time.monotonic() + PATIENCE_S), rig.workers
        until(lambda: not rig.workers.stuck)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


# --- the queue ---


def test_an_empty_pool_is_not_watched() -> None:
    with watching(2) as rig:
        assert rig.after(0) is None


def test_a_job_that_waits_for_too_long_is_refused_and_never_served() -> None:
    with watching(1) as rig:
        (first,) = rig.hang("first")
        waiting, *_ = rig.submit("waiting", "waiting, too")
        assert rig.after(QUEUE_S) == rig.now + LOOK_S
        assert rig.expired == []
        rig.submit("younger")
        assert rig.after(0.01) == rig.now + LOOK_S
        assert rig.expired == ["waiting", "waiting, too"]
        rig.release(first)
        until(lambda: rig.jobs[-1].app_since < math.inf)
        assert waiting.app_since == math.inf
        assert rig.late == []


def test_a_job_that_cannot_be_refused_does_not_keep_the_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    with watching(1) as rig:
        rig.hang("first")
        rig.submit("one", "bad", "two")
        rig.failing = {"bad"}
        assert rig.after(QUEUE_S + 1) is not None
        assert rig.expired == ["one", "bad", "two"]
        assert [level for level, _ in said(caplog)] == [logging.ERROR]
        assert "<Job bad>" in said(caplog)[0][1]


# --- the app ---


def test_a_thread_that_hangs_is_replaced_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with watching(2) as rig:
        (stuck,) = rig.hang("stuck")
        assert rig.after(APP_S - 0.01) == rig.now + LOOK_S
        assert rig.late == []
        rig.submit("next")
        rig.after(0.01)
        assert rig.late == ["stuck"]
        ((level, text),) = said(caplog)
        assert level == logging.ERROR
        assert "60.0 s" in text
        assert "<Job stuck>" in text
        assert "is replaced" in text
        assert "_in_the_app" in text, "where it hangs"
        assert len(rig.workers.stuck) == 1
        for _ in range(20):
            assert rig.after(1) == rig.now + LOOK_S
        assert rig.late == ["stuck"]
        assert len(caplog.records) == 1
        rig.release(*rig.jobs)
        assert "has come back: <Job stuck>" in (rig.after(1), said(caplog)[-1][1])[1]
        assert rig.after(1) is None
        assert stuck.app_since == START
        assert len(caplog.records) == 2


def test_an_app_that_waits_for_its_client_is_not_late() -> None:
    with watching(1) as rig:
        (job,) = rig.hang("slow client")
        job.app_since = math.inf
        rig.after(10 * APP_S)
        assert rig.late == []
        job.app_since = rig.now
        rig.after(APP_S - 1)
        assert rig.late == []
        rig.after(1)
        assert rig.late == ["slow client"]


def test_without_a_deadline_nothing_is_late() -> None:
    with watching(1, app_s=0.0) as rig:
        rig.hang("slow")
        assert rig.after(1e6) == rig.now + LOOK_S
        assert rig.late == []


def test_each_job_of_a_thread_has_its_own_deadline() -> None:
    with watching(1) as rig:
        for name in ("one", "two", "three"):
            (job,) = rig.hang(name)
            rig.after(APP_S - 1)
            rig.release(job)
        assert rig.late == []


def test_a_thread_that_comes_back_as_it_is_found_late_is_neither_replaced_nor_ended() -> None:
    with watching(1) as rig:
        rig.hang("just in time")
        rig.now += APP_S

        def come_back(asked: Job) -> None:
            rig.on_asked = None
            rig.release(asked)

        rig.on_asked = come_back
        rig.watch.look(rig.now)
        assert len(rig.workers.workers) == 1
        assert rig.workers.stuck == []
        rig.hang("next")
        rig.release(*rig.jobs)
        assert rig.after(LOOK_S) is None
        assert rig.workers.in_pool == 0


def test_a_job_whose_client_cannot_be_told_does_not_keep_the_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    with watching(2) as rig:
        rig.hang("bad", "good")
        rig.failing = {"bad", "good"}
        assert rig.after(APP_S) == rig.now + LOOK_S
        assert sorted(rig.late) == ["bad", "good"]
        assert len(rig.workers.stuck) == 2
        assert rig.unhealthy == [True]
        assert sum("internal error" in text for _, text in said(caplog)) == 2


# --- what is between two states for a moment ---


class LockThatOthersWaitFor:
    """A lock that the main thread gets at once, and any other when it is free."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert self.free.wait(PATIENCE_S)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_worker_that_has_taken_a_job_and_not_said_so_yet_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is set for a job that comes. If it is let go now, a job that hangs is never found."""
    taken, go_on = threading.Event(), threading.Event()

    def monotonic() -> float:  # where a worker is between taking a job and having it
        if threading.current_thread() is not threading.main_thread():
            taken.set()
            assert go_on.wait(PATIENCE_S)
        return time.monotonic()

    with watching(1) as rig:
        monkeypatch.setattr(workers_module, "monotonic", monotonic)
        rig.submit("stuck")
        assert taken.wait(PATIENCE_S)
        again = rig.after(LOOK_S)
        go_on.set()
        assert again == rig.now + LOOK_S


def test_a_worker_that_has_come_back_and_not_said_so_yet_is_watched() -> None:
    """Its place among the stuck is free a moment after its job has ended: somebody must see that, and judge again."""
    with watching(1, max_stuck=1) as rig:
        (job,) = rig.hang("stuck")
        rig.after(APP_S)
        assert rig.unhealthy == [True]
        (stuck,) = rig.workers.stuck
        lock = LockThatOthersWaitFor()
        rig.workers._lock = lock  # type: ignore[assignment]
        job.released.set()
        until(lambda: stuck.job is None)
        again = rig.after(LOOK_S)
        lock.free.set()
        assert again == rig.now + LOOK_S
        stuck.thread.join(PATIENCE_S)
        rig.after(LOOK_S)
        assert rig.unhealthy == [True, False]


# --- too many ---


def test_too_many_threads_that_hang_are_said_to_be_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with watching(2, max_stuck=2) as rig:
        one, two = rig.hang("one", "two")
        rig.after(APP_S / 2)
        assert rig.watch.healthy
        one.app_since -= APP_S
        rig.after(0)
        assert rig.watch.healthy
        assert rig.unhealthy == []
        rig.after(APP_S / 2)
        for _ in range(5):
            rig.after(1)
        assert not rig.watch.healthy
        assert "unhealthy" in repr(rig.watch)
        assert rig.unhealthy == [True]
        assert [level for level, _ in said(caplog)] == [logging.ERROR, logging.ERROR, logging.CRITICAL]
        rig.release(two)
        rig.after(1)
        assert rig.unhealthy == [True, False]
        rig.release(one)
        assert rig.after(1) is None
        assert rig.unhealthy == [True, False]


def test_a_thread_that_could_not_be_replaced_is_when_another_has_come_back(caplog: pytest.LogCaptureFixture) -> None:
    """Else the server thinks itself healthy again, with a pool in which everybody hangs."""
    with watching(2, max_stuck=2) as rig:
        first = rig.hang("one", "two")
        rig.after(APP_S)
        rig.hang("three", "four")
        rig.after(APP_S)
        assert sorted(rig.late) == ["four", "one", "three", "two"]
        assert len(rig.workers.stuck) == 2
        rig.submit("hello")
        rig.release(*first)
        rig.after(LOOK_S)
        until(lambda: rig.jobs[-1].app_since < math.inf)
        assert len(rig.workers.stuck) == 2
        assert rig.unhealthy == [True], "two threads hang, as before"
        assert sum("is replaced now" in text for _, text in said(caplog)) == 2
        rig.release(*rig.jobs)
        rig.after(LOOK_S)
        assert rig.unhealthy == [True, False]
        assert rig.after(LOOK_S) is None
        assert sorted(rig.late) == ["four", "one", "three", "two"]


def hang_without_threads() -> None:
    """A limit on tasks, as systemd sets one: nothing is replaced, and nothing else changes, until there is room."""
    with watching(1) as rig:
        rig.hang("stuck")
        (worker,) = rig.workers.workers
        threading.stack_size(1 << 46)  # more than there is address space
        for _ in range(10):
            assert rig.after(APP_S) == rig.now + LOOK_S
        threading.stack_size(0)
        assert rig.late == ["stuck"]
        assert rig.workers.stuck == []
        assert rig.workers.workers == [worker]
        assert not worker.replaced
        assert rig.workers.in_pool == 1
        rig.after(LOOK_S)
        assert rig.workers.stuck == [worker]
        rig.hang("next")


def test_a_thread_is_replaced_when_the_system_has_one_to_give_again() -> None:
    # In a process of its own: where a thread cannot be started, CPython 3.11 leaves behind something that looks like
    # the thread that tried, and exceptions that are raised in that thread from outside then miss it.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from tests import test_watch; test_watch.hang_without_threads()"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the app has not come back") == 1
    assert "is replaced now" in done.stderr


# --- interrupting ---


def test_an_app_that_is_late_is_interrupted_once_after_its_time() -> None:
    with watching(2, interrupt_s=5.0) as rig:
        (slow, _other) = rig.hang("slow", "other")
        slow.app_since -= 1
        rig.after(APP_S - 1)
        assert rig.late == ["slow"]
        rig.after(4.9)
        assert rig.interrupted == []
        rig.after(0.1)
        assert rig.interrupted == ["slow"]
        rig.after(100)
        rig.after(100)
        assert rig.interrupted == ["slow", "other"]


def test_an_app_that_has_come_back_is_not_interrupted() -> None:
    with watching(1, interrupt_s=5.0) as rig:
        (job,) = rig.hang("slow")
        rig.after(APP_S)
        rig.release(job)
        rig.after(100)
        assert rig.interrupted == []


def test_an_interrupt_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    with watching(1, interrupt_s=5.0) as rig:
        rig.hang("bad")
        rig.after(APP_S)
        rig.failing = {"bad"}
        assert rig.after(5) == rig.now + LOOK_S
        assert rig.after(5) == rig.now + LOOK_S
        assert rig.interrupted == ["bad"]


def test_interrupting_is_off_where_it_is_not_asked_for() -> None:
    with watching(1) as rig:
        rig.hang("slow")
        rig.after(APP_S)
        rig.after(1e6)
        assert rig.interrupted == []


# --- as the server runs it ---


def test_what_is_late_is_found_within_half_a_second() -> None:
    with watching(1) as rig:
        wheel, found = Deadlines(), list[float]()

        def look(now: float) -> None:
            rig.now = now
            again = rig.watch.look(now)
            if rig.late and not found:
                found.append(now)
            if again is not None:
                timer.set(again, now, wheel)

        timer = Timer(look)
        rig.hang("slow")
        timer.set(rig.now + LOOK_S, rig.now, wheel)
        now = rig.now
        while not found and now < START + APP_S + 5:
            now += wheel.wait_s(now) or 0.0
            for item in wheel.due(now):
                item.on_deadline(now)
        assert APP_S <= found[0] - START <= APP_S + 0.5


def test_a_thousand_jobs_that_come_back_at_any_moment_are_each_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """A deadline of nothing: every job that is seen at work is late, replaced if there is room, and soon back."""
    caplog.set_level(logging.CRITICAL + 1, "hardserve")
    with switching_often(), watching(3, max_stuck=4, app_s=1e-9) as rig:
        for number in range(1000):
            (job,) = rig.submit(f"{number}") if number % 4 else rig.hang(f"{number}")
            rig.after(0.001)
            job.released.set()
            if not number % 3:
                rig.after(0.001)
        until(lambda: rig.workers.in_pool == 0 and not rig.workers.stuck)
        rig.after(1)
        assert rig.after(1) is None
        assert len(set(rig.late)) == len(rig.late) >= 250
        assert rig.watch.healthy
        assert rig.unhealthy == [True, False] * (len(rig.unhealthy) // 2)
        assert len(rig.workers.workers) == 3
        assert rig.expired == []
