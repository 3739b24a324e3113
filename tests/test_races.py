"""What two threads do to one connection at the same time.

First single interleavings, forced: a transport of the test's own lets the other thread run at the worst moment. Then
the real server under a switch interval of a microsecond, with clients that behave at random, from a seed.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardserve.edge.connection import BODY, BUSY, CLOSED, HEAD, IDLE, LINGER, Connection, EdgeContext
from hardserve.edge.deadlines import Deadlines
from hardserve.edge.listener import Listener
from hardserve.edge.parsing import Request
from hardserve.edge.transport import HeldCalls, PlainTransport
from hardserve.pages import ErrorPages
from hardserve.protocol import DateClock
from hardserve.refusals import QUEUE_DEADLINE, SLOWEST_READER, Refusal
from hardserve.wsgi.context import AppContext
from hardserve.wsgi.interrupt import AbandonedError, Interruptible
from hardserve.wsgi.task import Task
from tests.support import PATIENCE_S, Client, Running, edge_context, serving, switching_often

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

# --- single interleavings ---


class ScriptedTransport:
    """Takes `room` bytes and then no more; `in_send` is called once, in the middle of a send."""

    wants_write = False

    def __init__(self) -> None:
        self.incoming: deque[bytes] = deque()
        self.sent = b""
        self.room = 1 << 30
        self.in_send: Callable[[], None] | None = None
        self.sends_after_shutdown = 0
        self.ends: list[str] = []  # what the peer saw of the end, in order: "end", "reset"

    def fileno(self) -> int:
        return 99

    def receive(self, max_bytes: int) -> bytes | None:
        return self.incoming.popleft() if self.incoming else None

    def send(self, data: bytes) -> int:
        in_send, self.in_send = self.in_send, None
        if in_send is not None:
            in_send()
        if self.ends:
            raise BrokenPipeError
        taken = data[: self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def keep_unsent(self, most: int) -> None: ...

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        if not self.room and not self.ends:
            return None
        return self.send(os.pread(descriptor, min(count, self.room), offset))

    def pending(self) -> bool:
        return False

    def flush(self) -> None:
        raise AssertionError("nothing is left over")

    def unacknowledged(self) -> int:
        return 0

    def shutdown_write(self) -> None:
        self.ends.append("end")

    def close(self, *, reset: bool = False) -> None:
        self.ends.append("reset" if reset else "end")


class Wheel:
    """The loop as a connection sees it, turned by hand."""

    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self.woken: list[Connection] = []
        self.interest = (True, False)

    def set_interest(self, connection: Connection, *, read: bool, write: bool) -> None:
        self.interest = (read, write)

    def watch(self, connection: Connection, now: float) -> None:
        self.deadlines.watch(connection, now)

    def closed(self, connection: Connection) -> None:
        self.deadlines.forget(connection)

    def wake(self, connection: Connection) -> None:
        self.woken.append(connection)


class HookedContext(EdgeContext):
    """`in_idle_s` is called once, after `finish` has asked how long the connection may be idle."""

    in_idle_s: Callable[[], None] | None = None

    def idle_s(self) -> float:
        idle_s = super().idle_s()
        hook, self.in_idle_s = self.in_idle_s, None
        if hook is not None:
            hook()
        return idle_s


class Rig:
    """One connection; the test is its I/O thread, its worker and its client."""

    def __init__(self, **settings: Any) -> None:
        self.transport = ScriptedTransport()
        self.wheel = Wheel()
        self.dispatched: list[Request] = []
        self.answer_at_once: Callable[[], None] | None = None
        self.ctx = edge_context(self.wheel, self._dispatch, HookedContext, **settings)
        self.now = time.monotonic()  # what `finish` and `write` take for now
        peer = ("192.0.2.1", 1)
        self.connection = Connection(self.ctx, self.transport, peer, peer[0], cast(Listener, None), self.now)
        self.wheel.watch(self.connection, self.now)

    def _dispatch(self, connection: Connection, request: Request, now: float) -> None:
        self.dispatched.append(request)
        if self.answer_at_once is not None:
            self.answer_at_once()

    def arrives(self, data: bytes) -> None:
        self.transport.incoming.append(data)
        self.connection.on_readable(self.now)

    def finish(self, data: bytes = b"answer", *, keep_alive: bool = True) -> list[int]:
        """Answer as a worker; return where the number of bytes that never left will be."""
        unsent: list[int] = []
        self.connection.finish(data, keep_alive=keep_alive, flushed=lambda count, _reason: unsent.append(count))
        return unsent

    def resumes(self) -> None:
        """Do as the I/O thread with everything that workers asked for."""
        while self.wheel.woken:
            self.wheel.woken.pop(0).settle(self.now)

    def flush(self) -> None:
        """Have the client take everything."""
        self.transport.room = 1 << 30
        self.resumes()
        while self.connection.outbox is not None:
            self.connection.on_writable(self.now)
        self.resumes()


def meanwhile(action: Callable[[], object]) -> Callable[[], None]:
    """Return a hook in which another thread does `action` as far as locks allow."""

    def run() -> None:
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        thread.join(0.05)  # it ends, or it waits for a lock that the hook's caller holds

    return run


def settle() -> None:
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread() and thread.name.startswith("Thread-"):
            thread.join(PATIENCE_S)


def turn(rig: Rig, seconds: float) -> None:
    """Let time pass, and do what is due, as the I/O thread does."""
    for _ in range(int(seconds / 0.25)):
        rig.now += 0.25
        for late in rig.wheel.deadlines.due(rig.now):
            cast(Connection, late).on_deadline(rig.now)


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_a_stream_whose_client_reset_it_leaves_nothing_behind(end: str) -> None:
    rig = Rig(timeouts_abandoned=1)
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=False, abandon=lambda: False)
    rig.connection.write(b"some")
    rig.connection.close()
    if end == "finish":
        rig.finish(b"rest")
    else:
        rig.connection.abort(reset=True)
    turn(rig, 3)
    assert rig.connection.slot is None, "the wheel keeps it alive"
    assert rig.connection.request is None


def test_a_stream_that_begins_after_its_client_has_gone_is_told() -> None:
    rig = Rig(timeouts_abandoned=1)
    rig.arrives(GET)
    rig.connection.close()
    told: list[float] = []
    rig.connection.begin_stream(open_ended=True, abandon=lambda: not told.append(rig.now))
    rig.resumes()
    turn(rig, 3)
    assert len(told) == 1


@pytest.mark.parametrize("began", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"])
def test_a_request_that_begins_while_a_response_leaves_keeps_its_deadline(began: bytes) -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.transport.in_send = lambda: rig.arrives(began)
    rig.finish(b"answer")
    rig.flush()
    assert rig.connection.phase in (HEAD, BODY)
    assert rig.connection.deadline() <= rig.now + 30


def test_a_stream_that_ends_by_itself_after_its_client_has_gone_is_not_cut_for_being_idle() -> None:
    rig = Rig(timeouts_abandoned=1)
    rig.arrives(GET)
    cuts: list[str] = []
    rig.ctx.log_cut = lambda _connection, _request, cut: cuts.append(cut.name)
    rig.connection.begin_stream(open_ended=True, abandon=lambda: False)
    rig.connection.close()
    rig.finish(b"end")
    turn(rig, 3)
    assert cuts == []


def test_a_stream_that_is_cut_for_its_silence_has_its_app_told() -> None:
    """Its client has gone, by our hand: a worker that waits for an event that nobody will read is lost otherwise."""
    rig = Rig(timeouts_abandoned=1)
    rig.arrives(GET)
    told: list[float] = []
    rig.connection.begin_stream(open_ended=True, abandon=lambda: not told.append(rig.now))
    rig.connection.write(b"first.")
    assert rig.connection.expire(rig.dispatched[0], rig.now)
    turn(rig, 5)
    assert len(told) == 1
    rig.connection.abort(reset=True)
    assert rig.connection.slot is None


def test_a_connection_taken_during_a_drain_is_idle_for_as_long_as_the_others() -> None:
    rig = Rig()
    rig.ctx.draining = True
    late = Connection(rig.ctx, rig.transport, ("192.0.2.1", 2), "192.0.2.1", cast(Listener, None), rig.now)
    assert late.deadline() < rig.now + 2


def test_what_was_waiting_to_leave_is_reported_when_a_later_response_is_cut() -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.transport.in_send = lambda: rig.arrives(GET)
    first = rig.finish(b"answer")
    rig.connection.abort(reset=True)
    assert first == [3]


def test_a_response_that_fits_leaves_at_once_and_wakes_nobody() -> None:
    rig = Rig()
    rig.arrives(GET)
    assert rig.finish(b"answer") == [0]
    assert rig.transport.sent == b"answer"
    assert rig.wheel.woken == []
    rig.arrives(GET)
    assert len(rig.dispatched) == 2


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept alive", "closing"])
def test_a_half_close_while_a_worker_sends_does_not_cut_the_rest(keep_alive: bool) -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.transport.in_send = meanwhile(lambda: rig.arrives(b""))
    rig.finish(b"answer", keep_alive=keep_alive)
    settle()
    rig.flush()
    assert rig.transport.sent == b"answer"


def test_an_old_wake_does_not_end_the_stream_that_a_worker_is_finishing() -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=True, abandon=lambda: None)
    rig.transport.room = 3
    rig.connection.write(b"first.")
    rig.transport.room = 1 << 30
    rig.connection._await_writable(rig.now)
    rig.connection.on_writable(rig.now)  # all of it is out, and the wake is still queued
    rig.transport.in_send = meanwhile(rig.resumes)
    rig.finish(b"last", keep_alive=False)
    settle()
    assert rig.transport.sent == b"first.last"


def test_a_stream_that_a_worker_finishes_while_it_is_flushed_is_not_ended_too_soon() -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=True, abandon=lambda: None)
    rig.transport.room = 3
    rig.connection.write(b"first.")
    rig.resumes()
    rig.transport.room = 1 << 30
    in_finish = threading.Event()
    shut = threading.Event()

    def finish() -> None:
        def in_send() -> None:
            in_finish.set()
            shut.wait(0.05)  # what is right never ends the stream here

        rig.transport.in_send = in_send
        rig.finish(b"last", keep_alive=False)

    def update_interest(connection: Connection, *, read: bool, write: bool) -> None:
        # Where the I/O thread is between "nothing is unsent" and what follows from it.
        if not write and not in_finish.is_set():
            worker = threading.Thread(target=finish, daemon=True)
            worker.start()
            assert in_finish.wait(PATIENCE_S)

    rig.wheel.set_interest = update_interest  # type: ignore[method-assign]
    rig.connection.on_writable(rig.now)
    shut.set()
    settle()
    assert rig.transport.sent == b"first.last"


@pytest.mark.parametrize("event", ["writable", "half-close"])
def test_a_cut_response_ends_with_a_reset_whatever_comes_before_the_wake(event: str) -> None:
    rig = Rig()
    rig.arrives(b"GET / HTTP/1.0\r\n\r\n")
    rig.connection.begin_stream(open_ended=True, abandon=lambda: None)
    rig.transport.room = 3
    rig.connection.write(b"half of")
    rig.resumes()
    rig.connection.abort(reset=True)
    if event == "writable":
        rig.transport.room = 1 << 30
        rig.connection.on_writable(rig.now)
    else:
        rig.arrives(b"")
    rig.resumes()
    assert rig.transport.ends[0] == "reset", "an end is all that marks the end of this response"


def test_a_request_that_comes_as_the_idle_time_ends_is_watched_again() -> None:
    rig = Rig(timeouts_keep_alive=60)
    rig.now += 61
    (late,) = rig.wheel.deadlines.due(rig.now)
    rig.transport.incoming.append(GET)
    cast(Connection, late).on_deadline(rig.now)
    assert rig.connection.phase is BUSY
    rig.finish()
    assert rig.connection.phase is IDLE
    assert rig.connection.slot is not None, "it may now stay idle for ever"


def test_a_connection_that_was_answered_at_its_deadline_stays_open() -> None:
    """The client was told that it does, and sends its next request."""
    rig = Rig(timeouts_keep_alive=60)
    rig.now += 60.5
    rig.connection.read_deadline = rig.now - 0.1
    rig.transport.incoming.append(GET)
    rig.answer_at_once = lambda: rig.finish(keep_alive=True) and None
    (late,) = rig.wheel.deadlines.due(rig.now + 1)
    # A worker is quick: it has answered before the I/O thread looks again.
    cast(Connection, late).on_deadline(rig.now)
    assert rig.transport.sent == b"answer"
    assert rig.connection.phase is IDLE


def test_a_drain_that_begins_while_a_worker_finishes_does_not_wait_for_the_idle_time() -> None:
    rig = Rig(timeouts_keep_alive=60)
    rig.arrives(GET)

    def begin_drain() -> None:
        rig.ctx.draining = True
        rig.connection.begin_drain(rig.now)

    rig.ctx.in_idle_s = meanwhile(begin_drain)
    rig.finish()
    settle()
    assert rig.connection.phase is IDLE
    assert rig.connection.deadline() < rig.now + 5


def test_a_slow_reader_is_held_to_its_progress_not_to_the_idle_time() -> None:
    rig = Rig(timeouts_keep_alive=1, timeouts_response=30)
    rig.arrives(GET)
    rig.transport.room = 3
    rig.finish(b"answer")
    rig.resumes()
    rig.now += 2  # past keep_alive, well within timeouts.response
    for late in rig.wheel.deadlines.due(rig.now):
        cast(Connection, late).on_deadline(rig.now)
    rig.flush()
    assert rig.transport.sent == b"answer"
    assert rig.connection.phase is IDLE, "and its idle time begins when it has everything"
    assert rig.connection.deadline() > rig.now


def test_a_slow_reader_has_its_idle_time_after_the_drain_began_too() -> None:
    """It was not told to close, and may send its next request when it has read the answer."""
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.finish(b"answer")
    rig.resumes()
    rig.ctx.draining = True
    rig.connection.begin_drain(rig.now)
    rig.now += 2
    rig.flush()
    assert rig.connection.phase is IDLE
    assert rig.now < rig.connection.deadline() < rig.now + 1.5


def test_a_stream_that_is_cut_for_not_being_read_has_its_app_told() -> None:
    rig = Rig(timeouts_response=1, timeouts_abandoned=1)
    rig.arrives(GET)
    told: list[float] = []
    rig.connection.begin_stream(open_ended=True, abandon=lambda: told.append(rig.now))
    rig.transport.room = 3
    rig.connection.write(b"first.")
    rig.resumes()
    for _ in range(20):
        rig.now += 0.5
        for late in rig.wheel.deadlines.due(rig.now):
            cast(Connection, late).on_deadline(rig.now)
    assert rig.connection.phase is CLOSED
    assert told, "a worker waits with this app for an event that nobody will read"


def test_an_app_that_comes_back_as_it_is_to_be_told_is_told_when_it_waits_again() -> None:
    """The client half-closed. The app was between two blocks when its time was up, and then waits for ever."""
    rig = Rig(timeouts_abandoned=1)
    rig.arrives(GET)
    waits = Interruptible()
    rig.connection.begin_stream(open_ended=True, abandon=waits.interrupt)
    rig.arrives(b"")
    rig.now += 2
    for late in rig.wheel.deadlines.due(rig.now):
        cast(Connection, late).on_deadline(rig.now)  # the worker is not inside the app
    rig.connection.write(b"block")
    struck = False

    def wait() -> Iterator[bytes]:
        for _ in range(1000):  # as an app does that sleeps and looks
            rig.now += 0.01
            for late in rig.wheel.deadlines.due(rig.now):
                cast(Connection, late).on_deadline(rig.now)
        yield b"event"

    try:
        waits.call(wait().__next__)
    except AbandonedError:
        struck = True
    assert struck


def test_each_of_two_responses_is_told_of_its_own_bytes() -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.transport.in_send = lambda: rig.arrives(GET)  # the next request comes while the first answer leaves
    first = rig.finish(b"first.")
    second = rig.finish(b"second")
    assert (first, second) == ([], [])
    rig.resumes()
    rig.transport.room = 4  # all of the first, one of the second
    rig.connection.on_writable(rig.now)
    rig.connection.close()
    assert (first, second) == ([0], [5])


def test_a_refusal_behind_a_response_that_is_leaving_is_queued_behind_it() -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.transport.in_send = lambda: None
    rig.finish(b"answer")
    rig.arrives(b"\x16\x03\x01 not HTTP\r\n\r\n")
    rig.flush()
    assert rig.transport.sent.startswith(b"answerHTTP/1.1 400")
    assert rig.connection.phase is LINGER


def test_what_is_read_ahead_behind_a_response_that_is_not_read_is_bounded() -> None:
    rig = Rig(limits_pipeline="64KiB")
    rig.arrives(GET)
    rig.transport.room = 3
    rig.finish(b"answer")
    rig.resumes()
    for _ in range(100):
        if rig.wheel.interest[0]:
            rig.arrives(b"x" * 65536)
    assert len(rig.connection.ahead) <= 2 * 65536


def test_two_wakes_of_one_connection_do_no_harm() -> None:
    rig = Rig()
    rig.arrives(GET + GET)
    rig.finish(b"one")
    rig.connection.settle(rig.now)
    assert rig.connection.phase is BUSY
    rig.resumes()
    rig.connection.settle(rig.now)
    assert len(rig.dispatched) == 2
    rig.finish(b"two")
    rig.resumes()
    assert rig.transport.sent == b"onetwo"
    assert rig.connection.phase is IDLE


def test_a_worker_that_waits_for_a_slow_reader_ends_when_the_connection_is_closed() -> None:
    rig = Rig(limits_response_buffer="64KiB")
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=True, abandon=lambda: None)
    rig.transport.room = 0
    raised: list[BaseException] = []

    def write() -> None:
        try:
            rig.connection.write(b"x" * 100_000)
        except ConnectionError as error:
            raised.append(error)

    worker = threading.Thread(target=write, daemon=True)
    worker.start()
    while rig.connection.waited_since == math.inf and worker.is_alive():
        time.sleep(0.001)
    rig.connection.close()
    worker.join(PATIENCE_S)
    assert not worker.is_alive()
    assert len(raised) == 1


# --- a worker that is late: `expire` against everything that it may do meanwhile ---

POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello"


# One worker's way through a response: its steps, of which those that end in a dot are sent.
ANSWERS = {
    "in one piece": ["last."],
    "as a stream": ["begin", "one.", "two.", "last."],
    "as a stream that breaks": ["begin", "one.", "abort"],
    "none, by a bug of ours": ["abort"],
}
# Before each step, while each one sends, and after all of them.
MOMENTS = {
    f"{name}, {'while' if during else 'before'} step {step}": (name, step, during)
    for name, steps in ANSWERS.items()
    for step in range(len(steps) + 1)
    for during in (False, True)
    if step < len(steps) or not during
}


class Late:
    """A request whose worker answers and whose time is up, at a chosen moment."""

    def __init__(self, ahead: bytes | None, room: int) -> None:
        rig = self.rig = Rig()
        self.logged: list[str] = []  # by the I/O thread
        self.told: list[int] = []  # to the worker: how many bytes never left
        self.expired: list[bool] = []
        rig.ctx.log_refusal = lambda _connection, _request, refusal, _sent: self.logged.append(refusal.name)
        rig.ctx.log_cut = lambda _connection, request, cut: self.logged.extend([cut.name] if request else [])
        rig.arrives(POST)
        (self.request,) = rig.dispatched
        if ahead is not None:
            rig.arrives(ahead)  # b"": the client sends no more
        rig.transport.room = room

    def expire(self) -> None:
        self.expired.append(self.rig.connection.expire(self.request, self.rig.now))

    def answer(self, steps: list[str], late_at: int, *, during: bool) -> None:
        """Do as a task does, and give up when the connection is not its own any more."""
        transport = self.rig.transport
        for number, step in enumerate(steps):
            if number == late_at:
                if during:
                    transport.in_send = soon(self.expire)
                else:
                    self.expire()
            try:
                self._take(step)
            except ConnectionError:
                self.rig.connection.abort(reset=True)
                break
        if transport.in_send is not None or late_at == len(steps):
            transport.in_send = None  # nothing was sent in that step
            self.expire()
        settle()
        self.request.close()

    def _take(self, step: str) -> None:
        connection = self.rig.connection
        if step == "begin":
            connection.begin_stream(open_ended=True, abandon=lambda: False)
        elif step == "abort":
            connection.abort(reset=True)
        elif step == "last.":
            connection.finish(b"last.", keep_alive=True, flushed=lambda count, _reason: self.told.append(count))
        else:
            connection.write(step.encode())

    def ends(self) -> bytes:
        """Have the client read everything and leave; return what it has of this answer."""
        rig = self.rig
        rig.resumes()
        if rig.connection.outbox is not None:
            rig.flush()
        sent = rig.transport.sent
        if len(rig.dispatched) > 1:
            rig.finish()
        turn(rig, 5)
        rig.connection.close()
        turn(rig, 5)
        return sent


def soon(action: Callable[[], object]) -> Callable[[], None]:
    """As `meanwhile`, for where the lock is sure to be held."""

    def run() -> None:
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        thread.join(0.005)

    return run


@pytest.mark.parametrize("room", [1 << 30, 2], ids=["a quick reader", "a slow reader"])
@pytest.mark.parametrize("ahead", [None, GET, b""], ids=["alone", "with another request behind", "half-closed"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_late_answer_is_all_there_or_a_504_or_a_reset(moment: str, ahead: bytes | None, room: int) -> None:
    name, step, during = MOMENTS[moment]
    late = Late(ahead, room)
    rig = late.rig
    late.answer(ANSWERS[name], step, during=during)
    (expired,) = late.expired
    assert len(late.logged) == expired
    if expired:
        assert rig.connection.phase in (LINGER, CLOSED), "a late worker must not find it in use for something else"
        assert len(rig.dispatched) == 1, "what came behind it is not answered any more"
    sent = late.ends()
    whole = "".join(each for each in ANSWERS[name] if each.endswith(".")).encode()
    if sent.startswith(b"HTTP/1.1 504 "):
        assert late.logged == ["app_deadline"]
        assert b"last." not in sent
        assert b"one." not in sent
        assert rig.transport.ends[0] == "end"
    elif sent == whole and whole.endswith(b"last."):
        assert not expired
        assert late.told == [0]
    else:
        assert whole.startswith(sent), "a mixture"
        assert rig.transport.ends[0] == "reset"
    assert rig.connection.request is None
    assert rig.connection.slot is None
    assert (rig.ctx.budget.memory, rig.ctx.budget.files) == (0, 0)


def test_an_expired_request_is_answered_behind_the_response_that_is_leaving() -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.transport.in_send = lambda: rig.arrives(GET)
    rig.finish(b"answer")
    assert rig.connection.expire(rig.dispatched[1], rig.now)
    rig.flush()
    assert rig.transport.sent.startswith(b"answerHTTP/1.1 504 ")
    assert rig.transport.ends[:1] == ["end"]


def test_expiring_another_request_than_the_one_in_progress_does_nothing() -> None:
    """Its worker came back in the moment it was found late, and the connection has gone on to the next."""
    rig = Rig()
    rig.arrives(GET)
    rig.finish()
    rig.arrives(GET)
    assert not rig.connection.expire(rig.dispatched[0], rig.now)
    assert rig.connection.phase is BUSY
    assert rig.finish() == [0]


def wait_for(true: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.0005)


@pytest.mark.parametrize("how", ["expire", "cut", "close"])
def test_a_worker_that_waits_for_a_slow_reader_is_told_why_it_is_over(how: str) -> None:
    rig = Rig(limits_response_buffer="64KiB")
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=True, abandon=lambda: False)
    rig.transport.room = 0
    raised: list[str] = []

    def work() -> None:
        try:
            rig.connection.write(b"x" * 100_000)
        except ConnectionError as error:
            raised.append(str(error))
            rig.connection.abort(reset=True)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    wait_for(lambda: rig.connection.waited_since < math.inf)
    if how == "expire":
        rig.connection.expire(rig.dispatched[0], rig.now)
    elif how == "cut":
        rig.connection.cut(SLOWEST_READER, rig.now)
    else:
        rig.connection.close()
    worker.join(PATIENCE_S)
    assert not worker.is_alive()
    assert raised == [{"expire": "app_deadline_midway", "cut": "slowest_reader", "close": "client_disconnected"}[how]]
    assert rig.transport.ends == ["reset"]
    assert rig.connection.waited_since == math.inf
    turn(rig, 5)
    assert rig.connection.slot is None
    assert rig.ctx.budget.memory == 0


# --- a worker at the disk ---


class AtTheDisk:
    """A connection whose worker has begun to write the middle of its response to the file, and waits there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = self.rig = Rig(limits_response_buffer="64KiB", limits_response_file="1MiB")
        rig.arrives(GET)
        rig.connection.begin_stream(open_ended=True, abandon=lambda: False)
        rig.transport.room = 0
        rig.connection.write(b"a" * 60_000)
        rig.resumes()
        self.raised: list[str] = []
        self._there, self._go_on = threading.Event(), threading.Event()
        self._write = os.pwrite
        monkeypatch.setattr(os, "pwrite", self._pwrite)
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        assert self._there.wait(PATIENCE_S)

    def _pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self._there.set()
        assert self._go_on.wait(PATIENCE_S)
        return self._write(descriptor, data, offset)

    def _work(self) -> None:
        try:
            self.rig.connection.write(b"b" * 60_000)
            self.rig.connection.write(b"c" * 10)
            self.rig.finish(b"end", keep_alive=False)
        except ConnectionError as error:
            self.raised.append(str(error))
            self.rig.connection.abort(reset=True)

    def come_back(self) -> None:
        self._go_on.set()
        self._worker.join(PATIENCE_S)
        assert not self._worker.is_alive()
        self.rig.flush()


