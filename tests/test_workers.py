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

from hardserve.wsgi.workers import Worker, Workers
from tests.support import switching_often

PATIENCE_S = 10.0


@contextlib.contextmanager
def pool(
    count: int, serve: Callable[[int], None], *, max_waiting: int = 100_000, max_client: int = 0, max_stuck: int = 0
) -> Iterator[Workers[int]]:
    workers = Workers(count, max_waiting, serve, max_client=max_client, max_stuck=max_stuck)
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


# --- no client takes it all ---


def is_empty(workers: Workers[int]) -> bool:
    """Whether nothing is counted any more."""
    with workers._lock:
        return not (workers.in_pool or workers._held or workers._held_back or workers._ready or workers.stuck)


def most_in_pool(workers: Workers[int]) -> int:
    with workers._lock:
        return max((count for client, count in workers._in_pool.items() if client), default=0)


def served_by_one(max_client: int, asked: list[tuple[str, int]]) -> list[int]:
    """Return the order in which one worker serves what was all there before it came."""
    served: list[int] = []
    workers = Workers(1, 1000, served.append, max_client=max_client)
    for client, job in asked:
        assert workers.submit(job, client, 0.0)
    workers.start()
    assert workers.stop(time.monotonic() + PATIENCE_S)
    assert is_empty(workers)
    return served


