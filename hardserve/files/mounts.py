"""Where on the site which files are: the mounts of a server, and which of them a path is in.

Made once, at start, and read by any thread after that. Paths are those of WSGI, decoded once, with each byte as a
character of its own (PEP 3333). Whether there is such a file is not known here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hardserve.files.tree import Tree, may_be_served
from hardserve.http.paths import PathPattern, normalized
from hardserve.settings import StaticSettings

# What builds write before the suffix of scripts, styles and fonts: eight or more hexadecimal digits, letters and digits
# both (`app.3f2a91c4.js`), or eight characters of base64, a digit and a capital past the first among them
# (`index-BxK3aD9f.js`). Not `bootstrap-carousel.js`, `api-Version2.js` or `report-20240131.js`, which are written over;
# and of those that are hashes some are not seen, which costs a browser a question. Pictures and data have such names
# for other reasons.
_HASHED = re.compile(
    r"[.-](?:(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{8,64}|(?=[^.]*[0-9])(?=.[^.]*[A-Z])[A-Za-z0-9_-]{8})"
    r"(?:\.(?:min|bundle|chunk))?\.(?:(?:js|mjs|css)(?:\.map)?|wasm|woff2?|ttf|otf)$"
)
# Not `public`: behind a password, that would let a shared cache give it to anybody (RFC 9111 3.5).
FOR_EVER = "max-age=31536000, immutable"


@dataclass(frozen=True, slots=True, eq=False)
class Mount:
    """A directory, or one file, and how it is served.

    `name` is that of the one file, b"" for a directory; `tree` is then the directory that it is in. `index` and
    `fallback` are "" for none.
    """

    url: str
    tree: Tree
    name: bytes = b""
    index: str = "index.html"
    listing: bool = False
    misses_to_app: bool = False
    fallback: str = ""
    app_paths: Sequence[PathPattern] = field(default=())
    cache_control: str = "no-cache"
    immutable: str = "auto"
    precompressed: bool = True
    internal: bool = False

    @classmethod
    def from_settings(cls, settings: StaticSettings) -> Self:
        """Make a mount of what an operator has written. Raises OSError where nothing is there to be served."""
        is_file = _is_file(settings.directory)
        path = Path(settings.directory)
        return cls(
            url=_wsgi(settings.url),
            # The one file is what the operator has named, wherever a link leads.
            tree=Tree(path.parent if is_file else path, follow_symlinks=is_file or settings.follow_symlinks == "on"),
            name=os.fsencode(path.name) if is_file else b"",
            index=_unless_off(settings.index),
            listing=settings.listing == "on",
            misses_to_app=settings.miss == "app",
            fallback=_wsgi(_unless_off(settings.fallback)),
            app_paths=[PathPattern(text) for text in settings.app_paths],
            cache_control=_unless_off(settings.cache_control),
            immutable=settings.immutable,
            precompressed=settings.precompressed == "on",
            internal=settings.internal == "on",
        )

    @classmethod
    def of_app(cls, url: str, directory: str, max_age: int | None, *, follow_symlinks: bool = False) -> Self:
        """Make a mount of a static folder that an app has told of; what is not in it is the app's to answer.

        `max_age` is what Flask would say, in seconds, None for "no-cache".
        """
        return cls(
            url=_wsgi(url),
            tree=Tree(directory, follow_symlinks=follow_symlinks),
            index="",
            misses_to_app=True,
            cache_control="no-cache" if max_age is None else f"max-age={max_age}",
        )

    def has_below(self, path: str) -> bool:
        """Return whether `path`, as an operator would write it, is below this mount's URL."""
        return _wsgi(path).startswith(f"{self.url.rstrip('/')}/")

    def cache_control_of(self, name: str) -> str:
        """Return the Cache-Control of a file of this name, "" for none."""
        for_ever = self.immutable == "on" or (self.immutable == "auto" and _HASHED.search(name) is not None)
        return FOR_EVER if for_ever else self.cache_control


