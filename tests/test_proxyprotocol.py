"""What a proxy says of a connection before the first request: both versions, in any pieces, and whatever else comes.

The byte strings are written by hand from HAProxy's doc/proxy-protocol.txt; what HAProxy itself sends is read, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.edge.networks import canonical
from hardserve.edge.proxyprotocol import MAX_BLOCK_BYTES, MAX_LINE_BYTES, ProxyHeader, _crc32c
from tests.conftest import PATIENCE_S

FAST = settings(deadline=None, derandomize=True)
REQUEST = b"GET / HTTP/1.1\r\n\r\n"
SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
LOCAL, PROXY = b"\x20", b"\x21"
V4 = b"\xc0\x00\x02\x01\xc0\x00\x02\x02\xdc\x04\x01\xbb"  # 192.0.2.1:56324 to 192.0.2.2:443
V6 = bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000002 dc04 01bb")
UNIX = b"/run/client.sock".ljust(108, b"\0") + b"/run/proxy.sock".ljust(108, b"\0")
LONGEST_6 = ":".join(["ffff"] * 8)
CLIENT_4, CLIENT_6 = ("192.0.2.1", 56324), ("2001:db8::1", 56324)

Outcome = tuple[bool, bool, tuple[str, int] | None, bool]


def v2(command: bytes, family: int, block: bytes) -> bytes:
    return SIGNATURE + command + bytes([family]) + struct.pack("!H", len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + struct.pack("!H", len(value)) + value


def tls(client: int, *, more: bytes = b"") -> bytes:
    return tlv(0x20, bytes([client]) + bytes(4) + more)


def outcome(header: ProxyHeader) -> Outcome:
    return header.complete, header.malformed, header.source, header.secure


def read(data: bytes) -> tuple[ProxyHeader, int]:
    header = ProxyHeader()
    return header, header.feed(data)


def fed_by(data: bytes, size: int) -> tuple[ProxyHeader, int]:
    """Feed `data` in pieces of `size` bytes as a connection does, which keeps what was not taken; return what was."""
    header, taken, ahead = ProxyHeader(), 0, b""
    for start in range(0, len(data), size):
        ahead += data[start : start + size]
        consumed = header.feed(ahead)
        assert 0 <= consumed <= len(ahead)
        taken, ahead = taken + consumed, ahead[consumed:]
        if header.complete or header.malformed:
            break
        assert not ahead, "all of an unfinished header is taken"
        assert (header.source, header.secure) == (None, False), "nothing is told before all of it is here"
    return header, taken


# --- well-formed ---

WELL_FORMED = [
    pytest.param(line, source, secure, id=what)
    for what, line, source, secure in [
        ("v1: IPv4", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", CLIENT_4, False),
        ("v1: IPv6", b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", CLIENT_6, False),
        ("v1: IPv6 in capitals and in full", b"PROXY TCP6 2001:DB8:0:0:0:0:0:1 ::2 56324 443\r\n", CLIENT_6, False),
        ("v1: IPv4 as IPv6", b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:0202 56324 443\r\n", CLIENT_4, False),
        ("v1: the smallest and the largest port", b"PROXY TCP4 192.0.2.1 0.0.0.0 0 65535\r\n", ("192.0.2.1", 0), False),
        (
            "v1: the longest address",
            f"PROXY TCP6 {LONGEST_6} {LONGEST_6} 65535 65535\r\n".encode(),
            (LONGEST_6, 65535),
            False,
        ),
        ("v1: unknown", b"PROXY UNKNOWN\r\n", None, False),
        ("v1: unknown, and what is to be ignored", b"PROXY UNKNOWN ffff::1 <any> 65536 x\r\n", None, False),
        ("v1: the longest line", b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None, False),
        ("v2: TCP over IPv4", v2(PROXY, 0x11, V4), CLIENT_4, False),
        ("v2: TCP over IPv6", v2(PROXY, 0x21, V6), CLIENT_6, False),
        ("v2: UDP over IPv4, for HTTP/3", v2(PROXY, 0x12, V4), CLIENT_4, False),
        ("v2: UDP over IPv6", v2(PROXY, 0x22, V6), CLIENT_6, False),
        (
            "v2: IPv4 as IPv6",
            v2(PROXY, 0x21, bytes(10) + b"\xff\xff" + V4[:4] + V6[16:]),
            CLIENT_4,
            False,
        ),
        ("v2: a Unix socket", v2(PROXY, 0x31, UNIX), ("unix:", 0), False),
        ("v2: a Unix socket for datagrams", v2(PROXY, 0x32, UNIX), ("unix:", 0), False),
        ("v2: LOCAL", v2(LOCAL, 0x00, b""), None, False),
        ("v2: LOCAL, with addresses that are to be ignored", v2(LOCAL, 0x11, V4), None, False),
        ("v2: LOCAL, of a family that there is not, and garbage", v2(LOCAL, 0xF7, b"\xff" * 9), None, False),
        ("v2: UNSPEC", v2(PROXY, 0x00, b""), None, False),
        ("v2: UNSPEC, and garbage", v2(PROXY, 0x00, b"\xff" * 30), None, False),
        ("v2: an address of no protocol", v2(PROXY, 0x10, V4), None, False),
        ("v2: a protocol of no address", v2(PROXY, 0x01, b""), None, False),
        ("v2: the client came over TLS", v2(PROXY, 0x11, V4 + tls(0x01)), CLIENT_4, True),
        ("v2: with a certificate", v2(PROXY, 0x21, V6 + tls(0x07, more=tlv(0x21, b"TLSv1.3"))), CLIENT_6, True),
        ("v2: the client did not", v2(PROXY, 0x11, V4 + tls(0x00)), CLIENT_4, False),
        ("v2: that bit alone counts", v2(PROXY, 0x11, V4 + tls(0xFE)), CLIENT_4, False),
        ("v2: TLS to a Unix socket", v2(PROXY, 0x31, UNIX + tls(0x01)), ("unix:", 0), True),
        ("v2: LOCAL is not secure", v2(LOCAL, 0x11, V4 + tls(0x01)), None, False),
        (
            "v2: other things that a proxy knows",
            v2(PROXY, 0x11, V4 + tlv(0x01, b"h2") + tlv(0x02, b"a.example") + tlv(0x04, b"") + tlv(0xEA, b"\0" * 300)),
            CLIENT_4,
            False,
        ),
        ("v2: as long as may be", v2(PROXY, 0x11, V4 + tlv(0x04, bytes(MAX_BLOCK_BYTES - 15))), CLIENT_4, False),
    ]
]


@pytest.mark.parametrize(("data", "source", "secure"), WELL_FORMED)
@pytest.mark.parametrize("after", [b"", REQUEST, b"\r\n" * 5000], ids=["alone", "and a request", "and much more"])
@pytest.mark.parametrize("size", [1, 7, 10**6], ids="in pieces of {}".format)
def test_well_formed(data: bytes, source: tuple[str, int] | None, secure: bool, after: bytes, size: int) -> None:
    header, taken = fed_by(data + after, size)
    assert outcome(header) == (True, False, source, secure)
    assert taken == len(data)
    assert header.feed(b"PROXY UNKNOWN\r\n") == 0, "there is one header"
    assert outcome(header) == (True, False, source, secure)


@pytest.mark.parametrize(("data", "source", "secure"), WELL_FORMED)
def test_all_but_the_last_byte_is_not_complete(data: bytes, source: object, secure: bool) -> None:
    header, taken = read(data[:-1])
    assert outcome(header) == (False, False, None, False)
    assert taken == len(data) - 1


def test_nothing_is_nothing() -> None:
    header, taken = read(b"")
    assert (outcome(header), taken) == ((False, False, None, False), 0)


# --- the checksum ---


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"123456789", 0xE3069283),
        (b"", 0),
        # RFC 3720 B.4, whose bytes are in the order in which iSCSI sends them.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c(data: bytes, checksum: int) -> None:
    assert _crc32c(data) == checksum


def checked(
    addresses: bytes, before: bytes = b"", after: bytes = b"", family: int = 0x11, checksum: bytes = bytes(4)
) -> bytes:
    empty = v2(PROXY, family, addresses + before + tlv(0x03, checksum) + after)
    at = len(empty) - len(after) - len(checksum)
    return empty[:at] + struct.pack("!I", _crc32c(empty)) + empty[at + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(checked(V4), id="alone"),
        pytest.param(checked(V4, tlv(0x04, b"xyz")), id="last"),
        pytest.param(checked(V4, b"", tls(0)), id="first"),
        pytest.param(checked(V6, tls(0), tlv(0x05, b"id"), 0x21), id="between others"),
    ],
)
def test_a_checksum_is_verified(data: bytes) -> None:
    header, taken = read(data + REQUEST)
    assert (header.complete, header.malformed, taken) == (True, False, len(data))
    for at in range(16, len(data)):  # the fixed part has rules of its own
        for bit in (0x01, 0x80):
            broken = bytearray(data)
            broken[at] ^= bit
            # The type of the checksum itself makes it something else, and then nothing is verified.
            assert read(bytes(broken))[0].malformed or broken[at] not in (0x03, data[at]), at


def test_a_checksum_over_a_long_header() -> None:
    assert read(checked(V4, tlv(0xE0, b"x" * 4000)))[0].complete


# --- malformed ---

MALFORMED = [
    pytest.param(data, id=what)
    for what, data in {
        "a request": REQUEST,
        "TLS": b"\x16\x03\x01",
        "a NUL": b"\0",
        "a small letter": b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "v1: another word": b"PROXIED",
        "v1: no space": b"PROXY\r\n",
        "v1: no protocol": b"PROXY \r\n",
        "v1: another protocol": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "v1: a protocol in small letters": b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        "v1: IPv6 as TCP4": b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        "v1: IPv4 as TCP6": b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        "v1: two families": b"PROXY TCP4 192.0.2.1 2001:db8::2 1 2\r\n",
        "v1: no such source": b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        "v1: no such destination": b"PROXY TCP4 192.0.2.1 192.0.2.256 1 2\r\n",
        "v1: a leading zero in an address": b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        "v1: a zone": b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
        "v1: brackets": b"PROXY TCP6 [2001:db8::1] [2001:db8::2] 1 2\r\n",
        "v1: a port with a leading zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 080 2\r\n",
        "v1: a port of zeros": b"PROXY TCP4 192.0.2.1 192.0.2.2 00 2\r\n",
        "v1: the other port with one": b"PROXY TCP4 192.0.2.1 192.0.2.2 80 02\r\n",
        "v1: a source port too large": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
        "v1: a destination port too large": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        "v1: a negative port": b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        "v1: one port": b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        "v1: three ports": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        "v1: two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        "v1: a space at the end": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        "v1: a tab": b"PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "v1: LF alone": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        "v1: unknown with LF alone": b"PROXY UNKNOWN\n",
        "v1: two CR": b"PROXY UNKNOWN\r\r\n",
        "v1: unknown and a letter": b"PROXY UNKNOWNS\r\n",
        "v1: a NUL": b"PROXY UNKNOWN \0\r\n",
        "v1: a byte too long": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        "v1: endless": b"PROXY UNKNOWN " + b"x" * 93,
        "v2: another signature": SIGNATURE[:-1] + b"\r",
        "v2: version 1": SIGNATURE + b"\x11",
        "v2: version 3": SIGNATURE + b"\x31",
        "v2: another command": SIGNATURE + b"\x22",
        "v2: another family": SIGNATURE + PROXY + b"\x41",
        "v2: another protocol": SIGNATURE + PROXY + b"\x13",
        "v2: a byte too long": SIGNATURE + PROXY + b"\x11" + struct.pack("!H", MAX_BLOCK_BYTES + 1),
        "v2: LOCAL and much too long": SIGNATURE + LOCAL + b"\x00\xff\xff",
        "v2: IPv4 too short": SIGNATURE + PROXY + b"\x11\x00\x0b",
        "v2: IPv6 too short": SIGNATURE + PROXY + b"\x21\x00\x23",
        "v2: IPv4 as IPv6": SIGNATURE + PROXY + b"\x21\x00\x0c",
        "v2: Unix too short": SIGNATURE + PROXY + b"\x31\x00\xd7",
        "v2: half of a type and length": v2(PROXY, 0x11, V4 + b"\x04"),
        "v2: nearly all of it": v2(PROXY, 0x11, V4 + b"\x04\x00"),
        "v2: a length past the end": v2(PROXY, 0x11, V4 + b"\x04\x00\x02x"),
        "v2: the second one past the end": v2(PROXY, 0x11, V4 + tlv(0x04, b"x") + b"\x04\xff\xff"),
        "v2: TLS without all of it": v2(PROXY, 0x11, V4 + tlv(0x20, b"\x01\0\0\0")),
        "v2: a wrong checksum": v2(PROXY, 0x11, V4 + tlv(0x03, b"\0\0\0\0")),
        "v2: a short checksum": v2(PROXY, 0x11, V4 + tlv(0x03, b"\0\0\0")),
        "v2: a long checksum": v2(PROXY, 0x11, V4 + tlv(0x03, b"\0\0\0\0\0")),
        "v2: a checksum and a byte": checked(V4, checksum=bytes(5)),
        "v2: two checksums": checked(V4, b"", tlv(0x03, bytes(4))),
        "v2: TLS twice": v2(PROXY, 0x11, V4 + tls(1) + tls(1)),
        "v2: no TLS, and TLS": v2(PROXY, 0x11, V4 + tls(0) + tls(1)),
    }.items()
]


@pytest.mark.parametrize("data", MALFORMED)
@pytest.mark.parametrize("after", [b"", REQUEST], ids=["alone", "and a request"])
@pytest.mark.parametrize("size", [1, 7, 10**6], ids="in pieces of {}".format)
def test_malformed(data: bytes, after: bytes, size: int) -> None:
    header, taken = fed_by(data + after, size)
    assert outcome(header) == (False, True, None, False)
    assert taken <= len(data + after)
    assert not header._held
    assert header.feed(REQUEST) == 0, "it stays so"
    assert outcome(header) == (False, True, None, False)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n", 1, id="a first byte that is of neither"),
        pytest.param(b"\x16\x03\x01", 1, id="TLS"),
        pytest.param(b"POST / HTTP/1.1\r\n", 2, id="a method that begins as the word does"),
        pytest.param(b"PROXY/", 6, id="the first byte after it"),
        pytest.param(b"\r\n\r\n\r\n", 5, id="empty lines"),
        pytest.param(SIGNATURE + b"\x11\x11", 13, id="the version"),
        pytest.param(SIGNATURE + PROXY + b"\x50\x00\x00", 14, id="the family"),
        pytest.param(SIGNATURE + PROXY + b"\x11\x10\x01", 16, id="the length"),
        pytest.param(b"PROXY " + b"T" * 200, MAX_LINE_BYTES, id="a line that is too long"),
    ],
)
def test_it_is_malformed_as_soon_as_that_is_sure(data: bytes, length: int) -> None:
    assert outcome(read(data[: length - 1])[0]) == (False, False, None, False)
    assert outcome(read(data[:length])[0]) == (False, True, None, False)


def test_what_is_held_is_bounded_whatever_comes() -> None:
    header = ProxyHeader()
    data = v2(PROXY, 0x11, V4 + tlv(0x04, bytes(MAX_BLOCK_BYTES - 15)))[:-1]
    assert header.feed(data) == len(data)
    assert len(header._held) == len(data) < MAX_BLOCK_BYTES + 16
    assert header.feed(bytes(10**6)) == 1
    assert not header._held


def test_repr_says_what_is_known() -> None:
    header = ProxyHeader()
    assert header.feed(b"PROXY") == 5
    assert repr(header) == "<ProxyHeader awaited, 5 bytes held>"
    assert header.feed(b" TCP4 192.0.2.1 192.0.2.2 1 2\r\n") == 31
    assert repr(header) == "<ProxyHeader source=('192.0.2.1', 1), 0 bytes held>"
    assert repr(read(REQUEST)[0]) == "<ProxyHeader malformed, 0 bytes held>"


# --- anything at all ---

PORTS = st.integers(0, 65_535)
TLVS = st.lists(
    st.builds(tlv, st.integers(0, 255).filter(lambda kind: kind not in (0x03, 0x20)), st.binary(max_size=40)),
    max_size=5,
).map(b"".join)


@FAST
@given(st.ip_addresses(), PORTS, PORTS, st.binary(max_size=30), st.integers(1, 120))
def test_every_line_is_read(address: object, port: int, other: int, after: bytes, size: int) -> None:
    family = "TCP6" if ":" in str(address) else "TCP4"
    line = f"PROXY {family} {address} {address} {port} {other}\r\n".encode()
    header, taken = fed_by(line + after, size)
    assert outcome(header) == (True, False, (canonical(str(address)), port), False)
    assert taken == len(line)


@FAST
@given(st.ip_addresses(), PORTS, TLVS, st.booleans(), st.booleans(), st.binary(max_size=30), st.integers(1, 300))
def test_every_block_is_read(
    address: object, port: int, extras: bytes, secure: bool, is_checked: bool, after: bytes, size: int
) -> None:
    text = str(address)
    kind, family = (socket.AF_INET6, 0x21) if ":" in text else (socket.AF_INET, 0x11)
    addresses = 2 * socket.inet_pton(kind, text) + struct.pack("!HH", port, 1)
    extras += tls(0x01) if secure else b""
    data = checked(addresses, extras, b"", family) if is_checked else v2(PROXY, family, addresses + extras)
    header, taken = fed_by(data + after, size)
    assert outcome(header) == (True, False, (canonical(text), port), secure)
    assert taken == len(data)


BEGINNINGS = st.sampled_from(
    [
        *(b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", b"PROXY UNKNOWN", SIGNATURE, SIGNATURE + PROXY),
        *(SIGNATURE + PROXY + b"\x11\x00", SIGNATURE + PROXY + b"\x11\x00\x20" + V4, SIGNATURE + b"\x20\x00\x00"),
    ]
)


@settings(FAST, max_examples=300)
@given(BEGINNINGS, st.binary(max_size=150), st.integers(1, 40))
def test_whatever_comes_is_dealt_with_the_same_in_any_pieces(beginning: bytes, rest: bytes, size: int) -> None:
    data = beginning + rest
    whole, taken = read(data)
    pieces, taken_in_pieces = fed_by(data, size)
    assert outcome(pieces) == outcome(whole)
    assert not (whole.complete and whole.malformed)
    if not whole.malformed:
        assert taken == taken_in_pieces
    if not whole.complete:
        assert (whole.source, whole.secure) == (None, False)


@settings(FAST, max_examples=300)
@given(st.sampled_from([case.values[0] for case in WELL_FORMED]), st.data())
def test_nor_does_a_changed_byte_raise(data: bytes, draw: st.DataObject) -> None:
    assert isinstance(data, bytes)
    at = draw.draw(st.integers(0, min(len(data), 80) - 1))
    changed = data[:at] + draw.draw(st.binary(max_size=3)) + data[at + 1 :]
    whole, pieces = read(changed)[0], fed_by(changed, 5)[0]
    assert outcome(whole) == outcome(pieces)


# --- HAProxy ---

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
OPENSSL = shutil.which("openssl")


def a_peer(program: str | None, package: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test that needs `program`."""
    skip = pytest.mark.skipif(program is None, reason=f"no {package}: apt-get install {package}")
    return lambda test: pytest.mark.peer(skip(test))


