"""By how coarse a key clients are counted while more of them come than the store of rate limits can hold.

Pure: time is passed in as monotonic seconds. I/O thread only. It knows no rule, and of the store only how many keys
that still mattered it has evicted so far.

Whoever can bring up more keys than the store holds can have a count of theirs forgotten, and so get past a limit: with
a /32 of IPv6, or from one address by varying what a rule counts by. So when evictions in SPAN_S reach SHARE of the
store, the next step is taken, what harms bystanders least first:

1. what a client chooses itself (a path, the value of a header field) no longer has a count of its own;
2. IPv6 is counted by /48, one site's network, then by /32, one provider's;
3. IPv4 is counted by /24, then by /16.

A step that is no coarser than limits.ipv6_prefix is left out. When there were fewer evictions than that in all of
QUIET_S, one step is taken back. What was counted by another key is not carried over: each step gives each key, an
address or the network that now stands for it, its allowance once more, and not more often than the log says.

Slower than that, one key in ten a SPAN_S, the store is turned over in more than ten times SPAN_S. That is no way past
a limit of so many a minute, but past one of so many a day, and it is also what a site with many clients looks like,
for whom coarser keys would be the worse harm. It is said, at most once an hour, and the operator decides.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from hardserve.edge.networks import prefix_key

logger = logging.getLogger("hardserve.edge")

SHARE = 0.1
SPAN_S = 10.0
QUIET_S = 300.0
SAID_AGAIN_S = 3600.0


class Grain(NamedTuple):
    """How clients are told apart. `folded`: what they choose themselves does not count."""

    v4_bits: int
    v6_bits: int
    folded: bool

    def __str__(self) -> str:
        chosen = ", whatever paths and header fields they vary" if self.folded else ""
        return f"clients are counted by IPv4 /{self.v4_bits} and IPv6 /{self.v6_bits}{chosen}"


class Pressure:
    """Watches a store of `max_keys` keys. `level` is how many steps are taken, `folded` what `Grain` says.

    `evicted` is the number that `observe` was told last: it need not be called while that stays and `level` is 0.
    """

    __slots__ = (
        "_grain",
        "_grains",
        "_max_keys",
        "_quiet_evicted",
        "_quiet_since",
        "_said_at",
        "_said_evicted",
        "_share",
        "_span_evicted",
        "_span_since",
        "evicted",
        "folded",
        "level",
    )

    def __init__(self, max_keys: int, ipv6_prefix: int, *, foldable: bool, evicted: int = 0) -> None:
        self._max_keys = max_keys
        self._share = max(1, int(max_keys * SHARE))
        grains = [Grain(32, ipv6_prefix, folded=False)]
        if foldable:
            grains.append(Grain(32, ipv6_prefix, folded=True))
        grains += [Grain(32, bits, foldable) for bits in (48, 32) if bits < ipv6_prefix]
        grains += [Grain(bits, grains[-1].v6_bits, foldable) for bits in (24, 16)]
        self._grains = grains
        self._grain = grains[0]
        self.level = 0
        self.folded = False
        self.evicted = self._span_evicted = self._quiet_evicted = self._said_evicted = evicted
        self._span_since = self._said_at = -math.inf
        self._quiet_since = 0.0

    def __repr__(self) -> str:
        return f"<Pressure level {self.level} of {len(self._grains) - 1}, {self.evicted} evicted, {self._grain}>"

    def client(self, address: str, client: str) -> str:
        """Return by whom to count the client at `address`, whose key is `client` when there is no pressure."""
        if not self.level or not client:  # a Unix socket has no network
            return client
        return prefix_key(address, self._grain.v4_bits, self._grain.v6_bits)

    def observe(self, evicted: int, now: float) -> None:
        """Take or take back a step, after `evicted` in all, if it is time to; log it."""
        if now - self._span_since >= SPAN_S:
            self._span_since, self._span_evicted = now, self.evicted
        if evicted - self._quiet_evicted >= self._share:
            self._quiet_since, self._quiet_evicted = now, evicted
        self.evicted = evicted
        if evicted - self._span_evicted >= self._share:
            if self.level < len(self._grains) - 1:
                self._step(1, now)
                logger.warning(
                    "rate limits: so many clients that their counts are forgotten too soon "
                    "(rate_limiting.max_keys = %d); now %s",
                    self._max_keys,
                    self._grain,
                )
        elif self.level:
            if now - self._quiet_since >= QUIET_S:
                self._step(-1, now)
                logger.info("rate limits: there is room again; now %s", self._grain)
        elif evicted - self._said_evicted >= self._share:
            if now - self._said_at >= SAID_AGAIN_S:
                logger.warning(
                    "rate limits: %d counts were forgotten before their time; where that is not one client, "
                    "rate_limiting.max_keys = %d is too small",
                    evicted - self._said_evicted,
                    self._max_keys,
                )
                self._said_at = now
            self._said_evicted = evicted

    def _step(self, by: int, now: float) -> None:
        self.level += by
        self._grain = self._grains[self.level]
        self.folded = self._grain.folded
        self._span_since = self._quiet_since = now
        self._span_evicted = self._quiet_evicted = self._said_evicted = self.evicted
