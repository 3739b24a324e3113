"""What the commands that hold hardserve to bars have in common: their options, and how their parts are run.

A command is a mapping from the names of its parts to what they are, and a `Parts` with a method for each. Must not
know what any of them measures.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from . import report
from .peers import program
from .process import StartError
from .report import Bar, Sample, Spread, bar_table, compare, spread, table

T = TypeVar("T")


def parser(name: str, parts: Mapping[str, str], *, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all have; `{parts}` in the epilog becomes the list of them."""
    found = argparse.ArgumentParser(
        prog=f"python -m {__package__}.{name}",
        description=description,
        epilog=epilog.replace("{parts}", "\n".join(f"  {part:12}{what}" for part, what in parts.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = found.add_argument
    option("--parts", type=some_of(parts), default=list(parts), metavar="A,B", help=f"of {','.join(parts)}")
    option("--json", type=Path, metavar="FILE", help="write every figure there")
    return found


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads "b,a" as some of the known names, in their own order."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def from_1_to(limit: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        number = int(text)
        if not 1 <= number <= limit:
            raise argparse.ArgumentTypeError(f"expected 1 to {limit}")
        return number

    return count


def has_programs(packages: Mapping[str, str]) -> bool:
    """Return whether all these programs are there, or say which is not and the package that it is in."""
    for name, package in packages.items():
        if not program(name):
            print(f"no {name} program, so nothing can be measured: apt-get install {package}", file=sys.stderr)
            return False
    return True


class Parts:
    """The parts of a command, the bars they were held to, and what else they found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.bars: list[Bar] = []
        self.problems: list[str] = []
        self.options = options

    def tables(self) -> list[str]:
        """What is printed above the bars."""
        return []

    def remarks(self) -> list[str]:
        """What is printed below them."""
        return []

    def figures(self) -> dict[str, object]:
        """What goes into the JSON file besides bars and problems."""
        return {}

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Sampled(Parts):
    """Parts whose figures are samples: part → who → a sample for each round."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.results: dict[str, dict[str, list[Sample | None]]] = {}

    def tables(self) -> list[str]:
        return [figures_table(name, found) for name, found in self.results.items()]

    def remarks(self) -> list[str]:
        return [f"disturbed: {disturbance}" for disturbance in report.disturbed(self.results)]

    def figures(self) -> dict[str, object]:
        return {"samples": self.results}

    def rounds(self, usual: int) -> int:
        return self.options.rounds or usual

    def add(self, part: str, name: str, sample: Mapping[str, float]) -> None:
        self.results.setdefault(part, {}).setdefault(name, []).append(sample)
        glance = ", ".join(f"{figure} {form(value)}" for figure, value in sample.items())
        self.note(f"{part}, {name}: {glance}")

    def against(
        self, part: str, who: str, peer: str, figure: str, how: Callable[[float, float], float] = lambda a, b: a / b
    ) -> Spread | None:
        """Return `how(who's, peer's)` of a figure in each round, None if one of them was not measured."""
        found = self.results.get(part, {})
        return compare(found[who], found[peer], figure, how) if who in found and peer in found else None

    @staticmethod
    def in_turn(those: Sequence[T], number: int) -> Sequence[T]:
        """Return them as round `number` has them: another one is the first."""
        first = number % len(those)
        return [*those[first:], *those[:first]]

    def bar(self, what: str, limit: float, unit: str, measured: Spread | None, *, least: bool = False) -> None:
        self.bars.append(Bar(what, limit, least, unit, measured))


def run(parts: Parts) -> int:
    """Run the parts that the options name, print what they found, and return the exit code: 1 when a bar is missed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that `finally` runs and the servers end
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server inherits it
    began = time.monotonic()
    for part in parts.options.parts:
        try:
            getattr(parts, part)()
        except KeyboardInterrupt:
            parts.problems.append("interrupted")
            break
        except (StartError, RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            parts.problems.append(f"{part}: {error}")
    print("\n" + "\n\n".join([*parts.tables(), bar_table(parts.bars)]))
    for line in (*parts.remarks(), *(f"problem: {problem}" for problem in parts.problems)):
        print(line)
    print(f"took {time.monotonic() - began:.0f} s")
    if parts.options.json:
        kept = {name: value for name, value in vars(parts.options).items() if name in ("parts", "rounds", "seconds")}
        document = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "options": kept,
            "problems": parts.problems,
            **parts.figures(),
            "bars": [bar.as_dict() for bar in parts.bars],
        }
        parts.options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if not parts.problems and all(bar.met for bar in parts.bars) else 1


def figures_table(name: str, found: Mapping[str, Sequence[Sample | None]]) -> str:
    """The median of each figure, and of how many rounds."""
    figures = list(dict.fromkeys(figure for rounds in found.values() for sample in rounds for figure in sample or ()))
    rows = []
    for who, rounds in found.items():
        cells = [spread(rounds, figure) for figure in figures]
        rows.append([who, str(len(rounds)), *(form(cell.median) if cell else "" for cell in cells)])
    return table([name, "rounds", *figures], rows)


def form(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.2f}"
