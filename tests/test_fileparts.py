"""Files on their way to their clients: whole, in order, cut where they cannot be, and nobody waits for a disk.

The loop is the real one, in a thread, with real clients, real files and real file threads.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import logging
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hardserve import refusals
from hardserve.edge.admission import Peers
from hardserve.edge.clients import Clients
from hardserve.edge.connection import BUSY, IDLE, LINGER, Connection, EdgeContext
from hardserve.edge.fileparts import PROBED_BYTES, PageCache
from hardserve.edge.listener import open_listeners
from hardserve.edge.loop import Loop
from hardserve.edge.outbox import FILE_TURN_BYTES
from hardserve.edge.parsing import Request
from hardserve.pool import Pool
from hardserve.protocol import FileFailedError, FilePart, SharedFile
from hardserve.refusals import Refusal
from hardserve.tls.policy import server_context
from tests.support import PATIENCE_S, Client, edge_context, own_pair, speaks_tls, spoken, switching_often
from tests.test_http import eventually
from tests.test_races import GET, Rig, turn

LARGE = 64 << 20
MIDDLE = 12 << 20  # more than the sockets of both sides hold


@functools.lru_cache(4)
def content(size: int, seed: int = 0) -> bytes:
    """Return bytes of which no two blocks are the same."""
    block = random.Random(seed).randbytes(65_533)
    return b"".join(number.to_bytes(3, "big") + block for number in range(size // 65_536 + 1))[:size]


def open_shared(path: Path, name: str = "") -> SharedFile:
    descriptor = os.open(path, os.O_RDONLY)
    status = os.fstat(descriptor)
    return SharedFile(descriptor, status.st_size, status.st_mtime_ns, name or path.name)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def compute_at_once(
    _client: str,
    compute: Callable[[], None],
    done: Callable[[float], None],
    _wanted: Callable[[], bool],
    now: float,
    _begun: bool = False,
) -> bool:
    compute()
    done(now)
    return True


class FileEdge:
    """A loop in a thread that serves the files of `directory`: /HOW/NAME, where HOW is

    * now: opened by the I/O thread and answered at once,
    * later: opened by a file thread,
    * app: for the app, of which a file thread has to find out first,
    * never: a file thread never comes back,

    and anything else is for the app, whose worker hands /worker/NAME to the connection, and says hello else.
    """

    def __init__(self, directory: Path, *, cold: bool = False, **settings: Any) -> None:
        (listener,) = open_listeners("127.0.0.1:0", 64, tls=speaks_tls())
        self.port = int(listener.port)
        self.directory = directory
        context = server_context(own_pair()) if speaks_tls() else None
        self.loop = Loop([listener], 1000, Clients(0, 0), Peers(), tls=None if context is None else lambda: context)
        self.ctx = edge_context(self.loop, self._dispatch, EdgeContext, rate_limiting_default="off", **settings)
        self.ctx.compute = compute_at_once
        self.ctx.serve_file = self._serve
        self.ctx.read_file = self._read
        if cold:
            self.ctx.page_cache = PageCache(0)
        self.ctx.log_cut = lambda _connection, _request, cut: self.cuts.append(cut.name)
        self.cuts: list[str] = []
        self.done: list[tuple[str, int, str]] = []  # what was asked for, bytes that never left, why
        self.refused: list[str] = []
        self.ctx.log_refusal = lambda _connection, _request, refusal, _size: self.refused.append(refusal.name)
        self.reads = 0
        self.came_back = 0  # so many file threads had opened what is answered later
        self.full = 0  # so often there is no room in the pool
        self.hold_up = threading.Event()
        self.hold_up.set()
        self.late: Callable[[float], None] | None = None  # what a file thread says that came back after all
        self._pool = Pool("file", 4, 100)
        self._thread = threading.Thread(target=self.loop.run, args=(self.ctx,), daemon=True)

    @contextlib.contextmanager
    def turning(self) -> Iterator[FileEdge]:
        self._thread.start()
        try:
            yield self
        finally:
            self.hold_up.set()
            self.loop.stop()
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()
            self.loop.close()
            assert self._pool.stop(time.monotonic() + PATIENCE_S)

    def connect(self, receive_buffer: int = 0) -> Client:
        connected = socket.socket()
        connected.settimeout(PATIENCE_S)
        if receive_buffer:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connected.connect(("127.0.0.1", self.port))
        return Client(spoken(connected))

    def warm_up(self) -> None:
        """Have it open all the descriptors that it keeps."""
        with self.connect() as client:
            assert client.get("/").body == b"hello"
        eventually(lambda: self.done and not self.connections())
        turned = threading.Event()
        self.loop.post(lambda _now: turned.set())
        assert turned.wait(PATIENCE_S), "a connection is in no list any more just before its descriptor is closed"
        self.done.clear()

    def connections(self) -> list[Connection]:
        return list(self.loop.connections)

    def _read(self, file: SharedFile, start: int, count: int, done: Callable[[bytes | BaseException], None]) -> bool:
        if self.full:
            self.full -= 1
            return False

        def job() -> bytes:
            self.hold_up.wait(PATIENCE_S)
            return file.read(start, count)

        self.reads += 1
        return self._pool.submit(job, done)

    def _parts(self, request: Request, file: SharedFile) -> tuple[bytes, list[bytes | FilePart]]:
        """Return head and parts: all of the file, in so many parts with bytes between them as the query says."""
        pieces = int(request.query or 1)
        bounds = [file.size * number // pieces for number in range(pieces + 1)]
        parts: list[bytes | FilePart] = []
        for start, end in itertools.pairwise(bounds):
            parts += [FilePart(file, start, end), b"|"]
        length = file.size + pieces - 1
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length, parts[:-1]

    def _flushed(self, request: Request) -> Callable[[int, str], None]:
        return lambda unsent, why: self.done.append((request.path, unsent, why))

    def _answer(self, connection: Connection, request: Request, file: SharedFile, now: float) -> None:
        head, parts = self._parts(request, file)
        keep_alive = not connection.will_close(request)
        flushed = self._flushed(request)
        self.answered = connection.answer(request, head, keep_alive=keep_alive, flushed=flushed, file=parts, now=now)
        file.release()

    def _serve(self, connection: Connection, request: Request, now: float) -> bool | Refusal:
        _, how, *names = request.path.split("/")
        path = self.directory / "/".join(names)
        if how == "now":
            self._answer(connection, request, open_shared(path), now)
        elif how == "none":
            keep_alive = not connection.will_close(request)
            head = b"HTTP/1.1 304 Not Modified\r\n\r\n"
            connection.answer(request, head, keep_alive=keep_alive, flushed=self._flushed(request), now=now)
        elif how == "refused":
            return refusals.HOST_NOT_SERVED
        elif how in ("later", "app", "never", "gone"):
            connection.await_file(now)

            def job() -> SharedFile:
                self.hold_up.wait(PATIENCE_S)
                return open_shared(path)

            def done(file: SharedFile | BaseException) -> None:
                go_on = partial(self._go_on, how, connection, request, file)
                if how == "never":
                    self.late = go_on
                else:
                    self.loop.post(go_on)

            assert self._pool.submit(job, done)
        else:
            return False
        return True

    def _go_on(
        self, how: str, connection: Connection, request: Request, file: SharedFile | BaseException, now: float
    ) -> None:
        assert isinstance(file, SharedFile), file
        self.came_back += 1
        if how in ("later", "never"):
            self._answer(connection, request, file, now)
            return
        file.release()
        if how == "gone":
            connection.decided(request, refusals.HOST_NOT_SERVED, now)
        else:
            connection.pass_on(request, now)

    def _dispatch(self, connection: Connection, request: Request, now: float) -> None:
        threading.Thread(target=self._work, args=(connection, request), daemon=True).start()

    def _work(self, connection: Connection, request: Request) -> None:
        request.close()
        keep_alive = request.keep_alive and connection.may_keep_alive()
        if not request.path.startswith("/worker/"):
            hello = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
            connection.finish(hello, keep_alive=keep_alive, flushed=self._flushed(request))
            return
        file = open_shared(self.directory / request.path.removeprefix("/worker/"))
        head, parts = self._parts(request, file)
        connection.finish(head, keep_alive=keep_alive, flushed=self._flushed(request), file=parts)
        file.release()


@contextlib.contextmanager
def serving_files(directory: Path, **settings: Any) -> Iterator[FileEdge]:
    """Serve `directory`, and see that nothing of it is left open or counted afterwards."""
    gc.collect()
    descriptors = open_descriptors()
    edge = FileEdge(directory, **settings)
    with edge.turning():
        edge.warm_up()
        yield edge
    assert (edge.ctx.budget.memory, edge.ctx.budget.files, edge.ctx.downloads) == (0, 0, set())
    del edge
    gc.collect()
    assert open_descriptors() <= descriptors


def request(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def receive_into(digest: hashlib._Hash, client: Client, count: int) -> None:
    """Have the next `count` bytes counted in `digest`, and keep none of them."""
    while count:
        data = client.receive_exactly(min(count, 1 << 18))
        digest.update(data)
        count -= len(data)


HOWS = ["now", "later", "worker"]
COLD = pytest.mark.parametrize("cold", [False, True], ids=["from the page cache", "by file threads"])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with a large file, and the digest of that."""
    directory = tmp_path_factory.mktemp("large")
    data = content(LARGE)
    (directory / "large").write_bytes(data)
    return directory, hashlib.sha256(data).hexdigest()


