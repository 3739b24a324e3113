"""What a stream of bytes asks for, read strictly and at leisure.

Written from RFC 9110 and 9112 and independently of hardserve.edge.parsing, of which it imports nothing: it holds the
whole stream, looks at one line after another, and collects everything that is wrong with a request instead of stopping
at the first thing. So a server may name any of them, and may say so before the request is whole, but it must not take
what is wrong, nor refuse what is not.
"""

from __future__ import annotations

import socket
import string
from dataclasses import dataclass, field
from enum import Enum

from hardserve.settings import LimitSettings

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~" + (string.ascii_letters + string.digits).encode())
_DIGITS = frozenset(string.digits.encode())
_HEX = frozenset(string.hexdigits.encode())
_UPPER = frozenset(string.ascii_uppercase.encode())
_TARGET = frozenset(range(0x21, 0x7F)) | frozenset(range(0x80, 0x100))
_VALUE = (frozenset(range(0x20, 0x100)) | {0x09}) - {0x7F}  # RFC 9110 5.5: no control characters but HTAB
_NAME = frozenset((string.ascii_letters + string.digits + "-._~!$&'()*+,;=%").encode())  # RFC 3986 3.2.2: reg-name
# RFC 9112 2.2 asks for one empty line before a request to be ignored; this many are nobody's habit.
_EMPTY_LINES_BYTES = 64


class Violation(AssertionError):  # noqa: N818  # it is what happened to the invariant
    """The invariant does not hold. The text says what was expected and what was seen."""


class Tail(Enum):
    """How a stream goes on behind the last request that is whole and good."""

    OPEN = "open"  # there is nothing, or the beginning of what may become a request
    CLOSED = "closed"  # the last request ended the connection; whatever follows was never sent as a request
    DOOMED = "doomed"  # there is the beginning of something that cannot become a request
    REFUSED = "refused"  # there is something whole that is not a request


@dataclass(frozen=True)
class Asked:
    """One request, as a WSGI app is to see it."""

    method: str
    target: str
    path: str
    query: str
    version: str
    headers: dict[str, str]  # keyed as in a WSGI environ
    body: bytes
    keep_alive: bool


@dataclass
class Reading:
    """What a stream asks for, how it goes on, and the statuses of all the rules that are broken behind the requests."""

    requests: list[Asked] = field(default_factory=list)
    tail: Tail = Tail.OPEN
    statuses: set[int] = field(default_factory=set)
    pending: bool = False  # something of an unfinished request is there


@dataclass
class _Head:
    statuses: set[int] = field(default_factory=set)
    method: str = ""
    target: str = ""
    path: str = ""
    query: str = ""
    version: str = "1.1"
    authority: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    keep_alive: bool = True
    length: int = 0
    chunked: bool = False


def read(data: bytes, limits: LimitSettings) -> Reading:
    """Return all that `data` asks for."""
    reading = Reading()
    position = 0
    while reading.tail is Tail.OPEN and not reading.pending:
        start = position
        while data[position : position + 2] == b"\r\n":
            position += 2
        if position - start > _EMPTY_LINES_BYTES:
            reading.tail, reading.statuses = Tail.REFUSED, {400}
        elif data[position:] in (b"", b"\r"):
            return reading
        else:
            position = _read_request(data, position, limits, reading)
    return reading


def _read_request(data: bytes, position: int, limits: LimitSettings, reading: Reading) -> int:
    end = data.find(b"\r\n\r\n", position)
    if end < 0:
        _judge_unfinished_head(data[position:], limits, reading)
        return len(data)
    head = _judge_head(data[position:end], limits)
    if head.statuses:
        reading.tail, reading.statuses = Tail.REFUSED, head.statuses
        return len(data)
    position = end + 4
    if head.chunked:
        body, position = _read_chunks(data, position, limits, reading)
        if body is None:
            return len(data)
        head.headers["CONTENT_LENGTH"] = str(len(body))
    else:
        body = data[position : position + head.length]
        position += head.length
        if len(body) < head.length:
            reading.pending = True
            return len(data)
    reading.requests.append(
        Asked(head.method, head.target, head.path, head.query, head.version, head.headers, body, head.keep_alive)
    )
    if not head.keep_alive:
        reading.tail = Tail.CLOSED
    return position


