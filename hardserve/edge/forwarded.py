"""Who asks, when a proxy asks for them: forwarding fields, believed as far as trusted proxies wrote them.

Pure; any thread. It knows the fields' values and which networks are trusted, and neither a socket nor a request.

Each proxy adds, on the right, whom it was asked by. So the walk begins at the peer, whose address the kernel vouches
for. While an address is a trusted proxy's, the next entry to the left is that proxy's word; the first address that is
not is the client, and everything left of it is what that client said, which is neither validated nor looked at: it must
influence nothing, and not get a proxy's requests refused either. What is walked over must be well-formed.

There are two families of fields, and the proxies in front write one of them; what the other one says is the client's
own invention, and is never looked at.

- `Forwarded` (RFC 7239): an element has all that one proxy says. The one that names the client says how it asked, too.
- `X-Forwarded-*`: one list each. What the proxy that saw the client says is as many entries from the right as were
  walked. A list that is shorter was overwritten on the way by a proxy that knew better: its first entry counts.
  `X-Forwarded-Prefix` is what each proxy has cut off the front of the path it passes on, so that the prefix
  that the client knows is all of those that were walked, in a row.

Two liberties, deliberate: spaces around the ";" of Forwarded, which many write, and "unix:" in X-Forwarded-For, which
is what nginx writes of the peer of a Unix socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from hardserve.edge.networks import UNIX, Networks, canonical

# Proxies in a row. Real chains have a few; a client in a trusted network could write any number.
MAX_HOPS: Final = 64
# Entries looked at, empty ones included: RFC 9110 5.6.1.2 wants a reasonable number of those ignored.
_MAX_ENTRIES = 2 * MAX_HOPS
# Characters of a Forwarded field looked at. What is further left was not written by a few proxies.
_MAX_CHARS = 8192
# Characters of a host or a prefix. A name has 253 at most, and no path of an app is as long.
_MAX_VALUE_CHARS = 1024

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 5.6.2
# RFC 7239 4. The value is a token or a quoted string; the end is that of the pair.
_PAIR = re.compile(
    rf"(?:[ \t]*({_NAME})=(?:({_NAME})|"
    r'"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*)"))?[ \t]*(?:;|\Z)'
)
_QUOTED_PAIR = re.compile(r"\\(.)")
# The last element of a list, read backwards: no comma but in quoted strings, no quoted string but after "=". Only a
# quote with an odd number of backslashes before it is inside one, so that where a string begins can be told from its
# end. Whatever is left of the element, such as a quote that a client has opened and not closed, changes nothing.
_ELEMENT_BACKWARDS = re.compile(r'[^",]*(?:"(?:\\\\)*(?:[^"\\]\\*|"\\(?:\\\\)*)*"(?==)[^",]*)*')

_PORT = r"([0-9]{1,5})"
_OBFUSCATED = r"_[0-9A-Za-z._\-]+"  # RFC 7239 6.3
_IPV6 = r"([0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{1,41})"
_ZONE = r"(?:%[0-9A-Za-z._~\-]+)?"
# RFC 7239 6: an address, or the word or the name for one that is not told; and a port, which may be a name as well.
_NODE = re.compile(
    rf"(?:\[{_IPV6}{_ZONE}\]|([0-9.]{{7,15}})|(?:[Uu][Nn][Kk][Nn][Oo][Ww][Nn]|{_OBFUSCATED}))"
    rf"(?::(?:{_PORT}|{_OBFUSCATED}))?"
)
_BARE_IPV6 = re.compile(_IPV6 + _ZONE)
# RFC 3986 3.2 as edge.parsing has it, without the comma, which would be another entry's.
_HOST = re.compile(rf"(?:\[{_IPV6}\]|(?:[0-9A-Za-z._~!$&'()*+;=\-]|%[0-9A-Fa-f]{{2}})+)(?::{_PORT}?)?")
_PREFIX = re.compile(r"/(?:(?![%?#\\,])[!-~\x80-\xff]|%[0-9A-Fa-f]{2})*")
# Once it is decoded: what would not stay in the path, or would mean another one (RFC 3986 3.3, 5.2.4).
_BAD_PREFIX = re.compile(r"[\x00-\x1f\x7f?#\\]|//|/\.{1,2}(?:/|\Z)")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and for what: as far as it is known, else "" and port 0.

    `address` is canonical text (or the peer's as the kernel has it), "unix:" for a Unix socket; `host` may have a port;
    `server_port` is the one that the client connected to, "" for the default of the scheme; `prefix` is decoded as
    SCRIPT_NAME is (latin-1), and "" or begins with a slash and does not end with one.
    """

    address: str
    port: int
    scheme: str = ""
    host: str = ""
    server_port: str = ""
    prefix: str = ""


class _MalformedError(Exception):
    """A field that a trusted proxy wrote breaks its grammar."""


def resolve(peer: tuple[str, int], fields: Mapping[str, str], trusted: Networks, family: str) -> Identity | None:
    """Return whom a request that came from `peer` is by, None if that is malformed (400). Linear in the fields.

    `fields` are forwarding fields as in a WSGI environ (HTTP_X_FORWARDED_FOR), one that came more than once joined by
    ", ". `family` is the one that counts: "forwarded", "x-forwarded", or "off".
    """
    if family == "off" or not trusted.contains(peer[0]):
        return Identity(*peer)
    try:
        if family == "forwarded":
            return _walk_forwarded(peer, fields.get("HTTP_FORWARDED", ""), trusted)
        return _walk_x_forwarded(peer, fields, trusted)
    except _MalformedError:
        return None


# --- Forwarded ---


