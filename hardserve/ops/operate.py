"""What an operator may ask a running server over its control socket: which clients are banned, and to let them in.

Control thread. The tables belong to the I/O thread; what is done to them is posted there and waited for.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from hardserve.ops.control import Command, CommandError

logger = logging.getLogger("hardserve")

T = TypeVar("T")

# `ask` waits for five seconds, and a turn of the loop takes milliseconds.
PATIENCE_S = 3.0
# Bans in one answer, which is a line of bounded length.
MAX_LISTED = 1000


class Banned(Protocol):
    """One ban that is on."""

    @property
    def client(self) -> str: ...
    @property
    def remaining_s(self) -> float: ...
    @property
    def times(self) -> int: ...
    @property
    def offences(self) -> int: ...


class Bans(Protocol):
    """The table of bans. I/O thread."""

    def list(self, now: float) -> Iterable[Banned]: ...
    def lift(self, client: str, now: float) -> bool: ...


class Operations:
    """The commands. `post` has an action done on the I/O thread; `key_of` is by what an address is counted."""

    def __init__(
        self, post: Callable[[Callable[[float], None]], None], bans: Bans, key_of: Callable[[str], str]
    ) -> None:
        self._post = post
        self._bans = bans
        self._key_of = key_of

    def commands(self) -> Mapping[str, Command]:
        return {"bans": self._list, "unban": self._unban}

    def _list(self, _arguments: Mapping[str, object]) -> list[dict[str, Any]]:
        bans = self._on_io_thread(lambda now: list(self._bans.list(now)))
        return [
            {"client": ban.client, "remaining_s": ban.remaining_s, "times": ban.times, "offences": ban.offences}
            for ban in bans[:MAX_LISTED]
        ]

    def _unban(self, arguments: Mapping[str, object]) -> list[str]:
        """Return the clients whose ban was lifted: those of the argument `clients`, or, if it is empty, all."""
        given = arguments.get("clients")
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise CommandError("expected clients, a list of addresses")
        keys = [self._key(each) for each in given]

        def lift(now: float) -> list[str]:
            wanted = keys or [ban.client for ban in self._bans.list(now)]
            return [client for client in wanted if self._bans.lift(client, now)]

        lifted = self._on_io_thread(lift)
        for client in lifted:
            logger.info("ban of %s lifted", client)
        return lifted[:MAX_LISTED]

    def _key(self, text: str) -> str:
        """Return by what the client is counted that an operator means: an address, or a network as `bans` lists it."""
        address = text.partition("/")[0]
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise CommandError(f"{address[:100]!r} is no address") from None
        return self._key_of(address)

    def _on_io_thread(self, action: Callable[[float], T]) -> T:
        done: SimpleQueue[T] = SimpleQueue()
        self._post(lambda now: done.put(action(now)))
        try:
            return done.get(timeout=PATIENCE_S)
        except Empty:
            raise CommandError(f"the server did not come to it within {PATIENCE_S:g} s") from None
