"""Who knows a password: HTTP Basic (RFC 7617) against a file of hashes, and which credentials were good of late.

A hash is computed on a check thread, never on the I/O thread. That one only asks `Authenticator.remembered`: were these
very credentials of this client found good not long ago? They are remembered under an HMAC with a key that this process
drew, so that no password stays in memory for it.

The file is looked at (a stat) by the check threads at most once a second, and read again when it changed. What was
remembered counts only while that user's line is the same, and only if the last look is not older than that second:
after a pause, the next request takes the way over a check thread, which looks at the file and need not hash. So a
password that was changed and a user who was taken out are in force one second later, plus the time of a check that
has begun. A file that became unreadable or malformed changes nothing, and is logged once. If the disk hangs, one check
thread hangs with it, and the others go on with what was read last.

Who owns what: `_users`, `_looked_at` and the remembered credentials are written by check threads under a lock, and read
by the I/O thread without one: each is one reference, or one entry of a dictionary.
"""

from __future__ import annotations

import binascii
import hmac
import logging
import os
import re
import secrets
import shlex
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic

from werkzeug.security import check_password_hash

from hardserve.values import show

logger = logging.getLogger("hardserve.checks")

# Of an Authorization field; what is longer is no password that `hardserve passwd` takes.
MAX_AUTHORIZATION = 4096
# Of a name, a colon and a password, in UTF-8: their base64 fits in that.
MAX_CREDENTIALS_BYTES = 3000
# About 6,000 users.
MAX_FILE_BYTES = 1024 * 1024
# bcrypt does not look at more.
BCRYPT_PASSWORD_BYTES = 72
# How old the last look at the file may be for what is remembered to count.
LOOK_EVERY_S = 1.0

# What one login may cost. scrypt takes 128·N·r bytes and p times its time; the two are bounded as one.
MAX_SCRYPT_BYTES = 256 * 1024 * 1024
MAX_PBKDF2_ITERATIONS = 10_000_000
MAX_BCRYPT_COST = 16

MAX_PROBLEMS = 20
# A file's time is as coarse as a tick of the kernel; one that was changed this recently may be again within it.
SETTLED_NS = 1_000_000_000
# For who asks although the file has nobody: what Werkzeug makes by default.
NOBODYS_HASH = f"scrypt:32768:8:1$0000000000000000${'0' * 128}"

_SCRYPT = re.compile(r"scrypt:([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})\$[^$]+\$[0-9a-f]{128}")
_PBKDF2 = re.compile(r"pbkdf2:(?:sha256:([0-9]{1,9})\$[^$]+\$[0-9a-f]{64}|sha512:([0-9]{1,9})\$[^$]+\$[0-9a-f]{128})")
# The salt's last character has two bits to give, and the library insists on them.
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_KNOWN = {
    "$apr1$": "Apache's MD5",
    "{SHA}": "SHA-1 without a salt",
    "$1$": "MD5",
    "$5$": "SHA-256 of crypt",
    "$6$": "SHA-512 of crypt",
    "$argon2": "Argon2",
}
_EXPECTED = "scrypt:N:r:p$salt$hex, pbkdf2:sha256:iterations$salt$hex or bcrypt's $2y$"
# With its padding. The library's strict mode takes more than that.
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
# RFC 7617 2: neither part has any (CTL of RFC 5234).
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class UsersFileError(Exception):
    """The users file cannot be used. `problems` has a line for each reason, with the file's name and the line's number.

    No hash and no line without a name is quoted: it may be a password.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        more = len(problems) - MAX_PROBLEMS
        self.problems = [*problems[:MAX_PROBLEMS], *([f"and {more} more like these"] if more > 0 else [])]
        super().__init__("; ".join(self.problems))


def parse_basic(authorization: str) -> tuple[str, str] | None:
    """Return the user and the password of an Authorization field, None unless it is well-formed Basic (RFC 7617).

    Both are taken as UTF-8, which the challenge announces, or as Latin-1 if they are not, as some clients send them.
    """
    if len(authorization) > MAX_AUTHORIZATION or authorization[:6].lower() != "basic ":
        return None
    token = authorization[6:].strip(" ")
    if len(token) % 4 or not _BASE64.fullmatch(token):
        return None
    decoded = binascii.a2b_base64(token)
    try:
        text = decoded.decode()
    except UnicodeDecodeError:
        text = decoded.decode("latin-1")
    user, colon, password = text.partition(":")
    if not colon or not user.isprintable() or CONTROL.search(password):
        return None
    return user, password


def name_problem(name: str) -> str | None:
    """Return why `name` cannot be a user's, as the end of a sentence; None if it can."""
    if not name:
        return "is empty"
    if ":" in name:
        return "has a colon, which HTTP Basic has no way to send"
    if not name.isprintable():
        return "has a character that cannot be printed"
    if name.startswith("#"):
        return "begins with #, as a comment does"
    if name != name.strip():
        return "begins or ends with a space"
    return None


