"""What of a file a request is to get: nothing new, parts of it, or the whole (RFC 9110 13, 14). Pure; I/O thread."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from hardserve.files.asking import Asked
from hardserve.files.entries import Representation
from hardserve.http.conditions import judge, range_applies
from hardserve.http.ranges import Multipart, Span, content_range, wanted
from hardserve.protocol import REASONS


def precondition(request: Asked, representation: Representation) -> int:
    """Return what the conditions of a request come to: 0 to go on, 304 or 412 (RFC 9110 13.2.2)."""
    headers = request.headers
    if (
        headers.get("HTTP_IF_NONE_MATCH") == representation.etag != ""
        and "HTTP_IF_MATCH" not in headers
        and "HTTP_IF_UNMODIFIED_SINCE" not in headers
    ):
        return 304  # nearly every conditional request: a browser that has it
    return judge(headers, request.command, representation.validators)


def spans_of(request: Asked, representation: Representation) -> tuple[Span, ...] | None:
    """Return the parts that a GET asks for, () for none that there are, None for the whole (RFC 9110 14.2)."""
    value = request.headers.get("HTTP_RANGE")
    # A page that was made in this moment has no parts, and nothing has none.
    if value is None or not representation.etag or not representation.size:
        return None
    if not range_applies(request.headers, representation.validators, int(time.time())):
        return None
    return wanted(value, representation.size)


def partial_content(representation: Representation, spans: Sequence[Span]) -> tuple[bytes, Sequence[bytes | Span]]:
    """Return the beginning of a 206's head, and its body in pieces (RFC 9110 15.3.7)."""
    status_line = f"206 {REASONS[206]}"
    if len(spans) == 1:
        span = spans[0]
        head = representation.head(
            status_line,
            f"Content-Type: {representation.content_type}",
            f"Content-Range: {content_range(span, representation.size)}",
            f"Content-Length: {span.length}",
        )
        return head, [span]
    boundary = f"{random.getrandbits(96):024x}"
    multipart = Multipart(spans, representation.size, representation.content_type, boundary)
    head = representation.head(
        status_line, f"Content-Type: {multipart.content_type}", f"Content-Length: {multipart.length}"
    )
    return head, multipart.parts()
