"""HTTPS as clients see it: the server with its certificates, over real sockets and with real clients."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from flask import Flask, request, send_file

from hardserve.configfiles import SettingsError
from hardserve.options import from_keywords, resolve
from hardserve.record import MAX_REASONS, Record
from hardserve.securing import state_directory
from hardserve.server import Server
from hardserve.settings import BanSettings
from hardserve.tls import upkeep
from hardserve.tls.policy import PairFiles
from tests.certs import Authority, client_context
from tests.conftest import StartCommand
from tests.support import PATIENCE_S, Client, RecordingAccessLog, Running, TlsSocket, over, serving
from tests.test_http import echo, eventually, read_digest

ROOT = Authority()
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CONTENT = os.urandom(1 << 20) * 24
DIGEST = hashlib.sha256(CONTENT).hexdigest()

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")


def tell(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with what the app is told of TLS, a line each."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    told = ("wsgi.url_scheme", "HTTPS", "SERVER_PORT", "REMOTE_ADDR")
    return ["".join(f"{k}={v}\n" for k, v in environ.items() if k in told or k.startswith("SSL_")).encode("latin-1")]


def told(body: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in body.decode("latin-1").splitlines())


def pair_settings(pair: PairFiles) -> dict[str, Any]:
    return {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}


@contextlib.contextmanager
def secured(app: Any, directory: Path, *names: str, **settings: Any) -> Iterator[Running]:
    """Serve with a certificate that ROOT has signed."""
    pair = ROOT.leaf(*(names or ("localhost", "127.0.0.1"))).write(directory)
    with serving(app, **pair_settings(pair) | settings) as running:
        yield running


def connect(port: int, context: ssl.SSLContext | None = None, name: str = "localhost") -> Client:
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    return Client(TlsSocket(raw, context or client_context(ROOT), name))


def fingerprint(client: Client) -> str:
    der = client.socket.tls.getpeercert(True)
    return hashlib.sha256(der).hexdigest()


def plain(port: int) -> Client:
    return Client(socket.create_connection(("127.0.0.1", port), PATIENCE_S))


@pytest.fixture
def told_by(tmp_path: Path) -> Iterator[Running]:
    with secured(tell, tmp_path) as running:
        yield running


# --- who speaks what ---


@pytest.mark.parametrize(("version", "said"), [("1.2", "TLSv1.2"), ("1.3", "TLSv1.3")])
def test_the_app_is_told_how_the_client_came(told_by: Running, version: str, said: str) -> None:
    with connect(told_by.port, client_context(ROOT, version=version, alpn=["http/1.1"])) as client:
        assert client.socket.tls.selected_alpn_protocol() == "http/1.1"
        environ = told(client.get("/").body)
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["HTTPS"] == "on"
    assert environ["SERVER_PORT"] == str(told_by.port)
    assert environ["SSL_PROTOCOL"] == said
    assert environ["SSL_CLIENT_VERIFY"] == "NONE"
    assert environ["REMOTE_ADDR"] == "127.0.0.1"


def test_a_client_that_offers_another_protocol_alone_is_served_without_one(told_by: Running) -> None:
    with connect(told_by.port, client_context(ROOT, alpn=["h2"])) as client:
        assert client.socket.tls.selected_alpn_protocol() is None
        assert client.get("/").status == 200


def test_a_plain_server_says_nothing_of_tls() -> None:
    with over("plain"), serving(tell) as running, running.connect() as client:
        environ = told(client.get("/", "HTTPS: on", "SSL-Client-Verify: SUCCESS").body)
    assert environ.keys() == {"wsgi.url_scheme", "SERVER_PORT", "REMOTE_ADDR"}
    assert environ["wsgi.url_scheme"] == "http"


def test_a_flask_app_makes_urls_with_https(tmp_path: Path) -> None:
    app = Flask("secure")

    @app.get("/where")
    def where() -> str:
        return f"{request.url} {request.is_secure}"

    with secured(app, tmp_path) as running, connect(running.port) as client:
        client.send(b"GET /where HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % running.port)
        assert client.response().body.decode() == f"https://localhost:{running.port}/where True"


def test_a_trusted_proxy_that_was_asked_in_plain_says_so(tmp_path: Path) -> None:
    with secured(tell, tmp_path, proxy_trusted=["loopback"]) as running, connect(running.port) as client:
        environ = told(client.get("/", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http").body)
        assert environ["wsgi.url_scheme"] == "http"
        assert "HTTPS" not in environ
        environ = told(client.get("/", "X-Forwarded-For: 192.0.2.1").body)
        assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("https", "on")
        assert environ["SERVER_PORT"] == str(running.port)


def test_a_session_is_resumed(told_by: Running) -> None:
    context = client_context(ROOT, version="1.2")
    with connect(told_by.port, context) as client:
        assert told(client.get("/").body)["SSL_SESSION_RESUMED"] == "Initial"
        session = client.socket.tls.session
    raw = socket.create_connection(("127.0.0.1", told_by.port), PATIENCE_S)
    with context.wrap_socket(raw, server_hostname="localhost", session=session) as resumed:
        resumed.sendall(GET)
        assert b"SSL_SESSION_RESUMED=Resumed" in resumed.recv(65536)


@pytest.mark.peer
@needs_curl
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl(told_by: Running, tmp_path: Path, version: str) -> None:
    (tmp_path / "root.pem").write_text(ROOT.pem)
    done = subprocess.run(
        ["curl", "-q", "-sS", "--cacert", "root.pem", f"--tlsv{version}", "--tls-max", version,
         *("--resolve", f"localhost:{told_by.port}:127.0.0.1", "--noproxy", "*"),
         f"https://localhost:{told_by.port}/", f"https://localhost:{told_by.port}/"],
        cwd=tmp_path, capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"SSL_PROTOCOL=TLSv{version}".encode()) == 2


def test_requests(told_by: Running, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text(ROOT.pem)
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(3):
            answer = session.get(f"https://localhost:{told_by.port}/", verify=tmp_path / "root.pem", timeout=PATIENCE_S)
            assert told(answer.content)["HTTPS"] == "on"


def s_client(port: int, *arguments: str, send: bytes = GET) -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *arguments],
        input=send.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.peer
@needs_openssl
@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        pytest.param(["-tls1_3"], True, id="1.3"),
        pytest.param(["-tls1_2"], True, id="1.2"),
        pytest.param(["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], False, id="1.1"),
        pytest.param(["-tls1", "-cipher", "ALL:@SECLEVEL=0"], False, id="1.0"),
        pytest.param(["-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"], False, id="a suite without forward secrecy"),
    ],
)
def test_openssl_speaks_what_is_safe(told_by: Running, arguments: list[str], served: bool) -> None:
    said = s_client(told_by.port, *arguments)
    assert ("HTTP/1.1 200 OK" in said) is served, said


@pytest.mark.peer
@needs_openssl
def test_a_renegotiation_is_refused(told_by: Running) -> None:
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{told_by.port}", "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"R\n")
        client.stdin.flush()
        try:
            client.wait(PATIENCE_S)
        finally:
            client.kill()
        said = client.stdout.read().decode(errors="replace")
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said


# --- which certificate ---


def test_several_certificates_are_chosen_by_name(tmp_path: Path) -> None:
    first, second = ROOT.leaf("a.example"), ROOT.leaf("b.example", "*.c.example")
    tables = []
    for name, made in (("first", first), ("second", second)):
        pair = made.write(tmp_path, name)
        tables.append({"certificate": str(pair.certificate), "key": str(pair.key)})
    with serving(tell, certificate=tables) as running:
        chosen = {}
        for name in ("a.example", "b.example", "x.c.example", "unknown.example"):
            with connect(running.port, client_context(), name) as client:
                chosen[name] = fingerprint(client)
                assert client.get("/").status == 200
    ours = [hashlib.sha256(made.der).hexdigest() for made in (first, second)]
    assert list(chosen.values()) == [ours[0], ours[1], ours[1], ours[0]]


def test_a_name_that_no_certificate_is_for_can_be_refused(tmp_path: Path) -> None:
    with secured(tell, tmp_path, "a.example", tls_unknown_names="refuse") as running:
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            connect(running.port, client_context(), "b.example")
        with connect(running.port, client_context(ROOT), "a.example") as client:
            assert client.get("/").status == 200


def test_an_encrypted_key_is_opened_by_its_passphrase(tmp_path: Path) -> None:
    pair = ROOT.leaf("localhost").write(tmp_path, passphrase="open sesame")
    opened = pair_settings(pair) | {"tls_passphrase_file": str(pair.passphrase_file)}
    with serving(tell, **opened) as running, connect(running.port) as client:
        assert client.get("/").status == 200


# --- who the client is ---


def client_of(authority: Authority, directory: Path) -> ssl.SSLContext:
    pair = authority.leaf(common_name="Ada", purposes=["client"]).write(directory, "ada")
    context = client_context(ROOT)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@pytest.mark.parametrize("demand", ["optional", "required"])
def test_a_client_certificate_is_verified_and_told(tmp_path: Path, demand: str) -> None:
    clients = Authority("Clients")
    (tmp_path / "clients.pem").write_text(clients.pem)
    asked = {"tls_client_ca": str(tmp_path / "clients.pem"), "tls_client_certificates": demand}
    with secured(tell, tmp_path, **asked) as running:
        with connect(running.port, client_of(clients, tmp_path)) as client:
            environ = told(client.get("/").body)
            assert (environ["SSL_CLIENT_VERIFY"], environ["SSL_CLIENT_S_DN"]) == ("SUCCESS", "CN=Ada")
        with (
            pytest.raises(ssl.SSLError, match="UNKNOWN_CA"),
            connect(running.port, client_of(Authority("Others"), tmp_path)) as client,
        ):
            client.get("/")
        if demand == "required":
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"), connect(running.port) as client:
                client.get("/")
        else:
            with connect(running.port) as client:
                assert told(client.get("/").body)["SSL_CLIENT_VERIFY"] == "NONE"


# --- who does not speak TLS, or not well ---


def test_plain_http_is_told_so(told_by: Running) -> None:
    with plain(told_by.port) as client:
        client.send(GET)
        answer = client.response()
        assert (answer.status, answer.header("Connection")) == (400, "close")
        assert b"This port speaks HTTPS, not plain HTTP." in answer.body
        assert client.receive_all() == b""
    eventually(lambda: not told_by.server._loop.connections)


@pytest.mark.parametrize("sent", [b"\0" * 100, b"\x16\x03\x01\xff\xff" + b"x" * 100, b"SSH-2.0-x\r\n", b"\x16"])
def test_what_is_neither_is_cut(told_by: Running, sent: bytes) -> None:
    with plain(told_by.port) as client:
        client.send(sent)
        client.shutdown_write()
        with contextlib.suppress(ConnectionError):
            client.receive_all()
    eventually(lambda: not told_by.server._loop.connections)
    with connect(told_by.port) as client:
        assert client.get("/").status == 200


def test_a_handshake_that_drips_has_its_deadline_and_nobody_notices(tmp_path: Path) -> None:
    with secured(tell, tmp_path, timeouts_handshake="0.5s") as running:
        with contextlib.ExitStack() as stack:
            drips = [stack.enter_context(plain(running.port)) for _ in range(50)]
            for each in drips:
                each.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
            with connect(running.port) as client:
                for _ in range(20):
                    assert client.get("/").status == 200
            began = time.monotonic()
            for each in drips:
                with contextlib.suppress(ConnectionError):
                    assert each.receive_all() == b""
            assert time.monotonic() - began < PATIENCE_S
        assert running.server._record._refusal_log.totals()["handshake_deadline"] == 50


def test_handshakes_that_fail_are_summed_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with secured(tell, tmp_path) as running:
        for _ in range(20):
            with pytest.raises(ssl.SSLError):
                connect(running.port, client_context(Authority("Stranger")))
        eventually(lambda: not running.server._loop.connections)
    lines = [record.getMessage() for record in caplog.records if "handshake_failed" in record.getMessage()]
    assert lines[0] == "1 connection closed: handshake_failed (the client says: unknown ca), 127.0.0.1"
    assert lines[1].startswith("19 connections closed: handshake_failed (the client says: unknown ca), 127.0.0.1")
    assert len(lines) == 2


def test_reasons_that_a_stranger_thinks_up_are_few_in_the_log(tmp_path: Path) -> None:
    record = Record(RecordingAccessLog(), BanSettings())
    somebody: Any = SimpleNamespace(client="192.0.2.1", peer=("192.0.2.1", 1))
    record.loop = SimpleNamespace(watch=lambda *_: None)  # type: ignore[assignment]
    for number in range(1000):
        record.handshake(somebody, f"reason {number}")
    totals = record._refusal_log.totals()
    assert len(totals) == MAX_REASONS + 1
    assert totals["handshake_failed (other reasons)"] == 1000 - MAX_REASONS


# --- replaced while it runs ---


def replace(pair: PairFiles, made: Any) -> None:
    """Put another certificate and key in the place of those of `pair`, each in one step."""
    new = made.write(pair.certificate.parent / "new")
    os.replace(new.key, pair.key)
    os.replace(new.certificate, pair.certificate)


def test_a_certificate_is_replaced_under_load_without_a_failed_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_S", 0.05)
    pair = ROOT.leaf("localhost").write(tmp_path)
    seen: set[str] = set()
    caplog.set_level("INFO", "hardserve")
    failed: list[BaseException] = []
    stop = threading.Event()
    new = ROOT.leaf("localhost")

    with serving(echo, **pair_settings(pair)) as running:

        def load() -> None:
            try:
                while not stop.is_set():
                    with connect(running.port) as client:
                        seen.add(fingerprint(client))
                        for _ in range(5):
                            assert client.get("/").status == 200
            except BaseException as error:
                failed.append(error)

        with connect(running.port) as kept:
            threads = [threading.Thread(target=load) for _ in range(4)]
            for thread in threads:
                thread.start()
            eventually(lambda: seen or failed)
            replace(pair, new)
            eventually(lambda: hashlib.sha256(new.der).hexdigest() in seen or failed)
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert kept.get("/").status == 200, "a connection with the former certificate is kept"
    assert not failed
    assert len(seen) == 2
    assert "was replaced: for localhost" in caplog.text


def test_a_broken_replacement_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_S", 0.05)
    made = ROOT.leaf("localhost")
    pair = made.write(tmp_path)
    with serving(echo, **pair_settings(pair)) as running:
        eventually(lambda: hasattr(running.server, "_app_ctx"))
        pair.certificate.write_text("nonsense\n")
        eventually(lambda: "is not taken" in caplog.text)
        with connect(running.port) as client:
            assert fingerprint(client) == hashlib.sha256(made.der).hexdigest()
            assert client.get("/").status == 200
        time.sleep(0.3)  # several more looks
        assert caplog.text.count("is not taken") == 1
        pair.certificate.write_text(made.chain_pem)


# --- of our own ---


def test_a_self_signed_certificate_is_made_shown_and_kept(tmp_path: Path, start_command: StartCommand) -> None:
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\napp.get('/')(lambda: 'hello')\n")
    shown = []
    for _ in range(2):
        with start_command("app:app", "--tls", "self-signed", directory=tmp_path) as command:
            assert command.url.startswith("https://127.0.0.1:")
            with connect(command.port, client_context(), "127.0.0.1") as client:
                assert client.get("/").body == b"hello"
                shown.append(fingerprint(client).upper())
            eventually(lambda command=command: "  stop " in command.output)
            (line,) = [line for line in command.said if line.startswith("  certificate")]
            assert line.rstrip().rpartition(" ")[2].replace(":", "") == shown[-1]
            assert "self-signed, until " in line
    assert shown[0] == shown[1]
    state = tmp_path / ".local" / "state" / "hardserve" / "self-signed"
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "key.pem").stat().st_mode & 0o777 == 0o600


def test_a_self_signed_certificate_is_for_the_names_that_are_served(tmp_path: Path) -> None:
    own = {"tls": "self-signed", "tls_state": str(tmp_path), "access_hosts": ["tool.example", ".b.example"]}
    with serving(echo, **own) as running:
        trusted = ssl.create_default_context(cafile=tmp_path / "self-signed" / "certificate.pem")
        for name in ("tool.example", "b.example", "x.b.example"):
            with connect(running.port, trusted, name) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % name.encode())
                assert client.response().status == 200


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        ("/x", {"STATE_DIRECTORY": "/s"}, "/x"),
        ("auto", {"STATE_DIRECTORY": "/s:/t", "XDG_STATE_HOME": "/x"}, "/s"),
        ("auto", {"XDG_STATE_HOME": "/x"}, "/x/hardserve"),
        ("auto", {"XDG_STATE_HOME": "x"}, "~/.local/state/hardserve"),
        ("auto", {}, "~/.local/state/hardserve"),
    ],
)
def test_where_state_is_kept(setting: str, environ: dict[str, str], expected: str) -> None:
    assert state_directory(setting, environ) == Path(expected).expanduser()


# --- what is wrong is said at the start ---


def test_every_problem_of_the_certificates_is_said_with_the_setting_that_names_them(tmp_path: Path) -> None:
    pair, other = ROOT.leaf("a.example").write(tmp_path, "a"), ROOT.leaf("b.example").write(tmp_path, "b")
    old = ROOT.leaf("c.example", not_before_s=-90 * 86400, not_after_s=-86400).write(tmp_path, "c")
    server = Server(
        echo,
        from_keywords(
            bind="127.0.0.1:0",
            tls_certificate=str(pair.certificate),
            tls_key=str(other.key),
            certificate=[
                {"certificate": str(old.certificate), "key": str(old.key)},
                {"certificate": str(tmp_path / "none.pem"), "key": str(pair.key)},
            ],
        ),
        RecordingAccessLog(),
    )
    with pytest.raises(SettingsError) as caught:
        server.bind()
    mismatch, expired, missing = caught.value.problems
    assert mismatch.startswith(f'tls_key = "{other.key}": ')
    assert "is not the key of the certificate" in mismatch
    assert expired.startswith(f'certificate[0].certificate = "{old.certificate}": ')
    assert "has expired" in expired
    assert missing.startswith(f'certificate[1].certificate = "{tmp_path / "none.pem"}": ')
    assert server.urls == []


def test_the_command_ends_with_78_and_says_where_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def app(environ, start_response): ...\n")
    (tmp_path / "hardserve.toml").write_text('[tls]\ncertificate = "./c.pem"\nkey = "./k.pem"\n')
    done = subprocess.run(
        [sys.executable, "-m", "hardserve", "app:app", "--bind", "127.0.0.1:0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 78
    assert "hardserve: hardserve.toml:2: tls.certificate = " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ('[tls]\nkey = "./k.pem"\n', "hardserve.toml:2: tls.key: expected also tls.certificate"),
        ('[tls]\ncertificate = "./c.pem"\n', "hardserve.toml:2: tls.certificate: expected also tls.key"),
        ('[tls]\npassphrase_file = "./p"\n', "hardserve.toml:2: tls.passphrase_file: expected also tls.key"),
        ('[server]\ntls = "on"\n', 'hardserve.toml:2: server.tls = "on": expected also tls.domain'),
        (
            '[server]\ntls = "self-signed"\n[[certificate]]\ncertificate = "./c.pem"\nkey = "./k.pem"\n',
            'hardserve.toml:2: server.tls = "self-signed": expected no other certificate, but there is hardserve.toml',
        ),
        ('[server]\nredirect = "127.0.0.1:0"\n', "hardserve.toml:2: server.redirect: expected also tls.domain"),
        ('[tls]\nhsts = "1h"\n', "hardserve.toml:2: tls.hsts: expected also tls.domain"),
        ("[server]\nredirect_port = 8443\n", "hardserve.toml:2: server.redirect_port: expected also server.redirect"),
        (
            '[server]\ntls = "self-signed"\n[tls]\nclient_certificates = "required"\n',
            "hardserve.toml:4: tls.client_certificates: expected also tls.client_ca",
        ),
        (
            '[server]\ntls = "self-signed"\n[tls]\nclient_ca = "./c.pem"\n',
            "hardserve.toml:4: tls.client_ca: expected also tls.client_certificates",
        ),
        (
            '[server]\ntls = "self-signed"\nredirect = "127.0.0.1:8000"\n',
            'hardserve.toml:3: server.redirect = "127.0.0.1:8000": expected another address than in server.bind',
        ),
        (
            '[server]\ntls = "self-signed"\nredirect = "fd:3?proxy_protocol"\n',
            'hardserve.toml:3: server.redirect = "fd:3?proxy_protocol": expected also proxy.trusted',
        ),
    ],
)
def test_what_cannot_be_meant_together(tmp_path: Path, toml: str, problem: str) -> None:
    (tmp_path / "hardserve.toml").write_text(toml)
    with pytest.raises(SettingsError) as caught:
        resolve(environ={}, directory=tmp_path)
    assert [each[: len(problem)] for each in caught.value.problems] == [problem]


@pytest.mark.parametrize(("secret", "secure", "said"), [("x", False, 1), ("x", True, 0), (None, False, 0)])
def test_advice_about_the_session_cookie(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, secret: str | None, secure: bool, said: int
) -> None:
    app = Flask("cookies")
    app.config.update(SECRET_KEY=secret, SESSION_COOKIE_SECURE=secure)
    with secured(app, tmp_path):
        pass
    assert caplog.text.count("SESSION_COOKIE_SECURE is off") == said


# --- the way to HTTPS ---


@contextlib.contextmanager
def redirecting(directory: Path, **settings: Any) -> Iterator[tuple[Running, int]]:
    with secured(echo, directory, "localhost", "*.a.example", redirect="127.0.0.1:0", **settings) as running:
        yield running, int(running.server.redirects[0].rpartition(":")[2])


@pytest.mark.parametrize(
    ("method", "target", "host", "status", "location"),
    [
        ("GET", "/a?b=c", "localhost", 301, "https://localhost:PORT/a?b=c"),
        ("HEAD", "/", "x.a.example:8080", 301, "https://x.a.example:PORT/"),
        ("POST", "/%20", "localhost", 308, "https://localhost:PORT/%20"),
        ("DELETE", "//evil.example/", "localhost", 308, "https://localhost:PORT//evil.example/"),
        ("GET", "http://localhost/x?y", "localhost", 301, "https://localhost:PORT/x?y"),
        ("GET", "http://localhost?y", "localhost", 301, "https://localhost:PORT/?y"),
        ("OPTIONS", "*", "localhost", 308, "https://localhost:PORT/"),
        ("GET", "/", "evil.example", 421, None),
        ("GET", "/", "a.example", 421, None),
        ("GET", "/", "127.0.0.1", 421, None),
    ],
)
def test_requests_in_plain_are_sent_on(
    tmp_path: Path, method: str, target: str, host: str, status: int, location: str | None
) -> None:
    with redirecting(tmp_path, tls_hsts="1h") as (running, port), plain(port) as client:
        for _ in range(2):
            client.send(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = client.response(head_only=method == "HEAD")
            assert answer.status == status
            assert answer.header("Location") == (location and location.replace("PORT", str(running.port)))
            assert answer.header("Strict-Transport-Security") is None  # RFC 6797 7.2
        assert running.server._workers.in_pool == 0 or running.log.entries[0].status == status


@pytest.mark.parametrize(("mapped", "expected"), [(8443, "https://localhost:8443/"), (443, "https://localhost/")])
def test_the_port_of_the_router_is_what_clients_are_sent_to(tmp_path: Path, mapped: int, expected: str) -> None:
    with redirecting(tmp_path, redirect_port=mapped) as (_, port), plain(port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n")
        assert client.response().header("Location") == expected


def test_a_request_in_plain_without_a_host_is_refused(tmp_path: Path) -> None:
    with redirecting(tmp_path) as (_, port), plain(port) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.response().status == 400


def test_hosts_that_the_operator_names_are_those_that_are_sent_on(tmp_path: Path) -> None:
    with redirecting(tmp_path, access_hosts=["shop.example"]) as (_, port):
        for host, status in (("shop.example", 301), ("localhost", 421)):
            with plain(port) as client:
                client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert client.response().status == status


def test_nobody_is_asked_for_a_password_in_plain(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("somebody:scrypt:128:8:1$salt$" + "0" * 128 + "\n")
    users = {"auth_users": str(tmp_path / "users"), "auth_required": "on"}
    with redirecting(tmp_path, **users) as (running, port):
        with plain(port) as client:
            client.send(GET)
            assert client.response().status == 301
        with connect(running.port) as client:
            assert client.get("/").status == 401


# --- HSTS ---


def test_hsts_is_in_every_response_over_tls_and_the_apps_own_counts(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a file")

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/fail":
            raise ValueError("on purpose")
        own = [("Strict-Transport-Security", "max-age=5")] if environ["PATH_INFO"] == "/own" else []
        start_response("200 OK", [("Content-Length", "0"), *own])
        return [b""]

    mounted = {"static": [f"/files={tmp_path / 'files'}"], "access_deny": ["192.0.2.1"], "tls_hsts": "8760h"}
    with secured(app, tmp_path, **mounted) as running, connect(running.port) as client:
        for path, status, value in (
            ("/", 200, "max-age=31536000"),
            ("/own", 200, "max-age=5"),
            ("/fail", 500, "max-age=31536000"),
            ("/files/a.txt", 200, "max-age=31536000"),
            ("/files/none", 404, "max-age=31536000"),
        ):
            answer = client.get(path)
            assert (answer.status, answer.header("Strict-Transport-Security")) == (status, value)
        client.send(b"nonsense\r\n\r\n")
        assert client.response().header("Strict-Transport-Security") == "max-age=31536000"
    with secured(app, tmp_path, **mounted) as running, plain(running.port) as client:
        client.send(GET)
        assert client.response().header("Strict-Transport-Security") is None


def test_hsts_is_off_until_it_is_asked_for(told_by: Running) -> None:
    with connect(told_by.port) as client:
        assert client.get("/").header("Strict-Transport-Security") is None


# --- both ways, all of it ---


def digesting(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer a body with its digest, and anything else with what is large."""
    if environ["REQUEST_METHOD"] == "POST":
        digest = hashlib.sha256()
        while data := environ["wsgi.input"].read(65536):
            digest.update(data)
        start_response("200 OK", [("Content-Length", "64")])
        return [digest.hexdigest().encode()]
    start_response("200 OK", [("Content-Length", str(len(CONTENT)))])
    return (
        [CONTENT] if environ["PATH_INFO"] == "/" else (CONTENT[n : n + 70_001] for n in range(0, len(CONTENT), 70_001))
    )


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_large_bodies_arrive_whole_both_ways(tmp_path: Path, version: str) -> None:
    context = client_context(ROOT, version=version)
    with secured(digesting, tmp_path, limits_body="64MiB") as running, connect(running.port, context) as client:
        for path in ("/", "/stream"):
            client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
            client.receive_until(b"\r\n\r\n")
            assert read_digest(client, len(CONTENT)) == DIGEST
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(CONTENT))
        client.send(CONTENT)
        assert client.response().body.decode() == DIGEST


