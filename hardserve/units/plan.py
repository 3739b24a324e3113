"""What is known of an app and its machine that its units say: data only.

planning.py finds it out, or template.py says it for every app.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hardserve.units.text import Line

# What units are for where there is no systemd to ask; older ones ignore a line or two, with a warning.
OLDEST = 248
NOTIFY_RELOAD, RESTART_STEPS = 253, 254  # which versions brought them

_MARK = "Written by hardserve"  # which install.py looks for


def mark(how: str) -> str:
    """Return the first line of a unit that the command `how` has written."""
    return f"{_MARK}: {how}"


def is_marked(text: str) -> bool:
    """Say whether a unit is one that we wrote, or that somebody has saved who had it printed."""
    return any(line.startswith(f"# {_MARK}") for line in text.splitlines()[:2])


class UnitsError(Exception):
    """There can be no units, or something is wrong with them. The text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """A socket unit. `name` is that of its unit without the suffix."""

    name: str
    streams: Sequence[str]  # as ListenStream= has them, unescaped
    redirects: bool = False
    free_bind: bool = False  # of an address that the machine may not have yet
    modes: Sequence[Line] = ()  # of a Unix socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a unit is to be like. Texts are as systemd reads them but for paths, which are plain."""

    name: str  # of the service's unit, without the suffix; "hardserve@" is the template
    title: str
    head: Sequence[str]
    command: str
    directory: str  # in which the app is started, as WorkingDirectory= has it
    data: str  # below /var/lib and its like
    user: str | None = None  # None: one that systemd makes up
    of_user: bool = False  # for the systemd of a user: no other user can be had, nor what takes a privilege
    version: int = OLDEST
    drain_s: float = 25.0
    connections: int = 16384
    threads: int = 8
    environment: Sequence[str] = ()
    credentials: Sequence[Line] = ()
    writable: Sequence[str] = ()
    shown: Sequence[str] = ()  # of what is hidden: /home
    kept: Sequence[str] = ()  # of that, what may be written, too
    empty: Sequence[str] = ()  # files that are to look as if they were not there
    sockets: Sequence[Socket] = ()
    own_ports: bool = False  # the service opens ports below 1024 itself
    examples: bool = False  # whether there are lines to take the # away from
