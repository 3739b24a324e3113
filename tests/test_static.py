"""Files over the wire: which request gets what, whether a file was just looked at or is remembered.

Where nginx does the same thing, test_static_nginx.py holds both to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gzip
import logging
import os
import random
import re
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, url_for
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hardserve.edge.context import CLOSED
from hardserve.files.entries import Examiner
from hardserve.files.mounts import Mount, Mounts
from hardserve.files.static import StaticFiles
from hardserve.files.tree import MAX_DEPTH
from hardserve.http import encoders
from hardserve.http.conditions import http_date
from hardserve.http.ranges import MAX_RANGES, PART_OVERHEAD
from hardserve.pool import Pool
from hardserve.settings import StaticSettings
from tests.passwords import basic, write_users
from tests.support import PATIENCE_S, Client, Response, Running, serving, spoken
from tests.test_http import eventually
from tests.test_ranges import model

pytestmark = pytest.mark.usefixtures("transport")

MODIFIED = 1_000_000_000
DIGITS = b"0123456789" * 100
BIG = random.Random(5).randbytes(300_000)  # more than is kept in memory
SCRIPT = b"let answer = 42;\n" * 200
HUGE = random.Random(6).randbytes(1 << 20) * 8  # more than the buffers of two sockets
ALLOW = "GET, HEAD, OPTIONS"
FOR_EVER = "max-age=31536000, immutable"


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"app: {environ['REQUEST_METHOD']} {environ['PATH_INFO']}".encode("latin-1")]


def write(path: Path, content: bytes | str, modified: int = MODIFIED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(path, (modified, modified))
    return path


def plant(base: Path) -> Path:
    """Make a directory to be served, with bait beside it; return it."""
    mount = base / "mount"
    write(base / "outside" / "bait.txt", "bait")
    write(base / "mount-private" / "bait.txt", "bait")
    for name, content in {
        "hello.txt": "hello, world\n",
        "empty.txt": "",
        "digits.bin": DIGITS,
        "big.bin": BIG,
        "sub/index.html": "<p>the index of sub",
        "sub/inner.txt": "inner",
        "noindex/inner.txt": "inner",
        "both/index.html/inner.txt": "an index that is a directory",
        "\u00fcnter dir/index.html": "<p>unter",
        "sp ace.txt": "space",
        "\u00fcn\u0456.txt": "unicode",
        "100%.txt": "percent",
        "a+b.txt": "plus",
        "q?.txt": "question mark",
        "semi;colon.txt": "semicolon",
        "%41.txt": "a percent sign and 41",
        ".secret": "bait",
        ".dir/inner.txt": "bait",
        ".well-known/security.txt": "Contact: mailto:a@example.com\n",
        ".well-known/.hidden": "bait",
        "sub/.well-known/bait.txt": "bait",
        "back\\slash.txt": "bait",
        "app.3f2a91c4.js": "hashed",
        "report-20240131.pdf": "dated",
        "x" * 251 + ".txt": "a long name",
    }.items():
        write(mount / name, content)
    for name, target in {
        "link.txt": "hello.txt",
        "link-dir": "sub",
        "sub/up.txt": "../hello.txt",
        "absolute.txt": str(mount / "hello.txt"),
        "leaving.txt": "../outside/bait.txt",
        "leaving-dir": "../outside",
        "leaving-and-back.txt": "../mount/hello.txt",
        "absolute-leaving.txt": str(base / "outside" / "bait.txt"),
        "to-secret.txt": ".secret",
        "dangling.txt": "nothing",
        "loop.txt": "loop.txt",
    }.items():
        (mount / name).symlink_to(target)
    os.mkfifo(mount / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(mount / "socket"))
    with contextlib.suppress(PermissionError):
        os.mknod(mount / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return mount


@dataclass
class Site:
    running: Running
    directory: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Site]:
    """A server with a mount of each kind, which looks at nothing twice."""
    base = tmp_path_factory.mktemp("site")
    mount = plant(base)
    write(base / "special" / "hello.txt", "special")
    write(base / "robots-for-all", "User-agent: *\n")
    write(base / "icon.ico", "icon")
    spa = base / "spa"
    write(spa / "index.html", "<p>the page")
    write(spa / "app.css", "p{}")
    directory = str(mount)
    mounts = [
        {"url": "/media", "directory": directory},
        {"url": "/media/special", "directory": str(base / "special")},
        {"url": "/media/special/robots.txt", "directory": str(base / "robots-for-all")},
        {"url": "/favicon.ico", "directory": str(base / "icon.ico")},
        {"url": "/follow", "directory": directory, "follow_symlinks": "on"},
        {"url": "/list", "directory": directory, "listing": "on"},
        {"url": "/home", "directory": directory, "index": "hello.txt"},
        {"url": "/noindex", "directory": directory, "index": "off"},
        {"url": "/spa", "directory": str(spa), "fallback": "index.html"},
        {"url": "/toapp", "directory": directory, "miss": "app"},
        {"url": "/left", "directory": directory, "app_paths": ["/left/api/*", "/left/*.json", "/left/sub/inner.txt"]},
        {"url": "/hour", "directory": directory, "cache_control": "public, max-age=3600"},
        {"url": "/silent", "directory": directory, "cache_control": "off", "immutable": "off"},
        {"url": "/forever", "directory": directory, "immutable": "on"},
        {"url": "/internal", "directory": directory, "internal": "on"},
        {"url": "/caf\u00e9", "directory": directory},
    ]
    with serving(app, static=mounts, files_check="1h", limits_connection_requests=10**6) as running:
        yield Site(running, mount)


def told(response: Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return what of a response is the same each time."""
    text = response.header("Content-Type") or ""
    boundary = text.partition("boundary=")[2] or "no boundary"
    fields = [
        (name, value.replace(boundary, ""))
        for name, value in response.headers
        if name not in ("Date", "X-Request-ID", "Connection")
    ]
    return response.status, fields, response.body.replace(boundary.encode(), b"")


def ask(running: Running, target: str, *fields: str, method: str = "GET") -> Response:
    """Return the answer, which is the same when the file has just been looked at and when it is remembered."""
    with running.connect() as client:
        first = client.get(target, *fields, method=method)
        if first.header("Connection") != "close":
            again = client.get(target, *fields, method=method)
            # A refusal says which request it was for.
            assert told(again)[: 2 if first.status >= 400 else 3] == told(first)[: 2 if first.status >= 400 else 3]
    return first


def static_files(running: Running) -> StaticFiles:
    eventually(lambda: hasattr(running.server._loop, "_ctx"))
    files = running.server._loop._ctx.serve_file.__self__  # type: ignore[union-attr]
    assert isinstance(files, StaticFiles)
    return files


def file_pool(running: Running) -> Pool:
    """Return the threads of the first mount."""
    return running.server._storages.pool(running.server.files[0])


def held_file_threads(running: Running) -> contextlib.AbstractContextManager[Callable[[], None]]:
    return held(running, file_pool(running))


@contextlib.contextmanager
def held(running: Running, pool: Pool) -> Iterator[Callable[[], None]]:
    """Have the one thread of a pool wait while the block runs, or until what this yields is called."""
    holding, released = threading.Event(), threading.Event()

    def job() -> None:
        holding.set()
        released.wait(PATIENCE_S)

    running.server._loop.post(lambda _now: pool.submit(job, lambda _result: None) and None)
    assert holding.wait(PATIENCE_S)
    try:
        yield released.set
    finally:
        released.set()


@contextlib.contextmanager
def slow_client(running: Running) -> Iterator[Client]:
    """A client whose kernel takes little that it has not read itself."""
    with socket.socket() as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.settimeout(PATIENCE_S)
        connected.connect(("127.0.0.1", running.port))
        yield Client(spoken(connected))


def hurry(client: Client) -> None:
    """Have the kernel of a slow client take what there is."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)


def receive_what_comes(client: Client) -> bytes:
    """Return what a client gets until the connection ends, in whatever way."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while data := client.socket.recv(1 << 16):
            pieces.append(data)
    return client.receive_exactly(len(client._buffer)) + b"".join(pieces)


# --- mounts ---


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        pytest.param("/media/hello.txt", 200, b"hello, world\n", id="a file of a mount"),
        pytest.param("/media/special/hello.txt", 200, b"special", id="the longest prefix counts"),
        pytest.param("/media/special/sub/inner.txt", 404, None, id="and no shorter one after it"),
        pytest.param("/media/special/robots.txt", 200, b"User-agent: *\n", id="a single file of another name"),
        pytest.param("/favicon.ico", 200, b"icon", id="a single file at the top"),
        pytest.param("/favicon.ico/", 200, b"app: GET /favicon.ico/", id="a slash behind a single file is the app's"),
        pytest.param("/favicon.icon", 200, b"app: GET /favicon.icon", id="as is a longer name"),
        pytest.param("/mediaplayer", 200, b"app: GET /mediaplayer", id="a path that only begins like a mount's"),
        pytest.param("/medi", 200, b"app: GET /medi", id="a path that a mount's begins like"),
        pytest.param("/", 200, b"app: GET /", id="what is in no mount is the app's"),
        pytest.param("/media/nothing.txt", 404, None, id="a miss is 404"),
        pytest.param("/media/hello.txt/more", 404, None, id="a file is no directory"),
        pytest.param("/media/hello.txt/", 404, None, id="nor with a slash"),
        pytest.param("/media/empty.txt", 200, b"", id="a file without a byte"),
        pytest.param("/media/big.bin", 200, BIG, id="a file larger than is kept in memory"),
        pytest.param("/media//hello.txt", 404, None, id="an empty name"),
        pytest.param("//media/hello.txt", 200, b"hello, world\n", id="slashes at the front are one, as for the app"),
        pytest.param("http://test/media/hello.txt", 200, b"hello, world\n", id="the absolute form"),
        pytest.param("/media/hello.txt?v=1", 200, b"hello, world\n", id="a query makes no difference"),
        pytest.param("/%6dedia/%68ello.txt", 200, b"hello, world\n", id="encoded letters"),
        pytest.param("/caf%C3%A9/hello.txt", 200, b"hello, world\n", id="a mount's URL that is not ASCII"),
        pytest.param("/caf%E9/hello.txt", 200, b"app: GET /caf\xe9/hello.txt", id="in another encoding is the app's"),
        # names
        pytest.param("/media/sp%20ace.txt", 200, b"space", id="a blank"),
        pytest.param("/media/sp+ace.txt", 404, None, id="a plus is no blank"),
        pytest.param("/media/a+b.txt", 200, b"plus", id="a plus"),
        pytest.param("/media/a%2Bb.txt", 200, b"plus", id="an encoded plus"),
        pytest.param("/media/100%25.txt", 200, b"percent", id="a percent sign"),
        pytest.param("/media/%2541.txt", 200, b"a percent sign and 41", id="is decoded once"),
        pytest.param("/media/q%3F.txt", 200, b"question mark", id="a question mark"),
        pytest.param("/media/semi;colon.txt", 200, b"semicolon", id="a semicolon"),
        pytest.param("/media/%C3%BCn%D1%96.txt", 200, b"unicode", id="letters that are not ASCII"),
        pytest.param("/media/" + "x" * 251 + ".txt", 200, b"a long name", id="the longest name"),
        pytest.param("/media/" + "x" * 2000, 404, None, id="a name longer than any"),
        pytest.param("/media/" + "sub/" * (MAX_DEPTH + 1) + "a.txt", 404, None, id="deeper than anything"),
        # directories
        pytest.param("/media/sub/", 200, b"<p>the index of sub", id="a directory is its index"),
        pytest.param("/media/noindex/", 404, None, id="a directory without one is not listed"),
        pytest.param("/media/", 404, None, id="nor is the mount itself"),
        pytest.param("/media/both/", 404, None, id="an index that is a directory is none"),
        pytest.param("/home/", 200, b"hello, world\n", id="an index of another name"),
        pytest.param("/home/sub/", 404, None, id="is that alone"),
        pytest.param("/noindex/sub/", 404, None, id="a mount without an index"),
        pytest.param("/spa/", 200, b"<p>the page", id="the index of a single-page app"),
        # misses
        pytest.param("/spa/orders/7", 200, b"<p>the page", id="a page of it that is no file"),
        pytest.param("/spa/orders/", 200, b"<p>the page", id="also with a slash"),
        pytest.param("/spa/users/a.b", 200, b"<p>the page", id="also with a dot that begins no known suffix"),
        pytest.param("/spa/app.css", 200, b"p{}", id="a style sheet of it"),
        pytest.param("/spa/app.3f2a91c4.js", 404, None, id="a script that is not there is no page"),
        pytest.param("/spa/logo.png", 404, None, id="nor is a picture"),
        pytest.param("/spa/.env", 404, None, id="nor is a dot file"),
        pytest.param("/toapp/hello.txt", 200, b"hello, world\n", id="a file where misses are the app's"),
        pytest.param("/toapp/nothing.txt", 200, b"app: GET /toapp/nothing.txt", id="a miss that is the app's"),
        pytest.param("/toapp/noindex/", 200, b"app: GET /toapp/noindex/", id="a directory that is"),
        pytest.param("/toapp/sub/", 200, b"<p>the index of sub", id="an index where misses are the app's"),
        pytest.param("/toapp/.secret", 404, None, id="a dot file is nobody's"),
        pytest.param("/toapp/fifo", 200, b"app: GET /toapp/fifo", id="what is no file is as if it were not there"),
        pytest.param("/left/api/users", 200, b"app: GET /left/api/users", id="paths that are left to the app"),
        pytest.param("/left/api", 200, b"app: GET /left/api", id="without the slash, too"),
        pytest.param("/left/data.json", 200, b"app: GET /left/data.json", id="by their ending"),
        pytest.param("/left/sub/inner.txt", 200, b"app: GET /left/sub/inner.txt", id="though there is a file"),
        pytest.param("/left/./sub//inner.txt", 200, b"app: GET /left/./sub//inner.txt", id="in another spelling"),
        pytest.param("/left/hello.txt", 200, b"hello, world\n", id="others are not left to it"),
        pytest.param("/internal/hello.txt", 200, b"app: GET /internal/hello.txt", id="an internal mount is not there"),
    ],
)
def test_which_file_a_path_is(site: Site, target: str, status: int, body: bytes | None) -> None:
    response = ask(site.running, target)
    assert response.status == status
    if body is not None:
        assert response.body == body


