"""Lists of what a client accepts, with how much it likes each: quality values (RFC 9110 12.4.2). Pure, any thread."""

from __future__ import annotations

import re

# More than the three decimals of the RFC and a missing zero are taken, deliberately: Java's own client sends "q=.2".
_WEIGHT = re.compile(r"[01](?:\.[0-9]*)?|\.[0-9]+")


def weights(value: str) -> dict[str, float]:
    """Return what stands in a list such as "gzip;q=0.5, br", in lower case, with the highest weight that each has.

    Anything may be in the value; an element whose weight cannot be understood is passed over, and parameters other than
    its weight are not looked at. Time is linear in the value.
    """
    found: dict[str, float] = {}
    for element in value.lower().split(","):
        name, _, parameters = element.partition(";")
        weight = _weight(parameters)
        if weight is not None:
            name = name.strip(" \t")
            found[name] = max(weight, found.get(name, 0.0))
    return found


def _weight(parameters: str) -> float | None:
    """Return the weight among the parameters of an element, None if what is given as one is none."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip(" \t") == "q":
            value = value.strip(" \t")
            return min(1.0, float(value)) if _WEIGHT.fullmatch(value) else None
    return 1.0
