"""What an app says of the names that it has, and of proxies in front of it.

Main thread, at start. Only looks. Imports neither Flask nor Werkzeug.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .kinds import is_flask, is_proxy_fix
from .production import parts_of

if TYPE_CHECKING:
    from flask import Flask


def hosts_of(app: object) -> tuple[Sequence[str], str]:
    """Return the hosts that an app wants to be asked for, as access.hosts has them, and where it says so.

    TRUSTED_HOSTS of a Flask app, `trusted_hosts` of its request class, which counts without those, or SERVER_NAME,
    with all below it where the app matches subdomains. None, and "", where it says nothing, and where one of several
    Flask apps does not.
    """
    hosts: list[str] = []
    sources: list[str] = []
    for part in filter(is_flask, parts_of(app)):
        config = part.config
        if config.get("TRUSTED_HOSTS"):
            sources.append("TRUSTED_HOSTS")
            hosts += _each(config["TRUSTED_HOSTS"])
        elif config.get("TRUSTED_HOSTS") is None and (trusted := list(_each(_of_requests(part)))):
            sources.append("request_class.trusted_hosts")
            hosts += trusted
        elif config.get("SERVER_NAME") and not part.url_map.host_matching:
            sources.append("SERVER_NAME")
            name = _bare(config["SERVER_NAME"])
            hosts.append(f".{name}" if part.subdomain_matching else name)
        else:
            return (), ""
    return list(dict.fromkeys(hosts)), " and ".join(dict.fromkeys(sources))


def _of_requests(flask: Flask) -> object:
    """Return what Werkzeug has apps set on the class of their requests, or what else is there."""
    return getattr(flask.request_class, "trusted_hosts", None)


def _each(hosts: object) -> Iterator[str]:
    """Yield hosts as Werkzeug reads them, which takes one text for one host."""
    several = [hosts] if isinstance(hosts, str) else hosts
    if isinstance(several, Collection):  # and no property, which has to have a request
        yield from map(_bare, several)


def _bare(host: Any) -> str:
    """Return a host without its port, in small letters."""
    text = str(host).lower()
    name, colon, port = text.rpartition(":")
    return name if colon and port.isdigit() and not name.endswith(":") else text


def has_proxy_fix(app: object) -> bool:
    """Return whether Werkzeug's ProxyFix is somewhere around or in `app`."""
    return any(map(is_proxy_fix, parts_of(app)))
