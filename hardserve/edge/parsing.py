"""Bytes to requests: waitress's parser, made linear, faster and strict. I/O thread only; knows no socket.

waitress's `HTTPRequestParser`, `FixedStreamReceiver` and `OverflowableBuffer` collect bodies; its `ChunkedReceiver` is
narrowed below. The head is read here instead, for three reasons. It concatenates what has arrived at every read,
which is quadratic in the size of a head that drips in. It accepts what two parties may read differently (RFC 9112
11.2). And what its regular expressions cost each request is spent once for each distinct line here: clients send the
same header lines again and again, so a line that was found good is remembered with what it means.

tests/test_waitress_contract.py pins every attribute of waitress that this module leans on.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import unquote_to_bytes

from waitress.buffers import OverflowableBuffer
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.utilities import BadRequest

from hardserve import refusals
from hardserve.refusals import Refusal
from hardserve.settings import LimitSettings

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# RFC 9112 3: method SP request-target SP HTTP-version. Methods are case-sensitive and every registered one is upper
# case (RFC 9110 9.1, 16.1.1). Bytes above 0x7F are not allowed in a target, but command-line clients send UTF-8 there
# and nothing reads them as a delimiter, so they pass, deliberately.
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9!#$%&'*+\-.^_`|~]{0,31}) ([\x21-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)")
# RFC 9112 5: no space before the colon, no folded lines; RFC 9110 5.5: no control characters but HTAB in a value.
_HEADER_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# RFC 9110 7.2, RFC 3986 3.2: a name or an address, and a port; never a user name.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z._~-]+)?\]|[0-9A-Za-z._~!$&'()*+,;=%-]+)(?::\d{0,5})?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]*)(/?.*)")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")
_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,15}(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_REQUEST_ID = re.compile(r"[0-9A-Za-z._:+/=@-]{1,128}")

# What a request line is remembered as: method, version, target as given, path, query, and the authority of an absolute
# target.
_RequestLine = tuple[str, str, str, str, str, str]
# What a header line is remembered as: the key in the WSGI environ and the value, or None for a line that is dropped.
_Field = tuple[str, str]
_REMEMBERED_LINES = 1024
_REMEMBERED_LINE_BYTES = 512
# Fields that must not stand twice, because two readers could each believe another one (RFC 9112 3.2, 6.3).
_ONCE = {
    "HTTP_HOST": refusals.BAD_HOST,
    "CONTENT_LENGTH": refusals.BAD_CONTENT_LENGTH,
    "HTTP_TRANSFER_ENCODING": refusals.BAD_TRANSFER_ENCODING,
    "CONTENT_TYPE": refusals.BAD_HEADER,
}
# Longer than any real length and still an int64: 5,000 digits cannot reach int().
_CONTENT_LENGTH = re.compile(rb"\d{1,18}")
_MAX_CHUNK_LINE = 256
_MAX_TRAILER = 8192


class _MalformedError(Exception):
    """Carries the refusal from where a rule is broken to where the request is parsed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.name)
        self.refusal = refusal


@dataclass(slots=True)
class ParserRules:
    """What the requests of one server have in common: its limits, and the lines seen before. I/O thread only."""

    limits: LimitSettings
    remembered: dict[bytes, _Field | None] = field(default_factory=dict)
    remembered_lines: dict[bytes, _RequestLine] = field(default_factory=dict)


_RememberedT = TypeVar("_RememberedT")


def _remember(memory: dict[bytes, _RememberedT], line: bytes, meaning: _RememberedT) -> None:
    """Keep what `line` means. A client that never repeats itself costs a refill, not memory."""
    if len(memory) >= _REMEMBERED_LINES:
        memory.clear()
    memory[line] = meaning


