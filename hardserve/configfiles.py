"""The files that settings are in: .env files, TOML with the line of every name, and the pages that settings name.

Runs once, before there are threads. It must not know which settings there are. Modules that only one kind of file
calls for are imported where they are used: the command starts sooner.
"""

import os
import re
import stat
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardserve.names import VARIABLE_PREFIX
from hardserve.settings import PageFile
from hardserve.values import format_size, show

# Where a value stands in a TOML document: names, and after that of an array of tables the index of one.
TomlPath = tuple[str | int, ...]


class SettingsError(ValueError):
    """Settings that cannot be used. `problems` has a line for each: where, what, what is allowed."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class DotEnv:
    """The variables of .env files, with where each was given. Loading one changes nothing; apply() does."""

    values: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)  # such as ".env:3", of each variable
    path: Path | None = None  # of the file that counts most, where several were read
    problems: tuple[str, ...] = ()

    @classmethod
    def find(cls, directory: Path, environ: Mapping[str, str]) -> "DotEnv":
        """Load .flaskenv and .env as `flask run` does: each from `directory` or the nearest parent with one,
        .env counts more, and FLASK_SKIP_DOTENV=1 means neither.
        """
        if environ.get("FLASK_SKIP_DOTENV", "0").lower() not in ("", "0", "false", "no"):
            return cls()
        found = cls()
        for name in (".flaskenv", ".env"):
            for parent in (directory, *directory.absolute().parents):
                path = parent / name
                if os.path.isfile(path) or (os.path.exists(path) and path.is_fifo()):
                    found = found.overridden_by(cls.load(path, directory=directory))
                    break
        return found

    @classmethod
    def load(cls, path: Path, *, directory: Path | None = None) -> "DotEnv":
        """Read one file as python-dotenv does, except that nothing is skipped: a line that cannot be parsed,
        like a file that cannot be read, is among the problems of the result.
        """
        from io import StringIO  # noqa: PLC0415

        from dotenv import dotenv_values  # noqa: PLC0415
        from dotenv.parser import parse_stream  # noqa: PLC0415

        shown = shown_path(path, directory)
        try:
            text = read_text(directory / path if directory else path, shown)
        except SettingsError as error:
            return cls(path=path, problems=error.problems)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        problems: list[str] = []
        origins: dict[str, str] = {}
        usable: list[str] = []
        for binding in parse_stream(StringIO(text)):
            # A binding begins where the one before ended: blank lines in between are part of it.
            source, name = binding.original.string, binding.key
            blank_lines = source[: len(source) - len(source.lstrip())].count("\n")
            origin = f"{shown}:{binding.original.line + blank_lines}"
            if binding.error:
                problems.append(f"{origin}: cannot be parsed: expected NAME=value, and an end to every quote")
            elif name is not None and ("=" in name or "\0" in source):
                problems.append(f"{origin}: expected a name without = in it, and no zero byte")
            elif name is not None and binding.value is None and name.startswith(VARIABLE_PREFIX):
                problems.append(f"{origin}: {name}: expected a value, as in {name}=value")
            elif name is not None:
                usable.append(source)
                origins[name] = origin
        expanded = dotenv_values(stream=StringIO("".join(usable)))
        # A name without = sets nothing: so it is with `flask run`.
        values = {name: value for name, value in expanded.items() if value is not None}
        return cls(values, {name: origins[name] for name in values}, path, tuple(problems))

    def overridden_by(self, other: "DotEnv") -> "DotEnv":
        return DotEnv(
            {**self.values, **other.values},
            {**self.origins, **other.origins},
            other.path or self.path,
            self.problems + other.problems,
        )

    def apply(self, environ: MutableMapping[str, str]) -> None:
        """Set what `environ` does not have yet. Raises SettingsError where the file has problems."""
        if self.problems:
            raise SettingsError(self.problems)
        for name, value in self.values.items():
            environ.setdefault(name, value)


@dataclass(frozen=True, slots=True)
class TomlFile:
    """A TOML file: what is in it, and where."""

    document: Mapping[str, Any]
    _lines: Mapping[TomlPath, int]
    _shown: str

    @classmethod
    def load(cls, path: Path, *, directory: Path | None = None) -> "TomlFile":
        """Raises SettingsError for a file that cannot be read, or not as TOML."""
        import tomllib  # noqa: PLC0415

        shown = shown_path(path, directory)
        text = read_text(path, shown)
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # the latter and plain ValueError: absurd nesting and numbers
            raise SettingsError([_syntax_problem(shown, text, str(error))]) from None
        return cls(document, _toml_lines(text), shown)

    def place(self, *path: str | int) -> str:
        """Say where a name stands, as "hardserve.toml:14"; in an array of tables, `path` has the index as well."""
        # Within an inline table or array only the line of its statement is known.
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                return f"{self._shown}:{self._lines[path[:length]]}"
        return self._shown


def _syntax_problem(shown: str, text: str, message: str) -> str:
    """Put the line, with which tomllib's message ends, where that of every other message is."""
    match = re.fullmatch(r"(.*) \(at (?:line ([0-9]+), column [0-9]+|end of document)\)", message)
    if match is None:
        return f"{shown}: cannot be read as TOML: {message}"
    line = match[2] or text.count("\n") + (not text.endswith("\n"))
    return f"{shown}:{line}: cannot be read as TOML: {match[1]}"


