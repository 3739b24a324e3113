"""What must not lie in a directory that is served: the app's source, its settings, databases and keys.

Main thread, at start; may block on a file system, and so is bounded. It knows neither mounts nor apps: it is told a
directory and which files are the app's, and returns sentences. Whether they keep the server from starting is not its
to say.

Each finding is something that nobody means to publish, not something that looks suspicious: a certificate is no key,
a thumbnail store called `Thumbs.db` is no SQLite database, and Python files are downloads like any other unless they
are the app's: modules that are loaded, and whatever lies in the app's package, outside of the static folders that it
shows itself. What begins with a dot is never served, and is told where it costs nothing, since the next server, or a
backup that is unpacked here, may be less careful.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_SOURCE_COMPILED = "the app's own source, compiled"
_SOURCE_BESIDE = "Python that lies where the app's own does"
_TEMPLATES = "a folder of the app's templates"
_TEMPLATE = "one of the app's templates"
_INSTANCE = "the app's instance folder, which is for its settings and databases"
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
_BY_SUFFIX = {".env": _ENVIRONMENT, ".p12": _KEYS, ".pfx": _KEYS}
_DATABASES = frozenset({".db", ".db3", ".s3db", ".sqlite", ".sqlite3", ".bak"})
_KEY_SUFFIXES = frozenset({".pem", ".key"})
_SUFFIXES = _USERS_SUFFIXES | _DATABASES | _KEY_SUFFIXES | _BY_SUFFIX.keys()
# What is source if it lies where the app's is.
_PYTHON = dict.fromkeys((".py", ".pyc", ".pyw", ".pyx"), _SOURCE_BESIDE)
_MARKUP = dict.fromkeys((".html", ".htm", ".j2", ".jinja", ".jinja2"), _TEMPLATE)
_CACHE = "__pycache__"
_NAMES = _REPOSITORIES | _USERS_NAMES | _FILES.keys()

_SQLITE_MAGIC = b"SQLite format 3\0"
_SQLITE_BESIDE = ("-wal", "-journal")
_PEM_KEY = b"PRIVATE KEY-----"
# As `hardserve passwd` and htpasswd write them.
_HASHED = re.compile(
    rb"^[^:\s#]{1,256}:(?:scrypt:|pbkdf2:|\$2[aby]\$|\$apr1\$|\$[156]\$|\$argon2|\{SHA\})", re.MULTILINE
)

_Identity = tuple[int, int]


class AppFiles:
    """What is the app's own. Made once, for all directories that are asked about; may block.

    `files` are its modules and databases. `packages` are directories in which all Python is the app's, `roots` others
    that its modules are imported from, `templates` and `instances` its folders of those. What is in `public`, the app
    itself shows to everybody, unless one of its files is in there. None of them need exist.
    """

    def __init__(
        self,
        files: Sequence[Path] = (),
        *,
        packages: Sequence[Path] = (),
        roots: Sequence[Path] = (),
        templates: Sequence[Path] = (),
        instances: Sequence[Path] = (),
        public: Sequence[Path] = (),
    ) -> None:
        self._known: dict[str, _Identity | None] = {}
        self.files = _reals(files)
        self.packages = _directories(packages)
        self.roots = _directories(roots)
        self.instances = _directories(instances)
        # What one of these is in is neither public nor for templates alone.
        above = {place for path in self.files | self.packages | self.instances for place in _upwards(path)}
        self.public = _directories(public) - above
        self.templates = {path for path in _directories(templates) if not self.public.intersection(_upwards(path))}
        self._pure_templates = self.templates - above

    def __repr__(self) -> str:
        return f"<AppFiles {len(self.files)} files, packages {sorted(self.packages)}>"

    def inside(self, directory: Path, status: os.stat_result) -> list[tuple[str, str]]:
        """Return which of the app's files and folders are in `directory`, or are it, and what they are, folders first.

        Directories are compared by what they are, not by what they are called: the same one may be mounted twice, or
        be on a file system that does not tell upper from lower case.
        """
        served = _identity(status)
        kinds = (self.packages, _SOURCE_FOLDER), (self.instances, _INSTANCE), (self.templates, _TEMPLATES)
        found = [(path, what) for paths, what in kinds for path in sorted(paths) if self._is_in(path, served)]
        # A single file may be one of them by a hard link; a directory need not be compared with files.
        place_of: Callable[[str], str] = os.path.dirname if S_ISDIR(status.st_mode) else str
        found += [(path, _SOURCE) for path in sorted(self.files) if self._is_in(place_of(path), served)]
        real = _real(directory)
        if found or real is None:
            return found
        if S_ISDIR(status.st_mode) and _is_package_in(real, self.packages | self.roots):
            return [(real, _SOURCE_PACKAGE)]
        cache = real if S_ISDIR(status.st_mode) else os.path.dirname(real)
        if os.path.basename(cache) == _CACHE and os.path.dirname(cache) in set(map(os.path.dirname, self.files)):
            return [(real, _SOURCE_COMPILED)]
        return []

    def suffixes_in(self, directory: Path) -> Mapping[str, str]:
        """Return what files with some suffix are if they are in `directory`, or are it."""
        real = _real(directory)
        around = {identity for place in _upwards(real) if (identity := self._identity_of(place))} if real else set()
        if self._any_of(self.public, around):
            return {}
        single = not os.path.isdir(directory)  # which nobody has uploaded there
        packages = self.packages | self.instances if single else self.packages
        python = _PYTHON if self._any_of(packages, around) else {}
        return python | (_MARKUP if self._any_of(self._pure_templates, around) else {})

    def _any_of(self, paths: Iterable[str], identities: set[_Identity]) -> bool:
        return any(self._identity_of(path) in identities for path in paths)

    def _is_in(self, path: str, served: _Identity) -> bool:
        return any(self._identity_of(place) == served for place in _upwards(path))

    def _identity_of(self, path: str) -> _Identity | None:
        if path not in self._known:
            try:
                self._known[path] = _identity(os.stat(path))
            except (OSError, ValueError):
                self._known[path] = None
        return self._known[path]


def exposed(directory: Path, *, app_files: AppFiles) -> list[str]:
    """Return a sentence for each thing in `directory` that must not be served; it may be a single file, too.

    Looks at the directory and what is below it, not into directories that are links or hidden, and at no more than
    `MAX_ENTRIES` names, the nearest first. Never raises: what cannot be read can neither be served nor judged.
    """
    try:
        status = os.stat(directory)
    except (OSError, ValueError):
        return []
    sources = app_files.inside(directory, status)
    findings = _Findings({} if sources else app_files.suffixes_in(directory))
    findings.add_sources(sources)
    if S_ISDIR(status.st_mode):
        _look_through(str(directory), findings)
    elif S_ISREG(status.st_mode):
        findings.look_at(str(directory), directory.name)
        real = os.path.realpath(directory)
        if not findings.others and real != str(directory):  # a link may have any name
            findings.look_at(real, os.path.basename(real))
    return findings.sentences()


@dataclass(slots=True)
class _Findings:
    """What was found so far, by its path, and what may still be read."""

    app_suffixes: Mapping[str, str]  # of files that are the app's, and what they are
    sources: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    reads_left: int = field(default_factory=lambda: MAX_READ)

    def full(self) -> bool:
        return len(self.others) > MAX_FINDINGS

    def sentences(self) -> list[str]:
        said = [f"{_shown(path)} is {what}" for path, what in sorted(self.others.items())[:MAX_FINDINGS]]
        return self.sources + said + (["there is more of this kind"] if self.full() else [])

    def add_sources(self, found: Sequence[tuple[str, str]]) -> None:
        self.sources += [f"{_shown(path)} is {what}" for path, what in found[:_MAX_SOURCES]]
        if len(found) > _MAX_SOURCES:
            self.sources.append(f"{len(found) - _MAX_SOURCES} more files in it are {_SOURCE}")

    def wants(self, name: str) -> bool:
        """Tell whether a file of this name, in lower case, is worth a look."""
        suffix = os.path.splitext(name)[1]
        return name in _NAMES or suffix in _SUFFIXES or suffix in self.app_suffixes

    def look_at(self, path: str, name: str) -> None:
        """Judge a file by its name and, if that is not enough, by its content."""
        what = self._judge(path, name.lower())
        if what:
            self.others[path] = what

    def _judge(self, path: str, name: str) -> str:
        """Return what the file is that it must not be, "" if it is nothing of the kind."""
        suffix = os.path.splitext(name)[1]
        if not self.wants(name):
            return ""
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return ""
        if name in _REPOSITORIES:
            return _REPOSITORY if S_ISDIR(mode) else ""
        if not S_ISREG(mode):
            return ""
        by_name = _FILES.get(name) or self.app_suffixes.get(suffix)
        return by_name or _BY_SUFFIX.get(suffix) or self._judge_content(path, suffix)

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
            if findings.wants(name.lower()):
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


def _reals(paths: Iterable[Path]) -> set[str]:
    return {real for path in paths if (real := _real(path)) is not None}


def _directories(paths: Iterable[Path]) -> set[str]:
    return set(filter(os.path.isdir, _reals(paths)))


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
