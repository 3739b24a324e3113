"""Files that an app has sent for it, over the wire: `wsgi.file_wrapper`, X-Sendfile and X-Accel-Redirect.

Which file a field stands for is test_sendfile.py's; here it is what becomes of it, and of the worker.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import flask
import pytest

from hardserve.http.conditions import http_date
from hardserve.ops.accesslog import AccessEntry
from hardserve.protocol import Seldom
from tests.support import PATIENCE_S, Client, Response, Running, serving, switching_often
from tests.test_http import eventually
from tests.test_static import hurry, receive_what_comes, slow_client

DATA = random.Random(7).randbytes(300_000)  # more than a worker reads itself
SMALL = b"0123456789" * 10
HUGE = random.Random(8).randbytes(1 << 20) * 8  # more than the buffers of two sockets
HUGEST = HUGE * 2 + HUGE[: 4 << 20]
MODIFIED = 1_000_000_000
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

Fields = list[tuple[str, str]]

pytestmark = pytest.mark.usefixtures("transport")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is set aside, of which no test changes anything."""
    directory = tmp_path_factory.mktemp("files")
    for name, content in {
        "data.bin": DATA,
        "small.txt": SMALL,
        "huge.bin": HUGE,
        "empty.txt": b"",
        "forbidden.html": b"<h1>Not for you",
        "\u00fcbung.txt": b"umlaut",
        "data.gz": gzip.compress(DATA),
    }.items():
        (directory / name).write_bytes(content)
        os.utime(directory / name, (MODIFIED, MODIFIED))
    return directory


def roots(directory: Path) -> list[dict[str, str]]:
    return [{"url": "/internal", "directory": str(directory), "internal": "on"}]


