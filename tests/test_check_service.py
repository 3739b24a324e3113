"""What `hardserve check` finds wrong with systemd units, and that it says nothing of those that are shipped."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hardserve.audit.box import box_findings
from hardserve.audit.boxplace import Place
from hardserve.audit.findings import Finding
from hardserve.audit.service import CHECKS, service_findings
from hardserve.audit.serviceenv import as_systemd, differences
from hardserve.audit.servicefind import limits_of, listening_of, opened_by_systemd, units
from hardserve.audit.servicesandbox import shipped_sandbox
from hardserve.audit.serviceunits import SYSTEM_DIRECTORIES, Unit, load, parse, seconds, size, unescaped
from hardserve.configfiles import DotEnv
from hardserve.options import from_keywords, resolve
from hardserve.settings import GIB, MIB, Settings
from hardserve.units.plan import Plan
from hardserve.units.service import units_of
from hardserve.units.template import template_plan

REPOSITORY = Path(__file__).parent.parent
SHIPPED = REPOSITORY / "systemd"
APP = Place(Path("/srv/myapp"), Path("/etc/hardserve/myapp.toml"), (Path("/srv/myapp/.env"),))
SANDBOX = shipped_sandbox()
GENERATOR = "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator"
# A unit of somebody's own, in which nothing is wrong but what a test puts there.
GOOD = """\
[Unit]
Description=my app
StartLimitIntervalSec=1h
StartLimitBurst=100

[Service]
Type=notify
User=app
WorkingDirectory=/srv/myapp
ExecStart=/srv/myapp/.venv/bin/hardserve app:app
Restart=on-failure
RestartPreventExitStatus=78
RestartSec=1s
WatchdogSec=30s
TimeoutStopSec=35s
"""
SANDBOXED = GOOD + "".join(
    f"{key}=yes\n" for key in SANDBOX if key not in ("ProtectSystem", "ProtectHome", "NoExecPaths")
)
SANDBOXED += "ProtectSystem=strict\nProtectHome=yes\nNoExecPaths=/tmp\n"
UNIT = "etc/systemd/system/myapp.service"


def ids(findings: Any) -> list[str]:
    return [finding.check.id for finding in findings]


class Root:
    """A made-up root directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file("srv/myapp/app.py", "app = 1\n")
        self.file("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:4711:4711::/srv/myapp:/bin/false\n")

    def file(self, path: str, text: str | bytes = "") -> Path:
        file = self.path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def link(self, path: str, target: str) -> None:
        link = self.path / path
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, link)

    def units(self, place: Place = APP, environ: Mapping[str, str] | None = None) -> list[Unit]:
        return units(self.path, place, environ or {"HOME": "/home/me"}, prefix="/nowhere")

    def findings(self, settings: Settings | None = None, place: Place = APP, **environ: str) -> list[Finding]:
        environ = {"HOME": "/home/me", **environ}
        return list(service_findings(settings or Settings(), root=self.path, place=place, environ=environ))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def install(root: Root, *names: str) -> None:
    """Enable the shipped units for the instance myapp, as systemctl does."""
    for name in names:
        template = re.sub("@.*[.]", "@.", name)
        root.file(f"etc/systemd/system/{template}", (SHIPPED / template).read_bytes())
        wants = "sockets.target" if name.endswith(".socket") else "multi-user.target"
        root.link(f"etc/systemd/system/{wants}.wants/{name}", f"/etc/systemd/system/{template}")


# --- silence ---


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(Settings(), id="defaults"),
        *(
            pytest.param(resolve(environ={}, config=path, directory=REPOSITORY).settings, id=path.name)
            for path in sorted((REPOSITORY / "config").glob("*.toml"))
        ),
    ],
)
@pytest.mark.parametrize("with_socket", [False, True])
def test_nothing_is_said_of_the_shipped_units(root: Root, settings: Settings, with_socket: bool) -> None:
    install(root, "hardserve@myapp.service", *(["hardserve@myapp.socket"] if with_socket else []))
    (unit,) = root.units()
    assert (unit.name, unit.directory) == ("hardserve@myapp.service", "/srv/myapp")
    assert root.findings(settings) == []


