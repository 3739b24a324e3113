"""One pair: what is found wrong with it, in which words, and what is learnt of it; its names; its files."""

from __future__ import annotations

import dataclasses
import os
import ssl
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.http.hostnames import covers, is_address, normal_name, wildcard_of
from hardserve.tls.certificates import DAY_S, CertificateError, Pair, day, judge, load
from hardserve.tls.pemfiles import (
    MAX_CERTIFICATE_BYTES,
    MAX_CHAIN,
    _unreadable,
    certificates_in,
    permission_problems,
    read,
    signature,
    user_name,
)
from hardserve.tls.policy import PairFiles, server_context
from tests.certs import Authority, Made, handshake, self_signed

NOW = 0.0
OWN_ROOT = "if that is your own root, install it on the clients; else append what is missing"


@pytest.fixture(scope="module", autouse=True)
def clock() -> None:
    """Have it be the time at which these tests begin: they may have been collected minutes before."""
    globals()["NOW"] = time.time()


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("Test Root")


@pytest.fixture(scope="module")
def issuer(root: Authority) -> Authority:
    return root.intermediate("Test Issuer")


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, root: Authority, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have this machine trust the test root, and nobody else."""
    bundle = tmp_path / "roots.pem"
    bundle.write_text(root.pem)
    nothing = tmp_path / "no-roots"
    nothing.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(nothing))
    return bundle


def problems_of(files: PairFiles, now: float | None = None) -> list[str]:
    with pytest.raises(CertificateError) as caught:
        load(files, NOW if now is None else now)
    return caught.value.problems


# --- what is learnt of a good one ---


def test_a_good_pair(issuer: Authority, tmp_path: Path) -> None:
    made = issuer.leaf("Example.org", "*.example.org", "192.0.2.7", "2001:DB8::1", common_name="example.org")
    files = made.write(tmp_path)
    pair = load(files, NOW)
    assert (pair.certificate, pair.key) == (files.certificate, files.key)
    assert pair.names == ("example.org", "*.example.org", "192.0.2.7", "2001:db8::1")
    assert pair.not_before == made.certificate.not_valid_before_utc.timestamp()
    assert pair.not_after == made.certificate.not_valid_after_utc.timestamp()
    assert pair.fingerprint == made.fingerprint
    assert pair.issuer == "Test Issuer"
    assert not pair.self_signed
    assert pair.warnings == ()
    assert "example.org" in repr(pair)
    assert day(pair.not_after) in repr(pair)


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa2048", "rsa3072"])
def test_kinds_of_keys(issuer: Authority, tmp_path: Path, kind: str) -> None:
    made = issuer.leaf("a.test", kind=kind)
    pair = load(made.write(tmp_path), NOW)
    assert pair.fingerprint == made.fingerprint
    assert pair.names == ("a.test",)


def test_the_context_is_one_of_the_callers_making(issuer: Authority, tmp_path: Path) -> None:
    """Also one that asks for client certificates, which the client that looks has not."""
    ca = tmp_path / "ca.pem"
    ca.write_text(issuer.pem)
    make = partial(server_context, client_ca=ca, client_certificates="required")
    pair = load(issuer.leaf("a.test").write(tmp_path), NOW, make=make)
    assert pair.names == ("a.test",)
    assert pair.context.verify_mode is ssl.CERT_REQUIRED


def test_key_and_certificate_in_one_file(issuer: Authority, tmp_path: Path) -> None:
    made = issuer.leaf("a.test")
    both = tmp_path / "both.pem"
    both.touch(0o600)
    both.write_text(made.key_pem() + made.chain_pem)
    assert load(PairFiles(both, both), NOW).fingerprint == made.fingerprint


@pytest.mark.parametrize("traditional", [False, True], ids=["PKCS #8", "traditional"])
def test_an_encrypted_key(issuer: Authority, tmp_path: Path, traditional: bool) -> None:
    made = issuer.leaf("a.test", kind="rsa2048")
    files = made.write(tmp_path, passphrase="open sesame")
    files.key.write_text(made.key_pem("open sesame", traditional=traditional))
    assert load(files, NOW).warnings == ()
    assert problems_of(PairFiles(files.certificate, files.key)) == [
        f"{files.key} is encrypted: say with passphrase_file which file holds the passphrase"
    ]
    assert files.passphrase_file is not None
    files.passphrase_file.write_text("open barley\n")
    assert problems_of(files) == [f"the passphrase in {files.passphrase_file} does not open {files.key}"]
    files.key.write_text(made.key_pem())
    assert load(files, NOW).warnings == (f"{files.key} is not encrypted, so {files.passphrase_file} is not needed",)


def test_a_certificate_that_never_ends(issuer: Authority, tmp_path: Path) -> None:
    pair = load(issuer.leaf("a.test", not_after_s=7900 * 365 * DAY_S).write(tmp_path), NOW)
    assert day(pair.not_after).startswith("99")


# --- what is refused ---

Spoil = Callable[[PairFiles, Authority, Made], object]


def _der(files: PairFiles, made: Made) -> None:
    files.certificate.write_bytes(made.der)


@pytest.mark.parametrize(
    ("spoil", "expected", "passing"),
    [
        pytest.param(
            lambda files, issuer, made: files.key.write_text(issuer.leaf("b").key_pem()),
            ["{key} is not the key of the certificate in {certificate}"],
            True,
            id="the key of another certificate",
        ),
        pytest.param(
            lambda files, issuer, made: files.key.write_text(issuer.leaf("b", kind="rsa2048").key_pem()),
            ["{key} is not the key of the certificate in {certificate}: they are of different kinds"],
            True,
            id="a key of another kind",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_text(issuer.pem + made.pem),
            [
                (
                    "{key} is not the key of the certificate in {certificate}, whose first is an authority's: "
                    "the server's own has to come first, then its intermediates"
                )
            ],
            True,
            id="the intermediate first",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.unlink(),
            ["{certificate} cannot be read: No such file or directory"],
            True,
            id="no certificate file",
        ),
        pytest.param(
            lambda files, issuer, made: [files.certificate.unlink(), files.key.unlink()],
            [
                "{certificate} cannot be read: No such file or directory",
                "{key} cannot be read: No such file or directory",
            ],
            True,
            id="neither file, both said",
        ),
        pytest.param(
            lambda files, issuer, made: [files.key.unlink(), files.key.mkdir()],
            ["{key} is no regular file"],
            False,
            id="a directory",
        ),
        pytest.param(
            lambda files, issuer, made: [files.key.unlink(), os.mkfifo(files.key)],
            ["{key} is no regular file"],
            False,
            id="a pipe, which nobody waits for",
        ),
        pytest.param(
            lambda files, issuer, made: [files.certificate.chmod(0o600), files.certificate.write_text(made.key_pem())],
            ["{certificate} holds a key and no certificate: are certificate and key the wrong way round?"],
            False,
            id="a key for a certificate",
        ),
        pytest.param(
            lambda files, issuer, made: files.key.write_text(made.pem),
            ["{key} holds a certificate and no key: are certificate and key the wrong way round?"],
            False,
            id="a certificate for a key",
        ),
        pytest.param(
            lambda files, issuer, made: _der(files, made),
            ["{certificate} is not PEM but DER: openssl x509 -inform der -in {certificate} -out site.pem"],
            False,
            id="DER",
        ),
        pytest.param(
            lambda files, issuer, made: files.key.write_bytes(b"\x30\x82\x01\x01"),
            ["{key} is not PEM but DER: openssl pkey -inform der -in {key} -out site.key"],
            False,
            id="a key in DER",
        ),
        pytest.param(
            lambda files, issuer, made: files.key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"),
            ["{key} is damaged, or of a kind that OpenSSL does not know"],
            True,
            id="a key for SSH",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_text(""),
            ["{certificate} holds no certificate: expected a line -----BEGIN CERTIFICATE-----"],
            True,
            id="an empty file, which may be one that is being written",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_text("hello\n"),
            ["{certificate} holds no certificate: expected a line -----BEGIN CERTIFICATE-----"],
            False,
            id="something else",
        ),
        pytest.param(
            lambda files, issuer, made: files.key.write_text("hello\n"),
            ["{key} holds no private key: expected a line -----BEGIN PRIVATE KEY-----"],
            False,
            id="something else for a key",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_text(made.pem.replace("M", "!", 1)),
            ["{certificate} holds no certificate: expected a line -----BEGIN CERTIFICATE-----"],
            False,
            id="what is no base64",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_text(made.pem + issuer.pem.replace("MII", "MIJ", 1)),
            ["a certificate in {certificate} is damaged (number 2 of 2)"],
            True,
            id="a damaged intermediate",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_bytes(
                files.certificate.read_bytes()[: len(made.pem) // 2]
            ),
            ["{certificate} holds no certificate: expected a line -----BEGIN CERTIFICATE-----"],
            False,
            id="half a certificate",
        ),
        pytest.param(
            lambda files, issuer, made: files.key.write_text(made.key_pem().replace("MI", "MJ", 1)),
            ["{key} is damaged, or of a kind that OpenSSL does not know"],
            True,
            id="a damaged key",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_text(made.pem * (MAX_CHAIN + 1)),
            [
                (
                    "{certificate} holds 21 certificates: expected the server's own and its intermediates, "
                    "not a bundle of roots"
                )
            ],
            False,
            id="a bundle",
        ),
        pytest.param(
            lambda files, issuer, made: files.certificate.write_bytes(b"x" * (MAX_CERTIFICATE_BYTES + 1)),
            ["{certificate} is larger than 262144 bytes, so it is not what it should be"],
            False,
            id="a file without end",
        ),
        pytest.param(
            lambda files, issuer, made: files.key.chmod(0o644),
            ["everybody on this machine can read {key}: chmod o= {key}"],
            False,
            id="a key that everybody can read",
        ),
    ],
)
def test_what_is_refused(issuer: Authority, tmp_path: Path, spoil: Spoil, expected: list[str], passing: bool) -> None:
    made = issuer.leaf("a.test")
    files = made.write(tmp_path)
    load(files, NOW)
    spoil(files, issuer, made)
    with pytest.raises(CertificateError) as caught:
        load(files, NOW)
    assert caught.value.problems == [
        sentence.format(certificate=files.certificate, key=files.key) for sentence in expected
    ]
    assert caught.value.passing is passing


def test_a_store_of_another_kind(tmp_path: Path, issuer: Authority) -> None:
    files = issuer.leaf("a.test").write(tmp_path)
    store = tmp_path / "site.p12"
    store.write_bytes(b"\x30\x82\x01\x01")
    assert problems_of(PairFiles(store, files.key)) == [
        f"{store} is a PKCS #12 store and not PEM: openssl pkcs12 -in {store} -nodes -out site.pem"
    ]


def test_a_path_with_a_space_can_be_pasted(tmp_path: Path, issuer: Authority) -> None:
    files = issuer.leaf("a.test").write(tmp_path / "my site")
    files.key.chmod(0o604)
    assert problems_of(files) == [f"everybody on this machine can read {files.key}: chmod o= '{files.key}'"]


@pytest.mark.parametrize("kind", ["rsa1024", "rsa1536"])
def test_a_key_too_short(issuer: Authority, tmp_path: Path, kind: str) -> None:
    files = issuer.leaf("a.test", kind=kind).write(tmp_path)
    expected = "too short: expected at least 2048 bits of RSA, or P-256"
    assert problems_of(files) == [f"the key of {files.certificate} is {expected}"]


@pytest.mark.peer
def test_a_signature_with_sha_1(issuer: Authority, tmp_path: Path) -> None:
    """`cryptography` does not sign with SHA-1 any more."""
    files = issuer.leaf("a.test", kind="rsa2048").write(tmp_path)
    above = issuer.made.write(tmp_path, "issuer")
    script = (
        f"openssl req -new -key {files.key} -subj /CN=a.test -out {tmp_path}/csr && openssl x509 -req -sha1"
        f" -in {tmp_path}/csr -CA {above.certificate} -CAkey {above.key} -set_serial 7 -out {files.certificate}"
    )
    subprocess.run(["sh", "-c", script], check=True, capture_output=True, timeout=30)
    weak = "is signed with SHA-1 or MD5, which no client takes any more"
    assert problems_of(files) == [f"a certificate in {files.certificate} {weak}"]


def test_one_that_is_not_for_servers(issuer: Authority, tmp_path: Path) -> None:
    files = issuer.leaf("a.test", purposes=("client",)).write(tmp_path)
    assert problems_of(files) == [
        f"the certificate in {files.certificate} is not one for servers, says its extended key usage"
    ]


@pytest.mark.parametrize("what", ["name", "time"])
def test_a_certificate_that_is_odd_inside(issuer: Authority, tmp_path: Path, what: str) -> None:
    """Its signature does not fit any more, which nobody looks at who trusts this very certificate."""
    made = issuer.leaf("a.test")
    files = made.write(tmp_path)
    end = f"{made.certificate.not_valid_after_utc:%y%m%d%H%M%S}Z".encode()
    found, put = (b"a.test", b"a.t\xffst") if what == "name" else (end, end[:-1] + b"X")
    assert found in made.der
    files.certificate.write_text(ssl.DER_cert_to_PEM_cert(made.der.replace(found, put)))
    (problem,) = problems_of(files)
    assert problem in {
        f"a handshake with the certificate in {files.certificate} fails: invalid start byte",
        f"the certificate in {files.certificate} has a time that is none",
    }


def test_a_kind_of_key_that_clients_do_not_know(issuer: Authority, tmp_path: Path) -> None:
    files = issuer.leaf("a.test", kind="k1").write(tmp_path)
    (problem,) = problems_of(files)
    assert problem.startswith(f"a handshake with the certificate in {files.certificate} fails: ")


def test_one_that_says_nothing_of_its_purpose(issuer: Authority, tmp_path: Path) -> None:
    assert load(issuer.leaf("a.test", purposes=()).write(tmp_path), NOW).warnings == ()


# --- time ---


@pytest.mark.parametrize(
    ("at", "errors", "warnings"),
    [
        pytest.param(
            -61,
            [],
            ["is not valid before 2026-01-01 00:00, and by this machine's clock it is 2025-12-31 23:58"],
            id="early",
        ),
        pytest.param(-60, [], [], id="as good as the first second"),
        pytest.param(-56 * 365 * DAY_S, [], ["by this machine's clock it is 1970-01-15"], id="a Pi without a battery"),
        pytest.param(0, [], [], id="the first second"),
        pytest.param(90 * DAY_S - 1, [], [], id="the last second"),
        pytest.param(90 * DAY_S, ["has expired, on 2026-04-01"], [], id="its end"),
        pytest.param(9000 * DAY_S, ["has expired, on 2026-04-01"], [], id="long after"),
    ],
)
def test_time_is_judged_by_the_clock_that_is_given(
    issuer: Authority, tmp_path: Path, at: float, errors: list[str], warnings: list[str]
) -> None:
    start = 1_767_225_600  # 2026-01-01
    pair = load(issuer.leaf("a.test").write(tmp_path), NOW)
    pair = dataclasses.replace(pair, not_before=start, not_after=start + 90 * DAY_S)
    found = judge(pair, start + at)
    for sentences, expected in zip(found, (errors, warnings), strict=True):
        assert len(sentences) == len(expected)
        assert all(part in sentence for sentence, part in zip(sentences, expected, strict=True)), sentences


def test_an_expired_one_is_refused_and_one_of_the_future_is_not(issuer: Authority, tmp_path: Path) -> None:
    files = issuer.leaf("a.test").write(tmp_path)
    pair = load(files, 0.0)
    assert judge(pair, 0.0)[1]
    assert pair.warnings == ()
    assert problems_of(files, pair.not_after) == [
        f"the certificate in {files.certificate} has expired, on {day(pair.not_after)}"
    ]


# --- the chain ---


def test_a_chain_of_three(issuer: Authority, tmp_path: Path) -> None:
    assert load(issuer.intermediate("Lower").leaf("a.test").write(tmp_path), NOW).warnings == ()


def test_the_root_may_be_in_the_file(issuer: Authority, root: Authority, tmp_path: Path) -> None:
    files = issuer.leaf("a.test").write(tmp_path)
    with files.certificate.open("a") as file:
        file.write(root.pem)
    assert load(files, NOW).warnings == ()


def test_a_private_authority_is_complete_with_its_own_root(tmp_path: Path) -> None:
    own = Authority("Own Root")
    files = own.intermediate("Own Issuer").leaf("a.test").write(tmp_path)
    with files.certificate.open("a") as file:
        file.write(own.pem)
    assert load(files, NOW).warnings == ()


def test_a_self_signed_certificate_is_complete(tmp_path: Path) -> None:
    pair = load(self_signed("a.test").write(tmp_path), NOW)
    assert pair.self_signed
    assert pair.warnings == ()


def test_a_missing_intermediate(issuer: Authority, tmp_path: Path) -> None:
    made = issuer.leaf("a.test")
    files = made.write(tmp_path, "cert")
    files.certificate.write_text(made.pem)
    said = (
        f'{files.certificate} holds the server\'s own certificate and not that of its issuer, "Test Issuer", which is '
        "no root of this machine's: "
    )
    assert load(files, NOW).warnings == (f"{said}{OWN_ROOT}",)
    full = tmp_path / "fullchain.pem"
    full.write_text(made.chain_pem)  # as certbot has it
    assert load(files, NOW).warnings == (f"{said}clients that do not know it will refuse; use {full}",)


@pytest.mark.parametrize("what", ["another one", "the same and no more", "no certificate", "too much", "a directory"])
def test_a_fuller_chain_is_one_of_the_same_certificate(issuer: Authority, tmp_path: Path, what: str) -> None:
    made = issuer.leaf("a.test")
    files = made.write(tmp_path, "cert")
    files.certificate.write_text(made.pem)
    full = tmp_path / "fullchain.pem"
    if what == "a directory":
        full.mkdir()
    else:
        texts = {
            "another one": issuer.leaf("a.test").chain_pem,
            "the same and no more": made.pem,
            "no certificate": "",
            "too much": made.chain_pem + "#" * MAX_CERTIFICATE_BYTES,
        }
        full.write_text(texts[what])
    (warning,) = load(files, NOW).warnings
    assert warning.endswith(f"which is no root of this machine's: {OWN_ROOT}")


def test_a_chain_up_to_a_root_of_ones_own(tmp_path: Path) -> None:
    """It may be complete: nothing in it tells a company's root from a public intermediate."""
    files = Authority("Own Root").intermediate("Own Issuer").leaf("a.test").write(tmp_path)
    said = f'the chain in {files.certificate} ends below "Own Root", which is no root of this machine\'s: {OWN_ROOT}'
    assert load(files, NOW).warnings == (said,)


