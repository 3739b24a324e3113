"""TLS over a socket: handshakes of every kind of client, what is inside and what is left over, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509

from hardserve.edge import handshaker, tls, tlsfacts
from hardserve.edge.admission import Peers
from hardserve.edge.clients import Clients
from hardserve.edge.connection import Connection
from hardserve.edge.handshake import HandshakeError, PlainHttpError
from hardserve.edge.handshaker import Handshaker
from hardserve.edge.listener import open_listeners
from hardserve.edge.loop import Loop
from hardserve.edge.parsing import Request
from hardserve.edge.tls import TlsTransport
from hardserve.edge.tlsfacts import client_names
from hardserve.edge.transport import HeldCalls, PlainTransport
from hardserve.pool import Pool
from hardserve.tls.acme import pki
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.hello import ClientHello
from tests import test_tls_hello as hello_of
from tests.certs import Authority, client_context
from tests.support import PATIENCE_S, edge_context, switching_often
from tests.test_http import eventually

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="there is no openssl command")
CONTENT = os.urandom(65536) * 64  # 4 MiB
ROOT = Authority()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return new_server(tmp_path_factory.mktemp("pair"))


def new_server(directory: Path, *names: str) -> ssl.SSLContext:
    pair = ROOT.leaf(*(names or ("localhost",))).write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@dataclass
class Joined:
    """A transport, and the client's end of its socket."""

    transport: TlsTransport
    raw: socket.socket
    client: ssl.SSLSocket | None = None

    @property
    def raw_fileno(self) -> int:
        return (self.client or self.raw).fileno()

    @property
    def tls(self) -> ssl.SSLSocket:
        assert self.client is not None
        return self.client

    def read(self, count: int) -> bytes:
        """Have the client read exactly so many bytes."""
        data = b""
        while len(data) < count:
            more = self.tls.recv(count - len(data))
            assert more, f"the server closed after {len(data)} of {count} bytes"
            data += more
        return data

    def close(self) -> None:
        self.transport.close()
        (self.client or self.raw).close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname(), PATIENCE_S)
        ours, _ = listening.accept()
    ours.setblocking(False)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


@contextlib.contextmanager
def joined(context: ssl.SSLContext) -> Iterator[Joined]:
    """A transport whose handshake has not begun."""
    ours, theirs = tcp_pair()
    pair = Joined(TlsTransport(PlainTransport(ours, HeldCalls()), context), theirs)
    try:
        yield pair
    finally:
        pair.close()


def wait_for(transport: TlsTransport, what: str) -> None:
    reading, writing = ([transport], []) if what == "read" else ([], [transport])
    assert any(select.select(reading, writing, [], PATIENCE_S)[:2]), f"{transport!r} waits to {what}"


def shake(transport: TlsTransport) -> None:
    while (need := transport.handshake()) != "done":
        wait_for(transport, need)


@contextlib.contextmanager
def established(
    context: ssl.SSLContext, client: ssl.SSLContext | None = None, *, name: str = "localhost"
) -> Iterator[Joined]:
    """A transport and a client whose handshake is done."""
    with joined(context) as pair:
        with in_thread(lambda: setattr(pair, "client", wrapped(pair.raw, client, name))):
            shake(pair.transport)
        yield pair


def wrapped(raw: socket.socket, context: ssl.SSLContext | None, name: str = "localhost") -> ssl.SSLSocket:
    context = context or client_context()
    return context.wrap_socket(raw, server_hostname=name, suppress_ragged_eofs=False)


def connect_and_wait(raw: socket.socket, context: ssl.SSLContext) -> None:
    """With TLS 1.3, only the first read tells a client what the server thinks of its certificate."""
    with wrapped(raw, context) as client:
        client.recv(1)