@pytest.mark.parametrize("version", [250, 254])
@pytest.mark.parametrize(
    ("where", "more"),
    [
        pytest.param("/srv/myapp", {}, id="in-srv"),
        pytest.param("/srv/myapp", {"user": "app", "writable": ["-/srv/myapp/instance"]}, id="of-a-user-in-srv"),
        pytest.param("/srv/myapp", {"own_ports": True}, id="that-binds-low-ports"),
        pytest.param(
            "/home/app/myapp",
            {"user": "app", "shown": ["/home/app/myapp"], "kept": ["-/home/app/myapp/instance"]},
            id="of-a-user-at-home",
        ),
    ],
)
def test_nothing_is_said_of_units_that_are_made(root: Root, version: int, where: str, more: dict[str, Any]) -> None:
    root.file("proc/sys/net/ipv4/ip_unprivileged_port_start", "1024")
    plan = Plan(
        name="hardserve-myapp",
        title="myapp",
        head=(),
        command=f"{where}/.venv/bin/hardserve app:app",
        directory=where,
        data="hardserve/myapp",
        version=version,
        **more,
    )
    for name, text in units_of(plan).items():
        root.file(f"etc/systemd/system/{name}", text)
    root.file(f"{where}/instance/app.db", SQLITE)
    if os.geteuid() == 0:
        os.chown(root.path / where.lstrip("/") / "instance", 4711, 4711)
    settings = from_keywords(bind="0.0.0.0:80" if plan.own_ports else "0.0.0.0:8000")
    place = Place(Path(where))
    assert [unit.name for unit in root.units(place)] == ["hardserve-myapp.service"]
    found = [] if plan.user and os.geteuid() == 0 else ["unit-database-read-only"]  # the file is where it was by hand
    assert ids(root.findings(settings, place)) == found


def test_nothing_is_said_of_the_unit_that_is_made_for_a_user(root: Root) -> None:
    plan = Plan(
        name="hardserve-myapp",
        title="myapp",
        head=(),
        command="/home/me/myapp/.venv/bin/hardserve",
        directory="/home/me/myapp",
        data="hardserve/myapp",
        of_user=True,
    )
    for name, text in units_of(plan).items():
        root.file(f"home/me/.config/systemd/user/{name}", text)
    place = Place(Path("/home/me/myapp"))
    assert [unit.name for unit in root.units(place)] == ["hardserve-myapp.service"]
    assert root.findings(place=place) == []


def test_nothing_is_said_where_there_is_no_unit(root: Root) -> None:
    assert root.findings() == []


def test_nothing_is_said_of_a_good_unit_of_ones_own(root: Root) -> None:
    root.file(UNIT, SANDBOXED)
    assert root.findings() == []


def test_nothing_is_said_in_ci(root: Root) -> None:
    root.file(UNIT, GOOD.replace("User=app\n", ""))
    assert root.findings() != []
    assert root.findings(CI="true") == []


def test_every_check_has_an_id_of_its_own() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS)


# --- one fault each ---


def without(key: str, text: str = SANDBOXED) -> str:
    assert re.search(rf"(?m)^{key}=", text)
    return re.sub(rf"(?m)^{key}=.*\n", "", text)


