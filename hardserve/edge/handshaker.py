"""Who computes the expensive steps of handshakes, and in which order: helper threads, so that nobody else is held up.

It knows no TLS: a step is something to call that takes long.

Only where the server's keys have shown that they are cheap on this machine, a step is computed at once, on the I/O
thread, and a few more in the same turn. A single RSA 4096 key ends that for all: what is remembered is the longest of
late.

A handshake is the most that a stranger can have a server compute for nothing. So each client has a queue of its own,
and they take turns: one that begins five hundred delays another by one. Begun ones are finished first. No more than
`per_second` begin in a second, or as many at once after a pause of a second; the others wait for it, until their own
deadlines.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hardserve.pool import Pool

# A step that takes no longer is computed on the I/O thread, if what it has computed in this turn is below the other: to
# hand it to a helper and back takes half as long. (P-256 on a server 0.1 to 0.2 ms; RSA 4096 four, on a Pi forty.)
INLINE_S = 0.0004
INLINE_PER_TURN_S = 0.001
COST_FADES = 0.98


@dataclass(slots=True)
class _Step:
    compute: Callable[[], None]
    done: Callable[[float], None]
    wanted: Callable[[], bool]


class Handshaker:
    """See the module's head for who is computed for when.

    Of one client `max_client` may wait, of all of them `max_waiting`; who is one too many is refused at once, for it
    would wait in vain. `per_second` may begin, 0 is no limit. `post` and `plan` are the loop's. Everything is called on
    the I/O thread, and calls back there.
    """

    def __init__(
        self,
        pool: Pool,
        threads: int,
        post: Callable[[Callable[[float], None]], None],
        plan: Callable[[float, Callable[[float], None]], None],
        *,
        per_second: int = 0,
        max_client: int = 64,
        max_waiting: int = 4096,
    ) -> None:
        self._pool = pool
        self._room = 2 * threads  # with the pool at once: one computed, one next, so that no thread waits for a turn
        self._post = post
        self._plan = plan
        self._interval_s = 1.0 / per_second if per_second else 0.0
        self._max_client = max_client
        self._max_waiting = max_waiting
        self._begun: deque[_Step] = deque()
        self._new: OrderedDict[Hashable, deque[_Step]] = OrderedDict()  # by client, whose turn is next first
        self._waiting = 0
        self._with_pool = 0
        self._full_at = 0.0  # when the bucket of `per_second` is full again
        self._planned = False
        self._cost_s = INLINE_S * 2  # nothing is known yet
        self._turn = 0.0
        self._turn_s = 0.0  # computed on the I/O thread in this turn

    def __repr__(self) -> str:
        return (
            f"<Handshaker {self._waiting} waiting of {len(self._new)} clients, {self._with_pool} with {self._pool!r}>"
        )

    def submit(
        self,
        client: str,
        compute: Callable[[], None],
        done: Callable[[float], None],
        wanted: Callable[[], bool],
        now: float,
        begun: bool = False,
    ) -> bool:
        """Have a helper call `compute`, and then the I/O thread `done(now)`; return False if too many wait already.

        Neither is called for one that is not `wanted` any more when its turn comes. `client` "" is nobody in
        particular. `begun` is any step but the first.
        """
        if self._is_cheap(now) and (begun or self._may_begin(now)):
            self._timed(compute)
            self._turn_s += self._cost_s
            done(now)
            return True
        step = _Step(compute, done, wanted)
        if begun:
            self._begun.append(step)
        else:
            key: Hashable = client or step.done  # nobody in particular shares with nobody
            queue = self._new.get(key)
            if self._waiting >= self._max_waiting or (queue is not None and len(queue) >= self._max_client):
                return False
            if queue is None:
                self._new[key] = deque([step])
            else:
                queue.append(step)
            self._waiting += 1
        self._hand_on(now)
        return True

    def _is_cheap(self, now: float) -> bool:
        if now != self._turn:
            self._turn, self._turn_s = now, 0.0
        return self._cost_s <= min(INLINE_S, INLINE_PER_TURN_S - self._turn_s) and not (self._waiting or self._begun)

    def _timed(self, compute: Callable[[], None]) -> None:
        """Call `compute` and learn what it costs in processor time, which tells more than how long it took. Any thread.

        Two threads may both have just learnt something, and one is lost.
        """
        began = time.thread_time()
        compute()
        self._cost_s = max(time.thread_time() - began, self._cost_s * COST_FADES)

    def _hand_on(self, now: float) -> None:
        while self._with_pool < self._room:
            step = self._begun.popleft() if self._begun else self._next_new(now)
            if step is None:
                return
            if step.wanted():
                self._with_pool += 1
                if not self._pool.submit(partial(self._timed, step.compute), self._computed(step)):
                    # No thread can be had, or the server ends: whoever waits has a deadline.
                    self._with_pool -= 1
                    self._begun.appendleft(step)
                    return

    def _next_new(self, now: float) -> _Step | None:
        """Take the next in turn that is still wanted, if another may begin now."""
        while self._new:
            key, queue = next(iter(self._new.items()))
            if not queue[0].wanted():
                self._take(key, queue)
            elif self._may_begin(now):
                return self._take(key, queue)
            else:
                break
        return None

    def _take(self, key: Hashable, queue: deque[_Step]) -> _Step:
        step = queue.popleft()
        self._waiting -= 1
        if queue:
            self._new.move_to_end(key)
        else:
            del self._new[key]
        return step

    def _may_begin(self, now: float) -> bool:
        if not self._interval_s:
            return True
        wait_s = self._full_at + self._interval_s - now - 1.0
        if wait_s > 0:
            if not self._planned:
                self._planned = True
                self._plan(now + wait_s, self._resume)
            return False
        self._full_at = max(self._full_at, now) + self._interval_s
        return True

    def _resume(self, now: float) -> None:
        self._planned = False
        self._hand_on(now)

    def _computed(self, step: _Step) -> Callable[[object], None]:
        def finish(now: float) -> None:
            self._with_pool -= 1
            try:
                if step.wanted():
                    step.done(now)
            finally:
                self._hand_on(now)

        return lambda _result: self._post(finish)  # helper thread
