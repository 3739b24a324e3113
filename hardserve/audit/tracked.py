"""Whether git tracks a file, and whether everybody on this machine can read it.

Blocks on files. Reads git's index (gitformat-index(5)) and not `git ls-files`: git need not be installed where the
app is served, and does nothing in a repository of another user. What it does not understand, it does not know.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_MAX_INDEX_BYTES = 64 * 1024 * 1024
_HEADER_BYTES = 12
_FIXED_BYTES = 40  # of an entry before its hash: times, device, inode, mode, owner, size
_EXTENDED = 0x4000
_UP_TO_NUL = 8  # bytes, that an entry is padded to


def is_tracked(path: Path) -> bool | None:
    """Return whether git tracks `path`; None where it is in no repository, or nothing can be found out."""
    real = Path(os.path.realpath(path))
    for directory in real.parents:
        if os.path.lexists(directory / ".git"):
            names = _names_in(directory / ".git")
            return None if names is None else os.fsencode(real.relative_to(directory)) in names
    return None


def is_open(path: Path) -> bool:
    """Return whether every user of this machine can read `path`, through all directories that it is in."""
    try:
        real = Path(os.path.realpath(path))
        status = os.stat(real)
        return bool(status.st_mode & stat.S_IROTH) and all(
            os.stat(directory).st_mode & stat.S_IXOTH for directory in real.parents
        )
    except OSError:
        return False


def _names_in(git: Path) -> set[bytes] | None:
    """Return the paths of an index; None for one that is not there, or that is of a kind not known here."""
    try:
        if git.is_file():  # of a worktree, or of a submodule
            text = git.read_text().strip()
            git = git.parent / text.removeprefix("gitdir:").strip()
        index = git / "index"
        if index.stat().st_size > _MAX_INDEX_BYTES:
            return None
        return _parsed(index.read_bytes(), _hash_bytes(git))
    except (OSError, ValueError, IndexError):
        return None


def _hash_bytes(git: Path) -> int:
    common = git / "commondir"
    config = (git / common.read_text().strip() if common.is_file() else git) / "config"
    return 32 if re.search(r"(?im)^\s*objectformat\s*=\s*sha256\s*$", config.read_text(errors="replace")) else 20


def _parsed(data: bytes, hash_bytes: int) -> set[bytes] | None:
    version = int.from_bytes(data[4:8])
    if data[:4] != b"DIRC" or version not in (2, 3, 4):
        return None
    names: set[bytes] = set()
    at, name = _HEADER_BYTES, b""
    for _ in range(int.from_bytes(data[8:12])):
        start = at
        at += _FIXED_BYTES + hash_bytes
        flags = int.from_bytes(data[at : at + 2])
        at += 4 if version > 2 and flags & _EXTENDED else 2
        kept = b""
        if version == 4:  # each name is the one before, shortened, and something new
            dropped, at = _offset(data, at)
            kept = name[: len(name) - dropped]
        end = data.index(b"\0", at)
        name = kept + data[at:end]
        names.add(name)
        at = end + 1
        if version < 4:
            at = start + -(-(at - start) // _UP_TO_NUL) * _UP_TO_NUL
    # Extensions follow, and one of them may say that this is not all (a split index, a sparse one).
    rest = data[at:-hash_bytes]
    while len(rest) >= 8:
        if rest[:4] in (b"link", b"sdir"):
            return None
        rest = rest[8 + int.from_bytes(rest[4:8]) :]
    return names


def _offset(data: bytes, at: int) -> tuple[int, int]:
    """Read a number as git's packs have offsets; return it and what follows."""
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 0x7F)
    return value, at + 1
