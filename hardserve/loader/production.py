"""It is no development server: an app in debug mode, in a debugger or under a reloader is refused.

Main thread, at start, once the app is there. Only looks: of an app's objects it reads instance dictionaries,
never a property that could run code (`Flask.debug`, a plain look-up, is the exception).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from types import CellType
from typing import Any

from .errors import EXIT_CONFIGURATION, LoadError
from .kinds import is_debugger, is_flask

_WRAPPED_AS = ("wsgi_app", "app", "application", "_app", "__wrapped__")
_MAX_PARTS = 64  # middleware is a few layers deep; a larger graph is no middleware


def parts_of(app: object) -> Sequence[object]:
    """Return the app and what it wraps, as far as that can be seen, outermost first."""
    parts = [app]
    for part in parts:  # grows as it is read
        known = {id(other) for other in parts}
        new = {id(inner): inner for inner in _wrapped_by(part) if id(inner) not in known}
        parts += list(new.values())[: _MAX_PARTS - len(parts)]
    return parts


def refuse_development(spec: str, parts: Iterable[object], environ: Mapping[str, str]) -> None:
    problems = []
    flask_debug = environ.get("FLASK_DEBUG", "")
    by_environment = flask_debug != "" and flask_debug.lower() not in {"0", "false", "no"}  # as Flask reads it
    if by_environment:
        problems.append(f"FLASK_DEBUG={flask_debug}: unset it, also in .env and .flaskenv, or set FLASK_DEBUG=0")
    for part in parts:
        if is_flask(part) and part.debug:
            where = "should it be more than FLASK_DEBUG, take" if by_environment else "take"
            problems.append(
                f'debug mode of the Flask app "{part.name}": {where} app.debug = True, DEBUG = True or'
                " debug=True out of the app or its configuration"
            )
        elif is_debugger(part):
            problems.append(
                "Werkzeug's DebuggedApplication around the app, which shows source and can run code from the"
                " browser: take the wrapping out"
            )
    if environ.get("WERKZEUG_RUN_MAIN") == "true":
        problems.append("WERKZEUG_RUN_MAIN=true, the mark of Werkzeug's reloader: unset it, start without the reloader")
    if problems:
        lines = "".join(f"  - {problem}\n" for problem in problems)
        raise LoadError(
            f"{spec} is set up for development, and hardserve is for production. To turn off:\n{lines}"
            "To develop, use `flask run --debug`.",
            EXIT_CONFIGURATION,
        )


def _wrapped_by(part: Any) -> list[object]:
    try:
        attributes = vars(part)
    except TypeError:  # slots, builtins
        attributes = {}
    if is_flask(part):  # app.wsgi_app = Middleware(app.wsgi_app)
        return [attributes["wsgi_app"]] if "wsgi_app" in attributes else []
    found = [attributes[name] for name in _WRAPPED_AS if callable(attributes.get(name))]
    found += filter(_is_telling, attributes.values())
    mounts = attributes.get("mounts")  # of Werkzeug's DispatcherMiddleware
    found += mounts.values() if isinstance(mounts, dict) else []
    if inspect.ismethod(part):
        found += [part.__self__, part.__func__]
    elif isinstance(part, functools.partial):
        found += [part.func, *part.args]
    elif inspect.isfunction(part):
        found += filter(callable, map(_content, part.__closure__ or ()))
        found += filter(_is_telling, map(part.__globals__.get, part.__code__.co_names))
    return found


def _is_telling(value: object) -> bool:
    return is_flask(value) or is_debugger(value)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
