"""What of a running server is replaced when its settings are read again: made beside what is there, then put in place.

`Parts.prepare` runs on the thread of the reload, reads files and may block, and changes nothing that is served by.
`Parts.take` runs on the I/O thread and is a dozen assignments, between two events: no request is judged by half of the
new settings, and one that has been judged is not judged again.

Who owns what. Connections ask `EdgeContext` anew for each request, and only the I/O thread writes it; workers read its
settings, and the pages in `AppContext`, one reference at a time. A gate is replaced as a whole with what it asks: the
rules of rates, which go on with the counts of the former ones; who knows the passwords, whose memory goes with the
users file that it is of; the proxies that are trusted. A request that the former gate is still asking about, a password
or a shared store, is decided by the former gate. Bans, counts, and connections stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hardserve.configfiles import SettingsError
from hardserve.edge.admission import Peers
from hardserve.edge.gate import Gate
from hardserve.edge.networks import Networks
from hardserve.edge.parsing import ParserRules
from hardserve.pages import ErrorPages
from hardserve.values import show

if TYPE_CHECKING:
    from hardserve.checks.offload import Offload
    from hardserve.checks.users import Authenticator
    from hardserve.edge.context import EdgeContext
    from hardserve.edge.listener import Listener
    from hardserve.edge.loop import Loop
    from hardserve.edge.ratelimit import RateLimiter
    from hardserve.https import Https
    from hardserve.record import Record
    from hardserve.securing import Secured
    from hardserve.settings import Settings
    from hardserve.wsgi.context import AppContext

logger = logging.getLogger("hardserve")


@dataclass(frozen=True, slots=True)
class Replacement:
    """What is ready to be put in place."""

    settings: Settings
    hosts: Sequence[str]
    pages: ErrorPages
    limiter: RateLimiter
    authenticator: Authenticator | None
    trusted: Networks
    gate: Gate
    secured: Secured | None  # None where the certificates stay
    also: Sequence[str]  # what is new although its setting is the same


@dataclass(slots=True)
class Parts:
    """What of one server can be replaced. The I/O thread's, but for `prepare`."""

    settings: Settings
    hosts: Sequence[str]
    hosts_of: Callable[[Settings], Sequence[str]]
    trusted: Networks
    gate: Gate
    limiter: RateLimiter
    authenticator: Authenticator | None
    offload: Offload
    record: Record
    loop: Loop
    listeners: Sequence[Listener]
    https: Https | None
    edge: EdgeContext
    app: AppContext

    # --- reload thread ---

    def prepare(self, settings: Settings, files: Settings) -> Replacement:
        """Return what replaces these parts with `settings`, of which only that differs which can; nothing is changed.

        `files` are the same settings with paths that can be opened now. Blocks on files. Raises SettingsError with
        everything that cannot be used.
        """
        problems: list[str] = []
        pages, authenticator, secured = self.app.pages, self.authenticator, None
        hosts = self.hosts if settings.access.hosts == self.settings.access.hosts else self.hosts_of(settings)
        rates = settings.rate_limiting
        with _noting(problems):
            _check_storage(settings)
        with _noting(problems):
            pages = ErrorPages.load(files.error_page, settings.headers)
        with _noting(problems):
            authenticator = self._authenticator(settings, files)
        with _noting(problems):
            if self.https is not None and not problems:  # else a certificate may be made for nothing
                secured = self.https.prepare(settings, hosts, files)
            elif self.https is not None:
                self.https.check(files)
        if problems:
            raise SettingsError(problems)
        limiter = self.limiter.with_rules(settings.rate_limit, rates, failures=settings.auth.failures)
        same = settings.proxy.trusted == self.settings.proxy.trusted
        trusted = self.trusted if same else Networks(settings.proxy.trusted)
        gate = Gate(
            settings,
            trusted=trusted,
            hosts=hosts,
            limiter=limiter,
            banned=self.record.is_banned,
            ban_left_s=self.record.bans.remaining_s,
            auth=authenticator,
            checks=self.offload,
        )
        same = settings.error_page == self.settings.error_page and pages.custom != self.app.pages.custom
        also = ("what is in the files of error_page",) if same else ()
        return Replacement(settings, hosts, pages, limiter, authenticator, trusted, gate, secured, also)

    def _authenticator(self, settings: Settings, files: Settings) -> Authenticator | None:
        """Return who knows the passwords; the same one, with its memory of good ones, for the same file."""
        auth, before = settings.auth, self.settings.auth
        if auth.users == "none":
            return None
        from hardserve.checks.users import Authenticator, UsersFileError  # noqa: PLC0415  # as server.py does

        try:
            if self.authenticator is not None and (auth.users, auth.remember) == (before.users, before.remember):
                self.authenticator.refresh()
                return self.authenticator
            authenticator = Authenticator(files.auth.users, auth.remember)
            for warning in authenticator.load():
                logger.warning("%s", warning)
        except UsersFileError as error:
            raise SettingsError([f"auth.users = {show(auth.users)}: {each}" for each in error.problems]) from None
        return authenticator

    # --- I/O thread ---

    def take(self, new: Replacement, now: float) -> None:
        """Put in place what was prepared."""
        old, settings = self.settings, new.settings
        new.gate.follow(self.gate)
        if self.https is not None:
            self.https.take(settings, new.hosts, new.secured)
            self.https.guard(new.gate, self.listeners)
        if new.trusted is not self.trusted:
            self.loop.use_peers(Peers(new.trusted, settings.limits.ipv6_prefix, self.record.is_banned), now)
        limits = settings.limits
        self.loop.limit_clients(limits.client_connections, limits.client_connection_rate)
        self.record.change(settings.ban)
        self.offload.change(new.limiter, new.authenticator)
        if limits != old.limits:
            self.edge.rules = ParserRules(limits)
        self.edge.settings = settings
        self.edge.pages = self.app.pages = new.pages
        self.edge.admit = new.gate.admit
        self.settings, self.hosts, self.trusted, self.gate = settings, new.hosts, new.trusted, new.gate
        self.limiter, self.authenticator = new.limiter, new.authenticator


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Add what cannot be used to `problems`, and go on to find what else there is."""
    try:
        yield
    except SettingsError as error:
        problems += error.problems
    except OSError as error:
        problems.append(f"{error.filename}: {error.strerror}")


def _check_storage(settings: Settings) -> None:
    if settings.rate_limiting.storage != "memory":
        from hardserve.checks.sharedrates import check_settings  # noqa: PLC0415  # as server.py does

        problems = check_settings(settings.rate_limiting.storage, settings.rate_limit)
        if problems:
            raise SettingsError(problems)
