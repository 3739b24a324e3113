"""What is wrong with an app's keys, passwords and session cookies. Pure: it judges facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hardserve.audit.appfacts import FlaskFacts, KeyFacts
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.reach import Reach

_NEW_KEY = "python -c 'import secrets; print(secrets.token_hex(32))'"
_MOVE = "take it from the environment, such as .env, and change it: it has been seen"

KEY_MISSING = Check(
    "secret-key-missing",
    Severity.ERROR,
    "the app uses sessions and has no SECRET_KEY",
    "the first request that touches the session fails with 500",
    f"SECRET_KEY=... in .env, with what this prints, and app.config from it: {_NEW_KEY}",
)
KEY_WEAK = Check(
    "secret-key-weak",
    Severity.ERROR,
    "a key that anybody can guess",
    "who has the key can sign a session cookie as any user",
    f"set it to what this prints, in the environment: {_NEW_KEY}",
)
KEY_SHORT = Check(
    "secret-key-short",
    Severity.WARNING,
    "a key that is so short that it can be tried out",
    "one cookie is enough to try keys without asking the server",
    KEY_WEAK.fix,
)
KEY_RANDOM = Check(
    "secret-key-random",
    Severity.WARNING,
    "a key that is another one at each start",
    "every restart ends all sessions, and forms that are open fail",
    f'read it from the environment: os.environ["SECRET_KEY"], set once to what this prints: {_NEW_KEY}',
)
KEY_IN_SOURCE = Check(
    "secret-key-in-source",
    Severity.WARNING,
    "a key that stands in the source",
    "everybody who sees the repository, or a copy of it, can sign cookies",
    f'read it from the environment: os.environ["SECRET_KEY"], with a new one: {_NEW_KEY}',
)
SECRET_IN_SOURCE = Check(
    "secret-in-source",
    Severity.WARNING,
    "a password or token that stands in the source",
    "everybody who sees the repository, or a copy of it, has it",
    _MOVE,
)
DATABASE_PASSWORD = Check(
    "database-password-in-source",
    Severity.WARNING,
    "the address of a database stands in the source with its password",
    "everybody who sees the repository, or a copy of it, has it",
    _MOVE,
)
FILE_TRACKED = Check(
    "secret-file-tracked",
    Severity.WARNING,
    "git tracks a file with secrets",
    "everybody who can clone the repository has them, also after the file is gone",
    "git rm --cached FILE, a line for it in .gitignore, and new secrets",
)
FILE_OPEN = Check(
    "secret-file-open",
    Severity.WARNING,
    "every user of this machine can read a file with secrets",
    "so can whoever finds a hole in any other program here",
    "chmod o= FILE, which is to belong to the user that the app runs as",
)
COOKIE_INSECURE = Check(
    "session-cookie-insecure",
    Severity.WARNING,
    "browsers send the session cookie over plain HTTP, too",
    "who is in the way of one request without TLS is logged in as that user",
    "SESSION_COOKIE_SECURE = True in the app's configuration",
)
REMEMBER_INSECURE = Check(
    "remember-cookie-insecure",
    Severity.WARNING,
    "browsers send Flask-Login's cookie over plain HTTP, too",
    "it logs in by itself, for a year: who is in the way of one request without TLS is that user",
    "REMEMBER_COOKIE_SECURE = True in the app's configuration",
)
COOKIE_BEHIND_PROXY = Check(
    "session-cookie-behind-proxy",
    Severity.NOTE,
    "SESSION_COOKIE_SECURE is off behind a proxy",
    "where the proxy speaks HTTPS, browsers send the cookie without it, too",
    "SESSION_COOKIE_SECURE = True in the app's configuration, if the proxy speaks HTTPS",
)
COOKIE_SCRIPTS = Check(
    "session-cookie-scripts",
    Severity.WARNING,
    "scripts in a page can read the session cookie",
    "any hole for scripts gives sessions away",
    "SESSION_COOKIE_HTTPONLY = True in the app's configuration",
)
COOKIE_SAMESITE = Check(
    "session-cookie-samesite",
    Severity.WARNING,
    "other sites can make requests in the name of a user",
    "the cookie goes with a form of another site in some browsers, and no extension checks where a form comes from",
    'SESSION_COOKIE_SAMESITE = "Lax" in the app\'s configuration',
)
COOKIE_DOMAIN = Check(
    "session-cookie-domain",
    Severity.WARNING,
    "the session cookie goes to more hosts than this app is served on",
    "whoever runs another host of that domain gets the sessions",
    "leave SESSION_COOKIE_DOMAIN out: the cookie is then for the app's own host",
)
COOKIE_LIFETIME = Check(
    "session-lifetime",
    Severity.NOTE,
    "sessions last longer than a year",
    "a cookie that was copied once is good for so long",
    "PERMANENT_SESSION_LIFETIME = 2678400 in the app's configuration (31 days)",
)

CHECKS: tuple[Check, ...] = (
    KEY_MISSING,
    KEY_WEAK,
    KEY_SHORT,
    KEY_RANDOM,
    KEY_IN_SOURCE,
    SECRET_IN_SOURCE,
    DATABASE_PASSWORD,
    FILE_TRACKED,
    FILE_OPEN,
    COOKIE_INSECURE,
    REMEMBER_INSECURE,
    COOKIE_BEHIND_PROXY,
    COOKIE_SCRIPTS,
    COOKIE_SAMESITE,
    COOKIE_DOMAIN,
    COOKIE_LIFETIME,
)

_YEAR_S = 366 * 24 * 3600


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file with secrets: its path as people write it, and which secrets, by their names."""

    path: str
    names: Sequence[str]
    tracked: bool
    open: bool


