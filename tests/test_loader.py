"""How an app is named, found, refused and explained: most cases are a few files and one line of APP."""

from __future__ import annotations

import functools
import http.server
import importlib
import os
import socketserver
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import flask
import pytest
import waitress
import werkzeug
import werkzeug.serving
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

import hardserve
from hardserve.loader import LoadedApp, LoadError, check_app, load_app
from hardserve.loader.production import parts_of
from hardserve.loader.servers import NoServerStarts

APPS = Path(__file__).parent / "apps"
PLAIN = """
def {name}(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"{name}"]
"""
FLASK = """
from flask import Flask
{name} = Flask("{name}")
"""
FACTORY = """
from flask import Flask
def {name}({parameters}):
    app = Flask("{name}")
    app.config["ARGUMENTS"] = dict(locals(), app=None)
    return app
"""


@pytest.fixture(autouse=True)
def _import_state_is_put_back(tmp_path: Path) -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    assert not [finder for finder in sys.meta_path if isinstance(finder, NoServerStarts)]
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith((str(tmp_path), str(APPS))) or not file:
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        return tmp_path

    return write


def load(directory: Path, spec: str | None, **environ: str) -> LoadedApp:
    return load_app(spec, directory=directory, environ=environ)


def refused(directory: Path, spec: str | None, **environ: str) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load(directory, spec, **environ)
    return caught.value


def body_of(app: object) -> bytes:
    return b"".join(app({"REQUEST_METHOD": "GET"}, lambda status, headers: None))  # type: ignore[operator]


