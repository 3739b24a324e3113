"""How settings are set: where values are found, which one counts, and what is wrong with them.

Precedence: default < TOML file < .env < environment < flag. Arrays of tables stand in the TOML file only; serve()
takes them, like everything else, as keywords. names.py has what each is called in each source.

It fails closed. Whatever is unknown, misspelt or out of bounds, in any source, also where another source
overrides it, stops the start, and all of it is said at once: `resolve()` collects problems and raises one
SettingsError.

Runs once, before there are threads. It must not know what a setting does. Modules that only a file or a
mistake calls for are imported where they are used: the command starts sooner.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hardserve.addresses import HTTP_PORT, HTTPS_PORT, ports
from hardserve.configfiles import DotEnv, SettingsError, TomlFile
from hardserve.contradictions import Given, contradictions
from hardserve.describe import expected
from hardserve.filechecks import bad_files
from hardserve.names import (
    BY_KEYWORD,
    BY_SECTION,
    BY_TABLE,
    OPTIONS,
    SECTIONS,
    TABLES,
    VARIABLE_PREFIX,
    Option,
    Section,
    Table,
    TableKey,
    abridged,
    bare,
    example_toml,
    hint,
    misplaced,
    unknown_variable,
)
from hardserve.settings import Kind, ListKind, Settings, StorageUrl
from hardserve.values import parse, without_password, write

__all__ = [
    "DEFAULT",
    "OPTIONS",
    "SECTIONS",
    "TABLES",
    "DotEnv",
    "Option",
    "Resolved",
    "Section",
    "SettingsError",
    "Table",
    "TableKey",
    "example_toml",
    "from_keywords",
    "resolve",
]

DEFAULT = "default"  # the origin of a value that nobody gave
CONFIG_PATHS = ("hardserve.toml", "config/hardserve.toml")  # looked for where the command is run


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings in force, and where each came from: `origins["timeouts.header"]` is "hardserve.toml:14"."""

    settings: Settings
    origins: Mapping[str, str]
    config_path: Path | None
    dotenv_path: Path | None
    # How a message begins about each value that somebody gave: "hardserve.toml:14: timeouts.header", "flag --bind".
    where: Mapping[str, str] = field(default_factory=dict)

    def placed(self, problem: str) -> str:
        """Say where it is to be put right what somebody found who knows a setting by its keyword only."""
        name = problem.partition(" = ")[0]
        key = BY_KEYWORD[name].key if name in BY_KEYWORD else name
        return self.where[key] + problem.removeprefix(name) if key in self.where else problem


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
    merge = _Merge(directory)
    config_path = merge.find_toml() if config is None else directory / config
    if config_path is not None:
        merge.add_toml(config_path)
    merge.problems += dotenv.problems
    merge.add_variables(dotenv.values, dotenv.origins)
    # What apply() put there is the file's doing, and has been added above.
    own = {name: value for name, value in environ.items() if dotenv.values.get(name) != value}
    merge.add_variables(own, {})
    for keyword, raw in (flags or {}).items():
        option = BY_KEYWORD[keyword]
        merge.add(option, raw, f"flag {option.flag}", f"flag {option.flag}")
    settings = merge.settings()
    origins = {**dict.fromkeys((option.key for option in OPTIONS), DEFAULT), **merge.origins}
    return Resolved(settings, origins, config_path, dotenv.path, merge.where)


def from_keywords(**keywords: object) -> Settings:
    """Return the settings for serve(app, bind=..., timeouts_header=...), all others at their defaults.

    Durations and sizes are numbers (seconds, bytes) or text as in a file, tables are dicts in a list. Raises
    SettingsError.
    """
    merge = _Merge(Path())
    for keyword, raw in keywords.items():
        # `static` is both: of texts the setting of [server], of dicts the array of tables.
        if keyword in BY_TABLE and not (keyword in BY_KEYWORD and _is_text(raw)):
            merge.add_tables(BY_TABLE[keyword], raw, None)
        elif keyword in BY_KEYWORD:
            merge.add(BY_KEYWORD[keyword], raw, f"keyword {keyword}", keyword)
        else:
            merge.problems.append(f"{keyword}: unknown setting{hint(keyword, 'keyword')}")
    return merge.settings()


