"""Who is banned is dropped, at every way in, and let in again with the command: over real sockets."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE_S, REPOSITORY, Command
from tests.passwords import eventually
from tests.support import Client, serving

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
NEVER = {"limit": "1/hour", "path": "/never", "strategy": "fixed-window"}


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["REMOTE_ADDR"].encode()]


def banning(**settings: Any) -> Any:
    """Serve an app whose `/never` is refused after its first time, and ban whoever is refused more than three times."""
    settings.setdefault("ban_after", 3)
    settings.setdefault("ban_exempt", [])
    settings.setdefault("rate_limit", [NEVER])
    return serving(app, **settings)


def offend(client: Client, times: int, *fields: str) -> list[int]:
    return [client.get("/never", *fields).status for _ in range(times)]


def is_dropped(client: Client) -> bool:
    """Return whether a connection ends without a byte, by an end or by a reset."""
    with contextlib.suppress(ConnectionError):
        client.send(GET)
        client.shutdown_write()
        return client.receive_all() == b""
    return True


def is_let_in(connect: Callable[[str], Client], source: str) -> bool:
    """Return whether somebody at this address gets an answer; a reset may come before the connection is made."""
    with contextlib.suppress(ConnectionError), connect(source) as client:
        return not is_dropped(client)
    return False


def test_who_is_refused_too_often_is_dropped_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "hardserve"),
        banning() as running,
        running.connect("127.0.0.2") as idle,
        running.connect("127.0.0.2") as offender,
        running.connect("127.0.0.3") as other,
    ):
        assert idle.get("/").status == 200
        assert offend(offender, 4) == [200, 429, 429, 429]
        assert offender.get("/").status == 200  # three times are not too often
        # The answer that says so still comes.
        assert offend(offender, 1) == [429]
        assert is_dropped(offender)
        assert is_dropped(idle)
        assert not is_let_in(running.connect, "127.0.0.2")
        assert other.get("/").status == 200
        with running.connect("127.0.0.3") as newcomer:
            assert newcomer.get("/").status == 200
        other.socket.close()
        running.stop()
    said = [record.message for record in caplog.records if "banned" in record.message]
    assert said[0] == "127.0.0.2 is banned for 60s: refused more than 3 times within 60s"
    assert re.match(r"\d connections? closed: banned, 127\.0\.0\.2", said[1])


def test_a_banned_clients_request_in_progress_is_cut() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            begun.set()
            go_on.wait(PATIENCE_S)
        return app(environ, start_response)

    with (
        serving(slow, ban_after=1, ban_exempt=[], rate_limit=[NEVER]) as running,
        running.connect("127.0.0.2") as waiting,
        running.connect("127.0.0.2") as offender,
    ):
        waiting.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert begun.wait(PATIENCE_S)
        assert offend(offender, 3) == [200, 429, 429]
        with contextlib.suppress(ConnectionError):
            assert waiting.receive_all() == b""
        go_on.set()
        eventually(lambda: not running.server._loop.connections)
        with running.connect() as other:
            assert other.get("/").status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status", "settings"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nbad\r\n\r\n", 400, {}, id="malformed heads"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", 505, {}, id="versions that there are not"),
        pytest.param(GET, 421, {"access_hosts": ["example.com"]}, id="hosts that are not served"),
        pytest.param(GET, 403, {"access_deny": ["127.0.0.2"]}, id="no access"),
    ],
)
def test_what_no_browser_does_leads_to_a_ban(request_bytes: bytes, status: int, settings: dict[str, Any]) -> None:
    with banning(**settings) as running:
        for _ in range(4):
            with running.connect("127.0.0.2") as client:
                client.send(request_bytes)
                assert client.response().status == status
        eventually(lambda: len(running.server._record.bans.list(0.0)) == 1)
        assert not is_let_in(running.connect, "127.0.0.2")


@pytest.mark.parametrize(
    ("target", "method", "body", "status"),
    [
        pytest.param("/", "POST", b"12345", 413, id="a body that is too large"),
        pytest.param("/get", "DELETE", b"", 405, id="a method that is not served"),
        pytest.param("/" + "x" * 9000, "GET", b"", 414, id="a target that is too long"),
    ],
)
def test_what_a_person_may_do_does_not(target: str, method: str, body: bytes, status: int) -> None:
    routes = [{"path": "/get", "allowed_methods": ["GET"]}]
    with banning(ban_after=1, limits_body=4, route=routes) as running:
        for _ in range(6):
            with running.connect("127.0.0.2") as client:
                assert client.get(target, method=method, body=body).status == status
        with running.connect("127.0.0.2") as client:
            assert client.get("/").status == 200


def test_bans_grow() -> None:
    """Each is ended by hand at the moment it began: time is what this test has none of."""
    with banning(ban_after=1, ban_for="1m", ban_ceiling="3m") as running:
        bans = running.server._record.bans
        table = bans._banned[hash("127.0.0.2") & bans._mask]

        def end(now: float) -> None:
            table["127.0.0.2"] = table["127.0.0.2"]._replace(until=now)

        lengths = []
        for _ in range(4):
            with running.connect("127.0.0.2") as client:
                while not is_dropped_by(client):
                    pass
            assert not is_let_in(running.connect, "127.0.0.2")
            (ban,) = bans.list(time.monotonic())
            lengths.append((ban.client, ban.times, math.ceil(ban.remaining_s / 60)))
            running.server._loop.post(end)
            eventually(lambda: not bans.list(time.monotonic()))
        assert lengths == [("127.0.0.2", 1, 1), ("127.0.0.2", 2, 2), ("127.0.0.2", 3, 3), ("127.0.0.2", 4, 3)]


def is_dropped_by(client: Client) -> bool:
    """Offend once more, and return whether that was once too often."""
    try:
        client.get("/never")
    except (ConnectionError, EOFError):
        return True
    return False


def test_a_ban_ends() -> None:
    with banning(ban_after=1, ban_for="1s") as running:
        with running.connect("127.0.0.2") as client:
            offend(client, 3)
            assert is_dropped(client)
        assert not is_let_in(running.connect, "127.0.0.2")
        eventually(lambda: is_let_in(running.connect, "127.0.0.2"))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"ban_exempt": ["127.0.0.2"]}, id="an exempt network"),
        pytest.param({"ban_exempt": ["loopback", "private"]}, id="the machine itself"),
        pytest.param({"ban_after": 0}, id="bans are off"),
    ],
)
def test_some_are_never_banned(settings: dict[str, Any]) -> None:
    with banning(**settings) as running:
        with running.connect("127.0.0.2") as client:
            assert offend(client, 20) == [200] + [429] * 19
        with running.connect("127.0.0.2") as client:
            assert client.get("/").status == 200


def test_the_same_is_so_by_default() -> None:
    with serving(app, ban_after=1, rate_limit=[NEVER]) as running, running.connect() as client:
        assert offend(client, 20) == [200] + [429] * 19


# --- behind a proxy ---


def test_behind_a_proxy_the_client_is_refused_and_the_proxy_never() -> None:
    with banning(proxy_trusted=["127.0.0.1"]) as running, running.connect() as proxy, running.connect() as second:
        for_them = "X-Forwarded-For: 2001:db8::1"
        assert offend(proxy, 5, for_them) == [200, 429, 429, 429, 429]
        for each in (proxy, second):
            response = each.get("/", "X-Forwarded-For: 2001:db8::2")  # the same network
            assert (response.status, response.header("Connection")) == (429, "close")
            assert response.header("Retry-After") in ("59", "60"), "what is left of the ban"
        with running.connect() as third:
            assert third.get("/", "X-Forwarded-For: 2001:db8:0:1::1").status == 200
            assert third.get("/").status == 200
            # Nor is the proxy, however much of what it asks itself is refused.
            for _ in range(20):
                with running.connect() as broken:
                    broken.send(b"GET / HTTP/1.1\r\nHost: a\r\nbad\r\n\r\n")
                    assert broken.response().status == 400
            assert third.get("/").status == 200
        with running.connect("127.0.0.9") as direct:
            assert direct.get("/", for_them).status == 200  # its word counts for nothing
        assert [entry.refusal for entry in running.log.wait_for(7)][5:7] == ["banned", "banned"]


def proxied(address: str) -> bytes:
    family = "TCP6" if ":" in address else "TCP4"
    ours = "2001:db8::ffff" if ":" in address else "192.0.2.200"
    return f"PROXY {family} {address} {ours} 4711 80\r\n".encode()


def test_through_the_proxy_protocol_the_client_is_cut() -> None:
    with banning(bind="127.0.0.1:0?proxy_protocol", proxy_trusted=["127.0.0.1"]) as running:
        with running.connect() as client, running.connect() as idle, running.connect() as other:
            for each, address in ((client, "192.0.2.1"), (idle, "192.0.2.1"), (other, "192.0.2.2")):
                each.send(proxied(address))
                assert each.get("/").status == 200
            assert offend(client, 5) == [200, 429, 429, 429, 429]
            assert is_dropped(client)
            assert is_dropped(idle)
            assert other.get("/").status == 200
        with running.connect() as again:
            again.send(proxied("192.0.2.1"))
            assert is_dropped(again)
        with running.connect() as somebody:
            somebody.send(proxied("192.0.2.3"))
            assert somebody.get("/").body == b"192.0.2.3"


# --- with the commands ---

SITE = """\
from flask import Flask

