"""Where requests in plain are sent on to, and which are not. tests/test_tls.py does it over a socket."""

from __future__ import annotations

import pytest

from hardserve import refusals
from hardserve.edge.forwarded import Identity
from hardserve.edge.parsing import ParserRules, Request
from hardserve.edge.redirect import Redirect
from hardserve.settings import LimitSettings


def parsed(head: bytes) -> Request:
    request = Request(ParserRules(LimitSettings()), 0.0)
    request.feed(head + b"\r\n\r\n")
    assert request.refusal is None
    assert request.headers_finished
    return request


def location(redirect: Redirect, request: Request) -> str:
    assert redirect.refusal(request) in (refusals.REDIRECTED, refusals.REDIRECTED_AS_IT_IS)
    return request.refusal_fields.decode()


@pytest.mark.parametrize(
    ("port", "host", "expected"),
    [
        pytest.param("443", b"a.example", "a.example", id="the usual port goes without saying"),
        pytest.param("", b"a.example:80", "a.example", id="nor is the port that was asked kept"),
        pytest.param("8443", b"a.example:8080", "a.example:8443", id="another port is named"),
        pytest.param("8443", b"[::1]:8080", "[::1]:8443", id="an IPv6 address with a port"),
        pytest.param("443", b"[::1]", "[::1]", id="an IPv6 address without one"),
    ],
)
def test_the_port(port: str, host: bytes, expected: str) -> None:
    request = parsed(b"GET / HTTP/1.1\r\nHost: " + host)
    assert location(Redirect(port, lambda _host: True), request) == f"Location: https://{expected}/\r\n"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a%20b?c=%2F&d", "/a%20b?c=%2F&d"),
        (b"/\xc3\xa4?\xff", "/%C3%A4?%FF"),
        (b'/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        (b"//other.example/", "//other.example/"),
        (b"http://a.example/x", "/x"),
        (b"http://a.example", "/"),
    ],
)
def test_the_target_stays_what_it_is(target: bytes, expected: str) -> None:
    request = parsed(b"GET " + target + b" HTTP/1.1\r\nHost: a.example")
    assert location(Redirect("", lambda _host: True), request) == f"Location: https://a.example{expected}\r\n"


def test_it_is_asked_of_the_host_without_its_port() -> None:
    asked: list[str] = []
    redirect = Redirect("", lambda host: bool(asked.append(host)))
    for host in (b"a.example:8080", b"[::1]:80", b"[::1]"):
        assert redirect.refusal(parsed(b"GET / HTTP/1.1\r\nHost: " + host)) is refusals.HOST_NOT_SERVED
    assert asked == ["a.example", "[::1]", "[::1]"]


def test_the_host_that_a_trusted_proxy_names_counts() -> None:
    request = parsed(b"GET / HTTP/1.1\r\nHost: inner")
    request.identity = Identity("192.0.2.1", 0, "", "outer.example")
    assert location(Redirect("", lambda _host: True), request) == "Location: https://outer.example/\r\n"


def test_its_repr_says_where_to() -> None:
    assert repr(Redirect("", lambda _host: True)) == "<Redirect to port 443>"
    assert repr(Redirect("8443", lambda _host: True)) == "<Redirect to port 8443>"
