"""Accept-Encoding: which coding a client gets."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.http.coding import ACCEPT_ENCODING_MAX, IDENTITY, best

OFFERS = ("zstd", "br", "gzip")

CHOSEN = {
    "a client without the field gets none": (None, IDENTITY),
    "nor does one that says it wants none": ("", IDENTITY),
    "Chromium gets our favourite": ("gzip, deflate, br, zstd", "zstd"),
    "a browser over plain HTTP gets what it says": ("gzip, deflate", "gzip"),
    "Safari gets br": ("gzip, deflate, br", "br"),
    "curl that takes anything its build knows": ("deflate, gzip, br, zstd", "zstd"),
    "Java, whose weights have no zero": ("gzip;q=.8, br;q=.9", "br"),
    "the highest weight wins over our order": ("zstd;q=0.5, br;q=0.7, gzip;q=0.9", "gzip"),
    "of equal weights our order decides": ("gzip;q=0.5, zstd;q=0.5, br;q=0.5", "zstd"),
    "a third decimal counts": ("zstd;q=0.998, br;q=0.999", "br"),
    "so does a fourth, which the RFC does not know": ("zstd;q=0.9991, br;q=0.9992", "br"),
    "a star is any coding": ("*", "zstd"),
    "a star is what is not named": ("zstd;q=0.2, br;q=0.3, *;q=0.5", "gzip"),
    "a star does not weigh what is named": ("gzip;q=0.5, *;q=0.4", "gzip"),
    "what is refused is not given because of a star": ("zstd;q=0, br;q=0.000, *", "gzip"),
    "a star may refuse what is not named": ("gzip, *;q=0", "gzip"),
    "one that refuses everything gets the plain one": ("*;q=0", IDENTITY),
    "so does one that refuses even that": ("identity;q=0, *;q=0", IDENTITY),
    "and one that refuses it and takes nothing we have": ("identity;q=0, compress", IDENTITY),
    "the plain one is wanted more": ("gzip;q=0.5, identity", IDENTITY),
    "a coding that is wanted as much as the plain one": ("identity, gzip", "gzip"),
    "the plain one is last where it is not named": ("gzip;q=0.001", "gzip"),
    "a star is the plain one, too": ("gzip;q=0.4, *;q=0.5", "zstd"),
    "also where it is worth more than all we have": ("zstd;q=0.1, br;q=0.1, gzip;q=0.1, *;q=0.5", IDENTITY),
    "the plain one is named beside a star": ("*;q=0.5, identity;q=0.6", IDENTITY),
    "the plain one is refused": ("identity;q=0, gzip;q=0.1", "gzip"),
    "x-gzip is gzip": ("x-gzip", "gzip"),
    "x-gzip is refused as gzip": ("x-gzip;q=0, *", "zstd"),
    "codings are named in any case": ("GZip;Q=0.5, X-GZIP", "gzip"),
    "there may be blanks anywhere": (" gzip\t; q = 0.5 ,\tbr ;q=0.4 ", "gzip"),
    "and empty elements": (",, gzip,,", "gzip"),
    "a coding that is named twice has the higher weight": ("gzip;q=0.1, br;q=0.5, gzip;q=0.9", "gzip"),
    "other parameters are passed over": ("gzip;level=9;q=0.9, br;q=0.5", "gzip"),
    "a weight past one is one": ("gzip;q=1.9, br", "br"),
    "a weight that is none takes its coding with it": ("zstd;q=high, br;q=-1, gzip;q=0.1", "gzip"),
    "so does one without digits": ("zstd;q=, br;q=., gzip", "gzip"),
    "so does one in other digits than ASCII": ("zstd;q=\u0661, gzip", "gzip"),
    "a coding that we do not have": ("deflate, compress, dcb", IDENTITY),
    "garbage": ("\x00\xff;;;===\"'/,/", IDENTITY),
    "blanks alone": (" \t ", IDENTITY),
    "a value of the greatest length is read": ("gzip".ljust(ACCEPT_ENCODING_MAX), "gzip"),
    "a longer one is not": ("gzip".ljust(ACCEPT_ENCODING_MAX + 1), IDENTITY),
}


@pytest.mark.parametrize(("value", "expected"), CHOSEN.values(), ids=CHOSEN)
def test_the_coding_is_chosen_by_accept_encoding(value: str | None, expected: str) -> None:
    assert best(value, OFFERS) == expected


def test_only_what_is_offered_is_chosen() -> None:
    assert best("gzip, br, zstd", ["gzip"]) == "gzip"
    assert best("gzip, br, zstd", ["gzip", "br"]) == "gzip"
    assert best("*", []) == IDENTITY
    assert best("br", ["gzip"]) == IDENTITY


NAMES = st.sampled_from([*OFFERS, "x-gzip", "*", "identity", "deflate", "BR"])
WEIGHTS = st.sampled_from(["", ";q=0", ";q=0.000", ";q=0.5", ";q=1", "; Q=0.25", ";q=.75", ";q=1.000"])
ELEMENTS = st.builds(str.__add__, NAMES, WEIGHTS)
ANYTHING = st.text(st.sampled_from('*;,=" \tq01.gzipbrstdx-') | st.characters(max_codepoint=0xFF), max_size=600)


@given(value=ANYTHING | st.lists(ELEMENTS | ANYTHING).map(",".join))
def test_anything_is_answered(value: str) -> None:
    assert best(value, OFFERS) in (*OFFERS, IDENTITY)


@given(elements=st.lists(ELEMENTS, max_size=8, unique=True), seed=st.integers())
def test_neither_order_nor_case_nor_blanks_change_the_coding(elements: list[str], seed: int) -> None:
    shuffled = [*elements, "", "gzip;q=x"]
    random.Random(seed).shuffle(shuffled)
    assert best("\t , ".join(shuffled).upper(), OFFERS) == best(",".join(elements), OFFERS)


@given(elements=st.lists(ELEMENTS, max_size=8), refused=st.sampled_from(OFFERS))
def test_a_coding_that_a_client_refuses_is_not_given(elements: list[str], refused: str) -> None:
    others = [e for e in elements if e.lower().partition(";")[0].removeprefix("x-") != refused]
    assert best(",".join([*others, f"{refused};q=0"]), OFFERS) != refused


@given(elements=st.lists(ELEMENTS, max_size=8))
def test_no_coding_is_given_that_is_not_named_unless_there_is_a_star(elements: list[str]) -> None:
    named = {e.lower().partition(";")[0].removeprefix("x-") for e in elements}
    chosen = best(",".join(elements), OFFERS)
    assert chosen in named | {IDENTITY} or "*" in named


HOSTILE = {
    "commas": ",",
    "semicolons": ";",
    "blanks": " ",
    "stars": "*;q=1,",
    "parameters": "gzip;a=b;c=d,",
    "digits": "gzip;q=0." + "9" * 400 + ",",
    "names of its own": "a,",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("length", [ACCEPT_ENCODING_MAX, 16384])
def test_a_hostile_value_costs_little(piece: str, length: int) -> None:
    value = (piece * length)[:length]
    started = time.thread_time()
    for _ in range(20):
        best(value, OFFERS)
    assert time.thread_time() - started < 0.1  # a hundred times what it takes
