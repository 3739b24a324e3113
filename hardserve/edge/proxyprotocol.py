"""The PROXY protocol: who a connection is from, said by the proxy that made it, in bytes before the first request.

Pure; I/O thread. It is fed bytes and knows no socket. Whether the peer is one that may say so is not asked here.

Version 1 is a line of text, version 2 a binary header (doc/proxy-protocol.txt of HAProxy). Which of them comes, the
first byte tells; what cannot become either is malformed as soon as that is sure. Strict, because whatever sends this
header is a program that was configured to: one that is not exactly right is a mistake or an attack.

What a proxy says of itself (a health check: LOCAL), or cannot say (UNKNOWN, UNSPEC), leaves the peer as it is. What
version 2 has besides is then passed over unread, as the specification has it.
"""

from __future__ import annotations

import re
from typing import Final

from hardserve.edge.networks import UNIX, canonical, unpack

# Version 1: with CR and LF. Version 2: what follows its fixed part, where 216 bytes of addresses and a few hundred of
# what else a proxy knows are already much.
MAX_LINE_BYTES: Final = 107
MAX_BLOCK_BYTES: Final = 4096

_SIGNATURE_1 = b"PROXY "
_SIGNATURE_2 = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED_BYTES = 16  # signature, version and command, family and protocol, length of what follows
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + rb" " + _PORT + rb")\r\n"
)
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and command
_INET, _INET6, _UNIX = 0x1, 0x2, 0x3
_FAMILIES = frozenset({0x0, _INET, _INET6, _UNIX})
# Unspecified, stream and datagram: a client may speak HTTP/3 with the proxy.
_PROTOCOLS = frozenset({0x0, 0x1, 0x2})
# Bytes of source and destination, and of their ports.
_ADDRESS_BYTES: Final = {_INET: 2 * 4 + 2 * 2, _INET6: 2 * 16 + 2 * 2, _UNIX: 2 * 108}
_TYPE_CRC32C, _TYPE_SSL = 0x03, 0x20
_CLIENT_SSL = 0x01
_SSL_BYTES = 5  # flags and the outcome of verifying a certificate, at least


class _MalformedError(Exception):
    """The header breaks a rule."""


class ProxyHeader:
    """Reads one header. `feed` it until it is `complete` or `malformed`.

    Then `source` is the client's address (canonical text) and port, or ("unix:", 0), or None where the peer is the one
    who asks; `secure` whether the client came over TLS, as far as the proxy says so. The outcome is the same whatever
    pieces it comes in. It keeps `MAX_BLOCK_BYTES` and a few at most. I/O thread.
    """

    __slots__ = ("_held", "complete", "malformed", "secure", "source")

    def __init__(self) -> None:
        self._held = b""
        self.complete = False
        self.malformed = False
        self.source: tuple[str, int] | None = None
        self.secure = False

    def __repr__(self) -> str:
        state = "malformed" if self.malformed else f"source={self.source}" if self.complete else "awaited"
        return f"<ProxyHeader {state}, {len(self._held)} bytes held>"

    def feed(self, data: bytes) -> int:
        """Take what belongs to the header from the front of `data`; return how many bytes that was. I/O thread."""
        if self.complete or self.malformed:
            return 0
        before = len(self._held)
        held = self._held + data[: _FIXED_BYTES + MAX_BLOCK_BYTES - before]
        try:
            length = self._read(held)
        except _MalformedError:
            self._held = b""
            self.malformed = True
            return len(held) - before
        if length:
            self._held = b""
            self.complete = True
            return length - before
        self._held = held
        return len(held) - before

    def _read(self, held: bytes) -> int:
        """Return how long the header is when all of it is here, and what it says is known; else 0."""
        if held.startswith(_SIGNATURE_2[: len(held)]):
            return self._read_block(held)
        if held.startswith(_SIGNATURE_1[: len(held)]):
            return self._read_line(held)
        raise _MalformedError

    def _read_line(self, held: bytes) -> int:
        """Read version 1."""
        end = held.find(b"\n", 0, MAX_LINE_BYTES) + 1
        if not end:
            if len(held) >= MAX_LINE_BYTES:
                raise _MalformedError
            return 0
        match = _LINE.fullmatch(held, 0, end)
        if match is None:
            raise _MalformedError
        family, source, destination, source_port, destination_port = match.groups()
        if family is not None:
            address, port = _address(family, source), _port(source_port)
            # Not of use here, but a line that is wrong in one place is not right in another.
            _address(family, destination)
            _port(destination_port)
            self.source = address, port
        return end

    def _read_block(self, held: bytes) -> int:
        """Read version 2."""
        _check_fixed(held)
        if len(held) < _FIXED_BYTES:
            return 0
        length = _FIXED_BYTES + int.from_bytes(held[14:16], "big")
        if len(held) < length:
            return 0
        block = held[:length]
        family, says_who = block[13] >> 4, block[13] & 0x0F
        if block[12] == _PROXY and family and says_who:
            self.secure = _read_extras(block, _FIXED_BYTES + _ADDRESS_BYTES[family])
            self.source = _source(block, family)
        return length


