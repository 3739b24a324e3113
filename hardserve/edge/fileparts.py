"""Files on their way out: sent by the kernel when their bytes are in its memory, else read by a file thread first.

`sendfile` costs no copy in Python and no memory of ours, but it reads what is not in the kernel's page cache, and no
flag keeps it from waiting for that. The I/O thread may not wait for a disk, or everybody does: with four downloads from
one that takes 50 ms for a read, everybody else waited 200 ms for each answer, in the median.

So it asks first. `preadv2` with RWF_NOWAIT gives a byte that is in memory and else fails at once, at the cost of a
microsecond; asked for one byte in each stretch that the kernel reads ahead, and for the last, it tells for a whole
slice. (A kernel that is asked so for what it does not have may begin to read it, which is even better.) What is not in
memory is read by a file thread, in pieces, and leaves as bytes, counted like all other unsent bytes: the median above
is 0.1 ms then, and the downloads are four times as fast, for the disk reads for all of them at once. File systems that
cannot tell, those over a network or in user space and tmpfs among them, always have their files read so. The pieces
are as large as the socket has shown that it takes, so that a crowd of slow readers does not keep a crowd of large
pieces.

Between the question and `sendfile` the kernel may throw out what it had. That takes a machine that is short of memory
within those microseconds, and costs one wait.

A response says how long it is before the first byte leaves, and a strong validator (RFC 9110 8.8.1) says which bytes.
So a file that turns out shorter, or that was written to since it was opened, must not end like a whole one: whoever
sends it is told by FileFailedError, and resets the connection. One that was replaced or removed by name is still there
through its descriptor, and is sent to its end. One thing cannot be seen: a write that is under way when the file is
opened, for the time of a file moves when a write begins.

Everything here is called by whoever holds the connection's lock; what asks the kernel, on the I/O thread only.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from hardserve.protocol import FileFailedError, FilePart
from hardserve.refusals import FILE_CHANGED, FILE_UNREADABLE

# As far as Linux reads ahead, unless it was told otherwise.
PROBED_BYTES = 131072
# The end of a file is taken into memory before it is looked at for the last time.
TAIL_BYTES = 4096
READ_MIN_BYTES = 16384
READ_MAX_BYTES = 262144

# What `sendfile` says of the file, not of the socket. The latter three: not in this way.
_FILE_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_NOT_THIS_WAY = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class _Vector(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


class PageCache:
    """What of a file is in the kernel's memory. One for each I/O thread, because it holds a buffer.

    The interpreter lock is kept, as in transport.HeldCalls: none of this ever waits. `flag` is 0 where there is none.
    """

    __slots__ = ("_address", "_buffer", "_flag", "_preadv2", "_vector")

    def __init__(self, flag: int = getattr(os, "RWF_NOWAIT", 0)) -> None:
        library = ctypes.PyDLL(None)
        # glibc's takes 64-bit offsets by this name, also on 32-bit machines; musl's always does.
        self._preadv2 = getattr(library, "preadv64v2", None) or getattr(library, "preadv2", None)
        self._flag = flag
        self._buffer = ctypes.create_string_buffer(1)
        self._vector = _Vector(ctypes.addressof(self._buffer), 1)
        self._address = ctypes.addressof(self._vector)
        if self._preadv2 is not None:
            self._preadv2.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int)
            self._preadv2.restype = ctypes.c_ssize_t

    def holds(self, descriptor: int, start: int, count: int) -> int:
        """Return how many of `count` bytes from `start` on can be had without waiting, as far as can be told.

        Bytes past the end of the file are had without waiting, too: there is nothing to wait for.
        """
        read, address, flag = self._preadv2, self._address, self._flag
        if read is None or not flag:
            return 0
        end = start + count
        for at in range(start, end, PROBED_BYTES):
            if read(descriptor, address, 1, at, flag) < 0:
                return at - start
        if read(descriptor, address, 1, end - 1, flag) < 0:
            return (count - 1) // PROBED_BYTES * PROBED_BYTES
        return count


class OutgoingFile:
    """What is still to be sent of a part of a file, which it holds until `release`.

    `data` is what a file thread has read from `start` on and the socket has not taken yet.
    """

    __slots__ = ("_begun", "_cache", "_failure", "_fresh", "_read_bytes", "_unsendable", "data", "end", "file", "start")

    def __init__(self, part: FilePart, cache: PageCache) -> None:
        self._cache = cache
        self.file = part.file.hold()
        self.start = part.start
        self.end = part.end
        self.data: memoryview | None = None
        self._begun = False
        self._fresh = False  # the socket has not been offered `data`
        self._failure: FileFailedError | None = None
        self._unsendable = False  # by `sendfile`
        self._read_bytes = READ_MIN_BYTES * 4

    def __repr__(self) -> str:
        return f"<OutgoingFile {self.start}-{self.end} of {self.file!r}>"

    @property
    def length(self) -> int:
        """How much is still to be sent, `data` included."""
        return self.end - self.start

    def release(self) -> None:
        self.data = None
        self.file.release()

    def send_data(self, send: Callable[[memoryview], int]) -> int:
        """Send what was read; return how much of it left. Raises OSError."""
        assert self.data is not None
        sent = send(self.data)
        whole = sent == len(self.data)
        if self._fresh:
            self._read_bytes = min(READ_MAX_BYTES, self._read_bytes * 2) if whole else max(READ_MIN_BYTES, sent)
            self._fresh = False
        self.start += sent
        self.data = None if whole else self.data[sent:]
        return sent

    def send(self, send_file: Callable[[int, int, int], int | None], most: int) -> int | None:
        """Send up to `most` bytes; return how many left, None if some must be read by a file thread first.

        Fewer than `most` means that the socket takes no more, or that it is worth asking again when it does.

        Raises FileFailedError, and OSError when the connection is broken.
        """
        if self._failure is not None:
            raise self._failure
        count = 0 if self._unsendable else self._cache.holds(self.file.descriptor, self.start, most)
        if not count:
            return None
        # The file system has just told that it answers from memory: none of this waits either.
        if not self._begun:
            self.file.check()
            self._begun = True
        if count == self.length:
            if count <= TAIL_BYTES:
                self.data = memoryview(self.file.read(self.start, count))
                return 0
            count -= TAIL_BYTES
        return self._send_through_kernel(send_file, count)

    def _send_through_kernel(self, send_file: Callable[[int, int, int], int | None], count: int) -> int | None:
        try:
            sent = send_file(self.file.descriptor, self.start, count)
        except OSError as error:
            if error.errno in _NOT_THIS_WAY:
                self._unsendable = True
                return None
            if error.errno in _FILE_ERRORS:
                text = f"{self.file.name} cannot be read: {error.strerror}"
                raise FileFailedError(FILE_UNREADABLE, text) from error
            raise
        if sent is None:
            return 0
        if not sent:
            raise FileFailedError(FILE_CHANGED, f"{self.file.name} was truncated while it was sent")
        self.start += sent
        return sent

    def to_read(self) -> int:
        """Return how many bytes a file thread should read from `start` on."""
        return min(self._read_bytes, self.length)

    def was_read(self, result: bytes | BaseException) -> None:
        """Take what a file thread has read from `start` on, or why it could not."""
        if isinstance(result, bytes):
            self._begun = True
            self._fresh = True
            self.data = memoryview(result)
        elif isinstance(result, FileFailedError):
            self._failure = result
        else:
            self._failure = FileFailedError(FILE_UNREADABLE, f"{self.file.name} cannot be read: {result!r}")
