"""Which files that settings name cannot be used. Main thread, at start; looks at files and opens pages."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hardserve.configfiles import read_page
from hardserve.contradictions import Given
from hardserve.names import TABLES
from hardserve.settings import PageFile, StaticSettings
from hardserve.values import show


def bad_files(given: Given) -> Iterator[str]:
    """Say which files that settings name cannot be used."""
    for table in TABLES:
        for each in table.keys:
            if isinstance(each.about.kind, PageFile):
                for key, path in given.in_tables(table, each.name):
                    try:
                        read_page(given.directory / path, each.about.kind)
                    except ValueError as problem:
                        yield f"{given.where[key]} = {show(path)}: {problem}"
    yield from _bad_mounts(given)
    yield from _without_effect(given)


def _bad_mounts(given: Given) -> Iterator[str]:
    """Say which mounts are of nothing, and which never count because their URL has another one."""
    # Of each its URL, its path, how a message about either begins, and where another would find its URL.
    mounts: list[tuple[str, str, str, str, str]] = []
    for text in given.values.get("server.static", ()):
        said = f"{given.where['server.static']} = {show(text)}"
        url, _, path = text.partition("=")
        mounts.append((url, path, said, said, said))
    for index, static in given.tables.get("static", {}).items():
        at_url, at_path = (given.where[f"static[{index}].{name}"] for name in ("url", "directory"))
        said_url, said_path = f"{at_url} = {show(static.url)}", f"{at_path} = {show(static.directory)}"
        mounts.append((static.url, static.directory, said_url, said_path, at_url))
    seen: dict[str, str] = {}
    for url, path, said_url, said_path, at_url in mounts:
        problem = _mount_problem(given, path)
        if problem:
            yield f"{said_path}: {problem}"
        if url in seen:
            yield f"{said_url}: expected each URL once, but it is that of {seen[url]} as well"
        seen.setdefault(url, at_url)


def _mount_problem(given: Given, path: str) -> str:
    """Say why a directory, or a file, cannot be served, "" if it can."""
    tried = (given.directory / path).absolute()
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


def _without_effect(given: Given) -> Iterator[str]:
    """Say what in a [[static]] never counts, because of what it is or of something else in it."""
    for index, static in given.tables.get("static", {}).items():
        path = os.path.join(given.directory, static.directory)
        for name in ("index", "listing", "fallback"):
            key, value = f"static[{index}].{name}", getattr(static, name)
            if key in given.values and value != "off":
                problem = _effect_problem(given, index, static, name, path)
                if problem:
                    yield f"{given.where[key]} = {show(value)}: {problem}"


def _effect_problem(given: Given, index: int, static: StaticSettings, name: str, path: str) -> str:
    """Say why one of those settings never counts, "" if it does."""
    if os.path.isfile(path):
        return f"never counts, because {given.where[f'static[{index}].directory']} is one file"
    if static.internal == "on" and name != "index":
        return f'never counts, because of {given.where[f"static[{index}].internal"]} = "on"'
    if name == "fallback":
        if static.miss == "app":
            return f'never counts, because of {given.where[f"static[{index}].miss"]} = "app"'
        if os.path.isdir(path) and not os.path.isfile(os.path.join(path, static.fallback)):
            return f"expected a file in {show(static.directory)}, and none of that name is there"
    return ""


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