def naming(
    name: str, value: str, status: str = "200 OK", fields: Fields | None = None, body: Any = (b"the app's own",)
) -> Callable[..., Any]:
    """Return an app that has a file sent for it."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, [(name, value), *(fields or [])])
        return body

    return app


class Stage:
    """A server whose app is another one for each test."""

    app: Callable[..., Any]
    files: Path
    running: Running

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        return self.app(environ, start_response)

    def ask(self, app: Callable[..., Any], *fields: str, method: str = "GET", version: str = "1.1") -> Response:
        """Return what `app` answers, which is in the log with the same status."""
        self.app = app
        before = len(self.running.log.entries)
        with self.running.connect() as client:
            response = client.get("/", *fields, method=method, version=version)
            assert self.running.log.wait_for(before + 1)[before].status == response.status
            return response

    def exchange(self, app: Callable[..., Any], request: bytes) -> tuple[bytes, AccessEntry]:
        """Return all that `app` answers, and the line in the log."""
        self.app = app
        before = len(self.running.log.entries)
        answer = self.running.exchange(request)
        return answer, self.running.log.wait_for(before + 1)[before]


@pytest.fixture(scope="module")
def stage(files: Path, transport: str) -> Iterator[Stage]:
    stage = Stage()
    stage.files = files
    with serving(stage, static=[*roots(files), {"url": "/public", "directory": str(files)}]) as stage.running:
        yield stage


@pytest.fixture(scope="module")
def bare(transport: str) -> Iterator[Stage]:
    """One without roots."""
    stage = Stage()
    with serving(stage) as stage.running:
        yield stage


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def open_paths() -> Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(f"/proc/self/fd/{number}")


# --- wsgi.file_wrapper ---


def wrapping(make: Callable[[], Any], length: int | None, opened: list[Any]) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        file = make()
        opened.append(file)
        start_response("200 OK", [] if length is None else [("Content-Length", str(length))])
        return environ["wsgi.file_wrapper"](file)

    return app


def at(file: Any, position: int) -> Any:
    file.seek(position)
    return file


def pipe(content: bytes) -> Any:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return open(reading, "rb")


def temporary(content: bytes) -> Any:
    file = tempfile.NamedTemporaryFile()
    file.write(content)
    file.seek(0)
    return file


def detached(path: Path) -> Any:
    file = path.open("rb")
    file.detach().close()
    return file


def written_to(path: Path) -> Any:
    """Return a file that a part was read of, and then replaced in, which is still on its way to the kernel."""
    path.write_bytes(SMALL)
    file = path.open("r+b")
    file.read(10)
    file.seek(0)
    file.write(b"??")
    file.seek(0)
    return file


class ReadsOtherwise(io.FileIO):
    """Has a descriptor, and gives something else than what is in it, as what decrypts does."""

    def readall(self) -> bytes:
        raise NotImplementedError

    def read(self, size: int | None = -1, /) -> bytes:
        return (super().read(size) or b"").swapcase()


# How a file is made -> what of it is sent, and whether it is known how much that is.
# They are the server's to close.
# ruff: noqa: SIM115
WRAPPED: dict[str, tuple[Callable[[Path, Path], Any], bytes, bool]] = {
    "a file": (lambda files, _: (files / "data.bin").open("rb"), DATA, True),
    "a small file": (lambda files, _: (files / "small.txt").open("rb"), SMALL, True),
    "from its middle": (lambda files, _: at((files / "data.bin").open("rb"), 200_000), DATA[200_000:], True),
    "from its end": (lambda files, _: at((files / "data.bin").open("rb"), len(DATA)), b"", True),
    "past its end": (lambda files, _: at((files / "data.bin").open("rb"), len(DATA) + 1), b"", False),
    "without a buffer": (lambda files, _: (files / "data.bin").open("rb", buffering=0), DATA, True),
    "a named temporary file": (lambda *_: temporary(DATA), DATA, True),
    "one that may be written to": (lambda _, own: written_to(own / "a"), b"??" + SMALL[2:], True),
    "BytesIO": (lambda *_: io.BytesIO(DATA), DATA, False),
    "a pipe": (lambda *_: pipe(SMALL), SMALL, False),
    "what is unpacked while it is read": (lambda files, _: gzip.open(files / "data.gz"), DATA, False),
    "the same with a buffer": (lambda files, _: io.BufferedReader(gzip.open(files / "data.gz")), DATA, False),
    "what reads otherwise": (lambda files, _: ReadsOtherwise(files / "forbidden.html"), b"<H1>nOT FOR YOU", False),
    "what does not tell its size": (lambda *_: open("/proc/version", "rb"), Path("/proc/version").read_bytes(), False),
}  # fmt: skip


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_what_is_wrapped_is_sent_to_its_end(stage: Stage, files: Path, tmp_path: Path, kind: str, version: str) -> None:
    make, expected, known = WRAPPED[kind]
    opened: list[Any] = []
    response = stage.ask(wrapping(lambda: make(files, tmp_path), None, opened), version=version)
    assert response.body == expected
    assert response.status == 200
    # What has no block has a length again.
    assert (response.header("Content-Length") is not None) is (known or not expected)
    entry = stage.running.log.entries[-1]
    assert (entry.status, entry.refusal) == (200, "")
    assert entry.bytes_sent >= len(expected)
    eventually(lambda: opened[0].closed)


@pytest.mark.parametrize("kind", [kind for kind in WRAPPED if len(WRAPPED[kind][1]) >= 20])
def test_what_is_wrapped_is_as_long_as_its_head_says(stage: Stage, files: Path, tmp_path: Path, kind: str) -> None:
    make, expected, _ = WRAPPED[kind]
    stage.app = wrapping(lambda: make(files, tmp_path), 20, [])
    with stage.running.connect() as client:
        for _ in range(2):  # and the connection goes on
            response = client.get("/")
            assert response.body == expected[:20]
            assert response.header("Content-Length") == "20"


@pytest.mark.parametrize("kind", ["a file", "a small file", "from its middle", "BytesIO", "a pipe"])
def test_what_is_shorter_than_its_head_says_is_cut(
    stage: Stage, files: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, expected, _ = WRAPPED[kind]
    promised = len(expected) + 1
    app = wrapping(lambda: make(files, tmp_path), promised, [])
    before = len(stage.running.log.entries)
    stage.app = app
    with stage.running.connect() as client:
        client.send(GET)
        head, _, body = receive_what_comes(client).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % promised in head
    assert expected.startswith(body)  # of what had not left yet, nothing does
    assert stage.running.log.wait_for(before + 1)[before].refusal == "app_failed_midway"
    assert any(f"the app sent {len(expected)} of the {promised} bytes it promised" in text for text in errors(caplog))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(lambda files: (files / "small.txt").open("r"), "the app yielded str", id="text"),
        pytest.param(lambda files: at((files / "small.txt").open("r"), 10), "yielded str", id="text from its middle"),
        pytest.param(lambda _: tempfile.TemporaryFile("w"), "the app failed", id="what cannot be read"),
        pytest.param(lambda _: None, "the app failed", id="nothing"),
        pytest.param(lambda files: detached(files / "small.txt"), "the app failed", id="what has lost its file"),
    ],
)
def test_what_cannot_be_sent_is_500(
    stage: Stage, files: Path, make: Callable[[Path], Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert stage.ask(wrapping(lambda: make(files), None, [])).status == 500
    assert why in errors(caplog)[0]


def test_a_file_that_is_closed_already_is_500(stage: Stage, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    def closed() -> Any:
        file = (files / "data.bin").open("rb")
        file.close()
        return file

    assert stage.ask(wrapping(closed, None, [])).status == 500
    assert "the app failed before its response" in errors(caplog)[0]


@pytest.mark.parametrize("length", [None, len(HUGE)], ids=["no length", "a length"])
def test_a_file_that_is_truncated_while_it_is_sent_is_cut(
    tmp_path: Path, length: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(HUGE)
    with serving(wrapping(lambda: path.open("rb"), length, [])) as running, slow_client(running) as client:
        client.send(GET)
        head = client.receive_until(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(HUGE) in head
        begun = client.receive_exactly(100_000)
        os.truncate(path, 1 << 20)
        hurry(client)
        body = begun + receive_what_comes(client)
        assert len(body) < len(HUGE)
        assert HUGE.startswith(body)
        assert running.log.wait_for(1)[0].refusal == "file_changed"
    assert any(f"{path} was truncated" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("size", [1000, len(DATA)], ids=["small", "large"])
def test_a_file_that_grows_is_sent_as_far_as_it_went(stage: Stage, tmp_path: Path, size: int) -> None:
    """A log, say: it is written to between any two steps of ours."""
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * size)
    stop = threading.Event()

    def keep_growing() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.wait(1e-4):
                file.write(b"x")

    writer = threading.Thread(target=keep_growing)
    writer.start()
    try:
        for length in (None, size) * 25:
            response = stage.ask(wrapping(lambda: path.open("rb"), length, []))
            assert response.status == 200
            assert len(response.body) >= size
            assert set(response.body) == {ord("x")}
    finally:
        stop.set()
        writer.join(PATIENCE_S)


def test_a_large_file_that_grows_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(HUGE)
    with (
        serving(wrapping(lambda: path.open("rb"), None, [])) as running,
        slow_client(running) as client,
    ):
        client.send(GET)
        client.receive_until(b"\r\n\r\n")
        with path.open("ab") as file:
            file.write(b"more")
        hurry(client)
        assert client.receive_exactly(len(HUGE)) == HUGE
        client.send(GET)
        assert b"Content-Length: %d\r\n" % (len(HUGE) + 4) in client.receive_until(b"\r\n\r\n")


def test_a_file_that_is_written_is_sent_as_far_as_it_was(stage: Stage, tmp_path: Path) -> None:
    """What is written by the time that the app returns is sent, also what its own buffer holds."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        file: Any = tempfile.TemporaryFile()
        file.write(SMALL * 1000)
        file.seek(0)
        file.write(b"first")
        file.seek(2)
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)

    assert stage.ask(app).body == b"rst" + (SMALL * 1000)[5:]


