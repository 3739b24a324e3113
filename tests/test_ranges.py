"""Any Range field on any file asks for what slicing bytes in Python gives, and several spans make one body."""

from __future__ import annotations

import email
import email.policy
import re
import sys
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hardserve.http.ranges import MAX_RANGES, PART_OVERHEAD, Multipart, Span, content_range, unsatisfied, wanted

FAST = settings(deadline=None, derandomize=True)
BOUNDARY = "b0undary7d3f"


def positions(value: str, size: int) -> list[tuple[int, int]] | None:
    return None if (spans := wanted(value, size)) is None else [(span.start, span.end) for span in spans]


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        pytest.param("bytes=0-9", 100, [(0, 10)], id="the first ten"),
        pytest.param("bytes=0-0", 100, [(0, 1)], id="one byte"),
        pytest.param("bytes=99-99", 100, [(99, 100)], id="the last byte by its position"),
        pytest.param("bytes=90-", 100, [(90, 100)], id="from a position on"),
        pytest.param("bytes=0-", 100, [(0, 100)], id="from the first byte on is still a range"),
        pytest.param("bytes=-10", 100, [(90, 100)], id="the last ten"),
        pytest.param("bytes=-1000", 100, [(0, 100)], id="a suffix longer than the file is the whole file"),
        pytest.param("bytes=90-1000", 100, [(90, 100)], id="a last position beyond the end is cut"),
        pytest.param("bytes=007-0009", 100, [(7, 10)], id="leading zeros mean nothing"),
        pytest.param("BYTES=0-9", 100, [(0, 10)], id="the unit in upper case"),
        pytest.param("bytes= 0-9 ,\t200-299", 1000, [(0, 10), (200, 300)], id="blanks around the elements"),
        pytest.param("bytes=,, 0-9,,", 100, [(0, 10)], id="empty elements do not count"),
        pytest.param(" bytes=0-9\t", 100, [(0, 10)], id="blanks around the value"),
        pytest.param("bytes=500-599,0-99", 1000, [(500, 600), (0, 100)], id="the client's order is kept"),
        pytest.param(
            "bytes=500-599,0-99,50-149", 1000, [(0, 150), (500, 600)], id="overlapping ones are one, in order"
        ),
        pytest.param("bytes=0-99,100-199", 1000, [(0, 200)], id="adjacent ones are one"),
        pytest.param("bytes=0-9,89-99", 1000, [(0, 100)], id="a gap shorter than a part's overhead is sent along"),
        pytest.param("bytes=0-9,90-99", 1000, [(0, 10), (90, 100)], id="a gap as long as a part's overhead is not"),
        pytest.param("bytes=90-99,0-9", 1000, [(90, 100), (0, 10)], id="nor does such a gap change the order"),
        pytest.param(
            "bytes=0-9,5-9,90-99", 1000, [(0, 10), (90, 100)], id="nor is it closed where others are coalesced"
        ),
        pytest.param("bytes=0-499,100-199", 1000, [(0, 500)], id="one within another"),
        pytest.param("bytes=0-,5-6", 1000, [(0, 1000)], id="what covers the whole file is one span"),
        pytest.param("bytes=100-,0-9", 100, [(0, 10)], id="one that begins at the end is dropped beside a good one"),
        pytest.param("bytes=-0,0-9", 100, [(0, 10)], id="an empty suffix is dropped beside a good one"),
        pytest.param("bytes=0-" + "9" * 19, 100, [(0, 100)], id="a last position of 19 digits is cut"),
        pytest.param("bytes=0-" + "9" * 16_000, 100, [(0, 100)], id="a last position of 16000 digits is cut"),
        pytest.param("bytes=-" + "9" * 16_000, 100, [(0, 100)], id="a suffix of 16000 digits is the whole file"),
        pytest.param("bytes=" + "0" * 16_000 + "5-7", 100, [(5, 8)], id="16000 leading zeros mean nothing"),
        pytest.param(
            "bytes=9223372036854775806-", 2**63 - 1, [(2**63 - 2, 2**63 - 1)], id="the last byte of the largest file"
        ),
        pytest.param("bytes=100-", 100, [], id="beginning at the end is unsatisfiable"),
        pytest.param("bytes=100-200,300-", 100, [], id="none of several is satisfiable"),
        pytest.param("bytes=-0", 100, [], id="an empty suffix is unsatisfiable"),
        pytest.param("bytes=-000", 100, [], id="an empty suffix with more zeros is unsatisfiable"),
        pytest.param("bytes=0-0", 0, [], id="an empty file has no first byte"),
        pytest.param("bytes=0-", 0, [], id="an empty file has nothing from its start on"),
        pytest.param("bytes=-5", 0, [], id="an empty file has no last bytes"),
        pytest.param("bytes=" + "9" * 16_000 + "-", 100, [], id="a first position of 16000 digits is unsatisfiable"),
        pytest.param(f"bytes={'9' * 30}-{'9' * 31}", 100, [], id="both positions are larger than any file"),
        pytest.param(f"bytes={'9' * 31}-{'9' * 30}", 100, None, id="huge positions in the wrong order are malformed"),
        pytest.param(f"bytes={'9' * 30}-{'9' * 29}8", 100, None, id="huge positions that differ in a digit, too"),
        pytest.param("bytes=9-8", 100, None, id="first after last is malformed"),
        pytest.param("bytes=200-100,0-9", 100, None, id="malformed, though beyond the end, beside a good one"),
        pytest.param("bytes=0-9,x", 100, None, id="one malformed spoils the others"),
        pytest.param("bytes=-", 100, None, id="no digits"),
        pytest.param("bytes=", 100, None, id="no range"),
        pytest.param("bytes=, ,", 100, None, id="only empty elements"),
        pytest.param("", 100, None, id="nothing"),
        pytest.param("bytes", 100, None, id="only the unit"),
        pytest.param("bytes=5", 100, None, id="no dash"),
        pytest.param("bytes=+0-9", 100, None, id="a plus"),
        pytest.param("bytes=--9", 100, None, id="a minus"),
        pytest.param("bytes=0--9", 100, None, id="a negative last position"),
        pytest.param("bytes=0-9-10", 100, None, id="three positions"),
        pytest.param("bytes=1_0-2_0", 100, None, id="underscores, which int() takes"),
        pytest.param("bytes=0x0-0xf", 100, None, id="hexadecimal"),
        pytest.param("bytes=\u00b2-\u00b3", 100, None, id="superscript digits"),
        pytest.param("bytes=\u0661-\u0662", 100, None, id="digits of another script, which int() takes"),
        pytest.param("bytes=0 -9", 100, None, id="a blank within a range"),
        pytest.param("bytes=0-9\x0b", 100, None, id="white space that is no blank"),
        pytest.param("bytes =0-9", 100, None, id="a blank before the equals sign"),
        pytest.param("bytes:0-9", 100, None, id="a colon"),
        pytest.param("items=0-9", 100, None, id="another unit"),
        pytest.param("kilobytes=0-9", 100, None, id="a unit that ends in ours"),
        pytest.param("bytes=0-9;5-6", 100, None, id="a semicolon"),
        pytest.param("bytes=0-9, bytes=20-29", 100, None, id="two fields that were joined"),
    ],
)
def test_which_bytes_a_field_asks_for(value: str, size: int, expected: list[tuple[int, int]] | None) -> None:
    assert positions(value, size) == expected


