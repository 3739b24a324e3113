"""A chunked body to its bytes: waitress's chunk collector with a decoder of our own (RFC 9112 7.1). I/O thread only.

waitress takes an empty line between chunks and sizes of any length, and joins an unfinished line or trailer to what it
had at every read, which is quadratic. Here every line ends in CRLF, has its place and its cap, only an unfinished line
is kept, and the data of one read reaches the buffer in one piece, whatever number of chunks it came in.

Knows no request and no socket. tests/test_waitress_contract.py pins what is leaned on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from waitress.receiver import ChunkedReceiver

from hardserve import refusals

if TYPE_CHECKING:
    from waitress.buffers import OverflowableBuffer

    from hardserve.refusals import Refusal
    from hardserve.settings import LimitSettings

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# RFC 9112 5: no space before the colon, no folded lines; RFC 9110 5.5: no control characters but HTAB in a value. The
# quantifiers are possessive, here and below: a line that fails at its end would else be tried again from every space.
FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)")
# RFC 9112 7.1: more digits than these are longer than any body, and an int of any length may not be made of them.
# RFC 9112 7.1.1: an extension is ignored, but one of no such form may hide what somebody else takes for framing. That a
# value may be empty is not of the grammar, and hides nothing.
# Of groups no quantifier is possessive: Python before 3.11.4 takes those for whatever follows. What each repetition
# begins with is in nothing before it, so that there is next to nothing to try again.
_QUOTED = (
    rb'"[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]*+(?:\\[\t \x21-\x7e\x80-\xff][\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]*+)*"'
)
_EXTENSION = rb"[ \t]*+;[ \t]*+" + TOKEN + rb"(?:[ \t]*+=(?:[ \t]*+(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)?"
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:" + _EXTENSION + rb")*")


class StrictChunkedReceiver(ChunkedReceiver):
    """Feed it with `received` until `completed`; `refusal` then says what is wrong with the body, None if nothing is.

    `max_body`, in bytes, may be set at any time; what goes past it is refused by the size of the chunk that does,
    before its data comes.
    """

    refusal: Refusal | None = None
    _announced = 0  # bytes of all chunks so far, also of what has not come yet
    _extensions = 0
    _trailer = 0

    def __init__(self, buf: OverflowableBuffer, limits: LimitSettings) -> None:
        super().__init__(buf)
        self._limits = limits
        self.max_body = limits.body
        self._line = bytearray()  # unfinished, from between the data

    def received(self, s: bytes) -> int:
        """Decode from the front of `s` to the end of the body or of `s`; return how many bytes that was.

        Raises OSError when the buffer's file takes no more.
        """
        position, size = 0, len(s)
        data = []
        while position < size and not self.completed:
            if self.chunk_remainder > 0:
                piece = s[position : position + self.chunk_remainder]
                data.append(piece)
                position += len(piece)
                self.chunk_remainder -= len(piece)
                if self.chunk_remainder == 0:
                    if s[position : position + 2] == b"\r\n":
                        position += 2
                    else:
                        self.validate_chunk_end = True
                continue
            end = s.find(b"\n", position) + 1
            line = s[position : end or size]
            position += len(line)
            if not end:
                self._line += line
                self._check_unfinished_line()
            elif self._line:
                line, self._line = bytes(self._line) + line, bytearray()
                self._take_line(line)
            else:
                self._take_line(line)
        if data and self.refusal is None:
            self.buf.append(data[0] if len(data) == 1 else b"".join(data))
        return position

    def _take_line(self, line: bytes) -> None:
        """Judge one line from between the data, with its LF."""
        if self.validate_chunk_end:
            self.validate_chunk_end = False
            if line != b"\r\n":
                self._refuse(refusals.BAD_CHUNK)
        elif line[-2:] != b"\r\n":
            self._refuse(refusals.BAD_CHUNK)
        elif self.all_chunks_received:
            self._take_trailer_line(line)
        else:
            self._take_size_line(line)

    def _take_size_line(self, line: bytes) -> None:
        end = len(line) - 2
        match = _CHUNK_LINE.fullmatch(line, 0, end)
        if end > self._limits.chunk_line:
            self._refuse(refusals.CHUNK_EXTENSIONS_TOO_LARGE)
        elif match is None:
            self._refuse(refusals.BAD_CHUNK)
        else:
            self.chunk_remainder = int(match[1], 16)
            self.all_chunks_received = self.chunk_remainder == 0
            self._announced += self.chunk_remainder
            self._extensions += end - match.end(1)
            if self._announced > self.max_body:
                self._refuse(refusals.BODY_TOO_LARGE)
            elif self._extensions > self._limits.chunk_extensions + self._announced:
                # Signed chunks make extensions that grow with the body; what grows without it is an attack.
                self._refuse(refusals.CHUNK_EXTENSIONS_TOO_LARGE)

    def _take_trailer_line(self, line: bytes) -> None:
        """RFC 9110 6.5.1: a recipient may drop trailers, and these are; nothing is ever merged from them."""
        if line == b"\r\n":
            self.completed = True
            return
        self._trailer += len(line)
        if self._trailer > self._limits.trailer:
            self._refuse(refusals.TRAILER_TOO_LARGE)
        elif not FIELD_LINE.fullmatch(line, 0, len(line) - 2):
            self._refuse(refusals.BAD_CHUNK)

    def _check_unfinished_line(self) -> None:
        """Refuse as soon as it is sure: the end of the line may never come."""
        size = len(self._line)
        if self._line == b"\r":
            return  # may become the empty line that ends the data or the trailer
        if self.validate_chunk_end:
            self._refuse(refusals.BAD_CHUNK)
        elif self.all_chunks_received:
            if self._trailer + size + 1 > self._limits.trailer:  # at least a LF is to come
                self._refuse(refusals.TRAILER_TOO_LARGE)
        elif size > self._limits.chunk_line + 1:  # the one is for a CR
            self._refuse(refusals.CHUNK_EXTENSIONS_TOO_LARGE)

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.completed = True
        self._line = bytearray()