FOUND = {
    "module:name": ("app:site", {"app.py": FLASK.format(name="site")}, "app:site"),
    "a dotted module": ("pkg.web:app", {"pkg/__init__.py": "", "pkg/web.py": FLASK.format(name="app")}, "pkg.web:app"),
    "a package": ("pkg:app", {"pkg/__init__.py": FLASK.format(name="app")}, "pkg:app"),
    "a plain WSGI function": ("app:serve", {"app.py": PLAIN.format(name="serve")}, "app:serve"),
    "a WSGI function with other names for its two arguments": (
        "app:web",
        {"app.py": "def web(e, sr): return []"},
        "app:web",
    ),
    "a WSGI function behind a decorator that says nothing": (
        "app:web",
        {"app.py": "def web(*args, **kwargs): return []"},
        "app:web",
    ),
    "an instance with __call__": (
        "app:it",
        {"app.py": "class App:\n    def __call__(self, environ, start_response): return []\nit = App()"},
        "app:it",
    ),
    "a class whose instances are the response": (
        "app:App",
        {"app.py": "class App:\n    def __init__(self, e, s): ...\n    def __iter__(self): return iter([b''])"},
        "app:App",
    ),
    "a chain of attributes": (
        "app:holder.wsgi",
        {"app.py": PLAIN.format(name="w") + "class holder:\n    wsgi = staticmethod(w)"},
        "app:holder.wsgi",
    ),
    "an attribute of what a factory returns": (
        "app:create_app().wsgi_app",
        {"app.py": FACTORY.format(name="create_app", parameters="")},
        "app:create_app().wsgi_app",
    ),
    "a factory called with nothing": (
        "app:build()",
        {"app.py": FACTORY.format(name="build", parameters="")},
        "app:build()",
    ),
    "a factory named without parentheses": (
        "app:build",
        {"app.py": FACTORY.format(name="build", parameters="debug=False")},
        "app:build()",
    ),
    "create_app without parentheses, though a WSGI function could take as many arguments": (
        "app:create_app",
        {"app.py": FACTORY.format(name="create_app", parameters="config=None, testing=False")},
        "app:create_app()",
    ),
    "create_app without parentheses, behind a decorator that says nothing": (
        "app:create_app",
        {"app.py": FACTORY.format(name="create_app", parameters="*args, **kwargs")},
        "app:create_app()",
    ),
    "a factory that returns a plain WSGI function": (
        "app:make",
        {"app.py": PLAIN.format(name="inner") + "def make(): return inner"},
        "app:make()",
    ),
    "a factory that is a partial": (
        "app:build",
        {"app.py": FACTORY.format(name="b", parameters="x") + "import functools\nbuild = functools.partial(b, 1)"},
        "app:build()",
    ),
    "a decorated factory whose decorator supplies the argument": (
        "app:create_app()",
        {
            "app.py": FACTORY.format(name="inner", parameters="db")
            + "import functools\n@functools.wraps(inner)\ndef create_app(): return inner('db')"
        },
        "app:create_app()",
    ),
    "a path to a file and a name": ("sub/shop.py:app", {"sub/shop.py": FLASK.format(name="app")}, "shop:app"),
    "a path to a file": ("sub/shop.py", {"sub/shop.py": FLASK.format(name="anything")}, "shop:anything"),
    "a file in the current directory": ("shop.py:app", {"shop.py": FLASK.format(name="app")}, "shop:app"),
    "a path without .py": ("sub/shop:app", {"sub/shop.py": FLASK.format(name="app")}, "shop:app"),
    "a path to a file in a package, imported as a part of it": (
        "src/pkg/web.py",
        {
            "src/pkg/__init__.py": "",
            "src/pkg/names.py": "NAME = 'x'",
            "src/pkg/web.py": "from .names import NAME\nfrom flask import Flask\napp = Flask(NAME)",
        },
        "pkg.web:app",
    ),
    "a path to a package": ("src/pkg", {"src/pkg/__init__.py": FLASK.format(name="app")}, "pkg:app"),
    "a path to a package's __init__.py": (
        "src/pkg/__init__.py",
        {"src/pkg/__init__.py": FLASK.format(name="app")},
        "pkg:app",
    ),
    "a path with a hyphen": ("./my-site.py", {"my-site.py": FLASK.format(name="app")}, "my-site:app"),
    "a module alone with app": ("site1", {"site1.py": FLASK.format(name="app")}, "site1:app"),
    "a module alone with application": ("site1", {"site1.py": FLASK.format(name="application")}, "site1:application"),
    "a module alone with a plain application": (
        "site1",
        {"site1.py": PLAIN.format(name="application")},
        "site1:application",
    ),
    "a module alone with one Flask instance of another name": (
        "site1",
        {"site1.py": FLASK.format(name="server")},
        "site1:server",
    ),
    "a module alone with one Flask instance of two names": (
        "site1",
        {"site1.py": FLASK.format(name="server") + "again = server"},
        "site1:server",
    ),
    "a module alone with current_app in it, a proxy that stands for another app": (
        "site1",
        {"site1.py": "from flask import current_app\n" + FLASK.format(name="server")},
        "site1:server",
    ),
    "a module alone with app before another Flask instance": (
        "site1",
        {"site1.py": FLASK.format(name="other") + FLASK.format(name="app")},
        "site1:app",
    ),
    "a module alone with app, the middleware around the only Flask instance": (
        "site1",
        {
            "site1.py": FLASK.format(name="bare")
            + "from werkzeug.middleware.proxy_fix import ProxyFix\napp = ProxyFix(bare)"
        },
        "site1:app",
    ),
    "a module alone with a command line named app next to a Flask instance": (
        "site1",
        {"site1.py": "import click\n@click.group()\ndef app(): ...\n" + FLASK.format(name="server")},
        "site1:server",
    ),
    "a module alone with create_app()": (
        "site1",
        {"site1.py": FACTORY.format(name="create_app", parameters="config=None")},
        "site1:create_app()",
    ),
    "a module alone with make_app()": (
        "site1",
        {"site1.py": FACTORY.format(name="make_app", parameters="")},
        "site1:make_app()",
    ),
    "nothing, and wsgi.py before app.py, as Flask does": (
        None,
        {"wsgi.py": FLASK.format(name="app"), "app.py": "raise RuntimeError"},
        "wsgi:app",
    ),
    "nothing, and app.py": (None, {"app.py": FLASK.format(name="app")}, "app:app"),
    "nothing, and a package named app": (
        None,
        {"app/__init__.py": FACTORY.format(name="create_app", parameters="")},
        "app:create_app()",
    ),
    "spaces around the parts": (
        " app : build( 'a' , b = 1 ) ",
        {"app.py": FACTORY.format(name="build", parameters="a, b")},
        "app:build('a', b=1)",
    ),
}


@pytest.mark.parametrize(("spec", "files", "canonical"), FOUND.values(), ids=FOUND.keys())
def test_finds_the_app_named_by(spec, files, canonical, site):
    directory = site(files)
    loaded = load(directory, spec)
    assert callable(loaded.app)
    assert loaded.spec == canonical


def test_the_canonical_spec_finds_the_same_app_again(site):
    directory = site({"app.py": FLASK.format(name="anything")})
    first = load(directory, None)
    assert load(directory, first.spec).app is first.app


