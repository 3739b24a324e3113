"""Who asks for files: a connection and its request, as this package sees them, and those who wait for one path.

I/O thread, but for what says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hardserve.protocol import FilePart
from hardserve.refusals import Refusal

FORGET_AT = 64


class Asked(Protocol):
    """A complete request."""

    command: str
    path: str
    query: str
    version: str
    headers: dict[str, str]
    request_id: str
    refusal_fields: bytes
    rate_slots: Any
    file_tries: int


class Asker(Protocol):
    """The connection that it came on."""

    def will_close(self, request: Any, /) -> bool: ...
    def await_file(self, now: float, /) -> None: ...
    def awaits(self, request: Any, /) -> bool: ...
    def client_gone(self) -> bool: ...
    def pass_on(self, request: Any, now: float, /) -> None: ...
    def decided(self, request: Any, refusal: Refusal | None, now: float, /) -> None: ...
    def answer(
        self,
        request: Any,
        data: bytes,
        *,
        keep_alive: bool,
        flushed: Callable[[int, str], None],
        file: Sequence[bytes | FilePart] = (),
        now: float,
    ) -> bool: ...


def stays(asker: Asker) -> bool:
    return not asker.client_gone()


class Waiting:
    """Who waits for one path to be looked at.

    Those whose clients have gone are forgotten from time to time, so that a storage that hangs does not keep them all.
    """

    __slots__ = ("_askers", "_forget_at")

    def __init__(self) -> None:
        self._askers: list[tuple[Asker, Asked]] = []
        self._forget_at = FORGET_AT

    def __len__(self) -> int:
        return len(self._askers)

    def add(self, asker: Asker, request: Asked) -> None:
        self._askers.append((asker, request))
        if len(self._askers) >= self._forget_at:
            self._forget()
            self._forget_at = max(FORGET_AT, 2 * len(self._askers))

    @property
    def forsaken(self) -> bool:
        """Whether all who have asked have gone. Any thread: whoever asks in this moment may be missed."""
        return bool(self._askers) and not any(stays(asker) for asker, _ in list(self._askers))

    def take(self) -> list[tuple[Asker, Asked]]:
        """Return those who still wait, and have them wait no longer."""
        self._forget()
        askers, self._askers = self._askers, []
        return askers

    def _forget(self) -> None:
        self._askers = [(asker, request) for asker, request in self._askers if asker.awaits(request)]
