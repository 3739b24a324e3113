"""All pairs of a server: which one a client gets, how they are replaced, and what the log is told."""

from __future__ import annotations

import gc
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest

from hardserve.tls.certificates import CertificateError
from hardserve.tls.policy import PairFiles
from hardserve.tls.store import (
    DAY_S,
    RETRY_S,
    SETTLE_S,
    TICKET_KEYS_S,
    WARN_DAYS,
    CertificateStore,
    Success,
    UnknownNames,
    threshold,
)
from tests.certs import VERSIONS, Authority, Made, client_context, handshake, self_signed, served_by
from tests.support import PATIENCE_S, switching_often

NOW = 0.0


@pytest.fixture(scope="module", autouse=True)
def clock() -> None:
    """Have it be the time at which these tests begin: they may have been collected minutes before."""
    globals()["NOW"] = time.time()


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, root: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "roots.pem"
    bundle.write_text(root.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "no-roots"))


def loaded(*files: PairFiles, unknown: UnknownNames = "default") -> CertificateStore:
    store = CertificateStore(files, unknown=unknown)
    assert store.load(NOW) == []
    return store


# --- which one ---


@pytest.fixture(scope="module")
def three(root: Authority) -> dict[str, Made]:
    return {
        "first": root.leaf("a.test", "*.b.test"),
        "second": root.leaf("x.b.test", "*.c.test", "a.test"),
        "third": root.leaf("*.test", "192.0.2.1"),
    }


WHICH = [
    pytest.param("a.test", "first", id="a name, which the first pair for it has"),
    pytest.param("A.Test", "first", id="in whatever case"),
    pytest.param("a.test.", "first", id="with a dot behind it"),
    pytest.param("y.b.test", "first", id="by a wildcard"),
    pytest.param("x.b.test", "second", id="a name before a wildcard"),
    pytest.param("x.c.test", "second", id="by another wildcard"),
    pytest.param("b.test", "third", id="by a wildcard of fewer labels"),
    pytest.param("x.y.b.test", None, id="a star is one label"),
    pytest.param("*.b.test", None, id="a star that is meant literally"),
    pytest.param("unknown.example", None, id="an unknown name"),
    pytest.param("192.0.2.1", "third", id="an address, which no client may send as a name"),
    pytest.param("", None, id="an empty name"),
    pytest.param(None, None, id="no name"),
]


@pytest.mark.parametrize(("name", "which"), WHICH)
@pytest.mark.parametrize("unknown", ["default", "refuse"])
def test_which_pair_a_client_gets(
    three: dict[str, Made], tmp_path: Path, unknown: UnknownNames, name: str | None, which: str | None
) -> None:
    store = loaded(*(made.write(tmp_path, label) for label, made in three.items()), unknown=unknown)
    expected = which or ("first" if unknown == "default" else None)
    contexts = {pair.context: label for pair, label in zip(store.pairs, three, strict=True)}
    found = store.context_for(name)
    assert (contexts[found] if found else None) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_gets_it_on_the_wire(three: dict[str, Made], tmp_path: Path, version: str) -> None:
    store = loaded(*(made.write(tmp_path, label) for label, made in three.items()))
    for name, which in (("y.b.test", "first"), ("x.c.test", "second"), ("b.test", "third")):
        ends = handshake(store.context, client_context(version=version, alpn=["http/1.1"]), name)
        assert ends.client.getpeercert(True) == three[which].der
        assert ends.server.selected_alpn_protocol() == "http/1.1"
        assert ends.server.context is store.context_for(name)
    assert served_by(store.context, None) == three["first"].fingerprint


@pytest.mark.parametrize("name", ["unknown.example", None])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_is_refused_on_the_wire(
    three: dict[str, Made], tmp_path: Path, version: str, name: str | None
) -> None:
    store = loaded(three["first"].write(tmp_path), unknown="refuse")
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        handshake(store.context, client_context(version=version), name)


# --- loading ---


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    store = CertificateStore([PairFiles(tmp_path / "a", tmp_path / "b")])
    assert store.pairs == ()
    assert store.context_for("a.test") is None
    with pytest.raises(RuntimeError):
        store.context  # noqa: B018


def test_every_problem_of_every_pair_is_said_at_once(root: Authority, tmp_path: Path) -> None:
    good, bad, worse = (root.leaf(f"{name}.test").write(tmp_path, name) for name in ("good", "bad", "worse"))
    bad.key.write_text(root.leaf("x").key_pem())
    worse.certificate.unlink()
    worse.key.chmod(0o644)
    store = CertificateStore([good, bad, worse], client_ca=tmp_path / "none", client_certificates="required")
    with pytest.raises(CertificateError) as caught:
        store.load(NOW)
    assert len(caught.value.problems) == 4
    assert caught.value.problems[0] == f"client_ca: {tmp_path / 'none'} cannot be read: No such file or directory"
    assert store.pairs == ()


