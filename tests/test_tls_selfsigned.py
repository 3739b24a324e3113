"""A certificate that the server makes for itself, by either way; how it is kept, and when it is made anew."""

from __future__ import annotations

import fcntl
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from hardserve.tls import selfsigned
from hardserve.tls.certificates import DAY_S, CertificateError
from hardserve.tls.selfsigned import (
    LIFETIME_DAYS,
    MAX_NAMES,
    Maker,
    by_command,
    by_package,
    files_in,
    host_names,
    keep,
    lasting_address,
    maker_here,
    next_time,
    request_config,
    why_not,
)
from hardserve.tls.store import CertificateStore
from tests.certs import handshake, self_signed, served_by
from tests.support import PATIENCE_S

NOW = 0.0


@pytest.fixture(scope="module", autouse=True)
def clock() -> None:
    """Have it be the time at which these tests begin: they may have been collected minutes before."""
    globals()["NOW"] = time.time()


NAMES = ("pi", "pi.local", "localhost", "127.0.0.1", "::1", "192.0.2.7", "2001:db8::7", "*.tool.example")

WAYS = [
    pytest.param(by_package, id="by the package"),
    pytest.param(by_command, id="by the command", marks=pytest.mark.peer),
]


@pytest.fixture(params=WAYS)
def maker(request: pytest.FixtureRequest) -> Maker:
    made: Maker = request.param
    if made is by_command and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "self-signed"


# --- what is made ---


def described(pem: bytes) -> dict[str, Any]:
    """Return everything about a certificate that does not differ from one to the next."""
    certificate = x509.load_pem_x509_certificate(pem)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    key = certificate.public_key()
    extensions = {
        extension.oid.dotted_string: (
            extension.critical,
            None if "Identifier" in repr(extension.value) else extension.value,
        )
        for extension in certificate.extensions
    }
    return {
        "version": certificate.version,
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "lifetime": lifetime.total_seconds(),
        "signature": certificate.signature_algorithm_oid,
        "curve": key.curve.name,  # type: ignore[union-attr]
        "extensions": extensions,
        "serial": certificate.serial_number.bit_length() > 64,
    }


@pytest.mark.peer
@pytest.mark.parametrize("names", [NAMES, ("localhost",), ("::1",), ("x" * 63 + "." + "y" * 63,)], ids=len)
def test_both_ways_make_the_same(names: tuple[str, ...]) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    of_package, of_command = by_package(names), by_command(names)
    assert described(of_package[1]) == described(of_command[1])
    assert of_package[0].splitlines()[0] == of_command[0].splitlines()[0] == b"-----BEGIN PRIVATE KEY-----"
    assert of_package[0] != by_package(names)[0]


def test_what_is_in_it(maker: Maker, directory: Path) -> None:
    made = keep(directory, NAMES, NOW, maker=maker)
    assert made.made
    assert made.why == "there was none"
    pair = made.pair
    assert pair.names == NAMES
    assert pair.self_signed
    assert pair.warnings == ()
    assert pair.not_after - pair.not_before == LIFETIME_DAYS * DAY_S
    assert abs(pair.not_before - NOW) < 60
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca  # who trusts it trusts it for this server, and not for others


@pytest.mark.parametrize("name", ["pi.local", "127.0.0.1", "2001:db8::7", "my.tool.example"])
def test_a_client_that_was_told_takes_it(maker: Maker, directory: Path, name: str) -> None:
    """With everything that Python's own default asks for, which from 3.13 on is what RFC 5280 does."""
    pair = keep(directory, NAMES, NOW, maker=maker).pair
    client = ssl.create_default_context(cafile=pair.certificate)
    assert handshake(pair.context, client, name).client.getpeercert()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pair.context, client, "another.example")


