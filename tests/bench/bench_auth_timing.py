"""Whether the time of a check tells if there is such a user, and what a remembered one costs the I/O thread.

    python -m tests.bench.bench_auth_timing [CHECKS]

Wrong passwords of names that are in the file and of names that are not, in random order; medians in microseconds, and
p of a two-sided Mann-Whitney test: how often chance alone would set them this far apart. One in a hundred is below 0.01
without any reason. A hash of one iteration takes no time, so what is around it shows: a name that a dictionary has
takes tens of nanoseconds more than one that it has not. Behind a hash as they are made, of tens of milliseconds, p must
tell nothing. CHECKS of each kind, 20,000 unless given, and fewer of those that take long.
"""

from __future__ import annotations

import base64
import gc
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from werkzeug.security import generate_password_hash

from hardserve.checks.users import Authenticator
from hardserve.passwd import hash_password

# Many, because a name has a time of its own: where it falls in a dictionary.
USERS = 1000
# A method for Werkzeug's hashes, or bcrypt; and the share of CHECKS that is made of it.
CASES = {"pbkdf2:sha256:1": 1.0, "scrypt:128:8:1": 0.2, "scrypt": 0.01, "bcrypt": 0.005}


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def hashed(method: str) -> str:
    return hash_password("secret", method) if method == "bcrypt" else generate_password_hash("secret", method)


def names(chosen: random.Random, count: int) -> list[str]:
    """Return names of one length, so that nothing but their being in the file sets them apart."""
    return ["".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(count)]


def mann_whitney(a: list[int], b: list[int]) -> float:
    """Return the p-value, two-sided, by the normal approximation with ties in the middle of their ranks."""
    ordered = sorted([(value, 0) for value in a] + [(value, 1) for value in b])
    ranks, ties, start = 0.0, 0, 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and ordered[end][0] == ordered[start][0]:
            end += 1
        middle = (start + 1 + end) / 2
        ranks += middle * sum(1 for _, group in ordered[start:end] if group == 0)
        ties += (end - start) ** 3 - (end - start)
        start = end
    n, m = len(a), len(b)
    u = ranks - n * (n + 1) / 2
    variance = n * m / 12 * ((n + m + 1) - ties / ((n + m) * (n + m - 1)))
    return math.erfc(abs(u - n * m / 2) / math.sqrt(2 * variance))


def times_ns(authenticator: Authenticator, asked: list[str]) -> list[int]:
    verify, clock = authenticator.verify, time.perf_counter_ns
    times = []
    for authorization in asked:
        began = clock()
        verify(authorization)
        times.append(clock() - began)
    return times


def compare(path: Path, method: str, count: int, chosen: random.Random) -> tuple[float, float, float]:
    """Return the medians (ns) of names that are there and of others, and p."""
    known, unknown = names(chosen, USERS), names(chosen, USERS)
    one = hashed(method)
    path.write_text("".join(f"{name}:{one}\n" for name in known))
    # What is asked of the file once a second must not fall on one kind more than on the other.
    authenticator = Authenticator(str(path), 0.0, clock=lambda: 0.0)
    authenticator.load()
    kinds = [True, False] * count
    chosen.shuffle(kinds)
    asked = [basic(chosen.choice(known if kind else unknown), f"{chosen.random():.12f}") for kind in kinds]
    times_ns(authenticator, asked[:10])
    gc.collect()
    gc.disable()
    times = times_ns(authenticator, asked)
    gc.enable()
    there = [ns for ns, kind in zip(times, kinds, strict=True) if kind]
    others = [ns for ns, kind in zip(times, kinds, strict=True) if not kind]
    return statistics.median(there), statistics.median(others), mann_whitney(there, others)


def remembered_us(path: Path, remembered: int, count: int) -> float:
    """Return what it costs to ask for one of so many that are remembered."""
    entries = [f"user{number}" for number in range(remembered)]
    one = generate_password_hash("secret", "pbkdf2:sha256:1")
    path.write_text("".join(f"{name}:{one}\n" for name in entries))
    authenticator = Authenticator(str(path), 300.0, clock=lambda: 0.0)
    authenticator.load()
    asked = [basic(name, "secret") for name in entries]
    for authorization in asked:
        assert authenticator.verify(authorization, "192.0.2.1")
    ask, best = authenticator.remembered, math.inf
    for _ in range(5):
        began = time.perf_counter_ns()
        for _ in range(max(1, count // remembered)):
            for authorization in asked:
                ask(authorization, 0.5)
        best = min(best, (time.perf_counter_ns() - began) / (max(1, count // remembered) * remembered))
    assert ask(asked[0], 0.5) == entries[0]
    return best / 1000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    chosen = random.Random()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "users")
        print(f"{'':18}{'checks':>8}{'known':>12}{'unknown':>12}{'p':>9}")
        for method, share in CASES.items():
            checks = max(20, int(count * share))
            known, unknown, p = compare(path, method, checks, chosen)
            print(f"{method:18}{checks:>8}{known / 1000:>12.2f}{unknown / 1000:>12.2f}{p:>9.3f}")
        print(f"remembered, of 1,000: {remembered_us(path, 1000, 50_000):.2f} us")


if __name__ == "__main__":
    main()
