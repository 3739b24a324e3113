"""The shape of the source: what may import what, and what may not be there at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hardserve

PACKAGE = Path(hardserve.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Dependencies point down: a part may import itself and what stands in its set. Those that are everybody's are data and
# pure functions, and import nothing but each other. The command line imports what it catches the errors of.
EVERYBODYS = {"settings", "refusals", "protocol", "pages", "values", "addresses", "http", "pool", "securityheaders"}
ALLOWED: dict[str, set[str]] = {
    "settings": set(),
    "addresses": set(),
    "http": set(),
    "pool": set(),
    "securityheaders": {"settings"},
    "values": {"settings", "refusals", "addresses", "http"},
    "refusals": set(),
    "protocol": {"refusals"},
    "pages": {"settings", "refusals", "protocol", "http", "securityheaders"},
    "describe": {"settings", "values", "addresses"},
    "names": {"settings", "values", "describe"},
    "configfiles": {"settings", "values", "names"},
    "contradictions": {"settings", "values", "addresses", "names"},
    "filechecks": {"settings", "values", "names", "configfiles", "contradictions"},
    "options": {"settings", "values", "addresses", "describe", "names", "configfiles", "contradictions", "filechecks"},
    "loader": EVERYBODYS,
    "edge": EVERYBODYS | {"tls"},  # tls.hello alone: see below
    "wsgi": EVERYBODYS,
    "ops": EVERYBODYS,
    "checks": EVERYBODYS,
    "files": EVERYBODYS,
    "tls": EVERYBODYS,
    "passwd": EVERYBODYS | {"checks"},
    "demo": EVERYBODYS,
    "mounting": EVERYBODYS | {"configfiles", "files", "loader"},
    "securing": EVERYBODYS | {"configfiles", "tls"},
    "https": EVERYBODYS | {"securing", "tls", "edge", "loader", "ops"},
    "cert": EVERYBODYS | {"configfiles", "securing", "tls"},
    "audit": EVERYBODYS | {"cert", "files", "loader", "configfiles", "mounting", "units"},
    "check": EVERYBODYS | {"audit", "cert", "checks", "configfiles", "loader", "mounting", "ops", "options"},
    "record": EVERYBODYS | {"edge", "ops", "wsgi"},
    "changes": EVERYBODYS | {"contradictions", "names", "options"},
    "replacing": EVERYBODYS | {"configfiles", "edge", "checks", "wsgi", "https", "record", "securing"},
    "reload": EVERYBODYS | {"changes", "configfiles", "options", "ops", "replacing", "server", "checks"},
    "server": EVERYBODYS
    | {"https", "mounting", "record", "replacing"}
    | {"configfiles", "edge", "checks", "files", "wsgi", "ops", "loader", "options", "__init__"},
    "inherited": EVERYBODYS | {"configfiles"},
    "successor": EVERYBODYS | {"inherited"},
    "helptext": EVERYBODYS | {"describe", "options", "__init__"},
    "rereading": EVERYBODYS | {"configfiles", "names", "options", "inherited", "successor"},
    "service": EVERYBODYS | {"server", "reload", "successor", "inherited", "ops", "wsgi", "__init__"},
    "cli": EVERYBODYS
    | {
        "helptext",
        "rereading",
        "cert",
        "check",
        "configfiles",
        "describe",
        "names",
        "service",
        "successor",
        "inherited",
        "options",
        "edge",
        "checks",
        "loader",
        "ops",
        "passwd",
        "units",
        "__init__",
    },
    "units": EVERYBODYS | {"configfiles", "loader", "options"},
    "__main__": {"cli"},
    "__init__": EVERYBODYS | {"server", "service", "successor", "inherited", "options", "ops", "loader"},
}
# What else is under the package may use it as a user would.
OTHERS = {"__init__"}


def part_of(module: str) -> str:
    """Return which part of the package a dotted name belongs to; the package itself is `__init__`."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def dotted(path: Path) -> str:
    names = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(path: Path) -> Iterator[str]:
    """Yield every module that is imported anywhere in `path`, as an absolute dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
            base = [*here[: len(here) + 1 - node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from hardserve import refusals` imports a module, `from hardserve import __version__` a name.
                submodule = PACKAGE.parent.joinpath(*module.split("."), alias.name)
                is_module = submodule.with_suffix(".py").exists() or submodule.is_dir()
                yield f"{module}.{alias.name}" if is_module else module


def test_there_is_something_to_look_at() -> None:
    assert {part_of(dotted(path)) for path in MODULES} >= {"server", "edge", "wsgi", "ops", "loader", "cli"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down(path: Path) -> None:
    part = part_of(dotted(path))
    allowed = ALLOWED.get(part, OTHERS) | {part}
    imported = {part_of(name) for name in imports(path) if name.split(".")[0] == PACKAGE.name}
    assert imported <= allowed, f"{dotted(path)} may not import {sorted(imported - allowed)}"


def test_the_parts_that_do_not_know_each_other() -> None:
    apart = {"edge", "wsgi", "ops", "loader"}
    for part in apart:
        assert not ALLOWED[part] & apart


def test_the_edge_knows_nothing_of_certificates() -> None:
    edge = [name for path in MODULES if part_of(dotted(path)) == "edge" for name in imports(path)]
    assert {name for name in edge if part_of(name) == "tls"} == {"hardserve.tls.hello"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_waitress_is_met_in_these_modules_alone(path: Path) -> None:
    meets = any(name.split(".")[0] == "waitress" for name in imports(path))
    assert meets == (dotted(path) in {"hardserve.edge.parsing", "hardserve.edge.chunks"})


# A storage of `limits` must say in seconds of the day when a window ends; what is admitted does not depend on it. The
# end of a client's certificate is a date.
TELLS_THE_TIME = {"hardserve.edge.limitsstorage", "hardserve.edge.handshake"}
TIMELESS = [path for path in MODULES if "edge" in path.parts and dotted(path) not in TELLS_THE_TIME]


@pytest.mark.parametrize("path", TIMELESS, ids=dotted)
def test_the_edge_has_no_wall_clock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("time", "time"), ("time", "time_ns"), ("time", "sleep")}, path
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert {alias.name for alias in node.names} == {"monotonic"}, path
    assert "datetime" not in set(imports(path))


@pytest.mark.parametrize("path", [path for path in MODULES if path.stat().st_size], ids=dotted)
def test_a_module_opens_by_saying_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    first = tree.body[0]
    assert isinstance(first, ast.Expr), "the first thing is not a docstring"
    docstring = ast.get_docstring(tree)
    assert docstring
    assert docstring.splitlines()[0].rstrip().endswith((".", ":", ",", ";")) or "\n" in docstring
    assert path.read_text().startswith(('"""', 'r"""')), "something stands before the docstring"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_mutable_lives_in_a_module(path: Path) -> None:
    """Two servers can run in one process: a lower-case name bound to a container at the top is shared state."""
    for node in ast.parse(path.read_text()).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.isupper() and not target.id.startswith("__"):
                value = node.value  # type: ignore[union-attr]
                assert not isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp), target.id


def test_importing_starts_nothing() -> None:
    program = (
        "import threading, sys, logging; import hardserve; "
        "assert threading.active_count() == 1, threading.enumerate(); "
        "assert not logging.getLogger().handlers; "
        "print(*sorted(name for name in sys.modules if name.startswith('hardserve')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hardserve" in done.stdout
