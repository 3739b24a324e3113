"""An exception raised in another thread strikes the app that waits, and never anything else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from hardserve.wsgi.interrupt import AbandonedError, Interruptible
from tests.support import switching_often

PATIENCE_S = 10.0


class Hunter(threading.Thread):
    """Interrupts whatever it is given, as soon and as often as it can."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.prey: Interruptible | None = None
        self.ended = False
        self.interrupts = 0

    def run(self) -> None:
        while not self.ended:
            prey = self.prey
            if prey is not None:
                prey.interrupt()
                self.interrupts += 1


@contextlib.contextmanager
def hunting() -> Iterator[Hunter]:
    hunter = Hunter()
    hunter.start()
    try:
        yield hunter
    finally:
        hunter.ended = True
        hunter.join(PATIENCE_S)


def innocent() -> int:
    """Run long enough for an exception that is under way to arrive."""
    return sum(number for number in range(20))


def blocks(*, patient: bool = False) -> Iterator[bytes]:
    """An app; a patient one gives nothing until it is struck."""
    until = time.monotonic() + PATIENCE_S
    while True:
        innocent()
        while patient and time.monotonic() < until:
            pass
        yield b"block"


def test_without_an_interrupt_blocks_and_ends_pass_through() -> None:
    waits = Interruptible()
    source = iter([b"one", b"two"])
    assert [waits.call(source.__next__), waits.call(source.__next__)] == [b"one", b"two"]
    with pytest.raises(StopIteration):
        waits.call(source.__next__)


def test_what_the_app_raises_passes_through() -> None:
    def app() -> Iterator[bytes]:
        raise LookupError("its own")
        yield b""

    with pytest.raises(LookupError, match="its own"):
        Interruptible().call(app().__next__)


def test_an_app_that_waits_in_a_loop_is_struck_and_cleans_up() -> None:
    waiting, cleaned = threading.Event(), []

    def app() -> Iterator[bytes]:
        try:
            while True:
                waiting.set()
                time.sleep(0.001)
            yield b""
        finally:
            cleaned.append(True)

    waits = Interruptible()
    raised: list[type[BaseException]] = []

    def work() -> None:
        nonlocal waits
        waits = Interruptible()
        made.set()
        try:
            waits.call(app().__next__)
        except AbandonedError as error:
            raised.append(type(error))

    made = threading.Event()
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert made.wait(PATIENCE_S)
    assert waiting.wait(PATIENCE_S)
    waits.interrupt()
    worker.join(PATIENCE_S)
    assert raised == [AbandonedError]
    assert cleaned == [True]


def test_it_is_what_a_generator_gets_when_it_is_closed() -> None:
    assert issubclass(AbandonedError, GeneratorExit)
    assert not issubclass(AbandonedError, Exception), "an app's `except Exception` must not swallow it"


def test_an_interrupt_between_two_blocks_does_not_strike_what_runs_there() -> None:
    waits = Interruptible()
    source = blocks()
    waits.call(source.__next__)
    waits.interrupt()
    innocent()


def test_the_exception_strikes_nowhere_but_inside_the_app() -> None:
    """20,000 waits, each interrupted at whatever moment comes: it is raised by `call`, or not at all."""
    struck = passed = 0
    strayed: list[str] = []
    with switching_often(), hunting() as hunter:
        for number in range(20_000):
            where = "before"
            try:
                waits = Interruptible()
                source = blocks(patient=not number % 200)
                hunter.prey = waits
                where = "call"
                try:
                    waits.call(source.__next__)
                    passed += 1
                except AbandonedError:
                    struck += 1
                where = "after"
                innocent()
                hunter.prey = None
                source.close()
                innocent()
            except AbandonedError:
                strayed.append(where)
    assert strayed == []
    assert struck >= 100
    assert passed > 1000
    innocent()


def test_the_lock_is_free_after_any_interrupt() -> None:
    with switching_often(), hunting() as hunter:
        for _ in range(5_000):
            waits = Interruptible()
            hunter.prey = waits
            with contextlib.suppress(AbandonedError):
                waits.call(blocks().__next__)
            hunter.prey = None
            # The hunter may hold it for a moment, but nobody for ever.
            assert waits._lock.acquire(timeout=PATIENCE_S)
            waits._lock.release()
            assert not waits._inside


def test_a_stream_of_many_blocks_is_struck_at_most_once() -> None:
    with switching_often(), hunting() as hunter:
        for _ in range(300):
            waits = Interruptible()
            source = blocks()
            hunter.prey = waits
            struck = 0
            for _ in range(30):
                try:
                    waits.call(source.__next__)
                except AbandonedError:
                    struck += 1
                    break
                except StopIteration:
                    pytest.fail("the generator ended without being struck")
            hunter.prey = None
            assert struck <= 1
            innocent()


def test_an_app_that_swallows_it_goes_on() -> None:
    """It was told; the next write to a client that has gone is what ends it."""

    def app(waits: Interruptible) -> Iterator[bytes]:
        caught = 0
        for _ in range(2):
            try:
                threading.Thread(target=waits.interrupt).start()
                for _ in range(10_000):
                    time.sleep(0.0005)
                    if caught:
                        break
            except AbandonedError:
                caught += 1
                yield b"caught"
        yield b"went on"

    waits = Interruptible()
    source = app(waits)
    assert waits.call(source.__next__) == b"caught"


# --- what the app calls back into ---


def test_nothing_strikes_in_what_the_app_calls_back_into() -> None:
    """An app that writes as it goes: the lock of its connection is held in there."""
    strayed: list[str] = []
    struck = passed = 0
    with switching_often(), hunting() as hunter:
        for number in range(5_000):
            where = ""

            def app(waits: Interruptible, until: float) -> None:
                nonlocal where
                for _ in range(3):
                    with waits.held_off():
                        where = "ours"
                        innocent()
                        where = ""
                while time.monotonic() < until:
                    pass

            waits = Interruptible()
            if number % 2:
                hunter.prey = waits
            try:
                patience_s = PATIENCE_S if number % 100 == 1 else 0.0
                waits.call(partial(app, waits, time.monotonic() + patience_s))
                passed += 1
            except AbandonedError:
                struck += 1
            strayed += [where] if where else []
            innocent()
            hunter.prey = None
            assert not waits._inside
            assert waits._lock.acquire(timeout=PATIENCE_S)
            waits._lock.release()
    assert strayed == []
    assert struck >= 50
    assert passed >= 2500
    innocent()


def test_one_that_is_under_way_is_raised_instead_of_entering() -> None:
    waits = Interruptible()
    entered = False

    def app() -> None:
        nonlocal entered
        waits._raised = True  # as if it had been sent, and had not arrived yet
        with waits.held_off():
            entered = True

    with pytest.raises(AbandonedError):
        waits.call(app)
    assert not entered
    innocent()


def test_an_app_that_calls_back_outside_of_its_call_is_not_struck_afterwards() -> None:
    """Its `__iter__`, say: nothing is inside the app then, and nothing is when it has returned."""
    waits = Interruptible()
    with waits.held_off():
        pass
    assert not waits.interrupt()
    innocent()


def test_what_the_app_calls_back_into_may_raise() -> None:
    waits = Interruptible()

    def app() -> None:
        with pytest.raises(LookupError), waits.held_off():
            raise LookupError
        assert waits._inside

    waits.call(app)
    assert not waits._inside
