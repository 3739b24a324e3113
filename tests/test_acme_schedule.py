"""When a certificate is ordered, and how long nothing is: values in, values out, no clock but the one passed in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.tls.acme import schedule
from hardserve.tls.acme.schedule import (
    ASK_LATEST,
    DAY,
    HOUR,
    LONGEST_RETRY_AFTER,
    Ask,
    Held,
    Order,
    Schedule,
    Wait,
    Wanted,
    next_step,
)
from hardserve.tls.acme.settings import Pace

CA = "https://ca.example/dir"
WANTED = Wanted(("a.example", "b.example"), CA)
NOW = 1_800_000_000.0
PACE = Pace()
HELD = Held("v1", WANTED.names, CA, NOW - 10 * DAY, NOW + 80 * DAY, identifier="x.y")
ASKED = Schedule(asked="v1", ask_at=NOW + 6 * HOUR)
LATE = NOW + 60 * DAY  # with less than a third left


@pytest.mark.parametrize(
    ("held", "kept", "now", "expected"),
    [
        pytest.param(None, Schedule(), NOW, Order("there is none"), id="nothing is held"),
        pytest.param(HELD, Schedule(), NOW, Ask(), id="what is new is asked about at once"),
        pytest.param(HELD, replace(ASKED, asked="v0"), NOW, Ask(), id="what was said of another is not about this"),
        pytest.param(HELD, ASKED, NOW, Wait(NOW + 6 * HOUR), id="the CA is asked again when it said"),
        pytest.param(HELD, ASKED, NOW + 6 * HOUR, Ask(), id="and then it is"),
        pytest.param(HELD, ASKED, LATE, Order("a third of its lifetime is left"), id="a third is left"),
        pytest.param(HELD, ASKED, NOW + 80 * DAY - 1, Order("a third of its lifetime is left"), id="its last second"),
        pytest.param(HELD, ASKED, NOW + 80 * DAY, Order("it has expired"), id="it has expired"),
        pytest.param(
            HELD,
            replace(ASKED, window=(NOW + 90 * DAY, NOW + 91 * DAY)),
            NOW + 81 * DAY,
            Order("it has expired"),
            id="it has expired, whatever the CA suggests",
        ),
        pytest.param(
            replace(HELD, names=("a.example",)),
            ASKED,
            NOW,
            Order("the one there is, is not for b.example"),
            id="a name is missing",
        ),
        pytest.param(
            replace(HELD, names=("b.example", "c.example", "a.example")),
            ASKED,
            NOW,
            Wait(NOW + 6 * HOUR),
            id="a name too many waits for the renewal, and the order of names means nothing",
        ),
        pytest.param(
            replace(HELD, directory="https://other.example"),
            ASKED,
            NOW,
            Order("another CA was chosen"),
            id="another CA",
        ),
        pytest.param(
            HELD,
            replace(ASKED, window=(NOW - DAY, NOW - 1)),
            NOW,
            Order("the CA suggests it"),
            id="a window in the past is now, long before a third is left",
        ),
        pytest.param(
            HELD,
            replace(ASKED, ask_at=LATE + DAY, window=(LATE + 1, LATE + 2)),
            LATE,
            Wait(LATE + 1 + schedule.fraction("v1")),
            id="a window later than a third is kept to",
        ),
        pytest.param(
            HELD,
            replace(ASKED, window=(NOW + 800 * DAY, NOW + 900 * DAY)),
            HELD.not_after - 9 * DAY,
            Order("the CA suggests it"),
            id="but never until it has nearly expired",
        ),
        pytest.param(
            HELD,
            replace(ASKED, asked="v0", window=(NOW - DAY, NOW - 1)),
            NOW,
            Ask(),
            id="a window for another certificate counts for nothing",
        ),
        pytest.param(
            None, Schedule(attempted=NOW - 1, retry_at=NOW + 9), NOW, Wait(NOW + 9), id="after a failure, it waits"
        ),
        pytest.param(
            None,
            Schedule(attempted=NOW - 1, retry_at=NOW + 9, ca_until=NOW + 99),
            NOW,
            Wait(NOW + 99),
            id="and longer if the CA wants it",
        ),
        pytest.param(
            HELD,
            replace(ASKED, attempted=LATE, retry_at=LATE + 9, ask_at=0),
            LATE,
            Wait(LATE + 9),
            id="while it is due, the CA is not asked when",
        ),
        pytest.param(replace(HELD, identifier=""), Schedule(), NOW, None, id="without an identifier, nobody is asked"),
    ],
)  # fmt: skip
def test_what_to_do(held: Held | None, kept: Schedule, now: float, expected: object) -> None:
    step = next_step(WANTED, held, kept, now)
    if expected is None:
        assert isinstance(step, Wait)
        assert NOW + 47 * DAY <= step.until <= NOW + 50 * DAY
    else:
        assert step == expected


def test_whoever_forces_it_does_not_wait_for_us_but_for_the_ca() -> None:
    failing = Schedule(attempted=NOW - 1, retry_at=NOW + HOUR)
    assert next_step(WANTED, HELD, failing, NOW, forced=True) == Order("a new one was asked for")
    limited = replace(failing, ca_until=NOW + 60)
    assert next_step(WANTED, HELD, limited, NOW, forced=True) == Wait(NOW + 60)
    assert next_step(WANTED, None, limited, NOW, forced=True) == Wait(NOW + 60)


@pytest.mark.parametrize(
    "kept",
    [
        Schedule(attempted=NOW + DAY, retry_at=NOW + DAY + 9),
        Schedule(attempted=NOW + DAY, retry_at=NOW + DAY + 9, ca_until=NOW + 2 * DAY),
        Schedule(attempted=NOW - 1, ca_until=NOW + LONGEST_RETRY_AFTER + 1),
    ],
    ids=["our patience", "the CA's", "what no CA may have asked for"],
)
def test_a_clock_that_went_back_makes_nobody_wait_for_what_was_noted_before(kept: Schedule) -> None:
    assert next_step(WANTED, None, kept, NOW) == Order("there is none")


def test_a_clock_that_went_back_does_not_keep_the_ca_from_being_asked() -> None:
    assert next_step(WANTED, HELD, replace(ASKED, ask_at=NOW + 30 * DAY), NOW) == Ask()


def test_before_the_clock_is_right_what_is_held_is_kept() -> None:
    assert isinstance(next_step(WANTED, HELD, Schedule(asked="v1"), 100.0), Ask | Wait)


# Jitter.


@given(version=st.text(max_size=40), lifetime=st.floats(120.0, 1000 * DAY), start=st.floats(0, 4e9))
def test_a_renewal_is_at_most_a_thirtieth_earlier_than_a_third_and_never_later(
    version: str, lifetime: float, start: float
) -> None:
    held = Held(version, WANTED.names, CA, start, start + lifetime)
    why, due = schedule.due_at(WANTED, held, Schedule(), start)
    left = (held.not_after - due) / held.lifetime
    assert 1 / 3 - 1e-5 <= left <= 1 / 3 + 1 / 30 + 1e-5
    assert (why, due) == schedule.due_at(WANTED, held, Schedule(failures=3), start)


def test_certificates_of_the_same_hour_are_not_renewed_at_the_same_hour() -> None:
    held = [replace(HELD, version=str(number)) for number in range(200)]
    due = {round(schedule.due_at(WANTED, each, Schedule(), NOW)[1] / HOUR) for each in held}
    assert len(due) > 60


@given(version=st.text(max_size=40), start=st.floats(-10, 60), length=st.floats(0.01, 30))
def test_the_moment_in_a_window_is_inside_it_and_always_the_same(version: str, start: float, length: float) -> None:
    held = replace(HELD, version=version)
    window = (NOW + start * DAY, NOW + (start + length) * DAY)
    kept = Schedule(asked=version, window=window)
    _, due = schedule.due_at(WANTED, held, kept, NOW)
    latest, earliest = held.not_after - held.lifetime / 10, held.not_before + DAY
    assert max(earliest, min(window[0], latest)) <= due <= max(earliest, min(window[1], latest))


DAYS = st.floats(-200, 400)


@given(
    windows=st.lists(st.none() | st.tuples(DAYS, DAYS), min_size=1, max_size=5),
    lifetime=st.floats(60.0, 400 * DAY),
    backdated=st.floats(0, 0.99),
    clock=st.floats(-DAY, DAY),
)
def test_orders_are_bounded_whatever_windows_and_lifetimes_a_ca_says(
    windows: list[tuple[float, float] | None], lifetime: float, backdated: float, clock: float
) -> None:
    """Nobody may have us order again and again; not by a clock that was set either, which is once."""
    now, kept, held, orders = NOW + clock, Schedule(), None, []
    left = lifetime * (1 - backdated)
    for step_number in range(60):
        step = next_step(WANTED, held, kept, now)
        if isinstance(step, Order):
            orders.append(now)
            held = Held(f"v{len(orders)}", WANTED.names, CA, now + left - lifetime, now + left, "x.y", taken=now)
            kept = schedule.succeeded(kept, now)
            now = NOW if len(orders) == 1 else now
        elif isinstance(step, Ask):
            assert held is not None
            said = windows[step_number % len(windows)]
            window = None if said is None else (now + said[0] * DAY, now + said[1] * DAY)
            kept = schedule.asked(kept, held, window, None, now)
        else:
            assert step.until > now
            now = step.until
    pauses = [later - earlier for earlier, later in pairwise(orders[1:])]
    assert all(pause >= max(60.0, min(DAY, left / 6)) - 1e-3 for pause in pauses)


@pytest.mark.parametrize(
    ("taken", "now", "expected"),
    [
        pytest.param(NOW - HOUR, NOW, NOW + 23 * HOUR, id="what is from an hour ago is kept for a day"),
        pytest.param(NOW, NOW + DAY, Order("the CA suggests it"), id="and no longer"),
        pytest.param(0.0, NOW + HOUR, Order("the CA suggests it"), id="it is not known when it was put in place"),
        pytest.param(NOW + 2 * DAY, NOW, Order("the CA suggests it"), id="by a clock that was wrong"),
    ],
)
def test_a_window_that_has_passed_is_no_reason_to_replace_what_has_just_come(
    taken: float, now: float, expected: Order | float
) -> None:
    held = replace(HELD, taken=taken)
    kept = Schedule(asked="v1", ask_at=now + DAY, window=(NOW - 9 * DAY, NOW - 8 * DAY))
    assert next_step(WANTED, held, kept, now) == (Wait(expected) if isinstance(expected, float) else expected)
    assert next_step(WANTED, held, kept, now, forced=True) == Order("a new one was asked for")
    refused = replace(kept, failures=1, attempted=now, retry_at=now + 9)
    if isinstance(expected, Order):  # what has failed is tried again as everything else is
        assert next_step(WANTED, held, refused, now) == Wait(now + 9)


def test_what_lives_for_an_hour_settles_in_minutes() -> None:
    held = replace(HELD, not_before=NOW - HOUR, not_after=NOW + HOUR, taken=NOW)
    kept = Schedule(asked="v1", ask_at=NOW + DAY, window=(NOW - 9, NOW - 8))
    assert next_step(WANTED, held, kept, NOW) == Wait(NOW + 600)


# What is remembered.


KINDS = st.sampled_from(["unreachable", "refused", "unproven", "misconfigured"])


@given(kind=KINDS, failures=st.integers(1, 10_000))
def test_each_failure_waits_at_least_as_long_as_the_one_before_and_never_for_ever(
    kind: schedule.Kind, failures: int
) -> None:
    pause = schedule.backoff(kind, failures, PACE)
    assert PACE.unreachable <= pause <= PACE.longest
    assert schedule.backoff(kind, failures + 1, PACE) == min(2 * pause, PACE.longest)


def test_a_name_that_cannot_be_proven_is_tried_less_than_five_times_in_any_hour() -> None:
    now, kept, attempts = NOW, Schedule(), []
    for _ in range(20):
        attempts.append(now)
        kept = schedule.failed(kept, "unproven", "no", None, now, 0.0, PACE)
        now = kept.retry_at
    assert all(sum(start <= at < start + HOUR for at in attempts) < 5 for start in attempts)
    assert attempts[-1] - attempts[-2] == PACE.longest


@given(
    kind=KINDS,
    failures=st.integers(0, 50),
    retry_after=st.none() | st.floats(-1e9, 1e12),
    chance=st.floats(0, 1),
    forced=st.booleans(),
    later=st.floats(0, 30 * DAY),
    held=st.sampled_from([None, HELD]),
)
def test_after_a_failure_the_next_step_is_in_the_future_and_not_for_ever(
    kind: schedule.Kind, failures: int, retry_after: float | None, chance: float, forced: bool, later: float,
    held: Held | None,
) -> None:  # fmt: skip
    kept = schedule.failed(Schedule(failures=failures), kind, "no", retry_after, NOW, chance, PACE)
    assert kept.failures == failures + 1
    blocked = schedule.blocked_until(kept, NOW)
    assert NOW < blocked <= NOW + max(PACE.longest * 1.5, LONGEST_RETRY_AFTER)
    if retry_after is not None and retry_after > 0:
        asked = 0.0 if kind == "unreachable" else NOW + min(retry_after, LONGEST_RETRY_AFTER)
        assert schedule.blocked_until(kept, NOW, forced=True) == asked
    step = next_step(WANTED, held, kept, NOW + later, forced=forced)
    if isinstance(step, Wait):
        assert step.until > NOW + later  # else the thread would turn in circles
    if isinstance(step, Order) and not forced:
        assert NOW + later >= blocked


WEEK = 7 * DAY
SIX_DAYS = replace(HELD, not_before=NOW - 4 * DAY, not_after=NOW + 2 * DAY)


@pytest.mark.parametrize(
    ("kind", "held", "retry_after", "waits", "forced"),
    [
        pytest.param("unreachable", HELD, WEEK, PACE.longest, 0.0, id="nobody there is a guess, which is cut short"),
        pytest.param("unreachable", None, 600.0, 600.0, 0.0, id="and else believed"),
        pytest.param("unreachable", None, 1.0, PACE.unreachable, 0.0, id="but no reason to come sooner"),
        pytest.param("refused", None, WEEK, WEEK, WEEK, id="a limit is kept to"),
        pytest.param("refused", HELD, 2 * WEEK, WEEK, WEEK, id="up to a week"),
        pytest.param("refused", SIX_DAYS, WEEK, 1.4 * DAY, 1.4 * DAY, id="while what is served can afford it"),
        pytest.param(
            "refused",
            replace(SIX_DAYS, not_after=NOW + HOUR),
            WEEK,
            PACE.longest,
            PACE.longest,
            id="at its end it is asked a few times a day",
        ),
        pytest.param("refused", replace(HELD, not_after=NOW + DAY), HOUR, HOUR, HOUR, id="an hour is an hour"),
    ],
)
def test_how_long_a_ca_may_ask_us_to_wait(
    kind: schedule.Kind, held: Held | None, retry_after: float, waits: float, forced: float
) -> None:
    kept = schedule.failed(Schedule(), kind, "no", retry_after, NOW, 0.0, PACE, held)
    assert schedule.blocked_until(kept, NOW) == pytest.approx(NOW + waits)
    assert max(0.0, schedule.blocked_until(kept, NOW, forced=True) - NOW) == pytest.approx(forced)


@given(
    window=st.none() | st.tuples(st.floats(0, 4e9), st.floats(0, 4e9)),
    retry_after=st.none() | st.floats(-10, 1e9),
    known=st.none() | st.just((NOW + DAY, NOW + 2 * DAY)),
)
def test_the_ca_is_asked_again_between_a_minute_and_a_day_later(
    window: tuple[float, float] | None, retry_after: float | None, known: tuple[float, float] | None
) -> None:
    kept = schedule.asked(Schedule(asked="v1", window=known), HELD, window, retry_after, NOW)
    assert NOW + 60 <= kept.ask_at <= NOW + ASK_LATEST
    assert kept.window in (window, known)
    assert kept.window is None or kept.window[0] < kept.window[1]
    assert not isinstance(next_step(WANTED, HELD, kept, NOW), Ask)


def test_a_window_that_was_known_of_another_certificate_is_forgotten() -> None:
    kept = schedule.asked(Schedule(asked="v0", window=(NOW, NOW + 1)), HELD, None, None, NOW)
    assert kept.window is None


def test_other_settings_are_tried_at_once_unless_the_ca_wants_to_be_left_alone() -> None:
    kept = Schedule(
        purpose="one", attempted=NOW, failures=3, unproven=2, error="no", retry_at=NOW + 99, ca_until=NOW + 50
    )
    assert schedule.for_purpose(kept, "one") == kept
    other = schedule.for_purpose(kept, "other")
    assert other == Schedule(purpose="other", attempted=NOW, ca_until=NOW + 50)
    assert next_step(WANTED, None, other, NOW) == Wait(NOW + 50)


def test_success_forgets_everything_but_when() -> None:
    kept = Schedule("p", NOW - 1, 3, 1, "no", NOW + 1, NOW + 2, "v1", NOW + 3, (NOW, NOW + 1))
    assert schedule.succeeded(kept, NOW) == Schedule(purpose="p", attempted=NOW)


@pytest.mark.parametrize(
    ("proven", "unproven", "expected"),
    [("", 0, "http"), ("", 1, "tls"), ("", 2, "http"), ("tls", 0, "tls"), ("tls", 1, "http"), ("dns", 0, "http")],
)
def test_what_has_succeeded_goes_first_and_a_failure_gives_the_other_one_its_turn(
    proven: str, unproven: int, expected: str
) -> None:
    order = schedule.challenge_order(("http", "tls"), proven, unproven)
    assert order[0] == expected
    assert sorted(order) == ["http", "tls"]