class Request(HTTPRequestParser):
    """One request, from its first byte to the last of its body.

    `feed` it until `completed`. Then `refusal` says whether it is well-formed; if it is, `command`, `path` (decoded,
    latin-1 as WSGI wants it), `query`, `request_uri`, `version` ("1.0" or "1.1"), `headers` (keyed as in a WSGI
    environ) and `get_body_stream()` tell what it asks for. `headers_finished` is set as soon as the head is in, so
    that it can be judged before a byte of its body is. `close()` releases the body's temporary file; whoever drops
    the request does that.
    """

    refusal: Refusal | None = None
    keep_alive = True
    logged = False  # in the access log, where each request stands once
    request_uri = ""
    command = ""  # type: ignore[assignment]  # waitress makes a str of it, whatever its stub says
    query = ""
    path = ""
    request_id = ""
    proxy_netloc = ""  # the authority of an absolute-form target
    headers: dict[str, str]

    def __init__(self, rules: ParserRules, started: float) -> None:
        # Not waitress's own, which sets `headers` and an `adj` that nothing here reads: a call for every request.
        self.headers = {}
        self.rules = rules
        self.max_body = rules.limits.body  # the gate may know a route with another
        self.started = started  # monotonic seconds
        self.head = b""

    def __repr__(self) -> str:
        return f"<Request {self.request_id} {self.command} {self.request_uri[:200]!r}>"

    def feed(self, data: bytes) -> int:
        """Take what belongs to this request from the front of `data`; return how many bytes that was.

        Linear in what arrives: a head is searched once, whatever pieces it comes in. I/O thread.
        """
        if self.body_rcv is not None:
            return self._feed_body(data)
        if self.completed:
            return 0
        if not self.head:
            # Nearly every head arrives in one piece: it is not copied before it is parsed.
            start = 0
            if data[0] in b"\r\n":
                start = len(data) - len(data.lstrip(b"\r\n"))  # RFC 9112 2.2: empty lines before the request line
            end = data.find(b"\r\n\r\n", start)
            if end >= 0:
                self._finish_head(data[start:end])
                return end + 4
            self.head = data[start:]
            consumed = len(data)
        else:
            # A head in pieces: the bytearray grows in place, and only what is new is searched.
            held = len(self.head)
            if not isinstance(self.head, bytearray):
                self.head = cast(bytes, bytearray(self.head))
            cast(bytearray, self.head).extend(data)
            end = self.head.find(b"\r\n\r\n", max(0, held - 3))
            if end >= 0:
                self._finish_head(bytes(self.head[:end]))
                return end + 4 - held
            consumed = len(data)
        self._check_unfinished_head()
        return consumed

    def close(self) -> None:
        """Release the body. Closing a file on a full disk raises what writing it has raised already."""
        with contextlib.suppress(OSError):
            super().close()

    def _check_unfinished_head(self) -> None:
        """Refuse as soon as it is sure, not when the head is complete: some of it may never come."""
        head, limits = self.head, self.rules.limits
        first = head[:8]
        if first[:1] == b"\x16":  # a TLS ClientHello
            self._refuse(refusals.TLS_ON_PLAIN_PORT)
            return
        line_end = head.find(b"\n", 0, limits.request_line + 2) - 1
        if line_end < 0 and len(head) > limits.request_line + 1:
            self._refuse(refusals.REQUEST_LINE_TOO_LONG)
        elif len(head) > limits.header + 3:  # all of the empty line but its last byte may be here
            self._refuse(refusals.HEADER_TOO_LARGE)
        elif line_end >= 0 and not (head[line_end] == 13 and _REQUEST_LINE.fullmatch(head, 0, line_end)):
            # HTTP/0.9, other protocols and clients that end lines with a bare LF never send what would end the head.
            self._refuse(refusals.BAD_REQUEST_LINE)

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.completed = True
        self.keep_alive = False
        self.head = b""

    def _finish_head(self, head: bytes) -> None:
        self.head = b""
        try:
            self.parse_header(head)
        except _MalformedError as malformed:
            self._refuse(malformed.refusal)
            return
        self.headers_finished = True
        self.completed = self.body_rcv is None

    def parse_header(self, header_plus: bytes) -> None:
        """Parse a complete head (without the empty line that ends it). Raises `_MalformedError`."""
        limits = self.rules.limits
        lines = header_plus.split(b"\r\n")
        request_line = lines[0]
        if len(request_line) > limits.request_line:
            raise _MalformedError(refusals.REQUEST_LINE_TOO_LONG)
        if len(header_plus) > limits.header or len(lines) - 1 > limits.header_count:
            raise _MalformedError(refusals.HEADER_TOO_LARGE)
        if len(header_plus) > limits.header_line and max(map(len, lines[1:]), default=0) > limits.header_line:
            raise _MalformedError(refusals.HEADER_TOO_LARGE)
        try:
            line = self.rules.remembered_lines[request_line]
        except KeyError:
            line = self._parse_request_line(request_line)
        self.command, self.version, self.request_uri, self.path, self.query, self.proxy_netloc = line
        self._collect_fields(lines)
        self._settle()

    def _collect_fields(self, lines: list[bytes]) -> None:
        headers = self.headers
        remembered = self.rules.remembered
        for header_line in lines[1:]:
            try:
                pair = remembered[header_line]
            except KeyError:
                pair = self._parse_line(header_line)
            if pair is None:
                continue
            key, value = pair
            if key in headers:
                if key in _ONCE:
                    raise _MalformedError(_ONCE[key])
                # RFC 9110 5.3; RFC 6265 5.4 has a separator of its own.
                value = f"{headers[key]}{'; ' if key == 'HTTP_COOKIE' else ', '}{value}"
            headers[key] = value

    def _settle(self) -> None:
        """Decide what the fields decide together. Most requests have few of these, and pay for no more than a look."""
        headers = self.headers
        if "HTTP_CONNECTION" in headers or self.version != "1.1":
            self._settle_connection(headers.get("HTTP_CONNECTION"))
        if self.proxy_netloc or not headers.get("HTTP_HOST"):
            self._settle_host(headers)
        if "CONTENT_LENGTH" in headers or "HTTP_TRANSFER_ENCODING" in headers or "HTTP_EXPECT" in headers:
            self._settle_body(headers)
        if "HTTP_X_REQUEST_ID" in headers:
            self._settle_request_id(headers)

    def _parse_line(self, line: bytes) -> _Field | None:
        match = _HEADER_LINE.fullmatch(line)
        if match is None:
            raise _MalformedError(refusals.BAD_HEADER)
        name, raw = match[1], match[2].rstrip(b" \t")
        pair: _Field | None
        if b"_" in name:
            # X_Real_IP and X-Real-IP are one key in a WSGI environ: dropped, as nginx does.
            pair = None
        else:
            key = name.decode("latin-1").upper().replace("-", "_")
            if key not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
                key = "HTTP_" + key
            if key == "HTTP_HOST" and raw and not _HOST.fullmatch(raw):
                raise _MalformedError(refusals.BAD_HOST)
            if key == "CONTENT_LENGTH" and not _CONTENT_LENGTH.fullmatch(raw):
                raise _MalformedError(refusals.BAD_CONTENT_LENGTH)
            pair = (key, raw.decode("latin-1"))
        if len(line) <= _REMEMBERED_LINE_BYTES:
            _remember(self.rules.remembered, line, pair)
        return pair

    def _parse_request_line(self, line: bytes) -> _RequestLine:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise _MalformedError(refusals.TLS_ON_PLAIN_PORT if line[:1] == b"\x16" else refusals.BAD_REQUEST_LINE)
        method, target, major, minor = match.groups()
        if major != b"1":
            raise _MalformedError(refusals.BAD_VERSION)
        # RFC 9110 2.5: a later minor version is served as the highest one known.
        version = "1.0" if minor == b"0" else "1.1"
        # Known from here on, also in the log of a refusal.
        self.command, self.request_uri = method.decode("latin-1"), target.decode("latin-1")
        if method in (b"CONNECT", b"TRACE"):
            raise _MalformedError(refusals.BAD_METHOD)
        authority = b""
        if target[:1] != b"/":
            authority, target = self._other_form(target)
        path, _, query = target.partition(b"?")
        if b"#" in target:
            raise _MalformedError(refusals.BAD_TARGET)  # RFC 9112 3.2: a fragment is never sent
        if b"%" in path:
            if _BAD_ESCAPE.search(path):
                raise _MalformedError(refusals.BAD_TARGET)
            path = unquote_to_bytes(path)
        if path[:2] == b"//":
            # As waitress does: an app that puts its path into a Location must not be made to name another host.
            path = b"/" + path.lstrip(b"/")
        parsed = (
            self.command,
            version,
            self.request_uri,
            path.decode("latin-1"),
            query.decode("latin-1"),
            authority.decode("latin-1"),
        )
        if len(line) <= _REMEMBERED_LINE_BYTES:
            _remember(self.rules.remembered_lines, line, parsed)
        return parsed

    def _other_form(self, target: bytes) -> tuple[bytes, bytes]:
        """Split an absolute-form or asterisk-form target (RFC 9112 3.2.2, 3.2.4) into authority and origin form."""
        if target == b"*" and self.command == "OPTIONS":
            return b"", b""  # the server as a whole; a WSGI path is empty or begins with a slash
        match = _ABSOLUTE.fullmatch(target)
        if match is None or not _HOST.fullmatch(match[1]):
            raise _MalformedError(refusals.BAD_TARGET)
        rest = match[2]
        return match[1], rest if rest[:1] == b"/" else b"/" + rest

    def _settle_connection(self, connection: str | None) -> None:
        """Decide whether the connection lives on (RFC 9112 9.3); every option of every Connection field counts."""
        if connection is None:
            self.keep_alive = self.version == "1.1"
            return
        options = {option.strip(" \t").lower() for option in connection.split(",")}
        self.keep_alive = "close" not in options and (self.version == "1.1" or "keep-alive" in options)

    def _settle_host(self, headers: dict[str, str]) -> None:
        """Hold a request to one host (RFC 9112 3.2): missing is an error on 1.1, and two must agree."""
        host = headers.get("HTTP_HOST")
        if not host and (self.version == "1.1" or host is not None):
            raise _MalformedError(refusals.BAD_HOST)
        authority = self.proxy_netloc
        if authority and host and authority.lower() != host.lower():
            raise _MalformedError(refusals.BAD_HOST)
        if authority:
            headers["HTTP_HOST"] = authority

    def _settle_body(self, headers: dict[str, str]) -> None:
        """Decide where the body ends (RFC 9112 6.3) and what will collect it."""
        coding = headers.pop("HTTP_TRANSFER_ENCODING", None)
        length = headers.get("CONTENT_LENGTH")
        if coding is not None:
            # RFC 9112 6.1: not on 1.0, and never together with a length.
            if self.version == "1.0" or length is not None:
                raise _MalformedError(refusals.BAD_TRANSFER_ENCODING)
            if coding.lower() != "chunked":
                raise _MalformedError(
                    refusals.BAD_TRANSFER_ENCODING
                    if "chunked" in coding.lower()
                    else refusals.UNKNOWN_TRANSFER_ENCODING
                )
            self.chunked = True
            self.body_rcv = StrictChunkedReceiver(self._body_buffer())
        elif length is not None:
            self.content_length = int(length)
            if self.content_length > 0:
                self.body_rcv = FixedStreamReceiver(self.content_length, self._body_buffer())
        expect = headers.get("HTTP_EXPECT")
        if expect is not None and self.version == "1.1":
            if expect.lower() != "100-continue":
                raise _MalformedError(refusals.UNKNOWN_EXPECTATION)
            self.expect_continue = self.body_rcv is not None

    def _body_buffer(self) -> OverflowableBuffer:
        # waitress moves a body to a temporary file (unlinked from the start) when it reaches the size it is given.
        return OverflowableBuffer(self.rules.limits.body_memory + 1)

    def _settle_request_id(self, headers: dict[str, str]) -> None:
        """Pass on the id that a proxy or client gave, if it is fit for a log; else leave it to the connection."""
        given = headers.get("HTTP_X_REQUEST_ID")
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.request_id = given

    def _feed_body(self, data: bytes) -> int:
        receiver = self.body_rcv
        assert receiver is not None
        try:
            consumed = receiver.received(data)
        except OSError:  # from the temporary file: no space, no directory, too many files
            self._refuse(refusals.BODY_NOT_STORED)
            return len(data)
        if self.chunked:
            if receiver.error is not None:
                self._refuse(refusals.BAD_CHUNK)
            elif len(receiver) > self.max_body:
                self._refuse(refusals.BODY_TOO_LARGE)
            elif receiver.completed:
                # The app is given a body whose length is known, and cannot tell that it came in chunks.
                self.headers["CONTENT_LENGTH"] = str(len(receiver))
        self.completed = self.completed or receiver.completed
        return consumed


