"""What can be said against the settings of ACME before a CA is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.tls.acme.settings import AcmeSettings, normal_name, normal_names, problems

GOOD = AcmeSettings(names=("example.org",), agree=True)


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("example.org", "example.org"),
        ("WWW.Example.ORG.", "www.example.org"),
        (" a.example ", "a.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
        ("1.2.3.4.example", "1.2.3.4.example"),
    ],
)
def test_names_as_certificates_have_them(name: str, normal: str) -> None:
    assert normal_name(name) == normal
    assert normal_name(normal) == normal


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("*.example.org", "wildcard"),
        ("192.0.2.1", "address"),
        ("[2001:db8::1]", "address"),
        ("", "not a domain name"),
        (".", "not a domain name"),
        ("a..b", "not a domain name"),
        ("-a.example", "not a domain name"),
        ("a_b.example", "not a domain name"),
        ("https://example.org", "not a domain name"),
        ("example.org:443", "not a domain name"),
        ("a" * 64 + ".example", "not a domain name"),
        ("a." * 127 + "example", "not a domain name"),
        ("a b.example", "not a domain name"),
    ],
)
def test_names_that_cannot_be_proven_here(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        normal_name(name)
    assert why in problems(replace(GOOD, names=(name,)))[0][1]


def test_a_name_is_in_a_certificate_once() -> None:
    assert normal_names(["b.example", "A.example", "a.example."]) == ("b.example", "a.example")


@given(st.text(max_size=70))
def test_whatever_is_given_is_a_name_or_a_sentence(text: str) -> None:
    try:
        name = normal_name(text)
    except ValueError as error:
        sentence = str(error)
    else:
        sentence = repr(text)
        assert normal_name(name) == name
        assert name.isascii()
    assert repr(text) in sentence


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"names": ()}, "no domain name"),
        ({"names": tuple(f"n{n}.example" for n in range(101))}, "more than the 100"),
        ({"directory": "http://ca.example/dir"}, "https://"),
        ({"challenges": ("dns-01",)}, "http-01 and tls-alpn-01"),
        ({"challenges": ()}, "http-01 and tls-alpn-01"),
        ({"eab_kid": "kid"}, "both"),
        ({"eab_key_file": Path("key")}, "both"),
        ({"email": "a@b.example,c@d.example"}, "e-mail"),
        ({"email": "nobody"}, "e-mail"),
        ({"agree": False}, "agreed"),
    ],
)
def test_what_would_never_succeed(changed: dict[str, object], why: str) -> None:
    found = problems(replace(GOOD, **changed))  # type: ignore[arg-type]
    assert len(found) == 1
    assert found[0][0] in changed
    assert why in found[0][1]


def test_everything_is_said_at_once_and_nothing_of_what_is_right() -> None:
    assert problems(GOOD) == []
    assert problems(replace(GOOD, email="a+b@example.org", eab_kid="k", eab_key_file=Path("f"))) == []
    assert problems(replace(GOOD, agree=False, directory="https://own.example/dir")) == []  # which may have none
    assert len(problems(replace(GOOD, names=("*.a", "1.2.3.4"), directory="x", agree=False))) == 3
