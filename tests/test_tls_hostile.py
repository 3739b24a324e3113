"""Clients that mean harm, or cannot do better, against a server with TLS: what they get, and that nobody notices.

What a client can seal only by leaving its library alone (an empty record, a thousand key updates, an alert of every
kind) is sealed here, with the keys that the library writes down when it is asked to (RFC 9850).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from hardserve.edge.connection import Connection
from tests.certs import VERSIONS, Authority, client_context
from tests.support import PATIENCE_S, Client, Running, TlsSocket, serving
from tests.test_http import eventually, read_digest

ROOT = Authority()
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CONTENT = os.urandom(1 << 20) * 16
CROWD = 500

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA, HEARTBEAT = range(20, 25)
UNEXPECTED_MESSAGE, HANDSHAKE_FAILURE, DECODE_ERROR, PROTOCOL_VERSION = 10, 40, 50, 70
PADDING = 21  # an extension that means nothing (RFC 7685)


def answer(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer a body with its length, and anything else with much or little."""
    if environ["REQUEST_METHOD"] == "POST":
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % len(body)]
    content = CONTENT if environ["PATH_INFO"] == "/large" else b"hello"
    start_response("200 OK", [("Content-Length", str(len(content)))])
    return (content[at : at + 65536] for at in range(0, len(content), 65536))


@dataclass
class Attacked:
    """A server, and a client that came before all others and expects to be answered after all of them."""

    running: Running
    kept: Client

    @property
    def port(self) -> int:
        return self.running.port

    @property
    def connections(self) -> list[Connection]:
        return list(self.running.server._loop.connections)

    def assert_well(self, caplog: pytest.LogCaptureFixture) -> None:
        """Fail unless everybody else is gone, and whoever is there or comes is answered."""
        eventually(lambda: len(self.connections) == 1)
        assert self.kept.get("/").body == b"hello"
        with connect(self.port) as client:
            assert client.get("/").body == b"hello"
        assert [each for each in caplog.records if each.levelno >= logging.ERROR or each.exc_info] == []


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def serve(directory: Path, **more: Any) -> Iterator[Attacked]:
    """Serve, and fail if anything is left behind."""
    pair = ROOT.leaf("localhost").write(directory)
    settings: dict[str, Any] = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    settings |= {"limits_body": "64MiB", "limits_connection_requests": 1_000_000}
    with serving(answer, **settings):
        pass  # what is opened once for the process is open now
    had, threads = descriptors(), threading.active_count()
    with serving(answer, **settings, **more) as running:
        with connect(running.port) as kept:
            yield Attacked(running, kept)
        assert running.stop() == 0
    eventually(lambda: threading.active_count() <= threads)
    eventually(lambda: descriptors() <= had)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """Serve all tests with one server; what any of them has left behind shows at its end."""
    with serve(tmp_path_factory.mktemp("pair")) as attacked:
        yield attacked


@pytest.fixture
def well(attacked: Attacked, caplog: pytest.LogCaptureFixture) -> Iterator[Attacked]:
    yield attacked
    attacked.assert_well(caplog)


def connect(port: int, context: ssl.SSLContext | None = None) -> Client:
    return Client(TlsSocket(tcp(port), context or client_context(ROOT), "localhost"))


def tcp(port: int, window: int = 0) -> socket.socket:
    """Connect. `window` is how much is taken that nobody reads, where that is not to be much."""
    raw = socket.socket()
    raw.settimeout(PATIENCE_S)
    if window:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    raw.connect(("127.0.0.1", port))
    return raw


