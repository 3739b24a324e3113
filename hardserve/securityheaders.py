"""The header fields that every response gets, unless whoever made it has set them: what tells browsers to be careful.

Pure, any thread; the texts that are remembered are a memo that any thread may fill. Responses of the app, refusals and
files take them from here, each in the form that costs it least.
"""

from __future__ import annotations

from hardserve.settings import HeaderSettings, TlsSettings

# In the order in which they are sent: a field, and the setting that is its value.
_FIELDS = (
    ("X-Content-Type-Options", "content_type_options"),
    ("X-Frame-Options", "frame_options"),
    ("Referrer-Policy", "referrer_policy"),
    ("Permissions-Policy", "permissions_policy"),
    ("Content-Security-Policy", "content_security_policy"),
    ("Server", "server"),
)
# Only over TLS (RFC 6797 7.2), and for a time that is a setting of TLS.
_HSTS = "Strict-Transport-Security"
# What each field is in a set of them. A set is an int, because one is made for every response.
BITS = {name.lower(): 1 << number for number, name in enumerate((*(name for name, _ in _FIELDS), _HSTS))}
OFF = "off"


def hsts_of(tls: TlsSettings) -> str:
    """Return for how long a browser is to ask this host for nothing but HTTPS (RFC 6797 6.1), "" to say nothing."""
    if not tls.hsts:
        return ""
    return f"max-age={tls.hsts:.0f}" + "; includeSubDomains" * (tls.hsts_subdomains == "on")


def default_lines(headers: HeaderSettings, hsts: str = "") -> tuple[tuple[str, str], ...]:
    """Return the fields of all responses: the name in lower case, and the line without its end.

    `hsts` is what those over TLS say besides, as `hsts_of` has it.
    """
    values = [(name, getattr(headers, setting)) for name, setting in _FIELDS]
    if hsts:
        values.append((_HSTS, hsts))
    return tuple((name.lower(), f"{name}: {value}") for name, value in values if value != OFF)


def hsts_line(hsts: str) -> bytes:
    """Return what a response over TLS has besides those of all responses, with its end; nothing for ""."""
    return f"{_HSTS}: {hsts}\r\n".encode() if hsts else b""


def own_bits(name: str, value: str) -> int:
    """Return what a response need not be given that has this field, as a set; `name` is in lower case.

    A policy that names who may frame a page replaces X-Frame-Options wherever it is understood (CSP 3, 6.4.2), so
    adding that could only contradict the app, to an old browser that is told of a frame less than the app allows.
    """
    bits = BITS.get(name, 0)
    if name == "content-security-policy" and "frame-ancestors" in value.lower():
        bits |= BITS["x-frame-options"]
    return bits


class DefaultFields:
    """The end of a response's head: the fields that it lacks, and the empty line."""

    __slots__ = ("_ends", "_lines")

    def __init__(self, headers: HeaderSettings, hsts: str = "") -> None:
        self._lines = default_lines(headers, hsts)
        self._ends: dict[int, str] = {}  # by what a response has itself: at most one for each subset of the fields

    def __repr__(self) -> str:
        return f"<DefaultFields {', '.join(name for name, _ in self._lines) or 'none'}>"

    def end(self, own: int) -> str:
        """Return what follows the last line of a head that has `own`, a set of `BITS`."""
        try:
            return self._ends[own]
        except KeyError:
            lines = (line for name, line in self._lines if not BITS[name] & own)
            self._ends[own] = end = "".join(f"\r\n{line}" for line in lines) + "\r\n\r\n"
            return end
