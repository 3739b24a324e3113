"""How settings are set: the names of each, where values are found, which one counts, and what is wrong.

The names (TOML key, environment variable, flag, keyword of serve()) and the annotated reference are derived
from the declarations in settings.py. Precedence: default < TOML file < .env < environment < flag.

It fails closed. Whatever is unknown, misspelt or out of bounds, in any source, also where another source
overrides it, stops the start, and all of it is said at once: `resolve()` collects problems and raises one
SettingsError.

Runs once, before there are threads. It must not know what a setting does. Modules that only a file or a
mistake calls for are imported where they are used: the command starts sooner.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from hardserve.settings import ABOUT, About, AddressList, Kind, Settings
from hardserve.values import describe, expected, format_size, parse, show, write

VARIABLE_PREFIX = "HARDSERVE_"
DEFAULT = "default"  # the origin of a value that nobody gave
CONFIG_PATHS = ("hardserve.toml", "config/hardserve.toml")  # looked for where the command is run


class SettingsError(ValueError):
    """Settings that cannot be used. `problems` has a line for each: where, what, what is allowed."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Option:
    """One setting, and its name in each source."""

    section: str
    name: str
    kind: Kind
    default: Any
    help: str

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def keyword(self) -> str:
        """The argument of serve(). Section `server` goes without saying, here and in what follows from it."""
        return self.name if self.section == "server" else f"{self.section}_{self.name}"

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.keyword.upper()

    @property
    def flag(self) -> str:
        return "--" + self.keyword.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    help: str
    options: tuple[Option, ...]


def _sections() -> Iterator[Section]:
    defaults = Settings()
    for section in fields(defaults):
        values = getattr(defaults, section.name)
        options = []
        for setting in fields(values):
            about: About = setting.metadata[ABOUT]
            default = getattr(values, setting.name)
            options.append(Option(section.name, setting.name, about.kind, default, about.help))
        yield Section(section.name, section.metadata[ABOUT], tuple(options))


SECTIONS: tuple[Section, ...] = tuple(_sections())
OPTIONS: tuple[Option, ...] = tuple(option for section in SECTIONS for option in section.options)
_BY_SECTION: Mapping[str, Section] = {section.name: section for section in SECTIONS}
_BY_KEYWORD: Mapping[str, Option] = {option.keyword: option for option in OPTIONS}


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

        shown = _shown_path(path, directory)
        try:
            text = _read(directory / path if directory else path, shown)
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
class Resolved:
    """Settings in force, and where each came from: `origins["timeouts.header"]` is "hardserve.toml:14"."""

    settings: Settings
    origins: Mapping[str, str]
    config_path: Path | None
    dotenv_path: Path | None


def resolve(
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str],
    dotenv: DotEnv | None = None,
    config: Path | None = None,
    directory: Path,
) -> Resolved:
    """Read every source and return the settings in force.

    `flags` has what was given on the command line, by keyword. `config` names the TOML file; without it,
    that of `directory` counts, if there is one. `dotenv` may have been applied to `environ`, or not yet.

    Raises SettingsError with every problem of every source.
    """
    dotenv = dotenv or DotEnv()
    merge = _Merge()
    config_path = merge.find_toml(directory) if config is None else directory / config
    if config_path is not None:
        merge.add_toml(config_path, directory)
    merge.problems += dotenv.problems
    merge.add_variables(dotenv.values, dotenv.origins)
    # What apply() put there is the file's doing, and has been added above.
    own = {name: value for name, value in environ.items() if dotenv.values.get(name) != value}
    merge.add_variables(own, {})
    for keyword, raw in (flags or {}).items():
        option = _BY_KEYWORD[keyword]
        merge.add(option, raw, f"flag {option.flag}", f"flag {option.flag}")
    settings = merge.settings()
    origins = {option.key: merge.origins.get(option.key, DEFAULT) for option in OPTIONS}
    return Resolved(settings, origins, config_path, dotenv.path)


def from_keywords(**keywords: object) -> Settings:
    """Return the settings for serve(app, bind=..., timeouts_header=...), all others at their defaults.

    Durations and sizes are numbers (seconds, bytes) or text as in a file. Raises SettingsError.
    """
    merge = _Merge()
    for keyword, raw in keywords.items():
        option = _BY_KEYWORD.get(keyword)
        if option is None:
            merge.problems.append(f"{keyword}: unknown setting{_hint(_similar(keyword), 'keyword')}")
        else:
            merge.add(option, raw, f"keyword {keyword}", keyword)
    return merge.settings()


