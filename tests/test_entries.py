"""What is found out about a path: the file, its siblings, its head; and that a change is seen."""

from __future__ import annotations

import gzip
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from hardserve import refusals
from hardserve.files.entries import (
    COMPRESS_MAX_BYTES,
    COMPRESS_MIN_BYTES,
    ENTRY_BYTES,
    Entry,
    Examiner,
    FileChangedError,
    read_whole,
    signature_of,
)
from hardserve.files.mounts import Mount, Mounts
from hardserve.files.tree import Tree
from hardserve.http.conditions import etag_of

LINES = (("x-frame-options", "X-Frame-Options: DENY"), ("content-security-policy", "Content-Security-Policy: x"))
SECOND = 1_000_000_000
TEXT = b"some text, again and again\n" * 100


def write(path: Path, content: bytes, modified: float = SECOND) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (modified, modified))
    return path


class Bench:
    """An examiner and a mount of a directory."""

    def __init__(self, directory: Path, *, compresses: bool = True, in_memory: int = 64 << 10, **options: Any) -> None:
        self.examiner = Examiner(LINES, in_memory, compresses=compresses)
        self.mounts = Mounts([Mount("/m", Tree(directory, follow_symlinks=False), **options)])

    def examine(self, path: str, old: Entry | None = None) -> Entry:
        place = self.mounts.find(path)
        assert place is not None
        return self.examiner.examine(place, path, old)


# --- what a path is ---


@pytest.mark.parametrize(
    ("path", "refusal", "withheld", "location"),
    [
        pytest.param("/m/a.txt", None, False, False, id="a file"),
        pytest.param("/m/nothing.txt", refusals.FILE_NOT_FOUND, False, False, id="nothing"),
        pytest.param("/m/a.txt/", refusals.FILE_NOT_FOUND, False, False, id="a file with a slash"),
        pytest.param("/m/a.txt/b", refusals.FILE_NOT_FOUND, False, False, id="below a file"),
        pytest.param("/m/sub", None, False, True, id="a directory without its slash"),
        pytest.param(
            "/m", refusals.FILE_NOT_FOUND, False, False, id="the mount without its slash, and without an index"
        ),
        pytest.param("/m/bare", refusals.FILE_NOT_FOUND, False, False, id="a directory without an index nor its slash"),
        pytest.param("/m/sub/", None, False, False, id="a directory with an index"),
        pytest.param("/m/bare/", refusals.FILE_NOT_FOUND, False, False, id="a directory without one"),
        pytest.param("/m/", refusals.FILE_NOT_FOUND, False, False, id="the mount without one"),
        pytest.param("/m/odd/", refusals.FILE_NOT_FOUND, False, False, id="an index that is a directory"),
        pytest.param("/m/fifo", refusals.FILE_NOT_FOUND, False, False, id="a FIFO"),
        pytest.param("/m/.env", refusals.FILE_NOT_FOUND, True, False, id="a dot file"),
        pytest.param("/m/..", refusals.FILE_NOT_FOUND, True, False, id="two dots"),
        pytest.param("/m//a.txt", refusals.FILE_NOT_FOUND, False, False, id="an empty name"),
    ],
)
def test_what_a_path_is(tmp_path: Path, path: str, refusal: object, withheld: bool, location: bool) -> None:
    for name in ("a.txt", "sub/index.html", "bare/a.txt", "odd/index.html/a.txt", ".env"):
        write(tmp_path / name, b"a")
    os.mkfifo(tmp_path / "fifo")
    entry = Bench(tmp_path).examine(path)
    assert (entry.refusal, entry.withheld, entry.location) == (refusal, withheld, location)
    assert bool(entry.representations) is (refusal is None and not location)


def test_the_one_file_of_a_mount(tmp_path: Path) -> None:
    write(tmp_path / "other.name", b"icon")
    mounts = Mounts([Mount("/favicon.ico", Tree(tmp_path, follow_symlinks=True), name=b"other.name")])
    place = mounts.find("/favicon.ico")
    assert place is not None
    entry = Examiner(LINES, 100, compresses=True).examine(place, "/favicon.ico", None)
    assert entry.representations[0].body == b"icon"
    # Its type is by the name of the file that the operator named.
    assert entry.representations[0].content_type == "application/octet-stream"


