"""A connection whose request waits for a decision: what its client, the server and chance may do meanwhile."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardserve.edge.connection import BUSY
from tests.passwords import assert_nothing_is_kept, basic, checks_held, eventually, unchecked, write_users
from tests.support import PATIENCE_S, Client, Running, serving, switching_often

CLIENTS = 200
BODY = 100_000


class App:
    """Answers with the length of the body, and counts how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.calls += 1
        told = f"{environ['PATH_INFO']} {len(environ['wsgi.input'].read())} {environ.get('REMOTE_USER')}".encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(told)))])
        return [told]


def head(target: str, password: str, *fields: str, method: str = "GET") -> bytes:
    lines = (f"{method} {target} HTTP/1.1", "Host: test", basic("anna", password), *fields, "", "")
    return "\r\n".join(lines).encode()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def users(tmp_path: Path) -> str:
    return write_users(tmp_path / "users", anna="right")


@contextlib.contextmanager
def guarded(app: App, users: str, caplog: pytest.LogCaptureFixture, **settings: Any) -> Iterator[Running]:
    """Serve `app` behind passwords; nothing may be kept at the end, and nothing have gone wrong inside."""
    settings.setdefault("auth_failures", "off")
    with serving(app, auth_users=users, auth_required="on", **settings) as running:
        with running.connect() as client:
            assert client.get("/").status == 401
        yield running
        if running.thread.is_alive():
            assert_nothing_is_kept(running)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def wait_until_deciding(running: Running, count: int = 1) -> None:
    eventually(lambda: unchecked(running) == count)
    assert sum(connection.phase is BUSY for connection in running.server._loop.connections) == count


# --- what its client may do ---


def close(client: Client) -> None:
    client.socket.close()


