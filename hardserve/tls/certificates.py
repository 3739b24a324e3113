"""One certificate with its key: loaded, looked into, judged.

Main thread at start, a check thread after that: reads files and computes signatures, so it may block for some
milliseconds. It knows no connection and no other pair.

How a certificate is read
-------------------------
Python's `ssl` loads certificates and, in public, tells what is in one only after a handshake. The package
`cryptography` could tell, but would be a large thing to install for somebody who brings a certificate and needs
nothing else; an own reader of DER is a parser too many. So the context that will serve does a handshake in memory, with
a client that trusts this one certificate (VERIFY_X509_PARTIAL_CHAIN) and does not look at the time. That takes a
millisecond, and has two merits: what is learnt is true of what the context really serves, whatever has happened to the
files since; and OpenSSL's own client has then taken the certificate for that of a server.

A second client, which trusts the roots of this machine, tells whether the chain leads to one of them. Both stop when
they have the server's part, so a context that asks for client certificates does as well.

Times are judged apart from that (`judge`), by a clock that is passed in: a Raspberry Pi has no battery and may think
that it is 1970 when it starts. A certificate of the future is therefore a warning and not an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hardserve.http.hostnames import normal_name
from hardserve.tls import pemfiles
from hardserve.tls.pemfiles import CertificateError, Contents
from hardserve.tls.policy import PairFiles, server_context
from hardserve.values import show

__all__ = ["CertificateError", "Pair", "day", "fingerprint_of", "judge", "load"]

DAY_S = 86_400
# A certificate that was made a moment ago is no sign of a wrong clock.
SKEW_S = 60.0
# X509_V_FLAG_NO_CHECK_TIME and codes of X509_verify_cert (openssl/x509_vfy.h), for which Python has no names.
_NO_CHECK_TIME = 0x200000
_UNKNOWN_ISSUER = (2, 20, 21)
_SELF_SIGNED, _OWN_ROOT, _WRONG_PURPOSE = 18, 19, 26
# A handshake in memory is over after three turns.
_MAX_TURNS = 10

# Reasons of OpenSSL's that say what is wrong with the files, and what we say.
_REASONS = {
    "KEY_VALUES_MISMATCH": "{key} is not the key of the certificate in {certificate}",
    "NO_CERTIFICATE_ASSIGNED": "{key} is not the key of the certificate in {certificate}: they are of different kinds",
    "EE_KEY_TOO_SMALL": "the key of {certificate} is too short: expected at least 2048 bits of RSA, or P-256",
    "CA_KEY_TOO_SMALL": "a certificate above the first in {certificate} has a key too short to be safe",
    "EE_MD_TOO_WEAK": "the certificate in {certificate} is signed with SHA-1 or MD5, which no client takes any more",
    "CA_MD_TOO_WEAK": "a certificate in {certificate} is signed with SHA-1 or MD5, which no client takes any more",
}
_MISMATCHES = frozenset({"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate that can be served, and what is in it.

    `names` are host names, wildcards and addresses as http.hostnames compares them. Times are seconds of the epoch.
    `fingerprint` is SHA-256 as browsers show it. `warnings` are about the files and the chain, not the time.
    """

    files: PairFiles
    names: tuple[str, ...]
    not_before: float
    not_after: float
    fingerprint: str
    issuer: str
    self_signed: bool
    warnings: tuple[str, ...]
    context: ssl.SSLContext

    def __repr__(self) -> str:
        return f"<Pair {self.files.certificate} for {', '.join(self.names)} until {day(self.not_after)}>"

    @property
    def certificate(self) -> Path:
        return self.files.certificate

    @property
    def key(self) -> Path:
        return self.files.key


def day(seconds: float) -> str:
    """Write a time as its day, in UTC: 2026-11-26."""
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "never"


