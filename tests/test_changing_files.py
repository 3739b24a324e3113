"""Files that change while they are asked for: whoever gets a whole response gets one version of the file.

Each version says in every line which one it is, and where in it the line stands. So a response shows by itself whether
it is all of one version, and the entity tag that came with one version must never come with another one
(RFC 9110 8.8.1).
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from tests.apps.plain import application as app
from tests.support import PATIENCE_S, Client, Response, Running, serving, switching_often

LASTS_S = 1.0
CLIENTS = 4
LINE_BYTES = 16
SMALL = 512  # lines, 8 KiB: kept in memory
LARGE = 65536  # 1 MiB: sent by the kernel
CHECK_S = 0.005
# Two changes are never in the same tick of a file system's clock, which tags are made of.
PAUSE_S = 0.012


@cache
def _lines(count: int) -> bytes:
    return b"".join(b"version %07d\n" % line for line in range(count))


def content(version: int, lines: int) -> bytes:
    return _lines(lines).replace(b"version", b"%07d" % version)


def version_of(body: bytes, first_line: int = 0) -> int:
    """Return which version `body` is a part of, from the start of a line on. Raises ValueError if it is of several."""
    version = int(body[:7])
    start = first_line * LINE_BYTES
    expected = content(version, LARGE + 10)[start : start + len(body)]
    if body != expected:
        at = next(at for at, (one, other) in enumerate(zip(body, expected, strict=True)) if one != other)
        versions = sorted(set(re.findall(rb"^[0-9]{7}(?= )", body, re.MULTILINE)))
        raise ValueError(f"of {versions}; at {at} of {len(body)}: {body[at - 8 : at + 24]!r}")
    return version


# --- who changes it ---


def by_rename(path: Path, version: int, lines: int) -> None:
    """As a deploy does it that takes care."""
    part = path.with_name(".part")
    part.write_bytes(content(version, lines + version % 7))
    part.replace(path)


def by_rename_with_gzip(path: Path, version: int, lines: int) -> None:
    """As a build does it: what is older than the file itself is not sent in its place."""
    by_rename(path, version, lines)
    part = path.with_name(".part")
    part.write_bytes(gzip.compress(content(version, lines + version % 7), 1))
    part.replace(path.with_name(f"{path.name}.gz"))


def in_place(path: Path, version: int, lines: int) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(content(version, lines))


def from_nothing(path: Path, version: int, lines: int) -> None:
    """As a shell does it. Whoever looks in between sees the beginning of a version."""
    with path.open("wb", buffering=0) as file:
        file.write(content(version, lines + version % 7))


def removed_first(path: Path, version: int, lines: int) -> None:
    path.unlink()
    from_nothing(path, version, lines)


def cut_short_first(path: Path, version: int, lines: int) -> None:
    os.truncate(path, path.stat().st_size // 2 // LINE_BYTES * LINE_BYTES)
    time.sleep(PAUSE_S)  # for somebody to see it
    by_rename(path, version, lines)


Change = Callable[[Path, int, int], None]


# --- who asks for it ---


@dataclass
class Seen:
    """What the clients were given."""

    outcomes: Counter[str] = field(default_factory=Counter)
    versions: dict[str, set[int]] = field(default_factory=dict)  # by entity tag
    mixed: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, etag: str | None = None, version: int = -1) -> None:
        with self._lock:
            self.outcomes[outcome] += 1
            if etag is not None:
                self.versions.setdefault(etag, set()).add(version)

    @property
    def ambiguous(self) -> dict[str, set[int]]:
        return {etag: versions for etag, versions in self.versions.items() if len(versions) > 1}


class Reader:
    """Asks for a file in all ways, again and again, on connections that are kept as long as the server keeps them."""

    def __init__(self, running: Running, seen: Seen, lines: int, seed: int) -> None:
        self._running = running
        self._seen = seen
        self._lines = lines
        self._chance = random.Random(seed)
        self._etag = '"none"'

    def read(self, ended: threading.Event) -> None:
        while not ended.is_set():
            with self._running.connect() as client:
                try:
                    while not ended.is_set():
                        way, start, fields = self._way()
                        response = client.get("/files/file.txt", *fields)
                        try:
                            self._judge(way, start, response)
                        except ValueError as error:
                            self._seen.mixed.append(f"{way} {response.status}: {error}")
                        self._etag = response.header("ETag") or self._etag
                        if response.header("Connection") == "close":
                            break
                except (EOFError, ConnectionError):
                    self._seen.add("cut")

    def _way(self) -> tuple[str, int, tuple[str, ...]]:
        way = self._chance.choice(("whole", "whole", "gzip", "part", "rest", "if changed"))
        start = self._chance.randrange(self._lines)
        first, last = start * LINE_BYTES, self._chance.randrange(start, self._lines) * LINE_BYTES + LINE_BYTES - 1
        fields = {
            "gzip": ("Accept-Encoding: gzip",),
            "part": (f"Range: bytes={first}-{last}",),
            "rest": (f"Range: bytes={first}-", f"If-Range: {self._etag}"),
            "if changed": (f"If-None-Match: {self._etag}",),
        }
        return way, start, fields.get(way, ())

    def _judge(self, way: str, start: int, response: Response) -> None:
        status, etag, body = response.status, response.header("ETag"), response.body
        if status == 200:
            if response.header("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
                way = "decompressed"
            self._seen.add(f"200 {way}", etag, version_of(body) if body else -1)
        elif status == 206:
            first, last, size = map(int, re.findall(r"\d+", response.header("Content-Range") or ""))
            assert first == start * LINE_BYTES
            assert len(body) == last + 1 - first
            assert last < size
            assert way == "part" or etag == self._etag
            self._seen.add(f"206 {way}", etag, version_of(body, start))
        elif status == 304:
            assert way == "if changed"
            assert etag == self._etag
            self._seen.add("304")
        else:
            assert status in (404, 416, 503), response
            self._seen.add(str(status))


def read_while_it_changes(path: Path, change: Change, lines: int, **settings: object) -> Seen:
    """Have several clients read `path` while it is changed again and again; return what they saw."""
    seen = Seen()
    ended = threading.Event()
    path.write_bytes(content(0, lines))
    static = [f"/files={path.parent}"]
    with (
        serving(app, static=static, files_check=CHECK_S, **settings) as running,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        readers = [Reader(running, seen, lines, seed) for seed in range(CLIENTS)]
        reading = [pool.submit(reader.read, ended) for reader in readers]
        try:
            with switching_often():
                until = time.monotonic() + LASTS_S
                version = 0
                while time.monotonic() < until:
                    version += 1
                    change(path, version, lines)
                    time.sleep(PAUSE_S)
        finally:
            ended.set()
        for each in reading:
            each.result()
        # And at the end of it everybody is given the last version.
        time.sleep(2 * CHECK_S)
        with running.connect() as client:
            client.get("/files/file.txt")
            assert version_of(client.get("/files/file.txt").body) == version
    print(version, dict(seen.outcomes), len(seen.versions), len(seen.mixed), len(seen.ambiguous))
    return seen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.txt"


SIZES = pytest.mark.parametrize("lines", [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large")])


@SIZES
@pytest.mark.parametrize("change", [by_rename, by_rename_with_gzip], ids=lambda change: change.__name__)
def test_a_file_that_is_replaced_by_rename_is_always_there_in_one_version(
    path: Path, change: Change, lines: int
) -> None:
    seen = read_while_it_changes(path, change, lines)
    assert seen.mixed == []
    assert seen.ambiguous == {}
    assert seen.outcomes["cut"] == 0
    assert seen.outcomes["404"] + seen.outcomes["503"] == 0
    assert len(seen.versions) > 5


@SIZES
@pytest.mark.parametrize("change", [from_nothing, removed_first], ids=lambda change: change.__name__)
def test_a_file_that_is_written_anew_comes_in_one_version(path: Path, change: Change, lines: int) -> None:
    seen = read_while_it_changes(path, change, lines)
    assert seen.mixed == []
    assert seen.ambiguous == {}
    assert len(seen.versions) > 5


@pytest.mark.parametrize("change", [in_place, cut_short_first], ids=lambda change: change.__name__)
def test_a_small_file_that_is_written_over_comes_in_one_version(path: Path, change: Change) -> None:
    seen = read_while_it_changes(path, change, SMALL)
    assert seen.mixed == []
    assert seen.ambiguous == {}
    assert len(seen.versions) > 5


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("change", [in_place, cut_short_first], ids=lambda change: change.__name__)
def test_a_large_file_that_is_written_over_is_cut_or_of_the_length_that_was_said(path: Path, change: Change) -> None:
    """What has left by sendfile and is still in the kernel's buffers is the file itself: nobody can keep it as it was.

    So what the client reads of it may be what was written there since. That is what renaming is for.
    """
    seen = read_while_it_changes(path, change, LARGE)
    assert seen.outcomes["cut"] > 0
    assert sum(count for outcome, count in seen.outcomes.items() if outcome.startswith("20")) > 5


# --- one change, while a response is on its way ---


# More than the buffers of two sockets take, so that a response is under way until somebody reads it.
LONG_BYTES = 24 << 20


def receive(client: Client, count: int = LONG_BYTES) -> bytes:
    """Return up to `count` bytes, fewer if the connection ends."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while len(data) < count and (more := client.socket.recv(1 << 20)):
            data += more
    return bytes(data)


