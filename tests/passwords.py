"""What the tests of HTTP Basic share: users who cost next to nothing to check, and check threads that are held."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from werkzeug.security import generate_password_hash

from tests.support import PATIENCE_S, Running

# Half a millisecond; what `hardserve passwd` makes takes a hundred times that.
CHEAP = "scrypt:128:8:1"
CHALLENGE = 'Basic realm="hardserve", charset="UTF-8"'


def basic(user: str, password: str) -> str:
    return f"Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def write_users(path: Path, **passwords: str) -> str:
    """Write a users file, and return what the setting auth.users takes."""
    lines = [f"{user}:{generate_password_hash(password, CHEAP)}\n" for user, password in passwords.items()]
    path.write_text("".join(lines), encoding="utf-8")
    path.chmod(0o600)
    return str(path)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.001)


def unchecked(running: Running) -> int:
    """Return how many passwords wait for a check thread."""
    return running.server._offload._passwords.waiting()


@contextlib.contextmanager
def checks_held(running: Running) -> Iterator[threading.Event]:
    """Have all threads that check passwords be busy with something else until the event is set, or the block ends."""
    release, held = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        held.release()
        release.wait(PATIENCE_S)

    eventually(lambda: hasattr(running.server, "_offload"))  # it has begun to run
    passwords = running.server._offload
    for _ in range(2):
        running.server._loop.post(lambda _now: passwords._passwords.submit(hold, lambda _result: None) and None)
    try:
        for _ in range(2):
            assert held.acquire(timeout=PATIENCE_S)
        yield release
    finally:
        release.set()


def assert_nothing_is_kept(running: Running) -> None:
    """Wait until the server keeps nothing of anybody's request, and no connection."""
    server = running.server
    eventually(lambda: not server._loop.connections)
    eventually(lambda: not server._offload._trying)
    budget = server._budget
    eventually(lambda: (budget.memory, budget.files, budget._by_client) == (0, 0, {}))
