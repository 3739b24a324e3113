"""What a client says first: what is read of it, what is refused, and that it takes no longer than it is long."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hardserve.tls.hello import BadHelloError, ClientHello, HelloReader, parse
from tests.certs import client_context

X25519, P256, FFDHE2048 = 0x1D, 0x17, 0x100
SERVER_NAME, GROUPS, SIGNATURES, ALPN, VERSIONS, KEY_SHARE = 0, 10, 13, 16, 43, 51


def vector(size: int, *parts: bytes) -> bytes:
    """Return `parts` behind their length of `size` bytes."""
    data = b"".join(parts)
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, *parts: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, *parts)


def server_name(name: bytes, kind: int = 0) -> bytes:
    return extension(SERVER_NAME, vector(2, bytes([kind]), vector(2, name)))


def alpn(*protocols: bytes) -> bytes:
    return extension(ALPN, vector(2, *(vector(1, each) for each in protocols)))


def groups(*numbers: int) -> bytes:
    return extension(GROUPS, vector(2, *(each.to_bytes(2, "big") for each in numbers)))


def key_shares(*shares: tuple[int, bytes]) -> bytes:
    return extension(KEY_SHARE, vector(2, *(group.to_bytes(2, "big") + vector(2, key) for group, key in shares)))


# What TLS 1.3 cannot do without, but groups and shares.
TLS_1_3 = (
    extension(VERSIONS, vector(1, b"\x03\x04")),
    extension(SIGNATURES, vector(2, b"\x04\x03\x08\x04\x05\x03")),  # ecdsa_secp256r1_sha256 and two others
)


def message(*extensions: bytes, kind: int = 1) -> bytes:
    body = b"\x03\x03" + bytes(32) + vector(1, b"s" * 32) + vector(2, b"\x13\x01\xc0\x2b") + b"\x01\0"
    if extensions:
        body += vector(2, *extensions)
    return bytes([kind]) + vector(3, body)


def records(data: bytes, size: int = 16384) -> bytes:
    return b"".join(b"\x16\x03\x01" + vector(2, data[at : at + size]) for at in range(0, len(data), size))


def hello(*extensions: bytes) -> bytes:
    """Return a ClientHello in one record."""
    return records(message(*extensions))


def said_by(context: ssl.SSLContext, name: str | None = None) -> bytes:
    """Return what OpenSSL's client says first."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


# --- what is read ---


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("name", ["a.example", "x" * 63 + ".Example", None], ids=str)
@pytest.mark.parametrize("protocols", [(), ("h2", "http/1.1"), ("acme-tls/1",)], ids=str)
def test_what_a_client_says(version: str, name: str | None, protocols: Sequence[str]) -> None:
    found = parse(said_by(client_context(version=version, alpn=protocols), name))
    assert found is not None
    assert found.server_name == (None if name is None else name.encode())
    assert found.protocols == tuple(each.encode() for each in protocols)
    assert bool(found.key_shares) == (version == "1.3")
    assert found.is_validation == (protocols == ("acme-tls/1",))


@pytest.mark.parametrize(
    ("extensions", "found"),
    [
        pytest.param((), ClientHello(), id="no extensions at all"),
        pytest.param((extension(0x7A7A),), ClientHello(), id="an extension that nobody knows"),
        pytest.param((server_name(b"a_b.example."),), ClientHello(b"a_b.example."), id="underscore, dot at the end"),
        pytest.param((server_name(b"127.0.0.1"),), ClientHello(b"127.0.0.1"), id="an address"),
        pytest.param((server_name(b"x" * 255),), ClientHello(b"x" * 255), id="the longest name"),
        pytest.param((alpn(b"a", b"b" * 255),), ClientHello(protocols=(b"a", b"b" * 255)), id="the longest protocol"),
        pytest.param((key_shares(),), ClientHello(), id="no shares, to be told of a group"),
        pytest.param(
            (key_shares((X25519, b"x" * 32), (FFDHE2048, b"y" * 256)), groups(P256)),
            ClientHello(key_shares=(X25519, FFDHE2048)),
            id="two shares, and others offered",
        ),
    ],
)
def test_what_is_found(extensions: tuple[bytes, ...], found: ClientHello) -> None:
    assert parse(hello(*extensions)) == found