@contextlib.contextmanager
def haproxy(front: socket.socket, back: socket.socket, server: str, directory: Path, bind: str = "") -> Iterator[None]:
    """Have HAProxy take connections from the listening socket `front` and pass them to `back` while the block runs."""
    assert HAPROXY is not None
    host, port = back.getsockname()[:2]
    configuration = directory / "haproxy.cfg"
    configuration.write_text(
        f"""\
global
    nbthread 1
    maxconn 20
    ssl-server-verify none
defaults
    mode tcp
    timeout connect {PATIENCE_S:g}s
    timeout client {PATIENCE_S:g}s
    timeout server {PATIENCE_S:g}s
listen test
    bind fd@{front.fileno()} {bind}
    server here {host}:{port} {server}
"""
    )
    with (
        (directory / "haproxy.txt").open("wb") as output,
        subprocess.Popen(
            [HAPROXY, "-db", "-f", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[front.fileno()],
        ) as process,
    ):
        try:
            yield
            assert process.poll() is None, (directory / "haproxy.txt").read_text()
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def listening(family: socket.AddressFamily, directory: Path) -> socket.socket:
    addresses: dict[socket.AddressFamily, object] = {
        socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0), socket.AF_UNIX: str(directory / "front.sock"),
    }  # fmt: skip
    listener = socket.socket(family)
    listener.settimeout(PATIENCE_S)
    listener.bind(addresses[family])  # type: ignore[arg-type]
    listener.listen()
    return listener


