"""What a request must pass, judged by its head as it comes off the wire."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, request
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve import refusals
from hardserve.edge.parsing import ParserRules, Request
from hardserve.loader.bodycap import give_body_cap
from hardserve.options import from_keywords
from hardserve.refusals import Refusal
from tests.support import admitted, plain_gate, serving

SETTINGS = from_keywords(
    limits_body=10,
    limits_form=3,
    route=[
        {"path": "/upload", "methods": ["POST"], "max_body": 20},
        {"path": "/tiny/*", "max_body": 5},
        {"path": "/none", "max_body": 0},
    ],
)


def judged(head: bytes) -> tuple[Request, Refusal | None]:
    request = Request(ParserRules(SETTINGS.limits), 0.0)
    request.feed(head + b"\r\nHost: a\r\n\r\n")
    assert (request.refusal, request.headers_finished) == (None, True)
    return request, admitted(plain_gate(SETTINGS), request)


@pytest.mark.parametrize(
    ("head", "max_body", "admitted"),
    [
        pytest.param("POST /upload HTTP/1.1\r\nContent-Length: 20", 20, True, id="exactly the cap of the route"),
        pytest.param("POST /upload HTTP/1.1\r\nContent-Length: 21", 20, False, id="a byte more"),
        pytest.param("PUT /upload HTTP/1.1\r\nContent-Length: 11", 10, False, id="another method"),
        pytest.param("PUT /other HTTP/1.1\r\nContent-Length: 10", 10, True, id="exactly the cap of all"),
        pytest.param("POST /tiny/a HTTP/1.1\r\nContent-Length: 6", 5, False, id="a route with less than all"),
        pytest.param("POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked", 20, True, id="a body in chunks"),
        pytest.param("POST /tiny HTTP/1.1\r\nTransfer-Encoding: chunked", 5, True, id="a body in chunks, with less"),
        pytest.param("POST /none HTTP/1.1\r\nContent-Length: 1", 0, False, id="a route without bodies"),
        pytest.param("POST /none HTTP/1.1\r\nContent-Length: 0", 10, True, id="and a request without one"),
        pytest.param("GET /tiny/a HTTP/1.1", 10, True, id="no body, and nothing to look up"),
        pytest.param(
            "POST / HTTP/1.1\r\nContent-Type: Application/X-WWW-Form-Urlencoded; charset=utf-8\r\nContent-Length: 4",
            3,
            False,
            id="a form, which costs the app many times its size",
        ),
        pytest.param(
            "POST /upload HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 4",
            20,
            True,
            id="a form on a route with a cap of its own",
        ),
        pytest.param("POST http://a/upload?x=/tiny/a HTTP/1.1\r\nContent-Length: 20", 20, True, id="absolute form"),
    ],
)
def test_a_body_is_judged_by_the_cap_of_its_route(head: str, max_body: int, admitted: bool) -> None:
    request, refusal = judged(head.encode())
    assert refusal is (None if admitted else refusals.BODY_TOO_LARGE)
    assert request.max_body == max_body


SPELLINGS = [
    *("/tiny/a", "/tiny/a/", "//tiny/a", "/tiny//a", "/./tiny/a", "/tiny/./a", "/x/../tiny/a", "/tiny/x/../a"),
    *("/%74iny/a", "/tiny/%61", "/tiny%2fa", "/tiny%2Fa", "/%2e/tiny/a", "/%2E%2e/tiny/a", "/%2ftiny/a", "/tiny/"),
    *("/tiny", "/tiny/a?b", "///tiny///a", "/../tiny/a", "/x/%2e%2e/tiny/a", "/tiny/a/.", "/tiny/a/b/.."),
]


@pytest.mark.parametrize("target", SPELLINGS)
def test_no_spelling_of_a_path_gets_past_the_rule_for_it(target: str) -> None:
    _, refusal = judged(f"POST {target} HTTP/1.1\r\nContent-Length: 6".encode())
    assert refusal is refusals.BODY_TOO_LARGE


@settings(deadline=None)  # a busy machine is no failure
@given(st.data())
def test_no_spelling_made_by_rule_gets_past_either(data: st.DataObject) -> None:
    plain, escaped = "/tiny/a", ""
    for character in plain:
        before = data.draw(st.sampled_from(["", "/", "/.", "/x/..", "/./y/../."])) if character == "/" else ""
        spelt = data.draw(st.sampled_from([character, f"%{ord(character):02x}", f"%{ord(character):02X}"]))
        escaped += before + spelt
    if not escaped.startswith("/"):  # a target begins with a slash that is not escaped
        escaped = "/" + escaped
    _, refusal = judged(f"POST {escaped} HTTP/1.1\r\nContent-Length: 6".encode())
    assert refusal is refusals.BODY_TOO_LARGE, escaped


def test_the_gate_shows_itself() -> None:
    assert repr(plain_gate(SETTINGS)).startswith("<Gate <Routes 3>, <RateLimiter")


# Over a socket


@pytest.mark.parametrize(
    ("size", "status"), [(20, 200), (21, 413)], ids=["exactly the cap of the route", "a byte more than it"]
)
@pytest.mark.parametrize("target", ["/upload", "//%75pload/"])
def test_a_chunked_body_is_held_to_the_cap_of_its_route(target: str, size: int, status: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    route = {"path": "/upload", "methods": ["POST"], "max_body": 20}
    with serving(app, limits_body=10, route=[route]) as server, server.connect() as client:
        client.send(f"POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        client.send(b"f\r\n" + b"x" * 15 + b"\r\n%x\r\n" % (size - 15) + b"x" * (size - 15) + b"\r\n0\r\n\r\n")
        assert client.response().status == status


def test_a_view_reads_the_cap_of_its_route() -> None:
    app = Flask("app")
    app.add_url_rule("/<name>", view_func=lambda name: str(request.max_content_length), methods=["POST"])
    give_body_cap(app)
    route = {"path": "/small", "methods": ["POST"], "max_body": 10}
    with serving(app, limits_body=100, route=[route]) as server, server.connect() as client:
        assert client.get("/other", method="POST", body=b"x" * 100).body == b"100"
        assert client.get("/small", method="POST", body=b"x" * 10).body == b"10"
        assert client.get("/small", method="POST", body=b"x" * 11).status == 413
