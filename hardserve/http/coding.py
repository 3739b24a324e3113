"""Which content coding a client gets: the Accept-Encoding field (RFC 9110 12.5.3). Pure, any thread.

What can be had in which coding, and what the codings are made with, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

IDENTITY = "identity"

# Clients send some 30 characters, and all the codings that IANA has ever registered are 150. Past this it is an attack
# or a mistake, and is not read.
ACCEPT_ENCODING_MAX = 512

# RFC 9110 8.4.1.3: a recipient takes "x-gzip" as "gzip".
_ALIASES = {"x-gzip": "gzip"}
# As for Accept, more than the three decimals of the RFC and a missing zero are taken, deliberately.
_WEIGHT = re.compile(r"[01](?:\.[0-9]*)?|\.[0-9]+")


def best(accept_encoding: str | None, offers: Sequence[str]) -> str:
    """Return which of `offers` suits a request best whose Accept-Encoding field has this value, or "identity".

    `offers` are codings in lower case, in our order of preference, which decides between those of the same weight.
    None is a request without the field: it may be answered in any coding, and is answered in none, deliberately, since
    who does not ask often cannot decode. A coding is chosen when the client gives it no less weight than the plain
    representation, which is last when it is not mentioned. Where nothing at all is acceptable, the plain one is what
    the RFC would have us send, rather than a 415 or 406.

    Anything may be in the value; an element that cannot be understood is passed over. Time is linear in it, and
    bounded.
    """
    if not accept_encoding or len(accept_encoding) > ACCEPT_ENCODING_MAX:
        return IDENTITY
    weights: dict[str, float] = {}
    for element in accept_encoding.lower().split(","):
        name, _, parameters = element.partition(";")
        name = name.strip(" \t")
        weight = _weight(parameters)
        if weight is not None:
            name = _ALIASES.get(name, name)
            weights[name] = max(weight, weights.get(name, 0.0))
    others = weights.get("*", 0.0)
    chosen, most = IDENTITY, weights.get(IDENTITY, others)
    for offer in offers:
        weight = weights.get(offer, others)
        if weight > 0 and (weight > most or (weight == most and chosen == IDENTITY)):
            chosen, most = offer, weight
    return chosen


def _weight(parameters: str) -> float | None:
    """Return the weight that follows a coding, None if what is given as one is none."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip(" \t") == "q":
            value = value.strip(" \t")
            return min(1.0, float(value)) if _WEIGHT.fullmatch(value) else None
    return 1.0