app = Flask(__name__)


@app.route("/")
def home():
    return "hello"
"""
CONFIG = """\
[server]
bind = ["127.0.0.1:0"]
[rate_limiting]
default = "off"
[ban]
after = 3
exempt = []
[[rate_limit]]
limit = "1/hour"
path = "/never"
strategy = "fixed-window"
status = [404]
"""


class Site:
    """A server in a process of its own, and the command as its operator types it."""

    def __init__(self, directory: Path) -> None:
        (directory / "site_app.py").write_text(SITE)
        (directory / "hardserve.toml").write_text(CONFIG)
        runtime = directory / "run"
        runtime.mkdir(mode=0o700)
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.environ = kept | {"PYTHONPATH": str(REPOSITORY), "XDG_RUNTIME_DIR": str(runtime), "HOME": str(directory)}
        self.directory = directory
        self.runtime = runtime
        self.command: Command

    def popen(self, *words: str, **how: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hardserve", *words],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            text=True,
            **how,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        """Return the exit code of a command, and what it printed."""
        process = self.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def connect(self, source: str) -> Client:
        return Client(
            socket.create_connection(("127.0.0.1", self.command.port), PATIENCE_S, source_address=(source, 0))
        )

    def ban(self, source: str) -> None:
        with self.connect(source) as client:
            assert [client.get("/never").status for _ in range(5)] == [404, 429, 429, 429, 429]
            assert is_dropped(client)

    def lets_in(self, source: str) -> bool:
        return is_let_in(self.connect, source)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    process = site.popen("site_app:app", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    site.command = command = Command(process, tmp_path, tmp_path / "access.log")
    assert process.stderr is not None
    listener = threading.Thread(target=command.listen_to, args=(process.stderr,), daemon=True)
    listener.start()
    try:
        command.await_url()
        yield site
        code = command.stop() if process.poll() is None else process.returncode
        listener.join(PATIENCE_S)
        assert code == 0, command.output
        assert "Traceback" not in command.output, command.output
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE_S)
        listener.join(PATIENCE_S)
        process.stderr.close()


BAN = r"{client} +\d+ s left  banned 1 times?\n"


def test_bans_are_listed_and_lifted_with_the_command(site: Site) -> None:
    assert site.run("bans") == (0, "nobody is banned\n", "")
    site.ban("127.0.0.2")
    code, listed, _ = site.run("bans")
    assert code == 0
    assert re.fullmatch(BAN.format(client=re.escape("127.0.0.2")), listed), listed
    # Somebody who is not banned: nothing happens, and the exit code says so.
    assert site.run("unban", "127.0.0.9") == (1, "nobody of these was banned\n", "")
    assert not site.lets_in("127.0.0.2")
    assert site.run("unban", "127.0.0.2") == (0, "127.0.0.2 may come in again\n", "")
    assert site.lets_in("127.0.0.2")
    eventually(lambda: "ban of 127.0.0.2 lifted" in site.command.output)

    site.ban("127.0.0.3")
    site.ban("127.0.0.4")
    code, lifted, _ = site.run("unban", "--all")
    assert (code, sorted(lifted.splitlines())) == (
        0,
        ["127.0.0.3 may come in again", "127.0.0.4 may come in again"],
    )
    assert site.lets_in("127.0.0.3")
    assert site.lets_in("127.0.0.4")
    assert site.run("bans") == (0, "nobody is banned\n", "")


def test_what_the_commands_say_of_mistakes(site: Site) -> None:
    code, out, err = site.run("unban", "nonsense")
    assert (code, out) == (1, "")
    assert err.startswith("hardserve: ")
    assert "'nonsense' is no address" in err
    code, _, err = site.run("unban")
    assert code == 2
    assert "unban needs the address of a client, or --all" in err
    (socket_path,) = (site.runtime / "hardserve").glob("*.sock")
    assert socket_path.stat().st_mode & 0o777 == 0o600
    assert site.command.stop() == 0
    assert not socket_path.exists()
    code, out, err = site.run("bans")  # nobody is there any more
    assert (code, out) == (1, "")
    assert err.startswith("hardserve: ")
    assert "Traceback" not in err


def test_bans_by_the_dozen_are_one_line_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    with banning(proxy_trusted=["loopback"], ban_after=1) as running, running.connect() as client:
        for number in range(30):
            forged = f"X-Forwarded-For: 203.0.113.{number}"
            assert offend(client, 3, forged) == [200, 429, 429]
    said = [message for message in caplog.messages if " is banned for " in message]
    assert said[0].startswith("203.0.113.0 is banned for 60s: ")
    # One, and one more for each second that this took.
    assert len(said) < 30
    assert all(re.search(r"; so were [0-9]+ others since the last line like this$", message) for message in said[1:])
