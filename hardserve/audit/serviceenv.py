"""Where systemd and python-dotenv read one .env file as two: what EnvironmentFile= makes of it (systemd.exec(5)).

Pure. Values are secrets: what is returned has names and reasons only.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

_BLANK, _NEWLINE, _COMMENT = " \t\n\r", "\n\r", "#;"
# What a backslash takes the meaning of between double quotes; before all else it stays.
_ESCAPED_IN_QUOTES = '"\\`$'
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _At(enum.Enum):
    """Where in a file the reading is."""

    BEFORE_NAME = enum.auto()
    NAME = enum.auto()
    BEFORE_VALUE = enum.auto()  # also between its parts: after a closing quote another may follow
    VALUE = enum.auto()
    VALUE_ESCAPE = enum.auto()
    SINGLE = enum.auto()
    DOUBLE = enum.auto()
    DOUBLE_ESCAPE = enum.auto()
    COMMENT = enum.auto()
    COMMENT_ESCAPE = enum.auto()


@dataclass(slots=True)
class _Reader:
    """systemd's parser of such files, as a machine that is fed characters."""

    values: dict[str, str]
    at: _At = _At.BEFORE_NAME
    name: str = ""
    value: str = ""
    kept: int = 0  # of the value, what blanks at its end do not belong to

    def feed(self, char: str) -> None:  # noqa: C901, PLR0912  # one state after the other
        match self.at:
            case _At.BEFORE_NAME:
                if char in _COMMENT:
                    self.at = _At.COMMENT
                elif char not in _BLANK:
                    self.at, self.name = _At.NAME, char
            case _At.NAME:
                if char in _NEWLINE:
                    self.at = _At.BEFORE_NAME
                elif char == "=":
                    self.at, self.value, self.kept = _At.BEFORE_VALUE, "", 0
                else:
                    self.name += char
            case _At.BEFORE_VALUE:
                if char in _NEWLINE:
                    self.end()
                elif char in "'\"\\":
                    self.at = {"'": _At.SINGLE, '"': _At.DOUBLE, "\\": _At.VALUE_ESCAPE}[char]
                elif char not in _BLANK:
                    self.at = _At.VALUE
                    self.push(char)
            case _At.VALUE:
                if char in _NEWLINE:
                    self.end()
                elif char == "\\":
                    self.at, self.kept = _At.VALUE_ESCAPE, len(self.value)
                else:
                    self.push(char, blank=char in _BLANK)
            case _At.VALUE_ESCAPE:
                self.at = _At.VALUE
                if char not in _NEWLINE:
                    self.push(char)
            case _At.SINGLE | _At.DOUBLE:
                if char == ("'" if self.at is _At.SINGLE else '"'):
                    self.at = _At.BEFORE_VALUE
                elif char == "\\" and self.at is _At.DOUBLE:
                    self.at = _At.DOUBLE_ESCAPE
                else:
                    self.push(char)
            case _At.DOUBLE_ESCAPE:
                self.at = _At.DOUBLE
                if char != "\n":
                    self.push(char if char in _ESCAPED_IN_QUOTES else f"\\{char}")
            case _At.COMMENT:
                if char == "\\":
                    self.at = _At.COMMENT_ESCAPE
                elif char in _NEWLINE:
                    self.at = _At.BEFORE_NAME
            case _At.COMMENT_ESCAPE:
                self.at = _At.COMMENT

    def push(self, text: str, *, blank: bool = False) -> None:
        self.value += text
        if not blank:
            self.kept = len(self.value)

    def end(self) -> None:
        """Take what has been read, if its name is one."""
        name = self.name.rstrip()
        if _NAME.fullmatch(name):
            self.values[name] = self.value[: self.kept]
        self.at = _At.BEFORE_NAME


def as_systemd(text: str) -> dict[str, str]:
    """Return the variables that systemd finds in a file. A name that is none is left out, as systemd does."""
    reader = _Reader({})
    for char in text:
        reader.feed(char)
    if reader.at not in (_At.BEFORE_NAME, _At.NAME, _At.COMMENT, _At.COMMENT_ESCAPE):
        reader.end()
    return reader.values


def differences(text: str, values: Mapping[str, str], origins: Mapping[str, str]) -> list[str]:
    """Say what systemd reads otherwise than python-dotenv, whose `values` these are: where, which name, and how."""
    theirs = as_systemd(text)
    said = []
    for name, value in values.items():
        if theirs.get(name) != value:
            said.append(f"{origins.get(name, name)} {name} ({_how(value, theirs.get(name))})")
    return said


def _how(ours: str, theirs: str | None) -> str:
    """Say how two readings of a value differ, without either."""
    if theirs is None:
        return "not set by systemd: export, or a name that is none"
    if re.match(rf"{re.escape(ours)}\s*#", theirs):
        return "for systemd the comment is part of the value"
    if "$" in theirs and theirs != ours and re.search(r"\$\{\w", theirs):
        return "systemd does not put in ${...}"
    if "\n" in ours or "\\" in theirs or "\\" in ours:
        return "systemd reads backslashes otherwise"
    return "systemd reads quotes otherwise"
