import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardserve.ops.logfile import LogFile
from hardserve.ops.logwriter import LINE_OVERHEAD, REPORT_S, LogFileError, LogWriter

TIMEOUT_S = 10.0


class Reports(list[str]):
    def __call__(self, level: int, text: str) -> None:
        self.append(text)


class ManualClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@contextlib.contextmanager
def running(
    path: Path,
    reports: Reports,
    clock: ManualClock | None = None,
    *,
    gather_s: float = 0.0,
    capacity_bytes: int = 1 << 20,
    retry_s: float = 1000.0,
) -> Iterator[LogWriter]:
    writer = LogWriter(
        "access",
        LogFile(str(path)),
        report=reports,
        gather_s=gather_s,
        retry_s=retry_s,
        capacity_bytes=capacity_bytes,
        now=clock or ManualClock(),
    )
    writer.start()
    try:
        yield writer
    finally:
        assert writer.close(TIMEOUT_S)


def test_lines_are_written_in_order_and_none_is_left_at_close(path: Path, reports: Reports) -> None:
    lines = [b"line %d\n" % number for number in range(5000)]
    with running(path, reports, gather_s=1000.0) as writer:
        for line in lines:
            writer.write(line)
    assert path.read_bytes() == b"".join(lines)
    assert reports == []


def test_an_idle_writer_wakes_for_a_line(path: Path, reports: Reports) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    try:
        with running(path, reports) as writer:
            for line in (b"one\n", b"two\n", b"three\n"):
                writer.write(line)
                assert os.read(reader, 100) == line
    finally:
        os.close(reader)


def test_lines_written_before_start_are_kept(path: Path, reports: Reports) -> None:
    writer = LogWriter("access", LogFile(str(path)), report=reports)
    writer.write(b"early\n")
    writer.start()
    assert writer.close(TIMEOUT_S)
    assert path.read_bytes() == b"early\n"


def test_a_file_that_cannot_be_opened_is_an_error_for_the_operator(tmp_path: Path, reports: Reports) -> None:
    path = tmp_path / "missing" / "access.log"
    writer = LogWriter("access", LogFile(str(path)), report=reports)
    with pytest.raises(LogFileError) as caught:
        writer.start()
    assert str(caught.value) == (
        f'log.access = "{path}": cannot be opened for writing: No such file or directory: '
        "expected a file that this user may create or append to"
    )
    assert writer.close(TIMEOUT_S)


def test_closing_again_and_writing_after_it_do_no_harm(path: Path, reports: Reports) -> None:
    with running(path, reports) as writer:
        writer.write(b"one\n")
    assert writer.close(TIMEOUT_S)
    writer.write(b"two\n")
    writer.reopen()
    assert not writer.flush(TIMEOUT_S)
    assert path.read_bytes() == b"one\n"
    assert writer.dropped == 1


# --- many threads ---


