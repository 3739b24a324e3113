"""How often a client may ask: all rules that fit a request, asked and counted together.

I/O thread, but for `responded`, which workers call. Pure: time is passed in as monotonic seconds. It knows no socket
and no other store than its own: what a shared one must be asked is a value, a `Question`, that others take there.

A rule is one or more windows; see edge/raterules.py. Every rule that fits a request must let it in: the default rule,
then the others in the operator's order. They are all asked before anything is counted, so that a request which one rule
refuses costs the others nothing. There are three places where that ends, each for a reason:

- Rules in a shared store are asked when the local ones have let the request in and counted it. Asking is work, and the
  default rule is what bounds how much of it one client can cause.
- Rules by user are asked when the user is known; what came before has been counted by then.
- A rule with `status` counts responses, and when it is asked there is none. It only looks, and the count follows when
  the response is about to leave, before its client can see it: so one request after another, none gets past. Requests
  in progress at once do: all that are let in before the first response counts, at most one for each connection of
  those who have the key in common (limits.client_connections). Nothing else is sound: to count each until it is
  answered would refuse good requests because of others that turn out good, too.

A rule with `dry_run` is asked like the others, and what it would refuse it does not count, so that its log says what
would happen. While more clients come than the store can hold, keys are coarser for all, also those in a shared store:
see edge/ratepressure.py.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from hardserve.edge.ratepressure import Pressure
from hardserve.edge.raterules import Asked, Hit, RateRefusal, Rule, Window, prefixes
from hardserve.edge.ratestore import RateStore
from hardserve.http.paths import spellings
from hardserve.settings import RateLimitingSettings, RateLimitSettings

__all__ = ["Asked", "Hit", "Question", "RateLimiter", "RateRefusal"]

# Counts of responses that wait to be added to the shared store; the oldest go. Locally they count in any case.
MAX_WAITING_FOR_SHARED = 10_000


class _Rules:
    """The rules that are asked at one point: here, or in the shared store."""

    __slots__ = ("by_path", "here", "shared")

    def __init__(self, rules: Iterable[Rule], *, shared: bool, default: Rule | None = None) -> None:
        listed = tuple(rules)
        here = () if shared else listed
        self.here = (default, *here) if default else here
        self.shared = listed if shared else ()
        self.by_path = any(rule.by_path for rule in listed)


class Question:
    """What the shared store must be asked for one request: `hits`, one after the other until one is refused.

    What only looks is first, then the shortest windows, which forget soonest what was counted for a request that a
    longer one refuses. Rules in a dry run come last: what they refuse ends nothing but themselves.
    """

    __slots__ = ("asked", "fitting", "hits", "windows")

    def __init__(self, asked: Asked, fitting: Sequence[tuple[Rule, str]]) -> None:
        self.asked = asked
        self.fitting = fitting
        windows = [(rule, window, who) for rule, who in fitting for window in rule.windows]
        windows.sort(key=lambda entry: (entry[0].dry_run, not entry[0].statuses, entry[1].limit.period))
        self.windows = windows
        self.hits = tuple(
            Hit(window.prefix + who, window.limit, rule.cost, take=not rule.statuses) for rule, window, who in windows
        )

    def __repr__(self) -> str:
        return f"<Question {', '.join(rule.name for rule, _ in self.fitting)} for {self.asked.client}>"


class RateLimiter:
    """Asks every rule that fits a request, and counts it. I/O thread, but for `responded`.

    `failures` is how many wrong passwords one client may give, "off" for any number. With `shared` the `rules` are
    asked in a shared store. `dry_run` is told the rule and the client of what would have been refused. `clock` is where
    `now` comes from, for when a response leaves.
    """

    __slots__ = (
        "_after",
        "_auth",
        "_before",
        "_clock",
        "_default",
        "_dry_run",
        "_foldable",
        "_ipv6_prefix",
        "_late",
        "_max_keys",
        "_pressure",
        "_shared",
        "_store",
        "_waiting_for_shared",
    )

    def __init__(
        self,
        rules: Sequence[RateLimitSettings],
        settings: RateLimitingSettings,
        *,
        failures: str,
        ipv6_prefix: int,
        shared: bool,
        dry_run: Callable[[str, str], None],
        storage: RateStore | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._ipv6_prefix = ipv6_prefix
        self._shared = shared
        self._dry_run = dry_run
        self._clock = clock
        self._max_keys = settings.max_keys
        self._store = RateStore(max_keys=settings.max_keys) if storage is None else storage
        # Responses that have left or are about to, at most one for each request since the last `check`.
        self._late: deque[tuple[float, tuple[Hit, ...]]] = deque()
        self._waiting_for_shared: deque[Hit] = deque(maxlen=MAX_WAITING_FOR_SHARED)
        self._foldable: bool | None = None
        self._pressure: Pressure
        self.use(rules, settings, failures=failures)

    def with_rules(
        self, rules: Sequence[RateLimitSettings], settings: RateLimitingSettings, *, failures: str
    ) -> RateLimiter:
        """Return a limiter that asks other rules, and goes on with the counts of this one. Any thread.

        What is in both goes on: the counts of a rule that stays, those of responses on their way, and what is coarser
        while the store is too small. Where the counts are kept stays as it is, whatever `settings` say of that.
        Either may be asked: a request that this one has let in can go on here, and is counted once.
        """
        other = copy.copy(self)
        other.use(rules, settings, failures=failures)
        return other

    def use(self, rules: Sequence[RateLimitSettings], settings: RateLimitingSettings, *, failures: str) -> None:
        """Ask these rules from now on. Nobody may be asking meanwhile."""
        shared = self._shared
        legacy = settings.legacy_headers == "on"
        listed = [
            Rule(f"rate_limit[{index}]", prefix, rule, legacy=legacy)
            for index, (rule, prefix) in enumerate(zip(rules, prefixes(rules), strict=True))
        ]
        default = auth = None
        if settings.default != "off":
            by_burst = RateLimitSettings(limit=settings.default, burst=settings.default_burst)
            # Its counts are no good for another burst, in which they would mean another time.
            default = Rule("default", f"default-{prefixes([by_burst])[0]}", by_burst, legacy=legacy)
        if failures != "off":
            auth = Rule("auth", "auth", RateLimitSettings(limit=failures), legacy=legacy)
        self._auth = auth
        self._before = _Rules((rule for rule in listed if not rule.by_user), shared=shared, default=default)
        self._after = _Rules((rule for rule in listed if rule.by_user), shared=shared)
        # When nothing else is asked there is nothing to collect: that is what most requests meet.
        self._default = default if len(self._before.here) == 1 and not self._before.shared else None
        foldable = any(rule.foldable for rule in listed)
        if foldable != self._foldable:
            self._foldable = foldable
            self._pressure = Pressure(self._max_keys, self._ipv6_prefix, foldable=foldable, evicted=self._store.evicted)

    def __repr__(self) -> str:
        here, shared = (len(self._before.here) + len(self._after.here), len(self._before.shared + self._after.shared))
        return f"<RateLimiter {here} rules here, {shared} shared, {self._pressure!r}, {self._store!r}>"

    def check(self, asked: Asked, now: float) -> RateRefusal | Question | None:
        """Return why a request may not come in, None if it may, or what to ask. Count it. All rules but those by user.

        For each request once, before any password is looked at. A request that is refused has no `rate_slots`.
        """
        if self._late or self._pressure.level or self._store.evicted != self._pressure.evicted:
            self._settle(now)
        default = self._default
        if default is not None and not self._pressure.level:
            window = default.windows[0]
            wait_s = self._store.hit(window.prefix + asked.client, window.limit, 1, now)
            return default.refusal(window, wait_s) if wait_s else None
        return self._judge(self._before, asked, now)

    @property
    def has_rules(self) -> bool:
        """Return whether there is anything to check."""
        return bool(self._before.here or self._before.shared or self.by_user)

    @property
    def by_user(self) -> bool:
        """Return whether there are rules by user, so that `check_user` has anything to ask."""
        return bool(self._after.here or self._after.shared)

    def check_user(self, asked: Asked, now: float) -> RateRefusal | Question | None:
        """Do as `check` does with the rules by user. For each request, also where nobody has to say who they are."""
        self._settle(now)
        return self._judge(self._after, asked, now)

    def decide(self, question: Question, now: float) -> RateRefusal | None:
        """Answer in the shared store's place, from what this process has counted itself."""
        self._settle(now)
        return self._decide(question.fitting, question.asked, now, shared=True)

    def answered(self, question: Question, waits: Sequence[float], now: float) -> RateRefusal | None:
        """Return what the shared store's answer means: how long to wait for each hit, to the first that is refused."""
        self._settle(now)
        binding: dict[Rule, tuple[float, Window]] = {}
        for (rule, window, _), wait_s in zip(question.windows, waits, strict=False):
            if wait_s and (rule not in binding or wait_s > binding[rule][0]):
                binding[rule] = (wait_s, window)
        for rule, (wait_s, window) in binding.items():
            if refusal := self._refused(rule, rule.refusal(window, wait_s), question.asked):
                return refusal
        not_counted = {*binding, *(rule for rule, _, _ in question.windows[len(waits) :])}
        admitting = [(rule, who) for rule, who in question.fitting if rule not in not_counted]
        # Counted here, too, so that there is no second allowance when the store goes away.
        self._count(admitting, question.asked, now, shared=True)
        return None

    def may_try_password(self, asked: Asked, now: float) -> RateRefusal | None:
        """Return why a client's password is not looked at: it gave too many wrong ones.

        Those that are being looked at do not count yet; whoever looks bounds how many of one client that may be.
        """
        if self._auth is None:
            return None
        self._settle(now)
        refusal = self._auth.ask(self._store, self._pressure.client(asked.address, asked.client), now)
        return refusal and self._refused(self._auth, refusal, asked)

    def password_failed(self, asked: Asked, now: float) -> None:
        """Count a wrong password."""
        if self._auth is not None:
            self._auth.take(self._store, self._pressure.client(asked.address, asked.client), now)

    def responded(self, slots: Any, status: int) -> None:
        """Count a response, for the rules by status: `slots` are the request's `rate_slots`. Any thread.

        Once for a request, before a byte of the response leaves: then it counts for the client's next request.
        """
        if not slots:
            return
        at = self._clock()
        for slot in slots:
            if status in slot.statuses:
                self._late.append((at, slot.hits))
                if slot.shared:
                    self._waiting_for_shared.extend(slot.hits)

    def drain_shared(self) -> list[Hit]:
        """Return what must be added to the shared store, whether it is over a limit or not; each is returned once.

        At most MAX_WAITING_FOR_SHARED; what there is more of in between is counted here only.
        """
        waiting = self._waiting_for_shared
        return [waiting.popleft() for _ in range(len(waiting))]

    def _settle(self, now: float) -> None:
        """Count the responses so far, and see whether keys must be coarser."""
        if self._late:
            for _ in range(len(self._late)):
                at, hits = self._late.popleft()
                for key, limit, cost, _take in hits:
                    self._store.add(key, limit, cost, min(at, now))
        pressure, evicted = self._pressure, self._store.evicted
        if evicted != pressure.evicted or pressure.level:
            pressure.observe(evicted, now)

    def _judge(self, rules: _Rules, asked: Asked, now: float) -> RateRefusal | Question | None:
        paths = spellings(asked.path) if rules.by_path else ("",)
        path = paths[0]
        client = self._pressure.client(asked.address, asked.client)
        folded = self._pressure.folded
        here = [(rule, rule.who(asked, client, path, folded=folded)) for rule in rules.here if rule.fits(asked, paths)]
        refusal = self._decide(here, asked, now)
        if refusal is not None or not rules.shared:
            return refusal
        there = [
            (rule, rule.who(asked, client, path, folded=folded)) for rule in rules.shared if rule.fits(asked, paths)
        ]
        return Question(asked, there) if there else None

    def _decide(
        self, fitting: Sequence[tuple[Rule, str]], asked: Asked, now: float, *, shared: bool = False
    ) -> RateRefusal | None:
        """Ask the rules that fit, each with what the request counts by; if all let it in, count it."""
        store = self._store
        if len(fitting) == 1 and not fitting[0][0].statuses and len(fitting[0][0].windows) == 1:
            ((rule, who),) = fitting
            window = rule.windows[0]
            wait_s = store.hit(window.prefix + who, window.limit, rule.cost, now)
            return self._refused(rule, rule.refusal(window, wait_s), asked) if wait_s else None
        admitting = []
        for rule, who in fitting:
            refusal = rule.ask(store, who, now)
            if refusal is None:
                admitting.append((rule, who))
            elif self._refused(rule, refusal, asked):
                return refusal
        self._count(admitting, asked, now, shared=shared)
        return None

    def _refused(self, rule: Rule, refusal: RateRefusal, asked: Asked) -> RateRefusal | None:
        if rule.dry_run:
            self._dry_run(rule.name, asked.client)
            return None
        asked.rate_slots = None
        return refusal

    def _count(self, fitting: Iterable[tuple[Rule, str]], asked: Asked, now: float, *, shared: bool) -> None:
        for rule, who in fitting:
            if rule.statuses:
                asked.rate_slots = (*(asked.rate_slots or ()), rule.slot(who, shared=shared))
            else:
                rule.take(self._store, who, now)