@pytest.mark.parametrize("complete", [True, False])
def test_of_the_chain_that_a_ca_has_given_nothing_is_said(tmp_path: Path, complete: bool) -> None:
    made = Authority("Own Root").intermediate("Own Issuer").leaf("a.test")
    files = made.write(tmp_path)
    if not complete:
        files.certificate.write_text(made.pem)
    assert load(files, NOW).warnings != ()
    assert load(dataclasses.replace(files, issued=True), NOW).warnings == ()


def test_a_missing_one_higher_up(issuer: Authority, tmp_path: Path) -> None:
    lower = issuer.intermediate("Lower")
    made = lower.leaf("a.test")
    files = made.write(tmp_path)
    files.certificate.write_text(made.pem + lower.pem)
    (warning,) = load(files, NOW).warnings
    assert warning.startswith(f'the chain in {files.certificate} ends below "Test Issuer", which is no root')


def test_certificates_out_of_order(issuer: Authority, root: Authority, tmp_path: Path) -> None:
    lower = issuer.intermediate("Lower")
    made = lower.leaf("a.test")
    files = made.write(tmp_path)
    files.certificate.write_text(made.pem + issuer.pem + lower.pem)
    assert load(files, NOW).warnings == (
        (
            f"certificate 2 of 3 in {files.certificate} is not the issuer of the one before it: "
            "some clients will not find their way"
        ),
    )


