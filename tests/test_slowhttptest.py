"""Slow clients that are not ours: Debian's slowhttptest in each of its modes against the real command, all at once."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.bench.hostile_normal import NormalClient
from tests.conftest import PATIENCE_S, REPOSITORY, Command, StartCommand

SLOWHTTPTEST = shutil.which("slowhttptest")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(SLOWHTTPTEST is None, reason="no slowhttptest: apt-get install slowhttptest"),
]

APP = f"{REPOSITORY / 'tests' / 'bench' / 'app' / 'attacked.py'}:app"
CONNECTIONS = 100
Line = tuple[str, str, str]  # of the access log: target, status, and the reason of a refusal or cut
# What each mode asks for, and what is logged when the server has dealt with it.
MODES: Mapping[str, tuple[str, Line]] = {
    "-H": ("/", ("", "408", "header_deadline")),
    "-B": ("/upload", ("/upload", "408", "body_too_slow")),
    "-X": ("/block", ("/block", "200", "response_too_slow")),
    # What a Range means is the app's affair, and this one ignores it.
    "-R": ("/?range", ("/?range", "200", "-")),
}
FLAGS = (
    # slowhttptest comes from one address only, and says something once a second.
    *("--limits-client-connections", "0", "--limits-client-connection-rate", "0"),
    *("--timeouts-header", "0.3s", "--timeouts-rate-grace", "0.2s", "--timeouts-body", "5s"),
    # So many slow readers of a large block would else be cut for the memory that they hold, not for being slow.
    *("--limits-buffered-memory", "2GiB"),
)

# A request whose head never came has no target.
_LINE = re.compile(r'"(?:[A-Z]+ (\S+) HTTP/1.1|-)" (\d+) .* refused=(\S+)$', re.MULTILINE)


@contextlib.contextmanager
def slowhttptest(mode: str, url: str, directory: Path) -> Iterator[None]:
    """Run one mode while the block runs."""
    assert SLOWHTTPTEST is not None
    command = [SLOWHTTPTEST, mode, "-u", url, "-c", str(CONNECTIONS), "-r", str(10 * CONNECTIONS)]
    # A piece a second, reads of 5 bytes; ends by itself in the end.
    command += ["-i", "1", "-n", "1", "-w", "10", "-y", "20", "-z", "5", "-l", str(round(PATIENCE_S)), "-v", "0"]
    with (
        (directory / f"slowhttptest{mode}.txt").open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process,
    ):
        try:
            yield
        finally:
            process.kill()


def logged(command: Command) -> Counter[Line]:
    return Counter(_LINE.findall(command.access_log.read_text()))


def await_lines(command: Command, expected: set[Line]) -> Counter[Line]:
    """Wait until each of `expected` has been logged for all connections of a mode; return how often each line was."""
    limit = time.monotonic() + PATIENCE_S
    while True:
        lines = logged(command)
        if all(lines[line] >= CONNECTIONS for line in expected) or time.monotonic() > limit:
            return lines
        time.sleep(0.05)


def test_slow_clients_are_ended_for_what_they_do_and_nobody_else_notices(start_command: StartCommand) -> None:
    expected = {line for _, line in MODES.values()}
    with start_command(APP, *FLAGS) as command, contextlib.ExitStack() as attacks:
        client = attacks.enter_context(NormalClient(command.port, rate=50))
        began = time.monotonic()
        for mode, (target, _) in MODES.items():
            attacks.enter_context(slowhttptest(mode, command.url + target, command.directory))
        lines = await_lines(command, expected)
        felt = client.felt(began, time.monotonic())
    assert all(lines[line] >= CONNECTIONS for line in expected), lines
    # slowhttptest looks every now and then whether it has won, and leaves before it is answered.
    assert {reason for _, _, reason in lines} - {reason for _, _, reason in expected} <= {"client_disconnected"}, lines
    assert felt.requests > 0
    assert felt.problems == {}
