"""Who may read and write the files of an app: whether a user that owns nothing can run it, or only their owner.

Main thread, in the command only; changes nothing. Paths are absolute, and looked at below `root`, which is / but for
tests.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

READ, WRITE = 4, 2

# Where an app that is started by hand keeps what it writes, as far as a name tells.
DATA_DIRECTORIES = ("instance", "uploads", "media", "data")
DATA_SUFFIXES = (".db", ".sqlite", ".sqlite3")
# Files of an app that are looked at; what has more of them is judged by these.
MAX_LOOKS = 5000
_CODE_SUFFIXES = (".py", ".so", ".html", ".css", ".js")
_NO_CODE = frozenset({".git", "node_modules", "__pycache__", *DATA_DIRECTORIES})


@dataclass(frozen=True, slots=True)
class User:
    number: int
    groups: frozenset[int] = frozenset()


def is_below(path: Path, directories: Iterable[Path]) -> bool:
    """Return whether `path` is one of `directories` or in one."""
    return any(path.is_relative_to(each) for each in directories)


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Return those that are in none of the others, each once, in order."""
    unique = sorted(set(paths))
    return [path for path in unique if not any(path != other and path.is_relative_to(other) for other in unique)]


def barrier(path: Path, root: Path) -> Path | None:
    """Return what keeps everybody from reading `path`: itself, or a directory above it; None if nothing does.

    What does not exist keeps nobody.
    """
    for each in (*reversed(path.parents), path):
        with contextlib.suppress(OSError):
            status = _below(root, each).stat()
            wanted = stat.S_IXOTH if each != path else stat.S_IROTH
            if stat.S_ISDIR(status.st_mode):
                wanted |= stat.S_IXOTH
            if status.st_mode & wanted != wanted:
                return each
    return None


def private_code(directory: Path, root: Path) -> Path | None:
    """Return a file of the app's code that not everybody may read, or the directory it is in, or None."""
    for looks, each in enumerate(_code(directory, root)):
        if looks >= MAX_LOOKS:
            break
        with contextlib.suppress(OSError):
            mode = _below(root, each).stat().st_mode
            wanted = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
            if mode & wanted != wanted:
                return each
    return None


def _code(directory: Path, root: Path) -> Iterator[Path]:
    for place, names, files in os.walk(_below(root, directory)):
        here = directory / Path(place).relative_to(_below(root, directory))
        names[:] = [name for name in sorted(names) if name not in _NO_CODE]
        yield from (here / name for name in names)
        yield from (here / name for name in sorted(files) if name.endswith(_CODE_SUFFIXES))


def data_in(directory: Path, root: Path) -> list[Path]:
    """Return the directories in which the app of `directory` keeps what it writes, as far as names tell."""
    here = _below(root, directory)
    found = [directory / name for name in DATA_DIRECTORIES if (here / name).is_dir()]
    with contextlib.suppress(OSError):
        if any(name.endswith(DATA_SUFFIXES) for name in os.listdir(here)):
            return [directory]  # SQLite writes beside the database, too
    return found


def may(user: User, wanted: int, path: Path, root: Path) -> bool:
    """Return whether a user may READ or WRITE `path`, as far as modes say. What does not exist hinders nobody."""
    for each in (*reversed(path.parents), path):
        with contextlib.suppress(OSError):
            status = _below(root, each).stat()
            if user.number == status.st_uid:
                bits = status.st_mode >> 6
            else:
                bits = status.st_mode >> 3 if status.st_gid in user.groups else status.st_mode
            needed = (wanted if each == path else 0) | stat.S_ISDIR(status.st_mode)
            if bits & needed != needed:
                return False
    return True


def owner(path: Path, root: Path) -> int:
    """Return the id of the user who owns `path`. Raises OSError."""
    return _below(root, path).stat().st_uid


def find_upwards(directory: Path, names: Sequence[str], root: Path) -> list[Path]:
    """Return of each name the nearest file in `directory` or above, as hardserve finds .env."""
    found = []
    for name in names:
        for parent in (directory, *directory.parents):
            if _below(root, parent / name).is_file():
                found.append(parent / name)
                break
    return found


def _below(root: Path, path: Path) -> Path:
    return path if root == Path("/") else root / path.relative_to("/")
