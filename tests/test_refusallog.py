"""What the error log says of refusals and cuts, with a clock that is turned by hand."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve import refusals
from hardserve.ops.refusallog import MAX_CLIENTS, WINDOW_S, RefusalLog
from hardserve.refusals import Cut, Refusal

ALICE, BOB = "192.0.2.1", "2001:db8::2"
LATE, IDLE = refusals.HEADER_DEADLINE, refusals.FIRST_BYTE_DEADLINE
EVENTS = [value for value in vars(refusals).values() if isinstance(value, Refusal | Cut)]


class Written:
    """A RefusalLog, and the lines that it wrote since they were last taken."""

    def __init__(self, level: int = logging.DEBUG) -> None:
        self._lines: list[tuple[int, str]] = []
        self.log = RefusalLog(lambda level, text: self._lines.append((level, text)), level)

    def take(self) -> list[str]:
        return [text for _, text in self.take_with_levels()]

    def take_with_levels(self) -> list[tuple[int, str]]:
        lines, self._lines[:] = list(self._lines), []
        return lines


@pytest.fixture
def written() -> Written:
    return Written()


def test_the_first_is_logged_at_once_with_its_client(written: Written) -> None:
    written.log.add(LATE, ALICE, 1000.0)
    assert written.take() == ["1 request refused: header_deadline, 192.0.2.1"]
    assert written.log.wait_s(1000.0) is None, "there is nothing to wake up for"


def test_what_follows_is_summed_up_ten_seconds_later(written: Written) -> None:
    written.log.add(LATE, ALICE, 1000.0)
    written.take()
    for number in range(1204):
        written.log.add(LATE, f"192.0.2.{number % 17}", 1000.0 + number / 1000)
        assert written.take() == []
    assert written.log.wait_s(1002.0) == 8.0
    written.log.due(1009.9)
    assert written.take() == []
    written.log.due(1010.0)
    assert written.take() == ["1,204 requests refused: header_deadline, 17 clients, last 10 s"]
    assert written.log.wait_s(1010.0) is None


def test_while_it_goes_on_there_is_a_line_every_ten_seconds(written: Written) -> None:
    for second in range(31):
        written.log.add(LATE, ALICE, float(second))
        written.log.due(float(second))
    assert written.take() == [
        "1 request refused: header_deadline, 192.0.2.1",
        *["10 requests refused: header_deadline, 192.0.2.1, last 10 s"] * 3,
    ]


def test_after_ten_quiet_seconds_the_next_is_a_first_again(written: Written) -> None:
    written.log.add(LATE, ALICE, 0.0)
    written.log.add(LATE, ALICE, 1.0)
    written.log.due(10.0)
    written.take()
    written.log.add(LATE, BOB, 20.0)
    assert written.take() == ["1 request refused: header_deadline, 2001:db8::2"]


def test_a_quiet_time_shorter_than_that_is_none(written: Written) -> None:
    written.log.add(LATE, ALICE, 0.0)
    written.take()
    written.log.add(LATE, BOB, 9.9)
    assert written.take() == []
    assert written.log.wait_s(9.9) == pytest.approx(0.1)
    written.log.due(10.0)
    assert written.take() == ["1 request refused: header_deadline, 2001:db8::2, last 10 s"]


def test_what_comes_when_a_summary_is_overdue_is_part_of_it(written: Written) -> None:
    written.log.add(LATE, ALICE, 0.0)
    written.log.add(LATE, ALICE, 1.0)
    written.take()
    written.log.add(LATE, ALICE, 14.0)
    assert written.take() == []
    assert written.log.wait_s(14.0) == 0.0
    written.log.due(14.0)
    assert written.take() == ["2 requests refused: header_deadline, 192.0.2.1, last 14 s"]


def test_names_are_counted_apart(written: Written) -> None:
    written.log.add(LATE, ALICE, 0.0)
    written.log.add(IDLE, ALICE, 5.0)
    assert len(written.take()) == 2, "the first of each"
    for _ in range(12):
        written.log.add(IDLE, ALICE, 6.0)
    assert written.log.wait_s(6.0) == 9.0
    written.log.add(LATE, BOB, 7.0)
    assert written.log.wait_s(7.0) == 3.0
    written.log.due(10.0)
    assert written.take() == ["1 request refused: header_deadline, 2001:db8::2, last 10 s"]
    assert written.log.wait_s(10.0) == 5.0
    written.log.due(15.0)
    assert written.take() == ["12 connections closed: first_byte_deadline, 192.0.2.1, last 10 s"]


def test_each_name_is_summed_up_in_its_own_time(written: Written) -> None:
    events = (LATE, IDLE, refusals.BODY_TOO_SLOW, refusals.QUEUE_FULL)
    for second, event in enumerate(events):
        written.log.add(event, ALICE, float(second))
    for event in reversed(events):
        written.log.add(event, ALICE, 5.0)
    written.take()
    for second, event in enumerate(events, 10):
        assert written.log.wait_s(second - 0.5) == 0.5
        written.log.due(float(second))
        [line] = written.take()
        assert event.name in line
    assert written.log.wait_s(14.0) is None


SAID = {
    "a request": (refusals.BODY_TOO_LARGE, "1 request refused: body_too_large, 192.0.2.1"),
    "a connection that was not let in": (
        refusals.CLIENT_CONNECTIONS,
        "1 connection refused: client_connections, 192.0.2.1",
    ),
    "one for which there was no room": (
        refusals.CONNECTIONS_FULL,
        "1 connection refused: connections_full, 192.0.2.1",
    ),
    "a connection that was ended": (refusals.MADE_ROOM, "1 connection closed: made_room, 192.0.2.1"),
}


@pytest.mark.parametrize(("event", "line"), SAID.values(), ids=SAID)
def test_it_says_what_was_refused(written: Written, event: Refusal | Cut, line: str) -> None:
    written.log.add(event, ALICE, 0.0)
    assert written.take() == [line]
    written.log.add(event, ALICE, 1.0)
    written.log.add(event, BOB, 2.0)
    written.log.due(10.0)
    plural = line.replace("1 request ", "2 requests ").replace("1 connection ", "2 connections ")
    assert written.take() == [plural.replace("192.0.2.1", "2 clients, last 10 s")]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_a_line_has_the_level_of_its_event_and_its_name_as_in_the_access_log(
    written: Written, event: Refusal | Cut
) -> None:
    written.log.add(event, ALICE, 0.0)
    written.log.add(event, ALICE, 1.0)
    written.log.flush(2.0)
    lines = written.take_with_levels()
    assert [level for level, _ in lines] == [event.level] * 2
    assert all(f": {event.name}, " in text for _, text in lines)


def test_what_the_log_does_not_take_is_only_counted() -> None:
    written = Written(logging.INFO)
    for number in range(5):
        written.log.add(refusals.KEEP_ALIVE_DEADLINE, ALICE, float(number))
    assert written.log.wait_s(5.0) is None
    written.log.due(20.0)
    written.log.flush(30.0)
    assert written.take() == []
    assert written.log.totals() == {"keep_alive_deadline": 5}


@pytest.mark.parametrize(("clients", "told"), [(MAX_CLIENTS - 1, "999"), (MAX_CLIENTS, "1,000+"), (5000, "1,000+")])
def test_clients_are_told_apart_up_to_a_thousand(written: Written, clients: int, told: str) -> None:
    written.log.add(LATE, ALICE, 0.0)
    written.take()
    for number in range(clients):
        written.log.add(LATE, f"10.0.{number >> 8}.{number & 255}", 1.0)
        assert len(written.log._tallies[LATE.name].clients) <= MAX_CLIENTS
    written.log.due(10.0)
    assert written.take() == [f"{clients:,} requests refused: header_deadline, {told} clients, last 10 s"]
    assert not written.log._tallies[LATE.name].clients


def test_at_the_end_what_is_left_is_logged(written: Written) -> None:
    written.log.add(LATE, ALICE, 0.0)
    written.log.add(LATE, ALICE, 1.0)
    written.log.add(IDLE, ALICE, 3.0)
    written.log.add(IDLE, ALICE, 3.1)
    written.take()
    written.log.flush(3.2)
    assert written.take() == [
        "1 request refused: header_deadline, 192.0.2.1, last 3 s",
        "1 connection closed: first_byte_deadline, 192.0.2.1, last 1 s",
    ]
    assert written.log.wait_s(3.2) is None
    written.log.flush(3.3)
    assert written.take() == []


def test_totals_are_since_the_start(written: Written) -> None:
    assert written.log.totals() == {}
    for number in range(30):
        written.log.add(LATE, ALICE, float(number))
        written.log.due(float(number))
    written.log.add(IDLE, ALICE, 30.0)
    assert written.log.totals() == {"header_deadline": 30, "first_byte_deadline": 1}


def test_it_says_in_a_line_what_it_holds(written: Written) -> None:
    for number in range(3):
        written.log.add(LATE, ALICE, float(number))
    assert repr(written.log) == "<RefusalLog 2 events to sum up, 1 names>"


LINE = re.compile(r"([0-9,]+) (?:request|connection)s? (?:refused|closed): (\w+), .*?(?:, last (\d+) s)?")


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1 / 64, 0.5, 3.0, 10 - 1 / 64, 10.0, 25.0]),
            st.sampled_from([*EVENTS[:3], *EVENTS[-3:]]),
            st.sampled_from([ALICE, BOB]),
        ),
        max_size=60,
    )
)
def test_every_event_is_in_one_line_and_no_name_has_two_lines_in_ten_seconds(
    steps: list[tuple[float, Refusal | Cut, str]],
) -> None:
    """As the loop uses it: it sleeps no longer than `wait_s` says, and calls `due` when that has passed."""
    now = 0.0
    counted: Counter[str] = Counter()
    lines: dict[str, list[float]] = defaultdict(list)

    def note(level: int, text: str) -> None:
        match = LINE.fullmatch(text)
        assert match, text
        assert not match[3] or int(match[3]) <= WINDOW_S, "a summary is late"
        counted[match[2]] += int(match[1].replace(",", ""))
        lines[match[2]].append(now)

    log = RefusalLog(note)
    for pause, event, client in steps:
        end = now + pause
        while (wait := log.wait_s(now)) is not None and now + wait <= end:
            before = sum(map(len, lines.values()))
            now += wait
            log.due(now)
            assert sum(map(len, lines.values())) > before, "woken up for nothing"
        now = end
        log.add(event, client, now)
        wait = log.wait_s(now)
        assert wait is None or wait <= WINDOW_S
    for times in lines.values():
        assert all(later - earlier >= WINDOW_S for earlier, later in pairwise(times))
    log.flush(now)
    assert counted == Counter(event.name for _, event, _ in steps) == log.totals()
