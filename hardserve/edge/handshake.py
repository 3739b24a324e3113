"""A server's half of a TLS handshake, in steps: what a thread that must not wait does, and what another one computes.

Theory of operation
-------------------
`advance` reads and writes, on the I/O thread, and says what is needed next; `compute` is the expensive part, on any
thread; in between the connection does not read. So the I/O thread and a helper have the SSL object in turns, and it
needs no lock. `advance` asks for `compute` only when the peer's message is whole, so that a ClientHello that is dripped
byte by byte costs as much as one that is not, and its deadline. Once the private key has been used, what is left is
cheap, and done at once, unless there is a client certificate to verify.

The look. A ClientHello is read here (tls.hello) before OpenSSL gets a byte of it, and before there is an SSL object.
What is malformed is refused, and so is what OpenSSL would do that nobody should have it do:

* Finite-field Diffie-Hellman (RFC 7919). OpenSSL has those groups in TLS 1.3, Python cannot take them out, and a client
  that asks for the largest has the server compute a hundred times as long as for any other. OpenSSL computes it only
  for a share that the client has sent, so no ClientHello with such a share gets through. Clients may offer the groups:
  they send a share for their favourite, which is a curve in all of them that have not been told otherwise.
* A server name that is no ASCII. Python would print a traceback.

`choose` then may name another context than the one that every connection begins with, which a certificate authority
needs: it means a name, but not the certificate that everybody else gets for it (RFC 8737).

A server that can use none of the shares names a group, and the client says hello once more (HelloRetryRequest, RFC 8446
4.1.4), with what may be quite another ClientHello. It is looked at as the first one was, and must mean the same.
OpenSSL takes all that it has been given, so it is never given more than one hello, and none unread: bytes that have
come behind one are held back until it has been answered, and `_answered` is True when the answer was no request for
another. From then on OpenSSL gets all that comes, for it takes no hello any more.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Literal

from hardserve.edge.tlsfacts import Facts, client_names
from hardserve.edge.tlswire import READ_BYTES, Wire
from hardserve.edge.transport import PlainTransport
from hardserve.tls.hello import HANDSHAKE, RECORD_HEADER_BYTES, BadHelloError, ClientHello, HelloReader

Need = Literal["read", "write", "compute", "done"]
Choose = Callable[[ClientHello], ssl.SSLContext | None]

# A peer's whole half of the handshake. A ClientHello is below 2 KiB, a chain of client certificates rarely 10.
MAX_HANDSHAKE_BYTES = 65536
# Its pieces: a step is computed for each flight, and there are two or three.
MAX_STEPS = 32

CLOSED_EARLY = "closed during the handshake"

_FFDHE = 0x01  # the first byte of those groups (RFC 7919 2)
_HANDSHAKE_FAILURE, _ILLEGAL_PARAMETER = 40, 47  # alerts (RFC 8446 6.2)
# A ServerHello with this instead of random bytes is a HelloRetryRequest (RFC 8446 4.1.3), and where they are: behind
# the headers of record and message, and the version.
_RETRY = bytes.fromhex("CF21AD74E59A6111BE1D8C021E65B891C2A211167ABB8C5E079E09E2C8A8339C")
_RANDOM = slice(RECORD_HEADER_BYTES + 4 + 2, RECORD_HEADER_BYTES + 4 + 2 + len(_RETRY))

_ALERTS = ("SSLV3_ALERT_", "TLSV1_ALERT_", "TLSV13_ALERT_")
# OpenSSL's names for what has a better one.
_REASONS = {
    "CALLBACK_FAILED": "unknown server name",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no client certificate",
}


class HandshakeError(OSError):
    """A handshake failed. `reason` is a few words for the log, never the peer's bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PlainHttpError(HandshakeError):
    """The peer speaks HTTP without TLS. `Handshaking.as_plain` is how to answer it."""

    def __init__(self) -> None:
        super().__init__("http request")