def test_the_mount_at_the_top_is_its_index(tmp_path: Path) -> None:
    write(tmp_path / "index.html", b"<p>")
    mounts = Mounts([Mount("/", Tree(tmp_path, follow_symlinks=False))])
    place = mounts.find("/")
    assert place is not None
    entry = Examiner(LINES, 100, compresses=True).examine(place, "/", None)
    assert entry.representations[0].body == b"<p>"


def test_a_mount_that_is_gone_has_nothing_and_comes_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "later")
    assert bench.examine("/m/a.txt").refusal is refusals.FILE_NOT_FOUND
    write(tmp_path / "later" / "a.txt", b"a")
    assert bench.examine("/m/a.txt").representations[0].body == b"a"


# --- what a response says ---


def test_the_beginning_of_a_head(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"hello")
    made = Bench(tmp_path).examine("/m/a.txt").representations[0]
    tag = etag_of(5, path.stat().st_mtime_ns)
    common = f"ETag: {tag}\r\nLast-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\nCache-Control: no-cache\r\n"
    assert made.ok.decode() == (
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n"
        f"{common}Accept-Ranges: bytes\r\nX-Frame-Options: DENY\r\nContent-Security-Policy: x\r\n"
    )
    assert made.not_modified.decode() == f"HTTP/1.1 304 Not Modified\r\n{common}"
    assert made.head("206 Partial Content", "Content-Length: 1").startswith(
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\nETag: "
    )


@pytest.mark.parametrize(
    ("modified", "line"),
    [
        pytest.param(SECOND + 0.9, "Last-Modified: Sun, 09 Sep 2001 01:46:40 GMT", id="a fraction of a second is cut"),
        pytest.param(time.time() + 3600, None, id="the future"),
        pytest.param(0, None, id="the beginning of time, which is no time"),
        pytest.param(-5, None, id="before the beginning of time"),
    ],
)
def test_when_a_file_was_modified(tmp_path: Path, modified: float, line: str | None) -> None:
    write(tmp_path / "a.txt", b"a", modified)
    made = Bench(tmp_path).examine("/m/a.txt").representations[0]
    lines = made.ok.decode().split("\r\n")
    assert [each for each in lines if each.startswith("Last-Modified")] == ([line] if line else [])
    assert made.validators.last_modified == (SECOND if line else 0)
    assert made.etag


def test_a_mount_without_cache_control(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"a")
    made = Bench(tmp_path, cache_control="").examine("/m/a.txt").representations[0]
    assert b"Cache-Control" not in made.ok + made.not_modified


def test_a_listing_has_a_policy_of_its_own_and_no_version(tmp_path: Path) -> None:
    write(tmp_path / "<a>.txt", b"a")
    made = Bench(tmp_path, listing=True).examine("/m/").representations[0]
    assert made.ok.count(b"Content-Security-Policy") == 1
    assert b"Content-Security-Policy: default-src 'none'" in made.ok
    assert b"X-Frame-Options: DENY" in made.ok
    assert made.body is not None
    assert b"&lt;a&gt;.txt" in made.body
    assert made.etag == ""
    assert b"ETag" not in made.ok


# --- what is kept ---


def test_a_small_file_is_kept_and_a_large_one_is_not(tmp_path: Path) -> None:
    write(tmp_path / "small.bin", b"x" * 100)
    write(tmp_path / "large.bin", b"x" * 101)
    bench = Bench(tmp_path, in_memory=100)
    small, large = bench.examine("/m/small.bin"), bench.examine("/m/large.bin")
    assert small.representations[0].body == b"x" * 100
    assert large.representations[0].body is None
    assert large.representations[0].size == 101
    assert small.cost == ENTRY_BYTES + 100
    assert large.cost == ENTRY_BYTES


def test_an_empty_file_has_a_body_that_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", b"")
    assert Bench(tmp_path).examine("/m/a.bin").representations[0].body == b""


