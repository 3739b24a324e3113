"""What `hardserve cert` shows: each certificate of a configuration, until when it is good, and when it is renewed.

Any thread; reads files, so it may block. It runs beside a server or without one, and changes nothing: no certificate is
made, no directory, no mode is set right. What it says is therefore true of the files. A server that has not taken a
broken replacement still has what was there before, and its log says so.

Everything that can be found out about a certificate is, also where it could not be served: an operator who is told
that a key does not fit wants to know which certificate that is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hardserve.http.hostnames import covers, normal_name
from hardserve.securing import (
    SELF_SIGNED_DIRECTORY,
    acme_directory,
    acme_settings,
    own_names,
    pair_files,
    state_directory,
)
from hardserve.tls import certificates, pemfiles, selfsigned
from hardserve.tls.certificates import DAY_S, CertificateError, day, fingerprint_of, minute
from hardserve.tls.policy import PairFiles
from hardserve.tls.store import threshold
from hardserve.values import show

if TYPE_CHECKING:
    from hardserve.settings import Settings
    from hardserve.tls.acme.manager import CertificateStatus
    from hardserve.tls.acme.settings import AcmeSettings

Source = Literal["file", "self-signed", "acme"]

_AS_WHOM = "not everything can be seen: run this as the user that the server runs as, or as root"
# Why OpenSSL does not take a key with a certificate, rather than one of the two.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is in a certificate; `names` as http.hostnames compares them, times in seconds of the epoch."""

    names: tuple[str, ...]
    issuer: str
    self_signed: bool
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Renewal:
    """When another certificate is made or ordered, from seconds of the epoch on; in the past: as soon as may be."""

    at: float
    why: str
    failures: int = 0  # in a row
    error: str = ""  # of the last one


@dataclass(frozen=True, slots=True)
class Holding:
    """A certificate of a configuration, or the place of one that is missing.

    `problems` are why it cannot be served now, `warnings` what else there is to say. `facts` and `fingerprint` are
    missing where they cannot be found out, `key_fits` is None then. `renewal` is None where somebody else renews, and
    where we may not look.
    """

    source: Source
    files: PairFiles
    authority: str = ""  # the URL of the CA's directory
    wanted: tuple[str, ...] = ()  # what the CA is asked for
    facts: Facts | None = None
    fingerprint: str = ""  # SHA-256, as browsers show it
    key_fits: bool | None = None
    renewal: Renewal | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def held(settings: Settings, environ: Mapping[str, str], now: float) -> list[Holding]:
    """Return every certificate of these settings, in the order in which a server would have them.

    `now` is in seconds of the epoch. Raises SettingsError where nobody says what directory certificates are kept in.
    """
    holdings: list[Holding] = []
    if settings.server.tls == "self-signed":
        directory = state_directory(settings.tls.state, environ) / SELF_SIGNED_DIRECTORY
        holdings.append(of_our_own(directory, own_names(settings, settings.access.hosts), now))
    acme = acme_settings(settings)
    if acme is not None:
        holdings.append(of_authority(acme, acme_directory(settings, environ), now))
    if settings.tls.state == "auto" and not environ.get("STATE_DIRECTORY"):
        hint = 'a service may have its own directory for tls.state = "auto": name it with --tls-state'
        holdings = [each if each.fingerprint else replace(each, warnings=(*each.warnings, hint)) for each in holdings]
    holdings += [of_files(files, now) for files in dict.fromkeys(pair_files(settings))]
    if not settings.serves_tls:
        unused = 'server.tls is "off", so that nobody is served it'
        holdings = [replace(each, warnings=(*each.warnings, unused)) for each in holdings]
    return holdings


def is_good(holdings: Sequence[Holding]) -> bool:
    """Return whether there is a certificate, and none that is missing, expired or otherwise of no use."""
    return bool(holdings) and not any(each.problems for each in holdings)


# --- by where they come from ---


def of_files(files: PairFiles, now: float, source: Source = "file") -> Holding:
    """Return what there is to say about a pair of files. Never raises for what is in them."""
    try:
        pair = certificates.load(files, -math.inf)  # what has expired is looked into, too
    except CertificateError as error:
        reason = getattr(error.__cause__, "reason", None)
        der = _first_certificate(files.certificate)
        return _judged(
            Holding(
                source,
                files,
                facts=_facts_of(der),
                fingerprint=fingerprint_of(der) if der else "",
                key_fits=False if reason in _MISMATCHES else None,
                problems=tuple(error.problems),
                warnings=(_AS_WHOM,) if _is_hidden(files) else (),
            ),
            now,
        )
    facts = Facts(pair.names, pair.issuer, pair.self_signed, pair.not_before, pair.not_after)
    holding = Holding(source, files, facts=facts, fingerprint=pair.fingerprint, key_fits=True, warnings=pair.warnings)
    return _judged(holding, now)


