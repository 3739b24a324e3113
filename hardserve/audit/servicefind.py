"""Which of a box's units are those of one app: the services that run it, and the sockets that are opened for them.

Main thread, of a command. A unit that might be of another app is not judged for this one.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from hardserve.addresses import parse_address
from hardserve.audit.boxplace import Place, names
from hardserve.audit.serviceunits import SYSTEM_DIRECTORIES, USER_DIRECTORIES, Unit, load, size

# A command that is this server's, by its program or by `python -m hardserve`.
_RUNS_US = re.compile(r"""(?:^|[\s/'"])hardserve(?=$|[\s'"])""")
# The name of the sockets that take the place of server.redirect (hardserve.inherited).
_REDIRECT = "redirect"


def units(root: Path, place: Place, environ: Mapping[str, str], prefix: str = sys.prefix) -> list[Unit]:
    """Return the services that run this app with hardserve, as far as that can be told."""
    home = environ.get("HOME", "/root")
    own = (f"{environ.get('XDG_CONFIG_HOME') or f'{home}/.config'}/systemd/user", *USER_DIRECTORIES)
    found: list[Unit] = []
    for directories, of_user in ((SYSTEM_DIRECTORIES, False), (own, True)):
        for name in _candidates(root, directories, place):
            unit = load(root, name, directories, of_user=of_user, home=home)
            if unit is not None and _RUNS_US.search(unit.command) and belongs(unit, place, prefix):
                found.append(unit)
    return found


def _candidates(root: Path, directories: tuple[str, ...], place: Place) -> list[str]:
    """Return the names of services that there may be: those with a file, and instances that something wants."""
    found: dict[str, None] = {}
    templates: list[str] = []
    for directory in directories:
        for name in names(root, directory):
            if name.endswith("@.service"):
                templates.append(name.removesuffix(".service"))
            elif name.endswith(".service"):
                found[name] = None
            elif name.endswith((".wants", ".requires")):
                for wanted in names(root, f"{directory}/{name}"):
                    if "@" in wanted and wanted.endswith((".service", ".socket")):
                        found[wanted.rpartition(".")[0] + ".service"] = None
            elif name.endswith(".service.d") and re.search(r"@.+\.service\.d$", name):
                found[name.removesuffix(".d")] = None
    if place.config is not None:  # one that is not enabled yet: /etc/hardserve/NAME.toml is that of the instance NAME
        found |= {f"{template}{place.config.stem}.service": None for template in templates}
    return list(found)


def belongs(unit: Unit, place: Place, prefix: str) -> bool:
    """Return whether a service is that of the app at `place`: by its settings, its directory, or what it starts."""
    words = unit.words
    configs = [after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "--config"]
    configs += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    if place.config is not None and os.path.normpath(place.config) in map(os.path.normpath, configs):
        return True
    directory = os.path.normpath(place.directory)
    if unit.directory:
        return os.path.normpath(unit.directory) == directory
    inside = directory.rstrip("/") + "/"
    if directory != "/" and any(word.startswith(inside) for word in words):
        return True
    return bool(words) and os.path.dirname(os.path.dirname(words[0])) == os.path.normpath(prefix)


def enabled(root: Path, unit: Unit) -> list[str]:
    """Return the names of the units that something starts by itself, of those that are where `unit` is."""
    found: dict[str, None] = {}
    for directory in unit.directories:
        for name in names(root, directory):
            if name.endswith((".wants", ".requires")):
                found |= dict.fromkeys(names(root, f"{directory}/{name}"))
    return list(found)


def listening_of(root: Path, unit: Unit) -> list[str] | None:
    """Return the addresses that sockets of systemd take the place of server.bind with, None if there are none."""
    found: list[str] = []
    wanted = [
        name for key in ("Requires", "Wants", "BindsTo") for value in unit.all(key, "Unit") for name in value.split()
    ]
    for name in dict.fromkeys([*enabled(root, unit), *wanted, *" ".join(unit.all("Sockets")).split()]):
        if not name.endswith(".socket"):
            continue
        socket = load(root, name, unit.directories, of_user=unit.of_user, home=unit.home)
        if socket is None or socket.get("FileDescriptorName", "Socket") == _REDIRECT:
            continue
        if (socket.get("Service", "Socket") or name.removesuffix(".socket") + ".service") == unit.name:
            found += filter(None, map(_address, socket.all("ListenStream", "Socket")))
    return found or None


def opened_by_systemd(root: Path, place: Place, environ: Mapping[str, str]) -> list[str] | None:
    """Return the addresses that sockets of systemd take the place of server.bind with for the app at `place`."""
    for unit in units(root, place, environ):
        found = listening_of(root, unit)
        if found:
            return found
    return None


def _address(stream: str) -> str:
    """Write what ListenStream= says as server.bind would, "" for what this server does not listen on."""
    text = f"[::]:{stream}" if stream.isdecimal() else f"unix:{stream}" if stream.startswith("/") else stream
    try:
        parse_address(text)
    except ValueError:
        return ""
    return text


def limits_of(unit: Unit, memory: int, group: int | None) -> tuple[int | None, int | None]:
    """Return what memory and how many descriptors a service may have, None for what nothing limits.

    `memory` is what the box has, `group` what the control group of this command may have.
    """
    limit = size(unit.get("MemoryMax"), memory)
    if limit is None or math.isinf(limit) or not memory:
        limit = group
    # Soft and hard may be two; the server raises the first to the second. By itself systemd has half a million.
    descriptors = unit.get("LimitNOFILE").rpartition(":")[2]
    return None if limit is None else int(limit), int(descriptors) if descriptors.isdecimal() else None