def received(back: socket.socket, after: int = len(REQUEST)) -> tuple[ProxyHeader, bytes, bytes]:
    """Return the header that the next connection begins with, its bytes, and so many `after` it."""
    accepted, _ = back.accept()
    with accepted:
        accepted.settimeout(PATIENCE_S)
        header, data, length = ProxyHeader(), b"", 0
        while not (header.complete or header.malformed):
            piece = accepted.recv(5)
            assert piece, data
            data += piece
            length += header.feed(data[length:])
        while header.complete and len(data) < length + after:
            piece = accepted.recv(4096)
            assert piece, data
            data += piece
        return header, data[:length], data[length:]


@a_peer(HAPROXY, "haproxy")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX], ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("server", "beginning"),
    [
        pytest.param("send-proxy", b"PROXY ", id="v1"),
        pytest.param("send-proxy-v2", SIGNATURE, id="v2"),
        pytest.param("send-proxy-v2 proxy-v2-options crc32c", SIGNATURE, id="v2 with a checksum"),
        pytest.param("send-proxy-v2 proxy-v2-options ssl,crc32c,authority", SIGNATURE, id="v2 with more"),
    ],
)
def test_what_a_real_haproxy_sends(family: socket.AddressFamily, server: str, beginning: bytes, tmp_path: Path) -> None:
    with (
        listening(family, tmp_path) as front,
        listening(socket.AF_INET, tmp_path) as back,
        haproxy(front, back, server, tmp_path),
        socket.socket(family) as client,
    ):
        client.settimeout(PATIENCE_S)
        client.connect(front.getsockname())
        client.sendall(REQUEST)
        header, sent, rest = received(back)
        # It has no word for a client on a Unix socket in version 1, and takes none in version 2 (as of 2.6).
        expected = None if family == socket.AF_UNIX else client.getsockname()[:2]
        assert outcome(header) == (True, False, expected, False), sent
        assert sent.startswith(beginning)
        assert (b"\x03\x00\x04" in sent) == ("crc32c" in server)
        assert rest == REQUEST


