"""From an app in its directory to the plan of its units: as which user it runs, what it may write, its ports.

Main thread, in the command only. Looks at files and changes none.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardserve.addresses import FdAddress, TcpAddress, UnixAddress, parse_address
from hardserve.options import OPTIONS, Option
from hardserve.settings import FilePath, ListKind, Output, Settings, StorageUrl
from hardserve.units import access
from hardserve.units.plan import Plan, Socket, UnitsError, mark
from hardserve.units.text import Line, command, literal
from hardserve.values import plain, without_password

CREDENTIALS_DIRECTORY = 250  # the systemd that brought %d
# What ProtectHome= hides, and of what PrivateTmp= gives a service its own.
HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
TEMPORARY = tuple(map(Path, ("/tmp", "/var/tmp")))  # noqa: S108 - nothing is made there
_ENV = "env"  # what the credential is called that is a .env file


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the command was typed for, where, and by which interpreter. Paths are absolute."""

    name: str  # of the app, as a part of the units' names
    words: Sequence[str]  # the program and APP
    directory: Path
    code: Sequence[Path]  # the interpreter, the virtual environment, the package
    settings: Settings
    origins: Mapping[str, str]
    environ: Mapping[str, str] = field(default_factory=dict)
    config_path: Path | None = None  # if it has to be named
    found_config: Path | None = None  # if it is found without
    env_files: Sequence[Path] = ()  # that are found without being named
    env_file: Path | None = None  # that has to be
    no_env_file: bool = False
    version: int
    of_user: bool = False
    low_ports: int = 1024  # ports below this are root's
    root: Path = Path("/")  # but for tests: files are looked at below it


def plan_for(facts: Facts) -> tuple[Plan, list[str]]:
    """Return the plan, and what whoever asked for it should know besides. Raises UnitsError."""
    try:
        return _Planner(facts).plan()
    except ValueError as error:  # of text.py
        raise UnitsError(str(error)) from None


