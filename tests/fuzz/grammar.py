"""Streams of requests, from a seed: good ones of every shape, and then whatever an attacker might do to them.

Everything is drawn from the `random.Random` that is passed in, and from nothing else, so that a seed is a case.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from hardserve.settings import LimitSettings

METHODS = (b"GET", b"GET", b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"M-SEARCH")
BODY_METHODS = (b"POST", b"PUT", b"PATCH")
HOSTS = (b"a", b"test", b"example.org", b"a.b-c:8080", b"127.0.0.1", b"[::1]", b"[::1]:80", b"a:", b"%61")
TARGETS = (
    b"/", b"/", b"/a", b"/a/b?c=d", b"/?", b"/%41%2f%20", b"//a//b", b"/%2fa", b"/a?b=%7a&c", b"/caf\xc3\xa9", b"/..",
    b"/a;b=c?d?e", b"/~a/!$&'()*+,:@", b"/%e2%82%ac", b'/a"b<c>', b"/stream", b"/large", b"/0",
)  # fmt: skip
NAMES = (
    b"X-A", b"x-b", b"Accept", b"User-Agent", b"Cookie", b"Referer", b"X_Dropped", b"Content_Length", b"X-Request-ID",
    b"Content-Type", b"Range", b"Upgrade", b"X!#$%&'*+.^`|~0", b"TE", b"Trailer", b"Forwarded", b"Proxy",
)  # fmt: skip
VALUES = (
    b"", b" ", b"a", b"a, b", b"close", b"a=b; c=d", b"caf\xe9", b"a\tb", b"\t a \t", b"*/*", b"0", b"a:b", b'"x"',
    b"7f-a.b", b"x" * 60, b"GET / HTTP/1.1",
)  # fmt: skip
CONNECTIONS = (b"keep-alive", b"Keep-Alive, foo", b"upgrade", b"close", b"foo, CLOSE", b"enclosed", b"", b",")
EXTENSIONS = (b"", b"", b"", b";a", b";a=b", b';a="b c"', b" ;a", b";" + b"e" * 40)

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"

# Lines that two readers take differently: what the advisories against Python's and other servers were about.
NASTY_LINES = (
    b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding: CHUNKED", b"Transfer-Encoding: gzip, chunked", b" chunked",
    b"Transfer-Encoding:", b"transfer_encoding: chunked", b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: +5",
    b"Content-Length: -1", b"Content-Length: 5, 5", b"Content-Length: 0x5", b"Content-Length: 1_0",
    b"Content-Length:", b"Content-Length: \xb2", b"Content-Length: 00000000000000000005", b"Content-Length : 5",
    b"Content-Length: 5 6", b"Content-Length: " + b"9" * 18, b"Content-Length: " + b"9" * 400, b"Content-Length\x00: 5",
    b"Host: evil", b"Host:", b"Host: a b", b"Host: a@b", b"Host: [::1", b"Host: a/b", b"Host: a:b",
    b"Expect: 100-continue", b"Expect: 200-ok", b"Expect:", b"Connection: close", b"Connection: keep-alive",
    b"Connection: a\rb", b"\tfolded", b"no colon", b": no name", b"X A: b", b"X-\xe9: b", b"X: \x00", b"X: \x7f",
    b"X(: b", b"Content-Type: a/b",
)  # fmt: skip
NASTY_BYTES = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b"%", b"%00", b"#", b"\x0b", b"\x0c", b"\x7f",
    b"\x80", b"\xff", b"_", b"0", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\x16\x03\x01", b"\x85", b"*", b"//", b"http://evil/",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", SMUGGLED,
)  # fmt: skip
NASTY_CHUNK_LINES = (
    b"0", b"00000000000000005", b"0x5", b"+5", b"-5", b" 5", b"5 ", b"5\t;a", b"5;", b"5;;a", b"5; a = b",
    b'5;a="\\"b"', b'5;a="b', b"5;a=\x00", b"5;a\rb", b"5;a\nb", b"5,6", b"G", b"", b"\r", b"\n", b"5\x0b",
    b"5;" + b"e" * 70, b"7fffffffffffffff", b"ffffffffffffffff", b"1" * 400, b"0;a=b", b"X: y",
)  # fmt: skip
NASTY_TARGETS = (
    b"/%", b"/%4", b"/%zz", b"/%00", b"/a?%", b"/a?b=%zz", b"/a#b", b"#", b"?", b"a/b", b"", b"*", b"/ a", b"//",
    b"/%0d%0a", b"http:///a", b"http://a:b/", b"http://a@b/", b"http://[::1/", b"http://[:::1]/", b"http://a:99999/",
    b"ftp://a/", b"http://evil/", b"a:443", b"/\x01", b"/\xff%ff", b"http://", b"http://%/", b"http:/a", b"http://a",
    b"http://a?b",
)  # fmt: skip
NASTY_METHODS = (
    b"CONNECT", b"TRACE", b"PRI", b"get", b"Get", b"G(T", b"G\x00T", b" GET", b"GET ", b"", b"G" * 33, b"GET\t",
    b"\xc3\x89",
)  # fmt: skip
OTHER_PROTOCOLS = (
    b"\x16\x03\x01\x02\x00\x01\x00", b"SSH-2.0-a\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n",
    b"\x80\x2e\x01", b"PROXY TCP4 127.0.0.1 127.0.0.2 1 2\r\n", b"\r\n" * 40, b"*1\r\n$4\r\nPING\r\n", b"\x00",
    b"EHLO a\r\n",
)  # fmt: skip
NASTY_CODINGS = (
    b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"identity", b"", b"x(chunked", b"chunked;q=1",
)  # fmt: skip
NASTY_NUMBERS = (
    b"0",
    b"00",
    b"1",
    b"-1",
    b"+1",
    b"1e3",
    b"0x10",
    b"ffffffff",
    b"7fffffffffffffff",
    b"F" * 16,
    b"9" * 40,
)


_CHUNK_LINE = re.compile(rb"(?<=\r\n)([0-9a-fA-F]{1,8})[^\r\n]*(?=\r\n)")


@dataclass(frozen=True)
class Case:
    """What a client sends. `pieces` joined are the stream."""

    stream: bytes
    pieces: list[bytes]
    mutations: tuple[str, ...]


def case(random: Random, limits: LimitSettings) -> Case:
    """Return a stream that is good in two cases of five, and wrong in one way or several in the others."""
    stream = b"".join(_empty_lines(random) + request(random, limits) for _ in range(1 + _few(random, 5)))
    mutations = []
    wanted = random.choice((0, 0, 1, 1, 2, 4))
    for _ in range(3 * wanted):  # not every one has anything to change
        mutation = random.choice(MUTATIONS)
        before, stream = stream, mutation(random, stream, limits)
        if stream != before:
            mutations.append(mutation.__name__)
        if len(mutations) == wanted:
            break
    return Case(stream, split(random, stream), tuple(mutations))


def split(random: Random, stream: bytes) -> list[bytes]:
    """Cut `stream` anywhere, with a liking for the ends of lines."""
    if not stream:
        return []
    cuts = {0, len(stream)}
    for _ in range(_few(random, 12)):
        at = random.randrange(len(stream))
        if random.random() < 0.5:
            at = stream.find(b"\r\n", at) + random.randrange(5)
        cuts.add(max(0, min(at, len(stream))))
    bounds = sorted(cuts)
    return [stream[start:end] for start, end in pairwise(bounds)]


# --- good requests ---


def _few(random: Random, most: int) -> int:
    """Return 0 to `most`, small numbers more often."""
    return min(random.randrange(most + 1), random.randrange(most + 1))


def _empty_lines(random: Random) -> bytes:
    return b"\r\n" * (random.randrange(10) == 0)


def request(random: Random, limits: LimitSettings) -> bytes:
    """Return a request that is good, and now and then as large as it may be, or a byte more."""
    version = random.choice((b"1.1",) * 8 + (b"1.0", b"1.7"))
    method = random.choice(METHODS)
    host = random.choice(HOSTS)
    target = random.choice(TARGETS)
    fields = [random.choice(NAMES) + b":" + random.choice((b" ", b"", b"\t")) + random.choice(VALUES)
              for _ in range(_few(random, 6))]  # fmt: skip
    if method == b"OPTIONS" and random.random() < 0.5:
        target = b"*"
    elif random.random() < 0.1:
        target = random.choice((b"http://", b"HTTPS://")) + host + target
    if version != b"1.0" or random.random() < 0.5:
        fields.insert(random.randrange(len(fields) + 1), random.choice((b"Host: ", b"host:", b"HOST: \t")) + host)
    if random.random() < 0.15:
        fields.append(b"Connection: " + random.choice(CONNECTIONS))
    body = b""
    if method in BODY_METHODS or random.random() < 0.1:
        line, body = _body(random, limits, may_chunk=version != b"1.0")
        fields.insert(random.randrange(len(fields) + 1), line)
        if random.random() < 0.2:
            fields.append(b"Expect: 100-continue")
    if random.random() < 0.08:
        fields, target = _to_a_cap(random, fields, target, limits, len(method))
    return (
        b"%b %b HTTP/%b\r\n%b\r\n\r\n%b" % (method, target, version, b"\r\n".join(fields), body)
        if fields
        else (b"%b %b HTTP/%b\r\n\r\n%b" % (method, target, version, body))
    )


def _body(random: Random, limits: LimitSettings, *, may_chunk: bool) -> tuple[bytes, bytes]:
    size = random.choice((0, 1, 5, 40, limits.body_memory, limits.body_memory + 1, limits.body // 2, limits.body))
    size = min(size + random.choice((0, 0, 0, 0, 0, 0, 1)), limits.body + 1)
    content = content_of(random, size)
    if not may_chunk or random.random() < 0.5:
        return b"Content-Length: %b%d" % (b"0" * (random.randrange(8) == 0), size), content
    return random.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED")), _chunked(
        random, content, limits
    )


def _chunked(random: Random, content: bytes, limits: LimitSettings) -> bytes:
    to_a_cap, more = random.randrange(12), random.choice((0, 0, 1))
    extensions = EXTENSIONS
    coded = b""
    if to_a_cap == 0:
        extensions = (b";" + b"e" * 9,)
    elif to_a_cap == 1 and content:
        coded = b"1;" + b"e" * (limits.chunk_line - 2 + more) + b"\r\n" + content[:1] + b"\r\n"
        content = content[1:]
    while content:
        length = 1 + random.randrange(len(content)) if random.random() < 0.7 else len(content)
        if to_a_cap == 0:
            length = 1 + random.randrange(min(len(content), 9))
        digits = random.choice((b"%x", b"%X", b"0%x")) % length
        coded += digits + random.choice(extensions) + b"\r\n" + content[:length] + b"\r\n"
        content = content[length:]
    trailers = [b"%b: %b\r\n" % (random.choice(NAMES), random.choice(VALUES)) for _ in range(_few(random, 2))]
    if to_a_cap == 2:
        rest = limits.trailer - sum(map(len, trailers)) + more
        while rest > 40:
            trailers.append(b"X: " + b"t" * 15 + b"\r\n")
            rest -= 20
        trailers.append(b"X: " + b"t" * max(0, rest - 5) + b"\r\n")
    return coded + random.choice((b"0", b"0", b"000", b"0;a=b")) + b"\r\n" + b"".join(trailers) + b"\r\n"


def content_of(random: Random, size: int) -> bytes:
    """Return `size` bytes that look like anything but a body."""
    unit = random.choice((b"abcdefghij", b"\r\n0\r\n\r\n", SMUGGLED, b"\0\xff\r\n", b"5\r\nhello\r\n"))
    return (unit * (size // len(unit) + 1))[:size]


def _to_a_cap(
    random: Random, fields: list[bytes], target: bytes, limits: LimitSettings, method_size: int
) -> tuple[list[bytes], bytes]:
    more = random.choice((0, 0, 1))
    kind = random.randrange(4)
    if kind == 0 and target[:1] == b"/" and b"%" not in target:
        fixed = method_size + len(b"  HTTP/1.1")
        return fields, (target + b"a" * limits.request_line)[: limits.request_line - fixed + more]
    if kind == 1:
        return [*fields, b"X-Long: " + b"b" * (limits.header_line - 8 + more)], target
    if kind == 2:
        return [*fields, *[b"X-%d: c" % number for number in range(limits.header_count - len(fields) + more)]], target
    filler = b"X-Fill: " + b"d" * (limits.header_line // 2)
    return [*fields, *[filler] * (limits.header // len(filler) + more)], target


# --- what is done to them ---

Mutation = Callable[[Random, bytes, LimitSettings], bytes]


def _somewhere(random: Random, stream: bytes) -> int:
    """Return a place, one at a line's end or at a delimiter more often than not."""
    at = random.randrange(len(stream) + 1)
    if random.random() < 0.6:
        mark = random.choice((b"\r\n", b"\r\n\r\n", b":", b" ", b"HTTP/", b";"))
        found = stream.find(mark, at)
        if found >= 0:
            at = found + random.randrange(len(mark) + 1)
    return at


