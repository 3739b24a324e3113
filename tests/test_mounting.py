"""What a server serves without its app: the operator's mounts, the app's own folders, and what is refused at start."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, send_file

from hardserve import demo
from hardserve.configfiles import SettingsError
from hardserve.loader import load_app
from hardserve.mounting import WAY_OUT, mounts_of
from hardserve.options import from_keywords
from tests.support import serving
from tests.test_cli import environment, hardserve

APP = """\
from flask import Flask
app = Flask(__name__)

@app.get("/")
def index():
    return "hello"
"""
KEY = b"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


def write(path: Path, content: str | bytes = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def source(project: Path) -> None:
    """The directory of the app itself is served."""


def source_below(project: Path) -> None:
    write(project / "wsgi.txt", "app.py")


def env_file(project: Path) -> None:
    write(project / "media" / ".env", "SECRET_KEY=x\n")


def database(project: Path) -> None:
    with sqlite3.connect(write(project / "media" / "shop.db", b"")) as connection:
        connection.execute("create table a (b)")
    connection.close()


def key(project: Path) -> None:
    write(project / "media" / "tls" / "server.key", KEY)


# --- the app's source ---

PACKAGE = {
    "shop/__init__.py": """\
from flask import Flask

from . import views
from .lib import prices


def create_app():
    return Flask(__name__)
""",
    "shop/views.py": "",
    "shop/lib/prices.py": "",
    "shop/jobs/nightly.py": "",
    "shop/admin/__init__.py": "",
    "shop/templates/index.html": "<h1>{{ title }}</h1>",
    "shop/templates/mails/hello.html": "Hello {{ name }}",
    "shop/static/site.css": "a {}",
    "shop/static/example.py": "print()",
    "shop/uploads/cat.jpg": "cat",
    "shop/front/dist/index.html": "<div id=root></div>",
    "instance/config.py": "SECRET_KEY = 'x'",
    "instance/uploads/report.pdf": "%PDF",
    "uploads/cat.jpg": "cat",
    "uploads/sent.py": "print()",
    "dist/index.html": "<div id=root></div>",
    "secrets/prod.env": "SECRET_KEY=x",
}
MODULE = {
    "app.py": APP + "import models\nimport tools.prices\n",
    "models.py": "",
    "tools/prices.py": "",
    "tools/nightly.py": "",
    "api/__init__.py": "",
    "templates/index.html": "<h1>{{ title }}</h1>",
    "static/site.css": "a {}",
    "static/example.py": "print()",
    "instance/config.py": "SECRET_KEY = 'x'",
    "uploads/cat.jpg": "cat",
    "uploads/sent.py": "print()",
    "dist/index.html": "<div id=root></div>",
}


def loaded(project: Path, files: dict[str, str], spec: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write an app, and load it as the command line does. Its modules are forgotten at the end of the test."""
    for name, content in files.items():
        write(project / name, content)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for name in ("shop", "shop.views", "shop.lib", "shop.lib.prices", "app", "models", "tools", "tools.prices"):
        # What was not there is taken out again.
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        del sys.modules[name]
    monkeypatch.chdir(project)
    return load_app(spec, directory=project, environ={}).app


def problems_of(app: Any, directory: str, **options: Any) -> list[str]:
    """Return what is said against a mount, [] if it is served."""
    try:
        mounts_of(app, from_keywords(static=[{"url": "/x", "directory": directory, **options}]))
    except SettingsError as error:
        return [problem.partition(": ")[2] for problem in error.problems if not problem.endswith(WAY_OUT)]
    return []


@pytest.mark.parametrize(
    ("directory", "what"),
    [
        ("shop", "is the folder that the app's own source is in"),
        (".", "is the folder that the app's own source is in"),
        ("shop/lib", "prices.py is the app's own source"),
        ("shop/jobs", "nightly.py is Python that lies where the app's own does"),
        ("shop/admin", "is a package of the app's, with its source"),
        ("shop/__pycache__", "is the app's own source, compiled"),
        ("shop/lib/__pycache__", "is the app's own source, compiled"),
        ("shop/views.py", "is the app's own source"),
        ("shop/templates", "is a folder of the app's templates"),
        ("shop/templates/mails", "hello.html is one of the app's templates"),
        ("instance", "is the app's instance folder"),
        ("secrets", "prod.env is a file of environment variables"),
    ],
)
@pytest.mark.parametrize("internal", ["off", "on"])
def test_the_source_of_a_package_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, what: str, internal: str
) -> None:
    app = loaded(tmp_path, PACKAGE, "shop:create_app()", monkeypatch)
    assert what in problems_of(app, directory, internal=internal)[0]