def test_a_body_that_is_cut_off_is_no_request(tmp_path: Path) -> None:
    with secured(digesting, tmp_path) as running:
        with connect(running.port) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf of it")
            eventually(lambda: any(each.request is not None for each in running.server._loop.connections))
            client.socket.raw.shutdown(socket.SHUT_WR)  # and no close_notify
            assert client.receive_all() == b""
        assert running.log.wait_for(1)[0].status == 499


def test_a_response_that_is_cut_does_not_look_whole(tmp_path: Path) -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Connection", "close")])
        yield b"x" * 100
        assert release.wait(PATIENCE_S)
        raise ValueError("on purpose")

    with secured(app, tmp_path) as running:
        raw = socket.create_connection(("127.0.0.1", running.port), PATIENCE_S)
        context = client_context(ROOT)
        with context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")  # so that the end of the connection is that of the response
            assert client.recv(65536)
            release.set()
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                all(iter(lambda: client.recv(65536), b""))


def test_the_end_of_a_response_that_ends_with_its_connection_is_said(tmp_path: Path) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x" * 100
        yield b"y" * 100

    with secured(app, tmp_path) as running:
        raw = socket.create_connection(("127.0.0.1", running.port), PATIENCE_S)
        with client_context(ROOT).wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer.endswith(b"x" * 100 + b"y" * 100)


