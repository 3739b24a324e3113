"""What a task is given: the connection and the request as a worker sees them, and what all requests share.

Declarations and data; worker threads read them. What is behind the protocols is the edge's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from hardserve.pages import ErrorPages
from hardserve.protocol import DateClock, FilePart, Seldom
from hardserve.securityheaders import DefaultFields, hsts_line
from hardserve.settings import CompressionSettings, HeaderSettings
from hardserve.wsgi.appfiles import OpenNamed
from hardserve.wsgi.compress import Compressor
from hardserve.wsgi.environ import Environ, base_environ

# A line about a missing file, at most so often.
NEWS_S = 60.0

StartResponse = Callable[..., Callable[[bytes], None]]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class Identified(Protocol):
    """What a trusted proxy says of who asks, and of where; "" is what it says nothing of."""

    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def server_port(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def port(self) -> int: ...


class Listening(Protocol):
    """The address that a request came in on."""

    name: str
    port: str


class Secured(Protocol):
    """What a connection is secured with, where TLS ends here."""

    @property
    def environ(self) -> Mapping[str, str]: ...


class Channel(Protocol):
    """A connection, as the worker that answers on it sees it."""

    peer: tuple[str, int]
    secure: bool

    @property
    def listener(self) -> Listening: ...
    @property
    def tls(self) -> Secured | None: ...
    def may_keep_alive(self) -> bool: ...
    def client_gone(self) -> bool: ...
    def begin_stream(self, *, open_ended: bool, abandon: Callable[[], bool]) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(
        self,
        data: bytes,
        *,
        keep_alive: bool,
        flushed: Callable[[int, str], None],
        file: Sequence[bytes | FilePart] = (),
    ) -> None: ...
    def abort(self, *, reset: bool) -> None: ...


class Received(Protocol):
    """A complete request."""

    command: str
    path: str
    query: str
    request_uri: str
    version: str
    headers: dict[str, str]
    request_id: str
    address: str
    user: str
    rate_slots: Any
    keep_alive: bool
    started: float
    logged: bool
    body_rcv: Any
    max_body: int
    app_since: float
    interrupt: Callable[[], bool] | None
    expired: bool
    status: int
    sent: int

    @property
    def identity(self) -> Identified | None: ...
    def get_body_stream(self) -> IO[bytes]: ...
    def close(self) -> None: ...


class Outcome(Protocol):
    """Called once for every request, by the worker or the I/O thread, when it is known how much of it left."""

    def __call__(self, channel: Channel, request: Received, status: int, sent: int, reason: str) -> None: ...


@dataclass(slots=True)
class AppContext:
    """What all requests of a server share. Worker threads read it."""

    app: Application
    date: DateClock
    pages: ErrorPages
    outcome: Outcome
    responded: Callable[[Any, int], None]  # a request's `rate_slots`, and the status that is about to leave
    multithread: bool
    interrupts: bool  # an app that is late is interrupted
    headers: HeaderSettings = field(default_factory=HeaderSettings)
    compression: CompressionSettings = field(default_factory=CompressionSettings)
    open_named: OpenNamed | None = None  # None where no file may be named
    hsts: str = ""  # where TLS ends here
    base_environ: Environ = field(init=False)
    defaults: DefaultFields = field(init=False)
    tls_fields: bytes = field(init=False)
    compressor: Compressor | None = field(init=False)
    _dropped: dict[str, object] = field(init=False, default_factory=dict)
    # About files that the app names and that are not there: clients may choose names.
    missing_files: Seldom = field(init=False, default_factory=lambda: Seldom(NEWS_S))

    def __post_init__(self) -> None:
        self.defaults = DefaultFields(self.headers, self.hsts)
        self.tls_fields = hsts_line(self.hsts)
        self.compressor = Compressor(self.compression) if self.compression.responses == "on" else None
        self.base_environ = base_environ(multithread=self.multithread)

    def is_first_dropped(self, name: str) -> bool:
        """Return True once for each name of a field. Worker threads; the names are those of `HOP_BY_HOP`."""
        mark = object()
        return self._dropped.setdefault(name.lower(), mark) is mark
