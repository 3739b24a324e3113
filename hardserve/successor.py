"""How a process takes the place of another one on the same sockets, without systemd: SIGUSR2, as nginx and gunicorn do.

    old: starts the new one by the command that it was started by, and hands its listening sockets on
    new: reads its settings, imports the app, accepts           -> "ready"
    old: <- "go": tells systemd who the service is now, gives up the control socket, drains and ends
    new: opens the control socket, speaks to systemd
    or   new: "failed: why", or ends                             old: says so and goes on

Each says its lines over one socket pair, which ends when either process does. The waiting is done by a thread of its
own on both sides, "hardserve-successor"; each method says its thread. What is in memory is not handed on: bans, counts
of rate limits, what is known of files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hardserve.inherited import Handed, Passed, passed_sockets, place_of

if TYPE_CHECKING:
    import subprocess

logger = logging.getLogger("hardserve")

# Where a new process finds what it is handed. Taken out of its environment at once.
VARIABLE = "HARDSERVE_SUCCESSION"
# For a new process to import its app, on a slow box.
START_S = 300.0
# For one that did not become ready in time, or is not wanted any more, to end by itself.
END_S = 10.0
# For either side to say or hear the next line, once it is due.
TURN_S = 10.0

# What steers a server that runs, and would end one that is just starting.
_STEERING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_READY, _FAILED, _GO = b"ready", b"failed: ", b"go"
_MAX_LINE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Started:
    """How this process was started, by which another one like it can be.

    `environ` is what it was given, before any .env was added. `handed` are the sockets of the process that it replaces,
    `passed` those of systemd, which may have come by way of that one.
    """

    command: Sequence[str]
    environ: Mapping[str, str]
    directory: str
    passed: Sequence[Passed] = ()
    handed: Sequence[Handed] = ()
    predecessor: Predecessor | None = None

    @classmethod
    def now(cls) -> Started:
        """Return how, and take what is for this process alone out of its environment.

        Main thread, first of all. Raises SettingsError for sockets of systemd's that cannot be served.
        """
        _open_standard_streams()
        environ, pid = os.environ, os.getpid()
        told = environ.pop(VARIABLE, "")
        passed = passed_sockets(environ, pid)
        handed: tuple[Handed, ...] = ()
        predecessor = None
        if told:
            story = json.loads(told)
            if _is_for_us(story):
                every = [Handed(*each) for each in story["sockets"]]
                for each in every:
                    os.set_inheritable(each.fd, False)  # a program that the app starts must not keep the port
                handed = tuple(each for each in every if each.name is None)
                passed = [Passed(each.fd, each.name, place_of(each.fd)) for each in every if each.name is not None]
                predecessor = Predecessor(socket.socket(fileno=story["fd"]))
                for number in _STEERING if threading.current_thread() is threading.main_thread() else ():
                    if signal.getsignal(number) is signal.SIG_DFL:
                        signal.signal(number, signal.SIG_IGN)  # until it is handled
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _STEERING)
                if environ.get("SYSTEMD_EXEC_PID") == str(story["pid"]):
                    environ["SYSTEMD_EXEC_PID"] = str(pid)  # it will be the one that systemd looks after
        # Not by its real path: that is the old release, where a link leads to the current one.
        directory = environ.get("PWD", "")
        if not (os.path.isabs(directory) and os.path.exists(directory) and os.path.samefile(directory, ".")):
            directory = os.getcwd()
        return cls(_command(), dict(environ), directory, tuple(passed), handed, predecessor)

    def failed(self, why: str) -> None:
        """Say why this process will not serve, if it was to replace another one."""
        if self.predecessor is not None:
            self.predecessor.failed(why)

    def name_of(self, address: str) -> str | None:
        """Return the name of the socket that systemd has passed and the settings call `address`, None if it is none."""
        fd = address.removeprefix("fd:").partition("?")[0]
        return next((each.name for each in self.passed if str(each.fd) == fd), None)

    @property
    def handed_fds(self) -> dict[str, list[int]]:
        """The sockets of a former process, by what its settings called them."""
        fds: dict[str, list[int]] = {}
        for each in self.handed:
            fds.setdefault(each.address, []).append(each.fd)
        return fds


class Predecessor:
    """The process whose place this one takes."""

    def __init__(self, connected: socket.socket) -> None:
        self._connected = connected
        connected.settimeout(TURN_S)
        connected.set_inheritable(False)

    def __repr__(self) -> str:
        return f"<Predecessor {self._connected.fileno()}>"

    def failed(self, why: str) -> None:
        """Say that there will be no successor. Main thread, instead of `ready`."""
        with contextlib.suppress(OSError):
            self._connected.sendall(_FAILED + why.encode()[: _MAX_LINE_BYTES // 2].replace(b"\n", b"\r") + b"\n")

    def ready(self, go: Callable[[], None]) -> None:
        """Say that connections are accepted here, and have `go` called when the other one steps back. I/O thread.

        It is called on another thread, and also if the other one ends without a word.
        """
        with contextlib.suppress(OSError):
            self._connected.sendall(_READY + b"\n")  # some bytes, which the socket has room for

        def wait() -> None:
            with self._connected, contextlib.suppress(OSError):
                _line(self._connected)
            go()

        threading.Thread(target=wait, name="hardserve-successor", daemon=True).start()


class Succession:
    """Has another process take the place of this one. `begin` and `cancel`: I/O thread.

    Not in a signal handler: that may interrupt a thread's start, and starting another one then waits for ever.

    `sockets` returns what is handed on; until `stay` is called, another process may have it, too. `step_back` is given
    the id of the new process when it is ready; when it returns, the new one is told to go on, and then `leave` is
    called. `stay` is called if there will be no successor. All on the thread "hardserve-successor", but for the `stay`
    of `cancel`.
    """

    def __init__(
        self,
        started: Started,
        *,
        sockets: Callable[[], Iterable[Handed]],
        step_back: Callable[[int], None],
        leave: Callable[[], None],
        stay: Callable[[], None],
    ) -> None:
        self._started = started
        self._sockets = sockets
        self._step_back = step_back
        self._leave = leave
        self._stay = stay
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # Either, for good.
        self._lock = threading.Lock()
        self._cancelled = False
        self._left = False

    def __repr__(self) -> str:
        return f"<Succession {'idle' if self._thread is None else self._process!r}>"

    def begin(self) -> None:
        """Start the new process, unless that is being done or cannot be."""
        if self._cancelled or self._left:
            logger.info("SIGUSR2: no new process is started: this one is stopping")
            return
        if self._thread is not None and self._thread.is_alive():
            logger.warning("SIGUSR2: a new process is being started already")
            return
        refusal = _why_not(self._started.environ, os.getpid())
        if refusal:
            logger.error("SIGUSR2: no new process is started: %s", refusal)
            return
        thread = threading.Thread(target=self._run, name="hardserve-successor", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            logger.error("SIGUSR2: no new process is started: there is no thread to be had (%s)", error)  # noqa: TRY400
        else:
            self._thread = thread

    def cancel(self) -> None:
        """End a new process that is not ready yet: both are to end."""
        with self._lock:
            if self._left or self._cancelled:
                return
            self._cancelled = True
        if self._thread is not None and self._thread.is_alive():
            self._stay()
            if self._process is not None:
                self._process.terminate()

    def close(self, timeout_s: float) -> None:
        """Wait for a moment for a new process that was cancelled. After the server has ended."""
        if self._cancelled and self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._start()
        except Exception as error:
            # No memory, no descriptors, no such directory any more: whatever it is, who serves goes on.
            logger.exception("the new process could not be started (%s): this one goes on", type(error).__name__)
            if not self._left:
                self._stay()

    def _start(self) -> None:
        import subprocess  # noqa: PLC0415  # most processes are never replaced, and it is 0.2 MB

        ours, theirs = socket.socketpair()
        with ours, theirs:
            sockets = list(self._sockets())
            story = {
                "pid": os.getpid(),
                "fd": theirs.fileno(),
                "inode": os.fstat(theirs.fileno()).st_ino,
                "sockets": [(each.fd, each.address, each.name) for each in sockets],
            }
            environ = {**self._started.environ, VARIABLE: json.dumps(story)}
            environ.pop("WATCHDOG_PID", None)  # the watchdog is for this process until it steps back
            # Also those that whoever sends them to a whole service sends to the new process, before it can take them:
            # it has this thread's mask.
            signal.pthread_sigmask(signal.SIG_BLOCK, _STEERING)
            process = subprocess.Popen(  # noqa: S603  # the command of this very process
                self._started.command,
                cwd=self._started.directory,
                env=environ,
                pass_fds=[theirs.fileno(), *(each.fd for each in sockets)],
            )
            self._process = process
            theirs.close()
            if self._cancelled:
                process.terminate()
            logger.info("SIGUSR2: process %d is started to take over: %s", process.pid, " ".join(self._started.command))
            ours.settimeout(START_S)
            said, late = b"", False
            try:
                said = _line(ours)
            except OSError as error:
                late = isinstance(error, TimeoutError)
            if said == _READY and process.poll() is None and self._may_leave():
                self._step_back(process.pid)
                with contextlib.suppress(OSError):
                    ours.sendall(_GO + b"\n")
                logger.info("process %d has taken over: this one drains", process.pid)
                self._leave()
                return
        self._give_up(process, said, late=late)
        self._stay()

    def _may_leave(self) -> bool:
        with self._lock:
            self._left = not self._cancelled
        return self._left

    def _give_up(self, process: subprocess.Popen[bytes], said: bytes, *, late: bool) -> None:
        """Say why there is no successor, and see that there is none."""
        import subprocess  # noqa: PLC0415  # as above

        # One that has hung up is about to end by itself, and to say why.
        if late or said == _READY:
            process.terminate()
        try:
            code = process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if self._cancelled:
            return
        why = said.removeprefix(_FAILED).decode(errors="replace").replace("\r", "\n")
        if not said.startswith(_FAILED):
            why = f"it was not ready within {START_S:g} s" if late else "see what it has said on standard error"
        logger.error("the new process has failed (exit code %d), this one goes on: %s", code, why)


def _command() -> Sequence[str]:
    """Return what this process was started by."""
    interpreter, *words = sys.orig_argv
    if words and os.sep in words[0]:
        with contextlib.suppress(OSError), open(words[0], "rb") as script:
            # The new release's script, where a link leads to the current one, names an interpreter of its own.
            if script.readline(4096).split() == [b"#!" + os.fsencode(interpreter)] and os.access(words[0], os.X_OK):
                return words
    return (sys.executable, *words)


def _open_standard_streams() -> None:
    """Have nothing else become a standard stream of this process, or of the next one, where one of them is closed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == fd:
                os.set_inheritable(fd, True)


