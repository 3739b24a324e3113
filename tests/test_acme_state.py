"""What is kept, by whom it can be read, and that a crash or a full disk at any moment leaves a pair that is one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hardserve.configfiles import SettingsError
from hardserve.options import from_keywords
from hardserve.securing import secured_by
from hardserve.tls.acme import pki
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.acme.manager import Manager
from hardserve.tls.acme.schedule import Schedule
from hardserve.tls.acme.settings import AcmeSettings
from hardserve.tls.acme.state import Account, PendingOrder, StateDirectory
from hardserve.tls.pemfiles import user_name
from tests.conftest import REPOSITORY
from tests.pebble import Authority, Reply, ScriptedCA, make_authority, scripted_ca
from tests.support import PATIENCE_S

NOBODY = 65_534
NAMES = ("a.example", "b.example")
ABOUT = {"directory": "https://ca.example/dir", "challenge": "http-01"}
ACCOUNT = Account("https://ca.example/dir", "key", "https://ca.example/1", "a@example.org", "kid")
ORDER = PendingOrder(
    "https://ca.example/o", "https://ca.example/dir", "https://ca.example/1", NAMES, "key", "http-01", 5.0
)
SCHEDULE = Schedule("p", 1.5, 3, 1, "no", 2.5, 3.5, "v", 4.5, (5.5, 6.5))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    return state


def pair(authority: Authority) -> tuple[bytes, bytes]:
    key = pki.new_key()
    return authority.issue(NAMES, key) + authority.pem, pki.key_pem(key)


def test_what_is_written_is_read_again_by_the_next_process(state: StateDirectory) -> None:
    state.write_account(ACCOUNT)
    state.write_order(ORDER)
    state.write_schedule(SCHEDULE)
    again = StateDirectory(state.path)
    assert again.read_account(ACCOUNT.directory, ACCOUNT.eab_kid) == ACCOUNT
    assert again.read_order() == ORDER
    assert again.read_schedule() == SCHEDULE
    again.forget_order()
    again.forget_order()
    assert state.read_order() is None


def test_each_ca_and_each_external_account_has_an_account_of_its_own(state: StateDirectory) -> None:
    state.write_account(ACCOUNT)
    assert state.read_account(ACCOUNT.directory, "") is None
    assert state.read_account("https://other.example/dir", ACCOUNT.eab_kid) is None


def test_everything_is_for_the_owner_alone_even_where_it_was_not(tmp_path: Path, authority: Authority) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o755)
    (directory / "certificates").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        state = StateDirectory(directory)
        state.prepare()
        state.write_account(ACCOUNT)
        state.write_order(ORDER)
        state.write_schedule(SCHEDULE)
        state.install(*pair(authority), ABOUT)
        with state.lock():
            pass
    finally:
        os.umask(before)
    for path in (directory, *directory.rglob("*")):
        mode = path.lstat().st_mode & 0o777
        assert path.is_symlink() or mode == (0o700 if path.is_dir() else 0o600), path


def test_the_lock_is_for_one_and_ends_with_its_holder(state: StateDirectory) -> None:
    program = (
        "import sys; from hardserve.tls.acme.state import StateDirectory; from pathlib import Path\n"
        "with StateDirectory(Path(sys.argv[1])).lock() as ours: print(ours, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(state.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"True\n"
        with state.lock() as ours, StateDirectory(state.path).lock() as again:
            assert (ours, again) == (False, False)
        holder.kill()
        holder.wait(PATIENCE_S)
    with state.lock() as ours, StateDirectory(state.path).lock() as again:
        assert (ours, again) == (True, False)


# What is not as it was written.


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"failures": "many"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=["empty", "cut short", "a list", "null", "no fields", "another type", "not text", "endless"],
)
def test_what_cannot_be_read_counts_as_nothing_and_is_said_once(
    state: StateDirectory, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("schedule.json", "order.json"):
        (state.path / name).write_bytes(content)
    for _ in range(3):
        assert state.read_schedule() == Schedule()
        assert state.read_order() is None
    assert len(caplog.messages) == (0 if content in (b"[]", b"null") else 2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None)  # files are flushed
@example(content={"attempted": 10**400})
@given(content=st.dictionaries(st.sampled_from(sorted(Schedule.__slots__)), VALUES))
def test_a_schedule_is_read_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    state = StateDirectory(tmp_path_factory.mktemp("state"))
    complete = {name: getattr(SCHEDULE, name) for name in Schedule.__slots__} | content
    (state.path / "schedule.json").write_text(json.dumps(complete))
    kept = state.read_schedule()
    assert type(kept.attempted) is type(kept.retry_at) is type(kept.ca_until) is type(kept.ask_at) is float
    assert type(kept.failures) is type(kept.unproven) is int
    assert type(kept.error) is type(kept.asked) is type(kept.purpose) is str
    assert kept.window is None or [type(each) for each in kept.window] == [float, float]


@pytest.mark.parametrize("damage", ["key.pem", "certificate.pem"])
@pytest.mark.parametrize("how", ["missing", "empty", "another one's"])
def test_a_pair_that_is_none_is_not_held(
    state: StateDirectory, authority: Authority, damage: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    held = state.install(*pair(authority), ABOUT)
    path = state.path / "certificates" / held.version / damage
    if how == "missing":
        path.unlink()
    else:
        chain, key = pair(authority)
        other = chain if damage == "certificate.pem" else key
        path.write_bytes(b"" if how == "empty" else other)
    again = StateDirectory(state.path)
    assert [again.held(), again.held()] == [None, None]
    assert len(caplog.messages) == 1
    assert again.install(*pair(authority), ABOUT) == again.held()


def test_what_could_not_be_served_is_not_put_in_place(state: StateDirectory, authority: Authority) -> None:
    before = state.install(*pair(authority), ABOUT)
    chain, _ = pair(authority)
    with pytest.raises(pki.UnusableError, match="another key"):
        state.install(chain, pair(authority)[1], ABOUT)
    assert StateDirectory(state.path).held() == before


def for_clients(authority: Authority, names: tuple[str, ...], key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a certificate that is good for clients alone, and that no client takes from a server."""
    plain = x509.load_pem_x509_certificate(authority.issue(names, key))
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.subject)
        .issuer_name(plain.issuer)
        .public_key(key)
        .serial_number(plain.serial_number)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    for extension in plain.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_what_no_client_would_take_is_not_put_in_place(state: StateDirectory, authority: Authority) -> None:
    before = state.install(*pair(authority), ABOUT)
    key = pki.new_key()
    chain = for_clients(authority, NAMES, key.public_key())
    with pytest.raises(pki.UnusableError, match=r"the new certificate\.pem is not one for servers"):
        state.install(chain, pki.key_pem(key), ABOUT)
    assert StateDirectory(state.path).held() == before
    assert [entry.name for entry in (state.path / "certificates").iterdir()] == [before.version]