def rest(raw: socket.socket) -> bytes:
    """Return what comes until the server closes or resets."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := raw.recv(65536):
            got += data
    return got


def reset(raw: socket.socket) -> None:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


# --- before there are keys ---


def record(content: bytes, kind: int = HANDSHAKE, version: int = 0x0301) -> bytes:
    return struct.pack(">BHH", kind, version, len(content)) + content


def records(content: bytes, size: int = 16384) -> bytes:
    return b"".join(record(content[at : at + size]) for at in range(0, len(content), size))


def hello(version: str = "1.3", *, claimed: int = 0x0303, extensions: bytes = b"") -> bytes:
    """Return the ClientHello of a real client, as a message, with some `extensions` more at its end."""
    out = ssl.MemoryBIO()
    client = client_context(version=version).wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    body = out.read()[9:]
    at = 2 + 32
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        at += width + int.from_bytes(body[at : at + width], "big")
    theirs = body[at + 2 :] + extensions
    body = claimed.to_bytes(2, "big") + body[2:at] + len(theirs).to_bytes(2, "big") + theirs
    return b"\x01" + len(body).to_bytes(3, "big") + body


def extension(kind: int, content: bytes = b"") -> bytes:
    return struct.pack(">HH", kind, len(content)) + content


SSL_2_HELLO = b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x01\x00\x80\x02\x00\x80\x00\x00\x05" * 2 + b"x" * 19
# What is sent, and the alert for it; None where the connection just ends.
BEFORE: dict[str, tuple[Callable[[], bytes], int | None]] = {
    "a hello of SSL 2": (lambda: SSL_2_HELLO, None),
    # Which has no alert for it.
    "a hello of SSL 3": (lambda: record(hello("1.2", claimed=0x0300), version=0x0300), HANDSHAKE_FAILURE),
    "a hello of TLS 1.0": (lambda: record(hello("1.2", claimed=0x0301)), PROTOCOL_VERSION),
    "a hello of TLS 1.1": (lambda: record(hello("1.2", claimed=0x0302)), PROTOCOL_VERSION),
    "a hello that says it has 16 MiB": (lambda: records(b"\x01\xff\xff\xff" + bytes(100_000)), None),
    "a hello with an extension that ends after it does": (
        lambda: record(hello(extensions=extension(PADDING)[:3] + b"\xff")),
        DECODE_ERROR,
    ),
    "the same extension twice": (lambda: record(hello(extensions=2 * extension(PADDING))), DECODE_ERROR),
    "thousands of extensions, each a thousand times": (
        lambda: records(hello(extensions=b"".join(extension(0x4A4A + n % 8) for n in range(8000)))),
        None,
    ),
    "an alert": (lambda: record(b"\x01\x00", ALERT), None),
    "an alert, after the first bytes of a hello": (
        lambda: record(hello()[:20]) + record(b"\x02\x28", ALERT),
        UNEXPECTED_MESSAGE,
    ),
    "data": (lambda: record(GET, DATA), None),
    "a heartbeat": (lambda: record(b"\x01\x40\x00", HEARTBEAT), None),
    "the end of a handshake": (lambda: record(b"\x14\x00\x00\x0c" + bytes(12)), UNEXPECTED_MESSAGE),
    "two hellos": (lambda: record(hello() * 2), None),
    "a record that is too long": (lambda: struct.pack(">BHH", HANDSHAKE, 0x0301, 0xFFFF) + bytes(70_000), None),
    "records with nothing in them": (lambda: record(b"") * 10_000, None),
    "the PROXY protocol, of which nobody has told": (lambda: b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), None),
    "random bytes in a record": (lambda: record(os.urandom(500)), None),
}


@pytest.mark.parametrize(("sent", "alert"), BEFORE.values(), ids=BEFORE)
def test_what_begins_no_handshake_is_cut(well: Attacked, sent: Callable[[], bytes], alert: int | None) -> None:
    with tcp(well.port) as raw:
        with contextlib.suppress(OSError):
            raw.sendall(sent())
            raw.shutdown(socket.SHUT_WR)
        got = rest(raw)
    if alert is not None:
        assert (got[:1], got[-2:]) == (bytes([ALERT]), bytes([2, alert]))


@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param(b"".join(extension(0x5A00 + n) for n in range(200)), id="hundreds, none of which we know"),
        pytest.param(extension(PADDING, bytes(15_000)), id="a large one"),
    ],
)
def test_a_large_hello_is_answered(well: Attacked, extensions: bytes) -> None:
    with tcp(well.port) as raw:
        raw.sendall(records(hello(extensions=extensions)))
        assert raw.recv(6)[::5] == b"\x16\x02", "a ServerHello"


@pytest.mark.parametrize("records_too", [False, True], ids=["in segments of a byte", "in records of a byte, too"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_handshake_a_byte_at_a_time_is_one(well: Attacked, version: str, records_too: bool) -> None:
    raw = tcp(well.port)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with Client(TlsSocket(InBytes(raw, records_too), client_context(ROOT, version=version), "localhost")) as client:  # type: ignore[arg-type]
        assert client.get("/").body == b"hello"


class InBytes:
    """A socket that sends each byte by itself, and has the first message in a record for each."""

    def __init__(self, raw: socket.socket, records_too: bool) -> None:
        self._raw = raw
        self._cutting = records_too

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def sendall(self, data: bytes) -> None:
        if self._cutting:
            data = records(data[5:], 1)
            self._cutting = False
        for byte in data:
            self._raw.send(bytes([byte]))


@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_a_client_that_leaves_within_its_hello(well: Attacked, end: str) -> None:
    said = record(hello())
    for count in (0, 1, 5, 100, len(said)):
        raw = tcp(well.port)
        raw.sendall(said[:count])
        if end == "RST":
            reset(raw)
        else:
            raw.shutdown(socket.SHUT_WR)
            rest(raw)
            raw.close()


# --- with keys, and without the library ---


def expanded(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 7.1)."""
    info = struct.pack(">HB", length, 6 + len(label)) + b"tls13 " + label.encode() + b"\0"
    return HKDFExpand(hashes.SHA384(), length, info).derive(secret)


