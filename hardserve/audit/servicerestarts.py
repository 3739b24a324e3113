"""Whether a unit is started again when it should be, and only then; and whether a stop may finish. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.serviceunits import Unit, seconds
from hardserve.settings import Settings

NO_RESTART = Check(
    "unit-no-restart",
    Severity.WARNING,
    "nothing starts the service again when it has failed",
    "it stays down until somebody looks",
    "Restart=on-failure, in [Service]",
)
BAD_SETTINGS = Check(
    "unit-restarts-on-bad-settings",
    Severity.WARNING,
    "the service is started again and again with settings that cannot be used",
    "hundreds of thousands of starts fill the journal, and each fails as the first did",
    "RestartPreventExitStatus=78, in [Service]",
)
GIVES_UP = Check(
    "unit-gives-up",
    Severity.WARNING,
    "a short trouble ends the service for good",
    'after "start request repeated too quickly" systemd does not try again, as when a database is not there yet',
    "StartLimitIntervalSec=1h and StartLimitBurst=100 in [Unit], RestartSec=1s in [Service]",
)
FOR_EVER = Check(
    "unit-restarts-for-ever",
    Severity.WARNING,
    "an app that crashes is started again at once and without end",
    "a core is busy with it, and the journal fills",
    "StartLimitIntervalSec=1h and StartLimitBurst=100 in [Unit], RestartSec=1s in [Service]",
)
NO_WATCHDOG = Check(
    "unit-no-watchdog",
    Severity.NOTE,
    "the systemd unit has no WatchdogSec=",
    "a server that hangs is not started again: Restart= sees only one that ends",
    "WatchdogSec=30s, in [Service]",
)
STOP = Check(
    "unit-stop-timeout",
    Severity.WARNING,
    "systemd kills the server before server.drain is over",
    "requests in progress are cut by each restart",
    "TimeoutStopSec= longer than server.drain; or Type=notify, with which the server asks for the time it needs",
)
CHECKS = (NO_RESTART, BAD_SETTINGS, GIVES_UP, FOR_EVER, NO_WATCHDOG, STOP)

# systemd's defaults (systemd-system.conf(5)).
_STOP_S, _RESTART_S, _INTERVAL_S, _BURST = 90.0, 0.1, 10.0, 5
# A database that is restarted, or a network that comes up late, is back within this.
_TROUBLE_S = 60.0
_BUSY_S = 1.0
# What a server says after its drain, and whatever else is slow.
_LAST_WORDS_S = 2.0


def restart_findings(settings: Settings, unit: Unit, where: str) -> Iterator[Finding]:
    """Judge. `where` names the unit and its files."""
    restart = unit.get("Restart") or "no"
    if restart in ("no", "on-success"):
        yield NO_RESTART.found(f"{where} has Restart={restart}")
    elif restart in ("always", "on-failure"):
        prevented = " ".join(unit.all("RestartPreventExitStatus")).split()
        if not {"78", "CONFIG"} & set(prevented):
            yield BAD_SETTINGS.found(f"{where} has Restart={restart}, and no RestartPreventExitStatus=78")
        yield from _limits(unit, where)
    if not seconds(unit.get("WatchdogSec")):
        yield NO_WATCHDOG.found(where)
    yield from _stop(settings, unit, where)


def _limits(unit: Unit, where: str) -> Iterator[Finding]:
    """Judge when systemd gives up, if ever (StartLimit... in [Unit]; older units have it in [Service])."""
    said = {
        key: unit.get(key, "Unit") or unit.get(key)
        for key in ("StartLimitIntervalSec", "StartLimitInterval", "StartLimitBurst")
    }
    interval = seconds(said["StartLimitIntervalSec"] or said["StartLimitInterval"])
    interval = _INTERVAL_S if interval is None else interval
    burst = int(said["StartLimitBurst"]) if said["StartLimitBurst"].isdecimal() else _BURST
    delay = seconds(unit.get("RestartSec"))
    delay = _RESTART_S if delay is None else delay
    # The delays of one crash after another, of an app that crashes at once.
    lasts = burst * delay
    limited = interval > 0 and burst > 0 and lasts < interval
    if limited and lasts < _TROUBLE_S:
        if unit.get("RestartMaxDelaySec"):
            return
        yield GIVES_UP.found(
            f"{where}: {burst} starts within {_shown(interval)}, {_shown(delay)} apart, and that is all"
        )
    elif not limited and delay < _BUSY_S and not unit.get("RestartMaxDelaySec"):
        yield FOR_EVER.found(f"{where}: RestartSec={_shown(delay)}, and no limit to starts")


def _stop(settings: Settings, unit: Unit, where: str) -> Iterator[Finding]:
    """Judge how long a stop may take. A server that may speak to systemd asks it for more time."""
    if unit.get("Type").startswith("notify") or unit.get("NotifyAccess") not in ("", "none"):
        return
    if seconds(unit.get("WatchdogSec")):  # which implies NotifyAccess=main
        return
    said = unit.get("TimeoutStopSec") or unit.get("TimeoutSec")
    patience = seconds(said) if said else _STOP_S
    if patience == 0:
        patience = math.inf
    drain = settings.server.drain
    if patience is not None and patience < drain + _LAST_WORDS_S:
        yield STOP.found(
            f"{where} has TimeoutStopSec={said or '90s, the default'}, and server.drain is {_shown(drain)}",
            f"TimeoutStopSec={int(drain + 10)}s, or Type=notify, with which the server asks for the time it needs",
        )


def _shown(duration: float) -> str:
    return f"{duration * 1000:g}ms" if 0 < duration < 1 else f"{duration:g}s"
