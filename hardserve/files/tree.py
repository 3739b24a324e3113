"""Files of one directory, opened by names that came over the network, such that nothing outside of it ever is.

Everything here may block on a file system: file threads and workers, never the I/O thread. It knows no URL and no
mount: names come as bytes that somebody has decoded, once.

A path that was looked at first and opened afterwards can be another one by then. So no path is ever built: the
directory is opened, then each name in the descriptor of what came before, and none of these steps follows a symbolic
link. A link is read and its names are gone through in the same way, with ".." going back to a descriptor that is
still held, so that whatever is renamed or swapped meanwhile, each step begins within the directory and ends there.

The directory itself is opened anew each time, with the links in its own path followed: a deploy swaps one of them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import NoReturn, Self

# A descriptor is held for each directory on the way down.
MAX_DEPTH = 64
# As many as Linux itself follows.
MAX_LINKS = 40
# What a directory's listing has at most, and how many names are read to find the first of them.
MAX_ENTRIES = 5_000
_MAX_NAMES = 100_000

# To look names up in a directory is all that is wanted of it; without O_PATH, it must be readable for that as well.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_READABLE_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What is not a regular file any more when it is opened must neither block nor become our terminal.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# What a name can be the cause of: it must look like a file that is not there. Some file systems take not every name
# (EINVAL, EILSEQ); ENXIO and ENODEV are sockets and devices that took a file's place.
_MISSING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENAMETOOLONG),
        *(errno.EINVAL, errno.EILSEQ, errno.ENXIO, errno.ENODEV),
    }
)
# Linux says ENOTDIR of a link where a directory was wanted, macOS ELOOP, FreeBSD EMLINK.
_MAYBE_LINK = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EMLINK})

# Separators of any system and control characters; two bytes are those of the second kind, U+0080 to U+009F.
_UNSAFE = re.compile(rb"[\x00-\x1f\x7f/\\]|\xc2[\x80-\x9f]")
_WELL_KNOWN = b".well-known"  # RFC 8615


def may_be_served(name: bytes, *, first: bool) -> bool:
    """Return whether files of this name, or in a directory of this name, are for clients. Pure, any thread.

    No dot files, but for ".well-known" where it is `first` of a path, and nothing that is not UTF-8 (so no overlong
    form of a character either) or that another system would take apart.
    """
    if name[:1] in (b"", b"."):
        return first and name == _WELL_KNOWN
    if _UNSAFE.search(name):
        return False
    if not name.isascii():
        try:
            name.decode()
        except UnicodeDecodeError:
            return False
    return True


@dataclass(slots=True)
class OpenFile:
    """A regular file, open for reading, and what it was when it was opened. Whoever has it must close it."""

    descriptor: int
    size: int
    mtime_ns: int
    stat: os.stat_result

    def close(self) -> None:
        """Close it. Can be called again."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory that a client may be shown."""

    name: bytes
    is_directory: bool
    size: int
    mtime: float


class Tree:
    """What can be reached by names in `directory`. Keeps nothing open. File threads and workers.

    Symbolic links are followed as long as they do not leave the directory, and where they lead the same names are
    refused. With `follow_symlinks`, they may lead anywhere, to dot files as well.

    The methods raise FileNotFoundError for whatever must look as if it were not there: what is not, names that are
    never served, a link that leaves or leads nowhere, what is neither a regular file nor a directory, what is more
    than `MAX_DEPTH` deep. They raise PermissionError for what may not be read, and other OSErrors (EIO, EMFILE) as
    they come.
    """

    __slots__ = ("_directory", "_follow_symlinks")

    def __init__(self, directory: str | Path, *, follow_symlinks: bool) -> None:
        self._directory = os.fsencode(Path(directory).absolute())
        self._follow_symlinks = follow_symlinks

    def __repr__(self) -> str:
        following = ", following symlinks" if self._follow_symlinks else ""
        return f"<Tree {os.fsdecode(self._directory)}{following}>"

    @property
    def directory(self) -> str:
        """Its path, absolute, with the links that are in it."""
        return os.fsdecode(self._directory)

    def open(self, parts: Sequence[bytes]) -> OpenFile:
        """Open the regular file that `parts` name. Raises IsADirectoryError for a directory."""
        _refuse(parts)
        try:
            if self._follow_symlinks:
                path = self._path(parts)
                _must_be_regular(os.stat(path))
                return _open_regular(path, _FILE)
            with _Walk(self._directory, parts) as walk:
                name, status = walk.go()
                _must_be_regular(status)
                return _open_regular(name, _FILE | os.O_NOFOLLOW, walk.here)
        except OSError as error:
            _as_missing(error)

    def status(self, parts: Sequence[bytes]) -> os.stat_result:
        """Return the status of what `open` would open. Raises what it would, but for a file that cannot be read."""
        _refuse(parts)
        try:
            status = self._look(parts)
            _must_be_regular(status)
        except OSError as error:
            _as_missing(error)
        return status

    def entries(self, parts: Sequence[bytes]) -> list[Entry]:
        """Return what may be listed of the directory that `parts` name: directories first, by name.

        Those are regular files and directories, and links to them that would be followed. One more than `MAX_ENTRIES`
        says that there are more.
        """
        _refuse(parts)
        found: list[Entry] = []
        try:
            descriptor = self._open_directory(parts)
            try:
                for name in _names(descriptor):
                    entry = self._entry(parts, descriptor, name)
                    if entry is not None:
                        found.append(entry)
                        if len(found) > MAX_ENTRIES:
                            break
            finally:
                os.close(descriptor)
        except OSError as error:
            _as_missing(error)
        found.sort(key=lambda entry: (not entry.is_directory, entry.name))
        return found

    def _path(self, parts: Sequence[bytes]) -> bytes:
        return b"/".join((self._directory, *parts))

    def _look(self, parts: Sequence[bytes]) -> os.stat_result:
        """Return the status of whatever `parts` lead to."""
        if self._follow_symlinks:
            return os.stat(self._path(parts))
        with _Walk(self._directory, parts) as walk:
            _, status = walk.go()
            return os.fstat(walk.here) if status is None else status

    def _open_directory(self, parts: Sequence[bytes]) -> int:
        if self._follow_symlinks:
            return os.open(self._path(parts), _READABLE_DIRECTORY)
        with _Walk(self._directory, (*parts, b".")) as walk:
            walk.go()
            return os.open(b".", _READABLE_DIRECTORY, dir_fd=walk.here)

    def _entry(self, parts: Sequence[bytes], directory: int, name: bytes) -> Entry | None:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if S_ISLNK(status.st_mode):
                status = self._look((*parts, name))
        except OSError:  # it has gone, or is a link that leads nowhere: for one name, the others are not withheld
            return None
        is_directory = S_ISDIR(status.st_mode)
        if not is_directory and not S_ISREG(status.st_mode):
            return None
        return Entry(name, is_directory, status.st_size, status.st_mtime)


