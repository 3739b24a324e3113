"""The answer of an address that is only the way to HTTPS: where the same thing is. I/O thread; touches no socket.

Only hosts that this server is known by are sent on: to others it would vouch for a place that it has never heard of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from hardserve import refusals
from hardserve.refusals import Refusal

if TYPE_CHECKING:
    from hardserve.edge.parsing import Request

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")  # of a target in absolute form (RFC 9112 3.2.2)
_NOT_IN_URL = re.compile(r'[^!-~]|["<>\\^`{|}]')


class Redirect:
    """Sends requests on to `port`, "" for the usual one. `knows` is asked of a host without its port."""

    __slots__ = ("_knows", "_port")

    def __init__(self, port: str, knows: Callable[[str], bool]) -> None:
        self._port = "" if port in ("", "443") else f":{port}"
        self._knows = knows

    def __repr__(self) -> str:
        return f"<Redirect to port {self._port[1:] or 443}>"

    def refusal(self, request: Request) -> Refusal:
        """Return what a request that came in plain is answered; set where it is sent to."""
        identity = request.identity
        host = (identity.host if identity is not None else "") or request.headers.get("HTTP_HOST", "")
        if not host:
            return refusals.HOST_MISSING
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self._knows(name):
            return refusals.HOST_NOT_SERVED
        location = f"https://{name}{self._port}{_target(request.request_uri)}"
        request.refusal_fields = f"Location: {location}\r\n".encode("ascii")
        # A 301 may turn other methods into GET (RFC 9110 15.4.2), a 308 may not.
        return refusals.REDIRECTED if request.command in ("GET", "HEAD") else refusals.REDIRECTED_AS_IT_IS


def _target(uri: str) -> str:
    """Return path and query of a request's target, such that they can stand in a URL."""
    target = _ORIGIN.sub("", uri, count=1) if not uri.startswith("/") else uri
    if not target.startswith("/"):
        target = "/" + (target if target != "*" else "")
    return _NOT_IN_URL.sub(lambda match: f"%{ord(match[0]):02X}", target)
