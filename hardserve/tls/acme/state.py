"""The directory that an ACME account and its certificates are kept in: who may read it, and how it changes.

    lock                        held by the one process that orders
    account-<digest>.json       account key and address, one for each CA (and external account)
    schedule.json               failures, and what the CA has said about the next renewal
    order.json                  the order that is under way, with the key that its certificate will have
    certificates/<version>/     key.pem, certificate.pem (the chain) and about.json of one certificate
    current                     symbolic link to one of them

Everything is for the owner alone: directories 0700, files 0600. A file is written under another name, flushed, and
renamed, so that a crash or a full disk leaves the old one or the new one. A certificate and its key appear together,
with the renaming of `current`, and only if they can be served. A version that was once complete is never changed, so
that whoever reads it while it is replaced still reads a pair.

May block on the disk: main thread and ACME thread. Nothing here knows the protocol.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hardserve.tls.acme.pki import UnusableError, inspect, load_key
from hardserve.tls.acme.schedule import Held, Schedule
from hardserve.tls.certificates import CertificateError, load
from hardserve.tls.pemfiles import user_name
from hardserve.tls.policy import PairFiles

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

KindT = TypeVar("KindT", bound="DataclassInstance")

logger = logging.getLogger("hardserve.acme")

# The one in use, and the one before: a process that has read `current` a moment ago must still find its files.
KEPT_VERSIONS = 2
# What is written here is a few kilobytes; what is longer was not written by us.
_MAX_BYTES = 1 << 20

_CURRENT = "current"
_CERTIFICATES = "certificates"
_UNFINISHED = ".new-"


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are for a CA. `url` is empty until it has answered; the key is kept before it is asked."""

    directory: str
    key: str  # PEM
    url: str = ""
    email: str = ""
    eab_kid: str = ""


