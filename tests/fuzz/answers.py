"""What a server sends, read strictly: RFC 9112 4 to 7, seen from the client."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.fuzz.oracle import Violation

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\x20-\x7e]*")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ([\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")
_DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d GMT")


@dataclass
class Answer:
    """One final response. `whole` is whether its end was seen."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes = b""
    whole: bool = False


def read_answers(data: bytes, methods: list[str], *, ended: bool) -> list[Answer]:
    """Return the final responses in `data`, the answers to requests of these `methods` and to one more.

    `ended` says that the server ended the connection in order. Raises Violation for anything that is not HTTP/1.1.
    """
    answers: list[Answer] = []
    position = 0
    while position < len(data):
        head_end = data.find(b"\r\n\r\n", position)
        if head_end < 0:
            if ended:
                raise Violation(f"the server ended within a head: {data[position:][:200]!r}")
            return answers
        answer = _read_head(data[position:head_end])
        position = head_end + 4
        if answer.status < 200:
            if answer.status != 100 or answer.headers:
                raise Violation(f"an interim response that nobody asked for: {answer}")
            continue
        if answers and answers[-1].headers.get("connection", "").lower() == "close":
            raise Violation(f"{answer} follows an answer that said it was the last: {answers[-1]}")
        method = methods[len(answers)] if len(answers) < len(methods) else ""
        answers.append(answer)
        position = _read_body(data, position, answer, method, ended=ended)
    return answers


def _read_head(head: bytes) -> Answer:
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise Violation(f"not a status line: {first[:200]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Violation(f"not a header line: {line[:200]!r}")
        name = match[1].decode().lower()
        if name in headers:
            raise Violation(f"{name} stands twice")
        headers[name] = (match[2] or b"").decode()
    answer = Answer(int(status[1]), headers)
    # Who is turned away has made no request that could have an id.
    turned_away = answer.status in (429, 503) and headers.get("connection") == "close"
    named = headers.get("x-request-id") or turned_away
    if answer.status >= 200 and not (_DATE.fullmatch(headers.get("date", "")) and named):
        raise Violation(f"no date, or no id: {answer}")
    return answer


def _read_body(data: bytes, position: int, answer: Answer, method: str, *, ended: bool) -> int:
    """Return where the body of `answer` ends."""
    length, coding = answer.headers.get("content-length"), answer.headers.get("transfer-encoding")
    if length is not None and (coding is not None or not length.isdigit()):
        raise Violation(f"two ways to end, or none: {answer}")
    if answer.status in (204, 304) or method == "HEAD":
        answer.whole = True
        # Who is refused a connection is told so before the request has been read: nobody knows that it is HEAD.
        unread = answer.status in (429, 503) and answer.headers.get("connection") == "close"
        return len(data) if unread and len(data) - position == int(length or 0) else position
    if coding is not None:
        if coding != "chunked":
            raise Violation(f"coded otherwise than asked for: {answer}")
        return _read_chunks(data, position, answer, ended=ended)
    end = len(data) if length is None else position + int(length)
    if not method and position == len(data):
        # Of a request that was refused the method is not known here, and HEAD has no body.
        answer.whole = True
        return position
    answer.body = data[position:end]
    answer.whole = ended if length is None else end <= len(data)
    if ended and not answer.whole:
        raise Violation(f"{len(answer.body)} bytes of a body of {length}, and an orderly end")
    return end


def _read_chunks(data: bytes, position: int, answer: Answer, *, ended: bool) -> int:
    while True:
        end = data.find(b"\r\n", position)
        size = data[position:end] if end >= 0 else b""
        if end < 0 or len(data) < end + 4 + int(size, 16):
            if ended:
                raise Violation(f"the server ended within a chunk of {answer}")
            return len(data)
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            raise Violation(f"not a chunk size: {size[:80]!r}")
        start, position = end + 2, end + 2 + int(size, 16)
        answer.body += data[start:position]
        if data[position : position + 2] != b"\r\n":
            raise Violation(f"a chunk that does not end: {data[position:][:80]!r}")
        position += 2
        if int(size, 16) == 0:
            answer.whole = True
            return position