def test_a_pipeline_is_answered_in_order(tmp_path: Path) -> None:
    with secured(echo, tmp_path) as running, connect(running.port) as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(500)))
        for number in range(500):
            assert client.response().body == b"GET /%d " % number


def test_requests_in_records_of_a_byte_each(tmp_path: Path) -> None:
    with secured(echo, tmp_path) as running, connect(running.port) as client:
        for byte in GET * 3:
            client.socket.tls.write(bytes([byte]))
        client.socket._leave()
        assert [client.response().body for _ in range(3)] == [b"GET / "] * 3


@pytest.mark.parametrize("how", ["static", "send_file", "x-sendfile"])
def test_files_arrive_whole(tmp_path: Path, how: str) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "large.bin").write_bytes(CONTENT)
    app = Flask("files", static_folder=None)

    @app.get("/app/<name>")
    def sent(name: str) -> Any:
        if how == "x-sendfile":
            return "", 200, {"X-Sendfile": str(files / name), "Content-Type": "application/octet-stream"}
        return send_file(files / name)

    with secured(app, tmp_path, static=[f"/files={files}"]) as running, connect(running.port) as client:
        path = "/files/large.bin" if how == "static" else "/app/large.bin"
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert b" 200 " in client.receive_until(b"\r\n\r\n")
        assert read_digest(client, len(CONTENT)) == DIGEST
        part = client.get(path, "Range: bytes=1000000-1000099")
        assert (part.status, part.body) == (206, CONTENT[1_000_000:1_000_100])