def of_our_own(directory: Path, names: Sequence[str], now: float) -> Holding:
    """Return what there is to say about the self-signed certificate in `directory`, which should be for `names`."""
    files = selfsigned.files_in(directory)
    seen = _look(files.certificate)
    if seen == "missing":
        lacking = f"there is none in {directory} yet: a server makes it as it starts"
        return Holding("self-signed", files, problems=(lacking,))
    holding = of_files(files, now, "self-signed")
    if seen == "hidden":
        return holding
    facts = holding.facts
    if facts is None or not holding.key_fits:
        return replace(holding, renewal=Renewal(now, "this one cannot be served"))
    at, why = selfsigned.next_time(facts.names, facts.not_before, facts.not_after, names, now)
    return replace(holding, renewal=Renewal(at, why))


def of_authority(acme: AcmeSettings, directory: Path, now: float) -> Holding:
    """Return what there is to say about the certificate in `directory`, which a CA issues."""
    current = directory / "current"
    files = PairFiles(current / "certificate.pem", current / "key.pem", issued=True)
    status: CertificateStatus | None = None
    lacking: tuple[str, ...] = ()
    with _said("hardserve.acme") as said:
        try:
            from hardserve.tls.acme.manager import status_of  # noqa: PLC0415  # an extra
        except ImportError as error:
            lacking = (f'it needs what `pip install "hardserve[acme]"` brings: {error}',)
        else:
            (status,) = status_of(acme, directory, now)
    if status is not None and status.path is not None:  # where `current` leads, which may change at any moment
        files = PairFiles(status.path, status.path.with_name(files.key.name), issued=True)
    seen = _look(files.certificate)
    if seen == "missing":
        none = f"there is none in {directory} yet: a server has a temporary one until the CA has issued it"
        holding = Holding("acme", files, problems=(none,))
    else:
        holding = of_files(files, now, "acme")
    if holding.facts is not None:
        missing = [name for name in acme.names if not covers(holding.facts.names, name)]
        lacking += (f"it is not for {', '.join(missing)}",) if missing else ()
    renewal = None
    if status is not None and seen != "hidden":
        renewal = Renewal(status.next_attempt, status.why, status.failures, status.error)
    return replace(
        holding,
        authority=acme.directory if status is None else status.directory,
        wanted=acme.names if status is None else status.names,
        renewal=renewal,
        problems=(*lacking, *holding.problems),
        warnings=(*said, *holding.warnings),
    )


def _is_hidden(files: PairFiles) -> bool:
    """Return whether this user may not read some of the files that are there."""
    looks = [(path, _look(path)) for path in files.paths]
    return any(
        seen == "hidden" or (seen == "there" and not os.access(path, os.R_OK, effective_ids=True))
        for path, seen in looks
    )


def _look(path: Path) -> Literal["there", "missing", "hidden"]:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "hidden"
    return "there"


