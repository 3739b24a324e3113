"""An app installed as a service in a machine, with the units as they are shipped, and clients that ask all the time."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.system.debian import VENV
from tests.system.machine import PATIENCE_S, Answer, Machine, eventually

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
    def pid(self) -> int:
        """Its main process, as it is numbered inside."""
        return int(self.machine.show(self.service, "MainPID"))

    @property
    def starts(self) -> int:
        """How often it was started, by systemd's own count and ours."""
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

    def at_import(self, code: str) -> None:
        """Have `code` run when the app is imported."""
        self.machine.write(f"{self.directory}/at-import", code)

    def drop_in(self, kind: str, text: str) -> None:
        """Change its service or its socket unit, as an administrator does."""
        self.machine.write(f"/etc/systemd/system/hardserve@{self.name}.{kind}.d/test.conf", text)
        self.machine.systemctl("daemon-reload")

    def settings(self, text: str) -> None:
        self.machine.write(f"/etc/hardserve/{self.name}.toml", text)

    def said(self) -> str:
        return self.machine.said(self.service, self.began)


@contextlib.contextmanager
def installed(
    machine: Machine, name: str, *, port: int = 0, settings: str = "", service: str = "", at_import: str = ""
) -> Iterator[Installed]:
    """Have an app be installed while a block runs. It is not started.

    `port` is the one of the socket unit; without it there is none, and the server opens its own. `settings` are added
    to its file, and `service` is a drop-in for its service.
    """
    app = Installed(machine, name, port, machine.cursor())
    machine.write(f"{app.directory}/app.py", APP.read_text())
    if at_import:
        app.at_import(at_import)
    machine.run("ln", "-sfn", VENV, f"{app.directory}/.venv")
    app.settings(SETTINGS + settings)
    try:
        if service:
            app.drop_in("service", service)
        if port:
            if port != 80:
                app.drop_in("socket", f"[Socket]\nListenStream=\nListenStream=0.0.0.0:{port}\n")
            machine.systemctl("start", app.socket)
        yield app
    finally:
        machine.systemctl("stop", app.socket, check=False)
        # Without waiting for what never ends: what it does at its end is what tests are about, and not this.
        machine.systemctl("kill", "--signal=KILL", app.service, check=False)
        machine.systemctl("stop", app.service, check=False)
        machine.systemctl("reset-failed", app.service, app.socket, check=False)
        for place in (
            f"/etc/systemd/system/{app.service}.d",
            f"/etc/systemd/system/{app.socket}.d",
            app.directory,
        ):
            shutil.rmtree(machine.path(place), ignore_errors=True)
        machine.systemctl("daemon-reload")


# --- clients ---


@dataclass
class Load:
    """Clients that ask again as soon as they are answered.

    Some make a connection for each request, and some keep theirs until they are told otherwise. A client that has kept
    a connection may find it closed when it asks: it is told nothing then, and asks again, as browsers do. That is
    counted, as is what is lost.
    """

    app: Installed
    answered: Counter[int] = field(default_factory=Counter)  # by the process that has answered
    lost: list[str] = field(default_factory=list)
    asked_again: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _note(self, pid: int) -> None:
        with self._lock:
            self.answered[pid] += 1

    def _lose(self, what: str) -> None:
        with self._lock:
            self.lost.append(what)

    def fresh(self, target: str) -> None:
        """Ask with a connection for each request."""
        while not self._ended.is_set():
            try:
                answer = self.app.get(target)
            except (OSError, http.client.HTTPException) as error:
                self._lose(f"{target}: {error!r}")
            else:
                self._judge(target, answer)

    def keeping(self, target: str) -> None:
        """Ask over and over on one connection."""
        connection = None
        used = 0
        while not self._ended.is_set():
            try:
                if connection is None:
                    connection, used = self.app.machine.speak(self.app.port), 0
                connection.request("GET", target)
                response = connection.getresponse()
                answer = Answer(response.status, response.headers, response.read())
            except (OSError, http.client.HTTPException) as error:
                if connection is not None:
                    connection.close()
                connection = None
                if used and isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
                    with self._lock:
                        self.asked_again += 1
                else:
                    self._lose(f"{target} after {used} on its connection: {error!r}")
            else:
                self._judge(target, answer)
                used += 1
                if response.will_close:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()

    def _judge(self, target: str, answer: Answer) -> None:
        if answer.status == 200:
            self._note(int(answer.json()["pid"]))
        else:
            self._lose(f"{target}: {answer.status} {answer.text}")

    def end(self) -> None:
        self._ended.set()

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until so many more requests have been answered."""
        before = self.answered.total()
        eventually(lambda: self.answered.total() >= before + count, lambda: (self.lost, self.app.said()[-4000:]))

    def wait_for(self, pid: int) -> None:
        """Wait until that process has answered."""
        eventually(lambda: self.answered[pid], lambda: (pid, self.answered, self.lost, self.app.said()[-4000:]))


@contextlib.contextmanager
def under_load(app: Installed) -> Iterator[Load]:
    """Have clients ask while a block runs."""
    load = Load(app)
    clients = [
        threading.Thread(target=ask, args=(target,), daemon=True)
        for ask, target in itertools.product((load.fresh, load.keeping), ("/", "/slow?s=0.05", "/slow?s=0.4"))
    ]
    for client in clients:
        client.start()
    try:
        load.wait_for_more()
        yield load
        load.wait_for_more()
    finally:
        load.end()
        until = time.monotonic() + PATIENCE_S
        for client in clients:
            client.join(max(0.0, until - time.monotonic()))