@pytest.mark.parametrize("directory", ["shop/static", "shop/uploads", "shop/front/dist", "instance/uploads", "uploads"])
def test_what_is_beside_the_source_of_a_package_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    app = loaded(tmp_path, PACKAGE, "shop:create_app()", monkeypatch)
    assert problems_of(app, directory) == []
    assert mounts_of(app, from_keywords()).urls == ["/static"]


@pytest.mark.parametrize(
    ("directory", "what"),
    [
        (".", "app.py is the app's own source"),
        ("tools", "prices.py is the app's own source"),
        ("tools/nightly.py", ""),
        ("models.py", "models.py is the app's own source"),
        ("__pycache__", "is the app's own source, compiled"),
        ("api", "is a package of the app's, with its source"),
        ("templates", "is a folder of the app's templates"),
        ("instance", "is the app's instance folder"),
        ("static", ""),
        ("uploads", ""),
        ("dist", ""),
    ],
)
def test_the_source_of_an_app_that_is_no_package_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, what: str
) -> None:
    app = loaded(tmp_path, MODULE, "app:app", monkeypatch)
    problems = problems_of(app, directory)
    assert bool(problems) == bool(what)
    assert any(what in problem for problem in problems) == bool(what)


def test_a_static_folder_that_is_the_package_itself_is_left_to_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        **PACKAGE,
        "shop/__init__.py": PACKAGE["shop/__init__.py"].replace("__name__", "__name__, static_folder='.'"),
    }
    app = loaded(tmp_path, files, "shop:create_app()", monkeypatch)
    assert mounts_of(app, from_keywords(files_auto="always")).urls == []
    assert problems_of(app, "shop/jobs")
    assert problems_of(app, "shop/templates")


def test_pages_and_static_files_of_one_build_are_served(tmp_path: Path) -> None:
    write(tmp_path / "dist/index.html", "<div id=root></div>")
    flask = Flask("spa", root_path=str(tmp_path), static_folder="dist", template_folder="dist", static_url_path="")
    assert mounts_of(flask, from_keywords()).urls == ["/"]
    assert problems_of(flask, str(tmp_path / "dist")) == []


# --- the operator's ---

REFUSED: list[Any] = [
    pytest.param(source, ".", "app.py is the app's own source", id="the app's source"),
    pytest.param(source_below, "..", "app.py is the app's own source", id="what the app's source is somewhere in"),
    pytest.param(env_file, "media", ".env is a file of environment variables, which hold secrets", id="a .env"),
    pytest.param(database, "media", "shop.db is a database", id="a database"),
    pytest.param(key, "media", "tls/server.key is a private key", id="a key"),
]


@pytest.mark.parametrize(("plant", "directory", "what"), REFUSED)
def test_a_mount_that_shows_too_much_is_exit_78(
    tmp_path: Path, plant: Callable[[Path], None], directory: str, what: str
) -> None:
    project = tmp_path / "project"
    write(project / "app.py", APP)
    write(project / "media" / "a.txt")
    plant(project)
    done = hardserve("app:app", "--bind=127.0.0.1:0", "--static", f"/media={directory}", directory=project)
    is_refused(done, f'static = "/media={directory}": ', what)


def test_an_internal_mount_that_shows_too_much_is_exit_78(tmp_path: Path) -> None:
    """What of it is sent may be what an app's clients have asked for."""
    write(tmp_path / "app.py", APP)
    database(tmp_path)
    table = '[[static]]\nurl = "/media"\ndirectory = "media"\ninternal = "on"\n'
    write(tmp_path / "hardserve.toml", table)
    done = hardserve("app:app", "--bind=127.0.0.1:0", directory=tmp_path)
    is_refused(done, 'static[0].directory = "media": ', "media/shop.db is a database")


def is_refused(done: subprocess.CompletedProcess[str], where: str, what: str) -> None:
    assert done.returncode == 78
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(where in line for line in lines)
    assert [line for line in lines if what in line], done.stderr
    assert lines[-1].endswith(WAY_OUT)


