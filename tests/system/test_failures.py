"""What becomes of a service that hangs, crashes or is set wrong."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.system.installed import Installed, installed
from tests.system.machine import Machine, eventually

pytestmark = pytest.mark.peer

THREADS = 4
WATCHDOG_S = 10
# From the hang to the next answer.
SERVED_AGAIN_S = WATCHDOG_S + 5


def ask_in_vain(app: Installed, target: str, source: str = "127.0.0.1") -> socket.socket:
    """Send a request whose answer nobody waits for."""
    connected = app.machine.connect(app.port, source=source)
    connected.sendall(f"GET {target} HTTP/1.1\r\nHost: box\r\n\r\n".encode())
    return connected


@dataclass(frozen=True)
class Struck:
    """A service that the watchdog has killed: after how many seconds it served again, and what it had said."""

    seconds: float
    said: str


def hang(machine: Machine, name: str, port: int, target: str, times: int) -> Struck:
    """Have a service hang until another process of it answers."""
    settings = f"[server]\nthreads = {THREADS}\n"
    watchdog = f"[Service]\nWatchdogSec={WATCHDOG_S}\n"
    with (
        installed(machine, name, port=port, settings=settings, service=watchdog) as app,
        contextlib.ExitStack() as asked,
    ):
        first = app.get("/").json()["pid"]

        def served_again() -> bool:
            # Nobody knows when the old one takes its last connection: what it does not answer, it has not.
            with contextlib.suppress(OSError):
                return bool(app.get("/", limit_s=2).json()["pid"] != first)
            return False

        began = time.monotonic()
        for number in range(times):
            # One client would not be given every thread.
            asked.enter_context(ask_in_vain(app, target, f"127.0.1.{number + 1}"))
        eventually(served_again, app.said)
        return Struck(time.monotonic() - began, app.said())


@pytest.fixture(scope="module")
def struck(machine: Machine) -> dict[str, Struck]:
    """Return what became of the hangs, of which each takes as long as the watchdog waits: both at once."""
    with ThreadPoolExecutor() as pool:
        stuck = pool.submit(hang, machine, "stuck", 8010, "/stick", THREADS)
        frozen = pool.submit(hang, machine, "frozen", 8011, "/freeze", 1)
        return {"stick": stuck.result(), "freeze": frozen.result()}


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("stick", id="every thread is stuck in the app"),
        pytest.param("freeze", id="the app never lets go of the interpreter"),
    ],
)
def test_what_hangs_is_killed_by_the_watchdog_and_serves_again(struck: dict[str, Struck], where: str) -> None:
    seconds, said = struck[where].seconds, struck[where].said
    assert seconds <= SERVED_AGAIN_S, said
    assert "watchdog" in said.lower(), said
    assert "status=6/ABRT" in said, said
    # Where each thread was.
    assert "Fatal Python error: Aborted" in said, said
    assert re.search(rf"File \".*app\.py\", line \d+ in {where}", said), said


def test_slow_requests_are_no_hang(machine: Machine) -> None:
    settings = f"[server]\nthreads = {THREADS}\n"
    with installed(machine, "busy", port=8011, settings=settings, service="[Service]\nWatchdogSec=3\n") as app:
        first = app.get("/").json()["pid"]
        answered: list[int] = []

        def ask(number: int) -> None:
            source = f"127.0.1.{number + 1}"
            answered.extend(app.get("/slow?s=2", source=source).json()["pid"] for _ in range(2))

        # For eight seconds no thread is free, and there is always somebody waiting.
        clients = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(THREADS * 2)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(40)
        assert answered == [first] * THREADS * 2 * 2


def test_a_crash_is_mended(machine: Machine) -> None:
    with installed(machine, "crash", port=8012) as app:
        first = app.get("/").json()["pid"]
        with ask_in_vain(app, "/die/SIGSEGV"):
            eventually(lambda: app.pid not in (0, first), app.said)
        assert app.get("/").json()["pid"] != first
        assert "Fatal Python error: Segmentation fault" in app.said()


def test_a_start_that_always_fails_is_tried_again_slowly(machine: Machine) -> None:
    with installed(machine, "loop", at_import="os._exit(3)") as app:
        began = time.monotonic()
        app.start(check=False)
        eventually(lambda: app.starts >= 2, app.said)
        assert time.monotonic() - began >= 2 * 1.5


def test_a_start_that_always_fails_is_given_up(machine: Machine) -> None:
    with installed(machine, "loop", at_import="os._exit(3)") as app:
        tries = int(machine.show(app.service, "StartLimitBurst"))
        within_s, waits_s = (
            float(
                machine.run("systemd-analyze", "timespan", machine.show(app.service, name))
                .stdout.split("μs: ")[1]
                .split()[0]
            )
            / 1e6
            for name in ("StartLimitIntervalUSec", "RestartUSec")
        )
        # It gets so far although each start takes some time, too.
        assert tries * (waits_s + 10) < within_s
        app.drop_in("service", "[Unit]\nStartLimitBurst=3\n[Service]\nRestartSec=100ms\n")
        app.start(check=False)
        eventually(lambda: app.state() == "failed", app.said)
        assert app.said().count("Main process exited") == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param('[timeouts]\nheader = "10x"\n', "timeouts.header", id="a value that is none"),
        pytest.param("[server\n", "loop.toml", id="no TOML"),
        pytest.param("[server]\nthreds = 4\n", "threds", id="a setting that does not exist"),
    ],
)
def test_wrong_settings_are_said_once(machine: Machine, settings: str, said: str) -> None:
    with installed(machine, "loop", settings=settings) as app:
        app.start(check=False)
        assert app.state() == "failed"
        assert machine.show(app.service, "ExecMainStatus") == "78"
        assert app.starts == 0
        assert app.said().count("Main process exited") == 1
        assert said in app.said()


def test_wrong_settings_behind_a_socket_unit_do_not_loop_either(machine: Machine) -> None:
    with installed(machine, "loop", port=8013, settings="[server]\nthreds = 4\n") as app:
        for _ in range(10):
            # Each is what would start it again.
            with contextlib.suppress(OSError), app.machine.connect(app.port) as connected:
                connected.settimeout(0.2)
                connected.recv(1)
        time.sleep(2)
        # systemd gives up on the socket, too, rather than start it over and over.
        assert app.said().count("Main process exited") <= 5