@dataclass(frozen=True, slots=True)
class PendingOrder:
    """An order that was begun. Whoever continues it needs the key, if the CA has seen the request already."""

    url: str
    directory: str
    account: str
    names: tuple[str, ...]
    key: str  # PEM
    challenge: str
    begun: float


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of one certificate, both of the same version."""

    certificate: Path
    key: Path


class StateDirectory:
    """See the head of the module. Methods raise OSError where the file system fails; unreadable content is as none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[str, Held | None] | None = None
        self._warned: set[Path] = set()

    def __repr__(self) -> str:
        return f"<StateDirectory {self.path}>"

    def check(self) -> None:
        """Raise PermissionError where somebody else can put a certificate and its key here; nothing at all is good."""
        for directory in (self.path, self.path / _CERTIFICATES):
            try:
                status = directory.stat()
            except PermissionError:
                raise
            except OSError:
                continue
            which = "it" if directory == self.path else f"its part {_CERTIFICATES}"
            if status.st_uid not in (0, os.geteuid()):
                problem = f"{which} belongs to user {user_name(status.st_uid)}, who can put others in their place"
            elif status.st_mode & 0o002:
                problem = f"{which} can be changed by everybody, who can put others in their place (chmod go-w)"
            else:
                # Its group may have been let in by whoever mounts volumes, and means ourselves; `prepare` closes it.
                continue
            raise PermissionError(errno.EPERM, problem, str(directory))

    def prepare(self) -> None:
        """Make the directory, close it to others, and find out whether it can be written to. As `check`."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificates = self.path / _CERTIFICATES
        certificates.mkdir(mode=0o700, exist_ok=True)
        self.check()
        for directory in (self.path, certificates):
            if stat.S_IMODE(directory.stat().st_mode) & 0o077:
                directory.chmod(0o700)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Say whether this process, and this thread of it, is now the one that may write. A crash lets go, too."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    # Accounts.

    def read_account(self, directory: str, eab_kid: str) -> Account | None:
        account = self._made(Account, self._account_path(directory, eab_kid))
        return account if account is not None and account.directory == directory else None

    def write_account(self, account: Account) -> None:
        self._write(self._account_path(account.directory, account.eab_kid), asdict(account))

    def _account_path(self, directory: str, eab_kid: str) -> Path:
        digest = hashlib.sha256(f"{directory}\n{eab_kid}".encode()).hexdigest()[:16]
        return self.path / f"account-{digest}.json"

    # The order that is under way.

    def read_order(self) -> PendingOrder | None:
        return self._made(PendingOrder, self.path / "order.json")

    def write_order(self, order: PendingOrder) -> None:
        self._write(self.path / "order.json", asdict(order))

    def forget_order(self) -> None:
        (self.path / "order.json").unlink(missing_ok=True)

    # What is remembered.

    def read_schedule(self) -> Schedule:
        return self._made(Schedule, self.path / "schedule.json") or Schedule()

    def write_schedule(self, schedule: Schedule) -> None:
        self._write(self.path / "schedule.json", asdict(schedule))

    # Certificates.

    def held(self) -> Held | None:
        """Return the certificate in use, None if there is none that could be served. Expired ones count."""
        version = self.current()
        if not version:
            return None
        if self._seen is None or self._seen[0] != version:
            self._seen = version, self._inspect(version)
        return self._seen[1]

    def current(self) -> str:
        """Return the version in use, whatever is in it; "" for none."""
        try:
            return Path(os.readlink(self.path / _CURRENT)).name
        except OSError:
            return ""

    def former(self) -> Held | None:
        """Return the newest version besides the one in use, None if there is none that could be served."""
        current = self.current()
        try:
            versions = [version for version in self._versions() if version != current]
        except OSError:
            return None
        return self._inspect(versions[-1]) if versions else None

    def _versions(self) -> list[str]:
        """Return what is complete, the oldest first."""
        entries = (self.path / _CERTIFICATES).iterdir()
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))

    def pair(self, held: Held) -> Pair:
        directory = self.path / _CERTIFICATES / held.version
        return Pair(directory / "certificate.pem", directory / "key.pem")

    def _inspect(self, version: str) -> Held | None:
        directory = self.path / _CERTIFICATES / version
        about = self._read(directory / "about.json") or {}
        try:
            key = load_key((directory / "key.pem").read_bytes())
            leaf = inspect((directory / "certificate.pem").read_bytes(), key)
        except (OSError, UnusableError) as error:
            logger.warning("the certificate in %s is not used: %s", directory, error)
            return None
        return Held(
            version=version,
            names=leaf.names,
            directory=str(about.get("directory", "")),
            not_before=leaf.not_before,
            not_after=leaf.not_after,
            identifier=leaf.identifier,
            challenge=str(about.get("challenge", "")),
            taken=_moment(about.get("taken")),
        )

    def install(self, chain: bytes, key: bytes, about: dict[str, str]) -> Held:
        """Put a certificate and its key in the place of the current ones, in one step.

        Raises UnusableError for a pair that could not be served: then nothing has changed.
        """
        inspect(chain, load_key(key))
        version = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"
        certificates = self.path / _CERTIFICATES
        unfinished = certificates / f"{_UNFINISHED}{version}"
        link = self.path / f"{_UNFINISHED}{_CURRENT}"
        try:
            unfinished.mkdir(mode=0o700)
            _create(unfinished / "key.pem", key)
            _create(unfinished / "certificate.pem", chain)
            _create(unfinished / "about.json", _json(about))
            # What a server would do with it, whose clock has its say elsewhere.
            load(PairFiles(unfinished / "certificate.pem", unfinished / "key.pem", issued=True), -math.inf)
            _flush(unfinished)
            unfinished.rename(certificates / version)
            _flush(certificates)
            link.unlink(missing_ok=True)
            link.symlink_to(Path(_CERTIFICATES) / version)
            link.rename(self.path / _CURRENT)
        except CertificateError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UnusableError("; ".join(error.problems).replace(f"{unfinished}/", "the new ")) from error
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _flush(self.path)
        held = self.held()
        if held is None:
            raise UnusableError("the certificate could not be read again")
        return held

    def tidy(self, served: str = "") -> None:
        """Remove old versions, what a crash has left half-written, and an order whose certificate is in use.

        The version that is `served` stays. For whoever holds the lock.
        """
        certificates = self.path / _CERTIFICATES
        current = self.current()
        former = [version for version in self._versions() if version != current]
        kept = {current, served, *former[-(KEPT_VERSIONS - 1) :]}
        for entry in certificates.iterdir():
            if entry.name not in kept:
                shutil.rmtree(entry, ignore_errors=True)
        order = self.read_order()
        with contextlib.suppress(FileNotFoundError):
            if order is not None and order.key.encode() == (self.path / _CURRENT / "key.pem").read_bytes():
                self.forget_order()
        for entry in self.path.glob(f"{_UNFINISHED}*"):
            entry.unlink(missing_ok=True)

    # Files.

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            with path.open("rb") as file:
                content = json.loads(file.read(_MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self._warn(path, str(error))
            return None
        return content if isinstance(content, dict) else None

    def _made(self, kind: type[KindT], path: Path) -> KindT | None:
        """Return a dataclass from a file, None unless each field is there and is what it should be."""
        content = self._read(path)
        if content is None:
            return None
        try:
            return kind(**{field.name: _FIELD[str(field.type)](content[field.name]) for field in fields(kind)})
        except (KeyError, TypeError, ValueError, OverflowError):
            self._warn(path, "it is not as hardserve has written it")
            return None

    def _warn(self, path: Path, why: str) -> None:
        # Once: it is read every minute.
        if path not in self._warned:
            self._warned.add(path)
            logger.warning("%s is not used: %s", path, why)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        # One writer at a time: the lock is held.
        unfinished = path.with_name(f"{_UNFINISHED}{path.name}")
        try:
            unfinished.unlink(missing_ok=True)
            _create(unfinished, _json(content))
            unfinished.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        _flush(path.parent)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def _create(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(directory: Path) -> None:
    """Have a renaming survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_text(item) for item in value)


def _moment(text: object) -> float:
    """Return a time of about.json, 0 for none."""
    try:
        moment = float(str(text))
    except ValueError:
        return 0.0
    return moment if math.isfinite(moment) else 0.0


def _window(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError
    start, end = value
    return _number(start), _number(end)


_FIELD: dict[str, Callable[[object], object]] = {
    "str": _text,
    "float": _number,
    "int": _count,
    "tuple[str, ...]": _texts,
    "tuple[float, float] | None": _window,
}