@pytest.mark.parametrize("how", ["expire", "cut", "writable", "half-close"])
def test_what_happens_to_a_connection_while_its_worker_is_at_the_disk(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    descriptors = open_descriptors()
    away = AtTheDisk(monkeypatch)
    rig = away.rig
    if how == "expire":
        assert rig.connection.expire(rig.dispatched[0], rig.now)
    elif how == "cut":
        rig.connection.cut(SLOWEST_READER, rig.now)
    elif how == "writable":
        rig.transport.room = 1 << 30
        rig.connection.on_writable(rig.now)
        assert rig.transport.sent == b"a" * 60_000
        assert rig.wheel.interest == (True, False), "a writable socket that nothing is for would be a busy loop"
    else:
        rig.arrives(b"")
    away.come_back()
    if how in ("expire", "cut"):
        assert away.raised == ["app_deadline_midway" if how == "expire" else "slowest_reader"]
        assert rig.transport.ends == ["reset"]
    else:
        assert away.raised == []
        assert rig.transport.sent == b"a" * 60_000 + b"b" * 60_000 + b"c" * 10 + b"end"
    turn(rig, 5)
    assert rig.connection.slot is None
    assert (rig.ctx.budget.memory, rig.ctx.budget.files) == (0, 0)
    del away, rig
    gc.collect()
    assert open_descriptors() == descriptors


def test_a_response_that_had_left_when_the_next_one_broke_is_reported_whole() -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.room = 3
    rig.transport.in_send = lambda: rig.arrives(GET)
    first = rig.finish(b"first.")
    second = rig.finish(b"second")
    rig.resumes()
    rig.transport.room = 3

    def send(data: bytes) -> int:
        if not rig.transport.room:
            raise ConnectionResetError
        return ScriptedTransport.send(rig.transport, data)

    rig.transport.send = send  # type: ignore[method-assign]
    rig.connection.on_writable(rig.now)
    rig.connection.on_writable(rig.now)
    assert (first, second) == ([0], [6])
    assert rig.connection.phase is CLOSED


# --- what is counted goes back to nothing, whatever becomes of it ---

BIG_POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 50_000


def leave_while_it_arrives(rig: Rig) -> None:
    rig.arrives(BIG_POST)
    rig.connection.close()


def be_too_slow_with_it(rig: Rig) -> None:
    rig.arrives(BIG_POST)
    turn(rig, 60)


def be_refused(rig: Rig) -> None:
    rig.arrives(BIG_POST.replace(b"1000000", b"100000000"))
    turn(rig, 5)


def leave_with_half_a_head(rig: Rig) -> None:
    rig.arrives(b"GET / HTTP/1.1\r\nX: " + b"y" * 1000)
    rig.connection.close()


def be_answered(rig: Rig) -> None:
    rig.arrives(POST)
    rig.finish()
    rig.dispatched[0].close()
    rig.connection.close()


def leave_while_it_is_answered(rig: Rig) -> None:
    rig.arrives(POST)
    rig.transport.room = 2
    rig.connection.begin_stream(open_ended=False, abandon=lambda: False)
    rig.connection.write(b"a part")
    rig.connection.close()
    rig.finish()
    rig.dispatched[0].close()


def leave_a_pipeline_behind(rig: Rig) -> None:
    rig.arrives(POST)
    rig.arrives(GET * 100)
    rig.connection.close()
    rig.finish()
    rig.dispatched[0].close()


def wait_for_a_thread_too_long(rig: Rig) -> None:
    rig.arrives(POST)
    rig.connection.refuse_waiting(QUEUE_DEADLINE, rig.now)
    rig.connection.close()


def leave_while_waiting_for_a_thread(rig: Rig) -> None:
    rig.arrives(POST)
    rig.connection.close()
    rig.connection.refuse_waiting(QUEUE_DEADLINE, rig.now)


PATHS = [
    leave_while_it_arrives,
    be_too_slow_with_it,
    be_refused,
    leave_with_half_a_head,
    be_answered,
    leave_while_it_is_answered,
    leave_a_pipeline_behind,
    wait_for_a_thread_too_long,
    leave_while_waiting_for_a_thread,
]


@pytest.mark.parametrize("body_memory", ["512KiB", "0"], ids=["in memory", "in a file"])
@pytest.mark.parametrize("path", PATHS, ids=[path.__name__.replace("_", " ") for path in PATHS])
def test_nothing_stays_counted(path: Callable[[Rig], None], body_memory: str) -> None:
    gc.collect()
    descriptors = open_descriptors()
    rig = Rig(limits_body_memory=body_memory)
    path(rig)
    turn(rig, 5)
    assert (rig.ctx.budget.memory, rig.ctx.budget.files) == (0, 0)
    assert not rig.ctx.budget._by_client
    assert open_descriptors() == descriptors, "with the request still referred to"
    assert rig.connection.slot is None


def test_a_request_whose_client_left_while_it_waited_is_logged_once() -> None:
    rig = Rig()
    logged: list[str] = []
    rig.ctx.log_cut = lambda _connection, request, cut: logged.extend([cut.name] if request is not None else [])
    rig.ctx.log_refusal = lambda _connection, _request, refusal, _sent: logged.append(refusal.name)
    rig.arrives(GET)
    rig.connection.close()
    rig.connection.refuse_waiting(QUEUE_DEADLINE, rig.now)
    assert len(logged) == 1


# --- memory that is short ---


def test_a_body_goes_to_a_file_when_responses_have_all_of_the_memory() -> None:
    rig = Rig(limits_buffered_memory="1MiB")
    rig.ctx.budget.add("", 5 << 20, 0)  # one block of a response may be larger than the limit
    rig.arrives(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 30000\r\n\r\n")
    for _ in range(30):
        rig.arrives(b"x" * 1000)
    assert rig.transport.sent == b""
    (request,) = rig.dispatched
    assert request.get_body_stream().read() == b"x" * 30_000
    assert rig.ctx.budget.files == 30_000
    rig.finish()
    request.close()


class Reading:
    """Another client of the rig's server, of whose response so much is unsent, in memory or in a file."""

    def __init__(self, rig: Rig, unsent: int, *, stored: bool = False, taken: int = 0) -> None:
        transport = ScriptedTransport()
        peer = ("192.0.2.2", 1)
        self.connection = Connection(rig.ctx, transport, peer, peer[0], cast(Listener, None), rig.now)
        transport.incoming.append(GET)
        self.connection.on_readable(rig.now)
        transport.room = 0
        if stored:
            self.connection.write(b"a" * 60_000)
            self.connection.write(b"b" * unsent)
            transport.room = 60_000
        else:
            self.connection.finish(b"x" * (unsent + taken), keep_alive=True, flushed=lambda _count, _reason: None)
            transport.room = taken
        rig.resumes()
        self.connection.on_writable(rig.now)


def test_a_reader_of_whom_nothing_is_in_memory_is_not_cut_for_it() -> None:
    rig = Rig(limits_buffered_memory="1MiB", limits_response_buffer="64KiB", limits_response_file="1MiB")
    stored = Reading(rig, 50_000, stored=True)
    assert stored.connection.outbox is not None
    assert (stored.connection.outbox.memory, stored.connection.outbox.stored) == (0, 50_000)
    large = [Reading(rig, 500_000) for _ in range(2)]
    turn(rig, 1)
    assert [each.connection.phase for each in (stored, *large)].count(CLOSED) == 1
    assert stored.connection.phase is BUSY, "that gives nobody a byte"
    for each in (stored, *large):
        each.connection.close()


def write_in_a_thread(rig: Rig, size: int) -> threading.Thread:
    """Have a worker write so much, and return when it waits for the client."""

    def write() -> None:
        with contextlib.suppress(ConnectionError):
            rig.connection.write(b"x" * size)

    worker = threading.Thread(target=write, daemon=True)
    worker.start()
    wait_for(lambda: rig.connection.waited_since < math.inf)
    return worker


def test_a_reader_that_is_cut_as_it_is_found_out_is_gone() -> None:
    """It has just filled the memory, and its worker waits: nothing of the server may hold it any more."""
    rig = Rig(limits_buffered_memory="1MiB", limits_response_buffer="64KiB")
    rig.arrives(GET)
    rig.connection.begin_stream(open_ended=True, abandon=lambda: False)
    rig.transport.room = 0
    others = [Reading(rig, 400_000, taken=5) for _ in range(2)]
    worker = write_in_a_thread(rig, 500_000)
    rig.resumes()
    assert rig.connection.phase is CLOSED
    worker.join(PATIENCE_S)
    assert rig.connection not in rig.ctx.readers._readers
    assert rig.connection not in rig.ctx.readers.waited_for
    rig.connection.abort(reset=True)
    turn(rig, 5)
    assert rig.connection.slot is None
    for each in others:
        each.connection.close()


@pytest.mark.parametrize("abandoned", ["1s", "0s"], ids=["its app is told", "its app is not told"])
@pytest.mark.parametrize("keep_alive", [True, False], ids=["answered", "being answered"])
def test_a_reader_that_is_cut_in_the_turn_in_which_it_is_looked_at_is_gone(keep_alive: bool, abandoned: str) -> None:
    """Two timers are due at once, and the first one ends what the second is for."""
    rig = Rig(timeouts_abandoned=abandoned)
    cuts: list[str] = []
    rig.ctx.log_cut = lambda _connection, _request, cut: cuts.append(cut.name)
    rig.arrives(GET)
    rig.transport.room = 2
    if keep_alive:
        rig.finish(b"answer")
    else:
        rig.connection.begin_stream(open_ended=True, abandon=lambda: True)
        rig.connection.write(b"a part")
    rig.resumes()
    rig.now += 1
    (late,) = rig.wheel.deadlines.due(rig.now)
    rig.connection.cut(SLOWEST_READER, rig.now)
    cast(Connection, late).on_deadline(rig.now)
    turn(rig, 5)
    assert rig.connection.slot is None, "the wheel looks at it four times a second, for ever"
    assert cuts == ["slowest_reader"]


def test_a_refused_client_that_is_cut_as_it_is_answered_is_gone() -> None:
    rig = Rig(limits_buffered_memory="1MiB")
    rig.transport.room = 0
    # All have read some. What they leave of the memory is less than a refusal.
    others = [Reading(rig, 349_500, taken=5) for _ in range(3)]
    rig.arrives(b"GET / HTTP/2.0\r\n\r\n")
    assert rig.connection.phase is CLOSED
    assert rig.connection.slot is None, "the wheel keeps it alive"
    assert rig.connection not in rig.ctx.readers._readers
    for each in others:
        each.connection.close()


class LockWithHooks:
    """A lock that does something before it is taken for the nth time."""

    def __init__(self, hooks: dict[int, Callable[[], object]]) -> None:
        self._lock = threading.Lock()
        self._hooks = hooks
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._count += 1
        hook = self._hooks.pop(self._count, None)
        if hook is not None:
            hook()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_a_client_that_leaves_as_its_worker_begins_to_wait_for_it() -> None:
    """With the real transport: its descriptor is closed then, and can be asked for nothing."""
    rig = Rig(limits_response_buffer="64KiB")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    rig.arrives(GET)
    rig.connection.transport = PlainTransport(ours, HeldCalls())
    rig.connection.begin_stream(open_ended=True, abandon=lambda: False)
    # Once for what it writes, and then to wait.
    rig.connection.lock = LockWithHooks({2: rig.connection.close})  # type: ignore[assignment]
    with theirs, pytest.raises(ConnectionError, match="client_disconnected"):
        rig.connection.write(b"x" * 5_000_000)
    assert rig.connection.waited_since == math.inf
    rig.connection.abort(reset=True)


def test_a_transport_that_is_closed_holds_nothing() -> None:
    ours, theirs = socket.socketpair()
    transport = PlainTransport(ours, HeldCalls())
    with theirs:
        transport.close()
        assert transport.unacknowledged() == 0


# --- the app, from the worker's side ---


class Asked:
    """What a task is run with: the rig's connection, and an outcome to look at."""

    def __init__(self, app: Callable[..., Any], **settings: Any) -> None:
        self.rig = Rig(**settings)
        self.rig.connection.listener = cast(Listener, SimpleNamespace(name="test", port="80"))
        self.outcomes: list[tuple[int, int, str]] = []
        ctx = AppContext(
            app,
            DateClock(),
            ErrorPages(),
            lambda _channel, _request, status, sent, reason: self.outcomes.append((status, sent, reason)),
            responded=lambda _slots, _status: None,
            multithread=True,
            interrupts=False,
        )
        self.rig.arrives(GET)
        self.request = self.rig.dispatched[0]
        self.task = Task(ctx, self.rig.connection, self.request)


def test_a_stream_that_writes_while_it_is_asked_for_a_block_is_not_struck_in_our_code() -> None:
    """PEP 3333's `write`, called by the app's generator: the lock is held in there."""
    struck: list[bool] = []

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        write = start_response("200 OK", [])

        def blocks() -> Iterator[bytes]:
            yield b"one"
            abandon = world.rig.connection.abandon
            assert abandon is not None
            world.rig.transport.in_send = lambda: struck.append(abandon())
            write(b"two")
            yield b"three"

        return blocks()

    world = Asked(app)
    world.task.run()
    assert struck == [False]
    assert b"one" in world.rig.transport.sent
    assert world.outcomes[0][2] == ""


def test_an_app_that_hangs_as_its_client_leaves_is_late_like_any_other() -> None:
    """Its block could not be sent, and it never comes back from cleaning up: nobody waits for the client any more."""
    since: list[float] = []

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])

        def blocks() -> Iterator[bytes]:
            try:
                yield b"one"
                world.rig.connection.close()
                yield b"two"
            finally:
                since.append(world.request.app_since)

        return blocks()

    world = Asked(app)
    world.task.run()
    assert since[0] < math.inf, "nothing would ever find this thread"


