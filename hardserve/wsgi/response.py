"""The head of an app's response: checked, completed, and turned into bytes. Pure; worker threads.

It knows the app's status and headers and what the client asked for, and decides how the end of the body will be
marked. It does not know the connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from hardserve.protocol import REASONS

# RFC 9110 7.6.1 and PEP 3333: these belong to the connection, which is not the app's.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
BODILESS = frozenset({"204", "304"})


class BadResponseError(Exception):
    """The app broke a rule of HTTP or of WSGI; the text says which. It becomes a 500 and a line in the log."""


@dataclass(slots=True)
class Head:
    """What an app said before its body, and what follows from it.

    `length` is the Content-Length, None if the app gave none. `bodiless` is a response that has no body whatever the
    app yields (RFC 9110 6.4.1).
    """

    status: str
    lines: list[str]
    length: int | None
    bodiless: bool
    has_date: bool
    has_request_id: bool


def check_head(status: str, headers: list[tuple[str, str]], *, method: str) -> Head:
    """Check what an app gave to start_response. Raises BadResponseError."""
    if not isinstance(status, str):
        raise BadResponseError(f"the status {status!r} is not a str such as '200 OK'")
    status, bodiless = _checked_status(status)
    head = Head(status, [], None, bodiless or method == "HEAD", False, False)
    for name, value in headers:
        if not (isinstance(name, str) and isinstance(value, str)):
            # Not the value: it may be a cookie.
            raise BadResponseError(f"the header {name!r} has a value of type {type(value).__name__}; both must be str")
        key = _field_key(name)
        if key == "content-length":
            _take_length(head, value)
            continue
        if key in HOP_BY_HOP:
            raise BadResponseError(f"the header {name} is hop-by-hop, and not an app's to set")
        if key == "date":
            head.has_date = True
        elif key == "x-request-id":
            head.has_request_id = True
        head.lines.append(f"{name}: {value}")
    return head


@lru_cache(maxsize=128)
def _checked_status(status: str) -> tuple[str, bool]:
    """Return the status with its phrase, and whether it has no body. Remembered, as field names are."""
    code = status[:3]
    if not (len(code) == 3 and code.isascii() and code.isdecimal() and status[3:4] in ("", " ")):
        raise BadResponseError(f"the status {status!r} is not a str such as '200 OK'")
    if code < "200":
        raise BadResponseError(f"the status {status!r} is informational, and no response may end with it")
    if len(status) <= 4:  # RFC 9112 4: the space stays when the phrase is left out
        status = f"{code} {REASONS.get(int(code), '')}"
    return status, code in BODILESS


@lru_cache(maxsize=512)
def _field_key(name: str) -> str:
    """Return a field name in lower case. Remembered, because an app sets the same few for every response."""
    if not _TOKEN.fullmatch(name):
        raise BadResponseError(f"the header name {name!r} is not a token (RFC 9110 5.1)")
    return name.lower()


def _take_length(head: Head, value: str) -> None:
    if head.length is not None or not (value.isascii() and value.isdecimal()):
        raise BadResponseError(f"the Content-Length {value!r} is not one number")
    if head.status[:3] != "204":  # RFC 9110 8.6: none on a 204
        head.length = int(value)


def head_bytes(head: Head, *, request_id: str, date: str, chunked: bool, connection: str) -> bytes:
    """Return the head as it goes out. `connection` is the value of the Connection field, "" for none.

    Raises BadResponseError if the app tried to smuggle a line in: every CR and LF must be one of ours.
    """
    lines = head.lines
    if not head.has_date:
        lines.append(f"Date: {date}")
    if not head.has_request_id:
        lines.append(f"X-Request-ID: {request_id}")
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    elif head.length is not None:
        lines.append(f"Content-Length: {head.length}")
    if connection:
        lines.append(f"Connection: {connection}")
    text = f"HTTP/1.1 {head.status}\r\n" + "\r\n".join(lines)
    # One pass in C for all lines, where a check of each line would cost as much as building them.
    if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
        raise BadResponseError("a header holds a CR, LF or NUL")
    try:
        return (text + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError:
        raise BadResponseError("a header holds a character outside latin-1") from None
