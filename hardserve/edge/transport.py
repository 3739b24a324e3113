"""How a connection's bytes reach the wire: the one seam between the engine and the socket.

Plain TCP and Unix sockets here; TLS is another class with the same methods. `receive`, `send_file`, `shutdown_write`
and `close` are called by the I/O thread only. `send` is called by whichever thread holds the connection's lock, and so
is `close`: a descriptor is never closed, and its number never reused, while a worker is inside `send`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import termios
from typing import Protocol

HELD_BYTES = 65536
# What the kernel takes of a response beyond what the network takes.
UNSENT_BYTES = 128 * 1024
# Plain integers: to combine or to convert the enum members costs half a microsecond a call.
_RECEIVE = int(socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_DONTWAIT) | int(getattr(socket, "MSG_NOSIGNAL", 0))  # Python ignores SIGPIPE in any case
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Transport(Protocol):
    """A non-blocking, bidirectional byte stream."""

    def fileno(self) -> int: ...

    def receive(self, max_bytes: int) -> bytes | None:
        """Return what has arrived, b"" when the peer will send no more, None when nothing has arrived yet.

        Raises OSError when the connection is broken.
        """

    def send(self, data: bytes | memoryview) -> int:
        """Send what fits now and return how many bytes that was, 0 for none. Raises OSError when broken."""

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        """Send from an open file what fits now; return how many bytes that was, 0 if the file ends at `offset`.

        None is that nothing fits now. Raises OSError when the connection is broken, or the file is: see the number.
        Waits for the file's storage, so that it is called for what needs no waiting (edge.fileparts).
        """

    def keep_unsent(self, most: int) -> None:
        """Have the kernel take so many bytes beyond what the network takes, at most. Never raises."""

    def pending(self) -> bool:
        """Return whether `receive` is worth calling before the socket is readable again. I/O thread."""

    @property
    def wants_write(self) -> bool:
        """Whether something is left over that no `send` will bring along: `flush` when the socket is writable."""

    def flush(self) -> None:
        """Send on what `wants_write` is about. I/O thread, with the connection's lock. Raises OSError."""

    def unacknowledged(self) -> int:
        """Return how many bytes were sent and have not reached the peer's kernel, 0 where that cannot be told."""

    def shutdown_write(self) -> None:
        """Tell the peer that nothing more follows. Never raises."""

    def close(self, *, reset: bool = False) -> None:
        """Close the descriptor. With `reset`, the peer sees an error, not an orderly end. Never raises."""


class HeldCalls:
    """`recv` and `send` that keep the interpreter lock. One for each I/O thread, because it holds a buffer.

    `socket.recv` and `socket.send` let go of the lock, although on a non-blocking socket they return in microseconds.
    Somebody else takes it then, and getting it back costs a sleep and a wake-up on each side: with a 50 µs app, that is
    a tenth of all requests a second (python -m tests.bench --parts hello --only hardserve,without-held-calls). Called
    through `ctypes.PyDLL` they keep it: the I/O thread reads everything that is ready, and a worker goes from one
    request to the next, without a change of threads. Larger pieces take long enough to copy that others had better run
    meanwhile.
    """

    __slots__ = ("_address", "_recv", "_send", "_view")

    def __init__(self) -> None:
        library = ctypes.PyDLL(None, use_errno=True)
        self._recv = library.recv
        self._recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._recv.restype = ctypes.c_ssize_t
        self._send = library.send
        self._send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
        self._send.restype = ctypes.c_ssize_t
        buffer = ctypes.create_string_buffer(HELD_BYTES)
        self._address = ctypes.addressof(buffer)
        self._view = memoryview(buffer).cast("B")

    def receive(self, descriptor: int, max_bytes: int) -> bytes:
        """As `socket.recv`. I/O thread."""
        count = self._recv(descriptor, self._address, min(max_bytes, HELD_BYTES), _RECEIVE)
        if count < 0:
            raise _os_error()
        return self._view[:count].tobytes()

    def send(self, descriptor: int, data: bytes) -> int:
        """As `socket.send`. Any thread."""
        count: int = self._send(descriptor, data, len(data), _SEND)
        if count < 0:
            raise _os_error()
        return count


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))  # becomes BlockingIOError, ConnectionResetError...


class PlainTransport:
    """Bytes as they are, over a connected stream socket that is already non-blocking."""

    __slots__ = ("_held", "_socket")
    wants_write = False

    def __init__(self, connected: socket.socket, held: HeldCalls) -> None:
        self._socket = connected
        self._held = held

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, max_bytes: int) -> bytes | None:
        try:
            return self._held.receive(self._socket.fileno(), max_bytes)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, data: bytes | memoryview) -> int:
        try:
            if type(data) is bytes and len(data) <= HELD_BYTES:
                return self._held.send(self._socket.fileno(), data)
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        try:
            return os.sendfile(self._socket.fileno(), descriptor, offset, count)
        except (BlockingIOError, InterruptedError):
            return None

    def keep_unsent(self, most: int) -> None:
        with contextlib.suppress(OSError, AttributeError):  # a Unix socket, or a system that has no such limit
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, most)

    def pending(self) -> bool:
        return False

    def flush(self) -> None:
        return

    @property
    def socket(self) -> socket.socket:
        """The socket, for a transport on top of this one."""
        return self._socket

    def unacknowledged(self) -> int:
        try:
            return struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]  # type: ignore[no-any-return]
        except (OSError, ValueError):  # the latter for a socket that is closed
            return 0

    def shutdown_write(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        with contextlib.suppress(OSError):
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._socket.close()
