"""CAs on loopback for tests: Debian's ACME test server, which proves names by asking the test, and one of our own."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.server
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.hello import parse
from tests.support import PATIENCE_S
from tests.test_http import eventually

PEBBLE = shutil.which("pebble")
NAMES = shutil.which("pebble-challtestsrv")

EAB_KID = "kid-1"
EAB_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@dataclass
class Authority:
    """A self-made CA, for whatever on loopback needs a certificate of its own."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        names: tuple[str, ...],
        key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey,
        *,
        days: tuple[float, float] = (-1, 30),
    ) -> bytes:
        """Return a certificate in PEM that is valid from `days[0]` to `days[1]` from now on."""
        public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
        now = dt.datetime.now(dt.UTC)
        alternative = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.SubjectAlternativeName(alternative), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def make_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA of the tests")])
    now = dt.datetime.now(dt.UTC)
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=400))
        .not_valid_after(now + dt.timedelta(days=400))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    eventually(listens)


class Pebble:
    """The CA, and the name server that sends it to 127.0.0.1 for every name. Each process is ended by its id."""

    def __init__(self, directory: Path, environment: dict[str, str], *, external_account: bool = False) -> None:
        self._directory = directory
        self._environment = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
        self._environment |= environment
        self._authority = make_authority()
        self._process: subprocess.Popen[bytes] | None = None
        self._names: subprocess.Popen[bytes] | None = None
        self.port, self.management_port, self.http_port, self.tls_port, self._dns_port = free_ports(5)
        self.url = f"https://127.0.0.1:{self.port}/dir"
        self.ca_file = directory / "pebble-site-ca.pem"
        self.log = directory / "pebble.log"
        self._write_config(external_account)

    def _write_config(self, external_account: bool) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        (self._directory / "site.pem").write_bytes(self._authority.issue(("127.0.0.1", "localhost"), key))
        (self._directory / "site-key.pem").write_bytes(pem_of(key))
        self.ca_file.write_bytes(self._authority.pem)
        config = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{self.management_port}",
            "certificate": str(self._directory / "site.pem"),
            "privateKey": str(self._directory / "site-key.pem"),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": external_account,
            "externalAccountMACKeys": {EAB_KID: EAB_KEY} if external_account else {},
        }
        (self._directory / "pebble.json").write_text(json.dumps({"pebble": config}))

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                env={"PATH": os.environ["PATH"]} | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Begin with no accounts, orders or certificates, and another root."""
        dns = f"127.0.0.1:{self._dns_port}"
        if self._names is None:
            manage = free_ports(1)[0]
            self._names = self._run(
                *(str(NAMES), "-dns01", dns, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""),
                *("-http01", "", "-https01", "", "-tlsalpn01", "", "-management", f"127.0.0.1:{manage}"),
            )
            _listening(self._names, manage, self.log)
        config = str(self._directory / "pebble.json")
        self._process = self._run(str(PEBBLE), "-config", config, "-dnsserver", dns, "-strict")
        _listening(self._process, self.port, self.log)

    def go_away(self) -> None:
        """End at once, and forget everything."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Have it not answer, and forget nothing, while a block runs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.go_away()
        if self._names is not None:
            _end(self._names)
            self._names = None

    def root(self) -> bytes:
        """Return the root of the certificates that it issues."""
        url = f"https://127.0.0.1:{self.management_port}/roots/0"
        return requests.get(url, verify=str(self.ca_file), timeout=PATIENCE_S).content

    def count(self, what: str) -> int:
        """Return how often its log says `what`."""
        return self.log.read_text(errors="replace").count(what)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(PATIENCE_S)


@contextlib.contextmanager
def running_pebble(directory: Path, *, external_account: bool = False, **environment: str) -> Iterator[Pebble]:
    """Run the CA while a block runs; `environment` is added to what makes it quick and well-behaved."""
    pebble = Pebble(directory, environment, external_account=external_account)
    try:
        pebble.start()
        yield pebble
    finally:
        pebble.stop()