def test_what_has_not_changed_is_what_is_known(tmp_path: Path) -> None:
    write(tmp_path / "a.js", TEXT)
    bench = Bench(tmp_path)
    first = bench.examine("/m/a.js")
    assert bench.examine("/m/a.js", first) is first


def keep_time(path: Path, content: bytes) -> None:
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: write(path, b"other"), id="its content"),
        pytest.param(lambda path: keep_time(path, b"later"), id="its content, with the time set back"),
        pytest.param(lambda path: os.utime(path, (5, 5)), id="its time"),
        pytest.param(lambda path: os.replace(write(path.with_name("new"), b"first"), path), id="another of its kind"),
        pytest.param(lambda path: path.chmod(0o600), id="who may read it"),
        pytest.param(lambda path: write(path.with_name("a.js.gz"), b"sibling"), id="a sibling that has come"),
        pytest.param(lambda path: path.unlink(), id="that it is gone"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="that it is a directory"),
    ],
)
def test_a_change_is_seen(tmp_path: Path, change: Any) -> None:
    path = write(tmp_path / "a.js", b"first")
    bench = Bench(tmp_path)
    first = bench.examine("/m/a.js")
    wait_for_a_tick(tmp_path)
    change(path)
    assert bench.examine("/m/a.js", first) is not first


def wait_for_a_tick(directory: Path) -> None:
    """Go on when the file system's clock has: it is some milliseconds coarse."""
    probe = directory / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    until = time.monotonic() + 5
    while probe.stat().st_ctime_ns == before:
        assert time.monotonic() < until
        probe.chmod(0o600)
    probe.unlink()


def test_a_sibling_that_changes_is_a_change(tmp_path: Path) -> None:
    write(tmp_path / "a.js", b"first")
    write(tmp_path / "a.js.gz", b"one")
    bench = Bench(tmp_path)
    first = bench.examine("/m/a.js")
    write(tmp_path / "a.js.gz", b"other")
    second = bench.examine("/m/a.js", first)
    assert second is not first
    assert second.representations[1].body == b"other"
    (tmp_path / "a.js.gz").unlink()
    assert bench.examine("/m/a.js", second).codings == ()


# --- codings ---


@pytest.mark.parametrize(
    ("name", "siblings", "codings"),
    [
        pytest.param("a.js", {".gz": 0, ".br": 0, ".zst": 0}, ("br", "zstd", "gzip"), id="all of them, the best first"),
        pytest.param("a.js", {".gz": 0}, ("gzip",), id="one"),
        pytest.param("a.js", {".gz": 60}, ("gzip",), id="a newer one"),
        pytest.param("a.js", {".gz": -1}, (), id="an older one"),
        pytest.param("a.js", {".gz": -0.4}, ("gzip",), id="one whose time was cut to the second"),
        pytest.param("a.js", {".bz2": 0}, (), id="one that nobody decodes"),
        pytest.param("a.png", {".gz": 0}, (), id="one of a picture"),
        pytest.param("a.js.gz", {".gz": 0}, (), id="one of a sibling"),
    ],
)
def test_which_siblings_there_are(
    tmp_path: Path, name: str, siblings: dict[str, float], codings: tuple[str, ...]
) -> None:
    modified = SECOND + 0.5
    write(tmp_path / name, TEXT, modified)
    for suffix, age in siblings.items():
        write(tmp_path / f"{name}{suffix}", suffix.encode(), modified + age)
    entry = Bench(tmp_path).examine(f"/m/{name}")
    assert entry.codings == codings
    tags = {each.etag for each in entry.representations}
    assert len(tags) == 1 + len(codings)
    for each in entry.representations[1:]:
        assert f"Content-Encoding: {each.coding}\r\n".encode() in each.ok
        assert each.content_type == entry.representations[0].content_type
    if codings:
        assert not entry.compressible
        assert all(b"Vary: Accept-Encoding\r\n" in each.ok + each.not_modified for each in entry.representations)
        assert all(b"Vary: Accept-Encoding\r\n" in each.not_modified for each in entry.representations)


