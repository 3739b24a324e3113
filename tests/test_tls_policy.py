"""What every TLS context has: versions, suites, ALPN, resumption, client certificates; openssl is another client."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardserve.tls.policy import CIPHERS, MAX_PASSPHRASE_BYTES, PairFiles, passphrase, server_context
from tests.certs import VERSIONS, Authority, Made, client_context, handshake, self_signed
from tests.support import PATIENCE_S

TLS13 = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
# Whatever OpenSSL can do, so that a refusal is the server's.
EVERYTHING = "ALL:@SECLEVEL=0"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def pair(authority: Authority, directory: Path) -> PairFiles:
    return authority.leaf("a.test").write(directory, "p256")


@pytest.fixture(scope="module")
def rsa_pair(authority: Authority, directory: Path) -> PairFiles:
    return authority.leaf("a.test", kind="rsa2048").write(directory, "rsa")


# --- versions and suites ---


@pytest.mark.parametrize("version", VERSIONS)
def test_the_two_versions_that_are_spoken(pair: PairFiles, authority: Authority, version: str) -> None:
    ends = handshake(server_context(pair), client_context(authority, version=version), "a.test")
    assert ends.client.version() == f"TLSv{version}"
    assert ends.say(b"hello") == b"hello"
    assert ends.client.compression() is None


def test_the_suites_are_those_of_the_guidelines_and_no_others(pair: PairFiles) -> None:
    offered = [suite["name"] for suite in server_context(pair).get_ciphers()]
    of_1_2 = tuple(name for name in offered if name not in TLS13)
    assert of_1_2 == CIPHERS
    assert set(offered) >= TLS13


@pytest.mark.parametrize("suite", CIPHERS)
def test_each_suite_can_be_had(pair: PairFiles, rsa_pair: PairFiles, suite: str) -> None:
    context = server_context(rsa_pair if "-RSA-" in suite else pair)
    assert handshake(context, client_context(version="1.2", ciphers=suite)).client.cipher() == (
        suite,
        "TLSv1.2",
        128 if "AES128" in suite else 256,
    )


@pytest.mark.parametrize(
    "suite",
    [
        pytest.param("ECDHE-RSA-AES128-SHA256", id="CBC"),
        pytest.param("ECDHE-RSA-AES256-SHA384", id="CBC, 256 bits"),
        pytest.param("DHE-RSA-AES128-GCM-SHA256", id="DHE, whose cost the client would choose"),
        pytest.param("DHE-RSA-CHACHA20-POLY1305", id="DHE with ChaCha20"),
        pytest.param("AES128-GCM-SHA256", id="no forward secrecy"),
        pytest.param("ADH-AES128-GCM-SHA256", id="no certificate"),
        pytest.param("ECDHE-RSA-NULL-SHA", id="no encryption"),
    ],
)
def test_a_client_that_has_nothing_else_is_refused(rsa_pair: PairFiles, suite: str) -> None:
    client = client_context(version="1.2", ciphers=f"{suite}:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"HANDSHAKE_FAILURE|NO_SHARED_CIPHER"):
        handshake(server_context(rsa_pair), client)


@pytest.mark.parametrize(
    ("order", "chosen"),
    [
        pytest.param((0, 2, 4), 0, id="who begins with the first"),
        pytest.param((2, 0, 4), 0, id="who begins with a longer key, which costs more and is no safer"),
        pytest.param((2, 4), 2, id="who does not have the first"),
        pytest.param((4, 0, 2), 4, id="who has no AES in hardware, and so begins with ChaCha20"),
    ],
)
def test_the_order_is_ours_unless_chacha20_is_wanted(
    pair: PairFiles, rsa_pair: PairFiles, order: tuple[int, ...], chosen: int
) -> None:
    for each, kind in ((pair, 0), (rsa_pair, 1)):
        wanted = ":".join(CIPHERS[number + kind] for number in order)
        cipher = handshake(server_context(each), client_context(version="1.2", ciphers=wanted)).client.cipher()
        assert cipher is not None
        assert cipher[0] == CIPHERS[chosen + kind]


def test_the_options_are_set_whatever_openssl_does_by_itself(pair: PairFiles) -> None:
    options = server_context(pair).options
    for option in (
        ssl.OP_NO_RENEGOTIATION,
        ssl.OP_NO_COMPRESSION,
        ssl.OP_IGNORE_UNEXPECTED_EOF,
        ssl.OP_CIPHER_SERVER_PREFERENCE,
    ):
        assert options & option
    assert not options & ssl.OP_NO_TICKET


# --- the machine's own configuration ---

LENIENT = """\
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = lenient
[lenient]
MinProtocol = TLSv1
MaxProtocol = TLSv1.2
CipherString = ALL:@SECLEVEL=0
Options = UnsafeLegacyRenegotiation,-ServerPreference,Compression,-SessionTicket
"""
REPORT = """\
import ssl, sys
from pathlib import Path
from hardserve.tls.policy import PairFiles, server_context
from tests.certs import client_context, handshake
bare = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
made = server_context(PairFiles(Path(sys.argv[1]), Path(sys.argv[2])))
for each in (bare, made):
    print(bool(each.options & 1 << 18), bool(each.options & ssl.OP_NO_TICKET))
