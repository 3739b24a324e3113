"""One request answered by the app: environ, call, response. Worker threads.

waitress's `WSGITask` is not used, because it decides otherwise what matters here: it closes the connection after every
chunked response, gives head and body to the channel in two pieces, sorts and recapitalises every header, and reads the
app's output ahead of what it has sent. PEP 3333 is followed instead as its reader would: a block leaves before the
next one is asked for.

The whole response leaves in one `finish` when the app's first block is all of it, which is nearly always. The
connection is then no longer ours, and what the app still does (the end of its iterable, its `close`) does not hold up
the client's next request.

This module does not know sockets or the I/O thread: `Channel` is what it asks of a connection.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import IO, Any, Protocol
from wsgiref.util import FileWrapper

from hardserve import refusals
from hardserve.http.encoders import Encoder
from hardserve.pages import ErrorPages
from hardserve.protocol import CURRENT_REQUEST, ClientDisconnectedError, DateClock
from hardserve.securityheaders import DefaultFields
from hardserve.settings import CompressionSettings, HeaderSettings
from hardserve.wsgi.compress import PIECE_BYTES, Compressor, describe_encoded, describe_unchanged
from hardserve.wsgi.interrupt import AbandonedError, Interruptible
from hardserve.wsgi.response import BadResponseError, Head, check_head, head_bytes

logger = logging.getLogger("hardserve.wsgi")

FILE_BLOCK_BYTES = 65536
LARGE_BYTES = 262144
LAST_CHUNK = b"0\r\n\r\n"

# For which request this thread has made a wrapper for a file. One for HEAD never gets as far as the response.
_FILE_FOR: ContextVar[str] = ContextVar("hardserve_file_for", default="")

Environ = dict[str, Any]
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


class Channel(Protocol):
    """A connection, as the worker that answers on it sees it."""

    peer: tuple[str, int]
    secure: bool

    @property
    def listener(self) -> Listening: ...
    def may_keep_alive(self) -> bool: ...
    def client_gone(self) -> bool: ...
    def begin_stream(self, *, open_ended: bool, abandon: Callable[[], bool]) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(self, data: bytes, *, keep_alive: bool, flushed: Callable[[int, str], None]) -> None: ...
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
    base_environ: Environ = field(init=False)
    defaults: DefaultFields = field(init=False)
    compressor: Compressor | None = field(init=False)
    _dropped: dict[str, object] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.defaults = DefaultFields(self.headers)
        self.compressor = Compressor(self.compression) if self.compression.responses == "on" else None
        # Copied for every request: copying a dict costs less than building one.
        self.base_environ = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": self.multithread,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": file_wrapper,
            "wsgi.input_terminated": True,
            "SCRIPT_NAME": "",
            "SERVER_SOFTWARE": "hardserve",
        }

    def is_first_dropped(self, name: str) -> bool:
        """Return True once for each name of a field. Worker threads; the names are those of `HOP_BY_HOP`."""
        mark = object()
        return self._dropped.setdefault(name.lower(), mark) is mark


def file_wrapper(file: Any, block_size: int = FILE_BLOCK_BYTES) -> FileWrapper:
    """Return the `wsgi.file_wrapper` of PEP 3333: blocks of `file` until it ends."""
    _FILE_FOR.set(CURRENT_REQUEST.get())
    return FileWrapper(file, max(block_size, FILE_BLOCK_BYTES))


class Task:
    """Answers one request. Made and run by a worker; `run` never raises."""

    # Defaults, because setting them for every request would cost more than all else here.
    _head: Head | None = None
    _streaming = False  # the head is out, the end is not
    _finished = False  # the last byte was handed over; the connection is no longer ours
    _chunked = False
    _close_delimited = False
    _keep_alive = False
    _truncated = False
    _sent = 0  # bytes on the wire, head and framing included
    _body_sent = 0  # of what the app promised
    _encoder: Encoder | None = None  # for a body that is compressed in parts
    _promised: int | None = None  # what the app did, of a body that was compressed as a whole
    _interruptible: Interruptible | None = None  # while it waits for the next block of a stream
    _guard: Interruptible | None = None  # wherever the app runs, if one that is late is interrupted

    def __init__(self, ctx: AppContext, channel: Channel, request: Received) -> None:
        self._ctx = ctx
        self._channel = channel
        self._request = request

    def __repr__(self) -> str:
        state = "finished" if self._finished else "streaming" if self._streaming else "starting"
        return f"<Task {state} {self._request!r}>"

    def run(self) -> None:
        """Call the app and send what it answers."""
        CURRENT_REQUEST.set(self._request.request_id)
        try:
            self._call_app()
        except (ClientDisconnectedError, AbandonedError) as error:
            if self._head is None:
                self._app_failed(error)  # the app's own, or it was late
            else:
                self._client_left(self._head, str(error) or "client_disconnected")
        except BaseException as error:
            self._app_failed(error)
        finally:
            if self._request.body_rcv is not None:
                self._request.close()

    # --- the app ---

    def _call_app(self) -> None:
        if not self._ctx.interrupts:
            blocks = self._ctx.app(self._environ(), self._start_response)
        else:
            self._guard = Interruptible()
            self._request.interrupt = self._guard.interrupt
            blocks = self._guard.call(partial(self._ctx.app, self._environ(), self._start_response))
        try:
            iterator = iter(blocks)
            head = self._head
            if head is not None and head.length is None and not head.bodiless and not _is_sole(blocks):
                # Its first event may be as long in coming as any other.
                self._announce_stream(open_ended=True)
            while True:
                try:
                    if self._interruptible is None and self._guard is None:
                        block = next(iterator)
                    else:
                        block = self._await_block(iterator)
                except StopIteration:
                    break
                if block:
                    self._send_block(block, blocks)
                elif type(block) is not bytes:
                    raise BadResponseError(f"the app yielded {block!r}, not bytes")
                if self._head is not None and self._head.bodiless:
                    break  # nothing that could follow would be sent (RFC 9110 9.3.2)
            self._end()
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close() if self._guard is None else self._guard.call(close)

    def _await_block(self, iterator: Iterator[bytes]) -> bytes:
        """Return the next block, unless the app is interrupted in its wait for it."""
        step: Callable[[], bytes] = iterator.__next__
        if self._interruptible is not None:
            step = partial(self._interruptible.call, step)
        return step() if self._guard is None else self._guard.call(step)

    def _environ(self) -> Environ:
        request, channel = self._request, self._channel
        listener = channel.listener
        environ = self._ctx.base_environ.copy()
        environ["REQUEST_METHOD"] = request.command
        environ["PATH_INFO"] = request.path
        environ["QUERY_STRING"] = request.query
        environ["REQUEST_URI"] = request.request_uri
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version == "1.1" else "HTTP/1.0"
        environ["SERVER_NAME"] = listener.name
        environ["SERVER_PORT"] = listener.port
        environ["REMOTE_ADDR"], port = request.address, channel.peer[1]
        environ["REMOTE_PORT"] = str(port) if port else ""
        environ["wsgi.input"] = io.BytesIO() if request.body_rcv is None else request.get_body_stream()
        environ["hardserve.client_disconnected"] = channel.client_gone
        environ["hardserve.max_body"] = request.max_body
        environ.update(request.headers)
        environ["HTTP_X_REQUEST_ID"] = request.request_id
        if request.identity is not None or channel.secure:
            _apply_identity(environ, request.identity, secure=channel.secure)
        if request.user:
            # A character for each byte of UTF-8, as everything in an environ (PEP 3333).
            environ["REMOTE_USER"], environ["AUTH_TYPE"] = request.user.encode().decode("latin-1"), "Basic"
        return environ

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._streaming or self._finished:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no cycle through this frame (PEP 3333)
        elif self._head is not None:
            raise BadResponseError("start_response was called twice without exc_info")
        self._head = head = check_head(status, headers, method=self._request.command)
        if head.dropped:
            self._tell_of_dropped(head)
        return self._write

    # --- the response ---

    def _write(self, data: bytes) -> None:
        """The `write` callable of PEP 3333."""
        if data:
            with contextlib.ExitStack() as stack:
                for each in (self._guard, self._interruptible):
                    if each is not None:
                        stack.enter_context(each.held_off())
                self._send_block(data, None)

    def _send_block(self, block: bytes, blocks: Iterable[bytes] | None) -> None:
        """Send `block`, which came from `blocks`; None for one that came through `write`."""
        head = self._head
        if head is None:
            raise BadResponseError("the app yielded a block before it called start_response")
        if type(block) is not bytes:
            raise BadResponseError(f"the app yielded {type(block).__name__}, not bytes")
        if self._streaming:
            self._send_next(head, block)
        elif not self._finished:
            size = head.length
            if size is None and _is_sole(blocks):
                size = len(block)
                if not head.bodiless:
                    head.length = size
            compressor = self._ctx.compressor
            if compressor is not None and (size is None or size >= compressor.min_size):
                block = self._compressed(compressor, head, block, blocks)
            self._send_first(head, block)
        elif not head.bodiless:
            self._warn_of_excess(head)

    def _compressed(self, compressor: Compressor, head: Head, block: bytes, blocks: Iterable[bytes] | None) -> bytes:
        """Decide whether the body is compressed; return what is to be sent for its first block, or of all of it."""
        request = self._request
        if head.status.startswith("304"):
            describe_unchanged(head, request.headers)
        if isinstance(blocks, FileWrapper) or _FILE_FOR.get() == request.request_id:
            return block
        length = head.length
        whole = length is not None and length <= PIECE_BYTES and (head.bodiless or len(block) >= length)
        plan = compressor.plan(head, request, whole=whole)
        if plan is None:
            return block
        if head.bodiless:
            describe_encoded(head)
            head.length = None  # RFC 9110 8.6: that of GET, which is not known, or none
        elif length is not None and whole:
            shorter = plan.shorter(block[:length])
            if shorter is not None:
                if len(block) > length:
                    self._warn_of_excess(head)
                describe_encoded(head, plan.coding)
                self._promised, head.length = length, len(shorter)
                return shorter
        # Without chunks only the end of the connection could mark that of the body, and a cut one would look whole.
        elif request.version == "1.1" and (length is None or len(block) < length or plan.pays(block)):
            describe_encoded(head, plan.coding)
            self._encoder = plan.encoder()
        return block

    def _send_first(self, head: Head, block: bytes) -> None:
        start = self._start(head)
        if head.bodiless:
            self._finish(start)
        elif self._encoder is not None:
            self._send_encoded(self._encoder, head, block, start)
        elif head.length is None:
            self._stream(start, self._framed(block), open_ended=True)
        elif len(block) < head.length:
            self._stream(start, block, open_ended=False)
            self._body_sent = len(block)
        elif len(block) > LARGE_BYTES:
            # Copied behind its head, a block of megabytes would hold the interpreter lock for milliseconds.
            self._stream(start, b"", open_ended=False)
            self._send_next(head, block)
        else:
            self._finish(start + (block if len(block) == head.length else block[: head.length]))
            if len(block) > head.length:
                self._warn_of_excess(head)

    def _send_next(self, head: Head, block: bytes) -> None:
        if self._encoder is not None:
            self._send_encoded(self._encoder, head, block)
        elif head.length is None:
            self._put(self._framed(block))
        else:
            block, last = self._within_promise(head, head.length, block)
            if last:
                self._finish(block)
            else:
                self._put(block)

    def _within_promise(self, head: Head, length: int, block: bytes) -> tuple[bytes, bool]:
        """Return what of `block` the app has promised, and whether that is the last of it."""
        room = length - self._body_sent
        self._body_sent += len(block)
        if len(block) > room:
            self._warn_of_excess(head)
            block = block[:room]
        return block, len(block) == room

    def _send_encoded(self, encoder: Encoder, head: Head, block: bytes, start: bytes = b"") -> None:
        """Send `block` compressed, behind the head if that has not left yet, so that its reader has all of it."""
        last = False
        if head.length is not None:
            block, last = self._within_promise(head, head.length, block)
        for offset in range(0, len(block), PIECE_BYTES):
            data = encoder.add(block[offset : offset + PIECE_BYTES])
            if offset + PIECE_BYTES >= len(block):
                data += encoder.end() if last else encoder.flush()
                if last:
                    self._finish(start + self._framed(data) + LAST_CHUNK)
                    return
            if start:
                self._stream(start, self._framed(data), open_ended=head.length is None)
                start = b""
            elif data:
                self._put(self._framed(data))

    def _end(self) -> None:
        """The app has nothing more to say."""
        head = self._head
        if self._finished:
            return
        if head is None:
            raise BadResponseError("the app returned without calling start_response")
        if not self._streaming:
            compressor = self._ctx.compressor
            if not head.bodiless:
                head.length = head.length or 0
            elif compressor is not None and (head.length is None or head.length >= compressor.min_size):
                self._compressed(compressor, head, b"", None)
            start = self._start(head)
            if head.length and not head.bodiless:
                self._stream(start, b"", open_ended=False)
            else:
                self._finish(start)
                return
        if head.length is not None:
            raise BadResponseError(f"the app sent {self._body_sent} of the {head.length} bytes it promised")
        rest = b"" if self._encoder is None else self._framed(self._encoder.end())
        self._finish(rest + LAST_CHUNK if self._chunked else b"")

    def _start(self, head: Head) -> bytes:
        """Decide how the end of the body is marked (RFC 9112 6.3), and return the head's bytes."""
        request = self._request
        if request.rate_slots is not None and not request.expired:
            self._ctx.responded(request.rate_slots, int(head.status[:3]))
        unknown = (head.length is None or self._encoder is not None) and not head.bodiless
        self._chunked = unknown and request.version == "1.1"
        self._close_delimited = unknown and not self._chunked
        self._keep_alive = (
            request.keep_alive and not (self._close_delimited or head.close) and self._channel.may_keep_alive()
        )
        connection = "close" if not self._keep_alive else "keep-alive" if request.version == "1.0" else ""
        return head_bytes(
            head,
            request_id=request.request_id,
            date=self._ctx.date.text(),
            chunked=self._chunked,
            connection=connection,
            defaults=self._ctx.defaults,
        )

    def _framed(self, block: bytes) -> bytes:
        # An empty chunk would be the last.
        return b"%x\r\n%b\r\n" % (len(block), block) if self._chunked and block else block

    def _stream(self, start: bytes, block: bytes, *, open_ended: bool) -> None:
        self._streaming = True
        assert self._head is not None
        self._request.status = int(self._head.status[:3])
        self._announce_stream(open_ended=open_ended)
        self._put(start + block)

    def _announce_stream(self, *, open_ended: bool) -> None:
        if self._interruptible is None:
            self._interruptible = Interruptible()
            self._channel.begin_stream(open_ended=open_ended, abandon=self._interruptible.interrupt)

    def _put(self, data: bytes) -> None:
        self._sent += len(data)
        request = self._request
        request.sent = self._sent
        request.app_since = math.inf  # from here it is the client who may be late
        try:
            self._channel.write(data)
        finally:
            request.app_since = monotonic()

    def _finish(self, data: bytes) -> None:
        self._streaming = False
        self._finished = True
        self._sent += len(data)
        self._channel.finish(data, keep_alive=self._keep_alive, flushed=self._flushed)

    def _flushed(self, unsent: int, reason: str) -> None:
        """Log the request. Worker thread, or the I/O thread if the client was slow to take it."""
        assert self._head is not None
        self._report(int(self._head.status[:3]), self._sent - unsent, reason)

    def _report(self, status: int, sent: int, reason: str) -> None:
        if not self._request.expired:
            self._ctx.outcome(self._channel, self._request, status, sent, reason)

    def _warn_of_excess(self, head: Head) -> None:
        if not self._truncated:
            self._truncated = True
            promised = self._promised or head.length or 0
            logger.warning("the app sent more than the %d bytes it promised; the rest was dropped", promised)

    def _tell_of_dropped(self, head: Head) -> None:
        request = self._request
        for name in head.dropped:
            if self._ctx.is_first_dropped(name):
                logger.warning(
                    "%s %s: the header %s is hop-by-hop, and not an app's to set; it is left out, from now on",
                    request.command,
                    request.path,
                    name,
                )

    # --- when it goes wrong ---

    def _client_left(self, head: Head, reason: str) -> None:
        """The client went away, or was cut, while the app was answering: nobody is left to tell."""
        if not self._finished:
            self._channel.abort(reset=True)
            self._report(int(head.status[:3]), self._sent, reason)

    def _app_failed(self, error: BaseException) -> None:
        self._log_failure(error)
        if self._finished:
            return
        if self._streaming:
            # The client must not take what it has for the whole.
            self._channel.abort(reset=self._close_delimited)
            assert self._head is not None
            self._report(int(self._head.status[:3]), self._sent, "app_failed_midway")
            return
        refusal = refusals.APP_FAILED
        request = self._request
        if request.rate_slots is not None:
            self._ctx.responded(request.rate_slots, refusal.status)
        self._keep_alive = request.keep_alive and self._channel.may_keep_alive()
        answer = self._ctx.pages.response(
            refusal,
            accept=request.headers.get("HTTP_ACCEPT", ""),
            request_id=request.request_id,
            date=self._ctx.date.text(),
            head_only=request.command == "HEAD",
            close=not self._keep_alive,
        )
        self._finished = True
        self._sent = len(answer)
        self._channel.finish(
            answer,
            keep_alive=self._keep_alive,
            flushed=lambda unsent, reason: self._report(refusal.status, len(answer) - unsent, reason or refusal.name),
        )

    def _log_failure(self, error: BaseException) -> None:
        if isinstance(error, BadResponseError):
            logger.error("%s %s: %s", self._request.command, self._request.path, error)
            return
        where = "after its response" if self._finished else "midway" if self._streaming else "before its response"
        logger.error("%s %s: the app failed %s", self._request.command, self._request.path, where, exc_info=error)


