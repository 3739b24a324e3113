"""What `hardserve check` says: a check is a thing that can be wrong, a finding is one that is.

Types only. Each check is declared once, in the CHECKS of the module that finds it; its id is for ever, since people
write it into `--ignore`. Imports nothing of hardserve.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.IntEnum):
    """How bad it is: a note is to be known and fails nothing, a warning is to be mended, an error stops a start."""

    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that can be wrong.

    `title` says what is, `why` what may come of it, and `fix` what mends it in general, where a finding says nothing
    better; each is one line.
    """

    id: str
    severity: Severity
    title: str
    why: str
    fix: str

    def found(self, evidence: str, fix: str = "") -> Finding:
        """Return the finding that says what was seen, and where."""
        return Finding(self, evidence, fix or self.fix)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen, and where; and the one line that mends it: a setting, a command, or code."""

    check: Check
    evidence: str
    fix: str
