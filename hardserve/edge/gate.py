"""What a request must pass before it costs a worker: every decision, in order, in one function.

I/O thread. It reads the request's head and touches no socket. Cheapest and most hostile first; framing and the sizes of
the head come earlier still, in the parser, because without them there is no request to judge.

What may block, a password's hash or a shared store of rates, is not done here: the gate then answers PENDING, has the
check threads look at it, and is called again with what they found.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from hardserve import refusals
from hardserve.edge import forwarded
from hardserve.edge.access import Access
from hardserve.edge.networks import UNIX, Networks, prefix_key
from hardserve.edge.parsing import Request
from hardserve.edge.ratelimit import Question, RateLimiter, RateRefusal
from hardserve.edge.redirect import Redirect
from hardserve.edge.routes import NO_ROUTE, Found, Routes
from hardserve.refusals import Refusal

if TYPE_CHECKING:
    from hardserve.edge.tlsfacts import Facts
    from hardserve.settings import Settings

logger = logging.getLogger("hardserve.edge")


class Pending(Enum):
    """The answer of a gate that cannot tell yet."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING
Verdict = Refusal | Pending | None
PasswordResult = str | BaseException | None  # the user, or why it cannot be told, or None for a wrong one


class Door(Protocol):
    """The address that a connection came in by."""

    redirects: bool


class Asker(Protocol):
    """The connection that a request came on."""

    peer: tuple[str, int]
    client: str
    trusted: bool
    request: Request | None  # the one that it waits for

    @property
    def listener(self) -> Door: ...
    @property
    def tls(self) -> Facts | None: ...
    def decided(self, request: Request, refusal: Refusal | None, now: float) -> None: ...
    def close(self, *, reset: bool = False) -> None: ...


class Password(Protocol):
    """What is known of a request's user without a hash. See `checks.users.Authenticator`."""

    def remembered(self, authorization: str, client: str, now: float) -> str | None: ...
    def was_good(self, authorization: str, client: str, now: float) -> bool: ...


class Checks(Protocol):
    """What may block. Each returns False if it cannot be done now; else `then` is called on the I/O thread, once.

    Not if the client has gone by then.
    """

    def password(self, asker: Asker, request: Request, then: Callable[[PasswordResult, float], None], /) -> bool: ...
    def rates(
        self, asker: Asker, request: Request, question: Question, then: Callable[[RateRefusal | None, float], None], /
    ) -> bool: ...


