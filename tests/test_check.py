"""`hardserve check`: each planted fault is found, as itself and as nothing else; a well-set app is met with silence.

Apps are loaded in this process, one after another, as the command does it once. What is said of the box has tests of
its own; the command as a whole is run in processes of its own at the end.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hardserve import check
from hardserve.audit import appfindings, certfindings, doubledfindings, secretfindings, settingfindings
from hardserve.audit.findings import Finding
from hardserve.configfiles import DotEnv
from hardserve.loader import LoadError
from hardserve.options import SettingsError, resolve
from tests.certs import DAY_S, Authority
from tests.gitindex import git_index

REPOSITORY = Path(__file__).parent.parent
KEY = "2f1a7c0be4d95836a1c27e90b3d86f54"  # of no use anywhere else
SECOND = "9b60e2d7f1a84c35b7d21f06ce93a48d"

WELL_SET = """\
import os
from flask import Flask, request, session

app = Flask(__name__)
app.config.update(
    SECRET_KEY=os.environ["SECRET_KEY"],
    SESSION_COOKIE_SECURE=True,
    SESSION_COOKIE_SAMESITE="Lax",
    MAX_CONTENT_LENGTH=1024 * 1024,
)


@app.get("/")
def home():
    return f"hello {session.get('user')}"


@app.post("/login")
def login():
    session["user"] = request.form["user"]
    return "welcome"
"""
RATE = '[[rate_limit]]\npath = "/login"\nlimit = "5/minute"\n'
HOSTS = '[access]\nhosts = ["shop.example.org"]\n'
PROXIED = f'[proxy]\ntrusted = ["loopback"]\n{RATE}'
PUBLIC = f"""\
[server]
bind = ["0.0.0.0:443"]
[tls]
certificate = "shop.pem"
key = "shop.key"
hsts = "1h"
[access]
hosts = ["shop.example.org"]
{RATE}"""
PRIVATE = f'[server]\nbind = ["10.0.0.5:8000"]\n{RATE}'


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority()
    authority.leaf("shop.example.org").write(directory, "shop")
    authority.leaf("shop.example.org", not_before_s=-90 * DAY_S, not_after_s=-DAY_S).write(directory, "expired")
    authority.leaf("shop.example.org", not_before_s=-80 * DAY_S, not_after_s=3 * DAY_S).write(directory, "ending")
    return directory


@pytest.fixture(autouse=True)
def _loading_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("FLASK_", "HARDSERVE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SECRET_KEY", KEY)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


Found = Callable[..., list[Finding]]


@pytest.fixture
def found(tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """Return a function that writes an app and settings, and returns what is found in them."""

    def look(
        source: str = WELL_SET,
        toml: str = PROXIED,
        files: Mapping[str, str | bytes] | None = None,
        app: str | None = "app:app",
        *,
        on_internet: bool = True,
    ) -> list[Finding]:
        for name, content in {"app.py": source, "hardserve.toml": toml, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        for path in certificates.iterdir():
            shutil.copy(path, tmp_path)
        monkeypatch.chdir(tmp_path)
        resolved = resolve(environ={}, dotenv=DotEnv.find(tmp_path, {}), directory=tmp_path)
        return list(check.app_findings(app, resolved, tmp_path, on_internet=on_internet))

    return look


def ids(findings: Sequence[Finding]) -> list[str]:
    return [each.check.id for each in findings]


# --- each fault is found, and nothing else ---


@dataclass(frozen=True)
class Fault:
    id: str
    what: str
    extra: str = ""  # behind the well-set app
    toml: str = PROXIED
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    app: str = WELL_SET
    evidence: str = ""
    needs: str = "flask"  # is not there in every environment


def is_installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def in_config(name: str, value: object) -> str:
    return f"app.config[{name!r}] = {value}\n"


WITHOUT_KEY = WELL_SET.replace('os.environ["SECRET_KEY"]', "None")


def with_key(expression: str) -> str:
    return WELL_SET.replace('os.environ["SECRET_KEY"]', expression).replace("import os", "import os, secrets")


def stand_in(name: str, module: str, method: str = "") -> str:
    """Make an object of a class that is named as an extension's is."""
    body = f"def {method}(self, response):\n        return response" if method else "pass"
    return f"class {name}:\n    {body}\n{name}.__module__ = {module!r}\n"