print([suite["name"] for suite in made.get_ciphers() if suite["protocol"] == "TLSv1.2"])
print(bool(made.options & ssl.OP_CIPHER_SERVER_PREFERENCE), bool(made.options & ssl.OP_NO_COMPRESSION))
print(handshake(made, client_context(version="1.3")).client.version())
for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
    client = client_context(ciphers="ALL:@SECLEVEL=0")
    client.minimum_version, client.maximum_version = ssl.TLSVersion.TLSv1, version
    try:
        print(handshake(made, client).client.version())
    except ssl.SSLError as error:
        print(error.reason)
"""


def test_a_lenient_configuration_of_the_machine_changes_nothing(pair: PairFiles, tmp_path: Path) -> None:
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(LENIENT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", REPORT, str(pair.certificate), str(pair.key)],
        env={"OPENSSL_CONF": str(configuration), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 7, done.stderr
    # The configuration does reach a context of which nobody takes care.
    assert lines[:2] == ["True True", "False False"]
    assert lines[2] == str(list(CIPHERS))
    assert lines[3:5] == ["True True", "TLSv1.3"]
    assert all("PROTOCOL" in line or "VERSION" in line for line in lines[5:]), lines


# --- resumption ---


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_resumed(pair: PairFiles, version: str) -> None:
    server, client = server_context(pair), client_context(version=version)
    first = handshake(server, client)
    first.say(b"x")
    assert not first.server.session_reused
    assert first.client.session is not None
    assert first.client.session.has_ticket
    again = handshake(server, client, session=first.client.session)
    assert again.server.session_reused
    assert again.client.session_reused
    assert again.say(b"hello") == b"hello"
    assert server.session_stats()["number"] == 0  # a ticket is kept by the client, and costs the server no memory


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_of_another_context_is_not(pair: PairFiles, version: str) -> None:
    client = client_context(version=version)
    first = handshake(server_context(pair), client)
    first.say(b"x")
    again = handshake(server_context(pair), client, session=first.client.session)
    assert not again.server.session_reused


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_lasts_two_hours(pair: PairFiles, version: str) -> None:
    ends = handshake(server_context(pair), client_context(version=version))
    ends.say(b"x")
    assert ends.client.session is not None
    assert ends.client.session.ticket_lifetime_hint == 7200


# --- ALPN ---


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        pytest.param(["h2", "http/1.1"], "http/1.1", id="a browser"),
        pytest.param(["http/1.1"], "http/1.1", id="only what is spoken"),
        pytest.param(["h2"], None, id="only what is not: it goes on without"),
        pytest.param([], None, id="a client without ALPN"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_alpn(pair: PairFiles, version: str, offered: list[str], chosen: str | None) -> None:
    ends = handshake(server_context(pair), client_context(version=version, alpn=offered))
    assert ends.server.selected_alpn_protocol() == ends.client.selected_alpn_protocol() == chosen


def test_other_protocols_can_be_named(pair: PairFiles) -> None:
    context = server_context(pair, alpn=("acme-tls/1",))
    assert handshake(context, client_context(alpn=["acme-tls/1"])).server.selected_alpn_protocol() == "acme-tls/1"


# --- keys ---


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"secret\n", b"secret", id="a line"),
        pytest.param(b"secret", b"secret", id="no end of line"),
        pytest.param(b"secret\r\nmore\n", b"secret", id="the first of two, from Windows"),
        pytest.param(b" s e \n", b" s e ", id="spaces are part of it"),
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"x" * 5000, b"x" * MAX_PASSPHRASE_BYTES, id="too long for OpenSSL"),
    ],
)
def test_a_passphrase_is_the_first_line(tmp_path: Path, content: bytes, expected: bytes) -> None:
    file = tmp_path / "pass"
    file.write_bytes(content)
    assert passphrase(file) == expected


def test_an_encrypted_key_is_opened_and_nobody_is_asked_for_it(authority: Authority, tmp_path: Path) -> None:
    files = authority.leaf("a.test").write(tmp_path, passphrase="open sesame")
    handshake(server_context(files), client_context(authority), "a.test")
    with pytest.raises(ssl.SSLError):
        server_context(PairFiles(files.certificate, files.key))


def test_a_short_key_is_refused(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="KEY_TOO_SMALL"):
        server_context(authority.leaf("a.test", kind="rsa1024").write(tmp_path))


# --- client certificates ---


def with_certificate(made: Made | None, directory: Path, version: str) -> ssl.SSLContext:
    client = client_context(version=version)
    if made is not None:
        files = made.write(directory, "client")
        client.load_cert_chain(files.certificate, files.key)
    return client


@pytest.fixture(scope="module")
def staff() -> Authority:
    return Authority("Staff")


@pytest.fixture(scope="module")
def client_ca(staff: Authority, directory: Path) -> Path:
    path = directory / "staff.pem"
    path.write_text(staff.pem)
    return path


CLIENTS = ("client",)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize(
    ("which", "good"),
    [
        pytest.param("good", True, id="signed by client_ca"),
        pytest.param("below", True, id="with its intermediate"),
        pytest.param("other", False, id="signed by somebody else"),
        pytest.param("self", False, id="signed by itself"),
        pytest.param("expired", False, id="expired"),
        pytest.param("server", False, id="for servers"),
    ],
)
def test_client_certificates(
    pair: PairFiles, staff: Authority, client_ca: Path, tmp_path: Path, version: str, mode: str, which: str, good: bool
) -> None:
    below = staff.intermediate("Staff of the branch")
    made = {
        "good": lambda: staff.leaf(common_name="eve", purposes=CLIENTS),
        "below": lambda: below.leaf(common_name="eve", purposes=CLIENTS),
        "other": lambda: Authority("Staff").leaf(common_name="eve", purposes=CLIENTS),
        "self": lambda: self_signed(common_name="eve"),
        "expired": lambda: staff.leaf(common_name="eve", purposes=CLIENTS, not_after_s=-60),
        "server": lambda: staff.leaf(common_name="eve"),
    }[which]()
    server = server_context(pair, client_ca=client_ca, client_certificates=mode)  # type: ignore[arg-type]
    client = with_certificate(made, tmp_path, version)
    if good:
        ends = handshake(server, client)
        subject = (ends.server.getpeercert() or {})["subject"]
        assert subject == ((("commonName", "eve"),),)
        ends.say(b"x")
        again = handshake(server, client, session=ends.client.session)
        assert again.server.session_reused
        assert (again.server.getpeercert() or {})["subject"] == subject
    else:
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate|UNKNOWN_CA"):
            handshake(server, client)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_without_a_certificate(pair: PairFiles, client_ca: Path, version: str) -> None:
    client = client_context(version=version)
    optional = server_context(pair, client_ca=client_ca, client_certificates="optional")
    assert handshake(optional, client).server.getpeercert() is None
    required = server_context(pair, client_ca=client_ca, client_certificates="required")
    with pytest.raises(ssl.SSLError, match=r"PEER_DID_NOT_RETURN_A_CERTIFICATE|CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"):
        handshake(required, client)


def test_an_intermediate_or_a_client_may_stand_in_client_ca_alone(
    pair: PairFiles, staff: Authority, tmp_path: Path
) -> None:
    below = staff.intermediate("Staff of the branch")
    alone = self_signed(common_name="eve", purposes=CLIENTS)
    file = tmp_path / "ca.pem"
    file.write_text(below.pem + alone.pem)
    server = server_context(pair, client_ca=file, client_certificates="required")
    for made in (below.leaf(common_name="eve", purposes=CLIENTS), alone):
        assert handshake(server, with_certificate(made, tmp_path, "1.3")).server.getpeercert()


def test_client_certificates_need_client_ca(pair: PairFiles) -> None:
    with pytest.raises(ValueError, match="client_ca"):
        server_context(pair, client_certificates="required")


def test_without_client_certificates_nobody_is_asked(pair: PairFiles, client_ca: Path) -> None:
    assert server_context(pair, client_ca=client_ca).verify_mode is ssl.CERT_NONE


# --- over a socket, with openssl as the client ---


class Listening:
    """A server of one context in a thread, which answers each line with itself and keeps what went wrong."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE_S)
            with connection:
                try:
                    with self._context.wrap_socket(connection, server_side=True) as tls:
                        while data := tls.recv(4096):
                            tls.sendall(data)
                        self.said.append("end")
                except OSError as error:
                    self.said.append(getattr(error, "reason", None) or type(error).__name__)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE_S)


