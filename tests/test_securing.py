"""What settings say of a certificate from a CA: where such a server listens, how names are proven, what is missing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hardserve.addresses import ports
from hardserve.configfiles import SettingsError
from hardserve.options import from_keywords, resolve
from hardserve.securing import Secured, acme_settings, secured_by
from hardserve.tls.acme import pki
from hardserve.tls.acme.settings import LETS_ENCRYPT, LETS_ENCRYPT_STAGING, AcmeSettings
from hardserve.tls.acme.state import StateDirectory
from tests.pebble import Authority, make_authority


def said(**keywords: object) -> AcmeSettings:
    found = acme_settings(from_keywords(acme_agree="on", **keywords))
    assert found is not None
    return found


def problems(**keywords: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        from_keywords(**keywords)
    return list(caught.value.problems)


def test_with_a_domain_a_server_is_a_site_on_the_internet() -> None:
    settings = from_keywords(tls_domain="Example.ORG.", acme_agree="on")
    assert settings.tls.domain == ("example.org",)
    assert settings.serves_tls
    hosts = ["0.0.0.0", "[::]"] if socket.has_dualstack_ipv6() else ["0.0.0.0"]
    assert settings.server.bind == tuple(f"{host}:443" for host in hosts)
    assert settings.server.redirect == tuple(f"{host}:80" for host in hosts)


@pytest.mark.parametrize(
    ("keywords", "bind", "redirect"),
    [
        ({"bind": ["127.0.0.1:8443"]}, ("127.0.0.1:8443",), ()),
        ({"bind": ["127.0.0.1:443"], "redirect": ()}, ("127.0.0.1:443",), ()),
        ({"bind": ["127.0.0.1:8443"], "redirect": ["127.0.0.1:8080"]}, ("127.0.0.1:8443",), ("127.0.0.1:8080",)),
    ],
    ids=["another port for HTTPS", "nothing in plain", "both"],
)
def test_whoever_says_where_to_listen_is_believed(
    keywords: dict[str, list[str]], bind: tuple[str, ...], redirect: tuple[str, ...]
) -> None:
    settings = from_keywords(tls_domain="example.org", acme_agree="on", **keywords)
    assert settings.server.bind == bind
    assert settings.server.redirect == redirect


@pytest.mark.parametrize("given", ["bind", "redirect"])
def test_who_says_where_one_is_is_given_the_other(given: str) -> None:
    one = {"bind": ["127.0.0.1:443"], "redirect": ["127.0.0.1:8080"]}[given]
    settings = from_keywords(tls_domain="example.org", acme_agree="on", **{given: one})
    port = 80 if given == "bind" else 443
    assert ports(settings.server.redirect if given == "bind" else settings.server.bind) == {port}


def test_without_tls_a_domain_changes_nothing() -> None:
    settings = from_keywords(tls_domain="example.org", acme_agree="on", tls="off")
    assert settings.server == from_keywords(tls="off").server
    assert not settings.serves_tls


def test_where_the_addresses_are_from_is_shown(tmp_path: Path) -> None:
    resolved = resolve(flags={"tls_domain": ["example.org"], "acme_agree": "on"}, environ={}, directory=tmp_path)
    assert resolved.origins["server.bind"] == resolved.origins["server.redirect"] == "default with tls.domain"


@pytest.mark.parametrize(
    ("keywords", "challenges"),
    [
        ({}, ("http-01", "tls-alpn-01")),
        ({"bind": ["127.0.0.1:443"], "redirect": ()}, ("tls-alpn-01",)),
        ({"bind": ["127.0.0.1:8443"]}, ("tls-alpn-01",)),
        ({"bind": ["127.0.0.1:443"], "redirect": ["127.0.0.1:80"]}, ("http-01", "tls-alpn-01")),
        ({"acme_challenge": "tls-alpn-01"}, ("tls-alpn-01",)),
        ({"acme_challenge": "http-01"}, ("http-01",)),
    ],
)
def test_names_are_proven_where_the_server_listens(keywords: dict[str, object], challenges: tuple[str, ...]) -> None:
    assert said(tls_domain="example.org", **keywords).challenges == challenges


def test_what_is_set_is_what_the_ca_is_told(tmp_path: Path) -> None:
    found = said(
        tls_domain=["example.org", "www.example.org"],
        acme_email="you@example.org",
        acme_directory="https://ca.internal/dir",
        acme_eab_kid="kid-1",
        acme_eab_key_file=str(tmp_path / "eab.key"),
        acme_ca_file=str(tmp_path / "ca.pem"),
        acme_profile="shortlived",
    )
    assert found == AcmeSettings(
        names=("example.org", "www.example.org"),
        agree=True,
        email="you@example.org",
        directory="https://ca.internal/dir",
        challenges=("http-01", "tls-alpn-01"),
        eab_kid="kid-1",
        eab_key_file=tmp_path / "eab.key",
        ca_file=tmp_path / "ca.pem",
        profile="shortlived",
    )


def test_lets_encrypt_has_names() -> None:
    assert said(tls_domain="example.org").directory == LETS_ENCRYPT
    assert said(tls_domain="example.org", acme_directory="letsencrypt-staging").directory == LETS_ENCRYPT_STAGING


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        (
            {"tls_domain": "example.org"},
            (
                "acme.agree: the CA's terms of service must be agreed to: https://letsencrypt.org/repository/; "
                "--acme-agree on does"
            ),
        ),
        (
            {"tls_domain": "pi.local", "acme_agree": "on"},
            'tls_domain: "pi.local" is a name that no public CA issues for; there is server.tls = "self-signed"',
        ),
        (
            {"tls_domain": "a.example.org,b.example.org"},
            (
                "tls_domain = \"a.example.org,b.example.org\": 'a.example.org,b.example.org' is more than one name: "
                'a list in a file, and a flag for each, such as "example.org"'
            ),
        ),
        (
            {"tls_domain": "example.org", "acme_agree": "on", "tls": "self-signed"},
            'tls = "self-signed": expected no other certificate, but there is tls_domain',
        ),
        (
            {"tls_domain": "example.org", "acme_agree": "on", "acme_directory": "http://ca/"},
            'acme_directory: "http://ca/": expected letsencrypt, letsencrypt-staging or an https:// address',
        ),
        (
            {"tls_domain": "example.org", "acme_agree": "on", "acme_challenge": "http-01", "redirect": ()},
            "acme_challenge: expected also server.redirect, where the CA asks for it (port 80)",
        ),
        (
            {"tls_domain": "example.org", "acme_agree": "on", "acme_eab_kid": "kid"},
            "acme_eab_kid: an external account needs both its key id and its key file",
        ),
        ({"acme_email": "you@example.org"}, "acme_email: expected also tls.domain, the names of the certificate"),
        ({"acme_agree": "on"}, "acme_agree: expected also tls.domain, the names of the certificate"),
        (
            {"tls_domain": "*.example.org", "acme_agree": "on"},
            (
                "tls_domain = \"*.example.org\": '*.example.org': a wildcard is proven by DNS alone, "
                "which hardserve does not do: list each name"
            ),
        ),
    ],
)
def test_what_no_ca_would_issue_is_said_with_the_setting(keywords: dict[str, object], expected: str) -> None:
    assert expected in problems(**keywords)


def test_everything_that_is_missing_is_said_at_once() -> None:
    found = problems(tls_domain="example.org", acme_email="nobody", acme_directory="x")
    assert [problem.partition(":")[0] for problem in found] == ["acme_directory", "acme_email"]


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({"tls_domain": tuple(f"n{n}.example.org" for n in range(101))}, "tls_domain"),
        ({"acme_email": "a@b.example,c@d.example"}, "acme_email"),
        ({"acme_eab_key_file": "./key"}, "acme_eab_key_file"),
    ],
)
def test_one_thing_is_wrong(keywords: dict[str, object], key: str) -> None:
    found = problems(**{"tls_domain": "example.org", "acme_agree": "on"} | keywords)
    assert [problem.partition(":")[0] for problem in found] == [key]


def test_a_ca_of_ones_own_may_have_no_terms() -> None:
    from_keywords(tls_domain="example.org", acme_directory="https://ca.internal/dir", acme_email="a+b@example.org")


# What was issued before.


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


def issued(directory: Path, authority: Authority) -> Path:
    """Have a certificate be kept as what the CA has issued last; return where it is."""
    state = StateDirectory(directory / "acme")
    state.prepare()
    key = pki.new_key()
    held = state.install(authority.issue(("example.org",), key), pki.key_pem(key), {"directory": LETS_ENCRYPT})
    return state.pair(held).certificate


def started(directory: Path, **keywords: object) -> Secured:
    settings = {"tls_domain": "example.org", "acme_agree": "on", "bind": ["127.0.0.1:0"], "redirect": []}
    return secured_by(from_keywords(tls_state=str(directory), **settings, **keywords), (), {})


def test_a_key_that_everybody_can_read_is_not_served_and_the_one_before_is(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    first = issued(tmp_path, authority)
    second = issued(tmp_path, authority)
    assert started(tmp_path).store.pairs[0].certificate == second
    second.with_name("key.pem").chmod(0o644)
    secured = started(tmp_path)
    assert secured.store.pairs[0].certificate == first
    assert any("everybody on this machine can read" in message for message in caplog.messages)
    assert any("the one before it is taken" in message for message in caplog.messages)
    first.with_name("key.pem").chmod(0o644)
    secured = started(tmp_path)
    assert secured.store.pairs[0].self_signed
    assert secured.manager is not None
    assert secured.manager._held() is None  # so that another one is ordered


def test_another_pair_that_is_broken_just_now_is_not_held_against_what_is_issued(
    tmp_path: Path, authority: Authority
) -> None:
    other_key = pki.new_key()
    (tmp_path / "other.key").touch(0o600)
    (tmp_path / "other.key").write_bytes(pki.key_pem(other_key))
    (tmp_path / "other.pem").write_bytes(authority.issue(("other.example",), other_key))
    first = issued(tmp_path, authority)
    pair = {"certificate": str(tmp_path / "other.pem"), "key": str(tmp_path / "other.key")}
    secured = started(tmp_path, certificate=[pair])
    assert [each.names for each in secured.store.pairs] == [("example.org",), ("other.example",)]
    (tmp_path / "other.key").write_bytes(pki.key_pem(pki.new_key()))
    second = issued(tmp_path, authority)
    manager = secured.manager
    assert manager is not None
    for _ in range(2):
        manager._take_over()
        assert secured.store.pairs[0].certificate == first
    assert manager._held() is not None
    (tmp_path / "other.key").write_bytes(pki.key_pem(other_key))
    manager._take_over()
    assert secured.store.pairs[0].certificate == second
