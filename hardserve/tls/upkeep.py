"""Certificates while the server runs: replaced files are taken, and whoever has to renew one is told in time.

Every few seconds, and on request, one check thread looks at the files; what it finds goes to the log. The I/O thread
only plans that, so that a file system that hangs holds up nobody: what was loaded is served on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable

from hardserve.pool import Pool
from hardserve.tls.store import CertificateStore, Success

logger = logging.getLogger("hardserve.tls")

# A look is a `stat` of each file.
LOOK_S = 3.0
# How often ends are looked for, and a certificate of our own may be made anew.
DAY_S = 86_400

Renew = Callable[[float], list[str]]  # at seconds of the epoch, on a check thread; returns sentences for the log


def tell(sentences: Iterable[str]) -> None:
    """Log what was found: a success as such, and everything else as a warning. Any thread."""
    for sentence in sentences:
        logger.log(logging.INFO if isinstance(sentence, Success) else logging.WARNING, "%s", sentence)


class Upkeep:
    """The looks at a store. `post` and `plan` are the loop's; `renew` is called once a day, before a look.

    `begin`, `take` and `stop` are for the I/O thread, `look` for any and for signal handlers.
    """

    def __init__(
        self,
        store: CertificateStore,
        post: Callable[[Callable[[float], None]], None],
        plan: Callable[[float, Callable[[float], None]], None],
        *,
        renew: Renew | None = None,
    ) -> None:
        self._kept = store, renew
        self._post = post
        self._plan = plan
        self._pool = Pool("certificates", 1, 1)
        self._day_since = -math.inf  # seconds of the epoch; the check thread's

    def __repr__(self) -> str:
        return f"<Upkeep of {self._kept[0]!r}, {self._pool!r}>"

    def begin(self, now: float) -> None:
        """Look from now on."""
        self._plan(now + LOOK_S, self.begin)
        self._submit(now)

    def look(self) -> None:
        """Look as soon as may be. Any thread, and signal handlers."""
        self._post(self._submit)

    def take(self, store: CertificateStore, renew: Renew | None) -> None:
        """Look at another store from now on."""
        self._kept = store, renew

    def stop(self, until: float) -> None:
        """Look no more."""
        self._pool.stop(until)

    def _submit(self, _now: float) -> None:
        # Where the last look hangs, one more waits for it, and no others.
        self._pool.submit(self._look, lambda _result: None)

    def _look(self) -> None:
        """Check thread."""
        try:
            tell(self._find(time.time()))
        except Exception:
            logger.exception("internal error in %r", self)

    def _find(self, now: float) -> list[str]:
        said: list[str] = []
        store, renew = self._kept
        daily = abs(now - self._day_since) >= DAY_S  # a clock may be set
        if daily:
            self._day_since = now
            if renew is not None:
                said += renew(now)
        said += store.reload(now)
        return said + store.expiring(now) if daily else said