def hash_problem(hashed: str) -> str | None:
    """Return why a password cannot be checked against `hashed`, as a sentence without its hash; None if it can."""
    if found := _SCRYPT.fullmatch(hashed):
        n, r, p = map(int, found.groups())
        return _scrypt_problem(n, r, p)
    if found := _PBKDF2.fullmatch(hashed):
        iterations = int(found[1] or found[2])
        if not 0 < iterations <= MAX_PBKDF2_ITERATIONS:
            return f"{iterations} iterations of pbkdf2: expected 1 to {MAX_PBKDF2_ITERATIONS}"
        return None
    if found := _BCRYPT.fullmatch(hashed):
        return _bcrypt_problem(int(found[1]))
    known = next((name for prefix, name in _KNOWN.items() if hashed.startswith(prefix)), None)
    if known is None and hashed.startswith(("scrypt:", "pbkdf2:", "$2")):
        known = "a damaged hash"
    return f"expected {_EXPECTED}; found {known or 'none of these, perhaps a plain password'}"


def _scrypt_problem(n: int, r: int, p: int) -> str | None:
    factors = f"scrypt with N={n}, r={r}, p={p}"
    if n < 2 or n & (n - 1) or not r or not p or n.bit_length() - 1 >= 16 * r:
        return f"{factors}: expected a power of 2 below 2^(16·r), and r and p of at least 1 (RFC 7914)"
    if 128 * n * r * p > MAX_SCRYPT_BYTES:
        return f"{factors} takes {128 * n * r * p // 2**20} MiB, or as long as that: expected at most 256 MiB"
    # What it needs, and what Werkzeug grants.
    if 128 * r * (n + 2 + p) > 132 * n * r * p:
        return f"{factors} is too little for Werkzeug to compute: expected N of at least 128"
    return None


def _bcrypt_problem(cost: int) -> str | None:
    if not 4 <= cost <= MAX_BCRYPT_COST:
        return f"bcrypt of cost {cost}: expected 4 to {MAX_BCRYPT_COST}"
    try:
        import bcrypt  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return "its bcrypt hash needs a package: pip install 'hardserve[bcrypt]'"
    return None


class Users:
    """The names and hashes of one reading of the file. Any thread; never changed."""

    __slots__ = ("_hashes", "_names")

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)
        self._names = sorted(self._hashes)

    def __repr__(self) -> str:
        return f"<Users {len(self._names)}>"

    def __len__(self) -> int:
        return len(self._names)

    @classmethod
    def parse(cls, data: bytes, path: str) -> Users:
        """Read lines of "name:hash"; empty ones and those that begin with # are left out.

        Raises UsersFileError with every problem of the file; `path` is what messages call it.
        """
        hashes: dict[str, str] = {}
        lines: dict[str, int] = {}
        problems: list[str] = []
        for number, name, hashed, problem in _entries(data, path):
            if not problem and name in hashes:
                problem = f"{show(name)} is on line {lines[name]}, too: remove one of them"  # noqa: PLW2901
            if problem:
                problems.append(f"{path}:{number}: {problem}")
            else:
                hashes[name], lines[name] = hashed, number
        if problems:
            raise UsersFileError(problems)
        return cls(hashes)

    def hash_of(self, name: str) -> str | None:
        return self._hashes.get(name)

    def check(self, name: str, password: str, key: bytes) -> bool:
        """Return whether `password` is that of `name`, in the same time whether or not there is such a user.

        But for tens of nanoseconds, of a dictionary, behind the tens of milliseconds of a hash.

        For a name that the file does not have, the hash of another user is computed, and the outcome left out. Which,
        `key` and the name decide, so that in a file with hashes of several kinds it is always the same one, and nobody
        can tell it. A check thread, for as long as a hash takes. Raises MemoryError or ValueError if there is no memory
        for it, which says nothing about the password.
        """
        others = self._decoy(name, key)
        hashed = self._hashes.get(name)
        matches = _matches(others if hashed is None else hashed, password)
        return matches and hashed is not None

    def _decoy(self, name: str, key: bytes) -> str:
        if not self._names:
            return NOBODYS_HASH
        drawn = int.from_bytes(hmac.digest(key, name.encode(), "sha256"))
        return self._hashes[self._names[drawn % len(self._names)]]


