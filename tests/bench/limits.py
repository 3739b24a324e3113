"""One command that holds rate limiting to its bars: `python -m tests.bench.limits`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from statistics import median

from hardserve.settings import RateLimitingSettings

from .command import Sampled, from_1_to, has_programs, parser, run
from .hostile_normal import ADDRESS, Felt, NormalClient
from .limits_forged import SOURCE, start_forging
from .limits_load import Load, Used, Watch, ask, drive
from .limits_store import measure
from .peers import OURS, REPOSITORY, SERVERS, Run
from .process import Running, free_port, running
from .report import Spread, compare, spread

PARTS = {
    "default": "what the default rule costs Flask hello, when it refuses nobody",
    "decision": "one decision with 100,000 clients present, sliding window",
    "memory": "a million clients, each of them new",
    "refusals": "refusals a second from one client, against Flask hello",
    "flood": "a normal client while another one sends as fast as it can",
    "forged": "the same while a trusted proxy forwards for {forged:,} addresses",
}
FORGED = 200_000
RATE = 25
_EPILOG = """\
Parts:
{parts}

The server is the real command with its default settings, unless a part says otherwise; wrk and all
that floods is at 127.0.0.1 or, as a proxy, {proxy}. Networks like these are never banned, so every
request of a flood is read and refused. Rounds are interleaved, ratios are taken within a round,
printed are medians.

default: a round starts one server with the rule at 1,000,000/second and one without it, and loads
them in turns (A B B A, then B A A B), so that what drifts falls on both. CPU us is the server's
processor time for a request, which is less noisy than how many wrk gets.
decision, memory: in a process of its own, no sockets. Processor time leaves out what others take.
refusals: the rule is 1/second, and the app counts its calls.
flood, forged: the normal client is {normal}, asks {rate} times a second, sends when a request is due
and gives it 5 seconds. In flood the rule is the default one, so what it lets in reaches the app.
In forged each address asks once, so the default rule refuses none of them and the app is as busy as
it can be; then it is done again with a rule whose keys are remembered for long.

