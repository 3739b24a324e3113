"""The access log: one line for each request, whatever the request contains.

`AccessLog.write` runs on whichever thread finished the response, the I/O thread or a worker, and costs it about two
microseconds: it makes the line and leaves it with a `LogWriter`, whose thread does the writing. This module knows
nothing of connections, requests or responses but the values in an `AccessEntry`.

A line is printable ASCII. What a client sent is made so: a control character, a quote, a backslash, anything past
ASCII, and in a field without quotes a space, becomes an escape. So no client can begin a line, end a field or speak
to a terminal. A target is cut at 4096 characters, any other field at 1024, and then ends in "...". Bodies, cookies
and credentials are not in an entry to begin with; query strings are kept.

combined  What nginx and Apache call so, in local time, then three fields more:

              client - user [22/Nov/2026:15:30:12 +0000] "GET /a?b=1 HTTP/1.1" 200 512 "referer" "agent" \
                  id=4f2a9c took=0.001234 refused=-

          The bytes are all that were sent, head included; `took` is seconds; `refused` is the name of the refusal;
          "-" is nothing. A request that could not be read is "-". Escapes are \\n, \\r, \\t, \\\\, \\x1b or \\u20ac,
          and a quote is \\x22, so that a parser that knows no escapes finds the end of a field.
json      One object a line, always with these keys: time (RFC 3339, local, milliseconds), client, user, method,
          target, http, status, bytes, took, referer, agent, id, refused. Escapes are JSON's: the fields come back
          as they were.
compact   For people at a terminal, with the status in colour:

              15:30:12 200 GET /a?b=1 1.2ms 512B 127.0.0.1 4f2a9c refused=queue_full
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from hardserve.ops.logfile import STREAMS, Destination, LogFile, destination
from hardserve.ops.logwriter import LogWriter
from hardserve.settings import LogSettings

logger = logging.getLogger("hardserve.ops")

TARGET_MAX = 4096
FIELD_MAX = 1024

# How long lines gather for one write: a reader of the log hardly notices, and a busy server writes ten times a second.
GATHER_S = 0.1

# strftime's names follow the locale that an app may set; those of the format are English.
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Bytes of which a finished line has as many as its format put there, or it needs escapes.
_SPECIAL = bytes(byte for byte in range(256) if not 0x20 <= byte < 0x7F) + b'"\\'

_COLOURS = {2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31m"}
_PLAIN = "\x1b[0m"


class AccessEntry(NamedTuple):
    """What is known of an answered request. Text may be anything that a client sent, decoded as latin-1."""

    time: float  # wall-clock seconds
    client: str
    method: str  # "" when the request could not be read
    target: str
    version: str  # "1.1"
    status: int
    bytes_sent: int  # head and body
    duration_s: float
    request_id: str
    refusal: str  # "" = none
    referer: str
    user_agent: str
    user: str


class AccessLog:
    """Writes an entry as a line, to where and in the form that the settings say.

    `start` before and `close` after; close it before the error log, which hears of its troubles.
    """

    def __init__(self, log: LogSettings, *, environ: Mapping[str, str] | None = None) -> None:
        # One attribute, so that no line is made for one place and written to another. None is off.
        self._to: tuple[Callable[[AccessEntry], bytes], LogWriter] | None = None
        if log.access != "off":
            line = line_maker(log, os.environ if environ is None else environ)
            writer = LogWriter(
                "access",
                LogFile(log.access, max_bytes=log.max_size, backups=log.backups),
                report=logger.log,
                gather_s=GATHER_S,
            )
            self._to = line, writer

    def __repr__(self) -> str:
        return f"<AccessLog {self._to[1] if self._to else 'off'}>"

    def start(self) -> None:
        """Open the log and start its thread. Raises LogFileError, whose text is for the operator."""
        if self._to is not None:
            self._to[1].start()

    def take(self, other: AccessLog) -> LogWriter | None:
        """Write on in the place of `other`, which has been started and is not used any more. Any thread.

        Return the former writer, if there is one: the caller closes it. Lines may be on their way there for a moment.
        """
        former, self._to = self._to, other._to
        return None if former is None else former[1]

    def write(self, entry: AccessEntry) -> None:
        """Log `entry`. Any thread; never waits for the disk, never raises."""
        to = self._to
        if to is None:
            return
        line, writer = to
        try:
            writer.write(line(entry))
        except Exception:  # a bug of ours in one line is no reason to lose the connection
            writer.count_dropped()

    def reopen(self) -> None:
        """Have the file opened again: for SIGHUP, also from inside its handler."""
        to = self._to
        if to is not None:
            to[1].reopen()

    def close(self, timeout_s: float) -> bool:
        """Write what is queued and end the thread; say whether that took less than `timeout_s`. Can be repeated."""
        return self._to is None or self._to[1].close(timeout_s)


def line_maker(log: LogSettings, environ: Mapping[str, str]) -> Callable[[AccessEntry], bytes]:
    """Return what turns an entry into a line for the destination in `log`, which is not "off"."""
    there = destination(STREAMS[log.access], environ) if log.access in STREAMS else Destination.PLAIN
    on_terminal = there in {Destination.TERMINAL, Destination.COLOUR_TERMINAL}
    form = log.access_format
    if form == "auto":
        form = "compact" if on_terminal else "combined"
    if form == "json":
        return JsonLine()
    if form == "combined":
        return CombinedLine()
    return CompactLine(colour=there is Destination.COLOUR_TERMINAL)


# In each format the line is made as if its fields were harmless and looked at once, which costs a quarter of looking
# at each field. If it holds a character that the format did not put there, or is so long that a field might exceed its
# bound, it is made again from escaped fields. The texts of a second are one tuple, replaced in one assignment: two
# threads may both make it, and none sees half of it.


class CombinedLine:
    """Makes lines in the combined log format."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        self._second = (-1, "")

    def __call__(self, entry: AccessEntry, escaped: bool = False) -> bytes:
        when, client, method, target, version, status, sent, took, request_id, refusal, referer, agent, user = entry
        second = int(when)
        now = self._second
        if now[0] != second:
            now = self._second = (second, _clf_time(second))
        request = f"{method} {target} HTTP/{version}" if method else "-"
        line = (
            f'{client or "-"} - {user or "-"} [{now[1]}] "{request}" {status} {sent} "{referer or "-"}" '
            f'"{agent or "-"}" id={request_id or "-"} took={took:.6f} refused={refusal or "-"}\n'
        )
        if not escaped and not (
            line.isascii()
            and len(line) <= FIELD_MAX
            # The format's own: six quotes and the newline.
            and len(line.encode().translate(None, _SPECIAL)) == len(line) - 7
            and " " not in client
            and " " not in user
            and " " not in method
            and " " not in target
            and " " not in version
            and " " not in request_id
            and " " not in refusal
        ):
            return self(_escaped(entry), escaped=True)
        return line.encode("ascii")


