"""What the gate cannot tell without something that may block: handed to check threads, and brought back to the loop.

I/O thread, but for the jobs themselves. Passwords and rates have threads of their own: a hash takes a tenth of a
second, and a flood of wrong passwords must not make a store look slow that is not. A store has a time limit, kept here
and to the millisecond, whatever the library that talks to it does meanwhile: past it the count in memory decides.

That a question is late does not mean that the store is. An app that computes keeps the interpreter, of which a question
needs a turn several times, and its threads wait for each other here. The client library does not mistake that for a
store that is silent: it waits for bytes without the interpreter. So one that it says fails is left alone at once, until
it has shown that it answers; and where questions are only late, when many are, so that asking is no use, whatever the
cause.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from hardserve.pool import Pool

if TYPE_CHECKING:
    from hardserve.checks.sharedrates import SharedRates
    from hardserve.checks.users import Authenticator

logger = logging.getLogger("hardserve.checks")

# A hash is computed without the interpreter lock, on a core of its own; more than two would leave none to the app.
PASSWORD_THREADS = 2
# With two threads and a tenth of a second for each, the last of them waits for three seconds.
WAITING_PASSWORDS = 64
# Guesses of one client at once: its limit counts them when they have turned out to be wrong.
PASSWORDS_OF_A_CLIENT = 8
STORE_THREADS = 4
WAITING_QUESTIONS = 1024
# So many questions may be late, and a fifth of all, before the store is left alone.
MOST_LATE = 8.0
IN_TIME = 0.25
# Responses that are counted in the store together with a question, so that they take little of its time.
COUNTED_WITH_A_QUESTION = 8
# How long those of a client that asks nothing more wait to be counted.
COUNT_AFTER_S = 1.0
# Of those that wait for it, at most; the oldest go. This process has counted them itself.
MOST_UNCOUNTED = 10_000

Action = Callable[[float], None]


class Asker(Protocol):
    """A connection that waits."""

    @property
    def request(self) -> object: ...
    def close(self, *, reset: bool = False) -> None: ...


class Asked(Protocol):
    """A request, as far as it is looked at."""

    client: str
    headers: dict[str, str]
    store_spent_s: float  # how long it has waited for the store


class Limiter(Protocol):
    """What makes a refusal of what a store said, or of what is in memory. See edge.ratelimit."""

    def answered(self, question: Any, waits: Sequence[float], now: float) -> Any: ...
    def decide(self, question: Any, now: float) -> Any: ...
    def drain_shared(self) -> Sequence[Any]: ...


def _conclude(asker: Asker, action: Callable[[], None]) -> None:
    """Go on with a request. A bug of ours in that ends its connection, which nothing else would: it has no deadline."""
    try:
        action()
    except Exception:
        logger.exception("internal error on %r", asker)
        asker.close(reset=True)


class _Inquiry:
    """One question to the store, which is settled once: by its answer, or without one. I/O thread."""

    __slots__ = ("_limiter", "_question", "_then", "open")

    def __init__(self, limiter: Limiter, question: Any, then: Callable[[Any, float], None]) -> None:
        self._limiter = limiter
        self._question = question
        self._then = then
        self.open = True

    def settle(self, waits: Sequence[float] | None, now: float) -> None:
        if self.open:
            self.open = False
            limiter, question = self._limiter, self._question
            self._then(limiter.decide(question, now) if waits is None else limiter.answered(question, waits, now), now)


class Offload:
    """Asks on check threads. `post` and `plan` are the loop's: an action soon, and at a moment."""

    def __init__(
        self,
        *,
        post: Callable[[Action], None],
        plan: Callable[[float, Action], None],
        limiter: Limiter,
        authenticator: Authenticator | None,
        shared: SharedRates | None,
        store_timeout_s: float,
    ) -> None:
        self._post = post
        self._plan = plan
        self._limiter = limiter
        self._authenticator = authenticator
        self._shared = shared
        self._store_timeout_s = store_timeout_s
        self._passwords = Pool("check", PASSWORD_THREADS, WAITING_PASSWORDS)
        self._questions = Pool("store", STORE_THREADS, WAITING_QUESTIONS)
        self._probe_planned = False
        self._trying: dict[str, int] = {}  # passwords that are being checked, by client
        self._lateness = 0.0  # how much later than it may be the store has been of late
        # Hits of responses that the store has not been told of.
        self._uncounted: deque[Any] = deque(maxlen=MOST_UNCOUNTED)
        self._count_planned = False

    def __repr__(self) -> str:
        return f"<Offload passwords={self._passwords!r} questions={self._questions!r}>"

    def change(self, limiter: Limiter, authenticator: Authenticator | None) -> None:
        """Have these asked from now on: a limiter with the same counts, and who knows the passwords. I/O thread.

        Without a users file, what has come in before is still checked by the last one.
        """
        self._limiter = limiter
        if authenticator is not None:
            self._authenticator = authenticator

    def password(self, asker: Asker, request: Asked, then: Callable[[str | BaseException | None, float], None]) -> bool:
        """Have the password of `request` checked; `then` is given its user, None if it is wrong.

        Or what went wrong, where it cannot be told: a hash takes memory.

        Return False if too many wait already, of this client or of all. A request whose client has gone meanwhile is
        not checked, and `then` not called.
        """
        authenticator, client = self._authenticator, request.client
        if authenticator is None or self._trying.get(client, 0) >= PASSWORDS_OF_A_CLIENT:
            return False
        authorization = request.headers.get("HTTP_AUTHORIZATION", "")
        checked = False

        def done(result: str | BaseException | None) -> None:
            if isinstance(result, BaseException):
                logger.error("cannot check a password", exc_info=result)
            self._post(lambda now: told(result, now))

        def check() -> str | None:
            nonlocal checked
            checked = asker.request is request
            return authenticator.verify(authorization, client) if checked else None

        def told(user: str | BaseException | None, now: float) -> None:
            if client:
                self._trying[client] -= 1
                if not self._trying[client]:
                    del self._trying[client]
            if checked:
                _conclude(asker, lambda: then(user, now))

        submitted = self._passwords.submit(check, done)
        if submitted and client:
            self._trying[client] = self._trying.get(client, 0) + 1
        return submitted

    def rates(self, asker: Asker, request: Asked, question: Any, then: Callable[[Any, float], None]) -> bool:
        """Have the shared store asked; `then` is given the refusal, or None. Return False if it cannot be asked.

        A request that asks twice has one time limit for both.
        """
        shared, left_s = self._shared, self._store_timeout_s - request.store_spent_s
        if shared is None or left_s <= 0.0:
            return False
        if not shared.available:
            self._forget_uncounted()
            self._plan_probe()
            return False
        counted = self._take_uncounted()

        def ask() -> Sequence[float]:
            if counted:
                shared.count(counted)
            return shared.ask(question.hits)

        now = monotonic()

        def conclude(refusal: Any, now: float) -> None:
            request.store_spent_s += now - asked_at
            _conclude(asker, lambda: then(refusal, now))

        asked_at = now
        inquiry = _Inquiry(self._limiter, question, conclude)
        if not self._questions.submit(ask, lambda result: self._post(lambda now: self._arrived(inquiry, result, now))):
            self._uncounted.extend(counted)
            return False
        self._plan(now + left_s, lambda now: self._late(inquiry, now))
        self._plan_count(now)
        return True

    def _arrived(self, inquiry: _Inquiry, result: Sequence[float] | BaseException, now: float) -> None:
        waits = None if isinstance(result, BaseException) else result
        if inquiry.open:
            self._count_lateness(1.0 if waits is None else -IN_TIME)
        inquiry.settle(waits, now)
        self._plan_probe()

    def _late(self, inquiry: _Inquiry, now: float) -> None:
        if inquiry.open:
            self._count_lateness(1.0)
            inquiry.settle(None, now)
            self._plan_probe()

    def _count_lateness(self, more: float) -> None:
        """Leave the store alone if too many questions are late. One that is away already has nothing to make up for."""
        shared = self._shared
        self._lateness = max(0.0, self._lateness + more) if shared is not None and shared.available else 0.0
        if shared is not None and self._lateness >= MOST_LATE:
            self._lateness = 0.0
            shared.failed(f"too many answers take longer than {self._store_timeout_s:g} s")

    def _take_uncounted(self) -> Sequence[Any]:
        self._uncounted.extend(self._limiter.drain_shared())
        return [self._uncounted.popleft() for _ in range(min(len(self._uncounted), COUNTED_WITH_A_QUESTION))]

    def _forget_uncounted(self) -> None:
        """What is counted while the store is away is this process's, and too old for the store when it is back."""
        self._limiter.drain_shared()
        self._uncounted.clear()

    def _plan_count(self, now: float) -> None:
        """See to it that responses are counted whose clients ask nothing more."""
        if self._count_planned:
            return
        self._count_planned = True

        def count(now: float) -> None:
            self._count_planned = False
            shared = self._shared
            if shared is None or not shared.available:
                self._forget_uncounted()
            elif counted := self._take_uncounted():
                self._questions.submit(lambda: shared.count(counted), lambda _result: self._post(self._look_again))
                self._plan_count(now)

        self._plan(now + COUNT_AFTER_S, count)

    def start(self) -> None:
        """Look whether the store is there. I/O thread, or before it."""
        self._plan_probe()

    def _plan_probe(self) -> None:
        """See to it that a store that is away is looked for, again and again, until it is back."""
        shared = self._shared
        if shared is None or self._probe_planned or shared.probe_at == math.inf:
            return
        self._probe_planned = True

        def look(now: float) -> None:
            self._probe_planned = False
            if shared.probe_due(now):
                self._questions.submit(shared.probe, lambda _result: self._post(self._look_again))
            else:
                self._plan_probe()

        self._plan(shared.probe_at, look)

    def _look_again(self, _now: float) -> None:
        self._plan_probe()

    def stop(self, until: float) -> None:
        """End the threads, as far as they do by `until` (monotonic seconds)."""
        self._passwords.stop(until)
        self._questions.stop(until)
        if self._shared is not None:
            self._shared.close()
