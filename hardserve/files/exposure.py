"""What must not lie in a directory that is served: the app's source, its settings, databases and keys.

Main thread, at start; may block on a file system, and so is bounded. It knows neither mounts nor apps: it is told a
directory and which files are the app's, and returns sentences. Whether they keep the server from starting is not its
to say.

Each finding is something that nobody means to publish, not something that looks suspicious: a certificate is no key,
a thumbnail store called `Thumbs.db` is no SQLite database, and Python files are downloads like any other unless they
are the app's. What begins with a dot is never served, and is told where it costs nothing, since the next server, or a
backup that is unpacked here, may be less careful.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG

# Names that are read in all, and files that are looked into. What an operator leaves lying about is near the top.
MAX_ENTRIES = 20_000
MAX_READ = 1_000
# Past these, one more sentence says that there is more.
MAX_FINDINGS = 20
_MAX_SOURCES = 3
# One directory takes at most half of the names that are left, so that behind 100,000 uploads others are still seen.
# Below this it takes all of them.
_SHARE_MIN = 64
# A key may stand behind the certificates that it is for.
_HEAD_BYTES = 65_536

_SOURCE = "the app's own source"
_SOURCE_FOLDER = "the folder that the app's own source is in"
_SOURCE_PACKAGE = "a package of the app's, with its source"
_ENVIRONMENT = "a file of environment variables, which hold secrets"
_REPOSITORY = "a repository with all that was ever in it"
_CONFIGURATION = "the configuration of this server"
_USERS = "a file of names and password hashes"
_DATABASE = "a database"
_KEY = "a private key"
_KEYS = "a store of private keys"

_REPOSITORIES = frozenset({".git", ".hg", ".svn"})
_FILES = {
    ".env": _ENVIRONMENT,
    ".flaskenv": _ENVIRONMENT,
    ".env.local": _ENVIRONMENT,
    ".env.production": _ENVIRONMENT,
    "hardserve.toml": _CONFIGURATION,
    ".htpasswd": _USERS,
    "id_rsa": _KEY,
    "id_dsa": _KEY,
    "id_ecdsa": _KEY,
    "id_ed25519": _KEY,
}
# What the content decides.
_USERS_NAMES = frozenset({"users", "users.txt", "htpasswd", "htpasswd.txt", "passwd"})
_USERS_SUFFIXES = frozenset({".htpasswd", ".users"})
_DATABASES = frozenset({".db", ".sqlite", ".sqlite3"})
_KEY_SUFFIXES = frozenset({".pem", ".key"})
_KEY_STORES = frozenset({".p12", ".pfx"})
_SUFFIXES = _USERS_SUFFIXES | _DATABASES | _KEY_SUFFIXES | _KEY_STORES
_NAMES = _REPOSITORIES | _USERS_NAMES | _FILES.keys()

_SQLITE_MAGIC = b"SQLite format 3\0"
_SQLITE_BESIDE = ("-wal", "-journal")
_PEM_KEY = b"PRIVATE KEY-----"
# As `hardserve passwd` and htpasswd write them.
_HASHED = re.compile(
    rb"^[^:\s#]{1,256}:(?:scrypt:|pbkdf2:|\$2[aby]\$|\$apr1\$|\$[156]\$|\$argon2|\{SHA\})", re.MULTILINE
)

_Identity = tuple[int, int]


def exposed(directory: Path, *, app_files: Sequence[Path]) -> list[str]:
    """Return a sentence for each thing in `directory` that must not be served; it may be a single file, too.

    `app_files` are the app's modules, and folders that are its source as a whole, such as a Flask app's root path. A
    folder below those is no problem by itself (`static` usually is), unless it is a package of the app's.

    Looks at the directory and what is below it, not into directories that are links or hidden, and at no more than
    `MAX_ENTRIES` names, the nearest first. Never raises: what cannot be read can neither be served nor judged.
    """
    findings = _Findings()
    try:
        status = os.stat(directory)
    except (OSError, ValueError):
        return []
    findings.add_sources(directory, status, app_files)
    if S_ISDIR(status.st_mode):
        _look_through(str(directory), findings)
    elif S_ISREG(status.st_mode):
        findings.look_at(str(directory), directory.name)
    return findings.sentences()


@dataclass(slots=True)
class _Findings:
    """What was found so far, by its path, and what may still be read."""

    sources: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    reads_left: int = field(default_factory=lambda: MAX_READ)

    def full(self) -> bool:
        return len(self.others) > MAX_FINDINGS

    def sentences(self) -> list[str]:
        said = [f"{_shown(path)} is {what}" for path, what in sorted(self.others.items())[:MAX_FINDINGS]]
        return self.sources + said + (["there is more of this kind"] if self.full() else [])

    def add_sources(self, directory: Path, status: os.stat_result, app_files: Sequence[Path]) -> None:
        found = _sources(directory, status, app_files)
        self.sources += [f"{_shown(path)} is {what}" for path, what in found[:_MAX_SOURCES]]
        if len(found) > _MAX_SOURCES:
            self.sources.append(f"{len(found) - _MAX_SOURCES} more files in it are {_SOURCE}")

    def look_at(self, path: str, name: str) -> None:
        """Judge a file by its name and, if that is not enough, by its content."""
        what = self._judge(path, name.lower())
        if what:
            self.others[path] = what

    def _judge(self, path: str, name: str) -> str:
        """Return what the file is that it must not be, "" if it is nothing of the kind."""
        suffix = os.path.splitext(name)[1]
        if name not in _NAMES and suffix not in _SUFFIXES:
            return ""
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return ""
        if name in _REPOSITORIES:
            return _REPOSITORY if S_ISDIR(mode) else ""
        if not S_ISREG(mode):
            return ""
        return _FILES.get(name) or (_KEYS if suffix in _KEY_STORES else self._judge_content(path, suffix))

    def _judge_content(self, path: str, suffix: str) -> str:
        head = self._head(path)
        if suffix in _KEY_SUFFIXES:
            return _KEY if _PEM_KEY in head else ""
        if suffix in _DATABASES:
            return _DATABASE if head.startswith(_SQLITE_MAGIC) or _has_beside(path, _SQLITE_BESIDE) else ""
        return _USERS if _HASHED.search(head) else ""

    def _head(self, path: str) -> bytes:
        if self.reads_left <= 0:
            return b""
        self.reads_left -= 1
        try:
            # It was a regular file just now; should it be a FIFO, this does not wait for a writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, _HEAD_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            return b""


def _look_through(directory: str, findings: _Findings) -> None:
    for name in sorted(_NAMES):  # asked for by name, so that they are found among any number of others
        findings.look_at(os.path.join(directory, name), name)
    left = MAX_ENTRIES
    waiting = deque([directory])
    while waiting and left > 0 and not findings.full():
        share = left if left <= _SHARE_MIN else max(_SHARE_MIN, left // 2)
        for entry in _entries(waiting.popleft(), share):
            left -= 1
            name = entry.name
            if name.lower() in _NAMES or os.path.splitext(name)[1].lower() in _SUFFIXES:
                findings.look_at(entry.path, name)
            if (name[0] != "." or name == ".well-known") and _is_directory(entry):
                waiting.append(entry.path)


def _entries(directory: str, count: int) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a directory, at most `count`, as far as it can be read."""
    try:
        with os.scandir(directory) as scan:
            for _ in range(count):
                entry = next(scan, None)
                if entry is None:
                    return
                yield entry
    except OSError:
        return


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _has_beside(path: str, endings: Sequence[str]) -> bool:
    return any(os.path.lexists(path + ending) for ending in endings)


