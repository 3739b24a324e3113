"""Static folders are found where Flask serves them, and left to the app where its code may have a say."""

from __future__ import annotations

import contextvars
import functools
import types
from abc import ABC
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import dash
import flask
import httpbin
import pytest
import werkzeug
from flask import Blueprint, Flask, abort, url_for
from flask.ctx import _AppCtxGlobals
from flask.sessions import SecureCookieSessionInterface, SessionInterface
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter, Map

from hardserve.loader import statics
from hardserve.loader.bodycap import give_body_cap
from hardserve.loader.statics import AppFolder, AppStatic, all_folders, static_directories, static_folders

FILE = "deep/a file.css"


def folder(path: Path) -> str:
    """Make a static folder with a file in it that says where it is."""
    (path / "deep").mkdir(parents=True)
    (path / FILE).write_text(str(path))
    return str(path)


def make_app(tmp_path: Path, cls: type[Flask] = Flask, **options: Any) -> Flask:
    return cls("shop", root_path=str(tmp_path), **{"static_folder": folder(tmp_path / "static"), **options})


def make_blueprint(tmp_path: Path, name: str, **options: Any) -> Blueprint:
    return Blueprint(name, "shop", static_folder=folder(tmp_path / name / "static"), **options)


def urls(app: object, *, always: bool = False) -> list[str]:
    return [found.url for found in static_folders(app, always=always)[0]]


def assert_same_as_in_the_app(app: Flask, found: AppStatic) -> None:
    """What the app answers where `url_for` says is the file that the mount would send."""
    with app.test_request_context():
        url = url_for(found.endpoint, filename=FILE)
        path = unquote(urlsplit(url).path)
    assert path == f"{found.url.rstrip('/')}/{FILE}"
    with app.test_client().get(url) as answer:
        assert answer.status_code == 200
        assert answer.data == Path(found.directory, FILE).read_bytes()
        assert answer.cache_control.max_age == found.max_age


def assert_left(app: object, *words: str, always: bool) -> str:
    """Nothing is served, and one sentence says so; `always` says whether it would be then. Returns the sentence."""
    found, sentences = static_folders(app)
    assert found == []
    assert len(sentences) == 1
    for word in (*words, "left to the app"):
        assert word in sentences[0]
    assert (static_folders(app, always=True)[0] != []) == always
    assert ('files.auto = "always"' in sentences[0]) == always
    return sentences[0]


# Where they are


