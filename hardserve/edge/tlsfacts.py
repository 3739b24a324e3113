"""What an established TLS connection is secured with, who the client has proved to be, and how an app is told.

Pure; any thread. The names in the environ are those that mod_ssl has given them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Attribute types of RFC 4514 3 and those that OpenSSL abbreviates, by the long names that Python gives.
_SHORT = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "stateOrProvinceName": "ST", "localityName": "L", "streetAddress": "street", "domainComponent": "DC",
    "userId": "UID", "surname": "SN", "givenName": "GN",
}  # fmt: skip
_ESCAPED = frozenset('"+,;<>\\')

Names = tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What an established connection is secured with, and who the client has proved to be."""

    protocol: str  # "TLSv1.3"
    cipher: str  # "TLS_AES_256_GCM_SHA384"
    resumed: bool
    alpn: str | None
    client: Mapping[str, str] = field(default_factory=dict)  # of its verified certificate, empty if it sent none
    # What the app is told, under the names that mod_ssl has given it; made once, for all requests of a connection.
    environ: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        told = {
            "SSL_PROTOCOL": self.protocol,
            "SSL_CIPHER": self.cipher,
            "SSL_SESSION_RESUMED": "Resumed" if self.resumed else "Initial",
            "SSL_CLIENT_VERIFY": "SUCCESS" if self.client else "NONE",
            **self.client,
        }
        object.__setattr__(self, "environ", told)


def client_names(certificate: Mapping[str, object]) -> dict[str, str]:
    """Return what an app is told of a verified certificate, as `SSLObject.getpeercert` has it. Pure.

    The names are those of mod_ssl, and nginx has the same form of a distinguished name (RFC 4514, the last one first).
    Text is UTF-8 in Latin-1, as everything in a WSGI environ (PEP 3333).
    """
    subject: Names = certificate.get("subject", ())  # type: ignore[assignment]
    issuer: Names = certificate.get("issuer", ())  # type: ignore[assignment]
    told = {
        "SSL_CLIENT_S_DN": _distinguished(subject),
        "SSL_CLIENT_I_DN": _distinguished(issuer),
        "SSL_CLIENT_M_SERIAL": f"{certificate.get('serialNumber', '')}",
        "SSL_CLIENT_V_START": f"{certificate.get('notBefore', '')}",
        "SSL_CLIENT_V_END": f"{certificate.get('notAfter', '')}",
    }
    for attributes in subject:
        for name, value in attributes:
            if name in ("commonName", "emailAddress"):
                told.setdefault("SSL_CLIENT_S_DN_" + ("CN" if name == "commonName" else "Email"), value)
    counts: dict[str, int] = {}
    for kind, value in certificate.get("subjectAltName", ()):  # type: ignore[attr-defined]
        short = {"DNS": "DNS", "email": "Email"}.get(kind)
        if short:
            number = counts[short] = counts.get(short, -1) + 1
            told[f"SSL_CLIENT_SAN_{short}_{number}"] = value
    return {name: _native(value) for name, value in told.items()}


def _distinguished(names: Names) -> str:
    return ",".join(
        "+".join(f"{_SHORT.get(name, name)}={_escape(value)}" for name, value in attributes)
        for attributes in reversed(names)
    )


def _escape(value: str) -> str:
    """As RFC 4514 2.4 has it; control characters, too, so that nothing ends a line anywhere."""
    escaped = "".join(
        f"\\{char}" if char in _ESCAPED else f"\\{ord(char):02X}" if char < " " or char == "\x7f" else char
        for char in value
    )
    if escaped.startswith(("#", " ")):
        escaped = "\\" + escaped
    if escaped.endswith(" ") and len(value) > 1:
        escaped = escaped[:-1] + "\\ "
    return escaped


def _native(text: str) -> str:
    # Escaped rather than left out: "ad\x01min" is not "admin".
    clean = "".join(f"\\{ord(char):02X}" if char < " " or char == "\x7f" else char for char in text)
    return clean.encode("utf-8", "replace").decode("latin-1")
