"""What an object of the app is: something to serve, a factory for it, or neither.

Main thread, at start. Calls nothing of the app and imports nothing: a class of Flask is looked up only where
the app has imported Flask, and otherwise nothing can be an instance of it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from .errors import name_of

if TYPE_CHECKING:
    from flask import Flask

Kind = Literal["wsgi", "factory", "needs arguments", "asgi", "class", "other"]


def kind_of(value: Any) -> Kind:
    if is_flask(value) or is_dash(value):
        return "wsgi"
    if not callable(value):
        return "other"
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(type(value).__call__):
        return "asgi"
    signature = signature_of(value)
    if isinstance(value, type):
        # PEP 3333 also allows a class whose instances are the response.
        return "wsgi" if hasattr(value, "__iter__") and _takes(signature, 2) else "class"
    if signature is not None and (inspect.isroutine(value) or isinstance(value, functools.partial)):
        return _kind_of_function(name_of(value), signature)
    return "wsgi" if _takes(signature, 2) else "other"


def _kind_of_function(name: str, signature: inspect.Signature) -> Kind:
    named_as_factory = name.startswith(("create_", "make_"))
    if _takes(signature, 0):
        # `*args` alone is what a decorator without functools.wraps shows, around either.
        return "wsgi" if _takes_anything(signature) and not named_as_factory else "factory"
    if not _takes(signature, 2):
        return "needs arguments"
    return "needs arguments" if named_as_factory and not _names_start_response(signature) else "wsgi"


def is_app_itself(value: Any) -> bool:
    """Tell whether what the operator calls as a factory is rather the app."""
    signature = signature_of(value)
    by_its_names = signature is None or not inspect.isroutine(value) or _names_start_response(signature)
    return kind_of(value) == "wsgi" and by_its_names


def is_flask(value: object) -> TypeGuard[Flask]:
    # By the type: isinstance() would ask a proxy such as flask.current_app, which answers for another.
    return _is_instance_of(value, "flask", "Flask")


def is_dash(value: object) -> bool:
    return _is_instance_of(value, "dash", "Dash") and is_flask(getattr(value, "server", None))


def is_debugger(value: object) -> bool:
    return _is_instance_of(value, "werkzeug.debug", "DebuggedApplication")


def is_proxy_fix(value: object) -> bool:
    return _is_instance_of(value, "werkzeug.middleware.proxy_fix", "ProxyFix")


def is_plainly_wsgi(value: object) -> bool:
    """Tell a WSGI callable from one that only takes anything, such as a click or typer group named `app`."""
    signature = signature_of(value)
    return is_flask(value) or is_dash(value) or (signature is not None and not _takes_anything(signature))


def signature_of(value: Any, *, follow_wrapped: bool = True) -> inspect.Signature | None:
    try:
        return inspect.signature(value, follow_wrapped=follow_wrapped)
    except (ValueError, TypeError):  # documented: compiled code may not say what it takes
        return None


def _is_instance_of(value: object, module: str, name: str) -> bool:
    cls = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return isinstance(cls, type) and issubclass(type(value), cls)


def _takes(signature: inspect.Signature | None, count: int) -> bool:
    """Tell whether `count` positional arguments fit; unknown is yes, the operator has named it."""
    try:
        return signature is None or bool(signature.bind(*range(count)))
    except TypeError:
        return False


def _names_start_response(signature: inspect.Signature) -> bool:
    return any(name.startswith(("start", "sr")) for name in list(signature.parameters)[1:2])


def _takes_anything(signature: inspect.Signature) -> bool:
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in signature.parameters.values())
