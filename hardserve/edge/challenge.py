"""What a certificate authority is answered that looks whether a name is ours: HTTP-01 (RFC 8555 8.3). I/O thread.

It asks without a password, by a name that nobody else may know yet, at an address that sends everybody else to HTTPS,
and perhaps more often than others may: so the gate lets it in before it looks at any of that, and no worker is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hardserve.protocol import DateClock
from hardserve.refusals import Refusal

if TYPE_CHECKING:
    from hardserve.edge.connection import Connection
    from hardserve.edge.parsing import Request

Serve = Callable[["Connection", "Request", float], bool | Refusal]
Outcome = Callable[["Connection", "Request", int, int, str], None]  # status, bytes that left, reason if not all


class ChallengeAnswers:
    """`find` has the content for a path, None for all that no CA asks for; `others` is whoever serves files."""

    __slots__ = ("_date", "_find", "_others", "_outcome")

    def __init__(
        self, find: Callable[[str], bytes | None], date: DateClock, outcome: Outcome, others: Serve | None
    ) -> None:
        self._find = find
        self._date = date
        self._outcome = outcome
        self._others = others

    def __repr__(self) -> str:
        return f"<ChallengeAnswers {self._find!r}>"

    def expects(self, request: Request) -> bool:
        """Return whether a CA has been told to ask for this; the answer is kept, for it may be withdrawn any moment."""
        if request.command in ("GET", "HEAD") and request.body_rcv is None:
            request.challenge = self._find(request.path)
        return request.challenge is not None

    def serve(self, asker: Connection, request: Request, now: float) -> bool | Refusal:
        """As `EdgeContext.serve_file`."""
        body = request.challenge
        if body is None:
            return False if self._others is None else self._others(asker, request, now)
        keep_alive = not asker.will_close(request)
        data = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n"
            f"Date: {self._date.text()}\r\nX-Request-ID: {request.request_id}\r\n"
            f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        ).encode("latin-1")
        if request.command == "GET":
            data += body
        flushed = partial(self._flushed, asker, request, len(data))
        asker.answer(request, data, keep_alive=keep_alive, flushed=flushed, now=now)
        return True

    def _flushed(self, asker: Connection, request: Request, size: int, unsent: int, reason: str) -> None:
        self._outcome(asker, request, 200, size - unsent, reason)