def setting(key: str, value: str, text: str = SANDBOXED) -> str:
    return re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text) if f"\n{key}=" in text else f"{text}{key}={value}\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        pytest.param(without("User"), ["unit-as-root"], id="no-user"),
        pytest.param(setting("User", "root"), ["unit-as-root"], id="user-root"),
        pytest.param(setting("DynamicUser", "yes", without("User")), [], id="dynamic-user"),
        pytest.param(setting("Type", "simple"), ["unit-not-notify"], id="type-simple"),
        pytest.param(without("Type"), ["unit-not-notify"], id="no-type"),
        pytest.param(setting("Type", "notify-reload"), [], id="type-notify-reload"),
        pytest.param(setting("Type", "forking"), ["unit-type"], id="type-forking"),
        pytest.param(without("WorkingDirectory"), ["unit-directory"], id="no-working-directory"),
        pytest.param(without("Restart"), ["unit-no-restart"], id="no-restart"),
        pytest.param(setting("Restart", "no"), ["unit-no-restart"], id="restart-no"),
        pytest.param(setting("Restart", "always"), [], id="restart-always"),
        pytest.param(without("RestartPreventExitStatus"), ["unit-restarts-on-bad-settings"], id="no-prevent"),
        pytest.param(setting("RestartPreventExitStatus", "2 CONFIG"), [], id="prevent-by-name"),
        pytest.param(setting("RestartPreventExitStatus", "2"), ["unit-restarts-on-bad-settings"], id="prevent-another"),
        pytest.param(without("WatchdogSec"), ["unit-no-watchdog"], id="no-watchdog"),
        pytest.param(setting("WatchdogSec", "0"), ["unit-no-watchdog"], id="watchdog-0"),
        pytest.param(setting("TimeoutStopSec", "5s"), [], id="a-server-that-notifies-asks-for-time"),
        pytest.param(setting("TasksMax", "10"), ["unit-tasks"], id="few-tasks"),
        pytest.param(setting("TasksMax", "infinity"), [], id="any-tasks"),
        pytest.param(setting("TasksMax", "20%"), [], id="a-part-of-all-tasks"),
        pytest.param(
            without("RestartSec", without("StartLimitIntervalSec", without("StartLimitBurst"))),
            ["unit-gives-up"],
            id="systemds-own-limits",
        ),
        pytest.param(
            setting("RestartSec", "5s", without("StartLimitIntervalSec", without("StartLimitBurst"))),
            [],
            id="systemds-own-limits-that-are-never-reached",
        ),
        pytest.param(
            setting("RestartSec", "100ms", setting("StartLimitIntervalSec", "0")),
            ["unit-restarts-for-ever"],
            id="no-limits-and-no-delay",
        ),
        pytest.param(setting("StartLimitIntervalSec", "0"), [], id="no-limits-with-a-delay"),
    ],
)
def test_one_fault_in_a_unit(root: Root, unit: str, expected: list[str]) -> None:
    root.file(UNIT, unit)
    assert ids(root.findings()) == expected


@pytest.mark.parametrize(
    ("stop", "drain", "expected"),
    [
        pytest.param("10s", "25s", True, id="shorter"),
        pytest.param("1min", "25s", False, id="longer"),
        pytest.param("", "25s", False, id="the-default"),
        pytest.param("", "2m", True, id="the-default-and-a-long-drain"),
        pytest.param("infinity", "2m", False, id="infinity"),
        pytest.param("0", "2m", False, id="0-is-infinity"),
    ],
)
def test_a_stop_that_is_cut(root: Root, stop: str, drain: str, expected: bool) -> None:
    unit = setting("Type", "exec", without("WatchdogSec", without("TimeoutStopSec")))
    root.file(UNIT, unit + (f"TimeoutStopSec={stop}\n" if stop else ""))
    found = ids(root.findings(from_keywords(drain=drain)))
    assert ("unit-stop-timeout" in found) is expected
    # With a watchdog systemd listens to what the server says, and it asks for more time.
    root.file(UNIT, unit + (f"TimeoutStopSec={stop}\n" if stop else "") + "WatchdogSec=30s\n")
    assert "unit-stop-timeout" not in ids(root.findings(from_keywords(drain=drain)))


def test_an_app_in_a_home_that_is_hidden(root: Root) -> None:
    place = Place(Path("/home/me/app"))
    text = SANDBOXED.replace("/srv/myapp", "/home/me/app")
    for unit, expected in (
        (text, ["unit-home-hidden"]),
        (setting("ProtectHome", "read-only", text), []),
        (text + "BindReadOnlyPaths=/home/me/app\n", []),
    ):
        root.file(UNIT, unit)
        assert ids(root.findings(place=place)) == expected


@pytest.mark.parametrize(
    ("settings", "more", "free", "expected"),
    [
        pytest.param(from_keywords(bind="0.0.0.0:80"), "", "1024", ["low-port"], id="port-80"),
        pytest.param(
            from_keywords(bind="0.0.0.0:80"), "AmbientCapabilities=CAP_NET_BIND_SERVICE\n", "1024", [], id="cap"
        ),
        pytest.param(from_keywords(bind="0.0.0.0:80"), "", "80", [], id="port-80-is-everybodys"),
        pytest.param(from_keywords(bind="0.0.0.0:8000"), "", "1024", [], id="port-8000"),
    ],
)
def test_a_port_that_the_service_may_not_open(
    root: Root, settings: Settings, more: str, free: str, expected: list[str]
) -> None:
    root.file("proc/sys/net/ipv4/ip_unprivileged_port_start", free)
    root.file(UNIT, SANDBOXED + more)
    assert ids(root.findings(settings)) == expected
    root.file("etc/systemd/system/myapp.socket", "[Socket]\nListenStream=80\n")
    root.link("etc/systemd/system/sockets.target.wants/myapp.socket", "/etc/systemd/system/myapp.socket")
    assert ids(root.findings(settings)) == []


