"""Stores of rate limits: one question to one of them, and what can be asked of which.

`limits` knows the stores and their strategies; here is what it does not bring: the strategy "burst" (a script on Redis
and Valkey), and time limits without a second try for each client library. Called by check threads, several at once, but
for `check_settings`, which the thread that starts calls. It does not know whether a store is worth asking.

What is stored. A key is the digest of what is counted and how: it has one length, no byte that a store minds, and shows
nobody an API key. Everything expires by itself. Redis and Valkey use the server's clock, except for the moving window;
that one, Memcached and MongoDB need the clocks of the machines to agree.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from limits import RateLimitItemPerSecond
from limits._storage_scheme import parse_storage_uri
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES

from hardserve.settings import RateLimitSettings
from hardserve.values import STORAGES, parse_rates

# What refuses has a wait, also if the store's clock has just passed the end of it.
SHORTEST_WAIT_S = 0.001
# A pooled connection to Memcached is used again for so long.
MEMCACHED_IDLE_S = 0.9

_PACKAGES = {"redis": "redis", "valkey": "valkey", "memcached": "pymemcache", "mongodb": "pymongo"}
_CANNOT = {"memcached": {"moving-window", "burst"}, "mongodb": {"burst"}}
# Memcached takes more than 30 days for a date, in 1970; of a sliding window it is told twice the length.
_LONGEST_S = {("memcached", "sliding-window-counter"): 15 * 86_400}

# nginx's limit_req with nodelay. What has been let in drains at the steady rate; kept are how much is left of it, and
# since when, by the server's clock (or the last argument, for tests). If that is set back, nothing drains meanwhile.
_BURST = """
local gap, room, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now = tonumber(ARGV[5])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local filled = 0
local kept = redis.call('GET', KEYS[1])
if kept then
    local level, since = string.match(kept, '^(%S+) (%S+)$')
    filled = math.max(0, tonumber(level) - math.max(0, now - tonumber(since)) / gap)
end
local over = filled + cost - room
if over > 0.000001 then
    return string.format('%.6f', over * gap / 1000000)
end
if ARGV[4] == '1' then
    filled = filled + cost
    redis.call('SET', KEYS[1], string.format('%.17g %.0f', filled, now), 'PX',
        string.format('%.0f', math.ceil(filled * gap / 1000) + 1))
end
return false
"""


class LimitLike(Protocol):
    """So many in so many seconds; for the strategy "burst", one each period/amount and `burst` more at once."""

    @property
    def amount(self) -> int: ...
    @property
    def period(self) -> int: ...
    @property
    def strategy(self) -> str: ...
    @property
    def burst(self) -> int: ...


class HitLike(Protocol):
    """One thing that is counted under `key` and costs `cost`. Without `take` it is only asked about."""

    @property
    def key(self) -> str: ...
    @property
    def limit(self) -> LimitLike: ...
    @property
    def cost(self) -> int: ...
    @property
    def take(self) -> bool: ...


class Store:
    """One store of `limits`, by any of its strategies and by "burst". Any check thread, several at once.

    Every method raises what the client library does, within about `timeout_s` seconds. No library here keeps a
    connection on which an answer came too late: the next question could be given it.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._storage = _storage(url, _options(url, timeout_s))
        family = STORAGES[urlsplit(url).scheme]
        if family == "mongodb":
            # Makes its client, connects, and makes indexes; later it would do so in the middle of two questions.
            try:
                self._storage.storage  # noqa: B018
            except BaseException:
                self.close()
                raise
        self._limiters = {
            name: make(self._storage) for name, make in STRATEGIES.items() if name not in _CANNOT.get(family, ())
        }
        self._burst = self._storage.get_connection().register_script(_BURST) if family in {"redis", "valkey"} else None

    def wait(self, hit: HitLike) -> float:
        """Return how many seconds until there is room for `hit`, and take it if that is 0.0 and `take` is set.

        In a fixed window a hit that is refused is counted, too, as `limits` does it; that shows where costs differ. In
        a moving one the wait is for the first place that becomes free, also if `hit` needs several.
        """
        limit = hit.limit
        if hit.cost > (limit.burst + 1 if limit.strategy == "burst" else limit.amount):
            return math.inf
        item = RateLimitItemPerSecond(limit.amount, limit.period, namespace="rate")
        key = hashlib.blake2b(f"{limit.strategy} {limit.burst} {hit.key}".encode("utf-8", "replace"), digest_size=16)
        if limit.strategy == "burst":
            return self.wait_in_burst(item.key_for(key.hexdigest()), hit)
        limiter = self._limiters[limit.strategy]
        if (limiter.hit if hit.take else limiter.test)(item, key.hexdigest(), cost=hit.cost):
            return 0.0
        match limit.strategy:
            case "sliding-window-counter":
                counts = self._storage.get_sliding_window(item.key_for(key.hexdigest()), limit.period)
                wait_s = wait_in_sliding_window(limit.amount - hit.cost, limit.period, *counts)
            case "fixed-window" if self._burst is not None:
                # `limits` asks for whole seconds, rounded: half a second too early for the next try.
                name = self._storage.prefixed_key(item.key_for(key.hexdigest()))
                wait_s = float(self._storage.get_connection().pttl(name)) / 1000
            case _:
                wait_s = limiter.get_window_stats(item, key.hexdigest()).reset_time - time.time()
        return min(max(wait_s, SHORTEST_WAIT_S), 2.0 * limit.period)

    def wait_in_burst(self, key: str, hit: HitLike, now_us: str = "") -> float:
        """The same for the strategy "burst"; `now_us` replaces the time of the server."""
        if self._burst is None:
            raise NotImplementedError("this store cannot do a burst")
        limit = hit.limit
        gap_us = limit.period * 1_000_000 / limit.amount
        args = [repr(gap_us), limit.burst + 1, hit.cost, int(hit.take), now_us]
        wait_s = self._burst(keys=[self._storage.prefixed_key(key)], args=args)
        return 0.0 if wait_s is None else max(float(wait_s), SHORTEST_WAIT_S)

    def touch(self) -> None:
        """Count something that nobody reads."""
        self._storage.incr("rate/probe", 60)

    def close(self) -> None:
        """Close the connections that are open."""
        client = self._storage.get_connection() if hasattr(self._storage, "get_connection") else self._storage.storage
        client.close()


