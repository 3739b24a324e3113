"""What a server's settings say of HTTPS, put together: which certificates it has, and what is said of them.

Main thread, before anything listens, and the thread of a reload. Whatever is wrong with a certificate stops the start,
or the reload.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hardserve.addresses import HTTP_PORT, HTTPS_PORT, TcpAddress, parse_address, ports
from hardserve.configfiles import SettingsError
from hardserve.http.hostnames import covers, normal_name
from hardserve.tls import certificates, selfsigned
from hardserve.tls.acme.settings import HTTP_01, LETS_ENCRYPT, LETS_ENCRYPT_STAGING, TLS_ALPN_01, AcmeSettings
from hardserve.tls.certificates import CertificateError, day
from hardserve.tls.pemfiles import user_name
from hardserve.tls.policy import PairFiles
from hardserve.tls.store import CertificateStore, Success
from hardserve.tls.upkeep import tell
from hardserve.values import show

if TYPE_CHECKING:
    import ssl

    from hardserve.settings import CertificateSettings, Settings, TlsSettings
    from hardserve.tls.acme.challenges import Challenges
    from hardserve.tls.acme.manager import Manager
    from hardserve.tls.hello import ClientHello
    from hardserve.tls.upkeep import Renew

logger = logging.getLogger("hardserve.tls")

# Below the state directory.
SELF_SIGNED_DIRECTORY = "self-signed"
TEMPORARY_DIRECTORY = "temporary"  # self-signed, until the CA has issued one
ACME_DIRECTORY = "acme"
# More names than this are counted in the banner.
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Secured:
    """The certificates of a server.

    `renew` makes its own anew when it is time, `anew` at once, or raises CertificateError; None where they come from
    somebody else. `manager` is whoever has a CA issue one, and `challenges` what that CA asks for; None where there is
    no CA.
    """

    store: CertificateStore
    renew: Renew | None = None
    manager: Manager | None = None
    challenges: Challenges | None = None
    anew: Renew | None = None

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
        if first.self_signed and self.manager is not None:
            text = f"{names}: a self-signed one until the CA has issued another"
        return text

    def has(self, host: str) -> bool:
        """Return whether a certificate is for `host`, which has no port. Any thread."""
        name = normal_name(host)
        return name is not None and any(covers(pair.names, name) for pair in self.store.pairs)

    def renew_now(self) -> list[str]:
        """Renew what can be, and look at the files of the others; return what an operator should know.

        Any thread; may block on files. Raises CertificateError, and what was served is served on.
        """
        now = time.time()
        said = [] if self.anew is None else self.anew(now)
        said += self.store.reload(now)
        tell(said)
        if self.manager is not None:
            seconds = self.manager.renew_now()
            when = "now" if seconds < 1 else f"in {seconds:.0f} seconds, which is when the CA takes it"
            said.append(f"a new certificate is ordered {when}; the log says how that ends")
        return said or ["the files of the certificates were looked at: there is nothing new in them"]

    def context_for(self, hello: ClientHello) -> ssl.SSLContext | None:
        """Return what a CA is answered that looks whether a name is ours; None for everybody else. I/O thread."""
        challenges = self.challenges
        if challenges is None or not challenges.expects_handshakes or not hello.is_validation:
            return None
        name = hello.server_name
        return challenges.context_for_challenge(None if name is None else name.decode("ascii", "replace"))


def secured_by(settings: Settings, hosts: Sequence[str], environ: Mapping[str, str]) -> Secured:
    """Return the certificates of a server with these settings; `hosts` are the names that it serves.

    Blocks on files, and may make a certificate. Raises SettingsError with every problem.
    """
    files = list(_files(settings))
    now = time.time()
    renew = anew = None
    acme: Acme | None = None
    own: list[PairFiles] = []
    try:
        if settings.server.tls == "self-signed":
            directory = state_directory(settings.tls.state, environ) / SELF_SIGNED_DIRECTORY
            own, renew, anew = _self_signed(directory, own_names(settings, hosts), now)
        elif settings.tls.domain:
            acme = Acme(settings, environ)
            own = acme.first(now)
        others = list(pair_files(settings))
        store = _store(settings, [*own, *others])
        warnings = store.load(time.time())  # not earlier than what was just made
    except CertificateError as error:
        raise SettingsError([_placed(problem, files) for problem in error.problems]) from None
    for warning in warnings:
        logger.warning("%s", warning)
    if acme is None:
        return Secured(store, renew, anew=anew)
    acme.installs(store, others)
    return Secured(store, None, acme.manager, acme.challenges)


def _store(settings: Settings, pairs: Sequence[PairFiles]) -> CertificateStore:
    return CertificateStore(
        pairs,
        unknown="refuse" if settings.tls.unknown_names == "refuse" else "default",
        client_ca=None if settings.tls.client_ca == "none" else _path(settings.tls.client_ca),
        client_certificates=settings.tls.client_certificates,  # type: ignore[arg-type]  # one of the same words
    )


def check_certificates(settings: Settings) -> None:
    """Look whether the files that somebody else keeps could be served now. Any thread; blocks on files.

    Raises SettingsError with every problem.
    """
    try:
        _store(settings, list(pair_files(settings))).load(time.time())
    except CertificateError as error:
        files = list(_files(settings))
        raise SettingsError([_placed(problem, files) for problem in error.problems]) from None


def _path(text: str) -> Path:
    return Path(text).absolute()  # the app may go to another directory, and files are looked at again later


def pair_files(settings: Settings) -> Iterator[PairFiles]:
    """Yield the files that somebody else keeps, in the operator's order. Pure."""
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


