"""What leaves a connection: a response as a worker or the I/O thread makes it, and what the client has not read of it.

The half of a connection that both kinds of thread use; edge.connection has the other one, which reads and judges, and
the theory of operation of the two. Nothing here knows what was asked.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from hardserve import refusals
from hardserve.edge.context import BUSY, CLOSED, HANDSHAKE, IDLE, LINGER, EdgeContext, Phase
from hardserve.edge.outbox import Outbox, Report
from hardserve.edge.readers import JUDGED_S
from hardserve.edge.transport import UNSENT_BYTES
from hardserve.protocol import ClientDisconnectedError, FileFailedError, FilePart, SharedFile
from hardserve.refusals import Cut

if TYPE_CHECKING:
    from hardserve.edge.parsing import Request
    from hardserve.edge.transport import Transport

# How often a slow reader is looked at: at the latest in the next slot of the wheel, and with this, in each.
LOOK_S = 0.1
# For a client that takes a file at this rate (bytes a second), and has taken so many bytes of it, the kernel may have
# as much as it likes: it refers to its own page cache then, and copies nothing. A download at a gigabyte a second costs
# 0.5 of a core in pieces of UNSENT_BYTES, and 0.15 so, as it costs nginx.
FAST, FAST_BYTES = 32 << 20, 4 << 20
FAST_UNSENT_BYTES = 1 << 30

logger = logging.getLogger("hardserve.edge")


class Sending:
    """See edge.connection for which thread may call what. What it needs of the whole connection is at the end."""

    __slots__ = (
        "_aborted", "_ctx", "_drained", "_ended_by", "_fast", "_writing", "abandon", "ahead", "begun", "eof", "lock",
        "open_ended", "outbox", "phase", "read_deadline", "request", "transport", "waited_since", "write_deadline",
    )  # fmt: skip

    def __init__(self, ctx: EdgeContext, transport: Transport) -> None:
        # For its lifetime.
        self._ctx = ctx
        self.transport = transport
        self.lock = threading.Lock()
        self.phase: Phase = IDLE
        self.eof = False
        self._writing = False
        self._ended_by: Cut = refusals.CLIENT_LEFT
        # For one request.
        self.request: Request | None = None
        self.ahead = b""  # arrived, not parsed yet
        self.read_deadline = math.inf
        # For one response.
        self.write_deadline = math.inf
        self.outbox: Outbox | None = None  # each response's last bytes are followed by its report
        self._drained: threading.Condition | None = None  # where a worker waits for `outbox` to shrink
        self._fast = False  # its client takes a file so fast that the kernel may have more of it
        self.waited_since = math.inf  # monotonic seconds, while a worker does
        self.begun = False  # some of a response in parts may have left
        self.open_ended = False  # a response whose end only the app knows
        self.abandon: Callable[[], bool] | None = None  # interrupts the app's wait between two chunks
        self._aborted: str = ""  # what was sent of a response is all there will be: "end" or "reset" the connection

    def deadline(self) -> float:
        # While something is unsent the client is held to taking it, and to nothing else.
        return self.write_deadline if self.outbox is not None else self.read_deadline

    # --- I/O thread ---

    def _send(self, data: bytes, now: float) -> bool:
        """Send from the I/O thread, never waiting; return whether the connection is still there."""
        try:
            with self.lock:
                self._send_or_keep(data)
        except OSError:
            self.close()
            return False
        if self.outbox is not None:
            self._await_writable(now)
        return self.phase is not CLOSED

    def _send_response(self, data: bytes, parts: Sequence[bytes | FilePart], flushed: Report, now: float) -> bool:
        """Send of a response what the socket takes now; return whether the connection is still there. I/O thread.

        `flushed` is called as by `finish`, perhaps at once.
        """
        with self.lock:
            try:
                rest = self._offer(data)
            except OSError:
                rest = memoryview(data)  # the connection is as broken when the rest is sent
            if rest is not None or parts:
                self._put_parts([*([] if rest is None else [rest]), *parts]).report_when_sent(flushed)
        if rest is None and not parts:
            flushed(0, "")
            return True
        if rest is None and not self.ahead:  # of a pipeline, each has a turn to itself
            self._send_on(now)
        outbox = self.outbox
        if outbox is not None:
            self.read_deadline = math.inf  # being idle begins when the client has it all
            self._see_to_unsent(outbox, now, sendable=outbox.sendable)
        return self.phase is not CLOSED

    def _await_writable(self, now: float) -> None:
        """Have the rest sent when the socket takes it; it may be cut at once, if memory is short."""
        self.write_deadline = now + min(LOOK_S, self._ctx.settings.timeouts.response)
        self._update_interest(write=True)
        self._watch(now)
        self._ctx.readers.add(self, now)

    def on_writable(self, now: float) -> None:
        """Send what the socket takes of what is unsent. I/O thread."""
        if self.phase is HANDSHAKE:
            self._shake_hands(now)
            return
        if self.transport.wants_write:
            try:
                with self.lock:
                    self.transport.flush()
            except OSError:
                self.close()
                return
        self._send_on(now)
        self.settle(now)

    def _send_on(self, now: float) -> None:
        reports: list[Report] = []
        try:
            with self.lock:
                reports = self._flush()
        except OSError:
            self.close()
        except FileFailedError as error:
            self._cut_for_file(error, now)
        for report in reports:
            report(0, "")

    def _flush(self) -> list[Report]:
        """Send from the outbox, and let go of it when it is empty; return the reports that are due.

        The caller holds the lock. Raises OSError and FileFailedError.
        """
        outbox = self.outbox
        if outbox is None:
            return []
        if outbox.has_files:
            self._ctx.downloads.add(self)
        reports = outbox.send(self.transport.send, self.transport.send_file, self._ctx.share_of_turn())
        if self._drained is not None and outbox.memory <= self._ctx.settings.limits.response_buffer // 2:
            self._drained.notify()
        if (
            outbox.has_files
            and not self._fast
            and outbox.taken >= FAST_BYTES
            and outbox.taken >= FAST * (monotonic() - outbox.since)
        ):
            self._fast = True
            self.transport.keep_unsent(FAST_UNSENT_BYTES)
        if not outbox:
            outbox.close()
            self.outbox = None
            self._ctx.downloads.discard(self)
            if self._fast:
                self._fast = False
                self.transport.keep_unsent(UNSENT_BYTES)
        return reports

    def _see_to_unsent(self, outbox: Outbox, now: float, *, sendable: bool) -> None:
        """Wait for whatever has to come before more of `outbox` can leave. I/O thread."""
        if sendable and not self._writing:
            self._await_writable(now)
        elif self._writing and not sendable:
            self._update_interest(write=False)  # another thread is at the disk for it, and will wake this
        if outbox.cold_since < math.inf:
            self._read_file(outbox, now)
        if self.waited_since < math.inf and self.phase is not CLOSED:
            self._ctx.readers.add(self, now)

    def _look_at_unsent(self, outbox: Outbox, now: float) -> None:
        """Do what is due while `outbox` waits. I/O thread."""
        if outbox.cold_since < math.inf:
            self._read_file(outbox, now)  # if nobody could when it was needed
        else:
            self._look_at_reader(outbox, now)

    def _read_file(self, outbox: Outbox, now: float) -> None:
        """Have a file thread read what comes next in `outbox`, where the I/O thread would wait. I/O thread."""
        with self.lock:
            reading = outbox.begin_reading()
        if reading is not None:
            file, start, count = reading
            if not self._ctx.read_file(file, start, count, partial(self._file_was_read, outbox, file)):
                file.release()
                with self.lock:
                    outbox.give_up_reading()
        self._look_at_storage(outbox, now)

    def _file_was_read(self, outbox: Outbox, file: SharedFile, result: bytes | BaseException) -> None:
        """Send on with what was read, or cut; nothing if the connection is closed. File thread."""
        with self.lock:
            awaited = outbox.end_reading(result, monotonic())
        file.release()
        if awaited:
            self._wake()

    def _look_at_storage(self, outbox: Outbox, now: float) -> None:
        """Do not wait for a file for ever, nor hold it against the client. I/O thread."""
        patience_s = self._ctx.settings.timeouts.app or math.inf
        until = outbox.cold_since + patience_s
        if now >= until:
            self._cut_for_file(FileFailedError(refusals.FILE_UNREADABLE, f"not read in time: {outbox!r}"), now)
        else:
            self.write_deadline = min(until, now + LOOK_S)
            self._watch(now)

    def _cut_for_file(self, error: FileFailedError, now: float) -> None:
        """End a response that cannot become what its head said, so that it does not look whole. I/O thread."""
        ctx = self._ctx
        if ctx.file_lines.is_due(now):
            logger.warning("a response was cut: %s", error)
        self.cut(error.why, now)

    def _look_at_reader(self, outbox: Outbox, now: float) -> None:
        """Hold the client to taking its response: an idle limit, and a rate. I/O thread."""
        settings = self._ctx.settings
        timeouts, rate = settings.timeouts, settings.limits.response_rate
        # What the kernel took is not what the client took: its buffer may hold megabytes, and then stay full for
        # minutes while a slow but honest client reads.
        taken = outbox.acknowledged(self.transport.unacknowledged())
        if taken > outbox.seen:
            outbox.seen, outbox.seen_at = taken, now
        idle = outbox.seen_at + timeouts.response
        slow = outbox.since + timeouts.rate_grace + taken / rate if rate else math.inf
        if now >= idle:
            self.cut(refusals.RESPONSE_DEADLINE, now)
        elif now >= slow:
            self.cut(refusals.RESPONSE_TOO_SLOW, now)
        else:
            self.write_deadline = min(idle, slow, now + LOOK_S)

    @property
    def unsent_since(self) -> float:
        """Since when something has been unsent, `math.inf` if nothing is. I/O thread."""
        outbox = self.outbox
        return math.inf if outbox is None else outbox.since

    @property
    def unsent_memory(self) -> int:
        """Bytes of a response that are kept in memory. I/O thread."""
        outbox = self.outbox
        return 0 if outbox is None else outbox.memory

    def reading_rate(self, since: float, now: float) -> float:
        """Return the bytes a second at which the client has taken its response.

        `since` is `waited_since` or `unsent_since`. I/O thread.
        """
        outbox = self.outbox
        if outbox is None:
            return math.inf
        taken = outbox.acknowledged(self.transport.unacknowledged())
        if since == self.waited_since:
            # Before that, its kernel took megabytes of which the client itself need not have read any.
            taken -= outbox.taken_before_wait
        return taken / max(JUDGED_S, now - since)

    def _begin_abandoning(self, now: float) -> None:
        """Nobody is left to read: give the app a while to notice by itself, at its next block."""
        patience_s = self._ctx.settings.timeouts.abandoned
        if patience_s and self.read_deadline == math.inf:
            self.read_deadline = now + patience_s
            self._watch(now)

    def _abandon(self, abandon: Callable[[], bool], now: float) -> None:
        self.read_deadline = math.inf
        if not abandon():
            # The app was between two blocks. If it waits again, and again for so long, it is told then.
            self._begin_abandoning(now)

    # --- worker thread ---

    def _send_or_keep(self, data: bytes) -> None:
        """Send what the socket takes and keep the rest in memory. The caller holds the lock; raises OSError."""
        rest = self._offer(data)
        if rest is not None:
            self._keep_in().put(rest)

    def _offer(self, data: bytes) -> memoryview | None:
        """Send what the socket takes, if it is due, and return the rest, None if that is nothing."""
        sent = 0
        if self.outbox is None:
            sent = self.transport.send(data)
            if sent == len(data):
                return None
        return memoryview(data)[sent:]

    def _keep_in(self) -> Outbox:
        if self.outbox is None:
            self.outbox = Outbox(self._ctx.budget, monotonic(), self.transport.unacknowledged())
        return self.outbox

    def _put_parts(self, parts: Sequence[bytes | memoryview | FilePart]) -> Outbox:
        """Have `parts` leave behind everything else. The caller holds the lock."""
        outbox = self._keep_in()
        for part in parts:
            if isinstance(part, FilePart):
                outbox.put_file(part, self._ctx.page_cache)
            else:
                outbox.put(memoryview(part))
        return outbox

    def client_gone(self) -> bool:
        """Return whether nobody seems to be left to read the response. Any thread."""
        return self.phase in (LINGER, CLOSED) or (self.eof and self.open_ended)

    def write(self, data: bytes) -> None:
        """Send a part of a response, waiting while the client has too much of it unread. Worker thread.

        Raises ClientDisconnectedError when the client has gone, or was cut: its text is the reason.
        """
        limits = self._ctx.settings.limits
        with self.lock:
            self._check_mine()
            self.begun = True
            if self.eof and self.read_deadline != math.inf:
                self.read_deadline = monotonic() + self._ctx.settings.timeouts.abandoned  # the app is not stuck
            try:
                rest = self._offer(data)
            except OSError as error:
                raise ClientDisconnectedError(refusals.CLIENT_LEFT.name) from error
            if rest is None:
                return
            outbox = self._keep_in()
            store = outbox.memory + len(rest) > limits.response_buffer and outbox.may_store(
                len(rest), limits.response_file
            )
            if store:
                outbox.begin_storing()
            else:
                outbox.put(rest)
        if store:
            stretch = None
            try:
                stretch = outbox.store(rest)
            finally:
                with self.lock:
                    outbox.end_storing(rest, stretch)
        if outbox.memory > limits.response_buffer:
            self._wait_until_drained(outbox)
        else:
            self._wake()

    def _check_mine(self) -> None:
        if self.phase is not BUSY:
            raise ClientDisconnectedError(self._ended_by.name)

    def _wait_until_drained(self, outbox: Outbox) -> None:
        limit = self._ctx.settings.limits.response_buffer // 2
        with self.lock:
            self._check_mine()
            self._drained = threading.Condition(self.lock)
            outbox.taken_before_wait = outbox.acknowledged(self.transport.unacknowledged())
            self.waited_since = monotonic()
            self._wake()
            # Ends by itself: a client that takes nothing, or too little, is cut, and that notifies.
            while self.phase is BUSY and outbox.memory > limit:
                self._drained.wait()
            self._drained = None
            self.waited_since = math.inf
            self._check_mine()

    def finish(self, data: bytes, *, keep_alive: bool, flushed: Report, file: Sequence[bytes | FilePart] = ()) -> None:
        """Send the last bytes of a response and hand the connection back to the I/O thread. Worker thread.

        The parts of `file` follow `data`. They are sent by the I/O thread; the caller may let go of the files at once.

        `flushed` is called with the number of bytes that never left and the reason, by this thread if all of them
        fit, else by the I/O thread when they are sent or the connection is closed. Nothing of this connection may be
        touched after.
        """
        with self.lock:
            self._forget_request()
            if self.phase is not BUSY:
                unsent = len(data) + _length(file)
            else:
                self.read_deadline = monotonic() + self._ctx.idle_s()
                self.phase = IDLE if keep_alive else LINGER  # before sending: see the module's head
                unsent = 0
                if data:
                    try:
                        self._send_or_keep(data)
                    except OSError:
                        unsent, self._aborted = len(data) + _length(file), "end"
                if file and not unsent:
                    self._put_parts(file)
                if self.outbox is not None:
                    self.read_deadline = math.inf  # being idle begins when the client has it all
                    self.outbox.report_when_sent(flushed)
                    self._wake()
                    return
        flushed(unsent, self._ended_by.name if unsent else "")
        if self.phase is not IDLE or self.ahead or self.eof or unsent:
            self._wake()

    def may_keep_alive(self) -> bool:
        """Return whether the client may be told that the connection stays open. Any thread."""
        return not self._ctx.draining or bool(self.ahead)

    def begin_stream(self, *, open_ended: bool, abandon: Callable[[], bool]) -> None:
        """Say that a response comes in parts. Worker thread, before the first `write`.

        `open_ended` is one without a known length. `abandon` is called by the I/O thread when nobody has been left to
        read it for `timeouts.abandoned`, and may be called once more after `finish` began; it returns whether it hit.
        """
        with self.lock:
            if self.phase not in (BUSY, CLOSED):
                return  # it was taken from this worker
            self.abandon = abandon
            self.open_ended = open_ended
        if self.phase is CLOSED or (open_ended and self.eof):
            self._wake()

    def abort(self, *, reset: bool) -> None:
        """Cut the connection, because what was sent of the response is not all of it. Worker thread.

        With `reset` the client sees an error even where only the end of the connection marks the end of a response.
        Closing itself is left to the I/O thread, which has the descriptor in its selector.
        """
        with self.lock:
            self._forget_request()
            if self.phase is not BUSY:
                return
            self._aborted = "reset" if reset else "end"
            self.phase = LINGER
            reports = []
            if self.outbox is not None:
                reports = self.outbox.close()
                self.outbox = None
        for report, unsent in reports:
            report(unsent, self._ended_by.name)
        self._wake()

    def _forget_request(self) -> None:
        """Let go of what belongs to the response that ends here, also when the connection is closed already.

        The caller is the worker and holds the lock.
        """
        self.request = None
        self.begun = False
        self.open_ended = False
        self.abandon = None

    # --- what the whole connection does ---

    def settle(self, now: float) -> None:
        """Do what follows from what a worker, or the client, has done to this connection. I/O thread."""
        raise NotImplementedError

    def _shake_hands(self, now: float) -> None:
        """Go on with the handshake. I/O thread."""
        raise NotImplementedError

    def cut(self, why: Cut, now: float) -> None:
        """End the connection at once and without a word. I/O thread."""
        raise NotImplementedError

    def close(self, *, reset: bool = False, why: Cut = refusals.CLIENT_LEFT) -> None:
        """Close the socket. I/O thread."""
        raise NotImplementedError

    def _wake(self) -> None:
        """Have the I/O thread call `settle` soon. Any thread."""
        raise NotImplementedError

    def _watch(self, now: float) -> None:
        """Have `on_deadline` called when the deadline has passed. I/O thread."""
        raise NotImplementedError

    def _update_interest(self, *, read: bool | None = None, write: bool | None = None) -> None:
        """Have the loop look for what can be read or written, None for as before. I/O thread."""
        raise NotImplementedError


def _length(parts: Sequence[bytes | FilePart]) -> int:
    return sum(part.length if isinstance(part, FilePart) else len(part) for part in parts)
