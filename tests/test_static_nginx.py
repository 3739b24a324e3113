"""The same requests for the same files to nginx and to us. Where the answers differ, the table says whose is right.

A row is the same for both, or names what differs and which section we follow: it is the list of our deviations from
what people are used to. Both are set to do the same: the types, the index, siblings with gzip, relative redirects.
"""

from __future__ import annotations

import gzip
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.nginx import NGINX, has_module, serving_with_nginx
from tests.support import PATIENCE_S, Client, Response, serving
from tests.test_static import BIG, DIGITS, MODIFIED, SCRIPT, app, parts_of, write

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.skipif(NGINX is not None and not has_module("gzip_static"), reason="this nginx sends no siblings"),
]

HTTP = """
    types {
        text/plain txt; text/html html; text/javascript js; application/json json; application/gzip gz;
    }
    default_type application/octet-stream;
    charset utf-8;
    charset_types text/plain text/javascript;
    absolute_redirect off;
    gzip on;
    gzip_vary on;
    gzip_types text/javascript;
"""
COMPARED = (
    *("Content-Type", "Content-Length", "Content-Range", "Content-Encoding", "Last-Modified", "Accept-Ranges"),
    *("Location", "Vary"),
)
# An answer that is no file has a page, and each server its own.
OF_PAGES = ("Content-Type", "Content-Length", "Vary")

IN_TIME = "Sun, 09 Sep 2001 01:46:40 GMT"
EARLIER, LATER = "Sun, 09 Sep 2001 01:46:39 GMT", "Sun, 09 Sep 2001 01:46:41 GMT"


@dataclass(frozen=True)
class Row:
    """A request and what it gets: from both, unless `theirs` is another status or `differs` names fields.

    TAG in a field is the entity tag that the server in question has given the file.
    """

    request: str
    fields: tuple[str, ...] = ()
    status: int = 200
    theirs: int | None = None
    differs: tuple[str, ...] = ()
    why: str = ""
    version: str = "1.1"


def row(name: str, request: str, *fields: str, status: int = 200, version: str = "1.1") -> object:
    """A request that both answer in the same way."""
    return pytest.param(Row(request, fields, status, version=version), id=name)


def other_status(name: str, request: str, *fields: str, ours: int, theirs: int, why: str) -> object:
    return pytest.param(Row(request, fields, ours, theirs, why=why), id=f"{name}: {ours}, nginx {theirs} ({why})")


def other_answer(  # the status is the same
    name: str, request: str, *fields: str, differs: tuple[str, ...], why: str, status: int = 200, version: str = "1.1"
) -> object:
    return pytest.param(
        Row(request, fields, status, differs=differs, why=why, version=version),
        id=f"{name}: other {', '.join(differs)} ({why})",
    )


CODED = ("Content-Length", "Content-Encoding", "body")
# nginx leaves it out beside what it compresses or takes from a sibling, having no ranges of it; the RFC lets us say it.
NO_RANGES = ("Accept-Ranges",)

FILES = [
    row("a file", "GET /media/hello.txt"),
    row("its head", "HEAD /media/hello.txt"),
    row("a large file", "GET /media/big.bin"),
    row("the head of a large file", "HEAD /media/big.bin"),
    row("an empty file", "GET /media/empty.txt"),
    row("JSON has no charset", "GET /media/a.json"),
    row("HTTP/1.0", "GET /media/hello.txt", version="1.0"),
    row("HTTP/1.0 that stays", "GET /media/hello.txt", "Connection: keep-alive", version="1.0"),
    row("Connection: close", "GET /media/hello.txt", "Connection: close"),
    row("a blank in the name", "GET /media/sp%20ace.txt"),
    row("a name that is not ASCII", "GET /media/%C3%BCn%D1%96.txt"),
    row("a query", "GET /media/hello.txt?v=1"),
    row("a link that stays within", "GET /media/link.txt"),
    row("an index", "GET /media/sub/"),
    row("a directory without its slash", "GET /media/sub", status=301),
    row("its head, too", "HEAD /media/sub", status=301),
    row("with a query", "GET /media/sub?a=1", status=301),
    row("a directory that is not ASCII", "GET /media/%C3%BCnter%20dir", status=301),
    row("a miss", "GET /media/nothing.txt", status=404),
    row("a slash behind a file", "GET /media/hello.txt/", status=404),
    row("a FIFO", "GET /media/fifo", status=404),
    row("dots that leave", "GET /media/../outside.txt", status=404),
    row("encoded dots that leave", "GET /media/%2e%2e/outside.txt", status=404),
    row("an encoded slash", "GET /media/..%2foutside.txt", status=404),
    row("encoded twice", "GET /media/%252e%252e/outside.txt", status=404),
    row("overlong dots", "GET /media/%c0%ae%c0%ae/outside.txt", status=404),
    row("backslashes", "GET /media/..\\outside.txt", status=404),
    row("a NUL", "GET /media/%00", status=400),
    row("the mount without its slash, and without an index", "GET /media", status=404),
    other_status("a directory without an index", "GET /media/noindex/", ours=404, theirs=403, why="RFC 9110 15.5.4"),
    other_status("a link that leaves", "GET /media/leave.txt", ours=404, theirs=200, why="follow_symlinks is off"),
    other_status("a dot file", "GET /media/.hidden", ours=404, theirs=200, why="nobody means to publish it"),
    other_status("dots that stay", "GET /media/sub/../hello.txt", ours=404, theirs=200, why="RFC 3986 5.2.4: clients'"),
    other_status("a dot", "GET /media/./hello.txt", ours=404, theirs=200, why="RFC 3986 5.2.4: clients resolve them"),
    other_status("two slashes", "GET /media//hello.txt", ours=404, theirs=200, why="RFC 3986 3.3: an empty segment"),
]