def test_as_many_ranges_as_allowed_are_answered_and_one_more_is_not() -> None:
    specs = [f"{start}-{start}" for start in range(0, 1000 * MAX_RANGES, 1000)]
    spans = wanted("bytes=" + ",".join(specs), 10**6)
    assert spans is not None
    assert len(spans) == MAX_RANGES
    assert wanted("bytes=" + ",".join([*specs, "-1"]), 10**6) is None


def test_what_is_unsatisfiable_counts_as_a_range() -> None:
    assert wanted("bytes=0-9," + ",".join(["200-"] * MAX_RANGES), 100) is None


def test_empty_elements_are_not_counted() -> None:
    assert positions("bytes=0-9" + "," * 10 * MAX_RANGES, 100) == [(0, 10)]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("bytes=" + "9" * 400_000 + "-", id="digits"),
        pytest.param("bytes=0-" + "0" * 400_000 + "x", id="zeros, and no number after all"),
        pytest.param("bytes=" + "," * 400_000, id="commas"),
        pytest.param("bytes=" + "-" * 400_000, id="dashes"),
        pytest.param("bytes=0-" + " " * 400_000 + "x", id="blanks"),
        pytest.param("bytes=" + "0-0," * 100_000, id="ranges"),
        pytest.param("bytes=0-0" + " ," * 200_000, id="empty elements"),
    ],
)
def test_long_values_take_no_time_that_grows_with_the_square(value: str) -> None:
    """Linear time is milliseconds, quadratic time is minutes; nothing of a machine's speed comes between them."""
    begun = time.process_time()
    spans = wanted(value, 100)
    assert time.process_time() - begun < 5
    assert spans in (None, (), (Span(0, 1),))


