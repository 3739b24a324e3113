"""A site that gets its certificate from a real CA by itself, as an operator starts it: with the command."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.browser import needs_chromium, running_browser
from tests.conftest import Command, StartCommand
from tests.pebble import NAMES, PEBBLE, Pebble, running_pebble
from tests.support import PATIENCE_S
from tests.test_http import eventually

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(PEBBLE is None or NAMES is None, reason="pebble is not installed"),
]

APP = """\
from flask import Flask

app = Flask(__name__)
app.config["SESSION_COOKIE_SECURE"] = True


@app.get("/")
def index():
    return "<!doctype html><title>Site</title><p>at home</p>"

"""
# What pebble's own certificates take a while for.
ISSUED_S = 60.0


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    with running_pebble(tmp_path_factory.mktemp("pebble")) as pebble:
        yield pebble


def flags_for(pebble: Pebble, *names: str) -> list[str]:
    flags = ["--acme-agree", "on", "--acme-directory", pebble.url, "--acme-ca-file", str(pebble.ca_file)]
    flags += ["--limits-client-connection-rate", "0"]  # for those who look again and again whether it is there yet
    for name in names:
        flags += ["--tls-domain", name]
    return flags


def connect(port: int, name: str, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), PATIENCE_S), server_hostname=name)


def certificate_of(port: int, name: str) -> x509.Certificate:
    with connect(port, name) as client:
        shown = client.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def self_signed(port: int, name: str) -> bool:
    certificate = certificate_of(port, name)
    return certificate.issuer == certificate.subject


def get(client: ssl.SSLSocket, host: str, path: str = "/") -> tuple[int, bytes]:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def cert(command: Command, pebble: Pebble, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hardserve", "cert", *arguments, *flags_for(pebble, "example.org", "www.example.org")],
        cwd=command.directory,
        env={"PATH": "/usr/bin:/bin", "HOME": str(command.directory), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@needs_chromium
def test_a_site_is_there_at_once_gets_its_certificate_and_a_new_one(
    pebble: Pebble, site: Path, start_command: StartCommand, tmp_path_factory: pytest.TempPathFactory
) -> None:
    control = site / "control" / "sock"
    flags = [*flags_for(pebble, "example.org", "www.example.org"), "--redirect", f"127.0.0.1:{pebble.http_port}"]
    with start_command("app:app", *flags, "--control", str(control), directory=site) as command:
        eventually(lambda: not self_signed(command.port, "example.org"), within=ISSUED_S)
        root = ssl.create_default_context(cadata=pebble.root().decode())
        first = certificate_of(command.port, "example.org")
        kept = connect(command.port, "www.example.org", root)
        assert get(kept, "www.example.org")[0] == 200

        root_file = site / "root.pem"
        root_file.write_bytes(pebble.root())
        curl = [
            *("curl", "--silent", "--show-error", "--cacert", str(root_file)),
            *("--resolve", f"example.org:{command.port}:127.0.0.1", f"https://example.org:{command.port}/"),
        ]
        assert b"at home" in subprocess.run(curl, check=True, capture_output=True, timeout=PATIENCE_S).stdout

        with running_browser(tmp_path_factory.mktemp("chromium"), *trusting(pebble, command)) as browser:
            browser.open(f"https://example.org:{command.port}/")
            assert browser.run("return document.body.innerText") == "at home"
            assert browser.run("return isSecureContext")

            asked = cert(command, pebble, "--renew", "--control", str(control))
            assert asked.returncode == 0, asked.stderr
            eventually(lambda: certificate_of(command.port, "example.org") != first, within=ISSUED_S)

            browser.open(f"https://example.org:{command.port}/")
            assert browser.run("return document.body.innerText") == "at home"
        assert b"at home" in subprocess.run(curl, check=True, capture_output=True, timeout=PATIENCE_S).stdout
        assert get(kept, "www.example.org")[0] == 200  # the connection of before
        kept.close()

        shown = json.loads(cert(command, pebble, "--json").stdout)
        assert "www.example.org" in json.dumps(shown)


def trusting(pebble: Pebble, command: Command) -> list[str]:
    """Return flags with which Chromium finds the site, and believes whatever is signed with the CA's present key."""
    with connect(command.port, "example.org") as client:
        chain = client._sslobj.get_unverified_chain() if sys.version_info < (3, 13) else client.get_unverified_chain()  # type: ignore[attr-defined]
    issuer = chain[1]
    der = issuer.public_bytes(2) if hasattr(issuer, "public_bytes") else issuer
    key = x509.load_der_x509_certificate(der).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()
    return [
        f"--ignore-certificate-errors-spki-list={pin}",
        "--host-resolver-rules=MAP example.org 127.0.0.1",
    ]


