"""How a unit file is written: sections, lines with the reasons above them, and values as systemd reads them.

Pure functions, in the command only. What is quoted how: systemd.syntax(7), systemd.service(5) "Command lines",
systemd.unit(5) "Specifiers".
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 120


@dataclass(frozen=True, slots=True)
class Line:
    """One setting of a unit, and the reason for it where that is not obvious.

    `value` is as systemd reads it: what was somebody's has been through one of the functions below.
    """

    key: str
    value: str
    why: str = ""
    example: bool = False  # behind a #, for whoever wants it


@dataclass(frozen=True, slots=True)
class Section:
    name: str  # "Service"
    lines: Sequence[Line]


def render(head: Sequence[str], sections: Iterable[Section]) -> str:
    """Write a unit file that begins with the lines of `head` as comments."""
    parts = ["\n".join(f"# {line}".rstrip() for line in head)]
    parts += ["\n".join([f"[{section.name}]", *_written(section.lines)]) for section in sections]
    return "\n\n".join(parts) + "\n"


def _written(lines: Iterable[Line]) -> Iterable[str]:
    for line in lines:
        yield from textwrap.wrap(line.why, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        yield f"{'#' * line.example}{line.key}={line.value}"


def literal(text: str) -> str:
    """Write a value that is the whole rest of a line, such as the path of WorkingDirectory= or ListenStream=."""
    return _printable(text).replace("%", "%%")


def word(text: str) -> str:
    """Write one of several values on a line, such as a path of ReadWritePaths= or NAME=value of Environment=."""
    escaped = literal(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if not text or re.search(r"[\s\"'\\;#]", text) else escaped


def path_word(path: str) -> str:
    """Write a path of BindPaths= and its like, in which a colon would end it."""
    escaped = literal(path).replace("\\", "\\\\").replace('"', '\\"').replace(":", "\\:")
    return f'"{escaped}"' if re.search(r"[\s\"'\\;#:]", path) else escaped


def command(words: Sequence[str]) -> str:
    """Write a command line of ExecStart=. A dollar sign is one, and not the beginning of a variable."""
    colon = ":" if any("$" in each for each in words) else ""  # no variables are looked for
    return colon + " ".join(map(word, words))


def _printable(text: str) -> str:
    """Raises ValueError for what no line of a unit can say."""
    if not text.isprintable() or text != text.strip():
        raise ValueError(f"{text!r} cannot be written into a unit: rename it")
    return text
