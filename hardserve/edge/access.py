"""Who may come in: by the network of the client, the host that is asked for, and the method. Pure; any thread.

What is said for all requests and what is said for a route hold both: a client must be let in by each. A route says
what it says of the requests that are on it, and a path is on one route at most (see routes.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from hardserve import refusals
from hardserve.edge.forwarded import Identity
from hardserve.edge.networks import Networks
from hardserve.edge.routes import Found, with_head
from hardserve.refusals import Refusal
from hardserve.settings import Settings


class Visitor(Protocol):
    """What is looked at of a request."""

    command: str
    address: str
    headers: dict[str, str]
    identity: Identity | None


class _Doorkeeper:
    """Lets networks in: none of `deny`, and of all others those of `allow`, which means everybody when it is empty."""

    __slots__ = ("_allow", "_deny")

    def __init__(self, allow: Sequence[str], deny: Sequence[str]) -> None:
        self._allow = Networks(allow)
        self._deny = Networks(deny)

    def __bool__(self) -> bool:
        return bool(self._allow) or bool(self._deny)

    def lets_in(self, address: str) -> bool:
        if self._deny and self._deny.contains(address):
            return False
        return not self._allow or self._allow.contains(address)


class Access:
    """The rules of one server. `hosts` are the names that it serves, none for all."""

    __slots__ = (
        "_auth_required", "_by_route", "_hosts", "_methods", "_suffixes", "_to_all", "asks_for_certificates", "judges",
    )  # fmt: skip

    def __init__(self, settings: Settings, hosts: Sequence[str]) -> None:
        any_host = "*" in hosts
        self._hosts = frozenset() if any_host else frozenset(host.removeprefix(".") for host in hosts)
        self._suffixes = () if any_host else tuple(host for host in hosts if host.startswith("."))
        self._to_all = _Doorkeeper(settings.access.allow, settings.access.deny)
        self._by_route = {route: _Doorkeeper(route.allow, route.deny) for route in settings.route}
        self._methods = {route: with_head(route.allowed_methods) for route in settings.route if route.allowed_methods}
        self._auth_required = settings.auth.required == "on"
        self.asks_for_certificates = any(route.client_certificate == "required" for route in settings.route)
        # Whether there is anything to be asked of a request.
        self.judges = self.asks_for_certificates or bool(
            self._hosts or self._to_all or self._methods or any(self._by_route.values())
        )

    def __repr__(self) -> str:
        return f"<Access {len(self._hosts)} hosts, {len(self._by_route)} routes>"

    def refusal(self, visitor: Visitor, routes: Found, *, certified: bool) -> Refusal | None:
        """Return why a request may not come in, None if it may. It must be let in by all of its `routes`.

        `certified` is whether no route need ask for a client's certificate. Who the client is comes before what it
        wants: without a certificate nobody learns which methods are served.
        """
        if self._hosts:
            identity = visitor.identity
            host = (identity.host if identity is not None else "") or visitor.headers.get("HTTP_HOST", "")
            if not host:
                return refusals.HOST_MISSING
            if not self.serves(host):
                return refusals.HOST_NOT_SERVED
        if not self._lets_in(visitor.address, routes):
            return refusals.ACCESS_DENIED
        if not certified and any(
            route is not None and route.settings.client_certificate == "required" for route in routes
        ):
            return refusals.CLIENT_CERTIFICATE_MISSING
        if any(visitor.command not in methods for methods in self._methods_of(routes)):
            return refusals.METHOD_NOT_ALLOWED
        return None

    def _lets_in(self, address: str, routes: Found) -> bool:
        if self._to_all and not self._to_all.lets_in(address):
            return False
        return all(route is None or self._by_route[route.settings].lets_in(address) for route in routes)

    def _methods_of(self, routes: Found) -> Iterator[frozenset[str]]:
        if self._methods:
            for route in routes:
                if route is not None and route.settings in self._methods:
                    yield self._methods[route.settings]

    def serves(self, host: str) -> bool:
        """Return whether `host`, the value of a Host field, is one of those served. Ports do not count, nor does case.

        A dot at the end is the root of the name system, and left out (RFC 3986 3.2.2).
        """
        name = host.lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name if ":" in name else name
        name = name.removesuffix(".")
        return name in self._hosts or (bool(self._suffixes) and name.endswith(self._suffixes))

    def needs_password(self, routes: Found) -> bool:
        """Return whether a request on any of `routes` needs a user."""
        for route in routes:
            own = None if route is None else route.settings.auth
            if own == "on" or (own is None and self._auth_required):
                return True
        return False

    def allow_field(self, routes: Found) -> bytes:
        """Return the Allow field, a whole line, for a method that `routes` do not all allow (RFC 9110 10.2.1)."""
        allowed = list(self._methods_of(routes))
        return f"Allow: {', '.join(sorted(frozenset.intersection(*allowed)))}\r\n".encode() if allowed else b""
