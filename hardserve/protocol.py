"""What all kinds of thread need to put a response on the wire: reason phrases, the date, files, and what they share.

It knows no socket and runs on whichever thread calls it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Self

from hardserve.refusals import FILE_CHANGED, FILE_UNREADABLE, Cut

REASONS = {status.value: status.phrase for status in HTTPStatus}

# RFC 9110 15.5.14 and 15.5.15 renamed these; older Pythons still have the old phrases.
REASONS |= {413: "Content Too Large", 414: "URI Too Long", 418: "(Unused)", 422: "Unprocessable Content"}

# The id of the request that a worker is answering, for whatever is logged meanwhile, by the app or by us.
CURRENT_REQUEST: ContextVar[str] = ContextVar("hardserve_current_request", default="")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientDisconnectedError(ConnectionError):
    """The client went away, or was cut off, before its response was complete. Raised in the worker."""


class FileFailedError(Exception):
    """A file cannot be sent as its client was told it would be. The text says why, `why` is the reason in logs."""

    def __init__(self, why: Cut, text: str) -> None:
        super().__init__(text)
        self.why = why


class SharedFile:
    """An open regular file that is sent from, perhaps in several responses at once. Any thread.

    `size` and `mtime_ns` are as they were when it was opened, and what clients are told; `name` is for the log, and
    `storage` says who may wait for it (files.storages).

    It owns `descriptor`: whoever makes one holds it, whoever else keeps it calls `hold`, and each lets go with
    `release`. The last one calls `close` with the descriptor: that, too, may block on a slow file system. One that is
    dropped with its holders, as by a thread pool that stops, is closed when it is collected.
    """

    __slots__ = ("__weakref__", "_close", "_holders", "_lock", "descriptor", "mtime_ns", "name", "size", "storage")

    def __init__(
        self,
        descriptor: int,
        size: int,
        mtime_ns: int,
        name: str,
        *,
        storage: str = "",
        close: Callable[[int], None] = os.close,
    ) -> None:
        self._lock = threading.Lock()
        self._holders = 1
        self._close = close
        self.descriptor = descriptor
        self.size = size
        self.mtime_ns = mtime_ns
        self.name = name
        self.storage = storage

    def __repr__(self) -> str:
        return f"<SharedFile {self.name!r} {self.size} bytes, {self._holders} holders>"

    def hold(self) -> Self:
        """Keep it open until one more `release`. The caller holds it already, or knows who does."""
        with self._lock:
            if not self._holders:
                raise ValueError(f"{self!r} is closed")
            self._holders += 1
        return self

    def holds(self) -> bool:
        """Keep it open until one more `release`, as `hold` does; return False if it is closed."""
        with self._lock:
            if self._holders:
                self._holders += 1
            return self._holders > 0

    def release(self) -> None:
        """Let go of it, and close the descriptor if nobody else holds it."""
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self._close(self.descriptor)

    def __del__(self) -> None:
        if self._holders > 0:
            self._holders = 0
            with contextlib.suppress(OSError):
                self._close(self.descriptor)

    def check(self) -> None:
        """Raise FileFailedError if it is not what it was when it was opened. May block."""
        try:
            status = os.fstat(self.descriptor)
        except OSError as error:
            raise FileFailedError(FILE_UNREADABLE, f"{self.name} cannot be read: {error.strerror}") from error
        if status.st_size < self.size:
            raise FileFailedError(FILE_CHANGED, f"{self.name} was truncated while it was sent")
        if status.st_size != self.size or status.st_mtime_ns != self.mtime_ns:
            raise FileFailedError(FILE_CHANGED, f"{self.name} was changed while it was sent")

    def read(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from `start` on, at least one. May block. Raises FileFailedError."""
        try:
            data = os.pread(self.descriptor, count, start)
        except OSError as error:
            raise FileFailedError(FILE_UNREADABLE, f"{self.name} cannot be read: {error.strerror}") from error
        # Afterwards, so that nothing leaves that was written over before it was read.
        self.check()
        if not data:
            raise FileFailedError(FILE_CHANGED, f"{self.name} was truncated while it was sent")
        return data


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes from `start` to before `end` of a file. It does not hold the file."""

    file: SharedFile
    start: int
    end: int

    @property
    def length(self) -> int:  # not `len`, which a 32-bit machine has only up to 2 GiB
        return self.end - self.start


class DateClock:
    """The `Date` header field's value (RFC 9110 6.6.1), formatted once a second.

    Called from any thread. Two threads may format the same second at once; both come to the same text, and the pair
    is replaced in one assignment, so that no reader sees half of it.
    """

    __slots__ = ("_current",)

    def __init__(self) -> None:
        self._current = (0, "")

    def text(self) -> str:
        second = int(time.time())
        current = self._current
        if current[0] != second:
            current = self._current = (second, formatdate(second, usegmt=True))
        return current[1]
