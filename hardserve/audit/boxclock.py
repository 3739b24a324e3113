"""Whether the clock is right, and what Python there is: what goes wrong by itself as time passes.

Main thread, of a command. `clock_facts` asks the kernel; judging is pure.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from hardserve.audit.boxplace import exists, processes, read
from hardserve.audit.findings import Check, Finding, Severity

UNSYNCHRONISED = Check(
    "clock-unsynchronised",
    Severity.WARNING,
    "nothing sets the clock",
    "certificates, signed cookies and logs are wrong by as much as it is",
    "timedatectl set-ntp true",
)
CLOCK_BEHIND = Check(
    "clock-behind",
    Severity.ERROR,
    "the clock is before the day this program was made",
    "no certificate is valid yet, and none can be got",
    "timedatectl set-ntp true, and wait for it: timedatectl shows when it is synchronized",
)
OLD_PYTHON = Check(
    "python-unsupported",
    Severity.NOTE,
    "this Python gets no security fixes any more",
    "holes in it stay open",
    "make the virtual environment anew with a newer Python",
)
CHECKS = (UNSYNCHRONISED, CLOCK_BEHIND, OLD_PYTHON)

# No clock that is right shows less than this.
MADE = date(2025, 7, 1)
# The last day of each Python's security fixes (PEP 664, 693, 719, 745: five years after the first release).
SUPPORT_ENDS = {
    (3, 11): date(2027, 10, 31),
    (3, 12): date(2028, 10, 31),
    (3, 13): date(2029, 10, 31),
    (3, 14): date(2030, 10, 31),
}
# Who sets the clock without telling the kernel, or without always doing so, by the first 15 characters of its name.
_OTHERS = {
    "chronyd", "ntpd", "openntpd", "ntpsec", "ptp4l", "phc2sys", "VBoxService", "vmtoolsd", "vmware-vmblock", "gpsd",
    "hv_utils", "htpdate", "sntp",
}  # fmt: skip
_TIMESYNCD = "systemd-timesyn"
# By then timesyncd has asked several servers, more than once.
_PATIENCE_S = 3600.0
_STA_UNSYNC = 0x0040


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """What is known of the clock and of Python."""

    now: float  # seconds of the epoch
    kernel_unsynchronised: bool | None = None  # None: it does not say
    has_been_set: bool = False  # by systemd-timesyncd, since the start
    setters: frozenset[str] = frozenset()
    has_timesyncd: bool = False  # installed, running or not
    uptime_s: float = 0.0
    is_guest_of_windows: bool = False  # which sets its clock from outside
    python: tuple[int, int] = (3, 13)
    python_of_distribution: bool = False  # who maintains it for longer


def clock_facts(root: Path) -> ClockFacts:
    """Ask the kernel, systemd and the list of processes."""
    uptime = read(root, "proc/uptime").split()
    running = frozenset(name for name, _, _ in processes(root))
    return ClockFacts(
        now=time.time(),
        kernel_unsynchronised=_kernel_unsynchronised() if root == Path("/") else None,
        has_been_set=exists(root, "run/systemd/timesync/synchronized"),
        setters=running & (_OTHERS | {_TIMESYNCD}),
        has_timesyncd=exists(root, "usr/lib/systemd/systemd-timesyncd"),
        uptime_s=float(uptime[0]) if uptime else 0.0,
        is_guest_of_windows="microsoft" in read(root, "proc/version").lower(),
        python=sys.version_info[:2],
        python_of_distribution=sys.base_prefix == "/usr",
    )


class _Timex(ctypes.Structure):
    """The beginning of struct timex (adjtimex(2)), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def _kernel_unsynchronised() -> bool | None:
    """Return whether the kernel thinks that nobody sets its clock. Reading that takes no right."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return bool(timex.status & _STA_UNSYNC) if state >= 0 else None


def clock_findings(facts: ClockFacts, *, shares_kernel: bool) -> Iterator[Finding]:
    """Judge. A container has the clock of its host, who must look after it."""
    today = datetime.fromtimestamp(max(0.0, facts.now), UTC).date()
    if today < MADE:
        yield CLOCK_BEHIND.found(
            f"it shows {today}", "timedatectl set-ntp true, and wait for it: timedatectl shows when it is synchronized"
        )
    elif not shares_kernel:
        yield from _unsynchronised(facts)
    end = SUPPORT_ENDS.get(facts.python)
    if end is not None and today > end and not facts.python_of_distribution:
        version = ".".join(map(str, facts.python))
        yield OLD_PYTHON.found(
            f"Python {version}, until {end}", f"make the virtual environment anew with Python {_newest()}"
        )


def _newest() -> str:
    return ".".join(map(str, max(SUPPORT_ENDS)))


def _unsynchronised(facts: ClockFacts) -> Iterator[Finding]:
    if not facts.kernel_unsynchronised or facts.has_been_set or facts.is_guest_of_windows:
        return
    if facts.setters - {_TIMESYNCD}:
        return
    if not facts.setters:
        fix = "timedatectl set-ntp true" if facts.has_timesyncd else "apt install systemd-timesyncd"
        yield UNSYNCHRONISED.found("the kernel's clock is unsynchronised, and no time service runs", fix)
    elif facts.uptime_s > _PATIENCE_S:
        hours = int(facts.uptime_s // 3600)
        yield UNSYNCHRONISED.found(
            f"systemd-timesyncd has reached no time server in {hours} h",
            "let UDP port 123 out, or NTP= in /etc/systemd/timesyncd.conf; timedatectl timesync-status says more",
        )
