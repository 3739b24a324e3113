"""No client takes what others need: workers, memory, turns of the I/O thread."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import tempfile
import threading
import time
from typing import Any

import pytest

from hardserve.edge.connection import HEAD, REFUSALS_PER_TURN
from tests.support import PATIENCE_S, Client, Running, serving, spoken
from tests.test_http import GET, connections, echo, eventually, read_digest

pytestmark = pytest.mark.usefixtures("transport")

BLOCK = b"x" * 65536
BLOCKS = 320  # 20 MiB, more than the socket's buffers take


def big(environ: dict[str, Any], start_response: Any) -> Any:
    """Stream 20 MiB on /big, give it in one block on /block, and echo anything else."""
    path = environ["PATH_INFO"]
    if path not in ("/big", "/block"):
        return echo(environ, start_response)
    start_response("200 OK", [("Content-Length", str(BLOCKS * len(BLOCK)))])
    return (BLOCK for _ in range(BLOCKS)) if path == "/big" else [BLOCK * BLOCKS]


def asking(running: Running, path: str, source: str = "127.0.0.1") -> Client:
    """Return a client that has asked for something large and reads no more than its head."""
    client = running.connect(source)
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    client.receive_until(b"\r\n\r\n")
    return client


def waited_for(running: Running) -> list[object]:
    return [each for each in connections(running) if each.waited_since < math.inf]


# --- slow readers ---


def test_at_most_half_of_the_workers_wait_for_long_and_the_slowest_reader_is_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(big, threads=4) as running, contextlib.ExitStack() as stack:
        for number in range(2, 5):
            stack.enter_context(asking(running, "/big", f"127.0.0.{number}"))
        assert running.log.wait_for(1)[0].refusal == "slowest_reader"
        with running.connect() as other, asking(running, "/big", "127.0.0.5") as reading:
            read_digest(reading, BLOCKS * len(BLOCK))
            assert other.get("/").status == 200
        eventually(lambda: 1 <= len(waited_for(running)) <= 2)
    assert any(
        "slowest_reader" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    )


def stingy(running: Running, path: str, source: str) -> Client:
    """Return a client that has asked and reads nothing at all, with hardly any room of its own."""
    connecting = socket.socket()
    connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connecting.settimeout(PATIENCE_S)
    connecting.bind((source, 0))
    connecting.connect(("127.0.0.1", running.port))
    client = Client(spoken(connecting))
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return client


def test_somebody_else_is_answered_at_once_however_many_read_a_stream_slowly() -> None:
    with (
        serving(big, threads=4, limits_response_buffer="64KiB") as running,
        contextlib.ExitStack() as stack,
        running.connect("127.0.0.9") as other,
    ):
        for number in range(60):
            stack.enter_context(stingy(running, "/big", f"127.0.3.{number + 1}"))
        began = time.monotonic()
        assert other.get("/").status == 200
        assert time.monotonic() - began < 5, "sixty of them had a second of patience each, in four threads"


def test_a_head_in_two_pieces_is_served_while_slow_readers_fill_the_memory() -> None:
    with serving(big, threads=4, limits_buffered_memory="4MiB") as running, contextlib.ExitStack() as stack:
        for number in range(12):
            stack.enter_context(stingy(running, "/block", f"127.0.3.{number + 1}"))
        eventually(lambda: running.server._budget.responses > 4 << 20)
        for _ in range(20):
            with running.connect("127.0.0.9") as other:
                other.send(b"GET / HTTP/1.1\r\n")
                eventually(lambda: [each for each in connections(running) if each.phase is HEAD])
                other.send(b"Host: test\r\n\r\n")
                assert other.response().status == 200


def test_a_response_larger_than_all_memory_is_served_to_one_who_reads_it() -> None:
    with serving(big, limits_buffered_memory="4MiB") as running, asking(running, "/block") as client:
        read_digest(client, BLOCKS * len(BLOCK))
        assert running.log.wait_for(1)[0].refusal == ""


def test_readers_that_keep_up_are_not_cut_however_many_they_are() -> None:
    with serving(big, threads=4) as running:
        digests: list[str] = []

        def read(number: int) -> None:
            with asking(running, "/big", f"127.0.0.{number}") as client:
                digests.append(read_digest(client, BLOCKS * len(BLOCK)))

        threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(2, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(digests) == 4
        assert len(set(digests)) == 1


def test_memory_that_is_full_of_unread_responses_is_taken_from_the_slowest_reader() -> None:
    with serving(big, limits_buffered_memory="32MiB") as running, contextlib.ExitStack() as stack:
        for number in range(2, 5):
            stack.enter_context(asking(running, "/block", f"127.0.0.{number}"))
        assert running.log.wait_for(1)[0].refusal == "slowest_reader"
        budget = running.server._budget
        eventually(lambda: not budget.memory_short)
        with running.connect() as other:
            assert other.get("/").status == 200
        assert budget.memory > 0
    assert (budget.memory, budget.files) == (0, 0)


def test_a_file_frees_the_worker_of_a_slow_reader_who_gets_every_byte() -> None:
    with serving(big, threads=1, limits_response_file="1GiB") as running, asking(running, "/big") as slow:
        with running.connect() as other:
            assert other.get("/").status == 200, "the only worker waits"
        (connection,) = (each for each in connections(running) if each.outbox is not None)
        assert connection.outbox.stored > 0
        read_digest(slow, BLOCKS * len(BLOCK))
        assert slow.get("/next").status == 200
        budget = running.server._budget
        assert (budget.memory, budget.files) == (0, 0)


def test_a_file_that_is_full_is_no_more_than_a_longer_buffer() -> None:
    settings: dict[str, Any] = {"limits_response_file": "4MiB", "threads": 2}
    with serving(big, **settings) as running, asking(running, "/big") as slow:
        eventually(lambda: waited_for(running))
        with running.connect() as other:
            assert other.get("/").status == 200
        assert read_digest(slow, BLOCKS * len(BLOCK))


# --- workers ---


class Gate:
    """An app that counts who is inside, and lets go when told."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        client = environ["REMOTE_ADDR"]
        with self._lock:
            self.inside[client] = self.inside.get(client, 0) + 1
            self.most[client] = max(self.most.get(client, 0), self.inside[client])
        if environ["PATH_INFO"] == "/slow":
            self.open.wait(PATIENCE_S)
        with self._lock:
            self.inside[client] -= 1
        return echo(environ, start_response)


