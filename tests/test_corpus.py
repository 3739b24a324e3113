"""The corpus, delivered to a running server and to the parser alone, in every way that bytes may arrive."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hardserve import refusals
from hardserve.edge.connection import READ_BYTES
from hardserve.edge.parsing import ParserRules, Request
from hardserve.refusals import Refusal
from hardserve.settings import LimitSettings
from tests import corpus
from tests.corpus import CASES, Case, CorpusError
from tests.support import Running, serving
from tests.test_http import eventually

LIMITS = LimitSettings(body=4096)
GOOD = b"GET /good HTTP/1.1\r\nHost: good\r\n\r\n"
REFUSALS = {value.name: value for value in vars(refusals).values() if isinstance(value, Refusal)}

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@dataclass
class Seen:
    """What the app was called with."""

    method: str
    path: str
    query: str
    headers: dict[str, str]  # keyed as in a WSGI environ
    body: bytes


@dataclass
class Recorder:
    """A WSGI app that answers "ok" and remembers what it was asked."""

    seen: list[Seen] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        names = ("CONTENT_LENGTH", "CONTENT_TYPE")
        headers = {key: value for key, value in environ.items() if key.startswith("HTTP_") or key in names}
        self.seen.append(
            Seen(
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"],
                environ["QUERY_STRING"],
                headers,
                environ["wsgi.input"].read(),
            )
        )
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    def take(self) -> list[Seen]:
        seen, self.seen = self.seen, []
        return seen


@dataclass
class Served:
    running: Running
    app: Recorder


@pytest.fixture(scope="module")
def served(transport: str) -> Iterator[Served]:
    app = Recorder()
    with serving(app, limits_body=LIMITS.body) as running:
        yield Served(running, app)
    assert app.seen == [], "a request reached the app after its connection had ended"


# --- what is compared ---


def key_of(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"


def check_seen(case: Case, seen: Seen) -> None:
    assert (seen.method, seen.path, seen.query) == (case.method, case.path, case.query)
    assert seen.body == case.body
    expected = {key_of(name): value for name, value in case.headers.items()}
    assert {key: seen.headers.get(key) for key in expected} == expected
    assert not {key_of(name) for name in case.absent} & set(seen.headers)


@dataclass
class Answer:
    status: int
    closes: bool
    body: bytes


def answers(data: bytes, methods: list[str]) -> list[Answer]:
    """Read all responses in `data`, those to `methods` in turn, but for 100 Continue."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"half a response: {head!r}"
        status_line, *lines = head.decode("latin-1").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 \d{3} [ -~]+", status_line)
        status = int(status_line.split(" ")[1])
        if status == 100:
            continue
        fields = dict(line.lower().split(": ", 1) for line in lines)
        size = 0 if methods[len(found) : len(found) + 1] == ["HEAD"] else int(fields["content-length"])
        assert len(data) >= size, "half a body"
        found.append(Answer(status, fields.get("connection") == "close", data[:size]))
        data = data[size:]
    return found


def check_answer(case: Case, answer: Answer) -> None:
    assert answer.status == case.status
    assert answer.closes == case.closes
    if case.served:
        assert answer.body == (b"" if case.method == "HEAD" else b"ok")
    else:
        assert REFUSALS[case.reason].text.encode() in answer.body


# --- over a socket ---


def exchange(running: Running, pieces: list[bytes]) -> bytes:
    """Send `pieces` one by one, end our side, and return all that comes back."""
    with running.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.send(piece)
        client.shutdown_write()
        return client.receive_all()


def deliver(served: Served, case: Case, pieces: list[bytes], *, before: bool = False, behind: bool = False) -> None:
    """Deliver a case, perhaps with a good request before it or behind it, and check all that comes of it.

    What comes behind is served if, and only if, the case leaves the connection open.
    """
    behind = behind and case.status != 0  # what is missing of an unfinished one would be taken from it
    sent = [GOOD] * before + pieces + [GOOD] * behind
    expects_good_behind = behind and not case.closes
    received = exchange(served.running, sent if len(pieces) > 1 else [b"".join(sent)])
    methods = ["GET"] * before + [case.method or "GET"] * (case.status != 0) + ["GET"] * expects_good_behind
    found = answers(received, methods)
    seen = served.app.take()

    assert len(found) == len(methods)
    assert [answer.status for answer in found[:before]] == [200] * before
    if case.status:
        check_answer(case, found[before])
    assert [answer.status for answer in found[before + 1 :]] == [200] * expects_good_behind
    assert [one.path for one in seen[:before]] == ["/good"] * before
    if case.served:
        check_seen(case, seen[before])
    assert [one.path for one in seen[before + case.served :]] == ["/good"] * expects_good_behind


