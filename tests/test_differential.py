"""The corpus, read by nginx: where it sees another request than we do, the corpus says why ours is right.

nginx stands in front of the reference WSGI server of the standard library, which is no judge of framing: it is given
what nginx has understood. Cases are told apart by the address that they come from, and all are on their way at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from tests.corpus import CASES, Case
from tests.nginx import NGINX, serving_with_nginx
from tests.support import PATIENCE_S

pytestmark = pytest.mark.peer

GOOD = b"GET /good HTTP/1.1\r\nHost: good\r\n\r\n"
# Sizes are a matter of taste, and nginx is given room for all of them: what the two must agree on is framing.
COMPARED = [case for case in CASES if case.file != "sizes" and case.status not in (413, 414, 431)]

AROUND = """
    large_client_header_buffers 8 64k;
    client_max_body_size 1m;
    # What is unfinished is given up soon: nothing more is coming.
    client_header_timeout 700ms;
    client_body_timeout 700ms;
    keepalive_timeout 300ms;
    lingering_timeout 300ms;
"""
LOCATION = """
    location / {{
        proxy_pass http://127.0.0.1:{upstream};
        proxy_set_header Host $http_host;
        proxy_set_header X-Case $remote_addr;
    }}
"""


@dataclass(frozen=True)
class Request:
    """What of a request decides how it is framed and what it is for."""

    method: str
    path: str
    query: str
    body: bytes


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - it is so named there
        """Say nothing."""


class Upstream(socketserver.ThreadingMixIn, WSGIServer):
    request_queue_size = 1024
    daemon_threads = True


@contextlib.contextmanager
def recording() -> Iterator[tuple[int, dict[str, list[Request]]]]:
    """Run a WSGI server; yield its port, and what it has been asked by each client of the proxy in front of it."""
    asked: dict[str, list[Request]] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], body)
        asked.setdefault(environ["HTTP_X_CASE"], []).append(request)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    with make_server("127.0.0.1", 0, app, Upstream, Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


def send_all(port: int) -> None:
    """Send every case, each from an address of its own and with a good request behind it, until nginx ends all."""
    waiting: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        for number, case in enumerate(COMPARED):
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(address_of(number), 0))
            )
            with contextlib.suppress(ConnectionError):  # it may have ended what it has not read to the end
                client.sendall(case.sent + (GOOD if case.status else b""))
            waiting[client.fileno()] = client
        poller = select.poll()
        for descriptor in waiting:
            poller.register(descriptor, select.POLLIN)
        until = time.monotonic() + PATIENCE_S
        while waiting:
            assert time.monotonic() < until, f"nginx keeps {len(waiting)} connections"
            for descriptor, _ in poller.poll(100):
                data = b""
                with contextlib.suppress(ConnectionError):
                    data = waiting[descriptor].recv(65536)
                if not data:
                    poller.unregister(descriptor)
                    del waiting[descriptor]


def address_of(number: int) -> str:
    return f"127.1.{number // 200}.{number % 200 + 1}"


def ours(case: Case) -> list[Request]:
    """Return what reaches the app by the corpus."""
    if not case.served:
        return []
    request = Request(case.method, case.path, case.query, case.body)
    return [request] if case.closes else [request, Request("GET", "/good", "", b"")]


def verdict(case: Case, asked: list[Request]) -> str:
    """Return "" where nginx agrees, else what it did instead, in the words of the corpus."""
    expected = ours(case)
    good = Request("GET", "/good", "", b"")
    if asked == expected:
        return ""
    if not asked:
        return "refuses"
    if case.served and asked[0] != expected[0]:
        return "reads it otherwise"
    if asked[1:] == [good]:
        return "accepts and goes on"
    return "reads it otherwise" if len(asked) > 1 else "accepts and closes"


@pytest.fixture(scope="module")
def asked_of_app(tmp_path_factory: pytest.TempPathFactory) -> list[list[Request]]:
    """Return what of each case of COMPARED has reached the app through nginx."""
    if NGINX is None:
        pytest.skip("no nginx program: apt install nginx-light")
    directory = tmp_path_factory.mktemp("nginx")
    with (
        recording() as (upstream, asked),
        serving_with_nginx(directory, LOCATION.format(upstream=upstream), http=AROUND) as port,
    ):
        send_all(port)
    return [asked.get(address_of(number), []) for number in range(len(COMPARED))]


@pytest.mark.parametrize("number", range(len(COMPARED)), ids=[case.name for case in COMPARED])
def test_nginx_sees_the_same_or_the_corpus_says_why_not(asked_of_app: list[list[Request]], number: int) -> None:
    case = COMPARED[number]
    found = verdict(case, asked_of_app[number])
    assert found == case.nginx, (
        f"undeclared or stale: {case.file}.txt:{case.line} should "
        + (f"say 'nginx: {found} because ...'" if found else "not have its 'nginx:' line")
        + f"; the app was asked {asked_of_app[number]}"
    )


def test_only_what_is_compared_says_what_nginx_does() -> None:
    assert not [case.name for case in CASES if case.nginx and case not in COMPARED]


def test_a_verdict_says_what_differs() -> None:
    good = Request("GET", "/good", "", b"")
    open_case = Case("x", "y", 1, status=200, method="GET", path="/")
    refused = Case("x", "y", 1, status=400, reason="bad_header", closes=True)
    whole = Request("GET", "/", "", b"")
    assert verdict(open_case, [whole, good]) == ""
    assert verdict(open_case, [whole]) == "accepts and closes"
    assert verdict(open_case, []) == "refuses"
    assert verdict(open_case, [Request("GET", "/", "", b"x"), good]) == "reads it otherwise"
    assert verdict(refused, []) == ""
    assert verdict(refused, [whole, good]) == "accepts and goes on"
    assert verdict(refused, [whole]) == "accepts and closes"
    assert verdict(refused, [whole, whole, good]) == "reads it otherwise"
