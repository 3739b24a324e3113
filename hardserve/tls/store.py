"""All certificates of a server: which one a client gets, and how they are replaced while it runs.

Theory of operation
-------------------
Every connection begins with `context`, the front, which has no certificate. When the ClientHello is there, OpenSSL asks
it which name is meant (RFC 6066 3), and it puts the context of that name's pair in its own place. It stays when pairs
come and go, and since it is the one whose keys make session tickets, clients resume their sessions across a renewal.
It is made anew each day, so that whoever gets hold of the keys has a day at most.

Which thread does what:

* `load` and `use`: the main thread, before and while the server runs. They raise.
* `reload` and `expiring`: one check thread, or another each time. They read files, compute signatures and so may block;
  they never raise for what is in a file, and return sentences for the log. `_lock` keeps two of them apart, and one
  that finds it taken has nothing to do.
* `context` and `context_for`: any thread, the I/O thread above all: they look at what is in memory, and never wait.

What the I/O thread reads is one immutable table, and one front; each is put in place by one assignment, complete. A
handshake that has begun goes on with what it has. So no handshake ever meets half of a change, and no lock is needed.

A pair is replaced as a whole or not at all: the new files are loaded beside the old ones, a context is made, a
handshake is done with it in memory. Whoever replaces files does so one after the other (certbot moves two symlinks),
and a look in between finds a key that is not the certificate's. That is no news until it has lasted for a while.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from hardserve.http.hostnames import wildcard_of
from hardserve.tls import certificates, pemfiles
from hardserve.tls.certificates import CertificateError, Pair, day, judge
from hardserve.tls.pemfiles import Signature
from hardserve.tls.policy import ClientCertificates, PairFiles, server_context

DAY_S = 86_400
TICKET_KEYS_S = DAY_S
# What may be a replacement under way is looked at again and again for so long before it is news.
SETTLE_S = 10.0
# What is broken stays so until its files change, or something about the disk does, of which they know nothing.
RETRY_S = 60.0
# Days left at which the log says so, but only below a third of the lifetime: whoever renews does so then.
WARN_DAYS = (30, 14, 7, 3, 1, 0)


class Success(str):
    """A sentence for the log of what went as it should; every other one is a warning."""

    __slots__ = ()


UnknownNames = Literal["default", "refuse"]


@dataclass(frozen=True, slots=True)
class _Table:
    """Contexts by name and by wildcard, and the one for all others."""

    exact: dict[str, ssl.SSLContext]
    wildcard: dict[str, ssl.SSLContext]
    default: ssl.SSLContext | None

    def find(self, name: str | None) -> ssl.SSLContext | None:
        if name:
            name = name.lower().removesuffix(".")
            found = self.exact.get(name) or self.wildcard.get(wildcard_of(name))
            if found is not None:
                return found
        return self.default


def _table(pairs: Sequence[Pair], unknown: UnknownNames) -> _Table:
    """Return the table of `pairs`, of which an earlier one has precedence. Pure."""
    exact: dict[str, ssl.SSLContext] = {}
    wildcard: dict[str, ssl.SSLContext] = {}
    for pair in pairs:
        for name in pair.names:
            (wildcard if name.startswith("*") else exact).setdefault(name, pair.context)
    return _Table(exact, wildcard, pairs[0].context if pairs and unknown == "default" else None)


@dataclass
class _Watch:
    """Some files, in which state they were taken, and what was wrong with a later state. Pure but for `look`."""

    paths: tuple[Path, ...]
    taken: Signature = ()
    tried: Signature = ()  # later than `taken`, and not good
    tried_at: float = 0.0
    since: float | None = None  # when it was first found not to be good
    passing: bool = False
    said: list[str] = field(default_factory=list)

    def look(self) -> Signature:
        return pemfiles.signature(self.paths)

    def is_due(self, seen: Signature, now: float) -> bool:
        """Return whether files in this state, which is not the one that was taken, should be loaded."""
        return seen != self.tried or (self.passing and not self.said) or abs(now - self.tried_at) >= RETRY_S

    def take(self, seen: Signature) -> None:
        self.taken, self.tried, self.since, self.said = seen, (), None, []

    def refuse(self, seen: Signature, error: CertificateError, now: float) -> list[str]:
        """Note that files in this state are not good; return what to say of it, if it has not been said."""
        self.tried, self.tried_at, self.passing = seen, now, error.passing
        if self.since is None:
            self.since = now
        if error.problems == self.said or (error.passing and not self._settled(now)):
            return []
        self.said = error.problems
        return error.problems

    def _settled(self, now: float) -> bool:
        # A clock that is set meanwhile shortens it, at worst.
        return self.since is not None and abs(now - self.since) >= SETTLE_S


@dataclass
class _Held:
    """A pair that is served, and its files."""

    pair: Pair
    watch: _Watch


class CertificateStore:
    """The pairs of a server in the operator's order; see the module's head for which thread may call what.

    `unknown` is for clients that mean a name which no pair is for, or no name: they get the first pair, or are refused.
    Client certificates are asked for in the same way whatever the name: a session that was begun with one name can be
    resumed with another.
    """

    def __init__(
        self,
        pairs: Sequence[PairFiles],
        *,
        unknown: UnknownNames = "default",
        client_ca: Path | None = None,
        client_certificates: ClientCertificates = "off",
        alpn: tuple[str, ...] = ("http/1.1",),
    ) -> None:
        self._files = tuple(pairs)
        self._unknown: UnknownNames = unknown
        self._client_ca = client_ca
        self._make: Callable[[PairFiles | None], ssl.SSLContext] = partial(
            server_context, client_ca=client_ca, client_certificates=client_certificates, alpn=alpn
        )
        self._shared = () if client_ca is None or client_certificates == "off" else (client_ca,)
        self._lock = threading.Lock()
        # Under the lock.
        self._held: tuple[_Held, ...] = ()
        self._front_watch = _Watch(self._shared)
        self._front_made = 0.0
        self._told: dict[str, int] = {}  # by fingerprint: the fewest days left that the log has been told of
        # Any thread reads these.
        self._front: ssl.SSLContext | None = None
        self._table = _Table({}, {}, None)

    def __repr__(self) -> str:
        return f"<CertificateStore {len(self._held)} pairs for {len(self._table.exact)} names>"

    @property
    def context(self) -> ssl.SSLContext:
        """The context that new connections begin with; ask anew for each. After `load`. Any thread."""
        if self._front is None:
            raise RuntimeError("no certificate has been loaded")
        return self._front

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What is served now, in the operator's order. Any thread."""
        return tuple(held.pair for held in self._held)

    def context_for(self, server_name: str | None) -> ssl.SSLContext | None:
        """Return the context of the pair for this name, None if such a client is to be refused. Any thread."""
        return self._table.find(server_name)

    # --- main thread ---

    def load(self, now: float) -> list[str]:
        """Load everything, at time `now` (seconds of the epoch); return warnings. Blocks on files.

        Raises CertificateError with every problem of every pair, and then nothing has changed.
        """
        return self.use(self._files, now)

    def use(self, pairs: Sequence[PairFiles], now: float) -> list[str]:
        """As `load`, with these pairs from now on."""
        with self._lock:
            held: list[_Held] = []
            problems: list[str] = []
            make: Callable[[PairFiles], ssl.SSLContext] = self._make
            front_seen = self._front_watch.look()
            try:
                front = self._new_front()
            except CertificateError as error:
                problems += error.problems
                make = server_context  # to find what else is wrong
            for files in dict.fromkeys(pairs):
                watch = _Watch((*files.paths, *self._shared))
                seen = watch.look()
                try:
                    held.append(_Held(certificates.load(files, now, make=make), watch))
                    watch.take(seen)
                except CertificateError as error:
                    problems += error.problems
            if problems:
                raise CertificateError(problems)
            self._files = tuple(pairs)
            self._held = tuple(held)
            keep = self._front is not None and front_seen == self._front_watch.taken
            self._front_watch.take(front_seen)
            self._publish(now, None if keep else front)
            return [sentence for each in held for sentence in (*each.pair.warnings, *judge(each.pair, now)[1])]

    # --- check threads ---

    def reload(self, now: float) -> list[str]:
        """Take what has been replaced since the last look; return what the log should say. Check thread.

        `now` is in seconds of the epoch. What is broken is not taken, what was there stays, and that is said once.
        """
        if not self._lock.acquire(blocking=False):
            return []
        try:
            said, front = self._look_at_front(now)
            if self._front_watch.since is not None:
                return said  # without client_ca no context can be made
            for held in self._held:
                said += self._look_at(held, now)
            self._publish(now, front)
            return said
        finally:
            self._lock.release()

    def _look_at_front(self, now: float) -> tuple[list[str], ssl.SSLContext | None]:
        watch = self._front_watch
        seen = watch.look()
        replaced = seen != watch.taken
        if not replaced:
            watch.take(seen)
        if not (watch.is_due(seen, now) if replaced else abs(now - self._front_made) >= TICKET_KEYS_S):
            return [], None
        try:
            front = self._new_front()
        except CertificateError as error:
            if not replaced:
                self._front_made = now  # nothing is lost but new keys, and tomorrow is another day
                return [], None
            return [f"{problem}; what it was is used on" for problem in watch.refuse(seen, error, now)], None
        watch.take(seen)
        return ([Success(f"client_ca: {self._client_ca} was replaced")] if replaced else []), front

    def _look_at(self, held: _Held, now: float) -> list[str]:
        watch = held.watch
        seen = watch.look()
        if seen == watch.taken:
            watch.take(seen)
            return []
        if not watch.is_due(seen, now):
            return []
        try:
            new = certificates.load(held.pair.files, now, make=self._make)
        except CertificateError as error:
            problems = watch.refuse(seen, error, now)
            if not problems:
                return []
            former = f"the certificate until {day(held.pair.not_after)} is served on"
            return [f"what is now in {held.pair.certificate} is not taken, and {former}: {'; '.join(problems)}"]
        old, held.pair = held.pair, new
        watch.take(seen)
        said = [] if new.warnings == old.warnings else list(new.warnings)
        if new.fingerprint != old.fingerprint:
            names = ", ".join(new.names) or "no name"
            replaced = f"the certificate in {new.certificate} was replaced: for {names}, until {day(new.not_after)}"
            said.insert(0, Success(replaced))
            said += judge(new, now)[1]
        return said

    def expiring(self, now: float) -> list[str]:
        """Return a sentence for each certificate that is near its end, a few times in its life. Check thread."""
        if not self._lock.acquire(blocking=False):
            return []
        try:
            pairs = self.pairs
            self._told = {pair.fingerprint: self._told.get(pair.fingerprint, WARN_DAYS[0] + 1) for pair in pairs}
            said = []
            for pair in pairs:
                reached = threshold(pair.not_before, pair.not_after, now)
                if reached is not None and reached < self._told[pair.fingerprint]:
                    self._told[pair.fingerprint] = reached
                    said.append(_of_end(pair, now))
            return said
        finally:
            self._lock.release()

    # --- what both do, under the lock ---

    def _new_front(self) -> ssl.SSLContext:
        try:
            front = self._make(None)
        except ssl.SSLError as error:
            raise CertificateError([f"client_ca: {self._client_ca} holds no certificates that can be read"]) from error
        except OSError as error:
            problem = f"client_ca: {self._client_ca} cannot be read: {error.strerror or error}"
            raise CertificateError([problem], passing=True) from error
        front.sni_callback = self._choose
        return front

    def _publish(self, now: float, front: ssl.SSLContext | None) -> None:
        self._table = _table(self.pairs, self._unknown)
        if front is not None:
            self._front, self._front_made = front, now

    # --- the thread that does the handshake ---

    def _choose(self, connection: ssl.SSLObject, server_name: str | None, _: ssl.SSLContext) -> int | None:
        context = self.context_for(server_name)
        if context is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = context
        return None


def threshold(not_before: float, not_after: float, now: float) -> int | None:
    """Return the least of WARN_DAYS that is reached, None while that is no news. Pure."""
    left = not_after - now
    third = (not_after - not_before) / 3
    reached = [days for days in WARN_DAYS if left <= days * DAY_S and days * DAY_S < third]
    return min(reached, default=None)


def _of_end(pair: Pair, now: float) -> str:
    names = ", ".join(pair.names) or "no name"
    if now >= pair.not_after:
        return f"the certificate for {names} in {pair.certificate} has expired, on {day(pair.not_after)}"
    left = int((pair.not_after - now) // DAY_S)
    days = "less than a day" if not left else "1 day" if left == 1 else f"{left} days"
    return f"the certificate for {names} in {pair.certificate} expires in {days}, on {day(pair.not_after)}"