@a_peer(HAPROXY, "haproxy")
@a_peer(OPENSSL, "openssl")
def test_haproxy_says_that_its_client_came_over_tls(tmp_path: Path) -> None:
    assert OPENSSL is not None
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    context = ssl.create_default_context(cafile=str(certificate))
    server = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,crc32c,authority"
    with (
        listening(socket.AF_INET, tmp_path) as front,
        listening(socket.AF_INET, tmp_path) as back,
        haproxy(front, back, server, tmp_path, bind=f"ssl crt {both}"),
        socket.create_connection(front.getsockname(), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(REQUEST)
        header, sent, rest = received(back)
        assert outcome(header) == (True, False, client.getsockname(), True), sent
        assert rest == REQUEST
        assert b"TLSv1." in sent


@a_peer(HAPROXY, "haproxy")
@pytest.mark.parametrize("server", ["send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"])
def test_a_health_check_of_haproxy_is_from_itself(server: str, tmp_path: Path) -> None:
    with (
        listening(socket.AF_INET, tmp_path) as front,
        listening(socket.AF_INET, tmp_path) as back,
        haproxy(front, back, f"check inter 100ms {server}", tmp_path),
    ):
        header, sent, _ = received(back, 0)
        assert outcome(header) == (True, False, None, False), sent
        assert sent.startswith(SIGNATURE + LOCAL)
