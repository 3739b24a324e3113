"""The slow file system itself: it mirrors, it waits when it is told to, and nothing of it stays."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slowfs import SlowFilesystem, Unavailable, make_cold, slow_filesystem

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 10.0
CONTENT = bytes(range(256)) * 2000  # half a megabyte, no two of its blocks alike to a wrong offset


@dataclass
class Disk:
    source: Path
    fs: SlowFilesystem

    @property
    def root(self) -> Path:
        return self.fs.mountpoint


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    source, mountpoint = tmp_path / "source", tmp_path / "mounted"
    (source / "deep" / "er").mkdir(parents=True)
    mountpoint.mkdir()
    (source / "file").write_bytes(CONTENT)
    (source / "empty").touch()
    (source / "deep" / "er" / "fïle").write_text("far down")
    (source / "link").symlink_to("deep/er")
    return source, mountpoint


@pytest.fixture
def disk(directories: tuple[Path, Path]) -> Iterator[Disk]:
    try:
        with slow_filesystem(*directories) as fs:
            yield Disk(directories[0], fs)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def aside() -> Iterator[Callable[..., Future[bytes]]]:
    """What is called beside the test, for it may wait. It is through when the disk has gone, so ask for `disk` too."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def is_mounted(mountpoint: Path) -> bool:
    # Not os.path.ismount: it says no of a mount that answers with an error.
    return any(line.split()[1] == str(mountpoint) for line in Path("/proc/self/mounts").read_text().splitlines())


# --- a mirror ---


def test_it_holds_what_the_directory_holds(disk: Disk) -> None:
    assert sorted(path.name for path in disk.root.iterdir()) == ["deep", "empty", "file", "link"]
    assert (disk.root / "file").read_bytes() == CONTENT
    assert (disk.root / "empty").read_bytes() == b""
    assert (disk.root / "link" / "fïle").read_text() == "far down"
    assert os.readlink(disk.root / "link") == "deep/er"
    assert os.statvfs(disk.root).f_namemax == os.statvfs(disk.source).f_namemax


@pytest.mark.parametrize("name", ["file", "deep", "link", "."])
def test_the_status_is_that_of_what_it_mirrors(disk: Disk, name: str) -> None:
    def status(root: Path) -> list[int]:
        found = (root / name).lstat()
        return [found.st_mode, found.st_size, found.st_mtime_ns, found.st_uid, found.st_ino if name != "." else 0]

    assert status(disk.root) == status(disk.source)


def test_ranges_are_read_from_where_they_are(disk: Disk) -> None:
    with (disk.root / "file").open("rb") as file:
        assert os.pread(file.fileno(), 1000, 123_457) == CONTENT[123_457:124_457]
        assert os.pread(file.fileno(), 1000, len(CONTENT) - 10) == CONTENT[-10:]
        assert os.pread(file.fileno(), 1000, len(CONTENT)) == b""


def test_a_directory_of_thousands_is_listed_whole(disk: Disk) -> None:
    names = {f"{number:05}-{'x' * (number % 200)}" for number in range(3000)}
    many = disk.source / "many"
    many.mkdir()
    for name in names:
        (many / name).touch()
    assert {entry.name for entry in os.scandir(disk.root / "many") if entry.is_file()} == names


