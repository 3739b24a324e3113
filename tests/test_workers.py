"""Every job is served once, whoever is asleep, and workers wake when they help."""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from hardserve.wsgi.workers import NUDGE_INTERVAL_S, STALL_S, Workers

PATIENCE_S = 10.0


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def pool(count: int, serve: Callable[[int], None], *, max_waiting: int = 100_000) -> Iterator[Workers[int]]:
    workers = Workers(count, max_waiting, serve)
    workers.start()
    try:
        yield workers
    finally:
        assert workers.stop(time.monotonic() + PATIENCE_S), workers


def drive(workers: Workers[int], done: Callable[[], bool]) -> None:
    """Do as the I/O thread: nudge when it asked to, and otherwise only when something new came, which is nothing."""
    until = time.monotonic() + PATIENCE_S
    while not done():
        now = time.monotonic()
        assert now < until, f"lost: {workers!r}"
        wait_s = workers.nudge(now)
        # None is "nothing for me to do": a worker that sleeps all the same would never be woken.
        time.sleep(0.0005 if wait_s is None else wait_s)


# --- jobs ---


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("pattern", ["one at a time", "bursts", "a steady stream"])
def test_every_job_is_served_exactly_once(count: int, pattern: str) -> None:
    total = 3000
    chance = random.Random(count)
    naps = [chance.random() * 0.0002 if chance.random() < 0.05 else 0.0 for _ in range(total)]
    served: list[int] = []

    def serve(job: int) -> None:
        if naps[job]:
            time.sleep(naps[job])  # an app that waits: the next job needs somebody else
        served.append(job)

    with switching_often(), pool(count, serve) as workers:
        for job in range(total):
            assert workers.submit(job)
            if pattern == "bursts" and job % 50:
                continue
            workers.nudge(time.monotonic())
            if pattern == "one at a time" and not job % 10:
                drive(workers, lambda: len(served) > job)  # noqa: B023  # called before the next turn
        drive(workers, lambda: len(served) == total)
    assert Counter(served) == Counter(range(total))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_no_wake_up_is_lost_between_going_to_sleep_and_a_new_job(count: int) -> None:
    """One job at a time, each submitted as the worker of the one before goes to sleep; one nudge for each."""
    served = threading.Semaphore(0)
    spins = random.Random(count)
    with switching_often(), pool(count, lambda _job: served.release() or None) as workers:
        for job in range(2000):
            workers.submit(job)
            wait_s = workers.nudge(time.monotonic())
            while not served.acquire(timeout=PATIENCE_S if wait_s is None else wait_s):
                assert wait_s is not None, f"job {job} is asleep with all workers: {workers!r}"
                wait_s = workers.nudge(time.monotonic())
            for _ in range(spins.randrange(200)):
                pass


def test_a_full_queue_refuses() -> None:
    workers: Workers[int] = Workers(1, 2, lambda _job: None)
    assert [workers.submit(job) for job in range(3)] == [True, True, False]


