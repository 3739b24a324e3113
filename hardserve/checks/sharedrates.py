"""The shared rate-limit store: counts that any number of hardserve processes have in common, while it answers.

It decides whether to ask, and what to do when that fails; what asking is stands in `ratestores`. It knows no request
and no rule, only keys and limits.

Who does what. `ask`, `count` and `probe` block, and are for check threads, several at once. `available`, `probe_at`,
`probe_due` and `failed` never block, and are for any thread: the I/O thread has a time limit of its own for a question
as a whole, decides by itself when that has passed, and says so with `failed`. The breaker is behind one lock that
nobody holds while waiting for the store; a second lock is held while the client is made, and a third by the one probe
at a time.

Why the first failure opens the breaker. Whoever asks a store that does not answer waits for the whole time limit, and
so would everybody behind it; being wrong costs one second of limits that each process keeps for itself.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from hardserve.checks.ratestores import HitLike, Store, check_settings, name_of, secrets_of

__all__ = ["SharedRates", "StoreError", "check_settings"]

logger = logging.getLogger("hardserve.rates")

# How long a store that failed is left alone: twice as long each time, unless it has been well for STEADY_S since.
FIRST_PROBE_S = 1.0
LONGEST_PROBE_S = 10.0
STEADY_S = 60.0
# A store that comes and goes has one pair of log lines in this time, and that often two more at once.
QUIET_S = 60.0
LINES_MORE = 2


class StoreError(Exception):
    """The shared store gave no answer, or none in time. The text says why, on one line and without a password."""


class SharedRates:
    """Asks the store at `url`, each step of it within `timeout_s` seconds, and nothing while it is known to be gone.

    It begins as if the store were there. A probe at start, whose moment is then come, finds out and logs whether it is,
    before the first question has to wait for that; nothing is connected by then.
    """

    def __init__(self, url: str, timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._clock = clock
        self._name = name_of(url)
        self._secrets = secrets_of(url)
        self._lock = threading.Lock()
        self._breaker = Breaker(clock())  # behind _lock; its `closed` is read by anybody
        self._making = threading.Lock()
        self._store: Store | None = None  # written behind _making
        self._probing = threading.Lock()
        self._ended = False

    def __repr__(self) -> str:
        return f"<SharedRates {self._name} {'ended' if self._ended else repr(self._breaker)}>"

    @property
    def available(self) -> bool:
        """Return whether a question may be asked. Any thread."""
        return self._breaker.closed and not self._ended

    def ask(self, hits: Sequence[HitLike]) -> list[float]:
        """Take `hits` one after another; return for each how many seconds until there is room for it.

        0.0 means admitted, and counted where `take` is set; infinity, that it never can be. The first that is refused
        ends it: the list is then shorter than `hits`, and the rest is neither asked nor counted. A check thread, which
        is held for about `timeout_s`, and twice as long where a connection has to be made (looking up a name not
        included). Raises StoreError when the store fails in any way, which opens the breaker, and while that is open;
        and when the time is up between two hits, which does not.
        """

        def until_refused(answers: Iterable[float]) -> list[float]:
            waits = []
            for wait_s in answers:
                waits.append(wait_s)
                if wait_s > 0.0:
                    break
            return waits

        return self._asked(hits, until_refused)

    def count(self, hits: Sequence[HitLike]) -> None:
        """Take each of `hits`, as far as there is room for it, whatever becomes of the others. As `ask`, otherwise."""
        self._asked(hits, list)

    def _asked(self, hits: Sequence[HitLike], collect: Callable[[Iterable[float]], list[float]]) -> list[float]:
        if not self.available:
            raise StoreError(f"{self._name} is left alone for now")
        breaks = self._breaker.breaks
        try:
            return collect(self._answers(hits))
        except StoreError:
            raise
        except Exception as error:
            # Whatever a client library raises: no request fails for it.
            why = self._reason(error)
            self._failed(why, breaks)
            raise StoreError(f"{self._name}: {why}") from error

    def _answers(self, hits: Sequence[HitLike]) -> Iterator[float]:
        until = self._clock() + self._timeout_s
        store = self._made()
        for number, hit in enumerate(hits):
            if number and self._clock() > until:
                # No step has failed: perhaps it was this process that had no time.
                raise StoreError(f"{self._name}: {number} of {len(hits)} limits took all the time")
            yield store.wait(hit)

    def failed(self, why: str) -> None:
        """Open the breaker, because an answer came too late or not at all; `why` is for the log. Any thread."""
        self._failed(self._without_secrets(why), self._breaker.breaks)

    def _failed(self, why: str, breaks: int) -> None:
        with self._lock:
            # A question from before the last break has nothing to say about the store since.
            if breaks == self._breaker.breaks and not self._ended and self._breaker.failed(self._clock()):
                self._log_gone(why)

    @property
    def probe_at(self) -> float:
        """Return when a probe is due, in seconds of the clock; infinity while there is no need of one. Any thread."""
        return math.inf if self._ended else self._breaker.probe_at

    def probe_due(self, now: float) -> bool:
        """Return whether it is time for `probe`; if so, then not again before an interval has passed. Any thread."""
        with self._lock:
            return not self._ended and self._breaker.probe_due(now)

    def probe(self) -> bool:
        """Count something as a question would; return whether that worked, and close or open the breaker accordingly.

        It writes, so that a store that is full or may only be read does not pass. A check thread; while one probe is
        under way another returns False at once, so that a store that holds threads holds one.
        """
        if self._ended or not self._probing.acquire(blocking=False):
            return False
        try:
            self._made().touch()
        except Exception as error:
            with self._lock:
                if not self._ended and self._breaker.probe_failed(self._clock()):
                    self._log_gone(self._reason(error))
            return False
        else:
            with self._lock:
                if self._breaker.probe_answered(self._clock()):
                    logger.warning("rate limits are shared again: %s answers", self._name)
            return True
        finally:
            self._probing.release()

    def close(self) -> None:
        """Close the connections; questions under way fail, and later ones are not asked. Any thread, once."""
        self._ended = True
        store, self._store = self._store, None
        if store is not None:
            with suppress(Exception):  # of a client that is being torn down
                store.close()

    def _log_gone(self, why: str) -> None:
        logger.warning(
            "each process limits by itself for now: the shared rate-limit store %s fails (%s)", self._name, why
        )

    def _made(self) -> Store:
        """Return the client, made where it has not been: one for a cluster connects for that, and can fail."""
        store = self._store
        if store is None:
            if not self._making.acquire(timeout=self._timeout_s):
                raise TimeoutError("its client is still being made")
            try:
                store = self._store = self._store or Store(self._url, self._timeout_s)
            finally:
                self._making.release()
        if self._ended:
            store.close()
        return store

    def _reason(self, error: BaseException) -> str:
        return self._without_secrets(f"{type(error).__name__}: {error}")

    def _without_secrets(self, text: str) -> str:
        text = " ".join(text.split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:200]


class Breaker:
    """Whether the store is asked, and when it is tried again. Pure, for one thread at a time.

    Methods that return a bool return whether that is to be logged.
    """

    __slots__ = ("_interval_s", "_quiet_at", "_said", "_well_since", "breaks", "closed", "probe_at")

    def __init__(self, now: float) -> None:
        self.closed = True
        self.breaks = 0
        self.probe_at = now
        self._interval_s = 0.0
        self._well_since = -math.inf
        self._said = False  # whether the log knows that it is open
        self._quiet_at = -math.inf  # by when as many lines as there were would have come at one in QUIET_S

    def __repr__(self) -> str:
        return "closed" if self.closed else f"open, probed every {self._interval_s:g} s, {self.breaks} breaks"

    def failed(self, now: float) -> bool:
        """Open, unless it is."""
        if not self.closed:
            return False
        self.closed = False
        self.breaks += 1
        if now - self._well_since >= STEADY_S:
            self._interval_s = 0.0
        return self._wait(now)

    def probe_due(self, now: float) -> bool:
        """Return whether to probe now (not for the log); if so, count on it being done."""
        if now < self.probe_at:
            return False
        self.probe_at = now + max(self._interval_s, FIRST_PROBE_S)
        return True

    def probe_failed(self, now: float) -> bool:
        """Stay open, for longer; open, if it was not."""
        return self.failed(now) if self.closed else self._wait(now)

    def probe_answered(self, now: float) -> bool:
        """Close."""
        self.probe_at = math.inf
        if self.closed:
            return False
        self.closed = True
        self._well_since = now
        said, self._said = self._said, False
        return said

    def _wait(self, now: float) -> bool:
        self._interval_s = min(max(2.0 * self._interval_s, FIRST_PROBE_S), LONGEST_PROBE_S)
        self.probe_at = now + self._interval_s
        if self._said or self._quiet_at - now > LINES_MORE * QUIET_S:
            return False
        self._said, self._quiet_at = True, max(self._quiet_at, now) + QUIET_S
        return True
