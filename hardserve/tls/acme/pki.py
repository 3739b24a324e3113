"""Keys, requests and certificates: what is made for the CA, and whether what it sends back is what was asked for.

Pure but for the randomness of keys; any thread. Nothing here knows the protocol or a file, except that `ssl` takes
certificates from files alone (`challenge_context`).
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ssl
import tempfile
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ACME_TLS = "acme-tls/1"
# RFC 8737 3: id-pe-acmeIdentifier.
_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
# A leaf and its intermediates; real chains have two or three.
_MAX_CHAIN = 10
# How far the clocks of the CA and of this machine may be apart before a new certificate seems to be from the future.
_SKEW_S = 3600.0


Key = ec.EllipticCurvePrivateKey


class UnusableError(Exception):
    """A certificate or key that cannot be served. The text says why."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is read from the first certificate of a chain."""

    names: tuple[str, ...]
    not_before: float
    not_after: float
    identifier: str  # RFC 9773 4.1; "" where the certificate does not name its issuer's key
    issuer: str


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key: what every CA and every browser takes, and the cheapest handshake."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a key that `key_pem` has written. Raises UnusableError."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableError("the key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UnusableError("the key is not one of ours")
    return key


def signing_request(key: ec.EllipticCurvePrivateKey, names: tuple[str, ...]) -> x509.CertificateSigningRequest:
    """Return what the CA signs: all names are alternative names, and none is the subject (RFC 8555 7.4)."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )


def inspect(chain_pem: bytes, key: ec.EllipticCurvePrivateKey) -> Leaf:
    """Return what the first certificate of a chain says, if it belongs to `key`. Raises UnusableError."""
    leaf = _load_chain(chain_pem)[0]
    try:
        public = leaf.public_key()
        if (
            not isinstance(public, ec.EllipticCurvePublicKey)
            or public.public_numbers() != key.public_key().public_numbers()
        ):
            raise UnusableError("the certificate is for another key")
        return Leaf(
            names=_names(leaf),
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=leaf.not_valid_after_utc.timestamp(),
            identifier=renewal_identifier(leaf),
            issuer=leaf.issuer.rfc4514_string(),
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusableError(f"the certificate cannot be read: {error}") from None


def accept(chain_pem: bytes, key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], now: float) -> bytes:
    """Return a chain that came from the CA as it is to be kept: certificates and nothing else. Raises UnusableError."""
    leaf = inspect(chain_pem, key)
    if missing := sorted(set(names) - set(leaf.names)):
        raise UnusableError(f"the certificate does not have the name {missing[0]}")
    if leaf.not_after <= now:
        raise UnusableError("the certificate has expired already; is the clock right?")
    if leaf.not_before > now + _SKEW_S:
        raise UnusableError("the certificate is not valid yet; is the clock right?")
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in _load_chain(chain_pem))


def _load_chain(chain_pem: bytes) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableError("the certificate cannot be read") from None
    if len(chain) > _MAX_CHAIN:
        raise UnusableError(f"a chain of {len(chain)} certificates")
    return chain


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in alternative.value.get_values_for_type(x509.DNSName))


def renewal_identifier(certificate: x509.Certificate) -> str:
    """Return how the CA is asked about a certificate: its issuer's key and its serial number (RFC 9773 4.1)."""
    try:
        issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    if not issuer:
        return ""
    serial = certificate.serial_number
    # The octets of the DER INTEGER: one bit more than the number has, because it is signed.
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return f"{_base64url(issuer)}.{_base64url(octets)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def challenge_context(name: str, key_authorization: str) -> ssl.SSLContext:
    """Return what answers a handshake of the CA for TLS-ALPN-01 (RFC 8737 3), with a certificate made for it alone.

    Writes a file for as long as it takes to read it. Raises OSError.
    """
    key = new_key()
    digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A clock that is a day off, here or there, is no reason to fail.
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=2))
        # With an empty subject, critical (RFC 5280 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        # A DER OCTET STRING of 32 octets.
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, b"\x04\x20" + digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ACME_TLS])
    with tempfile.NamedTemporaryFile(prefix="hardserve-") as file:  # mode 0600
        file.write(key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name)
    return context
