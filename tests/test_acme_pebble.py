"""Certificates from a real CA: issued, renewed, and what happens when it refuses, stalls, goes away and comes back."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hardserve.tls.acme import orders
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.acme.manager import Manager, status_of
from hardserve.tls.acme.pki import new_key
from hardserve.tls.acme.settings import AcmeSettings, Pace
from hardserve.tls.acme.state import StateDirectory
from tests.pebble import (
    EAB_KEY,
    EAB_KID,
    NAMES,
    PEBBLE,
    Pebble,
    answering_http,
    answering_tls,
    make_authority,
    pem_of,
    running_pebble,
)

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(PEBBLE is None or NAMES is None, reason="pebble is not installed"),
]

# A CA takes its time, and this machine is shared.
PATIENCE_S = 60.0
QUICK = Pace(unreachable=0.2, refused=0.2, misconfigured=0.2, longest=1.0, look=0.1)
# As long as nothing is due, nothing is looked at.
CALM = Pace(look=0.1)


@dataclass
class Site:
    """A manager with its directory, and what it has handed over."""

    manager: Manager
    directory: Path
    challenges: Challenges
    installed: list[tuple[Path, Path]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, certificate: Path, key: Path) -> None:
        with self.changed:
            self.installed.append((certificate, key))
            self.changed.notify_all()

    def await_installed(self, count: int = 1) -> x509.Certificate:
        """Return the leaf of the `count`th certificate that was handed over, once it was."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.installed) >= count, PATIENCE_S), self.error
            certificate, _ = self.installed[count - 1]
        return x509.load_pem_x509_certificate(certificate.read_bytes())

    def await_error(self, text: str) -> str:
        return until(lambda: self.error if text in self.error else "")

    @property
    def error(self) -> str:
        return self.manager.status()[0].error


def until(true: Any) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (result := true()):
        assert time.monotonic() < end, "it never came"
        threading.Event().wait(0.02)
    return result