@pytest.mark.parametrize(
    ("protocols", "expected"),
    [
        ((b"acme-tls/1",), True),
        ((b"acme-tls/1", b"http/1.1"), False),
        ((b"acme-tls/1", b"acme-tls/1"), False),
        ((b"acme-tls/10",), False),
        ((b"http/1.1",), False),
    ],
)
def test_a_ca_offers_its_protocol_alone(protocols: tuple[bytes, ...], expected: bool) -> None:
    found = parse(hello(alpn(*protocols)))
    assert found is not None
    assert found.is_validation == expected


# --- what is refused ---

DECODE_ERROR, UNEXPECTED_MESSAGE, RECORD_OVERFLOW, UNRECOGNIZED_NAME = 50, 10, 22, 112


@pytest.mark.parametrize(
    "extension",
    [
        pytest.param(server_name(b""), id="empty"),
        pytest.param(server_name(b"x" * 256), id="too long"),
        pytest.param(server_name("bücher.example".encode()), id="UTF-8"),
        pytest.param(server_name(b"b\xfccher.example"), id="Latin-1"),
        pytest.param(server_name(b"a\0.example"), id="NUL"),
        pytest.param(server_name(b"a example"), id="a space"),
        pytest.param(server_name(b"a\r\nb"), id="a line end"),
        pytest.param(server_name(b"a\x7f"), id="a control character"),
        pytest.param(server_name(b"a.example", kind=1), id="no host name"),
    ],
)
def test_a_bad_server_name_is_refused(extension: bytes) -> None:
    with pytest.raises(BadHelloError) as raised:
        parse(hello(extension))
    assert (raised.value.reason, raised.value.alert) == ("bad server name", UNRECOGNIZED_NAME)


@pytest.mark.parametrize(
    ("data", "reason", "alert"),
    [
        pytest.param(b"GET / HTTP/1.1", "unexpected message", UNEXPECTED_MESSAGE, id="no handshake"),
        pytest.param(b"\x16\x03\x01\x40\x01", "record too long", RECORD_OVERFLOW, id="a record that is too long"),
        pytest.param(records(message(kind=2)), "unexpected message", UNEXPECTED_MESSAGE, id="another message"),
        pytest.param(records(message() + b"\x10"), "unexpected message", UNEXPECTED_MESSAGE, id="more in the record"),
        pytest.param(
            records(message(), 20) + b"\x15\x03\x03\0\x02\x01\0", None, 0, id="more in another record is not looked at"
        ),
        pytest.param(
            records(message(), 20)[:25] + b"\x15\x03\x03\0\x02\x01\0",
            "unexpected message",
            UNEXPECTED_MESSAGE,
            id="an alert in between",
        ),
        pytest.param(records(b"\x01\0\0\0"), "malformed hello", DECODE_ERROR, id="nothing in it"),
        pytest.param(records(b"\x01" + vector(3, message()[4:-1])), "malformed hello", DECODE_ERROR, id="cut short"),
        pytest.param(
            records(b"\x01" + vector(3, message(server_name(b"a"))[4:], b"x")), "malformed hello", DECODE_ERROR,
            id="more behind the extensions",
        ),
        pytest.param(hello(b"\0\x10\0"), "malformed hello", DECODE_ERROR, id="half an extension"),
        pytest.param(hello(alpn(b"a"), alpn(b"a")), "malformed hello", DECODE_ERROR, id="an extension twice"),
        pytest.param(hello(extension(0x7A7A), extension(0x7A7A)), "malformed hello", DECODE_ERROR, id="unknown twice"),
        pytest.param(hello(extension(SERVER_NAME)), "malformed hello", DECODE_ERROR, id="a name that is not there"),
        pytest.param(
            hello(extension(SERVER_NAME, vector(2, b"\0", vector(2, b"a"), b"\0", vector(2, b"b")))),
            "malformed hello",
            DECODE_ERROR,
            id="two names",
        ),
        pytest.param(hello(extension(ALPN, b"\0\x04\x01a")), "malformed hello", DECODE_ERROR, id="short protocols"),
        pytest.param(hello(extension(KEY_SHARE, b"\0\x05\0\x1d\0\x09x")), "malformed hello", DECODE_ERROR, id="share"),
    ],
)  # fmt: skip
def test_what_is_no_hello_is_refused(data: bytes, reason: str | None, alert: int) -> None:
    if reason is None:
        assert parse(data) == ClientHello()
        return
    with pytest.raises(BadHelloError) as raised:
        parse(data)
    assert (raised.value.reason, raised.value.alert) == (reason, alert)