def test_the_way_out_of_it_leads_out(tmp_path: Path) -> None:
    write(tmp_path / "app.py", APP)
    write(tmp_path / "media" / "public" / "a.txt", "a")
    env_file(tmp_path)
    flags = ["--bind=127.0.0.1:0", "--static=/media=media/public"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hardserve", "app:app", *flags],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any("listening" in line for line in process.stderr)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_all_problems_of_all_mounts_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "one" / ".env")
    write(tmp_path / "two" / "k.key", KEY)
    write(tmp_path / "good" / "a.txt")
    settings = from_keywords(
        static=[{"url": f"/{name}", "directory": str(tmp_path / name)} for name in ("one", "good", "two")]
    )
    with pytest.raises(SettingsError) as caught:
        mounts_of(app, settings)
    problems = caught.value.problems
    assert [problem.partition(".")[0] for problem in problems] == ["static[0]", "static[0]", "static[2]", "static[2]"]
    assert [problem.endswith(WAY_OUT) for problem in problems] == [False, True, False, True]


def test_a_mount_that_went_away_since_the_settings_were_read(tmp_path: Path) -> None:
    settings = from_keywords(static=[{"url": "/m", "directory": str(write(tmp_path / "m" / "a").parent)}])
    (tmp_path / "m" / "a").unlink()
    (tmp_path / "m").rmdir()
    with pytest.raises(SettingsError) as caught:
        mounts_of(app, settings)
    assert list(caught.value.problems) == [f'static[0].directory = "{tmp_path}/m": No such file or directory']


# --- rules on one file ---


@pytest.mark.parametrize(
    ("path", "static", "others", "instead"),
    [
        pytest.param("/m/private/index.html", {}, "/m/private/", "/m/private/*", id="an index"),
        pytest.param("/m/index.html", {}, "/m/", "/m/*", id="that of the mount itself"),
        pytest.param("/m/*/index.html", {}, "/m/*/", "/m/*/*", id="any index in the mount"),
        pytest.param("/*/index.html", {}, "/*/", "/*/*", id="any index on the site"),
        pytest.param("/m/a/home.htm", {"index": "home.htm"}, "/m/a/", "/m/a/*", id="an index of another name"),
        pytest.param("/index.html", {"url": "/"}, "/", "/*", id="that of the site"),
        pytest.param("/m/app.html", {"fallback": "app.html"}, "paths in /m that no file has", "/m/*", id="a fallback"),
        pytest.param(
            "/*/app.html", {"fallback": "app.html"}, "paths in /m that no file has", "/*/*", id="one by a pattern"
        ),
        pytest.param(
            "/m/index.html",
            {"fallback": "index.html"},
            "/m/ and paths in /m that no file has",
            "/m/*",
            id="both",
        ),
        pytest.param("/m/a/index.html", {"fallback": "index.html"}, "/m/a/", "/m/a/*", id="an index, and no fallback"),
        pytest.param("/m/private/*", {}, None, "", id="the directory"),
        pytest.param("/m/a/index.html", {"index": "off"}, None, "", id="no index"),
        pytest.param("/m/a/off", {"index": "off"}, None, "", id="a file that is called off"),
        pytest.param("/m/a/app.html", {"fallback": "app.html"}, None, "", id="no fallback there"),
        pytest.param("/m/a/xindex.html", {}, None, "", id="another name"),
        pytest.param("/mm/index.html", {}, None, "", id="no mount there"),
        pytest.param("/m/index.html", {"internal": "on"}, None, "", id="a mount that is no client's"),
    ],
)
@pytest.mark.parametrize(
    "rule",
    [{"deny": ["private"]}, {"allow": ["private"]}, {"auth": "on"}, {"allowed_methods": ["GET"]}],
    ids=["deny", "allow", "auth", "methods"],
)
def test_a_rule_on_a_file_that_other_paths_have_as_well(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    path: str,
    static: dict[str, str],
    others: str | None,
    instead: str,
    rule: dict[str, Any],
) -> None:
    for name in ("index.html", "app.html"):
        write(tmp_path / "m" / name)
    settings = from_keywords(
        static=[{"url": "/m", "directory": str(tmp_path / "m"), **static}],
        route=[{"path": path, **rule}],
        auth_users=str(write(tmp_path / "users", "")),
    )
    mounts_of(app, settings)
    expected = f'the rules of the route "{path}" do not hold for {others}, where the same file is sent: '
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == (
        [] if others is None else [("WARNING", f'{expected}use path = "{instead}"')]
    )


def test_of_a_route_that_keeps_nobody_out_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    static = [{"url": "/m", "directory": str(tmp_path)}]
    mounts_of(app, from_keywords(static=static, route=[{"path": "/m/index.html", "max_body": 1}]))
    assert caplog.records == []


def test_the_mount_with_the_longest_url_has_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = {"url": "/m/api", "directory": str(tmp_path), "index": "off"}
    static = [{"url": "/m", "directory": str(tmp_path)}, inner]
    mounts_of(app, from_keywords(static=static, route=[{"path": "/m/api/index.html", "deny": ["private"]}]))
    assert caplog.records == []
    mounts_of(app, from_keywords(static=static, route=[{"path": "/m/*/index.html", "deny": ["private"]}]))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("fallback", ["off", "index.html"])
def test_what_is_advised_does_hold(tmp_path: Path, fallback: str) -> None:
    """And what it is advised for does not."""
    write(tmp_path / "private/index.html", "secret")
    static = [{"url": "/m", "directory": str(tmp_path / "private"), "fallback": fallback}]
    others = ["/m/", "/m/zzz"][: 1 + (fallback != "off")]
    for path, status in {"/m/index.html": 200, "/m/*": 403}.items():
        with (
            serving(app, static=static, route=[{"path": path, "deny": ["127.0.0.0/8"]}]) as running,
            running.connect() as client,
        ):
            assert client.get("/m/index.html").status == 403
            assert [client.get(other).status for other in others] == [status] * len(others)


# --- the app's own folders ---


def shop(base: Path, **settings: Any) -> Flask:
    write(base / "static" / "a.txt", "the app's")
    return Flask("shop", root_path=str(base), **settings)


def mounted(flask: Flask, **settings: Any) -> list[str]:
    return mounts_of(flask, from_keywords(**settings)).urls


def test_the_folders_of_the_app_and_its_blueprints_are_found(tmp_path: Path) -> None:
    flask = shop(tmp_path)
    write(tmp_path / "admin" / "files" / "a.txt")
    flask.register_blueprint(
        Blueprint("admin", "admin", root_path=str(tmp_path / "admin"), static_folder="files", url_prefix="/admin")
    )
    assert sorted(mounted(flask)) == ["/admin/files", "/static"]
    assert mounted(flask, files_auto="off") == []


@pytest.mark.parametrize("plant", [env_file, database, key], ids=["a .env", "a database", "a key"])
def test_a_folder_of_the_app_that_shows_too_much_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plant: Callable[[Path], None]
) -> None:
    flask = shop(tmp_path / "p")
    plant(tmp_path)
    (tmp_path / "media").rename(tmp_path / "p" / "static" / "media")
    assert mounted(flask) == []
    assert mounted(flask, files_auto="always") == []
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2
    assert said[0].startswith("/static is left to the app, which may serve that as well: ")
    assert said[0].endswith("; move it")
    with serving(flask) as running, running.connect() as client:
        assert client.get("/static/a.txt").body == b"the app's"


