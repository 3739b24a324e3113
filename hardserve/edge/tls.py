"""A connection's bytes over TLS: the same seam as edge.transport.PlainTransport, the handshake, and who computes it.

Theory of operation
-------------------
OpenSSL never sees the socket. It works between two memory buffers: what `recv` returned is put in `_incoming`, what is
to leave is taken from `_outgoing`. So reading from the socket, computing and writing to it are three things that can be
done at three times by three threads, and that is what everything here rests on: an expensive step of a handshake is
computed by a helper thread that knows no descriptor; the first bytes are looked at before OpenSSL is; one `send` takes
several records. (`SSLSocket`, which can do none of it, takes two microseconds less for a small response, as long for a
large one, and keeps 20 KiB less after it: python -m tests.bench.tls_handshakes.)

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
above a plain connection after a few small requests, 37 after a large response, and some 20 more after a large request.

The handshake. `advance` reads and writes, on the I/O thread, and says what is needed next; `compute` is the expensive
part, on any thread; in between the connection does not read. `advance` asks for `compute` only when the peer's message
is whole, so that a ClientHello that is dripped byte by byte costs as much as one that is not, and its deadline. Once
the private key has been used, what is left is cheap, and done at once, unless there is a client certificate to verify.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import ssl
import struct
import termios
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from hardserve.edge.transport import HELD_BYTES, HeldCalls, PlainTransport

if TYPE_CHECKING:
    from hardserve.pool import Pool

Need = Literal["read", "write", "compute", "done"]

RECORD_BYTES = 16384  # plaintext in one record at most (RFC 8446 5.1)
# From the socket at once: a whole record with its overhead. It bounds what stays allocated (see above).
READ_BYTES = RECORD_BYTES + 256 + 5
# Records taken apart in one call: they may hold a byte each, and then take longer than what they carry.
RECORDS_PER_READ = 128
# Encrypted before the next `send`; the least while the socket does not take as much, so that a crowd of slow readers
# keeps little.
PIECE_MIN_BYTES = RECORD_BYTES
PIECE_MAX_BYTES = 65536
# Sent from a file in one call: it is encrypted on the I/O thread, ten milliseconds for this without AES in hardware.
FILE_BYTES = 262144
# What the kernel may have beyond what the network takes, for a client that takes a file fast.
KEPT_UNSENT_BYTES = 1 << 20
# A peer's whole half of the handshake. A ClientHello is below 2 KiB, a chain of client certificates rarely 10.
MAX_HANDSHAKE_BYTES = 65536
# Its pieces: a step is computed for each flight, and there are two or three.
MAX_STEPS = 32
# A first answer of the server that is longer than this has its certificate, or resumes: it is no HelloRetryRequest,
# which is cheap, and has the client begin anew.
RETRY_BYTES = 200
# A step that takes no longer is computed on the I/O thread, if what it has computed in this turn is below the other: to
# hand it to a helper and back takes half as long. (P-256 on a server 0.1 to 0.2 ms; RSA 4096 four, on a Pi forty.)
INLINE_S = 0.0004
INLINE_PER_TURN_S = 0.001
COST_FADES = 0.98
# Alerts that a peer has provoked and does not read.
MAX_UNREAD_ALERT_BYTES = 4096
# How much the ratio of plaintext to what is on the wire remembers: about what the kernel holds.
RATIO_BYTES = 262144

_HANDSHAKE_RECORD = 0x16  # content type (RFC 8446 5.1)
_HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"  # a fatal alert
_SUPPORTED_GROUPS, _KEY_SHARE = 10, 51  # extensions
# The first bytes of groups: elliptic curves, and those with a part that quantum computers do not break; RFC 7919.
_CURVES, _FFDHE = frozenset({0x00, 0x11}), 0x01
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ALERTS = ("SSLV3_ALERT_", "TLSV1_ALERT_", "TLSV13_ALERT_")
# OpenSSL's names for what has a better one.
_REASONS = {
    "CALLBACK_FAILED": "unknown server name",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no client certificate",
    "HTTP_REQUEST": "http request",
}


CLOSED_EARLY = "closed during the handshake"


class HandshakeError(OSError):
    """A handshake failed. `reason` is a few words for the log, never the peer's bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PlainHttpError(HandshakeError):
    """The peer speaks HTTP without TLS. `TlsTransport.as_plain` is how to answer it."""

    def __init__(self) -> None:
        super().__init__("http request")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an established connection is secured with, and who the client has proved to be."""

    protocol: str  # "TLSv1.3"
    cipher: str  # "TLS_AES_256_GCM_SHA384"
    resumed: bool
    alpn: str | None
    client: Mapping[str, str] = field(default_factory=dict)  # of its verified certificate, empty if it sent none

    def environ(self) -> dict[str, str]:
        """Return what the app is told, under the names that mod_ssl has given it. Any thread."""
        return {
            "SSL_PROTOCOL": self.protocol,
            "SSL_CIPHER": self.cipher,
            "SSL_SESSION_RESUMED": "Resumed" if self.resumed else "Initial",
            "SSL_CLIENT_VERIFY": "SUCCESS" if self.client else "NONE",
            **self.client,
        }


class TlsTransport:
    """TLS over a connected, non-blocking stream socket, as a server. See the module's head for who may call what.

    `first` is what was read of the socket before, such as what followed a PROXY header.
    """

    __slots__ = (
        "_before", "_broken", "_computing", "_costly", "_ended", "_held", "_held_back", "_hello_seen", "_incoming",
        "_lock", "_more", "_outcome", "_outgoing", "_owed", "_owed_wire", "_piece", "_plain_bytes", "_shake_bytes",
        "_shut", "_shut_sent", "_socket", "_steps", "_tls", "_unsent", "_verifies", "_wire_bytes", "facts", "truncated",
    )  # fmt: skip

    def __init__(
        self, connected: socket.socket, held: HeldCalls, context: ssl.SSLContext, *, first: bytes = b""
    ) -> None:
        # For its lifetime.
        self._socket = connected
        self._held = held
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()
        # Of the handshake.
        self.facts: Facts | None = None  # once it is done
        self._before = first
        self._held_back = bytearray()  # the peer's, until OpenSSL can do something with it
        self._hello_seen = False
        self._shake_bytes = 0
        self._steps = 0
        self._verifies = context.verify_mode != ssl.CERT_NONE
        self._costly = True  # the private key has not been used yet, or a certificate is to be verified
        self._computing = False  # whoever calls `compute` has the SSL object
        self._outcome: Need | Exception | None = None  # of the last `compute`
        # Reading.
        self._more = False
        self._ended = False  # the peer sends no more
        self.truncated = False  # and has not said so
        # Writing.
        self._unsent: bytes | memoryview = b""  # encrypted
        self._owed = 0  # bytes of what was offered
        self._owed_wire = 0  # what they became
        self._piece = PIECE_MIN_BYTES
        self._shut = False
        self._shut_sent = False
        self._broken = False  # an alert was fatal
        self._plain_bytes = self._wire_bytes = 0  # of late

    def __repr__(self) -> str:
        what = "handshake" if self.facts is None else f"{self.facts.protocol} {self.facts.cipher}"
        end = " truncated" if self.truncated else " ended" if self._ended else ""
        return f"<TlsTransport {what} unsent={len(self._unsent)} owed={self._owed}{end}>"

    def fileno(self) -> int:
        return self._socket.fileno()

    # --- the handshake ---

    def advance(self) -> Need:
        """Read and write what the handshake needs, and return what is next. I/O thread, not during `compute`.

        "compute": `compute` is to be called, by any thread, and then this again. "read", "write": this again when the
        socket is ready for it. "done". Raises HandshakeError, PlainHttpError among them, and OSError for the socket.
        """
        while True:
            if self._outcome is None:
                need = self._gather()
                if need != "compute" or self._costly:
                    return need
                self.compute()  # what is left is cheap
            if (stage := self._take_outcome()) is not None:
                return stage

    def _take_outcome(self) -> Literal["write", "done"] | None:
        """Send what `compute` has come to; None if there is more to be read."""
        outcome = self._outcome
        self._computing = False
        try:
            flushed = self._flush()  # with a failure, the alert
        except OSError:
            if not isinstance(outcome, Exception):
                raise
            flushed = True
        if isinstance(outcome, Exception):
            self._broken = True
            raise HandshakeError(_reason(outcome)) from outcome
        if not flushed:
            return "write"
        if outcome == "done":
            self._held_back = bytearray()
            # A client may send its request along with the last message.
            self._more = self._incoming.pending > 0
            return "done"
        self._outcome = None
        return None

    def _gather(self) -> Need:
        """Take what has arrived of the peer's next message."""
        data: bytes | None
        if self._before:
            data, self._before = self._before, b""
        else:
            data = self._receive_raw(READ_BYTES)
        if data is None:
            return "read"
        if not data:
            raise HandshakeError(CLOSED_EARLY)
        if not self._shake_bytes:
            _check_first(data)
        self._shake_bytes += len(data)
        if self._shake_bytes > MAX_HANDSHAKE_BYTES:
            raise HandshakeError("handshake too large")
        self._held_back += data
        if not self._has_flight():
            return "read"
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise HandshakeError("handshake in too many pieces")
        self._incoming.write(self._held_back)
        self._held_back = bytearray()
        self._computing = True
        return "compute"

    def _has_flight(self) -> bool:
        """Return whether OpenSSL can do something with what has arrived."""
        if self._hello_seen:
            return _has_record(self._held_back)
        hello = _message(self._held_back)
        if hello is None:
            return False
        self._hello_seen = True
        if _asks_for_ffdhe(hello):
            with contextlib.suppress(OSError):
                self._send_raw(_HANDSHAKE_FAILURE)
            raise HandshakeError("asks for a costly group")
        return True

    def compute(self) -> None:
        """Do the expensive part of one step; what comes of it, `advance` tells. Any thread, one at a time."""
        try:
            self._tls.do_handshake()
            self.facts = self._learn()
            self._outcome = "done"
        except ssl.SSLWantReadError:
            if self._outgoing.pending > RETRY_BYTES and not self._verifies:
                self._costly = False
            self._outcome = "read"
        except Exception as error:  # whatever it is, it ends this handshake and not the thread
            self._outcome = error

    @property
    def begun(self) -> bool:
        """Whether anything of the handshake has arrived. I/O thread."""
        return self._shake_bytes > 0

    @property
    def computing(self) -> bool:
        """Whether `compute` is due or running, so that nothing else may be called but `close`. I/O thread."""
        return self._computing and self._outcome is None

    def handshake(self) -> Literal["read", "write", "done"]:
        """As `advance`, computing at once, on the calling thread."""
        while (need := self.advance()) == "compute":
            self.compute()
        return need

    def _learn(self) -> Facts:
        tls = self._tls
        cipher = tls.cipher()
        certificate = tls.getpeercert()
        return Facts(
            protocol=tls.version() or "",
            cipher=cipher[0] if cipher else "",
            resumed=bool(tls.session_reused),
            alpn=tls.selected_alpn_protocol(),
            client=client_names(certificate) if certificate else {},
        )

    def as_plain(self) -> PlainTransport:
        """Return the same socket without TLS, for what is to be said to a peer that has none."""
        return PlainTransport(self._socket, self._held)

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
                arrived = self._receive_raw(READ_BYTES)
                if arrived is None:
                    return None
                if not arrived:
                    self._ended = self.truncated = True
                    return b""
                self._incoming.write(arrived)
                data = self._decrypt(max_bytes)
            if self._outgoing.pending:
                self._flush_unasked()
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

    def _receive_raw(self, max_bytes: int) -> bytes | None:
        try:
            return self._held.receive(self._socket.fileno(), max_bytes)
        except (BlockingIOError, InterruptedError):
            return None

    # --- writing ---

    def send(self, data: bytes | memoryview) -> int:
        size = len(data)
        if size <= RECORD_BYTES and not self._owed:
            with self._lock:
                return size if not size or self._transmit(data) else 0
        view = memoryview(data)
        sent = 0
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
        return sent

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        count = min(count, FILE_BYTES)
        sent = 0
        while sent < count:
            if self._owed:
                with self._lock:
                    if not self._flush():
                        return sent or None
                    sent += self._pay(count - sent)
                    continue
            try:
                data = os.pread(descriptor, min(self._piece, count - sent), offset + sent)
            except OSError:
                if sent:
                    break  # it will be as unreadable the next time
                raise
            if not data:
                break
            with self._lock:
                if not self._transmit(data):
                    return sent or None
            sent += len(data)
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
        written = write(data if size <= RECORD_BYTES else view[:RECORD_BYTES])
        wire = out()
        if written == size:
            total = len(wire)
            sent = self._send_raw(wire)
        else:
            # Taken out record by record, so that the buffer stays small; sent at once.
            records = [wire]
            while written < size:
                written += write(view[written : written + RECORD_BYTES])
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

    def _send_raw(self, data: bytes | memoryview) -> int:
        try:
            if type(data) is bytes and len(data) <= HELD_BYTES:
                return self._held.send(self._socket.fileno(), data)
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def _flush(self) -> bool:
        """Send what is encrypted; return whether all of it left. With the lock, or during the handshake."""
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    break
                self._unsent = self._outgoing.read()
            sent = self._send_raw(self._unsent)
            if sent < len(self._unsent):
                self._unsent = memoryview(self._unsent)[sent:]
                return False
            self._unsent = b""
        if self._shut and not self._shut_sent:
            self._shut_sent = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        return True

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
        with contextlib.suppress(OSError, AttributeError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, min(most, KEPT_UNSENT_BYTES))

    def unacknowledged(self) -> int:
        """As Transport: in bytes of what was sent, not of what TLS made of it."""
        try:
            held: int = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        except (OSError, ValueError):  # the latter for a socket that is closed
            return 0
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
        with contextlib.suppress(OSError):
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            elif self.facts is not None and not (self._shut or self._broken or self._computing):
                with self._lock:
                    if not self._unsent:
                        self._say_goodbye()
                        self._flush()
        with contextlib.suppress(OSError):
            self._socket.close()


