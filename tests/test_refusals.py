"""Every refusal is produced over a socket, and tells its client no more than it should."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardserve import refusals
from hardserve.protocol import REASONS
from hardserve.refusals import Refusal
from tests.support import PATIENCE_S, Client, Running, serving
from tests.test_http import echo, eventually, read_rest

# Sent with every request that provokes a refusal; nothing of it may come back.
MARK = b"canary5ec2e7"
HEAD = b"POST /canary5ec2e7 HTTP/1.1\r\nHost: canary5ec2e7\r\nX-Canary: canary5ec2e7\r\n"
CREDENTIALS = b"Authorization: Basic " + base64.b64encode(MARK + b":" + MARK) + b"\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# Files that the kernel makes: one that nobody may read, not even root, and one that cannot be read.
WRITE_ONLY, UNREADABLE = Path("/sys/bus/platform/uevent"), Path("/sys/class/net/lo/speed")


def get(path: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join((b"GET " + path + b" HTTP/1.1", b"Host: canary5ec2e7", *lines, b"", b""))


def mount(directory: Path) -> dict[str, Any]:
    return {"static": [{"url": "/files", "directory": str(directory)}]}


# What provokes each refusal: settings, and what the client sends.
PROVOKED: dict[Refusal, tuple[dict[str, Any], bytes]] = {
    refusals.BAD_REQUEST_LINE: ({}, b"canary5ec2e7\r\n"),
    refusals.BAD_TARGET: ({}, b"GET canary5ec2e7 HTTP/1.1\r\nHost: a\r\n\r\n"),
    refusals.BAD_VERSION: ({}, b"GET /canary5ec2e7 HTTP/3.0\r\n\r\n"),
    refusals.TLS_ON_PLAIN_PORT: ({}, b"\x16\x03\x01\x02\x00\x01canary5ec2e7"),
    refusals.BAD_METHOD: ({}, b"TRACE /canary5ec2e7 HTTP/1.1\r\nHost: a\r\n\r\n"),
    refusals.BAD_HEADER: ({}, HEAD + b"canary5ec2e7\r\n\r\n"),
    refusals.BAD_HOST: ({}, b"GET / HTTP/1.1\r\nHost: canary5ec2e7/\r\n\r\n"),
    refusals.BAD_CONTENT_LENGTH: ({}, HEAD + b"Content-Length: canary5ec2e7\r\n\r\n"),
    refusals.BAD_TRANSFER_ENCODING: ({}, HEAD + b"Transfer-Encoding: chunked;canary5ec2e7\r\n\r\n"),
    refusals.UNKNOWN_TRANSFER_ENCODING: ({}, HEAD + b"Transfer-Encoding: canary5ec2e7, chunked\r\n\r\n"),
    refusals.BAD_CHUNK: ({}, CHUNKED + b"canary5ec2e7\r\n"),
    refusals.UNKNOWN_EXPECTATION: ({}, HEAD + b"Expect: canary5ec2e7\r\n\r\n"),
    refusals.REQUEST_LINE_TOO_LONG: ({"limits_request_line": 256}, b"GET /" + MARK * 30),
    refusals.HEADER_TOO_LARGE: ({"limits_header_count": 10}, HEAD + b"X: canary5ec2e7\r\n" * 20 + b"\r\n"),
    refusals.CHUNK_EXTENSIONS_TOO_LARGE: ({"limits_chunk_line": 64}, CHUNKED + b"5;" + MARK * 10 + b"\r\n"),
    refusals.TRAILER_TOO_LARGE: ({"limits_trailer": 64}, CHUNKED + b"0\r\nX-A: " + MARK * 10 + b"\r\n"),
    refusals.BAD_FORWARDING: ({"proxy_trusted": ["loopback"]}, HEAD + b"X-Forwarded-For: canary5ec2e7\r\n\r\n"),
    refusals.HOST_MISSING: ({"access_hosts": ["a"]}, b"GET /canary5ec2e7 HTTP/1.0\r\n\r\n"),
    refusals.HOST_NOT_SERVED: ({"access_hosts": ["a"]}, HEAD + b"\r\n"),
    refusals.ACCESS_DENIED: ({"access_deny": ["loopback"]}, HEAD + b"\r\n"),
    refusals.METHOD_NOT_ALLOWED: ({"route": [{"path": "*", "allowed_methods": ["GET"]}]}, HEAD + b"\r\n"),
    refusals.RATE_LIMITED: ({"rate_limit": [{"limit": "1/minute"}]}, HEAD + b"\r\n"),
    refusals.BANNED: (
        {"proxy_trusted": ["loopback"], "ban_after": 1, "ban_exempt": []},
        HEAD + b"X-Forwarded-For: 192.0.2.1\r\n\r\n",
    ),
    refusals.PASSWORD_NEEDED: ({"auth_users": "./users", "auth_required": "on"}, HEAD + b"\r\n"),
    refusals.PASSWORD_WRONG: ({"auth_users": "./users", "auth_required": "on"}, HEAD + CREDENTIALS),
    refusals.PASSWORDS_BUSY: ({"auth_users": "./users", "auth_required": "on"}, HEAD + CREDENTIALS),
    refusals.BODY_TOO_LARGE: ({"limits_body": 1000}, HEAD + b"Content-Length: 1001\r\n\r\ncanary5ec2e7"),
    refusals.HEADER_DEADLINE: ({"timeouts_header": "0.1s"}, HEAD),
    refusals.BODY_DEADLINE: ({"timeouts_body": "0.1s"}, HEAD + b"Content-Length: 1000\r\n\r\ncanary5ec2e7"),
    refusals.BODY_TOTAL_DEADLINE: (
        {"timeouts_body_total": "0.1s"},
        HEAD + b"Content-Length: 1000\r\n\r\ncanary5ec2e7",
    ),
    refusals.BODY_TOO_SLOW: (
        {"limits_body_rate": "1KiB", "timeouts_rate_grace": "0.1s"},
        HEAD + b"Content-Length: 1000\r\n\r\ncanary5ec2e7",
    ),
    refusals.QUEUE_DEADLINE: ({"threads": 1, "timeouts_queue": "0.1s"}, HEAD + b"\r\n"),
    refusals.APP_DEADLINE: ({"timeouts_app": "0.1s"}, HEAD.replace(b"/canary", b"/hang-canary") + b"\r\n"),
    refusals.BUFFERS_FULL: (
        {"limits_body": "1MiB", "limits_buffered_files": "2MiB", "limits_body_memory": 0},
        HEAD + b"Content-Length: 1000000\r\n\r\ncanary5ec2e7" + b"x" * 700_000,
    ),
    refusals.QUEUE_FULL: ({"threads": 1, "queue": 1}, HEAD + b"\r\n"),
    refusals.BODY_NOT_STORED: (
        {"limits_body_memory": 0},
        HEAD + b"Content-Length: 9000\r\n\r\ncanary5ec2e7" + b"x" * 8988,
    ),
    refusals.FILE_NOT_FOUND: (mount(Path("/usr/share")), get(b"/files/canary5ec2e7")),
    refusals.FILE_FORBIDDEN: (mount(WRITE_ONLY), get(b"/files", b"X-Canary: canary5ec2e7")),
    refusals.FILE_FAILED: (mount(UNREADABLE), get(b"/files", b"X-Canary: canary5ec2e7")),
    refusals.FILES_BUSY: (mount(Path("/usr/share")), get(b"/files/canary5ec2e7")),
    refusals.FILES_SLOW: (mount(Path("/usr/share")) | {"timeouts_app": "0.1s"}, get(b"/files/canary5ec2e7")),
    refusals.PRECONDITION_FAILED: (mount(Path("/etc/services")), get(b"/files", b'If-Match: "canary5ec2e7"')),
    refusals.RANGE_NOT_SATISFIABLE: (
        mount(Path("/etc/services")),
        get(b"/files", b"Range: bytes=99999999-", b"X-Canary: canary5ec2e7"),
    ),
    refusals.APP_FAILED: ({}, HEAD.replace(b"/canary", b"/fail-canary") + b"\r\n"),
}

DECLARED = {name: value for name, value in vars(refusals).items() if isinstance(value, Refusal)}


# Given to those who have only connected, before a request of theirs is read. tests/test_admission.py,
# tests/test_lifecycle.py and tests/test_proxy.py provoke them.
AT_ACCEPT = {
    refusals.CONNECTIONS_FULL,
    refusals.NO_DESCRIPTORS,
    refusals.CLIENT_CONNECTIONS,
    refusals.CLIENT_CONNECTION_RATE,
    refusals.PEER_NOT_TRUSTED,
}


# What addresses of HTTPS and those that send on to it say to whoever comes in plain: tests/test_tls.py provokes them.
IN_PLAIN = {refusals.PLAIN_ON_TLS_PORT, refusals.REDIRECTED, refusals.REDIRECTED_AS_IT_IS}

# Given only where there is TLS: tests/test_tls_clients.py provokes it.
IN_TLS = {refusals.CLIENT_CERTIFICATE_MISSING}


def test_the_table_covers_every_refusal_that_is_declared() -> None:
    assert set(PROVOKED) | AT_ACCEPT | IN_PLAIN | IN_TLS == set(DECLARED.values())


def test_refusals_are_told_apart_by_name_in_logs_and_code() -> None:
    assert {name.lower(): value.name for name, value in DECLARED.items()} == {
        value.name: value.name for value in DECLARED.values()
    }


@pytest.mark.parametrize("refusal", DECLARED.values(), ids=lambda refusal: refusal.name)
def test_a_declaration_is_complete(refusal: Refusal) -> None:
    assert refusal.status in REASONS
    assert re.fullmatch(r"[A-Z][^\n]*\.", refusal.text)
    assert refusal.text.isascii()
    assert re.fullmatch(r"RFC \d{4} \d+(\.\d+)*", refusal.section)


def bring_about(refusal: Refusal, running: Running, stack: contextlib.ExitStack) -> None:
    """Have the server in a state in which a client is refused."""
    if refusal is refusals.RATE_LIMITED:
        assert stack.enter_context(running.connect()).get("/").status == 200
    if refusal is refusals.BANNED:
        for _ in range(10):
            running.server._record.bans.offence("192.0.2.1", time.monotonic())
    if refusal is refusals.PASSWORDS_BUSY:
        eventually(lambda: hasattr(running.server, "_offload"))
        running.server._offload._trying["127.0.0.1"] = 1000
    if refusal is refusals.FILES_BUSY:
        eventually(lambda: running.server._storages.pool("/files").stop(time.monotonic()))
    if refusal is refusals.FILES_SLOW:
        release, held = threading.Event(), threading.Semaphore(0)
        stack.callback(release.set)

        def hold() -> None:
            held.release()
            assert release.wait(PATIENCE_S)

        pool, count = running.server._storages.pool("/files"), running.server.settings.files.readers
        running.server._loop.post(lambda _now: [pool.submit(hold, lambda _: None) for _ in range(count)])
        assert all(held.acquire(timeout=PATIENCE_S) for _ in range(count))


@contextlib.contextmanager
def refusing(refusal: Refusal) -> Iterator[tuple[Running, Client]]:
    """Serve with the settings that `refusal` needs, in the state in which it is given."""
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if "fail" in environ["PATH_INFO"]:
            raise ValueError(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/wait" or "hang" in environ["PATH_INFO"]:
            assert release.wait(PATIENCE_S)
        return echo(environ, start_response)

    settings = dict(PROVOKED[refusal][0])
    with contextlib.ExitStack() as stack:
        if "auth_users" in settings:
            users = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".users"))
            users.write(b"somebody:scrypt:128:8:1$salt$" + b"0" * 128 + b"\n")
            users.flush()
            settings["auth_users"] = users.name
        running = stack.enter_context(serving(app, **settings))
        stack.callback(release.set)
        bring_about(refusal, running, stack)
        if refusal is refusals.BODY_NOT_STORED:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(tempfile, "tempdir", "/nowhere")  # as a full or vanished disk
        if refusal is refusals.BUFFERS_FULL:
            stack.enter_context(running.connect()).send(PROVOKED[refusal][1])
            eventually(lambda: running.server._budget.files > 700_000)
        if refusal is refusals.QUEUE_DEADLINE:
            stack.enter_context(running.connect()).send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            eventually(running.server._workers.busy)
        if refusal is refusals.QUEUE_FULL:
            workers = running.server._workers
            states: list[Callable[[], object]] = [workers.busy, workers.waiting]
            for reached in states:
                stack.enter_context(running.connect()).send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
                eventually(reached)
        yield running, stack.enter_context(running.connect())


@pytest.mark.parametrize("refusal", PROVOKED, ids=lambda refusal: refusal.name)
@pytest.mark.usefixtures("transport")
def test_is_produced(refusal: Refusal, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with refusing(refusal) as (running, client):
        client.send(PROVOKED[refusal][1])
        head = client.receive_until(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
        body = client.receive_exactly(int(fields["Content-Length"]))

        assert head.startswith(f"HTTP/1.1 {refusal.status} {REASONS[refusal.status]}\r\n".encode())
        request_id = fields["X-Request-ID"]
        assert re.fullmatch(r"[0-9a-f]{16}", request_id)
        assert body.decode() == (
            f"{refusal.status} {REASONS[refusal.status]}\n\n{refusal.text}\nRequest id: {request_id}\n"
        )
        assert MARK not in head + body
        assert fields["Content-Type"] == "text/plain; charset=utf-8"
        assert fields["Cache-Control"] == "no-store"
        assert fields["X-Content-Type-Options"] == "nosniff"
        assert fields["Date"].endswith(" GMT")
        assert ("Retry-After" in fields) == (refusal.status in (429, 503))
        assert fields.get("Connection") == ("close" if refusal.close else None)

        if refusal.close:
            assert client.receive_all() == b"", "something came after the refusal"
        else:
            assert client.get("/fail").status in (500, 503, 401, refusal.status), "the connection was not kept"
        entry = next(entry for entry in running.log.wait_for(1) if entry.status != 200)
        assert (entry.refusal, entry.status) == (refusal.name, refusal.status)
        assert (entry.request_id, entry.bytes_sent) == (request_id, len(head + body))
        assert entry.client == ("192.0.2.1" if refusal is refusals.BANNED else "127.0.0.1")
    said = [record for record in caplog.records if refusal.name in record.getMessage()]
    if refusal is not refusals.APP_FAILED:  # which logs a traceback instead
        assert [record.levelno for record in said[:2]] == [logging.DEBUG, refusal.level]
        assert request_id in said[0].getMessage()


def test_a_refusal_of_head_has_no_body() -> None:
    with refusing(refusals.BAD_HEADER) as (_, client):
        client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\nwhat\r\n\r\n")
        answer = client.receive_all()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length: " in answer


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_refusal_that_keeps_a_connection_ends_one_that_asked_to_end(version: str) -> None:
    with refusing(refusals.APP_FAILED) as (_, client):
        response = client.get("/fail", "Connection: close", version=version)
        assert (response.status, response.header("Connection")) == (500, "close")
        assert client.receive_all() == b""


def test_a_refused_request_keeps_the_id_it_came_with_once_its_head_is_read() -> None:
    with refusing(refusals.BODY_TOO_LARGE) as (running, client):
        response = client.get("/", "X-Request-ID: mine", "Content-Length: 5000", method="POST")
        assert response.header("X-Request-ID") == "mine"
        assert running.log.wait_for(1)[0].request_id == "mine"


def test_what_follows_a_refusal_is_never_served() -> None:
    with refusing(refusals.BAD_CHUNK) as (running, client):
        client.send(CHUNKED + b"x\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        assert read_rest(client).count(b"HTTP/1.1 ") == 1
        assert len(running.log.entries) == 1


def test_an_entry_of_the_access_log_for_garbage_is_harmless() -> None:
    with refusing(refusals.BAD_REQUEST_LINE) as (running, client):
        client.send(b"\x1b[31m\0 what\r\n")
        assert client.response().status == 400
        entry = next(entry for entry in running.log.wait_for(1) if entry.status != 200)
        assert (entry.method, entry.target, entry.referer, entry.user_agent) == ("", "", "", "")
