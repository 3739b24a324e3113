"""Compression of what an app answers: whether, with which coding, and what becomes of the head. Pure; worker threads.

It sees the head before it is sent and what the client asked for. The worker's task has the blocks, and drives the
encoder. Whatever is asked here is asked about bodies of `compression.min_size` and more: for a smaller one nothing is
looked at.

A body that the app yields in parts is flushed after each, so that nothing waits for what comes after it. What that
costs, of 322 KB of JSON lines that become 65 KB: with blocks of 8 KiB 2% more bytes and a tenth of the time, of 1 KB a
fifth and a half, and of 100 bytes twice the bytes, in up to five times as long: still 10 us a block, and a third of
what the app yields.

Compression gives secrets away. The length of a compressed page says whether two parts of it are alike. Who can have a
victim's browser fetch a page again and again with something of his choice in it (a search term that the page repeats),
and sees how long each answer is on its way, guesses a secret that stands in the same page (a CSRF token, a key) one
character at a time, through TLS: the BREACH attack. It takes a page that is asked for with the victim's credentials,
which browsers attach by themselves, and a way to put a guess into it. So `compression.breach = "auto"` looks at both:

* No credentials (Cookie, Authorization, a user): the answer is one that the attacker can fetch himself, and has no
  secret of the victim's. Compressed.
* Credentials and input (a query or a body): what the attack is made of. Not compressed.
* Credentials, no visible input: the app may still repeat a part of the path, or something stored earlier. Compressed,
  with 1 to `MAX_FILLER` bytes added that decode to nothing, another number each time; but not what leaves in parts,
  since each of them is a packet whose length shows by itself, and filler is in one place.

"filler" is for those to whom bandwidth matters more: with credentials there is always filler, and only that.

What the filler is worth: a guess that is right shortens the page by about a byte, and the filler moves its length by
up to a hundred. An average over n answers still varies by 29/sqrt(n) bytes; the better way is to wait for the shortest
of them, which has been seen in 19 of 20 cases after 300. So what took two answers a guess takes hundreds, and a token
of 32 hexadecimal digits 150,000 of them instead of 1,000: more than a rate limit lets through while a page is open,
but no proof. An app whose secrets look different in each response, as with a mask, needs none of this: "off".
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hardserve.http import coding, encoders
from hardserve.http.mediatypes import is_compressible
from hardserve.settings import CompressionSettings
from hardserve.wsgi.response import Head

MAX_FILLER = 100
# The largest body that is compressed as a whole, and so much is compressed at a time of a larger one. All codings let
# go of the interpreter lock meanwhile.
PIECE_BYTES = 262144
SAMPLE_BYTES = 16384

# 206 is a part of a representation, whose bytes have been counted (RFC 9110 15.3.7); the others have no body.
_NEVER = frozenset({"204", "205", "206", "304"})
# What an app sets on a response that has been encoded, or whose bytes it vouches for: a digest is of the bytes as they
# are sent (RFC 9530 2 and 3), and a signature may cover one of them, the length or the tag (RFC 9421).
_AS_IT_IS = frozenset(
    {
        "content-encoding",
        "content-range",
        "content-digest",
        "repr-digest",
        "digest",
        "content-md5",
        "signature-input",
    }
)
_REMEMBERED = 256


class Asked(Protocol):
    """What is looked at of a request."""

    query: str
    headers: dict[str, str]
    user: str
    body_rcv: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """How a body is to be compressed. `filler` is how many bytes are added that decode to nothing."""

    coding: str
    filler: int

    def shorter(self, body: bytes) -> bytes | None:
        """Return the whole `body` compressed, None if that is no shorter."""
        data = encoders.compress(body, self.coding, filler=self.filler)
        return data if len(data) < len(body) else None

    def pays(self, body: bytes) -> bool:
        """Return whether the beginning of a large body gets shorter, for one that is not compressed as a whole."""
        return len(encoders.compress(body[:SAMPLE_BYTES], self.coding)) < min(len(body), SAMPLE_BYTES)

    def encoder(self) -> encoders.Encoder:
        return encoders.Encoder(self.coding, filler=self.filler)


class Compressor:
    """What is compressed, and how. One for all workers: what it remembers, any of them may fill in."""

    __slots__ = ("_breach", "_chosen", "_fillable", "_offers", "min_size")

    def __init__(self, settings: CompressionSettings) -> None:
        self.min_size = settings.min_size
        self._breach = settings.breach
        self._offers = encoders.available()
        self._fillable = tuple(offer for offer in self._offers if encoders.can_fill(offer))
        self._chosen: dict[tuple[str, bool], str] = {}

    def __repr__(self) -> str:
        return f"<Compressor {' '.join(self._offers)}, {len(self._chosen)} Accept-Encoding fields remembered>"

    def plan(self, head: Head, request: Asked, *, whole: bool) -> Plan | None:
        """Return how the body of a response is to be compressed, None for not at all; `whole` is not in parts.

        Where another client might have got it compressed, `head` gets a Vary that says so (RFC 9110 12.5.5): a cache
        must not give to one what was meant for the other.
        """
        if head.status[:3] in _NEVER or not _may_be_encoded(head.lines):
            return None
        _vary(head.lines)
        accept = request.headers.get("HTTP_ACCEPT_ENCODING")
        if not accept:  # RFC 9110 12.5.3: without the field any coding will do, but who cannot decode has none
            return None
        filler = 0
        if self._breach != "off" and _has_credentials(request):
            if self._breach == "auto" and (request.query or request.body_rcv is not None or not whole):
                return None
            filler = 1 + secrets.randbelow(MAX_FILLER)
        chosen = self._choose(accept, fill=filler > 0)
        return Plan(chosen, filler) if chosen != coding.IDENTITY else None

    def _choose(self, accept: str, *, fill: bool) -> str:
        key = (accept, fill)
        try:
            return self._chosen[key]
        except KeyError:
            if len(accept) > coding.ACCEPT_ENCODING_MAX:
                return coding.IDENTITY
        if len(self._chosen) >= _REMEMBERED:
            self._chosen.clear()
        self._chosen[key] = chosen = coding.best(accept, self._fillable if fill else self._offers)
        return chosen


def _has_credentials(request: Asked) -> bool:
    headers = request.headers
    return bool("HTTP_COOKIE" in headers or "HTTP_AUTHORIZATION" in headers or request.user)


def _fields(lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """Yield where each field is, its name in lower case, and its value."""
    for index, line in enumerate(lines):
        name, _, value = line.partition(": ")
        yield index, name.lower(), value


def _may_be_encoded(lines: list[str]) -> bool:
    """Return whether the app's fields leave its body to us, and say that it is of a kind that gets shorter."""
    compressible = False
    for _, name, value in _fields(lines):
        if name == "content-type":
            # An event is to be read as it comes, through whatever is on the way.
            compressible = is_compressible(value) and not value.lower().lstrip().startswith("text/event-stream")
        elif name in _AS_IT_IS or (name == "cache-control" and "no-transform" in value.lower()):
            return False  # RFC 9110 7.7, RFC 9111 5.2.2.6
    return compressible


