"""Names of hosts as certificates have them, and which of them a client means (RFC 9525). Pure; any thread."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_WILDCARD = re.compile(rf"\*(?:\.{_LABEL})+")
MAX_NAME = 253


def normal_name(text: str) -> str | None:
    """Return a host name, a wildcard ("*.example.org") or an address as it is compared, None for anything else.

    A star stands for one whole label, the leftmost (RFC 9525 6.3): browsers take no "w*.example.org".
    """
    text = text.strip().lower()
    if (address := _address(text)) is not None:
        return address
    if not text.isascii():
        try:
            text = text.encode("idna").decode()
        except UnicodeError:
            return None
    text = text.removesuffix(".")
    if len(text) <= MAX_NAME and (_NAME.fullmatch(text) or _WILDCARD.fullmatch(text)):
        return text
    return None


def domain_name(text: str) -> str:
    """Return a domain name that a certificate authority can prove by asking the host, as `normal_name` has it.

    Raises ValueError with a sentence that names it.
    """
    name = normal_name(text)
    if "," in text:
        raise ValueError(
            f'{text!r} is more than one name: a list in a file, and a flag for each, such as "example.org"'
        )
    if name is None or "_" in name:  # which no CA puts into a certificate
        raise ValueError(f'{text!r} is not a domain name, such as "www.example.org"')
    if name.startswith("*."):
        raise ValueError(f"{text!r}: a wildcard is proven by DNS alone, which hardserve does not do: list each name")
    if is_address(name):
        raise ValueError(f"{text!r} is an address: give a domain name")
    return name


def is_address(name: str) -> bool:
    return _address(name) is not None


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        return None


def wildcard_of(name: str) -> str:
    """Return the one wildcard that would stand for `name`, "" if none can."""
    label, dot, rest = name.partition(".")
    return f"*.{rest}" if dot and rest and label not in ("", "*") else ""


def covers(names: Iterable[str], wanted: str) -> bool:
    """Return whether a certificate for `names` is one for `wanted`; all of them normal names."""
    names = frozenset(names)
    return wanted in names or (not is_address(wanted) and wildcard_of(wanted) in names)
