"""What is kept leaves in order, once, and nothing of it stays behind."""

from __future__ import annotations

import gc
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hardserve.edge.budget import Budget
from hardserve.edge.fileparts import OutgoingFile, PageCache
from hardserve.edge.outbox import Outbox, Report
from hardserve.protocol import FilePart, SharedFile
from tests.support import PATIENCE_S, switching_often

REPOSITORY = Path(__file__).parent.parent
FILE_LIMIT = 1 << 20


def new_outbox(budget: Budget | None = None) -> Outbox:
    return Outbox(budget or Budget(1 << 30, 1 << 30), 0.0, 0)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def keep(outbox: Outbox, data: bytes) -> bool:
    """Store `data` as a connection does; return whether it went to the file."""
    if not outbox.may_store(len(data), FILE_LIMIT):
        outbox.put(memoryview(data))
        return False
    outbox.begin_storing()
    stretch = outbox.store(memoryview(data))
    outbox.end_storing(memoryview(data), stretch)
    return stretch is not None


class Wire:
    """Takes `room` bytes and then no more; with `broken`, none at all."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.room = 0
        self.broken = False

    def send(self, data: memoryview) -> int:
        if self.broken:
            raise BrokenPipeError
        taken = data[: self.room]
        self.room -= len(taken)
        self.taken += taken
        return len(taken)

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        if not self.room and not self.broken:
            return None
        return self.send(memoryview(os.pread(descriptor, count, offset)))


def no_file(_descriptor: int, _offset: int, _count: int) -> int | None:
    raise AssertionError("there is none")


def shared_file(content: bytes) -> SharedFile:
    """Return a file that nobody else can open."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        descriptor = os.dup(file.fileno())
    status = os.fstat(descriptor)
    return SharedFile(descriptor, status.st_size, status.st_mtime_ns, "a file")


# --- order ---