def names_of(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(extension.value.get_values_for_type(x509.DNSName))


class Answered(Challenges):
    """Has the CA asked to look only when somebody listens who answers it: a test begins to after the manager.

    Unless `nobody` is there who will.
    """

    def __init__(self, *ports: int) -> None:
        super().__init__()
        self._ports = ports
        self.nobody = False

    def expect_request(self, token: str, key_authorization: str) -> None:
        super().expect_request(token, key_authorization)
        self._wait()

    def expect_handshake(self, name: str, context: ssl.SSLContext) -> None:
        super().expect_handshake(name, context)
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 5.0
        while not any(f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text() for port in self._ports):
            if self.nobody or time.monotonic() > end:
                return
            threading.Event().wait(0.01)


@contextlib.contextmanager
def managing(
    pebble: Pebble, directory: Path, *names: str, clock: Callable[[], float] = time.time, **settings: Any
) -> Iterator[Site]:
    chosen = AcmeSettings(
        names=names or ("example.org",),
        agree=True,
        directory=pebble.url,
        ca_file=pebble.ca_file,
        challenges=("http-01",),
        pace=CALM,
    )
    chosen = replace(chosen, **settings)
    answered = chosen.pace is CALM  # else it is looked again soon
    challenges = Answered(pebble.http_port, pebble.tls_port) if answered else Challenges()
    site = Site(manager=None, directory=directory, challenges=challenges)  # type: ignore[arg-type]
    site.manager = Manager(chosen, directory, challenges, site.note, clock=clock)
    yield_to = time.monotonic()
    site.manager.take()
    site.manager.start()
    assert time.monotonic() - yield_to < 5, "start has waited"
    try:
        yield site
    finally:
        assert site.manager.stop(time.monotonic() + PATIENCE_S), site.manager


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    with running_pebble(tmp_path_factory.mktemp("pebble")) as pebble:
        yield pebble


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have orders be looked at often: this CA is done at once."""
    monkeypatch.setattr(orders, "_FIRST_PAUSE_S", 0.05)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_mode & 0o777 for path in directory.rglob("*") if not path.is_symlink()}


def test_a_certificate_is_issued_for_several_domains_and_is_what_was_asked_for(shared: Pebble, state: Path) -> None:
    names = ("example.org", "www.example.org", "api.example.net")
    with managing(shared, state, *names, email="who@example.org") as site:
        with answering_http(site.challenges, shared.http_port) as asked:
            leaf = site.await_installed()
        until(lambda: not (state / "order.json").exists())
        assert len(asked) >= 3
        assert names_of(leaf) == set(names)
        status = site.manager.status()[0]
        assert (set(status.held), status.error, status.failures) == (set(names), "", 0)
        lifetime = status.not_after - status.not_before
        assert status.not_after - lifetime * 0.37 <= status.next_attempt <= status.not_after - lifetime / 3
        assert repr(site.challenges) == "<Challenges 0 over HTTP, 0 over TLS>"
    # What was handed over makes a context whose chain leads to the CA's root.
    certificate, key = site.installed[0]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    assert certificate.read_text().count("BEGIN CERTIFICATE") == 2
    assert handshake(context, shared.root(), names[1])
    assert state.stat().st_mode & 0o777 == 0o700
    seen = modes(state)
    assert {"lock", "schedule.json", "key.pem", "certificate.pem", "about.json"} <= set(seen)
    assert {name: mode for name, mode in seen.items() if mode not in (0o600, 0o700)} == {}
    assert seen["key.pem"] == 0o600


def handshake(server: ssl.SSLContext, root: bytes, name: str) -> dict[str, Any]:
    """Return the certificate that a client with `root` sees, after it has verified it."""
    client = ssl.create_default_context(cadata=root.decode())
    ours, theirs = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    near = client.wrap_bio(*ours, server_hostname=name)
    far = server.wrap_bio(*theirs, server_side=True)
    for _ in range(8):
        for end in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            theirs[0].write(ours[1].read())
            ours[0].write(theirs[1].read())
    return near.getpeercert() or {}


def test_a_renewal_replaces_key_and_certificate_together_and_keeps_the_one_before(shared: Pebble, state: Path) -> None:
    with managing(shared, state) as site, answering_http(site.challenges, shared.http_port):
        first = site.await_installed()
        assert site.manager.renew_now() == 0
        second = site.await_installed(2)
        assert first.serial_number != second.serial_number
        assert first.public_key() != second.public_key()
        for certificate, key in site.installed:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        assert certificate == (state / "current").resolve() / "certificate.pem"
        site.manager.renew_now()
        site.await_installed(3)
        until(lambda: len(list((state / "certificates").iterdir())) == 2)


def test_what_is_held_is_handed_over_at_the_next_start_before_anything_else(shared: Pebble, state: Path) -> None:
    with managing(shared, state) as site, answering_http(site.challenges, shared.http_port):
        site.await_installed()
    orders = shared.count("Added order")
    assert orders
    challenges, seen = Challenges(), []
    settings = AcmeSettings(("example.org",), agree=True, directory=shared.url, ca_file=shared.ca_file, pace=CALM)
    manager = Manager(settings, state, challenges, lambda *paths: seen.append((paths, threading.current_thread().name)))
    assert manager.take()
    manager.start()
    assert seen == [(site.installed[0], threading.current_thread().name)]
    assert manager.stop(time.monotonic() + PATIENCE_S)
    assert len(seen) == 1
    assert shared.count("Added order") == orders


def test_other_names_are_ordered_at_once_and_the_old_certificate_stays_until_then(shared: Pebble, state: Path) -> None:
    with managing(shared, state) as site, answering_http(site.challenges, shared.http_port):
        site.await_installed()
    with managing(shared, state, "example.org", "new.example.org") as site:
        assert names_of(site.await_installed(1)) == {"example.org"}
        with answering_http(site.challenges, shared.http_port):
            assert names_of(site.await_installed(2)) == {"example.org", "new.example.org"}


def test_half_of_all_nonces_may_be_rejected(tmp_path: Path, state: Path) -> None:
    with (
        running_pebble(tmp_path, PEBBLE_WFE_NONCEREJECT="50") as pebble,
        managing(pebble, state, "a.example.org", "b.example.org") as site,
        answering_http(site.challenges, pebble.http_port),
    ):
        site.await_installed()
        assert site.error == ""


def test_a_ca_that_sleeps_between_its_steps_is_waited_for(tmp_path: Path, state: Path) -> None:
    with (
        running_pebble(tmp_path, PEBBLE_VA_NOSLEEP="", PEBBLE_VA_SLEEPTIME="3") as pebble,
        managing(pebble, state, "a.example.org", "b.example.org") as site,
        answering_http(site.challenges, pebble.http_port),
    ):
        site.await_installed()


def test_authorizations_that_are_valid_already_are_not_proven_again(tmp_path: Path, state: Path) -> None:
    with running_pebble(tmp_path, PEBBLE_AUTHZREUSE="100") as pebble, managing(pebble, state) as site:
        with answering_http(site.challenges, pebble.http_port) as asked:
            site.await_installed()
        count = len(asked)
        assert count
        site.manager.renew_now()
        site.await_installed(2)  # with nobody who answers


def test_a_failing_validation_says_why_and_how_long_there_is_time(
    shared: Pebble, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with managing(shared, state) as site:
        with answering_http(site.challenges, shared.http_port):
            site.await_installed()
        before = site.installed[0][0].read_bytes()
        assert isinstance(site.challenges, Answered)
        site.challenges.nobody = True
        with caplog.at_level(logging.WARNING, "hardserve.acme"):
            site.manager.renew_now()
            error = site.await_error("example.org could not be proven")
        assert error.startswith(
            "example.org could not be proven by http-01 (does the name point to this machine, and does port 80 reach "
            "it?): "
        )
        assert "connection" in error
        assert site.manager.status()[0].failures == 1
        assert len(site.installed) == 1
        assert (state / "current" / "certificate.pem").read_bytes() == before
        line = until(lambda: next((each for each in caplog.messages if "no new certificate" in each), ""))
        assert "the one in use stays, with " in line
        assert " days left" in line
        assert "next attempt 20" in line
        assert "\n" not in line


def test_what_has_failed_is_tried_again_by_itself(shared: Pebble, state: Path) -> None:
    with managing(shared, state, pace=QUICK) as site:
        site.await_error("could not be proven")
        with answering_http(site.challenges, shared.http_port):
            site.await_installed()
        until(lambda: site.manager.status()[0].failures == 0)
        assert site.error == ""


def test_a_restart_does_not_forget_that_it_has_to_wait(shared: Pebble, state: Path) -> None:
    with managing(shared, state, pace=Pace(look=0.1)) as site:  # and nobody answers
        site.await_error("could not be proven")
    orders = shared.count("Added order")
    waiting_until = status_of(site.manager._settings, state, time.time())[0].next_attempt
    assert waiting_until > time.time() + 60
    with managing(shared, state) as site, answering_http(site.challenges, shared.http_port):
        looks = site.manager.status()[0]
        assert (looks.next_attempt, looks.failures) == (waiting_until, 1)
        threading.Event().wait(0.5)  # five looks, each of which would have ordered
        assert shared.count("Added order") == orders
        site.manager.renew_now()
        site.await_installed()


def test_the_ca_goes_away_mid_order_and_comes_back_with_no_memory(tmp_path: Path, state: Path) -> None:
    with running_pebble(tmp_path) as pebble, managing(pebble, state, pace=QUICK) as site:
        asked_for = threading.Event()
        let_go = threading.Event()
        challenges = site.challenges

        class Slow(Challenges):
            def answer(self, path: str) -> bytes | None:
                body = challenges.answer(path)
                if body is not None and not let_go.is_set():
                    asked_for.set()
                    let_go.wait(PATIENCE_S)
                return body

        with answering_http(Slow(), pebble.http_port):
            assert asked_for.wait(PATIENCE_S)
            assert StateDirectory(state).read_order() is not None
            pebble.go_away()
            let_go.set()
            pebble.start()  # the account and the order are gone
            leaf = site.await_installed()
        assert names_of(leaf) == {"example.org"}


def test_a_ca_that_stands_still_mid_order_costs_no_second_order(tmp_path: Path, state: Path) -> None:
    with running_pebble(tmp_path) as pebble, managing(pebble, state) as site:
        asked_for, let_go = threading.Event(), threading.Event()

        class Slow(Challenges):
            def answer(self, path: str) -> bytes | None:
                asked_for.set()
                let_go.wait(PATIENCE_S)
                return site.challenges.answer(path)

        with answering_http(Slow(), pebble.http_port):
            assert asked_for.wait(PATIENCE_S)
            with pebble.standing_still():
                let_go.set()
                time.sleep(0.5)  # it is asked meanwhile
                assert site.installed == []
            site.await_installed()
        assert pebble.count("Added order") == 1


def test_a_ca_that_is_not_there_is_no_reason_to_wait_at_start(tmp_path: Path, state: Path) -> None:
    pebble = Pebble(tmp_path, {})
    try:
        with managing(pebble, state, pace=QUICK) as site:
            error = site.await_error("cannot reach")
            assert error == f"cannot reach 127.0.0.1:{pebble.port}: connection refused"
            pebble.start()
            with answering_http(site.challenges, pebble.http_port):
                site.await_installed()
    finally:
        pebble.stop()


def test_an_order_that_was_begun_before_a_crash_is_continued(shared: Pebble, state: Path) -> None:
    """The process ends between the order and its proof, and again when the certificate could not be put in place."""
    with managing(shared, state) as site:

        class Never(Challenges):
            def answer(self, path: str) -> bytes | None:
                if site.challenges.answer(path) is not None:
                    reached.set()
                    released.wait(PATIENCE_S)
                return site.challenges.answer(path)

        reached, released = threading.Event(), threading.Event()
        with answering_http(Never(), shared.http_port):
            assert reached.wait(PATIENCE_S)
            order = StateDirectory(state).read_order()
            assert order is not None
            assert site.manager.stop(time.monotonic() + PATIENCE_S)
            released.set()
    assert StateDirectory(state).read_order() == order
    count = shared.count("Added order")
    with managing(shared, state) as site, answering_http(site.challenges, shared.http_port):
        # What the CA had asked for meanwhile was answered with the token gone, so that it may have failed: then, and
        # only then, a second order is made.
        site.await_installed()
    assert shared.count("Added order") - count <= 1


def test_a_certificate_that_could_not_be_written_is_fetched_again_and_not_ordered_again(
    shared: Pebble, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()
    install = StateDirectory.install

    def install_if_there_is_room(self: StateDirectory, *arguments: Any) -> Any:
        if full.is_set():
            raise OSError(28, "No space left on device")
        return install(self, *arguments)

    monkeypatch.setattr(StateDirectory, "install", install_if_there_is_room)
    with managing(shared, state) as site, answering_http(site.challenges, shared.http_port):
        assert "No space left on device" in site.await_error("cannot be written to")
        count = shared.count("Added order")
        assert site.installed == []
        full.clear()
        site.manager.renew_now()
        site.await_installed()
        assert shared.count("Added order") == count


def test_terms_that_are_not_agreed_to_are_not_agreed_to(shared: Pebble, state: Path) -> None:
    with managing(shared, state, agree=False) as site:
        error = site.await_error("terms of service must be agreed to (--acme-agree on): ")
        assert "https://" in error or "data:" in error
        assert site.manager.status()[0].held == ()


def test_an_account_is_bound_to_an_external_one(tmp_path: Path, state: Path) -> None:
    key = tmp_path / "eab.key"
    key.write_text(EAB_KEY + "\n")
    with running_pebble(tmp_path, external_account=True) as pebble:
        with managing(pebble, state) as site:
            assert "external account" in site.await_error("external account's key id and key")
        wrong = tmp_path / "wrong.key"
        wrong.write_text("AAAA" + EAB_KEY[4:])
        with managing(pebble, state, eab_kid=EAB_KID, eab_key_file=wrong) as site:
            site.await_error("the CA gives no account")
        with managing(pebble, state, eab_kid=EAB_KID, eab_key_file=tmp_path / "nowhere") as site:
            assert "No such file" in site.await_error("cannot be used")
        with (
            managing(pebble, state, eab_kid=EAB_KID, eab_key_file=key) as site,
            answering_http(site.challenges, pebble.http_port),
        ):
            site.await_installed()


def test_a_ca_whose_own_certificate_is_not_trusted_is_not_talked_to(shared: Pebble, state: Path) -> None:
    with managing(shared, state, ca_file=None) as site:
        assert site.await_error("cannot reach") == (
            f"cannot reach 127.0.0.1:{shared.port}: its certificate is not trusted here: acme.ca_file names the root "
            "of a CA of your own"
        )


def test_names_are_proven_by_handshakes_where_only_443_is_open(shared: Pebble, state: Path, tmp_path: Path) -> None:
    key = new_key()
    pair = tmp_path / "ordinary.pem"
    pair.write_bytes(pem_of(key) + make_authority().issue(("a.example.org",), key))
    ordinary = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ordinary.set_alpn_protocols(["http/1.1"])
    ordinary.load_cert_chain(pair)
    with (
        managing(shared, state, "a.example.org", "b.example.org", challenges=("tls-alpn-01",)) as site,
        answering_tls(site.challenges, shared.tls_port, ordinary) as asked,
    ):
        assert names_of(site.await_installed()) == {"a.example.org", "b.example.org"}
        assert {name for name, validation in asked if validation} == {"a.example.org", "b.example.org"}
        assert all(validation for _, validation in asked)
    about = StateDirectory(state).held()
    assert about is not None
    assert about.challenge == "tls-alpn-01"


def test_the_other_challenge_is_tried_when_one_has_failed(shared: Pebble, state: Path) -> None:
    with (
        managing(shared, state, challenges=("tls-alpn-01", "http-01"), pace=QUICK) as site,
        answering_http(site.challenges, shared.http_port),
    ):
        site.await_installed()
        held = StateDirectory(state).held()
        assert held is not None
        assert held.challenge == "http-01"


def test_of_two_managers_one_orders_and_both_serve(shared: Pebble, state: Path) -> None:
    count = shared.count("Added order")
    with managing(shared, state, "two.example.org") as one, managing(shared, state, "two.example.org") as other:

        class Both(Challenges):
            def answer(self, path: str) -> bytes | None:
                return one.challenges.answer(path) or other.challenges.answer(path)

        with answering_http(Both(), shared.http_port):
            first, second = one.await_installed(), other.await_installed()
        assert first == second
    assert shared.count("Added order") - count == 1


def test_an_unwritable_directory_is_found_before_the_ca_is_asked(shared: Pebble, tmp_path: Path) -> None:
    state = tmp_path / "file"
    state.write_text("in the way")
    count = shared.count("Added order")
    with managing(shared, state, pace=QUICK) as site:
        until(lambda: site.manager._unwritten is not None and site.manager._unwritten.failures >= 2)
        assert "cannot be written to" in site.manager._unwritten.error  # type: ignore[union-attr]
        state.unlink()
        with answering_http(site.challenges, shared.http_port):
            site.await_installed()
    assert shared.count("Added order") == count + 1
