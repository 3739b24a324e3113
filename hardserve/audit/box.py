"""What is wrong with the box that the app is to be served from: its memory, disk, clock, network and files.

Main thread, of a command that then ends. Facts are gathered once (boxfacts and beside each judge), judging is pure. In
CI nothing is said, for nobody is served from there; in a container nothing that is its host's affair.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hardserve.audit.boxclock import CHECKS as CLOCK_CHECKS
from hardserve.audit.boxclock import clock_facts, clock_findings
from hardserve.audit.boxfacts import box_facts
from hardserve.audit.boxmodes import CHECKS as MODE_CHECKS
from hardserve.audit.boxmodes import guarded_files, mode_findings
from hardserve.audit.boxplace import Place, is_ci, is_container, shares_kernel
from hardserve.audit.boxreach import CHECKS as REACH_CHECKS
from hardserve.audit.boxreach import reach_facts, reach_findings
from hardserve.audit.boxroom import CHECKS as ROOM_CHECKS
from hardserve.audit.boxroom import room_findings
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.servicefind import limits_of, listening_of, units
from hardserve.audit.serviceunits import Unit
from hardserve.settings import Settings

__all__ = ["CHECKS", "Place", "box_findings"]

ROOT = Check(
    "running-as-root",
    Severity.WARNING,
    "the app would run as root",
    "whoever finds a hole in it has the whole box",
    "hardserve systemd APP --install, or: runuser -u NAME -- hardserve APP",
)
CHECKS: tuple[Check, ...] = (ROOT, *ROOM_CHECKS, *CLOCK_CHECKS, *REACH_CHECKS, *MODE_CHECKS)


def box_findings(
    settings: Settings,
    *,
    root: Path = Path("/"),
    place: Place | None = None,
    environ: Mapping[str, str] = os.environ,
    user: int | None = None,
) -> Iterator[Finding]:
    """Yield what is wrong with this box. Without `place`, the app is in the current directory; `user` is who asks."""
    if is_ci(environ):
        return
    place = place or Place(Path.cwd())
    is_root = (os.geteuid() if user is None else user) == 0
    in_container = is_container(root, environ)
    found = units(root, place, environ)
    unit = found[0] if found else None
    if unit is None and is_root and not in_container:
        yield ROOT.found("this command runs as root, and no systemd unit is there for the app")
    on_host = shares_kernel(root, environ)
    facts = box_facts(root, environ, shares_kernel=on_host)
    if unit is not None:
        memory, descriptors = limits_of(unit, facts.memory or 0, facts.memory_limit)
        facts = replace(
            facts, memory_limit=memory, max_descriptors=descriptors, descriptors_by=f"LimitNOFILE= of {unit.name}"
        )
    yield from room_findings(
        settings, facts, directory=place.directory, stdout_is_journal=_logs_to_journal(settings, unit)
    )
    yield from clock_findings(clock_facts(root), shares_kernel=on_host)
    reach = reach_facts(root, is_root=is_root)
    bound = None if unit is None else listening_of(root, unit)
    if in_container:  # with its host's network it would see what is not its own
        reach = replace(reach, public=(), listening=())
    yield from reach_findings(settings, reach, bound=bound, has_unit=unit is not None)
    if not in_container:
        yield from mode_findings(guarded_files(settings, place, root))


def _logs_to_journal(settings: Settings, unit: Unit | None) -> bool:
    """Return whether a line for each request goes to the journal."""
    return settings.log.access in ("stdout", "stderr") and (
        unit is None or unit.get("StandardOutput") in ("", "journal", "inherit", "journal+console")
    )
