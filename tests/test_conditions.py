"""Preconditions, If-Range and dates: each rule of RFC 9110 13, and plain models of the whole."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hardserve.http.conditions import Validators, etag_of, http_date, judge, parse_http_date, range_applies

FAST = settings(deadline=None, derandomize=True)

LAST_MODIFIED = 784_111_777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"
STRONG = Validators('"a"', LAST_MODIFIED)
WEAK = Validators('W/"a"', LAST_MODIFIED)
COMMA = Validators('"a,b"', LAST_MODIFIED)
TAG_ALONE = Validators('"a"', 0)
DATE_ALONE = Validators("", LAST_MODIFIED)
NOW = 1_767_225_600  # 2026-01-01


def environ(**fields: str) -> dict[str, str]:
    return {f"HTTP_{name.upper()}": value for name, value in fields.items()}


# --- entity tags ---


def test_how_a_tag_is_made() -> None:
    assert etag_of(0x1A2B, 0x3C4D) == '"1a2b-3c4d"'
    assert etag_of(0x1A2B, 0x3C4D, "gzip") == '"1a2b-3c4d-gzip"'
    assert etag_of(5, -31) == '"5--1f"'


def test_a_tag_differs_by_size_time_and_coding() -> None:
    tags = [etag_of(1, 2), etag_of(2, 2), etag_of(1, 3), etag_of(1, 2, "gzip"), etag_of(1, 2, "br"), etag_of(0x12, 0)]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize(
    ("field", "current", "matches_strongly", "matches_weakly"),
    [
        pytest.param('"a"', STRONG, True, True, id="the tag"),
        pytest.param('"b"', STRONG, False, False, id="another tag"),
        pytest.param('"A"', STRONG, False, False, id="tags are case-sensitive"),
        pytest.param('W/"a"', STRONG, False, True, id="the tag, weak"),
        pytest.param('"a"', WEAK, False, True, id="the tag, strong, of what is weak"),
        pytest.param('W/"a"', WEAK, False, True, id="a weak tag is never strongly equal to itself"),
        pytest.param('w/"a"', STRONG, False, False, id="the prefix is case-sensitive"),
        pytest.param('W/ "a"', STRONG, False, False, id="the prefix and a blank"),
        pytest.param('W"a"', STRONG, False, False, id="the prefix without its slash"),
        pytest.param('W/W/"a"', STRONG, False, False, id="the prefix twice"),
        pytest.param('"x", "a"', STRONG, True, True, id="the second of a list"),
        pytest.param('"x","a","y"', STRONG, True, True, id="amid a list without blanks"),
        pytest.param('"x"\t,\t"a"\t', STRONG, True, True, id="a list with tabs"),
        pytest.param('W/"x", W/"a"', STRONG, False, True, id="a list of weak ones"),
        pytest.param(',, "a" ,,', STRONG, True, True, id="empty elements"),
        pytest.param('"a,b"', COMMA, True, True, id="a tag with a comma"),
        pytest.param('"x", "a,b", "y"', COMMA, True, True, id="a tag with a comma in a list"),
        pytest.param('"a,b"', Validators('"a', 0), False, False, id="half of a tag with a comma"),
        pytest.param('"x"a"', STRONG, False, False, id="the tag's text between others' quotes"),
        pytest.param('"x,"a",y"', STRONG, True, True, id="garbage ends at the next comma, quotes or not"),
        pytest.param('"x","y"', Validators('","', 0), False, False, id="what stands between two tags is not a tag"),
        pytest.param("a", STRONG, False, False, id="without quotes"),
        pytest.param("'a'", STRONG, False, False, id="in single quotes"),
        pytest.param('"a', STRONG, False, False, id="a quote that is not closed"),
        pytest.param('a"', STRONG, False, False, id="a quote that is not opened"),
        pytest.param('"a" "a"', STRONG, False, False, id="two without a comma"),
        pytest.param('"a";x', STRONG, False, False, id="something after the tag"),
        pytest.param('x"a"', STRONG, False, False, id="something before the tag"),
        pytest.param('garbage, "a"', STRONG, True, True, id="the tag after garbage"),
        pytest.param('"a", garbage', STRONG, True, True, id="the tag before garbage"),
        pytest.param('"x, "a"', STRONG, True, True, id="the tag after a quote that is not closed"),
        pytest.param('"\xe4"', Validators('"\xe4"', 0), True, True, id="a byte beyond ASCII"),
        pytest.param('""', Validators('""', 0), True, True, id="the empty tag"),
        pytest.param("", STRONG, False, False, id="an empty list"),
        pytest.param("", DATE_ALONE, False, False, id="an empty list, and no tag"),
        pytest.param('""', DATE_ALONE, False, False, id="the empty tag is not no tag"),
        pytest.param("W/", DATE_ALONE, False, False, id="the prefix is not no tag"),
        pytest.param('"a"', DATE_ALONE, False, False, id="a tag, where there is none"),
        pytest.param("*", STRONG, True, True, id="a star"),
        pytest.param(" * ", STRONG, True, True, id="a star and blanks"),
        pytest.param("*", DATE_ALONE, True, True, id="a star is for whatever exists, with a tag or without"),
        pytest.param('"*"', STRONG, False, False, id="a star in quotes is a tag"),
        pytest.param('*, "x"', STRONG, False, False, id="a star in a list is garbage"),
    ],
)
def test_which_tags_match(field: str, current: Validators, matches_strongly: bool, matches_weakly: bool) -> None:
    assert judge(environ(if_match=field), "GET", current) == (0 if matches_strongly else 412)
    assert judge(environ(if_match=field), "PUT", current) == (0 if matches_strongly else 412)
    assert judge(environ(if_none_match=field), "GET", current) == (304 if matches_weakly else 0)
    assert judge(environ(if_none_match=field), "HEAD", current) == (304 if matches_weakly else 0)
    assert judge(environ(if_none_match=field), "PUT", current) == (412 if matches_weakly else 0)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param('"' * 400_001, id="quotes"),
        pytest.param('"x,' * 140_000, id="quotes that are not closed"),
        pytest.param('"' + "x," * 200_000, id="one quote that is not closed"),
        pytest.param('W/"' + "W/" * 200_000, id="prefixes"),
        pytest.param('"x"' + " " * 400_000 + "x", id="blanks after a tag"),
        pytest.param(" " * 400_000 + "x", id="blanks before garbage"),
        pytest.param("x," + " " * 400_000 + "x", id="blanks within"),
        pytest.param("," * 400_000, id="commas"),
        pytest.param('"b",' * 500_000, id="tags"),
    ],
)
def test_long_lists_take_no_time_that_grows_with_the_square(field: str) -> None:
    """Linear time is milliseconds, quadratic time is minutes; nothing of a machine's speed comes between them."""
    field = f'{field} "a"x'  # so that it is looked at, and matches nothing
    begun = time.process_time()
    assert judge(environ(if_none_match=field), "GET", STRONG) == 0
    assert judge(environ(if_match=field), "GET", STRONG) == 412
    assert time.process_time() - begun < 5


