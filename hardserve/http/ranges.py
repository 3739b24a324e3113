"""Parts of a representation: which bytes a Range field asks for, and how several of them are put in one body.

Pure; any thread. It knows numbers of bytes, and neither where they come from nor whether the request's preconditions
and If-Range hold, which is asked before (RFC 9110 13.2.2), nor the method: Range means something for GET alone (14.2).

A client says in a line what would take us much work to answer: the same megabytes a thousand times over, or a part for
every other byte. RFC 9110 14.2 and 17.15 leave it to the server to refuse. Here no byte is sent twice, for spans that
overlap are coalesced; no part costs more than what it spares, for a gap that is shorter than the head of a part is sent
along (15.3.7.2); and a field with more than `MAX_RANGES` ranges is ignored, so that the whole is sent once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

# Ranges in one field. Readers of PDFs and archives ask for a few.
MAX_RANGES: Final = 32
# What the delimiter and the head of a part take, about: Content-Range alone is 40 bytes of it.
PART_OVERHEAD: Final = 80

_UNIT = "bytes="
_OWS = " \t"
_SPEC = re.compile(r"([0-9]*)-([0-9]*)")
# More digits than any size has. RFC 9110 14.1.2: large numerals must be anticipated, and int() is quadratic in their
# length until it raises. What is longer is as far beyond every end as this is.
_MAX_DIGITS = 20
_BEYOND = 10**_MAX_DIGITS


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from `start` to before `end`, as a slice has them: the last position of a range is one less."""

    start: int
    end: int

    @property
    def length(self) -> int:  # not `len`, which a 32-bit machine has only up to 2 GiB
        return self.end - self.start


def wanted(value: str, size: int) -> tuple[Span, ...] | None:
    """Return the spans of a representation of `size` bytes that the Range field's `value` asks for.

    None: the field is to be ignored and the whole sent, since it is malformed, of another unit, or of too many ranges
    (RFC 9110 14.2). None of its ranges has a byte: (), which is a 416. Otherwise one span or several, none of them
    empty, each within the representation, and no two of them nearer to each other than a part's overhead. They are in
    the client's order if they are what it asked for, and in ascending order if any had to be coalesced (15.3.7.2).
    Takes time in proportion to the length of `value`.
    """
    value = value.strip(_OWS)
    if value[: len(_UNIT)].lower() != _UNIT:
        return None
    # RFC 9110 5.6.1.2: empty elements do not count.
    specs = [spec for element in value[len(_UNIT) :].split(",") if (spec := element.strip(_OWS))]
    if not 1 <= len(specs) <= MAX_RANGES:
        return None
    spans = []
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None:
            return None
        span = _span(match[1], match[2], size)
        if span is None:
            return None
        if span.start < span.end:
            spans.append(span)
    return tuple(spans if len(spans) < 2 else _coalesced(spans))


def content_range(span: Span, size: int) -> str:
    """Return the value of Content-Range that says where `span` is in `size` bytes. RFC 9110 14.4."""
    return f"bytes {span.start}-{span.end - 1}/{size}"


def unsatisfied(size: int) -> str:
    """Return the value of Content-Range in a 416: how many bytes there would have been. RFC 9110 14.4, 15.5.17."""
    return f"bytes */{size}"


class Multipart:
    """The multipart/byteranges body of several spans, in their order: RFC 9110 14.6.

    `content_type` is that of the representation, and "" when it has none; both it and the size are known to be fit for
    a header field. `boundary` is 1 to 70 letters and digits (RFC 2046 5.1.1; needing no quotes, which clients do not
    all understand) that a body does not contain by chance: random, and long. For a single span there is no such body: a
    client that asked for one range must not be sent it (RFC 9110 15.3.7.2).

    `content_type` as an attribute is the response's own, `length` how many bytes the body has.
    """

    __slots__ = ("_parts", "content_type", "length")

    def __init__(self, spans: Sequence[Span], size: int, content_type: str, boundary: str) -> None:
        self.content_type = f"multipart/byteranges; boundary={boundary}"
        self._parts: list[bytes | Span] = []
        type_line = f"Content-Type: {content_type}\r\n" if content_type else ""
        line_end = ""  # before a delimiter, and belonging to it: the first one needs none
        for span in spans:
            head = f"{line_end}--{boundary}\r\n{type_line}Content-Range: {content_range(span, size)}\r\n\r\n"
            self._parts += (head.encode("latin-1"), span)
            line_end = "\r\n"
        self._parts.append(f"{line_end}--{boundary}--\r\n".encode("latin-1"))
        self.length = sum(part.length if isinstance(part, Span) else len(part) for part in self._parts)

    def __repr__(self) -> str:
        return f"<Multipart {len(self._parts) // 2} spans, {self.length} bytes>"

    def parts(self) -> list[bytes | Span]:
        """Return the body's pieces in order: bytes to send as they are, and spans to send from the representation."""
        return list(self._parts)


def _span(first: str, last: str, size: int) -> Span | None:
    """Return the bytes of one range, which may be none. None: this is no range."""
    if not first:
        if not last:
            return None
        return Span(max(size - _number(last), 0), size)  # the last so many: RFC 9110 14.1.2
    if last and _order(last) < _order(first):
        return None
    start = min(_number(first), size)
    return Span(start, min(_number(last) + 1, size) if last else size)


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MAX_DIGITS else _BEYOND


def _order(digits: str) -> tuple[int, str]:
    """Return what compares as the numbers of any length do."""
    digits = digits.lstrip("0")
    return len(digits), digits


def _coalesced(spans: list[Span]) -> list[Span]:
    in_order = sorted(spans, key=lambda span: span.start)
    if all(after.start - before.end >= PART_OVERHEAD for before, after in pairwise(in_order)):
        return spans
    coalesced = in_order[:1]
    for span in in_order[1:]:
        before = coalesced[-1]
        if span.start - before.end < PART_OVERHEAD:
            coalesced[-1] = Span(before.start, max(before.end, span.end))
        else:
            coalesced.append(span)
    return coalesced
