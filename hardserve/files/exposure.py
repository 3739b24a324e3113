"""What must not lie in a directory that is served: the app's source, its settings, databases and keys.

Main thread, at start; may block on a file system, and so is bounded. It knows neither mounts nor apps: it is told a
directory and which files are the app's, and returns sentences. Whether they keep the server from starting is not its
to say.

Each finding is something that nobody means to publish, not something that looks suspicious: a certificate is no key,
a thumbnail store called `Thumbs.db` is no SQLite database, and Python files are downloads like any other unless they
are the app's: modules that are loaded, and whatever lies in the app's package, outside of the static folders with which
it shows that itself. What begins with a dot is never served, and is told where it costs nothing, since the next server, or a
backup that is unpacked here, may be less careful.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_SOURCE_BESIDE = "Python in a package of the app's"
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
        secret = {*self.files, *self.packages, *self.instances}
        self.public = {path for path in _directories(public) if not _is_above(path, secret)}
        self.templates = {path for path in _directories(templates) if not self.public.intersection(_upwards(path))}
        # Where something else of the app's is, too, not all that looks like a template is one.
        self._pure_templates = {path for path in self.templates if not _is_above(path, secret)}

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
        # A single file may be one of them by a hard link; in a directory they are by their own directories.
        for path in sorted(self.files):
            if self._is_in(path if S_ISREG(status.st_mode) else os.path.dirname(path), served):
                found.append((path, _SOURCE))
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
