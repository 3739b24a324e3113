"""Files that an app has sent for it: `wsgi.file_wrapper`, X-Sendfile and X-Accel-Redirect. Worker threads.

The worker makes the head, hands the connection the file, and is free: the I/O thread sends it. So a download costs a
worker no longer than it takes to open a file, however slowly the client reads.

Of a file that is named in a header field, the app's response is the frame: its status, its fields, its validators where
it gives any. Ranges and conditions are answered here (RFC 9110 13, 14) unless the app has done that already, as Flask's
`send_file` does: its 206 says which part is meant.
"""

from __future__ import annotations

import io
import os
import random
import re
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from wsgiref.util import FileWrapper

from hardserve import refusals
from hardserve.http.conditions import Validators, etag_of, http_date, judge, parse_http_date, range_applies
from hardserve.http.ranges import Multipart, Span, content_range, unsatisfied, wanted
from hardserve.protocol import REASONS, FilePart, SharedFile
from hardserve.refusals import Refusal
from hardserve.wsgi.response import BadResponseError, Head

# Private, but no other way leads to the file in what NamedTemporaryFile returns.
_NamedTemporary: Any = tempfile._TemporaryFileWrapper  # noqa: SLF001
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Named(Protocol):
    """A file that an app has named, open. See files.sendfile."""

    @property
    def file(self) -> SharedFile: ...
    @property
    def content_type(self) -> str: ...


# Opens the file that a field, its name in lower case and its value, stands for. Raises OSError, or an exception whose
# text says why it is not sent.
OpenNamed = Callable[[str, str], Named]


class ResponseRefusedError(Exception):
    """What an app had sent for it is refused to its client. `why` is for the log, "" where the client is the cause."""

    def __init__(self, refusal: Refusal, fields: bytes = b"", *, why: str = "") -> None:
        super().__init__(why)
        self.refusal = refusal
        self.fields = fields


Body = Sequence[bytes | FilePart]


class _WrappedFile(SharedFile):
    """A file that an app has opened. It may be a log, which is written to all the time, and all that counts is that
    there is as much of it as its client was told: what else is true of its content, the app has said, not we.
    """

    __slots__ = ()

    def check(self) -> None:
        try:
            shorter = os.fstat(self.descriptor).st_size < self.size
        except OSError:
            shorter = True
        if shorter:
            super().check()  # which says why


def is_wrapped(blocks: object) -> bool:
    """Return whether an app's iterable is worth a call of `wrapped_file`."""
    return type(blocks) is FileWrapper or type(blocks).__name__ == "_RangeWrapper"


def wrapped_file(blocks: Any, length: int | None) -> FilePart | None:
    """Return the rest of a regular file that an app has wrapped, or as much of it as its head promises.

    Werkzeug wraps once more for a 206, and would read all that comes before it: as a video is sought in, gigabytes.

    None where it is no such file, or has less: the app's blocks are then sent one by one. So is what says that it is
    empty, as the files in /proc do that are not. The part holds a descriptor of its own, which the caller releases.
    """
    skipped = 0
    try:
        if type(blocks) is not FileWrapper:
            skipped, length, blocks = blocks.start_byte, blocks.byte_range, blocks.iterable
            if type(blocks) is not FileWrapper or type(skipped) is not int or type(length) is not int:
                return None  # another's, of that name
        source = blocks.filelike
        if not _reads_as_it_is(source):
            return None
        if source.writable():
            source.flush()
        descriptor = source.fileno()
        status = os.fstat(descriptor)
        start = source.tell() + skipped
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return None
        end = status.st_size if length is None else start + length
        if end > status.st_size or start > end:
            return None
        own = os.dup(descriptor)
    except (AttributeError, OSError, ValueError):  # none that can be told its place, or none any more
        return None
    name = source.name if isinstance(getattr(source, "name", None), str) else "a file of the app's"
    return FilePart(_WrappedFile(own, status.st_size, status.st_mtime_ns, name), start, end)


