"""The end of a process whose app has threads that do not end.

Python waits at its end for all threads that are not daemons, for ever: a scheduler that an app has started would hold
up each restart until a supervisor kills it, and a start that has failed would never be over. Main thread; what waits is
a thread of its own, "hardserve-end", and ends with the process.
"""

from __future__ import annotations

import os
import threading
import time

# For a thread of the app to finish what it is about.
PATIENCE_S = 5.0


def end_without_the_app(code: int) -> None:
    """Have this process end with `code` soon after its main thread has, whatever the app's threads are doing."""

    def end() -> None:
        threading.main_thread().join()  # from here on Python waits for the others, and then this thread is no more
        time.sleep(PATIENCE_S)
        names = ", ".join(sorted(thread.name for thread in threading.enumerate() if _keeps_python(thread)))
        said = f"hardserve: ended without threads of the app that go on and are no daemons: {names}\n"
        os.write(2, said.encode())  # the logs are closed
        os._exit(code)

    threading.Thread(target=end, name="hardserve-end", daemon=True).start()


def _keeps_python(thread: threading.Thread) -> bool:
    return thread.is_alive() and not thread.daemon
