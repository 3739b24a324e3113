"""Settings that are read again: what a running server takes of them, what it refuses, and what it says."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hardserve.changes import (
    LIVE,
    LIVE_OF_CERTIFICATES,
    LIVE_TABLES,
    anchored,
    cannot_go_together,
    changes,
    taken,
)
from hardserve.configfiles import SettingsError
from hardserve.edge.ratelimit import Question, RateLimiter
from hardserve.names import BY_TABLE, OPTIONS
from hardserve.ops.logfile import LogFile
from hardserve.ops.logs import LineHandler, Logs
from hardserve.ops.logwriter import LogWriter
from hardserve.options import Resolved, from_keywords
from hardserve.reload import Reload
from hardserve.settings import RateLimitingSettings, RateLimitSettings, Settings
from tests.certs import client_context, self_signed
from tests.conftest import PATIENCE_S, Command, StartCommand
from tests.passwords import basic, eventually, write_users
from tests.support import Client, Running, TlsSocket, serving, switching_often

# --- which settings ---


def test_what_can_change_is_named_as_it_is_declared() -> None:
    assert {option.key for option in OPTIONS} >= LIVE | LIVE_OF_CERTIFICATES
    assert set(BY_TABLE) >= LIVE_TABLES


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param({}, {}, [], id="nothing"),
        pytest.param(
            {"access_deny": ["10.0.0.0/8"]},
            {"access_deny": ["10.0.0.0/8", "192.0.2.1"]},
            ["access.deny 10.0.0.0/8 -> 10.0.0.0/8,192.0.2.1"],
            id="a list",
        ),
        pytest.param({"threads": 8}, {"threads": 4}, ["server.threads: 8 -> 4"], id="what needs a restart has a colon"),
        pytest.param({"ban_for": "60s"}, {"ban_for": 7}, ["ban.for 60s -> 7s"], id="a name that is a word of Python's"),
        pytest.param(
            {"rate_limit": [{"limit": "300/minute"}]},
            {"rate_limit": [{"limit": "100/minute", "methods": ["POST"]}]},
            ["rate_limit[0].limit 300/minute -> 100/minute", "rate_limit[0].methods all -> POST"],
            id="settings of a table",
        ),
        pytest.param(
            {"route": [{"path": "/a"}, {"path": "/b"}]},
            {"route": [{"path": "/new", "auth": "off"}, {"path": "/a"}, {"path": "/b"}]},
            ["route[0] none -> /new"],
            id="a table before others",
        ),
        pytest.param(
            {"route": [{"path": "/a"}, {"path": "/b"}, {"path": "/c"}]},
            {"route": [{"path": "/a"}, {"path": "/c"}]},
            ["route[1] /b -> none"],
            id="a table that is gone",
        ),
        pytest.param(
            {"rate_limiting_storage": "redis://me:secret@h/0"},
            {"rate_limiting_storage": "redis://me:other@h/1"},
            ["rate_limiting.storage: redis://me:***@h/0 -> redis://me:***@h/1"],
            id="no password",
        ),
        pytest.param(
            {"headers_permissions_policy": "a" * 90},
            {},
            [f"headers.permissions_policy: {'a' * 79}… -> off"],
            id="a long value is cut",
        ),
    ],
)
def test_what_has_changed_is_said(before: dict[str, Any], after: dict[str, Any], said: list[str]) -> None:
    assert [str(change) for change in changes(from_keywords(**before), from_keywords(**after))] == said


def test_what_needs_a_restart_is_not_taken() -> None:
    before = from_keywords(threads=8, rate_limiting_max_keys=1000)
    after = from_keywords(threads=4, rate_limiting_default="off", route=[{"path": "/a"}], timeouts_app=5, ban_for=7)
    both = taken(before, after)
    assert both == replace(
        before, rate_limiting=replace(before.rate_limiting, default="off"), route=after.route, ban=after.ban
    )
    assert [change.key for change in changes(both, after)] == [
        "server.threads", "timeouts.app", "rate_limiting.max_keys",
    ]  # fmt: skip
    assert taken(both, before) == before


PAIR = {"tls_certificate": "./a.pem", "tls_key": "./a.key"}
OTHER = {"tls_certificate": "./b.pem", "tls_key": "./b.key"}
DOMAIN = {"tls_domain": ["example.org"], "acme_agree": "on"}


@pytest.mark.parametrize(
    ("before", "after", "live"),
    [
        pytest.param(PAIR, OTHER, True, id="another one"),
        pytest.param(
            PAIR, {**PAIR, "certificate": [{"certificate": "./c.pem", "key": "./c.key"}]}, True, id="one more"
        ),
        pytest.param({}, PAIR, False, id="HTTPS instead of HTTP"),
        pytest.param(PAIR, {}, False, id="HTTP instead of HTTPS"),
        pytest.param(PAIR, DOMAIN, False, id="one of a CA"),
        pytest.param(PAIR, {"tls": "self-signed"}, False, id="one of our own"),
        pytest.param({**PAIR, "tls": "off"}, {**OTHER, "tls": "off"}, False, id="one that is not used"),
    ],
)
def test_certificates_can_change_where_they_stay_of_one_kind(
    before: dict[str, Any], after: dict[str, Any], live: bool
) -> None:
    old, new = from_keywords(**before), from_keywords(**after)
    found = [change.live for change in changes(old, new) if change.key.startswith(("tls.c", "tls.k", "certificate"))]
    assert found
    assert set(found) == {live}
    assert (taken(old, new).tls == new.tls) == live or old.tls == new.tls


def test_what_can_change_must_go_with_what_cannot() -> None:
    before = from_keywords(bind=["127.0.0.1:1?proxy_protocol"], proxy_trusted=["loopback"])
    both = taken(before, from_keywords(bind=["127.0.0.1:1"]))
    (problem,) = cannot_go_together(both, Resolved(Settings(), {}, None, None))
    assert problem.startswith("until a restart, with what needs one as it is: server.bind")
    assert "expected also proxy.trusted" in problem
    everything = from_keywords(
        auth_users="./users", auth_required="on", route=[{"path": "/a", "max_body": "1MiB", "auth": "off"}],
        rate_limit=[{"limit": "3/minute", "key": "user"}], **PAIR, redirect=["127.0.0.1:2"],
    )  # fmt: skip
    assert cannot_go_together(everything, Resolved(Settings(), {}, None, None)) == []


def test_paths_are_those_of_the_directory_of_the_start() -> None:
    settings = from_keywords(auth_users="./users", log_access="./a.log", log_error="/b.log", **PAIR)
    moved = anchored(settings, "/srv")
    assert (moved.auth.users, moved.log.access, moved.log.error) == ("/srv/users", "/srv/a.log", "/b.log")
    assert (moved.tls.key, moved.tls.client_ca, moved.tls.state) == ("/srv/a.key", "none", "auto")
    assert anchored(from_keywords(), "/srv") == from_keywords()


# --- a server in this process ---


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ.get('REMOTE_USER', '')} {environ['REMOTE_ADDR']}".encode()]


@dataclass
class Live:
    """A server whose settings can be read again: `now` does that, with keywords as for `serving`."""

    running: Running
    reload: Reload
    given: dict[str, Any]
    wanted: Settings | SettingsError
    said: list[str] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def change(self, **settings: Any) -> None:
        """Have others be read next, without those that are None."""
        self.given = {name: value for name, value in {**self.given, **settings}.items() if value is not None}
        self.wanted = from_keywords(**self.given)

    def ask(self) -> None:
        self.reload.ask()
        self.await_end()

    def await_end(self) -> None:
        assert self.ended.acquire(timeout=PATIENCE_S), "it has not ended"

    def now(self, **settings: Any) -> str:
        """Reload, and return what was said of it."""
        self.change(**settings)
        before = len(self.said)
        self.ask()
        return "\n".join(self.said[before:])

    def connect(self) -> Client:
        return self.running.connect()


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


DEFAULTS = {
    "bind": "127.0.0.1:0",
    "threads": 4,
    "rate_limiting_default": "off",
    "limits_client_connections": 0,
    "limits_client_connection_rate": 0,
    "max_client_workers": 4,
}


@contextlib.contextmanager
def live(tmp_path: Path, application: Any = app, **settings: Any) -> Iterator[Live]:
    server_logger = logging.getLogger("hardserve")
    level = server_logger.level
    server_logger.setLevel(logging.INFO)
    given = DEFAULTS | settings
    writer = LogWriter("error", LogFile(str(tmp_path / "error.log")), report=lambda *_: None)
    writer.start()
    logs = Logs(writer, LineHandler(writer), root_level=None)
    said: list[str] = []
    listener = _Listener(said)
    server_logger.addHandler(listener)
    try:
        with serving(application, **given) as running:

            class Reread:
                wanted = False
                later = ()

                def __call__(self) -> Resolved:
                    if isinstance(that.wanted, SettingsError):
                        raise that.wanted
                    return Resolved(that.wanted, {}, None, None)

            ended = threading.Semaphore(0)
            told: list[str] = []

            def done() -> None:
                told.append("done")
                ended.release()

            reload = Reload(running.server, running.log, logs, Reread(), begun=lambda: told.append("begun"), done=done)
            that = Live(running, reload, given, from_keywords(**given), said, ended)
            yield that
        reload.close(PATIENCE_S)
        assert told == ["begun", "done"] * (len(told) // 2)
    finally:
        server_logger.removeHandler(listener)
        server_logger.setLevel(level)
        logs.close()


def status(client: Client, *fields: str, path: str = "/") -> int:
    return client.get(path, *fields).status


# --- each kind ---


def test_access_rules_hold_for_the_next_request_of_a_connection(tmp_path: Path) -> None:
    with live(tmp_path) as server, server.connect() as client:
        assert status(client) == 200
        assert server.now(access_deny=["loopback"]) == "reloaded: access.deny none -> loopback"
        assert status(client) == 403
        assert server.now(access_deny=None, access_hosts=["example.org"]) == (
            "reloaded: access.deny loopback -> none, access.hosts none -> example.org"
        )
        assert status(client) == 421
        assert server.now(access_hosts=["test"])
        assert status(client) == 200
        assert server.now() == "reloaded: nothing has changed"
        assert status(client) == 200


def test_routes(tmp_path: Path) -> None:
    with live(tmp_path, limits_body="1KiB") as server, server.connect() as client:
        post: Callable[[], int] = lambda: client.get("/up", method="POST", body=b"x" * 100).status  # noqa: E731
        assert post() == 200
        server.now(route=[{"path": "/up", "max_body": 100}])
        assert post() == 200
        server.now(route=[{"path": "/up", "allowed_methods": ["GET"]}])
        assert post() == 405
    with live(tmp_path, route=[{"path": "/up", "max_body": 99}]) as server:
        with server.connect() as client:
            assert client.get("/up", method="POST", body=b"x" * 100).status == 413
        server.now(route=[])
        with server.connect() as client:
            assert client.get("/up", method="POST", body=b"x" * 100).status == 200


def test_the_counts_of_a_rule_that_stays_go_on(tmp_path: Path) -> None:
    rule = {"limit": "2/hour", "path": "/a", "strategy": "fixed-window"}
    with live(tmp_path, rate_limit=[rule]) as server, server.connect() as client:
        assert [status(client, path="/a") for _ in range(2)] == [200, 200]
        assert "rate_limit[0] none -> 1/hour" in server.now(rate_limit=[{"limit": "1/hour", "path": "/b"}, rule])
        assert status(client, path="/a") == 429
        assert [status(client, path="/b") for _ in range(2)] == [200, 429]
        assert server.now(rate_limit=[rule | {"limit": "3/hour"}])
        assert [status(client, path="/a") for _ in range(4)] == [200, 200, 200, 429]
        server.now(rate_limit=[])
        assert status(client, path="/a") == 200


def test_counts_of_responses_go_on(tmp_path: Path) -> None:
    def missing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [])
        return [b""]

    rule = {"limit": "2/hour", "status": [404], "strategy": "fixed-window"}
    with live(tmp_path, missing, rate_limit=[rule]) as server, server.connect() as client:
        assert status(client) == 404
        server.now(rate_limit=[rule, {"limit": "100/hour"}])
        assert [status(client) for _ in range(2)] == [404, 429]


def test_another_default_rate_begins_anew(tmp_path: Path) -> None:
    settings = {"rate_limiting_default": "1/hour", "rate_limiting_default_burst": 1}
    with live(tmp_path, **settings) as server, server.connect() as client:
        assert [status(client) for _ in range(3)] == [200, 200, 429]
        server.now(access_deny=["192.0.2.1"])
        assert status(client) == 429
        # By the schedule of the former one, it would be years until there is room.
        server.now(rate_limiting_default="2/hour", rate_limiting_default_burst=0)
        assert [status(client) for _ in range(2)] == [200, 429]
        answer = client.get("/")
        assert answer.header("X-RateLimit-Limit") is None
        server.now(rate_limiting_legacy_headers="on")
        assert client.get("/").header("X-RateLimit-Limit") == "1"
        server.now(rate_limiting_default="off")
        assert status(client) == 200


def test_a_user_who_was_taken_out_and_a_changed_password_are_out_at_once(tmp_path: Path) -> None:
    first = write_users(tmp_path / "first", ann="a", bob="b")
    second = write_users(tmp_path / "second", ann="a")
    with live(tmp_path, auth_users=first, auth_required="on") as server, server.connect() as client:
        assert [status(client, basic(*who)) for who in (("ann", "a"), ("bob", "b"))] == [200, 200]
        assert "auth.users" in server.now(auth_users=second)
        assert [status(client, basic(*who)) for who in (("ann", "a"), ("bob", "b"))] == [200, 401]
        write_users(tmp_path / "second", ann="other")
        assert server.now() == "\n".join((f"users file {second} read again, it has 1", "reloaded: nothing has changed"))
        assert [status(client, basic("ann", password)) for password in ("a", "other")] == [401, 200]
        server.now(auth_realm="elsewhere")
        assert "elsewhere" in (client.get("/").header("WWW-Authenticate") or "")
        assert client.get("/", basic("ann", "other")).body == b"ann 127.0.0.1"
        server.now(auth_required="off")
        assert status(client) == 200
        server.now(auth_users=None)
        assert client.get("/", basic("ann", "other")).body == b" 127.0.0.1"


def test_wrong_passwords_so_far_count_for_another_limit(tmp_path: Path) -> None:
    users = write_users(tmp_path / "users", ann="a")
    settings = {"auth_users": users, "auth_required": "on", "auth_failures": "10/hour"}
    with live(tmp_path, **settings) as server, server.connect() as client:
        assert [status(client, basic("ann", "x")) for _ in range(3)] == [401] * 3
        server.now(auth_failures="3/hour")
        assert status(client, basic("ann", "a")) == 429
        server.now(auth_failures="off")
        assert status(client, basic("ann", "a")) == 200


def test_bans_are_kept_and_others_follow_the_new_rules(tmp_path: Path) -> None:
    never = {"limit": "1/hour", "path": "/never", "strategy": "fixed-window"}

    def banned_after(client: Client) -> int:
        for number in range(20):
            try:
                client.get("/never")
            except (EOFError, ConnectionError):
                return number
        return 20

    def lets_in(source: str) -> bool:
        with contextlib.suppress(EOFError, ConnectionError), server.running.connect(source) as client:
            return status(client) == 200
        return False

    with live(tmp_path, ban_after=3, ban_exempt=[], rate_limit=[never]) as server:
        with server.running.connect("127.0.0.2") as client:
            assert banned_after(client) == 5
        assert "ban.after 3 -> 6" in server.now(ban_after=6)
        assert not lets_in("127.0.0.2")
        with server.running.connect("127.0.0.3") as client:
            client.get("/never")
            assert banned_after(client) == 7
        server.now(ban_exempt=["127.0.0.2"])
        assert lets_in("127.0.0.2")
        assert not lets_in("127.0.0.3")


def test_who_is_trusted_counts_on_connections_that_are_there(tmp_path: Path) -> None:
    forwarded = "X-Forwarded-For: 192.0.2.7"
    with live(tmp_path, proxy_trusted=["loopback"], limits_client_connections=2) as server:
        clients = [server.connect() for _ in range(3)]
        assert clients[0].get("/", forwarded).body == b" 192.0.2.7"
        server.now(proxy_trusted=[])
        assert clients[0].get("/", forwarded).body == b" 127.0.0.1"
        with server.connect() as one_too_many:
            assert one_too_many.response().status == 429
        server.now(proxy_trusted=["127.0.0.1"])
        with server.connect() as more:
            assert more.get("/", forwarded).body == clients[1].get("/", forwarded).body == b" 192.0.2.7"
        assert server.now(proxy_headers="forwarded") == "reloaded: proxy.headers x-forwarded -> forwarded"
        assert clients[0].get("/", forwarded, "Forwarded: for=192.0.2.8").body == b" 192.0.2.8"
        for client in clients:
            client.socket.close()
        clients_of = server.running.server._loop._clients
        eventually(lambda: clients_of.connections("127.0.0.1") == 0)


def test_a_header_of_a_proxy_that_is_not_trusted_any_more_is_not_read(tmp_path: Path) -> None:
    settings = {"bind": "127.0.0.1:0?proxy_protocol", "proxy_trusted": ["loopback"]}
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 5 6\r\n"
    with live(tmp_path, **settings) as server, server.connect() as known, server.connect() as waiting:
        known.send(header)
        assert known.get("/").body == b" 192.0.2.7"
        server.now(proxy_trusted=["192.0.2.99"])
        assert waiting.receive_all() == b""
        assert known.get("/").body == b" 192.0.2.7"


def test_timeouts_and_limits_of_requests(tmp_path: Path) -> None:
    with live(tmp_path) as server, server.connect() as client:
        target = f"/?{'x' * 400}"
        assert status(client, path=target) == 200
        assert server.now(limits_request_line=300, limits_header_count=3, timeouts_keep_alive="2s") == (
            "reloaded: timeouts.keep_alive 60s -> 2s, limits.request_line 8KiB -> 300, limits.header_count 100 -> 3"
        )
        assert status(client, path=target) == 414
    with live(tmp_path, timeouts_header="60s") as server:
        server.now(timeouts_header="200ms")
        with server.connect() as client:
            client.send(b"GET / HTTP/1.1\r\n")
            assert client.response().status == 408


def test_connections_of_a_client(tmp_path: Path) -> None:
    with live(tmp_path) as server, server.connect() as first, server.connect() as second:
        server.now(limits_client_connections=2)
        assert status(first) == status(second) == 200
        with server.connect() as third:
            assert third.response().status == 429
        server.now(limits_client_connections=3)
        with server.connect() as third:
            assert status(third) == 200


def test_pages_are_read_again_whether_they_are_others_or_the_same(tmp_path: Path) -> None:
    page = tmp_path / "403.html"
    page.write_text("<p>first")
    with live(tmp_path, access_deny=["loopback"]) as server, server.connect() as client:
        html: Callable[[], bytes] = lambda: client.get("/", "Accept: text/html").body  # noqa: E731
        assert b"first" not in html()
        said = server.now(error_page=[{"status": 403, "file": str(page)}])
        assert said.startswith("reloaded: error_page[0] none -> 403 ")
        assert html() == b"<p>first"
        page.write_text("<p>second")
        assert html() == b"<p>first"
        assert server.now() == "reloaded: what is in the files of error_page"
        assert html() == b"<p>second"


def fingerprint(client: Client) -> str:
    return hashlib.sha256(client.socket.tls.getpeercert(binary_form=True)).hexdigest()


def test_certificates(tmp_path: Path) -> None:
    made = [self_signed("localhost", "127.0.0.1") for _ in range(2)]
    pairs = [each.write(tmp_path, f"pair{number}") for number, each in enumerate(made)]
    first, second = ({"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)} for pair in pairs)
    prints = [hashlib.sha256(each.der).hexdigest() for each in made]
    with live(tmp_path, **first) as server, server.connect() as old:
        assert fingerprint(old) == prints[0]
        assert "tls.certificate" in server.now(**second)
        assert status(old) == 200
        with server.connect() as client:
            assert fingerprint(client) == prints[1]
            assert status(client) == 200
        # One more, for a name, which the new store looks after, too.
        extra = self_signed("other.test")
        pair = extra.write(tmp_path, "extra")
        server.now(certificate=[{"certificate": str(pair.certificate), "key": str(pair.key)}])
        assert fingerprint(named(server, "other.test")) == hashlib.sha256(extra.der).hexdigest()
        replaced = self_signed("other.test")
        replaced.write(tmp_path, "extra")
        server.running.server.look_at_certificates()
        wanted = hashlib.sha256(replaced.der).hexdigest()
        eventually(lambda: fingerprint(named(server, "other.test")) == wanted)
        server.now(tls_client_certificates="required", tls_client_ca=str(pairs[0].certificate))
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)), server.connect() as client:
            status(client)
        assert status(old) == 200


def named(server: Live, name: str) -> Client:
    raw = socket.create_connection(("127.0.0.1", server.running.port), PATIENCE_S)
    with contextlib.closing(raw):
        return Client(TlsSocket(raw, client_context(), name))


def test_a_certificate_of_our_own_is_for_new_hosts(tmp_path: Path) -> None:
    settings = {"tls": "self-signed", "tls_state": str(tmp_path), "access_hosts": ["test"]}
    with live(tmp_path, **settings) as server:
        before = fingerprint(named(server, "test"))
        assert "access.hosts test -> test,new.test" in server.now(access_hosts=["test", "new.test"])
        assert fingerprint(named(server, "test")) != before
        after = fingerprint(named(server, "test"))
        server.now(access_deny=["192.0.2.1"])
        assert fingerprint(named(server, "test")) == after


def test_the_level_of_the_log(tmp_path: Path) -> None:
    with live(tmp_path, access_deny=["loopback"]) as server:
        server.now(log_level="debug")
        with server.connect() as client:
            assert status(client) == 403
        for text in ("refused: access_denied", "1 request refused"):
            eventually(lambda text=text: any(text in line for line in server.said))
        assert server.now(log_level="error") == ""  # of which an INFO is none
        before = len(server.said)
        with server.connect() as client:
            assert status(client) == 403
        assert server.now(log_level="info") == "reloaded: log.level error -> info"
        assert [line for line in server.said[before:] if "refused" in line] == []


def test_files_and_the_way_to_https_stay_what_they_are(tmp_path: Path) -> None:
    pair = self_signed("localhost", "127.0.0.1").write(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a file")
    settings = {
        "tls_certificate": str(pair.certificate), "tls_key": str(pair.key), "redirect": "127.0.0.1:0",
        "static": f"/files={tmp_path / 'files'}", "redirect_port": 1,
    }  # fmt: skip
    with live(tmp_path, **settings) as server:
        port = int(server.running.server.redirects[0].rpartition(":")[2])
        for redirect_port in (1, 2):
            server.now(redirect_port=redirect_port, access_deny=["192.0.2.1"])
            with Client(socket.create_connection(("127.0.0.1", port), PATIENCE_S)) as client:
                client.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.response().header("Location") == f"https://localhost:{redirect_port}/x"
            with server.connect() as client:
                assert client.get("/files/a.txt").body == b"a file"
                assert client.get("/files/a.txt", method="POST", body=b"x").status == 405


def test_a_proxy_that_nobody_has_named_is_said_once(tmp_path: Path) -> None:
    with live(tmp_path) as server, server.connect() as client:
        for number in range(3):
            client.get("/", "X-Forwarded-For: 192.0.2.7")
            server.now(access_deny=[f"192.0.2.{number}"])
        assert sum("sends forwarding header fields" in line for line in server.said) == 1


def test_a_question_to_a_shared_store_is_answered_by_the_limiter_that_asked() -> None:
    rule, other = RateLimitSettings(limit="2/hour", path="/a"), RateLimitSettings(limit="5/hour")
    rates = RateLimitingSettings(default="off")
    limiter = RateLimiter(
        (rule,), rates, failures="off", ipv6_prefix=64, shared=True, dry_run=lambda *_: None, clock=lambda: 1.0
    )
    request = Asked("/a")
    question = limiter.check(request, 1.0)
    assert isinstance(question, Question)
    after = limiter.with_rules((other, rule), rates, failures="off")
    for each in (limiter, after):
        assert each.answered(question, [0.0], 1.0) is None
    asked_again = after.check(request, 1.0)
    assert isinstance(asked_again, Question)
    assert len(asked_again.hits) == 2
    refusal = after.decide(asked_again, 1.0)  # the store is away, and this process has counted two
    assert refusal is not None
    assert refusal.rule == "rate_limit[1]"


@dataclass
class Asked:
    path: str
    command: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    address: str = "192.0.2.1"
    client: str = "192.0.2.1"
    user: str = ""
    rate_slots: Any = None


# --- what is refused, and what is not taken ---


def test_what_cannot_be_used_is_refused_as_a_whole_with_every_problem(tmp_path: Path) -> None:
    pair = self_signed("localhost", "127.0.0.1").write(tmp_path)
    users = write_users(tmp_path / "users", ann="a")
    page = tmp_path / "403.txt"
    page.write_text("mine")
    settings = {
        "auth_users": users, "tls_certificate": str(pair.certificate), "tls_key": str(pair.key),
        "error_page": [{"status": 403, "file": str(page)}],
    }  # fmt: skip
    with live(tmp_path, **settings) as server, server.connect() as client:
        before = server.running.server.settings
        new_page = tmp_path / "404.txt"
        new_page.touch()
        server.change(
            access_deny=["loopback"],
            auth_users=str(tmp_path / "none"),
            tls_key=users,
            log_error=str(tmp_path / "none" / "error.log"),
            error_page=[{"status": 404, "file": str(new_page)}],
            rate_limiting_storage="mongodb://h",
            rate_limit=[{"limit": "5/minute", "burst": 3}],
        )
        new_page.unlink()
        server.ask()
        first, *problems = server.said[-1].split("\n")
        assert first == "not reloaded: 5 problems with the settings, and those before go on:"
        for part in ("mongodb", str(new_page), "auth.users", "tls_key", "log.error"):
            assert sum(part in problem for problem in problems) == 1, (part, problems)
        assert server.running.server.settings is before
        assert status(client) == 200
        server.given = DEFAULTS | settings
        assert "access.deny none -> loopback" in server.now(access_deny=["loopback"])
        assert status(client) == 403


def test_files_that_are_broken_although_their_settings_stay_refuse_the_rest(tmp_path: Path) -> None:
    pair = self_signed("localhost", "127.0.0.1").write(tmp_path)
    users = tmp_path / "users"
    write_users(users, ann="a")
    settings = {"auth_users": str(users), "tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    with live(tmp_path, **settings) as server, server.connect() as client:
        users.write_text("ann without a colon\n")
        said = server.now(access_deny=["loopback"])
        assert "not reloaded: 1 problem with" in said
        assert f"{users}:1: expected name:hash" in said
        write_users(users, ann="a")
        pair.key.write_text("no key")
        said = server.now()
        assert "not reloaded: 1 problem with" in said
        assert str(pair.key) in said
        assert status(client) == 200


def test_a_bug_in_reading_leaves_the_server_as_it_is(tmp_path: Path) -> None:
    with live(tmp_path) as server, server.connect() as client:
        server.wanted = None  # type: ignore[assignment]  # that is the bug
        server.ask()
        assert server.said[-1] == "not reloaded: internal error"
        assert status(client) == 200
        assert server.now(access_deny=["loopback"]).startswith("reloaded")


def test_what_needs_a_restart_is_named_and_the_rest_is_taken(tmp_path: Path) -> None:
    with live(tmp_path) as server, server.connect() as client:
        both = {"threads": 2, "max_client_workers": 2, "timeouts_app": "5s", "files_memory": 0, "access_deny": ["unix"]}
        assert server.now(**both).split("\n") == [
            "reloaded: access.deny none -> unix",
            "server.threads: 4 -> 2 needs a restart",
            "server.max_client_workers: 4 -> 2 needs a restart",
            "timeouts.app: 60s -> 5s needs a restart",
            "files.memory: 32MiB -> 0 needs a restart",
        ]
        assert server.now().split("\n")[:2] == [
            "reloaded: nothing that can change while running has changed",
            "server.threads: 4 -> 2 needs a restart",
        ]
        assert server.running.server.settings.server.threads == 4
        assert status(client) == 200


def test_what_would_not_go_with_what_needs_a_restart_is_refused(tmp_path: Path) -> None:
    settings = {"bind": "127.0.0.1:0?proxy_protocol", "proxy_trusted": ["loopback"]}
    with live(tmp_path, **settings) as server, server.connect() as client:
        client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 5 6\r\n")
        said = server.now(bind="127.0.0.1:0", proxy_trusted=None, access_deny=["192.0.2.7"])
        assert "not reloaded: 1 problem with" in said
        assert "until a restart" in said
        assert status(client) == 200


# --- when it is asked for ---


def test_asked_again_meanwhile_the_last_one_wins(tmp_path: Path) -> None:
    with live(tmp_path) as server, server.connect() as client:
        reading, go_on = threading.Semaphore(0), threading.Semaphore(0)
        reread = server.reload._reread

        class Held:
            wanted = False
            later = ()

            def __call__(self) -> Resolved:
                resolved = reread()
                reading.release()
                assert go_on.acquire(timeout=PATIENCE_S)
                return resolved

        server.reload._reread = Held()
        server.change(access_deny=["loopback"])
        server.reload.ask()
        assert reading.acquire(timeout=PATIENCE_S)
        for _ in range(5):
            server.reload.ask()
        assert status(client) == 200  # nobody waits for it
        server.change(access_deny=["192.0.2.1"])
        go_on.release()
        server.await_end()
        assert reading.acquire(timeout=PATIENCE_S)
        go_on.release()
        server.await_end()
        assert [line for line in server.said if "reloaded" in line] == [
            "reloaded: access.deny none -> loopback",
            "reloaded: access.deny loopback -> 192.0.2.1",
        ]
        assert status(client) == 200
        assert not server.ended.acquire(blocking=False)


def test_a_server_that_ends_takes_nothing(tmp_path: Path) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def held(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        waiting.set()
        assert go_on.wait(PATIENCE_S)
        return app(environ, start_response)

    with live(tmp_path, held) as server:
        client = server.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert waiting.wait(PATIENCE_S)
        server.running.server.stop()
        server.change(access_deny=["loopback"])
        server.reload.ask()
        eventually(lambda: "not reloaded: the server is stopping" in server.said)
        go_on.set()
        assert client.response().status == 200
        client.socket.close()
        server.running.thread.join(PATIENCE_S)
        assert server.running.exit_codes == [0]


def test_no_request_fails_while_everything_is_replaced_again_and_again(tmp_path: Path) -> None:
    """Under traffic of connections that are kept and of new ones, over TLS, with passwords and rules of every kind."""
    files = [write_users(tmp_path / name, ann="a") for name in ("first", "second")]
    pairs = [self_signed("localhost", "127.0.0.1").write(tmp_path, f"pair{number}") for number in range(2)]
    page = tmp_path / "403.txt"
    page.write_text("mine")
    rule = {"limit": "1000000/hour", "path": "/*"}
    variants: list[dict[str, Any]] = [
        {
            "auth_users": files[number], "tls_certificate": str(pairs[number].certificate),
            "tls_key": str(pairs[number].key), "limits_request_line": 1000 + number, "ban_after": 100 + number,
            "rate_limit": [rule, {"limit": "1000000/hour", "status": [200 + number]}][: 1 + number],
            "rate_limiting_default": ("off", "100000/second")[number], "proxy_trusted": ([], ["192.0.2.0/24"])[number],
            "route": [{"path": "/a", "allowed_methods": ["GET"]}][number:], "log_level": ("info", "warning")[number],
            "error_page": [{"status": 403, "file": str(page)}][number:],
        }
        for number in range(2)
    ]  # fmt: skip
    done = threading.Event()
    answers: list[list[int]] = []
    failures: list[BaseException] = []

    def ask(server: Live, fresh: bool) -> None:
        got: list[int] = []
        answers.append(got)
        try:
            while not done.is_set():
                with server.connect() as client:
                    got += [status(client, basic("ann", "a"), path="/a") for _ in range(1 if fresh else 50)]
        except BaseException as error:
            failures.append(error)

    with switching_often(), live(tmp_path, auth_required="on", **variants[0]) as server:
        threads = [threading.Thread(target=ask, args=(server, fresh)) for fresh in (False, False, True)]
        for thread in threads:
            thread.start()
        for number in range(50):
            server.now(**variants[(number + 1) % 2])
        done.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert server.running.server.settings.auth.users == files[0]
    assert not failures
    assert {each for got in answers for each in got} == {200}
    assert all(answers)
    assert not [line for line in server.said if "not reloaded" in line or "internal" in line]


# --- the command ---

COMMAND_APP = """
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/away":
        os.chdir("/")
    return [b"hello"]
