"""The answers that prove to a CA that a name is ours, while it asks for them.

Written by the ACME thread, read by the I/O thread: both tables are replaced as a whole and never changed, so that
reading needs no lock. They are empty nearly always, and as long as the names of one certificate otherwise. Nothing here
knows the protocol: tokens, key authorizations and contexts come from whoever talks to the CA.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

HTTP_PREFIX = "/.well-known/acme-challenge/"
ACME_TLS_PROTOCOL = b"acme-tls/1"


class Challenges:
    """What the server answers for HTTP-01 (RFC 8555 8.3) and TLS-ALPN-01 (RFC 8737)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # between writers
        self._bodies: dict[str, bytes] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}

    def __repr__(self) -> str:
        return f"<Challenges {len(self._bodies)} over HTTP, {len(self._contexts)} over TLS>"

    # The server's half: I/O thread, a look-up each.

    def answer(self, path: str) -> bytes | None:
        """Return the body for a request's path, None if no CA has been told to ask for it.

        It goes out with status 200 as application/octet-stream, whatever the Host, and before any redirect.
        """
        if not self._bodies or not path.startswith(HTTP_PREFIX):
            return None
        return self._bodies.get(path[len(HTTP_PREFIX) :])

    def context_for_challenge(self, server_name: str | None) -> ssl.SSLContext | None:
        """Return what a handshake for `server_name` is answered with if it offers "acme-tls/1" alone (`is_validation`).

        Everybody else who asks for that name meanwhile must get its ordinary context.
        """
        if not self._contexts or not server_name:
            return None
        return self._contexts.get(server_name.lower())

    @property
    def expects_handshakes(self) -> bool:
        """Whether a CA may connect for TLS-ALPN-01 just now, so that it is worth looking into a ClientHello."""
        return bool(self._contexts)

    # The ACME thread's half.

    def expect_request(self, token: str, key_authorization: str) -> None:
        with self._lock:
            self._bodies = {**self._bodies, token: key_authorization.encode("ascii")}

    def expect_handshake(self, name: str, context: ssl.SSLContext) -> None:
        with self._lock:
            self._contexts = {**self._contexts, name.lower(): context}

    def forget(self) -> None:
        """Answer no more. One certificate is ordered at a time: all there is belongs to it."""
        with self._lock:
            self._bodies, self._contexts = {}, {}


def is_validation(hello: bytes) -> bool:
    """Return whether the ClientHello that `hello` begins with offers "acme-tls/1" and nothing else (RFC 8737 4).

    `hello` is what a client has sent so far, as `MSG_PEEK` shows it. Also False while it is incomplete, and for
    anything that is not a ClientHello.
    """
    try:
        return _protocols(hello) == [ACME_TLS_PROTOCOL]
    except IndexError:
        return False


def _protocols(data: bytes) -> list[bytes]:
    """Return the protocols of the ALPN extension (RFC 7301 3.1). Raises IndexError if `data` ends too early."""
    hello = _Reader(_handshake(data))
    if hello.number(1) != 1:  # client_hello
        raise IndexError
    hello = _Reader(hello.vector(3))
    hello.take(2 + 32)  # legacy_version, random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = _Reader(hello.vector(2))
    while extensions.left:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == 16:
            names = _Reader(_Reader(body).vector(2))
            found = []
            while names.left:
                found.append(names.vector(1))
            return found
    return []


def _handshake(data: bytes) -> bytes:
    """Return what the handshake records at the start of `data` hold together (RFC 8446 5.1), the last cut short."""
    held = bytearray()
    while data[:1] == b"\x16" and len(data) > 5:
        length = int.from_bytes(data[3:5], "big")
        held += data[5 : 5 + length]
        data = data[5 + length :]
    return bytes(held)


class _Reader:
    """Takes numbers and vectors off the front of some bytes; IndexError where they end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise IndexError
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Return what follows a length of `size` bytes."""
        return self.take(self.number(size))
