"""The parser alone: a stream in pieces, held against what the strict reader says of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

from hardserve.edge.gate import Gate
from hardserve.edge.parsing import ParserRules, Request
from hardserve.refusals import Refusal
from hardserve.settings import LimitSettings, RateLimitingSettings, Settings
from tests.fuzz.grammar import Case
from tests.fuzz.memory import kept_bytes
from tests.fuzz.oracle import Asked, Reading, Tail, Violation, read
from tests.support import admitted, plain_gate

# Small, so that every cap is met.
LIMITS = LimitSettings(
    request_line=256,
    header_line=300,
    header=1024,
    header_count=12,
    body=400,
    body_memory=100,
    chunk_line=64,
    chunk_extensions=60,
    trailer=200,
)
# A request of these limits: its head once as bytes and once as fields, a body in memory, trailers, and its objects.
KEPT_AT_MOST = 2 * LIMITS.header + LIMITS.body + LIMITS.body_memory + 4096


@dataclass
class Parsed:
    """What the parser made of a stream."""

    requests: list[Asked] = field(default_factory=list)
    tail: Tail = Tail.OPEN
    refusal: Refusal | None = None
    most_kept: int = 0


@functools.cache
def _gate(limits: LimitSettings) -> Gate:
    """Return a gate that keeps nothing of who has passed it: one is as good for all streams as for the next."""
    return plain_gate(Settings(limits=limits, rate_limiting=RateLimitingSettings(default="off")))


def parse(pieces: Iterable[bytes], rules: ParserRules, *, weigh: bool = False) -> Parsed:
    """Feed `pieces` to requests, one after another, as a connection does."""
    parsed = Parsed()
    gate = _gate(rules.limits)
    request: Request | None = None
    ahead = b""
    for piece in pieces:
        ahead += piece
        while ahead and parsed.tail is Tail.OPEN:
            request = request or Request(rules, 0.0)
            ahead = _feed(request, ahead, gate)
            if weigh:
                parsed.most_kept = max(parsed.most_kept, kept_bytes(request, [rules]))
            if _is_over(request, parsed):
                request.close()
                request = None
    if request is not None:
        request.close()
    return parsed


def _feed(request: Request, ahead: bytes, gate: Gate) -> bytes:
    had_head = request.headers_finished
    consumed = request.feed(ahead)
    if not 0 <= consumed <= len(ahead):
        raise Violation(f"{consumed} of {len(ahead)} bytes were consumed")
    if not consumed and not request.completed:
        raise Violation("nothing was consumed, and it will be asked again for ever")
    if request.refusal is None and request.headers_finished and not had_head:
        request.refusal = admitted(gate, request)
    return ahead[consumed:]


def _is_over(request: Request, parsed: Parsed) -> bool:
    if request.refusal is not None:
        parsed.tail, parsed.refusal = Tail.REFUSED, request.refusal
    elif request.completed:
        parsed.requests.append(_asked(request))
        parsed.tail = Tail.OPEN if request.keep_alive else Tail.CLOSED
    return request.refusal is not None or request.completed


def _asked(request: Request) -> Asked:
    body = b"" if request.body_rcv is None else request.get_body_stream().read()
    return Asked(
        request.command,
        request.request_uri,
        request.path,
        request.query,
        request.version,
        request.headers,
        body,
        request.keep_alive,
    )


def compare(expected: Reading, seen: list[Asked], tail: Tail, status: int) -> None:
    """Raise Violation unless a server that took `seen`, and then refused with `status`, was right to."""
    for number, (asked, took) in enumerate(zip(expected.requests, seen, strict=False)):
        if asked != took:
            raise Violation(f"request {number} was sent as {asked} and taken as {took}")
    if len(seen) > len(expected.requests):
        raise Violation(f"a request was taken that was not sent: {seen[len(expected.requests)]}")
    if len(seen) < len(expected.requests):
        raise Violation(f"{tail.value} with {status} after {len(seen)} of {len(expected.requests)} requests")
    allowed = {Tail.DOOMED: {Tail.OPEN, Tail.REFUSED}}.get(expected.tail, {expected.tail})
    if tail not in allowed:
        raise Violation(f"{tail.value} with {status}, not {expected.tail.value} ({sorted(expected.statuses)})")
    if tail is Tail.REFUSED and status not in expected.statuses:
        raise Violation(f"refused with {status}, where what is wrong is {sorted(expected.statuses)}")


def check(case: Case) -> tuple[Reading, Parsed]:
    """Parse `case` whole, in its pieces and byte by byte; raise Violation, or whatever the parser raises."""
    expected = read(case.stream, LIMITS)
    rules = ParserRules(LIMITS)  # shared: a line that is remembered must mean what it did the first time
    whole = parse([case.stream], rules, weigh=True)
    deliveries = {
        "whole": whole,
        "in pieces": parse(case.pieces, rules, weigh=True),
        "byte by byte": parse((bytes([byte]) for byte in case.stream), rules),
    }
    for delivery, parsed in deliveries.items():
        try:
            compare(expected, parsed.requests, parsed.tail, parsed.refusal.status if parsed.refusal else 0)
        except Violation as violation:
            raise Violation(f"delivered {delivery}: {violation}") from None
        if parsed.most_kept > KEPT_AT_MOST:
            raise Violation(f"a request kept {parsed.most_kept:,} bytes")
    return expected, whole