class Handshaking(Wire):
    """The half of a transport that there is until the handshake is done. See the module's head.

    `first` is what was read of the socket before, such as what followed a PROXY header. `choose` is called once, when
    the ClientHello is there.
    """

    __slots__ = (
        "_answered", "_before", "_broken", "_choose", "_computing", "_context", "_costly", "_held_back", "_hello",
        "_more", "_outcome", "_reader", "_shake_bytes", "_steps", "_tls", "_verifies", "facts",
    )  # fmt: skip

    def __init__(
        self,
        plain: PlainTransport,
        context: ssl.SSLContext,
        *,
        first: bytes = b"",
        choose: Choose | None = None,
    ) -> None:
        super().__init__(plain)
        self.facts: Facts | None = None  # once it is done
        self._tls: ssl.SSLObject  # once the ClientHello is there
        self._more = False  # of what arrived, something is left for whoever reads
        self._broken = False  # an alert was fatal
        # Of the handshake alone.
        self._context = context
        self._choose = choose
        self._before = first
        self._held_back = bytearray()  # the peer's, until OpenSSL can do something with it
        self._reader = HelloReader()
        self._hello: ClientHello | None = None  # the first
        self._answered = False  # and so no other is expected
        self._shake_bytes = 0
        self._steps = 0
        self._verifies = False
        self._costly = True  # the step that is next
        self._computing = False  # whoever calls `compute` has the SSL object
        self._outcome: Need | Exception | None = None  # of the last `compute`

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
                self.compute()
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
            self._incoming.write(self._held_back)  # the beginning of a record behind the last message
            self._hello, self._held_back = None, bytearray()
            # A client may send its request along with the last message.
            self._more = self._incoming.pending > 0
            return "done"
        self._outcome = None
        return None

    def _gather(self) -> Need:
        """Take what has arrived of the peer's next message."""
        if not (self._held_back and (size := self._flight())):
            if not self._receive_more():
                return "read"
            if not (size := self._flight()):
                return "read"
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise HandshakeError("handshake in too many pieces")
        self._incoming.write(self._held_back[:size])
        del self._held_back[:size]
        self._computing = True
        return "compute"

    def _receive_more(self) -> bool:
        data: bytes | None
        if self._before:
            data, self._before = self._before, b""
        else:
            data = self._receive_raw(READ_BYTES)
        if data is None:
            return False
        if not data:
            raise HandshakeError(CLOSED_EARLY)
        if not self._shake_bytes:
            _check_first(data)
        self._shake_bytes += len(data)
        if self._shake_bytes > MAX_HANDSHAKE_BYTES:
            raise HandshakeError("handshake too large")
        self._held_back += data
        return True

    def _flight(self) -> int:
        """Return how many bytes of what is held back OpenSSL can do something with; also whether it takes long."""
        held = self._held_back
        record = _first_record(held)
        if self._answered:
            # In the clear, it is the ClientKeyExchange of TLS 1.2, for which the private half of ECDHE is used.
            self._costly = self._verifies or held[0] == HANDSHAKE
            return _whole_records(held)
        if self._hello is not None and held[0] != HANDSHAKE:
            # Between two hellos there may be a ChangeCipherSpec (RFC 8446 D.4) or an alert, which cost nothing.
            self._costly = False
            return record
        try:
            hello = self._reader.read(held)
            if hello is None:
                return 0
            self._look(hello)
        except BadHelloError as error:
            with contextlib.suppress(OSError):
                self._send_raw(b"\x15\x03\x03\x00\x02\x02%c" % error.alert)
            raise HandshakeError(error.reason) from None
        self._costly = True
        size, self._reader = self._reader.end, HelloReader()
        return size

    def _look(self, hello: ClientHello) -> None:
        """Raise BadHelloError for what OpenSSL must not get; when it is the first, begin with it."""
        if any(group >> 8 == _FFDHE for group in hello.key_shares):
            raise BadHelloError("asks for a costly group", _HANDSHAKE_FAILURE)
        if self._hello is None:
            self._hello = hello
            chosen = self._choose(hello) if self._choose is not None else None
            context = chosen or self._context
            self._verifies = context.verify_mode != ssl.CERT_NONE
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        elif (hello.server_name, hello.protocols) != (self._hello.server_name, self._hello.protocols):
            raise BadHelloError("means something else after a retry", _ILLEGAL_PARAMETER)

    def compute(self) -> None:
        """Do the expensive part of one step; what comes of it, `advance` tells. Any thread, one at a time."""
        try:
            self._tls.do_handshake()
            self.facts = self._learn()
            self._outcome = "done"
        except ssl.SSLWantReadError:
            if not self._answered and self._outgoing.pending:
                self._unsent = self._outgoing.read()  # nothing else is unsent when a step begins
                self._answered = self._unsent[_RANDOM] != _RETRY
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
        # OpenSSL verifies once. A session that is resumed again and again would outlive what it was begun with.
        if certificate and tls.session_reused and _has_expired(certificate):
            raise HandshakeError("bad client certificate: expired since its session began")
        return Facts(
            protocol=tls.version() or "",
            cipher=cipher[0] if cipher else "",
            resumed=bool(tls.session_reused),
            alpn=tls.selected_alpn_protocol(),
            client=client_names(certificate) if certificate else {},
        )

    def as_plain(self) -> PlainTransport:
        """Return the same socket without TLS, for what is to be said to a peer that has none."""
        return self._plain


def _check_first(data: bytes) -> None:
    """Raise HandshakeError unless `data` may begin a handshake.

    Without an alert, that a client without TLS cannot read.
    """
    if data[0] != HANDSHAKE:
        raise PlainHttpError if data[:1].isalpha() and data.isascii() else HandshakeError("not TLS")


def _first_record(data: bytearray) -> int:
    """Return how long the first record is with its header, 0 while it is not all here."""
    if len(data) < RECORD_HEADER_BYTES:
        return 0
    size = RECORD_HEADER_BYTES + int.from_bytes(data[3:5], "big")
    return size if len(data) >= size else 0


def _whole_records(data: bytearray) -> int:
    """Return how long the records at the start of `data` are together that are all here."""
    end = 0
    while len(data) >= end + RECORD_HEADER_BYTES:
        following = end + RECORD_HEADER_BYTES + int.from_bytes(data[end + 3 : end + 5], "big")
        if following > len(data):
            break
        end = following
    return end


def _has_expired(certificate: Mapping[str, object]) -> bool:
    return ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time()


def _reason(error: Exception) -> str:
    """Return what failed, in a few words."""
    if isinstance(error, HandshakeError):
        return error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"bad client certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError):
        return CLOSED_EARLY
    name = getattr(error, "reason", None)
    if not isinstance(error, ssl.SSLError) or not isinstance(name, str):
        return type(error).__name__
    for prefix in _ALERTS:
        if name.startswith(prefix):
            return f"the client says: {name.removeprefix(prefix).replace('_', ' ').lower()}"
    return _REASONS.get(name) or name.replace("_", " ").lower()
