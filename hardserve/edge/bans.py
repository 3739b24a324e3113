"""Who is banned: clients that went on after they were refused, counted here and dropped for a while.

Pure: time is passed in as monotonic seconds. I/O thread only. It knows no socket and no address: a client is a text
that stands for it, as `networks.prefix_key` returns it, and whoever must never be banned must never come here.

How offences are counted. A client's first one opens a window of `within` seconds, and the first one after its end
opens the next. More than `after` in one window are a ban. So nobody is banned for fewer than `after` + 1 offences in
`within` seconds; and whoever commits 2 * `after` + 1 of them in any `within` seconds is, for no more than two windows
have a part in that time, and one of the two has `after` + 1. In between it is a matter of when the windows began. What
happens during a ban is not counted, and after it counting starts anew.

How bans grow. The first is `for_s`, each further one twice the one before, at most `ceiling_s`. A client that has been
free for `ceiling_s` since its last ban is as good as new.

What is forgotten, and when. Half of the table is for clients that are counted and half for those that were banned, and
neither half takes room from the other: a flood of new offenders costs no ban. Of the counted, those whose window is
over go when others come, two for each; with no room, the one goes whose last offence is the longest ago, so that who
keeps on stays. Of the banned, when one more is, those that are as good as new go; with no room, the one goes whose ban
ended, or will end, first. So a ban is cut short only by another ban, and when all that are remembered are still on.

The table is many small ones, and a client is in the one that its hash says; each has its share of the room. A dict of
all clients would take milliseconds whenever it grows. Python's hashes are seeded: nobody can aim at one of them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from operator import attrgetter
from typing import NamedTuple

from hardserve.values import format_duration

# Clients that are known at once, the counted and the banned: at most about 25 MB, and nothing until they come.
MAX_CLIENTS = 65_536
# Looked at for each that is added, so that the table shrinks faster than it grows.
FORGOTTEN_AT_ONCE = 2

_SHARE = 128  # clients in one of the small tables, up to twice as many: enough that they fill about evenly


class Ban(NamedTuple):
    """A ban that is on. `times` counts this one; `offences` are those of all of them, also those during a ban."""

    client: str
    remaining_s: float
    times: int
    offences: int


class _Banned(NamedTuple):
    """What is remembered of a client that was banned. A tuple, which garbage collection soon stops looking at."""

    until: float
    length_s: float
    times: int
    offences: int


class Bans:
    """Counts offences by client, and bans those that commit more than `after` within `within_s`; 0 bans nobody."""

    __slots__ = ("_after", "_banned", "_ceiling_s", "_counted", "_for_s", "_last_end", "_mask", "_room", "_within_s")

    def __init__(
        self, after: int, within_s: float, for_s: float, ceiling_s: float, *, max_clients: int = MAX_CLIENTS
    ) -> None:
        self.limit(after, within_s, for_s, ceiling_s)
        half = max(1, max_clients // 2)
        tables = 1 << max(0, (half // _SHARE).bit_length() - 1)
        self._mask = tables - 1
        self._room = half // tables
        # The end of the window and the offences in it so far, by when the last one was.
        self._counted: list[OrderedDict[str, tuple[float, int]]] = [OrderedDict() for _ in range(tables)]
        self._banned: list[dict[str, _Banned]] = [{} for _ in range(tables)]
        self._last_end = -math.inf  # of all bans so far: after it nobody has to be looked up

    def __repr__(self) -> str:
        counted, banned = sum(map(len, self._counted)), sum(map(len, self._banned))
        return f"<Bans {counted} clients counted, {banned} banned or remembered>"

    def limit(self, after: int, within_s: float, for_s: float, ceiling_s: float) -> None:
        """Ban by other limits from now on. Bans that are on go on as they began."""
        self._after = after
        self._within_s = within_s
        self._for_s = min(for_s, ceiling_s)
        self._ceiling_s = ceiling_s

    def __len__(self) -> int:
        """Return how many clients are known, one that was banned and is counted again twice."""
        return sum(map(len, self._counted)) + sum(map(len, self._banned))

    def banned(self, client: str, now: float) -> bool:
        """Return whether `client` is banned."""
        if now >= self._last_end:
            return False
        banned = self._banned[hash(client) & self._mask].get(client)
        return banned is not None and now < banned.until

    def remaining_s(self, client: str, now: float) -> float:
        """Return for how long `client` is still banned, 0.0 if it is not."""
        banned = self._banned[hash(client) & self._mask].get(client)
        return 0.0 if banned is None else max(0.0, banned.until - now)

    def offence(self, client: str, now: float) -> bool:
        """Count an offence and return whether it is the one that has `client` banned; "" is nobody, and never is.

        Its connections are the caller's to close.
        """
        if not client or not self._after:
            return False
        table = hash(client) & self._mask
        banned = self._banned[table].get(client)
        if banned is not None and now < banned.until:
            self._banned[table][client] = _Banned(banned.until, banned.length_s, banned.times, banned.offences + 1)
            return False
        counted = self._counted[table]
        window = counted.pop(client, None)
        if window is None:
            self._make_room(counted, now)
        ends, count = window if window is not None and now < window[0] else (now + self._within_s, 0)
        if count < self._after:
            counted[client] = ends, count + 1
            return False
        self._ban(self._banned[table], client, count + 1, now)
        return True

    def _make_room(self, counted: OrderedDict[str, tuple[float, int]], now: float) -> None:
        for _ in range(FORGOTTEN_AT_ONCE):
            client = next(iter(counted), None)
            if client is None or (now < counted[client][0] and len(counted) < self._room):
                return
            del counted[client]

    def _ban(self, banned: dict[str, _Banned], client: str, offences: int, now: float) -> None:
        # Tens of microseconds for a full table, once in a ban.
        for name in [name for name, old in banned.items() if old.until + self._ceiling_s <= now]:
            del banned[name]
        last = banned.pop(client, None)
        if last is None:
            length_s, times = self._for_s, 1
            if len(banned) >= self._room:
                del banned[min(banned, key=lambda name: banned[name].until)]
        else:
            length_s, times = min(2.0 * last.length_s, self._ceiling_s), last.times + 1
            offences += last.offences
        until = now + length_s
        banned[client] = _Banned(until, length_s, times, offences)
        self._last_end = max(self._last_end, until)

    def describe(self, client: str, now: float) -> str:
        """Return a line for the log: who is banned, how long still, and why."""
        banned = self._banned[hash(client) & self._mask].get(client)
        if banned is None or banned.until <= now:
            return f"{client} is not banned"
        again = f", for the {_ordinal(banned.times)} time" if banned.times > 1 else ""
        return (
            f"{client} is banned for {format_duration(math.ceil(banned.until - now))}{again}: "
            f"refused more than {self._after} times within {format_duration(self._within_s)}"
        )

    def list(self, now: float) -> list[Ban]:
        """Return the bans that are on, the longest first; it takes two milliseconds for each thousand of them."""
        bans = [
            Ban(client, banned.until - now, banned.times, banned.offences)
            for table in self._banned
            for client, banned in table.items()
            if now < banned.until
        ]
        bans.sort(key=attrgetter("remaining_s"), reverse=True)
        return bans

    def lift(self, client: str, now: float = -math.inf) -> bool:
        """Forget all about `client`, and return whether it was banned.

        Without `now` a ban that is over counts too, as long as it is remembered.
        """
        table = hash(client) & self._mask
        self._counted[table].pop(client, None)
        banned = self._banned[table].pop(client, None)
        return banned is not None and now < banned.until


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