def _stretch(random: Random, stream: bytes) -> tuple[int, int]:
    start, end = sorted((_somewhere(random, stream), _somewhere(random, stream)))
    return start, min(end, start + random.choice((1, 2, 8, 64, 1 << 20)))


def flip_a_bit(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    if not stream:
        return stream
    at = min(_somewhere(random, stream), len(stream) - 1)
    return stream[:at] + bytes([stream[at] ^ (1 << random.randrange(8))]) + stream[at + 1 :]


def insert_bytes(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    at = _somewhere(random, stream)
    return stream[:at] + random.choice(NASTY_BYTES) + stream[at:]


def replace_a_byte(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    at = _somewhere(random, stream)
    return stream[:at] + random.choice(NASTY_BYTES) + stream[at + 1 :]


def insert_a_line(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    at = stream.find(b"\r\n", random.randrange(len(stream) + 1)) + 2
    return stream[:at] + random.choice(NASTY_LINES) + b"\r\n" + stream[at:]


def repeat_a_line(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    start = stream.find(b"\r\n", random.randrange(len(stream) + 1)) + 2
    end = stream.find(b"\r\n", start) + 2
    times = random.choice((1, 1, 2, limits.header_count, 40))
    return stream[:start] + stream[start:end] * times + stream[start:] if end > start else stream


def remove_a_stretch(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    start, end = _stretch(random, stream)
    return stream[:start] + stream[end:]


def double_a_stretch(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    start, end = _stretch(random, stream)
    return stream[:end] + stream[start:]


def move_a_stretch(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    start, end = _stretch(random, stream)
    rest = stream[:start] + stream[end:]
    at = _somewhere(random, rest)
    return rest[:at] + stream[start:end] + rest[at:]


def cut_the_end(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    return stream[: _somewhere(random, stream)]


def change_a_number(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    digits = [at for at in range(len(stream)) if stream[at : at + 1].isdigit()][:200]
    if not digits:
        return stream
    at = random.choice(digits)
    return stream[:at] + random.choice(NASTY_NUMBERS) + stream[at + 1 :]


def change_a_chunk_line(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    lines = list(_CHUNK_LINE.finditer(stream, max(0, stream.lower().find(b"chunked"))))[:50]
    if not lines:
        return stream
    line = random.choice(lines)
    nasty = random.choice(NASTY_CHUNK_LINES)
    if random.random() < 0.5:
        nasty = random.choice((b"+", b"-", b"0x", b" ", b"\r", b"\n", b"\t", b"0" * 15)) + line[1]
    return stream[: line.start(1)] + nasty + stream[line.end(random.randrange(2)) :]


def change_a_target(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    end = stream.find(b" HTTP/1.", random.randrange(len(stream) + 1))
    start = stream.rfind(b" ", 0, end) + 1
    return stream[:start] + random.choice(NASTY_TARGETS) + stream[end:] if end >= 0 else stream


def change_a_coding(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    field = b"transfer-encoding:"
    start = stream.lower().find(field, random.randrange(len(stream) + 1))
    end = stream.find(b"\r\n", start)
    if start < 0 or end < 0:
        return stream
    return stream[: start + len(field)] + b" " + random.choice(NASTY_CODINGS) + stream[end:]


def change_a_method(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    end = stream.find(b" HTTP/1.", random.randrange(len(stream) + 1))
    start = stream.rfind(b"\n", 0, max(0, end)) + 1
    return stream[:start] + random.choice(NASTY_METHODS) + stream[stream.find(b" ", start) :] if end >= 0 else stream


def speak_another_protocol(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    at = 0 if random.random() < 0.5 else max(0, stream.find(b"\r\n\r\n", random.randrange(len(stream) + 1)) + 4)
    return stream[:at] + random.choice(OTHER_PROTOCOLS) + stream[at:]


def grow_a_token(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    at = _somewhere(random, stream)
    size = random.choice((16, limits.request_line, limits.header_line, limits.header, 300, 9000))
    return stream[:at] + random.choice((b"a", b"0", b"%41", b" ", b"\r\n", b"X: y\r\n", b"\r")) * size + stream[at:]


def end_lines_with_lf(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    at = _somewhere(random, stream)
    return stream[:at] + stream[at:].replace(b"\r\n", b"\n", random.choice((1, 1, 2, 1000)))


def change_case(random: Random, stream: bytes, limits: LimitSettings) -> bytes:
    start, end = _stretch(random, stream)
    return stream[:start] + stream[start:end].swapcase() + stream[end:]


MUTATIONS: tuple[Mutation, ...] = (
    flip_a_bit, insert_bytes, insert_bytes, replace_a_byte, insert_a_line, insert_a_line, insert_a_line, repeat_a_line,
    remove_a_stretch, double_a_stretch, move_a_stretch, cut_the_end, change_a_number, change_a_number, grow_a_token,
    end_lines_with_lf, change_case, change_a_target, change_a_coding, change_a_chunk_line, change_a_chunk_line,
    change_a_chunk_line,
    change_a_coding, change_a_method, speak_another_protocol,
)  # fmt: skip