@pytest.mark.parametrize("internal", ["off", "on"])
@pytest.mark.parametrize("url", ["/static", "/caf\u00e9"])
def test_what_the_operator_says_of_the_same_url_counts_alone(
    tmp_path: Path, url: str, internal: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "other" / "a.txt", "other")
    flask = shop(tmp_path, static_url_path=url)
    mounts = mounts_of(
        flask, from_keywords(static=[{"url": url, "directory": str(tmp_path / "other"), "internal": internal}])
    )
    assert mounts.urls == ([] if internal == "on" else [url])
    assert [mount.tree.directory for mount in mounts.named] == [str(tmp_path / "other"), str(tmp_path / "static")]
    assert [record.getMessage() for record in caplog.records] == []


def test_of_a_folder_that_the_operator_serves_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hardserve")
    flask = shop(tmp_path)
    flask.before_request(lambda: None)
    directory = str(tmp_path / "static")
    assert mounted(flask, static=[f"/static={directory}"]) == ["/static"]
    assert caplog.records == []
    assert mounted(flask, static=[f"/other={directory}"]) == ["/other"]
    (record,) = caplog.records
    assert f"--static /static={directory}; or" in record.getMessage()


def test_the_demo_is_greeted_with_nothing_about_its_files(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hardserve")
    assert mounted(demo.app) == ["/static"]
    assert caplog.records == []


GUARD = {"X-Guard": "asked"}


def guarded_shop(base: Path, **options: Any) -> Flask:
    """An app whose folder is left to it, and a front-end's build beside it."""
    flask = shop(base, **options)

    @flask.after_request
    def note(response: Any) -> Any:
        response.headers.update(GUARD)
        return response

    write(base / "dist/index.html", "front")
    write(base / "dist/static/a.txt", "the front's")
    write(base / "dist/static/front.txt", "the front's")
    return flask


@pytest.mark.parametrize(
    "target", ["/static/a.txt", "/x/../static/a.txt", "/./static/a.txt"], ids=["plain", "dots", "a dot"]
)
@pytest.mark.parametrize("auto", ["on", "off"])
def test_a_wider_mount_does_not_hide_a_folder_that_is_left_to_the_app(tmp_path: Path, auto: str, target: str) -> None:
    flask = guarded_shop(tmp_path)
    mounts = [{"url": "/", "directory": str(tmp_path / "dist"), "fallback": "index.html"}]
    with serving(flask, static=mounts, files_auto=auto) as running, running.connect() as client:
        answer = client.get("/static/a.txt")
        assert (answer.status, answer.body, answer.header("X-Guard")) == (200, b"the app's", "asked")
        assert client.get(target).header("X-Guard") == "asked"
        assert client.get("/static/front.txt").status == 404
        assert client.get("/static/a.txt", method="POST").header("X-Guard") == "asked"
        assert client.get("/").body == b"front"
        assert client.get("/anywhere").body == b"front"
        assert client.get("/statics").body == b"front"


@pytest.mark.parametrize(
    ("options", "static", "path", "url"),
    [
        pytest.param({}, ["/=dist", "/static=dist"], "/static/a", "/static", id="the operator has that very URL"),
        pytest.param({}, ["/=dist", "/static/b=dist"], "/static/b/a", "/static/b", id="or one below it"),
        pytest.param({}, ["/=dist", "/static/b=dist"], "/static/c/a", None, id="beside which it is the app's"),
        pytest.param({}, ["/static/b=dist"], "/static/b/a", "/static/b", id="without any that is wider"),
        pytest.param({"static_url_path": "/a/b"}, ["/=dist", "/a=dist"], "/a/b/c", None, id="two that are wider"),
        pytest.param({"static_url_path": "/a/b"}, ["/=dist", "/a=dist"], "/a/c", "/a", id="what it does not have"),
        pytest.param({"static_url_path": "/a/b"}, ["/ab=dist"], "/ab/b/c", "/ab", id="one that is beside it"),
        pytest.param({"static_url_path": ""}, ["/=dist"], "/a", "/", id="the whole site, which the operator has"),
        pytest.param({"static_url_path": "/caf\u00e9"}, ["/=dist"], "/caf\u00c3\u00a9/a", None, id="not ASCII"),
        pytest.param({"static_folder": "gone"}, ["/=dist"], "/gone/a", "/", id="a folder that is not there"),
    ],
)
@pytest.mark.parametrize("auto", ["on", "off"])
def test_whose_a_path_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    static: list[str],
    path: str,
    url: str | None,
    auto: str,
) -> None:
    base = tmp_path / "project"
    flask = guarded_shop(base, **options)
    monkeypatch.chdir(base)
    place = mounts_of(flask, from_keywords(static=static, files_auto=auto)).find(path)
    assert (place.mount.url if place else None) == url