def test_how_content_range_is_written() -> None:
    assert content_range(Span(0, 10), 100) == "bytes 0-9/100"
    assert content_range(Span(99, 100), 100) == "bytes 99-99/100"
    assert unsatisfied(100) == "bytes */100"
    assert unsatisfied(0) == "bytes */0"


# --- a plain model: every byte by itself ---


def model(value: str, size: int) -> list[tuple[int, int]] | None:
    """Return what wanted() should, from the grammar and slices of all positions. For small sizes and short numbers."""
    matched = re.fullmatch(r"bytes=(.*)", value.strip(" \t"), re.IGNORECASE | re.ASCII | re.DOTALL)
    if not matched:
        return None
    asked = []
    for element in re.split(r"[ \t]*,[ \t]*", matched[1].strip(" \t")):
        if element == "":
            continue
        if re.fullmatch("[0-9]+-[0-9]+", element):
            first, last = element.split("-")
            if int(first) > int(last):
                return None
            asked.append(range(size)[int(first) : int(last) + 1])
        elif re.fullmatch("[0-9]+-", element):
            asked.append(range(size)[int(element[:-1]) :])
        elif re.fullmatch("-[0-9]+", element):
            asked.append(range(size)[int(element) :] if int(element) else range(0))
        else:
            return None
    if not asked or len(asked) > MAX_RANGES:
        return None
    asked = [part for part in asked if part]
    sent = sorted({position for part in asked for position in part})
    starts = sent[:1] + [there for here, there in pairwise(sent) if there - here > PART_OVERHEAD]
    ends = [here + 1 for here, there in pairwise(sent) if there - here > PART_OVERHEAD] + [p + 1 for p in sent[-1:]]
    runs = list(zip(starts, ends, strict=True))
    return runs if len(runs) < len(asked) else [(part.start, part.stop) for part in asked]


numbers = st.one_of(st.integers(0, 12), st.integers(0, 700), st.integers(0, 10**25)).map(str)
padded = st.tuples(st.sampled_from(["", "", "", "0", "000"]), numbers).map("".join)
fair = st.tuples(st.integers(0, 700), st.integers(0, 200)).map(lambda pair: f"{pair[0]}-{pair[0] + pair[1]}")
specs = st.one_of(
    fair,
    st.tuples(padded, padded).map("-".join),
    padded.map("{}-".format),
    padded.map("-{}".format),
    st.just(""),
)
separators = st.sampled_from([",", ", ", " ,\t", ",,", " , ,"])
fields = st.builds(
    lambda unit, separator, elements: unit + separator.join(elements),
    st.sampled_from(["bytes=", "bytes= ", "Bytes="]),
    separators,
    st.lists(specs, min_size=1, max_size=6),
)
near_fields = st.text("0123456789-, \t", max_size=30).map("bytes={}".format)
sizes = st.one_of(st.integers(0, 20), st.integers(0, 800))


@settings(FAST, max_examples=300)
@given(st.one_of(fields, near_fields, st.lists(fair, max_size=40).map(lambda some: "bytes=" + ",".join(some))), sizes)
@example("bytes=0-0,81-81", 100)
@example("bytes=0-0,80-80", 100)
@example("bytes=0-0,400-400,80-80", 500)
def test_a_field_asks_for_what_slicing_gives(value: str, size: int) -> None:
    assert positions(value, size) == model(value, size)


