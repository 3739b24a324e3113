"""What a request that arrives may keep of the server's memory and disk, and when its body is late.

I/O thread. Knows no socket and no connection.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hardserve import refusals
from hardserve.edge.budget import Budget, Holding

if TYPE_CHECKING:
    from hardserve.edge.parsing import Request
    from hardserve.refusals import Refusal
    from hardserve.settings import Settings


def hold(request: Request, client: str, budget: Budget) -> Refusal | None:
    """Count what is kept of `request`, as one of `client`; in a file where memory is short and files are allowed."""
    if request.holding is None or request.holding.client != client:
        if request.holding is not None:
            request.holding.release()
        request.holding = Holding(budget, client)
    # A file that could not be kept is not begun either: each one wears out the card of a small box.
    may_store = budget.file_limit > 0 and request.headers_finished
    try:
        if budget.memory_short and may_store:
            request.to_file()
        memory, files = request.buffered()
        fits = request.holding.update(memory, files)
        if not fits and memory > files and may_store:
            request.to_file()  # a disk may still have the room that memory has not
            fits = request.holding.update(*request.buffered())
    except OSError:
        return refusals.BODY_NOT_STORED
    return None if fits else refusals.BUFFERS_FULL


def deadline(request: Request, settings: Settings, now: float) -> float:
    """Return when a body is late whose client sends nothing from now on: an idle limit, a rate, a ceiling."""
    return min(now + settings.timeouts.body, *_ends(request, settings))


def why_late(request: Request, settings: Settings, now: float) -> Refusal:
    """Return why a body whose deadline has passed is refused."""
    slow, total = _ends(request, settings)
    if now >= total:
        return refusals.BODY_TOTAL_DEADLINE
    return refusals.BODY_TOO_SLOW if now >= slow else refusals.BODY_DEADLINE


def _ends(request: Request, settings: Settings) -> tuple[float, float]:
    """Return when a body is too slow with what has come of it, and when it has taken too long in all."""
    timeouts, rate = settings.timeouts, settings.limits.body_rate
    received = 0 if request.body_rcv is None else len(request.body_rcv)
    slow = request.body_since + timeouts.rate_grace + received / rate if rate else math.inf
    return slow, request.body_since + timeouts.body_total if timeouts.body_total else math.inf