def minute(seconds: float) -> str:
    """Write a time to the minute, in UTC: 2026-11-26 03:04."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):
        return "never"


def fingerprint_of(der: bytes) -> str:
    return hashlib.sha256(der).digest().hex(":").upper()


def judge(pair: Pair, now: float) -> tuple[list[str], list[str]]:
    """Return errors and warnings about the time `now`, in seconds of the epoch. Pure."""
    if now >= pair.not_after:
        return [f"the certificate in {pair.certificate} has expired, on {day(pair.not_after)}"], []
    if now < pair.not_before - SKEW_S:
        when = f"not valid before {minute(pair.not_before)}, and by this machine's clock it is {minute(now)}"
        return [], [f"the certificate in {pair.certificate} is {when}: served all the same, as the clock may be wrong"]
    return [], []


def load(files: PairFiles, now: float, *, make: Callable[[PairFiles], ssl.SSLContext] = server_context) -> Pair:
    """Load a pair and check everything about it; `make` makes its context. May block.

    Raises CertificateError for what cannot be served, among it what has expired by `now` (seconds of the epoch).
    """
    before = pemfiles.signature(files.paths)
    contents = pemfiles.read(files)
    context = _context(files, contents, make)
    der, facts = _facts(files, context)
    if der != contents.chain[0] or pemfiles.signature(files.paths) != before:
        raise CertificateError([f"{files.certificate} or {files.key} was changed while it was read"], passing=True)
    names, warnings = _names(files, facts)
    if not files.issued:
        warnings += _chain_warnings(files, contents.chain, facts, *_verify(context, _roots_client()))
    pair = Pair(
        files,
        names,
        *_times(files, facts),
        fingerprint_of(der),
        _common_name(facts.get("issuer", ())),
        facts.get("subject") == facts.get("issuer"),
        (*contents.warnings, *warnings),
        context,
    )
    errors, _ = judge(pair, now)
    if errors:
        raise CertificateError(errors)
    return pair


# --- loading ---


def _context(files: PairFiles, contents: Contents, make: Callable[[PairFiles], ssl.SSLContext]) -> ssl.SSLContext:
    broken = [number for number, der in enumerate(contents.chain, 1) if _authority(der) is None]
    if broken:
        which = "" if len(contents.chain) == 1 else f" (number {broken[0]} of {len(contents.chain)})"
        raise CertificateError([f"a certificate in {files.certificate} is damaged{which}"], passing=True)
    try:
        return make(files)
    except ssl.SSLError as error:
        reason = error.reason or ""
        said = _REASONS.get(reason) or _of_key(files, contents, error)
        problem = said.format(certificate=files.certificate, key=files.key)
        if reason == "KEY_VALUES_MISMATCH" and _begins_with_authority(contents.chain):
            problem += ", whose first is an authority's: the server's own has to come first, then its intermediates"
        raise CertificateError([problem], passing=reason in _MISMATCHES or not reason) from error
    except OSError as error:
        where = error.filename or files.certificate
        raise CertificateError([f"{where} cannot be read: {error.strerror or error}"], passing=True) from error


def _of_key(files: PairFiles, contents: Contents, error: ssl.SSLError) -> str:
    # The certificates were good, so that a nameless error of the PEM reader is about the key.
    if error.reason:
        return f"OpenSSL does not take {{certificate}} with {{key}}: {error.reason.lower().replace('_', ' ')}"
    if contents.encrypted:
        return f"the passphrase in {files.passphrase_file} does not open {{key}}"
    return "{key} is damaged, or of a kind that OpenSSL does not know"


def _authority(der: bytes) -> tuple[Mapping[str, Any], ...] | None:
    """Return what is in a certificate if it is an authority's, () for any other, None if it is damaged."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=der)
    except (ssl.SSLError, ValueError):
        return None
    return tuple(context.get_ca_certs())


def _begins_with_authority(chain: Sequence[bytes]) -> bool:
    return bool(_authority(chain[0])) and any(_authority(der) == () for der in chain[1:])


# --- looking into it ---


def _client() -> ssl.SSLContext:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= _NO_CHECK_TIME
    # Here a client has the whole of the server's certificate before it has to show its own.
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    return client


def _roots_client() -> ssl.SSLContext:
    client = _client()
    client.load_default_certs()
    return client


def _facts(files: PairFiles, context: ssl.SSLContext) -> tuple[bytes, Mapping[str, Any]]:
    """Return the certificate that `context` serves, as DER and taken apart."""
    blind, client = _client(), _client()
    blind.verify_mode = ssl.CERT_NONE
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        der = _handshake(context, blind).getpeercert(True) or b""
        client.load_verify_locations(cadata=der)
        return der, _handshake(context, client).getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _WRONG_PURPOSE:
            problem = f"the certificate in {files.certificate} is not one for servers, says its extended key usage"
        else:
            problem = f"clients do not take the certificate in {files.certificate}: {error.verify_message}"
        raise CertificateError([problem]) from error
    except (ssl.SSLError, ValueError) as error:  # the latter for what is in it and cannot be read
        reason = getattr(error, "reason", None) or str(error)
        problem = f"a handshake with the certificate in {files.certificate} fails: {reason.lower().replace('_', ' ')}"
        raise CertificateError([problem]) from error


