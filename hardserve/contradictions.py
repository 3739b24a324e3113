"""Which settings cannot be meant together: each said with the place where it is to be put right.

Pure, on the main thread at start; what is in files, filechecks looks at. Whoever reads settings calls it with all of
them, so that every problem is said at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from hardserve.addresses import TcpAddress, parse_address
from hardserve.names import BY_TABLE, OPTIONS, Table
from hardserve.settings import RateLimitSettings, Settings
from hardserve.values import format_size, parse_rates, show, write

# Let's Encrypt's limit, and every CA's that we know of.
MAX_CERTIFICATE_NAMES = 100
# Names of private networks and of examples (RFC 2606, 6761, 6762, 8375, and what ICANN and routers keep for them).
NO_PUBLIC_NAMES = (".local", ".localhost", ".internal", ".home.arpa", ".lan", ".home", ".test", ".invalid", ".example")


@dataclass(frozen=True, slots=True)
class Given:
    """Settings as they would be in force, and what is known of where each is from.

    `values` and `where` are by key: "timeouts.header", or "route[0].path" for one in a table; `where` is how a message
    about a value begins. `tables` has of each array those without a problem, by their index. `unusable` are the keys of
    values that are problems by themselves: of them nothing is said here. Files are looked for from `directory`.
    """

    settings: Settings
    values: Mapping[str, Any]
    tables: Mapping[str, Mapping[int, Any]]
    where: Mapping[str, str]
    unusable: AbstractSet[str]
    directory: Path

    def is_set(self, key: str) -> bool:
        """Return whether somebody has given a setting another value than that for nothing."""
        return key in self.where and attrgetter(key)(self.settings) not in ("none", "off", (), 0)

    def in_tables(self, table: Table, name: str) -> Iterator[tuple[str, Any]]:
        """Yield the key and value of every setting `name` that some table of an array has."""
        first = f"{table.name}["
        if not any(key.startswith(first) for key in self.values):
            return  # the array may have very many tables, and mostly has none
        for index in range(table.about.max):
            key = table.key_of(index, name)
            if key in self.values:
                yield key, self.values[key]


def contradictions(given: Given) -> Iterator[str]:
    """Say which settings cannot be meant together, but nothing of one that is a problem by itself."""
    settings = given.settings
    for part in ("limits.request_line", "limits.header_line"):
        yield from _larger(given, part, attrgetter(part)(settings), "limits.header")
    limits = settings.limits
    # A body is kept in memory up to this, and else in a file; a client gets no more than half of all room.
    in_memory = min(limits.body_memory, limits.buffered_memory // 2)
    for key, size in [("limits.body", limits.body), *given.in_tables(BY_TABLE["route"], "max_body")]:
        if size > in_memory:
            yield from _larger(given, key, size, "limits.buffered_files", times=2)
    # Of files nothing may be kept at all; what is kept of each does not matter then.
    if settings.files.memory or "files.in_memory" in given.where:
        yield from _larger(given, "files.in_memory", settings.files.in_memory, "files.memory")
    yield from _larger(given, "limits.response_file", limits.response_file, "limits.buffered_files")
    log, keys = settings.log, {"log.access", "log.error"}
    if log.max_size and log.error != "stderr" and Path(log.access) == Path(log.error) and not given.unusable & keys:
        # Each of two writers would rotate the file away under the other.
        where = f"{given.where['log.access']} and {given.where['log.error']}"
        yield f"{where} = {show(log.error)}: expected two files where log.max_size rotates them"
    server, ban = settings.server, settings.ban
    if server.max_client_workers > server.threads:
        yield from _above(given, "server.max_client_workers", "server.threads")
    if ban.for_ > ban.ceiling:
        yield from _above(given, "ban.for", "ban.ceiling")
    yield from _lacking(given)
    for index, rule in given.tables.get("rate_limit", {}).items():
        for key, problem in _rule_problems(rule):
            where = given.where.get(f"rate_limit[{index}].{key}") or given.where[f"rate_limit[{index}].limit"]
            yield f"{where} = {show(getattr(rule, key))}: {problem}"
    yield from _repetitions(given)


def _above(given: Given, part: str, whole: str) -> Iterator[str]:
    """Say that a number is above another that is its ceiling."""
    keys = {part, whole}
    if not given.unusable & keys:
        said = {}
        for option in OPTIONS:
            if option.key in keys:
                value = getattr(getattr(given.settings, option.section), option.attribute)
                said[option.key] = f"{given.where.get(option.key, option.key)} = {write(option.kind, value)}"
        if part in given.where:
            yield f"{said[part]}: expected at most {said[whole]}"
        else:
            yield f"{said[whole]}: expected at least {said[part]}, the default"


def _lacking(given: Given) -> Iterator[str]:
    """Say which settings do nothing without another one."""
    settings = given.settings
    if not settings.proxy.trusted and "proxy.trusted" not in given.unusable:
        both = [("server.bind", each) for each in settings.server.bind]
        for key, address in [*both, *(("server.redirect", each) for each in settings.server.redirect)]:
            if parse_address(address).proxy_protocol:
                where = given.where.get(key, key)
                yield f"{where} = {show(address)}: expected also proxy.trusted, the proxies that may connect there"
    yield from _lacking_of_tls(given)
    if settings.auth.users == "none" and "auth.users" not in given.unusable:
        wanted = [("auth.required", settings.auth.required)]
        wanted += list(given.in_tables(BY_TABLE["route"], "auth"))
        wanted += [(key, "on") for key, value in given.in_tables(BY_TABLE["rate_limit"], "key") if value == "user"]
        for key, value in wanted:
            if value == "on":
                yield f"{given.where[key]}: expected also auth.users, the file that `hardserve passwd` makes"


def _lacking_of_tls(given: Given) -> Iterator[str]:
    settings = given.settings
    tls = settings.tls
    # What is set, and of what it says nothing by itself.
    needs = [
        ("tls.certificate", "tls.key", "its key"),
        ("tls.key", "tls.certificate", "the certificate that it is the key of"),
        ("tls.passphrase_file", "tls.key", "the key that it opens"),
    ]
    if tls.client_certificates != "off":
        needs.append(("tls.client_certificates", "tls.client_ca", "who signs the certificates of clients"))
    for key, other, what in needs:
        if not given.unusable & {key, other} and given.is_set(key) > given.is_set(other):
            yield f"{given.where[key]}: expected also {other}, {what}"
    keys = {"server.tls", "tls.certificate", "tls.client_certificates"}
    if given.unusable & keys:
        return
    asking = list(_lacking_of_routes(given))
    yield from asking
    if tls.client_ca != "none" and tls.client_certificates == "off" and not asking:
        yield f'{given.where["tls.client_ca"]}: expected also tls.client_certificates, "optional" or "required"'
    if settings.server.tls == "on" and not settings.has_certificate:
        yield f'{given.where["server.tls"]} = "on": expected also tls.domain, tls.certificate or a [[certificate]]'
    if settings.server.tls == "self-signed" and settings.has_certificate:
        places = ("tls.certificate", "tls.domain", "certificate[0].certificate")
        other = next(given.where[place] for place in places if place in given.where)
        yield f'{given.where["server.tls"]} = "self-signed": expected no other certificate, but there is {other}'
    yield from _lacking_tls(given)
    yield from _lacking_of_acme(given)


def _lacking_of_acme(given: Given) -> Iterator[str]:
    """Say why no CA would issue the certificate for tls.domain, or that none is asked for."""
    settings = given.settings
    acme = {option.key: option.default for option in OPTIONS if option.section == "acme"}
    if given.unusable & {"tls.domain", *acme}:
        return
    if settings.tls.domain:
        for key, problem in _acme_problems(settings):
            yield f"{given.where.get(key, key)}: {problem}"
    else:
        for key, default in acme.items():
            if key in given.where and attrgetter(key)(settings) != default:
                yield f"{given.where[key]}: expected also tls.domain, the names of the certificate"


def _lacking_of_routes(given: Given) -> Iterator[str]:
    """Say which routes ask for what no client is asked for, or let in whom the server does not."""
    settings = given.settings
    demand = settings.tls.client_certificates
    needs = ['tls.client_certificates = "optional", to have clients asked']
    if settings.tls.client_ca == "none" and "tls.client_ca" not in given.unusable:
        needs.append("tls.client_ca, who signs their certificates")
    if not settings.serves_tls:
        needs.append('a tls.certificate, or server.tls = "self-signed"')
    for key, value in given.in_tables(BY_TABLE["route"], "client_certificate"):
        said = f"{given.where[key]} = {show(value)}"
        if value == "required" and demand == "off":
            yield f"{said}: expected also {'; and '.join(needs)}"
        elif value == "optional" and demand == "required":
            yield f'{said}: never counts, because of {given.where["tls.client_certificates"]} = "required"'


def _lacking_tls(given: Given) -> Iterator[str]:
    settings = given.settings
    if not settings.serves_tls:
        for key in ("server.redirect", "tls.hsts", "tls.client_certificates"):
            if given.is_set(key):
                yield f'{given.where[key]}: expected also tls.domain, tls.certificate or server.tls = "self-signed"'
    if (
        given.is_set("server.redirect_port")
        and not settings.server.redirect
        and "server.redirect" not in given.unusable
    ):
        yield f"{given.where['server.redirect_port']}: expected also server.redirect, what is sent there"
    yield from _two_uses(given)


def _two_uses(given: Given) -> Iterator[str]:
    """Say which addresses are for both HTTPS and the way to it."""
    settings = given.settings
    bound = [parse_address(address) for address in settings.server.bind]
    for text in settings.server.redirect:
        address = parse_address(text)
        if address in bound and not (isinstance(address, TcpAddress) and address.port == 0):
            yield f"{given.where['server.redirect']} = {show(text)}: expected another address than in server.bind"


def _larger(given: Given, part: str, size: int, whole: str, *, times: int = 1) -> Iterator[str]:
    """Say that a part does not go into the whole so many times, if it does not."""
    limit: int = attrgetter(whole)(given.settings)
    if size * times > limit and not given.unusable & {part, whole}:
        said = {
            key: f"{given.where.get(key, key)} = {show(format_size(value))}"
            for key, value in ((part, size), (whole, limit))
        }
        if part in given.where:
            yield f"{said[part]}: expected at most {'half of ' * (times == 2)}{said[whole]}"
        else:  # the one that somebody gave is the one to change
            yield f"{said[whole]}: expected at least {'twice ' * (times == 2)}{said[part]}, the default"


def _acme_problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each setting because of which no CA would issue a certificate, and why."""
    acme, names = settings.acme, len(settings.tls.domain)
    lets_encrypt = acme.directory in ("letsencrypt", "letsencrypt-staging")
    for name in settings.tls.domain:
        if lets_encrypt and ("." not in name or name.endswith(NO_PUBLIC_NAMES)):
            yield (
                "tls.domain",
                f'{show(name)} is a name that no public CA issues for; there is server.tls = "self-signed"',
            )
    if names > MAX_CERTIFICATE_NAMES:
        yield "tls.domain", f"{names} names are more than the {MAX_CERTIFICATE_NAMES} that a certificate can have"
    if not lets_encrypt and not acme.directory.startswith("https://"):
        yield (
            "acme.directory",
            f"{show(acme.directory)}: expected letsencrypt, letsencrypt-staging or an https:// address",
        )
    if acme.challenge == "http-01" and not settings.server.redirect:
        yield "acme.challenge", "expected also server.redirect, where the CA asks for it (port 80)"
    if (acme.eab_kid == "none") != (acme.eab_key_file == "none"):
        key = "acme.eab_kid" if acme.eab_key_file == "none" else "acme.eab_key_file"
        yield key, "an external account needs both its key id and its key file"
    if acme.email != "none" and not re.fullmatch(r"[!-+\--?A-~]+@[!-+\--?A-~]+", acme.email):
        yield "acme.email", f"{show(acme.email)} is not one e-mail address"
    if lets_encrypt and acme.agree == "off":
        terms = "https://letsencrypt.org/repository/"
        yield "acme.agree", f"the CA's terms of service must be agreed to: {terms}; --acme-agree on does"


