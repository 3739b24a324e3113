"""What HTTPS is while a server runs: who computes handshakes, who looks after certificates, and the way here from HTTP.

`securing` says which certificates there are; here they meet the I/O thread. Each method says its thread.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hardserve.edge.challenge import ChallengeAnswers, Serve
from hardserve.edge.handshaker import Handshaker
from hardserve.edge.redirect import Redirect
from hardserve.loader.cookies import sends_session_in_plain
from hardserve.ops.control import CommandError
from hardserve.pool import Pool
from hardserve.securing import Secured, check_certificates, secured_by
from hardserve.tls.pemfiles import CertificateError
from hardserve.tls.upkeep import Upkeep

if TYPE_CHECKING:
    from hardserve.edge.challenge import Outcome
    from hardserve.edge.context import EdgeContext
    from hardserve.edge.gate import Gate
    from hardserve.edge.handshake import Choose
    from hardserve.edge.listener import Listener
    from hardserve.edge.loop import Loop
    from hardserve.protocol import DateClock
    from hardserve.settings import Settings

logger = logging.getLogger("hardserve")

# That compute handshakes. The interpreter lock is let go of meanwhile, and the I/O thread needs a core, too.
THREADS = 2


class Https:
    """The HTTPS of one server, which serves `hosts` ("*" and none for any). Main thread, before anything listens.

    Raises SettingsError for certificates that cannot be served.
    """

    def __init__(self, settings: Settings, hosts: Sequence[str], app: object) -> None:
        self._settings = settings
        self._hosts = hosts
        self._secured: Secured = secured_by(settings, hosts, os.environ)
        self._pool = Pool("tls", THREADS, 2 * THREADS)
        self._upkeep: Upkeep | None = None  # once it runs
        if sends_session_in_plain(app):
            logger.warning(
                "the app's SESSION_COOKIE_SECURE is off, so browsers send the session's cookie in plain HTTP, too: "
                "set it to True"
            )

    def __repr__(self) -> str:
        return f"<Https {self._secured.store!r}>"

    @property
    def about(self) -> str:
        """What an operator is told of the certificate."""
        return self._secured.about

    def context(self) -> ssl.SSLContext:
        """Return what the next connection begins with. I/O thread."""
        return self._secured.store.context

    @property
    def choose(self) -> Choose | None:
        """What finds another context for a ClientHello, if any hello may need one."""
        return None if self._secured.challenges is None else self._secured.context_for

    # --- main thread: the server is put together, and ends ---

    def guard(self, gate: Gate, listeners: Sequence[Listener]) -> None:
        """Have the gate send on what comes in plain, and let in a CA that asks for an answer."""
        if self._settings.server.redirect:
            bound = next((each.port for each in listeners if each.tls and each.port), "")
            port = str(self._settings.server.redirect_port or bound)
            hosts = self._hosts
            # Where the operator has said which hosts are served, nobody gets as far with another one.
            gate.redirect = Redirect(port, (lambda _: True) if hosts and "*" not in hosts else self._secured.has)

    # --- reload thread, and then the I/O thread ---

    def prepare(self, settings: Settings, hosts: Sequence[str], files: Settings) -> Secured | None:
        """Return the certificates for other settings, None where they stay; `files` are those with paths to open.

        Blocks on files. Raises SettingsError for certificates that cannot be served, those that stay among them.
        """
        before = self._settings
        of_hosts = settings.server.tls == "self-signed" and tuple(hosts) != tuple(self._hosts)
        if of_hosts or (settings.tls, settings.certificate) != (before.tls, before.certificate):
            return secured_by(files, hosts, os.environ)
        self.check(files)
        return None

    def check(self, files: Settings) -> None:
        """Look only whether the certificates could be served. Raises SettingsError."""
        check_certificates(files)

    def take(self, settings: Settings, hosts: Sequence[str], secured: Secured | None) -> None:
        """Serve what was prepared: handshakes that have begun go on with what they have. `guard` has to follow."""
        self._settings, self._hosts = settings, hosts
        if secured is not None:
            self._secured = secured
            if self._upkeep is not None:
                self._upkeep.take(secured.store, secured.renew)

    def answering(self, gate: Gate, date: DateClock, outcome: Outcome, others: Serve | None) -> Serve | None:
        """Return what serves a CA its answers before `others` are asked, who serve files."""
        if self._secured.challenges is None:
            return others
        answers = ChallengeAnswers(self._secured.challenges.answer, date, outcome, others)
        gate.is_challenge = answers.expects
        return answers.serve

    def begin(self, ctx: EdgeContext, loop: Loop) -> None:
        """Have connections be secured, and certificates be looked after from now on."""
        ctx.secure = loop.secure
        rate = self._settings.tls.handshake_rate
        ctx.compute = Handshaker(self._pool, THREADS, loop.post, loop.plan, per_second=rate).submit
        self._upkeep = Upkeep(self._secured.store, loop.post, loop.plan, renew=self._secured.renew)
        loop.post(self._upkeep.begin)
        if self._secured.manager is not None:
            self._secured.manager.start()

    def stop(self, until: float) -> None:
        """End all threads, as far as they end by `until` (monotonic seconds)."""
        self._pool.stop(until)
        if self._upkeep is not None:
            self._upkeep.stop(until)
        if self._secured.manager is not None:
            self._secured.manager.stop(until)

    # --- any thread ---

    def look(self) -> None:
        """Take certificates that have been replaced, now and not in some seconds. Also for signal handlers."""
        if self._upkeep is not None:
            self._upkeep.look()

    def renew(self) -> list[str]:
        """Renew certificates, and return what an operator should know. Raises CommandError. Control thread."""
        try:
            return self._secured.renew_now()
        except CertificateError as error:
            raise CommandError("; ".join(error.problems)) from None
