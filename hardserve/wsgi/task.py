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
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Any
from wsgiref.util import FileWrapper

from hardserve import refusals
from hardserve.http.encoders import Encoder
from hardserve.protocol import CURRENT_REQUEST, ClientDisconnectedError, FileFailedError, FilePart
from hardserve.wsgi.appfiles import ResponseRefusedError, is_wrapped, named_body, wrapped_file
from hardserve.wsgi.compress import PIECE_BYTES, Compressor, describe_encoded, describe_unchanged
from hardserve.wsgi.context import AppContext, Channel, Received
from hardserve.wsgi.environ import FILE_FOR, environ_of
from hardserve.wsgi.interrupt import AbandonedError, Interruptible
from hardserve.wsgi.response import BadResponseError, Head, check_head, head_bytes

logger = logging.getLogger("hardserve.wsgi")

# A file up to this size is read by the worker, and leaves in one send with its head.
SMALL_FILE_BYTES = 65536
LARGE_BYTES = 262144
LAST_CHUNK = b"0\r\n\r\n"


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
        environ = environ_of(self._ctx.base_environ, self._channel, self._request)
        if not self._ctx.interrupts:
            blocks = self._ctx.app(environ, self._start_response)
        else:
            self._guard = Interruptible()
            self._request.interrupt = self._guard.interrupt
            blocks = self._guard.call(partial(self._ctx.app, environ, self._start_response))
        try:
            if not is_wrapped(blocks) or not self._send_wrapped(blocks):
                self._send_blocks(blocks)
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close() if self._guard is None else self._guard.call(close)

    def _send_blocks(self, blocks: Iterable[bytes]) -> None:
        """Send what the app yields, each block before the next one is asked for."""
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
            head = self._head
            if head is not None and (head.bodiless or (head.named is not None and self._finished)):
                break  # nothing that could follow would be sent (RFC 9110 9.3.2)
        self._end()

    def _await_block(self, iterator: Iterator[bytes]) -> bytes:
        """Return the next block, unless the app is interrupted in its wait for it."""
        step: Callable[[], bytes] = iterator.__next__
        if self._interruptible is not None:
            step = partial(self._interruptible.call, step)
        return step() if self._guard is None else self._guard.call(step)

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
        elif head.named is not None and not self._finished:
            self._send_named(head, head.named)
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
        if isinstance(blocks, FileWrapper) or FILE_FOR.get() == request.request_id:
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

    def _send_wrapped(self, wrapper: Iterable[bytes]) -> bool:
        """Have the connection send what an app has given to `wsgi.file_wrapper`; return False if it is no file."""
        head = self._head
        if head is None or head.bodiless or head.named is not None or self._streaming:
            return False
        part = wrapped_file(wrapper, head.length)
        if part is None:
            return False
        try:
            if head.length not in (None, part.length):
                return False  # a part that is not as long as its head says
            head.length = part.length
            self._send_parts(head, [part])
        finally:
            part.file.release()
        return True

    def _send_named(self, head: Head, named: tuple[str, str]) -> None:
        """Have the connection send the file that the app has named in a header field, and nothing of its body."""
        if self._ctx.open_named is None:
            raise BadResponseError(
                f"the app names a file in {named[0]}, but there is no [[static]] that it could be in"
            )
        request = self._request
        try:
            opened = self._ctx.open_named(*named)
        except FileNotFoundError as error:
            raise ResponseRefusedError(refusals.FILE_NOT_FOUND, why=f"there is no file {named[1]!r}") from error
        except OSError as error:
            raise ResponseRefusedError(refusals.FILE_FAILED, why=f"{named[1]!r}: {error.strerror}") from error
        try:
            self._send_parts(head, named_body(head, opened, command=request.command, headers=request.headers))
        finally:
            opened.file.release()
        self._truncated = True  # the app's own body is not missed

    def _send_parts(self, head: Head, parts: Sequence[bytes | FilePart]) -> None:
        """Send a head, and then what the I/O thread reads of files."""
        total = 0 if head.bodiless else head.length or 0
        if total <= SMALL_FILE_BYTES and len(parts) == 1 and isinstance(parts[0], FilePart):
            part = parts[0]
            try:
                content = part.file.read(part.start, total) if total else b""
            except FileFailedError as error:
                raise ResponseRefusedError(refusals.FILE_FAILED, why=str(error)) from error
            if len(content) == total:
                self._finish(self._start(head) + content)
                return
        start = self._start(head)
        self._finished = True
        self._sent += len(start) + total
        self._channel.finish(start, keep_alive=self._keep_alive, flushed=self._flushed, file=parts)

    def _end(self) -> None:
        """The app has nothing more to say."""
        head = self._head
        if self._finished:
            return
        if head is None:
            raise BadResponseError("the app returned without calling start_response")
        if head.named is not None:
            self._send_named(head, head.named)
            return
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
        unknown = (head.length is None or self._encoder is not None) and not head.bodiless
        self._chunked = unknown and request.version == "1.1"
        self._close_delimited = unknown and not self._chunked
        self._keep_alive = (
            request.keep_alive and not (self._close_delimited or head.close) and self._channel.may_keep_alive()
        )
        connection = "close" if not self._keep_alive else "keep-alive" if request.version == "1.0" else ""
        start = head_bytes(
            head,
            request_id=request.request_id,
            date=self._ctx.date.text(),
            chunked=self._chunked,
            connection=connection,
            defaults=self._ctx.defaults,
        )
        # Not before: a head that is unfit to be sent is a 500, and counts as that.
        if request.rate_slots is not None and not request.expired:
            self._ctx.responded(request.rate_slots, int(head.status[:3]))
        return start

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
        refusal, fields = refusals.APP_FAILED, b""
        if isinstance(error, ResponseRefusedError):
            refusal, fields = error.refusal, error.fields
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
            fields=fields + self._ctx.tls_fields,
        )
        self._finished = True
        self._sent = len(answer)
        self._channel.finish(
            answer,
            keep_alive=self._keep_alive,
            flushed=lambda unsent, reason: self._report(refusal.status, len(answer) - unsent, reason or refusal.name),
        )

    def _log_failure(self, error: BaseException) -> None:
        if isinstance(error, ResponseRefusedError) and error.refusal is refusals.FILE_NOT_FOUND:
            if self._ctx.missing_files.is_due(monotonic()):
                logger.warning("%s %s: %s", self._request.command, self._request.path, error)
            return
        if isinstance(error, BadResponseError | ResponseRefusedError):
            if str(error):
                logger.error("%s %s: %s", self._request.command, self._request.path, error)
            return
        where = "after its response" if self._finished else "midway" if self._streaming else "before its response"
        logger.error("%s %s: the app failed %s", self._request.command, self._request.path, where, exc_info=error)


def _is_sole(blocks: object) -> bool:
    """Return whether the app's iterable says that it holds one block, which gives a response its length."""
    try:
        return len(blocks) == 1  # type: ignore[arg-type]
    except TypeError:
        return False