def test_a_url_that_depends_on_something_is_the_apps_below_a_wider_mount(tmp_path: Path) -> None:
    flask = guarded_shop(tmp_path)
    flask.register_blueprint(
        Blueprint("b", "b", static_folder=str(tmp_path / "static"), url_prefix="/<lang>", static_url_path="/files")
    )
    mounts = mounts_of(flask, from_keywords(static=[f"/={tmp_path / 'dist'}", f"/m={tmp_path / 'dist'}"]))
    assert mounts.find("/de/files/a.txt") is None
    place = mounts.find("/m/files/a.txt")
    assert place is not None
    assert place.mount.url == "/m"


def test_a_folder_that_is_served_needs_no_exception(tmp_path: Path) -> None:
    mounts = mounts_of(shop(tmp_path), from_keywords(static=[f"/={write(tmp_path / 'dist/index.html').parent}"]))
    place = mounts.find("/static/a.txt")
    assert place is not None
    assert (place.mount.url, place.mount.misses_to_app) == ("/static", True)


@pytest.mark.parametrize("auto", ["on", "off", "always"])
@pytest.mark.parametrize("hook", [False, True], ids=["plain", "guarded"])
def test_what_flask_names_itself_is_sent(tmp_path: Path, auto: str, hook: bool) -> None:
    """USE_X_SENDFILE is for all that it sends: its static view and `send_static_file` among it."""
    flask = guarded_shop(tmp_path) if hook else shop(tmp_path)
    flask.config["USE_X_SENDFILE"] = True
    flask.register_blueprint(
        Blueprint("b", "b", root_path=str(tmp_path / "b"), static_folder="../more", url_prefix="/b")
    )
    flask.add_url_rule("/a", "a", lambda: flask.send_static_file("a.txt"))
    (tmp_path / "b").mkdir()
    write(tmp_path / "more/b.txt", "the blueprint's")
    write(tmp_path / "outside.txt", "linked")
    (tmp_path / "static/link.txt").symlink_to("../outside.txt")
    with serving(flask, files_auto=auto) as running, running.connect() as client:
        for target, body in {
            "/static/a.txt": b"the app's",
            "/a": b"the app's",
            "/b/more/b.txt": b"the blueprint's",
            "/static/link.txt": b"linked",
        }.items():
            answer = client.get(target)
            assert (answer.status, answer.body) == (200, body), target
            assert answer.header("X-Sendfile") is None
        assert client.get("/static/nothing.txt").status == 404


