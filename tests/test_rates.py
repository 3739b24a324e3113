"""Rate limits over real sockets: what a client is told, what counts, and that no spelling gets past a rule."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request

from tests.passwords import basic, eventually, write_users
from tests.support import PATIENCE_S, Client, Response, serving

# Their proxy is this machine.
FORGED_CLIENTS = 20_000


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with the status that the query asks for."""
    status = environ["QUERY_STRING"] or "200"
    start_response(f"{status} Told", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def rule(limit: str, **settings: Any) -> dict[str, Any]:
    return {"limit": limit, "strategy": "fixed-window", **settings}


def limited(*rules: dict[str, Any], **settings: Any) -> Any:
    return serving(settings.pop("app", app), rate_limit=list(rules), **settings)


def statuses(client: Client, *targets: str, fields: Sequence[str] = (), method: str = "GET") -> list[int]:
    return [client.get(target, *fields, method=method).status for target in targets]


# --- what a client is told ---

POLICY = r'"[A-Za-z0-9_\[\]:.-]+";q=[0-9]+;w=[0-9]+'


def assert_told_when(response: Response, policy: str) -> int:
    """Return the seconds that a refused client is to wait; all of its fields must agree."""
    assert response.status == 429
    assert response.header("RateLimit-Policy") == policy
    assert all(re.fullmatch(POLICY, each) for each in policy.split(", "))
    told = re.fullmatch(r'"([^"]+)";r=0;t=([0-9]+)', response.header("RateLimit") or "")
    assert told is not None, response.headers
    assert f'"{told[1]}";' in policy
    assert response.header("Retry-After") == told[2]
    assert response.header("Cache-Control") == "no-store"
    return int(told[2])


def test_past_the_default_a_client_waits_and_goes_on() -> None:
    with (
        serving(app, rate_limiting_default="1/second", rate_limiting_default_burst=2) as running,
        running.connect() as client,
    ):
        assert statuses(client, "/", "/", "/") == [200, 200, 200]
        response = client.get("/")
        wait_s = assert_told_when(response, '"default";q=3;w=3')
        assert wait_s == 1
        assert response.header("Connection") is None
        assert response.header("X-RateLimit-Limit") is None
        with running.connect("127.0.0.2") as other:
            assert other.get("/").status == 200
        time.sleep(wait_s)
        assert statuses(client, "/") == [200]  # on the same connection, after what it was told to wait
        entry = running.log.wait_for(4)[3]
        assert (entry.status, entry.refusal, entry.client) == (429, "rate_limited", "127.0.0.1")


def test_the_default_is_on_and_no_browser_meets_it() -> None:
    with serving(app, rate_limiting_default="50/second") as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 700)
        told = [client.response() for _ in range(700)]
    served = [response.status for response in told].count(200)
    assert 501 <= served < 700
    refused = next(response for response in told if response.status == 429)
    assert_told_when(refused, '"default";q=501;w=11')


def test_the_older_fields_are_there_for_who_wants_them() -> None:
    with limited(rule("1/minute"), rate_limiting_legacy_headers="on") as running, running.connect() as client:
        client.get("/")
        response = client.get("/")
        wait_s = assert_told_when(response, '"rate_limit[0]";q=1;w=60')
        told = [response.header(f"X-RateLimit-{name}") for name in ("Limit", "Remaining", "Reset")]
        assert told == ["1", "0", str(wait_s)]


def test_each_of_several_windows_must_have_room() -> None:
    policy = '"rate_limit[0]:1s";q=2;w=1, "rate_limit[0]:3600s";q=3;w=3600'
    with limited(rule("3/hour; 2/second", strategy="moving-window")) as running, running.connect() as client:
        assert statuses(client, "/", "/") == [200, 200]
        assert assert_told_when(client.get("/"), policy) == 1
        time.sleep(1.0)
        assert statuses(client, "/") == [200]
        assert assert_told_when(client.get("/"), policy) > 3000  # what was refused by one cost the other nothing


@pytest.mark.parametrize(
    ("accept", "marks"),
    [
        pytest.param("text/html", (b"<!doctype html>", b"Too many requests"), id="a page for browsers"),
        pytest.param("application/problem+json", (b'"status": 429',), id="problem details"),
        pytest.param("*/*", (b"429 Too Many Requests\n",), id="text"),
    ],
)
def test_a_refusal_is_told_in_what_the_client_reads(accept: str, marks: tuple[bytes, ...]) -> None:
    with limited(rule("1/hour")) as running, running.connect() as client:
        client.get("/")
        response = client.get("/", f"Accept: {accept}")
        assert_told_when(response, '"rate_limit[0]";q=1;w=3600')
        assert all(mark in response.body for mark in marks)


