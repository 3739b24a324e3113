"""A file that log lines are appended to: opened, reopened, rotated, and picked up again after trouble.

Used by one thread at a time; a `LogWriter`'s, once it is open. A disk that stalls stalls that thread. What could not
be written stays pending to the byte, so that a full disk cuts no line. Threads, queues and what a line looks like are
not known here.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import select
import stat
import sys
from collections.abc import Mapping

STREAMS = {"stdout": 1, "stderr": 2}

# Non-blocking only matters for a named pipe: opening one that nobody reads then fails at once instead of hanging.
_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MODE = 0o640

# How long a full pipe or terminal in non-blocking mode is waited for before it counts as trouble.
_WRITABLE_TIMEOUT_MS = 1000

_NEWLINE = 0x0A


class Destination(enum.Enum):
    """What is at the other end of a descriptor, as far as the look of a line depends on it."""

    PLAIN = "plain"
    TERMINAL = "terminal"
    COLOUR_TERMINAL = "colour terminal"
    JOURNAL = "journal"


def destination(fd: int, environ: Mapping[str, str]) -> Destination:
    """Tell what `fd` leads to. NO_COLOR (no-color.org) and TERM=dumb turn colour off; JOURNAL_STREAM is systemd's."""
    with contextlib.suppress(OSError):
        if os.isatty(fd):
            dull = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
            return Destination.TERMINAL if dull else Destination.COLOUR_TERMINAL
        # Inherited by every child of a unit, also by one whose output was redirected: only the numbers tell.
        status = os.fstat(fd)
        if environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
            return Destination.JOURNAL
    return Destination.PLAIN


class LogFile:
    """Appends whole lines to `target`: "stdout", "stderr" or a path.

    Used by one thread at a time. With `max_bytes`, a path is rotated to path.1 … path.`backups` before a line would
    take it over that size; only a line that is longer by itself exceeds it. A path that was deleted is created again.
    """

    def __init__(self, target: str, *, max_bytes: int = 0, backups: int = 3) -> None:
        self.target = target
        # Absolute now, so that an app that changes directory does not move the log at the next SIGHUP.
        self._path = None if target in STREAMS else os.path.abspath(target)
        self._max_bytes = max_bytes
        self._backups = backups
        self._fd = -1
        self._identity = (0, 0)
        self._regular = False
        self._data = b""
        self._start = 0

    def __repr__(self) -> str:
        return f"<LogFile {self.target} fd={self._fd} pending={len(self._data) - self._start}>"

    @property
    def fd(self) -> int:
        """The open descriptor, or -1."""
        return self._fd

    @property
    def pending_lines(self) -> int:
        """Lines taken but not, or not entirely, in the file."""
        return self._data.count(b"\n", self._start)

    def open(self) -> None:
        """Open the target, or open it again. Raises OSError; then the former descriptor stays in use."""
        if self._path is None:
            if self._fd < 0:
                self._fd = _duplicate(self.target)
            return
        fd = os.open(self._path, _OPEN_FLAGS, _MODE)
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if self._fd >= 0:
            if identity != self._identity:
                # The other file holds the beginning of a line at most: this one gets it whole.
                self._start = self._data.rfind(b"\n", 0, self._start) + 1
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = fd
        self._identity = identity
        self._regular = stat.S_ISREG(status.st_mode)

    def close(self) -> None:
        """Close the descriptor. Can be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def write(self, lines: bytes) -> None:
        """Write `lines`, each ending with a newline. Nothing may be pending; raises as `flush` does."""
        self._data, self._start = lines, 0
        self.flush()

    def flush(self) -> None:
        """Write what is pending. Raises OSError; then what could not be written stays pending, to the byte."""
        view = memoryview(self._data)
        while self._start < len(view):
            end = self._end_in_this_file() if self._regular else len(view)
            try:
                self._start += os.write(self._fd, view[self._start : end])
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                if not poll.poll(_WRITABLE_TIMEOUT_MS):
                    raise
        self._data, self._start = b"", 0

    def _end_in_this_file(self) -> int:
        """Return how far the pending bytes may be written before the next rotation, having rotated if need be."""
        status = os.fstat(self._fd)
        if status.st_nlink == 0:
            self.open()
            status = os.fstat(self._fd)
        if not self._max_bytes:
            return len(self._data)
        line_end = self._data.index(b"\n", self._start) + 1
        if self._start > 0 and self._data[self._start - 1] != _NEWLINE:
            return line_end
        room = self._max_bytes - status.st_size
        if line_end - self._start > room and status.st_size > 0:
            self._rotate()
            return self._end_in_this_file()
        return max(line_end, self._data.rfind(b"\n", self._start, self._start + max(room, 0)) + 1)

    def _rotate(self) -> None:
        assert self._path is not None
        # A link's file is what rotates, not the link.
        path = os.path.realpath(self._path)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            # Somebody else may have rotated it (logrotate before its SIGHUP, another process): theirs will do.
            if (status.st_dev, status.st_ino) == self._identity:
                names = [path, *(f"{path}.{number}" for number in range(1, self._backups + 1))]
                for newer, older in reversed(list(itertools.pairwise(names))):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(newer, older)
        self.open()


def _duplicate(stream: str) -> int:
    """Return a descriptor of our own for a standard stream.

    Its number may change hands: once the app has closed descriptor 1, the next connection accepted gets it, and a
    client would be sent the log. A stream that was closed when Python started is None there.
    """
    if (sys.__stdout__ if stream == "stdout" else sys.__stderr__) is None:
        raise OSError(errno.EBADF, "it is closed")
    return os.dup(STREAMS[stream])