@pytest.mark.parametrize(
    ("target", "location"),
    [
        pytest.param("/media/sub", "/media/sub/", id="a directory"),
        pytest.param("/list/noindex", "/list/noindex/", id="one that is listed"),
        pytest.param("/media/sub?a=1&b=%2F", "/media/sub/?a=1&b=%2F", id="the query stays"),
        pytest.param("/media/sub?", "/media/sub/", id="an empty query"),
        pytest.param("/media/%C3%BCnter%20dir", "/media/%C3%BCnter%20dir/", id="letters that are not ASCII"),
        pytest.param("//media/sub", "/media/sub/", id="two slashes would be another host"),
        pytest.param("///media/sub", "/media/sub/", id="three, too"),
        pytest.param("http://test/media/sub", "/media/sub/", id="the absolute form"),
        pytest.param("/media/link-dir", "/media/link-dir/", id="a link to a directory"),
    ],
)
def test_a_directory_is_redirected_to_its_slash(site: Site, target: str, location: str) -> None:
    for method in ("GET", "HEAD"):
        response = ask(site.running, target, method=method)
        assert (response.status, response.header("Location")) == (301, location)
        assert response.body == b""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("\\evil.example", id="a backslash, which browsers take for a slash"),
        pytest.param("evil.example", id="a name of a host"),
        pytest.param("%0d%0aSet-Cookie: a=1", id="a line end"),
        pytest.param("\t", id="a tab"),
        pytest.param("@evil.example", id="an at sign"),
    ],
)
def test_no_redirect_leads_to_another_host(tmp_path: Path, name: str) -> None:
    """A mount at the top, where the client has all of the path."""
    (tmp_path / "evil.example" / "sub").mkdir(parents=True)
    (tmp_path / "@evil.example").mkdir()
    with serving(app, static=[{"url": "/", "directory": str(tmp_path)}]) as running:
        for start in ("/", "//", "///", "/./", "/.//", "/%2F", "/%2f%2f", "/\\", "/%5C", "/%09/"):
            told = running.exchange(f"GET {start}{name.replace(chr(9), '%09')} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            for line in told.split(b"\r\n\r\n")[0].split(b"\r\n"):
                assert not line.lower().startswith(b"set-cookie")
                if line.startswith(b"Location: "):
                    assert re.match(rb"Location: /[^/\\\t]", line)


def test_a_directory_is_listed_where_that_is_asked_for(site: Site) -> None:
    response = ask(site.running, "/list/")
    page = response.body.decode()
    assert response.status == 200
    assert response.header("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in (response.header("Content-Security-Policy") or "")
    assert response.header("Cache-Control") == "no-cache"
    links = re.findall(r'href="\./([^"]*)"', page)
    assert {"hello.txt", "sub/", "100%25.txt", "sp%20ace.txt", "link.txt", "link-dir/"} < set(links)
    assert not {".secret", ".dir/", "fifo", "socket", "null", "leaving.txt", "leaving-dir/", "dangling.txt"} & set(
        links
    )
    assert "bait" not in page
    for link in links:  # each leads to what it says
        with site.running.connect() as client:
            assert client.get(f"/list/{link}").status in ((200,) if not link.endswith("/") else (200, 404))
    assert ask(site.running, "/list/sub/").body == b"<p>the index of sub"
    assert ask(site.running, "/list/nothing/").status == 404
    assert b'href="../"' in ask(site.running, "/list/noindex/").body


@pytest.mark.parametrize(
    "field",
    [
        pytest.param("If-None-Match: *", id="If-None-Match of anything"),
        pytest.param("If-None-Match:", id="an empty If-None-Match"),
        pytest.param('If-None-Match: ""', id="an empty tag"),
        pytest.param("If-Modified-Since: Sat, 01 Jan 2050 00:00:00 GMT", id="If-Modified-Since"),
        pytest.param("If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT", id="If-Unmodified-Since"),
        pytest.param("Range: bytes=0-9", id="Range"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_listing_has_no_version_and_whatever_is_asked_of_it_has_an_answer(
    site: Site, field: str, method: str
) -> None:
    with site.running.connect() as client:
        client.get("/list/noindex/")  # so that it is remembered
        client.send(f"{method} /list/noindex/ HTTP/1.1\r\nHost: a\r\n{field}\r\nConnection: close\r\n\r\n".encode())
        answer = client.receive_all()
    assert re.match(rb"HTTP/1\.1 (200 OK|304 Not Modified)\r\n", answer), answer[:80]


# --- the static folders of an app ---


def shop(tmp_path: Path, **options: Any) -> Flask:
    for name, content in {
        "site.css": "p{}",
        "deep/a file.css": "deep",
        ".secret": "bait",
        "sub/index.html": "x",
    }.items():
        write(tmp_path / "static" / name, content)
    write(tmp_path / "blue" / "blue.css", "b{}")
    flask = Flask("shop", root_path=str(tmp_path), **options)
    flask.register_blueprint(Blueprint("blue", "shop", url_prefix="/blue", static_folder=str(tmp_path / "blue")))
    flask.add_url_rule("/", "index", lambda: "index")

    @flask.errorhandler(404)
    def missing(_error: Exception) -> tuple[str, int]:
        return "the app's own page", 404

    return flask


def test_the_folders_of_an_app_are_served_where_url_for_says(tmp_path: Path) -> None:
    flask = shop(tmp_path)
    with flask.test_request_context():
        urls = [url_for("static", filename="deep/a file.css"), url_for("blue.static", filename="blue.css")]
    with serving(flask, files_check=0) as running:
        assert [ask(running, url).body for url in urls] == [b"deep", b"b{}"]
        response = ask(running, urls[0])
        assert response.header("Cache-Control") == "no-cache"
        assert response.header("Accept-Ranges") == "bytes"
        # The files are our own: what is in no file is the app's.
        for target in ("/static/nothing.css", "/static/sub", "/static/sub/", "/static/"):
            answer = ask(running, target)
            assert (answer.status, answer.body) == (404, b"the app's own page"), target
        assert ask(running, "/static/.secret").body != b"bait"
        assert ask(running, "/").body == b"index"


def test_other_methods_than_those_of_files_are_the_apps(tmp_path: Path) -> None:
    flask = shop(tmp_path)
    with serving(flask, files_check="1h") as running, running.connect() as client:
        for _ in range(2):  # before it was looked at, and after
            refused = client.get("/static/site.css", method="POST", body=b"a")
            assert (refused.status, set((refused.header("Allow") or "").split(", "))) == (
                405,
                {"GET", "HEAD", "OPTIONS"},
            )
            assert client.get("/static/site.css", method="OPTIONS").header("Allow") is not None
            assert client.get("/static/site.css").body == b"p{}"
        entries = running.log.wait_for(6)
        assert {entry.refusal for entry in entries} == {""}  # it is the app that says so


@pytest.mark.parametrize(
    ("auto", "hooked", "max_age", "by_us"),
    [
        pytest.param("on", False, None, True, id="found"),
        pytest.param("on", True, None, False, id="left to an app with a before_request function"),
        pytest.param("always", True, None, True, id="unless that is said not to matter"),
        pytest.param("off", False, None, False, id="not looked for"),
        pytest.param("on", False, 600, True, id="with the age that the app says"),
    ],
)
def test_whose_the_static_folder_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, auto: str, hooked: bool, max_age: int | None, by_us: bool
) -> None:
    flask = shop(tmp_path)
    flask.config["SEND_FILE_MAX_AGE_DEFAULT"] = max_age
    seen = []
    if hooked:
        flask.before_request(lambda: seen.append(1))
    caplog.set_level(logging.INFO, "hardserve")
    with serving(flask, files_auto=auto) as running:
        response = ask(running, "/static/site.css")
    assert response.body == b"p{}"
    assert bool(seen) is (hooked and not by_us)
    # Ours say so of themselves; Flask's do not.
    assert (response.header("Accept-Ranges") == "bytes" and "Server" not in dict(response.headers)) or not by_us
    assert (len(static_mounts(running)) > 0) is by_us
    said = [record.getMessage() for record in caplog.records if "left to the app" in record.getMessage()]
    assert len(said) == (1 if hooked and auto == "on" else 0)
    if max_age is not None:
        assert response.header("Cache-Control") == f"max-age={max_age}"


def static_mounts(running: Running) -> tuple[str, ...]:
    return running.server._mounts._prefixes


@pytest.mark.parametrize("name", ["start page.html", "f\u00fcr alle.html", "\u0434\u043e\u043c.html"])
def test_a_fallback_and_an_index_may_have_any_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "the page")
    mount = {"url": "/caf\u00e9", "directory": str(tmp_path), "fallback": name, "index": name}
    with serving(app, static=[mount]) as running:
        assert ask(running, "/caf%C3%A9/").body == b"the page"
        assert ask(running, "/caf%C3%A9/orders/7").body == b"the page"


def test_what_the_operator_says_comes_before_the_apps_folder(tmp_path: Path) -> None:
    flask = shop(tmp_path)
    write(tmp_path / "other" / "site.css", "other")
    with serving(flask, static=[f"/static={tmp_path / 'other'}"]) as running:
        assert ask(running, "/static/site.css").body == b"other"
        assert ask(running, "/static/deep/a%20file.css").status == 404


# --- safety ---

HIDING = [
    pytest.param("/media/.secret", id="a dot file"),
    pytest.param("/media/%2esecret", id="a dot file, encoded"),
    pytest.param("/media/.dir/inner.txt", id="a file in a dot directory"),
    pytest.param("/media/.dir/", id="a dot directory"),
    pytest.param("/media/.dir", id="a dot directory is not redirected to"),
    pytest.param("/media/.well-known/.hidden", id="a dot file in .well-known"),
    pytest.param("/media/sub/.well-known/bait.txt", id="a .well-known that is not at the top"),
    pytest.param("/media/.WELL-KNOWN/security.txt", id="another name than .well-known"),
    pytest.param("/media/../outside/bait.txt", id="two dots"),
    pytest.param("/media/%2e%2e/outside/bait.txt", id="two dots, encoded"),
    pytest.param("/media/%2E./outside/bait.txt", id="two dots, one encoded"),
    pytest.param("/media/..%2foutside%2fbait.txt", id="slashes, encoded"),
    pytest.param("/media/sub/%2e%2e/hello.txt", id="two dots that stay within"),
    pytest.param("/media/%252e%252e/outside/bait.txt", id="encoded twice"),
    pytest.param("/media/%25252e%25252e/outside/bait.txt", id="encoded three times"),
    pytest.param("/media/..%255coutside%255cbait.txt", id="backslashes, encoded twice"),
    pytest.param("/media/..\\outside\\bait.txt", id="backslashes"),
    pytest.param("/media/..%5coutside%5cbait.txt", id="backslashes, encoded"),
    pytest.param("/media/back%5Cslash.txt", id="a file whose name has one"),
    pytest.param("/media/hello.txt%00.png", id="a NUL"),
    pytest.param("/media/%00", id="nothing but a NUL"),
    pytest.param("/media/hello.txt%0a", id="a line end"),
    pytest.param("/media/hello.txt%7f", id="a control character"),
    pytest.param("/media/%c0%ae%c0%ae/outside/bait.txt", id="overlong dots"),
    pytest.param("/media/%c0%ae%c0%ae%c0%afoutside%c0%afbait.txt", id="overlong slashes"),
    pytest.param("/media/%e0%80%ae%e0%80%ae/outside/bait.txt", id="overlong in three bytes"),
    pytest.param("/media/%ff", id="no UTF-8 at all"),
    pytest.param("/media/%uff0e%uff0e/outside/bait.txt", id="the encoding of another server"),
    pytest.param("/media/%ef%bc%8e%ef%bc%8e/outside/bait.txt", id="wide dots"),
    pytest.param("/media//etc/passwd", id="an absolute path"),
    pytest.param("/media/%2fetc%2fpasswd", id="an absolute path, encoded"),
    pytest.param("/media/%2f%2fetc%2fpasswd", id="with two slashes"),
    pytest.param("/media/C:/windows/win.ini", id="a drive"),
    pytest.param("/media/file:///etc/passwd", id="a URL"),
    pytest.param("/media/.", id="a dot"),
    pytest.param("/media/./hello.txt", id="a dot on the way"),
    pytest.param("/media/..", id="nothing but two dots"),
    pytest.param("/media/..;/outside/bait.txt", id="a parameter"),
    pytest.param("/media-private/../mount-private/bait.txt", id="a directory beside that begins like it"),
    pytest.param("/media/leaving.txt", id="a link that leaves"),
    pytest.param("/media/absolute-leaving.txt", id="an absolute link that leaves"),
    pytest.param("/media/leaving-dir/bait.txt", id="a directory that is one"),
    pytest.param("/media/leaving-dir", id="which is not redirected to"),
    pytest.param("/media/to-secret.txt", id="a link to a dot file"),
    pytest.param("/media/dangling.txt", id="a link to nothing"),
    pytest.param("/media/loop.txt", id="a link to itself"),
    pytest.param("/media/fifo", id="a FIFO"),
    pytest.param("/media/socket", id="a socket"),
    pytest.param("/media/null", id="a device"),
    pytest.param("/list/.dir/", id="the listing of a dot directory"),
    pytest.param("/list/leaving-dir/", id="the listing of a directory outside"),
    pytest.param("/follow/.secret", id="a dot file where links may leave"),
    pytest.param("/follow/../outside/bait.txt", id="two dots where links may leave"),
    pytest.param("/follow/fifo", id="a FIFO where links may leave"),
    pytest.param("/follow/null", id="a device where links may leave"),
    pytest.param("/spa/../outside/bait.txt", id="two dots where there is a fallback"),
]


@pytest.mark.parametrize("target", HIDING)
def test_what_is_not_for_clients_is_not_there(site: Site, target: str) -> None:
    answer = site.running.exchange(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode("latin-1"))
    status = answer[:12]
    # A path that is in no mount is the app's, which may think of it what it likes.
    assert status in (b"HTTP/1.1 400", b"HTTP/1.1 404") or answer.endswith(f"app: GET {target}".encode()), answer
    assert answer.count(b"bait") == target.count("bait") * answer.count(b"app: GET")
    for said in (b"outside", b"root:", str(site.directory).encode()):
        assert said not in answer.replace(target.encode("latin-1"), b"")


def test_a_path_that_leaves_is_no_way_into_what_is_answered_elsewhere(site: Site) -> None:
    """nginx resolves dots first. Here, such a path is in the mount that it begins with, and not served."""
    assert ask(site.running, "/media/special/../../favicon.ico").status == 404
    assert ask(site.running, "/spa/..%2f..%2fetc/passwd").status == 404


@pytest.mark.parametrize(
    ("target", "body"),
    [
        pytest.param("/media/link.txt", b"hello, world\n", id="a link to a file"),
        pytest.param("/media/sub/up.txt", b"hello, world\n", id="a link up that stays within"),
        pytest.param("/media/absolute.txt", b"hello, world\n", id="an absolute link that stays within"),
        pytest.param("/media/leaving-and-back.txt", b"hello, world\n", id="a link that leaves and comes back"),
        pytest.param("/media/link-dir/inner.txt", b"inner", id="through a link to a directory"),
        pytest.param("/media/link-dir/", b"<p>the index of sub", id="the index there"),
        pytest.param("/media/.well-known/security.txt", b"Contact: mailto:a@example.com\n", id="what is well known"),
        pytest.param("/follow/leaving.txt", b"bait", id="a link that leaves, where it may"),
        pytest.param("/follow/leaving-dir/bait.txt", b"bait", id="a directory outside, where it may"),
    ],
)
def test_what_links_lead_to(site: Site, target: str, body: bytes) -> None:
    response = ask(site.running, target)
    assert (response.status, response.body) == (200, body)


@contextlib.contextmanager
def without_rights(running: Running) -> Iterator[None]:
    """Have the one file thread of a server be nobody for the file system, so that root is told what others are."""
    libc = ctypes.CDLL(None)

    def become(user: int) -> None:
        done = threading.Event()
        pool = file_pool(running)
        job: Callable[[], object] = lambda: libc.setfsuid(user)  # noqa: E731
        running.server._loop.post(lambda _now: pool.submit(job, lambda _result: done.set()) and None)
        assert done.wait(PATIENCE_S)

    if os.geteuid() != 0:
        yield
        return
    if not hasattr(libc, "setfsuid"):
        pytest.skip("root may read everything, and is somebody else for one thread only on Linux")
    become(65534)
    try:
        yield
    finally:
        become(0)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that everybody may look into, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("target", "status"),
    [
        pytest.param("/m/readable.txt", 200, id="a file that is readable"),
        pytest.param("/m/small.txt", 403, id="a small file"),
        pytest.param("/m/large.bin", 403, id="a file larger than is kept in memory"),
        pytest.param("/m/closed/inner.txt", 403, id="a file in a directory that may not be entered"),
        pytest.param("/m/closed/", 403, id="a directory that may not be read"),
    ],
)
def test_what_may_not_be_read_is_403(public_directory: Path, target: str, status: int, method: str) -> None:
    write(public_directory / "readable.txt", "a")
    write(public_directory / "small.txt", "a").chmod(0)
    write(public_directory / "large.bin", BIG).chmod(0)
    write(public_directory / "closed" / "inner.txt", "a")
    (public_directory / "closed").chmod(0)
    mount = {"url": "/m", "directory": str(public_directory), "listing": "on"}
    try:
        with serving(app, static=[mount], files_readers=1) as running, without_rights(running):
            response = ask(running, target, method=method)
    finally:
        (public_directory / "closed").chmod(0o755)
    if method == "GET" or "large" not in target:  # whether a large one can be read is found out when it is
        assert response.status == status
    assert running.log.entries[0].refusal == {403: "file_forbidden", 200: ""}[response.status]


# --- HTTP: what a response with a file says ---


def test_the_whole_head_of_a_file(site: Site) -> None:
    response = ask(site.running, "/media/digits.bin")
    names = [name for name, _ in response.headers]
    assert len(names) == len(set(names))
    assert dict(response.headers) | {"Date": "", "X-Request-ID": "", "ETag": ""} == {
        "Content-Type": "application/octet-stream",
        "Content-Length": "1000",
        "ETag": "",
        "Last-Modified": "Sun, 09 Sep 2001 01:46:40 GMT",
        "Cache-Control": "no-cache",
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "SAMEORIGIN",
        "Referrer-Policy": "strict-origin-when-cross-origin",
        "Date": "",
        "X-Request-ID": "",
    }
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', response.header("ETag") or "")


def test_the_header_fields_of_all_responses_are_the_operators(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", "a")
    headers = {
        "headers_content_type_options": "off",
        "headers_frame_options": "DENY",
        "headers_referrer_policy": "off",
        "headers_permissions_policy": "camera=()",
        "headers_content_security_policy": "default-src 'self'",
        "headers_server": "ours",
    }
    with serving(app, static=[f"/m={tmp_path}"], **headers) as running:
        fields = dict(ask(running, "/m/a.bin").headers)
    assert "X-Content-Type-Options" not in fields
    assert "Referrer-Policy" not in fields
    assert fields["X-Frame-Options"] == "DENY"
    assert fields["Permissions-Policy"] == "camera=()"
    assert fields["Content-Security-Policy"] == "default-src 'self'"
    assert fields["Server"] == "ours"


@pytest.mark.parametrize(
    ("request_line", "field", "status"),
    [
        ("GET /media/hello.txt", "", 200),
        ("GET /media/big.bin", "Range: bytes=0-0", 206),
        ("GET /list/noindex/", "", 200),
        ("OPTIONS /media/hello.txt", "", 204),
        ("GET /media/sub", "", 301),
        ("GET /media/nothing.txt", "", 404),
        ("POST /media/hello.txt", "", 405),
        ("GET /media/hello.txt", 'If-Match: "other"', 412),
        ("GET /media/hello.txt", "Range: bytes=99-", 416),
    ],
)
def test_every_answer_has_the_fields_of_all(site: Site, request_line: str, field: str, status: int) -> None:
    """But for a 304, which says nothing that the client has not been told with what it keeps (RFC 9110 15.4.5)."""
    method, target = request_line.split()
    response = ask(site.running, target, *([field] if field else []), method=method)
    assert response.status == status
    assert response.header("X-Content-Type-Options") == "nosniff"
    assert response.header("X-Frame-Options") == "SAMEORIGIN"
    assert response.header("Referrer-Policy") == "strict-origin-when-cross-origin"
    assert response.header("Server") is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.svg", "image/svg+xml"),
        ("a.PNG", "image/png"),
        ("a.woff2", "font/woff2"),
        ("a.mp4", "video/mp4"),
        ("a.wasm", "application/wasm"),
        ("a.js.gz", "application/gzip"),
        ("a.tar.gz", "application/gzip"),
        ("a.php", "application/octet-stream"),
        ("noextension", "application/octet-stream"),
    ],
)
def test_the_type_is_by_the_name(tmp_path: Path, name: str, kind: str) -> None:
    write(tmp_path / name, "<html>")
    with serving(app, static=[f"/m={tmp_path}"]) as running:
        response = ask(running, f"/m/{name}")
    assert response.header("Content-Type") == kind
    assert response.header("X-Content-Type-Options") == "nosniff"
    assert response.header("Content-Encoding") is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("/media/hello.txt", "no-cache", id="by default, asked for each time"),
        pytest.param("/media/app.3f2a91c4.js", FOR_EVER, id="a hash in the name is for ever"),
        pytest.param("/media/report-20240131.pdf", "no-cache", id="a date is no hash"),
        pytest.param("/hour/hello.txt", "public, max-age=3600", id="as the mount says"),
        pytest.param("/hour/app.3f2a91c4.js", FOR_EVER, id="a hash in the name says more"),
        pytest.param("/silent/hello.txt", None, id="nothing at all"),
        pytest.param("/silent/app.3f2a91c4.js", None, id="nor of a hash"),
        pytest.param("/forever/hello.txt", FOR_EVER, id="all of a mount for ever"),
        pytest.param("/spa/orders/7", "no-cache", id="the fallback is asked for each time"),
    ],
)
def test_how_long_a_file_may_be_kept(site: Site, target: str, expected: str | None) -> None:
    response = ask(site.running, target)
    assert response.header("Cache-Control") == expected
    again = ask(site.running, target, f"If-None-Match: {response.header('ETag')}")
    assert (again.status, again.header("Cache-Control")) == (304, expected)


