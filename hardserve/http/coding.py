"""Which content coding a client gets: the Accept-Encoding field (RFC 9110 12.5.3). Pure, any thread.

What can be had in which coding, and what the codings are made with, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

from hardserve.http.weights import weights

IDENTITY = "identity"

# Clients send some 30 characters, and all the codings that IANA has ever registered are 150. Past this it is an attack
# or a mistake, and is not read.
ACCEPT_ENCODING_MAX = 512

# RFC 9110 8.4.1.3: a recipient takes "x-gzip" as "gzip".
_ALIASES = {"x-gzip": "gzip"}


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
    given = weights(accept_encoding)
    for alias, name in _ALIASES.items():
        if alias in given:
            given[name] = max(given[alias], given.get(name, 0.0))
    others = given.get("*", 0.0)
    chosen, most = IDENTITY, given.get(IDENTITY, others)
    for offer in offers:
        weight = given.get(offer, others)
        if weight > 0 and (weight > most or (weight == most and chosen == IDENTITY)):
            chosen, most = offer, weight
    return chosen
