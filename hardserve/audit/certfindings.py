"""What is wrong with the certificates of a server. Pure: it judges what `hardserve cert` has found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.reach import Reach
from hardserve.cert import Holding
from hardserve.http.hostnames import covers, normal_name
from hardserve.settings import Settings

CERTIFICATE_BAD = Check(
    "certificate-unusable",
    Severity.ERROR,
    "a certificate cannot be served",
    "the server does not start, or browsers refuse what it shows",
    "`hardserve cert` says what is there; get one that is valid",
)
CERTIFICATE_ENDS = Check(
    "certificate-expiring",
    Severity.WARNING,
    "a certificate should have been renewed by now",
    "when it has expired, browsers refuse the site",
    "renew it (`hardserve cert --renew` if the server does that), and see why nobody has",
)
CERTIFICATE_NAMES = Check(
    "certificate-names",
    Severity.WARNING,
    "a host is served that no certificate is for",
    "browsers warn everybody who asks for it",
    "a certificate for that host, too, or take it out of access.hosts",
)
RENEWAL_FAILS = Check(
    "certificate-renewal-fails",
    Severity.WARNING,
    "the CA has refused a certificate again and again",
    "when the one that is there has expired, browsers refuse the site",
    "mend what is said there, then `hardserve cert --renew`",
)
STAGING = Check(
    "acme-staging",
    Severity.WARNING,
    "the certificate is from a CA for tests",
    "browsers warn everybody of it",
    'acme.directory = "letsencrypt"',
)
NO_HSTS = Check(
    "hsts-off",
    Severity.NOTE,
    "browsers are not told to come by HTTPS only",
    "the first request of each visit may be plain HTTP, which whoever is in between can answer",
    'tls.hsts = "1h", and longer when nothing has broken',
)

CHECKS: tuple[Check, ...] = (
    CERTIFICATE_BAD,
    CERTIFICATE_ENDS,
    CERTIFICATE_NAMES,
    RENEWAL_FAILS,
    STAGING,
    NO_HSTS,
)

# So often a CA may have a bad day.
_FAILURES = 3
# What `cert` says of a certificate that nobody has renewed.
_SHOULD_HAVE_BEEN = "should have been renewed"


def certificate_findings(
    settings: Settings, reach: Reach, hosts: Sequence[str], holdings: Sequence[Holding], *, sets_hsts: bool = False
) -> Iterator[Finding]:
    """Yield what is wrong with `holdings`. `sets_hsts` is whether the app tells browsers to come by HTTPS."""
    if not settings.serves_tls:
        return
    for holding in holdings:
        yield from _of_one(holding)
    if settings.tls.domain and "staging" in settings.acme.directory:
        yield STAGING.found(f"acme.directory is {settings.acme.directory}")
    of_others = [holding for holding in holdings if holding.source != "self-signed"]
    names = [name for holding in of_others if holding.facts is not None for name in holding.facts.names]
    names += settings.tls.domain
    for host in hosts if names else ():
        name = None if host.startswith(".") else normal_name(host)
        if name is not None and not covers(names, name):
            yield CERTIFICATE_NAMES.found(
                f"{host} is served, and the certificates are for {', '.join(sorted(set(names)))}",
                f"a certificate for {host}, or take it out of access.hosts",
            )
    believed = [holding for holding in of_others if holding.facts is None or not holding.facts.self_signed]
    if believed and settings.tls.hsts == 0 and reach.public and not sets_hsts:
        yield NO_HSTS.found("tls.hsts is 0, and there is a certificate for browsers")


def _of_one(holding: Holding) -> Iterator[Finding]:
    path = str(holding.files.certificate)
    # A server makes or orders what is missing when it starts.
    if holding.source == "file" or holding.facts is not None:
        for problem in holding.problems:
            yield CERTIFICATE_BAD.found(problem if path in problem else f"{path}: {problem}")
    for warning in holding.warnings:
        if _SHOULD_HAVE_BEEN in warning and holding.source != "self-signed":
            yield CERTIFICATE_ENDS.found(warning)
    renewal = holding.renewal
    if renewal is not None and renewal.failures >= _FAILURES:
        yield RENEWAL_FAILS.found(f"{renewal.failures} times in a row: {renewal.error or renewal.why}")
