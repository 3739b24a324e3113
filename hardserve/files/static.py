"""Requests for files, answered without a worker. I/O thread; what may block is done by file threads.

A small file that has been asked for is in memory with its whole head, and its answer is a lookup, a join and one
`send`. It counts for `files.check`; whoever asks after that waits until it has been looked at again, and is told what
is there now, while others meanwhile are given what was there a moment ago. A larger file is opened for each request,
and the connection sends it by itself from then on.

Nothing here touches a file system. A card that takes a second to find a name, or a network that is away, holds up a
file thread and the requests for what is there, and nobody else: measured with a file system that takes 50 ms for a read
(python -m tests.bench.files --parts cold).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

from hardserve import refusals
from hardserve.files.asking import Asked, Asker, Waiting, stays
from hardserve.files.cache import Cache
from hardserve.files.entries import Entry, Examiner, FileChangedError, Representation, Signature, signature_of
from hardserve.files.mounts import Mounts, Place
from hardserve.files.parts import partial_content, precondition, spans_of
from hardserve.http import encoders
from hardserve.http.coding import ACCEPT_ENCODING_MAX, IDENTITY, best
from hardserve.http.mediatypes import content_type
from hardserve.http.ranges import Span, unsatisfied
from hardserve.protocol import DateClock, FilePart, Seldom, SharedFile
from hardserve.refusals import Refusal

if TYPE_CHECKING:
    from hardserve.settings import FileSettings

logger = logging.getLogger("hardserve.files")

ResultT = TypeVar("ResultT")
ALLOW = b"Allow: GET, HEAD, OPTIONS\r\n"
_CONDITIONS = frozenset({"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE"})
_REMEMBERED = 256
# How long a request waits for a file to be looked at again of which it is known what it was.
PATIENCE_S = 0.1
# How often a file is looked at for one request while it changes.
MAX_TRIES = 20
# A storage that fails is said to fail so often.
NEWS_S = 60.0
DEFAULT_TYPE = content_type("")


class Compress(Protocol):
    """Has a job done by the thread that compresses. See pool.Pool."""

    def __call__(self, job: Callable[[], ResultT], done: Callable[[ResultT | BaseException], None], /) -> bool: ...


class Submit(Protocol):
    """Has a job done by a file thread of some storage. See files.storages."""

    def __call__(
        self,
        storage: str,
        job: Callable[[], ResultT],
        done: Callable[[ResultT | BaseException], None],
        wanted: Callable[[], bool] = ...,
        /,
    ) -> bool: ...


Taken = bool | Refusal


@dataclass(frozen=True, slots=True)
class FileContext:
    """What the files of a server need of it. I/O thread, but for `post`, which any thread may call."""

    date: DateClock
    lines: Sequence[tuple[str, str]]  # the header fields of all responses, as securityheaders.default_lines has them
    post: Callable[[Callable[[float], None]], None]  # an action for the I/O thread
    plan: Callable[[float, Callable[[float], None]], None]  # one at a moment (monotonic seconds)
    submit: Submit
    submit_compression: Compress  # which takes long, and must not hold up whoever waits for a file
    max_open: int  # files at once, besides those that the app sends
    responded: Callable[[Any, int], None]  # a request's `rate_slots`, and the status that is about to leave
    outcome: Callable[[Any, Any, int, int, str], None]  # asker, request, status, bytes that left, reason if not all


class StaticFiles:
    """The files of one server. Everything is called on the I/O thread."""

    def __init__(self, mounts: Mounts, settings: FileSettings, ctx: FileContext) -> None:
        self._ctx = ctx
        self._lines = "".join(f"{line}\r\n" for _, line in ctx.lines)
        self._mounts = mounts
        self._may_have = mounts.may_have
        self._check_s = settings.check
        self._examiner = Examiner(ctx.lines, settings.in_memory, compresses=settings.compress == "on")
        self._cache = Cache(settings.memory)
        self._most_compressed = settings.memory // 4  # of one file
        self._looking: dict[str, Waiting] = {}  # who waits for what is being looked at
        self._codings: dict[tuple[str, tuple[str, ...]], str] = {}
        self._complaints = Seldom(NEWS_S)
        # Those that are being sent: whoever asks for one of them is sent the same, so that a popular one takes one
        # descriptor, however many load it.
        self._open_files: WeakValueDictionary[tuple[str, Signature], SharedFile] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<StaticFiles {self._mounts!r} {self._cache!r} {len(self._looking)} being looked at>"

    def refuses_body(self, request: Asked) -> Refusal | None:
        """Return why a request with a body is refused before any of it is taken, None if it is not."""
        if request.command not in ("GET", "HEAD", "OPTIONS") and self._may_have(request.path):
            place = self._mounts.find(request.path)
            if place is not None and not place.mount.misses_to_app:
                return self._method_not_allowed(request)
        return None

    def serve(self, asker: Asker, request: Asked, now: float) -> Taken:
        """Answer a request for a file; return whether that is done or under way, False if the request is the app's.

        Or why it is refused.
        """
        path = request.path
        if not self._may_have(path):
            return False
        entry = self._cache.get(path)
        if entry is not None and (now - entry.checked < self._check_s or path in self._looking):
            return self._respond(asker, request, path, entry, now)
        place = self._mounts.find(path)
        return False if place is None else self._look(asker, request, path, place, now)

    # --- finding out ---

    def _look(self, asker: Asker, request: Asked, path: str, place: Place, now: float) -> Taken:
        """Have a file thread look at what is there, for everybody who waits for it."""
        if request.command not in ("GET", "HEAD"):
            return self._other_method(asker, request, place, now)
        waiting = self._looking.get(path)
        if waiting is None:
            old = self._cache.get(path)

            def done(result: Entry | BaseException | None) -> None:
                self._ctx.post(partial(self._looked, path, place, result))

            waiting = Waiting()
            if not self._ctx.submit(place.mount.url, partial(self._examine, waiting, place, path, old), done):
                # What was there a moment ago is better than nothing.
                return refusals.FILES_BUSY if old is None else self._respond(asker, request, path, old, now)
            self._looking[path] = waiting
            if old is not None:
                self._ctx.plan(now + PATIENCE_S, partial(self._look_no_longer, path, waiting, old))
        waiting.add(asker, request)
        asker.await_file(now)
        return True

    def _examine(self, waiting: Waiting, place: Place, path: str, old: Entry | None) -> Entry | None:
        """Find out what is there, None if nobody waits for it any more. File thread."""
        return None if waiting.forsaken else self._examiner.examine(place, path, old)

    def _look_no_longer(self, path: str, waiting: Waiting, old: Entry, now: float) -> None:
        """Answer those who wait with what was there a moment ago, until the storage, which hangs, says otherwise."""
        if self._looking.get(path) is waiting:
            for asker, request in waiting.take():
                self._go_on(asker, request, self._respond(asker, request, path, old, now), now)

    def _looked(self, path: str, place: Place, result: Entry | BaseException | None, now: float) -> None:
        waiting = self._looking.pop(path)
        refusal = None
        if result is None:
            for asker, request in waiting.take():  # who came when all others had gone
                self._go_on(asker, request, self._look(asker, request, path, place, now), now)
            return
        if isinstance(result, BaseException):
            self._cache.discard(path)
            refusal = self._failed(path, result, now)
        else:
            result.checked = now
            if self._cache.get(path) is not result:
                self._cache.put(path, result)
        for asker, request in waiting.take():
            if refusal is not None or isinstance(result, BaseException):
                asker.decided(request, refusal, now)
            else:
                self._go_on(asker, request, self._respond(asker, request, path, result, now), now)

    def _go_on(self, asker: Asker, request: Asked, taken: Taken, now: float) -> None:
        """Carry out what `_respond` has said of a request that has waited."""
        if isinstance(taken, Refusal):
            asker.decided(request, taken, now)
        elif not taken:
            asker.pass_on(request, now)

    def _failed(self, path: str, error: BaseException, now: float) -> Refusal:
        """Say in the log that a file cannot be read, though not for each request."""
        if isinstance(error, FileChangedError):
            return refusals.FILES_BUSY  # it is being written in this moment
        if isinstance(error, PermissionError):
            return refusals.FILE_FORBIDDEN
        if self._complaints.is_due(now):
            logger.error("the file of %s cannot be read: %s", path, error, exc_info=None if _is_os(error) else error)
        return refusals.FILE_FAILED

    # --- answering ---

    def _other_method(self, asker: Asker, request: Asked, place: Place, now: float) -> Taken:
        if place.mount.misses_to_app:
            return False
        if request.command != "OPTIONS":
            return self._method_not_allowed(request)
        head = b"HTTP/1.1 204 No Content\r\n%b%b" % (ALLOW, self._lines.encode("latin-1"))
        return self._send(asker, request, head, 204, now)

    @staticmethod
    def _method_not_allowed(request: Asked) -> Refusal:
        request.refusal_fields = ALLOW
        return refusals.METHOD_NOT_ALLOWED

    def _respond(self, asker: Asker, request: Asked, path: str, entry: Entry, now: float) -> Taken:
        """Answer with what is known of a path."""
        if request.command not in ("GET", "HEAD"):
            place = self._mounts.find(path)
            return False if place is None else self._other_method(asker, request, place, now)
        if entry.refusal is not None:
            return self._missed(asker, request, path, entry, entry.refusal, now)
        return self._represent(asker, request, path, entry, now)

    def _represent(self, asker: Asker, request: Asked, path: str, entry: Entry, now: float) -> Taken:
        """Answer with a file in the coding that suits the client best, unless it has that already."""
        if entry.location:
            return self._redirect(asker, request, path, now)
        entry.used = True
        representation = entry.representations[0]
        headers = request.headers
        if (entry.compressible or len(entry.representations) > 1) and "HTTP_ACCEPT_ENCODING" in headers:
            representation = self._choose(path, entry, headers)
        status = precondition(request, representation) if _CONDITIONS & headers.keys() else 0
        if status == 304:
            return self._send(asker, request, representation.not_modified, 304, now)
        if status:
            return refusals.PRECONDITION_FAILED
        return self._send_content(asker, request, path, entry, representation, now)

    def _send_content(
        self, asker: Asker, request: Asked, path: str, entry: Entry, representation: Representation, now: float
    ) -> Taken:
        """Answer with the whole content, or the parts of it that are asked for."""
        if request.command == "HEAD":
            return self._send(asker, request, representation.ok, 200, now)
        spans = spans_of(request, representation)
        if spans == ():
            request.refusal_fields = f"Content-Range: {unsatisfied(representation.size)}\r\n".encode()
            return refusals.RANGE_NOT_SATISFIABLE
        body = representation.body
        if body is None:
            return self._open(asker, request, path, entry, representation, now)
        if spans is None:
            return self._send(asker, request, representation.ok, 200, now, body)
        head, parts = partial_content(representation, spans)
        pieces = [part if isinstance(part, bytes) else body[part.start : part.end] for part in parts]
        return self._send(asker, request, head, 206, now, b"".join(pieces))

    def _send(
        self,
        asker: Asker,
        request: Asked,
        head: bytes,
        status: int,
        now: float,
        body: bytes = b"",
        file: Sequence[bytes | FilePart] = (),
    ) -> bool:
        """Answer with what begins a head, and the content."""
        keep_alive = not asker.will_close(request)
        if keep_alive:
            connection = b"" if request.version == "1.1" else b"Connection: keep-alive\r\n"
        else:
            connection = b"Connection: close\r\n"
        data = b"%bDate: %b\r\nX-Request-ID: %b\r\n%b\r\n%b" % (
            head,
            self._ctx.date.text().encode(),
            request.request_id.encode(),
            connection,
            body,
        )
        if request.rate_slots is not None:
            self._ctx.responded(request.rate_slots, status)
        size = len(data) + sum(map(_size, file)) if file else len(data)
        flushed = partial(self._flushed, asker, request, status, size)
        asker.answer(request, data, keep_alive=keep_alive, flushed=flushed, file=file, now=now)
        return True

    def _flushed(self, asker: Asker, request: Asked, status: int, size: int, unsent: int, reason: str) -> None:
        self._ctx.outcome(asker, request, status, size - unsent, reason)

    def _redirect(self, asker: Asker, request: Asked, path: str, now: float) -> bool:
        """Send a client to where the names in a directory's pages are meant from."""
        query = f"?{request.query}" if request.query else ""
        location = f"{quote(path.encode('latin-1'))}/{query}"
        lines = ("HTTP/1.1 301 Moved Permanently", f"Location: {location}", "Content-Length: 0", self._lines)
        return self._send(asker, request, "\r\n".join(lines).encode("latin-1"), 301, now)

    def _missed(self, asker: Asker, request: Asked, path: str, entry: Entry, refusal: Refusal, now: float) -> Taken:
        """Nothing is there to be sent: say so, or have the app or the fallback tried."""
        mount = entry.mount
        if refusal is not refusals.FILE_NOT_FOUND or entry.withheld:
            return refusal
        if mount.misses_to_app:
            return False
        fallback = f"{mount.url.rstrip('/')}/{mount.fallback}"
        # A script or a picture that is not there must not look like one (RFC 9110 15.5.5): a page has no such suffix.
        if not mount.fallback or path == fallback or content_type(path.rpartition("/")[2]) != DEFAULT_TYPE:
            return refusal
        known = self._cache.get(fallback)
        if known is not None and (now - known.checked < self._check_s or fallback in self._looking):
            return self._respond(asker, request, fallback, known, now)
        place = self._mounts.find(fallback)
        return refusal if place is None else self._look(asker, request, fallback, place, now)

    # --- codings ---

    def _choose(self, path: str, entry: Entry, headers: Mapping[str, str]) -> Representation:
        """Return what a client likes best of what there is, and have made what it would have liked better."""
        accept_encoding = headers["HTTP_ACCEPT_ENCODING"]
        if entry.compressible and entry.settled and "HTTP_RANGE" not in headers:
            offers = encoders.available()
            coding = self._best(accept_encoding, offers)
            # What is not kept would be compressed for nobody, at every request.
            if coding not in entry.tried and coding != "identity" and self._cache.get(path) is entry:
                self._compress(path, entry, coding)
        codings = entry.codings
        coding = self._best(accept_encoding, codings) if codings else "identity"
        if coding == "identity":
            return entry.representations[0]
        return entry.representations[1 + codings.index(coding)]

    def _best(self, accept_encoding: str, offers: tuple[str, ...]) -> str:
        if len(accept_encoding) > ACCEPT_ENCODING_MAX:
            return IDENTITY
        key = accept_encoding, offers
        coding = self._codings.get(key)
        if coding is None:
            if len(self._codings) >= _REMEMBERED:
                self._codings.clear()
            coding = self._codings[key] = best(accept_encoding, offers)
        return coding

    def _compress(self, path: str, entry: Entry, coding: str) -> None:
        """Have a file compressed, once, for those who will ask for it later."""

        def done(result: Representation | BaseException | None) -> None:
            self._ctx.post(partial(self._compressed, path, entry, result))

        if self._ctx.submit_compression(partial(self._examiner.compressed, entry, coding), done):
            entry.tried.add(coding)

    def _compressed(self, path: str, entry: Entry, result: Representation | BaseException | None, _now: float) -> None:
        if isinstance(result, Representation) and self._cache.get(path) is entry:
            if result.size <= self._most_compressed:
                plain, *coded = entry.representations
                order = encoders.available()
                coded = sorted((*coded, result), key=lambda each: order.index(each.coding))
                entry.representations = (plain, *coded)
                self._cache.put(path, entry)
        elif isinstance(result, BaseException) and not isinstance(result, FileChangedError | OSError):
            logger.error("internal error while compressing %s", path, exc_info=result)

    # --- files that are not in memory ---

    def _open(
        self, asker: Asker, request: Asked, path: str, entry: Entry, representation: Representation, now: float
    ) -> Taken:
        """Have a file opened, and sent by the connection."""
        shared = self._already_open(path, representation)
        if shared is not None:
            self._send_file(asker, request, representation, shared, now)
            return True
        if len(self._open_files) >= self._ctx.max_open:
            return refusals.FILES_BUSY

        def job() -> SharedFile:
            file = entry.mount.tree.open(representation.parts)
            if signature_of(file.stat) != representation.signature:
                file.close()
                raise FileChangedError
            return SharedFile(file.descriptor, file.size, file.mtime_ns, path, storage=entry.mount.url)

        def done(result: SharedFile | BaseException) -> None:
            self._ctx.post(partial(self._opened, asker, request, path, representation, result))

        request.file_tries += 1
        if request.file_tries > MAX_TRIES or not self._ctx.submit(entry.mount.url, job, done, lambda: stays(asker)):
            return refusals.FILES_BUSY
        asker.await_file(now)
        return True

    def _already_open(self, path: str, representation: Representation) -> SharedFile | None:
        """Return a hold of the file, if it is being sent to somebody else."""
        shared = self._open_files.get((path, representation.signature))
        try:
            return None if shared is None else shared.hold()
        except ValueError:  # whoever had it has just let go of it
            return None

    def _opened(
        self,
        asker: Asker,
        request: Asked,
        path: str,
        representation: Representation,
        result: SharedFile | BaseException,
        now: float,
    ) -> None:
        if not asker.awaits(request):
            if isinstance(result, SharedFile):
                result.release()
            return  # its client has gone, or was told that it takes too long
        if isinstance(result, FileChangedError | FileNotFoundError):
            # It was replaced since it was looked at: what is there now is to be looked at first.
            self._cache.discard(path)
            place = self._mounts.find(path)
            taken = self._look(asker, request, path, place, now) if place is not None else refusals.FILE_NOT_FOUND
            self._go_on(asker, request, taken, now)
            return
        if isinstance(result, BaseException):
            asker.decided(request, self._failed(path, result, now), now)
            return
        self._open_files[path, representation.signature] = result
        self._send_file(asker, request, representation, result, now)

    def _send_file(
        self, asker: Asker, request: Asked, representation: Representation, file: SharedFile, now: float
    ) -> None:
        """Send an open file, or parts of it, and let go of it."""
        try:
            spans = spans_of(request, representation)
            if spans:
                head, parts = partial_content(representation, spans)
                status = 206
            else:
                head, parts, status = representation.ok, [Span(0, representation.size)], 200
            body = [part if isinstance(part, bytes) else FilePart(file, part.start, part.end) for part in parts]
            self._send(asker, request, head, status, now, file=body)
        finally:
            file.release()


def _size(part: bytes | FilePart) -> int:
    return len(part) if isinstance(part, bytes) else part.length


def _is_os(error: BaseException) -> bool:
    return isinstance(error, OSError)
