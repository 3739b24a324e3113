"""What a request must pass before it costs a worker: every decision, in order, in one function.

I/O thread. Pure: it reads the request's head and the settings, and touches no socket. Cheapest and most hostile
first; framing and the sizes of the head come earlier still, in the parser, because without them there is no request
to judge.
"""

from __future__ import annotations

from hardserve import refusals
from hardserve.edge.parsing import Request
from hardserve.refusals import Refusal
from hardserve.settings import LimitSettings


class Gate:
    """Judges a request when its head is complete and not a byte of its body has been accepted."""

    __slots__ = ("_limits",)

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits

    def admit(self, request: Request) -> Refusal | None:
        """Return why `request` may not come in, None if it may. I/O thread."""
        if request.content_length > request.max_body:
            return refusals.BODY_TOO_LARGE
        return None
