"""Tells the service manager each second how the server is, and that it is alive for as long as it is.

I/O thread, which is half of the point: what keeps that thread from turning keeps this from being said. The other half
is that the app's threads get on. While requests wait and every thread has been on the same one without a sign of life,
nothing is said either, and when that has lasted for as long as the watchdog waits it is asked to act at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger("hardserve.ops")

# How often; a watchdog that waits for less than four of these is told more often.
BEAT_S = 1.0
# What an end needs after a drain: last words, threads, logs.
END_S = 10.0


class Notified(Protocol):
    """What is told; see ops/notify.py."""

    watchdog_s: float

    def alive(self) -> None: ...
    def hangs(self) -> None: ...
    def status(self, text: str) -> None: ...
    def extend(self, seconds: float) -> None: ...


class Heartbeat:
    """Beats from `begin` on.

    `plan` has something done on the I/O thread at a time, `stalled_s` is for how long no thread has got on though
    requests wait, `left_s` how much longer a drain may take, None while there is none, and `figures` a line for
    `systemctl status`.
    """

    def __init__(
        self,
        notified: Notified,
        plan: Callable[[float, Callable[[float], None]], None],
        *,
        stalled_s: Callable[[float], float],
        left_s: Callable[[float], float | None],
        figures: Callable[[], str],
    ) -> None:
        self._notified = notified
        self._plan = plan
        self._stalled_s = stalled_s
        self._left_s = left_s
        self._figures = figures
        self._every_s = min(BEAT_S, notified.watchdog_s / 4) if notified.watchdog_s else BEAT_S
        self._said = False  # that it hangs, once each time it does
        self._over = False

    def __repr__(self) -> str:
        return f"<Heartbeat every {self._every_s:g} s{', hangs' if self._said else ''}{', over' if self._over else ''}>"

    def begin(self, now: float) -> None:
        """Beat now, and again and again."""
        if self._over:
            return
        left_s = self._left_s(now)
        if left_s is not None:
            # Also when it is less than the unit gives: systemd takes what is later.
            self._notified.extend(left_s + END_S)
        self._notified.status(self._figures())
        if self._notified.watchdog_s:
            self._look(now)
        self._plan(now + self._every_s, self.begin)

    def end(self, _now: float) -> None:
        """Say nothing more: another process does."""
        self._over = True

    def _look(self, now: float) -> None:
        stalled_s = self._stalled_s(now)
        if stalled_s < self._every_s:
            self._said = False
            self._notified.alive()
        elif stalled_s >= self._notified.watchdog_s and not self._said:
            self._said = True
            logger.critical(
                "all threads have been on their requests for %.1f s or longer, and others wait: the service manager is "
                "asked to kill and start this process (WatchdogSec=)",
                stalled_s,
            )
            self._notified.hangs()