def test_a_unit_without_a_sandbox(root: Root) -> None:
    root.file(UNIT, GOOD)
    (finding,) = root.findings()
    assert finding.check.id == "unit-without-sandbox"
    assert "is without NoNewPrivileges=, " in finding.evidence
    assert f"{len(SANDBOX)} of {len(SANDBOX)}" in finding.evidence


@pytest.mark.parametrize(
    ("unit", "missing"),
    [
        pytest.param(without("ProtectClock"), "ProtectClock=", id="one-is-missing"),
        pytest.param(setting("ProtectSystem", "full"), "ProtectSystem=", id="one-is-weaker"),
        pytest.param(setting("LockPersonality", "no"), "LockPersonality=", id="one-is-off"),
        pytest.param(setting("MemoryDenyWriteExecute", "no"), "", id="one-that-an-app-may-need-is-off"),
        pytest.param(without("NoNewPrivileges"), "", id="one-follows-from-others"),
        pytest.param(setting("CapabilityBoundingSet", ""), "", id="one-is-empty-which-is-most"),
        pytest.param(setting("AmbientCapabilities", "CAP_NET_BIND_SERVICE", without("PrivateUsers")), "", id="ports"),
    ],
)
def test_a_unit_that_is_weaker(root: Root, unit: str, missing: str) -> None:
    root.file(UNIT, unit)
    findings = root.findings()
    assert ids(findings) == (["unit-weaker"] if missing else [])
    assert all(f"without {missing}," in finding.evidence for finding in findings)


@pytest.mark.parametrize("of_user", [False, True])
def test_the_sandbox_is_that_of_the_units_that_are_made(of_user: bool) -> None:
    text = "\n".join(units_of(replace(template_plan(), of_user=of_user)).values())
    said = {key for section, key in parse([text]) if section == "Service"}
    kinds = re.compile(r"Protect|Restrict|Private|NoExec|NoNew|Lock|MemoryDeny|SystemCallF|Capab|UMask|Proc|RemoveIPC")
    hardening = {key for key in said if kinds.match(key)} - {"PrivateMounts"}  # follows from others
    assert set(shipped_sandbox(of_user=of_user)) == hardening | {"SystemCallArchitectures"}


# --- EnvironmentFile= ---


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        pytest.param("A=1\n", "A", "1", id="plain"),
        pytest.param("A=1", "A", "1", id="without-a-line-end"),
        pytest.param('A="x y"\n', "A", "x y", id="double-quotes"),
        pytest.param("A='x y'\n", "A", "x y", id="single-quotes"),
        pytest.param("A=x # y\n", "A", "x # y", id="a-comment-that-is-none"),
        pytest.param('A="x" # y\n', "A", "x# y", id="a-comment-after-quotes"),
        pytest.param("A=x\\\ny\n", "A", "xy", id="a-line-that-goes-on"),
        pytest.param('A="x\\ny"\n', "A", "x\\ny", id="no-escape-but-a-few"),
        pytest.param('A="x\\"y"\n', "A", 'x"y', id="an-escaped-quote"),
        pytest.param("A=x   \n", "A", "x", id="blanks-at-the-end"),
        pytest.param("  A  =  x\n", "A", "x", id="blanks-around"),
        pytest.param("export A=1\n", "A", None, id="export"),
        pytest.param("; A=1\n# A=2\n", "A", None, id="comments"),
        pytest.param("A\n", "A", None, id="no-value"),
        pytest.param("A=\n", "A", "", id="empty"),
        pytest.param('A="x\ny"\n', "A", "x\ny", id="two-lines"),
        pytest.param("A=${HOME}\n", "A", "${HOME}", id="no-variables"),
    ],
)
def test_what_systemd_reads(text: str, name: str, value: str | None) -> None:
    assert as_systemd(text).get(name) == value


