"""`systemctl reload`: what has changed is in force, in the same process, and what is wrong changes nothing.

With systemd 252, whose units cannot say Type=notify-reload, systemctl does not wait for it.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator

import pytest
from werkzeug.security import generate_password_hash

from tests.certs import Authority
from tests.passwords import CHEAP
from tests.system.installed import SETTINGS, Installed, installed
from tests.system.machine import Machine, eventually

pytestmark = pytest.mark.peer

# Who may read keys and the users file, as a user that exists only while the service runs: a group may.
GROUP = "ssl-cert"
FILES = "/etc/hardserve/safe"
SAFE = f"""
[tls]
certificate = "{FILES}.crt"
key = "{FILES}.key"
[auth]
users = "{FILES}.users"
required = "on"
failures = "1000/minute"
"""


def reload(app: Installed) -> None:
    app.machine.systemctl("reload", app.service)


def test_other_settings_are_in_force_in_the_same_process(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app:
        first = app.get("/").json()
        assert app.get("/stream?s=0").status == 200
        app.settings(SETTINGS + '[[rate_limit]]\npath = "/stream"\nlimit = "1/hour"\n')
        reload(app)
        eventually(lambda: "hardserve: reloaded: " in app.said(), app.said)
        assert [app.get("/stream?s=0").status for _ in range(2)] == [200, 429]
        assert app.get("/").json() == first
        assert (app.state(), app.pid) == ("active", first["pid"])


def test_settings_that_cannot_be_used_change_nothing(machine: Machine) -> None:
    with installed(machine, "shop", port=80) as app:
        first = app.get("/").json()
        app.settings(SETTINGS + '[access]\ndeny = ["loopback"]\n[timeouts]\nheader = "10x"\n')
        reload(app)
        eventually(lambda: "not reloaded: 1 problem" in app.said(), app.said)
        assert "timeouts.header" in app.said()
        assert app.get("/").json() == first
        # What can be used but not while it runs is said, too.
        app.settings(SETTINGS + "[server]\nthreads = 3\n")
        reload(app)
        eventually(lambda: "server.threads: 8 -> 3 needs a restart" in app.said(), app.said)
        assert app.get("/").json() == first


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def safe(machine: Machine, authority: Authority) -> Iterator[Installed]:
    """Return an app with HTTPS on port 443 and users, which reads all of that from files."""
    machine.run("groupadd", "--force", "--system", GROUP)
    set_certificate(machine, authority)
    set_password(machine, "the first")
    with installed(
        machine, "safe", port=443, settings=SAFE, service=f"[Service]\nSupplementaryGroups={GROUP}\n"
    ) as app:
        yield app
    machine.remove(f"{FILES}.crt", f"{FILES}.key", f"{FILES}.users")


def set_certificate(machine: Machine, authority: Authority) -> int:
    """Write a new certificate; return its number."""
    made = authority.leaf("box")
    machine.write(f"{FILES}.crt", made.chain_pem)
    write_for_group(machine, f"{FILES}.key", made.key_pem())
    return made.certificate.serial_number


def set_password(machine: Machine, password: str) -> None:
    write_for_group(machine, f"{FILES}.users", f"anna:{generate_password_hash(password, CHEAP)}\n")


def write_for_group(machine: Machine, path: str, text: str) -> None:
    machine.write(path, text, 0o640)
    machine.run("chgrp", GROUP, path)


def asked(app: Installed, authority: Authority, password: str) -> tuple[int, int]:
    """Return the number of the certificate and the status."""
    said = base64.b64encode(f"anna:{password}".encode()).decode()
    context = ssl.create_default_context(cadata=authority.pem)
    with context.wrap_socket(app.machine.connect(443), server_hostname="box") as connected:
        certificate = connected.getpeercert()
        assert certificate is not None
        connected.sendall(
            f"GET / HTTP/1.1\r\nHost: box\r\nAuthorization: Basic {said}\r\nConnection: close\r\n\r\n".encode()
        )
        return int(str(certificate["serialNumber"]), 16), int(connected.recv(100).split()[1])


def test_another_certificate_is_in_force(safe: Installed, authority: Authority) -> None:
    before, status = asked(safe, authority, "the first")
    assert status == 200
    pid = safe.pid
    after = set_certificate(safe.machine, authority)
    reload(safe)
    eventually(lambda: asked(safe, authority, "the first") == (after, 200), safe.said)
    assert before != after
    assert safe.pid == pid


def test_other_users_are_in_force(safe: Installed, authority: Authority) -> None:
    assert [asked(safe, authority, each)[1] for each in ("the first", "the second")] == [200, 401]
    pid = safe.pid
    set_password(safe.machine, "the second")
    reload(safe)
    eventually(lambda: asked(safe, authority, "the second")[1] == 200, safe.said)
    assert asked(safe, authority, "the first")[1] == 401
    assert safe.pid == pid
