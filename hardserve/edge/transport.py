"""How a connection's bytes reach the wire: the one seam between the engine and the socket.

Plain TCP and Unix sockets here; TLS is another class with the same five methods. `receive`, `shutdown_write` and
`close` are called by the I/O thread only. `send` is called by whichever thread holds the connection's lock, and so is
`close`: a descriptor is never closed, and its number never reused, while a worker is inside `send`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Protocol

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Transport(Protocol):
    """A non-blocking, bidirectional byte stream."""

    def fileno(self) -> int: ...

    def receive(self, max_bytes: int) -> bytes | None:
        """Return what has arrived, b"" when the peer will send no more, None when nothing has arrived yet.

        Raises OSError when the connection is broken.
        """

    def send(self, data: bytes) -> int:
        """Send what fits now and return how many bytes that was, 0 for none. Raises OSError when broken."""

    def shutdown_write(self) -> None:
        """Tell the peer that nothing more follows. Never raises."""

    def close(self, *, reset: bool = False) -> None:
        """Close the descriptor. With `reset`, the peer sees an error, not an orderly end. Never raises."""


class PlainTransport:
    """Bytes as they are, over a connected stream socket that is already non-blocking."""

    __slots__ = ("_socket",)

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, max_bytes: int) -> bytes | None:
        try:
            return self._socket.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, data: bytes) -> int:
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def shutdown_write(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        with contextlib.suppress(OSError):
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._socket.close()
