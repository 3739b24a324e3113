"""What an operator decides about certificates from a CA, as plain values.

Pure; any thread. Nothing here knows where the values come from, and no file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardserve.http.hostnames import domain_name

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
    """One certificate for all of `names`, from the CA at `directory`.

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


def normal_names(given: Sequence[str]) -> tuple[str, ...]:
    """Return each name once and in order, as `http.hostnames.domain_name` has it. Raises ValueError as it does."""
    return tuple(dict.fromkeys(domain_name(name) for name in given))