FAULTS = [
    # the app
    Fault("load-failed", "an app that fails to import", "1 / 0\n", evidence="ZeroDivisionError"),
    Fault("load-failed", "app.run() without a guard", "app.run()\n", evidence="app.run() was called"),
    Fault("debug-on", "debug mode", "app.debug = True\n", evidence="app.debug = True"),
    Fault("testing-on", "TESTING", "app.testing = True\n", evidence="TESTING"),
    Fault("exceptions-propagate", "PROPAGATE_EXCEPTIONS", in_config("PROPAGATE_EXCEPTIONS", True)),
    Fault("errors-trapped", "TRAP_HTTP_EXCEPTIONS", in_config("TRAP_HTTP_EXCEPTIONS", True)),
    Fault("errors-trapped", "TRAP_BAD_REQUEST_ERRORS", in_config("TRAP_BAD_REQUEST_ERRORS", True)),
    Fault("templates-reload", "TEMPLATES_AUTO_RELOAD", in_config("TEMPLATES_AUTO_RELOAD", True)),
    Fault("template-loading-explained", "EXPLAIN_TEMPLATE_LOADING", in_config("EXPLAIN_TEMPLATE_LOADING", True)),
    Fault("sql-echo", "SQLALCHEMY_ECHO", in_config("SQLALCHEMY_ECHO", True)),
    Fault(
        "login-disabled",
        "LOGIN_DISABLED",
        stand_in("LoginManager", "flask_login.login_manager")
        + "app.login_manager = LoginManager()\n"
        + in_config("LOGIN_DISABLED", True),
    ),
    Fault("csrf-off", "WTF_CSRF_ENABLED", in_config("WTF_CSRF_ENABLED", False)),
    Fault(
        "debug-toolbar",
        "the toolbar forced on",
        "app.extensions['debugtoolbar'] = object()\n" + in_config("DEBUG_TB_ENABLED", True),
    ),
    Fault("autoescape-off", "templates as they come", "app.jinja_env.autoescape = False\n"),
    Fault("autoescape-off", "the same, before there are any", "app.jinja_options = {'autoescape': False}\n"),
    Fault(
        "error-page-tells",
        "a traceback for everybody",
        "import traceback\n@app.errorhandler(Exception)\ndef oops(error):\n"
        "    text = traceback.format_exc()\n    return f'<pre>{text}</pre>', 500\n",
        evidence="oops (app.py:",
    ),
    Fault("proxy-fix-doubled", "ProxyFix", "from werkzeug.middleware.proxy_fix import ProxyFix\n"
          "app.wsgi_app = ProxyFix(app.wsgi_app)\n"),
    Fault(
        "limiter-doubled",
        "Flask-Limiter for everything",
        "from flask_limiter import Limiter\nfrom flask_limiter.util import get_remote_address\n"
        "Limiter(get_remote_address, app=app, default_limits=['50/hour'], storage_uri='memory://')\n",
        needs="flask_limiter",
    ),
    Fault(
        "talisman-doubled",
        "Flask-Talisman",
        "from flask_talisman import Talisman\nTalisman(app)\n",
        PUBLIC,
        needs="flask_talisman",
    ),
    Fault(
        "https-redirect-loop",
        "Flask-Talisman in plain HTTP",
        "from flask_talisman import Talisman\nTalisman(app)\n",
        PRIVATE,
        needs="flask_talisman",
    ),
    Fault(
        "whitenoise-doubled",
        "WhiteNoise",
        "from whitenoise import WhiteNoise\napp.wsgi_app = WhiteNoise(app.wsgi_app, root='static', prefix='static/')\n",
        files={"static/site.css": "body {}"},
        needs="whitenoise",
    ),
    Fault(
        "compress-doubled",
        "Flask-Compress",
        stand_in("Compress", "flask_compress.flask_compress", "after_request")
        + "app.after_request(Compress().after_request)\n",
    ),
    Fault("upload-limit-above", "MAX_CONTENT_LENGTH", in_config("MAX_CONTENT_LENGTH", 64 << 20), evidence="64MiB"),
    Fault("form-memory-unbounded", "MAX_FORM_MEMORY_SIZE", in_config("MAX_FORM_MEMORY_SIZE", None)),
    Fault("form-memory-unbounded", "MAX_FORM_PARTS", in_config("MAX_FORM_PARTS", None)),
    Fault(
        "uploads-in-static",
        "uploads beside scripts",
        in_config("UPLOAD_FOLDER", "'static/uploads'"),
        files={"static/uploads/cat.jpg": "cat"},
    ),
    Fault(
        "static-left-to-app",
        "before_request over files",
        "@app.before_request\ndef count():\n    pass\n",
        files={"static/site.css": "body {}"},
        evidence="app.count",
    ),
    Fault("static-exposes", "a database", files={"static/shop.db": b"SQLite format 3\0" + bytes(9)}, evidence=".db"),
    Fault("static-exposes", "an environment", files={"static/.env": "X=1\n"}, evidence=".env"),
    Fault("hosts-any", "any host", toml=PUBLIC.replace('hosts = ["shop.example.org"]', "")),
    Fault(
        "hosts-in-links",
        "links to any host",
        "from flask import url_for\n@app.get('/link')\ndef link():\n    return url_for('home', _external=True)\n",
        PUBLIC.replace('hosts = ["shop.example.org"]', ""),
        evidence="url_for(_external=True) in link",
    ),
    Fault(
        "hosts-in-links",
        "the same by hand",
        "@app.get('/link')\ndef link():\n    return f'{request.host_url}reset'\n",
        PUBLIC.replace('hosts = ["shop.example.org"]', ""),
        evidence="host_url in link",
    ),
    Fault("login-unlimited", "guessing", toml=PROXIED.replace(RATE, ""), evidence="POST /login"),
    # keys and cookies
    Fault("secret-key-missing", "no key", app=WITHOUT_KEY, evidence="session in home (app.py:13)"),
    Fault("secret-key-missing", "no key, and a login", evidence="login_user in come_in",
          app=re.sub(r"(?s)@app.*", "", WITHOUT_KEY),
          extra=stand_in("LoginManager", "flask_login") + "app.login_manager = LoginManager()\n"
          "@app.post('/in')\ndef come_in():\n    login_user(1)\n    return ''\n"),
    Fault("secret-key-weak", "a key of a tutorial", app=with_key('"dev"'), evidence="SECRET_KEY is made of words"),
    Fault("secret-key-weak", "a key of words", app=with_key('"my-super-secret-key-for-this-app"')),
    Fault("secret-key-weak", "a key with one letter", app=with_key('"k" * 40')),
    Fault("secret-key-weak", "another key of words", in_config("JWT_SECRET_KEY", "'jwt-secret-string'"),
          evidence="JWT_SECRET_KEY"),
    Fault("secret-key-short", "a short key", app=with_key('"q8fZ2x"'), evidence="6 characters"),
    Fault("secret-key-random", "a new key", app=with_key("secrets.token_hex()"), evidence="app.py:6"),
    Fault("secret-key-random", "a new key for want of another",
          app=with_key('os.environ.get("NO_SUCH_KEY") or os.urandom(32)')),
    Fault("secret-key-in-source", "a key for all", app=with_key(repr(SECOND)), evidence="app.py:6"),
    Fault("secret-key-in-source", "a key for want of another",
          app=with_key(f'os.environ.get("NO_SUCH_KEY", {SECOND!r})')),
    Fault("secret-in-source", "a password", in_config("MAIL_PASSWORD", "'tr0ub4dor'"), evidence="MAIL_PASSWORD"),
    Fault(
        "database-password-in-source",
        "a password of a database",
        in_config("SQLALCHEMY_DATABASE_URI", "'postgresql://shop:hunter2@db/shop'"),
        evidence="app.py:",
    ),
    Fault("session-cookie-insecure", "without SECURE", in_config("SESSION_COOKIE_SECURE", False), PUBLIC),
    Fault("session-cookie-insecure", "without SECURE, and HTTPS by a proxy",
          in_config("SESSION_COOKIE_SECURE", False) + in_config("PREFERRED_URL_SCHEME", "'https'")),
    Fault("remember-cookie-insecure", "a cookie that logs in", toml=PUBLIC, evidence="login_user in come_in (app.py:",
          extra=stand_in("LoginManager", "flask_login") + "app.login_manager = LoginManager()\n"
          "@app.post('/in')\ndef come_in():\n    login_user(1, remember=True)\n    return ''\n"),
    Fault("session-cookie-behind-proxy", "without SECURE, and a proxy", in_config("SESSION_COOKIE_SECURE", False)),
    Fault("session-cookie-scripts", "without HTTPONLY", in_config("SESSION_COOKIE_HTTPONLY", False)),
    Fault("session-cookie-samesite", "without SAMESITE", in_config("SESSION_COOKIE_SAMESITE", None),
          evidence="session in home"),
    Fault("session-cookie-domain", "a wide domain", in_config("SESSION_COOKIE_DOMAIN", "'.example.org'"), PUBLIC),
    Fault("session-lifetime", "years", in_config("PERMANENT_SESSION_LIFETIME", 10 * 366 * 86400), evidence="3660 days"),
    # the settings
    Fault("plain-http", "plain HTTP for all", toml=f'{PRIVATE.replace("10.0.0.5", "0.0.0.0")}{HOSTS}'),
    Fault(
        "auth-plain",
        "passwords for all to read",
        toml=f'[server]\nbind = ["[::]:80"]\n[auth]\nusers = "./users"\nrequired = "on"\n{HOSTS}{RATE}',
        files={"users": "ada:scrypt:32768:8:1$salt$" + "0" * 128 + "\n"},
    ),
    Fault("past-the-proxy", "a proxy to go past",
          toml=f'[server]\nbind = ["0.0.0.0:8000"]\n{PROXIED}{HOSTS}'),
    Fault("proxy-not-named", "a socket for nobody", toml=f'[server]\nbind = ["unix:/run/shop.sock"]\n{RATE}'),
    Fault("proxy-not-named", "ProxyFix for nobody", "from werkzeug.middleware.proxy_fix import ProxyFix\n"
          "app.wsgi_app = ProxyFix(app.wsgi_app)\n", toml=RATE, evidence="ProxyFix"),
    Fault("proxy-anybody", "everybody is a proxy", toml=f'[proxy]\ntrusted = ["0.0.0.0/0"]\n{RATE}'),
    Fault("loopback-only", "nobody else", toml=RATE),
    Fault("certificate-unusable", "an expired certificate", toml=PUBLIC.replace('"shop.pem', '"expired.pem').replace(
        '"shop.key', '"expired.key')),
    Fault("certificate-expiring", "one that ends", toml=PUBLIC.replace('"shop.pem', '"ending.pem').replace(
        '"shop.key', '"ending.key')),
    Fault("certificate-names", "a host without one", toml=PUBLIC.replace('["shop', '["www.example.com", "shop')),
    Fault(
        "acme-staging",
        "a CA for tests",
        toml='[tls]\ndomain = ["shop.example.org"]\nhsts = "1h"\n[acme]\nagree = "on"\n'
        f'directory = "letsencrypt-staging"\n[access]\nhosts = ["shop.example.org"]\n{RATE}',
    ),
    Fault("hsts-off", "HTTPS that is forgotten", toml=PUBLIC.replace('hsts = "1h"', "")),
    Fault("rates-off", "no limit", toml=f'{PUBLIC}[rate_limiting]\ndefault = "off"\n'),
    Fault(
        "password-guesses",
        "guesses without end",
        toml=f'{PROXIED}[auth]\nusers = "./users"\nrequired = "on"\nfailures = "off"\n',
        files={"users": "ada:scrypt:32768:8:1$salt$" + "0" * 128 + "\n"},
    ),
    Fault("form-limit-wide", "a large form", toml=f'{PROXIED}[limits]\nform = "64MiB"\nbody = "64MiB"\n'),
    Fault("body-limit-wide", "a large body",
          toml=f'{PROXIED}[limits]\nbody = "2GiB"\nbuffered_files = "8GiB"\n'),
    Fault("log-debug", "everything in the log", toml=f'{PROXIED}[log]\nlevel = "debug"\n'),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.id}: {fault.what}")
