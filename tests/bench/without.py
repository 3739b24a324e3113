"""Runs the real command without one of its optimisations, to show what that one buys.

    python -m tests.bench --parts hello --only hardserve,without-held-calls

Must not change anything but the one thing that it names.
"""

from __future__ import annotations

import sys

from hardserve.cli import main
from hardserve.edge import transport


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


if __name__ == "__main__":
    {"held-calls": without_held_calls}[sys.argv.pop(1)]()
    main()
