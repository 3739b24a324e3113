"""The check threads: what runs, in which order, what is dropped, and what a hanging or failing job does to others."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from time import monotonic

import pytest

from hardserve.pool import Pool
from tests.support import PATIENCE_S, switching_often


class Rig:
    """Check threads, a gate that holds jobs, and the results in the order in which they came."""

    def __init__(self, count: int, max_waiting: int) -> None:
        self.checks = Pool("check", count, max_waiting)
        self.results: SimpleQueue[object] = SimpleQueue()
        self.gate = threading.Event()
        self.held: SimpleQueue[str] = SimpleQueue()

    def submit(self, job: Callable[[], object], wanted: Callable[[], bool] = lambda: True) -> bool:
        return self.checks.submit(job, self.results.put, wanted)

    def hold(self) -> str:
        """Occupy a thread until the gate opens."""
        self.held.put(threading.current_thread().name)
        assert self.gate.wait(PATIENCE_S)
        return "held"

    def occupy(self, threads: int) -> list[str]:
        """Have so many threads hold; return their names once they do."""
        names = []
        for _ in range(threads):
            assert self.submit(self.hold)
            names.append(self.held.get(timeout=PATIENCE_S))
        return names

    def result(self) -> object:
        return self.results.get(timeout=PATIENCE_S)


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(2, 3)
    yield rig
    rig.gate.set()
    assert rig.checks.stop(monotonic() + PATIENCE_S), rig.checks


def check_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("hardserve-check-")}


def test_no_thread_before_the_first_job_and_never_more_than_asked_for(rig: Rig) -> None:
    before = check_threads()
    assert before == set()
    for number in range(5):
        rig.submit(lambda: 1)
        rig.result()
        assert len(check_threads()) == min(number + 1, 2)
    assert check_threads() == {"hardserve-check-1", "hardserve-check-2"}
    assert all(thread.daemon for thread in threading.enumerate() if thread.name in check_threads())


def test_a_job_and_its_done_run_on_a_check_thread(rig: Rig) -> None:
    here = threading.current_thread().name
    seen: SimpleQueue[tuple[str, str]] = SimpleQueue()
    rig.checks.submit(
        lambda: threading.current_thread().name, lambda name: seen.put((str(name), threading.current_thread().name))
    )
    job, done = seen.get(timeout=PATIENCE_S)
    assert job == done == "hardserve-check-1" != here


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ValueError("no"), id="an error"),
        pytest.param(SystemExit(3), id="what would end a thread"),
        pytest.param(KeyboardInterrupt(), id="an interrupt"),
    ],
)
def test_what_a_job_raises_is_its_result_and_the_thread_goes_on(rig: Rig, error: BaseException) -> None:
    def fail() -> None:
        raise error

    names = []
    for _ in range(3):
        rig.submit(fail)
        assert rig.result() is error
        rig.submit(lambda: threading.current_thread().name)
        names.append(rig.result())
    assert set(names) <= {"hardserve-check-1", "hardserve-check-2"}
    assert len(check_threads()) == 2


def test_a_done_that_fails_is_logged_and_costs_no_thread(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert rig.checks.submit(lambda: 1, lambda _: 1 / 0)
        rig.submit(lambda: 2)
        assert rig.result() == 2
    rig.occupy(2)  # both threads have come back
    records = [record for record in caplog.records if record.name == "hardserve.pool"]
    said = [(record.levelno, record.getMessage()) for record in records]
    assert said == [(logging.ERROR, "internal error in a check thread")] * 3
    assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in records)


def test_first_come_first_served(rig: Rig) -> None:
    rig.occupy(2)
    order: list[int] = []
    for number in range(3):
        assert rig.submit(lambda number=number: order.append(number))  # type: ignore[misc]
    rig.gate.set()
    for _ in range(5):
        rig.result()
    assert sorted(order) == [0, 1, 2]
    single = Rig(1, 100)
    single.occupy(1)
    order.clear()
    for number in range(100):
        assert single.submit(lambda number=number: order.append(number))  # type: ignore[misc]
    single.gate.set()
    for _ in range(101):
        single.result()
    assert order == list(range(100))
    assert single.checks.stop(monotonic() + PATIENCE_S)


def test_past_so_many_waiting_a_job_is_not_taken_and_later_is_again(rig: Rig) -> None:
    rig.occupy(2)
    assert [rig.submit(lambda: "waited") for _ in range(5)] == [True, True, True, False, False]
    assert rig.checks.waiting() == 3
    assert repr(rig.checks) == "<Pool check 2 of 2 threads, 2 busy, 3 waiting>"
    rig.gate.set()
    assert sorted(str(rig.result()) for _ in range(5)) == ["held", "held", "waited", "waited", "waited"]
    assert rig.results.empty()
    assert rig.submit(lambda: "again")
    assert rig.result() == "again"


def test_a_job_that_hangs_keeps_its_thread_and_no_other(rig: Rig) -> None:
    (stuck,) = rig.occupy(1)
    names = set()
    for _ in range(10):
        assert rig.submit(lambda: threading.current_thread().name)
        names.add(rig.result())
    assert names == {"hardserve-check-1", "hardserve-check-2"} - {stuck}
    assert not rig.checks.stop(monotonic() + 0.01), "one of them still hangs"
    rig.gate.set()
    assert rig.checks.stop(monotonic() + PATIENCE_S)
    assert check_threads() == set()


def test_a_job_that_nobody_waits_for_any_more_is_not_begun(rig: Rig) -> None:
    rig.occupy(2)
    given_up = threading.Event()
    asked_on: list[str] = []

    def wanted() -> bool:
        asked_on.append(threading.current_thread().name)
        return not given_up.is_set()

    begun: list[str] = []
    rig.submit(lambda: begun.append("late"), wanted)
    given_up.set()
    rig.submit(lambda: "last")
    rig.gate.set()
    assert sorted(str(rig.result()) for _ in range(3)) == ["held", "held", "last"]
    rig.gate.clear()
    rig.occupy(2)  # nothing is in progress besides
    assert begun == []
    assert len(asked_on) == 1
    assert asked_on[0].startswith("hardserve-check-")
    assert rig.results.empty(), "and nobody is told"


def test_stop_drops_what_has_not_begun_and_takes_nothing_more(rig: Rig) -> None:
    rig.occupy(2)
    begun: list[str] = []
    assert rig.submit(lambda: begun.append("after stop"))
    assert not rig.checks.stop(monotonic())
    assert repr(rig.checks) == "<Pool check 2 of 2 threads, 2 busy, 3 waiting, stopping>"
    assert not rig.submit(lambda: begun.append("late"))
    rig.gate.set()
    assert rig.checks.stop(monotonic() + PATIENCE_S)
    assert begun == []
    assert [rig.result(), rig.result()] == ["held", "held"], "what had begun is told"
    assert rig.results.empty()
    assert rig.checks.stop(monotonic()), "again, and at once"


def test_stop_before_any_job_is_immediate() -> None:
    checks = Pool("check", 2, 3)
    assert checks.stop(monotonic())
    assert repr(checks) == "<Pool check 0 of 2 threads, 0 busy, 0 waiting, stopping>"


def test_without_threads_to_be_had_one_does_it_all_or_nothing_is_taken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not rig.submit(lambda: 1)
    assert rig.submit(lambda: 2)
    assert rig.result() == 2
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert rig.submit(lambda: 3)
        assert rig.result() == 3
    assert [record.getMessage() for record in caplog.records] == [
        "cannot start a check thread (can't start new thread); there are 0",
        "cannot start a check thread (can't start new thread); there are 1",
    ]


class Held:
    """Something that can be watched for being let go."""


def test_what_a_job_held_is_let_go_when_it_ends(rig: Rig) -> None:
    held = Held()
    watched = weakref.ref(held)
    rig.submit(lambda held=held: "done")  # type: ignore[misc]
    del held
    assert rig.result() == "done"
    until = monotonic() + PATIENCE_S
    while watched() is not None:
        assert monotonic() < until, "its thread waits for the next job, and still has it"
        threading.Event().wait(0.001)
        gc.collect()
    assert repr(rig.checks) == "<Pool check 1 of 2 threads, 0 busy, 0 waiting>"


def test_every_job_is_run_once_however_threads_take_turns() -> None:
    rig = Rig(4, sys.maxsize)
    count = 2000
    with switching_often():
        for number in range(count):
            assert rig.submit(lambda number=number: number)  # type: ignore[misc]
        numbers = sorted(rig.result() for _ in range(count))  # type: ignore[type-var]
    assert numbers == list(range(count))
    assert rig.checks.stop(monotonic() + PATIENCE_S)


def test_a_job_that_hangs_does_not_keep_the_process_alive() -> None:
    import subprocess

    program = (
        "import threading, time\n"
        "from hardserve.pool import Pool\n"
        "checks, begun = Pool('check', 1, 1), threading.Event()\n"
        "def hang():\n"
        "    begun.set()\n"
        "    threading.Event().wait()\n"
        "assert checks.submit(hang, print)\n"
        "assert begun.wait(10)\n"
        "assert not checks.stop(time.monotonic())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
