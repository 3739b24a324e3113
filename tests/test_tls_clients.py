"""Certificates of clients: which are taken, where one is required, and what the app learns of them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from hardserve import refusals
from hardserve.configfiles import SettingsError
from hardserve.edge.parsing import ParserRules, Request
from hardserve.edge.tlsfacts import Facts
from hardserve.options import from_keywords, resolve
from hardserve.passwd import hash_password
from tests import certs
from tests.certs import Authority, Made, client_context, self_signed
from tests.support import PATIENCE_S, Client, Running, TlsSocket, plain_gate, serving
from tests.test_http import eventually

ROOT = Authority()
CLIENTS = Authority("Clients")
REQUIRED = {"client_certificate": "required"}
VERSIONS = ["1.2", "1.3"]
NONE = {"SSL_CLIENT_VERIFY": "NONE"}

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")


def tell(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with all that the app is told of the client, a line each."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = sorted(name for name in environ if "SSL_CLIENT" in name or name == "SSL_SESSION_RESUMED")
    return ["".join(f"{name}={environ[name]}\n" for name in names).encode("latin-1")]


def told(body: bytes) -> dict[str, str]:
    """Return the environ that `tell` had; names are UTF-8 there."""
    return dict(line.split("=", 1) for line in body.decode().split("\n") if line)


def told_of_client(body: bytes) -> dict[str, str]:
    return {name: value for name, value in told(body).items() if name.startswith("SSL_CLIENT")}


@dataclass
class Site:
    """A server, and those who come to it."""

    running: Running
    directory: Path
    _made: int = field(default=0)

    def context(self, made: Made | None = None, version: str = "") -> ssl.SSLContext:
        """Return a client that shows a certificate, or none."""
        context = client_context(ROOT, version=version)
        if made is not None:
            self._made += 1
            pair = made.write(self.directory, f"client-{self._made}")
            context.load_cert_chain(pair.certificate, pair.key)
        return context

    def connect(self, made: Made | None = None, version: str = "", session: ssl.SSLSession | None = None) -> Client:
        return self.connect_with(self.context(made, version), session)

    def connect_with(self, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Client:
        raw = socket.create_connection(("127.0.0.1", self.running.port), PATIENCE_S)
        if session is None:
            return Client(TlsSocket(raw, context, "localhost"))
        return Client(context.wrap_socket(raw, server_hostname="localhost", session=session))

    def reason(self) -> str:
        """Return why the last request was refused, "" if it was not; forget it and those before."""
        entries = self.running.log.wait_for(1)
        self.running.log.entries.clear()
        return entries[-1].refusal


@contextlib.contextmanager
def asking(directory: Path, demand: str = "optional", **settings: Any) -> Iterator[Site]:
    """Serve, and ask clients for a certificate that CLIENTS has signed."""
    pair = ROOT.leaf("localhost", "127.0.0.1").write(directory)
    (directory / "clients.pem").write_text(CLIENTS.pem)
    secured = {
        "tls_certificate": str(pair.certificate),
        "tls_key": str(pair.key),
        "tls_client_ca": str(directory / "clients.pem"),
        "tls_client_certificates": demand,
    }
    with serving(tell, **secured | settings) as running:
        yield Site(running, directory)


ADA = CLIENTS.leaf(common_name="Ada", purposes=["client"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    (directory / "files").mkdir()
    (directory / "files" / "a.txt").write_text("a file")
    (directory / "users").write_text(f"ada:{hash_password('secret', 'scrypt')}\n")
    (directory / "users").chmod(0o600)
    with asking(
        directory,
        route=[
            {"path": "/private/get", "allowed_methods": ["GET"], **REQUIRED},
            {"path": "/private/user", "auth": "on", **REQUIRED},
            {"path": "/private/small", "max_body": 5, **REQUIRED},
            {"path": "/private/nobody", "deny": ["loopback"], **REQUIRED},
            {"path": "/private/open", "client_certificate": "optional"},
            {"path": "/private/*", **REQUIRED},
            {"path": "/orders", "methods": ["POST"], **REQUIRED},
        ],
        static=[{"url": "/private/files", "directory": str(directory / "files")}],
        rate_limit=[{"limit": "1/hour", "path": "/private/rare"}],
        auth_users=str(directory / "users"),
    ) as site:
        yield site


# --- where one is required ---


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *((method, "/private/a", 200) for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")),
        pytest.param("GET", "/private", 200, id="the directory itself"),
        pytest.param("GET", "/private/files/a.txt", 200, id="a file"),
        pytest.param("HEAD", "/private/files/a.txt", 200, id="the head of a file"),
        pytest.param("GET", "/private/files/none", 404, id="a file that is not there"),
        pytest.param("POST", "/private/files/a.txt", 405, id="a file to which nobody posts"),
        pytest.param("GET", "//private/a", 200, id="two slashes"),
        pytest.param("GET", "/%70rivate/a", 200, id="escaped"),
        pytest.param("GET", "/x/../private/a", 200, id="by way of another"),
        pytest.param("GET", "/private/open/../a", 200, id="by way of what is open"),
        pytest.param("GET", "/private/a/../open", 200, id="to what is open, by way of what is not"),
        pytest.param("GET", "/private%2ffiles/a.txt", 200, id="an escaped slash"),
        pytest.param("POST", "/orders", 200, id="a method of the route"),
    ],
)
def test_who_shows_no_certificate_gets_403_and_who_does_is_served(
    site: Site, method: str, path: str, status: int
) -> None:
    with site.connect() as client:
        answer = client.get(path, method=method)
        assert (answer.status, site.reason()) == (403, "client_certificate_missing")
        assert (b"A client certificate is needed here." in answer.body) is (method != "HEAD")
        assert client.get("/").status == 200, "the connection was not kept"
        site.reason()
    with site.connect(ADA) as client:
        assert client.get(path, method=method).status == status


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/private/open"), ("GET", "/orders")])
def test_elsewhere_nobody_needs_one(site: Site, method: str, path: str) -> None:
    for made in (None, ADA):
        with site.connect(made) as client:
            assert client.get(path, method=method).status == 200


@pytest.mark.parametrize(
    ("path", "lines", "without", "with_one"),
    [
        pytest.param("/private/get", [], "client_certificate_missing", "method_not_allowed", id="methods"),
        pytest.param("/private/user", [], "client_certificate_missing", "password_needed", id="passwords"),
        pytest.param(
            "/private/small", ["Content-Length: 9"], "client_certificate_missing", "body_too_large", id="bodies"
        ),
        pytest.param("/private/nobody", [], "access_denied", "access_denied", id="networks come before"),
    ],
)
def test_a_certificate_is_asked_for_before(
    site: Site, path: str, lines: list[str], without: str, with_one: str
) -> None:
    for made, reason in ((None, without), (ADA, with_one)):
        with site.connect(made) as client:
            client.get(path, *lines, method="POST")
            assert site.reason() == reason


def test_a_request_without_one_takes_nothing_from_those_with_one(site: Site) -> None:
    reasons = []
    for made in (None, None, ADA, ADA, None):
        with site.connect(made) as client:
            client.get("/private/rare")
            reasons.append(site.reason())
    missing = "client_certificate_missing"
    assert reasons == [missing, missing, "", "rate_limited", missing]


def test_who_has_one_still_needs_a_password_where_one_is_needed(site: Site) -> None:
    with site.connect(ADA) as client:
        assert client.get("/private/user", "Authorization: Basic YWRhOnNlY3JldA==").status == 200
    with site.connect() as client:
        assert client.get("/private/user", "Authorization: Basic YWRhOnNlY3JldA==").status == 403


def test_no_proxy_can_vouch_for_a_client(tmp_path: Path) -> None:
    with asking(tmp_path, proxy_trusted=["loopback"], route=[{"path": "/private", **REQUIRED}]) as site:
        vouching = ("X-Forwarded-For: 192.0.2.1", "X-SSL-Client-Verify: SUCCESS", "X-Forwarded-Proto: https")
        with site.connect() as client:
            assert client.get("/private", *vouching).status == 403


def test_who_comes_in_plain_is_sent_on_to_where_it_can_show_one(tmp_path: Path) -> None:
    with asking(tmp_path, redirect="127.0.0.1:0", route=[{"path": "/private", **REQUIRED}]) as site:
        port = int(site.running.server.redirects[0].rpartition(":")[2])
        with Client(socket.create_connection(("127.0.0.1", port), PATIENCE_S)) as client:
            client.send(b"GET /private HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = client.response()
        assert answer.status == 301
        assert (answer.header("Location") or "").endswith("/private")


@pytest.mark.parametrize(
    ("tls", "redirects", "refusal"),
    [
        pytest.param(None, False, refusals.CLIENT_CERTIFICATE_MISSING, id="plain"),
        pytest.param(None, True, refusals.CLIENT_CERTIFICATE_MISSING, id="plain, and nothing that would send it on"),
        pytest.param(
            Facts("TLSv1.3", "", resumed=False, alpn=None), False, refusals.CLIENT_CERTIFICATE_MISSING, id="nobody"
        ),
        pytest.param(Facts("TLSv1.3", "", False, None, {"SSL_CLIENT_S_DN": ""}), False, None, id="without a name"),
    ],
)
def test_what_counts_is_the_connection(tls: Facts | None, redirects: bool, refusal: refusals.Refusal | None) -> None:
    settings = from_keywords(
        tls="self-signed", tls_client_ca="./ca", tls_client_certificates="optional", route=[{"path": "/", **REQUIRED}]
    )
    request = Request(ParserRules(settings.limits), 0.0)
    request.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    door = SimpleNamespace(redirects=redirects)
    asker: Any = SimpleNamespace(peer=("192.0.2.1", 1), client="192.0.2.1", trusted=False, listener=door, tls=tls)
    assert plain_gate(settings).admit(asker, request, 0.0) is refusal


# --- which are taken ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("which", "why"),
    [
        pytest.param("other", "unable to get local issuer certificate", id="of an unknown CA"),
        pytest.param("self", "self-signed certificate", id="signed by itself"),
        pytest.param("expired", "certificate has expired", id="expired"),
        pytest.param("early", "certificate is not yet valid", id="not valid yet"),
        pytest.param("server", "unsuitable certificate purpose", id="for servers only"),
    ],
)
def test_what_is_no_good_fails_the_handshake_though_none_at_all_would_not(
    site: Site, version: str, which: str, why: str
) -> None:
    made = {
        "other": lambda: Authority("Clients").leaf(common_name="Eve", purposes=["client"]),
        "self": lambda: self_signed(common_name="Eve", purposes=["client"]),
        "expired": lambda: CLIENTS.leaf(common_name="Eve", purposes=["client"], not_after_s=-60),
        "early": lambda: CLIENTS.leaf(common_name="Eve", purposes=["client"], not_before_s=3600),
        "server": lambda: CLIENTS.leaf(common_name="Eve", purposes=["server"]),
    }[which]()
    site.running.log.entries.clear()
    reasons = site.running.server._record._reasons
    reasons.clear()
    with pytest.raises((ssl.SSLError, ConnectionError)), site.connect(made, version) as client:  # noqa: PT012
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.receive_all()
    eventually(lambda: reasons == {f"bad client certificate: {why}"})
    assert not site.running.log.entries


# --- what the app learns ---


@pytest.mark.parametrize("version", VERSIONS)
def test_a_resumed_session_is_still_the_clients(site: Site, version: str) -> None:
    context = site.context(ADA, version)
    with site.connect_with(context) as client:
        first = told(client.get("/private/a").body)
        session = client.socket.tls.session
    with site.connect_with(context, session) as client:
        second = told(client.get("/private/a").body)
    assert (first.pop("SSL_SESSION_RESUMED"), second.pop("SSL_SESSION_RESUMED")) == ("Initial", "Resumed")
    assert first == second
    assert second["SSL_CLIENT_S_DN"] == "CN=Ada"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_ends_with_the_certificate_that_it_was_begun_with(tmp_path: Path, version: str) -> None:
    with asking(tmp_path, route=[{"path": "/private", **REQUIRED}]) as site:
        made = CLIENTS.leaf(common_name="Eve", purposes=["client"], not_after_s=2)
        context = site.context(made, version)
        with site.connect_with(context) as client:
            assert client.get("/private").status == 200
            session = client.socket.tls.session

        def is_refused() -> bool:
            try:
                with site.connect_with(context, session) as client:
                    return client.get("/private").status != 200
            except (OSError, EOFError):
                return True

        eventually(is_refused)
        assert "bad client certificate: expired since its session began" in site.running.server._record._reasons


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_of_nobody_stays_nobodys(site: Site, version: str) -> None:
    context = site.context(None, version)
    with site.connect_with(context) as client:
        assert client.get("/").status == 200
        session = client.socket.tls.session
    with site.connect_with(context, session) as client:
        answer = told(client.get("/").body)
        assert answer == NONE | {"SSL_SESSION_RESUMED": "Resumed"}
        assert client.get("/private/a").status == 403


FORGED = [
    f"{spelt}: {value}"
    for name, value in [("Verify", "SUCCESS"), ("S-DN", "CN=Ada"), ("S-DN-CN", "Ada"), ("M-Serial", "1")]
    for spelt in (f"SSL-Client-{name}", f"X-SSL-Client-{name}")
]


@pytest.mark.parametrize("made", [None, ADA], ids=["by nobody", "by somebody else"])
def test_no_header_field_forges_them(site: Site, made: Made | None) -> None:
    with site.connect(made) as client:
        honest = told_of_client(client.get("/").body)
        forged = told_of_client(client.get("/", *FORGED).body)
        assert forged == honest
        assert (forged == NONE) is (made is None)
        if made is None:
            assert client.get("/private/a", *FORGED).status == 403


@pytest.mark.parametrize("name", ["SSL_CLIENT_VERIFY", "SSL_Client_S_DN", "ssl_client_s_dn_cn"])
def test_nor_does_one_with_underscores(site: Site, name: str) -> None:
    with site.connect() as client:
        answer = client.get("/", f"{name}: SUCCESS")
        assert answer.status != 200 or told_of_client(answer.body) == NONE


NASTY = x509.Name(
    [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'Sch\u00f6n & "S\u00f6hne", Inc.; <a+b>\\c=d'),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "#1 "),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, " \u6f22\u5b57"),
        x509.NameAttribute(NameOID.EMAIL_ADDRESS, "ada@example.org"),
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "example"),
        x509.NameAttribute(NameOID.COMMON_NAME, "Lovelace, Ada/CN=admin"),
    ]
)
NASTY_DN = (
    "CN=Lovelace\\, Ada/CN=admin,DC=example,emailAddress=ada@example.org,OU=\\ \u6f22\u5b57,OU=\\#1\\ ,"
    'O=Sch\u00f6n & \\"S\u00f6hne\\"\\, Inc.\\; \\<a\\+b\\>\\\\c=d,C=DE'
)


def nasty() -> Made:
    key = certs.new_key()
    builder = certs._builder(NASTY, CLIENTS.name, key, -certs.DAY_S, certs.DAY_S, CLIENTS.made.key)
    builder = certs._describe(builder, ["ada.example", "ada@example.org"], ["client"], ca=False, named=True)
    return Made(certs._sign(builder, CLIENTS.made.key), key)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_app_is_told_what_mod_ssl_tells(site: Site, version: str) -> None:
    made = nasty()
    with site.connect(made, version) as client:
        environ = told_of_client(client.get("/").body)
    whole = made.certificate
    assert environ == {
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN": NASTY_DN,
        "SSL_CLIENT_S_DN_CN": "Lovelace, Ada/CN=admin",
        "SSL_CLIENT_S_DN_Email": "ada@example.org",
        "SSL_CLIENT_I_DN": "CN=Clients",
        "SSL_CLIENT_M_SERIAL": f"{whole.serial_number:X}".zfill(40),
        "SSL_CLIENT_V_START": f"{whole.not_valid_before_utc:%b %e %H:%M:%S %Y GMT}",
        "SSL_CLIENT_V_END": f"{whole.not_valid_after_utc:%b %e %H:%M:%S %Y GMT}",
        "SSL_CLIENT_SAN_DNS_0": "ada.example",
        "SSL_CLIENT_SAN_Email_0": "ada@example.org",
    }


@pytest.mark.peer
@needs_openssl
def test_openssl_writes_the_name_in_the_same_way() -> None:
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-subject", "-nameopt", "RFC2253,-esc_msb"],
        input=nasty().pem.encode(), capture_output=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert done.stdout.decode().rstrip("\n") == f"subject={NASTY_DN}"


# --- real clients ---


@pytest.mark.peer
@needs_curl
def test_curl_shows_one(site: Site) -> None:
    pair = ADA.write(site.directory, "ada")
    (site.directory / "root.pem").write_text(ROOT.pem)
    answers = []
    for shown in ([], ["--cert", str(pair.certificate), "--key", str(pair.key)]):
        done = subprocess.run(
            ["curl", "-q", "-sS", "--cacert", "root.pem", "--noproxy", "*", "-w", "%{http_code}", *shown,
             f"https://127.0.0.1:{site.running.port}/private/files/a.txt"],
            cwd=site.directory, capture_output=True, text=True, timeout=PATIENCE_S, check=True,
        )  # fmt: skip
        answers.append(done.stdout)
    assert answers[0].endswith("403")
    assert answers[1] == "a file200"


# --- what cannot be meant ---

ROUTE = '[[route]]\npath = "/a"\nclient_certificate = "required"\n'
SIGNED = '[server]\ntls = "self-signed"\n'


@pytest.mark.parametrize(
    ("toml", "problems"),
    [
        pytest.param(
            ROUTE,
            [
                (
                    'hardserve.toml:3: route[0].client_certificate = "required": expected also '
                    'tls.client_certificates = "optional", to have clients asked; and tls.client_ca, who signs their '
                    'certificates; and a tls.certificate, or server.tls = "self-signed"'
                )
            ],
            id="nothing that it takes",
        ),
        pytest.param(
            SIGNED + '[tls]\nclient_ca = "./c.pem"\n' + ROUTE,
            [
                (
                    'hardserve.toml:7: route[0].client_certificate = "required": expected also '
                    'tls.client_certificates = "optional", to have clients asked'
                )
            ],
            id="nobody is asked",
        ),
        pytest.param(
            SIGNED + '[tls]\nclient_certificates = "off"\n' + ROUTE + ROUTE,
            [
                f'hardserve.toml:{line}: route[{index}].client_certificate = "required": expected also '
                'tls.client_certificates = "optional", to have clients asked; and tls.client_ca, who signs their '
                "certificates"
                for index, line in enumerate((7, 10))
            ]
            + ['hardserve.toml:9: route[1].path = "/a": never counts, after hardserve.toml:6: route[0].path'],
            id="every route, with what else is wrong",
        ),
        pytest.param(
            SIGNED + '[tls]\nclient_certificates = "optional"\n' + ROUTE,
            [
                (
                    "hardserve.toml:4: tls.client_certificates: expected also tls.client_ca, "
                    "who signs the certificates of clients"
                )
            ],
            id="nobody signs them",
        ),
        pytest.param(
            SIGNED
            + '[tls]\nclient_ca = "./c.pem"\nclient_certificates = "required"\n'
            + ROUTE.replace('"required"', '"optional"'),
            [
                (
                    'hardserve.toml:8: route[0].client_certificate = "optional": never counts, because of '
                    'hardserve.toml:5: tls.client_certificates = "required"'
                )
            ],
            id="a route that would let in who does not get as far",
        ),
        pytest.param(
            ROUTE.replace('"required"', '"on"'),
            ['hardserve.toml:3: route[0].client_certificate = "on": expected "required" or "optional"'],
            id="another word",
        ),
    ],
)
def test_what_cannot_be_meant_together(tmp_path: Path, toml: str, problems: list[str]) -> None:
    (tmp_path / "hardserve.toml").write_text(toml)
    with pytest.raises(SettingsError) as caught:
        resolve(environ={}, directory=tmp_path)
    assert list(caught.value.problems) == problems


@pytest.mark.parametrize("demand", ["optional", "required"])
def test_a_route_may_ask_where_the_server_does(demand: str) -> None:
    asked = {"tls": "self-signed", "tls_client_ca": "./c.pem", "tls_client_certificates": demand}
    assert from_keywords(**asked, route=[{"path": "/", **REQUIRED}]).route[0].client_certificate == "required"
