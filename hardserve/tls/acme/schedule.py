"""When to order a certificate, when to ask the CA about it, and how long to wait after a failure.

Pure: times are seconds since 1970 and are passed in, and so is chance. Nothing here knows a file, a CA or a thread.

A certificate is replaced at a moment of the window that the CA suggests (RFC 9773), or when a third of its lifetime is
left. Which moment is drawn from the certificate itself, so that it is the same after a restart and another one for
every certificate: CAs ask not to be visited by everybody at midnight.

What the clock says is not always so: a Raspberry Pi wakes up in the past and learns better later. A time that was
noted is therefore believed only as far ahead as it could have been meant.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

from hardserve.tls.acme.settings import Pace

HOUR = 3600.0
DAY = 24 * HOUR

# The part of its lifetime that a certificate has left when it is replaced, where the CA does not say when.
LEFT_AT_RENEWAL = 1 / 3
# Up to this part of the lifetime earlier, never later.
JITTER = 1 / 30
# Whatever the CA suggests: with less left, a few failures in a row and a weekend are an outage.
LEFT_AT_MOST_LATE = 1 / 10
# What was just issued is kept for a day, or a sixth of a short life, whoever suggests something else: see `due_at`.
SETTLED = 1 / 6
SETTLED_AT_LEAST, SETTLED_AT_MOST = 60.0, DAY

# RFC 9773 4.3.2 and 4.3.3: how often to ask about a renewal.
ASK_EARLIEST = 60.0
ASK_LATEST = DAY
ASK_AFTER_FAILURE = 6 * HOUR

# What a CA may ask for at most with Retry-After, and what it may not have cost then is in `_asked_until`: the windows
# of Let's Encrypt's limits are a week.
LONGEST_RETRY_AFTER = 7 * DAY
# Where it says that there were too many, and not when to come again.
RATE_LIMITED = HOUR

# How far the clock may have gone back since something was noted, before the note counts for nothing.
SKEW = 60.0

# Nobody judged; the CA said no; it could not prove a name; it will say no again until somebody changes something.
Kind = Literal["unreachable", "refused", "unproven", "misconfigured"]


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate that is there, with its key, and readable."""

    version: str
    names: tuple[str, ...]
    directory: str  # of the CA that it is from
    not_before: float
    not_after: float
    identifier: str = ""  # RFC 9773 4.1
    challenge: str = ""  # how its names were proven
    taken: float = 0.0  # when it was put in place, by this machine's clock; 0 if that is not known

    @property
    def lifetime(self) -> float:
        return max(0.0, self.not_after - self.not_before)


@dataclass(frozen=True, slots=True)
class Wanted:
    names: tuple[str, ...]
    directory: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """What has to be remembered over a restart. The fields of the window are about the certificate `asked`."""

    purpose: str = ""  # a digest of the settings that it was for
    attempted: float = 0.0
    failures: int = 0  # in a row
    unproven: int = 0  # how many of them were for a name that could not be proven
    error: str = ""
    retry_at: float = 0.0  # our own patience
    ca_until: float = 0.0  # the CA's
    asked: str = ""
    ask_at: float = 0.0
    window: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Order:
    why: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the CA when the certificate should be replaced."""


@dataclass(frozen=True, slots=True)
class Wait:
    until: float


Step = Order | Ask | Wait


def next_step(wanted: Wanted, held: Held | None, schedule: Schedule, now: float, *, forced: bool = False) -> Step:
    """Return what to do now. With `forced`, order as soon as the CA lets us, whatever is there."""
    why, due = due_at(wanted, held, schedule, now)
    if forced:
        why, due = "a new one was asked for", now
    earliest = max(due, blocked_until(schedule, now, forced=forced))
    if now >= earliest:
        return Order(why)
    if held is None or not _worth_asking(wanted, held, now):
        return Wait(earliest)
    ask_at = _ask_at(held, schedule, now)
    if ask_at <= now < due:
        return Ask()
    return Wait(min(earliest, ask_at) if now < due else earliest)


def due_at(wanted: Wanted, held: Held | None, schedule: Schedule, now: float) -> tuple[str, float]:
    """Return why a certificate is to be ordered, and from when on.

    Deliberate: a moment of the CA's window that has passed is "immediately" in RFC 9773 4.2, and here it is not before
    the certificate has been there for a while. Otherwise a CA whose windows are always in the past, or that issues what
    has nearly expired, would have us order without end. A CA that has to revoke what it issued a moment ago waits for a
    day, and `forced` does not.
    """
    if held is None:
        return "there is none", 0.0
    if missing := names_missing(wanted, held):
        return f"the one there is, is not for {', '.join(missing)}", 0.0
    if held.directory != wanted.directory:
        return "another CA was chosen", 0.0
    settled = _settled_at(held, now)
    if now >= held.not_after:
        return "it has expired", max(held.not_after, min(settled, held.not_after + SETTLED_AT_LEAST))
    if schedule.window is not None and schedule.asked == held.version:
        start, end = schedule.window
        chosen = start + (end - start) * fraction(held.version)
        return "the CA suggests it", max(settled, min(chosen, held.not_after - held.lifetime * LEFT_AT_MOST_LATE))
    early = held.lifetime * JITTER * fraction(held.version)
    return "a third of its lifetime is left", max(settled, held.not_after - held.lifetime * LEFT_AT_RENEWAL - early)


def _settled_at(held: Held, now: float) -> float:
    """Return before when nothing replaces a certificate but what is about the names, the CA, or its end."""
    # A note of the future is of a clock that was wrong.
    since = max(held.not_before, held.taken if held.taken <= now + SKEW else 0.0)
    return since + max(SETTLED_AT_LEAST, min(SETTLED_AT_MOST, (held.not_after - since) * SETTLED))


def serves(wanted: Wanted, held: Held) -> bool:
    """Return whether a certificate is one that would have been ordered."""
    return not names_missing(wanted, held) and held.directory == wanted.directory


def names_missing(wanted: Wanted, held: Held) -> tuple[str, ...]:
    """Return the wanted names that a certificate is not for. A name too many does no harm until the next renewal."""
    return tuple(name for name in wanted.names if name not in held.names)


def blocked_until(schedule: Schedule, now: float, *, forced: bool = False) -> float:
    """Return before when nothing may be ordered: after a failure, and while the CA does not want to hear of us."""
    if schedule.attempted > now + SKEW:
        return 0.0  # the clock has gone back: what was noted then says nothing about now
    ca_until = schedule.ca_until if schedule.ca_until <= now + LONGEST_RETRY_AFTER else 0.0
    return ca_until if forced else max(ca_until, schedule.retry_at)


def _worth_asking(wanted: Wanted, held: Held, now: float) -> bool:
    # RFC 9773 4.3: not after it has expired; and not another CA than its own.
    return bool(held.identifier) and held.directory == wanted.directory and now < held.not_after


def _ask_at(held: Held, schedule: Schedule, now: float) -> float:
    if schedule.asked != held.version or schedule.ask_at > now + ASK_LATEST + SKEW:
        return 0.0
    return schedule.ask_at


def fraction(seed: str) -> float:
    """Return a number from 0 to 1, the same for the same `seed` and otherwise evenly spread."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big") / 2**48


