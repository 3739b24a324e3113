"""What is said where a CA cannot be reached: one line, with the reason alone."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from hardserve.tls.acme import client as module
from hardserve.tls.acme import pki, reach
from hardserve.tls.acme.client import AcmeError, Client
from tests.certs import DAY_S, Authority
from tests.pebble import ScriptedCA, scripted_ca
from tests.support import PATIENCE_S

NOT_TRUSTED = "its certificate is not trusted here: acme.ca_file names the root of a CA of your own"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedCA]:
    with scripted_ca(tmp_path_factory.mktemp("ca")) as ca:
        yield ca


def said(url: str, ca_file: Path | None = None) -> str:
    """Return what is said of a CA that cannot be talked to."""
    client = Client(url, pki.new_key(), ca_file=ca_file, clock=lambda: 0.0)
    try:
        with pytest.raises(AcmeError) as caught:
            client.connect()
    finally:
        client.close()
    assert caught.value.kind == "unreachable"
    return str(caught.value)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    return f"https://127.0.0.1:{listener.getsockname()[1]}/dir"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = url_of(listener)
    assert said(url) == f"cannot reach {url[8:-4]}: connection refused"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (socket.EAI_NONAME, "name not known"),
        (socket.EAI_AGAIN, "its name cannot be looked up just now"),
    ],
)
def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "whatever the system says")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert said("https://acme.example.org/directory") == f"cannot reach acme.example.org: {reason}"


def test_no_way_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", connect)
    assert said("https://127.0.0.1:14000/dir") == "cannot reach 127.0.0.1:14000: network is unreachable"


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    """Who takes the connection says nothing then."""
    monkeypatch.setattr(module, "_PAUSE_S", 0.05)
    assert said(url_of(listener)) == f"cannot reach {url_of(listener)[8:-4]}: timed out"


@pytest.mark.parametrize(
    ("sent", "reasons"),
    [
        (b"", ("connection reset by peer", "it has closed the connection")),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ("TLS: wrong version number", "TLS: record layer failure")),
    ],
    ids=["it hangs up", "it speaks no TLS"],
)
def test_somebody_else_answers(listener: socket.socket, sent: bytes, reasons: tuple[str, ...]) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(sent)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    assert said(url_of(listener)).removeprefix(f"cannot reach {url_of(listener)[8:-4]}: ") in reasons
    thread.join(PATIENCE_S)


def test_an_issuer_that_is_not_known(ca: ScriptedCA) -> None:
    assert said(ca.url) == f"cannot reach {ca.url[8:-4]}: {NOT_TRUSTED}"


def test_a_certificate_for_another_name(ca: ScriptedCA) -> None:
    url = ca.url.replace("127.0.0.1", "localhost")
    assert said(url, ca.ca_file) == f"cannot reach {url[8:-4]}: its certificate is for another name"


@pytest.mark.parametrize(
    ("days", "state"), [((-9.0, -1.0), "has expired"), ((1.0, 9.0), "is not valid yet")], ids=["past", "future"]
)
def test_a_certificate_of_another_time(
    listener: socket.socket, tmp_path: Path, days: tuple[float, float], state: str
) -> None:
    authority = Authority()
    made = authority.leaf("127.0.0.1", not_before_s=days[0] * DAY_S, not_after_s=days[1] * DAY_S).write(tmp_path)
    roots = tmp_path / "roots.pem"
    roots.write_text(authority.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(connection, server_side=True).recv(1)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    reason = f"its certificate {state}, by this machine's clock: 1970-01-01 00:00"
    assert said(url_of(listener), roots) == f"cannot reach {url_of(listener)[8:-4]}: {reason}"
    thread.join(PATIENCE_S)


def test_roots_that_are_none(ca: ScriptedCA, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    assert said(ca.url, tmp_path / "empty.pem") == f"cannot reach {ca.url[8:-4]}: acme.ca_file holds no certificate"
    assert "acme.ca_file: " in said(ca.url, tmp_path / "missing.pem")


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.TooManyRedirects("Exceeded 30 redirects."),
        requests.exceptions.InvalidSchema("the CA sends us to 'http://x', which is not https://"),
        requests.exceptions.ReadTimeout("the answer takes too long"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_that_was_not_taken_is_another_matter(error: requests.exceptions.RequestException) -> None:
    assert reach.in_words(error, "https://ca/dir", 0.0) == ""


LEAVES: list[Callable[[], BaseException]] = [
    OSError,
    lambda: OSError(10**6, "x"),
    TimeoutError,
    ssl.SSLError,
    ssl.SSLCertVerificationError,
    socket.gaierror,
    lambda: ValueError("HTTPSConnectionPool"),
]


@given(st.lists(st.sampled_from(LEAVES), max_size=6), st.booleans())
def test_exceptions_in_each_other_come_to_an_end(made: list[Callable[[], BaseException]], circle: bool) -> None:
    outer: BaseException = requests.exceptions.ConnectionError()
    first = outer
    for make in made:
        inner = make()
        outer.__cause__ = inner
        outer = inner
    outer.__cause__ = first if circle else None
    assert isinstance(first, requests.exceptions.ConnectionError)
    line = reach.in_words(first, "https://ca.example/dir", 0.0)
    assert line == "" or line.startswith("cannot reach ca.example: ")
    assert "HTTPSConnectionPool" not in line