# --- heads ---


def _judge_unfinished_head(data: bytes, limits: LimitSettings, reading: Reading) -> None:
    """Say whether what there is of a head may still become one."""
    reading.pending = True
    statuses = set()
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1]):
        judge = _judge_first_line if number == 0 else _judge_field_alone
        statuses |= judge(line[:-1], limits) if line[-1:] == b"\r" else judge(line, limits) | {400}
    last = lines[-1]
    if last.endswith(b"\r"):
        last = last[:-1]
        whole = True
    else:
        whole = False
    if len(lines) == 1:
        statuses |= _judge_first_line_so_far(last, whole, limits)
    else:
        statuses |= _judge_field_so_far(last, whole, limits)
    if min(len(line.rstrip(b"\r")) for line in (lines[0], data.partition(b"\r\n")[0])) > limits.request_line:
        statuses.add(414)
    # Three bytes of the empty line that ends it may be there.
    if max(len(data.rstrip(b"\r\n")), len(data) - 3) > limits.header or len(lines) - 2 > limits.header_count:
        statuses.add(431)
    if statuses:
        reading.tail, reading.statuses = Tail.DOOMED, statuses


def _judge_first_line(line: bytes, limits: LimitSettings) -> set[int]:
    head = _Head()
    _judge_request_line(line, limits, head)
    return head.statuses


def _judge_first_line_so_far(line: bytes, whole: bool, limits: LimitSettings) -> set[int]:
    if whole:
        return _judge_first_line(line, limits)
    if len(line) > limits.request_line:
        return {400, 414}  # what it is besides cannot be known
    whole_line = b"GET / HTTP/1.1"
    completions = [whole_line[start:] for start in range(len(whole_line) + 1)]
    completions += [b"a/ HTTP/1.1", b"://a/ HTTP/1.1", b"p://a/ HTTP/1.1", b"tp://a/ HTTP/1.1", b"ttp://a/ HTTP/1.1"]
    completions += [
        b"//a/ HTTP/1.1",
        b"/a/ HTTP/1.1",
        b"1/ HTTP/1.1",
        b"]/ HTTP/1.1",
        b"::1]/ HTTP/1.1",
        b"41 HTTP/1.1",
        b"1 HTTP/1.1",
    ]
    wide = LimitSettings(request_line=2 * limits.request_line + 64)
    statuses: set[int] = set()
    for completion in completions:
        found = _judge_first_line(line + completion, wide)
        if not found:
            return set()
        statuses |= found
    return statuses | {400}


def _judge_field_alone(line: bytes, limits: LimitSettings) -> set[int]:
    head = _Head()
    _judge_field(line, limits, head)
    return head.statuses


def _judge_field_so_far(line: bytes, whole: bool, limits: LimitSettings) -> set[int]:
    if not line:
        return set()
    if len(line) > limits.header_line:
        return {400, 431}
    if whole:
        return _judge_field_alone(line, limits)
    name, colon, value = line.partition(b":")
    good = name and set(name) <= _TOKEN and set(value) <= _VALUE if colon else set(name) <= _TOKEN
    # A value may be wrong already, and its end be missing: it may be refused, and it need not be.
    return set() if good and not (colon and _judge_field_alone(line, limits)) else {400}


def _judge_head(data: bytes, limits: LimitSettings) -> _Head:
    head = _Head()
    lines = data.split(b"\r\n")
    if len(data) > limits.header or len(lines) - 1 > limits.header_count:
        head.statuses.add(431)
    _judge_request_line(lines[0], limits, head)
    for line in lines[1:]:
        _judge_field(line, limits, head)
    _judge_together(head, limits)
    return head


