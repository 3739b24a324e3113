"""The head of a response, in tables: what an app may say, and what goes out."""

from __future__ import annotations

from typing import Any

import pytest

from hardserve.protocol import REASONS, DateClock
from hardserve.securityheaders import DefaultFields
from hardserve.settings import HeaderSettings
from hardserve.wsgi.response import BODILESS, HOP_BY_HOP, BadResponseError, check_head, head_bytes

BARE = HeaderSettings(content_type_options="off", frame_options="off", referrer_policy="off")


def sent(
    status: str = "200 OK",
    headers: Any = (),
    *,
    method: str = "GET",
    chunked: bool = False,
    connection: str = "",
    settings: HeaderSettings = BARE,
) -> list[str]:
    """Return the lines of the head that goes out."""
    head = check_head(status, list(headers), method=method)
    defaults = DefaultFields(settings)
    data = head_bytes(head, request_id="id", date="now", chunked=chunked, connection=connection, defaults=defaults)
    assert data.endswith(b"\r\n\r\n")
    return data.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")


SENT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the least": ({}, ["HTTP/1.1 200 OK", "Date: now", "X-Request-ID: id"]),
    "fields in the app's order and spelling": (
        {"headers": [("x-B", "2"), ("X-a", "1"), ("x-b", "3")]},
        ["HTTP/1.1 200 OK", "x-B: 2", "X-a: 1", "x-b: 3", "Date: now", "X-Request-ID: id"],
    ),
    "a date of the app's own": ({"headers": [("DATE", "x")]}, ["HTTP/1.1 200 OK", "DATE: x", "X-Request-ID: id"]),
    "an id of the app's own": (
        {"headers": [("x-request-id", "x")]}, ["HTTP/1.1 200 OK", "x-request-id: x", "Date: now"]
    ),
    "chunks": (
        {"chunked": True}, ["HTTP/1.1 200 OK", "Date: now", "X-Request-ID: id", "Transfer-Encoding: chunked"]
    ),
    "a length": (
        {"headers": [("content-length", "007")]},
        ["HTTP/1.1 200 OK", "Date: now", "X-Request-ID: id", "Content-Length: 7"],
    ),
    "what becomes of the connection": (
        {"connection": "close"}, ["HTTP/1.1 200 OK", "Date: now", "X-Request-ID: id", "Connection: close"]
    ),
    "a code alone": ({"status": "418"}, ["HTTP/1.1 418 (Unused)", "Date: now", "X-Request-ID: id"]),
    "a code that nobody knows, alone": ({"status": "599"}, ["HTTP/1.1 599 ", "Date: now", "X-Request-ID: id"]),
    "205 has the length of nothing": (
        {"status": "205 Reset Content", "headers": [("Content-Length", "5")]},
        ["HTTP/1.1 205 Reset Content", "Date: now", "X-Request-ID: id", "Content-Length: 0"],
    ),
    "204 has no length": (
        {"status": "204 No Content", "headers": [("Content-Length", "5")]},
        ["HTTP/1.1 204 No Content", "Date: now", "X-Request-ID: id"],
    ),
    "304 has that of what it stands for": (
        {"status": "304 Not Modified", "headers": [("Content-Length", "5")]},
        ["HTTP/1.1 304 Not Modified", "Date: now", "X-Request-ID: id", "Content-Length: 5"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "lines"), SENT.values(), ids=SENT)
def test_goes_out(given: dict[str, Any], lines: list[str]) -> None:
    assert sent(**given) == lines


@pytest.mark.parametrize(
    ("method", "status", "bodiless"),
    [("GET", "200 OK", False), ("HEAD", "200 OK", True), ("POST", "204 x", True), ("GET", "304 x", True),
     ("GET", "205 x", True), ("GET", "404 x", False), ("OPTIONS", "200 OK", False)],
)  # fmt: skip
def test_has_a_body_or_not(method: str, status: str, bodiless: bool) -> None:
    assert check_head(status, [], method=method).bodiless is bodiless


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
def test_what_belongs_to_the_connection_is_left_out(name: str, spelling: Any) -> None:
    headers = [("X-A", "a"), (spelling(name), "x"), ("X-B", "b"), (spelling(name), "y")]
    assert sent("200 OK", headers)[1:3] == ["X-A: a", "X-B: b"]
    head = check_head("200 OK", headers, method="GET")
    assert head.dropped == (spelling(name), spelling(name))
    assert not head.close


@pytest.mark.parametrize(
    ("value", "close"),
    [("close", True), ("CLOSE", True), ("x,\tclose ,y", True), ("keep-alive", False), ("closed", False), ("", False)],
)
def test_an_app_may_end_its_connection(value: str, close: bool) -> None:
    assert check_head("200 OK", [("Connection", value)], method="GET").close is close
    assert not check_head("200 OK", [("Keep-Alive", value)], method="GET").close


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n", "\0"])
@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_nor_is_a_line_smuggled_into_what_is_left_out(name: str, ending: str) -> None:
    with pytest.raises(BadResponseError):
        check_head("200 OK", [(name, f"close{ending}X: y")], method="GET")


def test_who_may_authenticate_to_a_proxy_is_the_apps_to_say() -> None:
    assert "Proxy-Authenticate: Basic" in sent("407 x", [("Proxy-Authenticate", "Basic")])


# The defaults are those of the settings; a name is what the app set, and what is sent besides.
ALL = ["X-Content-Type-Options: nosniff", "X-Frame-Options: SAMEORIGIN",
       "Referrer-Policy: strict-origin-when-cross-origin"]  # fmt: skip
