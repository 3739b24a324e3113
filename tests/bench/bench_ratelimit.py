"""What the rules of rate limiting cost a request, with and without what the store costs.

    python -m tests.bench.bench_ratelimit

`check` is the whole decision, `store` its calls of the store alone. Microseconds, median of many rounds, one client out
of a thousand at a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hardserve.edge.limitsstorage import BoundedStorage
from hardserve.edge.ratelimit import RateLimiter, RateRefusal
from hardserve.edge.ratestore import Limit
from hardserve.settings import RateLimitingSettings, RateLimitSettings

CLIENTS = 1000
ROUNDS = 200
GENEROUS = RateLimitingSettings(default="1000000/second", default_burst=1_000_000)
THREE_PATHS = tuple(RateLimitSettings(limit="1000000/minute", path=path) for path in ("/login", "/api/*", "*.php"))


@dataclass(slots=True)
class Request:
    client: str
    path: str = "/items/42"
    command: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    address: str = ""
    user: str = ""
    rate_slots: Any = None


def limiter(*rules: RateLimitSettings, settings: RateLimitingSettings = GENEROUS) -> RateLimiter:
    return RateLimiter(rules, settings, failures="off", ipv6_prefix=64, shared=False, dry_run=lambda rule, client: None)


def median_us(call: Callable[[Request, float], object], requests: list[Request]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        now = time.monotonic()
        begun = time.perf_counter_ns()
        for request in requests:
            call(request, now)
        rounds.append((time.perf_counter_ns() - begun) / len(requests) / 1000)
    return statistics.median(rounds)


def store_alone(*limits: Limit) -> Callable[[Request, float], object]:
    """Return what the decision asks of the store: one limit is taken at once, several are looked at first."""
    storage = BoundedStorage()
    (first, *others) = limits

    def one(request: Request, now: float) -> object:
        return storage.hit("default.1:" + request.client, first, 1, now)

    def several(request: Request, now: float) -> None:
        for call in (storage.wait, storage.add):
            for number, limit in enumerate(limits):
                call(f"{number}:{request.client}", limit, 1, now)

    return several if others else one


def main() -> None:
    elsewhere = [Request(f"192.0.2.{number}") for number in range(CLIENTS)]
    login = [Request(f"192.0.2.{number}", path="/login") for number in range(CLIENTS)]
    burst = Limit(1_000_000, 1, "burst", 1_000_000)
    minute = Limit(1_000_000, 60, "sliding-window-counter")

    spent = limiter(settings=RateLimitingSettings(default="1/day", default_burst=0))
    for request in elsewhere:
        assert spent.check(request, time.monotonic()) is None
    refusal = spent.check(elsewhere[0], time.monotonic())
    assert isinstance(refusal, RateRefusal)
    day = Limit(1, 86400, "burst", 0)

    cases = [
        ("default only", limiter().check, elsewhere, store_alone(burst)),
        ("default + 3 rules with other paths", limiter(*THREE_PATHS).check, elsewhere, store_alone(burst)),
        ("default + 3 rules, one of which fits", limiter(*THREE_PATHS).check, login, store_alone(burst, minute)),
        ("refusal with its fields", spent.check, elsewhere, store_alone(day)),
    ]
    print(f"{'':38}{'check':>8}{'store':>8}{'rules':>8}")
    for name, call, requests, store in cases:
        whole, alone = median_us(call, requests), median_us(store, requests)
        print(f"{name:38}{whole:8.2f}{alone:8.2f}{whole - alone:8.2f}")


if __name__ == "__main__":
    main()
