"""The command `hardserve passwd`: adds a user to the users file, sets a password, or takes a user out.

A process of its own, beside the server, which reads the file again by itself. The file is replaced in one step, so that
nobody ever reads half of it, and two of these commands at once wait for each other. Comments, order and other users'
lines stay as they are, to the byte. Exit codes: 0, 2 usage, 1 anything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import IO

import click
from werkzeug.security import generate_password_hash

from hardserve.checks.users import (
    BCRYPT_PASSWORD_BYTES,
    CONTROL,
    MAX_CREDENTIALS_BYTES,
    MAX_FILE_BYTES,
    Users,
    UsersFileError,
    name_problem,
    permission_warnings,
)
from hardserve.values import show

EXIT_FAILURE = 1
METHODS = ("scrypt", "pbkdf2", "bcrypt")
# For another of these commands, which holds the file for milliseconds.
LOCK_PATIENCE_S = 10.0
_LOCK_RETRY_S = 0.02
_NEW_FILE_MODE = 0o600

_LINES = re.compile(rb"[^\n]*\n|[^\n]+")


class PasswdError(Exception):
    """The file was left as it is; the message says why."""


# --- the command ---


@click.command("passwd", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("user")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from standard input, one line.")
@click.option("--delete", is_flag=True, help="Take the user out.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="scrypt",
    show_default=True,
    help="How the password is hashed; bcrypt is what htpasswd, Apache and nginx can read, too.",
)
def passwd_command(file: Path, user: str, from_stdin: bool, delete: bool, method: str) -> None:
    """Set the password of USER in FILE, which is made if need be; see the setting auth.users.

    A running server takes the change within a second.
    """
    if problem := name_problem(user):
        raise click.UsageError(f"the name {show(user)} {problem}")
    if delete and from_stdin:
        raise click.UsageError("--delete takes no password, so --stdin does not go with it")
    try:
        if delete:
            delete_user(file, user)
            said = f"{show(user)} is out of {file}."
        else:
            hashed = hash_password(_ask(user, from_stdin=from_stdin), method)
            known = set_hash(file, user, hashed)
            said = f"{show(user)} has a new password in {file}." if known else f"{show(user)} is in {file}."
    except PasswdError as error:
        click.echo(f"hardserve: {error}", err=True)
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        click.echo(f"hardserve: {file}: {error.strerror or error}", err=True)
        sys.exit(EXIT_FAILURE)
    click.echo(said)
    for warning in _warnings(file):
        click.echo(f"hardserve: warning: {warning}", err=True)


def _ask(user: str, *, from_stdin: bool) -> str:
    if from_stdin:
        line = sys.stdin.buffer.read(MAX_CREDENTIALS_BYTES + 2).removesuffix(b"\n").removesuffix(b"\r")
        try:
            password = line.decode()
        except UnicodeDecodeError:
            raise PasswdError("the password is not UTF-8") from None
    elif sys.stdin.isatty():
        password = click.prompt(f"Password of {user}", hide_input=True, confirmation_prompt="The same again")
    else:
        raise click.UsageError("there is no terminal to ask for the password on: use --stdin")
    if not password:
        raise PasswdError("the password is empty")
    if CONTROL.search(password):
        raise PasswdError("the password has a control character or a second line, which HTTP Basic cannot send")
    if len(f"{user}:{password}".encode(errors="replace")) > MAX_CREDENTIALS_BYTES:
        raise PasswdError(f"name and password are longer than {MAX_CREDENTIALS_BYTES} bytes")
    return password


def _warnings(file: Path) -> list[str]:
    """Return what a server would say about the file as it is now."""
    try:
        Users.parse(file.read_bytes(), str(file))
        return permission_warnings(str(file), file.stat().st_mode)
    except UsersFileError as error:
        return error.problems
    except OSError as error:
        return [f"{file}: {error.strerror or error}"]


# --- the hash ---


def hash_password(password: str, method: str) -> str:
    """Return what stands for `password` in the file. Raises PasswdError if `method` cannot be had or has no room."""
    if method == "scrypt":
        return generate_password_hash(password, "scrypt")
    if method == "pbkdf2":
        return generate_password_hash(password, "pbkdf2:sha256")
    try:
        import bcrypt  # noqa: PLC0415 - an extra
    except ImportError:
        raise PasswdError("--method bcrypt needs a package: pip install 'hardserve[bcrypt]'") from None
    encoded = password.encode()
    if len(encoded) > BCRYPT_PASSWORD_BYTES:
        raise PasswdError(
            f"bcrypt sees only the first {BCRYPT_PASSWORD_BYTES} bytes of a password: use --method scrypt"
        )
    # By the name that htpasswd, Apache and nginx know: $2y and $2b are one and the same.
    return "$2y" + bcrypt.hashpw(encoded, bcrypt.gensalt()).decode().removeprefix("$2b")


# --- the file ---


def set_hash(file: Path, user: str, hashed: str) -> bool:
    """Put "user:hashed" into `file`, which is made if need be; return whether the user was there before.

    Raises PasswdError and OSError.
    """
    entry = f"{user}:{hashed}\n".encode()

    def change(lines: list[bytes]) -> list[bytes]:
        of_user = [number for number, line in enumerate(lines) if _is_of(line, user)]
        if of_user:
            lines[of_user[0]] = entry
            return [line for number, line in enumerate(lines) if number not in of_user[1:]]
        if lines and not lines[-1].endswith(b"\n"):
            lines[-1] += b"\n"
        return [*lines, entry]

    return _rewrite(file, user, change, os.O_CREAT)


def delete_user(file: Path, user: str) -> None:
    """Take `user` out of `file`. Raises PasswdError, if it is not there among other things, and OSError."""
    if not _rewrite(file, user, lambda lines: [line for line in lines if not _is_of(line, user)]):
        raise PasswdError(f"{file} has no user {show(user)}")


def _is_of(line: bytes, user: str) -> bool:
    # As Users.parse reads it: spaces around a line are no part of it.
    return line.strip().startswith(f"{user}:".encode())


def _rewrite(file: Path, user: str, change: Callable[[list[bytes]], list[bytes]], flags: int = 0) -> bool:
    """Replace `file` by what `change` makes of its lines, which keep their ends; return whether `user` was in it."""
    target = os.path.realpath(file)  # a symlink goes on leading there
    with _open_locked(file, target, flags) as locked:
        status = os.fstat(locked.fileno())
        data = locked.read(MAX_FILE_BYTES + 1)
        lines = _LINES.findall(data)
        known = any(_is_of(line, user) for line in lines)
        changed = b"".join(change(lines))
        if max(len(data), len(changed)) > MAX_FILE_BYTES:
            raise PasswdError(f"{file} is, or would be, larger than {MAX_FILE_BYTES // 2**20} MiB")
        if changed != data:
            _replace(target, changed, status)
        return known


def _open_locked(file: Path, target: str, flags: int) -> IO[bytes]:
    """Open `target` when nobody else has it locked; closing it lets the next one in."""
    until = monotonic() + LOCK_PATIENCE_S
    while (opened := _try_lock(file, target, flags)) is None:
        if monotonic() > until:
            raise PasswdError(f"another process has had {file} locked for {LOCK_PATIENCE_S:g} s")
        sleep(_LOCK_RETRY_S)
    return opened


def _try_lock(file: Path, target: str, flags: int) -> IO[bytes] | None:
    # Non-blocking is for what is no regular file.
    fd = os.open(target, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | flags, _NEW_FILE_MODE)
    with contextlib.ExitStack() as closing:
        opened = closing.enter_context(open(fd, "rb"))
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PasswdError(f"{file} is no regular file")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        # Whoever had it has put another file in its place by now: that one is to be locked.
        if not _is_at(status, target):
            return None
        closing.pop_all()
        return opened


def _is_at(status: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(status, os.stat(path))
    except FileNotFoundError:
        return False


def _replace(target: str, data: bytes, former: os.stat_result) -> None:
    """Put `data` in the place of `target` in one step, with the mode and owner of `former`, for good."""
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".hardserve-{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _NEW_FILE_MODE)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            made = os.fstat(fd)
            if (made.st_uid, made.st_gid) != (former.st_uid, former.st_gid):
                _give(fd, target, former)
            os.fchmod(fd, stat.S_IMODE(former.st_mode))
            file.flush()
            os.fsync(fd)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _give(fd: int, target: str, former: os.stat_result) -> None:
    try:
        os.fchown(fd, former.st_uid, former.st_gid)
    except PermissionError:
        raise PasswdError(
            f"{target} belongs to user {former.st_uid} and group {former.st_gid}, whom you cannot give it back to:"
            " run this as that user, or as root"
        ) from None
