"""Runs the real command without one of its optimisations, to show what that one buys.

    python -m tests.bench --parts hello --only hardserve,without-held-calls,without-patience

Must not change anything but the one thing that it names.
"""

from __future__ import annotations

import sys

from hardserve.cli import main
from hardserve.edge import transport
from hardserve.wsgi import workers


def without_held_calls() -> None:
    """Let go of the interpreter lock in every `recv` and `send`, as the socket module does."""

    class ReleasingTransport(transport.PlainTransport):
        __slots__ = ()

        def receive(self, max_bytes: int) -> bytes | None:
            try:
                return self._socket.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                return None

        def send(self, data: bytes | memoryview) -> int:
            try:
                return self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                return 0

    transport.PlainTransport = ReleasingTransport  # type: ignore[misc]


def without_patience() -> None:
    """Wake a worker for every request that finds one asleep."""

    def wake_for_each(self: workers.Workers[object], now: float) -> None:
        self._wake(len(self._waiting))

    workers.Workers.nudge = wake_for_each  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    {"held-calls": without_held_calls, "patience": without_patience}[sys.argv.pop(1)]()
    main()