class StrictChunkedReceiver(ChunkedReceiver):
    """waitress's chunk collector with a decoder of our own (RFC 9112 7.1).

    waitress takes an empty line between chunks, sizes of any length, and joins an unfinished line or trailer to what it
    had at every read. Here every line ends in CRLF, has its place and its cap, and only an unfinished line is kept.
    """

    trailer_bytes = 0

    def received(self, s: bytes) -> int:
        """Decode from the front of `s` to the end of the body or of `s`; return how many bytes that was."""
        position, size = 0, len(s)
        while position < size and not self.completed:
            if self.chunk_remainder > 0:
                piece = s[position : position + self.chunk_remainder]
                self.buf.append(piece)
                position += len(piece)
                self.chunk_remainder -= len(piece)
                self.validate_chunk_end = self.chunk_remainder == 0
                continue
            end = s.find(b"\n", position) + 1 or size
            self.control_line += s[position:end]
            position = end
            if self.control_line[-1:] == b"\n":
                line, self.control_line = self.control_line, b""
                if line[-2:] != b"\r\n" or not self._take_line(line[:-2]):
                    self._fail()
            elif len(self.control_line) > (_MAX_TRAILER if self.all_chunks_received else _MAX_CHUNK_LINE) + 1:
                self._fail()  # the one is for a CR
        return position

    def _take_line(self, line: bytes) -> bool:
        """Take one line from between the data; return whether it may stand there."""
        if self.validate_chunk_end:
            self.validate_chunk_end = False
            return not line
        if self.all_chunks_received:
            # RFC 9110 6.5.1: a recipient may drop trailers, and these are; nothing is ever merged from them.
            self.trailer_bytes += len(line)
            self.completed = not line
            return self.trailer_bytes <= _MAX_TRAILER and (not line or bool(_HEADER_LINE.fullmatch(line)))
        if len(line) > _MAX_CHUNK_LINE or not _CHUNK_LINE.fullmatch(line):
            return False
        self.chunk_remainder = int(line.partition(b";")[0], 16)
        self.all_chunks_received = self.chunk_remainder == 0
        return True

    def _fail(self) -> None:
        self.error = BadRequest("chunk")
        self.completed = True
