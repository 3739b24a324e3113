"""Bytes to requests: waitress's parser, made linear, faster and strict. I/O thread only; knows no socket.

waitress's `HTTPRequestParser`, `FixedStreamReceiver` and `OverflowableBuffer` collect bodies, and edge.chunks decodes
chunked ones. The head is read here instead, for three reasons. It concatenates what has arrived at every read,
which is quadratic in the size of a head that drips in. It accepts what two parties may read differently (RFC 9112
11.2). And what its regular expressions cost each request is spent once for each distinct line here: clients send the
same header lines again and again, so a line that was found good is remembered with what it means.

tests/test_waitress_contract.py pins every attribute of waitress that this module leans on.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, TypeVar, cast
from urllib.parse import unquote_to_bytes

from waitress.buffers import OverflowableBuffer
from waitress.parser import HTTPRequestParser
from waitress.receiver import FixedStreamReceiver

from hardserve import refusals
from hardserve.edge.budget import Holding
from hardserve.edge.chunks import FIELD_LINE, TOKEN, StrictChunkedReceiver
from hardserve.edge.forwarded import Identity
from hardserve.refusals import Refusal
from hardserve.settings import LimitSettings

# RFC 9112 3: method SP request-target SP HTTP-version. Methods are case-sensitive and every registered one is upper
# case (RFC 9110 9.1, 16.1.1). Bytes above 0x7F are not allowed in a target, but command-line clients send UTF-8 there
# and nothing reads them as a delimiter, so they pass, deliberately.
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9!#$%&'*+\-.^_`|~]{0,31}) ([\x21-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)")
# RFC 9112 2.2: a server should ignore an empty line before a request, which some clients send after a body. More than
# these are no habit of any client.
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
_EMPTY_LINES_BYTES = 64
# RFC 9110 7.2, RFC 3986 3.2: a name or an address, and a port; never a user name, and no zone (RFC 9844).
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]++)\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::(\d{0,5}))?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]*)(/?.*)")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CODING = re.compile(TOKEN.decode())
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
# What tells who the client is, or where it was before it came here. It counts from a trusted proxy alone
# (edge.forwarded), and the app is given what follows from it and never the words themselves: clients write them, too.
_FORWARDING = frozenset(
    f"HTTP_{name}"
    for name in (
        "FORWARDED", "X_REAL_IP", "X_CLIENT_IP", "X_CLUSTER_CLIENT_IP", "CLIENT_IP", "TRUE_CLIENT_IP",
        "CF_CONNECTING_IP", "CF_CONNECTING_IPV6", "FASTLY_CLIENT_IP", "X_ORIGINAL_FORWARDED_FOR", "X_SCHEME",
        "X_URL_SCHEME", "X_SCRIPT_NAME",
        "FRONT_END_HTTPS", "X_ORIGINAL_URL", "X_REWRITE_URL", "X_ORIGINAL_HOST", "X_HOST",
    )
)  # fmt: skip
_X_FORWARDED = "HTTP_X_FORWARDED_"
# Longer than any real length and still an int64: 5,000 digits cannot reach int().
_CONTENT_LENGTH = re.compile(rb"\d{1,18}")


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


def _is_host(text: bytes) -> bool:
    match = _HOST.fullmatch(text)
    if match is None:
        return False
    address, port = match.groups()
    if address is not None:
        try:
            IPv6Address(address.decode())
        except ValueError:
            return False
    return not port or int(port) <= 65_535


def _normal_host(host: str, default_port: str) -> str:
    """Return what hosts are compared by (RFC 9110 4.2.3): case, an empty port and the scheme's own do not count."""
    name, _, port = host.lower().rpartition(":")
    return name if name and port in ("", default_port) else host.lower()


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
    forwarding: dict[str, str] | None = None  # the fields that tell who the client is, keyed as in `headers`
    # Who asks, which the gate finds out: the address, by whom it is counted, and the user that a password is of.
    address = ""
    client = ""
    user = ""
    identity: Identity | None = None  # what a trusted proxy says, where one does
    rate_slots: Any = None  # what the limiter hangs on it
    store_spent_s = 0.0  # how long it has waited for a shared store
    challenge: bytes | None = None  # what a certificate authority is answered that asks for this
    file_tries = 0  # how often its file was opened, which may have changed meanwhile
    refusal_fields = b""  # header lines that go with its refusal
    holding: Holding | None = None  # what is counted of it; whoever closes the request releases it
    body_since = 0.0  # when its body began to be awaited (monotonic seconds)
    app_since = math.inf  # since when the app owes a part of its answer; written by its worker
    interrupt: Callable[[], bool] | None = None  # raises an exception in the app, where that is wanted
    expired = False  # it was answered in its worker's place, whose own outcome is not to be logged
    status = 0  # of a response in parts, and what was sent of it: for a log line when it is cut; written by its worker
    sent = 0
    proxy_netloc = ""  # the authority of an absolute-form target
    headers: dict[str, str]
    _head_bytes = 0  # of a finished head that a body follows
    _empty_lines = 0  # bytes of them before the request line
    # What is known of an unfinished head: lines that are complete, and where the last one begins.
    _lines = 0
    _line_start = 0

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
        held = len(self.head)
        if not held:
            # Nearly every head arrives in one piece: it is not copied before it is parsed.
            start = 0
            if data[0] in b"\r\n":
                start = self._skip_empty_lines(data)
            end = data.find(b"\r\n\r\n", start)
            if end >= 0:
                self._finish_head(data[start:end])
                return end + 4
            self.head = data[start:]
        elif self.head == b"\r":  # half an empty line
            self.head = b""
            return self.feed(b"\r" + data) - 1
        else:
            # A head in pieces: the bytearray grows in place, and only what is new is searched.
            if not isinstance(self.head, bytearray):
                self.head = cast(bytes, bytearray(self.head))
            cast(bytearray, self.head).extend(data)
            end = self.head.find(b"\r\n\r\n", max(0, held - 3))
            if end >= 0:
                self._finish_head(bytes(self.head[:end]))
                return end + 4 - held
        if self.head:
            self._check_unfinished_head(held)
        return len(data)

    def buffered(self) -> tuple[int, int]:
        """Return how many bytes are kept of this request now, in memory and in a temporary file. Costs no search.

        A head counts as many as it came in, also when it has become fields and its body is awaited.
        """
        if self.body_rcv is None:
            return len(self.head), 0
        buffer = self.body_rcv.getbuf()
        return (self._head_bytes, len(buffer)) if buffer.overflowed else (self._head_bytes + len(buffer), 0)

    def to_file(self) -> None:
        """Move what there is of the body to a temporary file, and have the rest go there. I/O thread.

        Does nothing where no body is to come. Raises OSError when there can be no file; the request is then to be
        refused.
        """
        if self.body_rcv is not None:
            buffer = self.body_rcv.getbuf()
            buffer.overflow = 0
            buffer.getfile()  # makes one, of the kind that `overflow` asks for
            buffer.append(b"")  # moves one that is of the other kind

    def close(self) -> None:
        """Release the body. Closing a file on a full disk raises what writing it has raised already."""
        with contextlib.suppress(OSError):
            super().close()
        if self.holding is not None:
            self.holding.release()

    def _skip_empty_lines(self, data: bytes) -> int:
        start = cast(re.Match[bytes], _EMPTY_LINES.match(data)).end()
        self._empty_lines += start
        # Past the cap they are left where no line may begin with one.
        return start if self._empty_lines <= _EMPTY_LINES_BYTES else 0

    def _check_unfinished_head(self, held: int) -> None:
        """Refuse as soon as it is sure, not when the head is complete: some of it may never come.

        `held` bytes of it have been looked at before, and are not again.
        """
        head, limits = self.head, self.rules.limits
        if not self._lines:
            self._check_unfinished_line(held)
            if self.refusal is not None:
                return
        self._lines += head.count(b"\r\n", max(0, held - 1))
        self._line_start = head.rfind(b"\n", held) + 1 or self._line_start
        if not self._lines:
            return
        if (
            len(head) > limits.header + 3  # all of the empty line but its last byte may be here
            or self._lines - 1 > limits.header_count
            or len(head) - self._line_start > limits.header_line + 1  # a CR
        ):
            self._refuse(refusals.HEADER_TOO_LARGE)

    def _check_unfinished_line(self, held: int) -> None:
        """Judge what there is of the request line. Other protocols never send what would end it, or the head."""
        head, limit = self.head, self.rules.limits.request_line
        if head == b"\r":
            return  # half an empty line
        if not 65 <= head[0] <= 90:  # a method begins with a capital letter
            self._refuse(refusals.TLS_ON_PLAIN_PORT if head[0] == 0x16 else refusals.BAD_REQUEST_LINE)
            return
        end = head.find(b"\n", held)
        if (len(head) if end < 0 else end) > limit + 1:  # a CR
            self._refuse(refusals.REQUEST_LINE_TOO_LONG)
        elif end >= 0 and not (head[end - 1] == 13 and _REQUEST_LINE.fullmatch(head, 0, end - 1)):
            # HTTP/0.9, and clients that end lines with a bare LF.
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
        if self.body_rcv is None:
            self.completed = True
        else:
            self._head_bytes = len(head)

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
        match = FIELD_LINE.fullmatch(line)
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
            if key in _FORWARDING or key.startswith(_X_FORWARDED):
                self._collect_forwarding(key, raw.decode("latin-1"))
                return None
            if key == "HTTP_HOST" and raw and not _is_host(raw):
                raise _MalformedError(refusals.BAD_HOST)
            if key == "CONTENT_LENGTH" and not _CONTENT_LENGTH.fullmatch(raw):
                raise _MalformedError(refusals.BAD_CONTENT_LENGTH)
            pair = (key, raw.decode("latin-1"))
        if len(line) <= _REMEMBERED_LINE_BYTES:
            _remember(self.rules.remembered, line, pair)
        return pair

    def _collect_forwarding(self, key: str, value: str) -> None:
        if self.forwarding is None:
            self.forwarding = {}
        before = self.forwarding.get(key)
        self.forwarding[key] = value if before is None else f"{before}, {value}"

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
        self.command, self.request_uri, self.version = method.decode("latin-1"), target.decode("latin-1"), version
        if method in (b"CONNECT", b"TRACE"):
            raise _MalformedError(refusals.BAD_METHOD)
        authority = b""
        if target[:1] != b"/":
            authority, target = self._other_form(target)
        path, _, query = target.partition(b"?")
        if b"#" in target:
            raise _MalformedError(refusals.BAD_TARGET)  # RFC 9112 3.2: a fragment is never sent
        if b"%" in target:
            # RFC 3986 2.1, also of a query, which is not decoded here: whoever does would have to guess.
            if _BAD_ESCAPE.search(target) or b"%00" in path:
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
        if match is None or not _is_host(match[1]):
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
        if authority and host:
            port = "443" if self.request_uri[4:5] in "sS" else "80"
            if _normal_host(authority, port) != _normal_host(host, port):
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
                raise _MalformedError(self._wrong_coding(coding))
            self.chunked = True
            self.body_rcv = StrictChunkedReceiver(self._body_buffer(), self.rules.limits)
        elif length is not None:
            self.content_length = int(length)
            if self.content_length > 0:
                self.body_rcv = FixedStreamReceiver(self.content_length, self._body_buffer())
        expect = headers.get("HTTP_EXPECT")
        if expect is not None and self.version == "1.1":
            if expect.lower() != "100-continue":
                raise _MalformedError(refusals.UNKNOWN_EXPECTATION)
            self.expect_continue = self.body_rcv is not None

    def _wrong_coding(self, coding: str) -> Refusal:
        """Return what is said to codings other than one `chunked`."""
        codings = [name.strip(" \t").lower() for name in coding.split(",")]
        # RFC 9112 6.3: the body ends nowhere if the last one is not `chunked`; 6.1: which is never applied twice.
        delimits = codings[-1] == "chunked" and codings.count("chunked") == 1
        if delimits and all(_CODING.fullmatch(name) for name in codings):
            return refusals.UNKNOWN_TRANSFER_ENCODING
        return refusals.BAD_TRANSFER_ENCODING

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
        chunked = receiver if isinstance(receiver, StrictChunkedReceiver) else None
        if chunked is not None:
            chunked.max_body = self.max_body
        try:
            consumed = receiver.received(data)
        except OSError:  # from the temporary file: no space, no directory, too many files
            self._refuse(refusals.BODY_NOT_STORED)
            return len(data)
        if chunked is not None:
            if chunked.refusal is not None:
                self._refuse(chunked.refusal)
            elif chunked.completed:
                # The app is given a body whose length is known, and cannot tell that it came in chunks.
                self.headers["CONTENT_LENGTH"] = str(len(receiver))
        self.completed = self.completed or receiver.completed
        return consumed
