"""An app installed as a service in a machine, with the units as they are shipped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.system.debian import VENV
from tests.system.machine import Answer, Machine

APP = Path(__file__).parent / "apps" / "box.py"
# What is checked here is not how much a client may ask for; all clients have one address. A line in the journal for
# each request would be more than systemd-journald takes from one service.
SETTINGS = """
[limits]
client_connections = 1000
client_connection_rate = 100000
[rate_limiting]
default = "off"
[log]
access = "off"
"""


@dataclass
class Installed:
    """An app in /srv/NAME with its settings in /etc/hardserve/NAME.toml, and its instances of the shipped units."""

    machine: Machine
    name: str
    port: int
    began: str  # the end of the journal before it

    @property
    def service(self) -> str:
        return f"hardserve@{self.name}.service"

    @property
    def socket(self) -> str:
        return f"hardserve@{self.name}.socket"

    @property
    def directory(self) -> str:
        return f"/srv/{self.name}"

    @property
    def file(self) -> str:
        """Its settings."""
        return f"/etc/hardserve/{self.name}.toml"

    @property
    def pid(self) -> int:
        """Its main process, as it is numbered inside."""
        return int(self.machine.show(self.service, "MainPID"))

    @property
    def starts(self) -> int:
        """How often systemd has started it again after it had failed."""
        return int(self.machine.show(self.service, "NRestarts"))

    def start(self, *, check: bool = True) -> None:
        self.machine.systemctl("start", self.service, check=check)

    def stop(self) -> None:
        self.machine.systemctl("stop", self.service)

    def state(self) -> str:
        return self.machine.show(self.service, "ActiveState")

    def get(self, target: str, **asked: Any) -> Answer:
        return self.machine.http(target, port=self.port, **asked)

    def try_to(self, deed: str) -> str:
        """Have the app try something, and return what became of it."""
        return str(self.get("/try/" + quote(deed)).json()["result"])

    def processes(self) -> list[str]:
        """Return its processes, as they are numbered outside."""
        place = f"/sys/fs/cgroup/system.slice/system-hardserve.slice/{self.service}/cgroup.procs"
        return self.machine.read(place).split()

    def signal(self, name: str) -> None:
        """Send its main process a signal."""
        self.machine.systemctl("kill", f"--signal={name}", "--kill-who=main", self.service)

    def at_import(self, code: str) -> None:
        """Have `code` run when the app is imported."""
        self.machine.write(f"{self.directory}/at-import", code)

    def drop_in(self, kind: str, text: str) -> None:
        """Change its service or its socket unit, as an administrator does. What reloads systemd's units is left out."""
        self.machine.write(f"/etc/systemd/system/hardserve@{self.name}.{kind}.d/test.conf", text)

    def settings(self, text: str) -> None:
        self.machine.write(self.file, text)

    def said(self) -> str:
        return self.machine.said(self.service, self.began)


@contextlib.contextmanager
def installed(
    machine: Machine, name: str, *, port: int = 0, settings: str = "", service: str = "", at_import: str = ""
) -> Iterator[Installed]:
    """Have an app be installed and enabled while a block runs. It is not started.

    `port` is the one of the socket unit, which is; without it there is none, and the server opens its own. `settings`
    are added to its file, and `service` is a drop-in for its service.
    """
    app = Installed(machine, name, port, machine.cursor())
    machine.write(f"{app.directory}/app.py", APP.read_text())
    if at_import:
        app.at_import(at_import)
    machine.path(f"{app.directory}/.venv").symlink_to(VENV)
    app.settings(SETTINGS + settings)
    units = [app.service, app.socket][: 2 if port else 1]
    try:
        if service:
            app.drop_in("service", service)
        if port not in (0, 80):
            app.drop_in("socket", f"[Socket]\nListenStream=\nListenStream={port}\n")
        machine.systemctl("enable", *units)  # which reads units again, too
        if port:
            machine.systemctl("start", app.socket)
        yield app
    finally:
        if port:
            machine.systemctl("stop", app.socket, check=False)
        # Without waiting for what never ends: what it does at its end is what tests are about, and not this.
        machine.systemctl("kill", "--signal=KILL", app.service, check=False)
        machine.systemctl("stop", app.service, check=False)
        machine.systemctl("reset-failed", *units, check=False)
        machine.remove(
            f"/etc/systemd/system/{app.service}.d", f"/etc/systemd/system/{app.socket}.d", app.directory, app.file
        )
        machine.systemctl("disable", *units)