METHODS = [
    row("POST", "POST /media/hello.txt", "Content-Length: 0", status=405),
    row("PUT", "PUT /media/hello.txt", "Content-Length: 0", status=405),
    row("DELETE", "DELETE /media/hello.txt", status=405),
    row("a method that there is not", "BREW /media/hello.txt", status=405),
    other_status("OPTIONS", "OPTIONS /media/hello.txt", ours=204, theirs=405, why="RFC 9110 9.3.7"),
]

CONDITIONS = [
    row("If-None-Match, the tag", "GET /media/hello.txt", "If-None-Match: TAG", status=304),
    row("for the head", "HEAD /media/hello.txt", "If-None-Match: TAG", status=304),
    row("weakly", "GET /media/hello.txt", "If-None-Match: W/TAG", status=304),
    row("anything", "GET /media/hello.txt", "If-None-Match: *", status=304),
    row("a list", "GET /media/hello.txt", 'If-None-Match: "a", TAG', status=304),
    row("another tag", "GET /media/hello.txt", 'If-None-Match: "a"'),
    row("If-Match, the tag", "GET /media/hello.txt", "If-Match: TAG"),
    row("If-Match, weakly", "GET /media/hello.txt", "If-Match: W/TAG", status=412),
    row("If-Match, another tag", "GET /media/hello.txt", 'If-Match: "a"', status=412),
    row("If-Match, anything", "GET /media/hello.txt", "If-Match: *"),
    row("of what is not there", "GET /media/nothing.txt", "If-Match: *", status=404),
    row("If-Match before If-None-Match", "GET /media/hello.txt", 'If-Match: "a"', "If-None-Match: TAG", status=412),
    row("If-Modified-Since, the date", "GET /media/hello.txt", f"If-Modified-Since: {IN_TIME}", status=304),
    row("an earlier date", "GET /media/hello.txt", f"If-Modified-Since: {EARLIER}"),
    row("as in RFC 850", "GET /media/hello.txt", "If-Modified-Since: Sunday, 09-Sep-01 01:46:40 GMT", status=304),
    row("as C writes it", "GET /media/hello.txt", "If-Modified-Since: Sun Sep  9 01:46:40 2001", status=304),
    row("no date", "GET /media/hello.txt", "If-Modified-Since: yesterday"),
    row("If-Unmodified-Since, the date", "GET /media/hello.txt", f"If-Unmodified-Since: {IN_TIME}"),
    row("a later date", "GET /media/hello.txt", f"If-Unmodified-Since: {LATER}"),
    row("an earlier one", "GET /media/hello.txt", f"If-Unmodified-Since: {EARLIER}", status=412),
    row(
        "another tag and the date",
        "GET /media/hello.txt",
        *('If-None-Match: "a"', f"If-Modified-Since: {IN_TIME}"),
    ),
    other_status(
        "the tag and an earlier date",
        "GET /media/hello.txt",
        *("If-None-Match: TAG", f"If-Modified-Since: {EARLIER}"),
        ours=304,
        theirs=200,
        why="RFC 9110 13.1.3: the tag counts",
    ),
    other_status(
        "If-Modified-Since, a later date",
        "GET /media/hello.txt",
        f"If-Modified-Since: {LATER}",
        ours=304,
        theirs=200,
        why="RFC 9110 13.1.3: a date, not a tag",
    ),
    other_status(
        "If-Unmodified-Since, no date",
        "GET /media/hello.txt",
        "If-Unmodified-Since: yesterday",
        ours=200,
        theirs=412,
        why="RFC 9110 13.1.4: to be ignored",
    ),
    other_status(
        "If-Match and an earlier date",
        "GET /media/hello.txt",
        *("If-Match: TAG", f"If-Unmodified-Since: {EARLIER}"),
        ours=200,
        theirs=412,
        why="RFC 9110 13.1.4: the tag counts",
    ),
]

