"""One certificate from a CA: an order is made or continued, its names are proven, and the chain is fetched.

ACME thread. What to do next with an order is decided by `next_move`, from what the CA has said and nothing else;
`Ordering` does it. The order is kept before anything follows from it, together with the key that its certificate will
have: a process that dies, or a CA that goes away, costs no second certificate. Nothing here knows when an order is due,
or what becomes of the certificate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from cryptography import x509

from hardserve.tls.acme import pki
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.acme.client import AcmeError, Authorization, Challenge, OrderState, Problem
from hardserve.tls.acme.schedule import Kind
from hardserve.tls.acme.settings import HTTP_01, TLS_ALPN_01
from hardserve.tls.acme.state import PendingOrder

logger = logging.getLogger("hardserve.acme")

# CAs look at a name several times and from several places; then it is a matter of seconds.
ORDER_S = 600.0
# Between two questions, where the CA does not say: growing, so that a slow one is not asked all the time.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
# A CA asks for one authorization for each name (RFC 8555 7.1.3), and for no more than so many others.
_MORE_AUTHORIZATIONS = 5
# An order that was begun longer ago than this is as good as expired.
_OLD_S = 5 * 86400.0
# Where a CA connects to, whatever port the server has behind a router.
_PORTS = {HTTP_01: 80, TLS_ALPN_01: 443}
# Of RFC 8555 6.7, when nobody has answered, or somebody else.
_NOT_REACHED = frozenset({"connection", "dns", "incorrectResponse", "tls", "unauthorized"})


class StoppedError(Exception):
    """The server stops. What was begun is continued the next time."""


# What to do with an order.


@dataclass(frozen=True, slots=True)
class Answer:
    """Prove these names; the CA has not been told yet that it may look."""

    authorizations: tuple[Authorization, ...]


@dataclass(frozen=True, slots=True)
class Finalize:
    """Send the request for the certificate."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """The certificate is there."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The CA is at work."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    why: str
    kind: Kind
    code: str = ""


Move = Answer | Finalize | Fetch | Pause | GiveUp


def next_move(order: OrderState, authorizations: Sequence[Authorization], answered: frozenset[str]) -> Move:
    """Return what to do, by the states of RFC 8555 7.1.6. `answered` are the addresses of authorizations."""
    for each in authorizations:
        if each.status not in ("pending", "valid"):
            problem = each.problem or Problem("", f"its authorization is {each.status}")
            return GiveUp(f"{each.name} could not be proven{_how(each)}: {problem.text}", "unproven", problem.code)
    if order.status == "pending":
        todo = tuple(each for each in authorizations if each.status == "pending" and each.url not in answered)
        return Answer(todo) if todo else Pause()
    if order.status == "invalid":
        problem = order.problem or Problem("", "it does not say why")
        return GiveUp(f"the CA has refused the order: {problem.text}", "refused", problem.code)
    moves: dict[str, Move] = {"ready": Finalize(), "processing": Pause(), "valid": Fetch()}
    return moves.get(order.status) or GiveUp(f"the CA says that the order is {order.status}", "refused")


def _how(authorization: Authorization) -> str:
    """Return by which kind of challenge a name was not proven, and what to look at; before what the CA has to say."""
    kind = next((each.kind for each in authorization.challenges if each.status == "invalid"), "")
    if kind not in _PORTS or authorization.problem is None:
        return ""
    if authorization.problem.code not in _NOT_REACHED:
        return f" by {kind}"
    return f" by {kind} (does the name point to this machine, and does port {_PORTS[kind]} reach it?)"


def choose(authorization: Authorization, kinds: Sequence[str]) -> Challenge | None:
    """Return the first challenge of `kinds` that can be answered."""
    for kind in kinds:
        for challenge in authorization.challenges:
            if challenge.kind == kind and challenge.token and challenge.status in ("pending", "processing"):
                return challenge
    return None


# Doing it.


