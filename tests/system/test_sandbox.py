"""What an app can do to the box that it runs on, with the units as they are shipped: what it needs, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.installed import Installed, installed
from tests.system.machine import Machine

pytestmark = pytest.mark.peer

NEEDED = (
    "write its state",
    "write its cache",
    "write its logs",
    "write its runtime directory",
    "write a temporary file",
    "start a program",
    "start Python",
    "look up a name",
    "listen on a high port",
    "connect to this box",
    "call back from C",
    "read the time zone",
)

DENIED = {
    "write /usr": {"EROFS"},
    "write /etc": {"EROFS"},
    "write /boot": {"EROFS", "EACCES"},
    "write /var/lib": {"EROFS", "EACCES"},
    "write its own code": {"EROFS"},
    "write its own packages": {"EROFS"},
    "list /home": {"EACCES", "nothing there"},
    "list /root": {"EACCES"},
    "read /etc/shadow": {"EACCES"},
    "read the journal": {"EACCES", "nothing there"},
    "read the state of another app": {"EACCES", "ENOENT"},
    "read the credential of another app": {"EACCES", "ENOENT"},
    "see process 1": {"ENOENT"},
    "see other processes": {"nothing there"},
    "signal process 1": {"EPERM"},
    "trace a process": {"EPERM"},
    "become root": {"EPERM"},
    "make a setuid file": {"EPERM"},
    "run an upload": {"EACCES"},
    "make a device": {"EPERM"},
    "open a disk": {"ENOENT"},
    "mount": {"EPERM"},
    "make a user namespace": {"EPERM"},
    "make a mount namespace": {"EPERM"},
    "load a kernel module": {"EPERM"},
    "reboot": {"EPERM"},
    "set the clock": {"EPERM"},
    "name the host": {"EPERM"},
    "set a kernel parameter": {"EROFS", "EACCES", "ENOENT"},
    "change control groups": {"EROFS", "EACCES"},
    "read the kernel's log": {"ENOENT", "EPERM", "EACCES"},
    "use the kernel's keys": {"EPERM"},
    "load a program into the kernel": {"EPERM"},
    "change the personality": {"EPERM"},
    "run in real time": {"EPERM"},
    "open a raw socket": {"EPERM", "EPROTONOSUPPORT"},
    "open a packet socket": {"EAFNOSUPPORT"},
    "open a Bluetooth socket": {"EAFNOSUPPORT"},
    "listen on port 81": {"EACCES"},
}


@pytest.fixture(scope="module")
def app(machine: Machine) -> Iterator[Installed]:
    with installed(machine, "other", port=8003) as other, installed(machine, "boxed", port=8002) as app:
        other.get("/")
        machine.write("/var/lib/private/hardserve/other/secret", "of the other")
        yield app


@pytest.mark.parametrize("deed", NEEDED)
def test_the_app_can(app: Installed, deed: str) -> None:
    assert app.try_to(deed) == "done"


@pytest.mark.parametrize(("deed", "results"), DENIED.items(), ids=DENIED)
def test_the_app_cannot(app: Installed, deed: str, results: set[str]) -> None:
    assert app.try_to(deed) in results


def test_the_app_lives_through_all_of_it(app: Installed) -> None:
    before = app.get("/").json()
    for deed in DENIED:
        app.try_to(deed)
    assert app.get("/").json() == before
    assert app.starts == 0


def test_two_apps_are_two_users(app: Installed, machine: Machine) -> None:
    uids = {machine.http("/status", port=port).json()["Uid"] for port in (8002, 8003)}
    assert len(uids) == 2
