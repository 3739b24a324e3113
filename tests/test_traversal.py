"""Tens of thousands of request targets that try to leave a directory, and nothing comes of them.

In front of an app that gives its secret to everybody: whatever of a mount reaches it shows at once. The targets are
those of tests.traversal; they go to the real command in a process of its own, many at a time on each connection.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S, Command, StartCommand
from tests.support import TlsSocket, spoken, tls_flags
from tests.traversal import BAIT, PUBLIC, SERVED, attempts, plant

# A hundred thousand are tried on the directory itself, in tests.test_tree; here it is as many as one likes.
TRIES = int(os.environ.get("HARDSERVE_TEST_TRIES", "20000"))
TRIES_BEFORE_FLASK = TRIES // 5
# Over TLS they are the same from the first byte of a request on.
TRIES_OVER_TLS = TRIES // 10
CLIENTS = 4
PIPELINED = 12
FALLBACK = b"the page of the single-page front\n"
FLASK_PUBLIC = b"public, from Flask's own folder\n"

# Ours, and what a Linux machine has to tell: of its users, of this very process.
SECRETS = (BAIT.strip(), b"root:x:0:", b"PYTHONPATH=")

SECRETIVE_APP = f"""\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "{len(BAIT)}")])
    return [{BAIT!r}]
"""
FLASK_APP = """\
from flask import Flask

app = Flask(__name__, static_folder="mount", static_url_path="/static")
"""
FLAGS = (
    *("--rate-limiting-default", "off"),
    *("--limits-client-connections", "0", "--limits-client-connection-rate", "0", "--log-level", "error"),
)
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(?:[^\r]+\r\n)*?Content-Length: (\d+)\r\n(?:[^\r]+\r\n)*\r\n")


@dataclass
class Told:
    """What came back, by status and body; the bodies of refusals are the same but for the request's id."""

    statuses: Counter[int] = field(default_factory=Counter)
    contents: Counter[bytes] = field(default_factory=Counter)
    leaks: list[bytes] = field(default_factory=list)

    def add(self, target: bytes, status: int, response: bytes, body: bytes) -> None:
        self.statuses[status] += 1
        if status not in (400, 404):
            self.contents[body] += 1
        # The latter of the redirects is Flask's, for slashes to be merged.
        if status not in (200, 301, 308, 400, 404) or any(secret in response for secret in SECRETS):
            self.leaks.append(b"%d %b" % (status, target))

    def merge(self, others: Iterable[Told]) -> Told:
        for other in others:
            self.statuses += other.statuses
            self.contents += other.contents
            self.leaks += other.leaks
        return self


def ask(port: int, targets: Iterator[bytes]) -> Told:
    """Send all of `targets`, several at a time; what was not answered when the server closed is sent again."""
    told = Told()
    unanswered: list[bytes] = []
    while True:
        with contextlib.closing(spoken(socket.create_connection(("127.0.0.1", port), PATIENCE_S))) as client:
            while True:
                unanswered += itertools.islice(targets, PIPELINED - len(unanswered))
                if not unanswered:
                    return told
                try:
                    client.sendall(b"".join(b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n" % target for target in unanswered))
                except ConnectionError:
                    break
                answered, is_open = receive(client, unanswered, told)
                del unanswered[:answered]
                assert is_open or answered, "a connection was closed without an answer"
                if not is_open:
                    break


def receive(client: socket.socket | TlsSocket, targets: Sequence[bytes], told: Told) -> tuple[int, bool]:
    """Read the responses to `targets`; return how many there are, and whether the connection is still there."""
    data = b""
    at = answered = 0
    while answered < len(targets):
        found = _HEAD.match(data, at)
        end = found.end() + int(found[2]) if found else len(data) + 1
        if found is None or end > len(data):
            try:
                more = client.recv(1 << 18)
            except ConnectionResetError:
                more = b""
            if not more:
                break
            data += more
            continue
        told.add(targets[answered], int(found[1]), data[at:end], data[found.end() : end])
        answered += 1
        at = end
    assert answered == len(targets) or not data[at:], "a response was cut, or is none"
    return answered, answered == len(targets) and b"\r\nConnection: close\r\n" not in data


def ask_with_all(command: Command, targets: Iterator[bytes]) -> Told:
    lock = threading.Lock()

    def shared() -> Iterator[bytes]:
        while True:
            with lock:
                batch = list(itertools.islice(targets, PIPELINED))
            if not batch:
                return
            yield from batch

    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, command.port, shared()) for _ in range(CLIENTS)]
        return Told().merge(each.result() for each in asked)


def below(prefixes: Sequence[bytes], tries: int) -> Iterator[bytes]:
    """Yield targets below each of the prefixes in turn, and now and then one that is for everybody."""
    served = itertools.cycle(["", "css/", *SERVED])
    targets = zip(itertools.cycle(prefixes), attempts(tries, seed=5), strict=False)
    for number, (prefix, target) in enumerate(targets):
        yield prefix + (target if number % 101 else b"/" + next(served).encode())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory for the mount to be in, below two more, so that not every way up leads to the system at once."""
    directory = tmp_path / "a" / "b"
    directory.mkdir(parents=True)
    return directory


def test_nothing_leaves_a_mount_however_it_is_tried(base: Path, start_command: StartCommand, transport: str) -> None:
    tries = TRIES if transport == "plain" else TRIES_OVER_TLS
    mount = base / "mount"
    mount.mkdir()
    (base / "secretive.py").write_text(SECRETIVE_APP)
    (base / "one.css").write_bytes(PUBLIC)
    (base / "hardserve.toml").write_text(
        """
        static = [{ url = "/", directory = "mount" },
                  { url = "/media", directory = "mount", index = "off" },
                  { url = "/listed", directory = "mount", index = "off", listing = "on" },
                  { url = "/front", directory = "mount", index = "off", fallback = "front.html" },
                  { url = "/one.css", directory = "one.css" }]
        """.replace("\n", " ").strip()
    )
    (mount / "front.html").write_bytes(FALLBACK)
    prefixes = [b"", b"/media", b"/listed", b"/front", b"/one.css", b"/media/..", b"/media../mount"]
    with start_command("secretive:app", *FLAGS, *tls_flags(), directory=base) as command:
        # Afterwards: with what is planted there, it would not start.
        plant(base)
        began = time.monotonic()
        told = ask_with_all(command, below(prefixes, tries))
        print(f"{tries} tries in {time.monotonic() - began:.1f} s: {told.statuses}")
    assert told.leaks == []
    assert told.statuses.total() == tries
    assert told.contents.keys() >= {PUBLIC, FALLBACK}
    listings = {content for content in told.contents if content.startswith(b"<!doctype html>")}
    assert told.contents.keys() - listings <= {PUBLIC, FALLBACK, b""}
    assert listings
    assert not any(name in listing for listing in listings for name in (b"bait", b"leaving", b"hidden", b".env"))


def test_nothing_leaves_the_static_folder_of_an_app_that_is_asked_for_what_is_missing(
    base: Path, start_command: StartCommand
) -> None:
    mount = base / "mount"
    mount.mkdir()
    (base / "fronted.py").write_text(FLASK_APP)
    with start_command("fronted:app", *FLAGS, directory=base) as command:
        plant(base)
        for link in ("leaving", "bait-link", "css/to-hidden"):  # Flask follows what the app's own folder has
            (mount / link).unlink()
        told = ask_with_all(command, below([b"/static", b"/static/..", b""], TRIES_BEFORE_FLASK))
        print(told.statuses)
    assert told.leaks == []
    assert told.statuses.total() == TRIES_BEFORE_FLASK
    assert told.contents[PUBLIC] > 0