class _Planner:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.notes: list[str] = []
        self.data = f"hardserve/{facts.name}"
        self.credentials: dict[str, Path] = {}  # files that systemd reads as root, by keyword of the setting
        self.user: str | None = None
        self.writable: list[Path] = []
        self.homely: list[Path] = []

    def __repr__(self) -> str:
        return f"<_Planner of {self.facts.name}>"

    def plan(self) -> tuple[Plan, list[str]]:
        facts = self.facts
        unit = f"hardserve-{facts.name}"
        if not facts.of_user:
            self._choose_user()
        sockets = tuple(self._sockets(unit))
        scope = "--user " if facts.of_user else ""
        server = facts.settings.server
        plan = Plan(
            name=unit,
            title=facts.name,
            head=(
                f"{mark('hardserve systemd')}, in {literal(str(facts.directory))}",
                "",
                f"`systemctl {scope}edit {unit}` changes something. What is written here, the command overwrites.",
            ),
            command=self._command(),
            directory=literal(str(facts.directory)),
            data=self.data,
            user=self.user,
            of_user=facts.of_user,
            version=facts.version,
            drain_s=server.drain,
            connections=facts.settings.limits.connections,
            threads=server.threads,
            environment=[f"{each.variable}={facts.environ[each.variable]}" for each in self._given("environment")],
            credentials=tuple(self._credential_lines()),
            writable=[f"-{path}" for path in self.writable if not access.is_below(path, HOMES)],
            kept=[f"-{path}" for path in self.writable if access.is_below(path, HOMES)],
            shown=[str(path) for path in access.outermost(self.homely)],
            empty=[str(path) for keyword, path in self.credentials.items() if keyword == _ENV],
            sockets=sockets,
        )
        return plan, self.notes

    # --- the command ---

    def _given(self, origin: str) -> Iterator[Option]:
        """Yield the options whose value came from the command line or the environment."""
        for option in OPTIONS:
            if self.facts.origins.get(option.key, "").startswith(origin) and option.keyword not in self.credentials:
                value = self._value(option)
                if isinstance(option.kind, StorageUrl) and without_password(value) != value:
                    raise UnitsError(
                        f"{option.key} has a password in it, and everybody may read a unit: put it into .env, "
                        f"{option.variable}=..."
                    )
                yield option

    def _value(self, option: Option) -> Any:
        return getattr(getattr(self.facts.settings, option.section), option.attribute)

    def _command(self) -> str:
        facts = self.facts
        words = list(facts.words)
        if facts.config_path is not None:
            words += ["--config", str(facts.config_path)]
        if facts.no_env_file or _ENV in self.credentials:
            words.append("--no-env-file")
        if facts.env_file is not None and _ENV not in self.credentials:
            words += ["--env-file", str(facts.env_file)]
        for option in self._given("flag"):
            value = self._value(option)
            texts = value if isinstance(option.kind, ListKind) else [plain(option.kind, value)]
            words += [part for text in texts for part in (option.flag, str(text))]
        return command(words) + (" --env-file %d/env" if _ENV in self.credentials else "")

    # --- the user ---

    def _choose_user(self) -> None:
        """Have systemd make up a user, unless only the owner of the app can run it."""
        facts = self.facts
        self._refuse_temporary()
        reasons = list(self._reasons_against_dynamic())
        data = access.data_in(facts.directory, facts.root)
        uid = access.owner(facts.directory, facts.root)
        if data and uid != 0:
            reasons.append(f"{data[0]} is what the app writes")
        if not reasons:
            if data:
                self.notes.append(
                    f"The service cannot write to {data[0]}: have the app keep its data in $STATE_DIRECTORY, which is "
                    f"/var/lib/{self.data}, or give {facts.directory} to a user, as whom it will then run."
                )
            return
        if uid == 0:
            raise UnitsError(
                f"{reasons[0]}, and {facts.directory} is root's: as root, no app is served. Let everybody read it "
                "(chmod a+rX; a .env need not be), give the app to a user (chown -R), as whom it will run, or move "
                f"what is in a home directory to /srv/{facts.name}, and make its virtual environment there with a "
                "Python that is in none"
            )
        user = access.User(uid)
        try:
            entry = pwd.getpwuid(uid)
            self.user = entry.pw_name
            user = access.User(uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))
        except KeyError:
            self.user = str(uid)
        self.credentials.clear()
        self.writable = access.outermost([*data, *(path for _, path in self._written())])
        shown = " and ".join(map(str, self.writable)) or f"nothing in {facts.directory}"
        self.notes.append(
            f"It runs as {self.user}, who owns {facts.directory}, because {reasons[0]}. Beside $STATE_DIRECTORY, which "
            f"is /var/lib/{self.data}, it may write {shown}."
        )
        self._note_modes(user)
        self.homely = [path for path in (*self._code(), *self._read()) if access.is_below(path, HOMES)]

    def _note_modes(self, user: access.User) -> None:
        """Say what the owner needs and may not have: what somebody has made as root in between."""
        for deed, wanted, paths in (
            ("read", access.READ, [*self._code(), *self._read()]),
            ("write to", access.WRITE, self.writable),
        ):
            for path in dict.fromkeys(paths):
                if not access.may(user, wanted, path, self.facts.root):
                    self.notes.append(f"{self.user} may not {deed} {path}: chown -R {self.user} {path}")

    def _refuse_temporary(self) -> None:
        for path in (self.facts.directory, *self.facts.code):
            if access.is_below(path, TEMPORARY):
                raise UnitsError(
                    f"{path} is in a directory for temporary files, of which a service has its own: move it, such "
                    f"as to /srv/{self.facts.name}"
                )

    def _reasons_against_dynamic(self) -> Iterator[str]:
        """Say why it has to be the owner; and of what only root may read, have systemd pass it on."""
        facts = self.facts
        needed = (*self._code(), *self._read())
        yield from (f"{path} is in a home directory" for path in needed if access.is_below(path, HOMES))
        barriers = [access.barrier(path, facts.root) for path in self._code()]
        barriers.append(access.private_code(facts.directory, facts.root))
        yield from (f"not everybody may read {barrier}" for barrier in barriers if barrier is not None)
        yield from self._reasons_of_files()
        for key, path in self._written():
            if not access.is_below(path, self._own_directories()):
                yield f"{key} is in {path}, and a service writes below /var/lib/{self.data} and its like"

    def _reasons_of_files(self) -> Iterator[str]:
        facts = self.facts
        for keyword, path in self._read_by_keyword():
            barrier = access.barrier(path, facts.root)
            if barrier is None:
                continue
            if keyword is None or facts.version < CREDENTIALS_DIRECTORY or keyword in self.credentials:
                yield f"not everybody may read {barrier}"
            else:
                self.credentials[keyword] = path
        if _ENV in self.credentials and len(self._env_files()) > 1:
            yield f"not everybody may read {self.credentials[_ENV]}"  # only one can be passed on

    def _own_directories(self) -> list[Path]:
        return [Path(base, self.data) for base in ("/var/lib", "/var/cache", "/var/log", "/run")]

    def _code(self) -> list[Path]:
        return [self.facts.directory, *self.facts.code]

    def _read(self) -> list[Path]:
        return [path for _, path in self._read_by_keyword()]

    def _env_files(self) -> list[Path]:
        named = [] if self.facts.env_file is None else [self.facts.env_file]
        return [*([] if self.facts.no_env_file else self.facts.env_files), *named]

    def _read_by_keyword(self) -> Iterator[tuple[str | None, Path]]:
        """Yield the files that the settings are in and name, each with its keyword if it can be named elsewhere."""
        facts = self.facts
        yield from ((None, path) for path in (facts.config_path, facts.found_config) if path is not None)
        yield from ((_ENV, path) for path in self._env_files())
        for option in OPTIONS:
            if isinstance(option.kind, FilePath) and option.key != "server.control":
                value = self._value(option)
                if value not in option.kind.words:
                    yield option.keyword, facts.directory / value
        for text in facts.settings.server.static:
            yield None, facts.directory / text.partition("=")[2]
        yield from ((None, facts.directory / each.directory) for each in facts.settings.static)
        for each in facts.settings.certificate:
            yield from ((None, facts.directory / path) for path in (each.certificate, each.key))
        yield from ((None, facts.directory / page.file) for page in facts.settings.error_page)

    def _written(self) -> Iterator[tuple[str, Path]]:
        """Yield the directories that the server itself writes to by its settings, each with that."""
        settings = self.facts.settings
        for option in OPTIONS:
            if isinstance(option.kind, Output) and self._value(option) not in option.kind.words:
                yield option.key, (self.facts.directory / self._value(option)).parent
        if settings.tls.state != "auto":
            yield "tls.state", self.facts.directory / settings.tls.state
        if settings.server.control not in ("auto", "off"):
            yield "server.control", (self.facts.directory / settings.server.control).parent

    def _credential_lines(self) -> Iterator[Line]:
        by_keyword = {option.keyword: option for option in OPTIONS}
        for keyword, path in self.credentials.items():
            yield Line(
                "LoadCredential",
                f"{keyword}:{literal(str(path))}",
                "Not for everybody to read: systemd reads it as root and passes a copy on. After a change, restart.",
            )
            if keyword != _ENV:
                yield Line("Environment", f"{by_keyword[keyword].variable}=%d/{keyword}")

    # --- the ports ---

    def _sockets(self, unit: str) -> Iterator[Socket]:
        """Yield socket units for all addresses, if the service may not open one of them itself."""
        server = self.facts.settings.server
        privileged = [text for text in (*server.bind, *server.redirect) if self._is_privileged(text)]
        if not privileged:
            return
        if self.facts.of_user:
            raise UnitsError(
                f"{privileged[0]}: a user's systemd cannot open ports below {self.facts.low_ports}: leave out --user, "
                "choose another port, or as root: sysctl net.ipv4.ip_unprivileged_port_start=80"
            )
        for name, addresses in ((unit, server.bind), (f"{unit}-redirect", server.redirect)):
            if addresses:
                yield _socket(name, addresses, redirects=addresses is server.redirect)

    def _is_privileged(self, text: str) -> bool:
        address = parse_address(text)
        if isinstance(address, UnixAddress):
            own = self._own_directories()  # it can make none elsewhere
            return not self.facts.of_user and not access.is_below(Path(address.path), own)
        return isinstance(address, TcpAddress) and 0 < address.port < self.facts.low_ports


