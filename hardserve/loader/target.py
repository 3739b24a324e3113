"""What APP says: which module, from where, and which steps lead from it to the app.

Main thread, at start. Looks at the file system but imports nothing: a spec that cannot be read is refused
before any code of the app has run.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from .errors import LoadError, did_you_mean, usage_error


@dataclass(frozen=True, slots=True)
class Attribute:
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    text: str = "()"  # in canonical form: ('dev', cache=True)


@dataclass(frozen=True, slots=True)
class Target:
    given: str  # what the operator wrote and where
    module: str
    roots: Sequence[Path]  # for the front of sys.path, in this order
    file: Path | None  # set when a path was named: the module must turn out to be this file
    steps: Sequence[Attribute | Call]  # empty: the app has to be found in the module

    def error(self, message: str) -> LoadError:
        """Return an error that starts with what the operator wrote, once."""
        return LoadError(message if message.startswith(self.given) else f"{self.given}: {message}")


def read_target(spec: str | None, directory: Path, environ: Mapping[str, str]) -> Target:
    if spec is not None:
        return _parse(spec, spec.strip(), directory)
    flask_app = environ.get("FLASK_APP", "").strip()
    if flask_app:
        return _parse(flask_app, f"FLASK_APP={flask_app}", directory)
    for name in ("wsgi", "app"):
        for file in (directory / name / "__init__.py", directory / f"{name}.py"):  # in the order of Python's import
            if file.is_file():
                return Target(str(file.relative_to(directory)), name, [directory], file, ())
    raise usage_error(f"no APP is given, FLASK_APP is not set, and there is no wsgi.py or app.py in {directory}.")


def _parse(text: str, given: str, directory: Path) -> Target:
    location, colon, expression = (part.strip() for part in text.partition(":"))
    if not location:
        raise usage_error(f'"{given}": the name of a module is missing.')
    steps = _parse_expression(expression, given) if colon else ()
    if "/" in location or location.endswith(".py") or location in {".", ".."}:
        file = _file_of_path(location, given, directory)
        root, module = _import_name(file, given)
        return Target(given, module, list(dict.fromkeys((root, directory))), file, steps)
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", location):
        raise usage_error(f'"{given}": "{location}" is not the name of a module.')
    return Target(given, location, [directory], None, steps)


def _parse_expression(text: str, given: str) -> Sequence[Attribute | Call]:
    """Read a name followed by any `.attribute` and `(literals)`. Nothing is evaluated but the literals."""

    def refuse() -> NoReturn:
        raise usage_error(
            f'"{given}": expected a name, or a factory with literal arguments, after the colon, not "{text}".'
        ) from None

    steps: list[Attribute | Call] = []
    try:
        node = ast.parse(text, mode="eval").body
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                steps.append(Attribute(node.attr))
                node = node.value
            elif isinstance(node, ast.Call):
                steps.append(_call_of(node))
                node = node.func
            else:
                refuse()
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        refuse()  # what ast documents for text that is no expression, and for an argument that is no literal
    return [Attribute(node.id), *reversed(steps)]


def _call_of(node: ast.Call) -> Call:
    args = [ast.literal_eval(argument) for argument in node.args]
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    if None in kwargs or len(kwargs) < len(node.keywords):
        raise ValueError("** has no name, or a name is there twice")  # refused rather than dropped
    text = ", ".join(map(ast.unparse, (*node.args, *node.keywords)))
    return Call(args, {str(name): value for name, value in kwargs.items()}, f"({text})")


def _file_of_path(location: str, given: str, directory: Path) -> Path:
    path = Path(os.path.realpath(directory / location))  # as Flask and Python: a link's target has the siblings
    if path.is_dir():
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        inside = [name for name in ("wsgi.py", "app.py") if (path / name).is_file()]
        hint = f'Did you mean "{location.rstrip("/")}/{inside[0]}"?' if inside else "Name the file of the app in it."
        raise LoadError(f"{given}: {path} is a directory without __init__.py, so not a package. {hint}")
    if path.is_file():
        if path.suffix != ".py":
            raise LoadError(f"{given}: {path} is neither a Python file (*.py) nor a package.")
        return path
    if path.with_name(f"{path.name}.py").is_file():
        return path.with_name(f"{path.name}.py")
    siblings = [file.name for file in path.parent.glob("*.py")]
    raise LoadError(f"{given}: there is no file {path}.{did_you_mean(path.name, siblings)}")


def _import_name(file: Path, given: str) -> tuple[Path, str]:
    """Return where the file's outermost package lies, and the dotted name that the file has from there."""
    names = [] if file.name == "__init__.py" else [file.stem]
    root = file.parent
    while (root / "__init__.py").is_file() and root.parent != root:
        names.insert(0, root.name)
        root = root.parent
    for name in names:
        if "." in name:
            raise LoadError(f'{given}: Python cannot import "{name}", for the dot in its name. Rename it.')
    return root, ".".join(names)
