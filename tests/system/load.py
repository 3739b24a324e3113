"""Clients of an app in a machine that ask all the time, and what they were not answered."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from tests.system.installed import Installed
from tests.system.machine import PATIENCE_S, Answer, eventually

# One after the other, each; all of them at once. The fastest leaves some of the processor to what is started meanwhile.
TARGETS = ("/slow?s=0.02", "/slow?s=0.1", "/slow?s=0.25")


@dataclass
class Load:
    """Clients that ask again as soon as they are answered.

    Some make a connection for each request, and some keep theirs until they are told otherwise. A client that has kept
    a connection may find it closed when it asks: it is told nothing then, and asks again, as browsers do. That is
    counted, as is what is lost.
    """

    app: Installed
    answered: Counter[int] = field(default_factory=Counter)  # by the process that has answered
    lost: list[str] = field(default_factory=list)
    asked_again: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        return (
            f"{self.answered.total()} requests answered by {len(self.answered)} processes, {len(self.lost)} lost, "
            f"{self.asked_again} asked again"
        )

    def _note(self, pid: int) -> None:
        with self._lock:
            self.answered[pid] += 1

    def _lose(self, what: str) -> None:
        with self._lock:
            self.lost.append(what)

    def fresh(self, target: str) -> None:
        """Ask with a connection for each request."""
        while not self._ended.is_set():
            try:
                answer = self.app.get(target)
            except (OSError, http.client.HTTPException) as error:
                self._lose(f"{target}: {error!r}")
            else:
                self._judge(target, answer)

    def keeping(self, target: str) -> None:
        """Ask over and over on one connection."""
        connection = None
        used = 0
        while not self._ended.is_set():
            try:
                if connection is None:
                    connection, used = self.app.machine.speak(self.app.port), 0
                connection.request("GET", target)
                response = connection.getresponse()
                answer = Answer(response.status, response.headers, response.read())
            except (OSError, http.client.HTTPException) as error:
                if connection is not None:
                    connection.close()
                connection = None
                if used and isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
                    with self._lock:
                        self.asked_again += 1
                else:
                    self._lose(f"{target} after {used} on its connection: {error!r}")
            else:
                self._judge(target, answer)
                used += 1
                if response.will_close:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()

    def _judge(self, target: str, answer: Answer) -> None:
        if answer.status == 200:
            self._note(int(answer.json()["pid"]))
        else:
            self._lose(f"{target}: {answer.status} {answer.text}")

    def end(self) -> None:
        self._ended.set()

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until so many more requests have been answered."""
        before = self.answered.total()
        eventually(lambda: self.answered.total() >= before + count, lambda: (self.lost, self.app.said()[-4000:]))

    def wait_for_another(self, known: Collection[int]) -> int:
        """Wait until a process has answered that is none of those; return it."""

        def another() -> int:
            with self._lock:
                return next((pid for pid in self.answered if pid not in known), 0)

        return int(eventually(another, lambda: (known, self.lost, self.app.said()[-4000:])))


@contextlib.contextmanager
def under_load(app: Installed) -> Iterator[Load]:
    """Have clients ask while a block runs."""
    load = Load(app)
    clients = [
        threading.Thread(target=ask, args=(target,), daemon=True)
        for ask, target in itertools.product((load.fresh, load.keeping), TARGETS)
    ]
    for client in clients:
        client.start()
    try:
        load.wait_for_more()
        yield load
        load.wait_for_more()
    finally:
        load.end()
        until = time.monotonic() + PATIENCE_S
        for client in clients:
            client.join(max(0.0, until - time.monotonic()))
