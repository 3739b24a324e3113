"""Turns APP (`module:name`, `module:factory("arg")`, a path, or nothing) into one WSGI callable.

Main thread, once, before anything listens. This package knows how an app is named, found and imported, and
what makes it unfit for production; it knows nothing of sockets, settings or how it will be served, and it
imports neither Flask nor Werkzeug: an app that uses them brings them, any other is spared the memory.

The rules are Flask's (`flask --app`) with gunicorn's added; where the two differ:

- a function named without parentheses is a WSGI callable if it takes two arguments (gunicorn), and a factory
  that is called if it takes none (Flask);
- in a module named alone, an `app` or `application` that is any WSGI callable wins over a Flask instance with
  another name: it is usually that instance in its middleware, and serving it bare would drop the middleware.

    target -> servers (none may start) -> appcode (the app's own code runs) -> find -> production (is it fit?)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LoadError, name_of
from .find import find_app, import_module, why_not_wsgi
from .kinds import is_flask
from .production import parts_of, refuse_development
from .servers import NoServerStarts
from .target import read_target

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from flask import Flask

__all__ = ["LoadError", "LoadedApp", "check_app", "load_app"]


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """The app to serve. `flask` is the Flask instance that it is or wraps, if one can be seen."""

    app: WSGIApplication
    spec: str  # canonical: names the same app whatever had to be found out, such as "app:create_app()"
    flask: Flask | None


def load_app(spec: str | None, *, directory: Path, environ: Mapping[str, str]) -> LoadedApp:
    """Import the app that `spec` names and check that it is fit to be served.

    Without `spec`, FLASK_APP of `environ`, then wsgi.py, then app.py of `directory` are tried, as Flask does.
    Paths are relative to `directory`, which is put on `sys.path` and stays there, for what the app imports
    later. The app itself sees `os.environ`: load `.env` into it first.

    Main thread only: while the app is imported, `app.run()` and its like are replaced process-wide.
    Raises LoadError, and nothing else whatever the app raises, with an exit code: 2 for a spec that cannot be
    read, 78 for an app set up for development (every reason at once), 1 for everything else.
    """
    target = read_target(spec, directory.absolute(), environ)
    with NoServerStarts(target.given) as servers:
        try:
            found = find_app(import_module(target), target)
        except LoadError:
            servers.raise_if_called()  # that is why, whatever the app made of it
            raise
    servers.raise_if_called()
    parts = parts_of(found.app)
    refuse_development(found.spec, parts, environ)
    return LoadedApp(found.app, found.spec, next(filter(is_flask, parts), None))


def check_app(app: object) -> None:
    """Raise LoadError for an app object that is no WSGI app (exit code 1) or is set up for development (78)."""
    spec = name_of(app)
    problem = why_not_wsgi(app, spec)
    if problem:
        raise LoadError(f"{spec} {problem}")
    refuse_development(spec, parts_of(app), os.environ)