class OutboxMachine(RuleBasedStateMachine):
    """Any mix of memory, temporary file, files and reports, against one string of bytes with marks in it."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = open_descriptors()
        self.budget = Budget(1 << 30, 1 << 30)
        self.outbox = new_outbox(self.budget)
        self.wire = Wire()
        self.bytes = bytearray()  # all that is to leave, in order
        self.marks: list[tuple[int, int]] = []  # of reports: where they stand, and which they are
        self.due: list[int] = []
        self.reports = 0
        self.storing: bytes | None = None
        self.chance = random.Random(0)
        self.content = self.chance.randbytes(400_000)
        self.file = shared_file(self.content)
        self.caches = {False: PageCache(), True: PageCache(0)}  # one that cannot tell: all has to be read first
        self.reading: tuple[SharedFile, int, int] | None = None

    def _data(self, size: int) -> bytes:
        return self.chance.randbytes(size)

    def _report(self) -> Report:
        number = self.reports = self.reports + 1
        self.marks.append((len(self.bytes), number))
        return lambda unsent, _reason: self.due.append(number if not unsent else -number)

    @precondition(lambda self: self.storing is None)
    @rule(size=st.sampled_from([0, 1, 7, 10_000]))
    def put(self, size: int) -> None:
        data = self._data(size)
        self.bytes += data
        self.outbox.put(memoryview(data))

    @precondition(lambda self: self.storing is None)
    @rule(size=st.sampled_from([1, 7, 70_000]))
    def begin_storing(self, size: int) -> None:
        data = self._data(size)
        if self.outbox.may_store(size, FILE_LIMIT):
            self.outbox.begin_storing()
            self.storing = data
        else:
            self.bytes += data
            self.outbox.put(memoryview(data))

    @precondition(lambda self: self.storing is not None)
    @rule()
    def end_storing(self) -> None:
        data, self.storing = self.storing, None
        assert data is not None
        stretch = self.outbox.store(memoryview(data))
        self.outbox.end_storing(memoryview(data), stretch)
        assert stretch is not None
        self.bytes += data

    @precondition(lambda self: self.storing is None)
    @rule()
    def end_a_response(self) -> None:
        self.outbox.report_when_sent(self._report())

    @precondition(lambda self: self.storing is None)
    @rule(start=st.sampled_from([0, 1, 70_000]), size=st.sampled_from([0, 1, 5_000, 330_000]), cold=st.booleans())
    def put_file(self, start: int, size: int, cold: bool) -> None:
        self.bytes += self.content[start : start + size]
        self.outbox.put_file(FilePart(self.file, start, start + size), self.caches[cold])

    @precondition(lambda self: self.reading is None)
    @rule()
    def begin_reading(self) -> None:
        assert self.outbox.sendable or not self.outbox or self.outbox.cold_since < math.inf or self.storing is not None
        self.reading = self.outbox.begin_reading()

    @precondition(lambda self: self.reading is not None)
    @rule(pool_is_full=st.booleans())
    def end_reading(self, pool_is_full: bool) -> None:
        assert self.reading is not None
        (file, start, count), self.reading = self.reading, None
        assert not self.outbox.sendable, "a writable socket would find nothing, at every turn"
        if pool_is_full:
            self.outbox.give_up_reading()
        else:
            assert self.outbox.end_reading(file.read(start, count), time.monotonic())
            assert self.outbox.sendable
        file.release()

    @rule(room=st.sampled_from([0, 1, 100, 65_536, 1_000_000]))
    def send(self, room: int) -> None:
        self.wire.room = room
        for report in self.outbox.send(self.wire.send, self.wire.send_file):
            report(0, "")

    @rule()
    def break_while_sending(self) -> None:
        self.wire.broken = True
        try:
            for report in self.outbox.send(self.wire.send, self.wire.send_file):
                report(0, "")
        except BrokenPipeError:
            pass
        self.wire.broken = False

    @invariant()
    def the_client_has_the_beginning(self) -> None:
        assert self.bytes.startswith(self.wire.taken)
        assert self.outbox.taken == len(self.wire.taken)

    @invariant()
    def reports_came_when_all_before_them_had_left_and_in_order(self) -> None:
        # One that stands at the end of what has left is told with the next send.
        certain = [number for at, number in self.marks if at < len(self.wire.taken)]
        possible = [number for at, number in self.marks if at <= len(self.wire.taken)]
        assert self.due[: len(certain)] == certain
        assert possible[: len(self.due)] == self.due

    @invariant()
    def what_is_kept_is_counted(self) -> None:
        files = [part for part in self.outbox._parts if isinstance(part, OutgoingFile)]
        unread = sum(part.length - len(part.data or b"") for part in files)
        assert len(self.outbox) + unread == len(self.bytes) - len(self.wire.taken)
        assert self.file._holders == 1 + len(files) + (self.reading is not None)
        assert self.budget.memory == self.outbox.memory
        file = self.outbox._file
        assert self.budget.files == (0 if file is None else os.fstat(file.fileno()).st_size)
        assert self.outbox.stored <= self.budget.files

    def teardown(self) -> None:
        unsent = len(self.bytes) - len(self.wire.taken)
        untold = [(at, number) for at, number in self.marks if number not in self.due]
        reports = self.outbox.close()
        told = 0
        for (report, count), (at, number) in zip(reports, untold, strict=True):
            assert count == max(0, at - len(self.wire.taken)) - told, "each is told of its own bytes only"
            told += count
            report(count, "closed")
            assert abs(self.due[-1]) == number
        assert told <= unsent
        if self.storing is not None:  # its worker comes back from the disk
            data = memoryview(self.storing)
            self.outbox.end_storing(data, self.outbox.store(data))
        if self.reading is not None:  # as does its file thread
            assert not self.outbox.end_reading(self.reading[0].read(*self.reading[1:]), time.monotonic())
            self.reading[0].release()
        assert not self.outbox
        assert not self.outbox.sendable
        self.file.release()
        assert self.file._holders == 0
        assert (self.budget.memory, self.budget.files) == (0, 0)
        assert open_descriptors() <= self.descriptors


OutboxMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestOutbox = OutboxMachine.TestCase


def test_an_outbox_that_was_emptied_is_false_but_not_while_its_worker_is_at_the_disk() -> None:
    outbox = new_outbox()
    assert not outbox
    outbox.begin_storing()
    assert outbox
    assert not outbox.sendable, "a writable socket would find nothing, at every turn"
    data = memoryview(b"data")
    outbox.end_storing(data, outbox.store(data))
    assert outbox.sendable
    outbox.close()


def test_what_the_client_has_taken_is_what_it_acknowledges() -> None:
    outbox = Outbox(Budget(1 << 20, 0), 0.0, 500)  # the kernel holds 500 bytes of what went before
    outbox.put(memoryview(b"x" * 1000))
    assert outbox.acknowledged(500) == 0
    wire = Wire()
    wire.room = 300
    outbox.send(wire.send, wire.send_file)
    assert outbox.acknowledged(800) == 0, "the kernel took it, the client did not"
    assert outbox.acknowledged(0) == 800
    outbox.close()


def test_a_response_that_had_left_when_the_next_one_broke_is_reported_as_such() -> None:
    outbox, wire = new_outbox(), Wire()
    told: list[tuple[str, int]] = []
    outbox.put(memoryview(b"first"))
    outbox.report_when_sent(lambda unsent, _reason: told.append(("first", unsent)))
    outbox.put(memoryview(b"second"))
    outbox.report_when_sent(lambda unsent, _reason: told.append(("second", unsent)))

    def send(data: memoryview) -> int:
        if wire.taken == b"first":
            raise ConnectionResetError
        wire.room = 100
        return wire.send(data)

    for report in outbox.send(send, no_file):
        report(0, "")
    with pytest.raises(ConnectionResetError):
        outbox.send(send, no_file)
    for report, unsent in outbox.close():
        report(unsent, "gone")
    assert told == [("first", 0), ("second", 6)]


# --- the file ---


def test_the_file_is_used_from_its_start_again_when_all_of_it_has_left() -> None:
    budget = Budget(1 << 30, 1 << 30)
    outbox, wire = new_outbox(budget), Wire()
    for _ in range(20):
        assert keep(outbox, b"x" * 100_000)
        assert keep(outbox, b"y" * 500_000)
        assert not keep(outbox, b"z" * 500_000), "past its limit"
        wire.room = 600_001
        outbox.send(wire.send, wire.send_file)
        assert outbox.stored == 0
        assert keep(outbox, b"a")
        assert budget.files == 1, "what has left takes no room on the disk"
        wire.room = 500_000
        outbox.send(wire.send, wire.send_file)
    assert not outbox
    assert outbox.close() == []
    assert (budget.memory, budget.files) == (0, 0)


def test_a_file_is_in_the_budget_for_as_long_as_it_is_on_the_disk() -> None:
    """Else a client that reads nearly all of a file, and then no more, has as much disk as it likes for nothing."""
    budget = Budget(1 << 30, 1 << 30)
    outbox, wire = new_outbox(budget), Wire()
    keep(outbox, b"x" * 100_000)
    wire.room = 99_999
    outbox.send(wire.send, wire.send_file)
    assert outbox.stored == 1
    assert budget.files == 100_000
    outbox.close()
    assert budget.files == 0


@pytest.mark.parametrize(
    ("memory_kept", "files_kept", "may"),
    [
        pytest.param(0, 0, True, id="there is room"),
        pytest.param(0, 901, False, id="the disk's share is used up"),
        pytest.param(1000, 0, True, id="memory is short, which is what the file is for"),
        pytest.param(5000, 900, True, id="memory is far over its limit, and the disk just has the room"),
    ],
)
def test_what_may_go_to_the_file(memory_kept: int, files_kept: int, may: bool) -> None:
    budget = Budget(1000, 1000)
    budget.add("", memory_kept, files_kept)
    assert new_outbox(budget).may_store(100, FILE_LIMIT) is may


def test_a_file_that_somebody_cut_short_ends_the_response() -> None:
    outbox, wire = new_outbox(), Wire()
    keep(outbox, b"x" * 1000)
    assert outbox._file is not None
    os.ftruncate(outbox._file.fileno(), 10)
    wire.room = 1 << 20
    with pytest.raises(OSError, match="shorter"):
        outbox.send(wire.send, wire.send_file)
    outbox.close()


def test_without_a_temporary_directory_it_stays_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    budget = Budget(1 << 20, 1 << 20)
    outbox, wire = new_outbox(budget), Wire()
    assert not keep(outbox, b"one")
    assert not keep(outbox, b"two"), "and it is not tried again"
    assert (budget.memory, budget.files) == (6, 0)
    wire.room = 100
    outbox.send(wire.send, wire.send_file)
    assert wire.taken == b"onetwo"
    assert not outbox
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


FULL_DISK = """
import resource, sys
from hardserve.edge.budget import Budget
from hardserve.edge.outbox import Outbox

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
budget = Budget(1 << 30, 1 << 30)
outbox = Outbox(budget, 0.0, 0)
sent = bytearray()
def send(data):
    sent.extend(data[:7_000])
    return len(data[:7_000])