EVERYTHING = HeaderSettings(
    frame_options="DENY", permissions_policy="camera=()", content_security_policy="default-src 'self'", server="us"
)
ADDED: dict[str, tuple[HeaderSettings, list[tuple[str, str]], list[str]]] = {
    "an app that sets none gets all": (HeaderSettings(), [], ALL),
    "off is none": (BARE, [], []),
    "one of its own stays, and is not doubled": (HeaderSettings(), [("x-frame-options", "DENY")], [ALL[0], ALL[2]]),
    "also one that is empty": (HeaderSettings(), [("Referrer-Policy", "")], ALL[:2]),
    "also twice": (HeaderSettings(), [("Referrer-Policy", "a"), ("referrer-policy", "b")], ALL[:2]),
    "those that are configured": (
        EVERYTHING, [], [ALL[0], "X-Frame-Options: DENY", ALL[2], "Permissions-Policy: camera=()",
                         "Content-Security-Policy: default-src 'self'", "Server: us"],
    ),
    "each yields to the app's own": (
        EVERYTHING,
        [("X-Content-Type-Options", "x"), ("PERMISSIONS-POLICY", "x"), ("content-security-policy", "x"),
         ("Server", "x")],
        ["X-Frame-Options: DENY", ALL[2]],
    ),
    "a policy that says who may frame it needs no other": (
        HeaderSettings(), [("Content-Security-Policy", "default-src 'self'; Frame-Ancestors https://a.test")],
        [ALL[0], ALL[2]],
    ),
    "one that does not say so does": (HeaderSettings(), [("Content-Security-Policy", "default-src 'self'")], ALL),
    "a policy that is only reported replaces nothing": (
        EVERYTHING, [("Content-Security-Policy-Report-Only", "frame-ancestors 'none'")],
        [ALL[0], "X-Frame-Options: DENY", ALL[2], "Permissions-Policy: camera=()",
         "Content-Security-Policy: default-src 'self'", "Server: us"],
    ),
    "a name that only begins like one is another": (HeaderSettings(), [("X-Frame-Options-Not", "x")], ALL),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "headers", "added"), ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified", "500 Oh"])
def test_default_fields(settings: HeaderSettings, headers: Any, added: list[str], status: str) -> None:
    lines = sent(status, headers, settings=settings)
    assert lines[1:] == [*(f"{name}: {value}" for name, value in headers), "Date: now", "X-Request-ID: id", *added]


def test_no_line_is_smuggled_past_the_default_fields() -> None:
    for ending in ("\r\n", "\n", "\r"):
        with pytest.raises(BadResponseError):
            sent("200 OK", [("X", f"x{ending}X-Frame-Options: ALLOWALL")], settings=EVERYTHING)


def test_it_says_in_a_line_which_fields_are_added() -> None:
    assert repr(DefaultFields(BARE)) == "<DefaultFields none>"
    assert repr(DefaultFields(HeaderSettings())) == (
        "<DefaultFields x-content-type-options, x-frame-options, referrer-policy>"
    )


BAD_STATUSES = [None, 200, b"200 OK", "", "20", "2x0", "OK", "200OK", "2000", "-20 x", "099 x", "100 Continue", "199 x",
                "101 Switching Protocols"]  # fmt: skip


@pytest.mark.parametrize("status", BAD_STATUSES, ids=repr)
def test_a_status_that_is_none(status: Any) -> None:
    with pytest.raises(BadResponseError):
        check_head(status, [], method="GET")


@pytest.mark.parametrize("length", ["", "x", "-1", "+1", "1.0", " 1", "1 ", "1, 1", "0x1", "\u0661", "1_0", "\u00b2"])
def test_a_length_that_is_none(length: str) -> None:
    with pytest.raises(BadResponseError, match="Content-Length"):
        check_head("200 OK", [("Content-Length", length)], method="GET")


# The last two are the folding of RFC 9112 5.2, which no recipient has to understand.
@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n", "\0", "\r\n\r\n", "\r\n ", "\n\t"])
@pytest.mark.parametrize("where", ["status", "name", "value"])
def test_no_line_is_smuggled_in(where: str, ending: str) -> None:
    status = f"200 OK{ending}X: y" if where == "status" else "200 OK"
    name = f"X{ending}Y" if where == "name" else "X"
    value = f"x{ending}Y: z" if where == "value" else "x"
    with pytest.raises(BadResponseError):
        sent(status, [(name, value)])


@pytest.mark.parametrize("name", ["", " ", "X Y", "X:", ":", "X\t", "X\x7f", "\u00e9", '"X"', "(X)", "X/Y"])
def test_a_name_that_is_no_token_is_not_sent(name: str) -> None:
    with pytest.raises(BadResponseError):
        sent("200 OK", [(name, "x")])


def test_what_cannot_be_encoded_is_refused_and_not_replaced() -> None:
    for status, headers in (("200 \u20ac", []), ("200 OK", [("X", "\u20ac")])):
        with pytest.raises(BadResponseError, match="latin-1"):
            sent(status, headers)


def test_codes_without_a_body_are_codes() -> None:
    assert all(int(code) in REASONS for code in BODILESS)


def test_a_date_is_formatted_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = DateClock()
    now = [1_000_000_000.9]
    monkeypatch.setattr("hardserve.protocol.time.time", lambda: now[0])
    first = clock.text()
    assert first == "Sun, 09 Sep 2001 01:46:40 GMT"
    assert clock.text() is first
    now[0] += 0.2
    assert clock.text() == "Sun, 09 Sep 2001 01:46:41 GMT"
    now[0] -= 10  # a clock that is set back
    assert clock.text() == "Sun, 09 Sep 2001 01:46:31 GMT"
