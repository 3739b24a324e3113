"""Conditional requests: what tells one version of a representation from another, and what a client makes depend on it.

Pure; any thread. It knows header fields and validators, and neither the representation nor whether there is one: it is
asked only where the answer without any condition would be a 2xx (RFC 9110 13.2.1).

The fields are a client's, and any of them may be garbage. What is not a date is as if it were not there (RFC 9110
13.1.3, 13.1.4). What is not an entity tag matches none: an If-Match of such is false, and nobody is told by an
If-None-Match of such that what they have is still good. The tags beside it in the list count.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date as calendar_date
from typing import Final

_OWS = " \t"

# RFC 9110 8.8.3: no space inside a tag, but commas. One element of a list, up to the comma that ends it: the tag or,
# from whatever does not begin with one and end there, nothing. An attempt at a tag ends at the next quote, so that each
# character is looked at a fixed number of times, however many quotes are opened and not closed.
_ELEMENT = re.compile(r'[ \t]*(?:((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)|[^,]*(?:,|\Z))')
_WEAK = "W/"

# RFC 9110 13.2.1: these neither select nor change a representation.
_UNCONDITIONAL: Final = frozenset({"CONNECT", "OPTIONS", "TRACE"})
_READING: Final = frozenset({"GET", "HEAD"})

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONG_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBER: Final = {name: number for number, name in enumerate(_MONTHS, 1)}

# RFC 9110 5.6.7, case-sensitive, with one space wherever there is one.
_DAY = rf"(?:{'|'.join(_DAYS)})"
_MONTH = rf"({'|'.join(_MONTHS)})"
_TIME = r"([0-9]{2}):([0-9]{2}):([0-9]{2})"
_IMF_FIXDATE = re.compile(rf"{_DAY}, ([0-9]{{2}}) {_MONTH} ([0-9]{{4}}) {_TIME} GMT")
_RFC850 = re.compile(rf"(?:{_LONG_DAYS}), ([0-9]{{2}})-{_MONTH}-([0-9]{{2}}) {_TIME} GMT")
_ASCTIME = re.compile(rf"{_DAY} {_MONTH} ([0-9]{{2}}| [0-9]) {_TIME} ([0-9]{{4}})")

_EPOCH_ORDINAL = calendar_date(1970, 1, 1).toordinal()
_DAY_S = 86_400
# What can be written with four digits for the year. File systems keep times that cannot.
_EARLIEST = (calendar_date.min.toordinal() - _EPOCH_ORDINAL) * _DAY_S
_LATEST = (calendar_date.max.toordinal() - _EPOCH_ORDINAL + 1) * _DAY_S - 1


@dataclass(frozen=True, slots=True)
class Validators:
    """What a response says of its representation's version: RFC 9110 8.8."""

    etag: str  # "..." or W/"...", with the quotes; "" for none
    last_modified: int  # seconds since the epoch, and what Last-Modified says; 0 for none


def etag_of(size: int, mtime_ns: int, coding: str = "") -> str:
    """Return the entity tag of a file in a coding, such as "1a2b-3c4d-gzip", quoted.

    It is strong, and so another one for each coding (RFC 9110 8.8.3.3). That is as true as the file system's clock is
    fine: a file that is written twice within a tick of it, some milliseconds, and has the same size, has the same tag.
    """
    return f'"{size:x}-{mtime_ns:x}-{coding}"' if coding else f'"{size:x}-{mtime_ns:x}"'


def http_date(seconds: int) -> str:
    """Return the date as RFC 9110 5.6.7 has it written; one that it cannot write is the nearest one that it can."""
    days, second = divmod(min(max(seconds, _EARLIEST), _LATEST), _DAY_S)
    day = calendar_date.fromordinal(_EPOCH_ORDINAL + days)
    return (
        f"{_DAYS[day.weekday()]}, {day.day:02} {_MONTHS[day.month - 1]} {day.year:04} "
        f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} GMT"
    )


