"""`hardserve cert`: what it says of certificates of every kind, that looking changes nothing, and renewing at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.cert import (
    Facts,
    Holding,
    Renewal,
    _facts_of,
    in_json,
    in_words,
    is_good,
    of_authority,
    of_files,
    of_our_own,
)
from hardserve.cli import main
from hardserve.ops.control import CommandError, ask
from hardserve.tls import selfsigned
from hardserve.tls.acme.manager import _digest
from hardserve.tls.acme.settings import LETS_ENCRYPT, LETS_ENCRYPT_STAGING, AcmeSettings
from hardserve.tls.acme.state import StateDirectory
from hardserve.tls.pemfiles import user_name
from hardserve.tls.policy import PairFiles
from tests.certs import DAY_S, Authority, Made, client_context, self_signed
from tests.conftest import StartCommand
from tests.support import Client, TlsSocket, serving
from tests.test_http import eventually

NOBODY = 65_534
MARKS = ("ok", "certificates")
KEYS = (
    "source", "authority", "certificate", "key", "key_fits", "wanted", "names", "issuer", "self_signed", "not_before",
    "not_after", "days_left", "fingerprint_sha256", "next_renewal", "renewal_reason", "failures", "last_error",
    "problems", "warnings",
)  # fmt: skip


@dataclass
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the command in a directory of its own, with nobody's settings."""
    for name in list(os.environ):
        if name.startswith(("HARDSERVE_", "XDG_")) or name.endswith("_DIRECTORY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "environ", os.environ.copy())  # of what a .env file adds, nothing stays
    monkeypatch.chdir(tmp_path)

    def hardserve(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        return Done(int(ended.value.code or 0), printed.out, printed.err)

    return hardserve


def contents(directory: Path) -> dict[Path, Any]:
    """Return everything below a directory, with what would tell of a change."""
    found = {path: (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in directory.rglob("*")}
    return {**found, directory: directory.stat().st_mtime_ns}


def rows(text: str) -> dict[str, str]:
    """Return the last paragraph's rows, of several with one name the last."""
    lines = text.rpartition("\n\n")[2].splitlines()[1:]
    return {line[2:14].strip(): line[16:] for line in lines}


# --- files ---


def leaf(*names: str, **about: Any) -> Made:
    return Authority().intermediate("The Issuer").leaf(*names, **about)


def spoilt(directory: Path, how: str) -> PairFiles:
    """Write a pair that nobody can be served."""
    if how == "expired":
        return leaf("a.test", not_before_s=-90 * DAY_S, not_after_s=-5.5 * DAY_S).write(directory)
    files = leaf("a.test", "*.a.test", "192.0.2.7").write(directory)
    if how == "another key":
        files.key.write_text(self_signed("b.test").key_pem())
    elif how == "a key that everybody can read":
        files.key.chmod(0o644)
    elif how == "no key":
        files.key.unlink()
    elif how == "no certificate":
        files.certificate.unlink()
    elif how == "damaged":
        files.certificate.write_text(files.certificate.read_text().replace("MII", "MIJ", 1))
    elif how == "a pipe":
        files.certificate.unlink()
        os.mkfifo(files.certificate)
    return files


SPOILT = {
    "expired": "has expired, on ",
    "another key": "is not the key of the certificate",
    "a key that everybody can read": "everybody on this machine can read",
    "no key": "cannot be read: No such file",
    "no certificate": "cannot be read: No such file",
    "damaged": "is damaged",
    "a pipe": "is no regular file",
}


def test_a_certificate_that_is_good(run: Run, tmp_path: Path) -> None:
    made = leaf("a.test", "*.a.test", "192.0.2.7")
    files = made.write(tmp_path)
    done = run("cert", "--tls-certificate", "site.pem", "--tls-key", "site.key")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "from files"
    shown = rows(done.out)
    assert shown["for"] == "a.test, *.a.test, 192.0.2.7"
    assert shown["issued by"] == "The Issuer"
    assert shown["valid"].endswith(" UTC, 88 days left")
    assert shown["SHA-256"] == made.fingerprint
    assert shown["certificate"] == str(files.certificate)
    assert shown["key"] == f"{files.key}, which fits"
    assert shown["renewal"].startswith("by whoever keeps these files")
    assert "PROBLEM" not in shown
    assert "is no root of this machine's" in shown["warning"]


@pytest.mark.parametrize("package", [True, False], ids=["with the package", "without the package"])
@pytest.mark.parametrize("how", SPOILT)
def test_what_cannot_be_served(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, package: bool
) -> None:
    """What is in a certificate that cannot be served, Python alone cannot tell; whose fault it is, it can."""
    files = spoilt(tmp_path / "pair", how)
    if not package:
        monkeypatch.setitem(sys.modules, "cryptography", None)
    given = ("--tls-certificate", str(files.certificate), "--tls-key", str(files.key))
    done = run("cert", *given)
    assert (done.code, done.err) == (1, "")
    shown = rows(done.out)
    assert SPOILT[how] in shown["PROBLEM"]
    is_there = how not in ("no certificate", "damaged", "a pipe")
    assert ("SHA-256" in shown) is (is_there or how == "damaged")
    assert ("for" in shown) is (is_there and (package or how == "expired"))
    fits = {"expired": ", which fits", "another key": ", which does not fit"}.get(how, "")
    assert shown["key"] == f"{files.key}{fits}"
    if how == "expired":
        assert shown["valid"].endswith("UTC, expired 5 days ago")
    elif "for" in shown:
        assert shown["for"] == "a.test, *.a.test, 192.0.2.7"
        assert shown["issued by"] == "The Issuer"


def test_all_problems_at_once(run: Run, tmp_path: Path) -> None:
    tables = []
    for number, how in enumerate([*SPOILT, "none"]):
        files = spoilt(tmp_path / str(number), how)
        tables.append(f'[[certificate]]\ncertificate = "{files.certificate}"\nkey = "{files.key}"\n')
    expired = spoilt(tmp_path / "old", "expired")
    expired.key.chmod(0o604)
    tables.append(f'[[certificate]]\ncertificate = "{expired.certificate}"\nkey = "{expired.key}"\n')
    (tmp_path / "hardserve.toml").write_text("".join(tables))
    done = run("cert")
    assert done.code == 1
    for sentence in SPOILT.values():
        assert sentence in done.out
    paragraphs = done.out.split("\n\n")
    assert len(paragraphs) == len(tables)
    assert "PROBLEM" not in paragraphs[-2]
    assert "can read" in paragraphs[-1]  # and besides it has expired, which a server would say after that
    assert "has expired" in paragraphs[-1]


@pytest.mark.parametrize(
    ("begun", "left", "warned"),
    [(-60, 30, False), (-61, 29, False), (-77, 13, True), (-5, 1, True), (-3, 3, False), (2, 90, False)],
)
def test_a_certificate_that_should_have_been_renewed(tmp_path: Path, begun: float, left: float, warned: bool) -> None:
    files = leaf("a.test", not_before_s=begun * DAY_S, not_after_s=left * DAY_S).write(tmp_path)
    holding = of_files(files, time.time())
    assert any("should have been renewed" in warning for warning in holding.warnings) is warned
    assert any("is not valid before" in warning for warning in holding.warnings) is (begun > 0)
    assert is_good([holding])


def test_none_at_all(run: Run) -> None:
    done = run("cert")
    assert (done.code, done.out) == (1, "")
    assert done.err == "hardserve: these settings are without a certificate: the server speaks plain HTTP\n"
    done = run("cert", "--json")
    assert (done.code, json.loads(done.out), done.err) == (1, {"ok": False, "certificates": []}, "")


def test_one_that_nobody_is_served(run: Run, tmp_path: Path) -> None:
    leaf("a.test").write(tmp_path)
    done = run("cert", "--tls-certificate", "site.pem", "--tls-key", "site.key", "--tls", "off")
    assert done.code == 0
    assert 'server.tls is "off"' in rows(done.out)["warning"]


def test_no_line_can_steer_a_terminal(tmp_path: Path) -> None:
    files = self_signed("a.test", common_name="\x1b[2Jevil").write(tmp_path)
    chained = Authority("\x1b[2Jevil\nPROBLEM").leaf("b.test").write(tmp_path / "b")
    now = time.time()
    text = in_words([of_files(files, now), of_files(chained, now)], now)
    assert all(line.isprintable() for line in text.splitlines())
    assert len([line for line in text.splitlines() if "evil" in line]) >= 1


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_nothing_in_a_file_is_an_error_of_ours(certificate: bytes, key: bytes, framed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        files = PairFiles(Path(directory, "a.pem"), Path(directory, "a.key"))
        begin, end = (b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n") if framed else (b"", b"")
        files.certificate.write_bytes(begin + certificate + end)
        files.key.touch(0o600)
        files.key.write_bytes(key)
        holding = of_files(files, 0.0)
        assert holding.problems
        assert json.loads(in_json([holding], 0.0))["ok"] is False


DER = self_signed("a.test", "192.0.2.7").der


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(DER) - 1), st.integers(0, 255))
def test_a_damaged_certificate_is_at_worst_not_understood(at: int, byte: int) -> None:
    damaged = bytearray(DER)
    damaged[at] = byte
    facts = _facts_of(bytes(damaged))
    assert facts is None or isinstance(facts.names, tuple)
    assert _facts_of(DER[:at]) is None


# --- a self-signed one ---


def test_looking_makes_nothing(run: Run, tmp_path: Path) -> None:
    before = contents(tmp_path)
    done = run("cert", "--tls", "self-signed")
    assert (done.code, done.err) == (1, "")
    directory = tmp_path / "home" / ".local" / "state" / "hardserve" / "self-signed"
    assert f"there is none in {directory} yet" in done.out
    assert "name it with --tls-state" in done.out
    done = run("cert", "--tls-domain", "example.org", "--acme-agree", "on", "--json")
    assert done.code == 1
    assert contents(tmp_path) == before


def test_where_it_is_looked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server does, to which a .env file's variables are its environment's."""
    (tmp_path / ".env").write_text(f"XDG_STATE_HOME={tmp_path}/xdg\n")
    assert f"none in {tmp_path}/xdg/hardserve/self-signed" in run("cert", "--tls", "self-signed").out
    monkeypatch.setitem(os.environ, "STATE_DIRECTORY", f"{tmp_path}/service:/another")
    out = run("cert", "--tls", "self-signed").out
    assert f"none in {tmp_path}/service/self-signed" in out
    assert "--tls-state" not in out
    out = run("cert", "--tls", "self-signed", "--tls-state", "./mine").out
    assert f"none in {tmp_path}/mine/self-signed" in out
    assert not (tmp_path / "mine").exists()


def test_without_a_home_there_is_no_place_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    done = run("cert", "--tls", "self-signed")
    assert (done.code, done.out) == (78, "")
    assert 'tls_state = "auto": expected the path of a directory' in done.err


@pytest.mark.parametrize(
    ("names", "after_days", "why", "good"),
    [
        (["a.test"], 0, "two thirds of its time are over then", True),
        (["A.test."], 264, "two thirds of its time are over then", True),
        (["a.test"], 265, "two thirds of its time were over", True),
        (["a.test", "b.test"], 0, "it was not for b.test", True),
        (["a.test"], 398, "two thirds of its time were over", False),
    ],
)
def test_when_it_is_made_anew(tmp_path: Path, names: list[str], after_days: int, why: str, good: bool) -> None:
    pair = selfsigned.keep(tmp_path, ["a.test"], time.time()).pair
    before = contents(tmp_path)
    now = pair.not_before + after_days * DAY_S
    holding = of_our_own(tmp_path, names, now)
    assert contents(tmp_path) == before
    assert (holding.source, holding.fingerprint, holding.key_fits) == ("self-signed", pair.fingerprint, True)
    assert holding.renewal is not None
    assert holding.renewal.why == why
    assert holding.renewal.at == (now if "were" in why or "not for" in why else pair.not_before + 397 * DAY_S * 2 / 3)
    assert is_good([holding]) is good
    shown = rows(in_words([holding], now))
    assert shown["issued by"] == "itself"
    assert shown["renewal"].startswith("now, or as soon as a server runs: ") is (holding.renewal.at == now)


def test_one_of_our_own_that_is_broken(tmp_path: Path) -> None:
    files = selfsigned.keep(tmp_path, ["a.test"], time.time()).pair.files
    files.key.chmod(0o644)
    holding = of_our_own(tmp_path, ["a.test"], 1e9)
    assert not is_good([holding])
    assert holding.renewal is not None
    assert (holding.renewal.at, holding.renewal.why) == (1e9, "this one cannot be served")


@contextlib.contextmanager
def without_rights(*directories: Path) -> Iterator[None]:
    """Have directories be some that this process may not look into."""
    modes = 0o700 if os.geteuid() == 0 else 0o000
    for directory in directories:
        directory.chmod(modes)
    if modes:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if modes:
            os.seteuid(0)
        for directory in directories:
            directory.chmod(0o700)


def test_a_place_where_we_may_not_look() -> None:
    """Nothing is to be seen there: that is not the same as nothing being there."""
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        own, of_ca = Path(above, "own"), Path(above, "acme")
        selfsigned.keep(own, ["a.test"], time.time())
        installed(of_ca, leaf("a.test"))
        with without_rights(own, of_ca):
            holdings = of_our_own(own, ["a.test"], time.time()), of_authority(ACME, of_ca, time.time())
    for each in holdings:
        who = user_name(NOBODY if os.geteuid() == 0 else os.geteuid())
        assert any(f"cannot be read by user {who}: Permission denied" in problem for problem in each.problems)
        assert any("run this as the user that the server runs as" in warning for warning in each.warnings)
        assert each.renewal is None
        assert "renewal" not in rows(in_words([each], 0.0))


# --- from a CA ---

ACME = AcmeSettings(("a.test",), agree=True)


def installed(directory: Path, made: Made, authority: str = LETS_ENCRYPT) -> StateDirectory:
    state = StateDirectory(directory)
    state.prepare()
    state.install(made.chain_pem.encode(), made.key_pem().encode(), {"directory": authority, "names": "a.test"})
    return state


def failing(state: StateDirectory, **about: Any) -> None:
    """Note a failure as the server does."""
    state.write_schedule(replace(state.read_schedule(), purpose=_digest(ACME), **about))


def test_from_a_ca(run: Run, tmp_path: Path) -> None:
    made = leaf("example.org", "www.example.org")
    installed(tmp_path / "state" / "acme", made)
    before = contents(tmp_path)
    done = run("cert", "--tls-domain", "example.org", "--acme-agree", "on", "--tls-state", "./state")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == f"from the CA at {LETS_ENCRYPT}"
    shown = rows(done.out)
    assert shown["for"] == "example.org, www.example.org"
    assert "wanted for" not in shown
    assert "warning" not in shown  # of the chain, which is the CA's
    assert shown["SHA-256"] == made.fingerprint
    assert shown["certificate"].startswith(f"{tmp_path}/state/acme/certificates/")
    assert shown["key"].endswith("/key.pem, which fits")
    assert shown["renewal"].endswith(" UTC: a third of its lifetime is left")
    assert "failed" not in shown
    assert contents(tmp_path) == before


def test_an_order_that_fails(tmp_path: Path) -> None:
    state = installed(tmp_path, leaf("a.test", not_before_s=-80 * DAY_S, not_after_s=10 * DAY_S))
    now = time.time()
    failing(state, failures=3, error="the CA said \x1b[31mno", attempted=now, retry_at=now + 3600)
    holding = of_authority(ACME, tmp_path, now)
    assert is_good([holding])
    shown = rows(in_words([holding], now))
    assert shown["failed"] == '"3 times in a row: the CA said \\U0000001b[31mno"'
    assert shown["renewal"].endswith("UTC: a third of its lifetime is left")
    assert "it has 9 days left" in shown["warning"] or "it has 10 days left" in shown["warning"]
    (shown_object,) = json.loads(in_json([holding], now))["certificates"]
    assert (shown_object["failures"], shown_object["last_error"]) == (3, "the CA said \x1b[31mno")
    assert shown_object["next_renewal"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 3600))


def test_a_first_order_that_fails(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.prepare()
    failing(state, failures=1, error="no name", attempted=1e9, retry_at=1e9 + 60)
    holding = of_authority(ACME, tmp_path, 1e9)
    assert not is_good([holding])
    shown = rows(in_words([holding], 1e9))
    assert f"there is none in {tmp_path} yet" in shown["PROBLEM"]
    assert shown["wanted for"] == "a.test"
    assert shown["renewal"] == "2001-09-09 01:47 UTC: there is none"
    assert shown["failed"] == "once: no name"


@pytest.mark.parametrize(
    ("acme", "why", "problems"),
    [
        (
            AcmeSettings(("a.test", "b.test"), agree=True),
            "the one there is, is not for b.test",
            ["it is not for b.test"],
        ),
        (AcmeSettings(("a.test",), agree=True, directory=LETS_ENCRYPT_STAGING), "another CA was chosen", []),
    ],
    ids=["a name more", "another CA"],
)
def test_settings_that_changed(tmp_path: Path, acme: AcmeSettings, why: str, problems: list[str]) -> None:
    """Until there is another certificate, clients of the new name are served one that is not for it."""
    installed(tmp_path, leaf("a.test"))
    now = time.time()
    holding = of_authority(acme, tmp_path, now)
    assert list(holding.problems) == problems
    assert is_good([holding]) is not bool(problems)
    assert holding.authority == LETS_ENCRYPT
    shown = rows(in_words([holding], now))
    assert shown["renewal"] == f"now, or as soon as a server runs: {why}"
    assert shown.get("wanted for") == ("a.test, b.test" if len(acme.names) > 1 else None)


def test_what_a_ca_has_issued_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = installed(tmp_path, leaf("a.test"))
    (tmp_path / "current" / "key.pem").write_text(self_signed("b.test").key_pem())
    (tmp_path / "schedule.json").write_text("{")
    holding = of_authority(ACME, tmp_path, time.time())
    assert any("is not the key of" in problem for problem in holding.problems)
    assert any("schedule.json is not used" in warning for warning in holding.warnings)
    assert holding.key_fits is False
    assert holding.facts is not None
    assert holding.renewal is not None
    assert holding.renewal.why == "there is none"
    assert capsys.readouterr() == ("", "")
    assert state.path.exists()


def test_without_the_package_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = leaf("a.test")
    installed(tmp_path, made)
    for name in [name for name in sys.modules if name.startswith("hardserve.tls.acme.")]:
        if name.endswith(("manager", "state", "pki", "client", "orders")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    holding = of_authority(ACME, tmp_path, time.time())
    (problem,) = holding.problems
    assert 'pip install "hardserve[acme]"' in problem
    assert holding.fingerprint == made.fingerprint
    assert holding.renewal is None


# --- for scripts ---


def test_json_has_the_same_keys_whatever_there_is(run: Run, tmp_path: Path) -> None:
    tables = []
    for number, how in enumerate(["none", "no certificate", "expired"]):
        files = spoilt(tmp_path / str(number), how)
        tables.append(f'[[certificate]]\ncertificate = "{files.certificate}"\nkey = "{files.key}"\n')
    (tmp_path / "hardserve.toml").write_text("".join(tables))
    done = run("cert", "--json", "--tls-domain", "example.org", "--acme-agree", "on")
    assert (done.code, done.err) == (1, "")
    document = json.loads(done.out)
    assert tuple(document) == MARKS
    assert [tuple(each) for each in document["certificates"]] == [KEYS] * 4
    of_ca, good, missing, expired = document["certificates"]
    assert of_ca["source"] == "acme"
    assert of_ca["authority"] == LETS_ENCRYPT
    assert (of_ca["wanted"], of_ca["names"], of_ca["renewal_reason"]) == (["example.org"], [], "there is none")
    assert good["source"] == "file"
    assert (good["key_fits"], good["self_signed"], good["issuer"]) == (True, False, "The Issuer")
    assert (good["problems"], good["next_renewal"]) == ([], None)
    assert 88 < good["days_left"] <= 89
    assert time.strptime(good["not_after"], "%Y-%m-%dT%H:%M:%SZ")
    assert (missing["not_after"], missing["days_left"], missing["fingerprint_sha256"]) == (None, None, None)
    assert -6 < expired["days_left"] < -5


def test_times_that_no_calendar_has() -> None:
    files = PairFiles(Path("/a"), Path("/b"))
    holding = Holding("acme", files, facts=Facts((), "", False, -1e18, 1e18), renewal=Renewal(1e18, "never"))
    (shown,) = json.loads(in_json([holding], 0.0))["certificates"]
    assert (shown["not_before"], shown["not_after"], shown["next_renewal"]) == (None, None, None)
    assert rows(in_words([holding], 0.0))["renewal"] == "never UTC: never"


# --- usage ---


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--renew"], 2, "--renew goes with cert: hardserve cert --renew"),
        (["bans", "--json"], 2, "--json goes with cert and check: hardserve cert --json"),
        (["cert", "--json", "--renew"], 2, "--json is for what there is, and not for --renew"),
        (["cert", "renew"], 2, "unexpected extra argument (renew)"),
        (["cert", "--all"], 2, "--all goes with unban"),
        (["cert", "--tls", "perhaps"], 78, "flag --tls"),
        (["cert", "--tls-key", "./x"], 78, "expected also tls.certificate"),
    ],
)
def test_wrong_usage_and_bad_settings(run: Run, arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


# --- renewing ---


def test_no_server_to_ask(run: Run, tmp_path: Path) -> None:
    done = run("cert", "--renew", "--tls", "self-signed", "--control", str(tmp_path / "s"))
    assert (done.code, done.out) == (1, "")
    assert "there is no such socket; is hardserve running" in done.err
    assert "there is no control socket to ask" in run("cert", "--renew").err


def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def test_a_running_server_makes_its_own_anew(run: Run, tmp_path: Path, start_command: StartCommand) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\napp.get('/')(lambda: 'hello')\n")
    with tempfile.TemporaryDirectory(prefix="hs") as short:
        given = ("--tls", "self-signed", "--tls-state", str(tmp_path / "state"), "--control", f"{short}/s")
        given += ("--limits-client-connection-rate", "0")  # for who looks again and again
        with start_command("app:app", *given, directory=served) as command:
            shown = []
            with Client(TlsSocket(_connected(command.port), client_context())) as open_one:
                assert open_one.get("/").body == b"hello"
                for _ in range(2):
                    done = run("cert", "--json", *given)
                    assert (done.code, done.err) == (0, "")
                    (of_own,) = json.loads(done.out)["certificates"]
                    shown.append(of_own["fingerprint_sha256"])
                    eventually(lambda: _served(command.port) == shown[-1])
                    if len(shown) == 1:
                        renewed = run("cert", "--renew", *given)
                        assert (renewed.code, renewed.err) == (0, "")
                        first, *others = renewed.out.splitlines()
                        assert first.startswith(
                            "a new self-signed certificate was made: a new one was asked for; SHA-256 "
                        )
                        made = first.rpartition(" ")[2]
                        assert not others or "was replaced" in others[0]
                assert open_one.get("/").body == b"hello"
            assert shown[0] != shown[1] == made
            assert "WARNING" not in command.output


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10.0)


def _served(port: int) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest().hex(":").upper()


def test_files_are_looked_at_at_once(tmp_path: Path) -> None:
    authority = Authority()
    files = authority.leaf("a.test").write(tmp_path / "pair")
    with (
        tempfile.TemporaryDirectory(prefix="hs") as short,
        serving(app, tls_certificate=str(files.certificate), tls_key=str(files.key), control=f"{short}/s") as running,
    ):
        control = running.server.open_control()
        assert control is not None
        try:
            assert ask(Path(short, "s"), "renew") == [
                "the files of the certificates were looked at: there is nothing new in them"
            ]
            new = authority.leaf("a.test", "b.test")
            new.write(tmp_path / "pair")
            said = ask(Path(short, "s"), "renew")
            # Or one of the looks every three seconds has come before.
            assert "was replaced: for a.test, b.test" in said[0] or "nothing new" in said[0]
            eventually(lambda: _served(running.port) == new.fingerprint)
        finally:
            control.close()


def test_a_server_without_certificates_has_none_to_renew() -> None:
    with serving(app, tls="off") as running, pytest.raises(CommandError, match="speaks plain HTTP"):
        running.server._renew({})