def prf(secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """The pseudorandom function of TLS 1.2 (RFC 5246 5)."""
    out, a = b"", label + seed
    while len(out) < length:
        a = hmac.digest(secret, a, "sha256")
        out += hmac.digest(secret, a + label + seed, "sha256")
    return out[:length]


class Remembering:
    """A socket that keeps what came first."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self.first = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def recv(self, count: int) -> bytes:
        data = self._raw.recv(count)
        if len(self.first) < 100:
            self.first += data
        return data


class Forger:
    """A client after a real handshake that seals its records itself. It reads as every client."""

    def __init__(self, port: int, version: str, directory: Path, window: int) -> None:
        context = client_context(ROOT, version=version)
        if version == "1.2":
            context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        context.keylog_filename = str(directory / "keys")
        remembering = Remembering(tcp(port, window))
        self.client = Client(TlsSocket(remembering, context, "localhost"))  # type: ignore[arg-type]
        context.keylog_filename = None  # type: ignore[assignment]  # which closes it
        lines = (line.split() for line in (directory / "keys").read_text().splitlines() if line[:1] != "#")
        secrets = {label: (bytes.fromhex(random), bytes.fromhex(secret)) for label, random, secret in lines}
        self.is_1_3 = version == "1.3"
        if self.is_1_3:
            assert self.client.socket.tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
            self._use(secrets["CLIENT_TRAFFIC_SECRET_0"][1])
        else:
            random, master = secrets["CLIENT_RANDOM"]
            block = prf(master, b"key expansion", remembering.first[11:43] + random, 2 * 16 + 2 * 4)
            self._aead, self._iv = AESGCM(block[:16]), block[32:36]
            self._sequence = 1  # its Finished was 0

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._aead, self._iv = AESGCM(expanded(secret, "key", 32)), expanded(secret, "iv", 12)
        self._sequence = 0

    def seal(self, content: bytes, kind: int = DATA) -> bytes:
        """Return `content` as a record. With TLS 1.3, a `kind` of 0 is a record of padding alone."""
        counted = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        if self.is_1_3:
            nonce = (int.from_bytes(self._iv, "big") ^ int.from_bytes(counted, "big")).to_bytes(12, "big")
            inner = content + bytes([kind])
            head = struct.pack(">BHH", DATA, 0x0303, len(inner) + 16)
            return head + self._aead.encrypt(nonce, inner, head)
        head = struct.pack(">BHH", kind, 0x0303, len(content))
        sealed = counted + self._aead.encrypt(self._iv + counted, content, counted + head)
        return head[:3] + len(sealed).to_bytes(2, "big") + sealed

    def update(self, asking: int) -> bytes:
        """Return a KeyUpdate, and use the next keys (RFC 8446 4.6.3)."""
        message = self.seal(b"\x18\x00\x00\x01" + bytes([asking]), HANDSHAKE)
        self._use(expanded(self._secret, "traffic upd", 48))
        return message

    def send(self, data: bytes) -> None:
        self.client.socket.raw.sendall(data)


@contextlib.contextmanager
def forging(port: int, version: str, directory: Path, *, window: int = 0) -> Iterator[Forger]:
    forger = Forger(port, version, directory, window)
    with forger.client:
        yield forger


def several(forger: Forger, count: int, content: bytes, kind: int = DATA) -> bytes:
    return b"".join(forger.seal(content, kind) for _ in range(count))


def changed(sealed: bytes) -> bytes:
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


Forgery = Callable[[Forger], bytes]
HARMLESS: dict[str, tuple[str, Forgery]] = {
    "a few records with nothing in them": ("1.2 1.3", lambda f: several(f, 30, b"")),
    "a record of padding and a byte": ("1.3", lambda f: f.seal(GET[:1] + bytes(0)) + f.seal(GET[1:])),
    "a thousand key updates": ("1.3", lambda f: b"".join(f.update(0) for _ in range(1000))),
    "a thousand that ask for ours": ("1.3", lambda f: b"".join(f.update(1) for _ in range(1000))),
    "a few warnings": ("1.2", lambda f: several(f, 3, b"\x01\x5a", ALERT)),
}
HARMFUL: dict[str, tuple[str, Forgery]] = {
    "a record that was changed": ("1.2 1.3", lambda f: changed(f.seal(GET))),
    "the same record twice": ("1.2 1.3", lambda f: f.seal(GET[:10]) * 2),
    "a record left out": ("1.2 1.3", lambda f: f.seal(GET[:10])[:0] + f.seal(GET[10:])),
    "plain HTTP": ("1.2 1.3", lambda f: GET),
    "a plain hello": ("1.2 1.3", lambda f: record(hello())),
    "random bytes": ("1.2 1.3", lambda f: os.urandom(1000)),
    "a record that is too long": ("1.2 1.3", lambda f: struct.pack(">BHH", DATA, 0x0303, 0xFFFF) + bytes(66_000)),
    "more in a record than there may be": ("1.2 1.3", lambda f: f.seal(bytes(16_385))),
    "ten thousand records with nothing in them": ("1.2 1.3", lambda f: several(f, 10_000, b"")),
    "a kind of record that there is not": ("1.2 1.3", lambda f: f.seal(b"x", 99)),
    "a heartbeat": ("1.2 1.3", lambda f: f.seal(b"\x01\x40\x00", HEARTBEAT)),
    "a record with nothing but padding": ("1.3", lambda f: f.seal(bytes(100), 0)),
    "another change of ciphers": ("1.2 1.3", lambda f: f.seal(b"\x01", CHANGE_CIPHER_SPEC)),
    "a fatal alert": ("1.2 1.3", lambda f: f.seal(b"\x02\x50", ALERT)),
    "an alert of half its length": ("1.2 1.3", lambda f: f.seal(b"\x01", ALERT) + f.seal(b"", ALERT)),
    "three thousand key updates": ("1.3", lambda f: b"".join(f.update(0) for _ in range(3000))),
    "ten thousand warnings": ("1.2 1.3", lambda f: several(f, 10_000, b"\x01\x5a", ALERT)),
    "another end of the handshake": ("1.2 1.3", lambda f: f.seal(b"\x14\x00\x00\x20" + bytes(32), HANDSHAKE)),
    "another hello": ("1.3", lambda f: f.seal(hello(), HANDSHAKE)),
    "a key update of a kind that there is not": ("1.3", lambda f: f.update(7)),
    "a message that says it has 16 MiB": ("1.3", lambda f: f.seal(b"\x04\xff\xff\xff" + bytes(16_000), HANDSHAKE)),
}


def each_version(forgeries: dict[str, tuple[str, Forgery]]) -> list[Any]:
    return [
        pytest.param(version, forged, id=f"{name}, {version}")
        for name, (versions, forged) in forgeries.items()
        for version in versions.split()
    ]


@pytest.mark.parametrize(("version", "forged"), each_version(HARMLESS))
def test_what_is_odd_but_allowed_is_no_reason_to_end(
    well: Attacked, tmp_path: Path, version: str, forged: Forgery
) -> None:
    with forging(well.port, version, tmp_path) as forger:
        for _ in range(2):
            forger.send(forged(forger) + forger.seal(GET))
            assert forger.client.response().body == b"hello"


@pytest.mark.parametrize(("version", "forged"), each_version(HARMFUL))
def test_what_is_against_the_protocol_ends_the_connection(
    well: Attacked, tmp_path: Path, version: str, forged: Forgery
) -> None:
    with forging(well.port, version, tmp_path) as forger:
        with contextlib.suppress(ConnectionError):
            forger.send(forged(forger) + forger.seal(GET))
        got = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # its alert, for which OpenSSL has a name
            got = forger.client.receive_all()
        assert got == b""


def test_who_asks_for_renegotiations_and_reads_no_refusal_is_ended(well: Attacked, tmp_path: Path) -> None:
    """Before the refusals take much memory."""

    def ask(forger: Forger) -> None:
        for _ in range(500):
            forger.send(several(forger, 100, hello("1.2"), HANDSHAKE))

    with forging(well.port, "1.2", tmp_path, window=4096) as forger, pytest.raises(ConnectionError):
        ask(forger)


# --- in the midst of things ---


def test_a_request_that_begins_in_the_segment_that_ends_the_handshake(well: Attacked) -> None:
    with contextlib.closing(tcp(well.port)) as raw:
        ins, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(ROOT, version="1.3").wrap_bio(ins, out, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        raw.sendall(out.read())
        while not out.pending:
            ins.write(raw.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
        tls.write(LAST_GET)
        said = out.read()
        raw.sendall(said[:-30])
        eventually(lambda: any(each.tls and each.peer == raw.getsockname() for each in well.connections))
        raw.sendall(said[-30:])
        ins.write(rest(raw))
        assert tls.read(65536).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_flight_that_is_cut_within_a_record_is_one(well: Attacked, version: str) -> None:
    """As that of a client whose certificates take more than a segment."""
    raw = tcp(well.port)
    client = TlsSocket(InPieces(raw, well), client_context(ROOT, version=version), "localhost")  # type: ignore[arg-type]
    with Client(client) as served:
        assert served.get("/").body == b"hello"


class InPieces:
    """A socket that waits, after a part of the second flight, until the server has taken it."""

    def __init__(self, raw: socket.socket, attacked: Attacked) -> None:
        self._raw = raw
        self._attacked = attacked
        self._sent = 0
        self._flights = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def sendall(self, data: bytes) -> None:
        self._flights += 1
        if self._flights == 2:
            # A whole record and some of the next.
            cut = 5 + int.from_bytes(data[3:5], "big") + 7
            assert cut < len(data)
            self._raw.sendall(data[:cut])
            self._sent += cut
            eventually(self._taken)
            data = data[cut:]
        self._raw.sendall(data)
        self._sent += len(data)

    def _taken(self) -> bool:
        mine = self._raw.getsockname()
        return any(
            each.peer == mine and getattr(each.transport, "_shake_bytes", 0) == self._sent
            for each in self._attacked.connections
        )


@pytest.mark.parametrize("end", ["FIN", "RST"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_large_download_that_is_cut_is_logged_as_such(well: Attacked, version: str, end: str) -> None:
    before = len(well.running.log.entries)
    client = connect(well.port, client_context(ROOT, version=version))
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    client.receive_exactly(200_000)
    if end == "RST":
        reset(client.socket.raw)
    else:
        client.socket.raw.close()  # and no close_notify
    entry = well.running.log.wait_for(before + 1)[-1]
    assert (entry.target, entry.status, entry.refusal) == ("/large", 200, "client_disconnected")
    assert entry.bytes_sent < len(CONTENT)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("end", ["FIN", "close_notify", "close_notify and FIN"])
def test_a_client_that_sends_no_more_gets_all_of_a_large_download(
    well: Attacked, tmp_path: Path, version: str, end: str
) -> None:
    with forging(well.port, version, tmp_path) as forger:
        client = forger.client
        forger.send(forger.seal(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"))
        client.receive_until(b"\r\n\r\n")
        client.receive_exactly(1000)
        if "close_notify" in end:
            forger.send(forger.seal(b"\x01\x00", ALERT))
        if "FIN" in end:
            client.socket.raw.shutdown(socket.SHUT_WR)
        assert read_digest(client, len(CONTENT) - 1000) == hashlib.sha256(CONTENT[1000:]).hexdigest()
        assert client.receive_all() == b""


@pytest.mark.parametrize("end", ["FIN", "RST", "close_notify", "half a record"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_large_upload_that_is_cut_never_reaches_the_app(well: Attacked, version: str, end: str) -> None:
    before = len(well.running.log.entries)
    client = connect(well.port, client_context(ROOT, version=version))
    client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(CONTENT))
    client.send(CONTENT[: len(CONTENT) // 2])
    if end == "half a record":
        client.socket.tls.write(CONTENT[:10_000])
        client.socket.raw.sendall(client.socket._outgoing.read()[:5000])
    if end == "RST":
        reset(client.socket.raw)
    elif end == "close_notify":
        client.shutdown_write()
    else:
        client.socket.raw.shutdown(socket.SHUT_WR)
    if end != "RST":
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert client.receive_all() == b""
        client.socket.close()
    entry = well.running.log.wait_for(before + 1)[-1]
    assert (entry.target, entry.status, entry.refusal) == ("/upload", 499, "client_disconnected")


# --- many at once ---


@contextlib.contextmanager
def normal(client: Client) -> Iterator[list[float]]:
    """Have `client` ask for one thing after the other while the block runs; what goes wrong is raised after it."""
    took: list[float] = []
    wrong: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.wait(0.01):
                began = time.monotonic()
                assert client.get("/").body == b"hello"
                took.append(time.monotonic() - began)
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not wrong, wrong
    assert took


def crowd(port: int) -> Iterator[socket.socket]:
    """Many clients, each from an address of its own."""
    for number in range(CROWD):
        yield socket.create_connection(
            ("127.0.0.1", port), PATIENCE_S, source_address=(f"127.0.{2 + number // 250}.{1 + number % 250}", 0)
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_five_hundred_handshakes_at_once_are_all_done(well: Attacked, version: str) -> None:
    context = client_context(ROOT, version=version)
    with contextlib.ExitStack() as stack, normal(well.kept) as took:
        waiting = []
        for raw in map(stack.enter_context, crowd(well.port)):
            ins, out = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(ins, out, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            waiting.append((raw, tls, ins, out))
        for raw, _, _, out in waiting:
            raw.sendall(out.read())  # all of them before any answer is read
        for raw, tls, ins, out in waiting:
            shaken = False
            while not shaken:
                data = raw.recv(65536)
                assert data, "closed during the handshake"
                ins.write(data)
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    shaken = True
                if not shaken and out.pending:
                    raw.sendall(out.read())
            tls.write(LAST_GET)
            raw.sendall(out.read())
        for raw, tls, ins, _ in waiting:
            ins.write(rest(raw))
            assert tls.read(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    assert max(took) < PATIENCE_S


def test_five_hundred_dripped_handshakes_are_cut_and_nobody_notices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = record(hello())
    with serve(tmp_path, timeouts_handshake="2s") as attacked:
        with contextlib.ExitStack() as stack, normal(attacked.kept):
            sent = {stack.enter_context(raw): 0 for raw in crowd(attacked.port)}
            until = time.monotonic() + PATIENCE_S
            while sent:
                assert time.monotonic() < until, "they are still there"
                for raw, count in list(sent.items()):
                    try:
                        raw.sendall(said[count : count + 1])
                    except OSError:
                        del sent[raw]
                    else:
                        sent[raw] = min(count + 1, len(said) - 2)
                with connect(attacked.port) as fresh:  # somebody who comes now is served, too
                    assert fresh.get("/").body == b"hello"
        attacked.assert_well(caplog)
        assert attacked.running.server._record._refusal_log.totals()["handshake_deadline"] == CROWD


def test_a_crowd_that_never_ends_its_handshake_keeps_nobody_out(tmp_path: Path) -> None:
    pair = ROOT.leaf("localhost", "127.0.0.1").write(tmp_path)
    secured = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    with serving(answer, limits_connections=8, **secured) as running, contextlib.ExitStack() as crowd:
        for number in range(24):
            raw = crowd.enter_context(tcp(running.port))
            raw.sendall(b"\x16\x03\x01" * (number % 2))
        with Client(TlsSocket(tcp(running.port), client_context(ROOT), "localhost")) as client:
            assert client.get("/").status == 200