@pytest.mark.usefixtures("transport")
@COLD
@pytest.mark.parametrize("how", HOWS)
def test_slow_and_fast_readers_get_the_same_while_others_are_served(
    large: tuple[Path, str], how: str, cold: bool
) -> None:
    directory, digest = large
    with serving_files(directory, cold=cold) as edge:
        with edge.connect() as slow, edge.connect() as fast, edge.connect() as other:
            slow.send(request(f"/{how}/large"))
            slow.receive_until(b"\r\n\r\n")
            fast.send(request(f"/{how}/large"))
            fast.receive_until(b"\r\n\r\n")
            received = hashlib.sha256()
            receive_into(received, fast, LARGE // 2)
            assert other.get("/").body == b"hello"
            receive_into(received, fast, LARGE // 2)
            assert received.hexdigest() == digest
            assert fast.get("/").body == b"hello", "its connection is still there"
            assert edge.ctx.budget.responses <= 3 << 18, "what is not read is not kept"
            received = hashlib.sha256()
            receive_into(received, slow, LARGE)
            assert received.hexdigest() == digest
            eventually(lambda: len(edge.done) == 4)
        assert [unsent for _, unsent, _ in edge.done] == [0] * 4
        assert (edge.reads > 0) == cold


@pytest.mark.usefixtures("transport")
@COLD
@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_parts_leave_in_order(tmp_path: Path, how: str, cold: bool, pieces: int, size: int) -> None:
    data = content(size)
    (tmp_path / "file").write_bytes(data)
    bounds = [size * number // pieces for number in range(pieces + 1)]
    expected = b"|".join(data[start:end] for start, end in itertools.pairwise(bounds))
    with serving_files(tmp_path, cold=cold) as edge, edge.connect() as client:
        for _ in range(2):
            assert client.get(f"/{how}/file?{pieces}").body == expected
        assert client.get("/").body == b"hello"


@pytest.mark.usefixtures("transport")
@COLD
def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path, cold: bool) -> None:
    (tmp_path / "small").write_bytes(content(5_000, 1))
    (tmp_path / "middle").write_bytes(content(2_000_000, 2))
    asked = ["/now/small", "/later/middle", "/", "/worker/middle", "/none", "/now/middle", "/app/small", "/gone/small"]
    asked = [*asked, "/refused", *asked, "/later/small", "/now/small", "/now/small"]
    statuses = {"/none": 304, "/gone/small": 421, "/refused": 421}
    with serving_files(tmp_path, cold=cold) as edge, edge.connect() as client:
        client.send(b"".join(request(path) for path in asked))
        for path in asked:
            response = client.response()
            assert response.status == statuses.get(path, 200), path
            if response.status == 200:
                file = tmp_path / path.rpartition("/")[2]
                expected = file.read_bytes() if file.is_file() and "app" not in path else b"hello"
                assert response.body == expected, path
        served = [path for path in asked if statuses.get(path) != 421]
        eventually(lambda: len(edge.done) == len(served))
        assert [path for path, _, _ in edge.done] == served
        assert len(edge.refused) == 3


@pytest.mark.usefixtures("transport")
def test_a_request_with_a_body_may_be_answered_without_a_worker(tmp_path: Path) -> None:
    with serving_files(tmp_path) as edge, edge.connect() as client:
        for path in ("/none", "/app/file", "/none"):
            (tmp_path / "file").touch()
            client.send(request(path, "Content-Length: 100000") + b"x" * 100_000)
            assert client.response().status in (200, 304)
        (connection,) = edge.connections()
        assert connection.phase is IDLE
        assert connection.read_deadline < math.inf


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("how", ["none", "now/file", "later/file", "worker/file"])
def test_a_connection_that_is_to_end_ends_behind_the_file(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(content(MIDDLE))
    with serving_files(tmp_path) as edge, edge.connect() as client:
        client.send(request(f"/{how}", "Connection: close") + request("/"))
        data = client.receive_all()
        assert data.count(b"HTTP/1.1") == 1
        if how != "none":
            assert data.endswith((tmp_path / "file").read_bytes())


@pytest.mark.usefixtures("transport")
def test_a_connection_ends_after_so_many_requests_and_when_the_server_drains(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content(100_000))
    with serving_files(tmp_path, limits_connection_requests=2) as edge:
        with edge.connect() as client:
            client.send(request("/now/file") * 3)
            assert client.receive_all().count(b"HTTP/1.1 200") == 2
        assert "connection_worn" in edge.cuts
        edge.ctx.draining = True
        with edge.connect() as client:
            client.send(request("/later/file"))
            assert client.receive_all().count(b"HTTP/1.1 200") == 1


# --- files that do not stay what they were ---


def cut_short(client: Client) -> bytes:
    """Return what comes until the connection is reset; an orderly end would look whole to some."""
    received = bytearray()
    while True:
        try:
            data = client.socket.recv(1 << 20)
        except ConnectionResetError:
            return bytes(received)
        assert data, "an end where a reset should be"
        received += data


@pytest.mark.usefixtures("transport")
@COLD
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("change", ["truncated", "emptied", "written over", "appended to"])
def test_a_file_that_is_changed_in_place_while_it_is_sent_is_cut(
    tmp_path: Path, how: str, change: str, cold: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(MIDDLE))
    os.utime(path, (1, 1))
    with serving_files(tmp_path, cold=cold) as edge, edge.connect(16384) as client:
        client.send(request(f"/{how}/file"))
        head = client.receive_until(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % MIDDLE in head
        with path.open("r+b") as file:
            if change == "truncated":
                file.truncate(MIDDLE - 1)
            elif change == "emptied":
                file.truncate(0)
            elif change == "written over":
                file.write(b"x")
            else:
                file.seek(0, os.SEEK_END)
                file.write(b"x")
        received = cut_short(client)
        assert len(received) < MIDDLE
        eventually(lambda: edge.done)
        ((_, unsent, why),) = edge.done
        assert 0 < unsent <= MIDDLE - len(received) - len(client._buffer), "what is lost with the reset had left"
        assert why == "file_changed"
        assert edge.cuts == ["file_changed"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "file was " in line
    assert ("truncated" in line) == (change in ("truncated", "emptied"))


@pytest.mark.usefixtures("transport")
@COLD
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_is_replaced_or_removed_while_it_is_sent_is_sent_to_its_end(
    tmp_path: Path, how: str, change: str, cold: bool
) -> None:
    path, data = tmp_path / "file", content(MIDDLE)
    path.write_bytes(data)
    with serving_files(tmp_path, cold=cold) as edge, edge.connect(16384) as client:
        client.send(request(f"/{how}/file"))
        client.receive_until(b"\r\n\r\n")
        if change == "replaced":
            (tmp_path / "new").write_bytes(b"new")
            (tmp_path / "new").replace(path)
        else:
            path.unlink()
        assert client.receive_exactly(MIDDLE) == data
        if change == "replaced":
            assert client.get(f"/{how}/file").body == b"new"
        assert edge.cuts == []


def test_a_crowd_that_has_its_files_changed_is_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(MIDDLE))
    os.utime(path, (1, 1))
    with serving_files(tmp_path) as edge, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(edge.connect(16384)) for _ in range(5)]
        for client in clients:
            client.send(request("/now/file"))
            client.receive_until(b"\r\n\r\n")
        os.utime(path, (2, 2))
        for client in clients:
            cut_short(client)
        eventually(lambda: edge.cuts == ["file_changed"] * 5)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()], ids=["from the disk", "of ours"])
def test_a_file_that_cannot_be_read_is_cut(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "file").write_bytes(content(MIDDLE))
    with serving_files(tmp_path, cold=True) as edge, edge.connect(16384) as client:
        client.send(request("/now/file"))
        client.receive_until(b"\r\n\r\n")

        def fail(_file: SharedFile, _start: int, _count: int, done: Callable[[bytes | BaseException], None]) -> bool:
            threading.Thread(target=done, args=(error,), daemon=True).start()
            return True

        edge.ctx.read_file = fail
        assert len(cut_short(client)) < MIDDLE
        eventually(lambda: edge.cuts == ["file_unreadable"])


# --- clients that leave, disks that hang ---


@pytest.mark.usefixtures("transport")
@COLD
@pytest.mark.parametrize("how", HOWS)
def test_a_client_that_leaves_leaves_no_descriptor(tmp_path: Path, how: str, cold: bool) -> None:
    (tmp_path / "file").write_bytes(content(MIDDLE))
    with serving_files(tmp_path, cold=cold) as edge:
        before = open_descriptors()
        for _ in range(3):
            client = edge.connect(16384)
            client.send(request(f"/{how}/file?3"))
            client.receive_until(b"\r\n\r\n")
            client.reset()
        eventually(lambda: not edge.connections() and open_descriptors() == before)
        eventually(lambda: len(edge.done) == 3)
        assert all(unsent and why == "client_disconnected" for _, unsent, why in edge.done)


@pytest.mark.usefixtures("transport")
def test_a_client_that_leaves_while_its_file_is_read_leaves_it_to_the_file_thread(tmp_path: Path) -> None:
    """A descriptor that is closed under a thread that reads may be somebody else's by then."""
    (tmp_path / "file").write_bytes(content(MIDDLE))
    with serving_files(tmp_path, cold=True) as edge:
        before = open_descriptors()
        edge.hold_up.clear()
        client = edge.connect()
        client.send(request("/now/file"))
        eventually(lambda: edge.reads)
        client.reset()
        eventually(lambda: not edge.connections())
        assert open_descriptors() == before + 1
        edge.hold_up.set()
        eventually(lambda: open_descriptors() == before)
        assert edge.reads == 1


@pytest.mark.usefixtures("transport")
def test_a_hanging_disk_holds_up_nobody_but_who_asked_for_the_file(tmp_path: Path) -> None:
    data = content(1_000_000)
    (tmp_path / "file").write_bytes(data)
    with serving_files(tmp_path, cold=True) as edge, edge.connect() as client, edge.connect() as other:
        edge.hold_up.clear()
        client.send(request("/now/file"))
        eventually(lambda: edge.reads)
        for _ in range(20):
            assert other.get("/").body == b"hello"
        (waiting,) = [each for each in edge.connections() if each.outbox is not None]
        assert not waiting._writing, "a writable socket would be found at every turn"
        edge.hold_up.set()
        assert client.response().body == data


@pytest.mark.usefixtures("transport")
def test_a_file_that_is_not_read_in_time_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(content(1_000_000))
    with serving_files(tmp_path, cold=True, timeouts_app="0.2s") as edge, edge.connect() as client:
        edge.hold_up.clear()
        client.send(request("/worker/file"))
        client.receive_until(b"\r\n\r\n")
        assert cut_short(client) == b""
        assert edge.cuts == ["file_unreadable"]
    assert "'file'" in caplog.text


@pytest.mark.usefixtures("transport")
def test_a_pool_that_is_full_is_asked_again(tmp_path: Path) -> None:
    data = content(300_000)
    (tmp_path / "file").write_bytes(data)
    with serving_files(tmp_path, cold=True) as edge, edge.connect() as client:
        edge.full = 2
        assert client.get("/now/file").body == data
        assert edge.full == 0


@pytest.mark.usefixtures("transport")
def test_who_waits_too_long_for_a_file_thread_is_told_and_may_ask_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"file")
    with serving_files(tmp_path, timeouts_app="0.2s") as edge, edge.connect() as client:
        assert client.get("/").body == b"hello"
        before = open_descriptors()
        response = client.get("/never/file")
        assert (response.status, response.body[:3]) == (503, b"503")
        assert edge.refused == ["files_slow"]
        (connection,) = edge.connections()
        assert not connection._deciding, "its next request would not be withdrawn from the queue"
        assert client.get("/").body == b"hello"
        eventually(lambda: edge.late)
        assert edge.late is not None
        edge.loop.post(edge.late)
        assert client.get("/now/file").body == b"file", "and nothing of what came too late is before it"
        eventually(lambda: open_descriptors() == before)
        assert [path for path, _, _ in edge.done] == ["/", "/", "/now/file"]


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("how", ["later", "app", "gone"])
def test_who_leaves_before_a_file_thread_comes_back_is_answered_no_more(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(b"file")
    with serving_files(tmp_path) as edge:
        before = open_descriptors()
        edge.hold_up.clear()
        client = edge.connect()
        client.send(request(f"/{how}/file"))
        eventually(lambda: [each.phase for each in edge.connections()] == [BUSY])
        client.reset()
        eventually(lambda: not edge.connections())
        edge.hold_up.set()
        eventually(lambda: edge.came_back)
        with edge.connect() as other:
            assert other.get("/now/file").body == b"file"
        eventually(lambda: open_descriptors() == before)
        assert edge.cuts == ["client_disconnected"]
        assert edge.refused == []


# --- turns and time, by hand ---


class Reading:
    """File threads that do nothing before they are told."""

    def __init__(self, rig: Rig) -> None:
        self.asked: list[tuple[SharedFile, int, int, Callable[[bytes | BaseException], None]]] = []
        rig.ctx.page_cache = PageCache(0)
        rig.ctx.read_file = lambda *read: not self.asked.append(read)

    def come_back(self) -> None:
        file, start, count, done = self.asked.pop(0)
        done(file.read(start, count))


@pytest.fixture
def rig_file(tmp_path: Path) -> Iterator[SharedFile]:
    (tmp_path / "file").write_bytes(content(5 << 20))
    file = open_shared(tmp_path / "file")
    yield file
    assert file._holders == 1
    file.release()


def finish(rig: Rig, parts: Sequence[bytes | FilePart], *, keep_alive: bool = True) -> list[int]:
    unsent: list[int] = []
    rig.connection.finish(b"head", keep_alive=keep_alive, flushed=lambda count, _why: unsent.append(count), file=parts)
    return unsent


def test_a_file_leaves_the_turn_to_others(rig_file: SharedFile) -> None:
    rig = Rig()
    rig.arrives(GET)
    told = finish(rig, [FilePart(rig_file, 0, rig_file.size)], keep_alive=False)
    assert rig.transport.sent == b"head", "a worker does not read files"
    rig.resumes()
    turns = 0
    while rig.connection.outbox is not None:
        before = len(rig.transport.sent)
        assert rig.wheel.interest[1], "the rest has its turn, too"
        rig.connection.on_writable(rig.now)
        turns += 1
        assert 0 < len(rig.transport.sent) - before <= FILE_TURN_BYTES
    assert turns >= 3
    assert rig.transport.sent == b"head" + content(5 << 20)
    assert told == [0]
    assert rig.connection.phase is LINGER


def test_many_files_share_the_turn(rig_file: SharedFile) -> None:
    rigs = [Rig() for _ in range(8)]
    for rig in rigs:
        rig.ctx.downloads = rigs[0].ctx.downloads
        rig.arrives(GET)
        finish(rig, [FilePart(rig_file, 0, rig_file.size)])
        rig.resumes()
    for rig in rigs:
        rig.connection.on_writable(rig.now)
    for rig in rigs:
        before = len(rig.transport.sent)
        rig.connection.on_writable(rig.now)
        assert len(rig.transport.sent) - before == FILE_TURN_BYTES // 8
    for rig in rigs:
        rig.flush()
        assert rig.transport.sent == b"head" + content(5 << 20)
    assert not rigs[0].ctx.downloads


def test_the_time_of_a_client_does_not_run_while_its_file_is_read(rig_file: SharedFile) -> None:
    rig = Rig(timeouts_response=2, limits_response_rate=1 << 20, timeouts_rate_grace=2, timeouts_app=60)
    reading = Reading(rig)
    cuts: list[str] = []
    rig.ctx.log_cut = lambda _connection, _request, cut: cuts.append(cut.name)
    rig.arrives(GET)
    finish(rig, [FilePart(rig_file, 0, 1 << 20)])
    rig.resumes()
    while rig.connection.outbox is not None:
        rig.connection.on_writable(rig.now)
        if reading.asked:
            assert not rig.wheel.interest[1]
            rig.connection.outbox.cold_since -= 10  # what `monotonic` would say after the turns below
            rig.connection.outbox.since -= 10
            turn(rig, 10)
            rig.now -= 10
            reading.come_back()
            rig.resumes()
            turn(rig, 0.25)
    assert cuts == []
    assert rig.transport.sent == b"head" + content(1 << 20)


def test_a_slow_reader_is_held_to_its_progress_all_the_same(rig_file: SharedFile) -> None:
    rig = Rig(timeouts_response=2)
    cuts: list[str] = []
    rig.ctx.log_cut = lambda _connection, _request, cut: cuts.append(cut.name)
    rig.arrives(GET)
    told = finish(rig, [FilePart(rig_file, 0, 1 << 20)])
    rig.transport.room = 1000
    rig.resumes()
    rig.connection.on_writable(rig.now)
    turn(rig, 3)
    assert cuts == ["response_deadline"]
    assert told == [(1 << 20) - 1000]


def test_no_more_is_read_than_a_slow_reader_takes(rig_file: SharedFile) -> None:
    rig = Rig()
    reading = Reading(rig)
    rig.arrives(GET)
    finish(rig, [FilePart(rig_file, 0, rig_file.size)])
    rig.resumes()
    kept = []
    for _ in range(8):
        rig.transport.room = 20_000
        rig.connection.on_writable(rig.now)
        while reading.asked:
            reading.come_back()
            rig.resumes()
            rig.connection.on_writable(rig.now)
        kept.append(rig.connection.unsent_memory)
    assert max(kept) > 40_000, "it cannot be known at first"
    assert max(kept[-4:]) <= 40_000
    rig.connection.close()


def test_a_file_that_was_handed_over_for_a_client_that_has_gone_is_not_held(rig_file: SharedFile) -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.connection.close()
    assert finish(rig, [FilePart(rig_file, 0, 1000), b"end"]) == [1007]


def test_a_file_whose_head_cannot_leave_is_not_held(rig_file: SharedFile) -> None:
    rig = Rig()
    rig.arrives(GET)
    rig.transport.ends.append("reset")  # by its client
    assert finish(rig, [FilePart(rig_file, 0, 1000), b"end"]) == [1007]
    rig.resumes()
    assert rig.connection.outbox is None


# --- what is in memory ---


def test_what_was_just_written_is_in_memory_and_what_was_thrown_out_is_not(tmp_path: Path) -> None:
    size = 4 * PROBED_BYTES
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    cache = PageCache()
    with path.open("rb") as file:
        descriptor = file.fileno()
        try:
            os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
        except (AttributeError, OSError) as error:
            pytest.skip(f"the file system cannot tell: {error}")
        for start, count in [(0, size), (1, 1), (PROBED_BYTES - 1, 2), (5000, size - 5000), (size - 1, 1)]:
            assert cache.holds(descriptor, start, count) == count
        os.sync()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert cache.holds(descriptor, 0, size) == 0
        assert PageCache(0).holds(descriptor, 0, size) == 0, "nor can it where the platform cannot"


def test_a_file_system_that_cannot_tell_has_its_files_read_by_file_threads(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    try:
        assert PageCache().holds(reading, 0, 1) == 0
    finally:
        os.close(reading)
        os.close(writing)


# --- one descriptor, many users ---


def test_a_shared_file_is_closed_once_by_whoever_is_the_last(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    closed: list[int] = []
    with switching_often():
        for _ in range(50):
            file = SharedFile(7, 0, 0, "file", close=closed.append)
            threads = [threading.Thread(target=file.release) for _ in range(4)]
            for _ in threads:
                file.hold()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert closed == []
            file.release()
            assert closed == [7]
            with pytest.raises(ValueError, match="closed"):
                file.hold()
            del file
            assert closed == [7]
            closed.clear()


def test_a_shared_file_that_is_dropped_is_closed() -> None:
    closed: list[int] = []
    file = SharedFile(7, 0, 0, "file", close=closed.append)
    file.hold()
    del file
    gc.collect()
    assert closed == [7]


def test_a_read_says_what_became_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = open_shared(path)
    assert file.read(3, 100) == b"tent"
    path.write_bytes(b"con")
    with pytest.raises(FileFailedError, match="file was truncated"):
        file.read(0, 100)
    with pytest.raises(FileFailedError, match="file was truncated"):
        file.read(5, 100)
    file.release()
    with pytest.raises(FileFailedError, match="file cannot be read"):
        file.read(0, 100)


# --- disorder ---


class Visitor:
    """A client that asks for files and does as it likes. `problems` is what no client may see."""

    def __init__(self, edge: FileEdge, files: dict[str, bytes], seed: int) -> None:
        self.edge = edge
        self.files = files
        self.chance = random.Random(seed)
        self.problems: list[str] = []
        self.complete = 0

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            names = self.chance.choices(list(self.files), k=self.chance.choice([1, 1, 3]))
            paths = [f"/{self.chance.choice([*HOWS, 'app'])}/{name}" for name in names]
            whim = self.chance.choice(["read", "read", "half", "reset", "vanish", "partial"])
            try:
                self._visit(paths, whim)
            except (OSError, EOFError) as error:
                if whim in ("read", "half"):
                    self.problems.append(f"{whim} {paths} {error!r}")

    def _visit(self, paths: list[str], whim: str) -> None:
        with self.edge.connect(self.chance.choice([0, 16384])) as client:
            client.send(b"".join(request(path) for path in paths))
            if whim == "half":
                client.shutdown_write()
            if whim == "reset":
                client.reset()
            elif whim == "partial":
                client.receive_exactly(10)
            elif whim in ("read", "half"):
                for path in paths:
                    self._check(path, client.response().body)

    def _check(self, path: str, body: bytes) -> None:
        _, how, name = path.split("/")
        if body != (b"hello" if how == "app" else self.files[name]):
            self.problems.append(f"{path}: {len(body)} bytes, {body[:20]!r}")
        self.complete += 1


@pytest.mark.usefixtures("transport")
@COLD
def test_disorderly_clients_get_whole_files_and_leave_nothing_behind(
    tmp_path: Path, cold: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"empty": 0, "tiny": 10, "small": 50_000, "middle": 700_000, "big": 3_000_000}
    files = {name: content(size, size) for name, size in sizes.items()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with caplog.at_level(logging.WARNING, "hardserve"), switching_often(), serving_files(tmp_path, cold=cold) as edge:
        before = open_descriptors()
        until = time.monotonic() + 1.5
        visitors = [Visitor(edge, files, seed) for seed in range(6)]
        crowd = [threading.Thread(target=visitor.run, args=(until,), daemon=True) for visitor in visitors]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in crowd)
        eventually(lambda: not edge.connections() and open_descriptors() <= before)
    assert [problem for visitor in visitors for problem in visitor.problems] == []
    assert sum(visitor.complete for visitor in visitors) > 20
    assert [record.getMessage() for record in caplog.records] == []
