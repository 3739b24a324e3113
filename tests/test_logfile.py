import contextlib
import errno
import os
import pty
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.ops import logfile
from hardserve.ops.logfile import Destination, LogFile, destination


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@contextlib.contextmanager
def opened(path: Path | str, *, max_bytes: int = 0, backups: int = 3) -> Iterator[LogFile]:
    file = LogFile(str(path), max_bytes=max_bytes, backups=backups)
    file.open()
    try:
        yield file
    finally:
        file.close()


@contextlib.contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """No file can grow past `size_bytes`: what a full disk looks like, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- opening ---


def test_a_new_file_is_readable_by_its_group_and_writable_by_its_owner_only(path: Path) -> None:
    umask = os.umask(0)
    try:
        with opened(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(umask)


def test_the_descriptor_appends_and_is_not_inherited(path: Path) -> None:
    path.write_text("before\n")
    with opened(path) as file:
        file.write(b"after\n")
        assert not os.get_inheritable(file.fd)
    assert path.read_text() == "before\nafter\n"


def test_a_named_pipe_that_nobody_reads_is_refused_instead_of_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device") as caught:
        LogFile(str(path)).open()
    assert caught.value.errno == errno.ENXIO


def test_a_standard_stream_is_written_through_a_descriptor_of_our_own(capfd: pytest.CaptureFixture[str]) -> None:
    with opened("stdout") as file:
        file.write(b"a line\n")
        assert file.fd > 2
    assert capfd.readouterr().out == "a line\n"


def test_a_standard_stream_that_was_closed_at_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", None)
    with pytest.raises(OSError, match="it is closed"):
        LogFile("stderr").open()


def test_a_relative_path_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = LogFile("access.log")
    monkeypatch.chdir("/")
    file.open()
    file.close()
    assert (tmp_path / "access.log").exists()


def test_a_moved_file_is_written_until_the_path_is_opened_again(path: Path, tmp_path: Path) -> None:
    moved = tmp_path / "access.log.old"
    with opened(path) as file:
        file.write(b"one\n")
        path.rename(moved)
        file.write(b"two\n")
        file.open()
        file.write(b"three\n")
    assert moved.read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"


def test_a_deleted_file_is_created_again(path: Path) -> None:
    with opened(path) as file:
        file.write(b"one\n")
        path.unlink()
        file.write(b"two\n")
    assert path.read_text() == "two\n"


def test_a_deleted_directory_fails_until_it_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    with opened(directory / "access.log") as file:
        (directory / "access.log").unlink()
        directory.rmdir()
        with pytest.raises(FileNotFoundError):
            file.write(b"one\n")
        assert file.pending_lines == 1
        directory.mkdir()
        file.flush()
    assert (directory / "access.log").read_text() == "one\n"


# --- disks that are full, pipes that are full ---


def test_a_full_device_leaves_every_line_pending(tmp_path: Path) -> None:
    link = tmp_path / "access.log"
    link.symlink_to("/dev/full")
    with opened(link) as file:
        with pytest.raises(OSError, match="No space left"):
            file.write(b"one\ntwo\n")
        assert file.pending_lines == 2
        link.unlink()
        file.open()
        file.flush()
        assert file.pending_lines == 0
    assert link.read_text() == "one\ntwo\n"


def test_a_line_cut_by_a_full_disk_is_completed_where_it_was_cut(path: Path) -> None:
    with opened(path) as file:
        with files_limited_to(6), pytest.raises(OSError, match="too large"):
            file.write(b"one\ntwo\nthree\n")
        assert path.read_text() == "one\ntw"
        assert file.pending_lines == 2
        file.open()
        file.flush()
    assert path.read_text() == "one\ntwo\nthree\n"


def test_a_line_cut_by_a_full_disk_is_whole_in_the_file_that_replaces_it(path: Path, tmp_path: Path) -> None:
    with opened(path) as file:
        with files_limited_to(6), pytest.raises(OSError, match="too large"):
            file.write(b"one\ntwo\nthree\n")
        path.rename(tmp_path / "full")
        file.open()
        file.flush()
    assert path.read_text() == "two\nthree\n"


def test_a_cut_line_is_completed_before_the_file_is_rotated(path: Path) -> None:
    with opened(path, max_bytes=8) as file:
        with files_limited_to(6), pytest.raises(OSError, match="too large"):
            file.write(b"one\ntwo\nthree\n")
        file.flush()
    assert Path(f"{path}.1").read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"


def test_a_pipe_in_non_blocking_mode_is_waited_for_and_resumed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "_WRITABLE_TIMEOUT_MS", 0)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    lines = b"".join(b"line %d\n" % number for number in range(20_000))
    got = bytearray()
    try:
        with opened(path) as file:
            pending = True
            with pytest.raises(BlockingIOError):
                file.write(lines)
            while pending:
                got += os.read(reader, 1 << 20)
                with contextlib.suppress(BlockingIOError):
                    file.flush()
                    pending = False
            got += os.read(reader, 1 << 20)
    finally:
        os.close(reader)
    assert got == lines


def test_a_pipe_whose_reader_has_gone_fails(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with opened(path) as file:
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            file.write(b"one\n")


# --- rotation ---


def test_rotated_files_are_numbered_from_the_newest_and_the_oldest_goes(path: Path) -> None:
    with opened(path, max_bytes=4, backups=2) as file:
        file.write(b"a\nb\nc\nd\ne\nf\ng\nh\n")
    assert sorted(name.name for name in path.parent.iterdir()) == ["access.log", "access.log.1", "access.log.2"]
    assert [Path(f"{path}{number}").read_text() for number in ("", ".1", ".2")] == ["g\nh\n", "e\nf\n", "c\nd\n"]


def test_a_line_longer_than_a_file_may_be_gets_one_to_itself(path: Path) -> None:
    with opened(path, max_bytes=8) as file:
        file.write(b"one\n" + b"x" * 20 + b"\n" + b"two\n")
    assert path.read_text() == "two\n"
    assert Path(f"{path}.1").read_text() == "x" * 20 + "\n"
    assert Path(f"{path}.2").read_text() == "one\n"


def test_what_is_in_the_file_at_start_counts(path: Path) -> None:
    path.write_bytes(b"123456\n")
    with opened(path, max_bytes=8) as file:
        file.write(b"one\n")
    assert Path(f"{path}.1").read_bytes() == b"123456\n"


def test_a_file_that_was_truncated_has_room_again(path: Path) -> None:
    with opened(path, max_bytes=8) as file:
        file.write(b"123456\n")
        os.truncate(path, 0)
        file.write(b"one\n")
    assert path.read_bytes() == b"one\n"
    assert not Path(f"{path}.1").exists()


def test_a_file_that_somebody_else_rotated_is_not_rotated_again(path: Path) -> None:
    with opened(path, max_bytes=8) as file:
        file.write(b"123456\n")
        path.rename(f"{path}.1")
        path.write_bytes(b"new\n")
        file.write(b"two\n")
    assert path.read_bytes() == b"new\ntwo\n"
    assert Path(f"{path}.1").read_bytes() == b"123456\n"
    assert not Path(f"{path}.2").exists()


def test_the_file_behind_a_link_is_rotated_and_the_link_stays(tmp_path: Path) -> None:
    real = tmp_path / "real.log"
    link = tmp_path / "link.log"
    link.symlink_to(real)
    with opened(link, max_bytes=4) as file:
        file.write(b"one\ntwo\n")
    assert link.is_symlink()
    assert real.read_bytes() == b"two\n"
    assert (tmp_path / "real.log.1").read_bytes() == b"one\n"


def test_a_file_that_cannot_be_rotated_takes_no_line_past_its_size(path: Path) -> None:
    blocked = Path(f"{path}.1")
    (blocked / "not empty").mkdir(parents=True)
    with opened(path, max_bytes=4, backups=1) as file:
        with pytest.raises(IsADirectoryError):
            file.write(b"one\ntwo\n")
        assert path.read_bytes() == b"one\n"
        (blocked / "not empty").rmdir()
        blocked.rmdir()
        file.flush()
    assert path.read_bytes() == b"two\n"
    assert blocked.read_bytes() == b"one\n"


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), max_size=8),
    max_bytes=st.integers(1, 30),
)
def test_no_file_exceeds_its_size_but_by_one_line_and_no_line_is_lost(batches: list[list[int]], max_bytes: int) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, "log")
        written = []
        with opened(path, max_bytes=max_bytes, backups=100) as file:
            for lengths in batches:
                lines = [b"x" * length + b"\n" for length in lengths]
                written += lines
                file.write(b"".join(lines))
        names = [name for number in range(100, 0, -1) if (name := Path(f"{path}.{number}")).exists()]
        contents = [name.read_bytes() for name in [*names, path]]
    assert b"".join(contents) == b"".join(written)
    for content in contents:
        assert len(content) <= max_bytes or content.count(b"\n") == 1


# --- what a descriptor leads to ---


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = pty.openpty()
    yield slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, Destination.COLOUR_TERMINAL, id="a terminal has colour"),
        pytest.param({"NO_COLOR": "1"}, Destination.TERMINAL, id="NO_COLOR turns it off"),
        pytest.param({"NO_COLOR": ""}, Destination.COLOUR_TERMINAL, id="an empty NO_COLOR does not count"),
        pytest.param({"TERM": "dumb"}, Destination.TERMINAL, id="a dumb terminal has none"),
        pytest.param({"JOURNAL_STREAM": "1:2"}, Destination.COLOUR_TERMINAL, id="a terminal is no journal"),
    ],
)
def test_terminals(terminal: int, environ: dict[str, str], expected: Destination) -> None:
    assert destination(terminal, environ) is expected


def test_a_journal_is_told_by_its_device_and_inode(path: Path) -> None:
    with opened(path) as file:
        status = os.fstat(file.fd)
        journal = f"{status.st_dev}:{status.st_ino}"
        assert destination(file.fd, {"JOURNAL_STREAM": journal}) is Destination.JOURNAL
        assert destination(file.fd, {"JOURNAL_STREAM": f"{journal}0"}) is Destination.PLAIN
        assert destination(file.fd, {}) is Destination.PLAIN


def test_a_descriptor_that_is_not_open_is_plain() -> None:
    assert destination(-1, {"JOURNAL_STREAM": "1:2"}) is Destination.PLAIN
