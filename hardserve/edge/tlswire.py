"""The encrypted side of a TLS connection: its socket, and the two memory buffers that OpenSSL works between.

What `recv` returned is put in `_incoming`, what is to leave is taken from `_outgoing`; OpenSSL never sees the socket.
Nothing is known here of what the bytes mean. What the socket does not take stays in `_unsent`, before all that follows.

I/O thread during the handshake, later whoever has the lock (edge.tls).
"""

from __future__ import annotations

import ssl

from hardserve.edge.transport import PlainTransport

# From the socket at once: half of the largest record. It bounds what stays allocated (see edge.tls).
READ_BYTES = 8192


class Wire:
    """A connected, non-blocking stream socket with buffers."""

    __slots__ = (
        "_incoming", "_outgoing", "_plain", "_receive_raw", "_send_raw", "_shut", "_shut_sent", "_socket", "_unsent",
    )  # fmt: skip

    def __init__(self, plain: PlainTransport) -> None:
        self._plain = plain
        self._socket = plain.socket
        # One call for what each request takes twice.
        self._receive_raw = plain.receive
        self._send_raw = plain.send
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._unsent: bytes | memoryview = b""  # encrypted
        self._shut = False  # nothing is to follow what is there
        self._shut_sent = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def _flush(self) -> bool:
        """Send what is encrypted; return whether all of it left."""
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    break
                self._unsent = self._outgoing.read()
            sent = self._send_raw(self._unsent)
            if sent < len(self._unsent):
                self._unsent = memoryview(self._unsent)[sent:]
                return False
            self._unsent = b""
        if self._shut and not self._shut_sent:
            self._shut_sent = True
            self._plain.shutdown_write()
        return True
