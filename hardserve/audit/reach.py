"""Who can connect to a server, as far as its settings say. Pure; any thread.

What a firewall, a router or a provider lets through, nobody can see from here. An address that is not for this machine
or a private network alone counts as open to everybody, unless `access.allow` or client certificates say otherwise. All
addresses of a box without a public one of its own are those of a home, a container or a cloud's gateway: they count
where the port is one of the web's.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from hardserve.addresses import HTTP_PORT, HTTPS_PORT, FdAddress, TcpAddress, UnixAddress, parse_address
from hardserve.settings import Settings

_LOCAL_WORDS = frozenset({"loopback", "unix"})
_CLOSED_WORDS = _LOCAL_WORDS | {"private"}


@dataclass(frozen=True, slots=True)
class Reach:
    """Addresses of server.bind by who can connect, as the operator has written them.

    `open` is to everybody, `local` to this machine, `sockets` are Unix sockets, and what is in none of them is for a
    private network, for trusted proxies (PROXY protocol), or not known. `closed` is whether only private networks, or
    clients with a certificate, get any farther. `proxied` is whether a proxy is named, and `by_local_proxies` whether
    each that is named is on this machine.
    """

    open: tuple[str, ...]
    local: tuple[str, ...]
    sockets: tuple[str, ...]
    all_local: bool
    tls: bool
    closed: bool
    proxied: bool
    by_local_proxies: bool

    @property
    def public(self) -> bool:
        """Whether anybody may ask without a proxy in between."""
        return bool(self.open) and not self.closed


def reach_of(settings: Settings, *, on_internet: bool = True) -> Reach:
    """Return who can connect. `on_internet` is whether this box has a public address."""
    by_kind: dict[str, list[str]] = {"open": [], "local": [], "socket": [], "": []}
    for text in settings.server.bind:
        by_kind[_kind_of(text, on_internet=on_internet)].append(text)
    trusted = settings.proxy.trusted if settings.proxy.headers != "off" or _has_proxy_protocol(settings) else ()
    allow = settings.access.allow
    return Reach(
        open=tuple(by_kind["open"]),
        local=tuple(by_kind["local"]),
        sockets=tuple(by_kind["socket"]),
        all_local=not by_kind["open"] and not by_kind[""],
        tls=settings.serves_tls,
        closed=(bool(allow) and all(map(is_closed, allow))) or settings.tls.client_certificates == "required",
        proxied=bool(trusted),
        by_local_proxies=bool(trusted) and all(map(_is_local, trusted)),
    )


def _has_proxy_protocol(settings: Settings) -> bool:
    return any(parse_address(text).proxy_protocol for text in settings.server.bind)


def _kind_of(text: str, *, on_internet: bool) -> str:
    address = parse_address(text)
    if isinstance(address, FdAddress) or address.proxy_protocol:
        return ""
    if isinstance(address, UnixAddress):
        return "socket"
    return _kind_of_host(address, on_internet=on_internet)


def _kind_of_host(address: TcpAddress, *, on_internet: bool) -> str:
    if address.host == "localhost" or address.host.endswith(".localhost"):
        return "local"
    try:
        ip = ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return ""  # a name, which is looked up when it is bound
    if ip.is_loopback:
        return "local"
    everywhere = ip.is_unspecified and (on_internet or address.port in (HTTP_PORT, HTTPS_PORT))
    return "open" if everywhere or ip.is_global else ""


def is_closed(text: str) -> bool:
    """Return whether nobody on the Internet is in a network of settings."""
    if text in _CLOSED_WORDS:
        return True
    network = ipaddress.ip_network(text, strict=False)
    return not network.is_global and network.prefixlen > 0


def _is_local(text: str) -> bool:
    return text in _LOCAL_WORDS or (text not in _CLOSED_WORDS and ipaddress.ip_network(text, strict=False).is_loopback)


def is_everybody(text: str) -> bool:
    """Return whether a network of settings is so wide that it is everybody, or nearly."""
    return text not in _CLOSED_WORDS and ipaddress.ip_network(text, strict=False).prefixlen <= 4
