"""HTTP Basic over real sockets: who is let in, what the others are told, and what a check costs the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, request

from tests.browser import Browser, needs_chromium
from tests.conftest import REPOSITORY, StartCommand
from tests.passwords import CHALLENGE, basic, checks_held, eventually, unchecked, write_users
from tests.support import Client, Running, serving

CURL = shutil.which("curl")
GET = "GET / HTTP/1.1\r\nHost: test\r\n"


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    told = {key: environ.get(key) for key in ("REMOTE_USER", "AUTH_TYPE", "HTTP_AUTHORIZATION", "PATH_INFO")}
    told["body"] = len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]


@pytest.fixture
def users(tmp_path: Path) -> str:
    return write_users(tmp_path / "users", anna="right", böll="grün:weiß")


def guarded(users: str, **settings: Any) -> Any:
    settings.setdefault("auth_required", "on")
    settings.setdefault("auth_failures", "off")
    return serving(app, auth_users=users, **settings)


# --- who is let in ---


@pytest.mark.parametrize(
    ("field", "status", "user"),
    [
        pytest.param(basic("anna", "right"), 200, "anna", id="the right password"),
        pytest.param(basic("anna", "right").replace("Basic ", "bAsIC "), 200, "anna", id="a scheme has no case"),
        pytest.param(basic("böll", "grün:weiß"), 200, "böll", id="UTF-8, and a colon in the password"),
        pytest.param("Authorization: Basic YvZsbDpncvxuOndlad8=", 200, "böll", id="Latin-1, as some clients send it"),
        pytest.param(None, 401, "", id="nothing"),
        pytest.param(basic("anna", "wrong"), 401, "", id="a wrong password"),
        pytest.param(basic("anna", ""), 401, "", id="an empty password"),
        pytest.param(basic("", "right"), 401, "", id="no user"),
        pytest.param(basic("anna", "right "), 401, "", id="a password that goes on"),
        pytest.param(basic("Anna", "right"), 401, "", id="users have a case"),
        pytest.param(basic("nobody", "right"), 401, "", id="nobody's name"),
        pytest.param("Authorization: Basic", 401, "", id="a scheme alone"),
        pytest.param("Authorization: Basic !!!", 401, "", id="no base64"),
        pytest.param("Authorization: Basic YW5uYQ==", 401, "", id="no colon"),
        pytest.param("Authorization: Bearer YW5uYTpyaWdodA==", 401, "", id="another scheme"),
        pytest.param("Authorization: Digest username=anna", 401, "", id="Digest"),
        pytest.param(f"{basic('anna', 'right')}, {basic('anna', 'wrong')}", 401, "", id="two in one field"),
        pytest.param(f"Authorization: Basic {'A' * 8000}", 401, "", id="a password of kilobytes"),
    ],
)
def test_a_client_is_let_in(users: str, field: str | None, status: int, user: str) -> None:
    with guarded(users) as running, running.connect() as client:
        for _ in range(2):  # the second one may be remembered
            response = client.get("/", *([field] if field else []))
            assert response.status == status
            assert response.header("WWW-Authenticate") == (None if status == 200 else CHALLENGE)
            assert response.header("Connection") is None  # it may go on with a password, or the next one
            if status == 200:
                told = json.loads(response.body)
                assert (told["REMOTE_USER"].encode("latin-1").decode(), told["AUTH_TYPE"]) == (user, "Basic")
        assert [entry.user for entry in running.log.wait_for(2)] == [user, user]


def test_a_password_that_comes_twice_is_none(users: str) -> None:
    with guarded(users) as running, running.connect() as client:
        fields = (basic("anna", "right"), basic("anna", "right"))
        assert client.get("/", *fields).status in (400, 401)


def test_the_log_tells_no_password_and_why(users: str) -> None:
    with guarded(users) as running, running.connect() as client:
        client.get("/")
        client.get("/", basic("anna", "wrong"))
        assert [entry.refusal for entry in running.log.wait_for(2)] == ["password_needed", "password_wrong"]


def test_who_is_nobody_is_told_the_same_as_who_is_wrong(users: str) -> None:
    with guarded(users) as running, running.connect() as client:
        told = [client.get("/", basic(user, "wrong"), "X-Request-ID: 1") for user in ("anna", "nobody")]
    known, unknown = [
        (response.status, [field for field in response.headers if field[0] not in ("Date", "X-Request-ID")])
        for response in told
    ]
    assert known == unknown


def test_the_realm_is_the_operators(users: str) -> None:
    with guarded(users, auth_realm="The back office") as running, running.connect() as client:
        response = client.get("/", "Accept: text/html", method="HEAD")
        assert response.header("WWW-Authenticate") == 'Basic realm="The back office", charset="UTF-8"'
        assert client.get("/", basic("anna", "right")).status == 200


def test_a_page_of_the_operators_asks_for_the_password_too(users: str, tmp_path: Path) -> None:
    page = tmp_path / "who.html"
    page.write_text("<p>Who are you?</p>")
    with guarded(users, error_page=[{"status": 401, "file": str(page)}]) as running, running.connect() as client:
        for fields in ([], [basic("anna", "wrong")]):
            response = client.get("/", "Accept: text/html", *fields)
            assert (response.status, response.header("WWW-Authenticate")) == (401, CHALLENGE)
            assert response.body == b"<p>Who are you?</p>"


# --- where ---

ROUTES = [
    {"path": "/open/*", "auth": "off"},
    {"path": "/admin/*", "auth": "on"},
    {"path": "/write", "methods": ["POST"], "auth": "on"},
]


@pytest.mark.parametrize(
    ("required", "method", "target", "status"),
    [
        pytest.param("off", "GET", "/", 200, id="not asked for"),
        pytest.param("off", "GET", "/admin/x", 401, id="asked for here"),
        pytest.param("off", "GET", "/admin", 401, id="and here"),
        pytest.param("off", "GET", "//admin/x", 401, id="and with two slashes"),
        pytest.param("off", "GET", "/%61dmin/x", 401, id="and with an escape"),
        pytest.param("off", "GET", "/admin%2Fx", 401, id="and with an escaped slash"),
        pytest.param("off", "GET", "/open/../admin/x", 401, id="and from another place"),
        pytest.param("off", "GET", "http://test/admin/x", 401, id="and with an absolute target"),
        pytest.param("off", "GET", "/write", 200, id="not for this method"),
        pytest.param("off", "POST", "/write", 401, id="but for that one"),
        pytest.param("on", "GET", "/", 401, id="asked for anywhere"),
        pytest.param("on", "GET", "/open/x", 200, id="but here"),
        pytest.param("on", "GET", "/open/../x", 401, id="which this is not"),
    ],
)
def test_a_password_is_asked_for(users: str, required: str, method: str, target: str, status: int) -> None:
    with guarded(users, auth_required=required, route=ROUTES) as running, running.connect() as client:
        assert client.get(target, method=method).status == status
        assert client.get(target, basic("anna", "right"), method=method).status == 200


@pytest.mark.parametrize("target", ["/admin/x/../../y", "/admin/..", "/admin/%2e%2e/y", "/admin/x/%2e./../y"])
def test_an_app_that_takes_dots_for_a_name_is_guarded_too(users: str, target: str) -> None:
    """Werkzeug's `path` takes anything, and `/admin/../y` is to it a page of the admin's."""
    flask = Flask("pages")
    flask.add_url_rule("/admin/<path:page>", view_func=lambda page: f"secret {page}")
    with (
        serving(flask, auth_users=users, route=[{"path": "/admin/*", "auth": "on"}]) as running,
        running.connect() as client,
    ):
        response = client.get(target)
        assert (response.status, b"secret" in response.body) == (401, False)


def test_where_it_is_off_the_apps_own_passwords_are_its_own(users: str) -> None:
    flask = Flask("own")

    @flask.route("/own")
    def own() -> Response | str:
        given = request.authorization
        if given is None or given.type != "basic" or given.password != "mine":
            return Response("who?", 401, {"WWW-Authenticate": 'Basic realm="own"'})
        return f"{given.username} {request.remote_user}"

    routes = [{"path": "/admin", "auth": "on"}]
    with serving(flask, auth_users=users, route=routes) as running, running.connect() as client:
        response = client.get("/own")
        assert (response.status, response.header("WWW-Authenticate")) == (401, 'Basic realm="own"')
        # Neither a user of the file nor a wrong one: nobody but the app looks at it.
        assert client.get("/own", basic("anna", "mine")).body == b"anna None"
        assert client.get("/own", basic("anna", "right")).status == 401
        assert client.get("/own", "Authorization: Bearer x").status == 401
        assert [entry.user for entry in running.log.wait_for(4)] == [""] * 4


# --- the users file ---


def test_a_changed_file_is_in_force_a_second_later(users: str, tmp_path: Path) -> None:
    with guarded(users) as running, running.connect() as client:
        assert client.get("/", basic("anna", "right")).status == 200
        assert client.get("/", basic("böll", "grün:weiß")).status == 200
        write_users(tmp_path / "users", anna="other", carl="new")
        eventually(lambda: client.get("/", basic("anna", "right")).status == 401)
        statuses = [
            client.get("/", basic(user, password)).status
            for user, password in (("anna", "other"), ("carl", "new"), ("böll", "grün:weiß"))
        ]
        assert statuses == [200, 200, 401]


# --- bodies ---

POST = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n"


def test_who_waits_for_100_gets_it_only_with_the_right_password(users: str) -> None:
    expecting = f"{POST}Expect: 100-continue\r\n"
    with guarded(users) as running:
        with running.connect() as client:
            client.send(f"{expecting}\r\n".encode())
            assert client.response().status == 401
        with running.connect() as client:
            client.send(f"{expecting}{basic('anna', 'wrong')}\r\n\r\n".encode())
            assert client.response().status == 401
        with running.connect() as client:
            client.send(f"{expecting}{basic('anna', 'right')}\r\n\r\n".encode())
            assert client.response().status == 100
            client.send(b"12345")
            assert json.loads(client.response().body)["body"] == 5


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("pieces", ["whole", "byte by byte"])
def test_a_body_that_comes_while_its_password_is_checked(users: str, framing: str, pieces: str) -> None:
    body = b"5\r\n12345\r\n0\r\n\r\n" if "chunked" in framing else b"12345"
    head = f"POST / HTTP/1.1\r\nHost: test\r\n{framing}\r\n{basic('anna', 'right')}\r\n\r\n".encode()
    with guarded(users) as running, running.connect() as client:
        client.get("/")
        with checks_held(running) as release:
            for piece in [head + body] if pieces == "whole" else [bytes([byte]) for byte in head + body]:
                client.send(piece)
            eventually(lambda: unchecked(running) == 1)
            release.set()
            assert json.loads(client.response().body)["body"] == 5
        assert client.get("/", basic("anna", "right")).status == 200


def test_a_body_without_a_password_is_not_taken(users: str) -> None:
    with guarded(users) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
        response = client.response()
        assert (response.status, response.header("Connection")) == (401, "close")
        assert running.log.wait_for(1)[0].refusal == "password_needed"
        assert running.server._workers.workers == [] or all(
            worker.job is None for worker in running.server._workers.workers
        )


def test_a_body_is_measured_when_the_password_is_right(users: str) -> None:
    with guarded(users, limits_body=4) as running:
        for field, status in ((basic("anna", "wrong"), 401), (basic("anna", "right"), 413)):
            with running.connect() as client:
                client.send(f"{POST}{field}\r\n\r\n12345".encode())
                assert client.response().status == status


# --- several at once ---


def numbered(number: int, password: str) -> bytes:
    return f"GET /{number} HTTP/1.1\r\nHost: test\r\n{basic('anna', password)}\r\n\r\n".encode()


def test_pipelined_requests_are_answered_in_order(users: str) -> None:
    with guarded(users) as running, running.connect() as client:
        client.get("/")
        with checks_held(running) as release:
            client.send(b"".join(numbered(number, "right" if number % 3 else "wrong") for number in range(30)))
            eventually(lambda: unchecked(running) == 1)
            release.set()
            for number in range(30):
                response = client.response()
                assert response.status == (200 if number % 3 else 401)
                if number % 3:
                    assert json.loads(response.body)["PATH_INFO"] == f"/{number}"


def test_others_are_served_while_passwords_are_checked(users: str) -> None:
    routes = [{"path": "/open", "auth": "off"}]
    with guarded(users, route=routes) as running, running.connect() as waiting, running.connect() as client:
        assert client.get("/", basic("anna", "right")).status == 200
        with checks_held(running) as release:
            waiting.send(numbered(1, "wrong"))
            eventually(lambda: unchecked(running) == 1)
            assert client.get("/open").status == 200
            assert client.get("/").status == 401
            release.set()
            assert waiting.response().status == 401


def ask_for(running: Running, client: Client, count: int) -> None:
    client.send(numbered(1, "right"))
    eventually(lambda: unchecked(running) == count)


def test_one_client_has_eight_passwords_checked_at_once_and_others_go_on(users: str) -> None:
    with guarded(users) as running:
        connections = [running.connect() for _ in range(9)]
        with checks_held(running) as release:
            for count, client in enumerate(connections[:8], 1):
                ask_for(running, client, count)
            response = connections[8].get("/", basic("anna", "right"))
            assert (response.status, response.header("Retry-After")) == (503, "1")
            other = running.connect("127.0.0.2")
            ask_for(running, other, 9)
            release.set()
            assert [client.response().status for client in (*connections[:8], other)] == [200] * 9
        assert connections[8].get("/", basic("anna", "right")).status == 200  # on the same connection
        assert "passwords_busy" in {entry.refusal for entry in running.log.entries}
        for client in (*connections, other):
            client.socket.close()


def test_only_so_many_passwords_wait_in_all(users: str) -> None:
    with guarded(users) as running:
        connections = [running.connect(f"127.0.0.{host}") for host in range(2, 11) for _ in range(8)]
        with checks_held(running) as release:
            for count, client in enumerate(connections[:64], 1):
                ask_for(running, client, count)
            assert [client.get("/", basic("anna", "right")).status for client in connections[64:]] == [503] * 8
            release.set()
            assert [client.response().status for client in connections[:64]] == [200] * 64
        for client in connections:
            client.socket.close()


# --- guessing ---


def test_who_guesses_is_slowed_and_who_is_known_is_not(users: str) -> None:
    with guarded(users, auth_failures="3/minute") as running, running.connect() as client:
        assert client.get("/", basic("anna", "right")).status == 200
        assert [client.get("/", basic("anna", f"guess {number}")).status for number in range(3)] == [401] * 3
        response = client.get("/", basic("böll", "grün:weiß"))  # right, and not looked at
        assert response.status == 429
        assert 1 <= int(response.header("Retry-After") or 0) <= 60
        assert response.header("RateLimit-Policy") == '"auth";q=3;w=60'
        assert response.header("WWW-Authenticate") is None
        assert client.get("/", basic("anna", "right")).status == 200  # at the same address
        assert client.get("/").status == 401  # who says nothing guesses nothing
        with running.connect("127.0.0.2") as other:
            assert other.get("/", basic("böll", "grün:weiß")).status == 200
        assert running.log.wait_for(5)[4].refusal == "rate_limited"


def test_guesses_are_counted_for_whom_the_proxy_speaks(users: str) -> None:
    with guarded(users, auth_failures="2/minute", proxy_trusted=["loopback"]) as running, running.connect() as client:
        statuses = [
            client.get("/", basic("anna", "wrong"), f"X-Forwarded-For: 2001:db8:{net}::{host}").status
            for net, host in ((1, 1), (1, 2), (1, 3), (2, 1))
        ]
        assert statuses == [401, 401, 429, 401]


def test_guesses_without_number_are_bans(users: str) -> None:
    with guarded(users, ban_after=3, ban_exempt=[]) as running, running.connect() as client:
        for number in range(4):
            assert client.get("/", basic("anna", f"guess {number}")).status == 401
        with pytest.raises((ConnectionError, EOFError)):
            client.get("/", basic("anna", "right"))


def test_a_browser_that_has_not_asked_for_the_password_yet_is_never_banned(users: str) -> None:
    with guarded(users, ban_after=1, ban_exempt=[]) as running, running.connect() as client:
        assert [client.get("/").status for _ in range(20)] == [401] * 20


# --- with the command, curl and a browser ---


@pytest.fixture
def command_users(tmp_path: Path) -> Path:
    """Return a users file made by the command."""
    path = tmp_path / "users"
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    made = subprocess.run(
        [sys.executable, "-m", "hardserve", "passwd", str(path), "anna", "--stdin"],
        input="s3cret word\n",
        env=kept | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (made.returncode, made.stderr) == (0, "")
    return path


PAGE = """\
from flask import Flask, request