def _vary(lines: list[str]) -> None:
    """Have Vary name Accept-Encoding, once."""
    last = -1
    for index, name, value in _fields(lines):
        if name == "vary":
            members = {member.strip(" \t").lower() for member in value.split(",")}
            if members & {"*", "accept-encoding"}:
                return
            if members != {""}:
                last = index
    if last >= 0:
        lines[last] += ", Accept-Encoding"
    else:
        lines.append("Vary: Accept-Encoding")


def describe_encoded(head: Head, name_of_it: str = "") -> None:
    """Have `head` speak of the encoded representation: a weak tag, no ranges, and the coding if it is named.

    The tag is weak because the app made it for other bytes, of which these are an equivalent (RFC 9110 8.8.1): it
    still makes for a 304, and no range of the one is put together with a range of the other. HEAD leaves the coding
    out, which is known when the content is (RFC 9110 9.3.2).
    """
    kept = []
    for index, name, value in _fields(head.lines):
        if name == "accept-ranges":
            continue
        kept.append(_weak(head.lines[index], value) if name == "etag" else head.lines[index])
    if name_of_it:
        kept.append(f"Content-Encoding: {name_of_it}")
    head.lines[:] = kept


def describe_unchanged(head: Head, headers: Mapping[str, str]) -> None:
    """Have a 304 speak of what the client has, if that was compressed and so got a weak tag from us.

    With the app's strong tag a cache would not find what it has stored (RFC 9111 4.3.4).
    """
    known = headers.get("HTTP_IF_NONE_MATCH", "")
    if "W/" not in known:
        return
    for index, name, value in _fields(head.lines):
        if name == "etag" and value.startswith('"') and f"W/{value}" in known:
            head.lines[index] = _weak(head.lines[index], value)
            _vary(head.lines)
            return


def _weak(line: str, value: str) -> str:
    # What is not quoted is no tag, but apps that compare it with what comes back work, and go on doing so.
    return f"{line[: -len(value)]}W/{value}" if value.startswith('"') else line