@pytest.mark.peer
def test_the_fingerprint_is_the_one_that_openssl_shows(maker: Maker, directory: Path) -> None:
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("openssl is not installed")
    pair = keep(directory, NAMES, NOW, maker=maker).pair
    done = subprocess.run(
        [command, "x509", "-in", pair.certificate, "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout.strip().partition("=")[2] == pair.fingerprint


# --- how it is kept ---


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_nobody_else_can_read_it(maker: Maker, directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keep(directory, NAMES, NOW, maker=maker)
    finally:
        os.umask(before)
    assert modes(directory) == {"self-signed": 0o700, "key.pem": 0o600, "certificate.pem": 0o600}


def test_a_directory_that_was_open_is_closed(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    keep(directory, NAMES, NOW)
    assert modes(directory)["self-signed"] == 0o700


def test_it_is_kept(maker: Maker, directory: Path) -> None:
    first = keep(directory, NAMES, NOW, maker=maker)
    again = keep(directory, NAMES, NOW + 100 * DAY_S, maker=maker)
    assert not again.made
    assert again.why == ""
    assert again.pair.fingerprint == first.pair.fingerprint


@pytest.mark.parametrize(
    ("names", "why"),
    [
        pytest.param(NAMES[:3], "", id="fewer names"),
        pytest.param(("PI.", "[::1]", "2001:0DB8::7"), "", id="the same in another form"),
        pytest.param(("my.tool.example",), "", id="a name that the wildcard is for"),
        pytest.param((*NAMES, "new.example"), "it was not for new.example", id="one more"),
        pytest.param(("192.0.2.8", "b"), "it was not for 192.0.2.8, b", id="another address"),
    ],
)
def test_names_that_changed(directory: Path, names: tuple[str, ...], why: str) -> None:
    first = keep(directory, NAMES, NOW)
    again = keep(directory, names, NOW)
    assert again.why == why
    assert again.made is bool(why)
    assert (again.pair.fingerprint != first.pair.fingerprint) is bool(why)
    assert not keep(directory, names, NOW).made


@pytest.mark.parametrize(
    ("after_days", "anew"),
    [(-20_000, False), (0, False), (264.6, False), (264.8, True), (396, True), (398, True), (40_000, True)],
)
def test_two_thirds_are_over(directory: Path, after_days: float, anew: bool) -> None:
    """A clock that is years behind, as a Pi's is when it starts, is no reason to change what people trust."""
    first = keep(directory, NAMES, NOW)
    try:
        again = keep(directory, NAMES, first.pair.not_before + after_days * DAY_S)
    except CertificateError:
        assert after_days > LIFETIME_DAYS  # what is new by the machine's clock is old by ours
        again = keep(directory, NAMES, NOW)
    assert (again.pair.fingerprint != first.pair.fingerprint) is anew


def test_when_it_is_made_anew_is_pure() -> None:
    assert why_not(["a"], 0, 300, ["a"], 200) == ""
    assert why_not(["a"], 0, 300, ["a"], 201) == "two thirds of its time were over"
    assert why_not(["a"], 0, 300, [], -5) == ""


def test_from_when_on_there_is_another_one_is_pure() -> None:
    assert next_time(["a"], 0, 300, ["A."], 100) == (200, "two thirds of its time are over then")
    assert next_time(["a"], 0, 300, ["a"], 200) == (200, "two thirds of its time are over then")
    assert next_time(["a"], 0, 300, ["a"], 201) == (201, "two thirds of its time were over")
    assert next_time(["a"], 0, 300, ["a", "b"], 100) == (100, "it was not for b")


def test_a_new_one_can_be_asked_for(directory: Path) -> None:
    first = keep(directory, NAMES, NOW)
    again = keep(directory, NAMES, NOW, force=True)
    assert (again.made, again.why) == (True, "a new one was asked for")
    assert again.pair.fingerprint != first.pair.fingerprint
    assert again.pair.files == files_in(directory)

    def fail(_names: Any) -> Any:
        raise CertificateError(["there is nothing to make one with"])

    with pytest.raises(CertificateError, match="nothing to make one"):
        keep(directory, NAMES, NOW, force=True, maker=fail)
    assert keep(directory, NAMES, NOW).pair.fingerprint == again.pair.fingerprint


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda directory: (directory / "key.pem").unlink(), id="no key"),
        pytest.param(lambda directory: (directory / "certificate.pem").unlink(), id="no certificate"),
        pytest.param(lambda directory: (directory / "key.pem").write_bytes(by_package(["x"])[0]), id="another key"),
        pytest.param(lambda directory: (directory / "key.pem").chmod(0o644), id="a key that everybody could read"),
        pytest.param(lambda directory: (directory / "certificate.pem").write_text("oops"), id="no certificate in it"),
        pytest.param(lambda directory: (directory / "certificate.pem").write_bytes(b""), id="an empty file"),
        pytest.param(
            lambda directory: (
                self_signed("pi", not_after_s=-10)
                .write(directory, "x")
                .certificate.replace(directory / "certificate.pem")
            ),
            id="an expired one",
        ),
    ],
)
def test_what_is_broken_is_made_anew(directory: Path, spoil: Any) -> None:
    first = keep(directory, ["pi"], NOW)
    spoil(directory)
    again = keep(directory, ["pi"], NOW)
    assert again.made
    assert again.why
    assert again.pair.fingerprint != first.pair.fingerprint
    assert modes(directory)["key.pem"] == 0o600


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


@pytest.mark.parametrize("after", ["key.pem", "certificate.pem"])
@pytest.mark.parametrize("first", [True, False], ids=["the first time", "when there was one"])
def test_the_machine_may_stop_at_any_point(
    directory: Path, monkeypatch: pytest.MonkeyPatch, after: str, first: bool
) -> None:
    if not first:
        keep(directory, ["a.test"], NOW)
    replace = os.replace

    def stop(source: Path, target: Path) -> None:
        if target.name == after:
            raise KeyboardInterrupt
        replace(source, target)

    before = contents(directory)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            keep(directory, ["b.test"], NOW)
    now = contents(directory)
    assert now.get("certificate.pem") == before.get("certificate.pem")  # the key goes first
    assert (now.get("key.pem") == before.get("key.pem")) is (after == "key.pem")
    assert {path.name for path in directory.iterdir()} <= {"key.pem", "certificate.pem"}
    again = keep(directory, ["b.test"], NOW)
    assert again.made
    assert again.pair.names == ("b.test",)


def test_a_running_server_takes_it(directory: Path) -> None:
    pair = keep(directory, ["a.test"], NOW).pair
    store = CertificateStore([pair.files])
    assert store.load(NOW + 60) == []
    new = keep(directory, ["a.test", "b.test"], NOW).pair
    (said,) = store.reload(NOW + 60)
    assert "was replaced: for a.test, b.test" in said
    assert served_by(store.context, "b.test") == new.fingerprint


def test_one_process_at_a_time(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(parents=True)
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with monkeypatch.context() as patch:
            patch.setattr(selfsigned, "LOCK_PATIENCE_S", 0.05)
            with pytest.raises(CertificateError, match=r"has had .* locked"):
                keep(directory, ["a.test"], NOW)
        assert list(directory.iterdir()) == []
        done: list[selfsigned.SelfSigned] = []
        threads = [
            threading.Thread(target=lambda: done.append(keep(directory, ["a.test"], NOW)), daemon=True)
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        assert done == []
    finally:
        os.close(fd)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(each.made for each in done) == [False, False, True]
    assert len({each.pair.fingerprint for each in done}) == 1


def test_a_directory_of_somebody_else(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(parents=True)
    someone = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: someone)
    with pytest.raises(CertificateError, match="belongs to another user"):
        keep(directory, ["a.test"], NOW)
    assert list(directory.iterdir()) == []


# --- names ---


def test_the_names_of_this_host() -> None:
    names = host_names()
    assert {"localhost", "127.0.0.1", "::1"} <= set(names)
    assert len(names) == len(set(names)) <= MAX_NAMES
    assert not any(name.startswith("fe80") for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pi", ["pi", "pi.local"]),
        ("Pi", ["pi", "pi.local"]),
        ("www.example.org", ["www.example.org"]),
        ("bad name!", ["localhost"]),
        ("", ["localhost"]),
    ],
)
def test_the_name_of_this_host(monkeypatch: pytest.MonkeyPatch, name: str, expected: list[str]) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: name)
    assert list(host_names()[: len(expected)]) == expected


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("20010db8000000000000000000000007 02 40 00 80 eth0", ["2001:db8::7"]),
        ("00000000000000000000000000000001 01 80 10 80 lo", ["::1"]),
        ("fe800000000000000000000000000001 02 40 20 80 eth0", []),
        ("20010db8000000000000000000000008 02 40 00 01 eth0", []),
        ("", []),
    ],
    ids=["lasting", "loopback", "link-local, which no URL can name", "temporary, another one tomorrow", "empty"],
)
def test_addresses_that_last(line: str, address: list[str]) -> None:
    assert list(lasting_address(line)) == address