def wait_in_sliding_window(
    most: int, period: int, previous: int, previous_s: float, current: int, current_s: float
) -> float:
    """Return how long until a sliding window counts at most `most`, given what `limits` says of it.

    Those are both counts, how long the previous one still weighs, and how long the current one will be known: until the
    end of its window and for one more. (The time that `limits` itself derives from them is 0 as a window begins.)
    """
    wait_s = 0.0
    if current > most:
        wait_s, previous, previous_s, current = current_s - period, current, float(period), 0
    room = most - current
    if previous * previous_s < (room + 1) * period:
        return wait_s
    return wait_s + previous_s - (room + 1) * period / previous + SHORTEST_WAIT_S


def check_settings(url: str, rules: Sequence[RateLimitSettings]) -> list[str]:
    """Return what is wrong with the store's `url` or with what `rules` want of it, one text each for operators.

    Nothing is connected: a store that is down does not keep a server from starting. No text contains the URL, which
    may have a password. Called once, by the thread that starts; client libraries are imported here.
    """
    scheme = url.partition("://")[0]
    family = STORAGES.get(scheme)
    if family is None:
        return [f"rate_limiting.storage: {scheme}:// is none of {', '.join(STORAGES)}"]
    package = _PACKAGES[family]
    if importlib.util.find_spec(package) is None:
        advice = "; redis:// can talk to Valkey, too" if family == "valkey" else ""
        return [
            f'rate_limiting.storage: {scheme}:// needs the package {package}: pip install "hardserve[{family}]"{advice}'
        ]
    problems = []
    if not _is_well_formed(url, family):
        example = _EXAMPLES.get(scheme, _EXAMPLES[family])
        problems.append(
            f"rate_limiting.storage: not a URL of a store; expected one such as {example}"
            " (in a name or password, write : / ? # [ ] @ and % as %3A %2F %3F %23 %5B %5D %40 and %25)"
        )
    for number, rule in enumerate(rules, 1):
        where = f"[[rate_limit]] number {number} ({rule.limit} on {rule.path})"
        strategy = rule.strategy if rule.burst is None else "burst"
        longest_s = _LONGEST_S.get((family, strategy), math.inf)
        if strategy in _CANNOT.get(family, ()):
            wanted = "burst" if strategy == "burst" else f'strategy = "{strategy}"'
            able = [name for name in _PACKAGES if strategy not in _CANNOT.get(name, ())]
            problems.append(f"{where}: {family} cannot do {wanted}; {', '.join(able)} can")
        elif any(period > longest_s for _, period in parse_rates(rule.limit)):
            problems.append(f'{where}: {family} can do strategy = "{strategy}" for at most {longest_s // 86_400} days')
    return problems


