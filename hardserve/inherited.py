"""Sockets that somebody else has opened for this process: systemd's, by $LISTEN_FDS, and those of a former process.

Main thread, before anything is bound. What the sockets are for is said by their names (FileDescriptorName= in a socket
unit): `redirect` are those of server.redirect, all others those of server.bind.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace

from hardserve.addresses import TcpAddress, UnixAddress, parse_address
from hardserve.configfiles import SettingsError
from hardserve.settings import Settings

FIRST_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
MAX_FDS = 256
REDIRECT = "redirect"
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True)
class Passed:
    """A socket that was passed on: its descriptor, its name, and where it listens, as in server.bind."""

    fd: int
    name: str
    place: str

    @property
    def setting(self) -> str:
        return "redirect" if self.name == REDIRECT else "bind"


def passed_sockets(environ: MutableMapping[str, str], pid: int) -> list[Passed]:
    """Take the sockets that systemd has passed to the process `pid`, and its variables out of `environ`.

    The variables are meant for one process: a child of it, or a shell that was started from a service, has none of
    these sockets. Raises SettingsError for what cannot be served.
    """
    values = {name: environ.pop(name, "") for name in _VARIABLES}
    count = values["LISTEN_FDS"]
    if values["LISTEN_PID"] != str(pid) or not re.fullmatch(r"[0-9]{1,4}", count) or int(count) == 0:
        return []
    names = values["LISTEN_FDNAMES"].split(":")
    passed, problems = [], []
    for fd in range(FIRST_FD, FIRST_FD + min(int(count), MAX_FDS)):
        name = names[fd - FIRST_FD] if fd - FIRST_FD < len(names) else ""
        try:
            os.set_inheritable(fd, False)  # a program that the app starts must not keep the port
            passed.append(Passed(fd, name, place_of(fd)))
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            problems.append(f"socket {fd} ({name or 'without a name'}) that systemd has passed on: {what}")
    if problems:
        raise SettingsError(problems)
    return passed


def place_of(fd: int) -> str:
    """Return where the socket `fd` listens, as in server.bind. Raises OSError, and ValueError for another kind."""
    with socket.socket(fileno=os.dup(fd)) as looked_at:
        if looked_at.type != socket.SOCK_STREAM or looked_at.family not in (
            socket.AF_INET,
            socket.AF_INET6,
            socket.AF_UNIX,
        ):
            raise ValueError("it is not a TCP or Unix stream socket: ListenStream= makes one")
        if not looked_at.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("it does not listen: Accept=no in the socket unit (its default) passes one that does")
        name = looked_at.getsockname()
        if looked_at.family == socket.AF_UNIX:
            return f"unix:{name if isinstance(name, str) else '@' + name[1:].decode(errors='replace')}"
        return f"[{name[0]}]:{name[1]}" if looked_at.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def with_passed(settings: Settings, passed: Sequence[Passed], is_set: Callable[[str], bool]) -> Settings:
    """Return the settings with the sockets in the place of server.bind and server.redirect.

    A setting that nobody has set, says `is_set` of its key, is replaced. One that was must mean the same sockets; what
    it says about them, ?proxy_protocol, counts. Raises SettingsError with everything that does not agree.
    """
    if not passed:
        return settings
    problems: list[str] = []
    changed = {}
    for setting in ("bind", "redirect"):
        sockets = [each for each in passed if each.setting == setting]
        key = f"server.{setting}"
        if is_set(key):
            changed[setting] = _agreed(key, getattr(settings.server, setting), sockets, problems)
        else:
            changed[setting] = tuple(f"fd:{each.fd}" for each in sockets)
    if not changed["bind"] and not problems:
        problems.append(
            f'server.bind: all sockets of the socket unit are named "{REDIRECT}": one needs another FileDescriptorName='
        )
    if problems:
        raise SettingsError(problems)
    server = replace(settings.server, bind=changed["bind"], redirect=changed["redirect"])
    return replace(settings, server=server)


def _agreed(key: str, written: Sequence[str], sockets: Sequence[Passed], problems: list[str]) -> tuple[str, ...]:
    """Return the addresses of `sockets`, with what `written` says about each, or say what does not agree."""
    left = list(sockets)
    addresses = []
    for text in written:
        found = next((each for each in left if _means(text, each)), None)
        if found is None and any(_means(text, each) for each in sockets):
            continue  # one for IPv4 and IPv6, which are two here
        if found is None:
            there = ", ".join(each.place for each in sockets) or "none"
            problems.append(
                f'{key} = "{text}": systemd passes no such socket (there are: {there}): add ListenStream= to the '
                "socket unit, or leave this setting out"
            )
        else:
            left.remove(found)
            addresses.append(f"fd:{found.fd}{'?proxy_protocol' * parse_address(text).proxy_protocol}")
    problems += [
        f'{key}: systemd passes a socket at {each.place}, named "{each.name}", which is not listed: add it, or leave '
        "this setting out"
        for each in left
    ]
    return tuple(addresses)


def _means(text: str, passed: Passed) -> bool:
    """Return whether the address `text` of the settings is the socket."""
    if text.partition("?")[0] == f"fd:{passed.fd}":
        return True
    try:
        address, place = parse_address(text), parse_address(passed.place)
    except ValueError:  # an abstract Unix socket, which the settings cannot name
        return False
    if isinstance(address, UnixAddress) and isinstance(place, UnixAddress):
        return address.path == place.path
    if not isinstance(address, TcpAddress) or not isinstance(place, TcpAddress) or address.port != place.port:
        return False
    # A ListenStream= with a port alone is [::], which takes IPv4, too.
    return address.host == place.host or (place.host == "::" and address.host == "0.0.0.0")  # noqa: S104


# --- from a former process ---


@dataclass(frozen=True, slots=True)
class Handed:
    """A listening socket of a former process: its descriptor, and what server.bind or server.redirect called it.

    `name` is that by which systemd had passed it, None if that process had opened it itself.
    """

    fd: int
    address: str
    name: str | None
