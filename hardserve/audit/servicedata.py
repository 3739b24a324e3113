"""What a service may write of the app's directory: its SQLite file must be, its own code had better not.

`data_facts` looks at files below `root`; judging is pure.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hardserve.audit.boxplace import Place, below, names, read
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.serviceunits import Unit

DATABASE = Check(
    "unit-database-read-only",
    Severity.NOTE,
    "a SQLite file is where the service may not write",
    'SQLite writes beside the file, too: "attempt to write a readonly database", if the app uses this one',
    "keep the file in StateDirectory=, or ReadWritePaths= with its directory, in [Service]",
)
CODE = Check(
    "unit-app-writable",
    Severity.NOTE,
    "the service may change the app's own code",
    "whoever finds a hole in the app stays there after the next restart",
    "ProtectSystem=strict, in [Service], with ReadWritePaths= for what the app stores",
)
CHECKS = (DATABASE, CODE)

# Where apps keep one: their own directory, and those that Flask and habit name.
_DIRECTORIES = ("", "instance", "data", "db", "database", "var")
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_MAGIC = b"SQLite format 3\0"
_MAX_FILES = 50
_OWN_DIRECTORIES = {
    "StateDirectory": "/var/lib", "CacheDirectory": "/var/cache", "LogsDirectory": "/var/log",
    "RuntimeDirectory": "/run",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """A file or directory, and whether the service's user may write to it, as far as its mode says."""

    path: str
    writable: bool


@dataclass(frozen=True, slots=True)
class DataFacts:
    databases: tuple[Node, ...] = ()  # the directories that SQLite files are in
    code: Node | None = None  # the app's directory, or a file of its code in that


@dataclass(frozen=True, slots=True)
class _User:
    number: int
    groups: frozenset[int]

    def may_write(self, status: os.stat_result) -> bool:
        if self.number == status.st_uid:
            return bool(status.st_mode & stat.S_IWUSR)
        if status.st_gid in self.groups:
            return bool(status.st_mode & stat.S_IWGRP)
        return bool(status.st_mode & stat.S_IWOTH)


def data_facts(root: Path, unit: Unit, place: Place) -> DataFacts:
    """Look at the app's directory; nothing is known of a user that is not in /etc/passwd."""
    user = _user(root, unit)
    if user is None:
        return DataFacts()
    found: dict[str, None] = {}
    for name in _DIRECTORIES:
        directory = os.path.normpath(place.directory / name)
        candidates = [each for each in names(root, directory) if each.endswith(_SUFFIXES)][:_MAX_FILES]
        if any(_is_sqlite(below(root, f"{directory}/{each}")) for each in candidates):
            found[directory] = None
    databases = [node for directory in found if (node := _node(root, directory, user)) is not None]
    sources = [f"{place.directory}/{name}" for name in names(root, place.directory) if name.endswith(".py")]
    nodes = [_node(root, path, user) for path in (*sources[:_MAX_FILES], str(place.directory))]
    code = next((node for node in nodes if node is not None and node.writable), None)
    return DataFacts(tuple(databases), code)


def _user(root: Path, unit: Unit) -> _User | None:
    """Return who the service runs as. A dynamic one owns nothing, and is in no group."""
    if unit.is_on("DynamicUser"):
        return _User(-1, frozenset())
    name = unit.get("User")
    for line in read(root, "etc/passwd").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and name in (fields[0], fields[2]) and fields[2].isdecimal() and fields[3].isdecimal():
            groups = {int(fields[3])}
            for entry in read(root, "etc/group").splitlines():
                of_group = entry.split(":")
                if len(of_group) < 4 or not of_group[2].isdecimal():
                    continue
                if fields[0] in of_group[3].split(",") or of_group[0] == unit.get("Group"):
                    groups.add(int(of_group[2]))
            return _User(int(fields[2]), frozenset(groups))
    return None


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _node(root: Path, path: str, user: _User) -> Node | None:
    try:
        return Node(path, user.may_write(below(root, path).stat()))
    except OSError:
        return None


def data_findings(unit: Unit, facts: DataFacts, where: str) -> Iterator[Finding]:
    """Judge. Root may write everywhere, which is a finding of its own."""
    if unit.of_user or (not unit.is_on("DynamicUser") and unit.get("User") in ("", "root", "0")):
        return
    for database in facts.databases:
        if not _lets_write(unit, database.path):
            said = f"ReadWritePaths={database.path}, in [Service], or keep the file in StateDirectory="
            yield DATABASE.found(f"one is in {database.path}, which {where} makes read-only", said)
        elif not database.writable:
            name = unit.get("User") or "its dynamic user"
            said = f"chown {name} {database.path}" if unit.get("User") else "keep the file in StateDirectory="
            yield DATABASE.found(f"one is in {database.path}, where {name} may not write", said)
    if facts.code is not None and facts.code.writable and _lets_write(unit, facts.code.path):
        strict = unit.get("ProtectSystem") == "strict"
        yield CODE.found(
            f"{facts.code.path} may be written by {unit.get('User') or 'its dynamic user'}, and {where} lets it",
            "ReadWritePaths= with nothing but what the app stores, such as a directory instance" if strict else "",
        )


def _lets_write(unit: Unit, path: str) -> bool:
    """Return whether a unit leaves a path writable, whatever its mode."""
    if _in_any(path, [*_paths(unit, "ReadWritePaths"), *_paths(unit, "BindPaths")]) or _in_any(path, _own(unit)):
        return True
    if _in_any(path, _paths(unit, "ReadOnlyPaths")):
        return False
    system = unit.get("ProtectSystem").lower()
    if system == "strict" or unit.is_on("DynamicUser"):
        return path.startswith(("/tmp/", "/var/tmp/", "/dev/", "/proc/", "/sys/"))  # noqa: S108  # as systemd has it
    home = unit.get("ProtectHome").lower()
    if (home in ("read-only", "tmpfs") or unit.is_on("ProtectHome")) and path.startswith(("/home/", "/root/")):
        return False
    closed = ["/etc"] if system == "full" else []
    closed += ["/usr", "/boot", "/efi"] if system == "full" or unit.is_on("ProtectSystem") else []
    return not _in_any(path, closed)


def _paths(unit: Unit, key: str) -> list[str]:
    return [word.lstrip("-+") for value in unit.all(key) for word in value.split()]


def _own(unit: Unit) -> list[str]:
    """Return the directories that systemd makes for a service."""
    found = []
    for key, base in _OWN_DIRECTORIES.items():
        for word in " ".join(unit.all(key)).split():
            found += [f"{base}/{word}", f"{base}/private/{word}"]
    return found


def _in_any(path: str, directories: list[str]) -> bool:
    return any(path == directory or path.startswith(directory.rstrip("/") + "/") for directory in directories)