def _check_first(data: bytes) -> None:
    """Raise HandshakeError unless `data` may begin a handshake.

    Before OpenSSL sees it, which would answer with an alert that a client without TLS cannot read.
    """
    if data[0] != _HANDSHAKE_RECORD:
        raise PlainHttpError if data[:1].isalpha() and data.isascii() else HandshakeError("not TLS")


def _has_record(data: bytearray) -> bool:
    """Return whether there is a whole record, so that OpenSSL can do something with it."""
    return len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[3:5], "big")


def _message(data: bytearray) -> bytes | None:
    """Return the first handshake message, None while it is not all here.

    Messages may be cut into records at any byte (RFC 8446 5.1). Of what is malformed, what is here: OpenSSL says why.
    """
    at = 0
    message = b""
    while at + 5 <= len(data):
        end = at + 5 + int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at] != _HANDSHAKE_RECORD or end - at > READ_BYTES:
            return message
        if end > len(data):
            return None
        message += data[at + 5 : end]
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big"):
            return message
        at = end
    return None


def _asks_for_ffdhe(hello: bytes) -> bool:
    """Return whether OpenSSL would answer a ClientHello with finite-field Diffie-Hellman (RFC 7919).

    It has those groups in TLS 1.3, Python cannot take them out, and a client that asks for the largest has the server
    compute a hundred times as long as for any other. No client does that by itself. OpenSSL takes the first share that
    it can use, and if there is none, of the groups its own favourite.
    """
    body = memoryview(hello)[4 + 2 + 32 :]  # type and length, version, random
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        body = body[width + int.from_bytes(body[:width], "big") :]
    body = body[2:]
    only_ffdhe = False
    while len(body) >= 4:
        kind, size = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
        value = body[4 : 4 + size]
        body = body[4 + size :]
        if kind == _SUPPORTED_GROUPS:
            groups = [value[at] for at in range(2, len(value), 2)]
            only_ffdhe = _FFDHE in groups and not any(high in _CURVES for high in groups)
        elif kind == _KEY_SHARE:
            at = 2
            while at + 4 <= len(value):
                if value[at] == _FFDHE:
                    return True
                at += 4 + int.from_bytes(value[at + 2 : at + 4], "big")
    return only_ffdhe


