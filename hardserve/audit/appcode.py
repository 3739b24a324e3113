"""What an app's own code says: which functions it has for requests, and what they use.

Main thread, after the app was loaded. Only looks: nothing of the app is called. Imports neither Flask nor Werkzeug:
what an app uses of them is there already.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from hardserve.audit.appsource import called

if TYPE_CHECKING:
    from flask import Flask

# That are looked at; who has more has not written them by hand.
MAX_FUNCTIONS = 5_000
# What a hook speaks of that looks whether a request comes from the app's own pages.
_DEFENCES = ("csrf", "xsrf", "sec-fetch-site", "origin", "referer", "referrer")


# --- functions ---


def views_and_hooks(flask: Flask) -> Iterator[Any]:
    """Yield whatever Flask calls for requests, as it was registered."""
    yield from flask.view_functions.values()
    yield from hooks(flask)
    for of_scope in flask.error_handler_spec.values():
        for of_code in of_scope.values():
            yield from of_code.values()
    for functions in (flask.template_context_processors, flask.teardown_request_funcs):
        for each in functions.values():
            yield from each


def hooks(flask: Flask) -> Iterator[Any]:
    """Yield the functions that are called before and after every request."""
    for functions in (flask.before_request_funcs, flask.after_request_funcs, flask.url_value_preprocessors):
        for each in functions.values():
            yield from each


def functions_in(values: Iterator[Any], files: frozenset[str]) -> list[FunctionType]:
    """Return the functions from `files` that some values are or wrap, and those that they call, as far as that shows.

    `files` are real paths.
    """
    waiting: list[Any] = list(values)
    seen: set[int] = set()
    found: list[FunctionType] = []
    while waiting and len(seen) < MAX_FUNCTIONS:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        waiting += _inside(value)
        if isinstance(value, FunctionType) and os.path.realpath(value.__code__.co_filename) in files:
            found.append(value)
            # What stands in the same file, and others of the app's, under the names that it uses.
            waiting += [
                value.__globals__[name]
                for name in _names(value.__code__)
                if isinstance(value.__globals__.get(name), FunctionType)
            ]
    return found


def _inside(value: Any) -> list[Any]:
    if inspect.ismethod(value):
        return [value.__func__]
    if isinstance(value, FunctionType):
        inner = [vars(value).get("__wrapped__"), vars(value).get("view_class")]
        for cell in value.__closure__ or ():
            try:
                inner.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        return [each for each in inner if isinstance(each, FunctionType | type) or inspect.ismethod(each)]
    if isinstance(value, type):  # of a class of views
        return [member for member in vars(value).values() if isinstance(member, FunctionType)]
    return [value.func] if hasattr(value, "func") and callable(value.func) else []


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _texts(code: CodeType) -> Iterator[str]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _texts(each)
        elif isinstance(each, str):
            yield each


def place_of(function: FunctionType, directory: Path) -> str:
    """Return where a function is, for people who are in `directory`: "login (shop/views.py:12)"."""
    code = function.__code__
    return f"{function.__qualname__} ({shown(code.co_filename, directory)}:{code.co_firstlineno})"


def shown(path: str, directory: Path) -> str:
    """Return a path as somebody in `directory` would write it."""
    below = os.path.relpath(path, directory)
    text = path if below.startswith(os.pardir) else below
    return text if text.isprintable() else ascii(text)


def uses_session(functions: Sequence[FunctionType], directory: Path) -> str:
    """Return where Flask's session is used first, and as what; "" where it does not show."""
    modules: Mapping[str, Any] = sys.modules
    wanted = {
        name: getattr(modules.get(module), name, None)
        for name, module in (("session", "flask.globals"), ("flash", "flask.helpers"))
    }
    flask = modules.get("flask")
    for function in sorted(functions, key=lambda each: (each.__code__.co_filename, each.__code__.co_firstlineno)):
        names = set(_names(function.__code__))
        for name, value in wanted.items():
            known = function.__globals__
            as_own = any(known.get(other) is value for other in names)
            as_flasks = name in names and any(known.get(other) is flask for other in names)
            if value is not None and (as_own or (flask is not None and as_flasks)):
                return f"{name} in {place_of(function, directory)}"
    return ""


def uses_host(functions: Sequence[FunctionType], directory: Path) -> str:
    """Return where the host that a client has sent becomes part of a URL first; "" where that does not show."""
    for function in functions:
        names, texts = set(_names(function.__code__)), set(_keywords(function.__code__))
        used = {"host_url", "url_root", "base_url"} & names if "request" in names else set()
        if used or ("_external" in texts and "url_for" in names):
            return f"{min(used, default='url_for(_external=True)')} in {place_of(function, directory)}"
    return ""


def logs_in(functions: Sequence[FunctionType], directory: Path, *, remembering: bool = False) -> str:
    """Return where Flask-Login logs a user in, or with `remembering` past the session; "" where that does not show."""
    for function in functions:
        code = function.__code__
        if "login_user" in _names(code) and (not remembering or "remember" in _keywords(code)):
            return f"login_user in {place_of(function, directory)}"
    return ""


def _keywords(code: CodeType) -> Iterator[str]:
    """Yield the names of keywords that are given somewhere: they are constants, several in one."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _keywords(each)
        elif isinstance(each, tuple):
            yield from (name for name in each if isinstance(name, str))


def uses_class_of(package: str, functions: Sequence[FunctionType]) -> bool:
    """Return whether some function speaks of a class that is a package's, or that is derived from one."""
    return any(
        isinstance(value, type) and any(cls.__module__.partition(".")[0] == package for cls in value.__mro__)
        for function in functions
        for value in map(function.__globals__.get, _names(function.__code__))
    )


def defends_itself(functions: Sequence[FunctionType]) -> bool:
    """Return whether some hook looks at where a request comes from, or for a token."""
    return any(
        word in text.lower()
        for function in functions
        for text in (*_texts(function.__code__), *_names(function.__code__), function.__name__)
        for word in _DEFENCES
    )


def shows_traceback(function: FunctionType) -> bool:
    """Return whether a function that handles errors answers with their traceback."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    held = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _calls(node.value, "format_exc")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            named = {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
            if named & held or _calls(node.value, "format_exc"):
                return True
    return False


def _calls(tree: ast.AST, name: str) -> bool:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(called(call) == name for call in calls)


def is_from(value: object, package: str) -> bool:
    """Return whether a value is of a class that a package has, or that is derived from one."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(value).__mro__)


def owner_of(hook: Any) -> object:
    """Return the object whose method a hook is, or the module that a function was written in."""
    if inspect.ismethod(hook):
        return hook.__self__
    return sys.modules.get(getattr(hook, "__module__", None) or "")
