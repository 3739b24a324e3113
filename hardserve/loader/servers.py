"""No other server starts while the app is loaded: `app.run()` is caught and explained, not run.

Main thread, at start; what is replaced may be called in threads that the app has started.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple, Self

from .appcode import is_ours
from .errors import EXIT_FAILURE, LoadError


class _Starter(NamedTuple):
    module: str
    attribute: str
    shown: str
    in_threads: bool  # a development server in a thread is one too; any other may export metrics, and may stay


_STARTERS = (
    _Starter("flask.app", "Flask.run", "app.run()", in_threads=True),
    _Starter("werkzeug.serving", "run_simple", "run_simple()", in_threads=True),
    _Starter("werkzeug", "run_simple", "run_simple()", in_threads=True),
    _Starter("waitress", "serve", "waitress.serve()", in_threads=False),
    _Starter("hardserve", "serve", "hardserve.serve()", in_threads=False),
    _Starter("socketserver", "BaseServer.serve_forever", "serve_forever()", in_threads=False),  # also wsgiref's
)


class NoServerStarts:
    """While entered, calls that would start a server are noted with their place, and not run.

    A function that is imported already is replaced at once, any other as soon as the app imports its module:
    importing Flask for this would cost its memory and time to the apps that do not use it. `find_spec` makes it a
    finder of `sys.meta_path`; importlib's base class adds nothing to that and costs 4 ms of imports.
    """

    def __init__(self, given: str) -> None:
        self._given = given
        self._active = False
        self._notes: list[str] = []
        self._undo: list[tuple[Any, str, Callable[..., Any]]] = []
        self._original_of: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"<NoServerStarts active={self._active} calls={len(self._notes)}>"

    def __enter__(self) -> Self:
        self._active = True
        for name in {starter.module for starter in _STARTERS} & sys.modules.keys():
            self._replace_in(sys.modules[name])
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._active = False  # from here on, a replacement that the app has kept runs the original
        sys.meta_path.remove(self)
        for owner, name, original in self._undo:
            setattr(owner, name, original)

    def raise_if_called(self) -> None:
        if self._notes:
            raise LoadError("\n\n".join(self._notes)) from None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if all(starter.module != fullname for starter in _STARTERS):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self._replace_after_exec(spec.loader)
        return spec

    def _replace_after_exec(self, loader: Any) -> None:
        exec_module = loader.exec_module

        def exec_then_replace(module: ModuleType) -> None:
            del loader.exec_module  # from the instance; the method of its class shows again
            exec_module(module)
            if self._active:
                self._replace_in(module)

        loader.exec_module = exec_then_replace

    def _replace_in(self, module: ModuleType) -> None:
        for starter in _STARTERS:
            *path, name = starter.attribute.split(".")
            owner: Any = module if starter.module == module.__name__ else None
            for part in path:
                owner = vars(owner).get(part) if owner is not None else None
            current = vars(owner).get(name) if owner is not None else None
            if current is not None:
                # werkzeug takes it from werkzeug.serving, where it may be replaced already.
                original = self._original_of.get(current, current)
                replacement = self._replacement(starter, original)
                self._original_of[replacement] = original
                self._undo.append((owner, name, original))
                setattr(owner, name, replacement)

    def _replacement(self, starter: _Starter, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def note(*args: Any, **kwargs: Any) -> Any:
            may_run = threading.current_thread() is not threading.main_thread() and not starter.in_threads
            if may_run or not self._active:
                return original(*args, **kwargs)
            self._notes.append(_explained(self._given, starter.shown, inspect.currentframe()))
            # Unwinds the app: `except Exception` does not hold it, and it ends a thread without a word.
            raise SystemExit(EXIT_FAILURE)

        return note


def _explained(given: str, shown: str, frame: FrameType | None) -> str:
    app_frames = _app_frames(frame.f_back if frame else None)
    if not app_frames:
        return f"{given}: {shown} was called while the app was loaded, and was not run. Take the call out."
    code, line = app_frames[0]
    text = f"{code.co_filename}:{line}: {shown} was called while the app was loaded, and was not run"
    at_import = [(code, line) for code, line in app_frames if code.co_name == "<module>"]
    if not at_import:
        return f"{text}: hardserve is the server here. Take the call out of {code.co_name}()."
    module, module_line = at_import[0]
    if (module, module_line) != (code, line):
        text += f" (it was reached from {module.co_filename}:{module_line})"
    statement = linecache.getline(module.co_filename, module_line).strip() or shown
    return (
        f"{text}: hardserve is the server here.\nLet it run only when the file itself is run with python:\n\n"
        f'    if __name__ == "__main__":\n        {statement}'
    )


def _app_frames(frame: FrameType | None) -> list[tuple[CodeType, int]]:
    """Return the frames, innermost first, in which the app's author can change something.

    A library (Dash) may make the call for the app; only where all is library is the app one itself.
    """
    frames = []
    while frame is not None and not is_ours(frame.f_code.co_filename):
        frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return [(code, line) for code, line in frames if not _is_library(code.co_filename)] or frames


def _is_library(filename: str) -> bool:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return filename.startswith("<frozen") or any(Path(filename).is_relative_to(place) for place in places)
