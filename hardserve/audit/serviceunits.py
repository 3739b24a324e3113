"""systemd's units, read as systemd reads them: files, drop-ins, specifiers (systemd.unit(5), systemd.syntax(7)).

Nothing is asked of a running systemd, so that this works before the first start, in a container and in tests.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hardserve.audit.boxplace import below, names, read

# The first that has a unit or a drop-in of some name counts.
SYSTEM_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
USER_DIRECTORIES = ("/etc/systemd/user", "/run/systemd/user", "/usr/lib/systemd/user")
_SECONDS = {
    "us": 1e-6, "µs": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3, "": 1, "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60, "h": 3600, "hr": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400, "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
_YES, _NO = ("1", "yes", "y", "true", "t", "on"), ("0", "no", "n", "false", "f", "off")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit with its drop-ins: of each section and key the values that count, those given before a reset left out."""

    name: str
    path: str
    values: Mapping[tuple[str, str], tuple[str, ...]]
    drop_ins: tuple[str, ...] = ()
    directories: tuple[str, ...] = SYSTEM_DIRECTORIES  # where others of its kind are
    of_user: bool = False  # of a user's own systemd
    home: str = "/root"

    def get(self, key: str, section: str = "Service") -> str:
        """Return the value that counts where only one can, "" for none."""
        values = self.values.get((section, key), ())
        return self.expanded(values[-1]) if values else ""

    def all(self, key: str, section: str = "Service") -> list[str]:
        return [self.expanded(value) for value in self.values.get((section, key), ())]

    def expanded(self, text: str) -> str:
        """Put in what the commonest specifiers stand for."""
        stem = self.name.rpartition(".")[0]
        prefix, _, instance = stem.partition("@")
        state, run = (f"{self.home}/.local/state", "/run/user") if self.of_user else ("/var/lib", "/run")
        config, last = f"{self.home}/.config" if self.of_user else "/etc", prefix.rpartition("-")[2]
        stands_for = {
            "i": instance, "I": unescaped(instance), "n": self.name, "N": stem, "p": prefix, "P": unescaped(prefix),
            "j": last, "J": unescaped(last), "f": f"/{unescaped(instance or prefix)}", "h": self.home, "S": state,
            "t": run, "E": config, "%": "%",
        }  # fmt: skip
        return re.sub(r"%([A-Za-z%])", lambda match: stands_for.get(match[1], match[0]), text)

    @property
    def command(self) -> str:
        """What is started, without the signs before it."""
        return self.get("ExecStart").lstrip("@-:+!|")

    @property
    def words(self) -> list[str]:
        """The command, word by word."""
        return [next(part for part in match.groups() if part is not None) for match in _WORD.finditer(self.command)]

    @property
    def directory(self) -> str:
        """Where it is started, "" where nothing is said."""
        text = self.get("WorkingDirectory").removeprefix("-")
        return self.home if text == "~" else text

    def is_on(self, key: str) -> bool:
        return self.get(key).lower() in _YES


_WORD = re.compile(r""""((?:[^"\\]|\\.)*)"|'([^']*)'|(\S+)""")


def unescaped(text: str) -> str:
    """Undo what `systemd-escape` does."""
    return re.sub(r"\\x([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text.replace("-", "/"))


def is_no(text: str) -> bool:
    return text.lower() in _NO


def seconds(text: str) -> float | None:
    """Read a time span (systemd.time(7)), None for nothing or what is none."""
    if text.strip() == "infinity":
        return math.inf
    total, at = 0.0, 0
    for match in re.finditer(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-zµ]*)\s*", text):
        if match.start() != at or match[2] not in _SECONDS:
            return None
        total += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    return total if at and at == len(text) else None


def size(text: str, whole: int) -> float | None:
    """Read a size, or a part of `whole`, in bytes; None for nothing or what is none."""
    text = text.strip()
    if text == "infinity":
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE%]?)B?", text)
    if match is None:
        return None
    if match[2] == "%":
        return float(match[1]) / 100 * whole
    return float(match[1]) * 1024.0 ** " KMGTPE".index(match[2] or " ")


def parse(texts: list[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Read a unit and then its drop-ins. An empty value takes back what was given before."""
    values: dict[tuple[str, str], tuple[str, ...]] = {}
    for text in texts:
        section = ""
        for line in _lines(text):
            if line.startswith("["):
                section = line.strip("[]")
                continue
            key, equals, value = line.partition("=")
            if equals:
                place, value = (section, key.strip()), value.strip()
                values[place] = (*values.get(place, ()), value) if value else ()
    return values


def _lines(text: str) -> Iterator[str]:
    """Yield what counts, with lines that go on put together. Comments may stand between them."""
    begun = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")) or (not line and not begun):
            continue
        if line.endswith("\\"):
            begun += line[:-1] + " "
        else:
            yield begun + line
            begun = ""
    if begun:
        yield begun


def load(
    root: Path, name: str, directories: tuple[str, ...], *, of_user: bool = False, home: str = "/root"
) -> Unit | None:
    """Read a unit, None where there is none or it is masked."""
    template = re.sub(r"@[^@]*(\.[a-z]+)$", r"@\1", name)
    suffix = name.rpartition(".")[2]
    path, text = _first(root, directories, (name, template))
    if not text.strip():
        return None
    drop_ins: dict[str, tuple[str, str]] = {}
    # Of two with one name the first counts: by directory, then that of the instance before that of the template and
    # those of names that begin alike; last, those of every unit of the kind.
    stem = template.removesuffix(f".{suffix}")
    alike = [f"{stem[: match.end()]}.{suffix}" for match in re.finditer("-", stem)][::-1]
    places = [f"{directory}/{of}.d" for directory in directories for of in dict.fromkeys((name, template, *alike))]
    for place in (*places, *(f"{directory}/{suffix}.d" for directory in directories)):
        for each in names(root, place):
            if each.endswith(".conf") and each not in drop_ins:
                drop_ins[each] = (f"{place}/{each}", read(root, f"{place}/{each}"))
    ordered = [drop_ins[each] for each in sorted(drop_ins)]
    values = parse([text, *(each for _, each in ordered)])
    return Unit(name, path, values, tuple(each for each, _ in ordered), directories, of_user, home)


def _first(root: Path, directories: tuple[str, ...], candidates: tuple[str, ...]) -> tuple[str, str]:
    for candidate in dict.fromkeys(candidates):
        for directory in directories:
            path = f"{directory}/{candidate}"
            if os.path.lexists(below(root, path)):
                return path, _text(root, path)
    return "", ""


def _text(root: Path, path: str) -> str:
    """Return the text of a unit, which may be a link, and that an absolute one."""
    file = below(root, path)
    if file.is_symlink():
        target = os.readlink(file)
        return read(root, os.path.normpath(os.path.join(os.path.dirname(path), target)))
    return read(root, path)