def test_a_planted_fault_is_found_and_nothing_else(fault: Fault, found: Found, tmp_path: Path) -> None:
    if importlib.util.find_spec(fault.needs) is None:
        pytest.skip(f"{fault.needs} is not installed")
    if "users" in fault.files:
        (tmp_path / "users").touch(0o600)
    findings = found(fault.app + fault.extra, fault.toml, fault.files)
    assert ids(findings) == [fault.id], [(each.check.id, each.evidence) for each in findings]
    (finding,) = findings
    assert fault.evidence in finding.evidence
    assert finding.fix
    assert "\n" not in finding.fix
    for secret in (KEY, SECOND, "tr0ub4dor", "hunter2"):
        assert secret not in finding.evidence + finding.fix


# --- silence ---

BY_TOKEN = """\
from flask import Flask, request
app = Flask(__name__)

@app.put("/thing")
def put():
    return request.headers["Authorization"]
"""
OWN_DEFENCE = """
app.config["SESSION_COOKIE_SAMESITE"] = None

@app.before_request
def only_our_pages():
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        return "no", 403
"""
SINGLE_LIMITS = """
from flask_limiter import Limiter
limiter = Limiter(lambda: "all", app=app, storage_uri="memory://")
limiter.limit("5/minute")(login)
"""
CAREFUL = """
import traceback

@app.errorhandler(Exception)
def oops(error):
    app.logger.error("%s", traceback.format_exc())
    return "something went wrong", 500
"""