def test_a_page_of_the_operators_has_the_fields_too(tmp_path: Path) -> None:
    page = tmp_path / "slow.html"
    page.write_text("<p>Slow down, {{ request_id }}</p>")
    with (
        limited(rule("1/hour"), error_page=[{"status": 429, "file": str(page)}]) as running,
        running.connect() as client,
    ):
        client.get("/")
        response = client.get("/", "Accept: text/html", "X-Request-ID: abc")
        assert_told_when(response, '"rate_limit[0]";q=1;w=3600')
        assert response.body.startswith(b"<p>Slow down, ")


def test_head_is_refused_without_a_body_and_the_connection_goes_on() -> None:
    with limited(rule("1/hour", path="/one")) as running, running.connect() as client:
        assert statuses(client, "/one", "/one", "/two", method="HEAD") == [200, 429, 200]


# --- by what is counted ---


@pytest.mark.parametrize(
    ("key", "asked", "expected"),
    [
        pytest.param(
            "client",
            [("127.0.0.1", "/a"), ("127.0.0.1", "/b"), ("127.0.0.2", "/a")],
            [200, 429, 200],
            id="client: whatever it asks for",
        ),
        pytest.param(
            "client+path",
            [("127.0.0.1", "/a"), ("127.0.0.1", "/b"), ("127.0.0.1", "//a"), ("127.0.0.2", "/a")],
            [200, 200, 429, 200],
            id="client and path: each by itself, however it is spelt",
        ),
        pytest.param(
            "global",
            [("127.0.0.1", "/a"), ("127.0.0.2", "/b"), ("127.0.0.3", "/c")],
            [200, 429, 429],
            id="global: all clients together",
        ),
    ],
)
def test_requests_are_counted_by(key: str, asked: list[tuple[str, str]], expected: list[int]) -> None:
    with limited(rule("1/hour", key=key)) as running:
        told = []
        for source, target in asked:
            with running.connect(source) as client:
                told += statuses(client, target)
        assert told == expected


def test_a_header_field_has_a_count_and_leaving_it_out_is_no_way_past() -> None:
    with limited(rule("1/hour", key="header:X-API-Key")) as running, running.connect() as client:
        told = [client.get("/", *fields).status for fields in (["X-API-Key: a"], ["x-api-key: a"], ["X-API-Key: b"])]
        assert told == [200, 429, 200]
        assert [client.get("/", *fields).status for fields in ([], [], ["X-API-Key:"])] == [200, 429, 429]
        with running.connect("127.0.0.2") as other:
            assert other.get("/", "X-API-Key: a").status == 429
            assert other.get("/").status == 200


def test_a_user_has_a_count_at_all_addresses(tmp_path: Path) -> None:
    users = write_users(tmp_path / "users", anna="a", bert="b")
    with (
        limited(rule("2/hour", key="user"), auth_users=users, auth_required="on") as running,
        running.connect() as client,
        running.connect("127.0.0.2") as other,
    ):
        assert other.get("/", basic("anna", "wrong")).status == 401  # which does not count for her
        assert [each.get("/", basic("anna", "a")).status for each in (client, other, client)] == [200, 200, 429]
        assert other.get("/", basic("anna", "a")).status == 429
        assert client.get("/", basic("bert", "b")).status == 200
        # Nobody's own user: who says none is counted by address, before the password is asked for or not at all.
        assert [other.get("/").status for _ in range(3)] == [401, 401, 401]


def test_who_is_no_user_counts_by_address_where_no_password_is_asked_for(tmp_path: Path) -> None:
    users = write_users(tmp_path / "users", anna="a")
    with limited(rule("1/hour", key="user"), auth_users=users) as running, running.connect() as client:
        assert statuses(client, "/", "/") == [200, 429]
        with running.connect("127.0.0.2") as other:
            assert other.get("/", basic("anna", "a")).status == 200  # only a checked one is a user


