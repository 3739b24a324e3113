"""Lines on their way to a log: queued by any thread, written by one, never in the way of whoever logs.

`LogWriter.write` appends to a bounded queue and returns: no lock, no system call but one to wake an idle writer, no
exception. A lock would not do: a signal handler or a finalizer that logs while its own thread is in the middle of
logging would wait for itself for ever. The writer's thread does all that can stall, by way of a `LogFile`.

When the disk is full, gone or stalled, lines wait in the queue; when that is full the newest are dropped and counted.
The writer tries again every second, opening the path anew, and goes on when space or a mount comes back. It says so
when the trouble begins and when it ends, through the `report` it is given. What a line looks like is not known here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from hardserve.ops.logfile import LogFile

# What a line costs in the queue besides its bytes: the object's head and its slot. It bounds the number of lines too.
LINE_OVERHEAD = 48

# A log in and out of trouble is reported this often at most.
REPORT_S = 10.0

Report = Callable[[int, str], object]


class LogFileError(Exception):
    """A log cannot be opened at start. Its text is for the operator."""


class LogWriter:
    """A bounded queue of lines and the daemon thread that writes them to a `LogFile`.

    `name` is "access" or "error". `gather_s` is how long lines are left to gather for one write.
    `report(level, text)` is called on the writer's thread. `start` opens the file and starts the thread; `close` must
    follow it, else the lines of the last moment are lost at exit.

    A process forked from this one has no writer's thread: there, `write` writes.
    """

    def __init__(
        self,
        name: str,
        file: LogFile,
        *,
        report: Report,
        gather_s: float = 0.0,
        retry_s: float = 1.0,
        capacity_bytes: int = 8 * 1024 * 1024,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = f"{name} log {file.target}"
        self._setting = f"log.{name}"
        self._file = file
        self._report_to = report
        self._gather_s = gather_s
        self._retry_s = retry_s
        self._capacity_bytes = capacity_bytes
        self._now = now
        self._thread: threading.Thread | None = None

        # Shared with the threads that log. `_room` counts down what the queue may still take; the writer sets it
        # anew each time it takes what is there, so that a lost update could not add up.
        self._lines: deque[bytes] = deque()
        self._room = capacity_bytes
        self._dropped = 0
        self._forked = False

        # The writer sleeps by acquiring the bell. `_asleep` says that a line must ring it; orders always do.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._asleep = False
        self._reopening = False
        self._closing = False
        self._flushes: deque[threading.Event] = deque()

        # The writer's thread only.
        self._trouble_since: float | None = None
        self._trouble_reported = False
        self._dropped_reported = 0
        self._next_report = -1.0e9

    def __repr__(self) -> str:
        state = "in trouble" if self._trouble_since is not None else "closed" if self._closing else "well"
        return f"<LogWriter {self._name} {state} waiting={len(self._lines)} dropped={self._dropped}>"

    @property
    def dropped(self) -> int:
        """Lines that found the queue full, or closed, so far."""
        return self._dropped

    def start(self) -> None:
        """Open the file and start writing. Raises LogFileError."""
        try:
            self._file.open()
        except OSError as error:
            raise LogFileError(
                f'{self._setting} = "{self._file.target}": cannot be opened for writing: '
                f"{error.strerror or error}: expected a file that this user may create or append to"
            ) from error
        # A registration is for ever; the writer need not be.
        weakly = weakref.WeakMethod(self._become_child)

        def after_fork() -> None:
            become_child = weakly()
            if become_child is not None:
                become_child()

        os.register_at_fork(after_in_child=after_fork)
        self._thread = threading.Thread(target=self._run, name=f"hardserve {self._setting}", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue `line`, which ends with a newline. Any thread, a signal handler too; never waits, never raises."""
        size = len(line) + LINE_OVERHEAD
        # No call from here to the assignment: CPython switches threads only at calls and loops.
        room = self._room - size
        if room < 0:
            self._turn_away(line)
            return
        self._room = room
        self._lines.append(line)
        if self._asleep:
            self._asleep = False
            self._ring()

    def count_dropped(self) -> None:
        """Count a line that was lost before it came here."""
        self._dropped += 1

    def reopen(self) -> None:
        """Have the file opened again (SIGHUP, after it was moved). Lines written so far go to the former one."""
        self._reopening = True
        self._ring()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the lines written so far were tried; say whether that came in time. Not for the I/O thread."""
        if self._thread is None or self._closing or self._forked:
            return False
        tried = threading.Event()
        self._flushes.append(tried)
        self._ring()
        return tried.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Write everything, close the file, end the thread; say whether that came in time. Can be called again.

        A write that hangs is left behind with its daemon thread.
        """
        self._closing = True
        thread = self._thread
        if thread is None:
            return True
        self._ring()
        thread.join(timeout_s)
        return not thread.is_alive()

    def _turn_away(self, line: bytes) -> None:
        if self._forked:
            with contextlib.suppress(OSError):
                os.write(self._file.fd, line)
        else:
            self._dropped += 1

    def _become_child(self) -> None:
        # The parent writes what was queued. Without room, every line takes the path of `_turn_away`.
        self._forked = True
        self._room = -1
        self._lines.clear()

    def _ring(self) -> None:
        # Ringing twice raises: the first is still to be heard and will do for both.
        with contextlib.suppress(RuntimeError):
            self._bell.release()

    # --- the writer's thread ---

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wait()
            # Orders are read before the lines are taken: what was logged before an order is dealt with before it.
            closing = self._closing
            reopening = self._reopening
            if reopening:
                self._reopening = False
            flushes = len(self._flushes)
            if closing:
                self._room = -1
            self._deliver()
            if reopening:
                self._open_again()
                self._deliver()
            for _ in range(flushes):
                self._flushes.popleft().set()
        lost = self._dropped - self._dropped_reported + self._file.pending_lines + len(self._lines)
        if lost:
            self._report(logging.WARNING, f"{lost:,} lines dropped at the end")
        self._file.close()
        while self._flushes:
            self._flushes.popleft().set()

    def _wait(self) -> None:
        if self._trouble_since is not None:
            if not self._ordered():
                self._bell.acquire(timeout=self._retry_s)
            return
        while not (self._lines or self._ordered()):
            self._asleep = True
            # Looked at again after saying so: a line added just before would not have rung.
            if self._lines or self._ordered():
                self._asleep = False
                break
            self._bell.acquire()
        if self._gather_s and not self._ordered():
            self._bell.acquire(timeout=self._gather_s)

    def _ordered(self) -> bool:
        return self._closing or self._reopening or bool(self._flushes)

    def _deliver(self) -> None:
        try:
            if self._trouble_since is not None:
                self._file.open()
            self._file.flush()
            lines = self._lines
            if lines:
                if not self._closing:
                    self._room = self._capacity_bytes
                self._file.write(b"".join([lines.popleft() for _ in range(len(lines))]))
        except Exception as error:  # whatever it is, the thread must live on
            self._begin_trouble(error)
        else:
            self._end_trouble()

    def _open_again(self) -> None:
        try:
            self._file.open()
        except OSError as error:
            self._report(logging.ERROR, f"cannot be opened again: {error.strerror}; the former file stays in use")

    def _begin_trouble(self, error: Exception) -> None:
        now = self._now()
        if self._trouble_since is None:
            self._trouble_since = now
            self._trouble_reported = False
        if not self._trouble_reported and now >= self._next_report:
            self._trouble_reported = True
            self._next_report = now + REPORT_S
            reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            self._report(logging.ERROR, f"{reason}; lines wait in memory, and are dropped when that is full")

    def _end_trouble(self) -> None:
        now = self._now()
        since, self._trouble_since = self._trouble_since, None
        dropped = self._dropped - self._dropped_reported
        if since is not None and self._trouble_reported:
            self._dropped_reported += dropped
            self._report(logging.WARNING, f"written again after {now - since:.0f}s, {dropped:,} lines dropped")
        elif dropped and now >= self._next_report:
            self._next_report = now + REPORT_S
            self._dropped_reported += dropped
            self._report(logging.WARNING, f"{dropped:,} lines dropped: they came faster than they can be written")

    def _report(self, level: int, text: str) -> None:
        # An app's logging filter or handler that raises must not end this thread.
        with contextlib.suppress(Exception):
            self._report_to(level, f"{self._name}: {text}")