@pytest.mark.parametrize(
    ("source", "toml", "files"),
    [
        pytest.param(WELL_SET, PROXIED, {}, id="an app behind a proxy"),
        pytest.param(WELL_SET, PUBLIC, {}, id="an app on the open internet"),
        pytest.param(WELL_SET, PRIVATE, {}, id="an app in a private network"),
        pytest.param(
            WELL_SET, f'[server]\nbind = ["0.0.0.0:80"]\n[access]\nallow = ["private", "loopback"]\n{RATE}', {},
            id="an app at home",
        ),
        pytest.param(
            WELL_SET, f'[server]\nbind = ["0.0.0.0:8000?proxy_protocol"]\n[proxy]\ntrusted = ["10.0.0.10"]\n{RATE}', {},
            id="an app behind HAProxy",
        ),
        pytest.param(WELL_SET, PROXIED, {"static/site.css": "body {}"}, id="an app with static files"),
        pytest.param(WELL_SET, PROXIED, {".env": f"SECRET_KEY={KEY}\n"}, id="an app with an .env file"),
        pytest.param(BY_TOKEN, PROXIED, {}, id="an API without sessions"),
        pytest.param(
            BY_TOKEN + stand_in("LoginManager", "flask_login") + "app.login_manager = LoginManager()\n", PROXIED, {},
            id="an API with Flask-Login and without sessions",
        ),
        pytest.param(
            WELL_SET + in_config("PAGE_RESET_PASSWORD", "'/account/reset-password'"), PROXIED, {},
            id="a page about passwords",
        ),
        pytest.param(WELL_SET, f'[server]\nbind = ["0.0.0.0:8000"]\n{RATE}', {}, id="all addresses of a box at home"),
        pytest.param(WELL_SET + OWN_DEFENCE, PROXIED, {}, id="an app that looks where requests come from"),
        pytest.param(
            WELL_SET + SINGLE_LIMITS, PROXIED.replace(RATE, ""), {}, id="limits of single views",
            marks=is_installed("flask_limiter"),
        ),
        pytest.param(WELL_SET + CAREFUL, PROXIED, {}, id="a handler that logs the traceback"),
        pytest.param(
            with_key('os.environ.get("SECRET_KEY") or os.urandom(32)'), PROXIED, {}, id="a key that need not be made"
        ),
        pytest.param(
            with_key(f'os.environ.get("SECRET_KEY", {SECOND!r})'), PROXIED, {}, id="a default that does not count"
        ),
        pytest.param(
            WELL_SET + in_config("MAIL_PASSWORD", 'os.environ["SECRET_KEY"]'), PROXIED, {}, id="a password from outside"
        ),
        pytest.param(
            WELL_SET + in_config("SQLALCHEMY_DATABASE_URI", "'sqlite:///shop.db'"), PROXIED, {}, id="SQLite"
        ),
        pytest.param(
            WELL_SET + in_config("SESSION_COOKIE_DOMAIN", "'example.org'"),
            PUBLIC.replace('["shop', '[".example.org", "shop'), {}, id="a cookie for several hosts",
        ),
        pytest.param(
            WELL_SET + in_config("MAX_CONTENT_LENGTH", 64 << 20),
            f'{PROXIED}[[route]]\npath = "/upload"\nmax_body = "64MiB"\n', {}, id="a route for the upload",
        ),
        pytest.param("def app(environ, start_response):\n    return []\n", PROXIED, {}, id="an app of no framework"),
    ],
)  # fmt: skip
def test_nothing_is_found_in(source: str, toml: str, files: Mapping[str, str], found: Found, tmp_path: Path) -> None:
    if ".env" in files:
        (tmp_path / ".env").touch(0o600)
    findings = found(source, toml, files, on_internet="0.0.0.0:8000" not in toml)
    assert [(each.check.id, each.evidence) for each in findings] == []