def _entries(data: bytes, path: str) -> Iterator[tuple[int, str, str, str | None]]:
    """Yield number, name, hash and problem of each line that is one."""
    for number, raw in enumerate(data.split(b"\n"), 1):
        try:
            line = raw.strip().decode()
        except UnicodeDecodeError:
            yield number, "", "", "this line is not UTF-8"
            continue
        if not line or line.startswith("#"):
            continue
        name, colon, hashed = line.partition(":")
        if not colon:
            yield number, "", "", "expected name:hash, found no colon"
        elif problem := name_problem(name):
            yield number, name, hashed, f"the name {show(name)} {problem}"
        elif problem := hash_problem(hashed):
            fix = f"`hardserve passwd {shlex.quote(path)} {shlex.quote(name)}` sets a new password"
            yield number, name, hashed, f"{show(name)}: {problem}; {fix}"
        else:
            yield number, name, hashed, None


def _matches(hashed: str, password: str) -> bool:
    """Compare in constant time."""
    if not hashed.startswith("$2"):
        return check_password_hash(hashed, password)
    import bcrypt  # noqa: PLC0415 - an extra, which was there when the file was read

    # Cut, as every other bcrypt does; this one refuses.
    return bcrypt.checkpw(password.encode()[:BCRYPT_PASSWORD_BYTES], hashed.encode())


def _read(path: str, shown: str) -> tuple[bytes, os.stat_result]:
    try:
        # Non-blocking, so that a named pipe that nobody writes to is an error and no wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsersFileError([f"{shown}: this is no regular file"])
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsersFileError([f"{shown}: {error.strerror or error}"]) from None
    if len(data) > MAX_FILE_BYTES:
        raise UsersFileError([f"{shown}: larger than {MAX_FILE_BYTES // 2**20} MiB, so it is no users file"])
    return data, status


def permission_warnings(path: str, mode: int) -> list[str]:
    """Return what to say if those who are neither owner nor group can do anything with the file."""
    can = [what for bit, what in ((0o004, "read"), (0o002, "change")) if mode & bit]
    if not can:
        return []
    return [f"everybody on this machine can {' and '.join(can)} {path}: chmod o= {shlex.quote(path)}"]


