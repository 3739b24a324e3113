"""A booted Debian with a systemd of its own, in which hardserve is installed from a wheel, for tests to steer.

systemd-nspawn boots a directory here, as root and without any manager of machines. What it needs of the machine that
the tests run on, and why each flag is there, is said in `_nspawn`. What a machine of this kind cannot show:

- `MemoryMax=` and `TasksMax=`: the kernel's controllers belong to the machine outside, which has them elsewhere.
- a hard limit above the one of the process that boots it (`LimitNOFILE=`), unless that has CAP_SYS_RESOURCE.
- a clock or kernel modules of its own.

The machine has a loopback interface only. Its servers are spoken to through sockets that are made inside and used here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any

from tests.system.debian import VENV, unpack_root
from tests.system.debian import missing as missing_for_root
from tests.wheels import REPOSITORY, add_dependencies, build_wheel, cannot_build

PROGRAMS = ("systemd-nspawn", "nsenter", "setpriv")
UNITS = REPOSITORY / "systemd"
CGROUPS = Path("/sys/fs/cgroup")

BOOT_LIMIT_S = 60.0
END_LIMIT_S = 20.0
# What a test waits for anything; nothing takes that long unless it has failed.
PATIENCE_S = 40.0
LOOK_S = 0.05

CLONE_NEWNET = 0x40000000  # sched.h
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TERM": "dumb", "HOME": "/root"}


def missing() -> str:
    """Return why no machine can be booted here, "" when one can."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return missing_for_root() or (f"missing: {', '.join(lacking)}" if lacking else cannot_build())


def eventually(done: Callable[[], Any], what: object = "", limit_s: float = PATIENCE_S) -> Any:
    """Return what `done` returns as soon as that is something."""
    until = time.monotonic() + limit_s
    while not (result := done()):
        assert time.monotonic() < until, f"not within {limit_s:g} s: {what() if callable(what) else what}"
        time.sleep(LOOK_S)
    return result


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        assert self.status == 200, self
        return json.loads(self.body)


class Machine:
    """Paths are absolute ones inside; `leader` is its process 1 as it is numbered outside."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader
        self._inside = ThreadPoolExecutor(1, "in the machine's network", self._enter_network)

    def __repr__(self) -> str:
        return f"<Machine {self.leader} in {self.root}>"

    def close(self) -> None:
        self._inside.shutdown()

    # --- processes and files ---

    def run(
        self, *command: str, check: bool = True, said: str = "", limit_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside, with `said` on its standard input; `check` is that it must return 0."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", "--", *command],
            input=said,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            env=ENVIRONMENT,
            cwd="/",
        )
        assert not check or done.returncode == 0, f"{command} returned {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *arguments: str, check: bool = True, limit_s: float = PATIENCE_S) -> str:
        return self.run("systemctl", "--no-pager", *arguments, check=check, limit_s=limit_s).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", "-p", name, unit)

    def path(self, path: str) -> Path:
        """Return where the file is outside: of /tmp and /run, which are in the machine's memory, too."""
        place = Path(f"/proc/{self.leader}/root")
        return place / path.lstrip("/")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def read(self, path: str) -> str:
        return self.path(path).read_text()

    def remove(self, *paths: str) -> None:
        """Remove directories and files that may be there."""
        for path in paths:
            place = self.path(path)
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    # --- the journal ---

    def cursor(self) -> str:
        """Return the present end of the journal."""
        shown = self.run("journalctl", "--sync", check=False) and self.run("journalctl", "-n0", "--show-cursor")
        return shown.stdout.rpartition("cursor: ")[2].strip()

    def journal(self, unit: str, after: str = "") -> list[dict[str, Any]]:
        """Return the entries of a unit, what systemd says about it included, after a cursor."""
        self.run("journalctl", "--sync")
        since = [f"--after-cursor={after}"] if after else []
        shown = self.run("journalctl", "--no-pager", "-o", "json", "-u", unit, *since)
        return [json.loads(line) for line in shown.stdout.splitlines()]

    def said(self, unit: str, after: str = "") -> str:
        """Return the messages of a unit."""
        return "\n".join(str(entry.get("MESSAGE")) for entry in self.journal(unit, after))

    # --- HTTP ---

    def connect(self, port: int = 80, limit_s: float = PATIENCE_S, source: str = "127.0.0.1") -> socket.socket:
        """Connect to a port of its loopback interface, from ::1 or one of 127.0.0.0/8: each is another client."""
        family, target = (socket.AF_INET6, "::1") if ":" in source else (socket.AF_INET, "127.0.0.1")
        made = self._inside.submit(socket.socket, family, socket.SOCK_STREAM).result(PATIENCE_S)
        try:
            made.settimeout(limit_s)
            made.bind((source, 0))
            made.connect((target, port))
        except BaseException:
            made.close()
            raise
        return made

    def http(
        self,
        target: str,
        *,
        port: int = 80,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit_s: float = PATIENCE_S,
        source: str = "127.0.0.1",
    ) -> Answer:
        """Ask on a connection of its own."""
        with contextlib.closing(self.speak(port, limit_s, source)) as connection:
            connection.request(method, target, body, dict(headers or {}) | {"Connection": "close"})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def speak(self, port: int = 80, limit_s: float = PATIENCE_S, source: str = "127.0.0.1") -> HTTPConnection:
        """Return a connection, which is to be closed."""
        connection = HTTPConnection("127.0.0.1", port, timeout=limit_s)
        connection.sock = self.connect(port, limit_s, source)
        connection.auto_open = 0  # it would connect again, outside
        return connection

    def _enter_network(self) -> None:
        """Have the sockets that this thread makes be in the machine's network. (Python 3.12 has os.setns.)"""
        namespace = os.open(f"/proc/{self.leader}/ns/net", os.O_RDONLY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(namespace)


# --- how it comes to be ---


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Machine]:
    """Boot a Debian with hardserve and its units installed, below `directory`, which must be empty."""
    root = directory / "root"
    unpack_root(root)
    _install(root, directory)
    (root / "etc/hostname").write_text("box\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost box\n::1 localhost\n")
    with _groups(f"hardserve-tests-{os.getpid()}") as groups, _running(root, directory / "boot.log", groups) as leader:
        machine = Machine(root, leader)
        try:
            yield machine
        finally:
            machine.close()