def test_the_version_before_is_known_and_what_is_served_is_not_tidied_away(
    state: StateDirectory, authority: Authority
) -> None:
    assert state.former() is None
    held = [state.install(*pair(authority), ABOUT | {"taken": str(float(number))}) for number in range(4)]
    assert [each.taken for each in held] == [0.0, 1.0, 2.0, 3.0]
    oldest, between, newest = sorted(held[:3], key=lambda each: each.version)  # of one second, by chance
    assert state.former() == newest
    state.tidy(oldest.version)
    kept = {entry.name for entry in (state.path / "certificates").iterdir()}
    assert kept == {oldest.version, newest.version, held[3].version}
    assert between.version not in kept


@pytest.mark.parametrize("part", ["", "certificates"], ids=["all of it", "the part with keys"])
def test_where_everybody_can_write_nothing_is_taken(state: StateDirectory, authority: Authority, part: str) -> None:
    state.install(*pair(authority), ABOUT)
    (state.path / part).chmod(0o707)
    manager = Manager(AcmeSettings(NAMES), state.path, Challenges(), lambda *_: None)
    for call in (manager.take, manager.check, state.prepare):
        with pytest.raises(PermissionError, match="can be changed by everybody, who can put others in their place"):
            call()
    assert manager._current() is None


def test_a_directory_that_is_open_to_its_group_is_closed(state: StateDirectory, authority: Authority) -> None:
    """Volumes that are mounted for a group are so at each start."""
    state.install(*pair(authority), ABOUT)
    state.path.chmod(0o2770)
    state.prepare()
    assert state.path.stat().st_mode & 0o077 == 0
    assert Manager(AcmeSettings(NAMES), state.path, Challenges(), lambda *_: None).take()


def test_of_old_versions_the_last_one_is_kept(state: StateDirectory, authority: Authority) -> None:
    versions = [state.install(*pair(authority), ABOUT).version]
    for _ in range(4):
        time.sleep(0.001)
        versions.append(state.install(*pair(authority), ABOUT).version)
        state.tidy()
        kept = {entry.name for entry in (state.path / "certificates").iterdir()}
        assert versions[-1] in kept
        assert len(kept) == 2


