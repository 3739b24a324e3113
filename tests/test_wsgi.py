"""WSGI as PEP 3333 has it: what an app is given, what it may do, and what becomes of it when it breaks a rule.

`WAITRESS` says, for each behaviour of a WSGI server that waitress's functional tests state, that ours is the same, or
that it differs and why. Each entry names the test of ours that shows it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import flask
import pytest

from hardserve.protocol import ClientDisconnectedError
from tests import test_corpus, test_http
from tests.support import PATIENCE_S, Client, Response, Running, serving, spoken

SAME = ""

pytestmark = pytest.mark.usefixtures("transport")

# What waitress 3.0.2's functional tests state -> (the test of ours that shows it, SAME or why ours differs).
WAITRESS: dict[str, tuple[str, str]] = {
    "every response has a Date": ("test_http.test_a_response_says_1_1_and_when_it_was_made", SAME),
    "every response has Server: waitress": (
        "test_http.test_a_response_says_1_1_and_when_it_was_made",
        "No Server field: it tells an attacker what to try and a client nothing.",
    ),
    "the status line repeats the client's version": (
        "test_http.test_a_response_says_1_1_and_when_it_was_made",
        (
            "Always HTTP/1.1, the highest version it conforms to (RFC 9110 2.5, 6.2); what a 1.0 client "
            "cannot read (chunks, 100) it is never sent."
        ),
    ),
    "a folded Host line is 400": ("test_corpus.test_over_a_socket", SAME),
    "a GET may have a body": ("test_wsgi.test_a_get_may_have_a_body", SAME),
    "Content-Length: 0 is an empty body": ("test_wsgi.test_a_length_of_0_is_an_empty_body", SAME),
    "a body need not end in a line end": ("test_corpus.test_over_a_socket", SAME),
    "many clients at once": ("test_wsgi.test_fifty_clients_at_once", SAME),
    "a chunked request reaches the app with its Content-Length": ("test_corpus.test_over_a_socket", SAME),
    "an HTTP/1.1 request needs no Host": (
        "test_corpus.test_over_a_socket",
        "400: RFC 9112 3.2 demands it of servers, and a virtual host is chosen by it.",
    ),
    "a broken chunk is 400, and the connection closes": ("test_refusals.test_is_produced", SAME),
    "the answer to a broken chunk says what is wrong with it": (
        "test_refusals.test_is_produced",
        "One fixed text for each refusal: never a byte of the request, and no oracle for who probes the parser.",
    ),
    "a chunk extension with an empty value is 400": (
        "test_wsgi.test_a_chunk_extension_with_an_empty_value_is_ignored",
        (
            "Ignored, as RFC 9112 7.1.1 asks for what is not understood; it moves no boundary, since CR and LF may not "
            "stand in it and its length is capped."
        ),
    ),
    "1.0 closes by default": ("test_http.test_the_end_of_a_body_is_marked", SAME),
    "1.0 with keep-alive stays open and is told so": (
        "test_http.test_the_end_of_a_body_is_marked",
        "The same, but in lower case (keep-alive); connection options are case-insensitive (RFC 9110 7.6.1).",
    ),
    "1.1 stays open by default, also when asked": ("test_http.test_a_connection_serves_request_after_request", SAME),
    "1.1 with close closes and says so": ("test_http.test_nothing_is_served_after_a_request_that_closes", SAME),
    "pipelined requests are answered in order": ("test_http.test_500_requests_in_one_send_are_answered_in_order", SAME),
    "Expect: 100-continue is answered with 100, also when the body has come with the head": (
        "test_http.test_a_client_that_did_not_wait_is_answered_once",
        "100 only to a client that still waits: RFC 9110 10.1.1 lets a server omit it once some of the body has come.",
    ),
    "a body shorter than its length closes the connection": ("test_wsgi.test_a_body_shorter_than_promised", SAME),
    "a body longer than its length is truncated and keeps the connection": (
        "test_wsgi.test_a_body_longer_than_promised",
        SAME,
    ),
    "write() obeys the same rules as an iterable": ("test_wsgi.test_write_obeys_content_length", SAME),
    "one block gives a response its length": ("test_http.test_the_end_of_a_body_is_marked", SAME),
    "a 1.0 response without a length ends with its connection": ("test_http.test_the_end_of_a_body_is_marked", SAME),
    "a 1.1 response without a length is chunked, and closes the connection": (
        "test_http.test_the_end_of_a_body_is_marked",
        "Chunked, and the connection stays: the last chunk says where the response ends (RFC 9112 9.3).",
    ),
    "chunk sizes are in upper case": (
        "test_wsgi.test_each_block_is_a_chunk",
        "In lower case; HEXDIG is case-insensitive (RFC 5234 2.3).",
    ),
    "too large a head is 431, and the connection closes": (
        "test_http.test_a_head_at_the_cap_is_served_and_one_past_it_is_not",
        "The same, but 414 when it is the request line, and at the cap it is still served.",
    ),
    "bytes after a request that closes are dropped": (
        "test_http.test_nothing_is_served_after_a_request_that_closes",
        SAME,
    ),
    "bytes after a request that does not close are the next request": (
        "test_http.test_what_precedes_a_malformed_request_is_answered",
        "The same; garbage is 400 as soon as it cannot be a request line, where waitress waits for 431.",
    ),
    "too large a body is 413, and the connection closes": (
        "test_http.test_a_body_at_the_cap_is_served_and_one_past_it_is_not",
        "The same, but at the cap it is still served, and a client that still sends can read its answer.",
    ),
    "an exception before the first block is 500": ("test_wsgi.test_an_exception_before_the_first_block_is_500", SAME),
    "an exception before the first block closes the connection": (
        "test_http.test_an_exception_before_the_head_is_a_500_with_the_requests_id",
        "It stays: the request was read to its end, so the next one starts where it should.",
    ),
    "a 500 shows the traceback if expose_tracebacks is set": (
        "test_http.test_an_exception_before_the_head_is_a_500_with_the_requests_id",
        "Never: the client gets the request's id, and the log has the traceback under it.",
    ),
    "a str from write() or an iterable closes the connection after an empty 200": (
        "test_wsgi.test_breaks_a_rule_and_is_a_500",
        "500: the head has not been sent yet, so the client can be told.",
    ),
    "wsgi.file_wrapper serves a file, a file without seek, and any object with read": (
        "test_wsgi.test_file_wrapper_serves",
        SAME,
    ),
    "a seekable file without a Content-Length is given one": (
        "test_wsgi.test_file_wrapper_serves",
        (
            "Chunked: PEP 3333 asks for iteration, and a size read now may be wrong when the file is sent. Flask and "
            "Werkzeug set Content-Length for files themselves."
        ),
    ),
    "a Content-Length longer than a seekable file is corrected": (
        "test_wsgi.test_a_body_shorter_than_promised",
        "The response is cut, as for any other short body: the app promised bytes that are not there.",
    ),
    "a file is truncated to a shorter Content-Length": ("test_wsgi.test_a_file_is_truncated_to_its_length", SAME),
    "X-Forwarded-* of a trusted proxy are applied, of others cleared": (
        "test_wsgi.test_forwarding_headers_change_nothing",
        "From who is no trusted proxy they change nothing in the environ, and the app does not see them.",
    ),
}


@pytest.mark.plain_only("of what is in these files")
@pytest.mark.parametrize("behaviour", WAITRESS)
def test_the_test_that_shows_it_exists(behaviour: str) -> None:
    module, _, name = WAITRESS[behaviour][0].partition(".")
    found: Any = {"test_http": test_http, "test_corpus": test_corpus, "test_wsgi": sys.modules[__name__]}
    if module == "test_refusals":
        from tests import test_refusals

        found[module] = test_refusals
    assert callable(getattr(found[module], name))


# --- helpers ---


def ask(app: Any, request: bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", **settings: Any) -> Response:
    """Serve `app` for one request and return the response to it."""
    with serving(app, **settings) as running:
        with running.connect() as client:
            client.send(request)
            response = client.response(head_only=request.startswith(b"HEAD"))
        assert running.stop() == 0  # and the app is done
        return response


def environ_of(request: bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", **settings: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", [])
        return []

    assert ask(app, request, **settings).status == 200
    return seen


def post(body: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"POST /p HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *lines, b"", body])


# --- the environ ---


@pytest.mark.plain_only("of the scheme; test_tls.py says what there is over TLS")
def test_the_environ_is_complete_and_of_the_right_types() -> None:
    environ = environ_of(post(b"{}", b"Content-Type: a/b", b"X-Some-Thing: c"))
    assert type(environ) is dict
    port = environ.pop("SERVER_PORT")
    remote_port = environ.pop("REMOTE_PORT")
    assert port.isdecimal()
    assert remote_port.isdecimal()
    assert environ.pop("wsgi.input").read
    assert environ.pop("wsgi.errors") is sys.stderr
    assert callable(environ.pop("wsgi.file_wrapper"))
    assert environ.pop("hardserve.client_disconnected")() in (True, False)
    assert environ.pop("HTTP_X_REQUEST_ID")
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/p",
        "QUERY_STRING": "",
        "REQUEST_URI": "/p",
        "CONTENT_TYPE": "a/b",
        "CONTENT_LENGTH": "2",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "hardserve",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "a",
        "HTTP_X_SOME_THING": "c",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "hardserve.max_body": 16 << 20,
    }
    assert all(type(value) is str for key, value in environ.items() if key.isupper())


def test_addresses_are_those_of_the_sockets() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", [])
        return []

    with serving(app) as running, running.connect("127.0.0.9") as client:
        client.get("/")
        assert (seen["REMOTE_ADDR"], int(seen["REMOTE_PORT"])) == client.socket.getsockname()
        assert (seen["SERVER_NAME"], int(seen["SERVER_PORT"])) == ("127.0.0.1", running.port)


def test_a_unix_socket_has_names_too(tmp_path: Path) -> None:
    import socket

    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", [])
        return [b"over unix"]

    path = str(tmp_path / "s")
    with serving(validator(app_of(app)), bind=f"unix:{path}"), socket.socket(socket.AF_UNIX) as connected:
        connected.connect(path)
        connected.settimeout(PATIENCE_S)
        client = Client(spoken(connected))
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.receive_all().endswith(b"over unix")
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("unix:", "")
    assert seen["SERVER_NAME"]
    assert type(seen["SERVER_PORT"]) is str


def app_of(app: Any) -> Any:
    """Return `app` with a Content-Type, which the validator asks for."""

    def typed(environ: dict[str, Any], start_response: Any) -> Any:
        return app(environ, lambda status, headers: start_response(status, [("Content-Type", "text/plain"), *headers]))

    return typed


ENVIRONS: dict[str, tuple[bytes, dict[str, object]]] = {
    "a path and a query": (b"GET /a%20b?c=%20 HTTP/1.1\r\nHost: a\r\n\r\n",
                           {"PATH_INFO": "/a b", "QUERY_STRING": "c=%20", "REQUEST_URI": "/a%20b?c=%20"}),
    "UTF-8 in a path": (b"GET /caf%C3%A9 HTTP/1.1\r\nHost: a\r\n\r\n", {"PATH_INFO": "/caf\xc3\xa9"}),
    "latin-1 in a field": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: caf\xe9\r\n\r\n", {"HTTP_X_A": "caf\xe9"}),
    "repeated fields": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\nx-a: c\r\n\r\n", {"HTTP_X_A": "b, c"}),
    "a length and a type are not HTTP_": (post(b"", b"Content-Type: a/b"),
                                          {"HTTP_CONTENT_LENGTH": None, "HTTP_CONTENT_TYPE": None}),
    "no length without a body": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", {"CONTENT_LENGTH": None, "CONTENT_TYPE": None}),
    "underscores cannot pass for dashes": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX_Api_Key: evil\r\nCONTENT_LENGTH: 9\r\nX-Api-Key: good\r\n\r\n",
        {"HTTP_X_API_KEY": "good", "CONTENT_LENGTH": None},
    ),
    "a coding is gone and a length is there": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        {"HTTP_TRANSFER_ENCODING": None, "CONTENT_LENGTH": "3"},
    ),
    "1.0": (b"GET / HTTP/1.0\r\n\r\n", {"SERVER_PROTOCOL": "HTTP/1.0", "HTTP_HOST": None}),
    "the host of an absolute target is the Host": (b"GET http://b.c:80/d HTTP/1.0\r\n\r\n",
                                                   {"PATH_INFO": "/d", "HTTP_HOST": "b.c:80"}),
    "a field cannot name a key of WSGI": (b"GET / HTTP/1.1\r\nHost: a\r\nwsgi.multiprocess: yes\r\n\r\n",
                                          {"wsgi.multiprocess": False}),
    "an id in the environ is the one made if the one given is unfit": (
        b"GET / HTTP/1.0\r\nX-Request-ID: fit\r\n\r\n", {"HTTP_X_REQUEST_ID": "fit"}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "expected"), ENVIRONS.values(), ids=ENVIRONS)
def test_the_environ_says(request_: bytes, expected: dict[str, object]) -> None:
    environ = environ_of(request_)
    assert {key: environ.get(key) for key in expected} == expected


def test_one_thread_is_not_many() -> None:
    assert environ_of(threads=1, timeouts_app=0)["wsgi.multithread"] is False
    # One that hangs is replaced, and may come back.
    assert environ_of(threads=1)["wsgi.multithread"] is True


def test_forwarding_headers_change_nothing(transport: str) -> None:
    environ = environ_of(
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\n"
        b"X-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /x\r\nForwarded: for=1.2.3.4\r\n\r\n"
    )
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert (environ["HTTP_HOST"], environ["SCRIPT_NAME"]) == ("a", "")
    assert environ["wsgi.url_scheme"] == {"plain": "http", "tls": "https"}[transport]
    assert [key for key in environ if "FORWARDED" in key] == []


def test_an_app_may_change_its_environ_without_the_next_request_seeing_it() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        found = "left.over" in environ
        environ["left.over"] = environ["SCRIPT_NAME"] = environ["wsgi.url_scheme"] = "x"
        start_response("200 OK", [])
        return [str(found).encode()]

    with serving(app) as running, running.connect() as client:
        assert [client.get("/").body for _ in range(3)] == [b"False"] * 3


# --- wsgi.input ---

READS: dict[str, Callable[[Any], Any]] = {
    "read()": lambda f: f.read(),
    "read(-1)": lambda f: f.read(-1),
    "read(n) past the end": lambda f: f.read(10_000_000),
    "read(n) in pieces": lambda f: b"".join(iter(lambda: f.read(7), b"")),
    "readline()": lambda f: b"".join(iter(f.readline, b"")),
    "readline(n)": lambda f: b"".join(iter(lambda: f.readline(3), b"")),
    "readlines()": lambda f: b"".join(f.readlines()),
    "iteration": b"".join,
}


@pytest.mark.parametrize("size", [0, 40, 9000, 20_000], ids=lambda size: f"{size} bytes")
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_wsgi_input_ends_where_the_body_does(read: Callable[[Any], Any], size: int) -> None:
    body = (b"line\n" * 4000)[:size]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        data = read(environ["wsgi.input"])
        assert environ["wsgi.input"].read(1) == b""
        assert environ["wsgi.input"].readline() == b""
        start_response("200 OK", [])
        return [data]

    assert ask(app, post(body) + b"GET /trailing HTTP/1.1\r\n", limits_body_memory="10KiB").body == body


def test_wsgi_input_is_empty_without_a_body() -> None:
    assert environ_of()["wsgi.input"].read() == b""


def test_a_get_may_have_a_body() -> None:
    environ = environ_of(b"GET / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
    assert environ["CONTENT_LENGTH"] == "5"


def test_a_length_of_0_is_an_empty_body() -> None:
    environ = environ_of(b"GET / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    assert environ["CONTENT_LENGTH"] == "0"
    assert environ["wsgi.input"].read() == b""


def test_what_an_app_does_not_read_is_not_the_next_request() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with serving(app) as running, running.connect() as client:
        client.send(post(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n") + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [client.response().body for _ in range(2)] == [b"/p", b"/next"]


def test_a_chunk_extension_with_an_empty_value_is_ignored() -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=\r\na\r\n0\r\n\r\n"
    assert environ_of(request)["CONTENT_LENGTH"] == "1"


def test_fifty_clients_at_once() -> None:
    together = threading.Barrier(8)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.05)  # some of them are in the app at the same time
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with serving(app, threads=8) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(running.connect()) for _ in range(50)]
        for number, client in enumerate(clients):
            client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        assert [client.response().body for client in clients] == [b"/%d" % number for number in range(50)]


# --- the response ---


class Blocks:
    """An iterable that counts how often it is closed."""

    def __init__(self, *blocks: Any, fail: BaseException | None = None, in_close: Exception | None = None) -> None:
        self.blocks, self.fail, self.in_close = blocks, fail, in_close
        self.closes = 0
        self.asked = 0

    def __iter__(self) -> Iterator[Any]:
        for block in self.blocks:
            self.asked += 1
            yield block
        if self.fail is not None:
            raise self.fail

    def close(self) -> None:
        self.closes += 1
        if self.in_close is not None:
            raise self.in_close


CLOSED: dict[str, tuple[list[tuple[str, str]], Blocks]] = {
    "after its last block": ([], Blocks(b"a", b"b")),
    "after one block": ([], Blocks(b"a")),
    "after none": ([], Blocks()),
    "after all that was promised": ([("Content-Length", "1")], Blocks(b"a")),
    "after more than was promised": ([("Content-Length", "1")], Blocks(b"a", b"b")),
    "after less than was promised": ([("Content-Length", "3")], Blocks(b"a", b"b")),
    "when it fails at once": ([], Blocks(fail=ValueError("x"))),
    "when it fails midway": ([], Blocks(b"a", fail=ValueError("x"))),
    "when it yields what it may not": ([], Blocks("a")),
    "when it yields what it may not midway": ([], Blocks(b"a", "b")),
    "when its head is unfit": ([("Content-Length", "x")], Blocks(b"a")),
    "when it ends its connection": ([("Connection", "close")], Blocks(b"a")),
    "also if that fails": ([], Blocks(b"a", in_close=ValueError("x"))),
}


@pytest.mark.parametrize(("headers", "blocks"), CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_close_is_called_exactly_once(method: str, headers: Any, blocks: Blocks) -> None:
    blocks.closes = 0

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/next":
            start_response("200 OK", [])
            return [b"next"]
        try:
            start_response("200 OK", headers)
        except Exception:
            start_response("500 Oh", [], sys.exc_info())
        return blocks

    with serving(app) as running:
        with running.connect() as client:
            client.send(f"{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            test_http.read_rest(client)
        with running.connect() as client:
            assert client.get("/next").body == b"next"
        running.log.wait_for(2)
        assert running.stop() == 0
    assert blocks.closes == 1


def test_a_head_request_does_not_ask_for_what_is_not_sent() -> None:
    blocks = Blocks(b"a", b"b", b"c")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return blocks

    ask(app, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (blocks.asked, blocks.closes) == (1, 1)


def test_a_body_shorter_than_promised() -> None:
    blocks = Blocks(b"123", b"45")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "9")])
        return blocks

    with serving(app) as running:
        response = running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"Content-Length: 9\r\n" in response
        assert response.endswith(b"\r\n\r\n12345")
        assert running.log.wait_for(1)[0].refusal == "app_failed_midway"


def test_a_body_longer_than_promised(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "4")])
        return {"/1": [b"12345"], "/2": iter([b"123", b"45"]), "/3": iter([b"1234", b"5", b"6"])}[environ["PATH_INFO"]]

    with serving(app) as running:
        with running.connect() as client:
            assert [client.get(f"/{number}").body for number in (1, 2, 3)] == [b"1234"] * 3
        assert running.stop() == 0
    assert caplog.text.count("more than the 4 bytes it promised") == 3


def test_each_block_is_a_chunk() -> None:
    with serving(lambda e, s: (s("200 OK", []), iter([b"a" * 10, b"", b"b"]))[1]) as running:
        response = running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert response.endswith(b"\r\n\r\na\r\naaaaaaaaaa\r\n1\r\nb\r\n0\r\n\r\n")


def test_write_and_an_iterable_follow_each_other() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"a")
        write(b"")
        write(b"b")
        return [b"c"]

    assert ask(app).body == b"abc"


@pytest.mark.parametrize(
    ("length", "body", "refusal"),
    [
        ("9", b"12345678", "app_failed_midway"),
        ("9", b"123456789", ""),
        ("9", b"1234567890", ""),
        (None, b"123456789", ""),
    ],
)
def test_write_obeys_content_length(length: str | None, body: bytes, refusal: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", length)] if length else [])
        write(body[:5])
        write(body[5:])
        return []

    with serving(app) as running:
        response = running.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert response.endswith(b"\r\n\r\n" + body[:9])
        assert running.log.wait_for(1)[0].refusal == refusal


def test_start_response_may_be_called_by_the_first_next() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("201 Created", [("X-A", "b")])
        yield b""
        yield b"later"

    response = ask(app)
    assert (response.status, response.header("X-A"), response.body) == (201, "b", b"later")


def test_a_head_can_be_replaced_with_exc_info_until_it_is_sent() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-A", "b"), ("Content-Length", "100")])
        try:
            raise ValueError("x")  # noqa: TRY301
        except ValueError:
            start_response("503 Sorry", [("X-C", "d")], sys.exc_info())
        return [b"sorry"]

    response = ask(app)
    assert (response.status, response.header("X-A"), response.header("X-C")) == (503, None, "d")
    assert (response.header("Content-Length"), response.body) == ("5", b"sorry")


def test_exc_info_is_raised_again_once_the_head_is_sent() -> None:
    seen: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"half"
        try:
            raise ValueError("the cause")  # noqa: TRY301
        except ValueError:
            try:
                start_response("500 Oh", [], sys.exc_info())
            except ValueError as error:
                seen.append(error)
                raise

    with serving(app) as running:
        response = running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert response.endswith(b"4\r\nhalf\r\n")
        assert running.log.wait_for(1)[0].refusal == "app_failed_midway"
    assert [str(error) for error in seen] == ["the cause"]


def raising(error: BaseException) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        raise error

    return app


def yielding(*blocks: Any, status: Any = "200 OK", headers: Any = ()) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(headers))
        return iter(blocks)

    return app


def returning(value: Any) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return value

    return app


def twice(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def writing_text(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])("text")
    return []


def late(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    yield b"a block"
    start_response("200 OK", [])


BROKEN: dict[str, Any] = {
    "an Exception": raising(ValueError("x")),
    "SystemExit": raising(SystemExit(3)),
    "KeyboardInterrupt": raising(KeyboardInterrupt()),
    "GeneratorExit": raising(GeneratorExit()),
    "StopIteration": raising(StopIteration()),
    "a BaseException": raising(BaseException("x")),
    "ConnectionError of the app's own": raising(ConnectionResetError("to the database")),
    "start_response never called": lambda environ, start_response: [b"x"],
    "start_response never called, no block": lambda environ, start_response: [],
    "start_response called after a block": late,
    "start_response called twice": twice,
    "None for an iterable": returning(None),
    "str for an iterable": returning("text"),
    "bytes for an iterable": returning(b"text"),
    "str for a block": yielding("text"),
    "bytearray for a block": yielding(bytearray(b"text")),
    "int for a block": yielding(5),
    "str for write()": writing_text,
    "bytes for a status": yielding(b"x", status=b"200 OK"),
    "a status without a number": yielding(b"x", status="OK"),
    "a status of two digits": yielding(b"x", status="20 OK"),
    "a status that runs on": yielding(b"x", status="2000 OK"),
    "an informational status": yielding(b"x", status="100 Continue"),
    "an int for a status": yielding(b"x", status=200),
    "bytes for a header": yielding(b"x", headers=[(b"X", "y")]),
    "an int for a header value": yielding(b"x", headers=[("X", 5)]),
    "three for a header": yielding(b"x", headers=[("X", "y", "z")]),
    "a Content-Length that is no number": yielding(b"x", headers=[("Content-Length", "x")]),
    "a negative Content-Length": yielding(b"x", headers=[("Content-Length", "-1")]),
    "two Content-Lengths": yielding(b"x", headers=[("Content-Length", "1"), ("content-length", "1")]),
    "a line in a header value": yielding(b"x", headers=[("X", "y\r\nSet-Cookie: z")]),
    "a CR in a header value": yielding(b"x", headers=[("X", "y\rz")]),
    "an LF in a header value": yielding(b"x", headers=[("X", "y\nz")]),
    "NUL in a header value": yielding(b"x", headers=[("X", "y\0z")]),
    "a line in a header name": yielding(b"x", headers=[("X\r\nSet-Cookie", "y")]),
    "a line in a status": yielding(b"x", status="200 OK\r\nSet-Cookie: z"),
    "an LF in a status": yielding(b"x", status="200 OK\nX: z"),
    "a header outside latin-1": yielding(b"x", headers=[("X", "\u20ac")]),
    "an empty header name": yielding(b"x", headers=[("", "y")]),
    "a space in a header name": yielding(b"x", headers=[("X Y", "z")]),
    "a colon in a header name": yielding(b"x", headers=[("X: y", "z")]),
}


@pytest.fixture(scope="module")
def broken(transport: str) -> Iterator[Running]:
    apps = dict(enumerate(BROKEN.values()))

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"][1:]
        if path == "next":
            start_response("200 OK", [])
            return [b"alive"]
        return apps[int(path)](environ, start_response)

    with serving(app, threads=1) as running:
        yield running


@pytest.mark.parametrize("what", BROKEN)
def test_breaks_a_rule_and_is_a_500(broken: Running, what: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "hardserve"), broken.connect() as client:
        response = client.get(f"/{list(BROKEN).index(what)}", "X-Request-ID: id-1")
        assert response.status == 500
        assert response.body.endswith(b"Request id: id-1\n")
        assert [name.lower() for name, _ in response.headers].count("content-length") == 1
        assert response.header("Set-Cookie") is None
        assert client.get("/next").body == b"alive"


def test_an_exception_before_the_first_block_is_500() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-A", "b")])
        yield b""
        raise ValueError("x")

    response = ask(app)
    assert (response.status, response.header("X-A")) == (500, None)


def test_an_exception_after_the_last_byte_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    blocks = Blocks(b"all", fail=ValueError("afterwards"))
    response = ask(lambda e, s: (s("200 OK", [("Content-Length", "3")]), blocks)[1])
    assert response.body == b"all"
    assert "afterwards" in caplog.text


FITS: dict[str, tuple[str, list[tuple[str, str]], str]] = {
    "a status without a phrase": ("404", [], "404 Not Found"),
    "a status with an empty phrase": ("404 ", [], "404 Not Found"),
    "a status nobody knows": ("299", [], "299 "),
    "a phrase of one's own": ("200 Fine, thanks", [], "200 Fine, thanks"),
    "latin-1 in a phrase": ("200 Caf\xe9", [], "200 Caf\xe9"),
    "latin-1 in a value": ("200 OK", [("X", "caf\xe9")], "200 OK"),
    "an empty value": ("200 OK", [("X", "")], "200 OK"),
    "a value with a colon": ("200 OK", [("X", "a: b")], "200 OK"),
    "the same field twice": ("200 OK", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], "200 OK"),
    "a Date of one's own": ("200 OK", [("date", "Thu, 01 Jan 1970 00:00:00 GMT")], "200 OK"),
    "a Server of one's own": ("200 OK", [("Server", "mine")], "200 OK"),
}


@pytest.mark.parametrize(("status", "headers", "expected"), FITS.values(), ids=FITS)
def test_a_head_goes_out_as_the_app_wrote_it(status: str, headers: Any, expected: str) -> None:
    with serving(yielding(b"x", status=status, headers=headers)) as running:
        head = running.exchange(b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[0].decode("latin-1")
    line, *lines = head.split("\r\n")
    assert line == f"HTTP/1.1 {expected}"
    for name, value in headers:
        assert lines.count(f"{name}: {value}") == 1
        assert name == "Set-Cookie" or sum(other.lower().startswith(name.lower() + ":") for other in lines) == 1


# --- what belongs to the connection ---


def test_what_an_app_may_not_say_of_the_connection_is_left_out_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        relayed = [("transfer-encoding", "chunked"), ("Keep-Alive", "timeout=5"), ("Connection", "keep-alive, Upgrade")]
        start_response("200 OK", [*relayed, ("Upgrade", "h2c"), ("Trailer", "X"), ("X-A", "b")])
        return [b"body"]

    with serving(app) as running, running.connect() as client:
        for _ in range(100):
            response = client.get("/")
            assert (response.status, response.body, response.header("X-A")) == (200, b"body", "b")
            assert response.header("Content-Length") == "4"
            for name in ("Transfer-Encoding", "Keep-Alive", "Connection", "Upgrade", "Trailer"):
                assert response.header(name) is None
    for name in ("transfer-encoding", "Keep-Alive", "Connection", "Upgrade", "Trailer"):
        assert caplog.text.count(f"the header {name} is hop-by-hop") == 1


def test_each_server_tells_of_it(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert ask(yielding(b"x", headers=[("TE", "x")])).body == b"x"
    assert caplog.text.count("the header TE is hop-by-hop") == 2


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("blocks", [lambda: [b"all"], lambda: iter([b"a", b"ll"])], ids=["one block", "a stream"])
def test_a_connection_that_the_app_ends_is_closed_after_the_response(version: str, blocks: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Connection", "Close")])
        return blocks()

    with serving(app) as running, running.connect() as client:
        response = client.get("/", "Connection: keep-alive", version=version)
        assert (response.body, response.header("Connection")) == (b"all", "close")
        assert client.receive_all() == b""


# --- default fields ---


def test_flask_gets_the_default_fields_and_keeps_its_own() -> None:
    app = flask.Flask("defaults")

    @app.get("/own")
    def own() -> Any:
        return "x", {"X-Frame-Options": "DENY", "Server": "mine"}

    settings = {"headers_server": "hardserve", "headers_permissions_policy": "camera=()"}
    with serving(app, **settings) as running, running.connect() as client:
        own_, missing = client.get("/own"), client.get("/missing")
        refused = client.get("/", method="TRACE")
    assert (own_.header("X-Frame-Options"), own_.header("Server")) == ("DENY", "mine")
    assert (missing.status, refused.status) == (404, 501)
    for response in (missing, refused):
        assert (response.header("X-Frame-Options"), response.header("Server")) == ("SAMEORIGIN", "hardserve")
    for response in (own_, missing, refused):
        assert response.header("X-Content-Type-Options") == "nosniff"
        assert response.header("Referrer-Policy") == "strict-origin-when-cross-origin"
        assert response.header("Permissions-Policy") == "camera=()"
        names = [name.lower() for name, _ in response.headers]
        assert len(names) == len(set(names))


def test_nothing_says_which_server_it_is() -> None:
    with serving(lambda e, s: (s("200 OK", []), [b"x"])[1]) as running, running.connect() as client:
        assert client.get("/").header("Server") is None
        assert client.get("/", method="TRACE").header("Server") is None


# --- wsgi.file_wrapper ---


class OnlyRead:
    """What PEP 3333 asks of a file: `read` with a size, and `close` if it has one."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.closed = False

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self.closed = True


