"""What differs between the settings in force and those that were read again, and which of it a running server can take.

Pure; any thread. It knows which settings can change while a server runs, and not how: that is replacing.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from hardserve.contradictions import Given, contradictions
from hardserve.names import BY_TABLE, OPTIONS, TABLES, Option, Table
from hardserve.options import Resolved
from hardserve.settings import Directory, FilePath, Kind, Output, PageFile, Settings
from hardserve.values import show

# What each request, connection or line of a log is held to when it comes. All others are built into a server: sockets,
# threads, tables with a size, what is known of files, and what each response has.
LIVE = frozenset(
    f"{section}.{name}"
    for section, names in {
        "server": ("drain", "exit_when_stuck", "redirect_port"),
        "timeouts": (
            "first_byte", "handshake", "header", "body", "body_total", "rate_grace", "response", "keep_alive",
            "connection", "linger", "linger_total", "abandoned",
        ),
        "limits": (
            "client_connections", "client_connection_rate", "connection_requests", "request_line", "header_line",
            "header", "header_count", "chunk_line", "chunk_extensions", "trailer", "body", "form", "body_memory",
            "body_rate", "linger", "pipeline", "response_rate",
        ),
        "proxy": ("trusted", "headers"),
        "access": ("allow", "deny", "hosts"),
        "auth": ("users", "required", "realm", "remember", "failures"),
        "rate_limiting": ("default", "default_burst", "legacy_headers"),
        "ban": ("after", "within", "for", "ceiling", "exempt"),
        "log": ("level", "access", "access_format", "error", "max_size", "backups"),
    }.items()
    for name in names
)  # fmt: skip
LIVE_TABLES = frozenset({"route", "rate_limit", "error_page"})
# These can, where HTTPS is spoken before and after with certificates of the same origin, and no CA issues any.
LIVE_OF_CERTIFICATES = frozenset(
    f"tls.{name}"
    for name in ("certificate", "key", "passphrase_file", "unknown_names", "client_certificates", "client_ca")
)
TABLE_OF_CERTIFICATES = "certificate"

# Of a value that is shown.
MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Change:
    """A setting with another value, each as `hardserve config` shows it. `live`: a running server can take it."""

    key: str
    before: str
    after: str
    live: bool

    def __str__(self) -> str:
        return f"{self.key}{' ' if self.live else ': '}{_abridged(self.before)} -> {_abridged(self.after)}"


def changes(before: Settings, after: Settings) -> list[Change]:
    """Return what differs, in the order of the reference. No password is in it."""
    found = []
    for option in OPTIONS:
        old, new = (_value(option, settings) for settings in (before, after))
        if old != new:
            live = is_live(option.key, before, after)
            found.append(Change(option.key, option.shown(old), option.shown(new), live))
    for table in TABLES:
        live = is_live(table.name, before, after)
        found += _of_table(table, getattr(before, table.name), getattr(after, table.name), live=live)
    return found


def is_live(name: str, before: Settings, after: Settings) -> bool:
    """Return whether a running server can take another value of a setting, or other tables of an array."""
    if name in LIVE_OF_CERTIFICATES or name == TABLE_OF_CERTIFICATES:
        both = (before, after)
        return (
            all(settings.serves_tls and not settings.tls.domain for settings in both)
            and len({settings.server.tls == "self-signed" for settings in both}) == 1
        )
    return name in LIVE or name in LIVE_TABLES


def taken(before: Settings, after: Settings) -> Settings:
    """Return the settings `before` with what a running server can take of those `after`."""
    sections: dict[str, dict[str, Any]] = {}
    for option in OPTIONS:
        if is_live(option.key, before, after):
            sections.setdefault(option.section, {})[option.attribute] = _value(option, after)
    replaced: dict[str, Any] = {
        name: dataclasses.replace(getattr(before, name), **values) for name, values in sections.items()
    }
    replaced |= {name: getattr(after, name) for name in BY_TABLE if is_live(name, before, after)}
    return dataclasses.replace(before, **replaced)


def cannot_go_together(settings: Settings, resolved: Resolved) -> list[str]:
    """Say which of `settings` contradict each other, where some are as they were read again, and some as before."""
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = _value(option, settings)
        if value != option.default:
            values[option.key] = value
    tables = {table.name: dict(enumerate(getattr(settings, table.name))) for table in TABLES}
    for table in TABLES:
        for index, entry in tables[table.name].items():
            for key in table.keys:
                value = getattr(entry, key.name)
                if key.required or value != key.default:
                    values[table.key_of(index, key.name)] = value
    where = {key: resolved.where.get(key, key) for key in values}
    given = Given(settings, values, tables, where, frozenset(), Path())
    return [f"until a restart, with what needs one as it is: {problem}" for problem in contradictions(given)]


def anchored(settings: Settings, directory: str) -> Settings:
    """Return the settings with the paths of files as seen from anywhere; `directory` is where they are seen from."""
    replaced: dict[str, Any] = {}
    for option in OPTIONS:
        section = replaced.get(option.section, getattr(settings, option.section))
        value = _anchored(option.kind, getattr(section, option.attribute), directory)
        replaced[option.section] = dataclasses.replace(section, **{option.attribute: value})
    for table in TABLES:
        replaced[table.name] = tuple(
            dataclasses.replace(
                entry,
                **{key.name: _anchored(key.about.kind, getattr(entry, key.name), directory) for key in table.keys},
            )
            for entry in getattr(settings, table.name)
        )
    return dataclasses.replace(settings, **replaced)


def _anchored(kind: Kind, value: Any, directory: str) -> Any:
    if not isinstance(kind, FilePath | Directory | Output | PageFile) or value is None:
        return value
    is_word = not isinstance(kind, PageFile) and value in kind.words
    return value if is_word or value == "" else str(Path(directory, value))


def _value(option: Option, settings: Settings) -> Any:
    return attrgetter(f"{option.section}.{option.attribute}")(settings)


def _of_table(table: Table, before: Sequence[Any], after: Sequence[Any], *, live: bool) -> Iterator[Change]:
    """Yield what differs between two arrays of tables, such that one that was put before others is one change."""
    if before == after:
        return
    from difflib import SequenceMatcher  # noqa: PLC0415  # most servers do without it

    steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for step, start, end, new_start, new_end in steps:
        if step == "equal":
            continue
        both = min(end - start, new_end - new_start)
        for offset in range(both):
            old, new = before[start + offset], after[new_start + offset]
            for key in table.keys:
                then, now = getattr(old, key.name), getattr(new, key.name)
                if then != now:
                    name = table.key_of(new_start + offset, key.name)
                    yield Change(name, key.shown(then), key.shown(now), live)
        for index in range(start + both, end):
            yield Change(f"{table.name}[{index}]", _brief(table, before[index]), "none", live)
        for index in range(new_start + both, new_end):
            yield Change(f"{table.name}[{index}]", "none", _brief(table, after[index]), live)


def _brief(table: Table, entry: Any) -> str:
    return " ".join(key.shown(getattr(entry, key.name)) for key in table.keys if key.required)


def _abridged(text: str) -> str:
    text = text if text.isprintable() else show(text)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
