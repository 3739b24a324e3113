"""The parser alone: what it tells of a request, its caps, what it keeps and what it costs.

Which bytes are a request, and which are not, is in tests/corpus/, and tests/test_corpus.py feeds it to the parser too.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve import refusals
from hardserve.edge.chunks import StrictChunkedReceiver
from hardserve.edge.parsing import ParserRules, Request
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


# --- what is told of a request, besides what the app sees of it ---

TOLD: dict[str, tuple[bytes, dict[str, Any]]] = {
    "1.1 lives on": (GET, {"version": "1.1", "keep_alive": True}),
    "1.0 does not": (b"GET / HTTP/1.0\r\n\r\n", {"version": "1.0", "keep_alive": False}),
    "a later minor version is 1.1": (get(version=b"1.7"), {"version": "1.1", "keep_alive": True}),
    "the target is kept as it came": (get(target=b"/a%20b?c"), {"path": "/a b", "request_uri": "/a%20b?c"}),
    "an absolute target's authority": (get(target=b"http://A/b"), {"path": "/b", "proxy_netloc": "A"}),
    "the whole server": (get(target=b"*", method=b"OPTIONS"), {"path": "", "request_uri": "*"}),
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
    "Expect with a length": (
        get(b"Expect: 100-Continue", b"Content-Length: 2") + b"hi", {"expect_continue": True, "content_length": 2}
    ),
    "Expect with chunks": (
        get(b"Expect: 100-continue", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        {"expect_continue": True, "chunked": True},
    ),
    "Expect on 1.0 is ignored": (get(b"Expect: who-knows", version=b"1.0"), {"expect_continue": False}),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), TOLD.values(), ids=TOLD)
def test_what_is_told(data: bytes, expected: dict[str, Any]) -> None:
    request = deliver(data)
    assert request.refusal is None
    assert request.completed
    assert request.headers_finished
    assert {name: getattr(request, name) for name in expected} == expected


def test_what_was_refused_is_known_as_far_as_it_was_read() -> None:
    request, _ = feed([get(target=b"/a#b")])
    assert (request.command, request.request_uri) == ("GET", "/a#b")
    assert (request.refusal, request.completed, request.keep_alive) == (refusals.BAD_TARGET, True, False)


POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


# --- what is refused before it is complete ---

SOON = {
    "HTTP/0.9": (b"GET /\r\n", refusals.BAD_REQUEST_LINE),
    "a first byte that begins no method": (b"\x80", refusals.BAD_REQUEST_LINE),
    "a first letter in lower case": (b"g", refusals.BAD_REQUEST_LINE),
    "anything but CR before a LF": (b"GET / HTTP/1.1X\n", refusals.BAD_REQUEST_LINE),
    "the first byte of TLS": (b"\x16", refusals.TLS_ON_PLAIN_PORT),
    "lines that end in a bare LF": (b"GET / HTTP/1.1\n", refusals.BAD_REQUEST_LINE),
    "a bare CR where an empty line might be": (b"\rG", refusals.BAD_REQUEST_LINE),
    "a size that announces too much": (CHUNKED + b"fffffff\r\n", refusals.BODY_TOO_LARGE),
    "anything but CR behind the data of a chunk": (CHUNKED + b"1\r\nab", refusals.BAD_CHUNK),
}


@pytest.mark.parametrize(("data", "refusal"), SOON.values(), ids=SOON)
def test_is_refused_as_soon_as_it_is_sure(data: bytes, refusal: Any) -> None:
    assert deliver(data).refusal is refusal
    if not data.startswith(POST):
        assert not feed([data[:-1] or b"G"])[0].completed


# --- sizes: each is a setting; at the cap it is served, one past it is not, however it is delivered ---

SMALL = LimitSettings(
    request_line=256, header_line=300, header=1024, header_count=10, chunk_line=40, chunk_extensions=100, trailer=80,
    body=64,
)  # fmt: skip


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


def extensions_of(excess: int) -> bytes:
    """Extensions that have `excess` bytes more than the body."""
    chunks = b"1;" + b"a" * 20 + b"\r\nb\r\n"
    last = b"1;" + b"a" * (excess - 4 * 20) + b"\r\nb\r\n"
    return CHUNKED + chunks * 4 + last + b"0\r\n\r\n"


def trailer_of(size: int) -> bytes:
    """Two lines that have `size` bytes together, with the end of each."""
    return CHUNKED + b"5\r\nhello\r\n0\r\nX-A: " + b"b" * 31 + b"\r\nX-B: " + b"b" * (size - 45) + b"\r\n\r\n"


def chunked_body_of(size: int) -> bytes:
    return CHUNKED + b"%x\r\n" % (size - 1) + b"a" * (size - 1) + b"\r\n1\r\nb\r\n0\r\n\r\n"


CAPS = {
    "the request line": (request_line_of, 256, refusals.REQUEST_LINE_TOO_LONG),
    "one header line": (header_line_of, 300, refusals.HEADER_TOO_LARGE),
    "the whole head": (header_of, 1024, refusals.HEADER_TOO_LARGE),
    "the number of fields": (fields_of, 10, refusals.HEADER_TOO_LARGE),
    "a chunk's size line": (chunk_line_of, 40, refusals.CHUNK_EXTENSIONS_TOO_LARGE),
    "all extensions of chunks": (extensions_of, 100, refusals.CHUNK_EXTENSIONS_TOO_LARGE),
    "the trailer": (trailer_of, 80, refusals.TRAILER_TOO_LARGE),
    "a body in chunks": (chunked_body_of, 64, refusals.BODY_TOO_LARGE),
}


@pytest.mark.parametrize(("make", "cap", "refusal"), CAPS.values(), ids=CAPS)
def test_at_the_cap_it_is_served_and_one_past_it_is_not(make: Any, cap: int, refusal: Any) -> None:
    assert outcome(feed([make(cap)], SMALL)[0])[0] in ("GET", "POST")
    assert feed([make(cap + 1)], SMALL)[0].refusal is refusal
    assert deliver(make(cap), SMALL).refusal is None
    assert deliver(make(cap + 1), SMALL).refusal is refusal


def test_a_body_in_chunks_is_held_to_what_the_gate_has_set() -> None:
    request, _ = feed([CHUNKED], SMALL)
    request.max_body = 70
    request.feed(chunked_body_of(70)[len(CHUNKED) :])
    assert request.refusal is None
    assert len(request.body_rcv) == 70


LINE = b"GET / HTTP/1.1\r\n"
# What never ends, why it is refused, and after how many bytes: as soon as nothing could follow that is within the cap.
ENDLESS = {
    "a request line": (b"GET /", b"a", refusals.REQUEST_LINE_TOO_LONG, 256 + len("\r\n")),
    "a header line": (LINE + b"X-A: ", b"a", refusals.HEADER_TOO_LARGE, len(LINE) + 300 + len("\r\n")),
    "a header": (LINE, b"X-A: %b\r\n" % (b"a" * 193), refusals.HEADER_TOO_LARGE, 1024 + len("\r\n\r\n")),
    "fields": (LINE, b"X-A:\r\n", refusals.HEADER_TOO_LARGE, len(LINE) + 11 * len("X-A:\r\n")),
    "empty lines": (b"", b"\r\n", refusals.BAD_REQUEST_LINE, 64 + len("\r\n")),
    "a chunk's extension": (CHUNKED + b"5;", b"a", refusals.CHUNK_EXTENSIONS_TOO_LARGE, len(CHUNKED) + 40 + 2),
    "a line of a trailer": (CHUNKED + b"0\r\nX-A: ", b"a", refusals.TRAILER_TOO_LARGE, len(CHUNKED) + 3 + 80),
    "a trailer": (CHUNKED + b"0\r\n", b"X-A: bc\r\n", refusals.TRAILER_TOO_LARGE, len(CHUNKED) + 3 + 80),
}


@pytest.mark.parametrize(("start", "more", "refusal", "due"), ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_is_refused_as_soon_as_it_is_sure_and_not_kept(
    start: bytes, more: bytes, refusal: Any, due: int
) -> None:
    request = Request(ParserRules(SMALL), 0.0)
    fed = 0
    for byte in byte_by_byte(start + more * 1000):
        assert request.feed(byte) == 1
        fed += 1
        if request.completed:
            break
    assert (request.refusal, fed) == (refusal, due)
    assert len(request.head) == 0
    if isinstance(request.body_rcv, StrictChunkedReceiver):
        assert len(request.body_rcv._line) == 0


# --- what is kept, and where ---


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


def test_what_is_kept_of_a_request_is_counted() -> None:
    limits = dataclasses.replace(LIMITS, body_memory=9999)
    head = POST + b"Content-Length: 20000"
    request = Request(ParserRules(limits), 0.0)
    assert request.buffered() == (0, 0)
    request.feed(head[:10])
    assert request.buffered() == (10, 0)
    request.feed(head[10:])
    assert request.buffered() == (len(head), 0)
    request.feed(b"\r\n\r\n")
    assert request.buffered() == (len(head), 0), "the fields are kept"
    request.feed(b"x" * 5000)
    assert request.buffered() == (len(head) + 5000, 0)
    request.feed(b"x" * 4999)
    assert request.buffered() == (len(head) + 9999, 0)
    request.feed(b"x" * 5001)
    assert request.buffered() == (len(head), 15_000)
    request.close()


def test_a_request_without_a_body_keeps_nothing_that_counts() -> None:
    request, _ = feed([GET])
    assert request.buffered() == (0, 0)
    request.to_file()
    assert request.body_rcv is None


@pytest.mark.parametrize("before", [b"", b"x", b"x" * 5000, b"x" * 9000])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_a_body_goes_to_a_file_from_when_it_is_told_to(before: bytes, chunked: bool) -> None:
    def framed(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if chunked and data else data

    head = CHUNKED if chunked else POST + b"Content-Length: %d\r\n\r\n" % (len(before) + 7)
    request, _ = feed([head, framed(before)])
    request.to_file()
    request.to_file()
    in_memory, in_file = request.buffered()
    assert (in_memory, in_file) == (len(head) - 4, len(before))
    request.feed(framed(b"y" * 7) + (b"0\r\n\r\n" if chunked else b""))
    assert request.buffered() == (len(head) - 4, len(before) + 7)
    assert request.completed
    stream = request.get_body_stream()
    assert isinstance(stream.name, int), "a file without a name"
    assert stream.read() == before + b"y" * 7
    request.close()
    assert stream.closed


def test_that_there_can_be_no_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    request, _ = feed([CHUNKED])
    with pytest.raises(OSError, match="nowhere"):
        request.to_file()
    request.close()


# --- cost: linear in what arrives ---


class Counting(bytes):
    """Bytes of a read that count how many of them are looked at or copied."""

    examined = 0

    def find(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        found = super().find(sub, start, len(self) if end is None else end)
        self.examined += (len(self) if found < 0 else found + len(sub)) - start
        return found

    def __getitem__(self, key: Any) -> Any:
        taken = super().__getitem__(key)
        self.examined += len(taken) if isinstance(key, slice) else 1
        return taken


class CountingHead(bytearray):
    """A head in pieces that counts how many of its bytes are searched."""

    examined = 0

    def _count(self, found: int, size: int, start: int) -> int:
        self.examined += (len(self) if found < 0 else found + size) - start
        return found

    def find(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        return self._count(super().find(sub, start), len(sub), start)

    def rfind(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        self.examined += len(self) - start
        return super().rfind(sub, start)

    def count(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        self.examined += len(self) - start
        return super().count(sub, start)


WIDE = LimitSettings(
    request_line=2**20, header_line=2**20, header=2**24, header_count=10_000, chunk_line=2**16, trailer=2**20
)
HEADS = {
    "one long request line": b"GET /" + b"a" * 4000,
    "one long header line": b"GET / HTTP/1.1\r\nX-A: " + b"a" * 4000,
    "many header lines": b"GET / HTTP/1.1\r\n" + b"X-A: bcdef\r\n" * 300,
    "many CRs": b"GET / HTTP/1.1\r\nX-A: " + b"\r" * 4000,
    "many line ends of another kind": b"GET / HTTP/1.1\r\nX-A: " + b"\n" * 4000,
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_dripped_head_is_searched_once(data: bytes, step: int) -> None:
    request = Request(ParserRules(WIDE), 0.0)
    request.feed(data[:1])
    counting = request.head = CountingHead(request.head)  # type: ignore[assignment]
    for start in range(1, len(data), step):
        request.feed(data[start : start + step])
    assert request.head is counting, "the head was copied"
    assert len(counting) == len(data)
    # Four searches of what is new, and at each feed of the last few bytes before it.
    assert counting.examined <= 4 * len(data) + 8 * (len(data) // step + 1)


BODIES = {
    "one large chunk": CHUNKED + b"10000\r\n" + b"a" * 65536 + b"\r\n0\r\n\r\n",
    "tiny chunks": CHUNKED + b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n",
    "long extensions": CHUNKED + (b"fff;" + b"b" * 4000 + b"\r\n" + b"a" * 4095 + b"\r\n") * 10 + b"0\r\n\r\n",
    "one extension without end": CHUNKED + b"5;" + b"a" * 60_000,
    "a trailer of many lines": CHUNKED + b"0\r\n" + b"X-A: b\r\n" * 8000 + b"\r\n",
    "a trailer of one line without end": CHUNKED + b"0\r\nX-A: " + b"b" * 60_000,
}


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("step", [1, 1000, 65536])
def test_a_chunked_body_is_read_once(data: bytes, step: int) -> None:
    request, _ = feed([CHUNKED], WIDE)
    examined = 0
    for start in range(len(CHUNKED), len(data), step):
        piece = Counting(data[start : start + step])
        assert request.feed(piece) == len(piece)
        examined += piece.examined
    assert request.refusal is None
    # The end of each line is searched, the line is taken out; of data one copy is made.
    assert examined <= 3 * len(data)
    request.close()


def test_an_unfinished_line_between_chunks_is_kept_once_and_in_place() -> None:
    request, _ = feed([CHUNKED], WIDE)
    receiver = request.body_rcv
    assert isinstance(receiver, StrictChunkedReceiver)
    kept = receiver._line
    for byte in byte_by_byte(b"5;" + b"a" * 5000):
        assert request.feed(byte) == 1
        assert receiver._line is kept
    assert len(kept) == 5002
    request.feed(b"\r\n")
    assert len(receiver._line) == 0


def test_chunks_of_one_read_reach_the_buffer_in_one_piece() -> None:
    """Each append to a file is several system calls; a body of tiny chunks would have the I/O thread make them all."""
    limits = dataclasses.replace(LIMITS, body_memory=0)
    request, _ = feed([CHUNKED, b"2400\r\n" + b"x" * 0x2400 + b"\r\n"], limits)
    appended: list[bytes] = []
    request.body_rcv.getbuf().append = appended.append
    request.feed(b"1\r\na\r\n" * 1000)
    assert appended == [b"a" * 1000]
    request.close()


BACKTRACKED = {
    "spaces before what no value has": b"X-A:" + b" " * 60_000 + b"\x10",
    "tabs and spaces": b"X-A:" + b"\t " * 30_000 + b"\x10",
    "words before what no value has": b"X-A: " + b"x " * 30_000 + b"\x10",
    "a name without end": b"x" * 60_000,
    "a host of dots": b"Host: " + b"a." * 30_000 + b"/",
    "a host of escapes": b"Host: " + b"%41" * 20_000 + b"%",
    "an address of colons": b"Host: [" + b":" * 60_000,
}


CHUNK_BACKTRACKED = {
    "extensions": b"1" + b" ;a" * 20_000 + b"==",
    "spaces": b"1;a" + b" " * 60_000,
    "escapes": b'1;a="' + b"\\x" * 30_000,
    "digits": b"1" * 60_000,
    "a name": b"1;" + b"a" * 60_000 + b" b",
    "a quote": b'1;a="' + b"b" * 60_000,
}
ROOMY = LimitSettings(header_line=2**20, header=2**20, chunk_line=2**16, chunk_extensions=2**20)


@pytest.mark.parametrize(
    "data",
    [
        *(get(line, host=False) for line in BACKTRACKED.values()),
        *(CHUNKED + line + b"\r\n" for line in CHUNK_BACKTRACKED.values()),
    ],
    ids=[*BACKTRACKED, *(f"a chunk line with {name}" for name in CHUNK_BACKTRACKED)],
)
def test_a_line_that_fails_at_its_end_fails_at_once(data: bytes) -> None:
    """A pattern that tried every way to split these 60,000 bytes would take ten seconds or more (CVE-2020-5236)."""
    began = time.thread_time()
    refusal = feed([data], ROOMY)[0].refusal
    assert time.thread_time() - began < 1, "it takes a millisecond"
    assert refusal in (refusals.BAD_HEADER, refusals.BAD_HOST, refusals.BAD_CHUNK)


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