app = Flask(__name__)


@app.route("/")
def page():
    return '<!doctype html><link rel="icon" href="data:,"><p id=p>hello</p><script src="/name.js"></script>'


@app.route("/open")
def open_to_all():
    return '<!doctype html><link rel="icon" href="data:,"><p>open'


@app.route("/name.js")
def script():
    return f"document.querySelector('#p').innerText = {request.remote_user!r}", {"Content-Type": "text/javascript"}


@app.route("/upload", methods=["POST"])
def upload():
    return f"{len(request.get_data())} of {request.remote_user}"
"""


@pytest.fixture
def site(command_users: Path, start_command: StartCommand) -> Iterator[Any]:
    directory = command_users.parent
    (directory / "page.py").write_text(PAGE)
    (directory / "hardserve.toml").write_text(
        """
        [auth]
        users = "./users"
        required = "on"
        [[route]]
        path = "/open"
        auth = "off"
        """
    )
    with start_command("page:app", directory=directory) as command:
        yield command


@pytest.mark.peer
@pytest.mark.skipif(not CURL, reason="curl is not installed")
def test_curl_and_the_command_agree(site: Any) -> None:
    assert CURL is not None

    def curl(path: str, *arguments: str) -> str:
        write_out = ("--write-out", " %{http_code}")
        asked = [CURL, "--silent", "--max-time", "20", "--noproxy", "*", *write_out, *arguments, f"{site.url}{path}"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout

    assert curl("/name.js").endswith(" 401")
    assert curl("/name.js", "-u", "anna:wrong").endswith(" 401")
    assert curl("/name.js", "-u", "anna:s3cret word") == "document.querySelector('#p').innerText = 'anna' 200"
    # It asks without the password first, and sends a megabyte only when it is asked to.
    upload = ("--anyauth", "-u", "anna:s3cret word", "-H", "Expect: 100-continue", "--data-binary", "@-")
    sent = subprocess.run(
        [CURL, "--silent", "--max-time", "20", "--noproxy", "*", *upload, f"{site.url}/upload"],
        input=b"x" * 1_000_000,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert sent.stdout == b"1000000 of anna"
    eventually(lambda: " - anna [" in site.access_log.read_text())


@pytest.mark.peer
@needs_chromium
def test_a_browser_sends_the_password_with_all_of_a_page(browser: Browser, site: Any) -> None:
    # A window that asks for a password would stay open: a script that sends none sees what is told instead.
    browser.open(f"{site.url}/open")
    asking = "fetch('/', {credentials: 'omit', headers: {Accept: 'text/html'}})"
    told = browser.run(f"return {asking}.then(async answer => [answer.status, await answer.text()])")
    assert told[0] == 401
    assert "A user name and password are needed." in told[1]
    browser.open(site.url.replace("http://", "http://anna:wrong@"))
    assert "hello" not in browser.run("return document.documentElement.outerHTML")
    browser.open(site.url.replace("http://", "http://anna:s3cret%20word@"))
    browser.wait_until("document.querySelector('#p').innerText == 'anna'")  # the script has it, too
    assert browser.console() == []
    # The browser remembers it for the place, and needs not be asked again.
    browser.open(site.url)
    browser.wait_until("document.querySelector('#p').innerText == 'anna'")