RANGES = [
    row("the first ten", "GET /media/digits.bin", "Range: bytes=0-9", status=206),
    row("from a position on", "GET /media/digits.bin", "Range: bytes=990-", status=206),
    row("the last ten", "GET /media/digits.bin", "Range: bytes=-10", status=206),
    row("a suffix longer than the file", "GET /media/digits.bin", "Range: bytes=-5000", status=206),
    row("beyond the end", "GET /media/digits.bin", "Range: bytes=990-5000", status=206),
    row("of a large file", "GET /media/big.bin", "Range: bytes=100000-199999", status=206),
    row("the unit in upper case", "GET /media/digits.bin", "Range: BYTES=0-9", status=206),
    row("a blank", "GET /media/digits.bin", "Range: bytes= 0-9", status=206),
    row("one of two that is there", "GET /media/digits.bin", "Range: bytes=0-9,2000-", status=206),
    row("two", "GET /media/digits.bin", "Range: bytes=0-9,500-509", status=206),
    row("two of a large file", "GET /media/big.bin", "Range: bytes=0-9,200000-200009", status=206),
    row("beginning at the end", "GET /media/digits.bin", "Range: bytes=1000-", status=416),
    row("the last none", "GET /media/digits.bin", "Range: bytes=-0", status=416),
    row("nothing", "GET /media/digits.bin", "Range: bytes="),
    row("another unit", "GET /media/digits.bin", "Range: lines=0-9"),
    row("If-Range, the tag", "GET /media/digits.bin", "Range: bytes=0-9", "If-Range: TAG", status=206),
    row("If-Range, weakly", "GET /media/digits.bin", "Range: bytes=0-9", "If-Range: W/TAG"),
    row("If-Range, another tag", "GET /media/digits.bin", "Range: bytes=0-9", 'If-Range: "a"'),
    row("If-Range, the date", "GET /media/digits.bin", "Range: bytes=0-9", f"If-Range: {IN_TIME}", status=206),
    row("If-Range, a later date", "GET /media/digits.bin", "Range: bytes=0-9", f"If-Range: {LATER}"),
    row("after a condition", "GET /media/digits.bin", "Range: bytes=0-9", "If-None-Match: TAG", status=304),
    row("also one that is not there", "GET /media/digits.bin", "Range: bytes=2000-", "If-None-Match: TAG", status=304),
    row("after one that fails", "GET /media/digits.bin", "Range: bytes=2000-", 'If-Match: "a"', status=412),
    other_status(
        "backwards", "GET /media/digits.bin", "Range: bytes=9-0", ours=200, theirs=416, why="RFC 9110 14.1.1, 14.2"
    ),
    other_status(
        "no digits", "GET /media/digits.bin", "Range: bytes=a-b", ours=200, theirs=416, why="RFC 9110 14.2: ignored"
    ),
    other_status(
        "a good one and none", "GET /media/digits.bin", "Range: bytes=0-9,a", ours=200, theirs=416, why="RFC 9110 14.2"
    ),
    other_status(
        "for the head",
        "HEAD /media/digits.bin",
        "Range: bytes=0-9",
        ours=200,
        theirs=206,
        why="RFC 9110 14.2: GET only",
    ),
    row("of an empty file", "GET /media/empty.txt", "Range: bytes=0-9", status=200),
    other_status(
        "all of it three times",
        "GET /media/digits.bin",
        "Range: bytes=0-,0-,0-",
        ours=206,
        theirs=200,
        why="RFC 9110 15.3.7.2: coalesced",
    ),
    other_answer(
        "overlapping ones",
        "GET /media/digits.bin",
        "Range: bytes=0-9,5-19",
        status=206,
        differs=("Content-Type", "Content-Length", "Content-Range", "body"),
        why="RFC 9110 15.3.7.2: coalesced",
    ),
    other_answer(
        "adjacent ones",
        "GET /media/digits.bin",
        "Range: bytes=0-9,10-19",
        status=206,
        differs=("Content-Type", "Content-Length", "Content-Range", "body"),
        why="RFC 9110 15.3.7.2: coalesced",
    ),
]

