"""SIGUSR2: another process takes over on the same sockets, and whoever is served notices nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardserve.ops.control import ask
from hardserve.successor import VARIABLE, Started, Succession, _command
from tests.boxes import await_
from tests.conftest import PATIENCE_S, REPOSITORY, Command, StartCommand
from tests.test_notify import Manager

SWAPS = 5

APP = """
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(APP)
    (tmp_path / "hardserve.toml").write_text('[rate_limiting]\ndefault = "off"\n')
    return tmp_path


FLAGS = ("hello:app", "--limits-client-connection-rate", "0", "--drain", "5s")


def pid_of(command: Command) -> int:
    """Return the process that answers."""
    connection = http.client.HTTPConnection("127.0.0.1", command.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return int(connection.getresponse().read())


@contextlib.contextmanager
def replaced_at_the_end(command: Command) -> Iterator[None]:
    """End whichever process serves at last."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.kill(pid_of(command), signal.SIGTERM)


def swap(command: Command) -> int:
    """Have the process that answers be replaced, and return the new one when the old one has ended."""
    old = pid_of(command)
    os.kill(old, signal.SIGUSR2)
    await_("the old one ends", lambda: has_ended(old))
    return pid_of(command)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Loop:
    """A client that asks again and again, on one connection for as long as it lasts or on a new one each time."""

    def __init__(self, port: int, *, keep_alive: bool) -> None:
        self.pids: list[int] = []
        self.lost: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port, keep_alive))
        self._thread.start()

    def _run(self, port: int, keep_alive: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        while not self._over.is_set():
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                self.pids.append(int(response.read()))
                if response.status != 200:
                    self.lost.append(str(response.status))
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.lost.append(repr(error))
                connection.close()
            if not keep_alive:
                connection.close()
        connection.close()

    def end(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)


def test_one_swap_after_the_other_loses_no_request(start_command: StartCommand, directory: Path) -> None:
    with start_command(*FLAGS, directory=directory) as command, replaced_at_the_end(command):
        loops = [Loop(command.port, keep_alive=number % 2 == 0) for number in range(4)]
        try:
            pids = [pid_of(command), *(swap(command) for _ in range(SWAPS))]
        finally:
            for loop in loops:
                loop.end()
        assert [lost for loop in loops for lost in loop.lost] == []
        assert len(set(pids)) == SWAPS + 1
        assert {pid for loop in loops for pid in loop.pids} >= set(pids[1:-1])
        assert command.process.wait(PATIENCE_S) == 0


FAILURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a setting that is wrong now": (
        lambda directory: (directory / "hardserve.toml").write_text('[server]\nthreads = "many"\n'),
        r"failed \(exit code 78\), this one goes on: hardserve: 1 problem with the settings:\n.*hardserve.toml:2: ",
    ),
    "an app that is not there now": (
        lambda directory: (directory / "hello.py").write_text("other = 1\n"),
        r"failed \(exit code [0-9]+\), this one goes on: .*hello",
    ),
    "an app that ends the process": (
        lambda directory: (directory / "hello.py").write_text("import os; os._exit(3)\n"),
        r"failed \(exit code 3\), this one goes on: see what it has said on standard error",
    ),
    "no Python": (
        lambda directory: (directory / "hardserve.py").write_text("raise SystemExit(4)\n"),
        r"failed \(exit code 4\), this one goes on",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_new_process_that_fails_leaves_the_old_one_serving(
    case: str, start_command: StartCommand, directory: Path
) -> None:
    spoil, said = FAILURES[case]
    with start_command(*FLAGS, directory=directory) as command:
        old = pid_of(command)
        spoil(directory)
        os.kill(old, signal.SIGUSR2)
        await_("it says why", lambda: re.search(said, command.output, re.DOTALL) is not None)
        assert pid_of(command) == old


def test_a_stop_ends_a_new_process_that_is_not_ready(start_command: StartCommand, directory: Path) -> None:
    with start_command(*FLAGS, directory=directory) as command:
        started = directory / "pid"
        (directory / "hello.py").write_text(
            f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
        )
        os.kill(command.process.pid, signal.SIGUSR2)
        await_("it is started", lambda: started.exists() and started.read_text() != "")
        os.kill(command.process.pid, signal.SIGUSR2)
        await_("it says so", lambda: "is being started already" in command.output)
        assert command.stop() == 0
        await_("it has ended", lambda: has_ended(int(started.read_text())))


def test_new_settings_count_and_the_control_socket_and_unix_sockets_go_along(
    start_command: StartCommand, directory: Path
) -> None:
    control, unix = directory / "c" / "control.sock", directory / "web.sock"
    flags = (*FLAGS, "--control", str(control), "--bind", f"unix:{unix}")
    with start_command(*flags, directory=directory) as command, replaced_at_the_end(command):
        inode = unix.stat().st_ino
        (directory / ".env").write_text("HARDSERVE_HEADERS_SERVER=second\n")
        old = pid_of(command)
        new = swap(command)
        assert new != old
        assert unix.stat().st_ino == inode
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(unix))
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert b"\r\nServer: second\r\n" in answer
        assert answer.endswith(str(new).encode())
        await_("the socket is there", control.exists)
        assert ask(control, "bans") == []
        os.kill(new, signal.SIGTERM)
        await_("it has ended", lambda: has_ended(new))
        assert not unix.exists()
        assert not control.exists()


def test_systemd_is_told_who_the_service_is_now(directory: Path, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        environ = {
            "PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": str(REPOSITORY),
            "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "4000000",
        }  # fmt: skip
        told: list[str] = []

        def hear(message: str) -> bool:
            told.extend(manager.told())
            return message in told

        with subprocess.Popen(
            [sys.executable, "-m", "hardserve", *FLAGS, "--bind", f"127.0.0.1:{port}"],
            cwd=directory, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            await_("READY=1", lambda: hear("READY=1"))
            await_("WATCHDOG=1", lambda: hear("WATCHDOG=1"))
            assert any(re.fullmatch(r"STATUS=serving; \d+ connections, 0 of 8 threads busy, .*", each) for each in told)
            told.clear()
            process.send_signal(signal.SIGUSR2)
            await_("READY=1", lambda: hear("READY=1"))
            [new] = [int(each.removeprefix("MAINPID=")) for each in told if each.startswith("MAINPID=")]
            assert told.index(f"MAINPID={new}") < told.index("READY=1")
            assert process.wait(PATIENCE_S) == 0
            hear("")
            assert "STOPPING=1" not in told
            told.clear()
            await_("WATCHDOG=1", lambda: hear("WATCHDOG=1"))  # the new one's
            os.kill(new, signal.SIGTERM)
            await_("STOPPING=1", lambda: hear("STOPPING=1"))
            await_("it has ended", lambda: has_ended(new))


def test_signals_for_the_whole_service_do_not_end_a_new_process(start_command: StartCommand, directory: Path) -> None:
    with start_command(*FLAGS, directory=directory) as command, replaced_at_the_end(command):
        os.kill(command.process.pid, signal.SIGUSR2)
        await_("it is started", lambda: "is started to take over" in command.output)
        [new] = re.findall(r"process (\d+) is started", command.output)
        for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1):
            os.kill(int(new), number)
        assert command.process.wait(PATIENCE_S) == 0
        assert pid_of(command) == int(new)


# --- what is handed on ---


def test_a_child_of_an_app_does_not_believe_that_it_is_a_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    story = {"pid": os.getpid(), "fd": 0, "sockets": [(0, "127.0.0.1:1", None)]}
    monkeypatch.setenv(VARIABLE, json.dumps(story))
    started = Started.now()
    assert started.predecessor is None
    assert started.handed == ()
    assert VARIABLE not in os.environ
    assert VARIABLE not in started.environ


REFUSALS: dict[str, tuple[dict[str, str], str]] = {
    "supervisord": ({"SUPERVISOR_ENABLED": "1"}, "supervisord looks after this process"),
    "systemd, which is not told": ({"SYSTEMD_EXEC_PID": str(os.getpid())}, "set Type=notify in the unit"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_where_a_new_process_could_not_live_none_is_started(case: str, caplog: pytest.LogCaptureFixture) -> None:
    environ, said = REFUSALS[case]

    def never(*_: Any) -> Any:
        raise AssertionError

    Succession(Started(["false"], environ, "/"), sockets=never, step_back=never, leave=never, stay=never).begin()
    assert said in caplog.text


def never(*_: Any) -> Any:
    raise AssertionError


DEATHS = {
    "it ends": (["false"], "failed (exit code 1), this one goes on: see what it has said"),
    "it is killed": (["sh", "-c", "kill -9 $$"], "failed (exit code -9), this one goes on: see what it has said"),
    "there is no such program": (["/nowhere/at/all"], "could not be started (FileNotFoundError)"),
}


@pytest.mark.parametrize("case", DEATHS)
def test_sockets_are_this_processs_alone_again_when_there_is_no_successor(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    command, said = DEATHS[case]
    stays = threading.Event()
    started = Started(command, dict(os.environ), "/")
    Succession(started, sockets=list, step_back=never, leave=never, stay=stays.set).begin()
    assert stays.wait(PATIENCE_S)
    assert said in caplog.text


def test_whoever_is_stopping_starts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    started = Started(["false"], {}, "/")
    succession = Succession(started, sockets=never, step_back=never, leave=never, stay=never)
    succession.cancel()
    with caplog.at_level("INFO"):
        succession.begin()
    succession.close(0.0)
    assert "this one is stopping" in caplog.text


@contextlib.contextmanager
def told(monkeypatch: pytest.MonkeyPatch, *, parent: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Have this process find what one with the id `parent` hands on: the other end of a line, and a socket."""
    ours, theirs = socket.socketpair()
    with ours, socket.create_server(("127.0.0.1", 0)) as handed:
        handed.set_inheritable(True)
        story = {
            "pid": parent,
            "fd": theirs.fileno(),
            "inode": os.fstat(theirs.fileno()).st_ino,
            "sockets": [(handed.fileno(), "127.0.0.1:0", None)],
        }
        monkeypatch.setenv(VARIABLE, json.dumps(story))
        theirs.detach()
        yield ours, handed


def test_no_program_that_an_app_starts_keeps_a_socket_that_was_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with told(monkeypatch, parent=os.getppid()) as (_, handed):
        started = Started.now()
        assert started.handed_fds == {"127.0.0.1:0": [handed.fileno()]}
        assert not handed.get_inheritable()
        started.predecessor._connected.close()  # type: ignore[union-attr]


def test_a_process_that_was_killed_after_it_has_started_another_is_succeeded_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with told(monkeypatch, parent=-1) as (line, _):
        assert Started.now().predecessor is None  # the line of somebody else, who lives
    with told(monkeypatch, parent=-1) as (line, _):
        line.close()
        succeeded = Started.now().predecessor
        assert succeeded is not None
        succeeded._connected.close()


def test_a_script_with_an_interpreter_of_its_own_is_started_by_it_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "hardserve"
    script.write_text("#!/somewhere/python\n")
    by_itself = ["/somewhere/python", str(script), "app:app"]
    monkeypatch.setattr(sys, "orig_argv", by_itself)
    assert _command() == (sys.executable, *by_itself[1:])  # it cannot be run
    script.chmod(0o755)
    assert _command() == by_itself[1:]
    for other in (["/another/python", str(script)], ["/somewhere/python", "-m", "hardserve"], ["python"]):
        monkeypatch.setattr(sys, "orig_argv", other)
        assert _command() == (sys.executable, *other[1:])


def test_a_standard_stream_that_is_closed_becomes_nothing_else(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "hardserve", *FLAGS, "--bind", f"127.0.0.1:{port}", "--log-error", "error.log"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *words], cwd=directory, env=environ, stdout=subprocess.DEVNULL
    ) as process:

        def serves() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        try:
            await_("it serves", lambda: process.poll() is not None or serves())
            streams = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in range(3)}
        finally:
            process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert streams == {os.devnull}