def test_one_client_that_hammers_a_slow_page_leaves_a_worker_for_the_others() -> None:
    app = Gate()
    with serving(app, threads=3, max_client_workers=0) as running, contextlib.ExitStack() as stack:
        hammering = [stack.enter_context(running.connect("127.0.0.2")) for _ in range(10)]
        for client in hammering:
            client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: app.inside.get("127.0.0.2") == 2)
        with running.connect("127.0.0.3") as other:
            for _ in range(20):
                assert other.get("/").status == 200
        app.open.set()
        assert [client.response().status for client in hammering] == [200] * 10
        assert app.most["127.0.0.2"] == 2


def test_a_client_alone_is_served_by_one_worker_where_there_is_no_other() -> None:
    with serving(echo, threads=1, max_client_workers=0) as running, running.connect() as client:
        assert client.get("/").status == 200


def test_requests_on_a_unix_socket_are_nobodys_in_particular(tmp_path: Any) -> None:
    app = Gate()
    path = str(tmp_path / "socket")
    with serving(app, threads=3, max_client_workers=1, bind=f"unix:{path}") as running, contextlib.ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            spoken(client).sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: len(running.server._workers.busy()) == 3)
        app.open.set()


# --- turns ---


def test_a_pipeline_of_requests_that_are_refused_is_answered_in_order_and_in_parts() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        assert release.wait(PATIENCE_S)
        return echo(environ, start_response)

    with (
        serving(app, threads=1, queue=1, limits_connection_requests=10_000) as running,
        contextlib.ExitStack() as stack,
    ):
        for reached in (running.server._workers.busy, running.server._workers.waiting):
            stack.enter_context(running.connect()).send(GET)
            eventually(reached)
        client = stack.enter_context(running.connect())
        count = 10 * REFUSALS_PER_TURN
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(count)))
        assert [client.response().status for _ in range(count)] == [503] * count
        refused = [entry.target for entry in running.log.wait_for(count) if entry.refusal == "queue_full"]
        assert refused == [f"/{number}" for number in range(count)]
        release.set()
        assert client.get("/").status in (200, 503)