def test_a_tag_is_another_one_for_each_content(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    tags = []
    with serving(app, static=[f"/m={tmp_path}"], files_check=0) as running, running.connect() as client:
        for content, modified in ((b"one", 1), (b"two", 2), (b"three", 2), (b"two", 2)):
            write(path, content, modified)
            response = client.get("/m/a.bin")
            assert response.body == content
            tags.append(response.header("ETag") or "")
    assert len(set(tags)) == 3
    assert tags[1] == tags[3]
    assert all(tag.startswith('"') for tag in tags)


def test_a_file_from_the_future_has_no_date(tmp_path: Path) -> None:
    """RFC 9110 8.8.2.1: it would be later than the response."""
    write(tmp_path / "a.bin", "a", int(time.time()) + 86_400)
    with serving(app, static=[f"/m={tmp_path}"]) as running:
        response = ask(running, "/m/a.bin")
        assert response.header("Last-Modified") is None
        assert ask(running, "/m/a.bin", f"If-None-Match: {response.header('ETag')}").status == 304


# --- HTTP: conditions ---

EXACT = http_date(MODIFIED)
BEFORE, AFTER = http_date(MODIFIED - 1), http_date(MODIFIED + 1)
CONDITIONS = [
    pytest.param(["If-None-Match: TAG"], 304, id="the tag that it has"),
    pytest.param(['If-None-Match: "other", TAG'], 304, id="among others"),
    pytest.param(['If-None-Match: "a,b" , TAG,'], 304, id="beside one with a comma"),
    pytest.param(['If-None-Match: "other"', "If-None-Match: TAG"], 304, id="in a second line"),
    pytest.param(["If-None-Match: W/TAG"], 304, id="compared weakly"),
    pytest.param(["If-None-Match: *"], 304, id="anything"),
    pytest.param(['If-None-Match: "other"'], 200, id="another tag"),
    pytest.param(["If-None-Match: BARE"], 200, id="the tag without its quotes"),
    pytest.param(["If-None-Match: "], 200, id="no tag"),
    pytest.param(["If-Match: TAG"], 200, id="if it matches, and it does"),
    pytest.param(['If-Match: "other", TAG'], 200, id="if one of them matches"),
    pytest.param(["If-Match: *"], 200, id="if it is there"),
    pytest.param(["If-Match: W/TAG"], 412, id="if it matches, compared strongly"),
    pytest.param(['If-Match: "other"'], 412, id="if it matches, and it does not"),
    pytest.param(["If-Match: "], 412, id="if it matches nothing"),
    pytest.param([f"If-Modified-Since: {EXACT}"], 304, id="not modified since it was"),
    pytest.param([f"If-Modified-Since: {AFTER}"], 304, id="not modified since later"),
    pytest.param([f"If-Modified-Since: {BEFORE}"], 200, id="modified since"),
    pytest.param(["If-Modified-Since: Sunday, 09-Sep-01 01:46:40 GMT"], 304, id="a date as in RFC 850"),
    pytest.param(["If-Modified-Since: Sun Sep  9 01:46:40 2001"], 304, id="a date as C writes it"),
    pytest.param(["If-Modified-Since: yesterday"], 200, id="no date"),
    pytest.param([f"If-Unmodified-Since: {EXACT}"], 200, id="unmodified since it was"),
    pytest.param([f"If-Unmodified-Since: {BEFORE}"], 412, id="unmodified since, but it was"),
    pytest.param(["If-Unmodified-Since: yesterday"], 200, id="unmodified since no date"),
    pytest.param(['If-None-Match: "other"', f"If-Modified-Since: {AFTER}"], 200, id="a tag says more than a date"),
    pytest.param(["If-None-Match: TAG", f"If-Modified-Since: {BEFORE}"], 304, id="in both ways"),
    pytest.param(["If-Match: TAG", f"If-Unmodified-Since: {BEFORE}"], 200, id="If-Match says more than a date"),
    pytest.param(["If-Match: TAG", "If-None-Match: TAG"], 304, id="If-Match first, then If-None-Match"),
    pytest.param(['If-Match: "other"', "If-None-Match: TAG"], 412, id="If-Match fails first"),
    pytest.param([f"If-Unmodified-Since: {BEFORE}", "If-None-Match: TAG"], 412, id="If-Unmodified-Since fails first"),
    pytest.param([f"If-Unmodified-Since: {EXACT}", "If-None-Match: TAG"], 304, id="If-Unmodified-Since, and then"),
    pytest.param(["If-Match: TAG", f"If-Modified-Since: {EXACT}"], 304, id="If-Match, and then a date"),
    pytest.param(["If-None-Match: TAG", "Range: bytes=0-0"], 304, id="conditions come before a range"),
    pytest.param(['If-Match: "other"', "Range: bytes=0-0"], 412, id="those that fail, too"),
    pytest.param(["If-None-Match: TAG", "Range: bytes=9999-"], 304, id="and before a range that is not there"),
]


@pytest.mark.parametrize("target", ["/media/digits.bin", "/media/big.bin", "/favicon.ico", "/media/sub/"])
@pytest.mark.parametrize(("fields", "status"), CONDITIONS)
def test_conditions(site: Site, target: str, fields: list[str], status: int) -> None:
    plain = ask(site.running, target)
    tag = plain.header("ETag") or ""
    fields = [field.replace("TAG", tag).replace("BARE", tag.strip('"')) for field in fields]
    response = ask(site.running, target, *fields)
    head = ask(site.running, target, *fields, method="HEAD")
    assert (response.status, head.status) == (status, status)
    if status == 200:
        assert response.body == plain.body
    if status == 304:
        # RFC 9110 15.4.5: what a 200 would have said of these, and nothing of the content.
        for name in ("ETag", "Last-Modified", "Cache-Control", "Vary"):
            assert response.header(name) == plain.header(name)
        assert not [name for name, _ in response.headers if name.startswith("Content-")]
        assert response.header("Date")
    if status == 412:
        assert response.header("ETag") is None


def test_a_condition_on_what_is_not_there_is_not_judged(site: Site) -> None:
    assert ask(site.running, "/media/nothing.txt", "If-Match: *").status == 404
    assert ask(site.running, "/media/nothing.txt", "If-None-Match: *").status == 404


def test_whoever_has_it_is_told_without_opening_the_file(tmp_path: Path) -> None:
    write(tmp_path / "big.bin", BIG)
    with serving(app, static=[f"/m={tmp_path}"], files_check="1h", files_readers=1) as running:
        tag = ask(running, "/m/big.bin").header("ETag")
        with held_file_threads(running) as release, running.connect() as waiting, running.connect() as client:
            waiting.send(b"GET /m/big.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            # None of these needs the disk.
            assert client.get("/m/big.bin", f"If-None-Match: {tag}").status == 304
            assert client.get("/m/big.bin", 'If-Match: "other"').status == 412
            assert client.get("/m/big.bin", "Range: bytes=999999-").status == 416
            assert client.get("/m/big.bin", method="HEAD").status == 200
            release()
            assert waiting.response().body == BIG


# --- HTTP: ranges ---


def parts_of(response: Response) -> list[tuple[str, bytes]]:
    """Return the Content-Range and the content of each part of a multipart body."""
    kind = response.header("Content-Type") or ""
    assert kind.startswith("multipart/byteranges; boundary=")
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + response.body)
    found = []
    boundary = kind.partition("=")[2].encode()
    for piece in response.body.split(b"--" + boundary)[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        found.append((re.findall(rb"Content-Range: ([^\r]*)", head)[0].decode(), content.removesuffix(b"\r\n")))
    assert len(found) == len(message.get_payload())
    assert response.body.endswith(b"--" + boundary + b"--\r\n")
    return found


@pytest.mark.parametrize(
    ("field", "status", "span"),
    [
        pytest.param("bytes=0-9", 206, (0, 10), id="the first ten"),
        pytest.param("bytes=0-0", 206, (0, 1), id="one byte"),
        pytest.param("bytes=990-", 206, (990, 1000), id="from a position on"),
        pytest.param("bytes=-10", 206, (990, 1000), id="the last ten"),
        pytest.param("bytes=-5000", 206, (0, 1000), id="a suffix longer than the file"),
        pytest.param("bytes=990-5000", 206, (990, 1000), id="beyond the end"),
        pytest.param("bytes=0-", 206, (0, 1000), id="all of it"),
        pytest.param("bytes=0-9,5-19", 206, (0, 20), id="overlapping ones are one"),
        pytest.param("bytes=10-19,0-9", 206, (0, 20), id="adjacent ones are one"),
        pytest.param("bytes=0-9,9999-", 206, (0, 10), id="one of two that is there"),
        pytest.param("bytes=1000-", 416, None, id="beginning at the end"),
        pytest.param("bytes=-0", 416, None, id="the last none"),
        pytest.param("bytes=9999-,2000-3000", 416, None, id="none of two"),
        pytest.param("bytes=9-0", 200, None, id="backwards is ignored"),
        pytest.param("bytes=a-b", 200, None, id="what is no range is ignored"),
        pytest.param("lines=0-9", 200, None, id="another unit is ignored"),
        pytest.param("bytes=0-9, 20-x", 200, None, id="one that is none spoils the others"),
        pytest.param("bytes=" + ",".join(f"{at}-{at}" for at in range(0, 990, 30)), 200, None, id="too many"),
    ],
)
def test_a_part_of_a_file(site: Site, field: str, status: int, span: tuple[int, int] | None) -> None:
    whole = ask(site.running, "/media/digits.bin")
    response = ask(site.running, "/media/digits.bin", f"Range: {field}")
    assert response.status == status
    if status == 416:
        assert response.header("Content-Range") == "bytes */1000"
        return
    assert response.header("Accept-Ranges") == "bytes"
    for name in ("ETag", "Last-Modified", "Cache-Control", "Content-Type", "X-Content-Type-Options"):
        assert response.header(name) == whole.header(name)
    if span is None:
        assert response.body == DIGITS
        assert response.header("Content-Range") is None
    else:
        start, end = span
        assert response.body == DIGITS[start:end]
        assert response.header("Content-Range") == f"bytes {start}-{end - 1}/1000"
    # RFC 9110 14.2: it means something for GET alone.
    head = ask(site.running, "/media/digits.bin", f"Range: {field}", method="HEAD")
    assert (head.status, head.header("Content-Length")) == (200, "1000")


@pytest.mark.parametrize("target", ["/media/digits.bin", "/media/big.bin"])
def test_several_parts_of_a_file(site: Site, target: str) -> None:
    content = {"/media/digits.bin": DIGITS, "/media/big.bin": BIG}[target]
    size = len(content)
    response = ask(site.running, target, "Range: bytes=-7, 0-9, 200-299, 250-349, 99999999-")
    assert response.status == 206
    assert response.header("Content-Range") is None
    assert parts_of(response) == [
        (f"bytes 0-9/{size}", content[:10]),
        (f"bytes 200-349/{size}", content[200:350]),
        (f"bytes {size - 7}-{size - 1}/{size}", content[-7:]),
    ]
    assert response.body.count(b"Content-Type: application/octet-stream\r\n") == 3


def test_a_directory_of_which_nothing_is_sent_is_not_redirected_to(site: Site) -> None:
    assert [ask(site.running, target).status for target in ("/media", "/media/noindex")] == [404, 404]


def test_a_file_without_a_byte_has_no_parts_and_is_sent_as_it_is(site: Site) -> None:
    for field in ("bytes=0-", "bytes=0-0", "bytes=5-9", "bytes=-1"):
        response = ask(site.running, "/media/empty.txt", f"Range: {field}")
        assert (response.status, response.body, response.header("Content-Range")) == (200, b"", None)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        pytest.param("TAG", 206, id="the tag that it has"),
        pytest.param("W/TAG", 200, id="a weak one is not the same bytes"),
        pytest.param('"other"', 200, id="another tag"),
        pytest.param('TAG, "other"', 200, id="a list is not what the field is for"),
        pytest.param("*", 200, id="nor is anything"),
        pytest.param(EXACT, 206, id="the date that it has"),
        pytest.param("Sunday, 09-Sep-01 01:46:40 GMT", 206, id="as in RFC 850"),
        pytest.param(BEFORE, 200, id="an earlier date"),
        pytest.param(AFTER, 200, id="a later date is not the same"),
        pytest.param("yesterday", 200, id="no date"),
    ],
)
@pytest.mark.parametrize("target", ["/media/digits.bin", "/media/big.bin"])
def test_a_part_only_if_the_rest_is_still_good(site: Site, target: str, if_range: str, status: int) -> None:
    whole = ask(site.running, target)
    if_range = if_range.replace("TAG", whole.header("ETag") or "")
    response = ask(site.running, target, f"If-Range: {if_range}", "Range: bytes=1-2")
    assert response.status == status
    assert response.body == (whole.body[1:3] if status == 206 else whole.body)
    beyond = ask(site.running, target, f"If-Range: {if_range}", "Range: bytes=9999999-")
    assert beyond.status == {206: 416, 200: 200}[status]
    assert ask(site.running, target, f"If-Range: {if_range}").status == 200  # without a range, it is for nothing