def _repetitions(given: Given) -> Iterator[str]:
    """Say which tables never count, because of another before them."""
    routes: dict[str, dict[int, frozenset[str]]] = {}
    for index, route in given.tables.get("route", {}).items():
        methods = frozenset(route.methods)
        with_this_path = routes.setdefault(route.path.rstrip("/"), {})
        for earlier, others in with_this_path.items():
            if not others or (methods and methods <= others):
                where, first = given.where[f"route[{index}].path"], given.where[f"route[{earlier}].path"]
                yield f"{where} = {show(route.path)}: never counts, after {first}"
                break
        with_this_path[index] = methods
    pages: dict[tuple[int, str], int] = {}
    for index, page in given.tables.get("error_page", {}).items():
        suffix = Path(page.file).suffix.lower()
        earlier = pages.setdefault((page.status, suffix), index)
        if earlier != index:
            where, first = given.where[f"error_page[{index}].file"], given.where[f"error_page[{earlier}].file"]
            yield f"{where} = {show(page.file)}: never counts, after {first}"


def _rule_problems(rule: RateLimitSettings) -> Iterator[tuple[str, str]]:
    """Say what a [[rate_limit]] cannot mean: the key that is to blame, and why."""
    windows = parse_rates(rule.limit)
    if rule.burst is not None and len(windows) > 1:
        yield "burst", 'expected one rate in limit, such as "20/second"'
    least = windows[0][0] if rule.burst is None else rule.burst + 1
    if rule.cost > least:
        what = "limit" if rule.burst is None else "burst + 1"
        yield "cost", f"expected at most {least}, the least of {what}: no request would be let in"
