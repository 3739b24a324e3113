"""Medians, ratios, the issue's bars, and tables. Pure: takes samples, returns values and text.

A sample is a mapping from a figure's name to its value in one round; None where the server did not
start in that round. Ratios are taken within a round, because the machine's speed drifts between
rounds, and then the median of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from .peers import OURS

Sample = Mapping[str, float]
Rounds = Sequence[Sample | None]
Results = Mapping[str, Mapping[str, Rounds]]
"""part ("hello", "sleep", "idle") → server → its samples, one a round"""

SLEEP_THREADS = 8
SLEEP_S = 0.020
MIB = 1024 * 1024

DISTURBED = 0.1


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(median(values), min(values), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise. `measured` is None when a server it needs was not measured."""

    what: str
    limit: float
    at_least: bool
    unit: str
    measured: Spread | None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        value = self.measured.median
        return value >= self.limit if self.at_least else value <= self.limit

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"met": self.met}


def spread(rounds: Rounds, figure: str) -> Spread | None:
    return Spread.of([sample[figure] for sample in rounds if sample and figure in sample])


def compare(
    ours: Rounds, theirs: Rounds, figure: str, how: Callable[[float, float], float] = lambda a, b: a / b
) -> Spread | None:
    """`how(ours, theirs)` of a figure in each round that both took part in."""
    pairs = [
        (a[figure], b[figure]) for a, b in zip(ours, theirs, strict=True) if a and b and figure in a and figure in b
    ]
    return Spread.of([how(a, b) for a, b in pairs])


def fastest(results: Mapping[str, Rounds], names: Sequence[str]) -> str:
    """Of several setups of one peer, the one with the most requests a second; "" when none was measured."""
    measured = {name: found for name in names if (found := spread(results.get(name, ()), "rps"))}
    return max(measured, key=lambda name: measured[name].median, default="")


def bars(results: Results) -> list[Bar]:
    """The promises of the benchmark against what was measured, in the order they were made."""
    hello = results.get("hello", {})
    ours = hello.get(OURS, ())

    def against(peer: str, figure: str = "rps", **how: Callable[[float, float], float]) -> Spread | None:
        return compare(ours, hello[peer], figure, **how) if OURS in hello and peer in hello else None

    uwsgi = fastest(hello, ["uwsgi", "uwsgi-close"])
    granian = fastest(hello, ["granian-4", "granian-1"])
    sleep = results.get("sleep", {}).get(OURS, ())
    idle = results.get("idle", {}).get(OURS, ())
    return [
        Bar("req/s against waitress, 4 threads", 2.5, True, "times", against("waitress")),
        Bar("req/s against nginx + gunicorn, 4 threads", 3.0, True, "times", against("nginx-gunicorn")),
        Bar("req/s against nginx + gunicorn, 3 sync workers", 1.1, True, "times", against("nginx-sync3")),
        Bar(f"req/s against uWSGI ({uwsgi or 'not measured'})", 1.2, True, "times", against(uwsgi)),
        Bar(f"req/s against granian ({granian or 'not measured'})", 0.75, True, "times", against(granian)),
        Bar("99th percentile against waitress", 0.5, False, "times", against("waitress", "p99_ms")),
        Bar("20 ms app, share of 8/0.020 req/s", 0.97, True, "of it", spread(sleep, "share")),
        Bar("RSS of an idle connection", 3.0, False, "KiB", spread(idle, "kib_each")),
        Bar("req/s with idle connections, of without", 0.95, True, "of it", spread(idle, "kept")),
        Bar(
            "RSS after start beyond waitress",
            10.0,
            False,
            "MB",
            against("waitress", "rss_bytes", how=lambda a, b: (a - b) / 1e6),
        ),
        Bar("first answer beyond importing the app", 0.25, False, "s", spread(ours, "beyond_import_s")),
    ]


