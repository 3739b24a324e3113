"""What is done next with an order, by what the CA has said of it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.tls.acme import orders, pki
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.acme.client import AcmeError, Authorization, Challenge, Client, OrderState, Problem
from hardserve.tls.acme.orders import (
    Answer,
    Fetch,
    Finalize,
    GiveUp,
    Move,
    Ordering,
    Pause,
    Request,
    StoppedError,
    choose,
    next_move,
)
from hardserve.tls.acme.state import PendingOrder, StateDirectory
from tests.pebble import Reply, ScriptedCA, problem, scripted_ca

HTTP = Challenge("http-01", "https://ca/1", "pending", "token", "token.thumb")
TLS = Challenge("tls-alpn-01", "https://ca/2", "pending", "token", "token.thumb")
DNS = Challenge("dns-01", "https://ca/3", "pending", "token", "token.thumb")
OPEN = Authorization("https://ca/a", "a.example", "pending", (DNS, TLS, HTTP), None)
PROVEN = replace(OPEN, url="https://ca/b", name="b.example", status="valid")
REFUSED = replace(OPEN, status="invalid", problem=Problem("connection", "nobody there (connection)"))
BY_HTTP = replace(REFUSED, challenges=(DNS, TLS, replace(HTTP, status="invalid")))
BY_TLS = replace(REFUSED, challenges=(DNS, replace(TLS, status="invalid"), HTTP))
ORDER = OrderState("https://ca/o", "pending", ("https://ca/a", "https://ca/b"), "https://ca/f", "", None)


@pytest.mark.parametrize(
    ("order", "authorizations", "answered", "expected"),
    [
        pytest.param(ORDER, [OPEN, PROVEN], [], Answer((OPEN,)), id="what is not proven is proven"),
        pytest.param(ORDER, [OPEN, PROVEN], ["https://ca/a"], Pause(), id="what was answered is waited for"),
        pytest.param(ORDER, [PROVEN], [], Pause(), id="all proven, and the order is not ready yet"),
        pytest.param(replace(ORDER, status="ready"), [], [], Finalize(), id="ready"),
        pytest.param(replace(ORDER, status="processing"), [], [], Pause(), id="at work"),
        pytest.param(replace(ORDER, status="valid"), [], [], Fetch(), id="done"),
        pytest.param(
            replace(ORDER, status="invalid"),
            [PROVEN, REFUSED],
            [],
            GiveUp("a.example could not be proven: nobody there (connection)", "unproven", "connection"),
            id="a name that was refused is the reason",
        ),
        pytest.param(
            ORDER,
            [BY_HTTP],
            [],
            GiveUp(
                "a.example could not be proven by http-01 (does the name point to this machine, and does port 80 reach "
                "it?): nobody there (connection)",
                "unproven",
                "connection",
            ),
            id="what to look at for http-01",
        ),
        pytest.param(
            ORDER,
            [BY_TLS],
            [],
            GiveUp(
                "a.example could not be proven by tls-alpn-01 (does the name point to this machine, and does port 443 "
                "reach it?): nobody there (connection)",
                "unproven",
                "connection",
            ),
            id="what to look at for tls-alpn-01",
        ),
        pytest.param(
            ORDER,
            [replace(BY_HTTP, problem=Problem("caa", "a record forbids it (caa)"))],
            [],
            GiveUp("a.example could not be proven by http-01: a record forbids it (caa)", "unproven", "caa"),
            id="where it does not matter who answers",
        ),
        pytest.param(
            ORDER,
            [replace(OPEN, status="expired")],
            [],
            GiveUp("a.example could not be proven: its authorization is expired", "unproven"),
            id="too late",
        ),
        pytest.param(
            replace(ORDER, status="invalid", problem=Problem("badCSR", "weak key (badCSR)")),
            [PROVEN],
            [],
            GiveUp("the CA has refused the order: weak key (badCSR)", "refused", "badCSR"),
            id="the order itself was refused",
        ),
        pytest.param(
            replace(ORDER, status="invalid"),
            [PROVEN],
            [],
            GiveUp("the CA has refused the order: it does not say why", "refused"),
            id="for no reason",
        ),
        pytest.param(
            replace(ORDER, status="revoked"),
            [],
            [],
            GiveUp("the CA says that the order is revoked", "refused"),
            id="in no state of an order",
        ),
    ],
)
def test_what_to_do(
    order: OrderState, authorizations: list[Authorization], answered: list[str], expected: Move
) -> None:
    assert next_move(order, authorizations, frozenset(answered)) == expected


STATUSES = st.sampled_from(
    ["pending", "ready", "processing", "valid", "invalid", "revoked", "deactivated", "expired", "unknown"]
)


@given(status=STATUSES, each=st.lists(STATUSES, max_size=4), answered=st.booleans())
def test_no_authorization_is_answered_twice_and_none_that_is_not_pending(
    status: str, each: list[str], answered: bool
) -> None:
    found = [replace(OPEN, url=f"https://ca/{n}", status=status) for n, status in enumerate(each)]
    known = frozenset(authorization.url for authorization in found) if answered else frozenset()
    move = next_move(replace(ORDER, status=status), found, known)
    if isinstance(move, Answer):
        assert not answered
        assert {authorization.status for authorization in move.authorizations} == {"pending"}
    if isinstance(move, Fetch | Finalize):
        assert set(each) <= {"pending", "valid"}


@pytest.mark.parametrize(
    ("offered", "kinds", "expected"),
    [
        ((DNS, TLS, HTTP), ("http-01", "tls-alpn-01"), HTTP),
        ((DNS, TLS, HTTP), ("tls-alpn-01", "http-01"), TLS),
        ((DNS, TLS), ("http-01", "tls-alpn-01"), TLS),
        ((DNS,), ("http-01", "tls-alpn-01"), None),
        ((), ("http-01",), None),
        ((replace(HTTP, token=""),), ("http-01",), None),
        ((replace(HTTP, status="invalid"), TLS), ("http-01", "tls-alpn-01"), TLS),
        ((replace(HTTP, status="processing"),), ("http-01",), replace(HTTP, status="processing")),
    ],
)
def test_which_challenge_is_taken(
    offered: tuple[Challenge, ...], kinds: tuple[str, ...], expected: Challenge | None
) -> None:
    assert choose(replace(OPEN, challenges=offered), kinds) == expected


# With a CA.


class Rig:
    """An ordering with a CA of the test, whose pauses take no time and are counted."""

    def __init__(self, ca: ScriptedCA, directory: Path) -> None:
        self.ca = ca
        self.state = StateDirectory(directory / "state")
        self.state.prepare()
        self.client = Client(ca.url, pki.new_key(), ca_file=ca.ca_file)
        self.client.connect()
        account = self.client.register("", "", "")
        self.challenges = Challenges()
        self.request = Request(("example.org",), ca.url, account, ("http-01", "tls-alpn-01"))
        self.pauses: list[float] = []
        self.stopped = threading.Event()

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self.stopped.is_set():
            raise StoppedError

    def obtain(self, *, limit_s: float = 60.0, **changed: Any) -> Any:
        ordering = Ordering(self.client, self.state, self.challenges, self.pause, time.time, limit_s=limit_s)
        return ordering.obtain(replace(self.request, **changed))

    def fails(self, **changed: Any) -> AcmeError:
        with pytest.raises(AcmeError) as caught:
            self.obtain(**changed)
        return caught.value


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    with scripted_ca(tmp_path) as ca:
        rig = Rig(ca, tmp_path)
        yield rig
        rig.client.close()


def order(rig: Rig, status: str, **more: object) -> dict[str, object]:
    base = rig.ca.url.removesuffix("/dir")
    return {"status": status, "authorizations": [], "finalize": f"{base}/finalize/0"} | more


@pytest.mark.parametrize("count", [6, 7])
def test_a_ca_asks_for_as_many_authorizations_as_there_are_names_or_a_few_more(rig: Rig, count: int) -> None:
    base = rig.ca.url.removesuffix("/dir")
    body = order(rig, "pending", authorizations=[f"{base}/authorization/{number}" for number in range(count)])
    rig.ca.script["/order"] = [Reply(201, body, {"Location": f"{base}/order/0"})]
    rig.ca.script["/authorization/0"] = [problem(403, "unauthorized", "not yours")]
    asked = f"the CA asks for {count} authorizations, and 1 names are wanted"
    assert (str(rig.fails()) == asked) == (count == 7)
    looked_at = [path for path, _ in rig.ca.said if path.startswith("/authorization")]
    assert len(looked_at) == (count < 7)
    assert (rig.state.read_order() is None) == (count == 7)


@pytest.mark.parametrize("how", ["stops", "has no more time"])
def test_whoever_stops_or_has_no_more_time_asks_for_no_further_authorization(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    passed = [0.0]
    monkeypatch.setattr(orders, "monotonic", lambda: passed[0])
    base = rig.ca.url.removesuffix("/dir")
    urls = [f"{base}/authorization/{number}" for number in range(3)]
    rig.ca.script["/order"] = [Reply(201, order(rig, "pending", authorizations=urls), {"Location": f"{base}/order/0"})]

    def slow(_: object) -> Reply:
        if how == "stops":
            rig.stopped.set()
        else:
            passed[0] = 61.0
        return Reply(200, {"status": "valid", "identifier": {"type": "dns", "value": "a.example"}, "challenges": []})

    rig.ca.script["/authorization/0"] = [slow]
    if how == "stops":
        with pytest.raises(StoppedError):
            rig.obtain()
    else:
        assert "has not come to an end" in str(rig.fails(limit_s=60.0))
    assert [path for path, _ in rig.ca.said if path.startswith("/authorization")] == ["/authorization/0"]


def test_a_ca_that_does_not_begin_is_not_told_again_at_once(rig: Rig) -> None:
    rig.ca.script["/finalize/0"] = [Reply(200, order(rig, "ready"))] * 2
    rig.obtain()
    assert len(rig.ca.sent_to("/finalize/0")) == 3
    assert len([pause for pause in rig.pauses if pause >= 0.5]) == 2


def test_a_ca_that_does_not_answer_for_a_moment_is_asked_again(rig: Rig) -> None:
    rig.ca.script["/certificate/0"] = [Reply(502, b""), problem(500, "serverInternal")]
    issued = rig.obtain()
    assert pki.inspect(issued.chain, pki.load_key(issued.key)).names == ("example.org",)
    assert len(rig.ca.sent_to("/order")) == 1


def test_the_ca_says_how_long_to_wait_within_reason(rig: Rig) -> None:
    working = order(rig, "processing")
    rig.ca.script["/finalize/0"] = [
        lambda payload: (rig.ca._usual("/finalize/0", payload), Reply(200, working, {"Retry-After": "3"}))[1]
    ]
    rig.ca.script["/order/0"] = [
        Reply(200, working, {"Retry-After": "4000"}),
        Reply(200, working, {"Retry-After": "0"}),
        Reply(200, working),
    ]
    rig.obtain()
    assert rig.pauses[:2] == [3.0, 15.0]
    assert all(0.5 <= pause <= 15.0 for pause in rig.pauses)


def test_an_order_that_never_ends_is_left_for_the_next_attempt(rig: Rig) -> None:
    rig.ca.script["/finalize/0"] = [Reply(200, order(rig, "processing"))]
    rig.ca.script["/order/0"] = [Reply(200, order(rig, "processing"))] * 10_000
    error = rig.fails(limit_s=0.3)
    assert error.kind == "unreachable"
    pending = rig.state.read_order()
    assert pending is not None
    rig.ca.script.clear()
    issued = rig.obtain()
    assert issued.key.decode() == pending.key
    assert len(rig.ca.sent_to("/order")) == 1


def test_a_limit_that_is_met_on_the_way_ends_the_attempt_and_not_the_order(rig: Rig) -> None:
    rig.ca.script["/finalize/0"] = [problem(429, "rateLimited", "slowly", **{"Retry-After": "100"})]
    error = rig.fails()
    assert (error.code, error.retry_after) == ("rateLimited", 100.0)
    rig.obtain()
    assert len(rig.ca.sent_to("/order")) == 1


def test_whoever_stops_leaves_the_order_for_the_next_start(rig: Rig) -> None:
    rig.ca.script["/finalize/0"] = [Reply(200, order(rig, "processing"))]
    rig.ca.script["/order/0"] = [Reply(200, order(rig, "processing"))] * 10
    rig.stopped.set()
    with pytest.raises(StoppedError):
        rig.obtain()
    assert rig.state.read_order() is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"names": ("other.example",)},
        {"directory": "https://other.example/dir"},
        {"account": "https://other.example/account"},
    ],
    ids=str,
)
def test_an_order_for_something_else_is_not_continued(rig: Rig, changed: dict[str, object]) -> None:
    key = pki.key_pem(pki.new_key()).decode()
    asked = rig.request
    pending = PendingOrder(
        "https://127.0.0.1:9/o", asked.directory, asked.account, asked.names, key, "http-01", time.time()
    )
    rig.state.write_order(replace(pending, **changed))  # type: ignore[arg-type]
    issued = rig.obtain()
    assert issued.key.decode() != key


@pytest.mark.parametrize(
    ("status", "age", "key"),
    [("invalid", 0.0, ""), ("ready", 6 * 86400.0, ""), ("ready", -100.0, ""), ("ready", 0.0, "broken")],
    ids=["has failed", "is old", "is from the future", "has no key"],
)
def test_an_order_that_cannot_come_to_anything_is_not_continued(rig: Rig, status: str, age: float, key: str) -> None:
    rig.client.new_order(("example.org",))
    rig.ca._orders[0]["status"] = status
    url = rig.ca.url.replace("/dir", "/order/0")
    asked = rig.request
    key = key or pki.key_pem(pki.new_key()).decode()
    rig.state.write_order(
        PendingOrder(url, asked.directory, asked.account, asked.names, key, "http-01", time.time() - age)
    )
    issued = rig.obtain()
    assert issued.key.decode() != key
    assert len(rig.ca.sent_to("/order")) == 2


def test_an_order_that_the_ca_does_not_know_is_not_continued(rig: Rig) -> None:
    rig.ca.script["/finalize/0"] = [problem(429, "rateLimited")]
    rig.fails()
    rig.ca.script["/order/0"] = [problem(404, "malformed", "no such order")]
    rig.obtain()
    assert len(rig.ca.sent_to("/order")) == 2


def test_a_ca_that_offers_nothing_that_can_be_done_is_told_so(rig: Rig) -> None:
    base = rig.ca.url.removesuffix("/dir")
    body = order(rig, "pending", authorizations=[f"{base}/authorization"])
    rig.ca.script["/order"] = [Reply(201, body, {"Location": f"{base}/order/0"})]
    challenge = {"type": "dns-01", "url": f"{base}/c", "status": "pending", "token": "t" * 43}
    authorization = {"status": "pending", "identifier": {"type": "dns", "value": "example.org"}}
    rig.ca.script["/authorization"] = [Reply(200, authorization | {"challenges": [challenge]})]
    error = rig.fails()
    assert error.kind == "misconfigured"
    assert str(error) == "example.org: the CA offers dns-01 to prove it"


def test_a_name_is_answered_for_only_while_its_order_is_under_way(rig: Rig) -> None:
    base = rig.ca.url.removesuffix("/dir")
    body = order(rig, "pending", authorizations=[f"{base}/authorization"])
    rig.ca.script["/order"] = [Reply(201, body, {"Location": f"{base}/order/0"})]
    challenge = {"type": "http-01", "url": f"{base}/c", "status": "pending", "token": "t" * 43}
    authorization = {"status": "pending", "identifier": {"type": "dns", "value": "example.org"}}
    rig.ca.script["/authorization"] = [Reply(200, authorization | {"challenges": [challenge]})]
    seen: list[bytes | None] = []

    def look(_: object) -> Reply:
        seen.append(rig.challenges.answer("/.well-known/acme-challenge/" + "t" * 43))
        return problem(403, "unauthorized", "not today")

    rig.ca.script["/c"] = [look]
    assert "not today" in str(rig.fails())
    assert seen[0] is not None
    assert seen[0].startswith(b"t" * 43 + b".")
    assert rig.ca.sent_to("/c") == [{}]
    assert rig.challenges.answer("/.well-known/acme-challenge/" + "t" * 43) is None