def test_factory_gets_its_literal_arguments_and_may_hold_colons_and_commas(site):
    directory = site({"app.py": FACTORY.format(name="build", parameters="*args, **kwargs")})
    loaded = load(directory, """app:build("a:b,c", -1, None, [1, {"x": (2.5,)}], cache=True)""")
    assert loaded.flask is not None
    assert loaded.flask.config["ARGUMENTS"] == {
        "args": ("a:b,c", -1, None, [1, {"x": (2.5,)}]),
        "kwargs": {"cache": True},
        "app": None,
    }


def test_flask_app_of_the_environment_is_next_after_app(site):
    directory = site({"site2.py": FLASK.format(name="app"), "app.py": "raise RuntimeError"})
    assert load(directory, None, FLASK_APP="site2").spec == "site2:app"
    assert load(directory, "site2:app", FLASK_APP="missing").spec == "site2:app"


def test_an_error_about_flask_app_says_that_it_came_from_there(site):
    error = refused(site({}), None, FLASK_APP="nowhere:app")
    assert str(error).startswith("FLASK_APP=nowhere:app: ")


def test_current_directory_stays_importable_also_when_the_app_is_elsewhere(site):
    directory = site({"src/site3.py": "import beside\napp = beside.app", "beside.py": FLASK.format(name="app")})
    loaded = load(directory, "src/site3.py")
    assert loaded.spec == "site3:app"
    assert sys.path[:2] == [str(directory / "src"), str(directory)]


def test_the_target_of_a_link_is_what_is_imported(site):
    directory = site(
        {"real/site4.py": "import beside4\napp = beside4.app", "real/beside4.py": FLASK.format(name="app")}
    )
    (directory / "link.py").symlink_to("real/site4.py")
    assert load(directory, "link.py").spec == "site4:app"


def test_dash_object_is_served_by_its_flask_server():
    loaded = load(APPS, "dash_app:app")
    assert isinstance(loaded.app, Flask)
    assert (loaded.spec, loaded.flask) == ("dash_app:app.server", loaded.app)
    assert load(APPS, "dash_app").app is loaded.app
    assert load(APPS, "dash_app:app.server").app is loaded.app


EXIT_2 = {
    "nothing before the colon": (":app", "module is missing"),
    "nothing at all": ("", "module is missing"),
    "nothing after the colon": ("app:", 'not ""'),
    "two colons": ("app:app:app", 'not "app:app"'),
    "a name that is no identifier": ("app:my-app", 'not "my-app"'),
    "an argument that is no literal": ("app:build(os.environ)", "literal arguments"),
    "an argument that is a call": ("app:build(print('x'))", "literal arguments"),
    "unpacked positional arguments": ("app:build(*[1])", "literal arguments"),
    "unpacked keyword arguments": ("app:build(**{'a': 1})", "literal arguments"),
    "a subscript": ("app:apps['main']", "literal arguments"),
    "an expression": ("app:(lambda: 1)()", "literal arguments"),
    "an unclosed call": ("app:build(", "literal arguments"),
    "a keyword given twice": ("app:build(a=1, a=2)", "literal arguments"),
    "a line break": ("app:a\nb", "literal arguments"),
    "nesting without end": ("app:" + "(" * 5000, "literal arguments"),
    "a module that is no name": ("app;rm", "not the name of a module"),
    "a relative module": ("..app:app", "not the name of a module"),
    "no spec and no file to fall back on": (None, "no wsgi.py or app.py in"),
}


@pytest.mark.parametrize(("spec", "says"), EXIT_2.values(), ids=EXIT_2.keys())
def test_spec_that_cannot_be_read_is_a_usage_error_that_lists_the_forms(spec, says, site):
    error = refused(site({"print.py": "raise RuntimeError"}), spec)
    assert error.exit_code == 2
    assert says in str(error)
    assert "APP is one of\n  module:name" in str(error)


