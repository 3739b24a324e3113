"""The content codings gzip, br and zstd: at once or as a stream, and with filler that decodes to nothing.

Any thread may compress; an Encoder belongs to one. gzip is always there, br and zstd with their packages, which are
imported when the first response needs them: importing this module costs nothing. Which coding a client takes is not
known here.

What a level costs, on a page of 30 KiB and on JSON of 200 KiB, in milliseconds of a server's core:

    gzip 5   5.7 KiB 0.2 ms, 52 KiB 3.4 ms     gzip 9    5.5 KiB 1.4 ms, 50 KiB 9.5 ms
    br 5     5.5 KiB 0.3 ms, 48 KiB 3.1 ms     br 11     4.8 KiB  28 ms, 40 KiB 226 ms
    zstd 5   5.9 KiB 0.2 ms, 48 KiB 1.6 ms     zstd 19   5.2 KiB   9 ms, 44 KiB  61 ms

The left ones are for responses. A level more takes gzip half as long again for 2% less; br at 4 and zstd at 3, its
default, make the page larger than gzip does. A stream holds 0.3, 2 and 3 MiB. The right ones are for what is
compressed once and sent often. Only br at 11 can take too long even there, 1.6 s for a MiB: above `_BROTLI_11_MAX` it
is 9, which takes a twentieth of that.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

# Enough for any length to be hidden. gzip has room for 64 KiB.
FILLER_MAX = 32768

_BROTLI_11_MAX = 512 * 1024
# RFC 7932 9.1: a window of 4 MiB, the coder's own default.
_BROTLI_WINDOW = 22
# RFC 9659 3: a decoder need not have more than 8 MiB, which is what zstd uses up to level 19, and not beyond.
_ZSTD_LEVEL, _ZSTD_BEST = 5, 19


@cache
def _packages() -> dict[str, str]:
    """Return the module that each coding is made with, in our order of preference."""
    found = {}
    if sys.version_info >= (3, 14) and find_spec("_zstd"):  # Python may have been built without it
        found["zstd"] = "compression.zstd"
    elif find_spec("zstandard"):
        found["zstd"] = "zstandard"
    for name in ("brotli", "brotlicffi"):
        if "br" not in found and find_spec(name):
            found["br"] = name
    return found | {"gzip": "zlib"}


def available() -> tuple[str, ...]:
    """Return the codings that can be made here, in our order of preference. Looks for packages once, at first."""
    return tuple(_packages())


def can_fill(coding: str) -> bool:
    """Whether this coding can carry filler: all of `available()` do, "identity" does not."""
    return coding in _packages()


def compress(data: bytes, coding: str, *, best: bool = False, filler: int = 0) -> bytes:
    """Return the whole of `data` in this coding. See Encoder."""
    return Encoder(coding, best=best, filler=filler, size=len(data)).end(data)


class Encoder:
    """A body on its way into a content coding, block by block.

    `coding` is one of `available()`. `best` is for what is compressed once and sent often; it may take a hundred
    times as long. `size` is that of the whole body where it is known, which must then be exact.

    `filler` random bytes, at most FILLER_MAX, are put in that every decoder passes over, so that the length does not
    tell what is in the body (BREACH). For the same body and coding the length differs by exactly the difference of
    the fillers; with none at all it is up to 8 bytes less. It hides the length of the whole: what is sent after a
    `flush` can be measured by itself.

    Raises ValueError for a coding that is not available and for too much filler. What `add`, `flush` and `end` return
    may be empty; in order it is the body. Nothing may follow `end`. An encoder that is not ended just goes.
    """

    __slots__ = ("_coding", "_given", "_stream", "_taken")

    def __init__(self, coding: str, *, best: bool = False, filler: int = 0, size: int | None = None) -> None:
        package = _packages().get(coding)
        if package is None:
            raise ValueError(f"{coding!r} is none of {', '.join(available())}")
        if not 0 <= filler <= FILLER_MAX:
            raise ValueError(f"{filler} bytes of filler are none of 0 to {FILLER_MAX}")
        self._coding = coding
        self._stream = _STREAMS[package](best, filler, size)
        self._taken = self._given = 0

    def __repr__(self) -> str:
        return f"<Encoder {self._coding}, {self._taken} bytes taken, {self._given} given>"

    def add(self, block: bytes) -> bytes:
        self._taken += len(block)
        return self._count(self._stream.add(block))

    def flush(self) -> bytes:
        """Return what the reader needs to decode everything so far. Costs a few bytes each time."""
        return self._count(self._stream.flush())

    def end(self, block: bytes = b"") -> bytes:
        """Add the last block, and return the rest."""
        self._taken += len(block)
        return self._count(self._stream.end(block))

    def _count(self, coded: bytes) -> bytes:
        self._given += len(coded)
        return coded


class _Stream(Protocol):
    def add(self, block: bytes) -> bytes: ...
    def flush(self) -> bytes: ...
    def end(self, block: bytes) -> bytes: ...


class _Gzip:
    """RFC 1952. The frame is ours, since zlib has no way to put a field into it."""

    __slots__ = ("_checksum", "_deflate", "_head", "_size")

    def __init__(self, best: bool, filler: int, _size: int | None) -> None:
        # No file name and no time, so that the same body is the same bytes. XFL says that it is the best there is or
        # nothing, and the system is unknown.
        flags = 4 if filler else 0
        self._head = struct.pack("<4BLBB", 0x1F, 0x8B, 8, flags, 0, 2 if best else 0, 255)
        if filler:
            # A field of its own among the extra ones (2.3.1.1), under a name that nobody uses. Not a comment: Go's
            # reader ends at one of more than 511 characters.
            self._head += struct.pack("<H2sH", filler + 4, b"hs", filler) + os.urandom(filler)
        self._deflate = zlib.compressobj(9 if best else 5, wbits=-zlib.MAX_WBITS)
        self._checksum = self._size = 0

    def add(self, block: bytes) -> bytes:
        self._checksum = zlib.crc32(block, self._checksum)
        self._size += len(block)
        return self._with_head(self._deflate.compress(block))

    def flush(self) -> bytes:
        return self._with_head(self._deflate.flush(zlib.Z_SYNC_FLUSH))

    def end(self, block: bytes) -> bytes:
        coded = self.add(block) + self._deflate.flush()
        return coded + struct.pack("<LL", self._checksum, self._size & 0xFFFFFFFF)

    def _with_head(self, deflated: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + deflated


class _Brotli:
    """RFC 7932, by one of the packages `brotli` and `brotlicffi`."""

    __slots__ = ("_compressor", "_filler")

    def __init__(self, package: str, best: bool, filler: int, size: int | None) -> None:
        quality = 5
        if best:
            quality = 11 if size is not None and size <= _BROTLI_11_MAX else 9
        self._compressor = importlib.import_module(package).Compressor(quality=quality, lgwin=_BROTLI_WINDOW)
        self._filler = filler

    def add(self, block: bytes) -> bytes:
        coded: bytes = self._compressor.process(block)
        return coded

    def flush(self) -> bytes:
        coded: bytes = self._compressor.flush()
        return coded

    def end(self, block: bytes) -> bytes:
        coded = self.add(block) if block else b""
        if self._filler:
            # A flush ends at a whole byte, where blocks of our own fit in. At the front they would not: a stream
            # begins with some bits that tell its window.
            coded += self.flush() + _metadata(self._filler)
        return coded + self._compressor.finish()  # type: ignore[no-any-return]


def _metadata(size: int) -> bytes:
    """Return `size` random bytes as metadata, in a block that is no data (RFC 7932 9.2), with 3 bytes before them.

    From the lowest bit on: not the last block, "11" for metadata, a zero, how many bytes the length has (two bits),
    the length less one, and zeros to the end of the byte.
    """
    if size <= 256:
        # An empty one more, so that it is always 3 bytes: RFC 7932 has the length be as short as it can.
        head = b"\x06" + (0b01_0_11_0 | (size - 1) << 6).to_bytes(2, "little")
    else:
        head = (0b10_0_11_0 | (size - 1) << 6).to_bytes(3, "little")
    return head + os.urandom(size)


def _skippable(size: int) -> bytes:
    """Return `size` random bytes as a frame that is no data, nothing for none (RFC 8878 3.1.2)."""
    return struct.pack("<LL", 0x184D2A50, size) + os.urandom(size) if size else b""


class _Zstandard:
    """RFC 8878, by the package `zstandard`. Filler comes last: some readers stop after the first frame."""

    __slots__ = ("_compressor", "_filler", "_flush_block")

    def __init__(self, best: bool, filler: int, size: int | None) -> None:
        zstandard = importlib.import_module("zstandard")
        compressor = zstandard.ZstdCompressor(level=_ZSTD_BEST if best else _ZSTD_LEVEL)
        self._compressor: Any = compressor.compressobj(size=-1 if size is None else size)
        self._flush_block: int = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        self._filler = filler

    def add(self, block: bytes) -> bytes:
        coded: bytes = self._compressor.compress(block)
        return coded

    def flush(self) -> bytes:
        coded: bytes = self._compressor.flush(self._flush_block)
        return coded

    def end(self, block: bytes) -> bytes:
        coded = self.add(block) if block else b""
        return coded + self._compressor.flush() + _skippable(self._filler)  # type: ignore[no-any-return]


class _CompressionZstd:
    """The same by Python's own module, which has it from 3.14 on, and finds the size out when all comes at once."""

    __slots__ = ("_compressor", "_filler")

    def __init__(self, best: bool, filler: int, _size: int | None) -> None:
        zstd = importlib.import_module("compression.zstd")
        self._compressor: Any = zstd.ZstdCompressor(level=_ZSTD_BEST if best else _ZSTD_LEVEL)
        self._filler = filler

    def add(self, block: bytes) -> bytes:
        coded: bytes = self._compressor.compress(block)
        return coded

    def flush(self) -> bytes:
        coded: bytes = self._compressor.flush(self._compressor.FLUSH_BLOCK)
        return coded

    def end(self, block: bytes) -> bytes:
        coded: bytes = self._compressor.compress(block, self._compressor.FLUSH_FRAME)
        return coded + _skippable(self._filler)


_STREAMS: dict[str, Callable[[bool, int, int | None], _Stream]] = {
    "zlib": _Gzip,
    "brotli": lambda best, filler, size: _Brotli("brotli", best, filler, size),
    "brotlicffi": lambda best, filler, size: _Brotli("brotlicffi", best, filler, size),
    "zstandard": _Zstandard,
    "compression.zstd": _CompressionZstd,
}