def test_a_date_of_this_second_does_not_tell_two_versions_apart(tmp_path: Path) -> None:
    """RFC 9110 8.8.2.2: the file may be written again before the second is over."""
    path = write(tmp_path / "a.bin", DIGITS)
    with serving(app, static=[f"/m={tmp_path}"], files_check=0) as running, running.connect() as client:
        for _ in range(20):
            now = int(time.time())
            os.utime(path, (now, now))
            response = client.get("/m/a.bin", f"If-Range: {http_date(now)}", "Range: bytes=0-0")
            if response.header("Date") == http_date(now):
                break
        assert response.header("Last-Modified") == http_date(now)
        assert response.status == 200


SIZES = (0, 1, 7, 1000, 100_000)


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[tuple[Client, Mapping[int, bytes]]]:
    directory = tmp_path_factory.mktemp("sized")
    contents = {size: random.Random(size).randbytes(size) for size in SIZES}
    for size, content in contents.items():
        write(directory / f"{size}.bin", content)
    with (
        serving(app, static=[f"/m={directory}"], files_check="1h", limits_connection_requests=10**6) as running,
        running.connect() as client,
    ):
        yield client, contents


SPECS = st.lists(
    st.one_of(
        st.builds("{}-{}".format, st.integers(0, 1100), st.integers(0, 1100)),
        st.builds("{}-".format, st.integers(0, 110_000)),
        st.builds("-{}".format, st.integers(0, 110_000)),
        st.text("0123456789- x", max_size=8),
    ),
    max_size=MAX_RANGES + 2,
).map(lambda specs: "bytes=" + ",".join(specs))


