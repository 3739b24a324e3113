"""What each setting is called, in each source, and what a name that is none may have meant.

Derived from the declarations in settings.py; so is the annotated reference. Pure, and knows no value but the defaults.
"""

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any

from hardserve.describe import describe
from hardserve.settings import ABOUT, About, AboutTables, Kind, Settings, StorageUrl
from hardserve.values import parse, plain, show, without_password, write

VARIABLE_PREFIX = "HARDSERVE_"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting, and its name in each source."""

    section: str
    name: str
    kind: Kind
    default: Any
    example: Any
    help: str

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def attribute(self) -> str:
        """Its name in its section, where it is no word of Python's."""
        return f"{self.name}_" if keyword.iskeyword(self.name) else self.name

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

    def shown(self, value: Any) -> str:
        """Write a value for people, on one line: who would not see an empty list, and is to see no password."""
        text = plain(self.kind, value) or "none"
        if isinstance(self.kind, StorageUrl):
            text = without_password(text)
        return text if text.isprintable() else show(text)


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    help: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class TableKey:
    """One setting of each table of an array: `max_body` of [[route]]."""

    name: str
    about: About
    default: Any
    required: bool

    def shown(self, value: Any) -> str:
        """Write a value for people; that of a setting which was left out is what holds without it."""
        return plain(self.about.kind, value) if self.required or value != self.default else self.about.without

    @property
    def bounds(self) -> str:
        """What is allowed, and what holds without it."""
        text = describe(self.about.kind)
        return (
            f"Required: {text}." if self.required else f"{text[0].upper()}{text[1:]}; without it: {self.about.without}."
        )

    @property
    def example(self) -> Any:
        return self.default if self.about.example is None else self.about.example


@dataclass(frozen=True, slots=True)
class Table:
    """An array of tables: any number of [[route]] in a file, or a list of dicts for serve()."""

    name: str
    about: AboutTables
    keys: tuple[TableKey, ...]

    @property
    def header(self) -> str:
        return f"[[{self.name}]]"

    def key_of(self, index: int, name: str) -> str:
        """Name a setting of one of its tables, counted from 0."""
        return f"{self.name}[{index}].{name}"

    @property
    def example(self) -> str:
        """An array of one table with what it must have, as Python writes it."""
        keys = (f"{show(key.name)}: {write(key.about.kind, key.example)}" for key in self.keys if key.required)
        return f"[{{{', '.join(keys)}}}]"


def _sections() -> Iterator[Section]:
    defaults = Settings()
    for section in fields(defaults):
        values = getattr(defaults, section.name)
        if isinstance(section.metadata[ABOUT], AboutTables):
            continue
        options = []
        for setting in fields(values):
            about: About = setting.metadata[ABOUT]
            default = getattr(values, setting.name)
            example = default if about.example is None else about.example
            name = setting.name.removesuffix("_")
            options.append(Option(section.name, name, about.kind, default, example, about.help))
        yield Section(section.name, section.metadata[ABOUT], tuple(options))


def _tables() -> Iterator[Table]:
    for table in fields(Settings):
        about = table.metadata[ABOUT]
        if isinstance(about, AboutTables):
            keys = (
                TableKey(key.name, key.metadata[ABOUT], key.default, key.default is MISSING)
                for key in fields(about.type)
            )
            yield Table(table.name, about, tuple(keys))


SECTIONS: tuple[Section, ...] = tuple(_sections())
OPTIONS: tuple[Option, ...] = tuple(option for section in SECTIONS for option in section.options)
TABLES: tuple[Table, ...] = tuple(_tables())
BY_SECTION: Mapping[str, Section] = {section.name: section for section in SECTIONS}
BY_KEYWORD: Mapping[str, Option] = {option.keyword: option for option in OPTIONS}
BY_TABLE: Mapping[str, Table] = {table.name: table for table in TABLES}


def misplaced(name: str, content: object) -> str:
    """Say what is wrong with a name on the outermost level of a TOML file."""
    is_array = isinstance(content, list) and bool(content) and all(isinstance(item, dict) for item in content)
    said = f"[[{bare(name)}]]" if is_array else f"[{bare(name)}]"
    if name in BY_TABLE:
        return f"{said}: expected [{said}], with two brackets, for each"
    if name in BY_SECTION:
        return f"{said if is_array else f'{name} = {abridged(content)}'}: expected a section, [{name}]"
    if is_array or isinstance(content, dict):
        headers = {section: f"[{section}]" for section in BY_SECTION} | {each.name: each.header for each in TABLES}
        return f"{said}: unknown section{_did_you_mean([headers[match] for match in _close(name, headers)])}"
    return f"{bare(name)}: unknown setting{hint(name, 'key')}"