CODINGS = [
    row("a file with a sibling, plain", "GET /media/app.js"),
    row("not gzip", "GET /media/app.js", "Accept-Encoding: gzip;q=0"),
    row("another coding", "GET /media/app.js", "Accept-Encoding: deflate"),
    row("the sibling by its name", "GET /media/app.js.gz"),
    row("what could be compressed, plain", "GET /media/plain.js"),
    other_answer(
        "the sibling",
        "GET /media/app.js",
        "Accept-Encoding: gzip",
        differs=NO_RANGES,
        why="RFC 9110 14.2: of the selected representation",
    ),
    other_answer(
        "a browser",
        "GET /media/app.js",
        "Accept-Encoding: gzip, deflate, br, zstd",
        differs=NO_RANGES,
        why="RFC 9110 14.2: of the selected representation",
    ),
    other_answer(
        "anything",
        "GET /media/app.js",
        "Accept-Encoding: *",
        differs=CODED,
        why="RFC 9110 12.5.3: all that are not named",
    ),
    other_answer(
        "gzip by its old name", "GET /media/app.js", "Accept-Encoding: x-gzip", differs=CODED, why="RFC 9110 8.4.1.3"
    ),
    other_answer(
        "plain rather than gzip",
        "GET /media/app.js",
        "Accept-Encoding: gzip;q=0.5, identity",
        differs=(*CODED, *NO_RANGES),
        why="RFC 9110 12.4.2: by weight",
    ),
    other_answer(
        "HTTP/1.0",
        "GET /media/app.js",
        "Accept-Encoding: gzip",
        differs=CODED,
        why="it has asked for it",
        version="1.0",
    ),
    other_answer(
        "a sibling older than the file",
        "GET /media/stale.js",
        "Accept-Encoding: gzip",
        differs=(*CODED, "Last-Modified", *NO_RANGES),
        why="it is of another version",
    ),
    other_answer(
        "without a sibling, at first",
        "GET /media/plain.js",
        "Accept-Encoding: gzip",
        differs=(*CODED, *NO_RANGES),
        why="compressed once, for those who come later",
    ),
    other_status(
        "a part of the sibling",
        "GET /media/app.js",
        *("Accept-Encoding: gzip", "Range: bytes=0-9"),
        ours=206,
        theirs=200,
        why="RFC 9110 14.2: of the selected representation",
    ),
]