def _apply_identity(environ: Environ, identity: Identified | None, *, secure: bool) -> None:
    """Have `environ` say what the client asked of the proxy in front, where the proxy says so."""
    scheme = "https" if secure else ""
    if identity is not None:
        scheme = identity.scheme or scheme
        environ["REMOTE_PORT"] = str(identity.port) if identity.port else ""
        environ["SCRIPT_NAME"] = identity.prefix
        if identity.host:
            environ["HTTP_HOST"] = identity.host
            name, _, port = identity.host.rpartition(":")
            environ["SERVER_NAME"] = name if name and port.isdigit() else identity.host
    if scheme:
        environ["wsgi.url_scheme"] = scheme
    if scheme or (identity is not None and (identity.host or identity.server_port)):
        default = "443" if environ["wsgi.url_scheme"] == "https" else "80"
        port = "" if identity is None else identity.server_port
        host = environ.get("HTTP_HOST", "")
        colon, host_port = host.rpartition(":")[1:]
        if colon and host_port.isdigit():
            port = port or host_port
        elif host and port not in ("", default):
            environ["HTTP_HOST"] = f"{host}:{port}"  # where an app takes the port of its own URLs from
        environ["SERVER_PORT"] = port or default


def _is_sole(blocks: object) -> bool:
    """Return whether the app's iterable says that it holds one block, which gives a response its length."""
    try:
        return len(blocks) == 1  # type: ignore[arg-type]
    except TypeError:
        return False
