"""An app as a service: when it is said to be started, as whom it runs, what it has and where its words go."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from tests.system.installed import Installed, installed
from tests.system.machine import Machine, eventually

pytestmark = pytest.mark.peer

CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.fixture(scope="module")
def app(machine: Machine) -> Iterator[Installed]:
    """Return an app behind its socket unit on port 80."""
    with installed(
        machine,
        "shop",
        port=80,
        service="[Service]\nSetCredential=password:of-the-shop\n",
    ) as app:
        yield app


def test_it_starts_with_the_first_request_on_port_80(app: Installed) -> None:
    assert app.state() == "inactive"
    assert app.get("/").json() == {"pid": app.pid}
    assert app.state() == "active"


def test_it_is_somebody_that_exists_only_while_it_runs_and_has_no_capability(app: Installed) -> None:
    status = app.get("/status").json()
    uids = {int(uid) for uid in status["Uid"].split()}
    assert len(uids) == 1
    assert 61184 <= min(uids) <= 65519  # systemd's range for DynamicUser=
    assert {name: int(status[name], 16) for name in CAPABILITIES} == dict.fromkeys(CAPABILITIES, 0)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    # And as seen from outside, where a user namespace cannot make it look otherwise.
    seen = app.machine.read(f"/proc/{app.pid}/status")
    assert f"Uid:\t{min(uids)}\t" in seen


def test_the_app_is_told_who_asks(app: Installed) -> None:
    # The socket unit opens one socket for both.
    assert app.get("/client").json() == {"address": "127.0.0.1", "host": "127.0.0.1", "port": "80"}
    assert app.get("/client", source="::1").json()["address"] == "::1"


def test_status_says_how_it_is(app: Installed) -> None:
    shown = eventually(lambda: app.machine.show(app.service, "StatusText"))
    assert any(character.isdigit() for character in shown), shown


def test_database_and_uploads_outlive_a_restart(app: Installed) -> None:
    def count() -> int:
        return int(app.get("/count", method="POST").json()["visits"])

    content = b"\0\xffpicture" * 200_000  # more than is kept in memory
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n%b\r\n--b--\r\n' % content
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    before = count()
    assert app.get("/uploads/photo", method="POST", body=form, headers=kind).json() == {"size": len(content)}
    first = app.pid
    app.machine.systemctl("restart", app.service)
    assert app.pid != first
    assert count() == before + 1
    assert app.get("/uploads/photo").body == content
    assert app.machine.path("/var/lib/private/hardserve/shop/uploads/photo").read_bytes() == content


def test_a_secret_comes_as_a_credential_and_is_nobody_elses(app: Installed) -> None:
    assert app.get("/credential/password").text == "of-the-shop"
    directory = app.get("/environ").json()["CREDENTIALS_DIRECTORY"]
    assert "of-the-shop" not in str(app.get("/environ").json())
    assert app.machine.run("setpriv", "--reuid=nobody", "--clear-groups", "ls", directory, check=False).returncode != 0


@pytest.mark.parametrize(("level", "priority"), [("info", 6), ("warning", 4), ("error", 3), ("critical", 2)])
def test_the_journal_has_the_level_of_what_the_app_logs(app: Installed, level: str, priority: int) -> None:
    after = app.machine.cursor()
    app.get(f"/log/{level}")

    def found() -> list[str]:
        entries = app.machine.journal(app.service, after)
        return [entry["PRIORITY"] for entry in entries if f"said as {level}" in str(entry["MESSAGE"])]

    assert eventually(found) == [str(priority)]


def test_every_line_of_a_traceback_has_its_level(app: Installed) -> None:
    after = app.machine.cursor()
    assert app.get("/raise").status == 500

    def lines() -> list[dict[str, str]]:
        entries = app.machine.journal(app.service, after)
        texts = [str(entry["MESSAGE"]) for entry in entries]
        if not any("ValueError: said as a traceback" in text for text in texts):
            return []
        return entries

    traceback = [entry for entry in eventually(lines) if str(entry["MESSAGE"]).startswith("  ")]
    assert len(traceback) > 3
    assert {entry["PRIORITY"] for entry in traceback} == {"3"}


def test_started_is_what_answers(machine: Machine) -> None:
    settings = '[server]\nbind = ["127.0.0.1:8001"]\n'
    with installed(machine, "slowly", settings=settings, at_import="open('/srv/slowly/gate').read()") as app:
        gate = machine.path(f"{app.directory}/gate")
        os.mkfifo(gate)
        machine.systemctl("start", "--no-block", app.service)

        def opened() -> int:
            try:
                return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads it yet
                    raise
                return 0

        importing = eventually(opened, app.said)
        try:
            assert app.state() == "activating"
            with pytest.raises(ConnectionRefusedError):
                machine.connect(8001)
        finally:
            os.close(importing)
        # It returns when the app is imported, and there is nothing left to wait for.
        app.start()
        assert machine.http("/", port=8001).json() == {"pid": app.pid}


def test_an_app_that_cannot_be_imported_does_not_count_as_started(machine: Machine) -> None:
    with installed(
        machine, "faulty", service="[Service]\nRestart=no\n", at_import="import nothing_of_that_name"
    ) as app:
        app.start(check=False)
        assert app.state() == "failed"
        assert "nothing_of_that_name" in app.said()