def _reason(error: Exception) -> str:
    """Return what failed, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"bad client certificate: {error.verify_message}"
    name = getattr(error, "reason", None)
    if not isinstance(error, ssl.SSLError) or not isinstance(name, str):
        return f"{error!r}"
    for prefix in _ALERTS:
        if name.startswith(prefix):
            return f"the client says: {name.removeprefix(prefix).replace('_', ' ').lower()}"
    return _REASONS.get(name) or name.replace("_", " ").lower()


# --- who the client is ---

# Attribute types of RFC 4514 3 and those that OpenSSL abbreviates, by the long names that Python gives.
_SHORT = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "stateOrProvinceName": "ST", "localityName": "L", "streetAddress": "street", "domainComponent": "DC",
    "userId": "UID", "surname": "SN", "givenName": "GN",
}  # fmt: skip
_ESCAPED = frozenset('"+,;<>\\')

Names = tuple[tuple[tuple[str, str], ...], ...]


def client_names(certificate: Mapping[str, object]) -> dict[str, str]:
    """Return what an app is told of a verified certificate, as `SSLObject.getpeercert` has it. Pure.

    The names are those of mod_ssl, and nginx has the same form of a distinguished name (RFC 4514, the last one first).
    Text is UTF-8 in Latin-1, as everything in a WSGI environ (PEP 3333).
    """
    subject: Names = certificate.get("subject", ())  # type: ignore[assignment]
    issuer: Names = certificate.get("issuer", ())  # type: ignore[assignment]
    told = {
        "SSL_CLIENT_S_DN": _distinguished(subject),
        "SSL_CLIENT_I_DN": _distinguished(issuer),
        "SSL_CLIENT_M_SERIAL": f"{certificate.get('serialNumber', '')}",
        "SSL_CLIENT_V_START": f"{certificate.get('notBefore', '')}",
        "SSL_CLIENT_V_END": f"{certificate.get('notAfter', '')}",
    }
    for attributes in subject:
        for name, value in attributes:
            if name in ("commonName", "emailAddress"):
                told.setdefault("SSL_CLIENT_S_DN_" + ("CN" if name == "commonName" else "Email"), value)
    counts: dict[str, int] = {}
    for kind, value in certificate.get("subjectAltName", ()):  # type: ignore[attr-defined]
        short = {"DNS": "DNS", "email": "Email"}.get(kind)
        if short:
            number = counts[short] = counts.get(short, -1) + 1
            told[f"SSL_CLIENT_SAN_{short}_{number}"] = value
    return {name: _native(value) for name, value in told.items()}


def _distinguished(names: Names) -> str:
    return ",".join(
        "+".join(f"{_SHORT.get(name, name)}={_escape(value)}" for name, value in attributes)
        for attributes in reversed(names)
    )


def _escape(value: str) -> str:
    """As RFC 4514 2.4 has it; control characters, too, so that nothing ends a line anywhere."""
    escaped = "".join(
        f"\\{char}" if char in _ESCAPED else f"\\{ord(char):02X}" if char < " " or char == "\x7f" else char
        for char in value
    )
    if escaped.startswith(("#", " ")):
        escaped = "\\" + escaped
    if escaped.endswith(" ") and len(value) > 1:
        escaped = escaped[:-1] + "\\ "
    return escaped


def _native(text: str) -> str:
    clean = "".join(char for char in text if char >= " " and char != "\x7f")
    return clean.encode("utf-8", "replace").decode("latin-1")


# --- who computes handshakes ---


@dataclass(slots=True)
class _Step:
    compute: Callable[[], None]
    done: Callable[[float], None]
    wanted: Callable[[], bool]


class Handshaker:
    """Has the steps of handshakes computed so that they hold up nobody but each other: by helper threads.

    Only where the server's keys have shown that they are cheap on this machine, one is computed at once, and a few more
    in the same turn. A single RSA 4096 key ends that for all: what is remembered is the longest of late.

    A handshake is the most that a stranger can have a server compute for nothing. So each client has a queue of its
    own, and they take turns: one that begins five hundred delays another by one. Begun ones are finished first. No more
    than `per_second` begin in a second (0 is no limit), or as many at once after a pause of a second; the others wait
    for it, until their own deadlines. Of one client `max_client` may wait, of all of them `max_waiting`; who is one
    too many is refused at once, for it would wait in vain.

    `post` and `plan` are the loop's. Everything is called on the I/O thread, and calls back there.
    """

    def __init__(
        self,
        pool: Pool,
        threads: int,
        post: Callable[[Callable[[float], None]], None],
        plan: Callable[[float, Callable[[float], None]], None],
        *,
        per_second: int = 0,
        max_client: int = 64,
        max_waiting: int = 4096,
    ) -> None:
        self._pool = pool
        self._room = 2 * threads  # with the pool at once: one computed, one next, so that no thread waits for a turn
        self._post = post
        self._plan = plan
        self._interval_s = 1.0 / per_second if per_second else 0.0
        self._max_client = max_client
        self._max_waiting = max_waiting
        self._begun: deque[_Step] = deque()
        self._new: OrderedDict[Hashable, deque[_Step]] = OrderedDict()  # by client, whose turn is next first
        self._waiting = 0
        self._with_pool = 0
        self._full_at = 0.0  # when the bucket of `per_second` is full again
        self._planned = False
        self._cost_s = INLINE_S * 2  # nothing is known yet
        self._turn = 0.0
        self._turn_s = 0.0  # computed on the I/O thread in this turn

    def __repr__(self) -> str:
        return (
            f"<Handshaker {self._waiting} waiting of {len(self._new)} clients, {self._with_pool} with {self._pool!r}>"
        )

    def submit(
        self,
        client: str,
        compute: Callable[[], None],
        done: Callable[[float], None],
        wanted: Callable[[], bool],
        now: float,
        begun: bool = False,
    ) -> bool:
        """Have a helper call `compute`, and then the I/O thread `done(now)`; return False if too many wait already.

        Neither is called for one that is not `wanted` any more when its turn comes. `client` "" is nobody in
        particular. `begun` is any step but the first.
        """
        if self._is_cheap(now) and (begun or self._may_begin(now)):
            self._timed(compute)
            self._turn_s += self._cost_s
            done(now)
            return True
        step = _Step(compute, done, wanted)
        if begun:
            self._begun.append(step)
        else:
            key: Hashable = client or step.done  # nobody in particular shares with nobody
            queue = self._new.get(key)
            if self._waiting >= self._max_waiting or (queue is not None and len(queue) >= self._max_client):
                return False
            if queue is None:
                self._new[key] = deque([step])
            else:
                queue.append(step)
            self._waiting += 1
        self._hand_on(now)
        return True

    def _is_cheap(self, now: float) -> bool:
        if now != self._turn:
            self._turn, self._turn_s = now, 0.0
        return self._cost_s <= min(INLINE_S, INLINE_PER_TURN_S - self._turn_s) and not (self._waiting or self._begun)

    def _timed(self, compute: Callable[[], None]) -> None:
        """Call `compute` and learn what it costs in processor time, which tells more than how long it took. Any thread.

        Two threads may both have just learnt something, and one is lost.
        """
        began = time.thread_time()
        compute()
        self._cost_s = max(time.thread_time() - began, self._cost_s * COST_FADES)

    def _hand_on(self, now: float) -> None:
        while self._with_pool < self._room:
            step = self._begun.popleft() if self._begun else self._next_new(now)
            if step is None:
                return
            if step.wanted():
                self._with_pool += 1
                if not self._pool.submit(partial(self._timed, step.compute), self._computed(step)):
                    # No thread can be had, or the server ends: whoever waits has a deadline.
                    self._with_pool -= 1
                    self._begun.appendleft(step)
                    return

    def _next_new(self, now: float) -> _Step | None:
        """Take the next in turn that is still wanted, if another may begin now."""
        while self._new:
            key, queue = next(iter(self._new.items()))
            if not queue[0].wanted():
                self._take(key, queue)
            elif self._may_begin(now):
                return self._take(key, queue)
            else:
                break
        return None

    def _take(self, key: Hashable, queue: deque[_Step]) -> _Step:
        step = queue.popleft()
        self._waiting -= 1
        if queue:
            self._new.move_to_end(key)
        else:
            del self._new[key]
        return step

    def _may_begin(self, now: float) -> bool:
        if not self._interval_s:
            return True
        wait_s = self._full_at + self._interval_s - now - 1.0
        if wait_s > 0:
            if not self._planned:
                self._planned = True
                self._plan(now + wait_s, self._resume)
            return False
        self._full_at = max(self._full_at, now) + self._interval_s
        return True

    def _resume(self, now: float) -> None:
        self._planned = False
        self._hand_on(now)

    def _computed(self, step: _Step) -> Callable[[object], None]:
        def finish(now: float) -> None:
            self._with_pool -= 1
            try:
                if step.wanted():
                    step.done(now)
            finally:
                self._hand_on(now)

        return lambda _result: self._post(finish)  # helper thread
