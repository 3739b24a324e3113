"""From a module to the app in it, as Flask and gunicorn find it.

Main thread, at start. Every line of the app's code that runs here runs through `run_app_code`.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from .appcode import app_frames, run_app_code
from .errors import described, did_you_mean, name_of, origin_of
from .kinds import is_app_itself, is_dash, is_flask, is_plainly_wsgi, kind_of, signature_of
from .target import Attribute, Call, Target


class Found(NamedTuple):
    app: Any
    spec: str


def import_module(target: Target) -> ModuleType:
    for root in reversed(target.roots):
        if sys.path[:1] != [str(root)]:
            sys.path.insert(0, str(root))
    _refuse_taken_name(target)

    def load() -> None:
        try:
            __import__(target.module)
        except ModuleNotFoundError as error:
            # It may also be a module that the app imports, or one missing to a compiled module without frames.
            asked_for = f"{target.module}.".startswith(f"{error.name}.")
            if asked_for and not app_frames(error.__traceback__):
                raise target.error(_no_such_module(target)) from None
            raise

    run_app_code(f"importing {target.module}", load)
    module = sys.modules[target.module]
    file = getattr(module, "__file__", None)
    if target.file and file and os.path.realpath(file) != os.path.realpath(target.file):
        raise target.error(f"{file} hides {target.file} when it is imported. Rename one of them.")
    return module


def find_app(module: ModuleType, target: Target) -> Found:
    if not target.steps:
        return _discover(module, target)
    value: Any = module
    spec, separator = module.__name__, ":"
    for step in target.steps:
        if isinstance(step, Attribute):
            value = _attribute(value, step.name, spec, target)
            spec, separator = f"{spec}{separator}{step.name}", "."
        else:
            value = _call(value, step, spec, target)
            spec += step.text
    return _as_wsgi(value, spec, target, called=isinstance(target.steps[-1], Call))


def _discover(module: ModuleType, target: Target) -> Found:
    """Find the app in a module that was named alone."""
    name, names = module.__name__, vars(module)
    named_app = [a for a in ("app", "application") if kind_of(names.get(a)) in {"wsgi", "asgi"}]
    flasks = {id(value): a for a, value in reversed(names.items()) if is_flask(value)}  # one may have two names
    plain = [a for a in named_app if is_plainly_wsgi(names[a])]
    if len(flasks) > 1 and not plain:
        choices = ", ".join(f"{name}:{a}" for a in reversed(flasks.values()))
        raise target.error(f"there are {len(flasks)} Flask apps in {name}: say which, {choices}")
    for attribute in (*plain, *flasks.values(), *named_app):
        return _as_wsgi(names[attribute], f"{name}:{attribute}", target, called=True)
    for attribute in ("create_app", "make_app"):
        if inspect.isroutine(names.get(attribute)):
            spec = f"{name}:{attribute}"
            return _as_wsgi(_call(names[attribute], Call(), spec, target), f"{spec}()", target, called=True)
    raise target.error(
        f"no app found in {name} ({origin_of(module)}): no app or application that is a WSGI"
        f" callable, no Flask instance, no create_app() or make_app().{_submodule_hint(module)}"
        f" If the app has another name: {name}:NAME"
    )


def _attribute(owner: Any, name: str, spec: str, target: Target) -> Any:
    def get() -> Any:
        try:
            return getattr(owner, name)
        except AttributeError as error:
            if app_frames(error.__traceback__):  # raised by code that computes the attribute
                raise
            raise target.error(f"{_no_such_attribute(owner, name, spec)}") from None

    return run_app_code(f"reading {name} of {spec}", get)


def _call(factory: Any, call: Call, spec: str, target: Target) -> Any:
    if not callable(factory):
        raise target.error(f"{spec} is {described(factory)}, which cannot be called")
    # Not what it wraps: a decorator that supplies arguments takes fewer than the function under it.
    signature = signature_of(factory, follow_wrapped=False)
    if signature is not None:
        try:
            signature.bind(*call.args, **call.kwargs)
        except TypeError as error:
            fix = (
                f"it is the app itself, write {spec}"
                if is_app_itself(factory)
                else f"write {spec}(...) with literal arguments for {name_of(factory)}{signature}"
            )
            raise target.error(f"{spec}{call.text} cannot be called, {error}: {fix}") from None
    return run_app_code(f"running {spec}{call.text}", lambda: factory(*call.args, **call.kwargs))


def _as_wsgi(value: Any, spec: str, target: Target, *, called: bool) -> Found:
    """Accept what can be served, call a factory that was named without parentheses, or explain."""
    if is_dash(value):  # a Dash object is not callable in older versions, and its Flask app always is
        return Found(value.server, f"{spec}.server")
    if kind_of(value) == "factory" and not called:
        return _as_wsgi(_call(value, Call(), spec, target), f"{spec}()", target, called=True)
    if value is None and called:
        raise target.error(f"{spec} returned None: is its `return app` missing?")
    problem = why_not_wsgi(value, spec)
    if problem:
        raise target.error(f"{spec} {problem}")
    return Found(value, spec)


def why_not_wsgi(value: object, spec: str) -> str:
    """Say what is wrong with serving `value`, to follow its name; "" if nothing is."""
    kind = kind_of(value)
    if kind == "wsgi":
        return ""
    if kind == "asgi":
        return "is an ASGI app (async), and hardserve serves WSGI: wrap it, as a2wsgi.ASGIMiddleware does"
    if kind == "class":
        return f"is a class, and an instance of it may be the app: {spec}()"
    if kind == "needs arguments":
        return f"is a factory that needs arguments, {name_of(value)}{signature_of(value)}: write {spec}(...)"
    if isinstance(value, ModuleType):
        return f"is a module: name the app in it, {value.__name__}:app"
    return f"is {described(value)}, not a WSGI app: it cannot be called with (environ, start_response)"


def _refuse_taken_name(target: Target) -> None:
    """Explain a file with the name of a module that is loaded already, such as calendar.py."""
    head = target.module.partition(".")[0]
    taken_by = getattr(sys.modules.get(head), "__file__", None)
    if not taken_by or head == __name__.partition(".")[0]:  # hardserve:demo is right in a checkout of hardserve
        return
    root = target.roots[0]
    own = [file for file in (root / head / "__init__.py", root / f"{head}.py") if file.is_file()]
    if own and not any(os.path.realpath(taken_by) == os.path.realpath(file) for file in own):
        raise target.error(
            f'{own[0]} cannot be imported, the name "{head}" belongs to {taken_by}. Rename it, for instance to my{head}'
        )


def _no_such_module(target: Target) -> str:
    parent, _, name = target.module.rpartition(".")
    package = sys.modules.get(parent)
    if package is None:
        name = target.module.partition(".")[0]
        places: Sequence[str] = [str(root) for root in target.roots]
        text = f'there is no module "{name}", neither in {" nor ".join(places)} nor installed in {sys.prefix}.'
    else:
        places = list(getattr(package, "__path__", ()))
        text = f'there is no module "{name}" in {parent} ({origin_of(package)}).'
        if name in vars(package):
            return f'{text} Did you mean "{parent}:{name}"?'
    return text + did_you_mean(name, [module.name for module in pkgutil.iter_modules(places)])


def _no_such_attribute(owner: Any, name: str, spec: str) -> str:
    if not isinstance(owner, ModuleType):
        return f'{spec} is {described(owner)} and has no "{name}".{did_you_mean(name, dir(owner))}'
    suggestion = did_you_mean(name, [known for known in vars(owner) if not known.startswith("__")])
    candidates = ", ".join(_servable(owner))
    if not suggestion and candidates:
        suggestion = f" It has: {candidates}"
    return f'{spec} ({origin_of(owner)}) has no "{name}".{suggestion or _submodule_hint(owner)}'


def _servable(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if is_flask(value) or (name in {"app", "application"} and kind_of(value) == "wsgi"):
            yield name
        elif name in {"create_app", "make_app"} and inspect.isroutine(value):
            yield f"{name}()"


def _submodule_hint(module: ModuleType) -> str:
    names = {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()))}
    found = [name for name in ("wsgi", "app", "application", "main") if name in names]
    return f' Did you mean "{module.__name__}.{found[0]}"?' if found else ""