def _reads_as_it_is(source: Any) -> bool:
    """Return whether `read` gives the very bytes of the descriptor: a GzipFile has one, too, and so have text files."""
    if type(source) is _NamedTemporary:
        source = source.file
    if type(source) in (io.BufferedReader, io.BufferedRandom):
        source = source.raw
    return type(source) is io.FileIO


def named_body(head: Head, named: Named, *, command: str, headers: Mapping[str, str]) -> Body:
    """Complete an app's head for the file that it names; return the body.

    Raises ResponseRefusedError, and BadResponseError where the head and the file do not fit.
    """
    file = named.file
    code = head.status[:3]
    whole = [FilePart(file, 0, file.size)]
    if code == "206":
        span = _span_of_app(head, file.size)
        head.length = span.length
        return [] if head.bodiless else [FilePart(file, span.start, span.end)]
    if head.bodiless and command != "HEAD":
        return []
    head.length = file.size
    if not head.field("content-type"):
        head.add("Content-Type", named.content_type)
    if code != "200":
        return [] if head.bodiless else whole
    validators = _validators(head, file)
    # RFC 9110 13.2.1: of other methods, before the app does what they ask for, which it has done.
    precondition = judge(headers, command, validators) if command in ("GET", "HEAD") else 0
    if precondition == 304:
        head.status, head.bodiless, head.length = f"304 {REASONS[304]}", True, None
        return []
    if precondition:
        raise ResponseRefusedError(refusals.PRECONDITION_FAILED)
    spans = None
    if not head.field("accept-ranges"):
        head.add("Accept-Ranges", "bytes")
    if (
        "HTTP_RANGE" in headers
        and command == "GET"
        and file.size
        and head.field("accept-ranges") != "none"
        and range_applies(headers, validators, int(time.time()))
    ):
        spans = wanted(headers["HTTP_RANGE"], file.size)
    if spans is None:
        return [] if head.bodiless else whole
    return _partial(head, file, spans)


def _span_of_app(head: Head, size: int) -> Span:
    """Return which part of the file an app's own 206 is."""
    match = _CONTENT_RANGE.fullmatch(head.field("content-range"))
    if match is not None:
        span = Span(int(match[1]), int(match[2]) + 1)
        if span.start < span.end <= size and match[3] in ("*", str(size)):
            return span
    raise BadResponseError(f"the Content-Range of the app's 206 is no part of the {size} bytes of the file it names")


def _validators(head: Head, file: SharedFile) -> Validators:
    """Return those of the app, and add those of the file where it gives none."""
    etag, modified = head.field("etag"), head.field("last-modified")
    if not etag:
        etag = etag_of(file.size, file.mtime_ns)
        head.add("ETag", etag)
    if modified:
        return Validators(etag, parse_http_date(modified) or 0)
    if not 0 < file.mtime_ns <= time.time_ns():  # RFC 9110 8.8.2.1
        return Validators(etag, 0)
    seconds = file.mtime_ns // 10**9
    head.add("Last-Modified", http_date(seconds))
    return Validators(etag, seconds)


def _partial(head: Head, file: SharedFile, spans: Sequence[Span]) -> Body:
    if not spans:
        field = f"Content-Range: {unsatisfied(file.size)}\r\n".encode()
        raise ResponseRefusedError(refusals.RANGE_NOT_SATISFIABLE, field)
    head.status = f"206 {REASONS[206]}"
    if len(spans) == 1:
        head.length = spans[0].length
        head.add("Content-Range", content_range(spans[0], file.size))
        return [FilePart(file, spans[0].start, spans[0].end)]
    multipart = Multipart(spans, file.size, head.field("content-type"), f"{random.getrandbits(96):024x}")
    head.remove("content-type")
    head.add("Content-Type", multipart.content_type)
    head.length = multipart.length
    return [part if isinstance(part, bytes) else FilePart(file, part.start, part.end) for part in multipart.parts()]