def begin(client: Client) -> bytes:
    """Ask for the file; return the head of the response."""
    client.send(b"GET /files/file.txt HTTP/1.1\r\nHost: test\r\n\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.socket.recv(1)
    return head


@pytest.fixture(scope="module")
def large_content() -> bytes:
    return random.Random(1).randbytes(1 << 20) * (LONG_BYTES >> 20)


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda path: os.truncate(path, 5 << 20), "truncated", id="truncated"),
        pytest.param(lambda path: os.truncate(path, 0), "truncated", id="emptied"),
        pytest.param(lambda path: path.write_bytes(b"shorter"), "truncated", id="written anew, shorter"),
        pytest.param(lambda path: in_place(path, 1, 10), "changed", id="written over at its start"),
        pytest.param(lambda path: os.truncate(path, LONG_BYTES + 1), "changed", id="made longer"),
    ],
)
def test_a_response_is_cut_when_its_file_is_not_the_same_any_more(
    path: Path, large_content: bytes, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None], said: str
) -> None:
    path.write_bytes(large_content)
    with serving(app, static=[f"/files={path.parent}"], files_check=0) as running, running.connect() as client:
        head = begin(client)
        assert b"\r\nContent-Length: %d\r\n" % len(large_content) in head
        change(path)
        assert len(receive(client)) < len(large_content)
        (entry,) = running.log.wait_for(1)
        assert (entry.status, entry.refusal) == (200, "file_changed")
        assert entry.bytes_sent < len(head) + len(large_content)
        assert [record.getMessage() for record in caplog.records if record.name == "hardserve.edge"] == [
            f"a response was cut: /files/file.txt was {said} while it was sent"
        ]
        # And what is there now is served.
        with running.connect() as other:
            assert b"\r\nContent-Length: %d\r\n" % path.stat().st_size in begin(other)
            assert receive(other, path.stat().st_size) == path.read_bytes()


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(Path.unlink, id="removed"),
        pytest.param(lambda path: by_rename(path, 1, 10), id="replaced"),
        pytest.param(lambda path: path.rename(path.with_name("other")), id="renamed"),
    ],
)
def test_a_response_goes_on_to_its_end_with_a_file_that_has_another_name_or_none(
    path: Path, large_content: bytes, change: Callable[[Path], None]
) -> None:
    path.write_bytes(large_content)
    with serving(app, static=[f"/files={path.parent}"]) as running, running.connect() as client:
        begin(client)
        change(path)
        assert receive(client) == large_content
        # The same connection goes on to be used.
        assert client.get("/nothing").body == b"ok"