class Gate:
    """Judges a request when its head is complete and not a byte of its body has been accepted."""

    __slots__ = (
        "_access", "_auth", "_ban_left_s", "_banned", "_challenge", "_checks", "_family", "_ipv6_prefix", "_limiter",
        "_limits", "_other_family_seen", "_per_request", "_routes", "_trusted", "_unknown_proxy",
        "file_refusal", "is_challenge", "redirect",
    )  # fmt: skip

    def __init__(
        self,
        settings: Settings,
        *,
        trusted: Networks,
        hosts: Sequence[str],
        limiter: RateLimiter,
        banned: Callable[[str, str, float], bool],
        ban_left_s: Callable[[str, float], float],
        auth: Password | None,
        checks: Checks,
    ) -> None:
        self._routes = Routes(settings.route, settings.limits)
        self._access = Access(settings, hosts)
        self._trusted = trusted
        self._other_family_seen = False
        # Where a proxy may be that nobody has told us of; None once that was said.
        self._unknown_proxy: Networks | None = None if trusted else Networks(("unix", "loopback", "private"))
        self._family = settings.proxy.headers
        self._ipv6_prefix = settings.limits.ipv6_prefix
        self._limiter = limiter
        self._limits = limiter.has_rules
        self._banned = banned
        self._ban_left_s = ban_left_s
        self._auth = auth
        self._checks = checks
        self.redirect: Redirect | None = None  # the server sets it where an address only sends on to HTTPS
        # Whether a certificate authority has been told to send this request; the server sets it where there is one.
        self.is_challenge: Callable[[Request], bool] | None = None
        # Why a request with a body is refused that is for a file; the server sets it where there are files.
        self.file_refusal: Callable[[Request], Refusal | None] = lambda _request: None
        self._challenge = f'WWW-Authenticate: Basic realm="{settings.auth.realm}", charset="UTF-8"\r\n'.encode()
        # Nearly every server has none of these, and its requests pay for one look.
        self._per_request = self._access.judges or auth is not None or limiter.by_user

    def __repr__(self) -> str:
        return f"<Gate {self._routes!r}, {self._limiter!r}>"

    def admit(self, asker: Asker, request: Request, now: float) -> Verdict:
        """Return why `request` may not come in, None if it may; set who asks, and how much body it may have.

        PENDING is that `asker.decided` will be called when it is known. I/O thread.
        """
        if asker.trusted:
            refusal = self._identify(asker, request, now)
            if refusal is not None:
                return refusal
        else:
            request.address = asker.peer[0]
            request.client = asker.client
            if request.forwarding is not None and self._unknown_proxy is not None:
                self._look_for_proxy(self._unknown_proxy, asker)
        if self.is_challenge is not None and self.is_challenge(request):
            return None  # whatever is asked of others (edge.challenge)
        routes = NO_ROUTE
        if self._per_request:
            routes = self._routes.find(request.command, request.path)
            certified = not self._access.asks_for_certificates or self._need_not_prove(asker)
            refusal = self._access.refusal(request, routes, certified=certified)
            if refusal is not None:
                if refusal is refusals.METHOD_NOT_ALLOWED:
                    request.refusal_fields = self._access.allow_field(routes)
                return refusal
        verdict = self._limiter.check(request, now) if self._limits else None
        if verdict is None:
            if self._per_request or self.redirect is not None:
                return self._after_rates(asker, request, routes, now)
            return None if request.body_rcv is None else self._size_body(request, NO_ROUTE)
        return self._rate_verdict(verdict, asker, request, self._after_rates, routes, now)

    def follow(self, former: Gate) -> None:
        """Take over what the server has set on a former gate, and what that has said already. I/O thread."""
        self.is_challenge = former.is_challenge
        self.file_refusal = former.file_refusal
        if self._trusted is former._trusted and self._family == former._family:
            self._unknown_proxy = former._unknown_proxy
            self._other_family_seen = former._other_family_seen

    # --- who asks ---

    def _look_for_proxy(self, near: Networks, asker: Asker) -> None:
        """Say once that a proxy seems to be in front that is not trusted: all of its clients count as one."""
        if near.contains(asker.peer[0]):
            self._unknown_proxy = None
            logger.warning(
                "%s sends forwarding header fields, which are removed, and everybody behind it counts as one client; "
                'if that is your proxy, set proxy.trusted = ["%s"]',
                asker.peer[0],
                "unix" if asker.peer[0] == UNIX else asker.peer[0],
            )

    def _identify(self, asker: Asker, request: Request, now: float) -> Refusal | None:
        """Find out whom a trusted proxy asks for."""
        identity = forwarded.resolve(asker.peer, request.forwarding or {}, self._trusted, self._family)
        if identity is None:
            return refusals.BAD_FORWARDING
        request.identity = identity
        request.address = identity.address
        # A proxy that asks for itself (a health check) is nobody, as its connections are.
        own = self._trusted.contains(identity.address)
        request.client = "" if own else prefix_key(identity.address, 32, self._ipv6_prefix)
        if own and not self._other_family_seen and request.forwarding:
            self._look_for_other_family(asker, request.forwarding)
        if not self._banned(request.client, request.address, now):
            return None
        request.refusal_fields = f"Retry-After: {math.ceil(self._ban_left_s(request.client, now))}\r\n".encode()
        return refusals.BANNED

    def _look_for_other_family(self, asker: Asker, fields: Mapping[str, str]) -> None:
        """Say once that a trusted proxy writes other fields than those that count: all of its clients are it."""
        ours = {"x-forwarded": "HTTP_X_FORWARDED_FOR", "forwarded": "HTTP_FORWARDED"}.pop(self._family, "")
        others = {"HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_CF_CONNECTING_IP"} & fields.keys()
        if ours not in fields and others:
            self._other_family_seen = True
            names = ", ".join(sorted(name[5:].replace("_", "-").title() for name in others))
            logger.warning(
                "the trusted proxy %s says who its clients are in %s, but proxy.headers is %s: they count as itself",
                asker.peer[0],
                names,
                self._family,
            )

    def _need_not_prove(self, asker: Asker) -> bool:
        """Return whether a client has a verified certificate, or is only to be sent on to where it can show one.

        What counts is the connection that the request came on, whatever a proxy says of its own clients. OpenSSL
        verified the certificate in the handshake, or in that of the session that is resumed.
        """
        if self.redirect is not None and asker.listener.redirects:
            return True
        tls = asker.tls
        return tls is not None and bool(tls.client)

    # --- how often ---

    def _rate_verdict(
        self,
        verdict: RateRefusal | Question,
        asker: Asker,
        request: Request,
        go_on: Callable[[Asker, Request, Found, float], Verdict],
        routes: Found,
        now: float,
    ) -> Verdict:
        """Refuse, or have the shared store asked and go on with what it says."""
        if isinstance(verdict, RateRefusal):
            return self._rate_limited(request, verdict)

        def then(refused: RateRefusal | None, now: float) -> None:
            if refused is not None:
                asker.decided(request, self._rate_limited(request, refused), now)
            else:
                self._decide(asker, request, go_on(asker, request, routes, now), now)

        if self._checks.rates(asker, request, verdict, then):
            return PENDING
        refused = self._limiter.decide(verdict, now)  # the store is away
        return go_on(asker, request, routes, now) if refused is None else self._rate_limited(request, refused)

    def _rate_limited(self, request: Request, refused: RateRefusal) -> Refusal:
        request.refusal_fields = refused.fields
        return refusals.RATE_LIMITED

    def _decide(self, asker: Asker, request: Request, verdict: Verdict, now: float) -> None:
        if not isinstance(verdict, Pending):
            asker.decided(request, verdict, now)

    # --- with which password ---

    def _after_rates(self, asker: Asker, request: Request, routes: Found, now: float) -> Verdict:
        if self.redirect is not None and asker.listener.redirects:
            return self.redirect.refusal(request)  # and nobody is asked for a password in plain
        auth = self._auth
        if auth is None or not self._access.needs_password(routes):
            return self._after_password(asker, request, routes, now)
        authorization = request.headers.get("HTTP_AUTHORIZATION", "")
        if authorization[:6].lower() != "basic ":
            request.refusal_fields = self._challenge
            return refusals.PASSWORD_NEEDED
        user = auth.remembered(authorization, request.client, now)
        if user is not None:
            request.user = user
            return self._after_password(asker, request, routes, now)
        # Whose password was good a moment ago does not guess, whatever others at the same address have tried.
        if not auth.was_good(authorization, request.client, now):
            refused = self._limiter.may_try_password(request, now)
            if refused is not None:
                return self._rate_limited(request, refused)

        def then(user: PasswordResult, now: float) -> None:
            if isinstance(user, BaseException):
                asker.decided(request, refusals.PASSWORDS_BUSY, now)
            elif user is None:
                self._limiter.password_failed(request, now)
                request.refusal_fields = self._challenge
                asker.decided(request, refusals.PASSWORD_WRONG, now)
            else:
                request.user = user
                self._decide(asker, request, self._after_password(asker, request, routes, now), now)

        return PENDING if self._checks.password(asker, request, then) else refusals.PASSWORDS_BUSY

    def _after_password(self, asker: Asker, request: Request, routes: Found, now: float) -> Verdict:
        verdict = self._limiter.check_user(request, now)
        if verdict is None:
            return self._after_all(asker, request, routes, now)
        return self._rate_verdict(verdict, asker, request, self._after_all, routes, now)

    # --- how much ---

    def _after_all(self, _asker: Asker, request: Request, routes: Found, _now: float) -> Refusal | None:
        return self._size_body(request, routes)

    def _size_body(self, request: Request, routes: Found) -> Refusal | None:
        if request.content_length > 0 or request.chunked:
            if not self._per_request:
                routes = self._routes.find(request.command, request.path)
            request.max_body = self._routes.max_body(routes, request.headers.get("CONTENT_TYPE", ""))
            # How long a chunked body is shows only while it arrives: the parser holds it to `max_body`.
            if request.content_length > request.max_body:
                return refusals.BODY_TOO_LARGE
            return self.file_refusal(request)
        return None