# --- however it comes ---

WHOLE = message(server_name(b"a.example"), alpn(b"acme-tls/1"), key_shares((X25519, b"x" * 32)))
FOUND = ClientHello(b"a.example", (b"acme-tls/1",), (X25519,))


@pytest.mark.parametrize("size", [1, 3, 4, 100, 16384])
def test_in_records_of_any_size_and_one_byte_after_the_other(size: int) -> None:
    data = records(WHOLE, size)
    reader = HelloReader()
    for length in range(len(data)):
        assert reader.read(data[:length]) is None
        assert parse(data[:length]) is None
    assert reader.read(data + b"more") == FOUND
    assert reader.end == len(data)


class Counted(bytearray):
    """Counts the bytes that are taken out of it."""

    taken = 0

    def __getitem__(self, at: slice | int) -> int | bytearray:  # type: ignore[override]
        found = super().__getitem__(at)
        self.taken += len(found) if isinstance(found, bytearray) else 1
        return found


def test_reading_costs_as_much_as_the_bytes_are() -> None:
    filler = b"".join(extension(0x1000 + number, bytes(8)) for number in range(200))
    data = records(message(server_name(b"a.example"), filler), 1)
    grown, reader = Counted(), HelloReader()
    for at in range(0, len(data), 6):
        grown += data[at : at + 6]
        found = reader.read(grown)
    assert found == ClientHello(b"a.example")
    assert grown.taken <= 4 * len(data)


@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param(b"".join(extension(0x1000 + number) for number in range(257)), id="extensions"),
        pytest.param(extension(16, vector(2, b"\x01h" * 257)), id="protocols"),
        pytest.param(extension(51, vector(2, b"\0\x1d\0\x01x" * 257)), id="shares"),
        pytest.param(extension(21, bytes(16384)), id="bytes"),
    ],
)
def test_more_than_any_client_sends_is_refused_and_nothing_of_it_is_looked_at(extensions: bytes) -> None:
    with pytest.raises(BadHelloError, match="hello too large"):
        parse(records(message(extensions)))


@given(st.binary(max_size=300))
@example(b"\x16\x03\x01\0\0" * 3)
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for start in (b"", b"\x16\x03\x01", b"\x16\x03\x01" + vector(2, data), records(b"\x01" + vector(3, data))):
        with contextlib.suppress(BadHelloError):
            parse(start + data)


@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255), cut=st.integers(0, 50))
def test_a_damaged_hello_is_read_or_refused(at: int, byte: int, cut: int) -> None:
    data = WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 + cut :]
    with contextlib.suppress(BadHelloError):
        found = parse(records(data))
        assert found is None or isinstance(found, ClientHello)


@given(
    name=st.none() | st.binary(min_size=1, max_size=255).map(lambda data: bytes(0x21 + byte % 94 for byte in data)),
    protocols=st.lists(st.binary(min_size=1, max_size=20), max_size=5),
    shares=st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=5),
    size=st.integers(1, 16384),
)
def test_what_is_written_is_read(
    name: bytes | None, protocols: list[bytes], shares: list[tuple[int, bytes]], size: int
) -> None:
    extensions = [*([] if name is None else [server_name(name)]), alpn(*protocols), key_shares(*shares)]
    found = parse(records(message(*extensions), size))
    assert found == ClientHello(name, tuple(protocols), tuple(group for group, _ in shares))