class _Merge:
    """Settings while they are being put together, least source first, with what is wrong so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.origins: dict[str, str] = {}
        self._values: dict[str, Any] = {}
        self._where: dict[str, str] = {}  # how a message about the value in force begins
        self._unusable: set[str] = set()

    def __repr__(self) -> str:
        return f"<_Merge: {len(self._values)} given, {len(self.problems)} problems>"

    def add(self, option: Option, raw: object, origin: str, where: str) -> None:
        """Let `raw` count from now on, or be a problem."""
        try:
            self._values[option.key] = parse(option.kind, raw)
        except ValueError as error:
            self._unusable.add(option.key)
            what = str(error) or expected(option.kind, option.default)
            self.problems.append(f"{where} = {_abridged(raw)}: {what}")
        else:
            self.origins[option.key] = origin
            self._where[option.key] = where

    def add_variables(self, variables: Mapping[str, str], origins: Mapping[str, str]) -> None:
        """Add those that are ours. `origins` has the file and line of each, if it has any."""
        by_variable = {option.variable: option for option in OPTIONS}
        for name in sorted(name for name in variables if name.startswith(VARIABLE_PREFIX)):
            origin = origins.get(name, f"environment {name}")
            where = f"{origin}: {name}" if name in origins else origin
            option = by_variable.get(name)
            if option is None:
                similar = _similar(name.removeprefix(VARIABLE_PREFIX))
                self.problems.append(f"{where}: unknown setting{_hint(similar, 'variable')}")
            elif isinstance(option.kind, AddressList):
                self.add(option, [part.strip() for part in variables[name].split(",")], origin, where)
            else:
                self.add(option, variables[name], origin, where)

    def find_toml(self, directory: Path) -> Path | None:
        # A link to nowhere counts: a start without the settings it stands for would be the greater surprise.
        found = [name for name in CONFIG_PATHS if os.path.lexists(directory / name)]
        if len(found) > 1:
            self.problems.append(f"{' and '.join(found)}: expected one of them, or --config with the one to use")
        return directory / found[0] if found else None

    def add_toml(self, path: Path, directory: Path) -> None:
        import tomllib  # noqa: PLC0415

        shown = _shown_path(path, directory)
        try:
            text = _read(path, shown)
        except SettingsError as error:
            self.problems += error.problems
            return
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # the latter and plain ValueError: absurd nesting and numbers
            self.problems.append(_syntax_problem(shown, text, str(error)))
            return
        lines = _toml_lines(text)

        def place(*names: str) -> str:
            # Within an inline table only the line of its statement is known.
            line = lines.get(names) or lines.get(names[:1])
            return f"{shown}:{line}" if line else shown

        for name, content in document.items():
            section = _BY_SECTION.get(name)
            if section is not None and isinstance(content, dict):
                for key, raw in content.items():
                    self._add_toml_value(section, key, raw, place(name, key))
            elif section is not None:
                self.problems.append(f"{place(name)}: {name} = {_abridged(content)}: expected a section, [{name}]")
            elif isinstance(content, dict):
                close = [f"[{match}]" for match in _close(name, _BY_SECTION)]
                self.problems.append(f"{place(name)}: [{_bare(name)}]: unknown section{_did_you_mean(close)}")
            else:
                self.problems.append(f"{place(name)}: {_bare(name)}: unknown setting{_hint(_similar(name), 'key')}")

    def _add_toml_value(self, section: Section, name: str, raw: object, place: str) -> None:
        for option in section.options:
            if option.name == name:
                self.add(option, raw, place, f"{place}: {option.key}")
                return
        similar = _hint(_similar(name, section), "key")
        self.problems.append(f"{place}: {section.name}.{_bare(name)}: unknown setting{similar}")

    def settings(self) -> Settings:
        """Return what counts in the end. Raises SettingsError where there is any problem."""
        settings = Settings()
        for section in SECTIONS:
            given = {each.name: self._values[each.key] for each in section.options if each.key in self._values}
            settings = replace(settings, **{section.name: replace(getattr(settings, section.name), **given)})
        problems = [*self.problems, *self._contradictions(settings)]
        if problems:
            raise SettingsError(problems)
        return settings

    def _contradictions(self, settings: Settings) -> Iterator[str]:
        """Say which settings cannot be meant together, but nothing of one that is a problem by itself."""
        for part in ("limits.request_line", "limits.header_line"):
            sizes = {key: attrgetter(key)(settings) for key in (part, "limits.header")}
            if sizes[part] > sizes["limits.header"] and not self._unusable & sizes.keys():
                said = {key: f"{self._where.get(key, key)} = {show(format_size(sizes[key]))}" for key in sizes}
                if part in self._where:
                    yield f"{said[part]}: expected at most {said['limits.header']}"
                else:  # the one that somebody gave is the one to change
                    yield f"{said['limits.header']}: expected at least {said[part]}, the default"
        log, keys = settings.log, {"log.access", "log.error"}
        if log.max_size and log.error != "stderr" and Path(log.access) == Path(log.error) and not self._unusable & keys:
            # Each of two writers would rotate the file away under the other.
            where = f"{self._where['log.access']} and {self._where['log.error']}"
            yield f"{where} = {show(log.error)}: expected two files where log.max_size rotates them"


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
    rf"[ \t]*(?P<bracket>\[?)\[?[ \t]*(?P<names>{_TOML_KEY}(?:[ \t]*\.[ \t]*{_TOML_KEY})*)[ \t]*(?:=|\]\]?)"
)
# Strings and comments first: brackets, quotes and newlines in them mean nothing.
_TOML_PART = r"""(?s)"{3}(?:\\.|[^\\])*?"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[^]["'{}\n\#]+|."""


def _toml_lines(text: str) -> dict[tuple[str, ...], int]:
    """Tell the line on which each name of a valid TOML document first stands, for tomllib does not."""
    import tomllib  # noqa: PLC0415

    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    next_statement = re.compile(_TOML_STATEMENT).match
    line, at = 1, 0
    while at < len(text):
        statement = next_statement(text, at)
        if statement is not None:
            names: list[str] = []
            nested: Any = tomllib.loads(statement["names"] + "=0")  # which knows quotes and escapes
            while isinstance(nested, dict):
                ((name, nested),) = nested.items()
                names.append(name)
            path = (*names,) if statement["bracket"] else (*table, *names)
            table = path if statement["bracket"] else table
            for length in range(1, len(path) + 1):
                lines.setdefault(path[:length], line)
        end = _end_of_statement(text, statement.end() if statement else at)
        line += text.count("\n", at, end)
        at = end
    return lines


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


def _close(word: str, words: Iterable[str]) -> list[str]:
    import difflib  # noqa: PLC0415

    return difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)