class _Walk:
    """A way down from a directory, name by name, without ever leaving it.

    Holds a descriptor for each directory that it is in, the outermost first, until the block ends that it is used in.
    `parts` are names that were judged; those that links add are judged when it is known where they lead.
    """

    __slots__ = ("_above", "_directory", "_held", "_links", "_names", "_real")

    def __init__(self, directory: bytes, parts: Sequence[bytes]) -> None:
        self._directory = directory
        self._names = [*reversed(parts)]  # still to go, the next one last
        self._links = 0  # followed so far
        self._above = 0  # so many levels above the directory a link has led, where nothing is opened
        self._real: list[bytes] = []  # the names of the directory's own path, once they are needed
        self._held = [os.open(directory, _DIRECTORY)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    @property
    def here(self) -> int:
        return self._held[-1]

    def go(self) -> tuple[bytes, os.stat_result | None]:
        """Go on to the last name; return it and its status, which is no link's. It is in the directory `here`.

        Without a status, the names have led to that directory itself.
        """
        names, held = self._names, self._held
        while names:
            name = names.pop()
            if self._above or name in (b"", b".", b".."):
                self._move(name)
                continue
            if self._links and not may_be_served(name, first=len(held) == 1):
                raise _missing()
            if names:
                self._enter(name)
            else:
                status = os.stat(name, dir_fd=held[-1], follow_symlinks=False)
                if not S_ISLNK(status.st_mode):
                    return name, status
                self._follow(name)
        if self._above:
            raise _missing()
        return b"", None

    def _enter(self, name: bytes) -> None:
        if len(self._held) > MAX_DEPTH:
            raise _missing()
        try:
            descriptor = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._held[-1])
        except OSError as error:
            if error.errno not in _MAYBE_LINK:
                raise
            self._follow(name)
        else:
            self._held.append(descriptor)

    def _follow(self, name: bytes) -> None:
        """Go on with the names in the link `name`. Raises OSError (EINVAL) if it is none."""
        self._links += 1
        if self._links > MAX_LINKS:
            raise _missing()
        target = os.readlink(name, dir_fd=self._held[-1])
        if target.startswith(b"/"):
            while len(self._held) > 1:
                os.close(self._held.pop())
            if (target + b"/").startswith(self._directory + b"/"):  # as it is configured, maybe with links in it
                target = target.removeprefix(self._directory)
            else:
                self._above = len(self._real_path())
        self._names += reversed(target.split(b"/"))

    def _move(self, name: bytes) -> None:
        """Take a step that opens nothing: up, on the spot, or back down to the directory from above it."""
        if name == b"..":
            if len(self._held) > 1:
                os.close(self._held.pop())
            else:
                self._above = min(self._above + 1, len(self._real_path()))  # above "/" there is only itself
        elif name not in (b"", b"."):
            if self._real[-self._above] != name:
                raise _missing()
            self._above -= 1

    def _real_path(self) -> list[bytes]:
        if not self._real:
            try:  # of what was opened, though the path may be another directory's by now
                path = os.readlink(b"/proc/self/fd/%d" % self._held[0])
            except OSError:
                path = os.path.realpath(self._directory)
            self._real = [name for name in path.split(b"/") if name]
        return self._real


def _refuse(parts: Sequence[bytes]) -> None:
    if len(parts) > MAX_DEPTH:
        raise _missing()
    first = True
    for name in parts:
        if not may_be_served(name, first=first):
            raise _missing()
        first = False


def _missing() -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _as_missing(error: OSError) -> NoReturn:
    if error.errno in _MISSING and not isinstance(error, FileNotFoundError):
        raise _missing() from error
    raise error


def _must_be_regular(status: os.stat_result | None) -> None:
    """Raise what tells of anything else; None is a directory."""
    if status is None or S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not S_ISREG(status.st_mode):
        raise _missing()


def _open_regular(name: bytes, flags: int, directory: int | None = None) -> OpenFile:
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        _must_be_regular(status)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenFile(descriptor, status.st_size, status.st_mtime_ns, status)


def _names(directory: int) -> Iterator[bytes]:
    """Yield the names in a directory that may be listed: those that are known to be directories first, in order."""
    known: list[tuple[bool, bytes]] = []
    with os.scandir(directory) as scan:
        for count, entry in enumerate(scan):
            if count >= _MAX_NAMES:
                break
            name = os.fsencode(entry.name)
            if may_be_served(name, first=False):
                known.append((not _is_directory(entry), name))
    known.sort()
    yield from (name for _, name in known)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
