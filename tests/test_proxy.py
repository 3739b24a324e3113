"""A proxy in front: who the client is to the app, to the limits and to the log, over real sockets."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import pytest
from flask import Flask, request, url_for

from tests.support import Client, serving

KEYS = (
    "REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT", "SCRIPT_NAME",
    "PATH_INFO",
)  # fmt: skip


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    told = {key: environ.get(key) for key in KEYS}
    told["forwarding"] = sorted(key for key in environ if "FORWARDED" in key or key == "HTTP_X_REAL_IP")
    return [json.dumps(told).encode()]


def asked(client: Client, *fields: str) -> dict[str, Any]:
    response = client.get("/path", *fields)
    assert response.status == 200, response
    told: dict[str, Any] = json.loads(response.body)
    return told


SPOOFED = (
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
    "X-Real-IP: 203.0.113.9",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Port: 1",
    "Forwarded: for=203.0.113.9;proto=https;host=evil.example",
)


def test_who_is_no_trusted_proxy_is_the_client_whatever_it_says() -> None:
    with serving(app) as running, running.connect() as client:
        told = asked(client, *SPOOFED)
    assert told["REMOTE_ADDR"] == "127.0.0.1"
    assert (told["wsgi.url_scheme"], told["HTTP_HOST"], told["SCRIPT_NAME"]) == ("http", "test", "")
    assert told["forwarding"] == []


def test_an_address_that_is_not_in_the_list_is_not_trusted() -> None:
    with serving(app, proxy_trusted=["127.0.0.2"]) as running, running.connect() as client:
        assert asked(client, *SPOOFED)["REMOTE_ADDR"] == "127.0.0.1"


def test_a_trusted_proxy_says_who_asks_and_for_what() -> None:
    with serving(app, proxy_trusted=["loopback"]) as running, running.connect() as client:
        told = asked(
            client,
            "X-Forwarded-For: 198.51.100.66, 203.0.113.9",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: shop.example",
            "X-Forwarded-Prefix: /shop/",
        )
        log = running.log.wait_for(1)
    assert told["REMOTE_ADDR"] == "203.0.113.9"  # what stands left of it is the client's own word
    assert told["REMOTE_PORT"] == ""
    assert (told["wsgi.url_scheme"], told["HTTP_HOST"], told["SERVER_NAME"]) == (
        "https",
        "shop.example",
        "shop.example",
    )
    assert (told["SERVER_PORT"], told["SCRIPT_NAME"], told["PATH_INFO"]) == ("443", "/shop", "/path")
    assert told["forwarding"] == []
    assert log[0].client == "203.0.113.9"


def test_only_the_family_that_is_configured_counts() -> None:
    with serving(app, proxy_trusted=["loopback"], proxy_headers="forwarded") as running, running.connect() as client:
        told = asked(
            client, "X-Forwarded-For: 198.51.100.1", 'Forwarded: for="[2001:db8::7]:4711";proto=https;host=a.example'
        )
        assert (told["REMOTE_ADDR"], told["REMOTE_PORT"]) == ("2001:db8::7", "4711")
        assert (told["wsgi.url_scheme"], told["HTTP_HOST"]) == ("https", "a.example")
        assert asked(client, "X-Forwarded-For: 198.51.100.1")["REMOTE_ADDR"] == "127.0.0.1"


def test_what_a_trusted_proxy_says_badly_is_refused() -> None:
    with serving(app, proxy_trusted=["loopback"]) as running, running.connect() as client:
        assert client.get("/", "X-Forwarded-For: not-an-address").status == 400
        assert running.log.wait_for(1)[0].refusal == "bad_forwarding"


def test_url_for_is_right_without_proxy_fix() -> None:
    flask = Flask("behind")

    @flask.route("/where")
    def where() -> str:
        return f"{request.remote_addr} {request.is_secure} {url_for('where', _external=True)}"

    with serving(flask, proxy_trusted=["loopback"]) as running, running.connect() as client:
        fields = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: a.example:8443")
        response = client.get("/where", *fields, "X-Forwarded-Prefix: /x")
        assert response.body == b"203.0.113.9 True https://a.example:8443/x/where"


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        pytest.param(("X-Forwarded-Proto: https",), "https://test/where", id="a scheme"),
        pytest.param(("X-Forwarded-Proto: https", "X-Forwarded-Port: 443"), "https://test/where", id="its own port"),
        pytest.param(("X-Forwarded-Proto: https", "X-Forwarded-Port: 8443"), "https://test:8443/where", id="a port"),
        pytest.param(
            ("X-Forwarded-Host: a.example", "X-Forwarded-Port: 8080"), "http://a.example:8080/where", id="host and port"
        ),
        pytest.param(
            ("X-Forwarded-Host: a.example:81", "X-Forwarded-Port: 81"), "http://a.example:81/where", id="twice the same"
        ),
    ],
)
def test_the_port_of_the_proxy_is_in_urls_of_the_app(fields: tuple[str, ...], url: str) -> None:
    flask = Flask("behind")
    flask.add_url_rule("/where", "where", lambda: url_for("where", _external=True))
    with serving(flask, proxy_trusted=["loopback"]) as running, running.connect() as client:
        assert client.get("/where", "X-Forwarded-For: 203.0.113.9", *fields).body.decode() == url


def test_a_unix_socket_can_be_a_trusted_proxy(tmp_path: Any) -> None:
    path = tmp_path / "s"
    with serving(app, bind=f"unix:{path}", proxy_trusted=["unix"]) as running:
        assert running.server.urls == [f"unix:{path}"]
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(10)
        connected.connect(str(path))
        with Client(connected) as client:
            assert asked(client, "X-Forwarded-For: 203.0.113.9")["REMOTE_ADDR"] == "203.0.113.9"


def test_limits_of_a_client_hold_for_whom_the_proxy_speaks_and_not_for_the_proxy() -> None:
    rules = [{"limit": "2/minute", "strategy": "fixed-window"}]
    settings: dict[str, Any] = {"proxy_trusted": ["loopback"], "rate_limit": rules, "limits_client_connections": 1}
    with serving(app, **settings) as running, running.connect() as one, running.connect() as other:
        statuses = [one.get("/", f"X-Forwarded-For: 203.0.113.{host}").status for host in (1, 2, 1, 2, 1, 2)]
        assert statuses == [200, 200, 200, 200, 429, 429]
        assert other.get("/", "X-Forwarded-For: 203.0.113.3").status == 200
        # A client cannot get a count of its own by what it writes to the left of its address.
        assert other.get("/", "X-Forwarded-For: 198.51.100.1, 203.0.113.1").status == 429
        # The proxy itself is nobody: its health checks are not counted against anyone.
        assert other.get("/").status == 200


# --- PROXY protocol ---

V1 = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 80\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(source: str, port: int, tlvs: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    ours = "2001:db8::1" if ":" in source else "192.0.2.1"
    body = socket.inet_pton(family, source) + socket.inet_pton(family, ours) + struct.pack("!HH", port, 443) + tlvs
    return SIGNATURE + bytes([0x21, 0x21 if ":" in source else 0x11]) + struct.pack("!H", len(body)) + body


TLS = b"\x20" + struct.pack("!H", 5) + b"\x01" + struct.pack("!I", 0)


def proxied(**settings: Any) -> Any:
    settings.setdefault("proxy_trusted", ["127.0.0.1"])
    return serving(app, bind="127.0.0.1:0?proxy_protocol", **settings)


@pytest.mark.parametrize(
    ("header", "address", "port", "scheme"),
    [
        pytest.param(V1, "203.0.113.9", "4711", "http", id="version 1"),
        pytest.param(b"PROXY TCP6 2001:db8::9 2001:db8::1 4711 80\r\n", "2001:db8::9", "4711", "http", id="and IPv6"),
        pytest.param(v2("203.0.113.9", 4711), "203.0.113.9", "4711", "http", id="version 2"),
        pytest.param(v2("2001:db8::9", 4711), "2001:db8::9", "4711", "http", id="version 2 and IPv6"),
        pytest.param(v2("203.0.113.9", 4711, TLS), "203.0.113.9", "4711", "https", id="a client that speaks TLS"),
    ],
)
@pytest.mark.parametrize("pieces", ["whole", "byte by byte", "with the request"])
def test_the_header_says_who_the_client_is(pieces: str, header: bytes, address: str, port: str, scheme: str) -> None:
    with proxied() as running, running.connect() as client:
        head = b"GET /path HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n"
        if pieces == "whole":
            client.send(header)
            client.send(head)
        elif pieces == "byte by byte":
            for byte in header + head:
                client.send(bytes([byte]))
        else:
            client.send(header + head)
        told = json.loads(client.response().body)
        assert (told["REMOTE_ADDR"], told["REMOTE_PORT"], told["wsgi.url_scheme"]) == (address, port, scheme)
        assert told["SERVER_PORT"] == ("443" if scheme == "https" else str(running.port))
        # The header holds for the connection, not for one request.
        assert asked(client)["REMOTE_ADDR"] == address
        assert {entry.client for entry in running.log.wait_for(2)} == {address}


def test_a_health_check_of_the_proxy_is_served() -> None:
    with proxied() as running, running.connect() as client:
        client.send(SIGNATURE + b"\x20\x00\x00\x00")
        assert asked(client)["REMOTE_ADDR"] == "127.0.0.1"


def test_without_the_header_nothing_is_served() -> None:
    with proxied() as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.receive_all() == b""


def test_who_is_not_trusted_is_told_so() -> None:
    with proxied(proxy_trusted=["127.0.0.2"]) as running, running.connect() as client:
        client.send(V1)
        assert client.response().status == 403


def test_the_header_has_the_time_of_a_head() -> None:
    with proxied(timeouts_header="0.3s") as running, running.connect() as client:
        client.send(V1[:10])
        assert client.receive_all() == b""


def test_connections_are_counted_for_the_client_that_the_header_names() -> None:
    with proxied(limits_client_connections=1) as running, running.connect() as one, running.connect() as two:
        one.send(V1)
        assert asked(one)["REMOTE_ADDR"] == "203.0.113.9"
        two.send(v2("203.0.113.9", 4712))
        assert two.response().status == 429
        with running.connect() as three:
            three.send(v2("203.0.113.10", 4712))
            assert asked(three)["REMOTE_ADDR"] == "203.0.113.10"


def test_a_proxy_behind_that_header_is_walked_past_if_it_is_trusted() -> None:
    with proxied(proxy_trusted=["127.0.0.1", "203.0.113.9"]) as running, running.connect() as client:
        client.send(V1)
        assert asked(client, "X-Forwarded-For: 198.51.100.7")["REMOTE_ADDR"] == "198.51.100.7"