def unknown_variable(variable: str) -> str:
    """Say what is wrong with a variable that has our prefix and is none of ours."""
    name = variable.removeprefix(VARIABLE_PREFIX)
    for table in TABLES:
        if re.fullmatch(f"{table.name.upper()}S?(_.*)?", name):
            return f"{table.header} cannot be set by a variable; expected it in the TOML file"
    return f"unknown setting{hint(name, 'variable')}"


def hint(
    name: str, name_of: str, own: Mapping[str, Option | TableKey] = MappingProxyType({}), raw: object = None
) -> str:
    """Say what an unknown name may have meant: one of `own`, those where it stands, or another setting.

    `name_of` is how an Option is called there: "key", "keyword" or "variable"; `raw` is the value, beside `own`.
    """
    similar = _similar(name, own, raw)
    tables = [] if similar or name_of == "variable" else _close(name, BY_TABLE)
    return _did_you_mean(
        [each.name if isinstance(each, TableKey) else getattr(each, name_of) for each in similar]
        + [BY_TABLE[match].header if name_of == "key" else match for match in tables]
    )


def _similar(name: str, own: Mapping[str, Option | TableKey], raw: object) -> Sequence[Option | TableKey]:
    """Find what an unknown name may have meant: spelt badly or as in another source, or without its section.

    Where it stands among `own`, it is one of those, maybe without its first word: `body` is max_body. If not, another
    section's must have the same name and take the value: `level = 3` in [compression] means no level of a log.
    """
    spellings: dict[str, list[Option]] = {}
    for option in OPTIONS:
        for spelling in {option.name, option.keyword, f"{option.section}_{option.name}"}:
            spellings.setdefault(spelling, []).append(option)
    name = re.sub("[.-]", "_", name.lower())
    if own:
        near = _close(name, own) or [each for each in own if each.partition("_")[2] == name]
        return [own[each] for each in near] or [option for option in spellings.get(name, ()) if _takes(option, raw)]
    matches = [name] if name in spellings else _close(name, spellings)
    return [option for match in matches for option in spellings[match]]


def _takes(option: Option, raw: object) -> bool:
    try:
        parse(option.kind, raw)
    except ValueError:
        return False
    return True


def _close(word: str, words: Iterable[str]) -> list[str]:
    import difflib  # noqa: PLC0415

    return difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else "; `hardserve config --example` lists them all"


def bare(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else show(name)


def abridged(raw: object) -> str:
    text = show(raw)
    return text if len(text) <= 100 else text[:99] + "…"


def example_toml() -> str:
    """Write the annotated TOML file: every setting at its default, with its help, bounds and other names."""
    paragraphs = [_EXAMPLE_HEAD]
    for section in SECTIONS:
        paragraphs.append(f"\n# {section.help}\n[{section.name}]")
        for option in section.options:
            names = f"{option.flag}, {option.variable}: {describe(option.kind)}."
            setting = f"#{option.name} = {write(option.kind, option.default)}"
            paragraphs.append(f"{_comment(option.help)}\n{_comment(names)}\n{setting}")
    for table in TABLES:
        names = "Any number of these, here or as a keyword of serve(): no flag and no variable."
        paragraphs.append(f"\n{_comment(table.about.help)}\n{_comment(names)}\n#{table.header}")
        for key in table.keys:
            setting = f"#{key.name} = {write(key.about.kind, key.example)}"
            paragraphs.append(f"{_comment(key.about.help)}\n{_comment(key.bounds)}\n{setting}")
    return "\n\n".join(paragraphs) + "\n"


def _comment(text: str) -> str:
    import textwrap  # noqa: PLC0415

    return "\n".join(f"# {line}" for line in textwrap.wrap(text, 98, break_on_hyphens=False))


_EXAMPLE_HEAD = """\
# Every setting of hardserve, at its default. `hardserve config --example` writes this file.
#
# hardserve.toml or config/hardserve.toml is read where hardserve is started; --config names another.
# Take the # away from a setting to change it: what is left alone follows the defaults of later versions.
# Each setting also has a variable and a flag: default < this file < .env < environment < flag.
# Only what is in double brackets has neither.
# Where there may be several values: brackets here, commas in a variable, the flag given again.
# `hardserve config` shows what is in force, and why.
#
# Durations: "500ms", "10s", "1m30s", "2h", or a number of seconds.
# Sizes: "64KiB" or "64k" (of 1024), "10MB" (of 1000), or a number of bytes."""