expected = b""
for letter in b"abc":
    data = bytes([letter]) * 64_000
    expected += data
    if outbox.may_store(len(data), 1 << 20):
        outbox.begin_storing()
        outbox.end_storing(memoryview(data), outbox.store(memoryview(data)))
    else:
        outbox.put(memoryview(data))
assert (outbox.memory, outbox.stored) == (128_000, 64_000), outbox
assert budget.files == 100_000, "what was written before the disk was full is still on it"
while outbox:
    outbox.send(send, None)
assert sent == expected
outbox.close()
assert (budget.memory, budget.files) == (0, 0), budget
"""

SERVING_ON_A_FULL_DISK = """
import resource, time
from tests.support import serving

resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

def app(environ, start_response):
    start_response("200 OK", [])
    for number in range(12):
        yield b"%02d" % number + b"x" * 99_998

with serving(app, limits_response_buffer="64KiB", limits_response_file="100MiB", log_access="off") as running:
    (listener,) = running.server._listeners
    listener.socket.setsockopt(1, 7, 16384)  # SO_SNDBUF, inherited
    with running.connect() as client:
        client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
        until = time.monotonic() + 10
        while not running.server._loop.connections and time.monotonic() < until:
            time.sleep(0.001)
        (connection,) = running.server._loop.connections
        while connection.waited_since > until and time.monotonic() < until:
            time.sleep(0.001)
        assert connection.outbox.stored, "some of it found room"
        body = client.response().body
    assert body == b"".join(b"%02d" % number + b"x" * 99_998 for number in range(12))
    (entry,) = running.log.wait_for(1)
    assert (entry.status, entry.refusal) == (200, ""), entry
    assert running.stop() == 0
    budget = running.server._budget
    assert (budget.memory, budget.files) == (0, 0), budget