def test_what_is_not_found_by_its_name_is_usage(found: Found) -> None:
    with pytest.raises(LoadError) as caught:
        found(app="app:app:app")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("toml", "files", "said"),
    [
        pytest.param(
            f'{PROXIED}[[static]]\nurl = "/media"\ndirectory = "media"\n', {"media/.env": "X=1\n"},
            "static[0].directory", id="a directory that a server would not serve",
        ),
        pytest.param(
            f'{PROXIED}[rate_limiting]\nstorage = "memcached://localhost:11211"\n'
            '[[rate_limit]]\nlimit = "1/second"\nstrategy = "moving-window"\n', {}, "rate_limit",
            id="a store that cannot do it",
        ),
    ],
)  # fmt: skip
def test_what_a_server_would_refuse_is_no_finding(toml: str, files: Mapping[str, str], said: str, found: Found) -> None:
    with pytest.raises(SettingsError) as caught:
        found(WELL_SET, toml, files)
    assert said in str(caught.value)


# --- real apps ---


@pytest.mark.peer
@pytest.mark.parametrize(
    ("app", "toml", "expected"),
    [
        pytest.param(
            "httpbin:app",
            PROXIED,
            # Its before_request looks for chunks that some servers cannot read.
            {"static-left-to-app": "httpbin.core.before_request"},
            marks=is_installed("httpbin"),
            id="httpbin",
        ),
        pytest.param("dash_app:app", PROXIED, {}, marks=is_installed("dash"), id="Dash"),
        pytest.param(
            "sqlite_web.sqlite_web:app",
            PUBLIC,
            {
                # Everybody who has the package has the key; only its own command line puts another one in its place.
                "secret-key-in-source": "sqlite_web.py:",
                "session-cookie-insecure": "SESSION_COOKIE_SECURE",
                "static-left-to-app": "_reject_cross_site_post",
                "login-unlimited": "POST /login/",
            },
            marks=is_installed("sqlite_web"),
            id="sqlite-web",
        ),
    ],
)
def test_what_is_found_in_real_apps_is_true(
    app: str, toml: str, expected: Mapping[str, str], found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "apps"))
    findings = {each.check.id: each.evidence for each in found(toml=toml.replace(RATE, ""), app=app)}
    assert findings.keys() == expected.keys(), findings
    for name, evidence in expected.items():
        assert evidence in findings[name]