def _is_file(path: str) -> bool:
    """Return whether a path is one file and no directory. Raises OSError where it is neither."""
    if os.path.isdir(path):
        return False
    if not os.path.isfile(path):
        os.stat(path)  # raises where nothing is there
        raise OSError("expected a directory, or a file")
    if not may_be_served(os.fsencode(Path(path).name), first=False):
        raise OSError("a file of that name is never served")
    return True


def _unless_off(text: str) -> str:
    return "" if text == "off" else text


def _wsgi(text: str) -> str:
    return text.encode().decode("latin-1")


def short_form(text: str) -> StaticSettings:
    """Return what URL=PATH stands for."""
    url, _, directory = text.partition("=")
    return StaticSettings(url=url, directory=directory)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a mount a path is.

    `parts` are the names on the way; `is_directory` is whether the path ends with a slash. `servable` is whether
    files of such names are ever served at all.
    """

    mount: Mount
    parts: tuple[bytes, ...]
    is_directory: bool
    servable: bool


class Mounts:
    """The mounts of one server. Of several that a path is in, the one with the longest URL counts.

    `named` are those whose files an app may send by their paths; all of them unless told.
    """

    __slots__ = ("_below", "_files", "_internal", "_internal_files", "_prefixes", "named")

    def __init__(self, mounts: Sequence[Mount], *, named: Sequence[Mount] | None = None) -> None:
        served = [mount for mount in mounts if not mount.internal]
        internal = [mount for mount in mounts if mount.internal]
        self._files = _by_url(served)
        self._below = _longest_first(served)
        # A path of the app's own meets none of these, which one call finds out.
        self._prefixes = tuple(dict.fromkeys(mount.url for mount in served))
        self._internal_files = _by_url(internal)
        self._internal = _longest_first(internal)
        self.named = tuple(mounts if named is None else named)

    def __repr__(self) -> str:
        return f"<Mounts {' '.join(self._prefixes)}>"

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    @property
    def urls(self) -> list[str]:
        return [url.encode("latin-1").decode() for url in self._prefixes]

    def may_have(self, path: str) -> bool:
        """Return whether `find` is worth asking."""
        return path.startswith(self._prefixes)

    def find(self, path: str) -> Place | None:
        """Return where `path` is, None if it is the app's."""
        return _place(path, self._files, self._below)

    def find_internal(self, path: str) -> Place | None:
        """Return where `path` is that an app has named in X-Accel-Redirect."""
        return _place(path, self._internal_files, self._internal)


def _by_url(mounts: Sequence[Mount]) -> dict[str, Mount]:
    """Return the mounts of single files."""
    return {mount.url: mount for mount in mounts if mount.name}


def _longest_first(mounts: Sequence[Mount]) -> list[tuple[str, Mount]]:
    """Return the mounts of directories with what their paths begin with."""
    ordered = sorted((mount for mount in mounts if not mount.name), key=lambda mount: len(mount.url), reverse=True)
    return [(f"{mount.url.rstrip('/')}/", mount) for mount in ordered]


def _place(path: str, files: Mapping[str, Mount], mounts: Sequence[tuple[str, Mount]]) -> Place | None:
    file = files.get(path)
    if file is not None:
        return Place(file, (file.name,), is_directory=False, servable=True)
    for prefix, mount in mounts:
        if path.startswith(prefix) or path == mount.url:
            usual = normalized(path)
            if any(pattern.matches(usual) or pattern.matches(path) for pattern in mount.app_paths):
                return None
            *parts, last = path[len(prefix) :].encode("latin-1").split(b"/")
            if last:
                parts.append(last)
            # An empty name is only a miss: an app may take two slashes for one.
            servable = all(not part or may_be_served(part, first=not index) for index, part in enumerate(parts))
            return Place(mount, tuple(parts), not last and path != mount.url, servable)
    return None