def _is_for_us(story: Mapping[str, Any]) -> bool:
    """Return whether this is the process that was started. A shell of an app has the variable, too, and no sockets."""
    if os.getppid() == story["pid"]:
        return True
    # Or whoever started it was killed since: then the line to that process is here, and nobody at its end.
    with contextlib.suppress(OSError):
        if os.fstat(story["fd"]).st_ino == story.get("inode"):
            with socket.socket(fileno=os.dup(story["fd"])) as line:
                return line.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    return False


def _line(connected: socket.socket) -> bytes:
    """Return the next line, less if the other one ends. Raises OSError."""
    received = b""
    while not received.endswith(b"\n") and len(received) < _MAX_LINE_BYTES:
        data = connected.recv(4096)
        if not data:
            break
        received += data
    return received.rstrip(b"\n")


def _why_not(environ: Mapping[str, str], pid: int) -> str:
    """Return why the place of this process cannot be taken, "" if it can."""
    if pid == 1:
        return "the container ends with this process, which is its first: start another container"
    if environ.get("SUPERVISOR_ENABLED") == "1":
        return "supervisord looks after this process and no other, and would start a third: restart it there"
    if environ.get("SYSTEMD_EXEC_PID") == str(pid) and not environ.get("NOTIFY_SOCKET"):
        return "systemd would end the new one together with this one: set Type=notify in the unit, or restart it there"
    return ""
