"""Ending an app's work for a client that will not be there to read it.

A thread cannot be ended from outside, and a generator that waits cannot be closed from another thread: it is running.
What can be done is what Ctrl-C does to the main thread: raise an exception in it, at the next bytecode it runs. That
reaches a loop that sleeps and looks again; it does not reach one blocking call in C, which ends when it ends.

An exception out of nowhere is not something to do to code that may have work left, so it is done only in two cases: to
an app that has been asked for the next block of an open response, whose client has been gone for
`timeouts.abandoned`, and that has not come back since; and, where `timeouts.interrupt` asks for it, to an app that is
late. The lock makes sure that it can never hit anything else: `call` marks where the exception may strike, and clears
one that was raised too late to strike there.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class AbandonedError(GeneratorExit):
    """Nobody waits for what the app is doing. Raised inside the app.

    It is what `close` raises in a generator that is not running, so that code prepared for the one is for the other,
    and no `except Exception` takes it for a failure that can be mended.
    """


class Interruptible:
    """A stretch of a worker's work in the app. Made by the worker; `interrupt` may be called from the I/O thread."""

    __slots__ = ("_inside", "_lock", "_raised", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._inside = False
        self._raised = False

    def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns. Raises what it raises, and AbandonedError after `interrupt`."""
        try:
            try:
                self._inside = True
                return function()
            finally:
                with self._lock:
                    self._inside = False
        finally:
            if self._raised:
                # It may still be under way: take it back, or it would strike whatever this thread does next.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Let nothing strike in the block, which the app has called back into, and is ours. Worker thread.

        An app may do that outside of `call`, too, where nothing strikes before or after.
        Raises AbandonedError instead of entering it, if that is under way already.
        """
        with self._lock:
            inside, self._inside = self._inside, False
        if self._raised:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
            raise AbandonedError
        try:
            yield
        finally:
            with self._lock:
                self._inside = inside

    def interrupt(self) -> bool:
        """Raise AbandonedError in the app, if that is where its thread is; return whether that was done."""
        with self._lock:
            if self._inside and not self._raised:
                self._raised = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(AbandonedError)
                )
            return self._raised
