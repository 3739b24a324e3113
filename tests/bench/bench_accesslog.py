"""What a line of the access log costs the thread that answered, and what it costs in all.

    python -m tests.bench.bench_accesslog

`write` is what the I/O thread or a worker pays. `in all` is the CPU time of the process, the writer's thread included,
for as many lines with that thread at work: what each request leaves less of the GIL for. Nanoseconds, best of five.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from hardserve.ops.accesslog import AccessEntry, AccessLog
from hardserve.settings import LogSettings

BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
# Target and number of lines, which fit in the queue: a dropped one would cost too little.
CASES = {
    "": ("/api/items?page=2&sort=name", 10_000),
    ", a character to escape": ("/api/items?page=2&sort=name\x1b", 10_000),
    ", 8 KiB of them": ("\x9b" * 8192, 250),
}


def entry(target: str) -> AccessEntry:
    return AccessEntry(
        time=time.time(),
        client="127.0.0.1",
        method="GET",
        target=target,
        version="1.1",
        status=200,
        bytes_sent=1234,
        duration_s=0.00123,
        request_id="4f2a9c0e1b7d4f2a9c0e1b7d",
        refusal="",
        referer="https://example.com/items",
        user_agent=BROWSER,
        user="",
    )


def cost_ns(form: str, logged: AccessEntry, lines: int) -> tuple[float, float]:
    """Return what a call costs its caller and the process."""
    with tempfile.TemporaryDirectory() as directory:
        log = AccessLog(LogSettings(access=str(Path(directory, "access.log")), access_format=form))
        log.start()
        write = log.write
        process, thread = time.process_time_ns(), time.thread_time_ns()
        for _ in range(lines):
            write(logged)
        caller = time.thread_time_ns() - thread
        log.close(60)
        return caller / lines, (time.process_time_ns() - process) / lines


def main() -> None:
    print(f"{'':36}{'write':>8}{'in all':>8}")
    for form in ("combined", "json", "compact"):
        for name, (target, lines) in CASES.items():
            logged = entry(target)
            costs = [cost_ns(form, logged, lines) for _ in range(5)]
            print(f"{form + name:36}{min(call for call, _ in costs):8.0f}{min(both for _, both in costs):8.0f}")


if __name__ == "__main__":
    main()
