"""The end of a process whose app has threads that do not end.

Python waits at its end for all threads that are not daemons, for ever: a scheduler that an app has started would hold
up each restart until a supervisor kills it, and a start that has failed would never be over. Main thread; what waits is
a thread of its own, "hardserve-end", and ends with the process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

# For a thread of the app to finish what it is about.
PATIENCE_S = 5.0
_LOOK_S = 0.5


def end_without_the_app(code: int) -> None:
    """Have this process end with `code` soon, whatever the app's threads are doing. The main thread ends now."""

    def end() -> None:
        # Not a join of the main thread, which in Python 3.11 may meet its end in the middle (threading._shutdown).
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            # EINVAL, where somebody sets the clock that a library has put before the system's (libfaketime).
            with contextlib.suppress(OSError):
                time.sleep(_LOOK_S)
        if threading.main_thread().is_alive():
            return  # whoever has called the command goes on
        names = ", ".join(sorted(thread.name for thread in threading.enumerate() if _keeps_python(thread)))
        said = f"hardserve: ended without threads of the app that go on and are no daemons: {names}\n"
        os.write(2, said.encode())  # the logs are closed
        os._exit(code)

    with contextlib.suppress(RuntimeError):  # no thread is to be had: then the end is as Python has it
        threading.Thread(target=end, name="hardserve-end", daemon=True).start()


def _keeps_python(thread: threading.Thread) -> bool:
    return thread.is_alive() and not thread.daemon
