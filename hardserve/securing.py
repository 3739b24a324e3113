"""What a server's settings say of HTTPS, put together: which certificates it has, and what is said of them.

Main thread, once, before anything listens. Whatever is wrong with a certificate stops the start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hardserve.addresses import TcpAddress, parse_address
from hardserve.configfiles import SettingsError
from hardserve.tls import selfsigned
from hardserve.tls.certificates import CertificateError, Pair, day
from hardserve.tls.names import covers, normal_name
from hardserve.tls.policy import PairFiles
from hardserve.tls.store import CertificateStore
from hardserve.values import show

if TYPE_CHECKING:
    from hardserve.settings import CertificateSettings, Settings, TlsSettings
    from hardserve.tls.upkeep import Renew

logger = logging.getLogger("hardserve.tls")

SELF_SIGNED_DIRECTORY = "self-signed"  # below the state directory
# More names than this are counted in the banner.
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Secured:
    """The certificates of a server. `renew` makes its own anew; None where they come from somebody else."""

    store: CertificateStore
    renew: Renew | None = None

    @property
    def about(self) -> str:
        """What the banner says: for whom the certificate is, until when, and how to know one that nobody has signed."""
        first, *others = self.store.pairs
        names = ", ".join(first.names[:NAMES_SHOWN]) or "no name"
        if len(first.names) > NAMES_SHOWN:
            names += f" and {len(first.names) - NAMES_SHOWN} more"
        text = f"{names} until {day(first.not_after)}"
        if others:
            text += f", and {len(others)} more"
        if first.self_signed:
            text = f"self-signed, until {day(first.not_after)}; SHA-256 {first.fingerprint}"
        return text

    def has(self, host: str) -> bool:
        """Return whether a certificate is for `host`, which has no port. Any thread."""
        name = normal_name(host)
        return name is not None and any(covers(pair.names, name) for pair in self.store.pairs)


def secured_by(settings: Settings, hosts: Sequence[str], environ: Mapping[str, str]) -> Secured:
    """Return the certificates of a server with these settings; `hosts` are the names that it serves.

    Blocks on files, and may make a certificate. Raises SettingsError with every problem.
    """
    renew = None
    files = list(_files(settings))
    now = time.time()
    try:
        if settings.server.tls == "self-signed":
            directory = state_directory(settings.tls.state, environ) / SELF_SIGNED_DIRECTORY
            pairs, renew = _self_signed(directory, _names(settings, hosts), now)
        else:
            pairs = list(_pairs(settings))
        store = CertificateStore(
            pairs,
            unknown="refuse" if settings.tls.unknown_names == "refuse" else "default",
            client_ca=None if settings.tls.client_ca == "none" else _path(settings.tls.client_ca),
            client_certificates=settings.tls.client_certificates,  # type: ignore[arg-type]  # one of the same words
        )
        warnings = store.load(now)
    except CertificateError as error:
        raise SettingsError([_placed(problem, files) for problem in error.problems]) from None
    for warning in warnings:
        if not (renew and _is_of_itself(warning, store.pairs)):
            logger.warning("%s", warning)
    return Secured(store, renew)


def _is_of_itself(warning: str, pairs: Sequence[Pair]) -> bool:
    """Return whether a warning says of a certificate that we made what everybody knows who asked for it."""
    return any(warning in pair.warnings for pair in pairs)


def _path(text: str) -> Path:
    return Path(text).absolute()  # the app may go to another directory, and files are looked at again later


def _pairs(settings: Settings) -> Iterator[PairFiles]:
    own: list[TlsSettings | CertificateSettings] = [settings.tls] if settings.tls.certificate != "none" else []
    for each in (*own, *settings.certificate):
        secret = _path(each.passphrase_file) if each.passphrase_file not in ("", "none") else None
        yield PairFiles(_path(each.certificate), _path(each.key), secret)


def _files(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield how a message about a file begins, and the file's path as messages have it."""
    for name in ("certificate", "key", "passphrase_file", "client_ca"):
        text = getattr(settings.tls, name)
        yield f"tls_{name} = {show(text)}", str(_path(text))
    for index, each in enumerate(settings.certificate):
        for name in ("certificate", "key", "passphrase_file"):
            text = getattr(each, name)
            yield f"certificate[{index}].{name} = {show(text)}", str(_path(text))


def _placed(problem: str, files: Sequence[tuple[str, str]]) -> str:
    """Begin a message about a file with the setting that names it: of several, the one that it names first."""
    found = [(problem.index(path), -len(path), where) for where, path in files if path in problem]
    return f"{min(found)[2]}: {problem}" if found else problem


# --- a certificate of our own ---


def state_directory(setting: str, environ: Mapping[str, str]) -> Path:
    """Return where what has to outlive the server is kept. Raises SettingsError if nobody says where."""
    if setting != "auto":
        return _path(setting)
    of_service = environ.get("STATE_DIRECTORY", "").partition(":")[0]  # systemd.exec(5): several, and absolute
    if of_service:
        return Path(of_service)
    base = environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):  # others are to be ignored (XDG Base Directory Specification)
        return Path(base) / "hardserve"
    try:
        return Path.home() / ".local" / "state" / "hardserve"
    except RuntimeError:
        problem = 'tls_state = "auto": expected the path of a directory, for this user has no home'
        raise SettingsError([problem]) from None


def _names(settings: Settings, hosts: Sequence[str]) -> tuple[str, ...]:
    """Return the names and addresses that clients may call this server by, those first that somebody has named."""
    names: list[str] = []
    for host in hosts:
        names += [host[1:], f"*{host}"] if host.startswith(".") else [host]
    for text in settings.server.bind:
        address = parse_address(text)
        if isinstance(address, TcpAddress) and address.host not in ("0.0.0.0", "::"):  # noqa: S104  # not bound here
            names.append(address.host)
    return tuple(dict.fromkeys((*names, *selfsigned.host_names())))


def _self_signed(directory: Path, names: Sequence[str], now: float) -> tuple[list[PairFiles], Renew]:
    def keep(now: float) -> selfsigned.SelfSigned:
        try:
            return selfsigned.keep(directory, names, now)
        except OSError as error:
            where = error.filename or directory
            problem = f"a self-signed certificate cannot be kept in {where}: {error.strerror or error}"
            raise CertificateError([f"{problem}; tls.state can name another directory"]) from None

    def renew(now: float) -> list[str]:
        try:
            kept = keep(now)
        except CertificateError as error:
            return error.problems
        return [f"a new self-signed certificate was made: {kept.why}"] if kept.made else []

    kept = keep(now)
    if kept.made:
        logger.info("a self-signed certificate was made in %s: %s", directory, kept.why)
    return [kept.pair.files], renew