def test_what_is_no_name_is_left_out(directory: Path) -> None:
    pair = keep(directory, ["bad name", "a.test", "", "A.TEST", "x/y"], NOW).pair
    assert pair.names == ("a.test",)
    assert keep(directory.with_name("b"), ["bad name"], NOW).pair.names == ("localhost",)
    many = keep(directory.with_name("c"), [f"n{number}.test" for number in range(200)], NOW).pair
    assert len(many.names) == MAX_NAMES


@given(st.lists(st.text(max_size=40), max_size=5))
def test_no_name_can_say_anything_to_openssl(texts: list[str]) -> None:
    """What would be a line of its own, a variable or another option is no name."""
    names = selfsigned._wanted(texts)
    plain = request_config(["localhost"]).splitlines()
    lines = request_config(names).splitlines()
    assert len(lines) == len(plain)
    (alternative,) = [line for line in lines if line.startswith("subjectAltName")]
    assert alternative.count(",") == len(names) - 1
    assert "$" not in alternative


# --- the ways ---


def test_the_package_is_preferred() -> None:
    assert maker_here() is by_package


PROGRAM = """\
import sys
sys.modules["cryptography"] = None
from hardserve.tls import selfsigned
from hardserve.tls.certificates import CertificateError
try:
    print(selfsigned.maker_here().__name__)
except CertificateError as error:
    print(error)
"""


