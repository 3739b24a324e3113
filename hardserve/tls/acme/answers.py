"""What comes from a CA, within bounds: how long an answer takes in all, how long it is, and that it can be read.

ACME thread. `requests` bounds each pause and nothing else, so that whoever sends a byte now and then, or informational
answers (RFC 9110 15.2) without end, is listened to for ever. Here the head of an answer and its body share one deadline
and one number of bytes, which are counted as they come from the socket; of what was compressed, the length is counted
again. The handshake before has the pause for all of it, by the `ssl` module. Nothing here knows the protocol.
"""

from __future__ import annotations

import errno
import http.client
import io
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.response import assert_header_parsing

# All of an answer, from the moment that the request was sent.
ANSWER_S = 60.0
# Of its body, decoded; the longest of all is a chain of certificates.
ANSWER_BYTES = 1 << 20
# Of all that is received, the head and the frames of chunks included.
RECEIVED_BYTES = 2 * ANSWER_BYTES


class BoundedAdapter(HTTPAdapter):
    """HTTPS alone, also after a redirect, with bounded answers."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if isinstance(manager, urllib3.ProxyManager):  # SOCKS has connections of its own
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        if not (request.url or "").startswith("https://"):
            raise requests.exceptions.InvalidSchema(f"the CA sends us to {request.url!r}, which is not https://")
        response = super().send(request, *arguments, **options)
        response.raw = _BoundedBody(response.raw)
        return response


class _BoundedBody:
    """The body of an answer, as `requests` reads it, that may not be longer than it should when it is decoded."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def stream(self, amount: int, decode_content: bool = True) -> Iterator[bytes]:
        count = 0
        for block in self._raw.stream(amount, decode_content=decode_content):
            count += len(block)
            if count > ANSWER_BYTES:
                self._raw.close()
                raise requests.exceptions.ContentDecodingError("the answer is too long")
            yield block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class _Received(io.RawIOBase):
    """What comes from a socket, up to the end of one answer. Raises TimeoutError, and OSError for too much."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._file = connection.makefile("rb", buffering=0)
        self._pause = connection.gettimeout()
        self._until = monotonic() + ANSWER_S
        self._left = RECEIVED_BYTES

    def makefile(self, *_: object) -> io.BufferedReader:
        """Return the file that http.client makes of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self._until - monotonic()
        if seconds <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the answer takes too long")
        self._connection.settimeout(seconds if self._pause is None else min(seconds, self._pause))
        count = self._file.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise OSError(errno.EMSGSIZE, "the answer is too long")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, connection: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(_Received(connection), *arguments, **options)  # type: ignore[arg-type]  # for its makefile

    def begin(self) -> None:
        """As http.client's, but what is malformed is an error, where urllib3 writes a traceback to the log and goes on.

        After such a line the fields that follow are lost, the length of the body among them (RFC 9112 2.2).
        """
        super().begin()
        try:
            assert_header_parsing(self.msg)
        except urllib3.exceptions.HeaderParsingError:
            raise http.client.HTTPException("a malformed header field") from None


class _Connection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


_POOLS: dict[str, type[HTTPConnectionPool]] = {"http": HTTPConnectionPool, "https": _Pool}
