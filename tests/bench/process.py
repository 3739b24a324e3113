"""Starts a server, watches its processes through /proc, and leaves nothing of it behind.

Each command runs in a session of its own, so its whole tree is found by session id even when a
middle process has died, and a Ctrl-C at the terminal reaches only the benchmark.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .peers import APP_DIRECTORY, REPOSITORY, Run, Server

START_LIMIT_S = 20.0
STOP_LIMIT_S = 3.0

# Not 127.0.0.1: a port nobody listens on yet may be picked as the source port of the very probe that
# asks for it, and the kernel would connect the probe to itself.
_PROBE_ADDRESS = "127.0.0.2"


class StartError(Exception):
    """The server did not come to answer; the message ends with what it last wrote."""


@dataclass(frozen=True, slots=True)
class Memory:
    rss_bytes: int
    pss_bytes: int
    processes: int


@dataclass(slots=True)
class Running:
    """A started server. Times are seconds from before the first exec."""

    server: Server
    run: Run
    leaders: list[subprocess.Popen[bytes]] = field(default_factory=list)
    listening_s: float = 0.0
    answer_s: float = 0.0

    def url(self, path: str = "/") -> str:
        return f"http://{self.run.address}{path}"

    def secured(self, connected: socket.socket) -> socket.socket:
        """What is spoken on a connection to it: as it is, where there is no TLS."""
        return connected

    def processes(self) -> list[int]:
        """The ids of all its live processes."""
        sessions = {leader.pid for leader in self.leaders}
        return [pid for pid, stat in _all_processes() if int(stat[3]) in sessions and stat[0] != "Z"]

    def memory(self) -> Memory:
        rss = pss = count = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, rest = line.partition(":")
                    if name == "Rss":
                        rss += int(rest.split()[0]) * 1024
                        count += 1
                    elif name == "Pss":
                        pss += int(rest.split()[0]) * 1024
        return Memory(rss, pss, count)

    def cpu_s(self) -> float:
        """Processor time that its live processes have used so far."""
        mine = set(self.processes())
        ticks = sum(int(stat[11]) + int(stat[12]) for pid, stat in _all_processes() if pid in mine)
        return ticks / os.sysconf("SC_CLK_TCK")

    def logged(self) -> int | None:
        """How many requests are in its access log; None for a server that has none."""
        if not self.server.logs_to:
            return None
        path = self.run.access_log if self.server.logs_to == "access" else self.run.output
        with contextlib.suppress(OSError), path.open("rb") as lines:
            return sum(b"GET /" in line for line in lines)
        return 0

    def last_words(self) -> str:
        """The end of what it wrote, without requests: the reason when it does not start."""
        written = [path.read_text(errors="replace") for path in sorted(self.run.directory.glob("*.log"))]
        lines = [line for line in "\n".join(written).splitlines() if line.strip() and "GET /" not in line]
        return "\n".join(lines[-5:]) or "(it wrote nothing)"

    def stop(self) -> None:
        """Ask for an end, and after three seconds, or on Ctrl-C, kill what is left."""
        try:
            self._signal(signal.SIGTERM)
            limit = time.monotonic() + STOP_LIMIT_S
            while self.processes() and time.monotonic() < limit:
                time.sleep(0.02)
        finally:
            while self.processes():
                self._signal(signal.SIGKILL)
                time.sleep(0.02)
            for leader in self.leaders:
                leader.wait(timeout=STOP_LIMIT_S)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def running(server: Server, run: Run, kind: type[Running] = Running) -> Iterator[Running]:
    """Start `server`, wait for its first answer, and end it on the way out whatever happens.

    Raises StartError when it has not answered after 20 seconds.
    """
    it = kind(server, run)
    commands = server.commands(run)
    try:
        began = time.monotonic()
        with run.output.open("wb") as output:
            for command in commands:
                it.leaders.append(
                    subprocess.Popen(
                        command,
                        cwd=APP_DIRECTORY,
                        env=environment(run.directory),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        _await_answer(it, began)
        yield it
    finally:
        it.stop()


@contextlib.contextmanager
def helper(module: str, *arguments: str, repository: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """Run a module of the benchmark's own in a process while the block runs, once it has said "ready".

    Raises RuntimeError, in which `what` names it, when it does not get so far.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            if said != "ready":
                raise RuntimeError(f"{what}: {said or 'the process ended'}")
            yield process
        finally:
            process.kill()


def environment(home: Path) -> Mapping[str, str]:
    """Only what a server needs, so that settings of the person who measures do not leak in."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    return kept | {"PYTHONPATH": str(REPOSITORY), "HOME": str(home), "TMPDIR": str(home)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine_busy_s() -> float:
    """Processor time that anything has used or the host has taken away, interrupts not counted."""
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")


def _await_answer(it: Running, began: float) -> None:
    while (now_s := time.monotonic() - began) < START_LIMIT_S:
        if any(leader.poll() is not None for leader in it.leaders):
            raise StartError(f"{it.server.name} ended while starting: {it.last_words()}")
        with socket.socket() as probe:
            probe.settimeout(START_LIMIT_S - now_s)
            probe.bind((_PROBE_ADDRESS, 0))
            try:
                probe.connect(("127.0.0.1", it.run.port))
                it.listening_s = it.listening_s or time.monotonic() - began
                with it.secured(probe) as spoken:
                    spoken.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                    # An nginx whose upstream is not there yet says 502: not an answer.
                    if spoken.recv(65536).startswith(b"HTTP/1.1 200"):
                        it.answer_s = time.monotonic() - began
                        return
            except OSError:
                pass
        time.sleep(0.001)
    raise StartError(f"{it.server.name} did not answer within {START_LIMIT_S:g} s: {it.last_words()}")


def _all_processes() -> Iterator[tuple[int, list[str]]]:
    """Each process's id and the fields of its stat line from the state on."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                yield int(entry), stat.rpartition(")")[2].split()
