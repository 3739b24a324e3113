"""The hostile battery's own arithmetic, a small attack to see that it attacks, and where endless requests are cut."""

from __future__ import annotations

import argparse
import math
import socket
import time
from collections.abc import Iterator

import pytest

from tests.bench import hostile
from tests.bench.app.attacked import app
from tests.bench.hostile_clients import KINDS, ONE_ADDRESS, hostile_clients, source_address
from tests.bench.hostile_endless import ENDLESS, GROWING, STEP_BYTES, Endless, find_cap
from tests.bench.hostile_normal import Felt, NormalClient, Outcome, percentile
from tests.bench.peers import REPOSITORY
from tests.certs import client_context
from tests.support import Running, TlsSocket, serving


@pytest.fixture(scope="module")
def attacked(transport: str) -> Iterator[Running]:
    with serving(app) as running:
        yield running


def felt(p99_ms: float) -> Felt:
    return Felt(requests=100, problems={}, p50_ms=1.0, p99_ms=p99_ms, max_ms=p99_ms)


# --- arithmetic ---


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([], 0.99, math.inf, id="of nothing it is infinite, and no bar is met"),
        pytest.param([7.0], 0.5, 7.0, id="of one it is that one"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 0.5, 2.0, id="half of four are no greater than the second"),
        pytest.param([float(n) for n in range(1, 101)], 0.99, 99.0, id="of a hundred one may be worse"),
        pytest.param([float(n) for n in range(1, 102)], 0.99, 100.0, id="of a hundred and one also only one"),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_a_request_that_was_not_answered_counts_as_a_problem_and_not_as_a_time() -> None:
    outcomes = [Outcome(0.0, 0.002, fresh=False, problem=""), Outcome(0.0, 5.0, fresh=False, problem="no answer")]
    found = Felt.of(outcomes)
    assert (found.requests, found.unanswered, found.problems) == (2, 1, {"no answer": 1})
    assert found.max_ms == pytest.approx(2.0)


def test_a_ratio_is_taken_within_a_round() -> None:
    found = hostile.Round(quiet=felt(2.0), attacked=felt(5.0), core_share=0.1, fates={}, reasons={})
    assert found.p99_times == 2.5


def test_many_addresses_are_distinct_and_one_is_one() -> None:
    many = {source_address(number, 500) for number in range(3500)}
    assert len(many) == 500
    assert all(address.startswith("127.") and address != "127.0.0.1" for address in many)
    assert {source_address(number, 1) for number in range(10)} == {ONE_ADDRESS}


# --- arguments ---


def test_without_arguments_everything_is_measured() -> None:
    options = hostile.parse([])
    assert options.parts == list(hostile.PARTS)
    assert options.battery == {"head": 1000, "body": 1000, "reader": 500, "idle": 1000}


def test_parts_are_measured_in_their_own_order() -> None:
    assert hostile.parse(["--parts", "endless,many"]).parts == ["many", "endless"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--parts", "everything"], id="a part that there is not"),
        pytest.param(["--seconds", "3600"], id="an hour"),
        pytest.param(["--rounds", "0"], id="no round"),
        pytest.param(["--battery", "tank=3"], id="a kind of attack that there is not"),
        pytest.param(["--battery", "head=1000000"], id="more connections than one process holds"),
        pytest.param(["--battery", "head"], id="a kind without a number"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        hostile.parse(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_battery_is_read_and_written_in_the_same_words() -> None:
    assert hostile.counts("head=10,idle=5") == {"head": 10, "idle": 5}
    assert hostile.in_words({"head": 1000, "idle": 5}) == "1,000 head, 5 idle"
    with pytest.raises(argparse.ArgumentTypeError, match="of head, body"):
        hostile.counts("nobody=1")


def test_every_part_is_there_and_every_attack_is_known() -> None:
    assert all(callable(getattr(hostile.Battery, part)) for part in hostile.PARTS)
    assert {*hostile.BATTERY, *hostile.WAITING, *hostile.FLOOD} <= set(KINDS)
    assert all(len(growing.sizes) == 3 for growing in GROWING.values())


# --- against a server ---


def test_every_kind_of_attack_connects_and_a_normal_client_is_answered(attacked: Running, transport: str) -> None:
    counts = dict.fromkeys(KINDS, 4)
    tls = client_context() if transport == "tls" else None
    with NormalClient(attacked.port, tls=tls) as client:
        began = time.monotonic()
        with hostile_clients(
            attacked.port, counts, REPOSITORY, addresses=40, ramp_s=0.05, tls=tls is not None
        ) as clients:
            attacked.log.wait_for(40)  # malformed requests are refused as fast as they come
            fates = clients.close()
        found = client.felt(began, time.monotonic())
    assert {name for name, fate in fates.items() if fate.connected < 4} == set()
    assert fates["malformed"].answers.get("400", 0) > 0
    assert fates["malformed"].connected > 4, "it came again"
    assert fates["head"].answers == {}
    assert found.requests > 0
    assert found.problems == {}


@pytest.mark.parametrize("endless", [pytest.param(thing, id=name) for name, thing in ENDLESS.items()])
def test_what_never_ends_is_cut_at_its_cap_with_an_answer(endless: Endless, attacked: Running, transport: str) -> None:
    def speak(plain: socket.socket) -> socket.socket | TlsSocket:
        # 1.2: what a server of 1.3 sends unasked, for sessions to be resumed, is no answer.
        return TlsSocket(plain, client_context(version="1.2")) if transport == "tls" else plain

    cut = find_cap(attacked.port, endless, speak)
    assert abs(cut.sent_bytes - endless.cap_bytes) <= 2 * STEP_BYTES
    assert cut.answer in {"400", "414", "431"}
