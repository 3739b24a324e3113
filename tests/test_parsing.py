"""The parser alone, in tables: what is a request, what is not, and that neither depends on how it is delivered."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve import refusals
from hardserve.edge import parsing
from hardserve.edge.parsing import ParserRules, Request, StrictChunkedReceiver
from hardserve.refusals import Refusal
from hardserve.settings import LimitSettings

LIMITS = LimitSettings()
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def feed(pieces: list[bytes], limits: LimitSettings = LIMITS) -> tuple[Request, bytes]:
    """Feed as the connection does: what is not consumed comes first next time. Returns what is left over."""
    request = Request(ParserRules(limits), 0.0)
    ahead = b""
    for piece in pieces:
        ahead += piece
        while ahead and not request.completed:
            consumed = request.feed(ahead)
            assert 0 <= consumed <= len(ahead)
            ahead = ahead[consumed:]
    return request, ahead


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def outcome(request: Request) -> tuple[Any, ...]:
    """Everything that a caller may look at, as one value."""
    if request.refusal is not None:
        return (request.refusal.name, request.completed, request.keep_alive)
    if not request.completed:
        return ("incomplete", request.headers_finished)
    body = b"" if request.body_rcv is None else request.get_body_stream().read()
    return (
        request.command, request.path, request.query, request.request_uri, request.version, request.headers,
        request.keep_alive, request.expect_continue, request.request_id, request.proxy_netloc, body,
    )  # fmt: skip


def deliver(data: bytes, limits: LimitSettings = LIMITS) -> Request:
    """Parse `data` whole, byte by byte, and followed by a next request; all three must agree."""
    whole, rest = feed([data], limits)
    seen = outcome(whole)
    slow, slow_rest = feed(byte_by_byte(data), limits)
    assert outcome(slow) == seen, "byte by byte is read otherwise than whole"
    if whole.refusal is None and whole.completed:
        assert (rest, slow_rest) == (b"", b"")
        for start in range(1, len(data)):
            assert outcome(feed([data[:start], data[start:]], limits)[0]) == seen, f"split at {start}"
        for pieces in ([data + GET], [data, GET], byte_by_byte(data + GET)):
            request, after = feed(pieces, limits)
            assert outcome(request) == seen
            assert after == GET
    if whole.refusal is None and whole.body_rcv is not None:
        whole.get_body_stream().seek(0)
    return whole


def get(
    *lines: bytes, target: bytes = b"/", version: bytes = b"1.1", host: bool = True, method: bytes = b"GET"
) -> bytes:
    head = [method + b" " + target + b" HTTP/" + version, *([b"Host: a"] if host else []), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n"


# --- what is a request ---

ACCEPTED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "the smallest 1.1 request": (GET, {"command": "GET", "path": "/", "query": "", "version": "1.1"}),
    "1.1 lives on": (GET, {"keep_alive": True}),
    "1.0 needs no Host": (b"GET / HTTP/1.0\r\n\r\n", {"version": "1.0", "keep_alive": False}),
    "1.0 with keep-alive lives on": (get(b"Connection: Keep-Alive", version=b"1.0"), {"keep_alive": True}),
    "close ends a 1.1 connection": (get(b"Connection: close"), {"keep_alive": False}),
    "close counts among other options": (get(b"Connection: foo, CLOSE"), {"keep_alive": False}),
    "close counts in a second Connection line": (get(b"Connection: foo", b"Connection: close"), {"keep_alive": False}),
    "close beats keep-alive": (get(b"Connection: keep-alive, close", version=b"1.0"), {"keep_alive": False}),
    "enclosed is not close": (get(b"Connection: enclosed"), {"keep_alive": True}),
    "a later minor version is served as 1.1": (get(version=b"1.7"), {"version": "1.1"}),
    "an empty line before the request is skipped": (b"\r\n" + GET, {"command": "GET"}),
    "many empty lines before the request are skipped": (b"\r\n" * 9 + GET, {"command": "GET"}),
    "a query is kept as it came": (get(target=b"/a?b=%20&c=d?e"), {"path": "/a", "query": "b=%20&c=d?e"}),
    "an empty query": (get(target=b"/a?"), {"path": "/a", "query": ""}),
    "a path is percent-decoded": (get(target=b"/a%20b%2Fc"), {"path": "/a b/c", "request_uri": "/a%20b%2Fc"}),
    "UTF-8 in a path becomes latin-1, as PEP 3333 asks": (get(target=b"/caf%C3%A9"), {"path": "/caf\xc3\xa9"}),
    "UTF-8 sent raw does too": (get(target=b"/caf\xc3\xa9"), {"path": "/caf\xc3\xa9"}),
    "leading slashes are one, so no path names a host": (get(target=b"//evil/x"), {"path": "/evil/x"}),
    "encoded leading slashes are one too": (get(target=b"/%2fevil"), {"path": "/evil"}),
    "slashes inside stay": (get(target=b"/a//b"), {"path": "/a//b"}),
    "dots are the app's matter": (get(target=b"/a/../b"), {"path": "/a/../b"}),
    "an absolute target": (get(target=b"http://a/b?c"), {"path": "/b", "query": "c", "proxy_netloc": "a"}),
    "an absolute target without a path": (get(target=b"http://A"), {"path": "/", "proxy_netloc": "A"}),
    "an absolute target with only a query": (get(target=b"http://a?q"), {"path": "/", "query": "q"}),
    "an absolute https target": (get(target=b"HTTPS://a/b"), {"path": "/b"}),
    "OPTIONS for the whole server": (get(target=b"*", method=b"OPTIONS"), {"command": "OPTIONS", "request_uri": "*"}),
    "a method nobody knows": (get(method=b"M-SEARCH"), {"command": "M-SEARCH"}),
    "a header value is trimmed": (get(b"X-A: \t b \t"), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": "b"}}),
    "no space after the colon": (get(b"X-A:b"), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": "b"}}),
    "an empty value": (get(b"X-A:"), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": ""}}),
    "a value of only spaces": (get(b"X-A:   "), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": ""}}),
    "a colon in a value": (get(b"X-A: b: c"), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": "b: c"}}),
    "latin-1 in a value": (get(b"X-A: caf\xe9"), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": "caf\xe9"}}),
    "a tab inside a value": (get(b"X-A: b\tc"), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": "b\tc"}}),
    "a repeated field is joined by a comma": (
        get(b"X-A: b", b"x-a: c"), {"headers": {"HTTP_HOST": "a", "HTTP_X_A": "b, c"}}
    ),
    "cookies are joined by a semicolon": (
        get(b"Cookie: b=1", b"Cookie: c=2"), {"headers": {"HTTP_HOST": "a", "HTTP_COOKIE": "b=1; c=2"}}
    ),
    "a name with an underscore is dropped": (get(b"X_A: b", b"Content_Length: 5"), {"headers": {"HTTP_HOST": "a"}}),
    "content type and length have keys of their own": (
        get(b"Content-Type: b/c", b"Content-Length: 0"),
        {"headers": {"HTTP_HOST": "a", "CONTENT_TYPE": "b/c", "CONTENT_LENGTH": "0"}},
    ),
    "a port in Host": (get(b"Host: a.b:8080", host=False), {"command": "GET"}),
    "an IPv6 Host": (get(b"Host: [::1]:80", host=False), {"command": "GET"}),
    "an id is passed on": (get(b"X-Request-ID: 7f-a.b:c/d=@+_"), {"request_id": "7f-a.b:c/d=@+_"}),
    "an id of 128 characters is passed on": (get(b"X-Request-ID: " + b"x" * 128), {"request_id": "x" * 128}),
    "an id that is too long is not": (get(b"X-Request-ID: " + b"x" * 129), {"request_id": ""}),
    "an id with a space is not": (get(b"X-Request-ID: a b"), {"request_id": ""}),
    "an id that might be markup is not": (get(b'X-Request-ID: <a href="x">'), {"request_id": ""}),
    "an id that came twice is not": (get(b"X-Request-ID: a", b"X-Request-ID: b"), {"request_id": ""}),
    "Expect without a body expects nothing": (get(b"Expect: 100-continue"), {"expect_continue": False}),
    "Expect with a length of 0 expects nothing": (
        get(b"Expect: 100-continue", b"Content-Length: 0"), {"expect_continue": False}
    ),
    "Expect on 1.0 is ignored": (get(b"Expect: who-knows", version=b"1.0"), {"expect_continue": False}),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_is_a_request(data: bytes, expected: dict[str, Any]) -> None:
    request = deliver(data)
    assert request.refusal is None
    assert request.completed
    assert request.headers_finished
    for name, value in expected.items():
        assert getattr(request, name) == value, name


POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

BODIES: dict[str, tuple[bytes, bytes]] = {
    "a length": (POST + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "a length with zeros before it": (POST + b"Content-Length: 005\r\n\r\nhello", b"hello"),
    "a body of line ends": (POST + b"Content-Length: 8\r\n\r\n\r\n\r\n\r\n\r\n", b"\r\n" * 4),
    "a length on 1.0": (b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "one expected after 100": (POST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "one chunk": (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "no chunk but the last": (CHUNKED + b"0\r\n\r\n", b""),
    "a last chunk of many zeros": (CHUNKED + b"000\r\n\r\n", b""),
    "several chunks, sizes in both cases": (CHUNKED + b"1\r\na\r\nA\r\n0123456789\r\n0b\r\n01234567890\r\n0\r\n\r\n",
                                             b"a012345678901234567890"),
    "chunk data that looks like framing": (CHUNKED + b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n"),
    "a chunk extension": (CHUNKED + b'5;a=b;c="d e"\r\nhello\r\n0;z\r\n\r\n', b"hello"),
    "a chunk extension after a space": (CHUNKED + b"5 ;a\r\nhello\r\n0\r\n\r\n", b"hello"),
    "trailers, which are dropped": (CHUNKED + b"5\r\nhello\r\n0\r\nX-A: b\r\nY: c\r\n\r\n", b"hello"),
    "the coding in any case": (POST + b"transfer-encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n", b"a"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "body"), BODIES.values(), ids=BODIES)
def test_a_body_ends_by(data: bytes, body: bytes) -> None:
    request = deliver(data)
    assert request.refusal is None
    assert request.completed
    assert request.get_body_stream().read() == body
    assert int(request.headers["CONTENT_LENGTH"]) == len(body)
    assert "HTTP_TRANSFER_ENCODING" not in request.headers
    assert "HTTP_X_A" not in request.headers
    request.close()


# --- what is not ---

REFUSED: dict[str, tuple[bytes, Refusal]] = {
    # the request line (RFC 9112 3)
    "HTTP/0.9": (b"GET /\r\n", refusals.BAD_REQUEST_LINE),
    "no target": (b"GET HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a space in the target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a space after the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a tab for a space": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a method in lower case": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a method that is no token": (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "an endless method": (b"G" * 33 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a version in lower case": (b"GET / http/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a version of two digits": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a bare CR in the request line": (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a bare LF ending the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "a space before the request line": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", refusals.BAD_REQUEST_LINE),
    "another protocol": (b"SSH-2.0-OpenSSH_9\r\n", refusals.BAD_REQUEST_LINE),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", refusals.TLS_ON_PLAIN_PORT),
    "TLS that happens to hold an empty line": (b"\x16\x03\x01\r\n\r\n", refusals.TLS_ON_PLAIN_PORT),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", refusals.BAD_VERSION),
    "HTTP/0.9 spelt out": (get(version=b"0.9"), refusals.BAD_VERSION),
    "CONNECT": (get(target=b"a:443", method=b"CONNECT"), refusals.BAD_METHOD),
    "TRACE": (get(method=b"TRACE"), refusals.BAD_METHOD),
    # the target (RFC 9112 3.2)
    "GET for the whole server": (get(target=b"*"), refusals.BAD_TARGET),
    "a target that is no path": (get(target=b"a/b"), refusals.BAD_TARGET),
    "another scheme": (get(target=b"ftp://a/"), refusals.BAD_TARGET),
    "an absolute target without a host": (get(target=b"http:///b"), refusals.BAD_TARGET),
    "an absolute target with a user": (get(target=b"http://u:p@a/b"), refusals.BAD_TARGET),
    "an absolute target with an open bracket": (get(target=b"http://[::1/b"), refusals.BAD_TARGET),
    "a fragment": (get(target=b"/a#b"), refusals.BAD_TARGET),
    "an escape of one digit": (get(target=b"/%2"), refusals.BAD_TARGET),
    "an escape of no digits": (get(target=b"/%zz"), refusals.BAD_TARGET),
    "an escaped NUL": (get(target=b"/a%00b"), refusals.BAD_TARGET),
    # fields (RFC 9112 5)
    "no Host on 1.1": (get(host=False), refusals.BAD_HOST),
    "an empty Host": (get(b"Host:", host=False), refusals.BAD_HOST),
    "an empty Host on 1.0": (get(b"Host:", host=False, version=b"1.0"), refusals.BAD_HOST),
    "two Hosts": (get(b"Host: b"), refusals.BAD_HOST),
    "two Hosts that agree": (get(b"Host: a"), refusals.BAD_HOST),
    "a Host with a path": (get(b"Host: a/b", host=False), refusals.BAD_HOST),
    "a Host with a user": (get(b"Host: u@a", host=False), refusals.BAD_HOST),
    "a Host with a space": (get(b"Host: a b", host=False), refusals.BAD_HOST),
    "a Host with a word for a port": (get(b"Host: a:http", host=False), refusals.BAD_HOST),
    "a Host that is not the target's": (get(target=b"http://b/"), refusals.BAD_HOST),
    "a space before the colon": (get(b"X-A : b"), refusals.BAD_HEADER),
    "a folded line": (get(b"X-A: b", b" c"), refusals.BAD_HEADER),
    "a folded first line": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", refusals.BAD_HEADER),
    "a line without a colon": (get(b"X-A"), refusals.BAD_HEADER),
    "a field without a name": (get(b": b"), refusals.BAD_HEADER),
    "a name that is no token": (get(b"X(A): b"), refusals.BAD_HEADER),
    "a name that is not ASCII": (get(b"X-\xe9: b"), refusals.BAD_HEADER),
    "NUL in a value": (get(b"X-A: b\0"), refusals.BAD_HEADER),
    "a bare CR in a value": (get(b"X-A: b\rc"), refusals.BAD_HEADER),
    "a bare LF in a value": (get(b"X-A: b\nX-B: c"), refusals.BAD_HEADER),
    "DEL in a value": (get(b"X-A: \x7f"), refusals.BAD_HEADER),
    "two content types": (get(b"Content-Type: a/b", b"Content-Type: a/b"), refusals.BAD_HEADER),
    # the body's framing (RFC 9112 6)
    "two lengths": (get(b"Content-Length: 1", b"Content-Length: 2"), refusals.BAD_CONTENT_LENGTH),
    "two lengths that agree": (get(b"Content-Length: 1", b"Content-Length: 1"), refusals.BAD_CONTENT_LENGTH),
    "a list of lengths": (get(b"Content-Length: 1, 1"), refusals.BAD_CONTENT_LENGTH),
    "a negative length": (get(b"Content-Length: -1"), refusals.BAD_CONTENT_LENGTH),
    "a signed length": (get(b"Content-Length: +1"), refusals.BAD_CONTENT_LENGTH),
    "a hexadecimal length": (get(b"Content-Length: 0x1"), refusals.BAD_CONTENT_LENGTH),
    "a length with an underscore": (get(b"Content-Length: 1_0"), refusals.BAD_CONTENT_LENGTH),
    "an empty length": (get(b"Content-Length:"), refusals.BAD_CONTENT_LENGTH),
    "a length of 5,000 digits": (get(b"Content-Length: " + b"9" * 5000), refusals.BAD_CONTENT_LENGTH),
    "a length and a coding": (
        get(b"Content-Length: 1", b"Transfer-Encoding: chunked"), refusals.BAD_TRANSFER_ENCODING
    ),
    "a coding on 1.0": (get(b"Transfer-Encoding: chunked", version=b"1.0"), refusals.BAD_TRANSFER_ENCODING),
    "chunked twice": (get(b"Transfer-Encoding: chunked, chunked"), refusals.BAD_TRANSFER_ENCODING),
    "chunked in two lines": (
        get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), refusals.BAD_TRANSFER_ENCODING
    ),
    "chunked not last": (get(b"Transfer-Encoding: chunked, gzip"), refusals.BAD_TRANSFER_ENCODING),
    "a coding that merely contains it": (get(b"Transfer-Encoding: xchunked"), refusals.BAD_TRANSFER_ENCODING),
    "another coding": (get(b"Transfer-Encoding: gzip"), refusals.UNKNOWN_TRANSFER_ENCODING),
    "no coding at all": (get(b"Transfer-Encoding:"), refusals.UNKNOWN_TRANSFER_ENCODING),
    "another expectation": (get(b"Expect: 200-ok"), refusals.UNKNOWN_EXPECTATION),
    # chunks (RFC 9112 7.1)
    "a chunk size that is no number": (CHUNKED + b"x\r\n", refusals.BAD_CHUNK),
    "a chunk size with 0x": (CHUNKED + b"0x5\r\nhello\r\n", refusals.BAD_CHUNK),
    "a signed chunk size": (CHUNKED + b"+5\r\nhello\r\n", refusals.BAD_CHUNK),
    "an empty chunk size": (CHUNKED + b"\r\n5\r\nhello\r\n", refusals.BAD_CHUNK),
    "a chunk size after a space": (CHUNKED + b" 5\r\nhello\r\n", refusals.BAD_CHUNK),
    "a chunk size before a space": (CHUNKED + b"5 \r\nhello\r\n", refusals.BAD_CHUNK),
    "a chunk size of 16 digits": (CHUNKED + b"0" * 15 + b"1\r\na\r\n", refusals.BAD_CHUNK),
    "a bare LF after a chunk size": (CHUNKED + b"5\nhello\r\n", refusals.BAD_CHUNK),
    "a bare CR in an extension": (CHUNKED + b"5;a\rb\r\nhello\r\n", refusals.BAD_CHUNK),
    "an empty line between chunks": (CHUNKED + b"1\r\na\r\n\r\n1\r\nb\r\n", refusals.BAD_CHUNK),
    "chunk data that goes on": (CHUNKED + b"5\r\nhello!\r\n", refusals.BAD_CHUNK),
    "a bare LF after chunk data": (CHUNKED + b"5\r\nhello\n", refusals.BAD_CHUNK),
    "a bare LF after the last chunk": (CHUNKED + b"0\r\n\n", refusals.BAD_CHUNK),
    "a trailer that is no field": (CHUNKED + b"0\r\nwhat\r\n", refusals.BAD_CHUNK),
    "a folded trailer": (CHUNKED + b"0\r\nA: b\r\n c\r\n", refusals.BAD_CHUNK),
    "an endless extension": (CHUNKED + b"5;" + b"a" * 300 + b"\r\n", refusals.BAD_CHUNK),
    "an endless trailer": (CHUNKED + b"0\r\n" + b"A: bcdefgh\r\n" * 1000, refusals.BAD_CHUNK),
}  # fmt: skip


@pytest.mark.parametrize(("data", "refusal"), REFUSED.values(), ids=REFUSED)
def test_is_refused(data: bytes, refusal: Refusal) -> None:
    request = deliver(data)
    assert request.refusal is refusal
    assert request.completed
    assert not request.keep_alive
    # What follows is not looked at any more.
    assert feed([data + GET])[0].refusal is refusal


def test_every_refusal_of_the_parser_is_in_a_table() -> None:
    source = parsing.__loader__.get_source(parsing.__name__)  # type: ignore[union-attr]
    declared = {name: value for name, value in vars(refusals).items() if isinstance(value, Refusal)}
    used = {value for name, value in declared.items() if f"refusals.{name}" in source}
    sizes = {refusals.REQUEST_LINE_TOO_LONG, refusals.HEADER_TOO_LARGE, refusals.BODY_TOO_LARGE}
    sizes.add(refusals.BODY_NOT_STORED)  # which is about the disk; tests/test_http.py fills it
    assert used == {refusal for _, refusal in REFUSED.values()} | sizes


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\nHost: a\n\n"])
def test_a_client_that_ends_lines_with_a_bare_lf_is_told_at_once(data: bytes) -> None:
    assert feed([data])[0].refusal is refusals.BAD_REQUEST_LINE


# --- sizes: at the cap it is served, one past it is not, however it is delivered ---

SMALL = LimitSettings(request_line=256, header_line=256, header=1024, header_count=10, body=64)


def request_line_of(size: int) -> bytes:
    return b"GET /" + b"a" * (size - len("GET / HTTP/1.1")) + b" HTTP/1.1\r\nHost: a\r\n\r\n"


def header_line_of(size: int) -> bytes:
    return get(b"X-A: " + b"b" * (size - len("X-A: ")))


def header_of(size: int) -> bytes:
    """A head of `size` bytes, the empty line that ends it not counted."""
    lines = [b"X-%d: " % i + b"b" * 190 for i in range(4)]
    rest = size - (len(get(*lines)) - 4) - len(b"\r\nX-Y: ")
    return get(*lines, b"X-Y: " + b"c" * rest)


def fields_of(count: int) -> bytes:
    return get(*[b"X-%d: a" % i for i in range(count - 1)])


def chunk_line_of(size: int) -> bytes:
    return CHUNKED + b"5;" + b"a" * (size - 2) + b"\r\nhello\r\n0\r\n\r\n"


def trailer_line_of(size: int) -> bytes:
    return CHUNKED + b"5\r\nhello\r\n0\r\nX-A: " + b"b" * (size - 5) + b"\r\n\r\n"


CAPS = {
    "the request line": (request_line_of, 256, refusals.REQUEST_LINE_TOO_LONG),
    "one header line": (header_line_of, 256, refusals.HEADER_TOO_LARGE),
    "the whole head": (header_of, 1024, refusals.HEADER_TOO_LARGE),
    "the number of fields": (fields_of, 10, refusals.HEADER_TOO_LARGE),
    "a chunk's size line": (chunk_line_of, 256, refusals.BAD_CHUNK),
}


@pytest.mark.parametrize(("make", "cap", "refusal"), CAPS.values(), ids=CAPS)
def test_at_the_cap_it_is_served_and_one_past_it_is_not(make: Any, cap: int, refusal: Refusal) -> None:
    assert outcome(feed([make(cap)], SMALL)[0])[0] in ("GET", "POST")
    assert feed([make(cap + 1)], SMALL)[0].refusal is refusal
    assert deliver(make(cap), SMALL).refusal is None
    assert deliver(make(cap + 1), SMALL).refusal is refusal


def test_a_trailer_line_longer_than_a_chunk_line_may_be_is_read_alike_in_pieces() -> None:
    deliver(trailer_line_of(400))


@pytest.mark.parametrize(("size", "refused"), [(64, False), (65, True)])
def test_a_chunked_body_at_the_cap_is_served_and_one_past_it_is_not(size: int, refused: bool) -> None:
    data = CHUNKED + b"%x\r\n" % (size - 1) + b"a" * (size - 1) + b"\r\n1\r\nb\r\n0\r\n\r\n"
    assert deliver(data, SMALL).refusal is (refusals.BODY_TOO_LARGE if refused else None)


def test_an_oversized_chunk_is_refused_while_it_arrives_and_not_kept() -> None:
    request, _ = feed([CHUNKED + b"fffffff\r\n", b"a" * 65], SMALL)
    assert request.refusal is refusals.BODY_TOO_LARGE


def test_an_unfinished_head_is_refused_as_soon_as_it_is_too_large() -> None:
    request, _ = feed([b"GET / HTTP/1.1\r\n", *[b"X: %d\r\n" % i for i in range(10)] * 20], SMALL)
    assert request.refusal is refusals.HEADER_TOO_LARGE
    assert not request.head  # and what it was is not kept
    request, _ = feed([b"GET /", b"a" * 300], SMALL)
    assert request.refusal is refusals.REQUEST_LINE_TOO_LONG


@pytest.mark.parametrize(("body_memory", "overflowed"), [(9000, False), (8999, True), (0, True)])
def test_a_body_moves_to_a_file_when_it_is_larger_than_memory_may_hold(body_memory: int, overflowed: bool) -> None:
    limits = dataclasses.replace(LIMITS, body_memory=body_memory)
    body = bytes(range(250)) * 36
    for pieces in ([body], [body[:5000], body[5000:]]):
        request, _ = feed([POST + b"Content-Length: 9000\r\n\r\n", *pieces], limits)
        stream = request.get_body_stream()
        assert request.body_rcv.getbuf().overflowed is overflowed
        assert stream.read() == body
        request.close()
        assert stream.closed


# --- cost: linear in what arrives ---


class CountingHead(bytearray):
    """A bytearray that counts how many of its bytes are searched."""

    searched = 0

    def find(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        stop = len(self) if end is None else min(end, len(self))
        found = super().find(sub, start, stop)
        self.searched += (found if found >= 0 else stop) - start
        return found


def test_a_dripped_head_costs_no_more_than_its_size_times_its_request_line() -> None:
    request = Request(ParserRules(LIMITS), 0.0)
    request.feed(b"GET / HTTP/1.1\r\n")
    counting = request.head = CountingHead(request.head)  # type: ignore[assignment]
    line = b"X-A: bcdefghij\r\n"
    for byte in byte_by_byte(line * 1000):
        request.feed(byte)
    assert request.head is counting, "the head was copied"
    # 4 bytes for the end of the head, and the request line again for its own end: nothing that grows.
    assert counting.searched <= 16_000 * (4 + 16)


def test_a_dripped_chunk_line_keeps_only_what_is_unfinished() -> None:
    request, _ = feed([CHUNKED])
    for _ in range(2000):
        for byte in byte_by_byte(b"1;x=y\r\na\r\n"):
            assert request.feed(byte) == 1
            receiver = request.body_rcv
            assert isinstance(receiver, StrictChunkedReceiver)
            assert len(receiver.control_line) <= 7
            assert len(receiver.trailer) + len(receiver.chunk_end) == 0
    assert len(request.body_rcv) == 2000


def test_what_lines_mean_is_remembered_for_a_bounded_number_of_lines() -> None:
    rules = ParserRules(LIMITS)
    for number in range(5000):
        Request(rules, 0.0).feed(get(b"X-A: %d" % number))
        assert len(rules.remembered) <= 1024
    before = dict(rules.remembered)
    Request(rules, 0.0).feed(get(b"X-A: " + b"b" * 600))  # a long line is not worth remembering
    assert not [line for line in rules.remembered if len(line) > 512]
    Request(rules, 0.0).feed(get(b"X-A: \0"))
    assert b"X-A: \0" not in rules.remembered
    assert len(rules.remembered) - len(before) <= 1


def test_a_remembered_line_is_judged_as_the_first_time() -> None:
    rules = ParserRules(LIMITS)
    for _ in range(2):
        for data, expected in ACCEPTED.values():
            request = Request(rules, 0.0)
            while data and not request.completed:
                data = data[request.feed(data) :]  # noqa: PLW2901
            assert {name: getattr(request, name) for name in expected} == expected
        for data, refusal in REFUSED.values():
            request = Request(rules, 0.0)
            while data and not request.completed:
                data = data[request.feed(data) :]  # noqa: PLW2901
            assert request.refusal is refusal


# --- anything at all ---

names = st.sampled_from([b"X-A", b"Accept", b"Cookie", b"x-b", b"User-Agent"])
values = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40).map(
    lambda s: s.encode("latin-1")
)
chunk_data = st.binary(min_size=1, max_size=300)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    fields = [name + b": " + value for name, value in draw(st.lists(st.tuples(names, values), max_size=6))]
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "length":
        body = draw(st.binary(max_size=600))
        return get(*fields, b"Content-Length: %d" % len(body), method=b"POST") + body
    if kind == "chunked":
        extension = draw(st.sampled_from([b"", b";a", b" ;b=c", b";" + b"d" * 250]))
        chunks = draw(st.lists(chunk_data, max_size=5))
        trailer = b"".join(
            name + b": " + value + b"\r\n" for name, value in draw(st.lists(st.tuples(names, values), max_size=2))
        )
        coded = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        return get(*fields, b"Transfer-Encoding: chunked", method=b"POST") + coded + b"0\r\n" + trailer + b"\r\n"
    return get(*fields, target=draw(st.sampled_from([b"/", b"/a?b", b"http://a/c", b"/%41"])))


@settings(max_examples=150, deadline=None)
@given(requests(), st.lists(st.integers(0, 2000), max_size=12), st.booleans())
def test_any_split_of_a_request_reads_the_same(data: bytes, cuts: list[int], followed: bool) -> None:
    whole, rest = feed([data])
    assert whole.refusal is None
    assert whole.completed
    assert rest == b""
    sent = data + GET if followed else data
    bounds = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent)})
    pieces = [sent[start:end] for start, end in itertools.pairwise(bounds)]
    split, rest = feed(pieces)
    assert outcome(split) == outcome(whole)
    assert rest == (GET if followed else b"")
    whole.close()
    split.close()


NASTY = st.lists(
    st.sampled_from([
        b"\r\n", b"\r", b"\n", b" ", b":", b"GET ", b"/", b"POST /", b" HTTP/1.1", b"Host: a\r\n", b"\0", b"\xff", b"%",
        b"Content-Length: 5", b"Transfer-Encoding: chunked", b"0\r\n\r\n", b"5\r\nhello", b"http://", b"[",
        b"]", b"*", b";",
        b"GET / HTTP/1.1\r\nHost: a\r\n", b"Expect: 100-continue\r\n", b"X-Request-ID: ", b"OPTIONS ", b"\x16",
        b"9" * 40,
    ])
    | st.binary(max_size=12),
    max_size=30,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(NASTY, st.booleans())
def test_no_bytes_raise(pieces: list[bytes], rehearsed: bool) -> None:
    head = [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"] if rehearsed else []
    request, _ = feed([*head, *pieces], SMALL)
    split, _ = feed(byte_by_byte(b"".join([*head, *pieces])), SMALL)
    assert request.completed == split.completed
    assert (request.refusal is None) == (split.refusal is None)
    request.close()
    split.close()
