"""Who may come in: networks, hosts and methods, for all requests and by route."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from hardserve import refusals
from hardserve.edge.access import Access
from hardserve.edge.parsing import ParserRules, Request
from hardserve.loader.hosts import has_proxy_fix, hosts_of
from hardserve.options import from_keywords
from tests.support import admitted, plain_gate, serving


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}".encode()]


# --- hosts ---


@pytest.mark.parametrize(
    ("hosts", "host", "served"),
    [
        pytest.param(("example.com",), "example.com", True, id="its name"),
        pytest.param(("example.com",), "EXAMPLE.com:8000", True, id="case and port do not count"),
        pytest.param(("example.com",), "example.com.", True, id="nor does the root of the name system"),
        pytest.param(("example.com",), "www.example.com", False, id="a name below it is another"),
        pytest.param(("example.com",), "notexample.com", False, id="one that ends like it is another"),
        pytest.param((".example.com",), "a.b.example.com", True, id="all names below"),
        pytest.param((".example.com",), "example.com:80", True, id="and the name itself"),
        pytest.param((".example.com",), "notexample.com", False, id="but not one that only ends like it"),
        pytest.param(("example.com", "192.0.2.1"), "192.0.2.1:80", True, id="an address"),
        pytest.param(("[::1]",), "[::1]:8000", True, id="an IPv6 address with a port"),
        pytest.param(("[::1]",), "[::1]", True, id="an IPv6 address without"),
        pytest.param(("[::1]",), "[::2]", False, id="another IPv6 address"),
    ],
)
def test_a_host_is_served(hosts: tuple[str, ...], host: str, served: bool) -> None:
    assert Access(from_keywords(), hosts).serves(host) is served


def test_a_host_that_is_not_served_gets_421_and_none_at_all_400() -> None:
    with serving(app, access_hosts=["example.com"]) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert client.response().status == 200
        client.send(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")
        assert client.response().status == 421
        client.send(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert client.response().status == 200
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.response().status == 400
        log = running.log.wait_for(4)
        assert [entry.refusal for entry in log] == ["", "host_not_served", "", "host_missing"]


def configured(**config: Any) -> Flask:
    flask = Flask("named")
    flask.config.update(config)
    flask.add_url_rule("/", view_func=lambda: "hello")
    return flask


@pytest.mark.parametrize(
    ("config", "hosts", "source"),
    [
        pytest.param({}, [], "", id="an app that says nothing"),
        pytest.param({"SERVER_NAME": "Example.com:5000"}, ["example.com"], "SERVER_NAME", id="SERVER_NAME"),
        pytest.param(
            {"TRUSTED_HOSTS": ["a.example", ".b.example"], "SERVER_NAME": "c.example"},
            ["a.example", ".b.example"],
            "TRUSTED_HOSTS",
            id="TRUSTED_HOSTS counts more",
        ),
    ],
)
def test_hosts_are_learnt_from_the_app(config: dict[str, Any], hosts: list[str], source: str) -> None:
    assert hosts_of(configured(**config)) == (hosts or (), source)


def test_hosts_of_two_apps_are_served_only_if_both_say_which() -> None:
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    named, other, silent = configured(SERVER_NAME="a.example"), configured(SERVER_NAME="b.example"), configured()
    assert hosts_of(DispatcherMiddleware(named, {"/b": other})) == (["a.example", "b.example"], "SERVER_NAME")
    assert hosts_of(DispatcherMiddleware(named, {"/b": silent})) == ((), "")


def test_subdomains_are_served_where_the_app_matches_them() -> None:
    flask = Flask("named", subdomain_matching=True)
    flask.config["SERVER_NAME"] = "example.com"
    assert hosts_of(flask) == ([".example.com"], "SERVER_NAME")


def test_what_was_learnt_is_held_to_and_can_be_overruled() -> None:
    flask = configured(TRUSTED_HOSTS=["example.com"])
    with serving(flask) as running, running.connect() as client:
        assert client.get("/").status == 421  # Host: test
    flask.config["TRUSTED_HOSTS"] = None
    flask.config["SERVER_NAME"] = "example.com"
    with serving(flask, access_hosts=["*"]) as running, running.connect() as client:
        assert client.get("/").status == 200


def test_proxy_fix_is_seen() -> None:
    from werkzeug.middleware.proxy_fix import ProxyFix

    flask = configured()
    assert not has_proxy_fix(flask)
    flask.wsgi_app = ProxyFix(flask.wsgi_app)  # type: ignore[method-assign]
    assert has_proxy_fix(flask)
    assert has_proxy_fix(ProxyFix(app))


# --- networks and methods ---

ROUTES = [
    {"path": "/admin/*", "allow": ["192.0.2.0/24"], "deny": ["192.0.2.13"]},
    {"path": "/api/*", "allowed_methods": ["GET", "POST"]},
    {"path": "/open", "allow": ["0.0.0.0/0"]},
]


def judged(address: str, line: str, **settings: Any) -> refusals.Refusal | None:
    chosen = from_keywords(route=ROUTES, proxy_trusted=["192.0.2.200"], **settings)
    request = Request(ParserRules(chosen.limits), 0.0)
    request.feed(f"{line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    from tests.support import Somebody

    asker = Somebody()
    asker.peer, asker.client = (address, 1), address
    told = plain_gate(chosen).admit(asker, request, 0.0)
    assert told is None or isinstance(told, refusals.Refusal)
    return told


@pytest.mark.parametrize(
    ("address", "line", "refusal"),
    [
        pytest.param("192.0.2.7", "GET /admin/x", None, id="whom the route lets in"),
        pytest.param("198.51.100.7", "GET /admin/x", refusals.ACCESS_DENIED, id="whom it does not"),
        pytest.param("192.0.2.13", "GET /admin/x", refusals.ACCESS_DENIED, id="deny counts more than allow"),
        pytest.param("198.51.100.7", "GET /other", None, id="another path"),
        pytest.param("198.51.100.7", "GET /admin", refusals.ACCESS_DENIED, id="the path without its slash"),
        pytest.param("198.51.100.7", "GET //admin/x", refusals.ACCESS_DENIED, id="two slashes"),
        pytest.param("198.51.100.7", "GET /./admin/x", refusals.ACCESS_DENIED, id="a dot"),
        pytest.param("198.51.100.7", "GET /%61dmin/x", refusals.ACCESS_DENIED, id="an escape"),
        pytest.param("198.51.100.7", "GET /open/../admin/x", refusals.ACCESS_DENIED, id="dots out of another route"),
        pytest.param("198.51.100.7", "GET http://a/admin/x", refusals.ACCESS_DENIED, id="an absolute target"),
        pytest.param("198.51.100.7", "HEAD /api/x", None, id="GET is HEAD, too"),
        pytest.param("198.51.100.7", "DELETE /api/x", refusals.METHOD_NOT_ALLOWED, id="a method that is not served"),
        pytest.param("203.0.113.1", "GET /open", refusals.ACCESS_DENIED, id="denied to all, whatever the route says"),
    ],
)
def test_a_client_may_come_in(address: str, line: str, refusal: refusals.Refusal | None) -> None:
    assert judged(address, line, access_deny=["203.0.113.0/24"]) is refusal


def test_only_those_allowed_come_in_to_anything() -> None:
    assert judged("192.0.2.1", "GET /", access_allow=["192.0.2.0/24"]) is None
    assert judged("198.51.100.1", "GET /", access_allow=["192.0.2.0/24"]) is refusals.ACCESS_DENIED
    assert judged("unix:", "GET /", access_allow=["192.0.2.0/24"]) is refusals.ACCESS_DENIED
    assert judged("unix:", "GET /", access_allow=["192.0.2.0/24", "unix"]) is None


def test_an_address_of_a_network_is_denied_before_its_body_is_taken() -> None:
    with serving(app, access_deny=["127.0.0.2"]) as running:
        with running.connect("127.0.0.2") as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
            assert client.response().status == 403
        with running.connect() as client:
            assert client.get("/").status == 200


def test_405_says_what_is_allowed() -> None:
    with serving(app, route=ROUTES) as running, running.connect() as client:
        response = client.get("/api/x", method="DELETE")
        assert (response.status, response.header("Allow")) == (405, "GET, HEAD, POST")
        assert client.get("/api/x").status == 200  # on the same connection


def test_the_gate_without_rules_asks_nothing() -> None:
    chosen = from_keywords(rate_limiting_default="off")
    request = Request(ParserRules(chosen.limits), 0.0)
    request.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert admitted(plain_gate(chosen), request) is None
    assert (request.address, request.client, request.user) == ("192.0.2.1", "192.0.2.1", "")
