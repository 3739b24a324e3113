"""What is an app's own and nobody else's: its modules, templates, settings and databases, as far as that can be told.

For the check that none of it lies in a folder that is served. What is the app's is told by where its modules are: in
its package all Python is, imported or not; beside a module that is in no package, only what is imported. What is
installed there (site-packages), or Python's own, is not.

Main thread, at start. Only looks, and imports neither Flask nor Werkzeug.
"""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .kinds import is_flask
from .production import parts_of
from .statics import static_directories

if TYPE_CHECKING:
    from flask import Flask

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_MAX_LOADERS = 16  # of templates, one inside another


@dataclass(frozen=True, slots=True)
class AppSource:
    """What is an app's own, as absolute paths; of a kind none, where nothing is known.

    `files` are modules that are loaded, and SQLite databases, which need not exist yet. `packages` are directories in
    which all Python is the app's; `roots` are those that its other modules are imported from. `templates` has its
    templates, `instances` what Flask calls so, for settings and databases. What is in `public`, the app itself shows.
    """

    files: Sequence[Path] = ()
    packages: Sequence[Path] = ()
    roots: Sequence[Path] = ()
    templates: Sequence[Path] = ()
    instances: Sequence[Path] = ()
    public: Sequence[Path] = ()


def source_of(app: object) -> AppSource:
    """Return what is the own of `app` and of what it wraps."""
    parts = parts_of(app)
    flasks = [part for part in parts if is_flask(part)]
    owners = [owner for flask in flasks for owner in (flask, *flask.blueprints.values())]
    modules = list(_modules_of(parts))
    packages, roots = _places([owner.root_path for owner in owners], modules)
    files = [file for name in modules if (file := _file_of(sys.modules.get(name)))]
    files += _loaded_below([*packages, *roots])
    files = [file for file in dict.fromkeys(files) if os.path.isfile(file)]
    return AppSource(
        files=list(dict.fromkeys([*map(Path, files), *(file for flask in flasks for file in _databases_of(flask))])),
        packages=_paths(packages),
        roots=_paths(roots),
        templates=_paths(folder for owner in owners for folder in _templates_of(owner)),
        instances=_paths(flask.instance_path for flask in flasks),
        public=_paths(static_directories(app)),
    )


def _paths(texts: Iterable[str]) -> list[Path]:
    return [Path(text) for text in dict.fromkeys(texts)]


def _modules_of(parts: Sequence[object]) -> Iterator[str]:
    """Yield the names of modules that the app was written in."""
    names: list[object] = []
    for part in parts:
        if is_flask(part):
            names.append(part.import_name)
            names += (blueprint.import_name for blueprint in part.blueprints.values())
            names += (getattr(view, "__module__", "") for view in part.view_functions.values())
        named: Any = part if inspect.isroutine(part) or isinstance(part, type) else type(part)
        names.append(getattr(named, "__module__", ""))
    for name in dict.fromkeys(names):
        if isinstance(name, str) and name.partition(".")[0] not in {"flask", "werkzeug"}:
            yield name


def _places(root_paths: Sequence[str], modules: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the packages that modules are in, the outermost, and the directories of those that are in none."""
    packages: list[str] = []
    roots: list[str] = []
    for name in modules:
        top = sys.modules.get(name.partition(".")[0])
        below = _attribute(top, "__path__")
        if below is not None:
            packages += (os.path.abspath(path) for path in below if isinstance(path, str))
        elif file := _file_of(top):
            roots.append(os.path.dirname(file))
    for path in map(os.path.abspath, root_paths):
        (packages if os.path.isfile(os.path.join(path, "__init__.py")) else roots).append(path)
    return [path for path in packages if not _is_shared(path)], [path for path in roots if not _is_shared(path)]


def _is_shared(directory: str) -> bool:
    """Tell whether what is beside each other there has nothing to do with each other."""
    return os.path.basename(directory) in _INSTALLED or directory in _of_python()


def _of_python() -> set[str]:
    return {os.path.abspath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}


def _loaded_below(directories: Sequence[str]) -> Iterator[str]:
    """Yield the files of all modules that were loaded from these directories, but for what is installed there."""
    of_python = tuple(f"{directory}/" for directory in _of_python())
    bases = [f"{directory.rstrip('/')}/" for directory in dict.fromkeys(directories)]
    for module in list(sys.modules.values()):
        file = _file_of(module)
        for base in bases:
            if file.startswith(base) and not _INSTALLED & set(file[len(base) :].split("/")):
                if base.startswith(of_python) or not file.startswith(of_python):
                    yield file
                break


def _file_of(module: object) -> str:
    file = _attribute(module, "__file__")
    return os.path.abspath(file) if isinstance(file, str) and "\0" not in file else ""


def _attribute(module: object, name: str) -> Any:
    """Return what is there already: some modules load themselves when they are asked."""
    attributes = getattr(module, "__dict__", None)
    return attributes.get(name) if isinstance(attributes, dict) else None


def _templates_of(owner: Any) -> Iterator[str]:
    """Yield where a Flask app or a blueprint has its templates."""
    if owner.template_folder is not None:
        yield os.path.abspath(os.path.join(owner.root_path, os.fspath(owner.template_folder)))
    loaders = [_attribute(owner, "jinja_loader")]
    for loader in loaders:  # grows as it is read
        inner = _attribute(loader, "loaders")
        loaders += list(inner)[: _MAX_LOADERS - len(loaders)] if isinstance(inner, list | tuple) else []
        places = _attribute(loader, "searchpath")
        yield from (os.path.abspath(place) for place in places or () if isinstance(place, str))


def _databases_of(flask: Flask) -> Iterator[Path]:
    config = flask.config
    binds = config.get("SQLALCHEMY_BINDS")
    values = [config.get(name) for name in ("SQLALCHEMY_DATABASE_URI", "DATABASE_URL", "DATABASE")]
    values += binds.values() if isinstance(binds, dict) else []
    for value in values:
        bind = value.get("url") if isinstance(value, dict) else value
        if not isinstance(bind, str | os.PathLike) and not hasattr(bind, "drivername"):  # a URL of SQLAlchemy
            continue
        text = str(bind)
        scheme, is_url, rest = text.partition("://")
        if is_url:
            if scheme.partition("+")[0] != "sqlite":
                continue
            name = unquote(rest.removeprefix("/").removeprefix("file:").partition("?")[0])
        else:
            name = text
        # A URL is relative to the instance folder (Flask-SQLAlchemy), a name to the directory of the process.
        bases = (flask.instance_path, flask.root_path, "") if is_url else ("", flask.instance_path, flask.root_path)
        if name and name != ":memory:" and "\0" not in name:
            yield _first_file(name, [os.path.abspath(base) for base in bases])


def _first_file(name: str, bases: Sequence[str]) -> Path:
    places = [Path(os.path.abspath(os.path.join(base, name))) for base in bases]
    is_there: Callable[[Path], bool] = os.path.isfile
    return next(filter(is_there, places), places[0])