# --- precedence ---


@pytest.mark.parametrize(
    ("method", "fields", "current", "status"),
    [
        pytest.param("GET", {}, STRONG, 0, id="no condition"),
        pytest.param("GET", {"if_modified_since": DATE}, STRONG, 304, id="not modified since"),
        pytest.param("HEAD", {"if_modified_since": DATE}, STRONG, 304, id="HEAD is as GET"),
        pytest.param("GET", {"if_modified_since": AFTER}, STRONG, 304, id="older than the date asked for"),
        pytest.param("GET", {"if_modified_since": BEFORE}, STRONG, 0, id="modified since"),
        pytest.param("GET", {"if_modified_since": f" {DATE}\t"}, STRONG, 304, id="blanks around a date"),
        pytest.param("PUT", {"if_modified_since": DATE}, STRONG, 0, id="If-Modified-Since is for GET and HEAD"),
        pytest.param("GET", {"if_modified_since": DATE}, TAG_ALONE, 0, id="since, of what has no date"),
        pytest.param("GET", {"if_modified_since": "yesterday"}, STRONG, 0, id="since, of what is no date"),
        pytest.param("GET", {"if_modified_since": f"{DATE}, {DATE}"}, STRONG, 0, id="since, of two dates"),
        pytest.param("GET", {"if_modified_since": ""}, STRONG, 0, id="since, of nothing"),
        pytest.param("GET", {"if_unmodified_since": DATE}, STRONG, 0, id="not modified since, and must not be"),
        pytest.param("GET", {"if_unmodified_since": AFTER}, STRONG, 0, id="older than it must be"),
        pytest.param("GET", {"if_unmodified_since": BEFORE}, STRONG, 412, id="modified since, and must not be"),
        pytest.param("PUT", {"if_unmodified_since": BEFORE}, STRONG, 412, id="If-Unmodified-Since is for any method"),
        pytest.param("GET", {"if_unmodified_since": BEFORE}, TAG_ALONE, 0, id="unmodified, of what has no date"),
        pytest.param(
            "GET", {"if_unmodified_since": http_date(-1)}, TAG_ALONE, 0, id="no date is not after one before the epoch"
        ),
        pytest.param("PUT", {"if_unmodified_since": "never"}, STRONG, 0, id="unmodified, of what is no date"),
        pytest.param("PUT", {"if_unmodified_since": f"{BEFORE}, {BEFORE}"}, STRONG, 0, id="unmodified, of two dates"),
        pytest.param(
            "GET",
            {"if_match": '"a"', "if_unmodified_since": BEFORE},
            STRONG,
            0,
            id="If-Match hides If-Unmodified-Since",
        ),
        pytest.param(
            "GET",
            {"if_match": '"b"', "if_unmodified_since": AFTER},
            STRONG,
            412,
            id="If-Match hides it when it fails, too",
        ),
        pytest.param(
            "GET",
            {"if_none_match": '"b"', "if_modified_since": DATE},
            STRONG,
            0,
            id="If-None-Match hides If-Modified-Since",
        ),
        pytest.param(
            "GET",
            {"if_none_match": "", "if_modified_since": DATE},
            STRONG,
            0,
            id="an If-None-Match without tags does so, too",
        ),
        pytest.param(
            "GET",
            {"if_none_match": '"a"', "if_modified_since": BEFORE},
            STRONG,
            304,
            id="If-None-Match hides it when it matches",
        ),
        pytest.param(
            "GET", {"if_match": '"b"', "if_none_match": '"a"'}, STRONG, 412, id="If-Match is asked before If-None-Match"
        ),
        pytest.param(
            "GET", {"if_match": '"a"', "if_none_match": '"a"'}, STRONG, 304, id="If-Match holds, the next is asked"
        ),
        pytest.param(
            "GET", {"if_match": '"a"', "if_modified_since": DATE}, STRONG, 304, id="If-Match holds, the date is asked"
        ),
        pytest.param(
            "GET",
            {"if_unmodified_since": BEFORE, "if_none_match": '"a"'},
            STRONG,
            412,
            id="If-Unmodified-Since is asked before If-None-Match",
        ),
        pytest.param(
            "GET",
            {"if_unmodified_since": DATE, "if_modified_since": DATE},
            STRONG,
            304,
            id="If-Unmodified-Since holds, the date is asked",
        ),
        pytest.param(
            "GET",
            {"if_unmodified_since": "x", "if_none_match": '"a"'},
            STRONG,
            304,
            id="no date there, the next is asked",
        ),
        pytest.param("OPTIONS", {"if_none_match": "*"}, STRONG, 0, id="OPTIONS selects no representation"),
        pytest.param("TRACE", {"if_match": '"b"'}, STRONG, 0, id="TRACE selects none"),
        pytest.param("CONNECT", {"if_unmodified_since": BEFORE}, STRONG, 0, id="CONNECT selects none"),
        pytest.param("DELETE", {"if_none_match": "*"}, STRONG, 412, id="only if it does not exist, and it does"),
        pytest.param("get", {"if_none_match": '"a"'}, STRONG, 412, id="methods are case-sensitive"),
    ],
)
def test_which_condition_decides(method: str, fields: dict[str, str], current: Validators, status: int) -> None:
    assert judge(environ(**fields), method, current) == status