def split_at_every_crlf(data: bytes) -> list[bytes]:
    """Cut before and after every LF."""
    return [piece for piece in re.split(rb"(?=\n)|(?<=\n)", data) if piece]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[start : start + 1] for start in range(len(data))]


@pytest.fixture
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


@every_case
@pytest.mark.usefixtures("no_traceback")
def test_over_a_socket(served: Served, case: Case) -> None:
    deliver(served, case, [case.sent])
    deliver(served, case, [case.sent], before=True)
    deliver(served, case, [case.sent], behind=True)
    if len(case.sent) <= READ_BYTES:  # what is longer comes in pieces anyhow
        deliver(served, case, split_at_every_crlf(case.sent), behind=True)
    if len(case.sent) <= 300:  # of what is longer, every byte is given to the parser below
        deliver(served, case, one_by_one(case.sent), behind=True)


# --- to the parser ---


def parse(rules: ParserRules, pieces: list[bytes]) -> tuple[Request, bytes]:
    """Feed as a connection does, and judge by the length that is announced as its gate does."""
    request = Request(rules, 0.0)
    for number, piece in enumerate(pieces):
        ahead = piece
        while ahead and not request.completed:
            ahead = ahead[request.feed(ahead) :]
            if request.content_length > request.max_body:
                request.refusal, request.completed = refusals.BODY_TOO_LARGE, True
        if request.completed:
            return request, b"".join([ahead, *pieces[number + 1 :]])
    return request, b""


def check_parsed(case: Case, rules: ParserRules, pieces: list[bytes]) -> None:
    request, rest = parse(rules, [*pieces, GOOD] if case.status else pieces)
    if case.status == 0:
        assert not request.completed
    elif not case.served:
        assert request.refusal is REFUSALS[case.reason]
        assert request.completed
        assert not request.keep_alive or case.reason == "body_too_large"  # which the gate may have said
    else:
        assert request.refusal is None
        assert request.completed
        assert rest == GOOD
        assert request.keep_alive != case.closes
        body = b"" if request.body_rcv is None else request.get_body_stream().read()
        check_seen(case, Seen(request.command, request.path, request.query, request.headers, body))
    request.close()


@every_case
def test_to_the_parser_in_any_two_pieces_and_byte_by_byte(case: Case) -> None:
    rules = ParserRules(LIMITS)
    cuts = range(1, len(case.sent)) if len(case.sent) <= 300 else ()
    for pieces in ([case.sent], *([case.sent[:cut], case.sent[cut:]] for cut in cuts), one_by_one(case.sent)):
        check_parsed(case, rules, pieces)


# --- the corpus itself ---

# Published against waitress, gunicorn, puma and Werkzeug's server.
ADVISORIES = (
    "CVE-2019-16785", "CVE-2019-16786", "CVE-2019-16789", "CVE-2019-16792", "CVE-2020-5236", "CVE-2021-29509",
    "CVE-2022-24761", "CVE-2022-31015", "CVE-2024-1135", "CVE-2024-45614", "CVE-2024-49768", "CVE-2024-49769",
    "CVE-2024-6827", "GHSA-68xg-gqqm-vgj8", "GHSA-c2f4-cvqm-65w2",
)  # fmt: skip


@pytest.mark.parametrize("advisory", ADVISORIES)
def test_every_advisory_is_covered(advisory: str) -> None:
    tests = [test.__doc__ or "" for name, test in globals().items() if name.startswith("test_")]
    assert any(advisory in text for text in [*(case.why for case in CASES), *tests])


def test_a_title_stands_once() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


def test_every_reason_is_one_and_told_apart_by_its_text() -> None:
    reasons = {case.reason for case in CASES if case.reason}
    assert {REFUSALS[name].status for name in reasons} <= {400, 413, 414, 417, 431, 501, 505}
    assert {case.status for case in CASES if case.reason} == {REFUSALS[name].status for name in reasons}
    for case in CASES:
        assert not case.reason or REFUSALS[case.reason].status == case.status, case.name
    texts = [refusal.text for name, refusal in REFUSALS.items() if name in reasons]
    assert len(set(texts)) == len(texts)


