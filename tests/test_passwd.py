"""`hardserve passwd`: what it leaves in the file, what it refuses, and what two of them at once do."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from werkzeug.security import check_password_hash, generate_password_hash

from hardserve import passwd
from hardserve.checks.users import MAX_CREDENTIALS_BYTES, MAX_FILE_BYTES, Users, parse_basic
from hardserve.passwd import PasswdError, delete_user, hash_password, passwd_command, set_hash

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 20
PROGRAM = "from hardserve.passwd import passwd_command; passwd_command.main(prog_name='hardserve passwd')"


def run(*arguments: str | Path, given: bytes | str = b"") -> Result:
    return CliRunner().invoke(passwd_command, list(map(str, arguments)), input=given)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users"


# --- what a run says and leaves ---


def test_a_new_user_in_a_new_file_that_nobody_else_can_read(file: Path) -> None:
    before = os.umask(0)
    try:
        result = run(file, "alice", "--stdin", given="correct horse\n")
    finally:
        os.umask(before)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f'"alice" is in {file}.\n', "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    name, _, hashed = file.read_text().rstrip("\n").partition(":")
    assert name == "alice"
    assert hashed.startswith("scrypt:32768:8:1$")
    assert check_password_hash(hashed, "correct horse")
    assert [path.name for path in file.parent.iterdir()] == ["users"], "nothing else is left"


def test_a_user_who_was_there_gets_a_new_password_and_one_who_is_taken_out_is_gone(file: Path) -> None:
    set_hash(file, "alice", "old")
    result = run(file, "alice", "--stdin", "--method", "pbkdf2", given="new")
    assert (result.exit_code, result.stdout) == (0, f'"alice" has a new password in {file}.\n')
    assert file.read_text().startswith("alice:pbkdf2:sha256:")
    result = run(file, "alice", "--delete")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f'"alice" is out of {file}.\n', "")
    assert file.read_bytes() == b""
    result = run(file, "alice", "--delete")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f'hardserve: {file} has no user "alice"\n'


@pytest.mark.parametrize(
    ("given", "password"),
    [
        pytest.param(b"secret", "secret", id="without a line end"),
        pytest.param(b"secret\n", "secret", id="with one"),
        pytest.param(b"secret\r\n", "secret", id="with one of Windows"),
        pytest.param(b" se cret \n", " se cret ", id="spaces belong to it"),
        pytest.param("pässwörd€\n".encode(), "pässwörd€", id="in UTF-8"),
    ],
)
def test_standard_input_is_the_password(file: Path, given: bytes, password: str) -> None:
    assert run(file, "alice", "--stdin", given=given).exit_code == 0
    hashed = Users.parse(file.read_bytes(), "users").hash_of("alice")
    assert hashed is not None
    assert check_password_hash(hashed, password)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("", "--stdin"), 'the name "" is empty', id="an empty name"),
        pytest.param(("a:b", "--stdin"), 'the name "a:b" has a colon', id="a name with a colon"),
        pytest.param(("a\nb", "--stdin"), r'the name "a\U0000000ab" has a character that cannot', id="a line end"),
        pytest.param(("a\x7fb", "--stdin"), "has a character that cannot", id="a control character"),
        pytest.param(("a\x85b", "--stdin"), "has a character that cannot", id="a control character of Unicode"),
        pytest.param(("a\udc80", "--stdin"), "has a character that cannot", id="what is not UTF-8"),
        pytest.param((" a", "--stdin"), "begins or ends with a space", id="a space in front"),
        pytest.param(("#a", "--stdin"), "begins with #, as a comment does", id="a comment"),
        pytest.param(("a", "--delete", "--stdin"), "--delete takes no password", id="a password for nobody"),
        pytest.param(("a", "--stdin", "--method", "md5"), "'md5' is not one of", id="a method that is none"),
        pytest.param(("a",), "there is no terminal to ask for the password on: use --stdin", id="no terminal"),
        pytest.param((), "Missing argument 'USER'", id="no user"),
        pytest.param(("a", "b"), "unexpected extra argument", id="a password among the arguments"),
    ],
)
def test_wrong_usage_is_2_and_makes_no_file(file: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(file, *arguments, given="secret\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not file.exists()


@pytest.mark.parametrize(
    ("given", "method", "message"),
    [
        pytest.param(b"", "scrypt", "the password is empty", id="nothing"),
        pytest.param(b"\n", "scrypt", "the password is empty", id="an empty line"),
        pytest.param(b"a\nb\n", "scrypt", "a control character or a second line", id="two lines"),
        pytest.param(b"a\tb\n", "scrypt", "a control character or a second line", id="a tab"),
        pytest.param(b"a\0b\n", "scrypt", "a control character or a second line", id="a null"),
        pytest.param(b"\xff\n", "scrypt", "the password is not UTF-8", id="not UTF-8"),
        pytest.param(b"x" * 2995, "scrypt", "longer than 3000 bytes", id="a byte too many"),
        pytest.param(b"x" * 100_000, "scrypt", "longer than 3000 bytes", id="very many"),
        pytest.param(b"x" * 73, "bcrypt", "bcrypt sees only the first 72 bytes", id="what bcrypt would cut"),
    ],
)
def test_a_password_that_will_not_do_is_1_and_makes_no_file(
    file: Path, given: bytes, method: str, message: str
) -> None:
    if method == "bcrypt":
        pytest.importorskip("bcrypt")
    result = run(file, "alice", "--stdin", "--method", method, given=given)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not file.exists()


def test_the_longest_password_that_is_taken_can_be_sent() -> None:
    import base64

    password = "x" * (MAX_CREDENTIALS_BYTES - len("alice:"))
    header = "Basic " + base64.b64encode(f"alice:{password}".encode()).decode()
    assert parse_basic(header) == ("alice", password)


def test_without_the_package_bcrypt_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    result = run(file, "alice", "--stdin", "--method", "bcrypt", given="secret")
    assert (result.exit_code, result.stderr) == (
        1,
        "hardserve: --method bcrypt needs a package: pip install 'hardserve[bcrypt]'\n",
    )
    assert not file.exists()


def test_what_is_wrong_with_other_lines_is_said_and_left(file: Path) -> None:
    file.write_text("bob:$apr1$x$y\ncarol\n")
    file.chmod(0o604)
    result = run(file, "alice", "--stdin", given="secret")
    assert result.exit_code == 0
    first, second = result.stderr.splitlines()
    assert first.startswith(f'hardserve: warning: {file}:1: "bob": expected scrypt:N:r:p$salt$hex')
    assert second == f"hardserve: warning: {file}:2: expected name:hash, found no colon"
    assert file.read_text().startswith("bob:$apr1$x$y\ncarol\nalice:scrypt:")
    file.write_text("")
    result = run(file, "alice", "--stdin", given="secret")
    assert result.stderr == f"hardserve: warning: everybody on this machine can read {file}: chmod o= {file}\n"


def test_help_fits_a_screen() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) < 25


# --- the file ---


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"", b"bob:NEW\n", id="into an empty file"),
        pytest.param(b"# who\n\nalice:A\n", b"# who\n\nalice:A\nbob:NEW\n", id="a new one comes last"),
        pytest.param(b"alice:A", b"alice:A\nbob:NEW\n", id="after a line without an end"),
        pytest.param(b"a:1\nbob:old\nc:2\n", b"a:1\nbob:NEW\nc:2\n", id="in its place"),
        pytest.param(b"bob:old", b"bob:NEW\n", id="in the place of a line without an end"),
        pytest.param(b"bob:1\na:1\nbob:2\n", b"bob:NEW\na:1\n", id="once, if it was there twice"),
        pytest.param(b"  bob:old  \n", b"bob:NEW\n", id="a line that is indented"),
        pytest.param(b"a:1\r\nbob:old\r\nc:2\r\n", b"a:1\r\nbob:NEW\nc:2\r\n", id="others keep their line ends"),
        pytest.param(b"\xff\xfe\n\rbad\rbob:x\n", b"\xff\xfe\n\rbad\rbob:x\nbob:NEW\n", id="rubbish stays as it is"),
        pytest.param(b"#bob:old\n", b"#bob:old\nbob:NEW\n", id="a comment is nobody"),
        pytest.param(b"bobby:1\nBob:2\n", b"bobby:1\nBob:2\nbob:NEW\n", id="names that are nearly the same"),
    ],
)
def test_only_the_line_of_the_user_changes(file: Path, before: bytes, after: bytes) -> None:
    file.write_bytes(before)
    known = set_hash(file, "bob", "NEW")
    assert file.read_bytes() == after
    assert known == ((b"old" in before and b"#" not in before) or b"bob:2" in before)


def test_the_line_of_a_user_who_is_taken_out_goes_and_no_other(file: Path) -> None:
    file.write_bytes(b"# bob\n\nbob:1\r\nalice:A\n bob:2\nbobby:B")
    delete_user(file, "bob")
    assert file.read_bytes() == b"# bob\n\nalice:A\nbobby:B"
    before = file.stat()
    with pytest.raises(PasswdError, match='has no user "bob"'):
        delete_user(file, "bob")
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "left alone"


def test_mode_and_owner_stay(file: Path) -> None:
    file.write_bytes(b"alice:A\n")
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 12345, 23456)
    before = file.stat()
    set_hash(file, "bob", "B")
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "replaced in one step, not written over"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have a file that belongs to somebody else")
def test_a_file_that_cannot_be_given_back_to_its_owner_is_left_alone(file: Path) -> None:
    file.parent.chmod(0o777)
    for parent in file.parents[1:4]:
        parent.chmod(parent.stat().st_mode | 0o011)
    file.write_bytes(b"alice:A\n")
    file.chmod(0o666)
    os.setegid(23456)
    os.seteuid(12345)
    try:
        with pytest.raises(PasswdError, match="belongs to user 0 and group 0, whom you cannot give it back to"):
            set_hash(file, "bob", "B")
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert file.read_bytes() == b"alice:A\n"
    assert [path.name for path in file.parent.iterdir()] == ["users"]


def test_a_symlink_goes_on_leading_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "users.txt"
    link = tmp_path / "users"
    link.symlink_to("real/users.txt")
    set_hash(link, "alice", "A")
    set_hash(link, "bob", "B")
    assert link.is_symlink()
    assert target.read_bytes() == b"alice:A\nbob:B\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", "users"]


def test_when_it_cannot_be_written_the_file_is_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(b"alice:A\n")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    result = run(file, "bob", "--stdin", given="secret")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"hardserve: {file}: No space left on device\n"
    assert file.read_bytes() == b"alice:A\n"
    assert [path.name for path in file.parent.iterdir()] == ["users"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(os.mkfifo, "is no regular file", id="a named pipe"),
        pytest.param(lambda file: file.symlink_to("/dev/null"), "is no regular file", id="a device"),
        pytest.param(lambda file: file.symlink_to("no/such/users"), "No such file or directory", id="nowhere"),
        pytest.param(lambda file: file.symlink_to(file), "Too many levels of symbolic links", id="a circle"),
        pytest.param(
            lambda file: file.write_bytes(b"#" * (MAX_FILE_BYTES + 1)), "larger than 1 MiB", id="a large file"
        ),
        pytest.param(lambda file: file.write_bytes(b"#" * MAX_FILE_BYTES), "larger than 1 MiB", id="a full file"),
    ],
)
def test_what_is_no_users_file_is_left_alone(file: Path, make: object, message: str) -> None:
    make(file)  # type: ignore[operator]
    result = run(file, "bob", "--stdin", given="secret")
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert [path.name for path in file.parent.iterdir()] == ["users"]


def test_to_take_a_user_out_makes_no_file(file: Path) -> None:
    result = run(file, "bob", "--delete")
    assert (result.exit_code, result.stderr) == (1, f"hardserve: {file}: No such file or directory\n")
    assert not file.exists()


# --- several at once ---


def test_no_user_is_lost_however_many_add_one_at_once(file: Path) -> None:
    """Threads will do: flock is by open file, not by process."""
    count = 40
    barrier = threading.Barrier(8)

    def add(first: int) -> None:
        barrier.wait(PATIENCE_S)
        for number in range(first, count, 8):
            set_hash(file, f"user{number}", "hash")

    threads = [threading.Thread(target=add, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(file.read_text().splitlines()) == sorted(f"user{number}:hash" for number in range(count))


def test_a_file_that_was_replaced_just_before_it_was_locked_is_opened_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def be_late(fd: int, how: int) -> None:
        monkeypatch.undo()
        set_hash(file, "carol", "C")
        flock(fd, how)

    file.write_bytes(b"alice:A\n")
    monkeypatch.setattr(fcntl, "flock", be_late)
    set_hash(file, "bob", "B")
    assert file.read_bytes() == b"alice:A\ncarol:C\nbob:B\n"


def test_processes_wait_for_each_other_and_not_for_ever(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(b"alice:A\n")
    with file.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(passwd, "LOCK_PATIENCE_S", 0.0)
        result = run(file, "bob", "--stdin", given="secret")
        assert result.exit_code == 1
        assert result.stderr == f"hardserve: another process has had {file} locked for 0 s\n"
    assert file.read_bytes() == b"alice:A\n"


# --- a real terminal, and real htpasswd ---


def test_on_a_terminal_it_asks_twice_and_shows_nothing(file: Path) -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "r+b", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(file), "alice"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        )
        os.close(terminal)
        shown, looked_at = b"", 0

        def expect(text: bytes) -> None:
            nonlocal shown, looked_at
            while text not in shown[looked_at:]:
                assert select.select([screen], [], [], PATIENCE_S)[0], shown
                shown += screen.read(1024)
            looked_at = shown.index(text, looked_at) + len(text)

        try:
            expect(b"Password of alice: ")
            screen.write(b"secret one\n")
            expect(b"The same again: ")
            screen.write(b"secret two\n")
            expect(b"do not match")
            expect(b"Password of alice: ")
            screen.write(b"secret one\n")
            expect(b"The same again: ")
            screen.write(b"secret one\n")
            expect(b'"alice" is in ')
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait(PATIENCE_S)
    assert b"secret" not in shown
    hashed = Users.parse(file.read_bytes(), "users").hash_of("alice")
    assert hashed is not None
    assert check_password_hash(hashed, "secret one")


@pytest.mark.peer
def test_htpasswd_knows_a_bcrypt_hash_of_ours(file: Path) -> None:
    htpasswd = shutil.which("htpasswd")
    if htpasswd is None:
        pytest.skip("htpasswd (apache2-utils) is not installed")
    pytest.importorskip("bcrypt")
    set_hash(file, "alice", hash_password("correct horse", "bcrypt"))
    for password, code in (("correct horse", 0), ("wrong horse", 3)):
        done = subprocess.run(
            [htpasswd, "-vb", file, "alice", password], capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize("method", ["scrypt", "pbkdf2"])
def test_what_is_made_is_what_werkzeug_makes(method: str) -> None:
    ours, theirs = hash_password("secret", method), generate_password_hash("secret", method)
    assert ours.split("$")[0] == theirs.split("$")[0], "the same method, with the same work factors"
    assert ours != theirs, "another salt"
    assert check_password_hash(ours, "secret")
