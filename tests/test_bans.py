"""Who is banned, when, for how long, and what is forgotten of it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.edge.bans import MAX_CLIENTS, Ban, Bans

START = 1000.0
ALICE, BOB, CAROL = "192.0.2.1", "198.51.100.2", "2001:db8:1:2::/64"
WITHIN_S, FOR_S, CEILING_S = 10.0, 60.0, 300.0


def make_bans(after: int = 2, *, max_clients: int = MAX_CLIENTS) -> Bans:
    return Bans(after, WITHIN_S, FOR_S, CEILING_S, max_clients=max_clients)


def ban(bans: Bans, client: str, now: float) -> None:
    """Have `client` commit as many offences as it takes."""
    outcomes = [bans.offence(client, now) for _ in range(3)]
    assert outcomes == [False, False, True]
    assert bans.banned(client, now)


# --- how many, and how fast ---


@pytest.mark.parametrize(
    ("after", "times", "expected"),
    [
        pytest.param(2, [0, 0], [], id="as many as are allowed"),
        pytest.param(2, [0, 0, 0], [2], id="one more, at once"),
        pytest.param(2, [0, 5, 9.9], [2], id="one more, just in time"),
        pytest.param(2, [0, 5, 10], [], id="one more, just too late, opens the next window"),
        pytest.param(2, [0, 9, 10, 11], [], id="two in each of two windows"),
        pytest.param(2, [0, 9, 10, 11, 12], [4], id="and a third one in the second"),
        pytest.param(2, [0, 6, 12, 18, 24, 30], [], id="slowly, for ever"),
        pytest.param(2, [0, 0, 0, 0, 0, 0], [2], id="further ones during the ban"),
        pytest.param(2, [0, 0, 0, 60, 60], [2], id="after the ban counting starts anew"),
        pytest.param(2, [0, 0, 0, 60, 60, 60], [2, 5], id="and leads to the next one"),
        pytest.param(1, [0, 0], [1], id="one is allowed"),
        pytest.param(0, [0] * 100, [], id="zero is never"),
    ],
)
def test_more_than_so_many_within_so_long_are_a_ban(after: int, times: Sequence[float], expected: list[int]) -> None:
    bans = make_bans(after)
    outcomes = [bans.offence(ALICE, START + time) for time in times]
    assert [index for index, banned in enumerate(outcomes) if banned] == expected
    assert not bans.banned(BOB, START), "nobody else's business"


def test_nobody_is_never_banned() -> None:
    bans = make_bans()
    assert not any(bans.offence("", START) for _ in range(100))
    assert not bans.banned("", START)
    assert len(bans) == 0


def test_each_client_is_counted_by_itself() -> None:
    bans = make_bans()
    for client in (ALICE, BOB, CAROL, ALICE, BOB, CAROL):
        assert not bans.offence(client, START)
    assert bans.offence(BOB, START)
    assert [bans.banned(client, START) for client in (ALICE, BOB, CAROL)] == [False, True, False]


# Multiples of a 64th are exact as floats, so that the bounds need no leniency.
TICKS = 64


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    after=st.integers(1, 5),
    within=st.integers(1, 40),
    for_=st.integers(1, 60),
    gaps=st.lists(st.integers(0, 25), max_size=80),
)
def test_the_two_bounds_hold_for_any_times(after: int, within: int, for_: int, gaps: list[int]) -> None:
    """Against every offence that was committed while free: never with too few, always with enough."""
    bans = Bans(after, within / TICKS, for_ / TICKS, for_ / TICKS)
    free: list[Fraction] = []  # since the last ban ended
    until, ticks = Fraction(-1), 0
    for gap in gaps:
        ticks += gap
        now = Fraction(ticks, TICKS)
        is_free = now >= until
        assert bans.banned(ALICE, START + float(now)) is not is_free
        outcome = bans.offence(ALICE, START + float(now))
        if not is_free:
            assert not outcome
            continue
        free.append(now)
        if outcome:
            assert sum(now - time < Fraction(within, TICKS) for time in free) >= after + 1
            until, free = now + Fraction(for_, TICKS), []
        assert sum(now - time <= Fraction(within, TICKS) for time in free) < 2 * after + 1


# --- how long ---


def test_a_ban_ends() -> None:
    bans = make_bans()
    ban(bans, ALICE, START)
    assert bans.banned(ALICE, START + FOR_S - 0.001)
    assert not bans.banned(ALICE, START + FOR_S)


def test_each_ban_has_its_own_end() -> None:
    bans = make_bans()
    ban(bans, ALICE, START)
    ban(bans, ALICE, START + FOR_S)
    ban(bans, BOB, START + FOR_S)  # the shorter one, last
    for later, expected in [(59, (True, True)), (60, (True, False)), (119, (True, False)), (120, (False, False))]:
        now = START + FOR_S + later
        assert (bans.banned(ALICE, now), bans.banned(BOB, now)) == expected


def test_each_further_ban_is_twice_as_long_up_to_the_ceiling() -> None:
    bans = make_bans()
    now, lengths = START, []
    for _ in range(5):
        ban(bans, ALICE, now)
        lengths.append(bans.list(now)[0].remaining_s)
        now += lengths[-1]
        assert not bans.banned(ALICE, now)
    assert lengths == [60.0, 120.0, 240.0, CEILING_S, CEILING_S]


def test_the_first_ban_is_no_longer_than_the_ceiling() -> None:
    bans = Bans(1, 10.0, 60.0, 5.0)
    assert [bans.offence(ALICE, START) for _ in range(2)] == [False, True]
    assert not bans.banned(ALICE, START + 5.0)


@pytest.mark.parametrize(
    ("free_s", "expected_s"),
    [
        pytest.param(CEILING_S - 0.5, 2 * FOR_S, id="a moment before, it is remembered"),
        pytest.param(CEILING_S, FOR_S, id="then it is as good as new"),
    ],
)
def test_a_client_is_forgiven_after_it_was_free_for_the_ceiling(free_s: float, expected_s: float) -> None:
    bans = make_bans()
    ban(bans, ALICE, START)
    again = START + FOR_S + free_s
    ban(bans, ALICE, again)
    [listed] = bans.list(again)
    assert listed.remaining_s == expected_s
    assert (listed.times, listed.offences) == ((2, 6) if expected_s > FOR_S else (1, 3))


def test_offences_during_a_ban_neither_lengthen_it_nor_lead_to_the_next() -> None:
    bans = make_bans()
    ban(bans, ALICE, START)
    for number in range(100):
        assert not bans.offence(ALICE, START + number / 2)
    assert bans.list(START + 59) == [Ban(ALICE, 1.0, 1, 103)]
    assert not bans.banned(ALICE, START + FOR_S)
    assert [bans.offence(ALICE, START + FOR_S) for _ in range(3)] == [False, False, True]


# --- listing and lifting ---


def test_the_list_has_the_bans_that_are_on_and_the_longest_first() -> None:
    bans = make_bans()
    ban(bans, ALICE, START)
    ban(bans, BOB, START + 20)
    ban(bans, ALICE, START + 60)
    assert not bans.offence(CAROL, START + 61)
    assert bans.list(START + 61) == [Ban(ALICE, 119.0, 2, 6), Ban(BOB, 19.0, 1, 3)]
    assert bans.list(START + 80) == [Ban(ALICE, 100.0, 2, 6)]
    assert bans.list(START + 180) == []


def test_a_lifted_ban_is_forgotten_with_all_that_led_to_it() -> None:
    bans = make_bans()
    ban(bans, ALICE, START)
    ban(bans, BOB, START)
    assert bans.lift(ALICE)
    assert [bans.banned(client, START) for client in (ALICE, BOB)] == [False, True]
    ban(bans, ALICE, START + 1)
    assert bans.list(START + 1)[0] == Ban(ALICE, FOR_S, 1, 3)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param((), True, id="of one that is over, without the time"),
        pytest.param((START + FOR_S,), False, id="of one that is over"),
        pytest.param((START + FOR_S - 1,), True, id="of one that is on"),
    ],
)
def test_lifting_says_whether_there_was_a_ban(now: tuple[float, ...], expected: bool) -> None:
    bans = make_bans()
    assert not bans.lift(ALICE, *now)
    ban(bans, ALICE, START)
    assert bans.lift(ALICE, *now) is expected
    assert not bans.lift(ALICE, *now)
    assert len(bans) == 0


def test_lifting_forgets_what_was_counted() -> None:
    bans = make_bans()
    assert [bans.offence(ALICE, START) for _ in range(2)] == [False, False]
    assert not bans.lift(ALICE, START)
    assert [bans.offence(ALICE, START) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (0, "192.0.2.1 is not banned"),
        (1, "192.0.2.1 is banned for 60s: refused more than 2 times within 10s"),
        (2, "192.0.2.1 is banned for 120s, for the 2nd time: refused more than 2 times within 10s"),
        (3, "192.0.2.1 is banned for 240s, for the 3rd time: refused more than 2 times within 10s"),
        (11, "192.0.2.1 is banned for 300s, for the 11th time: refused more than 2 times within 10s"),
        (22, "192.0.2.1 is banned for 300s, for the 22nd time: refused more than 2 times within 10s"),
    ],
)
def test_a_line_for_the_log(times: int, expected: str) -> None:
    bans = make_bans()
    now = START
    for number in range(times):
        now = START + number * CEILING_S
        ban(bans, ALICE, now)
    assert bans.describe(ALICE, now + 0.001) == expected
    assert bans.describe(ALICE, now + CEILING_S) == "192.0.2.1 is not banned"


# --- what is forgotten ---


def offend_once(bans: Bans, count: int, now: float, *, prefix: str = "203.0.113") -> None:
    """Have so many clients that were never seen commit one offence each."""
    for number in range(count):
        assert not bans.offence(f"{prefix}.{number}", now)


def test_who_is_counted_is_forgotten_when_the_window_is_over() -> None:
    bans = make_bans()
    offend_once(bans, 1000, START)
    assert len(bans) == 1000
    offend_once(bans, 600, START + WITHIN_S, prefix="192.0.2")
    assert 600 <= len(bans) < 1000, "the table shrinks faster than it grows"
    offend_once(bans, 20_000, START + WITHIN_S, prefix="198.51.100")
    assert len(bans) == 20_600


def test_at_the_bound_the_one_goes_whose_last_offence_is_the_longest_ago() -> None:
    bans = make_bans(max_clients=4)
    for client in (ALICE, BOB, ALICE, CAROL):  # two are counted: BOB has to go
        assert not bans.offence(client, START)
    assert len(bans) == 2
    assert bans.offence(ALICE, START), "she is remembered"
    assert [bans.offence(BOB, START) for _ in range(3)] == [False, False, True]


def test_who_keeps_on_is_banned_in_a_flood_of_others() -> None:
    bans = make_bans(after=50, max_clients=64)
    outcomes = []
    for number in range(51):
        outcomes.append(bans.offence(ALICE, START))
        offend_once(bans, 31, START, prefix=f"{number}.113")
    assert outcomes == [False] * 50 + [True]


def test_new_offenders_cost_no_ban_and_no_memory_of_one() -> None:
    bans = make_bans(max_clients=64)
    ban(bans, BOB, START - FOR_S)
    ban(bans, ALICE, START)
    offend_once(bans, 10_000, START)
    assert bans.banned(ALICE, START)
    ban(bans, BOB, START)
    assert bans.list(START)[0] == Ban(BOB, 2 * FOR_S, 2, 6)


def test_at_the_bound_a_new_ban_costs_the_one_that_ended_first() -> None:
    bans = make_bans(max_clients=6)
    ban(bans, ALICE, START)
    ban(bans, BOB, START + 1)
    ban(bans, CAROL, START + FOR_S)  # ALICE's is over, BOB's is not
    ban(bans, "203.0.113.1", START + FOR_S)
    assert {listed.client for listed in bans.list(START + FOR_S)} == {BOB, CAROL, "203.0.113.1"}
    assert len(bans) == 3


def test_when_all_are_on_a_new_ban_costs_the_one_that_will_end_first() -> None:
    bans = make_bans(max_clients=4)
    ban(bans, ALICE, START)
    ban(bans, ALICE, START + FOR_S)
    ban(bans, BOB, START + FOR_S)
    ban(bans, CAROL, START + FOR_S)
    assert [listed.client for listed in bans.list(START + FOR_S)] == [ALICE, CAROL]
    assert not bans.banned(BOB, START + FOR_S)


def test_a_repeat_costs_nobody_elses_ban() -> None:
    bans = make_bans(max_clients=4)
    ban(bans, ALICE, START)
    ban(bans, BOB, START)
    ban(bans, ALICE, START + FOR_S)
    ban(bans, BOB, START + FOR_S)
    assert [listed.times for listed in bans.list(START + FOR_S)] == [2, 2]


def test_who_is_as_good_as_new_is_forgotten_when_another_is_banned() -> None:
    bans = make_bans(max_clients=200)
    for number in range(100):
        ban(bans, f"203.0.113.{number}", START)
    assert len(bans) == 100
    ban(bans, ALICE, START + FOR_S + CEILING_S)
    assert len(bans) == 1


def test_a_flood_of_addresses_is_bounded() -> None:
    bans = make_bans(1, max_clients=4096)
    for number in range(10_000):
        client = f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64"
        assert [bans.offence(client, START) for _ in range(2)] == [False, True]
        assert not bans.offence(f"192.0.2.{number}", START)
    assert 3000 < len(bans) <= 4096
    assert 1500 < len(bans.list(START)) <= 2048


def test_the_smallest_table_there_is() -> None:
    bans = make_bans(max_clients=1)
    for client in (ALICE, BOB, ALICE):
        ban(bans, client, START)
        assert [listed.client for listed in bans.list(START)] == [client]


def test_repr_says_how_many_there_are() -> None:
    bans = make_bans()
    ban(bans, ALICE, START)
    assert not bans.offence(BOB, START)
    assert repr(bans) == "<Bans 1 clients counted, 1 banned or remembered>"
