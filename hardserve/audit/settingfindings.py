"""What is wrong with settings that are right by themselves, for who can connect.

Pure: it judges facts. What cannot be meant at all stops a start, and is contradictions' and filechecks'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.reach import Reach, is_everybody
from hardserve.settings import GIB, MIB, Settings
from hardserve.values import format_size

PLAIN_HTTP = Check(
    "plain-http",
    Severity.WARNING,
    "the server is open to everybody in plain HTTP",
    "whoever is in between reads and changes everything, passwords and cookies, too",
    'tls.domain with acme.agree = "on", or server.tls = "self-signed"; for a home network access.allow = ["private"]',
)
AUTH_PLAIN = Check(
    "auth-plain",
    Severity.ERROR,
    "passwords of auth.users go over plain HTTP",
    "HTTP Basic sends the password with each request, and whoever is in between reads it",
    PLAIN_HTTP.fix,
)
PAST_THE_PROXY = Check(
    "past-the-proxy",
    Severity.WARNING,
    "everybody can go past the proxy",
    "what only the proxy does, such as HTTPS, is not done for who connects directly",
    'server.bind = ["127.0.0.1:8000"]',
)
PROXY_NOT_NAMED = Check(
    "proxy-not-named",
    Severity.WARNING,
    "only a proxy can connect, and no proxy is trusted",
    "to the server and the app all visitors are one client, in rates, bans and logs",
    'proxy.trusted = ["unix"]',
)
PROXY_ANYBODY = Check(
    "proxy-anybody",
    Severity.ERROR,
    "everybody is a trusted proxy",
    "any client can say that it is another one, past bans, rates and access rules",
    'proxy.trusted = ["loopback"], or the address of the proxy',
)
ONLY_HERE = Check(
    "loopback-only",
    Severity.NOTE,
    "only this machine can connect, and no proxy is named",
    "without one nobody else can; with one that is not named all visitors are one client",
    'proxy.trusted = ["loopback"] if a proxy runs here, or another server.bind if none does',
)
RATES_OFF = Check(
    "rates-off",
    Severity.WARNING,
    "a client may ask as often as it can",
    "one client can keep all workers busy",
    'rate_limiting.default = "50/second", the default',
)
GUESSES = Check(
    "password-guesses",
    Severity.WARNING,
    "passwords of auth.users may be guessed without end",
    "nothing slows down who tries them one after another",
    'auth.failures = "10/minute", the default',
)
USERS_OPEN = Check(
    "users-file-open",
    Severity.WARNING,
    "others on this machine can read or change auth.users",
    "who has the hashes can try passwords without asking the server",
    "chmod o= FILE",
)
FORM_LIMIT = Check(
    "form-limit-wide",
    Severity.WARNING,
    "a form may be so large that parsing it takes gigabytes",
    "parsing takes 60 times its size in memory, in each thread",
    'limits.form = "1MiB", the default; uploads are not bounded by it',
)
BODY_LIMIT = Check(
    "body-limit-wide",
    Severity.NOTE,
    "very large bodies are taken for every path",
    "everybody can fill limits.buffered_files with them",
    "the default limits.body, and a [[route]] with max_body for the path of the upload",
)
LOG_DEBUG = Check(
    "log-debug",
    Severity.NOTE,
    "the log has everything in it",
    "it grows fast, and libraries write what is in requests",
    'log.level = "info"',
)

CHECKS: tuple[Check, ...] = (
    PLAIN_HTTP,
    AUTH_PLAIN,
    PAST_THE_PROXY,
    PROXY_NOT_NAMED,
    PROXY_ANYBODY,
    ONLY_HERE,
    RATES_OFF,
    GUESSES,
    USERS_OPEN,
    FORM_LIMIT,
    BODY_LIMIT,
    LOG_DEBUG,
)

# What takes a gigabyte when it is parsed.
_MAX_FORM = 16 * MIB
_MAX_BODY = GIB


@dataclass(frozen=True, slots=True)
class SettingFacts:
    """What judging settings takes besides them.

    `users_warnings` is what is said of the mode of auth.users. `has_socket_unit` is whether systemd may pass other
    sockets than server.bind says, `has_proxy_fix` whether the app believes that it is behind a proxy.
    """

    settings: Settings
    reach: Reach
    users_warnings: Sequence[str] = ()
    has_socket_unit: bool = False
    has_proxy_fix: bool = False


def setting_findings(facts: SettingFacts) -> Iterator[Finding]:
    yield from _connection_findings(facts)
    settings, reach = facts.settings, facts.reach
    rates, limits = settings.rate_limiting, settings.limits
    if rates.default == "off" and reach.public and not any(rule.path == "*" for rule in settings.rate_limit):
        yield RATES_OFF.found("rate_limiting.default is off, and no [[rate_limit]] is for all paths")
    if settings.auth.users != "none" and settings.auth.failures == "off":
        yield GUESSES.found("auth.failures is off")
    for warning in facts.users_warnings:
        said, _, fix = warning.partition(": chmod ")
        yield USERS_OPEN.found(said, f"chmod {fix}" if fix else f"chmod o= {settings.auth.users}")
    if limits.form > _MAX_FORM:
        yield FORM_LIMIT.found(f"limits.form is {format_size(limits.form)}")
    if limits.body >= _MAX_BODY and not reach.closed:
        yield BODY_LIMIT.found(f"limits.body is {format_size(limits.body)}")
    if settings.log.level == "debug":
        yield LOG_DEBUG.found("log.level is debug")


def _connection_findings(facts: SettingFacts) -> Iterator[Finding]:
    settings, reach = facts.settings, facts.reach
    where = f"server.bind = {', '.join(reach.open)}"
    if reach.public and not reach.tls:
        if _asks_for_passwords(settings) and not reach.proxied:
            yield AUTH_PLAIN.found(f"{where} is without TLS, and auth.users is {settings.auth.users}")
        elif not reach.proxied:
            yield PLAIN_HTTP.found(f"{where} is without TLS, and no proxy is named in proxy.trusted")
        elif reach.by_local_proxies:
            yield PAST_THE_PROXY.found(
                f"{where} is open to everybody in plain HTTP, and proxy.trusted = {', '.join(settings.proxy.trusted)}",
            )
    for network in filter(is_everybody, settings.proxy.trusted):
        yield PROXY_ANYBODY.found(f"proxy.trusted has {network}")
    if not reach.proxied and reach.all_local:
        if reach.sockets and not reach.local:
            yield PROXY_NOT_NAMED.found(f"server.bind = {', '.join(reach.sockets)}")
        elif reach.local and facts.has_proxy_fix:
            said = f"server.bind = {', '.join(reach.local)}, and the app has Werkzeug's ProxyFix"
            yield PROXY_NOT_NAMED.found(said, 'proxy.trusted = ["loopback"]')
        elif reach.local and not reach.sockets and not facts.has_socket_unit:
            yield ONLY_HERE.found(f"server.bind = {', '.join(reach.local)}")


def _asks_for_passwords(settings: Settings) -> bool:
    return settings.auth.required == "on" or any(route.auth == "on" for route in settings.route)
