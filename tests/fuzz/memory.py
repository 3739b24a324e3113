"""How many bytes an object keeps, found by walking what it refers to and not by asking it."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterable
from typing import Any

# What is not an object's own, whoever refers to it; from most of them one comes to all there is in the process.
SHARED = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.FrameType,
    types.CodeType,
    types.TracebackType,
)


def kept_bytes(thing: object, shared: Iterable[object] = ()) -> int:
    """Return the bytes of all that `thing` refers to, in memory; `shared` is what is not counted and not entered.

    A bytes object that a memoryview shows is counted whole: it is kept whole.
    """
    seen = {id(each) for each in shared}
    waiting: list[Any] = [thing]
    total = 0
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, SHARED):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        if isinstance(each, memoryview):
            waiting.append(each.obj)
        waiting += gc.get_referents(each)
    return total