@given(size=st.sampled_from(SIZES), value=st.one_of(SPECS, st.text("bytes=0123456789-, \t;", max_size=30)))
@example(size=1000, value="bytes=0-0,-1")
@example(size=100_000, value="bytes=0-0,500-600,-1")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_is_what_slicing_gives(sized: tuple[Client, Mapping[int, bytes]], size: int, value: str) -> None:
    client, contents = sized
    content = contents[size]
    response = client.get(f"/m/{size}.bin", f"Range: {value}")
    asked = model(value.strip(" \t"), size) if size else None
    if asked is None:
        assert (response.status, response.body) == (200, content)
        return
    if not asked:
        assert (response.status, response.header("Content-Range")) == (416, f"bytes */{size}")
        return
    assert response.status == 206
    single = response.header("Content-Range")
    parts = parts_of(response) if single is None else [(single, response.body)]
    covered: set[int] = set()
    for said, body in parts:
        match = re.fullmatch(rf"bytes ([0-9]+)-([0-9]+)/{size}", said)
        assert match is not None
        start, end = int(match[1]), int(match[2]) + 1
        assert body == content[start:end]
        assert not covered & set(range(start, end)), "no byte is sent twice"
        covered |= set(range(start, end))
    wanted = {at for start, end in asked for at in range(start, end)}
    assert wanted <= covered
    assert len(covered - wanted) < PART_OVERHEAD * len(asked)


# --- HTTP: methods ---


@pytest.mark.parametrize(
    "target",
    [
        "/media/hello.txt",
        "/media/big.bin",
        "/media/empty.txt",
        "/media/nothing.txt",
        "/media/sub",
        "/media/sub/",
        "/media/.secret",
        "/favicon.ico",
        "/spa/orders/7",
        "/list/noindex/",
        "/media/special/robots.txt",
        "/hour/app.3f2a91c4.js",
    ],
)
def test_head_is_the_head_of_get(site: Site, target: str) -> None:
    with site.running.connect() as client:
        for fields in ((), ("Accept-Encoding: gzip",), ("If-None-Match: *",), ('If-Match: "other"',)):
            got = client.get(target, *fields)
            head = client.get(target, *fields, method="HEAD")
            assert told(head)[:2] == told(got)[:2]
            assert head.body == b""
        client.send(f"HEAD {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert client.receive_all().endswith(b"\r\n\r\n")


@pytest.mark.parametrize("target", ["/media/hello.txt", "/media/nothing.txt", "/media/sub", "/favicon.ico", "/spa/x"])
def test_options_tells_the_methods(site: Site, target: str) -> None:
    response = ask(site.running, target, method="OPTIONS")
    assert (response.status, response.header("Allow")) == (204, ALLOW)
    # RFC 9110 8.6: no Content-Length in a 204.
    assert response.header("Content-Length") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "PROPFIND", "BREW"])
@pytest.mark.parametrize("body", [pytest.param(b"", id="without a body"), pytest.param(b"abc", id="with a body")])
def test_other_methods_are_not_allowed(site: Site, method: str, body: bytes) -> None:
    for target in ("/media/hello.txt", "/media/nothing.txt", "/media/"):
        with site.running.connect() as client:
            response = client.get(target, method=method, body=body)
            assert (response.status, response.header("Allow")) == (405, ALLOW)
            if not body:
                assert client.get("/media/hello.txt").body == b"hello, world\n"