def test_an_ipv6_client_is_its_network() -> None:
    with limited(rule("2/hour"), proxy_trusted=["loopback"]) as running, running.connect() as client:
        addresses = ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "[2001:db8:0:1::3]:4711", "2001:db8:0:2::1")
        told = [client.get("/", f"X-Forwarded-For: {address}").status for address in addresses]
        assert told == [200, 200, 429, 200]
        # An IPv4 address that is written as one of IPv6 is the same client.
        mapped = ("192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201")
        assert [client.get("/", f"X-Forwarded-For: {address}").status for address in mapped] == [200, 200, 429]


def test_an_ipv6_client_is_as_large_as_the_operator_says() -> None:
    with (
        limited(rule("1/hour"), proxy_trusted=["loopback"], limits_ipv6_prefix=48) as running,
        running.connect() as client,
    ):
        addresses = ("2001:db8:1:1::1", "2001:db8:1:2::1", "2001:db8:2:1::1")
        assert [client.get("/", f"X-Forwarded-For: {address}").status for address in addresses] == [200, 429, 200]


def test_exempt_networks_are_not_counted() -> None:
    with limited(rule("1/hour", exempt=["127.0.0.2", "2001:db8::/32"]), proxy_trusted=["127.0.0.3"]) as running:
        with running.connect("127.0.0.2") as client:
            assert statuses(client, "/", "/", "/") == [200] * 3
        with running.connect("127.0.0.3") as proxy:
            assert statuses(proxy, "/", "/", fields=["X-Forwarded-For: 2001:db8::1"]) == [200, 200]
            assert statuses(proxy, "/", "/", fields=["X-Forwarded-For: 192.0.2.1"]) == [200, 429]
        with running.connect() as client:
            assert statuses(client, "/", "/") == [200, 429]


def test_a_request_costs_what_its_rule_says() -> None:
    with limited(rule("10/hour", path="/export", cost=5)) as running, running.connect() as client:
        assert statuses(client, "/export", "/export") == [200, 200]
        assert_told_when(client.get("/export"), '"rate_limit[0]";q=2;w=3600')
        assert client.get("/").status == 200