def disturbed(results: Results) -> list[str]:
    """Which samples were taken while something else used the machine.

    Such a figure may be too high as well as too low: threads of one Python process hand the
    interpreter lock over more cheaply when the other core is taken.
    """
    return [
        f"{name}, {part}, round {number}: {sample['others']:.0%} of the machine went elsewhere"
        for part, servers in results.items()
        for name, rounds in servers.items()
        for number, sample in enumerate(rounds, 1)
        if sample and sample.get("others", 0.0) > DISTURBED
    ]


def hello_table(results: Mapping[str, Rounds]) -> str:
    rows = [
        [
            name,
            _cell(rounds, "rps", "{:,.0f}", low_high=True),
            _ratio(compare(results[OURS], rounds, "rps")) if OURS in results else "",
            _cell(rounds, "p50_ms", "{:.1f}"),
            _cell(rounds, "p99_ms", "{:.1f}", low_high=True),
            _cell(rounds, "rss_bytes", "{:.1f}", scale=MIB),
            _cell(rounds, "pss_bytes", "{:.1f}", scale=MIB),
            _cell(rounds, "rss_loaded_bytes", "{:.1f}", scale=MIB),
            _cell(rounds, "processes", "{:.0f}"),
            _cell(rounds, "listening_s", "{:.2f}"),
            _cell(rounds, "answer_s", "{:.2f}"),
            _cell(rounds, "beyond_import_s", "{:.2f}"),
            _cell(rounds, "cpu_us", "{:.0f}"),
            _cell(rounds, "others", "{:.0%}"),
            _cell(rounds, "logged", "{:.0%}"),
            _cell(rounds, "errors", "{:.0f}"),
        ]
        for name, rounds in results.items()
    ]
    head = ["Flask hello, 32 connections", "req/s (min-max)", "ours/its", "p50 ms", "p99 ms (min-max)"]
    head += ["RSS MiB", "PSS MiB", "RSS loaded", "proc.", "listens s", "answers s", "-import s"]
    head += ["CPU us/req", "others", "logged", "errors"]
    return table(head, rows)


def sleep_table(results: Mapping[str, Rounds]) -> str:
    rows = [
        [
            name,
            _cell(rounds, "rps", "{:.1f}", low_high=True),
            _cell(rounds, "share", "{:.1%}"),
            _cell(rounds, "ceiling_share", "{:.1%}"),
            _cell(rounds, "p99_ms", "{:.0f}"),
        ]
        for name, rounds in results.items()
    ]
    return table(["20 ms app, 32 connections, 8 threads", "req/s (min-max)", "of 8/0.020", "no server", "p99 ms"], rows)


def idle_table(results: Mapping[str, Rounds], count: int) -> str:
    rows = [
        [
            name,
            _cell(rounds, "kib_each", "{:.2f}", low_high=True),
            _cell(rounds, "rps_without", "{:,.0f}"),
            _cell(rounds, "rps_with", "{:,.0f}"),
            _cell(rounds, "kept", "{:.1%}", low_high=True),
            _cell(rounds, "p99_with_ms", "{:.1f}"),
            _cell(rounds, "open_at_end", "{:,.0f}"),
        ]
        for name, rounds in results.items()
    ]
    head = [f"{count:,} idle connections", "KiB each (min-max)", "req/s without", "with", "kept (min-max)"]
    return table([*head, "p99 ms with", "open at end"], rows)


def bar_table(promises: Sequence[Bar]) -> str:
    rows = []
    for bar in promises:
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[bar.met]
        required = f"{'at least' if bar.at_least else 'at most'} {bar.limit:g} {bar.unit}"
        found = bar.measured
        measured = f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})" if found else "-"
        rows.append([bar.what, required, measured, verdict])
    return table(["bar", "required", "measured (min to max)", ""], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need be: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def _cell(rounds: Rounds, figure: str, form: str, *, scale: float = 1.0, low_high: bool = False) -> str:
    found = spread(rounds, figure)
    if found is None:
        return "-"
    text = form.format(found.median / scale)
    if low_high and found.low != found.high:
        text += f" ({form.format(found.low / scale)}-{form.format(found.high / scale)})"
    return text


def _ratio(found: Spread | None) -> str:
    return f"{found.median:.2f}" if found else "-"
