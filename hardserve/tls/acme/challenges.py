"""The answers that prove to a CA that a name is ours, while it asks for them.

Written by the ACME thread, read by the I/O thread: both tables are replaced as a whole and never changed, so that
reading needs no lock. They are empty nearly always, and as long as the names of one certificate otherwise. Nothing here
knows the protocol: tokens, key authorizations and contexts come from whoever talks to the CA.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

HTTP_PREFIX = "/.well-known/acme-challenge/"


class Challenges:
    """What the server answers for HTTP-01 (RFC 8555 8.3) and TLS-ALPN-01 (RFC 8737)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # between writers
        self._bodies: dict[str, bytes] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}

    def __repr__(self) -> str:
        return f"<Challenges {len(self._bodies)} over HTTP, {len(self._contexts)} over TLS>"

    # The server's half: I/O thread, a look-up each.

    def answer(self, path: str) -> bytes | None:
        """Return the body for a request's path, None if no CA has been told to ask for it.

        It goes out with status 200 as application/octet-stream, whatever the Host, and before any redirect.
        """
        if not self._bodies or not path.startswith(HTTP_PREFIX):
            return None
        return self._bodies.get(path[len(HTTP_PREFIX) :])

    def context_for_challenge(self, server_name: str | None) -> ssl.SSLContext | None:
        """Return what a handshake for `server_name` is answered with if it offers "acme-tls/1" alone.

        `ClientHello.is_validation` tells that. Everybody else who asks for that name meanwhile must get its ordinary
        context.
        """
        if not self._contexts or not server_name:
            return None
        return self._contexts.get(server_name.lower())

    @property
    def expects_handshakes(self) -> bool:
        """Whether a CA may connect for TLS-ALPN-01 just now, so that it is worth looking into a ClientHello."""
        return bool(self._contexts)

    # The ACME thread's half.

    def expect_request(self, token: str, key_authorization: str) -> None:
        with self._lock:
            self._bodies = {**self._bodies, token: key_authorization.encode("ascii")}

    def expect_handshake(self, name: str, context: ssl.SSLContext) -> None:
        with self._lock:
            self._contexts = {**self._contexts, name.lower(): context}

    def forget(self) -> None:
        """Answer no more. One certificate is ordered at a time: all there is belongs to it."""
        with self._lock:
            self._bodies, self._contexts = {}, {}