def file_findings(files: Sequence[SecretFile]) -> Iterator[Finding]:
    for file in files:
        has = f"{file.path} has {', '.join(file.names)}"
        if file.tracked:
            yield FILE_TRACKED.found(has, FILE_TRACKED.fix.replace("FILE", file.path))
        if file.open:
            yield FILE_OPEN.found(has, FILE_OPEN.fix.replace("FILE", file.path))


def secret_findings(flask: FlaskFacts, reach: Reach, hosts: Sequence[str]) -> Iterator[Finding]:
    """Yield what is wrong with the keys, passwords and cookies of one Flask app that is served as `hosts`."""
    config = flask.config
    if flask.session_use and flask.signs_sessions and not config.get("SECRET_KEY"):
        yield KEY_MISSING.found(f'the Flask app "{flask.name}" has none, and there is {flask.session_use}')
    for key in flask.keys:
        yield from _key_findings(key)
    for name, place in flask.secrets:
        yield SECRET_IN_SOURCE.found(f"{name} is what stands in {place}")
    for name, place in flask.databases:
        yield DATABASE_PASSWORD.found(f"{name} has the password that stands in {place}")
    if config.get("SECRET_KEY") or not flask.signs_sessions:
        yield from _cookie_findings(flask, reach, hosts)


def _key_findings(key: KeyFacts) -> Iterator[Finding]:
    """Yield the worst of what is wrong with a key: another one mends all of it."""
    if key.weak:
        yield KEY_WEAK.found(f"{key.name} {key.weak}")
    elif key.short:
        yield KEY_SHORT.found(f"{key.name} {key.short}")
    elif key.random:
        yield KEY_RANDOM.found(f"{key.name} is made in {key.random}")
    elif key.source:
        yield KEY_IN_SOURCE.found(f"{key.name} is what stands in {key.source}")


def _cookie_findings(flask: FlaskFacts, reach: Reach, hosts: Sequence[str]) -> Iterator[Finding]:
    config = flask.config
    secured = config.get("SESSION_COOKIE_SECURE") or getattr(flask.talisman, "session_cookie_secure", False)
    if not secured:
        of = f'SESSION_COOKIE_SECURE of the Flask app "{flask.name}" is off'
        if reach.tls:
            yield COOKIE_INSECURE.found(f"{of}, and the server speaks HTTPS")
        elif reach.proxied and config.get("PREFERRED_URL_SCHEME") == "https":
            yield COOKIE_INSECURE.found(f"{of}, and its PREFERRED_URL_SCHEME is https")
        elif reach.proxied:
            yield COOKIE_BEHIND_PROXY.found(f"{of}, and proxy.trusted names a proxy")
    if flask.remembering and reach.tls and not config.get("REMEMBER_COOKIE_SECURE"):
        yield REMEMBER_INSECURE.found(f"REMEMBER_COOKIE_SECURE is off, and there is {flask.remembering}")
    if config.get("SESSION_COOKIE_HTTPONLY") is False:
        yield COOKIE_SCRIPTS.found(f'SESSION_COOKIE_HTTPONLY of the Flask app "{flask.name}" is off')
    same_site = config.get("SESSION_COOKIE_SAMESITE")
    if (
        (not same_site or str(same_site).lower() == "none")
        and flask.changes
        and not flask.defends
        and flask.session_use
    ):
        said = "is not set" if not same_site else "is None"
        yield COOKIE_SAMESITE.found(f"SESSION_COOKIE_SAMESITE {said}, and there is {flask.session_use}")
    domain = str(config.get("SESSION_COOKIE_DOMAIN") or "").lstrip(".").lower()
    if domain and hosts and _is_too_wide(domain, hosts):
        yield COOKIE_DOMAIN.found(
            f"SESSION_COOKIE_DOMAIN is {domain}, and the app is served as {', '.join(hosts)} only"
        )
    lifetime = _seconds(config.get("PERMANENT_SESSION_LIFETIME"))
    if lifetime > _YEAR_S:
        yield COOKIE_LIFETIME.found(f"PERMANENT_SESSION_LIFETIME is {lifetime / 86400:.0f} days")


def _is_too_wide(domain: str, hosts: Sequence[str]) -> bool:
    """Return whether all hosts are below a domain, and one of them is all there is."""
    return (
        len(hosts) == 1
        and hosts[0].lower() != domain
        and hosts[0].lower().endswith(f".{domain}")
        and hosts[0][0] != "."
    )


def _seconds(value: Any) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return float(value) if isinstance(value, int | float) else 0.0