DATA = bytes(range(256)) * 1000


def open_as(kind: str, path: Path) -> Any:
    if kind == "BytesIO":
        return io.BytesIO(DATA)
    return OnlyRead(DATA) if kind == "only read" else path.open("rb")


@pytest.mark.parametrize("kind", ["file", "BytesIO", "only read", "a file from its middle"])
@pytest.mark.parametrize("length", [False, True], ids=["no length", "a length"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_file_wrapper_serves(tmp_path: Path, kind: str, length: bool, version: str) -> None:
    (tmp_path / "data").write_bytes(DATA)
    opened: list[Any] = []
    expected = DATA[1000:] if kind == "a file from its middle" else DATA

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        file: Any = open_as(kind, tmp_path / "data")
        if kind == "a file from its middle":
            file.seek(1000)
        opened.append(file)
        start_response("200 OK", [("Content-Length", str(len(expected)))] if length else [])
        return environ["wsgi.file_wrapper"](file, 8192)

    response = ask(app, f"GET / HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    assert response.body == expected
    known = length or "file" in kind  # how much there is of a real file is known without the app's help
    assert response.header("Transfer-Encoding") == ("chunked" if version == "1.1" and not known else None)
    assert response.header("Content-Length") == (str(len(expected)) if known else None)
    assert opened[0].closed


def test_a_file_is_truncated_to_its_length() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "1")])
        return environ["wsgi.file_wrapper"](io.BytesIO(DATA))

    with serving(app) as running, running.connect() as client:
        assert [client.get("/").body for _ in range(2)] == [DATA[:1]] * 2


