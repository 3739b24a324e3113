"""What the operator reads when there is no app to serve. Pure; knows nothing of how an app is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

EXIT_FAILURE, EXIT_USAGE, EXIT_CONFIGURATION = 1, 2, 78

FORMS = """APP is one of
  module:name                    app:app
  module:factory(arguments)      app:create_app("production", cache=True)   (literals only)
  path/to/file.py[:name]         src/app.py:app
  module, package or path alone  app, application, the only Flask instance, create_app() or make_app() in it"""


class LoadError(Exception):
    """There is no app to serve. `str()` is all that the operator should read; `exit_code` is 1, 2 or 78."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def usage_error(message: str) -> LoadError:
    return LoadError(f"{message}\n{FORMS}", EXIT_USAGE)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""


def described(value: object) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return "None" if value is None else f"of type {name}"


def name_of(value: object) -> str:
    return str(getattr(value, "__name__", type(value).__name__))


def origin_of(module: ModuleType) -> str:
    places: list[Any] = list(getattr(module, "__path__", ()))
    return str(getattr(module, "__file__", None) or (places[0] if places else "built in"))
