"""Which file an app means that has one sent for it, by X-Sendfile or X-Accel-Redirect.

Workers: they may block. X-Sendfile is a path on the disk, as for Apache and lighttpd, and Flask's USE_X_SENDFILE writes
it; X-Accel-Redirect is a URL of an internal mount, as for nginx. Either way the file must be in a mount, or in a static
folder of the app: an app that lets its clients choose the name then gives away no more than what its operator has set
aside for that, and what it serves itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from hardserve.files.mounts import Mounts
from hardserve.files.tree import OpenFile, Tree
from hardserve.http.mediatypes import content_type
from hardserve.protocol import SharedFile

_Place = tuple[Tree, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class AppFile:
    """A file that an app has named, open. Whoever has it releases `file`."""

    file: SharedFile
    content_type: str


class NotMountedError(Exception):
    """What an app has named is in no mount. The text says so, for the log."""


class Sender:
    """Opens what apps name. Any worker."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._files: dict[bytes, _Place] = {}
        self._roots: list[tuple[bytes, Tree]] = []
        for mount in mounts.named:
            tree = mount.tree
            # With the links in their own paths, and without: apps may know a directory by either.
            for root in dict.fromkeys((tree.directory, os.path.realpath(tree.directory))):
                prefix = os.fsencode(f"{root.rstrip('/')}/")
                if mount.name:
                    self._files.setdefault(prefix + mount.name, (tree, (mount.name,)))
                else:
                    self._roots.append((prefix, tree))
        # Of two with the same path the first stays first.
        self._roots.sort(key=lambda root: len(root[0]), reverse=True)

    def __repr__(self) -> str:
        return f"<Sender {len(self._roots)} roots, {len(self._files)} files>"

    def open(self, name: str, value: str) -> AppFile:
        """Open the file that the field `name`, in lower case, has for its `value`.

        Raises NotMountedError, FileNotFoundError for what is no file, and OSError for one that cannot be read.
        """
        found = self._by_url(value) if name == "x-accel-redirect" else self._by_path(value)
        missing: OSError | None = None
        for tree, parts in found:
            try:
                file = tree.open(parts)
            except (FileNotFoundError, IsADirectoryError) as error:
                missing = error
            else:
                return _app_file(file, parts)
        if missing is not None:
            raise FileNotFoundError(*missing.args) from missing
        if name != "x-accel-redirect" and not value.startswith("/"):
            raise NotMountedError(f"{value!r} is no absolute path, as X-Sendfile expects, and was not sent")
        where = "a [[static]]" if name == "x-accel-redirect" else "the directory of a [[static]]"
        raise NotMountedError(f"{value!r} is not in {where}, and was not sent")

    def _by_url(self, url: str) -> Iterator[_Place]:
        for spelling in _spellings(url.partition("?")[0]):
            path = unquote_to_bytes(spelling).decode("latin-1")
            place = self._mounts.find_internal(path) or self._mounts.find(path)
            if place is not None:
                # What ends with a slash is a directory, whatever is there.
                yield place.mount.tree, _names(place.parts, ends=(b"",) if place.is_directory else ())

    def _by_path(self, path: str) -> Iterator[_Place]:
        for spelling in _spellings(path):
            found = self._find(spelling) or self._find(_resolved(spelling))
            if found is not None:
                yield found

    def _find(self, path: bytes) -> _Place | None:
        """Return where in a root a path is, as it is written: nothing that comes after the root leads out of it."""
        if path in self._files:
            return self._files[path]
        for root, tree in self._roots:
            if path.startswith(root):
                *parts, last = path[len(root) :].split(b"/")
                return tree, _names(parts, ends=(last,))
        return None


def _spellings(text: str) -> list[bytes]:
    """Return what an app may mean: a name as Python has it, or with a character for each byte (PEP 3333)."""
    found = []
    with contextlib.suppress(UnicodeEncodeError):
        found.append(os.fsencode(text))
    with contextlib.suppress(UnicodeEncodeError):
        found.append(text.encode("latin-1"))
    return list(dict.fromkeys(found))


def _names(parts: Sequence[bytes], *, ends: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the names on a path: to a file system, two slashes are one."""
    return (*filter(None, parts), *ends)


def _resolved(path: bytes) -> bytes:
    """Return a path that is in no root as it is written, with the links and dots of its directory resolved.

    Apps say `root_path + "/../uploads"`, or come to a directory by another link than the operator.
    """
    directory, slash, name = path.rpartition(b"/")
    if not path.startswith(b"/") or b"\0" in path:
        return b""
    return os.path.realpath(directory + slash).rstrip(b"/") + slash + name


def _app_file(file: OpenFile, parts: tuple[bytes, ...]) -> AppFile:
    name = os.fsdecode(parts[-1])
    return AppFile(SharedFile(file.descriptor, file.size, file.mtime_ns, name), content_type(name))
