"""What a request must pass before it costs a worker: every decision, in order, in one function.

I/O thread. Pure: it reads the request's head and the settings, and touches no socket. Cheapest and most hostile
first; framing and the sizes of the head come earlier still, in the parser, because without them there is no request
to judge.
"""

from __future__ import annotations

from hardserve import refusals
from hardserve.edge.parsing import Request
from hardserve.edge.routes import Routes
from hardserve.refusals import Refusal
from hardserve.settings import Settings


class Gate:
    """Judges a request when its head is complete and not a byte of its body has been accepted."""

    __slots__ = ("_routes",)

    def __init__(self, settings: Settings) -> None:
        self._routes = Routes(settings.route, settings.limits)

    def __repr__(self) -> str:
        return f"<Gate {self._routes!r}>"

    def admit(self, request: Request) -> Refusal | None:
        """Return why `request` may not come in, None if it may; set how much body it may have. I/O thread."""
        if request.content_length > 0 or request.chunked:
            content_type = request.headers.get("CONTENT_TYPE", "")
            request.max_body = self._routes.max_body(request.command, request.path, content_type)
            # How long a chunked body is shows only while it arrives: the parser holds it to `max_body`.
            if request.content_length > request.max_body:
                return refusals.BODY_TOO_LARGE
        return None