"""


@pytest.mark.parametrize("program", [FULL_DISK, SERVING_ON_A_FULL_DISK], ids=["an outbox", "a server"])
def test_a_disk_that_is_full_costs_no_byte_of_a_response(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be stored") == 1, done.stderr
    assert "Traceback" not in done.stderr


# --- two threads, as a connection has them ---


class Sink(threading.Thread):
    """The I/O thread: sends what a client takes, a little at a time, and may close in the middle."""

    def __init__(self, outbox: Outbox, lock: threading.Lock, close_after: float) -> None:
        super().__init__(daemon=True)
        self.outbox = outbox
        self.lock = lock
        self.wire = Wire()
        self.close_after = close_after
        self.told: list[int] = []
        self.ended = False  # there will be no more
        self.closed = False

    def run(self) -> None:
        while not self.closed:
            with self.lock:
                self.wire.room = 30_000
                for report in self.outbox.send(self.wire.send, self.wire.send_file):
                    report(0, "")
                if len(self.wire.taken) >= self.close_after or (self.ended and not self.outbox):
                    self.closed = True
                    for report, unsent in self.outbox.close():
                        report(unsent, "closed")


def fill(outbox: Outbox, sink: Sink, told: list[int]) -> bytes:
    """The worker: puts and stores until it has had enough, or finds that the connection is closed."""
    chance = random.Random(1)
    expected = b""
    for number in range(60):
        data = bytes([65 + number % 26]) * chance.choice([1, 1000, 40_000])
        with sink.lock:
            if sink.closed:
                break
            store = chance.random() < 0.6 and outbox.may_store(len(data), 200_000)
            if store:
                outbox.begin_storing()
            else:
                outbox.put(memoryview(data))
        if store:
            stretch = outbox.store(memoryview(data))
            with sink.lock:
                outbox.end_storing(memoryview(data), stretch)
        expected += data
    with sink.lock:
        if not sink.closed:
            outbox.report_when_sent(lambda unsent, _reason: told.append(unsent))
        sink.ended = True
    return expected


@pytest.mark.parametrize("close_after", [float("inf"), 0, 1, 100_000, 400_000], ids="closed after {} bytes".format)
def test_storing_while_another_thread_sends_and_closes(close_after: float) -> None:
    gc.collect()
    descriptors = open_descriptors()
    budget = Budget(1 << 30, 1 << 30)
    with switching_often():
        for _ in range(5):
            outbox = new_outbox(budget)
            sink = Sink(outbox, threading.Lock(), close_after)
            told: list[int] = []
            sink.start()
            expected = fill(outbox, sink, told)
            sink.join(PATIENCE_S)
            assert not sink.is_alive()
            assert expected.startswith(sink.wire.taken)
            if close_after == float("inf"):
                assert sink.wire.taken == expected
                assert told == [0]
            assert (budget.memory, budget.files) == (0, 0)
            assert not outbox
            assert open_descriptors() == descriptors


def test_a_worker_that_is_at_the_disk_when_its_connection_is_closed_gives_the_file_back() -> None:
    gc.collect()
    descriptors = open_descriptors()
    budget = Budget(1 << 30, 1 << 30)
    outbox = new_outbox(budget)
    keep(outbox, b"before")
    at_the_disk, closed = threading.Event(), threading.Event()
    data = memoryview(b"x" * 100_000)

    def work() -> None:
        outbox.begin_storing()
        at_the_disk.set()
        assert closed.wait(PATIENCE_S)
        outbox.end_storing(data, outbox.store(data))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert at_the_disk.wait(PATIENCE_S)
    outbox.close()
    closed.set()
    worker.join(PATIENCE_S)
    assert not worker.is_alive()
    assert (budget.memory, budget.files, len(outbox)) == (0, 0, 0)
    assert open_descriptors() == descriptors


def test_a_repr_says_what_is_kept() -> None:
    outbox = new_outbox()
    outbox.put(memoryview(b"xyz"))
    assert repr(outbox) == "<Outbox memory=3 stored=0 taken=0>"


def test_sending_many_small_parts_and_a_large_one_in_small_steps_is_quick() -> None:
    """A rest that shrinks must not be copied each time: that is quadratic, and the lock is held meanwhile."""
    outbox, wire = new_outbox(), Wire()
    outbox.put(memoryview(bytes(64 << 20)))
    began = time.process_time()
    send: Callable[[memoryview], int] = lambda data: min(len(data), 16_384)  # noqa: E731
    for _ in range(4000):
        outbox.send(send, no_file)
    assert time.process_time() - began < 5, "4,000 copies of 64 MiB are half a minute"
    assert wire.taken == b""
    outbox.close()