# --- bodies ---


def test_bodies_that_fill_the_budget_have_new_ones_refused_until_there_is_room() -> None:
    settings: dict[str, Any] = {
        "limits_buffered_memory": "1MiB", "limits_buffered_files": "4MiB", "limits_body": "2MiB",
    }  # fmt: skip
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000001\r\n\r\n"
    with serving(echo, **settings) as running, contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(running.connect(f"127.0.0.{number}")) for number in (2, 3)]
        for upload in uploads:
            upload.send(head + b"x" * 2_000_000)
        budget = running.server._budget
        eventually(lambda: budget.memory + budget.files >= 4_000_000)
        with running.connect("127.0.0.4") as late:
            late.send(head + b"x" * 2_000_000)
            assert late.response().status == 503
            assert running.log.wait_for(1)[0].refusal == "buffers_full"
        with running.connect("127.0.0.4") as other:
            assert other.get("/", body=b"small").status == 200
        for upload in uploads:
            upload.send(b"x")
            assert upload.response().status == 200
        eventually(lambda: (budget.memory, budget.files) == (0, 0))
        with running.connect("127.0.0.4") as again:
            again.send(head + b"x" * 2_000_001)
            assert again.response().status == 200


def test_one_client_cannot_fill_the_budget_with_its_bodies() -> None:
    settings: dict[str, Any] = {
        "limits_buffered_memory": "1MiB", "limits_buffered_files": "8MiB", "limits_body": "4MiB",
    }  # fmt: skip
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n"
    with serving(echo, **settings) as running, contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(running.connect("127.0.0.2")) for _ in range(2)]
        for upload in greedy:
            with contextlib.suppress(ConnectionError):
                upload.send(head + b"x" * 2_500_000)
        assert running.log.wait_for(1)[0].refusal == "buffers_full"
        with running.connect("127.0.0.3") as other:
            other.send(head + b"x" * 3_000_000)
            assert other.response().status == 200


def test_no_file_is_begun_where_none_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # another refusal, if it were tried
    sizes = dict.fromkeys(("limits_body", "limits_body_memory"), "500KiB")
    with (
        serving(echo, limits_buffered_memory="1MiB", limits_buffered_files=0, **sizes) as running,
        running.connect() as client,
    ):
        assert client.get("/", body=b"x" * (500 << 10)).status == 200
        budget = running.server._budget
        budget.add("", 2 << 20, 0)  # somebody else's
        assert client.get("/", body=b"hello").status == 503
        assert running.log.wait_for(2)[1].refusal == "buffers_full"
        budget.add("", -(2 << 20), 0)


def test_a_body_is_refused_where_memory_is_short_and_there_is_no_disk_either(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(echo, limits_buffered_memory="1MiB") as running, running.connect() as client:
        budget = running.server._budget
        budget.add("", 2 << 20, 0)  # somebody else's
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        assert client.get("/", body=b"hello").status == 503
        assert running.log.wait_for(1)[0].refusal == "body_not_stored"
        budget.add("", -(2 << 20), 0)
    assert not [record for record in caplog.records if record.exc_info]