def own_names(settings: Settings, hosts: Sequence[str]) -> tuple[str, ...]:
    """Return the names and addresses that clients may call this server by, those first that somebody has named."""
    names: list[str] = []
    for host in hosts:
        names += [host[1:], f"*{host}"] if host.startswith(".") else [host]
    for text in settings.server.bind:
        address = parse_address(text)
        if isinstance(address, TcpAddress) and address.host not in ("0.0.0.0", "::"):  # noqa: S104  # not bound here
            names.append(address.host)
    return tuple(dict.fromkeys((*names, *selfsigned.host_names())))


def _self_signed(directory: Path, names: Sequence[str], now: float) -> tuple[list[PairFiles], Renew, Renew]:
    def keep(now: float, *, force: bool = False) -> selfsigned.SelfSigned:
        try:
            return selfsigned.keep(directory, names, now, force=force)
        except OSError as error:
            raise _not_kept(directory, error) from None

    def renew(now: float) -> list[str]:
        try:
            kept = keep(now)
        except CertificateError as error:
            return error.problems
        return [_of_new(kept)] if kept.made else []

    def anew(now: float) -> list[str]:
        return [_of_new(keep(now, force=True))]

    kept = keep(now)
    if kept.made:
        logger.info("a self-signed certificate was made in %s: %s", directory, kept.why)
    return [kept.pair.files], renew, anew


def _of_new(kept: selfsigned.SelfSigned) -> Success:
    return Success(f"a new self-signed certificate was made: {kept.why}; SHA-256 {kept.pair.fingerprint}")


def _not_kept(directory: Path, error: OSError) -> CertificateError:
    """Return what there is to say where `directory`, which is in the state directory, is of no use."""
    where = directory if os.path.lexists(directory) else directory.parent
    who = f" by user {user_name(os.geteuid())}" if isinstance(error, PermissionError) else ""
    problem = f"certificates cannot be kept in {where}{who}: {error.strerror or error}"
    return CertificateError([f"{problem}; tls.state can name another directory"])


# --- a certificate that a CA issues ---


def acme_settings(settings: Settings) -> AcmeSettings | None:
    """Return what is said about the CA, None if no certificate of one is wanted. Pure."""
    if not settings.tls.domain:
        return None
    acme = settings.acme
    if acme.challenge != "auto":
        challenges: tuple[str, ...] = (acme.challenge,)
    elif settings.server.redirect:
        challenges = (HTTP_01, TLS_ALPN_01)
    else:
        challenges = (TLS_ALPN_01,)
    return AcmeSettings(
        names=settings.tls.domain,
        agree=acme.agree == "on",
        email=_unless_none(acme.email),
        directory=_DIRECTORIES.get(acme.directory, acme.directory),
        challenges=challenges,
        eab_kid=_unless_none(acme.eab_kid),
        eab_key_file=_path(acme.eab_key_file) if acme.eab_key_file != "none" else None,
        ca_file=_path(acme.ca_file) if acme.ca_file != "none" else None,
        profile=_unless_none(acme.profile),
    )


def acme_directory(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Return where what a CA issues is kept. Raises SettingsError if nobody says where."""
    return state_directory(settings.tls.state, environ) / ACME_DIRECTORY


_DIRECTORIES = {"letsencrypt": LETS_ENCRYPT, "letsencrypt-staging": LETS_ENCRYPT_STAGING}


def _unless_none(text: str) -> str:
    return "" if text == "none" else text


class Acme:
    """The certificate of a CA, on its way into a store that is made after it. Main thread, but for what it installs."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        """Raises SettingsError where what it takes is not installed."""
        try:
            from hardserve.tls.acme.challenges import Challenges  # noqa: PLC0415  # an extra
            from hardserve.tls.acme.manager import Manager  # noqa: PLC0415
        except ImportError:
            problem = 'tls_domain: needs what `pip install "hardserve[acme]"` brings'
            raise SettingsError([problem]) from None
        wanted = acme_settings(settings)
        assert wanted is not None
        server = settings.server
        if HTTPS_PORT not in ports(server.bind) and HTTP_PORT not in ports(server.redirect):
            logger.warning(
                "a CA asks on the ports 443 and 80, and this server listens on neither: no certificate will be issued "
                "unless a router maps one of them"
            )
        self._temporary = state_directory(settings.tls.state, environ) / TEMPORARY_DIRECTORY
        self._names = wanted.names
        self._pair: PairFiles | None = None  # before there is a store
        self._store: CertificateStore | None = None
        self._others: Sequence[PairFiles] = ()
        self.challenges = Challenges()
        self._directory = acme_directory(settings, environ)
        self.manager = Manager(wanted, self._directory, self.challenges, self._installed)

    def __repr__(self) -> str:
        return f"<Acme {self.manager!r}>"

    def first(self, now: float) -> list[PairFiles]:
        """Return what to begin with: what the CA has issued before, or else a temporary one."""
        try:
            if self.manager.take() and self._pair is not None:
                return [self._pair]
            self.manager.check()
        except PermissionError as error:
            raise _not_kept(self._directory, error) from None
        return _self_signed(self._temporary, self._names, now)[0]

    def installs(self, store: CertificateStore, others: Sequence[PairFiles]) -> None:
        """From now on, have `store` serve what is issued, before `others`."""
        self._store, self._others = store, others

    def _installed(self, certificate: Path, key: Path) -> None:
        """ACME thread, and the main thread in `first`. Raises CertificateError, `passing` if others are to blame."""
        pair = PairFiles(certificate, key, issued=True)
        now = time.time()
        certificates.load(pair, now)
        if self._store is not None:
            try:
                warnings = self._store.use([pair, *self._others], now)
            except CertificateError as error:
                raise CertificateError(error.problems, passing=True) from error
            for warning in warnings:
                logger.warning("%s", warning)
        self._pair = pair
