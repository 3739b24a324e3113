"""How many connections a client may have and begin, and what is remembered of whom."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hardserve.edge.clients import BURST_S, MAX_CLIENTS, Clients
from hardserve.refusals import CLIENT_CONNECTION_RATE, CLIENT_CONNECTIONS, Refusal

START = 1000.0
ALICE, BOB, CAROL = "192.0.2.1", "192.0.2.2", "2001:db8::/64"

# --- who is a client ---


# --- the cap ---


def test_past_the_cap_a_client_is_refused_until_one_of_its_connections_ends() -> None:
    clients = Clients(2, 0)
    assert [clients.admit(ALICE, START) for _ in range(4)] == [None, None, CLIENT_CONNECTIONS, CLIENT_CONNECTIONS]
    assert clients.admit(BOB, START) is None, "nobody else's business"
    clients.left(ALICE)
    assert [clients.admit(ALICE, START) for _ in range(2)] == [None, CLIENT_CONNECTIONS]
    assert clients.connections(ALICE) == 2


def test_a_client_that_has_left_is_not_remembered_where_there_is_no_rate() -> None:
    clients = Clients(2, 0)
    for client in (ALICE, BOB, ALICE):
        assert clients.admit(client, START) is None
    assert len(clients) == 2
    for client in (ALICE, BOB, ALICE):
        clients.left(client)
    assert len(clients) == 0


@pytest.mark.parametrize("client", [ALICE, ""], ids=["zero is no limit", "nobody has no limit"])
def test_no_limit(client: str) -> None:
    clients = Clients(0, 0) if client else Clients(1, 1)
    assert all(clients.admit(client, START) is None for _ in range(1000))
    assert clients.connections(client) == (1000 if client else 0)
    for _ in range(1000):
        clients.left(client)
    assert len(clients) == 0


def test_what_is_counted_without_asking_is_over_the_cap_and_leaves_like_any_other() -> None:
    clients = Clients(1, 1)
    for _ in range(5):
        clients.count(ALICE, START)
    assert clients.connections(ALICE) == 5
    assert clients.admit(ALICE, START) is CLIENT_CONNECTIONS
    for _ in range(5):
        clients.left(ALICE)
    assert clients.admit(ALICE, START) is None


def test_one_that_was_never_counted_cannot_leave() -> None:
    clients = Clients(1, 1)
    clients.left(ALICE)
    assert clients.admit(ALICE, START) is None
    assert clients.connections(ALICE) == 1


# --- the rate ---


def admitted(clients: Clients, client: str, attempts: int, now: float) -> int:
    """Return how many of `attempts` connections, each of which ends at once, were admitted."""
    outcomes: Counter[Refusal | None] = Counter()
    for _ in range(attempts):
        outcome = clients.admit(client, now)
        outcomes[outcome] += 1
        if outcome is None:
            clients.left(client)
    assert set(outcomes) <= {None, CLIENT_CONNECTION_RATE}
    return outcomes[None]


@pytest.mark.parametrize("rate", [1, 3, 7, 100, 333, 10_000])
@pytest.mark.parametrize("start", [0.1, START, 98_765.4321], ids="at {:g} s of the clock".format)
def test_twice_the_rate_at_once_and_then_the_rate(rate: int, start: float) -> None:
    clients = Clients(0, rate)
    assert admitted(clients, ALICE, 2 * rate + 5, start) == 2 * rate
    assert admitted(clients, BOB, 1, start) == 1, "nobody else's business"
    assert admitted(clients, ALICE, 2 * rate, start + 1) == rate
    assert admitted(clients, ALICE, 5, start + 1) == 0
    assert admitted(clients, ALICE, 3 * rate, start + 60) == 2 * rate, "no more is saved up"


def test_a_client_that_never_stops_trying_gets_its_rate() -> None:
    clients = Clients(0, 10)
    got = sum(admitted(clients, ALICE, 1, START + tick / 1000) for tick in range(10_000))
    assert got == pytest.approx(10 * 10 + 20, abs=1)


def test_a_connection_refused_for_the_cap_costs_nothing_of_the_rate() -> None:
    clients = Clients(1, 2)
    assert clients.admit(ALICE, START) is None
    assert [clients.admit(ALICE, START) for _ in range(50)] == [CLIENT_CONNECTIONS] * 50
    clients.left(ALICE)
    assert admitted(clients, ALICE, 50, START) == 3


def test_the_rate_holds_while_connections_are_open() -> None:
    clients = Clients(0, 1)
    assert [clients.admit(ALICE, START) for _ in range(3)] == [None, None, CLIENT_CONNECTION_RATE]
    assert clients.admit(ALICE, START + 1) is None
    assert clients.connections(ALICE) == 3


# --- what is forgotten ---


def test_a_client_without_a_connection_is_forgotten_when_its_bucket_is_full() -> None:
    clients = Clients(0, 1)
    assert admitted(clients, ALICE, 2, START) == 2
    assert admitted(clients, BOB, 1, START + BURST_S - 0.1) == 1
    assert len(clients) == 2
    assert admitted(clients, BOB, 1, START + BURST_S) == 1
    assert len(clients) == 1


def test_a_client_that_comes_back_is_known_once() -> None:
    clients = Clients(0, 1)
    for expected in (None, None, CLIENT_CONNECTION_RATE):
        assert clients.admit(ALICE, START) is expected
        assert len(clients) == 1
        clients.left(ALICE)
        assert len(clients) == 1


def test_the_table_shrinks_faster_than_it_grows() -> None:
    clients = Clients(0, 100)
    for number in range(1000):
        assert admitted(clients, f"192.0.2.{number}", 1, START) == 1
    for number in range(500):
        assert admitted(clients, f"198.51.100.{number}", 1, START + 60) == 1
    assert len(clients) == 500


def test_at_the_bound_the_one_goes_that_left_first() -> None:
    clients = Clients(0, 1, max_clients=2)
    assert clients.admit(ALICE, START) is None
    assert clients.admit(BOB, START) is None
    clients.left(BOB)
    clients.left(ALICE)
    assert admitted(clients, CAROL, 1, START) == 1
    assert len(clients) == 2
    assert admitted(clients, ALICE, 5, START) == 1, "she is remembered"
    assert admitted(clients, BOB, 5, START) == 2, "he has a full bucket again"


def test_a_client_with_an_open_connection_is_never_forgotten() -> None:
    clients = Clients(1, 1, max_clients=3)
    assert clients.admit(ALICE, START) is None
    for number in range(100):
        assert admitted(clients, f"198.51.100.{number}", 1, START + number) == 1
        assert len(clients) <= 3
    assert clients.admit(ALICE, START + 100) is CLIENT_CONNECTIONS


def test_those_who_are_connected_may_be_more_than_the_bound_and_leave_nothing_behind() -> None:
    clients = Clients(0, 1, max_clients=3)
    names = [f"198.51.100.{number}" for number in range(10)]
    for name in names:
        assert clients.admit(name, START) is None
    assert len(clients) == 10
    for left, name in enumerate(names, start=1):
        clients.left(name)
        assert len(clients) == max(3, 10 - left)
    assert admitted(clients, names[-1], 2, START) == 1, "the last ones are remembered"


def test_a_flood_of_addresses_is_bounded() -> None:
    clients = Clients(256, 100)
    for number in range(MAX_CLIENTS + 1000):
        assert clients.admit(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64", START) is None
        clients.left(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64")
    assert len(clients) == MAX_CLIENTS


def test_repr_says_how_many_there_are() -> None:
    clients = Clients(0, 1)
    assert clients.admit(ALICE, START) is None
    assert admitted(clients, BOB, 1, START) == 1
    assert repr(clients) == "<Clients 1 connected, 1 remembered>"


# --- against the obvious ---

NAMES = [ALICE, BOB, CAROL, "198.51.100.9"]
# Powers of two and multiples of a 64th, so that the floats are exact and the model need not be lenient.
RATES = [0, 1, 2, 4]
TICKS = 64


class ClientsMachine(RuleBasedStateMachine):
    """Against a bucket of fractions for every client there ever was, none of which is forgotten."""

    max_clients = MAX_CLIENTS

    @initialize(max_connections=st.integers(0, 4), rate=st.sampled_from(RATES))
    def set_up(self, max_connections: int, rate: int) -> None:
        self.cap, self.rate = max_connections, rate
        self.clients = Clients(max_connections, rate, max_clients=self.max_clients)
        self.ticks = 0
        self.open: Counter[str] = Counter()
        self.tokens = dict.fromkeys(NAMES, Fraction(2 * rate))

    @property
    def now(self) -> float:
        return START + self.ticks / TICKS

    @rule(ticks=st.one_of(st.integers(0, 40), st.integers(0, 400)))
    def time_passes(self, ticks: int) -> None:
        self.ticks += ticks
        for name, tokens in self.tokens.items():
            self.tokens[name] = min(Fraction(2 * self.rate), tokens + Fraction(ticks * self.rate, TICKS))

    @rule(name=st.sampled_from(NAMES))
    def connect(self, name: str) -> None:
        expected = self.expected(name)  # which looks at who is remembered before this connection
        outcome = self.clients.admit(name, self.now)
        assert outcome is expected
        if outcome is None:
            self.open[name] += 1
            self.tokens[name] -= 1

    def expected(self, name: str) -> Refusal | None:
        if self.cap and self.open[name] >= self.cap:
            return CLIENT_CONNECTIONS
        return CLIENT_CONNECTION_RATE if self.rate and self.tokens[name] < 1 else None

    @rule(name=st.sampled_from(NAMES))
    def is_counted(self, name: str) -> None:
        self.clients.count(name, self.now)
        self.open[name] += 1

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(+self.open)))
        self.open[name] -= 1
        self.clients.left(name)

    @invariant()
    def every_open_connection_is_counted(self) -> None:
        assert all(self.clients.connections(name) == self.open[name] for name in NAMES)

    @invariant()
    def the_table_is_bounded(self) -> None:
        connected = len(+self.open)
        assert connected <= len(self.clients) <= min(len(NAMES), max(self.max_clients, connected))


class ForgetfulMachine(ClientsMachine):
    """With room for two clients: whoever is forgotten has a full bucket, and nobody else gets more than is theirs."""

    max_clients = 2

    def expected(self, name: str) -> Refusal | None:
        if not self.open[name] and name not in self.clients._resting:
            self.tokens[name] = Fraction(2 * self.rate)
        return super().expected(name)


FAST = settings(
    max_examples=50, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
ClientsMachine.TestCase.settings = FAST
ForgetfulMachine.TestCase.settings = FAST
TestClients = ClientsMachine.TestCase
TestForgetful = ForgetfulMachine.TestCase