@pytest.mark.parametrize("framing", ["Content-Length: 3", "Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_a_body_that_nobody_wants_is_not_asked_for(site: Site, framing: str) -> None:
    with site.running.connect() as client:
        client.send(f"POST /media/hello.txt HTTP/1.1\r\nHost: a\r\n{framing}\r\nExpect: 100-continue\r\n\r\n".encode())
        response = client.response()
        assert (response.status, response.header("Allow")) == (405, ALLOW)
        assert client.receive_all() == b""


def test_a_body_where_misses_are_the_apps_is_the_apps(site: Site) -> None:
    with site.running.connect() as client:
        client.send(b"POST /toapp/hello.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert client.response().status == 100
        client.send(b"abc")
        assert client.response().body == b"app: POST /toapp/hello.txt"


def test_a_get_with_a_body_is_answered_and_so_is_the_next(site: Site) -> None:
    """RFC 9110 9.3.1: it has no meaning, but is read."""
    with site.running.connect() as client:
        for body in (b"abc", b"x" * 300_000):
            assert client.get("/media/hello.txt", body=body).body == b"hello, world\n"
            client.send(
                b"GET /media/big.bin HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            )
            assert client.response().body == BIG


# --- HTTP: codings ---

CODED = {"br": b"as br", "zstd": b"as zstd, which is longer", "gzip": gzip.compress(SCRIPT)}
SUFFIX = {"br": ".br", "zstd": ".zst", "gzip": ".gz"}


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Running]:
    """A script with all of its siblings, one with a stale one, one with a link, and a picture."""
    directory = tmp_path_factory.mktemp("coded")
    write(directory / "app.js", SCRIPT)
    for coding, content in CODED.items():
        write(directory / f"app.js{SUFFIX[coding]}", content)
    for name, age in (("stale", -1), ("same", 0), ("newer", 1)):
        write(directory / f"{name}.js", "short")
        write(directory / f"{name}.js.gz", "sibling", MODIFIED + age)
    write(directory / "a.png", "picture")
    write(directory / "a.png.gz", "sibling")
    write(directory / "large.js", BIG)
    write(directory / "large.js.br", BIG[:200_000])
    write(directory / "sub" / "index.html", "<p>plain")
    write(directory / "sub" / "index.html.gz", "sibling")
    write(directory.parent / "beside.gz", "bait")
    write(directory / "linked.js", "short")
    (directory / "linked.js.gz").symlink_to("../beside.gz")
    write(directory / "directory.js", "short")
    (directory / "directory.js.gz").mkdir()
    with serving(app, static=[f"/m={directory}"], files_check="1h") as running:
        yield running


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        pytest.param(None, None, id="who does not ask"),
        pytest.param("", None, id="who asks for nothing"),
        pytest.param("gzip", "gzip", id="gzip"),
        pytest.param("x-gzip", "gzip", id="gzip by its old name"),
        pytest.param("GZIP", "gzip", id="in upper case"),
        pytest.param("br", "br", id="br"),
        pytest.param("zstd", "zstd", id="zstd"),
        pytest.param("gzip, deflate, br, zstd", "br", id="a browser"),
        pytest.param("gzip, deflate", "gzip", id="an old browser"),
        pytest.param("gzip;q=1.0, br;q=0.5", "gzip", id="by weight"),
        pytest.param("br;q=0, *", "zstd", id="anything but br"),
        pytest.param("*", "br", id="anything"),
        pytest.param("*;q=0", None, id="nothing"),
        pytest.param("gzip;q=0", None, id="not gzip"),
        pytest.param("identity", None, id="plain"),
        pytest.param("identity;q=1, gzip;q=0.5", None, id="plain rather than gzip"),
        pytest.param("identity;q=0.5, gzip;q=1", "gzip", id="gzip rather than plain"),
        pytest.param("deflate", None, id="a coding that there is not"),
        pytest.param("gzip;q=nonsense", None, id="a weight that is none"),
    ],
)
def test_the_sibling_that_a_client_likes_best(coded: Running, accepted: str | None, coding: str | None) -> None:
    fields = [] if accepted is None else [f"Accept-Encoding: {accepted}"]
    response = ask(coded, "/m/app.js", *fields)
    assert response.status == 200
    assert response.header("Content-Encoding") == coding
    assert response.body == (SCRIPT if coding is None else CODED[coding])
    assert response.header("Vary") == "Accept-Encoding"
    assert response.header("Content-Type") == "text/javascript; charset=utf-8"
    assert ask(coded, "/m/app.js", *fields, method="HEAD").headers[:6] == response.headers[:6]


def test_each_coding_is_a_representation_of_its_own(coded: Running) -> None:
    """RFC 9110 8.8.3.3: the tags differ; 14.2: a range is one of what was selected."""
    tags = set()
    for coding, content in {"identity": SCRIPT, **CODED}.items():
        accept = f"Accept-Encoding: {coding}"
        response = ask(coded, "/m/app.js", accept)
        tag = response.header("ETag") or ""
        assert tag.startswith('"')
        tags.add(tag)
        same = ask(coded, "/m/app.js", accept, f"If-None-Match: {tag}")
        assert (same.status, same.header("ETag"), same.header("Vary")) == (304, tag, "Accept-Encoding")
        assert same.header("Content-Encoding") is None
        part = ask(coded, "/m/app.js", accept, "Range: bytes=1-3", f"If-Range: {tag}")
        assert (part.status, part.body) == (206, content[1:4])
        assert part.header("Content-Range") == f"bytes 1-3/{len(content)}"
        assert part.header("Content-Encoding") == (None if coding == "identity" else coding)
        beyond = ask(coded, "/m/app.js", accept, f"Range: bytes={len(content)}-")
        assert (beyond.status, beyond.header("Content-Range")) == (416, f"bytes */{len(content)}")
        others = ask(coded, "/m/app.js", "Accept-Encoding: identity" if coding != "identity" else "Accept-Encoding: br",
                     f"If-None-Match: {tag}")  # fmt: skip
        assert others.status == 200
    assert len(tags) == 4


@pytest.mark.parametrize(
    ("target", "coding", "varies"),
    [
        pytest.param("/m/stale.js", None, False, id="older than the file"),
        pytest.param("/m/same.js", "gzip", True, id="as old as the file"),
        pytest.param("/m/newer.js", "gzip", True, id="newer than the file"),
        pytest.param("/m/a.png", None, False, id="of what is compressed already"),
        pytest.param("/m/linked.js", None, False, id="a link that leaves"),
        pytest.param("/m/directory.js", None, False, id="a directory"),
        pytest.param("/m/sub/", "gzip", True, id="of an index"),
    ],
)
def test_which_siblings_count(coded: Running, target: str, coding: str | None, varies: bool) -> None:
    response = ask(coded, target, "Accept-Encoding: gzip")
    assert (response.status, response.header("Content-Encoding")) == (200, coding)
    assert (response.header("Vary") == "Accept-Encoding") is varies
    assert (response.body == b"sibling") is (coding is not None)


def test_a_sibling_larger_than_is_kept_in_memory_is_sent_from_its_file(coded: Running) -> None:
    response = ask(coded, "/m/large.js", "Accept-Encoding: br")
    assert (response.body, response.header("Content-Encoding")) == (BIG[:200_000], "br")
    part = ask(coded, "/m/large.js", "Accept-Encoding: br", "Range: bytes=-5")
    assert (part.status, part.body) == (206, BIG[199_995:200_000])


def test_a_sibling_can_be_had_by_its_own_name(coded: Running) -> None:
    response = ask(coded, "/m/app.js.gz", "Accept-Encoding: gzip")
    assert response.header("Content-Type") == "application/gzip"
    assert response.header("Content-Encoding") is None
    assert response.body == CODED["gzip"]


def test_a_sibling_that_comes_later_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "a.js", "short")
    with serving(app, static=[f"/m={tmp_path}"], files_check=0) as running, running.connect() as client:
        assert client.get("/m/a.js", "Accept-Encoding: gzip").header("Content-Encoding") is None
        write(tmp_path / "a.js.gz", "sibling")
        assert client.get("/m/a.js", "Accept-Encoding: gzip").body == b"sibling"
        (tmp_path / "a.js.gz").unlink()
        assert client.get("/m/a.js", "Accept-Encoding: gzip").body == b"short"


def until_coded(client: Client, target: str, coding: str, accept: str = "") -> Response:
    """Ask until what is compressed in the background is there."""
    responses: list[Response] = []

    def is_coded() -> bool:
        responses.append(client.get(target, f"Accept-Encoding: {accept or coding}"))
        return responses[-1].header("Content-Encoding") == coding

    eventually(is_coded)
    return responses[-1]


@pytest.mark.parametrize("size", [pytest.param(20_000, id="kept in memory"), pytest.param(200_000, id="larger")])
def test_text_is_compressed_in_the_background(tmp_path: Path, size: int) -> None:
    content = (SCRIPT * 100)[:size]
    write(tmp_path / "a.js", content)
    with (
        serving(app, static=[f"/m={tmp_path}"], files_check=0) as running,
        held(running, running.server._compression_pool) as release,
        running.connect() as client,
    ):
        first = client.get("/m/a.js", "Accept-Encoding: gzip")
        assert (first.body, first.header("Content-Encoding"), first.header("Vary")) == (
            content,
            None,
            "Accept-Encoding",
        )
        release()
        response = until_coded(client, "/m/a.js", "gzip")
        assert gzip.decompress(response.body) == content
        assert response.header("Vary") == "Accept-Encoding"
        assert response.header("Last-Modified") == first.header("Last-Modified")
        tag = response.header("ETag") or ""
        assert tag.startswith('"')
        assert tag != first.header("ETag")
        assert client.get("/m/a.js", "Accept-Encoding: gzip", f"If-None-Match: {tag}").status == 304
        part = client.get("/m/a.js", "Accept-Encoding: gzip", "Range: bytes=3-9")
        assert (part.status, part.body) == (206, response.body[3:10])
        head = client.get("/m/a.js", "Accept-Encoding: gzip", method="HEAD")
        assert head.header("Content-Length") == str(len(response.body))
        # Whoever does not take it is not given it.
        assert client.get("/m/a.js").body == content
        assert client.get("/m/a.js", "Accept-Encoding: gzip;q=0").body == content
        # A change is a change of all of them.
        write(tmp_path / "a.js", content[::-1], MODIFIED + 5)
        assert client.get("/m/a.js", "Accept-Encoding: gzip").body == content[::-1]
        assert gzip.decompress(until_coded(client, "/m/a.js", "gzip").body) == content[::-1]


@pytest.mark.skipif(len(encoders.available()) < 2, reason="neither brotli nor zstandard is installed")
@pytest.mark.parametrize("first", encoders.available())
def test_the_best_coding_wins_whichever_was_made_first(tmp_path: Path, first: str) -> None:
    write(tmp_path / "a.js", SCRIPT)
    with serving(app, static=[f"/m={tmp_path}"], files_check="1h") as running, running.connect() as client:
        until_coded(client, "/m/a.js", first)
        until_coded(client, "/m/a.js", encoders.available()[0], ", ".join(encoders.available()))


def test_nothing_is_compressed_where_that_is_off(tmp_path: Path) -> None:
    write(tmp_path / "a.js", SCRIPT)
    with serving(app, static=[f"/m={tmp_path}"], files_compress="off") as running:
        response = ask(running, "/m/a.js", "Accept-Encoding: gzip, br, zstd")
        assert (response.body, response.header("Vary")) == (SCRIPT, None)
        assert "0 of 1 threads" in repr(running.server._compression_pool)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.txt", b"short", id="too small to be worth it"),
        pytest.param("a.jpg", b"picture" * 1000, id="compressed already"),
        pytest.param("unknown", b"text?" * 1000, id="of no known type"),
        pytest.param("large.txt", b"x" * (9 << 20), id="too large to be done at once"),
    ],
)
def test_what_is_not_compressed(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path / name, content)
    with serving(app, static=[f"/m={tmp_path}"]) as running:
        response = ask(running, f"/m/{name}", "Accept-Encoding: gzip")
        assert (response.body, response.header("Content-Encoding"), response.header("Vary")) == (content, None, None)
        assert "0 of 1 threads" in repr(running.server._compression_pool)