def test_file_wrapper_may_be_iterated_by_a_middleware() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        wrapped = environ["wsgi.file_wrapper"](io.BytesIO(b"abc"), 1)
        start_response("200 OK", [])
        return [b"".join(wrapped).upper()]

    assert ask(app).body == b"ABC"


# --- the validator finds nothing ---


def reads_all_ways(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    source = environ["wsgi.input"]
    parts = [source.read(3), source.readline(), *source.readlines(4), *source, source.read(10)]
    environ["wsgi.errors"].write("")
    environ["wsgi.errors"].writelines([""])
    environ["wsgi.errors"].flush()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"".join(parts)]


def writes(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"a")
    return [b"b"]


def generates(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"a"
    yield b"b"


def recovers(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        raise ValueError("x")  # noqa: TRY301
    except ValueError:
        start_response("500 Oh", [("Content-Type", "text/plain")], sys.exc_info())
    return [b"ab"]


def wraps(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return environ["wsgi.file_wrapper"](io.BytesIO(b"ab"), 1)


def says_nothing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("204 No Content", [])
    return []


def through_flask() -> flask.Flask:
    app = flask.Flask("validated")

    @app.route("/", methods=["GET", "POST", "OPTIONS"], defaults={"path": ""})
    @app.route("/<path:path>", methods=["GET", "POST"])
    def index(path: str) -> str:
        flask.request.stream.read(10)  # the validator wants a size
        return "ab"

    return app


VALIDATED: list[Any] = [reads_all_ways, writes, generates, recovers, wraps, says_nothing, through_flask()]
VALID_REQUESTS = {
    "GET": b"GET /?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "HEAD": b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "POST": post(b"ab", b"Content-Type: text/plain", b"Connection: close"),
    "POST in chunks": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nab\r\n0\r\n\r\n",
    "1.0": b"GET / HTTP/1.0\r\n\r\n",
    "1.0 with a body": b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab",
    "an absolute target": b"GET http://a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
}


@pytest.mark.plain_only("of what an app is given and gives")
@pytest.mark.parametrize("app", VALIDATED, ids=lambda app: getattr(app, "__name__", "flask"))
@pytest.mark.parametrize("request_", VALID_REQUESTS.values(), ids=VALID_REQUESTS)
def test_the_validator_finds_nothing(
    app: Any, request_: bytes, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response = ask(validator(app), request_)
    gc.collect()
    assert caplog.text == ""
    assert "garbage collected" not in capsys.readouterr().err
    if b"POST" in request_ and response.status == 200:
        assert response.body == b"ab"


# --- Flask ---


def flask_app(events: list[str]) -> flask.Flask:  # noqa: C901
    app = flask.Flask("flask_app")

    @app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-After"] = ascii(flask.request.path)[1:-1]
        return response

    @app.teardown_request
    def down(error: BaseException | None) -> None:
        events.append(f"teardown {type(error).__name__}")

    @app.get("/stream/<name>")
    def stream(name: str) -> flask.Response:
        @flask.stream_with_context
        def blocks() -> Iterator[str]:
            for number in range(3):
                yield f"{flask.request.view_args['name']}{number} "  # type: ignore[index]
            events.append("streamed")

        return flask.Response(blocks(), mimetype="text/plain")

    @app.get("/file")
    def file() -> flask.Response:
        return flask.send_file(io.BytesIO(DATA), mimetype="application/x", download_name="d")

    @app.get("/real-file")
    def real_file() -> flask.Response:
        return flask.send_file(Path(__file__).resolve(), conditional=True)

    @app.post("/upload")
    def upload() -> dict[str, int]:
        return {"read": sum(map(len, iter(lambda: flask.request.stream.read(1000), b"")))}

    @app.post("/form")
    def form() -> dict[str, str]:
        return {**flask.request.form, **{key: value.read().decode() for key, value in flask.request.files.items()}}

    @app.get("/where")
    def where() -> str:
        return flask.url_for("where", _external=True)

    @app.get("/fail")
    def fail() -> str:
        raise ValueError("x")

    @app.get("/caf\u00e9/<name>")
    def cafe(name: str) -> str:
        return name

    @app.get("/redirect")
    def redirect() -> Any:
        return flask.redirect(flask.url_for("where"))

    return app


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def flasked(events: list[str]) -> Iterator[Running]:
    with serving(flask_app(events)) as running:
        yield running


def test_flask_streams_with_its_context(flasked: Running, events: list[str]) -> None:
    with flasked.connect() as client:
        response = client.get("/stream/s")
        assert response.body == b"s0 s1 s2 "
        assert response.header("X-After") == "/stream/s"
        assert client.get("/where").status == 200
    assert flasked.stop() == 0
    assert sorted(events[:2]) == ["streamed", "teardown NoneType"]


def test_flask_sends_files(flasked: Running) -> None:
    with flasked.connect() as client:
        assert client.get("/file").body == DATA
        whole = Path(__file__).read_bytes()
        response = client.get("/real-file")
        assert response.body == whole
        assert response.header("Content-Length") == str(len(whole))
        assert client.get("/real-file", method="HEAD").header("Content-Length") == str(len(whole))
        part = client.get("/real-file", "Range: bytes=3-9")
        assert (part.status, part.body) == (206, whole[3:10])
        assert client.get("/real-file", f"If-None-Match: {response.header('ETag')}").status == 304
        assert client.get("/where").status == 200


def test_flask_reads_a_stream_and_a_form(flasked: Running) -> None:
    with flasked.connect() as client:
        assert b"900000" in client.get("/upload", method="POST", body=b"x" * 900_000).body
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert client.response().body.split() == b'{"read":3}'.split()
        parts = (
            b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
            b'--B\r\nContent-Disposition: form-data; name="f"; filename="g"\r\n\r\n' + b"h" * 100_000 + b"\r\n--B--\r\n"
        )
        response = client.get("/form", "Content-Type: multipart/form-data; boundary=B", method="POST", body=parts)
        assert response.status == 200
        assert b'"a":"b"' in response.body
        assert b"h" * 100_000 in response.body


def test_flask_knows_its_own_address(flasked: Running, transport: str) -> None:
    scheme = {"plain": "http", "tls": "https"}[transport]
    with flasked.connect() as client:
        assert client.get("/where").body == f"{scheme}://test/where".encode()
        client.send(b"GET /where HTTP/1.0\r\n\r\n")
        assert client.response().body == f"{scheme}://127.0.0.1:{flasked.port}/where".encode()
    with flasked.connect() as client:
        client.send(f"GET {scheme}://b.c/where HTTP/1.0\r\n\r\n".encode())
        assert client.response().body == f"{scheme}://b.c/where".encode()
    with flasked.connect() as client:
        assert client.get("/redirect").header("Location") == "/where"


def test_flask_reads_unicode_paths(flasked: Running) -> None:
    with flasked.connect() as client:
        assert client.get("/caf%C3%A9/%E2%82%AC").body.decode() == "\u20ac"
        assert client.get("/caf%C3%A9/a%2Fb").status == 404


def test_flask_fails_as_flask_does(flasked: Running, events: list[str]) -> None:
    with flasked.connect() as client:
        response = client.get("/fail", "X-Request-ID: id-1")
        assert (response.status, response.header("X-Request-ID")) == (500, "id-1")
        assert response.header("X-After") == "/fail"
        assert client.get("/nowhere").status == 404
        assert client.get("/upload").status == 405
    assert flasked.stop() == 0
    assert events[0] == "teardown ValueError"


def test_wsgi_errors_is_where_python_writes_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print("for the log", file=environ["wsgi.errors"], flush=True)
        start_response("200 OK", [])
        return []

    ask(app)
    assert "for the log" in capsys.readouterr().err


def test_an_app_that_raises_what_a_lost_client_raises_is_a_500() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ClientDisconnectedError

    with serving(app) as running, running.connect() as client:
        assert client.get("/").status == 500


def test_a_bug_of_ours_in_a_worker_ends_the_connection_and_not_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda environ, start_response: [], threads=1) as running:
        with running.connect() as client:
            assert client.get("/").status == 500  # it has begun to serve
        context = running.server._app_ctx
        date = context.date
        context.date = None  # type: ignore[assignment]
        with running.connect() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            with pytest.raises(ConnectionError):
                client.receive_all()
        context.date = date
        with running.connect() as client:
            assert client.get("/").status == 500
    assert "worker failed" in caplog.text