class Authenticator:
    """Checks the credentials of requests, and remembers good ones for `remember_s` seconds (0: never).

    `load` must come first. At most `max_remembered` are remembered; then the one goes that was checked longest ago.
    `clock` gives monotonic seconds, the same that `remembered` is given as `now`.
    """

    def __init__(
        self, path: str, remember_s: float, *, max_remembered: int = 1000, clock: Callable[[], float] = monotonic
    ) -> None:
        self._shown = path
        self._path = os.path.abspath(path)  # an app that changes directory does not change the file
        self._remember_s = remember_s
        self._max_remembered = max_remembered
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._users = Users({})
        self._read_at = ""
        self._looked_at = 0.0
        # Under their HMAC: the user, its hash, and until when they are good. Oldest first.
        self._good: OrderedDict[bytes, tuple[str, str, float]] = OrderedDict()
        self._remembering = threading.Lock()
        # What follows belongs to who looks at the file.
        self._looking = threading.Lock()
        self._data = b""
        self._parsed: Users | UsersFileError = self._users  # what came of that data
        self._signature: tuple[int, ...] | None = None
        self._mode = 0
        self._problem = ""

    def __repr__(self) -> str:
        problem = ", file unusable since" if self._problem else ""
        return f"<Authenticator {self._shown}, {len(self._users)} users, {len(self._good)} remembered{problem}>"

    def load(self) -> list[str]:
        """Read the file for the first time; return warnings about it. Main thread. Raises UsersFileError."""
        self._looked_at = self._clock()
        self._use(self._current())
        return permission_warnings(self._shown, self._mode)

    def refresh(self) -> None:
        """Take what the file says now. Any thread that may block. Raises UsersFileError, and then nothing changes.

        Nothing is logged of an error: the check threads say it once, when they find it.
        """
        with self._looking:
            now = self._clock()
            self._take(self._current())
            self._looked_at = now

    def remembered(self, authorization: str, client: str, now: float) -> str | None:
        """Return the user if these credentials need no check, None if one must be made. I/O thread, microseconds.

        `client` is who gives them: what one has proved says nothing of another, who would learn from it what is right.
        """
        if now - self._looked_at > LOOK_EVERY_S:
            return None
        return self._recall(self._digest(authorization, client), now)

    def was_good(self, authorization: str, client: str, now: float) -> bool:
        """Return whether these credentials of `client` were good at the last look at the file, however long ago.

        `verify` will then not compute a hash, unless that user's line has changed. They are no guess, so limits on
        guesses need not apply: someone else at the same address may have used them up. I/O thread.
        """
        return self._recall(self._digest(authorization, client), now) is not None

    def verify(self, authorization: str, client: str) -> str | None:
        """Return the user whose credentials these are, None if they are nobody's; remember them if they are good.

        Check thread: looks at the file if that is due, and computes a hash unless the credentials are remembered.
        Takes the same time for a user who does not exist. Raises what `Users.check` does.
        """
        self._look()
        now = self._clock()
        digest = self._digest(authorization, client)
        # Of the requests that a browser makes at once, the first has been checked when the last one is looked at.
        if (user := self._recall(digest, now)) is not None:
            return user
        credentials = parse_basic(authorization)
        if credentials is None:
            return None
        user, password = credentials
        users = self._users
        if not users.check(user, password, self._key):
            return None
        self._remember(digest, user, users.hash_of(user) or "", now)
        return user

    # --- what is remembered ---

    def _digest(self, authorization: str, client: str) -> bytes:
        """Return what stands for `authorization` of `client`. Nothing is remembered of an overlong one."""
        if len(authorization) > MAX_AUTHORIZATION:
            return b""
        return hmac.digest(self._key, f"{client} {authorization}".encode(), "sha256")

    def _recall(self, digest: bytes, now: float) -> str | None:
        entry = self._good.get(digest)
        if entry is None:
            return None
        user, hashed, until = entry
        return user if now < until and self._users.hash_of(user) == hashed else None

    def _remember(self, digest: bytes, user: str, hashed: str, now: float) -> None:
        if self._remember_s <= 0:
            return
        with self._remembering:
            self._good.pop(digest, None)
            self._good[digest] = (user, hashed, now + self._remember_s)
            while len(self._good) > self._max_remembered:
                self._good.popitem(last=False)

    # --- the file ---

    def _look(self) -> None:
        """See whether the file changed, unless that was done within the second or is being done."""
        now = self._clock()
        if now - self._looked_at <= LOOK_EVERY_S or not self._looking.acquire(blocking=False):
            return
        try:
            try:
                users = self._current()
            except UsersFileError as error:
                self._complain(str(error))
            else:
                self._take(users)
            self._looked_at = now
        finally:
            self._looking.release()

    def _take(self, users: Users) -> None:
        if users is not self._users:
            self._use(users)
            logger.info("users file %s read again, it has %d", self._shown, len(users))
        elif self._problem:
            logger.info("users file %s is as it was at %s again", self._shown, self._read_at)
        self._problem = ""

    def _complain(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            logger.error("users file: %s; still using the one read at %s", problem, self._read_at)

    def _use(self, users: Users) -> None:
        self._read_at = time.strftime("%Y-%m-%d %H:%M:%S")
        self._users = users

    def _current(self) -> Users:
        """Return what the file says now: the same object if that is the same. Raises UsersFileError."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise UsersFileError([f"{self._shown}: {error.strerror or error}"]) from None
        if _signature(status) != self._signature:
            data, status = _read(self._path, self._shown)
            # Else its time may not tell the next change, and it is read again at the next look.
            settled = time.time_ns() - status.st_mtime_ns > SETTLED_NS
            self._signature = _signature(status) if settled else None
            self._mode = status.st_mode
            if data != self._data:
                self._parsed = self._parse(data)
                self._data = data
        if isinstance(self._parsed, UsersFileError):
            raise UsersFileError(self._parsed.problems)
        return self._parsed

    def _parse(self, data: bytes) -> Users | UsersFileError:
        try:
            return Users.parse(data, self._shown)
        except UsersFileError as error:
            return error


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when the file does. With its ctime, also when an older file was put back with its time."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