def test_what_does_not_get_smaller_is_tried_once_and_left(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(5000)
    write(tmp_path / "a.txt", content)
    with serving(app, static=[f"/m={tmp_path}"], files_check="1h") as running, running.connect() as client:
        for _ in range(3):
            assert client.get("/m/a.txt", "Accept-Encoding: gzip").body == content
        eventually(lambda: "0 busy, 0 waiting" in repr(running.server._compression_pool))
        response = client.get("/m/a.txt", "Accept-Encoding: gzip")
        assert (response.body, response.header("Content-Encoding")) == (content, None)
        entry = static_files(running)._cache.get("/m/a.txt")
        assert entry is not None
        assert entry.tried == {"gzip"}


def test_where_nothing_is_kept_nothing_is_compressed_again_and_again(tmp_path: Path) -> None:
    """With no memory for it, the work would be for nobody, at every request."""
    write(tmp_path / "a.js", SCRIPT)
    with serving(app, static=[f"/m={tmp_path}"], files_memory=0) as running:
        for _ in range(5):
            assert ask(running, "/m/a.js", "Accept-Encoding: gzip").body == SCRIPT
        assert "0 of 1 threads" in repr(running.server._compression_pool)


def test_memory_is_bounded_whatever_is_asked_for(tmp_path: Path) -> None:
    contents = {f"{number}.js": f"let a{number} = {number};\n".encode() * 1200 for number in range(40)}
    for name, content in contents.items():
        write(tmp_path / name, content)
    with (
        serving(app, static=[f"/m={tmp_path}"], files_memory=200_000, files_check="1h") as running,
        running.connect() as client,
    ):
        cache = static_files(running)._cache
        for _ in range(3):
            for name, content in contents.items():
                response = client.get(f"/m/{name}", "Accept-Encoding: gzip")
                body = response.body
                assert (gzip.decompress(body) if response.header("Content-Encoding") else body) == content
                assert cache._bytes <= 200_000
            client.get(f"/m/nothing{random.random()}", "Accept-Encoding: gzip")
        eventually(lambda: "0 busy, 0 waiting" in repr(running.server._compression_pool))
        assert cache._bytes == sum(cache._costs.values()) <= 200_000


@pytest.mark.plain_only("of what is remembered, and it takes a second")
def test_misses_take_no_memory_without_end(tmp_path: Path) -> None:
    with (
        serving(app, static=[f"/m={tmp_path}"], files_memory=100_000, limits_connection_requests=10**6) as running,
        running.connect() as client,
    ):
        for start in range(0, 1000, 50):
            client.send(b"".join(b"GET /m/%d HTTP/1.1\r\nHost: a\r\n\r\n" % (start + each) for each in range(50)))
            assert [client.response().status for _ in range(50)] == [404] * 50
        cache = static_files(running)._cache
        assert cache._bytes <= 100_000
        assert len(cache._entries) < 60


# --- versions of HTTP and connections ---


@pytest.mark.parametrize("name", ["hello.txt", "big.bin", "empty.txt", "nothing.txt"])
def test_http_1_0_without_keep_alive(site: Site, name: str) -> None:
    answer = site.running.exchange(f"GET /media/{name} HTTP/1.0\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert b"Transfer-Encoding" not in head
    if name != "nothing.txt":
        assert body == (site.directory / name).read_bytes()


def test_http_1_0_with_keep_alive(site: Site) -> None:
    with site.running.connect() as client:
        for name in ("hello.txt", "big.bin", "hello.txt"):
            response = client.get(f"/media/{name}", "Connection: keep-alive", version="1.0")
            assert response.header("Connection") == "keep-alive"
            assert response.body == (site.directory / name).read_bytes()


@pytest.mark.parametrize("name", ["hello.txt", "big.bin"])
def test_a_client_that_wants_the_connection_to_end(site: Site, name: str) -> None:
    with site.running.connect() as client:
        client.send(f"GET /media/{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = client.receive_all()
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.partition(b"\r\n\r\n")[2] == (site.directory / name).read_bytes()


def test_a_pipeline_is_answered_in_order(site: Site) -> None:
    names = ["hello.txt", "big.bin", "digits.bin", "nothing.txt", "sub/", "big.bin", "empty.txt", "sub"] * 3
    with site.running.connect() as client:
        client.send(b"".join(f"GET /media/{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for name in names))
        client.send(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        client.shutdown_write()
        for name in names:
            response = client.response()
            if name == "nothing.txt":
                assert response.status == 404
            elif name == "sub":
                assert response.status == 301
            else:
                path = site.directory / name
                assert response.body == (path / "index.html" if path.is_dir() else path).read_bytes()
        assert client.response().body == b"app: GET /app"
        assert client.receive_all() == b""


def test_a_connection_wears_out(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", "a")
    with (
        serving(app, static=[f"/m={tmp_path}"], limits_connection_requests=3) as running,
        running.connect() as client,
    ):
        assert [client.get("/m/a.bin").header("Connection") for _ in range(3)] == [None, None, "close"]
        assert client.receive_all() == b""


def test_who_is_there_when_the_server_stops_is_answered(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", "a")
    write(tmp_path / "huge.bin", HUGE)
    write(tmp_path / "other.bin", HUGE)
    with serving(app, static=[f"/m={tmp_path}"], files_readers=1) as running:
        with slow_client(running) as slow, running.connect() as waiting, running.connect() as idle:
            slow.send(b"GET /m/huge.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            slow.receive_until(b"\r\n\r\n")
            assert idle.get("/m/a.bin").body == b"a"
            with held_file_threads(running) as release:
                waiting.send(b"GET /m/other.bin HTTP/1.1\r\nHost: a\r\n\r\n")
                eventually(lambda: file_pool(running).waiting() == 1)
                running.server.stop()
                eventually(lambda: running.server._loop._ctx.draining)
                response = idle.get("/m/a.bin")
                assert (response.body, response.header("Connection")) == (b"a", "close")
                release()
            response = waiting.response()
            hurry(slow)
            assert (response.body, response.header("Connection")) == (HUGE, "close")
            assert slow.receive_exactly(len(HUGE)) == HUGE
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


# --- who waits for a slow disk ---


def test_a_client_that_leaves_while_its_file_is_looked_at_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server finds a large file for it, and would have it opened, after the connection is gone."""
    write(tmp_path / "big.bin", BIG)
    write(tmp_path / "small.bin", "small")
    with (
        serving(app, static=[f"/m={tmp_path}"], files_readers=1) as running,
        running.connect() as other,
    ):
        with held_file_threads(running):
            client = running.connect()
            client.send(b"GET /m/big.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            eventually(lambda: file_pool(running).waiting() == 1)
            gone = next(each for each in running.server._loop.connections if each.request is not None)
            client.reset()
            eventually(lambda: gone.phase is CLOSED)
        assert other.get("/m/big.bin").body == BIG
        assert other.get("/m/small.bin").body == b"small"
        # The one file thread takes them in turn: what the other had asked for was found before that.
        assert gone.phase is CLOSED
        assert gone not in running.server._loop.connections
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text


def test_a_disk_that_takes_too_long_is_503_and_the_connection_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "big.bin", BIG)
    write(tmp_path / "small.bin", "small")
    with (
        serving(app, static=[f"/m={tmp_path}"], files_readers=1, files_check="1h", timeouts_app=0.3) as running,
        running.connect() as client,
    ):
        assert client.get("/m/small.bin").body == b"small"
        with held_file_threads(running):
            assert client.get("/m/big.bin").status == 503
            assert running.log.wait_for(2)[-1].refusal == "files_slow"
            assert client.get("/m/small.bin").body == b"small"  # from memory
        # What it had asked for is found now, and is nobody's any more.
        with running.connect() as other:
            assert other.get("/m/big.bin").body == BIG
        for _ in range(3):
            assert client.get("/m/small.bin").body == b"small"
            assert client.get("/m/big.bin").body == BIG
    assert not [record for record in caplog.records if record.exc_info], caplog.text


@pytest.mark.plain_only("of whose answer it is, and it waits for seconds")
def test_the_next_request_of_who_was_told_so_is_not_taken_for_the_last(tmp_path: Path) -> None:
    """The late result is for a request that was answered; the connection is busy with another by then."""
    write(tmp_path / "big.bin", BIG)
    begun, go_on = threading.Event(), threading.Event()

    def slow_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        go_on.wait(PATIENCE_S)
        return app(environ, start_response)

    with (
        serving(slow_app, static=[f"/m={tmp_path}"], files_readers=1, files_check="1h", timeouts_app=2) as running,
        running.connect() as client,
    ):
        with held_file_threads(running):
            client.send(b"GET /m/big.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 503
            client.send(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
            assert begun.wait(PATIENCE_S)
        with running.connect() as other:
            assert other.get("/m/big.bin").body == BIG  # what was late is there, and the late one knows
        connection = next(each for each in running.server._loop.connections if each.request is not None)
        assert not connection._deciding
        go_on.set()
        assert client.response().body == b"app: GET /app"
        assert client.get("/m/big.bin").body == BIG


def test_who_was_told_so_and_says_nothing_more_is_not_kept_for_ever(tmp_path: Path) -> None:
    write(tmp_path / "big.bin", BIG)
    with (
        serving(app, static=[f"/m={tmp_path}"], files_readers=1, timeouts_app=0.3, timeouts_keep_alive=0.3) as running,
        held_file_threads(running),
        running.connect() as client,
    ):
        assert client.get("/m/big.bin").status == 503
        assert client.receive_all() == b""


def test_many_who_ask_at_once_have_it_looked_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", DIGITS)
    with (
        serving(app, static=[f"/m={tmp_path}"], files_readers=1, files_check="1h") as running,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(running.connect()) for _ in range(20)]
        with held_file_threads(running):
            for number, client in enumerate(clients):
                client.send(b"GET /m/a.bin HTTP/1.1\r\nHost: a\r\nRange: bytes=%d-\r\n\r\n" % number)
            eventually(lambda: len(static_files(running)._looking.get("/m/a.bin", ())) == 20)
            assert file_pool(running).waiting() == 1
        assert [client.response().body for client in clients] == [DIGITS[number:] for number in range(20)]


# --- files that change ---


def test_a_change_is_seen_at_once_where_files_are_looked_at_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with serving(app, static=[f"/m={tmp_path}"], files_check=0) as running, running.connect() as client:
        assert client.get("/m/a.txt").status == 404
        for number in range(20):
            path.write_text(f"version {number % 10}")  # of the same length, within the same second
            assert client.get("/m/a.txt").body == f"version {number % 10}".encode()
        path.unlink()
        assert client.get("/m/a.txt").status == 404
        write(path / "index.html", "a directory")
        assert client.get("/m/a.txt").status == 301


def test_a_change_is_not_seen_before_it_is_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "before")
    for expected in (b"before", b"after"):
        with serving(app, static=[f"/m={tmp_path}"], files_check="1h") as running, running.connect() as client:
            assert client.get("/m/a.txt").body == expected
            assert client.get("/m/new.txt").status == (404 if expected == b"before" else 200)
            path.write_text("after")
            write(tmp_path / "new.txt", "new")
            assert client.get("/m/a.txt").body == expected
            assert client.get("/m/new.txt").status == (404 if expected == b"before" else 200)


def test_a_large_file_that_was_replaced_is_never_mixed_with_the_new_one(tmp_path: Path) -> None:
    """What is known of it counts for an hour, but it is opened each time."""
    path = write(tmp_path / "a.bin", BIG)
    with serving(app, static=[f"/m={tmp_path}"], files_check="1h") as running, running.connect() as client:
        first = client.get("/m/a.bin")
        new = write(tmp_path / "new", BIG[::-1][:200_000], MODIFIED + 5)
        os.replace(new, path)
        second = client.get("/m/a.bin")
        assert second.body == BIG[::-1][:200_000]
        assert second.header("ETag") != first.header("ETag")
        path.unlink()
        assert client.get("/m/a.bin").status == 404


def test_a_directory_that_a_deploy_swaps_is_another_one(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.txt", "one")
    write(tmp_path / "two" / "a.txt", "two")
    (tmp_path / "current").symlink_to("one")
    with serving(app, static=[f"/m={tmp_path / 'current'}"], files_check=0) as running, running.connect() as client:
        assert client.get("/m/a.txt").body == b"one"
        (tmp_path / "next").symlink_to("two")
        os.replace(tmp_path / "next", tmp_path / "current")
        assert client.get("/m/a.txt").body == b"two"


def replace(path: Path) -> None:
    os.replace(write(path.with_name("new"), b"new" * 1000), path)


def truncate(path: Path) -> None:
    os.truncate(path, 1 << 20)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(len(HUGE) - 100)
        file.write(b"?" * 100)


@pytest.mark.parametrize(
    ("change", "whole"),
    [
        pytest.param(replace, True, id="replaced: the old one to its end"),
        pytest.param(Path.unlink, True, id="removed: to its end"),
        pytest.param(truncate, False, id="truncated: cut"),
        pytest.param(empty, False, id="emptied: cut"),
        pytest.param(grow, False, id="grown: cut"),
        pytest.param(rewrite, False, id="written over: cut"),
    ],
)
@pytest.mark.parametrize("ranges", ["", "Range: bytes=0-5999999,6100000-\r\n"])
def test_a_file_that_changes_while_it_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None], whole: bool, ranges: str
) -> None:
    path = write(tmp_path / "huge.bin", HUGE)
    with serving(app, static=[f"/m={tmp_path}"]) as running, slow_client(running) as client:
        client.send(f"GET /m/huge.bin HTTP/1.1\r\nHost: a\r\n{ranges}\r\n".encode())
        head = client.receive_until(b"\r\n\r\n").decode()
        length = int(re.findall(r"Content-Length: ([0-9]+)", head)[0])
        begun = client.receive_exactly(100_000)
        change(path)
        hurry(client)
        if whole:
            body = begun + client.receive_exactly(length - len(begun))
            assert len(body) == length
            assert body == HUGE or ranges
            write(tmp_path / "a.bin", "a")
            assert client.get("/m/a.bin").body == b"a"  # and the connection is as good as before
        else:
            body = begun + receive_what_comes(client)
            assert len(body) < length
            assert ranges or HUGE.startswith(body)
        entry = running.log.wait_for(1)[0]
    assert b"?" * 100 not in body
    said = [record.getMessage() for record in caplog.records if "cut" in record.getMessage()]
    if whole:
        assert (entry.refusal, entry.bytes_sent) == ("", len(head) + length)
        assert said == []
    else:
        assert entry.refusal == "file_changed"
        assert entry.bytes_sent < length
        assert re.search(r"/m/huge\.bin was (truncated|changed) while it was sent", said[0])


def test_files_that_are_written_all_the_time_are_whole_or_not_there(tmp_path: Path) -> None:
    """What is in the body is what one writer has written, with its length, whichever of them that was."""
    path = tmp_path / "a.txt"
    contents = [bytes([65 + number]) * (500 + 37 * number) for number in range(20)]
    path.write_bytes(contents[0])
    stop = threading.Event()

    def keep_replacing() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % len(contents)
            new = tmp_path / "new"
            new.write_bytes(contents[number])
            os.replace(new, path)

    writer = threading.Thread(target=keep_replacing)
    with serving(app, static=[f"/m={tmp_path}"], files_check=0) as running, running.connect() as client:
        writer.start()
        try:
            answers = [client.get("/m/a.txt") for _ in range(300)]
        finally:
            stop.set()
            writer.join(PATIENCE_S)
    assert {answer.status for answer in answers} <= {200, 503}
    good = [answer for answer in answers if answer.status == 200]
    assert len(good) > 100
    by_tag: dict[str, bytes] = {}
    for answer in good:
        assert answer.body in contents
        assert by_tag.setdefault(answer.header("ETag") or "", answer.body) == answer.body


def test_a_large_file_that_grows_all_the_time_is_answered_in_the_end(tmp_path: Path) -> None:
    """A log, say: each time that it is opened it is not what was looked at."""
    path = write(tmp_path / "a.bin", BIG)
    stop = threading.Event()

    def keep_growing() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x")

    writer = threading.Thread(target=keep_growing)
    with serving(app, static=[f"/m={tmp_path}"], files_check=0) as running, running.connect() as client:
        writer.start()
        try:
            client.send(b"GET /m/a.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            status_line = client.receive_until(b"\r\n")
        finally:
            stop.set()
            writer.join(PATIENCE_S)
    assert status_line.split()[1] in (b"200", b"503")


# --- many files ---


@pytest.mark.plain_only("of the file system, and it takes seconds")
def test_a_directory_with_100_000_files(tmp_path: Path) -> None:
    memory = "/dev/shm"  # where making them takes a tenth of the time
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as parent:
        directory = Path(parent, "many")
        directory.mkdir()
        base = os.open(directory, os.O_RDONLY)
        try:
            for number in range(100_000):
                os.mknod(f"{number:06}.txt", 0o644 | stat.S_IFREG, dir_fd=base)
        finally:
            os.close(base)
        write(directory / "099999.txt", "the last")
        mount = {"url": "/m", "directory": str(directory), "listing": "on"}
        begun = time.process_time()
        with serving(app, static=[mount]) as running, running.connect() as client:
            assert time.process_time() - begun < 3.0, "it should take a tenth of that"
            assert client.get("/m/099999.txt").body == b"the last"
            assert client.get("/m/100000.txt").status == 404
            page = client.get("/m/").body
            assert b"There is more" in page
            assert len(page) < 2 << 20
        subprocess.run(["rm", "-r", directory], check=True)


# --- the gate comes first ---


def test_access_rules_hold_for_files(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", "a")
    routes = [{"path": "/m/*", "deny": ["127.0.0.2"]}, {"path": "/m/only-get", "allowed_methods": ["GET"]}]
    with serving(app, static=[f"/m={tmp_path}"], route=routes) as running:
        with running.connect() as client:
            assert client.get("/m/a.bin").status == 200
            assert client.get("/m/only-get", method="POST").header("Allow") == "GET, HEAD, OPTIONS"
        with running.connect("127.0.0.2") as client:
            for target in ("/m/a.bin", "/m/nothing", "/m/.env"):
                assert client.get(target).status == 403  # nor is it told what is there
            assert client.get("/app").status == 200
        assert {entry.refusal for entry in running.log.wait_for(6)} == {"", "method_not_allowed", "access_denied"}


def test_hosts_hold_for_files(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", "a")
    with serving(app, static=[f"/m={tmp_path}"], access_hosts=["test"]) as running:
        assert ask(running, "/m/a.bin").body == b"a"
        answer = running.exchange(b"GET /m/a.bin HTTP/1.1\r\nHost: other\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 421 ")


def test_passwords_hold_for_files(tmp_path: Path) -> None:
    users = write_users(tmp_path / "users", anna="right")
    write(tmp_path / "m" / "a.bin", "a")
    routes = [{"path": "/m/*", "auth": "on"}]
    with (
        serving(app, static=[f"/m={tmp_path / 'm'}"], route=routes, auth_users=users) as running,
        running.connect() as client,
    ):
        assert client.get("/m/a.bin").status == 401
        assert client.get("/m/nothing").status == 401
        assert client.get("/m/a.bin", basic("anna", "wrong")).status == 401
        assert client.get("/m/a.bin", basic("anna", "right")).body == b"a"
        assert running.log.wait_for(4)[-1].user == "anna"


def test_rates_hold_for_files(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", "a")
    write(tmp_path / "big.bin", BIG)
    rule = {"limit": "3/hour", "path": "/m/*", "strategy": "fixed-window"}
    with serving(app, static=[f"/m={tmp_path}"], rate_limit=[rule]) as running, running.connect() as client:
        names = ("a.bin", "big.bin", "nothing", "a.bin")
        assert [client.get(f"/m/{name}").status for name in names] == [200, 200, 404, 429]
        assert client.get("/app").status == 200


@pytest.mark.parametrize(
    ("status", "target", "fields"),
    [
        pytest.param(200, "/m/a.bin", (), id="a file from memory"),
        pytest.param(200, "/m/big.bin", (), id="a file that is opened"),
        pytest.param(206, "/m/big.bin", ("Range: bytes=0-0",), id="a part"),
        pytest.param(304, "/m/a.bin", ("If-None-Match: *",), id="a file that a client has"),
        pytest.param(301, "/m/sub", (), id="a redirect"),
        pytest.param(404, "/m/nothing", (), id="a miss"),
        pytest.param(412, "/m/a.bin", ('If-Match: "other"',), id="a condition that fails"),
        pytest.param(416, "/m/a.bin", ("Range: bytes=9-",), id="a part that is not there"),
    ],
)
def test_what_files_come_to_counts_for_rates(tmp_path: Path, status: int, target: str, fields: tuple[str, ...]) -> None:
    write(tmp_path / "a.bin", "a")
    write(tmp_path / "big.bin", BIG)
    write(tmp_path / "sub/index.html", "a directory")
    rule = {"limit": "2/hour", "status": [status], "strategy": "fixed-window"}
    with serving(app, static=[f"/m={tmp_path}"], rate_limit=[rule]) as running, running.connect() as client:
        assert [client.get(target, *fields).status for _ in range(3)] == [status, status, 429]


def test_a_body_past_the_cap_is_refused_for_that_first(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", "a")
    with serving(app, static=[f"/m={tmp_path}"], limits_body=4) as running, running.connect() as client:
        client.send(b"POST /m/a.bin HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        assert client.response().status == 413


# --- the access log ---


@pytest.mark.parametrize(
    ("method", "target", "fields", "status", "reason"),
    [
        pytest.param("GET", "/media/hello.txt", "", 200, "", id="a file"),
        pytest.param("GET", "/media/big.bin", "", 200, "", id="a file that is opened"),
        pytest.param("HEAD", "/media/big.bin", "", 200, "", id="the head of one"),
        pytest.param("GET", "/media/big.bin", "Range: bytes=0-9,200000-\r\n", 206, "", id="parts of one"),
        pytest.param("GET", "/media/digits.bin", "Range: bytes=5-9\r\n", 206, "", id="a part"),
        pytest.param("GET", "/media/hello.txt", "If-None-Match: *\r\n", 304, "", id="what a client has"),
        pytest.param("GET", "/media/sub", "", 301, "", id="a redirect"),
        pytest.param("OPTIONS", "/media/sub", "", 204, "", id="the methods"),
        pytest.param("GET", "/media/nothing", "", 404, "file_not_found", id="a miss"),
        pytest.param("GET", "/media/.env", "", 404, "file_not_found", id="what is withheld"),
        pytest.param("DELETE", "/media/sub", "", 405, "method_not_allowed", id="a method"),
        pytest.param("GET", "/media/hello.txt", "If-Match: a\r\n", 412, "precondition_failed", id="a condition"),
        pytest.param("GET", "/media/hello.txt", "Range: bytes=99-\r\n", 416, "range_not_satisfiable", id="a range"),
    ],
)
def test_the_access_log_has_a_line(site: Site, method: str, target: str, fields: str, status: int, reason: str) -> None:
    log = site.running.log
    for _ in range(2):
        before = len(log.entries)
        answer = site.running.exchange(
            f"{method} {target} HTTP/1.1\r\nHost: a\r\nReferer: /r\r\nUser-Agent: ua\r\n{fields}\r\n".encode()
        )
        entry = log.wait_for(before + 1)[-1]
        assert len(log.entries) == before + 1
        assert (entry.method, entry.target, entry.status, entry.refusal) == (method, target, status, reason)
        assert entry.bytes_sent == len(answer)
        assert (entry.referer, entry.user_agent, entry.client) == ("/r", "ua", "127.0.0.1")
        assert entry.request_id.encode() in answer


def test_a_client_that_leaves_in_the_middle_is_logged_with_what_it_was_sent(tmp_path: Path) -> None:
    write(tmp_path / "huge.bin", HUGE)
    with serving(app, static=[f"/m={tmp_path}"]) as running, slow_client(running) as client:
        client.send(b"GET /m/huge.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        client.receive_exactly(100_000)
        client.reset()
        entry = running.log.wait_for(1)[0]
    assert (entry.status, entry.refusal) == (200, "client_disconnected")
    assert 100_000 <= entry.bytes_sent < len(HUGE)


# --- what many ask for ---


def test_a_file_that_many_load_is_open_once(tmp_path: Path) -> None:
    write(tmp_path / "huge.bin", HUGE)
    before = len(os.listdir("/proc/self/fd"))
    with serving(app, static=[f"/m={tmp_path}"]) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(slow_client(running)) for _ in range(10)]
        for client in clients:
            client.send(b"GET /m/huge.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            client.receive_until(b"\r\n\r\n")
        links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        assert links.count(str(tmp_path / "huge.bin")) == 1
        for client in clients:
            hurry(client)
            assert client.receive_exactly(len(HUGE)) == HUGE
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_so_many_files_are_open_at_once_and_no_more(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.bin", HUGE)
    with serving(app, static=[f"/m={tmp_path}"]) as running, contextlib.ExitStack() as stack:
        files = static_files(running)
        files._ctx = dataclasses.replace(files._ctx, max_open=2)
        for number in range(2):
            client = stack.enter_context(slow_client(running))
            client.send(b"GET /m/%d.bin HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            client.receive_until(b"\r\n\r\n")
        with running.connect() as client:
            assert client.get("/m/2.bin").status == 503
            assert client.get("/m/1.bin", "Range: bytes=0-9").body == HUGE[:10], "it is open"


def test_a_young_file_is_read_again_though_its_time_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "A", int(time.time()))
    status = path.stat()
    entries = Examiner((), 1 << 16, compresses=True)
    place = Mounts([Mount.from_settings(StaticSettings(url="/m", directory=str(tmp_path)))]).find("/m/a.txt")
    assert place is not None
    old = entries.examine(place, "/m/a.txt", None)
    assert not old.settled
    path.write_text("B")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert entries.examine(place, "/m/a.txt", old).representations[0].body == b"B"
    long_ago = status.st_mtime_ns - 10**10
    os.utime(path, ns=(long_ago, long_ago))
    old = entries.examine(place, "/m/a.txt", None)
    assert old.settled
    assert entries.examine(place, "/m/a.txt", old) is old


def test_what_visitors_put_beside_a_file_is_not_sent_for_it_where_that_is_off(tmp_path: Path) -> None:
    write(tmp_path / "page.html", "mine")
    (tmp_path / "page.html.gz").write_bytes(gzip.compress(b"somebody else's"))
    mount = {"url": "/m", "directory": str(tmp_path)}
    for setting, expected in (("on", "gzip"), ("off", None)):
        with serving(app, static=[mount | {"precompressed": setting}]) as running:
            response = ask(running, "/m/page.html", "Accept-Encoding: gzip")
            assert response.header("Content-Encoding") == expected