@pytest.mark.peer
@pytest.mark.skipif(not os.path.exists(GENERATOR), reason="needs systemd's environment.d generator")
def test_it_reads_like_systemd_itself(tmp_path: Path) -> None:
    """environment.d has the same syntax, but for variables, empty values and what we do not give it."""
    chance = random.Random(7)
    pieces = ["A", "B", "=", "=", "'", '"', "\\", "\n", " ", "#", ";", "export ", "x", "n", "\t"]
    (tmp_path / "environment.d").mkdir()
    for _ in range(60):
        text = "A=" + "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 25)))
        (tmp_path / "environment.d/x.conf").write_text(text)
        done = subprocess.run(
            [GENERATOR],
            env={"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        theirs = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        ours = {name: value for name, value in as_systemd(text).items() if value.strip()}
        assert {name: unquoted(value) for name, value in theirs.items() if name in ("A", "B", "AB", "BA", "x")} == {
            name: value for name, value in ours.items() if name in ("A", "B", "AB", "BA", "x")
        }, text


def unquoted(text: str) -> str:
    """Read a value as systemd writes it for a shell."""
    text = re.sub(r'^\$?(["\'])(.*)\1$', r"\2", text, flags=re.DOTALL)
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t", "r": "\r"}.get(match[1], match[1]), text)


@pytest.mark.parametrize(
    ("line", "how"),
    [
        pytest.param("A=secret # why", "comment", id="comment"),
        pytest.param('A="secret" # why', "comment", id="comment-after-quotes"),
        pytest.param("export A=secret", "not set", id="export"),
        pytest.param("A=${B}secret", "${...}", id="variable"),
        pytest.param('A="secret\\nsecret"', "backslashes", id="escape"),
        pytest.param("A=secret", "", id="plain"),
        pytest.param('A="a secret"', "", id="double-quotes"),
        pytest.param("A='a secret'", "", id="single-quotes"),
        pytest.param("# A=secret", "", id="a-comment"),
    ],
)
def test_which_lines_differ_and_how_without_the_secret(tmp_path: Path, line: str, how: str) -> None:
    file = tmp_path / ".env"
    file.write_text(f"B=b\n{line}\n")
    loaded = DotEnv.load(Path(".env"), directory=tmp_path)
    said = differences(file.read_text(), loaded.values, loaded.origins)
    assert len(said) == bool(how)
    assert all(how in each and each.startswith(".env:2 A (") and "secret" not in each for each in said)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("/srv/myapp/.env", ["unit-environment-file"], id="the-apps"),
        pytest.param("-/srv/myapp/.env", ["unit-environment-file"], id="with-a-dash"),
        pytest.param("/etc/default/myapp", [], id="one-that-was-written-for-systemd"),
    ],
)
def test_a_dotenv_file_that_systemd_reads(root: Root, value: str, expected: list[str]) -> None:
    root.file("srv/myapp/.env", "export SECRET_KEY=hunter2\nNAME=x # a comment\nPLAIN=1\n")
    root.file("etc/default/myapp", "NAME=x # a comment\n")
    root.file(UNIT, setting("EnvironmentFile", value))
    findings = root.findings()
    assert ids(findings) == expected
    for finding in findings:
        assert ".env:1 SECRET_KEY (" in finding.evidence
        assert ".env:2 NAME (" in finding.evidence
        assert "PLAIN" not in finding.evidence
        assert "hunter2" not in finding.evidence
    root.file("srv/myapp/.env", "PLAIN=1\n")
    assert root.findings() == []


# --- what it may write ---

SQLITE = b"SQLite format 3\0" + bytes(84)


def test_a_database_that_the_unit_makes_read_only(root: Root) -> None:
    root.file("srv/myapp/instance/app.db", SQLITE)
    root.file(UNIT, SANDBOXED)
    (finding,) = root.findings()
    assert finding.check.id == "unit-database-read-only"
    assert "one is in /srv/myapp/instance, which" in finding.evidence
    root.file(UNIT, SANDBOXED + "ReadWritePaths=/srv/myapp/instance\n")
    os.chown(root.path / "srv/myapp/instance", 4711, 4711) if os.geteuid() == 0 else None
    if os.geteuid() == 0:
        assert root.findings() == []
    root.file("srv/myapp/instance/app.db", b"no database")
    assert root.findings() == []


