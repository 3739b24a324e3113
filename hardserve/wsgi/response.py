"""The head of an app's response: checked, completed, and turned into bytes. Pure; worker threads.

It knows the app's status and headers and what the client asked for, and decides how the end of the body will be
marked. It does not know the connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from hardserve.protocol import REASONS
from hardserve.securityheaders import BITS, DefaultFields, own_bits

# RFC 9110 7.6.1 and PEP 3333: these belong to the connection, which is not the app's. An app that passes on what
# another server has sent has them by accident, so they are left out, and are no error. Proxy-Authenticate, which RFC
# 2616 counted among them, is not of the connection any more (RFC 9110 11.7.1).
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
_LINE_END = re.compile(r"[\r\n\0]")
BODILESS = frozenset({"204", "205", "304"})

# What a field name is to us, as a bit: those of `BITS`, and past them, these. Most names are nothing, which is 0.
_LENGTH, _HOP, _NAMED, _DATE, _REQUEST_ID = (max(BITS.values()) << shift for shift in range(1, 6))
_OWN = sum(BITS.values())
_KINDS = {
    **BITS,
    **dict.fromkeys(HOP_BY_HOP, _HOP),
    "content-length": _LENGTH,
    "x-sendfile": _NAMED,
    "x-accel-redirect": _NAMED,
    "date": _DATE,
    "x-request-id": _REQUEST_ID,
}


class BadResponseError(Exception):
    """The app broke a rule of HTTP or of WSGI; the text says which. It becomes a 500 and a line in the log."""


@dataclass(slots=True)
class Head:
    """What an app said before its body, and what follows from it.

    `length` is the Content-Length, None if the app gave none. `bodiless` is a response that has no body whatever the
    app yields (RFC 9110 6.4.1). `seen` are the fields in it that we would add otherwise, as bits. `dropped` are the
    names of fields that were left out, because they are not an app's to set, and `close` is that one of them asked for
    the connection to end. `named` is a field, in lower case, that names a file for the body, and its value.
    """

    status: str
    lines: list[str]
    length: int | None
    bodiless: bool
    seen: int = 0
    close: bool = False
    dropped: tuple[str, ...] = ()
    named: tuple[str, str] | None = None

    def field(self, name: str) -> str:
        """Return the value of the first field called `name`, in lower case; "" for none."""
        for line in self.lines:
            own, _, value = line.partition(":")
            if own.lower() == name:
                return value.strip(" \t")
        return ""

    def add(self, name: str, value: str) -> None:
        self.seen |= _kind(name)
        self.lines.append(f"{name}: {value}")

    def remove(self, name: str) -> None:
        """Take out the fields called `name`, in lower case."""
        self.lines = [line for line in self.lines if line.partition(":")[0].lower() != name]


def check_head(status: str, headers: list[tuple[str, str]], *, method: str) -> Head:
    """Check what an app gave to start_response. Raises BadResponseError."""
    if not isinstance(status, str):
        raise BadResponseError(f"the status {status!r} is not a str such as '200 OK'")
    status, bodiless = _checked_status(status)
    head = Head(status, [], None, bodiless or method == "HEAD")
    for name, value in headers:
        if not (isinstance(name, str) and isinstance(value, str)):
            # Not the value: it may be a cookie.
            raise BadResponseError(f"the header {name!r} has a value of type {type(value).__name__}; both must be str")
        kind = _kind(name)
        if kind:
            if kind == _LENGTH:
                _take_length(head, value)
                continue
            if kind == _HOP:
                _drop(head, name, value)
                continue
            if kind == _NAMED:
                head.named = name.lower(), value
                continue
            head.seen |= own_bits(name.lower(), value) or kind
        head.lines.append(f"{name}: {value}")
    if bodiless and status.startswith("205"):
        head.length = 0  # RFC 9110 15.3.6
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
def _kind(name: str) -> int:
    """Return what a field name is to us. Remembered, because an app sets the same few for every response."""
    if not _TOKEN.fullmatch(name):
        raise BadResponseError(f"the header name {name!r} is not a token (RFC 9110 5.1)")
    return _KINDS.get(name.lower(), 0)


def _drop(head: Head, name: str, value: str) -> None:
    if _LINE_END.search(value):
        raise BadResponseError("a header holds a CR, LF or NUL")
    head.dropped = (*head.dropped, name)
    if name.lower() == "connection" and "close" in (option.strip(" \t") for option in value.lower().split(",")):
        head.close = True


def _take_length(head: Head, value: str) -> None:
    if head.length is not None or not (value.isascii() and value.isdecimal()):
        raise BadResponseError(f"the Content-Length {value!r} is not one number")
    if head.status[:3] != "204":  # RFC 9110 8.6: none on a 204
        head.length = int(value)


def head_bytes(
    head: Head, *, request_id: str, date: str, chunked: bool, connection: str, defaults: DefaultFields
) -> bytes:
    """Return the head as it goes out.

    `connection` is the value of the Connection field, "" for none. `defaults` are added where the app has set none.
    Raises BadResponseError if the app tried to smuggle a line in: every CR and LF must be one of ours.
    """
    lines, seen = head.lines, head.seen
    if not seen & _DATE:
        lines.append(f"Date: {date}")
    if not seen & _REQUEST_ID:
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
        return (text + defaults.end(seen & _OWN)).encode("latin-1")
    except UnicodeEncodeError:
        raise BadResponseError("a header holds a character outside latin-1") from None