def test_warnings_are_returned(tmp_path: Path, root: Authority) -> None:
    files = root.leaf("a.test", not_before_s=DAY_S).write(tmp_path)
    files.key.chmod(0o640)
    said = CertificateStore([files]).load(NOW)
    assert len(said) == 2
    assert "group" in said[0]
    assert "not valid before" in said[1]


def test_other_pairs_can_be_used_later(root: Authority, tmp_path: Path) -> None:
    """A temporary certificate, say, until there is a better one."""
    temporary, better = self_signed("a.test"), root.leaf("a.test")
    first, second = temporary.write(tmp_path, "temporary"), better.write(tmp_path, "better")
    store = loaded(first)
    front = store.context
    assert store.use([second], NOW) == []
    assert served_by(front, "a.test") == better.fingerprint
    assert store.context is front
    second.key.write_text("")
    with pytest.raises(CertificateError):
        store.use([second, first], NOW)
    assert [pair.fingerprint for pair in store.pairs] == [better.fingerprint]


def test_a_pair_that_is_named_twice_is_loaded_once(root: Authority, tmp_path: Path) -> None:
    files = root.leaf("a.test").write(tmp_path)
    assert len(loaded(files, files).pairs) == 1


def test_repr_is_a_line(root: Authority, tmp_path: Path) -> None:
    assert repr(loaded(root.leaf("a.test", "b.test").write(tmp_path))) == "<CertificateStore 1 pairs for 2 names>"


# --- replacing ---


def test_nothing_new_is_no_news(root: Authority, tmp_path: Path) -> None:
    store = loaded(root.leaf("a.test").write(tmp_path))
    (pair,) = store.pairs
    for later in range(5):
        assert store.reload(NOW + later) == []
    assert store.pairs[0] is pair


def test_a_replaced_pair_is_served_from_then_on(root: Authority, tmp_path: Path) -> None:
    files = root.leaf("a.test").write(tmp_path)
    store = loaded(files)
    new = root.leaf("b.test", "c.test")
    new.write(tmp_path)
    (said,) = store.reload(NOW)
    assert said.startswith(f"the certificate in {files.certificate} was replaced: for b.test, c.test, until 20")
    assert isinstance(said, Success)
    assert served_by(store.context, "c.test") == new.fingerprint
    assert store.reload(NOW + 1) == []


def test_files_that_were_only_touched_are_no_news(root: Authority, tmp_path: Path) -> None:
    files = root.leaf("a.test").write(tmp_path)
    store = loaded(files)
    os.utime(files.certificate, ns=(1, 1))
    assert store.reload(NOW) == []
    files.key.chmod(0o640)
    (said,) = store.reload(NOW)
    assert "group" in said


def test_a_connection_keeps_what_it_began_with(root: Authority, tmp_path: Path) -> None:
    made = root.leaf("a.test")
    store = loaded(made.write(tmp_path))
    ends = handshake(store.context, client_context(root), "a.test")
    root.leaf("a.test").write(tmp_path)
    assert len(store.reload(NOW)) == 1
    assert ends.say(b"still here") == b"still here"
    assert ends.client.getpeercert(True) == made.der


Break = Callable[[PairFiles, Authority], object]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(
            lambda files, root: files.key.chmod(0o644), "everybody on this machine can read", id="a key for everybody"
        ),
        pytest.param(lambda files, root: files.key.write_text("oops"), "holds no private key", id="no key"),
        pytest.param(
            lambda files, root: root.leaf("a.test", not_after_s=-10).write(files.key.parent),
            "has expired",
            id="expired",
        ),
    ],
)
def test_a_broken_replacement_is_refused_and_said_once(root: Authority, tmp_path: Path, spoil: Break, why: str) -> None:
    made = root.leaf("a.test")
    files = made.write(tmp_path)
    other = root.leaf("b.test")
    store = loaded(files, other.write(tmp_path, "other"))
    spoil(files, root)
    (said,) = store.reload(NOW)
    assert said.startswith(f"what is now in {files.certificate} is not taken, and the certificate until 20")
    assert why in said
    for later in (1, 2, RETRY_S, 2 * RETRY_S, DAY_S - 1):
        assert store.reload(NOW + later) == []
    assert served_by(store.context, "a.test") == made.fingerprint
    # Others are taken meanwhile, and this one when it is mended.
    replaced = root.leaf("b.test")
    replaced.write(tmp_path, "other")
    assert len(store.reload(NOW + 5)) == 1
    assert served_by(store.context, "b.test") == replaced.fingerprint
    mended = root.leaf("a.test")
    mended.write(tmp_path)
    files.key.chmod(0o600)
    (said,) = store.reload(NOW + 6)
    assert "was replaced" in said
    assert served_by(store.context, "a.test") == mended.fingerprint


