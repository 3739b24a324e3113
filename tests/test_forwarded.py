"""Whom proxies say they ask for, how far that is believed, and what nobody may write."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hardserve.edge.forwarded import MAX_HOPS, Identity, resolve
from hardserve.edge.networks import Networks, canonical
from hardserve.edge.parsing import _is_host

FAST = settings(deadline=None, derandomize=True)
PROXIES = Networks(["10.0.0.0/8", "2001:db8:f::/48", "unix"])
PEER = ("10.0.0.1", 4711)
CLIENT = "192.0.2.1"
MEGABYTE = 2**20


def by(address: str, port: int = 0, **more: str) -> Identity:
    return Identity(address, port, **more)


def forwarded(value: str, peer: tuple[str, int] = PEER, **others: str) -> Identity | None:
    return resolve(peer, {"HTTP_FORWARDED": value, **others}, PROXIES, "forwarded")


def x_forwarded(value: str | None, peer: tuple[str, int] = PEER, **others: str) -> Identity | None:
    """Keywords are the other fields, without their common beginning: PROTO, HOST, PORT, PREFIX."""
    fields = {f"HTTP_X_FORWARDED_{name}": text for name, text in others.items()}
    if value is not None:
        fields["HTTP_X_FORWARDED_FOR"] = value
    return resolve(peer, fields, PROXIES, "x-forwarded")


# --- who is asked at all ---

EVERYTHING = {
    "HTTP_FORWARDED": 'for=192.0.2.1;proto=https;host="f.example:1"',
    "HTTP_X_FORWARDED_FOR": "192.0.2.2",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "x.example",
    "HTTP_X_FORWARDED_PORT": "2",
    "HTTP_X_FORWARDED_PREFIX": "/x",
}
GARBAGE = dict.fromkeys(EVERYTHING, '"\\,=;;for=<>')


@pytest.mark.parametrize("family", ["forwarded", "x-forwarded", "off"])
@pytest.mark.parametrize("fields", [EVERYTHING, GARBAGE, {}], ids=["well-formed", "garbage", "none"])
@pytest.mark.parametrize("peer", [("192.0.2.9", 1), ("2001:db8::1", 2), ("::ffff:192.0.2.9", 3)])
def test_who_is_not_trusted_is_the_client_whatever_it_says(
    family: str, fields: Mapping[str, str], peer: tuple[str, int]
) -> None:
    assert resolve(peer, fields, PROXIES, family) == by(*peer)


@pytest.mark.parametrize("fields", [EVERYTHING, GARBAGE], ids=["well-formed", "garbage"])
def test_switched_off_a_trusted_proxy_is_the_client(fields: Mapping[str, str]) -> None:
    assert resolve(PEER, fields, PROXIES, "off") == by(*PEER)


def test_without_trusted_networks_nobody_is_believed() -> None:
    assert resolve(PEER, EVERYTHING, Networks([]), "x-forwarded") == by(*PEER)


@pytest.mark.parametrize("peer", [("10.1.2.3", 1), ("::ffff:10.1.2.3", 1), ("2001:db8:f::1", 1), ("unix:", 0)])
def test_a_trusted_peer_is_believed_on_any_kind_of_socket(peer: tuple[str, int]) -> None:
    assert x_forwarded(CLIENT, peer) == by(CLIENT)
    assert forwarded("for=192.0.2.1", peer) == by(CLIENT)


def test_the_other_family_never_counts() -> None:
    assert resolve(PEER, EVERYTHING, PROXIES, "forwarded") == by(
        "192.0.2.1", scheme="https", host="f.example:1", server_port="1"
    )
    assert resolve(PEER, EVERYTHING, PROXIES, "x-forwarded") == by(
        "192.0.2.2", scheme="https", host="x.example", server_port="2", prefix="/x"
    )
    only_x = {key: value for key, value in EVERYTHING.items() if key != "HTTP_FORWARDED"}
    assert resolve(PEER, only_x, PROXIES, "forwarded") == by(*PEER)
    assert resolve(PEER, {"HTTP_FORWARDED": EVERYTHING["HTTP_FORWARDED"]}, PROXIES, "x-forwarded") == by(*PEER)


def test_nor_is_the_other_family_validated() -> None:
    assert resolve(PEER, GARBAGE | {"HTTP_FORWARDED": "for=192.0.2.1"}, PROXIES, "forwarded") == by(CLIENT)
    fields = {key: value for key, value in EVERYTHING.items() if key != "HTTP_FORWARDED"}
    known = resolve(PEER, fields, PROXIES, "x-forwarded")
    assert known is not None
    assert resolve(PEER, fields | {"HTTP_FORWARDED": GARBAGE["HTTP_FORWARDED"]}, PROXIES, "x-forwarded") == known


# --- X-Forwarded-For ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, PEER, id="no field: the peer itself asks"),
        pytest.param("", PEER, id="an empty one says nothing"),
        pytest.param(" \t , ,", PEER, id="nor does one of empty entries"),
        pytest.param("192.0.2.1", ("192.0.2.1", 0), id="an address"),
        pytest.param("192.0.2.1:4711", ("192.0.2.1", 4711), id="with a port"),
        pytest.param("2001:db8::1", ("2001:db8::1", 0), id="IPv6"),
        pytest.param("2001:DB8:0:0::1", ("2001:db8::1", 0), id="in another way"),
        pytest.param("[2001:db8::1]", ("2001:db8::1", 0), id="in brackets"),
        pytest.param("[2001:db8::1]:4711", ("2001:db8::1", 4711), id="with a port, too"),
        pytest.param("2001:db8::1:4711", ("2001:db8::1:4711", 0), id="without brackets it is no port"),
        pytest.param("fe80::1%eth0", ("fe80::1", 0), id="a zone"),
        pytest.param("[fe80::1%25eth0]:1", ("fe80::1", 1), id="a zone as in a URI"),
        pytest.param("::ffff:192.0.2.1", ("192.0.2.1", 0), id="mapped is IPv4"),
        pytest.param("[::ffff:192.0.2.1]:9", ("192.0.2.1", 9), id="in brackets, too"),
        pytest.param("192.0.2.1, 10.0.0.2", ("192.0.2.1", 0), id="two proxies"),
        pytest.param(
            "192.0.2.1,10.0.0.2\t,\t::ffff:10.0.0.3 ,2001:db8:f::1", ("192.0.2.1", 0), id="many, of all kinds"
        ),
        pytest.param("10.0.0.9, 192.0.2.1", ("192.0.2.1", 0), id="spoofed: a proxy's address before the client's"),
        pytest.param("198.51.100.1, 192.0.2.1, 10.0.0.2", ("192.0.2.1", 0), id="spoofed: an address"),
        pytest.param("<script>, 192.0.2.1", ("192.0.2.1", 0), id="spoofed: garbage is not looked at"),
        pytest.param('"192.0.2.7, 192.0.2.1', ("192.0.2.1", 0), id="spoofed: a quote is nothing special here"),
        pytest.param(",,,, 192.0.2.1,, ,10.0.0.2, ", ("192.0.2.1", 0), id="empty entries do not count"),
        pytest.param("10.0.0.4:5, 10.0.0.3, 10.0.0.2", ("10.0.0.4", 5), id="all are trusted: the first one asks"),
        pytest.param("192.0.2.1, unix:", ("192.0.2.1", 0), id="nginx behind a Unix socket"),
        pytest.param("unix:", ("unix:", 0), id="from a Unix socket"),
        pytest.param("unknown", PEER, id="unknown: the proxy that says so"),
        pytest.param("192.0.2.7, Unknown, 10.0.0.2:6", ("10.0.0.2", 6), id="unknown stops the walk"),
        pytest.param("192.0.2.7, _hidden, 10.0.0.2", ("10.0.0.2", 0), id="so does a name (RFC 7239 6.3)"),
        pytest.param("192.0.2.7, _a.b-c_d:_port", PEER, id="which may have a port that is a name, too"),
        pytest.param("192.0.2.1:_p", ("192.0.2.1", 0), id="as may an address"),
    ],
)
def test_x_forwarded_for(value: str | None, expected: tuple[str, int]) -> None:
    assert x_forwarded(value) == by(*expected)


BAD_ENTRIES = [
    pytest.param(text, id=what)
    for what, text in {
        "a name": "localhost",
        "a byte too large": "192.0.2.256",
        "too short": "192.0.2",
        "a leading zero": "192.0.2.01",
        "a network": "192.0.2.0/24",
        "quoted": '"192.0.2.1"',
        "two in one": "192.0.2.1 192.0.2.2",
        "IPv4 in brackets": "[192.0.2.1]",
        "IPv4 with a zone": "192.0.2.1%eth0",
        "port 0": "192.0.2.1:0",
        "a port too large": "192.0.2.1:65536",
        "a long port": "192.0.2.1:000080",
        "a negative port": "192.0.2.1:-1",
        "no port": "192.0.2.1:",
        "no name": "_",
        "a name with other characters": "_a/b",
        "almost unknown": "unknown_",
        "an open bracket": "[2001:db8::1",
        "nothing in brackets": "[]",
        "after brackets": "[2001:db8::1]x",
        "no IPv6 port": "[2001:db8::1]:",
        "two gaps": "2001::db8::1",
        "five digits": "2001:db8::12345",
        "an empty zone": "fe80::1%",
        "a bad zone": "fe80::1%eth 0",
        "a Unix path": "unix:/run/x",
        "a NUL": "192.0.2.1\0",
        "other digits": "192.0.2.\xb9",
        "a megabyte": "1" * MEGABYTE,
        "a megabyte of colons": ":" * MEGABYTE,
        "a megabyte of name and a space": "_" + "x" * MEGABYTE + " x",
    }.items()
]


@pytest.mark.parametrize("entry", BAD_ENTRIES)
@pytest.mark.parametrize("value", ["{}", "192.0.2.1, {}", "192.0.2.1, {}, 10.0.0.2"])
def test_an_entry_that_is_walked_over_must_be_an_address(entry: str, value: str) -> None:
    assert x_forwarded(value.format(entry)) is None


@pytest.mark.parametrize("entry", BAD_ENTRIES)
def test_one_that_is_not_need_not(entry: str) -> None:
    assert x_forwarded(f"{entry}, 192.0.2.1, 10.0.0.2") == by(CLIENT)


# --- X-Forwarded-Proto, -Host, -Port, -Prefix ---


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"PROTO": "https"}, {"scheme": "https"}, id="https"),
        pytest.param({"PROTO": "HTTP"}, {"scheme": "http"}, id="any case"),
        pytest.param({"PROTO": ""}, {}, id="an empty one says nothing"),
        pytest.param({"PROTO": " , "}, {}, id="nor does a list of nothing"),
        pytest.param({"HOST": "www.example.org"}, {"host": "www.example.org"}, id="a host"),
        pytest.param(
            {"HOST": "example.org:8443", "PORT": "443"},
            {"host": "example.org:8443", "server_port": "8443"},
            id="the host's port before another",
        ),
        pytest.param(
            {"HOST": "example.org", "PORT": "8443"}, {"host": "example.org", "server_port": "8443"}, id="or the other"
        ),
        pytest.param(
            {"HOST": "example.org:", "PORT": "1"}, {"host": "example.org", "server_port": "1"}, id="a colon is no port"
        ),
        pytest.param({"HOST": "[2001:db8::1]"}, {"host": "[2001:db8::1]"}, id="an IPv6 host"),
        pytest.param({"HOST": "[::1]:65535"}, {"host": "[::1]:65535", "server_port": "65535"}, id="and its port"),
        pytest.param({"PORT": "00443"}, {"server_port": "443"}, id="a port with zeros"),
        pytest.param({"PREFIX": "/app"}, {"prefix": "/app"}, id="a prefix"),
        pytest.param({"PREFIX": "/app/"}, {"prefix": "/app"}, id="without the slash at its end"),
        pytest.param({"PREFIX": "/"}, {}, id="a slash is no prefix"),
        pytest.param({"PREFIX": "/a%20b/%C3%A9"}, {"prefix": "/a b/\xc3\xa9"}, id="decoded as WSGI has it"),
        pytest.param({"PREFIX": "/.hidden/...x/..."}, {"prefix": "/.hidden/...x/..."}, id="dots in names"),
    ],
)
@pytest.mark.parametrize("who", [None, CLIENT], ids=["of the proxy itself", "of its client"])
def test_what_one_proxy_says(fields: dict[str, str], expected: dict[str, str], who: str | None) -> None:
    client = by(*PEER, **expected) if who is None else by(who, **expected)
    assert x_forwarded(who, **fields) == client


@pytest.mark.parametrize(
    ("addresses", "fields", "expected"),
    [
        pytest.param(
            "192.0.2.1",
            {"PROTO": "https, http", "HOST": "evil.example, a.example", "PORT": "1, 2", "PREFIX": "/evil, /a"},
            {"scheme": "http", "host": "a.example", "server_port": "2", "prefix": "/a"},
            id="one proxy: the last entry is its own, the others its client's",
        ),
        pytest.param(
            "",
            {"PROTO": "https, http", "HOST": "evil.example, a.example", "PORT": "1, 2", "PREFIX": "/evil, /a"},
            {
                "scheme": "http",
                "host": "a.example",
                "server_port": "2",
                "prefix": "/a",
                "address": PEER[0],
                "port": PEER[1],
            },
            id="one that does not say who asks: the last entry all the same",
        ),
        pytest.param(
            "192.0.2.1, 10.0.0.2",
            {
                "PROTO": "ftp, https, http",
                "HOST": "<>, a.example, b.example",
                "PORT": "x, 1, 2",
                "PREFIX": "x, /a, /b/",
            },
            {"scheme": "https", "host": "a.example", "server_port": "1", "prefix": "/a/b"},
            id="two: what the outer one saw, and both have cut off a prefix",
        ),
        pytest.param(
            "192.0.2.1, 10.0.0.2",
            {"PROTO": "https", "HOST": "a.example", "PORT": "1", "PREFIX": "/a"},
            {"scheme": "https", "host": "a.example", "server_port": "1", "prefix": "/a"},
            id="two, and the inner one has written over it: what there is",
        ),
        pytest.param(
            "192.0.2.1, 10.0.0.2, 10.0.0.3",
            {"PROTO": "https, http"},
            {"scheme": "https"},
            id="three, of which two say so: the first entry",
        ),
        pytest.param(
            "192.0.2.1, 10.0.0.2", {"PROTO": "https,, ,http, "}, {"scheme": "https"}, id="empty entries do not count"
        ),
        pytest.param(
            "192.0.2.7, _hidden, 10.0.0.2",
            {"PROTO": "ftp, https, http"},
            {"address": "10.0.0.2", "scheme": "https"},
            id="who has a hidden client still says how it asked",
        ),
        pytest.param(
            "192.0.2.1, 10.0.0.2",
            {"HOST": "a.example:1, b.example:2", "PORT": "evil, 3, 4"},
            {"host": "a.example:1", "server_port": "1"},
            id="a port that is not needed is not looked at",
        ),
    ],
)
def test_what_several_proxies_say(addresses: str, fields: dict[str, str], expected: dict[str, str]) -> None:
    assert x_forwarded(addresses, **fields) == Identity(**{"address": CLIENT, "port": 0} | expected)  # type: ignore[arg-type]


BAD_HOSTS = [
    *("a b", "a/b", "user@example.org", "example.org:65536", "example.org:x", "example.org:0", "a:1:2", ":80", "a\x00"),
    *(
        "[::1",
        "[::1]x",
        "[192.0.2.1]",
        "[fe80::1%eth0]",
        "[]",
        "[1::2::3]",
        "[:::]:1",
        "%zz",
        "\xe9.example",
        '"a"',
        "a\\b",
        "2001:db8::1",
    ),
]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("PROTO", text) for text in ("ws", "wss", "ftp", "https:", "http/1.1", "on", "x" * MEGABYTE, "\x00")],
        *[("HOST", text) for text in BAD_HOSTS],
        *[
            ("PORT", text)
            for text in ("0", "65536", "-1", "+1", " 1 2", "http", "1.0", "\xb2", "000001", "9" * MEGABYTE)
        ],
        *[("PREFIX", text) for text in ("app", "//app", "/a//b", "/a//", "/..", "/a/../b", "/./a", "/a/.", "/a b")],
        *[("PREFIX", text) for text in ("/%2e%2e/a", "/a/%2E", "/%2f", "/%2Fexample.org", "/a?b", "/a#b", "/a%3Fb")],
        *[("PREFIX", text) for text in ("/\\example.org", "/a%5cb", "/a%0d%0aX:", "/a\x7f", "/%", "/%4", "/%zz")],
        *[(field, text) for field, text in (("HOST", "a" * 1025), ("PREFIX", "/" + "a" * 1024))],
        *[("PREFIX", text) for text in ("https://example.org/", "/a%00", "/a\tb", "/" * MEGABYTE, "/\u0100")],
    ],
)
def test_what_a_proxy_says_must_be_well_formed(field: str, value: str) -> None:
    assert x_forwarded(CLIENT, **{field: value}) is None


@pytest.mark.parametrize("field", ["PROTO", "HOST", "PORT", "PREFIX"])
def test_a_list_longer_than_it_is_read_has_no_first_entry(field: str) -> None:
    good = {"PROTO": "https", "HOST": "a.example", "PORT": "1", "PREFIX": "/a"}[field]
    assert x_forwarded(CLIENT, **{field: f"{good}," * 1000 + good}) == x_forwarded(CLIENT, **{field: good})
    assert x_forwarded(CLIENT, **{field: f"{good}{',' * 1000}"}) is None


# --- Forwarded ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("", PEER, id="an empty field says nothing"),
        pytest.param(" , ,\t,", PEER, id="nor does a list of nothing"),
        pytest.param("for=192.0.2.1", ("192.0.2.1", 0), id="an address"),
        pytest.param('For="192.0.2.1:4711"', ("192.0.2.1", 4711), id="with a port; any case"),
        pytest.param('for="[2001:db8:cafe::17]"', ("2001:db8:cafe::17", 0), id="IPv6"),
        pytest.param('for="[2001:db8:cafe::17]:4711"', ("2001:db8:cafe::17", 4711), id="IPv6 with a port"),
        pytest.param('for="[fe80::1%eth0]"', ("fe80::1", 0), id="a zone"),
        pytest.param('for="[::ffff:192.0.2.1]"', ("192.0.2.1", 0), id="mapped is IPv4"),
        pytest.param(r'for="\1\92.0.2\.1"', ("192.0.2.1", 0), id="escapes that nobody needs"),
        pytest.param("for=192.0.2.1, for=10.0.0.2", ("192.0.2.1", 0), id="two proxies"),
        pytest.param(
            'for=192.0.2.1,for="[2001:db8:f::1]:1" , ,by=_x;for="10.0.0.3:_p"',
            ("192.0.2.1", 0),
            id="many, of all kinds",
        ),
        pytest.param("for=10.0.0.4, for=10.0.0.3", ("10.0.0.4", 0), id="all are trusted: the first one asks"),
        pytest.param("for=unknown", PEER, id="unknown: the proxy that says so"),
        pytest.param("for=192.0.2.7, for=UNKNOWN, for=10.0.0.2", ("10.0.0.2", 0), id="unknown stops the walk"),
        pytest.param("for=192.0.2.7, for=_gazonk", PEER, id="so does a name"),
        pytest.param('for=192.0.2.7, for="_SEVKISEK:_1", for="10.0.0.2:3"', ("10.0.0.2", 3), id="with a port"),
        pytest.param("for=192.0.2.7, by=10.0.0.1", PEER, id="so does an element that does not tell"),
        pytest.param("for=192.0.2.7, ;", PEER, id="or says nothing at all"),
        pytest.param("for=198.51.100.1, for=10.0.0.9, for=192.0.2.1", ("192.0.2.1", 0), id="spoofed: addresses"),
        pytest.param('for="192.0.2.7, for=192.0.2.1', ("192.0.2.1", 0), id="spoofed: a quote that is never closed"),
        pytest.param('x="\\, for=192.0.2.1', ("192.0.2.1", 0), id="spoofed: and a backslash"),
        pytest.param('for="a\\", for="192.0.2.1"', ("192.0.2.1", 0), id="spoofed: one that hides a closing quote"),
        pytest.param('="x, for="192.0.2.1"', ("192.0.2.1", 0), id="spoofed: one that a later quote would close"),
        pytest.param("<script>, for=192.0.2.1", ("192.0.2.1", 0), id="spoofed: garbage"),
        pytest.param(
            r'x="a, for=192.0.2.7, \"";for=192.0.2.1;y="\\"', ("192.0.2.1", 0), id="a comma in a string ends nothing"
        ),
        pytest.param(r'for=192.0.2.1;x="\\\\", for="10.0.0.2";y="\",\\"', ("192.0.2.1", 0), id="rows of backslashes"),
        pytest.param(r'for=192.0.2.1, for=10.0.0.2;x="\\\", for=192.0.2.7"', ("192.0.2.1", 0), id="and odd ones"),
        pytest.param("secret=x;for=192.0.2.1;ext='y'", ("192.0.2.1", 0), id="unknown parameters"),
        pytest.param(";;for=192.0.2.1;", ("192.0.2.1", 0), id="empty pairs (RFC 7239 4)"),
        pytest.param("by=x ; for=192.0.2.1 ;\tproto=http", None, id="spaces around semicolons"),
        pytest.param('by="<any string, \xfe>";for=192.0.2.1', ("192.0.2.1", 0), id="what `by` says is not of use"),
    ],
)
def test_forwarded_for(value: str, expected: tuple[str, int] | None) -> None:
    assert forwarded(value) == (by(CLIENT, scheme="http") if expected is None else by(*expected))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("for=192.0.2.1;proto=https", {"scheme": "https"}, id="a scheme"),
        pytest.param('for=192.0.2.1;PROTO="HTTPS"', {"scheme": "https"}, id="any case, quoted"),
        pytest.param("host=example.org;for=192.0.2.1", {"host": "example.org"}, id="a host"),
        pytest.param(
            'for=192.0.2.1;host="example.org:8443"',
            {"host": "example.org:8443", "server_port": "8443"},
            id="a host with a port",
        ),
        pytest.param(
            'for=192.0.2.1;host="[::1]:1"', {"host": "[::1]:1", "server_port": "1"}, id="an IPv6 host with a port"
        ),
        pytest.param(
            "for=x;proto=ftp, for=192.0.2.1;proto=https;host=a.example, for=10.0.0.2;proto=http;host=b.example",
            {"scheme": "https", "host": "a.example"},
            id="what the outermost proxy says, which saw the client",
        ),
        pytest.param(
            "for=192.0.2.1, for=10.0.0.2;proto=https;host=b.example", {}, id="what others say does not stand in for it"
        ),
        pytest.param(
            "for=192.0.2.1;proto=https, for=10.0.0.2;proto=grpc;host=<>",
            None,
            id="a token cannot hold that, though it is not of use",
        ),
        pytest.param(
            'for=192.0.2.1;proto=https, for=10.0.0.2;proto=grpc;host=""',
            {"scheme": "https"},
            id="what is not of use is not validated, but for the grammar",
        ),
        pytest.param(
            "for=192.0.2.7, for=_hidden;proto=https",
            {"address": "10.0.0.1", "port": 4711, "scheme": "https"},
            id="who has a hidden client still says how it asked",
        ),
        pytest.param(
            "proto=https;host=a.example",
            {"address": "10.0.0.1", "port": 4711, "scheme": "https", "host": "a.example"},
            id="and who says nothing of one",
        ),
    ],
)
def test_what_forwarded_says_besides(value: str, expected: dict[str, str] | None) -> None:
    assert forwarded(value) == (None if expected is None else Identity(**{"address": CLIENT, "port": 0} | expected))  # type: ignore[arg-type]


def test_other_fields_do_not_add_to_forwarded() -> None:
    assert forwarded("for=192.0.2.1", HTTP_X_FORWARDED_PORT="1", HTTP_X_FORWARDED_PREFIX="/a") == by(CLIENT)


BAD_ELEMENTS = [
    pytest.param(text, id=what)
    for what, text in {
        "no pair": "192.0.2.1",
        "no value": "for=",
        "no name": "=192.0.2.1",
        "a space before the sign": "for =192.0.2.1",
        "a space after it": "for= 192.0.2.1",
        "a space between pairs": "for=192.0.2.1 proto=http",
        "a colon in a token": "for=192.0.2.1:80",
        "brackets in a token": "for=[2001:db8::1]",
        "IPv6 without brackets": 'for="2001:db8::1"',
        "IPv4 in brackets": 'for="[192.0.2.1]"',
        "no address": "for=localhost",
        "an empty one": 'for=""',
        "twice the same": "for=10.0.0.2;for=10.0.0.2",
        "in another case": "for=10.0.0.2;FOR=10.0.0.3",
        "an unknown one twice": "for=10.0.0.2;x=1;X=2",
        "a port too large": 'for="192.0.2.1:65536"',
        "port 0": 'for="192.0.2.1:0"',
        "no port": 'for="192.0.2.1:"',
        "a quote in a token": 'for=10.0.0.2;x=a"b"',
        "after a quoted string": 'for=10.0.0.2;x="b"c',
        "two quoted strings": 'for=10.0.0.2;x="b""c"',
        "a quoted name": '"for"=10.0.0.2',
        "a string that is not opened": 'for=10.0.0.2;x=b"',
        "a string that is not closed": 'for=10.0.0.2;x="b',
        "a closing quote that is escaped": 'for=10.0.0.2;x="b\\"',
        "a quote in a string": 'for=10.0.0.2;x="b"c"',
        "a control character in a string": 'for=10.0.0.2;x="\x01"',
        "a control character that is escaped": 'for=10.0.0.2;x="\\\x7f"',
        "a NUL": "for=192.0.2.1\0",
        "a line end": "for=10.0.0.2\n",
        "an 8-bit name": "f\xf6r=10.0.0.2",
        "unix": 'for="unix:"',
        "a megabyte of token": "for=" + "x" * MEGABYTE,
        "a megabyte of string": 'for=10.0.0.2;x="' + "x" * MEGABYTE + '"',
        "a megabyte of escapes": 'for=10.0.0.2;x="' + r"\\\"" * (MEGABYTE // 4) + '"',
        "a megabyte of semicolons": "for=10.0.0.2" + ";" * MEGABYTE,
    }.items()
]


@pytest.mark.parametrize("element", BAD_ELEMENTS)
@pytest.mark.parametrize("value", ["{}", "for=192.0.2.1, {}", "for=192.0.2.1, {}, for=10.0.0.2"])
def test_an_element_that_is_walked_over_must_be_well_formed(element: str, value: str) -> None:
    assert forwarded(value.format(element)) is None


@pytest.mark.parametrize("element", BAD_ELEMENTS)
def test_one_that_is_not_walked_over_need_not(element: str) -> None:
    assert forwarded(f"{element}, for=192.0.2.1, for=10.0.0.2") == by(CLIENT)


@pytest.mark.parametrize(
    "pair",
    ["proto=ws", 'proto=""', "proto=ftp", 'host=""', *(f'host="{host}"' for host in BAD_HOSTS if '"' not in host)],
)
def test_what_the_one_element_says_must_be_well_formed(pair: str) -> None:
    value = f"for=192.0.2.1;{pair}"
    assert forwarded(value.replace("\\", r"\\")) is None
    assert forwarded(f"{value}, for=198.51.100.1") == by("198.51.100.1"), "unless it is the client's"


# --- hosts ---


@FAST
@given(
    st.one_of(
        st.from_regex(r"[a-z.%[\]]{1,8}(:[0-9]{0,6})?", fullmatch=True),
        st.from_regex(r"\[[0-9a-f:.]{1,8}\](:[0-9]{0,6})?", fullmatch=True),
        st.builds("[{}]:{}".format, st.ip_addresses(v=6), st.integers(0, 70_000)),
        st.text(st.characters(codec="latin-1"), min_size=1, max_size=20),
    )
)
def test_a_host_is_what_the_parser_takes_for_one(text: str) -> None:
    assume("," not in text and text.strip(" \t") == text)
    identity = x_forwarded(CLIENT, HOST=text)
    if re.search(":0+$", text):
        assert identity is None, "nobody can have connected to it"
    else:
        assert (identity is not None) == _is_host(text.encode("latin-1"))


# --- how far, and how long ---


@pytest.mark.parametrize(
    "read", [lambda n: x_forwarded(", ".join(["10.0.0.2"] * n)), lambda n: forwarded(", ".join(["for=10.0.0.2"] * n))]
)
def test_hops_are_bounded(read: object) -> None:
    assert callable(read)
    assert read(MAX_HOPS) == by("10.0.0.2")
    for hops in (MAX_HOPS + 1, 2 * MAX_HOPS, 2 * MAX_HOPS + 1, 5000):
        assert read(hops) is None


LONG = {
    "addresses": "10.0.0.2, " * (MEGABYTE // 10),
    "elements": "for=10.0.0.2, " * (MEGABYTE // 14),
    "commas": "," * MEGABYTE,
    "spaces": " " * MEGABYTE + "x",
    "commas and spaces": ", " * (MEGABYTE // 2),
    "quotes": '"' * MEGABYTE,
    "empty strings": '=""' * (MEGABYTE // 3),
    "empty strings in pairs": 'for="";' * (MEGABYTE // 7),
    "backslashes": "\\" * MEGABYTE,
    "backslashes before a quote": 'for="' + "\\" * MEGABYTE + '"',
    "escaped quotes": '\\"' * (MEGABYTE // 2) + '"',
    "escaped quotes and a sign": 'for="' + '\\"' * (MEGABYTE // 2),
    "semicolons": ";" * MEGABYTE,
    "semicolons and spaces": "; " * (MEGABYTE // 2) + "x",
    "spaces in an element": "for=10.0.0.2;" + " " * 8000 + "x",
    "spaces after a pair": "for=10.0.0.2" + " " * 8000 + "x",
    "names": "x=" * (MEGABYTE // 2),
    "colons": ":" * MEGABYTE,
    "zeros": "0" * MEGABYTE,
    "slashes": "/a" * (MEGABYTE // 2),
    "escapes": "/%41" * (MEGABYTE // 4),
    "dots": "/" + "." * MEGABYTE,
    "brackets": "[" * MEGABYTE,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("end", ["", ", 192.0.2.1", ", for=192.0.2.1", ', for="x'])
def test_a_megabyte_takes_milliseconds(text: str, end: str) -> None:
    value = text + end
    fields = dict.fromkeys(EVERYTHING, value)
    began = time.process_time()
    for family in ("forwarded", "x-forwarded"):
        resolve(PEER, fields, PROXIES, family)
        resolve(PEER, fields | {"HTTP_X_FORWARDED_FOR": CLIENT, "HTTP_FORWARDED": "for=192.0.2.1"}, PROXIES, family)
    # Generous, for machines that are busy and slow: what is quadratic takes minutes.
    assert time.process_time() - began < 5
    # The client's own words change nothing, however long.
    if end.endswith("192.0.2.1"):
        resolved = forwarded(value) if "for" in end else x_forwarded(value)
        assert resolved == by(CLIENT)


# --- a chain of proxies, and a client that lies ---


def obscure(text: str) -> str:
    """Quote `text` for Forwarded, escaping what needs it and some that does not."""
    return '"' + "".join("\\" + char if char in '"\\5' else char for char in text) + '"'


def node(address: str, port: int, *, bracketed: bool) -> str:
    name = f"[{address}]" if ":" in address and (bracketed or port) else address
    return f"{name}:{port}" if port else name


TRUSTED = st.one_of(
    st.ip_addresses(network="10.0.0.0/8").map(str),
    st.ip_addresses(network="2001:db8:f::/48").map(str),
    st.ip_addresses(network="10.0.0.0/8").map(lambda address: f"::ffff:{address}"),
)
UNTRUSTED = st.ip_addresses().map(str).filter(lambda address: not PROXIES.contains(address))
LIES = st.one_of(
    st.none(),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60),
    st.lists(
        st.sampled_from(
            ["for=", "10.0.0.7", "192.0.2.66", '"', "\\", ",", ";", "=", " ", "[", "]", "unknown", "_x", "proto=https"]
        ),
        max_size=20,
    ).map("".join),
)


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, int, list[tuple[str, int]], str | None]:
    """Return the client's address and port, the proxies between it and here (the last one is the peer), and its lie."""
    hops = draw(st.lists(st.tuples(TRUSTED, st.integers(0, 65_535)), min_size=1, max_size=6))
    return draw(UNTRUSTED), draw(st.integers(0, 65_535)), hops, draw(LIES)