def test_every_refusal_of_framing_and_size_is_in_the_corpus() -> None:
    source = "".join(
        (Path(refusals.__file__).parent / "edge" / name).read_text() for name in ("parsing.py", "chunks.py")
    )
    given = {name.lower() for name in re.findall(r"refusals\.([A-Z_]+)", source)}
    given.remove("body_not_stored")  # which is about the disk; tests/test_http.py fills it
    assert given == {case.reason for case in CASES if case.reason}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a\r\n\t\0\\\x7f", "a\r\n\t\0\\\x7f"),
        (r"{ab*3}c{\r\n*2}", "abababc\r\n\r\n"),
        (r"\x7ba*3\x7d", "{a*3}"),
        (r"\xe9", "\xe9"),
    ],
)
def test_a_line_is_read(text: str, expected: str) -> None:
    assert corpus.read_text(text) == expected


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("# a\nfor: b\n> é\n= nothing\n", "x.txt:3: only printable ASCII"),
        ("# a\nfor: b\n> a\tb\n= nothing\n", "x.txt:3: only printable ASCII"),
        ("# a\nfor: b\n> a\\q\n= nothing\n", "x.txt:3: '\\\\q' is no escape"),
        ("# a\nfor: b\n> a\\\n= nothing\n", "x.txt:3: '\\\\' is no escape"),
        ("# a\nfor: b\n> {a}\n= nothing\n", "x.txt:3: a brace that repeats nothing"),
        ("# a\nfor: b\n> c\n= 400\n", "x.txt:4: expected 'nothing'"),
        ("# a\nfor: b\n> c\n= nothing\n> d\n", "x.txt:5: what is sent stands before"),
        ("# a\nfor: b\n> c\n= nothing\nwhat\n", "x.txt:5: expected a line that begins"),
        ("# a\nfor: b\n> c\n= nothing\n  what\n", "x.txt:5: expected 'body'"),
        ("# a\nfor: b\n> c\n= nothing\n  header what\n", "x.txt:5: expected 'header Name: value'"),
        ("# a\nfor: b\nnginx: refuses\n> c\n= nothing\n", "x.txt:3: expected one of refuses"),
        ("text\n# a\n> c\n= nothing\n", "x.txt:2: no why"),
        ("# a\nfor: b\n> c\n", "x.txt:1: no outcome"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(content)
    with pytest.raises(CorpusError, match=re.escape(complaint)):
        corpus.read_file(path)


# --- advisories that are about timing ---


def check_serves(running: Running) -> None:
    with running.connect() as client:
        assert client.get("/good").status == 200


@pytest.mark.usefixtures("transport", "no_traceback")
def test_more_connections_that_are_kept_alive_than_threads_are_all_served() -> None:
    """CVE-2021-29509: in puma, clients that always had a next request kept the threads, and others never had one."""
    app = Recorder()
    with serving(app, threads=2) as running:
        clients = [running.connect() for _ in range(12)]
        greedy, modest = clients[:8], clients[8:]
        for client in greedy:
            client.send(GOOD * 20)  # more are always waiting than it has read answers to
        for client in modest:
            assert client.get("/modest").status == 200
        for client in greedy:
            for _ in range(20):
                assert client.response().status == 200
        for client in clients:
            assert client.get("/good").status == 200
            client.socket.close()
        assert len(app.seen) == 8 * 20 + 4 + 12


@pytest.mark.usefixtures("no_traceback")
def test_clients_that_are_gone_before_they_are_accepted_leave_nothing(served: Served) -> None:
    """CVE-2024-49769: waitress asked the socket for its peer too late, and tried to write to it for ever after."""
    for _ in range(50):
        served.running.connect().reset()
    for _ in range(20):
        client = served.running.connect()
        client.send(GOOD[:10])
        client.reset()
    check_serves(served.running)
    loop = served.running.server._loop
    eventually(lambda: not loop.connections)
    served.app.take()


@pytest.mark.usefixtures("no_traceback")
def test_workers_that_end_connections_do_not_disturb_the_loop(served: Served) -> None:
    """CVE-2022-31015: in waitress a worker closed the socket that the main thread was about to wait for."""
    ending = b"GET /good HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    for number in range(60):
        client = served.running.connect()
        client.send(ending)
        if number % 2:
            client.reset()
        else:
            client.socket.close()
    check_serves(served.running)
    eventually(lambda: not served.running.server._loop.connections)
    served.app.take()


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("short", range(4))
def test_nothing_is_served_behind_a_refused_request_as_long_as_one_read(served: Served, short: int) -> None:
    """CVE-2024-49768: waitress read on while the refusal was being sent, and a worker served what it had read."""
    head = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
        + b"X-A: %b\r\n" % (b"b" * 16_000) * 4
        + b"X-B: "
    )
    end = b"\r\n\r\nno size\r\n"
    refused = head + b"c" * (READ_BYTES - short - len(head) - len(end)) + end
    assert len(refused) == READ_BYTES - short
    with served.running.connect() as client:
        client.send(refused)
        client.send(GOOD * 3)
        client.shutdown_write()
        assert [answer.status for answer in answers(client.receive_all(), [])] == [400]
    assert served.app.take() == []
