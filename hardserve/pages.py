"""How a refusal looks to a client: text, JSON or a small page, whichever of them its Accept field prefers.

Called on the I/O thread and on workers, without locks: what is shared is either fixed or a memo, and of a memo any
thread may fill an entry, since all come to the same value. Everything that a refusal's responses have in common is
made when it is first given, and what is left for each is a lookup and two joins: a flood of refusals must be cheap.

Not a byte of a request is in any response, but for its id when the client gave one, and that is checked once more
here. This module knows no socket and no request.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from hardserve.http.weights import weights
from hardserve.protocol import REASONS
from hardserve.refusals import BANNED, RATE_LIMITED
from hardserve.securityheaders import default_lines
from hardserve.settings import HeaderSettings

if TYPE_CHECKING:
    from hardserve.refusals import Refusal
    from hardserve.settings import ErrorPageSettings

TEXT, PROBLEM, JSON, HTML = "text/plain", "application/problem+json", "application/json", "text/html"
# What a refusal can be told in; of two that a client likes equally, the earlier one.
OFFERS = (TEXT, PROBLEM, JSON, HTML)

_CONTENT_TYPES = {
    TEXT: "text/plain; charset=utf-8",
    PROBLEM: PROBLEM,  # RFC 8259 11 gives JSON no charset parameter: it is UTF-8
    JSON: JSON,
    HTML: "text/html; charset=utf-8",
}
# Whom a custom page's file is for, by its suffix; it is labelled as the first. RFC 9457's type is for our own JSON
# alone: of the operator's, nobody said that it is problem details.
_SUFFIXES = {".txt": (TEXT,), ".json": (JSON, PROBLEM), ".html": (HTML,)}

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{margin:15vh auto;max-width:34rem;padding:0 1.25rem;font:1rem/1.5 system-ui,sans-serif}"
    "h1{font-size:1.6rem;line-height:1.25}"
    "small{opacity:.75;overflow-wrap:anywhere}"
)
# The page needs nothing but its own style, and a browser is told to take nothing else, whatever other pages may take.
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"Content-Security-Policy: default-src 'none'; style-src 'sha256-{_STYLE_HASH}'"
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{status} {reason}</title>
<style>{style}</style>
</head>
<body>
<h1>{reason}</h1>
<p>{text}</p>
<p><small>Status {status}, request id {request_id}</small></p>
</body>
</html>
"""

# Where a request's id goes, in our own pages as in custom ones.
_ID_MARK = "{{ request_id }}"
_ID_MARKS = re.compile(rb"\{\{[ \t]*request_id[ \t]*\}\}")
# No character of these means anything in HTML, JSON or a header field.
_REQUEST_ID = re.compile(r"[0-9A-Za-z._:+/=@-]{1,128}")
_NOT_IN_REQUEST_ID = re.compile(r"[^0-9A-Za-z._:+/=@-]")
_REQUEST_ID_MAX = 128

# --- Accept (RFC 9110 12.5.1) ---

# Browsers send 150 characters, and what listed the most, an old Internet Explorer with Office, sent 300. Past this it
# is an attack or a mistake, and is not read. So the worst value costs 0.1 ms, and all that are remembered 128 KiB.
ACCEPT_MAX = 512
_REMEMBERED = 256

# Always matches to the closing quote or the end, so that no character is looked at twice.
_QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?')


def preferred(accept: str) -> str:
    """Return which of `OFFERS` answers a request best whose Accept field has this value, "" if it has none.

    Anything may be in the value; an element that cannot be understood is passed over. Of types with the same weight,
    one that is named beats one that a wildcard covers (`text/html, */*` is a browser), then the order of `OFFERS`
    decides. Plain text is what a client gets that says nothing, accepts none of them, or is not understood: never a
    406, which would tell it less. Parameters of a media range other than its weight are not looked at, deliberately:
    whoever asks for `application/json; charset=utf-8` wants JSON. Pure, any thread; time is linear in the value, and
    bounded.
    """
    given: dict[str, float] = {}
    if len(accept) <= ACCEPT_MAX:
        if '"' in accept:  # a comma in a quoted string separates nothing, and a weight is never quoted
            accept = _QUOTED.sub("", accept)
        given = weights(accept)
    best, best_rank = TEXT, (0.0, 0)
    for offer in OFFERS:
        rank = _rank(offer, given)
        if rank[0] > 0 and rank > best_rank:
            best, best_rank = offer, rank
    return best


def _rank(offer: str, given: Mapping[str, float]) -> tuple[float, int]:
    """Return the weight of the range that is most specific about `offer`, and how specific that is."""
    for specificity, media_range in ((2, offer), (1, f"{offer.partition('/')[0]}/*"), (0, "*/*")):
        if media_range in given:
            return given[media_range], specificity
    return 0.0, 0


# --- responses ---


class _Response(NamedTuple):
    """A response but for what differs from one to the next: its length, the request's id, the date and the end."""

    head: bytes  # up to the value of Content-Length
    between_ids: tuple[bytes, ...]  # the body, cut where the id goes
    length: int  # of the body without ids


