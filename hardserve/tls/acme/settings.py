"""What an operator decides about certificates from a CA, as plain values, and what can be said against them at once.

Pure; any thread. Nothing here knows where the values come from, and no file is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardserve.tls import names

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
LETS_ENCRYPT_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"

HTTP_01 = "http-01"
TLS_ALPN_01 = "tls-alpn-01"
KINDS = (HTTP_01, TLS_ALPN_01)

# Let's Encrypt's limit for one certificate, and every CA's that we know of.
MAX_NAMES = 100


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait after a failure, in seconds: each one more doubles it, up to `longest`.

    Let's Encrypt allows five failed validations of a name in an hour: 5, 10, 20 and 40 minutes keep below.
    """

    unreachable: float = 60.0  # the CA did not answer, and has not judged anything
    refused: float = 300.0
    misconfigured: float = 3600.0  # will fail again until somebody changes something
    longest: float = 6 * 3600.0
    look: float = 60.0  # how often the clock and what other processes have done is looked at


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """One certificate for all of `names`, from the CA at `directory`. Check with `problems` before use.

    `challenges` are tried in this order, one at each attempt; what has succeeded goes first the next time.
    `eab_key_file` has the CA's base64url MAC key for `eab_kid` (RFC 8555 7.3.4). `ca_file` has the roots that the CA's
    own site is verified with in place of the usual ones.
    """

    names: tuple[str, ...]
    agree: bool = False  # to the CA's terms of service
    email: str = ""
    directory: str = LETS_ENCRYPT
    challenges: tuple[str, ...] = KINDS
    eab_kid: str = ""
    eab_key_file: Path | None = None
    ca_file: Path | None = None
    profile: str = ""
    pace: Pace = Pace()


def normal_name(name: str) -> str:
    """Return a domain name as certificates have it: lower case, no last dot, A-labels.

    Raises ValueError, with a sentence that names it, for what HTTP-01 and TLS-ALPN-01 cannot prove.
    """
    text = names.normal_name(name)
    if text is None or "_" in text:  # which no CA puts into a certificate
        raise ValueError(f'{name!r} is not a domain name, such as "www.example.org"')
    if text.startswith("*."):
        raise ValueError(f"{name!r}: a wildcard is proven by DNS alone, which hardserve does not do: list each name")
    if names.is_address(text):
        raise ValueError(f"{name!r} is an address: give a domain name")
    return text


def normal_names(given: Sequence[str]) -> tuple[str, ...]:
    """Return each name once and in order, as `normal_name` has it. Raises ValueError as it does."""
    return tuple(dict.fromkeys(normal_name(name) for name in given))


def problems(settings: AcmeSettings) -> list[tuple[str, str]]:
    """Return everything that would keep every order from succeeding: which field, and a sentence."""
    found = []
    for name in settings.names:
        try:
            normal_name(name)
        except ValueError as error:
            found.append(("names", str(error)))
    if not settings.names:
        found.append(("names", "no domain name is given"))
    if len(settings.names) > MAX_NAMES:
        sentence = f"{len(settings.names)} names are more than the {MAX_NAMES} that a certificate can have"
        found.append(("names", sentence))
    if not settings.directory.startswith("https://"):
        found.append(("directory", f"{settings.directory!r}: the directory of a CA is an https:// address"))
    if not settings.challenges or not set(settings.challenges) <= set(KINDS):
        found.append(("challenges", f"challenges are {' and '.join(KINDS)}"))
    if bool(settings.eab_kid) != (settings.eab_key_file is not None):
        field = "eab_kid" if settings.eab_kid else "eab_key_file"
        found.append((field, "an external account needs both its key id and its key file"))
    if settings.email and (settings.email.count("@") != 1 or not re.fullmatch(r"[!-+\--~]+", settings.email)):
        found.append(("email", f"{settings.email!r} is not one e-mail address"))
    if not settings.agree and settings.directory in (LETS_ENCRYPT, LETS_ENCRYPT_STAGING):
        found.append(("agree", "the CA's terms of service must be agreed to: https://letsencrypt.org/repository/"))
    return found
