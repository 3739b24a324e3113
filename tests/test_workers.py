"""Every job is served once, whoever is asleep."""

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

from hardserve.wsgi.workers import Workers
from tests.support import switching_often

PATIENCE_S = 10.0


@contextlib.contextmanager
def pool(count: int, serve: Callable[[int], None], *, max_waiting: int = 100_000) -> Iterator[Workers[int]]:
    workers = Workers(count, max_waiting, serve)
    workers.start()
    try:
        yield workers
    finally:
        assert workers.stop(time.monotonic() + PATIENCE_S), workers


def wait_until(workers: Workers[int], done: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until, f"lost: {workers!r}"
        time.sleep(0.0005)


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
            assert workers.submit(job, "", 0.0)
            if pattern == "bursts" and not job % 50:
                time.sleep(0.0002)
            if pattern == "one at a time" and not job % 10:
                wait_until(workers, lambda: len(served) > job)  # noqa: B023  # called before the next turn
        wait_until(workers, lambda: len(served) == total)
    assert Counter(served) == Counter(range(total))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_no_wake_up_is_lost_between_going_to_sleep_and_a_new_job(count: int) -> None:
    """One job at a time, each submitted as the worker of the one before goes to sleep."""
    served = threading.Semaphore(0)
    spins = random.Random(count)
    with switching_often(), pool(count, lambda _job: served.release() or None) as workers:
        for job in range(2000):
            workers.submit(job, "", 0.0)
            assert served.acquire(timeout=PATIENCE_S), f"job {job} is asleep with all workers: {workers!r}"
            for _ in range(spins.randrange(200)):
                pass


def test_a_full_queue_refuses() -> None:
    workers: Workers[int] = Workers(1, 2, lambda _job: None)
    assert [workers.submit(job, "", 0.0) for job in range(3)] == [True, True, False]


def test_a_queue_that_was_full_takes_jobs_again() -> None:
    served = threading.Event()
    with pool(1, lambda _job: served.set(), max_waiting=1) as workers:
        assert workers.submit(1, "", 0.0)
        wait_until(workers, served.is_set)
        assert workers.submit(2, "", 0.0)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_worker_survives_whatever_its_job_raises(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    served: list[int] = []

    def serve(job: int) -> None:
        served.append(job)
        if job == 0:
            raise error

    with pool(1, serve) as workers:
        workers.submit(0, "", 0.0)
        workers.submit(1, "", 0.0)
        wait_until(workers, lambda: len(served) == 2)
        assert workers.workers[0].thread.is_alive()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_the_busy_workers_are_those_on_a_job() -> None:
    release = threading.Event()
    with pool(3, lambda _job: release.wait(PATIENCE_S) and None) as workers:
        assert workers.busy() == []
        workers.submit(7, "", 0.0)
        wait_until(workers, lambda: len(workers.busy()) == 1)
        (worker,) = workers.busy()
        assert worker.job == 7
        assert 0 <= time.monotonic() - worker.since < PATIENCE_S
        assert "7" in repr(worker)
        release.set()
        wait_until(workers, lambda: not workers.busy())


def test_a_worker_keeps_nothing_of_a_job_it_is_done_with() -> None:
    class Job:
        pass

    job = Job()
    done = threading.Event()
    workers: Workers[Job] = Workers(1, 10, lambda _job: done.set())
    workers.start()
    workers.submit(job, "", 0.0)
    wait_until(workers, done.is_set)  # type: ignore[arg-type]
    assert workers.stop(time.monotonic() + PATIENCE_S)
    assert sys.getrefcount(job) == 2


def test_what_is_discarded_is_not_served() -> None:
    served: list[int] = []
    workers = Workers(1, 10, served.append)
    for job in range(3):
        workers.submit(job, "", 0.0)
    assert workers.discard() == 3
    workers.start()
    assert workers.stop(time.monotonic() + PATIENCE_S)
    assert served == []


# --- stopping ---


@pytest.mark.parametrize("count", [1, 4])
def test_stopping_finishes_the_queue(count: int) -> None:
    served: list[int] = []
    workers = Workers(count, 1000, served.append)
    for job in range(500):
        workers.submit(job, "", 0.0)
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
            workers.submit(1, "", 0.0)
            assert workers.stop(time.monotonic() + PATIENCE_S), workers


def test_a_worker_that_is_stuck_does_not_hold_up_a_stop() -> None:
    release = threading.Event()
    workers: Workers[int] = Workers(2, 10, lambda _job: release.wait(PATIENCE_S) and None)
    workers.start()
    workers.submit(1, "", 0.0)
    wait_until(workers, lambda: bool(workers.busy()))
    before = time.monotonic()
    assert not workers.stop(before + 0.02)
    assert time.monotonic() - before < 1
    release.set()
    assert workers.stop(time.monotonic() + PATIENCE_S)