def test_what_an_app_streams_leaves_at_once(tmp_path: Path) -> None:
    steps: list[threading.Event] = [threading.Event() for _ in range(3)]

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number, step in enumerate(steps):
            yield b"step %d" % number
            assert step.wait(PATIENCE_S)

    with secured(app, tmp_path) as running, connect(running.port) as client:
        client.send(GET)
        for number, step in enumerate(steps):
            client.receive_until(b"step %d" % number)
            step.set()
        assert client.receive_until(b"0\r\n\r\n")


def test_a_drain_answers_what_has_come_in(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        entered.set()
        assert release.wait(PATIENCE_S)
        return echo(environ, start_response)

    with secured(app, tmp_path) as running, connect(running.port) as client:
        client.send(GET)
        assert entered.wait(PATIENCE_S)
        running.server.stop()
        eventually(lambda: running.server._loop._ctx.draining)
        release.set()
        answer = client.response()
        assert (answer.body, answer.header("Connection")) == (b"GET / ", "close")
        assert client.receive_all() == b""
        client.socket.close()  # or it is waited for, for the time to linger
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [0]


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "one after the other"])
def test_a_proxy_header_and_then_tls(tmp_path: Path, together: bool) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4242 443\r\n"
    proxied = {"bind": "127.0.0.1:0?proxy_protocol", "proxy_trusted": ["loopback"]}
    with secured(tell, tmp_path, **proxied) as running:
        raw = socket.create_connection(("127.0.0.1", running.port), PATIENCE_S)
        if not together:
            raw.sendall(header)
        sending: Any = Prefixed(raw, header) if together else raw
        with Client(TlsSocket(sending, client_context(ROOT), "localhost")) as client:
            environ = told(client.get("/").body)
        assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == ("192.0.2.7", "https")
        assert environ["SSL_PROTOCOL"] == "TLSv1.3"