def test_an_order_whose_certificate_is_in_use_is_forgotten(state: StateDirectory, authority: Authority) -> None:
    chain, key = pair(authority)
    state.write_order(replace(ORDER, key=key.decode()))
    state.tidy()
    assert state.read_order() is not None
    state.install(chain, key, ABOUT)
    state.tidy()
    assert state.read_order() is None


# Crashes and full disks: at each call that changes anything.


class Crash(BaseException):
    """The process is gone: nothing of ours runs after it."""


CALLS = [(os, "open"), (os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "symlink"), (os, "unlink")]


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], list[str]]:
    """Have the `number`th of the calls above fail from now on; return the list of those that were made."""

    def arrange(number: int, error: BaseException) -> list[str]:
        made: list[str] = []

        def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                made.append(name)
                if len(made) == number:
                    raise error
                return real(*arguments, **options)

            return call

        for module, name in CALLS:
            monkeypatch.setattr(module, name, failing(name, getattr(module, name)))
        return made

    return arrange


FULL = OSError(errno.ENOSPC, "No space left on device")
STEPS = 24  # more than there are


@pytest.mark.parametrize("error", [Crash(), FULL], ids=["crash", "full disk"])
@pytest.mark.parametrize("number", range(1, STEPS))
def test_a_certificate_is_the_old_one_or_the_new_one_whatever_happens_when(
    state: StateDirectory,
    authority: Authority,
    fail_at: Callable[[int, BaseException], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: BaseException,
) -> None:
    first, second = pair(authority), pair(authority)
    before = state.install(*first, ABOUT)
    made = fail_at(number, error)
    happened = False
    try:
        state.install(*second, ABOUT)
    except (Crash, OSError, pki.UnusableError):  # the last where what was written cannot be read
        happened = True
    finally:
        monkeypatch.undo()
    assert happened == (len(made) >= number)
    if number == STEPS - 1:
        assert not happened, "there are more steps than are tried"
        assert set(made) >= {"open", "fsync", "mkdir", "rename", "symlink"}
    after = StateDirectory(state.path)
    held = after.held()
    assert held is not None
    expected = first if held.version == before.version else second
    files = after.pair(held)
    assert (files.certificate.read_bytes(), files.key.read_bytes()) == expected
    # Whoever comes next can go on, and what is half-done goes away.
    after.prepare()
    newest = after.install(*second, ABOUT)
    after.tidy()
    assert after.held() == newest
    assert [path for path in state.path.rglob(".*") if path.name.startswith(".new-")] == []


@pytest.mark.parametrize("error", [Crash(), FULL], ids=["crash", "full disk"])
@pytest.mark.parametrize("number", range(1, 10))
def test_a_file_is_the_old_one_or_the_new_one_whatever_happens_when(
    state: StateDirectory,
    fail_at: Callable[[int, BaseException], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: BaseException,
) -> None:
    state.write_schedule(SCHEDULE)
    changed = replace(SCHEDULE, failures=9)
    fail_at(number, error)
    try:
        state.write_schedule(changed)
    except (Crash, OSError):
        pass
    finally:
        monkeypatch.undo()
    assert StateDirectory(state.path).read_schedule() in (SCHEDULE, changed)
    state.write_schedule(changed)
    assert StateDirectory(state.path).read_schedule() == changed


# A real process that is killed while it talks to a CA.

PROGRAM = """
import sys, time
from pathlib import Path
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.acme.manager import Manager
from hardserve.tls.acme.settings import AcmeSettings, Pace
url, ca_file, state = sys.argv[1:]
settings = AcmeSettings(("example.org",), directory=url, ca_file=Path(ca_file), pace=Pace(0.01, 0.01, 0.01, 0.1, 0.05))
manager = Manager(settings, Path(state), Challenges(), lambda *paths: print("installed", flush=True))
manager.take()
manager.start()
sys.stdin.read()
manager.stop(time.monotonic() + 10)
"""


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[ScriptedCA]:
    with scripted_ca(tmp_path) as ca:
        yield ca


@pytest.mark.parametrize(
    ("path", "orders"),
    [("/dir", 1), ("/nonce", 1), ("/account", 1), ("/order", 2), ("/finalize/0", 1), ("/certificate/0", 1)],
)
def test_a_process_that_is_killed_is_continued_by_the_next_one(
    ca: ScriptedCA, tmp_path: Path, path: str, orders: int
) -> None:
    """Only where the answer to the order itself was never read is there a second order."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PROGRAM, ca.url, str(ca.ca_file), str(tmp_path / "state")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
        processes.append(process)
        return process

    def kill(payload: Any) -> Reply:
        reply = ca._usual(path, payload)
        processes[0].kill()
        processes[0].wait(PATIENCE_S)
        return reply

    ca.script[path] = [kill]
    try:
        assert begin().wait(30) == -9
        noted = StateDirectory(tmp_path / "state").read_schedule()
        assert (noted.failures, noted.error) == (1, "an attempt was broken off")
        assert noted.retry_at > noted.attempted > 0
        second = begin()
        assert second.stdout is not None
        assert second.stdout.readline() == b"installed\n"
        assert len(ca.sent_to("/order")) == orders
        assert len(ca.sent_to("/account")) == (2 if path == "/account" else 1)
        assert len(list((tmp_path / "state").glob("account-*"))) == 1
        held = StateDirectory(tmp_path / "state").held()
        assert held is not None
        assert held.names == ("example.org",)
    finally:
        for process in processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait(PATIENCE_S)


# Of somebody else.


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("mode", [0o700, 0o755])
@pytest.mark.parametrize(
    ("whose", "keywords"),
    [
        ("", {"tls_domain": ["example.org"], "acme_agree": "on"}),
        ("acme", {"tls_domain": ["example.org"], "acme_agree": "on"}),
        ("temporary", {"tls_domain": ["example.org"], "acme_agree": "on"}),
        ("", {"tls": "self-signed"}),
        ("self-signed", {"tls": "self-signed"}),
    ],
    ids=["with a domain", "the CA's part", "the temporary one's part", "self-signed", "the self-signed one's part"],
)
def test_a_directory_of_another_user_stops_the_start(whose: str, keywords: dict[str, Any], mode: int) -> None:
    """It will not become ours by waiting, and whoever starts the server is there to be told."""
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        state = Path(above, "state")
        state.mkdir()
        os.chown(state, NOBODY, -1)
        (state / whose).mkdir(exist_ok=True)
        os.chown(state / whose, 0, 0)
        (state / whose).chmod(mode)
        of_ours, of_others = (
            from_keywords(tls_state=str(path), bind=["127.0.0.1:0"], redirect=[], **keywords)
            for path in (Path(above, "ours"), state)
        )
        secured_by(of_ours, (), {})  # which also imports all that it takes: another user may not read that
        os.seteuid(NOBODY)
        try:
            with pytest.raises(SettingsError) as caught:
                secured_by(of_others, (), {})
        finally:
            os.seteuid(0)
    (problem,) = caught.value.problems
    if mode == 0o755 and whose in ("temporary", "self-signed"):
        assert problem == f"{state / whose} belongs to another user, so a key kept there would be theirs, too"
    else:
        assert problem == (
            f"certificates cannot be kept in {state / whose} by user {user_name(NOBODY)}: Permission denied; "
            "tls.state can name another directory"
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("part", ["", "certificates"], ids=["all of it", "the part with keys"])
def test_what_somebody_else_has_put_there_is_not_served_and_stops_the_start(
    tmp_path: Path, authority: Authority, part: str
) -> None:
    acme = tmp_path / "acme"
    state = StateDirectory(acme)
    state.prepare()
    state.install(*pair(authority), ABOUT)
    os.chown(acme / part, NOBODY, -1)
    settings = from_keywords(
        tls_domain="example.org", acme_agree="on", tls_state=str(tmp_path), bind=["127.0.0.1:0"], redirect=[]
    )
    with pytest.raises(SettingsError) as caught:
        secured_by(settings, (), {})
    which = "it" if not part else "its part certificates"
    (problem,) = caught.value.problems
    assert problem == (
        f"certificates cannot be kept in {acme} by user {user_name(os.geteuid())}: {which} belongs to user "
        f"{user_name(NOBODY)}, who can put others in their place; tls.state can name another directory"
    )


def test_what_is_no_directory_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    settings = from_keywords(tls="self-signed", tls_state=str(tmp_path / "state"), bind=["127.0.0.1:0"])
    with pytest.raises(SettingsError) as caught:
        secured_by(settings, (), {})
    said = f"certificates cannot be kept in {tmp_path / 'state'}: Not a directory; tls.state can name another directory"
    assert list(caught.value.problems) == [said]
