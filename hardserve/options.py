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
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from hardserve.addresses import TcpAddress, parse_address
from hardserve.configfiles import DotEnv, SettingsError, TomlFile, read_page
from hardserve.describe import expected
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
from hardserve.settings import Kind, ListKind, PageFile, RateLimitSettings, Settings, StaticSettings, StorageUrl
from hardserve.values import format_size, parse, parse_rates, show, without_password, write

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
            given = {each.attribute: self._values[each.key] for each in section.options if each.key in self._values}
            settings = replace(settings, **{section.name: replace(getattr(settings, section.name), **given)})
        settings = self._for_domains(settings)
        for name, tables in self._tables.items():
            settings = replace(settings, **{name: tuple(tables.values())})  # type: ignore[arg-type]  # names are data
        problems = [*self.problems, *self._contradictions(settings), *self._repetitions(), *self._bad_files()]
        if problems:
            raise SettingsError(problems)
        return settings

    def _for_domains(self, settings: Settings) -> Settings:
        """Have a server that is to be a site on the Internet listen there, unless somebody has said where."""
        if settings.tls.domain and not {"server.bind", "server.redirect"} & (self.where.keys() | self._unusable):
            import socket  # noqa: PLC0415  # `hardserve --version` does without it

            every = ("0.0.0.0", "[::]") if socket.has_dualstack_ipv6() else ("0.0.0.0",)  # noqa: S104  # as is meant
            bind, redirect = (tuple(f"{host}:{port}" for host in every) for port in (443, 80))
            self.origins["server.bind"] = self.origins["server.redirect"] = "default with tls.domain"
            return replace(settings, server=replace(settings.server, bind=bind, redirect=redirect))
        return settings

    def _contradictions(self, settings: Settings) -> Iterator[str]:
        """Say which settings cannot be meant together, but nothing of one that is a problem by itself."""
        for part in ("limits.request_line", "limits.header_line"):
            yield from self._larger(part, attrgetter(part)(settings), "limits.header", settings)
        limits = settings.limits
        # A body is kept in memory up to this, and else in a file; a client gets no more than half of all room.
        in_memory = min(limits.body_memory, limits.buffered_memory // 2)
        for key, size in [("limits.body", limits.body), *self._in_tables(BY_TABLE["route"], "max_body")]:
            if size > in_memory:
                yield from self._larger(key, size, "limits.buffered_files", settings, times=2)
        # Of files nothing may be kept at all; what is kept of each does not matter then.
        if settings.files.memory or "files.in_memory" in self.where:
            yield from self._larger("files.in_memory", settings.files.in_memory, "files.memory", settings)
        yield from self._larger("limits.response_file", limits.response_file, "limits.buffered_files", settings)
        log, keys = settings.log, {"log.access", "log.error"}
        if log.max_size and log.error != "stderr" and Path(log.access) == Path(log.error) and not self._unusable & keys:
            # Each of two writers would rotate the file away under the other.
            where = f"{self.where['log.access']} and {self.where['log.error']}"
            yield f"{where} = {show(log.error)}: expected two files where log.max_size rotates them"
        server, ban = settings.server, settings.ban
        if server.max_client_workers > server.threads:
            yield from self._above("server.max_client_workers", "server.threads", settings)
        if ban.for_ > ban.ceiling:
            yield from self._above("ban.for", "ban.ceiling", settings)
        yield from self._lacking(settings)
        yield from self._without_effect()
        for index, rule in self._tables.get("rate_limit", {}).items():
            for key, problem in _rule_problems(rule):
                where = self.where.get(f"rate_limit[{index}].{key}") or self.where[f"rate_limit[{index}].limit"]
                yield f"{where} = {show(getattr(rule, key))}: {problem}"

    def _above(self, part: str, whole: str, settings: Settings) -> Iterator[str]:
        """Say that a number is above another that is its ceiling."""
        keys = {part, whole}
        if not self._unusable & keys:
            said = {}
            for option in OPTIONS:
                if option.key in keys:
                    value = getattr(getattr(settings, option.section), option.attribute)
                    said[option.key] = f"{self.where.get(option.key, option.key)} = {write(option.kind, value)}"
            if part in self.where:
                yield f"{said[part]}: expected at most {said[whole]}"
            else:
                yield f"{said[whole]}: expected at least {said[part]}, the default"

    def _lacking(self, settings: Settings) -> Iterator[str]:
        """Say which settings do nothing without another one."""
        if not settings.proxy.trusted and "proxy.trusted" not in self._unusable:
            both = [("server.bind", each) for each in settings.server.bind]
            for key, address in [*both, *(("server.redirect", each) for each in settings.server.redirect)]:
                if parse_address(address).proxy_protocol:
                    where = self.where.get(key, key)
                    yield f"{where} = {show(address)}: expected also proxy.trusted, the proxies that may connect there"
        yield from self._lacking_of_tls(settings)
        if settings.auth.users == "none" and "auth.users" not in self._unusable:
            wanted = [("auth.required", settings.auth.required)]
            wanted += list(self._in_tables(BY_TABLE["route"], "auth"))
            wanted += [(key, "on") for key, value in self._in_tables(BY_TABLE["rate_limit"], "key") if value == "user"]
            for key, value in wanted:
                if value == "on":
                    yield f"{self.where[key]}: expected also auth.users, the file that `hardserve passwd` makes"

    def _lacking_of_tls(self, settings: Settings) -> Iterator[str]:
        tls = settings.tls
        # What is set, and of what it says nothing by itself.
        needs = [
            ("tls.certificate", "tls.key", "its key"),
            ("tls.key", "tls.certificate", "the certificate that it is the key of"),
            ("tls.passphrase_file", "tls.key", "the key that it opens"),
        ]
        if tls.client_certificates != "off":
            needs.append(("tls.client_certificates", "tls.client_ca", "who signs the certificates of clients"))
        for key, other, what in needs:
            if not self._unusable & {key, other} and self._is_set(key, settings) > self._is_set(other, settings):
                yield f"{self.where[key]}: expected also {other}, {what}"
        keys = {"server.tls", "tls.certificate", "tls.client_certificates"}
        if self._unusable & keys:
            return
        asking = list(self._lacking_of_routes(settings))
        yield from asking
        if tls.client_ca != "none" and tls.client_certificates == "off" and not asking:
            yield f'{self.where["tls.client_ca"]}: expected also tls.client_certificates, "optional" or "required"'
        if settings.server.tls == "on" and not settings.has_certificate:
            yield f'{self.where["server.tls"]} = "on": expected also tls.certificate, or a [[certificate]]'
        if settings.server.tls == "self-signed" and settings.has_certificate:
            places = ("tls.certificate", "tls.domain", "certificate[0].certificate")
            given = next(self.where[place] for place in places if place in self.where)
            yield f'{self.where["server.tls"]} = "self-signed": expected no other certificate, but there is {given}'
        yield from self._lacking_tls(settings)
        yield from self._lacking_of_acme(settings)

    def _lacking_of_acme(self, settings: Settings) -> Iterator[str]:
        """Say why no CA would issue the certificate for tls.domain, or that none is asked for."""
        acme = {option.key: option.default for option in OPTIONS if option.section == "acme"}
        if self._unusable & {"tls.domain", *acme}:
            return
        if settings.tls.domain:
            if "tls.domain" in self.where and settings.server.tls == "off":
                yield f'{self.where["tls.domain"]}: expected server.tls to be another than "off"'
            from hardserve.securing import acme_problems  # noqa: PLC0415  # it is for few

            for key, problem in acme_problems(settings):
                yield f"{self.where.get(key, key)}: {problem}"
        else:
            for key, default in acme.items():
                if key in self.where and attrgetter(key)(settings) != default:
                    yield f"{self.where[key]}: expected also tls.domain, the names of the certificate"

    def _lacking_of_routes(self, settings: Settings) -> Iterator[str]:
        """Say which routes ask for what no client is asked for, or let in whom the server does not."""
        demand = settings.tls.client_certificates
        needs = ['tls.client_certificates = "optional", to have clients asked']
        if settings.tls.client_ca == "none" and "tls.client_ca" not in self._unusable:
            needs.append("tls.client_ca, who signs their certificates")
        if not settings.serves_tls:
            needs.append('a tls.certificate, or server.tls = "self-signed"')
        for key, value in self._in_tables(BY_TABLE["route"], "client_certificate"):
            said = f"{self.where[key]} = {show(value)}"
            if value == "required" and demand == "off":
                yield f"{said}: expected also {'; and '.join(needs)}"
            elif value == "optional" and demand == "required":
                yield f'{said}: never counts, because of {self.where["tls.client_certificates"]} = "required"'

    def _lacking_tls(self, settings: Settings) -> Iterator[str]:
        if not settings.serves_tls:
            for key in ("server.redirect", "tls.hsts", "tls.client_certificates"):
                if self._is_set(key, settings):
                    yield f'{self.where[key]}: expected also a tls.certificate, or server.tls = "self-signed"'
        yield from self._two_uses(settings)

    def _is_set(self, key: str, settings: Settings) -> bool:
        return key in self.where and attrgetter(key)(settings) not in ("none", "off", (), 0.0)

    def _two_uses(self, settings: Settings) -> Iterator[str]:
        """Say which addresses are for both HTTPS and the way to it."""
        bound = [parse_address(address) for address in settings.server.bind]
        for text in settings.server.redirect:
            address = parse_address(text)
            if address in bound and not (isinstance(address, TcpAddress) and address.port == 0):
                yield f"{self.where['server.redirect']} = {show(text)}: expected another address than in server.bind"

    def _larger(self, part: str, size: int, whole: str, settings: Settings, *, times: int = 1) -> Iterator[str]:
        """Say that a part does not go into the whole so many times, if it does not."""
        limit: int = attrgetter(whole)(settings)
        if size * times > limit and not self._unusable & {part, whole}:
            said = {
                key: f"{self.where.get(key, key)} = {show(format_size(value))}"
                for key, value in ((part, size), (whole, limit))
            }
            if part in self.where:
                yield f"{said[part]}: expected at most {'half of ' * (times == 2)}{said[whole]}"
            else:  # the one that somebody gave is the one to change
                yield f"{said[whole]}: expected at least {'twice ' * (times == 2)}{said[part]}, the default"

    def _in_tables(self, table: Table, name: str) -> Iterator[tuple[str, Any]]:
        """Yield the key and value of every setting `name` that some table of an array has."""
        for index in range(table.about.max):
            key = table.key_of(index, name)
            if key in self._values:
                yield key, self._values[key]

    def _repetitions(self) -> Iterator[str]:
        """Say which tables never count, because of another before them."""
        routes: dict[str, dict[int, frozenset[str]]] = {}
        for index, route in self._tables.get("route", {}).items():
            methods = frozenset(route.methods)
            with_this_path = routes.setdefault(route.path.rstrip("/"), {})
            for earlier, others in with_this_path.items():
                if not others or (methods and methods <= others):
                    where, first = self.where[f"route[{index}].path"], self.where[f"route[{earlier}].path"]
                    yield f"{where} = {show(route.path)}: never counts, after {first}"
                    break
            with_this_path[index] = methods
        pages: dict[tuple[int, str], int] = {}
        for index, page in self._tables.get("error_page", {}).items():
            suffix = Path(page.file).suffix.lower()
            earlier = pages.setdefault((page.status, suffix), index)
            if earlier != index:
                where, first = self.where[f"error_page[{index}].file"], self.where[f"error_page[{earlier}].file"]
                yield f"{where} = {show(page.file)}: never counts, after {first}"

    def _bad_files(self) -> Iterator[str]:
        """Say which files that settings name cannot be used."""
        for table in TABLES:
            for each in table.keys:
                if isinstance(each.about.kind, PageFile):
                    for key, path in self._in_tables(table, each.name):
                        try:
                            read_page(self._directory / path, each.about.kind)
                        except ValueError as problem:
                            yield f"{self.where[key]} = {show(path)}: {problem}"
        yield from self._bad_mounts()

    def _bad_mounts(self) -> Iterator[str]:
        """Say which mounts are of nothing, and which never count because their URL has another one."""
        # Of each its URL, its path, how a message about either begins, and where another would find its URL.
        mounts: list[tuple[str, str, str, str, str]] = []
        for text in self._values.get("server.static", ()):
            said = f"{self.where['server.static']} = {show(text)}"
            url, _, path = text.partition("=")
            mounts.append((url, path, said, said, said))
        for index, static in self._tables.get("static", {}).items():
            at_url, at_path = (self.where[f"static[{index}].{name}"] for name in ("url", "directory"))
            said_url, said_path = f"{at_url} = {show(static.url)}", f"{at_path} = {show(static.directory)}"
            mounts.append((static.url, static.directory, said_url, said_path, at_url))
        seen: dict[str, str] = {}
        for url, path, said_url, said_path, at_url in mounts:
            problem = self._mount_problem(path)
            if problem:
                yield f"{said_path}: {problem}"
            if url in seen:
                yield f"{said_url}: expected each URL once, but it is that of {seen[url]} as well"
            seen.setdefault(url, at_url)

    def _mount_problem(self, path: str) -> str:
        """Say why a directory, or a file, cannot be served, "" if it can."""
        tried = (self._directory / path).absolute()
        try:
            mode = tried.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            found_from = "" if Path(path).is_absolute() else ", from where hardserve was started"
            tilde = "; ~ is not expanded" if path.startswith("~") else ""
            return f"expected a directory or a file, and nothing is there: tried {show(str(tried))}{found_from}{tilde}"
        except OSError as error:
            return f"cannot be reached by the user whom hardserve runs as: {error.strerror}"
        problem = ""
        if stat.S_ISDIR(mode):
            if not _may(tried, os.R_OK | os.X_OK):
                problem = "expected a directory that the user whom hardserve runs as may read and search"
        elif not stat.S_ISREG(mode):
            problem = "expected a directory or a file, and this is neither"
        elif not _may(tried, os.R_OK):
            problem = "expected a file that the user whom hardserve runs as may read"
        return problem

    def _without_effect(self) -> Iterator[str]:
        """Say what in a [[static]] never counts, because of what it is or of something else in it."""
        for index, static in self._tables.get("static", {}).items():
            path = os.path.join(self._directory, static.directory)
            for name in ("index", "listing", "fallback"):
                key, value = f"static[{index}].{name}", getattr(static, name)
                if key in self._values and value != "off":
                    problem = self._effect_problem(index, static, name, path)
                    if problem:
                        yield f"{self.where[key]} = {show(value)}: {problem}"

    def _effect_problem(self, index: int, static: StaticSettings, name: str, path: str) -> str:
        """Say why one of those settings never counts, "" if it does."""
        if os.path.isfile(path):
            return f"never counts, because {self.where[f'static[{index}].directory']} is one file"
        if static.internal == "on" and name != "index":
            return f'never counts, because of {self.where[f"static[{index}].internal"]} = "on"'
        if name == "fallback":
            if static.miss == "app":
                return f'never counts, because of {self.where[f"static[{index}].miss"]} = "app"'
            if os.path.isdir(path) and not os.path.isfile(os.path.join(path, static.fallback)):
                return f"expected a file in {show(static.directory)}, and none of that name is there"
        return ""


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _quotes_hint(problem: str) -> str:
    """Say what is probably wrong where tomllib found a value that is none, or something behind a value."""
    if re.search(r"TOML: (Invalid value|Expected newline or end of document after a statement)$", problem):
        return '; words, paths, durations and sizes need quotes, such as "on" or "10s"'
    return ""


def _rule_problems(rule: RateLimitSettings) -> Iterator[tuple[str, str]]:
    """Say what a [[rate_limit]] cannot mean: the key that is to blame, and why."""
    windows = parse_rates(rule.limit)
    if rule.burst is not None and len(windows) > 1:
        yield "burst", 'expected one rate in limit, such as "20/second"'
    least = windows[0][0] if rule.burst is None else rule.burst + 1
    if rule.cost > least:
        what = "limit" if rule.burst is None else "burst + 1"
        yield "cost", f"expected at most {least}, the least of {what}: no request would be let in"


def _at(file: TomlFile | None, table: str, index: int | None = None, name: str | None = None) -> str:
    """Begin a message about an array of tables, one of them, or a name in it."""
    path = tuple(part for part in (table, index, name) if part is not None)
    said = table + "".join(f"[{part}]" if isinstance(part, int) else f".{bare(part)}" for part in path[1:])
    return said if file is None else f"{file.place(*path)}: {said}"
