"""Who is let in, who is told why not, and what happens when there is no descriptor left.

Real listeners and real clients at several addresses of 127.0.0.0/8; the test is the I/O thread, and its clock.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from hardserve.edge.admission import (
    ACCEPTS_PER_TURN,
    COMPLAINT_INTERVAL_S,
    HANDSHAKE_S,
    NO_DESCRIPTORS_PER_TURN,
    PAUSE_S,
    ROOM_FOR_RESERVE,
    Acceptor,
    AdmissionContext,
    Peer,
    Peers,
)
from hardserve.edge.clients import Clients
from hardserve.edge.connection import BODY, HEAD
from hardserve.edge.listener import Listener, open_listeners
from hardserve.refusals import (
    CLIENT_CONNECTION_RATE,
    CLIENT_CONNECTIONS,
    CONNECTIONS_FULL,
    NO_DESCRIPTORS,
    Refusal,
)
from tests.support import PATIENCE_S, can_bind_ipv6, serving
from tests.test_drain import hold_io_thread
from tests.test_http import connections, eventually

START = 1000.0
ALICE, BOB = "127.0.0.2", "127.0.0.3"


class Rig:
    """An acceptor; the test is its I/O thread, and what is admitted stays open until the test ends it."""

    def __init__(
        self,
        *binds: str,
        max_connections: int = 1000,
        client_connections: int = 0,
        rate: int = 0,
        backlog: int = 256,
        peers: Peers | None = None,
    ) -> None:
        self.stack = contextlib.ExitStack()
        self.listeners = [each for bind in binds or ("127.0.0.1:0",) for each in open_listeners(bind, backlog)]
        self.selector = selectors.DefaultSelector()
        self.clients = Clients(client_connections, rate)
        self.open: list[tuple[socket.socket, Peer, str]] = []
        self.idle: list[tuple[socket.socket, Peer, str]] = []  # of those, which may be closed to make room
        self.rooms_asked = 0
        self.refused: list[tuple[Refusal, str]] = []
        self.at_room: Callable[[], None] = lambda: None
        self.acceptor = Acceptor(
            self.listeners,
            self.selector,
            max_connections=max_connections,
            clients=self.clients,
            ctx=AdmissionContext(
                open_connections=lambda: len(self.open),
                admitted=self._admitted,
                make_room=self._make_room,
                answer=lambda refusal: refusal.text.encode(),
                refused=lambda refusal, client, _peer: self.refused.append((refusal, client)),
            ),
            peers=peers or Peers(),
        )

    def _admitted(self, accepted: socket.socket, peer: Peer, client: str, listener: Listener, now: float) -> None:
        assert listener in self.listeners
        self.open.append((accepted, peer, client))

    def _make_room(self, now: float) -> bool:
        self.rooms_asked += 1
        if not self.idle:
            return False
        self.end(self.idle.pop(0))
        self.at_room()
        return True

    def end(self, connection: tuple[socket.socket, Peer, str]) -> None:
        self.open.remove(connection)
        connection[0].close()
        self.clients.left(connection[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.acceptor.close()
        for accepted, _, _ in self.open:
            accepted.close()
        self.selector.close()
        self.stack.close()

    def connect(self, source: str = "127.0.0.1", *, listener: int = 0, send: bytes = b"") -> socket.socket:
        address = ("127.0.0.1", int(self.listeners[listener].port))
        client = self.stack.enter_context(socket.create_connection(address, PATIENCE_S, source_address=(source, 0)))
        client.sendall(send)
        return client

    def turn(self, now: float = START) -> None:
        """Do what the loop does in one turn in which nothing but newcomers is ready."""
        self.acceptor.resume(now)
        for key, _ in self.selector.select(0):
            key.data(now)

    def turn_for(self, seconds: float, now: float = START) -> int:
        """Turn as often as the acceptor asks for, and return how often that was."""
        until, turns = now + seconds, 0
        while now < until:
            self.turn(now)
            turns += 1
            wait_s = self.acceptor.wait_s(now)
            if wait_s is None:
                break
            assert wait_s > 0
            now += wait_s
        return turns

    @property
    def told(self) -> Counter[str]:
        return Counter(refusal.name for refusal, _ in self.refused)


def hears(client: socket.socket) -> str:
    """Return what a client is told before its connection ends. Raises ConnectionError if it is reset instead."""
    heard = b""
    while data := client.recv(65536):
        heard += data
    return heard.decode()


def is_waiting(client: socket.socket) -> bool:
    """Return whether nothing has come, and the connection has not ended."""
    client.setblocking(False)
    try:
        client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        client.settimeout(PATIENCE_S)
    return False


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leave this process no more than `count` free descriptors while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(count + 1)]
    for each in free:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


# --- let in ---


def test_a_newcomer_is_handed_on_with_its_client() -> None:
    with Rig() as rig:
        client = rig.connect(ALICE)
        rig.turn()
        ((accepted, peer, key),) = rig.open
        assert (peer, key) == ((ALICE, client.getsockname()[1]), ALICE)
        assert rig.clients.connections(ALICE) == 1
        assert accepted.gettimeout() == 0.0
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert (rig.refused, rig.rooms_asked) == ([], 0)


@pytest.mark.skipif(not can_bind_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_newcomer_counts_by_its_network() -> None:
    with Rig("[::1]:0", client_connections=1) as rig:
        address = ("::1", int(rig.listeners[0].port))
        for _ in range(2):
            rig.stack.enter_context(socket.create_connection(address, PATIENCE_S))
        rig.turn()
        assert [(peer[0], key) for _, peer, key in rig.open] == [("::1", "::/64")]
        assert rig.refused == [(CLIENT_CONNECTIONS, "::/64")]


@pytest.mark.skipif(not can_bind_ipv6(), reason="this machine has no IPv6")
def test_an_ipv4_newcomer_is_the_same_at_a_socket_for_both() -> None:
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with both, Rig(f"fd:{both.fileno()}") as rig:
        port = both.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            rig.stack.enter_context(socket.create_connection((host, port), PATIENCE_S))
        rig.turn()
        assert [(peer[0], key) for _, peer, key in rig.open] == [("127.0.0.1", "127.0.0.1"), ("::1", "::/64")]


def test_a_unix_socket_has_no_limit_per_client(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Rig(f"unix:{path}", client_connections=1, rate=1, max_connections=5) as rig:
        for _ in range(6):
            rig.stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        rig.turn()
        assert [(peer, key) for _, peer, key in rig.open] == [(("unix:", 0), "")] * 5
        assert rig.refused == [(CONNECTIONS_FULL, "")]


def test_one_turn_takes_so_many_from_each_listener() -> None:
    with Rig("127.0.0.1:0", "127.0.0.1:0") as rig:
        for number in range(2 * (ACCEPTS_PER_TURN + 5)):
            rig.connect(listener=number % 2)
        rig.turn()
        assert len(rig.open) == 2 * ACCEPTS_PER_TURN
        rig.turn()
        assert len(rig.open) == 2 * (ACCEPTS_PER_TURN + 5)


def test_nothing_is_awaited_while_newcomers_are_welcome() -> None:
    with Rig() as rig:
        rig.turn()
        assert rig.acceptor.wait_s(START) is None


# --- turned away ---


def test_a_client_with_too_many_connections_is_told_so_and_nobody_else_is() -> None:
    with Rig(client_connections=2) as rig:
        alice = [rig.connect(ALICE) for _ in range(4)]
        bob = rig.connect(BOB)
        rig.turn()
        assert Counter(key for _, _, key in rig.open) == {ALICE: 2, BOB: 1}
        assert rig.refused == [(CLIENT_CONNECTIONS, ALICE)] * 2
        assert [hears(each) for each in alice[2:]] == [CLIENT_CONNECTIONS.text] * 2
        assert all(map(is_waiting, (*alice[:2], bob)))
        rig.end(rig.open[0])
        again = rig.connect(ALICE)
        rig.turn()
        assert is_waiting(again)


def test_a_client_that_connects_too_often_is_told_so_until_a_while_has_passed() -> None:
    with Rig(rate=1) as rig:
        clients = [rig.connect(ALICE) for _ in range(3)]
        rig.turn()
        assert rig.refused == [(CLIENT_CONNECTION_RATE, ALICE)]
        assert hears(clients[2]) == CLIENT_CONNECTION_RATE.text
        again = rig.connect(ALICE)
        rig.turn(START + 1)
        assert is_waiting(again)
        assert len(rig.refused) == 1


@pytest.mark.parametrize("size", [0, 100, 60_000], ids="{} bytes of a request".format)
def test_who_is_turned_away_can_read_why_whatever_it_has_sent(size: int) -> None:
    with Rig(client_connections=1) as rig:
        rig.connect(ALICE)
        client = rig.connect(ALICE, send=b"x" * size)
        rig.turn()
        assert hears(client) == CLIENT_CONNECTIONS.text


def test_who_has_gone_before_it_is_turned_away_does_no_harm() -> None:
    with Rig(client_connections=1) as rig:
        rig.connect(ALICE)
        gone = rig.connect(ALICE, send=b"x")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        bob = rig.connect(BOB)
        rig.turn()
        assert is_waiting(bob)


def test_turning_away_leaves_no_descriptor_behind() -> None:
    with Rig(client_connections=1) as rig:
        clients = [rig.connect(ALICE) for _ in range(5)]
        rig.turn()
        before = open_descriptors()
        for _ in range(5):
            clients.append(rig.connect(ALICE))
            rig.turn()
        assert open_descriptors() == before + 5, "those of the clients"


def test_none_is_logged_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    with Rig(client_connections=1) as rig, caplog.at_level(logging.DEBUG):
        for _ in range(50):
            rig.connect(ALICE)
        rig.turn()
        assert len(rig.refused) == 49
        assert caplog.records == []


# --- the cap on all connections ---


def test_at_the_cap_an_idle_connection_makes_room_for_each_newcomer() -> None:
    with Rig(max_connections=3) as rig:
        old = [rig.connect() for _ in range(3)]
        rig.turn()
        rig.idle = rig.open[:2]
        new = [rig.connect() for _ in range(2)]
        rig.turn()
        assert [hears(each) for each in old[:2]] == ["", ""]
        assert all(map(is_waiting, (old[2], *new)))
        assert (len(rig.open), rig.refused) == (3, [])


def test_at_the_cap_and_with_nothing_idle_a_newcomer_is_told_so_and_not_counted() -> None:
    with Rig(max_connections=2, rate=5, client_connections=5) as rig:
        old = [rig.connect() for _ in range(2)]
        rig.turn()
        new = rig.connect(ALICE)
        rig.turn()
        assert hears(new) == CONNECTIONS_FULL.text
        assert rig.refused == [(CONNECTIONS_FULL, ALICE)]
        assert rig.clients.connections(ALICE) == 0
        assert all(map(is_waiting, old))
        # And no pause: the next one that can be let in is.
        rig.end(rig.open[0])
        another = rig.connect(ALICE)
        rig.turn()
        assert is_waiting(another)


def test_a_client_over_its_limits_costs_nobody_a_connection() -> None:
    with Rig(max_connections=2, client_connections=1) as rig:
        rig.connect(ALICE)
        bob = rig.connect(BOB)
        rig.turn()
        rig.idle = list(rig.open)
        for _ in range(10):
            rig.connect(ALICE)
        rig.turn()
        assert rig.told == {"client_connections": 10}
        assert rig.rooms_asked == 0
        assert is_waiting(bob)


# --- no descriptor left ---


def test_with_nothing_idle_newcomers_are_still_answered() -> None:
    with Rig() as rig:
        old = rig.connect()
        rig.turn()
        new = [rig.connect(ALICE) for _ in range(3)]
        with descriptors_left(0):
            rig.turn()
        assert [hears(each) for each in new] == [NO_DESCRIPTORS.text] * 3
        assert rig.refused == [(NO_DESCRIPTORS, ALICE)] * 3
        assert rig.clients.connections(ALICE) == 0
        assert is_waiting(old)
        new = [rig.connect()]
        rig.turn()
        assert is_waiting(new[0]), "there are descriptors again, and no pause"


def test_so_many_are_answered_and_the_others_wait_a_while() -> None:
    with Rig() as rig:
        rig.turn()
        new = [rig.connect() for _ in range(NO_DESCRIPTORS_PER_TURN + 4)]
        with descriptors_left(0):
            rig.turn()
            assert rig.told == {"no_descriptors": NO_DESCRIPTORS_PER_TURN}
            assert rig.acceptor.wait_s(START) == pytest.approx(PAUSE_S)
            rig.turn(START + PAUSE_S / 2)
            assert len(rig.refused) == NO_DESCRIPTORS_PER_TURN
            rig.turn(START + PAUSE_S)
        assert len(rig.refused) == len(new)


def test_idle_connections_give_newcomers_their_descriptors() -> None:
    with Rig() as rig:
        old = [rig.connect() for _ in range(20)]
        rig.turn()
        rig.idle = rig.open[:20]
        new = [rig.connect() for _ in range(20)]
        with descriptors_left(0):
            rig.turn()
            assert rig.acceptor.wait_s(START) is None
        assert [hears(each) for each in old] == [""] * 20
        assert all(map(is_waiting, new))
        assert (len(rig.open), rig.refused) == (20, [])


def test_the_last_descriptors_are_used_before_any_room_is_made() -> None:
    with Rig() as rig:
        rig.connect()
        rig.turn()
        rig.idle = list(rig.open)
        new = [rig.connect() for _ in range(2)]
        with descriptors_left(2):
            rig.turn()
        assert all(map(is_waiting, new))
        assert rig.rooms_asked == 0


def test_a_client_over_its_limits_costs_nobody_a_descriptor() -> None:
    with Rig(client_connections=1) as rig:
        rig.connect(ALICE)
        bob = rig.connect(BOB)
        rig.turn()
        rig.idle = list(rig.open)
        more = [rig.connect(ALICE) for _ in range(ACCEPTS_PER_TURN)]
        with descriptors_left(0):
            rig.turn()
            assert rig.acceptor.wait_s(START) is None
        assert hears(more[-1]) == CLIENT_CONNECTIONS.text
        assert rig.told == {"client_connections": ACCEPTS_PER_TURN}
        assert rig.rooms_asked == 0
        assert is_waiting(bob)


def test_an_app_that_is_quicker_costs_a_bounded_number_of_connections() -> None:
    """Each descriptor that is made free is taken by something else."""
    stolen: list[int] = []
    with Rig() as rig:
        for _ in range(40):
            rig.connect()
        rig.turn()
        rig.idle = list(rig.open)
        rig.at_room = lambda: stolen.append(os.open(os.devnull, os.O_RDONLY))
        new = [rig.connect() for _ in range(3)]
        try:
            with descriptors_left(0):
                rig.turn()
                # One came in by the reserve, and what was closed for it did not bring that back.
                assert (len(stolen), len(rig.open)) == (1, 40)
                assert rig.acceptor.wait_s(START) == pytest.approx(PAUSE_S)
                rig.turn(START + PAUSE_S)
                assert (len(stolen), len(rig.open)) == (1 + ROOM_FOR_RESERVE, 40 - ROOM_FOR_RESERVE)
                assert rig.acceptor.wait_s(START + PAUSE_S) == pytest.approx(PAUSE_S)
                # The app lets go of two of them: one is the reserve again, the other a newcomer's.
                rig.at_room = lambda: None
                for _ in range(2):
                    os.close(stolen.pop())
                rig.turn(START + 2 * PAUSE_S)
                assert len(stolen) == 1 + ROOM_FOR_RESERVE - 2
        finally:
            for each in stolen:
                os.close(each)
        assert all(map(is_waiting, new))
        assert rig.refused == []


def count_accepts(rig: Rig, *errors: int) -> list[int]:
    """Have accept fail with each of `errors` in turn, and the last one for ever; return what the attempts fill."""
    (listener,) = rig.listeners
    attempts: list[int] = []

    class Failing(socket.socket):
        def accept(self) -> Any:
            number = errors[min(len(attempts), len(errors) - 1)]
            attempts.append(number)
            if number:
                raise OSError(number, os.strerror(number))
            return super().accept()

    listener.socket = Failing(fileno=listener.socket.detach())
    listener.socket.setblocking(False)
    return attempts


def test_with_nothing_to_be_done_it_is_tried_ten_times_a_second_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with Rig() as rig:
        rig.connect()
        attempts = count_accepts(rig, errno.EMFILE)
        with descriptors_left(0):
            assert rig.turn_for(0.95) == 10
        assert len(attempts) == 10
        assert [record.getMessage().split(";")[0] for record in caplog.records] == [
            "cannot accept: [Errno 24] Too many open files"
        ]
        assert rig.refused == []


def test_the_complaint_is_repeated_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    with Rig() as rig:
        rig.connect()
        count_accepts(rig, errno.ENOBUFS)
        turns = rig.turn_for(3 * COMPLAINT_INTERVAL_S - 1)
        assert turns == pytest.approx(290, abs=2)
        assert len(caplog.records) == 3
        assert "; 0 connections are open" in caplog.text


def test_a_reserve_that_does_not_help_is_no_busy_loop() -> None:
    """Whatever is let go of is taken by another thread before accept gets it."""
    with Rig() as rig:
        rig.turn()
        rig.connect()
        attempts = count_accepts(rig, errno.EMFILE)
        assert rig.turn_for(0.95) == 10
        assert len(attempts) == 20
        assert rig.refused == []


def test_without_a_null_device_newcomers_wait_and_idle_ones_still_make_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "devnull", str(tmp_path / "missing"))
    with Rig() as rig:
        rig.connect()
        rig.turn()
        new = rig.connect()
        with descriptors_left(0):
            rig.turn()
            assert rig.acceptor.wait_s(START) == pytest.approx(PAUSE_S)
            assert is_waiting(new)
            rig.idle = list(rig.open)
            rig.turn(START + PAUSE_S)
        assert (len(rig.open), rig.refused) == (1, [])
        assert is_waiting(new)


def test_a_connection_that_broke_before_it_was_taken_is_passed_over() -> None:
    with Rig() as rig:
        client = rig.connect()
        attempts = count_accepts(rig, errno.ECONNABORTED, errno.EPROTO, 0)
        rig.turn()
        assert len(attempts) == 4
        assert len(rig.open) == 1
        assert is_waiting(client)


@pytest.mark.parametrize(
    ("number", "attempts_a_turn"),
    [
        pytest.param(errno.EINVAL, 1, id="a listener that was shut down by somebody else"),
        pytest.param(errno.EPERM, 1, id="a sandbox that forbids it"),
        pytest.param(errno.ECONNABORTED, ACCEPTS_PER_TURN, id="every connection is broken"),
    ],
)
def test_an_error_that_does_not_go_away_is_no_busy_loop(number: int, attempts_a_turn: int) -> None:
    with Rig() as rig:
        rig.connect()
        attempts = count_accepts(rig, number)
        assert rig.turn_for(0.95) == 10
        assert len(attempts) == 10 * attempts_a_turn


# --- the end ---


def test_at_the_end_those_who_wait_are_taken_whatever_their_clients_limits() -> None:
    with Rig("127.0.0.1:0", "127.0.0.1:0", client_connections=1, rate=1) as rig:
        for number in range(2 * ACCEPTS_PER_TURN + 10):
            rig.connect(ALICE, listener=number % 2)
        rig.acceptor.finish(START)
        assert len(rig.open) == rig.clients.connections(ALICE) == 2 * ACCEPTS_PER_TURN + 10
        assert not rig.acceptor.finished, "somebody's handshake may be under way"
        assert rig.acceptor.wait_s(START) == pytest.approx(HANDSHAKE_S)
        rig.turn(START + HANDSHAKE_S)
        assert rig.acceptor.finished
        assert rig.refused == []
        for connection in list(rig.open):
            rig.end(connection)
        assert rig.clients.connections(ALICE) == 0


def test_at_the_end_those_past_the_cap_wait_until_others_leave() -> None:
    with Rig(max_connections=2) as rig:
        clients = [rig.connect() for _ in range(5)]
        rig.acceptor.finish(START)
        rig.idle = list(rig.open)
        for client in clients[:3]:
            rig.turn()
            assert (len(rig.open), rig.acceptor.finished, rig.acceptor.wait_s(START)) == (2, False, None)
            rig.end(rig.open[0])
            assert hears(client) == "", "its turn came in order"
        rig.turn(START + HANDSHAKE_S)
        assert rig.acceptor.finished, "the last two are in, and nobody waits"
        assert (len(rig.open), rig.refused, rig.rooms_asked) == (2, [], 0)


def test_at_the_end_those_without_a_descriptor_wait_and_come_in_one_by_one() -> None:
    """However many descriptors the app holds, the one that was kept in reserve is there."""
    with Rig() as rig:
        rig.turn()
        clients = [rig.connect() for _ in range(3)]
        with descriptors_left(0):
            rig.acceptor.finish(START)
            for now in (START, START + 1, START + 2):
                assert (len(rig.open), rig.acceptor.finished) == (1, False)
                assert now == START + 2 or rig.acceptor.wait_s(now) == pytest.approx(PAUSE_S)
                rig.end(rig.open[0])
                rig.turn(now + 1)
        assert rig.acceptor.finished
        assert [hears(each) for each in clients] == [""] * 3
        assert (rig.refused, rig.rooms_asked) == ([], 0)


def test_the_end_comes_during_a_pause_without_waiting_for_it() -> None:
    with Rig() as rig:
        rig.turn()
        clients = [rig.connect() for _ in range(NO_DESCRIPTORS_PER_TURN + 3)]
        with descriptors_left(0):
            rig.turn()
            assert rig.acceptor.wait_s(START) is not None
        rig.acceptor.finish(START)
        assert len(rig.open) == 3
        rig.turn(START + HANDSHAKE_S)
        assert rig.acceptor.finished
        assert all(map(is_waiting, clients[NO_DESCRIPTORS_PER_TURN:]))


def test_an_acceptor_that_is_closed_holds_nothing() -> None:
    before = open_descriptors()
    with Rig() as rig:
        rig.turn()
        assert "accepting=True, <Clients" in repr(rig.acceptor)
        rig.acceptor.finish(START)
        rig.acceptor.close()
        rig.turn()
    assert open_descriptors() == before


# --- the whole server ---


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_at_the_cap_the_connection_that_has_been_idle_for_longest_is_closed_for_a_newcomer() -> None:
    with serving(hello, limits_connections=2) as running:  # noqa: SIM117
        with running.connect() as first, running.connect() as second:
            for client in (first, second, first):
                assert client.get("/").body == b"hello"
            with running.connect() as third:
                assert third.get("/").body == b"hello"
                assert second.receive_all() == b""
                assert first.get("/").body == b"hello"
                assert len(connections(running)) == 2


def test_at_the_cap_one_that_has_not_asked_yet_is_idle_too() -> None:
    with serving(hello, limits_connections=1) as running, running.connect() as silent:
        assert running.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").endswith(b"hello")
        assert silent.receive_all() == b""


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"G", id="in a request line"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12", id="in a body"),
    ],
)
def test_at_the_cap_and_with_nobody_idle_a_newcomer_is_refused_and_those_who_are_in_are_served(begun: bytes) -> None:
    whole = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345"
    whole = whole if whole.startswith(begun) else b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving(hello, limits_connections=1) as running, running.connect() as client:
        client.send(begun)
        eventually(lambda: [each.phase for each in connections(running)] in ([HEAD], [BODY]))
        with running.connect() as newcomer:
            response = newcomer.response()
            assert (response.status, response.header("Connection")) == (503, "close")
            assert CONNECTIONS_FULL.text.encode() in response.body
            assert newcomer.receive_all() == b""
        client.send(whole[len(begun) :])
        assert client.response().body == b"hello"


def test_at_the_cap_a_request_that_has_arrived_is_answered_although_its_connection_looked_idle() -> None:
    """The newcomer is accepted first: its listener has been ready for longer."""
    with serving(hello, limits_connections=1) as running, running.connect() as client:
        assert client.get("/").body == b"hello"
        let_go = hold_io_thread(running)
        with running.connect() as newcomer:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            let_go()
            assert client.response().body == b"hello"
            assert newcomer.response().status == 503


def test_a_stop_at_the_cap_does_not_wait_for_nobody() -> None:
    with serving(hello, limits_connections=1, drain="60s") as running, running.connect() as client:
        assert client.get("/").body == b"hello"
        assert running.stop() == 0
        assert client.receive_all() == b""


def test_one_client_has_its_number_of_connections_and_everybody_else_theirs() -> None:
    with serving(hello, limits_client_connections=2) as running, contextlib.ExitStack() as stack:
        alice = [stack.enter_context(running.connect(ALICE)) for _ in range(2)]
        assert [client.get("/").status for client in alice] == [200, 200]
        third = stack.enter_context(running.connect(ALICE))
        response = third.response()
        assert (response.status, response.header("Connection")) == (429, "close")
        assert CLIENT_CONNECTIONS.text.encode() in response.body
        assert stack.enter_context(running.connect(BOB)).get("/").status == 200
        alice[0].socket.close()
        eventually(lambda: len(connections(running)) == 2)
        assert stack.enter_context(running.connect(ALICE)).get("/").status == 200


def test_a_flood_from_one_client_is_turned_away_and_nobody_else_notices() -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), running.connect(ALICE) as client:
                client.receive_all()

    with serving(hello, limits_client_connection_rate=5) as running, running.connect(BOB) as bob:
        threads = [threading.Thread(target=flood) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                assert bob.get("/").body == b"hello"
        finally:
            stop.set()
            running.server.stop()  # ends those who were let in and say nothing
            for thread in threads:
                thread.join(PATIENCE_S)
