"""What a socket did not take at once: kept in order, in memory or in a temporary file, until the client reads it.

So are the parts of a response that are files (edge.fileparts), of which nothing is kept but the place in line.

A connection has one only while something is unsent, and every call is made by the thread that holds the connection's
lock, but for `store`: a disk may take its time, and the lock is not held over that. It is called by the one worker that
answers, and what it has written is put in line afterwards. Knows no socket: bytes leave through the functions it is
given.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import IO, TYPE_CHECKING

from hardserve.edge.fileparts import TAIL_BYTES, OutgoingFile
from hardserve.protocol import FileFailedError

if TYPE_CHECKING:
    from hardserve.edge.budget import Budget
    from hardserve.edge.fileparts import PageCache
    from hardserve.protocol import FilePart, SharedFile

logger = logging.getLogger("hardserve.edge")

# Called once when all bytes before it have left, or cannot any more: how many of them never left, and why.
Report = Callable[[int, str], None]
SendFile = Callable[[int, int, int], int | None]  # as Transport.send_file

FILE_READ_BYTES = 65536
# Sent from files in one turn: a client that takes it as fast as it is read must not hold up the others. Many share it,
# down to a size where turns begin to cost more than what leaves in them: with sixteen downloads as fast as they go,
# somebody else's median is 0.6 ms so, and 5 ms if each had a MiB.
FILE_TURN_BYTES = 2 << 20
FILE_SHARE_BYTES = 65536


@dataclass(slots=True)
class Stored:
    """A stretch of the temporary file."""

    start: int
    end: int

    @property
    def length(self) -> int:  # not `len`, which a 32-bit machine has only up to 2 GiB
        return self.end - self.start


class Outbox:
    """Unsent bytes of one connection.

    What is in memory is in the budget until it is sent, what is in the file for as long as it takes room on the disk:
    until all that is in it has been sent.

    `since` is when the first of them was left over (monotonic seconds), `unacknowledged` how many earlier ones the
    kernel then still held: what a client takes is what it acknowledges, and the kernel may hold megabytes of it.
    """

    __slots__ = (
        "_budget", "_closed", "_cold", "_file", "_file_bytes", "_file_end", "_file_failed", "_kernel_held", "_parts",
        "_reading", "_storing", "cold_since", "has_files", "memory", "seen", "seen_at", "since", "stored", "taken",
        "taken_before_wait",
    )  # fmt: skip

    def __init__(self, budget: Budget, now: float, unacknowledged: int) -> None:
        self._budget = budget
        self._parts: deque[memoryview | Stored | OutgoingFile | Report] = deque()
        self._file: IO[bytes] | None = None
        self._file_end = 0  # where to write on
        self._file_bytes = 0  # of the file on the disk
        self._file_failed = False
        self._storing = False
        self._closed = False
        self._cold: OutgoingFile | None = None  # the first part, while some of it must be read before it can leave
        self._reading = False  # it is being read
        self.cold_since = math.inf  # monotonic seconds
        self._kernel_held = unacknowledged
        self.has_files = False  # or has had some
        self.memory = 0  # bytes
        self.stored = 0
        self.taken = 0  # by the socket, since then
        self.since = now
        # What the I/O thread saw acknowledged when it last looked and there was more of it, and when that was.
        self.seen = 0
        self.seen_at = now
        self.taken_before_wait = 0  # what was acknowledged when a worker began to wait

    def __repr__(self) -> str:
        cold = f" waits for {self._cold!r}" if self._cold is not None else ""
        return f"<Outbox memory={self.memory} stored={self.stored} taken={self.taken}{cold}>"

    def __len__(self) -> int:
        """Return how many bytes are kept here: not those of files, of which nothing is but what was read."""
        return self.memory + self.stored

    def __bool__(self) -> bool:
        """Whether there is anything left to do, be it only a report."""
        return bool(self._parts) or self._storing

    @property
    def sendable(self) -> bool:
        """Whether there is anything that a writable socket could take."""
        return bool(self._parts) and self._cold is None

    def acknowledged(self, unacknowledged: int) -> int:
        """Return how many bytes the client has taken since `since`; `unacknowledged` is what the kernel holds."""
        return self.taken + self._kernel_held - unacknowledged

    def put(self, data: memoryview) -> None:
        # A view, because a rest that shrinks by what the client reads would else be copied each time.
        self._parts.append(data)
        self.memory += len(data)
        self._budget.keep_response(len(data))

    def report_when_sent(self, report: Report) -> None:
        self._parts.append(report)

    # --- the temporary file ---

    def may_store(self, size: int, limit: int) -> bool:
        """Return whether `size` bytes may go to the file, which may grow to `limit`."""
        if not self.stored and not self._storing:
            self._file_end = 0  # all of it was read: from the start again
        end = self._file_end + size
        return end <= limit and not self._file_failed and self._budget.allows("", 0, end - self._file_bytes)

    def begin_storing(self) -> None:
        """Let nobody close the file until `end_storing`. With the lock, before `store`."""
        self._storing = True

    def store(self, data: memoryview) -> Stored | None:
        """Write `data` to the file; return where, None if that failed. Worker thread, without the lock."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by `close` or `end_storing`
            at = self._file_end
            if not at and self._file_bytes:
                os.ftruncate(self._file.fileno(), 0)
                self._count_file(0)
            while data:
                written = os.pwrite(self._file.fileno(), data, at)
                at += written
                data = data[written:]
                self._count_file(at)
        except OSError as error:
            if self._budget.is_news(monotonic()):
                logger.warning("slowly read responses cannot be stored: %s; their threads wait instead", error)
            return None
        return Stored(self._file_end, at)

    def end_storing(self, data: memoryview, stretch: Stored | None) -> None:
        """Put in line what `store` has written, or, if it could not, `data` itself. With the lock."""
        self._storing = False
        if self._closed:
            self._close_file()
        elif stretch is None:
            self._file_failed = True
            self.put(data)
        else:
            self._file_end = stretch.end
            self._parts.append(stretch)
            self.stored += stretch.length

    def _count_file(self, size: int) -> None:
        self._budget.add("", 0, size - self._file_bytes)
        self._file_bytes = size

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._count_file(0)

    # --- files that are sent ---

    def put_file(self, part: FilePart, cache: PageCache) -> None:
        """Put a part of a file in line, and hold the file until it has left."""
        self._parts.append(OutgoingFile(part, cache))
        self.has_files = True

    def begin_reading(self) -> tuple[SharedFile, int, int] | None:
        """Return what has to be read, file, offset and count, before anything can leave; None if nothing has.

        The file is held for whoever reads, until that one has released it. `end_reading` follows.
        """
        part = self._cold
        if part is None or self._reading:
            return None
        self._reading = True
        return part.file.hold(), part.start, part.to_read()

    def give_up_reading(self) -> None:
        """Nobody can read at the moment: `begin_reading` again later."""
        self._reading = False

    def end_reading(self, result: bytes | BaseException, now: float) -> bool:
        """Have what was read, or why it was not, in line; return whether anybody still waits for it."""
        part = self._cold
        if part is None or self._closed:
            return False
        self._cold = None
        self._reading = False
        part.was_read(result)
        if part.data is not None:
            self.memory += len(part.data)
            self._budget.keep_response(len(part.data))
        # It was the storage that was slow, not the client.
        self.since += now - self.cold_since
        self.seen_at = now
        self.cold_since = math.inf
        return True

    # --- sending ---

    def send(
        self, send: Callable[[memoryview], int], send_file: SendFile, share: int = FILE_TURN_BYTES
    ) -> list[Report]:
        """Send until the socket takes no more, or it is others' turn; return the reports that are due.

        It is when `share` bytes have left, of which some are from a file.

        Raises OSError when the connection is broken, and FileFailedError, but only when no report is due: a connection
        that breaks behind a response has still taken that one, and is as broken the next time. I/O thread.
        """
        due: list[Report] = []
        if self._cold is not None:
            return due
        end = self.taken + share
        while self._parts:
            part = self._parts[0]
            if callable(part):
                due.append(part)
            else:
                try:
                    whole = self._send_part(part, send, send_file, end)
                except (OSError, FileFailedError):
                    if due:
                        break
                    raise
                if not whole:
                    break
            self._parts.popleft()
        return due

    def _send_part(
        self,
        part: memoryview | Stored | OutgoingFile,
        send: Callable[[memoryview], int],
        send_file: SendFile,
        end: int,
    ) -> bool:
        if isinstance(part, OutgoingFile):
            return self._send_file(part, send, send_file, end)
        if isinstance(part, Stored):
            return self._send_stored(part, send, end)
        sent = send(part)
        self._took(sent, 0)
        if sent < len(part):
            self._parts[0] = part[sent:]
            return False
        return True

    def _send_stored(self, stretch: Stored, send: Callable[[memoryview], int], end: int) -> bool:
        assert self._file is not None
        while stretch.length:
            if self.taken >= end:
                return False
            data = os.pread(self._file.fileno(), min(FILE_READ_BYTES, stretch.length), stretch.start)
            if not data:
                raise OSError("the temporary file of a response is shorter than what was written to it")
            sent = send(memoryview(data))
            stretch.start += sent
            self._took(0, sent)
            if sent < len(data):
                return False
        return True

    def _send_file(self, part: OutgoingFile, send: Callable[[memoryview], int], send_file: SendFile, end: int) -> bool:
        while part.length:
            most = min(end - self.taken, part.length)
            if most <= 0:
                return False
            if part.data is not None:
                size = len(part.data)
                sent = part.send_data(send)
                self._took(sent, 0)
                if sent < size:
                    return False
                continue
            left = part.send(send_file, most)
            if left is None:
                self._cold = part
                self.cold_since = monotonic()
                return False
            self.taken += left
            if part.data is not None:
                self.memory += len(part.data)
                self._budget.keep_response(len(part.data))
            elif left < most - TAIL_BYTES:
                return False
        part.release()
        return True

    def _took(self, memory: int, stored: int) -> None:
        self.memory -= memory
        self.stored -= stored
        self.taken += memory + stored
        self._budget.keep_response(-memory)

    def close(self) -> list[tuple[Report, int]]:
        """Drop everything; return the reports that will never be due, each with how many of its bytes never left."""
        self._budget.keep_response(-self.memory)
        self.memory = self.stored = 0
        self._closed = True
        self._cold = None
        if not self._storing:
            self._close_file()
        reports: list[tuple[Report, int]] = []
        count = 0
        for part in self._parts:
            if isinstance(part, OutgoingFile):
                count += part.length
                part.release()
            elif isinstance(part, Stored):
                count += part.length
            elif isinstance(part, memoryview):
                count += len(part)
            else:
                reports.append((part, count))
                count = 0
        self._parts.clear()
        return reports