class Authority(Protocol):
    """What is needed of client.Client."""

    @property
    def retry_after(self) -> float | None: ...
    def new_order(self, names: tuple[str, ...], *, replaces: str = "", profile: str = "") -> OrderState: ...
    def order(self, url: str) -> OrderState: ...
    def authorization(self, url: str) -> Authorization: ...
    def answer(self, challenge: Challenge) -> None: ...
    def finalize(self, order: OrderState, request: x509.CertificateSigningRequest) -> OrderState: ...
    def certificate(self, order: OrderState) -> bytes: ...


class Memory(Protocol):
    """What is needed of state.StateDirectory."""

    def read_order(self) -> PendingOrder | None: ...
    def write_order(self, order: PendingOrder) -> None: ...
    def forget_order(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    names: tuple[str, ...]
    directory: str
    account: str
    kinds: tuple[str, ...]  # of challenges, in the order in which they are tried
    replaces: str = ""
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Issued:
    chain: bytes  # checked
    key: bytes
    challenge: str


@dataclass(slots=True)
class _Progress:
    """How far an order has come."""

    order: OrderState
    kind: str
    fresh: bool = True  # nothing was done since `order` was read
    answered: set[str] = field(default_factory=set)
    valid: dict[str, Authorization] = field(default_factory=dict)


class Ordering:
    """`pause` waits for so many seconds and raises StoppedError if the server stops meanwhile."""

    def __init__(
        self,
        authority: Authority,
        memory: Memory,
        challenges: Challenges,
        pause: Callable[[float], None],
        clock: Callable[[], float],
        *,
        limit_s: float = ORDER_S,
    ) -> None:
        self._authority = authority
        self._memory = memory
        self._challenges = challenges
        self._pause = pause
        self._clock = clock
        self._until = monotonic() + limit_s

    def obtain(self, request: Request) -> Issued:
        """Return a certificate for all names. Raises AcmeError, OSError, and StoppedError.

        The order stays in memory until its certificate can never come, or has been put where it belongs, which whoever
        does that makes known with `Memory.forget_order`.
        """
        pending, order = self._begin(request)
        try:
            return self._finish(request, pending, order)
        finally:
            self._challenges.forget()

    def _begin(self, request: Request) -> tuple[PendingOrder, OrderState]:
        pending = self._memory.read_order()
        if pending is not None:
            order = self._continue(request, pending)
            if order is not None:
                logger.info("continuing the order that was begun for %s", ", ".join(request.names))
                return pending, order
            self._memory.forget_order()
        order = self._new_order(request)
        key = pki.key_pem(pki.new_key()).decode("ascii")
        kind = request.kinds[0]
        pending = PendingOrder(
            order.url, request.directory, request.account, request.names, key, kind, begun=self._clock()
        )
        self._memory.write_order(pending)
        return pending, order

    def _continue(self, request: Request, pending: PendingOrder) -> OrderState | None:
        """Return an order of before, None if it is not the one that is wanted now, or cannot come to anything."""
        same = (pending.names, pending.directory, pending.account) == (
            request.names,
            request.directory,
            request.account,
        )
        if not same or not 0 <= self._clock() - pending.begun <= _OLD_S:
            return None
        try:
            pki.load_key(pending.key.encode())
            order = self._authority.order(pending.url)
        except pki.UnusableError:
            return None
        except AcmeError as error:
            if error.kind == "unreachable" or error.code in ("rateLimited", "accountDoesNotExist"):
                raise
            logger.debug("the order that was begun is gone: %s", error)
            return None
        return None if order.status == "invalid" else order

    def _new_order(self, request: Request) -> OrderState:
        try:
            return self._authority.new_order(request.names, replaces=request.replaces, profile=request.profile)
        except AcmeError as error:
            # RFC 9773 5: whatever the CA has against the certificate that is named as the one to be replaced, it was
            # only named to be polite.
            if not request.replaces or error.code not in ("alreadyReplaced", "conflict", "malformed"):
                raise
        return self._authority.new_order(request.names, profile=request.profile)

    def _finish(self, request: Request, pending: PendingOrder, order: OrderState) -> Issued:
        key = pki.load_key(pending.key.encode())
        progress = _Progress(order, pending.challenge)
        pause = _FIRST_PAUSE_S
        while True:
            try:
                chain = self._advance(request, key, progress)
                if chain is not None:
                    break
                asked = self._authority.retry_after
            except AcmeError as error:
                # A CA that does not answer for a moment may be looking at our names just now.
                asked = error.retry_after
                if error.kind != "unreachable" and error.code != "orderNotReady":
                    raise
                if self._until - monotonic() <= (asked or 0.0):
                    raise
            if asked is not None and asked > _LONGEST_PAUSE_S:
                pause = _LONGEST_PAUSE_S
            self._wait(max(pause, min(asked or 0.0, _LONGEST_PAUSE_S)))
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        try:
            accepted = pki.accept(chain, key, request.names, self._clock())
        except pki.UnusableError as error:
            self._memory.forget_order()
            raise AcmeError(f"the CA has sent something else than was asked for: {error}") from error
        return Issued(accepted, pending.key.encode("ascii"), progress.kind)

    def _advance(self, request: Request, key: pki.Key, progress: _Progress) -> bytes | None:
        """Do what can be done now; return the chain when it is there, None when the CA has to be waited for."""
        while True:
            order = progress.order if progress.fresh else self._authority.order(progress.order.url)
            progress.order, progress.fresh = order, False
            move = next_move(order, self._authorizations(request, progress), frozenset(progress.answered))
            if isinstance(move, GiveUp):
                self._memory.forget_order()
                raise AcmeError(move.why, move.kind, code=move.code)
            if isinstance(move, Fetch):
                return self._authority.certificate(order)
            if isinstance(move, Pause):
                return None
            if isinstance(move, Finalize):
                progress.order = self._authority.finalize(order, pki.signing_request(key, request.names))
                if progress.order.status == "ready":
                    return None  # it has not begun with it
                progress.fresh = True
                continue
            for authorization in move.authorizations:
                self._go_on()
                progress.kind = self._prove(authorization, (progress.kind, *request.kinds))
                progress.answered.add(authorization.url)
            return None

    def _authorizations(self, request: Request, progress: _Progress) -> list[Authorization]:
        """Ask for those that are not known to be valid already, as long as they matter."""
        if progress.order.status not in ("pending", "invalid"):
            return []
        count = len(progress.order.authorizations)
        if count > len(request.names) + _MORE_AUTHORIZATIONS:
            self._memory.forget_order()
            raise AcmeError(f"the CA asks for {count} authorizations, and {len(request.names)} names are wanted")
        found = []
        for url in progress.order.authorizations:
            authorization = progress.valid.get(url)
            if authorization is None:
                self._go_on()
                authorization = self._authority.authorization(url)
            if authorization.status == "valid":
                progress.valid[url] = authorization
            found.append(authorization)
        return found

    def _prove(self, authorization: Authorization, kinds: Sequence[str]) -> str:
        """Have the server answer for a name, and tell the CA; return by which kind of challenge."""
        challenge = choose(authorization, kinds)
        if challenge is None:
            offered = ", ".join(each.kind for each in authorization.challenges) or "nothing"
            raise AcmeError(f"{authorization.name}: the CA offers {offered} to prove it", "misconfigured")
        if challenge.kind == HTTP_01:
            self._challenges.expect_request(challenge.token, challenge.key_authorization)
        elif challenge.kind == TLS_ALPN_01:
            context = pki.challenge_context(authorization.name, challenge.key_authorization)
            self._challenges.expect_handshake(authorization.name, context)
        if challenge.status == "pending":
            self._authority.answer(challenge)
        return challenge.kind

    def _go_on(self) -> None:
        """Find out whether there is time for one more request, and the server does not stop."""
        self._wait(0.0)

    def _wait(self, seconds: float) -> None:
        left = self._until - monotonic()
        if left <= 0:
            raise AcmeError("the CA has not come to an end with the order in time", "unreachable")
        self._pause(min(seconds, left))