@contextlib.contextmanager
def _said(name: str) -> Iterator[list[str]]:
    """Have what is logged meanwhile be in a list: here nobody has said where the log goes."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


# --- what is in one ---


def _judged(holding: Holding, now: float) -> Holding:
    """Add what the time has to say."""
    facts = holding.facts
    if facts is None:
        return holding
    problems, warnings = list(holding.problems), list(holding.warnings)
    path = holding.files.certificate
    if now >= facts.not_after:
        problems.append(f"the certificate in {path} has expired, on {day(facts.not_after)}")
    elif now < facts.not_before:
        warnings.append(
            f"the certificate in {path} is not valid before {minute(facts.not_before)}, "
            f"and by this machine's clock it is {minute(now)}"
        )
    elif threshold(facts.not_before, facts.not_after, now) is not None:
        warnings.append(f"the certificate in {path} should have been renewed by now: it has {_left(facts, now)}")
    return replace(holding, problems=tuple(problems), warnings=tuple(warnings))


def _first_certificate(path: Path) -> bytes:
    """Return the certificate at the head of a file, b"" if there is none."""
    try:
        # Non-blocking is for what is no regular file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            data = file.read(pemfiles.MAX_CERTIFICATE_BYTES)
    except OSError:
        return b""
    return next(pemfiles.certificates_in(data or b""), b"")


def _facts_of(der: bytes) -> Facts | None:
    """Return what is in a certificate that cannot be served; Python alone cannot tell, so that takes the package."""
    try:
        from cryptography import x509  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    try:
        certificate = x509.load_der_x509_certificate(der)
        names: list[str] = []
        with contextlib.suppress(x509.ExtensionNotFound):
            general = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names += general.get_values_for_type(x509.DNSName)
            names += map(str, general.get_values_for_type(x509.IPAddress))
        of_issuer = {each.oid: str(each.value) for each in certificate.issuer}
        preferred = [of_issuer.get(oid) for oid in (x509.NameOID.COMMON_NAME, x509.NameOID.ORGANIZATION_NAME)]
        return Facts(
            tuple(dict.fromkeys(name for name in map(normal_name, names) if name is not None)),
            next((name for name in (*preferred, *of_issuer.values()) if name), ""),
            certificate.issuer == certificate.subject,
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )
    except Exception:
        # It is damaged in one of many ways, and that it is has been said.
        return None


# --- for people ---


def in_words(holdings: Sequence[Holding], now: float) -> str:
    """Write holdings for people: a paragraph each."""
    return "\n\n".join("\n".join(_paragraph(each, now)) for each in holdings)


def _paragraph(holding: Holding, now: float) -> Iterator[str]:
    yield _TITLES[holding.source].format(_plain(holding.authority))
    for name, value in _rows(holding, now):
        yield f"  {name:<12}  {_plain(value)}"


_TITLES: Mapping[Source, str] = {"file": "from files", "self-signed": "self-signed", "acme": "from the CA at {}"}
_FITS = {True: ", which fits", False: ", which does not fit", None: ""}


def _rows(holding: Holding, now: float) -> Iterator[tuple[str, str]]:
    for problem in holding.problems:
        yield "PROBLEM", problem
    facts = holding.facts
    if holding.wanted and (facts is None or not set(holding.wanted) <= set(facts.names)):
        yield "wanted for", ", ".join(holding.wanted)
    if facts is not None:
        yield "for", ", ".join(facts.names) or "no name"
        yield "issued by", "itself" if facts.self_signed else facts.issuer
        yield "valid", f"{minute(facts.not_before)} to {minute(facts.not_after)} UTC, {_left(facts, now)}"
    if holding.fingerprint:
        yield "SHA-256", holding.fingerprint
    yield "certificate", str(holding.files.certificate)
    yield "key", f"{holding.files.key}{_FITS[holding.key_fits]}"
    renewal = holding.renewal
    if holding.source == "file":
        yield "renewal", "by whoever keeps these files; a server takes the new ones within seconds"
    if renewal is not None:
        when = "now, or as soon as a server runs" if renewal.at <= now else f"{minute(renewal.at)} UTC"
        yield "renewal", f"{when}: {renewal.why}"
        if renewal.failures:
            times = "once" if renewal.failures == 1 else f"{renewal.failures} times in a row"
            yield "failed", f"{times}: {renewal.error}"
    for warning in holding.warnings:
        yield "warning", warning


def _left(facts: Facts, now: float) -> str:
    days = int(abs(facts.not_after - now) // DAY_S)
    text = "less than a day" if not days else "1 day" if days == 1 else f"{days} days"
    return f"{text} left" if now < facts.not_after else f"expired {text} ago"


def _plain(text: str) -> str:
    """Return a line that cannot steer a terminal, whoever has written it."""
    return text if text.isprintable() else show(text)


# --- for scripts ---


def in_json(holdings: Sequence[Holding], now: float) -> str:
    """Write holdings as JSON; the README says which keys there are, and each is there in every case."""
    document = {"ok": is_good(holdings), "certificates": [_object(each, now) for each in holdings]}
    return json.dumps(document, indent=2)


def _object(holding: Holding, now: float) -> dict[str, Any]:
    facts, renewal = holding.facts, holding.renewal
    return {
        "source": holding.source,
        "authority": holding.authority or None,
        "certificate": str(holding.files.certificate),
        "key": str(holding.files.key),
        "key_fits": holding.key_fits,
        "wanted": list(holding.wanted),
        "names": [] if facts is None else list(facts.names),
        "issuer": None if facts is None else facts.issuer,
        "self_signed": None if facts is None else facts.self_signed,
        "not_before": None if facts is None else _time(facts.not_before),
        "not_after": None if facts is None else _time(facts.not_after),
        "days_left": None if facts is None else round((facts.not_after - now) / DAY_S, 2),
        "fingerprint_sha256": holding.fingerprint or None,
        "next_renewal": None if renewal is None else _time(max(renewal.at, now)),
        "renewal_reason": None if renewal is None else renewal.why,
        "failures": 0 if renewal is None else renewal.failures,
        "last_error": None if renewal is None else renewal.error or None,
        "problems": list(holding.problems),
        "warnings": list(holding.warnings),
    }


def _time(seconds: float) -> str | None:
    """Write a time as RFC 3339 has it, in UTC and to the second; None for what no calendar has."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return None