def _similar(name: str, section: Section | None = None) -> list[Option]:
    """Find what an unknown name may have meant: spelt as in another source, in another section, or badly."""
    spellings: dict[str, list[Option]] = {}
    for option in OPTIONS:
        for spelling in {option.name, option.keyword, f"{option.section}_{option.name}"}:
            spellings.setdefault(spelling, []).append(option)
    name = re.sub("[.-]", "_", name.lower())
    if name in spellings:
        return spellings[name]
    own = {option.name: option for option in section.options} if section else {}
    return [own[match] for match in _close(name, own)] or [
        option for match in _close(name, spellings) for option in spellings[match]
    ]


def _hint(similar: Sequence[Option], name_of: str) -> str:
    return _did_you_mean([getattr(option, name_of) for option in similar])


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else "; `hardserve config` lists them all"


def _bare(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else show(name)


def _abridged(raw: object) -> str:
    text = show(raw)
    return text if len(text) <= 100 else text[:99] + "…"


def _shown_path(path: Path, directory: Path | None) -> str:
    """Name a file as somebody in `directory` would."""
    if directory is not None and path.is_relative_to(directory):
        path = path.relative_to(directory)
    text = str(path)
    return text if text.isprintable() else show(text)


def _read(path: Path, shown: str) -> str:
    """Raises SettingsError for a file that is not there, not readable or not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError([f"{shown}: {error.strerror}"]) from None
    try:
        return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise SettingsError([f"{shown}:{content.count(bytes([10]), 0, error.start) + 1}: expected UTF-8"]) from None


def example_toml() -> str:
    """Write the annotated TOML file: every setting at its default, with its help, bounds and other names."""
    import textwrap  # noqa: PLC0415

    paragraphs = [_EXAMPLE_HEAD]
    for section in SECTIONS:
        paragraphs.append(f"\n# {section.help}\n[{section.name}]")
        for option in section.options:
            names = f"{option.flag}, {option.variable}: {describe(option.kind)}."
            lines = textwrap.wrap(option.help, 98) + textwrap.wrap(names, 98, break_on_hyphens=False)
            comment = "\n".join(f"# {line}" for line in lines)
            paragraphs.append(f"{comment}\n#{option.name} = {write(option.kind, option.default)}")
    return "\n\n".join(paragraphs) + "\n"


_EXAMPLE_HEAD = """\
# Every setting of hardserve, at its default. `hardserve config --example` writes this file.
#
# hardserve.toml or config/hardserve.toml is read where hardserve is started; --config names another.
# Take the # away from a setting to change it: what is left alone follows the defaults of later versions.
# Each setting also has a variable and a flag: default < this file < .env < environment < flag.
# Where there may be several values: brackets here, commas in a variable, the flag given again.
# `hardserve config` shows what is in force, and why.
#
# Durations: "500ms", "10s", "1m30s", "2h", or a number of seconds.
# Sizes: "64KiB" or "64k" (of 1024), "10MB" (of 1000), or a number of bytes."""
