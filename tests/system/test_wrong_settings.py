"""Settings that cannot be used: the service says so and is not started again, not even by clients who ask for it."""

from __future__ import annotations

import contextlib

import pytest

from tests.system.installed import SETTINGS, Installed, installed
from tests.system.machine import Machine, eventually

pytestmark = pytest.mark.peer

WRONG = "[server]\nthreds = 4\n"


def assert_said_once(app: Installed, said: str) -> None:
    assert app.state() == "failed"
    assert app.machine.show(app.service, "ExecMainStatus") == "78"
    assert app.starts == 0
    assert app.said().count("Main process exited") == 1
    assert said in app.said()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param('[timeouts]\nheader = "10x"\n', "timeouts.header", id="a value that is none"),
        pytest.param("[server\n", "wrong.toml", id="no TOML"),
        pytest.param(WRONG, "threds", id="a setting that does not exist"),
    ],
)
def test_wrong_settings_are_said_once(machine: Machine, settings: str, said: str) -> None:
    with installed(machine, "wrong", settings=settings) as app:
        app.start(check=False)
        assert_said_once(app, said)


@pytest.mark.parametrize(
    "waits", [pytest.param(True, id="and a client waits"), pytest.param(False, id="and a client has gone")]
)
def test_behind_a_socket_unit_there_is_one_start_and_then_clients_are_refused(machine: Machine, waits: bool) -> None:
    with installed(machine, "wrong", port=8016, settings=WRONG) as app:
        with machine.connect(app.port) as asked:
            asked.sendall(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n")
            if waits:
                with contextlib.suppress(ConnectionResetError):
                    assert asked.recv(1) == b""  # told at once, and not after a timeout
        eventually(lambda: machine.show(app.socket, "ActiveState") == "inactive", app.said)
        eventually(lambda: app.state() == "failed", app.said)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                machine.connect(app.port)
        assert_said_once(app, "threds")
        # Who has mended it does as always.
        app.settings(SETTINGS)
        machine.systemctl("restart", app.service)
        assert app.get("/").json() == {"pid": app.pid}


def test_a_restart_with_wrong_settings_is_one_start_and_another_opens_all_again(machine: Machine) -> None:
    with installed(machine, "wrong", port=8016) as app:
        assert app.get("/").status == 200
        app.settings(WRONG)
        assert machine.run("systemctl", "restart", app.service, check=False).returncode != 0
        eventually(lambda: machine.show(app.socket, "ActiveState") == "inactive", app.said)
        assert app.said().count("threds") == 1
        app.settings(SETTINGS)
        machine.systemctl("restart", app.service)
        assert app.get("/").json() == {"pid": app.pid}