def _handshake(server_side: ssl.SSLContext, client_side: ssl.SSLContext) -> ssl.SSLObject:
    """Return the client's end of a handshake in memory, once that is done. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server)
    for _ in range(_MAX_TURNS):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            return client
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
    raise ssl.SSLError("a handshake in memory did not end")


def _verify(context: ssl.SSLContext, client: ssl.SSLContext) -> tuple[int, str]:
    """Return the code and words with which `client` finds fault with the chain, 0 if it does not."""
    try:
        _handshake(context, client)
    except ssl.SSLCertVerificationError as error:
        return error.verify_code, error.verify_message
    return 0, ""


def _times(files: PairFiles, facts: Mapping[str, Any]) -> tuple[float, float]:
    try:
        return ssl.cert_time_to_seconds(str(facts["notBefore"])), ssl.cert_time_to_seconds(str(facts["notAfter"]))
    except ValueError as error:
        raise CertificateError([f"the certificate in {files.certificate} has a time that is none"]) from error


def _names(files: PairFiles, facts: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """Return the names that clients compare with, in the certificate's order, and warnings."""
    names: dict[str, None] = {}
    odd = []
    for kind, value in facts.get("subjectAltName", ()):
        if kind not in ("DNS", "IP Address"):
            continue
        if (name := normal_name(str(value))) is not None:
            names[name] = None
        else:
            odd.append(show(str(value)))
    warnings = []
    if odd:
        warnings.append(f"the certificate in {files.certificate} has names that no client takes: {', '.join(odd)}")
    if not names:
        common = _common_name(facts.get("subject", ()))
        hint = f"; its common name, {show(common)}, is not looked at by clients any more" if common else ""
        warnings.append(f"the certificate in {files.certificate} is for no name or address at all{hint}")
    return tuple(names), warnings


def _common_name(name: Sequence[Sequence[tuple[str, str]]]) -> str:
    parts = [part for relative in name for part in relative]
    for wanted in ("commonName", "organizationName"):
        for kind, value in parts:
            if kind == wanted:
                return value
    return parts[-1][1] if parts else ""


# --- its chain ---


def _chain_warnings(
    files: PairFiles, chain: Sequence[bytes], facts: Mapping[str, Any], code: int, message: str
) -> list[str]:
    warnings = list(_disorder(files, chain, facts))
    if code in (0, _SELF_SIGNED, _OWN_ROOT) or (code in _UNKNOWN_ISSUER and len(chain) > 1 and not _has_roots()):
        return warnings
    if code not in _UNKNOWN_ISSUER:
        return [*warnings, f"clients may not take the chain in {files.certificate}: {message}"]
    last = [each for der in chain[1:] for each in _authority(der) or ()][-1:]
    issuer = show(_common_name((last[0] if last else facts).get("issuer", ())))
    if len(chain) == 1:
        said = f"{files.certificate} holds the server's own certificate and not that of its issuer, {issuer}"
    else:
        said = f"the chain in {files.certificate} ends below {issuer}"
    full = files.certificate.with_name("fullchain.pem")  # as certbot has it beside cert.pem
    fuller = pemfiles.chain_of(full)
    if len(fuller) > len(chain) and fuller[: len(chain)] == tuple(chain):
        hint = f"clients that do not know it will refuse; use {full}"
    else:
        # An authority of one's own is no root here either, and nothing in a certificate tells whose it is.
        hint = "if that is your own root, install it on the clients; else append what is missing"
    return [*warnings, f"{said}, which is no root of this machine's: {hint}"]


def _disorder(files: PairFiles, chain: Sequence[bytes], facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence if the certificates do not follow each other, each signed by the next (RFC 5246 7.4.2)."""
    above = facts
    for number, der in enumerate(chain[1:], 2):
        found = _authority(der)
        if not found:
            yield f"certificate {number} of {len(chain)} in {files.certificate} is no authority's, and useless there"
            return
        if found[0].get("subject") != above.get("issuer"):
            yield (
                f"certificate {number} of {len(chain)} in {files.certificate} is not the issuer of the one before it: "
                "some clients will not find their way"
            )
            return
        above = found[0]


def _has_roots() -> bool:
    """Return whether this machine has any roots to compare with; a small container may have none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None and os.path.getsize(paths.cafile) > 0:
        return True
    try:
        return paths.capath is not None and any(os.scandir(paths.capath))
    except OSError:
        return False