@pytest.mark.parametrize("there", [True, False], ids=["with the command", "without"])
def test_without_the_package(tmp_path: Path, there: bool) -> None:
    if there:
        command = tmp_path / "openssl"
        command.write_text("#!/bin/sh\n")
        command.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout == (
        "by_command\n"
        if there
        else "a self-signed certificate needs the command openssl or a package: pip install 'hardserve[tls]'\n"
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("#!/bin/sh\necho 'unknown option' >&2\nexit 3\n", "openssl genpkey failed: unknown option"),
        ("#!/bin/sh\nexit 3\n", "openssl genpkey failed: exit code 3"),
        ("#!/nowhere\n", "openssl genpkey could not be run: "),
    ],
    ids=["it complains", "it says nothing", "it cannot be run"],
)
def test_a_command_that_fails(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    command = tmp_path / "openssl"
    command.write_text(script)
    command.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CertificateError) as caught:
        keep(directory, ["a.test"], NOW, maker=by_command)
    assert str(caught.value).startswith(expected)
    assert list(directory.iterdir()) == []


@pytest.mark.peer
def test_the_command_is_never_given_the_key_where_others_could_see_it(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("openssl is not installed")
    wrapper = tmp_path / "bin" / "openssl"
    wrapper.parent.mkdir()
    said = tmp_path / "arguments"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {said}\nenv >> {said}\nexec {command} "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    pair = keep(directory, ["a.test"], NOW, maker=by_command).pair
    seen = said.read_text()
    assert "genpkey" in seen
    assert not any(line in seen for line in pair.key.read_text().splitlines()[1:-1])