class Prefixed:
    """A socket whose first bytes have others before them."""

    def __init__(self, raw: socket.socket, first: bytes) -> None:
        self._raw, self._first = raw, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def sendall(self, data: bytes) -> None:
        self._raw.sendall(self._first + data)
        self._first = b""


def test_sighup_looks_at_the_certificates(tmp_path: Path, start_command: StartCommand) -> None:
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\napp.get('/')(lambda: 'hello')\n")
    pair, new = ROOT.leaf("localhost").write(tmp_path), ROOT.leaf("localhost")
    files = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key))
    with start_command("app:app", *files, directory=tmp_path) as command:
        replace(pair, new)
        command.process.send_signal(signal.SIGHUP)
        wanted: Callable[[], bool] = lambda: "was replaced: for localhost" in command.output  # noqa: E731
        eventually(wanted)
        with connect(command.port) as client:
            assert fingerprint(client) == hashlib.sha256(new.der).hexdigest()


def test_a_server_that_stops_during_handshakes_ends(tmp_path: Path) -> None:
    with secured(echo, tmp_path, timeouts_handshake="2s") as running, contextlib.ExitStack() as stack:
        for number in range(10):
            stack.enter_context(plain(running.port)).send(b"\x16\x03\x01"[: number % 2 * 3])
        eventually(lambda: len(running.server._loop.connections) == 10)
        assert running.stop() == 0