def test_a_dynamic_user_owns_nothing_of_the_app(root: Root) -> None:
    install(root, "hardserve@myapp.service")
    root.file("srv/myapp/data.sqlite3", SQLITE)
    assert ids(root.findings()) == ["unit-database-read-only"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files away")
def test_code_that_the_service_may_change(root: Root) -> None:
    app = root.path / "srv/myapp/app.py"
    os.chown(app, 4711, 4711)
    root.file(UNIT, setting("ProtectSystem", "full"))
    assert ids(root.findings()) == ["unit-weaker", "unit-app-writable"]
    root.file(UNIT, SANDBOXED)
    assert root.findings() == []
    os.chown(app, 0, 0)
    root.file(UNIT, setting("ProtectSystem", "full"))
    assert ids(root.findings()) == ["unit-weaker"]


# --- which units there are ---


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        pytest.param(GOOD, True, id="by-its-directory"),
        pytest.param(without("WorkingDirectory", GOOD), True, id="by-its-program"),
        pytest.param(setting("WorkingDirectory", "/srv/other", GOOD), False, id="that-of-another-app"),
        pytest.param(setting("ExecStart", "/usr/bin/gunicorn app:app", GOOD), False, id="another-server"),
        pytest.param(setting("ExecStart", "/srv/myapp/.venv/bin/python -m hardserve app:app", GOOD), True, id="module"),
        pytest.param(setting("ExecStart", "-/bin/sh -c 'exec hardserve app:app'", GOOD), True, id="by-a-shell"),
        pytest.param(
            setting(
                "WorkingDirectory", "/", setting("ExecStart", "/x/hardserve --config /etc/hardserve/myapp.toml", GOOD)
            ),
            True,
            id="by-its-settings",
        ),
        pytest.param(
            without("WorkingDirectory", setting("ExecStart", "/opt/x/bin/hardserve --config=/etc/x/other.toml", GOOD)),
            False,
            id="settings-of-another",
        ),
    ],
)
def test_whose_a_unit_is(root: Root, unit: str, expected: bool) -> None:
    root.file(UNIT, unit)
    assert bool(root.units()) is expected


def test_a_unit_of_the_same_environment_is_the_apps(root: Root) -> None:
    root.file(UNIT, without("WorkingDirectory", GOOD).replace("/srv/myapp/", "/opt/venv/../"))
    root.file(UNIT, without("WorkingDirectory", GOOD).replace("/srv/myapp/.venv", "/opt/venv"))
    assert units(root.path, APP, {}, prefix="/opt/venv") != []
    assert units(root.path, APP, {}, prefix="/opt/another") == []


def test_an_instance_that_is_not_enabled_yet_is_found_by_its_settings(root: Root) -> None:
    root.file("etc/systemd/system/hardserve@.service", (SHIPPED / "hardserve@.service").read_bytes())
    assert [unit.name for unit in root.units()] == ["hardserve@myapp.service"]
    assert root.units(Place(Path("/srv/other"))) == []


def test_a_users_own_unit(root: Root) -> None:
    place = Place(Path("/home/me/app"))
    text = "[Service]\nType=notify\nWorkingDirectory=%h/app\nExecStart=%h/app/.venv/bin/hardserve\n"
    root.file("home/me/.config/systemd/user/myapp.service", text)
    (unit,) = root.units(place)
    assert (unit.of_user, unit.directory) == (True, "/home/me/app")
    found = ids(root.findings(place=place))
    assert "unit-as-root" not in found
    assert "unit-no-restart" in found


def test_drop_ins_count_more_and_those_of_etc_most(root: Root) -> None:
    install(root, "hardserve@myapp.service")
    root.file("usr/lib/systemd/system/hardserve@.service.d/a.conf", "[Service]\nMemoryMax=100M\nUMask=0000\n")
    root.file("etc/systemd/system/hardserve@myapp.service.d/a.conf", "[Service]\nMemoryMax=200M\n")
    root.file("etc/systemd/system/hardserve@myapp.service.d/b.conf", "[Service]\nExecStart=\nExecStart=/x/hardserve\n")
    (unit,) = root.units()
    assert unit.get("MemoryMax") == "200M"
    assert unit.get("UMask") == "0077"
    assert unit.words == ["/x/hardserve"]
    assert unit.drop_ins == (
        "/etc/systemd/system/hardserve@myapp.service.d/a.conf",
        "/etc/systemd/system/hardserve@myapp.service.d/b.conf",
    )


def test_drop_ins_of_names_that_begin_alike_and_of_all_services(root: Root) -> None:
    unit = "etc/systemd/system/hardserve-myapp.service"
    root.file(unit, GOOD)
    root.file("etc/systemd/system/service.d/z.conf", "[Service]\nUMask=0001\nNice=1\n")
    root.file("etc/systemd/system/hardserve-.service.d/z.conf", "[Service]\nUMask=0002\n")
    (found,) = root.units()
    assert (found.get("UMask"), found.get("Nice")) == ("0002", "")