# --- the app's source ---


def _sources(directory: Path, status: os.stat_result, app_files: Sequence[Path]) -> list[tuple[str, str]]:
    """Return which of the app's files are in `directory`, and what they are, folders first.

    Directories are compared by what they are, not by what they are called: the same one may be mounted twice, or be
    on a file system that does not tell upper from lower case.
    """
    served = _identity(status)
    known: dict[str, _Identity | None] = {}
    paths = {path for file in app_files if (path := _real(file)) is not None}
    found = [path for path in paths if any(_identity_of(place, known) == served for place in _upwards(path))]
    if found:
        kinds = [(path, _SOURCE_FOLDER if os.path.isdir(path) else _SOURCE) for path in found]
        return sorted(kinds, key=lambda kind: (kind[1] != _SOURCE_FOLDER, kind[0]))
    real = _real(directory)
    if real is not None and S_ISDIR(status.st_mode) and _is_package_in(real, set(filter(os.path.isdir, paths))):
        return [(real, _SOURCE_PACKAGE)]
    return []


def _is_package_in(directory: str, folders: set[str]) -> bool:
    """Return whether `directory` is a package that is imported from one of the app's folders."""
    for place in _upwards(directory):
        if place in folders:
            return True
        if not os.path.lexists(os.path.join(place, "__init__.py")):
            return False
    return False


def _upwards(path: str) -> Iterator[str]:
    """Yield an absolute path and all directories that it is in."""
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path:
            return
        path = above


def _identity_of(path: str, known: dict[str, _Identity | None]) -> _Identity | None:
    if path not in known:
        try:
            known[path] = _identity(os.stat(path))
        except (OSError, ValueError):
            known[path] = None
    return known[path]


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _real(path: Path) -> str | None:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return None


def _shown(path: str) -> str:
    """Return a path such that it cannot be taken for anything else in a log: names may hold line ends."""
    return path if path.isprintable() else ascii(path)