@contextlib.contextmanager
def listening(context: ssl.SSLContext) -> Iterator[Listening]:
    server = Listening(context)
    try:
        yield server
    finally:
        server.close()


def s_client(port: int, *arguments: str, say: str = "") -> str:
    """Return everything that `openssl s_client` says."""
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("openssl is not installed")
    done = subprocess.run(
        [command, "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "a.test", *arguments],
        input=say,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.peer
@pytest.mark.parametrize(
    ("flag", "spoken"), [("-tls1", ""), ("-tls1_1", ""), ("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")]
)
def test_openssl_gets_tls_1_2_and_1_3_alone(rsa_pair: PairFiles, flag: str, spoken: str) -> None:
    with listening(server_context(rsa_pair)) as server:
        said = s_client(server.port, flag, *(() if spoken else ("-cipher", EVERYTHING)))
    if spoken:
        assert f"New, {spoken}, Cipher is" in said
        assert "Compression: NONE" in said
    else:
        assert "Cipher is (NONE)" in said, said
        assert "protocol version" in said, said


@pytest.mark.peer
def test_openssl_is_not_let_renegotiate(rsa_pair: PairFiles) -> None:
    with listening(server_context(rsa_pair)) as server:
        said = s_client(server.port, "-tls1_2", say="R\n")
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said, said
    assert "Secure Renegotiation IS supported" in said


@pytest.mark.peer
def test_openssl_gets_two_tickets_and_alpn(rsa_pair: PairFiles) -> None:
    with listening(server_context(rsa_pair)) as server, socket.socket() as _:
        process = subprocess.Popen(
            [
                *(shutil.which("openssl") or pytest.skip("openssl is not installed"), "s_client"),
                *("-connect", f"127.0.0.1:{server.port}", "-alpn", "h2,http/1.1"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        # The tickets come before what the server answers.
        process.stdin.write("hello there\n")
        process.stdin.flush()
        said = []
        for line in process.stdout:
            said.append(line)
            if line == "hello there\n":
                break
        rest, _ = process.communicate(timeout=PATIENCE_S)
    text = "".join(said) + rest
    assert text.count("New Session Ticket arrived") == 2
    assert "ALPN protocol: http/1.1" in text


@pytest.mark.peer
@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes(rsa_pair: PairFiles, flag: str, tmp_path: Path) -> None:
    kept = tmp_path / "session"
    with listening(server_context(rsa_pair)) as server:
        # "Q" is read after the server's answer, and so after the tickets.
        process = subprocess.Popen(
            [
                *(shutil.which("openssl") or pytest.skip("openssl is not installed"), "s_client", flag),
                *("-connect", f"127.0.0.1:{server.port}", "-sess_out", str(kept)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("hello there\n")
        process.stdin.flush()
        assert any(line == "hello there\n" for line in process.stdout)
        process.communicate(timeout=PATIENCE_S)
        again = s_client(server.port, flag, "-sess_in", str(kept))
    assert "Reused, TLSv1." in again, again


# --- the end of a connection ---


@pytest.mark.parametrize("version", VERSIONS)
def test_an_end_without_close_notify_is_an_end(pair: PairFiles, version: str) -> None:
    near, far = socket.socketpair()
    near.settimeout(PATIENCE_S)
    far.settimeout(PATIENCE_S)
    with near, far:
        wrapped: list[ssl.SSLSocket] = []

        def wrap() -> None:
            # Python would make an end of the error by itself otherwise, but not for what has no socket.
            wrapped.append(server_context(pair).wrap_socket(near, server_side=True, suppress_ragged_eofs=False))

        thread = threading.Thread(target=wrap, daemon=True)
        thread.start()
        client = client_context(version=version).wrap_socket(far)
        thread.join(PATIENCE_S)
        with client, wrapped[0] as server:
            client.sendall(b"half a request")
            assert server.recv(100) == b"half a request"
            with socket.socket(fileno=client.detach()) as bare:
                bare.shutdown(socket.SHUT_WR)  # under the layer of TLS
                assert server.recv(100) == b""