@contextlib.contextmanager
def in_thread(action: Callable[[], object]) -> Iterator[None]:
    """Run `action` beside the block; what it raises is raised after it."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def receive(transport: TlsTransport, most: int = 65536) -> bytes:
    """Return what `receive` does once there is something."""
    while (data := transport.receive(most)) is None:
        assert not transport.pending(), "nothing is inside, or it would have come"
        wait_for(transport, "read")
    return data


def receive_exactly(transport: TlsTransport, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += receive(transport)
    return data


def read_to_the_end(client: ssl.SSLSocket) -> None:
    while client.recv(65536):
        pass


def send_all(transport: TlsTransport, data: bytes) -> None:
    view = memoryview(data)
    while view:
        sent = transport.send(view)
        view = view[sent:]
        if view and not sent:
            wait_for(transport, "write")


def reason(pair: Joined, client: Callable[[], object]) -> str:
    """Return why the handshake with `client` fails."""

    def run() -> None:
        with contextlib.suppress(OSError):
            client()

    with in_thread(run):
        with pytest.raises(HandshakeError) as raised:
            shake(pair.transport)
        pair.transport.close()
    return raised.value.reason


def client_hello(context: ssl.SSLContext | None = None) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client in memory that has just said its first message."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = (context or client_context()).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return client, incoming, outgoing


def in_small_records(records: bytes, size: int = 1) -> bytes:
    """Cut the messages of plaintext records into records of `size` bytes."""
    cut = b""
    while records:
        length = int.from_bytes(records[3:5], "big")
        payload = records[5 : 5 + length]
        for at in range(0, length, size):
            piece = payload[at : at + size]
            cut += records[:3] + len(piece).to_bytes(2, "big") + piece
        records = records[5 + length :]
    return cut


# --- handshakes ---


@pytest.mark.parametrize(("version", "told"), [("1.2", "TLSv1.2"), ("1.3", "TLSv1.3")])
def test_what_a_connection_is_secured_with_is_known(server: ssl.SSLContext, version: str, told: str) -> None:
    with established(server, client_context(ROOT, version=version)) as pair:
        facts = pair.transport.facts
        assert facts is not None
        assert (facts.protocol, facts.resumed) == (told, False)
        cipher = pair.tls.cipher()
        assert cipher is not None
        assert facts.environ == {
            "SSL_PROTOCOL": told,
            "SSL_CIPHER": cipher[0],
            "SSL_SESSION_RESUMED": "Initial",
            "SSL_CLIENT_VERIFY": "NONE",
        }
        pair.tls.sendall(b"ping")
        assert receive(pair.transport) == b"ping"
        assert pair.transport.send(b"pong") == 4
        assert pair.read(4) == b"pong"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_session_is_resumed(server: ssl.SSLContext, version: str) -> None:
    client = client_context(version=version)
    with established(server, client) as pair:
        pair.transport.send(b"x")
        pair.read(1)
        session = pair.tls.session
    with joined(server) as pair:

        def connect() -> None:
            pair.client = client.wrap_socket(pair.raw, server_hostname="localhost", session=session)

        with in_thread(connect):
            shake(pair.transport)
        assert pair.transport.facts is not None
        assert pair.transport.facts.environ["SSL_SESSION_RESUMED"] == "Resumed"
        pair.tls.sendall(b"once more")
        assert receive(pair.transport) == b"once more"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_an_old_version_is_refused(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    client = client_context(ciphers="ALL:@SECLEVEL=0")
    client.minimum_version = ssl.TLSVersion.TLSv1
    client.maximum_version = version
    with joined(server) as pair:
        # OpenSSL's words depend on how old a version it has been built to know of.
        refused = ("unsupported protocol", "no suitable signature algorithm")
        assert reason(pair, lambda: wrapped(pair.raw, client)) in refused


def test_a_client_with_other_ciphers_is_refused(server: ssl.SSLContext) -> None:
    client = client_context(version="1.2", ciphers="ECDHE-RSA-AES128-GCM-SHA256")  # the key is not RSA
    with joined(server) as pair:
        assert reason(pair, lambda: wrapped(pair.raw, client)) == "no shared cipher"


def test_a_client_that_does_not_trust_the_certificate_says_so(server: ssl.SSLContext) -> None:
    client = client_context(Authority("Another"), version="1.2")
    with joined(server) as pair:
        assert reason(pair, lambda: wrapped(pair.raw, client)) == "the client says: unknown ca"


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_hello_in_small_records_is_one_step(server: ssl.SSLContext, version: str, size: int) -> None:
    client, incoming, outgoing = client_hello(client_context(version=version))
    with joined(server) as pair:
        pair.raw.sendall(in_small_records(outgoing.read(), size))
        wait_for(pair.transport, "read")
        need = pair.transport.advance()
        while need == "read":
            wait_for(pair.transport, "read")
            need = pair.transport.advance()
        assert need == "compute"
        pair.transport.compute()
        need = pair.transport.handshake()
        done = False
        while not done:
            incoming.write(pair.raw.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                done = True
            if outgoing.pending:
                pair.raw.sendall(outgoing.read())
                wait_for(pair.transport, "read")
                need = pair.transport.handshake()
        assert need == "done"
        client.write(b"GET")
        pair.raw.sendall(outgoing.read())
        assert receive(pair.transport) == b"GET"


def test_a_dripped_hello_costs_nothing_until_it_is_whole(server: ssl.SSLContext) -> None:
    _, _, outgoing = client_hello()
    hello = outgoing.read()
    with joined(server) as pair:
        for at in range(len(hello) - 1):
            pair.raw.sendall(hello[at : at + 1])
            wait_for(pair.transport, "read")
            assert pair.transport.advance() == "read"
        pair.raw.sendall(hello[-1:])
        wait_for(pair.transport, "read")
        assert pair.transport.advance() == "compute"
        assert pair.transport.computing


def test_what_was_read_before_is_the_beginning(server: ssl.SSLContext) -> None:
    _, _, outgoing = client_hello()
    hello = outgoing.read()
    ours, theirs = tcp_pair()
    with theirs:
        transport = TlsTransport(PlainTransport(ours, HeldCalls()), server, first=hello[:100])
        assert transport.advance() == "read"
        theirs.sendall(hello[100:])
        wait_for(transport, "read")
        assert transport.advance() == "compute"
        transport.close()


def test_a_request_that_comes_with_the_last_message_is_pending(server: ssl.SSLContext) -> None:
    client, incoming, outgoing = client_hello(client_context(version="1.3"))
    with joined(server) as pair:
        pair.raw.sendall(outgoing.read())
        wait_for(pair.transport, "read")
        assert pair.transport.handshake() == "read"
        while True:
            incoming.write(pair.raw.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                break
        client.write(b"GET / HTTP/1.1\r\n\r\n")
        pair.raw.sendall(outgoing.read())
        wait_for(pair.transport, "read")
        assert pair.transport.handshake() == "done"
        assert pair.transport.pending(), "no selector would tell"
        assert pair.transport.receive(65536) == b"GET / HTTP/1.1\r\n\r\n"
        assert not pair.transport.pending()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"P", b"options * HTTP/1.1\r\n"])
def test_plain_http_can_be_answered_in_plain_text(server: ssl.SSLContext, said: bytes) -> None:
    with joined(server) as pair:
        pair.raw.sendall(said)
        wait_for(pair.transport, "read")
        with pytest.raises(PlainHttpError) as raised:
            pair.transport.advance()
        assert raised.value.reason == "http request"
        plain = pair.transport.as_plain()
        assert plain.send(b"HTTP/1.1 400 Bad Request\r\n\r\n") == 28
        plain.shutdown_write()
        assert pair.raw.recv(100) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
        assert pair.raw.recv(100) == b""


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(b"\x80\x2e\x01\x00\x02", "not TLS", id="the hello of SSL 2"),
        pytest.param(b"\x00" * 100, "not TLS", id="zeroes"),
        pytest.param(b"\r\n\r\n\0\r\nQUIT\n", "not TLS", id="a PROXY header where none belongs"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x28", "not TLS", id="an alert first"),
        pytest.param(b"\x16\x03\x01\xff\xff" + b"x" * 70000, "record too long", id="an endless record"),
        pytest.param(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" * 10000, "hello too large", id="an endless message"),
        pytest.param(b"\x16\x03\x01\x00\x05\x7f\0\0\1x", "unexpected message", id="a message of no known type"),
        pytest.param(b"\x16\x03\x01\x00\x06\x01\0\0\2\3\3", "malformed hello", id="a hello that is too short"),
        pytest.param(b"\x16\x03\x01\x00\x10\x01", "closed during the handshake", id="half a hello"),
        pytest.param(b"", "closed during the handshake", id="nothing"),
    ],
)
def test_what_is_no_handshake_has_a_reason(server: ssl.SSLContext, said: bytes, why: str) -> None:
    with joined(server) as pair:

        def talk() -> None:
            pair.raw.sendall(said)
            pair.raw.shutdown(socket.SHUT_WR)

        assert reason(pair, talk) == why


def test_a_client_that_resets_is_an_error(server: ssl.SSLContext) -> None:
    with joined(server) as pair:
        pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        pair.raw.close()
        wait_for(pair.transport, "read")
        with pytest.raises(ConnectionError):
            pair.transport.advance()


def test_an_unknown_name_gets_the_alert_for_it(tmp_path: Path) -> None:
    context = new_server(tmp_path)
    context.sni_callback = lambda _tls, name, _context: (
        None if name == "localhost" else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    )
    with established(context, client_context(ROOT)):
        pass
    with joined(context) as pair:
        told: list[str] = []

        def connect() -> None:
            try:
                wrapped(pair.raw, None, "elsewhere.example")
            except ssl.SSLError as error:
                told.append(error.reason)

        assert reason(pair, connect) == "unknown server name"
        assert [each.split("_", 1)[1] for each in told] == ["UNRECOGNIZED_NAME"] or "UNRECOGNIZED_NAME" in told[0]


def test_another_certificate_is_chosen_by_name(tmp_path: Path) -> None:
    context, other = new_server(tmp_path / "1"), new_server(tmp_path / "2", "other.example")

    def choose(chosen: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
        if name == "other.example":
            chosen.context = other

    context.sni_callback = choose  # type: ignore[assignment]
    for name in ("localhost", "other.example"):
        with established(context, client_context(ROOT), name=name) as pair:
            pair.tls.sendall(b"x")
            assert receive(pair.transport) == b"x"


# --- the look at what a client says first ---


@needs_openssl
@pytest.mark.parametrize(
    ("groups", "refused"),
    [
        pytest.param("X25519", False, id="a curve"),
        pytest.param("P-256:ffdhe8192", False, id="a curve, and the share is for it"),
        pytest.param("X25519:ffdhe2048", False, id="another curve, and the share is for it"),
        pytest.param("ffdhe8192", True, id="nothing else"),
        pytest.param("ffdhe2048:X25519", True, id="a curve, too, but the share is not for it"),
    ],
)
def test_a_costly_group_is_not_computed(server: ssl.SSLContext, groups: str, refused: bool) -> None:
    with s_client(server, "-tls1_3", "-groups", groups) as (transport, process):
        if refused:
            with pytest.raises(HandshakeError, match="costly group"):
                shake(transport)
            transport.close()
            assert "handshake failure" in process.communicate(timeout=PATIENCE_S)[0].decode()
        else:
            shake(transport)


# OpenSSL has nothing in common with this client but the second group, and can only ask for it. The share, the number 2,
# is one that it would compute with.
OFFERED = hello_of.groups(0x0001, hello_of.FFDHE2048)
RETRIED = (OFFERED, hello_of.key_shares(), *hello_of.TLS_1_3)
COSTLY = (OFFERED, hello_of.key_shares((hello_of.FFDHE2048, bytes(255) + b"\2")), *hello_of.TLS_1_3)
CHANGE_CIPHER_SPEC = b"\x14\x03\x03\0\1\1"


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(hello_of.hello(*COSTLY), id="at once"),
        pytest.param(CHANGE_CIPHER_SPEC + hello_of.hello(*COSTLY), id="as OpenSSL does"),
        pytest.param(hello_of.records(hello_of.message(*COSTLY), 100), id="in pieces"),
    ],
)
@pytest.mark.parametrize("together", [False, True], ids=["one after the other", "both together"])
def test_nor_is_it_after_a_retry(server: ssl.SSLContext, second: bytes, together: bool) -> None:
    with joined(server) as pair:
        first = hello_of.hello(*RETRIED)
        pair.raw.sendall(first + second if together else first)
        wait_for(pair.transport, "read")
        assert pair.transport.advance() == "compute"
        pair.transport.compute()
        if not together:
            assert pair.transport.advance() == "read"
            assert hello_of.FFDHE2048.to_bytes(2, "big") in pair.raw.recv(65536), "OpenSSL asks for it"
            pair.raw.sendall(second)
        with pytest.raises(HandshakeError, match="costly group"):
            shake(pair.transport)
        assert pair.transport._outgoing.pending == 0, "OpenSSL was not asked"
        pair.transport.close()
        pair.raw.settimeout(PATIENCE_S)
        assert b"".join(iter(lambda: pair.raw.recv(65536), b"")).endswith(b"\x15\x03\x03\0\2\2\x28")


def test_two_hellos_in_one_record_are_one_too_many(server: ssl.SSLContext) -> None:
    with joined(server) as pair:
        both = hello_of.records(hello_of.message(*RETRIED) + hello_of.message(*COSTLY))
        assert reason(pair, lambda: pair.raw.sendall(both)) == "unexpected message"


@pytest.mark.parametrize(
    ("second", "why"),
    [
        pytest.param(
            hello_of.hello(hello_of.alpn(b"acme-tls/1"), *RETRIED),
            "means something else after a retry",
            id="other protocols",
        ),
        pytest.param(
            hello_of.hello(hello_of.server_name(b"other.example"), *RETRIED),
            "means something else after a retry",
            id="another name",
        ),
        pytest.param(b"\x15\x03\x03\0\2\2\x2f", "the client says: illegal parameter", id="an alert"),
        pytest.param(b"\x17\x03\x03\0\1x" * 40, "unexpected record", id="early data, which none was asked for"),
        pytest.param(b"", "closed during the handshake", id="nothing"),
    ],
)
def test_what_else_may_follow_a_retry(server: ssl.SSLContext, second: bytes, why: str) -> None:
    with joined(server) as pair:

        def talk() -> None:
            pair.raw.sendall(hello_of.hello(*RETRIED))
            pair.raw.recv(65536)
            pair.raw.sendall(second)
            pair.raw.shutdown(socket.SHUT_WR)

        assert reason(pair, talk) == why


@pytest.mark.parametrize("name", ["bücher.example".encode(), b"\xff", b"a\0b", b"x" * 256, b""], ids=repr)
def test_a_bad_server_name_gets_an_alert_and_nobody_is_asked(
    tmp_path: Path, name: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    context = new_server(tmp_path)
    context.sni_callback = lambda _tls, name, _context: pytest.fail(f"asked for {name!r}")
    answer = []
    with joined(context) as pair:

        def talk() -> None:
            share = hello_of.key_shares((hello_of.X25519, b"x" * 32))
            extensions = (hello_of.groups(hello_of.X25519), share, *hello_of.TLS_1_3)
            pair.raw.sendall(hello_of.hello(hello_of.server_name(name), *extensions))
            answer.append(pair.raw.recv(65536))

        assert reason(pair, talk) == "bad server name"
    assert answer == [b"\x15\x03\x03\0\2\2\x70"], "unrecognized_name"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_another_context_is_chosen_by_what_a_client_says(tmp_path: Path, version: str) -> None:
    ordinary, other = new_server(tmp_path / "1"), new_server(tmp_path / "2", "other.example")
    ordinary.set_alpn_protocols(["http/1.1"])
    other.set_alpn_protocols(["acme-tls/1"])
    ordinary.sni_callback = lambda _tls, _name, _context: asked.append("the front")
    for protocol, expected in (("acme-tls/1", ["other.example"]), ("http/1.1", ["localhost"])):
        asked: list[object] = []

        def choose(hello: ClientHello) -> ssl.SSLContext | None:
            asked.append(hello)  # noqa: B023  # called before the next
            return other if hello.is_validation else None

        ours, theirs = tcp_pair()
        pair = Joined(TlsTransport(PlainTransport(ours, HeldCalls()), ordinary, choose=choose), theirs)
        client = client_context(version=version, alpn=[protocol])
        with in_thread(lambda: setattr(pair, "client", wrapped(pair.raw, client, "localhost"))):  # noqa: B023
            shake(pair.transport)
        assert pair.transport.facts is not None
        assert pair.transport.facts.alpn == protocol
        assert names_of(pair.tls) == expected
        assert asked[0] == ClientHello(b"localhost", (protocol.encode(),), asked[0].key_shares)  # type: ignore[attr-defined]
        assert asked[1:] == ([] if protocol == "acme-tls/1" else ["the front"])
        pair.tls.sendall(b"x")
        assert receive(pair.transport) == b"x"
        pair.close()


def test_it_is_chosen_once_even_if_the_client_says_it_again(tmp_path: Path) -> None:
    context, chosen = new_server(tmp_path / "1"), new_server(tmp_path / "2", "other.example")
    chosen.set_ecdh_curve("secp384r1")  # no client guesses that
    asked: list[ClientHello] = []
    ours, theirs = tcp_pair()
    pair = Joined(
        TlsTransport(PlainTransport(ours, HeldCalls()), context, choose=lambda hello: asked.append(hello) or chosen),
        theirs,
    )
    client = client_context(version="1.3")
    with in_thread(lambda: setattr(pair, "client", wrapped(pair.raw, client))):
        shake(pair.transport)
    assert names_of(pair.tls) == ["other.example"]
    assert len(asked) == 1
    pair.close()


def names_of(client: ssl.SSLSocket) -> list[str]:
    """Return the names in the certificate that a client was shown."""
    der = client.getpeercert(binary_form=True)
    assert der is not None
    found = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def test_a_ca_is_shown_its_certificate_by_a_server_and_left(tmp_path: Path) -> None:
    """TLS-ALPN-01 (RFC 8737) as far as a loop goes: who chooses is given to it."""
    ordinary = new_server(tmp_path / "1", "a.example")
    ordinary.set_alpn_protocols(["http/1.1"])
    challenges = Challenges()
    challenges.expect_handshake("a.example", pki.challenge_context("a.example", "token.thumb"))

    def choose(hello: ClientHello) -> ssl.SSLContext | None:
        name = (hello.server_name or b"").decode("ascii")
        return challenges.context_for_challenge(name) if hello.is_validation else None

    def compute(
        _client: str, step: Callable[[], None], done: Callable[[float], None], _wanted: object, now: float, _begun: bool
    ) -> bool:
        step()
        done(now)
        return True

    def answer(connection: Connection, _request: Request, _now: float) -> None:
        head = b"HTTP/1.1 204 No Content\r\n\r\n"
        connection.finish(head, keep_alive=False, flushed=lambda _unsent, _why: None)

    listeners = open_listeners("127.0.0.1:0", 64, tls=True)
    loop = Loop(listeners, 100, Clients(0, 0), Peers(), lambda: ordinary, choose)
    ctx = edge_context(loop, answer)
    ctx.secure, ctx.compute = loop.secure, compute
    with in_thread(lambda: loop.run(ctx)):
        try:
            for protocols, shown_by_ca in ((["acme-tls/1"], True), (["http/1.1"], False), ([], False)):
                raw = socket.create_connection(("127.0.0.1", int(listeners[0].port)), PATIENCE_S)
                with wrapped(raw, client_context(alpn=protocols), "a.example") as client:
                    assert names_of(client) == ["a.example"]
                    assert client.selected_alpn_protocol() == (protocols[0] if protocols else None)
                    shown = x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")
                    found = [each.oid.dotted_string for each in shown.extensions]
                    assert ("1.3.6.1.5.5.7.1.31" in found) == shown_by_ca
                    if not shown_by_ca:
                        client.sendall(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
                        assert client.recv(12) == b"HTTP/1.1 204"
                    else:
                        assert client.recv(1) == b"", "that was all"
        finally:
            loop.stop()
    loop.close()


# --- who computes what ---


def count_steps(pair: Joined, client: ssl.SSLContext) -> int:
    """Return how many steps of a whole handshake are left to others."""
    count = 0
    with in_thread(lambda: setattr(pair, "client", wrapped(pair.raw, client))):
        while (need := pair.transport.advance()) != "done":
            if need != "compute":
                wait_for(pair.transport, need)
                continue
            assert pair.transport.computing
            pair.transport.compute()
            assert not pair.transport.computing
            count += 1
    return count


# In TLS 1.2, the key that is agreed on is computed when the client's share comes; in 1.3, that is in its hello.
@pytest.mark.parametrize(("version", "steps"), [("1.2", 2), ("1.3", 1)])
def test_only_steps_with_a_private_key_are_left_to_others(server: ssl.SSLContext, version: str, steps: int) -> None:
    with joined(server) as pair:
        assert count_steps(pair, client_context(version=version)) == steps


def test_after_a_retry_the_key_is_still_to_be_used(tmp_path: Path) -> None:
    context = new_server(tmp_path)
    context.set_ecdh_curve("secp384r1")  # no client guesses that
    with joined(context) as pair:
        assert count_steps(pair, client_context(version="1.3")) == 2


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_certificate_to_verify_is_left_to_others(mutual: ssl.SSLContext, version: str) -> None:
    with joined(mutual) as pair:
        assert count_steps(pair, client_context(version=version)) == 2


# --- client certificates ---


@pytest.fixture
def mutual(tmp_path: Path) -> ssl.SSLContext:
    context = new_server(tmp_path)
    context.load_verify_locations(cadata=ROOT.pem)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_verified_client_is_named(mutual: ssl.SSLContext, tmp_path: Path, version: str) -> None:
    client = client_context(version=version)
    made = ROOT.leaf("ada.example", common_name="Ada, Lovelace", purposes=("client",)).write(tmp_path / "client")
    client.load_cert_chain(made.certificate, made.key)
    with established(mutual, client) as pair:
        assert pair.transport.facts is not None
        environ = pair.transport.facts.environ
        assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
        assert environ["SSL_CLIENT_S_DN"] == "CN=Ada\\, Lovelace"
        assert environ["SSL_CLIENT_S_DN_CN"] == "Ada, Lovelace"
        assert environ["SSL_CLIENT_I_DN"] == "CN=Test Root"
        assert environ["SSL_CLIENT_SAN_DNS_0"] == "ada.example"
        assert environ["SSL_CLIENT_M_SERIAL"]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_without_a_certificate_is_nobody_or_refused(mutual: ssl.SSLContext, version: str) -> None:
    with established(mutual, client_context(version=version)) as pair:
        assert pair.transport.facts is not None
        assert pair.transport.facts.environ["SSL_CLIENT_VERIFY"] == "NONE"
    mutual.verify_mode = ssl.CERT_REQUIRED
    with joined(mutual) as pair:
        client = client_context(version=version)
        assert reason(pair, lambda: connect_and_wait(pair.raw, client)) == "no client certificate"


def test_a_certificate_of_somebody_else_is_refused(mutual: ssl.SSLContext, tmp_path: Path) -> None:
    client = client_context()
    made = Authority("Another").leaf("x.example", common_name="x", purposes=("client",)).write(tmp_path / "client")
    client.load_cert_chain(made.certificate, made.key)
    with joined(mutual) as pair:
        why = reason(pair, lambda: connect_and_wait(pair.raw, client))
        assert why.startswith("bad client certificate: unable to get local issuer")


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ((), ""),
        (((("countryName", "DE"),), (("organizationName", "A"),), (("commonName", "b"),)), "CN=b,O=A,C=DE"),
        (((("commonName", "a"), ("userId", "1")),), "CN=a+UID=1"),
        (((("commonName", 'a,b+c"d<e>f;g\\h'),),), 'CN=a\\,b\\+c\\"d\\<e\\>f\\;g\\\\h'),
        (((("commonName", "#1 "),),), "CN=\\#1\\ "),
        (((("commonName", " "),),), "CN=\\ "),
        (((("commonName", "a\r\nX: y\0"),),), "CN=a\\0D\\0AX: y\\00"),
        (((("commonName", "Ü"),),), "CN=Ã\x9c"),
        (((("1.2.3.4", "x"),),), "1.2.3.4=x"),
    ],
)
def test_a_distinguished_name_is_written_as_rfc_4514_has_it(subject: tlsfacts.Names, told: str) -> None:
    assert client_names({"subject": subject})["SSL_CLIENT_S_DN"] == told


def test_no_name_in_the_environ_holds_a_line_end_or_is_another_one_without_it() -> None:
    told = client_names(
        {"subject": ((("commonName", "a\nb\0c"),),), "subjectAltName": (("DNS", "d\r\n"), ("DNS", "e"))}
    )
    assert told["SSL_CLIENT_S_DN_CN"] == "a\\0Ab\\00c"
    assert told["SSL_CLIENT_SAN_DNS_0"] == "d\\0D\\0A"
    assert told["SSL_CLIENT_SAN_DNS_1"] == "e"


# --- reading ---


def test_nothing_has_arrived_is_none(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        assert pair.transport.receive(1000) is None
        assert not pair.transport.pending()


def test_many_records_in_one_read_come_together(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        for number in range(50):
            pair.tls.sendall(b"%02d" % number)
        expected = b"".join(b"%02d" % number for number in range(50))
        assert receive_exactly(pair.transport, 100) == expected
        assert not pair.transport.pending()


def test_no_more_comes_than_is_asked_for_and_the_rest_is_pending(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        pair.tls.sendall(CONTENT[:20000])
        got = receive(pair.transport, 10)
        assert got == CONTENT[:10]
        assert pair.transport.pending()
        while len(got) < 20000:
            more = receive(pair.transport, 999)
            assert len(more) <= 999
            got += more
        assert got == CONTENT[:20000]
        assert pair.transport.receive(10) is None
        assert not pair.transport.pending()


def test_records_of_one_byte_are_taken_apart_in_turns(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        for _ in range(600):
            pair.tls.sendall(b"x")
        got = 0
        while got < 600:
            data = receive(pair.transport)
            assert 0 < len(data) <= tls.RECORDS_PER_READ
            got += len(data)


def test_half_a_record_is_not_pending(server: ssl.SSLContext) -> None:
    with established(server) as pair, relay(pair) as pass_on:
        pair.tls.sendall(b"hello")
        record = pass_on.taken()
        pass_on.give(record[:-1])
        wait_for(pair.transport, "read")
        assert pair.transport.receive(100) is None
        assert not pair.transport.pending()
        pass_on.give(record[-1:])
        assert receive(pair.transport) == b"hello"


@dataclass
class PassOn:
    """What a client has said, to be given to its server in pieces."""

    near: socket.socket
    far: socket.socket

    def taken(self) -> bytes:
        return self.near.recv(65536)

    def give(self, data: bytes) -> None:
        self.far.sendall(data)


@contextlib.contextmanager
def relay(pair: Joined) -> Iterator[PassOn]:
    """Have what the client says from now on come here first."""
    near, mine = socket.socketpair()
    far = socket.socket(fileno=os.dup(pair.tls.fileno()))
    os.dup2(mine.fileno(), pair.tls.fileno())
    mine.close()
    near.settimeout(PATIENCE_S)
    with near, far:
        yield PassOn(near, far)


def test_a_record_that_was_changed_ends_the_connection_with_an_alert(server: ssl.SSLContext) -> None:
    with established(server) as pair, relay(pair) as pass_on:
        pair.tls.sendall(b"hello")
        record = bytearray(pass_on.taken())
        record[-1] ^= 1
        pass_on.give(bytes(record))
        wait_for(pair.transport, "read")
        with pytest.raises(ssl.SSLError, match=r"BAD_RECORD_MAC|bad record mac"):
            pair.transport.receive(100)
        pair.transport.close()
        pass_on.near.sendall(pass_on.far.recv(1000))
        with pytest.raises(ssl.SSLError, match=r"BAD_RECORD_MAC|bad record mac"):
            read_to_the_end(pair.tls)


def test_alerts_that_are_provoked_and_not_read_are_bounded(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        fill(pair)

        def provoke() -> None:
            for _ in range(10_000):  # the kernels take a few more
                pair.transport._outgoing.write(b"x" * 3100)  # as OpenSSL does at each attempt to renegotiate
                pair.tls.sendall(b"and again")
                assert receive(pair.transport) == b"and again"

        with pytest.raises(OSError, match="not read"):
            provoke()
        assert len(pair.transport._outgoing.read()) <= tls.MAX_UNREAD_ALERT_BYTES + 3100


# --- writing ---


def fill(pair: Joined, data: bytes = CONTENT) -> int:
    """Send until the socket takes no more; return how much was taken."""
    sent = 0
    while taken := pair.transport.send(memoryview(data)[sent:]):
        sent += taken
    assert sent < len(data), "the socket took everything"
    return sent


def test_what_did_not_fit_is_offered_again_and_not_encrypted_twice(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        sent = fill(pair)
        assert not pair.transport.wants_write, "whoever offers it again waits for the socket"
        with in_thread(lambda: send_all(pair.transport, CONTENT[sent:])):
            assert pair.read(len(CONTENT)) == CONTENT


@pytest.mark.parametrize("again", [1, 100, 20000, 1 << 20])
def test_fewer_or_more_bytes_may_be_offered_again(server: ssl.SSLContext, again: int) -> None:
    with established(server) as pair:
        sent = fill(pair)

        def go_on() -> None:
            nonlocal sent
            while sent < len(CONTENT):
                taken = pair.transport.send(CONTENT[sent : sent + again])
                assert taken <= again
                sent += taken
                if not taken:
                    wait_for(pair.transport, "write")
                if sent > 3 << 20 and again < 100:
                    send_all(pair.transport, CONTENT[sent:])
                    return

        if again == 1:
            pair.tls.settimeout(60)
        with in_thread(go_on):
            assert pair.read(len(CONTENT)) == CONTENT


def test_a_file_is_sent_and_what_did_not_fit_may_come_from_memory(server: ssl.SSLContext) -> None:
    with established(server) as pair, tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        sent = 0
        while (taken := pair.transport.send_file(file.fileno(), sent, len(CONTENT) - sent)) is not None:
            assert 0 < taken <= tls.FILE_BYTES
            sent += taken

        def go_on() -> None:
            nonlocal sent
            data = os.pread(file.fileno(), 70000, sent)
            send_all(pair.transport, data)
            sent += len(data)
            while sent < len(CONTENT):
                taken = pair.transport.send_file(file.fileno(), sent, len(CONTENT) - sent)
                assert taken != 0
                sent += taken or 0
                if taken is None:
                    wait_for(pair.transport, "write")
            assert pair.transport.send_file(file.fileno(), sent, 10) == 0, "the file ends here"

        with in_thread(go_on):
            assert pair.read(len(CONTENT)) == CONTENT


def test_a_file_that_cannot_be_read_is_an_error(server: ssl.SSLContext, tmp_path: Path) -> None:
    with established(server) as pair, open(tmp_path / "x", "wb") as file:
        with pytest.raises(OSError, match="Bad file descriptor"):
            pair.transport.send_file(file.fileno(), 0, 10)
        assert pair.transport.send(b"still there") == 11
        assert pair.read(11) == b"still there"


def test_empty_is_sent_without_a_record(server: ssl.SSLContext) -> None:
    with established(server, client_context(version="1.2")) as pair:
        assert pair.transport.send(b"") == 0
        assert pair.transport.send(b"x") == 1
        assert pair.read(1) == b"x"


def test_what_was_not_acknowledged_is_told_in_bytes_of_the_response(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        sent = 0
        for _ in range(3000):  # 22 bytes of TLS for each
            sent += pair.transport.send(b"x" * 10)
        assert sent == 30_000
        assert 0 <= pair.transport.unacknowledged() <= sent * 1.02  # it is told by a ratio
        assert pair.read(sent) == b"x" * sent


def test_what_is_owed_is_neither_taken_nor_unacknowledged(server: ssl.SSLContext) -> None:
    """What a client has taken is what was sent without what is unacknowledged, although half a piece is on its way."""
    with established(server) as pair:
        pair.transport.keep_unsent(1 << 20)
        sent = fill(pair)
        assert pair.transport._owed > len(pair.transport._unsent) + 1000, "else there is nothing to see"

        def is_told() -> bool:  # once the client's kernel has acknowledged what it has
            arrived: int = struct.unpack("i", fcntl.ioctl(pair.raw_fileno, termios.FIONREAD, b"\0\0\0\0"))[0]
            return abs(sent - pair.transport.unacknowledged() - arrived) < arrived * 0.01 + 500

        eventually(is_told)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_both_directions_at_once_on_two_threads(server: ssl.SSLContext, version: str) -> None:
    """The I/O thread reads while a worker sends."""
    with established(server, client_context(version=version)) as pair, switching_often():
        got: list[str] = []

        def upload() -> None:
            # A second SSL socket cannot be used by two threads either: the client reads and writes in turns.
            view, received = memoryview(CONTENT), b""
            pair.tls.settimeout(0)
            while view or len(received) < len(CONTENT):
                select.select([pair.tls], [pair.tls] if view else [], [], PATIENCE_S)
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if view:
                        view = view[pair.tls.send(view[:16384]) :]
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    received += pair.tls.recv(65536)
            got.append(hashlib.sha256(received).hexdigest())

        with in_thread(upload), in_thread(lambda: send_all(pair.transport, CONTENT)):
            received = receive_exactly(pair.transport, len(CONTENT))
        expected = hashlib.sha256(CONTENT).hexdigest()
        assert hashlib.sha256(received).hexdigest() == expected
        assert got == [expected]


# --- the end ---


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_that_finishes_may_still_read(server: ssl.SSLContext, version: str) -> None:
    with established(server, client_context(version=version)) as pair:
        pair.tls.sendall(b"last")
        say_close_notify(pair.tls)
        assert receive(pair.transport) == b"last"
        assert receive(pair.transport) == b""
        assert receive(pair.transport) == b""
        assert not pair.transport.truncated
        assert not pair.transport.pending()
        assert pair.transport.send(b"answer") == 6


def say_close_notify(client: ssl.SSLSocket) -> None:
    client.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.unwrap()
    client.settimeout(PATIENCE_S)


def test_a_client_that_vanishes_is_told_apart(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        pair.tls.sendall(b"half a requ")
        pair.tls.shutdown(socket.SHUT_WR)
        assert receive(pair.transport) == b"half a requ"
        assert not pair.transport.truncated
        assert receive(pair.transport) == b""
        assert pair.transport.truncated
        assert pair.transport.receive(10) == b""


def test_what_was_cut_within_a_record_is_truncated(server: ssl.SSLContext) -> None:
    with established(server) as pair, relay(pair) as pass_on:
        pair.tls.sendall(b"hello")
        pass_on.give(pass_on.taken()[:-3])
        pass_on.far.shutdown(socket.SHUT_WR)
        assert receive(pair.transport) == b""
        assert pair.transport.truncated


def test_finished_writing_is_close_notify_and_then_the_end(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        assert pair.transport.send(b"bye") == 3
        pair.transport.shutdown_write()
        pair.transport.shutdown_write()
        assert not pair.transport.wants_write
        assert pair.read(3) == b"bye"
        assert pair.tls.recv(10) == b"", "not an error: the end was said"
        pair.tls.sendall(b"more")
        assert receive(pair.transport), "it is counted, not decrypted"
        pair.tls.shutdown(socket.SHUT_RDWR)
        assert receive(pair.transport) == b""


def test_close_notify_waits_for_the_socket_as_everything_else(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        sent = fill(pair)
        # As if the response ended with what is just on its way to the kernel.
        sent += pair.transport._owed
        pair.transport._owed = 0
        pair.transport.shutdown_write()
        assert pair.transport.wants_write
        data = b""
        while pair.transport.wants_write:
            data += pair.tls.recv(65536)
            pair.transport.flush()
        while len(data) < sent:
            data += pair.tls.recv(65536)
        assert data == CONTENT[:sent]
        assert pair.tls.recv(10) == b"", "the end was said"


def test_closing_says_so_and_resetting_does_not(server: ssl.SSLContext) -> None:
    with established(server) as pair:
        pair.transport.close()
        assert pair.tls.recv(10) == b""
    with established(server) as pair:
        pair.transport.send(b"half of a respon")
        pair.transport.close(reset=True)
        with pytest.raises(OSError, match=r"reset|EOF"):
            read_to_the_end(pair.tls)


def test_nothing_follows_half_a_record(server: ssl.SSLContext) -> None:
    """No alert, which would make of what came the whole; seen on the wire, because some Pythons hide how it ended."""
    with established(server, client_context(version="1.2")) as pair:
        fill(pair)
        pair.transport.close()
        os.set_blocking(pair.raw_fileno, True)
        wire = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := os.read(pair.raw_fileno, 65536):
                wire += piece
        kinds = set()
        while len(wire) >= 5:
            kinds.add(wire[0])
            wire = wire[5 + int.from_bytes(wire[3:5]) :]
        assert kinds == {23}, "application data, and nothing else"


def test_closing_while_a_helper_computes_harms_neither(server: ssl.SSLContext) -> None:
    _, _, outgoing = client_hello()
    with joined(server) as pair:
        pair.raw.sendall(outgoing.read())
        wait_for(pair.transport, "read")
        assert pair.transport.advance() == "compute"
        pair.transport.close()
        pair.transport.compute()
        assert pair.transport.fileno() == -1
        assert pair.transport.unacknowledged() == 0
        with pytest.raises(OSError, match="Bad file descriptor"):
            pair.transport.advance()


# --- what `openssl s_client` can do ---


@contextlib.contextmanager
def s_client(context: ssl.SSLContext, *options: str) -> Iterator[tuple[TlsTransport, subprocess.Popen[bytes]]]:
    assert OPENSSL is not None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)
        port = listening.getsockname()[1]
        command = [OPENSSL, "s_client", "-connect", f"127.0.0.1:{port}", *options]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                ours, _ = listening.accept()
                ours.setblocking(False)
                with contextlib.closing(TlsTransport(PlainTransport(ours, HeldCalls()), context)) as transport:
                    yield transport, process
            finally:
                process.kill()


@needs_openssl
def test_a_renegotiation_is_refused(server: ssl.SSLContext) -> None:
    with s_client(server, "-tls1_2", "-servername", "localhost") as (transport, process):
        shake(transport)
        assert process.stdin is not None
        process.stdin.write(b"R\n")
        process.stdin.flush()
        # It gives up at the alert: its end is seen here.
        with contextlib.suppress(OSError):
            while (data := receive(transport)) != b"":
                assert not data
        out = process.communicate(timeout=PATIENCE_S)[0].decode(errors="replace")
        assert "no renegotiation" in out.lower()


@needs_openssl
def test_keys_are_updated_in_both_directions(server: ssl.SSLContext) -> None:
    with s_client(server, "-tls1_3", "-servername", "localhost") as (transport, process):
        shake(transport)
        assert process.stdin is not None
        assert process.stdout is not None
        seen = b""

        def until(mark: bytes, count: int) -> None:
            nonlocal seen
            while seen.count(mark) < count:
                seen += os.read(process.stdout.fileno(), 65536)  # type: ignore[union-attr]

        for number, command in enumerate((b"K\n", b"k\n", b"K\n"), 1):  # K: the server is to change its keys, too
            process.stdin.write(command)
            process.stdin.flush()
            until(b"KEYUPDATE", number)
            process.stdin.write(b"with new keys\n")
            process.stdin.flush()
            assert receive(transport) == b"with new keys\n"
            assert transport.send(b"and so do we\n") == 13
            until(b"and so do we", number)


@needs_openssl
@pytest.mark.parametrize("options", [("-max_send_frag", "512"), ("-maxfraglen", "512"), ("-bugs", "-no_ticket")])
def test_other_sizes_of_records(server: ssl.SSLContext, options: tuple[str, ...]) -> None:
    with s_client(server, "-quiet", "-servername", "localhost", *options) as (transport, process):
        shake(transport)
        assert process.stdin is not None
        assert process.stdout is not None
        with in_thread(lambda: send_all(transport, b"x" * 200_000)):
            seen = 0
            while seen < 200_000:
                seen += os.read(process.stdout.fileno(), 65536).count(b"x")
        process.stdin.write(b"y" * 5000 + b"\n")
        process.stdin.flush()
        assert receive_exactly(transport, 5001).startswith(b"yyy")


# --- who computes ---


@dataclass
class Turns:
    """A loop that takes turns when it is told to."""

    posted: deque[Callable[[float], None]] = field(default_factory=deque)
    planned: list[tuple[float, Callable[[float], None]]] = field(default_factory=list)
    come: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def post(self, action: Callable[[float], None]) -> None:
        self.posted.append(action)
        self.come.release()

    def plan(self, at: float, action: Callable[[float], None]) -> None:
        self.planned.append((at, action))

    def take(self, now: float = 0.0) -> None:
        """Wait for what a helper posts, and do it."""
        assert self.come.acquire(timeout=PATIENCE_S)
        self.posted.popleft()(now)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool("handshake", 1, 1000)
    yield pool
    pool.stop(time.monotonic() + PATIENCE_S)


def always() -> bool:
    return True


def test_clients_take_turns(pool: Pool) -> None:
    turns, order, open_ = Turns(), [], threading.Event()
    shaker = Handshaker(pool, 1, turns.post, turns.plan)

    def submit(client: str) -> None:
        assert shaker.submit(client, open_.wait, lambda _now: order.append(client), always, 0.0)

    for _ in range(5):
        submit("greedy")
    submit("modest")
    submit("")
    submit("")
    open_.set()
    for _ in range(8):
        turns.take()
    assert order[:2] == ["greedy"] * 2, "they were first, and with the pool already"
    assert sorted(order[2:6]) == ["", "", "greedy", "modest"]
    assert order[6:] == ["greedy"] * 2


def test_those_that_are_begun_go_first(pool: Pool) -> None:
    turns, order, open_ = Turns(), [], threading.Event()
    shaker = Handshaker(pool, 1, turns.post, turns.plan)
    for name, begun in (("1", False), ("2", False), ("3", False), ("begun", True)):
        shaker.submit(name, open_.wait, lambda _now, name=name: order.append(name), always, 0.0, begun=begun)
    open_.set()
    for _ in range(4):
        turns.take()
    assert order == ["1", "2", "begun", "3"]


def test_so_many_a_second_and_the_others_wait(pool: Pool) -> None:
    turns, done = Turns(), []
    shaker = Handshaker(pool, 4, turns.post, turns.plan, per_second=4)
    for number in range(6):
        shaker.submit(f"{number}", lambda: None, done.append, always, 100.0)
    for _ in range(4):
        turns.take(100.0)
    assert len(done) == 4
    assert not turns.posted
    [(at, resume)] = turns.planned
    assert at == pytest.approx(100.25)
    turns.planned.clear()
    resume(at)
    turns.take(at)
    assert len(done) == 5
    assert [each[0] for each in turns.planned] == [pytest.approx(100.5)]


def test_too_many_of_one_client_are_refused_and_nobody_else(pool: Pool) -> None:
    turns, open_ = Turns(), threading.Event()
    shaker = Handshaker(pool, 1, turns.post, turns.plan, max_client=3, max_waiting=5)

    def submit(client: str) -> bool:
        return shaker.submit(client, open_.wait, lambda _now: None, always, 0.0)

    assert [submit("a") for _ in range(6)] == [True] * 5 + [False], "two are with the pool, three wait"
    assert submit("b")
    assert submit("c")
    assert not submit("d"), "that is all there is room for"
    open_.set()


def test_what_is_not_wanted_any_more_is_not_computed(pool: Pool) -> None:
    turns, computed, open_ = Turns(), [], threading.Event()
    shaker = Handshaker(pool, 1, turns.post, turns.plan, per_second=3)
    wanted = {"a", "b", "c", "d"}

    def submit(name: str) -> None:
        def compute() -> None:
            open_.wait()
            computed.append(name)

        shaker.submit(name, compute, lambda _now: None, lambda: name in wanted, 0.0)

    for name in "abcd":
        submit(name)
    wanted.discard("c")
    open_.set()
    for _ in range(3):
        turns.take()
    assert computed == ["a", "b", "d"], "and it took no place of the three"


def test_cheap_steps_are_computed_at_once_but_not_too_many_in_one_turn(pool: Pool) -> None:
    turns, done = Turns(), []
    shaker = Handshaker(pool, 1, turns.post, turns.plan)
    for number in range(200):
        shaker.submit("", lambda: None, done.append, always, float(number))
        if turns.posted or len(done) <= number:
            turns.take(float(number))
    assert len(done) == 200
    assert shaker._is_cheap(1000.0)
    shaker.submit("", lambda: None, done.append, always, 1000.0)
    assert len(done) == 201, "at once"
    shaker._cost_s = 0.0003
    for _ in range(10):
        shaker.submit("", lambda: None, done.append, always, 2000.0)
    assert 203 <= len(done) < 211, "the others are with the helper"


def test_one_costly_step_ends_that(pool: Pool) -> None:
    turns, done = Turns(), []
    shaker = Handshaker(pool, 1, turns.post, turns.plan)
    shaker._cost_s = 0.0

    def costly() -> None:
        until = time.thread_time() + handshaker.INLINE_S * 2
        while time.thread_time() < until:
            pass

    shaker.submit("", costly, done.append, always, 1.0)
    assert len(done) == 1
    shaker.submit("", costly, done.append, always, 2.0)
    assert len(done) == 1
    turns.take()
    assert len(done) == 2
