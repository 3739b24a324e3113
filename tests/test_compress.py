"""Compression of what apps answer: which responses, what their fields say then, and that nothing else changes."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flask
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hardserve.http import encoders
from hardserve.http.coding import ACCEPT_ENCODING_MAX
from hardserve.settings import CompressionSettings
from hardserve.wsgi.compress import MAX_FILLER, PIECE_BYTES, Compressor
from hardserve.wsgi.response import Head
from tests.support import PATIENCE_S, Response, Running, serving

CODINGS = encoders.available()
# Looks like what a page is made of: it gets shorter, and not by magic.
PAGE = b"".join(b'<tr><td class="n">%d</td><td>%x</td></tr>\n' % (n, n * 2654435761 % 2**32) for n in range(100))
NOISE = random.Random(1).randbytes(PIECE_BYTES + 1)
HTML = ("Content-Type", "text/html; charset=utf-8")
GZIP = "Accept-Encoding: gzip"


def decoded(body: bytes, coding: str | None) -> bytes:
    """Decode a body as a client does, which must be complete, and end there."""
    if coding is None:
        return body
    if coding == "gzip":
        inflate = zlib.decompressobj(31)
        data = inflate.decompress(body)
        assert inflate.eof
        assert inflate.unused_data == b""
        return data
    if coding == "br":
        brotli: Any = pytest.importorskip("brotli" if importlib.util.find_spec("brotli") else "brotlicffi")
        return bytes(brotli.decompress(body))
    zstandard: Any = pytest.importorskip("zstandard")
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body), read_across_frames=True)
    return bytes(reader.read())


def content(response: Response) -> bytes:
    return decoded(response.body, response.header("Content-Encoding"))


@dataclass
class Answer:
    """What the app is to do next."""

    headers: list[tuple[str, str]] = field(default_factory=lambda: [HTML])
    status: str = "200 OK"
    blocks: Callable[[], Any] = lambda: [PAGE]
    written: tuple[bytes, ...] = ()


class App:
    """Answers each request as the test has set it up. One request at a time."""

    def __init__(self) -> None:
        self.answer = Answer()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        answer = self.answer
        write = start_response(answer.status, answer.headers)
        for block in answer.written:
            write(block)
        if answer.blocks is wrapped:
            return environ["wsgi.file_wrapper"](io.BytesIO(PAGE))
        return answer.blocks()


def wrapped() -> Any:
    """Have the app return its file wrapper."""


@pytest.fixture(scope="module")
def app() -> App:
    return App()


@pytest.fixture(scope="module")
def running(app: App) -> Iterator[Running]:
    with serving(app) as running:
        yield running


def ask(running: Running, app: App, answer: Answer, *lines: str, **request: Any) -> Response:
    app.answer = answer
    with running.connect() as client:
        return client.get(request.pop("target", "/"), *lines, **request)


def length_of(body: bytes) -> tuple[str, str]:
    return ("Content-Length", str(len(body)))


def parts(*blocks: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter(blocks)


# --- which responses ---

COMPRESSED: dict[str, tuple[Answer, tuple[str, ...]]] = {
    "one block": (Answer(), ()),
    "one block with a length": (Answer([HTML, length_of(PAGE)]), ()),
    "a stream": (Answer(blocks=parts(PAGE, PAGE)), ()),
    "a stream with a length": (Answer([HTML, length_of(PAGE * 2)], blocks=parts(PAGE, PAGE)), ()),
    "a stream that begins small": (Answer(blocks=parts(b"<p>", PAGE)), ()),
    "what write() has sent": (Answer(written=(PAGE,), blocks=list), ()),
    "what write() has sent with a length": (Answer([HTML, length_of(PAGE)], written=(PAGE,), blocks=list), ()),
    "exactly 1 KiB": (Answer(blocks=lambda: [PAGE[:1024]]), ()),
    "JSON": (Answer([("content-type", "application/json")]), ()),
    "an SVG": (Answer([("Content-Type", "image/svg+xml")]), ()),
    "an error": (Answer(status="404 Not Found"), ()),
    "what other caches may keep": (Answer([HTML, ("Cache-Control", "public, max-age=9")]), ()),
    "what the client likes least": (Answer(), ("Accept-Encoding: gzip;q=0.001, identity;q=0",)),
    "whatever there is": (Answer(), ("Accept-Encoding: *",)),
    "megabytes": (Answer(blocks=lambda: [PAGE * 300]), ()),
    "an answer to a POST": (Answer(), ("Content-Length: 0",)),
}


@pytest.mark.parametrize(("answer", "lines"), COMPRESSED.values(), ids=COMPRESSED)
def test_is_compressed(running: Running, app: App, answer: Answer, lines: tuple[str, ...]) -> None:
    asked = any(line.startswith("Accept-Encoding") for line in lines)
    plain = ask(running, app, answer)
    response = ask(running, app, answer, *lines, *([] if asked else [GZIP]))
    assert plain.header("Content-Encoding") is None
    assert response.header("Content-Encoding") in CODINGS
    assert content(response) == plain.body
    assert len(response.body) < len(plain.body)
    for each in (plain, response):
        assert each.header("Vary") == "Accept-Encoding"


AS_IT_IS: dict[str, tuple[Answer, tuple[str, ...], str | None]] = {
    "a client that does not ask": (Answer(), (), "Accept-Encoding"),
    "a client that asks for nothing": (Answer(), ("Accept-Encoding:",), "Accept-Encoding"),
    "a client that asks for what we have not": (Answer(), ("Accept-Encoding: compress",), "Accept-Encoding"),
    "a client that refuses it": (Answer(), ("Accept-Encoding: gzip;q=0, br;q=0, zstd;q=0",), "Accept-Encoding"),
    "a client that likes the plain one better": (
        Answer(), ("Accept-Encoding: gzip;q=0.5, identity",), "Accept-Encoding"
    ),
    "under 1 KiB": (Answer(blocks=lambda: [PAGE[:1023]]), (GZIP,), None),
    "under 1 KiB by its length": (
        Answer([HTML, ("Content-Length", "9")], blocks=parts(PAGE[:4], PAGE[4:9])), (GZIP,), None
    ),
    "a picture": (Answer([("Content-Type", "image/png")]), (GZIP,), None),
    "of no type": (Answer([]), (GZIP,), None),
    "events": (Answer([("Content-Type", "text/event-stream")], blocks=parts(PAGE, PAGE)), (GZIP,), None),
    "events with a charset": (Answer([("Content-Type", "Text/Event-Stream;charset=utf-8")]), (GZIP,), None),
    "encoded by the app": (Answer([HTML, ("Content-Encoding", "x")]), ("Accept-Encoding: *",), None),
    "not encoded, says the app": (Answer([HTML, ("content-encoding", "identity")]), (GZIP,), None),
    "no-transform": (Answer([HTML, ("Cache-Control", "max-age=9, No-Transform")]), (GZIP,), None),
    "a part": (Answer([HTML, ("Content-Range", "bytes 0-9/10")], "206 Partial Content"), (GZIP,), None),
    "a part without a range": (Answer(status="206 Partial Content"), (GZIP,), None),
    "a refused range": (Answer([HTML, ("Content-Range", "bytes */10")], "416 Range"), (GZIP,), None),
    "204": (Answer(status="204 No Content"), (GZIP,), None),
    "304": (Answer(status="304 Not Modified"), (GZIP,), None),
    "a digest of the content": (Answer([HTML, ("Content-Digest", "sha-256=:x:")]), (GZIP,), None),
    "a digest of the representation": (Answer([HTML, ("Repr-Digest", "sha-256=:x:")]), (GZIP,), None),
    "an old digest": (Answer([HTML, ("Digest", "sha-256=x")]), (GZIP,), None),
    "a very old digest": (Answer([HTML, ("Content-MD5", "x")]), (GZIP,), None),
    "a signature": (Answer([HTML, ("Signature-Input", "a=()")]), (GZIP,), None),
    "a file wrapper": (Answer(blocks=wrapped), (GZIP,), None),
    "what would get larger": (
        Answer([HTML, ("ETag", '"a"')], blocks=lambda: [NOISE[:8000]]), (GZIP,), "Accept-Encoding"
    ),
    "megabytes that would get larger": (
        Answer([HTML, ("ETag", '"a"')], blocks=lambda: [NOISE]), (GZIP,), "Accept-Encoding"
    ),
    "an Accept-Encoding that nobody sends": (
        Answer(), (f"Accept-Encoding: gzip{' ' * ACCEPT_ENCODING_MAX}, br",), "Accept-Encoding"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "lines", "vary"), AS_IT_IS.values(), ids=AS_IT_IS)
def test_is_left_as_it_is(running: Running, app: App, answer: Answer, lines: tuple[str, ...], vary: str | None) -> None:
    expected = b"" if answer.status[:3] in ("204", "304") else None
    if expected is None:
        expected = PAGE if answer.blocks is wrapped else b"".join(answer.blocks())
    response = ask(running, app, answer, *lines)
    assert response.body == expected
    assert response.header("Vary") == vary
    own = {name.lower(): value for name, value in answer.headers}
    for name in ("Content-Encoding", "ETag", "Content-Range"):
        assert response.header(name) == own.get(name.lower())


def test_it_can_be_switched_off(app: App) -> None:
    app.answer = Answer()
    with serving(app, compression_responses="off") as running, running.connect() as client:
        response = client.get("/", "Accept-Encoding: gzip, br, zstd")
    assert (response.body, response.header("Content-Encoding"), response.header("Vary")) == (PAGE, None, None)


@pytest.mark.parametrize(("size", "compressed"), [(99, False), (100, True)])
def test_how_small_is_settable(app: App, size: int, compressed: bool) -> None:
    app.answer = Answer(blocks=lambda: [b"x" * size])
    with serving(app, compression_min_size=100) as running, running.connect() as client:
        assert (client.get("/", GZIP).header("Content-Encoding") == "gzip") is compressed


@pytest.mark.parametrize("asked", CODINGS)
def test_each_coding(running: Running, app: App, asked: str) -> None:
    for answer in (Answer(), Answer(blocks=parts(PAGE, PAGE))):
        response = ask(running, app, answer, f"Accept-Encoding: {asked}")
        assert response.header("Content-Encoding") == asked
        assert content(response) == b"".join(answer.blocks())


def test_the_first_of_ours_is_what_a_browser_gets(running: Running, app: App) -> None:
    response = ask(running, app, Answer(), "Accept-Encoding: gzip, deflate, br, zstd")
    assert response.header("Content-Encoding") == CODINGS[0]
    assert content(response) == PAGE


# --- fields ---

VARY = {
    "none": ([], ["Accept-Encoding"]),
    "another": (["Cookie"], ["Cookie, Accept-Encoding"]),
    "several lines": (["Cookie", "Origin"], ["Cookie", "Origin, Accept-Encoding"]),
    "it is there": (["accept-encoding"], ["accept-encoding"]),
    "it is there among others": (["Cookie ,Accept-Encoding\t, Origin"], ["Cookie ,Accept-Encoding\t, Origin"]),
    "it is there in another line": (["Accept-Encoding", "Cookie"], ["Accept-Encoding", "Cookie"]),
    "a name that begins like it": (["Accept-Encoding-2"], ["Accept-Encoding-2, Accept-Encoding"]),
    "everything": (["*"], ["*"]),
    "everything and more": (["Cookie, *"], ["Cookie, *"]),
    "nothing in it": ([""], ["", "Accept-Encoding"]),
}


@pytest.mark.parametrize(("given_", "sent"), VARY.values(), ids=VARY)
@pytest.mark.parametrize("lines", [[], [GZIP]], ids=["plain", "gzip"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_vary_is_merged(
    running: Running, app: App, given_: list[str], sent: list[str], lines: list[str], method: str
) -> None:
    answer = Answer([HTML, length_of(PAGE), *(("VARY", value) for value in given_)])
    response = ask(running, app, answer, *lines, method=method)
    assert [value for name, value in response.headers if name.lower() == "vary"] == sent


ETAGS = {
    "strong becomes weak": ('"a"', 'W/"a"'),
    "weak stays": ('W/"a"', 'W/"a"'),
    "empty is a tag, too": ('""', 'W/""'),
    "what is no tag stays what it is": ("abc", "abc"),
    "nothing stays nothing": ("", ""),
}


@pytest.mark.parametrize(("own", "sent"), ETAGS.values(), ids=ETAGS)
def test_a_tag(running: Running, app: App, own: str, sent: str) -> None:
    for blocks in (lambda: [PAGE], parts(PAGE, PAGE)):
        answer = Answer([("etag", own), HTML, ("Accept-Ranges", "bytes"), ("X-A", "b")], blocks=blocks)
        compressed, plain = ask(running, app, answer, GZIP), ask(running, app, answer)
        assert (compressed.header("ETag"), plain.header("ETag")) == (sent, own)
        assert (compressed.header("Accept-Ranges"), plain.header("Accept-Ranges")) == (None, "bytes")
        assert compressed.header("X-A") == "b"


def test_the_end_of_the_body_is_marked_as_before(running: Running, app: App) -> None:
    for answer, framing in (
        (Answer(), "length"),
        (Answer([HTML, length_of(PAGE)]), "length"),
        (Answer(blocks=parts(PAGE, PAGE)), "chunks"),
        (Answer([HTML, length_of(PAGE * 2)], blocks=parts(PAGE, PAGE)), "chunks"),
        (Answer(blocks=lambda: [PAGE * 300]), "chunks"),
    ):
        app.answer = answer
        with running.connect() as client:
            for _ in range(2):  # the connection stays
                response = client.get("/", GZIP)
                length = str(len(response.body)) if framing == "length" else None
                assert response.header("Content-Length") == length
                assert response.header("Transfer-Encoding") == ("chunked" if framing == "chunks" else None)
                assert [name for name, _ in response.headers].count("Content-Length") <= 1


def test_a_client_of_1_0_gets_a_whole_body_compressed_and_a_stream_as_it_is(running: Running, app: App) -> None:
    whole = ask(running, app, Answer(), GZIP, "Connection: keep-alive", version="1.0")
    assert (whole.header("Content-Encoding"), whole.header("Connection")) == ("gzip", "keep-alive")
    for answer in (
        Answer(blocks=parts(PAGE, PAGE)),
        Answer([HTML, length_of(PAGE * 2)], blocks=parts(PAGE, PAGE)),
        Answer(blocks=lambda: [PAGE * 300]),
    ):
        response = ask(running, app, answer, GZIP, version="1.0")
        assert response.header("Content-Encoding") is None
        assert response.header("Vary") == "Accept-Encoding"
        assert response.body == b"".join(answer.blocks())


HEADS = {
    "one block with a length": Answer([HTML, length_of(PAGE), ("ETag", '"a"')]),
    "a length and nothing more, as in Flask": Answer([HTML, length_of(PAGE), ("ETag", '"a"')], blocks=list),
    "one block": Answer([HTML, ("ETag", '"a"')]),
    "a stream": Answer([HTML, ("ETag", '"a"')], blocks=parts(PAGE, PAGE)),
    "small": Answer([HTML, ("Content-Length", "9"), ("ETag", '"a"')], blocks=lambda: [PAGE[:9]]),
    "small without a length": Answer([HTML, ("ETag", '"a"')], blocks=lambda: [PAGE[:9]]),
    "a picture": Answer([("Content-Type", "image/png"), length_of(PAGE), ("ETag", '"a"')]),
}


@pytest.mark.parametrize("answer", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lines", [[], [GZIP]], ids=["plain", "gzip"])
def test_head_says_what_get_says_but_not_what_only_the_content_tells(
    running: Running, app: App, answer: Answer, lines: list[str]
) -> None:
    head = ask(running, app, answer, *lines, method="HEAD")
    if answer.blocks is list:
        answer = Answer(answer.headers)
    get = ask(running, app, answer, *lines)
    for name in ("Vary", "ETag", "Content-Type"):
        assert head.header(name) == get.header(name)
    assert head.header("Content-Encoding") is None
    assert head.header("Content-Length") in (None, get.header("Content-Length")), "RFC 9110 8.6"
    if get.header("Content-Encoding") is None and any(name == "Content-Length" for name, _ in answer.headers):
        assert head.header("Content-Length") is not None


def test_head_of_a_file_wrapper_is_left_as_it_is(running: Running, app: App) -> None:
    """Flask makes the wrapper for HEAD, too, and returns nothing."""

    def flask_like(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.file_wrapper"](io.BytesIO(PAGE))
        start_response("200 OK", [HTML, length_of(PAGE)])
        return []

    with serving(flask_like) as served, served.connect() as client:
        response = client.get("/", GZIP, method="HEAD")
        assert (response.header("Vary"), response.header("Content-Length")) == (None, str(len(PAGE)))


UNCHANGED = {
    "the tag that we made weak": ('W/"a"', 'W/"a"', "Accept-Encoding"),
    "it is among others": ('"b", W/"a"', 'W/"a"', "Accept-Encoding"),
    "the app's own tag": ('"a"', '"a"', None),
    "any": ("*", '"a"', None),
    "another": ('W/"ab"', '"a"', None),
}


@pytest.mark.parametrize(("known", "sent", "vary"), UNCHANGED.values(), ids=UNCHANGED)
def test_a_304_speaks_of_what_the_client_has(
    running: Running, app: App, known: str, sent: str, vary: str | None
) -> None:
    answer = Answer([("ETag", '"a"')], "304 Not Modified", blocks=list)
    response = ask(running, app, answer, GZIP, f"If-None-Match: {known}")
    assert (response.status, response.header("ETag"), response.header("Vary")) == (304, sent, vary)


# --- blocks ---


@pytest.mark.parametrize("asked", CODINGS)
@pytest.mark.parametrize("how", ["yield", "write", "length"])
def test_a_block_reaches_its_reader_before_the_next_one_is_asked_for(asked: str, how: str) -> None:
    go = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        headers = [HTML, ("Content-Length", "10")] if how == "length" else [HTML]
        write = start_response("200 OK", headers)
        if how == "write":
            write(b"first")
        else:
            yield b"first"
        assert go.wait(PATIENCE_S)
        yield b"later"

    with serving(app, compression_min_size=0) as running, running.connect() as client:
        client.send(f"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {asked}\r\n\r\n".encode())
        head = client.receive_until(b"\r\n\r\n")
        assert f"Content-Encoding: {asked}\r\n".encode() in head
        received = b""
        decoder = Decoder(asked)
        while decoder.data != b"first":
            size = int(client.receive_until(b"\r\n"), 16)
            received += client.receive_exactly(size)
            assert client.receive_exactly(2) == b"\r\n"
            decoder.feed(received[-size:])
        assert not go.is_set()
        go.set()
        while size := int(client.receive_until(b"\r\n"), 16):
            received += client.receive_exactly(size)
            assert client.receive_exactly(2) == b"\r\n"
        assert decoded(received, asked) == b"firstlater"


class Decoder:
    """Decodes as much as has come."""

    def __init__(self, coding: str) -> None:
        self.data = b""
        self._decode: Callable[[bytes], bytes]
        if coding == "gzip":
            self._decode = zlib.decompressobj(31).decompress
        elif coding == "br":
            brotli: Any = pytest.importorskip("brotli" if importlib.util.find_spec("brotli") else "brotlicffi")
            self._decode = brotli.Decompressor().process
        else:
            zstandard: Any = pytest.importorskip("zstandard")
            self._decode = zstandard.ZstdDecompressor().decompressobj().decompress

    def feed(self, data: bytes) -> None:
        self.data += self._decode(data)


@pytest.mark.parametrize("blocks", [(PAGE,), (PAGE, PAGE), (PAGE * 300,)], ids=["one", "two", "megabytes"])
def test_less_than_promised_is_cut(running: Running, app: App, blocks: tuple[bytes, ...]) -> None:
    promised = sum(map(len, blocks)) + 1
    app.answer = Answer([HTML, ("Content-Length", str(promised))], blocks=parts(*blocks))
    with running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
        answer = client.receive_all()
    assert b"\r\nTransfer-Encoding: chunked\r\n" in answer
    assert not answer.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "blocks",
    [(PAGE + b"x",), (PAGE, b"x"), (PAGE[:9], PAGE[9:] + b"x"), (PAGE[:9], PAGE[9:], b"x")],
    ids=["in one block", "in another", "in the last", "after the last"],
)
def test_more_than_promised_is_left_out(app: App, blocks: Any, caplog: pytest.LogCaptureFixture) -> None:
    app.answer = Answer([HTML, length_of(PAGE)], blocks=parts(*blocks))
    with serving(app) as running:
        with running.connect() as client:
            responses = [client.get("/", GZIP) for _ in range(2)]
        assert running.stop() == 0
    for response in responses:
        assert response.header("Content-Encoding") == "gzip"
        assert content(response) == PAGE
    assert caplog.text.count(f"more than the {len(PAGE)} bytes it promised") == 2


def test_an_app_that_fails_midway_leaves_no_whole_body(running: Running, app: App) -> None:
    def failing() -> Iterator[bytes]:
        yield PAGE
        raise ValueError("midway")

    app.answer = Answer(blocks=failing)
    with running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
        answer = client.receive_all()
    assert not answer.endswith(b"\r\n0\r\n\r\n")


def test_a_large_block_is_whole_for_a_slow_reader(running: Running, app: App) -> None:
    app.answer = Answer(blocks=lambda: [PAGE * 3000])
    with running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
        head = client.receive_until(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        inflate, size, data = zlib.decompressobj(31), -1, b""
        while size:
            size = int(client.receive_until(b"\r\n"), 16)
            data += inflate.decompress(b"".join(client.receive_exactly(1) for _ in range(min(size, 100))))
            data += inflate.decompress(client.receive_exactly(max(0, size - 100)))
            assert client.receive_exactly(2) == b"\r\n"
        assert inflate.eof
        assert data == PAGE * 3000


LARGE = st.builds(bytes.__mul__, st.binary(min_size=1, max_size=40), st.sampled_from([1000, 10_000, PIECE_BYTES // 7]))
BLOCKS = st.lists(st.binary(max_size=2000) | st.just(PAGE) | LARGE, max_size=6)


@pytest.fixture(scope="module")
def eager(app: App) -> Iterator[Running]:
    with serving(app, compression_min_size=0, limits_connection_requests=100_000) as running:
        yield running


@given(
    blocks=BLOCKS,
    asked=st.sampled_from([*CODINGS, "identity"]),
    framing=st.sampled_from(["a list", "a generator", "a generator with a length", "write()", "write() with a length"]),
    version=st.sampled_from(["1.0", "1.1"]),
    cookie=st.booleans(),
)
@hypothesis_settings(deadline=None, max_examples=150)
def test_whatever_the_app_yields_is_what_the_client_reads(
    eager: Running, app: App, blocks: list[bytes], asked: str, framing: str, version: str, cookie: bool
) -> None:
    whole = b"".join(blocks)
    headers = [HTML, length_of(whole)] if "length" in framing else [HTML]
    if framing == "a list":
        app.answer = Answer(headers, blocks=lambda: [whole])
    elif "write" in framing:
        app.answer = Answer(headers, written=tuple(blocks[:-1]), blocks=parts(*blocks[-1:]))
    else:
        app.answer = Answer(headers, blocks=parts(*blocks))
    with eager.connect() as client:
        lines = [f"Accept-Encoding: {asked}", *(["Cookie: a=b"] if cookie else [])]
        response = client.get("/", *lines, "Connection: keep-alive", version=version)
        assert content(response) == whole
        assert response.header("Content-Encoding") in (None, asked)
        if response.header("Connection") != "close":
            app.answer = Answer([], blocks=lambda: [b"next"])
            assert client.get("/").body == b"next"


# --- secrets ---

# What is asked, and what becomes of it by each setting: not compressed, by itself, or with filler.
NO, PLAIN, FILLED = "as it is", "compressed", "filled"
BREACH: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "nobody in particular": ({}, {"auto": PLAIN, "filler": PLAIN, "off": PLAIN}),
    "nobody with a query": ({"target": "/?q=a"}, {"auto": PLAIN, "filler": PLAIN, "off": PLAIN}),
    "nobody with a body": ({"method": "POST", "body": b"a"}, {"auto": PLAIN, "filler": PLAIN, "off": PLAIN}),
    "a cookie": ({"lines": ["Cookie: a=b"]}, {"auto": FILLED, "filler": FILLED, "off": PLAIN}),
    "a password": ({"lines": ["Authorization: Basic x"]}, {"auto": FILLED, "filler": FILLED, "off": PLAIN}),
    "a cookie and a query": (
        {"lines": ["Cookie: a=b"], "target": "/?q=a"}, {"auto": NO, "filler": FILLED, "off": PLAIN},
    ),
    "a password and a query": (
        {"lines": ["Authorization: Basic x"], "target": "/?q"}, {"auto": NO, "filler": FILLED, "off": PLAIN},
    ),
    "a cookie and a body": (
        {"lines": ["Cookie: a=b"], "method": "POST", "body": b"a"}, {"auto": NO, "filler": FILLED, "off": PLAIN},
    ),
    "a cookie and a body in chunks": (
        {"lines": ["Cookie: a=b", "Transfer-Encoding: chunked"], "method": "POST", "chunks": b"1\r\na\r\n0\r\n\r\n"},
        {"auto": NO, "filler": FILLED, "off": PLAIN},
    ),
    "a cookie and an empty query": (
        {"lines": ["Cookie: a=b"], "target": "/?"}, {"auto": FILLED, "filler": FILLED, "off": PLAIN},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=["auto", "filler", "off"])
def careful(request: pytest.FixtureRequest, app: App) -> Iterator[tuple[str, Running]]:
    with serving(app, compression_breach=request.param) as running:
        yield request.param, running


@pytest.mark.parametrize(("asked", "expected"), BREACH.values(), ids=BREACH)
@pytest.mark.parametrize("coding", CODINGS)
def test_secrets_and_input(
    careful: tuple[str, Running], app: App, asked: dict[str, Any], expected: dict[str, str], coding: str
) -> None:
    breach, running = careful
    app.answer = Answer()
    request = dict(asked)
    lines, chunks, target = request.pop("lines", []), request.pop("chunks", b""), request.pop("target", "/")
    responses = []
    with running.connect() as client:
        for _ in range(30):
            if chunks:
                head = "\r\n".join(["POST / HTTP/1.1", "Host: a", f"Accept-Encoding: {coding}", *lines, "", ""])
                client.send(head.encode() + chunks)
                responses.append(client.response())
            else:
                responses.append(client.get(target, f"Accept-Encoding: {coding}", *lines, **request))
    lengths = {len(response.body) for response in responses}
    for response in responses:
        assert content(response) == PAGE
        assert response.header("Vary") == "Accept-Encoding"
        assert (response.header("Content-Encoding") is None) is (expected[breach] == NO)
    assert (len(lengths) > 5) is (expected[breach] == FILLED)
    assert max(lengths) - min(lengths) < MAX_FILLER


def test_a_user_of_ours_has_secrets_too() -> None:
    """Whom a trusted proxy or the users file names, without a field that the app sees."""
    compressor = Compressor(CompressionSettings())
    plan = compressor.plan(a_head(), Request(user="ann"), whole=True)
    assert plan is not None
    assert 1 <= plan.filler <= MAX_FILLER
    assert compressor.plan(a_head(), Request(user="ann", query="q"), whole=True) is None


@pytest.mark.parametrize("blocks", [(PAGE, PAGE), (PAGE * 300,)], ids=["a stream", "megabytes"])
def test_secrets_in_parts_are_not_compressed_since_each_part_shows_its_length(
    careful: tuple[str, Running], app: App, blocks: tuple[bytes, ...]
) -> None:
    breach, running = careful
    answer = Answer([HTML, length_of(b"".join(blocks))], blocks=parts(*blocks))
    secret, public = ask(running, app, answer, GZIP, "Cookie: a=b"), ask(running, app, answer, GZIP)
    assert (secret.header("Content-Encoding") is None) is (breach == "auto")
    assert public.header("Content-Encoding") == "gzip"
    assert content(secret) == content(public) == b"".join(blocks)
    assert secret.header("Vary") == "Accept-Encoding"


def test_every_filler_there_can_be_is_made() -> None:
    compressor = Compressor(CompressionSettings())
    fillers = set()
    for _ in range(5000):
        plan = compressor.plan(a_head(), Request({"HTTP_COOKIE": "a"}), whole=True)
        assert plan is not None
        fillers.add(plan.filler)
    assert fillers == set(range(1, MAX_FILLER + 1))


@dataclass
class Request:
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    user: str = ""
    body_rcv: Any = None

    def __post_init__(self) -> None:
        self.headers.setdefault("HTTP_ACCEPT_ENCODING", "gzip")


def a_head() -> Head:
    return Head("200 OK", ["Content-Type: text/html"], 5000, False)


def test_a_client_that_never_repeats_itself_costs_no_memory() -> None:
    compressor = Compressor(CompressionSettings())
    for number in range(1000):
        plan = compressor.plan(a_head(), Request({"HTTP_ACCEPT_ENCODING": f"gzip, x{number}"}), whole=True)
        assert plan is not None
        assert len(compressor._chosen) <= 256
    compressor.plan(a_head(), Request({"HTTP_ACCEPT_ENCODING": "gzip".ljust(ACCEPT_ENCODING_MAX + 1)}), whole=True)
    assert max(len(accept) for accept, _ in compressor._chosen) <= ACCEPT_ENCODING_MAX
    assert "remembered" in repr(compressor)


# --- Flask, and what is made with it ---


def flask_app() -> flask.Flask:
    app = flask.Flask("compressed")

    @app.get("/page")
    def page() -> flask.Response:
        response = flask.make_response(PAGE.decode())
        response.add_etag()
        response.headers["Vary"] = "Cookie"
        return response.make_conditional(flask.request)

    @app.get("/stream")
    def stream() -> flask.Response:
        return flask.Response((PAGE for _ in range(3)), mimetype="text/plain")

    @app.get("/rows")
    def rows() -> Any:
        return flask.jsonify([{"number": number} for number in range(500)])

    @app.get("/events")
    def events() -> flask.Response:
        return flask.Response((b"data: %d\n\n" % n for n in range(300)), mimetype="text/event-stream")

    @app.get("/file")
    def file() -> flask.Response:
        return flask.send_file(Path(__file__).resolve(), mimetype="text/plain", conditional=True)

    return app


@pytest.fixture(scope="module")
def flasked() -> Iterator[Running]:
    with serving(flask_app()) as running:
        yield running


@pytest.mark.parametrize("asked", CODINGS)
def test_flask_matches_the_tag_that_we_made_weak(flasked: Running, asked: str) -> None:
    with flasked.connect() as client:
        plain, first = client.get("/page"), client.get("/page", f"Accept-Encoding: {asked}")
        weak = first.header("ETag")
        assert weak == f"W/{plain.header('ETag')}"
        assert (content(first), first.header("Vary")) == (PAGE, "Cookie, Accept-Encoding")
        again = client.get("/page", f"Accept-Encoding: {asked}", f"If-None-Match: {weak}")
        assert (again.status, again.header("ETag"), again.body) == (304, weak, b"")
        assert again.header("Vary") == "Cookie, Accept-Encoding"
        assert client.get("/page", f"If-None-Match: {plain.header('ETag')}").status == 304
        head = client.get("/page", f"Accept-Encoding: {asked}", method="HEAD")
        assert (head.header("ETag"), head.header("Vary")) == (weak, "Cookie, Accept-Encoding")


@pytest.mark.parametrize("asked", CODINGS)
def test_flask_streams_and_lists(flasked: Running, asked: str) -> None:
    with flasked.connect() as client:
        stream = client.get("/stream", f"Accept-Encoding: {asked}")
        assert (content(stream), stream.header("Content-Encoding")) == (PAGE * 3, asked)
        rows = client.get("/rows", f"Accept-Encoding: {asked}")
        assert (len(json.loads(content(rows))), rows.header("Content-Encoding")) == (500, asked)
        assert rows.header("Content-Length") == str(len(rows.body))
        events = client.get("/events", f"Accept-Encoding: {asked}")
        assert (events.header("Content-Encoding"), events.header("Vary")) == (None, None)
        assert events.body.endswith(b"data: 299\n\n")


def test_files_of_flask_are_left_as_they_are(flasked: Running) -> None:
    whole = Path(__file__).read_bytes()
    with flasked.connect() as client:
        get = client.get("/file", GZIP)
        assert (get.body, get.header("Content-Encoding"), get.header("Vary")) == (whole, None, None)
        part = client.get("/file", GZIP, "Range: bytes=5-2999")
        assert (part.status, part.body) == (206, whole[5:3000])
        head = client.get("/file", GZIP, method="HEAD")
        for name in ("Content-Length", "ETag", "Vary", "Content-Type"):
            assert head.header(name) == get.header(name)


def real(name: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def httpbin() -> Iterator[Running]:
    from httpbin import app

    with serving(app) as running:
        yield running


HTTPBIN = {
    "/html": "compressed",
    "/xml": "small",
    "/json": "small",
    "/gzip": "gzip",
    "/deflate": "deflate",
    "/brotli": "br",
    "/image/png": "as it is",
    "/image/svg": "compressed",
    "/bytes/5000": "as it is",
    "/stream/20": "compressed",
    "/stream-bytes/5000": "as it is",
    "/range/5000": "as it is",
    "/encoding/utf8": "compressed",
    "/links/50/0": "compressed",
    "/cache": "small",
    "/drip?numbytes=5000&duration=0": "as it is",
}


@pytest.mark.peer
@real("httpbin")
@pytest.mark.parametrize("path", HTTPBIN)
@pytest.mark.parametrize("asked", CODINGS)
def test_httpbin(httpbin: Running, path: str, asked: str) -> None:
    what = HTTPBIN[path]
    with httpbin.connect() as client:
        plain, response = client.get(path), client.get(path, f"Accept-Encoding: {asked}")
        given_ = response.header("Content-Encoding")
        assert plain.status == response.status == 200
        if what == "compressed":
            assert given_ == asked
            assert len(response.body) < len(plain.body)
            if not path.startswith(("/stream", "/bytes")):
                assert content(response) == plain.body
        else:
            assert given_ == (what if what in ("gzip", "deflate", "br") else None)
            assert response.header("Vary") is None
        again = client.get("/cookies")
        assert again.status == 200


@pytest.mark.peer
@real("httpbin")
def test_a_range_of_httpbin(httpbin: Running) -> None:
    with httpbin.connect() as client:
        response = client.get("/range/26", GZIP, "Range: bytes=1-3")
        assert (response.status, response.body, response.header("Content-Encoding")) == (206, b"bcd", None)


@pytest.fixture(scope="module")
def dash_app() -> Any:
    import dash

    app = dash.Dash("compressed")
    app.layout = dash.html.Div([dash.html.P(f"Paragraph {number}") for number in range(100)])
    return app.server


@pytest.mark.peer
@real("dash")
@pytest.mark.parametrize("asked", CODINGS)
def test_dash(dash_app: Any, asked: str) -> None:
    with serving(dash_app) as running, running.connect() as client:
        for path in ("/", "/_dash-layout", "/_dash-dependencies"):
            plain, response = client.get(path), client.get(path, f"Accept-Encoding: {asked}")
            assert len(content(response)) == len(plain.body)
            assert path == "/" or content(response) == plain.body, "the page has a random name in it"
            assert (response.header("Content-Encoding") == asked) is (len(plain.body) >= 1024)
        scripts = [part.split('"')[0] for part in client.get("/").body.decode().split('<script src="')[1:]]
        assert scripts
        for script in scripts:
            assert content(client.get(script, f"Accept-Encoding: {asked}")) == client.get(script).body