# --- files ---


def test_what_git_tracks_is_found_and_what_it_leaves_out_is_not(found: Found, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").touch()
    (tmp_path / ".git" / "index").write_bytes(git_index(["app.py", ".env"], 2))
    (tmp_path / ".env").touch(0o600)
    local = {"secret_settings.py": f"KEY = {SECOND!r}\n", ".env": "GREETING=hello\n"}
    own = WELL_SET.replace('os.environ["SECRET_KEY"]', "KEY").replace("import os", "from secret_settings import KEY")
    assert ids(found(own, files=local)) == []
    (finding,) = found(own, files=local | {".env": f"API_TOKEN={KEY}\n"})
    assert (finding.check.id, finding.evidence) == ("secret-file-tracked", ".env has API_TOKEN")
    (tmp_path / ".git" / "index").write_bytes(git_index(["app.py", "secret_settings.py"], 2))
    del sys.modules["secret_settings"], sys.modules["app"]
    assert ids(found(own, files=local)) == ["secret-key-in-source"]


def test_a_users_file_for_everybody_is_found(found: Found, tmp_path: Path) -> None:
    (tmp_path / "users").touch(0o644)
    (tmp_path / "users").chmod(0o644)
    toml = f'{PROXIED}[auth]\nusers = "./users"\nrequired = "on"\n'
    (finding,) = found(toml=toml, files={"users": "ada:scrypt:32768:8:1$salt$" + "0" * 128 + "\n"})
    assert (finding.check.id, finding.fix) == ("users-file-open", "chmod o= ./users")


def test_every_check_of_the_app_and_its_settings_is_planted_here() -> None:
    elsewhere = {"secret-file-open", "secret-file-tracked", "users-file-open", "certificate-renewal-fails"}
    modules = (appfindings, doubledfindings, secretfindings, settingfindings, certfindings)
    assert {fault.id for fault in FAULTS} | elsewhere == {one.id for module in modules for one in module.CHECKS}