"""


def hang_up(command: Command, *awaited: str) -> None:
    """Send SIGHUP, and wait until all of this has been said since."""
    before = len(command.said)
    command.process.send_signal(signal.SIGHUP)
    eventually(lambda: all(text in "".join(command.said[before:]) for text in awaited))


def text_of(path: Path) -> str:
    """Return what is in a file, "" while it is being made or rotated."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


def get(command: Command, path: str = "/") -> int:
    with Client(socket.create_connection(("127.0.0.1", command.port), PATIENCE_S)) as client:
        return client.get(path, "Connection: close").status


def test_sighup_reads_the_file_and_the_env_file_again(tmp_path: Path, start_command: StartCommand) -> None:
    (tmp_path / "served.py").write_text(COMMAND_APP)
    config = tmp_path / "hardserve.toml"
    config.write_text('[[rate_limit]]\nlimit = "300/minute"\n')
    (tmp_path / ".env").write_text("HARDSERVE_BAN_AFTER=400\nSECRET=1234\n")
    with start_command("served:app", "--threads", "3", directory=tmp_path) as command:
        assert get(command) == 200
        config.write_text('[access]\ndeny = ["loopback"]\n[server]\nqueue = 5\nthreads = 9\n')
        (tmp_path / ".env").write_text("HARDSERVE_BAN_AFTER=300\nSECRET=5678\n")
        hang_up(
            command,
            "INFO hardserve: reloaded: access.deny none -> loopback, ban.after 400 -> 300, "
            "rate_limit[0] 300/minute -> none\n",
            "WARNING hardserve: server.queue: 1024 -> 5 needs a restart\n",
            "WARNING hardserve: SECRET: another value in .env for the app needs a restart\n",
        )
        assert get(command) == 403
        config.write_text('[access]\ndenny = ["loopback"]\n[[rate_limit]]\nlimit = "many"\n')
        (tmp_path / ".env").write_text("HARDSERVE_BAN=300\n")
        hang_up(
            command,
            "ERROR hardserve: not reloaded: 3 problems with the settings, and those before go on:\n",
            "  hardserve.toml:2: access.denny: unknown setting; did you mean access.deny?\n",
            '  hardserve.toml:4: rate_limit[0].limit = "many": expected a rate',
            "  .env:1: HARDSERVE_BAN: unknown setting",
        )
        assert get(command) == 403
        config.unlink()
        hang_up(command, "  hardserve.toml: it was read before, and is not there any more")
        assert get(command) == 403
        config.write_text("")
        (tmp_path / ".env").write_text("")
        hang_up(command, "reloaded: access.deny loopback -> none, ban.after 300 -> 500")
        assert get(command) == 200
        assert "5678" not in command.output
        assert "server.threads" not in command.output  # the flag goes before the file