def test_a_queue_that_was_full_takes_jobs_again() -> None:
    served = threading.Event()
    with pool(1, lambda _job: served.set(), max_waiting=1) as workers:
        assert workers.submit(1)
        drive(workers, served.is_set)
        assert workers.submit(2)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_worker_survives_whatever_its_job_raises(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    served: list[int] = []

    def serve(job: int) -> None:
        served.append(job)
        if job == 0:
            raise error

    with pool(1, serve) as workers:
        workers.submit(0)
        workers.submit(1)
        drive(workers, lambda: len(served) == 2)
        assert workers.workers[0].thread.is_alive()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_the_busy_workers_are_those_on_a_job() -> None:
    release = threading.Event()
    with pool(3, lambda _job: release.wait(PATIENCE_S) and None) as workers:
        assert workers.busy() == []
        workers.submit(7)
        drive(workers, lambda: len(workers.busy()) == 1)
        (worker,) = workers.busy()
        assert worker.job == 7
        assert 0 <= time.monotonic() - worker.since < PATIENCE_S
        assert "7" in repr(worker)
        release.set()
        drive(workers, lambda: not workers.busy())


def test_a_worker_keeps_nothing_of_a_job_it_is_done_with() -> None:
    class Job:
        pass

    job = Job()
    done = threading.Event()
    workers: Workers[Job] = Workers(1, 10, lambda _job: done.set())
    workers.start()
    workers.submit(job)
    drive(workers, done.is_set)  # type: ignore[arg-type]
    assert workers.stop(time.monotonic() + PATIENCE_S)
    assert sys.getrefcount(job) == 2


# --- stopping ---


@pytest.mark.parametrize("count", [1, 4])
def test_stopping_finishes_the_queue(count: int) -> None:
    served: list[int] = []
    workers = Workers(count, 1000, served.append)
    for job in range(500):
        workers.submit(job)
    workers.start()
    assert workers.stop(time.monotonic() + PATIENCE_S)
    assert sorted(served) == list(range(500))


def test_stopping_ends_workers_that_sleep() -> None:
    workers: Workers[int] = Workers(8, 10, lambda _job: None)
    workers.start()
    assert workers.stop(time.monotonic() + PATIENCE_S)
    assert not any(worker.thread.is_alive() for worker in workers.workers)


def test_stopping_races_with_going_to_sleep() -> None:
    with switching_often():
        for _ in range(100):
            workers: Workers[int] = Workers(3, 10, lambda _job: None)
            workers.start()
            workers.submit(1)
            assert workers.stop(time.monotonic() + PATIENCE_S), workers


def test_a_worker_that_is_stuck_does_not_hold_up_a_stop() -> None:
    release = threading.Event()
    workers: Workers[int] = Workers(2, 10, lambda _job: release.wait(PATIENCE_S) and None)
    workers.start()
    workers.submit(1)
    drive(workers, lambda: bool(workers.busy()))
    before = time.monotonic()
    assert not workers.stop(before + 0.02)
    assert time.monotonic() - before < 1
    release.set()
    assert workers.stop(time.monotonic() + PATIENCE_S)


# --- whom to wake: no thread runs, the clock is ours ---


class Scene:
    """Workers that never started: some asleep, some on a job. Waking one is all that can be seen."""

    def __init__(self, *, asleep: int, busy: int, waiting: int) -> None:
        self.workers: Workers[int] = Workers(asleep + busy, 100, lambda _job: None)
        for worker in self.workers.workers[:asleep]:
            self.workers.rest(worker)
        for job in range(waiting):
            self.workers.submit(job)
        self.workers.last_taken = 100.0

    def nudge(self, now: float) -> tuple[int, float | None]:
        """Return how many were woken and what `nudge` answered."""
        before = len(self.workers._idle)
        wait_s = self.workers.nudge(now)
        return before - len(self.workers._idle), wait_s


@pytest.mark.parametrize(
    ("scene", "after_s", "woken", "again"),
    [
        pytest.param({"asleep": 4, "busy": 0, "waiting": 1}, 0, 1, True, id="all asleep: one wakes at once"),
        pytest.param({"asleep": 4, "busy": 0, "waiting": 9}, 0, 1, True, id="all asleep and much to do: still one"),
        pytest.param({"asleep": 3, "busy": 1, "waiting": 1}, 0, 0, True, id="one awake that just took a job: none"),
        pytest.param({"asleep": 3, "busy": 1, "waiting": 1}, STALL_S / 2, 0, True, id="not stalled yet: none"),
        pytest.param({"asleep": 3, "busy": 1, "waiting": 1}, STALL_S * 1.01, 1, True, id="stalled: one"),
        pytest.param({"asleep": 4, "busy": 0, "waiting": 0}, 9, 0, False, id="nothing waits: none, do not ask again"),
        pytest.param({"asleep": 0, "busy": 4, "waiting": 3}, 9, 0, False, id="nobody asleep: nobody to wake"),
    ],
)
def test_who_is_woken(scene: dict[str, int], after_s: float, woken: int, again: bool) -> None:
    assert Scene(**scene).nudge(100.0 + after_s) == (woken, NUDGE_INTERVAL_S if again else None)


def test_the_longer_a_stall_the_more_are_woken() -> None:
    scene = Scene(asleep=20, busy=1, waiting=30)
    now = 100.0
    woken = []
    for _ in range(5):
        now += NUDGE_INTERVAL_S
        woken.append(scene.nudge(now)[0])
    assert woken == [1, 2, 4, 8, 5]


def test_no_more_are_woken_than_jobs_wait() -> None:
    scene = Scene(asleep=20, busy=1, waiting=3)
    now = 100.0
    woken = []
    for _ in range(3):
        now += NUDGE_INTERVAL_S
        woken.append(scene.nudge(now)[0])
    assert woken == [1, 2, 3]


def test_a_stall_that_is_over_starts_again_with_one() -> None:
    scene = Scene(asleep=20, busy=1, waiting=30)
    assert [scene.nudge(101.0)[0], scene.nudge(101.1)[0]] == [1, 2]
    jobs = [scene.workers.take() for _ in range(30)]
    assert scene.nudge(101.2) == (0, None)
    for job in jobs:
        scene.workers.submit(job)
    assert scene.nudge(101.3)[0] == 1


def test_a_worker_is_woken_once_however_often_it_is_nudged() -> None:
    scene = Scene(asleep=1, busy=0, waiting=5)
    assert [scene.nudge(100.0 + turn)[0] for turn in range(3)] == [1, 0, 0]
    (worker,) = scene.workers.workers
    assert worker._wakened.acquire(blocking=False)
    assert not worker._wakened.acquire(blocking=False)


def test_a_worker_that_finds_work_on_its_way_to_sleep_wakes_itself() -> None:
    scene = Scene(asleep=0, busy=1, waiting=1)
    (worker,) = scene.workers.workers
    scene.workers.rest(worker)
    assert not scene.workers._idle
    assert worker._wakened.acquire(blocking=False)