def test_names_are_proven_by_a_handshake_where_only_https_is_open(
    pebble: Pebble, site: Path, start_command: StartCommand
) -> None:
    bind = ["--bind", f"127.0.0.1:{pebble.tls_port}"]
    with start_command("app:app", *flags_for(pebble, "tls.example"), *bind, directory=site) as command:
        with connect(command.port, "tls.example") as client:
            assert get(client, "tls.example")[0] == 200  # with the temporary one
        eventually(lambda: not self_signed(command.port, "tls.example"), within=ISSUED_S)
        with connect(command.port, "tls.example", ssl.create_default_context(cadata=pebble.root().decode())) as client:
            assert get(client, "tls.example")[0] == 200
    assert "acme-tls" not in command.output


def test_the_next_start_begins_with_what_was_issued(pebble: Pebble, site: Path, start_command: StartCommand) -> None:
    flags = [*flags_for(pebble, "again.example"), "--redirect", f"127.0.0.1:{pebble.http_port}"]
    with start_command("app:app", *flags, directory=site) as command:
        eventually(lambda: not self_signed(command.port, "again.example"), within=ISSUED_S)
        first = certificate_of(command.port, "again.example")
    orders = pebble.count("There are now")
    with start_command("app:app", *flags, directory=site) as command:
        assert certificate_of(command.port, "again.example") == first
    assert pebble.count("There are now") == orders
    state = next(path for path in site.rglob("acme") if path.is_dir())
    for path in state.rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_challenge_is_answered_before_everything_else_and_the_rest_is_sent_on(
    pebble: Pebble, site: Path, start_command: StartCommand
) -> None:
    (site / "hardserve.toml").write_text(
        '[access]\nhosts = ["other.example"]\nallow = ["192.0.2.0/24"]\n[[rate_limit]]\nlimit = "1/hour"\n'
    )
    flags = [*flags_for(pebble, "only.example"), "--redirect", f"127.0.0.1:{pebble.http_port}"]
    with start_command("app:app", *flags, directory=site) as command:
        eventually(lambda: not self_signed(command.port, "only.example"), within=ISSUED_S)
        assert '"GET /.well-known/acme-challenge/' in command.access_log.read_text()
        plain = http.client.HTTPConnection("127.0.0.1", pebble.http_port, timeout=PATIENCE_S)
        for host in ("only.example", "other.example"):
            plain.request("GET", "/.well-known/acme-challenge/unknown", headers={"Host": host})
            answer = plain.getresponse()
            answer.read()
            assert answer.status in (403, 421)  # a token that no CA knows is nothing special
        plain.close()


def test_what_is_missing_for_a_certificate_is_said_at_once(site: Path) -> None:
    started = subprocess.run(
        [sys.executable, "-m", "hardserve", "app:app", "--tls-domain", "*.example.org", "--acme-email", "nobody"],
        cwd=site,
        env={"PATH": "/usr/bin:/bin", "HOME": str(site), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert started.returncode == 78
    assert "a wildcard is proven by DNS alone" in started.stderr