def test_another_certificate_in_the_file(issuer: Authority, tmp_path: Path) -> None:
    made = issuer.leaf("a.test")
    files = made.write(tmp_path)
    files.certificate.write_text(made.pem + issuer.leaf("b.test").pem)
    first, second = load(files, NOW).warnings
    assert first == f"certificate 2 of 2 in {files.certificate} is no authority's, and useless there"
    assert "ends below" in second


def test_an_expired_intermediate_is_left_to_the_clients(issuer: Authority, tmp_path: Path) -> None:
    """Time is judged of the server's own certificate alone: the clock may be wrong."""
    assert load(issuer.leaf("a.test").write(tmp_path), 0.0).warnings == ()


def test_a_machine_without_roots_cannot_tell(
    issuer: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    made = issuer.leaf("a.test")
    files = made.write(tmp_path)
    assert load(files, NOW).warnings == ()
    files.certificate.write_text(made.pem)
    assert len(load(files, NOW).warnings) == 1


# --- names ---


def test_no_name_at_all(issuer: Authority, tmp_path: Path) -> None:
    files = issuer.leaf(common_name="a.test").write(tmp_path)
    pair = load(files, NOW)
    assert pair.names == ()
    assert pair.warnings == (
        (
            f"the certificate in {files.certificate} is for no name or address at all; its common name, "
            '"a.test", is not looked at by clients any more'
        ),
    )
    files = issuer.leaf("eve@a.test").write(tmp_path)
    assert load(files, NOW).warnings == (f"the certificate in {files.certificate} is for no name or address at all",)


def test_names_that_no_client_takes(issuer: Authority, tmp_path: Path) -> None:
    files = issuer.leaf("a.test", "w*.a.test", "a.*.test", "*").write(tmp_path)
    pair = load(files, NOW)
    assert pair.names == ("a.test",)
    assert pair.warnings == (
        f'the certificate in {files.certificate} has names that no client takes: "w*.a.test", "a.*.test", "*"',
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("localhost", "localhost"),
        ("*.example.org", "*.example.org"),
        ("*.org", "*.org"),
        ("my_host", "my_host"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[::1]", "::1"),
        (" a.test ", "a.test"),
        ("", None),
        (".", None),
        (".example.org", None),
        ("a..b", None),
        ("*", None),
        ("*.", None),
        ("a.*.org", None),
        ("w*.example.org", None),
        ("*.*.org", None),
        ("-a.test", None),
        ("a-.test", None),
        ("a b", None),
        ("a/b", None),
        ("a\0.test", None),
        ("a\n.test", None),
        ("a.test:443", None),
        ("x" * 64 + ".test", None),
        (".".join(["x" * 63] * 4), None),
        ("ü" * 200, None),
    ],
)  # fmt: skip
def test_a_name_as_it_is_compared(text: str, name: str | None) -> None:
    assert normal_name(text) == name


@pytest.mark.parametrize(
    ("names", "wanted", "covered"),
    [
        (["a.test"], "a.test", True),
        (["a.test"], "b.a.test", False),
        (["*.a.test"], "b.a.test", True),
        (["*.a.test"], "a.test", False),
        (["*.a.test"], "c.b.a.test", False),
        (["*.a.test"], "*.a.test", True),
        (["*.0.2.1"], "192.0.2.1", False),
        (["*.test"], "a.test", True),
        ([], "a.test", False),
    ],
)
def test_which_names_a_certificate_covers(names: list[str], wanted: str, covered: bool) -> None:
    assert covers(names, wanted) is covered


@given(st.text(max_size=80))
def test_a_normal_name_is_normal(text: str) -> None:
    name = normal_name(text)
    if name is not None:
        assert normal_name(name) == name
        assert name.isascii()
        assert name == name.lower()
        assert wildcard_of(name) == "" or not wildcard_of(name).startswith("*.*")
        if is_address(name):
            assert "*" not in name


# --- files ---


@pytest.mark.parametrize(
    ("mode", "owner", "errors", "warnings"),
    [
        (0o600, 1000, [], []),
        (0o400, 0, [], []),
        (0o640, 0, [], ["the group of /k can read it: chmod g= /k, if nobody in it needs to"]),
        (0o660, 0, [], ["the group of /k can read and change it: chmod g= /k, if nobody in it needs to"]),
        (0o644, 0, ["everybody on this machine can read /k: chmod o= /k"], []),
        (0o666, 0, ["everybody on this machine can read and change /k: chmod o= /k"], []),
        (0o602, 0, ["everybody on this machine can change /k: chmod o= /k"], []),
        (0o601, 0, [], []),
        (0o600, 4_000_001, [], ["/k belongs to user 4000001, who can replace it: chown 4000000 /k"]),
    ],
    ids=str,
)
def test_who_else_can_get_at_a_key(mode: int, owner: int, errors: list[str], warnings: list[str]) -> None:
    user = 1000 if owner == 1000 else 4_000_000
    assert permission_problems(Path("/k"), 0o100000 | mode, owner, user) == (errors, warnings)


def test_a_group_that_can_read_the_key_is_a_warning(issuer: Authority, tmp_path: Path) -> None:
    files = issuer.leaf("a.test").write(tmp_path)
    files.key.chmod(0o640)
    (warning,) = load(files, NOW).warnings
    assert "group" in warning


def test_everybody_may_read_the_certificate_unless_the_key_is_in_it(issuer: Authority, tmp_path: Path) -> None:
    made = issuer.leaf("a.test")
    files = made.write(tmp_path)
    files.certificate.chmod(0o666)
    assert load(files, NOW).warnings == ()
    files.certificate.write_text(made.key_pem() + made.chain_pem)
    assert problems_of(files) == [
        f"everybody on this machine can read and change {files.certificate}: chmod o= {files.certificate}"
    ]


def test_everybody_may_not_read_the_passphrase(issuer: Authority, tmp_path: Path) -> None:
    files = issuer.leaf("a.test").write(tmp_path, passphrase="x")
    assert files.passphrase_file is not None
    files.passphrase_file.chmod(0o644)
    assert problems_of(files) == [
        f"everybody on this machine can read {files.passphrase_file}: chmod o= {files.passphrase_file}"
    ]


def test_a_key_that_cannot_be_read() -> None:
    """Pure, since these tests may be run by root, who can read everything."""
    said = _unreadable(Path("/k"), PermissionError(13, "Permission denied"))
    assert said == f"/k cannot be read by user {user_name(os.geteuid())}: Permission denied"


def test_a_change_while_it_is_read_is_noticed(issuer: Authority, tmp_path: Path) -> None:
    """The files are replaced by a good pair between the look at them and their loading."""
    files = issuer.leaf("a.test").write(tmp_path)

    def make(given: PairFiles) -> ssl.SSLContext:
        issuer.leaf("b.test").write(tmp_path)
        return server_context(given)

    with pytest.raises(CertificateError) as caught:
        load(files, NOW, make=make)
    assert caught.value.problems == [f"{files.certificate} or {files.key} was changed while it was read"]
    assert caught.value.passing
    assert load(files, NOW).names == ("b.test",)


def test_a_change_of_the_chain_alone_is_noticed(issuer: Authority, tmp_path: Path) -> None:
    made = issuer.leaf("a.test")
    files = made.write(tmp_path)

    def make(given: PairFiles) -> ssl.SSLContext:
        context = server_context(given)
        files.certificate.write_text(made.pem)
        return context

    with pytest.raises(CertificateError, match="changed while it was read"):
        load(files, NOW, make=make)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: os.utime(path, ns=(1, 1)), id="times"),
        pytest.param(lambda path: path.chmod(0o640), id="mode"),
        pytest.param(lambda path: path.write_text("x"), id="content"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(
            lambda path: [path.with_suffix(".x").write_text(""), path.with_suffix(".x").replace(path)], id="new"
        ),
    ],
)
def test_the_signature_of_files_tells(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "a"
    path.write_text("")
    before = signature((path,))
    assert signature((path,)) == before
    change(path)
    assert signature((path,)) != before


def test_text_around_certificates_is_no_matter(issuer: Authority, tmp_path: Path) -> None:
    """As `openssl x509 -text` writes it, and with the ends of lines of Windows."""
    made = issuer.leaf("a.test")
    files = made.write(tmp_path)
    text = f"Certificate:\n    Data: x\n{made.pem}\n# the issuer\n{issuer.pem}".replace("\n", "\r\n")
    files.certificate.write_bytes(text.encode())
    assert list(certificates_in(text.encode())) == [made.der, issuer.made.der]
    assert read(files).chain == (made.der, issuer.made.der)
    assert load(files, NOW).fingerprint == made.fingerprint


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_read(before: bytes, inside: bytes) -> None:
    data = before + b"-----BEGIN CERTIFICATE-----\n" + inside + b"-----END CERTIFICATE-----\n"
    for der in certificates_in(data):
        assert isinstance(der, bytes)


def test_what_is_told_is_what_is_served(issuer: Authority, tmp_path: Path) -> None:
    made = issuer.leaf("a.test")
    pair: Pair = load(made.write(tmp_path), NOW)
    client = ssl.create_default_context(cadata=issuer.parent.pem if issuer.parent else "")
    assert handshake(pair.context, client, "a.test").client.getpeercert(True) == made.der