def _install(root: Path, directory: Path) -> None:
    """Put the wheel of this checkout, what it needs and its units into `root`."""
    venv = root / VENV.lstrip("/")
    (packages,) = venv.glob("lib/python3.*/site-packages")
    add_dependencies(packages, packages.parent.name.removeprefix("python"))
    wheel = build_wheel(directory)
    shutil.copy(wheel, root / "opt")
    for command in (
        (f"{VENV}/bin/pip", "install", "--quiet", "--no-index", "--no-deps", f"/opt/{wheel.name}"),
        (f"{VENV}/bin/pip", "check"),
        (f"{VENV}/bin/python", "-m", "compileall", "-q", f"{VENV}/lib"),
    ):
        done = subprocess.run(
            ["chroot", str(root), *command],
            capture_output=True,
            text=True,
            timeout=BOOT_LIMIT_S,
            check=False,
            env=ENVIRONMENT | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    for unit in UNITS.iterdir():
        shutil.copy(unit, root / "etc/systemd/system")


@contextlib.contextmanager
def _groups(name: str) -> Iterator[list[Path]]:
    """Have control groups of that name below this process's: two systemds in one would kill each other's services."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, own = line.split(":", 2)
        for mount in ("systemd",) if controllers == "name=systemd" else ("unified", "."):
            above = CGROUPS / mount / own.lstrip("/")
            if (number == "0" or controllers == "name=systemd") and (above / "cgroup.procs").exists():
                made.append(above / name)
                made[-1].mkdir()
                break
    try:
        yield made
    finally:
        for group in made:
            for directory, _, _ in os.walk(group, topdown=False):
                Path(directory).rmdir()


def _nspawn(root: Path, groups: list[Path]) -> tuple[list[str], dict[str, str]]:
    """Return the command that boots `root` in control groups, and its environment."""
    join = "".join(f'echo $$ >"{group}/cgroup.procs"; ' for group in groups)
    return [
        # A test that is killed takes its machine with it.
        *("sh", "-c", f'{join}exec setpriv --pdeathsig TERM -- "$@"', "sh"),
        *("systemd-nspawn", "--quiet", "--boot", f"--directory={root}", f"--machine={groups[0].name}"),
        # There may be no systemd outside, and hence nobody to register with or to ask for a unit.
        *("--register=no", "--keep-unit"),
        # Its port 80 is its own.
        "--private-network",
        # Console messages are a log, and not what a terminal would be told.
        "--console=passive",
        # IPAddressDeny= and DeviceAllow= are programs in the kernel, which systemd loads.
        *("--capability=CAP_BPF", "--system-call-filter=bpf"),
    ], os.environ | {
        # One hierarchy of control groups, as Debian has had since 11, also where the machine outside has the old ones.
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"
    }


@contextlib.contextmanager
def _running(root: Path, log: Path, groups: list[Path]) -> Iterator[int]:
    """Run the machine while a block runs; yield its process 1."""
    command, environment = _nspawn(root, groups)
    with log.open("wb") as console:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment, start_new_session=True
        )

    def said() -> str:
        return f"{process.poll()} {log.read_text(errors='replace')[-4000:]}"

    def leader() -> int:
        assert process.poll() is None, said()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return 0

    first = 0
    try:
        first = eventually(leader, said, BOOT_LIMIT_S)

        def is_up() -> bool:
            assert process.poll() is None, said()
            asked = ["nsenter", "-t", str(first), "-a", "--", "systemctl", "is-system-running", "--wait"]
            state = subprocess.run(asked, capture_output=True, text=True, timeout=BOOT_LIMIT_S, check=False, cwd="/")
            return state.stdout.strip() in ("running", "degraded")

        eventually(is_up, said, BOOT_LIMIT_S)
        yield first
    finally:
        process.terminate()  # which has it power off
        try:
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            if first:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(first, signal.SIGKILL)  # and everything in it dies
            process.kill()
            process.wait(END_LIMIT_S)
