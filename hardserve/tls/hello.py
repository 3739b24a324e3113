"""The ClientHello: what a client says first, before anything is encrypted (RFC 8446 4.1.2). Pure; any thread.

The only place where one is taken apart. OpenSSL takes it apart again, and gets no byte of one that was refused here:
whoever decides by what is found here must not decide by something else than what OpenSSL will find. So what cannot be
read, or is there twice, is refused. What is not looked at (versions, cipher suites, signatures) is OpenSSL's to refuse.

Messages may be cut into records at any byte (5.1), down to one byte in each, and records into segments likewise. A
HelloReader goes on where it has stopped, so that reading costs as much as the bytes are, however they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

RECORD_HEADER_BYTES = 5
RECORD_BYTES = 16384  # the most in one record of plaintext (5.1)
HANDSHAKE = 0x16  # content type (5.1)
_CLIENT_HELLO = 1  # handshake type (4)
_SERVER_NAME, _ALPN, _KEY_SHARE = 0, 16, 51  # extensions (4.2)
_HOST_NAME = 0  # the only type of name (RFC 6066 3)
# What OpenSSL takes. A host name is shorter, and no other kind of name has ever come to be.
MAX_NAME_BYTES = 255
# All of one. The largest that clients send, with keys that withstand quantum computers, have two or three KiB.
MAX_HELLO_BYTES = 16384
# Extensions, protocols, and shares; clients send a dozen or two of the first and a few of the others.
MAX_ITEMS = 256
# More than letters, digits, hyphens and dots: there are names with underscores, and clients that send an address,
# although they must not. None of them harms. What is no ASCII must have been converted (RFC 6066 3, RFC 5890 2.3.2.1),
# and Python prints a traceback if it is told of it.
_IN_NAMES = frozenset(range(0x21, 0x7F))
ACME_TLS_PROTOCOL = b"acme-tls/1"

# Alerts (6.2).
_UNEXPECTED_MESSAGE, _RECORD_OVERFLOW, _ILLEGAL_PARAMETER, _DECODE_ERROR, _UNRECOGNIZED_NAME = 10, 22, 47, 50, 112


class BadHelloError(Exception):
    """What is to be refused: with the fatal alert of this number, and a few words for the log, never the peer's."""

    def __init__(self, reason: str, alert: int = _DECODE_ERROR) -> None:
        super().__init__(reason)
        self.reason = reason
        self.alert = alert


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What there is to know before the first answer."""

    server_name: bytes | None = None  # as it was sent: visible ASCII, of any case
    protocols: tuple[bytes, ...] = ()  # ALPN (RFC 7301), in the client's order
    key_shares: tuple[int, ...] = ()  # the groups that a share was sent for (RFC 8446 4.2.8)

    @property
    def is_validation(self) -> bool:
        """Whether a CA looks here that a name is ours: it offers "acme-tls/1" and nothing else (RFC 8737 4)."""
        return self.protocols == (ACME_TLS_PROTOCOL,)


def parse(data: bytes) -> ClientHello | None:
    """Return the ClientHello that a connection begins with, None while it is not all here.

    Raises BadHelloError for one that is malformed, and for whatever else it begins with.
    """
    return HelloReader().read(data)


class HelloReader:
    """Reads the ClientHello at the front of something that grows."""

    __slots__ = ("_message", "end")

    def __init__(self) -> None:
        self._message = bytearray()
        self.end = 0  # of the records that have been read, in bytes from the front

    def __repr__(self) -> str:
        return f"<HelloReader {len(self._message)} bytes of {self.end}>"

    def read(self, data: bytes | bytearray) -> ClientHello | None:
        """As `parse`. `data` begins with what it was the last time; `end` is then where the ClientHello has ended."""
        message = self._message
        while len(data) >= self.end + RECORD_HEADER_BYTES:
            start = self.end + RECORD_HEADER_BYTES
            size = int.from_bytes(data[start - 2 : start], "big")
            if data[self.end] != HANDSHAKE:
                raise BadHelloError("unexpected message", _UNEXPECTED_MESSAGE)
            if size > RECORD_BYTES:
                raise BadHelloError("record too long", _RECORD_OVERFLOW)
            if len(data) < start + size:
                return None
            message += data[start : start + size]
            self.end = start + size
            if message and message[0] != _CLIENT_HELLO:
                raise BadHelloError("unexpected message", _UNEXPECTED_MESSAGE)
            whole = 4 + int.from_bytes(message[1:4], "big")
            if whole > MAX_HELLO_BYTES:
                raise BadHelloError("hello too large", _ILLEGAL_PARAMETER)
            if len(message) >= max(4, whole):
                # Nothing can follow in the same record: what the client says next depends on the answer, and would
                # reach OpenSSL unread.
                if len(message) > whole:
                    raise BadHelloError("unexpected message", _UNEXPECTED_MESSAGE)
                return _hello(_Reader(bytes(message[4:])))
        return None


def _hello(body: _Reader) -> ClientHello:
    body.take(2 + 32)  # legacy_version, random
    body.vector(1)  # session id
    body.vector(2)  # cipher suites
    body.vector(1)  # compression methods
    found: dict[int, _Reader] = {}
    if body.left:  # before TLS 1.3 there may be none
        extensions = body.only_vector(2)
        while extensions.left:
            kind = extensions.number(2)
            if kind in found:  # "There MUST NOT be more than one extension of the same type" (4.2)
                raise BadHelloError("malformed hello")
            if len(found) == MAX_ITEMS:
                raise BadHelloError("hello too large", _ILLEGAL_PARAMETER)
            found[kind] = extensions.vector(2)
    name = found.get(_SERVER_NAME)
    return ClientHello(
        None if name is None else _server_name(name),
        tuple(_protocols(found[_ALPN])) if _ALPN in found else (),
        tuple(_groups(found[_KEY_SHARE])) if _KEY_SHARE in found else (),
    )


def _server_name(extension: _Reader) -> bytes:
    """Return the one name of a list that may have no other (RFC 6066 3)."""
    names = extension.only_vector(2)
    kind = names.number(1)
    name = names.only_vector(2).rest()
    if kind != _HOST_NAME or not 0 < len(name) <= MAX_NAME_BYTES or not _IN_NAMES.issuperset(name):
        raise BadHelloError("bad server name", _UNRECOGNIZED_NAME)
    return name


def _protocols(extension: _Reader) -> Iterator[bytes]:
    names = extension.only_vector(2)
    for _ in range(MAX_ITEMS):
        if not names.left:
            return
        yield names.vector(1).rest()
    raise BadHelloError("hello too large", _ILLEGAL_PARAMETER)


def _groups(extension: _Reader) -> Iterator[int]:
    shares = extension.only_vector(2)
    for _ in range(MAX_ITEMS):
        if not shares.left:
            return
        yield shares.number(2)
        shares.vector(2)
    raise BadHelloError("hello too large", _ILLEGAL_PARAMETER)


class _Reader:
    """Takes numbers and vectors off the front of some bytes; BadHelloError where they end too early."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self._data = data
        self._at = start
        self._end = len(data) if end is None else end

    @property
    def left(self) -> int:
        return self._end - self._at

    def take(self, count: int) -> int:
        """Go on behind so many bytes; return where they begin."""
        at = self._at
        if count > self._end - at:
            raise BadHelloError("malformed hello")
        self._at = at + count
        return at

    def number(self, size: int) -> int:
        at = self.take(size)
        return int.from_bytes(self._data[at : at + size], "big")

    def vector(self, size: int) -> _Reader:
        """Return what follows a length of `size` bytes. Nothing is copied, however deep they are nested."""
        length = self.number(size)
        at = self.take(length)
        return _Reader(self._data, at, at + length)

    def only_vector(self, size: int) -> _Reader:
        """As `vector`, where nothing may follow."""
        vector = self.vector(size)
        if self.left:
            raise BadHelloError("malformed hello")
        return vector

    def rest(self) -> bytes:
        return self._data[self._at : self._end]
