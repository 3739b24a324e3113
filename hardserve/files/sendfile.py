"""Which file an app means that has one sent for it, by X-Sendfile or X-Accel-Redirect.

Workers: they may block. X-Sendfile is a path on the disk, as for Apache and lighttpd, and Flask's USE_X_SENDFILE writes
it; X-Accel-Redirect is a URL of an internal mount, as for nginx. Either way the file must be in a mount: an app that
lets its clients choose the name then gives away no more than what its operator has set aside for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from hardserve.files.mounts import Mounts
from hardserve.files.tree import OpenFile, Tree
from hardserve.http.mediatypes import content_type
from hardserve.protocol import SharedFile


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
        # With the links in their own paths, and without: apps may know a directory by either.
        self._roots = [
            (f"{root.rstrip('/')}/", mount.tree)
            for mount in mounts.named
            for root in dict.fromkeys((mount.tree.directory, os.path.realpath(mount.tree.directory)))
        ]
        self._roots.sort(key=lambda root: len(root[0]), reverse=True)

    def __repr__(self) -> str:
        return f"<Sender {len(self._roots)} roots>"

    def open(self, name: str, value: str) -> AppFile:
        """Open the file that the field `name`, in lower case, has for its `value`.

        Raises NotMountedError, and OSError for a file that is not there or cannot be read.
        """
        found = self._by_url(value) if name == "x-accel-redirect" else self._by_path(value)
        missing: OSError | None = None
        for tree, parts in found:
            try:
                file = tree.open(parts)
            except FileNotFoundError as error:
                missing = error
            else:
                return _app_file(file, parts)
        if missing is not None:
            raise missing
        where = "a [[static]] with internal" if name == "x-accel-redirect" else "the directory of a [[static]]"
        raise NotMountedError(f"{value!r} is not in {where}, and was not sent")

    def _by_url(self, url: str) -> Iterator[tuple[Tree, tuple[bytes, ...]]]:
        path = unquote_to_bytes(url.partition("?")[0].encode("latin-1", "surrogateescape")).decode("latin-1")
        place = self._mounts.find_internal(path) or self._mounts.find(path)
        if place is not None:
            yield place.mount.tree, place.parts

    def _by_path(self, path: str) -> Iterator[tuple[Tree, tuple[bytes, ...]]]:
        # An app writes a name as Python has it, or as a header field does, a character for each byte (PEP 3333).
        spellings = {os.fsencode(path)}
        if path.isascii() is False and max(path) <= "\xff":
            spellings.add(path.encode("latin-1"))
        for spelling in spellings:
            for root, tree in self._roots:
                prefix = os.fsencode(root)
                if spelling.startswith(prefix):
                    yield tree, tuple(spelling[len(prefix) :].split(b"/"))
                    break


def _app_file(file: OpenFile, parts: tuple[bytes, ...]) -> AppFile:
    name = os.fsdecode(parts[-1])
    return AppFile(SharedFile(file.descriptor, file.size, file.mtime_ns, name), content_type(name))