# --- Flask's send_file and send_from_directory ---


def flask_app(files: Path, *, x_sendfile: bool) -> flask.Flask:
    app = flask.Flask("files", static_folder=None)
    app.config["USE_X_SENDFILE"] = x_sendfile

    @app.get("/file/<name>")
    def file(name: str) -> flask.Response:
        return flask.send_file(files / name)

    @app.get("/plain/<name>")
    def plain(name: str) -> flask.Response:
        return flask.send_file(files / name, conditional=False, etag=False)

    @app.get("/from/<path:name>")
    def from_directory(name: str) -> flask.Response:
        return flask.send_from_directory(files, name)

    @app.get("/attached/<name>")
    def attached(name: str) -> flask.Response:
        response = flask.send_file(files / name, as_attachment=True, download_name="d\u00e4ta.bin", max_age=600)
        response.set_cookie("a", "b")
        return response

    return app


@dataclass
class Both:
    """The same Flask app twice: it sends its files itself, and has them sent."""

    itself: Running
    by_us: Running

    def ask(self, target: str, *fields: str, method: str = "GET") -> tuple[Response, Response]:
        with self.itself.connect() as one, self.by_us.connect() as two:
            return one.get(target, *fields, method=method), two.get(target, *fields, method=method)


@pytest.fixture(scope="module")
def both(files: Path, transport: str) -> Iterator[Both]:
    with (
        serving(flask_app(files, x_sendfile=False)) as itself,
        serving(flask_app(files, x_sendfile=True), static=roots(files)) as by_us,
    ):
        yield Both(itself, by_us)


def kept(response: Response) -> dict[str, str]:
    """Return what of a head does not depend on when it was made."""
    return {name: value for name, value in response.headers if name not in ("Date", "X-Request-ID", "Expires")}