class ErrorPages:
    """The responses of all refusals. Any thread.

    `custom` is the content of custom pages, by status and suffix: ".html", ".json" or ".txt". A status has those that
    are there; in what it has none for, clients get ours. `headers` is what all responses have.
    """

    __slots__ = ("_fields", "_remembered", "_responses", "custom")

    def __init__(
        self, custom: Mapping[tuple[int, str], bytes] | None = None, headers: HeaderSettings | None = None
    ) -> None:
        self.custom: Mapping[tuple[int, str], bytes] = dict(custom or {})
        self._fields = dict(default_lines(headers or HeaderSettings()))
        # By the refusal's name and media type. Names are declared in the code, so that these are few.
        self._responses: dict[str, dict[str, _Response]] = {}
        # What an Accept field asks for. A client that never repeats itself costs parsing, not memory.
        self._remembered: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<ErrorPages {len(self.custom)} custom, {len(self._remembered)} Accept fields remembered>"

    @classmethod
    def load(cls, entries: Sequence[ErrorPageSettings], headers: HeaderSettings | None = None) -> Self:
        """Read the custom pages, once and whole. Raises OSError.

        The files are UTF-8. `{{ request_id }}` in one is where the request's id goes.
        """
        custom = {}
        for entry in entries:
            path = Path(entry.file)
            custom[entry.status, path.suffix.lower()] = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return cls(custom, headers)

    def response(
        self,
        refusal: Refusal,
        *,
        accept: str,
        request_id: str,
        date: str,
        head_only: bool,
        close: bool,
        fields: bytes = b"",
    ) -> bytes:
        """Return the whole response that tells a client of `refusal`.

        `accept` is the value of the request's Accept field, "" if there is none or it was not read. `head_only` is
        for HEAD (RFC 9110 9.3.2). `fields` are header lines that only this response has, each with its line end.
        """
        try:
            media_type = self._remembered[accept]
        except KeyError:
            media_type = self._choose(accept)
        try:
            head, between_ids, length = self._responses[refusal.name][media_type]
        except KeyError:
            head, between_ids, length = self._make(refusal)[media_type]
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = _NOT_IN_REQUEST_ID.sub("_", request_id[:_REQUEST_ID_MAX])
        id_bytes = request_id.encode()
        return b"%b%d\r\nX-Request-ID: %b\r\nDate: %b\r\n%b%b%b" % (
            head,
            length + (len(between_ids) - 1) * len(id_bytes),
            id_bytes,
            date.encode(),
            fields,
            b"Connection: close\r\n\r\n" if close else b"\r\n",
            b"" if head_only else id_bytes.join(between_ids),
        )

    def turned_away(self, refusal: Refusal, date: str) -> bytes:
        """Return the whole response for a connection that is not let in, of which nothing was read.

        Plain text without an id, since there is no request, and never a custom page. It says that the connection ends.
        """
        body = f"{refusal.status} {REASONS[refusal.status]}\n\n{refusal.text}\n"
        head = (*_head(refusal, TEXT), *self._fields.values(), f"Content-Length: {len(body)}", f"Date: {date}")
        return "\r\n".join((*head, "Connection: close", "", body)).encode()

    def _choose(self, accept: str) -> str:
        media_type = preferred(accept)
        if len(accept) <= ACCEPT_MAX:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[accept] = media_type
        return media_type

    def _make(self, refusal: Refusal) -> dict[str, _Response]:
        """Make and keep what a refusal's responses have in common. Two threads may do so at once, to the same end."""
        fields = tuple(self._fields.values())
        page_fields = tuple((self._fields | {"content-security-policy": _POLICY}).values())
        responses = {
            offer: _response(refusal, offer, _body(refusal, offer), page_fields if offer == HTML else fields)
            for offer in OFFERS
        }
        for suffix, offers in _SUFFIXES.items():
            content = self.custom.get((refusal.status, suffix))
            if content is not None:
                responses |= dict.fromkeys(offers, _response(refusal, offers[0], content, fields))
        self._responses[refusal.name] = responses
        return responses


def _response(refusal: Refusal, media_type: str, body: bytes, fields: Sequence[str]) -> _Response:
    head = "".join(f"{line}\r\n" for line in (*_head(refusal, media_type), *fields, "Vary: Accept"))
    between_ids = tuple(_ID_MARKS.split(body))
    return _Response(f"{head}Content-Length: ".encode(), between_ids, sum(map(len, between_ids)))


def _head(refusal: Refusal, media_type: str) -> list[str]:
    """Return the status line and the fields that do not differ from one response to the next."""
    lines = [
        f"HTTP/1.1 {refusal.status} {REASONS[refusal.status]}",
        f"Content-Type: {_CONTENT_TYPES[media_type]}",
        "Cache-Control: no-store",
    ]
    if refusal.status in (429, 503) and refusal not in (RATE_LIMITED, BANNED):  # those know when
        lines.append("Retry-After: 1")  # RFC 9110 10.2.3, RFC 6585 4
    return lines


def _body(refusal: Refusal, media_type: str) -> bytes:
    status, reason, text = refusal.status, REASONS[refusal.status], refusal.text
    if media_type == HTML:
        page = _PAGE.format(status=status, reason=escape(reason), style=_STYLE, text=escape(text), request_id=_ID_MARK)
        return page.encode()
    if media_type == TEXT:
        return f"{status} {reason}\n\n{text}\nRequest id: {_ID_MARK}\n".encode()
    # RFC 9457 4.2.1: with the type "about:blank", the title is the reason phrase.
    members = {"type": "about:blank", "title": reason, "status": status, "detail": text, "request_id": _ID_MARK}
    return f"{json.dumps(members)}\n".encode()