@pytest.fixture
def frantic_switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def write_from_threads(writer: LogWriter, threads: int, lines: int) -> None:
    together = threading.Barrier(threads)

    def write(name: int) -> None:
        together.wait()
        for number in range(lines):
            writer.write(b"%d %07d\n" % (name, number))

    workers = [threading.Thread(target=write, args=(name,)) for name in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@pytest.mark.usefixtures("frantic_switching")
def test_threads_lose_no_line_and_keep_their_order(path: Path, reports: Reports) -> None:
    with running(path, reports, capacity_bytes=1 << 30) as writer:
        write_from_threads(writer, threads=8, lines=1000)
    lines = [tuple(map(int, line.split())) for line in path.read_bytes().splitlines()]
    assert sorted(lines) == [(name, number) for name in range(8) for number in range(1000)]
    for name in range(8):
        assert [number for who, number in lines if who == name] == list(range(1000))


@pytest.mark.usefixtures("frantic_switching")
def test_threads_never_overfill_the_queue(path: Path, reports: Reports) -> None:
    # Not started, so that nothing is taken out; equal lines make the account exact.
    writer = LogWriter("access", LogFile(str(path)), report=reports, capacity_bytes=1000 * (10 + LINE_OVERHEAD))
    write_from_threads(writer, threads=8, lines=1000)
    assert writer.dropped == 7000


# --- trouble ---


def test_lines_wait_out_a_full_disk_and_the_newest_past_the_bound_are_dropped(
    path: Path, reports: Reports, clock: ManualClock
) -> None:
    path.symlink_to("/dev/full")
    room_for_ten = 10 * (2 + LINE_OVERHEAD)
    with running(path, reports, clock, capacity_bytes=room_for_ten) as writer:
        writer.write(b"0\n")
        assert writer.flush(TIMEOUT_S)
        for _ in range(15):
            writer.write(b"1\n")
        clock.time += 37
        path.unlink()
        assert writer.flush(TIMEOUT_S)
        writer.write(b"2\n")
    assert path.read_bytes() == b"0\n" + b"1\n" * 10 + b"2\n"
    assert writer.dropped == 5
    assert reports == [
        f"access log {path}: No space left on device; lines wait in memory, and are dropped when that is full",
        f"access log {path}: written again after 37s, 5 lines dropped",
    ]


def test_a_writer_in_trouble_tries_again_by_itself(path: Path, reports: Reports) -> None:
    path.symlink_to("/dev/full")
    with running(path, reports, retry_s=0.001) as writer:
        writer.write(b"one\n")
        assert writer.flush(TIMEOUT_S)
        os.mkfifo(path.with_name("pipe"))
        reader = os.open(path.with_name("pipe"), os.O_RDONLY | os.O_NONBLOCK)
        path.with_name("link").symlink_to("pipe")
        path.with_name("link").replace(path)
        os.set_blocking(reader, True)
        # Until the writer has opened the pipe there is none at its other end, and a read returns nothing.
        got = b""
        while not got:
            got = os.read(reader, 100)
        os.close(reader)
    assert got == b"one\n"


def test_a_disk_full_to_the_end_is_reported_with_what_it_cost(path: Path, reports: Reports) -> None:
    path.symlink_to("/dev/full")
    with running(path, reports) as writer:
        for _ in range(12):
            writer.write(b"one\n")
    assert reports[1:] == [f"access log {path}: 12 lines dropped at the end"]


def test_a_disk_in_and_out_of_trouble_is_reported_once_an_interval(
    path: Path, reports: Reports, clock: ManualClock
) -> None:
    def trouble_and_recovery(writer: LogWriter) -> None:
        path.symlink_to("/dev/full")
        writer.reopen()
        writer.write(b"one\n")
        assert writer.flush(TIMEOUT_S)
        path.unlink()
        assert writer.flush(TIMEOUT_S)
        path.unlink()

    with running(path, reports, clock) as writer:
        path.unlink()
        trouble_and_recovery(writer)
        trouble_and_recovery(writer)
        assert len(reports) == 2
        clock.time += REPORT_S
        trouble_and_recovery(writer)
        assert len(reports) == 4


def test_trouble_that_began_unreported_is_reported_when_it_lasts(
    path: Path, reports: Reports, clock: ManualClock
) -> None:
    path.symlink_to("/dev/full")
    with running(path, reports, clock) as writer:
        writer.write(b"one\n")
        assert writer.flush(TIMEOUT_S)
        path.unlink()
        assert writer.flush(TIMEOUT_S)
        path.unlink()
        path.symlink_to("/dev/full")
        writer.reopen()
        writer.write(b"two\n")
        assert writer.flush(TIMEOUT_S)
        assert len(reports) == 2
        clock.time += REPORT_S
        assert writer.flush(TIMEOUT_S)
        assert len(reports) == 3


def test_a_report_that_raises_does_not_end_the_writer(path: Path) -> None:
    def report(level: int, text: str) -> None:
        raise RuntimeError("the app's own filter")

    path.symlink_to("/dev/full")
    writer = LogWriter("access", LogFile(str(path)), report=report)
    writer.start()
    writer.write(b"one\n")
    assert writer.flush(TIMEOUT_S)
    path.unlink()
    assert writer.close(TIMEOUT_S)
    assert path.read_bytes() == b"one\n"


STALLED = """
import sys, threading
from hardserve.ops.logfile import LogFile
from hardserve.ops.logwriter import LogWriter
writer = LogWriter("access", LogFile("stdout"), report=print, capacity_bytes=1 << 20)
writer.start()
for number in range(20_000):
    writer.write(b"x" * 99 + b"\\n")
print("dropped" if writer.dropped > 0 else "kept", "closed" if writer.close(0.01) else "stuck", file=sys.stderr)
sys.stdin.read()
"""


def test_a_reader_that_stalls_costs_lines_but_never_a_caller() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", STALLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stderr is not None
        # Its stdout is read by nobody until it has written everything it had to.
        assert child.stderr.readline() == "dropped stuck\n"
        child.communicate(timeout=30)
    assert child.returncode == 0


BROKEN_PIPE = """
import os, sys
from hardserve.ops.logfile import LogFile
from hardserve.ops.logwriter import LogWriter
sys.stdin.read()
writer = LogWriter("access", LogFile("stdout"), report=lambda level, text: print(text, file=sys.stderr))
writer.start()
writer.write(b"one\\n")
writer.flush(10)
writer.write(b"two\\n")
writer.close(10)
"""


def test_a_stdout_whose_reader_has_gone_stops_nothing() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", BROKEN_PIPE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        child.stdout.close()
        child.stdout = None
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 0
    assert errors.splitlines() == [
        "access log stdout: Broken pipe; lines wait in memory, and are dropped when that is full",
        "access log stdout: 2 lines dropped at the end",
    ]


# --- reopening ---


def test_lines_before_a_reopening_are_in_the_moved_file_and_later_ones_in_the_new(
    path: Path, tmp_path: Path, reports: Reports
) -> None:
    moved = tmp_path / "moved"
    with running(path, reports, gather_s=1000.0) as writer:
        writer.write(b"one\n")
        path.rename(moved)
        writer.write(b"two\n")
        writer.reopen()
        assert writer.flush(TIMEOUT_S)
        writer.write(b"three\n")
    assert moved.read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_a_signal_handler_may_reopen(path: Path, tmp_path: Path, reports: Reports) -> None:
    with running(path, reports) as writer:
        former = signal.signal(signal.SIGHUP, lambda *_: writer.reopen())
        try:
            path.rename(tmp_path / "moved")
            signal.raise_signal(signal.SIGHUP)
            assert writer.flush(TIMEOUT_S)
            assert path.exists()
        finally:
            signal.signal(signal.SIGHUP, former)


def test_a_reopening_that_fails_goes_on_with_the_former_file(tmp_path: Path, reports: Reports) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    with running(directory / "access.log", reports) as writer:
        directory.rename(tmp_path / "moved")
        writer.reopen()
        assert writer.flush(TIMEOUT_S)
        writer.write(b"one\n")
    assert (tmp_path / "moved" / "access.log").read_bytes() == b"one\n"
    assert [re.sub(r"^.*?: ", "", text) for text in reports] == [
        "cannot be opened again: No such file or directory; the former file stays in use"
    ]


# --- forking ---

FORKING = """
import os, sys
from hardserve.ops.logfile import LogFile
from hardserve.ops.logwriter import LogWriter
writer = LogWriter("error", LogFile(sys.argv[1]), report=print, gather_s=1000.0)
writer.start()
writer.write(b"parent\\n")
pid = os.fork()
if pid == 0:
    writer.write(b"child\\n")
    writer.flush(1000)
    os._exit(0)
os.waitpid(pid, 0)
writer.close(10)
"""


def test_a_forked_child_writes_its_own_lines_and_not_its_parents(path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING, str(path)], check=True, timeout=30)
    assert path.read_bytes() == b"child\nparent\n"