# --- the pool's decisions, in the server ---


class Slow:
    """An app that keeps each request for /hang until it is released."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/hang":
            self.release.wait(PATIENCE_S)
        environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [b"late"]


def test_a_worker_that_comes_back_as_it_is_answered_for_does_not_log_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client has a 504: a line that says 200 would be a lie."""
    app = Slow()
    with serving(app, threads=1, timeouts_app="0.1s") as running:
        response = ErrorPages.response

        def come_back(self: ErrorPages, refusal: Refusal, **rest: Any) -> bytes:
            # Where the I/O thread is between taking the connection and answering on it.
            app.release.set()
            wait_for(lambda: not running.server._workers.stuck)
            return response(self, refusal, **rest)

        monkeypatch.setattr(ErrorPages, "response", come_back)
        with running.connect() as client:
            assert client.get("/hang").status == 504
        entries = running.log.wait_for(1)
        assert running.stop() == 0
    assert [(entry.status, entry.refusal) for entry in entries] == [(504, "app_deadline")]
    assert len(running.log.entries) == 1


def test_a_drain_is_not_cut_short_because_threads_hang() -> None:
    """It was asked for once. A second time would mean: at once."""
    app = Slow()
    with serving(app, threads=2, timeouts_app="0.1s", max_stuck=1, exit_when_stuck="on") as running:
        with running.connect() as slow, running.connect() as hanging:
            slow.send(POST[:-1])
            wait_for(lambda: any(each.phase is BODY for each in list(running.server._loop.connections)))
            hanging.send(GET.replace(b"/ ", b"/hang "))
            wait_for(running.server._workers.busy)
            running.server.stop()
            assert hanging.response().status == 504
            wait_for(lambda: not running.server.healthy)
            slow.send(POST[-1:])
            assert slow.response().body == b"late"
        running.thread.join(PATIENCE_S)
        assert not running.thread.is_alive()
        app.release.set()