LEAVING = [
    pytest.param(close, id="closes"),
    pytest.param(Client.reset, id="resets"),
]
REQUESTS = [
    pytest.param(b"", id="with no body"),
    pytest.param(b"x" * BODY, id="whose body has come"),
    pytest.param(b"x" * (BODY // 2), id="with half of a body"),
]


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("body", REQUESTS)
@pytest.mark.parametrize("split", [False, True], ids=["at once", "with a head in pieces"])
def test_a_client_that_leaves_costs_nothing(
    app: App, users: str, caplog: pytest.LogCaptureFixture, body: bytes, leave: Callable[[Client], None], split: bool
) -> None:
    fields = [f"Content-Length: {BODY}"] if body else []
    sent = head("/", "right", *fields, method="POST" if body else "GET")
    with guarded(app, users, caplog) as running, checks_held(running) as release:
        client = running.connect()
        if split:
            client.send(sent[:20])
            eventually(lambda: any(connection.request for connection in running.server._loop.connections))
            sent = sent[20:]
        client.send(sent + body[:60_000])
        wait_until_deciding(running)
        leave(client)
        # An end of the stream may be a client that only sends no more: it is answered. A reset is none.
        release.set()
        eventually(lambda: not running.server._loop.connections)
        entries = running.log.wait_for(2)
        assert len(entries) == 2
        assert entries[1].status in (200, 499)
    assert app.calls <= 1


def test_a_client_that_resets_is_forgotten_at_once_and_its_password_not_looked_at(
    app: App, users: str, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(app, users, caplog) as running, checks_held(running) as release:
        client = running.connect()
        client.send(head("/", "wrong"))
        wait_until_deciding(running)
        client.reset()
        eventually(lambda: not running.server._loop.connections)
        entry = running.log.wait_for(2)[1]
        assert (entry.status, entry.refusal) == (499, "client_disconnected")
        assert (running.server._budget.memory, running.server._budget.files) == (0, 0)
        release.set()
        eventually(lambda: not running.server._offload._trying)
        assert len(running.log.entries) == 2  # it stands in the log once
    assert app.calls == 0
    assert running.log.entries[-1].refusal == "client_disconnected"


@pytest.mark.parametrize(
    ("password", "status"), [pytest.param("right", 200, id="right"), pytest.param("wrong", 401, id="wrong")]
)
@pytest.mark.parametrize("body", [b"", b"x" * 1000])
def test_a_client_that_only_sends_no_more_is_answered(
    app: App, users: str, caplog: pytest.LogCaptureFixture, password: str, status: int, body: bytes
) -> None:
    with guarded(app, users, caplog) as running, running.connect() as client, checks_held(running) as release:
        client.send(head("/", password, f"Content-Length: {len(body)}", method="POST") + body)
        client.shutdown_write()
        wait_until_deciding(running)
        release.set()
        response = client.response()
        assert response.status == status
        if status == 200:
            assert response.body == f"/ {len(body)} anna".encode()
        assert client.receive_all() == b""


def test_half_a_body_and_an_end_is_no_request(app: App, users: str, caplog: pytest.LogCaptureFixture) -> None:
    with guarded(app, users, caplog) as running, running.connect() as client, checks_held(running) as release:
        client.send(head("/", "right", "Content-Length: 10", method="POST") + b"12345")
        client.shutdown_write()
        wait_until_deciding(running)
        release.set()
        with contextlib.suppress(ConnectionError):
            assert client.receive_all() == b""
    assert app.calls == 0


def test_who_floods_while_it_waits_is_not_read_without_end(
    app: App, users: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is read ahead is bounded by limits.pipeline, as while a worker answers."""
    with guarded(app, users, caplog, limits_pipeline="4k") as running, checks_held(running) as release:
        client = running.connect()
        client.send(head("/", "right", "Content-Length: 20000000", method="POST"))
        wait_until_deciding(running)
        (connection,) = running.server._loop.connections
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.socket.sendall(b"x" * 20_000_000)
        assert len(connection.ahead) <= 4096
        assert running.server._budget.memory <= 4096 + 1000
        client.reset()
        release.set()
        eventually(lambda: not running.server._loop.connections)
    assert app.calls == 0


def test_a_wrong_password_with_a_body_on_its_way_is_told_so(
    app: App, users: str, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(app, users, caplog) as running, running.connect() as client, checks_held(running) as release:
        client.send(head("/", "wrong", "Content-Length: 3000000", method="POST") + b"x" * 50_000)
        wait_until_deciding(running)
        release.set()
        client.send(b"x" * 2_950_000)
        response = client.response()
        assert (response.status, response.header("Connection")) == (401, "close")
        assert client.receive_all() == b""
    assert app.calls == 0


def test_the_connection_is_as_any_other_after_it(app: App, users: str, caplog: pytest.LogCaptureFixture) -> None:
    """Again and again on one connection, with and without bodies, alone and in a pipeline."""
    with guarded(app, users, caplog, auth_remember="0s") as running, running.connect() as client:
        for number in range(30):
            password, body = ("wrong", "right")[number % 2], b"x" * (number % 3 * 700)
            client.send(head(f"/{number}", password, f"Content-Length: {len(body)}", method="POST") + body)
            if not number % 5:  # the next one is there before this one is decided
                client.send(head("/next", "right"))
            response = client.response()
            assert response.status == (200 if number % 2 else 401)
            if number % 2:
                assert response.body == f"/{number} {len(body)} anna".encode()
            if response.header("Connection") == "close":  # a body was on its way that nobody wants
                client.socket.close()
                client.socket = running.connect().socket
                client._buffer.clear()
            elif not number % 5:
                assert client.response().body == b"/next 0 anna"


# --- what the server may do ---


def test_no_deadline_of_the_client_runs_while_it_waits_and_its_body_has_all_its_time(
    app: App, users: str, caplog: pytest.LogCaptureFixture
) -> None:
    times = {f"timeouts_{name}": "0.2s" for name in ("first_byte", "header", "body", "keep_alive")}
    with guarded(app, users, caplog, **times) as running, running.connect() as client, checks_held(running) as release:
        client.send(head("/", "right", "Content-Length: 5", method="POST"))
        wait_until_deciding(running)
        (connection,) = running.server._loop.connections
        assert connection.deadline() == math.inf
        began = time.monotonic()
        # Longer than any of them, with what the wheel adds.
        eventually(lambda: time.monotonic() - began > 0.6)
        assert running.server._loop.connections == {connection}
        release.set()
        client.send(b"12345")
        assert client.response().body == b"/ 5 anna"
        # And then they run again.
        assert client.receive_all() == b""


def test_a_body_that_does_not_come_after_the_decision_is_late(
    app: App, users: str, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(app, users, caplog, timeouts_body="0.2s") as running, running.connect() as client:
        client.send(head("/", "right", "Content-Length: 5", method="POST") + b"12")
        assert client.response().status == 408
    assert app.calls == 0


@pytest.mark.parametrize(
    ("password", "status"), [pytest.param("right", 200, id="right"), pytest.param("wrong", 401, id="wrong")]
)
@pytest.mark.parametrize("body", [b"", b"12345"])
def test_a_drain_waits_for_the_decision(
    app: App, users: str, caplog: pytest.LogCaptureFixture, password: str, status: int, body: bytes
) -> None:
    with guarded(app, users, caplog, timeouts_linger="0s") as running, running.connect() as client:
        with checks_held(running) as release:
            client.send(head("/", password, f"Content-Length: {len(body)}", method="POST") + body)
            wait_until_deciding(running)
            running.server.stop()
            eventually(lambda: running.server._loop._ctx.draining)
            release.set()
            response = client.response()
            assert (response.status, response.header("Connection")) == (status, "close")
            assert client.receive_all() == b""
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


def test_a_drain_that_has_no_more_time_cuts_it(app: App, users: str, caplog: pytest.LogCaptureFixture) -> None:
    with guarded(app, users, caplog, drain="0.1s") as running, running.connect() as client:
        with checks_held(running):
            client.send(head("/", "right"))
            wait_until_deciding(running)
            running.server.stop()
            with contextlib.suppress(ConnectionError):
                assert client.receive_all() == b""
            entry = running.log.wait_for(2)[1]
            assert (entry.status, entry.refusal) == (503, "cut_at_stop")
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]
        assert (running.server._budget.memory, running.server._budget.files) == (0, 0)
        assert len(running.log.entries) == 2
    assert app.calls == 0


def test_a_second_stop_waits_for_nobody(app: App, users: str, caplog: pytest.LogCaptureFixture) -> None:
    with guarded(app, users, caplog) as running, running.connect() as client, checks_held(running):
        client.send(head("/", "right", "Content-Length: 5", method="POST") + b"12")
        wait_until_deciding(running)
        running.server.stop()
        running.server.stop()
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [1]
        assert (running.server._budget.memory, running.server._budget.files) == (0, 0)
    assert app.calls == 0


def test_no_worker_is_used_meanwhile(app: App, users: str, caplog: pytest.LogCaptureFixture) -> None:
    """With one thread for the app, those who wait for their password do not keep it from who has been let in."""
    with guarded(app, users, caplog, threads=1, max_client_workers=1) as running, running.connect() as known:
        assert known.get("/", basic("anna", "right")).status == 200
        with checks_held(running) as release:
            waiting = [running.connect() for _ in range(8)]
            for client in waiting:
                client.send(head("/", "wrong"))
            wait_until_deciding(running, 8)
            assert known.get("/", basic("anna", "right")).status == 200
            release.set()
            assert [client.response().status for client in waiting] == [401] * 8
        for client in waiting:
            client.socket.close()
    assert app.calls == 2


def test_a_client_that_is_banned_meanwhile_is_cut(app: App, users: str, caplog: pytest.LogCaptureFixture) -> None:
    rules = [{"limit": "1/hour", "path": "/never", "strategy": "fixed-window"}]
    settings: dict[str, Any] = {"ban_after": 1, "ban_exempt": [], "rate_limit": rules}
    with (
        guarded(app, users, caplog, **settings) as running,
        checks_held(running) as release,
        running.connect("127.0.0.2") as waiting,
        running.connect("127.0.0.2") as offender,
    ):
        waiting.send(head("/", "right", "Content-Length: 5", method="POST") + b"12")
        wait_until_deciding(running)
        assert [offender.get("/never").status for _ in range(3)] == [401, 429, 429]
        with contextlib.suppress(ConnectionError):
            assert waiting.receive_all() == b""
        release.set()
    assert app.calls == 0


# --- what chance may do ---


def behave(running: Running, seed: int, outcomes: list[str]) -> None:
    """Be one client: some requests with right and wrong passwords, and leave in any of the ways there are."""
    chance = random.Random(seed)
    client = running.connect(f"127.0.{seed % 20}.{2 + seed % 50}")
    try:
        for number in range(chance.randint(1, 4)):
            password = chance.choice(["right", "wrong", "wronger"])
            body = b"x" * chance.choice([0, 0, 10, 5000])
            sent = head(f"/{number}", password, f"Content-Length: {len(body)}", method="POST") + body
            cut_at = chance.choice([len(sent), len(sent), chance.randrange(1, len(sent))])
            client.send(sent[:cut_at])
            how = chance.choice(["answer", "answer", "answer", "close", "reset", "half"])
            if how == "half":
                client.shutdown_write()
            elif how == "answer" and cut_at < len(sent):
                client.send(sent[cut_at:])
                cut_at = len(sent)
            if how == "reset":
                client.reset()
                return
            if how == "close" or (how == "half" and cut_at < len(sent)):
                return
            response = client.response()
            expected = {200} if password == "right" else {401}
            assert response.status in expected | {503}, (seed, response)
            if response.status == 200:
                assert response.body == f"/{number} {len(body)} anna".encode(), (seed, response)
            outcomes.append(str(response.status))
            if how == "half" or response.header("Connection") == "close":
                return
    finally:
        client.socket.close()


def storm(running: Running, app: App, outcomes: list[str]) -> list[BaseException]:
    """Let all clients behave, ten at a time; return what must not have happened."""
    failures: list[BaseException] = []

    def run(seeds: range) -> None:
        for seed in seeds:
            try:
                behave(running, seed, outcomes)
            except (ConnectionError, EOFError):
                outcomes.append("cut")
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=run, args=(range(first, CLIENTS, 10),)) for first in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(6 * PATIENCE_S)
    return failures


def assert_each_is_logged_once(running: Running) -> None:
    ids = [entry.request_id for entry in running.log.entries]
    assert len(ids) == len(set(ids))


def test_a_storm_of_clients_that_come_and_go(app: App, users: str, caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[str] = []
    with guarded(app, users, caplog, auth_remember="0s") as running:
        with switching_often():
            assert storm(running, app, outcomes) == []
        assert {"200", "401"} <= set(outcomes)
        assert "cut" not in outcomes
        assert_nothing_is_kept(running)
        eventually(lambda: all(worker.job is None for worker in running.server._workers.workers))
        assert_each_is_logged_once(running)
        # And everything still works.
        with running.connect() as client:
            assert client.get("/", basic("anna", "right")).status == 200


@pytest.mark.parametrize(("stops", "drain"), [(1, "10s"), (1, "0s"), (2, "10s")], ids=["drain", "no time", "at once"])
def test_a_storm_in_which_the_server_stops(
    app: App, users: str, caplog: pytest.LogCaptureFixture, stops: int, drain: str
) -> None:
    outcomes: list[str] = []
    with guarded(app, users, caplog, auth_remember="0s", drain=drain) as running:

        def stop() -> None:
            eventually(lambda: len(outcomes) > 30)
            for _ in range(stops):
                running.server.stop()

        stopping = threading.Thread(target=stop)
        stopping.start()
        with switching_often():
            assert storm(running, app, outcomes) == []
        stopping.join()
        running.thread.join(2 * PATIENCE_S)
        assert running.exit_codes == [stops - 1]
        assert "cut" in outcomes  # who came after that
        assert running.server._loop.connections == set()
        if (stops, drain) == (1, "10s"):  # else the app's own requests were dropped, with what they kept
            assert_nothing_is_kept(running)
        assert_each_is_logged_once(running)
