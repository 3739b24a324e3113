"""What becomes of a service that hangs, crashes or takes long to end."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.system.installed import Installed, installed
from tests.system.machine import PATIENCE_S, Machine, eventually

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


def keep_busy(machine: Machine) -> tuple[int, list[int]]:
    """Have every thread be on a slow request, and others wait, for twice the watchdog's time."""
    settings = f"[server]\nthreads = {THREADS}\n"
    with installed(machine, "busy", port=8012, settings=settings, service="[Service]\nWatchdogSec=4\n") as app:
        first = app.get("/").json()["pid"]
        answered: list[int] = []

        def ask(number: int) -> None:
            source = f"127.0.1.{number + 1}"
            answered.extend(app.get("/slow?s=2", source=source).json()["pid"] for _ in range(2))

        clients = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(THREADS * 2)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(PATIENCE_S)
        return first, answered


Stories = dict[str, Future[Any]]


@pytest.fixture(scope="module")
def stories(machine: Machine) -> Iterator[Stories]:
    """Return what becomes of services that do little but wait: of all at once."""
    with ThreadPoolExecutor() as pool:
        yield {
            "stick": pool.submit(hang, machine, "stuck", 8010, "/stick", THREADS),
            "freeze": pool.submit(hang, machine, "frozen", 8011, "/freeze", 1),
            "busy": pool.submit(keep_busy, machine),
        }


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("stick", id="every thread is stuck in the app"),
        pytest.param("freeze", id="the app never lets go of the interpreter"),
    ],
)
def test_what_hangs_is_killed_by_the_watchdog_and_serves_again(stories: Stories, where: str) -> None:
    struck = stories[where].result()
    print(f"served again after {struck.seconds:.1f} s")
    assert struck.seconds <= SERVED_AGAIN_S, struck.said
    assert "watchdog" in struck.said.lower(), struck.said
    assert "status=6/ABRT" in struck.said, struck.said
    # Where each thread was.
    assert "Fatal Python error: Aborted" in struck.said, struck.said
    assert re.search(rf"File \".*app\.py\", line \d+ in {where}", struck.said), struck.said


def test_slow_requests_are_no_hang(stories: Stories) -> None:
    first, answered = stories["busy"].result()
    assert answered == [first] * THREADS * 2 * 2


def test_a_stop_waits_for_longer_than_the_unit_says_while_requests_are_answered(machine: Machine) -> None:
    # Not beside others: where systemd reads its units again meanwhile, 252 forgets what it was told.
    impatient = "[Service]\nTimeoutStopSec=2\n"
    with (
        installed(machine, "patient", port=8013, settings='[server]\ndrain = "30s"\n', service=impatient) as app,
        contextlib.closing(machine.speak(app.port)) as connection,
    ):
        connection.request("GET", "/stream?s=4")
        response = connection.getresponse()
        assert response.read(5) == b"begun"
        machine.systemctl("stop", app.socket, app.service)
        assert response.read() == b", ended"
        assert machine.show(app.service, "Result") == "success"


def test_crashes_in_a_row_are_mended(machine: Machine) -> None:
    deaths = ("SIGSEGV", "exit", "SIGKILL")
    with installed(machine, "crash", port=8014) as app:
        pids = set()
        for death in deaths:
            # Each finds it down, waits, and brings down the next.
            pids.add(app.get("/").json()["pid"])
            with ask_in_vain(app, f"/die/{death}") as asked, contextlib.suppress(ConnectionResetError):
                assert asked.recv(1) == b""
        pids.add(app.get("/").json()["pid"])
        assert len(pids) == len(deaths) + 1
        assert app.starts == len(deaths)
        assert machine.show(app.socket, "ActiveState") == "active"
        assert "Fatal Python error: Segmentation fault" in app.said()


def test_a_start_that_always_fails_is_tried_again_slowly_while_clients_wait(machine: Machine) -> None:
    times, pause_s = 2, 1
    with installed(machine, "loop", port=8015, at_import="os._exit(3)") as app, contextlib.ExitStack() as waiting:
        began = time.monotonic()
        asked = [waiting.enter_context(ask_in_vain(app, "/")) for _ in range(5)]
        eventually(lambda: app.starts >= times, app.said)
        # Clients who wait do not have it be started any sooner.
        assert time.monotonic() - began >= times * pause_s
        assert machine.show(app.socket, "ActiveState") == "active"
        app.at_import("")
        assert {connected.recv(15) for connected in asked} == {b"HTTP/1.1 200 OK"}


def seconds(machine: Machine, unit: str, name: str) -> float:
    """Return a property of a unit that is a time."""
    said = machine.run("systemd-analyze", "timespan", machine.show(unit, name)).stdout
    found = re.search(r"μs: (\d+)", said)
    assert found, said
    return int(found[1]) / 1e6


def test_a_start_that_always_fails_is_given_up(machine: Machine) -> None:
    few = "[Unit]\nStartLimitBurst=3\n[Service]\nRestartSec=100ms\n"
    with installed(machine, "loop", port=8015, at_import="os._exit(3)", service=few) as app:
        with ask_in_vain(app, "/") as asked, contextlib.suppress(ConnectionResetError):
            assert asked.recv(1) == b""  # whoever waits is told
        eventually(lambda: app.state() == "failed", app.said)
        assert app.said().count("Main process exited") == 3
        with pytest.raises(ConnectionRefusedError):
            machine.connect(app.port)
        # Who has mended it begins anew.
        app.at_import("")
        machine.systemctl("reset-failed", app.service)
        machine.systemctl("restart", app.service)
        assert app.get("/").status == 200


def test_the_shipped_unit_comes_to_its_limit(machine: Machine) -> None:
    with installed(machine, "loop") as app:
        tries = int(machine.show(app.service, "StartLimitBurst"))
        within_s, waits_s = (seconds(machine, app.service, name) for name in ("StartLimitIntervalUSec", "RestartUSec"))
    assert tries >= 20
    # Although each start takes some time, too.
    assert tries * (waits_s + 10) < within_s