@contextlib.contextmanager
def answering_http(challenges: Challenges, port: int) -> Iterator[list[str]]:
    """Answer for HTTP-01 on `port` as the server does; yield the paths that are asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = challenges.answer(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join(PATIENCE_S)
        server.server_close()


@contextlib.contextmanager
def answering_tls(challenges: Challenges, port: int, ordinary: ssl.SSLContext) -> Iterator[list[tuple[str, bool]]]:
    """Answer handshakes on `port` as the server does; yield the names that were asked for, and whether by a CA."""
    asked: list[tuple[str, bool]] = []
    listener = socket.create_server(("127.0.0.1", port))

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(PATIENCE_S)
            hello = parse(connection.recv(16384, socket.MSG_PEEK))
            validation = hello is not None and hello.is_validation

            def choose(handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
                asked.append((name or "", validation))
                if validation and (context := challenges.context_for_challenge(name)):
                    handshake.context = context

            context = ordinary
            context.sni_callback = choose  # type: ignore[assignment]
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as handshake:
                handshake.recv(1)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)
        listener.close()


class Reply(Exception):  # noqa: N818 (it is an answer, and raised only to get out of whatever makes the usual one)
    def __init__(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


def problem(status: int, code: str, detail: str = "no", **headers: str) -> Reply:
    body = {"type": f"urn:ietf:params:acme:error:{code}", "detail": detail}
    return Reply(status, body, {"Content-Type": "application/problem+json", **headers})


class ScriptedCA:
    """What pebble cannot be made to say: a CA that proves nothing, signs everything, and says what a test wants.

    `said` has what it was sent, path and payload; `script` what it says instead of its usual answer to a path, each
    once and in order; a function is called with the payload and its result is the reply. Signatures are not looked at.
    """

    def __init__(self, directory: Path) -> None:
        self.authority = make_authority()
        self.said: list[tuple[str, Any]] = []
        self.script: dict[str, list[Reply | Callable[[Any], Reply]]] = {}
        self.window: tuple[str, str] | None = None
        self.chain: Callable[[x509.CertificateSigningRequest], bytes] = self.sign
        self._orders: list[dict[str, Any]] = []
        self._certificates: list[bytes] = []
        key = ec.generate_private_key(ec.SECP256R1())
        pair = directory / "scripted-site.pem"
        pair.write_bytes(pem_of(key) + self.authority.issue(("127.0.0.1",), key))
        self.ca_file = directory / "scripted-ca.pem"
        self.ca_file.write_bytes(self.authority.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        ca = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a body that follows its head would wait 40 ms for the client's ACK

            def setup(self) -> None:
                self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

            def finish(self) -> None:
                super().finish()
                self.request.close()

            def do_GET(self) -> None:
                ca._handle(self, None)

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                payload = base64.urlsafe_b64decode(sent["payload"] + "==")
                ca._handle(self, json.loads(payload) if payload else None)

            def log_message(self, *_: object) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...  # clients go away in the middle of a handshake

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"https://127.0.0.1:{self._server.server_port}/dir"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_S)
        self._server.server_close()

    def sign(self, request: x509.CertificateSigningRequest) -> bytes:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return self.authority.issue(tuple(names.get_values_for_type(x509.DNSName)), key, days=(-0.01, 60))

    def sent_to(self, path: str) -> list[Any]:
        return [payload for each, payload in self.said if each == path]

    def _handle(self, handler: http.server.BaseHTTPRequestHandler, payload: Any) -> None:
        path = handler.path
        self.said.append((path, payload))
        try:
            if scripted := self.script.get(path):
                reply = scripted.pop(0)
                raise reply if isinstance(reply, Reply) else reply(payload)
            reply = self._usual(path, payload)
        except Reply as said:
            reply = said
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        headers = {"Replay-Nonce": secrets.token_urlsafe(8), "Content-Type": "application/json"} | reply.headers
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def _usual(self, path: str, payload: Any) -> Reply:  # noqa: PLR0911 (one for each kind)
        base = self.url.removesuffix("/dir")
        kind, _, number = path.removeprefix("/").partition("/")
        if kind == "dir":
            directory = {"newNonce": f"{base}/nonce", "newAccount": f"{base}/account", "newOrder": f"{base}/order"}
            return Reply(200, directory | ({"renewalInfo": f"{base}/renewal"} if self.window else {}))
        if kind == "renewal" and self.window:
            return Reply(200, {"suggestedWindow": {"start": self.window[0], "end": self.window[1]}})
        if kind == "account":
            return Reply(201, {"status": "valid"}, {"Location": f"{base}/account/1"})
        if kind == "order":
            if not number:
                number = str(len(self._orders))
                order = {"status": "ready", "authorizations": [], "finalize": f"{base}/finalize/{number}"}
                self._orders.append(order | {"identifiers": payload["identifiers"]})
            location = f"{base}/order/{number}"
            return Reply(201, self._orders[int(number)], {"Location": location})
        if kind == "finalize":
            request = x509.load_der_x509_csr(base64.urlsafe_b64decode(payload["csr"] + "=="))
            self._certificates.append(self.chain(request))
            url = f"{base}/certificate/{len(self._certificates) - 1}"
            self._orders[int(number)] |= {"status": "valid", "certificate": url}
            return Reply(200, self._orders[int(number)])
        if kind == "certificate":
            return Reply(200, self._certificates[int(number)], {"Content-Type": "application/pem-certificate-chain"})
        return Reply(200 if kind == "nonce" else 404, b"")


@contextlib.contextmanager
def scripted_ca(directory: Path) -> Iterator[ScriptedCA]:
    ca = ScriptedCA(directory)
    try:
        yield ca
    finally:
        ca.stop()
