"""One command that attacks hardserve while a normal client measures: `python -m tests.bench.hostile`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from . import hostile_endless as endless
from .command import Parts, from_1_to, parser, run
from .hostile_clients import KINDS, Fate, hostile_clients
from .hostile_normal import RATE, Felt, NormalClient
from .peers import OURS, REPOSITORY, SERVERS, Run
from .process import Running, free_port, running
from .report import Bar, Spread, table

PARTS = {
    "many": "slow heads, slow bodies, slow readers and idle connections from many addresses",
    "one": "the same from one address",
    "wait": "what hostile connections that only wait cost",
    "endless": "requests that never end, at full speed",
    "refusals": "a flood of requests that are refused",
    "uploads": "bodies sent as fast as they are taken, in one block and in chunks of one byte",
    "peers": "the first part against other servers, for comparison",
}
_EPILOG = """\
Parts:
{parts}

The server is the real command with its default settings, unless a part says otherwise. The hostile
clients are a process of their own: {battery},
spread over 500 addresses of 127.0.0.0/8. One that the server ends comes back within seconds, so the
attack stays at strength.

The normal client is one address that asks for a small Flask page {rate} times a second on a few
kept connections, every eighth time on a new one. It sends when a request is due, answered or not, and
gives a request {patience:g} seconds. Quiet and attacked phases alternate on the same server, ratios
are taken within a round, and an attacked phase begins with the first hostile connection. A request
that was not answered with 200 counts as not answered.

