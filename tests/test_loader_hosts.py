"""What an app says of its own names is held to, wherever it says so."""

from __future__ import annotations

from typing import Any

import flask
import pytest
from flask import Flask

from hardserve.loader.bodycap import give_body_cap
from hardserve.loader.hosts import hosts_of
from tests.support import serving


def make_app(trusted: object, **config: Any) -> Flask:
    """Return an app whose requests have these `trusted_hosts`."""
    app = Flask("named")
    app.config.update(config)
    app.request_class = type("Request", (flask.Request,), {"trusted_hosts": trusted})
    return app


@pytest.mark.parametrize(
    ("trusted", "config", "hosts", "source"),
    [
        pytest.param(["a.example", ".B.example:80"], {}, ["a.example", ".b.example"], "class", id="a list"),
        pytest.param(("a.example",), {}, ["a.example"], "class", id="a tuple"),
        pytest.param("a.example", {}, ["a.example"], "class", id="one text, which Werkzeug takes, too"),
        pytest.param(["a.example"], {"SERVER_NAME": "b.example"}, ["a.example"], "class", id="more than SERVER_NAME"),
        pytest.param(["a.example"], {"TRUSTED_HOSTS": ["b.example"]}, ["b.example"], "TRUSTED_HOSTS", id="not more"),
        pytest.param(["a.example"], {"TRUSTED_HOSTS": []}, [], "", id="than TRUSTED_HOSTS, with none in it either"),
        pytest.param(None, {"TRUSTED_HOSTS": "b.example"}, ["b.example"], "TRUSTED_HOSTS", id="one text there"),
        pytest.param(None, {}, [], "", id="nothing"),
        pytest.param([], {"SERVER_NAME": "b.example"}, ["b.example"], "SERVER_NAME", id="an empty list"),
        pytest.param(property(lambda request: ["a.example"]), {}, [], "", id="what only a request has"),
    ],
)
@pytest.mark.parametrize("capped", [False, True], ids=["plain", "in a server"])
def test_hosts_that_requests_are_held_to(
    trusted: object, config: dict[str, Any], hosts: list[str], source: str, capped: bool
) -> None:
    app = make_app(trusted, **config)
    if capped:
        give_body_cap(app)
    assert hosts_of(app) == (hosts or (), "request_class.trusted_hosts" if source == "class" else source)


def test_the_server_holds_requests_to_them() -> None:
    app = make_app(["shop.example"])
    app.add_url_rule("/", view_func=lambda: "hello")
    with serving(app) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
        assert client.response().status == 200
        client.send(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")
        assert client.response().status == 421