def test_another_fault_is_said_too(root: Authority, tmp_path: Path) -> None:
    files = root.leaf("a.test").write(tmp_path)
    store = loaded(files)
    files.key.write_text("oops")
    assert len(store.reload(NOW)) == 1
    files.key.chmod(0o644)
    (said,) = store.reload(NOW + 1)
    assert "everybody" in said


def test_what_is_put_back_is_no_news(root: Authority, tmp_path: Path) -> None:
    files = root.leaf("a.test").write(tmp_path)
    store = loaded(files)
    aside = tmp_path / "aside"
    files.key.rename(aside)
    assert store.reload(NOW) == []
    aside.rename(files.key)
    os.utime(files.key)  # the name is the same again, a time is not
    assert store.reload(NOW + SETTLE_S + 1) == []


def test_files_that_are_gone_are_news_after_a_while(root: Authority, tmp_path: Path) -> None:
    made = root.leaf("a.test")
    files = made.write(tmp_path)
    store = loaded(files)
    files.certificate.unlink()
    files.key.unlink()
    assert store.reload(NOW) == []
    assert store.reload(NOW + SETTLE_S - 1) == []
    (said,) = store.reload(NOW + SETTLE_S)
    assert said.count("No such file or directory") == 2
    assert store.reload(NOW + 1000) == []
    assert served_by(store.context, "a.test") == made.fingerprint


# --- certbot ---


class Certbot:
    """Keeps links in live/ to numbered files in archive/, and moves them one after the other."""

    def __init__(self, directory: Path) -> None:
        self.archive, self.live = directory / "archive/x", directory / "live/x"
        self.archive.mkdir(parents=True)
        self.live.mkdir(parents=True)
        self.number = 0
        self.files = PairFiles(self.live / "fullchain.pem", self.live / "privkey.pem")

    def issue(self, made: Made) -> None:
        self.number += 1
        (self.archive / f"fullchain{self.number}.pem").write_text(made.chain_pem)
        key = self.archive / f"privkey{self.number}.pem"
        key.touch(0o600)
        key.write_text(made.key_pem())

    def move(self, name: str) -> None:
        link = self.live / f"{name}.pem"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../archive/x/{name}{self.number}.pem")


@pytest.mark.parametrize(
    "order", [("privkey", "fullchain"), ("fullchain", "privkey")], ids=["key first", "certificate first"]
)
def test_certbot_renews(root: Authority, tmp_path: Path, order: tuple[str, str]) -> None:
    certbot = Certbot(tmp_path)
    old, new = root.leaf("a.test"), root.leaf("a.test")
    certbot.issue(old)
    for name in order:
        certbot.move(name)
    store = loaded(certbot.files)
    certbot.issue(new)
    assert store.reload(NOW) == []  # what is only in archive/ is nobody's business
    certbot.move(order[0])
    for later in (0.0, 1.0, 2.0):
        assert store.reload(NOW + later) == []
        assert served_by(store.context, "a.test") == old.fingerprint
    link = certbot.live / f"{order[1]}.pem"
    link.unlink()
    assert store.reload(NOW + 3) == []
    certbot.move(order[1])
    (said,) = store.reload(NOW + 4)
    assert "was replaced" in said
    assert served_by(store.context, "a.test") == new.fingerprint


def test_a_mismatch_that_stays_is_said_in_the_end(root: Authority, tmp_path: Path) -> None:
    certbot = Certbot(tmp_path)
    certbot.issue(root.leaf("a.test"))
    certbot.move("privkey")
    certbot.move("fullchain")
    store = loaded(certbot.files)
    certbot.issue(root.leaf("a.test"))
    certbot.move("privkey")
    said = [sentence for later in range(40) for sentence in store.reload(NOW + later)]
    assert len(said) == 1
    assert "is not the key of the certificate" in said[0]


