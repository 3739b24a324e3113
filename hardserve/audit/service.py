"""What is wrong with the systemd units that the app runs under, if there are any.

Main thread, of a command. A unit is read as systemd reads it (serviceunits, servicefind); judging is pure, but for the
few questions about files that ServiceFacts answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hardserve.addresses import ports
from hardserve.audit.boxplace import Place, below, is_ci, number, read
from hardserve.audit.boxreach import LOW_PORT
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.servicedata import CHECKS as DATA_CHECKS
from hardserve.audit.servicedata import DataFacts, data_facts, data_findings
from hardserve.audit.serviceenv import differences
from hardserve.audit.servicefind import listening_of, units
from hardserve.audit.servicerestarts import CHECKS as RESTART_CHECKS
from hardserve.audit.servicerestarts import restart_findings
from hardserve.audit.servicesandbox import CHECKS as SANDBOX_CHECKS
from hardserve.audit.servicesandbox import sandbox_findings
from hardserve.audit.serviceunits import Unit
from hardserve.configfiles import DotEnv
from hardserve.settings import Settings

__all__ = ["CHECKS", "ServiceFacts", "service_findings"]

AS_ROOT = Check(
    "unit-as-root",
    Severity.WARNING,
    "the systemd unit runs the app as root",
    "whoever finds a hole in it has the whole box",
    "DynamicUser=yes, or User=NAME, in [Service]",
)
TYPE = Check(
    "unit-type",
    Severity.ERROR,
    "the systemd unit waits for what never comes",
    "systemd ends the server when it has waited long enough",
    "Type=notify, in [Service]",
)
NOT_NOTIFY = Check(
    "unit-not-notify",
    Severity.NOTE,
    "systemd is not told when the app serves",
    "a start counts as done before the app is imported, and what starts after it finds nothing",
    "Type=notify, in [Service]",
)
DIRECTORY = Check(
    "unit-directory",
    Severity.WARNING,
    "the systemd unit has no WorkingDirectory=",
    "relative paths of the app, its hardserve.toml and its .env are looked for in /",
    "WorkingDirectory= with the app's directory, in [Service]",
)
HOME_HIDDEN = Check(
    "unit-home-hidden",
    Severity.ERROR,
    "the app is where the systemd unit hides everything",
    "the service does not start (status 200/CHDIR or 203/EXEC)",
    "ProtectHome=read-only, or put the app below /srv",
)
ENVIRONMENT_FILE = Check(
    "unit-environment-file",
    Severity.WARNING,
    "systemd reads the .env file otherwise than `flask run` and hardserve do",
    "what systemd makes of a value counts, since the environment wins over .env",
    "take EnvironmentFile= out: .env in WorkingDirectory= is read without it",
)
TASKS = Check(
    "unit-tasks",
    Severity.WARNING,
    "TasksMax= is below what the server starts by itself",
    "threads cannot be started, and requests fail",
    "TasksMax=256, in [Service]",
)
CHECKS = (
    AS_ROOT, TYPE, NOT_NOTIFY, DIRECTORY, HOME_HIDDEN, ENVIRONMENT_FILE, TASKS, *RESTART_CHECKS, *SANDBOX_CHECKS,
    *DATA_CHECKS,
)  # fmt: skip

# Besides threads that run the app: the main one, logs, checks, the control socket, TLS, certificates, reading aloud.
_OTHER_THREADS = 12
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """A unit, and what it is about."""

    unit: Unit
    listening: tuple[str, ...] | None = None  # addresses that systemd opens for it
    first_free_port: int | None = None  # from here on, everybody may listen
    differing: tuple[str, ...] = ()  # lines of .env files that systemd reads otherwise
    data: DataFacts = field(default_factory=DataFacts)


def service_findings(
    settings: Settings,
    *,
    root: Path = Path("/"),
    place: Place | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Finding]:
    """Yield what is wrong with the units of this app. Without `place`, the app is in the current directory."""
    if is_ci(environ):
        return
    place = place or Place(Path.cwd())
    for unit in units(root, place, environ):
        yield from unit_findings(settings, service_facts(root, unit, place))


def service_facts(root: Path, unit: Unit, place: Place) -> ServiceFacts:
    """Look at what a unit names."""
    opened = listening_of(root, unit)
    return ServiceFacts(
        unit=unit,
        listening=None if opened is None else tuple(opened),
        first_free_port=number(read(root, "proc/sys/net/ipv4/ip_unprivileged_port_start")),
        differing=tuple(_differing(root, unit, place)),
        data=data_facts(root, unit, place),
    )


def _differing(root: Path, unit: Unit, place: Place) -> Iterator[str]:
    """Yield what differs of those files that are for python-dotenv. Others have been written for systemd."""
    ours = {os.path.normpath(place.directory / path) for path in place.dotenv}
    for value in unit.all("EnvironmentFile"):
        path = os.path.normpath(value.removeprefix("-"))
        if path in ours or os.path.basename(path) in (".env", ".flaskenv"):
            text = read(root, path)
            loaded = DotEnv.load(below(root, path), directory=below(root, place.directory))
            yield from differences(text, loaded.values, loaded.origins)


def unit_findings(settings: Settings, facts: ServiceFacts) -> Iterator[Finding]:
    """Judge one unit."""
    unit = facts.unit
    where = f"{unit.name} ({', '.join((unit.path, *unit.drop_ins))})"
    is_root = not unit.of_user and not unit.is_on("DynamicUser") and unit.get("User") in ("", "root", "0")
    if is_root:
        yield AS_ROOT.found(f"{where} has no User= and no DynamicUser=")
    yield from _types(unit, where)
    if not unit.directory and not unit.of_user:
        yield DIRECTORY.found(where)
    if _is_hidden(unit):
        yield HOME_HIDDEN.found(
            f"{where} has ProtectHome={unit.get('ProtectHome')}, and WorkingDirectory={unit.directory}"
        )
    if facts.differing:
        more = f"; and {len(facts.differing) - _SHOWN} more" if len(facts.differing) > _SHOWN else ""
        yield ENVIRONMENT_FILE.found(f"{unit.name}: {'; '.join(facts.differing[:_SHOWN])}{more}")
    tasks, threads = unit.get("TasksMax"), _threads(settings)
    if tasks.isdecimal() and int(tasks) < threads:
        yield TASKS.found(
            f"{where} has TasksMax={tasks}; server.threads = {settings.server.threads} come to {threads} with those "
            "that replace hanging ones, and the server's own",
            f"TasksMax={max(64, 2 * threads)}",
        )
    if not is_root and not unit.of_user and facts.listening is None:
        yield from _low_port(settings, facts, where)
    yield from restart_findings(settings, unit, where)
    yield from sandbox_findings(unit)
    yield from data_findings(unit, facts.data, where)


def _types(unit: Unit, where: str) -> Iterator[Finding]:
    kind = unit.get("Type") or "simple"
    if kind in ("forking", "oneshot", "dbus"):
        yield TYPE.found(f"{where} has Type={kind}")
    elif kind not in ("notify", "notify-reload"):
        yield NOT_NOTIFY.found(f"{where} has Type={kind}")


def _is_hidden(unit: Unit) -> bool:
    how = unit.get("ProtectHome").lower()
    hidden = how == "tmpfs" or unit.is_on("ProtectHome")
    shown_anyway = unit.get("BindPaths") or unit.get("BindReadOnlyPaths")
    return hidden and not shown_anyway and f"{unit.directory}/".startswith(("/home/", "/root/", "/run/user/"))


def _threads(settings: Settings) -> int:
    """Return how many threads the server may come to have: as many again that hang, and readers of each mount."""
    server = settings.server
    stuck = server.max_stuck or server.threads
    return server.threads + stuck + settings.files.readers * (1 + len(settings.static)) + _OTHER_THREADS


def _low_port(settings: Settings, facts: ServiceFacts, where: str) -> Iterator[Finding]:
    if "CAP_NET_BIND_SERVICE" in " ".join(facts.unit.all("AmbientCapabilities")) or facts.first_free_port is None:
        return
    for port in sorted(ports([*settings.server.bind, *settings.server.redirect])):
        if 0 < port < facts.first_free_port:
            yield LOW_PORT.found(
                f"port {port}; {where} has no socket unit that is enabled, and no AmbientCapabilities="
            )
            return
