"""Names that a CA can prove by asking the host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.http.hostnames import domain_name
from hardserve.tls.acme.settings import normal_names


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
    assert domain_name(name) == normal
    assert domain_name(normal) == normal


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
        domain_name(name)


def test_a_name_is_in_a_certificate_once() -> None:
    assert normal_names(["b.example", "A.example", "a.example."]) == ("b.example", "a.example")


@given(st.text(max_size=70))
def test_whatever_is_given_is_a_name_or_a_sentence(text: str) -> None:
    try:
        name = domain_name(text)
    except ValueError as error:
        sentence = str(error)
    else:
        sentence = repr(text)
        assert domain_name(name) == name
        assert name.isascii()
    assert repr(text) in sentence
