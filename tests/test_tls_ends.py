"""Over TLS whoever is told something is told that this was all of it, and a cut is no end (RFC 8446 6.1)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.certs import client_context
from tests.support import PATIENCE_S, Running, over, serving, switching_often
from tests.test_http import eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
BLOCK = b"x" * 65536

# What a client has sent when it says no more, and the statuses that it gets.
ENDS = {
    "nothing": (b"", []),
    "a request": (GET, [200]),
    "its last request": (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), [200]),
    "a thousand requests in one piece": (GET * 1000, [200] * 1000),
    "half a head": (GET[:20], [408]),
    "half a body": (POST + b"x", [408]),
    "half a body that it was told to send": (POST.replace(b"Host", b"Expect: 100-continue\r\nHost"), [100, 408]),
    "what is no request": (b"NONSENSE\r\n\r\n", [400]),
    "more behind what is no request": (b"NONSENSE\r\n\r\n" + BLOCK * 3, [400]),
}


def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/large":
        start_response("200 OK", [("Content-Length", str(400 * len(BLOCK)))])
        return (BLOCK for _ in range(400))
    start_response("200 OK", [])
    return iter([b"hello"])


def connect(running: Running, version: str) -> ssl.SSLSocket:
    """Return a client that is told the ends of a connection apart."""
    plain = socket.create_connection(("127.0.0.1", running.port), PATIENCE_S)
    return client_context(version=version).wrap_socket(
        plain, server_hostname="localhost", suppress_ragged_eofs=False
    )  # fmt: skip


def to_its_end(client: ssl.SSLSocket) -> tuple[bytes, str]:
    """Return all that comes, and how it ended."""
    received = bytearray()
    try:
        while data := client.recv(1 << 18):
            received += data
    except ssl.SSLZeroReturnError:
        pass
    except (ssl.SSLEOFError, ConnectionResetError):
        return bytes(received), "cut"
    return bytes(received), "close_notify"


@pytest.fixture(params=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_whoever_is_told_something_is_told_its_end(version: str) -> None:
    settings: dict[str, Any] = {
        "timeouts_first_byte": "0.3s", "timeouts_header": "0.3s", "timeouts_body": "0.3s",
        "timeouts_keep_alive": "0.3s", "limits_connection_requests": 2000, "limits_pipeline": 1 << 20,
    }  # fmt: skip
    with over("tls"), switching_often(), serving(app, **settings) as running, contextlib.ExitStack() as stack:
        clients = {name: stack.enter_context(connect(running, version)) for name in ENDS}
        for name, (sent, _) in ENDS.items():
            if sent:
                clients[name].sendall(sent)
        for name, (_, statuses) in ENDS.items():
            received, end = to_its_end(clients[name])
            found = [int(piece[:3]) for piece in received.split(b"HTTP/1.1 ")[1:]]
            assert (found, end) == (statuses, "close_notify"), name


def test_whoever_is_answered_while_the_server_drains_is_told_the_end(version: str) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def gated(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        entered.set()
        assert go_on.wait(PATIENCE_S)
        return app(environ, start_response)

    with over("tls"), serving(gated) as running, connect(running, version) as asking, connect(running, version) as idle:
        asking.sendall(GET)
        assert entered.wait(PATIENCE_S)
        running.server.stop()
        eventually(lambda: running.server._loop._ctx.draining)
        go_on.set()
        received, end = to_its_end(asking)
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in received
        assert end == "close_notify"
        assert to_its_end(idle) == (b"", "close_notify")
        for client in (asking, idle):
            client.close()  # or it is waited for, for the time to linger
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


@pytest.mark.parametrize("why", ["it takes too long", "the server does not wait"])
def test_a_response_that_is_cut_has_no_end(version: str, why: str) -> None:
    settings: dict[str, Any] = {"timeouts_response": "0.3s"} if why == "it takes too long" else {}
    with over("tls"), serving(app, **settings) as running, connect(running, version) as client:
        client.sendall(GET.replace(b"/", b"/large", 1))
        assert client.recv(100)
        if why == "it takes too long":
            assert running.log.wait_for(1)[0].refusal
        else:
            running.server.stop()
            running.server.stop()
        received, end = to_its_end(client)
        assert len(received) < 400 * len(BLOCK)
        assert end == "cut"