Exit code 1 when a bar is missed. The normal client, the hostile clients and the server share the
machine: on two cores, do nothing else meanwhile. All parts take about four minutes.
"""

BATTERY = {"head": 1000, "body": 1000, "reader": 500, "idle": 1000}
WAITING = {"half-head": 1000, "half-body": 1000, "idle": 1000}
FLOOD = {"malformed": 24, "malformed-pipeline": 8}
MOST_OF_A_KIND = 5000
UPLOADS = ({"pour-block": 16}, {"pour-crumbs": 16})
PEERS = ("waitress", "gunicorn", "nginx-gunicorn")

P99_TIMES = 3.0
WAITING_CORE_SHARE = 3.0
# Each size is measured several times, and the least disturbed counts. Quadratic work would double at every step.
LINEAR_TIMES = 1.5
LINEAR_REPEATS = 3
# What is read from one connection before the others have their turn: so long does everybody wait for it.
READ_BYTES = 64 * endless.KIB
# The step that crossed the cap was sent whole, and a line or a chunk is counted when it is there.
CAP_SLACK_BYTES = 2 * endless.STEP_BYTES

_ADDRESSES = 500
_SETTLE_S = 1.0
_REASON = re.compile(rb" refused=([a-z_0-9]+)")
# Waiting connections stay for as long as this part lasts.
_PATIENT = (
    *("--timeouts-first-byte=1h", "--timeouts-header=300s", "--timeouts-body=1h", "--timeouts-keep-alive=1h"),
    *("--limits-body-rate=0", "--timeouts-connection=24h"),
)


@dataclass(frozen=True, slots=True)
class Round:
    """A quiet and an attacked phase. `core_share` is the server's processor time in the attacked one, of one core."""

    quiet: Felt
    attacked: Felt
    core_share: float
    fates: Mapping[str, Fate]
    reasons: Mapping[str, int]

    @property
    def p99_times(self) -> float:
        return self.attacked.p99_ms / self.quiet.p99_ms


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return run(Battery(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    epilog = _EPILOG.format(parts="{parts}", battery=in_words(BATTERY), rate=RATE, patience=5)
    found = parser("hostile", PARTS, description=__doc__, epilog=epilog)
    option = found.add_argument
    option("--seconds", type=from_1_to(60), default=20, help="of attack in one round (default 20, at most 60)")
    option("--rounds", type=from_1_to(5), default=2, help="of quiet and attack (default 2, at most 5)")
    option("--battery", type=counts, default=BATTERY, metavar="KIND=N,..", help=f"instead of {in_words(BATTERY)}")
    return found.parse_args(arguments)


def counts(text: str) -> dict[str, int]:
    """Read "head=10,idle=5". Raises argparse.ArgumentTypeError."""
    found = {}
    for item in text.split(","):
        name, _, count = item.partition("=")
        if name not in KINDS or not (count.isdecimal() and 1 <= int(count) <= MOST_OF_A_KIND):
            raise argparse.ArgumentTypeError(f"{item!r}: expected KIND=1..{MOST_OF_A_KIND}, of {', '.join(KINDS)}")
        found[name] = int(count)
    return found


def in_words(counts: Mapping[str, int]) -> str:
    """ "1,000 head, 500 reader" of a mapping from kinds to numbers."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


class Battery(Parts):
    """The parts, the bars they were held to, and what else they found."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._tables: list[str] = []
        self._rounds: dict[str, list[dict[str, object]]] = {}
        self._figures: dict[str, object] = {}
        self._felt: dict[str, list[Round]] = {}

    def tables(self) -> list[str]:
        return self._tables

    def figures(self) -> dict[str, object]:
        return {"rounds": self._rounds, "figures": self._figures}

    # --- parts ---

    def many(self) -> None:
        with self._serving() as it:
            rounds = self._attack("many addresses", it, self.options.battery, seconds=self.options.seconds)
        self._felt[OURS] = rounds
        self._hold_to_bars("many addresses", rounds)

    def one(self) -> None:
        seconds = max(4.0, self.options.seconds * 0.4)
        with self._serving() as it:
            rounds = self._attack("one address", it, self.options.battery, seconds=seconds, addresses=1)
        self._hold_to_bars("one address", rounds)

    def wait(self) -> None:
        seconds = max(4.0, self.options.seconds / 2)
        what = f"CPU while {sum(WAITING.values()):,} connections only wait"
        for name, flags in (("no deadline due", _PATIENT), ("default deadlines, ended ones come again", ())):
            with (
                self._serving(*flags) as it,
                hostile_clients(it.run.port, WAITING, REPOSITORY, addresses=_ADDRESSES) as clients,
            ):
                time.sleep(_SETTLE_S)
                used, began = cpu_s(it), time.monotonic()
                time.sleep(seconds)
                share = (cpu_s(it) - used) / (time.monotonic() - began) * 100
                fates = clients.close()
            self.note(f"{what}, {name}: {share:.2f}% of a core")
            self._tables.append(f"{what}: {name}: {share:.2f}% of a core\n\n{fate_table(fates)}")
            self._figures[f"waiting, {name}"] = {"core_percent": share, "fates": as_json(fates)}
            if flags:
                self._bar(f"{what}, {name}", WAITING_CORE_SHARE, "% of a core", share)
                held = min(fate.strength / fate.wanted for fate in fates.values())
                if held < 0.99:
                    self.problems.append(f"wait: only {held:.0%} of the connections were open: not what is measured")

    def endless(self) -> None:
        with self._serving() as it:
            self._find_caps(it)
        with self._serving(*endless.GROWING_FLAGS) as it:
            self._compare_costs(it)

    def refusals(self) -> None:
        seconds = max(4.0, self.options.seconds * 0.3)
        with self._serving() as it:
            rounds = self._attack("refusals", it, FLOOD, seconds=seconds, ramp_s=0.1, addresses=64)
        self._bar("refusals: requests not answered", 0, "", *[found.attacked.unanswered for found in rounds])

    def uploads(self) -> None:
        for clients in UPLOADS:
            name = in_words(clients)
            with self._serving() as it:
                rounds = self._attack(name, it, clients, seconds=4.0, quiet_s=3.0, rounds=1)
            self._bar(f"{name}: requests not answered", 0, "", *[found.attacked.unanswered for found in rounds])

    def peers(self) -> None:
        seconds = max(4.0, self.options.seconds * 0.3)
        for name in PEERS:
            if reason := SERVERS[name].missing():
                self.note(f"missing: {name}: {reason}")
                continue
            with self._serving(server=name) as it:
                self._felt[name] = self._attack(name, it, self.options.battery, seconds=seconds, rounds=1, quiet_s=3.0)
        self._tables.append(peer_table(self._felt))

    # --- what they have in common ---

    @contextlib.contextmanager
    def _serving(self, *flags: str, server: str = OURS) -> Iterator[Running]:
        with tempfile.TemporaryDirectory(prefix="hardserve-hostile-") as directory:
            idle = sum(self.options.battery.values())  # waitress and nginx refuse most of them otherwise
            run = Run(free_port(), Path(directory), idle=idle, app="attacked:app", options=flags)
            with running(SERVERS[server], run) as it:
                yield it
                said = it.run.output.read_text(errors="replace")
                if server == OURS and "Traceback" in said:
                    self.problems.append(f"a traceback: {it.last_words()}")

    def _attack(
        self,
        name: str,
        it: Running,
        counts: Mapping[str, int],
        *,
        seconds: float,
        rounds: int | None = None,
        quiet_s: float | None = None,
        addresses: int = _ADDRESSES,
        ramp_s: float = 2.0,
    ) -> list[Round]:
        """Alternate quiet and attack, and return what the normal client felt."""
        found: list[Round] = []
        quiet_s = quiet_s or max(3.0, seconds * 0.4)
        with NormalClient(it.run.port) as client:
            time.sleep(2 * _SETTLE_S)  # warm up
            for number in range(rounds or self.options.rounds):
                began = time.monotonic()
                time.sleep(quiet_s)
                quiet = client.felt(began, time.monotonic())
                reasons, used, began = count_reasons(it), cpu_s(it), time.monotonic()
                attack = hostile_clients(it.run.port, counts, REPOSITORY, addresses=addresses, ramp_s=ramp_s)
                with attack as clients:
                    time.sleep(max(1.0, began + seconds - time.monotonic()))
                    ended = time.monotonic()
                    share = (cpu_s(it) - used) / (ended - began)
                    fates = clients.close()
                attacked = client.felt(began, ended)
                time.sleep(_SETTLE_S)
                found.append(Round(quiet, attacked, share, fates, count_reasons(it) - reasons))
                self.note(
                    f"{name}, round {number + 1}: quiet p99 {quiet.p99_ms:.1f} ms, attacked {attacked.p99_ms:.1f} ms, "
                    f"{attacked.unanswered} of {attacked.requests} not answered"
                )
                if quiet.problems:
                    self.problems.append(f"{name}, round {number + 1}: not answered when quiet: {quiet.problems}")
        self._rounds[name] = [round_as_json(one) for one in found]
        last = found[-1]
        self._tables += [felt_table(name, found), fate_table(last.fates)]
        if last.reasons:
            self._tables[-1] += f"\nin the access log: {in_words(last.reasons)}"
        return found

    def _hold_to_bars(self, name: str, rounds: Sequence[Round]) -> None:
        lost = sum(found.attacked.unanswered for found in rounds)
        self._bar(f"{name}: requests not answered", 0, f"of {sum(found.attacked.requests for found in rounds)}", lost)
        self._bar(f"{name}: 99th percentile, of quiet", P99_TIMES, "times", *[found.p99_times for found in rounds])

    def _find_caps(self, it: Running) -> None:
        rows = []
        for name, thing in endless.ENDLESS.items():
            cut = endless.find_cap(it.run.port, thing)
            used, began = cpu_s(it), time.monotonic()
            rushed = endless.rush(it.run.port, thing)
            used, took = cpu_s(it) - used, time.monotonic() - began
            rows.append(
                [
                    name,
                    f"{thing.cap_bytes:,}",
                    f"{cut.sent_bytes:,}",
                    cut.answer,
                    f"{rushed.sent_bytes / endless.MIB:,.1f}",
                    rushed.answer,
                    f"{used * 1000:.1f}",
                    f"{took:.2f}",
                ]
            )
            self._bar(f"endless {name}: bytes from its cap", CAP_SLACK_BYTES, "", abs(cut.sent_bytes - thing.cap_bytes))
            if cut.answer == "cut":
                self.problems.append(f"endless {name}: ended without an answer")
        head = ["endless", "cap", "cut after", "answer", "rushed: MiB sent", "answer", "CPU ms", "took s"]
        self._tables.append(table(head, rows))

    def _compare_costs(self, it: Running) -> None:
        def used_s() -> float:
            return cpu_s(it)

        rows = []
        for name, growing in endless.GROWING.items():
            costs = [
                min(
                    endless.cost_per_byte_ns(it.run.port, growing, size, lambda: cpu_s(it))
                    for _ in range(LINEAR_REPEATS)
                )
                for size in growing.sizes
            ]
            rows += [
                [name if first else "", f"{size / endless.MIB:.2f}", f"{cost:.2f}", f"{cost * READ_BYTES / 1e6:.2f}"]
                for first, size, cost in zip((True, False, False), growing.sizes, costs, strict=True)
            ]
            self._figures[f"ns a byte, {name}"] = dict(zip(map(str, growing.sizes), costs, strict=True))
            times = [later / earlier for earlier, later in itertools.pairwise(costs)]
            self._bar(f"{name}: cost of a byte, when twice as long", LINEAR_TIMES, "times", *times)
        self._tables.append(table(["growing", "MiB", "ns of CPU a byte", "ms of CPU for 64 KiB"], rows))

    def _bar(self, what: str, limit: float, unit: str, *measured: float) -> None:
        self.bars.append(Bar(what, limit, False, unit, Spread.of(measured)))


def cpu_s(it: Running) -> float:
    """Processor time of the server, to the microsecond: /proc counts in hundredths of a second."""
    used = 0.0
    for pid in it.processes():
        with contextlib.suppress(OSError):
            used += time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns for a process
    return used


def count_reasons(it: Running) -> Counter[str]:
    """How often each refusal stands in the access log."""
    with contextlib.suppress(OSError):
        return Counter(reason.decode() for reason in _REASON.findall(it.run.access_log.read_bytes()))
    return Counter()


# --- tables ---


def felt_table(name: str, rounds: Sequence[Round]) -> str:
    rows = []
    for number, found in enumerate(rounds, 1):
        for phase, felt in (("quiet", found.quiet), ("attacked", found.attacked)):
            problems = ", ".join(f"{count} {problem}" for problem, count in felt.problems.items())
            rows.append(
                [
                    f"{name}, round {number}, {phase}",
                    f"{felt.requests:,}",
                    f"{felt.unanswered:,}" + (f" ({problems})" if problems else ""),
                    *(f"{value:.1f}" for value in (felt.p50_ms, felt.p99_ms, felt.max_ms)),
                    "" if phase == "quiet" else f"{found.p99_times:.1f}",
                    "" if phase == "quiet" else f"{found.core_share:.0%}",
                ]
            )
    head = ["the normal client", "requests", "not answered", "p50 ms", "p99 ms", "max ms", "times", "server's CPU"]
    return table(head, rows)


def fate_table(fates: Mapping[str, Fate]) -> str:
    rows = [
        [
            name,
            f"{fate.wanted:,}",
            f"{fate.strength:,.0f}",
            f"{fate.connected:,}",
            f"{fate.failed:,}",
            "-" if fate.lived_s is None else f"{fate.lived_s:.2f}",
            ", ".join(f"{answer} {count:,}" for answer, count in sorted(fate.answers.items())),
        ]
        for name, fate in fates.items()
    ]
    head = ["hostile", "wanted", "open", "connected", "failed", "lived s", "ended with"]
    return table(head, rows)


def peer_table(felt: Mapping[str, Sequence[Round]]) -> str:
    rows = [
        [
            name,
            *(f"{median(value(found) for found in rounds):.1f}" for value in _PEER_FIGURES.values()),
        ]
        for name, rounds in felt.items()
    ]
    return table(["attacked from many addresses", *_PEER_FIGURES], rows)


_PEER_FIGURES: Mapping[str, Callable[[Round], float]] = {
    "% answered": lambda found: 100 - 100 * found.attacked.unanswered / max(1, found.attacked.requests),
    "quiet p50": lambda found: found.quiet.p50_ms,
    "quiet p99": lambda found: found.quiet.p99_ms,
    "p50 ms": lambda found: found.attacked.p50_ms,
    "p99 ms": lambda found: found.attacked.p99_ms,
    "max ms": lambda found: found.attacked.max_ms,
}


def as_json(fates: Mapping[str, Fate]) -> dict[str, object]:
    return {name: asdict(fate) for name, fate in fates.items()}


def round_as_json(found: Round) -> dict[str, object]:
    return {
        "quiet": asdict(found.quiet),
        "attacked": asdict(found.attacked),
        "core_share": found.core_share,
        "fates": as_json(found.fates),
        "reasons": dict(found.reasons),
    }


if __name__ == "__main__":
    sys.exit(main())