def test_a_folder_that_shows_too_much_is_sent_by_the_app_all_the_same(tmp_path: Path) -> None:
    flask = shop(tmp_path)
    flask.config["USE_X_SENDFILE"] = True
    write(tmp_path / "static/server.key", KEY)
    with serving(flask) as running, running.connect() as client:
        assert client.get("/static/a.txt").body == b"the app's"


def test_what_flask_names_elsewhere_is_not_sent(tmp_path: Path) -> None:
    flask = shop(tmp_path)
    flask.config["USE_X_SENDFILE"] = True
    secret = write(tmp_path / "secret.txt", "secret")
    flask.add_url_rule("/secret", "secret", lambda: send_file(secret))
    with serving(flask) as running, running.connect() as client:
        answer = client.get("/secret")
        assert answer.status == 500
        assert b"secret" not in answer.body


def test_what_the_operator_mounts_below_or_above_does_not_take_the_apps_folder(tmp_path: Path) -> None:
    write(tmp_path / "other" / "a.txt", "other")
    flask = shop(tmp_path)
    with (
        serving(flask, static=[f"/static/extra={tmp_path / 'other'}", f"/s={tmp_path / 'other'}"]) as running,
        running.connect() as client,
    ):
        assert client.get("/static/a.txt").body == b"the app's"
        assert client.get("/static/extra/a.txt").body == b"other"
        assert client.get("/s/a.txt").body == b"other"


def test_an_internal_mount_is_no_clients(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "internal")
    mount = {"url": "/internal", "directory": str(tmp_path), "internal": "on"}
    with serving(app, static=[mount]) as running, running.connect() as client:
        for target in ("/internal/a.txt", "//internal/a.txt", "/%69nternal/a.txt", "/x/../internal/a.txt"):
            assert b"internal" not in client.get(target).body
        assert running.server.files == []


def test_the_folder_of_an_app_whose_path_is_a_link_is_the_new_one_after_a_deploy(tmp_path: Path) -> None:
    write(tmp_path / "1" / "static" / "a.txt", "one")
    write(tmp_path / "2" / "static" / "a.txt", "two")
    (tmp_path / "current").symlink_to("1")
    flask = Flask("shop", root_path=str(tmp_path / "current"))
    with serving(flask, files_check=0) as running, running.connect() as client:
        assert client.get("/static/a.txt").body == b"one"
        (tmp_path / "next").symlink_to("2")
        os.replace(tmp_path / "next", tmp_path / "current")
        assert client.get("/static/a.txt").body == b"two"