def _socket(name: str, addresses: Sequence[str], *, redirects: bool) -> Socket:
    streams: list[str] = []
    modes: list[Line] = []
    free_bind = False
    for text in addresses:
        address = parse_address(text)
        if isinstance(address, FdAddress):
            raise UnitsError(f"{text} is a socket that somebody passes on: here systemd does. Name the port")
        if isinstance(address, UnixAddress):
            streams.append(address.path)
            modes += _socket_modes(address)
            continue
        if not address.host.replace(".", "").isdecimal() and ":" not in address.host:
            raise UnitsError(f"{text} is a name, and systemd opens addresses: write 127.0.0.1 or [::1] for localhost")
        host = f"[{address.host}]" if ":" in address.host else address.host
        streams.append(f"{host}:{address.port}")
        free_bind |= address.host not in ("0.0.0.0", "::", "127.0.0.1", "::1")  # noqa: S104 - nothing is bound
    return Socket(
        name=name, streams=streams, redirects=redirects, free_bind=free_bind, modes=tuple(dict.fromkeys(modes))
    )


def _socket_modes(address: UnixAddress) -> Iterator[Line]:
    if address.mode is not None:
        yield Line("SocketMode", f"{address.mode:04o}")
    if address.user is not None:
        yield Line("SocketUser", address.user)
    if address.group is not None:
        yield Line("SocketGroup", address.group)
    yield Line("RemoveOnStop", "yes")