def _judge_request_line(line: bytes, limits: LimitSettings, head: _Head) -> None:
    if len(line) > limits.request_line:
        head.statuses.add(414)
    if line[:1] == b"\x16":  # TLS
        head.statuses.add(400)
    parts = line.split(b" ")
    if len(parts) != 3:
        head.statuses.add(400)
        return
    method, target, version = parts
    _judge_method(method, head)
    _judge_version(version, head)
    _judge_target(target, head)


def _judge_method(method: bytes, head: _Head) -> None:
    if not method or not set(method) <= _TOKEN:
        head.statuses.add(400)
    elif method[0] not in _UPPER or method.upper() != method or len(method) > 32:
        head.statuses.add(400)  # methods are case-sensitive, and every registered one is upper case (RFC 9110 9.1)
    if method in (b"CONNECT", b"TRACE"):
        head.statuses |= {501, 405}
    head.method = method.decode("latin-1")


def _judge_version(version: bytes, head: _Head) -> None:
    if (
        len(version) != 8
        or version[:5] != b"HTTP/"
        or version[6:7] != b"."
        or not set(version[5:6] + version[7:]) <= _DIGITS
    ):
        head.statuses.add(400)
        if version[:5] == b"HTTP/":
            head.statuses.add(505)
        return
    if version[5:6] != b"1":
        head.statuses.add(505)
    head.version = "1.0" if version[7:] == b"0" else "1.1"  # RFC 9110 2.5: of a later minor version, too


def _judge_target(target: bytes, head: _Head) -> None:
    head.target = target.decode("latin-1")
    if not target or not set(target) <= _TARGET or b"#" in target:
        head.statuses.add(400)
        return
    if target == b"*":
        if head.method != "OPTIONS":
            head.statuses.add(400)
        return
    if target[:1] != b"/":
        scheme, _, rest = target.partition(b"://")
        if scheme.lower() not in (b"http", b"https"):
            head.statuses.add(400)
            return
        size = min(at for at in (rest.find(b"/"), rest.find(b"?"), len(rest)) if at >= 0)
        head.authority, target = rest[:size], rest[size:]
        _judge_host(head.authority, head)
        if target[:1] != b"/":
            target = b"/" + target
    if not _escapes_are_whole(target):
        head.statuses.add(400)
        return
    path, _, query = target.partition(b"?")
    head.query = query.decode("latin-1")
    decoded = _decode(path)
    if b"\0" in decoded:
        head.statuses.add(400)
    if decoded[:2] == b"//":
        # Neither RFC's, but what waitress does and the server keeps: no path can name a host.
        decoded = b"/" + decoded.lstrip(b"/")
    head.path = decoded.decode("latin-1")


def _escapes_are_whole(text: bytes) -> bool:
    return all(len(rest) >= 2 and set(rest[:2]) <= _HEX for rest in text.split(b"%")[1:])


def _decode(path: bytes) -> bytes:
    first, *rest = path.split(b"%")
    return first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)


def _judge_host(host: bytes, head: _Head) -> None:
    """RFC 9110 7.2, RFC 3986 3.2.2: a name or a bracketed address, and a port."""
    if host[:1] == b"[":
        address, bracket, port = host[1:].partition(b"]")
        try:
            socket.inet_pton(socket.AF_INET6, address.decode("ascii"))
        except (OSError, ValueError):
            head.statuses.add(400)
        if not bracket or (port and port[:1] != b":"):
            head.statuses.add(400)
        port = port[1:]
    else:
        name, _, port = host.partition(b":")
        if not name or not set(name) <= _NAME or not _escapes_are_whole(name):
            head.statuses.add(400)
    if not set(port) <= _DIGITS or len(port) > 5 or (port and int(port) > 65_535):
        head.statuses.add(400)


def _same_host(one: str, other: str, default_port: str) -> bool:
    """RFC 9110 4.2.3: case, an empty port and the scheme's default one make no difference."""
    names = set()
    for host in (one.lower(), other.lower()):
        at = host.rfind(":", host.rfind("]") + 1)
        name, port = (host, "") if at < 0 else (host[:at], host[at + 1 :])
        names.add((name, "" if port == default_port else port))
    return len(names) == 1