@settings(FAST, max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(b"bytes=".__add__),
        st.tuples(fields, st.binary(max_size=3), st.integers(0, 40)).map(
            lambda parts: parts[0][: parts[2]].encode() + parts[1] + parts[0][parts[2] :].encode()
        ),
    ),
    sizes,
)
def test_any_bytes_are_a_value_and_spans_are_within_the_file_and_apart(value: bytes, size: int) -> None:
    text = value.decode("latin-1")
    spans = wanted(text, size)
    assert (None if spans is None else [(span.start, span.end) for span in spans]) == model(text, size)
    for span in spans or ():
        assert 0 <= span.start < span.end <= size
    in_order = sorted(spans or (), key=lambda span: span.start)
    assert all(after.start - before.end >= PART_OVERHEAD for before, after in pairwise(in_order))


# --- several spans in one body ---


def body_of(multipart: Multipart, data: bytes) -> bytes:
    return b"".join(data[part.start : part.end] if isinstance(part, Span) else part for part in multipart.parts())


def test_a_body_of_two_spans_byte_for_byte() -> None:
    multipart = Multipart([Span(0, 2), Span(8, 10)], 10, "text/plain; charset=utf-8", "xyz")
    assert multipart.content_type == "multipart/byteranges; boundary=xyz"
    body = body_of(multipart, b"0123456789")
    assert body == (
        b"--xyz\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n"
        b"--xyz\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n"
        b"--xyz--\r\n"
    )
    assert multipart.length == len(body)


def test_a_representation_without_a_type_has_parts_without_one() -> None:
    multipart = Multipart([Span(0, 1), Span(9, 10)], 10, "", "xyz")
    body = body_of(multipart, b"0123456789")
    assert b"Content-Type" not in body
    assert body.startswith(b"--xyz\r\nContent-Range: bytes 0-0/10\r\n\r\n0\r\n--xyz\r\n")
    assert multipart.length == len(body)


def test_a_body_may_have_more_bytes_than_this_machine_can_count_in_a_sequence() -> None:
    # On a 32-bit machine, that is every file of more than 2 GiB.
    size = 4 * sys.maxsize
    spans = wanted(f"bytes=0-{2 * sys.maxsize - 1},-10", size)
    assert spans is not None
    assert [span.length for span in spans] == [2 * sys.maxsize, 10]
    assert Multipart(spans, size, "", "xyz").length > 2 * sys.maxsize


def test_whoever_empties_the_list_of_parts_has_a_list_of_their_own() -> None:
    multipart = Multipart([Span(0, 1), Span(9, 10)], 10, "", "xyz")
    multipart.parts().clear()
    assert multipart.parts()


def test_what_it_says_of_itself() -> None:
    multipart = Multipart([Span(0, 1), Span(9, 10)], 10, "", "xyz")
    assert repr(multipart) == f"<Multipart 2 spans, {multipart.length} bytes>"


@settings(FAST, max_examples=150)
@given(
    st.one_of(
        st.binary(max_size=700),
        st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b"--", b"--b", b"a", b"\xff", b"\0"]), max_size=700).map(
            b"".join
        ),
    ),
    fields,
)
def test_another_parser_gets_the_slices_back(data: bytes, value: str) -> None:
    spans = wanted(value, len(data))
    if not spans:
        return
    multipart = Multipart(spans, len(data), "application/octet-stream", BOUNDARY)
    body = body_of(multipart, data)
    assert len(body) == multipart.length
    assert body.endswith(f"--{BOUNDARY}--\r\n".encode())
    head = f"Content-Type: {multipart.content_type}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    assert not message.defects
    parts = list(message.iter_parts())
    assert len(parts) == len(spans)
    for part, span in zip(parts, spans, strict=True):
        assert not part.defects
        assert part["Content-Type"] == "application/octet-stream"
        assert part["Content-Range"] == f"bytes {span.start}-{span.end - 1}/{len(data)}"
        assert part.get_payload(decode=True) == data[span.start : span.end]