_EXAMPLES = {
    "redis": "redis://127.0.0.1:6379/0",
    "redis+unix": "redis+unix:///run/redis/redis.sock",
    "redis+cluster": "redis+cluster://10.0.0.1:6379,10.0.0.2:6379",
    "redis+sentinel": "redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster",
    "valkey": "valkey://127.0.0.1:6379/0",
    "valkey+unix": "valkey+unix:///run/valkey/valkey.sock",
    "valkey+cluster": "valkey+cluster://10.0.0.1:6379,10.0.0.2:6379",
    "valkey+sentinel": "valkey+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster",
    "memcached": "memcached://127.0.0.1:11211",
    "mongodb": "mongodb://127.0.0.1:27017",
}


def _is_well_formed(url: str, family: str) -> bool:
    try:
        parts = urlsplit(url)
        if parts.fragment:  # of a password with a # in it, this would be the rest
            return False
        if family == "mongodb":
            return _is_mongodb_url(url, parts.scheme)
        if family == "memcached" or parts.scheme.endswith(("+cluster", "+sentinel")):
            return _names_servers(url, parts.scheme)
        # Of a database that is not a number, the client makes number 0.
        database = "" if parts.scheme.endswith("+unix") else parts.path.strip("/")
        return (not database or database.isdecimal()) and storage_from_string(url) is not None
    except Exception:
        return False


def _is_mongodb_url(url: str, scheme: str) -> bool:
    if scheme == "mongodb":  # for mongodb+srv, this would look up the servers' names
        importlib.import_module("pymongo.uri_parser").parse_uri(url)
    return True


def _names_servers(url: str, scheme: str) -> bool:
    where = parse_storage_uri(url)
    named = bool(where.path and where.path.strip("/"))  # a socket, or what the sentinels look after
    if scheme.endswith("+sentinel"):
        return named and bool(where.locations)
    return bool(where.locations) or (named and scheme == "memcached")


def _storage(url: str, options: dict[str, Any]) -> Any:
    return storage_from_string(url, **options)


def _options(url: str, timeout_s: float) -> dict[str, Any]:
    """Return what the client library is told: `timeout_s` for each step, and never a second try."""
    scheme = urlsplit(url).scheme
    family = STORAGES[scheme]
    if family == "memcached":
        return {"client_getter": _one_memcached_client(timeout_s)}
    if family == "mongodb":
        milliseconds = max(1, round(timeout_s * 1000))
        steps = ("timeoutMS", "serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS", "waitQueueTimeoutMS")
        return dict.fromkeys(steps, milliseconds) | {
            "retryReads": False,
            "retryWrites": False,
            "database_name": "hardserve",
        }
    retries = importlib.import_module(f"{family}.retry")
    backoffs = importlib.import_module(f"{family}.backoff")
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": retries.Retry(backoffs.NoBackoff(), 0),
        # The older one: every server speaks it, and none can lengthen our time limits with it.
        "protocol": 2,
    }
    if scheme.endswith("+sentinel"):
        options["sentinel_kwargs"] = dict(options)
        options["use_replicas"] = False  # they lag behind
    return options | {"key_prefix": "hardserve"}


def _one_memcached_client(timeout_s: float) -> Callable[..., Any]:
    """Return what gives every thread the same pooled client; `limits` would make one for each, and close none.

    A connection that has been idle for long is not used again: after a restart of the store it is a dead one, and who
    got it would find the store gone once more. All are idle for that long when the store is probed.
    """
    making = threading.Lock()
    made: list[Any] = []

    def client(module: Any, hosts: list[Any], **_: object) -> Any:
        with making:
            if not made:
                options = {
                    "connect_timeout": timeout_s,
                    "timeout": timeout_s,
                    "no_delay": True,
                    "pool_idle_timeout": MEMCACHED_IDLE_S,
                }
                if len(hosts) > 1:
                    made.append(
                        module.HashClient(hosts, use_pooling=True, retry_attempts=0, dead_timeout=10, **options)
                    )
                else:
                    made.append(module.PooledClient(hosts[0], **options))
            return made[0]

    return client


def name_of(url: str) -> str:
    """Return where the store is, without who we are there."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def secrets_of(url: str) -> tuple[str, ...]:
    """Return what must not be in any text, the longest first."""
    parts = urlsplit(url)
    quoted = parts.netloc.rpartition("@")[0].partition(":")[2]
    found = {quoted, unquote(quoted), *parse_qs(parts.query).get("password", ())}
    return tuple(sorted(filter(None, found), key=len, reverse=True))