_TOML_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
# Text, for `re` to compile when there is a file and not at every start.
_TOML_STATEMENT = (
    rf"[ \t]*(?P<bracket>\[?)(?P<array>\[?)[ \t]*(?P<names>{_TOML_KEY}(?:[ \t]*\.[ \t]*{_TOML_KEY})*)[ \t]*(?:=|\]\]?)"
)
# Strings and comments first: brackets, quotes and newlines in them mean nothing.
_TOML_PART = r"""(?s)"{3}(?:\\.|[^\\])*?"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[^]["'{}\n\#]+|."""


def _toml_lines(text: str) -> dict[TomlPath, int]:
    """Tell the line on which each name of a valid TOML document first stands, for tomllib does not.

    Each table of an array that is begun by [[name]] has a line and names of its own: ("name", 0), ("name", 0, "key").
    """
    lines: dict[TomlPath, int] = {}
    last: dict[TomlPath, int] = {}  # the index of the table that each array has in this moment for its last
    table: TomlPath = ()
    next_statement = re.compile(_TOML_STATEMENT).match
    line, at = 1, 0
    while at < len(text):
        statement = next_statement(text, at)
        if statement is not None:
            path = () if statement["bracket"] else table
            names = _names(statement["names"])
            for position, name in enumerate(names, 1):
                path += (name,)
                lines.setdefault(path, line)
                if statement["array"] and position == len(names):
                    last[path] = last.get(path, -1) + 1
                if path in last:
                    path += (last[path],)
                    lines.setdefault(path, line)
            table = path if statement["bracket"] else table
        end = _end_of_statement(text, statement.end() if statement else at)
        line += text.count("\n", at, end)
        at = end
    return lines


def _names(dotted: str) -> list[str]:
    import tomllib  # noqa: PLC0415

    names: list[str] = []
    nested: Any = tomllib.loads(dotted + "=0")  # which knows quotes and escapes
    while isinstance(nested, dict):
        ((name, nested),) = nested.items()
        names.append(name)
    return names


def _end_of_statement(text: str, at: int) -> int:
    depth = 0
    for part in re.compile(_TOML_PART).finditer(text, at):
        if part[0] in ("[", "{"):
            depth += 1
        elif part[0] in ("]", "}"):
            depth -= 1
        elif part[0] == "\n" and depth == 0:
            return part.end()
    return len(text)


def shown_path(path: Path, directory: Path | None) -> str:
    """Name a file as somebody in `directory` would."""
    if directory is not None and path.is_relative_to(directory):
        path = path.relative_to(directory)
    text = str(path)
    return text if text.isprintable() else show(text)


def read_text(path: Path, shown: str) -> str:
    """Raises SettingsError for a file that is not there, not readable or not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError([f"{shown}: {error.strerror}"]) from None
    try:
        return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise SettingsError([f"{shown}:{content.count(bytes([10]), 0, error.start) + 1}: expected UTF-8"]) from None


def read_page(path: Path, kind: PageFile) -> bytes:
    """Return what a PageFile has in it. Raises ValueError that says what is wrong with it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise ValueError("expected a file, and this is none")
        with path.open("rb") as file:
            content = file.read(kind.max + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) > kind.max:
        raise ValueError(f"expected a file of at most {format_size(kind.max)}")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, but line {content.count(10, 0, error.start) + 1} of it is not") from None
    return content