def test_what_is_on_trial_is_logged_and_let_in(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hardserve"):
        with (
            limited(rule("1/hour"), rule("2/hour", dry_run="on", path="/a*")) as running,
            running.connect("127.0.0.2") as other,
            running.connect() as client,
        ):
            assert statuses(client, "/ab", "/b") == [200, 429]
            assert statuses(other, "/c") == [200]
        with limited(rule("2/hour", dry_run="on")) as running, running.connect() as client:
            assert statuses(client, *["/"] * 7) == [200] * 7
            assert running.log.wait_for(7)[6].refusal == ""
            client.socket.close()
            running.stop()
    said = [record.message for record in caplog.records if "dry run" in record.message]
    assert said[0] == "1 request past a limit on trial and let in: dry run of rate_limit[0], 127.0.0.1"
    assert re.fullmatch(
        r"4 requests past a limit on trial and let in: dry run of rate_limit\[0\], 127\.0\.0\.1, last \d+ s", said[1]
    )
    assert len(said) == 2


# --- by status ---


@pytest.mark.parametrize(
    ("counted", "targets", "expected"),
    [
        pytest.param((401,), ["/?401"] * 3 + ["/"], [401, 401, 429, 429], id="who guesses passwords of the app"),
        pytest.param((404,), ["/a?404", "/b?404", "/"], [404, 404, 429], id="who scans"),
        pytest.param((404,), ["/", "/?401", "/", "/"], [200, 401, 200, 200], id="others are not counted"),
        pytest.param((401, 403), ["/?401", "/?403", "/?404"], [401, 403, 429], id="several together"),
    ],
)
def test_responses_are_counted(counted: tuple[int, ...], targets: list[str], expected: list[int]) -> None:
    with limited(rule("2/hour", status=list(counted))) as running:
        with running.connect() as client:
            assert statuses(client, *targets) == expected
        with running.connect("127.0.0.2") as other:
            assert other.get("/").status == 200


def fails(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise RuntimeError("as it should")


def streams(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    yield b"not "
    yield b"here"


def writes(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain")])(b"not here")
    return []


@pytest.mark.parametrize(
    ("serve", "status"),
    [
        pytest.param(fails, 500, id="an app that fails"),
        pytest.param(streams, 404, id="a stream"),
        pytest.param(writes, 404, id="the write function of WSGI"),
    ],
)
def test_whatever_makes_a_response_it_counts(serve: Any, status: int) -> None:
    with limited(rule("2/hour", status=[status]), app=serve) as running, running.connect() as client:
        assert statuses(client, "/", "/", "/") == [status, status, 429]


def test_what_the_server_answers_itself_counts(tmp_path: Path) -> None:
    users = write_users(tmp_path / "users", anna="a")
    routes = [{"path": "/admin", "auth": "on"}]
    rules = (rule("2/hour", status=[413]), rule("2/hour", status=[401], key="client+path"))
    with limited(*rules, auth_users=users, route=routes, limits_body=4) as running:
        for expected in (413, 413, 429):
            with running.connect() as client:
                assert client.get("/", method="POST", body=b"12345").status == expected
        with running.connect("127.0.0.2") as client:
            chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
            client.send(chunked)
            assert client.response().status == 413
        with running.connect("127.0.0.3") as client:
            assert statuses(client, "/admin", "/admin", "/admin", "/") == [401, 401, 429, 200]


def test_a_pipeline_is_counted_one_by_one() -> None:
    with limited(rule("3/hour", status=[404])) as running, running.connect() as client:
        client.send(b"GET /?404 HTTP/1.1\r\nHost: a\r\n\r\n" * 10)
        assert [client.response().status for _ in range(10)] == [404] * 3 + [429] * 7


def test_at_once_no_more_get_past_than_ask_at_once() -> None:
    """The bound that the limiter states: those in progress before the first response counts."""
    with limited(rule("5/hour", status=[404]), threads=4) as running:
        connections = [running.connect() for _ in range(6)]
        for client in connections:
            client.send(b"GET /?404 HTTP/1.1\r\nHost: a\r\n\r\n" * 10)
        told = [client.response().status for client in connections for _ in range(10)]
        for client in connections:
            client.socket.close()
    assert 5 <= told.count(404) < 5 + len(connections)
    assert told.count(429) == len(told) - told.count(404)


# --- spellings ---


VIEWS = {
    # What a rule is for, the view that is meant, and where that is.
    "/login": ("login", "/login"),
    "/loose": ("loose", "/loose"),
    "/caf\u00e9": ("cafe", "/caf%c3%a9"),
    "/files/*": ("file", "/files/a"),
    "/item/*": ("item", "/item/a"),
}
SPELLINGS = {
    "/login": r"""
        /login //login ///login /./login /%6cogin /%6Cogi%6e /a/../login /login/ /login// /login?x=1 /login/. /../login
        /%2e/login /a/%2e%2e/login /%2flogin /login%2f /login;x http://test/login http://test//login
        HTTP://test/%6cogin http://test/./login /LOGIN /login%00 /login%20 /login%3f /login%23 /\login /login\ /%5clogin
        /login%2f%2f /%252flogin /.//login /x/..//login /login/../login /login/x/.. //login// /login/./ /%c0%aflogin
    """,
    "/loose": "/loose /loose/ //loose //loose/ /%6coose/ /loose// /loose/. /./loose/",
    "/caf\u00e9": "/caf%c3%a9 /caf%C3%A9 //caf%c3%a9 /%63af%c3%a9 /caf%e9 /cafe%cc%81",
    "/files/*": """
        /files/a //files/a /files//a /files/a/b /files%2fa /files/../x /files/a/../../x /files/.. /files/.
        /files/%2e%2e/x /files/a/%2e%2e/%2e%2e/login /files/..%2fx /files/%2e%2e%2fx /files/../login
        /files/./../x /files/..//x http://test/files/../x
    """,
    "/item/*": "/item/a /item/.. /item/. /item/%2e%2e //item/.. http://test/item/..",
}


def site() -> Flask:
    flask = Flask("site")
    both = ["GET", "POST"]
    flask.add_url_rule("/", "home", lambda: "home")
    flask.add_url_rule("/login", "login", lambda: "login", methods=both)
    flask.add_url_rule("/loose", "loose", lambda: "loose", methods=both, strict_slashes=False)
    flask.add_url_rule("/caf\u00e9", "cafe", lambda: "cafe", methods=both)
    flask.add_url_rule("/files/<path:name>", "file", lambda name: name, methods=both)
    flask.add_url_rule("/item/<name>", "item", lambda name: name, methods=both)
    return flask


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_that_the_app_routes_there_gets_past(path: str, method: str) -> None:
    """Whatever Flask serves with the view that a rule is for, the rule has counted: only the first is let in."""
    view, ordinary = VIEWS[path]
    served: dict[str, str] = {}
    flask = site()

    @flask.before_request
    def note() -> None:
        served[request.headers["X-Spelling"]] = request.endpoint or ""

    asked = [ordinary, *SPELLINGS[path].split()]
    methods = ["GET" if method == "HEAD" else method]
    with limited(rule("1/hour", path=path, key="global", methods=methods), app=flask) as running:
        told = []
        for spelling in asked:
            with running.connect() as client:
                told.append(client.get(spelling, f"X-Spelling: {spelling}", method=method).status)
    assert {spelling for spelling in served if served[spelling] == view} == {ordinary}
    assert told.count(429) >= 3


# --- with a body ---


def test_a_body_of_a_refused_request_is_not_asked_for() -> None:
    with limited(rule("1/hour")) as running:
        with running.connect() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            assert client.response().status == 100
            client.send(b"12345")
            assert client.response().status == 200
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            response = client.response()
            assert (response.status, response.header("Connection")) == (429, "close")
        with running.connect() as client:
            # It reads its answer, although most of what it sends has not come when it is given.
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1_000_000)
            client.send(b"x" * 2_000_000)
            assert_told_when(client.response(), '"rate_limit[0]";q=1;w=3600')
            assert client.receive_all() == b""
        eventually(lambda: not running.server._loop.connections)
        assert (running.server._budget.memory, running.server._budget.files) == (0, 0)


def test_a_pipeline_behind_a_refusal_is_answered() -> None:
    with limited(rule("1/hour", path="/one")) as running, running.connect() as client:
        targets = ["/one", "/one", "/two", "/one", "/two"]
        client.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for target in targets))
        assert [client.response().status for _ in targets] == [200, 429, 200, 429, 200]


# --- a flood ---


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def forged(number: int) -> bytes:
    a, b, c = 1 + number // 65536 % 200, number // 256 % 256, number % 256
    return f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 11.{a}.{b}.{c}\r\n\r\n".encode()


def test_clients_without_number_behind_a_proxy_cost_bounded_memory_and_nobody_else(tmp_path: Path) -> None:
    """None of them has a password, and none of their requests costs a worker; somebody else is served meanwhile."""
    max_keys = FORGED_CLIENTS // 4
    requests = FORGED_CLIENTS + FORGED_CLIENTS // 10
    with (
        limited(
            rule("1/hour", path="/"),
            auth_users=write_users(tmp_path / "users", anna="a"),
            route=[{"path": "/", "auth": "on"}],
            rate_limiting_max_keys=max_keys,
            rate_limiting_default="50/second",
            limits_connection_requests=1_000_000,
            proxy_trusted=["127.0.0.1"],
            threads=2,
        ) as running,
        running.connect() as proxy,
        running.connect("127.0.0.2") as somebody,
    ):
        assert somebody.get("/served").status == 200
        proxy.socket.settimeout(PATIENCE_S + requests / 1000)
        before = resident_bytes()
        # The last ones come again, and are refused.
        flood = b"".join(forged(min(number, 2 * FORGED_CLIENTS - number)) for number in range(requests))
        told: Counter[bytes] = Counter()
        answered = threading.Event()

        def read() -> None:
            rest = b""
            while told.total() < requests and (data := proxy.socket.recv(262_144)):
                *whole, rest = (rest + data).split(b"HTTP/1.1 ")
                told.update(each[:3] for each in whole if each)
                if rest[:3] and told.total() == requests - 1 and rest.endswith(b"\n"):
                    told[rest[:3]] += 1
            answered.set()

        sender = threading.Thread(target=proxy.socket.sendall, args=(flood,), daemon=True)
        reader = threading.Thread(target=read, daemon=True)
        sender.start()
        reader.start()
        slowest, meanwhile = 0.0, 0
        while not answered.wait(0.02):
            began = time.monotonic()
            assert somebody.get("/served").status == 200
            running.log.entries.clear()  # which a server does not keep
            slowest, meanwhile = max(slowest, time.monotonic() - began), meanwhile + 1
        sender.join()
        reader.join()
        assert set(told) == {b"401", b"429"}
        assert told.total() == requests
        assert meanwhile > 3
        assert slowest < 2.0
        limiter = running.server._limiter
        assert limiter._store.size <= max_keys
        assert limiter._store.evicted > 0
        assert resident_bytes() - before < 60_000_000
