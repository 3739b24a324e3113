"""Fuzzing for as long as one likes: `python -m tests.fuzz --seconds 300`. Exit code 1 if the invariant breaks."""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import sys
import time
from collections.abc import Sequence
from random import Random

from tests.fuzz import pure, wire
from tests.fuzz.grammar import Case, case, split

CASES_AT_ONCE = 2000
CLIENTS_A_ROUND = 100
# No batch takes a tenth of this. Past it something hangs: every thread's stack is printed, and the exit code is 1.
HANGS_AFTER_S = 120.0
SHRINKING_S = 10.0

_EPILOG = """\
The parser alone and a server with clients take turns. A case of the parser is reproduced to the byte; what the clients
of a server do is, too, but not how the threads interleave: repeat a round that has failed until it fails again.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Send broken requests to the parser and to a server until the time is up or something is wrong.",
        epilog=_EPILOG,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="where to start (default: the time)")
    parser.add_argument("--only", metavar="PART:NUMBER", help="one case (pure:123) or one round (wire:4) of that seed")
    options = parser.parse_args(arguments)
    seed = int(time.time()) if options.seed is None else options.seed
    try:
        if options.only:
            part, _, number = options.only.partition(":")
            return 0 if {"pure": one_case, "wire": one_round}[part](seed, int(number)) else 1
        return 0 if run(seed, options.seconds) else 1
    finally:
        faulthandler.cancel_dump_traceback_later()


def run(seed: int, seconds: float) -> bool:
    """Take turns until the time is up; return whether the invariant has held."""
    until = time.monotonic() + seconds
    cases = 0
    for number in itertools.count():
        print(f"seed {seed}: {cases:,} cases and {number} rounds held", flush=True)
        faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True, file=sys.__stderr__)
        for _ in range(CASES_AT_ONCE):
            if not one_case(seed, cases):
                return False
            cases += 1
            if time.monotonic() > until:
                break
        if not one_round(seed, number):
            return False
        if time.monotonic() > until:
            print(f"seed {seed}: {cases:,} cases and {number + 1} rounds held")
            return True
    raise AssertionError


def one_case(seed: int, number: int) -> bool:
    made = case(Random(f"{seed}:pure:{number}"), pure.LIMITS)
    error = _failure(made)
    if error is None:
        return True
    smallest = shrink(made)
    print(f"\nFAILED: {type(error).__name__}: {error}")
    print(f"\nsent: {made.stream!r}\nin pieces of {list(map(len, made.pieces))}")
    if len(smallest.stream) < len(made.stream):
        print(f"\na smaller one: {smallest.stream!r}\n{_failure(smallest)}")
    _tell_how(seed, f"pure:{number}")
    return False


def one_round(seed: int, number: int) -> bool:
    variant = list(wire.VARIANTS)[number % len(wire.VARIANTS)]
    try:
        wire.run_round(f"{seed}:wire:{number}", variant, clients=CLIENTS_A_ROUND)
    except Exception as error:
        print(f"\nFAILED: a server with {variant}: {type(error).__name__}: {error}")
        _tell_how(seed, f"wire:{number}")
        return False
    return True


def _tell_how(seed: int, which: str) -> None:
    print(f"\nto see it again: {sys.executable} -m tests.fuzz --seed {seed} --only {which}")


def _failure(made: Case) -> Exception | None:
    try:
        pure.check(made)
    except Exception as error:  # whatever it is
        return error
    return None


def shrink(made: Case) -> Case:
    """Return a case that fails, too, with all that can be left out left out."""
    until = time.monotonic() + SHRINKING_S
    size = len(made.stream) // 2
    while size:
        start = 0
        while start < len(made.stream) and time.monotonic() < until:
            stream = made.stream[:start] + made.stream[start + size :]
            smaller = Case(stream, split(Random(0), stream), made.mutations)
            if _failure(smaller) is None:
                start += size
            else:
                made = smaller
        size //= 2
    return made


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
