"""A connection's bytes over TLS, at the same seam as edge.transport.PlainTransport: reading, writing and the end.

Theory of operation
-------------------
OpenSSL never sees the socket. It works between two memory buffers (edge.tlswire). So reading from the socket, computing
and writing to it are three things that can be done at three times by three threads, and that is what everything here
rests on: an expensive step of a handshake is computed by a helper thread that knows no descriptor (edge.handshake); the
first bytes are looked at before OpenSSL is; one `send` takes several records. (`SSLSocket`, which can do none of it,
takes two microseconds less for a small response, as long for a large one, and keeps 20 KiB less after it:
python -m tests.bench.tls_handshakes.)

Threads. Until Python 3.13 two threads in one SSL object corrupt it, and it lets go of the interpreter lock. `_lock` is
held around each use of it *and* the `send` of what came out, for records must leave in the order in which they were
encrypted. It is held for one piece at a time, never over a file or a wait. Whoever takes the connection's lock, too,
takes that one first. During a handshake the lock has no part: the I/O thread and a helper have the object in turns.

Partial writes. A record is encrypted once, and must then leave as it is. `send` encrypts a piece and reports it as
taken only when the last of its records is with the kernel; until then it has said that the socket took less, and its
caller, as it would on any socket, offers the same bytes again. They are not encrypted again: `_owed` says how many at
the front of whatever is offered next are in `_unsent` already. The caller may offer fewer or more of them, from memory
or from the file, as long as they are the same bytes of the stream. So whoever has an outbox knows that something is
unsent, and whoever has none has nothing to wait for; nothing about TLS needs to be known there.

What leaves without being asked for has no outbox: the alert that refuses a renegotiation, and close_notify.
`wants_write` says that some of it is left over, and `flush` sends it. What a peer can provoke so without reading it is
bounded. TLS 1.3 key updates need nothing: the answer goes with the next record that is written. OpenSSL never wants to
read in order to write, or the reverse, once renegotiation is off; if it does, that is an error like any other.

Data inside. One `recv` may bring a hundred records, and `receive` is asked for a bounded number of bytes. What is left
inside shows on no selector: `pending` is True when `receive` is worth calling before the socket is readable again. It
is not "bytes are buffered": half a record is, and would have the loop spin.

The end. A peer that has finished says so (close_notify, RFC 8446 6.1), then closes. If TCP ends without that, somebody
on the way may have cut the stream, and `truncated` is True. For a request that is complete in itself it makes no
difference (many clients just close); a body that is delimited by its length shows it anyway. `shutdown_write` sends
close_notify and then FIN. What arrives after that is only counted, not decrypted. `close` says close_notify, too, if it
fits and nothing else is half sent; with `reset`, or after an alert that is fatal, it does not, so that a response that
was cut does not look whole.

Memory. An idle connection keeps an SSL object and two buffers, that OpenSSL never makes smaller: hence the bound on
what goes into them at once. Python has OpenSSL release its record buffers (SSL_MODE_RELEASE_BUFFERS). That is 17 KiB
above a plain connection after a few small requests, 26 after a large response (python -m tests.bench.tls --parts
memory), 24 after a large request.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading

from hardserve.edge.handshake import Choose, Handshaking
from hardserve.edge.tlswire import READ_BYTES
from hardserve.edge.transport import PlainTransport
from hardserve.tls.hello import RECORD_BYTES

# Records taken apart in one call: they may hold a byte each, and then take longer than what they carry.
RECORDS_PER_READ = 128
# In one record that is written: half of what one may hold, so that the buffer that it leaves by, and that stays
# allocated, has half as much. 100 MiB take a seventh longer for it (python -m tests.bench.tls --parts large,memory).
WRITE_BYTES = 8192
# A record may come in many pieces. What is longer and has no data is none: key updates, fifteen microseconds for each
# 27 bytes. 40 connections with 4,000 each held everybody up for seconds.
SILENT_BYTES = RECORD_BYTES + 256 + 5
SILENT_READ_BYTES = 2048
MAX_SILENT_BYTES = 2 * SILENT_BYTES
# Encrypted before the next `send`; the least while the socket does not take as much, so that a crowd of slow readers
# keeps little.
PIECE_MIN_BYTES = RECORD_BYTES
PIECE_MAX_BYTES = 65536
# Sent from a file in one call: it is encrypted on the I/O thread, ten milliseconds for this without AES in hardware.
FILE_BYTES = 262144
# What the kernel may have beyond what the network takes, for a client that takes a file fast.
KEPT_UNSENT_BYTES = 1 << 20
# Alerts that a peer has provoked and does not read.
MAX_UNREAD_ALERT_BYTES = 4096
# How much the ratio of plaintext to what is on the wire remembers: about what the kernel holds.
RATIO_BYTES = 262144


class TlsTransport(Handshaking):
    """TLS over a connected, non-blocking stream socket, as a server. See the module's head for who may call what."""

    __slots__ = (
        "_ended", "_lock", "_owed", "_owed_wire", "_piece", "_plain_bytes", "_silent", "_wire_bytes", "truncated",
    )  # fmt: skip

    def __init__(
        self,
        plain: PlainTransport,
        context: ssl.SSLContext,
        *,
        first: bytes = b"",
        choose: Choose | None = None,
    ) -> None:
        super().__init__(plain, context, first=first, choose=choose)
        self._lock = threading.Lock()
        # Reading.
        self._ended = False  # the peer sends no more
        self._silent = 0  # bytes that have arrived since the last that meant anything
        self.truncated = False  # and has not said so
        # Writing.
        self._owed = 0  # bytes of what was offered
        self._owed_wire = 0  # what they became
        self._piece = PIECE_MIN_BYTES
        self._plain_bytes = self._wire_bytes = 0  # of late

    def __repr__(self) -> str:
        what = "handshake" if self.facts is None else f"{self.facts.protocol} {self.facts.cipher}"
        end = " truncated" if self.truncated else " ended" if self._ended else ""
        return f"<TlsTransport {what} unsent={len(self._unsent)} owed={self._owed}{end}>"

    # --- reading ---

    def pending(self) -> bool:
        """Return whether `receive` is worth calling although nothing new may have arrived. I/O thread."""
        return self._more

    def receive(self, max_bytes: int) -> bytes | None:
        if self._shut:
            return self._receive_raw(max_bytes)
        with self._lock:
            data = self._decrypt(max_bytes) if self._more else None
            if data is None:
                if self._ended:
                    return b""
                data = self._receive_records(max_bytes)
            if self._outgoing.pending:
                self._flush_unasked()
        return data

    def _receive_records(self, max_bytes: int) -> bytes | None:
        """Read from the socket until a record is whole, if all of it is there. With the lock."""
        while True:
            arrived = self._receive_raw(READ_BYTES if self._silent <= SILENT_BYTES else SILENT_READ_BYTES)
            if arrived is None:
                return None
            if not arrived:
                self._ended = self.truncated = True
                return b""
            self._incoming.write(arrived)
            data = self._decrypt(max_bytes)
            self._silent = self._silent + len(arrived) if data is None else 0
            if self._silent > MAX_SILENT_BYTES:
                raise OSError("records without data")
            if data is not None or len(arrived) < READ_BYTES or self._silent > SILENT_BYTES:
                return data

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """Return what is inside, b"" for the end, None if that is not a whole record. With the lock."""
        read, incoming = self._tls.read, self._incoming
        parts: list[bytes] = []
        left = max_bytes
        self._more = False
        try:
            while True:
                asked = min(left, RECORD_BYTES)
                data = read(asked)
                if not data:
                    self._ended = True
                    break
                if len(data) < asked and not incoming.pending and not parts:
                    return data  # an ordinary request
                parts.append(data)
                left -= len(data)
                if len(data) < asked and not incoming.pending:
                    break
                if left <= 0 or len(parts) == RECORDS_PER_READ:
                    self._more = True
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError:
            self._broken = True
            with contextlib.suppress(OSError):
                self._flush()  # the alert that says why
            raise
        if self._ended:
            self._more = bool(parts)  # the end itself is told by the next call
            return b"".join(parts)
        return b"".join(parts) if parts else None

    # --- writing ---

    def send(self, data: bytes | memoryview) -> int:
        size = len(data)
        if size <= RECORD_BYTES and not self._owed:
            with self._lock:
                return size if not size or self._transmit(data) else 0
        view = memoryview(data)
        sent = 0
        try:
            while sent < size:
                with self._lock:
                    if self._owed:
                        if not self._flush():
                            break
                        sent += self._pay(size - sent)
                        continue
                    piece = view[sent : sent + self._piece]
                    if not self._transmit(piece):
                        break
                    sent += len(piece)
        except OSError:
            if not sent:
                raise  # and else at the next call: what has left counts
        return sent

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        count = min(count, FILE_BYTES)
        sent = 0
        try:
            while sent < count:
                if self._owed:
                    with self._lock:
                        if not self._flush():
                            return sent or None
                        sent += self._pay(count - sent)
                        continue
                data = os.pread(descriptor, min(self._piece, count - sent), offset + sent)
                if not data:
                    break
                with self._lock:
                    if not self._transmit(data):
                        return sent or None
                sent += len(data)
        except OSError:
            if not sent:
                raise  # as above; a file will be as unreadable the next time
        return sent

    def _pay(self, most: int) -> int:
        """Return how many of the bytes that are offered again have left, as far as that has not been told."""
        paid = min(self._owed, most)
        self._owed -= paid
        return paid

    def _transmit(self, data: bytes | memoryview) -> bool:
        """Encrypt a piece and send it; return whether all of it left. With the lock, and nothing owed.

        What was encrypted and did not leave is owed then.
        """
        if self._unsent and not self._flush():
            return False  # alerts go first; nothing was encrypted
        size = len(data)
        write, out = self._tls.write, self._outgoing.read
        view = memoryview(data)
        written = write(data if size <= WRITE_BYTES else view[:WRITE_BYTES])
        wire = out()
        if written == size:
            total = len(wire)
            sent = self._send_raw(wire)
        else:
            # Taken out record by record, so that the buffer stays small; sent at once.
            records = [wire]
            while written < size:
                written += write(view[written : written + WRITE_BYTES])
                records.append(out())
            total = sum(map(len, records))
            try:
                sent = self._socket.sendmsg(records)
            except (BlockingIOError, InterruptedError):
                sent = 0
            wire = b"" if sent == total else b"".join(records)
        self._plain_bytes += size
        self._wire_bytes += total
        if self._wire_bytes > RATIO_BYTES:
            self._plain_bytes >>= 1
            self._wire_bytes >>= 1
        if sent == total:
            if size >= self._piece < PIECE_MAX_BYTES:
                self._piece *= 2
            return True
        self._unsent = memoryview(wire)[sent:]
        self._owed = size
        self._owed_wire = total
        self._piece = PIECE_MIN_BYTES
        return False

    def _flush_unasked(self) -> None:
        if not self._flush():
            unread = self._outgoing.pending + (0 if self._owed else len(self._unsent))
            if unread > MAX_UNREAD_ALERT_BYTES:
                raise OSError("alerts are provoked and not read")

    @property
    def wants_write(self) -> bool:
        """Whether something is left over that no `send` will bring along: `flush` when the socket is writable."""
        return not self._owed and (bool(self._unsent) or self._outgoing.pending > 0)

    def flush(self) -> None:
        """Send on what `wants_write` is about. I/O thread, with the connection's lock. Raises OSError."""
        with self._lock:
            self._flush()

    def keep_unsent(self, most: int) -> None:
        # What is encrypted is copied, whoever reads it: not as much of it as of a file in the page cache.
        self._plain.keep_unsent(min(most, KEPT_UNSENT_BYTES))

    def unacknowledged(self) -> int:
        """As Transport: in bytes of what was sent, not of what TLS made of it."""
        held = self._plain.unacknowledged()
        if self._owed:
            # Of the last piece nothing was reported as taken, and its beginning is with the kernel, behind all else.
            # Less than nothing is what of it has reached the peer.
            held -= self._owed_wire - len(self._unsent)
        return held * self._plain_bytes // self._wire_bytes if self._wire_bytes else held

    # --- the end ---

    def _say_goodbye(self) -> None:
        """Have close_notify leave behind everything else. With the lock."""
        with contextlib.suppress(OSError):  # of which ssl.SSLError is one: the peer's own has not come, or worse
            self._tls.unwrap()

    def shutdown_write(self) -> None:
        with self._lock:
            if self._shut:
                return
            if self.facts is not None and not self._broken:
                self._say_goodbye()
            self._shut = True
            self._more = False
            with contextlib.suppress(OSError):
                self._flush()

    def close(self, *, reset: bool = False) -> None:
        if not reset and self.facts is not None and not (self._shut or self._broken or self._computing):
            with contextlib.suppress(OSError), self._lock:
                if not self._unsent:
                    self._say_goodbye()
                    self._flush()
        self._plain.close(reset=reset)
