"""What is known of a path: the file that it names, how that is sent in each coding, or why nothing is.

Made on file threads, because every look at a file may block, and then the I/O thread's. Everything of a response that
is the same for all requests is made here, once: a request that finds it costs a lookup and a join.

A file may stand there in codings that somebody has made before: `app.js.br`, `app.js.zst` and `app.js.gz` are other
representations of `app.js` (RFC 9110 8.4, 12), unless they are older than it. Text without any of them is compressed
when it is first wanted, and that is kept in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hardserve import refusals
from hardserve.files.listing import CONTENT_SECURITY_POLICY, listing
from hardserve.files.mounts import Mount, Place
from hardserve.files.tree import OpenFile
from hardserve.http.conditions import Validators, etag_of, http_date
from hardserve.http.encoders import compress
from hardserve.http.mediatypes import content_type, is_compressible
from hardserve.refusals import Refusal

SIBLINGS = (("br", b".br"), ("zstd", b".zst"), ("gzip", b".gz"))
# Smaller ones fit into a packet as they are; larger ones take many seconds of a Raspberry Pi.
COMPRESS_MIN_BYTES = 1024
COMPRESS_MAX_BYTES = 8 << 20
# What is kept of a compressed file must be worth its memory.
WORTH = 0.9
# About what an entry takes besides the bodies in it.
ENTRY_BYTES = 2048
# How often a file is looked at that is replaced while it is: one that is renamed into its place is there the next time.
ATTEMPTS = 4
# File systems tell the time in ticks of milliseconds, some of seconds. A file that was written to so short a time ago
# may be written to once more without its time changing: what is known of it proves nothing, and it is read again.
TICK_NS = 2 * 10**9

# Size, time of modification and of the last change to anything about it, and which file it is.
Signature = tuple[int, int, int, int]


def signature_of(status: os.stat_result) -> Signature:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class FileChangedError(Exception):
    """A file is not what it was when it was looked at."""


@dataclass(slots=True)
class Representation:
    """One coding of a file, and its response but for the date, the request's id and the end of the head.

    `parts` name the file in the mount's tree; of one that is in memory alone, the file it was made from. `body` is
    None for a file that is too large to be kept. `fields` are the lines that all but a 304 have in common.
    """

    coding: str
    parts: tuple[bytes, ...]
    signature: Signature
    validators: Validators
    content_type: str
    fields: str
    ok: bytes
    not_modified: bytes
    body: bytes | None = None

    @property
    def size(self) -> int:
        return self.signature[0]

    @property
    def etag(self) -> str:
        return self.validators.etag

    def head(self, status_line: str, *lines: str) -> bytes:
        """Return the beginning of another head, as `ok` is one."""
        return "\r\n".join((f"HTTP/1.1 {status_line}", *lines, self.fields)).encode("latin-1")


@dataclass(slots=True, eq=False)
class Entry:
    """What is known of one path, and when that was found out (monotonic seconds).

    Either there are representations, the file as it is first; or `location` says that a directory was named without
    its slash; or `refusal` says why nothing is there to be sent.
    """

    mount: Mount
    signatures: Sequence[Signature] = ()
    representations: tuple[Representation, ...] = ()
    refusal: Refusal | None = None
    withheld: bool = False  # names that are never served, whoever else might
    location: bool = False
    compressible: bool = False  # and nobody has done it before
    settled: bool = True  # it was not written to just before it was looked at
    checked: float = 0.0
    used: bool = False  # since it was last considered for going
    tried: set[str] = field(default_factory=set)  # codings

    @property
    def codings(self) -> tuple[str, ...]:
        return tuple(each.coding for each in self.representations[1:])

    @property
    def cost(self) -> int:
        """Bytes of memory, about."""
        return ENTRY_BYTES + sum(len(each.body) for each in self.representations if each.body is not None)


class Examiner:
    """Looks at files. File threads.

    `lines` are the header fields that every response gets; files of up to `in_memory` bytes are kept.
    """

    def __init__(self, lines: Sequence[tuple[str, str]], in_memory: int, *, compresses: bool) -> None:
        self._lines = tuple(line for _, line in lines)
        # A listing has a policy of its own.
        self._listing_lines = tuple(line for name, line in lines if name != "content-security-policy")
        self._in_memory = in_memory
        self._compresses = compresses

    def examine(self, place: Place, path: str, old: Entry | None) -> Entry:
        """Find out what is at `place`, which `path` leads to; return `old` if that has not changed.

        Raises OSError where that cannot be told, FileChangedError where it does not hold still.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                return self._examine(place, path, old)
            except FileChangedError:
                pass
        return self._examine(place, path, old)

    def _examine(self, place: Place, path: str, old: Entry | None) -> Entry:
        mount, parts = place.mount, place.parts
        try:
            if not place.servable:
                return Entry(mount, refusal=refusals.FILE_NOT_FOUND, withheld=True)
            if not place.is_directory:
                try:
                    return self._file(mount, parts, old)
                except IsADirectoryError:
                    if path != "/":
                        self._directory(mount, parts, path, None)
                        return Entry(mount, location=True)
            return self._directory(mount, parts, path, old)
        except FileNotFoundError:
            return Entry(mount, refusal=refusals.FILE_NOT_FOUND)
        except PermissionError:
            return Entry(mount, refusal=refusals.FILE_FORBIDDEN)

    def _directory(self, mount: Mount, parts: tuple[bytes, ...], path: str, old: Entry | None) -> Entry:
        if mount.index:
            try:
                return self._file(mount, (*parts, os.fsencode(mount.index)), old)
            except (FileNotFoundError, IsADirectoryError):
                pass
        if not mount.listing:
            raise FileNotFoundError
        page = listing(path.encode("latin-1").decode(), mount.tree.entries(parts), at_root=not parts)
        return Entry(mount, representations=(self._page(page),))

    def _page(self, page: bytes) -> Representation:
        fields = "\r\n".join(
            (f"Content-Security-Policy: {CONTENT_SECURITY_POLICY}", "Cache-Control: no-cache", *self._listing_lines, "")
        )
        html = "text/html; charset=utf-8"
        # It has no version, but whoever wants it only if there is none (If-None-Match: *) is told that there is one.
        there = b"HTTP/1.1 304 Not Modified\r\nCache-Control: no-cache\r\n"
        made = Representation("identity", (), (len(page), 0, 0, 0), Validators("", 0), html, fields, b"", there, page)
        made.ok = made.head("200 OK", f"Content-Type: {html}", f"Content-Length: {len(page)}")
        return made

    def _file(self, mount: Mount, parts: tuple[bytes, ...], old: Entry | None) -> Entry:
        status = mount.tree.status(parts)
        kind = content_type(os.fsdecode(parts[-1]))
        compressible = is_compressible(kind)
        found = [("identity", parts, status)]
        if compressible and mount.precompressed:
            found += self._siblings(mount, parts, status)
        signatures = [signature_of(each) for _, _, each in found]
        settled = all(abs(time.time_ns() - each.st_mtime_ns) > TICK_NS for _, _, each in found)
        if old is not None and old.settled and old.signatures == signatures:
            return old
        compresses = self._compresses and compressible and len(found) == 1
        compresses = compresses and COMPRESS_MIN_BYTES <= status.st_size <= COMPRESS_MAX_BYTES
        varies = compresses or len(found) > 1
        cache_control = mount.cache_control_of(os.fsdecode(parts[-1]))
        representations = tuple(
            self._read(mount, names, self.represent(coding, names, signature_of(each), kind, cache_control, varies))
            for coding, names, each in found
        )
        return Entry(mount, signatures, representations, compressible=compresses, settled=settled)

    def _siblings(
        self, mount: Mount, parts: tuple[bytes, ...], status: os.stat_result
    ) -> list[tuple[str, tuple[bytes, ...], os.stat_result]]:
        found = []
        for coding, suffix in SIBLINGS:
            names = (*parts[:-1], parts[-1] + suffix)
            try:
                sibling = mount.tree.status(names)
            except OSError:
                continue
            # To the second: not every tool that keeps the time keeps all of it.
            if int(sibling.st_mtime) >= int(status.st_mtime):
                found.append((coding, names, sibling))
        return found

    def represent(  # they are what a response is made of
        self, coding: str, parts: tuple[bytes, ...], signature: Signature, kind: str, cache_control: str, varies: bool
    ) -> Representation:
        """Make what all responses with one file in one coding have in common."""
        size, mtime_ns, _, _ = signature
        suffix = "" if coding == "identity" else coding
        # RFC 9110 8.8.2.1: not later than the response itself; a clock may have been set back, or not yet forward.
        modified = mtime_ns // 10**9 if 0 < mtime_ns <= time.time_ns() else 0
        validators = Validators(etag_of(size, mtime_ns, suffix), modified)
        lines = [f"ETag: {validators.etag}"]
        if modified:
            lines.append(f"Last-Modified: {http_date(modified)}")
        if cache_control:
            lines.append(f"Cache-Control: {cache_control}")
        if varies:
            lines.append("Vary: Accept-Encoding")
        not_modified = "\r\n".join(("HTTP/1.1 304 Not Modified", *lines, ""))
        lines.append("Accept-Ranges: bytes")
        if suffix:
            lines.append(f"Content-Encoding: {coding}")
        fields = "\r\n".join((*lines, *self._lines, ""))
        made = Representation(coding, parts, signature, validators, kind, fields, b"", not_modified.encode("latin-1"))
        made.ok = made.head("200 OK", f"Content-Type: {kind}", f"Content-Length: {size}")
        return made

    def _read(self, mount: Mount, parts: tuple[bytes, ...], representation: Representation) -> Representation:
        """Keep a small file's content. Raises OSError."""
        if representation.size <= self._in_memory:
            file = mount.tree.open(parts)
            try:
                body = read_whole(file, representation.signature)
            finally:
                file.close()
            representation.body = body
        return representation

    def compressed(self, entry: Entry, coding: str) -> Representation | None:
        """Return the entry's file in `coding`, None if that is not worth it. Raises OSError, FileChangedError."""
        plain = entry.representations[0]
        body = plain.body
        if body is None:
            file = entry.mount.tree.open(plain.parts)
            try:
                body = read_whole(file, plain.signature)
            finally:
                file.close()
        coded = compress(body, coding, best=True)
        if len(coded) > len(body) * WORTH:
            return None
        name = os.fsdecode(plain.parts[-1])
        cache_control = entry.mount.cache_control_of(name)
        signature = (len(coded), *plain.signature[1:])
        made = self.represent(coding, plain.parts, signature, plain.content_type, cache_control, varies=True)
        made.body = coded
        return made


def read_whole(file: OpenFile, signature: Signature) -> bytes:
    """Return the content of `file`, which was `signature` when it was looked at. Raises OSError, FileChangedError."""
    if signature_of(file.stat) != signature:
        raise FileChangedError
    size = signature[0]
    pieces = []
    at = 0
    while at < size and (piece := os.pread(file.descriptor, size - at, at)):
        pieces.append(piece)
        at += len(piece)
    if at < size or signature_of(os.fstat(file.descriptor)) != signature:
        raise FileChangedError
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