def test_log_files_are_opened_again_whatever_the_settings_say_and_can_be_others(
    tmp_path: Path, start_command: StartCommand
) -> None:
    (tmp_path / "served.py").write_text(COMMAND_APP)
    config = tmp_path / "hardserve.toml"
    config.write_text('[log]\nmax_size = "1MiB"\n')
    with start_command("served:app", directory=tmp_path) as command:
        access = command.access_log
        assert get(command, "/first") == 200
        eventually(lambda: "/first" in text_of(access))
        config.write_text("broken")
        os.rename(access, tmp_path / "access.1")
        hang_up(command, "not reloaded: 1 problem")
        eventually(access.exists)
        assert get(command, "/away") == 200  # and the app goes to another directory
        eventually(lambda: "/away" in text_of(access))
        config.write_text('[log]\nerror = "./error.log"\naccess_format = "json"\nmax_size = "1KiB"\n')
        command.process.send_signal(signal.SIGHUP)
        error_log = tmp_path / "error.log"
        eventually(lambda: "reloaded: log.access_format auto -> json" in text_of(error_log))
        for number in range(12):
            assert get(command, f"/{number}") == 200
        eventually(lambda: '"target":"/11"' in text_of(access))
        assert access.stat().st_size <= 1024
        config.write_text("[log]\nerror = './none/error.log'\n")
        command.process.send_signal(signal.SIGHUP)
        eventually(lambda: "cannot be opened for writing" in text_of(error_log))
        config.write_text("")
        hang_up(command, "reloaded: log.access_format json -> auto, log.error ./error.log -> stderr")
        assert "Traceback" not in text_of(error_log)


def test_a_signal_during_the_start_is_not_lost(tmp_path: Path, start_command: StartCommand) -> None:
    (tmp_path / "served.py").write_text(
        "import os, pathlib, signal\n"
        "pathlib.Path('hardserve.toml').write_text('[access]\\ndeny = [\"loopback\"]\\n')\n"
        f"os.kill(os.getpid(), signal.SIGHUP)\n{COMMAND_APP}"
    )
    (tmp_path / "hardserve.toml").write_text("")
    with start_command("served:app", directory=tmp_path) as command:
        eventually(lambda: "reloaded: access.deny none -> loopback" in command.output)
        assert get(command) == 403
        assert command.output.index("listening") < command.output.index("reloaded")