# How many jobs of one client may be in the pool, who asks, in this order, and in which order they are served.
ORDERS = {
    "first come, first served": (3, "abcabc", [0, 1, 2, 3, 4, 5]),
    "what is held back comes in its order": (1, "aaaa", [0, 1, 2, 3]),
    "a crowd of one client, and then another": (2, "aaaaab", [0, 1, 5, 2, 3, 4]),
    "two crowds take turns": (1, "aaabbb", [0, 3, 1, 4, 2, 5]),
    "nobody in particular may have it all": (1, "    a", [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_order_in_which_jobs_are_served(case: str) -> None:
    max_client, clients, order = ORDERS[case]
    asked = [(client.strip(), job) for job, client in enumerate(clients)]
    assert served_by_one(max_client, asked) == order


@pytest.mark.parametrize(("threads", "max_client", "most"), [(8, 0, 7), (2, 0, 1), (1, 0, 1), (4, 2, 2)])
def test_a_crowd_delays_nobody_else_by_more_than_its_share(threads: int, max_client: int, most: int) -> None:
    workers: Workers[int] = Workers(threads, 1000, lambda _job: None, max_client=max_client)
    for job in range(500):
        workers.submit(job, "crowd", 0.0)
    workers.submit(500, "single", 0.0)
    assert [job for job, _, _ in workers._ready] == [*range(most), 500]
    assert workers.waiting() == 501


def test_a_crowd_leaves_a_thread_for_somebody_else() -> None:
    release, served = threading.Event(), list[int]()

    def serve(job: int) -> None:
        if job < 100:
            release.wait(PATIENCE_S)
        served.append(job)

    with pool(4, serve) as workers:
        for job in range(100):
            workers.submit(job, "crowd", 0.0)
        wait_until(workers, lambda: len(workers.busy()) == 3)
        for job in range(100, 110):
            workers.submit(job, f"client {job}", 0.0)
        wait_until(workers, lambda: served == list(range(100, 110)))
        assert len(workers.busy()) == 3
        release.set()
    assert sorted(served) == list(range(110))
    assert is_empty(workers)


def test_held_jobs_count_for_the_length_of_the_queue() -> None:
    workers: Workers[int] = Workers(2, 3, lambda _job: None, max_client=1)
    assert [workers.submit(job, "a", 0.0) for job in range(4)] == [True, True, True, False]
    assert not workers.submit(4, "b", 0.0)
    assert workers.waiting() == 3
    assert workers.discard() == 3


def test_stopping_finishes_what_is_held_back() -> None:
    served: list[int] = []
    workers = Workers(3, 1000, served.append, max_client=1)
    workers.start()
    with switching_often():
        for job in range(300):
            workers.submit(job, "ab"[job % 2], 0.0)
        assert workers.stop(time.monotonic() + PATIENCE_S)
    assert [job for job in served if not job % 2] == list(range(0, 300, 2))
    assert [job for job in served if job % 2] == list(range(1, 300, 2))
    assert is_empty(workers)


# --- what has waited for too long ---


def test_what_is_late_is_taken_out_wherever_it_waits() -> None:
    served: list[int] = []
    workers = Workers(1, 1000, served.append, max_client=2)
    for job, client in enumerate(["a", "a", "a", "b", "a", "", "a"]):
        workers.submit(job, client, float(job))
    assert sorted(workers.expire(4.5)) == [0, 1, 2, 3, 4]
    assert workers.waiting() == 2
    workers.start()
    assert workers.stop(time.monotonic() + PATIENCE_S)
    assert served == [5, 6]
    assert is_empty(workers)


def test_a_held_job_that_is_late_is_not_let_in_by_another_that_is() -> None:
    workers: Workers[int] = Workers(2, 1000, lambda _job: None, max_client=1)
    for job in range(3):
        workers.submit(job, "a", float(job))
    assert workers.expire(1.5) == [0, 1]
    assert [job for job, _, _ in workers._ready] == [2]


def test_nothing_is_late_at_its_very_moment() -> None:
    workers: Workers[int] = Workers(1, 10, lambda _job: None)
    workers.submit(1, "a", 5.0)
    assert workers.expire(5.0) == []
    assert workers.expire(5.001) == [1]
    assert is_empty(workers)


# --- what hangs ---


class Hanging:
    """Serves jobs: those in `hang` until they are released, each by itself."""

    def __init__(self, *hang: int) -> None:
        self.gates = {job: threading.Event() for job in hang}
        self.served: list[int] = []

    def __call__(self, job: int) -> None:
        if job in self.gates:
            self.gates[job].wait(PATIENCE_S)
        self.served.append(job)

    def release(self, count: int) -> None:
        """Have the first so many of them end."""
        for gate in list(self.gates.values())[:count]:
            gate.set()


def hung(workers: Workers[int], count: int) -> list[Worker[int]]:
    """Return the workers that are on a job when there are so many of them."""
    wait_until(workers, lambda: len(workers.busy()) == count)
    return workers.busy()


def test_a_worker_that_is_replaced_ends_with_its_job() -> None:
    serve = Hanging(1)
    with pool(1, serve) as workers:
        workers.submit(1, "a", 0.0)
        (stuck,) = hung(workers, 1)
        assert workers.replace(stuck, 1)
        assert workers.stuck == [stuck]
        assert "replaced" in repr(stuck)
        assert "1 stuck" in repr(workers)
        assert workers.in_pool == 0, "its client may ask for something else"
        workers.submit(2, "a", 0.0)
        wait_until(workers, lambda: serve.served == [2])
        assert len(workers.workers) == 1
        serve.gates[1].set()
        stuck.thread.join(PATIENCE_S)
        assert not stuck.thread.is_alive()
        assert serve.served == [2, 1]
        assert workers.stuck == []
        assert workers.workers[0].thread.is_alive()
        assert workers.workers[0].thread.name != stuck.thread.name
        wait_until(workers, lambda: is_empty(workers))


def test_replacing_a_worker_lets_its_clients_next_job_in() -> None:
    serve = Hanging(1)
    with pool(2, serve, max_client=1) as workers:
        workers.submit(1, "a", 0.0)
        workers.submit(2, "a", 0.0)
        (stuck,) = hung(workers, 1)
        assert workers.replace(stuck, 1)
        wait_until(workers, lambda: serve.served == [2])
        serve.gates[1].set()
        wait_until(workers, lambda: is_empty(workers))


def test_who_is_not_replaced() -> None:
    serve = Hanging(1, 2, 3)
    with pool(3, serve, max_stuck=2) as workers:
        for job in (1, 2, 3):
            workers.submit(job, str(job), 0.0)
        first, second, third = hung(workers, 3)
        assert not workers.replace(first, 4711), "it is on another job by now"
        assert workers.replace(first, first.job or 0)
        assert not workers.replace(first, first.job or 0), "it has been"
        assert workers.replace(second, second.job or 0)
        assert not workers.replace(third, third.job or 0), "as many hang as may"
        serve.release(3)
        wait_until(workers, lambda: is_empty(workers))
        assert not workers.replace(third, 3), "it has come back"
        assert len(workers.workers) == 3


def test_no_job_is_lost_or_served_twice_whatever_is_done_to_the_pool() -> None:
    """Twenty clients, naps, jobs that hang, jobs that expire and workers that are replaced while they come back."""
    chance = random.Random(7)
    total, max_client = 4000, 2
    naps = [chance.random() * 0.0003 if chance.random() < 0.05 else 0.0 for _ in range(total)]
    serve = Hanging(*(job for job in range(0, total, 97)))
    expired: list[int] = []
    replaced: list[Worker[int]] = []

    def serve_with_naps(job: int) -> None:
        if naps[job]:
            time.sleep(naps[job])
        serve(job)

    with switching_often(), pool(4, serve_with_naps, max_client=max_client, max_stuck=3) as workers:
        for job in range(total):
            client = chance.choice(["", *"abcdefghijklmnopqrst"])
            assert workers.submit(job, client, float(job))
            if not job % 7:
                assert most_in_pool(workers) <= max_client
                expired += workers.expire(job - 300.0)
            for worker in workers.busy() if not job % 5 else []:
                busy_with = worker.job
                # Those that hang, and at times one that does not, as if it had been slow.
                if busy_with is not None and (busy_with in serve.gates or chance.random() < 0.02):
                    replaced += [worker] * workers.replace(worker, busy_with)
            # Until then all threads come to hang, and the jobs behind them wait until they are late.
            if job > 1200 and not job % 31:
                serve.release(job // 97)
        serve.release(total)
        wait_until(workers, lambda: is_empty(workers))
        assert len(workers.workers) == 4
        assert len(replaced) > 3
        for worker in replaced:
            worker.thread.join(PATIENCE_S)
            assert not worker.thread.is_alive()
    assert len(expired) > 10
    assert Counter(serve.served + expired) == Counter(range(total))


def test_a_worker_that_comes_back_while_it_is_replaced_ends_or_goes_on_but_never_both() -> None:
    chance = random.Random(3)
    naps = [chance.random() * 0.002 for _ in range(150)]
    served: list[int] = []

    def serve(job: int) -> None:
        time.sleep(naps[job])
        served.append(job)

    with switching_often(), pool(2, serve, max_stuck=1) as workers:
        replaced = 0
        for job, nap in enumerate(reversed(naps)):
            workers.submit(job, "a", 0.0)
            wait_until(workers, lambda: bool(workers.busy()) or is_empty(workers))
            for worker in workers.busy():
                busy_with = worker.job
                time.sleep(nap)  # it may end meanwhile, or in this moment
                replaced += busy_with is not None and workers.replace(worker, busy_with)
            assert len(workers.stuck) <= 1
            wait_until(workers, lambda: is_empty(workers))
        assert 0 < replaced < len(naps)
        assert all(worker.thread.is_alive() for worker in workers.workers)
        assert len(workers.workers) == 2
    assert Counter(served) == Counter(range(len(naps)))


def test_a_worker_whose_job_has_ended_is_not_replaced_though_it_has_not_said_so_yet() -> None:
    serve = Hanging(1)
    with pool(1, serve) as workers:
        workers.submit(1, "a", 0.0)
        (worker,) = hung(workers, 1)
        with workers._lock:
            serve.gates[1].set()
            wait_until(workers, lambda: not workers.busy())
            assert workers.in_pool == 1, "it is counted until it has"
        assert not workers.replace(worker, 1)
        wait_until(workers, lambda: is_empty(workers))


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
    assert time.monotonic() - before < PATIENCE_S / 2
    release.set()
    assert workers.stop(time.monotonic() + PATIENCE_S)
