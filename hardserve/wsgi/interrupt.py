"""Ending an app's wait for an event that nobody will be there to read.

A generator that waits cannot be closed from another thread: it is running. What can be done is what Ctrl-C does to the
main thread: raise an exception in it, at the next bytecode it runs. That reaches a loop that sleeps and looks again; it
does not reach one blocking call in C, which ends when it ends.

An exception out of nowhere is not something to do to code that may have work left, so it is done only to an app that
has been asked for the next block of an open response, whose client has been gone for `timeouts.abandoned`, and that
has not come back since. The lock makes sure that it can never hit anything else: `call` marks where the exception may
strike, and clears one that was raised too late to strike there.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator


class AbandonedError(GeneratorExit):
    """The client of a stream has gone. Raised inside the app, where it waits for the next block.

    It is what `close` raises in a generator that is not running, so that code prepared for the one is for the other.
    """


class Interruptible:
    """A worker's wait for the next block. Made by the worker; `interrupt` may be called from the I/O thread."""

    __slots__ = ("_inside", "_lock", "_raised", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._inside = False
        self._raised = False

    def call(self, iterator: Iterator[bytes]) -> bytes:
        """Return the next block. Raises what the app raises, and AbandonedError after `interrupt`."""
        try:
            try:
                self._inside = True
                return next(iterator)
            finally:
                with self._lock:
                    self._inside = False
        finally:
            if self._raised:
                # It may still be under way: take it back, or it would strike whatever this thread does next.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)

    def interrupt(self) -> bool:
        """Raise AbandonedError in the app, if it is waiting for its next block; return whether that was done."""
        with self._lock:
            if self._inside and not self._raised:
                self._raised = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(AbandonedError)
                )
            return self._raised
