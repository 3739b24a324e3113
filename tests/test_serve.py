"""`hardserve.serve`: a server inside somebody else's process takes nothing from it and gives everything back."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import hardserve
from hardserve.edge.listener import ListenError
from hardserve.options import SettingsError
from hardserve.server import Server
from tests.support import PATIENCE_S, Client, serving

QUIET: dict[str, Any] = {"bind": "127.0.0.1:0", "threads": 2, "log_access": "off"}


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def get(server: Server, number: int = 0) -> bytes:
    import socket

    host, _, port = server.urls[number].removeprefix("http://").rpartition(":")
    with Client(socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S)) as client:
        return client.get("/", "Connection: close").body


class Background:
    """`hardserve.serve` in a thread of its own."""

    def __init__(self, app: Any = hello, **settings: Any) -> None:
        self.server: Server
        self.outcome: list[Any] = []
        self._ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(app, QUIET | settings), daemon=True)
        self.thread.start()
        assert self._ready.wait(PATIENCE_S)

    def _run(self, app: Any, settings: dict[str, Any]) -> None:
        try:
            self.outcome.append(hardserve.serve(app, ready=self._on_ready, **settings))
        except BaseException as error:
            self.outcome.append(error)
        finally:
            self._ready.set()

    def _on_ready(self, server: Server) -> None:
        self.server = server
        self._ready.set()

    def stop(self) -> Any:
        self.server.stop()
        self.thread.join(PATIENCE_S)
        return self.outcome[0]


def test_importing_starts_and_imports_nothing() -> None:
    code = (
        "import sys, threading, signal, logging\n"
        "before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]\n"
        "import hardserve, hardserve.server, hardserve.edge.loop, hardserve.wsgi.task\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert before == [signal.getsignal(n) for n in"
        " (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]\n"
        "assert not logging.getLogger().handlers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S, cwd=Path(__file__).parent.parent)


def test_importing_the_package_alone_is_cheap() -> None:
    code = "import sys, hardserve\nassert not {'waitress', 'flask', 'logging', 'socket'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S, cwd=Path(__file__).parent.parent)


def test_a_server_in_a_thread_is_stopped_from_another() -> None:
    background = Background()
    assert get(background.server) == b"hello"
    assert background.stop() == 0


def test_nothing_stays_behind() -> None:
    gc.collect()
    threads = set(threading.enumerate())
    descriptors = set(Path("/proc/self/fd").iterdir())
    root, ours = logging.getLogger(), logging.getLogger("hardserve")
    log_state = (root.handlers[:], root.level, ours.handlers[:], ours.level, ours.propagate)
    background = Background()
    get(background.server)
    background.stop()
    background.thread.join(PATIENCE_S)
    del background
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert len(set(Path("/proc/self/fd").iterdir())) == len(descriptors)
    assert (root.handlers[:], root.level, ours.handlers[:], ours.level, ours.propagate) == log_state


def test_two_servers_in_one_process_do_not_know_each_other() -> None:
    def other(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"other"]

    first, second = Background(), Background(other)
    assert (get(first.server), get(second.server)) == (b"hello", b"other")
    assert first.stop() == 0
    assert get(second.server) == b"other"
    assert second.stop() == 0


def test_it_can_be_called_again() -> None:
    for _ in range(2):
        background = Background()
        assert get(background.server) == b"hello"
        assert background.stop() == 0


def test_in_the_main_thread_signals_are_handled_and_given_back() -> None:
    def mine(number: int, frame: object) -> None: ...

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.signal(number, mine) for number in numbers]
    answers: list[bytes] = []

    def ready(server: Server) -> None:
        assert mine not in [signal.getsignal(number) for number in numbers]

        def visit() -> None:
            answers.append(get(server))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

        threading.Thread(target=visit, daemon=True).start()

    try:
        assert threading.current_thread() is threading.main_thread()
        assert hardserve.serve(hello, ready=ready, **QUIET) == 0
        assert [signal.getsignal(number) for number in numbers] == [mine] * 4
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert answers == [b"hello"]


def test_in_another_thread_signals_are_left_alone() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    background = Background()
    assert [signal.getsignal(number) for number in numbers] == before
    background.stop()


def test_several_addresses_at_once() -> None:
    background = Background(bind=["127.0.0.1:0", "127.0.0.2:0"])
    assert [get(background.server, number) for number in range(2)] == [b"hello"] * 2
    background.stop()


def test_stopping_twice_after_the_end_does_no_harm() -> None:
    background = Background()
    assert background.stop() == 0
    background.server.stop()
    background.server.report_threads()


def test_stopping_in_ready_is_a_complete_life() -> None:
    assert hardserve.serve(hello, ready=lambda server: server.stop(), **QUIET) == 0


def test_a_wrong_setting_is_raised_to_the_caller() -> None:
    threads = set(threading.enumerate())
    with pytest.raises(SettingsError, match="timeouts_header"):
        hardserve.serve(hello, timeouts_header="10x")
    assert set(threading.enumerate()) == threads


def test_an_address_in_use_is_raised_to_the_caller_and_leaves_nothing() -> None:
    threads = set(threading.enumerate())
    with serving(hello) as running:
        bind = ["127.0.0.1:0", f"127.0.0.1:{running.port}"]
        with pytest.raises(ListenError, match=f"port {running.port} is in use"):
            hardserve.serve(hello, **(QUIET | {"bind": bind}))
        assert running.stop() == 0
    assert set(threading.enumerate()) == threads


def test_an_error_in_ready_is_raised_to_the_caller_and_leaves_nothing() -> None:
    gc.collect()
    threads = set(threading.enumerate())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))

    def ready(server: Server) -> None:
        raise LookupError("the caller's own")

    with pytest.raises(LookupError):
        hardserve.serve(hello, ready=ready, **QUIET)
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(0.2)
    assert set(threading.enumerate()) == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_leaving_at_once_leaves_no_idle_thread_behind() -> None:
    """In a process that lives on, a second `stop` must not leave the workers asleep for ever."""
    threads = set(threading.enumerate())
    background = Background(threads=4)
    background.server.stop()
    background.server.stop()
    background.thread.join(PATIENCE_S)
    for thread in set(threading.enumerate()) - threads:
        thread.join(0.5)
    assert set(threading.enumerate()) == threads
