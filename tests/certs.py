"""Certificates for tests: authorities, intermediates, and leaves of every kind, the broken ones too."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hardserve.tls.policy import PairFiles

DAY_S = 86_400
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def new_key(kind: str = "p256") -> Key:
    """Make a key: "p256", "p384", "k1", "ed25519", or "rsa2048" and other sizes."""
    if kind == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "k1":  # which TLS 1.3 has no signatures for
        return ec.generate_private_key(ec.SECP256K1())
    if kind == "p384":
        return ec.generate_private_key(ec.SECP384R1())
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


@dataclass
class Made:
    """A certificate with its key, and those above it, the nearest first."""

    certificate: x509.Certificate
    key: Key
    above: list[Made] = field(default_factory=list)  # without the root

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain_pem(self) -> str:
        """The leaf and its intermediates, as servers send them."""
        return "".join(each.pem for each in (self, *self.above))

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def key_pem(self, passphrase: str = "", *, traditional: bool = False) -> str:
        form = serialization.PrivateFormat.TraditionalOpenSSL if traditional else serialization.PrivateFormat.PKCS8
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            protection = serialization.BestAvailableEncryption(passphrase.encode())
        return self.key.private_bytes(serialization.Encoding.PEM, form, protection).decode()

    def write(self, directory: Path, name: str = "site", *, passphrase: str = "") -> PairFiles:
        """Write chain, key and passphrase as NAME.pem, NAME.key and NAME.pass."""
        directory.mkdir(parents=True, exist_ok=True)
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        certificate.write_text(self.chain_pem)
        key.touch(0o600)
        key.write_text(self.key_pem(passphrase))
        if not passphrase:
            return PairFiles(certificate, key)
        secret = directory / f"{name}.pass"
        secret.touch(0o600)
        secret.write_text(f"{passphrase}\n")
        return PairFiles(certificate, key, secret)


class Authority:
    """Signs certificates. A root, or with `parent` an intermediate."""

    def __init__(self, name: str = "Test Root", *, parent: Authority | None = None, kind: str = "p256") -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.parent = parent
        key = new_key(kind)
        issuer, signer = (parent.name, parent.made.key) if parent else (self.name, key)
        builder = _builder(self.name, issuer, key, -365 * DAY_S, 3650 * DAY_S, signer)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        above = [] if parent is None or parent.parent is None else [parent.made, *parent.made.above]
        self.made = Made(_sign(builder, signer), key, above)

    @property
    def pem(self) -> str:
        return self.made.pem

    def intermediate(self, name: str = "Test Intermediate", **kinds: str) -> Authority:
        return Authority(name, parent=self, **kinds)

    def leaf(
        self,
        *names: str,
        kind: str = "p256",
        not_before_s: float = -DAY_S,
        not_after_s: float = 89 * DAY_S,
        common_name: str = "",
        purposes: Sequence[str] = ("server",),
        ca: bool = False,
        key: Key | None = None,
    ) -> Made:
        """Sign a certificate for `names`, valid from and until so many seconds from now."""
        key = key or new_key(kind)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
        builder = _builder(subject, self.name, key, not_before_s, not_after_s, self.made.key)
        builder = _describe(builder, names, purposes, ca=ca, named=bool(common_name))
        above = [self.made, *self.made.above] if self.parent else []
        return Made(_sign(builder, self.made.key), key, above)


def self_signed(
    *names: str,
    kind: str = "p256",
    not_before_s: float = -DAY_S,
    not_after_s: float = 89 * DAY_S,
    common_name: str = "self",
    purposes: Sequence[str] = ("server",),
    ca: bool = False,
) -> Made:
    key = new_key(kind)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = _describe(
        _builder(subject, subject, key, not_before_s, not_after_s, key), names, purposes, ca=ca, named=True
    )
    return Made(_sign(builder, key), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, start_s: float, end_s: float, signer: Key
) -> x509.CertificateBuilder:
    now = time.time()
    times = [dt.datetime.fromtimestamp(int(now + each), dt.UTC) for each in (start_s, end_s)]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(times[0])
        .not_valid_after(times[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _describe(
    builder: x509.CertificateBuilder, names: Sequence[str], purposes: Sequence[str], *, ca: bool, named: bool
) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=ca), critical=True)
    if names:
        alternative = x509.SubjectAlternativeName([_general(name) for name in names])
        builder = builder.add_extension(alternative, critical=not named)
    if purposes:
        kinds = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
        builder = builder.add_extension(x509.ExtendedKeyUsage([kinds[each] for each in purposes]), critical=False)
    return builder


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.RFC822Name(name) if "@" in name else x509.DNSName(name)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: Key) -> x509.Certificate:
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


# --- both ends of a connection, in memory ---


def client_context(
    *roots: Authority | Made, version: str = "", alpn: Sequence[str] = (), ciphers: str = ""
) -> ssl.SSLContext:
    """Return a client that trusts `roots`, or whoever comes if there are none. `version` is "1.2" or "1.3"."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = bool(roots)
    if not roots:
        context.verify_mode = ssl.CERT_NONE
    for root in roots:
        context.load_verify_locations(cadata=root.pem)
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if ciphers:
        context.set_ciphers(ciphers)
    return context


VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass
class Ends:
    """A connection in memory, after its handshake."""

    server: ssl.SSLObject
    client: ssl.SSLObject

    def say(self, data: bytes) -> bytes:
        """Have the client send `data` and the server answer with it; return what the client got.

        After that, the client has its session tickets, and a server of TLS 1.3 has said if it takes no certificate.
        """
        self.client.write(data)
        self.server.write(self.server.read(len(data)))
        return self.client.read(len(data))


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None, session: ssl.SSLSession | None = None
) -> Ends:
    """Connect two contexts in memory. Raises what either end does, the client's first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [theirs, ours]
    failed: dict[ssl.SSLObject, ssl.SSLError] = {}
    for _ in range(10):
        for end in list(pending):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                failed[end] = error  # the other end has still to hear of it
            pending.remove(end)
    for end in (theirs, ours):
        if end in failed:
            raise failed[end]
    assert not pending, "the handshake did not end"
    return Ends(ours, theirs)


def served_by(context: ssl.SSLContext, name: str | None = None) -> str:
    """Return the fingerprint of the certificate that a client gets that means `name`."""
    der = handshake(context, client_context(), name).client.getpeercert(True)
    assert der is not None
    return hashlib.sha256(der).digest().hex(":").upper()