Exit code 1 when a bar is missed. On two cores, do nothing else meanwhile: "others" is the share of
the machine that went elsewhere. All parts take about nine minutes.
"""

GENEROUS = ("--rate-limiting-default=1000000/second", "--rate-limiting-default-burst=1000000")
OFF = ("--rate-limiting-default=off",)
# The benchmarks' servers are started with a generous rule; this is the one that people get.
_RATES = RateLimitingSettings()
AS_SHIPPED = (f"--rate-limiting-default={_RATES.default}", f"--rate-limiting-default-burst={_RATES.default_burst}")
STRICT = ("--rate-limiting-default=1/second", "--rate-limiting-default-burst=0")
LONG_RULE = '[[rate_limit]]\nlimit = "3000/minute"\n'
STRICT_PER_S = 1

MOST_KEYS = 50_000
MOST_GROWN_MB = 30.0
_APP = f"{__package__}.limits_app:app"
_SETTLE_S = 0.5
# Sources of questions beside the flood: each of them asks once.
_BEFORE, _AFTER = "127.0.0.3", "127.0.0.4"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not has_programs({"wrk": "wrk"}):
        return 1
    return run(Bench(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    epilog = _EPILOG.format(parts="{parts}", proxy=SOURCE, normal=ADDRESS, rate=RATE)
    parts = {name: what.format(forged=FORGED) for name, what in PARTS.items()}
    found = parser("limits", parts, description=__doc__, epilog=epilog)
    option = found.add_argument
    option("--rounds", type=from_1_to(50), help="of each part (default 8 of default, else 3, and 1 of forged)")
    option("--seconds", type=from_1_to(60), default=3, help="of load in one sample, twice that in flood (default 3)")
    option("--connections", type=from_1_to(256), default=32, help="of wrk (default 32)")
    option("--forged", type=from_1_to(1_000_000), default=FORGED, help=f"addresses (default {FORGED})")
    return found.parse_args(arguments)


class Bench(Sampled):
    """The parts, the bars they were held to, and what else they found."""

    # --- parts ---

    def default(self) -> None:
        for number in range(self.rounds(8)):
            with self._serving(*GENEROUS) as on, self._serving(*OFF) as off:
                for it in (on, off):
                    drive(it, 1, self.options.connections)
                loads: dict[str, list[Load]] = {"on": [], "off": []}
                for name in ("on", "off", "off", "on") if number % 2 == 0 else ("off", "on", "on", "off"):
                    it = on if name == "on" else off
                    loads[name].append(drive(it, self.options.seconds, self.options.connections))
                for name, pair in loads.items():
                    self._expect_no_refusal(f"default, {name}", pair)
                    self.add("default", name, of_loads(pair))
        found = self.results["default"]
        self.bar("default rule on, req/s of off", 0.97, "times", compare(found["on"], found["off"], "rps"), least=True)

    def decision(self) -> None:
        for _ in range(self.rounds(3)):
            for name in ("hit", "check"):
                self.add("decision", name, measure(name, REPOSITORY))
        for name, what in (("hit", "a decision of the store"), ("check", "a whole rule")):
            found = self.results["decision"][name]
            self.bar(f"{what}, median", 6.0, "us", spread(found, "median wall"))
            for figure in ("longest CPU", "filling, longest CPU", "longest wall", "filling, longest wall"):
                self.bar(f"{what}, {figure}", 1000.0, "us", spread(found, figure))

    def memory(self) -> None:
        cases = ("flooded-limiter", "flooded-sliding-window-counter", "flooded-moving-window", "flooded-burst")
        for name in cases:
            figures = measure(name, REPOSITORY)
            self.add("memory", name, figures)
            self.bar(f"1,000,000 clients, {name}: keys", MOST_KEYS, "", Spread.of([figures["most keys"]]))
            self.bar(f"1,000,000 clients, {name}: RSS", MOST_GROWN_MB, "MB", Spread.of([figures["grown MB"]]))

    def refusals(self) -> None:
        beyond = []
        for _ in range(self.rounds(3)):
            with self._serving(*OFF) as it:
                drive(it, 1, self.options.connections)
                load = drive(it, self.options.seconds, self.options.connections)
                self._expect_no_refusal("refusals, hello", [load])
                self.add("refusals", "hello", of_loads([load]))
            with self._serving(*STRICT) as it:
                drive(it, 1, self.options.connections)
                began, calls = time.monotonic(), int(ask(it, "/calls", _BEFORE))
                load = drive(it, self.options.seconds, self.options.connections)
                calls = int(ask(it, "/calls", _AFTER)) - calls
                beyond.append(max(0, calls - (ceil((time.monotonic() - began) * STRICT_PER_S) + 1)))
                sample = of_loads([load])
                share = load.refused / max(1, load.requests)
                self.add("refusals", "429", {**sample, "rps": load.rps * share, "refused": share, "calls": calls})
                if load.broken:
                    self.problems.append(f"refusals: {load.broken} connections of wrk failed")
        found = self.results["refusals"]
        self.bar("refusals/s, of hello's req/s", 3.0, "times", compare(found["429"], found["hello"], "rps"), least=True)
        self.bar("calls of the app beyond what the limit lets in", 0, "", Spread.of(beyond))

    def flood(self) -> None:
        with self._serving(*AS_SHIPPED) as it, NormalClient(it.run.port, rate=RATE) as client:
            time.sleep(2.0)  # warm up
            for _ in range(self.rounds(3)):
                seconds = 2 * self.options.seconds
                self._quiet("flood", it, client, seconds)
                began = time.monotonic()
                load = drive(it, seconds, self.options.connections)
                felt = client.felt(began, began + load.used.took_s)
                refused = load.refused / load.used.took_s
                self.add("flood", "flooded", of_felt(felt, load.used) | {"refused/s": refused})
                time.sleep(_SETTLE_S)
        self._hold_to_bars("flood", "quiet", "flooded", "during the flood")

    def forged(self) -> None:
        for name, rule in (("default rule", ""), ("and 3000/minute", LONG_RULE)):
            for _ in range(self.rounds(1)):
                self._forge(name, rule)
            grown = spread(self.results["forged"][name], "grown MB")
            self.bar(f"{self.options.forged:,} forged addresses, {name}: RSS", MOST_GROWN_MB, "MB", grown)
            # How much longer it takes is no bar here: every worker is busy with somebody else.
            self._hold_to_bars("forged", f"quiet, {name}", name, f"{name}, forged addresses", times=False)

    # --- what they have in common ---

    @contextlib.contextmanager
    def _serving(self, *flags: str, config: str = "") -> Iterator[Running]:
        with tempfile.TemporaryDirectory(prefix="hardserve-limits-") as directory:
            if config:
                path = Path(directory, "hardserve.toml")
                path.write_text(config)
                flags = (*flags, "--config", str(path))
            run = Run(free_port(), Path(directory), app=_APP, options=flags)
            with running(SERVERS[OURS], run) as it:
                yield it
                said = it.run.output.read_text(errors="replace")
                if "Traceback" in said:
                    self.problems.append(f"a traceback: {it.last_words()}")

    def _quiet(self, part: str, it: Running, client: NormalClient, seconds: float, name: str = "quiet") -> None:
        watch, began = Watch(it), time.monotonic()
        time.sleep(seconds)
        felt = client.felt(began, time.monotonic())
        self.add(part, name, of_felt(felt, watch.used()))
        if felt.problems:
            self.problems.append(f"{part}: not answered when quiet: {felt.problems}")

    def _forge(self, name: str, rule: str) -> None:
        with (
            self._serving(*AS_SHIPPED, f"--proxy-trusted={SOURCE}", config=rule) as it,
            NormalClient(it.run.port, rate=RATE) as client,
        ):
            drive(it, 1, self.options.connections)  # what grows by then is the app's
            time.sleep(_SETTLE_S)
            self._quiet("forged", it, client, 2.0 * self.options.seconds, f"quiet, {name}")
            before = most = it.memory().rss_bytes
            watch, began = Watch(it), time.monotonic()
            sender = start_forging(it.run.port, self.options.forged, REPOSITORY)
            try:
                while sender.poll() is None:
                    time.sleep(_SETTLE_S)
                    most = max(most, it.memory().rss_bytes)
                said, _ = sender.communicate()
            finally:
                sender.kill()
            used, ended = watch.used(), time.monotonic()
            statuses: dict[str, int] = json.loads(said)
            figures = {f"answered {status}": float(count) for status, count in sorted(statuses.items()) if count}
            sent = sum(statuses.values()) / used.took_s
            grown = {"sent/s": sent, "grown MB": (most - before) / 1e6, **figures}
            self.add("forged", name, of_felt(client.felt(began, ended), used) | grown)
            if statuses.get("none"):
                self.problems.append(f"forged, {name}: {statuses['none']} were not sent in time")
            words = [line for line in it.run.output.read_text().splitlines() if "rate limits:" in line]
            for line in words:
                self.note(f"the server says: {line}")

    def _hold_to_bars(self, part: str, quiet: str, flooded: str, what: str, *, times: bool = True) -> None:
        found = self.results[part]
        lost = spread(found[flooded], "unanswered")
        self.bar(f"normal client {what}: not answered", 0, "", lost and Spread(lost.high, lost.low, lost.high))
        if times:
            ratio = compare(found[flooded], found[quiet], "p50 ms")
            self.bar(f"normal client {what}: median of quiet", 2.0, "times", ratio)

    def _expect_no_refusal(self, what: str, loads: Sequence[Load]) -> None:
        if wrong := sum(load.refused + load.broken for load in loads):
            self.problems.append(f"{what}: {wrong} errors in wrk")


# --- figures ---


def of_loads(loads: Sequence[Load]) -> dict[str, float]:
    """One sample of loads that were as long as each other."""
    return {
        "rps": sum(load.rps for load in loads) / len(loads),
        "CPU us": sum(load.server_us for load in loads) / len(loads),
        "p50 ms": median(load.p50_ms for load in loads),
        "others": max(load.used.others for load in loads),
    }


def of_felt(felt: Felt, used: Used) -> dict[str, float]:
    return {
        "requests": felt.requests,
        "unanswered": felt.unanswered,
        "p50 ms": felt.p50_ms,
        "p99 ms": felt.p99_ms,
        "max ms": felt.max_ms,
        "server's CPU": used.server_s / used.took_s,
        "others": used.others,
    }


if __name__ == "__main__":
    sys.exit(main())