def _walk_forwarded(peer: tuple[str, int], value: str, trusted: Networks) -> Identity:
    client = peer
    spoken: dict[str, str] = {}
    for hops, element in enumerate(_elements_from_right(value) if value else (), start=1):
        if hops > MAX_HOPS:
            raise _MalformedError
        spoken = _parameters(element)
        node = _node(spoken["for"]) if "for" in spoken else None
        if node is None:
            break
        client = node
        if not trusted.contains(client[0]):
            break
    scheme = _scheme(spoken["proto"]) if "proto" in spoken else ""
    host, port = _host(spoken["host"]) if "host" in spoken else ("", "")
    return Identity(*client, scheme, host, port)


def _elements_from_right(value: str) -> Iterator[str]:
    """Yield the elements of a list that are not empty, the last one first; nothing left of one is read for it."""
    backwards = value[: -_MAX_CHARS - 1 : -1]
    start = 0
    for _ in range(_MAX_ENTRIES):
        match = _ELEMENT_BACKWARDS.match(backwards, start)
        assert match is not None  # nothing at all is a match
        end = match.end()
        is_last = end == len(backwards)
        if (is_last and len(value) > _MAX_CHARS) or not (is_last or backwards[end] == ","):
            raise _MalformedError
        element = backwards[start:end][::-1].strip(" \t")
        if element:
            yield element
        if is_last:
            return
        start = end + 1
    raise _MalformedError


def _parameters(element: str) -> dict[str, str]:
    """Return what an element says, by lower-case name."""
    parameters: dict[str, str] = {}
    position = 0
    while position < len(element):
        match = _PAIR.match(element, position)
        if match is None:
            raise _MalformedError
        name, token, quoted = match.groups()
        if name is not None:
            name = name.lower()
            if name in parameters:
                raise _MalformedError
            parameters[name] = _QUOTED_PAIR.sub(r"\1", quoted) if token is None else token
        position = match.end()
    return parameters


# --- X-Forwarded-* ---


def _walk_x_forwarded(peer: tuple[str, int], fields: Mapping[str, str], trusted: Networks) -> Identity:
    client, hops = peer, 0
    for hops, entry in enumerate(reversed(_entries(fields.get("HTTP_X_FORWARDED_FOR", ""))), start=1):
        if hops > MAX_HOPS:
            raise _MalformedError
        node = _bare_node(entry)
        if node is None:
            break
        client = node
        if not trusted.contains(client[0]):
            break
    # A proxy that says nothing of who asks may still say how it was asked.
    hops = max(hops, 1)
    scheme = _last(fields.get("HTTP_X_FORWARDED_PROTO", ""), hops)
    host = _last(fields.get("HTTP_X_FORWARDED_HOST", ""), hops)
    prefix = fields.get("HTTP_X_FORWARDED_PREFIX", "")
    if scheme:
        scheme = _scheme(scheme)
    port = ""
    if host:
        host, port = _host(host)
    if not port:
        port = _last(fields.get("HTTP_X_FORWARDED_PORT", ""), hops)
        port = port and str(_port(port))
    if prefix:
        prefix = "".join(map(_prefix, _entries(prefix)[-hops:]))
    return Identity(client[0], client[1], scheme, host, port, prefix)


def _entries(value: str) -> list[str]:
    """Return the entries of a list that are not empty.

    Too many of them are left together in the first one: that has a comma then, which none of the values may have.
    """
    return [entry for entry in (entry.strip(" \t") for entry in value.rsplit(",", _MAX_ENTRIES)) if entry]


def _last(value: str, hops: int) -> str:
    """Return the entry that is so many from the right, the first one if there are fewer, "" if there are none."""
    if "," not in value:
        return value.strip(" \t")
    entries = _entries(value)
    return entries[-min(hops, len(entries))] if entries else ""


# --- values ---


def _bare_node(text: str) -> tuple[str, int] | None:
    """Return what `_node` does of an address in X-Forwarded-For, where IPv6 needs no brackets."""
    if text == UNIX:
        return UNIX, 0
    if text.count(":") < 2 or text[0] == "[":
        return _node(text)
    match = _BARE_IPV6.fullmatch(text)
    if match is None:
        raise _MalformedError
    return _address(match[1]), 0


def _node(text: str) -> tuple[str, int] | None:
    """Return an address and a port (0 if none is told), None if the address is not told."""
    match = _NODE.fullmatch(text)
    if match is None:
        raise _MalformedError
    ipv6, ipv4, port = match.groups()
    number = 0 if port is None else _port(port)
    address = ipv6 or ipv4
    return None if address is None else (_address(address), number)


def _address(text: str) -> str:
    try:
        return canonical(text)
    except ValueError:
        raise _MalformedError from None


def _port(text: str) -> int:
    if not (len(text) <= 5 and text.isascii() and text.isdigit()) or not 1 <= int(text) <= 65_535:
        raise _MalformedError
    return int(text)


def _scheme(text: str) -> str:
    scheme = text.lower()
    if scheme not in ("http", "https"):
        raise _MalformedError
    return scheme


def _host(text: str) -> tuple[str, str]:
    """Return a host as it is given, but for a colon without a port, and the port, "" without one."""
    match = _HOST.fullmatch(text) if len(text) <= _MAX_VALUE_CHARS else None
    if match is None:
        raise _MalformedError
    ipv6, port = match.groups()
    if ipv6 is not None:
        _address(ipv6)
    return (text, str(_port(port))) if port else (text.removesuffix(":"), "")


def _prefix(text: str) -> str:
    if len(text) > _MAX_VALUE_CHARS or _PREFIX.fullmatch(text) is None:
        raise _MalformedError
    prefix = unquote_to_bytes(text.encode("latin-1")).decode("latin-1") if "%" in text else text
    if _BAD_PREFIX.search(prefix) is not None:
        raise _MalformedError
    return prefix.removesuffix("/")
