"""What a unit leaves open that the shipped one closes (systemd.exec(5)). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.serviceunits import Unit, is_no
from hardserve.units.sandbox import sandbox
from hardserve.units.template import template_plan

BARE = Check(
    "unit-without-sandbox",
    Severity.WARNING,
    "the systemd unit has hardly anything of the shipped one's sandbox",
    "whoever finds a hole in the app can go on from there",
    "hardserve systemd APP --install",
)
WEAKER = Check(
    "unit-weaker",
    Severity.NOTE,
    "the systemd unit leaves open what the shipped one closes",
    "whoever finds a hole in the app has more to go on from",
    "hardserve systemd APP --install",
)
CHECKS = (BARE, WEAKER)

# Of the shipped sandbox, what follows from the rest of it, is systemd's default, or only says how the rest is done.
_BESIDES = {
    "AmbientCapabilities", "BindPaths", "BindReadOnlyPaths", "DevicePolicy", "KeyringMode", "PrivateMounts",
    "ReadOnlyPaths", "ReadWritePaths", "SystemCallErrorNumber",
}  # fmt: skip
# What some apps need, as the shipped unit says: whoever has written a value has thought of it.
_ADAPTABLE = {
    "MemoryDenyWriteExecute", "PrivateUsers", "PrivateDevices", "ProcSubset", "RestrictAddressFamilies", "NoExecPaths",
    "SystemCallFilter", "CapabilityBoundingSet", "UMask", "PrivateTmp", "ProtectHome",
}  # fmt: skip
# With DynamicUser=yes these are so, whatever else the unit says.
_DYNAMIC = {"NoNewPrivileges", "RestrictSUIDSGID", "PrivateTmp", "RemoveIPC", "ProtectSystem"}
# With any of these, and another user than root, nothing can be gained by starting a program.
_NO_NEW_PRIVILEGES = {
    "SystemCallFilter", "SystemCallArchitectures", "RestrictAddressFamilies", "RestrictNamespaces", "PrivateDevices",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectClock", "MemoryDenyWriteExecute",
    "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "ProtectHostname",
}  # fmt: skip
_SHOWN = 8


def shipped_sandbox(*, of_user: bool = False) -> list[str]:
    """Return the keys that make the sandbox of the shipped unit, or of one for a user's own systemd."""
    lines = sandbox(replace(template_plan(), of_user=of_user))
    return [key for key in dict.fromkeys(line.key for line in lines if not line.example) if key not in _BESIDES]


def sandbox_findings(unit: Unit) -> Iterator[Finding]:
    """Compare a unit with the shipped one."""
    wanted = shipped_sandbox(of_user=unit.of_user)
    missing = [key for key in wanted if not _is_closed(unit, key)]
    if not missing:
        return
    check = BARE if len(missing) > len(wanted) // 2 else WEAKER
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    yield check.found(
        f"{unit.name} ({unit.path}) is without {', '.join(f'{key}=' for key in missing[:_SHOWN])}{more}"
        f", {len(missing)} of {len(wanted)}",
        check.fix + " --user" * unit.of_user,
    )


def _is_closed(unit: Unit, key: str) -> bool:
    """Return whether a unit has one of these, by itself or with another key, or means not to."""
    is_said = ("Service", key) in unit.values
    if key == "ProtectSystem":
        closed = unit.get(key) == "strict"
    elif key == "NoNewPrivileges" and not is_said:
        is_other = unit.of_user or unit.get("User") not in ("", "root", "0")
        closed = is_other and any(_is_set(unit, other) for other in _NO_NEW_PRIVILEGES)
    elif key == "PrivateUsers" and unit.get("AmbientCapabilities"):
        closed = True  # the two do not go together
    else:
        closed = _is_set(unit, key)
    return closed or (is_said and key in _ADAPTABLE) or (key in _DYNAMIC and unit.is_on("DynamicUser"))


def _is_set(unit: Unit, key: str) -> bool:
    value = unit.get(key)
    return bool(value) and not is_no(value)
