"""One command that holds the preset for a Raspberry Pi to its bars: `python -m tests.bench.pi`."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import wrk
from .command import Sampled, from_1_to, has_programs, parser, run
from .idle import idle_clients
from .peers import OURS, REPOSITORY, SERVERS, Run, Server
from .process import Running, free_port, running
from .report import MIB, spread

PARTS = {
    "memory": "of Flask's hello: after the start, after {requests:,} requests, and with {idle} idle connections",
    "written": "to a disk by {requests:,} requests, {uploads} uploads of up to {body:.0f} MB among them",
}
PRESET = REPOSITORY / "config" / "raspberry-pi.toml"
REQUESTS = 100_000
IDLE = 512
BODY_BYTES = 8 * MIB
UPLOADS = 60
IN_MEMORY = "/dev/shm"  # where the preset says that temporary files of the app belong
# wrk is one client, and more than a household.
_NO_LIMITS = ("--rate-limiting-default", "off", "--max-client-workers", "0")

_EPILOG = """\
Parts:
{parts}

All servers have four threads. RSS and PSS are sums over a server's processes, of which gunicorn has two. hardserve logs
each request to its standard output, which is a pipe here as it is with systemd's journal; gunicorn has its access log
in a file, waitress has none.

"Written" is what the kernel counts as made to be written to a disk (write_bytes in /proc/PID/io), whether it got there
or was deleted before; memory (tmpfs), pipes and sockets do not count. hardserve is started with TMPDIR={in_memory}, as
the preset says; the others as they are, with TMPDIR on a disk: they show that it would be seen.
"""


def main() -> int:
    options = _arguments()
    return run(Pi(options)) if has_programs({"wrk": "wrk"}) else 1


class Pi(Sampled):
    def memory(self) -> None:
        for number in range(self.rounds(1)):
            for server in self.in_turn(_servers(), number):
                with _started(server, "hello:app") as it:
                    self.add("memory", server.name, self._memory(it))
        moments = {"started_mb": "after the start", "loaded_mb": f"after {self.options.requests:,} requests"}
        for figure, when in moments.items():
            measured = spread(self.results["memory"][OURS], figure)
            self.bar(f"RSS of Flask hello with the preset, {when}", 40, "MB", measured)

    def _memory(self, it: Running) -> dict[str, float]:
        _drive(it, 1000)  # what is made at the first request has been made
        started = it.memory()
        requests = _drive(it, self.options.requests)
        loaded = it.memory()
        with idle_clients(it.run.port, IDLE - wrk.CONNECTIONS, REPOSITORY):
            idle = it.memory()
        return {
            "started_mb": started.rss_bytes / MIB,
            "loaded_mb": loaded.rss_bytes / MIB,
            "idle_mb": idle.rss_bytes / MIB,
            "started_pss_mb": started.pss_bytes / MIB,
            "loaded_pss_mb": loaded.pss_bytes / MIB,
            "idle_pss_mb": idle.pss_bytes / MIB,
            "requests": requests,
        }

    def written(self) -> None:
        for number in range(self.rounds(1)):
            for server in self.in_turn(_servers(), number):
                with _started(server, "household:app") as it:
                    self.add("written", server.name, self._written(it))
        measured = spread(self.results["written"][OURS], "written_bytes")
        self.bar(f"written to a disk by {self.options.requests:,} requests and uploads", 0, "bytes", measured)

    def _written(self, it: Running) -> dict[str, float]:
        before = _written_bytes(it)
        requests = _drive(it, self.options.requests // 2) + _drive(it, self.options.requests // 2, "/static/demo.css")
        by_requests = _written_bytes(it) - before
        for number in range(UPLOADS):
            size = BODY_BYTES * (number + 1) // UPLOADS - 1024
            if number % 2:
                _upload(it, "/photo", *form(size))
            else:
                _upload(it, "/body", "application/octet-stream", bytes(size))
        return {
            "requests": requests,
            "uploads": UPLOADS,
            "written_bytes": _written_bytes(it) - before,
            "by_requests": by_requests,
            "after_uploads_mb": it.memory().rss_bytes / MIB,
        }


def _servers() -> Sequence[Server]:
    found = [Server(OURS, "with the preset, 4 threads", ("hardserve",), "", _ours)]
    found += [SERVERS[name] for name in ("waitress", "gunicorn")]
    return [server for server in found if not server.missing()]


def _ours(run: Run) -> list[list[str]]:
    journal = run.directory / "journal"
    os.mkfifo(journal)
    # systemd's journal reads both from a pipe. Here somebody else does, to whom what is written is counted.
    threading.Thread(target=_keep, args=(journal, run.output), daemon=True).start()
    command = [sys.executable, "-m", "hardserve", run.app, "--config", str(PRESET), "--bind", run.address]
    shell = f'export TMPDIR={IN_MEMORY}; exec "$@" >"$0" 2>&1'
    return [["sh", "-c", shell, str(journal), *command, *_NO_LIMITS]]


def _keep(journal: Path, output: Path) -> None:
    with journal.open("rb") as lines, output.open("ab") as kept:
        for line in lines:
            kept.write(line)


@contextlib.contextmanager
def _started(server: Server, app: str) -> Iterator[Running]:
    # Not in memory, or nothing that is written would be counted.
    with (
        tempfile.TemporaryDirectory(prefix="hardserve-pi-", dir="/var/tmp") as directory,
        running(server, Run(free_port(), Path(directory), 4, IDLE, app=app)) as it,
    ):
        yield it


def _drive(it: Running, requests: int, path: str = "/") -> int:
    """Make at least so many requests; return how many they were."""
    made = 0
    while made < requests:
        load = wrk.drive(it.url(path), 1 if requests <= 1000 else 5)
        if load.errors:
            raise RuntimeError(f"{it.server.name}: {load.errors} of {load.requests} requests for {path} failed")
        made += load.requests
    return made


def _upload(it: Running, path: str, content_type: str, body: bytes) -> None:
    connection = http.client.HTTPConnection(it.run.address, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        said = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{it.server.name}: an upload of {len(body):,} bytes to {path} got {answer.status} {said!r}")


def form(size: int) -> tuple[str, bytes]:
    """Return a form with a photo of so many bytes, and its type."""
    head = b'--photo\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n\r\n'
    return "multipart/form-data; boundary=photo", head + bytes(size) + b"\r\n--photo--\r\n"


def _written_bytes(it: Running) -> int:
    """Return what its processes have had made to be written to a disk so far."""
    counts = (Path(f"/proc/{process}/io").read_text() for process in it.processes())
    return sum(int(line.split()[1]) for text in counts for line in text.splitlines() if line.startswith("write_bytes"))


def _arguments() -> argparse.Namespace:
    known = {"requests": REQUESTS, "idle": IDLE, "uploads": UPLOADS, "body": BODY_BYTES / MIB}
    parts = {name: what.format(**known) for name, what in PARTS.items()}
    found = parser("pi", parts, description=__doc__, epilog=_EPILOG.format(parts="{parts}", in_memory=IN_MEMORY))
    found.add_argument("--rounds", type=from_1_to(100), help="of each part (default 1)")
    found.add_argument("--requests", type=from_1_to(100 * REQUESTS), default=REQUESTS, help=f"default {REQUESTS:,}")
    return found.parse_args()


if __name__ == "__main__":
    sys.exit(main())
