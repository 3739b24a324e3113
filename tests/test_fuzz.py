"""Fuzzing, a few seconds of it; `python -m tests.fuzz` goes on for as long as one likes. See tests/fuzz/__init__.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve import refusals
from hardserve.edge import chunks, parsing
from hardserve.edge.connection import Connection
from hardserve.edge.parsing import Request
from hardserve.refusals import Refusal
from tests.fuzz import __main__ as command
from tests.fuzz import pure, wire
from tests.fuzz.grammar import case
from tests.fuzz.oracle import Tail, Violation

CASES = 600


def check_cases(count: int = CASES) -> tuple[set[Tail], set[Refusal | None]]:
    """Check the first `count` cases, and return how they ended."""
    results = [pure.check(case(Random(f"2:pure:{number}"), pure.LIMITS)) for number in range(count)]
    return {expected.tail for expected, _ in results}, {parsed.refusal for _, parsed in results}


def test_the_parser_takes_what_a_strict_reader_finds_and_nothing_else() -> None:
    tails, refused = check_cases()
    assert tails == set(Tail)
    source = "".join(module.__loader__.get_source(module.__name__) for module in (parsing, chunks))  # type: ignore[union-attr]
    declared = {name: value for name, value in vars(refusals).items() if isinstance(value, Refusal)}
    of_the_parser = {value for name, value in declared.items() if f"refusals.{name}" in source}
    # All that it can say is met, but what only a full disk makes it say.
    assert of_the_parser - {refusals.BODY_NOT_STORED} <= refused


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.randoms(use_true_random=False))
def test_whatever_is_drawn_is_read_alike(random: Random) -> None:
    pure.check(case(random, pure.LIMITS))


@pytest.mark.parametrize("variant", ["four threads", "hardly enough of anything"])
def test_clients_that_behave_at_random_get_what_they_asked_for_and_leave_nothing_behind(variant: str) -> None:
    conversations = wire.run_round("8", variant, clients=36)
    assert sum(len(conversation.received) for conversation in conversations) > 1000
    assert {conversation.conduct for conversation in conversations} == set(wire.CONDUCTS)


# --- what fuzzing is worth: it notices these ---


def lose_the_end_of_a_split_head(request: Request, data: bytes, feed: Callable[..., int] = Request.feed) -> int:
    if request.head and request.head[-1:] == b"\r" and data[:1] == b"\n" and request.head[-3:-1] == b"\r\n":
        request.head = request.head[:-1]
    return feed(request, data)


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "a space before the colon is let pass": (parsing, "FIELD_LINE", re.compile(rb"([!-9;-~]+)[ ]*:[ \t]*([^\r\n\0]*)")),
    "what follows a chunk size is not looked at": (chunks, "_CHUNK_LINE", re.compile(rb"([0-9A-Fa-f]{1,15}).*")),
    "two lengths are let pass": (parsing, "_ONCE", {}),
    "the end of a head is lost between two pieces": (Request, "feed", lose_the_end_of_a_split_head),
    "the number of empty lines is not bounded": (parsing, "_EMPTY_LINES_BYTES", 1 << 30),
}


@pytest.mark.parametrize(("where", "name", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_parser_is_noticed(where: Any, name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(Violation):
        check_cases()


def test_a_refused_client_that_is_reset_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "_linger", lambda connection, now: connection.close())
    with pytest.raises(Violation, match="was cut"):
        wire.run_round("8", "four threads", clients=12)


def test_the_command_ends_with_0_when_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seed", "1", "--only", "pure:0"]) == 0
    assert capsys.readouterr().out == ""


def test_the_command_says_how_to_see_a_failure_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "_ONCE", {})
    assert command.main(["--seed", "1", "--seconds", "5"]) == 1
    said = capsys.readouterr().out
    again = re.search(r"-m tests\.fuzz (--seed 1 --only pure:\d+)\n", said)
    assert again, said
    assert "a smaller one: b" in said
    assert command.main(again[1].split()) == 1
    monkeypatch.undo()
    assert command.main(again[1].split()) == 0
