"""Restarts and swaps while clients ask: nobody notices."""

from __future__ import annotations

import pytest

from tests.system.installed import installed
from tests.system.load import under_load
from tests.system.machine import Machine, eventually

pytestmark = pytest.mark.peer

TIMES = 20


def test_nobody_notices_a_restart(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app, under_load(app) as load:
        pids = [app.pid]
        for _ in range(TIMES):
            machine.systemctl("restart", app.service)
            pids.append(load.wait_for_another(pids))
        assert app.pid == pids[-1]
        assert set(load.answered) == set(pids)
        assert app.starts == 0
        # Waiting clients did not have systemd think that something starts it over and over, however fast this was.
        assert machine.show(app.socket, "Result") == "success"
    print(load)
    assert load.lost == []


def test_nobody_notices_a_new_process_on_the_same_sockets(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app, under_load(app) as load:
        pids = [app.pid]
        for _ in range(TIMES):
            app.signal("USR2")
            pids.append(load.wait_for_another(pids))
            # The former one is gone; before, the new one may not be the service yet.
            eventually(lambda: len(app.processes()) == 1, app.said)
        assert app.pid == pids[-1]
        assert set(load.answered) == set(pids)
        assert (app.state(), app.starts) == ("active", 0)
    print(load)
    assert load.lost == []


def test_what_has_taken_over_is_what_systemd_looks_after(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app:
        first = app.get("/").json()["pid"]
        app.signal("USR2")
        eventually(lambda: app.pid != first and len(app.processes()) == 1, app.said)
        second = app.get("/").json()["pid"]
        assert second == app.pid
        app.signal("SEGV")  # nobody else is its parent
        eventually(lambda: app.starts == 1, app.said)
        assert app.get("/").json()["pid"] not in (first, second)


def test_a_new_process_that_cannot_start_changes_nothing(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app, under_load(app) as load:
        before = app.pid
        app.at_import("import nothing_of_that_name")
        app.signal("USR2")
        eventually(lambda: "this one goes on" in app.said())
        assert "nothing_of_that_name" in app.said()
        load.wait_for_more()
        assert (app.pid, app.state()) == (before, "active")
        # And it can be tried again.
        app.at_import("")
        app.signal("USR2")
        after = load.wait_for_another([before])
        eventually(lambda: app.pid == after, app.said)
    assert load.lost == []