# What was found out, as the next schedule.


def asked(
    schedule: Schedule, held: Held, window: tuple[float, float] | None, retry_after: float | None, now: float
) -> Schedule:
    """Note what the CA has said about the renewal of `held`; no window if it has not, or nothing that makes sense.

    A window that was known before is kept then: the CA's last word stands.
    """
    if window is not None and window[1] <= window[0]:
        window = None
    if window is None:
        known = schedule.window if schedule.asked == held.version else None
        return replace(schedule, asked=held.version, window=known, ask_at=now + ASK_AFTER_FAILURE)
    pause = ASK_AFTER_FAILURE if retry_after is None else min(max(retry_after, ASK_EARLIEST), ASK_LATEST)
    return replace(schedule, asked=held.version, window=window, ask_at=now + pause)


def failed(
    schedule: Schedule,
    kind: Kind,
    error: str,
    retry_after: float | None,
    now: float,
    chance: float,
    pace: Pace,
    held: Held | None = None,
) -> Schedule:
    """Note a failed attempt. `retry_after` is what the CA has asked for, `chance` from 0 to 1, `held` what is served.

    Half as much again is added at most, so that all those that a CA has failed at once do not come back at once.

    What is asked for with a 503, by the CA or something in front of it, is a guess about when there will be somebody to
    ask (RFC 9110 15.6.4): it lengthens our own patience up to its bound, and whoever forces an order need not wait for
    it. What comes with a limit is when the CA takes an order again (RFC 8555 6.6), and nobody asks before.
    """
    failures = schedule.failures + 1
    patience = backoff(kind, failures, pace)
    ca_until = 0.0
    if kind == "unreachable":
        patience = max(patience, min(retry_after or 0.0, pace.longest))
    elif retry_after:
        ca_until = _asked_until(retry_after, held, now, pace)
    return replace(
        schedule,
        attempted=now,
        failures=failures,
        unproven=schedule.unproven + (kind == "unproven"),
        error=error,
        retry_at=now + patience * (1 + chance / 2),
        ca_until=ca_until,
    )


def _asked_until(retry_after: float, held: Held | None, now: float, pace: Pace) -> float:
    """Return until when a CA is not asked that has said when to come again.

    No longer than until a tenth of the life of what is served is left, and then `pace.longest` each time: a certificate
    of six days would not survive a week, and a limit that is still there only says so once more.
    """
    until = now + min(max(retry_after, 0.0), LONGEST_RETRY_AFTER)
    if held is None:
        return until
    latest = held.not_after - held.lifetime * LEFT_AT_MOST_LATE
    return min(until, max(latest, now + pace.longest))


def backoff(kind: Kind, failures: int, pace: Pace) -> float:
    """Return the seconds to wait after so many failures in a row, the last one of `kind`."""
    first = {"unreachable": pace.unreachable, "misconfigured": pace.misconfigured}.get(kind, pace.refused)
    return float(min(first * 2.0 ** min(failures - 1, 30), pace.longest))


def for_purpose(schedule: Schedule, purpose: str) -> Schedule:
    """Forget our own patience when the settings have changed: what failed with the old ones may succeed now.

    What the CA has asked for stands.
    """
    if schedule.purpose == purpose:
        return schedule
    return replace(schedule, purpose=purpose, failures=0, unproven=0, error="", retry_at=0.0)


def succeeded(schedule: Schedule, now: float) -> Schedule:
    return Schedule(purpose=schedule.purpose, attempted=now)


def challenge_order(kinds: tuple[str, ...], proven: str, unproven: int) -> tuple[str, ...]:
    """Return `kinds` with the one to try first in front: what has succeeded before, and another after a failure."""
    preferred = sorted(kinds, key=lambda kind: kind != proven)
    start = unproven % len(preferred)
    return tuple(preferred[start:] + preferred[:start])
