"""When keys are made coarser, in which steps, and when that is taken back."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest

from hardserve.edge.ratepressure import QUIET_S, Pressure

START = 100_000_003.0
MAX_KEYS = 5000
SHARE = 500


def grains(pressure: Pressure) -> list[tuple[int, int, bool]]:
    return [tuple(grain) for grain in pressure._grains]


STEPS: dict[str, tuple[int, bool, list[tuple[int, int, bool]]]] = {
    "by /64": (64, False, [(32, 64, False), (32, 48, False), (32, 32, False), (24, 32, False), (16, 32, False)]),
    "by /48: that step is left out": (48, False, [(32, 48, False), (32, 32, False), (24, 32, False), (16, 32, False)]),
    "by /56": (56, False, [(32, 56, False), (32, 48, False), (32, 32, False), (24, 32, False), (16, 32, False)]),
    "by /32": (32, False, [(32, 32, False), (24, 32, False), (16, 32, False)]),
    "with what a client chooses": (
        64,
        True,
        [(32, 64, False), (32, 64, True), (32, 48, True), (32, 32, True), (24, 32, True), (16, 32, True)],
    ),
}


@pytest.mark.parametrize(("bits", "foldable", "steps"), STEPS.values(), ids=STEPS)
def test_the_steps_are_coarser_each_time(bits: int, foldable: bool, steps: list[tuple[int, int, bool]]) -> None:
    assert grains(Pressure(MAX_KEYS, bits, foldable=foldable)) == steps


def test_each_step_is_logged_once_and_taken_back_after_a_quiet_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hardserve.edge")
    pressure = Pressure(MAX_KEYS, 64, foldable=False)
    evicted, now = 0, START
    levels = []
    for _ in range(10 * SHARE):
        evicted += 1
        now += 0.001
        pressure.observe(evicted, now)
        levels.append(pressure.level)
    assert levels[:: SHARE // 2] == [0, 0, 1, 1, 2, 2, 3, 3] + [4] * 12
    assert pressure.client("192.0.2.1", "192.0.2.1") == "192.0.0.0/16"
    assert pressure.client("2001:db8:1:2::3", "2001:db8:1:2::/64") == "2001:db8::/32"
    assert pressure.client("unix:", "") == ""
    steps = [record.getMessage() for record in caplog.records]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4
    assert all("rate_limiting.max_keys = 5000" in step for step in steps)
    assert "IPv4 /32 and IPv6 /48" in steps[0]
    caplog.clear()
    times = []
    while pressure.level:
        before = pressure.level
        now += 1.0
        pressure.observe(evicted, now)
        if pressure.level != before:
            times.append(now - START)
    assert len(times) == 4
    assert all(later - earlier == QUIET_S for earlier, later in pairwise(times))
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 4
    assert pressure.client("192.0.2.1", "192.0.2.1") == "192.0.2.1"


def test_while_keys_go_on_being_evicted_no_step_is_taken_back() -> None:
    pressure = Pressure(MAX_KEYS, 64, foldable=False)
    pressure.observe(SHARE, START)
    for second in range(1, 3600):
        pressure.observe(SHARE + 4 * second, START + second)
    assert pressure.level == 1
    for second in range(3600, 3600 + 301):
        pressure.observe(SHARE + 4 * 3599, START + second)
    assert pressure.level == 0


def test_counts_that_are_forgotten_slowly_are_said_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    pressure = Pressure(MAX_KEYS, 64, foldable=False)
    for second in range(3 * 3600):
        pressure.observe(second, START + second)
    assert pressure.level == 0
    assert len(caplog.records) == 3
    assert "500 counts" in caplog.text