@settings(FAST, max_examples=200)
@given(chains(), st.sampled_from([",", ", ", " ,\t", ",,"]))
def test_the_client_is_the_true_one_by_x_forwarded_for(
    chain: tuple[str, int, list[tuple[str, int]], str | None], comma: str
) -> None:
    address, port, hops, value = chain
    for seen in [(address, port), *hops[:-1]]:
        entry = node(*seen, bracketed=False)
        value = entry if value is None else f"{value}{comma}{entry}"
    assert x_forwarded(value, hops[-1]) == by(canonical(address), port)


@settings(FAST, max_examples=200)
@given(chains(), st.sampled_from([",", ", ", " ,\t", ",,"]), st.sampled_from(['by="a,b\\",";{}', "{};x=y", "{}"]))
def test_the_client_is_the_true_one_by_forwarded(
    chain: tuple[str, int, list[tuple[str, int]], str | None], comma: str, form: str
) -> None:
    address, port, hops, value = chain
    for seen in [(address, port), *hops[:-1]]:
        element = form.format("for=" + obscure(node(*seen, bracketed=True)))
        value = element if value is None else f"{value}{comma}{element}"
    assert forwarded(value or "", hops[-1]) == by(canonical(address), port)


@settings(FAST, max_examples=200)
@given(
    st.fixed_dictionaries({}, optional={key: LIES.filter(lambda lie: lie is not None) for key in EVERYTHING}),
    st.sampled_from(["forwarded", "x-forwarded", "off"]),
    TRUSTED,
)
def test_whatever_stands_there_is_malformed_or_an_identity(fields: dict[str, str], family: str, peer: str) -> None:
    identity = resolve((peer, 1), fields, PROXIES, family)
    if identity is None:
        return
    assert identity.address == peer or canonical(identity.address) == identity.address
    assert 0 <= identity.port <= 65_535
    assert identity.scheme in ("", "http", "https")
    assert not identity.server_port or 1 <= int(identity.server_port) <= 65_535
    assert not identity.host or _is_host(identity.host.encode("ascii"))
    assert not identity.prefix or (identity.prefix[0] == "/" and identity.prefix[-1] != "/")
