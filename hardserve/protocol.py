"""What both kinds of thread need to put a response on the wire: reason phrases, the date, and what they share.

Pure functions and one cache; it knows no socket and runs on whichever thread calls it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from email.utils import formatdate
from http import HTTPStatus

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