@pytest.mark.parametrize(
    ("name", "size", "compresses", "expected"),
    [
        pytest.param("a.js", COMPRESS_MIN_BYTES, True, True, id="as small as it may be"),
        pytest.param("a.js", COMPRESS_MIN_BYTES - 1, True, False, id="smaller"),
        pytest.param("a.js", COMPRESS_MAX_BYTES, True, True, id="as large as it may be"),
        pytest.param("a.js", COMPRESS_MAX_BYTES + 1, True, False, id="larger"),
        pytest.param("a.js", 5000, False, False, id="where that is off"),
        pytest.param("a.png", 5000, True, False, id="a picture"),
        pytest.param("a.svg", 5000, True, True, id="a picture that is text"),
        pytest.param("a", 5000, True, False, id="of no known type"),
    ],
)
def test_what_may_be_compressed(tmp_path: Path, name: str, size: int, compresses: bool, expected: bool) -> None:
    path = write(tmp_path / name, b"")
    os.truncate(path, size)
    entry = Bench(tmp_path, compresses=compresses).examine(f"/m/{name}")
    assert entry.compressible is expected
    assert (b"Vary: Accept-Encoding\r\n" in entry.representations[0].ok) is expected


@pytest.mark.parametrize("in_memory", [pytest.param(64 << 10, id="kept in memory"), pytest.param(10, id="read anew")])
def test_what_is_compressed(tmp_path: Path, in_memory: int) -> None:
    write(tmp_path / "a.3f2a91c4.js", TEXT)
    bench = Bench(tmp_path, in_memory=in_memory)
    entry = bench.examine("/m/a.3f2a91c4.js")
    made = bench.examiner.compressed(entry, "gzip")
    assert made is not None
    assert made.body is not None
    assert gzip.decompress(made.body) == TEXT
    assert (made.size, made.coding) == (len(made.body), "gzip")
    plain = entry.representations[0]
    assert made.etag.startswith('"')
    assert made.etag != plain.etag
    assert made.validators.last_modified == plain.validators.last_modified
    for line in ("Vary: Accept-Encoding", "Content-Encoding: gzip", "immutable", f"Content-Length: {made.size}"):
        assert line.encode() in made.ok
    before = entry.cost
    entry.representations += (made,)
    assert entry.codings == ("gzip",)
    assert entry.cost == before + made.size


def test_what_gets_hardly_smaller_is_left(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", random.Random(1).randbytes(5000))
    bench = Bench(tmp_path)
    assert bench.examiner.compressed(bench.examine("/m/a.txt"), "gzip") is None


def test_a_large_file_that_has_changed_is_not_compressed_as_what_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    bench = Bench(tmp_path, in_memory=10)
    entry = bench.examine("/m/a.txt")
    write(path, TEXT[::-1], SECOND + 1)
    with pytest.raises(FileChangedError):
        bench.examiner.compressed(entry, "gzip")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        bench.examiner.compressed(entry, "gzip")


# --- reading ---


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    tree = Tree(tmp_path, follow_symlinks=False)
    file = tree.open([b"a.txt"])
    try:
        signature = signature_of(file.stat)
        assert read_whole(file, signature) == TEXT
        with pytest.raises(FileChangedError):  # it was another one when it was looked at
            read_whole(file, (*signature[:3], signature[3] + 1))
        os.truncate(path, 10)
        with pytest.raises(FileChangedError):
            read_whole(file, signature)
        with path.open("ab") as more:
            more.write(TEXT[10:] + b"and more")
        with pytest.raises(FileChangedError):
            read_whole(file, signature)
    finally:
        file.close()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    write(tmp_path / "a.js", TEXT)
    write(tmp_path / "a.js.gz", b"sibling")
    bench = Bench(tmp_path, listing=True)
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/m/a.js", "/m/a.js.gz", "/m/", "/m", "/m/nothing", "/m/a.js/b"):
        bench.examine(path)
    entry = bench.examine("/m/a.js")
    bench.examiner.compressed(entry, "gzip")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_told_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is no reason to say that a file is not there."""
    write(tmp_path / "a.txt", b"a")
    bench = Bench(tmp_path)

    def failing(*_: object, **__: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(OSError, match="Input/output error"):
        bench.examine("/m/a.txt")
