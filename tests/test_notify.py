"""What the service manager is told, over a socket as systemd's."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardserve.ops.notify import Notifier

PID = 4711


class Manager:
    """A service manager that only listens."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def told(self) -> list[str]:
        """Return what it was told since it was last asked."""
        said = []
        while True:
            try:
                said.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return said


@pytest.fixture(params=["a path", "an abstract address"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "a path" else f"@hardserve-test-{os.getpid()}")
    with manager.socket:
        yield manager


def test_each_thing_is_said_in_systemds_words(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready()
    notifier.stopping()
    notifier.extend(1.5)
    notifier.alive()
    notifier.hangs()
    notifier.main_pid(12)
    assert manager.told() == [
        "READY=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=1500000", "WATCHDOG=1", "WATCHDOG=trigger", "MAINPID=12",
    ]  # fmt: skip
    notifier.close()
    notifier.ready()
    assert manager.told() == []


def test_a_reload_says_when_it_began(manager: Manager) -> None:
    with contextlib.closing(Notifier(manager.address)) as notifier:
        notifier.reloading()
        notifier.reloading()
    times = [int(message.removeprefix("RELOADING=1\nMONOTONIC_USEC=")) for message in manager.told()]
    assert len(times) == 2
    assert 0 < times[0] <= times[1]


def test_a_status_is_one_line_and_is_said_once(manager: Manager) -> None:
    with contextlib.closing(Notifier(manager.address)) as notifier:
        notifier.status("serving\nMAINPID=1")
        notifier.status("serving\nMAINPID=1")
        notifier.status("draining")
        notifier.status("x" * 5000)
    told = manager.told()
    assert told[:2] == ["STATUS=serving MAINPID=1", "STATUS=draining"]
    assert len(told[2]) < 400


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager) -> None:
    with contextlib.closing(Notifier(manager.address)) as notifier:
        for _ in range(10_000):
            notifier.alive()
    assert 0 < len(manager.told()) < 10_000


def test_a_manager_that_has_gone_is_no_error(tmp_path: Path) -> None:
    with contextlib.closing(Notifier(str(tmp_path / "nobody"))) as notifier:
        notifier.ready()


WATCHDOGS = {
    "none": ({}, 0.0),
    "of this process": ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}, 30.0),
    "of whoever asks": ({"WATCHDOG_USEC": "500000"}, 0.5),
    "of the process that started this one": ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
    "nonsense": ({"WATCHDOG_USEC": "soon", "WATCHDOG_PID": str(PID)}, 0.0),
}


@pytest.mark.parametrize("case", WATCHDOGS)
def test_whose_watchdog_it_is(case: str) -> None:
    environ, watchdog_s = WATCHDOGS[case]
    notifier = Notifier.of(environ, PID)
    assert notifier.watchdog_s == watchdog_s
    assert not notifier.listened_to


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative/path"])
def test_an_address_that_cannot_be_spoken_to_is_nobody(address: str) -> None:
    notifier = Notifier(address)
    assert not notifier.listened_to
    notifier.ready()


def fill(manager: Manager) -> None:
    """Leave no room for anything more to be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
        other.setblocking(False)
        while True:
            other.sendto(b"X=", manager.socket.getsockname())


def test_what_a_busy_manager_has_no_room_for_is_said_later_if_it_matters(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.status("well")
    fill(manager)
    notifier.ready()
    notifier.alive()
    notifier.status("well")
    assert "READY=1" not in manager.told()
    notifier.status("well")
    assert manager.told() == ["READY=1"]
    notifier.close()


def test_who_the_service_is_now_is_said_before_the_new_one_says_anything(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    fill(manager)
    thread = threading.Thread(target=notifier.main_pid, args=(12,))
    thread.start()
    told: list[str] = []
    while thread.is_alive():
        told += manager.told()
    assert [*told, *manager.told()][-1] == "MAINPID=12"
    notifier.stopping()  # it is another one's service
    assert manager.told() == []
    notifier.close()