EXIT_1 = {
    "a module that is not there, with one like it": (
        "ap:app",
        {"app.py": ""},
        ['ap:app: there is no module "ap", neither in ', 'Did you mean "app"?'],
    ),
    "a module missing in a package": (
        "pkg.wbe:app",
        {"pkg/__init__.py": "", "pkg/web.py": ""},
        ['no module "wbe" in pkg', 'Did you mean "web"?'],
    ),
    "the package itself missing": ("pgk.web:app", {"pkg/__init__.py": ""}, ['no module "pgk"', 'Did you mean "pkg"?']),
    "a dot for the colon": ("site5.app", {"site5.py": FLASK.format(name="app")}, ['Did you mean "site5:app"?']),
    "a file that is not there": ("aap.py:app", {"app.py": ""}, ["there is no file", 'Did you mean "app.py"?']),
    "a file in a directory that is not there": ("no/app.py", {}, ["there is no file"]),
    "a file of another kind": ("./app.txt", {"app.txt": ""}, ["neither a Python file (*.py) nor a package"]),
    "a directory that is no package": ("web/", {"web/app.py": ""}, ["without __init__.py", 'mean "web/app.py"?']),
    "a file with a dot in its name": ("./my.app.py", {"my.app.py": ""}, ['cannot import "my.app"', "Rename it"]),
    "a name that is not there, with one like it": (
        "app:ap",
        {"app.py": FLASK.format(name="app")},
        ['app.py) has no "ap".', 'Did you mean "app"?'],
    ),
    "a name that is not there, and what there is": (
        "app:xyz",
        {"app.py": FLASK.format(name="server") + "def create_app(): ..."},
        ["It has: server, create_app()"],
    ),
    "a name that is in a module of the package": (
        "pkg:server",
        {"pkg/__init__.py": "", "pkg/wsgi.py": ""},
        ['Did you mean "pkg.wsgi"?'],
    ),
    "an attribute that the object does not have": (
        "app:app.wsgi_ap",
        {"app.py": FLASK.format(name="app")},
        ["app:app is of type flask.app.Flask", 'Did you mean "wsgi_app"?'],
    ),
    "something that cannot be called": ("app:app", {"app.py": "app = 'text'"}, ["app:app is of type str, not a WSGI"]),
    "something that cannot be called, called": ("app:app()", {"app.py": "app = 'x'"}, ["str, which cannot be called"]),
    "an object called with something else": (
        "app:app",
        {"app.py": "class A:\n    def __call__(self, x): ...\napp = A()"},
        ["app:app is of type app.A, not a WSGI app: it cannot be called with (environ, start_response)"],
    ),
    "a class": ("app:Site", {"app.py": "class Site: ..."}, ["is a class", "app:Site()"]),
    "a module": ("pkg:web", {"pkg/__init__.py": "from . import web", "pkg/web.py": ""}, ["is a module", "pkg.web:app"]),
    "an async function": ("app:app", {"app.py": "async def app(scope, receive, send): ..."}, ["is an ASGI app"]),
    "an object with an async call": (
        "app",
        {"app.py": "class A:\n    async def __call__(self, scope, receive, send): ...\napp = A()"},
        ["app:app is an ASGI app", "a2wsgi"],
    ),
    "the app itself, called": (
        "app:app()",
        {"app.py": FLASK.format(name="app")},
        ["app:app() cannot be called, missing a required argument: 'environ': it is the app itself, write app:app"],
    ),
    "a factory without its arguments": (
        "app:build()",
        {"app.py": FACTORY.format(name="build", parameters="config, db")},
        ["app:build() cannot be called, missing a required argument: 'config'", "for build(config, db)"],
    ),
    "a WSGI function, called": (
        "app:serve()",
        {"app.py": PLAIN.format(name="serve")},
        ["it is the app itself, write app:serve"],
    ),
    "a factory with an argument too many": (
        "app:build(1)",
        {"app.py": FACTORY.format(name="build", parameters="")},
        ["app:build(1) cannot be called, too many positional arguments"],
    ),
    "a factory that needs an argument, named alone": (
        "app:build",
        {"app.py": FACTORY.format(name="build", parameters="config")},
        ["is a factory that needs arguments, build(config): write app:build(...)"],
    ),
    "create_app(config, db), which has the shape of a WSGI function": (
        "app:create_app",
        {"app.py": FACTORY.format(name="create_app", parameters="config, db")},
        ["is a factory that needs arguments, create_app(config, db)"],
    ),
    "create_app(config) in a module alone": (
        "app",
        {"app.py": FACTORY.format(name="create_app", parameters="config")},
        ["app:create_app() cannot be called", "write app:create_app(...)"],
    ),
    "a factory that returns nothing": ("app:build()", {"app.py": "def build(): ..."}, ["None: is its `return app`"]),
    "two Flask instances in a module alone": (
        "site6",
        {"site6.py": FLASK.format(name="one") + FLASK.format(name="two")},
        ["there are 2 Flask apps in site6: say which, site6:one, site6:two"],
    ),
    "no app in a module alone": ("site7", {"site7.py": "x = 1"}, ["no app found in site7 (", "site7:NAME"]),
    "no app in a package alone, but a module for it": (
        "pkg",
        {"pkg/__init__.py": "", "pkg/app.py": ""},
        ["no app found in pkg", 'Did you mean "pkg.app"?'],
    ),
    "a file that a package of its name hides": (
        "both.py",
        {"both.py": "", "both/__init__.py": ""},
        ["hides", "Rename one of them"],
    ),
    "a file with the name of a module that is loaded": (
        "json.py:app",
        {"json.py": FLASK.format(name="app")},
        ['the name "json" belongs to', "Rename it, for instance to myjson"],
    ),
    "sys.exit() at import": (
        "app:app",
        {"app.py": "import sys\nsys.exit(3)"},
        ["the app called sys.exit(3) while importing app, at ", "app.py:2.", 'if __name__ == "__main__":'],
    ),
    "an interruption at import": (
        "app:app",
        {"app.py": "\nraise KeyboardInterrupt"},
        ["interrupted while importing app, at ", "app.py:2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "files", "says"), EXIT_1.values(), ids=EXIT_1.keys())
def test_explains_without_a_traceback(spec, files, says, site):
    error = refused(site(files), spec)
    assert error.exit_code == 1
    assert "Traceback" not in str(error)
    for part in says:
        assert part in str(error)


FAILURES = {
    "a module that the app imports is missing": (
        {"app.py": "import nobody_has_this"},
        "app",
        ['app.py", line 1, in <module>', "ModuleNotFoundError: No module named 'nobody_has_this'"],
    ),
    "a module missing three imports down": (
        {"app.py": "import one", "one.py": "import two", "two.py": "import pkg.nobody_has_this", "pkg/__init__.py": ""},
        "app",
        ['app.py", line 1', 'one.py", line 1', 'two.py", line 1', "If the app needs the package pkg, install it in"],
    ),
    "the app imports a module of its own name that is missing": (
        {"pkg/__init__.py": "from . import web", "pkg/web.py": "import pkg.nobody"},
        "pkg.web:app",
        ['web.py", line 1', "No module named 'pkg.nobody'"],
    ),
    "a syntax error": ({"app.py": "x = (\n"}, "app", ['app.py", line 1', "SyntaxError: '(' was never closed"]),
    "an exception at import": ({"app.py": "1 / 0"}, "app", ["ZeroDivisionError: division by zero"]),
    "an exception with a cause": (
        {"app.py": "try:\n    import nobody_has_this\nexcept ImportError as e:\n    raise RuntimeError('no') from e"},
        "app",
        ["direct cause of the following", "RuntimeError: no"],
    ),
    "a group of exceptions": (
        {"app.py": "raise ExceptionGroup('several', [ValueError('one'), KeyError('two')])"},
        "app",
        ["ValueError: one", "KeyError: 'two'"],
    ),
    "an exception of the module that imports Flask": (
        {"app.py": "import flask\n1 / 0"},
        "app",
        ["ZeroDivisionError"],
    ),
    "a TypeError inside a factory": (
        {"app.py": "def create_app():\n    return len(1, 2)"},
        "app",
        ['app.py", line 2, in create_app', "TypeError: len() takes exactly one argument"],
    ),
    "an AttributeError inside a module's own __getattr__": (
        {"app.py": "def __getattr__(name):\n    return None.nothing"},
        "app:app",
        ["in __getattr__", "'NoneType' object has no attribute 'nothing'"],
    ),
}


@pytest.mark.parametrize(("files", "spec", "says"), FAILURES.values(), ids=FAILURES.keys())
def test_failure_of_the_app_shows_its_own_traceback_without_ours(files, spec, says, site):
    error = refused(site(files), spec)
    assert error.exit_code == 1
    assert str(error).startswith("the app failed while ")
    for part in says:
        assert part in str(error)
    for ours in ("hardserve/loader", "importlib"):
        assert ours not in str(error)


def test_syntax_error_comes_without_the_heading_of_an_empty_traceback(site):
    assert "Traceback" not in str(refused(site({"app.py": "def"}), "app"))


# What makes an app unfit for production.

DEBUGGED = "from werkzeug.debug import DebuggedApplication\n" + FLASK.format(name="app")
DEBUG_MODE, DEBUGGER = 'debug mode of the Flask app "app"', "Werkzeug's DebuggedApplication"
DEVELOPMENT = {
    "app.debug": (FLASK.format(name="app") + "app.debug = True", {}, [DEBUG_MODE]),
    "DEBUG in the configuration": (FLASK.format(name="app") + "app.config['DEBUG'] = True", {}, [DEBUG_MODE]),
    "FLASK_DEBUG=1": (FLASK.format(name="app"), {"FLASK_DEBUG": "1"}, ["FLASK_DEBUG=1: unset it"]),
    "FLASK_DEBUG=true": (FLASK.format(name="app"), {"FLASK_DEBUG": "true"}, ["FLASK_DEBUG=true: unset it"]),
    "FLASK_DEBUG=1 with an app that is not Flask's": (
        PLAIN.format(name="app"),
        {"FLASK_DEBUG": "1"},
        ["FLASK_DEBUG=1"],
    ),
    "the reloader": (FLASK.format(name="app"), {"WERKZEUG_RUN_MAIN": "true"}, ["WERKZEUG_RUN_MAIN=true"]),
    "the debugger around the app": (DEBUGGED + "app = DebuggedApplication(app)", {}, [DEBUGGER]),
    "the debugger inside the app": (DEBUGGED + "app.wsgi_app = DebuggedApplication(app.wsgi_app)", {}, [DEBUGGER]),
    "the debugger without its console": (DEBUGGED + "app = DebuggedApplication(app, evalex=False)", {}, [DEBUGGER]),
    "everything at once": (
        DEBUGGED + "app.debug = True\napp.wsgi_app = DebuggedApplication(app.wsgi_app)",
        {"FLASK_DEBUG": "1", "WERKZEUG_RUN_MAIN": "true"},
        ["FLASK_DEBUG=1", DEBUG_MODE, DEBUGGER, "WERKZEUG_RUN_MAIN=true"],
    ),
    "debug mode under middleware": (
        FLASK.format(name="app")
        + "from werkzeug.middleware.proxy_fix import ProxyFix\napp.debug = True\napp = ProxyFix(ProxyFix(app))",
        {},
        [DEBUG_MODE],
    ),
    "debug mode of an app that is mounted": (
        FLASK.format(name="app")
        + "from werkzeug.middleware.dispatcher import DispatcherMiddleware\n"
        + "app.debug = True\napp = DispatcherMiddleware(Flask('root'), {'/sub': app})",
        {},
        [DEBUG_MODE],
    ),
    "debug mode behind a WSGI function of the module": (
        FLASK.format(name="inner").replace('"inner"', '"app"')
        + "inner.debug = True\ndef app(environ, start_response): return inner(environ, start_response)",
        {},
        [DEBUG_MODE],
    ),
    "debug mode behind a closure": (
        FLASK.format(name="app") + "def wrap(inner):\n    def wsgi(e, s): return inner(e, s)\n    return wsgi\n"
        "app.debug = True\napp = wrap(app)",
        {},
        [DEBUG_MODE],
    ),
    "debug mode of an attribute with a name of its own": (
        FLASK.format(name="app") + "class Mine:\n    def __init__(self, a): self.next_one = a\n"
        "    def __call__(self, environ, start_response): ...\napp.debug = True\napp = Mine(app)",
        {},
        [DEBUG_MODE],
    ),
}


@pytest.mark.parametrize(("source", "environ", "names"), DEVELOPMENT.values(), ids=DEVELOPMENT.keys())
def test_refuses_to_be_a_development_server_with(source, environ, names, site):
    error = refused(site({"app.py": source}), "app:app", **environ)
    assert error.exit_code == 78
    assert str(error).startswith("app:app is set up for development")
    assert str(error).count("\n  - ") == len(names)
    for name in names:
        assert f"  - {name}" in str(error)


@pytest.mark.parametrize("value", ["", "0", "false", "No"])
def test_flask_debug_may_be_off_in_the_ways_flask_knows(value, site):
    assert load(site({"app.py": FLASK.format(name="app")}), "app", FLASK_DEBUG=value).spec == "app:app"


UNFIT = {
    "debug mode": (lambda: _debugged(Flask("x")), 78, 'debug mode of the Flask app "x"'),
    "a factory": (lambda: _debugged, 1, "_debugged is a factory that needs arguments"),
    "a class": (lambda: Flask, 1, "Flask is a class"),
    "a number": (lambda: 1, 1, "int is of type int, not a WSGI app"),
}


def _debugged(app: Flask) -> Flask:
    app.debug = True
    return app


@pytest.mark.parametrize(("make", "exit_code", "says"), UNFIT.values(), ids=UNFIT.keys())
def test_check_of_an_app_object_refuses(make, exit_code, says):
    with pytest.raises(LoadError) as caught:
        check_app(make())
    assert caught.value.exit_code == exit_code
    assert says in str(caught.value)


def test_check_of_an_app_object_accepts_any_wsgi_callable():
    check_app(Flask("x"))
    check_app(ProxyFix(Flask("x")))
    check_app(lambda environ, start_response: [])


def test_testing_mode_is_the_apps_own_business(site):
    directory = site({"app.py": FLASK.format(name="app") + "app.testing = True"})
    assert load(directory, "app").flask is not None


def _in_closure(app: Flask) -> object:
    def outer(environ, start_response):
        return app(environ, start_response)

    return outer


WRAPPINGS: dict[str, Callable[[Flask], object]] = {
    "nothing": lambda app: app,
    "its bound wsgi_app": lambda app: app.wsgi_app,
    "a partial of it": lambda app: functools.partial(app.wsgi_app),
    "middleware twice": lambda app: ProxyFix(ProxyFix(app)),
    "a dispatcher": lambda app: DispatcherMiddleware(app, {}),
    "a closure": _in_closure,
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_sees_the_flask_app_through(wrap):
    app = Flask("inside")
    assert app in parts_of(wrap(app))


def test_walk_through_middleware_ends_where_it_goes_round_or_on_without_end():
    class Layer:
        def __init__(self, app: object) -> None:
            self.app = app

        def __call__(self, environ: object, start_response: object) -> None: ...

    around = Layer(None)
    around.app = around
    assert parts_of(around) == [around]
    deep: object = None
    for _ in range(1000):
        deep = Layer(deep)
    assert len(parts_of(deep)) == 64


# No other server starts.

RUN = FLASK.format(name="app")
CALLS = {
    "app.run()": (RUN + "app.run(debug=True, port=0)", "app.run()", "app.py:4", "        app.run(debug=True, port=0)"),
    "app.run() in a function": (
        RUN + "def main():\n    app.run()\nmain()",
        "app.run()",
        "app.py:5",
        "app.py:6): hardserve is the server here.",
    ),
    "app.run() in a module that the app imports": (
        "from other import app",
        "app.run()",
        "other.py:4",
        '    if __name__ == "__main__":\n        app.run()',
    ),
    "app.run() in a factory": (
        "from flask import Flask\ndef create_app():\n    app = Flask('x')\n    app.run()\n    return app",
        "app.run()",
        "app.py:4",
        "Take the call out of create_app().",
    ),
    "app.run() where every exception is caught": (
        RUN + "try:\n    app.run()\nexcept:\n    pass",
        "app.run()",
        "app.py:5",
        "        app.run()",
    ),
    "app.run() under the class's name": (RUN + "Flask.run(app)", "app.run()", "app.py:4", "        Flask.run(app)"),
    "run_simple of werkzeug": (
        RUN + "from werkzeug import run_simple\nrun_simple('127.0.0.1', 0, app)",
        "run_simple()",
        "app.py:5",
        "        run_simple('127.0.0.1', 0, app)",
    ),
    "run_simple of werkzeug.serving": (
        RUN + "import werkzeug.serving as s\ns.run_simple('127.0.0.1', 0, app)",
        "run_simple()",
        "app.py:5",
        "        s.run_simple('127.0.0.1', 0, app)",
    ),
    "waitress.serve": (
        RUN + "from waitress import serve\nserve(app, port=0)",
        "waitress.serve()",
        "app.py:5",
        "        serve(app, port=0)",
    ),
    "hardserve.serve": (
        RUN + "import hardserve\nhardserve.serve(app, bind='127.0.0.1:0')",
        "hardserve.serve()",
        "app.py:5",
        "        hardserve.serve(app, bind='127.0.0.1:0')",
    ),
    "a server of the standard library": (
        RUN + "from wsgiref.simple_server import make_server\nwith make_server('127.0.0.1', 0, app) as s:\n"
        "    s.serve_forever()",
        "serve_forever()",
        "app.py:6",
        "        s.serve_forever()",
    ),
    "Dash's run, which is Flask's": (
        "from dash import Dash, html\napp = Dash('x')\napp.layout = html.P()\napp.run(port=0)",
        "app.run()",
        "app.py:4",
        "        app.run(port=0)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "call", "place", "says"), CALLS.values(), ids=CALLS.keys())
def test_catches_and_explains(source, call, place, says, site):
    directory = site({"app.py": source, "other.py": RUN + "app.run()"})
    error = refused(directory, "app")
    assert error.exit_code == 1
    assert str(error).startswith(f"{directory}/{place}: {call} was called while the app was loaded, and was not run")
    assert says in str(error)
    assert "Traceback" not in str(error)


def test_catches_app_run_though_flask_itself_would_ignore_it(site, monkeypatch):
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    assert "app.run() was called" in str(refused(site({"app.py": RUN + "app.run()"}), "app"))


def test_catches_app_run_in_a_thread_that_the_import_starts(site, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # Python's, not pytest's
    source = RUN + "import threading\nt = threading.Thread(target=app.run)\nt.start()\nt.join()"
    assert "app.run() was called" in str(refused(site({"app.py": source}), "app"))
    assert capsys.readouterr().err == ""


def test_a_guarded_app_run_is_not_in_the_way(site):
    assert load(site({"app.py": RUN + 'if __name__ == "__main__":\n    app.run()'}), "app").spec == "app:app"


def test_a_server_in_a_thread_such_as_an_exporter_of_metrics_may_start(site):
    source = RUN + (
        "import http.server, threading\n"
        "metrics = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)\n"
        "threading.Thread(target=metrics.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()\n"
    )
    assert load(site({"app.py": source}), "app").spec == "app:app"
    metrics = sys.modules["app"].metrics
    assert isinstance(metrics, http.server.HTTPServer)
    metrics.shutdown()  # returns only if serve_forever is running
    metrics.server_close()


def test_everything_is_as_before_once_the_app_is_loaded(site):
    before = (
        flask.Flask.run,
        werkzeug.run_simple,
        werkzeug.serving.run_simple,
        waitress.serve,
        socketserver.BaseServer.serve_forever,
        vars(hardserve).get("serve"),
    )
    directory = site({"good.py": RUN, "bad.py": RUN + "app.run()", "kept.py": RUN + "from waitress import serve"})
    load(directory, "good")
    refused(directory, "bad")
    load(directory, "kept")
    after = (
        flask.Flask.run,
        werkzeug.run_simple,
        werkzeug.serving.run_simple,
        waitress.serve,
        socketserver.BaseServer.serve_forever,
        vars(hardserve).get("serve"),
    )
    assert after == before
    # A replacement that the app has kept is the original again.
    served: list[object] = []
    sys.modules["kept"].serve("app", _server=lambda app, **kw: served.append(app) or _Runs(), _quiet=True)
    assert served == ["app"]


class _Runs:
    def run(self) -> None: ...


def _python(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    root = Path(hardserve.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=directory,
        env={"PYTHONPATH": os.pathsep.join([str(root), *sys.path[1:]]), "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_flask_is_imported_only_by_an_app_that_uses_it(site):
    directory = site({"app.py": PLAIN.format(name="app")})
    result = _python(
        """
        import os, pathlib, sys
        from hardserve.loader import load_app
        load_app("app", directory=pathlib.Path.cwd(), environ=os.environ)
        print(sorted({"flask", "werkzeug", "jinja2", "dash"} & sys.modules.keys()))
        """,
        directory,
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_app_run_is_caught_when_the_app_is_the_first_to_import_flask(site):
    directory = site({"app.py": "from werkzeug import run_simple\n" + RUN + "app.run()"})
    result = _python(
        """
        import os, pathlib, sys
        from hardserve.loader import LoadError, load_app
        try:
            load_app("app", directory=pathlib.Path.cwd(), environ=os.environ)
        except LoadError as error:
            print(error)
        import flask, werkzeug.serving
        print([hasattr(f, "__wrapped__") for f in (flask.Flask.run, werkzeug.run_simple, werkzeug.serving.run_simple)])
        print("exec_module" in vars(flask.app.__loader__))
        """,
        directory,
    )
    assert "app.py:5: app.run() was called" in result.stdout
    assert result.stdout.endswith("[False, False, False]\nFalse\n")
    assert result.stderr == ""


BUNDLED = {"hello": "hello:app", "factory": "factory:create_app()", "plain": "plain:application"}


@pytest.mark.parametrize(("spec", "canonical"), BUNDLED.items())
def test_apps_of_the_tests_load(spec, canonical):
    assert load(APPS, spec).spec == canonical


@pytest.mark.parametrize(("spec", "exit_code"), [("broken", 1), ("runs_itself", 1), ("development", 78)])
def test_apps_of_the_tests_that_must_not_start(spec, exit_code):
    assert refused(APPS, spec).exit_code == exit_code


def test_no_threads_are_left_behind(site):
    before = set(threading.enumerate())
    load(site({"app.py": RUN}), "app")
    assert set(threading.enumerate()) == before
