"""What a server answers for HTTP-01 and TLS-ALPN-01. How it knows a CA's handshake: tests.test_tls_hello."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from hardserve.tls.acme import pki
from hardserve.tls.acme.challenges import HTTP_PREFIX, Challenges
from tests.pebble import make_authority

# HTTP-01.


def test_a_token_is_answered_as_long_as_it_is_expected() -> None:
    challenges = Challenges()
    assert challenges.answer(f"{HTTP_PREFIX}token") is None
    challenges.expect_request("token", "token.thumb")
    challenges.expect_request("other", "other.thumb")
    assert challenges.answer(f"{HTTP_PREFIX}token") == b"token.thumb"
    assert challenges.answer(f"{HTTP_PREFIX}other") == b"other.thumb"
    challenges.forget()
    assert challenges.answer(f"{HTTP_PREFIX}token") is None


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "token", HTTP_PREFIX, f"{HTTP_PREFIX}toke", f"{HTTP_PREFIX}token/", f"{HTTP_PREFIX}token?x",
        f"{HTTP_PREFIX}Token", f"{HTTP_PREFIX}../token", f"{HTTP_PREFIX.upper()}token",
        f"x{HTTP_PREFIX}token", f"/{HTTP_PREFIX}token",
    ],
)  # fmt: skip
def test_nothing_else_is_answered(path: str) -> None:
    challenges = Challenges()
    challenges.expect_request("token", "token.thumb")
    assert challenges.answer(path) is None


def test_readers_need_no_lock() -> None:
    challenges = Challenges()
    challenges.expect_request("kept", "kept.thumb")
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            for number in range(50):
                found = challenges.answer(f"{HTTP_PREFIX}{number}")
                if found not in (None, f"{number}.thumb".encode()):
                    wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        for number in range(50):
            challenges.expect_request(str(number), f"{number}.thumb")
        challenges.forget()
    stop.set()
    for reader in readers:
        reader.join(10)
    assert wrong == []


# TLS-ALPN-01.


def test_the_certificate_of_a_challenge_is_as_the_standard_has_it() -> None:
    """RFC 8737 3: one name, and a critical extension with the digest of the key authorization."""
    context = pki.challenge_context("a.example", "token.thumb")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_alpn_protocols(["acme-tls/1"])
    ours, theirs = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    near = client.wrap_bio(*ours, server_hostname="a.example")
    far = context.wrap_bio(*theirs, server_side=True)
    for _ in range(6):
        for end in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            theirs[0].write(ours[1].read())
            ours[0].write(theirs[1].read())
    assert near.selected_alpn_protocol() == "acme-tls/1"
    der = near.getpeercert(binary_form=True)
    assert der is not None
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("a.example")]
    extension = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert extension.critical
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    assert extension.value.value == b"\x04\x20" + hashlib.sha256(b"token.thumb").digest()


def test_a_context_is_found_by_name_whatever_its_case() -> None:
    challenges = Challenges()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert not challenges.expects_handshakes
    challenges.expect_handshake("A.example", context)
    assert challenges.expects_handshakes
    assert challenges.context_for_challenge("a.EXAMPLE") is context
    assert challenges.context_for_challenge("b.example") is None
    assert challenges.context_for_challenge(None) is None
    assert challenges.context_for_challenge("") is None
    challenges.forget()
    assert challenges.context_for_challenge("a.example") is None


# Renewal information.


def test_a_certificate_is_asked_about_as_in_the_example_of_the_standard() -> None:
    """RFC 9773 4.1: the key identifier 69:88:5B:...:AE:A8:C2 and the serial number 00:87:65:43:21."""
    serial = 0x8765_4321
    key = pki.new_key()
    authority = make_authority()
    identifier = bytes.fromhex("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(authority.certificate.not_valid_before_utc)
        .not_valid_after(authority.certificate.not_valid_after_utc)
    )
    named = builder.add_extension(x509.AuthorityKeyIdentifier(identifier, None, None), critical=False)
    assert pki.renewal_identifier(named.sign(authority.key, hashes.SHA256())) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
    assert pki.renewal_identifier(builder.sign(authority.key, hashes.SHA256())) == ""