def _is_text(raw: object) -> bool:
    return isinstance(raw, str) or (isinstance(raw, list | tuple) and all(isinstance(each, str) for each in raw))


class _Merge:
    """Settings while they are being put together, least source first, with what is wrong so far.

    A value is known by its key: "timeouts.header", or "route[0].path" for one in a table. `directory` is where files
    are looked for.
    """

    def __init__(self, directory: Path) -> None:
        self.problems: list[str] = []
        self.origins: dict[str, str] = {}
        self._directory = directory
        self._values: dict[str, Any] = {}
        self._tables: dict[str, dict[int, Any]] = {}  # of each array those without a problem, by their index
        self.where: dict[str, str] = {}  # how a message about the value in force begins
        self._unusable: set[str] = set()

    def __repr__(self) -> str:
        return f"<_Merge: {len(self._values)} given, {len(self.problems)} problems>"

    def add(self, option: Option, raw: object, origin: str, where: str) -> None:
        """Let `raw` count from now on, or be a problem."""
        self._add(option.key, option.kind, option.example, raw, origin, where)

    def _add(self, key: str, kind: Kind, example: object, raw: object, origin: str, where: str) -> None:
        try:
            self._values[key] = parse(kind, raw)
        except ValueError as error:
            self._unusable.add(key)
            shown = without_password(raw) if isinstance(kind, StorageUrl) and isinstance(raw, str) else raw
            self.problems.append(f"{where} = {abridged(shown)}: {str(error) or expected(kind, example)}")
        else:
            self.origins[key] = origin
            self.where[key] = where

    def add_variables(self, variables: Mapping[str, str], origins: Mapping[str, str]) -> None:
        """Add those that are ours. `origins` has the file and line of each, if it has any."""
        by_variable = {option.variable: option for option in OPTIONS}
        for name in sorted(name for name in variables if name.startswith(VARIABLE_PREFIX)):
            origin = origins.get(name, f"environment {name}")
            where = f"{origin}: {name}" if name in origins else origin
            option = by_variable.get(name)
            if option is None:
                self.problems.append(f"{where}: {unknown_variable(name)}")
            elif isinstance(option.kind, ListKind):
                text = variables[name]
                parts = [part.strip() for part in text.split(",")] if text.strip() else []
                self.add(option, parts, origin, where)
            else:
                self.add(option, variables[name], origin, where)

    def add_tables(self, table: Table, raw: object, file: TomlFile | None) -> None:
        """Let the tables of an array count, or be problems. `file` is where they are, None for those of Python."""
        self._tables[table.name] = {}
        if not isinstance(raw, list | tuple) or not all(isinstance(entry, dict) for entry in raw):
            what = (
                f"a list of dicts, such as {table.example}" if file is None else f"tables, each begun by {table.header}"
            )
            self.problems.append(f"{_at(file, table.name)} = {abridged(raw)}: expected {what}")
        elif len(raw) > table.about.max:
            self.problems.append(f"{_at(file, table.name)}: expected at most {table.about.max} of {table.header}")
        else:
            for index, entry in enumerate(raw):
                self._add_table(table, index, entry, file)

    def _add_table(self, table: Table, index: int, entry: dict[str, object], file: TomlFile | None) -> None:
        before = len(self.problems)
        keys = {key.name: key for key in table.keys}
        for name, raw in entry.items():
            where, key = _at(file, table.name, index, str(name)), keys.get(name)
            if key is None:
                self.problems.append(f"{where}: unknown setting{hint(str(name), 'key', keys, raw)}")
            else:
                origin = file.place(table.name, index, name) if file else f"keyword {table.name}"
                self._add(table.key_of(index, name), key.about.kind, key.example, raw, origin, where)
        for key in table.keys:
            if key.required and key.name not in entry:
                example = f"{key.name} = {write(key.about.kind, key.example)}"
                self.problems.append(f"{_at(file, table.name, index)}: expected also {key.name}, such as {example}")
            self.origins.setdefault(table.key_of(index, key.name), DEFAULT)
        if len(self.problems) == before:
            values = {name: self._values[table.key_of(index, name)] for name in entry}
            self._tables[table.name][index] = table.about.type(**values)

    def find_toml(self) -> Path | None:
        # A link to nowhere counts: a start without the settings it stands for would be the greater surprise.
        found = [name for name in CONFIG_PATHS if os.path.lexists(self._directory / name)]
        if len(found) > 1:
            self.problems.append(f"{' and '.join(found)}: expected one of them, or --config with the one to use")
        return self._directory / found[0] if found else None

    def add_toml(self, path: Path) -> None:
        try:
            file = TomlFile.load(path, directory=self._directory)
        except SettingsError as error:
            self.problems += [problem + _quotes_hint(problem) for problem in error.problems]
            return
        for name, content in file.document.items():
            section, table = BY_SECTION.get(name), BY_TABLE.get(name)
            if section is not None and isinstance(content, dict):
                for key, raw in content.items():
                    self._add_toml_value(section, key, raw, file)
            elif table is not None and not isinstance(content, dict):
                self.add_tables(table, content, file)
            else:
                self.problems.append(f"{file.place(name)}: {misplaced(name, content)}")

    def _add_toml_value(self, section: Section, name: str, raw: object, file: TomlFile) -> None:
        place = file.place(section.name, name)
        for option in section.options:
            if option.name == name:
                self.add(option, raw, place, f"{place}: {option.key}")
                return
        similar = hint(name, "key", {option.name: option for option in section.options}, raw)
        self.problems.append(f"{place}: {section.name}.{bare(name)}: unknown setting{similar}")

    def settings(self) -> Settings:
        """Return what counts in the end. Raises SettingsError where there is any problem."""
        settings = Settings()
        for section in SECTIONS:
            own = {each.attribute: self._values[each.key] for each in section.options if each.key in self._values}
            settings = replace(settings, **{section.name: replace(getattr(settings, section.name), **own)})
        settings = self._for_domains(settings)
        for name, tables in self._tables.items():
            settings = replace(settings, **{name: tuple(tables.values())})  # type: ignore[arg-type]  # names are data
        given = Given(settings, self._values, self._tables, self.where, self._unusable, self._directory)
        problems = [*self.problems, *contradictions(given), *bad_files(given)]
        if problems:
            raise SettingsError(problems)
        return settings

    def _for_domains(self, settings: Settings) -> Settings:
        """Have a server that is to be a site on the Internet listen there, unless somebody has said where."""
        given = self.where.keys() | self._unusable
        if not settings.tls.domain or settings.server.tls == "off" or {"server.bind", "server.redirect"} <= given:
            return settings
        import socket  # noqa: PLC0415  # `hardserve --version` does without it

        every = ("0.0.0.0", "[::]") if socket.has_dualstack_ipv6() else ("0.0.0.0",)  # noqa: S104  # as is meant
        own: dict[str, tuple[str, ...]] = {}
        if "server.bind" not in given:
            own["bind"] = tuple(f"{host}:{HTTPS_PORT}" for host in every)
        if "server.redirect" not in given and HTTPS_PORT in ports(own.get("bind", settings.server.bind)):
            own["redirect"] = tuple(f"{host}:{HTTP_PORT}" for host in every)
        self.origins |= dict.fromkeys((f"server.{name}" for name in own), "default with tls.domain")
        return replace(settings, server=replace(settings.server, **own))  # type: ignore[arg-type]  # names are data


def _quotes_hint(problem: str) -> str:
    """Say what is probably wrong where tomllib found a value that is none, or something behind a value."""
    if re.search(r"TOML: (Invalid value|Expected newline or end of document after a statement)$", problem):
        return '; words, paths, durations and sizes need quotes, such as "on" or "10s"'
    return ""


def _at(file: TomlFile | None, table: str, index: int | None = None, name: str | None = None) -> str:
    """Begin a message about an array of tables, one of them, or a name in it."""
    path = tuple(part for part in (table, index, name) if part is not None)
    said = table + "".join(f"[{part}]" if isinstance(part, int) else f".{bare(part)}" for part in path[1:])
    return said if file is None else f"{file.place(*path)}: {said}"
