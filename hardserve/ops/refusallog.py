"""What was refused and cut, summed up for the error log: however many clients misbehave, it stays readable.

The first event of a name is logged at once, so that who tests or is hit for the first time sees it. What follows is
counted, and a line says how much it was every ten seconds, until ten seconds pass without any:

    1 request refused: header_deadline, 192.0.2.7
    1,204 requests refused: header_deadline, 17 clients, last 10 s
    12 connections closed: first_byte_deadline, 192.0.2.7, last 10 s

Every event is counted in one line, so the numbers add up. The name is the one in the access log, where each refusal
has a line of its own. At most one line per name in ten seconds, and there are only as many names as are declared.

I/O thread only, and pure: time is passed in as monotonic seconds, and lines go to a function. Whose address a client
goes by is not for this module to know.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hardserve import refusals
from hardserve.refusals import Cut, DryRun, Refusal

WINDOW_S = 10.0
# Of the clients behind one summary, how many are told apart.
MAX_CLIENTS = 1000

# Those that are given to whoever only connected.
_OF_CONNECTIONS = frozenset(
    refusal.name
    for refusal in (
        refusals.CONNECTIONS_FULL,
        refusals.NO_DESCRIPTORS,
        refusals.CLIENT_CONNECTIONS,
        refusals.CLIENT_CONNECTION_RATE,
        refusals.BANNED,
        refusals.PEER_NOT_TRUSTED,
    )
)


@dataclass(slots=True)
class _Tally:
    """What is not logged yet of one name."""

    event: Refusal | Cut | DryRun
    since: float  # when the window began, with a line in the log
    total: int = 0  # since the start
    count: int = 0
    clients: set[str] = field(default_factory=set)


class RefusalLog:
    """Counts events and writes lines through `log`, a function of level and text. I/O thread only.

    Events below `level`, the least that the log takes, are in `totals` and nowhere else.
    """

    __slots__ = ("_due_at", "_log", "_tallies", "level")

    def __init__(self, log: Callable[[int, str], None], level: int = logging.DEBUG) -> None:
        self._log = log
        self.level = level
        self._tallies: dict[str, _Tally] = {}
        self._due_at = math.inf  # when the first window ends that has something in it

    def __repr__(self) -> str:
        pending = sum(tally.count for tally in self._tallies.values())
        return f"<RefusalLog {pending} events to sum up, {len(self._tallies)} names>"

    def add(self, event: Refusal | Cut | DryRun, client: str, now: float) -> bool:
        """Count one `event`, and log it if it is the first after a quiet time; return whether to ask `wait_s` again."""
        tally = self._tallies.get(event.name)
        if tally is None:
            tally = self._tallies[event.name] = _Tally(event, -math.inf)
        tally.total += 1
        if event.level < self.level:
            return False
        first = tally.count == 0
        tally.count += 1
        if len(tally.clients) < MAX_CLIENTS:
            tally.clients.add(client)
        if first:
            end = tally.since + WINDOW_S
            if end <= now:  # there was nothing in a window that is over
                self._write(tally, now, at_once=True)
            else:
                self._due_at = min(self._due_at, end)
        return first

    def due(self, now: float) -> None:
        """Log what the windows hold that are over by `now`."""
        if now < self._due_at:
            return
        self._due_at = math.inf
        for tally in self._tallies.values():
            if tally.count:
                if tally.since + WINDOW_S <= now:
                    self._write(tally, now)
                else:
                    self._due_at = min(self._due_at, tally.since + WINDOW_S)

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until `due` is worth calling, None while nothing waits to be summed up."""
        return None if self._due_at == math.inf else max(0.0, self._due_at - now)

    def flush(self, now: float) -> None:
        """Log what is left, at the end."""
        for tally in self._tallies.values():
            if tally.count:
                self._write(tally, now)
        self._due_at = math.inf

    def totals(self) -> Mapping[str, int]:
        """Return how many events of each name there were since the start, logged or not."""
        return {name: tally.total for name, tally in self._tallies.items()}

    def _write(self, tally: _Tally, now: float, *, at_once: bool = False) -> None:
        """Log what `tally` holds, and begin its next window."""
        span = "" if at_once else f", last {max(1, round(now - tally.since))} s"
        self._log(tally.event.level, f"{_what(tally)}: {tally.event.name}, {_who(tally.clients)}{span}")
        tally.since = now
        tally.count = 0
        tally.clients.clear()


def _what(tally: _Tally) -> str:
    event = tally.event
    if isinstance(event, DryRun):
        return f"{tally.count:,} request{'' if tally.count == 1 else 's'} past a limit on trial and let in"
    noun = "connection" if isinstance(event, Cut) or event.name in _OF_CONNECTIONS else "request"
    done = "closed" if isinstance(event, Cut) else "refused"
    return f"{tally.count:,} {noun}{'' if tally.count == 1 else 's'} {done}"


def _who(clients: set[str]) -> str:
    if len(clients) == 1:
        return next(iter(clients))  # whom an operator may want to do something about
    return f"{len(clients):,}{'+' if len(clients) == MAX_CLIENTS else ''} clients"