# What clients may say of who they are, which no app is to see.
_FORWARDING = {"HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_CF_CONNECTING_IP", "HTTP_TRUE_CLIENT_IP"}


def _judge_field(line: bytes, limits: LimitSettings, head: _Head) -> None:
    if len(line) > limits.header_line:
        head.statuses.add(431)
    name, colon, value = line.partition(b":")
    if not colon or not name or not set(name) <= _TOKEN or not set(value) <= _VALUE:
        head.statuses.add(400)
        return
    if b"_" in name:
        return  # dropped, as nginx does: X_Real_IP must not pass for X-Real-IP
    value = value.strip(b" \t")
    key = name.decode().upper().replace("-", "_")
    if key not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
        key = f"HTTP_{key}"
    if key in _FORWARDING or key.startswith("HTTP_X_FORWARDED_"):
        return  # not for the app, and nobody here is a trusted proxy
    if key == "HTTP_HOST" and value:
        _judge_host(value, head)
    if key == "CONTENT_LENGTH" and not (set(value) <= _DIGITS and 0 < len(value) <= 18):
        head.statuses |= {400, 413}
    text = value.decode("latin-1")
    if key in head.headers:
        if key in ("HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING"):
            head.statuses.add(400)
        # RFC 9110 5.3; RFC 6265 5.4
        text = head.headers[key] + ("; " if key == "HTTP_COOKIE" else ", ") + text
    head.headers[key] = text


def _judge_together(head: _Head, limits: LimitSettings) -> None:
    """What the fields mean together: one host, where the body ends, whether the connection does."""
    headers = head.headers
    host = headers.get("HTTP_HOST")
    if host == "" or (host is None and head.version == "1.1"):
        head.statuses.add(400)
    if head.authority:
        authority = head.authority.decode("latin-1")
        if host is not None and not _same_host(host, authority, "443" if head.target[4] in "sS" else "80"):
            head.statuses.add(400)
        headers["HTTP_HOST"] = authority
    coding = headers.pop("HTTP_TRANSFER_ENCODING", None)
    length = headers.get("CONTENT_LENGTH")
    if coding is not None:
        if coding.lower() != "chunked":
            head.statuses |= {400, 501}
        if head.version == "1.0" or length is not None:
            head.statuses.add(400)
        head.chunked = True
    elif length and set(length) <= set(string.digits) and len(length) <= 18:
        head.length = int(length)
        if head.length > limits.body:
            head.statuses.add(413)
    if head.version == "1.1" and headers.get("HTTP_EXPECT", "100-continue").lower() != "100-continue":
        head.statuses.add(417)
    options = [option.strip(" \t").lower() for option in headers.get("HTTP_CONNECTION", "").split(",")]
    head.keep_alive = "close" not in options and (head.version == "1.1" or "keep-alive" in options)


# --- chunks (RFC 9112 7.1) ---


def _read_chunks(data: bytes, position: int, limits: LimitSettings, reading: Reading) -> tuple[bytes | None, int]:
    """Return the body and where it ends; None when it does not, and `reading` then says why."""
    body = b""
    announced = extensions = 0
    broken: set[int] = set()
    while True:
        line, position = _line_at(data, position)
        if line is None:
            return _unfinished(reading, broken | _judge_chunk_line_so_far(data[position:], limits)), len(data)
        if len(line) > limits.chunk_line:
            broken.add(400)
        digits = _chunk_digits(line)
        if digits is None:
            return _refused(reading, broken | {400}), len(data)
        size = int(digits, 16)
        announced += size
        extensions += len(line) - len(digits)
        if announced > limits.body:
            broken.add(413)
        if extensions > announced + limits.chunk_extensions:
            broken.add(400)
        if size == 0:
            return _read_trailers(data, position, body, broken, limits, reading)
        body += data[position : position + size]
        position += size
        line, position = _line_at(data, position)
        if line is None:
            return _unfinished(reading, broken if data[position:] in (b"", b"\r") else broken | {400}), len(data)
        if line:
            return _refused(reading, broken | {400}), len(data)