# --- a deploy ---


def release(base: Path, number: int) -> None:
    """Deploy a release as tools do it: a directory of its own, and a link that is exchanged in one step."""
    directory = base / "releases" / str(number)
    (directory / "css").mkdir(parents=True)
    (directory / "css" / "site.css").write_bytes(content(number, SMALL))
    (directory / "large.txt").write_bytes(content(number, LARGE))
    part = base / "part"
    part.symlink_to(directory)
    part.replace(base / "current")


def test_after_a_deploy_everybody_sees_what_was_deployed(tmp_path: Path) -> None:
    targets = ("/site/css/site.css", "/site/large.txt")
    newest = dict.fromkeys(targets, 1)  # that anybody was given
    ended = threading.Event()
    release(tmp_path, 1)

    def watch(target: str) -> int:
        asked = 0
        with running.connect() as client:
            while not ended.is_set():
                at_least = newest[target]
                response = client.get(target)
                assert response.status == 200, response
                version = whole(response)
                assert version >= at_least, "what was there before has come back"
                newest[target] = max(newest[target], version)
                asked += 1
                if response.header("Connection") == "close":
                    break
        return asked

    def whole(response: Response) -> int:
        version = version_of(response.body)
        assert len(response.body) in (SMALL * LINE_BYTES, LARGE * LINE_BYTES)
        return version

    with (
        serving(app, static=[f"/site={tmp_path / 'current'}"], files_check=CHECK_S) as running,
        ThreadPoolExecutor(CLIENTS) as pool,
        running.connect() as client,
    ):
        watching = [pool.submit(watch, targets[number % 2]) for number in range(CLIENTS)]
        try:
            with switching_often():
                for number in range(2, 30):
                    release(tmp_path, number)
                    time.sleep(2 * CHECK_S)
                    for target in targets:
                        # Whoever asks while somebody looks is told what was there a moment ago, but only then.
                        until = time.monotonic() + PATIENCE_S
                        while whole(client.get(target)) != number:
                            assert time.monotonic() < until
        finally:
            ended.set()
        assert all(each.result() > 0 for each in watching)