def test_what_stays_broken_is_tried_now_and_then(root: Authority, tmp_path: Path) -> None:
    """An encrypted key costs a tenth of a second each time."""
    made = root.leaf("a.test")
    files = made.write(tmp_path, passphrase="open sesame")
    store = loaded(files)
    make, tried = store._make, []

    def count(given: PairFiles | None) -> ssl.SSLContext:
        tried.append(given)
        return make(given)

    store._make = count
    assert files.passphrase_file is not None
    files.passphrase_file.write_text("open barley\n")
    assert store.reload(NOW) == []
    assert len(store.reload(NOW + SETTLE_S)) == 1
    assert len(tried) == 2
    for later in range(1, int(RETRY_S)):
        assert store.reload(NOW + SETTLE_S + later) == []
    assert len(tried) == 2
    assert store.reload(NOW + SETTLE_S + RETRY_S) == []
    assert len(tried) == 3


# --- sessions ---


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_outlive_a_renewal(root: Authority, tmp_path: Path, version: str) -> None:
    store = loaded(root.leaf("a.test").write(tmp_path))
    client = client_context(root, version=version)
    first = handshake(store.context, client, "a.test")
    first.say(b"x")
    root.leaf("a.test").write(tmp_path)
    assert len(store.reload(NOW)) == 1
    again = handshake(store.context, client, "a.test", first.client.session)
    assert again.server.session_reused
    assert again.say(b"x") == b"x"


@pytest.mark.parametrize("version", VERSIONS)
def test_ticket_keys_last_a_day(root: Authority, tmp_path: Path, version: str) -> None:
    store = loaded(root.leaf("a.test").write(tmp_path))
    client = client_context(root, version=version)
    first = handshake(store.context, client, "a.test")
    first.say(b"x")
    front = store.context
    assert store.reload(NOW + TICKET_KEYS_S - 1) == []
    assert store.context is front
    assert store.reload(NOW + TICKET_KEYS_S) == []
    assert store.context is not front
    again = handshake(store.context, client, "a.test", first.client.session)
    assert not again.server.session_reused
    assert again.say(b"x") == b"x"
    made_anew = store.context
    assert store.reload(NOW + TICKET_KEYS_S + 1) == []
    assert store.context is made_anew


def test_a_front_that_nobody_uses_any_more_goes(root: Authority, tmp_path: Path) -> None:
    store = loaded(root.leaf("a.test").write(tmp_path))
    old = weakref.ref(store.context)
    store.reload(NOW + TICKET_KEYS_S)
    gc.collect()
    assert old() is None


# --- client certificates ---


def test_client_ca_is_replaced(root: Authority, tmp_path: Path) -> None:
    staff, successor = Authority("Staff"), Authority("Staff, later")
    ca = tmp_path / "staff.pem"
    ca.write_text(staff.pem)
    files = root.leaf("a.test").write(tmp_path)
    store = CertificateStore([files], client_ca=ca, client_certificates="required")
    assert store.load(NOW) == []

    def client_of(authority: Authority) -> ssl.SSLContext:
        client = client_context(root)
        own = authority.leaf(common_name="eve", purposes=("client",)).write(tmp_path / "client")
        client.load_cert_chain(own.certificate, own.key)
        return client

    old, new = client_of(staff), client_of(successor)
    first = handshake(store.context, old, "a.test")
    first.say(b"x")
    assert first.server.getpeercert()
    with pytest.raises(ssl.SSLError):
        handshake(store.context, new, "a.test")

    ca.write_text("oops")
    (said,) = store.reload(NOW)
    assert said == f"client_ca: {ca} holds no certificates that can be read; what it was is used on"
    assert store.reload(NOW + 1) == []
    assert handshake(store.context, old, "a.test").server.getpeercert()

    ca.write_text(successor.pem)
    (said,) = store.reload(NOW + 2)
    assert said == f"client_ca: {ca} was replaced"
    assert isinstance(said, Success)
    assert handshake(store.context, new, "a.test").server.getpeercert()
    # Nor does a session help whom the former authority had signed.
    for session in (None, first.client.session):
        with pytest.raises(ssl.SSLError):
            handshake(store.context, old, "a.test", session)


def test_client_ca_is_no_matter_while_nobody_is_asked(root: Authority, tmp_path: Path) -> None:
    store = CertificateStore([root.leaf("a.test").write(tmp_path)], client_ca=tmp_path / "none")
    assert store.load(NOW) == []
    assert store.reload(NOW) == []


# --- threads ---