def test_the_century_of_a_date_is_told_by_the_time_that_is_passed() -> None:
    since = environ(if_modified_since="Sunday, 06-Nov-94 08:49:37 GMT")
    assert judge(since, "GET", STRONG, NOW) == 304
    assert judge(since, "GET", STRONG, parse_http_date("Fri, 01 Jan 1932 00:00:00 GMT")) == 0  # 1894


# --- a plain model of it all ---

Tag = tuple[str, str]  # "W/" or "", and what is in quotes
List = list[Tag | str]  # a str is garbage

opaque = st.text(st.sampled_from("abW/,*"), max_size=3).map('"{}"'.format)
tags = st.tuples(st.sampled_from(["", "W/"]), opaque)
# Without a comma, and with no quote that the next element's might close.
junk = st.sampled_from(["", "a", "W/", "*a", 'w/"a"', '"a"b', 'W/ "a"', '"a" "b"', "\xff\0"])
lists = st.one_of(st.none(), st.just("*"), st.lists(st.one_of(tags, junk), max_size=5))
moments = st.one_of(st.none(), st.just("no date"), st.integers(-2, 2))


def matches(field: str | List, current: Tag, *, weakly: bool) -> bool:
    if isinstance(field, str):
        return True
    listed = [element for element in field if isinstance(element, tuple)]
    return current[1] in [text for _, text in listed] if weakly else current[0] == "" and current in listed