def test_a_server_that_ends_because_it_hung_fails_though_the_threads_came_back_meanwhile() -> None:
    """0 would be a stop that somebody wanted, and no supervisor would start it again."""
    app = Slow()
    with serving(app, threads=2, timeouts_app="0.1s", max_stuck=1, exit_when_stuck="on") as running:
        with running.connect() as slow, running.connect() as hanging:
            slow.send(POST[:-1])
            wait_for(lambda: any(each.phase is BODY for each in list(running.server._loop.connections)))
            assert hanging.get("/hang").status == 504
            wait_for(lambda: not running.server.healthy)
            app.release.set()
            wait_for(lambda: running.server.healthy)
            slow.send(POST[-1:])
            assert slow.response().body == b"late"
        running.thread.join(PATIENCE_S)
        assert running.exit_codes == [1]


# --- the real server, in disorder ---


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Echo what was asked, in one block, in many, or without a known length."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"].encode()
    body = environ["wsgi.input"].read()
    if path == "/stream":

        def blocks() -> Iterator[bytes]:
            for number in range(20):
                yield b"%d:%b;" % (number, query)

        start_response("200 OK", [])
        return blocks()
    if path == "/large":
        start_response("200 OK", [])
        return [query * (LARGE_BYTES // len(query))]
    start_response("200 OK", [])
    return [path.encode() + b"?" + query + b"#" + body]


LARGE_BYTES = 400_000


def expected(path: str, unique: str, body: bytes) -> bytes:
    query = unique.encode()
    if path == "/stream":
        return b"".join(b"%d:%b;" % (number, query) for number in range(20))
    if path == "/large":
        return query * (LARGE_BYTES // len(query))
    return path.encode() + b"?" + query + b"#" + body


class Visitor:
    """One client and its whims. `problems` is what no client may see."""

    def __init__(self, running: Running, seed: int, until: float) -> None:
        self.random = random.Random(seed)
        self.name = f"v{seed}"
        self.running = running
        self.until = until
        self.problems: list[str] = []
        self.complete = 0
        self._count = 0

    def run(self) -> None:
        try:
            while time.monotonic() < self.until:
                self._visit()
        except Exception as error:  # whatever it is, it is told by the thread that checks
            self.problems.append(f"{self.name}: {error!r}")

    def _request(self, body_repeats: list[int]) -> tuple[bytes, bytes]:
        self._count += 1
        unique = f"{self.name}-{self._count}"
        path = self.random.choice(["/echo", "/echo", "/echo", "/stream", "/large"])
        body = b""
        head = f"GET {path}?{unique} HTTP/1.1\r\nHost: test\r\n"
        if self.random.random() < 0.3:
            body = unique.encode() * self.random.choice(body_repeats)
            head = f"POST {path}?{unique} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body, expected(path, unique, body)

    def _visit(self) -> None:
        count = self.random.choice([1, 1, 2, 5])
        # More than the server reads ahead, sent before anything is read, would have each side wait for the other.
        requests = [self._request([1, 10_000] if count == 1 else [1, 100]) for _ in range(count)]
        data = b"".join(request for request, _ in requests)
        whim = self.random.choice(["read", "read", "read", "slow", "half", "reset", "partial", "vanish"])
        with self.running.connect() as client:
            if whim == "partial":
                data = data[: self.random.randrange(len(data))]
            try:
                self._send(client, data)
                if whim == "reset":
                    client.reset()
                elif whim == "partial":
                    client.shutdown_write()
                    client.receive_all()
                elif whim != "vanish":
                    if whim == "half":
                        client.shutdown_write()
                    if whim == "slow":
                        time.sleep(self.random.random() * 0.05)
                    self._read(client, [answer for _, answer in requests], whim)
            except (OSError, EOFError) as error:
                if isinstance(error, TimeoutError) or whim in ("read", "slow", "half"):
                    self.problems.append(f"{self.name} {whim}: {error!r}")

    def _send(self, client: Client, data: bytes) -> None:
        pieces = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.choice([0, 0, 3])))
        start = 0
        for end in [*pieces, len(data)]:
            client.send(data[start:end])
            start = end

    def _read(self, client: Client, answers: list[bytes], whim: str) -> None:
        for answer in answers:
            response = client.response()
            if response.body != answer:
                self.problems.append(f"{self.name} {whim}: {response.body[:60]!r} instead of {answer[:60]!r}")
            self.complete += 1
            if response.header("Connection") == "close" and whim == "half":
                return  # a client that sends no more may be told so early
        if whim == "half":
            client.receive_all()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_disorderly_clients_get_right_answers_and_leave_nothing_behind(
    threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    seed = int(os.environ.get("HARDSERVE_TEST_SEED", "1"))
    gc.collect()
    descriptors = open_descriptors()
    threads_before = set(threading.enumerate())
    # LogRecords keep what they show: nothing below warnings is wanted.
    with caplog.at_level(logging.WARNING, "hardserve"), switching_often(), serving(app, threads=threads) as running:
        for listener in running.server._listeners:  # inherited: a large response is left unsent
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        until = time.monotonic() + 1.0
        visitors = [Visitor(running, seed * 100 + number, until) for number in range(6)]
        crowd = [threading.Thread(target=visitor.run, daemon=True) for visitor in visitors]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in crowd)
        assert running.stop() == 0
        assert not running.server._loop.connections
    assert [problem for visitor in visitors for problem in visitor.problems] == []
    assert sum(visitor.complete for visitor in visitors) > 20
    assert [record.getMessage() for record in caplog.records] == []
    gc.collect()
    assert open_descriptors() == descriptors
    assert set(threading.enumerate()) == threads_before


# --- the real server, with apps that are late ---


def napping(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Take as long as the query says, before the answer or in the middle of it."""
    unique, _, nap_ms = environ["QUERY_STRING"].partition("-")
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/block":
        time.sleep(int(nap_ms) / 1000)
        start_response("200 OK", [])
        return [unique.encode() + body]
    start_response("200 OK", [])

    def blocks() -> Iterator[bytes]:
        yield unique.encode()
        time.sleep(int(nap_ms) / 1000)
        yield body

    return blocks()


class Impatient:
    """A client of `napping`; `seen` is the status of each target that was answered, `problems` what it may not see."""

    def __init__(self, running: Running, seed: int, until: float) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.running = running
        self.until = until
        self.seen: dict[str, int] = {}
        self.broken: list[str] = []
        self.problems: list[str] = []

    def run(self) -> None:
        number = 0
        while time.monotonic() < self.until:
            with self.running.connect(f"127.0.0.{2 + self.seed % 3}") as client:
                for _ in range(5):
                    number += 1
                    if not self._ask(client, self.seed * 10_000 + number):
                        break

    def _ask(self, client: Client, unique: int) -> bool:
        nap_ms = self.random.choice([0, 0, 0, 0, 0, 20, 20, 150, 300, 450])
        target = f"/{self.random.choice(['block', 'block', 'stream'])}?{unique}-{nap_ms}"
        body = b"body" * self.random.choice([0, 1, 10_000])
        try:
            response = client.get(target, method="POST", body=body)
        except (OSError, EOFError) as error:
            # A stream whose head was out when it was late can only be cut.
            self.broken.append(target)
            if isinstance(error, TimeoutError) or nap_ms < 100 or "stream" not in target:
                self.problems.append(f"{target}: {error!r}")
            return False
        self.seen[target] = response.status
        if response.status == 200:
            if response.body != str(unique).encode() + body:
                self.problems.append(f"{target}: {response.body[:50]!r}")
        elif response.status == 504:
            if nap_ms < 100 or "stream" in target or response.header("Connection") != "close":
                self.problems.append(f"{target}: 504 {response.headers}")
        elif response.status != 503:
            self.problems.append(f"{target}: {response.status}")
        return response.header("Connection") != "close"


def test_late_apps_get_each_client_one_answer_and_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "hardserve")
    gc.collect()
    descriptors = open_descriptors()
    settings = {"timeouts_app": 0.1, "timeouts_queue": 0.2, "timeouts_interrupt": 0.1, "max_stuck": 64}
    settings |= {"threads": 4, "max_client_workers": 2, "limits_body_memory": 0}
    with switching_often(), serving(napping, **settings) as running:
        until = time.monotonic() + 0.8
        clients = [Impatient(running, seed, until) for seed in range(9)]
        crowd = [threading.Thread(target=client.run, daemon=True) for client in clients]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in crowd)
        workers = running.server._workers
        wait_for(lambda: not workers.stuck and not workers.in_pool and not workers.waiting())
        assert len(workers.workers) == 4
        assert running.stop() == 0
        budget = running.server._budget
        assert (budget.memory, budget.files) == (0, 0)
    assert [problem for client in clients for problem in client.problems] == []
    logged = {entry.target: entry.status for entry in running.log.entries}
    assert len(logged) == len(running.log.entries), "a request was logged twice"
    seen = {target: status for client in clients for target, status in client.seen.items()}
    assert {target: logged[target] for target in seen} == seen
    assert set(logged) == {*seen, *(target for client in clients for target in client.broken)}
    assert 200 in seen.values()
    gc.collect()
    assert open_descriptors() == descriptors
