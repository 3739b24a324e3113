"""Which texts stand in an app's source, and which keys it makes anew at each start.

Main thread; reads files. Python is parsed, never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Of source that is looked through.
MAX_FILES = 2_000
MAX_FILE_BYTES = 1024 * 1024

# What makes a key that nobody knows, not even the next start.
_RANDOM = frozenset({"urandom", "token_bytes", "token_hex", "token_urlsafe", "uuid4", "generate_key", "randbytes"})
# What turns one into text.
_TO_TEXT = frozenset({"hex", "decode", "str", "b64encode", "urlsafe_b64encode", "hexlify"})
_FROM_ENVIRONMENT = frozenset({"getenv", "get"})

Place = tuple[str, int]  # a file, and a line of it


@dataclass(frozen=True, slots=True)
class Source:
    """The texts of an app's source and where each stands first, bytes as Latin-1.

    `assigned` has those that a setting is given, by the setting and the text, and `random` the settings that have
    another value at each start.
    """

    texts: Mapping[str, Place]
    assigned: Mapping[tuple[str, str], Place]
    random: Mapping[str, Place]

    def place_of_part(self, part: str) -> Place | None:
        """Return where `part` stands within a text."""
        return next((place for text, place in self.texts.items() if part in text), None)


def read_source(files: Sequence[Path], environ: Mapping[str, str]) -> Source:
    """Read the Python among `files`. Never raises for what is in one."""
    texts: dict[str, Place] = {}
    assigned: dict[tuple[str, str], Place] = {}
    random: dict[str, Place] = {}
    for path, tree in _parsed(files):
        docstrings = set(map(id, _docstrings(tree)))
        for node in ast.walk(tree):
            if id(node) not in docstrings:
                for text, line in _texts(node):
                    texts.setdefault(text, (path, line))
            for name, value in _assigned(node):
                for text, line in (found for each in ast.walk(value) for found in _texts(each)):
                    assigned.setdefault((name, text), (path, line))
                if _is_random(value, environ):
                    random.setdefault(name, (path, value.lineno))
    return Source(texts, assigned, random)


def _parsed(files: Sequence[Path]) -> Iterator[tuple[str, ast.Module]]:
    for path in [path for path in files if path.suffix == ".py"][:MAX_FILES]:
        try:
            if path.stat().st_size <= MAX_FILE_BYTES:
                yield str(path), ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue


def _docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            yield body[0].value


def _texts(node: ast.AST) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        yield node.value if isinstance(node.value, str) else node.value.decode("latin-1"), node.lineno


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield what a node gives to a setting, in capitals: an attribute, a name, a key or a keyword."""
    pairs: list[tuple[str, ast.expr]] = []
    if isinstance(node, ast.Assign):
        pairs = [(_setting(target), node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        pairs = [(_setting(node.target), node.value)]
    elif isinstance(node, ast.Call):
        pairs = [(each.arg or "", each.value) for each in node.keywords]
        if called(node) == "setdefault" and len(node.args) == 2:
            pairs.append((_constant(node.args[0]), node.args[1]))
    elif isinstance(node, ast.Dict):
        pairs = [(_constant(key), value) for key, value in zip(node.keys, node.values, strict=True)]
    yield from ((name, value) for name, value in pairs if name.isupper())


def _setting(target: ast.expr) -> str:
    if isinstance(target, ast.Subscript):
        return _constant(target.slice)
    if isinstance(target, ast.Attribute):
        return "SECRET_KEY" if target.attr == "secret_key" else target.attr
    return target.id if isinstance(target, ast.Name) else ""


def _constant(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def called(call: ast.Call) -> str:
    """Return the last name of what is called."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_random(value: ast.expr, environ: Mapping[str, str]) -> bool:
    """Return whether an expression is another one at each start, with the environment that there is."""
    if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or):
        *first, last = value.values
        return all(_is_lacking(each, environ) for each in first) and _is_random(last, environ)
    if isinstance(value, ast.Attribute):
        return value.attr in ("hex", "bytes") and _is_random(value.value, environ)  # of a UUID
    if not isinstance(value, ast.Call):
        return False
    name = called(value)
    if name in _FROM_ENVIRONMENT and len(value.args) == 2:
        return _is_lacking(value, environ) and _is_random(value.args[1], environ)
    inner = [value.func.value] if isinstance(value.func, ast.Attribute) else []
    return name in _RANDOM or (name in _TO_TEXT and any(_is_random(each, environ) for each in (*inner, *value.args)))


def _is_lacking(value: ast.expr, environ: Mapping[str, str]) -> bool:
    """Return whether an expression asks the environment for what is not there."""
    if not isinstance(value, ast.Call) or called(value) not in _FROM_ENVIRONMENT or not value.args:
        return False
    name = _constant(value.args[0])
    return bool(name) and not environ.get(name)