def test_a_pair_is_replaced_while_handshakes_run(root: Authority, tmp_path: Path) -> None:
    """No handshake fails, and each gets a whole certificate: the old one or the new one, and soon the new one."""
    files = root.leaf("a.test").write(tmp_path)
    store = loaded(files)
    stop = threading.Event()
    got: list[SimpleQueue[str | BaseException]] = [SimpleQueue(), SimpleQueue()]

    def connect(results: SimpleQueue[str | BaseException]) -> None:
        try:
            while not stop.is_set():
                results.put(served_by(store.context, "a.test"))
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=connect, args=(results,), daemon=True) for results in got]
    old = store.pairs[0].fingerprint
    with switching_often():
        for thread in threads:
            thread.start()
        try:
            for turn in range(20):
                made = root.leaf("a.test")
                files.key.write_text(made.key_pem())
                assert store.reload(NOW + turn * TICKET_KEYS_S) == []  # the key alone
                files.certificate.write_text(made.chain_pem)
                assert len(store.reload(NOW + turn * TICKET_KEYS_S)) == 1
                for results in got:
                    while (result := results.get(timeout=PATIENCE_S)) != made.fingerprint:
                        assert result == old
                old = made.fingerprint
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)


def test_two_looks_at_once_are_one(root: Authority, tmp_path: Path) -> None:
    """A look that hangs on a slow disk keeps no other thread, and no handshake."""
    made = root.leaf("a.test")
    files = made.write(tmp_path)
    store = loaded(files)
    new = root.leaf("a.test")
    new.write(tmp_path)
    inside, go_on = threading.Event(), threading.Event()
    make = store._make

    def slow(given: PairFiles | None) -> ssl.SSLContext:
        inside.set()
        assert go_on.wait(PATIENCE_S)
        return make(given)

    store._make = slow
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.extend(store.reload(NOW)), daemon=True)
    thread.start()
    assert inside.wait(PATIENCE_S)
    assert store.reload(NOW) == []
    assert store.expiring(NOW) == []
    assert served_by(store.context, "a.test") == made.fingerprint
    go_on.set()
    thread.join(PATIENCE_S)
    assert len(said) == 1
    assert served_by(store.context, "a.test") == new.fingerprint


# --- the end of a certificate ---


@pytest.mark.parametrize(
    ("lifetime", "told"),
    [
        pytest.param(397, [30, 14, 7, 3, 1, 0], id="397 days"),
        pytest.param(365, [30, 14, 7, 3, 1, 0], id="a year"),
        pytest.param(90, [14, 7, 3, 1, 0], id="90 days: whoever renews does so at 30"),
        pytest.param(47, [14, 7, 3, 1, 0], id="47 days"),
        pytest.param(6, [1, 0], id="6 days"),
        pytest.param(1, [0], id="a day"),
    ],
)
def test_when_the_log_is_told(lifetime: int, told: list[int]) -> None:
    end = lifetime * DAY_S
    reached = [threshold(0, end, end - left * DAY_S) for left in range(lifetime, -1, -1)]
    assert list(dict.fromkeys(step for step in reached if step is not None)) == told
    for days in told:
        assert threshold(0, end, end - days * DAY_S) == days
        assert threshold(0, end, end - days * DAY_S - 1) != days
    assert threshold(0, end, end + 1000 * DAY_S) == 0
    assert threshold(0, end, -1000 * DAY_S) is None


def test_the_log_is_told_once_for_each(root: Authority, tmp_path: Path) -> None:
    files = root.leaf("a.test", "b.test", not_before_s=-100 * DAY_S, not_after_s=200 * DAY_S).write(tmp_path)
    store = loaded(files)
    end = store.pairs[0].not_after
    said = {left: store.expiring(end - left * DAY_S / 24) for left in range(40 * 24, -60, -1)}
    told = {left / 24: sentences for left, sentences in said.items() if sentences}
    assert sorted(told, reverse=True) == list(WARN_DAYS)
    assert all(len(sentences) == 1 for sentences in told.values())
    where = f"the certificate for a.test, b.test in {files.certificate}"
    assert told[30][0].startswith(f"{where} expires in 30 days, on 20")
    assert told[1][0].startswith(f"{where} expires in 1 day, on 20")
    assert told[0][0].startswith(f"{where} has expired, on 20")


def test_a_late_start_says_it_once(root: Authority, tmp_path: Path) -> None:
    store = loaded(root.leaf("a.test", not_before_s=-88 * DAY_S, not_after_s=12 * 3600).write(tmp_path))
    (said,) = store.expiring(NOW)
    assert "expires in less than a day" in said
    assert store.expiring(NOW + 3600) == []


def test_a_renewed_one_has_its_own_end(root: Authority, tmp_path: Path) -> None:
    store = loaded(root.leaf("a.test", not_before_s=-88 * DAY_S, not_after_s=2 * DAY_S).write(tmp_path))
    assert len(store.expiring(NOW)) == 1
    root.leaf("a.test").write(tmp_path)
    store.reload(NOW)
    assert store.expiring(NOW) == []
    assert len(store.expiring(store.pairs[0].not_after - 2 * DAY_S)) == 1
