"""What the sleeping app can do at best here: eight threads that call it, and no server.

`python -m tests.bench.ceiling` prints requests a second. A sleep of 20 ms never ends early and ends
later by as much as the machine's timer is late, so 8/0.020 itself is out of reach.
"""

from __future__ import annotations

import threading
import time
from wsgiref.util import setup_testing_defaults

from .app.hello import app
from .report import SLEEP_THREADS

MEASURED_S = 2.0


def main() -> None:
    done: list[int] = []

    def work() -> None:
        count = 0
        while time.perf_counter() < end:
            environ: dict[str, object] = {"PATH_INFO": "/sleep"}
            setup_testing_defaults(environ)
            b"".join(app(environ, lambda *_: lambda _: None))
            count += 1
        done.append(count)

    threads = [threading.Thread(target=work) for _ in range(SLEEP_THREADS)]
    began = time.perf_counter()
    end = began + MEASURED_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(done) / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
