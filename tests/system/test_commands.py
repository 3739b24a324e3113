"""`hardserve systemd` and `hardserve check` where there is a systemd: units come, are changed and go."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.system.debian import VENV
from tests.system.installed import APP, installed
from tests.system.machine import Machine

pytestmark = pytest.mark.peer

SYSTEM_UNITS = "/etc/systemd/system"
USER = "anna"


def hardserve(
    machine: Machine, directory: str, *arguments: str, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Type `hardserve ...` in a directory."""
    typed = [*before, "env", f"--chdir={directory}", f"{VENV}/bin/hardserve", *arguments]
    return machine.run(*typed, check=False)


def units_in(machine: Machine, directory: str) -> set[str]:
    return {path.name for path in machine.path(directory).glob("hardserve-house*") if path.is_file()}


@pytest.fixture
def house(machine: Machine) -> Iterator[str]:
    """Return the directory of an app that nobody has installed yet."""
    directory = "/srv/house"
    machine.write(f"{directory}/app.py", APP.read_text())
    yield directory
    hardserve(machine, directory, "systemd", "--remove")
    machine.remove(directory)


def test_install_changes_what_has_changed_and_remove_leaves_the_data(machine: Machine, house: str) -> None:
    install = ("systemd", "app:app", "--bind", "0.0.0.0:80", "--install")
    service, socket = "hardserve-house.service", "hardserve-house.socket"

    done = hardserve(machine, house, *install)
    assert done.returncode == 0, done
    assert units_in(machine, SYSTEM_UNITS) == {service, socket}
    pid = machine.http("/").json()["pid"]
    assert int(machine.show(service, "MainPID")) == pid
    assert machine.systemctl("is-enabled", service, socket).split() == ["enabled"] * 2
    assert machine.http("/count", method="POST").json() == {"visits": 1}

    done = hardserve(machine, house, *install)
    assert done.returncode == 0, done
    assert done.stdout.startswith("nothing to change"), done
    assert machine.http("/").json() == {"pid": pid}

    done = hardserve(machine, house, *install, "--threads", "3")
    assert done.returncode == 0, done
    assert f"changed {SYSTEM_UNITS}/{service}" in done.stdout
    assert socket not in done.stdout
    assert machine.http("/").json()["pid"] != pid
    assert machine.http("/count", method="POST").json() == {"visits": 2}

    done = hardserve(machine, house, "systemd", "--remove")
    assert done.returncode == 0, done
    assert units_in(machine, SYSTEM_UNITS) == set()
    assert not list(machine.path(SYSTEM_UNITS).glob("*/hardserve-house*"))
    assert machine.show(service, "LoadState") == "not-found"
    with pytest.raises(ConnectionRefusedError):
        machine.connect(80)
    assert machine.path("/var/lib/private/hardserve/house/app.db").exists()

    done = hardserve(machine, house, "systemd", "--remove")
    assert done.returncode == 0, done
    assert done.stdout.startswith("nothing to remove"), done


def test_an_app_that_cannot_start_is_said_with_its_last_words(machine: Machine, house: str) -> None:
    machine.write(f"{house}/app.py", "import nothing_of_that_name\n")
    done = hardserve(machine, house, "systemd", "app:app", "--install")
    assert done.returncode == 1, done
    assert "nothing_of_that_name" in done.stderr, done
    # It is mended, and typed again.
    machine.write(f"{house}/app.py", APP.read_text())
    done = hardserve(machine, house, "systemd", "app:app", "--install")
    assert done.returncode == 0, done
    assert machine.http("/", port=8000).status == 200


@pytest.fixture
def user(machine: Machine) -> Iterator[tuple[str, ...]]:
    """Return what has a command run as a user who has a systemd of their own."""
    machine.run("useradd", "--create-home", USER)
    uid = machine.run("id", "-u", USER).stdout.strip()
    machine.run("loginctl", "enable-linger", USER)
    # Which starts it at some time; this waits for it.
    machine.systemctl("start", f"user@{uid}.service")
    yield (
        *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--reset-env"),
        *("env", f"XDG_RUNTIME_DIR=/run/user/{uid}"),
    )
    machine.run("loginctl", "disable-linger", USER)
    machine.systemctl("stop", f"user@{uid}.service")
    machine.run("userdel", "--force", "--remove", USER, check=False)  # it complains of a mailbox that there is not


def test_a_user_has_it_in_a_systemd_of_their_own(machine: Machine, user: tuple[str, ...]) -> None:
    directory = f"/home/{USER}/house"
    machine.write(f"{directory}/app.py", APP.read_text())
    machine.run("chown", "-R", USER, directory)
    install = ("systemd", "app:app", "--user", "--bind", "127.0.0.1:8021", "--install")
    units = f"/home/{USER}/.config/systemd/user"

    done = hardserve(machine, directory, *install, before=user)
    assert done.returncode == 0, done
    assert units_in(machine, units) == {"hardserve-house.service"}
    status = machine.http("/status", port=8021).json()
    assert set(status["Uid"].split()) == {machine.run("id", "-u", USER).stdout.strip()}
    assert status["NoNewPrivs"] == "1"

    done = hardserve(machine, directory, *install, before=user)
    assert done.stdout.startswith("nothing to change"), done

    done = hardserve(machine, directory, "systemd", "--user", "--remove", before=user)
    assert done.returncode == 0, done
    assert units_in(machine, units) == set()
    with pytest.raises(ConnectionRefusedError):
        machine.connect(8021)


def test_the_audit_has_nothing_to_say_about_the_shipped_units_and_finds_what_was_taken_out(machine: Machine) -> None:
    def found() -> tuple[int, set[str]]:
        done = hardserve(machine, app.directory, "check", "app:app", "--config", app.file, "--json")
        return done.returncode, {finding["id"] for finding in json.loads(done.stdout)}

    with installed(machine, "audited", port=8022) as app:
        app.start()
        assert found() == (0, set())
        app.drop_in("service", "[Service]\nRestartPreventExitStatus=\nWatchdogSec=0\nProtectKernelTunables=no\n")
        machine.systemctl("daemon-reload")
        code, ids = found()
        assert code == 1
        assert ids >= {"unit-restarts-on-bad-settings", "unit-no-watchdog", "unit-weaker"}
        assert all(each.startswith("unit-") for each in ids)
