"""What both kinds of thread need to put a response on the wire: reason phrases, the date, refusals as bytes.

Pure functions and one cache; it knows no socket and runs on whichever thread calls it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from email.utils import formatdate
from http import HTTPStatus

from hardserve.refusals import Refusal

REASONS = {status.value: status.phrase for status in HTTPStatus}

# RFC 9110 15.5.14 and 15.5.15 renamed these; older Pythons still have the old phrases.
REASONS |= {413: "Content Too Large", 414: "URI Too Long", 418: "(Unused)", 422: "Unprocessable Content"}

# The id of the request that a worker is answering, for whatever is logged meanwhile, by the app or by us.
CURRENT_REQUEST: ContextVar[str] = ContextVar("hardserve_current_request", default="")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientDisconnectedError(ConnectionError):
    """The client went away, or was cut off, before its response was complete. Raised in the worker."""


class DateClock:
    """The `Date` header field's value (RFC 9110 6.6.1), formatted once a second.

    Called from any thread. Two threads may format the same second at once; both come to the same text, and the pair
    is replaced in one assignment, so that no reader sees half of it.
    """

    __slots__ = ("_current",)

    def __init__(self) -> None:
        self._current = (0, "")

    def text(self) -> str:
        second = int(time.time())
        current = self._current
        if current[0] != second:
            current = self._current = (second, formatdate(second, usegmt=True))
        return current[1]


def refusal_response(refusal: Refusal, *, request_id: str, date: str, head_only: bool, close: bool) -> bytes:
    """Return the whole response that tells a client of `refusal`.

    `head_only` is for HEAD (RFC 9110 9.3.2). A 503 says when to come back (RFC 9110 10.2.3).
    """
    body = f"{refusal.status} {REASONS[refusal.status]}\n\n{refusal.text}\nRequest id: {request_id}\n".encode()
    lines = [
        f"HTTP/1.1 {refusal.status} {REASONS[refusal.status]}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        f"X-Request-ID: {request_id}",
        f"Date: {date}",
    ]
    if refusal.status == 503:
        lines.append("Retry-After: 1")
    if close:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + body