def _read_trailers(
    data: bytes, position: int, body: bytes, broken: set[int], limits: LimitSettings, reading: Reading
) -> tuple[bytes | None, int]:
    taken = 0
    while True:
        line, position = _line_at(data, position)
        if line is None:
            rest = data[position:]
            if taken + len(rest.rstrip(b"\r")) + 2 > limits.trailer and rest.rstrip(b"\r"):
                broken |= {431}
            if rest not in (b"", b"\r"):
                broken |= _judge_field_so_far(rest.removesuffix(b"\r"), rest[-1:] == b"\r", LimitSettings())
            return _unfinished(reading, broken), len(data)
        if not line:
            return (_refused(reading, broken) if broken else body), position
        taken += len(line) + 2
        if taken > limits.trailer:
            broken.add(431)
        name, colon, value = line.partition(b":")
        if line[-1:] == b"\n" or not colon or not name or not set(name) <= _TOKEN or not set(value) <= _VALUE:
            return _refused(reading, broken | {400}), len(data)


def _line_at(data: bytes, position: int) -> tuple[bytes | None, int]:
    """Return the line that begins at `position` and where the next one does; None where it does not end.

    A line that ends in a bare LF keeps it, and is wrong everywhere.
    """
    end = data.find(b"\n", position)
    if end < 0:
        return None, position
    line = data[position : end + 1]
    return (line[:-2] if line.endswith(b"\r\n") else line), end + 1


def _chunk_digits(line: bytes) -> bytes | None:
    """Return the size of a chunk as it stands in its line, None for a line that is none."""
    count = 0
    while count < len(line) and line[count] in _HEX:
        count += 1
    return line[:count] if 0 < count <= 15 and _are_extensions(line[count:]) else None


def _are_extensions(rest: bytes) -> bool:
    """RFC 9112 7.1.1: *( BWS ";" BWS token [ BWS "=" [ BWS ( token / quoted-string ) ] ] ).

    That a value may be missing is a deviation of the server's, and meant.
    """
    while rest:
        rest = rest.lstrip(b" \t")
        if rest[:1] != b";":
            return False
        name, rest = _token_at(rest[1:].lstrip(b" \t"))
        if not name:
            return False
        if rest.lstrip(b" \t")[:1] == b"=":
            rest = rest.lstrip(b" \t")[1:]
            value = rest.lstrip(b" \t")
            word, after = _quoted_at(value) if value[:1] == b'"' else _token_at(value)
            if word:
                rest = after
    return True


def _token_at(text: bytes) -> tuple[bytes, bytes]:
    count = 0
    while count < len(text) and text[count] in _TOKEN:
        count += 1
    return text[:count], text[count:]


def _quoted_at(text: bytes) -> tuple[bytes, bytes]:
    """RFC 9110 5.6.4: a backslash stands before any character that could stand there itself."""
    at = 1
    while at < len(text) and text[at] in _VALUE:
        if text[at : at + 1] == b'"':
            return text[: at + 1], text[at + 1 :]
        escaped = text[at : at + 1] == b"\\"
        if escaped and not (at + 1 < len(text) and text[at + 1] in _VALUE):
            break
        at += 2 if escaped else 1
    return b"", text


def _judge_chunk_line_so_far(line: bytes, limits: LimitSettings) -> set[int]:
    if not line:
        return set()
    if len(line.removesuffix(b"\r")) > limits.chunk_line:
        return {400}
    completions = (b"",) if line[-1:] == b"\r" else (b"", b"0", b"a", b'"', b'a"', b";a", b"=a")
    whole = line.removesuffix(b"\r")
    return set() if any(_chunk_digits(whole + completion) is not None for completion in completions) else {400}


def _unfinished(reading: Reading, broken: set[int]) -> None:
    reading.pending = True
    if broken:
        reading.tail, reading.statuses = Tail.DOOMED, broken


def _refused(reading: Reading, broken: set[int]) -> None:
    reading.tail, reading.statuses = Tail.REFUSED, broken
