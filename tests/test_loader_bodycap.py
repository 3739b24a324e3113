"""A Flask app without a MAX_CONTENT_LENGTH has that of the route; whatever an app says itself is left alone."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import flask
import pytest
from flask import Flask, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import EnvironBuilder, run_wsgi_app

from hardserve.loader.bodycap import MAX_BODY, CappedByRoute, give_body_cap
from tests.support import serving

CAN_BE_SET = hasattr(flask.wrappers.Request.max_content_length, "__set__") and (
    flask.wrappers.Request.max_content_length.fset is not None  # type: ignore[attr-defined]  # since Flask 3.1
)


def make_app(name: str = "app") -> Flask:
    app = Flask(name)

    @app.route("/cap", methods=["GET", "POST"])
    @app.route("/small", methods=["POST"], endpoint="small")
    def cap() -> str:
        return str(request.max_content_length)

    @app.post("/body")
    def body() -> str:
        return str(len(request.get_data()))

    @app.post("/form")
    def form() -> str:
        return f"{len(request.form)} {len(request.files)}"

    return app


def ask(app: Callable[..., Any], path: str = "/cap", *, cap: int | None = 1000, data: bytes = b"x") -> str:
    """Call `app` as the server does, with the cap in its environ unless it is None."""
    environ = EnvironBuilder(path=path, method="POST", data=data).get_environ()
    environ["wsgi.input_terminated"] = True
    if cap is not None:
        environ[MAX_BODY] = cap
    blocks, status, _ = run_wsgi_app(app, environ)
    return f"{status.split()[0]} {b''.join(blocks).decode()}" if status[:3] == "200" else status[:3]


def test_an_app_that_says_nothing_has_the_cap_of_the_request() -> None:
    app = make_app()
    give_body_cap(app)
    assert [ask(app, cap=5), ask(app, cap=7)] == ["200 5", "200 7"]


def test_elsewhere_than_here_the_app_is_as_it_was() -> None:
    app = make_app()
    give_body_cap(app)
    assert ask(app, cap=None) == "200 None"
    assert app.test_client().post("/cap").text == "None"
    assert app.test_client().post("/body", data=b"x" * 9).text == "9"


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_configuration_of_the_app_counts(when: str) -> None:
    app = make_app()
    if when == "before":
        app.config["MAX_CONTENT_LENGTH"] = 42
    give_body_cap(app)
    app.config["MAX_CONTENT_LENGTH"] = 42
    assert ask(app) == "200 42"
    assert issubclass(app.request_class, CappedByRoute) == (when == "after")


class WithValue(flask.Request):
    max_content_length = 42  # type: ignore[assignment]


class WithoutValue(flask.Request):
    max_content_length = None  # type: ignore[assignment]


class WithProperty(flask.Request):
    @property
    def max_content_length(self) -> int | None:
        return 43


@pytest.mark.parametrize(
    ("request_class", "answer"),
    [
        pytest.param(WithValue, "200 42", id="a value in the class"),
        pytest.param(WithoutValue, "200 1000", id="none in the class, which says nothing"),
        pytest.param(WithProperty, "200 43", id="a property of the class"),
    ],
)
def test_a_request_class_of_the_app_counts(request_class: type[flask.Request], answer: str) -> None:
    app = make_app()
    app.request_class = request_class
    give_body_cap(app)
    assert ask(app) == answer


def test_the_class_of_requests_stays_what_it_was_to_the_app() -> None:
    app = make_app()
    app.request_class = WithValue
    give_body_cap(app)
    assert issubclass(app.request_class, WithValue)
    assert app.request_class.__name__ == "WithValue"
    assert app.request_class.__module__ == __name__
    assert Flask.request_class is flask.Request  # nobody else's


def sets_cap(app: Flask, value: int | None) -> None:
    @app.before_request
    def set_cap() -> None:
        request.max_content_length = value


@pytest.mark.skipif(not CAN_BE_SET, reason="since Flask 3.1")
@pytest.mark.parametrize(("value", "answer"), [(2000, "200 2000"), (3, "200 3"), (None, "200 1000")])
def test_what_is_set_for_one_request_counts(value: int | None, answer: str) -> None:
    app = make_app()
    give_body_cap(app)
    sets_cap(app, value)
    assert ask(app) == answer


def test_what_is_set_for_one_request_counts_also_where_the_class_has_a_value() -> None:
    app = make_app()
    app.request_class = WithValue
    give_body_cap(app)
    sets_cap(app, 44)
    assert ask(app) == "200 44"


def test_what_could_not_be_set_before_still_cannot() -> None:
    app = make_app()
    app.request_class = WithProperty
    give_body_cap(app)
    sets_cap(app, 44)
    assert ask(app) == "500"


def middleware(app: Callable[..., Any]) -> Callable[..., Any]:
    def call(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    return call


def test_middleware_in_the_app_and_around_it_changes_nothing() -> None:
    app = make_app()
    app.wsgi_app = middleware(app.wsgi_app)  # type: ignore[method-assign]
    wrapped = middleware(app)
    give_body_cap(wrapped)
    assert [ask(app), ask(wrapped)] == ["200 1000", "200 1000"]


def test_each_of_several_apps_behind_one_has_it() -> None:
    both = DispatcherMiddleware(make_app("a"), {"/b": make_app("b")})
    give_body_cap(both)
    assert [ask(both), ask(both, "/b/cap")] == ["200 1000", "200 1000"]


def test_served_twice_it_is_given_once() -> None:
    app = make_app()
    give_body_cap(app)
    once = app.request_class
    give_body_cap(app)
    assert app.request_class is once


@pytest.mark.parametrize(
    "app", [lambda environ, start_response: [], object(), None], ids=["a function", "no app", "none"]
)
def test_what_is_no_flask_app_is_left_alone(app: object) -> None:
    give_body_cap(app)


@pytest.mark.parametrize(
    ("size", "answer"), [(999, "200 999"), (1000, "200 1000"), (1001, "413")], ids=["below", "exactly", "above"]
)
def test_werkzeug_reads_as_much_as_the_cap(size: int, answer: str) -> None:
    app = make_app()
    give_body_cap(app)
    assert ask(app, "/body", data=b"x" * size) == answer


# Over a socket


BOUNDARY = "Content-Type: multipart/form-data; boundary=b"
FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\nx\r\n'
MIB = 1 << 20


@pytest.mark.parametrize(
    ("body", "status"),
    [
        # CVE-2023-25577: each part cost memory and time, and there was no limit to their number.
        pytest.param(FIELD * (4 * MIB // len(FIELD)), 413, id="a hundred thousand fields"),
        pytest.param(FILE * (4 * MIB // len(FILE)), 413, id="as many files"),
        # CVE-2024-49767: a form could take more memory than its limit.
        pytest.param(FIELD[:-3] + b"x" * (4 * MIB) + b"\r\n--b--\r\n", 413, id="one large field"),
        pytest.param(b"--b\r\nX: " + b"x" * (4 * MIB), 413, id="a header of a part that does not end"),
        # What Werkzeug once searched again at each read (CVE-2023-46136): now it is a file of line ends.
        pytest.param(FILE[:-3] + b"\r" * (4 * MIB) + b"\r\n--b--\r\n", 200, id="a file of nothing but line ends"),
    ],
)
# Werkzeug does not close the files of a form that it gives up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_form_that_is_made_to_cost_much_costs_little(body: bytes, status: int) -> None:
    app = make_app()
    give_body_cap(app)
    with serving(app) as server, server.connect() as client:
        # What is loaded for the first form is not counted.
        assert client.get("/form", BOUNDARY, method="POST", body=FILE + b"--b--\r\n").body == b"0 1"
        tracemalloc.start()
        try:
            client.send(f"POST /form HTTP/1.1\r\nHost: a\r\n{BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            client.send(body)
            answer = client.response()
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    gc.collect()
    assert answer.status == status
    assert peak < 3 * MIB
