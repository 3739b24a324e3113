"""What every TLS context of the server has in common: versions, cipher suites, resumption, client certificates.

Main thread and check threads; opens the files that it is told. It knows no connection, and nothing of which context is
chosen for whom: that is tls.store.

What is pinned is the "intermediate" configuration of Mozilla's Server Side TLS guidelines, version 6.0, of 2026:
TLS 1.2 and 1.3; in TLS 1.2 only ECDHE with AES-GCM or ChaCha20, and no finite-field DHE any more, whose cost the client
would choose. They leave the order to the client, since it knows whether it has AES in hardware. We do so in that alone:
who asks for ChaCha20 first gets it, and all others what comes first here. Deliberate: scanners (testssl.sh 3.0) hold
it against a server that it has no order of its own, and do not ask whether any choice would be a bad one.

What Python (3.11 to 3.14) lets nobody say, and what then holds:

* The suites of TLS 1.3 are OpenSSL's own three, the same as Mozilla's, and in its order: AES-256 is first.
* Groups are OpenSSL's own: X25519, P-256 and P-384 as in the guidelines, also X448, P-521, and ffdhe2048 to ffdhe8192;
  from 3.5 on X25519MLKEM768 first. `set_ecdh_curve` takes one curve and no X25519, so that browsers would need one more
  round trip. A client may so ask for ffdhe8192 in TLS 1.3, which costs four hundred times what X25519 does: whoever
  takes handshakes has to look at the ClientHello first, or the machine's openssl.cnf has to say `Groups`.
* The keys of session tickets are made by OpenSSL with the context and live as long as it does. tls.store makes the
  context that has them anew every day. A ticket is good for two hours, which is OpenSSL's own time.
* Nobody sees which protocols a client offers by ALPN, and a client that offers others alone goes on without one.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GUIDELINES = "Mozilla Server Side TLS 6.0 (2026), intermediate"
CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
# At level 2 OpenSSL refuses RSA keys under 2048 bits and SHA-1, in our certificates and in those of clients. Debian's
# default, and that of OpenSSL 3.2; said here because others have 1.
_SECURITY_LEVEL = "@SECLEVEL=2"
# Clients use a ticket of TLS 1.3 once (RFC 8446 C.4), and browsers open a few connections.
TICKETS = 2
MAX_PASSPHRASE_BYTES = 1024  # OpenSSL's own limit

# Python has no names for SSL_OP_ALLOW_UNSAFE_LEGACY_RENEGOTIATION, which the machine's openssl.cnf can set, and for
# SSL_OP_PRIORITIZE_CHACHA.
_OP_UNSAFE_RENEGOTIATION = 1 << 18
_OP_PRIORITIZE_CHACHA = 1 << 21

ClientCertificates = Literal["off", "optional", "required"]


@dataclass(frozen=True, slots=True)
class PairFiles:
    """Where the chain and the key of one certificate are, both PEM; they may be one file."""

    certificate: Path
    key: Path
    passphrase_file: Path | None = None  # its first line opens an encrypted key
    issued: bool = False  # to us, by a CA that has given the whole chain

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file, each once."""
        named = (self.certificate, self.key, self.passphrase_file)
        return tuple(dict.fromkeys(path for path in named if path is not None))


def server_context(
    pair: PairFiles | None,
    *,
    client_ca: Path | None = None,
    client_certificates: ClientCertificates = "off",
    alpn: tuple[str, ...] = ("http/1.1",),
) -> ssl.SSLContext:
    """Return a context for the server's side of connections. Reads files, so it may block.

    Without a `pair` it has no certificate, and is good for nothing but to choose another context by SNI. `client_ca` is
    a PEM file of those who sign client certificates; one of theirs, or a client's very own, may stand in it alone.

    Raises OSError, and ssl.SSLError when a file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The machine's openssl.cnf may have said otherwise.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers(":".join((*CIPHERS, _SECURITY_LEVEL)))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA
    context.options &= ~(ssl.OP_NO_TICKET | _OP_UNSAFE_RENEGOTIATION)
    # A client that closes without close_notify is no error (RFC 9112 9.8): how long a request is, its head says.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    context.num_tickets = TICKETS
    context.set_alpn_protocols(list(alpn))
    if client_certificates != "off":
        if client_ca is None:
            raise ValueError("client certificates cannot be checked without client_ca")
        context.load_verify_locations(cafile=client_ca)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_mode = ssl.CERT_REQUIRED if client_certificates == "required" else ssl.CERT_OPTIONAL
    if pair is not None:
        # With something to call, OpenSSL never asks for the passphrase on the terminal.
        context.load_cert_chain(pair.certificate, pair.key, lambda: passphrase(pair.passphrase_file))
    return context


def passphrase(path: Path | None) -> bytes:
    """Return the first line of a file, nothing without a file. Raises OSError."""
    if path is None:
        return b""
    with open(path, "rb") as file:
        return file.readline(MAX_PASSPHRASE_BYTES + 1).rstrip(b"\r\n")[:MAX_PASSPHRASE_BYTES]
