"""What an app does that the server does, too. Pure: it judges facts."""

from __future__ import annotations

from collections.abc import Iterator

from hardserve.audit.appfacts import AppFacts, FlaskFacts
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.reach import Reach

PROXY_FIX = Check(
    "proxy-fix-doubled",
    Severity.NOTE,
    "ProxyFix has nothing to do",
    "the server takes what trusted proxies say (proxy.trusted), and the fields do not reach the app",
    "take ProxyFix out of the app",
)
LIMITER = Check(
    "limiter-doubled",
    Severity.NOTE,
    "Flask-Limiter counts every request beside the server",
    "it does so on a worker, and the stricter of the two is what clients meet",
    "put its default limits into rate_limiting.default and [[rate_limit]], and keep those of single views",
)
TALISMAN = Check(
    "talisman-doubled",
    Severity.NOTE,
    "Flask-Talisman does what the server does",
    "with it, static files are left to the app and take a worker",
    "headers.content_security_policy, tls.hsts and server.redirect, in place of Talisman",
)
HTTPS_LOOP = Check(
    "https-redirect-loop",
    Severity.ERROR,
    "Flask-Talisman sends everybody to HTTPS, and there is none",
    "no page can be reached: to the app, every request is plain HTTP",
    "tls.domain or server.tls for HTTPS here, proxy.trusted for a proxy that speaks it, or Talisman(force_https=False)",
)
WHITENOISE = Check(
    "whitenoise-doubled",
    Severity.NOTE,
    "WhiteNoise serves files that the server would serve",
    "each file takes a worker, and the static folders are left to the app",
    "take WhiteNoise out, and name its directories with server.static",
)
COMPRESS = Check(
    "compress-doubled",
    Severity.NOTE,
    "Flask-Compress compresses what the server would compress",
    "it does so without a filler against BREACH, and of responses that depend on what a client sent",
    "take Flask-Compress out of the app",
)

CHECKS: tuple[Check, ...] = (
    PROXY_FIX,
    LIMITER,
    TALISMAN,
    HTTPS_LOOP,
    WHITENOISE,
    COMPRESS,
)


def doubled_findings(facts: AppFacts, reach: Reach) -> Iterator[Finding]:
    """Yield what could be taken out of the app, and what does not go with this server."""
    for flask in facts.flasks:
        yield from _of_one(flask, reach)
    if facts.proxy_fix and not _lacks_proxy(reach):
        yield PROXY_FIX.found("Werkzeug's ProxyFix is around the app")
    if facts.whitenoise:
        yield WHITENOISE.found("whitenoise is around the app")


def _lacks_proxy(reach: Reach) -> bool:
    """Return whether only a proxy can be in front, and none is named: that is a setting's finding."""
    return reach.all_local and not reach.proxied


def _of_one(flask: FlaskFacts, reach: Reach) -> Iterator[Finding]:
    of = f'the Flask app "{flask.name}"'
    if flask.limiter_for_all:
        yield LIMITER.found(f"{of} has a Limiter with default or application limits")
    if flask.talisman is not None:
        if getattr(flask.talisman, "force_https", False) and not reach.tls and not reach.proxied:
            yield HTTPS_LOOP.found(f"force_https of the Talisman of {of} is on, without TLS and without proxy.trusted")
        else:
            yield TALISMAN.found(f"{of} has a Talisman")
    if flask.compress:
        yield COMPRESS.found(f"{of} has a Compress")