def model(
    method: str,
    current: Tag,
    match: str | List | None,
    none_match: str | List | None,
    unmodified: object,
    modified: object,
) -> int:
    """Return what judge() should: each step of RFC 9110 13.2.2 by itself. Dates are seconds after the last change."""
    reading = method in ("GET", "HEAD")
    step_1 = match is None or matches(match, current, weakly=False)
    step_2 = match is not None or not isinstance(unmodified, int) or unmodified >= 0
    step_3 = none_match is None or not matches(none_match, current, weakly=True)
    step_4 = none_match is not None or not reading or not isinstance(modified, int) or modified < 0
    if not (step_1 and step_2):
        return 412
    return 0 if step_3 and step_4 else 304 if reading else 412


def written(field: str | List, separator: str) -> str:
    return field if isinstance(field, str) else separator.join("".join(element) for element in field)


@settings(FAST, max_examples=400)
@given(
    st.sampled_from(["GET", "HEAD", "PUT", "DELETE"]),
    *(tags, lists, lists, moments, moments),
    st.sampled_from([",", ", ", " ,\t", ",, "]),
)
def test_the_steps_of_13_2_2_one_after_another(
    method: str,
    current: Tag,
    match: str | List | None,
    none_match: str | List | None,
    unmodified: int | str | None,
    modified: int | str | None,
    separator: str,
) -> None:
    fields = {}
    for name, field in (("if_match", match), ("if_none_match", none_match)):
        if field is not None:
            fields[name] = written(field, separator)
    for name, moment in (("if_unmodified_since", unmodified), ("if_modified_since", modified)):
        if moment is not None:
            fields[name] = moment if isinstance(moment, str) else formatdate(LAST_MODIFIED + moment, usegmt=True)
    status = judge(environ(**fields), method, Validators("".join(current), LAST_MODIFIED))
    assert status == model(method, current, match, none_match, unmodified, modified)


def plain_tags(field: str) -> list[str]:
    """Return the tags of a list, found character by character; garbage goes up to the next comma."""
    found = []
    while field:
        field = field.lstrip(" ")
        opened = 2 if field.startswith("W/") else 0
        closed = field.find('"', opened + 1)
        tag, rest = field[: closed + 1], field[closed + 1 :].lstrip(" ")
        if field[opened : opened + 1] == '"' and closed > 0 and " " not in tag and rest[:1] in ("", ","):
            found.append(tag)
            field = rest[1:]
        else:
            field = field.partition(",")[2]
    return found


@settings(FAST, max_examples=400)
@given(st.lists(st.sampled_from(['"a"', 'W/"a"', '"', "W/", ",", ", ", " ", "a"]), max_size=9).map("".join))
@example('"a,"a"')
@example('"b","a"')
@example('"a" "a","a"')
def test_what_matches_is_a_tag_of_the_list(field: str) -> None:
    tags_there = plain_tags(field)
    assert judge(environ(if_match=field), "GET", STRONG) == (0 if '"a"' in tags_there else 412)
    assert judge(environ(if_none_match=field), "GET", STRONG) == (304 if {'"a"', 'W/"a"'} & {*tags_there} else 0)


junk_bytes = st.binary(max_size=40).map(lambda raw: raw.decode("latin-1"))
near_tags = st.text('"W/a, *', max_size=20)
CONDITIONS = ["IF_MATCH", "IF_NONE_MATCH", "IF_MODIFIED_SINCE", "IF_UNMODIFIED_SINCE", "IF_RANGE"]