# --- version 1 ---


def _address(family: bytes, text: bytes) -> str:
    if (family == b"6") != (b":" in text):
        raise _MalformedError
    try:
        return canonical(text.decode("ascii"))
    except ValueError:
        raise _MalformedError from None


def _port(text: bytes) -> int:
    port = int(text)
    if port > 65_535:
        raise _MalformedError
    return port


# --- version 2 ---


def _check_fixed(held: bytes) -> None:
    """Raise `_MalformedError` for what is wrong in as much of the fixed part as is here."""
    if len(held) <= 12:
        return
    is_proxy = held[12] == _PROXY
    if not is_proxy and held[12] != _LOCAL:
        raise _MalformedError
    if len(held) <= 13:
        return
    family, protocol = held[13] >> 4, held[13] & 0x0F
    # LOCAL: whatever it is, it is to be ignored.
    if is_proxy and (family not in _FAMILIES or protocol not in _PROTOCOLS):
        raise _MalformedError
    if len(held) < _FIXED_BYTES:
        return
    length = int.from_bytes(held[14:16], "big")
    needed = _ADDRESS_BYTES[family] if is_proxy and family and protocol else 0
    if not needed <= length <= MAX_BLOCK_BYTES:
        raise _MalformedError


def _source(block: bytes, family: int) -> tuple[str, int]:
    if family == _UNIX:
        return UNIX, 0
    size = 4 if family == _INET else 16
    port_at = _FIXED_BYTES + 2 * size
    return unpack(block[_FIXED_BYTES : _FIXED_BYTES + size]), int.from_bytes(block[port_at : port_at + 2], "big")


def _read_extras(block: bytes, start: int) -> bool:
    """Verify the checksum that may follow the addresses; return whether the client came over TLS."""
    checksum_at = 0
    secure: bool | None = None
    while start < len(block):
        value = start + 3
        end = value + int.from_bytes(block[start + 1 : value], "big")
        if end > len(block):
            raise _MalformedError
        if block[start] == _TYPE_CRC32C:
            if end - value != 4 or checksum_at:
                raise _MalformedError
            checksum_at = value
        elif block[start] == _TYPE_SSL:
            if end - value < _SSL_BYTES or secure is not None:
                raise _MalformedError
            secure = bool(block[value] & _CLIENT_SSL)
        start = end
    if checksum_at:
        rest = checksum_at + 4
        expected = int.from_bytes(block[checksum_at:rest], "big")
        if _crc32c(block[:checksum_at] + bytes(4) + block[rest:]) != expected:
            raise _MalformedError
    return bool(secure)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return tuple(table)


_CRC32C_TABLE: Final = _crc32c_table()


def _crc32c(data: bytes) -> int:
    """Return the checksum of RFC 3720 B.4 (zlib has another polynomial). 0.1 µs a byte."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
