"""Paths of requests and patterns of them, as operators write them (RFC 3986 5.2.4, 6.2.2). Pure; any thread.

Paths are compared as the app sees them, decoded once, and without what different spellings of one path differ in:
`//upload`, `/./upload`, `/a/../upload` and `/%75pload` meet the pattern `/upload`.

A pattern has no special character but `*`, so that it is matched by looking for its pieces from left to right: there is
nothing to go back to, whatever a client sends.
"""

from __future__ import annotations

import re

_SLASHES = re.compile("/+")


def normalized(path: str) -> str:
    """Return `path`, a decoded WSGI path, without empty segments and dot segments. Linear.

    Slashes are merged before `..` takes a segment away, as nginx and file systems do it; RFC 3986 5.2.4 alone would
    have `/a//../b` be `/a/b`. A slash at the end stays, and an empty path is `/` (RFC 3986 6.2.3).
    """
    if "//" not in path and "/." not in path and path:
        return path
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    is_directory = path.endswith(("/", "/.", "/.."))
    return f"/{'/'.join(segments)}/" if segments and is_directory else f"/{'/'.join(segments)}"


def spellings(path: str) -> tuple[str, ...]:
    """Return what an app may take `path` for, a decoded WSGI path: nearly always that alone."""
    usual = normalized(path)
    if usual == path:
        return (path,)
    merged = _SLASHES.sub("/", path) or "/"
    return tuple(dict.fromkeys((usual, merged, path)))


class PathPattern:
    """The paths that an operator's `path` means. `*` stands for any characters, also none, and slashes too.

    A slash at the end of a request's path makes no difference: an app may serve both (`strict_slashes=False`), and a
    rule for one must not be passed by the other. So `/upload/*` is `/upload` and everything below it.
    """

    __slots__ = ("_first", "_last", "_middle", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        # A WSGI path has each byte as a character of its own (PEP 3333), the operator's text does not.
        self._first, *rest = text.encode().decode("latin-1").split("*")
        self._last = rest.pop() if rest else None  # None: there is no star, and all of it must be equal
        self._middle = [piece for piece in rest if piece]

    def __repr__(self) -> str:
        return f"<PathPattern {self._text}>"

    def matches(self, path: str) -> bool:
        """Return whether `path`, one of the `spellings` of a request's, is one of these."""
        bare = path.removesuffix("/")
        return self._fits(bare) or self._fits(f"{bare}/")

    def _fits(self, path: str) -> bool:
        if self._last is None:
            return path == self._first
        at, end = len(self._first), len(path) - len(self._last)
        if at > end or not (path.startswith(self._first) and path.endswith(self._last)):
            return False
        for piece in self._middle:
            at = path.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True
