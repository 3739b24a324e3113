"""What becomes of requests and connections, written down: the access log, sums of refusals in the error log, and bans.

`refusal`, `cut` and `turned_away` are called by the I/O thread, `outcome` by whichever thread is done with a request.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from typing import TYPE_CHECKING

from hardserve.edge.bans import Bans
from hardserve.edge.deadlines import Timer
from hardserve.edge.handshake import CLOSED_EARLY
from hardserve.edge.networks import Networks
from hardserve.ops.accesslog import AccessEntry, AccessLog
from hardserve.ops.refusallog import RefusalLog
from hardserve.refusals import Cut, DryRun, Refusal

if TYPE_CHECKING:
    from hardserve.edge.connection import Connection
    from hardserve.edge.loop import Loop
    from hardserve.edge.parsing import Request
    from hardserve.settings import BanSettings
    from hardserve.wsgi.context import Channel, Received

logger = logging.getLogger("hardserve")

# A line for a ban, at most so often: forged addresses may be banned by the thousand.
BAN_LINE_S = 1.0

# nginx's for a client that left before it had sent its request, and by now everybody's.
CLIENT_CLOSED_REQUEST = 499


# Why handshakes failed that are told apart: each has a line in ten seconds at most.
MAX_REASONS = 32
REASONS_S = 3600.0  # a stranger who thinks up as many hides others for so long


class Record:
    """The record of one server. `loop` is set before the first connection."""

    def __init__(self, access_log: AccessLog, ban: BanSettings) -> None:
        self.loop: Loop
        self.answered = 0  # requests, one more or less while several threads count
        self._outcomes = itertools.count(1)  # which several threads may ask at once
        self.bans = Bans(ban.after, ban.within, ban.for_, ban.ceiling)
        self._access_log = access_log
        self._exempt = Networks(ban.exempt)
        self._debugging = logger.isEnabledFor(logging.DEBUG)  # this and the next one know the level: see `change`
        self._refusal_log = RefusalLog(logger.log, logger.getEffectiveLevel())
        self._refusal_timer = Timer(self._sum_up_refusals)
        self._reasons: set[str] = set()  # of handshakes that failed, of late
        self._reasons_since = 0.0
        self._just_banned: set[str] = set()  # their connections are to be cut
        self._ban_said_at = -math.inf
        self._bans_not_said = 0

    def __repr__(self) -> str:
        return f"<Record {self.bans!r}>"

    def change(self, ban: BanSettings) -> None:
        """Ban by these settings from now on, and take another level of the log. I/O thread."""
        self.bans.limit(ban.after, ban.within, ban.for_, ban.ceiling)
        self._exempt = Networks(ban.exempt)
        self._debugging = logger.isEnabledFor(logging.DEBUG)
        self._refusal_log.level = logger.getEffectiveLevel()

    def outcome(self, channel: Channel, request: Received, status: int, sent: int, reason: str) -> None:
        """Any thread."""
        if request.logged:
            return  # it was cut, and its worker has noticed only now
        request.logged = True
        self.answered = next(self._outcomes)
        headers = request.headers
        self._access_log.write(
            AccessEntry(
                time.time(),
                request.address or channel.peer[0],
                request.command,
                request.request_uri,
                request.version,
                status,
                sent,
                time.monotonic() - request.started,
                request.request_id,
                reason,
                headers.get("HTTP_REFERER", ""),
                headers.get("HTTP_USER_AGENT", ""),
                request.user,
            )
        )

    def refusal(self, connection: Connection, request: Request, refusal: Refusal, sent: int) -> None:
        """I/O thread."""
        if self._debugging:  # in a flood, to find out that it is off would take as long as to parse the request
            logger.debug("request %s of %s refused: %s", request.request_id, connection.peer[0], refusal.name)
        self.outcome(connection, request, refusal.status, sent, refusal.name)
        client = request.client or connection.client
        self.count(refusal, client or connection.peer[0])
        if refusal.offence and client:
            self._add_offence(client, request.address or connection.peer[0])

    def cut(self, connection: Connection, request: Request | None, cut: Cut) -> None:
        """I/O thread."""
        logger.debug("connection of %s closed: %s", connection.peer[0], cut.name)
        if request is not None:
            self.outcome(connection, request, request.status or CLIENT_CLOSED_REQUEST, request.sent, cut.name)
        self.count(cut, connection.client or connection.peer[0])

    def handshake(self, connection: Connection, reason: str) -> None:
        """Count a TLS handshake that failed. I/O thread. What it says is OpenSSL's, so that there are few reasons."""
        quiet = reason == CLOSED_EARLY  # browsers open connections that they then do not need
        now = time.monotonic()
        if now - self._reasons_since >= REASONS_S:
            self._reasons_since = now
            self._reasons.clear()
        if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
            reason = "other reasons"
        self._reasons.add(reason)
        level = logging.DEBUG if quiet else logging.INFO
        self.count(Cut(f"handshake_failed ({reason})", level), connection.client or connection.peer[0])

    def turned_away(self, refusal: Refusal, client: str, address: str) -> None:
        """I/O thread."""
        logger.debug("connection of %s refused: %s", address, refusal.name)
        self.count(refusal, client or address)
        if refusal.offence and client:
            self._add_offence(client, address)

    def is_banned(self, client: str, address: str, now: float) -> bool:
        """I/O thread. An exempt address may be one of a network that is banned because of others."""
        return bool(client) and self.bans.banned(client, now) and not self._exempt.contains(address)

    def _add_offence(self, client: str, address: str) -> None:
        """Have a client that was refused too often dropped from now on."""
        if self._exempt.contains(address):
            return
        now = time.monotonic()
        if not self.bans.offence(client, now):
            return
        if not self._just_banned:
            # Soon: one of its connections is just being answered. And all of a turn's bans at once.
            self.loop.post(self._close_banned)
        self._just_banned.add(client)
        self._bans_not_said += 1
        if now - self._ban_said_at >= BAN_LINE_S:
            more = self._bans_not_said - 1
            others = f"; so were {more:,} others since the last line like this" if more else ""
            logger.warning("%s%s", self.bans.describe(client, now), others)
            self._ban_said_at, self._bans_not_said = now, 0

    def _close_banned(self, _now: float) -> None:
        self.loop.close_banned(self._just_banned)
        self._just_banned = set()

    def count(self, event: Refusal | Cut | DryRun, client: str) -> None:
        now = time.monotonic()
        if self._refusal_log.add(event, client, now):
            self._set_refusal_timer(now)

    def _sum_up_refusals(self, now: float) -> None:
        self._refusal_log.due(now)
        self._set_refusal_timer(now)

    def _set_refusal_timer(self, now: float) -> None:
        wait_s = self._refusal_log.wait_s(now)
        if wait_s is not None:
            self._refusal_timer.set(now + wait_s, now, self.loop)

    def flush(self, now: float) -> None:
        """Say what has not been summed up yet. I/O thread, at the end."""
        self._refusal_log.flush(now)
