"""Code of the app runs through here while it is loaded; whatever it raises is told without our frames.

Main thread, at start.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, TracebackType
from typing import TypeVar

from .errors import LoadError

T = TypeVar("T")

_OUR_FILES = f"{Path(__file__).parent}/"


def run_app_code(doing: str, run: Callable[[], T]) -> T:
    """Return what `run` returns. `doing` says what it is for: "importing app"."""
    try:
        return run()
    except LoadError:
        raise
    except KeyboardInterrupt as error:
        raise LoadError(f"interrupted while {doing}{_place(error)}") from None
    except SystemExit as error:
        raise LoadError(
            f"the app called sys.exit({'' if error.code is None else repr(error.code)}) while {doing}{_place(error)}.\n"
            "A module that is served must not exit or read the command line when it is imported: put that under\n"
            '    if __name__ == "__main__":'
        ) from None
    except BaseException as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            hint = f"\n\nIf the app needs the package {package}, install it in {sys.prefix}"
        raise LoadError(f"the app failed while {doing}:\n\n{_without_our_frames(error)}{hint}") from None


def is_ours(filename: str) -> bool:
    return filename.startswith((_OUR_FILES, "<frozen importlib"))


def app_frames(trace: TracebackType | None) -> list[tuple[CodeType, int]]:
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)]
    return [(code, line) for code, line in frames if not is_ours(code.co_filename)]


def _place(error: BaseException) -> str:
    frames = app_frames(error.__traceback__)
    return f", at {frames[-1][0].co_filename}:{frames[-1][1]}" if frames else ""


def _without_our_frames(error: BaseException) -> str:
    report = traceback.TracebackException.from_exception(error)
    pending = [report]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if id(part) not in seen:
            seen.add(id(part))
            part.stack[:] = [frame for frame in part.stack if not is_ours(frame.filename)]
            chained = (part.__cause__, part.__context__, *(part.exceptions or ()))
            pending += [other for other in chained if other is not None]
    text = "".join(report.format()).rstrip()
    if not report.stack:  # a syntax error in the module itself: Python 3.11 prints the heading of no frames
        text = text.removeprefix("Traceback (most recent call last):\n")
    return text