@pytest.mark.parametrize(
    ("target", "fields", "status", "body"),
    [
        pytest.param("/file/data.bin", [], 200, DATA, id="a file"),
        pytest.param("/file/small.txt", [], 200, SMALL, id="a small file"),
        pytest.param("/file/empty.txt", [], 200, b"", id="an empty file"),
        pytest.param("/file/%C3%BCbung.txt", [], 200, b"umlaut", id="a name that is not ASCII"),
        pytest.param("/from/data.bin", [], 200, DATA, id="a file from a directory"),
        pytest.param("/from/..%2Fsecret", [], 404, None, id="not from outside of it"),
        pytest.param("/from/nothing", [], 404, None, id="nor what is not there"),
        pytest.param("/attached/data.bin", [], 200, DATA, id="an attachment, with the app's fields"),
        pytest.param("/file/data.bin", ["Range: bytes=5-9"], 206, DATA[5:10], id="a part"),
        pytest.param("/file/data.bin", ["Range: bytes=-9"], 206, DATA[-9:], id="the end"),
        pytest.param("/file/data.bin", ["Range: bytes=299990-"], 206, DATA[299_990:], id="all from a place on"),
        pytest.param("/file/data.bin", ["Range: bytes=1-250000"], 206, DATA[1:250_001], id="a large part"),
        pytest.param("/file/data.bin", ["Range: bytes=300000-"], 416, None, id="a part that is not there"),
        pytest.param("/file/data.bin", ['If-None-Match: "other"'], 200, DATA, id="whoever has another one"),
        pytest.param("/file/data.bin", [f"If-Modified-Since: {http_date(MODIFIED)}"], 304, b"", id="as new as theirs"),
        pytest.param("/file/data.bin", [f"If-Modified-Since: {http_date(MODIFIED - 1)}"], 200, DATA, id="newer"),
        pytest.param("/file/data.bin", ["Range: bytes=5-9", f"If-Range: {http_date(MODIFIED)}"], 206, DATA[5:10],
                     id="a part if it is as new"),
        pytest.param("/file/data.bin", ["Range: bytes=5-9", 'If-Range: "other"'], 200, DATA, id="all if it is not"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_flask_says_the_same_of_a_file_whoever_sends_it(
    both: Both, target: str, fields: list[str], status: int, body: bytes | None, method: str
) -> None:
    itself, by_us = both.ask(target, *fields, method=method)
    assert (itself.status, by_us.status) == (status, status)
    assert by_us.header("X-Sendfile") is None
    assert by_us.header("X-Content-Type-Options") == "nosniff"
    assert kept(by_us) == kept(itself)
    if body is not None and method == "GET":
        assert by_us.body == itself.body == body
    if status == 206:
        assert re.fullmatch(r"bytes \d+-\d+/300000", by_us.header("Content-Range") or "")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_tag_that_flask_gives_is_good_for_a_304(both: Both, method: str) -> None:
    for target in ("/file/data.bin", "/from/small.txt"):
        tags = [response.header("ETag") for response in both.ask(target)]
        assert tags[0] == tags[1] is not None
        answers = both.ask(target, f"If-None-Match: {tags[0]}", method=method)
        assert [answer.status for answer in answers] == [304, 304]
        answers = both.ask(target, "Range: bytes=0-3", f"If-Range: {tags[0]}")
        assert [answer.status for answer in answers] == [206, 206]


def test_where_flask_does_not_care_for_ranges_and_conditions_we_do(both: Both) -> None:
    _, whole = both.ask("/plain/data.bin")
    assert whole.body == DATA
    assert (whole.header("Accept-Ranges"), whole.header("Last-Modified")) == ("bytes", http_date(MODIFIED))
    tag = whole.header("ETag")
    assert tag
    assert both.ask("/plain/data.bin", f"If-None-Match: {tag}")[1].status == 304
    assert both.ask("/plain/data.bin", 'If-Match: "other"')[1].status == 412
    _, part = both.ask("/plain/data.bin", "Range: bytes=5-9", f"If-Range: {tag}")
    assert (part.status, part.body, part.header("Content-Range")) == (206, DATA[5:10], "bytes 5-9/300000")
    assert both.ask("/plain/data.bin", "Range: bytes=5-9", 'If-Range: "other"')[1].body == DATA
    _, refused = both.ask("/plain/data.bin", "Range: bytes=300000-")
    assert (refused.status, refused.header("Content-Range")) == (416, "bytes */300000")
    assert both.ask("/plain/data.bin", "Range: lines=1-2")[1].body == DATA
    head = both.ask("/plain/data.bin", "Range: bytes=5-9", method="HEAD")[1]
    assert (head.status, head.header("Content-Length")) == (200, "300000")


def test_several_parts_of_what_an_app_has_sent(both: Both) -> None:
    _, response = both.ask("/plain/data.bin", "Range: bytes=5-9,1000-250000,-4")
    assert response.status == 206
    assert response.header("Content-Length") == str(len(response.body))
    kind = response.header("Content-Type") or ""
    assert kind.startswith("multipart/byteranges; boundary=")
    message: Message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + response.body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    said = [part["Content-Range"] for part in parts if isinstance(part, Message)]
    assert said == ["bytes 5-9/300000", "bytes 1000-250000/300000", "bytes 299996-299999/300000"]
    assert all(piece in response.body for piece in (DATA[5:10], DATA[1000:250_001], DATA[-4:]))


# --- the field never reaches the client ---


class Closing:
    """An iterable that says whether it was closed, and how much of it was asked for."""

    def __init__(self, blocks: Any) -> None:
        self._blocks = iter(blocks)
        self.asked = 0
        self.closed = threading.Event()

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        self.asked += 1
        block: bytes = next(self._blocks)
        return block

    def close(self) -> None:
        self.closed.set()


def generating(name: str, value: str, status: str) -> Callable[..., Any]:
    """Return an app that calls start_response as late as it may."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b""
        start_response(status, [(name, value)])
        yield b"the app's own"
        yield b"the app's own"

    return app


def writing(name: str, value: str, status: str) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response(status, [(name, value)])
        write(b"the app's own")
        write(b"the app's own")
        return [b"the app's own"]

    return app


def silent(name: str, value: str, status: str) -> Callable[..., Any]:
    return naming(name, value, status, [("Content-Length", "0")], ())


def beginning_again(name: str, value: str, status: str) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html"), ("X-Sendfile", "/nothing")])
        start_response(status, [(name, value)], (ValueError, ValueError(), None))
        return [b"the app's own"]

    return app


SHAPES: dict[str, Callable[[str, str, str], Callable[..., Any]]] = {
    "a list": naming,
    "nothing": silent,
    "a generator": generating,
    "write": writing,
    "a second start_response": beginning_again,
}


@pytest.mark.parametrize("name", ["X-Sendfile", "X-ACCEL-redirect"])
@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified", "204 No Content", "404 Not Found", "206 Partial"])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_roots_it_is_500_and_an_error_in_the_log(
    bare: Stage, shape: str, status: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = SHAPES[shape](name, "/secret/path.txt", status)
    for method in ("GET", "HEAD"):
        caplog.clear()
        request = f"{method} / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n".encode()
        answer, entry = bare.exchange(app, request)
        assert (entry.status, entry.refusal) == (500, "app_failed")
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"secret" not in answer
        assert name.lower().encode() not in answer.lower()
        assert f"the app names a file in {name.lower()}, but there is no [[static]]" in errors(caplog)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified", "404 Not Found"])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        pytest.param("X-Sendfile", "/etc/passwd", (500, "is not in the directory of a [[static]]"), id="no root's"),
        pytest.param("X-Sendfile", "{files}/missing.bin", (404, "there is no file"), id="nothing"),
        pytest.param("X-Sendfile", "{files}/../x\r\nA: b", (404, "there is no file"), id="a line end"),
        pytest.param("X-Accel-Redirect", "/app/page", (500, "is not in a [[static]]"), id="no mount's"),
        pytest.param("X-Accel-Redirect", "/internal/%2e%2e/x", (404, "there is no file"), id="a way up"),
    ],
)
def test_what_is_not_sent_is_told_in_the_log_alone(
    stage: Stage, shape: str, status: str, name: str, value: str, told: tuple[int, str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    becomes, why = told
    files = stage.files
    eventually(lambda: hasattr(stage.running.server, "_app_ctx"))
    stage.running.server._app_ctx.missing_files = Seldom(0.0)
    stage.app = SHAPES[shape](name, value.replace("{files}", str(files)), status)
    with stage.running.connect() as client:
        response = client.get("/")
        assert response.status == becomes
        assert response.header(name) is None
        assert not any(piece in response.body for piece in (b"the app's own", b"passwd", b"internal", b"missing"))
        assert response.header("A") is None
        assert client.get("/", method="HEAD").status == becomes  # and the connection goes on
    if becomes == 404:
        (first, _) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    else:
        (first, _) = errors(caplog)
    assert why in first
    assert "\n" not in first


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["small.txt", "data.bin"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_however_the_app_says_it_the_file_is_sent(
    stage: Stage, files: Path, shape: str, name: str, method: str, version: str
) -> None:
    content = (files / name).read_bytes()
    app = SHAPES[shape]("X-Accel-Redirect", f"/internal/{name}", "200 OK")
    answer, entry = stage.exchange(app, f"{method} / HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: %d" % len(content) in head
    assert head.count(b"Content-Length") == 1
    assert b"x-accel" not in head.lower()
    assert b"chunked" not in head
    assert body == (content if method == "GET" else b"")
    assert (entry.status, entry.bytes_sent, entry.refusal) == (200, len(answer), "")


def test_the_apps_body_is_dropped_and_closed(stage: Stage, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = Closing([b"the app's own"] * 3)
    app = naming("X-Accel-Redirect", "/internal/data.bin", fields=[("Content-Length", "39")], body=body)
    response = stage.ask(app)
    assert (response.body, response.header("Content-Length")) == (DATA, "300000")
    assert body.closed.wait(PATIENCE_S)
    assert [record.getMessage() for record in caplog.records] == []  # it is no excess


def test_a_body_without_end_does_not_keep_the_worker(files: Path) -> None:
    body = Closing(itertools.repeat(b"the app's own", 10_000))
    app = naming("X-Accel-Redirect", "/internal/small.txt", body=body)
    with serving(app, static=roots(files), threads=1) as running, running.connect() as client:
        assert [client.get("/").body for _ in range(2)] == [SMALL, SMALL]
        assert body.closed.wait(PATIENCE_S)
        assert body.asked <= 4


# --- the app's response is the frame ---


def test_the_apps_fields_stay_and_ours_are_there(files: Path) -> None:
    fields = [
        ("Content-Type", "application/x-own"),
        ("Content-Disposition", 'attachment; filename="x"'),
        ("Cache-Control", "private, max-age=5"),
        ("Set-Cookie", "a=b; HttpOnly"),
        ("Set-Cookie", "c=d"),
        ("ETag", '"own"'),
        ("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT"),
        ("X-Frame-Options", "DENY"),
        ("Content-Length", "7"),
    ]
    app = naming("X-Sendfile", str(files / "data.bin"), fields=fields)
    with serving(app, static=roots(files)) as running, running.connect() as client:
        response = client.get("/")
        for name, value in fields[:-1]:
            assert (name, value) in response.headers
        assert response.header("Content-Length") == "300000"
        assert (response.header("X-Content-Type-Options"), response.header("X-Frame-Options")) == ("nosniff", "DENY")
        assert response.header("Referrer-Policy") == "strict-origin-when-cross-origin"
        assert (response.header("Accept-Ranges"), response.header("Server")) == ("bytes", None)
        assert client.get("/", 'If-None-Match: "own"').status == 304
        assert client.get("/", "Range: bytes=0-1", 'If-Range: "own"').body == DATA[:2]
        unchanged = client.get("/", "If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT")
        assert (unchanged.status, unchanged.header("Set-Cookie")) == (304, "a=b; HttpOnly, c=d")


def test_what_the_app_leaves_out_is_the_files(stage: Stage, files: Path) -> None:
    response = stage.ask(naming("X-Sendfile", str(files / "small.txt")))
    assert response.header("Content-Type") == "text/plain; charset=utf-8"
    assert response.header("Last-Modified") == http_date(MODIFIED)
    assert response.header("ETag")


@pytest.mark.parametrize("status", [403, 404, 500, 201])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_file_may_be_the_page_of_an_error(stage: Stage, files: Path, status: int, method: str) -> None:
    """No condition and no range of the client's is about it."""
    app = naming("X-Accel-Redirect", "/internal/forbidden.html", f"{status} X")
    response = stage.ask(app, "Range: bytes=0-1", "If-None-Match: *", method=method)
    assert response.status == status
    assert (response.header("Content-Length"), response.header("ETag")) == ("15", None)
    assert response.header("Content-Type") == "text/html; charset=utf-8"
    assert response.body == (b"" if method == "HEAD" else b"<h1>Not for you")


@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        pytest.param("POST", ["If-None-Match: *"], 200, id="POST with what a GET would be 304 for"),
        pytest.param("PUT", ['If-Match: "before"'], 200, id="PUT that has replaced what it was to"),
        pytest.param("POST", ["Range: bytes=0-1"], 200, id="POST with a range"),
        pytest.param("GET", ["If-None-Match: *"], 304, id="GET"),
        pytest.param("HEAD", ["If-None-Match: *"], 304, id="HEAD"),
        pytest.param("GET", ['If-Match: "before"'], 412, id="GET of another one"),
    ],
)
def test_conditions_are_the_apps_where_it_has_acted(
    stage: Stage, files: Path, method: str, fields: list[str], status: int
) -> None:
    response = stage.ask(naming("X-Sendfile", f"{files}/small.txt"), *fields, method=method)
    assert response.status == status
    assert response.body == SMALL or status != 200


@pytest.mark.parametrize(
    ("content_range", "body"),
    [
        pytest.param("bytes 5-9/300000", DATA[5:10], id="a part"),
        pytest.param("bytes 0-299999/300000", DATA, id="all"),
        pytest.param("bytes 5-9/*", DATA[5:10], id="of a size that is not told"),
        pytest.param("bytes 5-9/300001", None, id="of another size"),
        pytest.param("bytes 5-300000/300000", None, id="past the end"),
        pytest.param("bytes 9-5/300000", None, id="backwards"),
        pytest.param("bytes */300000", None, id="of no part"),
        pytest.param("lines 5-9/300000", None, id="of another unit"),
        pytest.param("bytes 5-" + "9" * 5000 + "/*", None, id="of too many digits"),
        pytest.param("", None, id="of nothing"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_206_of_the_apps_says_which_part(
    stage: Stage, files: Path, content_range: str, body: bytes | None, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    fields = [("Content-Range", content_range)] if content_range else []
    app = naming("X-Sendfile", f"{files}/data.bin", "206 Partial Content", fields)
    response = stage.ask(app, "Range: bytes=5-9", method=method)
    if body is None:
        assert response.status == 500
        assert "the Content-Range of the app's 206 is no part of the 300000 bytes" in errors(caplog)[0]
    else:
        assert (response.status, response.header("Content-Range")) == (206, content_range)
        assert response.header("Content-Length") == str(len(body))
        assert response.body == (b"" if method == "HEAD" else body)


def test_a_line_end_in_another_field_is_500(stage: Stage, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = [("Content-Disposition", 'attachment; filename="a\r\nSet-Cookie: x"')]
    for name in ("small.txt", "data.bin"):
        response = stage.ask(naming("X-Sendfile", f"{files}/{name}", fields=fields))
        assert (response.status, response.header("Set-Cookie")) == (500, None)
    assert "a header holds a CR, LF or NUL" in errors(caplog)[0]
    assert not [path for path in open_paths() if path.startswith(str(files))]


def test_an_app_may_name_what_clients_can_have_anyway(stage: Stage, files: Path) -> None:
    for name, value in (("X-Sendfile", f"{files}/data.bin"), ("X-Accel-Redirect", "/public/data.bin?a=b")):
        assert stage.ask(naming(name, value)).body == DATA


# --- the connection behind it ---


@dataclass
class Site:
    """An app that has its files sent in all ways, and is asked for something else meanwhile."""

    files: Path
    calls: list[str] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        _, how, name = environ["PATH_INFO"].split("/")
        self.calls.append(how)
        if how == "hello":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [f"hello {name}".encode()]
        if how == "wrapped":
            file = (self.files / name).open("rb")
            start_response("200 OK", [("Content-Type", "application/octet-stream")])
            return environ["wsgi.file_wrapper"](file)
        fields = {
            "sendfile": ("X-Sendfile", f"{self.files}/{name}"),
            "accel": ("X-Accel-Redirect", f"/internal/{name}"),
        }
        start_response("200 OK", [fields[how]])
        return []


WAYS = ["wrapped", "sendfile", "accel"]


def at_rest(running: Running) -> int:
    """Return how many descriptors there are when everything has begun and nobody is served."""
    with running.connect() as client:
        assert client.get("/hello/you").body == b"hello you"
    eventually(lambda: not running.server._loop.connections)
    turned = threading.Event()
    running.server._loop.post(lambda _now: turned.set())
    assert turned.wait(PATIENCE_S), "a connection is in no list any more just before its descriptor is closed"
    return open_descriptors()


def test_requests_behind_a_file_are_answered_in_order(files: Path) -> None:
    targets = [f"/{how}/{name}" for how in WAYS for name in ("data.bin", "small.txt", "empty.txt")]
    targets = [target for one in targets for target in (one, "/hello/you")]
    with serving(Site(files), static=roots(files)) as running, running.connect() as client:
        for _ in range(3):
            client.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for target in targets))
            for target in targets:
                _, how, name = target.split("/")
                expected = b"hello you" if how == "hello" else (files / name).read_bytes()
                assert client.response().body == expected
        entries = running.log.wait_for(3 * len(targets))
        assert [entry.target for entry in entries] == targets * 3


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["small.txt", "data.bin"])
@pytest.mark.parametrize("keep", [True, False])
def test_http_1_0(files: Path, how: str, name: str, keep: bool) -> None:
    with serving(Site(files), static=roots(files)) as running, running.connect() as client:
        extra = ["Connection: keep-alive"] if keep else []
        for _ in range(2 if keep else 1):
            response = client.get(f"/{how}/{name}", *extra, version="1.0")
            assert response.body == (files / name).read_bytes()
            assert response.header("Connection") == ("keep-alive" if keep else "close")
        if not keep:
            assert client.receive_all() == b""


@pytest.mark.parametrize("how", WAYS)
def test_the_worker_is_free_while_a_client_reads(tmp_path: Path, how: str) -> None:
    """Three clients that read nothing, one thread; the files are removed under them, and each is sent to its end."""
    contents = {"0.bin": HUGE, "1.bin": HUGEST, "2.bin": HUGEST}
    names = list(contents)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with serving(Site(tmp_path), static=roots(tmp_path), threads=1) as running, contextlib.ExitStack() as stack:
        before = at_rest(running)
        slow = [stack.enter_context(slow_client(running)) for _ in names]
        for client, name in zip(slow, names, strict=True):
            client.send(f"GET /{how}/{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert b"Content-Length: %d\r\n" % len(contents[name]) in client.receive_until(b"\r\n\r\n")
            (tmp_path / name).unlink()
        with running.connect() as other:
            assert [other.get(f"/hello/{number}").body for number in range(20)] == [
                f"hello {number}".encode() for number in range(20)
            ]
            assert other.get(f"/{how}/{names[0]}").status in (404, 500)  # gone for others
        for client, name in zip(slow[:-1], names, strict=False):
            hurry(client)
            assert client.receive_exactly(len(contents[name])) == contents[name]
            client.socket.close()
        slow[-1].reset()  # this one has had enough
        eventually(lambda: open_descriptors() == before)
        entries = [entry for entry in running.log.wait_for(25) if entry.target.startswith(f"/{how}/")]
        sent = {entry.target[-5:]: entry for entry in entries if entry.status == 200}
        assert [sent[name].refusal for name in names] == ["", "", "client_disconnected"]
        for name in names[:-1]:
            assert len(contents[name]) < sent[name].bytes_sent < len(contents[name]) + 1000
        assert sent[names[-1]].bytes_sent < len(HUGEST)


def test_the_deadline_of_apps_is_not_that_of_downloads(files: Path) -> None:
    with (
        serving(Site(files), static=roots(files), threads=1, timeouts_app=0.2, timeouts_interrupt=0.1) as running,
        contextlib.ExitStack() as stack,
    ):
        slow = [stack.enter_context(slow_client(running)) for _ in WAYS]
        for client, how in zip(slow, WAYS, strict=True):
            client.send(f"GET /{how}/huge.bin HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            client.receive_until(b"\r\n\r\n")
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            with running.connect() as other:
                assert other.get("/hello/you").body == b"hello you"
        for client, how in zip(slow, WAYS, strict=True):
            hurry(client)
            assert client.receive_exactly(len(HUGE)) == HUGE, how
        assert {entry.refusal for entry in running.log.wait_for(1 + len(WAYS))} == {""}


def test_a_client_that_reads_nothing_at_all_is_cut(files: Path) -> None:
    with serving(Site(files), static=roots(files), threads=1, timeouts_response=0.3) as running:
        before = at_rest(running)
        with contextlib.ExitStack() as stack:
            for how in WAYS:
                client = stack.enter_context(slow_client(running))
                client.send(f"GET /{how}/huge.bin HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            _, *entries = running.log.wait_for(1 + len(WAYS))
        assert {entry.target for entry in entries} == {f"/{how}/huge.bin" for how in WAYS}
        for entry in entries:
            assert (entry.status, entry.refusal) == (200, "response_deadline"), entry.target
            assert 0 < entry.bytes_sent < len(HUGE), entry.target
        eventually(lambda: open_descriptors() == before)


@pytest.mark.parametrize("how", WAYS)
def test_a_stop_waits_for_a_download(files: Path, how: str) -> None:
    with serving(Site(files), static=roots(files)) as running:
        with slow_client(running) as client:
            client.send(f"GET /{how}/huge.bin HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            client.receive_until(b"\r\n\r\n")
            running.server.stop()
            eventually(lambda: running.server._loop._ctx.draining)
            hurry(client)
            assert client.receive_exactly(len(HUGE)) == HUGE
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]
        assert running.log.entries[0].refusal == ""


@pytest.mark.parametrize("how", WAYS)
def test_a_stop_does_not_wait_for_ever(files: Path, how: str) -> None:
    before = open_descriptors()
    with serving(Site(files), static=roots(files), drain=0.2) as running:
        with slow_client(running) as client:
            client.send(f"GET /{how}/huge.bin HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            client.receive_until(b"\r\n\r\n")
            assert running.stop() == 0
            assert len(receive_what_comes(client)) < len(HUGE)
        (entry,) = running.log.wait_for(1)
        assert entry.status == 200
        assert entry.refusal
        assert entry.bytes_sent < len(HUGE)
    assert open_descriptors() == before


@pytest.mark.parametrize("x_sendfile", [False, True])
def test_the_worker_is_free_while_a_client_reads_a_part(files: Path, x_sendfile: bool) -> None:
    """As browsers ask for videos, and curl goes on with what was broken off."""
    app = flask_app(files, x_sendfile=x_sendfile)
    with serving(app, static=roots(files), threads=1) as running, slow_client(running) as client:
        client.send(b"GET /file/huge.bin HTTP/1.1\r\nHost: a\r\nRange: bytes=5-\r\n\r\n")
        assert b"Content-Length: %d\r\n" % (len(HUGE) - 5) in client.receive_until(b"\r\n\r\n")
        with running.connect() as other:
            assert other.get("/file/small.txt").body == SMALL
        hurry(client)
        assert client.receive_exactly(len(HUGE) - 5) == HUGE[5:]
        client.send(b"GET /file/small.txt HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response().body == SMALL


# --- logs and rates ---


@pytest.mark.parametrize(
    ("value", "fields", "status", "reason"),
    [
        pytest.param("/internal/data.bin", [], 200, "", id="a file"),
        pytest.param("/internal/small.txt", [], 200, "", id="a small file"),
        pytest.param("/internal/data.bin", ["Range: bytes=0-9"], 206, "", id="a part"),
        pytest.param("/internal/data.bin", ["Range: bytes=0-9,1000-250000"], 206, "", id="parts"),
        pytest.param("/internal/data.bin", ["If-None-Match: *"], 304, "", id="what a client has"),
        pytest.param("/internal/nothing", [], 404, "file_not_found", id="nothing"),
        pytest.param("/internal/data.bin", ["If-Match: x"], 412, "precondition_failed", id="a condition"),
        pytest.param("/internal/data.bin", ["Range: bytes=300000-"], 416, "range_not_satisfiable", id="no part"),
        pytest.param("/nowhere/data.bin", [], 500, "app_failed", id="what is in no mount"),
    ],
)
def test_each_is_logged_and_counted_as_what_it_came_to(
    files: Path, value: str, fields: list[str], status: int, reason: str
) -> None:
    app = naming("X-Accel-Redirect", value)
    rule = {"limit": "2/hour", "status": [status], "strategy": "fixed-window"}
    with serving(app, static=roots(files), rate_limit=[rule]) as running:
        request = "\r\n".join(["GET / HTTP/1.1", "Host: a", *fields, "", ""]).encode()
        answers = [running.exchange(request) for _ in range(3)]
        assert [int(answer.split()[1]) for answer in answers] == [status, status, 429]
        entries = running.log.wait_for(3)
        assert [(entry.status, entry.refusal) for entry in entries[:2]] == [(status, reason)] * 2
        assert [entry.bytes_sent for entry in entries] == [len(answer) for answer in answers]


@pytest.mark.parametrize("name", ["small.txt", "data.bin"])
def test_an_unfit_head_is_counted_once(files: Path, name: str) -> None:
    app = naming("X-Sendfile", f"{files}/{name}", fields=[("X-A", "b\nc")])
    rule = {"limit": "2/hour", "status": [200], "strategy": "fixed-window"}
    with serving(app, static=roots(files), rate_limit=[rule]) as running, running.connect() as client:
        assert [client.get("/").status for _ in range(4)] == [500] * 4


# --- races ---


def test_clients_that_come_and_go_leave_nothing_behind(files: Path) -> None:
    """Whole, in part, cut off and pipelined, while threads take turns at every bytecode."""

    def visit(running: Running, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(12):
            with running.connect() as client:
                visit_once(client, chance)

    def visit_once(client: Client, chance: random.Random) -> None:
        targets = [f"/{chance.choice(WAYS)}/{chance.choice(['data.bin', 'small.txt', 'empty.txt'])}" for _ in range(4)]
        client.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for target in targets))
        end = chance.choice(["read", "read", "reset", "half", "shutdown"])
        if end == "reset":
            client.reset()
        elif end == "half":
            client.receive_exactly(chance.randrange(1, 1000))
        else:
            if end == "shutdown":
                client.shutdown_write()
            for target in targets:
                response = client.response()
                assert response.body == (files / target.split("/")[2]).read_bytes(), target

    with serving(Site(files), static=roots(files), threads=3) as running:
        before = at_rest(running)
        with switching_often(), ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda seed: visit(running, seed), range(6)))  # raises what one of them has
        eventually(lambda: open_descriptors() == before)
        with running.connect() as client:
            assert client.get("/wrapped/data.bin").body == DATA
        assert all(entry.status == 200 for entry in running.log.entries if not entry.refusal)