def test_the_folder_of_the_app(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    assert static_folders(app) == ([AppStatic("/static", str(tmp_path / "static"), None, "static")], [])
    assert_same_as_in_the_app(app, static_folders(app)[0][0])


@pytest.mark.parametrize(
    ("options", "url"),
    [
        pytest.param({"static_url_path": "/assets"}, "/assets", id="another path"),
        pytest.param({"static_url_path": "/a/b/c/"}, "/a/b/c", id="a deeper one, with a slash at its end"),
        pytest.param({"static_url_path": "/a//b"}, "/a/b", id="two slashes, which Werkzeug joins"),
        pytest.param({"static_url_path": "/stätic"}, "/stätic", id="not ASCII"),
        pytest.param({"static_url_path": "/a b%20"}, "/a b%20", id="a space and a percent sign"),
        pytest.param({"static_url_path": ""}, "/", id="all of an app that has nothing else"),
        pytest.param({"static_folder": "static"}, "/static", id="a folder relative to the app"),
        pytest.param({"static_folder": Path("static")}, "/static", id="a path"),
    ],
)
def test_the_url_is_that_of_url_for(tmp_path: Path, options: dict[str, Any], url: str) -> None:
    folder(tmp_path / "static")
    app = Flask("shop", root_path=str(tmp_path), **options)
    (found,), sentences = static_folders(app)
    assert (found.url, found.directory, sentences) == (url, str(tmp_path / "static"), [])
    assert_same_as_in_the_app(app, found)


def test_the_folders_of_blueprints(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    outer = make_blueprint(tmp_path, "outer", url_prefix="/outer")
    inner = make_blueprint(tmp_path, "inner", url_prefix="/inner", static_url_path="/files")
    outer.register_blueprint(inner)
    outer.register_blueprint(inner, name="again", url_prefix="/again")
    app.register_blueprint(outer)
    app.register_blueprint(outer, name="second", url_prefix="/second/")
    app.register_blueprint(make_blueprint(tmp_path, "bare", static_url_path="/bare"))
    app.register_blueprint(Blueprint("without", "shop", url_prefix="/without"))
    found, sentences = static_folders(app)
    assert sentences == []
    assert {one.endpoint: one.url for one in found} == {
        "static": "/static",
        "outer.static": "/outer/static",
        "outer.inner.static": "/outer/inner/files",
        "outer.again.static": "/outer/again/files",
        "second.static": "/second/static",
        "second.inner.static": "/second/inner/files",
        "second.again.static": "/second/again/files",
        "bare.static": "/bare",
    }
    for one in found:
        assert_same_as_in_the_app(app, one)


def test_a_folder_with_two_urls_has_both(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.add_url_rule("/old/<path:filename>", endpoint="static")
    assert urls(app) == ["/static", "/old"]


def test_a_folder_that_is_set_later_by_the_manner_of_flask(tmp_path: Path) -> None:
    app = Flask("shop", root_path=str(tmp_path), static_folder=None)
    app.static_folder = folder(tmp_path / "later")
    app.add_url_rule("/later/<path:filename>", endpoint="static", view_func=app.send_static_file)
    (found,), _ = static_folders(app)
    assert found.url == "/later"
    assert_same_as_in_the_app(app, found)


def test_a_rule_for_one_file_of_the_folder_is_a_page(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.add_url_rule("/favicon.ico", endpoint="static", defaults={"filename": "favicon.ico"})
    found, sentences = static_folders(app)
    assert ([one.url for one in found], sentences) == (["/static"], [])


@pytest.mark.parametrize(
    "app",
    [
        Flask("nothing", static_folder=None),
        Flask("missing", static_folder="/nowhere/at/all"),
        Flask("tests", root_path="/nowhere"),
        lambda environ, start_response: [],
        object(),
        None,
    ],
    ids=["no folder", "a folder that is not there", "the default, not there", "no Flask app", "no app", "none"],
)
def test_where_there_is_nothing_nothing_is_said(app: object) -> None:
    assert static_folders(app) == ([], [])


def test_a_view_named_static_without_a_folder_of_flask_is_a_view(tmp_path: Path) -> None:
    app = Flask("shop", static_folder=None)
    app.add_url_rule("/static/<path:filename>", endpoint="static", view_func=lambda filename: filename)
    assert static_folders(app) == ([], [])


def test_a_link_to_a_folder_is_kept_as_it_is_written(tmp_path: Path) -> None:
    """A deploy points it somewhere else while we run."""
    folder(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    app = Flask("shop", root_path=str(tmp_path), static_folder="current")
    assert static_folders(app)[0][0].directory == str(tmp_path / "current")


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), (0, 0), (3600, 3600), (timedelta(hours=2), 7200), (timedelta(seconds=1.5), 1)]
)
def test_how_long_files_may_be_kept(tmp_path: Path, value: object, seconds: int | None) -> None:
    app = make_app(tmp_path)
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/bp"))
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = value
    found, _ = static_folders(app)
    assert [one.max_age for one in found] == [seconds, seconds]
    for one in found:
        assert_same_as_in_the_app(app, one)


@pytest.mark.parametrize("value", ["3600", -1, float("inf"), object()], ids=["a string", "negative", "ever", "odd"])
def test_a_max_age_that_is_no_number_of_seconds(tmp_path: Path, value: object) -> None:
    app = make_app(tmp_path)
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = value
    assert_left(app, "SEND_FILE_MAX_AGE_DEFAULT", always=True)
    assert static_folders(app, always=True)[0][0].max_age is None


# Where other rules are


def two_with_one_url(app: Flask, tmp_path: Path) -> None:
    app.register_blueprint(make_blueprint(tmp_path, "first", url_prefix="/x"))
    app.register_blueprint(make_blueprint(tmp_path, "second", url_prefix="/x"))


def test_of_two_folders_with_one_url_the_one_that_the_app_serves(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    two_with_one_url(app, tmp_path)
    app.register_blueprint(make_blueprint(tmp_path, "without_prefix"))
    found, sentences = static_folders(app)
    assert [one.endpoint for one in found] == ["static", "first.static"]
    for one in found:
        assert_same_as_in_the_app(app, one)
    assert len(sentences) == 2
    assert "blueprint second" in sentences[0]
    assert '"first.static" (/x/static/<path:filename>) answers in its place' in sentences[0]
    assert "url_prefix" in sentences[0]
    assert "blueprint without_prefix" in sentences[1]


@pytest.mark.parametrize(
    "rule",
    [
        "/static/config.js",
        "/static/<name>",
        "/static/<int:number>.js",
        "/static/<x>/special",
        "/static/<path:x>/edit",
        "/static/",
        "/static//deep/x",
    ],
)
@pytest.mark.parametrize("methods", [["GET"], ["POST"]])
def test_a_view_below_the_folder_goes_on_winning(tmp_path: Path, rule: str, methods: list[str]) -> None:
    app = make_app(tmp_path)
    app.add_url_rule(rule, "other", lambda **values: "view", methods=methods)
    assert rule in assert_left(app, "app_paths", "[[static]]", always=False)


def test_another_method_for_the_same_paths_is_a_view_too(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.add_url_rule("/static/<path:name>", "upload", lambda name: "stored", methods=["PUT"])
    assert_left(app, "/static/<path:name>", always=False)


def test_a_rule_for_the_same_paths_that_came_first_has_them(tmp_path: Path) -> None:
    app = Flask("shop", root_path=str(tmp_path), static_folder=None)
    app.add_url_rule("/x/static/<path:name>", "mine", lambda name: "mine")
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/x"))
    assert '"mine"' in assert_left(app, always=False)


class Anything(BaseConverter):
    regex = ".*?"
    part_isolating = False
    weight = -1000


@pytest.mark.parametrize(
    "rule",
    [
        "/<path:page>",
        "/<page>/<path:rest>",
        "/<anything:page>",
        "/static",
        "/statics/<x>",
        "/stat<x>/<y>",
        "/",
        "/sw.js",
    ],
)
def test_what_werkzeug_asks_only_after_the_folder_is_not_in_the_way(tmp_path: Path, rule: str) -> None:
    app = make_app(tmp_path)
    app.url_map.converters["anything"] = Anything
    app.add_url_rule(rule, "other", lambda **values: "view")
    (found,), sentences = static_folders(app)
    assert sentences == []
    assert_same_as_in_the_app(app, found)


def test_a_folder_below_a_folder_is_not_in_the_way(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.register_blueprint(make_blueprint(tmp_path, "bp", static_url_path="/static/bp"))
    found, sentences = static_folders(app)
    assert ([one.url for one in found], sentences) == (["/static", "/static/bp"], [])
    for one in found:
        assert_same_as_in_the_app(app, one)


def test_unless_the_one_below_is_left_to_the_app(tmp_path: Path) -> None:
    """/static/bp/x is the guarded one's, also where the folder above has a file bp/x."""
    app = make_app(tmp_path)
    blueprint = make_blueprint(tmp_path, "bp", static_url_path="/static/bp")
    blueprint.before_request(require_login)
    app.register_blueprint(blueprint)
    found, sentences = static_folders(app)
    assert found == []
    assert any("require_login" in sentence and "/static/bp (" in sentence for sentence in sentences)
    assert any("app_paths" in sentence and "/static (" in sentence for sentence in sentences)
    assert urls(app, always=True) == ["/static", "/static/bp"]


def test_a_folder_for_the_whole_app_is_left_to_it_where_it_has_views(tmp_path: Path) -> None:
    """Views win over files there, in Flask; a [[static]] can say the same with app_paths."""
    app = make_app(tmp_path, static_url_path="")
    app.add_url_rule("/", "index", lambda: "index")
    app.add_url_rule("/api/<path:what>", "api", lambda what: what)
    assert_left(app, "/ and /api/<path:what>", "app_paths", always=False)


def test_many_rules_in_the_way_are_not_all_named(tmp_path: Path) -> None:
    app = make_app(tmp_path, static_url_path="")
    for number in range(20):
        app.add_url_rule(f"/page{number}", str(number), lambda: "page")
    assert "/page0, /page1, /page2 and 17 more" in assert_left(app, always=False)


def with_language(app: Flask, tmp_path: Path) -> None:
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/<lang>"))


def with_defaults(app: Flask, tmp_path: Path) -> None:
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/x"), url_defaults={"lang": "de"})


def with_another_converter(app: Flask, tmp_path: Path) -> None:
    app.url_map.converters["path"] = Anything
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/x"))


def with_subdomain(app: Flask, tmp_path: Path) -> None:
    app.register_blueprint(make_blueprint(tmp_path, "bp", subdomain="cdn", url_prefix="/x"))


def with_subdomains(app: Flask, tmp_path: Path) -> None:
    app.subdomain_matching = True
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/x"))


@pytest.mark.parametrize(
    "change", [with_language, with_defaults, with_another_converter, with_subdomain, with_subdomains]
)
def test_a_rule_that_is_more_than_a_path(tmp_path: Path, change: Callable[[Flask, Path], None]) -> None:
    app = Flask("shop", root_path=str(tmp_path), static_folder=None)
    change(app, tmp_path)
    assert_left(app, "blueprint bp", "[[static]]", always=False)


def test_an_app_that_tells_hosts_apart(tmp_path: Path) -> None:
    app = make_app(tmp_path, host_matching=True, static_host="cdn.example")
    assert_left(app, "hosts", always=False)


# Where the app's code has a say


def require_login() -> None:
    abort(403)


def pull(endpoint: str | None, values: dict[str, Any] | None) -> None:
    abort(404)


def add_header(response: flask.Response) -> flask.Response:
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response


def in_app(app: Flask, outer: Blueprint, inner: Blueprint, hook: str, function: Any) -> None:
    getattr(app, hook)(function)


def in_app_by_blueprint(app: Flask, outer: Blueprint, inner: Blueprint, hook: str, function: Any) -> None:
    getattr(inner, hook.replace("request", "app_request").replace("url_", "app_url_"))(function)


def in_outer(app: Flask, outer: Blueprint, inner: Blueprint, hook: str, function: Any) -> None:
    getattr(outer, hook)(function)


def in_inner(app: Flask, outer: Blueprint, inner: Blueprint, hook: str, function: Any) -> None:
    getattr(inner, hook)(function)


@pytest.mark.parametrize(
    ("where", "served"),
    [
        pytest.param(in_app, [], id="of the app"),
        pytest.param(in_app_by_blueprint, [], id="of the app, from a blueprint"),
        pytest.param(in_outer, ["/static"], id="of a blueprint, for those in it too"),
        pytest.param(in_inner, ["/static", "/outer/static"], id="of a blueprint in another"),
    ],
)
@pytest.mark.parametrize(
    ("hook", "function", "words"),
    [
        pytest.param("before_request", require_login, "before_request function", id="before_request"),
        pytest.param("url_value_preprocessor", pull, "url_value_preprocessor", id="url_value_preprocessor"),
        pytest.param("after_request", add_header, "after_request function", id="after_request"),
    ],
)
def test_hooks_leave_a_folder_to_the_app(
    tmp_path: Path, where: Callable[..., None], served: list[str], hook: str, function: Any, words: str
) -> None:
    app = make_app(tmp_path)
    outer = make_blueprint(tmp_path, "outer", url_prefix="/outer")
    inner = make_blueprint(tmp_path, "inner", url_prefix="/inner")
    where(app, outer, inner, hook, function)
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    found, sentences = static_folders(app)
    assert [one.url for one in found] == served
    assert len(sentences) == 1  # for all of them
    assert f"{words} {__name__}.{function.__name__} would not be called" in sentences[0]
    assert 'files.auto = "always"' in sentences[0]
    assert static_folders(app, always=True)[1] == []
    assert urls(app, always=True) == ["/static", "/outer/static", "/outer/inner/static"]


def test_hooks_that_answer_nothing_change_nothing(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.teardown_request(lambda error: None)
    app.teardown_appcontext(lambda error: None)
    app.context_processor(dict)
    app.url_defaults(lambda endpoint, values: values.setdefault("v", "1"))
    app.register_error_handler(404, lambda error: ("none", 404))
    assert urls(app) == ["/static"]


def from_module(module: str, qualname: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as if it had been written in `module`."""
    made = types.FunctionType(function.__code__, {"__name__": module, "__builtins__": __builtins__})
    made.__qualname__ = qualname
    return made


def test_a_hook_is_known_by_where_it_was_written(tmp_path: Path) -> None:
    known = from_module("flask_login.login_manager", "LoginManager._update_remember_cookie", lambda response: response)
    app = make_app(tmp_path)
    app.after_request(known)
    assert urls(app) == ["/static"]

    @functools.wraps(known)
    def around(response: flask.Response) -> flask.Response:
        return add_header(response)

    app.after_request(around)
    assert urls(app) == []


def test_a_known_hook_is_one_for_each_extension_and_no_more() -> None:
    assert {module.partition(".")[0] for module, _ in statics._HARMLESS} == {
        "dash",
        "flask_login",
        "flask_wtf",
        "flask_compress",
        "flask_session",
        "sentry_sdk",
    }


# Classes that Flask is told to use, and signals


def refuses(app: Flask) -> bool:
    """Tell whether the app does not answer with the file."""

    def ask() -> bool:
        try:
            with app.test_client().get(f"/static/{FILE}") as answer:
                return answer.status_code != 200
        except (HTTPException, LookupError):  # before Flask would catch it
            return True

    return contextvars.copy_context().run(ask)  # Flask may not come to take back what it has pushed


def refuse(*args: Any, response: flask.Response | None = None, **kwargs: Any) -> Any:
    if response is not None:
        response.close()
    abort(403)


class RefusingRequest(flask.Request):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse()


class RequestOfFewHosts(flask.Request):
    trusted_hosts = ["shop.example"]  # noqa: RUF012


class RefusingResponse(flask.Response):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.status_code = 403


class RefusingSessions(SecureCookieSessionInterface):
    def open_session(self, app: Flask, request: flask.Request) -> Any:
        refuse()


class RefusingGlobals(_AppCtxGlobals):
    def __init__(self) -> None:
        refuse()


class RefusingMap(Map):
    def bind_to_environ(self, *args: Any, **kwargs: Any) -> Any:
        refuse()


CLASSES = {
    "request_class": RefusingRequest,
    "response_class": RefusingResponse,
    "session_interface": RefusingSessions(),
    "app_ctx_globals_class": RefusingGlobals,
}


@pytest.mark.parametrize("by_subclass", [False, True], ids=["set on the app", "of a subclass"])
@pytest.mark.parametrize("attribute", list(CLASSES))
def test_a_class_of_the_apps_own_leaves_the_folder_to_it(tmp_path: Path, attribute: str, by_subclass: bool) -> None:
    value: Any = CLASSES[attribute]
    app = make_app(tmp_path, type("Shop", (Flask,), {attribute: value}) if by_subclass else Flask)
    if not by_subclass:
        setattr(app, attribute, value)
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    assert refuses(app)
    assert_left(app, f"{attribute}, {__name__}.{name},", "would not be used", always=True)
    give_body_cap(app)
    assert_left(app, f"{attribute}, {__name__}.{name},", always=True)


def test_a_map_of_the_apps_own_may_route_by_anything(tmp_path: Path) -> None:
    app = make_app(tmp_path, type("Shop", (Flask,), {"url_map_class": RefusingMap}))
    assert refuses(app)
    assert_left(app, f"url_map, {__name__}.RefusingMap,", "route by more than the path", always=False)


@pytest.mark.parametrize(
    ("attribute", "method"), [("url_map", "bind_to_environ"), ("session_interface", "open_session")]
)
def test_a_method_that_is_set_on_what_flask_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, method: str
) -> None:
    app = make_app(tmp_path)
    monkeypatch.setattr(getattr(app, attribute), method, refuse)
    assert refuses(app)
    assert_left(app, attribute, method, always=attribute != "url_map")


def test_a_method_that_is_patched_in_what_flask_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(tmp_path)
    original = werkzeug.Request.__init__

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> None:
        refuse()

    monkeypatch.setattr(werkzeug.Request, "__init__", patched)
    assert refuses(app)
    assert_left(app, "request_class, werkzeug.wrappers.request.Request.__init__,", always=True)


def test_hosts_that_requests_are_held_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(tmp_path)
    monkeypatch.setattr(app.request_class, "trusted_hosts", ["shop.example"])
    assert refuses(app)
    assert_left(app, "flask.wrappers.Request has trusted_hosts", always=True)
    give_body_cap(app)
    assert_left(app, "trusted_hosts", always=True)
    app.config["TRUSTED_HOSTS"] = ["localhost"]  # counts more, and the server knows of it
    assert not refuses(app)
    assert urls(app) == ["/static"]


def test_what_the_server_puts_before_a_request_class_is_seen_through(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    give_body_cap(app)
    assert app.request_class is not flask.Request
    assert urls(app) == ["/static"]

    class Below(app.request_class):  # type: ignore[name-defined, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            refuse()

    app.request_class = Below
    assert refuses(app)
    assert_left(app, "Below", always=True)


def test_a_session_interface_that_is_known(tmp_path: Path) -> None:
    """Flask-Session's are, and a class that is made of one is not."""
    base = type("ServerSideSessionInterface", (SessionInterface, ABC), {"__module__": "flask_session.base"})
    known = type("RedisSessionInterface", (base,), {"__module__": "flask_session.redis.redis"})
    app = make_app(tmp_path)
    app.session_interface = known()
    assert urls(app) == ["/static"]
    app.session_interface = type("Own", (known,), {"__module__": __name__})()
    assert_left(app, f"{__name__}.Own", always=True)


SIGNALS = {
    "appcontext_pushed": "may be access control",
    "request_started": "may be access control",
    "request_finished": "would not see the responses",
}


@pytest.mark.parametrize("of_all", [False, True], ids=["of this app", "of any app"])
@pytest.mark.parametrize("name", list(SIGNALS))
def test_a_receiver_of_a_signal_leaves_the_folder_to_the_app(tmp_path: Path, name: str, of_all: bool) -> None:
    app = make_app(tmp_path)
    signal: Any = getattr(flask, name)
    with signal.connected_to(refuse, *([] if of_all else [app])):
        assert refuses(app)
        assert_left(app, f"{name} receiver {__name__}.refuse would not be called", SIGNALS[name], always=True)
    assert urls(app) == ["/static"]


def test_a_receiver_of_another_app_is_none_of_this_one(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    other = Flask("other")
    with flask.request_started.connected_to(refuse, other):
        assert urls(app) == ["/static"]
        assert not refuses(app)


@pytest.mark.parametrize(
    "name", ["got_request_exception", "request_tearing_down", "appcontext_tearing_down", "appcontext_popped"]
)
def test_a_receiver_that_a_file_does_not_meet_before_its_answer(tmp_path: Path, name: str) -> None:
    app = make_app(tmp_path)
    with getattr(flask, name).connected_to(lambda sender, **more: None, app):
        assert urls(app) == ["/static"]


def test_sentry_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes around Flask's __call__, which is looked at behind it."""

    def patch(inner: Any) -> None:
        def call(self: Flask, environ: Any, start_response: Any) -> Any:
            return inner(self, environ, start_response)

        name = "FlaskIntegration.setup_once.<locals>.sentry_patched_wsgi_app"
        made = types.FunctionType(
            call.__code__, {"__name__": "sentry_sdk.integrations.flask"}, closure=call.__closure__
        )
        made.__qualname__ = name
        monkeypatch.setattr(Flask, "__call__", made)

    original = Flask.__call__
    app = make_app(tmp_path)
    started = from_module("sentry_sdk.integrations.flask", "_request_started", lambda sender, **more: None)
    with flask.request_started.connected_to(started):
        patch(original)
        assert urls(app) == ["/static"]
        assert not refuses(app)
        patch(middleware(original))
        assert_left(app, "__call__", always=True)


class SendsItself(Flask):
    def send_static_file(self, filename: str) -> flask.Response:
        abort(403)


class KeepsLonger(Flask):
    def get_send_file_max_age(self, filename: str | None) -> int | None:
        return 1 if filename else None


class Dispatches(Flask):
    def dispatch_request(self) -> Any:
        abort(403)


class SetsSync(Flask):
    def ensure_sync(self, func: Any) -> Any:
        return lambda **values: abort(403)


class HasContext(Flask):
    def app_context(self) -> Any:
        abort(403)


class FindsFolder(Flask):
    @property
    def static_folder(self) -> str | None:
        return super().static_folder

    @static_folder.setter
    def static_folder(self, value: Any) -> None:
        self._static_folder = value


class IsCalled(Flask):
    def __call__(self, environ: Any, start_response: Any) -> Any:
        return super().__call__(environ, start_response)


class HasWsgiApp(Flask):
    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        return super().wsgi_app(environ, start_response)


class Plain(Flask):
    name_of_the_shop = "shop"


@pytest.mark.parametrize(
    ("cls", "method"),
    [
        (SendsItself, "send_static_file"),
        (KeepsLonger, "get_send_file_max_age"),
        (Dispatches, "dispatch_request"),
        (SetsSync, "ensure_sync"),
        (HasContext, "app_context"),
        (FindsFolder, "static_folder"),
        (IsCalled, "__call__"),
        (HasWsgiApp, "wsgi_app"),
    ],
)
def test_a_subclass_that_does_it_itself(tmp_path: Path, cls: type[Flask], method: str) -> None:
    assert_left(make_app(tmp_path, cls), f"{__name__}.{cls.__name__}", method, always=True)


def test_any_other_subclass_is_flask(tmp_path: Path) -> None:
    assert urls(make_app(tmp_path, Plain)) == ["/static"]


def test_a_subclass_that_routes_itself_is_not_even_served_always(tmp_path: Path) -> None:
    class Routes(Flask):
        def create_url_adapter(self, request: Any) -> Any:
            return super().create_url_adapter(request)

    assert_left(make_app(tmp_path, Routes), "create_url_adapter", always=False)


def test_nor_one_that_is_told_to(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.create_url_adapter = refuse  # type: ignore[method-assign]
    assert refuses(app)
    assert_left(app, "create_url_adapter", always=False)


@pytest.mark.parametrize(
    "name",
    [
        "__call__",
        "wsgi_app",
        "request_context",
        "app_context",
        "full_dispatch_request",
        "preprocess_request",
        "dispatch_request",
        "ensure_sync",
        "make_response",
        "finalize_request",
        "process_response",
        "send_static_file",
    ],
)
def test_flask_itself_patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As tools do that watch an app: `functools.wraps` makes the method look like the one that it goes around."""
    original = getattr(Flask, name)

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(Flask, name, patched)
    assert_left(make_app(tmp_path), name, always=True)


def test_a_method_of_the_instance(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.send_static_file = lambda filename: abort(403)  # type: ignore[method-assign]
    assert_left(app, "send_static_file", always=True)


def test_a_blueprint_class_that_does_it_itself(tmp_path: Path) -> None:
    class Guarded(Blueprint):
        def send_static_file(self, filename: str) -> flask.Response:
            abort(403)

    app = Flask("shop", root_path=str(tmp_path), static_folder=None)
    app.register_blueprint(Guarded("bp", "shop", static_folder=folder(tmp_path / "bp"), url_prefix="/bp"))
    assert_left(app, "Guarded", "send_static_file", always=True)


def guarded(view: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(view)
    def call(**values: Any) -> Any:
        require_login()
        return view(**values)

    return call


@pytest.mark.parametrize(
    ("endpoint", "url"), [("static", "/static"), ("bp.static", "/bp/static")], ids=["the app's", "a blueprint's"]
)
def test_a_view_that_is_decorated_or_replaced(tmp_path: Path, endpoint: str, url: str) -> None:
    app = make_app(tmp_path)
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/bp"))
    app.view_functions[endpoint] = guarded(app.view_functions[endpoint])
    found, sentences = static_folders(app)
    assert url not in {one.url for one in found}
    assert len(found) == len(sentences) == 1
    assert app.test_client().get(f"{url}/{FILE}").status_code == 403
    assert url in urls(app, always=True)


def test_a_view_of_another_owner_is_no_view_of_this_one(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    blueprint = make_blueprint(tmp_path, "bp", url_prefix="/bp")
    app.register_blueprint(blueprint)
    app.view_functions["static"] = blueprint.send_static_file
    assert urls(app) == ["/bp/static"]


# What is around the app


def middleware(app: Callable[..., Any]) -> Callable[..., Any]:
    def call(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    return call


class Middleware:
    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)


class Prefixed(Middleware):
    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.prefix = "/shop"


class OwnProxyFix(ProxyFix):
    def __call__(self, environ: Any, start_response: Any) -> Any:
        return super().__call__(environ, start_response)


def test_proxy_fix_is_seen_through(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.wsgi_app = ProxyFix(ProxyFix(app.wsgi_app), x_prefix=1)  # type: ignore[method-assign]
    assert urls(ProxyFix(app)) == ["/static"]
    assert_same_as_in_the_app(app, static_folders(app)[0][0])


def test_a_wsgi_app_that_is_put_back_is_no_middleware(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.wsgi_app = app.wsgi_app  # type: ignore[method-assign]
    assert urls(app) == ["/static"]


@pytest.mark.parametrize("around", [middleware, Middleware, OwnProxyFix], ids=["function", "object", "like ProxyFix"])
@pytest.mark.parametrize("inside", [False, True], ids=["around the app", "around its wsgi_app"])
def test_middleware_leaves_the_folder_to_the_app(
    tmp_path: Path, around: Callable[[Any], Callable[..., Any]], inside: bool
) -> None:
    app = make_app(tmp_path)
    wrapped: Callable[..., Any] = app
    if inside:
        app.wsgi_app = ProxyFix(around(app.wsgi_app))  # type: ignore[method-assign]
    else:
        wrapped = ProxyFix(around(app))
    assert_left(wrapped, f"{__name__}.{around.__name__}", "may be access control", always=True)


def test_middleware_with_a_prefix_is_not_even_served_always(tmp_path: Path) -> None:
    assert_left(Prefixed(make_app(tmp_path)), "Prefixed", "[[static]]", always=False)


def test_a_dispatcher_changes_the_urls(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    assert_left(DispatcherMiddleware(Flask("other", static_folder=None), {"/shop": app}), "URLs", always=False)
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/metrics": middleware})  # type: ignore[method-assign]
    assert_left(app, "DispatcherMiddleware", always=False)


def test_middleware_that_hides_the_app_hides_its_folders(tmp_path: Path) -> None:
    apps = [make_app(tmp_path)]

    def call(environ: Any, start_response: Any) -> Any:
        return apps[0](environ, start_response)

    assert static_folders(call) == ([], [])


# Real apps


def make_dash(tmp_path: Path, **options: Any) -> Any:
    folder(tmp_path / "assets")
    return dash.Dash("shop", assets_folder=str(tmp_path / "assets"), **options)


@pytest.mark.parametrize(
    ("options", "url"),
    [({}, "/assets"), ({"url_base_pathname": "/board/"}, "/board/assets"), ({"assets_url_path": "files"}, "/files")],
    ids=["default", "below a prefix", "another name"],
)
def test_the_assets_of_dash(tmp_path: Path, options: dict[str, Any], url: str) -> None:
    """Dash has a before_request function, which is known to finish the app and nothing else."""
    app = make_dash(tmp_path, **options)
    app.layout = dash.html.Div()
    assert app.server.before_request_funcs[None]
    for served in (app, app.server):
        (found,), sentences = static_folders(served)
        assert (found.url, found.directory, sentences) == (url, str(tmp_path / "assets"), [])
        assert_same_as_in_the_app(app.server, found)


def test_the_assets_of_dash_behind_a_login(tmp_path: Path) -> None:
    app = make_dash(tmp_path)
    app.server.before_request(require_login)
    assert_left(app.server, "require_login", always=True)


def test_httpbin_keeps_its_own() -> None:
    """It has CORS headers added to every response."""
    found, sentences = static_folders(httpbin.app)
    assert found == []
    assert any("httpbin.core.before_request" in sentence for sentence in sentences)


# What holds for any


@given(st.lists(st.sampled_from(["static", "a", "ä ö", "x.y", "%41", "a+b"]), max_size=4), st.booleans())
def test_any_prefix_is_that_of_url_for(tmp_path_factory: pytest.TempPathFactory, names: list[str], slash: bool) -> None:
    app = make_app(tmp_path_factory.mktemp("app"), static_url_path="/" + "/".join(names) + "/" * slash)
    (found,), _ = static_folders(app)
    assert_same_as_in_the_app(app, found)


# What the operator is told, and what the server needs to know of folders that are left to the app


def test_the_sentence_has_the_flag_that_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(tmp_path / "a shop")
    app.before_request(require_login)
    directory = tmp_path / "a shop/static"
    assert f"have it served from here: --static '/static={directory}'; or all" in assert_left(app, always=True)
    monkeypatch.chdir(tmp_path)
    assert "--static '/static=a shop/static'; or all" in assert_left(app, always=True)
    monkeypatch.chdir(tmp_path / "a shop")
    assert "--static /static=static; or all" in assert_left(app, always=True)
    monkeypatch.chdir(directory)
    assert "--static /static=.; or all" in assert_left(app, always=True)


def test_the_sentence_on_two_folders_has_both_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app(tmp_path)
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/{x}"))
    app.before_request(require_login)
    assert "--static /static=static and --static '/{x}/static=bp/static'; or all" in assert_left(app, always=True)


def test_the_sentence_on_urls_that_are_not_known_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--static URL=static, with the URL" in assert_left(Prefixed(make_app(tmp_path)), always=False)


def test_of_what_the_operator_serves_nothing_is_said(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/bp"))
    app.before_request(require_login)
    found, sentences = static_folders(app, taken=["/static"])
    assert (found, len(sentences)) == ([], 1)
    assert "/static (" not in sentences[0].replace("/bp/static (", "")
    assert static_folders(app, taken=["/static", "/bp/static"]) == ([], [])


def test_what_the_operator_serves_is_not_served_twice_nor_in_the_way_of_others(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    blueprint = make_blueprint(tmp_path, "bp", static_url_path="/static/bp")
    blueprint.before_request(require_login)
    app.register_blueprint(blueprint)
    found, sentences = static_folders(app, taken=["/static/bp"])
    assert ([one.url for one in found], sentences) == (["/static"], [])
    app.add_url_rule("/static/bp/view", "view", lambda: "view")
    found, sentences = static_folders(app, taken=["/static/bp"])
    assert found == []
    assert len(sentences) == 1
    assert "/static/bp/view" in sentences[0]


def test_all_folders_are_there_whoever_serves_them(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    app.before_request(require_login)
    app.register_blueprint(make_blueprint(tmp_path, "bp", url_prefix="/<lang>/<int:number>"))
    app.register_blueprint(Blueprint("gone", "shop", static_folder=str(tmp_path / "gone"), url_prefix="/gone"))
    assert all_folders(Middleware(app)) == [
        AppFolder("/static", "/static/*", str(tmp_path / "static")),
        AppFolder("/<lang>/<int:number>/static", "/*/*/static/*", str(tmp_path / "bp/static")),
    ]
    assert static_directories(Middleware(app)) == [str(tmp_path / name) for name in ("static", "bp/static", "gone")]
    assert all_folders(object()) == []
    assert static_directories(object()) == []


def test_a_folder_without_a_url_is_a_directory_of_the_app_nevertheless(tmp_path: Path) -> None:
    app = Flask("shop", root_path=str(tmp_path), static_folder=None)
    assert static_directories(app) == []
    app.static_folder = "later/../other"
    assert static_directories(app) == [str(tmp_path / "other")]