@settings(FAST, max_examples=300)
@given(
    st.dictionaries(st.sampled_from(CONDITIONS).map("HTTP_{}".format), st.one_of(junk_bytes, near_tags)),
    st.sampled_from(["GET", "HEAD", "PUT"]),
    st.sampled_from([STRONG, WEAK, COMMA, TAG_ALONE, DATE_ALONE]),
)
def test_any_text_is_judged(headers: dict[str, str], method: str, current: Validators) -> None:
    assert judge(headers, method, current) in ({0, 412} if method == "PUT" else {0, 304, 412})
    value = headers.get("HTTP_IF_RANGE")
    same = value is None or (value.strip(" \t") == current.etag and current.etag.startswith('"'))
    assert range_applies(headers, current, NOW) == same


# --- If-Range ---


@pytest.mark.parametrize(
    ("value", "current", "date", "applies"),
    [
        pytest.param(None, STRONG, NOW, True, id="no If-Range"),
        pytest.param(None, Validators("", 0), NOW, True, id="no If-Range, and no validator"),
        pytest.param('"a"', STRONG, NOW, True, id="the tag"),
        pytest.param(' "a"\t', STRONG, NOW, True, id="the tag and blanks"),
        pytest.param('"b"', STRONG, NOW, False, id="another tag"),
        pytest.param('W/"a"', STRONG, NOW, False, id="the tag, weak"),
        pytest.param('W/"a"', WEAK, NOW, False, id="a weak tag of what is weak"),
        pytest.param('"a"', WEAK, NOW, False, id="a strong tag of what is weak"),
        pytest.param('"a"', DATE_ALONE, NOW, False, id="a tag, where there is none"),
        pytest.param('"a", "b"', STRONG, NOW, False, id="a list"),
        pytest.param("*", STRONG, NOW, False, id="a star"),
        pytest.param("", STRONG, NOW, False, id="nothing"),
        pytest.param("", DATE_ALONE, NOW, False, id="nothing, where there is no tag"),
        pytest.param("a", STRONG, NOW, False, id="garbage"),
        pytest.param(DATE, STRONG, NOW, True, id="the date"),
        pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", STRONG, NOW, True, id="the date in RFC 850's form"),
        pytest.param("Sun Nov  6 08:49:37 1994", STRONG, NOW, True, id="the date in asctime's form"),
        pytest.param(DATE, DATE_ALONE, NOW, True, id="the date, where there is no tag"),
        pytest.param(DATE, WEAK, NOW, True, id="the date, where the tag is weak"),
        pytest.param(BEFORE, STRONG, NOW, False, id="an earlier date"),
        pytest.param(AFTER, STRONG, NOW, False, id="a later date: it must be the same"),
        pytest.param(DATE, TAG_ALONE, NOW, False, id="a date, where there is none"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", TAG_ALONE, NOW, False, id="no date is not the epoch"),
        pytest.param(DATE, STRONG, LAST_MODIFIED, False, id="the second of the change is not over"),
        pytest.param(DATE, STRONG, LAST_MODIFIED + 1, True, id="the second of the change is over"),
        pytest.param(DATE, STRONG, LAST_MODIFIED - 60, False, id="changed in the future"),
        pytest.param('"a"', STRONG, LAST_MODIFIED, True, id="a tag does not care how long ago that was"),
    ],
)
def test_whether_a_range_applies(value: str | None, current: Validators, date: int, applies: bool) -> None:
    assert range_applies({} if value is None else environ(if_range=value), current, date) is applies


# --- dates ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", LAST_MODIFIED, id="IMF-fixdate"),
        pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", LAST_MODIFIED, id="RFC 850"),
        pytest.param("Sun Nov  6 08:49:37 1994", LAST_MODIFIED, id="asctime"),
        pytest.param("Sun Nov 06 08:49:37 1994", LAST_MODIFIED, id="asctime with a zero"),
        pytest.param("Wed Nov 16 08:49:37 1994", LAST_MODIFIED + 10 * 86_400, id="asctime with two digits"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", 0, id="the epoch is a date"),
        pytest.param("Wed, 31 Dec 1969 23:59:59 GMT", -1, id="before the epoch"),
        pytest.param("Tue, 29 Feb 2000 00:00:00 GMT", 951_782_400, id="a leap day"),
        pytest.param("Mon, 01 Jan 0001 00:00:00 GMT", -62_135_596_800, id="the first date there is"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799, id="the last date there is"),
        pytest.param("Mon, 06 Nov 1994 08:49:37 GMT", LAST_MODIFIED, id="the wrong day of the week"),
        pytest.param("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_799, id="a leap second is the one before it"),
        pytest.param("Saturday, 31-Dec-16 23:59:60 GMT", 1_483_228_799, id="a leap second in RFC 850's form"),
        pytest.param("Sat Dec 31 23:59:60 2016", 1_483_228_799, id="a leap second in asctime's form"),
        pytest.param("Sat, 31 Dec 2016 12:00:60 GMT", None, id="a leap second at noon"),
        pytest.param("Sat, 31 Dec 2016 23:59:61 GMT", None, id="two leap seconds"),
        pytest.param("Sat, 31 Dec 2016 24:00:00 GMT", None, id="hour 24"),
        pytest.param("Sat, 31 Dec 2016 00:60:00 GMT", None, id="minute 60"),
        pytest.param("Thu, 31 Feb 2000 00:00:00 GMT", None, id="31 February"),
        pytest.param("Thu, 29 Feb 1900 00:00:00 GMT", None, id="29 February of no leap year"),
        pytest.param("Thu, 00 Jan 2000 00:00:00 GMT", None, id="day 0"),
        pytest.param("Thursday, 31-Feb-00 00:00:00 GMT", None, id="31 February in RFC 850's form"),
        pytest.param("Thu Feb 31 00:00:00 2000", None, id="31 February in asctime's form"),
        pytest.param("Thu Feb  0 00:00:00 2000", None, id="day 0 in asctime's form"),
        pytest.param("Sat, 01 Jan 0000 00:00:00 GMT", None, id="year 0"),
        pytest.param("", None, id="nothing"),
        pytest.param("sun, 06 nov 1994 08:49:37 gmt", None, id="lower case"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 UTC", None, id="another name for the zone"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 +0000", None, id="a zone in digits"),
        pytest.param("Sun, 06 Nov 1994 08:49:37", None, id="no zone"),
        pytest.param("06 Nov 1994 08:49:37 GMT", None, id="no day of the week"),
        pytest.param("Xyz, 06 Nov 1994 08:49:37 GMT", None, id="no such day of the week"),
        pytest.param("Sunday, 06 Nov 1994 08:49:37 GMT", None, id="the long name of the day in the short form"),
        pytest.param("Sun, 06-Nov-94 08:49:37 GMT", None, id="the short name of the day in RFC 850's form"),
        pytest.param("Sunday, 06-Nov-1994 08:49:37 GMT", None, id="four digits for RFC 850's year"),
        pytest.param("Sun, 06 Abc 1994 08:49:37 GMT", None, id="no such month"),
        pytest.param("Sun, 6 Nov 1994 08:49:37 GMT", None, id="one digit for the day"),
        pytest.param("Sun Nov 6 08:49:37 1994", None, id="one digit for asctime's day"),
        pytest.param("Sun, 06 Nov 1994 8:49:37 GMT", None, id="one digit for the hour"),
        pytest.param("Sun, 06 Nov 94 08:49:37 GMT", None, id="two digits for the year"),
        pytest.param("Sun,  06 Nov 1994 08:49:37 GMT", None, id="two blanks"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT\n", None, id="a line end after it"),
        pytest.param(" Sun, 06 Nov 1994 08:49:37 GMT", None, id="a blank before it"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT; length=5", None, id="what ancient browsers put behind it"),
        pytest.param("Sun, \u0660\u0666 Nov 1994 08:49:37 GMT", None, id="digits of another script"),
        pytest.param("784111777", None, id="seconds"),
        pytest.param("1994-11-06T08:49:37Z", None, id="ISO 8601"),
        pytest.param("9" * 200_000, None, id="digits without end"),
    ],
)
def test_which_texts_are_dates(text: str, expected: int | None) -> None:
    assert parse_http_date(text, NOW) == expected


@pytest.mark.parametrize(
    ("now", "text", "year"),
    [
        pytest.param("2026-06-15 12:00:00", "06-Nov-94", 1994, id="that would be more than fifty years ahead"),
        pytest.param("2026-06-15 12:00:00", "06-Nov-26", 2026, id="later this year"),
        pytest.param("2026-06-15 12:00:00", "06-Nov-25", 2025, id="last year"),
        pytest.param("2026-06-15 12:00:00", "06-Nov-75", 2075, id="forty-nine years ahead"),
        pytest.param("2026-06-15 12:00:00", "14-Jun-76", 2076, id="a day less than fifty years ahead"),
        pytest.param("2026-06-15 12:00:00", "16-Jun-76", 1976, id="a day more than fifty years ahead"),
        pytest.param("2026-11-06 08:49:37", "06-Nov-76", 2076, id="fifty years ahead to the second"),
        pytest.param("2026-11-06 08:49:36", "06-Nov-76", 1976, id="a second more than fifty years ahead"),
        pytest.param("2099-06-15 12:00:00", "06-Nov-05", 2105, id="ahead, in the next century"),
        pytest.param("2026-06-15 12:00:00", "29-Feb-76", 2076, id="a leap day"),
        pytest.param("2026-01-15 12:00:00", "29-Feb-76", 1976, id="a leap day a century earlier"),
    ],
)
def test_which_century_a_year_of_two_digits_is_in(now: str, text: str, year: int) -> None:
    seconds = datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()
    parsed = parse_http_date(f"Sunday, {text} 08:49:37 GMT", seconds)
    assert parsed is not None
    assert datetime.fromtimestamp(parsed, UTC).year == year


def test_without_a_time_the_clock_tells_the_century() -> None:
    a_year_ago = int(time.time()) - 365 * 86_400
    text = datetime.fromtimestamp(a_year_ago, UTC).strftime("Sunday, %d-%b-%y %H:%M:%S GMT")
    assert parse_http_date(text) == a_year_ago


@settings(FAST, max_examples=300)
@given(st.integers(-62_135_596_800, 253_402_300_799))
@example(0)
@example(-1)
@example(-62_135_596_800)
@example(253_402_300_799)
def test_a_date_is_written_as_the_library_does_and_read_back(seconds: int) -> None:
    text = http_date(seconds)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert text == moment.strftime("%a, %d %b ") + f"{moment.year:04}" + moment.strftime(" %H:%M:%S GMT")
    assert parse_http_date(text) == seconds
    asctime = moment.strftime("%a %b ") + f"{moment.day:2}" + moment.strftime(" %H:%M:%S ") + f"{moment.year:04}"
    assert parse_http_date(asctime) == seconds


@settings(FAST, max_examples=300)
@given(st.integers(NOW - 49 * 365 * 86_400, NOW + 49 * 365 * 86_400))
def test_a_date_with_a_year_of_two_digits_is_read_back(seconds: int) -> None:
    text = datetime.fromtimestamp(seconds, UTC).strftime("%A, %d-%b-%y %H:%M:%S GMT")
    assert parse_http_date(text, NOW) == seconds


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param(10**18, "Fri, 31 Dec 9999 23:59:59 GMT", id="later than can be written"),
        pytest.param(-(10**18), "Mon, 01 Jan 0001 00:00:00 GMT", id="earlier than can be written"),
    ],
)
def test_a_time_that_no_date_can_say_is_the_nearest(seconds: int, expected: str) -> None:
    assert http_date(seconds) == expected


@settings(FAST, max_examples=300)
@given(
    st.one_of(
        junk_bytes,
        st.text(max_size=40),
        st.tuples(
            st.sampled_from([DATE, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]),
            st.integers(0, 30),
            st.text(st.sampled_from("0123456789: ,-JanFebGMT"), max_size=3),
        ).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]),
    )
)
def test_any_text_is_a_date_or_none(text: str) -> None:
    parsed = parse_http_date(text, NOW)
    if parsed is not None:
        assert any(
            _strptime(text, form) in (parsed, parsed + 1)  # a leap second is the one before it
            for form in ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")
        )


def _strptime(text: str, form: str) -> int | None:
    try:
        moment = datetime.strptime(text.replace("23:59:60", "23:59:59"), form).replace(tzinfo=UTC)
    except ValueError:
        return None
    # From which two digits on it is the last century: for the library from 69 on, for RFC 9110 at `NOW` from 76 on.
    if "%y" in form and 1969 <= moment.year < 1976:
        moment = moment.replace(year=moment.year + 100)
    return int(moment.timestamp())
