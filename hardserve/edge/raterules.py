"""One rule of rate limiting: which requests it is for, what each counts by, and what one that it refuses is told.

I/O thread. Pure: it asks a store that it is given, and time is passed in as monotonic seconds. What several rules mean
together, and what a shared store is for, is in edge/ratelimit.py.

Keys. Each window has a prefix of its own, made of everything the rule says: processes that share a store and are
restarted one by one with other rules do not add to each other's counts. What a client chooses, and a user's name, is in
a key as a digest: of bounded length, and with nothing in it to forge another key. A request without the header field
that a rule counts by, or with an empty one, and one without a user, counts for its client: leaving it out is no way
past the limit. A Unix peer that nothing was forwarded for is one client.

The fields of a 429 are those of draft-ietf-httpapi-ratelimit-headers-11. Quotas are requests, their default unit: for a
rule whose requests cost 5, "300/minute" is q=60. r is how many more requests like this one are let in now, 0. t, like
Retry-After, is when this one would be, if nothing else comes: of the windows that refuse, the last. A rule with `burst`
is given as the burst and the time in which it comes back, q=501;w=11 for 50/second and 500 more at once: a client that
keeps to that is never refused, while q=50;w=1 would promise it 50 at once where the burst is 0.
X-RateLimit-Reset is that time in seconds, too, not the time of day: clocks differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from hardserve.edge.networks import Networks
from hardserve.edge.ratestore import Limit, RateStore
from hardserve.edge.routes import with_head
from hardserve.http.paths import PathPattern
from hardserve.settings import RateLimitSettings
from hardserve.values import parse_rates

# Of one window, by their seconds: a limit a day has 86,400 of them.
MAX_REFUSALS_KEPT = 1024

_CLIENT_CHOOSES = ("client+path", "header:")


class Asked(Protocol):
    """What is to be known of a request. `path` is decoded as in WSGI, `client` is `prefix_key` of `address` or ""."""

    command: str
    path: str
    headers: dict[str, str]
    address: str
    client: str
    user: str
    rate_slots: Any


class Hit(NamedTuple):
    """One count: `cost` of `limit` at `key`. Without `take` it is only asked whether there is room."""

    key: str
    limit: Limit
    cost: int
    take: bool


@dataclass(frozen=True, slots=True)
class RateRefusal:
    """The refusal of a request that is over the limit of `rule`. `fields` are header lines, each ended by CRLF."""

    rule: str
    retry_after_s: int
    fields: bytes


class Slot(NamedTuple):
    """What a response counts, if it has one of the statuses."""

    statuses: frozenset[int]
    hits: tuple[Hit, ...]
    shared: bool


class Window:
    """One window of a rule: where its counts are, and how it refuses."""

    __slots__ = ("_after", "_before", "_refusals", "_rule", "limit", "policy", "prefix")

    def __init__(self, rule: str, name: str, prefix: str, limit: Limit, cost: int) -> None:
        self.prefix = prefix
        self.limit = limit
        quota = (limit.burst + 1 if limit.strategy == "burst" else limit.amount) // cost
        span = math.ceil(quota * cost * limit.period / limit.amount) if limit.strategy == "burst" else limit.period
        self.policy = f'"{name}";q={quota};w={max(1, span)}'
        self._rule = rule
        self._before = f'RateLimit: "{name}";r=0;t='
        self._after = f"X-RateLimit-Limit: {quota}\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: "
        self._refusals: dict[int, RateRefusal] = {}

    def refusal(self, wait_s: float, policies: str, *, legacy: bool) -> RateRefusal:
        """Return what one is told who must wait for `wait_s` seconds. The same value for the same whole seconds."""
        # What costs more than there ever is has no time at which it would be let in.
        seconds = max(1, math.ceil(wait_s)) if wait_s < math.inf else self.limit.period
        refusal = self._refusals.get(seconds)
        if refusal is None:
            fields = f"Retry-After: {seconds}\r\nRateLimit-Policy: {policies}\r\n{self._before}{seconds}\r\n"
            if legacy:
                fields += f"{self._after}{seconds}\r\n"
            refusal = RateRefusal(self._rule, seconds, fields.encode("ascii"))
            if len(self._refusals) >= MAX_REFUSALS_KEPT:
                self._refusals.clear()
            self._refusals[seconds] = refusal
        return refusal


class Rule:
    """One rule: which requests it is for, what they count by, and its windows, the shortest first."""

    __slots__ = (
        "_exempt",
        "_header",
        "_key",
        "_legacy",
        "_methods",
        "_path",
        "_policies",
        "by_path",
        "by_user",
        "cost",
        "dry_run",
        "foldable",
        "name",
        "statuses",
        "windows",
    )

    def __init__(self, name: str, prefix: str, settings: RateLimitSettings, *, legacy: bool) -> None:
        self.name = name
        self.cost = settings.cost
        self.statuses = frozenset(settings.status)
        self.dry_run = settings.dry_run == "on"
        self._path = None if settings.path == "*" else PathPattern(settings.path)
        self._methods = with_head(settings.methods)
        self._exempt = Networks(settings.exempt)
        self._key, _, header = settings.key.partition(":")
        self._header = header.upper().replace("-", "_")
        if self._header not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            self._header = f"HTTP_{self._header}"
        self.by_user = self._key == "user"
        self.by_path = self._path is not None or self._key == "client+path"
        self.foldable = settings.key.startswith(_CLIENT_CHOOSES)
        self._legacy = legacy
        strategy, burst = (settings.strategy, 0) if settings.burst is None else ("burst", settings.burst)
        rates = parse_rates(settings.limit)
        self.windows = tuple(
            Window(
                name,
                name if len(rates) == 1 else f"{name}:{period}s",
                f"{prefix}.{period}:",
                Limit(amount, period, strategy, burst),
                settings.cost,
            )
            for amount, period in rates
        )
        self._policies = ", ".join(window.policy for window in self.windows)

    def fits(self, asked: Asked, paths: Sequence[str]) -> bool:
        """Return whether the rule is for this request; `paths` are the `spellings` of its path."""
        return (
            (not self._methods or asked.command in self._methods)
            and (self._path is None or any(map(self._path.matches, paths)))
            and not (self._exempt and self._exempt.contains(asked.address))
        )

    def who(self, asked: Asked, client: str, path: str, *, folded: bool) -> str:
        """Return what this request counts by; `folded`, without what its client chose. No `client` has = or * in it."""
        if self._key == "client" or (folded and self.foldable):
            return client
        if self._key == "global":
            return "*"
        if self._key == "client+path":
            return f"{client}={_digest(path.removesuffix('/'))}"
        chosen = asked.user if self.by_user else asked.headers.get(self._header, "")
        return f"={_digest(chosen)}" if chosen else client

    def ask(self, store: RateStore, who: str, now: float) -> RateRefusal | None:
        """Return why a request may not come in. Count nothing."""
        longest, binding = 0.0, self.windows[0]
        for window in self.windows:
            wait_s = store.wait(window.prefix + who, window.limit, self.cost, now)
            if wait_s > longest:
                longest, binding = wait_s, window
        return self.refusal(binding, longest) if longest else None

    def take(self, store: RateStore, who: str, now: float) -> None:
        """Count a request."""
        for window in self.windows:
            store.add(window.prefix + who, window.limit, self.cost, now)

    def refusal(self, window: Window, wait_s: float) -> RateRefusal:
        """Return what one is told for whom `window` has room in `wait_s` seconds."""
        return window.refusal(wait_s, self._policies, legacy=self._legacy)

    def slot(self, who: str, *, shared: bool) -> Slot:
        """Return what is to be hung on a request whose response may count."""
        hits = tuple(Hit(window.prefix + who, window.limit, self.cost, take=True) for window in self.windows)
        return Slot(self.statuses, hits, shared)


def prefixes(rules: Sequence[RateLimitSettings]) -> list[str]:
    """Return for each rule what no other one has, and the same rule always has."""
    prefixes: list[str] = []
    for rule in rules:
        said = (rule.limit, rule.path, sorted(rule.methods), rule.key, rule.strategy, rule.burst, rule.cost)
        digest = blake2b(repr((*said, sorted(rule.status))).encode(), digest_size=6).hexdigest()
        alike = sum(prefix.startswith(digest) for prefix in prefixes)
        prefixes.append(f"{digest}-{alike}" if alike else digest)
    return prefixes


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