def parse_http_date(text: str, now: float | None = None) -> int | None:
    """Return the seconds since the epoch that a date in any of the three forms means, or None. RFC 9110 5.6.7.

    `now`, in seconds since the epoch, tells which century a year of two digits is in; without it the clock is asked,
    and only for such a year. The name of the day is not compared with the date, to which it adds nothing. A leap second
    is the second before it, since the epoch's count has none: a date that a client holds is better taken as too old,
    with a whole answer too many, than as too new, with a change that goes unseen.
    """
    if match := _IMF_FIXDATE.fullmatch(text):
        day, month, year, hour, minute, second = match.groups()
        return _seconds(int(year), month, int(day), int(hour), int(minute), int(second))
    if match := _ASCTIME.fullmatch(text):
        month, day, hour, minute, second, year = match.groups()
        return _seconds(int(year), month, int(day), int(hour), int(minute), int(second))
    if match := _RFC850.fullmatch(text):
        day, month, year, hour, minute, second = match.groups()
        rest = (month, int(day), int(hour), int(minute), int(second))
        return _within_fifty_years(int(year), rest, time.time() if now is None else now)
    return None


def judge(headers: Mapping[str, str], method: str, validators: Validators, now: float | None = None) -> int:
    """Return what the request's preconditions make of it: 304, 412, or 0 to go on. RFC 9110 13.2.2.

    `headers` are keyed as in a WSGI environ. The representation exists, and `validators` are those that the response
    would have. `now` is for parse_http_date(). Takes time in proportion to the length of the fields.
    """
    if method in _UNCONDITIONAL:
        return 0
    etag, last_modified = validators.etag, validators.last_modified
    if (if_match := headers.get("HTTP_IF_MATCH")) is not None:
        if not _matches(if_match, etag, weakly=False):
            return 412
    elif last_modified and (text := headers.get("HTTP_IF_UNMODIFIED_SINCE")) is not None:
        unmodified_since = parse_http_date(text.strip(_OWS), now)
        if unmodified_since is not None and last_modified > unmodified_since:
            return 412
    if (if_none_match := headers.get("HTTP_IF_NONE_MATCH")) is not None:
        if _matches(if_none_match, etag, weakly=True):
            return 304 if method in _READING else 412
    elif last_modified and method in _READING and (text := headers.get("HTTP_IF_MODIFIED_SINCE")) is not None:
        modified_since = parse_http_date(text.strip(_OWS), now)
        if modified_since is not None and last_modified <= modified_since:
            return 304
    return 0


def range_applies(headers: Mapping[str, str], validators: Validators, date: int) -> bool:
    """Tell whether If-Range lets the Range field count: what the client has a part of is what there is now.

    `date` is that of the response, in seconds since the epoch. RFC 9110 13.1.5.

    A date tells two versions apart only if the file was left alone for the rest of that second (8.8.2.2), which here is
    known only once the second is over. A client that got its part during that second may hold what was overwritten
    later in it. So whoever sends Last-Modified beside a part should leave it out while it is as late as Date.
    """
    value = headers.get("HTTP_IF_RANGE")
    if value is None:
        return True
    value = value.strip(_OWS)
    if value.startswith('"'):
        return value == validators.etag
    last_modified = validators.last_modified
    return last_modified != 0 and last_modified < date and parse_http_date(value, date) == last_modified


def _matches(value: str, etag: str, *, weakly: bool) -> bool:
    """Tell whether the list of If-Match or If-None-Match has `etag`, or is "*". RFC 9110 8.8.3.2."""
    value = value.strip(_OWS)
    if value == "*":
        return True
    if weakly:
        etag = etag.removeprefix(_WEAK)
    elif etag.startswith(_WEAK):
        return False
    if not etag:
        return False
    # What is sent back is nearly always the one tag that was sent.
    if value == etag:
        return True
    if etag not in value:
        return False
    tags = (match[1] for match in _ELEMENT.finditer(value))
    return any(tag is not None and (tag.removeprefix(_WEAK) if weakly else tag) == etag for tag in tags)


def _seconds(year: int, month: str, day: int, hour: int, minute: int, second: int) -> int | None:
    if second == 60 and hour == 23 and minute == 59:
        second = 59
    if hour > 23 or minute > 59 or second > 59:
        return None
    try:
        days = calendar_date(year, _MONTH_NUMBER[month], day).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        return None
    return days * _DAY_S + hour * 3600 + minute * 60 + second


def _within_fifty_years(year: int, rest: tuple[str, int, int, int, int], now: float) -> int | None:
    """Return the latest date whose year ends in `year` and that is not more than fifty years after `now`."""
    today = time.gmtime(now)
    last = today.tm_year + 50
    year = last - (last - year) % 100
    month, *others = rest
    if year == last and (_MONTH_NUMBER[month], *others) > today[1:6]:
        year -= 100
    return _seconds(year, *rest)
