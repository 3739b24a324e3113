"""What every connection of a server shares: the loop it lives on, the limits, and who is asked about a request.

Data and declarations. Written by the I/O thread, read by any.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from hardserve.edge.fileparts import PageCache
from hardserve.edge.outbox import FILE_SHARE_BYTES, FILE_TURN_BYTES
from hardserve.protocol import Seldom

if TYPE_CHECKING:
    from hardserve.edge.budget import Budget
    from hardserve.edge.connection import Connection
    from hardserve.edge.gate import Verdict
    from hardserve.edge.parsing import ParserRules, Request
    from hardserve.edge.readers import Readers
    from hardserve.edge.sending import Sending
    from hardserve.edge.tls import TlsTransport
    from hardserve.edge.transport import PlainTransport
    from hardserve.pages import ErrorPages
    from hardserve.protocol import DateClock, SharedFile
    from hardserve.refusals import Cut, Refusal
    from hardserve.settings import Settings

# How long a drain leaves an idle connection open: whoever is about to send a request on it gets an answer and is told
# to close, where closing at once would lose a request that is already on its way.
DRAIN_IDLE_S = 1.0
# A line that names a file that could not be sent as promised, at most so often; the summary of refusals has them all.
FILE_LINE_S = 60.0


class Phase(Enum):
    """What a connection is doing."""

    HANDSHAKE = "handshake"  # of TLS, and what comes before it
    IDLE = "idle"  # no byte of a next request has come
    HEAD = "head"  # some of a request head has come
    BODY = "body"  # the head was admitted, some of the body is missing
    BUSY = "busy"  # a complete request is waiting for a worker or with one, or a head for the gate's decision
    LINGER = "linger"  # the last answer is out or on its way; what still arrives is discarded
    CLOSED = "closed"


HANDSHAKE, IDLE, HEAD, BODY, BUSY, LINGER, CLOSED = Phase


class Poller(Protocol):
    """What a connection asks of the loop it lives on. I/O thread, but for `wake`, which any thread may call."""

    def set_interest(self, connection: Connection, *, read: bool, write: bool) -> None: ...
    def watch(self, connection: Connection, now: float) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def read_again(self, connection: Connection) -> None:
        """Have `connection.on_readable` called soon, though its socket may not be readable (Transport.pending)."""

    def wake(self, connection: Connection) -> None:
        """Have the I/O thread call `connection.settle` soon."""


@dataclass(slots=True)
class EdgeContext:
    """What all connections of a server share. The functions are called on the I/O thread."""

    settings: Settings
    rules: ParserRules
    date: DateClock
    poller: Poller
    budget: Budget
    readers: Readers
    pages: ErrorPages
    admit: Callable[[Connection, Request, float], Verdict]
    identify: Callable[[Connection, tuple[str, int], float], Refusal | Cut | None]  # once a PROXY header names the peer
    dispatch: Callable[[Connection, Request, float], Refusal | None]  # a complete request to the workers
    withdraw: Callable[[Connection, Request], bool]  # what was dispatched and no worker has taken; whether it was so
    responded: Callable[[Any, int], None]  # what the limiter hung on a request, and the status of its response
    log_refusal: Callable[[Connection, Request, Refusal, int], None]  # with the bytes that were answered
    log_cut: Callable[[Connection, Request | None, Cut], None]  # the request that is not answered because of it
    log_turned_away: Callable[[Refusal, str, str], None]  # a client that was refused before it could ask, its address
    # A complete request that a file may answer: whether it is taken, and answered now (`Connection.answer`) or later
    # (`await_file`). None where there are no files.
    serve_file: Callable[[Connection, Request, float], bool | Refusal] | None = None
    # Has a file thread read from an offset so many bytes (`SharedFile.read`), and call the last argument there with
    # them or what was raised. False is that it cannot at the moment.
    read_file: Callable[[SharedFile, int, int, Callable[[bytes | BaseException], None]], bool] = lambda *_: False
    give_way: Callable[[], None] = lambda: None  # lets go of the interpreter lock, if a worker is waiting for it
    # Has a helper thread compute a step of a handshake (handshaker.Handshaker.submit). False is that too many wait.
    compute: Callable[[str, Callable[[], None], Callable[[float], None], Callable[[], bool], float, bool], bool] = (
        lambda *_: False
    )
    # A TLS transport over a plain one of a listener, and what was read of it before. None where there is no TLS.
    secure: Callable[[PlainTransport, bytes], TlsTransport] | None = None
    log_handshake: Callable[[Connection, str], None] = lambda *_: None  # why one failed
    tls_fields: bytes = b""  # header lines of refusals over TLS
    draining: bool = False
    downloads: set[Sending] = field(default_factory=set)  # connections whose files are on their way; I/O thread
    page_cache: PageCache = field(default_factory=PageCache)
    file_lines: Seldom = field(default_factory=lambda: Seldom(FILE_LINE_S))  # about files that failed midway

    def share_of_turn(self) -> int:
        """Return how many bytes one connection may send from files before it is the others' turn. I/O thread."""
        return max(FILE_SHARE_BYTES, FILE_TURN_BYTES // max(1, len(self.downloads)))

    def idle_s(self) -> float:
        """Return how long a connection may stay idle. Any thread."""
        return DRAIN_IDLE_S if self.draining else self.settings.timeouts.keep_alive


def new_request_id() -> str:
    """Return an id to find a request by: unlikely to repeat, but no secret, and no system call."""
    return f"{random.getrandbits(64):016x}"