@dataclass(frozen=True)
class Both:
    ours: int
    nginx: int


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The ports of the two, which serve the same directory."""
    base = tmp_path_factory.mktemp("both")
    mount = base / "mount"
    for name, content in {
        "hello.txt": b"hello, world\n",
        "empty.txt": b"",
        "digits.bin": DIGITS,
        "big.bin": BIG,
        "a.json": b"{}",
        "sp ace.txt": b"space",
        "\u00fcn\u0456.txt": b"unicode",
        "\u00fcnter dir/index.html": b"<p>unter",
        "sub/index.html": b"<p>index",
        "noindex/inner.txt": b"inner",
        ".hidden": b"hidden",
        "../outside.txt": b"outside",
        "app.js": SCRIPT,
        "app.js.gz": gzip.compress(SCRIPT, mtime=0),
        "plain.js": SCRIPT,
        "stale.js": SCRIPT,
    }.items():
        write(mount / name, content)
    write(mount / "stale.js.gz", gzip.compress(b"old", mtime=0), MODIFIED - 5)
    (mount / "link.txt").symlink_to("hello.txt")
    (mount / "leave.txt").symlink_to("../outside.txt")
    os.mkfifo(mount / "fifo")
    (base / "nginx").mkdir()
    location = f'location /media/ {{ alias "{mount}/"; index index.html; gzip_static on; }}'
    with (
        serving(app, static=[f"/media={mount}"], files_check="1h") as running,
        serving_with_nginx(base / "nginx", location, http=HTTP) as port,
    ):
        yield Both(running.port, port)


def ask(port: int, request: str, *fields: str, version: str = "1.1") -> Response:
    method, target = request.split(" ")
    with Client(socket.create_connection(("127.0.0.1", port), PATIENCE_S)) as client:
        return client.get(target, *fields, method=method, version=version)


def answer(port: int, row: Row) -> Response:
    fields = row.fields
    if any("TAG" in field for field in fields):
        target = row.request.split(" ")[1]
        tag = ask(port, f"GET {target}").header("ETag")
        assert tag is not None
        fields = tuple(field.replace("TAG", tag) for field in fields)
    return ask(port, row.request, *fields, version=row.version)


def content(response: Response) -> object:
    """Return the body, which is of no interest where it is a page about an error."""
    if (response.header("Content-Type") or "").startswith("multipart/"):
        return parts_of(response)
    return response.body if response.status in (200, 206, 304) else b""


def compared(response: Response) -> dict[str, object]:
    found: dict[str, object] = {name: response.header(name) for name in COMPARED}
    found["body"] = content(response)
    if response.status not in (200, 206, 304):
        found |= dict.fromkeys(OF_PAGES)
    if response.status == 206:
        found["Accept-Ranges"] = None  # RFC 9110 14.3: who gets a part knows already; nginx leaves it out
    if isinstance(found["body"], list):
        # RFC 9110 14.6: any boundary, and nginx has an empty line before the first.
        found["Content-Type"] = re.sub("boundary=.*", "boundary=", str(found["Content-Type"]))
        found["Content-Length"] = None
    return found


@pytest.mark.parametrize("row", [*FILES, *METHODS, *CONDITIONS, *RANGES, *CODINGS])
def test_nginx_and_we(both: Both, row: Row) -> None:
    ours, theirs = answer(both.ours, row), answer(both.nginx, row)
    assert ours.status == row.status
    assert theirs.status == (row.status if row.theirs is None else row.theirs)
    if row.theirs is None:
        we, nginx = compared(ours), compared(theirs)
        assert {name for name in we if we[name] != nginx[name]} == set(row.differs)


def test_both_say_when_a_connection_ends(both: Both) -> None:
    for fields, version, expected in (
        ((), "1.0", "close"),
        (("Connection: keep-alive",), "1.0", "keep-alive"),
        (("Connection: close",), "1.1", "close"),
    ):
        for port in (both.ours, both.nginx):
            response = ask(port, "GET /media/hello.txt", *fields, version=version)
            assert response.header("Connection") == expected


def test_a_method_that_is_not_allowed_comes_with_those_that_are(both: Both) -> None:
    """RFC 9110 15.5.6: MUST. nginx does not."""
    assert ask(both.ours, "DELETE /media/hello.txt").header("Allow") == "GET, HEAD, OPTIONS"
    assert ask(both.nginx, "DELETE /media/hello.txt").header("Allow") is None


def test_a_304_says_what_the_answer_varies_by(both: Both) -> None:
    """RFC 9110 15.4.5: MUST, if the 200 would have."""
    for port in (both.ours, both.nginx):
        tag = ask(port, "GET /media/app.js").header("ETag")
        again = ask(port, "GET /media/app.js", f"If-None-Match: {tag}")
        assert (again.status, again.header("ETag"), again.header("Last-Modified")) == (304, tag, IN_TIME)
        assert again.header("Vary") == "Accept-Encoding"


def test_the_tag_of_what_nginx_compresses_is_weak_and_ours_is_strong(both: Both) -> None:
    """RFC 9110 8.8.1: ours is of bytes that are kept, and so may be asked for in parts."""
    theirs = ask(both.nginx, "GET /media/plain.js", "Accept-Encoding: gzip").header("ETag") or ""
    ours = ask(both.ours, "GET /media/app.js", "Accept-Encoding: gzip").header("ETag") or ""
    assert (theirs[:2], ours[:1]) == ("W/", '"')


def test_the_tags_of_ours_tell_the_codings_apart(both: Both) -> None:
    """RFC 9110 8.8.3.3. nginx tells them apart by size and time alone."""
    tags = {
        ask(both.ours, "GET /media/app.js", f"Accept-Encoding: {coding}").header("ETag") for coding in ("gzip", "x")
    }
    assert len(tags) == 2