class JsonLine:
    """Makes lines that are JSON objects."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        self._second = (-1, "", "")

    def __call__(self, entry: AccessEntry, escaped: bool = False) -> bytes:
        when, client, method, target, version, status, sent, took, request_id, refusal, referer, agent, user = entry
        second = int(when)
        now = self._second
        if now[0] != second:
            now = self._second = (second, *_rfc3339_time(second))
        line = (
            f'{{"time":"{now[1]}.{int((when - second) * 1000):03d}{now[2]}","client":"{client}","user":"{user}",'
            f'"method":"{method}","target":"{target}","http":"{version}","status":{status},"bytes":{sent},'
            f'"took":{took:.6f},"referer":"{referer}","agent":"{agent}","id":"{request_id}","refused":"{refusal}"}}\n'
        )
        if not escaped and not (
            line.isascii()
            and len(line) <= FIELD_MAX
            # The format's own: two quotes for each of 13 keys and 10 texts, and the newline.
            and len(line.encode().translate(None, _SPECIAL)) == len(line) - 47
        ):
            return self(_json_escaped(entry), escaped=True)
        return line.encode("ascii")


class CompactLine:
    """Makes short lines for people."""

    __slots__ = ("_colour", "_second")

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._second = (-1, "")

    def __call__(self, entry: AccessEntry, escaped: bool = False) -> bytes:
        when, client, method, target, _, status, sent, took, request_id, refusal, _, _, _ = entry
        second = int(when)
        now = self._second
        if now[0] != second:
            now = self._second = (second, time.strftime("%H:%M:%S", time.localtime(second)))
        line = (
            f"{method or '-'} {target or '-'} {took * 1000:.1f}ms {sent}B {client or '-'} {request_id or '-'}"
            f"{' refused=' if refusal else ''}{refusal}\n"
        )
        if not escaped and not (
            line.isascii()
            and len(line) <= FIELD_MAX
            and len(line.encode().translate(None, _SPECIAL)) == len(line) - 1
            and " " not in client
            and " " not in method
            and " " not in target
            and " " not in request_id
            and " " not in refusal
        ):
            return self(_escaped(entry), escaped=True)
        shown = f"{_COLOURS.get(status // 100, '')}{status}{_PLAIN}" if self._colour else status
        return f"{now[1]} {shown} {line}".encode("ascii")


def _clf_time(second: int) -> str:
    local = time.localtime(second)
    return f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon]}/{local.tm_year}:{time.strftime('%H:%M:%S %z', local)}"


def _rfc3339_time(second: int) -> tuple[str, str]:
    """Return what stands before and after the milliseconds."""
    local = time.localtime(second)
    offset = time.strftime("%z", local)
    return time.strftime("%Y-%m-%dT%H:%M:%S", local), f"{offset[:3]}:{offset[3:]}"


def _escaped(entry: AccessEntry) -> AccessEntry:
    return entry._replace(
        client=_bare(entry.client),
        method=_bare(entry.method),
        target=_bare(entry.target, TARGET_MAX),
        version=_bare(entry.version),
        request_id=_bare(entry.request_id),
        refusal=_bare(entry.refusal),
        referer=_quoted(entry.referer),
        user_agent=_quoted(entry.user_agent),
        user=_bare(entry.user),
    )


def _quoted(text: str, length: int = FIELD_MAX) -> str:
    # In C, some nanoseconds a character: a client that sends nothing but such characters must not cost milliseconds.
    return _cut(text, length).encode("unicode_escape").decode("ascii").replace('"', "\\x22")


def _bare(text: str, length: int = FIELD_MAX) -> str:
    return _quoted(text, length).replace(" ", "\\x20")


def _json_escaped(entry: AccessEntry) -> AccessEntry:
    return entry._replace(
        client=_json_text(entry.client),
        method=_json_text(entry.method),
        target=_json_text(entry.target, TARGET_MAX),
        version=_json_text(entry.version),
        request_id=_json_text(entry.request_id),
        refusal=_json_text(entry.refusal),
        referer=_json_text(entry.referer),
        user_agent=_json_text(entry.user_agent),
        user=_json_text(entry.user),
    )


def _json_text(text: str, length: int = FIELD_MAX) -> str:
    # DEL is the one control character that JSON leaves alone (RFC 8259 7).
    return json.dumps(_cut(text, length))[1:-1].replace("\x7f", "\\u007f")


def _cut(text: str, length: int = FIELD_MAX) -> str:
    return text if len(text) <= length else text[:length] + "..."