@pytest.mark.parametrize(
    ("attempt", "number"),
    [
        pytest.param(lambda root: (root / "nothing").read_bytes(), errno.ENOENT, id="what is not there"),
        pytest.param(lambda root: (root / "file" / "x").read_bytes(), errno.ENOTDIR, id="a file is no directory"),
        pytest.param(lambda root: (root / "file").write_bytes(b""), errno.EROFS, id="writing"),
        pytest.param(lambda root: (root / "new").touch(), errno.EROFS, id="making a file"),
        pytest.param(lambda root: (root / "empty").unlink(), errno.EROFS, id="removing a file"),
    ],
)
def test_what_a_disk_refuses_it_refuses(disk: Disk, attempt: Callable[[Path], object], number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        attempt(disk.root)


def test_a_file_that_is_replaced_is_seen_at_the_next_open_and_the_open_one_stays(disk: Disk) -> None:
    with (disk.root / "file").open("rb") as file:
        (disk.source / "new").write_bytes(b"another")
        (disk.source / "new").replace(disk.source / "file")
        assert (disk.root / "file").read_bytes() == b"another"
        assert file.read() == CONTENT
        assert os.fstat(file.fileno()).st_size == len(CONTENT)


# --- slow ---


def test_a_read_takes_as_long_as_it_is_told_and_the_rest_does_not(disk: Disk) -> None:
    disk.fs.delay(read_s=0.15)
    opening_s = []
    for _ in range(5):  # a busy machine delays some of them
        began = time.monotonic()
        with (disk.root / "empty").open("rb"):
            opened = time.monotonic()
        opening_s.append(opened - began)
    assert min(opening_s) < 0.15
    opened = time.monotonic()
    assert (disk.root / "deep/er/fïle").read_text() == "far down"
    assert time.monotonic() - opened >= 0.15


@pytest.mark.parametrize("operation", ["lookup", "open"])
def test_names_and_opening_can_take_long_too(disk: Disk, operation: str) -> None:
    disk.fs.delay(**{f"{operation}_s": 0.1})
    began = time.monotonic()
    with (disk.root / "empty").open("rb"):
        assert time.monotonic() - began >= 0.1


def test_delays_run_beside_each_other(disk: Disk, aside: Callable[..., Future[bytes]]) -> None:
    disk.fs.delay(open_s=0.3)
    began = time.monotonic()
    reads = [aside((disk.root / name).read_bytes) for name in ("file", "empty", "deep/er/fïle") * 2]
    for read in reads:
        read.result(PATIENCE_S)
    assert 0.3 <= time.monotonic() - began < 6 * 0.3


def test_a_read_is_held_until_it_is_released(disk: Disk, aside: Callable[..., Future[bytes]]) -> None:
    disk.fs.hold()
    assert disk.fs.waiting() == 0
    first, second = aside((disk.root / "deep/er/fïle").read_bytes), aside((disk.root / "file").read_bytes)
    disk.fs.wait_until_held(2)
    assert disk.fs.waiting() >= 2
    assert not first.done()
    assert not second.done()
    disk.fs.release()
    assert first.result(PATIENCE_S) == b"far down"
    assert second.result(PATIENCE_S) == CONTENT
    assert disk.fs.waiting() == 0


@pytest.mark.parametrize("operation", ["lookup", "open"])
def test_names_and_opening_can_be_held_too(disk: Disk, aside: Callable[..., Future[bytes]], operation: str) -> None:
    disk.fs.hold(operation)
    # Two names in one directory are looked up beside each other.
    reads = [aside((disk.root / name).read_bytes) for name in ("file", "empty")]
    disk.fs.wait_until_held(2)
    assert not any(read.done() for read in reads)
    disk.fs.release()
    assert [read.result(PATIENCE_S) for read in reads] == [CONTENT, b""]


def test_only_what_can_be_held_is_taken_for_it(disk: Disk) -> None:
    with pytest.raises(ValueError, match="write"):
        disk.fs.hold("write")


def test_what_was_held_reads_what_is_there_when_it_is_released(disk: Disk, aside: Callable[..., Future[bytes]]) -> None:
    disk.fs.hold()
    read = aside((disk.root / "deep/er/fïle").read_bytes)
    disk.fs.wait_until_held()
    (disk.source / "deep/er/fïle").write_text("farther!")
    disk.fs.release()
    assert read.result(PATIENCE_S) == b"farther!"


def test_a_disk_that_fails_is_an_error_of_the_read_until_it_is_well(disk: Disk) -> None:
    disk.fs.fail()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (disk.root / "file").read_bytes()
    disk.fs.fail(0)
    assert (disk.root / "file").read_bytes() == CONTENT


def test_every_open_is_cold_unless_it_remembers(directories: tuple[Path, Path], disk: Disk) -> None:
    reads = []
    for _ in range(2):
        assert (disk.root / "file").read_bytes() == CONTENT
        reads.append(disk.fs.count("read"))
    assert reads[1] == 2 * reads[0]
    other = directories[1].with_name("remembered")
    other.mkdir()
    with slow_filesystem(directories[0], other, remembers=True) as fs:
        assert (other / "file").read_bytes() == CONTENT
        reads = [fs.count("read"), fs.count("lookup")]
        assert (other / "file").read_bytes() == CONTENT
        assert [fs.count("read"), fs.count("lookup")] == reads


# --- what servers lean on ---


def test_a_read_that_may_not_wait_is_not_supported_even_when_the_file_is_in_memory(disk: Disk) -> None:
    with (disk.root / "file").open("rb", buffering=0) as file:
        assert file.read(10) == CONTENT[:10]
        with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            os.preadv(file.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT)


def test_sendfile_waits_for_the_disk_although_the_socket_does_not_wait(
    disk: Disk, aside: Callable[..., Future[int]]
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, (disk.root / "file").open("rb") as file:
        ours.setblocking(False)
        disk.fs.hold()
        sent = aside(os.sendfile, ours.fileno(), file.fileno(), 0, 4096)
        disk.fs.wait_until_held()
        assert not sent.done()
        disk.fs.release()
        assert sent.result(PATIENCE_S) == 4096
        assert theirs.recv(8192) == CONTENT[:4096]


def test_a_file_on_a_disk_can_be_made_cold(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert path.read_bytes() == CONTENT
    try:
        make_cold(path)
    except Unavailable as reason:
        pytest.skip(str(reason))
    with path.open("rb") as file:
        with pytest.raises(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT)
        assert file.read() == CONTENT


# --- nothing stays ---


def test_the_mount_is_there_with_the_block_and_gone_after_it(directories: tuple[Path, Path]) -> None:
    try:
        with slow_filesystem(*directories) as fs:
            assert is_mounted(directories[1])
            assert repr(fs) == f"<SlowFilesystem {directories[1]} running>"
            open_one = os.open(directories[1] / "file", os.O_RDONLY)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert not is_mounted(directories[1]), "a file that is still open keeps the mount"
    assert list(directories[1].iterdir()) == []
    with contextlib.suppress(OSError):  # as on a network disk, closing may say that the other side has gone
        os.close(open_one)
    assert repr(fs).endswith(" ended>")


def test_the_end_of_the_block_fails_what_is_still_held(
    directories: tuple[Path, Path], aside: Callable[..., Future[bytes]]
) -> None:
    try:
        with slow_filesystem(*directories) as fs:
            fs.hold()
            read = aside((directories[1] / "file").read_bytes)
            fs.wait_until_held()
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert isinstance(read.exception(PATIENCE_S), OSError)


def test_killed_it_fails_what_is_held_and_what_comes(disk: Disk, aside: Callable[..., Future[bytes]]) -> None:
    disk.fs.hold()
    read = aside((disk.root / "file").read_bytes)
    disk.fs.wait_until_held()
    disk.fs.kill()
    assert isinstance(read.exception(PATIENCE_S), OSError)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        (disk.root / "file").read_bytes()
    with pytest.raises(BrokenPipeError):
        disk.fs.waiting()


def test_it_ends_with_the_process_that_started_it(directories: tuple[Path, Path], disk: Disk) -> None:
    other = directories[1].with_name("other")
    other.mkdir()
    # It holds a read that nobody will release, and is killed without a word.
    code = f"""
import os, pathlib, signal, threading
from tests.slowfs import slow_filesystem
with slow_filesystem(pathlib.Path({str(directories[0])!r}), pathlib.Path({str(other)!r})) as fs:
    fs.hold()
    threading.Thread(target=(fs.mountpoint / "file").read_bytes, daemon=True).start()
    fs.wait_until_held()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with Path("/proc/self/mounts").open("rb") as mounts:
        changes = select.poll()
        changes.register(mounts, select.POLLPRI)
        ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=PATIENCE_S, check=False)
        assert ended.returncode == -signal.SIGKILL
        limit = time.monotonic() + PATIENCE_S
        while is_mounted(other):
            assert time.monotonic() < limit, "it is still mounted"
            changes.poll(100)


def test_where_it_cannot_be_mounted_that_is_said(directories: tuple[Path, Path]) -> None:
    with pytest.raises(Unavailable, match="no FUSE"), slow_filesystem(directories[0], directories[1] / "nowhere"):
        pass
    assert not is_mounted(directories[1] / "nowhere")


def test_an_answer_that_does_not_come_ends_it(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.slowfs.ANSWER_LIMIT_S", 0.1)
    with pytest.raises(TimeoutError):
        disk.fs.wait_until_held(1)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        (disk.root / "file").read_bytes()