def test_a_masked_unit_is_none(root: Root) -> None:
    root.file("usr/lib/systemd/system/myapp.service", GOOD)
    assert root.units() != []
    root.link(UNIT, "/dev/null")
    assert root.units() == []


def test_specifiers() -> None:
    unit = Unit("web-x@my-app.service", "", {("Service", "A"): ("%i %I %p %j %n %N %% %S/%i %f %z",)})
    assert unit.get("A") == "my-app my/app web-x x web-x@my-app.service web-x@my-app % /var/lib/my-app /my/app %z"
    assert unescaped(r"my\x2dapp") == "my-app"


def test_the_syntax_of_units() -> None:
    text = "[Service]\n# no\n; no\nA=1\nA=2\nB=x \\\n  # between\n  y\nC=1\nC=\nC=3\nbroken\n[Install]\nA=9\n"
    assert parse([text, "[Service]\nA=\n"]) == {
        ("Service", "A"): (),
        ("Service", "B"): ("x  y",),
        ("Service", "C"): ("3",),
        ("Install", "A"): ("9",),
    }


def test_time_spans_and_sizes() -> None:
    assert [seconds(text) for text in ("30", "1min 30s", "100ms", "infinity", "5min20s", "", "soon")] == [
        30, 90, 0.1, math.inf, 320, None, None,
    ]  # fmt: skip
    assert [size(text, GIB) for text in ("512M", "1.5G", "75%", "1024", "infinity", "", "much")] == [
        512 * MIB, 1.5 * GIB, 0.75 * GIB, 1024, math.inf, None, None,
    ]  # fmt: skip


# --- what the box's half is told of a unit ---


def test_sockets_take_the_place_of_the_settings(root: Root) -> None:
    install(root, "hardserve@myapp.service", "hardserve@myapp.socket", "hardserve-redirect@myapp.socket")
    root.file("etc/systemd/system/hardserve@.socket", "[Socket]\nListenStream=80\nListenStream=/run/%i.sock\n")
    (unit,) = root.units()
    assert listening_of(root.path, unit) == ["[::]:80", "unix:/run/myapp.sock"]
    root.file(
        "etc/systemd/system/hardserve@myapp.socket.d/p.conf", "[Socket]\nListenStream=\nListenStream=127.0.0.1:81\n"
    )
    assert listening_of(root.path, unit) == ["127.0.0.1:81"]


def test_a_socket_that_the_service_requires_is_open(root: Root) -> None:
    root.file(UNIT, GOOD.replace("[Unit]\n", "[Unit]\nRequires=myapp.socket\n"))
    root.file("etc/systemd/system/myapp.socket", "[Socket]\nListenStream=127.0.0.1:80\n")
    assert opened_by_systemd(root.path, APP, {}) == ["127.0.0.1:80"]
    assert opened_by_systemd(root.path, Place(Path("/srv/other")), {}) is None


def test_a_socket_that_is_not_enabled_opens_nothing(root: Root) -> None:
    install(root, "hardserve@myapp.service", "hardserve@other.socket")
    (unit,) = root.units()
    assert listening_of(root.path, unit) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("MemoryMax=75%\nLimitNOFILE=1024:35000\n", (750, 35_000), id="of-the-box"),
        pytest.param("MemoryMax=infinity\nLimitNOFILE=infinity\n", (None, None), id="no-limits"),
        pytest.param("", (None, None), id="nothing"),
    ],
)
def test_limits_of_a_unit(text: str, expected: tuple[int | None, int | None]) -> None:
    assert limits_of(Unit("x.service", "", parse(["[Service]\n" + text])), 1000, None) == expected


def test_the_limits_of_the_unit_are_those_that_count(root: Root) -> None:
    root.file("proc/meminfo", "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n")
    root.file(UNIT, GOOD + "LimitNOFILE=1000\nMemoryMax=64M\n")
    found = box_findings(Settings(), root=root.path, place=APP, environ={}, user=0)
    assert {"descriptors", "memory-caps"} <= (seen := set(ids(found)))
    assert "running-as-root" not in seen  # the unit says who it runs as


def test_a_template_is_read_for_its_instance(root: Root) -> None:
    install(root, "hardserve@myapp.service")
    unit = load(root.path, "hardserve@other.service", SYSTEM_DIRECTORIES)
    assert unit is not None
    assert unit.directory == "/srv/other"
    assert load(root.path, "nothing.service", SYSTEM_DIRECTORIES) is None
