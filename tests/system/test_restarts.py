"""Restarts, swaps and reloads while clients ask: nobody notices."""

from __future__ import annotations

import threading
import time

import pytest

from tests.system.installed import SETTINGS, installed, under_load
from tests.system.machine import Machine, eventually

pytestmark = pytest.mark.peer

TIMES = 20


def test_nobody_notices_a_restart(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app, under_load(app) as load:
        pids = [app.pid]
        for _ in range(TIMES):
            machine.systemctl("restart", app.service)
            pids.append(app.pid)
            load.wait_for(pids[-1])
        assert len(set(pids)) == TIMES + 1
        assert app.starts == 0
    assert load.lost == []
    print(load.answered.total(), load.asked_again)


def test_nobody_notices_a_new_process_on_the_same_sockets(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app, under_load(app) as load:
        pids = [app.pid]
        for _ in range(TIMES):
            machine.systemctl("kill", "--signal=USR2", "--kill-who=main", app.service)
            eventually(lambda: app.pid not in (0, pids[-1]), app.said)
            pids.append(app.pid)
            load.wait_for(pids[-1])
        assert len(set(pids)) == TIMES + 1
        assert app.state() == "active"
        assert app.starts == 0
        # What it was is gone, and only what it is remains.
        eventually(lambda: len(machine.show(app.service, "TasksCurrent")), app.said)
        group = machine.show(app.service, "ControlGroup")
        processes = lambda: machine.read(f"/sys/fs/cgroup{group}/cgroup.procs").split()  # noqa: E731
        eventually(lambda: len(processes()) == 1, lambda: (processes(), app.said()))
    assert load.lost == []
    print(load.answered.total(), load.asked_again)


def test_a_new_process_that_cannot_start_changes_nothing(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app, under_load(app) as load:
        before = app.pid
        app.at_import("import nothing_of_that_name")
        machine.systemctl("kill", "--signal=USR2", "--kill-who=main", app.service)
        eventually(lambda: "this one goes on" in app.said())
        assert "nothing_of_that_name" in app.said()
        load.wait_for_more()
        assert (app.pid, app.state()) == (before, "active")
        # And it can be tried again.
        app.at_import("")
        machine.systemctl("kill", "--signal=USR2", "--kill-who=main", app.service)
        eventually(lambda: app.pid not in (0, before), app.said)
        load.wait_for(app.pid)
    assert load.lost == []


def test_a_reload_is_done_when_systemctl_returns(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app:
        assert app.get("/").status == 200
        first = app.pid
        app.settings(SETTINGS.replace('"off"', '"1/hour"'))
        machine.systemctl("reload", app.service)
        assert app.pid == first
        assert [app.get("/").status for _ in range(2)] == [200, 429]


def test_a_stop_waits_for_longer_than_the_unit_says_while_requests_are_answered(machine: Machine) -> None:
    impatient = "[Service]\nTimeoutStopSec=2\n"
    with installed(machine, "shop", port=80, settings='[server]\ndrain = "30s"\n', service=impatient) as app:
        app.get("/")
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(app.get("/slow?s=8").status), daemon=True)
        client.start()
        time.sleep(1)  # the request is on its way
        app.machine.systemctl("stop", app.socket, app.service)
        client.join(30)
        assert answers == [200]
        assert app.machine.show(app.service, "Result") == "success"
