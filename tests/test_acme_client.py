"""What a CA can say that is not what it should: limits, errors, nonsense, and suggestions about when to renew."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from hardserve.tls.acme import answers, pki
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.acme.client import AcmeError, Client, one_line, retry_after_s
from hardserve.tls.acme.manager import Manager
from hardserve.tls.acme.schedule import DAY, HOUR, Held
from hardserve.tls.acme.settings import AcmeSettings, Pace
from hardserve.tls.acme.state import StateDirectory
from hardserve.tls.certificates import CertificateError
from tests.pebble import Reply, ScriptedCA, make_authority, problem, scripted_ca
from tests.support import PATIENCE_S
from tests.test_http import eventually

NAMES = ("example.org",)
AT = {"Location": "https://127.0.0.1/order/1"}


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[ScriptedCA]:
    with scripted_ca(tmp_path) as ca:
        yield ca


@pytest.fixture
def client(ca: ScriptedCA) -> Iterator[Client]:
    client = Client(ca.url, pki.new_key(), ca_file=ca.ca_file)
    client.connect()
    yield client
    client.close()


def refused(call: Any, *arguments: Any) -> AcmeError:
    with pytest.raises(AcmeError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return caught.value


# What one request can come to.


@pytest.mark.parametrize(
    ("reply", "kind", "retry_after", "text"),
    [
        (problem(429, "rateLimited", "too many", **{"Retry-After": "7200"}), "refused", 7200.0, "too many"),
        (problem(429, "rateLimited", "too many"), "refused", HOUR, "rateLimited"),
        (problem(503, "serverInternal", "busy", **{"Retry-After": "30"}), "unreachable", 30.0, "busy"),
        (problem(503, "serverInternal", "busy", **{"Retry-After": "soon"}), "unreachable", None, "busy"),
        (problem(403, "caa", "a record forbids it"), "misconfigured", None, "a record forbids it"),
        (problem(403, "userActionRequired", "new terms"), "misconfigured", None, "new terms"),
        (problem(403, "nobodyKnows", "a\nb\x1b[31m"), "refused", None, "a b [31m (nobodyKnows)"),
        (Reply(502, b"<html>Bad Gateway"), "unreachable", None, "status 502"),
        (Reply(503, b"later", {"Retry-After": "60"}), "unreachable", 60.0, "status 503"),
        (Reply(500, {"unexpected": 1}), "refused", None, "no reason given"),
        (Reply(500, ["unexpected"]), "refused", None, "no reason given"),
        (Reply(200, b""), "unreachable", None, "makes no sense"),
        (Reply(200, b"null"), "unreachable", None, "makes no sense"),
        (Reply(200, b"[" * 100_000), "unreachable", None, "makes no sense"),
        (Reply(200, {}), "unreachable", None, "makes no sense"),
        (Reply(201, {"status": "pending"}), "unreachable", None, "makes no sense"),
        (Reply(201, {"status": "strange", "authorizations": []}, AT), "unreachable", None, "makes no sense"),
        (Reply(201, {"status": "ready", "authorizations": ["ftp://x"]}, AT), "unreachable", None, "makes no sense"),
        (Reply(201, {"status": "ready", "authorizations": []}, {"Location": "/o"}), "unreachable", None, "no sense"),
        (Reply(201, b" " * (2 << 20)), "unreachable", None, "too long"),
        (Reply(307, b"", {"Location": "http://127.0.0.1:9/plain"}), "unreachable", None, "not https://"),
        (Reply(307, b"", {"Location": "/order"}), "unreachable", None, "redirects"),
        (Reply(409, b""), "refused", None, "conflict"),
    ],
    ids=lambda value: value.status if isinstance(value, Reply) else None,
)  # fmt: skip
def test_what_keeps_an_order_from_being_taken(
    ca: ScriptedCA, client: Client, reply: Reply, kind: str, retry_after: float | None, text: str
) -> None:
    ca.script["/order"] = [reply] * 40
    error = refused(client.new_order, NAMES)
    assert text in str(error)
    assert (error.kind, error.retry_after) == (kind, retry_after)


def test_rejected_nonces_are_replaced_but_not_for_ever(ca: ScriptedCA, client: Client) -> None:
    ca.script["/order"] = [problem(400, "badNonce")] * 15
    assert client.new_order(NAMES).status == "ready"
    ca.said.clear()
    ca.script["/order"] = [problem(400, "badNonce")] * 1000
    assert refused(client.new_order, NAMES).code == "badNonce"
    assert len(ca.sent_to("/order")) == 20


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"newNonce": 1, "newAccount": "https://x", "newOrder": "https://x"},
        {"newNonce": "http://x"},
        {"meta": 3},
    ],
    ids=str,
)
def test_a_directory_that_is_none(ca: ScriptedCA, body: object) -> None:
    ca.script["/dir"] = [Reply(200, body)]
    client = Client(ca.url, pki.new_key(), ca_file=ca.ca_file)
    assert "the CA's directory cannot be read" in str(refused(client.connect))
    client.close()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"status": "pending", "identifier": {"type": "dns", "value": "a"}, "challenges": [{"type": 1}]},
        {"status": "pending", "identifier": {"type": "dns", "value": "a"}, "challenges": ["http-01"]},
        {"status": None, "identifier": {"type": "dns", "value": "a"}, "challenges": []},
        {"status": "pending", "identifier": {"type": "dns", "value": "a"}, "challenges": None},
        {"status": "pending", "challenges": []},
    ],
    ids=str,
)
def test_an_authorization_that_makes_no_sense_is_an_error(ca: ScriptedCA, client: Client, body: object) -> None:
    url = ca.url.replace("/dir", "/authorization")
    ca.script["/authorization"] = [Reply(200, body)]
    assert "makes no sense" in str(refused(client.authorization, url))


@pytest.mark.parametrize("token", ["../../etc/passwd", "a/b", "", "a" * 600, "a\r\nb", "é" * 30, None, 7])
def test_a_token_that_is_more_than_a_token_is_not_answered(ca: ScriptedCA, client: Client, token: str) -> None:
    challenge = {"type": "tls-alpn-01", "url": "https://127.0.0.1/c", "status": "pending", "token": token}
    body = {"status": "pending", "identifier": {"type": "dns", "value": "a.example"}, "challenges": [challenge]}
    ca.script["/authorization"] = [Reply(200, body)]
    found = client.authorization(ca.url.replace("/dir", "/authorization"))
    assert [each.token for each in found.challenges] == [""]


@pytest.mark.parametrize("token", ["t" * 43, "t" * 5, "A-_9"])
@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_a_token_is_taken_as_it_is(ca: ScriptedCA, client: Client, kind: str, token: str) -> None:
    challenge = {"type": kind, "url": "https://127.0.0.1/c", "status": "pending", "token": token}
    body = {"status": "pending", "identifier": {"type": "dns", "value": "A.example"}, "challenges": [challenge]}
    ca.script["/authorization"] = [Reply(200, body)]
    found = client.authorization(ca.url.replace("/dir", "/authorization"))
    assert [(each.kind, each.token) for each in found.challenges] == [(kind, token)]
    assert found.challenges[0].key_authorization.startswith(f"{token}.")
    assert found.name == "a.example"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("-5", None),
        ("1e9", None),
        ("9" * 4000, 999_999_999.0),
        ("٣", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:49:37 GMT", 3_939_871_777.0 - 1e9),
        ("tomorrow", None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, 1e9) == expected


@given(st.text())
def test_whatever_a_ca_says_is_one_line_in_the_log(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 503


# What the manager makes of it.


@contextmanager
def managing(ca: ScriptedCA, state: Path, **pace: float) -> Iterator[tuple[Manager, list[Path]]]:
    installed: list[Path] = []
    settings = AcmeSettings(NAMES, directory=ca.url, ca_file=ca.ca_file, pace=Pace(look=0.05, **pace))
    manager = Manager(settings, state, Challenges(), lambda certificate, _: installed.append(certificate))
    manager.take()
    manager.start()
    try:
        yield manager, installed
    finally:
        assert manager.stop(time.monotonic() + 30), manager


def put(ca: ScriptedCA, state: Path, *, days: tuple[float, float] = (-1, 89)) -> Held:
    """Have a certificate be held already."""
    directory = StateDirectory(state)
    directory.prepare()
    key = pki.new_key()
    about = {"directory": ca.url, "challenge": "http-01"}
    return directory.install(ca.authority.issue(NAMES, key, days=days), pki.key_pem(key), about)


def timestamp(days: float) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).isoformat().replace("+00:00", "Z")


def test_a_limit_of_the_ca_is_kept_to_over_a_restart_and_by_whoever_is_in_a_hurry(
    ca: ScriptedCA, tmp_path: Path
) -> None:
    ca.script["/order"] = [problem(429, "rateLimited", "too many certificates", **{"Retry-After": "7200"})]
    with managing(ca, tmp_path / "state", refused=0.01) as (manager, _):
        eventually(lambda: "too many certificates" in manager.status()[0].error)
        assert 7100 < manager.renew_now() <= 7200
        assert 7100 < manager.status()[0].next_attempt - time.time() <= 7200
    with managing(ca, tmp_path / "state", refused=0.01) as (manager, installed):
        assert 7100 < manager.renew_now() <= 7200
        looks = len(ca.said)
        time.sleep(0.4)  # several looks, none of which may become a request
        assert (len(ca.said), installed) == (looks, [])
    assert len(ca.sent_to("/order")) == 1


def test_a_window_that_has_begun_renews_at_once_and_says_what_is_replaced(ca: ScriptedCA, tmp_path: Path) -> None:
    held = put(ca, tmp_path / "state")
    ca.window = (timestamp(-2), timestamp(-1))
    with managing(ca, tmp_path / "state") as (_, installed):
        eventually(lambda: len(installed) == 2)
    assert held.identifier
    assert (f"/renewal/{held.identifier}", None) in ca.said
    assert [each["replaces"] for each in ca.sent_to("/order")] == [held.identifier]


def test_a_window_in_the_future_is_waited_for_and_shown(ca: ScriptedCA, tmp_path: Path) -> None:
    put(ca, tmp_path / "state")
    ca.window = (timestamp(20), timestamp(21))
    ca.script["/renewal/x"] = []
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: "suggests" in manager.status()[0].why)
        next_attempt = manager.status()[0].next_attempt
    assert time.time() + 19.9 * DAY < next_attempt < time.time() + 21.1 * DAY
    assert len(installed) == 1
    assert ca.sent_to("/order") == []


@pytest.mark.parametrize("code", [409, 400])
def test_a_ca_that_does_not_like_what_is_replaced_is_asked_without(ca: ScriptedCA, tmp_path: Path, code: int) -> None:
    put(ca, tmp_path / "state")
    ca.window = (timestamp(-2), timestamp(-1))
    ca.script["/order"] = [problem(code, "alreadyReplaced")]
    with managing(ca, tmp_path / "state") as (_, installed):
        eventually(lambda: len(installed) == 2)
    assert ["replaces" in each for each in ca.sent_to("/order")] == [True, False]


@pytest.mark.parametrize(
    "answer",
    [
        Reply(500, b""),
        Reply(200, {"suggestedWindow": {}}),
        Reply(200, {"suggestedWindow": {"start": "yesterday", "end": "today"}}),
        Reply(200, {"suggestedWindow": {"start": timestamp(-1), "end": timestamp(-2)}}),
        Reply(200, {"suggestedWindow": {"start": "2000-01-01T00:00:00", "end": "2000-01-02T00:00:00"}}),
        Reply(200, [1]),
    ],
    ids=["error", "empty", "not times", "backwards", "no offset", "not an object"],
)
def test_renewal_information_that_makes_no_sense_changes_nothing(ca: ScriptedCA, tmp_path: Path, answer: Reply) -> None:
    held = put(ca, tmp_path / "state")
    ca.window = (timestamp(-2), timestamp(-1))
    ca.script[f"/renewal/{held.identifier}"] = [answer] * 9
    state = StateDirectory(tmp_path / "state")
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: state.read_schedule().asked == held.version)
        assert manager.status()[0].why == "a third of its lifetime is left"
    assert len(installed) == 1
    assert state.read_schedule().ask_at > time.time() + 5 * HOUR


def test_a_ca_without_renewal_information_is_renewed_at_a_third(ca: ScriptedCA, tmp_path: Path) -> None:
    put(ca, tmp_path / "state", days=(-62, 28))
    with managing(ca, tmp_path / "state") as (_, installed):
        eventually(lambda: len(installed) == 2)
    assert ["replaces" in each for each in ca.sent_to("/order")] == [False]


def test_an_expired_certificate_is_not_handed_over_and_replaced(
    ca: ScriptedCA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hardserve.acme")
    put(ca, tmp_path / "state", days=(-90, -1))
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: len(installed) == 1)
        assert manager.status()[0].days_left(time.time()) > 50
    assert "ordering a certificate for example.org: it has expired" in caplog.messages


def test_a_name_that_the_certificate_is_not_for_is_said_until_it_is(
    ca: ScriptedCA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hardserve.acme")
    put(ca, tmp_path / "state")
    names = (*NAMES, "www.example.org", "third.example.org")
    settings = AcmeSettings(names, directory=ca.url, ca_file=ca.ca_file, pace=Pace(look=0.05))
    ca.script["/order"] = [problem(403, "nobodyKnows", "not now")]
    manager = Manager(settings, tmp_path / "state", Challenges(), lambda *_: None)
    assert manager.take()
    missing = "not for www.example.org, third.example.org"
    assert caplog.messages == [f"the certificate for example.org is {missing}: another one will be ordered"]
    manager.start()
    eventually(lambda: "not now" in manager.status()[0].error)
    assert manager.stop(time.monotonic() + 30)
    ordering, failed = caplog.messages[1:]
    assert ordering == f"ordering a certificate for {', '.join(names)}: the one there is, is {missing}"
    assert f" days left, and is {missing}; next attempt " in failed


def test_terms_that_are_to_be_agreed_to_are_named_with_the_setting(ca: ScriptedCA, tmp_path: Path) -> None:
    terms = "https://ca.example/terms"
    directory = {**ca._usual("/dir", None).body, "meta": {"termsOfService": terms}}  # type: ignore[dict-item]
    ca.script["/dir"] = [Reply(200, directory)]
    with managing(ca, tmp_path / "state") as (manager, _):
        eventually(lambda: manager.status()[0].failures)
        eventually(lambda: terms in manager.status()[0].error)
        error = manager.status()[0].error
    assert error == f"its terms of service must be agreed to (--acme-agree on): {terms}"
    assert ca.sent_to("/account") == []


OTHER = pki.new_key()


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        (lambda ca, request: ca.authority.issue(NAMES, OTHER), "another key"),
        (lambda ca, request: ca.authority.issue(("other.example",), request.public_key()), "the name example.org"),
        (lambda ca, request: ca.authority.issue(NAMES, request.public_key(), days=(-9, -1)), "expired already"),
        (lambda ca, request: ca.authority.issue(NAMES, request.public_key(), days=(1, 9)), "not valid yet"),
        (lambda ca, request: b"", "cannot be read"),
        (lambda ca, request: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
        (lambda ca, request: ca.sign(request) * 20, "a chain of 20"),
    ],
    ids=["another key", "other names", "expired", "not yet valid", "empty", "broken", "endless"],
)
def test_what_was_not_asked_for_is_not_put_in_place(ca: ScriptedCA, tmp_path: Path, chain: Any, why: str) -> None:
    before = put(ca, tmp_path / "state", days=(-62, 28))
    ca.chain = lambda request: chain(ca, request)
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: why in manager.status()[0].error)
        assert len(installed) == 1
        state = StateDirectory(tmp_path / "state")
        assert state.held() == before
        assert state.read_order() is None
        ca.chain = ca.sign
        manager.renew_now()
        eventually(lambda: len(installed) == 2)


def for_clients(ca: ScriptedCA, request: x509.CertificateSigningRequest) -> bytes:
    """Return what has all that was asked for, and that no client takes from a server."""
    plain = x509.load_pem_x509_certificate(ca.sign(request))
    usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = x509.CertificateBuilder(
        plain.issuer,
        plain.subject,
        request.public_key(),
        plain.serial_number,
        plain.not_valid_before_utc.replace(tzinfo=None),
        plain.not_valid_after_utc.replace(tzinfo=None),
        [*plain.extensions, x509.Extension(usage.oid, False, usage)],
    )
    return builder.sign(ca.authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_what_cannot_be_served_replaces_nothing_and_the_next_order_waits(ca: ScriptedCA, tmp_path: Path) -> None:
    before = put(ca, tmp_path / "state", days=(-62, 28))
    ca.chain = lambda request: for_clients(ca, request)
    state = StateDirectory(tmp_path / "state")
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: "is not one for servers" in manager.status()[0].error)
        assert (len(installed), state.held(), state.read_order()) == (1, before, None)
        assert manager.status()[0].next_attempt > time.time() + HOUR - 60
        ca.chain = ca.sign
        manager.renew_now()
        eventually(lambda: len(installed) == 2)
    assert len(ca.sent_to("/order")) == 2


class Server:
    """Whoever is handed certificates over, and does not take `refused`."""

    def __init__(self, ca: ScriptedCA, state: Path, *, passing: bool = False) -> None:
        self.state = StateDirectory(state)
        self.passing = passing
        self.refuses = False
        self.served: list[str] = []
        self.refused: list[str] = []
        settings = AcmeSettings(NAMES, directory=ca.url, ca_file=ca.ca_file, pace=Pace(look=0.05))
        self.manager = Manager(settings, state, Challenges(), self._installed)

    def _installed(self, certificate: Path, _: Path) -> None:
        version = certificate.parent.name
        if self.refuses or (version in self.refused and not self.passing):
            self.refused.append(version)
            raise CertificateError([f"not {'now' if self.passing else version}"], passing=self.passing)
        self.served.append(version)


def test_what_the_server_does_not_take_is_replaced_with_patience_and_what_is_served_stays(
    ca: ScriptedCA, tmp_path: Path
) -> None:
    first = put(ca, tmp_path / "state", days=(-62, 28)).version
    server = Server(ca, tmp_path / "state")
    assert server.manager.take()
    server.refuses = True
    server.manager.start()
    for failures in (1, 2, 3):
        noted = (failures, "the new certificate cannot be served")
        eventually(
            lambda as_it=noted: (server.state.read_schedule().failures, server.state.read_schedule().error) == as_it
        )
        assert server.state.read_schedule().retry_at > time.time() + failures * HOUR - 60
        time.sleep(0.3)  # several looks, none of which may become an order
        assert len(ca.sent_to("/order")) == len(server.refused) == failures
        assert (tmp_path / "state" / "certificates" / first).is_dir()
        if failures < 3:
            server.manager.renew_now()
    assert server.manager.stop(time.monotonic() + 30)
    assert server.served == [first]


def test_what_others_are_to_blame_for_is_handed_over_later_and_not_ordered_again(
    ca: ScriptedCA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(ca, tmp_path / "state", passing=True)
    server.refuses = True
    assert not server.manager.take()
    server.manager.start()
    eventually(lambda: len(server.refused) > 3)
    server.refuses = False
    eventually(lambda: len(server.served) == 1)
    time.sleep(0.2)  # several looks
    assert server.manager.stop(time.monotonic() + 30)
    assert set(server.refused) == set(server.served)
    assert len(server.served) == len(ca.sent_to("/order")) == 1
    assert caplog.messages.count("what the CA has issued cannot be served: not now") == 1


def test_where_what_is_in_place_cannot_be_served_the_one_before_it_is(ca: ScriptedCA, tmp_path: Path) -> None:
    first = put(ca, tmp_path / "state").version
    second = put(ca, tmp_path / "state").version
    server = Server(ca, tmp_path / "state")
    server.refused = [second]
    assert server.manager.take()
    assert server.served == [first]
    server.manager.start()
    server.manager._state.tidy(first)
    time.sleep(0.3)  # several looks: what is served is good for a while yet
    assert ca.sent_to("/order") == []
    server.manager.renew_now()
    eventually(lambda: len(server.served) == 2)
    assert server.manager.stop(time.monotonic() + 30)
    assert len(ca.sent_to("/order")) == 1


def test_a_ca_whose_windows_have_always_passed_is_asked_for_one_and_no_more(ca: ScriptedCA, tmp_path: Path) -> None:
    ca.window = ("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z")
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: "suggests" in manager.status()[0].why)
        time.sleep(0.5)  # several looks
        assert manager.status()[0].next_attempt > time.time() + DAY - HOUR
        manager.renew_now()
        eventually(lambda: len(installed) == 2)
    assert len(ca.sent_to("/order")) == 2


def test_nobody_there_for_a_week_is_asked_again_today_and_by_whoever_wants_it_now(
    ca: ScriptedCA, tmp_path: Path
) -> None:
    ca.script["/dir"] = [Reply(503, b"", {"Retry-After": "99999999"})]
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: "status 503" in manager.status()[0].error)
        assert HOUR < manager.status()[0].next_attempt - time.time() <= 9 * HOUR
        assert manager.renew_now() == 0.0
        eventually(lambda: len(installed) == 1)


# Below HTTP: what is no answer at all, or has no end.


@pytest.fixture
def talks(tmp_path: Path) -> Iterator[Callable[[Callable[[ssl.SSLSocket], None]], tuple[str, Path]]]:
    """Have somebody with a good certificate say whatever it likes; return where, and the file with its root."""
    listener = socket.create_server(("127.0.0.1", 0))
    authority, key = make_authority(), pki.new_key()
    (tmp_path / "site.pem").write_bytes(pki.key_pem(key) + authority.issue(("127.0.0.1",), key))
    (tmp_path / "root.pem").write_bytes(authority.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "site.pem")
    threads: list[threading.Thread] = []

    def begin(talk: Callable[[ssl.SSLSocket], None]) -> tuple[str, Path]:
        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.settimeout(PATIENCE_S)
                    with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as talking:
                        talking.recv(65536)
                        talk(talking)

        threads.append(threading.Thread(target=accept, daemon=True))
        threads[0].start()
        return f"https://127.0.0.1:{listener.getsockname()[1]}/dir", tmp_path / "root.pem"

    yield begin
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def for_ever(head: bytes, again: bytes, *, pause: float = 0.0) -> Callable[[ssl.SSLSocket], None]:
    def talk(connection: ssl.SSLSocket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(again)
            time.sleep(pause)

    return talk


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        (for_ever(b"HTTP/1.1 200 OK\r\n", b"X", pause=0.05), "timed out"),
        (for_ever(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.05), "timed out"),
        (for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500), "message too long"),
        (for_ever(CHUNKED, b"0", pause=0.05), "timed out"),
        (for_ever(CHUNKED, b"1\r\nx\r\n" * 1000), "message too long"),
        (for_ever(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x", pause=0.05), "timed out"),
    ],
    ids=["a head", "answers before the answer", "many of them", "the size of a chunk", "many chunks", "a body"],
)
def test_an_answer_that_does_not_end_is_given_up(
    talks: Any, monkeypatch: pytest.MonkeyPatch, talk: Callable[[ssl.SSLSocket], None], why: str
) -> None:
    if why == "timed out":
        monkeypatch.setattr(answers, "ANSWER_S", 0.5)
    url, ca_file = talks(talk)
    client = Client(url, pki.new_key(), ca_file=ca_file)
    began = time.monotonic()
    error = refused(client.connect)
    client.close()
    assert (str(error), error.kind) == (f"cannot reach {url[8:-4]}: {why}", "unreachable")
    assert time.monotonic() - began < 15  # no pause in it was as long as the time for one


def test_fields_that_cannot_be_read_are_one_line_in_the_log(talks: Any, caplog: pytest.LogCaptureFixture) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-A: b\r\n\x1b[2J a line without colon\r\nContent-Length: 2\r\n\r\n{}"
    url, ca_file = talks(lambda connection: connection.sendall(answer))
    client = Client(url, pki.new_key(), ca_file=ca_file)
    assert "a malformed header field" in str(refused(client.connect))
    client.close()
    assert caplog.messages == []


def test_a_ca_that_sends_us_round_in_circles_is_left_after_a_few(ca: ScriptedCA) -> None:
    ca.script["/dir"] = [Reply(302, b"", {"Location": f"{ca.url}?{number}"}) for number in range(40)]
    for number in range(40):
        ca.script[f"/dir?{number}"] = [Reply(302, b"", {"Location": f"{ca.url}?{number + 1}"})]
    client = Client(ca.url, pki.new_key(), ca_file=ca.ca_file)
    assert "redirects" in str(refused(client.connect))
    client.close()
    assert len(ca.said) == 4


def test_an_answer_at_whose_end_the_connection_is_closed_is_read_to_the_end(ca: ScriptedCA) -> None:
    directory = ca._usual("/dir", None)
    ca.script["/dir"] = [Reply(200, directory.body, {"Connection": "close"})]
    client = Client(ca.url, pki.new_key(), ca_file=ca.ca_file)
    client.connect()
    assert client.terms == ""
    client.close()


def test_only_certificates_are_kept_of_what_comes(ca: ScriptedCA, tmp_path: Path) -> None:
    ca.chain = lambda request: b"# a comment\n" + ca.sign(request) + pki.key_pem(OTHER) + ca.authority.pem
    with managing(ca, tmp_path / "state") as (_, installed):
        eventually(lambda: len(installed) == 1)
    kept = installed[0].read_text()
    assert kept.count("-----BEGIN ") == kept.count("-----BEGIN CERTIFICATE-----") == 2
    assert "comment" not in kept


def test_a_lost_answer_to_the_request_is_no_reason_for_another_order(ca: ScriptedCA, tmp_path: Path) -> None:
    def lose(payload: Any) -> Reply:
        ca._usual("/finalize/0", payload)
        return Reply(502, b"")

    ca.script["/finalize/0"] = [lose]
    with managing(ca, tmp_path / "state") as (_, installed):
        eventually(lambda: len(installed) == 1)
    assert len(ca.sent_to("/order")) == 1
    assert len(ca.sent_to("/finalize/0")) == 1


def test_the_account_is_made_once_and_its_address_for_notices_follows_the_setting(
    ca: ScriptedCA, tmp_path: Path
) -> None:
    for count, email in enumerate(["", "a@example.org", "a@example.org", ""], start=1):
        settings = AcmeSettings(NAMES, directory=ca.url, ca_file=ca.ca_file, email=email, pace=Pace(look=0.05))
        installed: list[Path] = []
        manager = Manager(settings, tmp_path / "state", Challenges(), lambda *paths, to=installed: to.append(paths))
        had_one = manager.take()
        manager.start()
        manager.renew_now()
        eventually(lambda to=installed, wanted=1 + had_one: len(to) == wanted)
        assert manager.stop(time.monotonic() + 30)
        assert len(ca.sent_to("/order")) == count
    assert len(ca.sent_to("/account")) == 1
    assert [each.get("contact") for each in ca.sent_to("/account/1")] == [["mailto:a@example.org"], []]


def test_an_account_that_the_ca_has_forgotten_is_made_again_with_the_same_key(ca: ScriptedCA, tmp_path: Path) -> None:
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: len(installed) == 1)
        ca.script["/order"] = [problem(400, "accountDoesNotExist")]
        manager.renew_now()
        eventually(lambda: len(installed) == 2)
    assert len(ca.sent_to("/account")) == 2
    assert len(list((tmp_path / "state").glob("account-*.json"))) == 1


def test_a_callback_that_fails_does_not_end_the_thread(
    ca: ScriptedCA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Path] = []

    def installed(certificate: Path, _: Path) -> None:
        seen.append(certificate)
        raise ValueError("not taken")

    settings = AcmeSettings(NAMES, directory=ca.url, ca_file=ca.ca_file, pace=Pace(look=0.05))
    manager = Manager(settings, tmp_path / "state", Challenges(), installed)
    assert not manager.take()
    manager.start()
    eventually(lambda: len(seen) == 1)
    manager.renew_now()
    eventually(lambda: len(seen) == 2)
    assert manager.stop(time.monotonic() + 30)
    assert any("was not taken" in message for message in caplog.messages)


def test_a_ca_that_hangs_holds_up_neither_the_start_nor_the_stop(ca: ScriptedCA, tmp_path: Path) -> None:
    reached, released = threading.Event(), threading.Event()

    def hang(_: object) -> Reply:
        reached.set()
        released.wait(30)
        return Reply(502, b"")

    ca.script["/dir"] = [hang]
    settings = AcmeSettings(NAMES, directory=ca.url, ca_file=ca.ca_file, pace=Pace(look=0.05))
    manager = Manager(settings, tmp_path / "state", Challenges(), lambda *_: None)
    assert not manager.take()
    manager.start()
    assert reached.wait(10)
    assert not manager.stop(time.monotonic() + 0.1)
    assert "stopping" in repr(manager)
    released.set()
    assert manager.stop(time.monotonic() + 30)
    assert [thread for thread in threading.enumerate() if thread.name == "hardserve-acme"] == []


def test_while_another_process_orders_nothing_is_asked_of_the_ca(ca: ScriptedCA, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    with state.lock() as ours:
        assert ours
        with managing(ca, tmp_path / "state") as (manager, installed):
            manager.renew_now()
            time.sleep(0.5)  # several looks
            assert (ca.said, installed) == ([], [])
            theirs = put(ca, tmp_path / "state")
            eventually(lambda: len(installed) == 1)
            assert installed[0].parent.name == theirs.version
    assert ca.sent_to("/order") == []


def test_somebody_else_with_other_settings_is_left_the_directory(ca: ScriptedCA, tmp_path: Path) -> None:
    with managing(ca, tmp_path / "state") as (manager, installed):
        eventually(lambda: len(installed) == 1)
        other = AcmeSettings(("other.example",), directory=ca.url, ca_file=ca.ca_file, pace=Pace(look=0.05))
        theirs: list[Path] = []
        second = Manager(other, tmp_path / "state", Challenges(), lambda certificate, _: theirs.append(certificate))
        second.take()
        second.start()
        eventually(lambda: len(theirs) == 2 or (len(theirs) == 1 and theirs[0] != installed[0]))
        eventually(lambda: manager._left_alone)
        manager.renew_now()
        time.sleep(0.5)  # several looks of both
        assert second.stop(time.monotonic() + 30)
    assert len(ca.sent_to("/order")) == 2
    assert len(installed) == 1
